//! Where in the guest's memory a request's data is.

use std::collections::VecDeque;

use libc::iovec;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestMemoryBackend as _, VolatileSlice};

use crate::GuestMemory;

/// Most pieces of memory that the data of one request may be in.
pub(super) const MAX_BUFFERS: usize = 256;

/// Buffers cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unusable {
    /// One is not, or not wholly, in memory.
    OutsideMemory,
    /// They are more than [`MAX_BUFFERS`].
    TooMany,
}

/// Pieces of guest memory, in order, none of them empty.
#[derive(Debug)]
pub(super) struct Buffers<'m> {
    pieces: VecDeque<VolatileSlice<'m>>,
    length: usize,
}

impl<'m> Buffers<'m> {
    /// What the descriptors point to, all of which has to be memory.
    pub(super) fn gather(
        memory: &'m GuestMemory,
        descriptors: &[Descriptor],
    ) -> Result<Self, Unusable> {
        let mut pieces = VecDeque::with_capacity(descriptors.len());
        let mut length = 0;
        for descriptor in descriptors {
            let bytes = usize::try_from(descriptor.len()).expect("32 bits");
            for piece in memory.get_slices(descriptor.addr(), bytes) {
                pieces.push_back(piece.map_err(|_| Unusable::OutsideMemory)?);
            }
            length += bytes;
        }
        // A descriptor may lead from one region of memory into the next.
        if pieces.len() > MAX_BUFFERS {
            return Err(Unusable::TooMany);
        }
        Ok(Self { pieces, length })
    }

