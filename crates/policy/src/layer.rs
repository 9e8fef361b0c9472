//! A file of policy, read.

use std::path::Path;
use std::sync::LazyLock;

use serde::Serialize;

use crate::decision::Rule;
use crate::error::{Error, Fault};
use crate::pattern::{CommandPattern, Glob, PathPattern, components, folded_components};
use crate::request::{Isolation, Network, Role, Subject};

/// Who wrote a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Sandforge: what holds where no administrator says otherwise.
    BuiltIn,
    /// Who runs the host.
    Administrator,
    /// A repository. It is not trusted, and can only narrow.
    Project,
}

/// What a sandbox has so much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Virtual CPUs.
    Cpu,
    /// Guest memory in MiB.
    MemoryMb,
    /// Scratch disk in GiB.
    DiskGb,
    /// Time to live in seconds.
    TimeoutSec,
    /// Sandboxes of a workspace.
    Sandboxes,
}

impl Resource {
    /// All of them.
    pub const ALL: &'static [Self] =
        &[Self::Cpu, Self::MemoryMb, Self::DiskGb, Self::TimeoutSec, Self::Sandboxes];

    /// What a request calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::MemoryMb => "memory_mb",
            Self::DiskGb => "disk_gb",
            Self::TimeoutSec => "timeout_sec",
            Self::Sandboxes => "sandboxes",
        }
    }

    /// What a policy calls its maximum.
    pub fn key(self) -> &'static str {
        match self {
            Self::Cpu => "cpu_max",
            Self::MemoryMb => "memory_mb_max",
            Self::DiskGb => "disk_gb_max",
            Self::TimeoutSec => "timeout_sec_max",
            Self::Sandboxes => "sandboxes_max",
        }
    }
}

/// A value and where it is written.
#[derive(Debug, Clone)]
pub(crate) struct Value<T> {
    pub(crate) value: T,
    pub(crate) rule: Rule,
}

/// One pattern of a list.
#[derive(Debug, Clone)]
pub(crate) struct Entry<P> {
    pub(crate) pattern: P,
    /// As it is written.
    pub(crate) text: String,
    pub(crate) rule: Rule,
    pub(crate) weight: usize,
}

/// A list of patterns and where it begins.
#[derive(Debug, Clone)]
pub(crate) struct List<P> {
    pub(crate) rule: Rule,
    pub(crate) entries: Vec<Entry<P>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Lists<P> {
    /// Everything, where there is none.
    pub(crate) allow: Option<List<P>>,
    pub(crate) deny: Option<List<P>>,
}

impl<P> Default for Lists<P> {
    fn default() -> Self {
        Self { allow: None, deny: None }
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Mounts {
    /// `roots` and `deny`.
    pub(crate) lists: Lists<PathPattern>,
    /// Denials that no file takes back; built-in only.
    pub(crate) never: Vec<Entry<PathPattern>>,
    /// Denied themselves, what is below is not; built-in only.
    pub(crate) itself: Vec<Entry<PathPattern>>,
    /// Built-in denials that do not hold here.
    pub(crate) except: Option<Value<Vec<String>>>,
    pub(crate) read_only: Option<Value<bool>>,
}

/// Whom a grant is for: in each list that is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Who {
    pub(crate) roles: Option<Vec<Role>>,
    pub(crate) workspaces: Option<Vec<Glob>>,
    pub(crate) subjects: Option<Vec<Glob>>,
}

impl Who {
    pub(crate) fn includes(&self, subject: &Subject) -> bool {
        let among = |globs: &Option<Vec<Glob>>, name: Option<&str>| {
            globs.as_ref().is_none_or(|globs| {
                name.is_some_and(|name| globs.iter().any(|glob| glob.matches(name)))
            })
        };
        self.roles.as_ref().is_none_or(|roles| roles.contains(&subject.role))
            && among(&self.workspaces, subject.workspace.as_deref())
            && among(&self.subjects, Some(&subject.name))
    }
}

/// More for some.
#[derive(Debug, Clone, Default)]
pub(crate) struct Grant {
    pub(crate) who: Who,
    pub(crate) limits: [Option<Value<u64>>; 5],
    pub(crate) images: Option<List<PathPattern>>,
    pub(crate) mount_roots: Option<List<PathPattern>>,
    pub(crate) commands: Option<List<CommandPattern>>,
    pub(crate) users: Option<List<Glob>>,
    pub(crate) env: Option<List<Glob>>,
    pub(crate) network: Option<List<Network>>,
    pub(crate) isolation: Option<Value<Isolation>>,
}

/// A file of policy, read and checked.
#[derive(Debug, Clone)]
pub struct Layer {
    pub(crate) kind: Kind,
    pub(crate) source: String,
    pub(crate) text: String,
    pub(crate) limits: [Option<Value<u64>>; 5],
    pub(crate) images: Lists<PathPattern>,
    pub(crate) mounts: Mounts,
    pub(crate) commands: Lists<CommandPattern>,
    pub(crate) users: Lists<Glob>,
    pub(crate) env: Lists<Glob>,
    pub(crate) network: Lists<Network>,
    pub(crate) endpoints: rules::Layer,
    pub(crate) isolation: Option<Value<Isolation>>,
    pub(crate) grants: Vec<Grant>,
}

impl Layer {
    /// Longest text of a layer, in bytes.
    pub const MAX_TEXT: usize = 256 * 1024;

