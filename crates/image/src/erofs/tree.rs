//! The directory tree while an image is written: an arena, so that no depth overflows a stack.

use super::format::{Meta, Type};
use crate::tar::TarPath;
use std::collections::BTreeMap;

/// Index of a node in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct NodeId(u32);

#[derive(Debug)]
pub(super) struct Node {
    pub(super) meta: Meta,
    pub(super) body: Body,
    /// A directory that no entry describes.
    implied: bool,
    /// A directory that hides what is below it.
    opaque: bool,
    /// A directory with whiteouts in it.
    has_whiteouts: bool,
}

impl Node {
    fn implied_dir() -> Self {
        let body = Body::Dir(BTreeMap::new());
        Self { meta: Meta::implied_dir(), body, implied: true, opaque: false, has_whiteouts: false }
    }
}

#[derive(Debug)]
pub(super) enum Body {
    /// Sorted by bytes, as the kernel's binary search wants it.
    Dir(BTreeMap<Box<[u8]>, NodeId>),
    /// Whole blocks are in the image already; the tail waits for its inode.
    File {
        size: u64,
        first_block: u32,
        tail: Option<Box<[u8]>>,
    },
    Symlink(Box<[u8]>),
    Fifo,
    Whiteout,
}

impl Body {
    pub(super) fn kind(&self) -> Type {
        match self {
            Self::Dir(_) => Type::Dir,
            Self::File { .. } => Type::File,
            Self::Symlink(_) => Type::Symlink,
            Self::Fifo => Type::Fifo,
            Self::Whiteout => Type::Char,
        }
    }
}

/// What stood in the way of an insertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// A component of the path is a file or a symbolic link. It is not followed: nothing that
    /// made an archive from a directory tree writes such a path.
    NotADirectory,
    /// A link to something that is not there.
    Missing,
    /// A hard link to a directory, or anything but a directory in the place of the root.
    Directory,
    /// An inode has no room for the mark.
    Attributes,
}

#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
}

pub(super) const ROOT: NodeId = NodeId(0);

impl Tree {
    pub(super) fn new() -> Self {
        Self { nodes: vec![Node::implied_dir()] }
    }

