//! The decision: every layer is asked about everything, and denials are weighed before permissions.

use std::cmp::Reverse;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::decision::{Decision, Generation, Masks, Remedy, Rule, Verdict};
use crate::error::{Error, Fault};
use crate::layer::{Entry, Grant, Kind, Layer, List, Resource, Value};
use crate::pattern::{
    self, CommandPattern, Glob, PathPattern, Relation, components, folded_components,
    image_components,
};
use crate::request::{Command, Create, Exec, Isolation, Mount, Network, Request, Subject};
use crate::shell;

/// What the rules need to know of the host.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// The home directory of who runs Sandforge, resolved. It stands for `~`.
    pub home: Option<PathBuf>,
    /// Directories that are Sandforge's own, resolved: keys, state, sockets. No guest sees them.
    pub own: Vec<PathBuf>,
}

/// Layers that decide together. It does not change; see [`crate::Live`] for one that is reloaded.
#[derive(Debug, Clone)]
pub struct Policy {
    generation: Generation,
    host: Arc<Host>,
    /// In an order of their own, so that that of the caller does not matter.
    layers: Vec<Arc<Layer>>,
}

impl Policy {
    /// The built-in layer and these. Their order does not matter.
    ///
    /// # Errors
    /// `NoHome` where a layer speaks of `~`, and there is no home directory.
    pub fn new(host: Host, layers: Vec<Layer>) -> Result<Self, Error> {
        let mut built_in = Layer::built_in();
        for path in &host.own {
            let pattern = PathPattern::literal(path);
            let text = pattern.text().to_owned();
            let rule = Rule {
                file: "built-in".to_owned(),
                line: 0,
                text: format!("[mounts] never: {text}"),
            };
            let weight = pattern.weight();
            built_in.mounts.never.push(Entry { pattern, text, rule, weight });
        }
        let mut policy =
            Self { generation: Generation::default(), host: Arc::new(host), layers: Vec::new() };
        policy.add(std::iter::once(built_in).chain(layers))?;
        Ok(policy)
    }

    fn add(&mut self, layers: impl IntoIterator<Item = Layer>) -> Result<(), Error> {
        for mut layer in layers {
            layer.settle(self.host.home.as_deref())?;
            self.layers.push(Arc::new(layer));
        }
        self.layers.sort_by(|a, b| (a.kind, &a.source, &a.text).cmp(&(b.kind, &b.source, &b.text)));
        Ok(())
    }

    /// The same as another edition.
    #[must_use]
    pub fn at(mut self, generation: Generation) -> Self {
        self.generation = generation;
        self
    }

    /// The same with layers of a project, for the requests that come from it.
    ///
    /// # Errors
    /// `NotAProject` where a layer is an administrator's, `NoHome` as [`Policy::new`].
    pub fn narrowed(&self, layers: Vec<Layer>) -> Result<Self, Error> {
        if let Some(layer) = layers.iter().find(|layer| layer.kind != Kind::Project) {
            let file = layer.source.clone();
            return Err(Error { file, line: 1, column: 1, fault: Fault::NotAProject });
        }
        let mut policy = self.clone();
        policy.add(layers)?;
        Ok(policy)
    }

    /// The edition.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// What it is made of, the built-in layer first.
    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().map(AsRef::as_ref)
    }

    /// What layers say of hosts and requests: each narrows what the rules of a sandbox allow.
    pub fn endpoints(&self) -> Vec<rules::Layer> {
        self.layers().map(|layer| layer.endpoints().clone()).collect()
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// Decides. The same request is always answered the same.
    pub fn decide(&self, request: &Request) -> Decision {
        let mut judge = Judge { view: View::new(self, request.who()), findings: Vec::new() };
        let mut masks = Vec::new();
        let mut min_isolation = None;
        match request {
            Request::Create(create) => {
                judge.image(&create.image);
                for mount in &create.mounts {
                    judge.mount(mount);
                    masks.push(judge.view.masks(&mount.host_path));
                }
                judge.network(create.network);
                judge.env(&create.env_names);
                min_isolation = Some(judge.isolation(create));
                judge.resources(create);
            }
            Request::Exec(exec) => judge.exec(exec),
            Request::Mount(request) => {
                judge.mount(&request.mount);
                masks.push(judge.view.masks(&request.mount.host_path));
            }
            Request::Network(request) => judge.network(request.mode),
            Request::Volume(volume) => judge.resource(Resource::DiskGb, Some(volume.size_gb)),
        }
        judge.decision(self.generation, masks, min_isolation)
    }
}

