//! A directory, and the system calls that cannot leave it.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT};

use crate::Name;

/// A directory that names are looked up in without following any symbolic link, so that whatever
/// a stranger put below it, no call reaches what is not below it.
///
/// On Linux every lookup is one `openat2` with `RESOLVE_BENEATH`; where that is missing (other
/// systems, Linux before 5.6, container filters that refuse it) the components are opened one by
/// one with `O_NOFOLLOW`.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

/// `O_PATH` is enough to work in a directory and does not ask for permission to read it.
#[cfg(target_os = "linux")]
const IN: OFlags = OFlags::PATH;
#[cfg(not(target_os = "linux"))]
const IN: OFlags = OFlags::RDONLY;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Root {
    /// Opens a directory by a path that the caller trusts: links in it are followed.
    ///
    /// # Errors
    /// As `open`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { fd: rustix::fs::open(path, flags, Mode::empty())? })
    }

    /// A directory below, to look things up in and to change what it holds.
    ///
    /// # Errors
    /// As `openat`; `ELOOP` or `ENOTDIR` where a component is not a directory.
    pub fn directory(&self, name: &Name) -> io::Result<OwnedFd> {
        self.open_directory(name, IN)
    }

    /// A directory below, to list.
    ///
    /// # Errors
    /// As [`Root::directory`], and where it may not be read.
    pub fn listing(&self, name: &Name) -> io::Result<OwnedFd> {
        self.open_directory(name, OFlags::RDONLY)
    }

    #[cfg(target_os = "linux")]
    fn open_directory(&self, name: &Name, flags: OFlags) -> io::Result<OwnedFd> {
        use rustix::fs::ResolveFlags;
        use rustix::io::Errno;

        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let how = flags | DIRECTORY;
        match rustix::fs::openat2(&self.fd, name.as_path(), how, Mode::empty(), resolve) {
            Ok(fd) => Ok(fd),
            // Container runtimes answer calls that they do not know with EPERM.
            Err(Errno::NOSYS | Errno::PERM) => self.open_by_component(name, flags),
            Err(error) => Err(error.into()),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn open_directory(&self, name: &Name, flags: OFlags) -> io::Result<OwnedFd> {
        self.open_by_component(name, flags)
    }

    fn open_by_component(&self, name: &Name, flags: OFlags) -> io::Result<OwnedFd> {
        let mut components = name.components().peekable();
        let mut at: Option<OwnedFd> = None;
        while let Some(component) = components.next() {
            let flags = if components.peek().is_some() { IN } else { flags };
            let from = at.as_ref().unwrap_or(&self.fd);
            at = Some(rustix::fs::openat(from, component, flags | DIRECTORY, Mode::empty())?);
        }
        match at {
            Some(fd) => Ok(fd),
            None => Ok(rustix::fs::openat(&self.fd, ".", flags | DIRECTORY, Mode::empty())?),
        }
    }

    /// Like [`Root::directory`], making what is missing with permission bits 0755.
    ///
    /// # Errors
    /// As [`Root::directory`] and `mkdirat`.
    pub fn make_directories(&self, name: &Name) -> io::Result<OwnedFd> {
        let mut at = self.directory(&Name::ROOT)?;
        for component in name.components() {
            match rustix::fs::mkdirat(&at, component, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            at = rustix::fs::openat(&at, component, IN | DIRECTORY, Mode::empty())?;
        }
        Ok(at)
    }

    /// What stands at a name; `None` where nothing does. Nothing is followed.
    ///
    /// # Errors
    /// As `fstatat`, except that a missing or non-directory parent also counts as nothing.
    pub fn inode(&self, name: &Name) -> io::Result<Option<Inode>> {
        let found = match name.split() {
            None => Inode::at(self.fd.as_fd(), OsStr::new(".")),
            Some((parent, component)) => self
                .directory(&parent)
                .and_then(|directory| Inode::at(directory.as_fd(), component)),
        };
        match found {
            Ok(inode) => Ok(Some(inode)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where the symbolic link at a name points.
    ///
    /// # Errors
    /// As `readlinkat`.
    pub fn link_target(&self, name: &Name) -> io::Result<Vec<u8>> {
        let (parent, component) = name.split().ok_or(rustix::io::Errno::INVAL)?;
        read_link(self.directory(&parent)?.as_fd(), component)
    }

    /// Opens the regular file at a name for reading.
    ///
    /// # Errors
    /// As [`open_file`].
    pub fn file(&self, name: &Name) -> io::Result<(File, Inode)> {
        let (parent, component) = name.split().ok_or(rustix::io::Errno::ISDIR)?;
        open_file(self.directory(&parent)?.as_fd(), component)
    }

    /// Sets permission bits and, where given, modification time of the directory at a name.
    ///
    /// # Errors
    /// As `fchmodat` and `utimensat`.
    pub fn set_directory(&self, name: &Name, mode: u32, mtime: Option<i64>) -> io::Result<()> {
        let directory = self.directory(name)?;
        if let Some(mtime) = mtime {
            rustix::fs::utimensat(&directory, ".", &modified(mtime), AtFlags::empty())?;
        }
        let mode = Mode::from_raw_mode(mode & 0o777);
        Ok(rustix::fs::chmodat(&directory, ".", mode, AtFlags::empty())?)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether the error says that the name, or a directory on the way to it, is not there any more:
/// gone, or something else now.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE)
    )
}

/// Opens a regular file in a directory for reading. `O_NONBLOCK`: a FIFO that took its place must
/// not hang the caller.
///
/// # Errors
/// As `openat`; `EINVAL` where it is not a regular file.
pub(crate) fn open_file(directory: BorrowedFd<'_>, component: &OsStr) -> io::Result<(File, Inode)> {
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(directory, component, flags, Mode::empty())?;
    let inode = Inode::from(rustix::fs::fstat(&fd)?);
    if inode.kind != InodeKind::File {
        return Err(rustix::io::Errno::INVAL.into());
    }
    Ok((File::from(fd), inode))
}

pub(crate) fn read_link(directory: BorrowedFd<'_>, component: &OsStr) -> io::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(directory, component, Vec::new())?.into_bytes())
}

/// Times that set the modification time, in seconds since 1970, and leave the access time.
pub(crate) fn modified(mtime: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime, tv_nsec: 0 },
    }
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InodeKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A block or character device.
    Device,
}

impl InodeKind {
    /// For a person, with its article.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "a file",
            Self::Directory => "a directory",
            Self::Symlink => "a symbolic link",
            Self::Fifo => "a FIFO",
            Self::Socket => "a socket",
            Self::Device => "a device",
        }
    }
}

/// An inode's metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// What it is.
    pub kind: InodeKind,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    /// In bytes.
    pub size: u64,
    /// Modification time: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Time of the last change to content or metadata, which no program can set.
    pub ctime: (i64, u32),
    /// File system and number.
    pub id: (u64, u64),
    /// Names that it has.
    pub links: u64,
    /// Owner and group.
    pub owner: (u32, u32),
}

