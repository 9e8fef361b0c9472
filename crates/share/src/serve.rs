//! Each request: judged, carried out, answered.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::fs::{
    AtFlags, Dir, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom, Stat, Timespec,
    Timestamps, UTIME_NOW, UTIME_OMIT, chmodat, copy_file_range, fallocate, fchmod, fdatasync,
    fstat, fstatvfs, fsync, ftruncate, linkat, mkdirat, readlinkat, renameat_with, seek, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::{Errno, pread, pwrite};

use crate::Share;
use crate::handle::{Handle, Listed, Open};
use crate::node::{Key, Node, ROOT, What, lock};
use crate::place::{last_known, leads_out};
use crate::quota::ENTRY;
use crate::reply::{Attributes, Message, PERMISSIONS, padded, refusal};
use crate::request::{Component, Header, MAX_DATA, Malformed, Request, SetAttr, Time, parse};

/// How long the guest may believe what the host will tell it of when it changes. A notice that is
/// lost is made good after this.
const TOLD: Duration = Duration::from_secs(10);
/// How long it may believe the rest.
const UNTOLD: Duration = Duration::from_secs(1);
/// Entries that are looked at before a directory is moved. One with more has to be copied, which
/// programs do when they are told that it lies in another file system.
const MOST_MOVED: usize = 20_000;
/// Directories in each other that are looked at.
const DEEPEST_MOVED: usize = 128;
/// Bytes that one request copies within the host.
const MOST_COPIED: usize = 16 << 20;
/// Files with names of the guest's making that are remembered.
const MOST_LINKED: usize = 65_536;

/// Versions of the protocol: what the guest's kernel must speak at least, and what is spoken here.
const MAJOR: u32 = 7;
const OLDEST: u32 = 31;
const MINOR: u32 = 38;

/// `FUSE_*` of an `INIT` that are wanted: see the kernel's header.
const ASYNC_READ: u64 = 1 << 0;
const ATOMIC_O_TRUNC: u64 = 1 << 3;
const BIG_WRITES: u64 = 1 << 5;
const AUTO_INVAL_DATA: u64 = 1 << 12;
const DO_READDIRPLUS: u64 = 1 << 13;
const READDIRPLUS_AUTO: u64 = 1 << 14;
const PARALLEL_DIROPS: u64 = 1 << 18;
const HANDLE_KILLPRIV: u64 = 1 << 19;
const MAX_PAGES: u64 = 1 << 22;
const CACHE_SYMLINKS: u64 = 1 << 23;
/// Not the writeback cache: with it the guest's kernel would be the authority over sizes and times,
/// and would not see the host's.
const WANTED: u64 = ASYNC_READ
    | ATOMIC_O_TRUNC
    | BIG_WRITES
    | AUTO_INVAL_DATA
    | DO_READDIRPLUS
    | READDIRPLUS_AUTO
    | PARALLEL_DIROPS
    | HANDLE_KILLPRIV
    | MAX_PAGES
    | CACHE_SYMLINKS;

/// `FOPEN_*`: what was read before is still good; so are the names of a directory.
const KEEP_CACHE: u32 = 1 << 1;
const CACHE_DIRECTORY: u32 = 1 << 3;

/// Flags of an `OPEN` or a `CREATE`, as Linux numbers them on every architecture that we run on.
const ACCESS_MODE: u32 = 0o3;
const READ_ONLY: u32 = 0;
const WRITE_ONLY: u32 = 1;
const EXCLUSIVE: u32 = 0o200;
const TRUNCATE: u32 = 0o1000;
const APPEND: u32 = 0o2000;

/// `FALLOC_FL_*` that are served.
const KEEP_SIZE: u32 = 1;
const PUNCH_HOLE: u32 = 2;
const ZERO_RANGE: u32 = 16;

/// What a request comes to. `None` where it takes no answer.
type Answer = Result<Option<Message>, Errno>;

impl Share {
    /// Serves one request, and hands its answer to `send`, where it has one. `send` may wait: the
    /// guest is told of nothing later before it returns.
    pub fn serve(&self, message: &[u8], send: impl FnOnce(Vec<u8>)) {
        let (header, request) = match parse(message) {
            Ok(parsed) => parsed,
            Err(Malformed::Header) => return,
            Err(Malformed::Answer(unique, error)) => return send(refusal(unique, error)),
        };
        let answer = |alone| {
            let _alone = alone;
            match self.carry_out(&header, &request) {
                Ok(None) => {}
                Ok(Some(message)) => send(message.answer(header.unique)),
                Err(error) => send(refusal(header.unique, error)),
            }
        };
        match request {
            Request::Rename { .. } | Request::Init { .. } | Request::Destroy => {
                let alone = self.order.write().unwrap_or_else(PoisonError::into_inner);
                answer((Some(alone), None));
            }
            _ => {
                let shared = self.order.read().unwrap_or_else(PoisonError::into_inner);
                answer((None, Some(shared)));
            }
        }
    }

