//! A guest that does as a test says.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT as _;
use vm_memory::GuestAddress;

use crate::GuestMemory;
use crate::virtio::Device as _;
use crate::virtio::driver::{DATA, Driver, readable, writable};
use crate::virtio::vsock::device::{RECEIVE, TRANSMIT};
use crate::virtio::vsock::packet::{HEADER, HOST_CID, Header, Op, Ports};
use crate::virtio::vsock::{Config, Vsock};

/// Bytes of a receive buffer, as Linux has them.
const RECEIVE_BUFFER: u32 = 4096;
const MEMORY: usize = 64 << 20;
/// Bytes of a place for a packet, more than the largest has.
const PLACE: u64 = 0x1_1000;
const RECEIVE_PLACES: u64 = 256;
const TRANSMIT_PLACES: u64 = 300;

/// A packet with its data.
pub(super) type Sent = (Header, Vec<u8>);

/// The guest's address in all tests.
pub(super) const CID: u32 = 3;

/// What a guest says that it has room for, if the test does not care.
pub(super) const ROOM: u32 = 1 << 20;

/// The flags of a shutdown.
pub(super) const RECEIVES_NO_MORE: u32 = 1;
pub(super) const SENDS_NO_MORE: u32 = 2;

/// A driver with its device, on one thread.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) device: Vsock,
    pub(super) driver: Driver,
    /// Where the receive buffers that the device has are, by their entries.
    offered: HashMap<u16, u64>,
    /// Where more of them can be.
    free: Vec<u64>,
    /// How many chains were transmitted.
    transmitted: u64,
}

impl Guest {
    /// One whose driver is up and has given as many buffers as it can.
    pub(super) fn new(config: Config) -> Self {
        let mut guest = Self::without_buffers(config);
        guest.offer_all();
        guest
    }

    /// One whose driver is up and has given no buffers.
    pub(super) fn without_buffers(config: Config) -> Self {
        Self::over(Vsock::new(config).unwrap(), 0)
    }

    /// One that has agreed on event indices and has given no buffers.
    pub(super) fn with_events(config: Config) -> Self {
        Self::over(Vsock::new(config).unwrap(), 1 << VIRTIO_RING_F_EVENT_IDX)
    }

