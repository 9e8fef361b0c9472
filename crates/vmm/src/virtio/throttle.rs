//! Holds a device to its rate limit, and wakes it when it may go on.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::rate_limiter::{RateLimit, RateLimiter};

/// A limiter with a timer, for a device whose requests have to be served in order.
#[derive(Debug)]
pub(super) struct Throttle {
    limiter: RateLimiter,
    timer: OwnedFd,
    waiting: bool,
}

impl Throttle {
    /// # Errors
    /// Where there are no descriptors to be had.
    pub(super) fn new(limit: RateLimit) -> io::Result<Self> {
        // The clock of `Instant`.
        let clock = TimerfdClockId::Monotonic;
        let timer = timerfd_create(clock, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        Ok(Self { limiter: RateLimiter::new(limit, Instant::now()), timer, waiting: false })
    }

    /// Whether a request that moves so many bytes may be served now. If not, the
    /// [source](Self::source) becomes readable when it may.
    pub(super) fn admits(&mut self, bytes: u64) -> bool {
        match self.limiter.admit(bytes, Instant::now()) {
            Ok(()) => true,
            Err(wait) => {
                self.wait(wait);
                false
            }
        }
    }

    /// Whether a request has to wait, and all behind it.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// The timer, while it runs.
    pub(super) fn source(&self) -> Option<BorrowedFd<'_>> {
        self.waiting.then(|| self.timer.as_fd())
    }

    /// The time has come, or nobody waits any more.
    pub(super) fn stop_waiting(&mut self) {
        self.waiting = false;
    }

    fn wait(&mut self, wait: Duration) {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let wait = Timespec::try_from(wait).unwrap_or(Timespec { tv_sec: i64::MAX, ..zero });
        let once = Itimerspec { it_interval: zero, it_value: wait };
        // Setting it also takes back that it has fired.
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)
            .expect("a timer can be set to any time");
        self.waiting = true;
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;
    use crate::rate_limiter::Rate;

    /// One operation at once, and the next one a moment later.
    fn throttle() -> Throttle {
        let per_second = NonZeroU64::new(5).unwrap();
        let rate = Rate { per_second, burst: 1, first_burst: 0 };
        Throttle::new(RateLimit { bytes: None, operations: Some(rate) }).unwrap()
    }

    fn fires_within(throttle: &Throttle, milliseconds: i64) -> bool {
        let timer = throttle.source().expect("it is waiting");
        let timeout = Timespec { tv_sec: 0, tv_nsec: milliseconds * 1_000_000 };
        poll(&mut [PollFd::from_borrowed_fd(timer, PollFlags::IN)], Some(&timeout)).unwrap() == 1
    }

    #[test]
    fn who_may_go_on_does_not_wait() {
        let mut throttle = throttle();
        assert!(throttle.admits(0));
        assert!(throttle.source().is_none());
    }

    #[test]
    fn who_has_to_wait_is_woken() {
        let mut throttle = throttle();
        throttle.admits(0);
        assert!(!throttle.admits(0));
        assert!(fires_within(&throttle, 900));
        throttle.stop_waiting();
        assert!(throttle.admits(0));
    }

    #[test]
    fn a_timer_that_fired_does_so_once() {
        let mut throttle = throttle();
        throttle.admits(0);
        throttle.wait(Duration::from_nanos(1));
        assert!(fires_within(&throttle, 900));
        throttle.wait(Duration::from_secs(100));
        assert!(!fires_within(&throttle, 20));
    }

    #[test]
    fn the_longest_wait_can_be_waited_for() {
        let mut throttle = throttle();
        throttle.wait(Duration::from_nanos(u64::MAX));
        throttle.wait(Duration::MAX);
        assert!(throttle.is_waiting());
    }
}
