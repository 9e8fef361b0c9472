//! The disk as a driver finds it.

use std::fs::File;
use std::io::Write as _;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_queue::QueueT as _;
use vm_memory::GuestAddress;

use super::*;
use crate::GuestMemory;
use crate::rate_limiter::{Rate, RateLimit};
use crate::virtio::driver::{Buffer, DATA, Driver, readable, writable};
use crate::virtio::{Device as _, DeviceError};

const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x100;
const ROOM: u64 = DATA + 0x1000;
/// What no device answers.
const NO_STATUS: u8 = 0xaa;
const OK: u8 = 0;
const FAILED: u8 = 1;
const UNSUPPORTED: u8 = 2;

const SECTORS: u64 = 16;

/// A driver and its disk, of 16 sectors of ones.
struct Machine {
    disk: Block,
    driver: Driver,
    file: File,
}

impl Machine {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn read_only() -> Self {
        Self::with(|config| config.read_only = true)
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        let file = ones();
        let id = "scratch".to_owned();
        let disk = file.try_clone().unwrap();
        let mut config = Config { files: vec![disk], read_only: false, id, rate: None };
        change(&mut config);
        let mut disk = Block::new(config).unwrap();
        let mut driver = Driver::of(&disk);
        disk.activated(&mut driver.active).unwrap();
        Self { disk, driver, file }
    }

    /// The status of a request, and how many bytes are said to be written.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        self.header(kind, sector);
        let data = data.iter().copied();
        let buffers: Vec<_> = std::iter::once(readable(HEADER, 16))
            .chain(data)
            .chain([writable(STATUS, 1)])
            .collect();
        self.chain(&buffers)
    }

    fn header(&self, kind: u32, sector: u64) {
        let header = [u64::from(kind).to_le_bytes(), sector.to_le_bytes()].concat();
        self.driver.write(HEADER, &header);
    }

    /// The same for a request that is already written.
    fn chain(&mut self, buffers: &[Buffer]) -> (u8, u32) {
        self.driver.write(STATUS, &[NO_STATUS]);
        let entry = self.driver.offer(0, buffers);
        self.driver.kick(&mut self.disk, 0);
        let [(used, written)] = self.driver.used(0)[..] else { panic!("it was not answered") };
        assert_eq!(used, u32::from(entry));
        (self.driver.read(STATUS, 1)[0], written)
    }

    /// A request about ranges: sector, sectors, flags.
    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let bytes: Vec<u8> = ranges
            .iter()
            .flat_map(|(sector, sectors, flags)| {
                let (sector, sectors) = (sector.to_le_bytes(), sectors.to_le_bytes());
                [&sector[..], &sectors, &flags.to_le_bytes()].concat()
            })
            .collect();
        self.driver.write(ROOM, &bytes);
        let length = u32::try_from(bytes.len()).unwrap();
        self.request(kind, 0, &[readable(ROOM, length)]).0
    }

    fn content(&self) -> Vec<u8> {
        let mut content = vec![0; 512 * 16];
        self.file.read_exact_at(&mut content, 0).unwrap();
        content
    }

    /// Its content and its size are what they were.
    fn assert_untouched(&self) {
        assert_eq!(self.file.metadata().unwrap().size(), SECTORS * 512);
        assert!(self.content().iter().all(|&byte| byte == 1));
    }

    fn metrics(&self) -> Snapshot {
        self.disk.metrics().snapshot()
    }

    fn register(&self, offset: u64, length: usize) -> u64 {
        let mut bytes = [0; 8];
        self.disk.config().read(offset, &mut bytes[..length]);
        u64::from_le_bytes(bytes)
    }
}

fn ones() -> File {
    let mut file = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(&[1; 512 * 16]).unwrap();
    file
}

mod what_it_is {
    use super::*;

    #[test]
    fn it_is_a_disk_of_its_files_size() {
        let machine = Machine::new();
        assert_eq!(machine.disk.identity().id, 2);
        assert_eq!(machine.register(0, 8), SECTORS);
    }

