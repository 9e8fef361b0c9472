//! What a tree is made of, so that two of them can be compared.

use std::collections::BTreeMap;
use std::io::{self, Read};

use archive::{Inode, InodeKind, Name, Root};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::changes::form;

/// An entry without its name: equal nodes need no copying.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Node {
    /// A directory.
    Directory {
        /// Permission bits, at most 0o777.
        mode: u32,
    },
    /// A regular file.
    File {
        /// Permission bits, at most 0o777.
        mode: u32,
        /// In bytes.
        size: u64,
        /// SHA-256 of the content: a guest that could make two contents look alike could keep a
        /// change from being seen.
        #[serde(with = "form::digest")]
        digest: [u8; 32],
    },
    /// A symbolic link.
    Symlink {
        /// Where it points.
        #[serde(with = "form::bytes")]
        target: Vec<u8>,
    },
}

impl Node {
    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        matches!(self, Self::Directory { .. })
    }
}

/// What [`crate::pack`] sent: what the guest had at first, and how the host's inodes looked then.
#[derive(Debug, Clone, Default)]
pub struct Manifest {
    pub(crate) entries: BTreeMap<Name, Sent>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sent {
    pub(crate) node: Node,
    #[serde(with = "form::InodeForm")]
    pub(crate) inode: Inode,
}

impl Manifest {
    /// What was sent under a name.
    pub fn node(&self, name: &Name) -> Option<&Node> {
        self.entries.get(name).map(|sent| &sent.node)
    }

    /// How many entries were sent.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was sent.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn insert(&mut self, name: Name, node: Node, inode: Inode) {
        self.entries.insert(name, Sent { node, inode });
    }
}

impl Sent {
    /// Whether the host still has what was sent. A directory is its kind: what is in it has
    /// entries of its own. An inode that looks as it did holds what it did, since nothing can set
    /// its ctime; of one that does not (a backup linked it, a change was undone) the content
    /// decides.
    pub(crate) fn still_stands(&self, root: &Root, name: &Name, now: &Inode) -> io::Result<bool> {
        let then = &self.inode;
        if now.kind == InodeKind::Directory || self.node.is_directory() {
            return Ok(now.kind == InodeKind::Directory && self.node.is_directory());
        }
        let looks_the_same = (now.kind, now.id, now.size, now.mtime, now.ctime)
            == (then.kind, then.id, then.size, then.mtime, then.ctime);
        Ok(looks_the_same || node_at(root, name)?.as_ref() == Some(&self.node))
    }
}

/// Reads the node at a name, content and all; `None` where nothing or a special file stands.
pub(crate) fn node_at(root: &Root, name: &Name) -> io::Result<Option<Node>> {
    let Some(inode) = root.inode(name)? else { return Ok(None) };
    let mode = inode.mode & 0o777;
    Ok(match inode.kind {
        InodeKind::Directory => Some(Node::Directory { mode }),
        InodeKind::Symlink => Some(Node::Symlink { target: root.link_target(name)? }),
        InodeKind::File => {
            let (file, _) = root.file(name)?;
            let mut content = Hashing::new(file);
            let size = io::copy(&mut content, &mut io::sink())?;
            Some(Node::File { mode, size, digest: content.digest() })
        }
        InodeKind::Fifo | InodeKind::Socket | InodeKind::Device => None,
    })
}

/// Hashes what is read through it.
pub(crate) struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R> Hashing<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    pub(crate) fn digest(self) -> [u8; 32] {
        self.hash.finalize().into()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.hash.update(&buffer[..got]);
        Ok(got)
    }
}
