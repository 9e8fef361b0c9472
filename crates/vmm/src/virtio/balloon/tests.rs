//! The balloon as its driver and the host find it.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio as register;
use vm_memory::{FileOffset, GuestAddress};

use super::*;
use crate::GuestMemory;
use crate::event::Event;
use crate::virtio::driver::{Buffer, DATA, Driver, readable, writable};
use crate::virtio::{Device as _, DeviceError, Transport};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const REPORTS: [usize; 2] = [3, 4];

const PAGE: u64 = 4096;
const PAGES: u64 = 256;
/// From here on pages are nobody's but the balloon's.
const FIRST: u64 = 128;

/// A driver, its balloon, and the file that its memory is.
struct Machine {
    balloon: Balloon,
    driver: Driver,
    file: File,
}

impl Machine {
    fn new() -> Self {
        let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        file.write_all_at(&[1; 1 << 20], 0).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let ranges = [(GuestAddress(0), 1 << 20, Some(offset))];
        let memory = GuestMemory::from_ranges_with_files(ranges).unwrap();
        memory_of_the_rings_is_zero(&file);
        let balloon = Balloon::new().unwrap();
        let driver = Driver::with(&balloon, memory, balloon.identity().features);
        Self { balloon, driver, file }
    }

    fn request(&mut self, queue: usize, buffers: &[Buffer]) {
        self.driver.offer(queue, buffers);
        self.driver.kick(&mut self.balloon, queue);
        assert_eq!(self.driver.used(queue).len(), 1);
    }

    fn inflate(&mut self, numbers: &[u32]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.driver.write(DATA, &bytes);
        let length = u32::try_from(bytes.len()).unwrap();
        self.request(INFLATE, &[readable(DATA, length)]);
    }

    fn offer_statistics(&mut self, values: &[(u16, u64)]) {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat())
            .collect();
        self.driver.write(DATA, &bytes);
        let length = u32::try_from(bytes.len()).unwrap();
        self.driver.offer(STATISTICS, &[readable(DATA, length)]);
        self.driver.kick(&mut self.balloon, STATISTICS);
    }

    /// Pages that the host has back.
    fn holes(&self) -> Vec<u64> {
        let page_is_kept = |page| {
            let mut byte = [0];
            self.file.read_exact_at(&mut byte, page * PAGE).unwrap();
            byte == [1]
        };
        (FIRST..PAGES).filter(|page| !page_is_kept(*page)).collect()
    }

    fn metrics(&self) -> Snapshot {
        self.balloon.metrics().snapshot()
    }
}

fn memory_of_the_rings_is_zero(file: &File) {
    let length = usize::try_from(FIRST * PAGE).unwrap();
    file.write_all_at(&vec![0; length], 0).unwrap();
}

fn page(number: u64) -> u64 {
    number * PAGE
}

#[test]
fn it_is_a_balloon() {
    let identity = Machine::new().balloon.identity();
    assert_eq!(identity.id, 5);
    assert_eq!(identity.features, 1 << 1 | 1 << 2 | 1 << 5);
    assert_eq!(identity.queue_sizes.len(), 5);
}

mod inflating {
    use super::*;

    #[test]
    fn gives_memory_back_to_the_host() {
        let mut machine = Machine::new();
        let before = machine.file.metadata().unwrap().blocks();
        machine.inflate(&[200, 201, 203]);
        assert_eq!(before - machine.file.metadata().unwrap().blocks(), 3 * PAGE / 512);
        assert_eq!(machine.holes(), [200, 201, 203]);
        let metrics = machine.metrics();
        assert_eq!((metrics.inflated_pages, metrics.returned_pages), (3, 3));
    }

    #[test]
    fn takes_pages_in_any_order() {
        let mut machine = Machine::new();
        machine.inflate(&[203, 201, 202, 200]);
        assert_eq!(machine.holes(), [200, 201, 202, 203]);
    }

    #[test]
    fn ignores_what_is_no_memory() {
        let mut machine = Machine::new();
        machine.inflate(&[255, 256, 0xf_ffff, u32::MAX]);
        assert_eq!(machine.holes(), [255]);
        let metrics = machine.metrics();
        assert_eq!((metrics.inflated_pages, metrics.ignored_pages), (4, 3));
    }

    #[test]
    fn ignores_what_comes_twice() {
        let mut machine = Machine::new();
        machine.inflate(&[200, 201, 200, 200]);
        assert_eq!(machine.holes(), [200, 201]);
        let metrics = machine.metrics();
        assert_eq!((metrics.returned_pages, metrics.ignored_pages), (2, 2));
    }

    #[test]
    fn ignores_more_than_it_takes_at_once() {
        let mut machine = Machine::new();
        let mut numbers = vec![200; 4096];
        numbers.push(201);
        machine.inflate(&numbers);
        assert_eq!(machine.holes(), [200]);
        assert_eq!(machine.metrics().ignored_pages, 4096);
    }

