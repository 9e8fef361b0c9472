//! What a member of an archive may be called.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// The kernel's `NAME_MAX`: a longer component cannot be created on any of its file systems.
pub const MAX_COMPONENT: usize = 255;

/// The kernel's `PATH_MAX` less the final NUL: a longer name cannot be passed in one call.
pub const MAX_NAME: usize = 4095;

/// A path below some directory: components joined by single slashes, none of them empty, `.` or
/// `..`, no NUL. Without components it is the directory itself.
///
/// Any other byte is allowed, also newlines and terminal escapes, because file systems allow
/// them; `Display` escapes what could confuse a terminal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Name(Vec<u8>);

/// Why bytes are not a [`Name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There are no bytes.
    #[error("the name is empty")]
    Empty,
    /// It starts with a slash.
    #[error("the name is absolute")]
    Absolute,
    /// A component is `..`.
    #[error("the name has a '..' component")]
    Parent,
    /// A byte is NUL, where C would end the name and others would not.
    #[error("the name has a NUL byte")]
    Nul,
    /// A component is longer than [`MAX_COMPONENT`].
    #[error("a component of the name is longer than {MAX_COMPONENT} bytes")]
    LongComponent,
    /// The whole is longer than [`MAX_NAME`].
    #[error("the name is longer than {MAX_NAME} bytes")]
    Long,
}

impl Name {
    /// The directory itself.
    pub const ROOT: Self = Self(Vec::new());

    /// Checks bytes as they stand in an archive. `.` components and repeated or final slashes
    /// carry no meaning and are dropped.
    ///
    /// # Errors
    /// What keeps the bytes from naming something below a directory.
    pub fn parse(bytes: &[u8]) -> Result<Self, NameError> {
        if bytes.is_empty() {
            return Err(NameError::Empty);
        }
        if bytes.contains(&0) {
            return Err(NameError::Nul);
        }
        if bytes[0] == b'/' {
            return Err(NameError::Absolute);
        }
        let mut name = Vec::with_capacity(bytes.len().min(MAX_NAME));
        for component in bytes.split(|&byte| byte == b'/') {
            match component {
                b"" | b"." => continue,
                b".." => return Err(NameError::Parent),
                _ if component.len() > MAX_COMPONENT => return Err(NameError::LongComponent),
                _ => {}
            }
            if !name.is_empty() {
                name.push(b'/');
            }
            name.extend_from_slice(component);
            if name.len() > MAX_NAME {
                return Err(NameError::Long);
            }
        }
        Ok(Self(name))
    }

    /// The name of `component` in this directory.
    ///
    /// # Errors
    /// As [`Name::parse`]; a slash in the component counts as more components.
    pub fn join(&self, component: &[u8]) -> Result<Self, NameError> {
        if self.is_root() {
            return Self::parse(component);
        }
        let below = Self::parse(component)?;
        if self.0.len() + 1 + below.0.len() > MAX_NAME {
            return Err(NameError::Long);
        }
        Ok(Self([&self.0[..], b"/", &below.0[..]].concat()))
    }

    /// Whether it names the directory itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes; empty for the directory itself.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as a relative path for a system call: `.` for the directory itself.
    pub fn as_path(&self) -> &Path {
        if self.is_root() { Path::new(".") } else { Path::new(OsStr::from_bytes(&self.0)) }
    }

