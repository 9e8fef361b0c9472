//! Subscriptions to events, and what became of their deliveries.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use wire::text::Secret;

use crate::bound::{self, Title, WebhookUrl, Workspace, at_most};
use crate::object::objects;
use crate::{EventKind, Problem, Timestamp, Validate, page};

/// A subscription as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct CreateWebhook {
    /// Where events go: https; http and private addresses only where the operator allows them.
    #[schema(value_type = bound::WebhookUrl)]
    pub url: String,
    /// Of which kinds; of all when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 32)]
    pub kinds: Vec<EventKind>,
    /// To remember it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Title>)]
    pub name: Option<String>,
    /// Of which workspace; the caller's own when absent. A caller of all workspaces that leaves
    /// it out gets the events of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Workspace>)]
    pub workspace: Option<String>,
}

impl Validate for CreateWebhook {
    fn validate(&self) -> Result<(), Problem> {
        WebhookUrl::check("url", &self.url)?;
        at_most("kinds", self.kinds.len(), 32, "kinds")?;
        Title::check_some("name", self.name.as_deref())?;
        Workspace::check_some("workspace", self.workspace.as_deref())
    }
}

/// A subscription, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Webhook {
    /// Its id.
    pub id: String,
    /// Where events go.
    pub url: String,
    /// Of which kinds; of all where it is empty.
    pub kinds: Vec<EventKind>,
    /// To remember it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of which workspace; of all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
}

/// A new subscription. The secret is shown this once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedWebhook {
    /// What it is.
    #[serde(flatten)]
    pub webhook: Webhook,
    /// The key of the deliveries' HMAC-SHA256.
    #[schema(value_type = String)]
    pub secret: Secret,
}

/// Where a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// It will be tried, or tried again.
    Pending,
    /// The receiver took it.
    Delivered,
    /// It was tried as often as it ever is: the dead letters.
    Dead,
}

impl DeliveryState {
    /// The name in JSON and in queries.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
        }
    }
}

/// An event on its way to a receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Delivery {
    /// Its id; the same for every attempt.
    pub id: String,
    /// Its subscription.
    pub webhook: String,
    /// The event.
    pub event: u64,
    /// What the event is.
    pub kind: EventKind,
    /// Where it is.
    pub state: DeliveryState,
    /// How often it was tried.
    pub attempts: u32,
    /// When the event was put on its way.
    pub created_at: Timestamp,
    /// When it was last tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempted_at: Option<Timestamp>,
    /// When it will be tried next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<Timestamp>,
    /// The status that the receiver last gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_status: Option<u16>,
    /// Why it last failed, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// Which deliveries of a subscription, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeliveryQuery {
    /// In this state; `dead` lists the dead letters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(inline, nullable = false)]
    pub state: Option<DeliveryState>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::Cursor>, nullable = false)]
    pub cursor: Option<String>,
    /// Most items; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::PageLimit>, nullable = false)]
    pub limit: Option<u32>,
}

impl Validate for DeliveryQuery {
    fn validate(&self) -> Result<(), Problem> {
        page::check(self.cursor.as_deref(), self.limit)
    }
}
objects!(CreateWebhook);
