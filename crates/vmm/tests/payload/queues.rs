//! Queues of the devices, driven by the guest: requests, interrupts, and what a driver must not do.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes as _, GuestAddress};
use vmm::payload::{Script, Slot, interrupts};
use vmm::virtio::Device;
use vmm::virtio::balloon::Balloon;
use vmm::virtio::block::{self, Block};
use vmm::virtio::rng::{DEFAULT_RATE, Rng};
use vmm::virtio::vsock::{self, Vsock};
use vmm::{GuestMemory, Vm};

use crate::rig::{
    CONFIG, DATA, DEVICE_FEATURES, DEVICE_ID, DRIVER, DRIVER_FEATURES, DRIVER_FEATURES_SEL,
    Devices, FEATURES_OK, INTERRUPT_ACK, INTERRUPT_STATUS, MAGIC, NEEDS_RESET, QUEUE_NOTIFY, Queue,
    STATUS, initialise, machine, notify, read_status, readable, registers, run, with_kvm, writable,
};

const SECTOR: usize = 512;
const QUEUE_SIZE: u16 = 8;
/// Types of a disk's requests, and the statuses that they end with (section 5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

fn rng() -> Devices {
    vec![("rng", Box::new(Rng::new(DEFAULT_RATE).unwrap()))]
}

/// A disk of 64 KiB whose sector N is full of the byte N.
fn disk(read_only: bool) -> (File, Devices) {
    let mut file = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
    let content: Vec<u8> = (0..128_u8).flat_map(|sector| [sector; SECTOR]).collect();
    file.write_all(&content).unwrap();
    let (held, id) = (file.try_clone().unwrap(), "disk".into());
    let disk = Block::new(block::Config { files: vec![file], read_only, id, rate: None }).unwrap();
    (held, vec![("disk", Box::new(disk) as Box<dyn Device>)])
}

fn byte(memory: &GuestMemory, at: u64) -> u8 {
    memory.read_obj(GuestAddress(at)).unwrap()
}

#[test]
fn a_driver_finds_its_device() {
    with_kvm(|kvm| {
        let vm = machine(kvm, 1, rng());
        let (mut magic, mut version, mut id, mut features) =
            (Slot::new(), Slot::new(), Slot::new(), Slot::new());
        let at = registers(0);
        let script = Script::default()
            .read32(at + MAGIC, &mut magic)
            .read32(at + 4, &mut version)
            .read32(at + DEVICE_ID, &mut id)
            .write32(at + 0x14, 1)
            .read32(at + DEVICE_FEATURES, &mut features);
        run(&vm, &script);
        let read = |slot: Slot| slot.get(vm.memory());
        assert_eq!((read(magic), read(version), read(id)), (0x7472_6976, 2, 4));
        assert_eq!(read(features) & 1, 1, "version 1 is offered");
    });
}

#[test]
fn features_that_were_not_offered_are_not_agreed_on() {
    with_kvm(|kvm| {
        let vm = machine(kvm, 1, rng());
        let at = registers(0);
        let mut status = Slot::new();
        let script = Script::default()
            .write32(at + STATUS, DRIVER)
            .write32(at + DRIVER_FEATURES_SEL, 0)
            .write32(at + DRIVER_FEATURES, 1 << 5)
            .write32(at + DRIVER_FEATURES_SEL, 1)
            .write32(at + DRIVER_FEATURES, 1)
            .write32(at + STATUS, DRIVER | FEATURES_OK)
            .and(read_status(0, &mut status));
        run(&vm, &script);
        assert_eq!(status.get(vm.memory()), u64::from(DRIVER));
    });
}

