//! Sockets between guest and host. A guest that keeps no rule must neither break the device nor
//! make it hold more sockets than it may; and with one that keeps them all, whatever each side sends
//! arrives on the other, whole and in order, and never more at a time than there is room for.
#![no_main]

use std::collections::BTreeMap;
use std::fs;
use std::io::{IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::LazyLock;

use fuzz::choices::Choices;
use fuzz::guest::{Guest, REGIONS, Request, write_registers};
use libfuzzer_sys::fuzz_target;
use rustix::event::Timespec;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, bind, listen, recvmsg, send, socket, socketpair,
};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress};
use vmm::GuestMemory;
use vmm::event::Event;
use vmm::virtio::vsock::{Config, Vsock};
use vmm::virtio::{Active, Device, Interrupt};

const CID: u32 = 3;
const MAX_CONNECTIONS: usize = 8;
/// The ports of the guest that the host connects to.
const WANTED: [u32; 3] = [5, 6, 7];
/// The port of the host that the guest may connect to.
const SERVED: u32 = 80;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RESET: u16 = 3;
const SHUTDOWN: u16 = 4;
const DATA: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;

const RECEIVES_NO_MORE: u32 = 1;
const SENDS_NO_MORE: u32 = 2;

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices::new(data);
    let before = descriptors();
    match choices.of(8) {
        0..3 => Honest::new(&mut choices).play(&mut choices),
        7 => {
            let (device, _host) = Host::new();
            write_registers(device, &memory(), &mut choices);
        }
        _ => hostile(&mut choices),
    }
    assert_eq!(descriptors(), before, "descriptors are left over");
});

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("our descriptors").count()
}

fn memory() -> GuestMemory {
    let size = |(from, to)| usize::try_from(to - from).expect("64 bits");
    GuestMemory::from_ranges(&REGIONS.map(|region| (GuestAddress(region.0), size(region))))
        .expect("there is memory")
}

/// A packet's header, for the host.
fn header(host: u32, guest: u32, op: u16) -> [u8; 44] {
    let mut bytes = [0; 44];
    bytes[..8].copy_from_slice(&u64::from(CID).to_le_bytes());
    bytes[8..16].copy_from_slice(&2u64.to_le_bytes());
    bytes[16..20].copy_from_slice(&guest.to_le_bytes());
    bytes[20..24].copy_from_slice(&host.to_le_bytes());
    bytes[28] = 1;
    bytes[30..32].copy_from_slice(&op.to_le_bytes());
    bytes
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

// --- the host -------------------------------------------------------------

/// The host's ends of a device.
struct Host {
    connected: Vec<UnixStream>,
    address: std::os::unix::net::SocketAddr,
    service: Option<OwnedFd>,
}

impl Host {
    /// A device, with three sockets that are connected, one that listens and one that serves.
    fn new() -> (Vsock, Self) {
        let pairs = WANTED.map(|_| UnixStream::pair().expect("sockets"));
        let (connected, theirs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        for socket in &theirs {
            // So that it is soon full.
            set_socket_send_buffer_size(socket, 1).expect("the least that there can be");
        }
        let (service, control) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .expect("sockets");
        let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
        bind(&listener, &SocketAddrUnix::new_unnamed()).expect("a name of the kernel's");
        listen(&listener, 16).expect("it listens");
        let listener = UnixListener::from(listener);
        let address = listener.local_addr().expect("it has a name");
        let config = Config {
            connect: WANTED.into_iter().zip(theirs.into_iter().map(OwnedFd::from)).collect(),
            listen: vec![(WANTED[0], listener.into())],
            accept: vec![(SERVED, control)],
            max_connections: MAX_CONNECTIONS,
            ..Config::new(CID)
        };
        let device = Vsock::new(config).expect("a device");
        (device, Self { connected, address, service: Some(service) })
    }

    /// Takes a connection of the guest's.
    fn take(&self) -> Option<UnixStream> {
        let mut message = [0; 8];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut vectors = [IoSliceMut::new(&mut message)];
        let service = self.service.as_ref()?;
        recvmsg(service, &mut vectors, &mut ancillary, RecvFlags::DONTWAIT).ok()?;
        let mut rights = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        });
        rights.next().map(UnixStream::from)
    }

    /// Does something with one of its sockets.
    fn act(&mut self, choices: &mut Choices<'_>) {
        let what = choices.of(8);
        if what == 0 && self.connected.len() < 2 * MAX_CONNECTIONS {
            self.connected.extend(UnixStream::connect_addr(&self.address));
        }
        if what == 1 {
            self.connected.extend(self.take());
        }
        if what == 2 && choices.of(16) == 15 {
            self.service = None;
        }
        if self.connected.is_empty() {
            return;
        }
        let nth = choices.of(self.connected.len());
        let socket = &self.connected[nth];
        match what {
            3 => drop(self.connected.swap_remove(nth)),
            4 => drop(socket.shutdown(*choices.pick(&[Shutdown::Read, Shutdown::Write]))),
            5 => {
                let _ = write_some(socket, &vec![7; choices.length()]);
            }
            _ => drop(read_some(socket, choices.length())),
        }
    }
}

