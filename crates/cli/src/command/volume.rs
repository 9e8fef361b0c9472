//! `sandforge volume`.

use clap::{Args, Subcommand};
use client::api::{CreateVolume, Timestamp, Volume, VolumeQuery};

use crate::connection;
use crate::failure::Failure;
use crate::{filter, units};

/// Disks that outlive sandboxes
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge volume create data --size 20GiB
  sandforge run -v data:/data \"date >> /data/log\"
  sandforge run -v data:/data:ro \"cat /data/log\"
  sandforge volume ls
  sandforge volume rm data

A volume takes up what is written to it, and gives back what is removed from it.")]
pub(crate) struct VolumeArgs {
    #[command(subcommand)]
    command: VolumeCommand,
}

#[derive(Subcommand)]
enum VolumeCommand {
    /// Make an empty volume, which belongs to the user of tasks
    Create {
        /// What to call it: small letters, digits, `.`, `_` and `-`
        name: String,

        /// How much it holds: 512m, 20GiB
        #[arg(long, value_name = "SIZE", value_parser = units::bytes, default_value = "10GiB")]
        size: u64,

        #[command(flatten)]
        how: How,
    },
    /// List volumes
    Ls {
        #[command(flatten)]
        how: How,
    },
    /// Show one volume
    Inspect {
        /// Which
        name: String,

        #[command(flatten)]
        how: How,
    },
    /// Remove volumes with all that is on them; those that a sandbox has are refused
    Rm {
        /// Which
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,

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
    #[arg(long)]
    json: bool,
}

impl How {
    fn query(&self) -> VolumeQuery {
        VolumeQuery { workspace: self.workspace.clone() }
    }
}

impl VolumeArgs {
    pub(crate) fn json(&self) -> bool {
        match &self.command {
            VolumeCommand::Create { how, .. }
            | VolumeCommand::Ls { how }
            | VolumeCommand::Inspect { how, .. } => how.json,
            VolumeCommand::Rm { .. } => false,
        }
    }

    pub(crate) fn run(self) -> Result<u8, Failure> {
        match self.command {
            VolumeCommand::Create { name, size, how } => {
                let workspace = how.workspace;
                let create = CreateVolume { name, size_bytes: Some(size), workspace };
                let made =
                    connection::ask(async |client| Ok(client.create_volume(&create).await?));
                let made = made?;
                match how.json {
                    true => super::print_json(&made)?,
                    false => super::print(&format!("{}\n", filter::plain(&made.name)))?,
                }
            }
            VolumeCommand::Ls { how } => {
                let list = connection::ask(async |client| {
                    Ok(client.list_volumes(&how.query()).await?.volumes)
                })?;
                match how.json {
                    true => super::print_json(&list)?,
                    false => super::print(&table(&list))?,
                }
            }
            VolumeCommand::Inspect { name, how } => {
                let found = connection::ask(async |client| {
                    Ok(client.get_volume(&name, &how.query()).await?)
                })?;
                match how.json {
                    true => super::print_json(&found)?,
                    false => super::print(&describe(&found))?,
                }
            }
            VolumeCommand::Rm { names, workspace } => {
                let query = VolumeQuery { workspace };
                connection::ask(async |client| {
                    for name in &names {
                        client.remove_volume(name, &query).await?;
                    }
                    Ok(())
                })?;
            }
        }
        Ok(0)
    }
}

fn age(volume: &Volume) -> String {
    match volume.created_at {
        Some(at) => super::list::age(Timestamp::now().since(at)),
        None => "-".into(),
    }
}

fn table(volumes: &[Volume]) -> String {
    let mut rows = vec![["NAME", "SIZE", "USED", "IN USE", "AGE"].map(str::to_owned)];
    for volume in volumes {
        rows.push([
            filter::plain(&volume.name),
            units::readable(volume.size_bytes),
            units::readable(volume.used_bytes),
            if volume.in_use { "yes" } else { "no" }.into(),
            age(volume),
        ]);
    }
    super::list::table(&rows)
}

fn describe(volume: &Volume) -> String {
    let rows = [
        ["name".into(), filter::plain(&volume.name)],
        ["workspace".into(), filter::plain(&volume.workspace)],
        ["size".into(), units::readable(volume.size_bytes)],
        ["used".into(), units::readable(volume.used_bytes)],
        ["in use".into(), if volume.in_use { "yes" } else { "no" }.into()],
        ["age".into(), age(volume)],
    ];
    super::list::table(&rows)
}
