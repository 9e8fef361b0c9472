//! Why a layer cannot be loaded.

use serde::Serialize;

/// A mistake in a layer: where it is, what it is and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{file}:{line}:{column}: {fault}")]
pub struct Error {
    /// The layer's name.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
    /// What is wrong there.
    pub fault: Fault,
}

/// What is wrong with a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Fault {
    /// It is more text than a policy needs.
    #[error("the file is longer than {limit} bytes; split it, or name patterns with `*`")]
    TooLong {
        /// Most bytes.
        limit: usize,
    },
    /// It is more rules than a decision should take.
    #[error("there are more than {limit} patterns in the file; name several at once with `*`")]
    TooMany {
        /// Most patterns.
        limit: usize,
    },
    /// It is not TOML.
    #[error("this is not TOML: {0}")]
    Syntax(String),
    /// A key that no rule has.
    #[error("there is no {what} {key:?}; {hint}")]
    UnknownKey {
        /// `section` or `key`.
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
    /// A value that the key cannot have.
    #[error("{key}: {problem}")]
    Value {
        /// The key.
        key: String,
        /// What is wrong, and what to write.
        problem: String,
    },
    /// A project would widen what it may do.
    #[error(
        "{key} widens, and a project can only narrow; write it in the administrator's policy.toml"
    )]
    Widens {
        /// The key.
        key: String,
    },
    /// A path that begins with `~` where there is no home directory.
    #[error(
        "{pattern:?} is below a home directory, and this host has none for us; write the whole path"
    )]
    NoHome {
        /// The pattern.
        pattern: String,
    },
    /// Only a project's layers can be added to a policy for one request.
    #[error("an administrator's layer cannot be added for one request; reload the policy with it")]
    NotAProject,
}