    #[test]
    fn takes_numbers_in_pieces() {
        let mut machine = Machine::new();
        machine.driver.write(DATA, &200_u32.to_le_bytes());
        machine.request(INFLATE, &[readable(DATA, 3), readable(DATA + 3, 1)]);
        assert_eq!(machine.holes(), [200]);
    }

    #[test]
    fn ignores_half_a_number() {
        let mut machine = Machine::new();
        machine.driver.write(DATA, &200_u32.to_le_bytes());
        machine.request(INFLATE, &[readable(DATA, 3)]);
        assert!(machine.holes().is_empty());
        assert_eq!(machine.metrics().inflated_pages, 0);
    }

    #[test]
    fn with_something_to_write_is_malformed() {
        let mut machine = Machine::new();
        machine.driver.write(DATA, &200_u32.to_le_bytes());
        machine.request(INFLATE, &[readable(DATA, 4), writable(DATA, 4)]);
        assert!(machine.holes().is_empty());
        assert_eq!(machine.metrics().malformed, 1);
    }

    #[test]
    fn from_outside_of_memory_is_malformed() {
        let mut machine = Machine::new();
        machine.request(INFLATE, &[readable(page(PAGES), 4)]);
        machine.request(INFLATE, &[readable(page(PAGES) - 2, 4)]);
        assert_eq!(machine.metrics().malformed, 2);
    }

    #[test]
    fn may_take_the_rings_themselves() {
        let mut machine = Machine::new();
        let all: Vec<u32> = (0..256).collect();
        machine.driver.write(DATA, &all.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>());
        machine.driver.offer(INFLATE, &[readable(DATA, 1024)]);
        // Its own index is 0 again, which is one entry behind.
        let error = machine.driver.try_kick(&mut machine.balloon, INFLATE).unwrap_err();
        assert!(matches!(error, DeviceError::Queue { queue: INFLATE, .. }));
        assert_eq!(machine.metrics().returned_pages, 256);
    }
}

#[test]
fn deflating_is_counted() {
    let mut machine = Machine::new();
    machine.request(DEFLATE, &[readable(DATA, 12)]);
    assert_eq!(machine.metrics().deflated_pages, 3);
    assert!(machine.holes().is_empty());
}

#[test]
fn a_page_that_was_given_back_can_be_used_again() {
    let mut machine = Machine::new();
    machine.inflate(&[200]);
    machine.driver.write(page(200), &[1]);
    assert!(machine.holes().is_empty());
}

mod a_report {
    use super::*;

    #[test]
    fn gives_memory_back_to_the_host() {
        for queue in REPORTS {
            let mut machine = Machine::new();
            let before = machine.file.metadata().unwrap().blocks();
            machine.request(queue, &[writable(page(200), 8192), writable(page(210), 4096)]);
            assert_eq!(before - machine.file.metadata().unwrap().blocks(), 3 * PAGE / 512);
            assert_eq!(machine.holes(), [200, 201, 210]);
            let metrics = machine.metrics();
            assert_eq!((metrics.reported_pages, metrics.returned_pages), (3, 3));
        }
    }

    #[test]
    fn of_no_whole_pages_is_ignored() {
        let mut machine = Machine::new();
        let ranges = [
            writable(page(200) + 1, 4096),
            writable(page(200), 4095),
            writable(page(200) + 512, 4096 - 512),
            writable(page(210), 4096),
        ];
        machine.request(REPORTS[0], &ranges);
        assert_eq!(machine.holes(), [210]);
        assert_eq!(machine.metrics().malformed, 3);
    }

    #[test]
    fn that_cannot_be_written_is_ignored() {
        let mut machine = Machine::new();
        machine.request(REPORTS[0], &[readable(page(200), 4096)]);
        assert!(machine.holes().is_empty());
        assert_eq!(machine.metrics().malformed, 1);
    }

    #[test]
    fn beyond_the_end_of_memory_ends_there() {
        let mut machine = Machine::new();
        machine.request(REPORTS[0], &[writable(page(254), 4 * 4096)]);
        assert_eq!(machine.holes(), [254, 255]);
        assert_eq!(machine.metrics().ignored_pages, 2);
    }

    #[test]
    fn beyond_the_end_of_all_addresses_is_ignored() {
        let mut machine = Machine::new();
        machine.request(REPORTS[0], &[writable(u64::MAX - 4095, 8192)]);
        assert_eq!(machine.metrics().malformed, 1);
    }

    #[test]
    fn that_overlaps_another_counts_once() {
        let mut machine = Machine::new();
        machine.request(REPORTS[0], &[writable(page(200), 8192), writable(page(201), 8192)]);
        assert_eq!(machine.holes(), [200, 201, 202]);
        let metrics = machine.metrics();
        assert_eq!((metrics.returned_pages, metrics.ignored_pages), (3, 1));
    }

    #[test]
    fn of_nothing_does_nothing() {
        let mut machine = Machine::new();
        machine.request(REPORTS[0], &[writable(page(200), 0)]);
        assert_eq!(machine.metrics(), Snapshot::default());
    }
}

mod the_host {
    use super::*;

