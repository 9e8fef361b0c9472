//! Which image: registry, repository, and tag or digest, each in the form that the specification of
//! registries has.

use std::fmt;

use canonical::Host;

use crate::digest::{Digest, DigestError};

/// As the specification says, and what a path in a URL can bear.
const LONGEST_REPOSITORY: usize = 255;
const LONGEST_TAG: usize = 128;

/// Why a text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not `host` or `host:port`.
    #[error("{0:?} is not a registry: it is a host, or host:port")]
    Registry(String),
    /// Not a path of lower-case names.
    #[error(
        "{0:?} is not a repository: it is a path of lower-case letters, digits, `.`, `_` and `-`"
    )]
    Repository(String),
    /// Not a tag.
    #[error("{0:?} is not a tag: it has letters, digits, `_`, `.` and `-`, {LONGEST_TAG} at most")]
    Tag(String),
    /// Not a digest.
    #[error("{0:?} is not a digest: {1}")]
    Digest(String, DigestError),
}

/// A tag, which may mean something else tomorrow, or a digest, which may not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Version {
    /// What the registry calls so now.
    Tag(String),
    /// These bytes.
    Digest(Digest),
}

impl Version {
    /// Reads `sha256:…` as a digest and everything else as a tag.
    ///
    /// # Errors
    /// `NameError`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.contains(':') {
            return match text.parse() {
                Ok(digest) => Ok(Self::Digest(digest)),
                Err(error) => Err(NameError::Digest(text.into(), error)),
            };
        }
        let mut bytes = text.bytes();
        let begins = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let goes_on = bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
        match begins && goes_on && text.len() <= LONGEST_TAG {
            true => Ok(Self::Tag(text.into())),
            false => Err(NameError::Tag(text.into())),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// A repository of a registry, in one spelling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    registry: String,
    repository: String,
}

impl Source {
    /// Checks both. A registry is a host in lower case, with its port where one was given.
    ///
    /// # Errors
    /// `NameError`.
    pub fn new(registry: &str, repository: &str) -> Result<Self, NameError> {
        let part = |part: &str| {
            let ends = |byte: Option<u8>| {
                byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
            };
            let inner = |byte: u8| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte)
            };
            ends(part.bytes().next()) && ends(part.bytes().last()) && part.bytes().all(inner)
        };
        let is_path = !repository.is_empty()
            && repository.len() <= LONGEST_REPOSITORY
            && !repository.contains("..")
            && repository.split('/').all(part);
        if !is_path {
            return Err(NameError::Repository(repository.into()));
        }
        Ok(Self { registry: host(registry)?, repository: repository.into() })
    }

    /// `host` or `host:port`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// A path without a slash at either end.
    pub fn repository(&self) -> &str {
        &self.repository
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)
    }
}

/// `host` or `host:port` in one spelling; the port of https is left out.
pub(crate) fn host(text: &str) -> Result<String, NameError> {
    let wrong = |_| NameError::Registry(text.into());
    let authority = canonical::Authority::parse(text, 443).map_err(wrong)?;
    Ok(origin(&authority.host, authority.port))
}

/// The one spelling of a host and a port.
pub(crate) fn origin(host: &Host, port: u16) -> String {
    if port == 443 { host.to_string() } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_has_one_spelling() {
        for (text, canonical) in [
            ("GHCR.io", "ghcr.io"),
            ("ghcr.io:443", "ghcr.io"),
            ("localhost:5000", "localhost:5000"),
            ("[::1]:5000", "[::1]:5000"),
            ("ghcr.io.", "ghcr.io"),
        ] {
            assert_eq!(Source::new(text, "a/b").unwrap().registry(), canonical);
        }
        for text in ["", "a b", "a/b", "user@host", "host:", "host:0", "https://host", "127.1"] {
            assert!(Source::new(text, "a").is_err(), "{text}");
        }
    }

    #[test]
    fn a_repository_leaves_its_path_nowhere() {
        for text in ["python", "library/python", "a-b/c_d/e.f", "a__b"] {
            assert!(Source::new("h", text).is_ok(), "{text}");
        }
        for text in
            ["", "/a", "a/", "a//b", "..", "a/../b", "A", "a?b", "a%2fb", "a b", "a#b", ".a", "a-"]
        {
            assert!(Source::new("h", text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_version_is_a_tag_or_a_digest() {
        assert_eq!(Version::parse("3.12-slim"), Ok(Version::Tag("3.12-slim".into())));
        let digest = Digest::of(b"x");
        assert_eq!(Version::parse(&digest.to_string()), Ok(Version::Digest(digest)));
        let long = "a".repeat(129);
        for text in ["", ".a", "-a", "a/b", "a b", "sha256:12", "a:b", &long] {
            assert!(Version::parse(text).is_err(), "{text}");
        }
    }
}
