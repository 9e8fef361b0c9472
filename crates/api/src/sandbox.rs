//! Sandboxes: what is asked for, what there is, and how it is changed.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::{IntoParams, ToSchema};
use wire::text::Secret;

use crate::bound::{
    self, Cpus, CredentialUse, DiskGb, EngineName, Env, GuestPath, HostPath, ImageName,
    LabelFilter, Labels, MAX_MOUNTS, MemoryMb, Name, ProfileName, QuotaMb, RuleLine, Seconds,
    ServiceName, Workspace, at_most,
};
use crate::object::objects;
use crate::operation::UnknownName;
use crate::policy::PolicyRef;
use crate::volume::{Cache, MAX_VOLUMES, VolumeMount};
use crate::{Problem, State, Timestamp, Validate, page};

/// What stands between a task and the host, weakest first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// The host's own kernel, with namespaces and filters. Only ever by name.
    Process,
    /// A machine of its own in software.
    Emulated,
    /// A machine of its own behind the processor's virtualization.
    Vm,
}

impl Isolation {
    /// All of them, weakest first.
    pub const ALL: [Self; 3] = [Self::Process, Self::Emulated, Self::Vm];

    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Emulated => "emulated",
            Self::Vm => "vm",
        }
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Isolation {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        UnknownName::find(&Self::ALL, text, Self::as_str)
    }
}

/// What becomes of a sandbox whose time is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenTimedOut {
    /// Its machine goes, its record stays.
    Stop,
    /// It gets a new machine, and its time starts anew.
    Restart,
    /// All of it goes.
    #[default]
    Delete,
}

/// What becomes of a sandbox that ran no task for its idle time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenIdle {
    /// Its machine goes, its record stays.
    #[default]
    Stop,
    /// It gets a new machine, and its times start anew.
    Restart,
    /// Its machine goes to disk, and goes on from there with the next request.
    Hibernate,
    /// All of it goes.
    Delete,
}

/// What a sandbox can reach.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// Nothing.
    #[default]
    Offline,
    /// Package registries and git, reading only.
    Fetch,
    /// What a list of rules allows.
    Allow,
    /// Everything but private addresses.
    Open,
}

impl NetworkMode {
    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Fetch => "fetch",
            Self::Allow => "allow",
            Self::Open => "open",
        }
    }
}

/// A credential that a sandbox uses and never sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SandboxCredential {
    /// What stands for it within the sandbox.
    pub placeholder: String,
    /// Only what the service calls reading may be done with it.
    #[serde(default)]
    pub read_only: bool,
    /// Clients are told a base URL of the gateway's.
    #[serde(default)]
    pub gateway: bool,
}

/// Most rules of a request, of each kind.
const MAX_RULES: usize = 256;
/// Most credentials and profiles of a request.
const MAX_SERVICES: usize = 64;

/// Looks at the lists of a request that are about the network.
fn check_network(
    (allow, deny): (&[String], &[String]),
    (profiles, credentials): (&[String], &[String]),
) -> Result<(), Problem> {
    for (field, lines) in [("allow", allow), ("deny", deny)] {
        at_most(field, lines.len(), MAX_RULES, "rules")?;
        for (index, line) in lines.iter().enumerate() {
            RuleLine::check(&format!("{field}[{index}]"), line)?;
        }
    }
    at_most("profiles", profiles.len(), MAX_SERVICES, "names")?;
    for (index, name) in profiles.iter().enumerate() {
        ProfileName::check(&format!("profiles[{index}]"), name)?;
    }
    at_most("credentials", credentials.len(), MAX_SERVICES, "names")?;
    for (index, name) in credentials.iter().enumerate() {
        CredentialUse::check(&format!("credentials[{index}]"), name)?;
    }
    Ok(())
}

/// How a directory of the host is in a sandbox.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum MountMode {
    /// As a copy. Nothing comes back by itself.
    #[default]
    Copy,
    /// As a copy whose changes can be looked at, and applied to the host's directory or discarded.
    Review,
    /// As it is: both sides see what the other changes, at once.
    Live,
}

impl MountMode {
    /// As it is spelled in requests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Review => "review",
            Self::Live => "live",
        }
    }
}