    #[test]
    fn its_registers_are_where_the_specification_has_them() {
        let machine = Machine::new();
        let words = [(8, 0), (12, 254), (16, 0), (20, 512), (24, 0), (28, 0), (32, 0)];
        let more = [(36, 1 << 21), (40, 32), (44, 8), (48, 1 << 17), (52, 1), (56, 1), (60, 0)];
        for (offset, value) in words.into_iter().chain(more) {
            assert_eq!(machine.register(offset, 4), value, "{offset}");
        }
    }

    #[test]
    fn a_disk_that_can_be_changed_can_be_flushed_discarded_and_zeroed() {
        let features = Machine::new().disk.identity().features;
        assert_eq!(features, 1 << 2 | 1 << 6 | 1 << 9 | 1 << 13 | 1 << 14);
    }

    #[test]
    fn a_read_only_disk_says_so() {
        let features = Machine::read_only().disk.identity().features;
        assert_eq!(features, 1 << 2 | 1 << 5 | 1 << 6);
    }

    #[test]
    fn it_has_an_id() {
        let mut machine = Machine::new();
        let answer = machine.request(VIRTIO_BLK_T_GET_ID, 0, &[writable(ROOM, 20)]);
        assert_eq!(answer, (OK, 21));
        assert_eq!(machine.driver.read(ROOM, 20), *b"scratch\0\0\0\0\0\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn an_id_may_be_as_long_as_there_is_room() {
        let id = "01234567890123456789";
        let mut machine = Machine::with(|config| config.id = id.to_owned());
        machine.request(VIRTIO_BLK_T_GET_ID, 0, &[writable(ROOM, 20)]);
        assert_eq!(machine.driver.read(ROOM, 20), id.as_bytes());
    }

    #[test]
    fn an_id_that_is_longer_is_refused() {
        let id = "012345678901234567890".to_owned();
        let made = Block::new(Config { files: vec![ones()], read_only: true, id, rate: None });
        assert!(matches!(made, Err(DiskError::Id(_))));
    }

    #[test]
    fn room_that_is_too_small_gets_no_id() {
        let mut machine = Machine::new();
        let answer = machine.request(VIRTIO_BLK_T_GET_ID, 0, &[writable(ROOM, 19)]);
        assert_eq!(answer, (FAILED, 0));
    }
}

mod data {
    use super::*;

    #[test]
    fn what_is_in_the_file_is_read() {
        let mut machine = Machine::new();
        machine.file.write_all_at(b"here", 3 * 512).unwrap();
        assert_eq!(machine.request(VIRTIO_BLK_T_IN, 3, &[writable(ROOM, 512)]), (OK, 513));
        assert_eq!(machine.driver.read(ROOM, 4), *b"here");
        assert_eq!((machine.metrics().reads, machine.metrics().bytes_read), (1, 512));
    }

    #[test]
    fn what_is_written_is_in_the_file() {
        let mut machine = Machine::new();
        machine.driver.write(ROOM, &[7; 512]);
        assert_eq!(machine.request(VIRTIO_BLK_T_OUT, 15, &[readable(ROOM, 512)]), (OK, 1));
        assert_eq!(machine.content()[15 * 512..], [7; 512]);
        assert_eq!(machine.content()[..15 * 512], [1; 15 * 512]);
        assert_eq!((machine.metrics().writes, machine.metrics().bytes_written), (1, 512));
    }

    #[test]
    fn data_may_be_in_pieces_of_any_length() {
        let mut machine = Machine::new();
        machine.file.write_all_at(b"abcde", 0).unwrap();
        let pieces = [writable(ROOM, 1), writable(ROOM + 0x100, 3), writable(ROOM + 0x200, 508)];
        assert_eq!(machine.request(VIRTIO_BLK_T_IN, 0, &pieces), (OK, 513));
        assert_eq!(machine.driver.read(ROOM, 1), *b"a");
        assert_eq!(machine.driver.read(ROOM + 0x100, 3), *b"bcd");
        assert_eq!(machine.driver.read(ROOM + 0x200, 1), *b"e");
    }

