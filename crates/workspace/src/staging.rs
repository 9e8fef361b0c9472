//! Where a tree waits until all of it has arrived and been checked.

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use archive::{InodeKind, Name, Root, Step, WalkError};

/// What staging directories' names start with. One that is left behind (only `kill -9` or a
/// power cut can do that) holds the new tree in `new` and what it replaced in `old`.
const PREFIX: &str = ".sandforge-";

/// A directory of our own on the file system of the destination, so that renaming works. It goes
/// away when dropped.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
    /// What arrived. Its permission bits are those of any new directory.
    pub(crate) new: Root,
    /// What it replaced, until all is well.
    pub(crate) old: Root,
    withheld: Cell<u64>,
    keep: bool,
}

impl Staging {
    /// Beside the destination; inside of it where it is a mount point or its parent may not be
    /// written.
    pub(crate) fn beside(destination: &Path) -> io::Result<Self> {
        let parent = match destination.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let directory = match fs::metadata(destination) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::new_in(parent),
            metadata => metadata?,
        };
        if fs::metadata(parent).is_ok_and(|parent| parent.dev() == directory.dev())
            && let Ok(staging) = Self::new_in(parent)
        {
            return Ok(staging);
        }
        Self::new_in(destination)
    }

    fn new_in(directory: &Path) -> io::Result<Self> {
        let path = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(directory)?
            .keep();
        let made = fs::create_dir(path.join("new"))
            .and_then(|()| fs::create_dir(path.join("old")))
            .and_then(|()| Ok((Root::open(&path.join("new"))?, Root::open(&path.join("old"))?)));
        match made {
            Ok((new, old)) => Ok(Self { path, new, old, withheld: Cell::new(0), keep: false }),
            Err(error) => {
                let _ = fs::remove_dir_all(&path);
                Err(error)
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the new tree is, to be renamed as a whole.
    pub(crate) fn new_path(&self) -> PathBuf {
        self.path.join("new")
    }

    /// Moves an entry of the new tree out of it, to where nothing will look.
    pub(crate) fn withhold(&self, name: &Name) -> io::Result<()> {
        let Some((parent, component)) = name.split() else { return Ok(()) };
        let parent = self.new.directory(&parent)?;
        let aside = self.path.join(format!("withheld-{}", self.withheld.get()));
        self.withheld.set(self.withheld.get() + 1);
        Ok(rustix::fs::renameat(parent, component, rustix::fs::CWD, aside)?)
    }

    /// Leaves it behind: it holds something that is nowhere else.
    pub(crate) fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.keep || fs::remove_dir_all(&self.path).is_ok() {
            return;
        }
        // Directories without permission to write cannot be emptied.
        for root in [&self.new, &self.old] {
            let _ = archive::walk(root, &Name::ROOT, |entry| {
                if entry.inode.kind == InodeKind::Directory {
                    let _ = root.set_directory(entry.name, 0o700, None);
                }
                Ok::<_, WalkError>(Step::Into)
            });
        }
        let _ = fs::remove_dir_all(&self.path);
    }
}
