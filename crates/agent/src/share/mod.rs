//! Directories of the host: file systems whose every answer comes over the wire.
//!
//! The kernel's requests are read from `/dev/fuse` and go to the host as they are, on the stream of the
//! operation that mounted; what the host answers is written back. The agent understands nothing of
//! either but lengths. Answers never wait. Notices may, for a lock that a task holds until it has an
//! answer, so a process of their own ([`notify`]) writes them.

pub(crate) mod mount;
mod notify;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event as Wakeup, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use wire::connection::{Connection, Event, cancelled};
use wire::frame::{MAX_DATA, StreamId};
use wire::op::{Done, ErrorCode, MAX_FUSE, MountWorkspace, OpError};

use crate::Kernel;
use crate::task::{Attendant, Sandbox};

/// Directories that are shared at once.
const MOST: usize = 16;
/// Requests that are passed on before others get their turn.
const TURN: usize = 64;
/// Notices that wait. Those beyond are lost: the guest then learns a while later.
const MOST_NOTICES: usize = 4096;
/// Bytes of an answer's header, and where in it the number of its request is.
const HEADER: usize = 16;

/// All directories of the host.
#[derive(Debug)]
pub(crate) struct Shares {
    epoll: OwnedFd,
    mounts: BTreeMap<StreamId, Mount>,
}

#[derive(Debug)]
struct Mount {
    path: Vec<u8>,
    device: OwnedFd,
    /// A request that the stream had no room for, and how much of it went.
    out: Vec<u8>,
    sent: usize,
    /// The start of an answer.
    inbox: Vec<u8>,
    /// To the process that writes notices.
    notices: OwnedFd,
    waiting: VecDeque<Vec<u8>>,
    is_watched: bool,
    attendant: Option<Attendant>,
}

