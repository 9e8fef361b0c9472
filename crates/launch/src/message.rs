//! One message on the socket between the two sides: JSON, with descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Longest message in bytes, orders included.
pub const MAX_MESSAGE: usize = 64 << 10;
/// Most descriptors that come with one message.
pub const MAX_DESCRIPTORS: usize = 160;

/// A message cannot go, or is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The socket failed.
    #[error("the control socket: {0}")]
    Socket(#[from] io::Error),
    /// More than [`MAX_MESSAGE`].
    #[error("a message of {0} bytes is longer than {MAX_MESSAGE}")]
    TooLong(usize),
    /// More than [`MAX_DESCRIPTORS`].
    #[error("{0} descriptors are more than the {MAX_DESCRIPTORS} that go with one message")]
    TooMany(usize),
    /// A part of it was lost: it was longer, or brought more descriptors, than is agreed.
    #[error("a message came incomplete")]
    Incomplete,
    /// It is not the JSON that is expected.
    #[error("a message cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// The other side has closed the socket.
    #[error("the other side is gone")]
    Closed,
}

/// What the owner tells a started program first.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Opening<T> {
    /// The process to die with.
    pub(crate) owner: Option<u32>,
    pub(crate) body: T,
}

/// A request or its answer. An answer that nobody waits for any more is told by its number.
#[derive(Serialize)]
struct Numbered<'a, T> {
    number: u64,
    body: &'a T,
}

#[derive(Deserialize)]
struct Unopened<'a> {
    number: u64,
    #[serde(borrow)]
    body: &'a RawValue,
}

pub(crate) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, MessageError> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(MessageError::TooLong(bytes.len()));
    }
    Ok(bytes)
}

pub(crate) fn encode_numbered<T: Serialize>(
    number: u64,
    body: &T,
) -> Result<Vec<u8>, MessageError> {
    encode(&Numbered { number, body })
}

/// The number, and the body where the number is what `wanted` says.
pub(crate) fn decode_numbered<T: DeserializeOwned>(
    bytes: &[u8],
    wanted: impl FnOnce(u64) -> bool,
) -> Result<Option<(u64, T)>, MessageError> {
    let Unopened { number, body } = serde_json::from_slice(bytes)?;
    if !wanted(number) {
        return Ok(None);
    }
    Ok(Some((number, serde_json::from_str(body.get())?)))
}

/// Sends one message whole, or fails; `WouldBlock` included.
pub(crate) fn send(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), MessageError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fits = descriptors.is_empty()
        || ancillary.push(SendAncillaryMessage::ScmRights(descriptors))
            && descriptors.len() <= MAX_DESCRIPTORS;
    if !fits {
        return Err(MessageError::TooMany(descriptors.len()));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
        .map_err(|error| MessageError::Socket(error.into()))?;
    Ok(())
}

/// Receives one message with its descriptors.
pub(crate) fn receive(socket: impl AsFd) -> Result<(Vec<u8>, Vec<OwnedFd>), MessageError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    receive_into(socket, &mut RecvAncillaryBuffer::new(&mut space))
}

/// Receives one message from whom no descriptors are taken.
#[cfg(feature = "host")]
pub(crate) fn receive_bare(socket: impl AsFd) -> Result<Vec<u8>, MessageError> {
    // Without a buffer for them, the kernel installs no descriptor and says that it did not.
    receive_into(socket, &mut RecvAncillaryBuffer::default()).map(|(bytes, _)| bytes)
}

fn receive_into(
    socket: impl AsFd,
    ancillary: &mut RecvAncillaryBuffer<'_>,
) -> Result<(Vec<u8>, Vec<OwnedFd>), MessageError> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let received =
        recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], ancillary, RecvFlags::CMSG_CLOEXEC)
            .map_err(|error| MessageError::Socket(error.into()))?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(MessageError::Incomplete);
    }
    if received.bytes == 0 {
        return Err(MessageError::Closed);
    }
    bytes.truncate(received.bytes);
    Ok((bytes, descriptors))
}
