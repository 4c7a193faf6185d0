//! What each command does: it joins the parts and returns what is to be printed.

mod diagnosis;
pub mod doctor;
pub mod ps;
