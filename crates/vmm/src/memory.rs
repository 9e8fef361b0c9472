//! The guest's memory, around the hole that devices live in.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, ftruncate, memfd_create, seek};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use vm_memory::{
    Bytes as _, FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _,
    GuestRegionMmap, MemoryRegionAddress, MmapRegion,
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
    map(file.as_ref(), bytes, Sharing::Shared).map_err(|error| failed("map", error))
}

/// Memory of `bytes` that begins as `template` and goes its own way: pages that the guest writes are
/// its own, the others those of everybody who has the same template. The file is as long as the
/// memory, and nobody writes to it any more.
///
/// # Errors
/// `MemoryError`.
pub fn of_template(template: File, bytes: u64) -> Result<GuestMemory, MemoryError> {
    let failed = |step, source: io::Error| MemoryError::Host { step, bytes, source };
    if bytes < LEAST || !bytes.is_multiple_of(1 << 20) {
        return Err(MemoryError::Size(bytes));
    }
    let length = template.metadata().map_err(|error| failed("measure", error))?.len();
    if length != bytes {
        let wrong = format!("the file that it begins as has {length}");
        return Err(failed("map", io::Error::other(wrong)));
    }
    map(Some(&Arc::new(template)), bytes, Sharing::Copied).map_err(|error| failed("map", error))
}

/// Writes what is in memory to `file`, whose content it becomes, for [`of_template`]. Pages of zeros
/// become holes. Nobody writes to the memory meanwhile. Returns how many bytes were written.
///
/// # Errors
/// What the file's writes fail with.
pub fn save(memory: &GuestMemory, file: &File) -> io::Result<u64> {
    const PIECE: usize = 64 << 10;
    static ZEROS: [u8; PIECE] = [0; PIECE];
    let bytes = memory.iter().map(|region| region.len()).sum();
    file.set_len(0)?;
    file.set_len(bytes)?;
    let mut piece = vec![0; PIECE];
    let (mut region_at, mut written) = (0, 0);
    for region in memory.iter() {
        let backing = region.file_offset();
        let mut at = 0;
        while at < region.len() {
            // Reading a hole of a file through its mapping would fill it.
            if let Some(backing) = backing {
                at = match next_data(backing, at)? {
                    Some(next) if next < region.len() => next - next % PIECE as u64,
                    _ => break,
                };
            }
            let length = PIECE.min(usize::try_from(region.len() - at).unwrap_or(PIECE));
            let piece = &mut piece[..length];
            region
                .read_slice(piece, MemoryRegionAddress(at))
                .map_err(|error| io::Error::other(error.to_string()))?;
            if *piece != ZEROS[..length] {
                file.write_all_at(piece, region_at + at)?;
                written += length as u64;
            }
            at += length as u64;
        }
        region_at += region.len();
    }
    Ok(written)
}

/// Where the next bytes are that are no hole, from `at` of a region on.
fn next_data(backing: &FileOffset, at: u64) -> io::Result<Option<u64>> {
    match seek(backing.file(), SeekFrom::Data(backing.start() + at)) {
        Ok(next) => Ok(Some(next - backing.start())),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether what the guest writes goes into the file behind its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Shared,
    Copied,
}

fn map(file: Option<&Arc<File>>, bytes: u64, sharing: Sharing) -> io::Result<GuestMemory> {
    let low = bytes.min(DEVICE_HOLE);
    let mut ranges = vec![(0, 0, low)];
    if bytes > low {
        ranges.push((HIGH_MEMORY, low, bytes - low));
    }
    let mut regions = Vec::with_capacity(ranges.len());
    for (at, offset, length) in ranges {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let file = file.map(|file| FileOffset::from_arc(file.clone(), offset));
        let region = map_aligned(file.as_ref(), length, sharing)?;
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
fn map_aligned(
    file: Option<&FileOffset>,
    length: usize,
    sharing: Sharing,
) -> io::Result<MmapRegion> {
    const LARGE: usize = 2 << 20;
    const COPIED: i32 = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let map = || match (file, sharing) {
        (None, _) => MmapRegion::new(length),
        (Some(file), Sharing::Shared) => MmapRegion::from_file(file.clone(), length),
        (Some(file), Sharing::Copied) => {
            MmapRegion::build(Some(file.clone()), length, access, COPIED)
        }
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
    fn what_was_saved_is_where_others_begin_and_part() {
        for backing in [Backing::Private, Backing::Shared] {
            let memory = create(4096 * MIB, backing).unwrap();
            let places = [0, 5 * MIB + 1, HIGH_MEMORY + 7].map(GuestAddress);
            for at in places {
                memory.write_obj(7_u8, at).unwrap();
            }
            let file = tempfile::tempfile().unwrap();
            assert_eq!(save(&memory, &file).unwrap(), 3 * (64 << 10));
            let [first, second] =
                [(), ()].map(|()| of_template(file.try_clone().unwrap(), 4096 * MIB).unwrap());
            for at in places {
                assert_eq!(first.read_obj::<u8>(at).unwrap(), 7);
                first.write_obj(8_u8, at).unwrap();
                assert_eq!(second.read_obj::<u8>(at).unwrap(), 7);
            }
            assert_eq!(second.read_obj::<u8>(GuestAddress(MIB)).unwrap(), 0);
        }
    }

    #[test]
    fn a_template_of_another_size_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 * MIB).unwrap();
        let refused = of_template(file, 8 * MIB).unwrap_err().to_string();
        assert!(refused.contains("4194304"), "{refused}");
    }

    #[test]
    fn the_file_behind_it_keeps_its_size() {
        let memory = create(2 * MIB, Backing::Shared).unwrap();
        let region = memory.iter().next().unwrap();
        let file = region.file_offset().unwrap().file();
        assert!(file.set_len(MIB).is_err() && file.set_len(4 * MIB).is_err());
    }
}
