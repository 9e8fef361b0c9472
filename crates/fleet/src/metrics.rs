//! What a fleet counts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::State;

/// Upper bounds of a histogram's buckets, in seconds.
pub const BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// Durations, counted by how long they were.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    counts: [AtomicU64; BUCKETS.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    pub(crate) fn record(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    fn snapshot(&self) -> Durations {
        let counts: Vec<u64> = self.counts.iter().map(|n| n.load(Ordering::Relaxed)).collect();
        #[allow(clippy::cast_precision_loss)]
        let sum_sec = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        Durations { count: counts.iter().sum(), sum_sec, buckets: counts }
    }
}

/// A histogram at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Durations {
    /// How many there were.
    pub count: u64,
    /// All of them together, in seconds.
    pub sum_sec: f64,
    /// How many of at most each bound of [`BUCKETS`] and more than the one before; beyond the
    /// last at the end.
    pub buckets: Vec<u64>,
}

/// What a fleet has counted, at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    /// Sandboxes of this process by state, without those that are destroyed.
    pub sandboxes: BTreeMap<State, u64>,
    /// Tasks that run.
    pub tasks: u64,
    /// Sandboxes that wait to come up.
    pub queued: u64,
    /// From a place in the queue until ready.
    pub boot: Durations,
    /// From the request of a command until its end.
    pub exec: Durations,
    /// Sandboxes that were made.
    pub created: u64,
    /// Sandboxes of which nothing is left.
    pub destroyed: u64,
    /// Sandboxes that failed.
    pub failed: u64,
    /// Requests that policy refused.
    pub policy_denials: u64,
    /// Requests that the caller had no right to.
    pub access_denials: u64,
    /// Requests for which there was no place.
    pub refused_busy: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) boot: Histogram,
    pub(crate) exec: Histogram,
    pub(crate) tasks: AtomicU64,
    pub(crate) created: AtomicU64,
    pub(crate) destroyed: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) policy_denials: AtomicU64,
    pub(crate) access_denials: AtomicU64,
    pub(crate) refused_busy: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn snapshot(&self, sandboxes: BTreeMap<State, u64>, queued: usize) -> Metrics {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Metrics {
            sandboxes,
            tasks: read(&self.tasks),
            queued: queued as u64,
            boot: self.boot.snapshot(),
            exec: self.exec.snapshot(),
            created: read(&self.created),
            destroyed: read(&self.destroyed),
            failed: read(&self.failed),
            policy_denials: read(&self.policy_denials),
            access_denials: read(&self.access_denials),
            refused_busy: read(&self.refused_busy),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_in_the_bucket_that_bounds_it() {
        let histogram = Histogram::default();
        for ms in [1, 3, 100_000] {
            histogram.record(Duration::from_millis(ms));
        }
        let durations = histogram.snapshot();
        assert_eq!(durations.count, 3);
        assert_eq!((durations.buckets[0], durations.buckets[2]), (1, 1));
        assert_eq!(durations.buckets[BUCKETS.len()], 1);
        assert!((durations.sum_sec - 100.004).abs() < 1e-9);
    }
}
