//! The keeper: the process that stays outside of the PID namespace of its child, and lives only
//! to end with it.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, set_parent_process_death_signal,
    waitpid,
};

use crate::filter::Filter;
use crate::record::Record;
use crate::{JailError, descriptors, policy, step};

/// Asks to be killed when the parent is gone; fails where it is gone already.
pub(crate) fn die_with_parent(owner: u32) -> Result<(), JailError> {
    step("ask to die with the parent", set_parent_process_death_signal(Some(Signal::KILL)))?;
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().cast_unsigned());
    if now != Some(owner) {
        return Err(JailError { step: "stay", reason: "the parent is gone already".into() });
    }
    Ok(())
}

/// Makes the calling process the keeper and goes on in its child, the inner process.
pub(crate) fn split(record: &mut Record) -> Result<(), JailError> {
    // The keeper holds the writing end until it ends, which is how the other knows.
    let pipe = pipe_with(PipeFlags::CLOEXEC);
    let (reader, writer) = step("make a pipe to the keeper", pipe)?;
    // SAFETY: the process has one thread, so no lock is held by another that the child lacks.
    let inner = unsafe { libc::fork() };
    match inner {
        -1 => step("make the inner process", Err(io::Error::last_os_error())),
        0 => {
            drop(writer);
            let pid = step("hear from the keeper", hear(reader))?;
            record.report.inner = Some(pid);
            record.done("inner process");
            Ok(())
        }
        pid => keep(pid, writer),
    }
}

/// In the inner process: its id, as the keeper sees it.
fn hear(reader: OwnedFd) -> io::Result<u32> {
    // getppid(2) tells nothing here: the parent has no id in this namespace. So the order is to
    // ask for death with the keeper, and then to see that it is still there.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut reader = std::fs::File::from(reader);
    let mut pid = [0; 4];
    reader.read_exact(&mut pid)?;
    rustix::fs::fcntl_setfl(reader.as_fd(), OFlags::NONBLOCK)?;
    match reader.read(&mut [0]) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(u32::from_ne_bytes(pid)),
        _ => Err(io::Error::other("it is gone already")),
    }
}

/// The keeper's whole life.
fn keep(inner: i32, writer: OwnedFd) -> ! {
    let _ = descriptors::close_all_but(0, std::iter::once(writer.as_fd()));
    let mut writer = std::fs::File::from(writer);
    if writer.write_all(&inner.cast_unsigned().to_ne_bytes()).is_ok() {
        // The inner process does not wait for the filter: nothing that it says is ever heard here.
        watch(inner);
    }
    // The kernel ends the inner process with this one.
    exit(125)
}

/// Waits for the inner process, able to do nothing else any more, and ends as it did. Returns
/// only where that is not to be had.
pub(crate) fn watch(inner: i32) {
    if Filter::allow(&policy::keeper()).is_ok_and(|filter| filter.install().is_ok()) {
        end_like(wait_for(inner));
    }
}

fn wait_for(inner: i32) -> Option<WaitStatus> {
    loop {
        match waitpid(Pid::from_raw(inner), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Some(status),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// Ends as the inner process did, so that its owner sees one process.
fn end_like(status: Option<WaitStatus>) {
    let Some(status) = status else { return };
    if let Some(code) = status.exit_status() {
        exit(code);
    }
    if let Some(signal) = status.terminating_signal() {
        if let Some(named) = Signal::from_named_raw(signal) {
            let _ = kill_process(getpid(), named);
        }
        exit(128 + signal);
    }
}

/// Without the destructors and exit handlers of the program that this was.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: _exit(2) has no preconditions.
    unsafe { libc::_exit(code) }
}
