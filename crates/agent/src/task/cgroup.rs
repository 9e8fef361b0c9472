//! The bounds of tasks: one cgroup (version 2) each, below one that leaves the agent its share.
//!
//! ```text
//! /            the agent and kernel threads
//! └─ tasks     memory.max: the guest's memory less the agent's reserve; pids.max
//!    └─ 7      one task: memory.max, memory.oom.group, pids.max, cpu.max
//! ```
//!
//! The agent stays where it was born: to the scheduler a process in the root weighs as much as
//! all of `tasks` together, and moving one to a leaf costs the boot 30 ms of waiting for RCU.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use wire::op::Limits;

use super::error::{During, SetupError};

/// Process ids that tasks cannot take from the agent and the kernel.
const PIDS_RESERVE: u64 = 256;
/// The task's own init counts in `pids.max` but is not the caller's.
const INIT_PIDS: u64 = 1;
const CPU_PERIOD_USEC: u64 = 100_000;

/// The cgroup that tasks are made in.
#[derive(Debug)]
pub(super) struct Tasks {
    dir: OwnedFd,
    next: u64,
}

impl Tasks {
    /// Mounts the hierarchy and enables the controllers. The mount is attached nowhere: no path of
    /// any process leads to it.
    pub(super) fn prepare(reserve_bytes: u64) -> Result<Self, SetupError> {
        let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)
            .during("open the cgroup2 file system")?;
        fsconfig_create(&context).during("create the cgroup2 file system")?;
        let root = fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC,
        )
        .during("mount the cgroup2 file system")?;

        write(&root, "cgroup.subtree_control", "+memory +pids +cpu")
            .during("enable the cgroup controllers memory, pids and cpu")?;

        let dir = make(&root, "tasks").during("make the cgroup of tasks")?;
        write(&dir, "cgroup.subtree_control", "+memory +pids +cpu")
            .during("enable the cgroup controllers for tasks")?;
        let memory = total_memory().saturating_sub(reserve_bytes);
        write(&dir, "memory.max", &memory.to_string()).during("bound the memory of tasks")?;
        let pids = total_pids().during("read kernel.pid_max")?.saturating_sub(PIDS_RESERVE);
        write(&dir, "pids.max", &pids.to_string()).during("bound the processes of tasks")?;
        Ok(Self { dir, next: 0 })
    }

    /// A cgroup for one task, with the default limits.
    pub(super) fn create(&mut self) -> Result<Cgroup, SetupError> {
        self.next += 1;
        let name = self.next.to_string();
        let dir = make(&self.dir, &name).during("make the task's cgroup")?;
        let cgroup = Cgroup { dir, name };
        // One process of a task killed leaves the rest in a state that nobody expects.
        write(&cgroup.dir, "memory.oom.group", "1").during("have memory.oom.group")?;
        write_if_there(&cgroup.dir, "memory.swap.max", "0").during("forbid swapping")?;
        cgroup.limit_pids(Limits::default().pids).during("set pids.max")?;
        Ok(cgroup)
    }

    /// Removes the cgroup of a task that has ended.
    pub(super) fn remove(&self, cgroup: &Cgroup) -> io::Result<()> {
        Ok(unlinkat(&self.dir, cgroup.name.as_str(), AtFlags::REMOVEDIR)?)
    }

    /// Kills every process of every task.
    pub(super) fn kill(&self) -> io::Result<()> {
        write(&self.dir, "cgroup.kill", "1")
    }
}

/// One task's cgroup.
#[derive(Debug)]
pub(super) struct Cgroup {
    dir: OwnedFd,
    name: String,
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Cgroup {
    /// Sets what differs from the defaults that the cgroup was made with.
    pub(super) fn limit(&self, limits: &Limits) -> Result<(), SetupError> {
        if let Some(bytes) = limits.memory_bytes {
            write(&self.dir, "memory.max", &bytes.to_string()).during("set memory.max")?;
        }
        if limits.pids != Limits::default().pids {
            self.limit_pids(limits.pids).during("set pids.max")?;
        }
        if let Some(millis) = limits.cpu_millis {
            write(&self.dir, "cpu.max", &cpu_max(millis)).during("set cpu.max")?;
        }
        Ok(())
    }

    fn limit_pids(&self, pids: u32) -> io::Result<()> {
        write(&self.dir, "pids.max", &(u64::from(pids) + INIT_PIDS).to_string())
    }

    /// Kills every process in it, also one that forks meanwhile.
    pub(super) fn kill(&self) -> io::Result<()> {
        write(&self.dir, "cgroup.kill", "1")
    }

    /// Whether the kernel killed a process of it for memory.
    pub(super) fn out_of_memory(&self) -> bool {
        self.value("memory.events", "oom_kill") > 0
    }

    /// CPU time of all its processes.
    pub(super) fn cpu_usec(&self) -> u64 {
        self.value("cpu.stat", "usage_usec")
    }

    /// Highest memory of all its processes.
    pub(super) fn memory_peak(&self) -> u64 {
        read(&self.dir, "memory.peak").ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    fn value(&self, file: &str, key: &str) -> u64 {
        read(&self.dir, file).map_or(0, |text| field(&text, key).unwrap_or(0))
    }
}

/// `cpu.max` of so many thousandths of a CPU.
fn cpu_max(millis: u32) -> String {
    // The kernel's smallest quota is 1 ms.
    let quota = (u64::from(millis) * CPU_PERIOD_USEC / 1000).max(1000);
    format!("{quota} {CPU_PERIOD_USEC}")
}

/// The number after `key` in a file of `key number` lines.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}

fn total_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram * u64::from(info.mem_unit)
}

fn total_pids() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/sys/kernel/pid_max")?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

fn make(parent: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

fn write(dir: &OwnedFd, file: &str, value: &str) -> io::Result<()> {
    let fd = openat(dir, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    std::fs::File::from(fd).write_all(value.as_bytes())
}

/// For files that a kernel without the feature does not have.
fn write_if_there(dir: &OwnedFd, file: &str, value: &str) -> io::Result<()> {
    match write(dir, file, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn read(dir: &OwnedFd, file: &str) -> io::Result<String> {
    let fd = openat(dir, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // The figures stand in the first lines; one read suffices and costs one call.
    let mut bytes = vec![0; 2048];
    let length = rustix::io::read(&fd, &mut bytes)?;
    bytes.truncate(length);
    String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let events = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(field(events, "oom_kill"), Some(2));
        assert_eq!(field(events, "oom"), Some(3));
        assert_eq!(field(events, "kill"), None);
    }

    #[test]
    fn cpu_max_is_a_share_of_the_period() {
        assert_eq!(cpu_max(1500), "150000 100000");
        assert_eq!(cpu_max(1), "1000 100000");
    }
}
