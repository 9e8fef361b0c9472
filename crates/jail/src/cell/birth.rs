//! The birth of the inner process, in all its namespaces at once, and the keeper that it has.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::set_no_new_privs;

use super::ids::{Ids, become_id};
use crate::record::Record;
use crate::{JailError, capabilities, descriptors, keeper, step};

pub(super) const NAMES: &str = "user, mount, process, network, IPC, host name, control group";
const NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// Makes the calling process the keeper and goes on in its child, the inner process, as user 0 of
/// its namespaces.
pub(super) fn split(
    record: &mut Record,
    ids: &Ids,
    dies_with: Option<u32>,
) -> Result<(), JailError> {
    // The keeper holds the writing end until it ends, which is how the other knows.
    let (reader, writer) = step("make a pipe to the keeper", pipe_with(PipeFlags::CLOEXEC))?;
    let flags = libc::c_long::from(NAMESPACES | libc::SIGCHLD);
    // SAFETY: without a stack of its own the child goes on like that of a fork(2), with a memory
    // of its own, and the process has one thread, so no lock is held by another.
    let inner = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match i32::try_from(inner) {
        Ok(0) => {
            drop(writer);
            record.report.inner = Some(settle(reader.into())?);
            Ok(())
        }
        Ok(pid) if pid > 0 => keep(ids, pid, writer, dies_with),
        _ => step("make the inner process", Err(io::Error::last_os_error())),
    }
}

/// In the inner process: waits for its ids, and tells its own as the keeper sees it.
fn settle(mut keeper: File) -> Result<u32, JailError> {
    let mut pid = [0; 4];
    step("hear from the keeper", keeper.read_exact(&mut pid))?;
    let pid = u32::from_ne_bytes(pid);
    if pid == 0 {
        let mut reason = String::new();
        step("hear from the keeper", keeper.read_to_string(&mut reason))?;
        return Err(JailError { step: "map the ids of the sandbox", reason });
    }
    step("become the root of the sandbox", become_id(0))?;
    // A change of ids clears the request, so it comes after that. Then to see that the keeper is
    // still there: getppid(2) tells nothing of a parent outside of the namespace.
    step("ask to die with the keeper", set_parent_process_death_signal(Some(Signal::KILL)))?;
    step("look for the keeper", rustix::fs::fcntl_setfl(keeper.as_fd(), OFlags::NONBLOCK))?;
    match keeper.read(&mut [0]) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(pid),
        _ => step("go on", Err("the keeper is gone already")),
    }
}

/// The keeper's whole life.
fn keep(ids: &Ids, inner: i32, writer: OwnedFd, dies_with: Option<u32>) -> ! {
    let mut writer = File::from(writer);
    if let Err(error) = ids.map(inner) {
        let _ =
            writer.write_all(&[0; 4]).and_then(|()| writer.write_all(error.to_string().as_bytes()));
        keeper::exit(125);
    }
    let _ = descriptors::close_all_but(0, std::iter::once(writer.as_fd()));
    let confined = || -> Result<(), JailError> {
        step("leave the user", ids.become_outer())?;
        capabilities::drop_all(&mut Record::start())?;
        step("give up new privileges", set_no_new_privs(true))?;
        dies_with.map_or(Ok(()), keeper::die_with_parent)
    };
    if confined().is_ok() && writer.write_all(&inner.cast_unsigned().to_ne_bytes()).is_ok() {
        keeper::watch(inner);
    }
    // The kernel ends the inner process with this one.
    keeper::exit(125)
}
