//! Patterns: `*` is any characters within one label or segment, `**` any number of them.

use std::fmt;

/// A pattern of one label, segment or word.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Glob {
    /// Exactly this.
    Literal(Box<str>),
    /// `*`: anything, but not nothing.
    Any,
    /// What stands before, between and after the stars; any characters for each, also none.
    Parts(Box<[Box<str>]>),
}

impl Glob {
    /// Reads a pattern, whose literal parts `decode` turns into what is compared.
    pub(crate) fn new(text: &str, decode: impl Fn(&str) -> String) -> Self {
        if text == "*" {
            return Self::Any;
        }
        let mut parts = text.split('*').map(|part| decode(part).into_boxed_str());
        match text.contains('*') {
            true => Self::Parts(parts.collect()),
            false => Self::Literal(parts.next().unwrap_or_default()),
        }
    }

    /// `folded` compares without case, as far as ASCII goes.
    pub(crate) fn matches(&self, text: &str, folded: bool) -> bool {
        match self {
            Self::Literal(literal) if folded => literal.eq_ignore_ascii_case(text),
            Self::Literal(literal) => **literal == *text,
            // What is compared without case is a deny's, and those take in more.
            Self::Any => folded || !text.is_empty(),
            Self::Parts(parts) => matches_parts(parts, text.as_bytes(), folded),
        }
    }

    /// Whether everything that `other` matches is matched. May say no where it is so.
    pub(crate) fn covers(&self, other: &Self, folded: bool) -> bool {
        match (self, other) {
            (_, Self::Literal(literal)) => self.matches(literal, folded),
            (Self::Any, Self::Any) => true,
            // `a*` is never nothing, while `**` within one label cannot be written.
            (Self::Any, Self::Parts(parts)) => folded || parts.iter().any(|part| !part.is_empty()),
            (Self::Parts(one), Self::Parts(other)) => {
                let same =
                    |a: &str, b: &str| if folded { a.eq_ignore_ascii_case(b) } else { a == b };
                one.len() == other.len() && one.iter().zip(other).all(|(a, b)| same(a, b))
            }
            (Self::Literal(_) | Self::Parts(_), _) => false,
        }
    }

    /// How many characters are fixed.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Literal(literal) => literal.len() + 1,
            Self::Any => 0,
            Self::Parts(parts) => parts.iter().map(|part| part.len()).sum(),
        }
    }
}

fn matches_parts(parts: &[Box<str>], text: &[u8], folded: bool) -> bool {
    let same = |a: &[u8], b: &[u8]| if folded { a.eq_ignore_ascii_case(b) } else { a == b };
    let [first, middle @ .., last] = parts else { return false };
    let (first, last) = (first.as_bytes(), last.as_bytes());
    if text.len() < first.len() + last.len()
        || !same(&text[..first.len()], first)
        || !same(&text[text.len() - last.len()..], last)
    {
        return false;
    }
    let mut rest = &text[first.len()..text.len() - last.len()];
    for part in middle {
        let part = part.as_bytes();
        if part.is_empty() {
            continue;
        }
        // The first place is as good as any: what follows has the most room behind it.
        match rest.windows(part.len()).position(|window| same(window, part)) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

/// One step of a sequence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Step {
    /// One label or segment.
    One(Glob),
    /// `**`: any number of them, also none.
    Many,
}

impl Step {
    fn matches(&self, text: &str, folded: bool) -> bool {
        match self {
            Self::One(glob) => glob.matches(text, folded),
            Self::Many => true,
        }
    }
}

/// A pattern of a whole host or path, with its text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Sequence {
    text: Box<str>,
    steps: Box<[Step]>,
}

/// `**` together with other characters.
#[derive(Debug)]
pub(crate) struct Mixed;

