//! What the payload tries.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::Path;

use launch::Owner;
use libc::c_long;
use rustix::net::{SendAncillaryBuffer, SendFlags, SocketAddrUnix, sendmsg_addr};

use crate::kernel::{address, call, room};
use crate::target::{HANDED_DIRECTORY, HANDED_FILE, HANDED_NAMESPACE, SECRET, Target};
use crate::{Failed, Found, User, life};

/// One way out.
pub(crate) struct Attempt {
    pub(crate) name: &'static str,
    run: fn(&Scene<'_>) -> io::Result<String>,
    /// The calls of which one ends it. Where there is none, its calls are allowed and fail.
    pub(crate) calls: &'static [c_long],
    /// Who succeeds without a jail.
    pub(crate) free: Free,
    /// Whether it fails without the filter.
    pub(crate) below: Held,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Free {
    Anybody,
    /// Not a nobody that root's process started.
    SameUser,
    Root,
    /// It depends on the host, or would harm it.
    Untried,
}

impl Free {
    pub(crate) fn applies_to(self, user: User) -> bool {
        match self {
            Self::Anybody => true,
            Self::SameUser => user != User::Nobody,
            Self::Root => user == User::Root,
            Self::Untried => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// By what lies below as well.
    Too,
    ByTheFilterAlone,
}

/// What the payload has.
pub(crate) struct Scene<'a> {
    target: &'a Target,
    handed: &'a [OwnedFd],
    handle: &'a Handle,
}

/// What the payload makes before it is jailed, as an attacker would who has been there longer.
pub(crate) struct Means {
    handle: Handle,
}

impl Means {
    pub(crate) fn prepare(target: &Target) -> Result<Self, Failed> {
        Ok(Self { handle: Handle::of(&target.secret)? })
    }
}

pub(crate) const ATTEMPTS: &[Attempt] = &[
    // Files.
    Attempt {
        name: "read_a_secret_file",
        run: |scene| secret(fs::read_to_string(&scene.target.secret)),
        calls: &[],
        free: Free::Anybody,
        below: Held::Too,
    },
    Attempt {
        name: "list_a_home",
        run: |scene| any_entry(&scene.target.home),
        calls: &[],
        free: Free::Anybody,
        below: Held::Too,
    },
    Attempt {
        name: "read_the_host_s_accounts",
        run: |_| fs::read_to_string("/etc/passwd"),
        calls: &[],
        free: Free::Anybody,
        below: Held::Too,
    },
    Attempt {
        name: "find_anything_in_the_root",
        run: |_| any_entry(Path::new("/")),
        calls: &[],
        free: Free::Anybody,
        below: Held::Too,
    },
    Attempt {
        name: "climb_out_of_the_working_directory",
        run: |scene| {
            let path = scene.target.secret.display();
            secret(fs::read_to_string(format!("../../../../../../../../../..{path}")))
        },
        calls: &[],
        free: Free::Anybody,
        below: Held::Too,
    },
    Attempt {
        name: "climb_out_through_the_root_of_another_process",
        run: climb_out_through_proc,
        calls: &[],
        free: Free::Anybody,
        below: Held::Too,
    },
    Attempt {
        name: "climb_out_of_a_handed_directory",
        run: |scene| {
            let path = c"../secret";
            let directory = scene.handed(HANDED_DIRECTORY);
            let opened = call(libc::SYS_openat, &[directory, address(path), libc::O_RDONLY.into()]);
            opened.map(|descriptor| format!("the secret, as descriptor {descriptor}"))
        },
        calls: &[],
        free: Free::Anybody,
        below: Held::Too,
    },
    Attempt {
        name: "open_a_file_by_its_handle",
        run: |scene| {
            let file = scene.handed(HANDED_FILE);
            let handle = address(scene.handle);
            let opened = call(libc::SYS_open_by_handle_at, &[file, handle, libc::O_RDONLY.into()]);
            opened.map(|descriptor| format!("the secret, as descriptor {descriptor}"))
        },
        calls: &[libc::SYS_open_by_handle_at],
        free: Free::Root,
        below: Held::Too,
    },
    Attempt {
        name: "open_a_handed_file_for_writing",
        run: |scene| {
            let path = format!("/proc/self/fd/{}", scene.handed(HANDED_FILE));
            OpenOptions::new().write(true).open(&path).map(|_| path)
        },
        calls: &[],
        free: Free::Anybody,
        below: Held::Too,
    },
    Attempt {
        name: "write_a_file",
        run: write_a_file,
        calls: &[],
        free: Free::Anybody,
        below: Held::Too,
    },
    // Sockets.
    Attempt {
        name: "connect_over_ipv4",
        run: |scene| peer(TcpStream::connect(("127.0.0.1", scene.target.port))),
        calls: &[libc::SYS_socket],
        free: Free::Anybody,
        below: Held::Too,
    },
    Attempt {
        name: "connect_over_ipv6",
        run: |scene| peer(TcpStream::connect(("::1", scene.target.port_6.unwrap_or(1)))),
        calls: &[libc::SYS_socket],
        free: Free::Untried,
        below: Held::Too,
    },
    Attempt {
        name: "send_a_datagram",
        run: |scene| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(b"secret", ("127.0.0.1", scene.target.port))?;
            Ok("a way to the host".into())
        },
        calls: &[libc::SYS_socket],
        free: Free::Anybody,
        below: Held::Too,
    },
    Attempt {
        name: "connect_to_an_abstract_socket_of_the_host",
        run: |scene| {
            let name = SocketAddr::from_abstract_name(&scene.target.abstract_name)?;
            peer(UnixStream::connect_addr(&name))
        },
        calls: &[libc::SYS_socket],
        free: Free::Anybody,
        below: Held::Too,
    },
    Attempt {
        name: "connect_to_a_socket_file",
        run: |scene| peer(UnixStream::connect(&scene.target.socket)),
        calls: &[libc::SYS_socket],
        free: Free::Anybody,
        below: Held::Too,
    },
    Attempt {
        name: "send_from_a_pair_to_an_abstract_socket",
        run: |scene| {
            let (socket, _) = UnixDatagram::pair()?;
            let name = format!("{}-datagram", scene.target.abstract_name);
            socket.send_to_addr(b"secret", &SocketAddr::from_abstract_name(name)?)?;
            Ok("a way to the host".into())
        },
        calls: &[libc::SYS_sendto],
        free: Free::Anybody,
        below: Held::Too,
    },
    Attempt {
        // The address is in memory, where the filter cannot look.
        name: "send_a_message_from_a_pair_to_an_abstract_socket",
        run: |scene| {
            let (socket, _) = UnixDatagram::pair()?;
            let name = format!("{}-datagram", scene.target.abstract_name);
            let name = SocketAddrUnix::new_abstract_name(name.as_bytes())?;
            let nothing = &mut SendAncillaryBuffer::default();
            let text = [IoSlice::new(b"secret")];
            sendmsg_addr(&socket, &name, &text, nothing, SendFlags::empty())?;
            Ok("a way to the host".into())
        },
        calls: &[],
        free: Free::Anybody,
        below: Held::Too,
    },
    Attempt {
        name: "open_a_netlink_socket",
        run: |_| socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE),
        calls: &[libc::SYS_socket],
        free: Free::Anybody,
        below: Held::ByTheFilterAlone,
    },
    Attempt {
        name: "open_a_packet_socket",
        run: |_| socket(libc::AF_PACKET, libc::SOCK_RAW, 0),
        calls: &[libc::SYS_socket],
        free: Free::Root,
        below: Held::Too,
    },
    Attempt {
        name: "open_a_raw_socket",
        run: |_| socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
        calls: &[libc::SYS_socket],
        free: Free::Root,
        below: Held::Too,
    },
    Attempt {
        // No namespace holds these: they would lead to the host.
        name: "open_a_vsock_socket",
        run: |_| socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0),
        calls: &[libc::SYS_socket],
        free: Free::Untried,
        below: Held::ByTheFilterAlone,
    },
    Attempt {
        name: "turn_a_pair_of_another_family_into_a_socket",
        run: |_| {
            let mut pair = [0_i32; 2];
            let family = libc::AF_TIPC.into();
            let kind = libc::SOCK_STREAM.into();
            call(libc::SYS_socketpair, &[family, kind, 0, room(&mut pair)])?;
            Ok("a pair".into())
        },
        calls: &[libc::SYS_socketpair],
        free: Free::Untried,
        below: Held::ByTheFilterAlone,
    },
    // Other processes.
    Attempt {
        name: "list_processes",
        run: |_| any_entry(Path::new("/proc")),
        calls: &[],
        free: Free::Anybody,
        below: Held::Too,
    },
    Attempt {
        name: "find_another_process_by_its_number",
        run: find_another_process,
        calls: &[libc::SYS_kill],
        free: Free::Anybody,
        below: Held::Too,
    },
    Attempt {
        name: "signal_the_owner",
        run: |scene| got("the owner", call(libc::SYS_kill, &[scene.owner(), 0])),
        calls: &[libc::SYS_kill],
        free: Free::SameUser,
        below: Held::Too,
    },
    Attempt {
        name: "signal_a_thread_of_the_owner",
        run: |scene| got("it", call(libc::SYS_tgkill, &[scene.owner(), scene.owner(), 0])),
        calls: &[libc::SYS_tgkill],
        free: Free::SameUser,
        below: Held::Too,
    },
    Attempt {
        name: "hold_the_owner_by_a_descriptor",
        run: |scene| got("the owner", call(libc::SYS_pidfd_open, &[scene.owner(), 0])),
        calls: &[libc::SYS_pidfd_open],
        free: Free::Anybody,
        below: Held::Too,
    },
    Attempt {
        name: "trace_the_owner",
        run: |scene| {
            let request = libc::PTRACE_SEIZE.into();
            got("the owner", call(libc::SYS_ptrace, &[request, scene.owner(), 0, 0]))
        },
        calls: &[libc::SYS_ptrace],
        free: Free::Untried,
        below: Held::Too,
    },
    Attempt {
        name: "read_the_owner_s_memory",
        run: read_the_owner_s_memory,
        calls: &[libc::SYS_process_vm_readv],
        free: Free::Root,
        below: Held::Too,
    },
    Attempt {
        name: "live_on_without_the_keeper",
        run: |_| {
            let option = libc::PR_SET_PDEATHSIG.into();
            got("a life of its own", call(libc::SYS_prctl, &[option, 0]))
        },
        calls: &[libc::SYS_prctl],
        free: Free::Anybody,
        below: Held::ByTheFilterAlone,
    },
    // Programs.
    Attempt {
        name: "start_a_program",
        run: |_| {
            let nothing = [0_usize; 1];
            let program = address(c"/bin/true");
            got("it", call(libc::SYS_execve, &[program, address(&nothing), address(&nothing)]))
        },
        calls: &[libc::SYS_execve],
        free: Free::Untried,
        below: Held::Too,
    },
    Attempt {
        name: "start_a_program_from_memory",
        run: |_| {
            let memory = rustix::fs::memfd_create("program", rustix::fs::MemfdFlags::empty())?;
            let nothing = [0_usize; 1];
            let (file, here) = (memory.as_raw_fd().into(), address(c""));
            let list = address(&nothing);
            let flags = libc::AT_EMPTY_PATH.into();
            got("it", call(libc::SYS_execveat, &[file, here, list, list, flags]))
        },
        calls: &[libc::SYS_execveat],
        free: Free::Untried,
        below: Held::ByTheFilterAlone,
    },
    Attempt {
        name: "make_a_process",
        run: |_| child(call(libc::SYS_clone, &[libc::SIGCHLD.into()])),
        calls: &[libc::SYS_clone],
        free: Free::Anybody,
        below: Held::ByTheFilterAlone,
    },
    Attempt {
        name: "make_a_process_by_clone3",
        run: |_| {
            // struct clone_args, of which the fifth is the signal at its end.
            let mut arguments = [0_u64; 8];
            arguments[4] = 17;
            let size = 64;
            child(call(libc::SYS_clone3, &[address(&arguments), size]))
        },
        calls: &[],
        free: Free::Anybody,
        below: Held::ByTheFilterAlone,
    },
    Attempt {
        name: "map_memory_that_can_be_executed",
        run: |_| {
            let protection = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC).into();
            let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).into();
            got("it", call(libc::SYS_mmap, &[0, 4096, protection, flags, -1, 0]))
        },
        calls: &[libc::SYS_mmap],
        free: Free::Anybody,
        below: Held::ByTheFilterAlone,
    },
    Attempt {
        name: "make_memory_executable",
        run: |_| {
            let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).into();
            let page = call(libc::SYS_mmap, &[0, 4096, libc::PROT_READ.into(), flags, -1, 0])?;
            let protection = (libc::PROT_READ | libc::PROT_EXEC).into();
            got("it", call(libc::SYS_mprotect, &[page, 4096, protection]))
        },
        calls: &[libc::SYS_mprotect],
        free: Free::Anybody,
        below: Held::ByTheFilterAlone,
    },
    // Namespaces and mounts.
    Attempt {
        name: "make_a_user_namespace",
        run: |_| got("it", call(libc::SYS_unshare, &[libc::CLONE_NEWUSER.into()])),
        calls: &[libc::SYS_unshare],
        free: Free::Root,
        below: Held::Too,
    },
    Attempt {
        name: "make_a_network_namespace",
        run: |_| got("it", call(libc::SYS_unshare, &[libc::CLONE_NEWNET.into()])),
        calls: &[libc::SYS_unshare],
        free: Free::Root,
        below: Held::Too,
    },
    Attempt {
        name: "make_a_process_in_a_namespace",
        run: |_| {
            let flags = (libc::CLONE_NEWUSER | libc::SIGCHLD).into();
            child(call(libc::SYS_clone, &[flags]))
        },
        calls: &[libc::SYS_clone],
        free: Free::Root,
        below: Held::Too,
    },
    Attempt {
        name: "enter_a_handed_namespace",
        run: |scene| {
            let namespace = scene.handed(HANDED_NAMESPACE);
            got("the host's network", call(libc::SYS_setns, &[namespace, 0]))
        },
        calls: &[libc::SYS_setns],
        free: Free::Root,
        below: Held::Too,
    },
    Attempt {
        name: "mount_a_file_system",
        run: |_| {
            let kind = address(c"tmpfs");
            got("it", call(libc::SYS_mount, &[kind, address(c"/"), kind, 0, 0]))
        },
        calls: &[libc::SYS_mount],
        free: Free::Untried,
        below: Held::Too,
    },
    Attempt {
        name: "prepare_a_file_system",
        run: |_| got("it", call(libc::SYS_fsopen, &[address(c"tmpfs"), 0])),
        calls: &[libc::SYS_fsopen],
        free: Free::Root,
        below: Held::Too,
    },
    Attempt {
        name: "change_the_root",
        run: |_| got("it", call(libc::SYS_chroot, &[address(c"/")])),
        calls: &[libc::SYS_chroot],
        free: Free::Root,
        below: Held::Too,
    },
    // The kernel's larger doors.
    Attempt {
        name: "use_io_uring",
        run: |_| got("it", call(libc::SYS_io_uring_setup, &[1, room(&mut [0_u64; 15])])),
        calls: &[libc::SYS_io_uring_setup],
        free: Free::Untried,
        below: Held::ByTheFilterAlone,
    },
    Attempt {
        name: "use_bpf",
        run: |_| {
            // BPF_MAP_CREATE of an array of one.
            let attributes: [u32; 32] = std::array::from_fn(|index| match index {
                0 => 2,
                1 | 2 => 4,
                3 => 1,
                _ => 0,
            });
            got("it", call(libc::SYS_bpf, &[0, address(&attributes), 128]))
        },
        calls: &[libc::SYS_bpf],
        free: Free::Root,
        below: Held::ByTheFilterAlone,
    },
    Attempt {
        name: "use_userfaultfd",
        run: |_| got("it", call(libc::SYS_userfaultfd, &[1])),
        calls: &[libc::SYS_userfaultfd],
        free: Free::Untried,
        below: Held::ByTheFilterAlone,
    },
    Attempt {
        name: "use_performance_counters",
        run: |_| {
            let attributes = [0_u64; 16];
            got("it", call(libc::SYS_perf_event_open, &[address(&attributes), 0, -1, -1, 0]))
        },
        calls: &[libc::SYS_perf_event_open],
        free: Free::Untried,
        below: Held::ByTheFilterAlone,
    },
    Attempt {
        name: "use_the_key_store",
        run: |_| got("it", call(libc::SYS_keyctl, &[0, -4, 1])),
        calls: &[libc::SYS_keyctl],
        free: Free::Untried,
        below: Held::ByTheFilterAlone,
    },
    Attempt {
        name: "load_a_module",
        run: |_| got("it", call(libc::SYS_finit_module, &[-1, address(c""), 0])),
        calls: &[libc::SYS_finit_module],
        free: Free::Untried,
        below: Held::Too,
    },
    Attempt {
        name: "type_into_a_terminal",
        run: |_| {
            let request = c_long::try_from(libc::TIOCSTI).map_err(io::Error::other)?;
            got("it", call(libc::SYS_ioctl, &[2, request, address(c"x")]))
        },
        calls: &[libc::SYS_ioctl],
        free: Free::Untried,
        below: Held::Too,
    },
    Attempt {
        name: "make_itself_readable_to_debuggers",
        run: |_| {
            let option = libc::PR_SET_DUMPABLE.into();
            got("it", call(libc::SYS_prctl, &[option, 1]))
        },
        calls: &[libc::SYS_prctl],
        free: Free::Anybody,
        below: Held::ByTheFilterAlone,
    },
    // Rights and limits.
    Attempt {
        name: "become_root",
        run: |_| got("it", call(libc::SYS_setresuid, &[0, 0, 0])),
        calls: &[libc::SYS_setresuid],
        free: Free::Root,
        below: Held::Too,
    },
    Attempt {
        name: "take_capabilities_back",
        run: |_| {
            // Version 3 of the header, and one capability in each of the sets.
            let header = [0x2008_0522_u32, 0];
            let sets = [1_u32, 1, 1, 0, 0, 0];
            got("them", call(libc::SYS_capset, &[address(&header), address(&sets)]))
        },
        calls: &[libc::SYS_capset],
        free: Free::Root,
        below: Held::Too,
    },
    Attempt {
        name: "raise_a_limit",
        run: |_| {
            let unlimited = [u64::MAX; 2];
            let resource = libc::RLIMIT_FSIZE.into();
            got("it", call(libc::SYS_prlimit64, &[0, resource, address(&unlimited), 0]))
        },
        calls: &[libc::SYS_prlimit64],
        free: Free::Anybody,
        below: Held::Too,
    },
    Attempt {
        name: "make_a_larger_file_than_it_needs",
        run: |_| {
            let memory = rustix::fs::memfd_create("large", rustix::fs::MemfdFlags::empty())?;
            rustix::fs::ftruncate(&memory, 1 << 30)?;
            Ok("a gigabyte".into())
        },
        calls: &[],
        free: Free::Anybody,
        below: Held::Too,
    },
    Attempt {
        name: "take_more_address_space_than_it_needs",
        run: |_| {
            let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE).into();
            got("it", call(libc::SYS_mmap, &[0, 8 << 30, libc::PROT_READ.into(), flags, -1, 0]))
        },
        calls: &[],
        free: Free::Anybody,
        below: Held::Too,
    },
    Attempt {
        name: "take_more_descriptors_than_it_needs",
        run: |_| {
            let mut taken = Vec::new();
            for _ in 0..50_000 {
                taken.push(rustix::io::dup(rustix::stdio::stderr())?);
            }
            Ok(format!("{} of them", taken.len()))
        },
        calls: &[],
        free: Free::Untried,
        below: Held::Too,
    },
    #[cfg(target_arch = "x86_64")]
    Attempt {
        // The same calls under other numbers.
        name: "make_a_call_of_the_x32_interface",
        run: |_| got("it", call(0x4000_0000 | libc::SYS_getpid, &[])),
        calls: &[0x4000_0000 | libc::SYS_getpid],
        free: Free::Untried,
        below: Held::ByTheFilterAlone,
    },
];

