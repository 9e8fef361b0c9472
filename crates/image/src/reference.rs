//! Names of images in registries, in the one spelling that is compared, stored and shown.

use std::fmt;
use std::str::FromStr;

/// Where a name without a registry is looked for, as everybody's tools do.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Where that registry keeps the images that are named by one word.
const DEFAULT_NAMESPACE: &str = "library";
const DEFAULT_TAG: &str = "latest";
/// Of registry and repository together; registries refuse longer ones.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// What an image in a registry is called: `python:3.12-slim`, `host:5000/a/b:tag`, `a@sha256:…`.
///
/// [`Display`](fmt::Display) writes the canonical spelling, in which nothing is left to be
/// understood: `docker.io/library/python:3.12-slim`. Registries are in lower case, for names of
/// hosts are the same in both.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Why a text is no name of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// Nothing was given.
    #[error("the name of an image is empty")]
    Empty,
    /// Registry and repository are too long.
    #[error("the name of an image has over {MAX_NAME} characters")]
    Long,
    /// What should be the registry is no host, or no port.
    #[error("the registry of an image is a host, as in registry.example:5000/name")]
    Registry,
    /// A part of the path has characters that none has.
    #[error(
        "the parts of an image's name have lower-case letters and digits, with '.', '_', '__' or \
         '-' between them"
    )]
    Repository,
    /// What follows the colon is no tag.
    #[error(
        "a tag has up to {MAX_TAG} letters, digits, '_', '.' and '-', none of the last two first"
    )]
    Tag,
    /// What follows the at sign is no digest.
    #[error("a digest is sha256: and 64 hexadecimal digits in lower case")]
    Digest,
    /// It would be taken for a digest.
    #[error("64 hexadecimal digits are a digest, not a name; write NAME@sha256:DIGEST")]
    Identifier,
}

impl Reference {
    /// The host of the registry, with its port where it has one: `docker.io`, `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path in the registry: `library/python`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, where one was given, or neither tag nor digest: then it is `latest`.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// `sha256:…`, where one was given. It decides, whatever the tag says.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// What a registry is asked for: the digest, or else the tag.
    pub fn version(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or(DEFAULT_TAG)
    }

    /// As people write it: without what is understood.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let path = full.strip_prefix("docker.io/").unwrap_or(&full);
        let name = path.strip_prefix("library/").unwrap_or(path);
        // The first part of a path can look like a host, and then has to be one.
        let mut shorter = [name, path]
            .into_iter()
            .flat_map(|text| [text.strip_suffix(":latest").unwrap_or(text), text]);
        let same = |text: &&str| text.parse().as_ref() == Ok(self);
        shorter.find(same).unwrap_or(&full).to_owned()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    /// By the rules of docker. A digest of another kind than SHA-256 is refused: nothing here
    /// could check it.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if is_hex(text) {
            return Err(ReferenceError::Identifier);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return Err(ReferenceError::Digest);
        }
        // A colon before a slash belongs to a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag);
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if is_host_like(first) => (registry(first)?, path),
            _ => (DEFAULT_REGISTRY.to_owned(), name),
        };
        if !path.split('/').all(is_component) {
            return Err(ReferenceError::Repository);
        }
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("{DEFAULT_NAMESPACE}/{path}")
        } else {
            path.to_owned()
        };
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return Err(ReferenceError::Long);
        }
        let tag = if digest.is_none() { tag.or(Some(DEFAULT_TAG)) } else { tag };
        Ok(Self {
            registry,
            repository,
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }
}

/// Whether the first part of a name is a registry: it has what the part of a path has not.
fn is_host_like(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':'])
        || first.contains(|c: char| c.is_ascii_uppercase())
}

fn registry(text: &str) -> Result<String, ReferenceError> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            address.parse::<std::net::Ipv6Addr>().map_err(|_| ReferenceError::Registry)?;
            let port = if port.is_empty() { None } else { Some(port.strip_prefix(':')) };
            (&text[..address.len() + 2], port.map(|port| port.unwrap_or_default()))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    // One number, one spelling.
    let is_port = |port: &str| {
        !port.starts_with('0')
            && port.bytes().all(|b| b.is_ascii_digit())
            && port.parse::<u16>().is_ok()
    };
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.first().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    if !port.is_none_or(is_port) || !(host.starts_with('[') || host.split('.').all(is_label)) {
        return Err(ReferenceError::Registry);
    }
    let registry = text.to_ascii_lowercase();
    if !is_host_like(&registry) {
        // `Host/a` would be another image in lower case.
        return Err(ReferenceError::Registry);
    }
    // The name by which its index was once reached.
    Ok(if registry == "index.docker.io" { DEFAULT_REGISTRY.to_owned() } else { registry })
}

