//! The directory of a store: private, locked while it is changed, and whole at any moment.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use zeroize::Zeroizing;

use crate::Error;

/// How unfinished files begin, which a process that was killed leaves.
const UNFINISHED: &str = ".unfinished-";

/// A directory that only this user can look into.
#[derive(Debug, Clone)]
pub(crate) struct Directory {
    path: PathBuf,
}

/// As long as it lives, no other process changes the store.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Directory {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether there is one yet.
    pub(crate) fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Makes the directory where there is none, and waits until nobody else changes what is in it.
    pub(crate) fn lock(&self) -> Result<Lock, Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .map_err(Error::file("create", &self.path))?;
        self.check()?;
        let path = self.path("lock");
        let file =
            options().write(true).create(true).open(&path).map_err(Error::file("open", &path))?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|error| Error::file("lock", &path)(error.into()))?;
        self.remove_unfinished()?;
        Ok(Lock { _file: file })
    }

    fn check(&self) -> Result<(), Error> {
        let data = self.path.metadata().map_err(Error::file("look at", &self.path))?;
        let not_private = |reason| Error::NotPrivate { path: self.path.clone(), reason };
        if data.uid() != rustix::process::geteuid().as_raw() {
            return Err(not_private("it belongs to another user"));
        }
        if data.mode() & 0o077 != 0 {
            return Err(not_private("others may look into it; run `chmod 700` on it"));
        }
        Ok(())
    }

    fn remove_unfinished(&self) -> Result<(), Error> {
        let entries = fs::read_dir(&self.path).map_err(Error::file("read", &self.path))?;
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                fs::remove_file(entry.path()).map_err(Error::file("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// What is in a file, wiped after use. `None`: there is none.
    pub(crate) fn read(
        &self,
        name: &str,
        limit: usize,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        if !self.exists() {
            return Ok(None);
        }
        self.check()?;
        let path = self.path(name);
        let file = match options().read(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::file("open", &path)(error)),
        };
        let data = file.metadata().map_err(Error::file("look at", &path))?;
        if data.mode() & 0o077 != 0 {
            let reason = "others may read or write it; run `chmod 600` on it";
            return Err(Error::NotPrivate { path, reason });
        }
        let size = usize::try_from(data.size()).unwrap_or(usize::MAX);
        if size > limit {
            let reason = format!("it is longer than {limit} bytes");
            return Err(Error::Damaged { path, reason });
        }
        // Of the whole length at once: a vector that grows leaves copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(size + 1));
        file.take(data.size()).read_to_end(&mut bytes).map_err(Error::file("read", &path))?;
        Ok(Some(bytes))
    }

    /// Puts a file in place of the one that is there: at any moment there is the one or the other.
    pub(crate) fn write(&self, _: &Lock, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path(name);
        let failed = || Error::file("write", &path);
        // Made with the mode 0600.
        let mut file =
            tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&self.path).map_err(failed())?;
        file.write_all(bytes).map_err(failed())?;
        file.as_file().sync_all().map_err(failed())?;
        file.persist(&path).map_err(|error| failed()(error.error))?;
        self.sync()
    }

    /// Removes a file, if there is one.
    pub(crate) fn remove(&self, _: &Lock, name: &str) -> Result<(), Error> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::file("remove", &path)(error))
            }
            _ => self.sync(),
        }
    }

    fn sync(&self) -> Result<(), Error> {
        File::open(&self.path)
            .and_then(|directory| directory.sync_all())
            .map_err(Error::file("write", &self.path))
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    options
}
