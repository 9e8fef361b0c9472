//! The machine itself: memory, exits, its end, pause and resume.

use std::io::Read as _;
use std::time::Duration;

use vm_memory::{Bytes as _, GuestAddress};
use vmm::payload::{FREE, Script, Slot};
use vmm::{Config, End, Vm, VmError};

use crate::rig::{self, config, machine, run, wait, wait_for, with_kvm};

const ZERO_PAGE: u64 = 0x7000;
const SERIAL: u16 = 0x3f8;

#[test]
fn the_guest_sees_the_memory_that_it_was_given() {
    with_kvm(|kvm| {
        let vm = machine(kvm, 1, Vec::new());
        let last = (8 << 20) - 8;
        vm.memory().write_obj(0x0123_4567_89ab_cdef_u64, GuestAddress(last)).unwrap();
        let mut seen = Slot::new();
        let script = Script::default().read(last, 8, &mut seen).write(last, 42, 8);
        run(&vm, &script);
        assert_eq!(seen.get(vm.memory()), 0x0123_4567_89ab_cdef);
        assert_eq!(vm.memory().read_obj::<u64>(GuestAddress(last)).unwrap(), 42);
    });
}

#[test]
fn the_zero_page_tells_where_memory_is() {
    with_kvm(|kvm| {
        let vm = machine(kvm, 1, Vec::new());
        let mut entries = Slot::new();
        let mut table = vec![(Slot::new(), Slot::new()); 3];
        // Documentation/arch/x86/zero-page.rst: the count is at 0x1e8, the table at 0x2d0.
        let mut script = Script::default().read(ZERO_PAGE + 0x1e8, 1, &mut entries);
        for (index, (start, length)) in (0..).zip(&mut table) {
            let entry = ZERO_PAGE + 0x2d0 + 20 * index;
            script = script.read(entry, 8, start).read(entry + 8, 8, length);
        }
        run(&vm, &script);
        let read = |slot: Slot| slot.get(vm.memory());
        let table: Vec<_> = table.into_iter().map(|(at, size)| (read(at), read(size))).collect();
        assert_eq!(read(entries), 3);
        assert_eq!(table, [(0, 0x9_fc00), (0x9_fc00, 0x6_0400), (1 << 20, 7 << 20)]);
    });
}

#[test]
fn the_mp_table_is_where_kernels_look_for_it() {
    with_kvm(|kvm| {
        let vm = machine(kvm, 2, Vec::new());
        let mut signature = Slot::new();
        run(&vm, &Script::default().read32(0x9_fc00, &mut signature));
        assert_eq!(signature.get(vm.memory()), u64::from(u32::from_le_bytes(*b"_MP_")));
    });
}

#[test]
fn the_serial_port_says_what_the_guest_says() {
    with_kvm(|kvm| {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let vm = Vm::new(Config { console: Some(writer.into()), ..config(kvm, 1, Vec::new()) });
        let vm = vm.unwrap();
        let mut ready = Slot::new();
        let script =
            b"hello".iter().fold(Script::default(), |script, byte| script.output(SERIAL, *byte));
        run(&vm, &script.input(SERIAL + 5, &mut ready));
        // LSR: the transmitter is empty, always.
        assert_eq!(ready.get(vm.memory()) & 0x60, 0x60);
        drop(vm);
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said, "hello");
    });
}

#[test]
fn where_no_device_is_all_bits_are_set_and_writes_are_lost() {
    with_kvm(|kvm| {
        let vm = machine(kvm, 1, Vec::new());
        let (mut port, mut byte, mut word) = (Slot::new(), Slot::new(), Slot::new());
        let script = Script::default()
            .input(0x1234, &mut port)
            .output(0x1234, 0)
            .read(rig::registers(0), 1, &mut byte)
            .read(rig::registers(11), 4, &mut word)
            .write32(rig::registers(3), 7);
        run(&vm, &script);
        let read = |slot: Slot| slot.get(vm.memory());
        assert_eq!((read(port), read(byte), read(word)), (0xff, 0xff, 0xffff_ffff));
        assert_eq!(vm.metrics().unclaimed, 5);
    });
}

#[test]
fn a_triple_fault_is_a_reset() {
    with_kvm(|kvm| {
        let vm = machine(kvm, 1, Vec::new());
        // Nothing is mapped there, and nothing handles the fault.
        Script::default().write32(0x4000_0000, 1).install(vm.memory());
        vm.resume();
        assert_eq!(wait(&vm), Some(End::Reset));
    });
}

#[test]
fn a_paused_guest_does_nothing_and_a_resumed_one_goes_on() {
    with_kvm(|kvm| {
        let vm = machine(kvm, 1, Vec::new());
        // A few hundred milliseconds where each instruction is emulated, less where not: the
        // guest cannot end while it is paused in any case.
        let script = Script::default().spin(50_000).write(FREE, 1, 8).spin(50_000);
        script.install(vm.memory());
        vm.resume();
        vm.pause();
        if vm.end().is_none() {
            let before: u64 = vm.memory().read_obj(GuestAddress(FREE)).unwrap();
            assert_eq!(wait_for(&vm, Duration::from_millis(100)), None);
            let after: u64 = vm.memory().read_obj(GuestAddress(FREE)).unwrap();
            assert_eq!(before, after);
        }
        vm.resume();
        assert_eq!(wait(&vm), Some(End::Reset));
        assert_eq!(vm.memory().read_obj::<u64>(GuestAddress(FREE)).unwrap(), 1);
    });
}

#[test]
fn pausing_again_and_again_loses_no_instruction() {
    with_kvm(|kvm| {
        let vm = machine(kvm, 1, Vec::new());
        let mut slots = vec![Slot::new(); 500];
        // An exit at every other instruction, so that pauses come in the middle of some.
        let script = slots
            .iter_mut()
            .fold(Script::default(), |script, slot| script.read(rig::registers(0), 4, slot));
        script.install(vm.memory());
        for _ in 0..100 {
            vm.resume();
            vm.pause();
        }
        vm.resume();
        assert_eq!(wait(&vm), Some(End::Reset));
        assert!(slots.iter().all(|slot| slot.get(vm.memory()) == 0xffff_ffff));
        assert_eq!(vm.metrics().memory_exits, 500);
    });
}

#[test]
fn a_guest_that_only_halts_can_be_taken_away() {
    with_kvm(|kvm| {
        let vm = machine(kvm, 1, Vec::new());
        Script::default().await_interrupts(1).install(vm.memory());
        vm.resume();
        assert_eq!(wait_for(&vm, Duration::from_millis(50)), None);
        drop(vm);
    });
}

#[test]
fn more_than_a_machine_can_have_is_refused() {
    with_kvm(|kvm| {
        for cpus in [0, 33] {
            let refused = Vm::new(config(kvm.try_clone().unwrap(), cpus, Vec::new()));
            assert!(matches!(refused, Err(VmError::Config(_))), "{cpus}");
        }
    });
}

#[test]
fn a_file_that_is_not_kvm_is_refused_by_name() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let error = Vm::new(config(null, 1, Vec::new())).unwrap_err();
    assert!(error.to_string().contains("is this /dev/kvm?"), "{error}");
}

#[test]
fn thirty_two_cpus_are_made() {
    with_kvm(|kvm| {
        let vm = machine(kvm, 32, Vec::new());
        run(&vm, &Script::default());
    });
}
