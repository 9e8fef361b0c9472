//! What happened, for whoever wants to know: the event stream and webhooks.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use crate::bound::{self, PageLimit, Position, SandboxId, Workspace, at_most};
use crate::operation::UnknownName;
use crate::{Problem, Timestamp, Validate};

macro_rules! kinds {
    ($($variant:ident = $name:literal, $doc:literal;)*) => {
        /// What happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum EventKind {
            $(#[doc = $doc] #[serde(rename = $name)] $variant,)*
        }

        impl EventKind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name in JSON, in queries and of the server-sent event.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// What it says, in a sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $doc),* }
            }
        }
    };
}

kinds! {
    SandboxCreated = "sandbox.created", "A sandbox was accepted.";
    SandboxStarted = "sandbox.started", "A sandbox takes tasks.";
    SandboxPaused = "sandbox.paused", "A sandbox was paused.";
    SandboxResumed = "sandbox.resumed", "A sandbox was resumed.";
    SandboxHibernated = "sandbox.hibernated", "A sandbox's machine went to disk, to go on from there.";
    SandboxUpdated = "sandbox.updated", "A sandbox's labels, times or network changed.";
    SandboxStopped = "sandbox.stopped", "A sandbox's machine went; its record stays.";
    SandboxFailed = "sandbox.failed", "A sandbox could not be made, or its machine ended by itself.";
    SandboxDestroyed = "sandbox.destroyed", "Nothing is left of a sandbox.";
    SnapshotCreated = "snapshot.created", "A snapshot was made of a sandbox.";
    SnapshotRemoved = "snapshot.removed", "A snapshot was removed.";
    TaskStarted = "task.started", "A command was started.";
    TaskEnded = "task.ended", "A command ended.";
    TaskTimeout = "task.timeout", "A command's time was up.";
    PolicyDenied = "policy.denied", "Policy refused a request.";
    PolicyReloaded = "policy.reloaded", "A new generation of policy is in force.";
    AuditCheckpoint = "audit.checkpoint", "The head of the audit log was signed.";
}

/// By hand: the derive does not see a name that a macro was given.
impl PartialSchema for EventKind {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(Self::ALL.iter().map(|one| one.as_str())))
            .description(Some("What happened."))
            .into()
    }
}

impl ToSchema for EventKind {
    fn name() -> Cow<'static, str> {
        "EventKind".into()
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for EventKind {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        UnknownName::find(Self::ALL, text, Self::as_str)
    }
}

/// Something that happened. No secret is ever in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Rises by event; also the id of the server-sent event.
    pub id: u64,
    /// When.
    pub at: Timestamp,
    /// What.
    pub kind: EventKind,
    /// Of which sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// Of which workspace; absent where it is the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// More, by kind.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub data: serde_json::Map<String, serde_json::Value>,
}

/// Which events. As server-sent events it goes on; a Last-Event-ID header is a `since`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// Events after this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::Position>, nullable = false)]
    pub since: Option<u64>,
    /// Of one of these kinds; of all when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[param(max_items = 32)]
    pub kind: Vec<EventKind>,
    /// Of this sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::SandboxId>, nullable = false)]
    pub sandbox: Option<String>,
    /// Of this workspace. Only callers of all workspaces see more than their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::Workspace>, nullable = false)]
    pub workspace: Option<String>,
    /// Most events; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::PageLimit>, nullable = false)]
    pub limit: Option<u32>,
}

impl Validate for EventQuery {
    fn validate(&self) -> Result<(), Problem> {
        Position::check_some("since", self.since)?;
        at_most("kind", self.kind.len(), 32, "kinds")?;
        SandboxId::check_some("sandbox", self.sandbox.as_deref())?;
        Workspace::check_some("workspace", self.workspace.as_deref())?;
        PageLimit::check_some("limit", self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{parse_query, render_query};

    #[test]
    fn a_kind_has_one_name_everywhere() {
        for &kind in EventKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
    }

    #[test]
    fn a_query_for_several_kinds_survives_the_round_trip() {
        let query = EventQuery {
            since: Some(3),
            kind: vec![EventKind::TaskEnded, EventKind::PolicyDenied],
            ..EventQuery::default()
        };
        assert_eq!(parse_query::<EventQuery>(&render_query(&query)), Ok(query));
    }
}
