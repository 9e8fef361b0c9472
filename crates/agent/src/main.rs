//! PID 1 of the guest: serves the wire and runs each task in a sandbox of its own.

fn main() {}
