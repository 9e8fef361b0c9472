//! The agent's one loop: waits for the carrier and for the tasks, and moves bytes and verdicts
//! between them. Nothing in it blocks, so no operation ever waits for another.

mod followers;
mod operations;
mod processes;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use serde::Serialize;
use wire::connection::Event;
use wire::envelope::Opener;
use wire::frame::StreamId;
use wire::op::{Defaults, GuestInfo, OpError};
use wire::text::{Secret, Text};

use crate::network::Network;
use crate::process::{Feed, Process, Source};
use crate::session::{Session, Turn};
use crate::share::Shares;
use crate::task::Sandbox;
use crate::trust::Traces;
use crate::volume::Volumes;

/// What a descriptor belongs to: the low bits of an event's number, the process above them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Channel {
    Task = 0,
    Stdout = 1,
    Stderr = 2,
    Stdin = 3,
}

const CHANNEL_BITS: u32 = 3;
/// Events of process 0 are the server's own; processes count from 1.
const CARRIER: u64 = 0;
const LISTENER: u64 = 1;
const SANDBOX: u64 = 2;
const NETWORK: u64 = 3;
const SHARES: u64 = 4;

type ProcessId = u64;

fn token(process: ProcessId, channel: Channel) -> EventData {
    EventData::new_u64(process << CHANNEL_BITS | channel as u64)
}

/// What a stream is to the server.
#[derive(Debug)]
enum Role {
    /// The operation that started a process: its stdin, and its stdout unless detached.
    Owner(ProcessId),
    /// A process's standard error.
    Stderr(ProcessId),
    /// A `stdin` operation.
    Feeder(ProcessId),
    /// An `attach` operation.
    Follower(Follower),
    /// The standard error of an `attach`, whose stream is named.
    FollowerStderr(StreamId),
}

#[derive(Debug)]
struct Follower {
    process: ProcessId,
    stdout_offset: u64,
    stderr: Option<(StreamId, u64)>,
    follow: bool,
    dropped: (u64, u64),
}

/// What became of a request that was let through.
enum Answer {
    /// It is done.
    Reply(serde_json::Value),
    /// The stream lives on in this role.
    Role(Role),
    /// The stream is a share's.
    Mounted,
}

pub(crate) struct Server {
    session: Session,
    epoll: OwnedFd,
    opener: Opener,
    sandbox: Sandbox,
    /// Once the host gave the sandbox one.
    network: Option<Network>,
    /// The network is another sandbox's, which this one was: nothing is run until it has its own.
    lacks_network: bool,
    /// Directories of the host.
    shares: Shares,
    volumes: Volumes,
    /// Whether there will be one can not be changed any more.
    is_settled: bool,
    /// Variables that every task has unless its caller says otherwise.
    variables: BTreeMap<Text, Secret>,
    /// What the network left in the root.
    traces: Traces,
    /// What the image says.
    defaults: Defaults,
    /// User and group of the image's user, where that is not the sandbox's own.
    owner: Option<(u32, u32)>,
    processes: BTreeMap<ProcessId, Process>,
    last_process: ProcessId,
    streams: BTreeMap<StreamId, Role>,
    has_clock: bool,
    has_entropy: bool,
    info: GuestInfo,
    /// Memory that windows of connections may take, in bytes.
    windows: u64,
    stopping: bool,
}

impl Server {
    pub(crate) fn new(
        session: Session,
        opener: Opener,
        sandbox: Sandbox,
        info: GuestInfo,
    ) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        // The other half of what no task gets is for logs and for the kernel.
        let windows = crate::reserve(info.memory_bytes) / 2;
        if let Some(listener) = session.carrier.listener() {
            epoll::add(&epoll, listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        }
        epoll::add(&epoll, sandbox.as_fd(), EventData::new_u64(SANDBOX), EventFlags::IN)?;
        let shares = Shares::new()?;
        epoll::add(&epoll, shares.as_fd(), EventData::new_u64(SHARES), EventFlags::IN)?;
        let server = Self {
            session,
            epoll,
            opener,
            sandbox,
            network: None,
            lacks_network: false,
            shares,
            volumes: Volumes::default(),
            is_settled: false,
            variables: BTreeMap::new(),
            traces: Traces::default(),
            defaults: Defaults::default(),
            owner: None,
            processes: BTreeMap::new(),
            last_process: 0,
            streams: BTreeMap::new(),
            has_clock: false,
            has_entropy: false,
            windows,
            info,
            stopping: false,
        };
        server.watch_carrier()?;
        Ok(server)
    }