    #[test]
    fn data_may_be_in_as_many_pieces_as_the_queue_has_room_for() {
        let mut machine = Machine::new();
        machine.driver.write(ROOM, &[7; 1024]);
        let mut pieces = vec![readable(ROOM, 2); 253];
        pieces.push(readable(ROOM, 1024 - 2 * 253));
        assert_eq!(machine.request(VIRTIO_BLK_T_OUT, 0, &pieces), (OK, 1));
        assert_eq!(machine.content()[..1024], [7; 1024]);
    }

    #[test]
    fn the_header_may_be_cut_and_the_status_joined() {
        let mut machine = Machine::new();
        machine.header(VIRTIO_BLK_T_IN, 0);
        let buffers = [readable(HEADER, 5), readable(HEADER + 5, 11), writable(ROOM, 513)];
        let entry = machine.driver.offer(0, &buffers);
        machine.driver.kick(&mut machine.disk, 0);
        assert_eq!(machine.driver.used(0), [(u32::from(entry), 513)]);
        assert_eq!(machine.driver.read(ROOM, 513), [&[1; 512][..], &[OK]].concat());
    }

    #[test]
    fn the_header_may_be_joined_with_what_is_written() {
        let mut machine = Machine::new();
        machine.header(VIRTIO_BLK_T_OUT, 1);
        machine.driver.write(HEADER + 16, &[7; 512]);
        machine.driver.write(STATUS + 0x400, &[NO_STATUS]);
        let buffers = [readable(HEADER, 528), writable(STATUS + 0x400, 1)];
        machine.driver.offer(0, &buffers);
        machine.driver.kick(&mut machine.disk, 0);
        assert_eq!(machine.driver.read(STATUS + 0x400, 1), [OK]);
        assert_eq!(machine.content()[512..1024], [7; 512]);
    }

    #[test]
    fn a_request_may_be_in_a_table_of_its_own() {
        let mut machine = Machine::new();
        machine.header(VIRTIO_BLK_T_IN, 0);
        let buffers = [readable(HEADER, 16), writable(ROOM, 512), writable(STATUS, 1)];
        machine.driver.offer_indirect(0, DATA + 0x8000, &buffers);
        machine.driver.kick(&mut machine.disk, 0);
        assert_eq!(machine.driver.used(0), [(0, 513)]);
        assert_eq!(machine.driver.read(STATUS, 1), [OK]);
    }

    #[test]
    fn several_requests_are_one_interrupt() {
        let mut machine = Machine::new();
        machine.header(VIRTIO_BLK_T_IN, 0);
        for _ in 0..3 {
            let buffers = [readable(HEADER, 16), writable(ROOM, 512), writable(STATUS, 1)];
            machine.driver.offer(0, &buffers);
        }
        machine.driver.kick(&mut machine.disk, 0);
        assert_eq!(machine.driver.used(0).len(), 3);
        assert_eq!(machine.driver.interrupts(), 1);
    }