    fn over(mut device: Vsock, features: u64) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let mut driver = Driver::with(&device, memory, features);
        device.activated(&mut driver.active).unwrap();
        let free = (0..RECEIVE_PLACES).map(|nth| DATA + nth * PLACE).collect();
        Self { device, driver, offered: HashMap::new(), free, transmitted: 0 }
    }

    /// Its driver begins again.
    pub(super) fn restart(mut self) -> Self {
        self.device.reset();
        let mut guest = Self::over(self.device, 0);
        guest.offer_all();
        guest
    }

    /// How many more receive buffers it can give.
    pub(super) fn room(&self) -> usize {
        self.free.len()
    }

    /// Gives a receive buffer of so many bytes, without saying so.
    pub(super) fn offer_one(&mut self, length: u32) {
        let place = self.free.pop().expect("the ring has room");
        let entry = self.driver.offer(RECEIVE, &[writable(place, length)]);
        self.offered.insert(entry, place);
    }

    /// Gives so many receive buffers.
    pub(super) fn offer(&mut self, count: usize) {
        (0..count).for_each(|_| self.offer_one(RECEIVE_BUFFER));
        self.kick(RECEIVE);
    }

    pub(super) fn offer_all(&mut self) {
        self.offer(self.room());
    }

    pub(super) fn kick(&mut self, queue: usize) {
        self.driver.kick(&mut self.device, queue);
    }

    /// Makes some bytes available to the device, in pieces of so many, without saying so.
    pub(super) fn transmit(&mut self, bytes: &[u8], piece: usize) {
        // None of them waits for longer than it takes to fill the ring.
        let nth = RECEIVE_PLACES + self.transmitted % TRANSMIT_PLACES;
        self.transmitted += 1;
        let place = DATA + nth * PLACE;
        self.driver.write(place, bytes);
        let pieces: Vec<_> = bytes
            .chunks(piece)
            .enumerate()
            .map(|(nth, bytes)| {
                let at = place + u64::try_from(nth * piece).unwrap();
                readable(at, u32::try_from(bytes.len()).unwrap())
            })
            .collect();
        self.driver.offer(TRANSMIT, &pieces);
    }

    /// Writes a descriptor of a queue's table.
    pub(super) fn describe(
        &self,
        queue: usize,
        index: u16,
        (address, length): (u64, u32),
        (flags, next): (u32, u16),
    ) {
        let flags = u16::try_from(flags).unwrap();
        let table = self.driver.active.queues[queue].desc_table();
        let descriptor = [&address.to_le_bytes()[..], &length.to_le_bytes()].concat();
        let links = [flags.to_le_bytes(), next.to_le_bytes()].concat();
        self.driver.write(table + 16 * u64::from(index), &[descriptor, links].concat());
    }

    /// The index of the chain from which on the device wants to be told.
    pub(super) fn wanted(&self, queue: usize) -> u16 {
        let queue = &self.driver.active.queues[queue];
        let event = queue.used_ring() + 4 + 8 * u64::from(queue.size());
        u16::from_le_bytes(self.driver.read(event, 2).try_into().unwrap())
    }

    /// Sends packets at once.
    pub(super) fn send_all(&mut self, packets: &[Sent]) {
        for (header, data) in packets {
            let bytes = [&header.to_bytes()[..], data].concat();
            self.transmit(&bytes, bytes.len());
        }
        self.kick(TRANSMIT);
    }

    /// Sends a packet without data.
    pub(super) fn say(&mut self, ports: Ports, op: Op) {
        self.send_all(&[packet(ports, op)]);
    }

    /// Sends a shutdown.
    pub(super) fn shut(&mut self, ports: Ports, flags: u32) {
        let (header, data) = packet(ports, Op::Shutdown);
        self.send_all(&[(Header { flags, ..header }, data)]);
    }

    /// Sends data.
    pub(super) fn send(&mut self, ports: Ports, data: &[u8]) {
        self.send_all(&[data_packet(ports, data)]);
    }

    /// Lets the device do what it has to, if there is anything; whether there was.
    pub(super) fn wake(&mut self) -> bool {
        let mut woken = false;
        for queue in [RECEIVE, TRANSMIT] {
            if self.driver.active.kicks[queue].lower() {
                self.kick(queue);
                woken = true;
            }
        }
        if is_readable(self.device.source().unwrap(), Duration::ZERO) {
            self.device.source_ready(&mut self.driver.active).unwrap();
            woken = true;
        }
        woken
    }

    /// Waits until the device has something to do, and lets it.
    pub(super) fn wait(&mut self) {
        let source = self.device.source().unwrap();
        assert!(is_readable(source, Duration::from_secs(5)), "nothing happens");
        self.wake();
    }

    /// Takes the packets that came, and leaves it at that.
    pub(super) fn take(&mut self) -> Vec<Sent> {
        let used = self.driver.used(RECEIVE);
        used.into_iter().map(|(entry, written)| self.read(entry, written)).collect()
    }

    fn read(&mut self, entry: u32, written: u32) -> Sent {
        let entry = u16::try_from(entry).unwrap();
        let place = self.offered.remove(&entry).expect("a buffer that was offered");
        self.free.push(place);
        let bytes = self.driver.read(place, usize::try_from(written).unwrap());
        let (header, data) = bytes.split_first_chunk::<HEADER>().expect("a whole header");
        let header = Header::from_bytes(header);
        assert_eq!(data.len(), usize::try_from(header.len).unwrap());
        (header, data.to_vec())
    }

    /// Takes the packets that came, and gives the buffers again.
    pub(super) fn receive(&mut self) -> Vec<Sent> {
        while self.wake() {}
        let packets = self.take();
        self.offer_all();
        packets
    }

    /// Takes all the packets that come without anything else being done.
    pub(super) fn receive_all(&mut self) -> Vec<Sent> {
        let mut all = Vec::new();
        loop {
            let packets = self.receive();
            if packets.is_empty() {
                return all;
            }
            all.extend(packets);
        }
    }

    /// Takes the one packet that came.
    pub(super) fn receive_one(&mut self) -> Sent {
        let mut packets = self.receive();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.remove(0)
    }

    /// What the packets that came are about.
    pub(super) fn ops(&mut self) -> Vec<Op> {
        self.receive().iter().map(|(header, _)| header.op().unwrap()).collect()
    }

    /// Takes the request that came and agrees to it.
    pub(super) fn accept(&mut self) -> Ports {
        let (header, _) = self.receive_one();
        assert_eq!(header.op(), Some(Op::Request));
        let ports = Ports { host: header.src_port, guest: header.dst_port };
        self.say(ports, Op::Response);
        ports
    }

    /// Asks for a connection and takes the answer.
    pub(super) fn connect(&mut self, host: u32, guest: u32) -> Option<Ports> {
        let ports = Ports { host, guest };
        self.say(ports, Op::Request);
        let (header, _) = self.receive_one();
        assert_eq!((header.src_port, header.dst_port), (host, guest));
        (header.op() == Some(Op::Response)).then_some(ports)
    }
}

