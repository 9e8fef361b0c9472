//! Bytes of a fuzzer, read as decisions.

/// Reads from the front; what is missing at the end reads as 0, so that every input means
/// something and a shorter one means less.
#[derive(Debug)]
pub struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether everything was read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// Two bytes.
    pub fn word(&mut self) -> usize {
        usize::from(self.byte()) << 8 | usize::from(self.byte())
    }

    /// One of so many.
    pub fn of(&mut self, many: usize) -> usize {
        usize::from(self.byte()) % many
    }

    /// One of these.
    pub fn pick<'b, T>(&mut self, from: &'b [T]) -> &'b T {
        &from[self.of(from.len())]
    }

    /// A length: mostly a short one, sometimes one of up to 2^18.
    pub fn length(&mut self) -> usize {
        match self.byte() {
            short @ ..0xf0 => usize::from(short),
            long => (self.word() << 2) | usize::from(long & 3),
        }
    }

    /// Up to this many bytes as they are.
    pub fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.take(usize::MAX)
    }
}
