//! A guest's changes to the directory that it was given.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use archive::{Inode, InodeKind, Name, Root, Step, WalkError};

use crate::links::Below;
use crate::manifest::{Manifest, Sent, node_at};
use crate::moves::Moves;
use crate::protected::is_protected;
use crate::receive::{Limits, OutsideLinks, Received, UnpackError, is_within, leaving, receive};
use crate::staging::Staging;
use crate::{Node, Progress};

/// How to sync back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SyncOptions {
    /// How much is taken.
    pub limits: Limits,
    /// What happens to links that lead out of the tree and were not sent as they are.
    pub outside_links: OutsideLinks,
}

/// What was synced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Synced {
    /// Entries that are new on the host.
    pub created: u64,
    /// Entries that are not what they were.
    pub updated: u64,
    /// Entries that are gone, a directory with all in it being one.
    pub deleted: u64,
    /// Bytes of content that came.
    pub bytes: u64,
    /// Changes that the guest made and the host did not take, in order.
    pub held_back: Vec<HeldBack>,
}

/// A change that was not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldBack {
    /// Of what; of everything below, too.
    pub name: Name,
    /// What the guest did.
    pub change: Change,
    /// Why the host did not follow.
    pub why: Why,
}

/// What a guest did to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was not there before.
    Created,
    /// It is another now.
    Updated,
    /// It is gone.
    Deleted,
}

/// Why a change was held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// See [`is_protected`].
    Protected,
    /// The host changed it too, after it was sent.
    ChangedOnHost,
    /// It is a link that leads out of the tree.
    LeavesTree,
}

impl std::fmt::Display for HeldBack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let change = match self.change {
            Change::Created => "created",
            Change::Updated => "changed",
            Change::Deleted => "deleted",
        };
        let why = match self.why {
            Why::Protected => "git would run what it says",
            Why::ChangedOnHost => "it was changed here as well",
            Why::LeavesTree => "the link leads out of the directory",
        };
        write!(f, "{} ({change} in the guest): {why}", self.name)
    }
}

