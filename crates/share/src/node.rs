//! What the guest has been told of, by numbers that are never used again.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

/// The number of the shared directory itself (`FUSE_ROOT_ID`).
pub(crate) const ROOT: u64 = 1;

/// What makes two names one node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// Device and inode number. It is another's only once no descriptor holds it.
    Inode(u64, u64),
    /// A name that must not be looked behind, in this directory.
    Masked(u64, Vec<u8>),
}

impl Key {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self::Inode(stat.st_dev, stat.st_ino)
    }
}

/// What a node is.
#[derive(Debug)]
pub(crate) enum What {
    /// Something of the host's, held by a descriptor that can do nothing (`O_PATH`).
    Real { descriptor: OwnedFd, kind: FileType },
    /// Something that looks empty. Nothing of the host's is behind it.
    Masked { is_directory: bool },
}

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) key: Key,
    pub(crate) what: What,
    /// Held while its size is looked at and changed.
    pub(crate) size: Mutex<()>,
    /// How many handles there are.
    pub(crate) handles: AtomicU32,
    /// What its directory is watched by, where it is one: see [`crate::watch`].
    pub(crate) watch: AtomicI32,
    /// Whether its directory tells of its changes.
    pub(crate) is_watched: AtomicBool,
    /// The change time and size that the guest knows.
    pub(crate) known: Mutex<Option<(i64, u64, i64)>>,
}

impl Node {
    /// The descriptor and what it is of.
    ///
    /// # Errors
    /// `EACCES` for what is masked.
    pub(crate) fn real(&self) -> Result<(&OwnedFd, FileType), Errno> {
        match &self.what {
            What::Real { descriptor, kind } => Ok((descriptor, *kind)),
            What::Masked { .. } => Err(Errno::ACCESS),
        }
    }

    /// The guest was told this.
    pub(crate) fn knows(&self, stat: &Stat) {
        *lock(&self.known) = Some(version(stat));
    }

    /// Whether the guest was told this.
    pub(crate) fn is_known(&self, stat: &Stat) -> bool {
        *lock(&self.known) == Some(version(stat))
    }

    /// Whether what changes of it is told by the host.
    pub(crate) fn is_watched(&self) -> bool {
        self.is_watched.load(Ordering::Relaxed)
    }
}

fn version(stat: &Stat) -> (i64, u64, i64) {
    (stat.st_ctime, stat.st_ctime_nsec, stat.st_size)
}

/// A lock is never poisoned by what leaves the state half-changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Entry {
    node: Arc<Node>,
    /// How often the guest was told of it, and did not forget it.
    lookups: u64,
}

#[derive(Debug)]
struct Inner {
    by_id: HashMap<u64, Entry>,
    by_key: HashMap<Key, u64>,
    last: u64,
}

/// All nodes of a share.
#[derive(Debug)]
pub(crate) struct Nodes {
    inner: Mutex<Inner>,
    most: usize,
}

impl Nodes {
    pub(crate) fn new(root: OwnedFd, stat: &Stat, most: usize) -> Self {
        let what = What::Real { descriptor: root, kind: FileType::Directory };
        let (key, node) = (Key::of(stat), node(ROOT, Key::of(stat), what));
        let by_id = HashMap::from([(ROOT, Entry { node: Arc::new(node), lookups: 1 })]);
        let inner = Inner { by_id, by_key: HashMap::from([(key, ROOT)]), last: ROOT };
        Self { inner: Mutex::new(inner), most }
    }

    /// # Errors
    /// `ESTALE` for a number that the guest was not told, or has forgotten.
    pub(crate) fn get(&self, id: u64) -> Result<Arc<Node>, Errno> {
        lock(&self.inner).by_id.get(&id).map(|entry| entry.node.clone()).ok_or(Errno::STALE)
    }

    pub(crate) fn by_key(&self, key: &Key) -> Option<Arc<Node>> {
        let inner = lock(&self.inner);
        let id = inner.by_key.get(key)?;
        inner.by_id.get(id).map(|entry| entry.node.clone())
    }

    /// Counts that the guest is told of a node, which is made where it is new.
    ///
    /// # Errors
    /// `ENFILE` where there are as many as there may be.
    pub(crate) fn tell(&self, key: Key, what: impl FnOnce() -> What) -> Result<Arc<Node>, Errno> {
        let mut inner = lock(&self.inner);
        if let Some(id) = inner.by_key.get(&key).copied()
            && let Some(entry) = inner.by_id.get_mut(&id)
        {
            entry.lookups = entry.lookups.saturating_add(1);
            return Ok(entry.node.clone());
        }
        if inner.by_id.len() >= self.most {
            return Err(Errno::NFILE);
        }
        inner.last += 1;
        let id = inner.last;
        let node = Arc::new(node(id, key.clone(), what()));
        inner.by_id.insert(id, Entry { node: node.clone(), lookups: 1 });
        inner.by_key.insert(key, id);
        Ok(node)
    }

    /// Counts that the guest has forgotten a node so many times; the node that is gone with it.
    pub(crate) fn forget(&self, id: u64, count: u64) -> Option<Arc<Node>> {
        let mut inner = lock(&self.inner);
        let entry = inner.by_id.get_mut(&id).filter(|_| id != ROOT)?;
        entry.lookups = entry.lookups.saturating_sub(count);
        if entry.lookups > 0 {
            return None;
        }
        let entry = inner.by_id.remove(&id)?;
        inner.by_key.remove(&entry.node.key);
        Some(entry.node)
    }

    /// A new conversation: the guest knows of nothing.
    pub(crate) fn forget_all(&self) {
        let mut inner = lock(&self.inner);
        inner.by_id.retain(|id, _| *id == ROOT);
        inner.by_key.retain(|_, id| *id == ROOT);
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.inner).by_id.len()
    }
}

fn node(id: u64, key: Key, what: What) -> Node {
    Node {
        id,
        key,
        what,
        size: Mutex::new(()),
        handles: AtomicU32::new(0),
        watch: AtomicI32::new(0),
        is_watched: AtomicBool::new(false),
        known: Mutex::new(None),
    }
}
