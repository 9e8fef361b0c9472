//! A tree, or one file, to a tar stream.

use std::collections::HashMap;
use std::io::{self, Write};

use crate::root::{is_gone, open_file, read_link};
use crate::walk::{Entry, Step, WalkError, walk};
use crate::writer::CopyError;
use crate::{Inode, InodeKind, Kind, Member, Name, Root, Writer};

/// What a caller decides and hears while a tree is packed.
pub trait Packing {
    /// Whether the entry goes in; a directory that does not takes all in it along.
    fn wants(&mut self, _name: &Name, _inode: &Inode) -> bool {
        true
    }

    /// Whether the reader is asked before what belongs to the entry follows: a directory's
    /// entries, a file's content.
    fn asks(&mut self, _name: &Name, _inode: &Inode) -> bool {
        false
    }

    /// The reader has been asked: whether it follows. What both have agreed on to come where it
    /// does not may be written to `output`.
    ///
    /// # Errors
    /// What kept the answer away.
    fn follows(
        &mut self,
        _name: &Name,
        _inode: &Inode,
        _output: &mut dyn Write,
    ) -> io::Result<bool> {
        Ok(true)
    }

    /// Content of the file that [`Packing::packed`] will name, as it goes out.
    fn content(&mut self, _part: &[u8]) {}

    /// The entry is in.
    fn packed(&mut self, _member: &Member, _inode: &Inode) {}

    /// The entry was wanted but is not in.
    fn passed(&mut self, _name: &Name, _why: Passed) {}
}

/// What a host says to a question of [`Packing::asks`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// What belongs to the entry is not to follow.
    Over,
    /// It is to follow.
    Into,
    /// It is to follow, and nothing is asked any more.
    All,
}

impl Answer {
    /// What is sent.
    pub fn byte(self) -> u8 {
        self as u8
    }

    /// What was sent.
    pub fn parse(byte: u8) -> Option<Self> {
        [Self::Over, Self::Into, Self::All].into_iter().find(|answer| answer.byte() == byte)
    }
}

/// Everything, and no questions.
impl Packing for () {}

/// Why an entry is not in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// It is a socket, a FIFO or a device, which no archive can bring to life elsewhere.
    Special(InodeKind),
    /// It went away before it was read.
    Vanished,
}

/// Why a tree could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The tree could not be walked.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// A file could not be opened or read, or a link's target not be read.
    #[error("cannot read '{name}': {source}")]
    ReadFile {
        /// Which.
        name: Name,
        /// The system's reason.
        source: io::Error,
    },
    /// The archive could not be written.
    #[error("cannot send the archive: {0}")]
    Send(#[source] io::Error),
}

/// Packs everything below a root, in one order, so that the same tree gives the same bytes.
/// Symbolic links are packed as links, further names of a file as hard links; nothing is
/// followed. A file that cannot be read ends it: an archive with a silent gap is worse than none.
///
/// # Errors
/// What could not be read or sent.
pub fn pack<W: Write>(
    root: &Root,
    writer: &mut Writer<W>,
    packing: &mut impl Packing,
) -> Result<(), PackError> {
    let mut packer = Packer { writer, packing, linked: HashMap::new() };
    walk(root, &Name::ROOT, |entry| packer.add(&entry, entry.name))
}

/// Packs the one entry at `from` under the name `name`; a directory without what is in it.
///
/// # Errors
/// What could not be read or sent; also when nothing is there.
pub fn pack_one<W: Write>(
    root: &Root,
    from: &Name,
    name: &Name,
    writer: &mut Writer<W>,
    packing: &mut impl Packing,
) -> Result<(), PackError> {
    let look = |source| WalkError::Look { name: from.clone(), source };
    let (parent, component) = from.split().ok_or_else(|| look(io::ErrorKind::NotFound.into()))?;
    let directory = root.directory(&parent).map_err(look)?;
    let directory = std::os::fd::AsFd::as_fd(&directory);
    let inode = Inode::at(directory, component).map_err(look)?;
    let mut packer = Packer { writer, packing, linked: HashMap::new() };
    packer.add(&Entry { name: from, inode, directory, component }, name)?;
    Ok(())
}

