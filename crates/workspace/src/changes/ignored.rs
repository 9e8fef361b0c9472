//! What git would ignore of what a guest made.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use archive::{Name, Root};
use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::Manifest;

/// Bytes of one `.gitignore` that are read.
const MAX_FILE: u64 = 1 << 20;
/// Files that are read; what names a thousand directories apart is a program's work.
const MAX_FILES: usize = 10_000;

/// The rules of all `.gitignore` files of a tree, by directory.
#[derive(Debug, Default)]
pub(super) struct Ignores {
    rules: BTreeMap<Name, Gitignore>,
    /// The last directory that was found to be ignored: most of what comes is below it.
    last: Option<Name>,
}

impl Ignores {
    /// Those that the host has of what was sent.
    pub(super) fn of(root: &Root, manifest: &Manifest) -> Self {
        let mut ignores = Self::default();
        for name in manifest.entries.keys() {
            if is_gitignore(name)
                && let Ok((file, _)) = root.file(name)
            {
                let mut content = Vec::new();
                if file.take(MAX_FILE).read_to_end(&mut content).is_ok() {
                    ignores.add(name, &content);
                }
            }
        }
        ignores
    }

    /// Takes the rules of one file, in the place of those that it had before.
    pub(super) fn add(&mut self, name: &Name, content: &[u8]) {
        let Some((directory, _)) = name.split() else { return };
        if self.rules.len() >= MAX_FILES || content.len() as u64 > MAX_FILE {
            return;
        }
        let mut builder = GitignoreBuilder::new(".");
        for line in String::from_utf8_lossy(content).lines() {
            // As git does: what is no pattern names nothing.
            let _ = builder.add_line(None, line);
        }
        if let Ok(rules) = builder.build() {
            self.last = None;
            self.rules.insert(directory, rules);
        }
    }

    /// Whether git would ignore this, which it does not know.
    pub(super) fn has(&mut self, name: &Name, is_directory: bool) -> bool {
        let below = |last: &Name| name.starts_with(last) && (is_directory || name != last);
        if self.last.as_ref().is_some_and(below) {
            return true;
        }
        if self.rules.is_empty() {
            return false;
        }
        let components: Vec<_> = name.components().collect();
        if components.contains(&&b".git"[..]) {
            return false;
        }
        let mut at = Name::ROOT;
        for (depth, component) in components.iter().enumerate() {
            let Ok(next) = at.join(component) else { return false };
            at = next;
            let directory = is_directory || depth + 1 < components.len();
            if self.matches(&at, directory) {
                if directory {
                    self.last = Some(at);
                }
                return true;
            }
        }
        false
    }

    /// The nearest file that says something about it decides.
    fn matches(&self, name: &Name, is_directory: bool) -> bool {
        let mut above = name.split().map(|(parent, _)| parent);
        while let Some(directory) = above {
            if let Some(rules) = self.rules.get(&directory) {
                let path = match directory.is_root() {
                    true => name.as_path(),
                    false => name
                        .as_path()
                        .strip_prefix(directory.as_path())
                        .unwrap_or_else(|_| Path::new("")),
                };
                match rules.matched(path, is_directory) {
                    Match::Ignore(_) => return true,
                    Match::Whitelist(_) => return false,
                    Match::None => {}
                }
            }
            above = directory.split().map(|(parent, _)| parent);
        }
        false
    }
}

/// Whether it is a file of such rules.
pub(super) fn is_gitignore(name: &Name) -> bool {
    name.components().next_back() == Some(b".gitignore")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_rule_decides_and_nothing_below_an_ignored_directory_comes_back() {
        let mut ignores = Ignores::default();
        let name = |text: &str| Name::parse(text.as_bytes()).unwrap();
        ignores.add(&name(".gitignore"), b"target/\n*.log\n!keep.log\n/only-here\n");
        ignores.add(&name("sub/.gitignore"), b"!b.log\nout\n");
        for (path, is_directory, expected) in [
            ("target", true, true),
            ("target/debug/keep.log", false, true),
            ("target", false, false),
            ("a.log", false, true),
            ("keep.log", false, false),
            ("sub/a.log", false, true),
            ("sub/b.log", false, false),
            ("sub/out", false, true),
            ("sub/x/out/y", false, true),
            ("only-here", false, true),
            ("sub/only-here", false, false),
            (".git/x.log", false, false),
            ("src", false, false),
        ] {
            assert_eq!(ignores.has(&name(path), is_directory), expected, "{path}");
        }
    }
}