/// A directory or file of the host that is given to the sandbox when it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Mount {
    /// Absolute path of the host.
    #[schema(value_type = bound::HostPath)]
    pub host_path: String,
    /// Absolute path of the guest.
    #[schema(value_type = bound::GuestPath)]
    pub guest_path: String,
    /// Tasks can read it and no more.
    #[serde(default)]
    pub read_only: bool,
    /// How it is given.
    #[serde(default)]
    pub mode: MountMode,
    /// What the guest may add to a live directory, in MiB by the sizes of files; as much as there is
    /// room for when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::QuotaMb>)]
    pub quota_mb: Option<u32>,
    /// Paths below a live directory, or globs, which the guest may change though other programs of the
    /// host run what they say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<bound::RelativePath>, max_items = 1024)]
    pub allow_protected: Vec<String>,
}

impl Mount {
    /// One that is as it is given when nothing else is said.
    pub fn new(
        host_path: impl Into<String>,
        guest_path: impl Into<String>,
        mode: MountMode,
        read_only: bool,
    ) -> Self {
        let (host_path, guest_path) = (host_path.into(), guest_path.into());
        Self { host_path, guest_path, read_only, mode, quota_mb: None, allow_protected: Vec::new() }
    }
}

impl Validate for Mount {
    fn validate(&self) -> Result<(), Problem> {
        HostPath::check("host_path", &self.host_path)?;
        GuestPath::check("guest_path", &self.guest_path)?;
        QuotaMb::check_some("quota_mb", self.quota_mb)?;
        crate::changes::check_paths("allow_protected", &self.allow_protected)?;
        let of_live = [
            ("quota_mb", self.quota_mb.is_some()),
            ("allow_protected", !self.allow_protected.is_empty()),
        ];
        match of_live.into_iter().find(|(_, is_given)| *is_given) {
            Some((field, _)) if self.mode != MountMode::Live => {
                Err(Problem::invalid(field, "is of directories that are shared live alone"))
            }
            _ => Ok(()),
        }
    }
}

/// A sandbox as it is asked for. Everything has a default; policy has maxima.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct CreateSandbox {
    /// What it is called, once in a workspace; its id when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Name>)]
    pub name: Option<String>,
    /// Its root; `base` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::ImageName>)]
    pub image: Option<String>,
    /// Virtual CPUs; two, or one where there is one, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Cpus>)]
    pub cpu: Option<u32>,
    /// Guest memory in MiB; 1024 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::MemoryMb>)]
    pub memory_mb: Option<u32>,
    /// Scratch disk in GiB; in guest memory when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::DiskGb>)]
    pub disk_gb: Option<u32>,
    /// Time to live from the start, in seconds; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Seconds>)]
    pub timeout_sec: Option<u64>,
    /// What follows when the time is up.
    #[serde(default)]
    pub on_timeout: WhenTimedOut,
    /// Time without a task, in seconds, after which `on_idle` follows; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Seconds>)]
    pub idle_timeout_sec: Option<u64>,
    /// What follows when it was idle for so long.
    #[serde(default)]
    pub on_idle: WhenIdle,
    /// What it can reach. When absent: nothing, or what the lists that follow allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMode>,
    /// Rules of what it may reach beside what its mode, its profiles and its credentials bring. A
    /// rule of a service begins with its name: `@github READ /repos/acme/**`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<bound::RuleLine>, max_items = 256)]
    pub allow: Vec<String>,
    /// Rules of what it may not reach, whatever allows it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<bound::RuleLine>, max_items = 256)]
    pub deny: Vec<String>,
    /// Named sets of rules and credentials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<bound::ProfileName>, max_items = 64)]
    pub profiles: Vec<String>,
    /// Services whose credentials its requests get outside of it, `=read-only` where they are not to
    /// be used in full. The sandbox has placeholders.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<bound::CredentialUse>, max_items = 64)]
    pub credentials: Vec<String>,
    /// Services of these credentials whose clients are told a base URL within the sandbox, where the
    /// gateway takes their requests. For clients that do not trust the sandbox's certificates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<bound::ServiceName>, max_items = 64)]
    pub gateways: Vec<String>,
    /// The environment of its tasks, under their own. Kept in memory only: a sandbox that is
    /// taken up again after the server's restart does not have it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = bound::Env)]
    pub env: BTreeMap<String, Secret>,
    /// What is copied in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 32)]
    pub mounts: Vec<Mount>,
    /// Disks of the workspace that outlive it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 5)]
    pub volumes: Vec<VolumeMount>,
    /// Caches of tools. Volumes and caches are five at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 4)]
    pub caches: Vec<Cache>,
    /// The weakest isolation that will do; `emulated` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_isolation: Option<Isolation>,
    /// An engine by name; the strongest when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::EngineName>)]
    pub engine: Option<String>,
    /// To find it by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = bound::Labels)]
    pub labels: BTreeMap<String, String>,
    /// Whose it is; the caller's own when absent. Only callers of all workspaces choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Workspace>)]
    pub workspace: Option<String>,
    /// Answer when it is ready (201), and not at once (202).
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub wait: bool,
}

