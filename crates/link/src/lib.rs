//! The host's end of the wire: one connection to one agent, typed operations, flow control to the caller.
#![forbid(unsafe_code)]
