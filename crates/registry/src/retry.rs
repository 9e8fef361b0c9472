//! When to ask again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often a request is made without getting further.
pub(crate) const ATTEMPTS: u32 = 6;
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(8);
/// Whoever asks to be left alone for longer is not waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How long to wait after this many attempts failed, at least one: twice as long each time, and
/// between half and all of it, so that many who failed at once do not come back at once.
pub(crate) fn pause(failed: u32) -> Duration {
    let whole = FIRST.saturating_mul(1 << failed.saturating_sub(1).min(16)).min(LONGEST);
    let part = getrandom::u32().unwrap_or(u32::MAX) % 512 + 512;
    whole * part / 1024
}

/// Reads `Retry-After`: seconds, or a date.
pub(crate) fn after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let now = now.duration_since(UNIX_EPOCH).ok()?.as_secs();
    Some(Duration::from_secs(date(value)?.saturating_sub(now)))
}

/// The seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`, the form that HTTP sends.
fn date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, text) = text.split_once(", ")?;
    let mut words = text.strip_suffix(" GMT")?.split(' ');
    let day: u64 = words.next()?.parse().ok().filter(|day| (1..=31).contains(day))?;
    let month = words.next().and_then(|name| MONTHS.iter().position(|month| *month == name))?;
    let year: u64 = words.next()?.parse().ok().filter(|year| (1970..=9999).contains(year))?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<u64>().ok());
    let mut part = |most: u64| clock.next().flatten().filter(|value| *value <= most);
    let (hour, minute, second) = (part(23)?, part(59)?, part(60)?);
    // Days of the civil calendar, the year beginning in March.
    let month = month as u64 + 1;
    let year = if month <= 2 { year - 1 } else { year };
    let since_march = (month + 9) % 12;
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * since_march + 2) / 5 + day;
    Some((days - 719_469) * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        for failed in 1..40 {
            let pause = pause(failed);
            assert!(pause >= FIRST / 2 && pause <= LONGEST, "{failed}: {pause:?}");
        }
        assert!(pause(6) > pause(1));
    }

    #[test]
    fn both_forms_of_retry_after_are_read() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_770);
        assert_eq!(after("7", now), Some(Duration::from_secs(7)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(Duration::from_secs(7)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:20 GMT", now), Some(Duration::ZERO));
        assert_eq!(after("Sun, 31 Feb 1994", now), None);
        assert_eq!(after("-1", now), None);
        assert_eq!(date("Sat, 29 Feb 2020 00:00:00 GMT"), Some(1_582_934_400));
        assert_eq!(date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
    }
}
