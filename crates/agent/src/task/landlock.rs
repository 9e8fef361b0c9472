//! Landlock: what a task may do to files by place, and that its reach ends with itself.
//!
//! The file rules say that devices exist in `/dev` alone: nowhere else may a device node be made
//! or an ioctl reach one. Being confined at all also forbids every change of mounts, and tracing
//! or signalling a process outside, so these hold even where a capability check would have a bug.
//! Scoping ends abstract unix sockets, which the shared network namespace would otherwise carry,
//! at the task's edge.
//!
//! The rules name inodes, not mounts, so they are made once in the template and hold in each copy.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, Scope,
};

use super::error::{During, SetupError};

/// Scoping came with the sixth, in Linux 6.12. A kernel with less fails the start.
const ABI_ENFORCED: ABI = ABI::V6;

/// The number for the record.
pub(super) const ABI_NUMBER: u32 = 6;

/// The rules, for the root and `/dev` as the caller sees them.
#[derive(Debug)]
pub(super) struct Rules(OwnedFd);

impl Rules {
    /// Makes them; fails where the kernel cannot enforce every one.
    pub(super) fn make() -> Result<Self, SetupError> {
        let all = AccessFs::from_all(ABI_ENFORCED);
        let device_nodes = AccessFs::MakeChar | AccessFs::MakeBlock;
        let rules = create(all, all & !device_nodes & !AccessFs::IoctlDev, all & !device_nodes);
        rules
            .and_then(|rules| rules.ok_or_else(|| io::ErrorKind::Unsupported.into()))
            .map(Self)
            .during("make the Landlock rules (Linux 6.12 or later with Landlock is needed)")
    }

    /// Confines this process and all that it starts. It must have no_new_privs.
    pub(super) fn enforce(&self) -> Result<(), SetupError> {
        // SAFETY: takes a descriptor and flags, no pointer.
        let result =
            unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.0.as_raw_fd(), 0) };
        let result = if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        result.during("enforce the Landlock rules")
    }
}

impl AsRawFd for Rules {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

fn create(
    handled: BitFlags<AccessFs>,
    root: BitFlags<AccessFs>,
    devices: BitFlags<AccessFs>,
) -> io::Result<Option<OwnedFd>> {
    let (root_fd, devices_fd) = (open("/")?, open("/dev")?);
    let rules = || -> Result<_, RulesetError> {
        Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(handled)?
            .scope(Scope::from_all(ABI_ENFORCED))?
            .create()?
            .add_rule(PathBeneath::new(root_fd, root))?
            .add_rule(PathBeneath::new(devices_fd, devices))
    };
    rules().map(Into::into).map_err(io::Error::other)
}

fn open(path: &str) -> io::Result<PathFd> {
    PathFd::new(path).map_err(io::Error::other)
}
