//! What a guest asks of its source of random bytes: what was taken from the queue was answered, and
//! only room that was offered is filled.
#![no_main]

use fuzz::choices::Choices;
use fuzz::guest::{Guest, REGIONS, Request, write_registers};
use libfuzzer_sys::fuzz_target;
use virtio_queue::QueueT as _;
use vm_memory::GuestAddress;
use vmm::GuestMemory;
use vmm::virtio::rng::{DEFAULT_RATE, Rng};

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices::new(data);
    let rng = Rng::new(DEFAULT_RATE).expect("a timer");
    if choices.of(8) == 7 {
        return write_registers(rng, &memory(), &mut choices);
    }
    let metrics = rng.metrics();
    let mut guest = Guest::new(rng, memory());
    guest.play(&mut choices, request, |guest| {
        for queue in guest.active.iter().flat_map(|active| &active.queues) {
            assert_eq!(queue.next_used(), queue.next_avail());
        }
    });
    let counts = metrics.snapshot();
    assert!(counts.bytes <= counts.requests * (64 << 10));
});

fn memory() -> GuestMemory {
    let size = |(from, to)| usize::try_from(to - from).expect("64 bits");
    GuestMemory::from_ranges(&REGIONS.map(|region| (GuestAddress(region.0), size(region))))
        .expect("there is memory")
}

fn request(choices: &mut Choices<'_>) -> Request {
    let reads = if choices.of(16) == 15 { vec![1; choices.of(4)] } else { Vec::new() };
    let length = |choices: &mut Choices<'_>| u32::try_from(choices.length()).expect("18 bits");
    let writes = (0..choices.of(8)).map(|_| length(choices)).collect();
    Request { reads, writes }
}
