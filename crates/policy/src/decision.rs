//! What a decision says.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::pattern::{PathPattern, Relation, folded_components};

/// Which edition of the policy decided. Rises with every reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A line of a policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Rule {
    /// The layer's name; `built-in` is Sandforge's own.
    pub file: String,
    /// From 1; 0 is for what no file says.
    pub line: u32,
    /// The section, the key and what of its value decided.
    pub text: String,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.text)
    }
}

/// What would allow a thing that was denied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// What to do and in which file, in words. It ends with a colon where [`Remedy::toml`] follows.
    pub text: String,
    /// The lines to add there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub toml: Option<String>,
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match &self.toml {
            Some(toml) => write!(f, "\n{toml}"),
            None => Ok(()),
        }
    }
}

/// What one rule says of one thing that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// What was asked for: `cpu`, `image`, `mount`, `command`, …
    pub about: &'static str,
    /// Whether the rule allows it.
    pub allowed: bool,
    /// The rule.
    pub rule: Rule,
    /// Why. Arguments of commands and values of variables are never in it.
    pub reason: String,
    /// What would allow it, where something would.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<Remedy>,
}

/// An answer of the policy. `Display` is for people: several lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[must_use]
pub struct Decision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// The rule that decided.
    pub rule: Rule,
    /// Why, in one line.
    pub reason: String,
    /// What would allow it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<Remedy>,
    /// The edition of the policy that decided.
    pub generation: Generation,
    /// All denials, or else what allowed each thing; the deciding one first.
    pub verdicts: Vec<Verdict>,
    /// What is to be hidden below each mount. Empty where it was denied.
    pub masks: Vec<Masks>,
    /// The weakest isolation that the sandbox may get, for the choice of an engine. `None` where
    /// no sandbox was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_isolation: Option<crate::Isolation>,
}

impl Decision {
    /// The decision in one line, for logs.
    pub fn summary(&self) -> String {
        let word = if self.allowed { "allowed" } else { "denied" };
        format!("{word}: {} ({}, generation {})", self.reason, self.rule, self.generation)
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.allowed { "allowed" } else { "denied" };
        writeln!(f, "{word}: {}", self.reason)?;
        writeln!(f, "  rule: {}", self.rule)?;
        remedy(f, "  ", self.remedy.as_ref())?;
        for verdict in self.verdicts.iter().skip(1) {
            writeln!(f, "  also: {}", verdict.reason)?;
            writeln!(f, "    rule: {}", verdict.rule)?;
            remedy(f, "    ", verdict.remedy.as_ref())?;
        }
        for masks in &self.masks {
            let many = masks.patterns.len();
            writeln!(f, "  hidden below {:?}: what {many} patterns match", masks.host_path)?;
        }
        write!(f, "  generation: {}", self.generation)
    }
}

fn remedy(f: &mut fmt::Formatter<'_>, indent: &str, remedy: Option<&Remedy>) -> fmt::Result {
    let Some(remedy) = remedy else { return Ok(()) };
    writeln!(f, "{indent}to allow it: {}", remedy.text)?;
    for line in remedy.toml.iter().flat_map(|toml| toml.lines()) {
        writeln!(f, "{indent}  {line}")?;
    }
    Ok(())
}

/// What must not be seen below a mount.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Masks {
    /// The mount, by its canonical path.
    pub host_path: PathBuf,
    /// The patterns, as they are written.
    pub patterns: Vec<String>,
    #[serde(skip)]
    compiled: Vec<PathPattern>,
}

impl Masks {
    pub(crate) fn new(host_path: &Path, compiled: Vec<PathPattern>) -> Self {
        let mut patterns: Vec<_> = compiled.iter().map(|one| one.text().to_owned()).collect();
        patterns.sort();
        patterns.dedup();
        Self { host_path: host_path.to_owned(), patterns, compiled }
    }

    /// Whether what has this path below the mount is hidden. What is below something hidden is
    /// hidden too.
    pub fn hides(&self, relative: &Path) -> bool {
        let mut components = folded_components(&self.host_path);
        components.extend(folded_components(relative));
        self.compiled.iter().any(|one| one.relation(&components) == Relation::Within)
    }
}

impl fmt::Debug for Masks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Masks")
            .field("host_path", &self.host_path)
            .field("patterns", &self.patterns)
            .finish()
    }
}
