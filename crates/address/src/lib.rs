//! What an IP address reaches, whichever way it is written: the floor below every rule about
//! networks.
//!
//! IPv6 has many ways to write an IPv4 address. Each is unwrapped first ([`unwrapped`]), so that what
//! is refused in one form is refused in all.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What an address reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reach {
    /// The internet.
    Public,
    /// A network of one's own (RFC 1918, RFC 4193, RFC 6598).
    Private,
    /// This host.
    Loopback,
    /// The link, where clouds have their metadata services.
    LinkLocal,
    /// A cloud's metadata service at an address of another kind.
    Metadata,
    /// Many at once.
    Multicast,
    /// Nobody: unspecified, reserved, for documentation or for measurements.
    Reserved,
}

impl Reach {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link-local",
            Self::Metadata => "metadata service",
            Self::Multicast => "multicast",
            Self::Reserved => "reserved",
        }
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What `address` reaches. An address that holds another reaches the least of what both do.
pub fn reach(address: IpAddr) -> Reach {
    match address {
        IpAddr::V4(v4) => reach_v4(v4),
        IpAddr::V6(v6) => match unwrapped(v6) {
            Some(v4) => reach_v4(v4),
            None => reach_v6(v6),
        },
    }
}

/// The addresses that clouds answer for their machines at, and that no other rule here covers:
/// Alibaba's and Oracle's.
const METADATA_V4: [Ipv4Addr; 2] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192)];
/// Amazon's, of a range that is otherwise private.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// IANA's registry of special-purpose IPv4 addresses (RFC 6890).
fn reach_v4(address: Ipv4Addr) -> Reach {
    if METADATA_V4.contains(&address) {
        return Reach::Metadata;
    }
    match address.octets() {
        [127, ..] => Reach::Loopback,
        [169, 254, ..] => Reach::LinkLocal,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Reach::Private,
        [224..=239, ..] => Reach::Multicast,
        [0, ..] | [240..=255, ..] => Reach::Reserved,
        // IETF protocols, documentation, 6to4 relays, measurements.
        [192, 0, 0 | 2, _] | [192, 88, 99, _] | [198, 18 | 19, ..] => Reach::Reserved,
        [198, 51, 100, _] | [203, 0, 113, _] => Reach::Reserved,
        _ => Reach::Public,
    }
}

/// IANA's registry of special-purpose IPv6 addresses. What is not global unicast is reserved.
fn reach_v6(address: Ipv6Addr) -> Reach {
    if address == METADATA_V6 {
        return Reach::Metadata;
    }
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => Reach::Loopback,
        [0xfe80..=0xfebf, ..] => Reach::LinkLocal,
        // Site-local addresses are deprecated, and some hosts have them still.
        [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Reach::Private,
        [0xff00..=0xffff, ..] => Reach::Multicast,
        // Protocol assignments, ORCHID and documentation.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Reach::Reserved,
        [0x2000..=0x3fff, ..] => Reach::Public,
        _ => Reach::Reserved,
    }
}

/// The IPv4 address that `address` carries, in any of the forms that a host or its network may
/// unwrap: mapped and compatible (RFC 4291), translated (RFC 2765), NAT64 (RFC 6052, RFC 8215),
/// 6to4 (RFC 3056), Teredo (RFC 4380) and ISATAP (RFC 5214).
pub fn unwrapped(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let octets = address.octets();
    let at = |index: usize| {
        Ipv4Addr::new(octets[index], octets[index + 1], octets[index + 2], octets[index + 3])
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => Some(at(12)),
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] => Some(at(12)),
        [0x2002, ..] => Some(at(2)),
        // The client's address, whose bits Teredo turns over.
        [0x2001, 0, ..] => Some(Ipv4Addr::from_bits(!at(12).to_bits())),
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => Some(at(12)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(text: &str) -> Reach {
        reach(text.parse().unwrap())
    }

    #[test]
    fn addresses_of_the_internet_are_public() {
        for address in
            ["1.1.1.1", "140.82.112.3", "2606:4700::1111", "2a00:1450:4001::8a", "100.128.0.1"]
        {
            assert_eq!(of(address), Reach::Public, "{address}");
        }
    }

    #[test]
    fn special_addresses_are_told_apart() {
        for (address, reach) in [
            ("127.0.0.1", Reach::Loopback),
            ("127.255.0.9", Reach::Loopback),
            ("::1", Reach::Loopback),
            ("0.0.0.0", Reach::Reserved),
            ("::", Reach::Reserved),
            ("255.255.255.255", Reach::Reserved),
            ("10.0.0.1", Reach::Private),
            ("172.16.0.1", Reach::Private),
            ("172.31.255.255", Reach::Private),
            ("192.168.1.1", Reach::Private),
            ("100.64.0.1", Reach::Private),
            ("fd12::1", Reach::Private),
            ("fec0::1", Reach::Private),
            ("169.254.169.254", Reach::LinkLocal),
            ("fe80::1", Reach::LinkLocal),
            ("100.100.100.200", Reach::Metadata),
            ("192.0.0.192", Reach::Metadata),
            ("fd00:ec2::254", Reach::Metadata),
            ("224.0.0.1", Reach::Multicast),
            ("ff02::1", Reach::Multicast),
            ("198.18.0.1", Reach::Reserved),
            ("203.0.113.7", Reach::Reserved),
            ("2001:db8::1", Reach::Reserved),
            ("5f00::1", Reach::Reserved),
        ] {
            assert_eq!(of(address), reach, "{address}");
        }
    }

    #[test]
    fn an_address_in_disguise_reaches_what_it_is() {
        for address in [
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "::ffff:0:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::169.254.169.254",
            "2002:a9fe:a9fe::1",
            "2001:0:1:2:3:4:5601:5601",
            "2a00::5efe:169.254.169.254",
            "fe80::200:5efe:a9fe:a9fe",
        ] {
            assert_eq!(of(address), Reach::LinkLocal, "{address}");
        }
    }

    proptest! {
        #[test]
        fn no_form_of_an_address_reaches_further(bits: u32) {
            let v4 = Ipv4Addr::from_bits(bits);
            let [a, b, c, d] = v4.octets().map(u16::from);
            let (high, low) = ((a << 8) | b, (c << 8) | d);
            let plain = reach(v4.into());
            for v6 in [
                v4.to_ipv6_mapped(),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                Ipv6Addr::new(0x2001, 0, 1, 2, 3, 4, !high, !low),
                Ipv6Addr::new(0x2a00, 1, 2, 3, 0, 0x5efe, high, low),
            ] {
                prop_assert_eq!(reach(v6.into()), plain);
            }
        }
    }
}
