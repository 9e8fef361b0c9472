//! Descriptors that came from whoever started us, and are nobody's business behind the exec.

use std::io;

/// Marks every descriptor from 3 on to be closed by the next exec.
pub(crate) fn close_on_exec() -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: close_range(2) with this flag closes nothing now and takes no pointers.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
