//! Tests of the monitor's devices under Linux's own drivers; see `tests/linux.rs`.
#![forbid(unsafe_code)]

/// The guest's first process, which tries every device and says what it found: a static program.
pub static INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));
