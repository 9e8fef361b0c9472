//! The device: takes pages and reports of free ones, and tells the driver what the host wants.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_queue::desc::split::Descriptor;

use super::metrics::{Metrics, Statistics};
use super::pages::{PAGE, give_back, join, pages};
use super::target::Target;
use crate::GuestMemory;
use crate::virtio::buffers::{Buffers, MAX_BUFFERS};
use crate::virtio::{
    Active, Answer, Chain, ConfigSpace, Device, DeviceError, DeviceStateError, Identity, Own,
};

// Section 5.5.3; not among the bindings.
const F_STATISTICS: u32 = 1;
const F_DEFLATE_ON_OOM: u32 = 2;
const F_REPORTING: u32 = 5;

// Section 5.5.2. Without the feature of free page hints, which this device does not have, reporting
// is queue 4 by the specification. Linux, though, long counted only the queues that are there, and
// QEMU does: then it is queue 3.
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const QUEUES: usize = 5;
/// Linux reports up to 32 ranges at once, and nothing if they do not fit.
const QUEUE_SIZE: u16 = 128;

/// Most pages that one request may put into the balloon. Linux puts 256.
const MAX_PAGES: u32 = 4096;
const PAGE_NUMBER: u32 = 4;
/// Most values that one request may say. There are 16 tags.
const MAX_STATISTICS: usize = 64;

/// Version of what is [saved](Device::save): pages wanted and given, and the entry of the statistics,
/// each 32 bits in little endian.
const SAVED: u16 = 1;
const NO_ENTRY: u32 = u32::MAX;

/// A memory balloon.
#[derive(Debug)]
pub struct Balloon {
    target: Target,
    /// The entry that the driver's statistics came in. It gets that back when they are asked for.
    statistics: Option<u16>,
    metrics: Arc<Metrics>,
}

impl Balloon {
    /// An empty one.
    ///
    /// # Errors
    /// Where there are no descriptors to be had.
    pub fn new() -> io::Result<Self> {
        Ok(Self { target: Target::new()?, statistics: None, metrics: Arc::default() })
    }

    /// How the host says what it wants of the balloon.
    pub fn target(&self) -> Target {
        self.target.clone()
    }

    /// What it counts.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    /// What the driver read in one request, if that makes sense.
    fn readable<'m>(&self, memory: &'m GuestMemory, chain: Chain<'m>) -> Option<Buffers<'m>> {
        let descriptors: Vec<_> = chain.take(MAX_BUFFERS).collect();
        let readable = !descriptors.iter().any(Descriptor::is_write_only);
        let buffers = readable.then(|| Buffers::gather(memory, &descriptors).ok()).flatten();
        if buffers.is_none() {
            self.metrics.malformed.add(1);
        }
        buffers
    }

    fn inflate(&self, memory: &GuestMemory, chain: Chain<'_>) {
        let Some(mut numbers) = self.readable(memory, chain) else { return };
        let given = numbers.len() / PAGE_NUMBER;
        self.metrics.inflated_pages.add(given.into());
        self.metrics.ignored_pages.add(given.saturating_sub(MAX_PAGES).into());
        let numbers = std::iter::from_fn(|| numbers.take().map(u32::from_le_bytes));
        let page = |number| u64::from(number) * PAGE..(u64::from(number) + 1) * PAGE;
        let most = usize::try_from(MAX_PAGES).expect("32 bits");
        self.give_back(memory, numbers.take(most).map(page).collect());
    }

    /// There is nothing to do for a page that is taken out: it has memory again once it is used.
    fn deflate(&self, memory: &GuestMemory, chain: Chain<'_>) {
        if let Some(numbers) = self.readable(memory, chain) {
            self.metrics.deflated_pages.add((numbers.len() / PAGE_NUMBER).into());
        }
    }

    fn take_statistics(&self, memory: &GuestMemory, chain: Chain<'_>) {
        let Some(mut values) = self.readable(memory, chain) else { return };
        let mut statistics = Statistics::default();
        for _ in 0..MAX_STATISTICS {
            let Some([t0, t1, value @ ..]) = values.take::<10>() else { break };
            statistics.set(u16::from_le_bytes([t0, t1]), u64::from_le_bytes(value));
        }
        *self.metrics.statistics() = statistics;
    }

