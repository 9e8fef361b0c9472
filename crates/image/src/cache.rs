//! Directories that appear whole or not at all.
//!
//! What is being made stands in a directory whose name starts with a dot, under an exclusive
//! `flock` on a file named after the key. The kernel drops the lock of a process that dies, so a
//! dotted directory whose lock is free was left behind and can be removed.

use crate::progress::{Progress, Stage};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why the cache could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// Neither `XDG_CACHE_HOME` nor `HOME` is set.
    #[error("there is no place for a cache: set XDG_CACHE_HOME or HOME")]
    NoHome,
    /// The disk is full. Nothing half-made is left behind.
    #[error(
        "the disk that holds {} is full; free some space (`sandforge image ls` shows what the \
         images take) or set XDG_CACHE_HOME to another disk", .path.display()
    )]
    Full {
        /// What was being written.
        path: PathBuf,
    },
    /// A call on the file system failed.
    #[error("cannot {action} {}: {source}", .path.display())]
    Access {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl CacheError {
    /// Names what failed; a full disk gets its own words.
    pub(crate) fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { path: path.to_path_buf() }
            }
            _ => Self::Access { action, path: path.to_path_buf(), source },
        }
    }
}

/// `$XDG_CACHE_HOME/sandforge`, by default `~/.cache/sandforge`.
pub(crate) fn default_root() -> Result<PathBuf, CacheError> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("sandforge"))
        .ok_or(CacheError::NoHome)
}

/// One kind of things, each in a directory of its own named after its key.
#[derive(Debug, Clone)]
pub(crate) struct Area {
    dir: PathBuf,
    locks: PathBuf,
}

/// The right to make or remove the thing with one key, across processes.
#[derive(Debug)]
pub(crate) struct Lock {
    key: String,
    _file: File,
}

