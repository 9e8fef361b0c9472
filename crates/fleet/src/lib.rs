//! Many sandboxes: queue, lifecycle, limits of time, recovery.
#![forbid(unsafe_code)]
