//! What is kept of a secret.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use services::{Catalogue, Charset, Service, Shape, Slot};
use wire::text::Secret;
use zeroize::Zeroizing;

use crate::Error;

/// Longest secret, in bytes: what servers take as one header, with room for an encoding.
pub const MAX_SECRET: usize = 12 << 10;
/// The shortest: anything less cannot be told from ordinary text when it comes back.
pub const MIN_SECRET: usize = 8;
/// Longest name of a workspace, a sandbox or a service.
const MAX_NAME: usize = 128;

/// For whom a secret is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Every sandbox of the workspace that is created from now on.
    Global,
    /// One sandbox, which has it at once. It wins over a global one.
    Sandbox(String),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Global => f.pad("(global)"),
            Self::Sandbox(id) => f.pad(id),
        }
    }
}

/// What a secret is found by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// The workspace.
    pub workspace: String,
    /// For whom in it.
    pub scope: Scope,
    /// The service's name.
    pub service: String,
}

impl Key {
    pub(crate) fn check(&self) -> Result<(), Error> {
        let mut names = vec![("the workspace", &self.workspace), ("the service", &self.service)];
        if let Scope::Sandbox(id) = &self.scope {
            names.push(("the sandbox", id));
        }
        for (what, name) in names {
            let is_name = (1..=MAX_NAME).contains(&name.len()) && !name.contains(char::is_control);
            if !is_name {
                return Err(Error::Name { what, name: name.clone(), limit: MAX_NAME });
            }
        }
        Ok(())
    }
}

/// Where the value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// It is kept.
    Value(Secret),
    /// It is the output of a shell command, which is run each time it is needed.
    Command(String),
    /// It is in a variable of the process that needs it.
    Env(String),
}

impl Source {
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self {
            Self::Value(secret) => check_value(secret.expose()),
            Self::Command(text) | Self::Env(text) => {
                let is_text = (1..=4096).contains(&text.len()) && !text.contains('\0');
                match is_text {
                    true => Ok(()),
                    false => {
                        Err(Error::Value { problem: "has a source that is empty or too long" })
                    }
                }
            }
        }
    }
}

pub(crate) fn check_value(value: &[u8]) -> Result<(), Error> {
    let problem = match value {
        [] => "is empty",
        value if value.len() > MAX_SECRET => {
            "is longer than 12 KiB; no server takes it in a header"
        }
        value if value.len() < MIN_SECRET => {
            "is shorter than 8 bytes, and could not be told from other text when it comes back"
        }
        value if value.iter().any(|byte| *byte < 0x20 || *byte == 0x7f) => {
            "has a line break or another control character, which no header can carry"
        }
        _ => return Ok(()),
    };
    Err(Error::Value { problem })
}

/// A service that a user made up, beside its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Custom {
    /// Exact hosts, with a port where it is not 443.
    pub hosts: Vec<String>,
    /// Variables of the guest that get the placeholder.
    #[serde(default)]
    pub env: Vec<String>,
    /// Where it stands in a request.
    pub slots: Vec<Place>,
    /// How the placeholder begins.
    #[serde(default)]
    pub prefix: String,
    /// What follows the prefix.
    #[serde(default)]
    pub characters: Characters,
    /// Its length; the secret's, if absent.
    #[serde(default)]
    pub length: Option<usize>,
}

/// A place of a request, as it is written in a file of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Place {
    /// `x-key: K`, or behind a scheme.
    Header {
        /// The header, in lower case.
        name: String,
        /// What stands before the secret.
        #[serde(default)]
        scheme: Option<String>,
    },
    /// The password of a user, of any if there is none.
    Basic {
        /// The user.
        #[serde(default)]
        username: Option<String>,
    },
    /// A key of the query.
    Query {
        /// The key.
        key: String,
        /// The header that takes its place.
        #[serde(default)]
        header: Option<String>,
    },
}

/// Characters of a placeholder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Characters {
    /// `0-9A-Za-z`.
    #[default]
    Alphanumeric,
    /// `2-7A-Z`.
    Base32,
    /// `0-9A-Za-z_-`.
    Base64url,
    /// `0-9a-f`.
    Hex,
}

impl Custom {
    /// The service that it makes.
    ///
    /// # Errors
    /// It is not well-formed: `Error::Custom`.
    pub fn service(&self, name: &str) -> Result<Service, Error> {
        let slots = self.slots.iter().cloned().map(|place| match place {
            Place::Header { name, scheme } => Slot::Header { name, scheme },
            Place::Basic { username } => Slot::Basic { username },
            Place::Query { key, header } => Slot::Query { key, header },
        });
        let charset = match self.characters {
            Characters::Alphanumeric => Charset::Alphanumeric,
            Characters::Base32 => Charset::Base32,
            Characters::Base64url => Charset::Base64Url,
            Characters::Hex => Charset::Hex,
        };
        let shape = Shape { prefix: self.prefix.clone(), charset, length: self.length };
        Service::custom(name, &self.hosts, &self.env, slots.collect(), shape)
            .map_err(|fault| Error::Custom { service: name.to_owned(), fault })
    }
}

