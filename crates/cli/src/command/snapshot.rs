//! `sandforge snapshot`, `restore` and `fork`.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use client::api::{
    CreateSnapshot, ForkSandbox, RestoreSnapshot, Snapshot, SnapshotQuery, State, Timestamp,
};

use crate::connection;
use crate::env::EnvArgs;
use crate::failure::{Failure, Kind};
use crate::{filter, units};

/// Save a sandbox as it is now, for others to go on from
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_value_name = "COMMAND",
    after_help = "\
Examples:
  sandforge snapshot box --as built          of a sandbox that runs, and goes on
  sandforge restore built --name again       another sandbox, from there
  sandforge snapshot ls
  sandforge snapshot rm built

A snapshot holds what the sandbox held: its memory, its scratch disk, its processes that are
detached, and so what you passed to them with -e. Nobody but you can read its files, and `rm`
removes them. A credential that a sandbox has by placeholder was never in it.

What goes on from one has a clock, randomness, keys and a network of its own. It goes on where
engine, kernel, image and processor are as they were, and is refused with what differs elsewhere.
Volumes have to be left out: a sandbox with volumes cannot be saved."
)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    command: Option<SnapshotCommand>,

    /// The sandbox's name or id; `sandforge ls` lists them
    #[arg(required = true, value_name = "NAME")]
    sandbox: Option<String>,

    /// Call the snapshot so, once in a workspace [default: its id]
    #[arg(long = "as", value_name = "SNAP")]
    name: Option<String>,

    /// Print the snapshot as a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum SnapshotCommand {
    /// List snapshots, the newest first
    Ls {
        #[command(flatten)]
        how: How,
    },
    /// Show one snapshot
    Inspect {
        /// Its name or id
        snapshot: String,

        #[command(flatten)]
        how: How,
    },
    /// Remove snapshots with all that is in them; sandboxes that went on from them stay
    Rm {
        /// Their names or ids
        #[arg(required = true, value_name = "SNAP")]
        snapshots: Vec<String>,

        /// Of this workspace; only who sees all workspaces may choose
        #[arg(long, value_name = "NAME", id = "whose")]
        workspace: Option<String>,
    },
}

#[derive(Args)]
struct How {
    /// Of this workspace; only who sees all workspaces may choose
    #[arg(long, value_name = "NAME", id = "whose")]
    workspace: Option<String>,

    /// Print JSON
    #[arg(long = "json", id = "as_json")]
    json: bool,
}

impl How {
    fn query(&self) -> SnapshotQuery {
        SnapshotQuery { workspace: self.workspace.clone() }
    }
}

impl SnapshotArgs {
    pub(crate) fn json(&self) -> bool {
        match &self.command {
            None => self.json,
            Some(SnapshotCommand::Ls { how } | SnapshotCommand::Inspect { how, .. }) => how.json,
            Some(SnapshotCommand::Rm { .. }) => false,
        }
    }

    pub(crate) fn run(self) -> Result<u8, Failure> {
        match self.command {
            None => {
                let sandbox = self.sandbox.unwrap_or_default();
                let create = CreateSnapshot { name: self.name };
                let made = connection::ask(async |client| {
                    Ok(client.create_snapshot(&sandbox, &create).await?)
                })?;
                match self.json {
                    true => super::print_json(&made)?,
                    false => super::print(&format!("{}\n", filter::plain(&made.name)))?,
                }
            }
            Some(SnapshotCommand::Ls { how }) => {
                let list = connection::ask(async |client| {
                    Ok(client.list_snapshots(&how.query()).await?.snapshots)
                })?;
                match how.json {
                    true => super::print_json(&list)?,
                    false => super::print(&table(&list))?,
                }
            }
            Some(SnapshotCommand::Inspect { snapshot, how }) => {
                let found = connection::ask(async |client| {
                    Ok(client.get_snapshot(&snapshot, &how.query()).await?)
                })?;
                match how.json {
                    true => super::print_json(&found)?,
                    false => super::print(&describe(&found))?,
                }
            }
            Some(SnapshotCommand::Rm { snapshots, workspace }) => {
                let query = SnapshotQuery { workspace };
                connection::ask(async |client| {
                    for snapshot in &snapshots {
                        client.remove_snapshot(snapshot, &query).await?;
                    }
                    Ok(())
                })?;
            }
        }
        Ok(0)
    }
}

/// Make a sandbox that goes on from a snapshot
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge restore built                    its name is printed
  sandforge restore built --name again -e GITHUB_TOKEN

Its commands that were detached go on. New ones have what is given here with -e, and not what
those of the other sandbox had. Policy is asked as for a new sandbox.")]
pub(crate) struct RestoreArgs {
    /// The snapshot's name or id; `sandforge snapshot ls` lists them
    #[arg(value_name = "SNAP")]
    snapshot: String,

    /// Call the sandbox so, once in a workspace [default: its id]
    #[arg(long)]
    name: Option<String>,

