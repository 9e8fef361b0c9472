//! Sockets between the guest and the host (section 5.10), and nothing between the guest and
//! anybody else.
//!
//! The host's ends are unix sockets that the device is given, never paths. A connection may be
//! wanted by the host, through a socket that is connected already or comes from a listening one,
//! and then waits until somebody in the guest listens; or by the guest, for one of the ports that
//! a service on the host was registered for.
//!
//! | file | concern |
//! |---|---|
//! | `device` | the queues |
//! | `packet` | packets in the guest's memory, and the one parser of them |
//! | `connection`, `credit` | the protocol of one connection, without I/O |
//! | `link` | a socket of the host, and the connection that it is joined to |
//! | `transfer`, `backlog` | data between the guest's memory and sockets |
//! | `muxer` | all of them: who is known by which ports, who waits, whose turn it is |
//! | `watch` | what wakes the device up |

mod backlog;
mod connection;
mod credit;
mod device;
mod link;
mod metrics;
mod muxer;
mod packet;
#[cfg(test)]
mod tests;
mod transfer;
mod watch;

use std::os::fd::OwnedFd;

pub use device::Vsock;
pub use metrics::{Metrics, Snapshot};

/// What the worker's thread asks of the kernel for this device, besides what every worker does.
pub(crate) const SYSTEM_CALLS: &[libc::c_long] = &[
    // What it waits for.
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_timerfd_settime,
    // New connections: from listening sockets, and for services.
    libc::SYS_accept4,
    libc::SYS_socketpair,
    // Data, and connections for services.
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
];

/// What a device is made of. All descriptors are sockets of the host.
#[derive(Debug)]
pub struct Config {
    /// The guest's address. All guests may have the same: none reaches another.
    pub guest_cid: u32,
    /// Connected stream sockets, each to be joined to this port of the guest as soon as somebody
    /// listens there.
    pub connect: Vec<(u32, OwnedFd)>,
    /// Listening sockets: each connection that comes in is joined to this port of the guest, in
    /// the same way.
    pub listen: Vec<(u32, OwnedFd)>,
    /// Connections of the guest to this port of the host are accepted. For each of them the
    /// socket gets a message of eight bytes, the host's and the guest's port as 32-bit numbers in
    /// little endian, with one end of a new connection.
    pub accept: Vec<(u32, OwnedFd)>,
    /// The most connections at a time. Beyond, those that the guest wants are refused, and those
    /// that the host wants wait at the listening socket.
    pub max_connections: usize,
}

impl Config {
    /// One without anything on the host.
    pub fn new(guest_cid: u32) -> Self {
        Self {
            guest_cid,
            connect: Vec::new(),
            listen: Vec::new(),
            accept: Vec::new(),
            max_connections: 1024,
        }
    }
}
