//! The interface that is the way to everywhere: what is sent to it goes nowhere, and what tasks
//! send never gets there ([`super::rules`]). Without it the kernel would know no route, and
//! programs no address of their own.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

use super::netlink::{Attributes, CREATE, Message, Netlink, name_bytes};

/// Its name.
pub(super) const NAME: &str = "sandforge0";
/// The other end of a pair, where there is one.
const PEER: &str = "sandforge1";

/// Its addresses: of the range for tests of networks (RFC 2544), of which the host names places for
/// tasks to connect to, and of a range of IPv6's for private use.
const ADDRESSES: [(IpAddr, u8); 2] = [
    (IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)), 15),
    (IpAddr::V6(Ipv6Addr::new(0xfd5a, 0xf0, 0, 0, 0, 0, 0, 1)), 64),
];

/// As loopback's, over which everything goes in the end.
const MTU: u32 = 65_535;

// linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h
const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const LINK_NAME: u16 = 3;
const LINK_MTU: u16 = 4;
const LINK_INFO: u16 = 18;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const PAIR_PEER: u16 = 1;
const ADDRESS: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
const ROUTE_INTERFACE: u16 = 4;
const NO_DETECTION: u8 = 2;
const TABLE_MAIN: u8 = 254;
const BY_BOOT: u8 = 3;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const UNICAST: u8 = 1;

/// Makes it, and the routes through it.
pub(super) fn bring_up() -> io::Result<()> {
    let mut netlink = Netlink::open(None)?;
    let has_v6 = has_ipv6();
    match netlink.ask(vec![dummy()]) {
        // A kernel without it; a pair of interfaces that leads into itself does as well.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            netlink.ask(vec![pair()])?;
        }
        made => made?,
    }
    if has_v6 {
        // No address but ours, and no search for routers, before it is up.
        let settings = format!("/proc/sys/net/ipv6/conf/{NAME}");
        for (setting, value) in [("addr_gen_mode", "1"), ("accept_ra", "0")] {
            std::fs::write(format!("{settings}/{setting}"), value)?;
        }
    }
    let index = index_of(NAME)?;
    let mut messages = vec![up(index)];
    if let Ok(peer) = index_of(PEER) {
        messages.push(up(peer));
    }
    for (own, prefix) in ADDRESSES.iter().filter(|(own, _)| own.is_ipv4() || has_v6) {
        messages.push(address(index, *own, *prefix));
        messages.push(default_route(index, *own));
    }
    // One by one: the kernel goes on with a list after a refusal.
    messages.into_iter().try_for_each(|message| netlink.ask(vec![message]))
}

/// Whether the kernel has IPv6 and has not switched it off.
pub(super) fn has_ipv6() -> bool {
    let disabled = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    disabled.is_ok_and(|disabled| disabled.trim_ascii() == "0")
}

fn index_of(name: &str) -> io::Result<u32> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    Ok(netdevice::name_to_index(&socket, name)?)
}

fn dummy() -> Message {
    link(&Attributes::default().with(INFO_KIND, b"dummy"))
}

fn pair() -> Message {
    // The peer's own description, with a header and attributes like the first one's.
    let peer = Message::new(0, 0, &link_header(0, 0))
        .attribute(LINK_NAME, &name_bytes(PEER))
        .attribute(LINK_MTU, &MTU.to_ne_bytes());
    let data = Attributes::default().with(PAIR_PEER, peer.body());
    link(&Attributes::default().with(INFO_KIND, b"veth").nested(INFO_DATA, &data))
}

fn link(info: &Attributes) -> Message {
    Message::new(NEW_LINK, CREATE, &link_header(0, 0))
        .attribute(LINK_NAME, &name_bytes(NAME))
        .attribute(LINK_MTU, &MTU.to_ne_bytes())
        .nested(LINK_INFO, info)
}

/// Up, and asking nobody for the hardware addresses of others.
fn up(index: u32) -> Message {
    let flags = libc::IFF_UP | libc::IFF_NOARP;
    Message::new(NEW_LINK, 0, &link_header(index, flags.cast_unsigned()))
}

/// `struct ifinfomsg`.
fn link_header(index: u32, flags: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&flags.to_ne_bytes());
    header
}

fn address(index: u32, own: IpAddr, prefix: u8) -> Message {
    // `struct ifaddrmsg`.
    let [a, b, c, d] = index.to_ne_bytes();
    let header = [family(own), prefix, NO_DETECTION, SCOPE_UNIVERSE, a, b, c, d];
    let own = octets(own);
    Message::new(NEW_ADDRESS, CREATE, &header)
        .attribute(ADDRESS_LOCAL, &own)
        .attribute(ADDRESS, &own)
}

fn default_route(index: u32, own: IpAddr) -> Message {
    let scope = if own.is_ipv4() { SCOPE_LINK } else { SCOPE_UNIVERSE };
    // `struct rtmsg`.
    let header = [family(own), 0, 0, 0, TABLE_MAIN, BY_BOOT, scope, UNICAST, 0, 0, 0, 0];
    Message::new(NEW_ROUTE, CREATE, &header).attribute(ROUTE_INTERFACE, &index.to_ne_bytes())
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).expect("a small number")
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dummy_is_asked_for_as_ip_does() {
        // From `strace ip link add sandforge0 mtu 65535 type dummy`.
        let body = dummy();
        #[rustfmt::skip]
        let expected = [
            0, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0,
            15, 0, 3, 0,  b's', b'a', b'n', b'd', b'f', b'o', b'r', b'g', b'e', b'0', 0, 0,
            8, 0, 4, 0,  0xff, 0xff, 0, 0,
            16, 0, 18, 0x80,
            9, 0, 1, 0,  b'd', b'u', b'm', b'm', b'y', 0, 0, 0,
        ];
        assert_eq!(body.body(), expected);
    }

    #[test]
    fn an_address_and_a_route_are_asked_for_as_ip_does() {
        let own = Ipv4Addr::new(198, 18, 0, 1).into();
        #[rustfmt::skip]
        let expected = [
            2, 15, 2, 0,  5, 0, 0, 0,
            8, 0, 2, 0,  198, 18, 0, 1,
            8, 0, 1, 0,  198, 18, 0, 1,
        ];
        assert_eq!(address(5, own, 15).body(), expected);
        #[rustfmt::skip]
        let expected = [
            2, 0, 0, 0,  254, 3, 253, 1,  0, 0, 0, 0,
            8, 0, 4, 0,  5, 0, 0, 0,
        ];
        assert_eq!(default_route(5, own).body(), expected);
    }
}
