//! Kernels, initramfs and command lines that nobody has looked at: they load, or are refused in
//! words, and the tables that are told to the guest stay where they belong.
#![no_main]

use std::cell::LazyCell;
use std::fs::File;
use std::io::Write as _;

use fuzz::choices::Choices;
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use vmm::GuestMemory;
use vmm::boot::{Boot, Protocol, load};
use vmm::memory::{Backing, create};

const MEMORY: u64 = 8 << 20;

thread_local! {
    static GUEST: LazyCell<GuestMemory> =
        LazyCell::new(|| create(MEMORY, Backing::Private).expect("there is memory"));
}

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices::new(data);
    let cpus = u8::try_from(1 + choices.of(32)).expect("32");
    let initramfs = choices.of(4) == 3;
    let command_line = "x".repeat(choices.of(256) * choices.of(16));
    let kernel = choices.rest();
    let mut boot =
        Boot { kernel: file(kernel), initramfs: initramfs.then(|| file(kernel)), command_line };
    GUEST.with(|memory| match load(memory, &mut boot, cpus) {
        Ok(entry) => {
            let (Protocol::Pvh { start_info: table } | Protocol::Linux64 { zero_page: table }) =
                entry.protocol;
            assert!((0x1000..0x9_fc00).contains(&table), "{entry:?}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    });
});

fn file(content: &[u8]) -> File {
    let mut file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a memfd"));
    file.write_all(content).expect("room");
    file
}
