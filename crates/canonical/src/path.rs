//! What is asked for: the path of a request.

use std::fmt;

use crate::percent::{self, Malformed};

/// Longest path, in bytes.
const MAX_PATH: usize = 8192;

/// What of the ambiguous a service is known to mean in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leniency {
    /// `%2F` and `%5C` are ordinary characters of one segment, as package registries have them.
    pub encoded_separators: bool,
    /// `;` is an ordinary character.
    pub parameters: bool,
    /// Empty segments count.
    pub empty_segments: bool,
}

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It does not begin with `/`.
    #[error("the path does not begin with `/`")]
    Relative,
    /// Longer than any service needs.
    #[error("the path is longer than {MAX_PATH} bytes")]
    TooLong,
    /// A character that has to be encoded in a path, or must not be in one at all.
    #[error(
        "the path has a character that must not be there: a control character, a space, `\\`, `#` or the like"
    )]
    Character,
    /// `%` without two hexadecimal digits.
    #[error("the path has a `%` without two hexadecimal digits")]
    Escape,
    /// What is encoded is not text.
    #[error("the path does not decode to UTF-8")]
    Text,
    /// Encoded twice: decoding once more would give a separator, a dot or another escape.
    #[error("the path is encoded twice")]
    Twice,
    /// `.` or `..`, in any spelling.
    #[error("the path has a segment `.` or `..`")]
    Dots,
    /// An encoded `/` or `\`.
    #[error("the path has an encoded `/` or `\\`")]
    Separator,
    /// `;`, which some servers cut a segment at.
    #[error("the path has a `;`")]
    Parameter,
    /// `//`, which some servers take for one and others for the start of a host.
    #[error("the path has an empty segment")]
    Empty,
}

impl From<Malformed> for PathError {
    fn from(_: Malformed) -> Self {
        Self::Escape
    }
}

/// A path in its one form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path {
    text: String,
    segments: Vec<String>,
}

impl Path {
    /// Reads the path of a request, without its query.
    ///
    /// # Errors
    /// `PathError`.
    pub fn parse(text: &str, leniency: Leniency) -> Result<Self, PathError> {
        if text.len() > MAX_PATH {
            return Err(PathError::TooLong);
        }
        let rest = text.strip_prefix('/').ok_or(PathError::Relative)?;
        let mut path = Self { text: String::with_capacity(text.len()), segments: Vec::new() };
        let mut parts = rest.split('/').peekable();
        while let Some(part) = parts.next() {
            // An empty one at the end is a slash at the end, which is part of the path.
            if part.is_empty() && parts.peek().is_some() && !leniency.empty_segments {
                return Err(PathError::Empty);
            }
            path.text.push('/');
            let segment = segment(part, leniency, &mut path.text)?;
            path.segments.push(segment);
        }
        Ok(path)
    }

    /// As it is sent.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its segments, decoded. A path that ends with a slash has an empty last one.
    pub fn segments(&self) -> &[String] {
        &self.segments
    }
}

/// Reads one segment, adds its form as sent, and gives what it means.
fn segment(part: &str, leniency: Leniency, sent: &mut String) -> Result<String, PathError> {
    let mut bytes = Vec::with_capacity(part.len());
    for step in percent::decoded(part) {
        let (byte, was_encoded) = step?;
        match byte {
            0..=0x1f | 0x7f => return Err(PathError::Character),
            b'/' | b'\\' if was_encoded && !leniency.encoded_separators => {
                return Err(PathError::Separator);
            }
            b';' if !leniency.parameters => return Err(PathError::Parameter),
            _ if !was_encoded && !is_pchar(byte) => return Err(PathError::Character),
            _ => {}
        }
        bytes.push(byte);
        percent::push(sent, byte, was_encoded);
    }
    let segment = String::from_utf8(bytes).map_err(|_| PathError::Text)?;
    // `..;` is `..` to servers that cut at the semicolon, and `..%2F` is to those that decode before
    // they cut.
    if segment.split(['/', '\\', ';']).any(|part| matches!(part, "." | "..")) {
        return Err(PathError::Dots);
    }
    if is_encoded_again(&segment) {
        return Err(PathError::Twice);
    }
    Ok(segment)
}

/// RFC 3986, section 3.3, without the `%`, which [`percent::decoded`] has taken.
fn is_pchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte)
}

