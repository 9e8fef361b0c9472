//! A cell: the confinement of a whole system of processes, of which the one that enters is the
//! first.
//!
//! Where a [`Jail`](crate::Jail) leaves a process nothing, a cell gives it what the first process
//! of a machine has: it is PID 1, user id 0 and may mount, in namespaces of its own and over
//! nothing else. It can so confine others in turn. What it shares with the host is the kernel and
//! the sight of the host's system directories.
//!
//! # The order of the steps
//!
//! 1. **Descriptors** and **control group**, as in a jail.
//! 2. **System directories** are made read-only in a mount namespace that only root could have
//!    made. In a copy of it that belongs to a lesser user namespace the kernel keeps them so,
//!    whatever the owner of the copy does (mount_namespaces(7)).
//! 3. **Birth**: the inner process comes to life in all its namespaces at once. The keeper, which
//!    is outside, maps its ids, and then only waits, as it does for a jail.
//! 4. **The inner process** takes what it will need out of the host's root, leaves that, and lays
//!    out its own.
//! 5. **Capabilities** that no such system needs go for good, and so does every way to new ones.
//!
//! The inner process must then exec. Until it does, its memory belongs to the host's user
//! namespace, and the kernel lets it neither hide that memory and still write its own `/proc`
//! files, nor own what it starts (proc(5), on ownership of the files in `/proc/pid`).

mod birth;
mod ids;
mod system;

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set, set_no_new_privs};

use crate::record::Record;
use crate::{JailError, Report, cgroup, descriptors, step};

pub use ids::{IdsError, check_ids};

/// What a cell is made from.
#[derive(Debug)]
pub struct Cell<'a> {
    /// What stays open, beside the standard three.
    pub keep: Vec<BorrowedFd<'a>>,
    /// Its control group's door: see [`cgroup::Group::door`].
    pub group: Option<OwnedFd>,
    /// It is killed when its parent, which has this process id, is gone.
    pub dies_with: Option<u32>,
    /// Where the system is laid out, in the root of the inner process.
    pub root: &'a Path,
    /// Room for files in memory, in bytes.
    pub files: u64,
    /// Files that are seen in the place of the host's, where the host has them.
    pub covers: &'a [Cover],
    /// The host name.
    pub name: &'a str,
}

/// A file of the cell's own over one of the host's.
#[derive(Debug, Clone, Copy)]
pub struct Cover {
    /// Below the root.
    pub path: &'static str,
    /// What it holds.
    pub contents: &'static str,
}

/// What the first process of a system uses: it mounts, makes user namespaces with all ids in
/// them, sets the network up, and changes users. None of it reaches beyond the cell.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_CHROOT);

/// Confines the calling process, which must have one thread and be about to exec. Where it
/// returns, it does so in a child of the process that called; see [the module](self).
///
/// # Errors
/// `JailError` with the step that failed; the process is then half confined and must end.
pub fn enter(cell: Cell<'_>) -> Result<Report, JailError> {
    let Cell { keep, group, dies_with, root, files, covers, name } = cell;
    let mut record = Record::start();
    let ids = step("find ids for the sandbox", ids::Ids::find())?;

    let kept = keep.iter().copied().chain(group.iter().map(|door| door.as_fd()));
    step("close inherited descriptors", descriptors::close_all_but(3, kept))?;
    record.holds("no descriptor but those that it was given");
    record.done("descriptors");
    if let Some(door) = group {
        cgroup::enter(&mut record, door)?;
    }
    system::lock(&mut record, &ids)?;
    birth::split(&mut record, &ids, dies_with)?;
    record.holds(format!("own namespaces: {}; ids that own nothing", birth::NAMES));
    record.done("birth");

    let taken = step("take the system directories", system::take(files))?;
    step("leave the host's root", system::leave(&taken))?;
    step("lay out the root", system::lay_out(taken, root, covers))?;
    record.holds("a root of system directories, read-only; the host's is detached");
    record.done("root");
    step("name the sandbox", rustix::system::sethostname(name.as_bytes()))?;

    step("drop capabilities", drop_capabilities())?;
    step("give up new privileges", set_no_new_privs(true))?;
    record.holds("no new privileges");
    record.done("privileges");
    Ok(record.report)
}

/// Out of the bounding set, which the exec applies to all the others.
fn drop_capabilities() -> rustix::io::Result<()> {
    for number in (0..u64::BITS).filter(|number| KEPT.bits() >> number & 1 == 0) {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // The kernel knows no capability of this number, nor of a later one.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
