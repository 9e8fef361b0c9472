//! Requests, as the driver writes them (section 5.2.6).
//!
//! A request is a header and perhaps data that the device reads, then perhaps room for data and a
//! byte of status that it writes. How that is cut into descriptors is the driver's affair (section
//! 2.7.4).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address as _, GuestMemoryBackend as _, VolatileSlice};

use crate::GuestMemory;
use crate::virtio::Chain;
use crate::virtio::buffers::{Buffers, MAX_BUFFERS, Unusable};

/// Most ranges that one request may discard.
pub(super) const MAX_DISCARD_RANGES: usize = 32;
/// Most ranges that one request may fill with zeroes. Linux never sends more.
pub(super) const MAX_ZEROING_RANGES: usize = 1;

const HEADER: usize = 16;
const RANGE: usize = 16;

/// A request that can be answered.
#[derive(Debug)]
pub(super) struct Request<'m> {
    /// What is asked for.
    pub(super) operation: Result<Operation<'m>, Malformed>,
    /// Where the status goes.
    pub(super) status: VolatileSlice<'m>,
    /// Bytes in front of the status that the device may write.
    pub(super) room: u32,
}

/// What is asked for.
#[derive(Debug)]
pub(super) enum Operation<'m> {
    Read { sector: u64, to: Buffers<'m> },
    Write { sector: u64, from: Buffers<'m> },
    Flush,
    Discard(Vec<Range>),
    WriteZeroes(Vec<Range>),
    Identify { to: Buffers<'m> },
    Unknown,
}

/// Sectors that an operation without data is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) sector: u64,
    pub(super) sectors: u32,
    pub(super) flags: u32,
}

/// Why a request makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Malformed {
    /// Its buffers cannot be used.
    Buffers(Unusable),
    /// Something to read comes after something to write.
    Order,
    /// It has no whole header.
    Header,
    /// It has data to read or room to write that it must not have.
    Direction,
    /// The ranges are no ranges, or too many.
    Ranges,
    /// What it is about is not whole sectors, or none.
    Length,
    /// What it is about is beyond the end of the disk.
    BeyondEnd,
}

impl<'m> Request<'m> {
    /// Nothing where there is no byte of status that could be written, or more than a queue can
    /// hold in front of it.
    pub(super) fn parse(memory: &'m GuestMemory, chain: Chain<'m>) -> Option<Self> {
        let descriptors: Vec<_> = chain.take(MAX_BUFFERS + 1).collect();
        if descriptors.len() > MAX_BUFFERS {
            return None;
        }
        let status = last_byte(memory, descriptors.last()?)?;
        let writable = descriptors.iter().filter(|descriptor| descriptor.is_write_only());
        // A chain ends before it gets longer than 4 GiB.
        let room = writable.map(Descriptor::len).sum::<u32>() - 1;
        Some(Self { operation: Operation::parse(memory, &descriptors), status, room })
    }

    /// Bytes that it moves, for the rate limit.
    pub(super) fn bytes(&self) -> u64 {
        match &self.operation {
            Ok(Operation::Read { to: data, .. } | Operation::Write { from: data, .. }) => {
                data.len().into()
            }
            // Some file systems have to write them.
            Ok(Operation::WriteZeroes(ranges)) => {
                ranges.iter().map(|range| u64::from(range.sectors) << 9).sum()
            }
            _ => 0,
        }
    }
}

fn last_byte<'m>(memory: &'m GuestMemory, last: &Descriptor) -> Option<VolatileSlice<'m>> {
    if !last.is_write_only() {
        return None;
    }
    let at = last.addr().checked_add(u64::from(last.len().checked_sub(1)?))?;
    memory.get_slice(at, 1).ok()
}

impl<'m> Operation<'m> {
    pub(super) fn changes_disk(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Discard(_) | Self::WriteZeroes(_))
    }

    fn parse(memory: &'m GuestMemory, descriptors: &[Descriptor]) -> Result<Self, Malformed> {
        let writable = descriptors.iter().position(Descriptor::is_write_only);
        let (readable, writable) = descriptors.split_at(writable.unwrap_or(descriptors.len()));
        if !writable.iter().all(Descriptor::is_write_only) {
            return Err(Malformed::Order);
        }
        let mut from = Buffers::gather(memory, readable).map_err(Malformed::Buffers)?;
        let mut to = Buffers::gather(memory, writable).map_err(Malformed::Buffers)?;
        // The status.
        to.pop();
        let header: [u8; HEADER] = from.take().ok_or(Malformed::Header)?;
        let (kind, sector) = parse_header(&header);
        let (reads, writes) = (!from.is_empty(), !to.is_empty());
        let expects = |may_read: bool, may_write: bool| {
            let fits = (may_read || !reads) && (may_write || !writes);
            if fits { Ok(()) } else { Err(Malformed::Direction) }
        };
        match kind {
            VIRTIO_BLK_T_IN => expects(false, true).map(|()| Self::Read { sector, to }),
            VIRTIO_BLK_T_OUT => expects(true, false).map(|()| Self::Write { sector, from }),
            VIRTIO_BLK_T_FLUSH => expects(false, false).map(|()| Self::Flush),
            VIRTIO_BLK_T_GET_ID => expects(false, true).map(|()| Self::Identify { to }),
            VIRTIO_BLK_T_DISCARD => {
                expects(true, false)?;
                parse_ranges(from, MAX_DISCARD_RANGES).map(Self::Discard)
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                expects(true, false)?;
                parse_ranges(from, MAX_ZEROING_RANGES).map(Self::WriteZeroes)
            }
            _ => Ok(Self::Unknown),
        }
    }
}

/// The kind and the sector.
fn parse_header(header: &[u8; HEADER]) -> (u32, u64) {
    let [kind, _priority, low, high] = words(header);
    (kind, u64::from(high) << 32 | u64::from(low))
}

fn parse_ranges(mut from: Buffers<'_>, most: usize) -> Result<Vec<Range>, Malformed> {
    let length = usize::try_from(from.len()).expect("32 bits");
    let many = length / RANGE;
    if length % RANGE != 0 || !(1..=most).contains(&many) {
        return Err(Malformed::Ranges);
    }
    let mut ranges = Vec::with_capacity(many);
    while let Some(range) = from.take::<RANGE>() {
        let [low, high, sectors, flags] = words(&range);
        ranges.push(Range { sector: u64::from(high) << 32 | u64::from(low), sectors, flags });
    }
    Ok(ranges)
}

fn words(bytes: &[u8; 16]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks::<4>();
    [0, 1, 2, 3].map(|number| u32::from_le_bytes(words[number]))
}
