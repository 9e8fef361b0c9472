//! Decisions of policy.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{OneOfBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::bound::{self, Schemas, Subject, Workspace, only};
use crate::object::objects;
use crate::{CreateSandbox, Exec, Mount, NetworkMode, Problem, Role, Timestamp, Validate};

/// A rule of policy: where it is written and what it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RuleRef {
    /// The file, or `built-in`.
    pub file: String,
    /// The line, from 1; 0 for what is built in.
    pub line: u32,
    /// The rule as it is written.
    pub text: String,
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.text),
            line => write!(f, "{}:{line}: {}", self.file, self.text),
        }
    }
}

/// The decision that something was allowed by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyRef {
    /// Generation of policy; rises with every reload.
    pub generation: u64,
    /// The deciding rule.
    pub rule: RuleRef,
}

/// A decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyDecision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// The deciding rule.
    pub rule: RuleRef,
    /// Why, in words.
    pub reason: String,
    /// What would allow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// Generation of policy that decided.
    pub generation: u64,
}

/// Asks what policy would decide. Nothing is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct PolicyCheck {
    /// What would be asked for.
    pub request: PolicyRequest,
    /// Who would ask; the caller when absent. Others only by owners, of their own workspace.
    #[serde(default, rename = "as", skip_serializing_if = "Option::is_none")]
    pub subject: Option<PolicySubject>,
}

/// What would be asked for: one of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PolicyRequest {
    /// To make a sandbox.
    Create(Box<CreateSandbox>),
    /// To run a command.
    Exec(Box<Exec>),
    /// To copy something of the host in.
    Mount(Mount),
    /// To have a network.
    Network(NetworkMode),
    /// To send a request to a server.
    Reach(Box<ReachRequest>),
}

/// A request of a sandbox to a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReachRequest {
    /// Its method.
    #[schema(value_type = bound::Method)]
    pub method: String,
    /// Where to: `https://host[:port]/path?query`.
    #[schema(value_type = bound::Url)]
    pub url: String,
    /// The sandbox, by id or name. When absent, one that is made as `create` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// What a sandbox would be made of; its network is what is asked about.
    #[serde(default)]
    pub create: CreateSandbox,
}

impl PartialSchema for PolicyRequest {
    fn schema() -> RefOr<Schema> {
        OneOfBuilder::new()
            .item(only("create", CreateSandbox::name()))
            .item(only("exec", Exec::name()))
            .item(only("mount", Mount::name()))
            .item(only("network", NetworkMode::name()))
            .item(only("reach", ReachRequest::name()))
            .description(Some("What would be asked for: one of these."))
            .into()
    }
}

impl ToSchema for PolicyRequest {
    fn name() -> Cow<'static, str> {
        "PolicyRequest".into()
    }

    fn schemas(schemas: &mut Schemas) {
        schemas.push(("CreateSandbox".into(), CreateSandbox::schema()));
        CreateSandbox::schemas(schemas);
        schemas.push(("Exec".into(), Exec::schema()));
        Exec::schemas(schemas);
        schemas.push(("ReachRequest".into(), ReachRequest::schema()));
        ReachRequest::schemas(schemas);
    }
}

/// Who would ask.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct PolicySubject {
    /// Its name; the caller's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Subject>)]
    pub name: Option<String>,
    /// Its role; the caller's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Its workspace; the caller's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Workspace>)]
    pub workspace: Option<String>,
}

impl Validate for PolicyCheck {
    fn validate(&self) -> Result<(), Problem> {
        match &self.request {
            PolicyRequest::Create(create) => {
                create.validate().map_err(|problem| problem.within("request.create"))?;
            }
            PolicyRequest::Exec(exec) => {
                exec.validate().map_err(|problem| problem.within("request.exec"))?;
            }
            PolicyRequest::Mount(mount) => {
                mount.validate().map_err(|problem| problem.within("request.mount"))?;
            }
            // Asking about a mode that cannot be had is what a check is for.
            PolicyRequest::Network(_) => {}
            PolicyRequest::Reach(reach) => {
                bound::Method::check("request.reach.method", &reach.method)?;
                bound::Url::check("request.reach.url", &reach.url)?;
                let within = |problem: Problem| problem.within("request.reach.create");
                reach.create.validate().map_err(within)?;
            }
        }
        if let Some(subject) = &self.subject {
            Subject::check_some("as.name", subject.name.as_deref())?;
            Workspace::check_some("as.workspace", subject.workspace.as_deref())?;
        }
        Ok(())
    }
}

/// Who wrote a layer of policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LayerKind {
    /// Sandforge itself.
    BuiltIn,
    /// The host's administrator.
    Administrator,
    /// A project; it may only narrow.
    Project,
}

/// A layer of policy: everything must be allowed by each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyLayer {
    /// The file, or `built-in`.
    pub file: String,
    /// Who wrote it.
    pub kind: LayerKind,
    /// The TOML.
    pub text: String,
}

/// The policy in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyInfo {
    /// Rises with every reload.
    pub generation: u64,
    /// When it was loaded.
    pub loaded_at: Timestamp,
    /// What it is made of.
    pub layers: Vec<PolicyLayer>,
}

objects!(PolicyCheck, PolicySubject);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_check_asks_for_one_thing() {
        let check: PolicyCheck = serde_json::from_value(
            json!({"request": {"create": {"cpu": 4}}, "as": {"role": "viewer"}}),
        )
        .unwrap();
        assert_eq!(check.validate(), Ok(()));
        for json in [
            json!({}),
            json!({"request": {}}),
            json!({"request": {"create": {}, "exec": {"command": "x"}}}),
            json!({"request": {"create": {"cpus": 4}}}),
            json!({"request": {"create": {}}, "who": {}}),
        ] {
            assert!(serde_json::from_value::<PolicyCheck>(json.clone()).is_err(), "{json}");
        }
    }

    #[test]
    fn a_bound_inside_is_named_from_the_outside() {
        let json = json!({"request": {"mount": {"host_path": "x", "guest_path": "/y"}}});
        let check: PolicyCheck = serde_json::from_value(json).unwrap();
        assert_eq!(check.validate().unwrap_err().field(), Some("request.mount.host_path"));
    }

    #[test]
    fn a_rule_says_where_it_is() {
        let rule = RuleRef { file: "policy.toml".into(), line: 3, text: "cpu_max = 2".into() };
        assert_eq!(rule.to_string(), "policy.toml:3: cpu_max = 2");
        let rule = RuleRef { file: "built-in".into(), line: 0, text: "cpu_max = 2".into() };
        assert_eq!(rule.to_string(), "built-in: cpu_max = 2");
    }
}
