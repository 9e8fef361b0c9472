//! A guest's changes to the directory that it was given.

use std::io::Read;
use std::path::Path;

use archive::Name;

use crate::changes::{About, ApplyOptions, CollectOptions, Selection, collect, protected};
use crate::manifest::Manifest;
use crate::receive::{Limits, OutsideLinks, Received, UnpackError};
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
    /// Of those that are not what they were, texts that both sides changed in different lines.
    pub merged: u64,
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
    /// See [`crate::is_protected`].
    Protected,
    /// The host changed it too, after it was sent.
    ChangedOnHost,
    /// It is a link that leads out of the tree.
    LeavesTree,
    /// The guest was not to see it.
    Hidden,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Protected => "other programs would run what it says",
            Self::ChangedOnHost => "it was changed here as well",
            Self::LeavesTree => "the link leads out of the directory",
            Self::Hidden => "policy hides it",
        })
    }
}

impl std::fmt::Display for HeldBack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let change = match self.change {
            Change::Created => "created",
            Change::Updated => "changed",
            Change::Deleted => "deleted",
        };
        write!(f, "{} ({change} in the guest): {}", self.name, self.why)
    }
}

/// Brings a directory to what the guest made of it: collects the changes and applies them.
/// `manifest` is what [`crate::pack`] sent: only what differs from it is a change of the guest's,
/// and only what was sent can be deleted, so what was never sent (ignored files, files made
/// meanwhile) stays. What is held back is gone with the guest; [`crate::ChangeSet::apply`] says what is
/// atomic.
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
    let staging = Staging::beside(&destination)
        .map_err(|source| UnpackError::Stage { path: destination.clone(), source })?;
    let about = About {
        sandbox: String::new(),
        name: String::new(),
        host: destination.clone(),
        guest: String::new(),
        collected_at_ms: 0,
    };
    let collecting = CollectOptions { limits: options.limits, ignored: true, partial: false };
    let place = staging.path().join("changes");
    let collected = collect(input, manifest, about, &place, &collecting, progress)?;
    let applying = ApplyOptions { outside_links: options.outside_links, ..ApplyOptions::default() };
    let synced = match collected.set {
        Some(set) => set.apply(&destination, &applying)?,
        None => Synced::default(),
    };
    Ok(Synced { bytes: collected.bytes, ..synced })
}

/// Takes what is protected and not as it was out of what came.
pub(crate) fn withhold_protected(
    received: &mut Received,
    staging: &Staging,
    was: impl Fn(&Name) -> Option<Node>,
) -> Result<Vec<HeldBack>, UnpackError> {
    let (names, held_back) = protected(&received.nodes, was, &Selection::default());
    received.withhold(staging, &names)?;
    Ok(held_back)
}
