//! TOML into layers. Every key is known, and every mistake has a place.

use std::ops::Range;
use std::str::FromStr;

use mistake::{Lines, distance, nearest};
use rules::Placed;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::decision::Rule;
use crate::error::{Error, Fault};
use crate::layer::{Entry, Grant, Kind, Layer, List, Resource, Value, Who};
use crate::pattern::{self, CommandPattern, Glob, PathPattern, Problem};
use crate::request::{Isolation, Network, Role};

/// Most patterns in a file.
const MAX_PATTERNS: usize = 2000;

/// The section of a project's file that holds other things too.
const SECTION: &str = "policy";

const SECTIONS: &[(&str, &[&str])] = &[
    ("resources", &["cpu_max", "memory_mb_max", "disk_gb_max", "timeout_sec_max", "sandboxes_max"]),
    ("images", &["allow", "deny"]),
    ("mounts", &["roots", "deny", "except", "read_only"]),
    ("commands", &["allow", "deny", "users"]),
    ("env", &["allow", "deny"]),
    ("network", &["modes", "allow", "deny"]),
    ("isolation", &["minimum"]),
    ("grant", GRANT),
];

const GRANT: &[&str] = &[
    "roles",
    "workspaces",
    "subjects",
    "cpu_max",
    "memory_mb_max",
    "disk_gb_max",
    "timeout_sec_max",
    "sandboxes_max",
    "images",
    "mount_roots",
    "commands",
    "users",
    "env",
    "network",
    "isolation",
];

type Table<'a> = DeTable<'a>;
type Node<'a> = Spanned<DeValue<'a>>;

pub(crate) fn layer(source: &str, text: &str, kind: Kind) -> Result<Layer, Error> {
    let mut reader = Reader { source, text, kind, lines: Lines::of(text), patterns: 0 };
    if text.len() > Layer::MAX_TEXT {
        return Err(reader.error(0..0, Fault::TooLong { limit: Layer::MAX_TEXT }));
    }
    let document = mistake::toml(text)
        .map_err(|(at, message)| reader.error(at..at, Fault::Syntax(message)))?;
    reader.layer(&document)
}

struct Reader<'a> {
    source: &'a str,
    text: &'a str,
    kind: Kind,
    lines: Lines<'a>,
    patterns: usize,
}

