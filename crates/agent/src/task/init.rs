//! The first process of a task: PID 1 of its pid namespace, code of the agent's and never exec'ed.
//!
//! It makes the namespaces, forks the worker into the task's user namespace, and then only reaps:
//! when the command ends it says how, and its own end takes everything that is left along. It
//! stays in the initial user namespace under an id that no task has and without capabilities, and
//! is not dumpable, so that its memory, a copy of the agent's, is out of the task's reach.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{
    Gid, Pid, Resource, Rlimit, Signal, Uid, WaitOptions, WaitStatus, getrlimit,
    set_parent_process_death_signal, setrlimit, wait,
};
use rustix::thread::{
    set_name, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::bounds::Used;
use super::error::{During, SetupError};
use super::landlock::Rules;
use super::message::{READY, Report, send, send_report};
use super::mounts::{Template, seal_proc};
use super::process::{Fork, close_all_but, exit, fork};
use super::seccomp::Filters;
use super::user::IDS;
use super::{ToolFn, worker};
use crate::Kernel;

/// What a task's processes take over from the agent by the fork.
pub(super) struct Inheritance<'a> {
    pub(super) template: &'a Template,
    pub(super) rules: &'a Rules,
    pub(super) filters: &'a Filters,
    pub(super) kernel: Kernel,
    pub(super) tool: ToolFn,
    /// To the agent: see [`super::message`].
    pub(super) socket: OwnedFd,
    /// Takes the command's end: see [`Farewell`].
    pub(super) status: OwnedFd,
}

/// How the command ended, as two bytes in a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Exited(u8),
    Signaled(u8),
}

impl Status {
    fn of(status: WaitStatus) -> Option<Self> {
        let byte = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
        let exited = status.exit_status().map(|code| Self::Exited(byte(code)));
        exited.or_else(|| status.terminating_signal().map(|signal| Self::Signaled(byte(signal))))
    }

    fn to_bytes(self) -> [u8; 2] {
        match self {
            Self::Exited(code) => [0, code],
            Self::Signaled(signal) => [1, signal],
        }
    }

    fn from_bytes(bytes: [u8; 2]) -> Self {
        match bytes {
            [0, code] => Self::Exited(code),
            [_, signal] => Self::Signaled(signal),
        }
    }
}

/// What init has to tell at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Farewell {
    pub(super) status: Status,
    /// What the command used, with those of its processes that it waited for.
    pub(super) used: Used,
}

impl Farewell {
    pub(super) const LENGTH: usize = 18;

    fn of(status: WaitStatus) -> Option<Self> {
        Some(Self { status: Status::of(status)?, used: Used::by_children() })
    }

    /// The bytes for the pipe.
    pub(super) fn to_bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..2].copy_from_slice(&self.status.to_bytes());
        bytes[2..10].copy_from_slice(&self.used.cpu_usec.to_ne_bytes());
        bytes[10..].copy_from_slice(&self.used.memory_peak_bytes.to_ne_bytes());
        bytes
    }

    /// What is told in these bytes.
    pub(super) fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(number)
        };
        let used = Used { cpu_usec: number(2), memory_peak_bytes: number(10) };
        Self { status: Status::from_bytes([bytes[0], bytes[1]]), used }
    }
}

/// Does all of it; the return of a fork's child.
pub(super) fn run(inheritance: Inheritance<'_>) -> ! {
    let worker = match start(&inheritance) {
        Ok(worker) => worker,
        Err(error) => {
            send_report(inheritance.socket.as_fd(), &Report::Failed(error.to_op_error()));
            exit(1)
        }
    };
    // The socket is to close when the worker lets go of it.
    let Inheritance { socket, status, .. } = inheritance;
    drop(socket);
    if let Some(end) = reap(worker) {
        // Where the agent is gone there is nobody to tell.
        let _ = rustix::io::write(&status, &end.to_bytes());
    }
    exit(0)
}

/// Returns the worker, which is then ready for orders.
fn start(inheritance: &Inheritance<'_>) -> Result<Pid, SetupError> {
    // The ends of other tasks' pipes first: while a copy is open here none of them ends.
    close_all_but(&mut [
        inheritance.socket.as_raw_fd(),
        inheritance.status.as_raw_fd(),
        inheritance.template.as_raw_fd(),
        inheritance.rules.as_raw_fd(),
    ]);
    // The agent's /proc is needed for this.
    std::fs::write("/proc/self/oom_score_adj", oom_score_adj(inheritance.kernel))
        .during("set the task's oom_score_adj")?;
    limit(inheritance.kernel)?;
    inheritance.template.enter_copy()?;
    let terminal = terminal()?;

    let (worker, pidfd) = match fork(libc::CLONE_NEWUSER, None).during("fork the task's worker")? {
        Fork::Child => worker::run(inheritance, &terminal),
        Fork::Parent(worker, pidfd) => (worker, pidfd),
    };
    map_ids(worker)?;
    seal_proc()?;
    become_nobody()?;

    send(inheritance.socket.as_fd(), READY, &[pidfd.as_fd(), terminal.as_fd()])
        .during("tell the agent that the task is ready")?;
    Ok(worker)
}

