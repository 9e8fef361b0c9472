//! Resource limits.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::record::Record;
use crate::{JailError, MonitorSize, step};

/// What a process can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Its address space in bytes.
    pub address_space: u64,
    /// Its open descriptors.
    pub descriptors: u64,
    /// How far into a file it can write, in bytes.
    pub file_size: u64,
    /// Its threads, where it has a user id of its own to count them by.
    pub threads: Option<u64>,
}

/// Address space of a monitor beyond its guest's memory, for each thread: its stack, and an arena
/// of the C library's allocator, which reserves 128 MiB to use 64 that are aligned.
const PER_THREAD: u64 = 160 << 20;
/// The same for what all threads share.
const SHARED: u64 = 512 << 20;

impl Bounds {
    pub(crate) fn of_monitor(size: MonitorSize) -> Self {
        let MonitorSize { guest_memory, largest_file, threads } = size;
        Self {
            address_space: guest_memory + SHARED + threads * PER_THREAD,
            // Each connection of the guest's is one.
            descriptors: 16 << 10,
            // The guest's memory is a file to the kernel.
            file_size: guest_memory.max(largest_file),
            threads: Some(threads),
        }
    }
}

/// Hard and soft alike, so that none can be raised again.
pub(crate) fn set(record: &mut Record, bounds: &Bounds) -> Result<(), JailError> {
    for (resource, bound) in [
        (Resource::As, bounds.address_space),
        (Resource::Nofile, bounds.descriptors),
        (Resource::Fsize, bounds.file_size),
        // To a file, one byte is as good as none. To a program that takes core dumps, 0 would
        // mean nothing, and 1 is what the kernel refuses (fs/coredump.c).
        (Resource::Core, 1),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
        (Resource::Nice, 0),
        (Resource::Rtprio, 0),
    ] {
        bound_to(resource, bound)?;
    }
    record.holds("bounded memory, descriptors and file sizes");
    record.done("limits");
    Ok(())
}

/// For a user id that no other process has: otherwise all processes of the user would count.
pub(crate) fn set_threads(bounds: &Bounds) -> Result<(), JailError> {
    match bounds.threads {
        // The keeper is one more.
        Some(threads) => bound_to(Resource::Nproc, threads + 1),
        None => Ok(()),
    }
}

fn bound_to(resource: Resource, bound: u64) -> Result<(), JailError> {
    // What was less before stays so: raising it would take a right that few have.
    let bound = getrlimit(resource).maximum.map_or(bound, |before| bound.min(before));
    let limit = Rlimit { current: Some(bound), maximum: Some(bound) };
    step("bound a resource", setrlimit(resource, limit))
}