impl Reader<'_> {
    fn error(&self, span: Range<usize>, fault: Fault) -> Error {
        let (line, column) = self.lines.place(span.start);
        Error { file: self.source.to_owned(), line, column, fault }
    }

    fn wrong(&self, node: &Node<'_>, key: &str, problem: impl Into<String>) -> Error {
        self.error(node.span(), Fault::Value { key: key.to_owned(), problem: problem.into() })
    }

    fn mistyped(&self, node: &Node<'_>, key: &str, wanted: &'static str) -> Error {
        let found = mistake::kind(node.get_ref());
        self.error(node.span(), Fault::Type { key: key.to_owned(), found, wanted })
    }

    fn rule(&self, span: Range<usize>, text: String) -> Rule {
        Rule { file: self.source.to_owned(), line: self.lines.place(span.start).0, text }
    }

    fn layer(&mut self, document: &Table<'_>) -> Result<Layer, Error> {
        let mut layer = Layer::empty(self.source, self.text, self.kind);
        let sections = match (self.kind, document.get(SECTION)) {
            (Kind::Project, Some(node)) => self.table(node, SECTION)?,
            // It is about other things, and nothing in it looks as if it were meant for us.
            (Kind::Project, None) if !document.keys().any(|key| is_meant(key.get_ref())) => {
                return Ok(layer);
            }
            _ => document,
        };
        let known: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
        for (name, node) in sections {
            match name.get_ref().as_ref() {
                "resources" => self.resources(node, &mut layer)?,
                "images" => self.images(node, &mut layer)?,
                "mounts" => self.mounts(node, &mut layer)?,
                "commands" => self.commands(node, &mut layer)?,
                "env" => self.env(node, &mut layer)?,
                "network" => self.network(node, &mut layer)?,
                "isolation" => self.isolation(node, &mut layer)?,
                "grant" if self.kind == Kind::Project => {
                    let fault = Fault::Widens { key: "[[grant]]".to_owned() };
                    return Err(self.error(name.span(), fault));
                }
                "grant" => self.grants(node, &mut layer)?,
                other => {
                    let owner = SECTIONS.iter().find(|(_, keys)| keys.contains(&other));
                    let hint = match owner {
                        Some((section, _)) => format!("it belongs in [{section}]"),
                        None => nearest(other, &known),
                    };
                    let key = other.to_owned();
                    let fault = Fault::UnknownKey { what: "section", key, hint };
                    return Err(self.error(name.span(), fault));
                }
            }
        }
        Ok(layer)
    }

    fn table<'a, 'b>(&self, node: &'a Node<'b>, name: &str) -> Result<&'a Table<'b>, Error> {
        let wanted = "a section, such as [resources]";
        node.get_ref().as_table().ok_or_else(|| self.mistyped(node, name, wanted))
    }

    /// The keys of a section, each one known.
    fn section<'a, 'b>(&self, node: &'a Node<'b>, name: &str) -> Result<&'a Table<'b>, Error> {
        let table = self.table(node, name)?;
        let built_in: &[&str] = match (self.kind, name) {
            (Kind::BuiltIn, "mounts") => &["never", "itself"],
            _ => &[],
        };
        let known =
            SECTIONS.iter().find(|(section, _)| *section == name).map_or(GRANT, |(_, keys)| keys);
        for key in table.keys() {
            let text = key.get_ref().as_ref();
            if !known.contains(&text) && !built_in.contains(&text) {
                let elsewhere =
                    SECTIONS.iter().find(|(other, keys)| *other != "grant" && keys.contains(&text));
                let hint = match elsewhere {
                    Some((section, _)) if name != "grant" => format!("it belongs in [{section}]"),
                    _ => nearest(text, known),
                };
                let fault = Fault::UnknownKey { what: "key", key: text.to_owned(), hint };
                return Err(self.error(key.span(), fault));
            }
        }
        Ok(table)
    }

    fn resources(&self, node: &Node<'_>, layer: &mut Layer) -> Result<(), Error> {
        let table = self.section(node, "resources")?;
        layer.limits = self.limits(table, "resources")?;
        Ok(())
    }

    fn limits(&self, table: &Table<'_>, section: &str) -> Result<[Option<Value<u64>>; 5], Error> {
        let mut limits: [Option<Value<u64>>; 5] = Default::default();
        for (limit, resource) in limits.iter_mut().zip(Resource::ALL) {
            let key = resource.key();
            let Some(node) = table.get(key) else { continue };
            let wanted = match resource {
                Resource::Cpu => "a whole number of CPUs, such as 4",
                Resource::MemoryMb => "a whole number of MiB, such as 4096",
                Resource::DiskGb => "a whole number of GiB, such as 20",
                Resource::TimeoutSec => "a whole number of seconds, such as 3600",
                Resource::Sandboxes => "a whole number, such as 10",
            };
            let integer =
                node.get_ref().as_integer().ok_or_else(|| self.mistyped(node, key, wanted))?;
            let value = u64::from_str_radix(integer.as_str(), integer.radix())
                .map_err(|_| self.wrong(node, key, format!("it is not {wanted}")))?;
            let rule = self.rule(node.span(), format!("[{section}] {key} = {value}"));
            *limit = Some(Value { value, rule });
        }
        Ok(limits)
    }

    fn images(&mut self, node: &Node<'_>, layer: &mut Layer) -> Result<(), Error> {
        let table = self.section(node, "images")?;
        layer.images.allow = self.list(table, "images", "allow", image)?;
        layer.images.deny = self.list(table, "images", "deny", image)?;
        Ok(())
    }

    fn mounts(&mut self, node: &Node<'_>, layer: &mut Layer) -> Result<(), Error> {
        let table = self.section(node, "mounts")?;
        let mounts = &mut layer.mounts;
        mounts.lists.allow = self.list(table, "mounts", "roots", root)?;
        mounts.lists.deny = self.list(table, "mounts", "deny", denied)?;
        let entries = |list: Option<List<_>>| list.map(|list| list.entries).unwrap_or_default();
        mounts.never = entries(self.list(table, "mounts", "never", denied)?);
        mounts.itself = entries(self.list(table, "mounts", "itself", denied)?);
        if let Some(node) = table.get("read_only") {
            let value = node
                .get_ref()
                .as_bool()
                .ok_or_else(|| self.mistyped(node, "read_only", "true or false"))?;
            let rule = self.rule(node.span(), format!("[mounts] read_only = {value}"));
            mounts.read_only = Some(Value { value, rule });
        }
        if let Some(node) = table.get("except") {
            if self.kind == Kind::Project {
                let fault = Fault::Widens { key: "except".to_owned() };
                return Err(self.error(node.span(), fault));
            }
            let rule = self.rule(node.span(), "[mounts] except".to_owned());
            mounts.except = Some(Value { value: self.except(node)?, rule });
        }
        Ok(())
    }

    /// Takes back what is denied by ourselves: by the very pattern, so that it is clear what goes.
    fn except(&self, node: &Node<'_>) -> Result<Vec<String>, Error> {
        let built_in = Layer::built_in();
        let known: Vec<&str> = built_in
            .mounts
            .lists
            .deny
            .iter()
            .flat_map(|list| &list.entries)
            .map(|entry| entry.text.as_str())
            .collect();
        let mut except = Vec::new();
        for item in self.items(node, "except", "a list of patterns, such as [\".env\"]")? {
            let text = self.string(item, "except", "a pattern, such as \".env\"")?;
            if built_in.mounts.never.iter().any(|entry| entry.text == text) {
                let problem =
                    format!("{text:?} is never shown to a guest; take it out of the list");
                return Err(self.wrong(item, "except", problem));
            }
            if !known.contains(&text) {
                let hint = nearest(text, &known);
                let problem = format!("{text:?} is not among the built-in denials; {hint}");
                return Err(self.wrong(item, "except", problem));
            }
            except.push(text.to_owned());
        }
        Ok(except)
    }

    fn commands(&mut self, node: &Node<'_>, layer: &mut Layer) -> Result<(), Error> {
        let table = self.section(node, "commands")?;
        layer.commands.allow = self.list(table, "commands", "allow", command)?;
        layer.commands.deny = self.list(table, "commands", "deny", command)?;
        layer.users.allow = self.list(table, "commands", "users", name)?;
        Ok(())
    }

    fn env(&mut self, node: &Node<'_>, layer: &mut Layer) -> Result<(), Error> {
        let table = self.section(node, "env")?;
        layer.env.allow = self.list(table, "env", "allow", name)?;
        layer.env.deny = self.list(table, "env", "deny", name)?;
        Ok(())
    }

    fn network(&mut self, node: &Node<'_>, layer: &mut Layer) -> Result<(), Error> {
        let table = self.section(node, "network")?;
        layer.network.allow = self.list(table, "network", "modes", mode)?;
        let allow = self.placed(table, "allow")?;
        let deny = self.placed(table, "deny")?.unwrap_or_default();
        layer.endpoints =
            rules::Layer::from_file(self.source, allow.as_deref(), &deny).map_err(|error| {
                let fault =
                    Fault::Value { key: "network".to_owned(), problem: error.fault.to_string() };
                Error {
                    file: self.source.to_owned(),
                    line: error.line,
                    column: error.column,
                    fault,
                }
            })?;
        Ok(())
    }

    /// Lines about endpoints, where the key is there.
    fn placed<'a>(
        &mut self,
        table: &'a Table<'_>,
        key: &str,
    ) -> Result<Option<Vec<Placed<'a>>>, Error> {
        const WANTED: &str = "a list of rules, such as [\"READ example.com/docs/**\"]";
        let Some(node) = table.get(key) else { return Ok(None) };
        let mut lines = Vec::new();
        for node in self.items(node, key, WANTED)? {
            self.patterns += 1;
            if self.patterns > MAX_PATTERNS {
                return Err(self.error(node.span(), Fault::TooMany { limit: MAX_PATTERNS }));
            }
            let text = self.string(node, key, "a rule, such as \"READ example.com/docs/**\"")?;
            let (line, column) = self.lines.place(node.span().start);
            lines.push(Placed { text, line, column });
        }
        Ok(Some(lines))
    }

    fn isolation(&self, node: &Node<'_>, layer: &mut Layer) -> Result<(), Error> {
        let table = self.section(node, "isolation")?;
        layer.isolation = self.tier(table, "isolation", "minimum")?;
        Ok(())
    }

    fn tier(
        &self,
        table: &Table<'_>,
        section: &str,
        key: &str,
    ) -> Result<Option<Value<Isolation>>, Error> {
        let Some(node) = table.get(key) else { return Ok(None) };
        let text = self.string(node, key, "\"process\", \"emulated\" or \"vm\"")?;
        let value = known(text).map_err(|problem| self.wrong(node, key, problem))?;
        let rule = self.rule(node.span(), format!("[{section}] {key} = {text:?}"));
        Ok(Some(Value { value, rule }))
    }

    fn grants(&mut self, node: &Node<'_>, layer: &mut Layer) -> Result<(), Error> {
        let wanted = "a section of its own for each: [[grant]]";
        let grants =
            node.get_ref().as_array().ok_or_else(|| self.mistyped(node, "grant", wanted))?;
        for node in grants.iter() {
            let table = self.section(node, "grant")?;
            let who = self.who(table)?;
            if who.roles.is_none() && who.workspaces.is_none() && who.subjects.is_none() {
                let problem = "it says for whom by `roles`, `workspaces` or `subjects`; what is for everyone stands in the other sections";
                return Err(self.wrong(node, "grant", problem));
            }
            layer.grants.push(Grant {
                who,
                limits: self.limits(table, "grant")?,
                images: self.list(table, "grant", "images", image)?,
                mount_roots: self.list(table, "grant", "mount_roots", root)?,
                commands: self.list(table, "grant", "commands", command)?,
                users: self.list(table, "grant", "users", name)?,
                env: self.list(table, "grant", "env", name)?,
                network: self.list(table, "grant", "network", mode)?,
                isolation: self.tier(table, "grant", "isolation")?,
            });
        }
        Ok(())
    }

    fn who(&mut self, table: &Table<'_>) -> Result<Who, Error> {
        let patterns = |list: Option<List<Glob>>| {
            list.map(|list| list.entries.into_iter().map(|entry| entry.pattern).collect())
        };
        let roles = self.list(table, "grant", "roles", role)?;
        Ok(Who {
            roles: roles.map(|list| list.entries.into_iter().map(|entry| entry.pattern).collect()),
            workspaces: patterns(self.list(table, "grant", "workspaces", name)?),
            subjects: patterns(self.list(table, "grant", "subjects", name)?),
        })
    }

    fn items<'a, 'b>(
        &self,
        node: &'a Node<'b>,
        key: &str,
        wanted: &'static str,
    ) -> Result<impl Iterator<Item = &'a Node<'b>> + use<'a, 'b>, Error> {
        let array = node.get_ref().as_array().ok_or_else(|| self.mistyped(node, key, wanted))?;
        Ok(array.iter())
    }

    fn string<'a>(
        &self,
        node: &'a Node<'_>,
        key: &str,
        wanted: &'static str,
    ) -> Result<&'a str, Error> {
        node.get_ref().as_str().ok_or_else(|| self.mistyped(node, key, wanted))
    }

    /// A list of patterns, where the key is there.
    fn list<P>(
        &mut self,
        table: &Table<'_>,
        section: &str,
        key: &str,
        read: fn(Item<'_>) -> Result<(P, usize), Refusal>,
    ) -> Result<Option<List<P>>, Error> {
        let Some(node) = table.get(key) else { return Ok(None) };
        let mut entries = Vec::new();
        for node in self.items(node, key, "a list of strings, such as [\"a\", \"b*\"]")? {
            self.patterns += 1;
            if self.patterns > MAX_PATTERNS {
                return Err(self.error(node.span(), Fault::TooMany { limit: MAX_PATTERNS }));
            }
            let item = self.item(node, key)?;
            let text = item.to_string();
            let (pattern, weight) = read(item).map_err(|refusal| match refusal {
                Refusal::Problem(problem) => self.wrong(node, key, problem),
                Refusal::Words => self.mistyped(node, key, "a string, such as \"a*\""),
            })?;
            let rule = self.rule(node.span(), format!("[{section}] {key}: {text}"));
            entries.push(Entry { pattern, text, rule, weight });
        }
        Ok(Some(List { rule: self.rule(node.span(), format!("[{section}] {key}")), entries }))
    }

    fn item<'a>(&self, node: &'a Node<'_>, key: &str) -> Result<Item<'a>, Error> {
        match node.get_ref() {
            DeValue::String(text) => Ok(Item::Text(text)),
            DeValue::Array(words) => words
                .iter()
                .map(|word| self.string(word, key, "a word, such as \"push\""))
                .collect::<Result<_, _>>()
                .map(Item::Words),
            _ => Err(self.mistyped(node, key, "a string, such as \"a*\"")),
        }
    }
}

