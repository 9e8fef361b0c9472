//! The device as a driver finds it.

use std::num::NonZeroU64;

use rustix::event::{PollFd, PollFlags, poll};
use virtio_queue::QueueT as _;

use super::*;
use crate::rate_limiter::{Rate, RateLimit};
use crate::virtio::driver::{Buffer, DATA, Driver, readable, writable};
use crate::virtio::{Device as _, DeviceError};

const MEMORY_END: u64 = 0x10_0000;

struct Machine {
    rng: Rng,
    driver: Driver,
}

impl Machine {
    fn new() -> Self {
        Self::limited(RateLimit::default())
    }

    fn limited(rate: RateLimit) -> Self {
        let rng = Rng::new(rate).unwrap();
        let driver = Driver::of(&rng);
        Self { rng, driver }
    }

    /// How many bytes a request got.
    fn request(&mut self, room: &[Buffer]) -> u32 {
        self.driver.offer(0, room);
        self.driver.kick(&mut self.rng, 0);
        let [(_, written)] = self.driver.used(0)[..] else { panic!("it was not answered") };
        written
    }

    fn metrics(&self) -> Snapshot {
        self.rng.metrics().snapshot()
    }
}

/// Bytes that are zero still. Of so many random ones, next to none are.
fn zeroes(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == 0).count()
}

#[test]
fn it_is_a_source_of_randomness() {
    let identity = Machine::new().rng.identity();
    assert_eq!((identity.id, identity.features), (4, 0));
}

#[test]
fn all_of_the_room_is_filled() {
    let mut machine = Machine::new();
    assert_eq!(machine.request(&[writable(DATA, 10_000)]), 10_000);
    let filled = machine.driver.read(DATA, 10_001);
    assert!(zeroes(&filled) < 200, "{}", zeroes(&filled));
    assert_eq!(filled[10_000], 0);
    assert_eq!((machine.metrics().requests, machine.metrics().bytes), (1, 10_000));
}

#[test]
fn no_two_requests_get_the_same() {
    let mut machine = Machine::new();
    machine.request(&[writable(DATA, 32)]);
    machine.request(&[writable(DATA + 32, 32)]);
    assert_ne!(machine.driver.read(DATA, 32), machine.driver.read(DATA + 32, 32));
}

#[test]
fn room_may_be_in_pieces() {
    let mut machine = Machine::new();
    let room = [writable(DATA, 100), writable(DATA + 200, 0), writable(DATA + 200, 100)];
    assert_eq!(machine.request(&room), 200);
    assert!(zeroes(&machine.driver.read(DATA, 100)) < 20);
    assert_eq!(zeroes(&machine.driver.read(DATA + 100, 100)), 100);
    assert!(zeroes(&machine.driver.read(DATA + 200, 100)) < 20);
}

#[test]
fn one_request_gets_no_more_than_64_kib() {
    let mut machine = Machine::new();
    let room = [writable(DATA, 0xffff), writable(DATA + 0xffff, 100)];
    assert_eq!(machine.request(&room), 0x1_0000);
    assert_eq!(zeroes(&machine.driver.read(DATA + 0x1_0000, 99)), 99);
}

#[test]
fn something_to_read_is_malformed() {
    let mut machine = Machine::new();
    assert_eq!(machine.request(&[writable(DATA, 16), readable(DATA, 16)]), 0);
    assert_eq!(zeroes(&machine.driver.read(DATA, 16)), 16);
    assert_eq!(machine.metrics().malformed, 1);
}

#[test]
fn room_outside_of_memory_gets_nothing() {
    let mut machine = Machine::new();
    assert_eq!(machine.request(&[writable(MEMORY_END, 16)]), 0);
    assert_eq!(machine.request(&[writable(u64::MAX, 16)]), 0);
    assert_eq!(machine.request(&[writable(DATA, 16), writable(MEMORY_END, 16)]), 16);
    assert_eq!(machine.request(&[writable(MEMORY_END - 16, 32)]), 16);
    assert_eq!(machine.metrics().malformed, 4);
}

#[test]
fn more_pieces_than_the_queue_are_malformed() {
    let mut machine = Machine::new();
    machine.driver.offer_indirect(0, DATA, &[writable(DATA + 0x8000, 1); 65]);
    machine.driver.kick(&mut machine.rng, 0);
    assert_eq!(machine.driver.used(0), [(0, 0)]);
    assert_eq!(machine.metrics().malformed, 1);
}

#[test]
fn a_request_for_nothing_gets_nothing() {
    let mut machine = Machine::new();
    assert_eq!(machine.request(&[writable(DATA, 0)]), 0);
}

#[test]
fn a_broken_ring_is_an_error() {
    let mut machine = Machine::new();
    machine.driver.overstate(0, 65);
    let error = machine.driver.try_kick(&mut machine.rng, 0).unwrap_err();
    assert!(matches!(error, DeviceError::Queue { queue: 0, .. }));
}

#[test]
fn a_queue_that_was_not_set_up_is_not_served() {
    let mut machine = Machine::new();
    machine.driver.active.queues[0].set_ready(false);
    machine.driver.offer(0, &[writable(DATA, 16)]);
    machine.driver.kick(&mut machine.rng, 0);
    assert_eq!(machine.driver.used(0), []);
}

#[test]
fn the_rate_limit_makes_requests_wait() {
    let per_second = NonZeroU64::new(100).unwrap();
    let bytes = Some(Rate { per_second, burst: 20, first_burst: 0 });
    let mut machine = Machine::limited(RateLimit { bytes, operations: None });
    machine.driver.offer(0, &[writable(DATA, 20)]);
    machine.driver.offer(0, &[writable(DATA, 20)]);
    machine.driver.kick(&mut machine.rng, 0);
    // Another notification does not help.
    machine.driver.kick(&mut machine.rng, 0);
    assert_eq!(machine.driver.used(0).len(), 1);
    let source = machine.rng.source().expect("it waits for something");
    poll(&mut [PollFd::from_borrowed_fd(source, PollFlags::IN)], None).unwrap();
    machine.rng.source_ready(&mut machine.driver.active).unwrap();
    assert_eq!(machine.driver.used(0).len(), 1);
    assert_eq!(machine.metrics().throttled, 1);
}

#[test]
fn nobody_waits_beyond_a_reset() {
    let per_second = NonZeroU64::new(1).unwrap();
    let bytes = Some(Rate { per_second, burst: 1, first_burst: 0 });
    let mut machine = Machine::limited(RateLimit { bytes, operations: None });
    machine.driver.offer(0, &[writable(DATA, 1)]);
    machine.driver.offer(0, &[writable(DATA, 1)]);
    machine.driver.kick(&mut machine.rng, 0);
    machine.rng.reset();
    assert!(machine.rng.source().is_none());
}

#[test]
fn by_default_a_guest_gets_enough_to_start() {
    let mut machine = Machine::limited(DEFAULT_RATE);
    for _ in 0..4 {
        assert_eq!(machine.request(&[writable(DATA, 1 << 16)]), 1 << 16);
    }
}
