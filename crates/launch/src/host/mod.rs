//! The starting side.

mod control;
mod process;
mod usage;
mod words;

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::Serialize;
use tokio::process::Command;

use crate::message::{self, MessageError, Opening};

pub use control::Control;
pub use process::{End, Process};
pub use usage::Usage;

/// A program that confines itself, and how to start it.
#[derive(Debug, Clone)]
pub struct Launcher {
    /// The program, as a path. It should be given so that a replacement on disk does not
    /// matter: `/proc/self/exe`.
    pub program: PathBuf,
    /// What tells it what it is.
    pub arguments: Vec<String>,
}

/// Whose a started process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// The thread's that starts it: the process is told whom to die with, is killed when its
    /// [`Process`] is dropped, and does not hear the terminal's signals.
    ///
    /// A thread, not a process, because that is what the kernel's death signal goes by (prctl(2),
    /// `PR_SET_PDEATHSIG`): start it on one that stays.
    Owned,
    /// Nobody's: it goes on in a session of its own.
    Detached,
}

/// One start.
#[derive(Debug)]
pub struct Start<'a, T> {
    /// What the program is to do.
    pub orders: &'a T,
    /// What it does it with: at most [`MAX_DESCRIPTORS`](crate::MAX_DESCRIPTORS).
    pub descriptors: Vec<OwnedFd>,
    /// Whose it is.
    pub ownership: Ownership,
    /// Its words are shown on our own stderr as they come, and not only kept.
    pub shown: bool,
}

/// A process cannot be started, or not be heard.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The socket for its orders cannot be made.
    #[error("make a socket for its orders: {0}")]
    Socket(#[source] io::Error),
    /// The program did not start.
    #[error("start {program}: {source}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It could not be given its orders.
    #[error("give it its orders: {0}")]
    Orders(#[source] MessageError),
    /// Its reports cannot be received.
    #[error("hear its report: {0}")]
    Hear(#[source] io::Error),
    /// It says something else than was expected.
    #[error("it said {0:?}, which is no report")]
    NoReport(String),
    /// It is not the process that it says it is.
    #[error("process {0} is none of its own")]
    Stranger(u32),
}

impl Launcher {
    /// Starts the program with nothing but its orders: no environment, and of our descriptors
    /// only those given and the three streams. (What this process was itself started with is
    /// not ours to mark; the program closes it.) To be called where tokio runs.
    ///
    /// The child comes from posix_spawn(3), which copies no page tables and runs no code of ours
    /// between fork and exec: nothing here may be added that makes [`Command`] fork instead.
    ///
    /// # Errors
    /// `Socket`, `Spawn`, `Orders`; no process is left then.
    pub fn start<T: Serialize + Debug>(&self, start: Start<'_, T>) -> Result<Process, LaunchError> {
        let Start { orders, descriptors, ownership, shown } = start;
        let owned = ownership == Ownership::Owned;
        let opening = Opening { owner: owned.then(std::process::id), body: orders };
        let opening = message::encode(&opening).map_err(LaunchError::Orders)?;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|error| LaunchError::Socket(error.into()))?;
        // The orders wait in the socket for the program.
        let borrowed: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
        message::send(&ours, &opening, &borrowed).map_err(LaunchError::Orders)?;
        let control = Control::new(ours).map_err(LaunchError::Socket)?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .stdin(theirs)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(owned);
        if owned {
            // The terminal's Ctrl-C is for what runs inside. One that stays makes itself a
            // session instead.
            command.process_group(0);
        }
        let child = command
            .spawn()
            .map_err(|source| LaunchError::Spawn { program: self.program.clone(), source })?;
        Ok(Process::new(child, control, ownership, shown))
    }
}