fn write_some(socket: &UnixStream, bytes: &[u8]) -> usize {
    send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).unwrap_or(0)
}

/// What there is; nothing at all where the end was reached.
fn read_some(mut socket: &UnixStream, most: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; most];
    socket.set_nonblocking(true).expect("a socket");
    match socket.read(&mut bytes) {
        Ok(0) if most > 0 => None,
        Ok(count) => {
            bytes.truncate(count);
            Some(bytes)
        }
        Err(_) => Some(Vec::new()),
    }
}

// --- a guest that keeps no rule -------------------------------------------

fn hostile(choices: &mut Choices<'_>) {
    let (device, mut host) = Host::new();
    let metrics = device.metrics();
    let mut guest = Guest::new(device, memory());
    let packet = |choices: &mut Choices<'_>| {
        if choices.of(4) == 3 {
            host.act(choices);
        }
        packet(choices)
    };
    guest.play(choices, packet, |guest| {
        let held = guest.device.connections();
        assert!(held <= MAX_CONNECTIONS, "{held} connections");
        let counts = metrics.snapshot();
        assert_eq!(counts.opened - counts.closed, held as u64);
        for queue in guest.active.iter().flat_map(|active| &active.queues) {
            assert_eq!(queue.next_used(), queue.next_avail(), "what was taken was answered");
        }
    });
}

/// Room for a packet, or a packet of a connection that there may be.
fn packet(choices: &mut Choices<'_>) -> Request {
    if choices.of(3) == 0 {
        let pieces = 1 + choices.of(3);
        let length = |choices: &mut Choices<'_>| u32::try_from(choices.length()).expect("18 bits");
        return Request {
            reads: Vec::new(),
            writes: (0..pieces).map(|_| length(choices)).collect(),
        };
    }
    let host = match choices.of(8) {
        0..4 => (1 << 30) + u32::from(choices.byte() & 15),
        4 | 5 => SERVED,
        6 => *choices.pick(&WANTED),
        _ => u32::MAX - u32::from(choices.byte()),
    };
    let guest = *choices.pick(&[WANTED[0], WANTED[1], WANTED[2], 1000, 1001, u32::MAX]);
    let op = *choices.pick(&[
        REQUEST,
        RESPONSE,
        RESPONSE,
        RESET,
        SHUTDOWN,
        DATA,
        DATA,
        CREDIT_UPDATE,
        CREDIT_REQUEST,
        9,
    ]);
    let data = vec![3; if op == DATA { choices.length() } else { 0 }];
    let mut bytes = header(host, guest, op);
    let length = u32::try_from(data.len()).expect("18 bits");
    let length = if choices.of(16) == 15 { length ^ 1 << choices.of(32) } else { length };
    bytes[24..28].copy_from_slice(&length.to_le_bytes());
    bytes[32] = choices.byte() & 3;
    for field in [36, 40] {
        let value = u32::try_from(choices.length()).expect("18 bits");
        bytes[field..field + 4].copy_from_slice(&value.to_le_bytes());
    }
    if choices.of(32) == 31 {
        bytes[choices.of(44)] ^= choices.byte();
    }
    Request { reads: [&bytes[..], &data].concat(), writes: Vec::new() }
}

