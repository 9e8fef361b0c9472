//! The KVM monitor, from the moment that it has its orders: it makes the machine and its threads
//! in the jail, and runs them. This is what all of its threads need together; each has a
//! narrower filter on top.

use libc::c_long;

use super::kvm;
use crate::filter::{Argument, Rule};

/// What it calls.
pub fn monitor() -> Vec<Rule> {
    let mut rules = Vec::new();
    rules.push(Rule::when(libc::SYS_ioctl, [Argument::B.is_one_of(kvm::REQUESTS)]));
    // Makes a descriptor non-blocking.
    rules.push(Rule::when(libc::SYS_ioctl, [Argument::B.is(FIONBIO)]));
    rules.extend(PLAIN.iter().map(|call| Rule::call(*call)));
    rules.extend(descriptors());
    rules.extend(sockets());
    rules.extend(memory());
    rules.extend(threads());
    rules.extend(absent());
    rules
}

const FIONBIO: u32 = 0x5421;

const PLAIN: &[c_long] = &[
    // Files that are open.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_close,
    libc::SYS_dup,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    // Time, where the vDSO does not know it, and randomness.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    // Memory that is there, or that nothing can run from; see `memory`.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_memfd_create,
    // Signals to itself; see `threads`.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // A thread's start and end.
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // The older forms of some of the above.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
];

/// fcntl without what would have the kernel send signals to others, and stat of what is open.
fn descriptors() -> Vec<Rule> {
    let commands = [
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
        libc::F_DUPFD_CLOEXEC,
        libc::F_ADD_SEALS,
        libc::F_GET_SEALS,
    ]
    .map(i32::cast_unsigned);
    let at_descriptor = libc::AT_EMPTY_PATH.cast_unsigned();
    vec![
        Rule::when(libc::SYS_fcntl, [Argument::B.is_one_of(&commands)]),
        Rule::when(libc::SYS_newfstatat, [Argument::D.bits(at_descriptor, at_descriptor)]),
        Rule::when(libc::SYS_statx, [Argument::C.bits(at_descriptor, at_descriptor)]),
    ]
}

/// Sockets that it was handed, and pairs of its own: none that could be connected anywhere.
fn sockets() -> Vec<Rule> {
    let unix = libc::AF_UNIX.cast_unsigned();
    let level = Argument::B.is(libc::SOL_SOCKET.cast_unsigned());
    vec![
        Rule::call(libc::SYS_recvmsg),
        Rule::call(libc::SYS_sendmsg),
        // Without an address.
        Rule::when(libc::SYS_recvfrom, [Argument::E.is_null()]),
        Rule::when(libc::SYS_sendto, [Argument::E.is_null()]),
        Rule::call(libc::SYS_accept4),
        Rule::call(libc::SYS_shutdown),
        Rule::when(libc::SYS_socketpair, [Argument::A.is(unix)]),
        Rule::when(libc::SYS_getsockopt, [level]),
    ]
}

/// No memory that a program can be written into: what is executable was so before.
fn memory() -> Vec<Rule> {
    let not_executable = Argument::C.bits(libc::PROT_EXEC.cast_unsigned(), 0);
    vec![
        Rule::when(libc::SYS_mmap, [not_executable.clone()]),
        Rule::when(libc::SYS_mprotect, [not_executable]),
    ]
}

/// Threads, but no processes and no namespaces.
fn threads() -> Vec<Rule> {
    let thread = (libc::CLONE_VM | libc::CLONE_THREAD).cast_unsigned();
    let namespaces = (libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET)
        .cast_unsigned();
    let options = [libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS].map(i32::cast_unsigned);
    vec![
        Rule::when(libc::SYS_clone, [Argument::A.bits(thread | namespaces, thread)]),
        Rule::when(libc::SYS_tgkill, [Argument::A.is_this_process()]),
        Rule::when(libc::SYS_prctl, [Argument::A.is_one_of(&options)]),
        // A narrower filter, in front of which goes the second of the options.
        Rule::when(libc::SYS_seccomp, [Argument::A.is(libc::SECCOMP_SET_MODE_FILTER)]),
        // Asking for a limit, not setting one.
        Rule::when(libc::SYS_prlimit64, [Argument::A.is(0), Argument::C.is_null()]),
    ]
}

/// What the C library and Rust's panics try and can do without. clone3 has its flags in memory,
/// where a filter cannot look, and clone does what it would.
fn absent() -> Vec<Rule> {
    const ENOENT: u16 = 2;
    const ENOSYS: u16 = 38;
    vec![
        Rule::fails(libc::SYS_clone3, ENOSYS),
        Rule::fails(libc::SYS_openat, ENOENT),
        Rule::fails(libc::SYS_readlinkat, ENOENT),
        #[cfg(target_arch = "x86_64")]
        Rule::fails(libc::SYS_open, ENOENT),
        #[cfg(target_arch = "x86_64")]
        Rule::fails(libc::SYS_readlink, ENOENT),
    ]
}
