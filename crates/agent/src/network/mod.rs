//! The sandbox's way out: everything that tasks send to the network comes to the agent, and goes
//! to the host as streams of the wire.
//!
//! An interface that leads nowhere gives the kernel routes ([`interface`]), rules of nf_tables lead
//! every TCP connection and every question for a name to the agent's own sockets ([`rules`]), a
//! [`Relay`] carries each connection and [`Names`] the questions. The agent decides nothing: the
//! host does, with what it is told of the destination.

mod interface;
mod names;
mod netlink;
mod relay;
mod rules;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event as Wakeup, EventData, EventFlags};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, accept_with, bind, listen, socket_with, sockopt,
};
use wire::connection::{Connection, Event, MAX_STREAMS, WINDOW, cancelled};
use wire::frame::StreamId;
use wire::op::{AgentOpen, ErrorCode, OpError};
use zeroize::Zeroizing;

use names::Names;
pub(crate) use netlink::netfilter;
use relay::{Fate, Relay};

/// Connections that wait to be taken. Beyond it the kernel lets the next ones ask again.
const BACKLOG: i32 = 1024;
/// Streams that are left to standard errors of processes.
const RESERVED_STREAMS: usize = 64;
/// Sockets of one kind: one for each version of IP.
const FAMILIES: u64 = 2;
/// Events of the listeners come first, then those of the sockets for names, then the relays'.
const FIRST_RELAY: u64 = 2 * FAMILIES;

/// The server's end of it.
pub(crate) struct Network {
    epoll: OwnedFd,
    listeners: Vec<OwnedFd>,
    /// Not while there are as many relays as there may be.
    listening: bool,
    names: Names,
    relays: BTreeMap<u64, Relay>,
    by_stream: BTreeMap<StreamId, u64>,
    next: u64,
    most: usize,
}

impl AsFd for Network {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Network {
    /// Brings it up, by a socket to the kernel's nf_tables. `memory` is what its windows may take,
    /// in bytes.
    ///
    /// # Errors
    /// With the step that failed. What was done by then does no harm and leads nowhere.
    pub(crate) fn bring_up(netfilter: io::Result<OwnedFd>, memory: u64) -> Result<Self, OpError> {
        shorten_memory_of_the_past();
        let network =
            listen_all().and_then(|(listeners, names)| Self::new(listeners, names, memory));
        let network = network.map_err(|error| failed("listen for tasks' connections", &error))?;
        netfilter.and_then(rules::enforce).map_err(|error| {
            failed("set the rules of nf_tables (the kernel needs it with nat and redir)", &error)
        })?;
        interface::bring_up().map_err(|error| {
            failed("make the network interface (the kernel needs dummy or veth)", &error)
        })?;
        Ok(network)
    }

    fn new(listeners: Vec<OwnedFd>, names: Vec<OwnedFd>, memory: u64) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        for (number, socket) in (FAMILIES..).zip(&names) {
            epoll::add(&epoll, socket, EventData::new_u64(number), EventFlags::IN)?;
        }
        let windows = usize::try_from(memory).unwrap_or(usize::MAX) / (2 * WINDOW);
        let mut network = Self {
            epoll,
            listeners,
            listening: false,
            names: Names::new(names),
            relays: BTreeMap::new(),
            by_stream: BTreeMap::new(),
            next: FIRST_RELAY,
            most: windows.clamp(8, MAX_STREAMS - RESERVED_STREAMS),
        };
        network.listen(true)?;
        Ok(network)
    }

    fn listen(&mut self, wanted: bool) -> io::Result<()> {
        if self.listening == wanted {
            return Ok(());
        }
        for (number, listener) in (0..).zip(&self.listeners) {
            match wanted {
                true => {
                    epoll::add(&self.epoll, listener, EventData::new_u64(number), EventFlags::IN)?;
                }
                false => epoll::delete(&self.epoll, listener)?,
            }
        }
        self.listening = wanted;
        Ok(())
    }

    /// Moves what can be moved. Without a connection there is no host, and everything is refused.
    pub(crate) fn work(&mut self, mut connection: Option<&mut Connection>) {
        let mut events: Vec<Wakeup> = Vec::with_capacity(64);
        let now = Timespec::default();
        let spare = rustix::buffer::spare_capacity(&mut events);
        if epoll::wait(&self.epoll, spare, Some(&now)).is_err() {
            return;
        }
        for event in events {
            let (number, flags) = (event.data.u64(), event.flags);
            let connection = connection.as_deref_mut();
            let index = usize::try_from(number % FAMILIES).expect("a small number");
            match number {
                0..FAMILIES => self.accept(index, connection),
                FAMILIES..FIRST_RELAY => self.ask(index, connection),
                relay => {
                    if let Some(connection) = connection {
                        self.with(relay, |relay| relay.woken(flags, connection));
                    }
                }
            }
        }
    }