/// A packet of a guest that has room, without data.
pub(super) fn packet(ports: Ports, op: Op) -> Sent {
    let header = Header {
        src_cid: CID.into(),
        dst_cid: HOST_CID,
        src_port: ports.guest,
        dst_port: ports.host,
        buf_alloc: ROOM,
        ..Header::to_guest(0, ports, op)
    };
    (header, Vec::new())
}

/// A packet of a guest that has room, with data.
pub(super) fn data_packet(ports: Ports, data: &[u8]) -> Sent {
    let (header, _) = packet(ports, Op::Data);
    (Header { len: u32::try_from(data.len()).unwrap(), ..header }, data.to_vec())
}

pub(super) fn is_readable(fd: impl AsFd, patience: Duration) -> bool {
    let patience = Timespec::try_from(patience).unwrap();
    let mut polled = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut polled, Some(&patience)).unwrap() > 0
}

/// A configuration with one connected socket for a port of the guest, and its other end.
pub(super) fn connected(guest_port: u32) -> (Config, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let connect = vec![(guest_port, OwnedFd::from(theirs))];
    (Config { connect, ..Config::new(CID) }, ours)
}

/// A configuration with a socket that listens for a port of the guest, and its address.
pub(super) fn listening(guest_port: u32) -> (Config, SocketAddr) {
    let listener = abstract_listener();
    let address = listener.local_addr().unwrap();
    let listen = vec![(guest_port, OwnedFd::from(listener))];
    (Config { listen, ..Config::new(CID) }, address)
}

/// A listener without a file: the kernel chooses a name (unix(7), "Autobind feature").
fn abstract_listener() -> UnixListener {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
    let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddrUnix::new_unnamed()).unwrap();
    listen(&socket, 4096).unwrap();
    socket.into()
}

/// A configuration with a service at a port of the host, and what the service has.
pub(super) fn serving(host_port: u32) -> (Config, Service) {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair.unwrap();
    let accept = vec![(host_port, theirs)];
    (Config { accept, ..Config::new(CID) }, Service(ours))
}

/// A service on the host.
#[derive(Debug)]
pub(super) struct Service(OwnedFd);

impl Service {
    /// Takes a connection, with the ports that it was told.
    pub(super) fn take(&self) -> Option<(Ports, UnixStream)> {
        use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
        let mut message = [0; 64];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut vectors = [std::io::IoSliceMut::new(&mut message)];
        let received = recvmsg(&self.0, &mut vectors, &mut ancillary, RecvFlags::DONTWAIT).ok()?;
        let mut rights = ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => rights.collect(),
            _ => Vec::new(),
        });
        let socket = UnixStream::from(rights.next()?);
        let port = |at: usize| u32::from_le_bytes(message[at..at + 4].try_into().unwrap());
        assert_eq!(received.bytes, 8);
        Some((Ports { host: port(0), guest: port(4) }, socket))
    }
}