impl AsFd for Shares {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// What an event of the watch is about: the lowest bit of its number.
fn token(stream: StreamId, is_notices: bool) -> EventData {
    EventData::new_u64(u64::from(stream) << 1 | u64::from(is_notices))
}

impl Shares {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, mounts: BTreeMap::new() })
    }

    /// Mounts a directory, whose messages go over this stream.
    ///
    /// # Errors
    /// `Unsupported` on the host's kernel; otherwise with the step that failed.
    pub(crate) fn mount(
        &mut self,
        stream: StreamId,
        request: &MountWorkspace,
        sandbox: &mut Sandbox,
    ) -> Result<(), OpError> {
        if sandbox.kernel() == Kernel::Shared {
            let message = "a directory can be shared live only with a sandbox that has a kernel of \
                           its own, which this one has not";
            return Err(OpError::new(ErrorCode::Unsupported, message));
        }
        if self.mounts.len() >= MOST {
            let message = format!("{MOST} directories are shared live already");
            return Err(OpError::new(ErrorCode::TooMany, message));
        }
        let path = mount::Target::parse(request.path.as_bytes())?;
        // The agent would wait for itself if it looked for one directory inside of another.
        if self.mounts.values().any(|other| path.touches(&other.path)) {
            let message = "a directory that is shared live lies there already";
            return Err(OpError::new(ErrorCode::Exists, message));
        }
        let mount::Mounted { device, notices, attendant } =
            mount::mount(&path, request.read_only, sandbox)?;
        let mount = Mount::new(path.into_bytes(), device, notices, Some(attendant));
        let watch = epoll::add(
            &self.epoll,
            &mount.notices,
            token(stream, true),
            EventFlags::OUT | EventFlags::ET,
        );
        self.mounts.insert(stream, mount);
        watch.map_err(|error| {
            self.end(stream, sandbox);
            OpError::new(ErrorCode::Exhausted, format!("watch a shared directory: {error}"))
        })
    }

    /// Moves what can be moved.
    pub(crate) fn work(&mut self, connection: Option<&mut Connection>, sandbox: &mut Sandbox) {
        let Some(connection) = connection else { return };
        let mut events: Vec<Wakeup> = Vec::with_capacity(2 * MOST);
        let spare = rustix::buffer::spare_capacity(&mut events);
        if epoll::wait(&self.epoll, spare, Some(&Timespec::default())).is_err() {
            return;
        }
        for event in events {
            let number = event.data.u64();
            let Ok(stream) = StreamId::try_from(number >> 1) else { continue };
            if number & 1 == 1 {
                if let Some(mount) = self.mounts.get_mut(&stream) {
                    mount.notify();
                }
            } else {
                self.pull(stream, connection, sandbox);
            }
        }
        let fresh: Vec<_> =
            self.mounts.iter().filter(|(_, mount)| !mount.is_watched).map(|(id, _)| *id).collect();
        for stream in fresh {
            self.pull(stream, connection, sandbox);
        }
    }

    /// From the kernel to the stream.
    fn pull(&mut self, stream: StreamId, connection: &mut Connection, sandbox: &mut Sandbox) {
        let Some(mount) = self.mounts.get_mut(&stream) else { return };
        match mount.pull(stream, connection) {
            Ok(wanted) if wanted != mount.is_watched => {
                let changed = match wanted {
                    true => {
                        epoll::add(&self.epoll, &mount.device, token(stream, false), EventFlags::IN)
                    }
                    false => epoll::delete(&self.epoll, &mount.device),
                };
                mount.is_watched = wanted;
                if changed.is_err() {
                    // Nothing would wake it again.
                    connection.reset(stream, &cancelled());
                    self.end(stream, sandbox);
                }
            }
            Ok(_) => {}
            Err(error) => {
                let message = format!("the shared directory is not served any more: {error}");
                connection.reset(stream, &OpError::new(ErrorCode::Failed, message));
                self.end(stream, sandbox);
            }
        }
    }

    /// Takes an event that is about one of its streams, and gives back any other.
    pub(crate) fn take(
        &mut self,
        event: Event,
        connection: &mut Connection,
        sandbox: &mut Sandbox,
    ) -> Option<Event> {
        let Some(id) = event.stream() else { return Some(event) };
        let Some(mount) = self.mounts.get_mut(&id) else { return Some(event) };
        match event {
            Event::Data(_, bytes) => {
                let taken = mount.answer(&bytes);
                connection.consumed(id, bytes.len());
                if let Err(error) = taken {
                    connection.reset(id, &error);
                    self.end(id, sandbox);
                }
            }
            Event::Writable(_) => self.pull(id, connection, sandbox),
            Event::Closed(..) => {
                self.end(id, sandbox);
                let done = serde_json::to_vec(&Done {}).expect("a reply is plain JSON");
                connection.close(id, done);
            }
            _ => self.end(id, sandbox),
        }
        None
    }

    /// Unmounts one. What tasks have under way with it fails, as does what they still try: those that
    /// run keep the mount in their sight.
    fn end(&mut self, stream: StreamId, sandbox: &mut Sandbox) {
        let Some(mut mount) = self.mounts.remove(&stream) else { return };
        mount::unmount(&mount.path, sandbox);
        // By now nothing that it does can wait for an answer.
        mount.attendant = None;
    }

    /// The host is gone, or the machine ends: nothing is to wait for answers any more.
    pub(crate) fn end_all(&mut self, sandbox: &mut Sandbox) {
        while let Some(stream) = self.mounts.keys().next().copied() {
            self.end(stream, sandbox);
        }
    }
}

impl Mount {
    fn new(path: Vec<u8>, device: OwnedFd, notices: OwnedFd, attendant: Option<Attendant>) -> Self {
        Self {
            path,
            device,
            out: Vec::new(),
            sent: 0,
            inbox: Vec::new(),
            notices,
            waiting: VecDeque::new(),
            is_watched: false,
            attendant,
        }
    }