#[test]
fn random_bytes_come_with_an_interrupt() {
    with_kvm(|kvm| {
        let vm = machine(kvm, 1, rng());
        let queue = Queue::new(0, QUEUE_SIZE);
        queue.request(vm.memory(), 0, 0, &[writable(DATA, 64)]);
        let (mut reason, mut after) = (Slot::new(), Slot::new());
        let at = registers(0);
        let script = Script::default()
            .and(initialise(0, 0, &[queue]))
            .write32(at + QUEUE_NOTIFY, 0)
            .await_interrupts(1)
            .read32(at + INTERRUPT_STATUS, &mut reason)
            .write32(at + INTERRUPT_ACK, 1)
            .read32(at + INTERRUPT_STATUS, &mut after);
        run(&vm, &script);
        assert_eq!(queue.count_used(vm.memory()), 1);
        assert_eq!(queue.written(vm.memory(), 0), 64);
        let mut bytes = [0; 64];
        vm.memory().read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
        assert_ne!(bytes, [0; 64]);
        assert_eq!((reason.get(vm.memory()), after.get(vm.memory())), (1, 0));
    });
}

#[test]
fn many_requests_go_round_the_queue() {
    with_kvm(|kvm| {
        let vm = machine(kvm, 1, rng());
        let queue = Queue::new(0, QUEUE_SIZE);
        // Each turn offers the same buffers anew; the driver's index runs on.
        let turns = 3 * u64::from(QUEUE_SIZE);
        for slot in 0..QUEUE_SIZE {
            queue.request(vm.memory(), slot, slot, &[writable(DATA + u64::from(slot) * 64, 64)]);
        }
        let index = queue.available() + 2;
        let script = (1..=turns)
            .fold(Script::default().and(initialise(0, 0, &[queue])), |script, turn| {
                script.write(index, turn, 2).and(notify(0, &queue, turn))
            });
        vm.memory().write_obj(0_u16, GuestAddress(index)).unwrap();
        run(&vm, &script);
        assert_eq!(u64::from(queue.count_used(vm.memory())), turns);
        assert_eq!(interrupts(vm.memory()), turns);
    });
}

#[test]
fn a_descriptor_out_of_memory_is_answered_and_does_no_harm() {
    with_kvm(|kvm| {
        let vm = machine(kvm, 1, rng());
        let queue = Queue::new(0, QUEUE_SIZE);
        queue.request(vm.memory(), 0, 0, &[writable(1 << 40, 64)]);
        queue.request(vm.memory(), 1, 1, &[writable(u64::MAX - 8, 64)]);
        queue.request(vm.memory(), 2, 2, &[writable(DATA, u32::MAX)]);
        // Read-only where the device is to write.
        queue.request(vm.memory(), 3, 3, &[readable(DATA, 64)]);
        run(
            &vm,
            &Script::default()
                .and(initialise(0, 0, &[queue]))
                .and(notify(0, &queue, 1))
                .and(queue.watch(4)),
        );
        assert_eq!(queue.count_used(vm.memory()), 4);
        assert_eq!(vm.metrics().failures, Vec::<String>::new());
    });
}

#[test]
fn a_chain_that_leads_into_itself_ends() {
    with_kvm(|kvm| {
        let vm = machine(kvm, 1, rng());
        let queue = Queue::new(0, QUEUE_SIZE);
        let next_and_write = 1 | 2;
        queue.describe(vm.memory(), 0, (DATA, 8, next_and_write, 1));
        queue.describe(vm.memory(), 1, (DATA, 8, next_and_write, 0));
        queue.offer(vm.memory(), 0, 0);
        run(&vm, &Script::default().and(initialise(0, 0, &[queue])).and(notify(0, &queue, 1)));
        assert_eq!(queue.count_used(vm.memory()), 1);
    });
}

#[test]
fn a_ring_that_makes_no_sense_needs_a_reset_and_works_after_it() {
    with_kvm(|kvm| {
        let vm = machine(kvm, 1, rng());
        let queue = Queue::new(0, QUEUE_SIZE);
        queue.request(vm.memory(), 0, 0, &[writable(DATA, 64)]);
        let (mut broken, mut repaired) = (Slot::new(), Slot::new());
        let index = queue.available() + 2;
        let script = Script::default()
            // More requests than there are entries.
            .write(index, 1000, 2)
            .and(initialise(0, 0, &[queue]))
            .and(notify(0, &queue, 1))
            .and(read_status(0, &mut broken))
            .write(index, 1, 2)
            .and(initialise(0, 0, &[queue]))
            .and(notify(0, &queue, 2))
            .and(read_status(0, &mut repaired));
        run(&vm, &script);
        let status = |slot: Slot| u32::try_from(slot.get(vm.memory())).unwrap();
        assert_eq!(status(broken) & NEEDS_RESET, NEEDS_RESET);
        assert_eq!(status(repaired) & NEEDS_RESET, 0);
        assert_eq!(queue.count_used(vm.memory()), 1);
        assert_eq!(vm.metrics().failures.len(), 1);
    });
}

