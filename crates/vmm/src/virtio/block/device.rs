//! The device: serves requests, one after the other.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::io::Errno;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::disk::{Disk, DiskError, Extent, SECTOR};
use super::metrics::Metrics;
use super::request::{
    MAX_DISCARD_RANGES, MAX_ZEROING_RANGES, Malformed, Operation, Range, Request,
};
use crate::rate_limiter::RateLimit;
use crate::virtio::buffers::{Buffers, MAX_BUFFERS};
use crate::virtio::throttle::Throttle;
use crate::virtio::{Active, Answer, ConfigSpace, Device, DeviceError, Identity};

/// Bytes of a disk's id.
pub(super) const ID: usize = VIRTIO_BLK_ID_BYTES as usize;

const QUEUE: usize = 0;
const QUEUE_SIZE: u16 = 256;
const _: () = assert!(QUEUE_SIZE as usize == MAX_BUFFERS);
/// Most pieces of data: what fits into the queue besides header and status.
const MAX_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;

/// 64 MiB: a file system that has to write zeroes does that in a moment.
const MAX_ZEROING_SECTORS: u32 = 1 << 17;
/// 1 GiB.
const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// Files have blocks of 4 KiB. What is discarded beyond these is zeroed by the host instead.
const DISCARD_ALIGNMENT: u32 = 8;

/// A disk as it is asked for.
#[derive(Debug)]
pub struct Config {
    /// What it holds: one file, or several that are only read, one after another. Each counts
    /// rounded down to 512 bytes.
    pub files: Vec<File>,
    /// Whether the guest may only read it. Sandboxes may share such files, opened for reading.
    pub read_only: bool,
    /// What the guest knows it by: up to 20 bytes, `/sys/block/vd*/serial` under Linux.
    pub id: String,
    /// How much of it the guest may use in a time.
    pub rate: Option<RateLimit>,
}

/// A disk.
#[derive(Debug)]
pub struct Block {
    disk: Disk,
    id: [u8; ID],
    /// Whether what is written is to survive the host before the driver is told.
    writes_through: bool,
    throttle: Option<Throttle>,
    metrics: Arc<Metrics>,
}

/// A request was not carried out.
#[derive(Debug)]
enum Failure {
    Malformed,
    ReadOnly,
    Unsupported,
    Host,
}

impl Block {
    /// # Errors
    /// `DiskError`.
    pub fn new(config: Config) -> Result<Self, DiskError> {
        let mut id = [0; ID];
        match id.get_mut(..config.id.len()) {
            Some(start) => start.copy_from_slice(config.id.as_bytes()),
            None => return Err(DiskError::Id(config.id)),
        }
        Ok(Self {
            disk: Disk::new(config.files, config.read_only)?,
            id,
            writes_through: true,
            throttle: config.rate.map(Throttle::new).transpose().map_err(DiskError::Timer)?,
            metrics: Arc::default(),
        })
    }

