//! Confinement of a host process, which enters it by itself.
//!
//! A monitor parses what a guest writes, so it is treated as if the guest had taken it over:
//! it has no identity that owns anything, no network, no file but the descriptors that it was
//! given, no other process in sight, and bounds on what it can use. [`enter`] confines the
//! calling process, which must have one thread. What a host does not offer is left out and said
//! in the [`Report`], for `doctor` to show.
//!
//! # Two kinds of process
//!
//! | | [`Then::Stay`]: the KVM monitor | [`Then::Exec`]: QEMU |
//! |---|---|---|
//! | code | this very program, already in memory | a program that is still to be opened |
//! | root | an empty, read-only one | the host's |
//! | Landlock | nothing | reads the program, its libraries and firmware |
//! | descriptors | those named, the rest is closed | those that the caller unmarks for the exec |
//! | system calls | those of a [`Policy`] | the program's own filter |
//! | memory | not readable by others of its user, no core | no core |
//!
//! A third kind is the first of a whole system of processes on the host's kernel: see [`cell`].
//!
//! # Two processes
//!
//! A process cannot move itself into a PID namespace, only its children are born there. So
//! where there is one, [`enter`] forks once, and returns in the child:
//!
//! - the **inner** process is the one that does the work, and PID 1 of its namespace;
//! - the **keeper** is the one that was started. It waits for the inner process and ends as that
//!   one did. It has no descriptor, parses nothing, and may make five system calls.
//!
//! The keeper is killed when its owner is gone, and the inner process when its keeper is, both by
//! the kernel, and the inner process may not change that. [`Report::inner`] is the inner
//! process's id as the owner sees it.
//!
//! # The order of the steps
//!
//! Each step takes away what a later one must not need:
//!
//! 1. **Descriptors** are closed first, so that neither process, whatever fails, has them.
//! 2. **Control group**, before the namespace that hides the others, and while the process may
//!    still be moved.
//! 3. **Resource limits**, which may always be lowered.
//! 4. **Identity**: root becomes a user that owns nothing, but keeps its capabilities until the
//!    namespaces are made.
//! 5. **User namespace**, as that user. It gives capabilities over the namespaces that follow to
//!    who has none, and its maps are written while there is a `/proc`.
//! 6. **The other namespaces.** The PID namespace is for the child that follows in 12.
//! 7. **Death with the owner**: after 4, which clears the request (prctl(2)), and before
//!    the process becomes unable to ask.
//! 8. **Empty root**, while there are capabilities to mount it and before Landlock forbids to.
//! 9. **Capabilities** go, all of them, the bounding set first as that takes one.
//! 10. **No new privileges, no dumps**: the first lets an unprivileged process enter Landlock and
//!     seccomp. The second makes `/proc/self` root's, so it comes after 5.
//! 11. **Landlock.**
//! 12. **The keeper**, as late as possible, so that it is in all of the above, and before the
//!     filter, which lets no process be made.
//! 13. **seccomp**, last, since every step above needs what it refuses.

mod capabilities;
pub mod cell;
pub mod cgroup;
mod descriptors;
pub mod filter;
mod identity;
mod keeper;
mod landlock;
mod limits;
mod namespaces;
pub mod policy;
mod privileges;
mod record;
mod root;
mod trap;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use filter::Policy;
use record::Record;

pub use limits::Bounds;
pub use record::{Report, Step};

/// What a process keeps, and what it does next.
#[derive(Debug)]
pub struct Jail<'a> {
    /// What it can use.
    pub bounds: Bounds,
    /// Its control group's door: see [`cgroup::Group::door`].
    pub group: Option<OwnedFd>,
    /// It is killed when its parent, which has this process id, is gone.
    pub dies_with: Option<u32>,
    /// What it does next.
    pub then: Then<'a>,
}

/// What a process does in its jail.
#[derive(Debug)]
pub enum Then<'a> {
    /// It goes on, with what it has.
    Stay {
        /// What stays open, beside the standard three.
        keep: Vec<BorrowedFd<'a>>,
        /// What it may call. `None` only where the other layers are tested alone.
        policy: Option<Policy>,
    },
    /// It becomes another program. Every descriptor but the standard three is closed by the
    /// exec, unless it is marked otherwise after this.
    Exec {
        /// Files and directories that it may read and execute from.
        readable: Vec<PathBuf>,
        /// Open files that it may open again for reading, as `/proc/self/fd/N`.
        reopenable: Vec<BorrowedFd<'a>>,
    },
}

/// How large a KVM monitor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MonitorSize {
    /// The guest's memory in bytes.
    pub guest_memory: u64,
    /// The largest file that it writes into, in bytes.
    pub largest_file: u64,
    /// Threads: virtual CPUs, device workers and the main one.
    pub threads: u64,
}

impl<'a> Jail<'a> {
    /// The jail of a KVM monitor, which keeps `descriptors` and no more.
    pub fn monitor(
        size: MonitorSize,
        descriptors: Vec<BorrowedFd<'a>>,
        dies_with: Option<u32>,
    ) -> Self {
        let policy = Some(Policy::new(policy::monitor()));
        Self {
            bounds: Bounds::of_monitor(size),
            group: None,
            dies_with,
            then: Then::Stay { keep: descriptors, policy },
        }
    }
}

/// A step that must not fail did.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}: {reason}")]
pub struct JailError {
    step: &'static str,
    reason: String,
}

fn step<T>(step: &'static str, result: Result<T, impl ToString>) -> Result<T, JailError> {
    result.map_err(|reason| JailError { step, reason: reason.to_string() })
}

/// Confines the calling process, which must have one thread. Where it returns, it may do so in a
/// child of the process that called; see [the crate](self).
///
/// # Errors
/// `JailError` with the step that failed; the process is then half confined and must end.
pub fn enter(jail: Jail<'_>) -> Result<Report, JailError> {
    let Jail { bounds, group, dies_with, then } = jail;
    let mut record = Record::start();

    descriptors::give_up(&mut record, &then, group.as_ref())?;
    if let Some(door) = group {
        cgroup::enter(&mut record, door)?;
    }
    limits::set(&mut record, &bounds)?;
    identity::give_up(&mut record, &bounds)?;
    let namespaces = namespaces::enter(&mut record)?;
    if let Some(owner) = dies_with {
        keeper::die_with_parent(owner)?;
    }
    if matches!(then, Then::Stay { .. }) && namespaces.mount {
        root::leave(&mut record)?;
    }
    capabilities::drop_all(&mut record)?;
    privileges::give_up(&mut record, &then)?;
    landlock::restrict(&mut record, &then)?;
    if namespaces.pid {
        keeper::split(&mut record)?;
    }
    if let Then::Stay { policy, .. } = then {
        filter::enforce(&mut record, policy)?;
    }
    Ok(record.report)
}
