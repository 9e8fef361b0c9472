//! All connections of a device: the sockets of the host, what of the guest they are joined to,
//! and whose turn it is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    accept_with, sendmsg, socketpair,
};

use super::Config;
use super::connection::{Connection, Heard};
use super::link::{Link, Stage};
use super::metrics::Metrics;
use super::packet::{HOST_CID, Header, Malformed, Op, Packet, Ports, Slot};
use super::watch::{Clock, Readiness, Token, Watch};

/// Resets that may wait for the guest to take them, besides those of connections that it has.
/// With more of them its packets are not looked at (section 5.10.6.1): it has to take some.
const MAX_RESETS: usize = 256;

/// Ticks that the guest has to confirm the end of a connection: two seconds.
const PATIENCE: u64 = 20;

/// Where the ports of connections begin that the host asks for. Below are those that the guest
/// may ask for.
const FIRST_PORT: u32 = 1 << 30;

const CLOCK: Token = Token(0);
const FIRST_LISTENER: u64 = 1;

/// A socket of the host that each connection to a port of the guest comes from.
#[derive(Debug)]
struct Listener {
    guest_port: u32,
    socket: OwnedFd,
    /// Somebody may be waiting there.
    ready: bool,
}

/// The connections, and what waits.
///
/// Each link is in at most one entry of `joined` and `waiting`, as its stage says, of `ready`, as
/// its turn says, and of `ending`, as its deadline says.
#[derive(Debug)]
pub(super) struct Muxer {
    guest_cid: u64,
    max_connections: usize,
    listeners: Vec<Listener>,
    /// Where the connections go that the guest asks for, by the host's port.
    services: BTreeMap<u32, OwnedFd>,

    links: BTreeMap<Token, Link>,
    joined: BTreeMap<Ports, Token>,
    waiting: BTreeSet<(u32, Token)>,
    /// Those that have a packet for the guest, by turns.
    ready: BTreeMap<u64, Token>,
    ending: BTreeSet<(u64, Token)>,
    /// Connections that the guest is to forget and that are forgotten here.
    resets: VecDeque<Ports>,

    /// There is a driver.
    up: bool,
    watch: Watch,
    clock: Clock,
    ticks: u64,
    next_token: u64,
    next_turn: u64,
    next_port: u32,
    metrics: Arc<Metrics>,
}

impl Muxer {
    pub(super) fn new(config: Config, metrics: Arc<Metrics>) -> io::Result<Self> {
        let mut muxer = Self {
            guest_cid: config.guest_cid.into(),
            max_connections: config.max_connections,
            listeners: Vec::new(),
            services: config.accept.into_iter().collect(),
            links: BTreeMap::new(),
            joined: BTreeMap::new(),
            waiting: BTreeSet::new(),
            ready: BTreeMap::new(),
            ending: BTreeSet::new(),
            resets: VecDeque::new(),
            up: false,
            watch: Watch::new()?,
            clock: Clock::new()?,
            ticks: 0,
            next_token: FIRST_LISTENER,
            next_turn: 0,
            next_port: FIRST_PORT,
            metrics,
        };
        muxer.watch.add(muxer.clock.as_fd(), CLOCK)?;
        for (guest_port, socket) in config.listen {
            muxer.listen(guest_port, socket)?;
        }
        for (guest_port, socket) in config.connect {
            muxer.insert(socket, Stage::Waiting { guest_port })?;
        }
        Ok(muxer)
    }

    fn listen(&mut self, guest_port: u32, socket: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let token = self.fresh_token();
        self.watch.add(socket.as_fd(), token)?;
        self.listeners.push(Listener { guest_port, socket, ready: false });
        Ok(())
    }

    fn fresh_token(&mut self) -> Token {
        let token = Token(self.next_token);
        self.next_token += 1;
        token
    }

    /// Readable when there is work for [`Muxer::wake`].
    pub(super) fn source(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }

    /// How many sockets of the host there are.
    pub(super) fn len(&self) -> usize {
        self.links.len()
    }