    fn carry_out(&self, header: &Header, request: &Request<'_>) -> Answer {
        if !matches!(request, Request::Init { .. }) && !self.is_begun.load(Ordering::Acquire) {
            return Err(Errno::IO);
        }
        let id = header.node;
        let answer = match *request {
            Request::Init { major, minor, max_readahead, flags } => {
                return self.begin(major, minor, max_readahead, flags);
            }
            Request::Destroy => {
                self.end();
                Message::new(0)
            }
            Request::Forget(ref forgets) => {
                for (node, count) in forgets.each() {
                    self.forget(node, count);
                }
                return Ok(None);
            }
            Request::Interrupt => return Ok(None),
            Request::Lookup { name } => self.look_up(id, name)?,
            Request::GetAttr { handle } => self.attributes(id, handle)?,
            Request::SetAttr(ref set) => self.set_attributes(id, set)?,
            Request::ReadLink => self.read_link(id)?,
            Request::Symlink { name, target } => self.make_link(id, name, target)?,
            Request::MakeNode { name, mode } => self.make_file(id, name, mode)?,
            Request::MakeDirectory { name, mode } => self.make_directory(id, name, mode)?,
            Request::Unlink { name } => self.remove(id, name, false)?,
            Request::RemoveDirectory { name } => self.remove(id, name, true)?,
            Request::Rename { name, to, new_name, flags } => {
                self.rename(id, name, to, new_name, flags)?
            }
            Request::Link { of, name } => self.add_name(of, id, name)?,
            Request::Open { flags } => self.open_file(id, flags)?,
            Request::OpenDirectory => self.open_directory(id)?,
            Request::Create { name, flags, mode } => self.create(id, name, flags, mode)?,
            Request::Read { handle, offset, size } => self.read(id, handle, offset, size)?,
            Request::Write { handle, offset, data } => self.write(id, handle, offset, data)?,
            Request::StatFs => {
                let mut message = Message::new(80);
                let system = fstatvfs(self.place.root())?;
                message.file_system(&system, self.quota.left());
                message
            }
            Request::Release { handle } | Request::ReleaseDirectory { handle } => {
                self.release(id, handle);
                Message::new(0)
            }
            Request::Sync { handle, data_only } => {
                let handle = self.handles.get(handle, id)?;
                if let Open::File { descriptor, .. } = &handle.open {
                    if data_only { fdatasync(descriptor)? } else { fsync(descriptor)? }
                }
                Message::new(0)
            }
            Request::SyncDirectory { handle } => {
                let handle = self.handles.get(handle, id)?;
                if let (Open::Directory(_), Ok((descriptor, kind))) =
                    (&handle.open, handle.node.real())
                {
                    self.path(descriptor)?;
                    fsync(self.place.reopen(descriptor, kind, OFlags::RDONLY)?)?;
                }
                Message::new(0)
            }
            Request::ReadDirectory { handle, offset, size, plus } => {
                self.read_directory(id, handle, offset, size, plus)?
            }
            Request::Allocate { handle, offset, length, mode } => {
                self.allocate(id, handle, offset, length, mode)?
            }
            Request::Seek { handle, offset, whence } => self.seek(id, handle, offset, whence)?,
            Request::CopyRange { from, from_offset, to_node, to, to_offset, length, flags } => {
                if flags != 0 {
                    return Err(Errno::INVAL);
                }
                self.copy_range((id, from, from_offset), (to_node, to, to_offset), length)?
            }
        };
        Ok(Some(answer))
    }

    fn begin(&self, major: u32, minor: u32, readahead: u32, flags: u64) -> Answer {
        if major != MAJOR || minor < OLDEST {
            return Err(Errno::PROTO);
        }
        self.end();
        self.is_begun.store(true, Ordering::Release);
        let flags = flags & WANTED;
        let mut message = Message::new(64);
        message.u32(MAJOR).u32(minor.min(MINOR)).u32(readahead.min(1 << 20));
        message.u32(u32::try_from(flags & u64::from(u32::MAX)).unwrap_or(0));
        // Requests that the guest's kernel may send of itself, and from which on it holds back.
        message.u16(64).u16(48);
        let most = u32::try_from(MAX_DATA).expect("a megabyte");
        // Times are as fine as the host's.
        message.u32(most).u32(1).u16(u16::try_from(MAX_DATA / 4096).expect("256")).u16(0);
        message.u32(0).bytes(&[0; 28]);
        Ok(Some(message))
    }

    fn end(&self) {
        self.handles.clear();
        self.nodes.forget_all();
        self.watch.forget_all();
        self.listed.store(0, Ordering::Release);
    }

    fn forget(&self, id: u64, count: u64) {
        if let Some(node) = self.nodes.forget(id, count) {
            self.watch.remove(&node);
        }
    }

    /// A directory that the guest names, and where it lies.
    fn directory(&self, id: u64) -> Result<(Arc<Node>, std::path::PathBuf), Errno> {
        let node = self.nodes.get(id)?;
        let (descriptor, kind) = node.real()?;
        if kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let path = self.path(descriptor)?;
        Ok((node, path))
    }

    /// Where something lies, if the guest may see it there.
    fn path(&self, descriptor: &OwnedFd) -> Result<std::path::PathBuf, Errno> {
        let path = self.place.path(descriptor)?;
        if self.hides(&path) { Err(Errno::ACCESS) } else { Ok(path) }
    }

    fn hides(&self, path: &Path) -> bool {
        let hides = |path: &Path| !path.as_os_str().is_empty() && self.options.rules.hides(path);
        hides(path) || last_known(path).is_some_and(hides)
    }

    /// Whether the guest may change what has this path.
    fn may_change(&self, path: &Path, is_directory: bool) -> Result<(), Errno> {
        let protects = |path: &Path| self.options.rules.protects(path, is_directory);
        if self.options.read_only {
            Err(Errno::ROFS)
        } else if self.hides(path) {
            Err(Errno::ACCESS)
        } else if protects(path) || last_known(path).is_some_and(protects) {
            Err(Errno::PERM)
        } else {
            Ok(())
        }
    }

