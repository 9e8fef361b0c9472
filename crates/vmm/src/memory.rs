//! The guest's memory, around the hole that devices live in.

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use serde::{Deserialize, Serialize};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _, GuestRegionMmap,
    MmapRegion,
};

use crate::GuestMemory;

/// From here to [`HIGH_MEMORY`] there is no memory: local APICs, the I/O APIC and devices lie
/// here, as 32-bit code of the kernel expects.
pub const DEVICE_HOLE: u64 = 3 << 30;
/// Memory that does not fit below the hole goes on here.
pub const HIGH_MEMORY: u64 = 4 << 30;
/// Two pages are what the smallest guest needs to be told where it is.
const LEAST: u64 = 2 << 20;

/// The guest cannot have the memory that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// It is not a number of whole pages, or too small for boot parameters and a kernel.
    #[error("{0} bytes are not a size of memory: it is whole MiB, 2 at least")]
    Size(u64),
    /// The host does not give it.
    #[error("cannot {step} {bytes} bytes of guest memory: {source}; try a smaller machine")]
    Host {
        /// What was tried.
        step: &'static str,
        /// How much.
        bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What is behind a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backing {
    /// A memfd, which others can be given: sealed, it is the template of other machines.
    #[default]
    Shared,
    /// Memory of this process alone. Most hosts give large pages to this and not to the other,
    /// and a guest with large pages starts twice as fast: it faults in 2 MiB at a time, and the
    /// processor translates its addresses in one step less.
    Private,
}

impl Backing {
    /// The one that gets large pages on this host, and [`Backing::Shared`] where both do.
    pub fn of_host() -> Self {
        let setting = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
        let setting = std::fs::read_to_string(setting).unwrap_or_default();
        match setting.split(['[', ']']).nth(1) {
            None | Some("never" | "deny") => Self::Private,
            Some(_) => Self::Shared,
        }
    }
}

/// Makes memory of `bytes` for a guest. Pages are taken from the host when they are first used.
///
/// # Errors
/// `MemoryError`.
pub fn create(bytes: u64, backing: Backing) -> Result<GuestMemory, MemoryError> {
    let failed = |step, source: io::Error| MemoryError::Host { step, bytes, source };
    if bytes < LEAST || !bytes.is_multiple_of(1 << 20) {
        return Err(MemoryError::Size(bytes));
    }
    let file = match backing {
        Backing::Private => None,
        Backing::Shared => {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file =
                memfd_create("guest", flags).map_err(|error| failed("name", error.into()))?;
            ftruncate(&file, bytes).map_err(|error| failed("reserve", error.into()))?;
            // Nobody who gets hold of the descriptor can pull a page away under the guest.
            fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)
                .map_err(|error| failed("seal", error.into()))?;
            Some(Arc::new(File::from(file)))
        }
    };
    map(file.as_ref(), bytes).map_err(|error| failed("map", error))
}

fn map(file: Option<&Arc<File>>, bytes: u64) -> io::Result<GuestMemory> {
    let low = bytes.min(DEVICE_HOLE);
    let mut ranges = vec![(0, 0, low)];
    if bytes > low {
        ranges.push((HIGH_MEMORY, low, bytes - low));
    }
    let mut regions = Vec::with_capacity(ranges.len());
    for (at, offset, length) in ranges {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let file = file.map(|file| FileOffset::from_arc(file.clone(), offset));
        let region = map_aligned(file.as_ref(), length)?;
        let out_of_range = || io::Error::other("the addresses of the guest overflow");
        regions.push(GuestRegionMmap::new(region, GuestAddress(at)).ok_or_else(out_of_range)?);
    }
    let memory = GuestMemory::from_regions(regions).map_err(io::Error::other)?;
    for region in memory.iter() {
        let address = region.as_ptr().cast();
        let length = usize::try_from(region.len()).unwrap_or(usize::MAX);
        // A guest's memory is no part of a core dump. Large pages are a matter of speed: a kernel
        // that has none says so, and goes on with small ones.
        for advice in [libc::MADV_DONTDUMP, libc::MADV_HUGEPAGE] {
            // SAFETY: the range is a mapping that `memory` keeps, and neither advice changes what
            // is in it.
            let _ = unsafe { libc::madvise(address, length, advice) };
        }
    }
    Ok(memory)
}

/// Maps memory at a multiple of a large page, if it can be had: only so can the processor's second
/// translation, from the guest's addresses to ours, use large pages. Kernels before 6.7 do not see
/// to it.
fn map_aligned(file: Option<&FileOffset>, length: usize) -> io::Result<MmapRegion> {
    const LARGE: usize = 2 << 20;
    let map = || match file {
        Some(file) => MmapRegion::from_file(file.clone(), length),
        None => MmapRegion::new(length),
    };
    let region = map().map_err(io::Error::other)?;
    let excess = region.as_ptr().addr() % LARGE;
    if excess == 0 {
        return Ok(region);
    }
    // Mappings are placed below one another: with so much in between, the next begins where it
    // should.
    drop(region);
    let between = MmapRegion::<()>::new(excess).map_err(io::Error::other)?;
    let region = map().map_err(io::Error::other)?;
    drop(between);
    Ok(region)
}

/// One past the last byte below the hole.
pub(crate) fn low_end(memory: &GuestMemory) -> u64 {
    (memory.last_addr().0 + 1).min(DEVICE_HOLE)
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes as _;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn memory_lies_around_the_hole() {
        let memory = create(4096 * MIB, Backing::Private).unwrap();
        let regions: Vec<_> =
            memory.iter().map(|region| (region.start_addr().0, region.len())).collect();
        assert_eq!(regions, [(0, DEVICE_HOLE), (HIGH_MEMORY, 1024 * MIB)]);
        assert_eq!(low_end(&memory), DEVICE_HOLE);
        memory.write_obj(7_u8, GuestAddress(HIGH_MEMORY)).unwrap();
        assert!(memory.write_obj(7_u8, GuestAddress(DEVICE_HOLE)).is_err());
    }

    #[test]
    fn a_size_that_is_none_is_refused() {
        for bytes in [0, MIB, 2 * MIB + 1] {
            assert!(matches!(create(bytes, Backing::Shared), Err(MemoryError::Size(_))), "{bytes}");
        }
    }

    #[test]
    fn it_begins_at_a_large_page() {
        for backing in [Backing::Private, Backing::Shared] {
            let memory = create(64 * MIB, backing).unwrap();
            let address = memory.iter().next().unwrap().as_ptr().addr();
            assert_eq!(address % (2 << 20), 0, "{backing:?} at {address:#x}");
        }
    }

    #[test]
    fn the_file_behind_it_keeps_its_size() {
        let memory = create(2 * MIB, Backing::Shared).unwrap();
        let region = memory.iter().next().unwrap();
        let file = region.file_offset().unwrap().file();
        assert!(file.set_len(MIB).is_err() && file.set_len(4 * MIB).is_err());
    }
}