/// Brings a directory to what the guest made of it. `manifest` is what [`crate::pack`] sent: only
/// what differs from it is a change of the guest's, and only what was sent can be deleted, so what
/// was never sent (ignored files, files made meanwhile) stays. A change to what the host changed
/// as well is held back, and so is one to what [`is_protected`].
///
/// What is atomic and what not: each file, link or new directory changes in one step (by
/// `RENAME_EXCHANGE`; on file systems without it, the name is missing for a moment). The whole is
/// not one step: programs that look meanwhile see some changes and not others. If a step fails,
/// those before it are undone. If this process is killed or the machine stops half-way, the
/// directory has some of the changes, and what they replaced is in `.sandforge-…` beside it
/// (`new` and `old`). A file that changes on the host between the comparison and its rename ends
/// up there too, and is removed with it.
///
/// Hard links between a file that changed and one that did not are not kept.
///
/// # Errors
/// Why nothing was changed.
pub fn sync_back(
    input: &mut impl Read,
    destination: &Path,
    manifest: &Manifest,
    options: &SyncOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Synced, UnpackError> {
    let open = |source| UnpackError::Open { path: destination.to_owned(), source };
    let destination = std::fs::canonicalize(destination).map_err(open)?;
    let root = Root::open(&destination).map_err(open)?;
    let mut staging = Staging::beside(&destination)
        .map_err(|source| UnpackError::Stage { path: destination.clone(), source })?;
    let mut received = receive(input, &staging, &options.limits, progress)?;
    let mut held_back =
        withhold_protected(&mut received, &staging, |name| manifest.node(name).cloned())?;
    let leaves = |received: &mut Received, stays: &[Name]| {
        withhold_leaving(received, &staging, &root, manifest, options, stays)
    };
    held_back.extend(leaves(&mut received, &[])?);

    // Where the host's version stays, a link that led through the guest's leads elsewhere. Each
    // round holds back at least one link more, or is the last.
    let (brought, replaced, taken, modes, mut held_back) = loop {
        let mut plan = Plan::new(&root, manifest, &received, held_back.clone());
        plan.arrivals()?;
        plan.deletions()?;
        let Plan { brought, replaced, taken, modes, held_back: not_made, .. } = plan;
        let mut stays: Vec<Name> = not_made
            .iter()
            .filter(|held| held.why == Why::ChangedOnHost)
            .map(|held| held.name.clone())
            .collect();
        stays.sort();
        let more = if stays.is_empty() { Vec::new() } else { leaves(&mut received, &stays)? };
        if more.is_empty() {
            break (brought, replaced, taken, modes, not_made);
        }
        held_back.extend(more);
    };
    // What replaces the only copy of something must be on the disk before it does.
    #[cfg(target_os = "linux")]
    rustix::fs::syncfs(&staging.new)
        .map_err(|error| UnpackError::Place { name: Name::ROOT, source: error.into() })?;
    let bytes = received.bytes;
    Moves::new(&mut staging, &root).all_or_none(|moves| {
        for name in &brought {
            moves.bring(name)?;
        }
        for name in &replaced {
            moves.replace(name)?;
        }
        for name in &taken {
            moves.take(name)?;
        }
        for directory in received.directories.iter().rev() {
            if is_within(&brought, &directory.name) || is_within(&replaced, &directory.name) {
                moves.finish(directory)?;
            }
        }
        for (name, mode) in modes.iter().rev() {
            moves.set_mode(name, *mode)?;
        }
        Ok(())
    })?;
    held_back.sort_by(|one, other| one.name.cmp(&other.name));
    let within =
        |moved: &[Name]| received.nodes.keys().filter(|name| is_within(moved, name)).count() as u64;
    Ok(Synced {
        created: within(&brought),
        updated: within(&replaced) + modes.len() as u64,
        deleted: taken.len() as u64,
        bytes,
        held_back,
    })
}

/// Takes what is protected and not as it was out of what came.
pub(crate) fn withhold_protected(
    received: &mut Received,
    staging: &Staging,
    was: impl Fn(&Name) -> Option<Node>,
) -> Result<Vec<HeldBack>, UnpackError> {
    let mut held_back = Vec::new();
    let mut names = Vec::new();
    for (name, node) in &received.nodes {
        if is_within(&names, name) {
            continue;
        }
        let was = was(name);
        if was.as_ref() == Some(node) {
            continue;
        }
        // A directory in the place of a `.git` file is a repository that was not there.
        let was_protected = was.as_ref().is_some_and(|was| is_protected(name, was));
        if is_protected(name, node) || was_protected {
            let change = if was.is_some() { Change::Updated } else { Change::Created };
            held_back.push(HeldBack { name: name.clone(), change, why: Why::Protected });
            names.push(name.clone());
        }
    }
    received.withhold(staging, &names)?;
    Ok(held_back)
}

/// Refuses, or takes out of what came, links that lead out of the tree. A link that the host sent
/// and the guest left alone, along with all links on its way, is the host's own and stays. At and
/// below the names in `stays`, which are in order, the host's version counts instead of what came.
fn withhold_leaving(
    received: &mut Received,
    staging: &Staging,
    root: &Root,
    manifest: &Manifest,
    options: &SyncOptions,
    stays: &[Name],
) -> Result<Vec<HeldBack>, UnpackError> {
    let mut left_out = Vec::new();
    // What did not come may still stand: links that were never sent, and protected ones.
    for (name, through) in leaving(received, stays, |name| Below::at(root, name))? {
        let as_sent = |name: &Name| received.nodes.get(name) == manifest.node(name);
        if as_sent(&name) && through.iter().all(as_sent) {
            continue;
        }
        if let (Some(Node::Symlink { target }), OutsideLinks::Refuse) =
            (received.nodes.get(&name), options.outside_links)
        {
            return Err(UnpackError::LinkLeaves { name, target: target.clone() });
        }
        left_out.push(name);
    }
    received.withhold(staging, &left_out)?;
    Ok(left_out
        .into_iter()
        .map(|name| {
            let sent = manifest.node(&name).is_some();
            let change = if sent { Change::Updated } else { Change::Created };
            HeldBack { name, change, why: Why::LeavesTree }
        })
        .collect())
}

/// What is to be done, found by comparing what was sent, what came back and what the host has.
struct Plan<'a> {
    root: &'a Root,
    manifest: &'a Manifest,
    received: &'a Received,
    /// New, with all in it.
    brought: Vec<Name>,
    /// In the place of what is there, with all in it.
    replaced: Vec<Name>,
    /// To go, with all in it.
    taken: Vec<Name>,
    /// Directories that stay with other permission bits.
    modes: Vec<(Name, u32)>,
    held_back: Vec<HeldBack>,
    /// Entries that are decided with all below them.
    settled: BTreeSet<Name>,
}

impl<'a> Plan<'a> {
    fn new(
        root: &'a Root,
        manifest: &'a Manifest,
        received: &'a Received,
        held_back: Vec<HeldBack>,
    ) -> Self {
        let settled = held_back.iter().map(|held| held.name.clone()).collect();
        Self {
            root,
            manifest,
            received,
            brought: Vec::new(),
            replaced: Vec::new(),
            taken: Vec::new(),
            modes: Vec::new(),
            held_back,
            settled,
        }
    }

