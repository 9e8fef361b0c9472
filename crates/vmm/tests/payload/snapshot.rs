//! Machines that go on from where another stood still.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes as _, GuestAddress};
use vmm::payload::{self, Script, Slot};
use vmm::virtio::Device;
use vmm::virtio::rng::{DEFAULT_RATE, Rng};
use vmm::virtio::vsock::{self, Vsock};
use vmm::{End, GuestMemory, Restore, State, Vm, VmError, memory};

use crate::rig::{
    DATA, Devices, INTERRUPT_STATUS, Queue, initialise, machine, notify, registers, wait, with_kvm,
    writable,
};

/// Where the guest says how far it is, and where it is told to go on.
const PROGRESS: u64 = DATA + 0x8_0000;
const GO: u64 = PROGRESS + 8;
const QUEUE_SIZE: u16 = 64;

/// Says that it has come so far, and waits to be told to go on.
fn rest(step: u16) -> impl FnOnce(Script) -> Script {
    move |script| script.write(PROGRESS, step.into(), 2).watch(GO, step)
}

fn await_progress(memory: &GuestMemory, step: u16) {
    let begun = Instant::now();
    while memory.read_obj::<u16>(GuestAddress(PROGRESS)).unwrap() != step {
        assert!(begun.elapsed() < Duration::from_secs(60), "the guest does not come to {step}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A machine that stands still: its state in bytes, and its memory.
struct Saved {
    state: Vec<u8>,
    memory: File,
}

impl Saved {
    /// Runs the script up to where it rests for the first time.
    fn of(kvm: File, cpus: u8, devices: Devices, script: &Script) -> Self {
        let vm = machine(kvm, cpus, devices);
        script.install(vm.memory());
        vm.resume();
        await_progress(vm.memory(), 1);
        vm.pause();
        let memory = tempfile::tempfile().unwrap();
        memory::save(vm.memory(), &memory).unwrap();
        Self { state: vm.save().unwrap().encode(), memory }
    }

    fn restore(&self, kvm: File, devices: Devices) -> Result<Vm, VmError> {
        Vm::restore(Restore {
            kvm: kvm.into(),
            state: &State::decode(&self.state).unwrap(),
            memory: self.memory.try_clone().unwrap(),
            devices,
            console: None,
            confine: Arc::new(|_| {}),
        })
    }
}

fn go_on(vm: &Vm, step: u16) {
    vm.memory().write_obj(step, GuestAddress(GO)).unwrap();
    vm.resume();
}

fn finish(vm: &Vm) {
    assert_eq!(wait(vm), Some(End::Reset), "{:?}", vm.metrics());
    assert!(payload::is_done(vm.memory()), "the guest fell over: {:?}", vm.metrics());
}

fn rng() -> Devices {
    vec![("rng", Box::new(Rng::new(DEFAULT_RATE).unwrap()) as Box<dyn Device>)]
}

#[test]
fn a_machine_goes_on_in_others_that_part_from_each_other() {
    with_kvm(|kvm| {
        let mut seen = Slot::new();
        let script = Script::default()
            .write(DATA, 7, 8)
            .and(rest(1))
            .read(DATA, 8, &mut seen)
            .write(DATA + 8, 8, 8);
        let saved = Saved::of(kvm.try_clone().unwrap(), 1, Vec::new(), &script);
        let forks: Vec<_> = (0..4_u64)
            .map(|number| {
                let fork = saved.restore(kvm.try_clone().unwrap(), Vec::new()).unwrap();
                assert_eq!(fork.memory().read_obj::<u64>(GuestAddress(DATA)).unwrap(), 7);
                fork.memory().write_obj(number, GuestAddress(DATA)).unwrap();
                fork
            })
            .collect();
        for (number, fork) in (0..).zip(&forks) {
            go_on(fork, 1);
            finish(fork);
            assert_eq!(seen.get(fork.memory()), number);
            assert_eq!(fork.memory().read_obj::<u64>(GuestAddress(DATA + 8)).unwrap(), 8);
        }
    });
}

#[test]
fn a_paused_machine_that_was_saved_goes_on_itself() {
    with_kvm(|kvm| {
        let vm = machine(kvm, 2, rng());
        Script::default().and(rest(1)).install(vm.memory());
        vm.resume();
        await_progress(vm.memory(), 1);
        vm.pause();
        let state = vm.save().unwrap();
        assert_eq!((state.cpus(), state.memory_bytes()), (2, 8 << 20));
        go_on(&vm, 1);
        finish(&vm);
        let ended = vm.save().unwrap_err().to_string();
        assert!(ended.contains("end"), "{ended}");
    });
}

#[test]
fn a_driver_goes_on_with_another_device_and_its_interrupts() {
    with_kvm(|kvm| {
        let queue = Queue::new(0, QUEUE_SIZE);
        let index = queue.available() + 2;
        let mut reason = Slot::new();
        let script = Script::default()
            .and(initialise(0, 0, &[queue]))
            .write(index, 1, 2)
            .and(notify(0, &queue, 1))
            .and(queue.watch(1))
            .and(rest(1))
            .write(index, 2, 2)
            .and(notify(0, &queue, 2))
            .and(queue.watch(2))
            .read32(registers(0) + INTERRUPT_STATUS, &mut reason);
        let vm = machine(kvm.try_clone().unwrap(), 1, rng());
        for slot in 0..2 {
            queue.request(vm.memory(), slot, slot, &[writable(DATA + u64::from(slot) * 64, 64)]);
        }
        vm.memory().write_obj(0_u16, GuestAddress(index)).unwrap();
        script.install(vm.memory());
        vm.resume();
        await_progress(vm.memory(), 1);
        vm.pause();
        let memory = tempfile::tempfile().unwrap();
        memory::save(vm.memory(), &memory).unwrap();
        let saved = Saved { state: vm.save().unwrap().encode(), memory };
        drop(vm);
        let bytes = [(), ()].map(|()| {
            let fork = saved.restore(kvm.try_clone().unwrap(), rng()).unwrap();
            go_on(&fork, 1);
            finish(&fork);
            assert_eq!(queue.count_used(fork.memory()), 2);
            assert_eq!(queue.written(fork.memory(), 1), 64);
            let mut bytes = [[0; 64]; 2];
            for (bytes, at) in bytes.iter_mut().zip([DATA, DATA + 64]) {
                fork.memory().read_slice(bytes, GuestAddress(at)).unwrap();
            }
            bytes
        });
        assert_eq!(bytes[0][0], bytes[1][0], "what was there before");
        assert_ne!(bytes[0][1], bytes[1][1], "what came after");
    });
}

#[test]
fn who_is_behind_the_vsock_device_is_asked_for_when_the_guest_has_forgotten_the_others() {
    /// What a guest that listens is asked: `VIRTIO_VSOCK_OP_REQUEST`, at offset 30 of the header.
    const REQUEST: u16 = 1;
    with_kvm(|kvm| {
        let vsock = |socket: Option<UnixStream>| -> Devices {
            let mut config = vsock::Config::new(3);
            config.connect.extend(socket.map(|socket| (2222, socket.into())));
            vec![("vsock", Box::new(Vsock::new(config).unwrap()))]
        };
        let queues = [Queue::new(0, 256), Queue::new(1, 256), Queue::new(2, 8)];
        let [receive, _, events] = queues;
        let event_index = events.available() + 2;
        let script = Script::default()
            .and(initialise(0, 0, &queues))
            .and(rest(1))
            // The event is there; nobody has been asked for yet.
            .and(events.watch(2))
            .and(rest(2))
            .write(event_index, 3, 2)
            .and(notify(0, &events, 1))
            .and(receive.watch(1));
        let vm = machine(kvm.try_clone().unwrap(), 1, vsock(None));
        for slot in 0..3 {
            events.request(vm.memory(), slot, slot, &[writable(DATA + u64::from(slot) * 8, 4)]);
        }
        vm.memory().write_obj(2_u16, GuestAddress(event_index)).unwrap();
        vm.memory().write_slice(&[0xff; 24], GuestAddress(DATA)).unwrap();
        receive.request(vm.memory(), 0, 0, &[writable(DATA + 0x1000, 0x1000)]);
        script.install(vm.memory());
        vm.resume();
        await_progress(vm.memory(), 1);
        vm.pause();
        let memory = tempfile::tempfile().unwrap();
        memory::save(vm.memory(), &memory).unwrap();
        let saved = Saved { state: vm.save().unwrap().encode(), memory };
        drop(vm);

        let (_host, guest) = UnixStream::pair().unwrap();
        let fork = saved.restore(kvm, vsock(Some(guest))).unwrap();
        go_on(&fork, 1);
        await_progress(fork.memory(), 2);
        let event = fork.memory().read_obj::<u32>(GuestAddress(DATA)).unwrap();
        assert_eq!((event, events.written(fork.memory(), 0)), (0, 4), "a reset of the transport");
        assert_eq!(events.written(fork.memory(), 1), 0);
        assert_eq!(receive.count_used(fork.memory()), 0);
        fork.memory().write_obj(2_u16, GuestAddress(GO)).unwrap();
        finish(&fork);
        let asked = fork.memory().read_obj::<u16>(GuestAddress(DATA + 0x1000 + 30)).unwrap();
        assert_eq!(asked, REQUEST);
    });
}

#[test]
fn a_machine_with_other_devices_does_not_go_on() {
    with_kvm(|kvm| {
        let script = Script::default().and(rest(1));
        let saved = Saved::of(kvm.try_clone().unwrap(), 1, rng(), &script);
        let none = saved.restore(kvm.try_clone().unwrap(), Vec::new()).unwrap_err().to_string();
        assert!(none.contains("another number of devices"), "{none}");
        let vsock = Vsock::new(vsock::Config::new(3)).unwrap();
        let other: Devices = vec![("vsock", Box::new(vsock))];
        let other = saved.restore(kvm, other).unwrap_err().to_string();
        assert!(other.contains("device 4 was there, and 19 is in its place"), "{other}");
    });
}

#[test]
fn a_state_that_changed_is_refused() {
    with_kvm(|kvm| {
        let Saved { state, .. } = Saved::of(kvm, 1, rng(), &Script::default().and(rest(1)));
        assert!(State::decode(&state).is_ok());
        for at in 0..state.len() {
            let mut changed = state.clone();
            changed[at] ^= 1 << (at % 8);
            assert!(State::decode(&changed).is_err(), "byte {at}");
        }
        for length in [0, 23, 24, state.len() - 1] {
            assert!(State::decode(&state[..length]).is_err(), "{length} bytes");
        }
    });
}
