//! What comes from a guest, compared with what was sent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead as _, Read, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use archive::{Answer, ExtractError, Kind, Member, Name, ReadError, Reader, Root, Sparse};
use rustix::fs::{CWD, RenameFlags};
use sha2::{Digest as _, Sha256};

use super::ignored::{Ignores, is_gitignore};
use super::{
    About, CONTENT, ChangeSet, ChangesError, Ignored, Index, Record, Standing, VERSION, form, text,
    write_index,
};
use crate::manifest::{Hashing, Sent, node_at};
use crate::receive::{Budget, Limits, UnpackError};
use crate::{Manifest, Node, Progress};

/// Content up to here is looked at in memory, and on a disk only if it is new.
const IN_MEMORY: u64 = 256 << 10;

/// How changes are collected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CollectOptions {
    /// How much is taken.
    pub limits: Limits,
    /// Take what the guest made and git would ignore, too.
    pub ignored: bool,
    /// The archive has only what is not as it was unpacked. Behind it come the names of the rest,
    /// each with a NUL.
    pub partial: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Collected {
    /// The changes; none where the guest changed nothing.
    pub set: Option<ChangeSet>,
    /// What git would ignore.
    pub ignored: Ignored,
    /// Bytes of content that came.
    pub bytes: u64,
    /// What both sides have changed in the same way.
    pub agreed: Agreed,
}

/// What the host has of a guest's changes: it takes the place of what was sent, so that what the
/// guest changes next is told against it.
#[derive(Debug, Default)]
pub struct Agreed(Vec<(Name, Option<Sent>)>);

impl Manifest {
    /// Takes what both sides have for what was sent.
    pub fn agree(&mut self, agreed: Agreed) {
        for (name, now) in agreed.0 {
            match now {
                Some(now) => self.entries.insert(name, now),
                None => self.entries.remove(&name),
            };
        }
    }
}

/// Takes a guest's tree and keeps what of it is not as it was sent, in the directory `to`, whose
/// parent is made if missing. A set that is there is replaced. Nothing of the host's directory is
/// touched. What the host has already is no change any more.
///
/// # Errors
/// Why nothing was kept.
pub fn collect(
    input: &mut impl Read,
    manifest: &Manifest,
    about: About,
    to: &Path,
    options: &CollectOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Collected, UnpackError> {
    collect_from(input, None, manifest, about, to, options, progress)
}

/// As [`collect`], of a guest that asks before it sends what may be ignored: `answer` gets what it is
/// told.
///
/// # Errors
/// As [`collect`].
pub fn collect_asked(
    input: &mut impl Read,
    answer: &mut dyn FnMut(Answer) -> io::Result<()>,
    manifest: &Manifest,
    about: About,
    to: &Path,
    options: &CollectOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Collected, UnpackError> {
    let answers = Answers { answer, vain: 0 };
    collect_from(input, Some(answers), manifest, about, to, options, progress)
}

/// Questions in a row that saved nothing, before no more are taken: each costs a round trip.
const VAIN: u32 = 1000;

/// What a guest is told that asks.
struct Answers<'a> {
    answer: &'a mut dyn FnMut(Answer) -> io::Result<()>,
    vain: u32,
}

impl Answers<'_> {
    /// Answers; whether what was asked about does not follow.
    fn give(&mut self, drop: bool) -> io::Result<bool> {
        // It was told not to ask any more.
        if self.vain >= VAIN {
            return Ok(false);
        }
        self.vain = if drop { 0 } else { self.vain + 1 };
        (self.answer)(match drop {
            true => Answer::Over,
            false if self.vain >= VAIN => Answer::All,
            false => Answer::Into,
        })?;
        Ok(drop)
    }
}

