//! Members of an archive into a directory.

use std::borrow::BorrowMut;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::root::{is_gone, modified};
use crate::writer::CHUNK;
use crate::{Inode, InodeKind, Kind, Member, Name, Root};

/// What happens to what is already there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// A file or link makes way for a file or link; directories are used. Missing parents are
    /// made.
    Replace,
    /// It is an error, as is an entry whose directory did not come before it. So no name comes
    /// twice, also not in other letters on a file system that does not tell them apart.
    Refuse,
}

/// A directory whose own metadata must wait until everything in it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Which.
    pub name: Name,
    /// Permission bits, at most 0o777.
    pub mode: u32,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
}

/// Why an entry could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// Something is there that may not make way.
    #[error("cannot put '{name}' in place: {what} is already there")]
    Occupied {
        /// Which.
        name: Name,
        /// What stands there.
        what: &'static str,
    },
    /// Its directory is not there, or is something else: a symbolic link above all.
    #[error("cannot put '{name}' in place: what it is in is not a directory of this tree")]
    Parent {
        /// Which.
        name: Name,
    },
    /// A hard link's target is not a file that came before.
    #[error("the hard link '{name}' is refused: '{target}' is not a file of this tree")]
    HardLink {
        /// The link.
        name: Name,
        /// Its target.
        target: Name,
    },
    /// It could not be made.
    #[error("cannot create '{name}': {source}")]
    Create {
        /// Which.
        name: Name,
        /// The system's reason.
        source: io::Error,
    },
    /// Its content did not arrive.
    #[error("the content of '{name}' did not arrive: {source}")]
    Receive {
        /// Which.
        name: Name,
        /// The stream's reason.
        source: io::Error,
    },
    /// Its content could not be written.
    #[error("cannot write '{name}': {source}")]
    WriteFile {
        /// Which.
        name: Name,
        /// The system's reason.
        source: io::Error,
    },
    /// Its permissions or times could not be set.
    #[error("cannot set the permissions and times of '{name}': {source}")]
    SetMetadata {
        /// Which.
        name: Name,
        /// The system's reason.
        source: io::Error,
    },
}

/// Puts members in place below a root. No call follows a link, so a link that an earlier member
/// made is an error for what is named through it. Owner is whoever runs; of the permission bits
/// setuid, setgid and sticky are dropped. Directories are writable to the owner until
/// [`Extract::finish`].
#[derive(Debug)]
pub struct Extract<'a> {
    root: &'a Root,
    existing: Existing,
    /// Archives hold a directory's entries side by side: one lookup serves them all.
    parent: Option<(Name, OwnedFd)>,
    directories: Vec<Directory>,
    chunk: Vec<u8>,
}

impl<'a> Extract<'a> {
    /// Starts below a root.
    pub fn new(root: &'a Root, existing: Existing) -> Self {
        Self { root, existing, parent: None, directories: Vec::new(), chunk: vec![0; CHUNK] }
    }

    /// Puts one member in place. A file that fails half-way is removed.
    ///
    /// # Errors
    /// Why it could not be put there.
    pub fn add(&mut self, member: &Member, content: &mut impl Read) -> Result<(), ExtractError> {
        let Some((parent, component)) = member.name.split() else {
            // The root's own metadata belongs to whoever made it.
            return Ok(());
        };
        let directory = match self.parent.take() {
            Some((name, fd)) if name == parent => fd,
            _ => self.open_parent(&parent, &member.name)?,
        };
        let done = self.add_in(member, directory.as_fd(), component, content);
        self.parent = Some((parent, directory));
        done
    }

    /// Sets permissions and times of the directories, the innermost first.
    ///
    /// # Errors
    /// `SetMetadata`.
    pub fn finish(self) -> Result<(), ExtractError> {
        let root = self.root;
        let mut set = HashSet::new();
        for Directory { name, mode, mtime } in self.into_directories().into_iter().rev() {
            // Of one that came twice, the last counts.
            if !set.insert(name.clone()) {
                continue;
            }
            root.set_directory(&name, mode, Some(mtime))
                .map_err(|source| ExtractError::SetMetadata { name, source })?;
        }
        Ok(())
    }

    /// The directories in the order they came, for a caller who sets their metadata elsewhere.
    pub fn into_directories(self) -> Vec<Directory> {
        self.directories
    }

