//! `sandforge events`.

use clap::Args;
use client::api::{Event, EventKind, EventQuery};

use crate::connection;
use crate::failure::Failure;
use crate::filter;

/// Say what happened
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge events
  sandforge events --follow --kind policy.denied
  sandforge events --since 42 --json")]
pub(crate) struct EventsArgs {
    /// Go on with what happens; without --since, from now
    #[arg(short, long)]
    follow: bool,

    /// Events after the one of this id
    #[arg(long, value_name = "ID")]
    since: Option<u64>,

    /// Only of this kind, such as sandbox.created; may be given several times
    #[arg(long)]
    kind: Vec<EventKind>,

    /// Only of this sandbox
    #[arg(long, value_name = "NAME")]
    sandbox: Option<String>,

    /// Of this workspace; only who sees all workspaces may choose
    #[arg(long, value_name = "NAME")]
    workspace: Option<String>,

    /// Print a JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

impl EventsArgs {
    pub(crate) fn run(&self) -> Result<u8, Failure> {
        connection::ask(async |client| {
            let sandbox = match &self.sandbox {
                Some(name) => Some(client.get_sandbox(name).await?.id),
                None => None,
            };
            let mut query = EventQuery {
                since: self.since,
                kind: self.kind.clone(),
                sandbox,
                workspace: self.workspace.clone(),
                limit: None,
            };
            if self.follow {
                let mut events = client.follow_events(&query).await?;
                while let Some(event) = events.next().await? {
                    if !self.print(&event)? {
                        break;
                    }
                }
                return Ok(0);
            }
            query.limit = Some(1000);
            loop {
                let page = client.list_events(&query).await?;
                for event in &page.items {
                    if !self.print(event)? {
                        return Ok(0);
                    }
                }
                match page.items.last() {
                    Some(last) if page.next_cursor.is_some() => query.since = Some(last.id),
                    _ => return Ok(0),
                }
            }
        })
    }

    fn print(&self, event: &Event) -> Result<bool, Failure> {
        if self.json {
            return super::print_json_more(event);
        }
        let mut line = format!("{} {} {}", event.id, event.at, event.kind);
        for more in [event.sandbox.as_deref(), event.workspace.as_deref()].into_iter().flatten() {
            line.push(' ');
            line.push_str(more);
        }
        for (key, value) in &event.data {
            line.push_str(&format!(" {key}={value}"));
        }
        super::print_more(&format!("{}\n", filter::plain(&line)))
    }
}
