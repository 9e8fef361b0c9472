//! What a task sees as its file system.
//!
//! A template mount namespace is made once: the guest root as `/`, with a `/dev` and a `/sys` that
//! all tasks can share. Each task gets a copy of it (one system call) and mounts in the copy only
//! what must be its own: `/proc`, `/tmp`, `/dev/shm`, `/dev/pts` and its view of its cgroup.
//!
//! The namespaces are owned by the initial user namespace, not by the task's: uid 0 of a task has
//! no right over them, whatever capabilities it keeps. Since that uid 0 is also the owner of every
//! file in `/proc` and `/sys`, both are read-only as mounts, which no owner can change; paths of
//! them need not be known and masked one by one, so a kernel with more features opens none.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid, chownat, mkdir, mknodat, open, symlink};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsmount, fsopen, mount, mount_change,
    mount_remount, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, chroot, fchdir, pivot_root, umask};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use wire::op::OpError;

use super::Settings;
use super::error::{During, SetupError};
use super::landlock::Rules;
use crate::Kernel;

/// The only devices of a task: none keeps state that another task could see.
const DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// Where the agent keeps what tasks are to find in their `/proc`: it is the template's `/proc`.
const FACTS: &str = "/run/sandforge/facts";
const BOOT_ID: &str = "boot_id";
const KERNEL_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

const NOTHING: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// The mount namespace that each task's is a copy of.
#[derive(Debug)]
pub(super) struct Template {
    namespace: OwnedFd,
    /// What tasks read for the kernel's boot id, in a guest.
    boot_id: Option<File>,
    kernel: Kernel,
    /// Of the file systems in memory that each task gets.
    memory: CString,
}

impl AsRawFd for Template {
    fn as_raw_fd(&self) -> RawFd {
        self.namespace.as_raw_fd()
    }
}

impl Template {
    /// Makes it from the guest root, and the Landlock rules that hold in it. The agent is back in
    /// its own namespace afterwards.
    pub(super) fn make(settings: &Settings<'_>) -> Result<(Self, Rules), SetupError> {
        let boot_id = match settings.kernel {
            Kernel::Own => Some(own_boot_id().during("lay the boot id out")?),
            Kernel::Shared => None,
        };
        let own = namespace_of_self()?;
        let namespaces = open(
            "/proc/self/ns",
            OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY,
            Mode::empty(),
        )
        .during("open /proc/self/ns")?;

        // SAFETY: the agent has one thread, and no descriptor table is unshared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.during("make the template's namespace")?;
        let built = build(settings.root, settings.kernel).and_then(|rules| {
            mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)
                .during("let tasks see what is mounted later")?;
            Ok(rules)
        });
        let namespace =
            rustix::fs::openat(&namespaces, "mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .during("open the template's namespace");
        enter(&own).during("return to the agent's namespace")?;
        let memory = match settings.kernel {
            // By default half of the guest's memory, which is not all there is to the host.
            Kernel::Own => "mode=1777".to_owned(),
            Kernel::Shared => format!("mode=1777,size={}", settings.memory_bytes / 2),
        };
        let memory = CString::new(memory).expect("digits");
        let kernel = settings.kernel;
        Ok((Self { namespace: namespace?, boot_id, kernel, memory }, built?))
    }

    /// Draws another boot id for tasks, also for those that have their copy of this.
    pub(super) fn set_boot_id(&self) -> io::Result<()> {
        let Some(file) = &self.boot_id else { return Ok(()) };
        // As long as the one before, so there is never half of one.
        file.write_all_at(format!("{}\n", crate::freshen::uuid()?).as_bytes(), 0)
    }

    /// Runs `change` with the template's root as `/`. Copies that were made before are not changed
    /// where it mounts something.
    pub(super) fn visit<T>(
        &self,
        change: impl FnOnce() -> Result<T, OpError>,
    ) -> Result<T, OpError> {
        let own = namespace_of_self().map_err(|error| error.to_op_error())?;
        enter(&self.namespace)
            .during("enter the template's namespace")
            .map_err(|error| error.to_op_error())?;
        let changed = change();
        enter(&own)
            .during("return to the agent's namespace")
            .map_err(|error| error.to_op_error())?;
        changed
    }