#[test]
fn queues_out_of_memory_are_not_served() {
    with_kvm(|kvm| {
        let vm = machine(kvm, 1, rng());
        let at = registers(0);
        let queue = Queue::new(0, QUEUE_SIZE);
        let mut status = Slot::new();
        // The ring lies behind the end of memory.
        let script = Script::default()
            .and(initialise(0, 0, &[]))
            .write32(at + STATUS, 0)
            .write32(at + STATUS, DRIVER)
            .write32(at + DRIVER_FEATURES_SEL, 1)
            .write32(at + DRIVER_FEATURES, 1)
            .write32(at + STATUS, DRIVER | FEATURES_OK)
            .write32(at + 0x30, 0)
            .write32(at + 0x38, queue.size.into())
            .write32(at + 0x84, 0xff)
            .write32(at + 0x94, 0xff)
            .write32(at + 0xa4, 0xff)
            .write32(at + 0x44, 1)
            .write32(at + STATUS, DRIVER | FEATURES_OK | 4)
            .write32(at + QUEUE_NOTIFY, 0)
            .and(read_status(0, &mut status));
        run(&vm, &script);
        assert_ne!(status.get(vm.memory()) & u64::from(NEEDS_RESET), 0);
    });
}

/// One request to a disk: header, data and status.
fn disk_request(vm: &Vm, queue: Queue, number: u16, kind: u32, sector: u64, data: u32) -> u64 {
    let memory = vm.memory();
    let header = DATA + u64::from(number) * 0x1000;
    memory.write_obj(kind, GuestAddress(header)).unwrap();
    memory.write_obj(sector, GuestAddress(header + 8)).unwrap();
    let status = header + 16;
    memory.write_obj(0xff_u8, GuestAddress(status)).unwrap();
    let (content, first) = (header + 0x200, number * 3);
    let buffers = match kind {
        IN => vec![readable(header, 16), writable(content, data), writable(status, 1)],
        OUT => vec![readable(header, 16), readable(content, data), writable(status, 1)],
        _ => vec![readable(header, 16), writable(status, 1)],
    };
    queue.request(memory, number, first, &buffers);
    status
}

#[test]
fn a_disk_is_read_and_written() {
    with_kvm(|kvm| {
        let (file, devices) = disk(false);
        let vm = machine(kvm, 1, devices);
        let queue = Queue::new(0, 16);
        vm.memory().write_slice(&[0xaa; SECTOR], GuestAddress(DATA + 0x200)).unwrap();
        let written = disk_request(&vm, queue, 0, OUT, 5, 512);
        let read = disk_request(&vm, queue, 1, IN, 7, 1024);
        let flushed = disk_request(&vm, queue, 2, FLUSH, 0, 0);
        run(
            &vm,
            &Script::default()
                .and(initialise(0, 1 << 9, &[queue]))
                .and(notify(0, &queue, 1))
                .and(queue.watch(3)),
        );
        assert_eq!([written, read, flushed].map(|at| byte(vm.memory(), at)), [OK; 3]);
        let mut sector = [0; SECTOR];
        file.read_exact_at(&mut sector, 5 * SECTOR as u64).unwrap();
        assert_eq!(sector, [0xaa; SECTOR]);
        let content = DATA + 0x1000 + 0x200;
        assert_eq!([content, content + 512].map(|at| byte(vm.memory(), at)), [7, 8]);
        assert_eq!(queue.written(vm.memory(), 1), 1025);
    });
}

