//! A guest's kernel, as far as a test needs one: it writes what it likes and reads what it gets.
#![allow(dead_code, reason = "each test file uses what it needs")]

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use share::{Options, Share};

pub(crate) const ROOT: u64 = 1;

/// Numbers of the kernel's header, again, so that a mistake in one place is one in the other's eyes.
pub(crate) mod op {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const READDIRPLUS: u32 = 44;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const COPY_FILE_RANGE: u32 = 47;
    pub(crate) const TMPFILE: u32 = 51;
}

pub(crate) const O_WRONLY: u32 = 1;
pub(crate) const O_RDWR: u32 = 2;
pub(crate) const O_TRUNC: u32 = 0o1000;

/// Linux error numbers as a guest sees them.
pub(crate) mod errno {
    pub(crate) const EPERM: i32 = 1;
    pub(crate) const ENOENT: i32 = 2;
    pub(crate) const EBADF: i32 = 9;
    pub(crate) const EACCES: i32 = 13;
    pub(crate) const EINVAL: i32 = 22;
    pub(crate) const EROFS: i32 = 30;
    pub(crate) const ENOSYS: i32 = 38;
    pub(crate) const ELOOP: i32 = 40;
    pub(crate) const ESTALE: i32 = 116;
    pub(crate) const EDQUOT: i32 = 122;
    pub(crate) const ENFILE: i32 = 23;
}

pub(crate) struct Guest {
    pub(crate) share: Share,
    unique: AtomicU64,
}

pub(crate) fn open(path: &Path) -> OwnedFd {
    std::fs::File::open(path).unwrap().into()
}

/// Fields, one after the other.
#[derive(Default, Clone)]
pub(crate) struct Body(pub(crate) Vec<u8>);

