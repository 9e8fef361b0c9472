//! The files of volumes: one sparse ext4 each, in a directory for each workspace.
//!
//! A file has its name when it is whole, and not before. Who uses it holds a lock on it, by the open
//! file that goes to the machine: the lock lasts as long as the machine does, whatever becomes of who
//! started it. What is on it is a guest's, and is not read here but for one flag.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, linkat, openat};
use rustix::io::Errno;

/// Behind a volume's name.
const SUFFIX: &str = ".ext4";
/// How long a lock is waited for: a machine that was ended lets go of its disks soon.
const PATIENCE: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(20);
/// How often a lock is met before it is believed.
const LOOKS: u32 = 3;
/// Whose the root of a new volume is: the user of tasks.
const OWNER: (u32, u32) = (supervisor::wire::op::USER, supervisor::wire::op::USER);

/// Where `s_feature_incompat` is, and `EXT4_FEATURE_INCOMPAT_RECOVER` in it (fs/ext4/ext4.h).
const FEATURES: u64 = 1024 + 0x60;
const RECOVER: u32 = 0x4;

/// Why a volume cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error("there is no volume {0:?}; `sandforge volume create {0}` makes one")]
    Missing(String),
    #[error("there is a volume {0:?} already: take another name, or remove it")]
    Taken(String),
    #[error(
        "the volume {0:?} is in use: one sandbox that writes has it alone, and several can have it \
         with :ro; stop the other, or wait"
    )]
    InUse(String),
    #[error("cannot make a disk: {0}")]
    Format(#[from] ext4::FormatError),
    #[error("cannot {what} {}: {source}", .path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

/// What is told of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    pub(crate) used_bytes: u64,
    pub(crate) in_use: bool,
    pub(crate) created: Option<SystemTime>,
}

/// Whom a volume is had with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    Alone,
    Readers,
}

/// The volumes of one workspace.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    directory: PathBuf,
}

fn failed<E: Into<io::Error>>(
    what: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> VolumeError + use<E> {
    let path = path.to_owned();
    move |source| VolumeError::Io { what, path, source: source.into() }
}

impl Files {
    /// Those of `workspace` below the directory of all data.
    pub(crate) fn new(data: &Path, workspace: &str) -> Self {
        Self { directory: data.join("volumes").join(workspace) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}{SUFFIX}"))
    }

    /// Makes an empty one.
    pub(crate) fn create(&self, name: &str, bytes: u64) -> Result<Found, VolumeError> {
        let directory = &self.directory;
        let builder = &mut DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(directory);
        made.map_err(failed("make", directory))?;
        let path = self.path(name);
        let mut uuid = [0; 16];
        getrandom::fill(&mut uuid)
            .map_err(|error| failed("make", &path)(io::Error::other(error)))?;
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let time = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        // Without a name until it is whole, so that nothing is left where this ends early.
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = openat(CWD, directory, flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(file.map_err(failed("make a file without a name in", directory))?);
        let options = ext4::Options { bytes, journal: true, owner: OWNER, uuid, time };
        ext4::format(&file, &options)?;
        file.sync_all().map_err(failed("write", &path))?;
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        match linkat(CWD, &unnamed, CWD, &path, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(VolumeError::Taken(name.to_owned())),
            Err(error) => return Err(failed("name", &path)(error)),
        }
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(failed("write", directory))?;
        self.look(name)
    }

    /// All of them, by name.
    pub(crate) fn list(&self) -> Result<Vec<Found>, VolumeError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed("list", &self.directory))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed("list", &self.directory))?.file_name();
            let Some(name) = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)) else {
                continue;
            };
            match self.look(name) {
                // It went meanwhile.
                Err(VolumeError::Missing(_)) => {}
                looked => found.push(looked?),
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// One of them.
    pub(crate) fn look(&self, name: &str) -> Result<Found, VolumeError> {
        let file = self.open(name, Share::Readers)?;
        let metadata = file.metadata().map_err(failed("look at", &self.path(name)))?;
        Ok(Found {
            name: name.to_owned(),
            size_bytes: metadata.len(),
            used_bytes: metadata.blocks() * 512,
            in_use: is_locked(&file).map_err(failed("lock", &self.path(name)))?,
            created: metadata.created().ok(),
        })
    }

    /// Removes one that nobody has.
    pub(crate) fn remove(&self, name: &str) -> Result<(), VolumeError> {
        let _locked = self.lock(name, Share::Alone)?;
        fs::remove_file(self.path(name)).map_err(failed("remove", &self.path(name)))
    }

    /// One with a lock, opened for writing where it is had alone.
    pub(crate) fn lock(&self, name: &str, share: Share) -> Result<File, VolumeError> {
        let path = self.path(name);
        let begun = Instant::now();
        loop {
            let file = self.open(name, share)?;
            if try_lock(&file, share).map_err(failed("lock", &path))? {
                // Who had it before may have removed it.
                return match file.metadata().map_err(failed("look at", &path))?.nlink() {
                    0 => Err(VolumeError::Missing(name.to_owned())),
                    _ => Ok(file),
                };
            }
            if begun.elapsed() > PATIENCE {
                return Err(VolumeError::InUse(name.to_owned()));
            }
            std::thread::sleep(AGAIN);
        }
    }

    fn open(&self, name: &str, share: Share) -> Result<File, VolumeError> {
        let flags = OFlags::NOFOLLOW.bits().cast_signed();
        let options = &mut OpenOptions::new();
        let options = options.read(true).write(share == Share::Alone).custom_flags(flags);
        match options.open(self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(VolumeError::Missing(name.to_owned()))
            }
            file => file.map_err(failed("open", &self.path(name))),
        }
    }
}