fn is_encoded_again(segment: &str) -> bool {
    segment.match_indices('%').any(|(at, _)| {
        let escape = segment.as_bytes().get(at + 1..at + 3).unwrap_or_default();
        let escape = escape.to_ascii_lowercase();
        [&b"2e"[..], b"2f", b"5c", b"25", b"00"].contains(&&escape[..]) || escape.starts_with(b"u")
    })
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn strict(text: &str) -> Result<String, PathError> {
        Path::parse(text, Leniency::default()).map(|path| path.to_string())
    }

    #[test]
    fn a_path_has_one_form() {
        assert_eq!(strict("/repos/acme/web"), Ok("/repos/acme/web".into()));
        assert_eq!(strict("/%72epos/%7Euser"), Ok("/repos/~user".into()));
        assert_eq!(strict("/a%20b/%c3%bc"), Ok("/a%20b/%C3%BC".into()));
        assert_eq!(strict("/"), Ok("/".into()));
        assert_eq!(strict("/a/"), Ok("/a/".into()));
    }

    #[test]
    fn segments_are_decoded_once() {
        let path = Path::parse("/a%20b/50%25/", Leniency::default()).unwrap();
        assert_eq!(path.segments(), ["a b", "50%", ""]);
    }

    #[test]
    fn what_servers_read_differently_is_refused() {
        for (text, error) in [
            ("", PathError::Relative),
            ("*", PathError::Relative),
            ("http://a/", PathError::Relative),
            ("/a/../b", PathError::Dots),
            ("/a/./b", PathError::Dots),
            ("/a/%2e%2E/b", PathError::Dots),
            ("/.%2e/", PathError::Dots),
            ("/..;/", PathError::Parameter),
            ("/;x/", PathError::Parameter),
            ("/a%3bx", PathError::Parameter),
            ("//evil/x", PathError::Empty),
            ("/a//b", PathError::Empty),
            ("/a%2fb", PathError::Separator),
            ("/a%5cb", PathError::Separator),
            ("/a\\b", PathError::Character),
            ("/%252e%252e/", PathError::Twice),
            ("/%25%32%65", PathError::Twice),
            ("/%25u002e", PathError::Twice),
            ("/%c0%ae", PathError::Text),
            ("/%ff", PathError::Text),
            ("/%u002e", PathError::Escape),
            ("/%zz", PathError::Escape),
            ("/%2", PathError::Escape),
            ("/%00", PathError::Character),
            ("/%0d%0a", PathError::Character),
            ("/a b", PathError::Character),
            ("/a#b", PathError::Character),
            ("/a?b", PathError::Character),
            ("/é", PathError::Character),
            ("/{x}", PathError::Character),
        ] {
            assert_eq!(strict(text), Err(error), "{text:?}");
        }
        assert_eq!(strict(&format!("/{}", "a".repeat(MAX_PATH))), Err(PathError::TooLong));
    }

    #[test]
    fn a_service_can_be_known_better() {
        let packages = Leniency { encoded_separators: true, ..Leniency::default() };
        let path = Path::parse("/@scope%2fname", packages).unwrap();
        assert_eq!(
            (path.as_str(), path.segments()),
            ("/@scope%2Fname", &["@scope/name".into()][..])
        );
        for text in ["/..%2f..%2fa/%2e%2e", "/..%2f..%2fa", "/a%2f%2e%2e%5Cb", "/a%2f."] {
            assert_eq!(Path::parse(text, packages), Err(PathError::Dots), "{text}");
        }

        let parameters = Leniency { parameters: true, ..Leniency::default() };
        assert!(Path::parse("/a;v=1", parameters).is_ok());
        assert_eq!(Path::parse("/..;/a", parameters), Err(PathError::Dots));
    }

    proptest! {
        #[test]
        fn what_was_read_is_read_the_same_again(text in "/(\\PC|[a-c./%;0-9]){0,40}", encoded_separators: bool, parameters: bool) {
            let leniency = Leniency { encoded_separators, parameters, ..Leniency::default() };
            if let Ok(path) = Path::parse(&text, leniency) {
                prop_assert_eq!(Path::parse(path.as_str(), leniency), Ok(path));
            }
        }

        #[test]
        fn no_segment_leads_up(text in "/[a./%2eE]{0,30}") {
            if let Ok(path) = Path::parse(&text, Leniency::default()) {
                for segment in path.segments() {
                    prop_assert!(segment != ".." && segment != "." && !segment.contains('/'));
                }
            }
        }
    }
}
