//! Entries in, image out.
//!
//! Data blocks are written as they arrive, directories and inodes after the last of them, the
//! superblock at the very end: memory grows with the number of entries, not with their size.

use super::Limits;
use super::format::{BLOCK, DirLayout, INODE, Inode, Meta, SLOT, Superblock, Type, XATTR_HEADER};
use super::tree::{Body, NodeId, Obstacle, ROOT, Tree};
use crate::tar::{self, Entry, Kind, TarError, TarPath};
use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Tails held in memory until their inodes are written. Beyond it they get blocks of their own.
const MAX_TAIL_BYTES: usize = 256 << 20;

static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The archive is not one we accept.
    #[error(transparent)]
    Archive(#[from] TarError),
    /// The contents of one entry could not be read.
    #[error("cannot read the contents of {path}: {source}")]
    ReadContents {
        /// The entry.
        path: TarPath,
        /// What its source said.
        source: io::Error,
    },
    /// The image itself could not be written.
    #[error("cannot write the image: {0}")]
    Write(#[source] io::Error),
    /// An entry lies below a file or a symbolic link.
    #[error("{path} lies below something that is not a directory")]
    BelowFile {
        /// The entry.
        path: TarPath,
    },
    /// A hard link to an entry that was not there before it.
    #[error("{path} is a hard link to {target}, which is not in the archive before it")]
    LinkTarget {
        /// The link.
        path: TarPath,
        /// What it should link to.
        target: TarPath,
    },
    /// A hard link to a directory, or a root that is none.
    #[error("{path}: a directory cannot be a hard link, nor the root anything but a directory")]
    Directory {
        /// The entry.
        path: TarPath,
    },
    /// More extended attributes than one inode can hold.
    #[error("{path} has more than 256 KiB of extended attributes")]
    Attributes {
        /// The entry.
        path: TarPath,
    },
    /// A limit was reached.
    #[error("the image would exceed the limit of {limit} {what}")]
    Limit {
        /// Which one.
        what: &'static str,
        /// Its value.
        limit: u64,
    },
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Size of the image.
    pub bytes: u64,
    /// Inodes in it.
    pub inodes: u64,
    /// Devices left out: the guest has a `/dev` of its own, and a device that an image brings
    /// would be a way around it.
    pub devices_skipped: u64,
}

/// Collects entries; [`finish`](Self::finish) makes the image whole.
///
/// Of two entries with one path the later wins.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    limits: Limits,
    tree: Tree,
    /// Blocks written so far, the superblock's included.
    blocks: u64,
    tail_bytes: usize,
    metadata_bytes: u64,
    devices_skipped: u64,
    /// What is hidden of the layers below, until all entries are known.
    hidden: Vec<Hidden>,
}

#[derive(Debug)]
enum Hidden {
    Name(TarPath),
    Below(TarPath),
}

impl<W: Read + Write + Seek> Writer<W> {
    /// `out` is written from its start; what it held is not cleared.
    pub fn new(mut out: W, limits: Limits) -> Result<Self, WriteError> {
        out.seek(SeekFrom::Start(BLOCK as u64)).map_err(WriteError::Write)?;
        Ok(Self {
            out,
            limits,
            tree: Tree::new(),
            blocks: 1,
            tail_bytes: 0,
            metadata_bytes: 0,
            devices_skipped: 0,
            hidden: Vec::new(),
        })
    }

    /// Adds every entry of `archive` that `wanted` lets through.
    pub fn add_archive(
        &mut self,
        archive: &mut tar::Reader<impl Read>,
        mut wanted: impl FnMut(&Entry) -> bool,
    ) -> Result<(), WriteError> {
        while let Some(entry) = archive.next_entry()? {
            if wanted(&entry) {
                self.add(entry, &mut archive.contents())?;
            }
        }
        Ok(())
    }