    #[test]
    fn a_flush_is_answered() {
        let mut machine = Machine::new();
        assert_eq!(machine.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
        assert_eq!(machine.metrics().flushes, 1);
    }

    #[test]
    fn a_driver_that_cannot_flush_is_heeded() {
        let mut machine = Machine::new();
        machine.driver.active.features &= !(1 << VIRTIO_BLK_F_FLUSH);
        machine.disk.activated(&mut machine.driver.active).unwrap();
        assert_eq!(machine.request(VIRTIO_BLK_T_OUT, 0, &[readable(ROOM, 512)]), (OK, 1));
    }

    #[test]
    fn a_file_that_became_shorter_is_a_failure() {
        let mut machine = Machine::new();
        machine.file.set_len(512 + 7).unwrap();
        let answer = machine.request(VIRTIO_BLK_T_IN, 1, &[writable(ROOM, 512)]);
        assert_eq!(answer, (FAILED, 0));
        assert_eq!(machine.metrics().failed, 1);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_a_failure() {
        let mut machine = Machine::new();
        let seals = rustix::fs::SealFlags::FUTURE_WRITE;
        let file = memfd_create("disk", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&file, 512).unwrap();
        rustix::fs::fcntl_add_seals(&file, seals).unwrap();
        let id = String::new();
        let config = Config { files: vec![file.into()], read_only: false, id, rate: None };
        machine.disk = Block::new(config).unwrap();
        assert_eq!(machine.request(VIRTIO_BLK_T_OUT, 0, &[readable(ROOM, 512)]), (FAILED, 1));
        assert_eq!(machine.metrics().failed, 1);
    }
}

mod zeroes {
    use super::*;

    #[test]
    fn what_is_discarded_is_given_back() {
        let mut machine = Machine::new();
        assert_eq!(machine.ranges(VIRTIO_BLK_T_DISCARD, &[(0, 8, 0), (8, 8, 0)]), OK);
        assert_eq!(machine.file.metadata().unwrap().blocks(), 0);
        assert_eq!(machine.file.metadata().unwrap().size(), SECTORS * 512);
        assert_eq!(machine.metrics().discards, 1);
    }

    #[test]
    fn zeroes_are_written() {
        for flags in [0, 1] {
            let mut machine = Machine::new();
            assert_eq!(machine.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(1, 2, flags)]), OK);
            let content = machine.content();
            assert_eq!(content[..512], [1; 512]);
            assert_eq!(content[512..3 * 512], [0; 2 * 512]);
            assert_eq!(content[3 * 512..], [1; 13 * 512]);
            assert_eq!(machine.metrics().zeroings, 1);
        }
    }

    #[test]
    fn zeroes_keep_their_room_unless_it_may_be_given_back() {
        let mut machine = Machine::new();
        assert_eq!(machine.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 16, 0)]), OK);
        assert_eq!(machine.file.metadata().unwrap().blocks(), 16);
        assert_eq!(machine.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 16, 1)]), OK);
        assert_eq!(machine.file.metadata().unwrap().blocks(), 0);
    }

    #[test]
    fn flags_that_mean_nothing_are_not_supported() {
        let mut machine = Machine::new();
        assert_eq!(machine.ranges(VIRTIO_BLK_T_DISCARD, &[(0, 8, 1)]), UNSUPPORTED);
        assert_eq!(machine.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 8, 2)]), UNSUPPORTED);
        machine.assert_untouched();
    }

    #[test]
    fn one_range_beyond_the_end_spoils_all() {
        let mut machine = Machine::new();
        let ranges = [(0, 8, 0), (9, 8, 0)];
        assert_eq!(machine.ranges(VIRTIO_BLK_T_DISCARD, &ranges), FAILED);
        machine.assert_untouched();
    }

    #[test]
    fn more_ranges_than_a_request_may_have_are_refused() {
        let mut machine = Machine::new();
        assert_eq!(machine.ranges(VIRTIO_BLK_T_DISCARD, &[(0, 1, 0); 33]), FAILED);
        assert_eq!(machine.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 1, 0); 2]), FAILED);
        assert_eq!(machine.ranges(VIRTIO_BLK_T_DISCARD, &[]), FAILED);
        machine.assert_untouched();
    }

    #[test]
    fn more_sectors_than_a_range_may_have_are_refused() {
        let mut machine = Machine::new();
        machine.file.set_len(4 << 30).unwrap();
        let file = machine.file.try_clone().unwrap();
        let config = Config { files: vec![file], read_only: false, id: String::new(), rate: None };
        machine.disk = Block::new(config).unwrap();
        assert_eq!(machine.ranges(VIRTIO_BLK_T_DISCARD, &[(0, (1 << 21) + 1, 0)]), FAILED);
        assert_eq!(machine.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, (1 << 17) + 1, 1)]), FAILED);
        assert!(machine.content().iter().all(|&byte| byte == 1));
    }

    #[test]
    fn a_range_of_nothing_is_refused() {
        let mut machine = Machine::new();
        assert_eq!(machine.ranges(VIRTIO_BLK_T_DISCARD, &[(0, 0, 0)]), FAILED);
        assert_eq!(machine.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 0, 0)]), FAILED);
    }

    #[test]
    fn half_a_range_is_refused() {
        let mut machine = Machine::new();
        for length in [15, 17, 31] {
            let answer = machine.request(VIRTIO_BLK_T_DISCARD, 0, &[readable(ROOM, length)]);
            assert_eq!(answer, (FAILED, 1), "{length}");
        }
    }
}

