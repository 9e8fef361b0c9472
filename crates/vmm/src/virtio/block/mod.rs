//! A disk (specification 1.2, section 5.2): a file of the host's, which the guest may read, or
//! read and write; or several, one after another, which it may read.
//!
//! Data moves between the file and the guest's memory without a copy in between. One request is
//! served after the other: a sandbox's disks are images in the host's page cache.

mod device;
mod disk;
mod metrics;
mod request;
#[cfg(test)]
mod tests;

pub use device::{Block, Config};
pub use disk::DiskError;
pub use metrics::{Metrics, Snapshot};

/// What the worker's thread asks of the kernel for this device, besides what every worker does.
const SYSTEM_CALLS: &[libc::c_long] = &[
    // Data.
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_fdatasync,
    // Discarding, writing zeroes, and writing them where the file system has no way of its own.
    libc::SYS_fallocate,
    libc::SYS_pwrite64,
    // The rate limit.
    libc::SYS_timerfd_settime,
];
