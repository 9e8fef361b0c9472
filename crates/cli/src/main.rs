//! The `sandforge` command.
#![forbid(unsafe_code)]
fn main() {}
