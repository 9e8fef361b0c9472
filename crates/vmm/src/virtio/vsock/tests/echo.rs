//! The device on its worker's thread, confined, behind its registers, with a guest that sends back
//! what it gets and hosts that do not wait for each other.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT as _;
use vm_memory::GuestAddress;

use super::guest::{CID, SENDS_NO_MORE, connected, is_readable, listening, packet, serving};
use crate::GuestMemory;
use crate::event::Event;
use crate::virtio::confined::confine;
use crate::virtio::driver::{DATA, Driver, readable, writable};
use crate::virtio::vsock::device::{RECEIVE, TRANSMIT};
use crate::virtio::vsock::packet::{HEADER, Header, Op, Ports};
use crate::virtio::vsock::{Config, SYSTEM_CALLS, Vsock};
use crate::virtio::{Device as _, Transport, Worker};

const PORT: u32 = 7;
const ENTRIES: u64 = 256;
const RECEIVE_BUFFER: u64 = 4096;
/// Bytes that the guest holds of a connection.
const ROOM: u32 = 64 << 10;
/// The most data of a packet of the guest.
const PIECE: usize = 16 << 10;
const TRANSMIT_PLACE: u64 = 0x8000;

/// One connection in the guest.
#[derive(Default)]
struct Echo {
    held: VecDeque<u8>,
    /// The host's end, if it has sent all.
    ended: bool,
    /// Our end.
    closed: bool,
    sent: u32,
    taken: u32,
    told: u32,
    host_room: u32,
    host_taken: u32,
}

impl Echo {
    fn room(&self) -> usize {
        let under_way = self.sent.wrapping_sub(self.host_taken);
        usize::try_from(self.host_room - under_way).expect("the host never takes room back")
    }

    fn header(&mut self, ports: Ports, op: Op) -> Header {
        self.told = self.taken;
        Header { buf_alloc: ROOM, fwd_cnt: self.taken, ..packet(ports, op).0 }
    }
}

/// The guest, with its driver.
struct Machine {
    transport: Transport,
    driver: Driver,
    offered: HashMap<u32, u64>,
    places: Vec<u64>,
    transmitted: u64,
    under_way: usize,
    echoes: BTreeMap<Ports, Echo>,
    /// How many requests it refuses before it takes one.
    refuses: usize,
    // Dropped last: it waits for the worker.
    _worker: Worker,
}

impl Machine {
    fn new(config: Config) -> Self {
        let device = Vsock::new(config).unwrap();
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap();
        let features = device.identity().features | 1 << VIRTIO_RING_F_EVENT_IDX;
        let driver = Driver::with(&device, memory.clone(), features);
        let (irq, enter) = (Event::new().unwrap(), confine(SYSTEM_CALLS));
        let (mut transport, worker) =
            Transport::new("vsock", Box::new(device), memory, irq, enter).unwrap();
        driver.start(&mut transport);
        let mut machine = Self {
            transport,
            driver,
            offered: HashMap::new(),
            places: (0..ENTRIES).map(|nth| DATA + nth * RECEIVE_BUFFER).collect(),
            transmitted: 0,
            under_way: 0,
            echoes: BTreeMap::new(),
            refuses: 0,
            _worker: worker,
        };
        machine.offer();
        machine
    }

    fn offer(&mut self) {
        while let Some(place) = self.places.pop() {
            let length = u32::try_from(RECEIVE_BUFFER).unwrap();
            let entry = self.driver.offer(RECEIVE, &[writable(place, length)]);
            self.offered.insert(entry.into(), place);
        }
        self.transport.kicks()[RECEIVE].raise();
    }

    fn send(&mut self, header: &Header, data: &[u8]) {
        let nth = self.transmitted % ENTRIES;
        let place = DATA + ENTRIES * RECEIVE_BUFFER + nth * TRANSMIT_PLACE;
        self.driver.write(place, &header.to_bytes());
        let header_length = u32::try_from(HEADER).unwrap();
        let header = readable(place, header_length);
        let at = place + u64::from(header_length);
        self.driver.write(at, data);
        let data = readable(at, u32::try_from(data.len()).unwrap());
        // As Linux does it: a descriptor for each, where there is data.
        let pieces = [header, data];
        self.driver.offer(TRANSMIT, &pieces);
        self.transmitted += 1;
        self.under_way += 1;
    }

    /// Does what can be done, and waits for more.
    fn go_on(&mut self) {
        self.under_way -= self.driver.used(TRANSMIT).len();
        for (entry, written) in self.driver.used(RECEIVE) {
            let place = self.offered.remove(&entry).unwrap();
            let bytes = self.driver.read(place, usize::try_from(written).unwrap());
            let (header, data) = bytes.split_first_chunk().unwrap();
            self.hear(&Header::from_bytes(header), data);
            self.places.push(place);
        }
        self.echo();
        self.offer();
        self.transport.kicks()[TRANSMIT].raise();
        for queue in [RECEIVE, TRANSMIT] {
            let used = self.driver.active.queues[queue].used_ring() + 2;
            let index = u16::from_le_bytes(self.driver.read(used, 2).try_into().unwrap());
            self.driver.interrupt_after(queue, index.wrapping_add(1).max(1));
        }
        // Whether or not it was in time to ask for it.
        is_readable(self.transport.irq(), Duration::from_millis(5));
        self.transport.irq().lower();
    }

