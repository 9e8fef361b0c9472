//! What a virtual CPU is before its first instruction: its features and its registers.

mod cpuid;
mod registers;

pub(crate) use cpuid::for_cpu as cpuid;
pub(crate) use registers::set_up as set_up_registers;