/// Whether somebody has it, and does not just look at it as this does.
fn is_locked(file: &File) -> rustix::io::Result<bool> {
    for _ in 0..LOOKS {
        if try_lock(file, Share::Alone)? {
            return Ok(false);
        }
        std::thread::sleep(AGAIN);
    }
    Ok(true)
}

fn try_lock(file: &File, share: Share) -> rustix::io::Result<bool> {
    let operation = match share {
        Share::Alone => FlockOperation::NonBlockingLockExclusive,
        Share::Readers => FlockOperation::NonBlockingLockShared,
    };
    match flock(file, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the machine that wrote to it last ended without a word, so that a kernel has to go through
/// its journal. It is a guest who says that: what follows does nobody else any harm.
pub(crate) fn wants_recovery(volume: &File) -> bool {
    let mut features = [0; 4];
    volume.read_exact_at(&mut features, FEATURES).is_ok()
        && u32::from_le_bytes(features) & RECOVER != 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const SIZE: u64 = 1 << 30;

    fn files() -> (tempfile::TempDir, Files) {
        let data = tempfile::tempdir().unwrap();
        let files = Files::new(data.path(), "default");
        (data, files)
    }

    #[test]
    fn a_new_volume_is_private_sparse_and_once() {
        let (_data, files) = files();
        let made = files.create("data", SIZE).unwrap();
        assert_eq!((made.size_bytes, made.in_use), (SIZE, false));
        assert!(made.used_bytes < 1 << 20, "{}", made.used_bytes);
        let mode = fs::metadata(files.path("data")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::metadata(&files.directory).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(matches!(files.create("data", SIZE), Err(VolumeError::Taken(_))));
        assert_eq!(fs::read_dir(&files.directory).unwrap().count(), 1);
    }

    #[test]
    fn one_writes_alone_and_several_read() {
        let (_data, files) = files();
        files.create("data", SIZE).unwrap();
        let writer = files.lock("data", Share::Alone).unwrap();
        assert!(files.look("data").unwrap().in_use);
        assert!(matches!(files.lock("data", Share::Readers), Err(VolumeError::InUse(_))));
        drop(writer);
        let readers = [Share::Readers; 2].map(|share| files.lock("data", share).unwrap());
        assert!(matches!(files.lock("data", Share::Alone), Err(VolumeError::InUse(_))));
        assert!(matches!(files.remove("data"), Err(VolumeError::InUse(_))));
        drop(readers);
        files.remove("data").unwrap();
        assert!(matches!(files.lock("data", Share::Readers), Err(VolumeError::Missing(_))));
        assert_eq!(files.list().unwrap(), []);
    }

    /// As a machine does that was given the disk: the lock is of the open file, not of a process.
    #[test]
    fn a_lock_lasts_as_long_as_anybody_has_the_open_file() {
        let (_data, files) = files();
        files.create("data", SIZE).unwrap();
        let file = files.lock("data", Share::Alone).unwrap();
        let given = file.try_clone().unwrap();
        drop(file);
        assert!(files.look("data").unwrap().in_use);
        drop(given);
        assert!(!files.look("data").unwrap().in_use);
    }

    #[test]
    fn volumes_are_listed_by_name_and_by_workspace() {
        let (data, files) = files();
        for name in ["b", "a"] {
            files.create(name, SIZE).unwrap();
        }
        let names: Vec<_> = files.list().unwrap().into_iter().map(|found| found.name).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(Files::new(data.path(), "other").list().unwrap(), []);
    }

    #[test]
    fn a_link_is_no_volume() {
        let (_data, files) = files();
        files.create("data", SIZE).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", files.path("link")).unwrap();
        assert!(matches!(files.lock("link", Share::Readers), Err(VolumeError::Io { .. })));
    }

    #[test]
    fn a_new_volume_wants_no_recovery() {
        let (_data, files) = files();
        files.create("data", SIZE).unwrap();
        assert!(!wants_recovery(&files.lock("data", Share::Readers).unwrap()));
    }
}
