//! What the transport and the worker need of a device, and what a device gets to work with.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_queue::{Queue, QueueT as _};

use super::state::{DeviceStateError, Own};
use crate::GuestMemory;
use crate::event::Event;

/// What a device is to its driver; the same for all its life.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// The device's id of the specification, section 5.
    pub id: u32,
    /// The features that it offers, besides those of every device here.
    pub features: u64,
    /// The most entries of each of its queues; powers of two.
    pub queue_sizes: &'static [u16],
}

/// A device's configuration registers. Read and written on the threads of virtual CPUs, while
/// the device works.
pub trait ConfigSpace: fmt::Debug + Send + Sync {
    /// Fills `bytes` with what is at `offset`; zeroes beyond the end.
    fn read(&self, offset: u64, bytes: &mut [u8]);

    /// The driver wrote `bytes` to `offset`. What no field takes is ignored.
    fn write(&self, _offset: u64, _bytes: &[u8]) {}
}

impl ConfigSpace for Box<[u8]> {
    fn read(&self, offset: u64, bytes: &mut [u8]) {
        read_registers(self, offset, bytes);
    }
}

/// [`ConfigSpace::read`] of registers that are `all`.
pub(super) fn read_registers(all: &[u8], offset: u64, bytes: &mut [u8]) {
    let rest = usize::try_from(offset).ok().and_then(|offset| all.get(offset..));
    let rest = rest.unwrap_or_default();
    let known = rest.len().min(bytes.len());
    bytes[..known].copy_from_slice(&rest[..known]);
    bytes[known..].fill(0);
}

/// A device, as it lives on its worker's thread.
///
/// Between `reset` and the next call with an [`Active`] nothing of the guest is known to it. A
/// paused device is not asked to serve; a virtual CPU that was on its way to set it up or to reset
/// it still can.
pub trait Device: fmt::Debug + Send {
    /// What it is.
    fn identity(&self) -> Identity;

    /// The system calls that its thread makes to serve it, besides waiting, waking and
    /// allocating, which all do.
    fn system_calls(&self) -> &'static [libc::c_long];

    /// Its configuration registers.
    fn config(&self) -> Arc<dyn ConfigSpace>;

    /// The driver has made entries of this queue available, or may have: serves all that are
    /// there.
    ///
    /// # Errors
    /// Where the queue itself is broken. A request that is malformed is answered or dropped and
    /// is no error.
    fn serve(&mut self, active: &mut Active, queue: usize) -> Result<(), DeviceError>;

    /// What the device waits for besides its driver: a descriptor that is readable when there is
    /// work, such as an epoll instance of its own.
    fn source(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Its source is readable.
    ///
    /// # Errors
    /// As for [`Device::serve`].
    fn source_ready(&mut self, _active: &mut Active) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The driver has agreed on features and queues. Called once before the first `serve`.
    ///
    /// # Errors
    /// Where the device cannot work with what the driver set up.
    fn activated(&mut self, _active: &mut Active) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Forgets everything that came from the driver.
    fn reset(&mut self) {}

    /// What it knows of its driver besides its queues. It is paused.
    fn save(&self) -> Own {
        Own::default()
    }

    /// Goes on for a driver that another device [`save`](Device::save)d. Called in the place of
    /// [`Device::activated`]; every queue is served once afterwards.
    ///
    /// # Errors
    /// Where `saved` is not what a device of this kind saves, or the device cannot work with it.
    fn restored(&mut self, _active: &mut Active, saved: &Own) -> Result<(), DeviceStateError> {
        if *saved == Own::default() { Ok(()) } else { Err(DeviceStateError::Own) }
    }
}

/// The driver broke the protocol so that the device cannot go on before a reset.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A queue's rings are not aligned, or not in memory.
    #[error("queue {queue} is not where a queue can be")]
    Layout {
        /// Which.
        queue: usize,
    },
    /// The rings of a queue do not make sense.
    #[error("queue {queue}: {source}")]
    Queue {
        /// Which.
        queue: usize,
        /// Why.
        source: virtio_queue::Error,
    },
}

