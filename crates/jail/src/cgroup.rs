//! Control groups, version 2: what a process and all that it starts can use together.
//!
//! The owner makes a [`Group`] below a [`Parent`] that is its to divide, hands its door to the
//! process that it starts, and removes it afterwards; the process goes in by itself, before it
//! gives up its rights. Groups whose owner was killed before it could do that are removed by the
//! next owner.
//!
//! As root the parent is a group `sandforge` at the top. For a user it is one in the part of the
//! hierarchy that systemd has given to the user, and reachable only from within that part: the
//! kernel lets nobody move a process between two groups without a right to what is above both.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use crate::record::Record;
use crate::{JailError, step};

/// Bounds of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Memory in bytes, that of the kernel on its behalf included. There is no swap.
    pub memory: u64,
    /// Processes and threads.
    pub tasks: u64,
    /// Time of processors, in thousandths of one.
    pub processor_thousandths: u64,
}

/// Why there are no groups here, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cgroup v2: {0}")]
pub struct Missing(String);

/// A group cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the control group {}: {source}", path.display())]
pub struct GroupError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The controllers that bound something here.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Of the group that holds all sandboxes.
const NAME: &str = "sandforge";
/// The period of the processor's bound, in microseconds: the kernel's default.
const PERIOD: u64 = 100_000;

/// Where groups are made.
#[derive(Debug, Clone)]
pub struct Parent {
    path: PathBuf,
}

impl Parent {
    /// Finds it, makes it where it is not there yet, and removes what others left in it.
    ///
    /// # Errors
    /// `Missing`.
    pub fn find() -> Result<Self, Missing> {
        let read = |path: &str| {
            fs::read_to_string(path).map_err(|error| Missing(format!("{path}: {error}")))
        };
        let mounts = read("/proc/self/mountinfo")?;
        let mount =
            mount_point(&mounts).ok_or_else(|| Missing("it is not mounted on this host".into()))?;
        let own = read("/proc/self/cgroup")?;
        let own = own_group(&own).ok_or_else(|| Missing("it is not in use on this host".into()))?;
        let above = match rustix::process::geteuid() {
            uid if uid.is_root() => mount,
            uid => delegated(&mount, own, uid.as_raw())?,
        };
        Self::below(&above)
    }

    /// The same below a group of the caller's choice.
    ///
    /// # Errors
    /// `Missing`.
    pub fn below(above: &Path) -> Result<Self, Missing> {
        enable_controllers(above)?;
        let path = above.join(NAME);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Missing(format!("{} cannot be made: {error}", path.display())));
            }
            _ => {}
        }
        enable_controllers(&path)?;
        let parent = Self { path };
        parent.sweep();
        Ok(parent)
    }

    /// Makes a group. `name` is the sandbox's id.
    ///
    /// # Errors
    /// `GroupError`; nothing is left then.
    pub fn group(&self, name: &str, bounds: &Bounds) -> Result<Group, GroupError> {
        let owner = std::process::id();
        let path = self.path.join(format!("{name}{SEPARATOR}{owner}"));
        fs::create_dir(&path).map_err(|source| GroupError {
            action: "make",
            path: path.clone(),
            source,
        })?;
        // From here on, a failure removes it.
        let group = Group { path };
        group.bound(bounds)?;
        Ok(group)
    }

    /// Removes groups whose owner is gone. Those that have processes stay, by the kernel's rule.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.path) else { return };
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name();
            let owner = name.to_str().and_then(owner_of);
            if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

/// Between a group's name and its owner's process id. No sandbox's id has it.
const SEPARATOR: char = '@';

fn owner_of(name: &str) -> Option<u32> {
    name.rsplit_once(SEPARATOR)?.1.parse().ok()
}

/// One sandbox's group. Dropping it kills what is in it, and removes it.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
}

impl Group {
    /// What the process needs to go in: [`Jail::group`](crate::Jail::group).
    ///
    /// # Errors
    /// `GroupError`.
    pub fn door(&self) -> Result<OwnedFd, GroupError> {
        let path = self.path.join("cgroup.procs");
        let door = fs::OpenOptions::new().write(true).open(&path);
        door.map(OwnedFd::from).map_err(|source| GroupError { action: "open", path, source })
    }