/// What the layers have to say to one subject.
pub(crate) struct View<'a> {
    policy: &'a Policy,
    who: &'a Subject,
    grants: Vec<&'a Grant>,
    /// Count where a default does.
    default_grants: Vec<&'a Grant>,
}

/// Lists of which each must have a thing, but for what is granted.
pub(crate) struct Allow<'a, P> {
    /// Of administrators, or else of ourselves.
    pub(crate) lists: Vec<&'a List<P>>,
    pub(crate) granted: Vec<&'a Entry<P>>,
    /// Of projects. No grant helps there.
    pub(crate) narrowing: Vec<&'a List<P>>,
}

impl<'a> View<'a> {
    pub(crate) fn new(policy: &'a Policy, who: &'a Subject) -> Self {
        let grants = |kind| {
            let layers = policy.layers().filter(move |layer| layer.kind == kind);
            layers.flat_map(|layer| &layer.grants).filter(|grant| grant.who.includes(who)).collect()
        };
        let (mine, defaults) = (grants(Kind::Administrator), grants(Kind::BuiltIn));
        Self { policy, who, grants: mine, default_grants: defaults }
    }

    fn of(&self, kind: Kind) -> impl Iterator<Item = &'a Layer> + use<'a> {
        self.policy.layers().filter(move |layer| layer.kind == kind)
    }

    /// What administrators say, or else what we do; and the grants that count then.
    fn general<T>(
        &self,
        pick: impl Fn(&'a Layer) -> Option<&'a T>,
    ) -> (Vec<&'a T>, impl Iterator<Item = &'a Grant>) {
        let mut said: Vec<_> = self.of(Kind::Administrator).filter_map(&pick).collect();
        let is_default = said.is_empty();
        if is_default {
            said = self.of(Kind::BuiltIn).filter_map(&pick).collect();
        }
        let defaults = if is_default { self.default_grants.clone() } else { Vec::new() };
        (said, self.grants.clone().into_iter().chain(defaults))
    }

    pub(crate) fn allow<P>(
        &self,
        list: impl Fn(&'a Layer) -> Option<&'a List<P>>,
        granted: impl Fn(&'a Grant) -> Option<&'a List<P>>,
    ) -> Allow<'a, P> {
        let (lists, grants) = self.general(&list);
        let granted = grants.filter_map(granted).flat_map(|list| &list.entries).collect();
        Allow { lists, granted, narrowing: self.of(Kind::Project).filter_map(list).collect() }
    }

    /// The maximum of administrators with grants, or else ours.
    pub(crate) fn maximum(&self, resource: Resource) -> Option<&'a Value<u64>> {
        let index = resource as usize;
        let (said, grants) = self.general(|layer| layer.limits[index].as_ref());
        let least = said.into_iter().min_by_key(|limit| (limit.value, &limit.rule))?;
        let most = grants
            .filter_map(|grant| grant.limits[index].as_ref())
            .max_by_key(|limit| (limit.value, Reverse(&limit.rule)));
        Some(most.filter(|limit| limit.value > least.value).unwrap_or(least))
    }

    /// Those of projects.
    pub(crate) fn narrower(&self, resource: Resource) -> Vec<&'a Value<u64>> {
        let index = resource as usize;
        self.of(Kind::Project).filter_map(|layer| layer.limits[index].as_ref()).collect()
    }

