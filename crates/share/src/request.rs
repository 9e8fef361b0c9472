//! Requests as the guest's kernel writes them (`include/uapi/linux/fuse.h`, 7.31 and later), parsed
//! once into [`Request`]. Nothing in here is believed: lengths are those of the message, and names
//! are single components.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use rustix::io::Errno;

/// Most bytes that are read or written by one request.
pub const MAX_DATA: usize = 1 << 20;
/// Longest request: the bytes of a write behind their two headers, and room for the longest symbolic
/// link or pair of names.
pub const MAX_REQUEST: usize = MAX_DATA + 4096;
/// Bytes before a request's own.
pub const HEADER: usize = 40;
/// Longest name of a directory's entry (`NAME_MAX`).
const MAX_NAME: usize = 255;
/// Longest target of a symbolic link (`PATH_MAX`).
const MAX_TARGET: usize = 4096;

/// Who asks what of which node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the answer is to name; 0 is no request's.
    pub unique: u64,
    /// The node that it is about. Any number may stand here.
    pub node: u64,
}

/// One component of a path: not empty, no `/`, no NUL, neither `.` nor `..`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Component<'a>(&'a [u8]);

impl<'a> Component<'a> {
    /// Takes bytes that are one.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let is_one = !bytes.is_empty()
            && bytes.len() <= MAX_NAME
            && !bytes.contains(&b'/')
            && !bytes.contains(&0)
            && !matches!(bytes, b"." | b"..");
        is_one.then_some(Self(bytes))
    }

    /// Its bytes.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// As the system takes it.
    pub fn as_os_str(self) -> &'a OsStr {
        OsStr::from_bytes(self.0)
    }
}

/// What a guest asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the kernel's header, by its names")]
pub enum Request<'a> {
    /// The conversation begins.
    Init {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u64,
    },
    /// It ends.
    Destroy,
    Lookup {
        name: Component<'a>,
    },
    /// The guest gives up so many of its references to each node. Not answered.
    Forget(Forgets<'a>),
    /// It does not wait for an answer any more. Not answered.
    Interrupt,
    GetAttr {
        handle: Option<u64>,
    },
    SetAttr(SetAttr),
    ReadLink,
    Symlink {
        name: Component<'a>,
        target: &'a [u8],
    },
    MakeNode {
        name: Component<'a>,
        mode: u32,
    },
    MakeDirectory {
        name: Component<'a>,
        mode: u32,
    },
    Unlink {
        name: Component<'a>,
    },
    RemoveDirectory {
        name: Component<'a>,
    },
    Rename {
        name: Component<'a>,
        to: u64,
        new_name: Component<'a>,
        flags: u32,
    },
    Link {
        of: u64,
        name: Component<'a>,
    },
    Open {
        flags: u32,
    },
    OpenDirectory,
    Create {
        name: Component<'a>,
        flags: u32,
        mode: u32,
    },
    Read {
        handle: u64,
        offset: u64,
        size: u32,
    },
    Write {
        handle: u64,
        offset: u64,
        data: &'a [u8],
    },
    StatFs,
    Release {
        handle: u64,
    },
    ReleaseDirectory {
        handle: u64,
    },
    Sync {
        handle: u64,
        data_only: bool,
    },
    SyncDirectory {
        handle: u64,
    },
    ReadDirectory {
        handle: u64,
        offset: u64,
        size: u32,
        plus: bool,
    },
    Allocate {
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    },
    Seek {
        handle: u64,
        offset: u64,
        whence: u32,
    },
    CopyRange {
        from: u64,
        from_offset: u64,
        to_node: u64,
        to: u64,
        to_offset: u64,
        length: u64,
        flags: u64,
    },
}

/// What is to be set of a node, by the bits of `valid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the fields are those of the kernel's header, by its names")]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<Time>,
    pub mtime: Option<Time>,
    pub handle: Option<u64>,
}

