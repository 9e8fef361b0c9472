//! Parts of a file, as RFC 9110 asks for them.

/// What a Range header asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Range {
    /// All of it: there is no header, or one of a form that is not known, which is to be ignored.
    Whole,
    /// From the first of these bytes to the second, both of them.
    Part(u64, u64),
    /// Nothing that there is.
    Nothing,
}

impl Range {
    /// Of a file of this size. Several ranges in one header are answered with the whole.
    pub(crate) fn of(header: Option<&str>, size: u64) -> Self {
        Self::parse(header, size).unwrap_or(Self::Whole)
    }

    fn parse(header: Option<&str>, size: u64) -> Option<Self> {
        let (unit, range) = header?.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") || range.contains(',') {
            return None;
        }
        let (first, last) = range.trim().split_once('-')?;
        let number = |text: &str| -> Option<u64> {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            // More than any file has is as good as that.
            digits.then(|| text.parse().unwrap_or(u64::MAX))
        };
        if first.is_empty() {
            let suffix = number(last)?;
            return Some(match suffix.min(size) {
                0 => Self::Nothing,
                length => Self::Part(size - length, size - 1),
            });
        }
        let first = number(first)?;
        let last = if last.is_empty() { u64::MAX } else { number(last)? };
        if last < first {
            return None;
        }
        Some(match first < size {
            true => Self::Part(first, last.min(size - 1)),
            false => Self::Nothing,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Range::{self, Nothing, Part, Whole};

    #[test]
    fn a_range_is_within_the_file() {
        let of = |header| Range::of(Some(header), 10);
        assert_eq!(of("bytes=0-0"), Part(0, 0));
        assert_eq!(of("bytes=2-4"), Part(2, 4));
        assert_eq!(of("bytes=2-"), Part(2, 9));
        assert_eq!(of("bytes=2-99999999999999999999999"), Part(2, 9));
        assert_eq!(of("bytes=-3"), Part(7, 9));
        assert_eq!(of("bytes=-30"), Part(0, 9));
    }

    #[test]
    fn beyond_the_file_there_is_nothing() {
        assert_eq!(Range::of(Some("bytes=10-"), 10), Nothing);
        assert_eq!(Range::of(Some("bytes=-0"), 10), Nothing);
        assert_eq!(Range::of(Some("bytes=0-"), 0), Nothing);
        assert_eq!(Range::of(Some("bytes=-1"), 0), Nothing);
    }

    #[test]
    fn what_is_not_understood_is_ignored() {
        assert_eq!(Range::of(None, 10), Whole);
        for header in [
            "lines=1-2",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=4-2",
            "bytes=1-2,4-5",
            "bytes=a-b",
            "bytes=+1-2",
        ] {
            assert_eq!(Range::of(Some(header), 10), Whole, "{header}");
        }
    }
}
