//! Giving pages of the guest's memory back to the host.

use std::io;
use std::ops::Range;

use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _, GuestRegionMmap};

use crate::GuestMemory;

/// Bytes of a page, in the driver's counting (section 5.5.6) and in the host's.
pub(super) const PAGE: u64 = 4096;

/// Puts ranges in order and joins those that meet or overlap.
pub(super) fn join(ranges: &mut Vec<Range<u64>>) {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, range| {
        let meets = next.start <= range.end;
        if meets {
            range.end = range.end.max(next.end);
        }
        meets
    });
}

pub(super) fn pages(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| (range.end - range.start) / PAGE).sum()
}

/// What became of pages.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Returned {
    /// Pages that the host has back.
    pub(super) pages: u64,
    /// Calls of the kernel that failed.
    pub(super) failed: u64,
}

/// Gives the memory back that is in `range`, which is of whole pages. What of it is no memory is
/// passed over.
pub(super) fn give_back(memory: &GuestMemory, range: &Range<u64>) -> Returned {
    let mut returned = Returned::default();
    for region in memory.iter() {
        let start = region.start_addr().0;
        let part = range.start.max(start)..range.end.min(start + whole_pages(region.len()));
        if part.is_empty() {
            continue;
        }
        match give_back_within(region, part.start - start, part.end - part.start) {
            Ok(()) => returned.pages += (part.end - part.start) / PAGE,
            Err(_) => returned.failed += 1,
        }
    }
    returned
}

fn whole_pages(length: u64) -> u64 {
    length - length % PAGE
}

