//! What uid 0 of a task keeps of root, and that everyone else keeps nothing.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

/// What installing packages, changing owners and becoming another user needs. They hold over the
/// task's user namespace, which owns no mount, network or other namespace, so not even these
/// reach beyond files and processes of the task.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT);

/// Reduces all five sets to what uid 0 keeps.
pub(super) fn keep_for_root() -> rustix::io::Result<()> {
    clear_ambient_capability_set()?;
    remove_from_bounding_set(!KEPT.bits())?;
    set(KEPT)
}

/// Empties the bounding set, which takes a capability that is about to be lost.
pub(super) fn empty_bounding_set() -> rustix::io::Result<()> {
    remove_from_bounding_set(KEPT.bits())
}

/// Empties the other sets.
pub(super) fn drop_all() -> rustix::io::Result<()> {
    set(CapabilitySet::empty())
}

/// In the agent of a host: gives up what it had to set the network up with.
pub(super) fn drop_network() -> rustix::io::Result<()> {
    remove_from_bounding_set(CapabilitySet::NET_ADMIN.bits())?;
    set(capabilities(None)?.permitted - CapabilitySet::NET_ADMIN)
}

fn set(permitted: CapabilitySet) -> rustix::io::Result<()> {
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: permitted, permitted, inheritable })
}

fn remove_from_bounding_set(mask: u64) -> rustix::io::Result<()> {
    for number in (0..u64::BITS).filter(|number| mask >> number & 1 == 1) {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // The kernel knows no capability of this number, nor of a later one.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
