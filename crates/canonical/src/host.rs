//! Who is asked: names, addresses and ports.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Longest name (RFC 1035, section 2.3.4), in its dotted form.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// Why a text names no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Nothing is there.
    #[error("the host is empty")]
    Empty,
    /// More than a name can have.
    #[error(
        "the host is longer than {MAX_NAME} characters, or a part of it longer than {MAX_LABEL}"
    )]
    TooLong,
    /// A character that no host has, a NUL, a `%` or one beyond ASCII among them.
    #[error("the host has a character that is not a letter, a digit, `-` or `.`")]
    Character,
    /// A part is empty, or begins or ends with a hyphen.
    #[error("a part of the host is empty, or begins or ends with `-`")]
    Label,
    /// It ends like a number, and is not an address as everybody writes it: resolvers differ about
    /// what it is.
    #[error("the host ends in a number and is not an IPv4 address of four decimal parts")]
    Number,
    /// What is in brackets is not an IPv6 address, a zone among the reasons.
    #[error("what is in brackets is not an IPv6 address")]
    Brackets,
    /// A port that is not a number from 1 to 65535 as everybody writes it.
    #[error("the port is not a number from 1 to 65535 without leading zeros")]
    Port,
}

/// A DNS name: lower case, no dot at its end, every part of letters, digits and hyphens. Names of
/// other alphabets are here in their `xn--` form, as on the wire. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its parts, the outermost last.
    pub fn labels(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('.')
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A name or an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// To be looked up.
    Name(Name),
    /// Not to be looked up.
    Address(IpAddr),
}

impl Host {
    /// Reads a host without a port, IPv6 in brackets.
    ///
    /// # Errors
    /// `HostError`.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(HostError::Brackets)?;
            let address: Ipv6Addr = inner.parse().map_err(|_| HostError::Brackets)?;
            return Ok(Self::Address(address.into()));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err(HostError::Empty);
        }
        if name.len() > MAX_NAME {
            return Err(HostError::TooLong);
        }
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.')) {
            return Err(HostError::Character);
        }
        let name = name.to_ascii_lowercase();
        for label in name.split('.') {
            if label.is_empty() || label.starts_with('-') || label.ends_with('-') {
                return Err(HostError::Label);
            }
            if label.len() > MAX_LABEL {
                return Err(HostError::TooLong);
            }
        }
        if ends_in_a_number(&name) {
            // The standard library takes four decimal parts without leading zeros and nothing else.
            let address: Ipv4Addr = match text.ends_with('.') {
                true => return Err(HostError::Number),
                false => name.parse().map_err(|_| HostError::Number)?,
            };
            return Ok(Self::Address(address.into()));
        }
        Ok(Self::Name(Name(name.into())))
    }

    /// The name, if it is one.
    pub fn name(&self) -> Option<&Name> {
        match self {
            Self::Name(name) => Some(name),
            Self::Address(_) => None,
        }
    }
}

/// As the URL standard has it: the last part is what some resolver takes for a number.
fn ends_in_a_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    let hexadecimal = last.strip_prefix("0x");
    last.bytes().all(|byte| byte.is_ascii_digit())
        || hexadecimal.is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.pad(name.as_str()),
            Self::Address(IpAddr::V4(address)) => f.pad(&address.to_string()),
            Self::Address(IpAddr::V6(address)) => f.pad(&format!("[{address}]")),
        }
    }
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Authority {
    /// Who.
    pub host: Host,
    /// Where.
    pub port: u16,
}

impl Authority {
    /// Reads `host` or `host:port`. Nothing else fits: no user, no path, no space.
    ///
    /// # Errors
    /// `HostError`.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, HostError> {
        let after_host = match text.find(']') {
            Some(bracket) => bracket + 1,
            None => text.find(':').unwrap_or(text.len()),
        };
        let (host, rest) = text.split_at(after_host);
        let port = match rest {
            "" => default_port,
            rest => port(rest.strip_prefix(':').ok_or(HostError::Brackets)?)?,
        };
        Ok(Self { host: Host::parse(host)?, port })
    }

    /// Whether `text` is this one in its one spelling, without its port where that is
    /// `default_port`. What is not may still be, in another spelling.
    pub fn is_spelled(&self, text: &str, default_port: u16) -> bool {
        self.port == default_port && self.host.name().is_some_and(|name| name.as_str() == text)
    }
}

