//! What the device counts, and what the guest says of itself.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::metrics::Counter;

/// The counts, kept by the device and read by anybody.
#[derive(Debug, Default)]
pub struct Metrics {
    pub(super) inflated_pages: Counter,
    pub(super) deflated_pages: Counter,
    pub(super) reported_pages: Counter,
    pub(super) returned_pages: Counter,
    pub(super) ignored_pages: Counter,
    pub(super) failed: Counter,
    pub(super) malformed: Counter,
    statistics: Mutex<Statistics>,
}

/// The counts at a moment. Pages are of 4 KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Pages that the driver put into the balloon.
    pub inflated_pages: u64,
    /// Pages that it took out again.
    pub deflated_pages: u64,
    /// Pages that it reported as free.
    pub reported_pages: u64,
    /// Pages of both kinds that the host has back.
    pub returned_pages: u64,
    /// Pages that are no memory, came twice, were too many at once, or that the host did not take.
    pub ignored_pages: u64,
    /// Times that the host did not take pages.
    pub failed: u64,
    /// Requests that make no sense.
    pub malformed: u64,
    /// What the driver last said; see [`Target::ask_for_statistics`](super::Target::ask_for_statistics).
    pub statistics: Statistics,
}

/// What a guest says of its memory (section 5.5.6.4). All of it is the guest's word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Bytes that were swapped in.
    pub swapped_in: Option<u64>,
    /// Bytes that were swapped out.
    pub swapped_out: Option<u64>,
    /// Page faults that needed a disk.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
    /// Bytes that nothing uses.
    pub free: Option<u64>,
    /// Bytes that the guest has.
    pub total: Option<u64>,
    /// Bytes that new work could have without swapping.
    pub available: Option<u64>,
    /// Bytes of files that could be dropped.
    pub caches: Option<u64>,
    /// Huge pages that were handed out.
    pub huge_pages_allocated: Option<u64>,
    /// Huge pages that were not to be had.
    pub huge_pages_failed: Option<u64>,
    /// Processes that were killed for their memory.
    pub out_of_memory_kills: Option<u64>,
}

impl Metrics {
    /// All counts now. They are read one after the other, not at one instant.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            inflated_pages: self.inflated_pages.get(),
            deflated_pages: self.deflated_pages.get(),
            reported_pages: self.reported_pages.get(),
            returned_pages: self.returned_pages.get(),
            ignored_pages: self.ignored_pages.get(),
            failed: self.failed.get(),
            malformed: self.malformed.get(),
            statistics: *self.statistics(),
        }
    }

    pub(super) fn statistics(&self) -> MutexGuard<'_, Statistics> {
        self.statistics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Statistics {
    /// Takes a value by its tag. What tags mean that are not here is not known.
    pub(super) fn set(&mut self, tag: u16, value: u64) {
        let field = match tag {
            0 => &mut self.swapped_in,
            1 => &mut self.swapped_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free,
            5 => &mut self.total,
            6 => &mut self.available,
            7 => &mut self.caches,
            8 => &mut self.huge_pages_allocated,
            9 => &mut self.huge_pages_failed,
            // Linux has it since 6.12.
            10 => &mut self.out_of_memory_kills,
            _ => return,
        };
        *field = Some(value);
    }
}