impl Sequence {
    /// Reads the parts of `text` between separators. `text` itself is what [`fmt::Display`] shows.
    pub(crate) fn new<'a>(
        text: &str,
        parts: impl Iterator<Item = &'a str>,
        decode: impl Fn(&str) -> String,
    ) -> Result<Self, Mixed> {
        let mut steps = Vec::new();
        for part in parts {
            match part {
                // Two of them are no more than one.
                "**" if steps.last() == Some(&Step::Many) => {}
                "**" => steps.push(Step::Many),
                part if part.contains("**") => return Err(Mixed),
                part => steps.push(Step::One(Glob::new(part, &decode))),
            }
        }
        Ok(Self { text: text.into(), steps: steps.into() })
    }

    /// Of steps that were read before.
    pub(crate) fn of(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { text: "".into(), steps: steps.into_iter().collect() }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Whether it matches everything.
    pub(crate) fn is_everything(&self) -> bool {
        *self.steps == [Step::Many]
    }

    pub(crate) fn matches<S: AsRef<str>>(&self, parts: &[S], folded: bool) -> bool {
        matches(&self.steps, parts, folded)
    }

    /// Whether everything that `other` matches is matched. May say no where it is so.
    pub(crate) fn covers(&self, other: &Self, folded: bool) -> bool {
        covers(&self.steps, &other.steps, folded)
    }

    pub(crate) fn weight(&self) -> usize {
        let weight = |step: &Step| match step {
            Step::One(glob) => glob.weight() + 1,
            Step::Many => 0,
        };
        self.steps.iter().map(weight).sum()
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// In time of steps by parts, whatever the pattern: only the last `**` is ever tried again.
pub(crate) fn matches<S: AsRef<str>>(steps: &[Step], parts: &[S], folded: bool) -> bool {
    let (mut step, mut part) = (0, 0);
    let mut again: Option<(usize, usize)> = None;
    while part < parts.len() {
        match steps.get(step) {
            Some(Step::Many) => {
                again = Some((step, part));
                step += 1;
            }
            Some(one) if one.matches(parts[part].as_ref(), folded) => {
                step += 1;
                part += 1;
            }
            _ => match &mut again {
                Some((many, taken)) => {
                    *taken += 1;
                    (step, part) = (*many + 1, *taken);
                }
                None => return false,
            },
        }
    }
    steps[step..].iter().all(|step| *step == Step::Many)
}

/// From the ends on, each pair of rests once: patterns of a project are not trusted to be simple.
fn covers(one: &[Step], other: &[Step], folded: bool) -> bool {
    let width = other.len() + 1;
    // Whether what begins at a step of `one` covers what begins at a step of `other`.
    let mut below: Vec<bool> = Vec::new();
    for step in (0..=one.len()).rev() {
        let mut row = vec![false; width];
        for at in (0..width).rev() {
            row[at] = match (one.get(step), other.get(at)) {
                (None, None) => true,
                (None, Some(_)) | (Some(Step::One(_)), None | Some(Step::Many)) => false,
                (Some(Step::Many), None) => below[at],
                // Either it takes nothing, or one step of the other, a `**` among them.
                (Some(Step::Many), Some(_)) => below[at] || row[at + 1],
                (Some(Step::One(a)), Some(Step::One(b))) => a.covers(b, folded) && below[at + 1],
            };
        }
        below = row;
    }
    below[0]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn glob(text: &str) -> Glob {
        Glob::new(text, str::to_owned)
    }

    fn sequence(text: &str) -> Sequence {
        Sequence::new(text, text.split('/'), str::to_owned).unwrap()
    }

    fn is_match(pattern: &str, text: &str) -> bool {
        let parts: Vec<&str> = if text.is_empty() { Vec::new() } else { text.split('/').collect() };
        sequence(pattern).matches(&parts, false)
    }

    #[test]
    fn a_star_is_within_one_segment() {
        assert!(is_match("a/*/c", "a/b/c"));
        assert!(!is_match("a/*/c", "a/b/b/c"));
        assert!(!is_match("a/*", "a"));
        assert!(!is_match("a/*", "a/"));
        assert!(is_match("a/b*", "a/b"));
        assert!(is_match("a/*b*c*", "a/xbyycz"));
        assert!(!is_match("a/b*b", "a/b"));
    }

    #[test]
    fn two_stars_are_any_number_of_segments_also_none() {
        for text in ["a", "a/", "a/b", "a/b/c/d"] {
            assert!(is_match("a/**", text), "{text}");
        }
        assert!(is_match("a/**/z", "a/z"));
        assert!(is_match("a/**/z", "a/z/z"));
        assert!(is_match("**/z", "x/y/z"));
        assert!(is_match("a/**/m/**/z", "a/m/x/m/y/z"));
        assert!(!is_match("a/**/m/**/z", "a/x/z"));
        assert!(!is_match("a/**", "ab"));
        assert!(is_match("**", ""));
    }

    #[test]
    fn one_pattern_covers_another() {
        for (one, other) in [
            ("**", "a/b"),
            ("**", "**"),
            ("a/**", "a"),
            ("a/**", "a/**/b"),
            ("a/*", "a/b*"),
            ("a/**/c", "a/b/c"),
            ("**/x/**", "a/**/x"),
        ] {
            assert!(sequence(one).covers(&sequence(other), false), "{one} {other}");
        }
        for (one, other) in
            [("a/*", "a/**"), ("a/b", "a/*"), ("a/**/c", "a/**"), ("a/b*", "a/*"), ("a/*", "a")]
        {
            assert!(!sequence(one).covers(&sequence(other), false), "{one} {other}");
        }
    }

    proptest! {
        #[test]
        fn a_glob_means_what_a_regular_expression_would(pattern in "[ab*]{1,8}", text in "[ab]{0,12}") {
            prop_assume!(pattern != "*");
            fn slow(pattern: &[u8], text: &[u8]) -> bool {
                match pattern.split_first() {
                    None => text.is_empty(),
                    Some((b'*', rest)) => (0..=text.len()).any(|at| slow(rest, &text[at..])),
                    Some((byte, rest)) => text.split_first().is_some_and(|(first, after)| first == byte && slow(rest, after)),
                }
            }
            prop_assert_eq!(glob(&pattern).matches(&text, false), slow(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn a_sequence_means_what_trying_everything_says(pattern in "(a|b|\\*|\\*\\*)(/(a|b|\\*|\\*\\*)){0,5}", text in "(a|b)(/(a|b)){0,6}") {
            fn slow(steps: &[Step], parts: &[&str]) -> bool {
                match steps.split_first() {
                    None => parts.is_empty(),
                    Some((Step::Many, rest)) => (0..=parts.len()).any(|at| slow(rest, &parts[at..])),
                    Some((Step::One(glob), rest)) => parts.split_first().is_some_and(|(first, after)| glob.matches(first, false) && slow(rest, after)),
                }
            }
            let parts: Vec<&str> = text.split('/').collect();
            let pattern = sequence(&pattern);
            prop_assert_eq!(pattern.matches(&parts, false), slow(pattern.steps(), &parts));
        }

        #[test]
        fn what_is_covered_is_matched(
            one in "(a|b|a\\*|\\*|\\*\\*)(/(a|b|\\*|\\*\\*)){0,4}",
            other in "(a|b|a\\*|\\*|\\*\\*)(/(a|b|\\*|\\*\\*)){0,4}",
            text in "(a|b|ab)(/(a|b)){0,5}",
        ) {
            let parts: Vec<&str> = text.split('/').collect();
            let (one, other) = (sequence(&one), sequence(&other));
            if one.covers(&other, false) && other.matches(&parts, false) {
                prop_assert!(one.matches(&parts, false));
            }
        }
    }
}
