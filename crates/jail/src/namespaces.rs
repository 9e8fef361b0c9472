//! Leaving the host's namespaces, through a user namespace where there can be one.

use std::fs;
use std::io;

use rustix::process::{getegid, geteuid};
use rustix::thread::UnshareFlags;

use crate::JailError;
use crate::record::Record;

/// Which of them later steps can build on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Entered {
    pub(crate) mount: bool,
    pub(crate) pid: bool,
}

const OTHERS: [(UnshareFlags, &str); 6] = [
    (UnshareFlags::NEWNS, "mount"),
    (UnshareFlags::NEWPID, "process"),
    (UnshareFlags::NEWNET, "network"),
    (UnshareFlags::NEWIPC, "IPC"),
    (UnshareFlags::NEWUTS, "host name"),
    (UnshareFlags::NEWCGROUP, "control group"),
];

/// Moves the calling process, and for the process ids its children, into namespaces of their
/// own. Its user and group ids stay what they are.
pub(crate) fn enter(record: &mut Record) -> Result<Entered, JailError> {
    let mut names = Vec::new();
    match enter_user() {
        Ok(()) => names.push("user"),
        Err(error) => record.lacks("user namespace", error),
    }
    record.done("user namespace");
    let mut entered = Entered::default();
    for (flag, name) in OTHERS {
        match unshare(flag) {
            Ok(()) => {
                names.push(name);
                entered.mount |= flag == UnshareFlags::NEWNS;
                entered.pid |= flag == UnshareFlags::NEWPID;
            }
            Err(error) => record.lacks(&format!("{name} namespace"), error),
        }
        record.done(&format!("{name} namespace"));
    }
    if !names.is_empty() {
        record.holds(format!("own namespaces: {}", names.join(", ")));
    }
    Ok(entered)
}

fn enter_user() -> io::Result<()> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    unshare(UnshareFlags::NEWUSER)?;
    // The order is the kernel's: an unprivileged process must give up setgroups(2) before it may
    // map its group (user_namespaces(7)).
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    // It counts for this namespace and those below. Where /proc/sys is read-only, as in a
    // container, the lack of a way to ask for more has to do.
    let _ = fs::write("/proc/sys/user/max_user_namespaces", "0");
    Ok(())
}

fn unshare(flag: UnshareFlags) -> io::Result<()> {
    // SAFETY: none of the flags in use splits the descriptor table or the address space of this
    // single-threaded process, which is what makes unshare unsafe.
    unsafe { rustix::thread::unshare_unsafe(flag) }.map_err(io::Error::from)
}