    /// Adds one entry; `contents` is read only for files, and must hold what `entry` promises.
    pub fn add(&mut self, entry: Entry, contents: &mut dyn Read) -> Result<(), WriteError> {
        let xattr_bytes: usize = entry.xattrs.iter().map(|(k, v)| k.len() + v.len()).sum();
        let target_bytes = if let Kind::Symlink(target) = &entry.kind { target.len() } else { 0 };
        let cost = entry.path.as_bytes().len() + xattr_bytes + target_bytes;
        self.metadata_bytes += cost as u64;
        within("bytes of names and attributes", self.metadata_bytes, self.limits.metadata_bytes)?;
        // Directories that the path implies count too, hence the length of the arena.
        within("entries", self.tree.len() as u64, u64::from(self.limits.entries))?;

        let meta =
            Meta::of(&entry).ok_or_else(|| WriteError::Attributes { path: entry.path.clone() })?;
        let path = entry.path;
        let done = match entry.kind {
            Kind::Dir => self.tree.insert(&path, meta, Body::Dir(Default::default())),
            Kind::Symlink(target) => self.tree.insert(&path, meta, Body::Symlink(target.into())),
            Kind::Fifo => self.tree.insert(&path, meta, Body::Fifo),
            Kind::HardLink(target) => match self.tree.link(&path, &target) {
                Err(Obstacle::Missing) => return Err(WriteError::LinkTarget { path, target }),
                other => other,
            },
            Kind::Device => {
                self.devices_skipped += 1;
                self.tree.remove(&path)
            }
            Kind::File { size } => {
                let body = self.file(&path, size, meta.xattrs.len(), contents)?;
                self.tree.insert(&path, meta, body)
            }
        };
        done.map_err(|obstacle| obstacle_at(obstacle, path))
    }

    /// Takes a path and all below it out again.
    pub fn remove(&mut self, path: &TarPath) -> Result<(), WriteError> {
        self.tree.remove(path).map_err(|_| WriteError::Directory { path: path.clone() })
    }

    /// Hides what the layers below this one have at `path`, unless this one has something there:
    /// then it hides what is below that. In the image it is a character device 0/0, or the mark of
    /// an opaque directory, as overlayfs understands them.
    pub fn whiteout(&mut self, path: TarPath) -> Result<(), WriteError> {
        self.hide(Hidden::Name(path))
    }

    /// Hides what the layers below this one have in the directory at `path`.
    pub fn hide_below(&mut self, path: TarPath) -> Result<(), WriteError> {
        self.hide(Hidden::Below(path))
    }

    /// Takes a device out of the layers below, since it cannot be put in its place.
    pub fn skip_device(&mut self, path: TarPath) -> Result<(), WriteError> {
        self.devices_skipped += 1;
        self.remove(&path)?;
        self.whiteout(path)
    }

    /// Puts what is hidden into the tree. [`finish`](Self::finish) does it too.
    pub fn settle_whiteouts(&mut self) -> Result<(), WriteError> {
        for hidden in std::mem::take(&mut self.hidden) {
            within("entries", self.tree.len() as u64, u64::from(self.limits.entries))?;
            let (done, path) = match hidden {
                Hidden::Name(path) => (self.tree.whiteout(&path), path),
                Hidden::Below(path) => (self.tree.hide_below(&path), path),
            };
            done.map_err(|obstacle| obstacle_at(obstacle, path))?;
        }
        Ok(())
    }

    /// Paths of the directories that are there because of what is in them, not because an entry
    /// describes them. An overlay takes their owner and mode all the same.
    pub fn implied_directories(&self) -> Vec<Vec<u8>> {
        self.tree.implied()
    }

    /// Whether all layers below are hidden.
    pub fn hides_all(&self) -> bool {
        self.tree.is_opaque(ROOT)
    }

    fn hide(&mut self, hidden: Hidden) -> Result<(), WriteError> {
        let (Hidden::Name(path) | Hidden::Below(path)) = &hidden;
        self.metadata_bytes += path.as_bytes().len() as u64;
        within("bytes of names and attributes", self.metadata_bytes, self.limits.metadata_bytes)?;
        let entries = self.tree.len() as u64 + self.hidden.len() as u64;
        within("entries", entries, u64::from(self.limits.entries))?;
        self.hidden.push(hidden);
        Ok(())
    }

    /// Whether there is something at `path`.
    pub fn contains(&self, path: &TarPath) -> bool {
        self.tree.find(path).is_some()
    }

