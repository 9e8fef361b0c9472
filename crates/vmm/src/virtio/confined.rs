//! Each device does all that it can do with the system calls that it says it needs.
//!
//! Any other one ends the process with SIGSYS; strace says which it was.

use std::fs::File;
use std::num::NonZeroU64;

use libc::c_long;
use rustix::fs::{MemfdFlags, memfd_create};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::balloon::Balloon;
use super::block::{self, Block};
use super::device::Device;
use super::driver::{Buffer, DATA, Driver, readable, writable};
use super::rng::Rng;
use super::transport::Transport;
use super::worker::{SYSTEM_CALLS, Worker};
use crate::event::Event;
use crate::rate_limiter::{Rate, RateLimit};

/// Only these, from here on, on the thread that this runs on.
pub(super) fn confine(device: &[c_long]) -> impl FnOnce() + Send + 'static {
    let calls = SYSTEM_CALLS.iter().chain(device);
    let rules = calls.map(|call| (*call, Vec::new())).collect();
    let (other, listed) = (SeccompAction::KillProcess, SeccompAction::Allow);
    let filter =
        SeccompFilter::new(rules, other, listed, std::env::consts::ARCH.try_into().unwrap());
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    move || apply_filter(&program).unwrap()
}

/// A driver, and a confined device that it has started.
fn start(device: impl Device + 'static) -> (Driver, Transport, Worker) {
    let calls = device.system_calls();
    let driver = Driver::of(&device);
    let (memory, irq) = (driver.active.memory.clone(), Event::new().unwrap());
    let (mut transport, worker) =
        Transport::new("confined", Box::new(device), memory, irq, confine(calls)).unwrap();
    driver.start(&mut transport);
    (driver, transport, worker)
}

/// One operation at once, and the next in a moment.
fn some_throttling() -> RateLimit {
    let per_second = NonZeroU64::new(500).unwrap();
    RateLimit { bytes: None, operations: Some(Rate { per_second, burst: 1, first_burst: 0 }) }
}

/// Commands that every worker obeys.
fn order_about(transport: &mut Transport, worker: &Worker) {
    worker.pause();
    worker.resume();
    transport.write(0x70, &[0; 4]);
}

#[test]
fn a_disk() {
    let file = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(1 << 20).unwrap();
    let rate = Some(some_throttling());
    let config = block::Config { files: vec![file], read_only: false, id: "disk".to_owned(), rate };
    let disk = Block::new(config).unwrap();
    let (mut driver, mut transport, worker) = start(disk);
    let range = [&[0; 8], &[8, 0, 0, 0, 0, 0, 0, 0][..]].concat();
    driver.write(DATA + 0x1000, &range);
    let requests: [(u32, &[Buffer]); 6] = [
        (VIRTIO_BLK_T_IN, &[writable(DATA + 0x2000, 512)]),
        (VIRTIO_BLK_T_OUT, &[readable(DATA + 0x2000, 512)]),
        (VIRTIO_BLK_T_FLUSH, &[]),
        (VIRTIO_BLK_T_DISCARD, &[readable(DATA + 0x1000, 16)]),
        // A memfd has to be filled with them.
        (VIRTIO_BLK_T_WRITE_ZEROES, &[readable(DATA + 0x1000, 16)]),
        (VIRTIO_BLK_T_GET_ID, &[writable(DATA + 0x2000, 20)]),
    ];
    for (number, (kind, data)) in (0..).zip(requests) {
        let (header, status) = (DATA + 16 * number, DATA + 0x100 + number);
        driver.write(header, &[&kind.to_le_bytes()[..], &[0; 12]].concat());
        let buffers = [&[readable(header, 16)], data, &[writable(status, 1)]].concat();
        driver.offer(0, &buffers);
    }
    driver.await_used(&transport, 0, 6);
    assert_eq!(driver.read(DATA + 0x100, 6), [0; 6]);
    order_about(&mut transport, &worker);
}

#[test]
fn a_source_of_randomness() {
    let rng = Rng::new(some_throttling()).unwrap();
    let (mut driver, mut transport, worker) = start(rng);
    driver.offer(0, &[writable(DATA, 0x4000)]);
    driver.offer(0, &[writable(DATA, 0x4000)]);
    driver.await_used(&transport, 0, 2);
    order_about(&mut transport, &worker);
}

#[test]
fn a_balloon() {
    let balloon = Balloon::new().unwrap();
    let target = balloon.target();
    let (mut driver, mut transport, worker) = start(balloon);
    driver.offer(0, &[readable(DATA, 0x1000)]);
    driver.await_used(&transport, 0, 1);
    driver.offer(1, &[readable(DATA, 0x1000)]);
    driver.await_used(&transport, 1, 1);
    driver.offer(4, &[writable(DATA, 0x1000)]);
    driver.await_used(&transport, 4, 1);
    driver.offer(2, &[readable(DATA, 10)]);
    driver.await_used(&transport, 2, 0);
    target.set_mib(1);
    target.ask_for_statistics();
    order_about(&mut transport, &worker);
}
