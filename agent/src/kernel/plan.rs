//! What is attached where.
