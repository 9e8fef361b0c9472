//! What a guest asks of a disk: nothing but whole sectors of the file is written, a read-only disk
//! never, and what was taken from the queue was answered.
#![no_main]

use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt as _;

use fuzz::choices::Choices;
use fuzz::guest::{Guest, REGIONS, Request, write_registers};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_queue::QueueT as _;
use vm_memory::GuestAddress;
use vmm::GuestMemory;
use vmm::rate_limiter::{Rate, RateLimit};
use vmm::virtio::block::{Block, Config};

const SECTORS: usize = 16;
/// Behind the last whole sector.
const REST: usize = 100;

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices::new(data);
    let file = ones();
    let read_only = choices.of(2) == 1;
    let rate = (choices.of(4) == 3).then_some(slow());
    let disk = file.try_clone().expect("a descriptor");
    let config = Config { files: vec![disk], read_only, id: "fuzz".to_owned(), rate };
    let disk = Block::new(config).expect("the file can be read and written");
    if choices.of(8) == 7 {
        write_registers(disk, &memory(), &mut choices);
    } else {
        let mut guest = Guest::new(disk, memory());
        guest.play(&mut choices, request, check_that_all_is_answered);
    }
    check(&file, read_only);
});

fn check_that_all_is_answered(guest: &Guest<Block>) {
    for queue in guest.active.iter().flat_map(|active| &active.queues) {
        assert_eq!(queue.next_used(), queue.next_avail());
    }
}

fn check(file: &File, read_only: bool) {
    let mut content = vec![0; SECTORS * 512 + REST + 1];
    let length = file.read_at(&mut content, 0).expect("a file in memory can be read");
    assert_eq!(length, SECTORS * 512 + REST, "the file's size changed");
    let kept = if read_only { 0 } else { SECTORS * 512 };
    assert!(content[kept..length].iter().all(|&byte| byte == 1), "it was written beyond the disk");
}

fn ones() -> File {
    let file = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).expect("a file in memory"));
    file.write_all_at(&[1; SECTORS * 512 + REST], 0).expect("there is memory");
    file
}

fn memory() -> GuestMemory {
    let size = |(from, to)| usize::try_from(to - from).expect("64 bits");
    GuestMemory::from_ranges(&REGIONS.map(|region| (GuestAddress(region.0), size(region))))
        .expect("there is memory")
}

/// Few at once; the rest would wait for longer than a run.
fn slow() -> RateLimit {
    let per_second = NonZeroU64::new(1).expect("it is 1");
    let rate = |burst| Some(Rate { per_second, burst, first_burst: 0 });
    RateLimit { bytes: rate(4096), operations: rate(4) }
}

fn request(choices: &mut Choices<'_>) -> Request {
    let kind = match choices.of(16) {
        15 => u32::from(choices.byte()),
        _ => *choices.pick(&[0, 1, 4, 8, 11, 13]),
    };
    let sector = sector(choices);
    let mut reads = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
    let mut writes = Vec::new();
    match kind {
        0 => writes.extend((0..choices.of(8)).map(|_| length(choices))),
        1 => reads.resize(16 + usize::try_from(length(choices)).expect("32 bits"), 7),
        8 => writes.push(20 + u32::from(choices.byte() & 1)),
        11 | 13 => {
            for _ in 0..choices.of(40) {
                reads.extend(range(choices));
            }
        }
        _ => {}
    }
    if choices.of(16) == 15 {
        reads.truncate(choices.of(64));
    }
    if choices.of(16) != 15 {
        writes.push(1);
    }
    Request { reads, writes }
}

fn sector(choices: &mut Choices<'_>) -> u64 {
    match choices.of(16) {
        14 => u64::MAX / 512 - u64::from(choices.byte() & 1),
        15 => 1 << (choices.byte() & 63),
        _ => u64::from(choices.byte() & 31),
    }
}

fn length(choices: &mut Choices<'_>) -> u32 {
    match choices.of(8) {
        6 => u32::from(choices.byte()),
        7 => u32::MAX - u32::from(choices.byte()),
        _ => 512 * u32::from(choices.byte() & 15),
    }
    .min(64 << 10)
}

fn range(choices: &mut Choices<'_>) -> Vec<u8> {
    let sector = sector(choices).to_le_bytes();
    let sectors = match choices.of(8) {
        7 => u32::MAX,
        _ => u32::from(choices.byte() & 31),
    };
    let flags = u32::from(choices.of(16) == 15) << (choices.byte() & 1);
    [&sector[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}