#[test]
fn a_read_only_disk_refuses_to_be_written() {
    with_kvm(|kvm| {
        let (file, devices) = disk(true);
        let vm = machine(kvm, 1, devices);
        let queue = Queue::new(0, 16);
        let written = disk_request(&vm, queue, 0, OUT, 5, 512);
        run(&vm, &Script::default().and(initialise(0, 1 << 5, &[queue])).and(notify(0, &queue, 1)));
        assert_eq!(byte(vm.memory(), written), IO_ERROR);
        let mut sector = [0; SECTOR];
        file.read_exact_at(&mut sector, 5 * SECTOR as u64).unwrap();
        assert_eq!(sector, [5; SECTOR]);
    });
}

#[test]
fn malformed_requests_to_a_disk_are_refused_one_by_one() {
    with_kvm(|kvm| {
        let (_file, devices) = disk(false);
        let vm = machine(kvm, 1, devices);
        let queue = Queue::new(0, 32);
        let behind_the_end = disk_request(&vm, queue, 0, IN, 128, 512);
        let overflowing = disk_request(&vm, queue, 1, IN, u64::MAX, 512);
        let half_a_sector = disk_request(&vm, queue, 2, IN, 0, 100);
        let unknown = disk_request(&vm, queue, 3, 77, 0, 0);
        let fine = disk_request(&vm, queue, 4, IN, 1, 512);
        // Neither of these has a place for a status.
        queue.request(vm.memory(), 5, 20, &[readable(DATA, 16)]);
        queue.request(vm.memory(), 6, 21, &[writable(DATA + 0x8000, 16)]);
        run(
            &vm,
            &Script::default()
                .and(initialise(0, 0, &[queue]))
                .and(notify(0, &queue, 1))
                .and(queue.watch(7)),
        );
        let status = |at| byte(vm.memory(), at);
        assert_eq!([behind_the_end, overflowing, half_a_sector].map(status), [IO_ERROR; 3]);
        assert_eq!((status(unknown), status(fine)), (UNSUPPORTED, OK));
        assert_eq!(queue.count_used(vm.memory()), 7);
        assert_eq!(vm.metrics().failures, Vec::<String>::new());
    });
}

#[test]
fn pages_in_the_balloon_are_empty_afterwards() {
    with_kvm(|kvm| {
        let balloon = Balloon::new().unwrap();
        let (target, metrics) = (balloon.target(), balloon.metrics());
        let vm = machine(kvm, 1, vec![("balloon", Box::new(balloon))]);
        target.set_mib(1);
        let page = (DATA + 0x10_0000) >> 12;
        vm.memory().write_slice(&[1; 4096], GuestAddress(page << 12)).unwrap();
        let numbers = [page, u64::from(u32::MAX)].map(|page| u32::try_from(page).unwrap());
        let inflate = Queue::new(0, QUEUE_SIZE);
        let deflate = Queue::new(1, QUEUE_SIZE);
        for (number, at) in numbers.iter().zip([DATA, DATA + 4]) {
            vm.memory().write_obj(*number, GuestAddress(at)).unwrap();
        }
        inflate.request(vm.memory(), 0, 0, &[readable(DATA, 8)]);
        let mut wanted = Slot::new();
        let script = Script::default()
            .and(initialise(0, 0, &[inflate, deflate]))
            .read32(registers(0) + CONFIG, &mut wanted)
            .and(notify(0, &inflate, 1))
            // The interrupt may be the one that tells of the new size.
            .and(inflate.watch(1));
        run(&vm, &script);
        assert_eq!(wanted.get(vm.memory()), 256, "pages of 4 KiB in a MiB");
        assert_eq!(byte(vm.memory(), page << 12), 0);
        assert_eq!(inflate.count_used(vm.memory()), 1);
        let counted = metrics.snapshot();
        assert!(format!("{counted:?}").contains('1'), "{counted:?}");
    });
}