    /// The snapshot is one of this workspace; only who sees all workspaces may choose
    #[arg(long, value_name = "NAME")]
    workspace: Option<String>,

    #[command(flatten)]
    env: EnvArgs,

    /// Print the sandbox as a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl RestoreArgs {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let env = self.env.collect(|name| std::env::var_os(name))?;
        let env = env.into_iter().map(|(name, value)| {
            let name = String::from_utf8(name.into_bytes());
            let name = name.map_err(|_| Failure::usage("-e: the name is not UTF-8"))?;
            Ok((name, value))
        });
        let env = env.collect::<Result<BTreeMap<_, _>, Failure>>()?;
        let restore = RestoreSnapshot { name: self.name, env, labels: None };
        let query = SnapshotQuery { workspace: self.workspace };
        let sandbox = connection::ask(async |client| {
            Ok(client.restore_snapshot(&self.snapshot, &query, &restore).await?)
        })?;
        super::create::print(&sandbox, self.json)?;
        Ok(0)
    }
}

/// Make sandboxes that go on from one that runs
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge fork box                         one more, whose name is printed
  sandforge fork box --count 8 --name try    try-1 to try-8

Each has what the sandbox had in memory and on its scratch disk, its commands that are detached
included, and a clock, randomness, keys and a network of its own. The sandbox stands still while
it is saved, and goes on.")]
pub(crate) struct ForkArgs {
    /// The sandbox's name or id; `sandforge ls` lists them
    #[arg(value_name = "NAME")]
    sandbox: String,

    /// How many
    #[arg(long, value_name = "N", default_value = "1",
        value_parser = clap::value_parser!(u32).range(1..=64))]
    count: u32,

    /// Call them so, with -1, -2 and so on where there are several [default: their ids]
    #[arg(long)]
    name: Option<String>,

    /// Print a JSON array of sandboxes
    #[arg(long)]
    pub(crate) json: bool,
}

impl ForkArgs {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let fork = ForkSandbox { count: Some(self.count), name: self.name };
        let made = connection::ask(async |client| {
            Ok(client.fork_sandbox(&self.sandbox, &fork).await?.sandboxes)
        })?;
        if self.json {
            super::print_json(&made)?;
        }
        let (failed, there): (Vec<_>, Vec<_>) =
            made.iter().partition(|sandbox| sandbox.state == State::Failed);
        if !self.json {
            let lines = there.iter().map(|sandbox| format!("{}\n", filter::plain(&sandbox.name)));
            super::print(&lines.collect::<String>())?;
        }
        match failed.first() {
            None => Ok(0),
            Some(sandbox) => {
                let why = sandbox.reason.clone().unwrap_or_default();
                let count = failed.len();
                Err(Failure::new(Kind::Failed, format!("{count} of the forks failed: {why}")))
            }
        }
    }
}

fn age(snapshot: &Snapshot) -> String {
    super::list::age(Timestamp::now().since(snapshot.created_at))
}

fn table(snapshots: &[Snapshot]) -> String {
    let head = ["NAME", "SANDBOX", "AGE", "CPUS", "MEMORY", "USED", "IMAGE", "ENGINE"];
    let mut rows = vec![head.map(str::to_owned)];
    for snapshot in snapshots {
        rows.push([
            filter::plain(&snapshot.name),
            filter::plain(&snapshot.sandbox_name),
            age(snapshot),
            snapshot.cpu.to_string(),
            units::readable(u64::from(snapshot.memory_mb) << 20),
            units::readable(snapshot.disk_bytes),
            filter::plain(&snapshot.image),
            filter::plain(&snapshot.engine),
        ]);
    }
    super::list::table(&rows)
}

fn describe(snapshot: &Snapshot) -> String {
    let mut rows = vec![
        ["id".into(), filter::plain(&snapshot.id)],
        ["name".into(), filter::plain(&snapshot.name)],
        ["workspace".into(), filter::plain(&snapshot.workspace)],
        ["made by".into(), filter::plain(&snapshot.created_by)],
        ["age".into(), age(snapshot)],
        ["sandbox".into(), filter::plain(&snapshot.sandbox_name)],
        ["sandbox id".into(), filter::plain(&snapshot.sandbox)],
        ["image".into(), filter::plain(&snapshot.image)],
        ["engine".into(), filter::plain(&snapshot.engine)],
        ["isolation".into(), snapshot.isolation.to_string()],
        ["cpus".into(), snapshot.cpu.to_string()],
        ["memory".into(), units::readable(u64::from(snapshot.memory_mb) << 20)],
        ["network".into(), snapshot.network.as_str().into()],
        ["on disk".into(), units::readable(snapshot.disk_bytes)],
    ];
    if let Some(disk_gb) = snapshot.disk_gb {
        rows.push(["scratch disk".into(), units::readable(u64::from(disk_gb) << 30)]);
    }
    if !snapshot.env_names.is_empty() {
        rows.push(["may hold".into(), filter::plain(&snapshot.env_names.join(", "))]);
    }
    super::list::table(&rows)
}
