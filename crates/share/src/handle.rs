//! What the guest has open, by numbers that are never used again.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::node::{Node, lock};

/// A name in a directory, as it was listed.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) name: Box<[u8]>,
    pub(crate) inode: u64,
    pub(crate) kind: FileType,
}

/// What is open.
#[derive(Debug)]
pub(crate) enum Open {
    File {
        descriptor: OwnedFd,
        reads: bool,
        writes: bool,
    },
    /// The names that were there when the guest began to list.
    Directory(Mutex<Vec<Listed>>),
    /// Something masked: it is empty.
    Nothing,
}

/// One thing that is open.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) node: Arc<Node>,
    pub(crate) open: Open,
}

#[derive(Debug, Default)]
struct Inner {
    by_id: HashMap<u64, Arc<Handle>>,
    last: u64,
}

/// All that is open.
#[derive(Debug)]
pub(crate) struct Handles {
    inner: Mutex<Inner>,
    most: usize,
}

impl Handles {
    pub(crate) fn new(most: usize) -> Self {
        Self { inner: Mutex::default(), most }
    }

    /// # Errors
    /// `ENFILE` where as many are open as may be.
    pub(crate) fn add(&self, node: Arc<Node>, open: Open) -> Result<u64, Errno> {
        let mut inner = lock(&self.inner);
        if inner.by_id.len() >= self.most {
            return Err(Errno::NFILE);
        }
        inner.last += 1;
        let id = inner.last;
        node.handles.fetch_add(1, Ordering::AcqRel);
        inner.by_id.insert(id, Arc::new(Handle { node, open }));
        Ok(id)
    }

    /// # Errors
    /// `EBADF` for what is not open, or is of another node.
    pub(crate) fn get(&self, id: u64, node: u64) -> Result<Arc<Handle>, Errno> {
        let inner = lock(&self.inner);
        let handle = inner.by_id.get(&id).filter(|handle| handle.node.id == node);
        handle.cloned().ok_or(Errno::BADF)
    }

    /// The handle that is closed, and whether it was the last of its node.
    pub(crate) fn remove(&self, id: u64, node: u64) -> Option<(Arc<Handle>, bool)> {
        let mut inner = lock(&self.inner);
        inner.by_id.get(&id).filter(|handle| handle.node.id == node)?;
        let handle = inner.by_id.remove(&id)?;
        let was_last = handle.node.handles.fetch_sub(1, Ordering::AcqRel) == 1;
        Some((handle, was_last))
    }

    pub(crate) fn clear(&self) {
        let mut inner = lock(&self.inner);
        for (_, handle) in inner.by_id.drain() {
            handle.node.handles.fetch_sub(1, Ordering::AcqRel);
        }
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.inner).by_id.len()
    }
}
