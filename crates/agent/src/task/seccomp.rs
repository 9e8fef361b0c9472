//! The system calls that a task is refused, each with the reason.
//!
//! A list of what is denied, not of what is allowed: a task is any program at all, and the
//! machine around it is the boundary. What is here either reaches past the task (the carrier, the
//! network's configuration, time, the kernel itself) or is attack surface that work in a sandbox
//! has no use for. Most of it lacks a capability as well; neither check leans on the other.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, sock_filter,
};

use super::error::{During, SetupError};

type Rules = Vec<(libc::c_long, Vec<SeccompRule>)>;
type Compiled<T> = Result<T, seccompiler::BackendError>;

const COMPILE: &str = "compile the seccomp filters";

/// The programs, compiled once at boot.
#[derive(Debug)]
pub(super) struct Filters(Vec<BpfProgram>);

impl Filters {
    /// Compiles them for this machine.
    pub(super) fn compile() -> Result<Self, SetupError> {
        refused()
            .and_then(|refused| Self::of(refused, absent()))
            .map_err(std::io::Error::other)
            .during(COMPILE)
    }

    /// Filters the agent of a host, and with it all tasks: should it be taken over, the host's
    /// kernel is what the filter stands before.
    pub(super) fn enforce_on_agent() -> Result<(), SetupError> {
        let refused = without_conditions(REFUSED_TO_ALL);
        Self::of(refused, without_conditions(&ABSENT_TO_ALL))
            .map_err(std::io::Error::other)
            .during(COMPILE)?
            .enforce()
    }

    fn of(refused: Rules, absent: Rules) -> Compiled<Self> {
        let mut absent = program(absent, libc::ENOSYS)?;
        if cfg!(target_arch = "x86_64") {
            absent.splice(0..0, x32_is_absent());
        }
        Ok(Self(vec![
            program(refused, libc::EPERM)?,
            program(unsupported_sockets()?, libc::EAFNOSUPPORT)?,
            absent,
        ]))
    }

    /// Filters this process and all that it starts, for good.
    pub(super) fn enforce(&self) -> Result<(), SetupError> {
        self.0
            .iter()
            .try_for_each(|program| seccompiler::apply_filter(program))
            .map_err(std::io::Error::other)
            .during("install the seccomp filters")
    }
}

/// Calls of another architecture (i386 by `int 0x80`) kill: seccompiler's own prologue.
fn program(rules: Rules, errno: libc::c_int) -> Compiled<BpfProgram> {
    SeccompFilter::new(
        rules.into_iter().collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.cast_unsigned()),
        std::env::consts::ARCH.try_into()?,
    )?
    .try_into()
}

/// EPERM: it is there, and not for a task.
fn refused() -> Compiled<Rules> {
    let mut rules = without_conditions(&[REFUSED_TO_ALL, REFUSED_TO_TASKS].concat());
    // New namespaces bring capabilities over themselves, and so half of the kernel into reach.
    rules.push((libc::SYS_clone, one_of_bits(0, &NAMESPACES)?));
    rules.push((libc::SYS_unshare, one_of_bits(0, &[&NAMESPACES[..], &[CLONE_NEWTIME]].concat())?));
    let ioctls = [
        // Types into the terminal of whoever reads it next.
        TIOCSTI,   // Pastes into consoles, among other things.
        TIOCLINUX, // Line disciplines: drivers for modems that any user could attach.
        TIOCSETD,
    ];
    let mut denied = Vec::new();
    for request in ioctls {
        denied.push(SeccompRule::new(vec![condition(1, SeccompCmpOp::Eq, request)?])?);
    }
    rules.push((libc::SYS_ioctl, denied));
    Ok(rules)
}

/// What not even the agent of a host calls.
const REFUSED_TO_ALL: &[libc::c_long] = &[
    // Programs for the kernel, and counters that see through address randomisation.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    // Keyrings belong to a uid, not to a task.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Stops the kernel in the middle of a copy: the handle of many exploits.
    libc::SYS_userfaultfd,
    // Opens by inode number, past every directory and rule.
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    // The machine: its kernel, modules, swap, quotas, accounting, log, clock and power.
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_reboot,
    libc::SYS_vhangup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
    // Ports of the hardware.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
];

/// What is mounted is the sandbox, and the agent makes it.
const REFUSED_TO_TASKS: &[libc::c_long] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
];

/// EAFNOSUPPORT: callers of socket() know this answer and do without. AF_VSOCK leads to the host;
/// packet and raw sockets to other tasks' traffic; the rest (AF_ALG, Bluetooth, CAN, ...) to
/// drivers. Of netlink there is routing, which getaddrinfo asks, and audit, without whose own
/// refusal Debian's useradd does not go on.
fn unsupported_sockets() -> Compiled<Rules> {
    use SeccompCmpOp::{Eq, MaskedEq, Ne};
    let mut other_families = Vec::new();
    for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK] {
        other_families.push(condition(0, Ne, value(family))?);
    }
    let netlink = value(libc::AF_NETLINK);
    let rules = vec![
        SeccompRule::new(other_families)?,
        SeccompRule::new(vec![
            condition(0, Eq, netlink)?,
            condition(2, Ne, value(libc::NETLINK_ROUTE))?,
            condition(2, Ne, value(libc::NETLINK_AUDIT))?,
        ])?,
        // Netlink sockets are of this type too.
        SeccompRule::new(vec![
            condition(0, Ne, netlink)?,
            condition(1, MaskedEq(0xf), value(libc::SOCK_RAW))?,
        ])?,
    ];
    Ok(vec![(libc::SYS_socket, rules)])
}