struct Packer<'a, W: Write, P> {
    writer: &'a mut Writer<W>,
    packing: &'a mut P,
    /// First names of files that have several.
    linked: HashMap<(u64, u64), Name>,
}

impl<W: Write, P: Packing> Packer<'_, W, P> {
    fn add(&mut self, entry: &Entry<'_>, name: &Name) -> Result<Step, PackError> {
        if !self.packing.wants(name, &entry.inode) {
            return Ok(Step::Over);
        }
        match entry.inode.kind {
            InodeKind::Directory => {
                let Inode { mode, mtime: (mtime, _), .. } = entry.inode;
                let asks = self.asks(name, &entry.inode);
                self.writer.directory(name, mode, mtime).map_err(PackError::Send)?;
                if asks && !self.follows(name, &entry.inode)? {
                    return Ok(Step::Over);
                }
                self.tell(name, Kind::Directory, &entry.inode);
            }
            InodeKind::File => self.add_file(entry, name)?,
            InodeKind::Symlink => match read_link(entry.directory, entry.component) {
                Ok(target) => {
                    let mtime = entry.inode.mtime.0;
                    self.writer.symlink(name, &target, mtime).map_err(PackError::Send)?;
                    self.tell(name, Kind::Symlink { target }, &entry.inode);
                }
                // EINVAL: it is no link any more.
                Err(error) if is_gone(&error) || is_invalid(&error) => {
                    self.packing.passed(name, Passed::Vanished);
                }
                Err(source) => {
                    return Err(PackError::ReadFile { name: entry.name.clone(), source });
                }
            },
            kind => self.packing.passed(name, Passed::Special(kind)),
        }
        Ok(Step::Into)
    }

    fn add_file(&mut self, entry: &Entry<'_>, name: &Name) -> Result<(), PackError> {
        let failed = |source| PackError::ReadFile { name: entry.name.clone(), source };
        // What was opened decides, not what stood there before.
        let (mut file, inode) = match open_file(entry.directory, entry.component) {
            Ok(opened) => opened,
            Err(error) if is_gone(&error) || is_invalid(&error) => {
                self.packing.passed(name, Passed::Vanished);
                return Ok(());
            }
            Err(source) => return Err(failed(source)),
        };
        let Inode { mode, mtime: (mtime, _), size, .. } = inode;
        if inode.links > 1
            && let Some(target) = self.linked.get(&inode.id).cloned()
        {
            self.writer.hard_link(name, &target, mode, mtime).map_err(PackError::Send)?;
            self.tell(name, Kind::HardLink { target }, &inode);
            return Ok(());
        }
        let asks = self.asks(name, &inode);
        self.writer.file(name, mode, mtime, size).map_err(PackError::Send)?;
        if asks && !self.follows(name, &inode)? {
            return Ok(());
        }
        if inode.links > 1 {
            self.linked.insert(inode.id, name.clone());
        }
        let packing = &mut *self.packing;
        self.writer.content(size, &mut file, |part| packing.content(part)).map_err(|error| {
            match error {
                CopyError::Read(source) => failed(source),
                CopyError::Write(source) => PackError::Send(source),
            }
        })?;
        self.tell(name, Kind::File { size }, &inode);
        Ok(())
    }

    fn asks(&mut self, name: &Name, inode: &Inode) -> bool {
        let asks = self.packing.asks(name, inode);
        if asks {
            self.writer.ask();
        }
        asks
    }

    fn follows(&mut self, name: &Name, inode: &Inode) -> Result<bool, PackError> {
        let output = self.writer.output().map_err(PackError::Send)?;
        self.packing.follows(name, inode, output).map_err(PackError::Send)
    }

    fn tell(&mut self, name: &Name, kind: Kind, inode: &Inode) {
        let member = Member { name: name.clone(), kind, mode: inode.mode, mtime: inode.mtime.0 };
        self.packing.packed(&member, inode);
    }
}

fn is_invalid(error: &io::Error) -> bool {
    rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::INVAL)
}
