//! Chosen changes to the host's directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use archive::{Existing, Extract, Inode, InodeKind, Kind, Member, Name, Root, Step, WalkError};

use super::{APPLYING, Applying, ChangeSet, ChangesError, Record, Selection, damaged, text};
use crate::links::Below;
use crate::manifest::{Hashing, Manifest, Sent, node_at};
use crate::moves::Moves;
use crate::protected::is_protected;
use crate::receive::{OutsideLinks, Received, UnpackError, is_within, leaving};
use crate::staging::{self, Staging};
use crate::{Change, HeldBack, Hidden, Node, Synced, Why};

/// Bytes of merged texts that are held until they are in place.
const MAX_MERGED: usize = 64 << 20;

/// What is applied, and how.
#[derive(Debug, Clone)]
pub struct ApplyOptions {
    /// Which changes.
    pub paths: Selection,
    /// What is protected and is applied all the same.
    pub allow_protected: Selection,
    /// Where both sides changed the same, the guest's version is taken.
    pub theirs: bool,
    /// What happens to links that lead out of the tree and were not sent as they are.
    pub outside_links: OutsideLinks,
    /// What the guest was not to see, which it cannot change.
    pub hidden: Option<Hidden>,
}

impl Default for ApplyOptions {
    fn default() -> Self {
        Self {
            paths: Selection::all(),
            allow_protected: Selection::default(),
            theirs: false,
            outside_links: OutsideLinks::LeaveOut,
            hidden: None,
        }
    }
}

