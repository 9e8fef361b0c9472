//! Connections of guests.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wire::op::{ErrorCode, OpError};

/// A connection that a guest opened.
pub trait GuestStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// Ends it as refused: the guest sees a reset. `why` is for logs of the carrier.
    fn refuse(self: Box<Self>, why: String);
}

impl GuestStream for link::GuestStream {
    fn refuse(self: Box<Self>, why: String) {
        (*self).refuse(&OpError::new(ErrorCode::PermissionDenied, why));
    }
}

impl GuestStream for TokioIo<Upgraded> {
    fn refuse(self: Box<Self>, _why: String) {}
}

impl GuestStream for tokio::io::DuplexStream {
    fn refuse(self: Box<Self>, _why: String) {}
}

impl GuestStream for tokio::net::TcpStream {
    fn refuse(self: Box<Self>, _why: String) {
        self.set_zero_linger().ok();
    }
}

/// A stream whose first bytes were read already, and which remembers what is read until it is known
/// who wants it.
pub(crate) struct Replay<S> {
    inner: S,
    read: Vec<u8>,
    at: usize,
    remembers: bool,
}

impl<S> Replay<S> {
    pub(crate) fn new(inner: S, read: Vec<u8>) -> Self {
        Self { inner, read, at: 0, remembers: true }
    }

    /// The stream, and all that was read of it.
    pub(crate) fn into_parts(self) -> (S, Vec<u8>) {
        (self.inner, self.read)
    }

    /// What was read is not asked for again.
    pub(crate) fn forget(&mut self) {
        self.remembers = false;
        self.read.drain(..self.at);
        self.at = 0;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replay<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.at < this.read.len() {
            let count = out.remaining().min(this.read.len() - this.at);
            out.put_slice(&this.read[this.at..this.at + count]);
            this.at += count;
            return Poll::Ready(Ok(()));
        }
        let before = out.filled().len();
        std::task::ready!(Pin::new(&mut this.inner).poll_read(context, out))?;
        if this.remembers {
            this.read.extend_from_slice(&out.filled()[before..]);
            this.at = this.read.len();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replay<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