    /// The contents of a file added before, when there is one of at most `max` bytes.
    pub fn read(&mut self, path: &TarPath, max: usize) -> Result<Option<Vec<u8>>, WriteError> {
        let Some(id) = self.tree.find(path) else { return Ok(None) };
        let Body::File { size, first_block, tail } = &self.tree.node(id).body else {
            return Ok(None);
        };
        let Some(size) = usize::try_from(*size).ok().filter(|&size| size <= max) else {
            return Ok(None);
        };
        let mut contents = vec![0; size - tail.as_ref().map_or(0, |tail| tail.len())];
        let at = u64::from(*first_block) * BLOCK as u64;
        self.out.seek(SeekFrom::Start(at)).map_err(WriteError::Write)?;
        self.out.read_exact(&mut contents).map_err(WriteError::Write)?;
        contents.extend_from_slice(tail.as_deref().unwrap_or_default());
        let end = self.blocks * BLOCK as u64;
        self.out.seek(SeekFrom::Start(end)).map_err(WriteError::Write)?;
        Ok(Some(contents))
    }

    /// Gives everything changed at or after `from` (seconds since 1970) the latest time before
    /// it, so that what an installation wrote today does not make the image differ tomorrow.
    pub fn settle_times(&mut self, from: i64) {
        self.tree.settle_times(from);
    }

    /// Writes directories, inodes and the superblock; returns the output for what is to follow.
    pub fn finish(mut self) -> Result<(W, Summary), WriteError> {
        self.settle_whiteouts()?;
        let plan = Plan::of(&self.tree, self.blocks);
        let meta = plan.meta_block;
        let end = u64::from(meta) * BLOCK as u64 + plan.meta_bytes;
        let blocks = end.div_ceil(BLOCK as u64);
        within("bytes", blocks * BLOCK as u64, self.limits.image_bytes)?;
        // Block addresses have 32 bits.
        let blocks = u32::try_from(blocks)
            .map_err(|_| WriteError::Limit { what: "blocks", limit: u64::from(u32::MAX) })?;

        let mut out = io::BufWriter::with_capacity(1 << 20, self.out);
        plan.write(&self.tree, &mut out).map_err(WriteError::Write)?;
        self.out = out.into_inner().map_err(|e| WriteError::Write(e.into_error()))?;
        self.out.rewind().map_err(WriteError::Write)?;
        let inodes = plan.inodes.len() as u64;
        self.out
            .write_all(&Superblock::write(blocks, inodes, meta))
            .and_then(|()| self.out.flush())
            .map_err(WriteError::Write)?;
        let bytes = u64::from(blocks) * BLOCK as u64;
        Ok((self.out, Summary { bytes, inodes, devices_skipped: self.devices_skipped }))
    }

    /// Writes the whole blocks of a file, and its tail too when it does not fit behind the inode.
    fn file(
        &mut self,
        path: &TarPath,
        size: u64,
        xattrs: usize,
        contents: &mut dyn Read,
    ) -> Result<Body, WriteError> {
        let failed = |source| WriteError::ReadContents { path: path.clone(), source };
        let first_block = self.blocks;
        let tail_len = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        let inline = tail_len > 0
            && INODE + xattrs + tail_len <= BLOCK
            && self.tail_bytes + tail_len <= MAX_TAIL_BYTES;
        let whole = size / BLOCK as u64 + u64::from(tail_len > 0 && !inline);
        let end = self.blocks.saturating_add(whole).saturating_mul(BLOCK as u64);
        within("bytes", end, self.limits.image_bytes)?;
        let first_block = u32::try_from(first_block)
            .map_err(|_| WriteError::Limit { what: "blocks", limit: u64::from(u32::MAX) })?;

        let mut buf = vec![0; usize::try_from(whole).unwrap_or(64).min(64) * BLOCK];
        let mut left = if inline { size - tail_len as u64 } else { size };
        while left > 0 {
            let step = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
            contents.read_exact(&mut buf[..step]).map_err(failed)?;
            let padded = step.next_multiple_of(BLOCK);
            buf[step..padded].fill(0);
            if buf[..padded].chunks(BLOCK).all(|block| block == ZEROS) {
                // A hole on the host's disk. Metadata always follows, so the end is never one.
                let by = i64::try_from(padded).unwrap_or(0);
                self.out.seek(SeekFrom::Current(by)).map_err(WriteError::Write)?;
            } else {
                self.out.write_all(&buf[..padded]).map_err(WriteError::Write)?;
            }
            left -= step as u64;
        }
        self.blocks += whole;
        let tail = if inline {
            let mut tail = vec![0; tail_len].into_boxed_slice();
            contents.read_exact(&mut tail).map_err(failed)?;
            self.tail_bytes += tail_len;
            Some(tail)
        } else {
            None
        };
        Ok(Body::File { size, first_block, tail })
    }
}

