//! What a guest changed, for a person to read.

use std::io::Read as _;
use std::ops::ControlFlow;
use std::path::Path;

use archive::{InodeKind, Name, Root};

use super::{ChangeSet, Record, Selection, text};
use crate::receive::UnpackError;
use crate::{Change, Node};

/// One change, and what it looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Of what.
    pub name: Name,
    /// What the guest did.
    pub change: Change,
    /// What it is now, or was where it is gone.
    pub node: Node,
    /// Held back unless it is allowed by name.
    pub protected: bool,
    /// The host changed it, too, since it was sent.
    pub changed_here: bool,
    /// Permission bits before and after, where they are not the same.
    pub mode: Option<(u32, u32)>,
    /// What was done to it.
    pub body: Body,
}

/// What was done to the content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Lines came and went.
    Text {
        /// Hunks in the unified format.
        hunks: Vec<u8>,
        /// Lines that came.
        added: u64,
        /// Lines that went.
        removed: u64,
    },
    /// It is no text, or a long one, or what was sent is not there any more: only sizes can be
    /// told.
    Opaque {
        /// Bytes before, where it was a file.
        before: Option<u64>,
        /// Bytes now, where it is a file.
        after: Option<u64>,
    },
    /// A symbolic link is, or was, there.
    Link {
        /// Where it pointed, if it was one.
        before: Option<Vec<u8>>,
        /// Where it points, if it is one.
        after: Option<Vec<u8>>,
    },
    /// A directory.
    Directory,
}

impl ChangeSet {
    /// Tells of each chosen change, in the order of names, until `visit` has enough. `host` is the
    /// directory that was sent, if it is still there.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn diff(
        &self,
        host: &Path,
        paths: &Selection,
        mut visit: impl FnMut(Difference) -> ControlFlow<()>,
    ) -> Result<(), UnpackError> {
        let root = Root::open(host).ok();
        for record in self.index.changes.iter().filter(|record| paths.has(&record.name)) {
            if visit(self.difference(root.as_ref(), record)?).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn difference(&self, root: Option<&Root>, record: &Record) -> Result<Difference, UnpackError> {
        let name = &record.name;
        let compare = |source| UnpackError::Compare { name: name.clone(), source };
        let host = match root {
            Some(root) => root.inode(name).map_err(compare)?,
            None => None,
        };
        let changed_here = match (&record.was, &host, root) {
            (None, None, _) | (_, _, None) => false,
            (None, Some(host), _) => host.kind != InodeKind::Directory,
            (Some(_), None, _) => true,
            (Some(was), Some(host), Some(root)) => {
                !was.still_stands(root, name, host).map_err(compare)?
            }
        };
        let was = record.was.as_ref().map(|was| &was.node);
        let mode = match (was, &record.now) {
            (
                Some(Node::File { mode: before, .. } | Node::Directory { mode: before }),
                Some(Node::File { mode: after, .. } | Node::Directory { mode: after }),
            ) if before != after => Some((*before, *after)),
            _ => None,
        };
        let node = record.now.as_ref().or(was).cloned().unwrap_or(Node::Directory { mode: 0 });
        let body = match (was, &record.now) {
            (was @ Some(Node::Symlink { .. }), now) | (was, now @ Some(Node::Symlink { .. })) => {
                let target = |node: Option<&Node>| match node {
                    Some(Node::Symlink { target }) => Some(target.clone()),
                    _ => None,
                };
                Body::Link { before: target(was), after: target(now.as_ref()) }
            }
            (Some(Node::Directory { .. }) | None, Some(Node::Directory { .. }) | None) => {
                Body::Directory
            }
            (was, now) => self.body(root.filter(|_| !changed_here), record, was, now.as_ref()),
        };
        Ok(Difference {
            name: name.clone(),
            change: record.change(),
            node,
            protected: record.is_protected(),
            changed_here,
            mode,
            body,
        })
    }

    /// `root` is the host's where it has what was sent.
    fn body(
        &self,
        root: Option<&Root>,
        record: &Record,
        was: Option<&Node>,
        now: Option<&Node>,
    ) -> Body {
        let size = |node: Option<&Node>| match node {
            Some(Node::File { size, .. }) => Some(*size),
            _ => None,
        };
        let opaque = Body::Opaque { before: size(was), after: size(now) };
        let long = |size: Option<u64>| size.is_some_and(|size| size > text::MAX_TEXT);
        if long(size(was)) || long(size(now)) {
            return opaque;
        }
        let before = match was {
            Some(Node::File { digest, .. }) if record.base => self.text(digest).ok(),
            Some(Node::File { .. }) => root.and_then(|root| {
                let mut bytes = Vec::new();
                let (file, _) = root.file(&record.name).ok()?;
                file.take(text::MAX_TEXT + 1).read_to_end(&mut bytes).ok()?;
                Some(bytes)
            }),
            _ => Some(Vec::new()),
        };
        let after = match now {
            Some(Node::File { digest, .. }) => self.text(digest).ok(),
            _ => Some(Vec::new()),
        };
        let compared = before.zip(after).and_then(|(before, after)| text::compare(&before, &after));
        match compared {
            Some((hunks, added, removed)) => Body::Text { hunks, added, removed },
            None => opaque,
        }
    }
}
