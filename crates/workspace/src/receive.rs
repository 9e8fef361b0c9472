//! A guest's tree, taken in as a whole before anything else happens.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::PathBuf;

use archive::{
    Directory, Existing, Extract, ExtractError, Kind, Member, Name, Printable, ReadError, Reader,
};

use crate::links::{Below, Resolution, Steps, resolve};
use crate::manifest::Hashing;
use crate::staging::Staging;
use crate::{Node, Progress};

/// Entries of one tree. A large repository with its dependencies installed has a few hundred
/// thousand; each costs an inode on the host and some hundred bytes of memory here.
pub const MAX_ENTRIES: u64 = 2_000_000;

/// Bytes of content of one tree: four times what a guest's disk has room for by default, so that
/// only a guest that lies meets it.
pub const MAX_BYTES: u64 = 64 << 30;

/// Bytes of all names and link targets together, which are held in memory: 128 on average at the
/// most entries, where real trees have 60.
pub const MAX_NAMES: u64 = 256 << 20;

/// Directories within each other. Real trees stay below 60; removing one takes an open file each,
/// of which a process has 256 on some systems.
pub const MAX_DEPTH: usize = 128;

/// How much of a guest's tree is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// See [`MAX_ENTRIES`].
    pub entries: u64,
    /// See [`MAX_BYTES`].
    pub bytes: u64,
    /// See [`MAX_NAMES`].
    pub names: u64,
    /// See [`MAX_DEPTH`].
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: MAX_ENTRIES, bytes: MAX_BYTES, names: MAX_NAMES, depth: MAX_DEPTH }
    }
}

/// What happens to symbolic links that lead out of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutsideLinks {
    /// The whole tree is refused.
    #[default]
    Refuse,
    /// They are held back and told.
    LeaveOut,
}

/// Why a guest's tree was not taken. The host's files are as they were, but for
/// [`UnpackError::Undo`].
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The stream is no archive, or one that is refused.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// An entry could not be put in the staging directory.
    #[error(transparent)]
    Extract(ExtractError),
    /// The disk is full.
    #[error("there is no space for '{name}' on the disk of '{}'; free some", shown(path))]
    NoSpace {
        /// What did not fit.
        name: Name,
        /// Where it was put for the time being.
        path: PathBuf,
    },
    /// More entries than [`Limits::entries`].
    #[error("the guest's tree has more than {limit} entries, which is the limit")]
    TooManyEntries {
        /// The limit.
        limit: u64,
    },
    /// More content than [`Limits::bytes`].
    #[error("the guest's tree has more than {limit} bytes, which is the limit")]
    TooManyBytes {
        /// The limit.
        limit: u64,
    },
    /// Longer names than [`Limits::names`].
    #[error("the names in the guest's tree have more than {limit} bytes, which is the limit")]
    TooManyNames {
        /// The limit.
        limit: u64,
    },
    /// Deeper than [`Limits::depth`].
    #[error("the entry '{name}' is more than {limit} directories deep, which is the limit")]
    TooDeep {
        /// Which.
        name: Name,
        /// The limit.
        limit: usize,
    },
    /// A symbolic link leads out of the tree.
    #[error(
        "the symbolic link '{name}' to '{}' leads out of the directory, which is refused; \
         remove it in the guest, or make it relative",
        Printable(target)
    )]
    LinkLeaves {
        /// Which.
        name: Name,
        /// Where it points.
        target: Vec<u8>,
    },
    /// Following the links takes too long.
    #[error("the symbolic links of the guest's tree are too entangled to be checked")]
    Labyrinth,
    /// The destination could not be looked at.
    #[error("cannot open '{}': {source}", shown(path))]
    Open {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The destination may only be new or empty.
    #[error("'{}' is not empty; give a new or an empty directory", shown(path))]
    NotEmpty {
        /// Which.
        path: PathBuf,
    },
    /// The staging directory could not be made.
    #[error("cannot make a directory to receive into beside '{}': {source}", shown(path))]
    Stage {
        /// The destination.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A directory and something else have the same name.
    #[error("'{name}' is a directory on one side and not on the other; remove it first")]
    Occupied {
        /// Which.
        name: Name,
    },
    /// What the host has could not be compared with what came.
    #[error("cannot look at '{name}' in the destination: {source}; nothing was changed")]
    Compare {
        /// Which.
        name: Name,
        /// The system's reason.
        source: io::Error,
    },
    /// Changes could not be kept, or not be read.
    #[error(transparent)]
    Changes(crate::ChangesError),
    /// An entry could not be moved into place.
    #[error("cannot put '{name}' in place: {source}; nothing was changed")]
    Place {
        /// Which.
        name: Name,
        /// The system's reason.
        source: io::Error,
    },
    /// An entry could not be moved into place, and those before it not be moved back.
    #[error(
        "'{name}' could not be put back ({source}) after this failure: {cause}. What was \
         replaced is in '{}'",
        shown(kept)
    )]
    Undo {
        /// Which.
        name: Name,
        /// The system's reason.
        source: io::Error,
        /// What made it necessary.
        cause: Box<UnpackError>,
        /// The staging directory, which stays.
        kept: PathBuf,
    },
}

pub(crate) fn shown(path: &std::path::Path) -> Printable<'_> {
    Printable(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))
}

/// A tree in the staging directory.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) nodes: BTreeMap<Name, Node>,
    /// Metadata that waits until the directories are in place.
    pub(crate) directories: Vec<Directory>,
    pub(crate) bytes: u64,
}