fn collect_from(
    input: &mut impl Read,
    answers: Option<Answers<'_>>,
    manifest: &Manifest,
    about: About,
    to: &Path,
    options: &CollectOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Collected, UnpackError> {
    let write = |source| ChangesError::Write { path: to.to_owned(), source };
    let read = |source| UnpackError::Open { path: about.host.clone(), source };
    let root = Root::open(&about.host).map_err(read)?;
    let parent = to.parent().unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(parent).map_err(write)?;
    fs::set_permissions(parent, fs::Permissions::from_mode(0o700)).map_err(write)?;
    let place = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in(parent)
        .map_err(write)?;
    fs::create_dir(place.path().join(CONTENT)).map_err(write)?;

    let mut taking = Taking {
        manifest,
        place: place.path(),
        options,
        ignores: Ignores::of(&root, manifest),
        nodes: BTreeMap::new(),
        dropped: BTreeSet::new(),
        standing: BTreeSet::new(),
        ignored: Ignored::default(),
        budget: Budget::new(options.limits),
        answers,
    };
    taking.all(input, progress)?;
    let Taking { nodes, standing, ignored, dropped, budget, .. } = taking;
    let bytes = budget.progress().bytes;

    let mut changes = Vec::new();
    for (name, (node, mtime)) in nodes {
        let was = manifest.entries.get(&name);
        if dropped.contains(&name) || was.is_some_and(|was| was.node == node) {
            continue;
        }
        let was = was.cloned();
        changes.push(Record { name, was, now: Some(node), mtime, base: false });
    }
    let came: BTreeSet<Name> = changes.iter().map(|change| change.name.clone()).collect();
    let mut links = Vec::new();
    for (name, sent) in &manifest.entries {
        let stands = standing.contains(name);
        if stands && !came.contains(name) {
            if matches!(sent.node, Node::Symlink { .. }) {
                links.push(Standing { name: name.clone(), sent: sent.clone() });
            }
        } else if !stands {
            let (name, was) = (name.clone(), Some(sent.clone()));
            changes.push(Record { name, was, now: None, mtime: 0, base: false });
        }
    }
    changes.sort_by(|one, other| one.name.cmp(&other.name));
    let mut kept = Vec::with_capacity(changes.len());
    let mut agreed = Agreed::default();
    for mut change in changes {
        match agreement(&root, &change)? {
            Some(now) => agreed.0.push((change.name, now)),
            None => {
                keep_base(&root, place.path(), &mut change)?;
                kept.push(change);
            }
        }
    }
    let set = match kept.is_empty() {
        true => {
            drop(place);
            match ChangeSet::open(to) {
                Ok(old) if old.is_interrupted() => return Err(ChangesError::Interrupted.into()),
                Ok(old) => old.remove()?,
                Err(ChangesError::Read { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            None
        }
        false => {
            let index = Index { version: VERSION, about, ignored, changes: kept, links };
            write_index(place.path(), &index)?;
            publish(place, to)?;
            Some(ChangeSet::open(to)?)
        }
    };
    Ok(Collected { set, ignored, bytes, agreed })
}

/// Puts a complete set in its place.
fn publish(place: tempfile::TempDir, to: &Path) -> Result<(), UnpackError> {
    let write = |error: rustix::io::Errno| ChangesError::Write {
        path: to.to_owned(),
        source: error.into(),
    };
    #[cfg(target_os = "linux")]
    {
        let directory = File::open(place.path())
            .map_err(|source| ChangesError::Write { path: to.to_owned(), source })?;
        rustix::fs::syncfs(&directory).map_err(write)?;
    }
    let old = match ChangeSet::open(to) {
        Ok(old) => Some(old),
        Err(ChangesError::Damaged { .. } | ChangesError::Read { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    if old.as_ref().is_some_and(ChangeSet::is_interrupted) {
        return Err(ChangesError::Interrupted.into());
    }
    let place = place.keep();
    let renamed = match to.exists() {
        false => rustix::fs::rename(&place, to).map_err(write),
        true => rustix::fs::renameat_with(CWD, &place, CWD, to, RenameFlags::EXCHANGE)
            .or_else(|_| {
                let _ = fs::remove_dir_all(to);
                rustix::fs::rename(&place, to)
            })
            .map_err(write),
    };
    let _ = fs::remove_dir_all(&place);
    Ok(renamed?)
}

/// What both sides have, where the host has the change already.
fn agreement(root: &Root, change: &Record) -> Result<Option<Option<Sent>>, UnpackError> {
    let name = &change.name;
    let compare = |source| UnpackError::Compare { name: name.clone(), source };
    let (now, host) = match (&change.now, root.inode(name).map_err(compare)?) {
        (None, None) => return Ok(Some(None)),
        (None, Some(_)) | (Some(_), None) => return Ok(None),
        (Some(now), Some(host)) => (now, host),
    };
    let is_there = match now {
        Node::Directory { mode } => {
            host.kind == archive::InodeKind::Directory
                && (change.was.is_none() || host.mode & 0o777 == *mode)
        }
        Node::File { size, .. } if host.size != *size => false,
        _ => node_at(root, name).map_err(compare)?.as_ref() == Some(now),
    };
    Ok(is_there.then(|| Some(Sent { node: now.clone(), inode: host })))
}

/// Keeps what was sent of a text that changed, if the host still has it.
fn keep_base(root: &Root, place: &Path, change: &mut Record) -> Result<(), UnpackError> {
    let (Some(was), Some(Node::File { .. })) = (&change.was, &change.now) else { return Ok(()) };
    let Node::File { size, digest, .. } = was.node else { return Ok(()) };
    if size > text::MAX_TEXT {
        return Ok(());
    }
    let Ok((file, _)) = root.file(&change.name) else { return Ok(()) };
    let mut content = Vec::new();
    if file.take(text::MAX_TEXT + 1).read_to_end(&mut content).is_err()
        || <[u8; 32]>::from(Sha256::digest(&content)) != digest
    {
        return Ok(());
    }
    keep_content(place, &digest, &content)
        .map_err(|source| ChangesError::Write { path: place.to_owned(), source })?;
    change.base = true;
    Ok(())
}

fn keep_content(place: &Path, digest: &[u8; 32], content: &[u8]) -> io::Result<()> {
    let path = place.join(CONTENT).join(form::hex(digest));
    match File::create_new(&path) {
        Ok(mut file) => file.write_all(content),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

struct Taking<'a, 'b> {
    manifest: &'a Manifest,
    place: &'a Path,
    options: &'a CollectOptions,
    ignores: Ignores,
    /// What came, and its modification time.
    nodes: BTreeMap<Name, (Node, i64)>,
    /// What came and is ignored.
    dropped: BTreeSet<Name>,
    /// What was sent and is there, changed or not.
    standing: BTreeSet<Name>,
    ignored: Ignored,
    budget: Budget,
    answers: Option<Answers<'b>>,
}

impl Taking<'_, '_> {
    fn all(
        &mut self,
        input: &mut impl Read,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), UnpackError> {
        let mut reader = Reader::new(input);
        while let Some(member) = reader.next_member()? {
            self.budget.take(&member)?;
            if !member.name.is_root() {
                self.check(&member)?;
                if reader.is_question() && self.forgoes(&member)? {
                    self.without(member, reader.forgo())?;
                } else {
                    self.take(member, &mut reader.content())?;
                }
            }
            progress(self.budget.progress());
        }
        if self.options.partial {
            self.rest(&mut reader.into_inner())?;
        }
        Ok(())
    }

    /// The names of what is as it was unpacked.
    fn rest(&mut self, input: &mut io::BufReader<&mut impl Read>) -> Result<(), UnpackError> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let longest = archive::MAX_NAME as u64 + 1;
            input.by_ref().take(longest).read_until(0, &mut bytes).map_err(ReadError::Stream)?;
            match bytes.pop() {
                None => return Ok(()),
                Some(0) => {}
                Some(_) => return Err(ReadError::Truncated.into()),
            }
            self.budget.take_name(bytes.len())?;
            let name = Name::parse(&bytes)
                .map_err(|_| ReadError::Damaged("a name of what has not changed"))?;
            // What was never sent cannot be as it was.
            if self.manifest.entries.contains_key(&name) && !self.nodes.contains_key(&name) {
                self.standing.insert(name);
            }
        }
    }

    /// What a directory would say to an entry that is unpacked into it.
    fn check(&self, member: &Member) -> Result<(), UnpackError> {
        let name = &member.name;
        if let Some((node, _)) = self.nodes.get(name) {
            let what = match node {
                Node::Directory { .. } => "a directory",
                Node::File { .. } => "a file",
                Node::Symlink { .. } => "a symbolic link",
            };
            let name = name.clone();
            return Err(UnpackError::Extract(ExtractError::Occupied { name, what }));
        }
        if let Some((parent, _)) = name.split().filter(|(parent, _)| !parent.is_root())
            && !self.nodes.get(&parent).is_some_and(|(node, _)| node.is_directory())
        {
            return Err(UnpackError::Extract(ExtractError::Parent { name: name.clone() }));
        }
        Ok(())
    }

    fn take(&mut self, member: Member, content: &mut impl Read) -> Result<(), UnpackError> {
        let Member { name, kind, mode, mtime } = member;
        let mode = mode & 0o777;
        let known = self.manifest.entries.contains_key(&name);
        let drop = self.drops(&name, matches!(kind, Kind::Directory));
        if known {
            self.standing.insert(name.clone());
        }
        let node = match kind {
            Kind::Directory => Node::Directory { mode },
            Kind::Symlink { target } => Node::Symlink { target },
            Kind::File { size } if drop => {
                io::copy(content, &mut io::sink()).map_err(ReadError::Stream)?;
                self.ignored.bytes += size;
                Node::File { mode, size, digest: [0; 32] }
            }
            Kind::File { size } => self.file(&name, mode, size, content)?,
            Kind::HardLink { target } => match self.nodes.get(&target) {
                Some((Node::File { size, digest, .. }, _)) if !self.dropped.contains(&target) => {
                    Node::File { mode, size: *size, digest: *digest }
                }
                // One more name of what was left out: its content is not here.
                Some((node @ Node::File { .. }, _)) => {
                    let node = node.clone();
                    self.drop(name, node, mtime);
                    return Ok(());
                }
                _ => {
                    let error = ExtractError::HardLink { name, target };
                    return Err(UnpackError::Extract(error));
                }
            },
        };
        if drop {
            self.drop(name, node, mtime);
        } else {
            self.nodes.insert(name, (node, mtime));
        }
        Ok(())
    }

    /// Whether the guest made it and git would ignore it.
    fn drops(&mut self, name: &Name, is_directory: bool) -> bool {
        !self.options.ignored
            && !self.manifest.entries.contains_key(name)
            && self.ignores.has(name, is_directory)
    }

    /// Answers the guest's question, and says what it was told: whether what belongs to the entry does
    /// not follow.
    fn forgoes(&mut self, member: &Member) -> Result<bool, UnpackError> {
        let is_directory = match member.kind {
            Kind::Directory => true,
            Kind::File { .. } => false,
            Kind::Symlink { .. } | Kind::HardLink { .. } => {
                return Err(ReadError::Damaged("a question about a link").into());
            }
        };
        let drop = self.drops(&member.name, is_directory);
        let Some(answers) = &mut self.answers else { return Ok(false) };
        Ok(answers.give(drop).map_err(ReadError::Stream)?)
    }

    /// Takes an entry without what belongs to it. The guest's word about how much that is goes to a
    /// person and nowhere else.
    fn without(&mut self, member: Member, input: &mut impl Read) -> Result<(), UnpackError> {
        let Member { name, kind, mode, mtime } = member;
        let mode = mode & 0o777;
        let limits = self.options.limits;
        let node = match kind {
            Kind::File { size } => {
                self.ignored.bytes = self.ignored.bytes.saturating_add(size);
                Node::File { mode, size, digest: [0; 32] }
            }
            _ => {
                let mut told = [[0; 8]; 2];
                input.read_exact(told.as_flattened_mut()).map_err(|_| ReadError::Truncated)?;
                let [entries, bytes] = told.map(u64::from_le_bytes);
                self.ignored.entries += entries.min(limits.entries);
                self.ignored.bytes = self.ignored.bytes.saturating_add(bytes).min(limits.bytes);
                Node::Directory { mode }
            }
        };
        self.drop(name, node, mtime);
        Ok(())
    }

    fn drop(&mut self, name: Name, node: Node, mtime: i64) {
        self.ignored.entries += 1;
        self.dropped.insert(name.clone());
        self.nodes.insert(name, (node, mtime));
    }

    /// Takes a file's content. What was sent so is not kept.
    fn file(
        &mut self,
        name: &Name,
        mode: u32,
        size: u64,
        content: &mut impl Read,
    ) -> Result<Node, UnpackError> {
        let received = |source: io::Error| match source.kind() {
            io::ErrorKind::UnexpectedEof => ReadError::Truncated,
            _ => ReadError::Stream(source),
        };
        let is_as_sent = |node: &Node| self.manifest.node(name) == Some(node);
        if size <= IN_MEMORY {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes).map_err(received)?;
            let node = Node::File { mode, size, digest: Sha256::digest(&bytes).into() };
            if is_gitignore(name) {
                self.ignores.add(name, &bytes);
            }
            if let (Node::File { digest, .. }, false) = (&node, is_as_sent(&node)) {
                keep_content(self.place, digest, &bytes).map_err(|error| self.full(name, error))?;
            }
            return Ok(node);
        }
        let mut file =
            tempfile::NamedTempFile::new_in(self.place).map_err(|error| self.full(name, error))?;
        let mut content = Hashing::new(content);
        let mut chunk = vec![0; 128 << 10];
        let mut sparse = Sparse::new(file.as_file_mut());
        loop {
            match content.read(&mut chunk).map_err(received)? {
                0 => break,
                got => sparse.write(&chunk[..got]).map_err(|error| self.full(name, error))?,
            }
        }
        sparse.finish().map_err(|error| self.full(name, error))?;
        let digest = content.digest();
        let node = Node::File { mode, size, digest };
        if !is_as_sent(&node) {
            let path = self.place.join(CONTENT).join(form::hex(&digest));
            file.persist(path).map_err(|error| self.full(name, error.error))?;
        }
        Ok(node)
    }

    fn full(&self, name: &Name, source: io::Error) -> UnpackError {
        let path = self.place.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                UnpackError::NoSpace { name: name.clone(), path }
            }
            _ => ChangesError::Write { path, source }.into(),
        }
    }
}
