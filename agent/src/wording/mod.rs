//! How are names and figures written for people? What verdicts and reports share.

pub mod label;
pub mod unit;
