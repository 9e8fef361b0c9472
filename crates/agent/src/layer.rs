//! What was changed in the root, as a layer of an image.
//!
//! Changes lie in the upper directory of the overlay, in the kernel's notation
//! (`Documentation/filesystems/overlayfs.rst`): a character device 0/0 where a name is gone, an
//! attribute on a directory that hides those below it. Both are out of tasks' sight, and the attribute
//! is for the initial user namespace alone: so a process of the agent's own reads them, which follows
//! no link. What it sends is as hostile as the tasks that made it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use archive::{Attributes, Inode, InodeKind, LayerWriter, Name, Root};
use rustix::fs::{AtFlags, Dir, OFlags};
use serde_json::Value;
use wire::op::{ErrorCode, OpError, Transferred};

use crate::boot;

/// What is not the root's: the agent mounts over it, or writes it for each machine.
const NOT_OURS: [&[u8]; 7] =
    [b"dev", b"proc", b"sys", b"tmp", b"run/sandforge", b"etc/resolv.conf", b"etc/machine-id"];
/// The kernel's own bound for the names of one inode's attributes.
const XATTR_NAMES: usize = 64 << 10;

/// Packs the changes, but for files that are as they were.
pub(crate) fn pack(unchanged: &[PathBuf], output: File) -> Result<Value, OpError> {
    let done = (|| -> io::Result<Transferred> {
        let mut packing = Packing {
            upper: Root::open(Path::new(boot::UPPER))?,
            layers: layers()?,
            left_out: unchanged.iter().map(|path| inside(path)).collect(),
            links: HashMap::new(),
            layer: LayerWriter::new(output),
            done: Transferred { bytes: 0, entries: 0 },
        };
        packing.left_out.extend(NOT_OURS.iter().map(|name| name.to_vec()));
        packing.all()?;
        packing.layer.finish()?;
        Ok(packing.done)
    })();
    let failed = |error: io::Error| {
        OpError::new(ErrorCode::Failed, format!("could not pack what was changed: {error}"))
    };
    serde_json::to_value(done.map_err(failed)?).map_err(|error| failed(io::Error::other(error)))
}

fn inside(path: &Path) -> Vec<u8> {
    let bytes = path.as_os_str().as_bytes();
    bytes.strip_prefix(b"/").unwrap_or(bytes).to_vec()
}

fn layers() -> io::Result<Vec<Root>> {
    let mut layers = Vec::new();
    for layer in std::fs::read_dir(boot::LAYERS)? {
        layers.push(Root::open(&layer?.path())?);
    }
    Ok(layers)
}

struct Packing {
    upper: Root,
    /// What is below, in no order.
    layers: Vec<Root>,
    left_out: Vec<Vec<u8>>,
    /// First names of files that have several.
    links: HashMap<(u64, u64), Name>,
    layer: LayerWriter<File>,
    done: Transferred,
}

impl Packing {
    /// In an order that depends on the names alone, and without recursion: how deep it goes is the
    /// tasks' business.
    fn all(&mut self) -> io::Result<()> {
        let mut open = vec![Name::ROOT];
        while let Some(directory) = open.pop() {
            let listing = self.upper.listing(&directory)?;
            let mut names = Vec::new();
            for entry in Dir::read_from(&listing)? {
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                if name != b"." && name != b".." {
                    names.push(name.to_vec());
                }
            }
            names.sort_unstable();
            let mut below = Vec::new();
            for component in names {
                let name = directory.join(&component).map_err(io::Error::other)?;
                if self.left_out.iter().any(|left_out| left_out == name.as_bytes()) {
                    continue;
                }
                if self.one(listing.as_fd(), OsStr::from_bytes(&component), &name)? {
                    below.push(name);
                }
            }
            open.extend(below.into_iter().rev());
        }
        Ok(())
    }

    /// Packs what has this name; whether it is a directory to go into.
    fn one(&mut self, parent: BorrowedFd<'_>, last: &OsStr, name: &Name) -> io::Result<bool> {
        let inode = Inode::at(parent, last)?;
        let (uid, gid) = inode.owner;
        let mut of =
            Attributes { mode: inode.mode, uid, gid, mtime: inode.mtime, xattrs: BTreeMap::new() };
        if inode.kind != InodeKind::Directory
            && inode.links > 1
            && let Some(first) = self.links.get(&inode.id)
        {
            self.layer.hard_link(name, first, &of)?;
            self.done.entries += 1;
            return Ok(false);
        }
        match inode.kind {
            InodeKind::Directory => {
                let listing = self.upper.listing(name)?;
                of.xattrs = attributes(listing.as_fd())?;
                if name.as_bytes() == b"workspace" && self.is_a_mere_place(listing.as_fd())? {
                    return Ok(false);
                }
                self.layer.directory(name, &of)?;
                if is_opaque(listing.as_fd())? && self.is_below(name)? {
                    self.layer.opaque(name)?;
                }
            }
            InodeKind::File => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(parent, last, flags, rustix::fs::Mode::empty())?;
                of.xattrs = attributes(fd.as_fd())?;
                self.layer.file(name, inode.size, &mut File::from(fd), &of)?;
                self.done.bytes += inode.size;
            }
            InodeKind::Symlink => {
                let target = rustix::fs::readlinkat(parent, last, Vec::new())?;
                self.layer.symlink(name, target.as_bytes(), &of)?;
            }
            InodeKind::Fifo => self.layer.fifo(name, &of)?,
            InodeKind::Device => {
                let status = rustix::fs::statat(parent, last, AtFlags::SYMLINK_NOFOLLOW)?;
                if status.st_rdev != 0 {
                    return Ok(false);
                }
                self.layer.whiteout(name)?;
            }
            // It is nobody's once its maker is gone.
            InodeKind::Socket => return Ok(false),
        }
        self.done.entries += 1;
        if inode.kind != InodeKind::Directory && inode.links > 1 {
            self.links.insert(inode.id, name.clone());
        }
        Ok(inode.kind == InodeKind::Directory)
    }

    /// The agent makes it where the image has none.
    fn is_a_mere_place(&self, listing: BorrowedFd<'_>) -> io::Result<bool> {
        let entries = Dir::read_from(listing)?.count();
        Ok(entries <= 2)
    }

    /// Whether any layer below has a directory of this name. A new one is marked as one that hides
    /// what is below it even where there is nothing.
    fn is_below(&self, name: &Name) -> io::Result<bool> {
        for layer in &self.layers {
            if layer.inode(name)?.is_some_and(|inode| inode.kind == InodeKind::Directory) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn is_opaque(directory: BorrowedFd<'_>) -> io::Result<bool> {
    let mut value = [0; 1];
    match rustix::fs::fgetxattr(directory, "trusted.overlay.opaque", &mut value) {
        Ok(1) => Ok(value == *b"y"),
        Ok(_) | Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// All but the overlay's own.
fn attributes(of: BorrowedFd<'_>) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0; XATTR_NAMES];
    let length = match rustix::fs::flistxattr(of, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut found = BTreeMap::new();
    for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.") || name.starts_with(b"user.overlay.") {
            continue;
        }
        let mut value = vec![0; XATTR_NAMES];
        let length = rustix::fs::fgetxattr(of, name, &mut value)?;
        value.truncate(length);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}