impl ChangeSet {
    /// Brings chosen changes to a directory, all or none. What the host changed as well is merged
    /// where both are text and changed different lines, and held back otherwise; so is what
    /// [`is_protected`]. What was not brought stays in the set; a set of which all was brought
    /// goes. Again is harmless: what the host has already is not brought again.
    ///
    /// What is atomic and what not: each file, link or new directory changes in one step (by
    /// `RENAME_EXCHANGE`; on file systems without it, the name is missing for a moment). The
    /// whole is not one step: programs that look meanwhile see some changes and not others. If a
    /// step fails, those before it are undone. If this process is killed half-way, the directory
    /// has some of the changes and the set has all of them; what they replaced is in
    /// `.sandforge-…` beside the directory until the next apply, which finishes. A file that
    /// changes on the host between the comparison and its rename ends up there too, and is
    /// removed with it.
    ///
    /// Hard links between a file that changed and one that did not are not kept.
    ///
    /// # Errors
    /// Why nothing was changed.
    pub fn apply(
        mut self,
        destination: &Path,
        options: &ApplyOptions,
    ) -> Result<Synced, UnpackError> {
        let open = |source| UnpackError::Open { path: destination.to_owned(), source };
        let destination = fs::canonicalize(destination).map_err(open)?;
        self.recover()?;
        let root = Root::open(&destination).map_err(open)?;

        let chosen = self.chosen(&options.paths);
        let mut manifest = Manifest::default();
        let mut received = Received::default();
        let mut times = BTreeMap::new();
        for standing in &self.index.links {
            manifest.entries.insert(standing.name.clone(), standing.sent.clone());
            received.nodes.insert(standing.name.clone(), standing.sent.node.clone());
        }
        for record in &chosen {
            if let Some(was) = &record.was {
                manifest.entries.insert(record.name.clone(), was.clone());
            }
            if let Some(now) = &record.now {
                times.insert(record.name.clone(), record.mtime);
                received.nodes.insert(record.name.clone(), now.clone());
            }
        }

        let allowed = &options.allow_protected;
        let was = |name: &Name| manifest.node(name).cloned();
        let (names, mut held_back) = protected(&received.nodes, was, allowed);
        received.forget(&names);
        let mut hidden = Vec::new();
        for (name, node) in &received.nodes {
            if Hidden::hides(options.hidden.as_ref(), name)
                && manifest.node(name) != Some(node)
                && !is_within(&hidden, name)
            {
                let change = Change::Created;
                held_back.push(HeldBack { name: name.clone(), change, why: Why::Hidden });
                hidden.push(name.clone());
            }
        }
        received.forget(&hidden);
        let leaves = |received: &mut Received, stays: &[Name]| {
            forget_leaving(received, &root, &manifest, options.outside_links, stays)
        };
        held_back.extend(leaves(&mut received, &[])?);

        // Where the host's version stays, a link that led through the guest's leads elsewhere.
        // Each round holds back at least one link more, or is the last.
        let planned = loop {
            let mut plan = Plan::new(&self, &root, &manifest, &received, options);
            for held in &held_back {
                plan.hold(&held.name, held.change, held.why);
            }
            plan.arrivals()?;
            plan.deletions()?;
            let planned = plan.done();
            let mut stays: Vec<Name> = planned
                .held_back
                .iter()
                .filter(|held| held.why == Why::ChangedOnHost)
                .map(|held| held.name.clone())
                .collect();
            stays.sort();
            let more = if stays.is_empty() { Vec::new() } else { leaves(&mut received, &stays)? };
            if more.is_empty() {
                break planned;
            }
            held_back.extend(more);
        };
        let Planned { brought, replaced, taken, modes, merged, mut held_back } = planned;
        held_back.sort_by(|one, other| one.name.cmp(&other.name));

        let mut bytes = 0;
        if !(brought.is_empty() && replaced.is_empty() && taken.is_empty() && modes.is_empty()) {
            let mut staging = Staging::beside(&destination)
                .map_err(|source| UnpackError::Stage { path: destination.clone(), source })?;
            self.begin(staging.path(), &destination)?;
            let moves: Vec<&Name> = brought.iter().chain(&replaced).collect();
            let done =
                self.stage(&staging, &received, &moves, &times, &merged).and_then(|staged| {
                    bytes = staged.bytes;
                    // What replaces the only copy of something must be on the disk before it does.
                    #[cfg(target_os = "linux")]
                    rustix::fs::syncfs(&staging.new).map_err(|error| UnpackError::Place {
                        name: Name::ROOT,
                        source: error.into(),
                    })?;
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
                        for directory in staged.directories.iter().rev() {
                            moves.finish(directory)?;
                        }
                        for (name, mode) in modes.iter().rev() {
                            moves.set_mode(name, *mode)?;
                        }
                        Ok(())
                    })
                });
            if let Err(error) = done {
                // What could not be put back is told, and is where it was told to be.
                self.end()?;
                return Err(error);
            }
        }
        let within = |moved: &[Name]| {
            received.nodes.keys().filter(|name| is_within(moved, name)).count() as u64
        };
        let synced = Synced {
            created: within(&brought),
            updated: within(&replaced) + modes.len() as u64,
            deleted: taken.len() as u64,
            merged: merged.len() as u64,
            bytes,
            held_back,
        };
        let chosen: BTreeSet<Name> = chosen.into_iter().map(|record| record.name).collect();
        let held: Vec<Name> = synced.held_back.iter().map(|held| held.name.clone()).collect();
        self.index
            .changes
            .retain(|record| !chosen.contains(&record.name) || is_within(&held, &record.name));
        if self.index.changes.is_empty() {
            self.remove()?;
        } else {
            self.rewrite()?;
            self.end()?;
        }
        Ok(synced)
    }

    /// What was chosen, with the new directories that it is in.
    fn chosen(&self, paths: &Selection) -> Vec<Record> {
        let mut names = BTreeSet::new();
        let new_directories: BTreeSet<&Name> = self
            .index
            .changes
            .iter()
            .filter(|record| {
                record.now.as_ref().is_some_and(Node::is_directory)
                    && !record.was.as_ref().is_some_and(|was| was.node.is_directory())
            })
            .map(|record| &record.name)
            .collect();
        for record in &self.index.changes {
            if !paths.has(&record.name) {
                continue;
            }
            let mut above = record.name.split().map(|(parent, _)| parent);
            while let Some(parent) = above {
                above = parent.split().map(|(parent, _)| parent);
                if record.now.is_some() && new_directories.contains(&parent) {
                    names.insert(parent);
                }
            }
            names.insert(record.name.clone());
        }
        let changes = self.index.changes.iter();
        changes.filter(|record| names.contains(&record.name)).cloned().collect()
    }

    /// Puts the new content of what will be moved into the staging directory.
    fn stage(
        &self,
        staging: &Staging,
        received: &Received,
        moves: &[&Name],
        times: &BTreeMap<Name, i64>,
        merged: &BTreeMap<Name, (Vec<u8>, u32)>,
    ) -> Result<Staged, UnpackError> {
        let mut sorted: Vec<Name> = moves.iter().map(|name| (*name).clone()).collect();
        sorted.sort();
        let mut extract = Extract::new(&staging.new, Existing::Refuse);
        let mut bytes = 0;
        for (name, node) in &received.nodes {
            if !is_within(&sorted, name) {
                continue;
            }
            let placing = |source| UnpackError::Place { name: name.clone(), source };
            if sorted.binary_search(name).is_ok()
                && let Some((parent, _)) = name.split()
            {
                staging.new.make_directories(&parent).map_err(placing)?;
            }
            let mtime = times.get(name).copied().unwrap_or_default();
            let member = |kind, mode| Member { name: name.clone(), kind, mode, mtime };
            let misplaced = |error| crate::receive::misplaced(error, staging);
            match (node, merged.get(name)) {
                (Node::Directory { mode }, _) => {
                    extract.add(&member(Kind::Directory, *mode), &mut io::empty())
                }
                (Node::Symlink { target }, _) => {
                    let kind = Kind::Symlink { target: target.clone() };
                    extract.add(&member(kind, 0o777), &mut io::empty())
                }
                (Node::File { .. }, Some((content, mode))) => {
                    let size = content.len() as u64;
                    bytes += size;
                    let now = std::time::SystemTime::now();
                    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                    let mtime = now.as_secs().cast_signed();
                    let member = Member { mtime, ..member(Kind::File { size }, *mode) };
                    extract.add(&member, &mut &content[..])
                }
                (Node::File { mode, size, digest }, None) => {
                    let file = self
                        .content(digest)
                        .map_err(|source| ChangesError::Read { path: self.path.clone(), source })?;
                    bytes += size;
                    let mut content = Hashing::new(file.take(*size));
                    let kind = Kind::File { size: *size };
                    let added = extract.add(&member(kind, *mode), &mut content);
                    if added.is_ok() && content.digest() != *digest {
                        let why = format!("the content of '{name}' is not what came");
                        return Err(damaged(&self.path, &why).into());
                    }
                    added
                }
            }
            .map_err(misplaced)?;
        }
        Ok(Staged { directories: extract.into_directories(), bytes })
    }

    /// Writes down where it is staged, before anything is moved.
    fn begin(&self, staging: &Path, destination: &Path) -> Result<(), ChangesError> {
        let applying = Applying {
            staging: staging.as_os_str().as_bytes().to_vec(),
            destination: destination.as_os_str().as_bytes().to_vec(),
        };
        super::write_json(&self.path, APPLYING, &applying)
    }

    fn end(&self) -> Result<(), ChangesError> {
        fs::remove_file(self.path.join(APPLYING)).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(ChangesError::Write { path: self.path.clone(), source: error }),
        })
    }

    /// Takes up what an apply left that was killed: what it took out of the directory and nothing
    /// stands in the place of goes back. What it brought is there, and is found to be there.
    fn recover(&self) -> Result<(), UnpackError> {
        let file = match File::open(self.path.join(APPLYING)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => {
                return Err(ChangesError::Read { path: self.path.clone(), source }.into());
            }
        };
        let applying: Applying = serde_json::from_reader(file.take(64 << 10))
            .map_err(|error| damaged(&self.path, &error))?;
        let path = |bytes: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(bytes));
        let (place, destination) = (path(&applying.staging), path(&applying.destination));
        staging::recover(&place, &destination)?;
        Ok(self.end()?)
    }
}

