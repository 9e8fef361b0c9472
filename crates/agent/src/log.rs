//! What a detached process wrote, as much as is kept.

use std::collections::VecDeque;

/// The last bytes of a stream, addressed by their offset from its beginning.
#[derive(Debug)]
pub(crate) struct Log {
    kept: VecDeque<u8>,
    capacity: usize,
    /// Offset of the first byte kept.
    start: u64,
}

impl Log {
    /// A log that keeps the last `capacity` bytes.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { kept: VecDeque::new(), capacity, start: 0 }
    }

    /// Appends, at the cost of the oldest.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let bytes_kept = &bytes[bytes.len().saturating_sub(self.capacity)..];
        let excess = (self.kept.len() + bytes_kept.len()).saturating_sub(self.capacity);
        self.kept.drain(..excess);
        self.kept.extend(bytes_kept);
        self.start += (excess + bytes.len() - bytes_kept.len()) as u64;
    }

    /// Offset behind the last byte.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.kept.len() as u64
    }

    /// Up to `most` bytes from `offset` on, and the offset at which they begin: later than
    /// asked for where bytes were dropped.
    pub(crate) fn read(&self, offset: u64, most: usize) -> (u64, Vec<u8>) {
        let from = offset.clamp(self.start, self.end());
        let skip = usize::try_from(from - self.start).expect("within what is kept");
        (from, self.kept.range(skip..).take(most).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_hold_while_the_oldest_go() {
        let mut log = Log::new(4);
        log.push(b"abc");
        log.push(b"def");
        assert_eq!(log.read(0, 100), (2, b"cdef".to_vec()));
        assert_eq!(log.read(3, 2), (3, b"de".to_vec()));
        assert_eq!(log.read(6, 2), (6, Vec::new()));
        assert_eq!(log.end(), 6);
    }

    #[test]
    fn one_write_beyond_the_capacity_leaves_its_end() {
        let mut log = Log::new(3);
        log.push(b"0123456789");
        assert_eq!(log.read(0, 100), (7, b"789".to_vec()));
    }

    #[test]
    fn an_offset_beyond_the_end_waits_at_the_end() {
        let mut log = Log::new(3);
        log.push(b"ab");
        assert_eq!(log.read(99, 10), (2, Vec::new()));
    }
}
