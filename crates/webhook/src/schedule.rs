//! When a notice is tried again.

use std::time::Duration;

/// Most attempts: the last is about half a day after the first.
pub const ATTEMPTS: u32 = 12;
const FIRST: Duration = Duration::from_secs(15);
const LONGEST: Duration = Duration::from_secs(6 * 3600);

/// How long to wait after `attempts` have failed, or nothing where they were enough. `chance` is any
/// random number: it takes up to a fifth off, so that receivers that come back are not met by all at
/// once.
pub fn after(attempts: u32, chance: u32) -> Option<Duration> {
    if attempts >= ATTEMPTS {
        return None;
    }
    let doubled = FIRST.saturating_mul(1 << attempts.saturating_sub(1).min(20));
    let wait = doubled.min(LONGEST);
    Some(wait - wait.mul_f64(0.2 * f64::from(chance) / f64::from(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end() {
        let waits: Vec<_> = (1..).map_while(|attempts| after(attempts, 0)).collect();
        assert_eq!(waits.len(), 11);
        assert_eq!(waits[..3], [15, 30, 60].map(Duration::from_secs));
        assert!(waits.is_sorted());
        let all: Duration = waits.iter().sum();
        assert!((8 * 3600..12 * 3600).contains(&all.as_secs()), "{all:?}");
    }

    #[test]
    fn chance_takes_a_fifth_at_most() {
        assert_eq!(after(1, u32::MAX), Some(Duration::from_secs(12)));
    }
}