/// A vsock packet's header (section 5.10.6) from guest port 1234 to host port 99.
fn packet(operation: u16, length: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(3_u64.to_le_bytes());
    bytes.extend(2_u64.to_le_bytes());
    bytes.extend(1234_u32.to_le_bytes());
    bytes.extend(99_u32.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(1_u16.to_le_bytes());
    bytes.extend(operation.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend(0x1_0000_u32.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    bytes
}

/// Operations.
const REQUEST: u16 = 1;
const RESET: u16 = 3;
const DATA_PACKET: u16 = 5;
const HEADER: u32 = 44;

#[test]
fn a_connection_to_nobody_is_reset() {
    with_kvm(|kvm| {
        let vsock = Vsock::new(vsock::Config::new(3)).unwrap();
        let vm = machine(kvm, 1, vec![("vsock", Box::new(vsock))]);
        let (receive, transmit) = (Queue::new(0, QUEUE_SIZE), Queue::new(1, QUEUE_SIZE));
        let answer = DATA + 0x1_0000;
        receive.request(vm.memory(), 0, 0, &[writable(answer, 4096)]);
        vm.memory().write_slice(&packet(REQUEST, 0), GuestAddress(DATA)).unwrap();
        transmit.request(vm.memory(), 0, 0, &[readable(DATA, HEADER)]);
        run(
            &vm,
            &Script::default()
                .and(initialise(0, 0, &[receive, transmit]))
                .and(notify(0, &transmit, 1))
                .and(receive.watch(1)),
        );
        let operation: u16 = vm.memory().read_obj(GuestAddress(answer + 30)).unwrap();
        assert_eq!(operation, RESET);
    });
}

#[test]
fn the_host_asks_for_the_port_that_it_was_given() {
    with_kvm(|kvm| {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut config = vsock::Config::new(3);
        config.connect = vec![(2222, theirs.into())];
        let vsock = Vsock::new(config).unwrap();
        let vm = machine(kvm, 1, vec![("vsock", Box::new(vsock))]);
        let receive = Queue::new(0, QUEUE_SIZE);
        let transmit = Queue::new(1, QUEUE_SIZE);
        let asked = DATA + 0x1_0000;
        receive.request(vm.memory(), 0, 0, &[writable(asked, 4096)]);
        let script = Script::default()
            .and(initialise(0, 0, &[receive, transmit]))
            .and(notify(0, &receive, 1))
            .and(receive.watch(1));
        run(&vm, &script);
        let operation: u16 = vm.memory().read_obj(GuestAddress(asked + 30)).unwrap();
        let port: u32 = vm.memory().read_obj(GuestAddress(asked + 20)).unwrap();
        assert_eq!((operation, port), (REQUEST, 2222));
        drop(vm);
        // With the machine goes its end of the carrier.
        assert_eq!(ours.read(&mut [0; 1]).unwrap(), 0);
    });
}

#[test]
fn packets_that_lie_about_their_length_do_no_harm() {
    with_kvm(|kvm| {
        let vsock = Vsock::new(vsock::Config::new(3)).unwrap();
        let vm = machine(kvm, 1, vec![("vsock", Box::new(vsock))]);
        let (receive, transmit) = (Queue::new(0, QUEUE_SIZE), Queue::new(1, QUEUE_SIZE));
        for (number, bytes) in (0..).zip([packet(DATA_PACKET, u32::MAX), packet(0xffff, 0)]) {
            let at = DATA + u64::from(number) * 0x1000;
            vm.memory().write_slice(&bytes, GuestAddress(at)).unwrap();
            transmit.request(vm.memory(), number, number, &[readable(at, HEADER)]);
        }
        // Shorter than a header, and none at all.
        transmit.request(vm.memory(), 2, 2, &[readable(DATA, 10)]);
        transmit.request(vm.memory(), 3, 3, &[writable(DATA, HEADER)]);
        run(
            &vm,
            &Script::default()
                .and(initialise(0, 0, &[receive, transmit]))
                .and(notify(0, &transmit, 1))
                .and(transmit.watch(4)),
        );
        assert_eq!(transmit.count_used(vm.memory()), 4);
        assert_eq!(vm.metrics().failures, Vec::<String>::new());
    });
}
