//! What a guest gives back: nothing beside its memory goes, and where its memory is a copy of a file
//! nothing of the file.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use fuzz::choices::Choices;
use fuzz::guest::{Guest, REGIONS, Request, write_registers};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::VolatileMemory as _;
use vm_memory::{Bytes as _, FileOffset, GuestAddress, GuestRegionMmap, MmapRegion};
use vmm::GuestMemory;
use vmm::virtio::balloon::Balloon;

const PAGE: usize = 4096;
/// Pages of nobody in front of, between and behind the regions.
const BESIDE: usize = 2;
const REGION: usize = 16 * PAGE;
const WHOLE: usize = 2 * REGION + 3 * BESIDE * PAGE;
const STARTS: [usize; 2] = [BESIDE * PAGE, 2 * BESIDE * PAGE + REGION];

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices::new(data);
    let flags = *choices.pick(&[libc::MAP_SHARED, libc::MAP_PRIVATE]);
    let file = ones();
    let whole = map(&file, flags);
    let memory = memory(&whole, flags);
    let balloon = Balloon::new().expect("an event");
    let (target, metrics) = (balloon.target(), balloon.metrics());
    if choices.of(8) == 7 {
        write_registers(balloon, &memory, &mut choices);
    } else {
        target.set_mib(u32::from(choices.byte()));
        target.ask_for_statistics();
        let mut guest = Guest::new(balloon, memory);
        guest.play(&mut choices, request, |_| target.ask_for_statistics());
    }
    check(&file, &whole, flags);
    let counts = metrics.snapshot();
    assert!(counts.returned_pages <= counts.inflated_pages + counts.reported_pages);
    assert_eq!(counts.failed, 0);
});

fn ones() -> File {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("a file in memory"));
    file.write_all_at(&vec![1; WHOLE], 0).expect("there is memory");
    file
}

fn map(file: &File, flags: i32) -> MmapRegion {
    let file = FileOffset::new(file.try_clone().expect("a descriptor"), 0);
    MmapRegion::build(Some(file), WHOLE, libc::PROT_READ | libc::PROT_WRITE, flags)
        .expect("there is memory")
}

/// Parts of one mapping, so that what goes beside them is seen.
fn memory(whole: &MmapRegion, flags: i32) -> GuestMemory {
    let regions = [0, 1].map(|number| {
        let start = whole.as_ptr().wrapping_add(STARTS[number]);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: it is a part of `whole`, which lives until the guest is gone.
        let region = unsafe { MmapRegion::build_raw(start, REGION, protection, flags) };
        let at = GuestAddress(REGIONS[number].0);
        GuestRegionMmap::new(region.expect("it is mapped"), at).expect("it fits")
    });
    let memory = GuestMemory::from_regions(regions.into()).expect("they are apart");
    // Rings of a driver that starts.
    memory.write_slice(&[0; REGION], GuestAddress(0)).expect("it is memory");
    memory
}

fn check(file: &File, whole: &MmapRegion, flags: i32) {
    let mut content = vec![0; WHOLE];
    file.read_exact_at(&mut content, 0).expect("the file keeps its size");
    let mut mapped = vec![0; WHOLE];
    whole.get_slice(0, WHOLE).expect("all of it").copy_to(&mut mapped);
    let [first, second] = STARTS;
    for beside in [0..first, first + REGION..second, second + REGION..WHOLE] {
        let ones = vec![1; beside.len()];
        assert!(mapped[beside.clone()] == ones, "what is beside the guest's memory went");
        assert!(content[beside] == ones, "what is beside the guest's memory went from the file");
    }
    let is_copy = flags == libc::MAP_PRIVATE;
    assert!(!is_copy || content == vec![1; WHOLE], "the file that memory is a copy of changed");
}

fn request(choices: &mut Choices<'_>) -> Request {
    match choices.of(4) {
        // A report.
        0 => Request {
            reads: Vec::new(),
            writes: (0..choices.of(8)).map(|_| 4096 * u32::from(choices.byte() & 31)).collect(),
        },
        // Statistics.
        1 => {
            let value = |choices: &mut Choices<'_>| {
                [&[choices.byte() & 15, 0][..], &[choices.byte(); 8]].concat()
            };
            let many = choices.of(80);
            Request { reads: (0..many).flat_map(|_| value(choices)).collect(), writes: Vec::new() }
        }
        // Page numbers.
        _ => {
            let number = |choices: &mut Choices<'_>| match choices.of(8) {
                7 => u32::MAX - u32::from(choices.byte()),
                _ => u32::from(choices.byte() & 63),
            };
            let many = choices.of(100);
            let numbers = (0..many).flat_map(|_| number(choices).to_le_bytes());
            Request { reads: numbers.collect(), writes: Vec::new() }
        }
    }
}
