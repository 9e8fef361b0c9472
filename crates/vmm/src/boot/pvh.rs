//! The PVH protocol: the ELF's own entry, and a table that says where things are.

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator as _, BootParams};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::GuestAddress;

use super::{BootError, COMMAND_LINE, Entry, Payload, Protocol, map, table};
use crate::GuestMemory;

const START_INFO: GuestAddress = GuestAddress(0x6000);
const MODULES: GuestAddress = GuestAddress(0x6080);
const MEMORY_MAP: GuestAddress = GuestAddress(0x6100);
/// XEN_HVM_START_MAGIC_VALUE.
const MAGIC: u32 = 0x336e_c578;

pub(super) fn write(
    memory: &GuestMemory,
    payload: &Payload,
    entry: u64,
) -> Result<Entry, BootError> {
    let ranges: Vec<_> = map(memory)
        .iter()
        .map(|range| hvm_memmap_table_entry {
            addr: range.start,
            size: range.length,
            type_: range.kind,
            reserved: 0,
        })
        .collect();
    let modules: Vec<_> = payload
        .initramfs
        .iter()
        .map(|&(paddr, size)| hvm_modlist_entry { paddr, size, ..Default::default() })
        .collect();
    let count = |length: usize| u32::try_from(length).expect("a handful");
    let start_info = hvm_start_info {
        magic: MAGIC,
        // Since version 1 there is a memory map.
        version: 1,
        nr_modules: count(modules.len()),
        modlist_paddr: MODULES.0,
        cmdline_paddr: COMMAND_LINE.0,
        memmap_paddr: MEMORY_MAP.0,
        memmap_entries: count(ranges.len()),
        ..Default::default()
    };
    let mut parameters = BootParams::new(&start_info, START_INFO);
    parameters.set_sections(&ranges, MEMORY_MAP);
    if !modules.is_empty() {
        parameters.set_modules(&modules, MODULES);
    }
    PvhBootConfigurator::write_bootparams(&parameters, memory).map_err(table("start info"))?;
    Ok(Entry { address: entry, protocol: Protocol::Pvh { start_info: START_INFO.0 } })
}
