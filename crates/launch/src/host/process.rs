//! A started process.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout};

use super::usage::{self, Usage};
use super::words::{self, Words};
use super::{Control, LaunchError, Ownership};
use crate::message::MAX_MESSAGE;

/// A started process. Dropping an owned one kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    inner: Option<Inner>,
    control: Control,
    reports: BufReader<ChildStdout>,
    words: Words,
    ownership: Ownership,
}

/// The process that does the work, where the started one only keeps it.
#[derive(Debug)]
struct Inner {
    pid: u32,
    descriptor: OwnedFd,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Its status.
    pub status: ExitStatus,
    /// The last of what it said on stderr, as it said it.
    pub words: String,
}

impl End {
    /// The last line that it said, made harmless.
    pub fn last_words(&self) -> Option<String> {
        words::last_line(&self.words)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        match self.last_words() {
            Some(words) => write!(f, "; its last words: {words}"),
            None => Ok(()),
        }
    }
}

impl Process {
    pub(super) fn new(
        mut child: Child,
        control: Control,
        ownership: Ownership,
        shown: bool,
    ) -> Self {
        let reports = BufReader::new(child.stdout.take().expect("it is piped"));
        let words = Words::listen(child.stderr.take().expect("it is piped"), shown);
        Self { child, inner: None, control, reports, words, ownership }
    }

    /// Its next report; `None` where it has closed the stream, as an exec does.
    ///
    /// # Errors
    /// `Hear`, `NoReport`.
    pub async fn report<R: DeserializeOwned>(&mut self) -> Result<Option<R>, LaunchError> {
        let mut line = Vec::new();
        let longest = MAX_MESSAGE as u64 + 1;
        let mut bounded = (&mut self.reports).take(longest);
        bounded.read_until(b'\n', &mut line).await.map_err(LaunchError::Hear)?;
        if line.is_empty() {
            return Ok(None);
        }
        let unreadable = |_| LaunchError::NoReport(excerpt(&line));
        serde_json::from_slice(&line).map(Some).map_err(unreadable)
    }

    /// Learns that `pid`, a child of the started process, is what does the work: from here on
    /// it is the one that is counted and killed. The started process must wait for it and end
    /// with its status. Where it has ended already, there is nothing to learn.
    ///
    /// # Errors
    /// `Stranger` where it is a process, but no such child.
    pub fn follow(&mut self, pid: u32) -> Result<(), LaunchError> {
        let stranger = || LaunchError::Stranger(pid);
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(stranger)?;
        let Ok(descriptor) = pidfd_open(raw, PidfdFlags::empty()) else { return Ok(()) };
        // Looked at after the descriptor is there: the number cannot pass to another any more.
        if usage::parent(pid) == self.child.id() {
            self.inner = Some(Inner { pid, descriptor });
            return Ok(());
        }
        // Of one that was just waited for, the kernel tells no parent.
        if has_ended(&descriptor) { Ok(()) } else { Err(stranger()) }
    }

    /// The process that does the work; `None` when it has ended and this was seen.
    pub fn pid(&self) -> Option<u32> {
        let started = self.child.id()?;
        Some(self.inner.as_ref().map_or(started, |inner| inner.pid))
    }

    /// For asking it.
    pub fn control(&mut self) -> &mut Control {
        &mut self.control
    }

    /// What it has used so far.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn usage(&self) -> io::Result<Usage> {
        Usage::of(self.pid().ok_or(io::ErrorKind::NotFound)?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// Where it cannot be waited for.
    pub async fn wait(&mut self) -> io::Result<End> {
        let status = self.child.wait().await?;
        self.words.complete().await;
        Ok(End { status, words: self.words.text() })
    }

    /// Waits for its end and says how it came. `success` is what a status of 0 means.
    pub async fn ended(&mut self, success: &str) -> String {
        match self.wait().await {
            Ok(end) => {
                let how = match end.status.success() {
                    true => success.to_owned(),
                    false => format!("its monitor ended ({})", end.status),
                };
                match end.last_words() {
                    Some(words) => format!("{how}; the monitor's last words: {words}"),
                    None => how,
                }
            }
            Err(error) => format!("its monitor is gone ({error})"),
        }
    }

    /// Kills it and waits until nothing of it is left.
    ///
    /// # Errors
    /// Where it cannot be signalled or waited for.
    pub async fn kill(&mut self) -> io::Result<()> {
        if self.child.id().is_none() {
            return Ok(());
        }
        match &self.inner {
            // Its keeper ends when it has seen the end of it, and not before.
            Some(inner) => match pidfd_send_signal(&inner.descriptor, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            },
            None => self.child.start_kill()?,
        }
        self.child.wait().await.map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ownership == Ownership::Owned {
            let _ = self.child.start_kill();
        }
    }
}

/// A process's descriptor is readable from its end on (pidfd_open(2)).
fn has_ended(process: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

fn excerpt(line: &[u8]) -> String {
    String::from_utf8_lossy(line).chars().take(200).collect()
}
