//! Whose files are whose: the sandbox's user is the host's.

use rustix::process::{getegid, geteuid};

/// The sandbox's own user and group.
const GUEST: u32 = 1000;
/// Everybody else.
const NOBODY: u32 = 65_534;

/// The user of the host who shares, and their group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    /// Of this process.
    pub(crate) fn current() -> Self {
        Self { uid: geteuid().as_raw(), gid: getegid().as_raw() }
    }

    /// What the guest is told of an owner and a group of the host.
    pub(crate) fn in_guest(&self, uid: u32, gid: u32) -> (u32, u32) {
        let id = |is_own: bool| if is_own { GUEST } else { NOBODY };
        (id(uid == self.uid), id(gid == self.gid))
    }

    /// The sandbox's user.
    pub(crate) fn first(&self) -> (u32, u32) {
        (GUEST, GUEST)
    }
}
