//! How much a guest may add.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

/// Bytes that every new entry counts, so that names are not free.
pub(crate) const ENTRY: u64 = 4096;

/// Counts what files grow by their sizes, so that what a file system really gives can only be less.
#[derive(Debug)]
pub(crate) struct Quota {
    most: u64,
    used: AtomicU64,
}

impl Quota {
    pub(crate) fn new(most: Option<u64>) -> Self {
        Self { most: most.unwrap_or(u64::MAX), used: AtomicU64::new(0) }
    }

    /// Takes so many bytes, or none.
    pub(crate) fn take(&self, bytes: u64) -> Result<(), Errno> {
        let fits = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.most);
        let taken = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits);
        taken.map(drop).map_err(|_| Errno::DQUOT)
    }

    /// Gives back. What was there before the guest gives no more room than there was.
    pub(crate) fn give(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        let _ = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    pub(crate) fn left(&self) -> u64 {
        self.most.saturating_sub(self.used.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_takes_nothing() {
        let quota = Quota::new(Some(100));
        quota.take(60).unwrap();
        assert_eq!(quota.take(41), Err(Errno::DQUOT));
        assert_eq!(quota.take(u64::MAX), Err(Errno::DQUOT));
        assert_eq!(quota.left(), 40);
        quota.give(1000);
        assert_eq!(quota.left(), 100);
    }
}
