//! Machines that outlive the command that made them: one directory each in the user's runtime
//! directory, with the carrier's socket, the signing key and a record of what it is.
//!
//! The directory is in memory and private to the user. It is made before the machine, with the
//! key in it, so that two commands cannot take one name and a machine can be asked to stop
//! whenever its maker was killed. A directory whose machine is gone is swept by whoever sees it
//! next.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::Isolation;
use link::{Guest, LinkError, SigningKey};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use wire::op::Shutdown;
use zeroize::Zeroizing;

use crate::snapshot::Origin;
use crate::{Error, check_name};

/// A machine that was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptInfo {
    /// What the user calls it.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Whose records it is in, where it is in any: see [`crate::SandboxSpec::owner`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
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
    /// It has volumes that it writes to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub writes_volumes: bool,
    /// It has volumes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_volumes: bool,
    /// Its scratch disk in GiB, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_gb: Option<u32>,
    /// It has a network.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_network: bool,
    /// What it was booted from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The monitor's process; 0 until it has started.
    pub pid: u32,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
}

/// What is known of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Life {
    /// It has not started, as far as this record goes.
    Coming,
    /// It runs, and is the machine's alone.
    Own,
    /// It has other things to do: the machine is a part of it.
    Shared,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    info: KeptInfo,
    life: Life,
    /// Start time of the process, in clock ticks since boot: tells it from a later one with
    /// the same number.
    pid_start: u64,
}

const RECORD: &str = "record.json";
/// What becomes [`RECORD`] once it is whole.
const NEW_RECORD: &str = "record.new";
const KEY: &str = "key";
const SOCKET: &str = "carrier.sock";
/// How long a machine that is coming up may take until somebody else sweeps its directory.
const RESERVATION: Duration = Duration::from_secs(300);
/// How long a machine that is asked to stop may take to answer: it may still be booting.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Record { action, path: path.to_owned(), source }
}

/// Where the directories are.
#[derive(Debug, Clone)]
pub(crate) struct Shelf {
    base: PathBuf,
}

impl Shelf {
    /// In the user's runtime directory.
    pub(crate) fn of_user() -> Self {
        let uid = rustix::process::getuid().as_raw();
        Self::at(match std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()) {
            Some(runtime) => PathBuf::from(runtime).join("sandforge"),
            None => std::env::temp_dir().join(format!("sandforge-{uid}")),
        })
    }

    pub(crate) fn at(base: PathBuf) -> Self {
        Self { base }
    }

    /// The directory of all records, made private if need be.
    fn base(&self) -> Result<&Path, Error> {
        let uid = rustix::process::getuid().as_raw();
        let base = self.base.as_path();
        match fs::DirBuilder::new().mode(0o700).recursive(true).create(base) {
            Ok(()) => {}
            Err(error) => return Err(failed("make the directory", base)(error)),
        }
        // In a shared directory another user may have been first.
        let metadata = fs::symlink_metadata(base).map_err(failed("look at", base))?;
        if !metadata.is_dir() || metadata.uid() != uid || metadata.mode() & 0o077 != 0 {
            let foreign = io::Error::other("it is not a directory that is yours alone (mode 0700)");
            return Err(failed("trust", base)(foreign));
        }
        Ok(base)
    }

    /// Takes the name for a machine that is coming up.
    pub(crate) fn reserve(&self, info: &KeptInfo, key: &SigningKey) -> Result<Record, Error> {
        check_name(&info.name)?;
        let directory = self.base()?.join(&info.name);
        for _ in 0..2 {
            match fs::DirBuilder::new().mode(0o700).create(&directory) {
                Ok(()) => {
                    // From here on, a failure removes it.
                    let record = Record { directory: Some(directory) };
                    record.write(KEY, &*Zeroizing::new(key.to_bytes()))?;
                    record.store(info, Life::Coming)?;
                    return Ok(record);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if !sweep(&directory) {
                        return Err(Error::NameTaken(info.name.clone()));
                    }
                }
                Err(error) => return Err(failed("make the directory", &directory)(error)),
            }
        }
        Err(Error::NameTaken(info.name.clone()))
    }

    /// The machines that run.
    pub(crate) fn list(&self) -> Result<Vec<KeptInfo>, Error> {
        let mut found = self.directories(|stored| stored.life != Life::Coming)?;
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// The machines of this owner, those included that were coming up when nobody says any more
    /// whether they did.
    pub(crate) fn owned_by(&self, owner: &str) -> Result<Vec<KeptInfo>, Error> {
        self.directories(|stored| stored.info.owner.as_deref() == Some(owner))
    }

    fn directories(&self, wanted: impl Fn(&Stored) -> bool) -> Result<Vec<KeptInfo>, Error> {
        let base = self.base()?;
        let mut found = Vec::new();
        for entry in fs::read_dir(base).map_err(failed("list", base))? {
            let entry = entry.map_err(failed("list", base))?;
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || sweep(&entry.path()) {
                continue;
            }
            found.extend(read(&entry.path()).filter(&wanted).map(|stored| stored.info));
        }
        Ok(found)
    }

    fn open(&self, name: &str) -> Result<(PathBuf, Stored), Error> {
        let missing = || Error::NoSuchSandbox(name.to_owned());
        check_name(name).map_err(|_| missing())?;
        let directory = self.base()?.join(name);
        if sweep(&directory) {
            return Err(missing());
        }
        let stored = read(&directory).ok_or_else(missing)?;
        Ok((directory, stored))
    }

    /// A machine, and what it takes to talk to it.
    pub(crate) fn find(&self, name: &str) -> Result<(KeptInfo, SigningKey, PathBuf), Error> {
        let (directory, stored) = self.open(name)?;
        if stored.life == Life::Coming {
            return Err(Error::Busy(name.to_owned()));
        }
        Ok((stored.info, read_key(&directory)?, directory.join(SOCKET)))
    }

    /// Ends the machine and removes its directory.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), Error> {
        let (directory, stored) = self.open(name)?;
        match stored.life {
            Life::Own => end_process(&directory, &stored).await?,
            Life::Shared | Life::Coming => stop(&directory, &stored.info).await?,
        }
        remove_directory(&directory)
    }

    /// Removes the directory of a machine that has ended.
    pub(crate) fn forget(&self, name: &str) -> Result<(), Error> {
        check_name(name)?;
        remove_directory(&self.base()?.join(name))
    }
}

