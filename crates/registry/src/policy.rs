//! Who may be asked for what.

use std::fmt;
use std::str::FromStr;

use crate::name::Source;

/// What a host is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The registry itself, or the endpoint that configuration has in its place.
    Registry,
    /// A token for this repository.
    Token,
    /// Content that the registry has elsewhere. Goes without any credential.
    Redirect,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Registry => "as the registry",
            Self::Token => "for a token",
            Self::Redirect => "for content that the registry has there",
        })
    }
}

/// A contact that is about to be made.
#[derive(Debug, Clone, Copy)]
pub struct Contact<'a> {
    /// For which image, in one spelling.
    pub source: &'a Source,
    /// Who is contacted: `host`, with its port where that is not 443.
    pub host: &'a str,
    /// For what.
    pub purpose: Purpose,
}

/// Asked before each contact.
pub trait Allow: Send + Sync {
    /// Whether it may be.
    ///
    /// # Errors
    /// The reason, with the rule that decided, for the person who asked.
    fn allow(&self, contact: &Contact<'_>) -> Result<(), String>;
}

/// A pattern over `registry/repository`. `*` stands for what has no slash, `**` for anything; without
/// a slash it is of the registry alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pattern(String);

/// The text is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a pattern of images: docker.io/library/*, ghcr.io/acme/** and *.example.com are"
)]
pub struct PatternError(String);

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let wrong = || PatternError(text.into());
        let is_known = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-/:*[]".contains(&byte)
        };
        let (registry, repository) = text.split_once('/').unwrap_or((text, "**"));
        let fits = text.len() <= 512
            && text.bytes().all(is_known)
            && !text.contains("***")
            && !registry.is_empty()
            && (registry != "**" || !text.contains('/'))
            && !repository.split('/').any(str::is_empty);
        let stars = text.bytes().filter(|&byte| byte == b'*').count();
        if !fits || stars > 8 {
            return Err(wrong());
        }
        let registry = match registry.contains('*') {
            true => registry.to_owned(),
            false => crate::name::host(registry).map_err(|_| wrong())?,
        };
        Ok(Self(format!("{registry}/{repository}")))
    }
}

impl Pattern {
    /// Whether it is of this image.
    pub fn matches(&self, source: &Source) -> bool {
        matches(self.0.as_bytes(), source.to_string().as_bytes())
    }

    /// The longer a pattern, the nearer it is.
    pub(crate) fn length(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Both are short, and stars are few.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', b'*', rest @ ..] => (0..=text.len()).any(|skipped| matches(rest, &text[skipped..])),
        [b'*', rest @ ..] => {
            let segment = text.iter().position(|&byte| byte == b'/').unwrap_or(text.len());
            (0..=segment).any(|skipped| matches(rest, &text[skipped..]))
        }
        [first, rest @ ..] => text.first() == Some(first) && matches(rest, &text[1..]),
    }
}

/// Patterns that allow and patterns that deny; denying wins. Hosts that a registry sends for content
/// or a token are judged with the image that they are asked for.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// What may be pulled; everything where nothing is said.
    pub allow: Option<Vec<Pattern>>,
    /// What may not.
    pub deny: Vec<Pattern>,
}

impl Allow for Rules {
    fn allow(&self, contact: &Contact<'_>) -> Result<(), String> {
        let source = contact.source;
        if let Some(pattern) = self.deny.iter().find(|pattern| pattern.matches(source)) {
            return Err(format!("{source} is denied by the pattern {pattern}"));
        }
        match &self.allow {
            None => Ok(()),
            Some(allow) if allow.iter().any(|pattern| pattern.matches(source)) => Ok(()),
            Some(allow) if allow.is_empty() => Err("no registry is allowed".into()),
            Some(_) => Err(format!("{source} is of no pattern that is allowed")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pattern: &str, registry: &str, repository: &str) -> bool {
        let pattern: Pattern = pattern.parse().unwrap();
        pattern.matches(&Source::new(registry, repository).unwrap())
    }

    #[test]
    fn a_star_stays_within_its_part() {
        assert!(of("docker.io/library/*", "docker.io", "library/python"));
        assert!(!of("docker.io/library/*", "docker.io", "library/a/b"));
        assert!(of("docker.io/**", "docker.io", "library/a/b"));
        assert!(of("*.example.com", "r.example.com", "a/b"));
        assert!(!of("*.example.com", "example.com", "a"));
        assert!(!of("*.example.com", "evil.net", "r.example.com/a"));
        assert!(of("ghcr.io", "ghcr.io", "a/b"));
        assert!(!of("ghcr.io", "ghcr.io:5000", "a/b"));
        assert!(of("localhost:5000/a", "localhost:5000", "a"));
        assert!(of("GHCR.io".to_lowercase().as_str(), "GHCR.io", "a"));
        assert!(of("*", "anything", "a"));
        assert!(of("**", "anything", "a/b"));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in ["", "/a", "a/", "a//b", "A/b", "***", "a b", "**/x", "a/?"] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn denying_wins_and_an_empty_list_allows_nothing() {
        let source = Source::new("docker.io", "library/python").unwrap();
        let contact = Contact { source: &source, host: "docker.io", purpose: Purpose::Registry };
        let pattern = |text: &str| text.parse::<Pattern>().unwrap();
        let mut rules = Rules::default();
        assert_eq!(rules.allow(&contact), Ok(()));
        rules.allow = Some(vec![pattern("docker.io")]);
        assert_eq!(rules.allow(&contact), Ok(()));
        rules.deny = vec![pattern("docker.io/library/**")];
        assert!(rules.allow(&contact).unwrap_err().contains("docker.io/library/**"));
        let nothing = Rules { allow: Some(Vec::new()), deny: Vec::new() };
        assert!(nothing.allow(&contact).is_err());
    }
}
