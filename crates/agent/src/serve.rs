//! The agent's one loop: waits for the carrier and for the tasks, and moves bytes and verdicts
//! between them. Nothing in it blocks, so no operation ever waits for another.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::connection::{Event, WINDOW};
use wire::envelope::Opener;
use wire::frame::{MAX_DATA, StreamId};
use wire::op::{
    AgentOpen, Attach, Clock, Command, Done, ErrorCode, Exec, ExecReply, GuestInfo, Info, OpError,
    Operation, Outcome, ProcessList, Processes, Reseed, Resize, Shutdown, Signal, Stdin,
};
use zeroize::Zeroizing;

use crate::log::Log;
use crate::process::{Deadline, Feed, Kind, Named, Process, Sink, Source, check_name};
use crate::session::{Session, Turn};
use crate::task::{End, Entry, Progress, Sandbox, Spec, ToolRequest};
use crate::{freshen, tool};

/// Detached processes that are remembered; the oldest that has ended makes room.
const MAX_DETACHED: usize = 64;
/// Bytes of one output that are moved before other events get their turn.
const TURN: usize = 4 * MAX_DATA;

/// What a descriptor belongs to: the low bits of an event's number, the process above them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Channel {
    Task = 0,
    Stdout = 1,
    Stderr = 2,
    Stdin = 3,
}

const CHANNEL_BITS: u32 = 2;
/// Events of process 0 are the server's own; processes count from 1.
const CARRIER: u64 = 0;
const LISTENER: u64 = 1;
const SANDBOX: u64 = 2;

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
}

