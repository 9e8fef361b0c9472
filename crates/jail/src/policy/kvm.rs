//! KVM's requests, by their codes (linux/kvm.h).

const KVM: u32 = 0xAE;
const WRITE: u32 = 1;
const READ: u32 = 2;

/// A request that passes a number or nothing.
const fn plain(number: u32) -> u32 {
    KVM << 8 | number
}

/// A request that hands the kernel a structure of `size` bytes.
const fn writes(number: u32, size: u32) -> u32 {
    WRITE << 30 | size << 16 | plain(number)
}

/// A request that takes one from it.
const fn reads(number: u32, size: u32) -> u32 {
    READ << 30 | size << 16 | plain(number)
}

/// A request that does both.
const fn exchanges(number: u32, size: u32) -> u32 {
    (READ | WRITE) << 30 | size << 16 | plain(number)
}

/// What a monitor asks of KVM: to make a machine, to run it, to stop it and to look at it. The
/// first is what is asked most.
pub(super) const REQUESTS: &[u32] = &[
    plain(0x80), // KVM_RUN
    // Of /dev/kvm.
    plain(0x00),        // KVM_GET_API_VERSION
    plain(0x01),        // KVM_CREATE_VM
    plain(0x03),        // KVM_CHECK_EXTENSION
    plain(0x04),        // KVM_GET_VCPU_MMAP_SIZE
    exchanges(0x02, 4), // KVM_GET_MSR_INDEX_LIST
    exchanges(0x05, 8), // KVM_GET_SUPPORTED_CPUID
    // Of a machine.
    plain(0x41),          // KVM_CREATE_VCPU
    plain(0x47),          // KVM_SET_TSS_ADDR
    plain(0x60),          // KVM_CREATE_IRQCHIP
    writes(0x42, 16),     // KVM_GET_DIRTY_LOG
    writes(0x46, 32),     // KVM_SET_USER_MEMORY_REGION
    writes(0x48, 8),      // KVM_SET_IDENTITY_MAP_ADDR
    writes(0x61, 8),      // KVM_IRQ_LINE
    exchanges(0x62, 520), // KVM_GET_IRQCHIP
    reads(0x63, 520),     // KVM_SET_IRQCHIP
    writes(0x6a, 8),      // KVM_SET_GSI_ROUTING
    writes(0x76, 32),     // KVM_IRQFD
    writes(0x77, 64),     // KVM_CREATE_PIT2
    writes(0x79, 64),     // KVM_IOEVENTFD
    writes(0x7b, 48),     // KVM_SET_CLOCK
    reads(0x7c, 48),      // KVM_GET_CLOCK
    reads(0x9f, 112),     // KVM_GET_PIT2
    writes(0xa0, 112),    // KVM_SET_PIT2
    writes(0xa3, 104),    // KVM_ENABLE_CAP
    // Of a virtual CPU.
    reads(0x81, 144),   // KVM_GET_REGS
    writes(0x82, 144),  // KVM_SET_REGS
    reads(0x83, 312),   // KVM_GET_SREGS
    writes(0x84, 312),  // KVM_SET_SREGS
    exchanges(0x88, 8), // KVM_GET_MSRS
    writes(0x89, 8),    // KVM_SET_MSRS
    reads(0x8c, 416),   // KVM_GET_FPU
    writes(0x8d, 416),  // KVM_SET_FPU
    reads(0x8e, 1024),  // KVM_GET_LAPIC
    writes(0x8f, 1024), // KVM_SET_LAPIC
    writes(0x90, 8),    // KVM_SET_CPUID2
    reads(0x98, 4),     // KVM_GET_MP_STATE
    writes(0x99, 4),    // KVM_SET_MP_STATE
    reads(0x9f, 64),    // KVM_GET_VCPU_EVENTS
    writes(0xa0, 64),   // KVM_SET_VCPU_EVENTS
    reads(0xa1, 128),   // KVM_GET_DEBUGREGS
    writes(0xa2, 128),  // KVM_SET_DEBUGREGS
    plain(0xa2),        // KVM_SET_TSC_KHZ
    plain(0xa3),        // KVM_GET_TSC_KHZ
    reads(0xa4, 4096),  // KVM_GET_XSAVE
    writes(0xa5, 4096), // KVM_SET_XSAVE
    reads(0xcf, 4096),  // KVM_GET_XSAVE2
    reads(0xa6, 392),   // KVM_GET_XCRS
    writes(0xa7, 392),  // KVM_SET_XCRS
    plain(0xad),        // KVM_KVMCLOCK_CTRL
];