fn yes() -> bool {
    true
}

impl Default for CreateSandbox {
    fn default() -> Self {
        Self {
            name: None,
            image: None,
            cpu: None,
            memory_mb: None,
            disk_gb: None,
            timeout_sec: None,
            on_timeout: WhenTimedOut::default(),
            idle_timeout_sec: None,
            on_idle: WhenIdle::default(),
            network: None,
            allow: Vec::new(),
            deny: Vec::new(),
            profiles: Vec::new(),
            credentials: Vec::new(),
            gateways: Vec::new(),
            env: BTreeMap::new(),
            mounts: Vec::new(),
            volumes: Vec::new(),
            caches: Vec::new(),
            min_isolation: None,
            engine: None,
            labels: BTreeMap::new(),
            workspace: None,
            wait: true,
        }
    }
}

impl CreateSandbox {
    /// The mode of the network that it asks for, also where it only lists what it wants.
    pub fn network_mode(&self) -> NetworkMode {
        let lists = [&self.allow, &self.profiles, &self.credentials];
        let wants = lists.iter().any(|list| !list.is_empty());
        self.network.unwrap_or(if wants { NetworkMode::Allow } else { NetworkMode::Offline })
    }
}

impl Validate for CreateSandbox {
    fn validate(&self) -> Result<(), Problem> {
        if let Some(name) = &self.name {
            Name::check("name", name)?;
            if is_sandbox_id(name) {
                return Err(Problem::invalid("name", "must not look like a sandbox's id"));
            }
        }
        ImageName::check_some("image", self.image.as_deref())?;
        Cpus::check_some("cpu", self.cpu)?;
        MemoryMb::check_some("memory_mb", self.memory_mb)?;
        DiskGb::check_some("disk_gb", self.disk_gb)?;
        Seconds::check_some("timeout_sec", self.timeout_sec)?;
        Seconds::check_some("idle_timeout_sec", self.idle_timeout_sec)?;
        check_network((&self.allow, &self.deny), (&self.profiles, &self.credentials))?;
        at_most("gateways", self.gateways.len(), MAX_SERVICES, "names")?;
        for (index, name) in self.gateways.iter().enumerate() {
            ServiceName::check(&format!("gateways[{index}]"), name)?;
        }
        Env::check("env", &self.env)?;
        at_most("mounts", self.mounts.len(), MAX_MOUNTS, "mounts")?;
        for (index, mount) in self.mounts.iter().enumerate() {
            mount.validate().map_err(|problem| problem.within(&format!("mounts[{index}]")))?;
        }
        at_most("volumes", self.volumes.len(), MAX_VOLUMES, "volumes")?;
        for (index, volume) in self.volumes.iter().enumerate() {
            volume.validate().map_err(|problem| problem.within(&format!("volumes[{index}]")))?;
        }
        let disks = self.volumes.len() + self.caches.len();
        at_most("caches", disks, MAX_VOLUMES, "volumes and caches")?;
        check_distinct(self)?;
        EngineName::check_some("engine", self.engine.as_deref())?;
        Labels::check("labels", &self.labels)?;
        Workspace::check_some("workspace", self.workspace.as_deref())
    }
}

/// A volume is in a sandbox once, and each at a path of its own.
fn check_distinct(create: &CreateSandbox) -> Result<(), Problem> {
    let mut names: Vec<_> = create.volumes.iter().map(|volume| volume.name.clone()).collect();
    names.extend(create.caches.iter().map(|cache| cache.tool.volume()));
    names.sort();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        None => Ok(()),
        Some(pair) => {
            let text = format!("the volume {:?} is named twice", pair[0]);
            Err(Problem::invalid("volumes", text))
        }
    }
}

/// Whether the text has the form of a sandbox's id: `sb-` and sixteen of `[a-z2-7]`.
pub(crate) fn is_sandbox_id(text: &str) -> bool {
    text.strip_prefix("sb-").is_some_and(|rest| {
        rest.len() == 16 && rest.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'))
    })
}