impl Body {
    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub(crate) fn name(self, name: &str) -> Self {
        self.raw(name.as_bytes()).raw(&[0])
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

pub(crate) fn body() -> Body {
    Body::default()
}

pub(crate) fn message(opcode: u32, unique: u64, node: u64, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(40 + body.len()).unwrap();
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(opcode.to_ne_bytes());
    message.extend(unique.to_ne_bytes());
    message.extend(node.to_ne_bytes());
    message.extend([0; 16]);
    message.extend(body);
    message
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl Guest {
    pub(crate) fn new(directory: &Path, options: Options) -> Self {
        let guest = Self {
            share: Share::new(&open(directory), options).unwrap(),
            unique: AtomicU64::new(1),
        };
        let init = body().u32(7).u32(41).u32(1 << 20).u32(u32::MAX).u32(0).raw(&[0; 44]);
        guest.ask(op::INIT, 0, init).unwrap();
        guest
    }

    /// What comes of a message, where anything does.
    pub(crate) fn raw(&self, message: &[u8]) -> Option<Vec<u8>> {
        let mut answer = None;
        self.share.serve(message, |bytes| answer = Some(bytes));
        answer
    }

    /// The answer's own bytes, or its error.
    #[allow(clippy::needless_pass_by_value, reason = "a body is made where it is asked with")]
    pub(crate) fn ask(&self, opcode: u32, node: u64, body: Body) -> Result<Vec<u8>, i32> {
        let unique = self.unique.fetch_add(2, Ordering::Relaxed);
        let answer = self.raw(&message(opcode, unique, node, &body.0)).expect("an answer");
        assert_eq!(u32_at(&answer, 0) as usize, answer.len());
        assert_eq!(u64_at(&answer, 8), unique);
        match i32::from_ne_bytes(answer[4..8].try_into().unwrap()) {
            0 => Ok(answer[16..].to_vec()),
            error => Err(-error),
        }
    }

    pub(crate) fn look(&self, parent: u64, name: &str) -> Result<u64, i32> {
        let entry = self.ask(op::LOOKUP, parent, body().name(name))?;
        match u64_at(&entry, 0) {
            0 => Err(errno::ENOENT),
            node => Ok(node),
        }
    }

    /// Each component looked up in the one before.
    pub(crate) fn walk(&self, path: &str) -> Result<u64, i32> {
        path.split('/').try_fold(ROOT, |node, name| self.look(node, name))
    }

    pub(crate) fn open(&self, node: u64, flags: u32) -> Result<u64, i32> {
        self.ask(op::OPEN, node, body().u32(flags).u32(0)).map(|opened| u64_at(&opened, 0))
    }

    pub(crate) fn read(&self, node: u64, handle: u64) -> Result<Vec<u8>, i32> {
        let read = body().u64(handle).u64(0).u32(65_536).u32(0).u64(0).u32(0).u32(0);
        self.ask(op::READ, node, read)
    }

    pub(crate) fn write(
        &self,
        node: u64,
        handle: u64,
        offset: u64,
        data: &[u8],
    ) -> Result<u32, i32> {
        let length = u32::try_from(data.len()).unwrap();
        let write =
            body().u64(handle).u64(offset).u32(length).u32(0).u64(0).u32(0).u32(0).raw(data);
        self.ask(op::WRITE, node, write).map(|written| u32_at(&written, 0))
    }

    pub(crate) fn contents(&self, path: &str) -> Result<Vec<u8>, i32> {
        let node = self.walk(path)?;
        let handle = self.open(node, 0)?;
        let contents = self.read(node, handle);
        self.release(node, handle);
        contents
    }

    pub(crate) fn release(&self, node: u64, handle: u64) {
        let release = body().u64(handle).u32(0).u32(0).u64(0);
        self.ask(op::RELEASE, node, release).unwrap();
    }

    /// The new node and its handle.
    pub(crate) fn create(&self, parent: u64, name: &str) -> Result<(u64, u64), i32> {
        let create = body().u32(O_RDWR).u32(0o100_644).u32(0).u32(0).name(name);
        let made = self.ask(op::CREATE, parent, create)?;
        Ok((u64_at(&made, 0), u64_at(&made, 128)))
    }

    pub(crate) fn mkdir(&self, parent: u64, name: &str) -> Result<u64, i32> {
        let made = self.ask(op::MKDIR, parent, body().u32(0o755).u32(0).name(name))?;
        Ok(u64_at(&made, 0))
    }

    pub(crate) fn rename(
        &self,
        from: u64,
        name: &str,
        to: u64,
        new_name: &str,
        flags: u32,
    ) -> Result<(), i32> {
        let rename = body().u64(to).u32(flags).u32(0).name(name).name(new_name);
        self.ask(op::RENAME2, from, rename).map(drop)
    }

    pub(crate) fn unlink(&self, parent: u64, name: &str) -> Result<(), i32> {
        self.ask(op::UNLINK, parent, body().name(name)).map(drop)
    }

    pub(crate) fn symlink(&self, parent: u64, name: &str, target: &str) -> Result<u64, i32> {
        let made = self.ask(op::SYMLINK, parent, body().name(name).name(target))?;
        Ok(u64_at(&made, 0))
    }

    pub(crate) fn link(&self, of: u64, parent: u64, name: &str) -> Result<(), i32> {
        self.ask(op::LINK, parent, body().u64(of).name(name)).map(drop)
    }

    /// `valid` of `fuse_setattr_in`, with one size and one mode.
    pub(crate) fn set(
        &self,
        node: u64,
        valid: u32,
        handle: u64,
        size: u64,
        mode: u32,
    ) -> Result<(), i32> {
        let set = body().u32(valid).u32(0).u64(handle).u64(size).u64(0).u64(0).u64(0).u64(0);
        let set = set.u32(0).u32(0).u32(0).u32(mode).u32(0).u32(0).u32(0).u32(0);
        self.ask(op::SETATTR, node, set).map(drop)
    }

    /// Size and mode.
    pub(crate) fn stat(&self, node: u64) -> Result<(u64, u32), i32> {
        let attr = self.ask(op::GETATTR, node, body().u32(0).u32(0).u64(0))?;
        Ok((u64_at(&attr, 16 + 8), u32_at(&attr, 16 + 60)))
    }

    pub(crate) fn forget(&self, node: u64, count: u64) {
        let forget = message(op::FORGET, 0, node, &body().u64(count).0);
        assert_eq!(self.raw(&forget), None);
    }

    pub(crate) fn names(&self, node: u64) -> Result<Vec<String>, i32> {
        let opened = self.ask(op::OPENDIR, node, body().u32(0).u32(0))?;
        let handle = u64_at(&opened, 0);
        let read = |offset: u64| body().u64(handle).u64(offset).u32(4096).u32(0).u64(0).u64(0);
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let listed = self.ask(op::READDIR, node, read(offset))?;
            if listed.is_empty() {
                self.release(node, handle);
                return Ok(names);
            }
            let mut rest = &listed[..];
            while !rest.is_empty() {
                let length = u32_at(rest, 16) as usize;
                offset = u64_at(rest, 8);
                names.push(String::from_utf8(rest[24..24 + length].to_vec()).unwrap());
                rest = &rest[24 + length.next_multiple_of(8)..];
            }
        }
    }
}
