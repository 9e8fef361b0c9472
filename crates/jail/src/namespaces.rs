//! Leaving the host's namespaces: as root directly, otherwise through a user namespace.

use std::fs;
use std::io;

use rustix::thread::UnshareFlags;

/// Moves the calling process into empty network, IPC and UTS namespaces. Its user and group
/// ids stay what they are.
pub(crate) fn leave() -> io::Result<()> {
    let mut flags = UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    let privileged = rustix::process::geteuid().is_root();
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    if !privileged {
        flags |= UnshareFlags::NEWUSER;
    }
    // SAFETY: none of these flags splits the descriptor table or the address space of this
    // single-threaded process, which is what makes unshare unsafe.
    unsafe { rustix::thread::unshare_unsafe(flags) }?;
    if !privileged {
        // The order is the kernel's: an unprivileged process must give up setgroups(2) before
        // it may map its group (user_namespaces(7)).
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
        fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    }
    Ok(())
}
