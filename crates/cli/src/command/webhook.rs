//! `sandforge webhook`.

use clap::{Args, Subcommand, ValueEnum};
use client::api::{
    CreateWebhook, Delivery, DeliveryQuery, DeliveryState, EventKind, PageQuery, Timestamp, Webhook,
};

use super::Context;
use crate::connection::{self, all};
use crate::failure::Failure;
use crate::filter;
use crate::progress::Line;

/// Subscribe URLs to events
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge webhook create https://ci.example.org/hook --kind task.timeout --kind policy.denied
  sandforge webhook ls
  sandforge webhook deliveries ID --state dead      what its receiver never took
  sandforge webhook redeliver ID DELIVERY
  sandforge webhook rm ID

Each delivery has an HMAC-SHA256 of its time and body, with the secret that `create` prints.")]
pub(crate) struct WebhookArgs {
    #[command(subcommand)]
    command: WebhookCommand,
}

#[derive(Subcommand)]
enum WebhookCommand {
    /// Subscribe a URL and print the secret of its deliveries: it is shown this once
    Create(CreateArgs),
    /// List subscriptions
    Ls {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Remove subscriptions; what is on its way is dropped
    Rm {
        /// Their ids; `sandforge webhook ls` lists them
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
    /// List the deliveries of a subscription, newest first
    Deliveries(DeliveriesArgs),
    /// Try a delivery again, a dead one too
    Redeliver {
        /// The subscription's id
        id: String,
        /// The delivery's id; `sandforge webhook deliveries` lists them
        delivery: String,
    },
}

#[derive(Args)]
struct CreateArgs {
    /// Where events go: https, and no private address unless the server allows it
    url: String,

    /// Only events of this kind, such as sandbox.created; may be given several times
    #[arg(long)]
    kind: Vec<EventKind>,

    /// To remember it by
    #[arg(long)]
    name: Option<String>,

    /// Of which workspace; only who sees all workspaces may choose
    #[arg(long, value_name = "NAME")]
    workspace: Option<String>,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct DeliveriesArgs {
    /// The subscription's id; `sandforge webhook ls` lists them
    id: String,

    /// Only those in this state
    #[arg(long, value_enum)]
    state: Option<Reached>,

    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// Where a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Reached {
    /// It will be tried, or tried again
    Pending,
    /// The receiver took it
    Delivered,
    /// It will not be tried any more
    Dead,
}

impl WebhookArgs {
    pub(crate) fn json(&self) -> bool {
        match &self.command {
            WebhookCommand::Create(args) => args.json,
            WebhookCommand::Ls { json } => *json,
            WebhookCommand::Deliveries(args) => args.json,
            WebhookCommand::Rm { .. } | WebhookCommand::Redeliver { .. } => false,
        }
    }

    pub(crate) fn run(&self, context: &Context) -> Result<u8, Failure> {
        match &self.command {
            WebhookCommand::Create(args) => args.run(context)?,
            WebhookCommand::Ls { json } => list(*json)?,
            WebhookCommand::Rm { ids } => connection::ask(async |client| {
                for id in ids {
                    client.delete_webhook(id).await?;
                }
                Ok(())
            })?,
            WebhookCommand::Deliveries(args) => args.run()?,
            WebhookCommand::Redeliver { id, delivery } => connection::ask(async |client| {
                client.redeliver(id, delivery).await?;
                Ok(())
            })?,
        }
        Ok(0)
    }
}

impl CreateArgs {
    fn run(&self, context: &Context) -> Result<(), Failure> {
        let create = CreateWebhook {
            url: self.url.clone(),
            kinds: self.kind.clone(),
            name: self.name.clone(),
            workspace: self.workspace.clone(),
        };
        let created = connection::ask(async |client| Ok(client.create_webhook(&create).await?))?;
        if self.json {
            return super::print_json(&created);
        }
        let secret = String::from_utf8_lossy(created.secret.expose()).into_owned();
        super::print(&format!("{secret}\n"))?;
        Line::new(context.verbosity)
            .notice(&format!("webhook {}; its secret is shown this once", created.webhook.id));
        Ok(())
    }
}

fn list(json: bool) -> Result<(), Failure> {
    let webhooks = connection::ask(async |client| {
        all(async |cursor| client.list_webhooks(&PageQuery { cursor, limit: None }).await).await
    })?;
    if json {
        return super::print_json(&webhooks);
    }
    let mut rows = vec![["ID", "NAME", "WORKSPACE", "AGE", "KINDS", "URL"].map(str::to_owned)];
    for Webhook { id, url, kinds, name, workspace, created_at, .. } in &webhooks {
        let kinds = match kinds.is_empty() {
            true => "all".into(),
            false => kinds.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        };
        rows.push([
            filter::plain(id),
            filter::plain(name.as_deref().unwrap_or("-")),
            filter::plain(workspace.as_deref().unwrap_or("all")),
            super::list::age(Timestamp::now().since(*created_at)),
            kinds,
            filter::plain(url),
        ]);
    }
    super::print(&super::list::table(&rows))
}

impl DeliveriesArgs {
    fn run(&self) -> Result<(), Failure> {
        let state = self.state.map(|state| match state {
            Reached::Pending => DeliveryState::Pending,
            Reached::Delivered => DeliveryState::Delivered,
            Reached::Dead => DeliveryState::Dead,
        });
        let deliveries = connection::ask(async |client| {
            all(async |cursor| {
                let query = DeliveryQuery { state, cursor, limit: None };
                client.list_deliveries(&self.id, &query).await
            })
            .await
        })?;
        if self.json {
            return super::print_json(&deliveries);
        }
        let head = ["ID", "KIND", "EVENT", "STATE", "ATTEMPTS", "AGE", "LAST"];
        let mut rows = vec![head.map(str::to_owned)];
        for delivery in &deliveries {
            rows.push([
                filter::plain(&delivery.id),
                delivery.kind.to_string(),
                delivery.event.to_string(),
                delivery.state.as_str().to_owned(),
                delivery.attempts.to_string(),
                super::list::age(Timestamp::now().since(delivery.created_at)),
                filter::plain(&last(delivery)),
            ]);
        }
        super::print(&super::list::table(&rows))
    }
}

/// What the receiver last said, or why there was none.
fn last(delivery: &Delivery) -> String {
    match (&delivery.last_error, delivery.last_status) {
        (Some(error), _) => error.clone(),
        (None, Some(status)) => status.to_string(),
        (None, None) => "-".into(),
    }
}
