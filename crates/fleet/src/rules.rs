//! Between requests and policy: what is asked, and what the answer means.

use std::path::{Path, PathBuf};

use access::Caller;
use api::{
    Code, Command, CreateSandbox, Exec, ListSandboxes, NetworkMode, PolicyRef, Problem, RuleRef,
    Sandbox, State, Timestamp, UpdateSandbox,
};
use policy::{Decision, Generation, Host, Kind, Layer, Live, Request, Subject};
use supervisor::ImageRef;

use crate::config::Config;
use crate::host_path::{HostPath, folded};
use crate::life::isolation;
use crate::manager::Manager;
use crate::mount::Mounted;
use crate::{Error, OpenError};

/// The image of a sandbox on the host's own kernel.
pub(crate) const HOST_IMAGE: &str = "host";
/// The image of the others, when the request names none.
const DEFAULT_IMAGE: &str = "base";
/// Guest memory when the request does not say.
const DEFAULT_MEMORY_MB: u32 = 1024;
/// Most bytes of a policy's file.
const MAX_POLICY: u64 = 1 << 20;

/// The one spelling of an image's name: a rule is not got round by another one of what it names.
fn spelling(name: &str) -> String {
    let Ok(ImageRef::Oci(reference)) = name.parse() else { return name.to_owned() };
    let familiar = reference.familiar();
    match familiar.parse() {
        Ok(ImageRef::Oci(_)) => familiar,
        // A word alone is a name of the store.
        _ => format!("{familiar}:latest"),
    }
}

/// The policy's layers, as they are on disk now.
pub(crate) fn layers(config: &Config) -> Result<Vec<Layer>, OpenError> {
    let files = [
        (config.policy.as_deref(), Kind::Administrator),
        (config.project_policy.as_deref(), Kind::Project),
    ];
    let mut layers = Vec::new();
    for (path, kind) in files {
        let Some(path) = path else { continue };
        let failed = |source| OpenError::ReadPolicy { path: path.to_owned(), source };
        let size = match std::fs::metadata(path) {
            // The default place may be empty.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            metadata => metadata.map_err(failed)?.len(),
        };
        if size > MAX_POLICY {
            return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        layers.push(Layer::parse(&path.display().to_string(), &text, kind)?);
    }
    Ok(layers)
}

/// The policy, with the directories that no guest sees. `generation` is its
/// number.
pub(crate) fn load(config: &Config, generation: u64) -> Result<Live, OpenError> {
    let resolved =
        |path: &Path| HostPath::resolve(path).ok().map(|path| PathBuf::from(path.real()));
    let home = std::env::var_os("HOME").and_then(|home| resolved(Path::new(&home)));
    let mut own = vec![config.data.clone(), crate::paths::runtime()];
    own.extend(crate::paths::config().ok());
    let own = own.iter().map(|path| resolved(path).unwrap_or_else(|| path.clone())).collect();
    Ok(Live::new(Host { home, own }, layers(config)?, Generation(generation))?)
}

pub(crate) fn reference(decision: &Decision) -> PolicyRef {
    PolicyRef { generation: decision.generation.0, rule: rule(&decision.rule) }
}

pub(crate) fn rule(rule: &policy::Rule) -> RuleRef {
    RuleRef { file: rule.file.clone(), line: rule.line, text: rule.text.clone() }
}

pub(crate) fn problem(decision: &Decision) -> Problem {
    let problem =
        Problem::new(Code::PolicyDenied, decision.reason.clone()).with_rule(rule(&decision.rule));
    match &decision.remedy {
        Some(remedy) => problem.with_remedy(remedy.to_string()),
        None => problem,
    }
}

pub(crate) fn subject(caller: &Caller, workspace: &str) -> Subject {
    let role = match caller.is_administrator() {
        true => policy::Role::Administrator,
        false => role(caller.role),
    };
    Subject { name: caller.subject.clone(), role, workspace: Some(workspace.to_owned()) }
}

pub(crate) fn role(role: api::Role) -> policy::Role {
    match role {
        api::Role::Owner => policy::Role::Owner,
        api::Role::Member => policy::Role::Member,
        api::Role::Viewer => policy::Role::Viewer,
    }
}

/// What the API says of an image.
pub(crate) fn image_info(info: supervisor::ImageInfo) -> api::Image {
    let supervisor::ImageInfo { manifest, disk_bytes, stale, .. } = info;
    api::Image {
        name: manifest.name,
        digest: manifest.digest,
        size: manifest.size,
        disk_bytes,
        created_at: seconds(manifest.created),
        source: manifest.source,
        stale,
    }
}

fn seconds(since_1970: u64) -> Timestamp {
    Timestamp::from_unix_ms(i64::try_from(since_1970.saturating_mul(1000)).unwrap_or(i64::MAX))
}

fn default_cpus() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(cpus).unwrap_or(1).min(2)
}

