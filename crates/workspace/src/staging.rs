//! Where a tree waits until all of it has arrived and been checked.

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use archive::{InodeKind, Name, Root, Step, WalkError};

use crate::receive::UnpackError;

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

/// Takes up a staging directory that a killed process left: what it had taken out of the
/// destination goes back where nothing stands, and the rest is removed.
pub(crate) fn recover(place: &Path, destination: &Path) -> Result<(), UnpackError> {
    let is_ours =
        place.file_name().is_some_and(|name| name.as_bytes().starts_with(PREFIX.as_bytes()));
    if !is_ours || !place.is_dir() {
        return Ok(());
    }
    let open = |path: &Path| {
        Root::open(path).map_err(|source| UnpackError::Open { path: path.to_owned(), source })
    };
    let (new, old) = (open(&place.join("new"))?, open(&place.join("old"))?);
    let there = open(destination)?;
    let back = |name: &Name| -> io::Result<Step> {
        match there.inode(name)? {
            Some(inode) if inode.kind == InodeKind::Directory => Ok(Step::Into),
            Some(_) => Ok(Step::Over),
            None => {
                let (parent, component) = name.split().ok_or(rustix::io::Errno::INVAL)?;
                let (from, to) = (old.directory(&parent)?, there.directory(&parent)?);
                rustix::fs::renameat_with(
                    from,
                    component,
                    to,
                    component,
                    rustix::fs::RenameFlags::NOREPLACE,
                )?;
                Ok(Step::Over)
            }
        }
    };
    archive::walk(&old, &Name::ROOT, |entry| {
        back(entry.name).map_err(|source| Stop::Failed(entry.name.clone(), source))
    })
    .map_err(|stop| match stop {
        Stop::Failed(name, source) => UnpackError::Compare { name, source },
        Stop::Walk(error) => {
            UnpackError::Open { path: place.to_owned(), source: io::Error::other(error) }
        }
    })?;
    drop(Staging { path: place.to_owned(), new, old, withheld: Cell::new(0), keep: false });
    Ok(())
}

enum Stop {
    Walk(WalkError),
    Failed(Name, io::Error),
}

impl From<WalkError> for Stop {
    fn from(error: WalkError) -> Self {
        Self::Walk(error)
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
