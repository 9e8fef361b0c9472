//! Limits of what a device does for its guest, in bytes and in operations.
//!
//! There is no clock and no waiting in here: whoever asks says what time it is, and is told how
//! long to wait.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// So much of something per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// In the long run.
    pub per_second: NonZeroU64,
    /// At once, after a time without any.
    pub burst: u64,
    /// At once and once, besides `burst`: at the start of a guest, which reads more than later.
    #[serde(default)]
    pub first_burst: u64,
}

/// The limits of a device. What is absent is not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimit {
    /// Bytes that are moved.
    pub bytes: Option<Rate>,
    /// Requests that are served.
    pub operations: Option<Rate>,
}

/// Holds a device to a [`RateLimit`].
///
/// Over any span of time it admits no more than the bursts, the rate times the span, and what one
/// request is larger than the burst: such a request is admitted when all of the burst is there, and
/// the next one waits until the rate has made up for it. Hence no request waits for ever.
#[derive(Debug)]
pub struct RateLimiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
    refilled: Instant,
}

impl RateLimiter {
    /// One that starts with full bursts.
    pub fn new(limit: RateLimit, now: Instant) -> Self {
        Self {
            bytes: limit.bytes.map(Bucket::new),
            operations: limit.operations.map(Bucket::new),
            refilled: now,
        }
    }

    /// Admits one operation that moves so many bytes.
    ///
    /// # Errors
    /// How long to wait where it is too early. Nothing is taken then.
    pub fn admit(&mut self, bytes: u64, now: Instant) -> Result<(), Duration> {
        let mut buckets = [(&mut self.bytes, bytes), (&mut self.operations, 1)];
        let elapsed = now.saturating_duration_since(self.refilled);
        self.refilled = self.refilled.max(now);
        let mut wait = Duration::ZERO;
        for (bucket, tokens) in &mut buckets {
            if let Some(bucket) = bucket {
                bucket.refill(elapsed);
                wait = wait.max(bucket.wait(*tokens));
            }
        }
        if !wait.is_zero() {
            return Err(wait);
        }
        for (bucket, tokens) in buckets {
            if let Some(bucket) = bucket {
                bucket.take(tokens);
            }
        }
        Ok(())
    }
}

/// Billionths of a token: at a rate of so many tokens per second, each nanosecond brings exactly so
/// many of these, and nothing is rounded. A `u64` of tokens is below 2^94 of them.
type Level = i128;

const TOKEN: Level = 1_000_000_000;

/// A token bucket. It may be overfull at the start, and in debt.
#[derive(Debug)]
struct Bucket {
    level: Level,
    size: Level,
    per_nanosecond: Level,
}

impl Bucket {
    fn new(rate: Rate) -> Self {
        let size = Level::from(rate.burst) * TOKEN;
        Self {
            level: size + Level::from(rate.first_burst) * TOKEN,
            size,
            per_nanosecond: rate.per_second.get().into(),
        }
    }

    fn refill(&mut self, elapsed: Duration) {
        let elapsed = Level::try_from(elapsed.as_nanos()).unwrap_or(Level::MAX);
        let gained = elapsed.saturating_mul(self.per_nanosecond);
        if self.level < self.size {
            self.level = self.level.saturating_add(gained).min(self.size);
        }
    }