fn give_back_within(region: &GuestRegionMmap<()>, offset: u64, length: u64) -> io::Result<()> {
    let offset = usize::try_from(offset).map_err(io::Error::other)?;
    let length = usize::try_from(length).map_err(io::Error::other)?;
    let start = region.as_ptr().wrapping_add(offset);
    // SAFETY: the range is within a region of guest memory, which is mapped as long as it is
    // borrowed. There are no references to what is in it, and its driver does without that.
    let done = unsafe { libc::madvise(start.cast(), length, advice(region.flags())) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A shared mapping's pages belong to the file: dropping them from the mapping would free nothing.
/// A private one's pages are copies, and the file is others'.
fn advice(flags: i32) -> i32 {
    match flags & libc::MAP_TYPE {
        libc::MAP_PRIVATE => libc::MADV_DONTNEED,
        _ => libc::MADV_REMOVE,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustix::fs::{MemfdFlags, memfd_create};
    use vm_memory::{Bytes as _, FileOffset, GuestAddress, MmapRegion};

    use super::*;

    const PAGES: u64 = 16;

    /// A file of 16 pages of ones.
    fn ones() -> File {
        let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        file.write_all_at(&[1; 16 * 4096], 0).unwrap();
        file
    }

    /// Four of its pages at 0 and four at page 8, with pages in front, in between and behind.
    /// They are parts of one mapping, so that what would go wrong beside them can be seen.
    fn memory(file: &File, flags: i32) -> (GuestMemory, MmapRegion<()>) {
        let file = FileOffset::from_arc(Arc::new(file.try_clone().unwrap()), 0);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let whole = MmapRegion::<()>::build(Some(file), 16 * 4096, protection, flags).unwrap();
        let region = |page: usize, guest_page: u64| {
            let start = whole.as_ptr().wrapping_add(page * 4096);
            // SAFETY: it is a part of `whole`, which the caller keeps.
            let part = unsafe { MmapRegion::build_raw(start, 4 * 4096, protection, flags) };
            GuestRegionMmap::new(part.unwrap(), GuestAddress(guest_page * PAGE)).unwrap()
        };
        let regions = vec![region(2, 0), region(8, 8)];
        (GuestMemory::from_regions(regions).unwrap(), whole)
    }

    fn shared() -> (File, GuestMemory, MmapRegion<()>) {
        let file = ones();
        let (memory, whole) = memory(&file, libc::MAP_SHARED);
        (file, memory, whole)
    }

    /// Pages of the file that have memory, by what is in them.
    fn kept(file: &File) -> Vec<u64> {
        (0..PAGES)
            .filter(|page| {
                let mut byte = [0];
                file.read_exact_at(&mut byte, page * PAGE).unwrap();
                byte == [1]
            })
            .collect()
    }

    fn range(pages: Range<u64>) -> Range<u64> {
        pages.start * PAGE..pages.end * PAGE
    }

    #[test]
    fn pages_of_a_file_leave_the_file() {
        let (file, memory, _whole) = shared();
        let before = file.metadata().unwrap().blocks();
        let returned = give_back(&memory, &range(1..3));
        assert_eq!(returned, Returned { pages: 2, failed: 0 });
        assert_eq!(before - file.metadata().unwrap().blocks(), 2 * PAGE / 512);
        assert_eq!(kept(&file), [0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    }

    #[test]
    fn pages_that_were_given_back_can_be_used_again() {
        let (_file, memory, _whole) = shared();
        give_back(&memory, &range(0..4));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0)).unwrap(), 0);
        memory.write_obj(7_u8, GuestAddress(0)).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0)).unwrap(), 7);
    }

    #[test]
    fn copies_of_a_files_pages_are_dropped_and_the_file_stays() {
        let file = ones();
        let (memory, _whole) = memory(&file, libc::MAP_PRIVATE);
        memory.write_obj(7_u8, GuestAddress(0)).unwrap();
        let returned = give_back(&memory, &range(0..4));
        assert_eq!(returned, Returned { pages: 4, failed: 0 });
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0)).unwrap(), 1);
        assert_eq!(kept(&file).len(), 16);
    }

    #[test]
    fn memory_without_a_file_is_zeroes_again() {
        let regions = [(GuestAddress(0), 4 * 4096)];
        let memory = GuestMemory::from_ranges(&regions).unwrap();
        memory.write_obj(7_u8, GuestAddress(0)).unwrap();
        give_back(&memory, &range(0..4));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0)).unwrap(), 0);
    }

    #[test]
    fn what_is_beside_a_region_stays() {
        let (file, memory, _whole) = shared();
        let returned = give_back(&memory, &range(3..9));
        assert_eq!(returned, Returned { pages: 2, failed: 0 });
        assert_eq!(kept(&file), [0, 1, 2, 3, 4, 6, 7, 9, 10, 11, 12, 13, 14, 15]);
    }

    #[test]
    fn what_is_no_memory_is_passed_over() {
        let (file, memory, _whole) = shared();
        for beyond in [range(4..8), range(12..13), range(1 << 40..1 << 44)] {
            assert_eq!(give_back(&memory, &beyond), Returned::default());
        }
        assert_eq!(kept(&file).len(), 16);
    }

    #[test]
    fn a_region_that_ends_within_a_page_keeps_that_page() {
        let file = ones();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let ranges = [(GuestAddress(0), 4096 + 512, Some(offset))];
        let memory = GuestMemory::from_ranges_with_files(ranges).unwrap();
        assert_eq!(give_back(&memory, &range(0..4)).pages, 1);
        assert_eq!(kept(&file), (1..16).collect::<Vec<_>>());
    }

    #[test]
    fn pages_that_the_host_does_not_take_are_counted() {
        // Locked memory cannot be taken out of its file.
        let (_file, memory, whole) = shared();
        // SAFETY: it is mapped, and locking changes nothing that is in it.
        let locked = unsafe { libc::mlock(whole.as_ptr().cast(), 16 * 4096) };
        if locked != 0 {
            return eprintln!("not run: the limit of locked memory is below 64 KiB");
        }
        assert_eq!(give_back(&memory, &range(0..12)), Returned { pages: 0, failed: 2 });
    }

    #[test]
    fn ranges_that_meet_are_one() {
        let mut ranges = vec![4..6, 0..2, 2..4, 8..9];
        join(&mut ranges);
        assert_eq!(ranges, [0..6, 8..9]);
    }

    #[test]
    fn ranges_within_others_are_gone() {
        let mut ranges = vec![0..9, 2..4, 3..10, 0..9];
        join(&mut ranges);
        assert_eq!(ranges, vec![0..10]);
    }

    proptest! {
        #[test]
        fn joining_changes_nothing_but_the_number_of_ranges(
            ranges in prop::collection::vec((0..40_u64, 1..8_u64), 0..12),
        ) {
            let before: Vec<_> = ranges.iter().map(|(from, many)| *from..from + many).collect();
            let mut after = before.clone();
            join(&mut after);
            for page in 0..50 {
                let covered = |ranges: &[Range<u64>]| ranges.iter().any(|r| r.contains(&page));
                prop_assert_eq!(covered(&before), covered(&after));
            }
            prop_assert!(after.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
