//! Machines that outlive the command that made them: one directory each in the user's runtime
//! directory, with the carrier's socket, the signing key and a record of what it is.
//!
//! The directory is in memory and private to the user. It is made before the machine, so that
//! two commands cannot take one name, and a directory whose machine is gone is swept by
//! whoever sees it next.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::Isolation;
use link::SigningKey;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{Error, check_name};

/// A machine that was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptInfo {
    /// What the user calls it.
    pub name: String,
    /// Its id.
    pub id: String,
    /// The engine that runs it.
    pub engine: String,
    /// Its tier.
    pub isolation: Isolation,
    /// Its root.
    pub image: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory in MiB.
    pub memory_mb: u32,
    /// The monitor's process.
    pub pid: u32,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    info: KeptInfo,
    /// Start time of the process, in clock ticks since boot: tells it from a later one with
    /// the same number.
    pid_start: u64,
}

const RECORD: &str = "record.json";
const KEY: &str = "key";
const SOCKET: &str = "carrier.sock";
/// How long a directory without a record may belong to a machine that is coming up.
const RESERVATION: Duration = Duration::from_secs(300);

pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Record { action, path: path.to_owned(), source }
}

/// The directory of all records, made private if need be.
fn base() -> Result<PathBuf, Error> {
    let uid = rustix::process::getuid().as_raw();
    let base = match std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()) {
        Some(runtime) => PathBuf::from(runtime).join("sandforge"),
        None => std::env::temp_dir().join(format!("sandforge-{uid}")),
    };
    match fs::DirBuilder::new().mode(0o700).recursive(true).create(&base) {
        Ok(()) => {}
        Err(error) => return Err(failed("make the directory", &base)(error)),
    }
    // In a shared directory another user may have been first.
    let metadata = fs::symlink_metadata(&base).map_err(failed("look at", &base))?;
    if !metadata.is_dir() || metadata.uid() != uid || metadata.mode() & 0o077 != 0 {
        let foreign = io::Error::other("it is not a directory that is yours alone (mode 0700)");
        return Err(failed("trust", &base)(foreign));
    }
    Ok(base)
}

/// A name taken for a machine that is coming up; given back on drop.
#[derive(Debug)]
pub(crate) struct Record {
    directory: Option<PathBuf>,
}

impl Record {
    pub(crate) fn reserve(name: &str) -> Result<Self, Error> {
        check_name(name)?;
        let directory = base()?.join(name);
        for _ in 0..2 {
            match fs::DirBuilder::new().mode(0o700).create(&directory) {
                Ok(()) => return Ok(Self { directory: Some(directory) }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if !sweep(&directory) {
                        return Err(Error::NameTaken(name.to_owned()));
                    }
                }
                Err(error) => return Err(failed("make the directory", &directory)(error)),
            }
        }
        Err(Error::NameTaken(name.to_owned()))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.as_ref().expect("until it is complete").join(SOCKET)
    }

    pub(crate) fn complete(mut self, info: &KeptInfo, key: &SigningKey) -> Result<(), Error> {
        let directory = self.directory.as_ref().expect("until it is complete");
        let pid_start = start_time(info.pid).unwrap_or(0);
        let stored = Stored { info: info.clone(), pid_start };
        let write = |name: &str, bytes: &[u8]| {
            let path = directory.join(name);
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(failed("write", &path))?;
            file.write_all(bytes).map_err(failed("write", &path))
        };
        write(KEY, &*Zeroizing::new(key.to_bytes()))?;
        // The record comes last: with it, the machine is there.
        write(RECORD, &serde_json::to_vec(&stored).expect("a record is plain JSON"))?;
        self.directory = None;
        Ok(())
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            let _ = fs::remove_dir_all(directory);
        }
    }
}

fn read(directory: &Path) -> Option<Stored> {
    let text = fs::read(directory.join(RECORD)).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Field 22 of proc_pid_stat(5).
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn is_running(stored: &Stored) -> bool {
    start_time(stored.info.pid) == Some(stored.pid_start)
}

/// Removes a directory whose machine is gone; whether it was.
fn sweep(directory: &Path) -> bool {
    let gone = match read(directory) {
        Some(stored) => !is_running(&stored),
        None => fs::metadata(directory)
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|made| made.elapsed().ok())
            .is_none_or(|age| age > RESERVATION),
    };
    gone && fs::remove_dir_all(directory).is_ok()
}

pub(crate) fn list() -> Result<Vec<KeptInfo>, Error> {
    let base = base()?;
    let mut found = Vec::new();
    for entry in fs::read_dir(&base).map_err(failed("list", &base))? {
        let directory = entry.map_err(failed("list", &base))?.path();
        if sweep(&directory) {
            continue;
        }
        found.extend(read(&directory).map(|stored| stored.info));
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn open(name: &str) -> Result<(PathBuf, Stored), Error> {
    let missing = || Error::NoSuchSandbox(name.to_owned());
    check_name(name).map_err(|_| missing())?;
    let directory = base()?.join(name);
    if sweep(&directory) {
        return Err(missing());
    }
    let stored = read(&directory).ok_or_else(missing)?;
    Ok((directory, stored))
}

pub(crate) fn find(name: &str) -> Result<(KeptInfo, SigningKey, PathBuf), Error> {
    let (directory, stored) = open(name)?;
    let path = directory.join(KEY);
    let bytes = Zeroizing::new(fs::read(&path).map_err(failed("read", &path))?);
    let seed: Zeroizing<[u8; 32]> = Zeroizing::new(
        bytes
            .as_slice()
            .try_into()
            .map_err(|_| failed("read", &path)(io::ErrorKind::InvalidData.into()))?,
    );
    Ok((stored.info, SigningKey::from_bytes(&seed), directory.join(SOCKET)))
}

pub(crate) async fn remove(name: &str) -> Result<(), Error> {
    let (directory, stored) = open(name)?;
    let Some(pid) = Pid::from_raw(stored.info.pid.cast_signed()) else {
        return Err(Error::Internal(format!("the record of {name} names no process")));
    };
    // The descriptor is the process that the check below is about, whatever its number becomes.
    if let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
        && is_running(&stored)
    {
        let signalled = pidfd_send_signal(&process, Signal::KILL);
        signalled.map_err(|error| failed("end the machine of", &directory)(error.into()))?;
        while is_running(&stored) && !is_zombie(stored.info.pid) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    fs::remove_dir_all(&directory).map_err(failed("remove", &directory))
}

/// Whether only the parent's wait is missing.
fn is_zombie(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| Some(stat.rsplit_once(')')?.1.trim_start().starts_with('Z')))
        .unwrap_or(true)
}
