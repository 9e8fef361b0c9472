//! A memory balloon (specification 1.2, section 5.5): gives memory that the guest does not use back
//! to the host.
//!
//! In two ways. The driver inflates the balloon to the size that the host wants by taking pages from
//! its kernel, and deflates it when asked to, or before its kernel runs out of memory. And it reports
//! ranges that are free just now, which the kernel may use again whenever it likes.

mod device;
mod metrics;
mod pages;
mod target;
#[cfg(test)]
mod tests;

pub use device::Balloon;
pub use metrics::{Metrics, Snapshot, Statistics};
pub use target::Target;

/// What the worker's thread asks of the kernel for this device, besides what every worker does.
const SYSTEM_CALLS: &[libc::c_long] = &[
    // Giving pages back.
    libc::SYS_madvise,
];
