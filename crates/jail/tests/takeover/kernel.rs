//! System calls as an attacker makes them: by number.

use std::io;

/// Makes a system call.
pub(crate) fn call(number: libc::c_long, arguments: &[libc::c_long]) -> io::Result<libc::c_long> {
    let argument = |index: usize| arguments.get(index).copied().unwrap_or(0);
    let [a, b, c, d, e, f] = [0, 1, 2, 3, 4, 5].map(argument);
    // SAFETY: callers pass pointers to what outlives the call, or numbers; what else such a call
    // may do to this process, it is made for.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Where something is that a call reads.
pub(crate) fn address<T: ?Sized>(of: &T) -> libc::c_long {
    (&raw const *of).cast::<u8>().expose_provenance().cast_signed() as libc::c_long
}

/// Where something is that a call writes.
pub(crate) fn room<T: ?Sized>(of: &mut T) -> libc::c_long {
    (&raw mut *of).cast::<u8>().expose_provenance().cast_signed() as libc::c_long
}

/// A call by the entry for 32-bit programs, whose numbers mean other calls.
#[cfg(target_arch = "x86_64")]
pub(crate) fn call_of_i386(number: u32) -> u32 {
    let result: u32;
    // SAFETY: the calls made by it take no pointers. The kernel may clobber r8 to r11.
    unsafe {
        std::arch::asm!(
            "int 0x80",
            inlateout("eax") number => result,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result
}
