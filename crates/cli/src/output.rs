//! Where a command's output goes: our own stdout and stderr, or memory.

use std::io;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::{stdio, termios};
use tokio::sync::{mpsc, oneshot};

use crate::filter::Filter;

/// Pieces that wait for a slow reader; more wait in the guest.
const AHEAD: usize = 4;

/// One of the command's two outputs.
#[derive(Debug)]
pub(crate) enum Sink {
    /// Written as it comes.
    Stream(Stream),
    /// Kept.
    Capture(Capture),
}

impl Sink {
    /// Hands over a piece; waits while the reader is slow.
    pub(crate) async fn write(&mut self, piece: Vec<u8>) -> io::Result<()> {
        match self {
            Self::Stream(stream) => stream.write(piece).await,
            Self::Capture(capture) => {
                capture.write(&piece);
                Ok(())
            }
        }
    }

    /// Waits until all is written.
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Stream(stream) => stream.finish().await,
            Self::Capture(_) => Ok(()),
        }
    }
}

/// Output to a descriptor of ours. A thread writes it: a descriptor that blocks must not keep us
/// from the user's signals.
#[derive(Debug)]
pub(crate) struct Stream {
    pieces: Option<mpsc::Sender<Vec<u8>>>,
    written: Option<oneshot::Receiver<io::Result<()>>>,
}

impl Stream {
    /// To our stdout; see [`Self::new`].
    pub(crate) fn stdout(trusted: bool) -> io::Result<Self> {
        Self::new(stdio::stdout(), trusted)
    }

    /// To our stderr; see [`Self::new`].
    pub(crate) fn stderr(trusted: bool) -> io::Result<Self> {
        Self::new(stdio::stderr(), trusted)
    }

    /// A terminal is shielded from the bytes unless they are `trusted`, as those of a command
    /// are that was given the terminal. Pipes and files get every byte.
    fn new(fd: BorrowedFd<'static>, trusted: bool) -> io::Result<Self> {
        let filter = (!trusted && termios::isatty(fd)).then(Filter::for_output);
        let (pieces, receiver) = mpsc::channel(AHEAD);
        let (sender, written) = oneshot::channel();
        thread::Builder::new().name("output".into()).spawn(move || {
            // Nobody waits any more where the command was given up.
            let _ = sender.send(write_pieces(fd, filter, receiver));
        })?;
        Ok(Self { pieces: Some(pieces), written: Some(written) })
    }

    /// Hands over a piece; waits while the reader is slow.
    pub(crate) async fn write(&mut self, piece: Vec<u8>) -> io::Result<()> {
        if let Some(pieces) = &self.pieces
            && pieces.send(piece).await.is_ok()
        {
            return Ok(());
        }
        self.finish().await
    }

    /// Waits until all is written.
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        self.pieces = None;
        match self.written.take() {
            Some(written) => written.await.unwrap_or_else(|_| Err(io::Error::other("gone"))),
            None => Ok(()),
        }
    }
}

fn write_pieces(
    fd: BorrowedFd<'_>,
    mut filter: Option<Filter>,
    mut pieces: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    let mut shown = Vec::new();
    while let Some(piece) = pieces.blocking_recv() {
        match &mut filter {
            None => write_all(fd, &piece)?,
            Some(filter) => {
                shown.clear();
                filter.push(&piece, &mut shown);
                write_all(fd, &shown)?;
            }
        }
    }
    shown.clear();
    if let Some(filter) = &mut filter {
        filter.finish(&mut shown);
    }
    write_all(fd, &shown)
}

/// Unlike std's, takes a descriptor that another program sharing it made non-blocking.
fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether writing failed because nobody reads any more: a pipe's reader has gone, or the
/// terminal has.
pub(crate) fn is_closed(error: &io::Error) -> bool {
    let gone = [Errno::PIPE, Errno::IO, Errno::CONNRESET];
    Errno::from_io_error(error).is_some_and(|errno| gone.contains(&errno))
}

/// Output that is kept, up to a limit.
#[derive(Debug)]
pub(crate) struct Capture {
    kept: Vec<u8>,
    limit: usize,
    total: u64,
}

impl Capture {
    pub(crate) fn new(limit: usize) -> Self {
        Self { kept: Vec::new(), limit, total: 0 }
    }

    fn write(&mut self, piece: &[u8]) {
        let room = self.limit - self.kept.len();
        self.kept.extend_from_slice(&piece[..room.min(piece.len())]);
        self.total += piece.len() as u64;
    }

    /// The first bytes, and how many there were in all.
    pub(crate) fn into_parts(self) -> (Vec<u8>, u64) {
        (self.kept, self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_keeps_the_beginning_and_counts_the_rest() {
        let mut capture = Capture::new(5);
        capture.write(b"abc");
        capture.write(b"def");
        capture.write(b"g");
        assert_eq!(capture.into_parts(), (b"abcde".to_vec(), 7));
    }
}