    fn take_report(&self, memory: &GuestMemory, chain: Chain<'_>) {
        let mut ranges = Vec::new();
        for descriptor in chain.take(MAX_BUFFERS) {
            match free_range(&descriptor) {
                Some(range) => ranges.push(range),
                None => self.metrics.malformed.add(1),
            }
        }
        self.metrics.reported_pages.add(pages(&ranges));
        self.give_back(memory, ranges);
    }

    fn give_back(&self, memory: &GuestMemory, mut ranges: Vec<Range<u64>>) {
        let named = pages(&ranges);
        join(&mut ranges);
        let mut ignored = named;
        for range in &ranges {
            let returned = give_back(memory, range);
            self.metrics.returned_pages.add(returned.pages);
            self.metrics.failed.add(returned.failed);
            ignored -= returned.pages;
        }
        self.metrics.ignored_pages.add(ignored);
    }
}

/// What a report's descriptor is about, if that is whole pages.
fn free_range(descriptor: &Descriptor) -> Option<Range<u64>> {
    let start = descriptor.addr().0;
    let length = u64::from(descriptor.len());
    let whole = start.is_multiple_of(PAGE) && length.is_multiple_of(PAGE);
    let end = start.checked_add(length)?;
    (whole && descriptor.is_write_only()).then_some(start..end)
}

impl Device for Balloon {
    fn identity(&self) -> Identity {
        Identity {
            id: VIRTIO_ID_BALLOON,
            features: 1 << F_STATISTICS | 1 << F_DEFLATE_ON_OOM | 1 << F_REPORTING,
            queue_sizes: &[QUEUE_SIZE; QUEUES],
        }
    }

    fn system_calls(&self) -> &'static [libc::c_long] {
        super::SYSTEM_CALLS
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        self.target.shared().clone()
    }

    fn serve(&mut self, active: &mut Active, queue: usize) -> Result<(), DeviceError> {
        active.drain(queue, |memory, chain| {
            match queue {
                INFLATE => self.inflate(memory, chain),
                DEFLATE => self.deflate(memory, chain),
                STATISTICS => {
                    // A driver has one such entry (section 5.5.6.3). Of several, one stays known.
                    self.statistics = Some(chain.head_index());
                    self.take_statistics(memory, chain);
                    return Answer::Kept;
                }
                _ => self.take_report(memory, chain),
            }
            Answer::Used(0)
        })
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.target.shared().changed.as_fd())
    }

    fn source_ready(&mut self, active: &mut Active) -> Result<(), DeviceError> {
        let shared = self.target.shared().clone();
        shared.changed.lower();
        if shared.take_new_size() {
            active.interrupt.config_changed();
        }
        if shared.take_wish_for_statistics()
            && let Some(entry) = self.statistics.take()
        {
            active.give_back(STATISTICS, entry)?;
        }
        Ok(())
    }

    fn save(&self) -> Own {
        let [wanted, actual] = self.target.shared().sizes();
        let entry = self.statistics.map_or(NO_ENTRY, u32::from);
        let words = [wanted, actual, entry].map(u32::to_le_bytes);
        Own { version: SAVED, bytes: words.as_flattened().to_vec() }
    }

    fn restored(&mut self, _active: &mut Active, saved: &Own) -> Result<(), DeviceStateError> {
        let words = <[u8; 12]>::try_from(&*saved.bytes).map_err(|_| DeviceStateError::Own)?;
        let word = |at: usize| {
            u32::from_le_bytes(words[4 * at..][..4].try_into().expect("four bytes of twelve"))
        };
        let entry = match word(2) {
            NO_ENTRY => None,
            entry => Some(u16::try_from(entry).map_err(|_| DeviceStateError::Own)?),
        };
        if saved.version != SAVED || entry.is_some_and(|entry| entry >= QUEUE_SIZE) {
            return Err(DeviceStateError::Own);
        }
        self.statistics = entry;
        self.target.shared().restore([word(0), word(1)]);
        Ok(())
    }

    fn reset(&mut self) {
        self.statistics = None;
        self.target.shared().forget_driver();
    }
}
