//! The mock's agent: the real wire, and processes that follow the script.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use wire::connection::{Connection, Event, Side};
use wire::envelope::{Opener, key_from_hex, key_to_hex};
use wire::frame::{MAX_DATA, StreamId};
use wire::handshake::{Hello, Scanner, knock};
use wire::op::{
    AgentOpen, Attach, Become, Clock, Done, ErrorCode, Exec, ExecReply, FreezeVolumes, GuestInfo,
    Info, MountVolume, Network, NetworkReply, OpError, Operation, Outcome, ProcessInfo,
    ProcessList, Processes, Reseed, Resize, Shutdown, Signal, Stdin,
};
use zeroize::Zeroizing;

use super::{Mock, Until};

/// A guest's memory of itself. Connections come and go.
pub(super) struct Agent {
    mock: Mock,
    opener: Opener,
    processes: BTreeMap<String, Process>,
    paused: watch::Receiver<bool>,
    saves: mpsc::UnboundedReceiver<oneshot::Sender<Vec<u8>>>,
    is_stopped: bool,
    begun: Instant,
}

/// What an agent's memory comes to in a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Memory {
    /// The key and the id of its sandbox, where it has become one.
    identity: Option<(String, String)>,
    sequence: u64,
    processes: BTreeMap<String, SavedProcess>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedProcess {
    age_ms: u64,
    /// In how many milliseconds something happens to it by itself, and what.
    due: Option<(u64, Outcome)>,
    ends_with_input: bool,
    end: Option<Outcome>,
    stdout: (u64, Vec<u8>),
    stderr: (u64, Vec<u8>),
}

/// What a machine says to its agent beside the carrier.
#[derive(Debug)]
pub(super) struct Switches {
    /// Set to true, it stops the agent until it is set to false.
    pub(super) paused: watch::Sender<bool>,
    /// Asks for its memory.
    pub(super) saves: mpsc::UnboundedSender<oneshot::Sender<Vec<u8>>>,
}

struct Process {
    detached: bool,
    begun: Instant,
    /// When something happens to it by itself, and what.
    due: Option<(Instant, Outcome)>,
    ends_with_input: bool,
    /// What it has come to.
    end: Option<Outcome>,
    stdout: Log,
    stderr: Log,
}

/// Output that was not forgotten yet.
#[derive(Default)]
struct Log {
    bytes: VecDeque<u8>,
    /// Bytes before the first that is there.
    forgotten: u64,
}

impl Log {
    fn end(&self) -> u64 {
        self.forgotten + self.bytes.len() as u64
    }

    fn push(&mut self, bytes: &[u8], capacity: usize) {
        self.bytes.extend(bytes);
        let excess = self.bytes.len().saturating_sub(capacity);
        self.bytes.drain(..excess);
        self.forgotten += excess as u64;
    }

    fn forget(&mut self, offset: u64) {
        let excess = usize::try_from(offset.saturating_sub(self.forgotten)).unwrap_or(usize::MAX);
        let excess = excess.min(self.bytes.len());
        self.bytes.drain(..excess);
        self.forgotten += excess as u64;
    }

    fn after(&self, offset: u64, most: usize) -> Vec<u8> {
        let skipped = usize::try_from(offset.saturating_sub(self.forgotten)).unwrap_or(usize::MAX);
        self.bytes.iter().skip(skipped).take(most).copied().collect()
    }
}

/// One who is told of a process's output.
struct Follower {
    process: String,
    /// The process is this one's, and ends with it.
    owns: bool,
    follows: bool,
    stream: StreamId,
    stderr: Option<StreamId>,
    sent: (u64, u64),
    dropped: (u64, u64),
}

/// What lasts as long as the connection.
struct Session {
    connection: Connection,
    followers: Vec<Follower>,
    feeders: HashMap<StreamId, String>,
}

/// An operation's immediate answer, or nothing where it goes on.
type Answer = Result<Option<Vec<u8>>, OpError>;

