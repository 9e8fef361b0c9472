//! What a machine has from its host before any task may start, time and randomness first, and what
//! it makes of that for itself.

use std::io;

use rustix::fs::{Mode, OFlags};
use rustix::time::{ClockId, Timespec};
use wire::op::{Clock, ErrorCode, OpError};
use wire::text::{Secret, Text};

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
pub(crate) fn reseed(entropy: &Secret, kernel: Kernel) -> Result<(), OpError> {
    let entropy = entropy.expose();
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

/// Longest name of a machine (`HOST_NAME_MAX`).
const HOSTNAME_MOST: usize = 64;

/// Names the machine.
pub(crate) fn set_hostname(name: &Text) -> Result<(), OpError> {
    let name = name.as_bytes();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-".contains(byte);
    if !(1..=HOSTNAME_MOST).contains(&name.len()) || !name.iter().all(plain) {
        let message = format!(
            "{:?} cannot be a machine's name: 1 to {HOSTNAME_MOST} of letters, digits, `_`, `.` and `-`",
            String::from_utf8_lossy(name)
        );
        return Err(OpError::new(ErrorCode::Invalid, message));
    }
    rustix::system::sethostname(name).map_err(|error| {
        OpError::new(ErrorCode::Failed, format!("name the machine: {}", io::Error::from(error)))
    })
}

/// A random id as the kernel writes its boot's: a UUID of version 4.
pub(crate) fn uuid() -> io::Result<String> {
    let mut bytes = draw()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex(&bytes);
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    Ok(parts.join("-"))
}

/// A random id as machine-id(5) wants it.
pub(crate) fn machine_id() -> io::Result<String> {
    let mut bytes = draw()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(hex(&bytes))
}

fn draw() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    let drawn = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if drawn == bytes.len() { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_the_form_that_others_expect_and_are_never_the_same() {
        let (one, other) = (uuid().unwrap(), uuid().unwrap());
        assert_ne!(one, other);
        let lengths: Vec<_> = one.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert_eq!(&one[14..15], "4");
        let machine = machine_id().unwrap();
        assert_eq!(machine.len(), 32);
        assert!(machine.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
    }

    #[test]
    fn a_name_that_no_machine_can_have_is_refused() {
        for name in ["", "a b", "a\n", &"x".repeat(65)] {
            assert_eq!(set_hostname(&name.into()).unwrap_err().code, ErrorCode::Invalid, "{name}");
        }
    }

    #[test]
    fn too_little_entropy_is_refused() {
        let short = Secret::new(vec![b'a'; LEAST - 1]).unwrap();
        assert_eq!(reseed(&short, Kernel::Own).unwrap_err().code, ErrorCode::Invalid);
    }
}
