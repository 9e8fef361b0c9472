//! The audit log as callers see it.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::bound::{self, PageLimit, Plain, Position, SandboxId, Workspace};
use crate::policy::RuleRef;
use crate::{Operation, Problem, Timestamp, Validate};

/// Whether something was allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuditDecision {
    /// It was.
    Allowed,
    /// It was refused, by policy, by rights or for want of credentials.
    Denied,
}

impl AuditDecision {
    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
        }
    }
}

/// One decision or one operation: who, what, and how it went. No secret is ever in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditRecord {
    /// Its place in the chain, from 1, without gaps.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: String,
    /// What, by the name of an operation, or of something that the server did by itself.
    pub operation: String,
    /// In which workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// On which sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// SHA-256 of the request, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_digest: Option<String>,
    /// SHA-256 of the signed operation that the guest got, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_digest: Option<String>,
    /// Whether it was allowed.
    pub decision: AuditDecision,
    /// By which rule of policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleRef>,
    /// Under which generation of policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// How it went, in a word: `ok`, or the code of a problem.
    pub outcome: String,
    /// More, by operation.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub details: serde_json::Map<String, serde_json::Value>,
    /// The hash of the record before, in hexadecimal.
    pub prev_hash: String,
    /// SHA-256 of this record and `prev_hash`, in hexadecimal.
    pub hash: String,
}

/// Which records, in the order of the chain.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// From this record on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::Position>, nullable = false)]
    pub from: Option<u64>,
    /// Up to this one, included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::Position>, nullable = false)]
    pub to: Option<u64>,
    /// The last so many of those that fit, before `limit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::PageLimit>, nullable = false)]
    pub tail: Option<u32>,
    /// By this actor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::Plain>, nullable = false)]
    pub actor: Option<String>,
    /// Of this operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(inline, nullable = false)]
    pub operation: Option<Operation>,
    /// On this sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::SandboxId>, nullable = false)]
    pub sandbox: Option<String>,
    /// In this workspace. Only callers of all workspaces see more than their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::Workspace>, nullable = false)]
    pub workspace: Option<String>,
    /// Allowed or denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(inline, nullable = false)]
    pub decision: Option<AuditDecision>,
    /// Most records; 100 when absent. `next_cursor` of a page is the next one's `from`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::PageLimit>, nullable = false)]
    pub limit: Option<u32>,
}

impl Validate for AuditQuery {
    fn validate(&self) -> Result<(), Problem> {
        Position::check_some("from", self.from)?;
        Position::check_some("to", self.to)?;
        PageLimit::check_some("tail", self.tail)?;
        Plain::check_some("actor", self.actor.as_deref())?;
        SandboxId::check_some("sandbox", self.sandbox.as_deref())?;
        Workspace::check_some("workspace", self.workspace.as_deref())?;
        PageLimit::check_some("limit", self.limit)
    }
}

/// A part of the chain, to be verified or exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditRange {
    /// From this record on; from the first when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::Position>, nullable = false)]
    pub from: Option<u64>,
    /// Up to this one, included; to the last when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::Position>, nullable = false)]
    pub to: Option<u64>,
}

impl Validate for AuditRange {
    fn validate(&self) -> Result<(), Problem> {
        Position::check_some("from", self.from)?;
        Position::check_some("to", self.to)
    }
}

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// Its content does not have its hash.
    Changed,
    /// It is missing.
    Removed,
    /// It stands in another's place.
    Reordered,
    /// The chain ends before a head that was signed.
    Truncated,
    /// A checkpoint's signature does not verify, or is of another chain.
    BadCheckpoint,
}

/// Something that is wrong with the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fault {
    /// Which record.
    pub seq: u64,
    /// What is wrong.
    pub kind: FaultKind,
    /// In words.
    pub detail: String,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditReport {
    /// Nothing is wrong.
    pub ok: bool,
    /// First record that was looked at; absent where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    /// Last record that was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
    /// Records that were looked at.
    pub records: u64,
    /// Checkpoints whose signature was verified.
    pub checkpoints: u64,
    /// Hash of the last record, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_hash: Option<String>,
    /// What is wrong, the first hundred.
    pub faults: Vec<Fault>,
}

/// A line of an export: a record, or after the last one its signed end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum AuditLine {
    /// A record.
    Record(Box<AuditRecord>),
    /// The end.
    End {
        /// What it vouches for.
        footer: AuditFooter,
    },
}

/// What the last line of an export vouches for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditFooter {
    /// First record; 0 where there is none.
    pub first: u64,
    /// Last record; 0 where there is none.
    pub last: u64,
    /// How many.
    pub records: u64,
    /// The hash that the first goes on from, in hexadecimal.
    pub first_prev_hash: String,
    /// The hash of the last, in hexadecimal.
    pub last_hash: String,
    /// SHA-256 of all lines before with their ends, in hexadecimal.
    pub content_sha256: String,
    /// When it was signed.
    pub at: Timestamp,
    /// The Ed25519 signature, in hexadecimal.
    pub signature: String,
    /// The key that verifies it, in hexadecimal.
    pub public_key: String,
}

/// The signed head of the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Checkpoint {
    /// The last record that it covers.
    pub seq: u64,
    /// When it was signed.
    pub at: Timestamp,
    /// The hash of that record, in hexadecimal.
    pub head_hash: String,
    /// The Ed25519 signature, in hexadecimal.
    pub signature: String,
    /// The public key that verifies it, in hexadecimal.
    pub public_key: String,
}
