//! Where packages come from.

use std::fmt;
use std::str::FromStr;

use canonical::{Authority, Host, Leniency, Path};

/// What kind of packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RegistryKind {
    /// npm, pnpm, yarn, bun.
    Npm,
    /// pip, uv.
    Pip,
    /// Cargo.
    Cargo,
    /// Go's module proxies and checksum databases.
    Go,
    /// Debian's packages.
    Apt,
    /// Git repositories, to be fetched.
    Git,
}

impl RegistryKind {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Npm, Self::Pip, Self::Cargo, Self::Go, Self::Apt, Self::Git];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Npm => "npm",
            Self::Pip => "pip",
            Self::Cargo => "cargo",
            Self::Go => "go",
            Self::Apt => "apt",
            Self::Git => "git",
        }
    }
}

impl fmt::Display for RegistryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for RegistryKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        known.ok_or_else(|| mistake::nearest(text, Self::ALL.map(Self::as_str)))
    }
}

/// A place that packages come from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Registry {
    /// Of what kind.
    pub kind: RegistryKind,
    /// Its address, without a user and password.
    pub url: String,
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
    /// The path below which it is; `/` when it is all of the host.
    pub path: String,
}

impl Registry {
    /// Reads `http://` and `https://` addresses.
    ///
    /// # Errors
    /// What is wrong with the address, a user or a password in it among it.
    pub fn parse(kind: RegistryKind, url: &str) -> Result<Self, String> {
        let (rest, default) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(rest), _) => (rest, 443),
            (_, Some(rest)) => (rest, 80),
            _ => return Err("the address does not begin with https:// or http://".to_owned()),
        };
        if rest.contains(['?', '#']) {
            return Err("the address has a query or a fragment; leave it out".to_owned());
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err("the address has a user or a password in it; leave it out".to_owned());
        }
        let authority = Authority::parse(authority, default).map_err(|error| error.to_string())?;
        let path = Path::parse(if path.is_empty() { "/" } else { path }, Leniency::default())
            .map_err(|error| error.to_string())?;
        let path = match path.as_str().trim_end_matches('/') {
            "" => "/",
            path => path,
        };
        Ok(Self {
            kind,
            url: url.to_owned(),
            host: authority.host,
            port: authority.port,
            path: path.to_owned(),
        })
    }
}
