//! A guest's tree into a directory of its own.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use archive::{InodeKind, Name, Root};
use rustix::fs::{CWD, RenameFlags};

use crate::links::Below;
use crate::moves::Moves;
use crate::receive::{Limits, OutsideLinks, Received, UnpackError, is_within, leaving, receive};
use crate::staging::Staging;
use crate::sync::withhold_protected;
use crate::{Change, HeldBack, Node, Progress, Why};

/// How to unpack.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnpackOptions {
    /// How much is taken.
    pub limits: Limits,
    /// What happens to links that lead out of the tree.
    pub outside_links: OutsideLinks,
    /// Take a directory that is not empty: files and links replace those that are there,
    /// directories are filled, nothing is removed. What [`crate::is_protected`] is held back.
    pub merge: bool,
}

/// What was unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// What came and was not put in place.
    pub held_back: Vec<HeldBack>,
}

/// Puts a guest's tree into a directory that is new (its parent must exist) or empty. A new
/// directory appears in one step, complete; in one that is there, what came appears entry by
/// entry, and a failure takes it all out again.
///
/// # Errors
/// Why nothing was unpacked.
pub fn unpack(
    input: &mut impl Read,
    destination: &Path,
    options: &UnpackOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Unpacked, UnpackError> {
    let open = |source| UnpackError::Open { path: destination.to_owned(), source };
    let (destination, there) = match Root::open(destination) {
        // A link to a directory is the directory: the path is the user's own.
        Ok(root) => (fs::canonicalize(destination).map_err(open)?, Some(root)),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !destination.is_symlink() => {
            (destination.to_owned(), None)
        }
        Err(error) => return Err(open(error)),
    };
    if there.is_some()
        && !options.merge
        && fs::read_dir(&destination).map_err(open)?.next().is_some()
    {
        return Err(UnpackError::NotEmpty { path: destination });
    }
    let mut staging = Staging::beside(&destination)
        .map_err(|source| UnpackError::Stage { path: destination.clone(), source })?;
    let mut received = receive(input, &staging, &options.limits, progress)?;
    let mut held_back = Vec::new();
    if options.merge {
        held_back = withhold_protected(&mut received, &staging, |_| None)?;
    }
    let elsewhere = |name: &Name| match &there {
        Some(root) if options.merge => Below::at(root, name),
        _ => Below::Plain,
    };
    let mut left_out = Vec::new();
    for (name, _) in leaving(&received, &[], elsewhere)? {
        if let (Some(Node::Symlink { target }), OutsideLinks::Refuse) =
            (received.nodes.get(&name), options.outside_links)
        {
            return Err(UnpackError::LinkLeaves { name, target: target.clone() });
        }
        left_out.push(name);
    }
    received.withhold(&staging, &left_out)?;
    held_back.extend(left_out.into_iter().map(|name| HeldBack {
        name,
        change: Change::Created,
        why: Why::LeavesTree,
    }));
    let unpacked =
        Unpacked { entries: received.nodes.len() as u64, bytes: received.bytes, held_back };
    match there {
        Some(root) => place_in(&received, &mut staging, &root)?,
        None => place_whole(&received, &mut staging, &destination)?,
    }
    Ok(unpacked)
}

fn place_whole(
    received: &Received,
    staging: &mut Staging,
    destination: &Path,
) -> Result<(), UnpackError> {
    let whole = staging.new_path();
    for directory in received.directories.iter().rev() {
        let archive::Directory { name, mode, mtime } = directory;
        staging
            .new
            .set_directory(name, *mode, Some(*mtime))
            .map_err(|source| UnpackError::Place { name: name.clone(), source })?;
    }
    match rustix::fs::renameat_with(CWD, &whole, CWD, destination, RenameFlags::NOREPLACE) {
        // Without NOREPLACE a directory still replaces nothing but an empty one.
        Err(rustix::io::Errno::INVAL) => rustix::fs::rename(&whole, destination),
        renamed => renamed,
    }
    .map_err(|error| UnpackError::Open { path: destination.to_owned(), source: error.into() })
}

fn place_in(received: &Received, staging: &mut Staging, root: &Root) -> Result<(), UnpackError> {
    let mut brought: Vec<Name> = Vec::new();
    let mut replaced = Vec::new();
    for (name, node) in &received.nodes {
        if is_within(&brought, name) {
            continue;
        }
        let there = root
            .inode(name)
            .map_err(|source| UnpackError::Compare { name: name.clone(), source })?;
        match there.map(|inode| (node.is_directory(), inode.kind == InodeKind::Directory)) {
            None => brought.push(name.clone()),
            Some((true, true)) => {}
            Some((false, false)) => replaced.push(name.clone()),
            Some(_) => return Err(UnpackError::Occupied { name: name.clone() }),
        }
    }
    Moves::new(staging, root).all_or_none(|moves| {
        for name in &brought {
            moves.bring(name)?;
        }
        for name in &replaced {
            moves.replace(name)?;
        }
        for directory in received.directories.iter().rev() {
            if is_within(&brought, &directory.name) {
                moves.finish(directory)?;
            }
        }
        Ok(())
    })
}