    pub(crate) fn empty(source: &str, text: &str, kind: Kind) -> Self {
        Self {
            kind,
            source: source.to_owned(),
            text: text.to_owned(),
            limits: Default::default(),
            images: Lists::default(),
            mounts: Mounts::default(),
            commands: Lists::default(),
            users: Lists::default(),
            env: Lists::default(),
            network: Lists::default(),
            endpoints: rules::Layer::default(),
            isolation: None,
            grants: Vec::new(),
        }
    }

    /// Reads a layer. `source` names it in decisions and errors: the path of the file.
    ///
    /// A project's is the section `[policy]` of a file that holds other things too, or a file with
    /// the sections of a policy only. One with neither is a layer that says nothing.
    ///
    /// # Errors
    /// The first mistake, with its place and what to write instead.
    pub fn parse(source: &str, text: &str, kind: Kind) -> Result<Self, Error> {
        crate::parse::layer(source, text, kind)
    }

    /// The layer of Sandforge's own defaults, called `built-in`. Every policy has it.
    pub fn built_in() -> Self {
        static BUILT_IN: LazyLock<Layer> = LazyLock::new(|| {
            Layer::parse("built-in", include_str!("built_in.toml"), Kind::BuiltIn)
                .expect("a test parses it")
        });
        BUILT_IN.clone()
    }

    /// Who wrote it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its name.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The TOML.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What it says of hosts and requests: a bound of what a sandbox's own rules allow.
    pub fn endpoints(&self) -> &rules::Layer {
        &self.endpoints
    }

    /// With the home directory in the place of `~`.
    pub(crate) fn settle(&mut self, home: Option<&Path>) -> Result<(), Error> {
        let exact = home.map(components);
        let folded = home.map(folded_components);
        let mounts = &mut self.mounts;
        let deny = mounts.lists.deny.iter_mut().map(|list| &mut list.entries);
        for entries in deny.chain([&mut mounts.never, &mut mounts.itself]) {
            // The home directory that there is not needs no protection of ours.
            if self.kind == Kind::BuiltIn && home.is_none() {
                entries.retain(|entry| !entry.pattern.is_below_home());
            }
            settle(entries, folded.as_deref())?;
        }
        let granted = self.grants.iter_mut().flat_map(|grant| &mut grant.mount_roots);
        for list in mounts.lists.allow.iter_mut().chain(granted) {
            settle(&mut list.entries, exact.as_deref())?;
        }
        Ok(())
    }
}

fn settle(entries: &mut [Entry<PathPattern>], home: Option<&[String]>) -> Result<(), Error> {
    for entry in entries {
        if let Some(home) = home {
            entry.pattern.settle(home);
        } else if entry.pattern.is_below_home() {
            let Rule { file, line, .. } = entry.rule.clone();
            let fault = Fault::NoHome { pattern: entry.text.clone() };
            return Err(Error { file, line, column: 1, fault });
        }
    }
    Ok(())
}
