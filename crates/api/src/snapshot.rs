//! Snapshots: sandboxes as they were, for others to go on from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use wire::text::Secret;

use crate::bound::{self, Env, Forks, Labels, Name, Workspace};
use crate::object::objects;
use crate::sandbox::is_sandbox_id;
use crate::{Isolation, NetworkMode, Problem, Sandbox, Timestamp, Validate};

/// A snapshot as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct CreateSnapshot {
    /// What it is called, once in a workspace; its id when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Name>)]
    pub name: Option<String>,
}

impl Validate for CreateSnapshot {
    fn validate(&self) -> Result<(), Problem> {
        check_name(self.name.as_deref(), is_snapshot_id, "a snapshot's id")
    }
}

fn check_name(name: Option<&str>, is_id: fn(&str) -> bool, what: &str) -> Result<(), Problem> {
    Name::check_some("name", name)?;
    match name.is_some_and(is_id) {
        true => Err(Problem::invalid("name", format!("must not look like {what}"))),
        false => Ok(()),
    }
}

/// Whether the text has the form of a snapshot's id: `sn-` and sixteen of `[a-z2-7]`.
fn is_snapshot_id(text: &str) -> bool {
    text.strip_prefix("sn-").is_some_and(|rest| is_sandbox_id(&format!("sb-{rest}")))
}

/// Forks as they are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct ForkSandbox {
    /// How many; one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Forks>)]
    pub count: Option<u32>,
    /// What they are called: so, or so with `-1`, `-2` and so on where there are several; their ids
    /// when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Name>)]
    pub name: Option<String>,
}

impl ForkSandbox {
    /// What each is called, where that is said.
    pub fn names(&self) -> Vec<Option<String>> {
        let count = self.count.unwrap_or(1);
        let name = |number: u32| match (&self.name, count) {
            (None, _) => None,
            (Some(name), 1) => Some(name.clone()),
            (Some(name), _) => Some(format!("{name}-{number}")),
        };
        (1..=count).map(name).collect()
    }
}

impl Validate for ForkSandbox {
    fn validate(&self) -> Result<(), Problem> {
        Forks::check_some("count", self.count)?;
        let names = self.names();
        let last = names.last().and_then(Option::as_deref);
        check_name(last, is_sandbox_id, "a sandbox's id")
    }
}

/// What became of a fork.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ForkedSandboxes {
    /// The sandboxes that go on from the one that was forked.
    pub sandboxes: Vec<Sandbox>,
}

/// A sandbox that is to go on from a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct RestoreSnapshot {
    /// What it is called, once in a workspace; its id when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Name>)]
    pub name: Option<String>,
    /// The environment of its new tasks. What the other sandbox's tasks had is not known any more,
    /// but to those that run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = bound::Env)]
    pub env: BTreeMap<String, Secret>,
    /// To find it by; what the other had when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Labels>)]
    pub labels: Option<BTreeMap<String, String>>,
}

impl Validate for RestoreSnapshot {
    fn validate(&self) -> Result<(), Problem> {
        check_name(self.name.as_deref(), is_sandbox_id, "a sandbox's id")?;
        Env::check("env", &self.env)?;
        self.labels.as_ref().map_or(Ok(()), |labels| Labels::check("labels", labels))
    }
}

/// Whose snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SnapshotQuery {
    /// Of this workspace; the caller's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::Workspace>, nullable = false)]
    pub workspace: Option<String>,
}

impl Validate for SnapshotQuery {
    fn validate(&self) -> Result<(), Problem> {
        Workspace::check_some("workspace", self.workspace.as_deref())
    }
}

/// A sandbox as it was: what was in its memory and on its scratch disk. What its tasks were given
/// in their environment is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// `sn-` and sixteen of `[a-z2-7]`; never used again.
    pub id: String,
    /// What it is called in its workspace.
    pub name: String,
    /// Whose it is.
    pub workspace: String,
    /// Who made it.
    pub created_by: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// The id of the sandbox that it is of.
    pub sandbox: String,
    /// What that was called.
    pub sandbox_name: String,
    /// What ran it, and has to be there to restore it.
    pub engine: String,
    /// What stood between its tasks and the host.
    pub isolation: Isolation,
    /// Its root.
    pub image: String,
    /// Virtual CPUs.
    pub cpu: u32,
    /// Guest memory in MiB.
    pub memory_mb: u32,
    /// Scratch disk in GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_gb: Option<u32>,
    /// What it could reach.
    pub network: NetworkMode,
    /// Names of the environment of its tasks: values may be in what it holds.
    #[serde(default)]
    pub env_names: Vec<String>,
    /// What it takes up of the host's disk, in bytes.
    pub disk_bytes: u64,
}

/// The snapshots of a workspace, the newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotList {
    /// All of them.
    pub snapshots: Vec<Snapshot>,
}

objects!(CreateSnapshot, ForkSandbox, RestoreSnapshot);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn several_forks_are_numbered() {
        let fork: ForkSandbox = serde_json::from_value(json!({"count": 2, "name": "f"})).unwrap();
        assert_eq!(fork.names(), [Some("f-1".to_owned()), Some("f-2".to_owned())]);
        let fork: ForkSandbox = serde_json::from_value(json!({"name": "f"})).unwrap();
        assert_eq!(fork.names(), [Some("f".to_owned())]);
        assert_eq!(ForkSandbox { count: Some(3), name: None }.names(), [None, None, None]);
    }

    #[test]
    fn each_bound_names_its_field() {
        let fork = |json| serde_json::from_value::<ForkSandbox>(json).unwrap().validate();
        let field = |checked: Result<(), Problem>| checked.unwrap_err().field().map(str::to_owned);
        assert_eq!(field(fork(json!({"count": 0}))).as_deref(), Some("count"));
        assert_eq!(field(fork(json!({"count": 65}))).as_deref(), Some("count"));
        let long = "x".repeat(39);
        assert_eq!(fork(json!({"name": long})), Ok(()));
        assert_eq!(field(fork(json!({"name": long, "count": 2}))).as_deref(), Some("name"));
        let create: CreateSnapshot =
            serde_json::from_value(json!({"name": "sn-mzxw6ytboi4dqmrq"})).unwrap();
        assert_eq!(field(create.validate()).as_deref(), Some("name"));
        let restore: RestoreSnapshot =
            serde_json::from_value(json!({"name": "sb-mzxw6ytboi4dqmrq"})).unwrap();
        assert_eq!(field(restore.validate()).as_deref(), Some("name"));
        assert!(serde_json::from_value::<RestoreSnapshot>(json!({"image": "x"})).is_err());
        assert!(serde_json::from_value::<ForkSandbox>(json!([])).is_err());
    }

    #[test]
    fn an_environment_does_not_print() {
        let restore: RestoreSnapshot =
            serde_json::from_value(json!({"env": {"KEY": "hunter2"}})).unwrap();
        assert!(!format!("{restore:?}").contains("hunter2"));
    }
}
