//! Netlink: messages written, sent, and their acknowledgements read (netlink(7), linux/netlink.h).

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::Protocol;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

/// Asks for the creation of something that is not there.
pub(super) const CREATE: u16 = 0x400 | 0x200;
/// Asks for the creation of one more, behind those that are there.
pub(super) const APPEND: u16 = 0x400 | 0x800;

const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const ERROR: u16 = 2;
const HEADER: usize = 16;
const NESTED: u16 = 0x8000;

/// A request, written from its header on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    bytes: Vec<u8>,
    is_acknowledged: bool,
}

impl Message {
    /// A request of this type, which is acknowledged, with the fixed part of its body.
    pub(super) fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        Self::with_flags(kind, REQUEST | ACKNOWLEDGE | flags, body)
    }

    /// One around a batch, which is not.
    pub(super) fn unacknowledged(kind: u16, body: &[u8]) -> Self {
        Self::with_flags(kind, REQUEST, body)
    }

    fn with_flags(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(body);
        Self { bytes, is_acknowledged: flags & ACKNOWLEDGE != 0 }
    }

    /// Adds an attribute.
    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        put(&mut self.bytes, kind, value);
        self
    }

    /// Adds an attribute that holds attributes.
    pub(super) fn nested(self, kind: u16, attributes: &Attributes) -> Self {
        self.attribute(kind | NESTED, &attributes.0)
    }

    /// What stands behind its header.
    pub(super) fn body(&self) -> &[u8] {
        &self.bytes[HEADER..]
    }

    /// The bytes, with their length and this number.
    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("a few hundred bytes");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// Attributes of an attribute.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    /// Adds one.
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        put(&mut self.0, kind, value);
        self
    }

    /// Adds one with a number as nf_tables has them.
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.with(kind, &value.to_be_bytes())
    }

    /// Adds one with a name.
    pub(super) fn name(self, kind: u16, name: &str) -> Self {
        self.with(kind, &name_bytes(name))
    }

    /// Adds one that holds attributes.
    pub(super) fn nested(self, kind: u16, attributes: &Self) -> Self {
        self.with(kind | NESTED, &attributes.0)
    }
}

/// A name as the kernel reads it.
pub(super) fn name_bytes(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn put(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("a few hundred bytes");
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A netlink socket.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// One of the kernel's, by its protocol; `None` is that of routes.
    pub(super) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        Ok(Self::new(socket(protocol)?))
    }

    /// One that was opened before.
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, sequence: 0 }
    }

    /// Sends messages as one, and waits until the kernel has taken each.
    ///
    /// # Errors
    /// The first refusal.
    pub(super) fn ask(&mut self, messages: Vec<Message>) -> io::Result<()> {
        let expected = messages.iter().filter(|message| message.is_acknowledged).count();
        let mut bytes = Vec::new();
        for message in messages {
            self.sequence += 1;
            bytes.extend(message.finish(self.sequence));
        }
        let sent = send(&self.socket, &bytes, SendFlags::empty())?;
        if sent != bytes.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let mut seen = 0;
        let mut answer = vec![0; 32 << 10];
        while seen < expected {
            let (length, _) =
                rustix::io::retry_on_intr(|| recv(&self.socket, &mut *answer, RecvFlags::empty()))?;
            for error in errors(&answer[..length]) {
                seen += 1;
                if error != 0 {
                    return Err(io::Error::from_raw_os_error(-error));
                }
            }
        }
        Ok(())
    }
}

fn socket(protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?)
}

/// A socket to the kernel's nf_tables.
pub(crate) fn netfilter() -> io::Result<OwnedFd> {
    socket(Some(netlink::NETFILTER))
}

/// The codes in acknowledgements, 0 where it was done. Their sequence numbers need no look: the
/// socket is used for one exchange at a time, and given up after a failure.
fn errors(mut bytes: &[u8]) -> Vec<i32> {
    let mut found = Vec::new();
    while let Some((header, _)) = bytes.split_first_chunk::<HEADER>() {
        let [a, b, c, d, kind_low, kind_high, ..] = *header;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let kind = u16::from_ne_bytes([kind_low, kind_high]);
        if let (ERROR, Some(code)) = (kind, bytes.get(HEADER..HEADER + 4)) {
            found.push(i32::from_ne_bytes(code.try_into().expect("four bytes")));
        }
        bytes = bytes.get(length.next_multiple_of(4).max(HEADER)..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_its_length_and_its_attributes_are_padded() {
        let inner = Attributes::default().number(2, 1).name(1, "ab");
        let message = Message::new(16, CREATE, &[0xaa; 4]).attribute(3, b"x").nested(18, &inner);
        #[rustfmt::skip]
        let expected = [
            52, 0, 0, 0,  16, 0,  5, 6,  7, 0, 0, 0,  0, 0, 0, 0,
            0xaa, 0xaa, 0xaa, 0xaa,
            5, 0, 3, 0,  b'x', 0, 0, 0,
            20, 0, 18, 0x80,
            8, 0, 2, 0,  0, 0, 0, 1,
            7, 0, 1, 0,  b'a', b'b', 0, 0,
        ];
        // The last attribute's padding counts for the one around it.
        let mut expected = expected.to_vec();
        expected[0] = 48;
        assert_eq!(message.finish(7), expected);
    }

    #[test]
    fn acknowledgements_are_told_from_refusals() {
        let answer = |code: i32| {
            let mut bytes = Message::unacknowledged(ERROR, &code.to_ne_bytes());
            bytes.bytes.extend_from_slice(&[0; HEADER]);
            bytes.finish(1)
        };
        let bytes = [answer(0), answer(-17), Message::unacknowledged(3, &[]).finish(2)].concat();
        assert_eq!(errors(&bytes), [0, -17]);
    }

    #[test]
    fn an_answer_that_makes_no_sense_ends() {
        assert_eq!(errors(&[0; 40]), Vec::<i32>::new());
        assert_eq!(errors(&[0xff; 17]), Vec::<i32>::new());
        assert_eq!(errors(&[1; 15]), Vec::<i32>::new());
    }
}