/// A field of a change: absent leaves it, `null` takes it away, a value sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Change<T> {
    /// As it is.
    #[default]
    Keep,
    /// None any more.
    Clear,
    /// This from now on.
    Set(T),
}

impl<T> Change<T> {
    /// Whether nothing changes.
    pub fn is_keep(&self) -> bool {
        matches!(self, Self::Keep)
    }

    /// The new value of what was `present`.
    pub fn apply(self, present: Option<T>) -> Option<T> {
        match self {
            Self::Keep => present,
            Self::Clear => None,
            Self::Set(value) => Some(value),
        }
    }

    fn set(&self) -> Option<&T> {
        match self {
            Self::Set(value) => Some(value),
            _ => None,
        }
    }
}

impl<T: Serialize> Serialize for Change<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.set().serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Change<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(deserializer)?.map_or(Self::Clear, Self::Set))
    }
}

/// A change of a sandbox. What is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct UpdateSandbox {
    /// All labels anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Labels>)]
    pub labels: Option<BTreeMap<String, String>>,
    /// Time to live from now on, in seconds; `null` for none.
    #[serde(default, skip_serializing_if = "Change::is_keep")]
    #[schema(value_type = Option<bound::Seconds>)]
    pub timeout_sec: Change<u64>,
    /// Idle time, in seconds; `null` for none.
    #[serde(default, skip_serializing_if = "Change::is_keep")]
    #[schema(value_type = Option<bound::Seconds>)]
    pub idle_timeout_sec: Change<u64>,
    /// What follows when the time is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_timeout: Option<WhenTimedOut>,
    /// What follows when it was idle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_idle: Option<WhenIdle>,
    /// What it can reach. A sandbox that was made without a network gets none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMode>,
    /// Rules in the place of those that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<bound::RuleLine>>, max_items = 256)]
    pub allow: Option<Vec<String>>,
    /// Denials in the place of those that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<bound::RuleLine>>, max_items = 256)]
    pub deny: Option<Vec<String>>,
}

impl Validate for UpdateSandbox {
    fn validate(&self) -> Result<(), Problem> {
        if let Some(labels) = &self.labels {
            Labels::check("labels", labels)?;
        }
        Seconds::check_some("timeout_sec", self.timeout_sec.set().copied())?;
        Seconds::check_some("idle_timeout_sec", self.idle_timeout_sec.set().copied())?;
        let lines = |lines: &Option<Vec<String>>| lines.clone().unwrap_or_default();
        check_network((&lines(&self.allow), &lines(&self.deny)), (&[], &[]))
    }
}

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Sandbox {
    /// `sb-` and sixteen of `[a-z2-7]`; never used again.
    pub id: String,
    /// What it is called in its workspace.
    pub name: String,
    /// Whose it is.
    pub workspace: String,
    /// Where it is in its life.
    pub state: State,
    /// Why it failed or was stopped, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its root.
    pub image: String,
    /// What runs it, once that is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// What stands between its tasks and the host, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// The weakest isolation that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_isolation: Option<Isolation>,
    /// Virtual CPUs, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u32>,
    /// Guest memory in MiB.
    pub memory_mb: u32,
    /// Scratch disk in GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_gb: Option<u32>,
    /// Time to live in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_sec: Option<u64>,
    /// What follows when the time is up.
    pub on_timeout: WhenTimedOut,
    /// Idle time in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_sec: Option<u64>,
    /// What follows when it was idle.
    pub on_idle: WhenIdle,
    /// What it can reach.
    pub network: NetworkMode,
    /// Its rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Its denials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
    /// Its profiles.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<String>,
    /// The services whose credentials it uses, each with what stands for the credential within it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub credentials: BTreeMap<String, SandboxCredential>,
    /// What was copied in.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Its disks that outlive it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeMount>,
    /// Its caches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caches: Vec<Cache>,
    /// Names of the default environment; the values are not shown.
    #[serde(default)]
    pub env_names: Vec<String>,
    /// To find it by.
    pub labels: BTreeMap<String, String>,
    /// Who made it.
    pub created_by: String,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it was last ready for the first task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When its machine went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// When its time is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Since when no task runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_at: Option<Timestamp>,
    /// Tasks that run.
    pub running: u32,
    /// Rises with every change; the ETag is this number in quotes.
    pub version: u64,
    /// The snapshot, or the sandbox, that it went on from when it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// The decision that allowed it.
    pub policy: PolicyRef,
    /// How long it took to come up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
    /// What it used, once its machine has gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

impl Sandbox {
    /// The ETag header.
    pub fn etag(&self) -> String {
        format!("\"{}\"", self.version)
    }
}

/// How long each step to a usable sandbox took, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct Timings {
    /// In the queue.
    pub queue_ms: f64,
    /// Finding, or making, the image, the kernel and the initramfs.
    pub prepare_ms: f64,
    /// Starting the confined monitor.
    pub process_ms: f64,
    /// From there until the agent's greeting.
    pub kernel_ms: f64,
    /// Fresh clock and entropy.
    pub agent_ms: f64,
}

