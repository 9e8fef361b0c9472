//! The two system calls on processes that no safe library wraps: clone3 and a signal to a group.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;

/// Which side of a fork one is on.
pub(super) enum Fork {
    /// The child.
    Child,
    /// The parent, with the child's id in its own pid namespace and a pidfd for it.
    Parent(Pid, OwnedFd),
}

/// Forks into the new namespaces of `namespaces` (`CLONE_NEW*`) and, where given, into a cgroup:
/// so the child never runs outside of its limits.
///
/// The child is a copy of a single-threaded process, hence may go on with ordinary code.
pub(super) fn fork(namespaces: libc::c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    let mut pidfd: RawFd = -1;
    // SAFETY: every field of clone_args is an integer, for which zero is a value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(namespaces.cast_unsigned()) | libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd).addr() as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        // libc has the flag as an int, in which bit 33 has no room.
        args.flags |= 1 << 33;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: the agent has one thread and the child gets no new stack, so this is a fork: both
    // sides return here with a memory of their own. `args` outlives the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    match i32::try_from(pid) {
        Ok(0) => Ok(Fork::Child),
        Ok(pid) if pid > 0 => {
            // SAFETY: CLONE_PIDFD made this descriptor for the parent alone.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
            Ok(Fork::Parent(pid, pidfd))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends a signal to the process group that the process of `pidfd` leads. A pidfd cannot come to
/// name another group, as a number could.
pub(super) fn signal_group(pidfd: BorrowedFd<'_>, signal: libc::c_int) -> io::Result<()> {
    const PIDFD_SIGNAL_PROCESS_GROUP: libc::c_uint = 1 << 2;
    // SAFETY: no pointer but the null siginfo, which asks for the one that kill() sends.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            PIDFD_SIGNAL_PROCESS_GROUP,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ends this process without running what the parent registered for its own end.
pub(super) fn exit(code: libc::c_int) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Every signal at its default and none blocked, as a program expects to find them: ignored
/// signals (Rust ignores SIGPIPE) and the mask would outlive the exec.
pub(super) fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL runs no code of ours. Refusals (KILL, STOP, libc's own) are right.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: a sigset_t is integers; sigemptyset sets all of them.
    let mut none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `none` is a valid set to write to.
    unsafe { libc::sigemptyset(&raw mut none) };
    // SAFETY: `none` is a valid set to read and the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
}

/// Makes writes to a closed pipe errors again, for a tool, which is Rust code.
pub(super) fn ignore_sigpipe() {
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Closes every descriptor from 3 on but these.
pub(super) fn close_all_but(keep: &mut [RawFd]) {
    keep.sort_unstable();
    let mut first = 3;
    for &fd in keep.iter().filter(|fd| **fd >= 3) {
        close_range(first, fd - 1, 0);
        first = fd + 1;
    }
    close_range(first, RawFd::MAX, 0);
}

/// Marks every descriptor from 3 on to be closed by the exec.
pub(super) fn close_all_on_exec() {
    close_range(3, RawFd::MAX, libc::CLOSE_RANGE_CLOEXEC);
}

fn close_range(first: RawFd, last: RawFd, flags: libc::c_uint) {
    if first <= last {
        // SAFETY: the child owns its copies of the parent's descriptors; those still used by
        // this process are not in the range.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    }
}

/// A process of the agent's own code, for what may have to wait. It ends with this.
#[derive(Debug)]
pub(crate) struct Attendant {
    pidfd: OwnedFd,
}

impl Attendant {
    /// Starts one that keeps these descriptors and no other beside the standard three, and does `work`.
    ///
    /// # Errors
    /// Where the system has no process to give.
    pub(crate) fn start(
        keep: &[BorrowedFd<'_>],
        name: &std::ffi::CStr,
        work: impl FnOnce(),
    ) -> io::Result<Self> {
        match fork(0, None)? {
            Fork::Child => {
                close_all_but(&mut keep.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>());
                let _ = rustix::thread::set_name(name);
                work();
                exit(0)
            }
            Fork::Parent(_, pidfd) => Ok(Self { pidfd }),
        }
    }
}

impl Drop for Attendant {
    fn drop(&mut self) {
        use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}
