//! What was found, as a file that people can read and change.

use std::fmt::Write as _;

use mistake::Lines;
use rules::{Registry, RegistryKind};
use serde::Deserialize;
use toml::Spanned;

use crate::{Discovery, Found};

/// The file's name, in the directory of the administrator's policy.
pub const FILE: &str = "registries.toml";

/// Longest file, in bytes.
const MAX_TEXT: usize = 256 << 10;

/// A mistake in a file of registries: where it is, and what it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{source_name}:{line}:{column}: {fault}")]
pub struct Error {
    /// The file.
    pub source_name: String,
    /// From 1.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with a file of registries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It is there, and cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// It is too long.
    #[error("the file is longer than {limit} bytes")]
    TooLong {
        /// Most bytes.
        limit: usize,
    },
    /// It is not TOML, or has other keys or types.
    #[error("{0}")]
    Shape(String),
    /// A kind that there is not.
    #[error("there is no kind of registry {kind:?}; {hint}")]
    Kind {
        /// As it is written.
        kind: String,
        /// The nearest, or all.
        hint: String,
    },
    /// An address that is none.
    #[error("{0}")]
    Address(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    #[serde(default)]
    registry: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    kind: Spanned<String>,
    url: Spanned<String>,
    #[serde(default)]
    from: String,
}

impl Discovery {
    /// Text of a file that [`Self::parse`] reads.
    pub fn to_toml(&self) -> String {
        let mut text = String::from(
            "# Where packages come from: network mode \"fetch\" lets these be read, and nothing be sent.\n\
             # `sandforge policy init` wrote down what the tools of this user are configured for.\n",
        );
        for Found { registry, from } in &self.found {
            let quoted = |text: &str| toml_edit::Value::from(text).to_string();
            let _ = write!(
                text,
                "\n[[registry]]\nkind = {}\nurl = {}\nfrom = {}\n",
                quoted(registry.kind.as_str()),
                quoted(&registry.url),
                quoted(from)
            );
        }
        text
    }

    /// Reads such a file. `source` is its name.
    ///
    /// # Errors
    /// The first mistake.
    pub fn parse(source: &str, text: &str) -> Result<Self, Error> {
        let lines = Lines::of(text);
        let error = |at: usize, fault: Fault| {
            let (line, column) = lines.place(at);
            Error { source_name: source.to_owned(), line, column, fault }
        };
        if text.len() > MAX_TEXT {
            return Err(error(0, Fault::TooLong { limit: MAX_TEXT }));
        }
        let content: Content = toml::from_str(text).map_err(|wrong| {
            let at = wrong.span().map_or(0, |span| span.start);
            let message = wrong.message().replace(char::is_control, " ");
            error(at, Fault::Shape(message))
        })?;
        let mut found = Vec::new();
        for entry in content.registry {
            let kind: RegistryKind = entry.kind.get_ref().parse().map_err(|hint| {
                let kind = entry.kind.get_ref().clone();
                error(entry.kind.span().start, Fault::Kind { kind, hint })
            })?;
            let registry = Registry::parse(kind, entry.url.get_ref())
                .map_err(|problem| error(entry.url.span().start, Fault::Address(problem)))?;
            found.push(Found { registry, from: entry.from });
        }
        Ok(Self { found, notes: Vec::new() })
    }
}