    /// In bytes. A chain of descriptors ends before it is longer than 4 GiB (section 2.7.5.2).
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.length).expect("the descriptors' lengths were added up in 32 bits")
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The first bytes, or all of them where there are fewer.
    pub(super) fn first(&self, bytes: usize) -> Self {
        let mut left = bytes.min(self.length);
        let first = Self { pieces: VecDeque::with_capacity(self.pieces.len()), length: left };
        self.pieces.iter().fold(first, |mut first, piece| {
            let length = left.min(piece.len());
            if let (Ok(piece), true) = (piece.subslice(0, length), length > 0) {
                first.pieces.push_back(piece);
            }
            left -= length;
            first
        })
    }

    /// Copies the first bytes out, and leaves them behind. Nothing where there are fewer.
    pub(super) fn take<const BYTES: usize>(&mut self) -> Option<[u8; BYTES]> {
        if self.length < BYTES {
            return None;
        }
        let mut bytes = [0; BYTES];
        self.take_into(&mut bytes);
        Some(bytes)
    }

    /// Copies as many bytes out as there are room and bytes for, and leaves them behind.
    pub(super) fn take_into(&mut self, mut bytes: &mut [u8]) {
        while let (Some(piece), false) = (self.pieces.front(), bytes.is_empty()) {
            let copied = piece.copy_to(bytes);
            self.advance(copied);
            bytes = &mut bytes[copied..];
        }
    }

    /// Copies as much as there is room for to the front, and leaves it behind.
    pub(super) fn put(&mut self, mut bytes: &[u8]) -> usize {
        let before = self.length;
        while let (Some(piece), false) = (self.pieces.front(), bytes.is_empty()) {
            let (now, later) = bytes.split_at(piece.len().min(bytes.len()));
            piece.copy_from(now);
            self.advance(now.len());
            bytes = later;
        }
        before - self.length
    }

    /// Leaves the last byte out.
    pub(super) fn pop(&mut self) {
        let Some(last) = self.pieces.pop_back() else { return };
        self.length -= 1;
        if let (Ok(rest), true) = (last.subslice(0, last.len() - 1), last.len() > 1) {
            self.pieces.push_back(rest);
        }
    }

    /// Leaves the first bytes behind.
    pub(super) fn advance(&mut self, mut bytes: usize) {
        while bytes > 0 {
            let Some(piece) = self.pieces.pop_front() else { return };
            let passed = piece.len().min(bytes);
            if let (Ok(rest), true) = (piece.offset(passed), passed < piece.len()) {
                self.pieces.push_front(rest);
            }
            bytes -= passed;
            self.length -= passed;
        }
    }

    /// For the kernel; good for as long as the memory that they are of.
    pub(super) fn io_vectors<'v>(&self, vectors: &'v mut [iovec; MAX_BUFFERS]) -> &'v [iovec] {
        for (vector, piece) in vectors.iter_mut().zip(&self.pieces) {
            // The guard only matters where guest memory is mapped on demand, under Xen.
            let start = piece.ptr_guard_mut().as_ptr();
            *vector = iovec { iov_base: start.cast(), iov_len: piece.len() };
        }
        &vectors[..self.pieces.len()]
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes as _, GuestAddress};

    use super::*;

    const PAGE: u64 = 0x1000;

    /// Two regions side by side, and one apart.
    fn memory() -> GuestMemory {
        let page = usize::try_from(PAGE).unwrap();
        let regions = [0, PAGE, 3 * PAGE].map(|at| (GuestAddress(at), page));
        GuestMemory::from_ranges(&regions).unwrap()
    }

    fn at(address: u64, length: u32) -> Descriptor {
        Descriptor::new(address, length, 0, 0)
    }

    #[test]
    fn a_buffer_may_cross_into_the_next_region() {
        let memory = memory();
        memory.write_slice(b"abcd", GuestAddress(PAGE - 2)).unwrap();
        let mut buffers = Buffers::gather(&memory, &[at(PAGE - 2, 4)]).unwrap();
        assert_eq!(buffers.take(), Some(*b"abcd"));
    }

    #[test]
    fn a_buffer_into_a_hole_is_refused() {
        let memory = memory();
        for descriptor in [at(2 * PAGE - 1, 2), at(2 * PAGE, 1), at(u64::MAX, 2)] {
            let gathered = Buffers::gather(&memory, &[descriptor]);
            assert!(matches!(gathered, Err(Unusable::OutsideMemory)), "{gathered:?}");
        }
    }

    #[test]
    fn what_is_taken_may_be_in_pieces() {
        let memory = memory();
        memory.write_slice(b"abc", GuestAddress(8)).unwrap();
        let mut buffers = Buffers::gather(&memory, &[at(10, 1), at(0, 0), at(8, 2)]).unwrap();
        assert_eq!(buffers.take(), Some(*b"ca"));
        assert_eq!((buffers.take(), buffers.len()), (Some(*b"b"), 0));
    }

    #[test]
    fn more_than_there_is_cannot_be_taken() {
        let memory = memory();
        let mut buffers = Buffers::gather(&memory, &[at(0, 3)]).unwrap();
        assert_eq!((buffers.take::<4>(), buffers.len()), (None, 3));
    }

    #[test]
    fn what_is_put_may_be_in_pieces() {
        let memory = memory();
        let mut buffers = Buffers::gather(&memory, &[at(8, 1), at(0, 2)]).unwrap();
        assert_eq!(buffers.put(b"xyz"), 3);
        assert_eq!(memory.read_obj::<[u8; 2]>(GuestAddress(0)).unwrap(), *b"yz");
        assert_eq!(memory.read_obj::<u8>(GuestAddress(8)).unwrap(), b'x');
    }

    #[test]
    fn the_first_bytes_may_end_within_a_piece() {
        let memory = memory();
        memory.write_slice(b"abcd", GuestAddress(0)).unwrap();
        let buffers = Buffers::gather(&memory, &[at(0, 1), at(1, 3)]).unwrap();
        for (count, expected) in [(0, &b""[..]), (1, b"a"), (3, b"abc"), (9, b"abcd")] {
            let mut first = buffers.first(count);
            assert_eq!(usize::try_from(first.len()).unwrap(), expected.len());
            let mut bytes = [0; 9];
            first.take_into(&mut bytes);
            assert_eq!((&bytes[..expected.len()], first.len()), (expected, 0));
        }
    }

    #[test]
    fn no_more_is_put_than_there_is_room_for() {
        let memory = memory();
        let mut buffers = Buffers::gather(&memory, &[at(0, 2)]).unwrap();
        assert_eq!(buffers.put(b"xyz"), 2);
        assert_eq!(memory.read_obj::<[u8; 3]>(GuestAddress(0)).unwrap(), *b"xy\0");
    }

    #[test]
    fn a_last_byte_may_be_a_piece_of_its_own() {
        let memory = memory();
        let mut buffers = Buffers::gather(&memory, &[at(0, 2), at(8, 1)]).unwrap();
        buffers.pop();
        assert_eq!((buffers.len(), buffers.pieces.len()), (2, 1));
        buffers.pop();
        assert_eq!((buffers.len(), buffers.pieces.len()), (1, 1));
    }

    #[test]
    fn the_kernel_gets_what_is_left() {
        let memory = memory();
        let mut buffers = Buffers::gather(&memory, &[at(0, 4), at(8, 4)]).unwrap();
        buffers.advance(6);
        let mut vectors = [iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MAX_BUFFERS];
        let vectors = buffers.io_vectors(&mut vectors);
        assert_eq!(vectors.len(), 1);
        assert_eq!(vectors[0].iov_len, 2);
        let expected = memory.get_host_address(GuestAddress(10)).unwrap();
        assert_eq!(vectors[0].iov_base.cast(), expected);
    }
}