pub(crate) fn policy_isolation(tier: api::Isolation) -> policy::Isolation {
    match tier {
        api::Isolation::Process => policy::Isolation::Process,
        api::Isolation::Emulated => policy::Isolation::Emulated,
        api::Isolation::Vm => policy::Isolation::Vm,
    }
}

fn api_isolation(tier: policy::Isolation) -> api::Isolation {
    match tier {
        policy::Isolation::Process => api::Isolation::Process,
        policy::Isolation::Emulated => api::Isolation::Emulated,
        policy::Isolation::Vm => api::Isolation::Vm,
    }
}

pub(crate) fn network(mode: NetworkMode) -> policy::Network {
    match mode {
        NetworkMode::Offline => policy::Network::Offline,
        NetworkMode::Fetch => policy::Network::Fetch,
        NetworkMode::Allow => policy::Network::Allow,
        NetworkMode::Open => policy::Network::Open,
    }
}

/// What policy is asked about a command.
pub(crate) fn exec(caller: &Caller, row: &Sandbox, exec: &Exec) -> Request {
    exec_in(subject(caller, &row.workspace), &row.env_names, exec)
}

pub(crate) fn exec_in(who: Subject, inherited: &[String], exec: &Exec) -> Request {
    let mut env_names: Vec<String> = inherited.to_vec();
    env_names.extend(exec.env.keys().cloned());
    env_names.sort();
    env_names.dedup();
    let command = match &exec.command {
        Command::Argv(words) => {
            policy::Command::Argv(words.iter().map(|word| word.to_string_lossy()).collect())
        }
        Command::Shell(line) => policy::Command::Shell(line.to_string_lossy()),
    };
    Request::Exec(policy::Exec { who, command, user: exec.user.clone(), env_names })
}