    // --- the driver -------------------------------------------------------

    /// There is a driver: whoever waits for the guest may try.
    pub(super) fn start(&mut self) {
        self.up = true;
        let waiting: Vec<Token> = self.waiting.iter().map(|&(_, token)| token).collect();
        waiting.into_iter().for_each(|token| self.request(token));
    }

    /// There is no driver any more, and nobody knows of its connections. Who only waited goes
    /// on waiting.
    pub(super) fn stop(&mut self) {
        self.up = false;
        self.resets.clear();
        self.clock.set(false);
        let all: Vec<Token> = self.links.keys().copied().collect();
        for token in all {
            let link = self.links.get_mut(&token).expect("nothing was removed but what was seen");
            match &link.stage {
                Stage::Waiting { .. } => {}
                Stage::Joined { ports, connection } if connection.is_requested() => {
                    let guest_port = ports.guest;
                    self.enter(token, Stage::Waiting { guest_port });
                    self.settle(token);
                }
                Stage::Joined { .. } | Stage::Draining => self.remove(token),
            }
        }
    }

    // --- from the host ----------------------------------------------------

    /// Takes note of what has happened on the host.
    pub(super) fn wake(&mut self) {
        for (token, readiness) in self.watch.take() {
            match token {
                CLOCK => self.tick(),
                token => self.note(token, readiness),
            }
        }
    }

    fn note(&mut self, token: Token, readiness: Readiness) {
        let nth = usize::try_from(token.0 - FIRST_LISTENER).expect("usize has 64 bits");
        if let Some(listener) = self.listeners.get_mut(nth) {
            listener.ready = true;
        } else if let Some(link) = self.links.get_mut(&token) {
            link.note(readiness);
            self.settle(token);
        }
    }

    fn tick(&mut self) {
        self.ticks += self.clock.ticks();
        while let Some(&(deadline, token)) = self.ending.first()
            && deadline <= self.ticks
        {
            self.break_off(token);
        }
        // One of each port: where it is taken the others follow.
        let mut next = 0;
        while let Some(&(guest_port, token)) = self.waiting.range((next, Token(0))..).next() {
            self.request(token);
            let Some(port) = guest_port.checked_add(1) else { break };
            next = port;
        }
    }

    /// Lets the clock run if somebody waits for it.
    pub(super) fn set_clock(&mut self) {
        self.clock.set(self.up && !(self.waiting.is_empty() && self.ending.is_empty()));
    }

    /// Takes in who stands at the listeners, as far as there is room.
    pub(super) fn admit(&mut self) {
        for nth in 0..self.listeners.len() {
            while self.listeners[nth].ready && self.links.len() < self.max_connections {
                if self.admit_one(nth).is_err() {
                    break;
                }
            }
        }
    }

