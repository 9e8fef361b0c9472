//! `sandforge rm`.

use clap::Args;
use client::api::ListSandboxes;

use crate::connection::{self, all};
use crate::failure::Failure;

/// Remove sandboxes, with all that is in them
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge rm box ci
  sandforge rm --all")]
pub(crate) struct RemoveArgs {
    /// Their names or ids; `sandforge ls` lists them
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "NAME")]
    names: Vec<String>,

    /// All that you see
    #[arg(long)]
    all: bool,
}

impl RemoveArgs {
    pub(crate) fn run(&self) -> Result<u8, Failure> {
        connection::ask(async |client| {
            let names = match self.all {
                false => self.names.clone(),
                true => {
                    let query = ListSandboxes::default();
                    let page = async |cursor| {
                        client.list_sandboxes(&ListSandboxes { cursor, ..query.clone() }).await
                    };
                    all(page).await?.into_iter().map(|sandbox| sandbox.id).collect()
                }
            };
            // One that cannot be removed does not keep the others.
            let mut failed = None;
            for name in &names {
                if let Err(error) = client.delete_sandbox(name, true).await {
                    failed.get_or_insert_with(|| Failure::from(error));
                }
            }
            failed.map_or(Ok(0), Err)
        })
    }
}