/// ENOSYS: as in a kernel without it, for which callers have another way. clone3 passes its flags
/// in memory, where a filter cannot look.
fn absent() -> Rules {
    without_conditions(&[&ABSENT_TO_ALL[..], &[libc::SYS_clone3]].concat())
}

/// io_uring would do what the filter refuses.
const ABSENT_TO_ALL: [libc::c_long; 3] =
    [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];

fn without_conditions(calls: &[libc::c_long]) -> Rules {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

/// The calls of the x32 ABI are the same ones under numbers that the rules do not name.
fn x32_is_absent() -> [sock_filter; 3] {
    const LOAD_NUMBER: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS, offset 0
    const JUMP_IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const X32_BIT: u32 = 0x4000_0000;
    let absent = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();
    [
        sock_filter { code: LOAD_NUMBER, jt: 0, jf: 0, k: 0 },
        sock_filter { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: X32_BIT },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: absent },
    ]
}

// libc has the requests in types that differ by target.
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541C;
const TIOCSETD: u64 = 0x5423;

/// In clone() this bit is part of the exit signal.
const CLONE_NEWTIME: libc::c_int = 0x80;
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

fn one_of_bits(argument: u8, bits: &[libc::c_int]) -> Compiled<Vec<SeccompRule>> {
    bits.iter()
        .map(|bit| {
            let bit = value(*bit);
            SeccompRule::new(vec![condition(argument, SeccompCmpOp::MaskedEq(bit), bit)?])
        })
        .collect()
}

fn value(constant: libc::c_int) -> u64 {
    u64::from(constant.cast_unsigned())
}

/// All arguments that are looked at are 32 bits wide; the kernel ignores the rest of the register.
fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> Compiled<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

#[cfg(test)]
mod tests {
    use super::super::process::{Fork, exit, fork};
    use super::*;
    use rustix::process::{WaitIdOptions, waitid};
    use std::os::fd::AsFd;

    /// The errno of a call made by a process under the filters, 0 where it succeeded.
    fn errno_of(call: libc::c_long, arguments: [libc::c_long; 3]) -> i32 {
        let filters = Filters::compile().unwrap();
        match fork(0, None).unwrap() {
            Fork::Child => {
                if filters.enforce().is_err() {
                    exit(255);
                }
                let [a, b, c] = arguments;
                // SAFETY: the calls below take integers or fail at a null pointer.
                let result = unsafe { libc::syscall(call, a, b, c, 0, 0, 0) };
                let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
                exit(if result < 0 { errno } else { 0 });
            }
            Fork::Parent(_, pidfd) => {
                waitid(rustix::process::WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
                    .unwrap()
                    .unwrap()
                    .exit_status()
                    .unwrap()
            }
        }
    }

    fn socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> i32 {
        errno_of(libc::SYS_socket, [family.into(), kind.into(), protocol.into()])
    }

    #[test]
    fn ordinary_calls_pass() {
        assert_eq!(errno_of(libc::SYS_getpid, [0; 3]), 0);
        assert_eq!(socket(libc::AF_UNIX, libc::SOCK_STREAM, 0), 0);
        assert_eq!(socket(libc::AF_INET, libc::SOCK_STREAM, 0), 0);
        assert_eq!(socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE), 0);
    }

    #[test]
    fn sockets_that_leave_the_task_are_unsupported() {
        assert_eq!(socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0), libc::EAFNOSUPPORT);
        assert_eq!(socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0), libc::EAFNOSUPPORT);
        assert_eq!(socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP), libc::EAFNOSUPPORT);
        let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        assert_eq!(socket(libc::AF_INET6, flags, libc::IPPROTO_UDP), libc::EAFNOSUPPORT);
        let uevent = libc::NETLINK_KOBJECT_UEVENT;
        assert_eq!(socket(libc::AF_NETLINK, libc::SOCK_DGRAM, uevent), libc::EAFNOSUPPORT);
    }

    #[test]
    fn dangerous_calls_are_refused() {
        for call in REFUSED_TO_ALL.iter().chain(REFUSED_TO_TASKS) {
            assert_eq!(errno_of(*call, [0; 3]), libc::EPERM, "call {call}");
        }
    }

    #[test]
    fn namespaces_are_refused_and_other_sharing_is_not() {
        for bit in NAMESPACES {
            assert_eq!(errno_of(libc::SYS_unshare, [bit.into(), 0, 0]), libc::EPERM);
            let with_signal = bit | libc::SIGCHLD;
            assert_eq!(errno_of(libc::SYS_clone, [with_signal.into(), 0, 0]), libc::EPERM);
        }
        assert_eq!(errno_of(libc::SYS_unshare, [CLONE_NEWTIME.into(), 0, 0]), libc::EPERM);
        assert_eq!(errno_of(libc::SYS_unshare, [libc::CLONE_FS.into(), 0, 0]), 0);
    }

    #[test]
    fn clone3_and_io_uring_are_absent() {
        assert_eq!(errno_of(libc::SYS_clone3, [0; 3]), libc::ENOSYS);
        assert_eq!(errno_of(libc::SYS_io_uring_setup, [1, 0, 0]), libc::ENOSYS);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn x32_calls_are_absent() {
        assert_eq!(errno_of(0x4000_0000 | libc::SYS_getpid, [0; 3]), libc::ENOSYS);
    }

    #[test]
    fn the_terminal_takes_no_typing_from_a_task() {
        let request = TIOCSTI.cast_signed();
        assert_eq!(errno_of(libc::SYS_ioctl, [0, request, 0]), libc::EPERM);
        // Whatever the upper half of the register holds, the kernel sees the same request.
        assert_eq!(errno_of(libc::SYS_ioctl, [0, request | 1 << 40, 0]), libc::EPERM);
    }
}
