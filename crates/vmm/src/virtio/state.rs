//! A device at a standstill: its registers, its queues, and what it knows of its driver besides.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState};

/// What another device of the same kind needs to go on for this one's driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// The device's id of the specification, section 5.
    pub(super) kind: u32,
    pub(super) registers: Registers,
    pub(super) service: ServiceState,
}

/// The transport's part.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Registers {
    pub(super) queues: Vec<Rings>,
    pub(super) queue_select: u32,
    pub(super) device_features_select: u32,
    pub(super) driver_features_select: u32,
    pub(super) driver_features: u64,
    pub(super) status: u32,
    pub(super) reasons: u32,
    pub(super) generation: u32,
}

/// The worker's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ServiceState {
    Inactive,
    Active { queues: Vec<Rings>, features: u64, own: Own },
    Broken,
}

/// The device's own part. A device that knows nothing but its queues has version 0 and no bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Own {
    /// The version of the bytes' form.
    pub version: u16,
    /// What they are is the device's affair.
    pub bytes: Vec<u8>,
}

/// Where a queue is, and how far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rings {
    max_size: u16,
    size: u16,
    ready: bool,
    events: bool,
    next_available: u16,
    next_used: u16,
    descriptors: u64,
    available: u64,
    used: u64,
}

impl From<&Queue> for Rings {
    fn from(queue: &Queue) -> Self {
        let state = queue.state();
        Self {
            max_size: state.max_size,
            size: state.size,
            ready: state.ready,
            events: state.event_idx_enabled,
            next_available: state.next_avail,
            next_used: state.next_used,
            descriptors: state.desc_table,
            available: state.avail_ring,
            used: state.used_ring,
        }
    }
}

impl Rings {
    /// The queue, where it is one that a device with queues of `max_size` can have.
    pub(super) fn restore(self, max_size: u16) -> Option<Queue> {
        if self.max_size != max_size {
            return None;
        }
        Queue::try_from(QueueState {
            max_size: self.max_size,
            next_avail: self.next_available,
            next_used: self.next_used,
            event_idx_enabled: self.events,
            size: self.size,
            ready: self.ready,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
        })
        .ok()
    }
}

/// The state is of a device that is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceStateError {
    /// Another kind of device is in its place.
    #[error("device {0} was there, and {1} is in its place")]
    Kind(u32, u32),
    /// Its queues are not those of the device.
    #[error("its queues are not the device's")]
    Queues,
    /// It agreed on features that the device has not.
    #[error("it has features that the device has not: {0:#x}")]
    Features(u64),
    /// Its own part makes no sense to the device.
    #[error("its own part is not the device's")]
    Own,
    /// The device could not go on.
    #[error("{0}")]
    Device(String),
}