pub(crate) struct Server {
    session: Session,
    epoll: OwnedFd,
    opener: Opener,
    sandbox: Sandbox,
    processes: BTreeMap<ProcessId, Process>,
    last_process: ProcessId,
    streams: BTreeMap<StreamId, Role>,
    has_clock: bool,
    has_entropy: bool,
    info: GuestInfo,
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
        if let Some(listener) = session.carrier.listener() {
            epoll::add(&epoll, listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        }
        epoll::add(&epoll, sandbox.as_fd(), EventData::new_u64(SANDBOX), EventFlags::IN)?;
        let server = Self {
            session,
            epoll,
            opener,
            sandbox,
            processes: BTreeMap::new(),
            last_process: 0,
            streams: BTreeMap::new(),
            has_clock: false,
            has_entropy: false,
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
                _ => {}
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

    // === the host ===

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

    // === operations ===

    fn open(&mut self, id: StreamId, envelope: &[u8]) -> Result<Answer, OpError> {
        let opened = self.opener.open(envelope, freshen::now_ms())?;
        let (op, payload) = (opened.op, opened.payload);
        match op {
            Clock::NAME => {
                freshen::set_clock(&parse(payload)?)?;
                self.has_clock = true;
                done()
            }
            Reseed::NAME => {
                freshen::reseed(&parse(payload)?)?;
                self.has_entropy = true;
                done()
            }
            Info::NAME => {
                parse::<Info>(payload)?;
                Ok(Answer::Reply(value(&self.info)))
            }
            Shutdown::NAME => {
                parse::<Shutdown>(payload)?;
                self.stopping = true;
                done()
            }
            _ if !(self.has_clock && self.has_entropy) => Err(OpError::new(
                ErrorCode::NotReady,
                "the guest has no fresh time and randomness yet: send clock and reseed first",
            )),
            Exec::NAME => self.exec(id, parse(payload)?),
            Stdin::NAME => {
                let process = self.by_name(&parse::<Stdin>(payload)?.process)?;
                Ok(Answer::Role(Role::Feeder(process)))
            }
            Signal::NAME => self.signal(&parse(payload)?),
            Resize::NAME => {
                let resize: Resize = parse(payload)?;
                self.running(&resize.process)?.resize(resize.size)?;
                done()
            }
            Attach::NAME => self.attach(id, &parse(payload)?),
            Processes::NAME => {
                parse::<Processes>(payload)?;
                let processes = self.processes.values().filter_map(Process::info).collect();
                Ok(Answer::Reply(value(&ProcessList { processes })))
            }
            op if tool::is_tool(op) => self.start_tool(id, op, payload),
            other => {
                let name: String = other.chars().take(32).collect();
                let message = format!("this agent knows no operation {name:?}");
                Err(OpError::new(ErrorCode::Unsupported, message))
            }
        }
    }

    fn exec(&mut self, id: StreamId, exec: Exec) -> Result<Answer, OpError> {
        check_name(&exec.process)?;
        if matches!(&exec.command, Command::Argv(argv) if argv.is_empty()) {
            return Err(OpError::new(ErrorCode::Invalid, "there is no command"));
        }
        if self.by_name(&exec.process).is_ok() {
            let message = format!("there is a process {} already", exec.process);
            return Err(OpError::new(ErrorCode::Exists, message));
        }
        let log = if exec.detach { Some(self.make_room_for_log(&exec)?) } else { None };
        let named = Named::new(&exec);
        let deadline = Deadline::new(&exec);
        let (detach, terminal) = (exec.detach, exec.tty.is_some());
        let spec = Spec {
            entry: Entry::Command(exec.command),
            user: exec.user,
            cwd: exec.cwd,
            env: exec.env,
            tty: exec.tty,
            stdin: exec.stdin,
            limits: exec.limits,
        };
        let kind = if detach { Kind::Detached(named) } else { Kind::Attached(named) };
        let process = self.spawn(id, spec, kind, deadline, log, terminal)?;
        if !detach && !terminal {
            self.open_stderr(id, process)?;
        }
        Ok(Answer::Role(Role::Owner(process)))
    }

    fn open_stderr(&mut self, of: StreamId, process: ProcessId) -> Result<(), OpError> {
        match self.open_stream(&AgentOpen::Stderr { of }) {
            Ok(stderr) => {
                self.streams.insert(stderr, Role::Stderr(process));
                if let Some(found) = self.processes.get_mut(&process) {
                    found.stderr.sink = Sink::Stream(stderr);
                }
                Ok(())
            }
            Err(error) => {
                self.abandon(process);
                Err(error)
            }
        }
    }

    fn open_stream(&mut self, open: &AgentOpen) -> Result<StreamId, OpError> {
        let payload = serde_json::to_vec(open).expect("plain JSON");
        let Some(connection) = self.session.connection() else {
            return Err(wire::connection::cancelled());
        };
        connection
            .open(Zeroizing::new(payload))
            .map_err(|error| OpError::new(ErrorCode::TooMany, error.to_string()))
    }

    /// Kept output is the agent's memory, of which an eighth of the guest's is for logs.
    fn make_room_for_log(&mut self, exec: &Exec) -> Result<usize, OpError> {
        let detached = |process: &&Process| process.is_detached();
        if self.processes.values().filter(detached).count() >= MAX_DETACHED {
            let ended = self
                .processes
                .iter()
                .find(|(_, process)| process.is_detached() && process.reply.is_some())
                .map(|(id, _)| *id);
            match ended {
                Some(id) => self.forget(id),
                None => {
                    let message = format!("{MAX_DETACHED} detached processes run already");
                    return Err(OpError::new(ErrorCode::TooMany, message));
                }
            }
        }
        let budget = self.info.memory_bytes / 8 / 2 / MAX_DETACHED as u64;
        if exec.limits.log_bytes == 0 {
            return Err(OpError::new(ErrorCode::Invalid, "log_bytes is 0"));
        }
        let capacity = exec.limits.log_bytes.min(budget.max(64 << 10));
        Ok(usize::try_from(capacity).unwrap_or(usize::MAX))
    }

    fn start_tool(&mut self, id: StreamId, op: &str, payload: &[u8]) -> Result<Answer, OpError> {
        #[derive(serde::Deserialize)]
        struct User {
            user: Option<wire::text::Text>,
        }
        let User { user } = parse(payload)?;
        let request = ToolRequest { op: op.to_owned(), payload: payload.to_vec() };
        let spec = Spec {
            entry: Entry::Tool(request),
            user,
            cwd: Some("/".into()),
            env: BTreeMap::new(),
            tty: None,
            stdin: true,
            limits: wire::op::Limits::default(),
        };
        let process = self.spawn(id, spec, Kind::Tool, Deadline::None, None, false)?;
        Ok(Answer::Role(Role::Owner(process)))
    }

    fn spawn(
        &mut self,
        stream: StreamId,
        spec: Spec,
        kind: Kind,
        deadline: Deadline,
        log: Option<usize>,
        terminal: bool,
    ) -> Result<ProcessId, OpError> {
        let mut task = self.sandbox.spawn(spec)?;
        self.last_process += 1;
        let id = self.last_process;
        let (stdout_sink, stderr_sink) = match log {
            Some(capacity) => (Sink::Log(Log::new(capacity)), Sink::Log(Log::new(capacity))),
            None => (Sink::Stream(stream), Sink::None),
        };
        let source = |fd, sink| Source { fd, watched: false, sink };
        let stdout = source(task.stdout.take(), stdout_sink);
        let stderr = source(task.stderr.take(), stderr_sink);
        let stdin = Feed::new(task.stdin.take(), terminal);
        let watch = epoll::add(&self.epoll, task.as_fd(), token(id, Channel::Task), EventFlags::IN);
        let mut process = Process {
            kind,
            stream: Some(stream),
            task: Some(task),
            has_started: false,
            has_ended: false,
            stdout,
            stderr,
            stdin,
            deadline,
            timed_out: None,
            reply: None,
        };
        for (source, channel) in
            [(&mut process.stdout, Channel::Stdout), (&mut process.stderr, Channel::Stderr)]
        {
            set_watch(&self.epoll, source, token(id, channel), true);
        }
        self.processes.insert(id, process);
        if let Err(error) = watch {
            self.abandon(id);
            return Err(OpError::new(ErrorCode::Exhausted, format!("watch a task: {error}")));
        }
        Ok(id)
    }

    fn by_name(&self, name: &str) -> Result<ProcessId, OpError> {
        self.processes
            .iter()
            .find(|(_, process)| process.named().is_some_and(|named| named.name == name))
            .map(|(id, _)| *id)
            .ok_or_else(|| {
                let name: String = name.chars().take(64).collect();
                OpError::new(ErrorCode::NotFound, format!("there is no process {name:?}"))
            })
    }

    fn running(&self, name: &str) -> Result<&crate::task::Task, OpError> {
        let id = self.by_name(name)?;
        self.processes[&id]
            .task
            .as_ref()
            .ok_or_else(|| OpError::new(ErrorCode::NotFound, format!("process {name} has ended")))
    }

    fn signal(&self, signal: &Signal) -> Result<Answer, OpError> {
        if !(1..=64).contains(&signal.signal) {
            return Err(OpError::new(ErrorCode::Invalid, "a signal is a number from 1 to 64"));
        }
        self.running(&signal.process)?.signal(signal.signal)?;
        done()
    }

    fn attach(&mut self, id: StreamId, attach: &Attach) -> Result<Answer, OpError> {
        let process = self.by_name(&attach.process)?;
        let found = &self.processes[&process];
        if !found.is_detached() {
            let message = format!("process {} is not detached", attach.process);
            return Err(OpError::new(ErrorCode::Invalid, message));
        }
        let has_stderr = matches!(&found.stderr.sink, Sink::Log(log) if log.end() > 0)
            || found.stderr.fd.is_some();
        let stderr = if has_stderr {
            let stderr = self.open_stream(&AgentOpen::Stderr { of: id })?;
            self.streams.insert(stderr, Role::FollowerStderr(id));
            Some((stderr, attach.stderr_offset))
        } else {
            None
        };
        Ok(Answer::Role(Role::Follower(Follower {
            process,
            stdout_offset: attach.stdout_offset,
            stderr,
            follow: attach.follow,
            dropped: (0, 0),
        })))
    }

    // === processes ===

    fn advance(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(task) = &mut process.task else { return };
        match task.advance() {
            Progress::Pending => {}
            Progress::Started => {
                process.has_started = true;
                let waits_for_start =
                    if process.is_detached() { process.stream.take() } else { None };
                if let Some(stream) = waits_for_start {
                    self.reply(stream, &still_running());
                }
                self.feed(id);
            }
            Progress::Ended => {
                process.has_ended = true;
                // Its event stays readable, and the rest of the output may take a while.
                let _ = epoll::delete(&self.epoll, task.as_fd());
                process.deadline = Deadline::None;
                self.settle(id);
            }
        }
    }

    /// Moves output from a process to its sink, as far as there is both.
    fn pump(&mut self, id: ProcessId, channel: Channel) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let source = match channel {
            Channel::Stderr => &mut process.stderr,
            _ => &mut process.stdout,
        };
        let Some(fd) = &source.fd else { return };
        let mut moved = 0;
        let mut open = true;
        let mut has_room = true;
        while moved < TURN {
            let room = match (&source.sink, self.session.connection()) {
                (Sink::Stream(stream), Some(connection)) => {
                    // Output that the host gave up on goes nowhere.
                    if connection.is_writable(*stream) {
                        connection.room(*stream)
                    } else {
                        MAX_DATA
                    }
                }
                _ => MAX_DATA,
            };
            if room == 0 {
                has_room = false;
                break;
            }
            let mut bytes = Vec::with_capacity(room.min(MAX_DATA));
            match rustix::io::read(fd, rustix::buffer::spare_capacity(&mut bytes)) {
                Ok(0) => open = false,
                Ok(count) => {
                    moved += count;
                    match (&mut source.sink, self.session.connection()) {
                        (Sink::Stream(stream), Some(connection)) => {
                            connection.send(*stream, bytes);
                        }
                        (Sink::Log(log), _) => log.push(&bytes),
                        _ => {}
                    }
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {}
                // A terminal's last user has closed it.
                Err(_) => open = false,
            }
            break;
        }
        let is_log = matches!(source.sink, Sink::Log(_));
        if open {
            set_watch(&self.epoll, source, token(id, channel), has_room);
        } else {
            set_watch(&self.epoll, source, token(id, channel), false);
            source.fd = None;
            if let Sink::Stream(stream) = source.sink
                && channel == Channel::Stderr
            {
                self.streams.remove(&stream);
                if let Some(connection) = self.session.connection() {
                    connection.close(stream, Vec::new());
                }
            }
        }
        if is_log {
            self.follow_all(id);
        }
        if !open {
            self.settle(id);
        }
    }

    fn stop_reading(&mut self, id: ProcessId, channel: Channel) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let source = match channel {
            Channel::Stderr => &mut process.stderr,
            _ => &mut process.stdout,
        };
        source.sink = Sink::None;
        set_watch(&self.epoll, source, token(id, channel), source.fd.is_some());
    }

    fn feed(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        // Before that, the terminal is nobody's: it would turn a ^C into nothing.
        if process.stdin.is_terminal() && !process.has_started && !process.has_ended {
            return;
        }
        let feed = &mut process.stdin;
        let watched = feed.watched;
        if watched && let Some(fd) = &feed.fd {
            let _ = epoll::delete(&self.epoll, fd);
        }
        feed.watched = feed.pump(self.session.connection());
        if feed.watched
            && let Some(fd) = &feed.fd
        {
            let _ = epoll::add(&self.epoll, fd, token(id, Channel::Stdin), EventFlags::OUT);
        }
        if feed.is_drained() && feed.fd.is_none() {
            let feeders: Vec<_> = self
                .streams
                .iter()
                .filter(|(_, role)| matches!(role, Role::Feeder(process) if *process == id))
                .map(|(stream, _)| *stream)
                .collect();
            for stream in feeders {
                self.reply(stream, &Done {});
            }
        }
    }

    /// Once a process has ended and all its output was read: the reply.
    fn settle(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        if !process.has_ended || !process.is_silent() {
            return;
        }
        let Some(task) = process.task.take() else { return };
        unwatch_feed(&self.epoll, &mut process.stdin);
        let ended = self.sandbox.finish(task);
        let outcome = match ended.end {
            End::Command(outcome) => Ok(process.judge(outcome)),
            End::Tool(reply) => Err(reply),
            End::Failed(error) => Err(Err(error)),
        };
        let stream = process.stream.take();
        match outcome {
            Ok(outcome) => {
                let reply = ExecReply {
                    outcome,
                    cpu_usec: ended.cpu_usec,
                    memory_peak_bytes: ended.memory_peak_bytes,
                    dropped: (0, 0),
                };
                if let Some(stream) = stream {
                    self.reply(stream, &reply);
                    self.forget(id);
                } else if process.is_detached() {
                    process.reply = Some(reply);
                    self.feed(id);
                    self.follow_all(id);
                } else {
                    self.forget(id);
                }
            }
            Err(verdict) => {
                match (stream, verdict) {
                    (Some(stream), Ok(reply)) => self.reply(stream, &reply),
                    (Some(stream), Err(error)) => self.refuse(stream, &error),
                    (None, _) => {}
                }
                self.forget(id);
            }
        }
    }

    /// Ends a process that nobody waits for any more.
    fn abandon(&mut self, id: ProcessId) {
        if let Some(process) = self.processes.get_mut(&id)
            && let Some(task) = process.task.take()
        {
            if !process.has_ended {
                let _ = epoll::delete(&self.epoll, task.as_fd());
            }
            self.sandbox.finish(task);
        }
        self.forget(id);
    }

    fn forget(&mut self, id: ProcessId) {
        let Some(mut process) = self.processes.remove(&id) else { return };
        for source in [&mut process.stdout, &mut process.stderr] {
            set_watch(&self.epoll, source, EventData::new_u64(0), false);
        }
        unwatch_feed(&self.epoll, &mut process.stdin);
        let orphans: Vec<_> = self
            .streams
            .iter()
            .filter(|(_, role)| match role {
                Role::Owner(process) | Role::Stderr(process) | Role::Feeder(process) => {
                    *process == id
                }
                Role::Follower(follower) => follower.process == id,
                Role::FollowerStderr(_) => false,
            })
            .map(|(stream, _)| *stream)
            .collect();
        for stream in orphans {
            let gone = OpError::new(ErrorCode::NotFound, "the process is gone");
            if let Some(Role::Follower(Follower { stderr: Some((stderr, _)), .. })) =
                self.streams.get(&stream)
            {
                let stderr = *stderr;
                self.refuse(stderr, &gone);
            }
            self.refuse(stream, &gone);
        }
    }

    // === detached output ===

    fn follow_all(&mut self, id: ProcessId) {
        let followers: Vec<_> = self
            .streams
            .iter()
            .filter(|(_, role)| matches!(role, Role::Follower(f) if f.process == id))
            .map(|(stream, _)| *stream)
            .collect();
        for stream in followers {
            self.follow(stream);
        }
    }

    /// Sends a follower what it has not had, and its reply once there is no more to come.
    fn follow(&mut self, id: StreamId) {
        let Some(Role::Follower(follower)) = self.streams.get_mut(&id) else { return };
        let Some(process) = self.processes.get(&follower.process) else { return };
        let Some(connection) = self.session.connection() else { return };
        let mut send = |stream: StreamId, sink: &Sink, offset: &mut u64, dropped: &mut u64| {
            let Sink::Log(log) = sink else { return true };
            while *offset < log.end() {
                let room = connection.room(stream).min(WINDOW);
                if room == 0 {
                    return false;
                }
                let (from, bytes) = log.read(*offset, room);
                *dropped += from - *offset;
                *offset = from + bytes.len() as u64;
                connection.send(stream, bytes);
            }
            true
        };
        let mut complete =
            send(id, &process.stdout.sink, &mut follower.stdout_offset, &mut follower.dropped.0);
        if let Some((stderr, offset)) = &mut follower.stderr {
            complete &= send(*stderr, &process.stderr.sink, offset, &mut follower.dropped.1);
        }
        if !complete || (follower.follow && process.reply.is_none()) {
            return;
        }
        let mut reply = process.reply.clone().unwrap_or_else(still_running);
        reply.dropped = follower.dropped;
        if let Some((stderr, _)) = follower.stderr {
            connection.close(stderr, Vec::new());
            self.streams.remove(&stderr);
        }
        self.reply(id, &reply);
    }
}

fn still_running() -> ExecReply {
    ExecReply { outcome: Outcome::Running, cpu_usec: 0, memory_peak_bytes: 0, dropped: (0, 0) }
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

fn unwatch_feed(epoll: &OwnedFd, feed: &mut Feed) {
    if std::mem::take(&mut feed.watched)
        && let Some(fd) = &feed.fd
    {
        let _ = epoll::delete(epoll, fd);
    }
    feed.fd = None;
}

fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T, OpError> {
    serde_json::from_slice(payload)
        .map_err(|error| OpError::new(ErrorCode::Invalid, format!("malformed payload: {error}")))
}

fn value(reply: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(reply).expect("a reply is plain JSON")
}

fn done() -> Result<Answer, OpError> {
    Ok(Answer::Reply(value(&Done {})))
}
