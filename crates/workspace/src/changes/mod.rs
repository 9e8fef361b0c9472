//! What a guest changed, kept on the host until somebody has looked at it.
//!
//! A change set is a directory of its own, mode 0700: `index.json` says what changed against what
//! was sent, `content` holds each content once, named by its SHA-256. No name of the guest's is a
//! name in there. It appears and goes in one step.

mod apply;
mod collect;
mod diff;
pub(crate) mod form;
mod ignored;
mod select;
mod text;

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use archive::Name;
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::manifest::Sent;
use crate::receive::UnpackError;
use crate::{Change, Node, is_protected};

pub use apply::ApplyOptions;
pub(crate) use apply::protected;
pub use collect::{Agreed, CollectOptions, Collected, collect, collect_asked};
pub use diff::{Body, Difference};
pub use select::{PatternError, Selection};

const INDEX: &str = "index.json";
const CONTENT: &str = "content";
/// Says where an apply stages, for as long as it is under way.
const APPLYING: &str = "applying.json";
/// An index that is longer was not written by us: names have a bound.
const MAX_INDEX: u64 = 4 << 30;
const VERSION: u32 = 1;

/// Why a change set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// It cannot be read.
    #[error("cannot read the changes in {}: {source}", path.display())]
    Read {
        /// Where.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It cannot be written.
    #[error("cannot keep the changes in {}: {source}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("the changes in {} are damaged: {why}; discard them", path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Another process works on it.
    #[error("the changes in {} are being applied or discarded by another process", path.display())]
    Busy {
        /// Where.
        path: PathBuf,
    },
    /// An apply was killed, and what it replaced is nowhere else.
    #[error(
        "an apply of these changes was interrupted; run `sandforge apply` again, which finishes it"
    )]
    Interrupted,
}

/// Whose changes they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// The sandbox's id.
    pub sandbox: String,
    /// What it was called.
    pub name: String,
    /// The host's directory, absolute.
    pub host: PathBuf,
    /// Where it was in the guest.
    pub guest: String,
    /// When they were collected, in milliseconds since 1970.
    pub collected_at_ms: u64,
}

/// What was not taken because git would ignore it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ignored {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    version: u32,
    about: About,
    ignored: Ignored,
    changes: Vec<Record>,
    /// Links that are as they were sent: a change can turn them outwards.
    links: Vec<Standing>,
}

/// One change, in the order of names.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    #[serde(with = "form::name")]
    name: Name,
    /// What was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    was: Option<Sent>,
    /// What the guest has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    now: Option<Node>,
    /// Its modification time, in seconds since 1970.
    mtime: i64,
    /// The content that was sent is kept, too.
    base: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Standing {
    #[serde(with = "form::name")]
    name: Name,
    sent: Sent,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Applying {
    #[serde(with = "form::bytes")]
    staging: Vec<u8>,
    #[serde(with = "form::bytes")]
    destination: Vec<u8>,
}

impl Record {
    fn change(&self) -> Change {
        match (&self.was, &self.now) {
            (None, _) => Change::Created,
            (Some(_), Some(_)) => Change::Updated,
            (Some(_), None) => Change::Deleted,
        }
    }

    fn is_protected(&self) -> bool {
        let is = |node: &Node| is_protected(&self.name, node);
        self.now.as_ref().is_some_and(is) || self.was.as_ref().is_some_and(|was| is(&was.node))
    }
}

/// One change, to be listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Of what.
    pub name: Name,
    /// What the guest did.
    pub change: Change,
    /// What it is now, or was where it is gone.
    pub node: Node,
    /// Held back unless it is allowed by name.
    pub protected: bool,
}

/// What a guest changed in one directory. Whoever has it is the only one.
#[derive(Debug)]
pub struct ChangeSet {
    path: PathBuf,
    index: Index,
    _lock: OwnedFd,
}

impl ChangeSet {
    /// Opens the set in a directory.
    ///
    /// # Errors
    /// That there is none, that another process has it, or that it is damaged.
    pub fn open(path: &Path) -> Result<Self, ChangesError> {
        let read = |source| ChangesError::Read { path: path.to_owned(), source };
        let lock = lock(path)?;
        let file = File::open(path.join(INDEX)).map_err(read)?;
        let index: Index = serde_json::from_reader(BufReader::new(file.take(MAX_INDEX)))
            .map_err(|error| damaged(path, &error))?;
        if index.version != VERSION {
            return Err(damaged(path, &format!("version {} is not known", index.version)));
        }
        Ok(Self { path: path.to_owned(), index, _lock: lock })
    }