/// What a sandbox used in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// CPU time of its machine, in milliseconds.
    pub cpu_ms: u64,
    /// Highest memory of its machine, in bytes.
    pub memory_peak_bytes: u64,
    /// How long its machine ran, in milliseconds.
    pub uptime_ms: u64,
}

/// What a sandbox uses now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    /// When this was measured.
    pub at: Timestamp,
    /// Where it was in its life.
    pub state: State,
    /// Tasks that run.
    pub running: u32,
    /// CPU time, highest memory and uptime so far.
    #[serde(flatten)]
    pub usage: Usage,
}

/// Which sandboxes. Filters of different kinds must all fit; of `state`, one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListSandboxes {
    /// In one of these states; all but `destroyed` when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[param(max_items = 12)]
    pub state: Vec<State>,
    /// With this label (`key`), or with this value of it (`key=value`); all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[param(value_type = Vec<bound::LabelFilter>, max_items = 16)]
    pub label: Vec<String>,
    /// Of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::Name>, nullable = false)]
    pub name: Option<String>,
    /// Of this workspace. Only callers of all workspaces see more than their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::Workspace>, nullable = false)]
    pub workspace: Option<String>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::Cursor>, nullable = false)]
    pub cursor: Option<String>,
    /// Most items; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::PageLimit>, nullable = false)]
    pub limit: Option<u32>,
}

impl ListSandboxes {
    /// The label filters as keys and, where given, values.
    pub fn labels(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.label.iter().map(|filter| match filter.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (filter.as_str(), None),
        })
    }
}

impl Validate for ListSandboxes {
    fn validate(&self) -> Result<(), Problem> {
        at_most("state", self.state.len(), 12, "states")?;
        at_most("label", self.label.len(), 16, "labels")?;
        self.label.iter().try_for_each(|filter| LabelFilter::check("label", filter))?;
        Name::check_some("name", self.name.as_deref())?;
        Workspace::check_some("workspace", self.workspace.as_deref())?;
        page::check(self.cursor.as_deref(), self.limit)
    }
}

/// Which mount is taken away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct MountQuery {
    /// Where it is in the sandbox.
    #[param(value_type = bound::GuestPath)]
    pub guest_path: String,
}

impl Validate for MountQuery {
    fn validate(&self) -> Result<(), Problem> {
        GuestPath::check("guest_path", &self.guest_path)
    }
}

/// How a sandbox is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeleteQuery {
    /// Answer when nothing is left of it (200), and not at once (202).
    #[serde(default = "yes")]
    #[param(default = true)]
    pub wait: bool,
}

impl Default for DeleteQuery {
    fn default() -> Self {
        Self { wait: true }
    }
}

impl Validate for DeleteQuery {
    fn validate(&self) -> Result<(), Problem> {
        Ok(())
    }
}

