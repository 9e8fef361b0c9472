//! Times as signatures write them: `20150830T123600Z`.

use std::time::{SystemTime, UNIX_EPOCH};

use time::{Date, Month, OffsetDateTime, Time};

/// Length of a time, and of the day at its beginning.
const LENGTH: usize = 16;
pub(crate) const DAY: usize = 8;

/// The time as a signature has it; `None` for a clock before 1970 or after 9999.
pub(crate) fn stamp(now: SystemTime) -> Option<String> {
    let seconds = now.duration_since(UNIX_EPOCH).ok()?.as_secs();
    let at = OffsetDateTime::from_unix_timestamp(seconds.try_into().ok()?).ok()?;
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let (hour, minute, second) = at.to_hms();
    Some(format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z"))
}

/// Seconds since 1970 of a time as a signature has it.
pub(crate) fn seconds(stamp: &str) -> Option<i64> {
    let digits = |from: usize, to: usize| {
        let part = stamp.get(from..to)?;
        part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse::<u16>().ok())?
    };
    let small = |from: usize| digits(from, from + 2).and_then(|value| u8::try_from(value).ok());
    if stamp.len() != LENGTH || stamp.get(8..9) != Some("T") || stamp.get(15..) != Some("Z") {
        return None;
    }
    let month = Month::try_from(small(4)?).ok()?;
    let date = Date::from_calendar_date(digits(0, 4)?.into(), month, small(6)?).ok()?;
    let time = Time::from_hms(small(9)?, small(11)?, small(13)?).ok()?;
    Some(date.with_time(time).assume_utc().unix_timestamp())
}

/// Whether it is a day: `20150830`.
pub(crate) fn is_day(text: &str) -> bool {
    text.len() == DAY && seconds(&format!("{text}T000000Z")).is_some()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_time_has_one_form() {
        let at = UNIX_EPOCH + Duration::from_secs(1_440_938_160);
        assert_eq!(stamp(at).as_deref(), Some("20150830T123600Z"));
        assert_eq!(seconds("20150830T123600Z"), Some(1_440_938_160));
        assert_eq!(stamp(UNIX_EPOCH - Duration::from_secs(1)), None);
    }

    #[test]
    fn other_text_is_no_time() {
        for text in [
            "",
            "20150830",
            "20150830T123600",
            "20150830T123600z",
            "20150230T123600Z",
            "20151330T123600Z",
            "20150830T243600Z",
            "+0150830T123600Z",
            "2015083éT12360Z",
            " 0150830T123600Z",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
        assert!(is_day("20240229") && !is_day("20230229"));
    }
}
