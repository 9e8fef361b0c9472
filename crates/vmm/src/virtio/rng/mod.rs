//! A source of random bytes (specification 1.2, section 5.4): the host kernel's.
//!
//! A guest that has just started, or is one of many copies of another, has no randomness of its
//! own.

mod device;
mod metrics;
#[cfg(test)]
mod tests;

pub use device::{DEFAULT_RATE, Rng};
pub use metrics::{Metrics, Snapshot};

/// What the worker's thread asks of the kernel for this device, besides what every worker does.
const SYSTEM_CALLS: &[libc::c_long] = &[
    libc::SYS_getrandom,
    // The rate limit.
    libc::SYS_timerfd_settime,
];