/// Lower-case words with `.`, `_`, `__` or any number of `-` between them.
fn is_component(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut rest = text.as_bytes();
    loop {
        let word = rest.iter().take_while(|&&b| is_word(b)).count();
        if word == 0 {
            return false;
        }
        rest = &rest[word..];
        if rest.is_empty() {
            return true;
        }
        let between = rest.iter().take_while(|&&b| !is_word(b)).count();
        match &rest[..between] {
            b"." | b"_" | b"__" => {}
            dashes if dashes.iter().all(|&b| b == b'-') => {}
            _ => return false,
        }
        rest = &rest[between..];
    }
}

fn is_tag(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|b| is_word(b) || b == b'.' || b == b'-')
}

/// `sha256:` and 64 hexadecimal digits in lower case.
pub(crate) fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_hex)
}

fn is_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn canonical(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn what_is_understood_is_written_out() {
        let digest = format!("sha256:{HEX}");
        for (given, canonically) in [
            ("python", "docker.io/library/python:latest"),
            ("python:3.12-slim", "docker.io/library/python:3.12-slim"),
            ("acme/tool", "docker.io/acme/tool:latest"),
            ("docker.io/python", "docker.io/library/python:latest"),
            ("index.docker.io/python", "docker.io/library/python:latest"),
            ("Index.Docker.IO/a/b", "docker.io/a/b:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("host:5000/a/b:tag", "host:5000/a/b:tag"),
            ("GHCR.io/acme/x_y__z--w.v", "ghcr.io/acme/x_y__z--w.v:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
        ] {
            assert_eq!(canonical(given), canonically, "{given}");
        }
        assert_eq!(canonical(&format!("a@{digest}")), format!("docker.io/library/a@{digest}"));
        assert_eq!(canonical(&format!("a:1@{digest}")), format!("docker.io/library/a:1@{digest}"));
    }

    #[test]
    fn a_digest_decides_and_a_tag_is_asked_for_else() {
        let both: Reference = format!("a:1@sha256:{HEX}").parse().unwrap();
        assert_eq!((both.version(), both.tag()), (&*format!("sha256:{HEX}"), Some("1")));
        assert_eq!("a".parse::<Reference>().unwrap().version(), "latest");
    }

    #[test]
    fn what_is_no_name_is_refused_for_what_is_wrong_with_it() {
        use ReferenceError::{Digest, Empty, Identifier, Long, Registry, Repository, Tag};
        let (long, long_tag) = ("a".repeat(300), format!("a:{}", "t".repeat(129)));
        let upper = format!("a@sha256:{}", HEX.to_uppercase());
        for (given, error) in [
            ("", Empty),
            (HEX, Identifier),
            (&*long, Long),
            ("Python", Repository),
            ("a//b", Repository),
            ("a/", Repository),
            ("/a", Repository),
            ("a___b", Repository),
            ("a._b", Repository),
            ("-a", Repository),
            ("a b", Repository),
            ("a\u{202e}b", Repository),
            ("a/../b", Repository),
            ("host:05000/a", Registry),
            ("host:65536/a", Registry),
            ("host:/a", Registry),
            ("user@host/a", Digest),
            ("-host.example/a", Registry),
            ("a..example/b", Registry),
            ("[::1/a:b", Registry),
            ("[::g]:1/a", Registry),
            ("[::1]5000/a", Registry),
            ("Host/a", Registry),
            ("a:", Tag),
            ("a:.x", Tag),
            (&long_tag, Tag),
            ("a@sha256:abc", Digest),
            ("a@md5:0123", Digest),
            (&upper, Digest),
        ] {
            assert_eq!(given.parse::<Reference>(), Err(error), "{given:?}");
        }
    }

    #[test]
    fn people_read_the_short_spelling() {
        for short in ["python", "python:3", "acme/tool", "ghcr.io/acme/tool:v1"] {
            assert_eq!(short.parse::<Reference>().unwrap().familiar(), short);
        }
    }

    proptest! {
        #[test]
        fn the_canonical_spelling_and_the_short_one_mean_the_same(
            text in r"(([A-Za-z0-9.-]{1,9}(:[0-9]{1,5})?|\[::1\])/)?[a-z0-9._/-]{1,20}(:[A-Za-z0-9_.-]{1,9})?(@sha256:[0-9a-f]{64})?"
        ) {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference.clone()));
                prop_assert_eq!(reference.familiar().parse::<Reference>(), Ok(reference.clone()));
                let canonical = reference.to_string();
                prop_assert!(canonical.is_ascii() && !reference.repository().contains(".."));
                prop_assert!(!canonical.contains(|c: char| c.is_ascii_whitespace()));
            }
        }

        #[test]
        fn no_text_breaks_it(text in ".{0,300}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert!(reference.to_string().len() <= 255 + 1 + 128 + 1 + 71);
            }
        }
    }
}