mod a_read_only_disk {
    use super::*;

    #[test]
    fn is_read() {
        let mut machine = Machine::read_only();
        assert_eq!(machine.request(VIRTIO_BLK_T_IN, 0, &[writable(ROOM, 512)]), (OK, 513));
    }

    #[test]
    fn is_not_written() {
        let mut machine = Machine::read_only();
        machine.driver.write(ROOM, &[7; 512]);
        assert_eq!(machine.request(VIRTIO_BLK_T_OUT, 0, &[readable(ROOM, 512)]), (FAILED, 1));
        assert_eq!(machine.ranges(VIRTIO_BLK_T_DISCARD, &[(0, 16, 0)]), FAILED);
        assert_eq!(machine.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 16, 0)]), FAILED);
        machine.assert_untouched();
        assert_eq!(machine.metrics().refused, 3);
    }

    #[test]
    fn has_nothing_to_flush() {
        let mut machine = Machine::read_only();
        assert_eq!(machine.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
    }
}

mod a_malformed_request {
    use super::*;

    #[test]
    fn of_an_unknown_kind_is_not_supported() {
        let mut machine = Machine::new();
        for kind in [2, 3, 14, 16, 1 << 31, u32::MAX] {
            assert_eq!(machine.request(kind, 0, &[]), (UNSUPPORTED, 1), "{kind}");
        }
        assert_eq!(machine.metrics().unsupported, 6);
    }

    #[test]
    fn beyond_the_end_fails() {
        let mut machine = Machine::new();
        for sector in [SECTORS, SECTORS - 1, 1 << 54, u64::MAX / 512, u64::MAX] {
            let room = writable(ROOM, 1024);
            let answer = machine.request(VIRTIO_BLK_T_IN, sector, &[room]);
            assert_eq!(answer, (FAILED, 0), "{sector}");
            let data = readable(ROOM, 1024);
            let answer = machine.request(VIRTIO_BLK_T_OUT, sector, &[data]);
            assert_eq!(answer, (FAILED, 1), "{sector}");
        }
        machine.assert_untouched();
        assert_eq!(machine.metrics().malformed, 10);
    }

    #[test]
    fn of_no_whole_sectors_fails() {
        let mut machine = Machine::new();
        for length in [1, 511, 513] {
            let answer = machine.request(VIRTIO_BLK_T_IN, 0, &[writable(ROOM, length)]);
            assert_eq!(answer, (FAILED, 0), "{length}");
            let answer = machine.request(VIRTIO_BLK_T_OUT, 0, &[readable(ROOM, length)]);
            assert_eq!(answer, (FAILED, 1), "{length}");
        }
        machine.assert_untouched();
    }

    #[test]
    fn of_nothing_fails() {
        let mut machine = Machine::new();
        assert_eq!(machine.request(VIRTIO_BLK_T_IN, 0, &[]), (FAILED, 1));
        assert_eq!(machine.request(VIRTIO_BLK_T_OUT, 0, &[]), (FAILED, 1));
        assert_eq!(machine.request(VIRTIO_BLK_T_IN, 0, &[writable(ROOM, 0)]), (FAILED, 1));
    }

    #[test]
    fn in_the_wrong_direction_fails() {
        let mut machine = Machine::new();
        assert_eq!(machine.request(VIRTIO_BLK_T_IN, 0, &[readable(ROOM, 512)]), (FAILED, 1));
        assert_eq!(machine.request(VIRTIO_BLK_T_OUT, 0, &[writable(ROOM, 512)]), (FAILED, 0));
        assert_eq!(machine.request(VIRTIO_BLK_T_DISCARD, 0, &[writable(ROOM, 16)]), (FAILED, 0));
        assert_eq!(machine.request(VIRTIO_BLK_T_GET_ID, 0, &[readable(ROOM, 20)]), (FAILED, 1));
        assert_eq!(machine.request(VIRTIO_BLK_T_FLUSH, 0, &[readable(ROOM, 1)]), (FAILED, 1));
        machine.assert_untouched();
    }

