//! What the supervisor remembers, in SQLite.
#![forbid(unsafe_code)]