    /// Leaves it to its processes, which are to outlive the owner. Once they have ended, the
    /// next [`Parent::find`] of anybody removes it.
    pub fn leave(self) {
        std::mem::forget(self);
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn bound(&self, bounds: &Bounds) -> Result<(), GroupError> {
        let quota = (bounds.processor_thousandths * PERIOD / 1000).max(1000);
        self.write("memory.max", &bounds.memory.to_string())?;
        // A monitor that lost one thread to the memory killer would be no monitor.
        self.write("memory.oom.group", "1")?;
        self.write("pids.max", &bounds.tasks.to_string())?;
        self.write("cpu.max", &format!("{quota} {PERIOD}"))?;
        match self.write("memory.swap.max", "0") {
            // The kernel counts no swap.
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
            written => written,
        }
    }

    fn write(&self, file: &str, value: &str) -> Result<(), GroupError> {
        let path = self.path.join(file);
        fs::write(&path, value).map_err(|source| GroupError { action: "bound", path, source })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if fs::remove_dir(&self.path).is_ok() {
            return;
        }
        // Its process is still ending, which nobody may have waited for: after the memory
        // killer has come, not even its keeper. A kernel before 5.14 has no such file.
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
        let busy = || fs::remove_dir(&self.path).is_err();
        (0..ATTEMPTS).take_while(|_| busy()).for_each(|_| thread::sleep(PAUSE));
    }
}

/// How long a process may take to end once it is killed: freeing its memory, at most.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(1);

/// Moves the calling process through the door of its group.
pub(crate) fn enter(record: &mut Record, door: OwnedFd) -> Result<(), JailError> {
    // 0 stands for whoever writes (cgroups(7)).
    let moved = fs::File::from(door).write_all(b"0");
    step("enter the control group", moved)?;
    record.holds("control group: bounded memory, processors and tasks");
    record.done("control group");
    Ok(())
}

/// Where version 2 is mounted: the fifth field, where the type behind the separator says so
/// (proc_pid_mountinfo(5)).
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let path = mount.split(' ').nth(4)?;
        source.starts_with("cgroup2 ").then(|| PathBuf::from(path))
    })
}

/// The group that this process is in: the line of hierarchy 0, which is version 2's.
fn own_group(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::/"))
}

/// The highest group above our own that belongs to the user.
fn delegated(mount: &Path, own: &str, uid: u32) -> Result<PathBuf, Missing> {
    let own = mount.join(own);
    let is_ours = |path: &&Path| {
        path.starts_with(mount)
            && [path.to_path_buf(), path.join("cgroup.procs"), path.join("cgroup.subtree_control")]
                .iter()
                .all(|path| fs::metadata(path).is_ok_and(|metadata| metadata.uid() == uid))
    };
    own.ancestors().filter(is_ours).last().map(Path::to_owned).ok_or_else(|| {
        Missing(
            "this session is not in the part of systemd that is the user's own; \
             `systemd-run --user --scope sandforge ...` is"
                .into(),
        )
    })
}

/// Lets the children of a group have their own bounds.
fn enable_controllers(group: &Path) -> Result<(), Missing> {
    let read = |file: &str| fs::read_to_string(group.join(file)).unwrap_or_default();
    let offered = read("cgroup.controllers");
    let lacking: Vec<_> = CONTROLLERS.iter().filter(|name| !has(&offered, name)).copied().collect();
    if !lacking.is_empty() {
        return Err(Missing(format!(
            "the controllers {} are not offered at {} (version 1 may hold them)",
            lacking.join(", "),
            group.display()
        )));
    }
    let enabled = read("cgroup.subtree_control");
    for name in CONTROLLERS.iter().filter(|name| !has(&enabled, name)) {
        let written = fs::write(group.join("cgroup.subtree_control"), format!("+{name}"));
        written.map_err(|error| {
            let reason = match error.raw_os_error() {
                // Only the root may have processes and divide them at once.
                Some(errno) if errno == Errno::BUSY.raw_os_error() => {
                    "processes are in it".to_owned()
                }
                _ => error.to_string(),
            };
            Missing(format!("{} cannot divide {name}: {reason}", group.display()))
        })?;
    }
    Ok(())
}

fn has(list: &str, name: &str) -> bool {
    list.split_ascii_whitespace().any(|entry| entry == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - tmpfs cgroup2 rw
30 29 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:5 - cgroup2 cgroup rw
";

    #[test]
    fn the_mount_is_found_by_its_type() {
        assert_eq!(mount_point(MOUNTS), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point(""), None);
    }

    #[test]
    fn the_own_group_is_that_of_version_2() {
        assert_eq!(own_group("4:memory:/a\n0::/user.slice/b\n"), Some("user.slice/b"));
        assert_eq!(own_group("4:memory:/a\n"), None);
    }

    #[test]
    fn a_group_names_its_owner() {
        assert_eq!(owner_of("box-1@42"), Some(42));
        assert_eq!(owner_of("box-1"), None);
    }

    #[test]
    fn what_a_killed_owner_left_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let of_nobody = directory.path().join("box@4294967295");
        let ours = directory.path().join(format!("box@{}", std::process::id()));
        fs::create_dir(&of_nobody).unwrap();
        fs::create_dir(&ours).unwrap();

        Parent { path: directory.path().into() }.sweep();

        assert!(!of_nobody.exists() && ours.exists());
    }

    #[test]
    fn a_host_without_controllers_is_told_which() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("cgroup.controllers"), "cpuset memory\n").unwrap();

        let missing = Parent::below(directory.path()).unwrap_err().to_string();

        assert!(missing.starts_with("cgroup v2: the controllers cpu, pids are not offered"));
    }

    #[test]
    fn another_user_s_part_is_not_ours() {
        let directory = tempfile::tempdir().unwrap();
        let session = directory.path().join("user.slice/session");
        fs::create_dir_all(&session).unwrap();

        let missing = delegated(directory.path(), "user.slice/session", 1).unwrap_err();

        assert!(missing.to_string().contains("systemd-run"));
    }
}