    #[test]
    fn with_both_directions_fails() {
        let mut machine = Machine::new();
        let both = [readable(ROOM, 512), writable(ROOM, 512)];
        assert_eq!(machine.request(VIRTIO_BLK_T_IN, 0, &both), (FAILED, 0));
        assert_eq!(machine.request(VIRTIO_BLK_T_OUT, 0, &both), (FAILED, 0));
    }

    #[test]
    fn with_something_to_read_behind_something_to_write_fails() {
        let mut machine = Machine::new();
        let disorder = [writable(ROOM, 512), readable(ROOM, 512)];
        assert_eq!(machine.request(VIRTIO_BLK_T_IN, 0, &disorder), (FAILED, 0));
    }

    #[test]
    fn outside_of_memory_fails() {
        let mut machine = Machine::new();
        for at in [0x10_0000, 0x10_0000 - 511, u64::MAX - 511, u64::MAX] {
            assert_eq!(machine.request(VIRTIO_BLK_T_IN, 0, &[writable(at, 512)]), (FAILED, 0));
            assert_eq!(machine.request(VIRTIO_BLK_T_OUT, 0, &[readable(at, 512)]), (FAILED, 1));
        }
        machine.assert_untouched();
    }

    #[test]
    fn with_half_a_header_fails() {
        let mut machine = Machine::new();
        machine.header(VIRTIO_BLK_T_FLUSH, 0);
        assert_eq!(machine.chain(&[readable(HEADER, 15), writable(STATUS, 1)]), (FAILED, 1));
        assert_eq!(machine.chain(&[writable(STATUS, 1)]), (FAILED, 1));
    }

    #[test]
    fn without_a_status_is_dropped() {
        let mut machine = Machine::new();
        machine.header(VIRTIO_BLK_T_OUT, 0);
        let (header, data) = (readable(HEADER, 16), readable(ROOM, 512));
        assert_eq!(machine.chain(&[header, data]), (NO_STATUS, 0));
        assert_eq!(machine.chain(&[header, data, writable(STATUS, 0)]), (NO_STATUS, 0));
        assert_eq!(machine.chain(&[header, data, writable(0x10_0000, 1)]), (NO_STATUS, 0));
        assert_eq!(machine.chain(&[header, data, writable(u64::MAX, 2)]), (NO_STATUS, 0));
        machine.assert_untouched();
        assert_eq!(machine.metrics().malformed, 4);
    }

    #[test]
    fn with_more_pieces_than_the_queue_is_dropped() {
        let mut machine = Machine::new();
        machine.header(VIRTIO_BLK_T_OUT, 0);
        let mut buffers = vec![readable(HEADER, 16)];
        buffers.extend([readable(ROOM, 2); 256]);
        buffers.push(writable(STATUS, 1));
        machine.driver.write(STATUS, &[NO_STATUS]);
        machine.driver.offer_indirect(0, DATA + 0x8000, &buffers);
        machine.driver.kick(&mut machine.disk, 0);
        assert_eq!(machine.driver.used(0), [(0, 0)]);
        assert_eq!(machine.driver.read(STATUS, 1), [NO_STATUS]);
        machine.assert_untouched();
    }

    #[test]
    fn with_more_pieces_in_memory_than_the_queue_fails() {
        let mut machine = Machine::new();
        let regions: Vec<_> = (0..2).map(|half| (GuestAddress(half << 19), 1 << 19)).collect();
        let memory = GuestMemory::from_ranges(&regions).unwrap();
        let features = machine.disk.identity().features;
        machine.driver = Driver::with(&machine.disk, memory, features);
        let data = vec![readable((1 << 19) - 1, 2); 254];
        assert_eq!(machine.request(VIRTIO_BLK_T_OUT, 0, &data), (FAILED, 1));
    }