objects!(CreateSandbox, UpdateSandbox, Mount);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{parse_query, render_query};

    fn refused_field(json: serde_json::Value) -> String {
        let request: CreateSandbox = serde_json::from_value(json).unwrap();
        request.validate().unwrap_err().field().unwrap().to_owned()
    }

    #[test]
    fn an_empty_request_is_the_default() {
        let request: CreateSandbox = serde_json::from_str("{}").unwrap();
        assert_eq!(request, CreateSandbox::default());
        assert_eq!(request.validate(), Ok(()));
        assert_eq!(request.on_timeout, WhenTimedOut::Delete);
        assert_eq!(request.on_idle, WhenIdle::Stop);
        assert!(request.wait);
    }

    #[test]
    fn unknown_fields_are_refused() {
        assert!(serde_json::from_value::<CreateSandbox>(json!({"cpus": 2})).is_err());
        assert!(serde_json::from_value::<UpdateSandbox>(json!({"image": "x"})).is_err());
        let mount = json!({"mounts": [{"host_path": "/a", "guest_path": "/b", "ro": true}]});
        assert!(serde_json::from_value::<CreateSandbox>(mount).is_err());
    }

    #[test]
    fn a_list_is_no_object() {
        assert!(serde_json::from_value::<CreateSandbox>(json!([])).is_err());
        assert!(serde_json::from_value::<CreateSandbox>(json!(["box"])).is_err());
        assert!(serde_json::from_value::<UpdateSandbox>(json!([])).is_err());
        let mount = json!({"mounts": [["/a", "/b", true]]});
        assert!(serde_json::from_value::<CreateSandbox>(mount).is_err());
        let tty = json!({"command": "x", "tty": [24, 80]});
        assert!(serde_json::from_value::<crate::Exec>(tty).is_err());
    }

    #[test]
    fn each_bound_names_its_field() {
        for (json, field) in [
            (json!({"name": "a/b"}), "name"),
            (json!({"name": "sb-mzxw6ytboi4dqmrq"}), "name"),
            (json!({"image": ""}), "image"),
            (json!({"cpu": 0}), "cpu"),
            (json!({"memory_mb": 64}), "memory_mb"),
            (json!({"disk_gb": 0}), "disk_gb"),
            (json!({"timeout_sec": 0}), "timeout_sec"),
            (json!({"idle_timeout_sec": 31_536_001}), "idle_timeout_sec"),
            (json!({"allow": ["a\nb"]}), "allow[0]"),
            (json!({"deny": [""]}), "deny[0]"),
            (json!({"profiles": ["Claude"]}), "profiles[0]"),
            (json!({"credentials": ["github=write"]}), "credentials[0]"),
            (json!({"env": {"A=B": "x"}}), "env"),
            (json!({"mounts": [{"host_path": "a", "guest_path": "/b"}]}), "mounts[0].host_path"),
            (json!({"mounts": [{"host_path": "/a", "guest_path": "b"}]}), "mounts[0].guest_path"),
            (json!({"engine": "KVM"}), "engine"),
            (json!({"labels": {"": "x"}}), "labels"),
            (json!({"labels": {"a": "x\n"}}), "labels.a"),
            (json!({"workspace": "A"}), "workspace"),
        ] {
            assert_eq!(refused_field(json.clone()), field, "{json}");
        }
    }

    #[test]
    fn an_environment_does_not_print() {
        let request: CreateSandbox =
            serde_json::from_value(json!({"env": {"KEY": "hunter2"}})).unwrap();
        assert!(!format!("{request:?}").contains("hunter2"));
    }

    #[test]
    fn a_change_tells_absent_from_null() {
        let change: UpdateSandbox = serde_json::from_value(json!({"timeout_sec": null})).unwrap();
        assert_eq!(change.timeout_sec, Change::Clear);
        assert_eq!(change.idle_timeout_sec, Change::Keep);
        assert_eq!(serde_json::to_value(&change).unwrap(), json!({"timeout_sec": null}));
        let change: UpdateSandbox = serde_json::from_value(json!({"timeout_sec": 5})).unwrap();
        assert_eq!(change.timeout_sec.apply(Some(9)), Some(5));
    }

    #[test]
    fn a_list_query_survives_the_round_trip() {
        let query = ListSandboxes {
            state: vec![State::Ready, State::Executing],
            label: vec!["team=red & blue=1".into(), "mine".into()],
            name: Some("box".into()),
            limit: Some(7),
            ..ListSandboxes::default()
        };
        let text = render_query(&query);
        assert_eq!(parse_query::<ListSandboxes>(&text), Ok(query.clone()));
        assert_eq!(
            query.labels().collect::<Vec<_>>(),
            [("team", Some("red & blue=1")), ("mine", None)]
        );
    }

    #[test]
    fn a_list_query_is_strict() {
        assert_eq!(parse_query::<ListSandboxes>(""), Ok(ListSandboxes::default()));
        for query in [
            "limit=0",
            "limit=1001",
            "limit=x",
            "limit=",
            "limit=1&limit=2",
            "state=gone",
            "x=1",
            "cursor=%00",
        ] {
            assert!(parse_query::<ListSandboxes>(query).is_err(), "{query}");
        }
    }
}