fn obstacle_at(obstacle: Obstacle, path: TarPath) -> WriteError {
    match obstacle {
        Obstacle::NotADirectory => WriteError::BelowFile { path },
        Obstacle::Directory | Obstacle::Missing => WriteError::Directory { path },
        Obstacle::Attributes => WriteError::Attributes { path },
    }
}

fn within(what: &'static str, value: u64, limit: u64) -> Result<(), WriteError> {
    if value <= limit { Ok(()) } else { Err(WriteError::Limit { what, limit }) }
}

/// Where each inode and directory goes.
struct Plan {
    /// In the order in which they are written: the root first (its number has only 16 bits), then
    /// level by level, so that the children of one directory lie together.
    inodes: Vec<Place>,
    places: HashMap<NodeId, usize>,
    /// Blocks of directories, between data and metadata.
    first_dir_block: u64,
    meta_block: u32,
    meta_bytes: u64,
}

struct Place {
    node: NodeId,
    parent: NodeId,
    links: u32,
    /// Offset in the metadata.
    at: u64,
    size: u64,
    first_block: u32,
    /// Bytes of contents behind the inode.
    inline: usize,
    dir: Option<DirLayout>,
}

impl Plan {
    fn of(tree: &Tree, data_blocks: u64) -> Self {
        let mut plan = Self {
            inodes: Vec::new(),
            places: HashMap::new(),
            first_dir_block: data_blocks,
            meta_block: 0,
            meta_bytes: 0,
        };
        plan.visit(tree, ROOT, ROOT);
        let mut at = 0;
        while at < plan.inodes.len() {
            let (id, mut subdirs) = (plan.inodes[at].node, 0);
            if let Body::Dir(children) = &tree.node(id).body {
                for &child in children.values() {
                    plan.visit(tree, child, id);
                    subdirs += u32::from(tree.node(child).body.kind() == Type::Dir);
                }
                plan.inodes[at].links = 2 + subdirs;
            }
            at += 1;
        }
        let mut block = data_blocks;
        let mut at = 0;
        for place in &mut plan.inodes {
            block = place.lay_out(tree, block);
            let len = (INODE + tree.node(place.node).meta.xattrs.len() + place.inline) as u64;
            let left = BLOCK as u64 - at % BLOCK as u64;
            if len > left {
                // The kernel wants inode, attributes and inline data in one block.
                at += left;
            }
            place.at = at;
            at = (at + len).next_multiple_of(SLOT as u64);
        }
        plan.meta_block = u32::try_from(block).unwrap_or(u32::MAX);
        // fsck.erofs looks for attributes behind every inode, also behind the last.
        plan.meta_bytes = at + XATTR_HEADER as u64;
        plan
    }

    /// The first name of a node gives it its place, every further one a link.
    fn visit(&mut self, tree: &Tree, node: NodeId, parent: NodeId) {
        if let Some(&known) = self.places.get(&node) {
            self.inodes[known].links += 1;
            return;
        }
        self.places.insert(node, self.inodes.len());
        let dir = match &tree.node(node).body {
            Body::Dir(children) => Some(DirLayout::plan(with_dots(children.keys().map(|n| &**n)))),
            _ => None,
        };
        let place =
            Place { node, parent, links: 1, at: 0, size: 0, first_block: 0, inline: 0, dir };
        self.inodes.push(place);
    }

    fn nid(&self, node: NodeId) -> u64 {
        self.places.get(&node).map_or(0, |&at| self.inodes[at].at / SLOT as u64)
    }