    #[test]
    fn that_is_a_loop_ends() {
        let mut machine = Machine::new();
        machine.header(VIRTIO_BLK_T_OUT, 0);
        // All 256 descriptors, the last of which leads to the first.
        let buffers = [readable(HEADER, 16); 256];
        machine.driver.offer(0, &buffers);
        machine.driver.link(0, 255, 0);
        machine.driver.kick(&mut machine.disk, 0);
        assert_eq!(machine.driver.used(0), [(0, 0)]);
        machine.assert_untouched();
    }

    #[test]
    fn does_not_keep_the_next_from_being_served() {
        let mut machine = Machine::new();
        machine.chain(&[readable(HEADER, 1)]);
        assert_eq!(machine.request(VIRTIO_BLK_T_IN, 0, &[writable(ROOM, 512)]), (OK, 513));
    }

    #[test]
    fn in_a_broken_ring_is_an_error() {
        let mut machine = Machine::new();
        machine.driver.overstate(0, 257);
        let error = machine.driver.try_kick(&mut machine.disk, 0).unwrap_err();
        assert!(matches!(error, DeviceError::Queue { queue: 0, .. }));
    }
}

mod a_rate_limit {
    use super::*;

    /// One request at once, then one in a fifth of a second.
    fn machine() -> Machine {
        let per_second = NonZeroU64::new(5).unwrap();
        let operations = Some(Rate { per_second, burst: 1, first_burst: 0 });
        let rate = Some(RateLimit { bytes: None, operations });
        Machine::with(|config| config.rate = rate)
    }

    fn offer(machine: &mut Machine, many: usize) {
        machine.header(VIRTIO_BLK_T_IN, 0);
        for _ in 0..many {
            let buffers = [readable(HEADER, 16), writable(ROOM, 512), writable(STATUS, 1)];
            machine.driver.offer(0, &buffers);
        }
        machine.driver.kick(&mut machine.disk, 0);
    }

    /// Waits for the device's source, as its worker does.
    fn wait(machine: &mut Machine) {
        let source = machine.disk.source().expect("it waits for something");
        poll(&mut [PollFd::from_borrowed_fd(source, PollFlags::IN)], None).unwrap();
        machine.disk.source_ready(&mut machine.driver.active).unwrap();
    }

    #[test]
    fn makes_requests_wait() {
        let mut machine = machine();
        let begin = Instant::now();
        offer(&mut machine, 3);
        assert_eq!(machine.driver.used(0).len(), 1);
        wait(&mut machine);
        assert_eq!(machine.driver.used(0).len(), 1);
        wait(&mut machine);
        assert_eq!(machine.driver.used(0).len(), 1);
        assert!(begin.elapsed().as_millis() >= 400);
        assert_eq!(machine.metrics().throttled, 2);
        assert!(machine.disk.source().is_none());
    }

    #[test]
    fn is_not_lifted_by_another_notification() {
        let mut machine = machine();
        offer(&mut machine, 2);
        machine.driver.kick(&mut machine.disk, 0);
        assert_eq!(machine.driver.used(0).len(), 1);
        assert_eq!(machine.metrics().throttled, 1);
    }

    #[test]
    fn forgets_who_waited_before_a_reset() {
        let mut machine = machine();
        offer(&mut machine, 2);
        machine.disk.reset();
        assert!(machine.disk.source().is_none());
    }

    #[test]
    fn counts_bytes() {
        let per_second = NonZeroU64::new(1).unwrap();
        let bytes = Some(Rate { per_second, burst: 1024, first_burst: 0 });
        let rate = Some(RateLimit { bytes, operations: None });
        let mut machine = Machine::with(|config| config.rate = rate);
        offer(&mut machine, 3);
        assert_eq!(machine.driver.used(0).len(), 2);
    }
}

#[test]
fn a_queue_that_was_not_set_up_is_not_served() {
    let mut machine = Machine::new();
    machine.driver.active.queues[0].set_ready(false);
    machine.driver.offer(0, &[writable(STATUS, 1)]);
    machine.driver.kick(&mut machine.disk, 0);
    assert_eq!(machine.driver.used(0), []);
}