/// An element of a list.
enum Item<'a> {
    Text(&'a str),
    /// A command, word by word.
    Words(Vec<&'a str>),
}

impl std::fmt::Display for Item<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Words(words) => write!(f, "{words:?}"),
        }
    }
}

enum Refusal {
    Problem(Problem),
    /// Only commands are lists of words.
    Words,
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl<'a> Item<'a> {
    fn text(self) -> Result<&'a str, Refusal> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Words(_) => Err(Refusal::Words),
        }
    }
}

fn image(item: Item<'_>) -> Result<(PathPattern, usize), Refusal> {
    let pattern = PathPattern::image(item.text()?)?;
    let weight = pattern.weight();
    Ok((pattern, weight))
}

fn root(item: Item<'_>) -> Result<(PathPattern, usize), Refusal> {
    let pattern = PathPattern::root(item.text()?)?;
    let weight = pattern.weight();
    Ok((pattern, weight))
}

fn denied(item: Item<'_>) -> Result<(PathPattern, usize), Refusal> {
    let pattern = PathPattern::denied(item.text()?)?;
    let weight = pattern.weight();
    Ok((pattern, weight))
}

fn name(item: Item<'_>) -> Result<(Glob, usize), Refusal> {
    let pattern = pattern::name(item.text()?)?;
    let weight = pattern.weight();
    Ok((pattern, weight))
}