    /// In a task's init: enters a copy of the template and mounts what is the task's own. The
    /// cgroup namespace is made here too, since it starts at the cgroup that one is in.
    pub(super) fn enter_copy(&self) -> Result<(), SetupError> {
        enter(&self.namespace).during("enter the template's namespace")?;
        // SAFETY: the task's init has one thread, and no descriptor table is unshared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWCGROUP) }
            .during("copy the template's namespace")?;
        // What is mounted there later comes along; nothing of a task's own goes back.
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
            .during("cut the task's mounts off from the template")?;
        match self.kernel {
            Kernel::Own => own_proc().during("mount /proc")?,
            Kernel::Shared => replace_proc().during("mount /proc")?,
        }
        fresh("tmpfs", "/tmp", MountFlags::NOSUID | MountFlags::NODEV, Some(&self.memory))
            .during("mount /tmp")?;
        fresh("tmpfs", "/dev/shm", NOTHING, Some(&self.memory)).during("mount /dev/shm")?;
        let terminals = MountFlags::NOSUID | MountFlags::NOEXEC;
        // The kernel's count of terminals is one for all: no task may use it up.
        let options = c"gid=5,mode=620,ptmxmode=666,max=256";
        fresh("devpts", "/dev/pts", terminals, Some(options)).during("mount /dev/pts")?;
        if self.kernel == Kernel::Shared {
            return Ok(());
        }
        // Language runtimes size their heaps by what they find here.
        fresh("cgroup2", "/sys/fs/cgroup", NOTHING | MountFlags::RDONLY, None)
            .during("mount /sys/fs/cgroup")
    }
}

/// Makes /proc read-only once the uid maps, which are files in it, are written.
pub(super) fn seal_proc() -> Result<(), SetupError> {
    mount_remount("/proc", MountFlags::BIND | MountFlags::RDONLY | NOTHING, "")
        .during("make /proc read-only")
}

fn build(root: &Path, kernel: Kernel) -> Result<Rules, SetupError> {
    // Read, and taken, while they are there.
    let mounts = mount_points()?;
    let taken = Taken::take(kernel)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .during("cut the template off from the agent's mounts")?;
    let tree = clone(root, OpenTreeFlags::AT_RECURSIVE).during("take the sandbox's root")?;
    let facts = match kernel {
        Kernel::Own => Some(clone(FACTS, OpenTreeFlags::empty()).during("take the boot id")?),
        Kernel::Shared => None,
    };
    match kernel {
        Kernel::Own => cover_root(&tree, &mounts)?,
        Kernel::Shared => change_root(&tree).during("change to the sandbox's root")?,
    }
    chdir("/").during("enter the sandbox's root")?;

    mount_remount("/", MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV, "")
        .during("make the sandbox's root nosuid and nodev")?;
    for directory in ["/dev", "/sys", "/proc", "/tmp"] {
        directory_at(directory, 0o755).during("make a mount point in the sandbox's root")?;
    }
    if let Some(facts) = facts {
        // Each task's own /proc covers it.
        attach(&facts, "/proc")
            .and_then(|()| {
                mount_remount("/proc", MountFlags::BIND | MountFlags::RDONLY | NOTHING, "")
            })
            .during("show the boot id")?;
    }
    let mask = umask(Mode::empty());
    let made = devices(&taken);
    umask(mask);
    made?;
    match &taken.processes {
        // The host's kernel has much in /sys that is nobody's business.
        Some(processes) => attach(processes, "/proc").during("mount /proc in the template")?,
        None => {
            fresh("sysfs", "/sys", NOTHING | MountFlags::RDONLY, None).during("mount /sys")?;
        }
    }
    Rules::make()
}

/// What the host's kernel does not let the agent make, but have again.
#[derive(Debug, Default)]
struct Taken {
    devices: Vec<OwnedFd>,
    /// A `/proc` of the agent's. The kernel lets a task's init mount its own only where there is
    /// one in sight (fs/namespace.c, `mnt_already_visible`).
    processes: Option<OwnedFd>,
}

impl Taken {
    fn take(kernel: Kernel) -> Result<Self, SetupError> {
        if kernel == Kernel::Own {
            return Ok(Self::default());
        }
        let devices = DEVICES.iter().map(|(path, ..)| clone(*path, OpenTreeFlags::empty()));
        let devices = devices.collect::<rustix::io::Result<_>>().during("take the devices")?;
        let processes = Some(detached_proc().during("make the template's /proc")?);
        Ok(Self { devices, processes })
    }
}