    /// The directory in which a name may come, go or change, and the path that it has or gets.
    fn place_of(
        &self,
        parent: u64,
        name: Component<'_>,
        is_directory: bool,
    ) -> Result<(Arc<Node>, std::path::PathBuf), Errno> {
        if self.options.read_only {
            return Err(Errno::ROFS);
        }
        let (parent, path) = self.directory(parent)?;
        let path = path.join(name.as_os_str());
        self.may_change(&path, is_directory)?;
        Ok((parent, path))
    }

    /// Whether the content and the attributes of something may be changed.
    fn may_write(&self, node: &Node) -> Result<(), Errno> {
        let (descriptor, kind) = node.real()?;
        if self.options.read_only {
            return Err(Errno::ROFS);
        }
        let path = self.place.path(descriptor)?;
        self.may_change(&path, kind == FileType::Directory)?;
        if kind != FileType::RegularFile {
            return Ok(());
        }
        let stat = fstat(descriptor)?;
        // Whoever writes into such a file as root would leave it what it is.
        if stat.st_mode & 0o6000 != 0 {
            return Err(Errno::PERM);
        }
        if !self.options.foreign_links && stat.st_nlink > 1 {
            let own = lock(&self.links).get(&node.key).copied().unwrap_or(0);
            if stat.st_nlink > u64::from(own) + 1 {
                return Err(Errno::PERM);
            }
        }
        Ok(())
    }

    /// How long the guest may believe what it is told of a node, or of a name in it.
    fn valid(is_watched: bool) -> Duration {
        if is_watched { TOLD } else { UNTOLD }
    }

