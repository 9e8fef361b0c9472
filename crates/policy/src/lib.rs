//! Decisions: pure, explained, never widened.
#![forbid(unsafe_code)]
