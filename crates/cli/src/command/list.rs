//! `sandforge ls`.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, stdout};
use std::time::Duration;

use clap::Args;
use client::api::{ListSandboxes, Sandbox, State, Timestamp};

use crate::connection::{self, all};
use crate::failure::Failure;
use crate::filter;

/// List sandboxes
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge ls
  sandforge ls --filter state=ready --filter label=team=red
  sandforge ls --watch             again with each change
  sandforge ls --json --all        also those that are gone")]
pub(crate) struct ListArgs {
    /// Only those that fit: state=STATE, name=NAME, label=KEY or label=KEY=VALUE; several must
    /// all fit, of several states one
    #[arg(short, long, value_name = "WHAT=VALUE")]
    filter: Vec<String>,

    /// Of this workspace; only who sees all workspaces may choose
    #[arg(long, value_name = "NAME")]
    workspace: Option<String>,

    /// Those that are destroyed too
    #[arg(short, long)]
    all: bool,

    /// Go on, and say each change
    #[arg(short, long)]
    watch: bool,

    /// Print a JSON array; with --watch, an object a line
    #[arg(long)]
    pub(crate) json: bool,
}

impl ListArgs {
    fn query(&self) -> Result<ListSandboxes, Failure> {
        let mut query =
            ListSandboxes { workspace: self.workspace.clone(), ..ListSandboxes::default() };
        for filter in &self.filter {
            match filter.split_once('=') {
                Some(("state", state)) => query.state.push(
                    state.parse().map_err(|error| Failure::usage(format!("--filter: {error}")))?,
                ),
                Some(("name", name)) => query.name = Some(name.to_owned()),
                Some(("label", label)) => query.label.push(label.to_owned()),
                _ => {
                    return Err(Failure::usage(format!("--filter {filter:?} is not known"))
                        .help("there are: state=STATE, name=NAME, label=KEY, label=KEY=VALUE"));
                }
            }
        }
        if self.all && query.state.is_empty() {
            query.state = State::ALL.to_vec();
        }
        Ok(query)
    }

    pub(crate) fn run(&self) -> Result<u8, Failure> {
        let query = self.query()?;
        if self.watch {
            return self.watch(&query);
        }
        let sandboxes = connection::ask(async |client| {
            all(async |cursor| {
                client.list_sandboxes(&ListSandboxes { cursor, ..query.clone() }).await
            })
            .await
        })?;
        match self.json {
            true => super::print_json(&sandboxes)?,
            false => super::print(&rows(&sandboxes))?,
        }
        Ok(0)
    }

    fn watch(&self, query: &ListSandboxes) -> Result<u8, Failure> {
        let redraw = !self.json && stdout().is_terminal();
        connection::ask(async |client| {
            let mut events = client.watch_sandboxes(query).await?;
            // Newest first, as without --watch.
            let mut known = BTreeMap::new();
            while let Some(sandbox) = events.next().await? {
                let read = if self.json {
                    super::print_json_more(&sandbox)?
                } else if redraw {
                    known.insert((Reverse(sandbox.created_at), sandbox.id.clone()), sandbox);
                    known.retain(|_, one| self.all || !one.state.is_final());
                    super::print_more(&format!("\x1b[H\x1b[2J{}", rows(known.values())))?
                } else {
                    let reason = sandbox.reason.as_deref().unwrap_or_default();
                    let line = format!("{}  {}  {reason}", sandbox.name, sandbox.state);
                    super::print_more(&format!("{}\n", filter::plain(line.trim_end())))?
                };
                if !read {
                    break;
                }
            }
            Ok(0)
        })
    }
}

/// The table, with a line for what it is.
fn rows<'a>(sandboxes: impl IntoIterator<Item = &'a Sandbox>) -> String {
    let head = ["NAME", "STATE", "AGE", "CPUS", "MEMORY", "IMAGE", "ENGINE"];
    let mut rows = vec![head.map(str::to_owned)];
    let now = Timestamp::now();
    for sandbox in sandboxes {
        let engine = match (&sandbox.engine, sandbox.isolation) {
            (Some(engine), Some(isolation)) => format!("{engine} ({isolation})"),
            (Some(engine), None) => engine.clone(),
            (None, _) => "-".into(),
        };
        rows.push([
            filter::plain(&sandbox.name),
            sandbox.state.to_string(),
            age(now.since(sandbox.created_at)),
            sandbox.cpu.map_or_else(|| "-".into(), |cpus| cpus.to_string()),
            format!("{} MiB", sandbox.memory_mb),
            filter::plain(&sandbox.image),
            filter::plain(&engine),
        ]);
    }
    table(&rows)
}

/// The largest unit alone: `5s`, `12m`, `3h`, `2d`.
pub(super) fn age(age: Duration) -> String {
    match age.as_secs() {
        seconds @ ..120 => format!("{seconds}s"),
        seconds @ ..7200 => format!("{}m", seconds / 60),
        seconds @ ..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// Columns as wide as their widest cell.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            write!(line, "{cell:width$}  ").expect("a string takes everything");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_end_without_spaces() {
        let rows = [["A", "BB"], ["long", "x"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "A     BB\nlong  x\n");
    }

    #[test]
    fn an_age_has_one_unit() {
        for (seconds, text) in
            [(0, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172_800, "2d")]
        {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }
}
