//! `sandforge token`.

use std::time::Duration;

use clap::{Args, Subcommand};
use client::api::{CreateToken, Operation, Role, Timestamp, Token, TokenQuery};
use serde::Serialize;

use super::Context;
use crate::connection::{self, all};
use crate::failure::Failure;
use crate::progress::Line;
use crate::{filter, units};

/// Make, list and revoke tokens
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge token create ci --role member --workspace team-a --expires 30d
  sandforge token create watcher --role viewer --operation sandbox_list --operation event_list
  sandforge token ls
  sandforge token revoke ID")]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Make a token and print it: it is shown this once
    Create(CreateArgs),
    /// List tokens, without their secrets
    Ls(ListArgs),
    /// Revoke tokens, at once and for good
    Revoke {
        /// Their ids; `sandforge token ls` lists them
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

#[derive(Args)]
struct CreateArgs {
    /// To remember it by
    name: String,

    /// What it may do: a viewer reads, a member runs, an owner configures
    #[arg(long)]
    role: Role,

    /// Where [default: your own workspace, or all of them where you see all]
    #[arg(long, value_name = "NAME")]
    workspace: Option<String>,

    /// For how long: 1h, 30d [default: until it is revoked]
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    expires: Option<Duration>,

    /// Only this operation of those that the role has; may be given several times
    #[arg(long, value_name = "NAME")]
    operation: Vec<Operation>,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// Which tokens to list, or keys.
#[derive(Args)]
pub(super) struct ListArgs {
    /// Those that were revoked or have expired too
    #[arg(short, long)]
    all: bool,

    /// Of this workspace; only who sees all workspaces may choose
    #[arg(long, value_name = "NAME")]
    workspace: Option<String>,

    /// Print a JSON array
    #[arg(long)]
    pub(super) json: bool,
}

impl TokenArgs {
    pub(crate) fn json(&self) -> bool {
        match &self.command {
            TokenCommand::Create(args) => args.json,
            TokenCommand::Ls(args) => args.json,
            TokenCommand::Revoke { .. } => false,
        }
    }

    pub(crate) fn run(&self, context: &Context) -> Result<u8, Failure> {
        match &self.command {
            TokenCommand::Create(args) => args.run(context)?,
            TokenCommand::Ls(args) => args.run()?,
            TokenCommand::Revoke { ids } => connection::ask(async |client| {
                for id in ids {
                    client.revoke_token(id).await?;
                }
                Ok(())
            })?,
        }
        Ok(0)
    }
}

impl CreateArgs {
    fn run(&self, context: &Context) -> Result<(), Failure> {
        let expires = self.expires.map(|time| units::whole_seconds("--expires", time));
        let create = CreateToken {
            name: self.name.clone(),
            role: self.role,
            workspace: self.workspace.clone(),
            operations: match self.operation.is_empty() {
                true => None,
                false => Some(self.operation.iter().copied().collect()),
            },
            expires_in_sec: expires.transpose()?,
        };
        let created = connection::ask(async |client| Ok(client.create_token(&create).await?))?;
        if self.json {
            return super::print_json(&created);
        }
        let secret = String::from_utf8_lossy(created.secret.expose()).into_owned();
        super::print(&format!("{secret}\n"))?;
        Line::new(context.verbosity).notice(&format!(
            "token {} is shown this once; use it as SANDFORGE_TOKEN",
            created.token.id
        ));
        Ok(())
    }
}

impl ListArgs {
    /// What to ask for, from this place on.
    pub(super) fn query(&self, cursor: Option<String>) -> TokenQuery {
        TokenQuery { workspace: self.workspace.clone(), all: self.all, cursor, limit: None }
    }

    /// Prints what there is, for people as these rows.
    pub(super) fn print<T: Serialize>(
        &self,
        found: &[T],
        rows: impl FnOnce(&[T]) -> String,
    ) -> Result<(), Failure> {
        match self.json {
            true => super::print_json(&found),
            false => super::print(&rows(found)),
        }
    }

    fn run(&self) -> Result<(), Failure> {
        let tokens = connection::ask(async |client| {
            all(async |cursor| client.list_tokens(&self.query(cursor)).await).await
        })?;
        self.print(&tokens, rows)
    }
}

fn rows(tokens: &[Token]) -> String {
    let head = ["ID", "NAME", "ROLE", "WORKSPACE", "AGE", "ENDS", "OPERATIONS"];
    let mut rows = vec![head.map(str::to_owned)];
    for token in tokens {
        let operations = token.operations.as_ref().map_or_else(
            || "all of the role".into(),
            |all| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        );
        rows.push([
            filter::plain(&token.id),
            filter::plain(&token.name),
            token.role.to_string(),
            filter::plain(token.workspace.as_deref().unwrap_or("all")),
            super::list::age(Timestamp::now().since(token.created_at)),
            ends(token.expires_at, token.revoked_at),
            operations,
        ]);
    }
    super::list::table(&rows)
}

/// When a right ends, or that it has.
pub(super) fn ends(expires: Option<Timestamp>, revoked: Option<Timestamp>) -> String {
    match (revoked, expires) {
        (Some(_), _) => "revoked".into(),
        (None, Some(at)) if at <= Timestamp::now() => "expired".into(),
        (None, Some(at)) => format!("in {}", super::list::age(at.since(Timestamp::now()))),
        (None, None) => "never".into(),
    }
}
