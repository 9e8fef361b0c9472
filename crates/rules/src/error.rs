//! Why rules cannot be loaded.

use std::fmt;
use std::sync::Arc;

/// A mistake in rules: where it is, what it is and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The file, or what else the rule came from.
    pub source: Arc<str>,
    /// From 1. 0 where the source has no lines; then `text` shows the rule.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
    /// The rule, where there is one.
    pub text: Option<Arc<str>>,
    /// What is wrong there.
    pub fault: Fault,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        match (self.line, &self.text) {
            (0, Some(text)) => write!(f, " {text:?}: ")?,
            (0, None) => f.write_str(": ")?,
            (line, _) => write!(f, ":{line}:{}: ", self.column)?,
        }
        self.fault.fmt(f)
    }
}

impl std::error::Error for Error {}

/// What is wrong with rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It is more text than rules need.
    #[error("the file is longer than {limit} bytes; name several endpoints at once with `*`")]
    TooLong {
        /// Most bytes.
        limit: usize,
    },
    /// It is more rules than a decision should take.
    #[error("there are more than {limit} rules; name several endpoints at once with `*`")]
    TooMany {
        /// Most rules.
        limit: usize,
    },
    /// It is not TOML.
    #[error("this is not TOML: {0}")]
    Syntax(String),
    /// A key that is not known.
    #[error("there is no {what} {key:?}; {hint}")]
    UnknownKey {
        /// `key`, `section` or `service`.
        what: &'static str,
        /// As it is written.
        key: String,
        /// The nearest that there is, or all.
        hint: String,
    },
    /// A value of another type than the key has.
    #[error("{key} is {found}; write {wanted}")]
    Type {
        /// The key.
        key: String,
        /// What is there.
        found: &'static str,
        /// What is to be there, with an example.
        wanted: &'static str,
    },
    /// A rule that says nothing we understand.
    #[error("{0}")]
    Rule(String),
    /// A tunnel to a host whose requests are to carry a credential.
    #[error(
        "{host} is a tunnel, and requests inside a tunnel cannot carry the credential of {service}; take out one of the two"
    )]
    TunnelOfService {
        /// The host and port.
        host: String,
        /// The service.
        service: String,
    },
}