/// Does what the orders name, and returns the status to end with.
pub(crate) fn act(
    name: &str,
    target: &Target,
    means: &Means,
    handed: &[OwnedFd],
    owner: &mut Owner,
) -> Result<u8, Failed> {
    let Some(attempt) = ATTEMPTS.iter().find(|attempt| attempt.name == name) else {
        return life::act(name, owner);
    };
    let scene = Scene { target, handed, handle: &means.handle };
    let found: Found = (attempt.run)(&scene).map_err(|error| error.to_string());
    owner.report(&found)?;
    Ok(0)
}

impl Scene<'_> {
    fn handed(&self, index: usize) -> c_long {
        self.handed[index].as_raw_fd().into()
    }

    fn owner(&self) -> c_long {
        self.target.owner.into()
    }
}

fn got(what: &str, result: io::Result<c_long>) -> io::Result<String> {
    result.map(|_| what.to_owned())
}

fn secret(text: io::Result<String>) -> io::Result<String> {
    let text = text?;
    assert_eq!(text, SECRET);
    Ok(text)
}

fn any_entry(directory: &Path) -> io::Result<String> {
    let first = fs::read_dir(directory)?.next().ok_or(io::ErrorKind::NotFound)??;
    Ok(first.path().display().to_string())
}

fn peer<T>(connected: io::Result<T>) -> io::Result<String> {
    connected.map(|_| "a connection".to_owned())
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<String> {
    got("a socket", call(libc::SYS_socket, &[family.into(), kind.into(), protocol.into()]))
}

/// Of a call that returns twice. The child is gone at once.
fn child(made: io::Result<c_long>) -> io::Result<String> {
    match made? {
        0 => {
            // SAFETY: _exit(2) has no preconditions.
            unsafe { libc::_exit(0) }
        }
        pid => Ok(format!("process {pid}")),
    }
}

fn climb_out_through_proc(scene: &Scene<'_>) -> io::Result<String> {
    let others = (1..400).chain([scene.target.owner]);
    let roots = others.map(|pid| pid.to_string()).chain(["self".into(), "thread-self".into()]);
    for root in roots {
        let path = format!("/proc/{root}/root{}", scene.target.secret.display());
        if let Ok(text) = fs::read_to_string(path) {
            return secret(Ok(text));
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

fn write_a_file(scene: &Scene<'_>) -> io::Result<String> {
    let directories = [scene.target.home.as_path()]
        .into_iter()
        .chain(["/tmp", "/var/tmp", "/dev/shm", "/", "."].map(Path::new));
    let mut last = io::ErrorKind::NotFound.into();
    for directory in directories {
        let path = directory.join("written-by-a-monitor");
        match File::create_new(&path) {
            Ok(_) => {
                fs::remove_file(&path)?;
                return Ok(path.display().to_string());
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn find_another_process(_: &Scene<'_>) -> io::Result<String> {
    let own = c_long::from(std::process::id());
    for pid in (1..70_000).filter(|pid| *pid != own) {
        match call(libc::SYS_kill, &[pid, 0]) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            // That it may not be signalled says that it is there.
            _ => return Ok(format!("process {pid}")),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ESRCH))
}

fn read_the_owner_s_memory(scene: &Scene<'_>) -> io::Result<String> {
    let mut bytes = [0_u8; 8];
    let local = [room(&mut bytes), 8];
    // Nothing is there; but the kernel says so only to who may read.
    let remote = [8 as c_long, 8];
    let (local, remote) = (address(&local), address(&remote));
    match call(libc::SYS_process_vm_readv, &[scene.owner(), local, 1, remote, 1, 0]) {
        Err(error) if error.raw_os_error() != Some(libc::EFAULT) => Err(error),
        _ => Ok("the right to".into()),
    }
}

/// What open_by_handle_at(2) takes: `struct file_handle`, with room for any file system's.
#[repr(C)]
pub(crate) struct Handle {
    bytes: u32,
    kind: i32,
    handle: [u8; 128],
}

impl Handle {
    fn of(path: &Path) -> Result<Self, Failed> {
        let mut handle = Self { bytes: 128, kind: 0, handle: [0; 128] };
        let path = CString::new(path.as_os_str().as_encoded_bytes())?;
        let mut mount = 0_i32;
        let here = libc::AT_FDCWD.into();
        let (file, mount) = (address(path.as_c_str()), room(&mut mount));
        call(libc::SYS_name_to_handle_at, &[here, file, room(&mut handle), mount, 0])?;
        Ok(handle)
    }
}
