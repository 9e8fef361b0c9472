//! The device and its queues.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vm_memory::Bytes as _;

use super::Config;
use super::metrics::Metrics;
use super::muxer::Muxer;
use super::packet::{Packet, Slot};
use crate::virtio::{
    Active, Answer, ConfigSpace, Device, DeviceError, DeviceStateError, Identity, Own,
};

/// To the guest.
pub(super) const RECEIVE: usize = 0;
/// From the guest.
pub(super) const TRANSMIT: usize = 1;
/// What happened to the device.
const EVENTS: usize = 2;

/// Receive buffers make what the guest can take at a time, 4 KiB each with Linux. Linux has
/// eight buffers for events.
const QUEUE_SIZES: &[u16] = &[256, 256, 8];

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (section 5.10.6.7): the guest's connections are gone.
const TRANSPORT_RESET: u32 = 0;

/// `VIRTIO_VSOCK_F_STREAM`.
const FEATURE_STREAM: u64 = 1 << 0;

/// How far the news is that all connections are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// There is none, or it was taken.
    None,
    /// There is no buffer for it yet.
    Untold,
    /// The driver has it. It has dealt with it when it makes a buffer available again: connections
    /// that it is asked for before that might be taken for those that are gone.
    Told,
}

/// The device.
#[derive(Debug)]
pub struct Vsock {
    muxer: Muxer,
    /// There are packets of the guest that were not looked at, for want of room for answers.
    unheard: bool,
    /// The guest does not know yet that its connections are gone.
    news: News,
    cid: u64,
    metrics: Arc<Metrics>,
}

impl Vsock {
    /// One with these ends on the host.
    ///
    /// # Errors
    /// Where the guest's CID is one of the reserved, a descriptor is no socket that can be
    /// waited for, or there are no more to be had.
    pub fn new(config: Config) -> io::Result<Self> {
        if config.guest_cid <= 2 || config.guest_cid == u32::MAX {
            let reason = format!("{} is reserved and no guest's CID", config.guest_cid);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let metrics = Arc::<Metrics>::default();
        let cid = config.guest_cid.into();
        Ok(Self {
            muxer: Muxer::new(config, metrics.clone())?,
            unheard: false,
            news: News::None,
            cid,
            metrics,
        })
    }

    /// What it counts.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    /// How many sockets of the host it holds, listening ones and controls aside.
    pub fn connections(&self) -> usize {
        self.muxer.len()
    }

    /// Takes packets of the guest, as long as there is room for answers to them.
    fn hear(&mut self, active: &mut Active) -> Result<(), DeviceError> {
        self.unheard = false;
        active.drain(TRANSMIT, |memory, chain| {
            if self.muxer.is_congested() {
                self.unheard = true;
                return Answer::Later;
            }
            self.muxer.receive(Packet::parse(memory, chain));
            Answer::Used(0)
        })
    }

    /// Gives packets to the guest, as long as there are any and it has buffers for them.
    fn say(&mut self, active: &mut Active) -> Result<(), DeviceError> {
        if !self.muxer.has_packets() {
            return Ok(());
        }
        active.drain(RECEIVE, |memory, chain| {
            let Some(slot) = Slot::parse(memory, chain) else {
                self.metrics.malformed.add(1);
                return Answer::Used(0);
            };
            self.muxer.fill(slot).map_or(Answer::Later, Answer::Used)
        })
    }

    /// Tells the guest that its connections are gone, and waits until it has dealt with that.
    fn tell(&mut self, active: &mut Active) -> Result<(), DeviceError> {
        let news = &mut self.news;
        let before = *news;
        active.drain(EVENTS, |memory, mut chain| {
            if before == News::Told {
                *news = News::None;
                return Answer::Later;
            }
            // The others go back empty: a driver says when it makes one available again only where
            // the device has taken all.
            if std::mem::replace(news, News::Told) == News::Told {
                return Answer::Used(0);
            }
            let room = chain.next().filter(|room| room.is_write_only());
            let told = room.map(|room| memory.write_obj(TRANSPORT_RESET, room.addr()));
            Answer::Used(if matches!(told, Some(Ok(()))) { 4 } else { 0 })
        })?;
        if self.news == News::None {
            self.muxer.start();
        }
        Ok(())
    }

    /// Does what may have become possible.
    fn go_on(&mut self, active: &mut Active) -> Result<(), DeviceError> {
        self.muxer.admit();
        self.say(active)?;
        if self.unheard && !self.muxer.is_congested() {
            active.kicks[TRANSMIT].raise();
        }
        self.muxer.set_clock();
        Ok(())
    }
}

impl Device for Vsock {
    fn identity(&self) -> Identity {
        Identity { id: VIRTIO_ID_VSOCK, features: FEATURE_STREAM, queue_sizes: QUEUE_SIZES }
    }

    fn system_calls(&self) -> &'static [libc::c_long] {
        super::SYSTEM_CALLS
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        Arc::new(Box::<[u8]>::from(self.cid.to_le_bytes()))
    }

    fn serve(&mut self, active: &mut Active, queue: usize) -> Result<(), DeviceError> {
        if self.news != News::None {
            // What is still on its way belongs to connections that are gone.
            if queue == EVENTS {
                self.tell(active)?;
            }
            if self.news != News::None {
                return Ok(());
            }
            active.kicks[TRANSMIT].raise();
        }
        if queue == TRANSMIT {
            self.hear(active)?;
        }
        self.go_on(active)
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.muxer.source())
    }

    fn source_ready(&mut self, active: &mut Active) -> Result<(), DeviceError> {
        self.metrics.wake_ups.add(1);
        self.muxer.wake();
        self.go_on(active)
    }

    fn activated(&mut self, active: &mut Active) -> Result<(), DeviceError> {
        self.muxer.start();
        self.go_on(active)
    }

    fn restored(&mut self, active: &mut Active, saved: &Own) -> Result<(), DeviceStateError> {
        if *saved != Own::default() {
            return Err(DeviceStateError::Own);
        }
        self.news = News::Untold;
        let broken = |error: DeviceError| DeviceStateError::Device(error.to_string());
        self.tell(active).map_err(broken)
    }

    fn reset(&mut self) {
        self.unheard = false;
        self.news = News::None;
        self.muxer.stop();
    }
}