/// In a guest tasks are equals, and the agent is exempt. On a host whatever else runs there matters
/// more than they do.
fn oom_score_adj(kernel: Kernel) -> &'static str {
    match kernel {
        Kernel::Own => "0",
        Kernel::Shared => "1000",
    }
}

fn limit(kernel: Kernel) -> Result<(), SetupError> {
    let limits = [
        // Programs that close every descriptor up to the soft limit are not to take seconds.
        (Resource::Nofile, Some(1 << 16), Some(1 << 20)),
        (Resource::Core, Some(0), Some(0)),
        (Resource::Nproc, all_tasks(kernel), all_tasks(kernel)),
    ];
    limits
        .into_iter()
        .try_for_each(|(resource, current, maximum)| {
            let maximum = match kernel {
                Kernel::Own => maximum,
                Kernel::Shared => least(getrlimit(resource).maximum, maximum),
            };
            setrlimit(resource, Rlimit { current: least(current, maximum), maximum })
        })
        .during("set the resource limits")
}

/// What counts processes in a guest is the cgroup. On a host this does, for all tasks together: in
/// the user namespaces that init makes, the kernel holds each to its own limit, and all of them
/// to that of their maker (user_namespaces(7), RLIMIT_NPROC in getrlimit(2)).
fn all_tasks(kernel: Kernel) -> Option<u64> {
    match kernel {
        Kernel::Own => None,
        Kernel::Shared => Some(8192),
    }
}

/// Of two limits, where none is none.
fn least(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    [one, other].into_iter().flatten().min()
}

/// The master of the only terminal that the agent gives the task, whether or not it wants one:
/// asking later would take a round trip.
fn terminal() -> Result<OwnedFd, SetupError> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let master = open("/dev/pts/ptmx", flags, Mode::empty()).during("open a terminal")?;
    rustix::pty::unlockpt(&master).during("unlock the terminal")?;
    Ok(master)
}

/// Ids are the same inside and outside: files of the image belong to whom they say.
fn map_ids(worker: Pid) -> Result<(), SetupError> {
    let map = format!("0 0 {IDS}");
    for file in ["uid_map", "gid_map"] {
        let path = format!("/proc/{}/{file}", worker.as_raw_nonzero());
        std::fs::write(path, &map).during("map the ids of the task")?;
    }
    Ok(())
}

fn become_nobody() -> Result<(), SetupError> {
    let (uid, gid) = (Uid::from_raw(IDS), Gid::from_raw(IDS));
    set_name(c"sandforge-init").during("name the task's init")?;
    set_no_new_privs(true).during("set no_new_privs for the task's init")?;
    set_thread_groups(&[]).during("leave the agent's groups")?;
    set_thread_res_gid(gid, gid, gid).during("leave the agent's group")?;
    // From 0 to another uid: all capabilities go with it.
    set_thread_res_uid(uid, uid, uid).during("leave the agent's user")?;
    // Changing ids clears it, so it comes last.
    set_parent_process_death_signal(Some(Signal::KILL)).during("tie the task to the agent")
}

/// Reaps until the worker, which the command became, has ended.
fn reap(worker: Pid) -> Option<Farewell> {
    loop {
        match rustix::io::retry_on_intr(|| wait(WaitOptions::empty())) {
            Ok(Some((pid, status))) if pid == worker => return Farewell::of(status),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_farewell_survives_the_pipe() {
        let used = Used { cpu_usec: 1 << 40, memory_peak_bytes: 7 };
        for status in [Status::Exited(0), Status::Exited(255), Status::Signaled(64)] {
            let farewell = Farewell { status, used };
            assert_eq!(Farewell::from_bytes(farewell.to_bytes()), farewell);
        }
    }

    #[test]
    fn no_limit_is_more_than_any() {
        assert_eq!(least(None, Some(3)), Some(3));
        assert_eq!(least(Some(2), Some(3)), Some(2));
        assert_eq!(least(None, None), None);
    }
}
