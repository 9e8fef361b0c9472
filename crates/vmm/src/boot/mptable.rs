//! The MP table (MultiProcessor Specification 1.4), where a kernel without ACPI finds its CPUs
//! and how interrupts are wired.

use vm_memory::{Bytes as _, GuestAddress};

use super::{BootError, LOW_MEMORY_END, table};
use crate::GuestMemory;

const IO_APIC: u32 = 0xfec0_0000;
const LOCAL_APIC: u32 = 0xfee0_0000;
/// The version register of KVM's local APIC.
const APIC_VERSION: u8 = 0x14;
const ISA_BUS: u8 = 0;
/// Lines of the ISA bus; line 2 is the cascade and is wired to nothing.
const ISA_LINES: u8 = 16;
const ALL_APICS: u8 = 0xff;

/// Entry types, section 4.3.
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC_ENTRY: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;
/// Interrupt types, table 4-10.
const VECTORED: u8 = 0;
const NMI: u8 = 1;
const EXTINT: u8 = 3;

pub(super) fn write(memory: &GuestMemory, cpus: u8) -> Result<(), BootError> {
    let pointer = LOW_MEMORY_END;
    let header = pointer + 16;
    let address = |address: u64| u32::try_from(address).expect("below 1 MiB");
    let bytes = [floating_pointer(address(header)), configuration(cpus)].concat();
    memory.write_slice(&bytes, GuestAddress(pointer)).map_err(table("MP table"))
}

/// Section 4.1.
fn floating_pointer(table: u32) -> Vec<u8> {
    let mut bytes = b"_MP_".to_vec();
    bytes.extend(table.to_le_bytes());
    // One paragraph of 16 bytes, version 1.4, a checksum, no default configuration.
    bytes.extend([1, 4, 0, 0, 0, 0, 0, 0]);
    bytes[10] = checksum(&bytes);
    bytes
}

/// Section 4.2, and its entries.
fn configuration(cpus: u8) -> Vec<u8> {
    let entries = entries(cpus);
    let length: usize = 44 + entries.iter().map(Vec::len).sum::<usize>();
    let length = u16::try_from(length).expect("255 CPUs take 5 KiB");
    let count = u16::try_from(entries.len()).expect("255 CPUs and 20 others");
    let mut bytes = b"PCMP".to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend([4, 0]);
    bytes.extend(b"SANDFORG");
    bytes.extend(b"microvm     ");
    // No OEM table.
    bytes.extend([0; 6]);
    bytes.extend(count.to_le_bytes());
    bytes.extend(LOCAL_APIC.to_le_bytes());
    // No extended table.
    bytes.extend([0; 4]);
    bytes.extend(entries.concat());
    bytes[7] = checksum(&bytes);
    bytes
}

fn entries(cpus: u8) -> Vec<Vec<u8>> {
    let io_apic = cpus;
    let mut entries: Vec<Vec<u8>> = (0..cpus).map(processor).collect();
    entries.push([&[BUS, ISA_BUS][..], b"ISA   "].concat());
    entries.push([&[IO_APIC_ENTRY, io_apic, APIC_VERSION, 1][..], &IO_APIC.to_le_bytes()].concat());
    for line in (0..ISA_LINES).filter(|line| *line != 2) {
        entries.push(vec![IO_INTERRUPT, VECTORED, 0, 0, ISA_BUS, line, io_apic, line]);
    }
    entries.push(vec![LOCAL_INTERRUPT, EXTINT, 0, 0, ISA_BUS, 0, 0, 0]);
    entries.push(vec![LOCAL_INTERRUPT, NMI, 0, 0, ISA_BUS, 0, ALL_APICS, 1]);
    entries
}

fn processor(id: u8) -> Vec<u8> {
    const ENABLED: u8 = 1;
    const BOOT: u8 = 2;
    let flags = if id == 0 { ENABLED | BOOT } else { ENABLED };
    let mut bytes = vec![PROCESSOR, id, APIC_VERSION, flags];
    // A signature that says family 6, and an FPU and an APIC as features.
    bytes.extend(0x600_u32.to_le_bytes());
    bytes.extend(0x201_u32.to_le_bytes());
    bytes.extend([0; 8]);
    bytes
}

/// What makes all bytes sum up to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn both_parts_sum_up_to_zero() {
        for cpus in [1, 2, 32] {
            let table = configuration(cpus);
            assert_eq!(sum(&table), 0);
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
        }
        assert_eq!(sum(&floating_pointer(0x9_fc10)), 0);
    }

    #[test]
    fn the_largest_table_ends_below_the_rom() {
        let end = LOW_MEMORY_END + 16 + u64::try_from(configuration(32).len()).unwrap();
        assert!(end <= 0xa_0000, "{end:#x}");
    }

    #[test]
    fn one_cpu_boots_and_the_others_are_there() {
        let flags: Vec<u8> = (0..3).map(|id| processor(id)[3]).collect();
        assert_eq!(flags, [3, 1, 1]);
    }
}
