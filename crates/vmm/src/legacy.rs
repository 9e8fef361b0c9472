//! The two devices of a PC that are here: a serial port to find out why a kernel does not come
//! up, and the keyboard controller, by which Linux resets the machine.

use std::io::{self, Write};
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use vm_superio::serial::{self, SerialState};
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
pub(crate) type Console = Serial<Irq, serial::NoEvents, Sink>;

/// A serial port that writes to `to`, whose writes shall not block from here on.
///
/// It goes on from `state`, where there is one.
pub(crate) fn console(
    to: OwnedFd,
    irq: Event,
    state: Option<&ConsoleState>,
) -> io::Result<Console> {
    rustix::io::ioctl_fionbio(&to, true)?;
    let Some(state) = state else { return Ok(Serial::new(Irq(irq), Sink(to))) };
    Serial::from_state(&state.into(), Irq(irq), serial::NoEvents, Sink(to))
        .map_err(|error| io::Error::other(format!("{error:?}")))
}

/// The registers of a serial port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConsoleState {
    divisor: [u8; 2],
    interrupt: [u8; 2],
    line: [u8; 2],
    modem: [u8; 2],
    scratch: u8,
    received: Vec<u8>,
}

impl From<SerialState> for ConsoleState {
    fn from(state: SerialState) -> Self {
        Self {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt: [state.interrupt_enable, state.interrupt_identification],
            line: [state.line_control, state.line_status],
            modem: [state.modem_control, state.modem_status],
            scratch: state.scratch,
            received: state.in_buffer,
        }
    }
}

impl From<&ConsoleState> for SerialState {
    fn from(state: &ConsoleState) -> Self {
        Self {
            baud_divisor_low: state.divisor[0],
            baud_divisor_high: state.divisor[1],
            interrupt_enable: state.interrupt[0],
            interrupt_identification: state.interrupt[1],
            line_control: state.line[0],
            line_status: state.line[1],
            modem_control: state.modem[0],
            modem_status: state.modem[1],
            scratch: state.scratch,
            in_buffer: state.received.clone(),
        }
    }
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
