//! What each command does: it joins the parts and returns what is to be printed.

pub mod ps;