/// A secret as it is set.
#[derive(Debug, Clone)]
pub struct New {
    /// Where the value comes from.
    pub source: Source,
    /// What the user says of the service.
    pub parameters: BTreeMap<String, String>,
    /// The service, if it is the user's own.
    pub custom: Option<Custom>,
}

/// What is kept, encrypted as a whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub(crate) version: u32,
    pub(crate) source: Source,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) parameters: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) custom: Option<Custom>,
    pub(crate) created_ms: u64,
    pub(crate) changed_ms: u64,
}

impl Record {
    pub(crate) const VERSION: u32 = 1;

    pub(crate) fn service(&self, key: &Key, catalogue: &Catalogue) -> Result<Arc<Service>, Error> {
        match &self.custom {
            Some(custom) => custom.service(&key.service).map(Arc::new),
            None => Ok(catalogue.get_with(&key.service, &self.parameters)?),
        }
    }

    pub(crate) fn render(&self) -> Zeroizing<Vec<u8>> {
        // Escapes make a character of six; a vector that grows would leave copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(6 * MAX_SECRET + (16 << 10)));
        serde_json::to_writer(&mut *bytes, self).expect("it has no keys that are no text");
        bytes
    }

    pub(crate) fn entry(&self, key: &Key) -> Entry {
        Entry {
            key: key.clone(),
            source: match &self.source {
                Source::Value(_) => SourceKind::Value,
                Source::Command(_) => SourceKind::Command,
                Source::Env(_) => SourceKind::Env,
            },
            masked: match &self.source {
                Source::Value(secret) => mask(secret.expose()),
                Source::Command(command) => first_word(command),
                Source::Env(variable) => format!("${variable}"),
            },
            parameters: self.parameters.clone(),
            custom: self.custom.clone(),
            created_ms: self.created_ms,
            changed_ms: self.changed_ms,
        }
    }
}

/// A secret as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is found by.
    pub key: Key,
    /// Where the value comes from.
    pub source: SourceKind,
    /// What may be seen of it: the end of a long value, the first word of a command, the variable.
    pub masked: String,
    /// What the user said of the service.
    pub parameters: BTreeMap<String, String>,
    /// The service, if it is the user's own.
    pub custom: Option<Custom>,
    /// When there first was one, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it was last set.
    pub changed_ms: u64,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// It is kept.
    Value,
    /// A command's output.
    Command,
    /// A variable.
    Env,
}

/// The last four characters of a value that is long enough to spare them.
pub(crate) fn mask(value: &[u8]) -> String {
    const SHOWN: usize = 4;
    match value.len() {
        0..24 => "****".to_owned(),
        length => {
            let tail = String::from_utf8_lossy(&value[length - SHOWN..]).into_owned();
            let is_plain = tail.chars().all(|c| c.is_ascii_graphic());
            if is_plain { format!("****{tail}") } else { "****".to_owned() }
        }
    }
}

/// A command may hold more than its user should leave on a screen.
fn first_word(command: &str) -> String {
    let word: String = command
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|c| !c.is_control())
        .take(40)
        .collect();
    match command.split_whitespace().nth(1) {
        // An assignment before the command may be the secret itself.
        _ if word.contains('=') => "(a command)".to_owned(),
        Some(_) => format!("{word} …"),
        None => word,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_value_only_the_end_is_shown_and_of_a_short_one_nothing() {
        assert_eq!(mask(b"gho_GCaw4oabcdefghijklmnop43qy"), "****43qy");
        assert_eq!(mask(b"shortersecret"), "****");
        assert_eq!(mask("ääääääääääää".as_bytes()), "****");
    }

    #[test]
    fn of_a_command_only_the_program_is_shown() {
        assert_eq!(first_word("op read op://Work/github/token"), "op …");
        assert_eq!(first_word("TOKEN=abc env"), "(a command)");
        assert_eq!(first_word("pass"), "pass");
    }

    #[test]
    fn a_value_fits_into_a_header_and_can_be_found_again() {
        assert!(check_value(b"ghp_0123456789").is_ok());
        for value in
            [&b""[..], b"1234567", b"line one\nline two", b"nul\0nul\0nul", &[b'x'; MAX_SECRET + 1]]
        {
            assert!(check_value(value).is_err());
        }
    }
}
