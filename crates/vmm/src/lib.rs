//! A KVM monitor as a library: one machine, its virtual CPUs and its virtio devices.
//!
//! A machine has no bus but virtio over MMIO and no firmware. Whatever the guest says is read
//! once, bounded, and by one parser; every device lives on a thread of its own that may call
//! what that device needs of the kernel and nothing else.

mod bare;
pub mod boot;
mod bus;
mod cpu;
pub mod event;
mod legacy;
pub mod memory;
pub mod metrics;
#[cfg(feature = "payload")]
pub mod payload;
pub mod probe;
pub mod rate_limiter;
pub mod state;
mod vcpu;
pub mod virtio;
mod vm;

pub use state::State;
pub use vcpu::{End, SYSTEM_CALLS as VCPU_SYSTEM_CALLS};
pub use vm::{Config, MAX_CPUS, MAX_DEVICES, Metrics, Restore, Role, Vm, VmError};

/// The guest's memory as the monitor sees it.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
