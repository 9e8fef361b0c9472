//! What is in memory when the first virtual CPU begins: kernel, initramfs, command line, tables.
//!
//! ```text
//! 0x0000_0500  GDT and IDT of the boot CPU
//! 0x0000_6000  start info (PVH)       0x0000_7000  zero page (64-bit protocol)
//! 0x0000_9000  page tables of the 64-bit protocol: the first GiB, mapped to itself
//! 0x0002_0000  command line
//! 0x0009_fc00  MP table: where the kernel finds CPUs and interrupts
//! 0x0010_0000  kernel
//!        end   initramfs, at the top of the memory below the hole
//! ```

mod linux;
mod mptable;
mod pvh;

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};

use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader, KernelLoaderResult};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _};

use crate::GuestMemory;
use crate::memory::low_end;

pub(crate) use linux::PAGE_TABLES;

const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
/// COMMAND_LINE_SIZE of Linux on x86, the final NUL included.
const COMMAND_LINE_MAX: usize = 2048;
const KERNEL: GuestAddress = GuestAddress(0x10_0000);
/// Where firmware would keep its own data; the MP table is here.
const LOW_MEMORY_END: u64 = 0x9_fc00;
const PAGE: u64 = 0x1000;

/// What makes a machine's first program.
#[derive(Debug)]
pub struct Boot {
    /// A Linux kernel: an ELF with or without PVH entry, or a bzImage.
    pub kernel: File,
    /// A cpio archive.
    pub initramfs: Option<File>,
    /// Kernel parameters.
    pub command_line: String,
}

/// The kernel cannot be put into memory.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// It is neither an ELF nor a bzImage for this processor, or is damaged.
    #[error("the kernel does not load: {0}; it has to be an x86-64 vmlinux or bzImage")]
    Kernel(linux_loader::loader::Error),
    /// It has no entry for a machine that starts in 64-bit mode.
    #[error("the kernel has no 64-bit entry (XLF_KERNEL_64); build it with CONFIG_X86_64")]
    NoEntry64,
    /// A file cannot be read.
    #[error("cannot read the {what}: {source}")]
    Read {
        /// Which.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Kernel and initramfs do not fit together.
    #[error(
        "the kernel ends at {kernel_end:#x} and the initramfs takes {initramfs} bytes: they do not \
         fit below {low_end:#x}; give the machine more memory"
    )]
    TooLarge {
        /// Where the kernel ends.
        kernel_end: u64,
        /// Size of the initramfs.
        initramfs: u64,
        /// Where memory ends, below the devices.
        low_end: u64,
    },
    /// The command line is too long, or is no text.
    #[error("a command line of {0} bytes is too long, or has a NUL in it: {COMMAND_LINE_MAX} fit")]
    CommandLine(usize),
    /// A table does not fit in memory.
    #[error("cannot write the {what} into guest memory: {reason}")]
    Table {
        /// Which.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

/// How the first virtual CPU begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its first instruction.
    pub address: u64,
    /// The state that it expects.
    pub protocol: Protocol,
}

/// The state of a CPU at its first instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// 32-bit protected mode without paging, `ebx` points to the start info
    /// (xen/include/public/arch-x86/hvm/start_info.h).
    Pvh {
        /// Address of the start info.
        start_info: u64,
    },
    /// 64-bit mode with the first GiB mapped to itself, `rsi` points to the zero page
    /// (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").
    Linux64 {
        /// Address of the zero page.
        zero_page: u64,
    },
}

/// Fills memory. `boot.command_line` is what the kernel gets, `cpus` is how many there are.
///
/// # Errors
/// `BootError`.
pub fn load(memory: &GuestMemory, boot: &mut Boot, cpus: u8) -> Result<Entry, BootError> {
    let is_elf = begins_with(&mut boot.kernel, b"\x7fELF")?;
    let kernel = match is_elf {
        true => Elf::load(memory, None, &mut boot.kernel, Some(KERNEL)),
        false => BzImage::load(memory, None, &mut boot.kernel, Some(KERNEL)),
    };
    let kernel = kernel.map_err(BootError::Kernel)?;
    let initramfs = match &mut boot.initramfs {
        Some(file) => Some(load_initramfs(memory, file, &kernel)?),
        None => None,
    };
    load_command_line(memory, &boot.command_line)?;
    mptable::write(memory, cpus)?;
    let payload = Payload { kernel, initramfs, command_line: boot.command_line.len() };
    match payload.kernel.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => pvh::write(memory, &payload, entry.0),
        _ => linux::write(memory, &payload),
    }
}

/// What is in memory already when the tables are written.
struct Payload {
    kernel: KernelLoaderResult,
    /// Address and size.
    initramfs: Option<(u64, u64)>,
    /// Length.
    command_line: usize,
}

/// A range of guest-physical addresses, as both protocols tell it to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    start: u64,
    length: u64,
    kind: u32,
}

/// E820 types, which PVH has taken over.
const RAM: u32 = 1;
const RESERVED: u32 = 2;

fn map(memory: &GuestMemory) -> Vec<Range> {
    let mut ranges = vec![
        Range { start: 0, length: LOW_MEMORY_END, kind: RAM },
        Range { start: LOW_MEMORY_END, length: KERNEL.0 - LOW_MEMORY_END, kind: RESERVED },
    ];
    for region in memory.iter() {
        let start = region.start_addr().0.max(KERNEL.0);
        let end = region.start_addr().0 + region.len();
        ranges.push(Range { start, length: end - start, kind: RAM });
    }
    ranges
}

fn begins_with(file: &mut File, magic: &[u8; 4]) -> Result<bool, BootError> {
    let read = |source| BootError::Read { what: "kernel", source };
    let mut found = [0; 4];
    file.rewind().map_err(read)?;
    match file.read_exact(&mut found) {
        Ok(()) => Ok(&found == magic),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(read(error)),
    }
}

/// Address and size of the initramfs, as high as it can lie: the kernel frees it from there.
fn load_initramfs(
    memory: &GuestMemory,
    file: &mut File,
    kernel: &KernelLoaderResult,
) -> Result<(u64, u64), BootError> {
    let read = |source| BootError::Read { what: "initramfs", source };
    let size = file.seek(SeekFrom::End(0)).map_err(read)?;
    file.rewind().map_err(read)?;
    let highest = kernel.setup_header.map_or(u64::MAX, |header| u64::from(header.initrd_addr_max));
    let top = low_end(memory).min(highest.saturating_add(1));
    let kernel_end = kernel.kernel_end;
    let too_large = || BootError::TooLarge { kernel_end, initramfs: size, low_end: top };
    let address = top.checked_sub(size).ok_or_else(too_large)? / PAGE * PAGE;
    if address < kernel_end {
        return Err(too_large());
    }
    let count = usize::try_from(size).map_err(|_| too_large())?;
    memory
        .read_exact_volatile_from(GuestAddress(address), file, count)
        .map_err(|error| read(io::Error::other(error)))?;
    Ok((address, size))
}

fn load_command_line(memory: &GuestMemory, line: &str) -> Result<(), BootError> {
    if line.len() >= COMMAND_LINE_MAX || line.contains('\0') {
        return Err(BootError::CommandLine(line.len()));
    }
    let bytes = [line.as_bytes(), b"\0"].concat();
    memory.write_slice(&bytes, COMMAND_LINE).map_err(table("command line"))
}

fn table<E: ToString>(what: &'static str) -> impl FnOnce(E) -> BootError {
    move |error| BootError::Table { what, reason: error.to_string() }
}