    /// Counts that the guest is told of what a name stands for.
    fn tell(
        &self,
        parent: &Node,
        found: OwnedFd,
        stat: &Stat,
    ) -> Result<(Arc<Node>, Attributes), Errno> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let node = self.nodes.tell(Key::of(stat), || What::Real { descriptor: found, kind })?;
        node.knows(stat);
        node.is_watched.store(Watched::is(parent), Ordering::Relaxed);
        Ok((node, Attributes::of(stat, &self.owner)))
    }

    /// The node of a name, with its attributes.
    fn find(
        &self,
        parent: &Node,
        path: &Path,
        name: Component<'_>,
    ) -> Result<(Arc<Node>, Attributes), Errno> {
        let (directory, _) = parent.real()?;
        let (found, stat) = self.place.find(directory, name)?;
        if self.hides(&path.join(name.as_os_str())) {
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            let key = Key::Masked(parent.id, name.as_bytes().to_vec());
            let node = self.nodes.tell(key, || What::Masked { is_directory })?;
            let attributes = Attributes::masked(node.id, is_directory, &self.owner);
            return Ok((node, attributes));
        }
        self.tell(parent, found, &stat)
    }

    fn look_up(&self, parent: u64, name: Component<'_>) -> Result<Message, Errno> {
        let parent = self.nodes.get(parent)?;
        let mut message = Message::new(128);
        let (directory, kind) = match parent.real() {
            Ok(real) => real,
            // What is masked is empty.
            Err(_) => return Err(Errno::NOENT),
        };
        if kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let path = self.path(directory)?;
        self.watch.add(&parent);
        let valid = Self::valid(Watched::is(&parent));
        match self.find(&parent, &path, name) {
            Ok((node, attributes)) => message.entry(node.id, valid, &attributes),
            Err(Errno::NOENT) if Watched::is(&parent) => message.nothing(valid),
            Err(error) => return Err(error),
        };
        Ok(message)
    }

    fn attributes(&self, id: u64, handle: Option<u64>) -> Result<Message, Errno> {
        let node = self.nodes.get(id)?;
        let mut message = Message::new(104);
        let attributes = match &node.what {
            What::Masked { is_directory } => {
                Attributes::masked(node.id, *is_directory, &self.owner)
            }
            What::Real { descriptor, .. } => {
                if let Some(handle) = handle {
                    self.handles.get(handle, id)?;
                }
                match self.path(descriptor) {
                    // It became hidden: what the guest knows of it already is all that it gets.
                    Err(Errno::ACCESS) => Attributes::masked(node.id, false, &self.owner),
                    Err(error) => return Err(error),
                    Ok(_) => {
                        let stat = fstat(descriptor)?;
                        node.knows(&stat);
                        Attributes::of(&stat, &self.owner)
                    }
                }
            }
        };
        message.attr(Self::valid(node.is_watched()), &attributes);
        Ok(message)
    }

    fn set_attributes(&self, id: u64, set: &SetAttr) -> Result<Message, Errno> {
        let node = self.nodes.get(id)?;
        let (descriptor, kind) = node.real()?;
        let stat = fstat(descriptor)?;
        if self.is_touch(set, &stat) {
            self.path(descriptor)?;
            return Ok(self.told(&node, &stat));
        }
        self.may_write(&node)?;
        if kind == FileType::Symlink && (set.mode.is_some() || set.size.is_some()) {
            return Err(Errno::OPNOTSUPP);
        }
        let own = self.owner.in_guest(stat.st_uid, stat.st_gid);
        if set.uid.is_some_and(|uid| uid != own.0) || set.gid.is_some_and(|gid| gid != own.1) {
            return Err(Errno::PERM);
        }
        if let Some(size) = set.size {
            let writing = match set.handle {
                Some(handle) => Some(self.handles.get(handle, id)?),
                None => None,
            };
            let _size = lock(&node.size);
            match writing.as_deref() {
                Some(Handle { open: Open::File { descriptor, writes, .. }, .. }) => {
                    if !writes {
                        return Err(Errno::BADF);
                    }
                    self.resize(descriptor, size)?;
                }
                _ => self.resize(&self.place.reopen(descriptor, kind, OFlags::WRONLY)?, size)?,
            }
        }
        if let Some(mode) = set.mode {
            let (directory, name) = self.place.link(descriptor);
            chmodat(directory, name, permissions(mode), AtFlags::empty())?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            let times =
                Timestamps { last_access: time(set.atime), last_modification: time(set.mtime) };
            // A symbolic link's own descriptor leads to it, not through it.
            utimensat(descriptor, "", &times, AtFlags::EMPTY_PATH)?;
        }
        Ok(self.told(&node, &fstat(descriptor)?))
    }

    /// Whether nothing would change: how the agent has watchers told of what the host did.
    fn is_touch(&self, set: &SetAttr, stat: &Stat) -> bool {
        set.mode.is_some_and(|mode| mode & PERMISSIONS == stat.st_mode & PERMISSIONS)
            && SetAttr { mode: None, handle: None, ..*set } == SetAttr::default()
    }

    fn told(&self, node: &Node, stat: &Stat) -> Message {
        node.knows(stat);
        let mut message = Message::new(104);
        message.attr(Self::valid(node.is_watched()), &Attributes::of(stat, &self.owner));
        message
    }

    /// With the node's size held.
    fn resize(&self, file: &OwnedFd, size: u64) -> Result<(), Errno> {
        let before = size_of(&fstat(file)?);
        self.quota.take(size.saturating_sub(before))?;
        if let Err(error) = ftruncate(file, size) {
            self.quota.give(size.saturating_sub(before));
            return Err(error);
        }
        self.quota.give(before.saturating_sub(size));
        Ok(())
    }

    fn read_link(&self, id: u64) -> Result<Message, Errno> {
        let node = self.nodes.get(id)?;
        let (descriptor, kind) = node.real()?;
        if kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        self.path(descriptor)?;
        let target = readlinkat(descriptor, "", Vec::new())?;
        let mut message = Message::new(target.as_bytes().len());
        message.bytes(target.as_bytes());
        Ok(message)
    }

    /// The answer about a name that the guest has just made.
    fn made(&self, parent: &Node, path: &Path, name: Component<'_>) -> Result<Message, Errno> {
        let above = path.parent().unwrap_or_else(|| Path::new(""));
        let (node, attributes) = self.find(parent, above, name)?;
        self.watch.made(parent, name, Some(&node.key));
        let mut message = Message::new(128);
        message.entry(node.id, Self::valid(Watched::is(parent)), &attributes);
        Ok(message)
    }

    /// Takes room for a new entry, and gives it back where it does not come to be.
    fn add<T>(&self, make: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        self.quota.take(ENTRY)?;
        make().inspect_err(|_| self.quota.give(ENTRY))
    }

    fn make_link(&self, id: u64, name: Component<'_>, target: &[u8]) -> Result<Message, Errno> {
        let (parent, path) = self.place_of(id, name, false)?;
        if !self.options.outside_links && leads_out(depth(&path), target) {
            return Err(Errno::PERM);
        }
        let (directory, _) = parent.real()?;
        self.add(|| symlinkat(target, directory, name.as_os_str()))?;
        self.made(&parent, &path, name)
    }

    fn make_file(&self, id: u64, name: Component<'_>, mode: u32) -> Result<Message, Errno> {
        if !matches!(FileType::from_raw_mode(mode), FileType::RegularFile) {
            return Err(Errno::PERM);
        }
        let (parent, path) = self.place_of(id, name, false)?;
        drop(self.new_file(&parent, name, OFlags::WRONLY, mode)?);
        self.made(&parent, &path, name)
    }

    fn new_file(
        &self,
        parent: &Node,
        name: Component<'_>,
        flags: OFlags,
        mode: u32,
    ) -> Result<OwnedFd, Errno> {
        let (directory, _) = parent.real()?;
        // Exclusive: what is there already is never opened in this way.
        let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOCTTY | OFlags::NONBLOCK;
        let file = self.add(|| self.place.enter(directory, name, flags, permissions(mode)))?;
        // The guest's kernel has applied its umask; ours is another.
        if fstat(&file)?.st_mode & PERMISSIONS != mode & PERMISSIONS {
            fchmod(&file, permissions(mode))?;
        }
        Ok(file)
    }

    fn make_directory(&self, id: u64, name: Component<'_>, mode: u32) -> Result<Message, Errno> {
        let (parent, path) = self.place_of(id, name, true)?;
        let (directory, _) = parent.real()?;
        self.add(|| mkdirat(directory, name.as_os_str(), permissions(mode)))?;
        let (made, stat) = self.place.find(directory, name)?;
        if stat.st_mode & PERMISSIONS != mode & PERMISSIONS
            && FileType::from_raw_mode(stat.st_mode) == FileType::Directory
        {
            let (at, link) = self.place.link(&made);
            chmodat(at, link, permissions(mode), AtFlags::empty())?;
        }
        self.made(&parent, &path, name)
    }

    fn remove(&self, id: u64, name: Component<'_>, is_directory: bool) -> Result<Message, Errno> {
        let (parent, _) = self.place_of(id, name, is_directory)?;
        let (directory, _) = parent.real()?;
        let (found, stat) = self.place.find(directory, name)?;
        let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        unlinkat(directory, name.as_os_str(), flags)?;
        self.watch.made(&parent, name, None);
        self.gone(&found, &stat);
        Ok(Message::new(0))
    }

    /// Gives back what something took that lost this name.
    fn gone(&self, found: &OwnedFd, before: &Stat) {
        let key = Key::of(before);
        if before.st_nlink > 1 && FileType::from_raw_mode(before.st_mode) == FileType::RegularFile {
            if let Some(count) = lock(&self.links).get_mut(&key) {
                *count = count.saturating_sub(1);
            }
            self.quota.give(ENTRY);
            return;
        }
        lock(&self.links).remove(&key);
        let Ok(now) = fstat(found) else { return };
        self.quota.give(ENTRY);
        let is_open =
            self.nodes.by_key(&key).is_some_and(|node| node.handles.load(Ordering::Acquire) > 0);
        if now.st_nlink == 0
            && !is_open
            && FileType::from_raw_mode(now.st_mode) == FileType::RegularFile
        {
            self.quota.give(size_of(&now));
        }
    }

    fn rename(
        &self,
        from: u64,
        name: Component<'_>,
        to: u64,
        new_name: Component<'_>,
        flags: u32,
    ) -> Result<Message, Errno> {
        let flags = match flags {
            0 => RenameFlags::empty(),
            1 => RenameFlags::NOREPLACE,
            2 => RenameFlags::EXCHANGE,
            _ => return Err(Errno::INVAL),
        };
        let (from, _) = self.directory(from)?;
        let (source, stat) = self.place.find(from.real()?.0, name)?;
        let is_directory =
            |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let (from, old) = self.place_of(from.id, name, is_directory(&stat))?;
        let (to, new) = self.place_of(to, new_name, is_directory(&stat))?;
        let target = match self.place.find(to.real()?.0, new_name) {
            Ok(found) => Some(found),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error),
        };
        self.may_move(&source, &stat, &old, &new)?;
        if let Some((found, stat)) = &target {
            // What is replaced goes, what is exchanged moves.
            self.may_change(&new, is_directory(stat))?;
            if flags.contains(RenameFlags::EXCHANGE) {
                self.may_change(&old, is_directory(stat))?;
                self.may_move(found, stat, &new, &old)?;
            }
        }
        let (old_directory, new_directory) = (from.real()?.0, to.real()?.0);
        renameat_with(old_directory, name.as_os_str(), new_directory, new_name.as_os_str(), flags)?;
        let key = Key::of(&stat);
        let target_key = target.as_ref().map(|(_, stat)| Key::of(stat));
        self.watch.made(&to, new_name, Some(&key));
        match (&target, flags.contains(RenameFlags::EXCHANGE)) {
            (_, true) => self.watch.made(&from, name, target_key.as_ref()),
            (Some((found, stat)), false) if target_key.as_ref() != Some(&key) => {
                self.watch.made(&from, name, None);
                self.gone(found, stat);
            }
            // Two names of one file: the system does nothing then.
            (Some(_), false) => {}
            (None, false) => self.watch.made(&from, name, None),
        }
        // Its change time is another now, and not by the host's doing.
        if let Some(node) = self.nodes.by_key(&key)
            && let Ok(stat) = fstat(&source)
        {
            node.knows(&stat);
            node.is_watched.store(Watched::is(&to), Ordering::Relaxed);
        }
        Ok(Message::new(0))
    }

    /// Whether something may be known by another path: nothing of it, or below it, gets out of what is
    /// hidden or protected, or into it, and no symbolic link begins to lead out.
    fn may_move(&self, source: &OwnedFd, stat: &Stat, old: &Path, new: &Path) -> Result<(), Errno> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let target = readlinkat(source, "", Vec::new())?;
                self.may_link_move(target.as_bytes(), old, new)
            }
            FileType::Directory => self.may_tree_move(source, old, new),
            _ => Ok(()),
        }
    }

    fn may_link_move(&self, target: &[u8], old: &Path, new: &Path) -> Result<(), Errno> {
        let begins = !leads_out(depth(old), target) && leads_out(depth(new), target);
        if begins && !self.options.outside_links { Err(Errno::PERM) } else { Ok(()) }
    }

    fn may_tree_move(&self, source: &OwnedFd, old: &Path, new: &Path) -> Result<(), Errno> {
        let read = |descriptor: &OwnedFd| {
            self.place.reopen(descriptor, FileType::Directory, OFlags::RDONLY).and_then(Dir::new)
        };
        let mut seen = 0;
        let mut above = vec![(read(source)?, old.to_owned(), new.to_owned())];
        while let Some((directory, old, new)) = above.last_mut() {
            let Some(entry) = directory.read().transpose()? else {
                above.pop();
                continue;
            };
            let Some(name) = Component::new(entry.file_name().to_bytes()) else { continue };
            seen += 1;
            if seen > MOST_MOVED {
                return Err(Errno::XDEV);
            }
            let (old, new) = (old.join(name.as_os_str()), new.join(name.as_os_str()));
            let fd = directory.fd()?;
            let (found, stat) = match self.place.find(fd, name) {
                Ok(found) => found,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error),
            };
            let kind = FileType::from_raw_mode(stat.st_mode);
            let is_directory = kind == FileType::Directory;
            self.may_change(&old, is_directory)?;
            self.may_change(&new, is_directory)?;
            if kind == FileType::Symlink {
                let target = readlinkat(&found, "", Vec::new())?;
                self.may_link_move(target.as_bytes(), &old, &new)?;
            }
            if is_directory {
                if above.len() >= DEEPEST_MOVED {
                    return Err(Errno::XDEV);
                }
                above.push((read(&found)?, old, new));
            }
        }
        Ok(())
    }

    fn add_name(&self, of: u64, id: u64, name: Component<'_>) -> Result<Message, Errno> {
        let node = self.nodes.get(of)?;
        self.may_write(&node)?;
        let (descriptor, kind) = node.real()?;
        if kind != FileType::RegularFile {
            return Err(Errno::PERM);
        }
        let (parent, path) = self.place_of(id, name, false)?;
        let (directory, _) = parent.real()?;
        let (at, link) = self.place.link(descriptor);
        {
            let mut links = lock(&self.links);
            if !links.contains_key(&node.key) && links.len() >= MOST_LINKED {
                return Err(Errno::MLINK);
            }
            let link = || linkat(at, link, directory, name.as_os_str(), AtFlags::SYMLINK_FOLLOW);
            self.add(link)?;
            *links.entry(node.key.clone()).or_insert(0) += 1;
        }
        self.made(&parent, &path, name)
    }

    fn open_file(&self, id: u64, flags: u32) -> Result<Message, Errno> {
        let node = self.nodes.get(id)?;
        let mut message = Message::new(16);
        let open = match &node.what {
            What::Masked { is_directory: true } => return Err(Errno::ISDIR),
            What::Masked { is_directory: false } => match flags & ACCESS_MODE {
                READ_ONLY if flags & TRUNCATE == 0 => Open::Nothing,
                _ => return Err(Errno::ACCESS),
            },
            What::Real { .. } => self.open_real(&node, flags)?,
        };
        let handle = self.handles.add(node.clone(), open)?;
        let keep = node.is_watched() && flags & TRUNCATE == 0;
        message.opened(handle, if keep { KEEP_CACHE } else { 0 });
        Ok(message)
    }

    fn open_real(&self, node: &Node, flags: u32) -> Result<Open, Errno> {
        let (descriptor, kind) = node.real()?;
        match kind {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::ACCESS),
        }
        self.path(descriptor)?;
        let (access, reads, writes) = access(flags)?;
        let truncates = flags & TRUNCATE != 0;
        if writes || truncates {
            self.may_write(node)?;
        }
        if truncates && !writes {
            return Err(Errno::ACCESS);
        }
        let descriptor = self.place.reopen(descriptor, kind, access)?;
        if truncates {
            let _size = lock(&node.size);
            self.resize(&descriptor, 0)?;
            node.knows(&fstat(&descriptor)?);
        }
        Ok(Open::File { descriptor, reads, writes })
    }

    fn create(
        &self,
        id: u64,
        name: Component<'_>,
        flags: u32,
        mode: u32,
    ) -> Result<Message, Errno> {
        let (parent, path) = self.place_of(id, name, false)?;
        let (access, reads, writes) = access(flags)?;
        self.watch.add(&parent);
        let made = self.new_file(&parent, name, access, mode);
        let (node, attributes, open) = match made {
            Ok(descriptor) => {
                let stat = fstat(&descriptor)?;
                let (directory, _) = parent.real()?;
                let (found, now) = self.place.find(directory, name)?;
                if Key::of(&now) != Key::of(&stat) {
                    // The host was faster.
                    return Err(Errno::STALE);
                }
                let (node, attributes) = self.tell(&parent, found, &now)?;
                self.watch.made(&parent, name, Some(&node.key));
                (node, attributes, Open::File { descriptor, reads, writes })
            }
            Err(Errno::EXIST) if flags & EXCLUSIVE == 0 => {
                let above = path.parent().unwrap_or_else(|| Path::new(""));
                let (node, attributes) = self.find(&parent, above, name)?;
                let open = self.open_real(&node, flags).inspect_err(|_| self.forget(node.id, 1))?;
                (node, attributes, open)
            }
            Err(error) => return Err(error),
        };
        let handle =
            self.handles.add(node.clone(), open).inspect_err(|_| self.forget(node.id, 1))?;
        let mut message = Message::new(144);
        message.entry(node.id, Self::valid(Watched::is(&parent)), &attributes).opened(handle, 0);
        Ok(message)
    }

    fn read(&self, id: u64, handle: u64, offset: u64, size: u32) -> Result<Message, Errno> {
        let handle = self.handles.get(handle, id)?;
        let (descriptor, reads) = match &handle.open {
            Open::File { descriptor, reads, .. } => (descriptor, *reads),
            Open::Nothing => return Ok(Message::new(0)),
            Open::Directory(_) => return Err(Errno::ISDIR),
        };
        if !reads {
            return Err(Errno::BADF);
        }
        match self.path(descriptor) {
            // It became hidden since it was opened.
            Err(Errno::ACCESS) => return Ok(Message::new(0)),
            other => other?,
        };
        let size = usize::try_from(size).unwrap_or(0).min(MAX_DATA);
        let mut message = Message::new(size);
        let buffer = message.buffer();
        buffer.reserve_exact(size);
        let before = buffer.len();
        pread(descriptor, spare_capacity(buffer), offset)?;
        // The allocator may have given more room than was asked for.
        buffer.truncate(before + size);
        Ok(message)
    }

    fn writing(&self, id: u64, handle: u64) -> Result<Arc<Handle>, Errno> {
        let handle = self.handles.get(handle, id)?;
        match &handle.open {
            Open::File { writes: true, .. } => {}
            _ => return Err(Errno::BADF),
        }
        // Since it was opened it may have come to be something protected.
        self.may_write_on(&handle)?;
        Ok(handle)
    }

    fn may_write_on(&self, handle: &Handle) -> Result<(), Errno> {
        let (descriptor, kind) = handle.node.real()?;
        let path = self.place.path(descriptor)?;
        self.may_change(&path, kind == FileType::Directory)
    }

    fn write(&self, id: u64, handle: u64, offset: u64, data: &[u8]) -> Result<Message, Errno> {
        let handle = self.writing(id, handle)?;
        let Open::File { descriptor, .. } = &handle.open else { return Err(Errno::BADF) };
        let length = u64::try_from(data.len()).map_err(|_| Errno::INVAL)?;
        let _size = lock(&handle.node.size);
        let before = size_of(&fstat(descriptor)?);
        let appends = rustix::fs::fcntl_getfl(descriptor)?.contains(OFlags::APPEND);
        let start = if appends { before } else { offset };
        let end = start.checked_add(length).ok_or(Errno::FBIG)?;
        let growth = end.saturating_sub(before);
        self.quota.take(growth)?;
        let written = pwrite(descriptor, data, offset);
        let after = fstat(descriptor)?;
        handle.node.knows(&after);
        self.quota.give(growth.saturating_sub(size_of(&after).saturating_sub(before)));
        let written = u32::try_from(written?).map_err(|_| Errno::IO)?;
        let mut message = Message::new(8);
        message.u32(written).u32(0);
        Ok(message)
    }

    fn release(&self, id: u64, handle: u64) {
        let Some((handle, was_last)) = self.handles.remove(handle, id) else { return };
        match &handle.open {
            Open::File { descriptor, .. } if was_last => {
                if let Ok(stat) = fstat(descriptor)
                    && stat.st_nlink == 0
                {
                    self.quota.give(size_of(&stat));
                }
            }
            Open::Directory(names) => self.drop_names(&mut lock(names)),
            _ => {}
        }
    }

    fn drop_names(&self, names: &mut Vec<Listed>) {
        let bytes: usize = names.iter().map(cost).sum();
        names.clear();
        let less = |held: usize| Some(held.saturating_sub(bytes));
        let _ = self.listed.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    fn open_directory(&self, id: u64) -> Result<Message, Errno> {
        let node = self.nodes.get(id)?;
        let open = match &node.what {
            What::Masked { is_directory: true } => Open::Nothing,
            What::Masked { is_directory: false } => return Err(Errno::NOTDIR),
            What::Real { kind: FileType::Directory, descriptor } => {
                self.path(descriptor)?;
                self.watch.add(&node);
                Open::Directory(std::sync::Mutex::default())
            }
            What::Real { .. } => return Err(Errno::NOTDIR),
        };
        let flags = if Watched::is(&node) { KEEP_CACHE | CACHE_DIRECTORY } else { 0 };
        let handle = self.handles.add(node, open)?;
        let mut message = Message::new(16);
        message.opened(handle, flags);
        Ok(message)
    }

    /// The names of a directory as they are now.
    fn list(&self, node: &Node, path: &Path) -> Result<Vec<Listed>, Errno> {
        let (descriptor, kind) = node.real()?;
        let directory = Dir::new(self.place.reopen(descriptor, kind, OFlags::RDONLY)?)?;
        let mut names = Vec::new();
        let mut held = 0;
        let refuse = |names: &mut Vec<Listed>, held: usize| {
            names.clear();
            let less = |all: usize| Some(all.saturating_sub(held));
            let _ = self.listed.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        };
        for entry in directory {
            let entry = entry.inspect_err(|_| refuse(&mut names, held))?;
            let name = entry.file_name().to_bytes();
            let mut kind = entry.file_type();
            if kind != FileType::Directory
                && let Some(component) = Component::new(name)
                && self.hides(&path.join(component.as_os_str()))
            {
                kind = FileType::RegularFile;
            }
            let listed = Listed { name: name.into(), inode: entry.ino(), kind };
            let bytes = cost(&listed);
            if self.listed.fetch_add(bytes, Ordering::AcqRel) + bytes > self.options.listings {
                refuse(&mut names, held + bytes);
                return Err(Errno::NOMEM);
            }
            held += bytes;
            names.push(listed);
        }
        Ok(names)
    }

    fn read_directory(
        &self,
        id: u64,
        handle: u64,
        offset: u64,
        size: u32,
        plus: bool,
    ) -> Result<Message, Errno> {
        let size = usize::try_from(size).unwrap_or(0);
        let handle = self.handles.get(handle, id)?;
        let node = &handle.node;
        let names = match &handle.open {
            Open::Directory(names) => names,
            Open::Nothing => return Ok(Message::new(0)),
            Open::File { .. } => return Err(Errno::NOTDIR),
        };
        let path = self.path(node.real()?.0)?;
        let mut names = lock(names);
        if offset == 0 {
            self.drop_names(&mut names);
            *names = self.list(node, &path)?;
        }
        let mut message = Message::new(size);
        let valid = Self::valid(Watched::is(node));
        let first = usize::try_from(offset).unwrap_or(usize::MAX);
        for (entry, next) in names.iter().skip(first).zip(offset.saturating_add(1)..) {
            let head = if plus { 152 } else { 24 };
            if message.len() + head + padded(entry.name.len()) > size {
                break;
            }
            let found = match Component::new(&entry.name) {
                Some(name) if plus => self.find(node, &path, name).ok(),
                _ => None,
            };
            match (&found, plus) {
                (Some((found, attributes)), _) => {
                    message.entry(found.id, valid, attributes);
                }
                (None, true) => {
                    message.nothing(Duration::ZERO);
                }
                (None, false) => {}
            }
            let inode = found.map_or(entry.inode, |(_, attributes)| attributes.inode);
            message.name(inode, next, entry.kind, &entry.name);
        }
        Ok(message)
    }

    fn allocate(
        &self,
        id: u64,
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<Message, Errno> {
        let flags = match mode {
            0 => FallocateFlags::empty(),
            KEEP_SIZE => FallocateFlags::KEEP_SIZE,
            mode if mode == PUNCH_HOLE | KEEP_SIZE => {
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
            }
            ZERO_RANGE => FallocateFlags::ZERO_RANGE,
            mode if mode == ZERO_RANGE | KEEP_SIZE => {
                FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE
            }
            _ => return Err(Errno::OPNOTSUPP),
        };
        let handle = self.writing(id, handle)?;
        let Open::File { descriptor, .. } = &handle.open else { return Err(Errno::BADF) };
        let _size = lock(&handle.node.size);
        let before = size_of(&fstat(descriptor)?);
        let end = offset.checked_add(length).ok_or(Errno::FBIG)?;
        // What lies behind the end takes room, whether or not the size says so.
        let growth = match flags.contains(FallocateFlags::PUNCH_HOLE) {
            true => 0,
            false => end.saturating_sub(before),
        };
        self.quota.take(growth)?;
        fallocate(descriptor, flags, offset, length).inspect_err(|_| self.quota.give(growth))?;
        handle.node.knows(&fstat(descriptor)?);
        Ok(Message::new(0))
    }

    fn seek(&self, id: u64, handle: u64, offset: u64, whence: u32) -> Result<Message, Errno> {
        let handle = self.handles.get(handle, id)?;
        let Open::File { descriptor, .. } = &handle.open else { return Err(Errno::NXIO) };
        self.path(descriptor)?;
        let from = match whence {
            3 => SeekFrom::Data(offset),
            4 => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        let mut message = Message::new(8);
        message.u64(seek(descriptor, from)?);
        Ok(message)
    }

    fn copy_range(
        &self,
        (from_node, from, from_offset): (u64, u64, u64),
        (to_node, to, to_offset): (u64, u64, u64),
        length: u64,
    ) -> Result<Message, Errno> {
        let source = self.handles.get(from, from_node)?;
        let Open::File { descriptor: from, reads: true, .. } = &source.open else {
            return Err(Errno::BADF);
        };
        self.path(from)?;
        let target = self.writing(to_node, to)?;
        let Open::File { descriptor: to, .. } = &target.open else { return Err(Errno::BADF) };
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(MOST_COPIED);
        let _size = lock(&target.node.size);
        let before = size_of(&fstat(to)?);
        let end =
            to_offset.checked_add(u64::try_from(length).unwrap_or(u64::MAX)).ok_or(Errno::FBIG)?;
        let growth = end.saturating_sub(before);
        self.quota.take(growth)?;
        let (mut from_offset, mut to_offset) = (from_offset, to_offset);
        let copied =
            copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), length);
        let after = fstat(to)?;
        target.node.knows(&after);
        self.quota.give(growth.saturating_sub(size_of(&after).saturating_sub(before)));
        let mut message = Message::new(8);
        message.u32(u32::try_from(copied?).unwrap_or(u32::MAX)).u32(0);
        Ok(message)
    }
}