// --- a guest that keeps them all ------------------------------------------

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

const SIZE: u16 = 32;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const SLOTS: u64 = 0x3000;
const SLOT: u64 = 0x2100;
const RING: u64 = 0x5_0000;
/// The most data of the guest's packets.
const PIECE: usize = 0x2000;

/// Bytes that one input may move, so that none takes long.
const BUDGET: usize = 1 << 19;

/// One queue, seen from its driver.
struct Ring {
    base: u64,
    offered: u16,
    taken: u16,
    free: Vec<u16>,
    lengths: BTreeMap<u16, u32>,
}

impl Ring {
    fn new(number: u64) -> Self {
        let free = (0..SIZE).collect();
        Self { base: number * RING, offered: 0, taken: 0, free, lengths: BTreeMap::new() }
    }

    fn queue(&self) -> Queue {
        let low = |offset| Some(u32::try_from(self.base + offset).expect("a small address"));
        let mut queue = Queue::new(SIZE).expect("a power of two");
        queue.set_desc_table_address(low(0), None);
        queue.set_avail_ring_address(low(AVAILABLE), None);
        queue.set_used_ring_address(low(USED), None);
        queue.set_event_idx(true);
        queue.set_ready(true);
        queue
    }

    fn slot(&self, head: u16) -> GuestAddress {
        GuestAddress(self.base + SLOTS + SLOT * u64::from(head))
    }

    /// Makes a slot available, if one is left; its bytes are there already.
    fn offer(&mut self, memory: &GuestMemory, bytes: &[u8], room: usize) -> bool {
        let Some(head) = self.free.pop() else { return false };
        let (length, flags) = if room > 0 { (room, 2) } else { (bytes.len(), 0) };
        let length = u32::try_from(length).expect("it is short");
        memory.write_slice(bytes, self.slot(head)).expect("a slot");
        let descriptor = Descriptor::new(self.slot(head).0, length, flags, 0);
        let entry = GuestAddress(self.base + 16 * u64::from(head));
        memory.write_obj(RawDescriptor::from(descriptor), entry).expect("the table");
        let available = self.base + AVAILABLE;
        let place = GuestAddress(available + 4 + 2 * u64::from(self.offered % SIZE));
        memory.write_obj(head, place).expect("the ring");
        self.offered = self.offered.wrapping_add(1);
        memory.write_obj(self.offered, GuestAddress(available + 2)).expect("the ring");
        self.lengths.insert(head, length);
        true
    }

    /// Takes what was used: what the device wrote to it.
    fn take(&mut self, memory: &GuestMemory) -> Option<Vec<u8>> {
        let used = self.base + USED;
        let index: u16 = memory.read_obj(GuestAddress(used + 2)).expect("the ring");
        if index == self.taken {
            return None;
        }
        let element = used + 4 + 8 * u64::from(self.taken % SIZE);
        let [head, written] = [element, element + 4]
            .map(|at| memory.read_obj::<u32>(GuestAddress(at)).expect("the ring"));
        let head = u16::try_from(head).expect("an entry");
        self.taken = self.taken.wrapping_add(1);
        let room = self.lengths.remove(&head).expect("it was offered");
        assert!(written <= room, "more was written than there is room for");
        self.free.push(head);
        let mut bytes = vec![0; usize::try_from(written).expect("it is short")];
        memory.read_slice(&mut bytes, self.slot(head)).expect("a slot");
        Some(bytes)
    }
}

/// One direction of one connection.
#[derive(Default)]
struct Flow {
    sent: usize,
    received: usize,
    /// What the receiver has passed on.
    consumed: usize,
    /// The sender has ended it.
    closed: bool,
    /// The receiver knows.
    ended: bool,
}