fn command(item: Item<'_>) -> Result<(CommandPattern, usize), Refusal> {
    let pattern = match item {
        Item::Text(text) => CommandPattern::line(text)?,
        Item::Words(words) => CommandPattern::words(words.into_iter())?,
    };
    let weight = pattern.weight();
    Ok((pattern, weight))
}

fn mode(item: Item<'_>) -> Result<(Network, usize), Refusal> {
    Ok((known(item.text()?)?, 1))
}

fn role(item: Item<'_>) -> Result<(Role, usize), Refusal> {
    Ok((known(item.text()?)?, 1))
}

fn known<T: FromStr<Err = String>>(text: &str) -> Result<T, Problem> {
    text.parse()
}

/// Whether a key of a project's file was meant for a policy, perhaps with a typing error.
fn is_meant(key: &str) -> bool {
    let names = SECTIONS.iter().map(|(name, _)| *name).chain([SECTION]);
    // A short name is near to too much.
    names.into_iter().any(|name| distance(key, name) <= usize::from(name.len() > 3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_layer_is_well_formed_and_speaks_of_every_list() {
        let layer = Layer::built_in();
        assert!(layer.images.allow.is_some() && layer.mounts.lists.allow.is_some());
        assert!(layer.commands.allow.is_some() && layer.users.allow.is_some());
        assert!(layer.env.allow.is_some() && layer.network.allow.is_some());
        assert!(layer.isolation.is_some());
    }
}
