//! Credentials for services. A value goes in and never comes out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use wire::text::Secret;

use crate::bound::{self, EnvName, Parameters, Workspace, at_most};
use crate::object::objects;
use crate::{Problem, Timestamp, Validate};

/// Most bytes of a value.
const MAX_VALUE: usize = 12 << 10;
/// Most bytes of a command.
const MAX_COMMAND: usize = 4096;
/// Most entries of a list.
const MAX_LIST: usize = 64;

/// A secret as it is set: exactly one of `value`, `command` and `env`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct SetSecret {
    /// The value itself, which is kept encrypted and never given again. For AWS it is
    /// `ID:KEY` or `ID:KEY:TOKEN`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 8, max_length = 12288)]
    pub value: Option<Secret>,
    /// A shell command of the host whose output is the value, run each time it is needed. Only
    /// administrators may name one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 4096)]
    pub command: Option<String>,
    /// A variable of the server that has the value. Only administrators may name one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::EnvName>)]
    pub env: Option<String>,
    /// What differs from user to user of the service, such as `resource` of `azure-openai`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = bound::Parameters)]
    pub parameters: BTreeMap<String, String>,
    /// The service itself, where it is one of the caller's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<CustomService>,
    /// In which workspace; the caller's own when absent. A sandbox has one already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Workspace>)]
    pub workspace: Option<String>,
}

impl Validate for SetSecret {
    fn validate(&self) -> Result<(), Problem> {
        let given = [self.value.is_some(), self.command.is_some(), self.env.is_some()];
        if given.into_iter().filter(|is_given| *is_given).count() != 1 {
            return Err(Problem::invalid("value", "give one of `value`, `command` and `env`"));
        }
        if self.value.as_ref().is_some_and(|value| value.expose().len() > MAX_VALUE) {
            return Err(Problem::invalid("value", "must be at most 12288 bytes"));
        }
        if let Some(command) = &self.command
            && (command.is_empty() || command.len() > MAX_COMMAND || command.contains('\0'))
        {
            return Err(Problem::invalid("command", "must be 1 to 4096 bytes without NUL"));
        }
        EnvName::check_some("env", self.env.as_deref())?;
        Parameters::check("parameters", &self.parameters)?;
        if let Some(custom) = &self.custom {
            custom.validate()?;
        }
        Workspace::check_some("workspace", self.workspace.as_deref())
    }
}

/// A service of one's own: a credential for some hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CustomService {
    /// Exact hosts that the credential is for, with a port where it is not 443.
    #[schema(min_items = 1, max_items = 64)]
    pub hosts: Vec<String>,
    /// Variables of the sandbox that hold the placeholder.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<bound::EnvName>, max_items = 64)]
    pub env: Vec<String>,
    /// Where the credential stands in a request; nowhere else is it put in.
    #[schema(min_items = 1, max_items = 64)]
    pub slots: Vec<SecretSlot>,
    /// How the placeholder begins.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(max_length = 64)]
    pub prefix: String,
    /// What follows.
    #[serde(default)]
    pub characters: PlaceholderCharacters,
    /// How long the placeholder is; as long as the value when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 4096)]
    pub length: Option<u32>,
}

impl CustomService {
    fn validate(&self) -> Result<(), Problem> {
        for (field, count) in
            [("custom.hosts", self.hosts.len()), ("custom.slots", self.slots.len())]
        {
            if count == 0 {
                return Err(Problem::invalid(field, "must name one at least"));
            }
            at_most(field, count, MAX_LIST, "entries")?;
        }
        at_most("custom.env", self.env.len(), MAX_LIST, "variables")?;
        self.env.iter().try_for_each(|name| EnvName::check("custom.env", name))
    }
}

/// A place of a request that holds a credential and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SecretSlot {
    /// A header.
    Header {
        /// Its name, in lower case.
        name: String,
        /// What stands before the credential, such as `Bearer`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scheme: Option<String>,
    },
    /// The password of `Authorization: Basic`.
    Basic {
        /// The only user that it is for; any when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        username: Option<String>,
    },
    /// A key of the query.
    Query {
        /// The key.
        key: String,
        /// The header that takes its place on the way on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        header: Option<String>,
    },
}

