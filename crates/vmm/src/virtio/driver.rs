//! The driver's side of a device's queues, for tests.

use std::time::{Duration, Instant};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as register;
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::{Queue, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress};

use super::device::{Active, Device, DeviceError, Interrupt};
use super::transport::Transport;
use crate::GuestMemory;
use crate::event::Event;

/// Where the rings of the first queue are; those of each further one lie behind.
const RINGS: u64 = 0x1000;
const RINGS_EACH: u64 = 0x4000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
/// From here on memory is the test's.
pub(crate) const DATA: u64 = 0x2_0000;
const MEMORY: usize = 0x10_0000;

/// A buffer of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffer {
    at: u64,
    length: u32,
    flags: u32,
}

/// A buffer that the device reads.
pub(crate) fn readable(at: u64, length: u32) -> Buffer {
    Buffer { at, length, flags: 0 }
}

/// A buffer that the device writes.
pub(crate) fn writable(at: u64, length: u32) -> Buffer {
    Buffer { at, length, flags: VRING_DESC_F_WRITE }
}

/// Memory of one region, 1 MiB at 0.
pub(crate) fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap()
}

#[derive(Debug)]
struct Rings {
    at: u64,
    size: u16,
    next_descriptor: u16,
    available: u16,
    used: u16,
}

/// A driver that has set up all queues of its device.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) active: Active,
    rings: Vec<Rings>,
}

impl Driver {
    /// One that agreed to all that `device` offers, with [`memory`].
    pub(crate) fn of(device: &dyn Device) -> Self {
        Self::with(device, memory(), device.identity().features)
    }

    /// One that agreed to `features`. Memory below [`DATA`] is the rings'.
    pub(crate) fn with(device: &dyn Device, memory: GuestMemory, features: u64) -> Self {
        let sizes = device.identity().queue_sizes;
        let rings: Vec<_> = (0..)
            .zip(sizes)
            .map(|(number, &size)| Rings {
                at: RINGS + RINGS_EACH * number,
                size,
                next_descriptor: 0,
                available: 0,
                used: 0,
            })
            .collect();
        let active = Active {
            memory,
            queues: rings.iter().map(|rings| rings.queue(features)).collect(),
            features,
            interrupt: Interrupt::new(Event::new().unwrap()),
            kicks: sizes.iter().map(|_| Event::new().unwrap()).collect(),
        };
        Self { active, rings }
    }

    /// Has as many entries behind it as `index` says, in both rings.
    pub(crate) fn go_on_at(&mut self, queue: usize, index: u16) {
        let rings = &mut self.rings[queue];
        (rings.available, rings.used) = (index, index);
        for ring in [AVAILABLE, USED] {
            self.active.memory.write_obj(index, GuestAddress(rings.at + ring + 2)).unwrap();
        }
        self.active.queues[queue].set_next_avail(index);
        self.active.queues[queue].set_next_used(index);
    }

    /// Makes a request available, and returns its entry.
    pub(crate) fn offer(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let rings = &mut self.rings[queue];
        let head = rings.next_descriptor;
        let last = buffers.len() - 1;
        for (number, buffer) in buffers.iter().enumerate() {
            let next = (rings.next_descriptor + 1) % rings.size;
            let more = if number == last { 0 } else { VRING_DESC_F_NEXT };
            let at = rings.at + 16 * u64::from(rings.next_descriptor);
            write_descriptor(&self.active.memory, at, *buffer, more, next);
            rings.next_descriptor = next;
        }
        self.offer_entry(queue, head);
        head
    }

    /// Makes a request available whose descriptors are in a table of their own, at `table`.
    pub(crate) fn offer_indirect(&mut self, queue: usize, table: u64, buffers: &[Buffer]) -> u16 {
        let last = buffers.len() - 1;
        for (number, buffer) in (0..).zip(buffers) {
            let more = if usize::from(number) == last { 0 } else { VRING_DESC_F_NEXT };
            let at = table + 16 * u64::from(number);
            write_descriptor(&self.active.memory, at, *buffer, more, number + 1);
        }
        let length = u32::try_from(16 * buffers.len()).unwrap();
        self.offer(queue, &[Buffer { at: table, length, flags: VRING_DESC_F_INDIRECT }])
    }

    /// Lets a descriptor go on at another one.
    pub(crate) fn link(&self, queue: usize, from: u16, to: u16) {
        let at = self.rings[queue].at + 16 * u64::from(from);
        let flags: u16 = self.active.memory.read_obj(GuestAddress(at + 12)).unwrap();
        let flags = flags | u16::try_from(VRING_DESC_F_NEXT).unwrap();
        self.active.memory.write_obj([flags, to], GuestAddress(at + 12)).unwrap();
    }

    /// Makes the descriptor of this number available, whatever it is.
    pub(crate) fn offer_entry(&mut self, queue: usize, head: u16) {
        let rings = &mut self.rings[queue];
        let slot = u64::from(rings.available % rings.size);
        self.active.memory.write_obj(head, rings.available_at(4 + 2 * slot)).unwrap();
        rings.available = rings.available.wrapping_add(1);
        self.active.memory.write_obj(rings.available, rings.available_at(2)).unwrap();
    }

