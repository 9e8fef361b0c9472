//! The frequency of the time stamp counter, which the guest has to be told.
//!
//! The emulator passes the host's counter through, and `microvm` has no timer against which
//! the guest could measure it: untold, the kernel calls it unstable and counts jiffies.

use std::time::{Duration, Instant};

use quanta::Clock;

/// Long enough for an error of some ten millionths, since both ends are read within a
/// microsecond.
const LEAST: Duration = Duration::from_millis(10);

/// A measurement that runs while other things are done.
#[derive(Debug)]
pub(crate) struct Calibration {
    clock: Clock,
    ticks: u64,
    begun: Instant,
}

impl Calibration {
    pub(crate) fn begin() -> Self {
        let clock = Clock::new();
        Self { ticks: clock.raw(), begun: Instant::now(), clock }
    }

    /// Counter ticks per millisecond; nothing on a host whose counter is not steady, where the
    /// clock falls back to nanoseconds. Waits where the measurement is too young.
    pub(crate) fn frequency_khz(&self) -> Option<u64> {
        let age = self.begun.elapsed();
        if age < LEAST {
            std::thread::sleep(LEAST.saturating_sub(age));
        }
        let (ticks, elapsed) = (self.clock.raw() - self.ticks, self.begun.elapsed());
        let nanoseconds = u64::try_from(elapsed.as_nanos()).ok()?;
        let khz = u64::try_from(u128::from(ticks) * 1_000_000 / u128::from(nanoseconds)).ok()?;
        // Nanoseconds instead of ticks are 1,000,000 a millisecond.
        let is_nanoseconds = khz.abs_diff(1_000_000) < 1_000;
        (!is_nanoseconds).then_some(khz)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let first = Calibration::begin().frequency_khz();
        let second = Calibration::begin().frequency_khz();
        match (first, second) {
            (Some(first), Some(second)) => {
                assert!(first.abs_diff(second) < first / 1000, "{first} and {second} kHz");
            }
            (first, second) => assert_eq!(first, second),
        }
    }
}