    fn open_parent(&self, parent: &Name, name: &Name) -> Result<OwnedFd, ExtractError> {
        let opened = match (self.root.directory(parent), self.existing) {
            (Err(error), Existing::Replace) if error.kind() == io::ErrorKind::NotFound => {
                self.root.make_directories(parent)
            }
            (opened, _) => opened,
        };
        opened.map_err(|source| {
            if is_gone(&source) {
                ExtractError::Parent { name: name.clone() }
            } else {
                ExtractError::Create { name: name.clone(), source }
            }
        })
    }

    fn add_in(
        &mut self,
        member: &Member,
        directory: BorrowedFd<'_>,
        component: &OsStr,
        content: &mut impl Read,
    ) -> Result<(), ExtractError> {
        let name = &member.name;
        let created = |source: io::Error| ExtractError::Create { name: name.clone(), source };
        match &member.kind {
            Kind::Directory => {
                let mode = member.mode & 0o777;
                match rustix::fs::mkdirat(directory, component, Mode::RWXU) {
                    Ok(()) => {}
                    Err(Errno::EXIST) => {
                        let there = Inode::at(directory, component).map_err(created)?;
                        if there.kind != InodeKind::Directory || self.existing == Existing::Refuse {
                            let what = there.kind.as_str();
                            return Err(ExtractError::Occupied { name: name.clone(), what });
                        }
                    }
                    Err(error) => return Err(created(error.into())),
                }
                self.directories.push(Directory { name: name.clone(), mode, mtime: member.mtime });
                Ok(())
            }
            Kind::File { .. } => {
                self.make_way(name, directory, component)?;
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let mode = Mode::RUSR | Mode::WUSR;
                let fd = rustix::fs::openat(directory, component, flags, mode)
                    .map_err(|error| created(error.into()))?;
                let filled = self.fill(File::from(fd), member, content);
                if filled.is_err() {
                    let _ = rustix::fs::unlinkat(directory, component, AtFlags::empty());
                }
                filled
            }
            Kind::Symlink { target } => {
                self.make_way(name, directory, component)?;
                rustix::fs::symlinkat(target.as_slice(), directory, component)
                    .map_err(|error| created(error.into()))?;
                // Some file systems keep no times for links.
                let times = modified(member.mtime);
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                let _ = rustix::fs::utimensat(directory, component, &times, flags);
                Ok(())
            }
            Kind::HardLink { target } => self.add_hard_link(name, directory, component, target),
        }
    }

    fn add_hard_link(
        &self,
        name: &Name,
        directory: BorrowedFd<'_>,
        component: &OsStr,
        target: &Name,
    ) -> Result<(), ExtractError> {
        let refused = || ExtractError::HardLink { name: name.clone(), target: target.clone() };
        let (parent, file) = target.split().ok_or_else(refused)?;
        if target == name {
            return Err(refused());
        }
        let parent = self.root.directory(&parent).map_err(|_| refused())?;
        match Inode::at(parent.as_fd(), file) {
            Ok(inode) if inode.kind == InodeKind::File => {}
            _ => return Err(refused()),
        }
        self.make_way(name, directory, component)?;
        rustix::fs::linkat(&parent, file, directory, component, AtFlags::empty())
            .map_err(|error| ExtractError::Create { name: name.clone(), source: error.into() })
    }

    /// Removes what stands at a name if that may be, so that the name can be created anew: an
    /// open for writing would follow a link or write into other names of the same file.
    fn make_way(
        &self,
        name: &Name,
        directory: BorrowedFd<'_>,
        component: &OsStr,
    ) -> Result<(), ExtractError> {
        let there = match Inode::at(directory, component) {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(ExtractError::Create { name: name.clone(), source }),
        };
        if self.existing == Existing::Refuse || there.kind == InodeKind::Directory {
            let what = there.kind.as_str();
            return Err(ExtractError::Occupied { name: name.clone(), what });
        }
        rustix::fs::unlinkat(directory, component, AtFlags::empty())
            .map_err(|error| ExtractError::Create { name: name.clone(), source: error.into() })
    }

    fn fill(
        &mut self,
        file: File,
        member: &Member,
        content: &mut impl Read,
    ) -> Result<(), ExtractError> {
        let name = || member.name.clone();
        let mut sparse = Sparse::new(file);
        loop {
            let got = match content.read(&mut self.chunk) {
                Ok(0) => break,
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(ExtractError::Receive { name: name(), source }),
            };
            sparse
                .write(&self.chunk[..got])
                .map_err(|source| ExtractError::WriteFile { name: name(), source })?;
        }
        let file =
            sparse.finish().map_err(|source| ExtractError::WriteFile { name: name(), source })?;
        rustix::fs::futimens(&file, &modified(member.mtime))
            .and_then(|()| rustix::fs::fchmod(&file, Mode::from_raw_mode(member.mode & 0o777)))
            .map_err(|error| ExtractError::SetMetadata { name: name(), source: error.into() })
    }
}

