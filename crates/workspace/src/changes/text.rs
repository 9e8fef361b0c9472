//! Lines of text: what differs, and what two sides made of them.

/// Longer files are told by their size.
pub(crate) const MAX_TEXT: u64 = 1 << 20;

/// Lines of both sides together, without those that they begin and end with alike, that are
/// compared. The time grows with the square of what differs, and a guest wrote them: these take
/// seconds at most.
const MAX_LINES: usize = 40_000;

/// Whether bytes are text that can be compared line by line.
pub(crate) fn is_text(bytes: &[u8]) -> bool {
    bytes.len() as u64 <= MAX_TEXT && !bytes.contains(&0)
}

/// Whether two sides can be compared in a bounded time.
fn is_comparable(one: &[u8], other: &[u8]) -> bool {
    if !is_text(one) || !is_text(other) {
        return false;
    }
    let (one, other): (Vec<_>, Vec<_>) = (lines(one), lines(other));
    let alike = one.iter().zip(&other).take_while(|(one, other)| one == other).count();
    let (one, other) = (&one[alike..], &other[alike..]);
    let ends = one.iter().rev().zip(other.iter().rev()).take_while(|(one, other)| one == other);
    let ends = ends.count();
    one.len() + other.len() - 2 * ends <= MAX_LINES
}

fn lines(bytes: &[u8]) -> Vec<&[u8]> {
    bytes.split_inclusive(|&byte| byte == b'\n').collect()
}

/// Hunks in the unified format, lines that came and lines that went; `None` where it is no text or
/// too long.
pub(crate) fn compare(before: &[u8], after: &[u8]) -> Option<(Vec<u8>, u64, u64)> {
    if !is_comparable(before, after) {
        return None;
    }
    let patch = diffy::create_patch_bytes(before, after);
    let (mut added, mut removed) = (0, 0);
    for line in patch.hunks().iter().flat_map(diffy::Hunk::lines) {
        match line {
            diffy::Line::Insert(_) => added += 1,
            diffy::Line::Delete(_) => removed += 1,
            diffy::Line::Context(_) => {}
        }
    }
    let whole = patch.to_bytes();
    // The two lines with file names are the caller's.
    let start = whole.windows(3).position(|bytes| bytes == b"@@ ").unwrap_or(whole.len());
    Some((whole[start..].to_vec(), added, removed))
}

/// What both sides made of a text, if they changed different parts of it.
pub(crate) fn merge(base: &[u8], ours: &[u8], theirs: &[u8]) -> Option<Vec<u8>> {
    if !is_comparable(base, ours) || !is_comparable(base, theirs) {
        return None;
    }
    diffy::merge_bytes(base, ours, theirs).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn changes_of_different_parts_merge_and_of_the_same_do_not() {
        let base = b"a\nb\nc\nd\ne\n";
        let merged = merge(base, b"A\nb\nc\nd\ne\n", b"a\nb\nc\nd\nE\n").unwrap();
        assert_eq!(merged, b"A\nb\nc\nd\nE\n");
        assert_eq!(merge(base, b"A\nb\nc\nd\ne\n", b"X\nb\nc\nd\ne\n"), None);
        assert_eq!(merge(b"a\0", b"b", b"c"), None);
    }

    #[test]
    fn long_texts_that_differ_everywhere_are_not_compared() {
        let long = |from: u32| (from..from + 30_000).map(|n| format!("{n}\n")).collect::<String>();
        assert!(compare(long(0).as_bytes(), long(1_000_000).as_bytes()).is_none());
        let mut one_line_more = long(0);
        one_line_more.insert_str(8, "new\n");
        let (_, added, removed) = compare(long(0).as_bytes(), one_line_more.as_bytes()).unwrap();
        assert_eq!((added, removed), (1, 0));
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(
            prop_oneof![Just("a\n"), Just("b\n"), Just("c"), Just("\n")],
            0..12,
        )
        .prop_map(|lines| lines.concat().into_bytes())
    }

    proptest! {
        /// A side that did nothing has no say.
        #[test]
        fn merging_with_a_side_that_did_nothing_is_the_other(base in text(), other in text()) {
            prop_assert_eq!(merge(&base, &base, &other), Some(other.clone()));
            prop_assert_eq!(merge(&base, &other, &base), Some(other));
        }
    }
}