    /// Whose changes they are.
    pub fn about(&self) -> &About {
        &self.index.about
    }

    /// What git would ignore, which is not part of it.
    pub fn ignored(&self) -> Ignored {
        self.index.ignored
    }

    /// How many changes are left.
    pub fn len(&self) -> usize {
        self.index.changes.len()
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.index.changes.is_empty()
    }

    /// The changes that are left, in the order of their names.
    pub fn list(&self) -> impl Iterator<Item = Listed> {
        self.index.changes.iter().filter_map(|record| {
            let node = record.now.clone().or_else(|| Some(record.was.as_ref()?.node.clone()))?;
            Some(Listed {
                name: record.name.clone(),
                change: record.change(),
                node,
                protected: record.is_protected(),
            })
        })
    }

    /// Whether an apply was killed half-way.
    pub fn is_interrupted(&self) -> bool {
        self.path.join(APPLYING).exists()
    }

    /// Forgets all of it.
    ///
    /// # Errors
    /// `Interrupted`, or that it cannot be removed.
    pub fn discard(self) -> Result<(), ChangesError> {
        if self.is_interrupted() {
            return Err(ChangesError::Interrupted);
        }
        self.remove()
    }

    fn remove(self) -> Result<(), ChangesError> {
        let write = |source| ChangesError::Write { path: self.path.clone(), source };
        // Without its index it is no set any more, whatever of it stays.
        fs::remove_file(self.path.join(INDEX)).map_err(write)?;
        fs::remove_dir_all(&self.path).map_err(write)
    }

    fn content(&self, digest: &[u8; 32]) -> io::Result<File> {
        File::open(self.path.join(CONTENT).join(form::hex(digest)))
    }

    /// Reads a content that is not longer than what is compared.
    fn text(&self, digest: &[u8; 32]) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.content(digest)?.take(text::MAX_TEXT + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes down what is left.
    fn rewrite(&self) -> Result<(), ChangesError> {
        write_index(&self.path, &self.index)
    }
}

fn damaged(path: &Path, why: &impl ToString) -> ChangesError {
    ChangesError::Damaged { path: path.to_owned(), why: why.to_string() }
}

/// How long a set that somebody has is waited for.
const PATIENCE: std::time::Duration = std::time::Duration::from_millis(300);

/// Locks a set, if it is still the one that is there.
fn lock(path: &Path) -> Result<OwnedFd, ChangesError> {
    let read = |source: io::Error| ChangesError::Read { path: path.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| read(error.into()))?;
    let begun = std::time::Instant::now();
    loop {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            // A process that is just being started has a copy of every descriptor until it runs its
            // program: a lock that was let go is held for that moment.
            Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < PATIENCE => {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(ChangesError::Busy { path: path.to_owned() });
            }
            Err(error) => return Err(read(error.into())),
        }
    }
    let held = rustix::fs::fstat(&fd).map_err(|error| read(error.into()))?;
    let there = rustix::fs::stat(path).map_err(|error| read(error.into()))?;
    match (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino) {
        true => Ok(fd),
        false => Err(ChangesError::Busy { path: path.to_owned() }),
    }
}

/// Writes an index in the place of the one before, in one step.
fn write_index(path: &Path, index: &Index) -> Result<(), ChangesError> {
    write_json(path, INDEX, index)
}

fn write_json(path: &Path, name: &str, value: &impl Serialize) -> Result<(), ChangesError> {
    let write = |source: io::Error| ChangesError::Write { path: path.to_owned(), source };
    let new = path.join(format!("{name}.new"));
    let mut file = BufWriter::new(File::create(&new).map_err(write)?);
    serde_json::to_writer(&mut file, value).map_err(|error| write(error.into()))?;
    file.flush().map_err(write)?;
    file.get_ref().sync_all().map_err(write)?;
    fs::rename(&new, path.join(name)).map_err(write)?;
    File::open(path).and_then(|directory| directory.sync_all()).map_err(write)
}

impl From<ChangesError> for UnpackError {
    fn from(error: ChangesError) -> Self {
        Self::Changes(error)
    }
}
