//! A machine for a script, and a driver for its devices.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes as _, GuestAddress};
use vmm::memory::Backing;
use vmm::payload::{self, FREE, Script, Slot};
use vmm::virtio::Device;
use vmm::{Config, End, GuestMemory, Vm};

/// Registers of virtio over MMIO (specification 1.2, section 4.2.2).
pub(crate) const MAGIC: u64 = 0x0;
pub(crate) const DEVICE_ID: u64 = 0x8;
pub(crate) const DEVICE_FEATURES: u64 = 0x10;
pub(crate) const DRIVER_FEATURES: u64 = 0x20;
pub(crate) const DRIVER_FEATURES_SEL: u64 = 0x24;
pub(crate) const QUEUE_SEL: u64 = 0x30;
pub(crate) const QUEUE_NUM: u64 = 0x38;
pub(crate) const QUEUE_READY: u64 = 0x44;
pub(crate) const QUEUE_NOTIFY: u64 = 0x50;
pub(crate) const INTERRUPT_STATUS: u64 = 0x60;
pub(crate) const INTERRUPT_ACK: u64 = 0x64;
pub(crate) const STATUS: u64 = 0x70;
pub(crate) const QUEUE_DESC: u64 = 0x80;
pub(crate) const QUEUE_DRIVER: u64 = 0x90;
pub(crate) const QUEUE_DEVICE: u64 = 0xa0;
pub(crate) const CONFIG: u64 = 0x100;

/// Bits of the status register.
pub(crate) const DRIVER: u32 = 1 | 2;
pub(crate) const FEATURES_OK: u32 = 8;
pub(crate) const DRIVER_OK: u32 = 4;
pub(crate) const NEEDS_RESET: u32 = 0x40;

/// Long enough for an emulated processor with other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) type Devices = Vec<(&'static str, Box<dyn Device>)>;

/// Runs `test` where there is a KVM to run it on.
pub(crate) fn with_kvm(test: impl FnOnce(File)) {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => test(kvm),
        // It reaches the closing line of the checks: see `step_tests` in ./check.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!("not run: no /dev/kvm");
        }
        Err(error) => panic!("/dev/kvm is there and cannot be opened: {error}"),
    }
}

/// A machine with these devices that waits to be resumed.
pub(crate) fn machine(kvm: File, cpus: u8, devices: Devices) -> Vm {
    Vm::new(config(kvm, cpus, devices)).expect("a machine")
}

pub(crate) fn config(kvm: File, cpus: u8, devices: Devices) -> Config {
    Config {
        kvm: kvm.into(),
        cpus,
        memory_bytes: 8 << 20,
        backing: Backing::default(),
        boot: payload::boot().expect("a kernel"),
        devices,
        console: None,
        confine: Arc::new(|_| {}),
    }
}

/// Has the guest carry out the script to its end.
pub(crate) fn run(vm: &Vm, script: &Script) {
    script.install(vm.memory());
    vm.resume();
    assert_eq!(wait(vm), Some(End::Reset), "{:?}", vm.metrics());
    assert!(payload::is_done(vm.memory()), "the guest fell over: {:?}", vm.metrics());
}

/// Waits for the machine's end, for a while.
pub(crate) fn wait(vm: &Vm) -> Option<End> {
    wait_for(vm, PATIENCE)
}

pub(crate) fn wait_for(vm: &Vm, patience: Duration) -> Option<End> {
    let patience = Timespec::try_from(patience).expect("seconds");
    let mut ended = [PollFd::new(vm.ended(), PollFlags::IN)];
    poll(&mut ended, Some(&patience)).expect("a poll");
    vm.end()
}

/// Where the registers of device number `index` are.
pub(crate) fn registers(index: u64) -> u64 {
    0xd000_0000 + index * 0x1000
}

/// Its interrupt line.
pub(crate) fn line(index: u8) -> u8 {
    5 + index
}

/// A queue of a device, in memory that the guest leaves alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Queue {
    pub(crate) index: u32,
    pub(crate) size: u16,
    at: u64,
}

/// Descriptor flags.
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A piece of memory in a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffer {
    pub(crate) at: u64,
    pub(crate) length: u32,
    pub(crate) writable: bool,
}

pub(crate) fn readable(at: u64, length: u32) -> Buffer {
    Buffer { at, length, writable: false }
}

pub(crate) fn writable(at: u64, length: u32) -> Buffer {
    Buffer { at, length, writable: true }
}

/// Where tests have room for their buffers.
pub(crate) const DATA: u64 = FREE + 0x10_0000;

impl Queue {
    pub(crate) fn new(index: u32, size: u16) -> Self {
        Self { index, size, at: FREE + u64::from(index) * 0x1_0000 }
    }

