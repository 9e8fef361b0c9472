//! What the kernel grants by the way: privileges at an exec, and memory to whoever debugs.

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::set_no_new_privs;

use crate::record::Record;
use crate::{JailError, Then, step};

pub(crate) fn give_up(record: &mut Record, then: &Then<'_>) -> Result<(), JailError> {
    step("give up new privileges", set_no_new_privs(true))?;
    record.holds("no new privileges");
    match then {
        Then::Stay { .. } => {
            step("hide its memory", set_dumpable_behavior(DumpableBehavior::NotDumpable))?;
            record.holds("no core dumps, no debugger but root's");
        }
        // An exec would undo more than the limit that is set already.
        Then::Exec { .. } => record.holds("no core dumps"),
    }
    record.done("privileges");
    Ok(())
}
