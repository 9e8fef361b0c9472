//! Takes secrets out of what comes back to a guest, in every form and however it is cut.
//!
//! A [`Redactor`] knows some secrets and the placeholder of each. What it replaces has the length of
//! what was there, so that lengths and offsets around it stay true. A [`Stream`] takes bytes as they
//! come and holds back only what may be the beginning of a secret, so that text that has nothing to do
//! with one is never late.
//!
//! Covered are the secret as it is, in hexadecimal, in base64 of both alphabets wherever it stands in
//! what was encoded, percent-encoded, and escaped as in JSON. A server that transforms it otherwise, by
//! compression or by turning it round, is not.
#![forbid(unsafe_code)]

mod forms;

use std::fmt;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, Anchored, Input, MatchKind};
use wire::text::Secret;
use zeroize::Zeroizing;

/// Shorter ones are words that a text may have by chance.
pub const SHORTEST: usize = 8;

/// Why there is no redactor for these secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedactError {
    /// It would be found in texts that have nothing to do with it.
    #[error("a secret of less than {SHORTEST} bytes cannot be told from other text")]
    Short,
    /// The forms are too many or too long.
    #[error("the secrets are too long to be looked for: {0}")]
    Automaton(String),
}

/// A secret, and what a guest sees in its stead.
#[derive(Debug)]
pub struct Covered<'a> {
    /// What is not to be seen.
    pub secret: &'a Secret,
    /// What takes its place: cut, or filled up with `*`, to its length.
    pub placeholder: &'a [u8],
}

/// Knows what to look for.
pub struct Redactor {
    automaton: AhoCorasick,
    patterns: Vec<Pattern>,
    longest: usize,
    shortest: usize,
    /// The bytes that patterns begin with.
    first: [bool; 256],
}

struct Pattern {
    text: Zeroizing<Vec<u8>>,
    replacement: Vec<u8>,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redactor").field("patterns", &self.patterns.len()).finish_non_exhaustive()
    }
}

impl Redactor {
    /// One for these secrets.
    ///
    /// # Errors
    /// `RedactError`.
    pub fn new<'a>(covered: impl IntoIterator<Item = Covered<'a>>) -> Result<Self, RedactError> {
        let mut patterns: Vec<Pattern> = Vec::new();
        for Covered { secret, placeholder } in covered {
            if secret.expose().len() < SHORTEST {
                return Err(RedactError::Short);
            }
            for form in forms::of(secret.expose()) {
                if patterns.iter().any(|pattern| *pattern.text == *form.text) {
                    continue;
                }
                let mut replacement = match form.is_plain {
                    true => placeholder.to_vec(),
                    false => Vec::new(),
                };
                replacement.resize(form.text.len(), b'*');
                patterns.push(Pattern { text: form.text, replacement });
            }
        }
        // The first that begins, and of those the longest.
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(patterns.iter().map(|pattern| pattern.text.as_slice()))
            .map_err(|error| RedactError::Automaton(error.to_string()))?;
        let longest = patterns.iter().map(|pattern| pattern.text.len()).max().unwrap_or(0);
        let shortest = patterns.iter().map(|pattern| pattern.text.len()).min().unwrap_or(1);
        let mut first = [false; 256];
        for byte in patterns.iter().filter_map(|pattern| pattern.text.first()) {
            first[usize::from(*byte)] = true;
        }
        Ok(Self { automaton, patterns, longest, shortest, first })
    }

    /// Replaces in place, and tells how often: for text that is there as a whole.
    pub fn replace(&self, text: &mut [u8]) -> usize {
        let mut count = 0;
        let mut from = 0;
        while let Some(found) = self.find(text, from) {
            text[found.start..found.end].copy_from_slice(&self.patterns[found.pattern].replacement);
            from = found.end;
            count += 1;
        }
        count
    }

    /// For text that comes in pieces.
    pub fn stream(self: Arc<Self>) -> Stream {
        Stream { redactor: self, held: Zeroizing::default(), count: 0 }
    }

    /// Whether there is anything to replace, for text that is there as a whole.
    pub fn is_in(&self, text: &[u8]) -> bool {
        text.len() >= self.shortest && self.find(text, 0).is_some()
    }

    fn find(&self, text: &[u8], from: usize) -> Option<Found> {
        let input = Input::new(text).range(from..).anchored(Anchored::No);
        let found = self.automaton.find(input)?;
        Some(Found { start: found.start(), end: found.end(), pattern: found.pattern().as_usize() })
    }

    /// Where the part of `text` begins that may become a secret with what comes next.
    fn undecided(&self, text: &[u8]) -> usize {
        let first = text.len().saturating_sub(self.longest.saturating_sub(1));
        let begins = |rest: &[u8]| {
            self.patterns
                .iter()
                .any(|pattern| pattern.text.len() > rest.len() && pattern.text.starts_with(rest))
        };
        (first..text.len())
            .find(|&at| self.first[usize::from(text[at])] && begins(&text[at..]))
            .unwrap_or(text.len())
    }
}