/// A time that a guest sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// That of the host.
    Now,
    /// Seconds since 1970 and nanoseconds.
    At(i64, u32),
}

/// Nodes and counts, as many as their bytes hold: the count that the guest names is compared with that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forgets<'a>(ForgetsKind<'a>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ForgetsKind<'a> {
    One(u64, u64),
    Batch(&'a [u8]),
}

impl Forgets<'_> {
    /// Each node, and how many references to it are given up.
    pub fn each(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let (one, batch) = match self.0 {
            ForgetsKind::One(node, count) => (Some((node, count)), &[][..]),
            ForgetsKind::Batch(bytes) => (None, bytes),
        };
        let pair = |bytes: &[u8]| {
            let mut reader = Reader(bytes);
            Some((reader.u64().ok()?, reader.u64().ok()?))
        };
        one.into_iter().chain(batch.chunks_exact(16).filter_map(pair))
    }
}

/// Why a message is no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// It is too short to have a header, or says another length than it has. Nobody can be told.
    Header,
    /// The request that is so named gets this answer.
    Answer(u64, Errno),
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Errno> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, Errno> {
        self.take(4).map(|bytes| u32::from_ne_bytes(bytes.try_into().expect("four")))
    }

    fn u64(&mut self) -> Result<u64, Errno> {
        self.take(8).map(|bytes| u64::from_ne_bytes(bytes.try_into().expect("eight")))
    }

    fn text(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Errno::INVAL)?;
        let text = self.take(end)?;
        self.take(1)?;
        Ok(text)
    }

    fn name(&mut self) -> Result<Component<'a>, Errno> {
        let text = self.text()?;
        if text.len() > MAX_NAME {
            return Err(Errno::NAMETOOLONG);
        }
        Component::new(text).ok_or(Errno::INVAL)
    }

    /// Every byte has a meaning, or the message has none.
    fn end(self) -> Result<(), Errno> {
        if self.0.is_empty() { Ok(()) } else { Err(Errno::INVAL) }
    }
}

/// Numbers of the requests (`enum fuse_opcode`).
mod opcode {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const READLINK: u32 = 5;
    pub(super) const SYMLINK: u32 = 6;
    pub(super) const MKNOD: u32 = 8;
    pub(super) const MKDIR: u32 = 9;
    pub(super) const UNLINK: u32 = 10;
    pub(super) const RMDIR: u32 = 11;
    pub(super) const RENAME: u32 = 12;
    pub(super) const LINK: u32 = 13;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const STATFS: u32 = 17;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FSYNC: u32 = 20;
    pub(super) const INIT: u32 = 26;
    pub(super) const OPENDIR: u32 = 27;
    pub(super) const READDIR: u32 = 28;
    pub(super) const RELEASEDIR: u32 = 29;
    pub(super) const FSYNCDIR: u32 = 30;
    pub(super) const CREATE: u32 = 35;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const DESTROY: u32 = 38;
    pub(super) const BATCH_FORGET: u32 = 42;
    pub(super) const FALLOCATE: u32 = 43;
    pub(super) const READDIRPLUS: u32 = 44;
    pub(super) const RENAME2: u32 = 45;
    pub(super) const LSEEK: u32 = 46;
    pub(super) const COPY_FILE_RANGE: u32 = 47;
}

/// The length that a message says it has, from its first four bytes.
///
/// # Errors
/// `Header` where no request has that length.
pub fn length(start: [u8; 4]) -> Result<usize, Malformed> {
    let length = usize::try_from(u32::from_ne_bytes(start)).unwrap_or(usize::MAX);
    if (HEADER..=MAX_REQUEST).contains(&length) { Ok(length) } else { Err(Malformed::Header) }
}

