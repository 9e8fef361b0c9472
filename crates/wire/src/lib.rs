//! Protocol between host and guest: frames, streams, signed operations. No I/O of its own.
#![forbid(unsafe_code)]

pub mod op;
pub mod text;
