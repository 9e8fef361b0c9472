//! Asking a running process.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram as StdSocket;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use crate::message::{self, MessageError};

/// The line to a started process. Its other end is [`Owner`](crate::Owner).
#[derive(Debug)]
pub struct Control {
    /// A `SOCK_SEQPACKET` socket, in the type of tokio's that keeps messages apart as it does.
    socket: UnixDatagram,
    asked: u64,
}

impl Control {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = StdSocket::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Self { socket: UnixDatagram::from_std(socket)?, asked: 0 })
    }

    /// Asks, with descriptors, and waits for the answer. Where this is dropped before, the late
    /// answer is not taken for that of the next question.
    ///
    /// # Errors
    /// `MessageError`; after `Unreadable` and `Incomplete` the process is not one to go on with.
    pub async fn ask<Q, A>(
        &mut self,
        request: &Q,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<A, MessageError>
    where
        Q: Serialize,
        A: DeserializeOwned,
    {
        self.asked += 1;
        let asked = self.asked;
        let bytes = message::encode_numbered(asked, request)?;
        let socket = self.socket.as_fd();
        self.once_ready(Interest::WRITABLE, || message::send(socket, &bytes, descriptors)).await?;
        loop {
            let receive = || message::receive_bare(socket);
            let bytes = self.once_ready(Interest::READABLE, receive).await?;
            let answer = message::decode_numbered(&bytes, |number| number == asked)?;
            if let Some((_, answer)) = answer {
                return Ok(answer);
            }
        }
    }

    async fn once_ready<T>(
        &self,
        interest: Interest,
        mut attempt: impl FnMut() -> Result<T, MessageError>,
    ) -> Result<T, MessageError> {
        let attempt = || match attempt() {
            Err(MessageError::Socket(error)) => Err(error),
            other => Ok(other),
        };
        self.socket.async_io(interest, attempt).await?
    }
}