fn port(text: &str) -> Result<u16, HostError> {
    let plain = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if plain => Ok(port),
        _ => Err(HostError::Port),
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> Result<String, HostError> {
        Host::parse(text).map(|host| host.to_string())
    }

    #[test]
    fn a_name_has_one_form() {
        for text in ["api.github.com", "API.GitHub.Com", "api.github.com."] {
            assert_eq!(shown(text), Ok("api.github.com".into()));
        }
        assert_eq!(shown("xn--bcher-kva.example"), Ok("xn--bcher-kva.example".into()));
        assert_eq!(shown("db"), Ok("db".into()));
    }

    #[test]
    fn the_one_spelling_is_known_without_being_read() {
        let authority = Authority::parse("api.github.com", 443).unwrap();
        assert!(authority.is_spelled("api.github.com", 443));
        for (text, port) in [("api.github.com", 80), ("API.github.com", 443), ("github.com", 443)] {
            assert!(!authority.is_spelled(text, port), "{text} {port}");
        }
    }

    #[test]
    fn an_address_is_an_address_in_its_plain_form_only() {
        assert_eq!(shown("127.0.0.1"), Ok("127.0.0.1".into()));
        assert_eq!(shown("[::1]"), Ok("[::1]".into()));
        for text in [
            "2130706433",
            "0x7f.1",
            "0177.0.0.1",
            "127.1",
            "0",
            "1.2.3.4.5",
            "127.0.0.1.",
            "a.0x1f",
            "x.7",
        ] {
            assert_eq!(shown(text), Err(HostError::Number), "{text}");
        }
    }

    #[test]
    fn what_resolvers_read_differently_is_refused() {
        for (text, error) in [
            ("", HostError::Empty),
            (".", HostError::Empty),
            ("a..b", HostError::Label),
            ("a.com..", HostError::Label),
            (".a", HostError::Label),
            ("-a.com", HostError::Label),
            ("a-.com", HostError::Label),
            ("a_b.com", HostError::Character),
            ("a b.com", HostError::Character),
            ("a\0.com", HostError::Character),
            ("a%2ecom", HostError::Character),
            ("user@a.com", HostError::Character),
            ("a.com/", HostError::Character),
            ("büch.er", HostError::Character),
            ("①②⑦.0.0.1", HostError::Character),
            ("[a.com]", HostError::Brackets),
            ("[::1", HostError::Brackets),
            ("[fe80::1%eth0]", HostError::Brackets),
            ("[127.0.0.1]", HostError::Brackets),
        ] {
            assert_eq!(shown(text), Err(error), "{text:?}");
        }
        assert_eq!(shown(&format!("{}.com", "a".repeat(64))), Err(HostError::TooLong));
        assert_eq!(shown(&"a.".repeat(127)), Ok("a.".repeat(127).trim_end_matches('.').into()));
        assert_eq!(shown(&"a.".repeat(128)), Err(HostError::TooLong));
    }

    #[test]
    fn a_port_is_a_plain_number() {
        let of = |text| Authority::parse(text, 443).map(|authority| authority.to_string());
        assert_eq!(of("a.com"), Ok("a.com:443".into()));
        assert_eq!(of("a.com:80"), Ok("a.com:80".into()));
        assert_eq!(of("[::1]:65535"), Ok("[::1]:65535".into()));
        for text in [
            "a.com:",
            "a.com:0",
            "a.com:0443",
            "a.com:+80",
            "a.com:65979",
            "a.com:443:80",
            "a.com: 80",
        ] {
            assert_eq!(of(text), Err(HostError::Port), "{text}");
        }
        assert_eq!(of("[::1]80"), Err(HostError::Brackets));
        assert_eq!(of("::1"), Err(HostError::Port));
    }

    proptest! {
        #[test]
        fn what_was_read_is_read_the_same_again(text in "\\PC{0,40}|[a-z0-9.:\\[\\]-]{0,40}") {
            if let Ok(authority) = Authority::parse(&text, 443) {
                let shown = authority.to_string();
                prop_assert_eq!(Authority::parse(&shown, 1), Ok(authority));
            }
        }
    }
}
