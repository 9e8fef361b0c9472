//! The process that tells the kernel, and whoever watches, of the host's changes. It may wait for locks
//! that tasks hold, and for answers that come through the agent.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fchmod, fstat, openat, openat2};
use wire::op::{MAX_FUSE, TOUCH};

use super::HEADER;

/// Takes one notice after another until the agent lets go of the socket.
pub(super) fn run(notices: &OwnedFd, device: &OwnedFd, mounted_at: &[u8]) {
    let mut buffer = vec![0; MAX_FUSE];
    loop {
        let notice = match rustix::io::read(notices, &mut *buffer) {
            Ok(0) => return,
            Ok(count) => &buffer[..count],
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
        };
        match notice.get(4..8).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes) {
            Some(TOUCH) => touch(mounted_at, &notice[HEADER.min(notice.len())..]),
            // The kernel refuses what it does not know of: there is nothing to tell then.
            _ => {
                let _ = rustix::io::write(device, notice);
            }
        }
    }
}

/// Sets permissions to what they are, which changes nothing and is told to whoever watches. By a
/// descriptor: a task may put a link to something else into the path at any time.
fn touch(mounted_at: &[u8], path: &[u8]) {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let top = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let _ = openat(CWD, mounted_at, top, Mode::empty()).and_then(|root| {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let found = openat2(&root, path, flags, Mode::empty(), resolve)?;
        let stat = fstat(&found)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::Directory => {
                fchmod(&found, Mode::from_raw_mode(stat.st_mode & 0o7777))
            }
            _ => Ok(()),
        }
    });
}