    fn accept(&mut self, index: usize, mut connection: Option<&mut Connection>) {
        while self.relays.len() < self.most {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = match accept_with(&self.listeners[index], flags) {
                Ok(socket) => socket,
                Err(error) => {
                    use rustix::io::Errno;
                    // Where the system has no more to give, the next end of a relay helps.
                    if matches!(error, Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
                        && !self.relays.is_empty()
                    {
                        let _ = self.listen(false);
                    }
                    return;
                }
            };
            let open = |connection: &mut Connection, to: SocketAddr| {
                open(connection, &AgentOpen::Connect { address: to.ip(), port: to.port() })
            };
            let opened = relay::destination(&socket, self.is_v6(index))
                .ok()
                .and_then(|to| connection.as_deref_mut().and_then(|it| open(it, to)));
            match opened {
                Some(stream) => self.add(Relay::new(socket, stream)),
                None => relay::cut(&socket),
            }
        }
        let _ = self.listen(false);
    }

    /// The first of each kind is IPv4's.
    fn is_v6(&self, index: usize) -> bool {
        index == 1
    }

    fn add(&mut self, relay: Relay) {
        // A chunk of a response is not to wait for the one before.
        let _ = sockopt::set_tcp_nodelay(&relay, true);
        let key = self.next;
        self.next += 1;
        self.by_stream.insert(relay.stream(), key);
        self.relays.insert(key, relay);
        self.with(key, |_| Fate::Lives);
    }

    /// Lets a relay act, and does what follows.
    fn with(&mut self, key: u64, act: impl FnOnce(&mut Relay) -> Fate) {
        let Some(relay) = self.relays.get_mut(&key) else { return };
        let fate = act(relay);
        let wanted = relay.wanted().filter(|_| fate == Fate::Lives);
        if wanted != relay.watched {
            let data = EventData::new_u64(key);
            let changed = match (relay.watched, wanted) {
                (None, Some(flags)) => epoll::add(&self.epoll, &*relay, data, flags),
                (Some(_), Some(flags)) => epoll::modify(&self.epoll, &*relay, data, flags),
                (_, None) => epoll::delete(&self.epoll, &*relay),
            };
            relay.watched = wanted;
            if changed.is_err() {
                // Nothing would wake it again.
                relay.cut();
            }
        }
        if fate == Fate::Over
            && let Some(relay) = self.relays.remove(&key)
        {
            self.by_stream.remove(&relay.stream());
            drop(relay);
            // A failure leaves tasks waiting, and the next end tries again.
            let _ = self.listen(true);
        }
    }

    fn ask(&mut self, index: usize, connection: Option<&mut Connection>) {
        let Some(connection) = connection else { return self.names.ignore(index) };
        if self.names.stream.is_none() {
            self.names.stream = open(connection, &AgentOpen::Dns {});
        }
        match self.names.stream {
            Some(_) => self.names.ask(index, connection),
            None => self.names.ignore(index),
        }
    }

    /// Takes an event that is about one of its streams, and gives back any other.
    pub(crate) fn take(&mut self, event: Event, connection: &mut Connection) -> Option<Event> {
        let Some(id) = event.stream() else { return Some(event) };
        if self.names.stream == Some(id) {
            match event {
                Event::Data(_, bytes) => {
                    self.names.data(&bytes);
                    connection.consumed(id, bytes.len());
                }
                Event::Closed(..) => {
                    connection.reset(id, &cancelled());
                    self.names.forget();
                }
                Event::Reset(..) => self.names.forget(),
                _ => {}
            }
            return None;
        }
        let Some(&key) = self.by_stream.get(&id) else { return Some(event) };
        self.with(key, |relay| match event {
            Event::Data(_, bytes) => relay.data(bytes, connection),
            Event::Closed(..) => relay.closed(connection),
            Event::Reset(..) => relay.reset(connection),
            _ => relay.writable(connection),
        });
        None
    }

    /// The host is gone, and every connection with it.
    pub(crate) fn lose_host(&mut self) {
        self.names.forget();
        self.by_stream.clear();
        for (_, mut relay) in std::mem::take(&mut self.relays) {
            relay.cut();
        }
        let _ = self.listen(true);
    }
}

fn open(connection: &mut Connection, what: &AgentOpen) -> Option<StreamId> {
    let payload = serde_json::to_vec(what).expect("plain JSON");
    connection.open(Zeroizing::new(payload)).ok()
}

fn failed(action: &str, error: &io::Error) -> OpError {
    OpError::new(ErrorCode::Failed, format!("could not {action}: {error}"))
}

/// The listeners and the sockets for names, IPv4's first.
fn listen_all() -> io::Result<(Vec<OwnedFd>, Vec<OwnedFd>)> {
    let mut addresses: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into()];
    if interface::has_ipv6() {
        addresses.push(Ipv6Addr::LOCALHOST.into());
    }
    let (mut listeners, mut names) = (Vec::new(), Vec::new());
    for address in addresses {
        let listener = socket(address, SocketType::STREAM)?;
        listen(&listener, BACKLOG)?;
        listeners.push(listener);
        names.push(socket(address, SocketType::DGRAM)?);
    }
    Ok((listeners, names))
}

