//! A device for tests of what is around devices: it reports what it is asked to do.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use virtio_queue::{QueueOwnedT as _, QueueState};

use super::device::{Active, ConfigSpace, Device, DeviceError, Identity};
use super::state::{DeviceStateError, Own};
use crate::event::Event;

/// A feature that it offers, as a bit.
pub(crate) const FEATURE: u64 = 1 << 3;
pub(crate) const ID: u32 = 42;
pub(crate) const QUEUES: usize = 2;
pub(crate) const MAX_QUEUE_SIZE: u16 = 16;

/// What it was asked to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Activated { features: u64, queues: Vec<QueueState> },
    Served(usize),
    Source,
    Reset,
}

#[derive(Debug)]
pub(crate) struct Recorder {
    calls: Sender<Call>,
    registers: Arc<Registers>,
    source: Event,
}

/// What the test has of it once it is on its worker.
#[derive(Debug)]
pub(crate) struct Record {
    calls: Receiver<Call>,
    pub(crate) registers: Arc<Registers>,
    pub(crate) source: Event,
}

#[derive(Debug, Default)]
pub(crate) struct Registers(pub(crate) Mutex<Vec<(u64, Vec<u8>)>>);

impl Recorder {
    pub(crate) fn new() -> (Self, Record) {
        let (sender, calls) = channel();
        let registers = Arc::<Registers>::default();
        let source = Event::new().unwrap();
        let record =
            Record { calls, registers: registers.clone(), source: source.try_clone().unwrap() };
        (Self { calls: sender, registers, source }, record)
    }

    fn report(&self, call: Call) {
        // A test that has seen enough is gone.
        let _ = self.calls.send(call);
    }
}

impl Record {
    /// The next call, which is on its way.
    pub(crate) fn next(&self) -> Call {
        self.calls.recv_timeout(Duration::from_secs(10)).expect("the device is called")
    }

    /// There is no other call; waits long enough for one to arrive.
    pub(crate) fn assert_no_more(&self) {
        let more = self.calls.recv_timeout(Duration::from_millis(30));
        assert!(matches!(more, Err(RecvTimeoutError::Timeout)), "{more:?}");
    }

    /// A call that has been made.
    pub(crate) fn last(&self) -> Option<Call> {
        self.calls.try_iter().last()
    }
}

impl Device for Recorder {
    fn identity(&self) -> Identity {
        Identity { id: ID, features: FEATURE, queue_sizes: &[MAX_QUEUE_SIZE; QUEUES] }
    }

    fn system_calls(&self) -> &'static [libc::c_long] {
        &[]
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        self.registers.clone()
    }

    fn serve(&mut self, active: &mut Active, queue: usize) -> Result<(), DeviceError> {
        self.report(Call::Served(queue));
        let entries = active.queues[queue].iter(&active.memory);
        entries.map(drop).map_err(|source| DeviceError::Queue { queue, source })
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.source.as_fd())
    }

    fn source_ready(&mut self, _active: &mut Active) -> Result<(), DeviceError> {
        self.source.lower();
        self.report(Call::Source);
        Ok(())
    }

    fn activated(&mut self, active: &mut Active) -> Result<(), DeviceError> {
        let queues = active.queues.iter().map(virtio_queue::Queue::state).collect();
        self.report(Call::Activated { features: active.features, queues });
        Ok(())
    }

    /// It has news for its driver each time.
    fn restored(&mut self, active: &mut Active, _own: &Own) -> Result<(), DeviceStateError> {
        active.interrupt.queue_used();
        Ok(())
    }

    fn reset(&mut self) {
        self.report(Call::Reset);
    }
}

impl ConfigSpace for Registers {
    fn read(&self, offset: u64, bytes: &mut [u8]) {
        bytes.fill(u8::try_from(offset).unwrap());
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        self.0.lock().unwrap().push((offset, bytes.to_vec()));
    }
}
