//! Where everything is below the data directory.

use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::StoreError;

/// The database.
pub(crate) fn database(directory: &Path) -> PathBuf {
    directory.join("state.db")
}

/// Rotated records, the signing key and the head of the chain.
pub(crate) fn audit(directory: &Path) -> PathBuf {
    directory.join("audit")
}

pub(crate) fn audit_key(directory: &Path) -> PathBuf {
    audit(directory).join("key")
}

pub(crate) fn audit_head(directory: &Path) -> PathBuf {
    audit(directory).join("head.json")
}

/// A file for each process, locked while it lives.
pub(crate) fn instances(directory: &Path) -> PathBuf {
    directory.join("instances")
}

/// Makes what is missing, and refuses what others can get at. Gives the directory without
/// symbolic links.
pub(crate) fn prepare(directory: &Path) -> Result<PathBuf, StoreError> {
    private(directory)?;
    let directory = directory.canonicalize().map_err(StoreError::file("find", directory))?;
    private(&audit(&directory))?;
    private(&instances(&directory))?;
    // SQLite gives its journals the mode of the database.
    let path = database(&directory);
    let made = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(&path)
        .map_err(StoreError::file("open", &path))?;
    let data = made.metadata().map_err(StoreError::file("look at", &path))?;
    if data.mode() & 0o077 != 0 {
        return Err(StoreError::Directory {
            path,
            reason: "others may read or write it; run `chmod 600` on it".to_owned(),
        });
    }
    Ok(directory)
}

fn private(path: &Path) -> Result<(), StoreError> {
    let unusable =
        |reason: &str| StoreError::Directory { path: path.to_owned(), reason: reason.to_owned() };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(StoreError::file("create", path))?;
    let data = path.metadata().map_err(StoreError::file("look at", path))?;
    if data.uid() != rustix::process::geteuid().as_raw() {
        return Err(unusable("it belongs to another user"));
    }
    if data.mode() & 0o077 != 0 {
        return Err(unusable("others may look into it; run `chmod 700` on it"));
    }
    Ok(())
}