/// A new file in which long runs of zeros become holes: an archive has none, and a disk has not
/// always room for what a file of the other side only claims to hold.
#[derive(Debug)]
pub struct Sparse<F> {
    file: F,
    /// Bytes before the end that were not written.
    hole: u64,
}

/// The least that is worth a hole: what file systems allocate at once is no more.
const HOLE: usize = 32 << 10;

impl<F: BorrowMut<File>> Sparse<F> {
    /// Writes to a file that is empty.
    pub fn new(file: F) -> Self {
        Self { file, hole: 0 }
    }

    /// Writes what comes next.
    ///
    /// # Errors
    /// As `write` and `lseek`.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() >= HOLE && is_zero(bytes) {
            self.hole += bytes.len() as u64;
            return Ok(());
        }
        self.skip()?;
        self.file.borrow_mut().write_all(bytes)
    }

    /// Gives the file back, as long as what was written.
    ///
    /// # Errors
    /// As `lseek` and `ftruncate`.
    pub fn finish(mut self) -> io::Result<F> {
        if self.hole > 0 {
            self.skip()?;
            let file = self.file.borrow_mut();
            let end = file.stream_position()?;
            file.set_len(end)?;
        }
        Ok(self.file)
    }

    fn skip(&mut self) -> io::Result<()> {
        if self.hole > 0 {
            let hole = i64::try_from(self.hole).map_err(|_| io::ErrorKind::FileTooLarge)?;
            self.file.borrow_mut().seek(SeekFrom::Current(hole))?;
            self.hole = 0;
        }
        Ok(())
    }
}

