//! What is written to the guest: answers and notices, as its kernel reads them.

use std::time::Duration;

use rustix::fs::{FileType, Stat, StatVfs};
use rustix::io::Errno;

use crate::owner::Owner;

/// Bytes before an answer's own.
pub(crate) const HEADER: usize = 16;

/// A message under way.
#[derive(Debug)]
pub(crate) struct Message(Vec<u8>);

/// What a guest is told of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) inode: u64,
    size: u64,
    blocks: u64,
    times: [(u64, u32); 3],
    mode: u32,
    links: u32,
    uid: u32,
    gid: u32,
}

/// All bits of a mode that a guest may see or set.
pub(crate) const PERMISSIONS: u32 = 0o777;

impl Attributes {
    pub(crate) fn of(stat: &Stat, owner: &Owner) -> Self {
        let kind = FileType::from_raw_mode(stat.st_mode).as_raw_mode();
        let (uid, gid) = owner.in_guest(stat.st_uid, stat.st_gid);
        let nanoseconds = |value: u64| u32::try_from(value).unwrap_or(0);
        Self {
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
            times: [
                (stat.st_atime.cast_unsigned(), nanoseconds(stat.st_atime_nsec)),
                (stat.st_mtime.cast_unsigned(), nanoseconds(stat.st_mtime_nsec)),
                (stat.st_ctime.cast_unsigned(), nanoseconds(stat.st_ctime_nsec)),
            ],
            mode: kind | (stat.st_mode & PERMISSIONS),
            links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            uid,
            gid,
        }
    }

    /// Of what is there and must not be seen: an empty file or an empty directory, for nobody to
    /// write.
    pub(crate) fn masked(node: u64, is_directory: bool, owner: &Owner) -> Self {
        let mode = match is_directory {
            true => FileType::Directory.as_raw_mode() | 0o555,
            false => FileType::RegularFile.as_raw_mode() | 0o444,
        };
        let (uid, gid) = owner.first();
        Self {
            // Far from the numbers that file systems give.
            inode: 1 << 63 | node,
            size: 0,
            blocks: 0,
            times: [(0, 0); 3],
            mode,
            links: if is_directory { 2 } else { 1 },
            uid,
            gid,
        }
    }
}

impl Message {
    fn start(room: usize) -> Self {
        let mut bytes = Vec::with_capacity(HEADER + room);
        bytes.resize(HEADER, 0);
        Self(bytes)
    }

    /// An answer that succeeds, with room for so many bytes.
    pub(crate) fn new(room: usize) -> Self {
        Self::start(room)
    }

    /// Its number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.0.len() - HEADER
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// The buffer, behind what is written.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }

    pub(crate) fn attributes(&mut self, of: &Attributes) -> &mut Self {
        self.u64(of.inode).u64(of.size).u64(of.blocks);
        for (seconds, _) in of.times {
            self.u64(seconds);
        }
        for (_, nanoseconds) in of.times {
            self.u32(nanoseconds);
        }
        // No device number, the kernel's own size of a block, no flags.
        self.u32(of.mode).u32(of.links).u32(of.uid).u32(of.gid).u32(0).u32(4096).u32(0)
    }

    /// A node that the guest may use until it forgets it.
    pub(crate) fn entry(&mut self, node: u64, valid: Duration, of: &Attributes) -> &mut Self {
        // Numbers are never used again, so there is one generation.
        self.u64(node).u64(1).u64(valid.as_secs()).u64(valid.as_secs());
        self.u32(valid.subsec_nanos()).u32(valid.subsec_nanos()).attributes(of)
    }

    /// That there is nothing of this name, for as long.
    pub(crate) fn nothing(&mut self, valid: Duration) -> &mut Self {
        self.u64(0).u64(0).u64(valid.as_secs()).u64(0).u32(valid.subsec_nanos()).u32(0);
        self.bytes(&[0; 88])
    }

    pub(crate) fn attr(&mut self, valid: Duration, of: &Attributes) -> &mut Self {
        self.u64(valid.as_secs()).u32(valid.subsec_nanos()).u32(0).attributes(of)
    }

    pub(crate) fn opened(&mut self, handle: u64, flags: u32) -> &mut Self {
        self.u64(handle).u32(flags).u32(0)
    }

    pub(crate) fn file_system(&mut self, of: &StatVfs, free: u64) -> &mut Self {
        let blocks = |count: u64| count.min(free / of.f_frsize.max(1));
        self.u64(of.f_blocks).u64(blocks(of.f_bfree)).u64(blocks(of.f_bavail));
        self.u64(of.f_files).u64(of.f_ffree);
        let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        self.u32(number(of.f_bsize)).u32(255).u32(number(of.f_frsize)).u32(0);
        self.bytes(&[0; 24])
    }

    /// One name of a directory, whose next is at `next`.
    pub(crate) fn name(&mut self, inode: u64, next: u64, kind: FileType, name: &[u8]) -> &mut Self {
        let length = u32::try_from(name.len()).unwrap_or(0);
        // `DT_*` are the type bits of a mode.
        self.u64(inode).u64(next).u32(length).u32(kind.as_raw_mode() >> 12).bytes(name);
        let padding = padded(name.len()) - name.len();
        self.bytes(&[0; 8][..padding])
    }

    /// The finished answer.
    pub(crate) fn answer(self, unique: u64) -> Vec<u8> {
        self.finish(0, unique)
    }

    fn finish(mut self, error: i32, unique: u64) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[4..8].copy_from_slice(&error.to_ne_bytes());
        self.0[8..16].copy_from_slice(&unique.to_ne_bytes());
        self.0
    }
}

/// Bytes of a name with those that align the next.
pub(crate) fn padded(length: usize) -> usize {
    length.next_multiple_of(8)
}

/// An answer that refuses.
pub(crate) fn refusal(unique: u64, error: Errno) -> Vec<u8> {
    Message::start(0).finish(-error.raw_os_error(), unique)
}

/// Numbers of notices (`enum fuse_notify_code`), which stand where an answer has its error.
const INVALIDATE_INODE: i32 = 2;
const INVALIDATE_ENTRY: i32 = 3;
/// Ours, for the agent and never for its kernel: change nothing of what has this path, but so that
/// whoever watches it is told.
pub const TOUCH: i32 = 0x5346;

/// What the guest's kernel is to look at anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice<'a> {
    /// A node's content and attributes.
    Node(u64),
    /// What a name in a directory stands for.
    Entry(u64, &'a [u8]),
    /// Whoever watches what has this path below the share is to hear of it.
    Touch(&'a [u8]),
}

impl Notice<'_> {
    pub(crate) fn message(&self) -> Vec<u8> {
        let mut message = Message::start(64);
        let code = match self {
            Self::Node(node) => {
                // From the first byte to the last.
                message.u64(*node).u64(0).u64(0);
                INVALIDATE_INODE
            }
            Self::Entry(parent, name) => {
                let length = u32::try_from(name.len()).unwrap_or(0);
                message.u64(*parent).u32(length).u32(0).bytes(name).bytes(&[0]);
                INVALIDATE_ENTRY
            }
            Self::Touch(path) => {
                message.bytes(path);
                TOUCH
            }
        };
        message.finish(code, 0)
    }
}
