//! What a fleet is told when it is opened, and what comes with each request.

use std::path::PathBuf;
use std::time::Duration;

use api::Secret;

/// Who a fleet works for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Many callers, for weeks: takes up everything that no living process owns, and keeps time.
    Daemon,
    /// One command: takes up what it needs when it needs it.
    Embedded,
}

/// How a fleet works. Every bound is here, with its default.
#[derive(Debug, Clone)]
pub struct Config {
    /// Who it works for.
    pub mode: Mode,
    /// The directory of the state, made private if need be.
    pub data: PathBuf,
    /// The administrator's policy. None is the built-in one alone.
    pub policy: Option<PathBuf>,
    /// The project's policy, which can only narrow.
    pub project_policy: Option<PathBuf>,
    /// How servers of the network are found and trusted.
    pub upstream: egress::Options,
    /// Sandboxes with a machine, or on their way to one.
    pub max_sandboxes: usize,
    /// Machines that come up at once.
    pub max_booting: usize,
    /// Sandboxes that wait to come up; beyond, requests are refused.
    pub max_queued: usize,
    /// What callers are told to wait where there is no place.
    pub retry_after: Duration,
    /// Tasks that one sandbox runs at once.
    pub max_tasks: u32,
    /// Commands and new sandboxes are taken only with a signature.
    pub require_signatures: bool,
    /// The administrator's token, where there is one beside those on record.
    pub administrator_token: Option<Secret>,
    /// Who else makes tokens that are taken.
    pub identity_provider: Option<access::jwt::Config>,
    /// How the state is kept.
    pub store: store::Options,
    /// How credentials are kept, in `secrets` below the data.
    pub secrets: secrets::Options,
    /// The services that take credentials.
    pub catalogue: services::Catalogue,
    /// The workspace of callers that are bound to none and name none.
    pub default_workspace: String,
}

impl Config {
    /// A fleet of this mode whose state is in `data`, with every default.
    pub fn new(mode: Mode, data: impl Into<PathBuf>) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            mode,
            data: data.into(),
            policy: None,
            project_policy: None,
            upstream: egress::Options::default(),
            max_sandboxes: 1000,
            max_booting: (2 * cpus).max(4),
            max_queued: 256,
            retry_after: Duration::from_secs(2),
            max_tasks: 128,
            require_signatures: false,
            administrator_token: None,
            identity_provider: None,
            store: store::Options::default(),
            secrets: secrets::Options::default(),
            catalogue: services::Catalogue::built_in(),
            default_workspace: "default".into(),
        }
    }
}

/// Where a request came from. It goes to the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Provenance {
    /// SHA-256 of the request as it was received, in hexadecimal, where it came over the API.
    pub request_digest: Option<String>,
    /// Its signature, where it had one and that was verified.
    pub signature: Option<VerifiedSignature>,
    /// Its Idempotency-Key.
    pub idempotency_key: Option<String>,
    /// The other end, such as an address or `unix`.
    pub remote: String,
}

/// A signature that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedSignature {
    /// The id of the key.
    pub key_id: String,
    /// SHA-256 of what was signed, in hexadecimal.
    pub digest: String,
}
