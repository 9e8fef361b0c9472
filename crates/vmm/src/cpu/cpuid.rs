//! What CPUID tells the guest: what KVM can give on this host, and this machine's own topology.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Leaf 1, ECX.
const HYPERVISOR: u32 = 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, EDX: EBX tells the number of logical CPUs.
const HTT: u32 = 1 << 28;
/// Leaf 7, ECX and EDX: shadow stacks and branch tracking. Their state cannot be saved by what
/// KVM offers on older hosts, and our kernel does not use them.
const SHADOW_STACK: u32 = 1 << 7;
const BRANCH_TRACKING: u32 = 1 << 20;

/// The answers for CPU number `id` of `count`, out of what KVM supports.
pub(crate) fn for_cpu(supported: &CpuId, id: u8, count: u8, tsc_deadline: bool) -> CpuId {
    let mut answers = supported.clone();
    for entry in answers.as_mut_slice() {
        adapt(entry, u32::from(id), u32::from(count), tsc_deadline);
    }
    answers
}

fn adapt(entry: &mut kvm_cpuid_entry2, id: u32, count: u32, tsc_deadline: bool) {
    match (entry.function, entry.index) {
        (0x1, _) => {
            // Brand and cache line size stay; APIC id and the number of ids are ours.
            entry.ebx = entry.ebx & 0xffff | count.next_power_of_two() << 16 | id << 24;
            entry.ecx |= HYPERVISOR;
            if tsc_deadline {
                entry.ecx |= TSC_DEADLINE;
            }
            entry.edx = if count > 1 { entry.edx | HTT } else { entry.edx & !HTT };
        }
        (0x4, _) if entry.eax & 0x1f != 0 => {
            // Each CPU is a core with caches of its own, all of one package.
            entry.eax = entry.eax & 0x3fff | (count - 1) << 26;
        }
        (0x7, 0) => {
            entry.ecx &= !SHADOW_STACK;
            entry.edx &= !BRANCH_TRACKING;
        }
        (0xb | 0x1f, index) => *entry = topology(entry.function, index, id, count),
        // AMD: the number of cores, and the core's own id.
        (0x8000_0008, _) => entry.ecx = entry.ecx & !0xf0ff | (count - 1),
        (0x8000_001e, _) => {
            entry.eax = id;
            entry.ebx = id;
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// Intel SDM volume 2, CPUID leaf 0BH: one thread a core, `count` cores.
fn topology(function: u32, index: u32, id: u32, count: u32) -> kvm_cpuid_entry2 {
    const THREADS: u32 = 1 << 8;
    const CORES: u32 = 2 << 8;
    let (shift, number, kind) = match index {
        0 => (0, 1, THREADS),
        1 => (count.next_power_of_two().trailing_zeros(), count, CORES),
        _ => (0, 0, 0),
    };
    kvm_cpuid_entry2 {
        function,
        index,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: number,
        ecx: kind | index,
        edx: id,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, ..Default::default() }
    }

    #[test]
    fn each_cpu_has_its_own_apic_id() {
        let mut first = entry(1, 0);
        first.ebx = 0xff02_0800;
        adapt(&mut first, 2, 3, true);
        assert_eq!(first.ebx, 0x0204_0800);
        assert_eq!(first.ecx, HYPERVISOR | TSC_DEADLINE);
        assert_eq!(first.edx, HTT);
    }

    #[test]
    fn cores_are_one_level_above_threads() {
        let levels: Vec<_> = (0..3).map(|index| topology(0xb, index, 3, 4)).collect();
        assert_eq!((levels[0].eax, levels[0].ebx, levels[0].ecx), (0, 1, 0x100));
        assert_eq!((levels[1].eax, levels[1].ebx, levels[1].ecx), (2, 4, 0x201));
        assert_eq!((levels[2].ebx, levels[2].edx), (0, 3));
    }

    #[test]
    fn a_single_cpu_is_not_one_of_many() {
        let mut first = entry(1, 0);
        first.edx = HTT;
        adapt(&mut first, 0, 1, false);
        assert_eq!((first.ebx >> 16, first.edx), (1, 0));
    }
}
