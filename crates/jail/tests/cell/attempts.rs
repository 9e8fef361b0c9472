//! What the payload tries.

use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::PathBuf;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use rustix::process::{Pid, Signal, chdir, chroot, kill_process};
use rustix::thread::set_thread_res_uid;
use serde::{Deserialize, Serialize};

/// Where there is something to find.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Target {
    secret: PathBuf,
    port: u16,
    abstract_name: String,
    owner: u32,
}

/// What is there while it lives.
pub(crate) struct Prey {
    pub(crate) target: Target,
    _directory: tempfile::TempDir,
    _servers: (TcpListener, UnixListener),
}

const SECRET: &str = "the combination is 1-2-3-4-5";

impl Prey {
    pub(crate) fn plant() -> io::Result<Self> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let directory = tempfile::tempdir_in("/tmp")?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777))?;
        let secret = directory.path().join("secret");
        fs::write(&secret, SECRET)?;
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o666))?;
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let abstract_name = format!("cell-{}-{number}", std::process::id());
        let unix = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&abstract_name)?)?;
        let port = tcp.local_addr()?.port();
        let target = Target { secret, port, abstract_name, owner: std::process::id() };
        Ok(Self { target, _directory: directory, _servers: (tcp, unix) })
    }
}

type Attempt = fn(&Target, &str) -> io::Result<String>;

/// By name, and whether root can do it without a cell and without harm. The second argument is
/// where the system is.
pub(crate) const ATTEMPTS: &[(&str, bool, Attempt)] = &[
    ("reads_the_home", true, |target, _| fs::read_to_string(&target.secret)),
    ("reads_the_home_from_above", true, |target, _| {
        // The way out of a chroot that is no more than that.
        let below = target.secret.with_file_name("below");
        fs::create_dir_all(&below)?;
        chroot(&below)?;
        for _ in 0..20 {
            chdir("..")?;
        }
        chroot(".")?;
        fs::read_to_string(&target.secret)
    }),
    ("reads_passwords", true, |_, system| fs::read_to_string(format!("{system}/etc/shadow"))),
    ("sees_other_processes", true, |_, _| {
        let is_other = |name: &str| name.parse::<u32>().is_ok_and(|pid| pid != std::process::id());
        let names = fs::read_dir("/proc")?.flatten().map(|entry| entry.file_name());
        let other = names.filter_map(|name| name.into_string().ok()).find(|name| is_other(name));
        other.ok_or_else(|| io::ErrorKind::NotFound.into())
    }),
    ("sees_the_host_s_processes_below_its_own", false, |target, _| {
        while unmount("/proc", UnmountFlags::DETACH).is_ok() {}
        fs::read_to_string(format!("/proc/{}/cmdline", target.owner))
    }),
    ("sees_the_host_s_files_below_its_own", false, |_, system| {
        unmount(format!("{system}/etc/passwd"), UnmountFlags::DETACH)?;
        while unmount("/", UnmountFlags::DETACH).is_ok() {}
        fs::read_to_string("/etc/hostname")
    }),
    ("writes_system_directories", false, |_, system| {
        let path = format!("{system}/usr");
        // Whether it may write is another question: the mount is not to become writable.
        mount_remount(&path, MountFlags::BIND, "")?;
        Ok(path)
    }),
    ("has_set_user_id_programs", false, |_, system| {
        let path = format!("{system}/usr");
        mount_remount(&path, MountFlags::BIND | MountFlags::RDONLY, "")?;
        Ok(path)
    }),
    ("mounts_a_disk", false, |_, _| {
        mount("/dev/vda", "/proc", "ext4", MountFlags::RDONLY, None)?;
        fs::read_to_string("/proc/etc/hostname")
    }),
    ("opens_a_device_of_its_own", true, |_, _| {
        // /dev/kmsg: harmless, and on every host.
        let path = format!("/tmp-device-{}", std::process::id());
        mknodat(
            CWD,
            path.as_str(),
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            rustix::fs::makedev(1, 11),
        )?;
        let opened = fs::File::open(&path);
        fs::remove_file(&path)?;
        opened.map(|_| path)
    }),
    ("connects_to_a_server", true, |target, _| {
        TcpStream::connect(("127.0.0.1", target.port)).map(|_| "a connection".into())
    }),
    ("connects_to_an_abstract_socket", true, |target, _| {
        let address = SocketAddr::from_abstract_name(&target.abstract_name)?;
        UnixStream::connect_addr(&address).map(|_| "a connection".into())
    }),
    ("signals_its_owner", true, |target, _| {
        let owner = Pid::from_raw(target.owner.cast_signed()).ok_or(io::ErrorKind::NotFound)?;
        kill_process(owner, Signal::CONT)?;
        Ok("the owner".into())
    }),
    ("becomes_another_user", true, |_, _| {
        let somebody = rustix::fs::Uid::from_raw(70_000);
        set_thread_res_uid(somebody, somebody, somebody)?;
        Ok("70000".into())
    }),
    ("changes_a_setting_of_the_kernel", true, |_, _| {
        let path = "/proc/sys/kernel/core_pattern";
        let now = fs::read_to_string(path)?;
        fs::write(path, &now)?;
        Ok(now)
    }),
    ("sets_the_clock", true, |_, _| {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        rustix::time::clock_settime(rustix::time::ClockId::Realtime, now)?;
        Ok("the time".into())
    }),
];