    #[test]
    fn says_how_large_the_balloon_is_to_be() {
        let mut machine = Machine::new();
        machine.balloon.target().set_mib(3);
        machine.balloon.source_ready(&mut machine.driver.active).unwrap();
        let mut register = [0; 4];
        machine.balloon.config().read(0, &mut register);
        assert_eq!(u32::from_le_bytes(register), 3 * 256);
        assert_eq!(machine.driver.interrupts(), 1);
    }

    #[test]
    fn may_want_more_than_can_be_said() {
        let machine = Machine::new();
        machine.balloon.target().set_mib(u32::MAX);
        let mut register = [0; 4];
        machine.balloon.config().read(0, &mut register);
        assert_eq!(u32::from_le_bytes(register), u32::MAX);
    }

    #[test]
    fn learns_how_large_it_is() {
        let machine = Machine::new();
        machine.balloon.config().write(4, &512_u32.to_le_bytes());
        assert_eq!(machine.balloon.target().actual_mib(), 2);
    }

    #[test]
    fn is_not_told_what_it_wants_by_the_driver() {
        let machine = Machine::new();
        for (offset, bytes) in [(0, &[9_u8; 4][..]), (4, &[9; 8]), (2, &[9; 4]), (8, &[9; 4])] {
            machine.balloon.config().write(offset, bytes);
        }
        let mut registers = [0xff; 12];
        machine.balloon.config().read(0, &mut registers);
        assert_eq!(registers, [0; 12]);
    }

    #[test]
    fn knows_that_a_new_driver_has_given_nothing() {
        let mut machine = Machine::new();
        machine.balloon.config().write(4, &512_u32.to_le_bytes());
        machine.balloon.reset();
        assert_eq!(machine.balloon.target().actual_mib(), 0);
    }

    #[test]
    fn gets_statistics() {
        let mut machine = Machine::new();
        machine.offer_statistics(&[(4, 1000), (5, 2000), (77, 3)]);
        let expected = Statistics { free: Some(1000), total: Some(2000), ..Statistics::default() };
        assert_eq!(machine.metrics().statistics, expected);
        assert!(machine.driver.used(STATISTICS).is_empty());
    }

    #[test]
    fn asks_for_newer_statistics() {
        let mut machine = Machine::new();
        machine.offer_statistics(&[(4, 1000)]);
        machine.balloon.target().ask_for_statistics();
        machine.balloon.source_ready(&mut machine.driver.active).unwrap();
        assert_eq!(machine.driver.used(STATISTICS), [(0, 0)]);
        assert_eq!(machine.driver.interrupts(), 1);
        machine.offer_statistics(&[(5, 7)]);
        let expected = Statistics { total: Some(7), ..Statistics::default() };
        assert_eq!(machine.metrics().statistics, expected);
    }

    #[test]
    fn asks_a_driver_that_has_sent_none_in_vain() {
        let mut machine = Machine::new();
        machine.balloon.target().ask_for_statistics();
        machine.balloon.source_ready(&mut machine.driver.active).unwrap();
        assert_eq!(machine.driver.interrupts(), 0);
    }

    #[test]
    fn asks_nothing_of_a_driver_that_is_gone() {
        let mut machine = Machine::new();
        machine.offer_statistics(&[(4, 1000)]);
        machine.balloon.reset();
        machine.balloon.target().ask_for_statistics();
        machine.balloon.source_ready(&mut machine.driver.active).unwrap();
        assert!(machine.driver.used(STATISTICS).is_empty());
    }

    #[test]
    fn believes_no_more_values_than_there_are_tags() {
        let mut machine = Machine::new();
        let mut values = vec![(99, 0); 64];
        values.push((4, 1000));
        machine.offer_statistics(&values);
        assert_eq!(machine.metrics().statistics, Statistics::default());
    }

    /// All the way: from another thread, through the worker, to the registers and the interrupt.
    #[test]
    fn reaches_a_driver_that_works() {
        let machine = Machine::new();
        let target = machine.balloon.target();
        let irq = Event::new().unwrap();
        let (memory, balloon) = (machine.driver.active.memory.clone(), Box::new(machine.balloon));
        let (mut transport, _worker) =
            Transport::new("balloon", balloon, memory, irq, || {}).unwrap();
        let mut write = |at: u32, value: u32| transport.write(u64::from(at), &value.to_le_bytes());
        write(register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        write(register::VIRTIO_MMIO_DRIVER_FEATURES, 1 << (VIRTIO_F_VERSION_1 - 32));
        write(register::VIRTIO_MMIO_STATUS, 11);
        write(register::VIRTIO_MMIO_STATUS, 15);
        target.set_mib(1);
        let begin = Instant::now();
        while !transport.irq().lower() {
            assert!(begin.elapsed() < Duration::from_secs(10), "no interrupt comes");
            std::thread::yield_now();
        }
        let mut reasons = [0; 4];
        transport.read(u64::from(register::VIRTIO_MMIO_INTERRUPT_STATUS), &mut reasons);
        assert_eq!(u32::from_le_bytes(reasons), register::VIRTIO_MMIO_INT_CONFIG);
    }
}