fn json(reply: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(reply).expect("a reply is plain JSON")
}

fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T, OpError> {
    serde_json::from_slice(payload)
        .map_err(|error| OpError::new(ErrorCode::Invalid, error.to_string()))
}

fn missing(name: &str) -> OpError {
    OpError::new(ErrorCode::NotFound, format!("there is no process {name:?}"))
}

impl Agent {
    pub(super) fn new(mock: Mock, opener: Opener) -> Self {
        Self {
            mock,
            opener,
            processes: BTreeMap::new(),
            paused: watch::channel(false).1,
            saves: mpsc::unbounded_channel().1,
            is_stopped: false,
            begun: Instant::now(),
        }
    }

    /// One that goes on from what another's memory held; `None` where that is no such memory.
    pub(super) fn from_memory(mock: Mock, memory: &[u8]) -> Option<Self> {
        let memory: Memory = serde_json::from_slice(memory).ok()?;
        let opener = match memory.identity {
            Some((key, id)) => Opener::resumed(key_from_hex(&key)?, id, memory.sequence),
            None => Opener::of_template(),
        };
        let mut agent = Self::new(mock, opener);
        let now = Instant::now();
        let log = |(forgotten, bytes): (u64, Vec<u8>)| Log { bytes: bytes.into(), forgotten };
        let process = |saved: SavedProcess| Process {
            detached: true,
            begun: now.checked_sub(Duration::from_millis(saved.age_ms)).unwrap_or(now),
            due: saved.due.map(|(in_ms, outcome)| (now + Duration::from_millis(in_ms), outcome)),
            ends_with_input: saved.ends_with_input,
            end: saved.end,
            stdout: log(saved.stdout),
            stderr: log(saved.stderr),
        };
        agent.processes =
            memory.processes.into_iter().map(|(name, saved)| (name, process(saved))).collect();
        Some(agent)
    }

    fn memory(&self) -> Vec<u8> {
        let now = Instant::now();
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let log = |log: &Log| (log.forgotten, log.bytes.iter().copied().collect());
        // Those of a connection end with it, and no connection is saved.
        let detached = self.processes.iter().filter(|(_, process)| process.detached);
        let saved = |(name, process): (&String, &Process)| {
            let due = process.due.as_ref();
            let saved = SavedProcess {
                age_ms: ms(process.begun.elapsed()),
                due: due.map(|(at, outcome)| (ms(at.duration_since(now)), outcome.clone())),
                ends_with_input: process.ends_with_input,
                end: process.end.clone(),
                stdout: log(&process.stdout),
                stderr: log(&process.stderr),
            };
            (name.clone(), saved)
        };
        json(&Memory {
            identity: self.opener.identity().map(|(key, id)| (key_to_hex(key), id.to_owned())),
            sequence: self.opener.sequence(),
            processes: detached.map(saved).collect(),
        })
    }

    /// What stops it, and what asks for its memory.
    pub(super) fn switches(&mut self) -> Switches {
        let (paused, is_paused) = watch::channel(false);
        let (saves, asked) = mpsc::unbounded_channel();
        (self.paused, self.saves) = (is_paused, asked);
        Switches { paused, saves }
    }

    /// Waits until it may go on, and gives its memory to who asks for that meanwhile.
    async fn until_resumed(&mut self) {
        let mut paused = self.paused.clone();
        loop {
            tokio::select! {
                // Without its switch it goes on.
                _ = paused.wait_for(|paused| !paused) => return,
                Some(reply) = self.saves.recv() => drop(reply.send(self.memory())),
            }
        }
    }

