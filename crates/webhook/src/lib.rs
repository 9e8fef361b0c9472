//! Signed notices to servers that asked for them.
#![forbid(unsafe_code)]
