//! What the device counts.

use serde::{Deserialize, Serialize};

use crate::metrics::Counter;

/// The counts, kept by the device and read by anybody.
#[derive(Debug, Default)]
pub struct Metrics {
    pub(super) reads: Counter,
    pub(super) bytes_read: Counter,
    pub(super) writes: Counter,
    pub(super) bytes_written: Counter,
    pub(super) flushes: Counter,
    pub(super) discards: Counter,
    pub(super) zeroings: Counter,
    pub(super) failed: Counter,
    pub(super) refused: Counter,
    pub(super) unsupported: Counter,
    pub(super) malformed: Counter,
    pub(super) throttled: Counter,
}

/// The counts at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Requests to read.
    pub reads: u64,
    /// Bytes that they read.
    pub bytes_read: u64,
    /// Requests to write.
    pub writes: u64,
    /// Bytes that they wrote.
    pub bytes_written: u64,
    /// Requests that what was written be on the disk.
    pub flushes: u64,
    /// Requests to discard.
    pub discards: u64,
    /// Requests to write zeroes.
    pub zeroings: u64,
    /// Requests that the host's file failed.
    pub failed: u64,
    /// Requests to change a disk that is read-only.
    pub refused: u64,
    /// Requests of a kind that the disk does not know.
    pub unsupported: u64,
    /// Requests that make no sense.
    pub malformed: u64,
    /// Times that a request had to wait for the rate limit.
    pub throttled: u64,
}

impl Metrics {
    /// All counts now. They are read one after the other, not at one instant.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            reads: self.reads.get(),
            bytes_read: self.bytes_read.get(),
            writes: self.writes.get(),
            bytes_written: self.bytes_written.get(),
            flushes: self.flushes.get(),
            discards: self.discards.get(),
            zeroings: self.zeroings.get(),
            failed: self.failed.get(),
            refused: self.refused.get(),
            unsupported: self.unsupported.get(),
            malformed: self.malformed.get(),
            throttled: self.throttled.get(),
        }
    }
}