    /// Says that so many more requests are available than are.
    pub(crate) fn overstate(&mut self, queue: usize, by: u16) {
        let rings = &self.rings[queue];
        let index = rings.available.wrapping_add(by);
        self.active.memory.write_obj(index, rings.available_at(2)).unwrap();
    }

    /// What the device used since this was last asked: entries, and bytes written.
    pub(crate) fn used(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let rings = &mut self.rings[queue];
        let memory = &self.active.memory;
        let index: u16 = memory.read_obj(GuestAddress(rings.at + USED + 2)).unwrap();
        let mut used = Vec::new();
        while rings.used != index {
            let at = rings.at + USED + 4 + 8 * u64::from(rings.used % rings.size);
            let entry = memory.read_obj(GuestAddress(at)).unwrap();
            let written = memory.read_obj(GuestAddress(at + 4)).unwrap();
            used.push((entry, written));
            rings.used = rings.used.wrapping_add(1);
        }
        used
    }

    /// Asks for an interrupt when the index of used entries gets to `used`, as
    /// [`VIRTIO_RING_F_EVENT_IDX`] has it.
    pub(crate) fn interrupt_after(&mut self, queue: usize, used: u16) {
        let rings = &self.rings[queue];
        let at = rings.available_at(4 + 2 * u64::from(rings.size));
        self.active.memory.write_obj(used.wrapping_sub(1), at).unwrap();
    }

    /// How often it was interrupted since this was last asked.
    pub(crate) fn interrupts(&self) -> u64 {
        self.active.interrupt.irq().as_eventfd().read().unwrap_or(0)
    }

    /// Lets `device` serve a queue.
    pub(crate) fn kick(&mut self, device: &mut dyn Device, queue: usize) {
        self.try_kick(device, queue).unwrap();
    }

    pub(crate) fn try_kick(
        &mut self,
        device: &mut dyn Device,
        queue: usize,
    ) -> Result<(), DeviceError> {
        device.serve(&mut self.active, queue)
    }

    /// Sets the device of `transport` up, through its registers, with these rings.
    pub(crate) fn start(&self, transport: &mut Transport) {
        let mut write = |at: u32, value: u32| transport.write(u64::from(at), &value.to_le_bytes());
        let features = self.active.features | 1 << VIRTIO_F_VERSION_1;
        for select in [0, 1] {
            write(register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            let half = features >> (32 * select) & u64::from(u32::MAX);
            write(register::VIRTIO_MMIO_DRIVER_FEATURES, u32::try_from(half).unwrap());
        }
        let agreed = VIRTIO_CONFIG_S_FEATURES_OK;
        write(register::VIRTIO_MMIO_STATUS, agreed);
        for (queue, rings) in (0..).zip(&self.rings) {
            let at = u32::try_from(rings.at).unwrap();
            write(register::VIRTIO_MMIO_QUEUE_SEL, queue);
            write(register::VIRTIO_MMIO_QUEUE_NUM, rings.size.into());
            write(register::VIRTIO_MMIO_QUEUE_DESC_LOW, at);
            write(register::VIRTIO_MMIO_QUEUE_AVAIL_LOW, at + 0x2000);
            write(register::VIRTIO_MMIO_QUEUE_USED_LOW, at + 0x3000);
            write(register::VIRTIO_MMIO_QUEUE_READY, 1);
        }
        write(register::VIRTIO_MMIO_STATUS, agreed | VIRTIO_CONFIG_S_DRIVER_OK);
    }

    /// Notifies the device of `transport`, and waits until it has used so many entries.
    pub(crate) fn await_used(&mut self, transport: &Transport, queue: usize, entries: usize) {
        transport.kicks()[queue].raise();
        let begin = Instant::now();
        let mut used = 0;
        while used < entries {
            assert!(begin.elapsed() < Duration::from_secs(10), "{used} of {entries} are used");
            std::thread::yield_now();
            used += self.used(queue).len();
        }
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.active.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub(crate) fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.active.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }
}

impl Rings {
    fn queue(&self, features: u64) -> Queue {
        let low = |at: u64| Some(u32::try_from(at).unwrap());
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_desc_table_address(low(self.at), None);
        queue.set_avail_ring_address(low(self.at + AVAILABLE), None);
        queue.set_used_ring_address(low(self.at + USED), None);
        queue.set_event_idx(features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
        queue.set_ready(true);
        queue
    }

    fn available_at(&self, offset: u64) -> GuestAddress {
        GuestAddress(self.at + AVAILABLE + offset)
    }
}

fn write_descriptor(memory: &GuestMemory, at: u64, buffer: Buffer, more: u32, next: u16) {
    let flags = u16::try_from(buffer.flags | more).unwrap();
    let descriptor = Descriptor::new(buffer.at, buffer.length, flags, next);
    memory.write_obj(RawDescriptor::from(descriptor), GuestAddress(at)).unwrap();
}