impl Area {
    /// Makes the directories and removes what killed processes left in them.
    pub(crate) fn open(root: &Path, name: &str) -> Result<Self, CacheError> {
        let area = Self { dir: root.join(name), locks: root.join("locks").join(name) };
        for dir in [&area.dir, &area.locks] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(CacheError::of("create", dir))?;
        }
        area.sweep()?;
        Ok(area)
    }

    /// Where the thing is, or would be.
    pub(crate) fn path(&self, key: &str) -> PathBuf {
        self.dir.join(key)
    }

    /// Keys of all that is there.
    pub(crate) fn keys(&self) -> Result<Vec<String>, CacheError> {
        let mut keys = self.names()?;
        keys.retain(|name| !name.starts_with('.'));
        Ok(keys)
    }

    /// Waits until no other process makes or removes the same.
    pub(crate) fn lock(&self, key: &str, progress: &mut dyn Progress) -> Result<Lock, CacheError> {
        if let Some(lock) = self.try_lock(key)? {
            return Ok(lock);
        }
        progress.step(Stage::Wait.begins());
        self.lock_with(key, FlockOperation::LockExclusive)
    }

    /// Waits until nobody has the lock alone. Any number of processes can share it.
    pub(crate) fn lock_shared(&self, key: &str) -> Result<Lock, CacheError> {
        self.lock_with(key, FlockOperation::LockShared)
    }

    pub(crate) fn try_lock(&self, key: &str) -> Result<Option<Lock>, CacheError> {
        match self.lock_with(key, FlockOperation::NonBlockingLockExclusive) {
            Ok(lock) => Ok(Some(lock)),
            Err(CacheError::Access { source, .. })
                if source.kind() == io::ErrorKind::WouldBlock =>
            {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Lock files are never removed: removing one that another process just opened would let two
    /// in at once.
    fn lock_with(&self, key: &str, operation: FlockOperation) -> Result<Lock, CacheError> {
        let path = self.locks.join(key);
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(CacheError::of("open the lock", &path))?;
        loop {
            match flock(&file, operation) {
                Ok(()) => return Ok(Lock { key: key.to_owned(), _file: file }),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(CacheError::of("lock", &path)(e.into())),
            }
        }
    }

    /// Lets `make` fill an empty directory, then gives it its name. When `make` fails nothing
    /// stays, and what had the name before keeps it.
    pub(crate) fn publish<T, E: From<CacheError>>(
        &self,
        lock: &Lock,
        make: impl FnOnce(&Path) -> Result<T, E>,
    ) -> Result<T, E> {
        let staging = self.dir.join(format!(".new-{}", lock.key));
        remove_dir(&staging)?;
        DirBuilder::new()
            .mode(0o700)
            .create(&staging)
            .map_err(CacheError::of("create", &staging))?;
        let made = make(&staging).and_then(|made| {
            sync_dir(&staging)?;
            self.discard(lock)?;
            let path = self.path(&lock.key);
            fs::rename(&staging, &path).map_err(CacheError::of("name", &path))?;
            sync_dir(&self.dir)?;
            Ok(made)
        });
        if made.is_err() {
            // The first error is the one to tell; a leftover is swept on the next use.
            let _ = remove_dir(&staging);
        }
        made
    }

    /// Lets `work` use an empty directory, and removes it.
    pub(crate) fn with_scratch<T, E: From<CacheError>>(
        &self,
        lock: &Lock,
        work: impl FnOnce(&Path) -> Result<T, E>,
    ) -> Result<T, E> {
        let scratch = self.dir.join(format!(".new-{}", lock.key));
        remove_dir(&scratch)?;
        DirBuilder::new()
            .mode(0o700)
            .create(&scratch)
            .map_err(CacheError::of("create", &scratch))?;
        let done = work(&scratch);
        // What stays is swept on the next use.
        let _ = remove_dir(&scratch);
        done
    }

    /// Removes the thing. Who has its files open keeps them.
    pub(crate) fn discard(&self, lock: &Lock) -> Result<(), CacheError> {
        let path = self.path(&lock.key);
        let old = self.dir.join(format!(".old-{}", lock.key));
        remove_dir(&old)?;
        match fs::rename(&path, &old) {
            Ok(()) => remove_dir(&old),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(CacheError::of("remove", &path)(e)),
        }
    }

    fn sweep(&self) -> Result<(), CacheError> {
        for name in self.names()? {
            let key = name.strip_prefix(".new-").or_else(|| name.strip_prefix(".old-"));
            if let Some(key) = key
                && let Some(_lock) = self.try_lock(key)?
            {
                remove_dir(&self.dir.join(&name))?;
            }
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>, CacheError> {
        let failed = || CacheError::of("list", &self.dir);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed())? {
            names.extend(entry.map_err(failed())?.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }
}

fn remove_dir(path: &Path) -> Result<(), CacheError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(CacheError::of("remove", path)(e)),
        _ => Ok(()),
    }
}

fn sync_dir(path: &Path) -> Result<(), CacheError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(CacheError::of("sync", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area() -> (tempfile::TempDir, Area) {
        let dir = tempfile::tempdir().unwrap();
        let area = Area::open(dir.path(), "things").unwrap();
        (dir, area)
    }

    fn write(dir: &Path) -> Result<(), CacheError> {
        fs::write(dir.join("file"), "x").map_err(CacheError::of("write", dir))
    }

    #[test]
    fn what_was_published_is_listed() {
        let (_dir, area) = area();
        area.publish(&area.lock("k", &mut ()).unwrap(), write).unwrap();
        assert_eq!(area.keys().unwrap(), ["k"]);
    }

    #[test]
    fn a_failure_keeps_what_was_there_and_leaves_nothing_else() {
        let (_dir, area) = area();
        let lock = area.lock("k", &mut ()).unwrap();
        area.publish(&lock, write).unwrap();
        let failed: Result<(), CacheError> = area.publish(&lock, |dir| {
            write(dir)?;
            Err(CacheError::NoHome)
        });
        assert!(failed.is_err());
        assert!(area.path("k").join("file").exists());
        assert_eq!(area.names().unwrap(), ["k"]);
    }

    #[test]
    fn leftovers_of_a_killed_process_are_swept() {
        let (dir, area) = area();
        fs::create_dir(area.dir.join(".new-k")).unwrap();
        fs::write(area.dir.join(".new-k/half"), "x").unwrap();
        Area::open(dir.path(), "things").unwrap();
        assert!(area.names().unwrap().is_empty());
    }

    #[test]
    fn work_of_a_living_process_is_not_swept() {
        let (dir, area) = area();
        let _lock = area.lock("k", &mut ()).unwrap();
        fs::create_dir(area.dir.join(".new-k")).unwrap();
        Area::open(dir.path(), "things").unwrap();
        assert_eq!(area.names().unwrap(), [".new-k"]);
    }

    #[test]
    fn a_second_taker_waits_and_says_so() {
        let (_dir, area) = area();
        let lock = area.lock("k", &mut ()).unwrap();
        std::thread::scope(|scope| {
            let (told, waits) = std::sync::mpsc::channel();
            let area = &area;
            let second = scope.spawn(move || {
                area.lock("k", &mut |step: crate::Step| told.send(step.stage).unwrap()).unwrap()
            });
            assert_eq!(waits.recv().unwrap(), Stage::Wait);
            drop(lock);
            second.join().unwrap();
        });
    }

    #[test]
    fn a_full_disk_is_named() {
        let error = CacheError::of("write", Path::new("/x"))(io::ErrorKind::StorageFull.into());
        assert!(matches!(error, CacheError::Full { .. }));
    }
}