    fn write(&self, tree: &Tree, out: &mut (impl Write + Seek)) -> io::Result<()> {
        out.seek(SeekFrom::Start(self.first_dir_block * BLOCK as u64))?;
        for place in &self.inodes {
            let contents = self.contents(tree, place);
            let whole = &contents[..contents.len() - place.inline];
            out.write_all(whole)?;
            pad(out, whole.len() % BLOCK)?;
        }
        let mut unit = Vec::new();
        let mut at = 0;
        for (number, place) in self.inodes.iter().enumerate() {
            pad_to(out, &mut at, place.at)?;
            let node = tree.node(place.node);
            unit.clear();
            Inode {
                kind: node.body.kind(),
                meta: &node.meta,
                size: place.size,
                first_block: place.first_block,
                inline: place.inline > 0,
                number: u32::try_from(number + 1).unwrap_or(u32::MAX),
                links: place.links,
            }
            .write(&mut unit);
            let contents = self.contents(tree, place);
            unit.extend_from_slice(&contents[contents.len() - place.inline..]);
            out.write_all(&unit)?;
            at += unit.len() as u64;
        }
        pad_to(out, &mut at, self.meta_bytes)?;
        pad(out, usize::try_from(at % BLOCK as u64).unwrap_or(0))
    }

    /// What is still to be written of an inode's contents: of a file, only its inline tail.
    fn contents(&self, tree: &Tree, place: &Place) -> Vec<u8> {
        match (&tree.node(place.node).body, &place.dir) {
            (Body::File { tail, .. }, _) => tail.as_deref().unwrap_or_default().to_vec(),
            (Body::Symlink(target), _) => target.to_vec(),
            (Body::Dir(children), Some(layout)) => {
                let mut named = children.values();
                let entries = with_dots(children.keys().map(|n| &**n)).map(|name| {
                    let (node, kind) = match name {
                        b"." => (place.node, Type::Dir),
                        b".." => (place.parent, Type::Dir),
                        _ => named.next().map_or((ROOT, Type::Dir), |&child| {
                            (child, tree.node(child).body.kind())
                        }),
                    };
                    (name, self.nid(node), kind)
                });
                layout.write(entries)
            }
            _ => Vec::new(),
        }
    }
}

impl Place {
    /// Decides what lies inline; returns the next free block.
    fn lay_out(&mut self, tree: &Tree, next_block: u64) -> u64 {
        let node = tree.node(self.node);
        let contents = match (&node.body, &self.dir) {
            (Body::File { size, first_block, tail }, _) => {
                self.size = *size;
                self.first_block = *first_block;
                self.inline = tail.as_ref().map_or(0, |tail| tail.len());
                return next_block;
            }
            (Body::Symlink(target), _) => target.len() as u64,
            (Body::Dir(_), Some(layout)) => layout.size(),
            _ => 0,
        };
        let tail = usize::try_from(contents % BLOCK as u64).unwrap_or(0);
        self.size = contents;
        self.inline = if INODE + node.meta.xattrs.len() + tail <= BLOCK { tail } else { 0 };
        let whole = (contents - self.inline as u64).div_ceil(BLOCK as u64);
        self.first_block =
            if whole > 0 { u32::try_from(next_block).unwrap_or(u32::MAX) } else { 0 };
        next_block + whole
    }
}

/// Sorted names with `.` and `..` in their place among them: `!`, `+`, `-` sort before a dot.
fn with_dots<'a>(names: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    let mut names = names.peekable();
    let mut dots = [&b"."[..], b".."].into_iter().peekable();
    std::iter::from_fn(move || match (names.peek(), dots.peek()) {
        (Some(name), Some(dot)) if name < dot => names.next(),
        (_, Some(_)) => dots.next(),
        _ => names.next(),
    })
}

/// Zeros up to the next block boundary, `used` bytes into one.
fn pad(out: &mut impl Write, used: usize) -> io::Result<()> {
    if used > 0 { out.write_all(&[0; BLOCK][used..]) } else { Ok(()) }
}

fn pad_to(out: &mut impl Write, at: &mut u64, to: u64) -> io::Result<()> {
    let zeros = usize::try_from(to - *at).unwrap_or(0);
    out.write_all(&vec![0; zeros])?;
    *at = to;
    Ok(())
}