/// The request in a message.
///
/// # Errors
/// `Answer` with `ENOSYS` where it is of a kind that is not served, with `EINVAL` or `ENAMETOOLONG`
/// where it does not have its kind's shape; `Header` where it cannot be answered.
pub fn parse(message: &[u8]) -> Result<(Header, Request<'_>), Malformed> {
    let mut reader = Reader(message);
    let header = |_| Malformed::Header;
    let announced = reader.u32().map_err(header)?;
    let opcode = reader.u32().map_err(header)?;
    let unique = reader.u64().map_err(header)?;
    let node = reader.u64().map_err(header)?;
    // uid, gid, pid, and extensions, which were not agreed on.
    reader.take(16).map_err(header)?;
    if usize::try_from(announced) != Ok(message.len()) || message.len() > MAX_REQUEST {
        return Err(Malformed::Header);
    }
    let is_unanswered = matches!(opcode, opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT);
    let request = body(opcode, node, reader).map_err(|error| match is_unanswered {
        true => Malformed::Header,
        false => Malformed::Answer(unique, error),
    })?;
    Ok((Header { unique, node }, request))
}

fn body(opcode: u32, node: u64, mut reader: Reader<'_>) -> Result<Request<'_>, Errno> {
    let it = &mut reader;
    let request = match opcode {
        opcode::LOOKUP => Request::Lookup { name: it.name()? },
        opcode::FORGET => Request::Forget(Forgets(ForgetsKind::One(node, it.u64()?))),
        opcode::BATCH_FORGET => {
            let count = usize::try_from(it.u32()?).map_err(|_| Errno::INVAL)?;
            it.u32()?;
            let length = count.checked_mul(16).ok_or(Errno::INVAL)?;
            Request::Forget(Forgets(ForgetsKind::Batch(it.take(length)?)))
        }
        opcode::GETATTR => {
            let flags = it.u32()?;
            it.u32()?;
            let handle = it.u64()?;
            Request::GetAttr { handle: (flags & 1 != 0).then_some(handle) }
        }
        opcode::SETATTR => Request::SetAttr(set_attr(it)?),
        opcode::READLINK => Request::ReadLink,
        opcode::SYMLINK => {
            let name = it.name()?;
            let target = it.text()?;
            match target.len() {
                0 => return Err(Errno::NOENT),
                1..MAX_TARGET => Request::Symlink { name, target },
                _ => return Err(Errno::NAMETOOLONG),
            }
        }
        opcode::MKNOD => {
            let mode = it.u32()?;
            it.take(12)?;
            Request::MakeNode { name: it.name()?, mode }
        }
        opcode::MKDIR => {
            let mode = it.u32()?;
            it.u32()?;
            Request::MakeDirectory { name: it.name()?, mode }
        }
        opcode::UNLINK => Request::Unlink { name: it.name()? },
        opcode::RMDIR => Request::RemoveDirectory { name: it.name()? },
        opcode::RENAME => {
            let to = it.u64()?;
            Request::Rename { name: it.name()?, to, new_name: it.name()?, flags: 0 }
        }
        opcode::RENAME2 => {
            let (to, flags) = (it.u64()?, it.u32()?);
            it.u32()?;
            Request::Rename { name: it.name()?, to, new_name: it.name()?, flags }
        }
        opcode::LINK => Request::Link { of: it.u64()?, name: it.name()? },
        opcode::OPEN | opcode::OPENDIR => {
            let flags = it.u32()?;
            it.u32()?;
            match opcode {
                opcode::OPEN => Request::Open { flags },
                _ => Request::OpenDirectory,
            }
        }
        opcode::CREATE => {
            let (flags, mode) = (it.u32()?, it.u32()?);
            it.take(8)?;
            Request::Create { name: it.name()?, flags, mode }
        }
        opcode::READ | opcode::READDIR | opcode::READDIRPLUS => {
            let (handle, offset, size) = (it.u64()?, it.u64()?, it.u32()?);
            it.take(20)?;
            if usize::try_from(size).map_or(true, |size| size > MAX_DATA) {
                return Err(Errno::INVAL);
            }
            let plus = opcode == opcode::READDIRPLUS;
            match opcode {
                opcode::READ => Request::Read { handle, offset, size },
                _ => Request::ReadDirectory { handle, offset, size, plus },
            }
        }
        opcode::WRITE => {
            let (handle, offset, size) = (it.u64()?, it.u64()?, it.u32()?);
            it.take(20)?;
            let data = it.take(usize::try_from(size).map_err(|_| Errno::INVAL)?)?;
            Request::Write { handle, offset, data }
        }
        opcode::STATFS => Request::StatFs,
        opcode::RELEASE | opcode::RELEASEDIR => {
            let handle = it.u64()?;
            it.take(16)?;
            match opcode {
                opcode::RELEASE => Request::Release { handle },
                _ => Request::ReleaseDirectory { handle },
            }
        }
        opcode::FSYNC | opcode::FSYNCDIR => {
            let (handle, flags) = (it.u64()?, it.u32()?);
            it.u32()?;
            match opcode {
                opcode::FSYNC => Request::Sync { handle, data_only: flags & 1 != 0 },
                _ => Request::SyncDirectory { handle },
            }
        }
        opcode::INIT => {
            let (major, minor, max_readahead, low) = (it.u32()?, it.u32()?, it.u32()?, it.u32()?);
            let mut flags = u64::from(low);
            if !it.0.is_empty() {
                flags |= u64::from(it.u32()?) << 32;
                it.0 = &[];
            }
            Request::Init { major, minor, max_readahead, flags }
        }
        opcode::DESTROY => Request::Destroy,
        opcode::INTERRUPT => {
            it.u64()?;
            Request::Interrupt
        }
        opcode::FALLOCATE => {
            let (handle, offset, length, mode) = (it.u64()?, it.u64()?, it.u64()?, it.u32()?);
            it.u32()?;
            Request::Allocate { handle, offset, length, mode }
        }
        opcode::LSEEK => {
            let (handle, offset, whence) = (it.u64()?, it.u64()?, it.u32()?);
            it.u32()?;
            Request::Seek { handle, offset, whence }
        }
        opcode::COPY_FILE_RANGE => Request::CopyRange {
            from: it.u64()?,
            from_offset: it.u64()?,
            to_node: it.u64()?,
            to: it.u64()?,
            to_offset: it.u64()?,
            length: it.u64()?,
            flags: it.u64()?,
        },
        _ => return Err(Errno::NOSYS),
    };
    reader.end()?;
    Ok(request)
}

fn set_attr(it: &mut Reader<'_>) -> Result<SetAttr, Errno> {
    let valid = it.u32()?;
    it.u32()?;
    let (handle, size) = (it.u64()?, it.u64()?);
    it.u64()?;
    let (atime, mtime) = (it.u64()?, it.u64()?);
    it.u64()?;
    let (atime_nsec, mtime_nsec) = (it.u32()?, it.u32()?);
    it.u32()?;
    let mode = it.u32()?;
    it.u32()?;
    let (uid, gid) = (it.u32()?, it.u32()?);
    it.u32()?;
    let given = |bit: u32| valid & (1 << bit) != 0;
    let time = |set: u32, now: u32, seconds: u64, nanoseconds: u32| match (given(set), given(now)) {
        (false, _) => Ok(None),
        (true, true) => Ok(Some(Time::Now)),
        (true, false) if nanoseconds >= 1_000_000_000 => Err(Errno::INVAL),
        // The kernel's own conversion: times before 1970 are large numbers.
        (true, false) => Ok(Some(Time::At(seconds.cast_signed(), nanoseconds))),
    };
    Ok(SetAttr {
        mode: given(0).then_some(mode),
        uid: given(1).then_some(uid),
        gid: given(2).then_some(gid),
        size: given(3).then_some(size),
        atime: time(4, 7, atime, atime_nsec)?,
        mtime: time(5, 8, mtime, mtime_nsec)?,
        handle: given(6).then_some(handle),
    })
}
