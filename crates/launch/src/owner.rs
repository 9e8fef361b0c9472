//! The started side.

use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::message::{self, MessageError, Opening};

/// The process that started this one, as far as it can be reached.
#[derive(Debug)]
pub struct Owner {
    control: OwnedFd,
    reports: std::fs::File,
}

/// What a program was started for.
#[derive(Debug)]
pub struct Orders<T> {
    /// What to do.
    pub body: T,
    /// What to do it with; they are closed by an exec.
    pub descriptors: Vec<OwnedFd>,
    /// The process to die with, where there is one.
    pub owner: Option<u32>,
}

/// One thing that the owner asks for. The next can be taken only after its answer.
#[derive(Debug)]
pub struct Request<T> {
    /// What is asked.
    pub body: T,
    /// What came with it.
    pub descriptors: Vec<OwnedFd>,
    /// For the answer.
    pub ticket: Ticket,
}

/// The right to answer one request.
#[derive(Debug)]
#[must_use = "the owner waits for an answer"]
pub struct Ticket(u64);

impl Ticket {
    /// Answers the request.
    ///
    /// # Errors
    /// `Answer`.
    pub fn answer<T: Serialize>(self, owner: &Owner, answer: &T) -> Result<(), OwnerError> {
        message::encode_numbered(self.0, answer)
            .and_then(|bytes| message::send(owner, &bytes, &[]))
            .map_err(OwnerError::Answer)
    }
}

/// The owner cannot be heard or told.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// A standard stream cannot be taken.
    #[error("take the streams of the owner: {0}")]
    Streams(#[source] io::Error),
    /// The orders did not come.
    #[error("receive orders: {0}")]
    Orders(#[source] MessageError),
    /// No session could be made for a process that stays.
    #[error("start a session: {0}")]
    Session(#[source] io::Error),
    /// A request did not come.
    #[error("receive a request: {0}")]
    Request(#[source] MessageError),
    /// An answer did not go.
    #[error("answer the owner: {0}")]
    Answer(#[source] MessageError),
    /// A report did not go.
    #[error("report to the owner: {0}")]
    Report(#[source] io::Error),
}

impl Owner {
    /// Takes standard input and output, which are the owner's, and leaves `/dev/null` there.
    ///
    /// # Errors
    /// `Streams`.
    pub fn take() -> Result<Self, OwnerError> {
        take_streams().map_err(|error| OwnerError::Streams(error.into()))
    }

    /// Waits for the orders, which come first and once. A program that has no owner to die with
    /// leaves the owner's session here, so that no terminal's signals reach it.
    ///
    /// # Errors
    /// `Orders`, `Session`.
    pub fn orders<T: DeserializeOwned>(&self) -> Result<Orders<T>, OwnerError> {
        let (bytes, descriptors) = message::receive(&self.control).map_err(OwnerError::Orders)?;
        let Opening { owner, body } = serde_json::from_slice(&bytes)
            .map_err(|error| OwnerError::Orders(MessageError::Unreadable(error)))?;
        if owner.is_none() {
            rustix::process::setsid().map_err(|error| OwnerError::Session(error.into()))?;
        }
        Ok(Orders { body, descriptors, owner })
    }

    /// Says something, in one line.
    ///
    /// # Errors
    /// `Report`.
    pub fn report<T: Serialize>(&self, report: &T) -> Result<(), OwnerError> {
        let mut line =
            message::encode(report).map_err(|error| OwnerError::Report(io::Error::other(error)))?;
        line.push(b'\n');
        (&self.reports).write_all(&line).map_err(OwnerError::Report)
    }

    /// Waits for the next request; `None` where the owner is gone or wants nothing more. It
    /// does not block once this, as a descriptor, polls readable.
    ///
    /// # Errors
    /// `Request`.
    pub fn request<T: DeserializeOwned>(&mut self) -> Result<Option<Request<T>>, OwnerError> {
        let (bytes, descriptors) = match message::receive(&self.control) {
            Ok(received) => received,
            Err(MessageError::Closed) => return Ok(None),
            Err(error) => return Err(OwnerError::Request(error)),
        };
        let decoded = message::decode_numbered(&bytes, |_| true).map_err(OwnerError::Request)?;
        Ok(decoded.map(|(number, body)| Request { body, descriptors, ticket: Ticket(number) }))
    }

    /// The descriptors that must stay open for all of this to work.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.control.as_fd(), self.reports.as_fd()]
    }
}

/// The control socket, to be polled.
impl AsFd for Owner {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }
}

fn take_streams() -> rustix::io::Result<Owner> {
    use rustix::stdio::{dup2_stdin, dup2_stdout, stdin, stdout};
    let control = rustix::io::fcntl_dupfd_cloexec(stdin(), 3)?;
    let reports = rustix::io::fcntl_dupfd_cloexec(stdout(), 3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    Ok(Owner { control, reports: reports.into() })
}
