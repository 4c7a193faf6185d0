//! The file that a recording is kept in.