/// Bytes of which none looks like its neighbours, made once: made for each input they would take
/// most of the time.
static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let word = |at: u64| (at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ at << 40;
    (0..BUDGET as u64 / 4).flat_map(|at| word(at).to_le_bytes()).collect()
});

impl Flow {
    fn bytes(&self, seed: usize, from: usize, count: usize) -> Vec<u8> {
        let from = 1001 * seed + from;
        NOISE[from..from + count].to_vec()
    }

    fn arrive(&mut self, seed: usize, bytes: &[u8]) {
        assert!(bytes == self.bytes(seed, self.received, bytes.len()), "connection {seed}");
        assert!(!self.ended || bytes.is_empty(), "data behind the end");
        self.received += bytes.len();
        assert!(self.received <= self.sent);
    }
}

/// A connection, with a guest that takes what it says it has room for.
struct Joint {
    host: UnixStream,
    ports: (u32, u32),
    to_guest: Flow,
    to_host: Flow,
    /// Bytes that the guest has room for.
    room: usize,
    /// What the guest last said of how much it has passed on.
    said: usize,
    /// How much the guest may have sent, in all.
    credit: usize,
}

struct Honest {
    device: Vsock,
    active: Active,
    rings: [Ring; 2],
    host: Host,
    joints: Vec<Joint>,
    budget: usize,
    /// Packets that had no room in the ring.
    later: Vec<Vec<u8>>,
}

impl Honest {
    fn new(choices: &mut Choices<'_>) -> Self {
        let (device, host) = Host::new();
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory");
        let rings = [Ring::new(0), Ring::new(1)];
        let events = Ring::new(2);
        let active = Active {
            memory,
            queues: vec![rings[0].queue(), rings[1].queue(), events.queue()],
            features: 0,
            interrupt: Interrupt::new(Event::new().expect("an event")),
            kicks: (0..3).map(|_| Event::new().expect("an event")).collect(),
        };
        let (joints, later) = (Vec::new(), Vec::new());
        let mut honest = Self { device, active, rings, host, joints, budget: BUDGET, later };
        honest.device.activated(&mut honest.active).expect("an honest driver");
        honest.join(choices);
        honest
    }

    /// Brings four connections about: three that the host wants, and one that the guest wants.
    fn join(&mut self, choices: &mut Choices<'_>) {
        // Less would make the longest transfers take too many turns.
        let mut room = || 1024 + choices.length();
        let rooms = [room(), room(), room(), room()];
        for (socket, guest) in std::mem::take(&mut self.host.connected).into_iter().zip(WANTED) {
            // The host's port comes with the request.
            self.joints.push(Joint::new(socket, (0, guest), rooms[self.joints.len()]));
        }
        let bytes = self.packet_of_room((SERVED, 1000), REQUEST, rooms[3]);
        self.transmit(bytes);
        self.rest();
        let socket = self.host.take().expect("the request was heard");
        self.joints.push(Joint::new(socket, (SERVED, 1000), rooms[3]));
        self.receive();
    }

    fn play(mut self, choices: &mut Choices<'_>) {
        for _ in 0..500 {
            if choices.is_empty() {
                break;
            }
            let nth = choices.of(self.joints.len());
            match choices.of(8) {
                0 | 1 => self.host_writes(nth, choices.length()),
                2 => self.host_reads(nth, choices.length()),
                3 | 4 => self.guest_sends(nth, choices.length()),
                5 => self.guest_consumes(nth, choices.length()),
                6 => self.receive(),
                _ if choices.of(4) == 3 => self.host_ends(nth),
                _ => self.guest_ends(nth),
            }
            self.rest();
        }
        self.finish();
    }

    fn packet_of_room(&self, ports: (u32, u32), op: u16, room: usize) -> Vec<u8> {
        let mut bytes = header(ports.0, ports.1, op);
        bytes[36..40].copy_from_slice(&u32::try_from(room).expect("18 bits").to_le_bytes());
        bytes.to_vec()
    }

