//! What this process and each of its threads may do.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};

use jail::filter::{Argument, Filter, Rule};
use jail::{Jail, JailError, MonitorSize};
use launch::{Orders, Owner};
use monitor_protocol::{Machine, Task};
use vmm::{Role, VCPU_SYSTEM_CALLS, virtio};

/// Threads besides the virtual CPUs': the main one, and one for each device.
const OTHER_THREADS: u64 = 8;
/// `_IO(KVMIO, 0x80)`: the only request of a virtual CPU's thread while the guest runs well.
const KVM_RUN: u32 = 0xae80;
/// `_IOR(KVMIO, 0x81, struct kvm_regs)`: where it stopped, to be told.
const KVM_GET_REGS: u32 = 0x8090_ae81;

/// Confines the process. Returns in its child.
pub(crate) fn enter(owner: &Owner, orders: &mut Orders<Task>) -> Result<jail::Report, JailError> {
    let machine = orders.body.machine();
    let group = match machine.is_some_and(|machine| machine.grouped) {
        true => orders.descriptors.pop(),
        false => None,
    };
    let size = match machine {
        None => MonitorSize { guest_memory: 2 << 20, largest_file: 0, threads: OTHER_THREADS },
        Some(machine) => MonitorSize {
            guest_memory: u64::from(machine.memory_mb) << 20,
            largest_file: largest_written(machine, &orders.descriptors),
            threads: u64::from(machine.cpus) + OTHER_THREADS + machine.disks.len() as u64,
        },
    };
    let given = orders.descriptors.iter().map(|descriptor| descriptor.as_fd());
    let keep = given.chain(owner.descriptors()).collect();
    jail::enter(Jail { group, ..Jail::monitor(size, keep, orders.owner) })
}

/// Bytes of the largest file that is written to, where there is any.
fn largest_written(machine: &Machine, descriptors: &[OwnedFd]) -> u64 {
    if !machine.disks.iter().any(|disk| disk.writable) {
        return 0;
    }
    let size = |file: &OwnedFd| {
        let file = File::from(file.try_clone().ok()?);
        Some(file.metadata().ok()?.len())
    };
    descriptors.iter().filter_map(size).max().unwrap_or(0)
}

/// Confines the calling thread of the machine further: to what its role takes.
pub(crate) fn narrow(role: Role) {
    let calls = |calls: &[libc::c_long]| calls.iter().map(|call| Rule::call(*call)).collect();
    let mut rules: Vec<Rule> = match role {
        Role::Vcpu => calls(VCPU_SYSTEM_CALLS),
        Role::Device(_, own) => calls(&[virtio::SYSTEM_CALLS, own].concat()),
    };
    if role == Role::Vcpu {
        let requests = Argument::B.is_one_of(&[KVM_RUN, KVM_GET_REGS]);
        rules.push(Rule::when(libc::SYS_ioctl, [requests]));
    }
    if let Err(error) = Filter::allow(&rules).and_then(|filter| filter.install()) {
        // Nothing of the guest's has run yet, and nothing shall.
        eprintln!("cannot confine the thread of {role:?}: {error}");
        std::process::abort();
    }
}