/// What an activated device works with.
#[derive(Debug)]
pub struct Active {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The queues, in the order of [`Identity::queue_sizes`]. The driver may have left some out:
    /// those are not [`ready`](virtio_queue::QueueT::ready).
    pub queues: Vec<Queue>,
    /// The features that were agreed on.
    pub features: u64,
    /// How the driver is told.
    pub interrupt: Interrupt,
    /// What the driver's notification of each queue arrives on.
    pub kicks: Kicks,
}

/// The driver's notifications, one for each queue. A device that leaves a queue before it is empty
/// raises its own, so as to come back when its worker has looked at everything else.
pub type Kicks = Arc<[Event]>;

impl Active {
    /// Whether both sides have this feature, given as the number of its bit.
    pub fn has(&self, feature: u32) -> bool {
        self.features & (1 << feature) != 0
    }

    /// Interrupts the guest where its driver wants to hear of the used entries of `queue`.
    ///
    /// # Errors
    /// Where the queue's rings cannot be read.
    pub fn notify(&mut self, queue: usize) -> Result<(), DeviceError> {
        let needed = self.queues[queue].needs_notification(&self.memory);
        if needed.map_err(|source| DeviceError::Queue { queue, source })? {
            self.interrupt.queue_used();
        }
        Ok(())
    }
}

/// A device's interrupt line, and the registers that say why it was raised.
#[derive(Debug, Clone)]
pub struct Interrupt(Arc<Line>);

#[derive(Debug)]
struct Line {
    irq: Event,
    reasons: AtomicU32,
    device_status: AtomicU32,
    generation: AtomicU32,
    failure: Mutex<Option<String>>,
}

impl Interrupt {
    /// One that is raised by writing to `irq`, for KVM to inject as an edge.
    pub fn new(irq: Event) -> Self {
        let zero = || AtomicU32::new(0);
        Self(Arc::new(Line {
            irq,
            reasons: zero(),
            device_status: zero(),
            generation: zero(),
            failure: Mutex::default(),
        }))
    }

    /// The device has used entries of a queue.
    pub fn queue_used(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// The device's configuration registers have changed.
    pub fn config_changed(&self) {
        self.0.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The device gives up until its driver resets it.
    pub(super) fn needs_reset(&self, failure: &DeviceError) {
        *self.failures() = Some(failure.to_string());
        self.0.device_status.fetch_or(VIRTIO_CONFIG_S_NEEDS_RESET, Ordering::AcqRel);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.failures().clone()
    }

    fn failures(&self) -> MutexGuard<'_, Option<String>> {
        self.0.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn raise(&self, reason: u32) {
        self.0.reasons.fetch_or(reason, Ordering::AcqRel);
        self.0.irq.raise();
    }

    pub(super) fn reasons(&self) -> u32 {
        self.0.reasons.load(Ordering::Acquire)
    }

    pub(super) fn acknowledge(&self, reasons: u32) {
        self.0.reasons.fetch_and(!reasons, Ordering::AcqRel);
    }

    /// Goes on with these reasons. An interrupt that was on its way may be lost: it comes again.
    pub(super) fn restore(&self, reasons: u32, device_status: u32, generation: u32) {
        self.0.reasons.store(reasons, Ordering::Release);
        self.0.device_status.store(device_status, Ordering::Release);
        self.0.generation.store(generation, Ordering::Release);
        if reasons != 0 {
            self.0.irq.raise();
        }
    }

    pub(super) fn device_status(&self) -> &AtomicU32 {
        &self.0.device_status
    }

    pub(super) fn generation(&self) -> u32 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// The descriptor that raises it.
    pub(crate) fn irq(&self) -> &Event {
        &self.0.irq
    }
}
