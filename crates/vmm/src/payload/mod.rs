//! A bare-metal guest for tests and benchmarks: it does what a script in its memory says.
//!
//! The host writes a [`Script`] of accesses (ports, device registers, memory, waiting for
//! interrupts) and lays out queues where it likes; the guest carries it out instruction by
//! instruction, and resets the machine at the end. So a test is a driver for a device, written on
//! the host, whose every access is a real one of a real virtual CPU.

use std::io;

use vm_memory::{Bytes as _, GuestAddress};

use crate::GuestMemory;
use crate::bare;
use crate::boot::Boot;

mod code;

/// Where the script is. What is above [`FREE`] is the test's.
const SCRIPT: u64 = 0x20_0000;
/// Count of interrupts that the guest took.
const INTERRUPTS: u64 = 0x1f_f000;
/// Set when the script has been carried out.
const DONE: u64 = 0x1f_e000;
/// From here on the guest leaves memory alone.
pub const FREE: u64 = 0x40_0000;
/// Most commands of a script.
const MAX_COMMANDS: usize = 0x8000;
/// The vector that every line is wired to.
const VECTOR: u32 = 0x40;
const IO_APIC: u64 = 0xfec0_0000;
const LOCAL_APIC: u64 = 0xfee0_0000;

/// What a command does with its address and value; the numbers are known to the assembly.
#[derive(Debug, Clone, Copy)]
#[repr(u64)]
enum Operation {
    End,
    Write8,
    Write16,
    Write32,
    Write64,
    Read8,
    Read16,
    Read32,
    Read64,
    Output,
    Input,
    /// Until so many interrupts have come in all.
    Await,
    /// So many turns of an empty loop.
    Spin,
    /// Until 16 bits of memory have this value.
    Watch,
}

/// Where the result of a command will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(usize);

/// What the guest is to do.
#[derive(Debug, Clone, Default)]
pub struct Script {
    commands: Vec<(Operation, u64, u64)>,
}

impl Script {
    /// Writes `bytes` (1, 2, 4 or 8) at an address, as one access.
    #[must_use]
    pub fn write(self, address: u64, value: u64, bytes: u8) -> Self {
        let operation = match bytes {
            1 => Operation::Write8,
            2 => Operation::Write16,
            4 => Operation::Write32,
            8 => Operation::Write64,
            other => panic!("no instruction writes {other} bytes"),
        };
        self.then(operation, address, value)
    }

    /// Writes 32 bits.
    #[must_use]
    pub fn write32(self, address: u64, value: u32) -> Self {
        self.write(address, value.into(), 4)
    }

    /// Reads `bytes` (1, 2, 4 or 8) at an address, as one access.
    #[must_use]
    pub fn read(self, address: u64, bytes: u8, slot: &mut Slot) -> Self {
        let operation = match bytes {
            1 => Operation::Read8,
            2 => Operation::Read16,
            4 => Operation::Read32,
            8 => Operation::Read64,
            other => panic!("no instruction reads {other} bytes"),
        };
        *slot = Slot(self.commands.len());
        self.then(operation, address, 0)
    }

    /// Reads 32 bits.
    #[must_use]
    pub fn read32(self, address: u64, slot: &mut Slot) -> Self {
        self.read(address, 4, slot)
    }

    /// Writes a byte to a port.
    #[must_use]
    pub fn output(self, port: u16, value: u8) -> Self {
        self.then(Operation::Output, port.into(), value.into())
    }

    /// Reads a byte from a port.
    #[must_use]
    pub fn input(self, port: u16, slot: &mut Slot) -> Self {
        *slot = Slot(self.commands.len());
        self.then(Operation::Input, port.into(), 0)
    }

    /// Has the interrupt controllers deliver this line of the I/O APIC.
    #[must_use]
    pub fn enable_interrupt(self, line: u8) -> Self {
        let entry = 0x10 + 2 * u32::from(line);
        // Spurious vector 0xff, and the bit that switches the local APIC on.
        self.write32(LOCAL_APIC + 0xf0, 0x1ff)
            .write32(IO_APIC, entry + 1)
            .write32(IO_APIC + 0x10, 0)
            .write32(IO_APIC, entry)
            .write32(IO_APIC + 0x10, VECTOR)
    }

    /// Halts until `count` interrupts have come since the machine began.
    #[must_use]
    pub fn await_interrupts(self, count: u64) -> Self {
        self.then(Operation::Await, 0, count)
    }

    /// Passes time in guest code.
    #[must_use]
    pub fn spin(self, turns: u64) -> Self {
        self.then(Operation::Spin, 0, turns)
    }

    /// Waits until the 16 bits at an address are `value`: a device may take a moment longer than
    /// its interrupt.
    #[must_use]
    pub fn watch(self, address: u64, value: u16) -> Self {
        self.then(Operation::Watch, address, value.into())
    }

    /// What `more` adds to it.
    #[must_use]
    pub fn and(self, more: impl FnOnce(Self) -> Self) -> Self {
        more(self)
    }

    fn then(mut self, operation: Operation, address: u64, value: u64) -> Self {
        self.commands.push((operation, address, value));
        self
    }

    /// Puts the script where the guest looks for it.
    ///
    /// # Panics
    /// Where it is too long, or memory smaller than 4 MiB.
    pub fn install(&self, memory: &GuestMemory) {
        assert!(self.commands.len() < MAX_COMMANDS, "a script of {}", self.commands.len());
        let end = [(Operation::End, 0, 0)];
        let words = self.commands.iter().chain(&end).flat_map(|&(operation, address, value)| {
            [operation as u64, address, value, 0].map(u64::to_le_bytes)
        });
        let bytes: Vec<u8> = words.flatten().collect();
        memory.write_slice(&bytes, GuestAddress(SCRIPT)).expect("memory for the script");
    }
}

impl Slot {
    /// One to be filled in by the command that it is handed to.
    pub fn new() -> Self {
        Self(MAX_COMMANDS)
    }

    /// What the command has read.
    ///
    /// # Panics
    /// Where no command was given this slot.
    pub fn get(self, memory: &GuestMemory) -> u64 {
        assert!(self.0 < MAX_COMMANDS, "this slot belongs to no command");
        let result = SCRIPT + 32 * self.0 as u64 + 24;
        memory.read_obj(GuestAddress(result)).expect("memory of the script")
    }
}

impl Default for Slot {
    fn default() -> Self {
        Self::new()
    }
}

/// How many interrupts the guest has taken.
///
/// # Panics
/// Where memory is smaller than the guest.
pub fn interrupts(memory: &GuestMemory) -> u64 {
    memory.read_obj(GuestAddress(INTERRUPTS)).expect("memory of the counter")
}

/// Whether the guest has carried out all of its script. A triple fault ends a machine as well.
///
/// # Panics
/// Where memory is smaller than the guest.
pub fn is_done(memory: &GuestMemory) -> bool {
    memory.read_obj::<u8>(GuestAddress(DONE)).expect("memory of the mark") == 1
}

/// The guest, to be booted.
///
/// # Errors
/// Where there is no memory for it.
pub fn boot() -> io::Result<Boot> {
    boot_of(code::scripted())
}

/// A guest without a script, which resets the machine in its second instruction: for measuring
/// how soon the first comes.
///
/// # Errors
/// Where there is no memory for it.
pub fn brief() -> io::Result<Boot> {
    boot_of(code::brief())
}

fn boot_of(code: &[u8]) -> io::Result<Boot> {
    Ok(Boot { kernel: bare::elf(code)?, initramfs: None, command_line: String::new() })
}