/// What a placeholder is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PlaceholderCharacters {
    /// `0-9A-Za-z`.
    #[default]
    Alphanumeric,
    /// `2-7A-Z`.
    Base32,
    /// `0-9A-Za-z_-`.
    Base64url,
    /// `0-9a-f`.
    Hex,
}

/// A secret as it is shown: never its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoredSecret {
    /// The service's name.
    pub service: String,
    /// The workspace.
    pub workspace: String,
    /// The sandbox that has it; every one that is created from now on when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// Where the value comes from.
    pub source: SecretSource,
    /// What may be seen of it: the last characters of a long value, the program of a command, the
    /// variable.
    pub masked: String,
    /// What was said of the service.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = bound::Parameters)]
    pub parameters: BTreeMap<String, String>,
    /// The service itself, where it is one's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<CustomService>,
    /// When there first was one.
    pub created_at: Timestamp,
    /// When it was last set.
    pub changed_at: Timestamp,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SecretSource {
    /// It is kept.
    Value,
    /// A command's output.
    Command,
    /// A variable.
    Env,
}

impl SecretSource {
    /// The name in JSON and in audit records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Value => "value",
            Self::Command => "command",
            Self::Env => "env",
        }
    }
}

/// The secrets of a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretList {
    /// The workspace's first, then those of sandboxes, by name; 1000 at most.
    pub secrets: Vec<StoredSecret>,
    /// Where they are, or would go, in words; for callers that see all workspaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
}

/// Which secrets.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SecretQuery {
    /// Of this workspace; the caller's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::Workspace>, nullable = false)]
    pub workspace: Option<String>,
}

impl Validate for SecretQuery {
    fn validate(&self) -> Result<(), Problem> {
        Workspace::check_some("workspace", self.workspace.as_deref())
    }
}

objects!(SetSecret);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The field at fault; none where the type refuses it.
    fn parsed(json: serde_json::Value) -> Result<(), Option<String>> {
        let request: SetSecret = serde_json::from_value(json).map_err(|_| None)?;
        request.validate().map_err(|problem| problem.field().map(str::to_owned))
    }

    #[test]
    fn a_secret_has_one_source() {
        assert_eq!(parsed(json!({"value": "ghp_0123456789"})), Ok(()));
        assert_eq!(parsed(json!({"command": "pass github"})), Ok(()));
        assert_eq!(parsed(json!({"env": "MY_TOKEN"})), Ok(()));
        let value = Err(Some("value".to_owned()));
        assert_eq!(parsed(json!({})), value);
        assert_eq!(parsed(json!({"value": "ghp_0123456789", "env": "X"})), value);
        assert_eq!(parsed(json!({"value": "x".repeat(13_000)})), value);
        assert_eq!(parsed(json!({"env": "1X"})), Err(Some("env".to_owned())));
        assert_eq!(parsed(json!({"value": "ghp_0123456789", "scope": "all"})), Err(None));
    }

    #[test]
    fn a_service_of_ones_own_has_a_host_and_a_place() {
        let slots = json!([{"header": {"name": "x-key"}}]);
        let custom = |hosts: serde_json::Value, slots: &serde_json::Value| {
            parsed(json!({"value": "0123456789", "custom": {"hosts": hosts, "slots": slots}}))
        };
        assert_eq!(custom(json!(["a.example"]), &slots), Ok(()));
        assert_eq!(custom(json!([]), &slots), Err(Some("custom.hosts".to_owned())));
        assert_eq!(custom(json!(["a.example"]), &json!([])), Err(Some("custom.slots".to_owned())));
    }

    #[test]
    fn a_value_is_not_in_debug() {
        let value = Some(Secret::new(b"ghp_0123456789".to_vec()).unwrap());
        let request = SetSecret { value, ..SetSecret::default() };
        assert!(!format!("{request:?}").contains("ghp_"));
    }
}
