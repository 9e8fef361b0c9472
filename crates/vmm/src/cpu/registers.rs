//! Registers at the first instruction, as the boot protocol wants them.

use kvm_bindings::{
    Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes as _, GuestAddress};

use crate::GuestMemory;
use crate::boot::{Entry, PAGE_TABLES, Protocol};
use crate::vm::VmError;

const GDT: GuestAddress = GuestAddress(0x500);
const IDT: u64 = 0x520;
/// Below the page tables; 32 KiB are free there.
const STACK: u64 = 0x8ff0;

/// Intel SDM volume 3: control registers and EFER.
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of RFLAGS that is always set.
const RFLAGS: u64 = 1 << 1;

/// Sets up everything but CPUID. The boot CPU, number 0, begins at `entry`; the others wait for
/// it to send them a start-up interrupt, as KVM has them.
pub(crate) fn set_up(
    vcpu: &VcpuFd,
    id: u8,
    entry: Entry,
    memory: &GuestMemory,
) -> Result<(), VmError> {
    set_msrs(vcpu)?;
    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(VmError::ioctl("KVM_SET_FPU"))?;
    route_legacy_interrupts(vcpu)?;
    if id != 0 {
        return Ok(());
    }
    let registers = registers(entry);
    vcpu.set_regs(&registers).map_err(VmError::ioctl("KVM_SET_REGS"))?;
    let mut special = vcpu.get_sregs().map_err(VmError::ioctl("KVM_GET_SREGS"))?;
    set_mode(&mut special, entry.protocol);
    write_gdt(memory, &special)?;
    vcpu.set_sregs(&special).map_err(VmError::ioctl("KVM_SET_SREGS"))
}

fn registers(entry: Entry) -> kvm_regs {
    let registers = kvm_regs { rip: entry.address, rflags: RFLAGS, ..Default::default() };
    match entry.protocol {
        Protocol::Pvh { start_info } => kvm_regs { rbx: start_info, ..registers },
        Protocol::Linux64 { zero_page } => {
            kvm_regs { rsi: zero_page, rsp: STACK, rbp: STACK, ..registers }
        }
    }
}

fn set_mode(special: &mut kvm_sregs, protocol: Protocol) {
    let long = matches!(protocol, Protocol::Linux64 { .. });
    let code = segment(1, 0xb, long);
    let data = segment(2, 0x3, false);
    special.cs = code;
    for register in
        [&mut special.ds, &mut special.es, &mut special.fs, &mut special.gs, &mut special.ss]
    {
        *register = data;
    }
    // A busy TSS, which VMX insists on (SDM volume 3, section 27.3.1.2).
    special.tr =
        kvm_segment { limit: 0x67, selector: 3 << 3, type_: 0xb, present: 1, ..Default::default() };
    special.gdt.base = GDT.0;
    special.gdt.limit = 4 * 8 - 1;
    special.idt.base = IDT;
    special.idt.limit = 7;
    special.cr0 = CR0_PE | CR0_ET;
    if long {
        special.cr0 |= CR0_PG;
        special.cr3 = PAGE_TABLES.0;
        special.cr4 |= CR4_PAE;
        special.efer |= EFER_LME | EFER_LMA;
    }
}

/// A flat segment of 4 GiB: the entry of the GDT, and what the register has loaded from it.
fn segment(index: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: index << 3,
        type_: kind,
        present: 1,
        s: 1,
        g: 1,
        l: u8::from(long),
        db: u8::from(!long),
        ..Default::default()
    }
}

fn write_gdt(memory: &GuestMemory, special: &kvm_sregs) -> Result<(), VmError> {
    let entries = [0, descriptor(&special.cs), descriptor(&special.ds), descriptor(&special.tr)];
    let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    let table = |error: vm_memory::GuestMemoryError| VmError::Memory(error.to_string());
    memory.write_slice(&bytes, GDT).map_err(table)?;
    memory.write_obj(0_u64, GuestAddress(IDT)).map_err(table)
}

/// SDM volume 3, figure 3-8. All bases are zero.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = if segment.g == 1 { segment.limit >> 12 } else { segment.limit };
    let field = |value: u8, bit: u32| u64::from(value) << bit;
    u64::from(limit & 0xffff)
        | field(segment.type_, 40)
        | field(segment.s, 44)
        | field(segment.present, 47)
        | u64::from(limit >> 16 & 0xf) << 48
        | field(segment.l, 53)
        | field(segment.db, 54)
        | field(segment.g, 55)
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), VmError> {
    const MTRR_DEFAULT_TYPE: u32 = 0x2ff;
    /// Memory types are in force, and what no range says is write-back.
    const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
    const MISC_ENABLE: u32 = 0x1a0;
    const FAST_STRINGS: u64 = 1;
    let entries = [
        kvm_msr_entry { index: MISC_ENABLE, data: FAST_STRINGS, ..Default::default() },
        kvm_msr_entry {
            index: MTRR_DEFAULT_TYPE,
            data: MTRR_ENABLED_WRITE_BACK,
            ..Default::default()
        },
    ];
    let msrs = Msrs::from_entries(&entries).expect("two entries");
    let set = vcpu.set_msrs(&msrs).map_err(VmError::ioctl("KVM_SET_MSRS"))?;
    match entries.get(set) {
        None => Ok(()),
        Some(refused) => Err(VmError::Msr { index: refused.index, value: refused.data }),
    }
}

/// The local vectors that firmware would have set: LINT0 takes the old interrupt controller's
/// interrupts, LINT1 is the NMI.
fn route_legacy_interrupts(vcpu: &VcpuFd) -> Result<(), VmError> {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const MODE: u32 = 0x700;
    const EXTINT: u32 = 0x700;
    const NMI: u32 = 0x400;
    let mut apic = vcpu.get_lapic().map_err(VmError::ioctl("KVM_GET_LAPIC"))?;
    set_delivery_mode(&mut apic, LVT_LINT0, MODE, EXTINT);
    set_delivery_mode(&mut apic, LVT_LINT1, MODE, NMI);
    vcpu.set_lapic(&apic).map_err(VmError::ioctl("KVM_SET_LAPIC"))
}

fn set_delivery_mode(apic: &mut kvm_lapic_state, register: usize, mask: u32, mode: u32) {
    let bytes = &mut apic.regs[register..register + 4];
    let word: Vec<u8> = bytes.iter().map(|byte| byte.cast_unsigned()).collect();
    let value = u32::from_le_bytes(word.try_into().expect("four bytes")) & !mask | mode;
    for (byte, new) in bytes.iter_mut().zip(value.to_le_bytes()) {
        *byte = new.cast_signed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_a_flat_64_bit_kernel() {
        assert_eq!(descriptor(&segment(1, 0xb, true)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&segment(1, 0xb, false)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&segment(2, 0x3, false)), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn pvh_begins_without_paging() {
        let mut special = kvm_sregs::default();
        set_mode(&mut special, Protocol::Pvh { start_info: 0x6000 });
        assert_eq!((special.cr0, special.cr4, special.efer), (CR0_PE | CR0_ET, 0, 0));
    }
}