    pub(crate) fn descriptors(&self) -> u64 {
        self.at
    }

    pub(crate) fn available(&self) -> u64 {
        self.at + 0x4000
    }

    pub(crate) fn used(&self) -> u64 {
        self.at + 0x8000
    }

    /// Writes a descriptor as it is, sense or nonsense.
    pub(crate) fn describe(&self, memory: &GuestMemory, index: u16, fields: (u64, u32, u16, u16)) {
        let (address, length, flags, next) = fields;
        let at = self.descriptors() + 16 * u64::from(index);
        memory.write_obj(address, GuestAddress(at)).unwrap();
        memory.write_obj(length, GuestAddress(at + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Lays out one request from descriptor `first` on, and makes it available as the `number`th.
    pub(crate) fn request(
        &self,
        memory: &GuestMemory,
        number: u16,
        first: u16,
        buffers: &[Buffer],
    ) {
        for (index, buffer) in (first..).zip(buffers) {
            let last = usize::from(index - first) + 1 == buffers.len();
            let flags = if last { 0 } else { NEXT } | if buffer.writable { WRITE } else { 0 };
            self.describe(memory, index, (buffer.at, buffer.length, flags, index + 1));
        }
        self.offer(memory, number, first);
    }

    /// Makes the chain that begins at `head` available as the `number`th.
    pub(crate) fn offer(&self, memory: &GuestMemory, number: u16, head: u16) {
        let slot = self.available() + 4 + 2 * u64::from(number % self.size);
        memory.write_obj(head, GuestAddress(slot)).unwrap();
        memory.write_obj(number.wrapping_add(1), GuestAddress(self.available() + 2)).unwrap();
    }

    /// Waits until the device has used so many requests.
    pub(crate) fn watch(&self, count: u16) -> impl FnOnce(Script) -> Script {
        let at = self.used() + 2;
        move |script| script.watch(at, count)
    }

    /// How many requests the device has used.
    pub(crate) fn count_used(&self, memory: &GuestMemory) -> u16 {
        memory.read_obj(GuestAddress(self.used() + 2)).unwrap()
    }

    /// The bytes that the device says it wrote for the `number`th used request.
    pub(crate) fn written(&self, memory: &GuestMemory, number: u16) -> u32 {
        let slot = self.used() + 4 + 8 * u64::from(number % self.size);
        memory.read_obj(GuestAddress(slot + 4)).unwrap()
    }
}

/// The driver's initialisation (section 3.1.1) of device number `index`, with these features
/// beyond version 1.
pub(crate) fn initialise(
    index: u8,
    features: u32,
    queues: &[Queue],
) -> impl FnOnce(Script) -> Script {
    move |script| set_up(script, index, features, queues)
}

fn set_up(script: Script, index: u8, features: u32, queues: &[Queue]) -> Script {
    let at = registers(index.into());
    let mut script = script
        .enable_interrupt(line(index))
        .write32(at + STATUS, 0)
        .write32(at + STATUS, DRIVER)
        .write32(at + DRIVER_FEATURES_SEL, 0)
        .write32(at + DRIVER_FEATURES, features)
        .write32(at + DRIVER_FEATURES_SEL, 1)
        .write32(at + DRIVER_FEATURES, 1)
        .write32(at + STATUS, DRIVER | FEATURES_OK);
    for queue in queues {
        let halves = |address: u64| {
            let [low, high] = [address, address >> 32].map(|half| half & 0xffff_ffff);
            [low, high].map(|half| u32::try_from(half).unwrap())
        };
        script = script.write32(at + QUEUE_SEL, queue.index);
        script = script.write32(at + QUEUE_NUM, queue.size.into());
        for (register, address) in [
            (QUEUE_DESC, queue.descriptors()),
            (QUEUE_DRIVER, queue.available()),
            (QUEUE_DEVICE, queue.used()),
        ] {
            let [low, high] = halves(address);
            script = script.write32(at + register, low).write32(at + register + 4, high);
        }
        script = script.write32(at + QUEUE_READY, 1);
    }
    script.write32(at + STATUS, DRIVER | FEATURES_OK | DRIVER_OK)
}

/// Tells the device of new requests and halts until it has interrupted `count` times in all.
pub(crate) fn notify(index: u8, queue: &Queue, count: u64) -> impl FnOnce(Script) -> Script {
    let (at, queue) = (registers(index.into()), queue.index);
    move |script| {
        script
            .write32(at + QUEUE_NOTIFY, queue)
            .await_interrupts(count)
            .write32(at + INTERRUPT_ACK, 3)
    }
}

/// The device's status, read at this point of the script.
pub(crate) fn read_status(index: u8, slot: &mut Slot) -> impl FnOnce(Script) -> Script {
    move |script| script.read32(registers(index.into()) + STATUS, slot)
}