/// For a root that cannot be moved away.
fn cover_root(tree: &OwnedFd, mounts: &[Vec<u8>]) -> Result<(), SetupError> {
    // What the agent has mounted would otherwise be copied into each task, out of reach of its
    // paths but not out of the kernel's way. Children come after their parents in the list.
    for point in mounts.iter().rev().filter(|point| point.as_slice() != b"/") {
        match unmount(point.as_slice(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // It went with a mount that covered or held it.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(error).during("detach the agent's mounts"),
        }
    }

    // pivot_root refuses to move an initramfs away. Mounted exactly on "/" the guest root hides
    // it just as well: ".." stops at the lowest of the mounts that are stacked there.
    attach(tree, "/").during("mount the guest root on /")?;
    fchdir(tree).during("enter the guest root")?;
    chroot(".").during("make the guest root the root")
}

fn change_root(tree: &OwnedFd) -> rustix::io::Result<()> {
    attach(tree, "/")?;
    fchdir(tree)?;
    // The old root is mounted over the new one afterwards (pivot_root(2)).
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)
}

fn devices(taken: &Taken) -> Result<(), SetupError> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    fresh("tmpfs", "/dev", flags, Some(c"mode=755,size=64k")).during("mount /dev")?;
    for ((path, ..), device) in DEVICES.iter().zip(&taken.devices) {
        mknodat(CWD, *path, FileType::RegularFile, Mode::empty(), 0)
            .and_then(|()| attach(device, path))
            .during("have the host's devices")?;
    }
    if taken.devices.is_empty() {
        make_devices()?;
    }
    for (target, path) in LINKS {
        symlink(target, path).during("make the links in /dev")?;
    }
    for directory in ["/dev/pts", "/dev/shm"] {
        directory_at(directory, 0o755).during("make the mount points in /dev")?;
    }
    // Shared by all tasks, so none may write names into it. Devices stay writable.
    mount_remount("/dev", MountFlags::BIND | MountFlags::RDONLY | flags, "")
        .during("make /dev read-only")
}

fn make_devices() -> Result<(), SetupError> {
    for (path, major, minor) in DEVICES {
        let device = rustix::fs::makedev(major, minor);
        mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), device)
            .during("make the devices")?;
    }
    let tty = Gid::from_raw(5);
    chownat(CWD, "/dev/tty", Some(Uid::ROOT), Some(tty), rustix::fs::AtFlags::empty())
        .during("give /dev/tty to its group")
}

/// Writes the boot id, as the kernel tells it, where it can be changed.
fn own_boot_id() -> io::Result<File> {
    fs::create_dir_all(FACTS)?;
    let path = Path::new(FACTS).join(BOOT_ID);
    let mut file = File::options().write(true).create_new(true).mode(0o444).open(path)?;
    file.write_all(&fs::read(KERNEL_BOOT_ID)?)?;
    Ok(file)
}

/// The task's own `/proc`, which says of the machine what the template says.
fn own_proc() -> rustix::io::Result<()> {
    let boot_id = clone(Path::new("/proc").join(BOOT_ID), OpenTreeFlags::empty())?;
    fresh("proc", "/proc", NOTHING, None)?;
    attach(&boot_id, KERNEL_BOOT_ID)
}

/// The task's own `/proc` in the place of the template's, which it is not to find below.
fn replace_proc() -> rustix::io::Result<()> {
    let processes = detached_proc()?;
    unmount("/proc", UnmountFlags::DETACH)?;
    attach(&processes, "/proc")
}

fn detached_proc() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn clone(path: impl rustix::path::Arg, flags: OpenTreeFlags) -> rustix::io::Result<OwnedFd> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, path, flags | clone)
}

fn attach(tree: &OwnedFd, at: &str) -> rustix::io::Result<()> {
    move_mount(tree, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn fresh(
    kind: &str,
    target: &str,
    flags: MountFlags,
    options: Option<&CStr>,
) -> rustix::io::Result<()> {
    mount(kind, target, kind, flags, options)
}

fn directory_at(path: &str, mode: u32) -> rustix::io::Result<()> {
    match mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

fn namespace_of_self() -> Result<OwnedFd, SetupError> {
    open("/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .during("open /proc/self/ns/mnt")
}

fn enter(namespace: &OwnedFd) -> rustix::io::Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
}

fn mount_points() -> Result<Vec<Vec<u8>>, SetupError> {
    let text = std::fs::read("/proc/self/mountinfo").during("read /proc/self/mountinfo")?;
    Ok(text
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescape)
        .collect())
}

/// mountinfo writes space, tab, newline and backslash as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_escapes_are_undone() {
        assert_eq!(unescape(b"/a\\040b\\134c"), b"/a b\\c");
        assert_eq!(unescape(b"/a\\9"), b"/a\\9");
    }
}
