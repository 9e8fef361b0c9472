//! Volumes: disks that outlive the sandbox.
//!
//! What is on such a disk may have been written by a sandbox that was nobody's friend. It is this
//! machine's kernel alone that reads it.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};
use wire::op::{ErrorCode, MountVolume, OpError, USER, VolumeAccess};

use crate::share::mount::{self, Target};
use crate::task::Sandbox;
use crate::{Kernel, boot};

/// What each disk of a volume is called, and a number.
const DISK: &str = "volume";
/// Where volumes are that lie below something.
const LOWER: &str = "/run/sandforge/volumes";

/// `_IOWR('X', 119, int)` of `linux/fs.h`.
const FIFREEZE: u64 = 3 << 30 | 4 << 16 | (b'X' as u64) << 8 | 119;

/// The volumes of the sandbox.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    paths: Vec<Vec<u8>>,
    /// The roots of those that are written to.
    written: Vec<OwnedFd>,
}

fn failed<'a>(step: &'a str) -> impl Fn(io::Error) -> OpError + 'a {
    move |error| OpError::new(ErrorCode::Failed, format!("could not {step}: {error}"))
}

impl Volumes {
    /// Mounts one.
    ///
    /// # Errors
    /// `Unsupported` on the host's kernel, `Exists` where one is there already; otherwise with the
    /// step that failed.
    pub(crate) fn mount(
        &mut self,
        request: &MountVolume,
        sandbox: &mut Sandbox,
    ) -> Result<(), OpError> {
        if sandbox.kernel() == Kernel::Shared {
            let message = "only a sandbox with a kernel of its own can have a volume";
            return Err(OpError::new(ErrorCode::Unsupported, message));
        }
        if !request.disk.starts_with(DISK) {
            let message = format!("the disk {:?} holds no volume", request.disk);
            return Err(OpError::new(ErrorCode::Invalid, message));
        }
        let target = Target::parse(request.path.as_bytes())?;
        if self.paths.iter().any(|path| target.touches(path)) {
            let message = "one volume cannot lie in another";
            return Err(OpError::new(ErrorCode::Exists, message));
        }
        let device = boot::device(&request.disk).map_err(|error| {
            OpError::new(ErrorCode::NotFound, format!("could not find the volume: {error}"))
        })?;
        let disk = ext4(&device, request.access).map_err(failed("mount the volume"))?;
        let tree = match request.access {
            VolumeAccess::Write => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let root = openat(&disk, ".", flags, Mode::empty());
                self.written.push(root.map_err(|error| failed("open the volume")(error.into()))?);
                disk
            }
            VolumeAccess::Read => disk,
            VolumeAccess::Overlay => {
                overlay(&disk, &request.disk).map_err(failed("lay changes over the volume"))?
            }
        };
        sandbox.change_root(|| {
            let at = mount::make(&target).map_err(failed(
                "reach the volume's directory, on the way to which no link may be",
            ))?;
            let flags =
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
            move_mount(&tree, "", &at, "", flags)
                .map_err(|error| failed("mount the volume at its path")(error.into()))
        })?;
        self.paths.push(target.into_bytes());
        Ok(())
    }

    /// Brings what was written to the disks, and lets nothing more be written.
    ///
    /// # Errors
    /// `Failed` where a disk does not take it: the host may have no room.
    pub(crate) fn freeze(&self) -> Result<(), OpError> {
        for root in &self.written {
            // SAFETY: the request takes a descriptor and no pointer.
            let result = unsafe { libc::ioctl(root.as_raw_fd(), FIFREEZE as _, 0) };
            let error = io::Error::last_os_error();
            // It may be so already.
            if result != 0 && error.raw_os_error() != Some(libc::EBUSY) {
                return Err(failed("freeze a volume")(error));
            }
        }
        Ok(())
    }
}

/// The file system of a disk, mounted nowhere yet.
fn ext4(device: &str, access: VolumeAccess) -> io::Result<OwnedFd> {
    let context = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", device)?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    match access {
        // What is removed is the host's again.
        VolumeAccess::Write => fsconfig_set_flag(&context, "discard")?,
        VolumeAccess::Read | VolumeAccess::Overlay => {
            fsconfig_set_flag(&context, "ro")?;
            attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
    }
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// What tasks change above a disk, where all that the sandbox changes is.
fn overlay(disk: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let lower = format!("{LOWER}/{name}");
    fs::create_dir_all(&lower)?;
    move_mount(disk, "", CWD, &*lower, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    let changes = Path::new(boot::CHANGES).join(name);
    let (upper, work) = (changes.join("upper"), changes.join("work"));
    for directory in [&changes, &upper, &work] {
        fs::create_dir(directory)?;
    }
    // The root of what tasks see is this.
    std::os::unix::fs::chown(&upper, Some(USER), Some(USER))?;
    let mounted = || -> io::Result<OwnedFd> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "lowerdir", &*lower)?;
        fsconfig_set_string(&context, "upperdir", &*upper)?;
        fsconfig_set_string(&context, "workdir", &*work)?;
        fsconfig_set_flag(&context, "volatile")?;
        fsconfig_set_string(&context, "xino", "off")?;
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOATIME;
        Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
    };
    let mounted = mounted();
    if mounted.is_err() {
        let _ = unmount(&*lower, UnmountFlags::DETACH);
    }
    mounted
}