/// A command for a person: words that a shell would read as these, cut where it is long. Arguments
/// may be anything, so that they are shown to who may see the sandbox, and are in no audit record.
pub(crate) fn command_text(command: &Command) -> String {
    const LONGEST: usize = 1024;
    let text = match command {
        Command::Shell(line) => line.to_string_lossy(),
        Command::Argv(words) => {
            let quoted: Vec<String> =
                words.iter().map(|word| quoted(&word.to_string_lossy())).collect();
            quoted.join(" ")
        }
    };
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./=:,@%+".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

impl Manager {
    /// What policy is asked about a new sandbox.
    pub(crate) fn question(
        &self,
        who: Subject,
        request: &CreateSandbox,
        mounts: &Result<Vec<Mounted>, Error>,
        sandboxes: u64,
    ) -> Result<policy::Create, Error> {
        let named = match &request.engine {
            None => None,
            Some(name) => match self.supervisor.engine(name) {
                Some(engine) => Some(engine.isolation()),
                None => return Err(supervisor::Error::NoSuchEngine(name.clone()).into()),
            },
        };
        let tier = named.map(crate::life::tier);
        let default_image = match tier {
            Some(api::Isolation::Process) => HOST_IMAGE,
            _ => DEFAULT_IMAGE,
        };
        // What cannot be looked at is judged as it is written: who may not have it is not told whether
        // it is there.
        let mut unseen = mounts.as_ref().err().cloned();
        let mounts = match mounts {
            Ok(mounts) => mounts.iter().map(Mounted::request).collect(),
            Err(_) => request.mounts.iter().map(Mounted::unseen).collect(),
        };
        let image = match &request.image {
            // A path is what it leads to, for the rules and for the engine.
            Some(path) if path.starts_with('/') => match HostPath::resolve(Path::new(path)) {
                Ok(image) => image.real().to_owned(),
                Err(error) => {
                    unseen
                        .get_or_insert_with(|| Problem::invalid("image", error.to_string()).into());
                    folded(Path::new(path)).to_string_lossy().into_owned()
                }
            },
            Some(name) => spelling(name),
            None => default_image.to_owned(),
        };
        let question = policy::Create {
            who,
            cpu: request.cpu.unwrap_or_else(default_cpus),
            memory_mb: request.memory_mb.unwrap_or(DEFAULT_MEMORY_MB),
            disk_gb: request.disk_gb,
            timeout_sec: request.timeout_sec,
            image,
            mounts,
            network: network(request.network_mode()),
            env_names: request.env.keys().cloned().collect(),
            min_isolation: request.min_isolation.map(policy_isolation),
            isolation: tier.map(policy_isolation),
            sandboxes,
        };
        match unseen {
            Some(error)
                if self.policy.load().decide(&Request::Create(question.clone())).allowed =>
            {
                Err(error)
            }
            _ => Ok(question),
        }
    }

    /// What policy is asked about a sandbox that starts again.
    pub(crate) fn question_of_start(
        &self,
        caller: &Caller,
        row: &Sandbox,
        mounts: &[Mounted],
    ) -> Request {
        self.question_about(subject(caller, &row.workspace), row, mounts)
    }

    fn question_about(&self, who: Subject, row: &Sandbox, mounts: &[Mounted]) -> Request {
        Request::Create(policy::Create {
            who,
            cpu: row.cpu.unwrap_or_else(default_cpus),
            memory_mb: row.memory_mb,
            disk_gb: row.disk_gb,
            timeout_sec: row.timeout_sec,
            image: row.image.clone(),
            mounts: mounts.iter().map(Mounted::request).collect(),
            network: network(row.network),
            env_names: row.env_names.clone(),
            min_isolation: row.min_isolation.map(policy_isolation),
            isolation: row.isolation.map(policy_isolation),
            sandboxes: 0,
        })
    }

    /// What policy is asked about a sandbox that goes on from this one: about all that it had, also
    /// what is not looked at any more.
    pub(crate) fn question_of_offspring(
        &self,
        caller: &Caller,
        row: &Sandbox,
        mounts: Vec<policy::Mount>,
        sandboxes: u64,
    ) -> Request {
        match self.question_about(subject(caller, &row.workspace), row, &[]) {
            Request::Create(create) => {
                Request::Create(policy::Create { mounts, sandboxes, ..create })
            }
            other => other,
        }
    }

    /// What policy is asked about a sandbox that was accepted, by nobody in particular: as much
    /// as its workspace may.
    pub(crate) fn question_again(&self, row: &Sandbox, mounts: &[Mounted]) -> Request {
        let who = Subject {
            name: row.created_by.clone(),
            role: policy::Role::Member,
            workspace: Some(row.workspace.clone()),
        };
        self.question_about(who, row, mounts)
    }

    /// What policy is asked about a change, where it has a say.
    pub(crate) fn question_of_change(
        &self,
        caller: &Caller,
        row: &Sandbox,
        change: &UpdateSandbox,
    ) -> Option<Request> {
        let about_network = change.network.is_some() || change.allow.is_some();
        let asks = about_network || !change.timeout_sec.is_keep();
        asks.then(|| {
            let next = changed(row, change.clone());
            self.question_of_start(caller, &next, &[])
        })
    }
}

/// The row of a sandbox that policy allows.
pub(crate) fn row(
    id: &str,
    caller: &Caller,
    request: &CreateSandbox,
    question: &policy::Create,
    decision: &Decision,
) -> Sandbox {
    let workspace = question.who.workspace.clone().unwrap_or_default();
    // On the host's kernel there is neither a number of processors nor an image to choose, so
    // that the engine refuses what is named.
    Sandbox {
        id: id.to_owned(),
        name: request.name.clone().unwrap_or_else(|| id.to_owned()),
        workspace,
        state: State::Requested,
        reason: None,
        image: question.image.clone(),
        engine: request.engine.clone(),
        isolation: None,
        min_isolation: decision.min_isolation.map(api_isolation),
        cpu: request.cpu,
        memory_mb: question.memory_mb,
        disk_gb: request.disk_gb,
        timeout_sec: request.timeout_sec,
        on_timeout: request.on_timeout,
        idle_timeout_sec: request.idle_timeout_sec,
        on_idle: request.on_idle,
        network: request.network_mode(),
        allow: request.allow.clone(),
        deny: request.deny.clone(),
        profiles: request.profiles.clone(),
        credentials: Default::default(),
        mounts: request.mounts.clone(),
        volumes: request.volumes.clone(),
        caches: request.caches.clone(),
        env_names: question.env_names.clone(),
        labels: request.labels.clone(),
        created_by: caller.subject.clone(),
        created_at: Timestamp::now(),
        started_at: None,
        ended_at: None,
        expires_at: None,
        idle_at: None,
        running: 0,
        version: 1,
        origin: None,
        policy: reference(decision),
        timings: None,
        usage: None,
    }
}

/// The mounts with what policy hides of each.
pub(crate) fn with_masks(mounts: Vec<Mounted>, decision: &Decision) -> Vec<Mounted> {
    let with = |mount: Mounted| {
        let mut all = decision.masks.iter();
        let masks = all.find(|masks| masks.host_path == Path::new(mount.host.real())).cloned();
        Mounted { masks, ..mount }
    };
    mounts.into_iter().map(with).collect()
}

/// The row with a change applied.
pub(crate) fn changed(row: &Sandbox, change: UpdateSandbox) -> Sandbox {
    let mut next = row.clone();
    if let Some(labels) = change.labels {
        next.labels = labels;
    }
    if !change.timeout_sec.is_keep() {
        next.timeout_sec = change.timeout_sec.apply(row.timeout_sec);
        // From now on, where there is a machine whose time runs.
        if row.started_at.is_some() && row.state.has_machine() {
            let now = Timestamp::now();
            let after = |sec| now.after(std::time::Duration::from_secs(sec));
            next.expires_at = next.timeout_sec.map(after);
        }
    }
    next.idle_timeout_sec = change.idle_timeout_sec.apply(row.idle_timeout_sec);
    next.on_timeout = change.on_timeout.unwrap_or(row.on_timeout);
    next.on_idle = change.on_idle.unwrap_or(row.on_idle);
    next.network = change.network.unwrap_or(row.network);
    next.allow = change.allow.unwrap_or_else(|| row.allow.clone());
    next.deny = change.deny.unwrap_or_else(|| row.deny.clone());
    next
}

/// Whether a sandbox is one that a query asks for.
pub(crate) fn fits(row: &Sandbox, workspace: Option<&str>, query: &ListSandboxes) -> bool {
    let mut labels = query.labels();
    workspace.is_none_or(|workspace| row.workspace == workspace)
        && (query.state.is_empty() || query.state.contains(&row.state))
        && query.name.as_ref().is_none_or(|name| *name == row.name)
        && labels.all(|(key, value)| {
            row.labels.get(key).is_some_and(|found| value.is_none_or(|value| value == found))
        })
}

/// What the machine of a row must be at least.
pub(crate) fn least(row: &Sandbox) -> Option<supervisor::Isolation> {
    row.min_isolation.map(isolation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_one_spelling_for_the_rules() {
        for name in ["debian:9", "docker.io/debian:9", "docker.io/library/debian:9"] {
            assert_eq!(spelling(name), "debian:9");
        }
        assert_eq!(spelling("docker.io/library/debian"), "debian:latest");
        assert_eq!(spelling("GHCR.io/acme/tool:1"), "ghcr.io/acme/tool:1");
        for name in ["base", "/srv/root.tar", "./root.tar"] {
            assert_eq!(spelling(name), name);
        }
    }

    #[test]
    fn a_command_is_shown_as_a_shell_would_read_it() {
        let argv = |words: &[&str]| {
            command_text(&Command::Argv(words.iter().map(|word| (*word).into()).collect()))
        };
        assert_eq!(argv(&["make", "-j2", "a b", ""]), "make -j2 'a b' ''");
        assert_eq!(argv(&["it's"]), r"'it'\''s'");
        let long = command_text(&Command::Shell("é".repeat(5000).as_str().into()));
        assert_eq!(long.chars().count(), 1025);
    }
}