    /// Nodes ever made, replaced ones included.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub(super) fn find(&self, path: &TarPath) -> Option<NodeId> {
        path.names().try_fold(ROOT, |at, name| match &self.node(at).body {
            Body::Dir(children) => children.get(name).copied(),
            _ => None,
        })
    }

    /// Puts `body` at `path` in place of what was there; directories above it are made. A
    /// directory on a directory takes the new owner, mode and time and keeps its contents.
    pub(super) fn insert(
        &mut self,
        path: &TarPath,
        meta: Meta,
        body: Body,
    ) -> Result<(), Obstacle> {
        let is_dir = matches!(body, Body::Dir(_));
        if let Some(old) = self.find(path)
            && is_dir
            && matches!(self.node(old).body, Body::Dir(_))
        {
            let node = &mut self.nodes[old.0 as usize];
            node.meta = meta;
            node.implied = false;
            return Ok(());
        }
        let (parent, name) = self.parent(path)?;
        let id =
            self.push(Node { meta, body, implied: false, opaque: false, has_whiteouts: false });
        self.children(parent).insert(name, id);
        Ok(())
    }

    /// Gives what `target` names a second name.
    pub(super) fn link(&mut self, path: &TarPath, target: &TarPath) -> Result<(), Obstacle> {
        let id = self.find(target).ok_or(Obstacle::Missing)?;
        if matches!(self.node(id).body, Body::Dir(_)) {
            return Err(Obstacle::Directory);
        }
        let (parent, name) = self.parent(path)?;
        self.children(parent).insert(name, id);
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &TarPath) -> Result<(), Obstacle> {
        if self.find(path).is_some() {
            let (parent, name) = self.parent(path)?;
            self.children(parent).remove(&name);
        }
        Ok(())
    }

    /// Every time at or after `from` becomes the latest time before it.
    pub(super) fn settle_times(&mut self, from: i64) {
        let latest = self
            .nodes
            .iter()
            .map(|node| node.meta.mtime)
            .filter(|time| time.seconds < from)
            .max()
            .unwrap_or_default();
        for node in &mut self.nodes {
            if node.meta.mtime.seconds >= from {
                node.meta.mtime = latest;
            }
        }
    }

    /// Hides what the layers below have at `path`. What is there in this layer stays: a whiteout is
    /// about other layers, wherever in its own it comes.
    pub(super) fn whiteout(&mut self, path: &TarPath) -> Result<(), Obstacle> {
        match self.find(path) {
            None => {
                self.insert(path, Meta::whiteout(), Body::Whiteout)?;
                let (parent, _) = self.parent(path)?;
                let node = &mut self.nodes[parent.0 as usize];
                if !std::mem::replace(&mut node.has_whiteouts, true) {
                    node.meta.has_whiteouts().ok_or(Obstacle::Attributes)?;
                }
                Ok(())
            }
            Some(id) if matches!(self.node(id).body, Body::Dir(_)) => self.mark(id),
            Some(_) => Ok(()),
        }
    }

    /// Hides what the layers below have in the directory at `path`, which is made if need be.
    pub(super) fn hide_below(&mut self, path: &TarPath) -> Result<(), Obstacle> {
        let id = self.directory(path.names())?;
        self.mark(id)
    }

    pub(super) fn is_opaque(&self, id: NodeId) -> bool {
        self.node(id).opaque
    }

    /// Paths of the directories that no entry describes, the root's among them.
    pub(super) fn implied(&self) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        let mut open = vec![(ROOT, Vec::new())];
        while let Some((id, path)) = open.pop() {
            let node = self.node(id);
            let Body::Dir(children) = &node.body else { continue };
            for (name, &child) in children {
                if matches!(self.node(child).body, Body::Dir(_)) {
                    let mut below: Vec<u8> = path.clone();
                    if !below.is_empty() {
                        below.push(b'/');
                    }
                    below.extend_from_slice(name);
                    open.push((child, below));
                }
            }
            if node.implied {
                found.push(path);
            }
        }
        found.sort();
        found
    }

    fn mark(&mut self, id: NodeId) -> Result<(), Obstacle> {
        let node = &mut self.nodes[id.0 as usize];
        if !std::mem::replace(&mut node.opaque, true) {
            node.meta.hide_below().ok_or(Obstacle::Attributes)?;
        }
        Ok(())
    }

    fn parent(&mut self, path: &TarPath) -> Result<(NodeId, Box<[u8]>), Obstacle> {
        let mut names: Vec<&[u8]> = path.names().collect();
        let last = names.pop().ok_or(Obstacle::Directory)?;
        Ok((self.directory(names.into_iter())?, last.into()))
    }

    fn directory<'a>(&mut self, names: impl Iterator<Item = &'a [u8]>) -> Result<NodeId, Obstacle> {
        let mut at = ROOT;
        for name in names {
            let Body::Dir(children) = &self.node(at).body else {
                return Err(Obstacle::NotADirectory);
            };
            at = match children.get(name) {
                Some(&child) => child,
                None => {
                    let child = self.push(Node::implied_dir());
                    self.children(at).insert(name.into(), child);
                    child
                }
            };
        }
        match self.node(at).body {
            Body::Dir(_) => Ok(at),
            _ => Err(Obstacle::NotADirectory),
        }
    }

    fn push(&mut self, node: Node) -> NodeId {
        // The writer refuses archives long before 2^32 entries.
        let id = NodeId(u32::try_from(self.nodes.len()).unwrap_or(u32::MAX));
        self.nodes.push(node);
        id
    }

    fn children(&mut self, id: NodeId) -> &mut BTreeMap<Box<[u8]>, NodeId> {
        match &mut self.nodes[id.0 as usize].body {
            Body::Dir(children) => children,
            _ => unreachable!("only called with directories"),
        }
    }
}