struct Staged {
    directories: Vec<archive::Directory>,
    bytes: u64,
}

/// What is protected, not as it was, and not allowed: the names of it, in order.
pub(crate) fn protected(
    nodes: &BTreeMap<Name, Node>,
    was: impl Fn(&Name) -> Option<Node>,
    allowed: &Selection,
) -> (Vec<Name>, Vec<HeldBack>) {
    let mut held_back = Vec::new();
    let mut names = Vec::new();
    for (name, node) in nodes {
        if is_within(&names, name) {
            continue;
        }
        let was = was(name);
        if was.as_ref() == Some(node) {
            continue;
        }
        // A directory in the place of a `.git` file is a repository that was not there.
        let was_protected = was.as_ref().is_some_and(|was| is_protected(name, was));
        // Where some of what is in a directory is allowed, all of it is judged by itself.
        let leads = node.is_directory() && allowed.reaches(name);
        if (is_protected(name, node) || was_protected) && !allowed.has(name) && !leads {
            let change = if was.is_some() { Change::Updated } else { Change::Created };
            held_back.push(HeldBack { name: name.clone(), change, why: Why::Protected });
            names.push(name.clone());
        }
    }
    (names, held_back)
}

/// Refuses, or takes out of what came, links that lead out of the tree. A link that the host sent
/// and the guest left alone, along with all links on its way, is the host's own and stays. At and
/// below the names in `stays`, which are in order, the host's version counts instead of what came.
fn forget_leaving(
    received: &mut Received,
    root: &Root,
    manifest: &Manifest,
    outside_links: OutsideLinks,
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
            (received.nodes.get(&name), outside_links)
        {
            return Err(UnpackError::LinkLeaves { name, target: target.clone() });
        }
        left_out.push(name);
    }
    received.forget(&left_out);
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
    set: &'a ChangeSet,
    root: &'a Root,
    manifest: &'a Manifest,
    received: &'a Received,
    options: &'a ApplyOptions,
    planned: Planned,
    merged_bytes: usize,
    /// Entries that are decided with all below them.
    settled: BTreeSet<Name>,
}

