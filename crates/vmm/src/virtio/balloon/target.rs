//! What the host wants of the balloon, and the registers through which the driver learns of it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::event::Event;
use crate::virtio::ConfigSpace;
use crate::virtio::device::read_registers;

/// Pages of 4 KiB in a MiB.
const PAGES_PER_MIB: u32 = 256;

/// Says how large the balloon is to be, from any thread. Clones say it to the same one.
#[derive(Debug, Clone)]
pub struct Target(Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    wanted_pages: AtomicU32,
    /// What the driver says that it has given.
    actual_pages: AtomicU32,
    size_is_new: AtomicBool,
    statistics_are_wanted: AtomicBool,
    /// Wakes the device's thread when one of the wishes has changed.
    pub(super) changed: Event,
}

impl Target {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            wanted_pages: AtomicU32::default(),
            actual_pages: AtomicU32::default(),
            size_is_new: AtomicBool::default(),
            statistics_are_wanted: AtomicBool::default(),
            changed: Event::new()?,
        })))
    }

    /// The guest is to do without so many MiB of its memory. Its driver gives what it can, in its
    /// own time.
    pub fn set_mib(&self, mib: u32) {
        self.0.wanted_pages.store(mib.saturating_mul(PAGES_PER_MIB), Ordering::Release);
        self.0.size_is_new.store(true, Ordering::Release);
        self.0.changed.raise();
    }

    /// How many MiB the driver says that the guest does without.
    pub fn actual_mib(&self) -> u32 {
        self.0.actual_pages.load(Ordering::Acquire) / PAGES_PER_MIB
    }

    /// The driver is to send statistics. They are in the metrics a little later, if it ever does.
    pub fn ask_for_statistics(&self) {
        self.0.statistics_are_wanted.store(true, Ordering::Release);
        self.0.changed.raise();
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }
}

impl Shared {
    /// Whether the driver has to hear of a size. It is taken to have heard of it then.
    pub(super) fn take_new_size(&self) -> bool {
        self.size_is_new.swap(false, Ordering::AcqRel)
    }

    /// Whether statistics are wanted. They are taken to be asked for then.
    pub(super) fn take_wish_for_statistics(&self) -> bool {
        self.statistics_are_wanted.swap(false, Ordering::AcqRel)
    }

    /// Pages that are wanted and that were given.
    pub(super) fn sizes(&self) -> [u32; 2] {
        [&self.wanted_pages, &self.actual_pages].map(|pages| pages.load(Ordering::Acquire))
    }

    /// Goes on with these. What the host said of this balloon before counts, if it said anything.
    pub(super) fn restore(&self, [wanted, actual]: [u32; 2]) {
        if !self.size_is_new.load(Ordering::Acquire) {
            self.wanted_pages.store(wanted, Ordering::Release);
        }
        self.actual_pages.store(actual, Ordering::Release);
    }

    /// A driver that starts has given nothing.
    pub(super) fn forget_driver(&self) {
        self.actual_pages.store(0, Ordering::Release);
    }
}

/// Where the driver writes how many pages it has given.
const ACTUAL: u64 = 4;

impl ConfigSpace for Shared {
    fn read(&self, offset: u64, bytes: &mut [u8]) {
        let registers = [&self.wanted_pages, &self.actual_pages];
        let registers = registers.map(|register| register.load(Ordering::Acquire).to_le_bytes());
        read_registers(registers.as_flattened(), offset, bytes);
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        if let (ACTUAL, Ok(bytes)) = (offset, bytes.try_into()) {
            self.actual_pages.store(u32::from_le_bytes(bytes), Ordering::Release);
        }
    }
}
