//! What the device counts.

use serde::{Deserialize, Serialize};

use crate::metrics::Counter;

/// The counts, kept by the device and read by anybody.
#[derive(Debug, Default)]
pub struct Metrics {
    pub(super) packets_from_guest: Counter,
    pub(super) packets_to_guest: Counter,
    pub(super) bytes_from_guest: Counter,
    pub(super) bytes_to_guest: Counter,
    pub(super) opened: Counter,
    pub(super) closed: Counter,
    pub(super) joined: Counter,
    pub(super) refused: Counter,
    pub(super) resets: Counter,
    pub(super) malformed: Counter,
    pub(super) wake_ups: Counter,
}

/// The counts at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Packets that the guest sent, malformed ones included.
    pub packets_from_guest: u64,
    /// Packets that the guest got.
    pub packets_to_guest: u64,
    /// Bytes of data that the guest sent and that were taken.
    pub bytes_from_guest: u64,
    /// Bytes of data that the guest got.
    pub bytes_to_guest: u64,
    /// Sockets of the host that were taken in.
    pub opened: u64,
    /// Sockets of the host that were let go of.
    pub closed: u64,
    /// Connections that guest and host agreed on.
    pub joined: u64,
    /// Requests of the guest that were refused.
    pub refused: u64,
    /// Resets that the guest was sent.
    pub resets: u64,
    /// Chains of descriptors that were no packet, no buffer for one, or a packet that breaks the
    /// protocol.
    pub malformed: u64,
    /// Times that something else than the driver gave the device work.
    pub wake_ups: u64,
}

impl Metrics {
    /// All counts now. They are read one after the other, not at one instant.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            packets_from_guest: self.packets_from_guest.get(),
            packets_to_guest: self.packets_to_guest.get(),
            bytes_from_guest: self.bytes_from_guest.get(),
            bytes_to_guest: self.bytes_to_guest.get(),
            // In this order, so that no more seem to be closed than opened.
            closed: self.closed.get(),
            opened: self.opened.get(),
            joined: self.joined.get(),
            refused: self.refused.get(),
            resets: self.resets.get(),
            malformed: self.malformed.get(),
            wake_ups: self.wake_ups.get(),
        }
    }
}