#[derive(Default)]
struct Planned {
    /// New, with all in it.
    brought: Vec<Name>,
    /// In the place of what is there, with all in it.
    replaced: Vec<Name>,
    /// To go, with all in it.
    taken: Vec<Name>,
    /// Directories that stay with other permission bits.
    modes: Vec<(Name, u32)>,
    /// Of what is replaced: what both sides made of it, and its permission bits.
    merged: BTreeMap<Name, (Vec<u8>, u32)>,
    held_back: Vec<HeldBack>,
}

impl<'a> Plan<'a> {
    fn new(
        set: &'a ChangeSet,
        root: &'a Root,
        manifest: &'a Manifest,
        received: &'a Received,
        options: &'a ApplyOptions,
    ) -> Self {
        let (planned, settled) = (Planned::default(), BTreeSet::new());
        Self { set, root, manifest, received, options, planned, merged_bytes: 0, settled }
    }

    fn done(self) -> Planned {
        self.planned
    }

    /// Everything that came and is not what was sent.
    fn arrivals(&mut self) -> Result<(), UnpackError> {
        let received = self.received;
        for (name, node) in &received.nodes {
            let sent = self.manifest.entries.get(name);
            if sent.is_some_and(|sent| sent.node == *node) || self.is_settled(name) {
                continue;
            }
            let change = if sent.is_some() { Change::Updated } else { Change::Created };
            match self.host(name)? {
                // The host removed a directory of which the guest changed the mode: what matters
                // is what is in it.
                None if node.is_directory()
                    && sent.is_some_and(|sent| sent.node.is_directory()) => {}
                None if sent.is_none() || self.options.theirs => {
                    let parent = name.split().map_or(Name::ROOT, |(parent, _)| parent);
                    if self.host(&parent)?.is_some_and(|host| host.kind == InodeKind::Directory) {
                        self.settled.insert(name.clone());
                        self.planned.brought.push(name.clone());
                    } else {
                        self.hold(name, change, Why::ChangedOnHost);
                    }
                }
                None => self.hold(name, change, Why::ChangedOnHost),
                Some(host) if node.is_directory() && host.kind == InodeKind::Directory => {
                    if let (Node::Directory { mode }, Some(_)) = (node, sent)
                        && host.mode & 0o777 != *mode
                    {
                        self.planned.modes.push((name.clone(), *mode));
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
        let as_sent = match sent {
            Some(sent) => self.still_stands(name, sent, host)?,
            None => false,
        };
        let stands = match host.kind {
            InodeKind::Directory => as_sent && self.is_all_as_sent(name)?,
            _ => as_sent || (self.options.theirs && host.kind != InodeKind::Device),
        };
        let is_the_same = || -> Result<bool, UnpackError> {
            let found = node_at(self.root, name)
                .map_err(|source| UnpackError::Compare { name: name.clone(), source })?;
            Ok(host.kind != InodeKind::Directory && found.as_ref() == Some(node))
        };
        if !as_sent && is_the_same()? {
            return Ok(());
        }
        if stands {
            self.settled.insert(name.clone());
            self.planned.replaced.push(name.clone());
            return Ok(());
        }
        if let Some(merged) = self.merge(name, node, sent, host) {
            self.merged_bytes += merged.0.len();
            self.settled.insert(name.clone());
            self.planned.replaced.push(name.clone());
            self.planned.merged.insert(name.clone(), merged);
            return Ok(());
        }
        let change = if sent.is_some() { Change::Updated } else { Change::Created };
        self.hold(name, change, Why::ChangedOnHost);
        Ok(())
    }

    /// What both sides made of a text.
    fn merge(
        &self,
        name: &Name,
        node: &Node,
        sent: Option<&Sent>,
        host: &Inode,
    ) -> Option<(Vec<u8>, u32)> {
        let Node::File { mode, size, digest } = node else { return None };
        let Node::File { mode: mode_then, digest: base, .. } = &sent?.node else { return None };
        let record = self.set.record(name)?;
        let is_short = *size <= text::MAX_TEXT && host.size <= text::MAX_TEXT;
        if !record.base || host.kind != InodeKind::File || !is_short {
            return None;
        }
        let mut ours = Vec::new();
        let (file, _) = self.root.file(name).ok()?;
        file.take(text::MAX_TEXT + 1).read_to_end(&mut ours).ok()?;
        let base = self.set.text(base).ok()?;
        let merged = text::merge(&base, &ours, &self.set.text(digest).ok()?)?;
        let mode = if mode == mode_then { host.mode & 0o777 } else { *mode };
        (self.merged_bytes + merged.len() <= MAX_MERGED).then_some((merged, mode))
    }

    /// Everything that was sent and did not come back.
    fn deletions(&mut self) -> Result<(), UnpackError> {
        let manifest = self.manifest;
        for (name, sent) in &manifest.entries {
            if self.received.nodes.contains_key(name) || self.is_settled(name) {
                continue;
            }
            let Some(host) = self.host(name)? else { continue };
            let taken = self.options.theirs && host.kind != InodeKind::Directory;
            if self.is_kept(name, &sent.node) {
                self.hold(name, Change::Deleted, Why::Protected);
            } else if !taken && !self.still_stands(name, sent, &host)? {
                self.hold(name, Change::Deleted, Why::ChangedOnHost);
            } else if host.kind != InodeKind::Directory || self.is_all_as_sent(name)? {
                self.settled.insert(name.clone());
                self.planned.taken.push(name.clone());
            }
            // Otherwise the directory stays, for what is in it is the host's; what was sent of
            // it goes one by one.
        }
        Ok(())
    }

    /// Whether it may not go. A guest that removes the whole repository takes its protected parts
    /// along.
    fn is_kept(&self, name: &Name, node: &Node) -> bool {
        let is_git = name.components().next_back() == Some(b".git");
        (is_git || is_protected(name, node)) && !self.options.allow_protected.has(name)
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
            let may_go = !self.is_kept(entry.name, &sent.node)
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
        self.planned.held_back.push(HeldBack { name: name.clone(), change, why });
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

impl ChangeSet {
    fn record(&self, name: &Name) -> Option<&Record> {
        let changes = &self.index.changes;
        let at = changes.binary_search_by(|record| record.name.cmp(name)).ok()?;
        changes.get(at)
    }
}