    /// Whether the device is to be watched for more.
    fn pull(&mut self, stream: StreamId, connection: &mut Connection) -> Result<bool, Errno> {
        for _ in 0..TURN {
            while self.sent < self.out.len() {
                let room = connection.room(stream).min(MAX_DATA).min(self.out.len() - self.sent);
                if room == 0 {
                    return Ok(false);
                }
                connection.send(stream, self.out[self.sent..self.sent + room].to_vec());
                self.sent += room;
            }
            self.sent = 0;
            self.out.clear();
            self.out.reserve(MAX_FUSE);
            let spare = rustix::buffer::spare_capacity(&mut self.out);
            match rustix::io::read(&self.device, spare) {
                Ok(_) => {}
                // NOENT: whoever asked gave up meanwhile.
                Err(Errno::INTR | Errno::NOENT) => {}
                Err(Errno::AGAIN) => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// From the stream to the kernel.
    fn answer(&mut self, bytes: &[u8]) -> Result<(), OpError> {
        if self.inbox.is_empty() {
            let rest = self.complete(bytes)?;
            self.inbox.extend_from_slice(&bytes[bytes.len() - rest..]);
            return Ok(());
        }
        let mut inbox = std::mem::take(&mut self.inbox);
        inbox.extend_from_slice(bytes);
        let rest = self.complete(&inbox)?;
        inbox.drain(..inbox.len() - rest);
        self.inbox = inbox;
        Ok(())
    }

    /// Passes on the messages that are complete, and says how many bytes are left.
    fn complete(&mut self, mut bytes: &[u8]) -> Result<usize, OpError> {
        while let Some(start) = bytes.first_chunk::<4>() {
            let length = usize::try_from(u32::from_ne_bytes(*start)).unwrap_or(usize::MAX);
            if !(HEADER..=MAX_FUSE).contains(&length) {
                let message = format!("an answer of {length} bytes about a shared directory");
                return Err(OpError::new(ErrorCode::Invalid, message));
            }
            let Some((message, rest)) = bytes.split_at_checked(length) else { break };
            if message[8..HEADER] == [0; 8] {
                if self.waiting.len() < MOST_NOTICES {
                    self.waiting.push_back(message.to_vec());
                }
                self.notify();
            } else {
                // A refusal is of an answer that nobody waits for any more.
                let _ = rustix::io::write(&self.device, message);
            }
            bytes = rest;
        }
        Ok(bytes.len())
    }

    fn notify(&mut self) {
        while let Some(notice) = self.waiting.front() {
            match send(&self.notices, notice, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Err(Errno::AGAIN | Errno::NOBUFS) => return,
                _ => {
                    self.waiting.pop_front();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, memfd_create};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use wire::connection::Side;

    use super::*;

    /// With a file in the device's place, which takes what the kernel would.
    fn mount() -> (Mount, OwnedFd) {
        let (notices, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        let device = memfd_create("device", MemfdFlags::CLOEXEC).unwrap();
        (Mount::new(b"/workspace".to_vec(), device, notices, None), theirs)
    }

    fn message(unique: u64, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + body.len()).unwrap();
        [&length.to_ne_bytes()[..], &[0; 4], &unique.to_ne_bytes(), body].concat()
    }

    #[test]
    fn answers_are_written_whole_however_they_come() {
        let (mut mount, _theirs) = mount();
        let all = [message(1, b"one"), message(2, b""), message(3, &[7; 1000])].concat();
        for byte in all.chunks(7) {
            mount.answer(byte).unwrap();
        }
        let mut written = vec![0; all.len() + 1];
        let count = rustix::io::pread(&mount.device, &mut written, 0).unwrap();
        assert_eq!(&written[..count], &all);
        assert!(mount.inbox.is_empty());
    }

    #[test]
    fn a_notice_goes_to_the_process_that_may_wait() {
        let (mut mount, theirs) = mount();
        let notice = message(0, b"entry");
        mount.answer(&notice).unwrap();
        let mut received = [0; 64];
        let count = rustix::io::read(&theirs, &mut received).unwrap();
        assert_eq!(&received[..count], &notice);
        assert_eq!(rustix::io::pread(&mount.device, &mut received, 0), Ok(0));
    }

    #[test]
    fn a_length_that_no_answer_has_ends_it() {
        let (mut mount, _theirs) = mount();
        for length in [0, 15, u32::MAX] {
            assert!(mount.answer(&length.to_ne_bytes()).is_err());
        }
    }

    #[test]
    fn a_request_that_is_longer_than_the_window_waits_for_room() {
        let (mut mount, _theirs) = mount();
        let mut agent = Connection::new(Side::Agent, b"{}".to_vec());
        let stream = agent.open(zeroize::Zeroizing::default()).unwrap();
        let request = vec![5; wire::connection::WINDOW + 10];
        rustix::io::pwrite(&mount.device, &request, 0).unwrap();
        assert_eq!(mount.pull(stream, &mut agent), Ok(false));
        assert_eq!(mount.sent, wire::connection::WINDOW);
        assert_eq!(mount.out.len(), request.len());
    }
}
