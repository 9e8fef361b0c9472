//! Confinement of a host process, entered before it becomes a monitor.
//!
//! A monitor parses what a guest writes, so it is treated as if the guest had taken it over:
//! it has no identity that owns anything, no network, no file but its program, its libraries
//! and the descriptors that it was given, and bounds on what it can use.
//!
//! [`enter`] confines the calling process, which must have one thread; it is followed by an
//! exec. What a host does not offer is left out and said in the [`Report`], for `doctor` to
//! show.

mod descriptors;
mod namespaces;

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope,
};
use rustix::fs::{Gid, Uid};
use rustix::process::{Resource, Rlimit, Signal};
use serde::{Deserialize, Serialize};

/// First of the user ids that jailed processes of root get, one each. Far above what accounts,
/// `systemd` and subordinate ids use.
const FIRST_UID: u32 = 0x7000_0000;

/// What a process keeps.
#[derive(Debug)]
pub struct Jail<'a> {
    /// Bound of its address space in bytes.
    pub address_space: u64,
    /// Bound of its open descriptors.
    pub descriptors: u64,
    /// Files and directories that it may read and execute from.
    pub readable: Vec<PathBuf>,
    /// Open files that it may open again for reading, as `/proc/self/fd/N`.
    pub reopenable: Vec<BorrowedFd<'a>>,
    /// It is killed when its parent, which has this process id, is gone.
    pub dies_with: Option<u32>,
}

/// What holds a process, in words.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    /// What is in force.
    pub layers: Vec<String>,
    /// What this host does not offer.
    pub missing: Vec<String>,
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

/// Confines the calling process. Every descriptor but the standard three is closed by the exec,
/// unless it is marked otherwise after this.
///
/// # Errors
/// `JailError` with the step that failed; the process is then half confined and must end.
pub fn enter(jail: &Jail<'_>) -> Result<Report, JailError> {
    let mut report = Report::default();
    step("give up inherited descriptors", descriptors::close_on_exec())?;
    limits(jail)?;
    report.layers.push("bounded memory and descriptors, no core dumps, no files written".into());
    match namespaces::leave() {
        Ok(()) => report.layers.push("own network, IPC and host name namespaces, empty".into()),
        Err(error) => report.missing.push(format!("namespaces: {error}")),
    }
    if rustix::process::geteuid().is_root() {
        let uid = drop_identity()?;
        report.layers.push(format!("user id {uid}, which owns nothing"));
    }
    step("give up new privileges", rustix::thread::set_no_new_privs(true))?;
    report.layers.push("no new privileges".into());
    match restrict_files(jail)? {
        Some(layer) => report.layers.push(layer),
        None => report.missing.push("landlock: the kernel does not offer it".into()),
    }
    if let Some(parent) = jail.dies_with {
        // After the change of identity, which clears it.
        step(
            "ask to die with the parent",
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL)),
        )?;
        let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().cast_unsigned());
        if now != Some(parent) {
            return Err(JailError { step: "stay", reason: "the parent is gone already".into() });
        }
    }
    Ok(report)
}

fn limits(jail: &Jail<'_>) -> Result<(), JailError> {
    for (resource, bound) in [
        (Resource::As, jail.address_space),
        (Resource::Nofile, jail.descriptors),
        (Resource::Core, 0),
        (Resource::Fsize, 0),
    ] {
        let limit = Rlimit { current: Some(bound), maximum: Some(bound) };
        step("bound a resource", rustix::process::setrlimit(resource, limit))?;
    }
    Ok(())
}

/// From root to a user id of its own, so that not even another jailed process is a peer.
fn drop_identity() -> Result<u32, JailError> {
    let id = FIRST_UID + std::process::id();
    step("drop groups", rustix::thread::set_thread_groups(&[]))?;
    let gid = Gid::from_raw(id);
    step("change the group", rustix::thread::set_thread_res_gid(gid, gid, gid))?;
    let uid = Uid::from_raw(id);
    step("change the user", rustix::thread::set_thread_res_uid(uid, uid, uid))?;
    Ok(id)
}

/// Landlock: reads where allowed, nothing else on any file system, no TCP, and no signals or
/// abstract sockets beyond the jail where the kernel knows these.
fn restrict_files(jail: &Jail<'_>) -> Result<Option<String>, JailError> {
    let newest = ABI::V6;
    let reading = AccessFs::from_read(newest);
    let mut ruleset = step(
        "make a landlock ruleset",
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(newest))
            .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(newest)))
            .and_then(|ruleset| ruleset.scope(Scope::from_all(newest)))
            .and_then(Ruleset::create),
    )?;
    for path in &jail.readable {
        let Ok(descriptor) = PathFd::new(path) else { continue };
        let access = if path.is_dir() { reading } else { reading & AccessFs::from_file(newest) };
        let rule = PathBeneath::new(descriptor, access);
        ruleset = step("allow a path", ruleset.add_rule(rule))?;
    }
    for file in &jail.reopenable {
        // A memfd lies in no file system, so it takes no rule and needs none. Any other file
        // that takes none stays closed.
        let _ = (&mut ruleset).add_rule(PathBeneath::new(file, AccessFs::ReadFile));
    }
    let status = step("enter landlock", ruleset.restrict_self())?;
    Ok(match status.ruleset {
        RulesetStatus::NotEnforced => None,
        RulesetStatus::PartiallyEnforced => {
            Some("landlock: reads its program alone (an older kernel's rules)".into())
        }
        RulesetStatus::FullyEnforced => {
            Some("landlock: reads its program alone, no TCP, no signals to others".into())
        }
    })
}
