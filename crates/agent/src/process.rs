//! One process as the server sees it: a task, where its output goes, where its input comes from.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use wire::connection::Connection;
use wire::frame::StreamId;
use wire::op::{ErrorCode, Exec, ExecReply, OpError, Outcome, ProcessInfo};
use zeroize::Zeroizing;

use crate::log::Log;
use crate::task::Task;

/// One of a process's two outputs.
#[derive(Debug)]
pub(crate) struct Source {
    /// Gone at the end of output.
    pub(crate) fd: Option<OwnedFd>,
    /// Whether the server waits on it; not while there is no room for more.
    pub(crate) watched: bool,
    pub(crate) sink: Sink,
}

/// Where output goes.
#[derive(Debug)]
pub(crate) enum Sink {
    Stream(StreamId),
    Log(Log),
    /// Nowhere: there is no such output.
    None,
}

/// Input on its way to a process.
#[derive(Debug)]
pub(crate) struct Feed {
    /// Gone once input has ended, or nobody reads it any more.
    pub(crate) fd: Option<OwnedFd>,
    pub(crate) watched: bool,
    /// With the streams whose window opens again as they are written.
    queue: VecDeque<(StreamId, Zeroizing<Vec<u8>>)>,
    /// Written bytes of the first in the queue.
    offset: usize,
    /// No more will come.
    closing: bool,
    terminal: bool,
}

impl Feed {
    pub(crate) fn new(fd: Option<OwnedFd>, terminal: bool) -> Self {
        Self { fd, watched: false, queue: VecDeque::new(), offset: 0, closing: false, terminal }
    }

    pub(crate) fn push(&mut self, stream: StreamId, bytes: Vec<u8>) {
        if !self.closing {
            self.queue.push_back((stream, Zeroizing::new(bytes)));
        }
    }

    pub(crate) fn close(&mut self) {
        if self.terminal && !self.closing {
            // A terminal has no end of input but the character that says so.
            const END_OF_TRANSMISSION: u8 = 4;
            self.queue.push_back((0, Zeroizing::new(vec![END_OF_TRANSMISSION])));
        }
        self.closing = true;
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.queue.is_empty()
    }

    /// Writes what fits; whether to wait for room. A process that does not read any more
    /// swallows the rest.
    pub(crate) fn pump(&mut self, connection: Option<&mut Connection>) -> bool {
        let mut connection = connection;
        let mut consumed = |stream: StreamId, bytes: usize| {
            if let Some(connection) = connection.as_deref_mut() {
                connection.consumed(stream, bytes);
            }
        };
        while let Some((stream, bytes)) = self.queue.front() {
            let Some(fd) = &self.fd else {
                consumed(*stream, bytes.len() - self.offset);
                self.next();
                continue;
            };
            match rustix::io::write(fd, &bytes[self.offset..]) {
                Ok(count) => {
                    consumed(*stream, count);
                    self.offset += count;
                    if self.offset == bytes.len() {
                        self.next();
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => self.fd = None,
            }
        }
        if self.closing && !self.terminal {
            self.fd = None;
        }
        false
    }

    fn next(&mut self) {
        self.queue.pop_front();
        self.offset = 0;
    }
}

/// What the process is to the host.
#[derive(Debug)]
pub(crate) enum Kind {
    /// A file operation: its reply is JSON of its own.
    Tool,
    /// Its caller waits.
    Attached(Named),
    /// It goes on by itself.
    Detached(Named),
}

/// A process that the host can name.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) name: String,
    started: Instant,
}

impl Named {
    pub(crate) fn new(exec: &Exec) -> Self {
        Self { name: exec.process.clone(), started: Instant::now() }
    }
}

/// When and how its time is up.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Deadline {
    None,
    Terminate { at: Instant, grace: Duration },
    Kill { at: Instant },
}

impl Deadline {
    pub(crate) fn new(exec: &Exec) -> Self {
        let after = |ms| Instant::now().checked_add(Duration::from_millis(ms));
        match exec.timeout_ms.and_then(after) {
            Some(at) => Self::Terminate { at, grace: Duration::from_millis(exec.kill_grace_ms) },
            None => Self::None,
        }
    }

    pub(crate) fn at(self) -> Option<Instant> {
        match self {
            Self::None => None,
            Self::Terminate { at, .. } | Self::Kill { at } => Some(at),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) kind: Kind,
    /// The stream of the operation that started it, until that has its reply.
    pub(crate) stream: Option<StreamId>,
    /// Gone once its end was taken note of.
    pub(crate) task: Option<Task>,
    pub(crate) has_started: bool,
    pub(crate) has_ended: bool,
    pub(crate) stdout: Source,
    pub(crate) stderr: Source,
    pub(crate) stdin: Feed,
    pub(crate) deadline: Deadline,
    /// The signal that was sent because its time was up.
    pub(crate) timed_out: Option<i32>,
    /// How a detached one ended.
    pub(crate) reply: Option<ExecReply>,
}

impl Process {
    pub(crate) fn named(&self) -> Option<&Named> {
        match &self.kind {
            Kind::Tool => None,
            Kind::Attached(named) | Kind::Detached(named) => Some(named),
        }
    }

    pub(crate) fn is_detached(&self) -> bool {
        matches!(self.kind, Kind::Detached(_))
    }

    /// All output has been read.
    pub(crate) fn is_silent(&self) -> bool {
        self.stdout.fd.is_none() && self.stderr.fd.is_none()
    }

    /// Does what is due now.
    pub(crate) fn check_deadline(&mut self, now: Instant) {
        let Some(task) = &self.task else { return };
        match self.deadline {
            Deadline::Terminate { at, grace } if at <= now => {
                // A task that is gone meanwhile is about to be noticed as such.
                let _ = task.signal(libc::SIGTERM);
                self.timed_out = Some(libc::SIGTERM);
                self.deadline = Deadline::Kill { at: now + grace };
            }
            Deadline::Kill { at } if at <= now => {
                task.kill();
                self.timed_out = Some(libc::SIGKILL);
                self.deadline = Deadline::None;
            }
            _ => {}
        }
    }

    /// What to report for an end: a process that was ended for its time did not just exit.
    pub(crate) fn judge(&self, outcome: Outcome) -> Outcome {
        match (self.timed_out, outcome) {
            (Some(_), Outcome::Signaled { signal }) => Outcome::TimedOut { signal },
            (Some(signal), Outcome::Exited { .. }) => Outcome::TimedOut { signal },
            (_, outcome) => outcome,
        }
    }

    pub(crate) fn info(&self) -> Option<ProcessInfo> {
        let named = self.named()?;
        let age = named.started.elapsed().as_millis();
        Some(ProcessInfo {
            process: named.name.clone(),
            detached: self.is_detached(),
            age_ms: u64::try_from(age).unwrap_or(u64::MAX),
            outcome: self.reply.as_ref().map_or(Outcome::Running, |reply| reply.outcome.clone()),
        })
    }
}

/// Held against the host's request before anything is made for it.
pub(crate) fn check_name(name: &str) -> Result<(), OpError> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(fine) {
        return Err(OpError::new(
            ErrorCode::Invalid,
            "a process name is 1 to 64 of [A-Za-z0-9_.-]",
        ));
    }
    Ok(())
}