    fn admit_one(&mut self, nth: usize) -> io::Result<()> {
        let Listener { guest_port, socket, ready } = &mut self.listeners[nth];
        let guest_port = *guest_port;
        match accept_with(&*socket, SocketFlags::CLOEXEC) {
            Ok(socket) => {
                let token = self.insert(socket, Stage::Waiting { guest_port })?;
                self.request(token);
            }
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(Errno::AGAIN) => *ready = false,
            // There are no descriptors to be had, for now.
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn insert(&mut self, socket: OwnedFd, stage: Stage) -> io::Result<Token> {
        let token = self.fresh_token();
        self.watch.add(socket.as_fd(), token)?;
        self.links.insert(token, Link::new(socket, Stage::Draining));
        self.metrics.opened.add(1);
        self.enter(token, stage);
        Ok(token)
    }

    /// Asks the guest to take a connection for a link.
    fn request(&mut self, token: Token) {
        let Some(link) = self.links.get(&token) else { return };
        let Stage::Waiting { guest_port } = link.stage else { return };
        if self.up && !link.is_over() {
            let ports = self.fresh_ports(guest_port);
            self.enter(token, Stage::Joined { ports, connection: Connection::requested() });
        }
        self.settle(token);
    }

    fn fresh_ports(&mut self, guest: u32) -> Ports {
        loop {
            let host = self.next_port;
            self.next_port = host.checked_add(1).unwrap_or(FIRST_PORT);
            let ports = Ports { host, guest };
            if host != u32::MAX && !self.joined.contains_key(&ports) {
                return ports;
            }
        }
    }

    /// Asks the guest again for all that wait for one of its ports.
    fn retry(&mut self, guest_port: u32) {
        let range = (guest_port, Token(0))..=(guest_port, Token(u64::MAX));
        let waiting: Vec<Token> = self.waiting.range(range).map(|&(_, token)| token).collect();
        waiting.into_iter().for_each(|token| self.request(token));
    }

    // --- from the guest ---------------------------------------------------

    /// Whether the guest has to take resets before its packets are looked at.
    pub(super) fn is_congested(&self) -> bool {
        self.resets.len() >= MAX_RESETS
    }

    /// A packet came from the guest, or something that should have been one.
    pub(super) fn receive(&mut self, packet: Result<Packet<'_>, Malformed>) {
        self.metrics.packets_from_guest.add(1);
        let header = match &packet {
            Ok(packet) => packet.header,
            Err(Malformed::Cut(header)) => *header,
            Err(Malformed::Headless) => return self.metrics.malformed.add(1),
        };
        // Nobody else is on this line, and an answer could not be addressed.
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            return self.metrics.malformed.add(1);
        }
        let ports = header.ports();
        match (self.joined.get(&ports).copied(), packet) {
            (Some(token), Ok(packet)) if header.is_stream() => self.hear(token, packet),
            (Some(token), _) => {
                self.metrics.malformed.add(1);
                self.break_off(token);
            }
            (None, _) => self.greet(ports, &header),
        }
    }

    /// A packet of a connection that there is.
    fn hear(&mut self, token: Token, packet: Packet<'_>) {
        let link = self.links.get_mut(&token).expect("what is joined is there");
        let Stage::Joined { ports, connection } = &mut link.stage else {
            unreachable!("what is joined has a connection")
        };
        let guest_port = ports.guest;
        match connection.hear(&packet.header) {
            Heard::Nothing => {}
            Heard::Accepted => {
                self.metrics.joined.add(1);
                self.retry(guest_port);
            }
            Heard::Refused => self.enter(token, Stage::Waiting { guest_port }),
            Heard::Data => {
                self.metrics.bytes_from_guest.add(packet.header.len.into());
                link.deliver(packet.data);
            }
            Heard::Shut => link.shut(),
            Heard::Ended => self.enter(token, Stage::Draining),
            Heard::Finished => return self.break_off(token),
            Heard::Broken => {
                self.metrics.malformed.add(1);
                return self.break_off(token);
            }
        }
        self.settle(token);
    }

    /// A packet of no connection that there is.
    fn greet(&mut self, ports: Ports, header: &Header) {
        match header.op() {
            Some(Op::Reset) => return,
            Some(Op::Request) if header.is_stream() => {
                if self.accept(ports, header).is_some() {
                    return;
                }
                self.metrics.refused.add(1);
                // It may be asking because it listens itself now.
                self.retry(ports.host);
            }
            _ => {}
        }
        self.reset(ports);
    }

    /// Takes a connection that the guest asks for, if somebody on the host does.
    fn accept(&mut self, ports: Ports, request: &Header) -> Option<()> {
        let service = self.services.get(&ports.host)?;
        if self.links.len() >= self.max_connections {
            return None;
        }
        let socket = hand_over(service.as_fd(), ports).ok()?;
        let connection = Connection::accepted(request);
        let token = self.insert(socket, Stage::Joined { ports, connection }).ok()?;
        self.metrics.joined.add(1);
        self.settle(token);
        Some(())
    }

    // --- to the guest -----------------------------------------------------

    /// Whether there may be packets for the guest.
    pub(super) fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Puts a packet into the slot, if there is one; how long it is. Each link gets its turn, for
    /// one packet.
    pub(super) fn fill(&mut self, slot: Slot<'_>) -> Option<u32> {
        let header = self.next_reset().or_else(|| self.next_in_turn(&slot))?;
        self.metrics.packets_to_guest.add(1);
        self.metrics.bytes_to_guest.add(header.len.into());
        Some(slot.finish(&header))
    }

    fn next_reset(&mut self) -> Option<Header> {
        let ports = self.resets.pop_front()?;
        self.metrics.resets.add(1);
        Some(Header::to_guest(self.guest_cid, ports, Op::Reset))
    }

    fn next_in_turn(&mut self, slot: &Slot<'_>) -> Option<Header> {
        while let Some((_, token)) = self.ready.pop_first() {
            let link = self.links.get_mut(&token).expect("what is ready is there");
            link.turn = None;
            let header = link.next_packet(self.guest_cid, slot);
            self.settle(token);
            if header.is_some() {
                return header;
            }
        }
        None
    }

    // --- the entries of a link --------------------------------------------

    /// Ends a connection on both sides: the guest is reset, the host gets what was sent.
    fn break_off(&mut self, token: Token) {
        if let Some(Link { stage: Stage::Joined { ports, .. }, .. }) = self.links.get(&token) {
            let ports = *ports;
            self.reset(ports);
            self.enter(token, Stage::Draining);
            self.settle(token);
        }
    }

    fn reset(&mut self, ports: Ports) {
        self.resets.push_back(ports);
    }

    /// Puts a link into another stage.
    fn enter(&mut self, token: Token, stage: Stage) {
        self.leave(token);
        match &stage {
            Stage::Waiting { guest_port } => drop(self.waiting.insert((*guest_port, token))),
            Stage::Joined { ports, .. } => drop(self.joined.insert(*ports, token)),
            Stage::Draining => {}
        }
        let link = self.links.get_mut(&token).expect("only what is there changes");
        link.stage = stage;
    }

    /// Takes the entries away that a link's stage has.
    fn leave(&mut self, token: Token) {
        let link = self.links.get_mut(&token).expect("only what is there changes");
        match &link.stage {
            Stage::Waiting { guest_port } => drop(self.waiting.remove(&(*guest_port, token))),
            Stage::Joined { ports, .. } => drop(self.joined.remove(ports)),
            Stage::Draining => {}
        }
        if let Some(deadline) = link.deadline.take() {
            self.ending.remove(&(deadline, token));
        }
    }

    /// Gives a link the entries that it should have, or removes it, after anything has changed.
    fn settle(&mut self, token: Token) {
        let Some(link) = self.links.get_mut(&token) else { return };
        if link.is_over() {
            return self.remove(token);
        }
        link.watch(&self.watch, token);
        let closing = link.connection().is_some_and(|connection| connection.is_closing());
        if closing && link.deadline.is_none() {
            let deadline = self.ticks + PATIENCE;
            link.deadline = Some(deadline);
            self.ending.insert((deadline, token));
        }
        match (link.has_packet(), link.turn) {
            (true, None) => {
                link.turn = Some(self.next_turn);
                self.ready.insert(self.next_turn, token);
                self.next_turn += 1;
            }
            (false, Some(turn)) => {
                link.turn = None;
                self.ready.remove(&turn);
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    fn remove(&mut self, token: Token) {
        self.leave(token);
        let Some(link) = self.links.remove(&token) else { return };
        if let Some(turn) = link.turn {
            self.ready.remove(&turn);
        }
        link.unwatch(&self.watch);
        self.metrics.closed.add(1);
    }
}

/// Gives one end of a new pair of sockets to a service, which hears of the ports too.
fn hand_over(service: BorrowedFd<'_>, ports: Ports) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let message = [ports.host.to_le_bytes(), ports.guest.to_le_bytes()].concat();
    let rights = [theirs.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&rights)), "there is space for one");
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(service, &[IoSlice::new(&message)], &mut ancillary, flags)?;
    Ok(ours)
}