/// Whether a directory tells of what changes in it.
struct Watched;

impl Watched {
    fn is(directory: &Node) -> bool {
        directory.watch.load(Ordering::Relaxed) > 0
    }
}

fn size_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

fn cost(listed: &Listed) -> usize {
    size_of_val(listed) + listed.name.len()
}

fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & PERMISSIONS)
}

/// Directories between the shared one and what has this path.
fn depth(path: &Path) -> usize {
    path.as_os_str().as_bytes().iter().filter(|byte| **byte == b'/').count()
}

fn time(set: Option<Time>) -> Timespec {
    match set {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(Time::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(Time::At(seconds, nanoseconds)) => {
            Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() }
        }
    }
}

/// How a file is opened, and whether that reads and writes.
fn access(flags: u32) -> Result<(OFlags, bool, bool), Errno> {
    let (access, reads, writes) = match flags & ACCESS_MODE {
        READ_ONLY => (OFlags::RDONLY, true, false),
        WRITE_ONLY => (OFlags::WRONLY, false, true),
        2 => (OFlags::RDWR, true, true),
        _ => return Err(Errno::INVAL),
    };
    let append = if flags & APPEND != 0 { OFlags::APPEND } else { OFlags::empty() };
    Ok((access | append, reads, writes))
}

/// The shared directory itself is always known.
const _: () = assert!(ROOT == 1);
