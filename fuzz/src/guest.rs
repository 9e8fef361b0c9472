//! A guest that is out to break a device: it does what a driver does, and what none would.

use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress};
use vmm::GuestMemory;
use vmm::event::Event;
use vmm::virtio::{Active, Device, Interrupt, Transport};

use crate::choices::Choices;

/// Where memory begins and ends: two regions, with a hole in between.
pub const REGIONS: [(u64, u64); 2] = [(0, 0x1_0000), (0x2_0000, 0x3_0000)];

/// The rings of queue N usually lie at N times this, in the first region.
const RINGS: u64 = 0x3000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Data usually lies from here on.
const DATA: u64 = REGIONS[1].0;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const EVENT_IDX: u32 = 29;

/// A request that makes sense, or nearly: the bytes that the device reads, and how much it may write.
#[derive(Debug, Default)]
pub struct Request {
    /// What it reads.
    pub reads: Vec<u8>,
    /// How much it may write, buffer by buffer.
    pub writes: Vec<u32>,
}

/// A guest and a device of its.
#[derive(Debug)]
pub struct Guest<D> {
    /// The device.
    pub device: D,
    /// What the device works with, while it does.
    pub active: Option<Active>,
    memory: GuestMemory,
    queues: Vec<Place>,
}

/// Where the guest put a queue.
#[derive(Debug, Clone, Copy)]
struct Place {
    descriptors: u64,
    available: u64,
    used: u64,
    size: u16,
    ready: bool,
    next_descriptor: u16,
    offered: u16,
}

impl<D: Device> Guest<D> {
    /// One with memory at [`REGIONS`], that has not set its device up.
    pub fn new(device: D, memory: GuestMemory) -> Self {
        Self { device, active: None, memory, queues: Vec::new() }
    }

