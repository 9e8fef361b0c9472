//! What the device counts.

use serde::{Deserialize, Serialize};

use crate::metrics::Counter;

/// The counts, kept by the device and read by anybody.
#[derive(Debug, Default)]
pub struct Metrics {
    pub(super) requests: Counter,
    pub(super) bytes: Counter,
    pub(super) failed: Counter,
    pub(super) malformed: Counter,
    pub(super) throttled: Counter,
}

/// The counts at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Requests for random bytes.
    pub requests: u64,
    /// Random bytes that the guest got.
    pub bytes: u64,
    /// Times that the host had none.
    pub failed: u64,
    /// Requests that make no sense.
    pub malformed: u64,
    /// Times that a request had to wait for the rate limit.
    pub throttled: u64,
}

impl Metrics {
    /// All counts now. They are read one after the other, not at one instant.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            requests: self.requests.get(),
            bytes: self.bytes.get(),
            failed: self.failed.get(),
            malformed: self.malformed.get(),
            throttled: self.throttled.get(),
        }
    }
}
