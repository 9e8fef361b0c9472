//! The server and its host.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Isolation, Operation, Role, Timestamp};

/// The server answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
}

/// Whether the server takes work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ready {
    /// Everything passed.
    pub ready: bool,
    /// What was looked at.
    pub checks: Vec<ReadyCheck>,
}

/// One thing that the server needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReadyCheck {
    /// What.
    pub name: String,
    /// Whether it is there.
    pub ok: bool,
    /// Why not, in words that tell nothing of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What the server is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// Of the program.
    pub version: String,
    /// Of the API: `v1`.
    pub api: String,
}

/// How a caller was known.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum CallerKind {
    /// By the administrator's token.
    Administrator,
    /// By a token.
    Token,
    /// By a token of an identity provider.
    Jwt,
    /// By its user of this host.
    Local,
}

impl CallerKind {
    /// The name in JSON and in audit records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Administrator => "administrator",
            Self::Token => "token",
            Self::Jwt => "jwt",
            Self::Local => "local",
        }
    }
}

/// Who the caller is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CallerInfo {
    /// Its name.
    pub subject: String,
    /// How it was known.
    pub kind: CallerKind,
    /// What it may do.
    pub role: Role,
    /// Where; everywhere when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// Only these operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Operation>>)]
    pub operations: Option<BTreeSet<Operation>>,
}

/// An image of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// What it is called.
    pub name: String,
    /// SHA-256, in hexadecimal.
    pub digest: String,
    /// Its length in bytes.
    pub size: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// What it was made of.
    pub source: String,
    /// Its recipe has changed since; the next use builds a new one.
    pub stale: bool,
}

/// Everything that a sandbox needs, looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Doctor {
    /// Version of the program.
    pub version: String,
    /// A sandbox could be made now.
    pub usable: bool,
    /// The engines, strongest first.
    pub engines: Vec<EngineReport>,
    /// The guest's kernel.
    pub kernel: Finding,
    /// The default image.
    pub image: Finding,
    /// Free space where images are kept, in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_free_mb: Option<u64>,
    /// Memory that new machines could have, in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_available_mb: Option<u64>,
    /// CPUs that the server may use.
    pub cpus: u32,
    /// What to do, most important first.
    pub advice: Vec<String>,
}

/// One engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EngineReport {
    /// Its name.
    pub name: String,
    /// The tier that its machines have.
    pub isolation: Isolation,
    /// It can run guests here.
    pub usable: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What would change that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// What runs the guest, with its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitor: Option<String>,
    /// What confines the monitor, in words.
    #[serde(default)]
    pub confinement: Vec<String>,
    /// What is weaker than it could be, in words.
    #[serde(default)]
    pub notes: Vec<String>,
    /// It can pause.
    pub pause: bool,
    /// Most virtual CPUs of a guest.
    pub max_cpus: u32,
}

/// Whether something is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// It can be used, or made at first use.
    pub ok: bool,
    /// In words.
    pub detail: String,
}
