//! Tokens, and keys for signed requests.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use wire::text::Secret;

use crate::bound::{self, PublicKey, Seconds, Subject, Title, Workspace};
use crate::object::objects;
use crate::{Operation, Problem, Role, Timestamp, Validate, page};

/// A token as it is asked for. It cannot do more than its maker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct CreateToken {
    /// To remember it by.
    #[schema(value_type = bound::Title)]
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Where; the caller's own workspace when absent. A caller of all workspaces that leaves it
    /// out makes a token for all workspaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Workspace>)]
    pub workspace: Option<String>,
    /// Only these operations, of those that the role has; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Operation>>, min_items = 1)]
    pub operations: Option<BTreeSet<Operation>>,
    /// For how long, in seconds; until it is revoked when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Seconds>)]
    pub expires_in_sec: Option<u64>,
}

impl Validate for CreateToken {
    fn validate(&self) -> Result<(), Problem> {
        Title::check("name", &self.name)?;
        Workspace::check_some("workspace", self.workspace.as_deref())?;
        if self.operations.as_ref().is_some_and(BTreeSet::is_empty) {
            return Err(Problem::invalid("operations", "must name an operation, or be absent"));
        }
        Seconds::check_some("expires_in_sec", self.expires_in_sec)
    }
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its id.
    pub id: String,
    /// To remember it by.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Where; everywhere when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// Only these operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Operation>>)]
    pub operations: Option<BTreeSet<Operation>>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
}

/// A new token. The secret is shown this once and is nowhere kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedToken {
    /// What it is.
    #[serde(flatten)]
    pub token: Token,
    /// `sf_live_…`, for the Authorization header.
    #[schema(value_type = String)]
    pub secret: Secret,
}

/// Which tokens or keys.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TokenQuery {
    /// Of this workspace. Only callers of all workspaces see more than their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::Workspace>, nullable = false)]
    pub workspace: Option<String>,
    /// Also those that were revoked or have expired.
    #[serde(default)]
    pub all: bool,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::Cursor>, nullable = false)]
    pub cursor: Option<String>,
    /// Most items; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::PageLimit>, nullable = false)]
    pub limit: Option<u32>,
}

impl Validate for TokenQuery {
    fn validate(&self) -> Result<(), Problem> {
        Workspace::check_some("workspace", self.workspace.as_deref())?;
        page::check(self.cursor.as_deref(), self.limit)
    }
}

/// A public key whose signatures stand for a subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct CreateKey {
    /// To remember it by.
    #[schema(value_type = bound::Title)]
    pub name: String,
    /// The Ed25519 public key in hexadecimal.
    #[schema(value_type = bound::PublicKey)]
    pub public_key: String,
    /// Whose requests it signs; the caller's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Subject>)]
    pub subject: Option<String>,
    /// Where; the caller's own workspace when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Workspace>)]
    pub workspace: Option<String>,
    /// For how long, in seconds; until it is revoked when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Seconds>)]
    pub expires_in_sec: Option<u64>,
}

impl Validate for CreateKey {
    fn validate(&self) -> Result<(), Problem> {
        Title::check("name", &self.name)?;
        PublicKey::check("public_key", &self.public_key)?;
        Subject::check_some("subject", self.subject.as_deref())?;
        Workspace::check_some("workspace", self.workspace.as_deref())?;
        Seconds::check_some("expires_in_sec", self.expires_in_sec)
    }
}

/// A registered key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Key {
    /// Its id, which is the `keyid` of a signature.
    pub id: String,
    /// To remember it by.
    pub name: String,
    /// The Ed25519 public key in hexadecimal.
    pub public_key: String,
    /// Whose requests it signs.
    pub subject: String,
    /// Where; everywhere when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// When it was registered.
    pub created_at: Timestamp,
    /// Who registered it.
    pub created_by: String,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
}

objects!(CreateToken, CreateKey);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_is_for_something() {
        let json = json!({"name": "ci", "role": "member", "operations": []});
        let token: CreateToken = serde_json::from_value(json).unwrap();
        assert_eq!(token.validate().unwrap_err().field(), Some("operations"));
        let json = json!({"name": "ci", "role": "root"});
        assert!(serde_json::from_value::<CreateToken>(json).is_err());
        let json = json!({"name": "ci", "role": "member", "admin": true});
        assert!(serde_json::from_value::<CreateToken>(json).is_err());
    }

    #[test]
    fn a_tokens_secret_is_in_its_json_and_not_in_debug() {
        let created = CreatedToken {
            token: Token {
                id: "tok-1".into(),
                name: "ci".into(),
                role: Role::Member,
                workspace: Some("default".into()),
                operations: Some([Operation::Exec].into()),
                created_at: Timestamp::from_unix_ms(0),
                created_by: "alice".into(),
                expires_at: None,
                revoked_at: None,
            },
            secret: Secret::new(b"sf_live_x".to_vec()).unwrap(),
        };
        assert!(!format!("{created:?}").contains("sf_live_x"));
        let json = serde_json::to_value(&created).unwrap();
        assert_eq!(json["secret"], "sf_live_x");
        assert_eq!(json["id"], "tok-1");
        assert_eq!(serde_json::from_value::<CreatedToken>(json).unwrap(), created);
    }

    #[test]
    fn a_key_is_32_bytes() {
        let key = |public_key: &str| CreateKey {
            name: "laptop".into(),
            public_key: public_key.into(),
            subject: None,
            workspace: None,
            expires_in_sec: None,
        };
        assert_eq!(key(&"0a".repeat(32)).validate(), Ok(()));
        for text in ["", &"0A".repeat(32), &"0a".repeat(31), &"0a".repeat(33)] {
            assert_eq!(key(text).validate().unwrap_err().field(), Some("public_key"));
        }
    }
}
