//! The two devices of a PC that are here: a serial port to find out why a kernel does not come
//! up, and the keyboard controller, by which Linux resets the machine.

use std::io::{self, Write};
use std::os::fd::OwnedFd;

use vm_superio::{Serial, Trigger};

use crate::event::Event;

/// The first serial port of a PC.
pub(crate) const SERIAL: std::ops::Range<u16> = 0x3f8..0x400;
/// Its interrupt.
pub(crate) const SERIAL_IRQ: u32 = 4;
/// Data and command port of the keyboard controller.
const I8042: [u16; 2] = [0x60, 0x64];
/// "Pulse output line 0", which is the processor's reset.
const I8042_RESET: u8 = 0xfe;

/// A 16550 that only speaks.
pub(crate) type Console = Serial<Irq, vm_superio::serial::NoEvents, Sink>;

/// A serial port that writes to `to`, whose writes shall not block from here on.
pub(crate) fn console(to: OwnedFd, irq: Event) -> io::Result<Console> {
    rustix::io::ioctl_fionbio(&to, true)?;
    Ok(Serial::new(Irq(irq), Sink(to)))
}

/// The interrupt of the serial port.
#[derive(Debug)]
pub(crate) struct Irq(Event);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.raise();
        Ok(())
    }
}

/// Where the console's bytes go. What the other side does not take in time is lost: a reader
/// that stops must not stop a virtual CPU.
#[derive(Debug)]
pub(crate) struct Sink(OwnedFd);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = rustix::io::write(&self.0, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether this write is the keyboard controller's command to reset the machine.
pub(crate) fn is_reset(port: u16, bytes: &[u8]) -> bool {
    port == I8042[1] && bytes == [I8042_RESET]
}

/// The keyboard controller has nothing to say and is ready for commands.
pub(crate) fn is_i8042(port: u16) -> bool {
    I8042.contains(&port)
}
