//! `sandforge stats`.

use std::io::{IsTerminal as _, stdout};
use std::time::Duration;

use clap::Args;
use client::Client;
use client::api::{ListSandboxes, Sandbox, Stats};
use serde::Serialize;

use crate::connection::{self, all};
use crate::failure::Failure;
use crate::filter;
use crate::units::readable;

/// Between two looks with --watch.
const PERIOD: Duration = Duration::from_secs(1);

/// Say what sandboxes use
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge stats
  sandforge stats box --watch
  sandforge stats --json")]
pub(crate) struct StatsArgs {
    /// Their names or ids [default: all that have a machine]
    #[arg(value_name = "NAME")]
    names: Vec<String>,

    /// Again each second
    #[arg(short, long)]
    watch: bool,

    /// Print a JSON array; with --watch, one a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Serialize)]
struct Row {
    id: String,
    name: String,
    #[serde(flatten)]
    stats: Stats,
}

impl StatsArgs {
    pub(crate) fn run(&self) -> Result<u8, Failure> {
        let redraw = !self.json && self.watch && stdout().is_terminal();
        connection::ask(async |client| {
            loop {
                let rows = self.measure(client).await?;
                let read = match self.json {
                    true => super::print_json_more(&rows)?,
                    false => {
                        let clear = if redraw { "\x1b[H\x1b[2J" } else { "" };
                        super::print_more(&format!("{clear}{}", table(&rows)))?
                    }
                };
                if !self.watch || !read {
                    return Ok(0);
                }
                tokio::time::sleep(PERIOD).await;
            }
        })
    }

    async fn measure(&self, client: &Client) -> Result<Vec<Row>, Failure> {
        let sandboxes: Vec<Sandbox> = if self.names.is_empty() {
            let query = ListSandboxes::default();
            let all = all(async |cursor| {
                client.list_sandboxes(&ListSandboxes { cursor, ..query.clone() }).await
            });
            all.await?.into_iter().filter(|sandbox| sandbox.state.has_machine()).collect()
        } else {
            let mut named = Vec::new();
            for name in &self.names {
                named.push(client.get_sandbox(name).await?);
            }
            named
        };
        let mut rows = Vec::new();
        for sandbox in sandboxes {
            match client.sandbox_stats(&sandbox.id).await {
                Ok(stats) => rows.push(Row { id: sandbox.id, name: sandbox.name, stats }),
                // It went meanwhile, and nobody asked for it by name.
                Err(error)
                    if self.names.is_empty()
                        && error.code() == Some(client::api::Code::NotFound) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(rows)
    }
}

fn table(stats: &[Row]) -> String {
    let head = ["NAME", "STATE", "TASKS", "CPU TIME", "MEMORY PEAK", "UPTIME"];
    let mut rows = vec![head.map(str::to_owned)];
    for Row { name, stats, .. } in stats {
        rows.push([
            filter::plain(name),
            stats.state.to_string(),
            stats.running.to_string(),
            format!("{:.1} s", Duration::from_millis(stats.usage.cpu_ms).as_secs_f64()),
            readable(stats.usage.memory_peak_bytes),
            super::list::age(Duration::from_millis(stats.usage.uptime_ms)),
        ]);
    }
    super::list::table(&rows)
}