    /// How long it takes until so many tokens can be taken.
    fn wait(&self, tokens: u64) -> Duration {
        let needed = (Level::from(tokens) * TOKEN).min(self.size);
        let missing = (needed - self.level).max(0);
        let nanoseconds =
            missing / self.per_nanosecond + Level::from(missing % self.per_nanosecond != 0);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    fn take(&mut self, tokens: u64) {
        self.level -= Level::from(tokens) * TOKEN;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(per_second: u64, burst: u64) -> Rate {
        Rate { per_second: NonZeroU64::new(per_second).unwrap(), burst, first_burst: 0 }
    }

    fn bytes(rate: Rate) -> (RateLimiter, Instant) {
        let start = Instant::now();
        (RateLimiter::new(RateLimit { bytes: Some(rate), operations: None }, start), start)
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_is_there_at_once() {
        let (mut limiter, now) = bytes(rate(10, 100));
        assert_eq!(limiter.admit(100, now), Ok(()));
        assert_eq!(limiter.admit(10, now), Err(SECOND));
    }

    #[test]
    fn what_was_refused_took_nothing() {
        let (mut limiter, now) = bytes(rate(10, 100));
        limiter.admit(95, now).unwrap();
        limiter.admit(6, now).unwrap_err();
        assert_eq!(limiter.admit(5, now), Ok(()));
    }

    #[test]
    fn time_brings_no_more_than_a_burst() {
        let (mut limiter, now) = bytes(rate(10, 100));
        assert_eq!(limiter.admit(100, now + 1000 * SECOND), Ok(()));
        assert_eq!(limiter.admit(1, now + 1000 * SECOND), Err(SECOND / 10));
    }

    #[test]
    fn a_first_burst_comes_once() {
        let (mut limiter, now) = bytes(Rate { first_burst: 50, ..rate(10, 100) });
        assert_eq!(limiter.admit(150, now), Ok(()));
        let later = now + 1000 * SECOND;
        assert_eq!(limiter.admit(100, later), Ok(()));
        assert_eq!(limiter.admit(50, later), Err(5 * SECOND));
    }

    #[test]
    fn a_request_beyond_the_burst_is_made_up_for() {
        let (mut limiter, now) = bytes(rate(10, 100));
        assert_eq!(limiter.admit(300, now), Ok(()));
        assert_eq!(limiter.admit(100, now), Err(30 * SECOND));
        assert_eq!(limiter.admit(100, now + 30 * SECOND), Ok(()));
    }

    #[test]
    fn a_request_beyond_the_burst_waits_for_all_of_it() {
        let (mut limiter, now) = bytes(rate(10, 100));
        limiter.admit(1, now).unwrap();
        assert_eq!(limiter.admit(300, now), Err(SECOND / 10));
    }

    #[test]
    fn operations_are_counted_whatever_their_size() {
        let now = Instant::now();
        let limit = RateLimit { bytes: None, operations: Some(rate(4, 2)) };
        let mut limiter = RateLimiter::new(limit, now);
        assert_eq!(limiter.admit(0, now), Ok(()));
        assert_eq!(limiter.admit(u64::MAX, now), Ok(()));
        assert_eq!(limiter.admit(0, now), Err(SECOND / 4));
    }

    #[test]
    fn the_slower_of_both_limits_holds() {
        let now = Instant::now();
        let limit = RateLimit { bytes: Some(rate(10, 10)), operations: Some(rate(1, 1)) };
        let mut limiter = RateLimiter::new(limit, now);
        limiter.admit(5, now).unwrap();
        assert_eq!(limiter.admit(10, now), Err(SECOND));
        assert_eq!(limiter.admit(10, now + SECOND), Ok(()));
    }

    #[test]
    fn what_is_not_limited_is_admitted() {
        let now = Instant::now();
        let mut limiter = RateLimiter::new(RateLimit::default(), now);
        for _ in 0..1000 {
            assert_eq!(limiter.admit(u64::MAX, now), Ok(()));
        }
    }

    #[test]
    fn a_clock_that_goes_back_brings_nothing() {
        let (mut limiter, now) = bytes(rate(10, 100));
        limiter.admit(100, now + SECOND).unwrap();
        assert_eq!(limiter.admit(10, now), Err(SECOND));
        assert_eq!(limiter.admit(10, now + 2 * SECOND), Ok(()));
    }

    #[test]
    fn the_largest_numbers_are_no_trouble() {
        let most = Rate { first_burst: u64::MAX, ..rate(u64::MAX, u64::MAX) };
        let (mut limiter, now) = bytes(most);
        limiter.admit(u64::MAX, now).unwrap();
        limiter.admit(u64::MAX, now).unwrap();
        assert_eq!(limiter.admit(u64::MAX, now), Err(SECOND));
        assert_eq!(limiter.admit(u64::MAX, now + Duration::from_secs(1 << 40)), Ok(()));
    }

    #[test]
    fn the_slowest_refill_is_waited_for() {
        let (mut limiter, now) = bytes(rate(1, 0));
        limiter.admit(u64::MAX, now).unwrap();
        assert_eq!(limiter.admit(1, now), Err(Duration::from_nanos(u64::MAX)));
    }

    /// Small numbers meet each other, large ones overflow.
    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![0..100_u64, 0..1_000_000_000_u64, any::<u64>()]
    }

    fn any_rate() -> impl Strategy<Value = Rate> {
        (number(), number(), number()).prop_map(|(per_second, burst, first_burst)| Rate {
            per_second: NonZeroU64::new(per_second.max(1)).unwrap(),
            burst,
            first_burst,
        })
    }

    /// What comes with time: at most so much in so many nanoseconds, exactly.
    fn earned(rate: Rate, nanoseconds: u128) -> u128 {
        (u128::from(rate.per_second.get()).saturating_mul(nanoseconds)).div_ceil(1_000_000_000)
    }

    proptest! {
        #[test]
        fn no_span_of_time_has_more_than_it_may(
            rate in any_rate(),
            requests in prop::collection::vec((number(), 0..10_000_000_000_u64), 1..40),
        ) {
            let (mut limiter, mut now) = bytes(rate);
            let mut admitted = Vec::new();
            for (size, pause) in requests {
                now += Duration::from_nanos(pause);
                if limiter.admit(size, now).is_ok() {
                    admitted.push((now, u128::from(size)));
                }
            }
            for (from, (begin, _)) in admitted.iter().enumerate() {
                let mut sum = 0;
                let mut largest = 0;
                for (end, size) in &admitted[from..] {
                    sum += size;
                    largest = largest.max(*size);
                    let bursts = u128::from(rate.burst) + u128::from(rate.first_burst);
                    let debt = largest.saturating_sub(rate.burst.into());
                    let most = bursts + earned(rate, (*end - *begin).as_nanos()) + debt;
                    prop_assert!(sum <= most, "{sum} of {most}");
                }
            }
        }

        #[test]
        fn who_waits_as_told_is_admitted(
            limit in (prop::option::of(any_rate()), prop::option::of(any_rate())),
            sizes in prop::collection::vec(number(), 1..40),
        ) {
            let limit = RateLimit { bytes: limit.0, operations: limit.1 };
            let mut now = Instant::now();
            let mut limiter = RateLimiter::new(limit, now);
            for size in sizes {
                let Err(wait) = limiter.admit(size, now) else { continue };
                // Longer waits than 584 years are said to be that long.
                prop_assume!(wait < Duration::from_nanos(u64::MAX));
                let Some(then) = now.checked_add(wait) else { return Ok(()) };
                now = then;
                prop_assert_eq!(limiter.admit(size, now), Ok(()));
            }
        }

        #[test]
        fn no_wait_is_longer_than_it_has_to_be(
            rate in any_rate(),
            sizes in prop::collection::vec(number(), 1..40),
        ) {
            let (mut limiter, mut now) = bytes(rate);
            for size in sizes {
                let Err(wait) = limiter.admit(size, now) else { continue };
                prop_assume!(wait < Duration::from_nanos(u64::MAX));
                let Some(then) = now.checked_add(wait) else { return Ok(()) };
                if let Some(earlier) = wait.checked_sub(Duration::from_nanos(1)) {
                    prop_assert!(limiter.admit(size, now + earlier).is_err());
                }
                now = then;
                limiter.admit(size, now).unwrap();
            }
        }
    }
}
