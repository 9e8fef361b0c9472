//! Time and randomness from the host, without which no task may start.

use std::io;

use rustix::fs::{Mode, OFlags};
use rustix::time::{ClockId, Timespec};
use wire::op::{Clock, ErrorCode, OpError, Reseed};

use crate::Kernel;

/// `_IOW('R', 0x03, int[2])` of linux/random.h.
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
/// `_IO('R', 0x07)` of linux/random.h.
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// Least entropy that counts: the kernel's generator has a 256-bit key.
const LEAST: usize = 32;
/// Most that one request may bring.
const MOST: usize = 512;

/// Sets the wall clock. That of the host's kernel is right already.
pub(crate) fn set_clock(clock: &Clock, kernel: Kernel) -> Result<(), OpError> {
    if kernel == Kernel::Shared {
        return Ok(());
    }
    let failed =
        |reason: String| OpError::new(ErrorCode::Failed, format!("set the clock: {reason}"));
    let seconds =
        i64::try_from(clock.unix_ns / 1_000_000_000).map_err(|e| failed(e.to_string()))?;
    let nanoseconds = i64::try_from(clock.unix_ns % 1_000_000_000).expect("below a second");
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    rustix::time::clock_settime(ClockId::Realtime, time).map_err(|e| failed(e.to_string()))
}

/// Milliseconds since 1970 by the guest's clock.
pub(crate) fn now_ms() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Realtime);
    let milliseconds = now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000);
    u64::try_from(milliseconds).unwrap_or(0)
}

/// Two ints before the bytes in `struct rand_pool_info` of linux/random.h: the entropy in bits
/// and the length in bytes.
const POOL_HEADER: usize = 8;

/// Adds the host's bytes to the kernel's pool, credits them, and rekeys the generator, so that
/// two machines with the same past have different futures. The host's kernel needs none of it.
pub(crate) fn reseed(reseed: &Reseed, kernel: Kernel) -> Result<(), OpError> {
    let entropy = reseed.entropy.expose();
    if !(LEAST..=MOST).contains(&entropy.len()) {
        let message = format!("{} bytes of entropy; {LEAST} to {MOST} are taken", entropy.len());
        return Err(OpError::new(ErrorCode::Invalid, message));
    }
    if kernel == Kernel::Shared {
        return Ok(());
    }
    let length = libc::c_int::try_from(entropy.len()).expect("at most MOST");
    let mut pool = zeroize::Zeroizing::new([0_u8; POOL_HEADER + MOST]);
    // Four bits a byte: the host sends hexadecimal digits.
    pool[0..4].copy_from_slice(&(4 * length).to_ne_bytes());
    pool[4..8].copy_from_slice(&length.to_ne_bytes());
    pool[POOL_HEADER..POOL_HEADER + entropy.len()].copy_from_slice(entropy);
    add(&pool).map_err(|error| {
        OpError::new(ErrorCode::Failed, format!("feed the random number generator: {error}"))
    })
}

fn add(pool: &[u8; POOL_HEADER + MOST]) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let device = rustix::fs::open("/dev/urandom", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: RNDADDENTROPY reads a rand_pool_info: two ints, then as many bytes as the second
    // says, which are within `pool` (checked by the caller).
    if unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, pool.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: RNDRESEEDCRNG takes no argument.
    if unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use wire::text::Secret;

    use super::*;

    #[test]
    fn too_little_entropy_is_refused() {
        let short = Reseed { entropy: Secret::new(vec![b'a'; LEAST - 1]).unwrap() };
        assert_eq!(reseed(&short, Kernel::Own).unwrap_err().code, ErrorCode::Invalid);
    }
}
