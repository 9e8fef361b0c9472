//! A virtual CPU's state, read and written in the order that its parts depend on each other.

use kvm_bindings::{
    CpuId, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use crate::vm::VmError;

/// Intel SDM volume 4.
const TSC: u32 = 0x10;
const TSC_DEADLINE: u32 = 0x6e0;
/// KVM's own registers (Documentation/virt/kvm/x86/msr.rst). Kernels differ in which of them they
/// list.
const OF_KVM: std::ops::RangeInclusive<u32> = 0x4b56_4d00..=0x4b56_4d0f;

/// What KVM keeps of a virtual CPU.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Cpu {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
    mp: kvm_mp_state,
    registers: kvm_regs,
    special: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    apic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

impl Cpu {
    /// Reads it. The virtual CPU is parked.
    pub(crate) fn save(fd: &VcpuFd, cpuid: &CpuId, names: &[u32]) -> Result<Self, VmError> {
        // This one first: KVM takes interrupts that are on their way into account.
        let mp = fd.get_mp_state().map_err(VmError::ioctl("KVM_GET_MP_STATE"))?;
        Ok(Self {
            cpuid: cpuid.as_slice().to_vec(),
            tsc_khz: fd.get_tsc_khz().unwrap_or_default(),
            mp,
            registers: fd.get_regs().map_err(VmError::ioctl("KVM_GET_REGS"))?,
            special: fd.get_sregs().map_err(VmError::ioctl("KVM_GET_SREGS"))?,
            xsave: fd.get_xsave().map_err(VmError::ioctl("KVM_GET_XSAVE"))?,
            xcrs: fd.get_xcrs().map_err(VmError::ioctl("KVM_GET_XCRS"))?,
            debug: fd.get_debug_regs().map_err(VmError::ioctl("KVM_GET_DEBUGREGS"))?,
            apic: fd.get_lapic().map_err(VmError::ioctl("KVM_GET_LAPIC"))?,
            msrs: save_msrs(fd, names)?,
            // Last: reading the others may queue some.
            events: fd.get_vcpu_events().map_err(VmError::ioctl("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    /// Has a fresh virtual CPU go on from here. It has its CPUID already.
    pub(crate) fn restore(&self, fd: &VcpuFd) -> Result<(), VmError> {
        let tsc_khz = fd.get_tsc_khz().unwrap_or_default();
        if tsc_khz != self.tsc_khz {
            fd.set_tsc_khz(self.tsc_khz).map_err(|_| VmError::Differs {
                field: "frequency of the processor's clock in kHz",
                saved: self.tsc_khz.to_string(),
                here: tsc_khz.to_string(),
            })?;
        }
        fd.set_mp_state(self.mp).map_err(VmError::ioctl("KVM_SET_MP_STATE"))?;
        fd.set_regs(&self.registers).map_err(VmError::ioctl("KVM_SET_REGS"))?;
        fd.set_sregs(&self.special).map_err(VmError::ioctl("KVM_SET_SREGS"))?;
        // SAFETY: KVM reads more than this structure only for features that a process asks the
        // kernel for (arch_prctl(2), ARCH_REQ_XCOMP_GUEST_PERM), and this one asks for none.
        unsafe { fd.set_xsave(&self.xsave) }.map_err(VmError::ioctl("KVM_SET_XSAVE"))?;
        fd.set_xcrs(&self.xcrs).map_err(VmError::ioctl("KVM_SET_XCRS"))?;
        fd.set_debug_regs(&self.debug).map_err(VmError::ioctl("KVM_SET_DEBUGREGS"))?;
        fd.set_lapic(&self.apic).map_err(VmError::ioctl("KVM_SET_LAPIC"))?;
        // The deadline is compared with the clock, and only counts in the mode that the interrupt
        // controller is in.
        let (deadline, others): (Vec<_>, Vec<_>) =
            self.msrs.iter().partition(|msr| msr.index == TSC_DEADLINE);
        restore_msrs(fd, &others)?;
        restore_msrs(fd, &deadline)?;
        fd.set_vcpu_events(&self.events).map_err(VmError::ioctl("KVM_SET_VCPU_EVENTS"))?;
        // The guest's watchdog is not to take the time between for a hang. Guests without KVM's
        // clock have nothing to be told.
        let _ = fd.kvmclock_ctrl();
        Ok(())
    }

    /// Whether this host's virtual CPUs have what this one had.
    pub(crate) fn check(&self, cpuid: &CpuId) -> Result<(), VmError> {
        let (saved, here) = (&self.cpuid, cpuid.as_slice());
        let differing = (0..saved.len().max(here.len())).find(|&at| saved.get(at) != here.get(at));
        let Some(at) = differing else { return Ok(()) };
        let show = |entry: Option<&kvm_cpuid_entry2>| match entry {
            None => "nothing".into(),
            Some(kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, .. }) => {
                format!("{function:#x}.{index}: {eax:08x} {ebx:08x} {ecx:08x} {edx:08x}")
            }
        };
        Err(VmError::Differs {
            field: "CPUID",
            saved: show(saved.get(at)),
            here: show(here.get(at)),
        })
    }
}

/// The registers that KVM can tell and be told.
pub(crate) fn msr_names(kvm: &Kvm) -> Result<Vec<u32>, VmError> {
    let list = kvm.get_msr_index_list().map_err(VmError::ioctl("KVM_GET_MSR_INDEX_LIST"))?;
    let mut names = list.as_slice().to_vec();
    names.extend(OF_KVM);
    names.sort_unstable();
    names.dedup();
    // Firmware's memory types and the like may depend on the clock's value: it comes first.
    names.sort_by_key(|name| *name != TSC);
    Ok(names)
}

fn entries(names: &[u32]) -> Msrs {
    let entries: Vec<_> =
        names.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
    Msrs::from_entries(&entries).expect("fewer registers than a list can have")
}

/// KVM stops at the first that it does not know after all.
fn save_msrs(fd: &VcpuFd, mut names: &[u32]) -> Result<Vec<kvm_msr_entry>, VmError> {
    let mut saved = Vec::with_capacity(names.len());
    while !names.is_empty() {
        let mut msrs = entries(names);
        let read = fd.get_msrs(&mut msrs).map_err(VmError::ioctl("KVM_GET_MSRS"))?;
        saved.extend_from_slice(&msrs.as_slice()[..read]);
        names = names.get(read + 1..).unwrap_or_default();
    }
    Ok(saved)
}

fn restore_msrs(fd: &VcpuFd, msrs: &[&kvm_msr_entry]) -> Result<(), VmError> {
    let entries: Vec<_> = msrs.iter().map(|msr| **msr).collect();
    let list = Msrs::from_entries(&entries).map_err(|_| VmError::State("too many registers"))?;
    let set = fd.set_msrs(&list).map_err(VmError::ioctl("KVM_SET_MSRS"))?;
    match entries.get(set) {
        None => Ok(()),
        Some(refused) => Err(VmError::Msr { index: refused.index, value: refused.data }),
    }
}