impl Inode {
    /// What stands at a component of a directory; nothing is followed.
    ///
    /// # Errors
    /// As `fstatat`.
    pub fn at(directory: BorrowedFd<'_>, component: &OsStr) -> io::Result<Self> {
        Ok(rustix::fs::statat(directory, component, AtFlags::SYMLINK_NOFOLLOW)?.into())
    }
}

impl From<Stat> for Inode {
    // The fields' types differ by system; none of the values is out of range.
    #[allow(
        clippy::unnecessary_cast,
        clippy::cast_sign_loss,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_lossless
    )]
    fn from(stat: Stat) -> Self {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => InodeKind::File,
            FileType::Directory => InodeKind::Directory,
            FileType::Symlink => InodeKind::Symlink,
            FileType::Fifo => InodeKind::Fifo,
            FileType::Socket => InodeKind::Socket,
            _ => InodeKind::Device,
        };
        Self {
            kind,
            mode: (stat.st_mode as u32) & 0o7777,
            size: stat.st_size as u64,
            mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as u32),
            ctime: (stat.st_ctime as i64, stat.st_ctime_nsec as u32),
            id: (stat.st_dev as u64, stat.st_ino as u64),
            links: stat.st_nlink as u64,
            owner: (stat.st_uid, stat.st_gid),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn no_lookup_goes_through_a_link_by_either_way() {
        let outside = tempfile::tempdir().unwrap();
        let inside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("d")).unwrap();
        fs::create_dir_all(inside.path().join("real/d")).unwrap();
        symlink(outside.path(), inside.path().join("out")).unwrap();
        symlink("real", inside.path().join("near")).unwrap();
        symlink("/proc/self/cwd", inside.path().join("magic")).unwrap();
        let root = Root::open(inside.path()).unwrap();
        for hostile in ["out", "out/d", "near", "near/d", "magic", "magic/d"] {
            assert!(root.open_directory(&name(hostile), IN).is_err(), "{hostile}");
            assert!(root.open_by_component(&name(hostile), IN).is_err(), "{hostile}");
        }
        for honest in ["real", "real/d", "."] {
            root.open_directory(&name(honest), OFlags::RDONLY).unwrap();
            root.open_by_component(&name(honest), OFlags::RDONLY).unwrap();
        }
    }

    #[test]
    fn missing_directories_are_made_but_not_through_links() {
        let outside = tempfile::tempdir().unwrap();
        let inside = tempfile::tempdir().unwrap();
        symlink(outside.path(), inside.path().join("out")).unwrap();
        let root = Root::open(inside.path()).unwrap();
        root.make_directories(&name("a/b/c")).unwrap();
        assert!(inside.path().join("a/b/c").is_dir());
        assert!(root.make_directories(&name("out/x")).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_fifo_in_the_place_of_a_file_neither_hangs_nor_opens() {
        let inside = tempfile::tempdir().unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            inside.path().join("pipe"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(Root::open(inside.path()).unwrap().file(&name("pipe")).is_err());
    }
}
