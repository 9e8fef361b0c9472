//! The guest's instructions. They are copied into its memory, so they refer to each other only
//! relative to where they are.

use std::arch::global_asm;

// The guest is entered in 64-bit mode with the first GiB mapped to itself. Registers:
//   rbx  the current command: operation, address, value, result, 8 bytes each
//   rdi  its address   rsi  its value
// Page tables are at 0x9000 (boot::PAGE_TABLES); a table for the GiB that the devices are in is
// added at 0x1f0000. The interrupt table is at 0x1f1000.
global_asm!(
    r#"
    .pushsection .rodata.payload, "a"
    .balign 64
    .globl vmm_payload_begin
vmm_payload_begin:
    mov ebx, 0x200000

    mov dword ptr [0x1f0000 + 128 * 8], 0xd0000083
    mov dword ptr [0x1f0000 + 502 * 8], 0xfec00083
    mov dword ptr [0x1f0000 + 503 * 8], 0xfee00083
    mov dword ptr [0xa000 + 3 * 8], 0x1f0003

    lea rax, [rip + 6f]
    mov ecx, 0x1f1000 + 0x40 * 16
    mov word ptr [rcx], ax
    mov word ptr [rcx + 2], 8
    mov word ptr [rcx + 4], 0x8e00
    shr rax, 16
    mov word ptr [rcx + 6], ax
    lea rax, [rip + 7f]
    mov ecx, 0x1f1000 + 0xff * 16
    mov word ptr [rcx], ax
    mov word ptr [rcx + 2], 8
    mov word ptr [rcx + 4], 0x8e00
    shr rax, 16
    mov word ptr [rcx + 6], ax
    lidt [rip + 8f]

    mov al, 0xff // lines reach the old interrupt controller too, which has no vectors yet
    out 0x21, al
    out 0xa1, al
    jmp 3f

2: // the next command
    add rbx, 32
3: mov rax, [rbx]
    mov rdi, [rbx + 8]
    mov rsi, [rbx + 16]
    shl rax, 6
    lea rcx, [rip + 4f]
    add rax, rcx
    jmp rax

6: // an interrupt: counted and acknowledged
    push rax
    inc qword ptr [0x1ff000]
    mov eax, 0xfee000b0
    mov dword ptr [rax], 0
    pop rax
7: iretq
8: .word 256 * 16 - 1
    .quad 0x1f1000

    .balign 64
4: // End: it has come this far, and the keyboard controller resets the machine
    mov byte ptr [0x1fe000], 1
    mov eax, 0xfe
    out 0x64, al
    hlt
    .balign 64 // Write8
    mov byte ptr [rdi], sil
    jmp 2b
    .balign 64 // Write16
    mov word ptr [rdi], si
    jmp 2b
    .balign 64 // Write32
    mov dword ptr [rdi], esi
    jmp 2b
    .balign 64 // Write64
    mov qword ptr [rdi], rsi
    jmp 2b
    .balign 64 // Read8
    movzx eax, byte ptr [rdi]
    mov [rbx + 24], rax
    jmp 2b
    .balign 64 // Read16
    movzx eax, word ptr [rdi]
    mov [rbx + 24], rax
    jmp 2b
    .balign 64 // Read32
    mov eax, dword ptr [rdi]
    mov [rbx + 24], rax
    jmp 2b
    .balign 64 // Read64
    mov rax, qword ptr [rdi]
    mov [rbx + 24], rax
    jmp 2b
    .balign 64 // Output
    mov edx, edi
    mov eax, esi
    out dx, al
    jmp 2b
    .balign 64 // Input
    mov edx, edi
    xor eax, eax
    in al, dx
    mov [rbx + 24], rax
    jmp 2b
    .balign 64 // Await: interrupts come only while it halts
    cli
    cmp [0x1ff000], rsi
    jae 2b
    sti
    hlt
    jmp 3b
    .balign 64 // Spin
5: dec rsi
    jnz 5b
    jmp 2b
    .balign 64 // Watch
9: pause
    movzx eax, word ptr [rdi]
    cmp rax, rsi
    jne 9b
    jmp 2b
    .globl vmm_payload_end
vmm_payload_end:

    .globl vmm_payload_brief_begin
vmm_payload_brief_begin:
    mov al, 0xfe
    out 0x64, al
    hlt
    .globl vmm_payload_brief_end
vmm_payload_brief_end:
    .popsection
    "#
);

unsafe extern "C" {
    #[link_name = "vmm_payload_begin"]
    static BEGIN: u8;
    #[link_name = "vmm_payload_end"]
    static END: u8;
    #[link_name = "vmm_payload_brief_begin"]
    static BRIEF_BEGIN: u8;
    #[link_name = "vmm_payload_brief_end"]
    static BRIEF_END: u8;
}

/// The guest that follows a script.
pub(super) fn scripted() -> &'static [u8] {
    between(&raw const BEGIN, &raw const END)
}

/// The guest that resets the machine as soon as it can.
pub(super) fn brief() -> &'static [u8] {
    between(&raw const BRIEF_BEGIN, &raw const BRIEF_END)
}

fn between(begin: *const u8, end: *const u8) -> &'static [u8] {
    let length = end.addr() - begin.addr();
    // SAFETY: both are labels in one read-only section, the second behind the first, and what is
    // between them is code of the above.
    unsafe { std::slice::from_raw_parts(begin, length) }
}
