//! Which device an address or a port belongs to.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::legacy::{self, Console, ConsoleState};
use crate::metrics::Counter;
use crate::virtio::{Transport, WINDOW};

/// Where the first virtio device's registers are; the others follow.
pub(crate) const VIRTIO: u64 = 0xd000_0000;
/// The first virtio device's interrupt line; the others follow. 0 to 4 are a PC's own.
pub(crate) const VIRTIO_IRQ: u32 = 5;

/// All devices, as the virtual CPUs see them.
#[derive(Debug)]
pub(crate) struct Bus {
    virtio: Vec<Mutex<Transport>>,
    console: Option<Mutex<Console>>,
    /// Accesses to what is not there.
    pub(crate) unclaimed: Counter,
}

impl Bus {
    pub(crate) fn new(virtio: Vec<Transport>, console: Option<Console>) -> Self {
        Self {
            virtio: virtio.into_iter().map(Mutex::new).collect(),
            console: console.map(Mutex::new),
            unclaimed: Counter::default(),
        }
    }

    /// The virtio devices, in the order of their addresses.
    pub(crate) fn virtio(&self) -> impl Iterator<Item = MutexGuard<'_, Transport>> {
        self.virtio.iter().map(lock)
    }

    /// The serial port's registers, where there is one.
    pub(crate) fn console(&self) -> Option<ConsoleState> {
        self.console.as_ref().map(|console| lock(console).state().into())
    }

    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) {
        match self.find(address) {
            Some((transport, offset)) => transport.read(offset, bytes),
            None => self.float(bytes),
        }
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        match self.find(address) {
            Some((mut transport, offset)) => transport.write(offset, bytes),
            None => self.unclaimed.add(1),
        }
    }

    pub(crate) fn input(&self, port: u16, bytes: &mut [u8]) {
        match (&self.console, bytes) {
            (Some(console), [byte]) if legacy::SERIAL.contains(&port) => {
                *byte = lock(console).read(serial_register(port));
            }
            (_, bytes) if legacy::is_i8042(port) => bytes.fill(0),
            (_, bytes) => self.float(bytes),
        }
    }

    pub(crate) fn output(&self, port: u16, bytes: &[u8]) {
        match (&self.console, bytes) {
            (Some(console), [byte]) if legacy::SERIAL.contains(&port) => {
                // Only its interrupt and its sink could fail, and these do not.
                let _ = lock(console).write(serial_register(port), *byte);
            }
            _ if legacy::is_i8042(port) => {}
            _ => self.unclaimed.add(1),
        }
    }

    fn find(&self, address: u64) -> Option<(MutexGuard<'_, Transport>, u64)> {
        let distance = address.checked_sub(VIRTIO)?;
        let index = usize::try_from(distance / WINDOW).ok()?;
        Some((lock(self.virtio.get(index)?), distance % WINDOW))
    }

    /// A bus that nobody drives reads as ones.
    fn float(&self, bytes: &mut [u8]) {
        self.unclaimed.add(1);
        bytes.fill(0xff);
    }
}

fn serial_register(port: u16) -> u8 {
    u8::try_from(port - legacy::SERIAL.start).expect("a serial port has eight registers")
}

/// A thread that panicked has ended the process; what it held is as good as it ever was.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