    /// The weakest tier of administrators with grants, or else ours.
    pub(crate) fn weakest(&self) -> Option<&'a Value<Isolation>> {
        let (said, grants) = self.general(|layer| layer.isolation.as_ref());
        let strongest = said.into_iter().max_by_key(|tier| (tier.value, Reverse(&tier.rule)))?;
        let least = grants
            .filter_map(|grant| grant.isolation.as_ref())
            .min_by_key(|tier| (tier.value, &tier.rule));
        Some(least.filter(|tier| tier.value < strongest.value).unwrap_or(strongest))
    }

    /// Those of projects.
    pub(crate) fn stronger(&self) -> Vec<&'a Value<Isolation>> {
        self.of(Kind::Project).filter_map(|layer| layer.isolation.as_ref()).collect()
    }

    pub(crate) fn images(&self) -> Allow<'a, PathPattern> {
        self.allow(|layer| layer.images.allow.as_ref(), |grant| grant.images.as_ref())
    }

    pub(crate) fn roots(&self) -> Allow<'a, PathPattern> {
        self.allow(|layer| layer.mounts.lists.allow.as_ref(), |grant| grant.mount_roots.as_ref())
    }

    pub(crate) fn commands(&self) -> Allow<'a, CommandPattern> {
        self.allow(|layer| layer.commands.allow.as_ref(), |grant| grant.commands.as_ref())
    }

    pub(crate) fn users(&self) -> Allow<'a, Glob> {
        self.allow(|layer| layer.users.allow.as_ref(), |grant| grant.users.as_ref())
    }

    pub(crate) fn env(&self) -> Allow<'a, Glob> {
        self.allow(|layer| layer.env.allow.as_ref(), |grant| grant.env.as_ref())
    }

    pub(crate) fn network(&self) -> Allow<'a, Network> {
        self.allow(|layer| layer.network.allow.as_ref(), |grant| grant.network.as_ref())
    }

    /// Entries of a denying list of all layers.
    pub(crate) fn denied<P: 'a>(
        &self,
        list: impl Fn(&'a Layer) -> Option<&'a List<P>>,
    ) -> Vec<(Kind, &'a Entry<P>)> {
        let entries = |layer: &'a Layer| {
            let entries = list(layer).into_iter().flat_map(|list| &list.entries);
            entries.map(|entry| (layer.kind, entry))
        };
        self.policy.layers().flat_map(entries).collect()
    }

    /// Path patterns that are denied, without those that an administrator takes back.
    pub(crate) fn hidden(&self) -> Vec<(Kind, &'a Entry<PathPattern>)> {
        let taken_back = |text: &str| {
            let mut excepts = self.of(Kind::Administrator).filter_map(|l| l.mounts.except.as_ref());
            excepts.any(|except| except.value.iter().any(|one| one == text))
        };
        let mut hidden = self.denied(|layer| layer.mounts.lists.deny.as_ref());
        hidden.retain(|(kind, entry)| *kind != Kind::BuiltIn || !taken_back(&entry.text));
        hidden
    }

    /// What is denied below a mount.
    fn masks(&self, host_path: &Path) -> Masks {
        let path = folded_components(host_path);
        let never = self.of(Kind::BuiltIn).flat_map(|layer| &layer.mounts.never);
        let mut patterns: Vec<_> = self
            .hidden()
            .into_iter()
            .map(|(_, entry)| entry)
            .chain(never)
            .map(|entry| &entry.pattern)
            .filter(|pattern| pattern.relation(&path) == Relation::Above)
            .cloned()
            .collect();
        patterns.sort();
        patterns.dedup();
        Masks::new(host_path, patterns)
    }

    /// Where an administrator would add a line.
    fn administrators_file(&self) -> &'a str {
        self.of(Kind::Administrator).next().map_or("policy.toml", |layer| &layer.source)
    }

    /// A grant for this subject.
    fn grant(&self, key: &str, value: &str) -> Remedy {
        let writable = |name: &&str| pattern::name(name).is_ok() && !name.contains('*');
        let workspace = self.who.workspace.as_deref().filter(writable);
        let who = match (workspace, Some(self.who.name.as_str()).filter(writable)) {
            (Some(workspace), _) => format!("workspaces = [{}]", quoted(workspace)),
            (None, Some(name)) => format!("subjects = [{}]", quoted(name)),
            (None, None) => format!("roles = [{}]", quoted(self.who.role.as_str())),
        };
        Remedy {
            text: format!("add to {}:", self.administrators_file()),
            toml: Some(format!("[[grant]]\n{who}\n{key} = {value}")),
        }
    }
}