    /// Edges, because a port whose host is away says so without end.
    fn watch_carrier(&self) -> io::Result<()> {
        if let Some(stream) = self.session.carrier.stream() {
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
            epoll::add(&self.epoll, stream, EventData::new_u64(CARRIER), flags)?;
        }
        Ok(())
    }

    /// Serves until the host asks for the machine's end.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(64);
        loop {
            self.converse();
            self.session.flush();
            if self.stopping && self.session.is_flushed() {
                self.sandbox.kill_all();
                self.shares.end_all(&mut self.sandbox);
                return Ok(());
            }
            let timeout = self.timeout();
            events.clear();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                timeout.as_ref(),
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                self.handle(event.data.u64());
            }
            self.check_deadlines();
        }
    }

    fn timeout(&self) -> Option<Timespec> {
        if self.session.is_busy() {
            return Some(Timespec::default());
        }
        let now = Instant::now();
        let next = self.processes.values().filter_map(|process| process.deadline.at()).min()?;
        // A moment more, so that the deadline has passed on waking.
        let wait = next.saturating_duration_since(now) + Duration::from_millis(1);
        Timespec::try_from(wait).ok()
    }

    fn check_deadlines(&mut self) {
        let now = Instant::now();
        for process in self.processes.values_mut() {
            process.check_deadline(now);
        }
    }

    fn handle(&mut self, data: u64) {
        let (process, channel) = (data >> CHANNEL_BITS, data & ((1 << CHANNEL_BITS) - 1));
        if process == 0 {
            match channel {
                CARRIER => self.session.woken(),
                LISTENER => {
                    if self.session.accept() == Turn::Lost {
                        self.lose_host();
                    }
                    // A watch that fails leaves a host unheard, which gives up and comes anew.
                    let _ = self.watch_carrier();
                }
                SANDBOX => self.sandbox.tidy(),
                SHARES => self.shares.work(self.session.connection(), &mut self.sandbox),
                _ => {
                    if let Some(network) = &mut self.network {
                        network.work(self.session.connection());
                    }
                }
            }
            return;
        }
        match channel {
            0 => self.advance(process),
            1 => self.pump(process, Channel::Stdout),
            2 => self.pump(process, Channel::Stderr),
            _ => self.feed(process),
        }
    }

    fn converse(&mut self) {
        let sequence = self.opener.sequence();
        if self.session.receive(sequence) == Turn::Lost {
            self.lose_host();
        }
        while let Some(event) = self.session.next_event() {
            self.take(event);
        }
    }

    /// What was done for the host alone ends with it.
    fn lose_host(&mut self) {
        self.streams.clear();
        if let Some(network) = &mut self.network {
            network.lose_host();
        }
        self.shares.end_all(&mut self.sandbox);
        let attached: Vec<_> = self
            .processes
            .iter()
            .filter(|(_, process)| !process.is_detached())
            .map(|(id, _)| *id)
            .collect();
        for id in attached {
            self.abandon(id);
        }
    }

    fn take(&mut self, event: Event) {
        let event = match (&mut self.network, self.session.connection()) {
            (Some(network), Some(connection)) => match network.take(event, connection) {
                Some(event) => event,
                None => return,
            },
            _ => event,
        };
        let event = match self.session.connection() {
            Some(connection) => match self.shares.take(event, connection, &mut self.sandbox) {
                Some(event) => event,
                None => return,
            },
            None => event,
        };
        match event {
            Event::Hello(_) | Event::Pong(_) => {}
            Event::Knock(nonce) => {
                let sequence = self.opener.sequence();
                if self.session.knocked(nonce, sequence) == Turn::Lost {
                    self.lose_host();
                }
            }
            Event::Opened(id, envelope) => {
                let answer = self.open(id, &envelope);
                drop(envelope);
                match answer {
                    Ok(Answer::Reply(reply)) => self.reply(id, &reply),
                    Ok(Answer::Mounted) => {
                        self.shares.work(self.session.connection(), &mut self.sandbox);
                    }
                    Ok(Answer::Role(role)) => {
                        self.streams.insert(id, role);
                        self.touch(id);
                    }
                    Err(error) => self.refuse(id, &error),
                }
            }
            Event::Data(id, bytes) => match self.streams.get(&id) {
                Some(Role::Owner(process) | Role::Feeder(process)) => {
                    let process = *process;
                    match self.processes.get_mut(&process) {
                        Some(found) => {
                            found.stdin.push(id, bytes);
                            self.feed(process);
                        }
                        None => self.ignore(id, bytes.len()),
                    }
                }
                _ => self.ignore(id, bytes.len()),
            },
            Event::Closed(id, _) => {
                if let Some(Role::Owner(process) | Role::Feeder(process)) = self.streams.get(&id) {
                    let process = *process;
                    if let Some(found) = self.processes.get_mut(&process)
                        && !(found.is_detached() && found.stream == Some(id))
                    {
                        found.stdin.close();
                        self.feed(process);
                    }
                }
            }
            Event::Reset(id, _) => match self.streams.remove(&id) {
                Some(Role::Owner(process)) => {
                    if self.processes.get(&process).is_some_and(|found| !found.is_detached()) {
                        self.abandon(process);
                    }
                }
                Some(Role::Stderr(process)) => self.stop_reading(process, Channel::Stderr),
                Some(Role::Follower(follower)) => {
                    if let Some((stderr, _)) = follower.stderr {
                        self.streams.remove(&stderr);
                        self.refuse(stderr, &wire::connection::cancelled());
                    }
                }
                Some(Role::FollowerStderr(of)) => {
                    if let Some(Role::Follower(follower)) = self.streams.get_mut(&of) {
                        follower.stderr = None;
                    }
                }
                Some(Role::Feeder(_)) | None => {}
            },
            Event::Writable(id) => self.touch(id),
        }
    }

    /// Moves what can be moved on a stream that has room.
    fn touch(&mut self, id: StreamId) {
        match self.streams.get(&id) {
            Some(Role::Owner(process)) => self.pump(*process, Channel::Stdout),
            Some(Role::Stderr(process)) => self.pump(*process, Channel::Stderr),
            Some(Role::Follower(_)) => self.follow(id),
            Some(Role::FollowerStderr(of)) => self.follow(*of),
            Some(Role::Feeder(_)) | None => {}
        }
    }

    fn ignore(&mut self, id: StreamId, bytes: usize) {
        if let Some(connection) = self.session.connection() {
            connection.consumed(id, bytes);
        }
    }

    fn reply(&mut self, id: StreamId, reply: &impl Serialize) {
        let reply = serde_json::to_vec(reply).expect("a reply is plain JSON");
        self.streams.remove(&id);
        if let Some(connection) = self.session.connection() {
            connection.close(id, reply);
        }
    }

    fn refuse(&mut self, id: StreamId, error: &OpError) {
        self.streams.remove(&id);
        if let Some(connection) = self.session.connection() {
            connection.reset(id, error);
        }
    }
}

/// Registers or removes an output's descriptor, where that changes anything.
fn set_watch(epoll: &OwnedFd, source: &mut Source, data: EventData, wanted: bool) {
    let Some(fd) = &source.fd else { return };
    if source.watched == wanted {
        return;
    }
    let fd: BorrowedFd<'_> = fd.as_fd();
    let changed =
        if wanted { epoll::add(epoll, fd, data, EventFlags::IN) } else { epoll::delete(epoll, fd) };
    if changed.is_ok() {
        source.watched = wanted;
    }
}

/// The descriptor that fed a process, not registered any more.
fn take_feed(epoll: &OwnedFd, feed: &mut Feed) -> Option<OwnedFd> {
    if std::mem::take(&mut feed.watched)
        && let Some(fd) = &feed.fd
    {
        let _ = epoll::delete(epoll, fd);
    }
    feed.fd.take()
}
