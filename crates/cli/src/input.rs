//! Our stdin, for the command.

use std::io;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use rustix::stdio;
use tokio::sync::mpsc;

/// As much as a pipe holds.
const PIECE: usize = 64 << 10;

/// Whether stdin brings input without being asked to: a pipe, a socket or a file does, a terminal
/// and `/dev/null` do not.
pub(crate) fn is_fed() -> bool {
    let kind = fstat(stdio::stdin()).map(|stat| FileType::from_raw_mode(stat.st_mode));
    matches!(kind, Ok(FileType::Fifo | FileType::Socket | FileType::RegularFile))
}

/// Reads stdin from now on, in a thread that ends with the process: a read from a terminal cannot
/// be called off.
pub(crate) fn read() -> io::Result<mpsc::Receiver<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(1);
    thread::Builder::new().name("input".into()).spawn(move || {
        let mut buffer = vec![0; PIECE];
        // An error is an end: a closed stdin, or a terminal that has gone.
        while let Ok(count @ 1..) = read_some(&mut buffer) {
            if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

fn read_some(buffer: &mut [u8]) -> Result<usize, Errno> {
    let stdin = stdio::stdin();
    loop {
        match rustix::io::read(stdin, &mut *buffer) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::from_borrowed_fd(stdin, PollFlags::IN)], None)?;
            }
            other => return other,
        }
    }
}