    /// What it counts.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    fn stop_waiting(&mut self) {
        if let Some(throttle) = &mut self.throttle {
            throttle.stop_waiting();
        }
    }

    fn answer(&mut self, request: Option<Request<'_>>) -> Answer {
        let Some(request) = request else {
            self.metrics.malformed.add(1);
            return Answer::Used(0);
        };
        let bytes = request.bytes();
        if self.throttle.as_mut().is_some_and(|throttle| !throttle.admits(bytes)) {
            self.metrics.throttled.add(1);
            return Answer::Later;
        }
        let operation = request.operation.map_err(|_| Failure::Malformed);
        let done = operation.and_then(|operation| self.perform(operation));
        request.status.copy_from(&[self.status(&done)]);
        let written = done.unwrap_or(0);
        // The status counts where what is in front of it was written (section 2.7.8.2).
        Answer::Used(written + u32::from(written == request.room))
    }

    /// How many bytes it wrote into the guest's memory.
    fn perform(&self, operation: Operation<'_>) -> Result<u32, Failure> {
        let changes = operation.changes_disk();
        if changes && self.disk.is_read_only() {
            return Err(Failure::ReadOnly);
        }
        let written = match operation {
            Operation::Read { sector, to } => self.read(sector, to)?,
            Operation::Write { sector, from } => self.write(sector, from)?,
            Operation::Flush => self.flush()?,
            Operation::Discard(ranges) => self.discard(&ranges)?,
            Operation::WriteZeroes(ranges) => self.write_zeroes(&ranges)?,
            Operation::Identify { to } => self.identify(to)?,
            Operation::Unknown => return Err(Failure::Unsupported),
        };
        if changes && self.writes_through {
            self.disk.flush()?;
        }
        Ok(written)
    }

    fn read(&self, sector: u64, to: Buffers<'_>) -> Result<u32, Failure> {
        self.metrics.reads.add(1);
        let bytes = to.len();
        self.disk.read(self.disk.extent(sector, bytes.into())?, to)?;
        self.metrics.bytes_read.add(bytes.into());
        Ok(bytes)
    }

    fn write(&self, sector: u64, from: Buffers<'_>) -> Result<u32, Failure> {
        self.metrics.writes.add(1);
        let bytes = from.len();
        self.disk.write(self.disk.extent(sector, bytes.into())?, from)?;
        self.metrics.bytes_written.add(bytes.into());
        Ok(0)
    }

    fn flush(&self) -> Result<u32, Failure> {
        self.metrics.flushes.add(1);
        self.disk.flush()?;
        Ok(0)
    }

    fn discard(&self, ranges: &[Range]) -> Result<u32, Failure> {
        self.metrics.discards.add(1);
        // Section 5.2.6.2: no flag means anything here.
        if ranges.iter().any(|range| range.flags != 0) {
            return Err(Failure::Unsupported);
        }
        for extent in self.extents(ranges, MAX_DISCARD_SECTORS)? {
            self.disk.discard(extent)?;
        }
        Ok(0)
    }

    fn write_zeroes(&self, ranges: &[Range]) -> Result<u32, Failure> {
        self.metrics.zeroings.add(1);
        if ranges.iter().any(|range| range.flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0) {
            return Err(Failure::Unsupported);
        }
        let extents = self.extents(ranges, MAX_ZEROING_SECTORS)?;
        for (extent, range) in extents.into_iter().zip(ranges) {
            self.disk.write_zeroes(extent, range.flags != 0)?;
        }
        Ok(0)
    }

    fn identify(&self, mut to: Buffers<'_>) -> Result<u32, Failure> {
        if to.len() < VIRTIO_BLK_ID_BYTES {
            return Err(Failure::Malformed);
        }
        to.put(&self.id);
        Ok(VIRTIO_BLK_ID_BYTES)
    }

    /// All of the ranges, or none where one is not on the disk.
    fn extents(&self, ranges: &[Range], most_sectors: u32) -> Result<Vec<Extent>, Malformed> {
        let extent = |range: &Range| {
            if range.sectors > most_sectors {
                return Err(Malformed::Length);
            }
            self.disk.extent(range.sector, u64::from(range.sectors) * SECTOR)
        };
        ranges.iter().map(extent).collect()
    }

    /// What the driver is told, and counts it.
    fn status(&self, done: &Result<u32, Failure>) -> u8 {
        let (status, counter) = match done {
            Ok(_) => return status_byte(VIRTIO_BLK_S_OK),
            Err(Failure::Malformed) => (VIRTIO_BLK_S_IOERR, &self.metrics.malformed),
            Err(Failure::ReadOnly) => (VIRTIO_BLK_S_IOERR, &self.metrics.refused),
            Err(Failure::Host) => (VIRTIO_BLK_S_IOERR, &self.metrics.failed),
            Err(Failure::Unsupported) => (VIRTIO_BLK_S_UNSUPP, &self.metrics.unsupported),
        };
        counter.add(1);
        status_byte(status)
    }
}

fn status_byte(status: u32) -> u8 {
    u8::try_from(status).expect("a status is a byte")
}

impl From<Malformed> for Failure {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Self::Host
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        match error {
            // The driver does not ask again.
            Errno::OPNOTSUPP | Errno::NOSYS => Self::Unsupported,
            _ => Self::Host,
        }
    }
}

impl Device for Block {
    fn identity(&self) -> Identity {
        let common = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE;
        let changing =
            1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        let more = if self.disk.is_read_only() { 1 << VIRTIO_BLK_F_RO } else { changing };
        Identity { id: VIRTIO_ID_BLOCK, features: common | more, queue_sizes: &[QUEUE_SIZE] }
    }

    fn system_calls(&self) -> &'static [libc::c_long] {
        super::SYSTEM_CALLS
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        Arc::new(registers(self.disk.sectors()))
    }

    fn activated(&mut self, active: &mut Active) -> Result<(), DeviceError> {
        // Section 5.2.6.2: a driver that cannot flush has to find its data safe all the same.
        self.writes_through = !active.has(VIRTIO_BLK_F_FLUSH);
        Ok(())
    }

    fn serve(&mut self, active: &mut Active, queue: usize) -> Result<(), DeviceError> {
        if self.throttle.as_ref().is_some_and(Throttle::is_waiting) {
            return Ok(());
        }
        active.drain(queue, |memory, chain| self.answer(Request::parse(memory, chain)))
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        self.throttle.as_ref()?.source()
    }

    fn source_ready(&mut self, active: &mut Active) -> Result<(), DeviceError> {
        self.stop_waiting();
        self.serve(active, QUEUE)
    }

    fn reset(&mut self) {
        self.stop_waiting();
    }
}

/// `struct virtio_blk_config` up to what the features above make valid (section 5.2.4).
fn registers(sectors: u64) -> Box<[u8]> {
    let mut registers = vec![0; 60];
    let mut word = |at: usize, value: u32| {
        registers[at..at + 4].copy_from_slice(&value.to_le_bytes());
    };
    word(12, MAX_SEGMENTS);
    word(20, u32::try_from(SECTOR).expect("a block's size"));
    word(36, MAX_DISCARD_SECTORS);
    word(40, u32::try_from(MAX_DISCARD_RANGES).expect("a few"));
    word(44, DISCARD_ALIGNMENT);
    word(48, MAX_ZEROING_SECTORS);
    word(52, u32::try_from(MAX_ZEROING_RANGES).expect("a few"));
    // Zeroing may give room back.
    word(56, 1);
    registers[..8].copy_from_slice(&sectors.to_le_bytes());
    registers.into()
}