/// Compares the bytes with themselves, one further on: as fast as memory is.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0) && bytes[1..] == bytes[..bytes.len() - 1]
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;
    use crate::Printable;

    fn member(name: &str, kind: Kind) -> Member {
        Member { name: Name::parse(name.as_bytes()).unwrap(), kind, mode: 0o4755, mtime: 1000 }
    }

    fn file(name: &str, content: &str) -> Member {
        member(name, Kind::File { size: content.len() as u64 })
    }

    fn link(name: &str, target: &str) -> Member {
        member(name, Kind::Symlink { target: target.into() })
    }

    fn hard_link(name: &str, target: &str) -> Member {
        member(name, Kind::HardLink { target: Name::parse(target.as_bytes()).unwrap() })
    }

    #[test]
    fn long_runs_of_zeros_become_holes_and_nothing_else_changes() {
        let tree = tempfile::tempdir().unwrap();
        let root = Root::open(tree.path()).unwrap();
        let mut content = vec![0; 4 << 20];
        content[0] = 1;
        content[2 << 20] = 2;
        for (name, length) in [("inside", (2 << 20) + 1), ("at-the-end", 4 << 20), ("short", 100)] {
            let content = &content[..length];
            let member = member(name, Kind::File { size: length as u64 });
            let mut extract = Extract::new(&root, Existing::Refuse);
            extract.add(&member, &mut &content[..]).unwrap();
            let path = tree.path().join(name);
            assert!(fs::read(&path).unwrap() == content, "{name}");
            let blocks = fs::metadata(&path).unwrap().blocks();
            assert!(blocks * 512 <= 1 << 20, "{name}: {blocks}");
        }
    }

    #[test]
    fn nothing_is_written_through_a_link_of_the_archive() {
        for existing in [Existing::Replace, Existing::Refuse] {
            let outside = tempfile::tempdir().unwrap();
            let tree = tempfile::tempdir().unwrap();
            let root = Root::open(tree.path()).unwrap();
            let mut extract = Extract::new(&root, existing);
            let out = outside.path().to_str().unwrap();
            extract.add(&link("out", out), &mut io::empty()).unwrap();
            extract.add(&link("up", ".."), &mut io::empty()).unwrap();
            for hostile in [file("out/a", ""), file("up/a", ""), member("out/d", Kind::Directory)] {
                let error = extract.add(&hostile, &mut io::empty()).unwrap_err();
                assert!(matches!(error, ExtractError::Parent { .. }), "{error}");
            }
            for hostile in [hard_link("a", "out"), hard_link("a", "out/x"), hard_link("a", "a")] {
                let error = extract.add(&hostile, &mut io::empty()).unwrap_err();
                assert!(matches!(error, ExtractError::HardLink { .. }), "{error}");
            }
            let error = extract.add(&member("out", Kind::Directory), &mut io::empty());
            assert!(matches!(error, Err(ExtractError::Occupied { .. })));
            assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_file_takes_the_place_of_a_link_and_not_of_its_target() {
        let outside = tempfile::NamedTempFile::new().unwrap();
        let tree = tempfile::tempdir().unwrap();
        symlink(outside.path(), tree.path().join("a")).unwrap();
        let root = Root::open(tree.path()).unwrap();
        let mut extract = Extract::new(&root, Existing::Replace);
        extract.add(&file("a", "new"), &mut &b"new"[..]).unwrap();
        assert_eq!(fs::read(tree.path().join("a")).unwrap(), b"new");
        assert!(tree.path().join("a").symlink_metadata().unwrap().is_file());
        assert_eq!(fs::read(outside.path()).unwrap(), b"");
    }

    #[test]
    fn refusing_means_that_no_name_comes_twice() {
        let tree = tempfile::tempdir().unwrap();
        let root = Root::open(tree.path()).unwrap();
        let mut extract = Extract::new(&root, Existing::Refuse);
        extract.add(&file("a", "1"), &mut &b"1"[..]).unwrap();
        for again in [file("a", "2"), link("a", "b"), member("a", Kind::Directory)] {
            let error = extract.add(&again, &mut io::empty()).unwrap_err();
            assert!(matches!(error, ExtractError::Occupied { .. }), "{error}");
        }
        extract.add(&member("e", Kind::Directory), &mut io::empty()).unwrap();
        let error = extract.add(&member("e", Kind::Directory), &mut io::empty()).unwrap_err();
        assert!(matches!(error, ExtractError::Occupied { .. }), "{error}");
        let error = extract.add(&file("d/b", ""), &mut io::empty()).unwrap_err();
        assert!(matches!(error, ExtractError::Parent { .. }), "{error}");
        assert_eq!(fs::read(tree.path().join("a")).unwrap(), b"1");
    }

    #[test]
    fn modes_lose_setuid_and_directories_get_theirs_last() {
        let tree = tempfile::tempdir().unwrap();
        let root = Root::open(tree.path()).unwrap();
        let mut extract = Extract::new(&root, Existing::Replace);
        let mut locked = member("d", Kind::Directory);
        locked.mode = 0o2555;
        extract.add(&locked, &mut io::empty()).unwrap();
        extract.add(&file("d/a", "x"), &mut &b"x"[..]).unwrap();
        extract.add(&hard_link("d/b", "d/a"), &mut io::empty()).unwrap();
        extract.finish().unwrap();
        let of = |name: &str| fs::symlink_metadata(tree.path().join(name)).unwrap();
        assert_eq!(of("d").permissions().mode() & 0o7777, 0o555);
        assert_eq!(of("d").mtime(), 1000);
        assert_eq!(of("d/a").permissions().mode() & 0o7777, 0o755);
        assert_eq!((of("d/a").mtime(), of("d/a").nlink()), (1000, 2));
        fs::set_permissions(tree.path().join("d"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn a_file_that_stops_half_way_does_not_stay() {
        struct Broken(bool);
        impl Read for Broken {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if std::mem::replace(&mut self.0, true) {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                buffer[0] = b'x';
                Ok(1)
            }
        }
        let tree = tempfile::tempdir().unwrap();
        let root = Root::open(tree.path()).unwrap();
        let mut extract = Extract::new(&root, Existing::Replace);
        let error = extract.add(&file("a", "xx"), &mut Broken(false)).unwrap_err();
        assert!(matches!(error, ExtractError::Receive { .. }), "{error}");
        assert!(!tree.path().join("a").exists());
    }

    #[test]
    fn names_that_are_not_text_are_made_as_they_are() {
        let tree = tempfile::tempdir().unwrap();
        let root = Root::open(tree.path()).unwrap();
        let mut extract = Extract::new(&root, Existing::Refuse);
        let name = Name::parse(b"\xff\n\x1b").unwrap();
        let kind = Kind::File { size: 0 };
        extract.add(&Member { name, kind, mode: 0o644, mtime: 0 }, &mut io::empty()).unwrap();
        let made = fs::read_dir(tree.path()).unwrap().next().unwrap().unwrap().file_name();
        let bytes = std::os::unix::ffi::OsStrExt::as_bytes(&*made);
        assert_eq!(bytes, b"\xff\n\x1b", "{}", Printable(bytes));
    }
}
