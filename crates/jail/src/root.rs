//! An empty root.

use std::os::fd::OwnedFd;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, unmount,
};
use rustix::process::{chdir, chroot, fchdir, pivot_root};

use crate::record::Record;
use crate::{JailError, step};

/// Leaves the host's root for one that has nothing in it and takes nothing in.
pub(crate) fn leave(record: &mut Record) -> Result<(), JailError> {
    match step("change to an empty root", change())? {
        Old::Detached => record.holds("empty, read-only root; the old one is detached"),
        Old::Covered => {
            record.holds("empty, read-only root");
            record.lacks("detached old root", "the host runs from its initramfs, which stays");
        }
    }
    record.done("empty root");
    Ok(())
}

/// What became of the root that was left.
pub(crate) enum Old {
    /// It is gone from sight and from memory.
    Detached,
    /// It lies below the new root, where no path leads.
    Covered,
}

fn change() -> rustix::io::Result<Old> {
    // What is mounted from here on is not seen by the host.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // The one inode is the root directory's, which nobody may look into.
    for (option, value) in [("nr_inodes", "1"), ("size", "4k"), ("mode", "000")] {
        fsconfig_set_string(&context, option, value)?;
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    change_to(&fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Makes a mount that is attached nowhere the root.
pub(crate) fn change_to(root: &OwnedFd) -> rustix::io::Result<Old> {
    move_mount(root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    fchdir(root)?;
    let old = match pivot_root(".", ".") {
        Ok(()) => {
            // It is mounted over the new root now (pivot_root(2), "pivot_root(".", ".")").
            unmount(".", UnmountFlags::DETACH)?;
            Old::Detached
        }
        // An initramfs cannot be moved away.
        Err(Errno::INVAL) => {
            chroot(".")?;
            Old::Covered
        }
        Err(error) => return Err(error),
    };
    chdir("/")?;
    Ok(old)
}
