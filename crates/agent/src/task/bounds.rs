//! What a task can use. In a guest control groups say so, and there is no guest without them. On a
//! host the hierarchy is the host's: there, each process has resource limits, and each task a
//! number of processes, and what these cannot bound is refused or said by the engine.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::process::{Resource, Rlimit, setrlimit};
use wire::op::{ErrorCode, Limits, OpError};

use super::Settings;
use super::cgroup::{Cgroup, Tasks};
use super::error::SetupError;
use crate::Kernel;

/// What bounds all tasks.
#[derive(Debug)]
pub(super) enum Bounds {
    /// A cgroup each, below one for all.
    Groups(Tasks),
    /// Limits of their processes.
    Limits {
        /// What one process has at most, in bytes.
        memory: u64,
    },
}

/// What bounds one task.
#[derive(Debug)]
pub(super) enum Bound {
    /// Its cgroup.
    Group(Cgroup),
    /// Limits of its processes.
    Limits(u64),
}

/// What a task used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Used {
    /// CPU time in microseconds.
    pub(super) cpu_usec: u64,
    /// Highest memory in bytes.
    pub(super) memory_peak_bytes: u64,
}

/// Limits that a worker sets for itself, and all that it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProcessLimits {
    /// Memory of its own that each process can have, in bytes. Address space without memory, which
    /// language runtimes reserve by the gigabyte, does not count.
    pub(super) memory_bytes: u64,
    /// Processes and threads of the task: they are counted by its user namespace.
    pub(super) pids: u64,
}

impl Bounds {
    pub(super) fn prepare(settings: &Settings<'_>) -> Result<Self, SetupError> {
        Ok(match settings.kernel {
            Kernel::Own => Self::Groups(Tasks::prepare(settings.reserve_bytes)?),
            Kernel::Shared => Self::Limits { memory: settings.memory_bytes },
        })
    }

    /// For one task, with the default limits.
    pub(super) fn create(&mut self) -> Result<Bound, SetupError> {
        Ok(match self {
            Self::Groups(tasks) => Bound::Group(tasks.create()?),
            Self::Limits { memory } => Bound::Limits(*memory),
        })
    }

    /// After the end of a task.
    pub(super) fn remove(&self, bound: &Bound) {
        if let (Self::Groups(tasks), Bound::Group(cgroup)) = (self, bound) {
            drop(tasks.remove(cgroup));
        }
    }

    /// Kills every process of every task, where the agent's own end would not.
    pub(super) fn kill_all(&self) {
        if let Self::Groups(tasks) = self {
            drop(tasks.kill());
        }
    }
}

impl Bound {
    /// The cgroup to start the task in.
    pub(super) fn group(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Group(cgroup) => Some(cgroup.as_fd()),
            Self::Limits(_) => None,
        }
    }

    /// Sets what differs from the defaults, or tells what the worker has to set.
    pub(super) fn limit(&self, limits: &Limits) -> Result<Option<ProcessLimits>, OpError> {
        match self {
            Self::Group(cgroup) => {
                cgroup.limit(limits).map_err(|error| error.to_op_error())?;
                Ok(None)
            }
            Self::Limits(memory) => ProcessLimits::new(limits, *memory).map(Some),
        }
    }

    /// Whether the kernel killed a process of it for memory. Resource limits do not kill.
    pub(super) fn out_of_memory(&self) -> bool {
        matches!(self, Self::Group(cgroup) if cgroup.out_of_memory())
    }

    /// What the task used: by its cgroup, or else what its init `told`.
    pub(super) fn used(&self, told: Used) -> Used {
        match self {
            Self::Group(cgroup) => {
                Used { cpu_usec: cgroup.cpu_usec(), memory_peak_bytes: cgroup.memory_peak() }
            }
            Self::Limits(_) => told,
        }
    }
}

impl ProcessLimits {
    fn new(limits: &Limits, most_memory: u64) -> Result<Self, OpError> {
        if limits.cpu_millis.is_some() {
            let message = "a limit on CPU time takes a control group, which a sandbox on the \
                           host's kernel has not";
            return Err(OpError::new(ErrorCode::Unsupported, message));
        }
        let memory_bytes = limits.memory_bytes.map_or(most_memory, |bytes| bytes.min(most_memory));
        Ok(Self { memory_bytes, pids: limits.pids.into() })
    }

    /// Sets them for this process and all that it starts.
    pub(super) fn apply(self) -> rustix::io::Result<()> {
        for (resource, limit) in [(Resource::Data, self.memory_bytes), (Resource::Nproc, self.pids)]
        {
            setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })?;
        }
        Ok(())
    }
}

impl Used {
    /// By the children of this process that have ended, and those that they waited for. The memory
    /// is that of the largest of them.
    pub(super) fn by_children() -> Self {
        // SAFETY: an rusage is integers, for which zero is a value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: `usage` outlives the call, which writes one rusage.
        let result = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
        debug_assert_eq!(result, 0, "{}", io::Error::last_os_error());
        let number = |number: libc::c_long| u64::try_from(number).unwrap_or(0);
        let usec = |time: libc::timeval| number(time.tv_sec) * 1_000_000 + number(time.tv_usec);
        Self {
            cpu_usec: usec(usage.ru_utime) + usec(usage.ru_stime),
            memory_peak_bytes: number(usage.ru_maxrss) * 1024,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_process_has_more_memory_than_the_sandbox() {
        let limits = |memory_bytes| {
            let limits = Limits { memory_bytes, ..Limits::default() };
            ProcessLimits::new(&limits, 1 << 30).unwrap().memory_bytes
        };
        assert_eq!(limits(None), 1 << 30);
        assert_eq!(limits(Some(1 << 20)), 1 << 20);
        assert_eq!(limits(Some(1 << 40)), 1 << 30);
    }

    #[test]
    fn a_limit_that_cannot_be_had_is_refused() {
        let limits = Limits { cpu_millis: Some(500), ..Limits::default() };
        let error = ProcessLimits::new(&limits, 1 << 30).unwrap_err();
        assert_eq!(error.code, ErrorCode::Unsupported);
    }
}
