//! Packets, as the driver and the device write them into each other's buffers (section 5.10.6).

use crate::GuestMemory;
use crate::virtio::Chain;
use crate::virtio::buffers::Buffers;

/// The host's address (section 5.10.4).
pub(super) const HOST_CID: u64 = 2;

/// Bytes of a header.
pub(super) const HEADER: usize = 44;

/// The most data of one packet. Linux's driver sends no larger ones
/// (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`).
pub(super) const MAX_DATA: u32 = 64 << 10;

/// The most descriptors that a packet may be cut into. Linux uses one for the header and up to 46
/// for the data (`MAX_SKB_FRAGS`, and what is not in fragments).
const MAX_PIECES: usize = 64;

/// The only type of socket here (`VIRTIO_VSOCK_TYPE_STREAM`).
const STREAM: u16 = 1;

/// What a packet is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    /// Asks for a connection.
    Request,
    /// Agrees to one.
    Response,
    /// Refuses or ends one.
    Reset,
    /// Will receive or send no more, as its flags say.
    Shutdown,
    /// Carries data.
    Data,
    /// Says how much room there is.
    CreditUpdate,
    /// Asks how much room there is.
    CreditRequest,
}

impl Op {
    const ALL: [Self; 7] = [
        Self::Request,
        Self::Response,
        Self::Reset,
        Self::Shutdown,
        Self::Data,
        Self::CreditUpdate,
        Self::CreditRequest,
    ];

    /// Its number in a header.
    pub(super) fn number(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }
}

/// The two ends of a connection between the host and its one guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    /// The host's.
    pub(super) host: u32,
    /// The guest's.
    pub(super) guest: u32,
}

/// What stands before a packet's data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// One from the host to its guest.
    pub(super) fn to_guest(guest_cid: u64, ports: Ports, op: Op) -> Self {
        Self {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: ports.host,
            dst_port: ports.guest,
            kind: STREAM,
            op: op.number(),
            ..Self::default()
        }
    }

    /// Which connection it belongs to, if it came from the guest.
    pub(super) fn ports(&self) -> Ports {
        Ports { host: self.dst_port, guest: self.src_port }
    }

    /// What it is about, if that is known.
    pub(super) fn op(&self) -> Option<Op> {
        Op::ALL.into_iter().find(|op| op.number() == self.op)
    }

    /// Whether it is about a type of socket that there is here.
    pub(super) fn is_stream(&self) -> bool {
        self.kind == STREAM
    }

    /// As it lies in memory.
    pub(super) fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// From how it lies in memory.
    pub(super) fn from_bytes(bytes: &[u8; HEADER]) -> Self {
        fn at<const N: usize>(bytes: &[u8; HEADER], offset: usize) -> [u8; N] {
            *bytes[offset..].first_chunk().expect("every field is within the header")
        }
        Self {
            src_cid: u64::from_le_bytes(at(bytes, 0)),
            dst_cid: u64::from_le_bytes(at(bytes, 8)),
            src_port: u32::from_le_bytes(at(bytes, 16)),
            dst_port: u32::from_le_bytes(at(bytes, 20)),
            len: u32::from_le_bytes(at(bytes, 24)),
            kind: u16::from_le_bytes(at(bytes, 28)),
            op: u16::from_le_bytes(at(bytes, 30)),
            flags: u32::from_le_bytes(at(bytes, 32)),
            buf_alloc: u32::from_le_bytes(at(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(at(bytes, 40)),
        }
    }
}

/// A chain that is no packet.
#[derive(Debug)]
pub(super) enum Malformed {
    /// Nor does it hold a header.
    Headless,
    /// It holds a header and not the data that this speaks of.
    Cut(Header),
}

/// A packet from the guest.
#[derive(Debug)]
pub(super) struct Packet<'m> {
    /// Read once: the guest may change its memory meanwhile.
    pub(super) header: Header,
    /// As much as the header says.
    pub(super) data: Buffers<'m>,
}

impl<'m> Packet<'m> {
    /// Takes what a chain of the transmit queue holds. A driver may cut header and data into
    /// descriptors as it likes (section 2.7.4), and Linux does for large ones.
    pub(super) fn parse(memory: &'m GuestMemory, chain: Chain<'m>) -> Result<Self, Malformed> {
        let mut data = gather(memory, chain, false).ok_or(Malformed::Headless)?;
        let header = Header::from_bytes(&data.take().ok_or(Malformed::Headless)?);
        if header.len > MAX_DATA || header.len > data.len() {
            return Err(Malformed::Cut(header));
        }
        Ok(Self { header, data: first(data, header.len) })
    }
}

/// Room that the guest gave for a packet.
#[derive(Debug)]
pub(super) struct Slot<'m> {
    header: Buffers<'m>,
    /// Room for some data, and at most for [`MAX_DATA`].
    pub(super) data: Buffers<'m>,
}

impl<'m> Slot<'m> {
    /// Takes a chain of the receive queue; nothing where that has no room for data.
    pub(super) fn parse(memory: &'m GuestMemory, chain: Chain<'m>) -> Option<Self> {
        let mut data = gather(memory, chain, true)?;
        let header = data.first(HEADER);
        data.advance(HEADER);
        (!data.is_empty()).then(|| Self { header, data: first(data, MAX_DATA) })
    }

    /// Puts a header before the data; how long the packet is then.
    pub(super) fn finish(mut self, header: &Header) -> u32 {
        let length = self.header.len() + header.len;
        self.header.put(&header.to_bytes());
        length
    }
}

/// What a chain's descriptors point to, if all of them are for the same direction.
fn gather<'m>(memory: &'m GuestMemory, chain: Chain<'m>, writable: bool) -> Option<Buffers<'m>> {
    let descriptors: Vec<_> = chain.take(MAX_PIECES + 1).collect();
    let usable = descriptors.len() <= MAX_PIECES
        && descriptors.iter().all(|descriptor| descriptor.is_write_only() == writable);
    if usable { Buffers::gather(memory, &descriptors).ok() } else { None }
}

fn first(data: Buffers<'_>, length: u32) -> Buffers<'_> {
    if data.len() <= length {
        return data;
    }
    data.first(usize::try_from(length).expect("usize has 64 bits"))
}
