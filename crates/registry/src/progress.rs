//! How far a pull is.

use crate::digest::Digest;

/// Who is told how far a pull is. Called from several tasks at once, and often: it should return at
/// once.
pub trait Progress: Send + Sync {
    /// All blobs together are so many bytes.
    fn total(&self, bytes: u64) {
        let _ = bytes;
    }

    /// So many bytes of this blob are here. Called with `done == total` when it stands verified under
    /// its name, and at once so for one that was here already.
    fn blob(&self, digest: &Digest, done: u64, total: u64);

    /// Something that takes longer than it should, and why.
    fn notice(&self, text: &str) {
        let _ = text;
    }
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn blob(&self, _: &Digest, _: u64, _: u64) {}
}
