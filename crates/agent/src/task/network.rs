//! The network namespace that all tasks share: a server that one exec starts is reached from
//! another by localhost. It is the agent's own, so no task has a right to configure it.

use std::io;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::error::{During, SetupError};

/// libc has it in a type that its own ioctl() does not take everywhere.
const SIOCSIFFLAGS: libc::Ioctl = 0x8914;

/// Brings the loopback interface up, and makes ports below 1024 ordinary ones: in a machine of
/// one's own they protect nobody, and development servers listen on 80.
pub(crate) fn prepare() -> Result<(), SetupError> {
    loopback_up().during("bring the loopback interface up")?;
    std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
        .during("open the low ports to tasks")
}

fn loopback_up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: an ifreq is integers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the request reads one ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
