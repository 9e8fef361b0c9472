//! What a cell sees of the host's files: the directories that programs come from, and devices that
//! keep no state. Never what belongs to somebody: `/home`, `/root`, `/var`, `/run`, `/srv`,
//! `/mnt`, `/media` and the host's `/proc`, `/sys` and `/dev`.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount,
    open_tree,
};
use rustix::process::umask;
use rustix::thread::UnshareFlags;

use super::Cover;
use super::ids::Ids;
use crate::record::Record;
use crate::{JailError, root, step};

/// Where distributions keep programs, libraries and their settings.
const DIRECTORIES: [&str; 11] = [
    "usr",
    "bin",
    "sbin",
    "lib",
    "lib32",
    "lib64",
    "libx32",
    "etc",
    "opt",
    "nix/store",
    "gnu/store",
];
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Directories of the cell's own, with their modes.
const OWN: [(&str, u32); 9] = [
    ("dev", 0o755),
    ("proc", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("run", 0o755),
    ("root", 0o700),
    ("home", 0o755),
    ("var", 0o755),
    ("var/tmp", 0o1777),
];
/// For the inner process's own root, which has mount points and the covers.
const ROOT_BYTES: u64 = 1 << 20;

const READ_ONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NODEV);
const DEVICE: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);
const NO_DEVICES: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV);

/// In the keeper, as root: makes the directories read-only where they are, in a namespace of its
/// own, so that the inner process finds them so.
pub(super) fn lock(record: &mut Record, ids: &Ids) -> Result<(), JailError> {
    if ids.are_mapped_by_root() {
        step("lock the system directories", lock_in_place())?;
        record.holds("system directories that not even its own root can make writable");
    } else {
        record.lacks(
            "system directories locked as read-only",
            "only root can lock them; what keeps the agent, not its tasks, from writing is that \
             it owns none of their files",
        );
    }
    record.done("system directories");
    Ok(())
}

fn lock_in_place() -> io::Result<()> {
    // SAFETY: this splits neither the descriptor table nor the memory of the one thread there is.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    for name in DIRECTORIES {
        let path = Path::new("/").join(name);
        if let Some(Place::Tree(tree)) = Place::of(&path)? {
            attach(&tree, &path)?;
        }
    }
    Ok(())
}

/// What a name of the host's is in the cell.
#[derive(Debug)]
enum Place {
    /// The same link: `bin` is one into `usr` on most hosts.
    Link(PathBuf),
    /// A read-only view.
    Tree(OwnedFd),
}

impl Place {
    fn of(path: &Path) -> io::Result<Option<Self>> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(metadata) if metadata.is_symlink() => Ok(Some(Self::Link(fs::read_link(path)?))),
            Ok(metadata) if metadata.is_dir() => {
                let tree = clone(path, OpenTreeFlags::AT_RECURSIVE)?;
                set_attributes(&tree, READ_ONLY, libc::AT_RECURSIVE)?;
                Ok(Some(Self::Tree(tree)))
            }
            Ok(_) => Ok(None),
        }
    }
}

/// What a cell is laid out from, attached nowhere yet.
#[derive(Debug)]
pub(super) struct Taken {
    places: Vec<(&'static str, Place)>,
    devices: Vec<(&'static str, OwnedFd)>,
    processes: OwnedFd,
    /// The root of the inner process.
    root: OwnedFd,
    /// The root of the system.
    files: OwnedFd,
}

/// Takes it, while the host's root is there.
pub(super) fn take(bytes: u64) -> io::Result<Taken> {
    let mut places = Vec::new();
    for name in DIRECTORIES {
        places.extend(Place::of(&Path::new("/").join(name))?.map(|place| (name, place)));
    }
    let mut devices = Vec::new();
    for name in DEVICES {
        let device = clone(&Path::new("/dev").join(name), OpenTreeFlags::empty())?;
        set_attributes(&device, DEVICE, 0)?;
        devices.push((name, device));
    }
    // The kernel makes one only where another is in sight, whole (fs/namespace.c,
    // mnt_already_visible): so now or never.
    let processes = fresh("proc", &[], NO_DEVICES | MountAttrFlags::MOUNT_ATTR_NOEXEC)?;
    Ok(Taken { places, devices, processes, root: memory(ROOT_BYTES)?, files: memory(bytes)? })
}

/// Leaves the host's root for the inner process's own.
pub(super) fn leave(taken: &Taken) -> io::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    match root::change_to(&taken.root)? {
        root::Old::Detached => Ok(()),
        root::Old::Covered => {
            Err(io::Error::other("the host runs from its initramfs, which cannot be left for good"))
        }
    }
}

/// Lays the inner process's root out, and below it, at `at`, that of the system.
pub(super) fn lay_out(taken: Taken, at: &Path, covers: &[Cover]) -> io::Result<()> {
    let mask = umask(Mode::empty());
    let Taken { places, devices, processes, files, .. } = taken;
    fs::create_dir("/proc")?;
    attach(&processes, Path::new("/proc"))?;
    fs::create_dir("/dev")?;
    for (name, device) in devices {
        let path = Path::new("/dev").join(name);
        fs::File::create_new(&path)?;
        attach(&device, &path)?;
    }
    fs::create_dir_all(at)?;
    attach(&files, at)?;
    for (name, mode) in OWN {
        rustix::fs::mkdir(at.join(name), Mode::from_raw_mode(mode))?;
    }
    for (name, place) in places {
        let path = at.join(name);
        match place {
            Place::Link(target) => std::os::unix::fs::symlink(target, path)?,
            Place::Tree(tree) => {
                fs::create_dir_all(&path)?;
                attach(&tree, &path)?;
            }
        }
    }
    fs::create_dir("/covers")?;
    for (number, file) in covers.iter().enumerate() {
        cover(&at.join(file.path), &Path::new("/covers").join(number.to_string()), file.contents)?;
    }
    umask(mask);
    Ok(())
}

/// A link in its place leads to a file that is not there, or to one that is covered itself.
fn cover(path: &Path, by: &Path, contents: &str) -> io::Result<()> {
    if !fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file()) {
        return Ok(());
    }
    fs::write(by, contents)?;
    rustix::fs::chmod(by, Mode::from_raw_mode(0o444))?;
    let file = clone(by, OpenTreeFlags::empty())?;
    set_attributes(&file, READ_ONLY | MountAttrFlags::MOUNT_ATTR_NOEXEC, 0)?;
    attach(&file, path)
}

fn memory(bytes: u64) -> io::Result<OwnedFd> {
    fresh("tmpfs", &[("size", &bytes.to_string()), ("mode", "755")], NO_DEVICES)
}

fn fresh(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (option, value) in options {
        fsconfig_set_string(&context, *option, *value)?;
    }
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn clone(path: &Path, flags: OpenTreeFlags) -> io::Result<OwnedFd> {
    let flags = flags | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let name = || path.display().to_string();
    open_tree(CWD, path, flags).map_err(|error| io::Error::other(format!("{}: {error}", name())))
}

fn attach(tree: &OwnedFd, at: &Path) -> io::Result<()> {
    Ok(move_mount(tree, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// mount_setattr(2): the one call that makes a whole tree read-only.
fn set_attributes(
    tree: &OwnedFd,
    attributes: MountAttrFlags,
    recursive: libc::c_int,
) -> io::Result<()> {
    let (tree, empty): (BorrowedFd<'_>, &CStr) = (tree.as_fd(), c"");
    let attributes = libc::mount_attr {
        attr_set: attributes.bits().into(),
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: both pointers are to values that outlive the call, and the size is the second's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            empty.as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
