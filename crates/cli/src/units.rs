//! Sizes and times as people write them.

use std::time::Duration;

use crate::failure::Failure;

/// `512` (MiB), `512m`, `2g`, `1.5GiB` as MiB.
pub(crate) fn memory_mb(text: &str) -> Result<u32, String> {
    let bad = || format!("{text:?} is not a size; use 512 (MiB), 512m or 2g");
    let mib = in_units(text, &[("", 1), ("m", 1), ("g", 1 << 10), ("t", 1 << 20)])
        .filter(|mib| *mib > 0)
        .ok_or_else(bad)?;
    u32::try_from(mib).map_err(|_| bad())
}

/// `4096` (bytes), `64k`, `16m`, `1g` as bytes.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    in_units(text, &[("", 1), ("k", 1 << 10), ("m", 1 << 20), ("g", 1 << 30)])
        .ok_or_else(|| format!("{text:?} is not a size; use 4096 (bytes), 64k, 16m or 1g"))
}

fn in_units(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.to_ascii_lowercase();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.trim_start();
    let unit = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(unit);
    let factor = units.iter().find(|(name, _)| *name == unit)?.1;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // Nine digits are more than any unit here resolves.
    if number.contains('.') && !(1..=9).contains(&fraction.len()) {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(factor)?;
    let part = match fraction {
        "" => 0,
        digits => {
            let scale = 10_u128.pow(u32::try_from(digits.len()).ok()?);
            u64::try_from(digits.parse::<u128>().ok()? * u128::from(factor) / scale).ok()?
        }
    };
    whole.checked_add(part)
}

/// `30` (seconds), `500ms`, `90s`, `5m`, `1h`, `1h30m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a time; use 30 (seconds), 500ms, 90s, 5m, 1h or 1h30m");
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds)).filter(|time| !time.is_zero()).ok_or_else(bad);
    }
    let mut sum = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u64 = rest[..end].parse().map_err(|_| bad())?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit_ms = match &rest[..end] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(bad()),
        };
        rest = &rest[end..];
        let term = number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(bad)?;
        sum = sum.checked_add(term).ok_or_else(bad)?;
    }
    Some(sum).filter(|time| !time.is_zero()).ok_or_else(bad)
}

/// A time that the API takes, which has no fractions of seconds.
pub(crate) fn whole_seconds(flag: &str, time: Duration) -> Result<u64, Failure> {
    match time.subsec_nanos() {
        0 => Ok(time.as_secs()),
        _ => Err(Failure::usage(format!("{flag} takes whole seconds, and {time:?} is not"))),
    }
}

/// Bytes for a person: `941 B`, `1.5 MiB`.
pub(crate) fn readable(bytes: u64) -> String {
    let mut unit = 1_u64;
    for name in ["B", "KiB", "MiB", "GiB"] {
        if bytes / unit < 1024 || name == "GiB" {
            let tenths = u128::from(bytes) * 10 / u128::from(unit);
            return if unit == 1 || tenths >= 1000 {
                format!("{} {name}", tenths / 10)
            } else {
                format!("{}.{} {name}", tenths / 10, tenths % 10)
            };
        }
        unit <<= 10;
    }
    unreachable!("the last unit takes every size")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_in_mib_unless_it_says_otherwise() {
        for (text, mib) in
            [("512", 512), ("512m", 512), ("512MB", 512), ("2g", 2048), ("1.5GiB", 1536)]
        {
            assert_eq!(memory_mb(text), Ok(mib), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in ["", "0", "-1", "lots", "1.g", ".5g", "1.2.3g", "5x", "9999999t", "0.0001m"] {
            assert!(memory_mb(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_in_seconds_unless_they_say_otherwise() {
        for (text, ms) in
            [("30", 30_000), ("500ms", 500), ("90s", 90_000), ("5m", 300_000), ("1h30m", 5_400_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_time_is_refused() {
        for text in ["", "0", "0s", "-5", "5 minutes", "1h30", "s", "99999999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_readable() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (300 << 20, "300 MiB")]
        {
            assert_eq!(readable(bytes), text);
        }
        assert_eq!(readable(u64::MAX), "17179869183 GiB");
    }
}
