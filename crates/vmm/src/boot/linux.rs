//! Linux's 64-bit boot protocol: a zero page, and page tables that map the first GiB to itself.

use linux_loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator as _, BootParams};
use vm_memory::{Bytes as _, GuestAddress};

use super::{BootError, COMMAND_LINE, Entry, Payload, Protocol, map, table};
use crate::GuestMemory;

const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Page tables: one page of each level. Read by the boot CPU's first instruction.
pub(crate) const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
const LEVEL: u64 = 0x1000;

/// From Documentation/arch/x86/boot.rst.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const LOADER_UNDEFINED: u8 = 0xff;
const XLF_KERNEL_64: u16 = 1;
/// "the 64-bit entry point is 0x200 from the start of the loaded kernel"
const BZIMAGE_ENTRY: u64 = 0x200;

pub(super) fn write(memory: &GuestMemory, payload: &Payload) -> Result<Entry, BootError> {
    let mut parameters = boot_params::default();
    let mut address = payload.kernel.kernel_load.0;
    match payload.kernel.setup_header {
        Some(header) => {
            if header.xloadflags & XLF_KERNEL_64 == 0 {
                return Err(BootError::NoEntry64);
            }
            parameters.hdr = header;
            address += BZIMAGE_ENTRY;
        }
        None => {
            parameters.hdr.boot_flag = BOOT_FLAG;
            parameters.hdr.header = HEADER_MAGIC;
            parameters.hdr.kernel_alignment = 0x0100_0000;
        }
    }
    let low = |address: u64| u32::try_from(address).expect("everything here lies below 4 GiB");
    parameters.hdr.type_of_loader = LOADER_UNDEFINED;
    parameters.hdr.cmd_line_ptr = low(COMMAND_LINE.0);
    parameters.hdr.cmdline_size = u32::try_from(payload.command_line).expect("it was bounded");
    if let Some((address, size)) = payload.initramfs {
        parameters.hdr.ramdisk_image = low(address);
        parameters.hdr.ramdisk_size = low(size);
    }
    let ranges = map(memory);
    parameters.e820_entries = u8::try_from(ranges.len()).expect("a handful");
    for (entry, range) in parameters.e820_table.iter_mut().zip(ranges) {
        *entry = boot_e820_entry { addr: range.start, size: range.length, r#type: range.kind };
    }
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&parameters, ZERO_PAGE), memory)
        .map_err(table("zero page"))?;
    write_page_tables(memory)?;
    Ok(Entry { address, protocol: Protocol::Linux64 { zero_page: ZERO_PAGE.0 } })
}

/// Intel SDM volume 3, section 4.5: a table of each level, pages of 2 MiB.
fn write_page_tables(memory: &GuestMemory) -> Result<(), BootError> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let at = |level: u64, entry: u64| GuestAddress(PAGE_TABLES.0 + level * LEVEL + entry * 8);
    let below = |level: u64| (PAGE_TABLES.0 + (level + 1) * LEVEL) | PRESENT_WRITABLE;
    let write = |value: u64, at| memory.write_obj(value, at).map_err(table("page tables"));
    write(below(0), at(0, 0))?;
    write(below(1), at(1, 0))?;
    let entries: Vec<u8> = (0..512_u64)
        .flat_map(|page| (page << 21 | LARGE | PRESENT_WRITABLE).to_le_bytes())
        .collect();
    memory.write_slice(&entries, at(2, 0)).map_err(table("page tables"))
}