    /// Does what the bytes say until they end. `request` makes one that is for the device, and `check`
    /// is what has to hold after everything that it did.
    pub fn play(
        &mut self,
        choices: &mut Choices<'_>,
        mut request: impl FnMut(&mut Choices<'_>) -> Request,
        mut check: impl FnMut(&Self),
    ) {
        self.start(choices);
        // Enough for a ring of any size to go round.
        for _ in 0..600 {
            if choices.is_empty() {
                break;
            }
            match choices.of(16) {
                0..6 => {
                    let request = request(choices);
                    self.offer(choices, &request);
                }
                6..10 => self.serve(choices),
                10 => self.wake(),
                11 => self.configure(choices),
                12 => self.write(choices),
                13 => self.describe(choices),
                14 => self.announce(choices),
                _ => self.start(choices),
            }
            check(self);
        }
    }

    /// Resets the device, and sets it up.
    fn start(&mut self, choices: &mut Choices<'_>) {
        self.active = None;
        self.device.reset();
        let identity = self.device.identity();
        let sizes = identity.queue_sizes;
        self.queues =
            (0..).zip(sizes).map(|(at, most)| Place::choose(choices, at, *most)).collect();
        let features = match choices.of(4) {
            3 => u64::from(choices.byte()),
            2 => identity.features | 1 << EVENT_IDX,
            _ => identity.features,
        };
        let queues: Vec<_> = self.queues.iter().map(|place| place.queue(features)).collect();
        // What the registers make sure of.
        if queues.iter().any(|queue| queue.ready() && !queue.is_valid(&self.memory)) {
            return;
        }
        let mut active = Active {
            memory: self.memory.clone(),
            queues,
            features,
            interrupt: Interrupt::new(Event::new().expect("an event")),
            kicks: sizes.iter().map(|_| Event::new().expect("an event")).collect(),
        };
        self.active = self.device.activated(&mut active).is_ok().then_some(active);
    }

    /// Lets the device serve a queue, as its worker does. An error stops it until it is set up again.
    fn serve(&mut self, choices: &mut Choices<'_>) {
        let queue = choices.of(self.queues.len());
        let Some(active) = &mut self.active else { return };
        if self.device.serve(active, queue).is_err() {
            self.active = None;
        }
    }

    /// The device's source is ready, or is said to be.
    fn wake(&mut self) {
        let Some(active) = &mut self.active else { return };
        if self.device.source().is_some() && self.device.source_ready(active).is_err() {
            self.active = None;
        }
    }

    /// Bytes anywhere.
    fn write(&self, choices: &mut Choices<'_>) {
        let at = GuestAddress(address(choices));
        let length = choices.of(64);
        let _ = self.memory.write_slice(choices.take(length), at);
    }

    /// A descriptor anywhere in a table.
    fn describe(&self, choices: &mut Choices<'_>) {
        let place = *choices.pick(&self.queues);
        let entry = u16::from(choices.byte());
        let descriptor = Descriptor::new(
            address(choices),
            u32::try_from(choices.length()).expect("18 bits"),
            u16::from(choices.byte()),
            u16::from(choices.byte()),
        );
        self.put(place.descriptors, entry, descriptor);
    }

    /// An entry of the ring, or an index that there is no reason for.
    fn announce(&mut self, choices: &mut Choices<'_>) {
        let queue = choices.of(self.queues.len());
        let head = u16::from(choices.byte());
        self.make_available(queue, head);
        if choices.of(8) == 7 {
            let index = u16::try_from(choices.word()).expect("16 bits");
            let at = self.queues[queue].available.saturating_add(2);
            let _ = self.memory.write_obj(index, GuestAddress(at));
            self.queues[queue].offered = index;
        }
    }

    /// Configuration registers, of any width at any offset.
    fn configure(&self, choices: &mut Choices<'_>) {
        let config = self.device.config();
        let offset = [u64::from(choices.byte()), u64::MAX - 3][usize::from(choices.of(32) == 31)];
        let mut bytes = [0; 8];
        let length = 1 + choices.of(8);
        config.read(offset, &mut bytes[..length]);
        config.write(offset, choices.take(length));
    }

    /// Makes a request available, cut into descriptors in some way.
    fn offer(&mut self, choices: &mut Choices<'_>, request: &Request) {
        let queue = choices.of(self.queues.len());
        let (many, step) = *choices.pick(&[(64, 16), (8, 0x1000)]);
        let mut at = DATA + u64::try_from(choices.of(many) * step).expect("64 bits");
        let _ = self.memory.write_slice(&request.reads, GuestAddress(at));
        let mut descriptors = Vec::new();
        let mut left = u32::try_from(request.reads.len()).expect("it is short");
        while left > 0 {
            // Mostly all of it in one piece, and never in more than there can be descriptors.
            let piece = match choices.of(4) {
                3 if descriptors.len() < 300 => left.min(1 + u32::from(choices.byte())),
                _ => left,
            };
            descriptors.push((at, piece, 0));
            at += u64::from(piece);
            left -= piece;
        }
        for length in &request.writes {
            let to = if choices.of(16) == 15 { address(choices) } else { at };
            descriptors.push((to, *length, WRITE));
            at += u64::from(*length);
        }
        if choices.of(4) == 3 {
            self.offer_indirect(queue, at.next_multiple_of(16), &descriptors);
        } else {
            self.offer_direct(queue, &descriptors);
        }
    }

    fn offer_direct(&mut self, queue: usize, descriptors: &[(u64, u32, u16)]) {
        let place = self.queues[queue];
        let head = place.next_descriptor % place.size;
        for (number, &(at, length, flags)) in descriptors.iter().enumerate() {
            let entry = self.queues[queue].next_descriptor % place.size;
            let next = (entry + 1) % place.size;
            let more = if number + 1 < descriptors.len() { NEXT } else { 0 };
            self.put(place.descriptors, entry, Descriptor::new(at, length, flags | more, next));
            self.queues[queue].next_descriptor = next;
        }
        self.make_available(queue, head);
    }

    fn offer_indirect(&mut self, queue: usize, table: u64, descriptors: &[(u64, u32, u16)]) {
        for (entry, &(at, length, flags)) in (0..).zip(descriptors) {
            let more = if usize::from(entry) + 1 < descriptors.len() { NEXT } else { 0 };
            self.put(table, entry, Descriptor::new(at, length, flags | more, entry + 1));
        }
        let length = u32::try_from(16 * descriptors.len()).expect("it is short");
        self.offer_direct(queue, &[(table, length, INDIRECT)]);
    }

    fn put(&self, table: u64, entry: u16, descriptor: Descriptor) {
        let at = table.saturating_add(16 * u64::from(entry));
        let _ = self.memory.write_obj(RawDescriptor::from(descriptor), GuestAddress(at));
    }

    fn make_available(&mut self, queue: usize, head: u16) {
        let place = &mut self.queues[queue];
        let slot = u64::from(place.offered % place.size);
        let at = |offset| GuestAddress(place.available.saturating_add(offset));
        let _ = self.memory.write_obj(head, at(4 + 2 * slot));
        place.offered = place.offered.wrapping_add(1);
        let _ = self.memory.write_obj(place.offered, at(2));
    }
}

impl Place {
    fn choose(choices: &mut Choices<'_>, number: u64, most: u16) -> Self {
        let rings = number * RINGS;
        let size = match choices.of(4) {
            3 => 1 << choices.of(16),
            _ => 256,
        };
        let size = most.min(size);
        let ready = choices.of(16) != 15;
        let mut place = Self {
            descriptors: rings,
            available: rings + AVAILABLE,
            used: rings + USED,
            size,
            ready,
            next_descriptor: 0,
            offered: 0,
        };
        match choices.of(16) {
            13 => place.descriptors = address(choices),
            14 => place.available = address(choices),
            15 => place.used = address(choices),
            _ => {}
        }
        place
    }