fn remove_directory(directory: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", directory)(error))
        }
        _ => Ok(()),
    }
}

/// A name taken for a machine that is coming up; given back on drop.
#[derive(Debug)]
pub(crate) struct Record {
    directory: Option<PathBuf>,
}

impl Record {
    fn directory(&self) -> &Path {
        self.directory.as_ref().expect("until it is complete")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory().join(SOCKET)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.directory().join(name);
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        let mut file = file.map_err(failed("write", &path))?;
        file.write_all(bytes).map_err(failed("write", &path))
    }

    fn store(&self, info: &KeptInfo, life: Life) -> Result<(), Error> {
        let pid_start = start_time(info.pid).unwrap_or(0);
        let stored = Stored { info: info.clone(), life, pid_start };
        self.write(NEW_RECORD, &serde_json::to_vec(&stored).expect("a record is plain JSON"))?;
        let path = self.directory().join(RECORD);
        fs::rename(self.directory().join(NEW_RECORD), &path).map_err(failed("write", &path))
    }

    /// The machine runs, in the process that `info` names or, where that is 0, in this one.
    pub(crate) fn complete(mut self, info: &KeptInfo) -> Result<(), Error> {
        match info.pid {
            0 => {
                self.store(&KeptInfo { pid: std::process::id(), ..info.clone() }, Life::Shared)?;
            }
            _ => self.store(info, Life::Own)?,
        }
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

pub(crate) fn read_key(directory: &Path) -> Result<SigningKey, Error> {
    let path = directory.join(KEY);
    let bytes = Zeroizing::new(fs::read(&path).map_err(failed("read", &path))?);
    let seed: Zeroizing<[u8; 32]> = Zeroizing::new(
        bytes
            .as_slice()
            .try_into()
            .map_err(|_| failed("read", &path)(io::ErrorKind::InvalidData.into()))?,
    );
    Ok(SigningKey::from_bytes(&seed))
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
    let is_old = || {
        fs::metadata(directory)
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|made| made.elapsed().ok())
            .is_none_or(|age| age > RESERVATION)
    };
    let gone = match read(directory) {
        // Its owner asks it to stop, however long ago that was.
        Some(stored) if stored.life == Life::Coming => stored.info.owner.is_none() && is_old(),
        Some(stored) => !is_running(&stored),
        None => is_old(),
    };
    gone && fs::remove_dir_all(directory).is_ok()
}

async fn end_process(directory: &Path, stored: &Stored) -> Result<(), Error> {
    let Some(pid) = Pid::from_raw(stored.info.pid.cast_signed()) else {
        let name = &stored.info.name;
        return Err(Error::Internal(format!("the record of {name} names no process")));
    };
    // The descriptor is the process that the check below is about, whatever its number becomes.
    if let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
        && is_running(stored)
    {
        let signalled = pidfd_send_signal(&process, Signal::KILL);
        signalled.map_err(|error| failed("end the machine of", directory)(error.into()))?;
        while is_running(stored) && !is_zombie(stored.info.pid) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    Ok(())
}

/// Asks a machine to stop whose process is not known or not its own. Only the machine holds the
/// socket, so one that refuses connections is gone.
async fn stop(directory: &Path, info: &KeptInfo) -> Result<(), Error> {
    let socket = directory.join(SOCKET);
    let Ok(carrier) = tokio::net::UnixStream::connect(&socket).await else { return Ok(()) };
    let key = read_key(directory)?;
    match Guest::connect(carrier, &info.id, key, STOP_PATIENCE, None).await {
        Ok(guest) => {
            // It may be gone before it has answered.
            let _ = guest.ask(&Shutdown {}).await;
            tokio::time::timeout(STOP_PATIENCE, guest.closed())
                .await
                .map(drop)
                .map_err(|_| Error::Busy(info.name.clone()))
        }
        Err(LinkError::Disconnected(_)) => Ok(()),
        Err(LinkError::Unanswered(_)) => Err(Error::Busy(info.name.clone())),
        Err(error) => Err(Error::Guest(error)),
    }
}

/// Whether only the parent's wait is missing.
fn is_zombie(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| Some(stat.rsplit_once(')')?.1.trim_start().starts_with('Z')))
        .unwrap_or(true)
}
