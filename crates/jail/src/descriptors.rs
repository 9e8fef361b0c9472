//! Descriptors that came from whoever started us, and are nobody's business.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use crate::record::Record;
use crate::{JailError, Then, step};

/// The first behind the standard three.
const FIRST: u32 = 3;

/// Leaves a process what it may keep.
pub(crate) fn give_up(
    record: &mut Record,
    then: &Then<'_>,
    group: Option<&OwnedFd>,
) -> Result<(), JailError> {
    match then {
        Then::Stay { keep, .. } => {
            let keep = keep.iter().copied().chain(group.map(|door| door.as_fd()));
            step("close inherited descriptors", close_all_but(FIRST, keep))?;
            record.holds("no descriptor but those that it was given");
        }
        Then::Exec { .. } => step("give up inherited descriptors", close_on_exec())?,
    }
    record.done("descriptors");
    Ok(())
}

/// Marks every descriptor behind the standard three to be closed by the next exec.
fn close_on_exec() -> io::Result<()> {
    close_range(FIRST, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor from `first` on that is not to be kept, whoever believes to own it.
pub(crate) fn close_all_but<'a>(
    first: u32,
    keep: impl Iterator<Item = BorrowedFd<'a>>,
) -> io::Result<()> {
    // A borrowed descriptor is never negative.
    let mut keep: Vec<u32> = keep.map(|kept| kept.as_raw_fd().cast_unsigned()).collect();
    keep.sort_unstable();
    let mut from = first;
    for kept in keep {
        if kept > from {
            close_range(from, kept - 1, 0)?;
        }
        from = from.max(kept + 1);
    }
    close_range(from, u32::MAX, 0)
}

fn close_range(first: u32, last: u32, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: close_range(2) takes no pointers. That descriptors close under their owners is
    // what the callers are for: nothing uses them between here and the end of the process.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
