//! `sandforge key`.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use client::RequestKey;
use client::api::{CreateKey, Key, Timestamp};

use super::Context;
use super::token::ListArgs;
use crate::connection::{self, all};
use crate::failure::Failure;
use crate::keyfile;
use crate::progress::Line;
use crate::{filter, units};

/// Make, list and revoke keys that sign requests
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge key create laptop --output ~/.config/sandforge/laptop.key
  SANDFORGE_KEY=~/.config/sandforge/laptop.key sandforge exec box true
  sandforge key ls
  sandforge key rm ID

A signed request that was changed on its way is refused and is in the audit log. Its signature
covers the method, the path, the query, the body and the time; RFC 9421 says how.")]
pub(crate) struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Make a key, register its public half and keep the other in a file
    Create(CreateArgs),
    /// List registered keys
    Ls(ListArgs),
    /// Revoke keys, at once and for good
    Rm {
        /// Their ids; `sandforge key ls` lists them
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

#[derive(Args)]
struct CreateArgs {
    /// To remember it by
    name: String,

    /// The new file of the secret half, which SANDFORGE_KEY then names
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Whose requests it signs [default: yours]
    #[arg(long, value_name = "NAME")]
    subject: Option<String>,

    /// Where [default: your own workspace]
    #[arg(long, value_name = "NAME")]
    workspace: Option<String>,

    /// For how long: 1h, 30d [default: until it is revoked]
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    expires: Option<Duration>,

    /// Print the registered key as a JSON object
    #[arg(long)]
    json: bool,
}

impl KeyArgs {
    pub(crate) fn json(&self) -> bool {
        match &self.command {
            KeyCommand::Create(args) => args.json,
            KeyCommand::Ls(args) => args.json,
            KeyCommand::Rm { .. } => false,
        }
    }

    pub(crate) fn run(&self, context: &Context) -> Result<u8, Failure> {
        match &self.command {
            KeyCommand::Create(args) => args.run(context)?,
            KeyCommand::Ls(args) => list(args)?,
            KeyCommand::Rm { ids } => connection::ask(async |client| {
                for id in ids {
                    client.revoke_key(id).await?;
                }
                Ok(())
            })?,
        }
        Ok(0)
    }
}

impl CreateArgs {
    fn run(&self, context: &Context) -> Result<(), Failure> {
        let path = &self.output;
        let failed = |error: std::io::Error| {
            Failure::failed(format!("cannot make the key's file {path:?}")).because(&error)
        };
        // First: a key whose secret cannot be kept is not registered.
        let mut file: File = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        let made = self.register().and_then(|(key, text)| {
            file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
            Ok(key)
        });
        let key = made.inspect_err(|_| {
            // It is empty, or was cut off: nothing of use is lost.
            let _ = std::fs::remove_file(path);
        })?;
        if self.json {
            return super::print_json(&key);
        }
        super::print(&format!("{}\n", filter::plain(&key.id)))?;
        Line::new(context.verbosity)
            .notice(&format!("sign with it: export SANDFORGE_KEY={}", path.display()));
        Ok(())
    }

    fn register(&self) -> Result<(Key, zeroize::Zeroizing<String>), Failure> {
        let secret = RequestKey::generate()?;
        let expires = self.expires.map(|time| units::whole_seconds("--expires", time));
        let create = CreateKey {
            name: self.name.clone(),
            public_key: RequestKey::new("new", &secret).public_hex(),
            subject: self.subject.clone(),
            workspace: self.workspace.clone(),
            expires_in_sec: expires.transpose()?,
        };
        let key = connection::ask(async |client| Ok(client.create_key(&create).await?))?;
        let text = keyfile::render(&key.id, &secret);
        Ok((key, text))
    }
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let keys = connection::ask(async |client| {
        all(async |cursor| client.list_keys(&args.query(cursor)).await).await
    })?;
    args.print(&keys, rows)
}

fn rows(keys: &[Key]) -> String {
    let mut rows = vec![["ID", "NAME", "SUBJECT", "WORKSPACE", "AGE", "ENDS"].map(str::to_owned)];
    for key in keys {
        rows.push([
            filter::plain(&key.id),
            filter::plain(&key.name),
            filter::plain(&key.subject),
            filter::plain(key.workspace.as_deref().unwrap_or("all")),
            super::list::age(Timestamp::now().since(key.created_at)),
            super::token::ends(key.expires_at, key.revoked_at),
        ]);
    }
    super::list::table(&rows)
}