    fn queue(&self, features: u64) -> Queue {
        let mut queue = Queue::new(256).expect("a size");
        queue.set_size(self.size);
        let [low, high] = halves(self.descriptors);
        queue.set_desc_table_address(low, high);
        let [low, high] = halves(self.available);
        queue.set_avail_ring_address(low, high);
        let [low, high] = halves(self.used);
        queue.set_used_ring_address(low, high);
        queue.set_event_idx(features & 1 << EVENT_IDX != 0);
        queue.set_ready(self.ready);
        queue
    }
}

fn halves(address: u64) -> [Option<u32>; 2] {
    [address, address >> 32].map(|half| u32::try_from(half & u64::from(u32::MAX)).ok())
}

/// Mostly in memory, often close to where that ends.
fn address(choices: &mut Choices<'_>) -> u64 {
    let [(low, low_end), (high, high_end)] = REGIONS;
    let word = u64::try_from(choices.word()).expect("16 bits");
    match choices.of(8) {
        0 | 1 => low + word,
        2 => low_end - 8 + (word & 15),
        3 => high_end - 8 + (word & 15),
        4 => word << 48 | 0xffff,
        _ => high + word,
    }
}

/// Any registers in any order; the device serves on a thread of its own meanwhile.
pub fn write_registers(
    device: impl Device + 'static,
    memory: &GuestMemory,
    data: &mut Choices<'_>,
) {
    let irq = Event::new().expect("an event");
    let (mut transport, worker) =
        Transport::new("fuzz", Box::new(device), memory.clone(), irq, || {}).expect("a thread");
    while !data.is_empty() {
        let offset = match data.of(4) {
            0 => u64::try_from(data.word()).expect("16 bits"),
            _ => 4 * u64::from(data.byte() & 0x7f),
        };
        match data.of(8) {
            0 => drop(transport.write(offset, data.take(8))),
            1 => {
                let mut bytes = [0; 8];
                transport.read(offset, &mut bytes[..1 + data.of(8)]);
            }
            2 => start_properly(&mut transport),
            3 => worker.pause(),
            4 => worker.resume(),
            _ => {
                let value = u32::try_from(data.length()).expect("18 bits");
                transport.write(offset, &value.to_le_bytes());
            }
        }
        let mut magic = [0; 4];
        transport.read(0, &mut magic);
        assert_eq!(magic, *b"virt");
    }
}

/// The least that a driver does.
fn start_properly(transport: &mut Transport) {
    // Reset, features with version 1, one queue, ready.
    let steps = [
        (0x70, 0),
        (0x70, 3),
        (0x24, 1),
        (0x20, 1),
        (0x70, 11),
        (0x30, 0),
        (0x38, 8),
        (0x80, 0),
        (0x90, 0x1000),
        (0xa0, 0x2000),
        (0x44, 1),
        (0x70, 15),
        (0x50, 0),
    ];
    for (offset, value) in steps {
        transport.write(offset, &u32::to_le_bytes(value));
    }
}
