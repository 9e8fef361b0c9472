//! Data between the guest's memory and sockets of the host, without a copy.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use libc::iovec;

use crate::virtio::buffers::{Buffers, MAX_BUFFERS};

/// Sends all of it, as far as the socket takes it now.
pub(super) fn send(socket: BorrowedFd<'_>, data: &Buffers<'_>) -> io::Result<usize> {
    let mut vectors = no_vectors();
    let message = message(data.io_vectors(&mut vectors));
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the message's vectors are mapped memory of the guest for as long as `data` lives, of
    // which there are no references, only volatile accesses: the guest may write it meanwhile.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives what the socket has now, as far as there is room for it.
pub(super) fn receive(socket: BorrowedFd<'_>, room: &Buffers<'_>) -> io::Result<usize> {
    let mut vectors = no_vectors();
    let mut message = message(room.io_vectors(&mut vectors));
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: as for sendmsg(2) above.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

fn no_vectors() -> [iovec; MAX_BUFFERS] {
    [iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MAX_BUFFERS]
}

fn message(vectors: &[iovec]) -> libc::msghdr {
    // SAFETY: all zeroes is a msghdr with neither address, vectors nor control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    // The kernel does not write the vectors themselves.
    message.msg_iov = vectors.as_ptr().cast_mut();
    message.msg_iovlen = vectors.len();
    message
}
