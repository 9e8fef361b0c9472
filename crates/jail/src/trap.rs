//! What a process says when it makes a system call that its filter refuses.

use std::io;

/// Where the kernel puts the number of the call (sigaction(2), `SIGSYS`). libc's type hides it.
#[repr(C)]
struct Refused {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    address: *const libc::c_void,
    call: libc::c_int,
    architecture: libc::c_uint,
}

/// The status that a shell would give a process killed by SIGSYS.
const STATUS: libc::c_int = 128 + libc::SIGSYS;

/// Makes SIGSYS end the process with a line that names the call.
pub(crate) fn name_refused_calls() -> io::Result<()> {
    let handler: extern "C" fn(libc::c_int, *const Refused, *const libc::c_void) = refused;
    // SAFETY: sigaction is a plain C structure; zeroes are its empty value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, calls only what
    // signal-safety(7) allows, and does not return.
    let result = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn refused(
    _signal: libc::c_int,
    information: *const Refused,
    _context: *const libc::c_void,
) {
    // SAFETY: the kernel passes its siginfo, whose layout this is.
    let call = unsafe { (*information).call };
    let mut line = Line::new();
    line.text(b"seccomp: system call ");
    line.number(call.unsigned_abs());
    line.text(b"\n");
    // SAFETY: the buffer is there for `length` bytes.
    unsafe { libc::write(2, line.bytes.as_ptr().cast(), line.length) };
    // SAFETY: _exit(2) has no preconditions.
    unsafe { libc::_exit(STATUS) }
}

/// Text without an allocator, which may be what was interrupted.
struct Line {
    bytes: [u8; 64],
    length: usize,
}

impl Line {
    fn new() -> Self {
        Self { bytes: [0; 64], length: 0 }
    }

    fn text(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = *byte;
                self.length += 1;
            }
        }
    }

    fn number(&mut self, number: u32) {
        if number >= 10 {
            self.number(number / 10);
        }
        let digit = u8::try_from(number % 10).unwrap_or(0);
        self.text(&[b'0' + digit]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_without_the_allocator() {
        let mut line = Line::new();
        line.text(b"system call ");
        line.number(4_294_967_295);
        assert_eq!(&line.bytes[..line.length], b"system call 4294967295");
    }

    #[test]
    fn a_line_that_is_too_long_is_cut() {
        let mut line = Line::new();
        for _ in 0..20 {
            line.number(1000);
        }
        assert_eq!(line.length, 64);
    }
}