fn socket(address: IpAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    bind(&socket, &SocketAddr::new(address, rules::PORT))?;
    Ok(socket)
}

/// How long the kernel remembers a connection that is over. Its table is bounded, and the defaults,
/// two minutes and half of one, are for peers that are far away.
fn shorten_memory_of_the_past() {
    const SETTINGS: [(&str, &str); 5] = [
        ("tcp_timeout_time_wait", "1"),
        ("tcp_timeout_close", "1"),
        ("tcp_timeout_last_ack", "5"),
        ("udp_timeout", "5"),
        ("udp_timeout_stream", "10"),
    ];
    for (setting, seconds) in SETTINGS {
        // With the defaults all works, and fewer connections a second.
        let _ = std::fs::write(format!("/proc/sys/net/netfilter/nf_conntrack_{setting}"), seconds);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpStream, UdpSocket};
    use std::process::Command;

    use wire::connection::Side;

    use super::*;

    /// Names this test's own process, which has a network namespace to itself.
    const ALONE: &str = "SANDFORGE_TEST_ALONE";

    fn may_be_alone() -> bool {
        let mut trial = Command::new("unshare");
        trial.args(["--user", "--map-root-user", "--net", "true"]);
        trial.status().is_ok_and(|status| status.success())
    }

    #[test]
    fn what_is_sent_comes_to_the_agent() {
        if std::env::var_os(ALONE).is_none() {
            let name = "network::tests::what_is_sent_comes_to_the_agent";
            let test = std::env::current_exe().unwrap();
            let status = Command::new("unshare")
                .args(["--user", "--map-root-user", "--net"])
                .arg(test)
                .args([name, "--exact", "--nocapture"])
                .env(ALONE, "1")
                .status();
            // Without the tool, or the right to use it, the guests' tests are what there is.
            return match status {
                Ok(status) if may_be_alone() => assert!(status.success(), "{status}"),
                _ => {}
            };
        }
        crate::task::prepare_network().unwrap();
        let mut network = Network::bring_up(netfilter(), 64 << 20).unwrap();
        let mut agent = Connection::new(Side::Agent, b"{}".to_vec());
        let mut host = Connection::new(Side::Host, b"{}".to_vec());
        let mut exchange = |network: &mut Network, agent: &mut Connection| {
            network.work(Some(agent));
            let mut out = Zeroizing::default();
            agent.transmit(&mut out, usize::MAX);
            host.receive(&out).unwrap();
            std::iter::from_fn(|| host.poll_event()).collect::<Vec<_>>()
        };
        let opened = |events: &[Event]| {
            events.iter().find_map(|event| match event {
                Event::Opened(_, what) => serde_json::from_slice::<AgentOpen>(what).ok(),
                _ => None,
            })
        };

        for address in ["192.0.2.1:80", "[2001:db8::1]:443", "169.254.169.254:80"] {
            let to: SocketAddr = address.parse().unwrap();
            let _task = TcpStream::connect(to).unwrap();
            let events = exchange(&mut network, &mut agent);
            let expected = AgentOpen::Connect { address: to.ip(), port: to.port() };
            assert_eq!(opened(&events), Some(expected));
        }

        let question = UdpSocket::bind("0.0.0.0:0").unwrap();
        question.send_to(b"id0123456789", "9.9.9.9:53").unwrap();
        assert_eq!(opened(&exchange(&mut network, &mut agent)), Some(AgentOpen::Dns {}));

        for (from, to) in [("0.0.0.0:0", "192.0.2.1:443"), ("[::]:0", "[2001:db8::1]:443")] {
            let other = UdpSocket::bind(from).unwrap();
            other.connect(to).unwrap();
            other.send(b"quic").unwrap();
            let error = other.recv(&mut [0; 8]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        }

        for address in ["127.0.0.1:1", "[::1]:1", "198.18.0.1:1"] {
            let error = TcpStream::connect(address).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{address}");
        }

        let server = std::net::TcpListener::bind("0.0.0.0:80").unwrap();
        let mut task = TcpStream::connect("127.0.0.1:80").unwrap();
        task.write_all(b"own").unwrap();
        server.accept().unwrap().0.read_exact(&mut [0; 3]).unwrap();

        // A host that is gone leaves nothing open.
        let mut task = TcpStream::connect("192.0.2.1:80").unwrap();
        exchange(&mut network, &mut agent);
        network.lose_host();
        assert!(task.read(&mut [0; 1]).is_err());
        let mut refused = TcpStream::connect("192.0.2.1:80").unwrap();
        network.work(None);
        assert!(refused.read(&mut [0; 1]).is_err());
    }
}