    /// A packet of a connection, which says how much room there is.
    fn packet(&mut self, nth: usize, op: u16, flags: u32, data: &[u8]) -> Vec<u8> {
        let joint = &mut self.joints[nth];
        joint.said = joint.to_guest.consumed;
        let (ports, room, said) = (joint.ports, joint.room, joint.said);
        let mut bytes = self.packet_of_room(ports, op, room);
        bytes[24..28].copy_from_slice(&u32::try_from(data.len()).expect("short").to_le_bytes());
        bytes[32..36].copy_from_slice(&flags.to_le_bytes());
        bytes[40..].copy_from_slice(&u32::try_from(said).expect("short").to_le_bytes());
        bytes.extend(data);
        bytes
    }

    fn transmit(&mut self, bytes: Vec<u8>) {
        while self.rings[TRANSMIT].take(&self.active.memory).is_some() {}
        if !self.later.is_empty() || !self.rings[TRANSMIT].offer(&self.active.memory, &bytes, 0) {
            self.later.push(bytes);
        }
        self.serve(TRANSMIT);
    }

    fn serve(&mut self, queue: usize) {
        self.device.serve(&mut self.active, queue).expect("an honest driver");
    }

    /// Lets the device do all that it has to do, which must come to an end.
    fn rest(&mut self) {
        for _ in 0..1000 {
            let mut worked = false;
            for queue in [RECEIVE, TRANSMIT] {
                if self.active.kicks[queue].lower() {
                    self.serve(queue);
                    worked = true;
                }
            }
            let source = self.device.source().expect("it has one");
            let mut polled = [PollFd::new(&source, PollFlags::IN)];
            if poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0) {
                self.device.source_ready(&mut self.active).expect("an honest driver");
                worked = true;
            }
            if !worked {
                return;
            }
        }
        panic!("the device does not come to rest");
    }

    // --- what either side does --------------------------------------------

    fn host_writes(&mut self, nth: usize, count: usize) {
        let joint = &mut self.joints[nth];
        let count = count.min(self.budget);
        if joint.to_guest.closed || count == 0 {
            return;
        }
        let bytes = joint.to_guest.bytes(nth, joint.to_guest.sent, count);
        let written = write_some(&joint.host, &bytes);
        joint.to_guest.sent += written;
        self.budget -= written;
    }

    fn host_reads(&mut self, nth: usize, most: usize) {
        let joint = &mut self.joints[nth];
        if joint.to_host.ended {
            return;
        }
        match read_some(&joint.host, most) {
            Some(bytes) => joint.to_host.arrive(nth + 8, &bytes),
            None => {
                assert!(joint.to_host.closed && joint.to_host.received == joint.to_host.sent);
                joint.to_host.ended = true;
            }
        }
    }

    fn host_ends(&mut self, nth: usize) {
        let joint = &mut self.joints[nth];
        if !joint.to_guest.closed {
            joint.to_guest.closed = true;
            joint.host.shutdown(Shutdown::Write).expect("the guest still receives");
        }
    }

    fn guest_sends(&mut self, nth: usize, count: usize) {
        let joint = &mut self.joints[nth];
        let room = joint.credit - joint.to_host.sent;
        let count = count.min(room).min(PIECE).min(self.budget);
        if joint.to_host.closed || count == 0 {
            return;
        }
        let bytes = joint.to_host.bytes(nth + 8, joint.to_host.sent, count);
        joint.to_host.sent += count;
        self.budget -= count;
        let bytes = self.packet(nth, DATA, 0, &bytes);
        self.transmit(bytes);
    }

    fn guest_consumes(&mut self, nth: usize, most: usize) {
        let flow = &mut self.joints[nth].to_guest;
        flow.consumed += most.min(flow.received - flow.consumed);
        if self.is_joined(nth) {
            let bytes = self.packet(nth, CREDIT_UPDATE, 0, &[]);
            self.transmit(bytes);
        }
    }

    fn is_joined(&self, nth: usize) -> bool {
        // One that asked for nothing yet, or of which both sides have taken leave, is not.
        let joint = &self.joints[nth];
        joint.credit > 0 && !(joint.to_guest.ended && joint.to_host.closed)
    }

    fn guest_ends(&mut self, nth: usize) {
        if self.is_joined(nth) && !self.joints[nth].to_host.closed {
            self.joints[nth].to_host.closed = true;
            let bytes = self.packet(nth, SHUTDOWN, SENDS_NO_MORE, &[]);
            self.transmit(bytes);
        }
    }

    // --- what the guest gets ----------------------------------------------

    /// Takes what came, and gives buffers for more.
    fn receive(&mut self) {
        while let Some(bytes) = self.rings[RECEIVE].take(&self.active.memory) {
            self.hear(&bytes);
        }
        while self.rings[RECEIVE].offer(&self.active.memory, &[], 4096) {}
        self.serve(RECEIVE);
        for bytes in std::mem::take(&mut self.later) {
            self.transmit(bytes);
        }
    }

    fn hear(&mut self, bytes: &[u8]) {
        let ports = (word(bytes, 16), word(bytes, 20));
        let op = u16::from_le_bytes([bytes[30], bytes[31]]);
        let flags = word(bytes, 32);
        let known = self.joints.iter().position(|joint| match op {
            REQUEST => joint.ports.1 == ports.1,
            _ => joint.ports == ports,
        });
        let nth = known.expect("a connection of ours");
        let joint = &mut self.joints[nth];
        joint.credit = usize::try_from(word(bytes, 40)).expect("64 bits")
            + usize::try_from(word(bytes, 36)).expect("64 bits");
        match op {
            REQUEST => {
                joint.ports = ports;
                let bytes = self.packet(nth, RESPONSE, 0, &[]);
                self.transmit(bytes);
            }
            DATA => {
                joint.to_guest.arrive(nth, &bytes[44..]);
                let held = joint.to_guest.received - joint.said;
                assert!(held <= joint.room, "{held} bytes for a room of {}", joint.room);
            }
            SHUTDOWN => self.hear_shutdown(nth, flags),
            RESPONSE | CREDIT_UPDATE => {}
            CREDIT_REQUEST => {
                let bytes = self.packet(nth, CREDIT_UPDATE, 0, &[]);
                self.transmit(bytes);
            }
            _ => panic!("an honest guest gets {op}"),
        }
    }

    fn hear_shutdown(&mut self, nth: usize, flags: u32) {
        let joint = &mut self.joints[nth];
        if flags & RECEIVES_NO_MORE != 0 {
            assert!(joint.to_host.closed, "the host still receives");
        }
        if flags & SENDS_NO_MORE != 0 {
            let flow = &mut joint.to_guest;
            assert!(flow.closed && flow.received == flow.sent, "connection {nth} ended early");
            flow.ended = true;
        }
        if flags == RECEIVES_NO_MORE | SENDS_NO_MORE {
            let bytes = self.packet(nth, RESET, 0, &[]);
            self.transmit(bytes);
        }
    }

    /// Once all read what comes, everything arrives, and everybody takes leave.
    fn finish(mut self) {
        for round in 0.. {
            assert!(round < 10_000, "it does not come to an end");
            self.receive();
            for nth in 0..self.joints.len() {
                self.host_reads(nth, 1 << 18);
                self.guest_consumes(nth, usize::MAX);
                self.host_ends(nth);
                self.guest_ends(nth);
            }
            self.rest();
            let ended = |joint: &Joint| joint.to_guest.ended && joint.to_host.ended;
            if self.joints.iter().all(ended) && self.device.connections() == 0 {
                break;
            }
        }
        for joint in &self.joints {
            assert_eq!(joint.to_guest.received, joint.to_guest.sent);
            assert_eq!(joint.to_host.received, joint.to_host.sent);
        }
    }
}

impl Joint {
    fn new(host: UnixStream, ports: (u32, u32), room: usize) -> Self {
        let [to_guest, to_host] = [Flow::default(), Flow::default()];
        Self { host, ports, to_guest, to_host, room, said: 0, credit: 0 }
    }
}
