//! What KVM keeps of a machine besides its virtual CPUs: interrupt controllers, timer, clock.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use crate::vm::VmError;

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// The parts, as KVM gives them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Machine {
    chips: [kvm_irqchip; CHIPS.len()],
    timer: kvm_pit_state2,
    /// Nanoseconds of the guest's clock.
    clock: u64,
}

impl Machine {
    /// Reads them. All virtual CPUs are parked.
    pub(crate) fn save(fd: &VmFd) -> Result<Self, VmError> {
        let mut chips = CHIPS.map(|chip_id| kvm_irqchip { chip_id, ..Default::default() });
        for chip in &mut chips {
            fd.get_irqchip(chip).map_err(VmError::ioctl("KVM_GET_IRQCHIP"))?;
        }
        let timer = fd.get_pit2().map_err(VmError::ioctl("KVM_GET_PIT2"))?;
        let clock = fd.get_clock().map_err(VmError::ioctl("KVM_GET_CLOCK"))?.clock;
        Ok(Self { chips, timer, clock })
    }

    /// Has a fresh machine go on from here. Its clock does not count the time between.
    pub(crate) fn restore(&self, fd: &VmFd) -> Result<(), VmError> {
        for chip in &self.chips {
            if !CHIPS.contains(&chip.chip_id) {
                return Err(VmError::State("an interrupt controller that there is none of"));
            }
            fd.set_irqchip(chip).map_err(VmError::ioctl("KVM_SET_IRQCHIP"))?;
        }
        fd.set_pit2(&self.timer).map_err(VmError::ioctl("KVM_SET_PIT2"))?;
        let clock = kvm_clock_data { clock: self.clock, ..Default::default() };
        fd.set_clock(&clock).map_err(VmError::ioctl("KVM_SET_CLOCK"))
    }
}