    /// From the top down.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&byte| byte == b'/').filter(|component| !component.is_empty())
    }

    /// The directory that holds it and its name there; `None` for the directory itself.
    pub fn split(&self) -> Option<(Self, &OsStr)> {
        let at = match self.0.iter().rposition(|&byte| byte == b'/') {
            Some(at) => at,
            None if self.is_root() => return None,
            None => return Some((Self::ROOT, OsStr::from_bytes(&self.0))),
        };
        Some((Self(self.0[..at].to_vec()), OsStr::from_bytes(&self.0[at + 1..])))
    }

    /// Whether it is `other` or below it.
    pub fn starts_with(&self, other: &Self) -> bool {
        other.is_root()
            || self.0.strip_prefix(&other.0[..]).is_some_and(|rest| matches!(rest, [] | [b'/', ..]))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() { f.write_str(".") } else { Printable(&self.0).fmt(f) }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Bytes shown to a person: text stays readable; control characters, invisible and
/// direction-changing ones, and what is not UTF-8 become escapes.
#[derive(Debug, Clone, Copy)]
pub struct Printable<'a>(pub &'a [u8]);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for char in chunk.valid().chars() {
                match char {
                    '\'' | '"' => write!(f, "{char}")?,
                    _ => write!(f, "{}", char.escape_debug())?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_may_be_named_and_what_not() {
        let long_component = vec![b'x'; MAX_COMPONENT + 1];
        let long = [b"abc/".repeat(MAX_NAME / 4), b"abcd".to_vec()].concat();
        type Case<'a> = (&'a [u8], Result<&'a [u8], NameError>);
        let table: &[Case<'_>] = &[
            (b"a", Ok(b"a")),
            (b"a/b", Ok(b"a/b")),
            (b"./a//b/./c/", Ok(b"a/b/c")),
            (b".", Ok(b"")),
            (b"./", Ok(b"")),
            (b"...", Ok(b"...")),
            (b"..a/b..", Ok(b"..a/b..")),
            (b"a\nb\x1b[0m", Ok(b"a\nb\x1b[0m")),
            (b"\xff\xfe", Ok(b"\xff\xfe")),
            (b"", Err(NameError::Empty)),
            (b"/", Err(NameError::Absolute)),
            (b"/etc/passwd", Err(NameError::Absolute)),
            (b"..", Err(NameError::Parent)),
            (b"a/../b", Err(NameError::Parent)),
            (b"a/..", Err(NameError::Parent)),
            (b"./../a", Err(NameError::Parent)),
            (b"a\0b", Err(NameError::Nul)),
            (&long_component, Err(NameError::LongComponent)),
            (&long, Err(NameError::Long)),
        ];
        for (bytes, expected) in table {
            let parsed = Name::parse(bytes);
            let parsed = parsed.as_ref().map(Name::as_bytes).map_err(|error| *error);
            assert_eq!(parsed, *expected, "{}", Printable(bytes));
        }
    }

    #[test]
    fn a_name_splits_into_directory_and_component() {
        let name = Name::parse(b"a/b/c").unwrap();
        let (directory, component) = name.split().unwrap();
        assert_eq!((directory.as_bytes(), component.as_bytes()), (&b"a/b"[..], &b"c"[..]));
        assert!(Name::ROOT.split().is_none());
    }

    #[test]
    fn below_means_by_components_and_not_by_bytes() {
        let directory = Name::parse(b"a/b").unwrap();
        assert!(Name::parse(b"a/b").unwrap().starts_with(&directory));
        assert!(Name::parse(b"a/b/c").unwrap().starts_with(&directory));
        assert!(!Name::parse(b"a/bc").unwrap().starts_with(&directory));
        assert!(directory.starts_with(&Name::ROOT));
    }

    #[test]
    fn what_could_drive_a_terminal_is_escaped() {
        let name = Name::parse(b"caf\xc3\xa9 'x'\x1b]0;\x07\xe2\x80\xae\xff\r").unwrap();
        assert_eq!(name.to_string(), "café 'x'\\u{1b}]0;\\u{7}\\u{202e}\\xff\\r");
    }

    proptest! {
        #[test]
        fn a_name_never_leaves_its_directory(bytes in proptest::collection::vec(
            prop_oneof![Just(b'/'), Just(b'.'), Just(0), any::<u8>()], 0..64)
        ) {
            if let Ok(name) = Name::parse(&bytes) {
                prop_assert!(!name.as_bytes().starts_with(b"/"));
                for component in name.components() {
                    prop_assert!(!matches!(component, b"" | b"." | b".."));
                    prop_assert!(!component.contains(&0) && !component.contains(&b'/'));
                }
                if !name.is_root() {
                    prop_assert_eq!(&Name::parse(name.as_bytes()).unwrap(), &name);
                }
                prop_assert!(name.to_string().chars().all(|char| !char.is_control()));
            }
        }
    }
}