    /// Everything that came and is not what was sent.
    fn arrivals(&mut self) -> Result<(), UnpackError> {
        let received = self.received;
        for (name, node) in &received.nodes {
            let sent = self.manifest.entries.get(name);
            if sent.is_some_and(|sent| sent.node == *node) || self.is_settled(name) {
                continue;
            }
            let host = self.host(name)?;
            match host {
                None if sent.is_none() => {
                    let parent = name.split().map_or(Name::ROOT, |(parent, _)| parent);
                    if self.host(&parent)?.is_some_and(|host| host.kind == InodeKind::Directory) {
                        self.settled.insert(name.clone());
                        self.brought.push(name.clone());
                    } else {
                        self.hold(name, Change::Created, Why::ChangedOnHost);
                    }
                }
                // The host removed a directory of which the guest changed the mode: what matters
                // is what is in it.
                None if node.is_directory()
                    && sent.is_some_and(|sent| sent.node.is_directory()) => {}
                None => self.hold(name, Change::Updated, Why::ChangedOnHost),
                Some(host) if node.is_directory() && host.kind == InodeKind::Directory => {
                    if let (Node::Directory { mode }, Some(_)) = (node, sent) {
                        self.modes.push((name.clone(), *mode));
                    }
                }
                Some(host) => self.exchange(name, node, sent, &host)?,
            }
        }
        Ok(())
    }

    /// Something came and something else is there.
    fn exchange(
        &mut self,
        name: &Name,
        node: &Node,
        sent: Option<&Sent>,
        host: &Inode,
    ) -> Result<(), UnpackError> {
        let stands = match sent {
            Some(sent) => self.still_stands(name, sent, host)?,
            None => false,
        } && (host.kind != InodeKind::Directory || self.is_all_as_sent(name)?);
        if stands {
            self.settled.insert(name.clone());
            self.replaced.push(name.clone());
            return Ok(());
        }
        let is_the_same = host.kind != InodeKind::Directory
            && node_at(self.root, name)
                .map_err(|source| UnpackError::Compare { name: name.clone(), source })?
                .as_ref()
                == Some(node);
        if !is_the_same {
            let change = if sent.is_some() { Change::Updated } else { Change::Created };
            self.hold(name, change, Why::ChangedOnHost);
        }
        Ok(())
    }

    /// Everything that was sent and did not come back.
    fn deletions(&mut self) -> Result<(), UnpackError> {
        let manifest = self.manifest;
        for (name, sent) in &manifest.entries {
            if self.received.nodes.contains_key(name) || self.is_settled(name) {
                continue;
            }
            let Some(host) = self.host(name)? else { continue };
            // A guest that removes the whole repository takes its protected parts along.
            let is_git = name.components().next_back() == Some(b".git");
            if is_git || is_protected(name, &sent.node) {
                self.hold(name, Change::Deleted, Why::Protected);
            } else if !self.still_stands(name, sent, &host)? {
                self.hold(name, Change::Deleted, Why::ChangedOnHost);
            } else if host.kind != InodeKind::Directory || self.is_all_as_sent(name)? {
                self.settled.insert(name.clone());
                self.taken.push(name.clone());
            }
            // Otherwise the directory stays, for what is in it is the host's; what was sent of
            // it goes one by one.
        }
        Ok(())
    }

    /// Whether all that the host has in a directory was sent, is as it was, and may go.
    fn is_all_as_sent(&self, directory: &Name) -> Result<bool, UnpackError> {
        enum Stop {
            Walk(WalkError),
            Failed(UnpackError),
            Other,
        }
        impl From<WalkError> for Stop {
            fn from(error: WalkError) -> Self {
                Self::Walk(error)
            }
        }
        let walked = archive::walk(self.root, directory, |entry| {
            let Some(sent) = self.manifest.entries.get(entry.name) else {
                return Err(Stop::Other);
            };
            let may_go = !is_protected(entry.name, &sent.node)
                && entry.component != ".git"
                && !self.settled.contains(entry.name)
                && self.still_stands(entry.name, sent, &entry.inode).map_err(Stop::Failed)?;
            if may_go { Ok(Step::Into) } else { Err(Stop::Other) }
        });
        match walked {
            Ok(()) => Ok(true),
            Err(Stop::Other) => Ok(false),
            Err(Stop::Failed(error)) => Err(error),
            Err(Stop::Walk(
                WalkError::ReadDirectory { name, source } | WalkError::Look { name, source },
            )) => Err(UnpackError::Compare { name, source }),
            // What cannot be named was not sent.
            Err(Stop::Walk(WalkError::Name { .. })) => Ok(false),
        }
    }

    fn still_stands(&self, name: &Name, sent: &Sent, host: &Inode) -> Result<bool, UnpackError> {
        sent.still_stands(self.root, name, host)
            .map_err(|source| UnpackError::Compare { name: name.clone(), source })
    }

    fn host(&self, name: &Name) -> Result<Option<Inode>, UnpackError> {
        self.root.inode(name).map_err(|source| UnpackError::Compare { name: name.clone(), source })
    }

    fn hold(&mut self, name: &Name, change: Change, why: Why) {
        self.settled.insert(name.clone());
        self.held_back.push(HeldBack { name: name.clone(), change, why });
    }

    fn is_settled(&self, name: &Name) -> bool {
        let mut at = name.clone();
        loop {
            if self.settled.contains(&at) {
                return true;
            }
            match at.split() {
                Some((parent, _)) => at = parent,
                None => return false,
            }
        }
    }
}
