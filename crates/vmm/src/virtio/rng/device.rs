//! The device: fills what the driver offers.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestMemoryBackend as _, VolatileSlice};

use super::metrics::Metrics;
use crate::GuestMemory;
use crate::rate_limiter::{Rate, RateLimit};
use crate::virtio::throttle::Throttle;
use crate::virtio::{Active, Answer, Chain, ConfigSpace, Device, DeviceError, Identity};

/// 1 MiB per second: far more than a guest needs, far less than keeps a CPU of the host busy.
pub const DEFAULT_RATE: RateLimit = RateLimit {
    bytes: Some(Rate {
        per_second: NonZeroU64::new(1 << 20).unwrap(),
        burst: 256 << 10,
        first_burst: 0,
    }),
    operations: None,
};

const QUEUE: usize = 0;
const QUEUE_SIZE: u16 = 64;
/// Most bytes of one request; a driver that wants more asks again.
const MAX_BYTES: u32 = 64 << 10;
/// Bytes that are on their way from the kernel to the guest at once.
const CHUNK: usize = 4 << 10;

/// A source of random bytes.
#[derive(Debug)]
pub struct Rng {
    throttle: Throttle,
    metrics: Arc<Metrics>,
}

impl Rng {
    /// # Errors
    /// Where there is no descriptor for the rate limit's timer to be had.
    pub fn new(rate: RateLimit) -> io::Result<Self> {
        Ok(Self { throttle: Throttle::new(rate)?, metrics: Arc::default() })
    }

    /// What it counts.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    fn answer(&mut self, memory: &GuestMemory, chain: Chain<'_>) -> Answer {
        let most = usize::from(QUEUE_SIZE);
        let room: Vec<_> = chain.take(most + 1).collect();
        if room.len() > most || !room.iter().all(Descriptor::is_write_only) {
            self.metrics.malformed.add(1);
            return Answer::Used(0);
        }
        let wanted = room.iter().map(Descriptor::len).sum::<u32>().min(MAX_BYTES);
        if !self.throttle.admits(wanted.into()) {
            self.metrics.throttled.add(1);
            return Answer::Later;
        }
        self.metrics.requests.add(1);
        let written = self.fill(memory, &room, wanted);
        self.metrics.bytes.add(written.into());
        Answer::Used(written)
    }

    /// Fills the first `wanted` bytes; how many it could.
    fn fill(&self, memory: &GuestMemory, room: &[Descriptor], wanted: u32) -> u32 {
        let mut left = wanted;
        for descriptor in room {
            let length = descriptor.len().min(left);
            let bytes = usize::try_from(length).expect("32 bits");
            for piece in memory.get_slices(descriptor.addr(), bytes) {
                let Ok(piece) = piece else {
                    self.metrics.malformed.add(1);
                    return wanted - left;
                };
                if fill_piece(&piece).is_err() {
                    self.metrics.failed.add(1);
                    return wanted - left;
                }
                left -= u32::try_from(piece.len()).expect("32 bits");
            }
        }
        wanted - left
    }

    fn serve_all(&mut self, active: &mut Active) -> Result<(), DeviceError> {
        active.drain(QUEUE, |memory, chain| self.answer(memory, chain))
    }
}

fn fill_piece(piece: &VolatileSlice<'_>) -> rustix::io::Result<()> {
    let mut chunk = [0; CHUNK];
    let mut done = 0;
    while done < piece.len() {
        let most = CHUNK.min(piece.len() - done);
        let bytes = getrandom(&mut chunk[..most], GetRandomFlags::empty())?;
        piece.offset(done).expect("it is longer").copy_from(&chunk[..bytes]);
        done += bytes;
    }
    Ok(())
}

impl Device for Rng {
    fn identity(&self) -> Identity {
        Identity { id: VIRTIO_ID_RNG, features: 0, queue_sizes: &[QUEUE_SIZE] }
    }

    fn system_calls(&self) -> &'static [libc::c_long] {
        super::SYSTEM_CALLS
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        Arc::new(Box::<[u8]>::default())
    }

    fn serve(&mut self, active: &mut Active, _queue: usize) -> Result<(), DeviceError> {
        if self.throttle.is_waiting() {
            return Ok(());
        }
        self.serve_all(active)
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        self.throttle.source()
    }

    fn source_ready(&mut self, active: &mut Active) -> Result<(), DeviceError> {
        self.throttle.stop_waiting();
        self.serve_all(active)
    }

    fn reset(&mut self) {
        self.throttle.stop_waiting();
    }
}