struct Found {
    start: usize,
    end: usize,
    pattern: usize,
}

/// Text on its way.
#[derive(Debug)]
pub struct Stream {
    redactor: Arc<Redactor>,
    held: Zeroizing<Vec<u8>>,
    count: usize,
}

impl Stream {
    /// Takes the next piece, where all that is certain of it is its first bytes as they are: how many.
    /// Otherwise it takes nothing, and the piece is to be pushed.
    pub fn untouched(&mut self, piece: &[u8]) -> Option<usize> {
        if !self.held.is_empty() || self.redactor.find(piece, 0).is_some() {
            return None;
        }
        let undecided = self.redactor.undecided(piece);
        self.held.extend_from_slice(&piece[undecided..]);
        Some(undecided)
    }

    /// Takes the next piece and adds to `out` what is certain.
    pub fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        let mut text = std::mem::take(&mut self.held);
        text.extend_from_slice(piece);
        let undecided = self.redactor.undecided(&text);
        let mut from = 0;
        // What begins later may turn out to be a longer one.
        while let Some(found) = self.redactor.find(&text, from).filter(|at| at.start < undecided) {
            out.extend_from_slice(&text[from..found.start]);
            out.extend_from_slice(&self.redactor.patterns[found.pattern].replacement);
            self.count += 1;
            from = found.end;
        }
        let end = undecided.max(from);
        out.extend_from_slice(&text[from..end]);
        self.held.extend_from_slice(&text[end..]);
    }

    /// There is no more: adds what was held back.
    pub fn finish(mut self, out: &mut Vec<u8>) -> usize {
        let count = self.redactor.replace(&mut self.held);
        out.extend_from_slice(&self.held);
        self.count + count
    }

    /// How many bytes are held back.
    pub fn held(&self) -> usize {
        self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &str = "sk-live/9f+\"\\Zq";

    fn secret(text: &str) -> Secret {
        Secret::new(text.as_bytes().to_vec()).unwrap()
    }

    fn redactor(secrets: &[&str]) -> Arc<Redactor> {
        let secrets: Vec<_> = secrets.iter().map(|text| secret(text)).collect();
        let covered = secrets.iter().map(|secret| Covered { secret, placeholder: b"PLACEHOLDER" });
        Arc::new(Redactor::new(covered).unwrap())
    }

    fn replaced(redactor: &Redactor, text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        redactor.replace(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_length_stays() {
        let redactor = redactor(&["0123456789abcdef", "short-key"]);
        assert_eq!(replaced(&redactor, "a 0123456789abcdef b"), "a PLACEHOLDER***** b");
        assert_eq!(replaced(&redactor, "short-key"), "PLACEHOLD");
    }

    #[test]
    fn every_form_goes() {
        use base64::Engine as _;
        use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
        let redactor = redactor(&[SECRET]);
        let hex: String = SECRET.bytes().map(|byte| format!("{byte:02x}")).collect();
        for text in [
            SECRET.to_owned(),
            hex.clone(),
            hex.to_uppercase(),
            "sk-live%2F9f%2B%22%5CZq".into(),
            "sk-live%2f9f%2b%22%5cZq".into(),
            r#"sk-live/9f+\"\\Zq"#.into(),
            r#"sk-live\/9f+\"\\Zq"#.into(),
        ] {
            assert!(!replaced(&redactor, &text).contains("live"), "{text}");
            assert!(!replaced(&redactor, &text).contains("6c697665"), "{text}");
        }
        for before in ["", "u", "us", "use", "user:"] {
            for engine in [&STANDARD, &URL_SAFE_NO_PAD] {
                let encoded = engine.encode(format!("{before}{SECRET}{before}"));
                let shown = replaced(&redactor, &encoded);
                let decodable = shown.replace('*', "A");
                let bytes = engine.decode(decodable).unwrap();
                let seen = String::from_utf8_lossy(&bytes).into_owned();
                let longest = (0..SECRET.len())
                    .filter(|&at| SECRET.is_char_boundary(at))
                    .flat_map(|at| (at..=SECRET.len()).map(move |end| &SECRET[at..end]))
                    .filter(|part| seen.contains(part))
                    .map(str::len)
                    .max();
                assert!(longest <= Some(2), "{before}: {seen}");
            }
        }
    }

    #[test]
    fn what_is_no_secret_is_not_late() {
        let redactor = redactor(&["0123456789abcdef"]);
        let (mut stream, mut out) = (redactor.stream(), Vec::new());
        stream.push(b"data: hello\n\n", &mut out);
        assert_eq!(out, b"data: hello\n\n");
        stream.push(b"data: 0123", &mut out);
        assert_eq!(stream.held(), 4);
        stream.push(b"!", &mut out);
        assert_eq!((stream.held(), out.ends_with(b"data: 0123!")), (0, true));
    }

    #[test]
    fn what_has_nothing_to_do_with_a_secret_is_not_copied() {
        let redactor = redactor(&["0123456789abcdef"]);
        let mut stream = redactor.clone().stream();
        assert_eq!(stream.untouched(b"data: hello\n"), Some(12));
        assert_eq!((stream.untouched(b"data: 0123"), stream.held()), (Some(6), 4));
        // What was held back belongs before what comes.
        assert_eq!((stream.untouched(b"!"), stream.held()), (None, 4));
        assert!(redactor.is_in(b"a 0123456789abcdef b") && !redactor.is_in(b"0123456789abcde"));
        assert_eq!(redactor.stream().untouched(b"a 0123456789abcdef b"), None);
    }

    #[test]
    fn a_short_secret_is_refused() {
        let short = secret("1234567");
        let covered = [Covered { secret: &short, placeholder: b"" }];
        assert_eq!(Redactor::new(covered).unwrap_err(), RedactError::Short);
    }

    #[test]
    fn debug_shows_none() {
        assert!(!format!("{:?}", redactor(&["0123456789abcdef"])).contains("0123"));
    }

    /// Texts in which secrets, and parts of them, stand close together.
    fn texts() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            Just("abcabcabd".to_owned()),
            Just("abcabcab".to_owned()),
            Just("bcabdabcabx".to_owned()),
            Just("abcabdabcabx".to_owned()),
            "[abcdx]{0,4}",
        ];
        proptest::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn however_it_is_cut_it_is_the_same(text in texts(), cuts in proptest::collection::vec(1_usize..6, 0..40)) {
            let redactor = redactor(&["abcabcabd", "bcabdabcabx"]);
            let mut whole = text.clone().into_bytes();
            let count = redactor.replace(&mut whole);

            let (mut stream, mut out) = (redactor.stream(), Vec::new());
            let mut rest = text.as_bytes();
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                // In every other place as it is passed on without a copy.
                match (cut % 2 == 0).then(|| stream.untouched(piece)).flatten() {
                    Some(count) => out.extend_from_slice(&piece[..count]),
                    None => stream.push(piece, &mut out),
                }
                rest = after;
            }
            stream.push(rest, &mut out);
            prop_assert_eq!(stream.finish(&mut out), count);
            prop_assert_eq!(&out, &whole);
            let out = String::from_utf8(out).unwrap();
            prop_assert!(!out.contains("abcabcabd") && !out.contains("bcabdabcabx"));
        }
    }
}
