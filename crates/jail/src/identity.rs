//! From root to a user id of its own, so that not even another jailed process is a peer.

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, geteuid, set_dumpable_behavior};
use rustix::thread::{
    capabilities, set_capabilities, set_keep_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use crate::record::Record;
use crate::{Bounds, JailError, limits, step};

/// First of the user ids that jailed processes of root get, one each. Far above what accounts,
/// `systemd` and subordinate ids use.
const FIRST_UID: u32 = 0x7000_0000;

/// Changes the user where that is root; what root can do stays until the capabilities go.
pub(crate) fn give_up(record: &mut Record, bounds: &Bounds) -> Result<(), JailError> {
    if geteuid().is_root() {
        let id = FIRST_UID + std::process::id();
        match step("change the user", change(id)) {
            Ok(true) => {
                limits::set_threads(bounds)?;
                record.holds(format!("user id {id}, which owns nothing"));
            }
            Ok(false) => record.lacks(
                "a user id of its own",
                "this root is one of a user namespace, which has no other ids",
            ),
            Err(error) => return Err(error),
        }
    }
    record.done("identity");
    Ok(())
}

/// Whether the id exists here.
fn change(id: u32) -> rustix::io::Result<bool> {
    set_keep_capabilities(true)?;
    let gid = Gid::from_raw(id);
    match set_thread_res_gid(gid, gid, gid) {
        Err(Errno::INVAL) => return Ok(false),
        changed => changed?,
    }
    set_thread_groups(&[])?;
    let uid = Uid::from_raw(id);
    set_thread_res_uid(uid, uid, uid)?;
    // Those that are permitted were kept, those in effect were not (capabilities(7)).
    let mut kept = capabilities(None)?;
    kept.effective = kept.permitted;
    set_capabilities(None, kept)?;
    // The change made /proc/self root's, where the maps of a user namespace are written.
    set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    Ok(true)
}