    /// Asks for a connection.
    fn connect(&mut self, ports: Ports) {
        let mut echo = Echo::default();
        let header = echo.header(ports, Op::Request);
        self.echoes.insert(ports, echo);
        self.send(&header, &[]);
    }

    /// Goes on until all have what they wanted, and nobody is there.
    fn serve(&mut self, hosts: Vec<JoinHandle<()>>) {
        while !hosts.iter().all(JoinHandle::is_finished) || !self.echoes.is_empty() {
            self.go_on();
        }
        hosts.into_iter().for_each(|host| host.join().unwrap());
        assert_eq!(self.transport.failure(), None);
    }

    fn hear(&mut self, header: &Header, data: &[u8]) {
        let ports = Ports { host: header.src_port, guest: header.dst_port };
        let op = header.op().unwrap();
        if op == Op::Request && self.refuses > 0 {
            self.refuses -= 1;
            return self.send(&packet(ports, Op::Reset).0, &[]);
        }
        if op == Op::Request {
            self.echoes.insert(ports, Echo::default());
        }
        let Some(echo) = self.echoes.get_mut(&ports) else { panic!("{header:?}") };
        echo.host_room = header.buf_alloc;
        echo.host_taken = header.fwd_cnt;
        echo.held.extend(data);
        assert!(echo.held.len() <= usize::try_from(ROOM).unwrap(), "more than there is room for");
        match op {
            Op::Request => {
                let header = echo.header(ports, Op::Response);
                self.send(&header, &[]);
            }
            Op::Shutdown if header.flags == 3 => {
                let header = echo.header(ports, Op::Reset);
                self.send(&header, &[]);
                self.echoes.remove(&ports);
            }
            Op::Shutdown => {
                assert_eq!(header.flags, SENDS_NO_MORE);
                echo.ended = true;
            }
            Op::Response | Op::Data | Op::CreditUpdate | Op::CreditRequest => {}
            Op::Reset => panic!("{header:?}"),
        }
    }

    /// Sends back what there is, as long as there is room.
    fn echo(&mut self) {
        let all: Vec<Ports> = self.echoes.keys().copied().collect();
        for ports in all {
            // Each packet is two descriptors.
            while self.under_way < 100 && self.echo_some(ports) {}
        }
    }

    fn echo_some(&mut self, ports: Ports) -> bool {
        let echo = self.echoes.get_mut(&ports).unwrap();
        let count = echo.held.len().min(echo.room()).min(PIECE);
        if count > 0 {
            let data: Vec<u8> = echo.held.drain(..count).collect();
            let length = u32::try_from(count).unwrap();
            echo.sent = echo.sent.wrapping_add(length);
            echo.taken = echo.taken.wrapping_add(length);
            let header = Header { len: length, ..echo.header(ports, Op::Data) };
            self.send(&header, &data);
            return true;
        }
        if echo.ended && echo.held.is_empty() && !echo.closed {
            echo.closed = true;
            let header = Header { flags: SENDS_NO_MORE, ..echo.header(ports, Op::Shutdown) };
            self.send(&header, &[]);
        }
        false
    }
}

/// Bytes that look like no others.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed * 2 + 1;
    let words = (0..length.div_ceil(8)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(length).collect()
}

/// A host that sends, reads until the end, and compares.
fn exchange(mut socket: UnixStream, seed: u64, length: usize) -> JoinHandle<()> {
    spawn(move || {
        let sent = noise(seed, length);
        let writer = spawn({
            let (mut socket, sent) = (socket.try_clone().unwrap(), sent.clone());
            move || {
                socket.write_all(&sent).unwrap();
                socket.shutdown(Shutdown::Write).unwrap();
            }
        });
        let mut received = Vec::new();
        socket.read_to_end(&mut received).unwrap();
        writer.join().unwrap();
        assert!(received == sent, "{} of {length} bytes came back", received.len());
    })
}

#[test]
fn everything_comes_back() {
    let (config, address) = listening(PORT);
    let mut machine = Machine::new(config);
    let lengths = [0, 1, 5_000_000, 1_000_000, 100, 3_000_000];
    let hosts = lengths.into_iter().zip(1..).map(|(length, seed)| {
        let socket = UnixStream::connect_addr(&address).unwrap();
        exchange(socket, seed, length)
    });
    let hosts = hosts.collect();
    machine.serve(hosts);
}

#[test]
fn connections_may_come_in_every_way_at_once() {
    let ((one, host), (many, address), (served, service)) =
        (connected(PORT), listening(PORT), serving(80));
    let mut machine = Machine::new(Config { connect: one.connect, accept: served.accept, ..many });
    machine.refuses = 2;
    machine.connect(Ports { host: 80, guest: 1 });
    let mut hosts = vec![
        exchange(host, 1, 100_000),
        exchange(UnixStream::connect_addr(&address).unwrap(), 2, 1_000_000),
    ];
    let (_, socket) = loop {
        match service.take() {
            Some(taken) => break taken,
            None => machine.go_on(),
        }
    };
    hosts.push(exchange(socket, 3, 300_000));
    machine.serve(hosts);
}

#[test]
fn the_driver_reads_its_address() {
    let machine = Machine::new(Config::new(CID));
    let mut bytes = [0; 8];
    machine.transport.read(u64::from(VIRTIO_MMIO_CONFIG), &mut bytes);
    assert_eq!(u64::from_le_bytes(bytes), u64::from(CID));
}