impl Received {
    /// Takes entries, which are in order, with all below them out of what came. They stay in the
    /// staging directory beside it, and go away with it.
    pub(crate) fn withhold(
        &mut self,
        staging: &Staging,
        names: &[Name],
    ) -> Result<(), UnpackError> {
        for name in names {
            staging
                .withhold(name)
                .map_err(|source| UnpackError::Place { name: name.clone(), source })?;
        }
        self.forget(names);
        Ok(())
    }

    /// Does as if entries, which are in order, with all below them had not come.
    pub(crate) fn forget(&mut self, names: &[Name]) {
        if !names.is_empty() {
            self.nodes.retain(|name, _| !is_within(names, name));
            self.directories.retain(|directory| !is_within(names, &directory.name));
        }
    }
}

/// Whether a name is one of these, which are in order, or below one.
pub(crate) fn is_within(sorted: &[Name], name: &Name) -> bool {
    let mut at = name.clone();
    loop {
        if sorted.binary_search(&at).is_ok() {
            return true;
        }
        match at.split() {
            Some((parent, _)) => at = parent,
            None => return false,
        }
    }
}

/// Reads an archive into an empty staging directory. Every rule about names, kinds and order is
/// kept: see [`archive::Reader`] and [`Existing::Refuse`].
/// What came so far, against what may.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: Limits,
    entries: u64,
    names: u64,
    bytes: u64,
}

impl Budget {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, entries: 0, names: 0, bytes: 0 }
    }

    /// Counts an entry in, before anything of it is taken.
    pub(crate) fn take(&mut self, member: &Member) -> Result<(), UnpackError> {
        let limits = self.limits;
        self.entries += 1;
        if self.entries > limits.entries {
            return Err(UnpackError::TooManyEntries { limit: limits.entries });
        }
        let target = match &member.kind {
            Kind::Symlink { target } => target.len(),
            _ => 0,
        };
        self.take_name(member.name.as_bytes().len() + target)?;
        if member.name.components().count() > limits.depth {
            return Err(UnpackError::TooDeep { name: member.name.clone(), limit: limits.depth });
        }
        if let Kind::File { size } = member.kind {
            self.bytes = self.bytes.saturating_add(size);
            if self.bytes > limits.bytes {
                return Err(UnpackError::TooManyBytes { limit: limits.bytes });
            }
        }
        Ok(())
    }

    /// Counts so many bytes of names in.
    pub(crate) fn take_name(&mut self, bytes: usize) -> Result<(), UnpackError> {
        self.names += bytes as u64;
        match self.names > self.limits.names {
            true => Err(UnpackError::TooManyNames { limit: self.limits.names }),
            false => Ok(()),
        }
    }

    pub(crate) fn progress(&self) -> Progress {
        Progress { entries: self.entries, bytes: self.bytes }
    }
}

pub(crate) fn receive(
    input: &mut impl Read,
    staging: &Staging,
    limits: &Limits,
    progress: &mut dyn FnMut(Progress),
) -> Result<Received, UnpackError> {
    let mut reader = Reader::new(input);
    let mut extract = Extract::new(&staging.new, Existing::Refuse);
    let mut received = Received::default();
    let mut budget = Budget::new(*limits);
    while let Some(member) = reader.next_member()? {
        budget.take(&member)?;
        let mut content = Hashing::new(reader.content());
        extract.add(&member, &mut content).map_err(|error| misplaced(error, staging))?;
        let digest = content.digest();
        received.bytes = budget.progress().bytes;
        progress(budget.progress());
        if member.name.is_root() {
            continue;
        }
        let mode = member.mode & 0o777;
        let node = match member.kind {
            Kind::File { size } => Node::File { mode, size, digest },
            Kind::Directory => Node::Directory { mode },
            Kind::Symlink { target } => Node::Symlink { target },
            // One that does not stand was refused above.
            Kind::HardLink { target } => match received.nodes.get(&target) {
                Some(node) => node.clone(),
                None => continue,
            },
        };
        received.nodes.insert(member.name, node);
    }
    received.directories = extract.into_directories();
    Ok(received)
}

pub(crate) fn misplaced(error: ExtractError, staging: &Staging) -> UnpackError {
    match error {
        ExtractError::Create { name, source } | ExtractError::WriteFile { name, source }
            if matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ) =>
        {
            UnpackError::NoSpace { name, path: staging.path().to_owned() }
        }
        ExtractError::Receive { source, .. } if source.kind() == io::ErrorKind::UnexpectedEof => {
            ReadError::Truncated.into()
        }
        error => UnpackError::Extract(error),
    }
}

/// The symbolic links that lead out of the tree, with the links on their way. `elsewhere` tells
/// what stands at names that the tree does not have, and at those in `stays`, which are in order.
pub(crate) fn leaving(
    received: &Received,
    stays: &[Name],
    elsewhere: impl Fn(&Name) -> Below,
) -> Result<Vec<(Name, Vec<Name>)>, UnpackError> {
    let mut steps = Steps::default();
    let mut leaving = Vec::new();
    for (name, node) in &received.nodes {
        let Node::Symlink { target } = node else { continue };
        if is_within(stays, name) {
            continue;
        }
        let came = |at: &Name| received.nodes.get(at).filter(|_| !is_within(stays, at));
        let below = |at: &Name| match came(at) {
            Some(Node::Symlink { target }) => Below::Link(target.clone()),
            Some(_) => Below::Plain,
            None => elsewhere(at),
        };
        match resolve(name, target, below, &mut steps) {
            None => return Err(UnpackError::Labyrinth),
            Some(Resolution::Inside) => {}
            Some(Resolution::Leaves { through }) => leaving.push((name.clone(), through)),
        }
    }
    Ok(leaving)
}
