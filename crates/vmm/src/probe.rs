//! Whether this host's KVM will really run a guest.
//!
//! `/dev/kvm` can be there and still be of no use: without hardware virtualization below it, KVM
//! emulates the guest's kernel an instruction at a time, thousands of times too slowly, and fails
//! at those that its emulator does not know. So a small guest tries what a kernel does first: it
//! runs for a while, and executes the instructions that such hosts stumble over.

use std::arch::global_asm;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes as _, GuestAddress};

use crate::bare;
use crate::boot::Boot;
use crate::memory::Backing;
use crate::vcpu::End;
use crate::vm::{Config, Vm, VmError};

/// Where the guest says how far it has come.
const PROGRESS: GuestAddress = GuestAddress(0x1f_f000);
/// Instructions of the loop.
pub const INSTRUCTIONS: u32 = 200_000;
/// What hardware takes for the loop is a tenth of a millisecond; an emulator needs hundreds.
pub const DEADLINE: Duration = Duration::from_millis(50);
/// A loaded host may be late once.
const ATTEMPTS: usize = 3;

/// What became of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It did everything.
    Ran {
        /// For the loop and the rest, in microseconds.
        microseconds: u64,
    },
    /// It was not done in time.
    Slow {
        /// The step that it was at.
        at: Step,
    },
    /// It could not go on.
    Stuck {
        /// The step that it was at.
        at: Step,
        /// What KVM said.
        reason: String,
    },
}

/// What the guest does, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Its first instruction.
    Begin,
    /// A loop in 64-bit mode.
    Loop,
    /// CMPXCHG16B.
    CompareExchange,
    /// INT3, with a handler.
    Breakpoint,
    /// XSAVE and XRSTOR.
    Extended,
    /// The reset of the machine.
    Reset,
}

impl Step {
    const ALL: [Self; 6] = [
        Self::Begin,
        Self::Loop,
        Self::CompareExchange,
        Self::Breakpoint,
        Self::Extended,
        Self::Reset,
    ];

    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Begin => "its first instruction",
            Self::Loop => "a loop of 200,000 instructions",
            Self::CompareExchange => "CMPXCHG16B",
            Self::Breakpoint => "INT3",
            Self::Extended => "XSAVE and XRSTOR",
            Self::Reset => "the reset at its end",
        }
    }
}

/// Runs the guest on `kvm`, an opened `/dev/kvm`.
///
/// # Errors
/// Where not even a machine can be made.
pub fn run(kvm: &OwnedFd) -> Result<Outcome, VmError> {
    let mut outcome = attempt(kvm)?;
    for _ in 1..ATTEMPTS {
        if !matches!(outcome, Outcome::Slow { .. }) {
            break;
        }
        outcome = attempt(kvm)?;
    }
    Ok(outcome)
}

fn attempt(kvm: &OwnedFd) -> Result<Outcome, VmError> {
    let resource = |what| move |source| VmError::Resource { what, source };
    let kernel = bare::elf(code()).map_err(resource("kernel"))?;
    let vm = Vm::new(Config {
        kvm: kvm.try_clone().map_err(resource("descriptor"))?,
        cpus: 1,
        memory_bytes: 2 << 20,
        backing: Backing::Private,
        boot: Boot { kernel, initramfs: None, command_line: String::new() },
        devices: Vec::new(),
        console: None,
        confine: Arc::new(|_| {}),
    })?;
    let begun = Instant::now();
    vm.resume();
    wait(&vm, begun);
    let took = begun.elapsed();
    vm.pause();
    let step: u8 = vm.memory().read_obj(PROGRESS).unwrap_or(0);
    let at = Step::ALL[usize::from(step).min(Step::ALL.len() - 1)];
    let outcome = match vm.end() {
        Some(End::Reset) if at == Step::Reset && took <= DEADLINE => {
            Outcome::Ran { microseconds: u64::try_from(took.as_micros()).unwrap_or(u64::MAX) }
        }
        Some(End::Reset) if at == Step::Reset => Outcome::Slow { at },
        Some(End::Reset) => Outcome::Stuck { at, reason: "an exception within another".into() },
        Some(End::Failed { reason }) => Outcome::Stuck { at, reason },
        None => Outcome::Slow { at },
    };
    vm.retire();
    Ok(outcome)
}

fn wait(vm: &Vm, begun: Instant) {
    while let Some(left) = DEADLINE.checked_sub(begun.elapsed()) {
        let left = Timespec::try_from(left).expect("milliseconds");
        let mut ended = [PollFd::new(vm.ended(), PollFlags::IN)];
        if poll(&mut ended, Some(&left)) == Ok(1) {
            return;
        }
    }
}

// Entered in 64-bit mode with the first GiB mapped to itself. The step that it is at is kept at
// 0x1ff000, the interrupt table is at 0x1f1000, and the area of XSAVE at 0x1f2000.
global_asm!(
    r#"
    .pushsection .rodata.probe, "a"
    .globl vmm_probe_begin
vmm_probe_begin:
    mov ebx, 0x1ff000

    mov byte ptr [rbx], 1
    mov ecx, 100000
2:  dec ecx
    jnz 2b

    mov byte ptr [rbx], 2
    mov esi, 0x1fe000
    xor eax, eax
    xor edx, edx
    lock cmpxchg16b [rsi]

    mov byte ptr [rbx], 3
    mov edi, 0x1f1000
    lea rax, [rip + 5f]
    mov word ptr [rdi + 3 * 16], ax
    mov word ptr [rdi + 3 * 16 + 2], 8
    mov word ptr [rdi + 3 * 16 + 4], 0x8e00
    shr rax, 16
    mov word ptr [rdi + 3 * 16 + 6], ax
    lidt [rip + 6f]
    int3

    mov byte ptr [rbx], 4
    mov eax, 1
    cpuid
    mov ebx, 0x1ff000
    bt ecx, 26
    jnc 4f
    mov rax, cr4
    or eax, 0x40600
    mov cr4, rax
    xor ecx, ecx
    xor edx, edx
    mov eax, 3
    xsetbv
    mov edi, 0x1f2000
    xsave [rdi]
    xrstor [rdi]

4:  mov byte ptr [rbx], 5
    mov eax, 0xfe
    out 0x64, al
    hlt

5:  iretq
6:  .word 4 * 16 - 1
    .quad 0x1f1000
    .globl vmm_probe_end
vmm_probe_end:
    .popsection
    "#
);

unsafe extern "C" {
    #[link_name = "vmm_probe_begin"]
    static BEGIN: u8;
    #[link_name = "vmm_probe_end"]
    static END: u8;
}

fn code() -> &'static [u8] {
    let (begin, end) = (&raw const BEGIN, &raw const END);
    // SAFETY: both labels are in one read-only section, the second behind the first, and what is
    // between them is the code above.
    unsafe { std::slice::from_raw_parts(begin, end.addr() - begin.addr()) }
}