/// A string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for char in text.chars() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            char if char.is_control() => quoted.push_str(&format!("\\U{:08X}", u32::from(char))),
            char => quoted.push(char),
        }
    }
    quoted.push('"');
    quoted
}

fn take_out(rule: &Rule) -> Remedy {
    Remedy { text: format!("take it out of {}:{}", rule.file, rule.line), toml: None }
}

/// A name for a message: one of no more than so many characters.
fn shown(text: &str) -> String {
    const MOST: usize = 100;
    let short: String = text.chars().take(MOST).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("{short:?}{more}")
}

/// What was asked for, in the order in which it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum About {
    Command,
    Image,
    Mount,
    Network,
    User,
    Env,
    Isolation,
    Resource(Resource),
}

impl About {
    fn as_str(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Image => "image",
            Self::Mount => "mount",
            Self::Network => "network",
            Self::User => "user",
            Self::Env => "env",
            Self::Isolation => "isolation",
            Self::Resource(resource) => resource.as_str(),
        }
    }
}

/// A verdict with what it is weighed by.
struct Finding {
    about: About,
    /// A rule that names what it denies, before one that merely does not allow it.
    names_it: bool,
    weight: usize,
    kind: Kind,
    verdict: Verdict,
}

struct Judge<'a> {
    view: View<'a>,
    findings: Vec<Finding>,
}

impl<'a> Judge<'a> {
    fn denied(
        &mut self,
        about: About,
        kind: Kind,
        weight: Option<usize>,
        rule: &Rule,
        reason: String,
        remedy: Option<Remedy>,
    ) {
        let verdict =
            Verdict { about: about.as_str(), allowed: false, rule: rule.clone(), reason, remedy };
        let (names_it, weight) = (weight.is_some(), weight.unwrap_or(0));
        self.findings.push(Finding { about, names_it, weight, kind, verdict });
    }

    fn allowed(&mut self, about: About, kind: Kind, weight: usize, rule: &Rule, reason: String) {
        let verdict = Verdict {
            about: about.as_str(),
            allowed: true,
            rule: rule.clone(),
            reason,
            remedy: None,
        };
        self.findings.push(Finding { about, names_it: true, weight, kind, verdict });
    }

    fn kind_of(&self, rule: &Rule) -> Kind {
        if rule.file == "built-in" { Kind::BuiltIn } else { Kind::Administrator }
    }

