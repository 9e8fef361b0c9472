//! Where packages come from: the registries that the user's own npm, pip, cargo, go, apt and git are
//! configured for. What is found is data with its place; it is shown, written to [`FILE`], and what
//! fetch mode allows. No address is known here: what a tool has built in it is asked for.
//!
//! Only the configuration of the user and of the computer is read, never one of a working directory:
//! that comes with a repository, and could name any host. A user or a password in an address is
//! dropped, and proxies are ignored.
#![forbid(unsafe_code)]

mod apt;
mod asked;
mod cargo;
mod file;
mod git;
mod go;
mod ini;
mod npm;
mod pip;
mod places;

use std::path::Path;

use rules::{Registry, RegistryKind};

pub use asked::BuiltIn;
pub use file::{Error, FILE, Fault};
pub use places::Surroundings;

/// A registry, and where it is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub registry: Registry,
    /// Where it is named: `~/.npmrc:3`, `PIP_INDEX_URL`, `npm's default`.
    pub from: String,
}

/// Something that the user should know about what was read. Never the text of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Where.
    pub from: String,
    /// What.
    pub text: String,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Discovery {
    /// Registries, each once, by kind.
    pub found: Vec<Found>,
    /// What was left out, and why.
    pub notes: Vec<Note>,
}

/// What was written down in a file, where there is one, or else what is found now.
///
/// # Errors
/// Where the file is wrong, or cannot be read.
pub fn known(file: Option<&Path>) -> Result<Discovery, Error> {
    let around = Surroundings::of_process();
    let Some(path) = file.filter(|path| path.exists()) else { return Ok(discover(&around)) };
    let name = path.display().to_string();
    let text = around.read(path).and_then(|text| text.ok_or_else(|| "it is no file".to_owned()));
    match text {
        Ok(text) => Discovery::parse(&name, &text),
        Err(why) => {
            let fault = Fault::Unreadable(why);
            Err(Error { source_name: name, line: 1, column: 1, fault })
        }
    }
}

/// Reads the configuration of all tools.
pub fn discover(surroundings: &Surroundings) -> Discovery {
    let mut search = Search { surroundings, discovery: Discovery::default() };
    npm::search(&mut search);
    pip::search(&mut search);
    cargo::search(&mut search);
    go::search(&mut search);
    apt::search(&mut search);
    git::search(&mut search);
    search.discovery
}

impl Discovery {
    /// The registries, for [`rules::Layer::fetch`].
    pub fn registries(&self) -> Vec<Registry> {
        self.found.iter().map(|found| found.registry.clone()).collect()
    }
}

/// What the tools' own files have in common.
struct Search<'a> {
    surroundings: &'a Surroundings,
    discovery: Discovery,
}

impl Search<'_> {
    /// Adds an address as it is written, without what is secret in it.
    fn add(&mut self, kind: RegistryKind, url: &str, from: &str) {
        let url = url.trim();
        let (plain, had_user) = without_secrets(url);
        if had_user {
            let text = "the address has a user, a password or a query, which is left out; what needs it will not be reached";
            self.note(from, text);
        }
        match Registry::parse(kind, &plain) {
            Ok(registry) => {
                let known = &mut self.discovery.found;
                let same = |found: &Found| {
                    let one = &found.registry;
                    one.kind == kind
                        && (&one.host, one.port, &one.path)
                            == (&registry.host, registry.port, &registry.path)
                };
                if !known.iter().any(same) {
                    known.push(Found { registry, from: from.to_owned() });
                }
            }
            Err(problem) => self.note(from, &format!("{kind}: {problem}")),
        }
    }

    /// Adds what a tool has built in.
    fn add_defaults(&mut self, kind: RegistryKind, urls: &[String], tool: &str) {
        for url in urls {
            self.add(kind, url, &format!("{tool}'s default"));
        }
        if urls.is_empty() {
            let text = "it does not tell where its packages come from: name it in registries.toml";
            self.note(tool, text);
        }
    }

    fn note(&mut self, from: &str, text: &str) {
        let note = Note { from: from.to_owned(), text: text.to_owned() };
        if !self.discovery.notes.contains(&note) {
            self.discovery.notes.push(note);
        }
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.surroundings.variable(name).map(str::to_owned)
    }

    /// The text of a file, where there is one, and how it is called.
    fn read(&mut self, path: &std::path::Path) -> Option<(String, String)> {
        let name = self.surroundings.shown(path);
        match self.surroundings.read(path) {
            Ok(text) => text.map(|text| (text, name)),
            Err(problem) => {
                self.note(&name, &problem);
                None
            }
        }
    }
}

/// An address without a user, a password, a query and a fragment, and whether it had any.
fn without_secrets(url: &str) -> (String, bool) {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let (url, tail) = url.split_at(end);
    let Some((scheme, rest)) = url.split_once("://") else {
        return (url.to_owned(), !tail.is_empty());
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((_, host)) => (format!("{scheme}://{host}{path}"), true),
        None => (url.to_owned(), !tail.is_empty()),
    }
}
