//! The mount of a shared directory in the root of tasks.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid, chownat, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount as mount_system, unmount as unmount_system};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{chdir, fchdir};
use wire::op::{ErrorCode, OpError, USER};

use super::notify;
use crate::task::{Attendant, Sandbox};

/// What is the task's own or the kernel's, and would hide a mount or be hidden by it.
const TAKEN: [&[u8]; 4] = [b"/dev", b"/proc", b"/sys", b"/tmp"];

/// Where a directory is to be mounted: absolute, not the root, without `.` and `..`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target(Vec<u8>);

impl Target {
    pub(crate) fn parse(path: &[u8]) -> Result<Self, OpError> {
        let refuse = |message: &str| Err(OpError::new(ErrorCode::Invalid, message));
        let parts: Vec<_> =
            path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).collect();
        if !path.starts_with(b"/") || parts.is_empty() {
            return refuse("a directory is shared at an absolute path, and not as the root");
        }
        if parts.iter().any(|part| matches!(*part, b"." | b"..")) {
            return refuse("the path of a shared directory has neither . nor .. in it");
        }
        let path: Vec<u8> = parts.iter().flat_map(|part| [b"/", *part].concat()).collect();
        if TAKEN.iter().any(|taken| lies_in(&path, taken)) {
            return refuse("a directory cannot be shared in /dev, /proc, /sys or /tmp");
        }
        Ok(Self(path))
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Whether one lies in the other.
    pub(crate) fn touches(&self, other: &[u8]) -> bool {
        lies_in(&self.0, other) || lies_in(other, &self.0)
    }

    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|part| !part.is_empty())
    }
}

fn lies_in(path: &[u8], above: &[u8]) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

pub(super) struct Mounted {
    pub(super) device: OwnedFd,
    pub(super) notices: OwnedFd,
    pub(super) attendant: Attendant,
}

pub(super) fn mount(
    target: &Target,
    read_only: bool,
    sandbox: &mut Sandbox,
) -> Result<Mounted, OpError> {
    let failed = |step: &str, error: io::Error| {
        OpError::new(ErrorCode::Failed, format!("could not {step}: {error}"))
    };
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // The agent's own /dev has it, and no task's.
    let device = rustix::fs::open("/dev/fuse", flags, Mode::empty())
        .map_err(|error| failed("open /dev/fuse (the kernel needs FUSE)", error.into()))?;
    let flags = SocketFlags::CLOEXEC;
    let (notices, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|error| failed("make a socket", error.into()))?;
    let attendant = sandbox.change_root(|| {
        attach(target, &device, read_only)
            .map_err(|error| failed("mount the shared directory", error))?;
        let keep = [device.as_fd(), theirs.as_fd()];
        Attendant::start(&keep, c"sandforge-share", || {
            notify::run(&theirs, &device, &target.0);
        })
        .map_err(|error| {
            detach(&target.0);
            failed("start the process for notices", error)
        })
    })?;
    Ok(Mounted { device, notices, attendant })
}

/// With the sandbox's root as `/`.
fn attach(target: &Target, device: &OwnedFd, read_only: bool) -> io::Result<()> {
    let directory = make(target)?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
        device.as_raw_fd()
    );
    let options = CString::new(options).expect("digits and words");
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    flags.set(MountFlags::RDONLY, read_only);
    // By the descriptor, so that no link that a task has put there is followed.
    fchdir(&directory)?;
    let mounted = mount_system("sandforge", ".", "fuse", flags, Some(&*options));
    chdir("/")?;
    Ok(mounted?)
}

/// The directory that is covered, made where it is missing. Nothing is followed. With the sandbox's
/// root as `/`.
pub(crate) fn make(target: &Target) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut directory = openat(CWD, "/", flags, Mode::empty())?;
    for part in target.parts() {
        match mkdirat(&directory, part, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                let user = (Some(Uid::from_raw(USER)), Some(Gid::from_raw(USER)));
                let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                chownat(&directory, part, user.0, user.1, flags)?;
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        directory = openat(&directory, part, flags, Mode::empty())?;
    }
    Ok(directory)
}

/// With the sandbox's root as `/`. Forced first: whatever waits for an answer gets an error.
fn detach(path: &[u8]) {
    let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    // Where a task's rename has moved the path away, the device's end does the rest.
    let _ = unmount_system(path, flags);
}

pub(super) fn unmount(path: &[u8], sandbox: &mut Sandbox) {
    let _ = sandbox.change_root(|| {
        detach(path);
        Ok(())
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_directory_can_be_shared_at_is_refused() {
        for path in ["", "/", "//", "relative", "/a/../b", "/a/.", "/proc/x", "/dev", "/tmp/x/"] {
            assert!(Target::parse(path.as_bytes()).is_err(), "{path}");
        }
        assert_eq!(Target::parse(b"/a//b/").unwrap(), Target(b"/a/b".to_vec()));
        assert!(Target::parse(b"/processes").is_ok());
    }

    #[test]
    fn one_inside_of_another_is_noticed() {
        let target = Target::parse(b"/a/b").unwrap();
        for (other, expected) in
            [("/a", true), ("/a/b", true), ("/a/b/c", true), ("/a/bc", false), ("/b", false)]
        {
            assert_eq!(target.touches(other.as_bytes()), expected, "{other}");
        }
    }
}