    /// Serves one peer after another; the newest counts.
    pub(super) async fn listen(&mut self, listener: &UnixListener) {
        let mut next = None;
        while !self.is_stopped {
            let peer = match next.take() {
                Some(peer) => peer,
                None => tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((peer, _)) => peer,
                        Err(_) => return,
                    },
                    Some(reply) = self.saves.recv() => {
                        drop(reply.send(self.memory()));
                        continue;
                    }
                },
            };
            tokio::select! {
                () = self.serve(peer) => {}
                newer = listener.accept() => next = newer.ok().map(|(peer, _)| peer),
            }
            // Nobody reads any more what these write.
            self.processes.retain(|_, process| process.detached);
        }
    }

    /// Serves a peer until it goes.
    pub(super) async fn serve<C>(&mut self, mut carrier: C)
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        let mut scanner = Scanner::any();
        let mut bytes = vec![0; 64 << 10];
        let (nonce, rest) = loop {
            let Ok(count @ 1..) = carrier.read(&mut bytes).await else { return };
            if let Some((nonce, used)) = scanner.scan(&bytes[..count]) {
                break (nonce, bytes[used..count].to_vec());
            }
        };
        let hello = json(&Hello::new("mock", self.opener.sequence()));
        let mut session = Session {
            connection: Connection::new(Side::Agent, hello),
            followers: Vec::new(),
            feeders: HashMap::new(),
        };
        if carrier.write_all(&knock(&nonce)).await.is_err()
            || session.connection.receive(&rest).is_err()
        {
            return;
        }
        loop {
            self.until_resumed().await;
            while let Some(event) = session.connection.poll_event() {
                self.handle(&mut session, event);
            }
            self.pass_time();
            self.pump(&mut session);
            let mut out = Zeroizing::default();
            session.connection.transmit(&mut out, usize::MAX);
            if carrier.write_all(&out).await.is_err() || self.is_stopped {
                return;
            }
            let due = self.processes.values().filter_map(|process| process.due.as_ref());
            let due = due.map(|(at, _)| *at).min();
            let wake = due.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            let count = tokio::select! {
                count = carrier.read(&mut bytes) => count,
                () = tokio::time::sleep_until(wake) => continue,
                Some(reply) = self.saves.recv() => {
                    drop(reply.send(self.memory()));
                    continue;
                }
            };
            let Ok(count @ 1..) = count else { return };
            if session.connection.receive(&bytes[..count]).is_err() {
                return;
            }
        }
    }

    fn handle(&mut self, session: &mut Session, event: Event) {
        match event {
            Event::Opened(id, envelope) => match self.answer(session, id, &envelope) {
                Ok(Some(reply)) => session.connection.close(id, reply),
                Ok(None) => {}
                Err(error) => session.connection.reset(id, &error),
            },
            Event::Data(id, bytes) => {
                session.connection.consumed(id, bytes.len());
                if let Some(process) = self.fed(session, id)
                    && process.ends_with_input
                {
                    process.stdout.push(&bytes, usize::MAX);
                }
            }
            Event::Closed(id, _) => {
                if let Some(process) = self.fed(session, id)
                    && process.ends_with_input
                    && process.end.is_none()
                {
                    process.end = Some(Outcome::Exited { code: 0 });
                }
                if session.feeders.remove(&id).is_some() {
                    session.connection.close(id, json(&Done {}));
                }
            }
            Event::Reset(id, _) => {
                session.feeders.remove(&id);
                session.followers.retain(|follower| {
                    let gone = follower.stream == id;
                    if gone && follower.owns {
                        self.processes.remove(&follower.process);
                    }
                    !gone
                });
            }
            Event::Hello(_) | Event::Writable(_) | Event::Pong(_) | Event::Knock(_) => {}
        }
    }

    /// The process that this stream is the input of.
    fn fed(&mut self, session: &Session, id: StreamId) -> Option<&mut Process> {
        let owner =
            session.followers.iter().find(|follower| follower.owns && follower.stream == id);
        let name = owner.map(|follower| &follower.process).or_else(|| session.feeders.get(&id))?;
        self.processes.get_mut(name)
    }

    fn answer(&mut self, session: &mut Session, id: StreamId, envelope: &[u8]) -> Answer {
        let opened = self.opener.open(envelope, 0)?;
        let payload = opened.payload;
        match opened.op {
            Exec::NAME => self.exec(session, id, parse(payload)?),
            Attach::NAME => {
                let attach: Attach = parse(payload)?;
                let process = self.processes.get(&attach.process);
                let process = process.ok_or_else(|| missing(&attach.process))?;
                let stderr = match process.stderr.end() {
                    0 => None,
                    _ => Some(session.open_stderr(id)?),
                };
                session.followers.push(Follower {
                    process: attach.process,
                    owns: false,
                    follows: attach.follow,
                    stream: id,
                    stderr,
                    sent: (attach.stdout_offset, attach.stderr_offset),
                    dropped: (0, 0),
                });
                Ok(None)
            }
            Stdin::NAME => {
                let Stdin { process } = parse(payload)?;
                self.processes.get(&process).ok_or_else(|| missing(&process))?;
                session.feeders.insert(id, process);
                Ok(None)
            }
            Signal::NAME => {
                let Signal { process, signal } = parse(payload)?;
                let found = self.processes.get_mut(&process).ok_or_else(|| missing(&process))?;
                if found.end.is_some() {
                    return Err(missing(&process));
                }
                found.end = Some(Outcome::Signaled { signal });
                Ok(Some(json(&Done {})))
            }
            Resize::NAME => {
                let Resize { process, .. } = parse(payload)?;
                self.processes.get(&process).ok_or_else(|| missing(&process))?;
                Ok(Some(json(&Done {})))
            }
            Processes::NAME => {
                let info = |(name, process): (&String, &Process)| ProcessInfo {
                    process: name.clone(),
                    detached: process.detached,
                    age_ms: u64::try_from(process.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
                    outcome: process.end.clone().unwrap_or(Outcome::Running),
                };
                let processes = self.processes.iter().map(info).collect();
                Ok(Some(json(&ProcessList { processes })))
            }
            Info::NAME => {
                let ready_ms = self.begun.elapsed().as_millis();
                Ok(Some(json(&GuestInfo {
                    agent: "mock".into(),
                    kernel: "none".into(),
                    cpus: 1,
                    memory_bytes: 0,
                    landlock_abi: 0,
                    ready_ms: u64::try_from(ready_ms).unwrap_or(u64::MAX),
                })))
            }
            // Its commands are a script, which connects to nothing.
            Network::NAME => Ok(Some(json(&NetworkReply { env: Vec::new() }))),
            Clock::NAME | Reseed::NAME | MountVolume::NAME | FreezeVolumes::NAME => {
                Ok(Some(json(&Done {})))
            }
            Become::NAME => {
                let Become { sandbox, key, .. } = parse(payload)?;
                let key = key_from_hex(&key)
                    .ok_or_else(|| OpError::new(ErrorCode::Invalid, "it brings no key"))?;
                self.opener.take_identity(key, sandbox);
                Ok(Some(json(&Done {})))
            }
            Shutdown::NAME => {
                self.is_stopped = true;
                Ok(Some(json(&Done {})))
            }
            other => {
                let message = format!("the mock engine has no {other}");
                Err(OpError::new(ErrorCode::Unsupported, message))
            }
        }
    }

    fn exec(&mut self, session: &mut Session, id: StreamId, exec: Exec) -> Answer {
        if self.processes.contains_key(&exec.process) {
            let message = format!("there is a process {} already", exec.process);
            return Err(OpError::new(ErrorCode::Exists, message));
        }
        let stderr = match exec.tty.is_none() && !exec.detach {
            true => Some(session.open_stderr(id)?),
            false => None,
        };
        let reply = self.mock.reply(exec.command);
        let now = Instant::now();
        let mut process = Process {
            detached: exec.detach,
            begun: now,
            due: None,
            ends_with_input: reply.until == Until::InputEnds,
            end: None,
            stdout: Log::default(),
            stderr: Log::default(),
        };
        let kept = match exec.detach {
            true => usize::try_from(exec.limits.log_bytes).unwrap_or(usize::MAX),
            false => usize::MAX,
        };
        process.stdout.push(&reply.stdout, kept);
        process.stderr.push(&reply.stderr, kept);
        let timeout = exec.timeout_ms.map(|ms| now + Duration::from_millis(ms));
        let timeout = timeout.map(|at| (at, Outcome::TimedOut { signal: 15 }));
        match reply.until {
            Until::Started => process.end = Some(reply.outcome),
            Until::Passed(time) => {
                let own = (now + time, reply.outcome);
                process.due = Some(match timeout {
                    Some(timeout) if timeout.0 < own.0 => timeout,
                    _ => own,
                });
            }
            Until::InputEnds if !exec.stdin => process.end = Some(reply.outcome),
            Until::InputEnds | Until::Signalled => process.due = timeout,
        }
        self.processes.insert(exec.process.clone(), process);
        if exec.detach {
            let started = ExecReply {
                outcome: Outcome::Running,
                cpu_usec: 0,
                memory_peak_bytes: 0,
                dropped: (0, 0),
            };
            return Ok(Some(json(&started)));
        }
        session.followers.push(Follower {
            process: exec.process,
            owns: true,
            follows: true,
            stream: id,
            stderr,
            sent: (0, 0),
            dropped: (0, 0),
        });
        Ok(None)
    }

    fn pass_time(&mut self) {
        let now = Instant::now();
        for process in self.processes.values_mut() {
            if process.end.is_some() {
                process.due = None;
            } else if process.due.as_ref().is_some_and(|(at, _)| *at <= now) {
                process.end = process.due.take().map(|(_, outcome)| outcome);
            }
        }
    }

    /// Sends each follower what there is and fits.
    fn pump(&mut self, session: &mut Session) {
        let Session { connection, followers, .. } = session;
        followers.retain_mut(|follower| {
            let Some(process) = self.processes.get_mut(&follower.process) else {
                connection.reset(follower.stream, &wire::connection::cancelled());
                return false;
            };
            let ended = process.end.is_some() || !follower.follows;
            let stdout = (follower.stream, &mut follower.sent.0, &mut follower.dropped.0);
            let mut silent = pump_one(connection, &mut process.stdout, stdout);
            if let Some(stderr) = follower.stderr {
                let sent = (stderr, &mut follower.sent.1, &mut follower.dropped.1);
                if !pump_one(connection, &mut process.stderr, sent) {
                    silent = false;
                } else if ended {
                    connection.close(stderr, Vec::new());
                    follower.stderr = None;
                }
            }
            if follower.owns {
                process.stdout.forget(follower.sent.0);
                process.stderr.forget(follower.sent.1);
            }
            if !(ended && silent) {
                return true;
            }
            let reply = ExecReply {
                outcome: process.end.clone().unwrap_or(Outcome::Running),
                cpu_usec: 0,
                memory_peak_bytes: 0,
                dropped: follower.dropped,
            };
            connection.close(follower.stream, json(&reply));
            if follower.owns {
                self.processes.remove(&follower.process);
            }
            false
        });
    }
}

/// Whether all that there is was sent.
fn pump_one(
    connection: &mut Connection,
    log: &mut Log,
    (stream, sent, dropped): (StreamId, &mut u64, &mut u64),
) -> bool {
    if *sent < log.forgotten {
        *dropped += log.forgotten - *sent;
        *sent = log.forgotten;
    }
    while *sent < log.end() {
        if !connection.is_writable(stream) {
            return true;
        }
        let room = connection.room(stream).min(MAX_DATA);
        if room == 0 {
            return false;
        }
        let bytes = log.after(*sent, room);
        *sent += bytes.len() as u64;
        connection.send(stream, bytes);
    }
    true
}

impl Session {
    fn open_stderr(&mut self, of: StreamId) -> Result<StreamId, OpError> {
        self.connection
            .open(Zeroizing::new(json(&AgentOpen::Stderr { of })))
            .map_err(|error| OpError::new(ErrorCode::TooMany, error.to_string()))
    }
}