    /// A thing against lists. The last is the key of a grant and the value that would allow it.
    fn lists<P>(
        &mut self,
        about: About,
        what: &str,
        allow: &Allow<'a, P>,
        hit: impl Fn(&P) -> bool,
        (key, value): (&str, Option<&str>),
    ) {
        let best = |entries: &mut dyn Iterator<Item = &'a Entry<P>>| {
            entries
                .filter(|entry| hit(&entry.pattern))
                .min_by_key(|entry| (Reverse(entry.weight), &entry.rule))
        };
        let granted = best(&mut allow.granted.iter().copied());
        let mut matches = Vec::new();
        for list in &allow.lists {
            match best(&mut list.entries.iter()).or(granted) {
                Some(entry) => matches.push((self.kind_of(&entry.rule), entry)),
                None => {
                    let remedy = value.map(|value| self.view.grant(key, value));
                    let reason = format!("{what} is not among what is allowed");
                    let kind = self.kind_of(&list.rule);
                    self.denied(about, kind, None, &list.rule, reason, remedy);
                }
            }
        }
        for list in &allow.narrowing {
            match best(&mut list.entries.iter()) {
                Some(entry) => matches.push((Kind::Project, entry)),
                None => {
                    let Rule { file, line, .. } = &list.rule;
                    let remedy = value.map(|value| Remedy {
                        text: format!("in the list of {file}:{line}, add:"),
                        toml: Some(inner(value).to_owned()),
                    });
                    let reason = format!("{what} is not among what the project allows");
                    self.denied(about, Kind::Project, None, &list.rule, reason, remedy);
                }
            }
        }
        let deciding = matches.into_iter().min_by_key(|(kind, entry)| {
            (*kind == Kind::BuiltIn, Reverse(entry.weight), &entry.rule)
        });
        if let Some((kind, entry)) = deciding {
            let reason = format!("{what} is allowed by {:?}", entry.text);
            self.allowed(about, kind, entry.weight, &entry.rule, reason);
        }
    }

    fn image(&mut self, image: &str) {
        let parts = image_components(image);
        let what = format!("image {}", shown(image));
        for (kind, entry) in self.view.denied(|layer| layer.images.deny.as_ref()) {
            if entry.pattern.matches(&parts) {
                let reason = format!("{what} is denied by {:?}", entry.text);
                let remedy = Some(take_out(&entry.rule));
                self.denied(About::Image, kind, Some(entry.weight), &entry.rule, reason, remedy);
            }
        }
        let value = PathPattern::image(image).is_ok() && !image.contains('*');
        let value = value.then(|| format!("[{}]", quoted(image)));
        let allow = self.view.images();
        let hit = |pattern: &PathPattern| pattern.matches(&parts);
        self.lists(About::Image, &what, &allow, hit, ("images", value.as_deref()));
    }

    fn mount(&mut self, mount: &Mount) {
        let about = About::Mount;
        let path = &mount.host_path;
        let what = format!("mount {}", shown(&path.to_string_lossy()));
        let is_resolved = path.is_absolute()
            && path
                .components()
                .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if !is_resolved {
            let text = "[mounts] paths are absolute and resolved".to_owned();
            let rule = Rule { file: "built-in".to_owned(), line: 0, text };
            let reason = format!("{what} is no resolved path");
            self.denied(about, Kind::BuiltIn, Some(0), &rule, reason, None);
            return;
        }
        let (exact, folded) = (components(path), folded_components(path));
        let requested = folded_components(&mount.requested);
        let is_absolute = mount.requested.is_absolute();
        let hits = |pattern: &PathPattern| {
            pattern.relation(&folded) == Relation::Within
                || (is_absolute || pattern.floats())
                    && pattern.relation(&requested) == Relation::Within
        };

        for (kind, entry) in self.view.hidden() {
            if hits(&entry.pattern) {
                let remedy = match kind {
                    Kind::BuiltIn => self.exception(&entry.text),
                    Kind::Administrator | Kind::Project => take_out(&entry.rule),
                };
                let reason = format!("{what} is denied by {:?}", entry.text);
                self.denied(about, kind, Some(entry.weight), &entry.rule, reason, Some(remedy));
            }
        }
        for layer in self.view.of(Kind::BuiltIn) {
            for entry in &layer.mounts.never {
                let holds =
                    !entry.pattern.floats() && entry.pattern.relation(&folded) == Relation::Above;
                if hits(&entry.pattern) || holds {
                    let verb = if holds { "holds" } else { "is" };
                    let reason = format!("{what} {verb} {:?}, which no guest is shown", entry.text);
                    let weight = Some(entry.weight);
                    self.denied(about, Kind::BuiltIn, weight, &entry.rule, reason, None);
                }
            }
            for entry in &layer.mounts.itself {
                let holds = entry.pattern.relation(&folded) == Relation::Above;
                if entry.pattern.matches(&folded) || holds {
                    let reason = format!("{what} is too much at once ({:?})", entry.text);
                    let text = "mount a directory below it".to_owned();
                    let remedy = Some(Remedy { text, toml: None });
                    let weight = Some(entry.weight);
                    self.denied(about, Kind::BuiltIn, weight, &entry.rule, reason, remedy);
                }
            }
        }
        if !mount.read_only {
            for layer in self.view.policy.layers() {
                let Some(read_only) = layer.mounts.read_only.as_ref().filter(|it| it.value) else {
                    continue;
                };
                let Rule { file, line, .. } = &read_only.rule;
                let text =
                    format!("ask for it read-only, or write read_only = false at {file}:{line}");
                let remedy = Some(Remedy { text, toml: None });
                let reason = format!("{what} is to be written to");
                self.denied(about, layer.kind, Some(0), &read_only.rule, reason, remedy);
            }
        }

        let value =
            path.to_str().filter(|path| PathPattern::root(path).is_ok() && !path.contains('*'));
        let value = value.map(|path| format!("[{}]", quoted(path)));
        let roots = self.view.roots();
        let hit = |pattern: &PathPattern| pattern.relation(&exact) == Relation::Within;
        self.lists(about, &what, &roots, hit, ("mount_roots", value.as_deref()));
    }

    fn exception(&self, pattern: &str) -> Remedy {
        let except =
            self.view.of(Kind::Administrator).find_map(|layer| layer.mounts.except.as_ref());
        match except {
            Some(Value { rule: Rule { file, line, .. }, .. }) => Remedy {
                text: format!("in the list of {file}:{line}, add:"),
                toml: Some(quoted(pattern)),
            },
            None => Remedy {
                text: format!("add to {}, under [mounts]:", self.view.administrators_file()),
                toml: Some(format!("except = [{}]", quoted(pattern))),
            },
        }
    }

    fn network(&mut self, mode: Network) {
        let what = format!("network {:?}", mode.as_str());
        let value = Some(format!("[{}]", quoted(mode.as_str())));
        let allow = self.view.network();
        self.lists(
            About::Network,
            &what,
            &allow,
            |one| *one == mode,
            ("network", value.as_deref()),
        );
    }

    fn env(&mut self, names: &[String]) {
        let (allow, deny) = (self.view.env(), self.view.denied(|layer| layer.env.deny.as_ref()));
        let before = self.findings.len();
        for name in names {
            let what = format!("variable {}", shown(name));
            for (kind, entry) in deny.iter().filter(|(_, entry)| entry.pattern.matches(name)) {
                let reason = format!("{what} is denied by {:?}", entry.text);
                let remedy = Some(take_out(&entry.rule));
                self.denied(About::Env, *kind, Some(entry.weight), &entry.rule, reason, remedy);
            }
            let hit = |glob: &Glob| glob.matches(name);
            self.lists(About::Env, &what, &allow, hit, ("env", named(name).as_deref()));
        }
        // One permission for each rule is enough to tell.
        let mut told = Vec::new();
        let mut env = self.findings.split_off(before);
        env.sort_by(|a, b| a.verdict.reason.cmp(&b.verdict.reason));
        env.retain(|finding| {
            let is_new = !finding.verdict.allowed || !told.contains(&finding.verdict.rule);
            told.push(finding.verdict.rule.clone());
            is_new
        });
        self.findings.append(&mut env);
    }

    fn exec(&mut self, exec: &Exec) {
        let (what, value) = match &exec.command {
            Command::Argv(argv) => {
                let program = argv.first().map_or("", String::as_str);
                let is_plain = CommandPattern::words([program].into_iter()).is_ok()
                    && !program.is_empty()
                    && !program.contains('*');
                let value = is_plain.then(|| format!("[[{}, \"**\"]]", quoted(program)));
                (format!("command {}", shown(program)), value)
            }
            Command::Shell(_) => {
                ("a line for the shell".to_owned(), Some("[\"sh -c *\"]".to_owned()))
            }
        };
        self.denied_commands(exec, &what);
        let allow = self.view.commands();
        let hit = |pattern: &CommandPattern| match &exec.command {
            Command::Argv(argv) => pattern.allows(argv),
            Command::Shell(line) => pattern.allows_shell(line),
        };
        self.lists(About::Command, &what, &allow, hit, ("commands", value.as_deref()));
        if let Some(user) = &exec.user {
            let users = self.view.users();
            let hit = |glob: &Glob| glob.matches(user);
            let what = format!("user {}", shown(user));
            self.lists(About::User, &what, &users, hit, ("users", named(user).as_deref()));
        }
        self.env(&exec.env_names);
    }

    fn denied_commands(&mut self, exec: &Exec, what: &str) {
        let deny = self.view.denied(|layer| layer.commands.deny.as_ref());
        let Some((first_kind, first)) = deny.first() else { return };
        let mut hits: Vec<Option<String>> = vec![None; deny.len()];
        let mut look = |words: &[String]| {
            for (hit, (_, entry)) in hits.iter_mut().zip(&deny) {
                if hit.is_none() && entry.pattern.denies(words) {
                    *hit = Some(words.first().map_or_else(String::new, |program| shown(program)));
                }
            }
        };
        let seen = match &exec.command {
            Command::Argv(argv) => shell::each_command(argv, &mut look),
            Command::Shell(line) => {
                let argv = ["/bin/sh", "-c", line].map(str::to_owned);
                shell::each_command(&argv, &mut look)
            }
        };
        for (hit, (kind, entry)) in hits.into_iter().zip(&deny) {
            let Some(program) = hit else { continue };
            let reason = format!("{what} runs {program}, denied by {:?}", entry.text);
            let (weight, remedy) = (Some(entry.weight), Some(take_out(&entry.rule)));
            self.denied(About::Command, *kind, weight, &entry.rule, reason, remedy);
        }
        if seen.is_err() {
            let reason = format!("{what} holds more commands than are looked at");
            let text = "run it in parts, or put it into a file".to_owned();
            let remedy = Some(Remedy { text, toml: None });
            self.denied(About::Command, *first_kind, None, &first.rule, reason, remedy);
        }
    }

    /// The weakest that an engine may give.
    fn isolation(&mut self, create: &Create) -> Isolation {
        let (weakest, stronger) = (self.view.weakest(), self.view.stronger());
        let mut least = Isolation::Process;
        for (kind, tier) in weakest
            .map(|tier| (self.kind_of(&tier.rule), tier))
            .into_iter()
            .chain(stronger.into_iter().map(|tier| (Kind::Project, tier)))
        {
            least = least.max(tier.value);
            let about = About::Isolation;
            match create.isolation.filter(|isolation| *isolation < tier.value) {
                Some(isolation) => {
                    let reason = format!("isolation {isolation} is weaker than {}", tier.value);
                    let Rule { file, line, .. } = &tier.rule;
                    let remedy = match kind {
                        Kind::Project => Remedy {
                            text: format!("at {file}:{line}, write:"),
                            toml: Some(format!("minimum = {}", quoted(isolation.as_str()))),
                        },
                        _ => self.view.grant("isolation", &quoted(isolation.as_str())),
                    };
                    self.denied(about, kind, None, &tier.rule, reason, Some(remedy));
                }
                None => {
                    let reason = format!("isolation {} or stronger is allowed", tier.value);
                    self.allowed(about, kind, 0, &tier.rule, reason);
                }
            }
        }
        // The host's own kernel is never an answer to a caller who did not name it.
        let asked = create.min_isolation.or(create.isolation).unwrap_or(Isolation::Emulated);
        least.max(asked)
    }

    fn resources(&mut self, create: &Create) {
        for &resource in Resource::ALL {
            let asked = match resource {
                Resource::Cpu => Some(u64::from(create.cpu)),
                Resource::MemoryMb => Some(u64::from(create.memory_mb)),
                Resource::DiskGb => Some(create.disk_gb.map_or(0, u64::from)),
                Resource::TimeoutSec => create.timeout_sec,
                Resource::Sandboxes => Some(create.sandboxes.saturating_add(1)),
            };
            self.resource(resource, asked);
        }
    }

    /// Also for a volume, which is a disk.
    fn resource(&mut self, resource: Resource, asked: Option<u64>) {
        let general = self.view.maximum(resource).map(|limit| (self.kind_of(&limit.rule), limit));
        let narrower = self.view.narrower(resource).into_iter().map(|it| (Kind::Project, it));
        for (kind, limit) in general.into_iter().chain(narrower) {
            self.limit(resource, asked, kind, limit);
        }
    }

    fn limit(&mut self, resource: Resource, asked: Option<u64>, kind: Kind, limit: &Value<u64>) {
        let (about, name, most) = (About::Resource(resource), resource.as_str(), limit.value);
        let Some(asked) = asked else {
            let text = format!("ask for a {name} of at most {most}");
            let remedy = Some(Remedy { text, toml: None });
            let reason = format!("{name}: without an end is more than {most}");
            return self.denied(about, kind, None, &limit.rule, reason, remedy);
        };
        if asked <= most {
            let reason = format!("{name}: {asked} is not more than {most}");
            return self.allowed(about, kind, 0, &limit.rule, reason);
        }
        let remedy = match kind {
            Kind::Project => Remedy {
                text: format!("at {}:{}, write:", limit.rule.file, limit.rule.line),
                toml: Some(format!("{} = {asked}", resource.key())),
            },
            Kind::BuiltIn | Kind::Administrator => {
                self.view.grant(resource.key(), &asked.to_string())
            }
        };
        let reason = format!("{name}: {asked} is more than {most}");
        self.denied(about, kind, None, &limit.rule, reason, Some(remedy));
    }

    fn decision(
        self,
        generation: Generation,
        mut masks: Vec<Masks>,
        min_isolation: Option<Isolation>,
    ) -> Decision {
        let mut findings = self.findings;
        let allowed = findings.iter().all(|finding| finding.verdict.allowed);
        if !allowed {
            findings.retain(|finding| !finding.verdict.allowed);
            masks.clear();
        }
        // The most specific first. Of permissions, what somebody wrote before what is built in.
        findings.sort_by(|a, b| {
            let key = |finding: &Finding| {
                let is_default = allowed && finding.kind == Kind::BuiltIn;
                (!finding.names_it, is_default, Reverse(finding.weight), finding.about)
            };
            let text =
                |finding: &Finding| (finding.verdict.rule.clone(), finding.verdict.reason.clone());
            key(a).cmp(&key(b)).then_with(|| text(a).cmp(&text(b)))
        });
        let verdicts: Vec<_> = findings.into_iter().map(|finding| finding.verdict).collect();
        // Fail closed: what no rule spoke about is not allowed.
        let Some(first) = verdicts.first() else {
            let rule = Rule { file: "built-in".to_owned(), line: 0, text: "no rule".to_owned() };
            let reason = "no rule speaks about this".to_owned();
            return Decision {
                allowed: false,
                rule,
                reason,
                remedy: None,
                generation,
                verdicts,
                masks: Vec::new(),
                min_isolation,
            };
        };
        Decision {
            allowed,
            rule: first.rule.clone(),
            reason: first.reason.clone(),
            remedy: first.remedy.clone(),
            generation,
            masks,
            min_isolation,
            verdicts,
        }
    }
}

/// An element of a list of one.
fn inner(list: &str) -> &str {
    list.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(list)
}

/// A list of one name, where it can be written as a pattern.
fn named(name: &str) -> Option<String> {
    (pattern::name(name).is_ok() && !name.contains('*')).then(|| format!("[{}]", quoted(name)))
}
