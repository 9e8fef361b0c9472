//! `sandforge secret`.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Read as _, stdin};
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use client::api::{
    CustomService, PlaceholderCharacters, SecretList, SecretQuery, SecretSlot, SecretSource,
    SetSecret, StoredSecret, Timestamp,
};
use secrets::{Candidate, Fate, Variable};
use serde::Serialize;
use wire::text::Secret;
use zeroize::Zeroizing;

use super::Context;
use crate::connection;
use crate::failure::Failure;
use crate::progress::Line;
use crate::{filter, input, prompt};

/// Most of what is read as a value: more than any is, so that one that is too long is told.
const MAX_VALUE: u64 = 64 << 10;
/// Longest file of variables.
const MAX_FILE: u64 = 1 << 20;

/// Keep credentials that sandboxes use and never see
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge secret set -g anthropic               asks for the value, and shows nothing of it
  gh auth token | sandforge secret set -g github
  sandforge secret set my-sandbox openai          for one sandbox, at once
  sandforge secret set -g github --command 'op read op://Work/github/token'
  sandforge secret set -g azure-openai --with resource=acme
  sandforge secret set-custom -g shop --host api.shop.example --header x-shop-key --env SHOP_KEY
  sandforge secret import .env --dry-run
  sandforge secret ls
  sandforge secret rm -g github

A sandbox has placeholders in its environment; the values are put into its requests on the way out,
at the hosts of the service only. Secrets are in the keychain of your session where there is one, and
else in an encrypted file: `sandforge secret ls` says where.")]
pub(crate) struct SecretArgs {
    #[command(subcommand)]
    command: SecretCommand,
}

#[derive(Subcommand)]
enum SecretCommand {
    /// Keep the credential of a service: the value comes from stdin, or is asked for
    Set(SetArgs),
    /// Keep a credential for hosts of your own choice
    SetCustom(SetCustomArgs),
    /// List secrets, without their values
    Ls(ListArgs),
    /// Remove a secret
    Rm {
        #[command(flatten)]
        whose: WhoseArgs,
    },
    /// Take over credentials from a file such as .env, or from the environment
    Import(ImportArgs),
    /// Give up all secrets of all workspaces, readable or not
    Reset {
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
}

/// For whom, and which.
#[derive(Args)]
struct WhoseArgs {
    /// For every sandbox that is created from now on
    #[arg(short, long)]
    global: bool,

    /// The sandbox, unless -g is given, and the service
    #[arg(required = true, num_args = 1..=2, value_names = ["SANDBOX", "SERVICE"])]
    names: Vec<String>,

    /// In this workspace; only who sees all workspaces may choose
    #[arg(long, value_name = "NAME", requires = "global")]
    workspace: Option<String>,
}

/// Where the value comes from.
#[derive(Args)]
struct SourceArgs {
    /// A shell command of this host that prints the value, run each time it is needed
    #[arg(long, value_name = "COMMAND")]
    command: Option<String>,
}

#[derive(Args)]
struct SetArgs {
    #[command(flatten)]
    whose: WhoseArgs,

    #[command(flatten)]
    source: SourceArgs,

    /// A variable that has the value, read each time it is needed
    #[arg(long, value_name = "VARIABLE", conflicts_with = "command")]
    env: Option<String>,

    /// What differs from user to user of the service; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    with: Vec<String>,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct SetCustomArgs {
    #[command(flatten)]
    whose: WhoseArgs,

    #[command(flatten)]
    source: SourceArgs,

    /// A variable of this host that has the value, read each time it is needed
    #[arg(long, value_name = "VARIABLE", conflicts_with = "command")]
    from_env: Option<String>,

    /// A host that the credential is for, exactly, with a port where it is not 443; may be given
    /// several times
    #[arg(long, required = true, value_name = "HOST")]
    host: Vec<String>,

    /// A variable of the sandbox that gets the placeholder; may be given several times
    #[arg(long, value_name = "VARIABLE")]
    env: Vec<String>,

    /// The header that it stands in, `x-key`, or `authorization: Bearer` [default: that]; may be
    /// given several times
    #[arg(long, value_name = "NAME[: SCHEME]")]
    header: Vec<String>,

    /// The user whose password it is, `*` for any
    #[arg(long, value_name = "USER")]
    basic: Vec<String>,

    /// The key of the query that it stands in
    #[arg(long, value_name = "KEY")]
    query: Vec<String>,

    /// How the placeholder begins, if clients look at it
    #[arg(long, value_name = "PREFIX", default_value = "")]
    placeholder: String,

    /// What follows
    #[arg(long, value_enum, default_value_t = Characters::Alphanumeric)]
    characters: Characters,

    /// How long the placeholder is [default: as long as the value]
    #[arg(long, value_name = "N")]
    length: Option<u32>,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Characters {
    Alphanumeric,
    Base32,
    Base64url,
    Hex,
}

impl From<Characters> for PlaceholderCharacters {
    fn from(characters: Characters) -> Self {
        match characters {
            Characters::Alphanumeric => Self::Alphanumeric,
            Characters::Base32 => Self::Base32,
            Characters::Base64url => Self::Base64url,
            Characters::Hex => Self::Hex,
        }
    }
}

#[derive(Args)]
struct ListArgs {
    /// Of this workspace; only who sees all workspaces may choose
    #[arg(long, value_name = "NAME")]
    workspace: Option<String>,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct ImportArgs {
    /// The file, `-` for stdin [default: the environment of this command]
    file: Option<PathBuf>,

    /// Say what would be kept, and keep nothing
    #[arg(long)]
    dry_run: bool,

    /// For this sandbox [default: for every one that is created from now on]
    #[arg(long, value_name = "SANDBOX")]
    sandbox: Option<String>,

    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

impl SecretArgs {
    pub(crate) fn json(&self) -> bool {
        match &self.command {
            SecretCommand::Set(args) => args.json,
            SecretCommand::SetCustom(args) => args.json,
            SecretCommand::Ls(args) => args.json,
            SecretCommand::Import(args) => args.json,
            SecretCommand::Rm { .. } | SecretCommand::Reset { .. } => false,
        }
    }

    pub(crate) fn run(&self, context: &Context) -> Result<u8, Failure> {
        match &self.command {
            SecretCommand::Set(args) => args.run(context)?,
            SecretCommand::SetCustom(args) => args.run(context)?,
            SecretCommand::Ls(args) => args.run(context)?,
            SecretCommand::Rm { whose } => whose.remove()?,
            SecretCommand::Import(args) => args.run(context)?,
            SecretCommand::Reset { yes } => reset(*yes, context)?,
        }
        Ok(0)
    }
}

impl WhoseArgs {
    /// The sandbox, if it is one's, and the service.
    fn parts(&self) -> Result<(Option<&str>, &str), Failure> {
        match (self.global, &self.names[..]) {
            (true, [service]) => Ok((None, service)),
            (false, [sandbox, service]) => Ok((Some(sandbox), service)),
            (true, _) => Err(Failure::usage("-g is for every sandbox, so that none is named")
                .help("leave out the one or the other")),
            (false, _) => Err(Failure::usage("for whom is it?")
                .help("-g for every sandbox, or a sandbox before the service")),
        }
    }

    fn remove(&self) -> Result<(), Failure> {
        let (sandbox, service) = self.parts()?;
        let query = SecretQuery { workspace: self.workspace.clone() };
        connection::ask(async |client| {
            match sandbox {
                Some(sandbox) => client.remove_sandbox_secret(sandbox, service).await?,
                None => client.remove_secret(service, &query).await?,
            }
            Ok(())
        })
    }

    /// Keeps it, and says where.
    fn set(&self, set: &SetSecret, json: bool, context: &Context) -> Result<(), Failure> {
        let (sandbox, service) = self.parts()?;
        let set = SetSecret { workspace: self.workspace.clone(), ..set.clone() };
        let query = SecretQuery { workspace: self.workspace.clone() };
        let (stored, store) = connection::ask(async |client| {
            let stored = match sandbox {
                Some(sandbox) => client.set_sandbox_secret(sandbox, service, &set).await?,
                None => client.set_secret(service, &set).await?,
            };
            let store = match json {
                true => None,
                // Who may set may not always look.
                false => client.list_secrets(&query).await.ok().and_then(|list| list.store),
            };
            Ok((stored, store))
        })?;
        if json {
            return super::print_json(&stored);
        }
        let whom = match sandbox {
            Some(sandbox) => format!("for {}", filter::plain(sandbox)),
            None => "for every sandbox that is created from now on".to_owned(),
        };
        let place = store.map_or_else(String::new, |place| format!(", {}", filter::plain(&place)));
        Line::new(context.verbosity)
            .notice(&format!("{} is kept {whom}{place}", filter::plain(service)));
        Ok(())
    }
}

/// One of the three, and the value where it is none of the others.
fn source(
    service: &str,
    command: Option<&String>,
    env: Option<&String>,
) -> Result<SetSecret, Failure> {
    let value = match (command, env) {
        (None, None) => Some(value(service)?),
        _ => None,
    };
    Ok(SetSecret { value, command: command.cloned(), env: env.cloned(), ..SetSecret::default() })
}

/// The value, of stdin where something comes from there, else of the person at the terminal.
fn value(service: &str) -> Result<Secret, Failure> {
    let bytes = if input::is_fed() {
        let mut bytes = Zeroizing::new(Vec::with_capacity(64 << 10));
        stdin()
            .take(MAX_VALUE)
            .read_to_end(&mut bytes)
            .map_err(|error| Failure::failed("cannot read stdin").because(&error))?;
        while matches!(bytes.last(), Some(b'\n' | b'\r')) {
            bytes.pop();
        }
        bytes
    } else {
        let question = match service {
            "aws" => "The keys of aws, as ID:KEY or ID:KEY:TOKEN".to_owned(),
            service => format!("The secret of {}", filter::plain(service)),
        };
        let secret = prompt::secret(&question).map_err(|error| {
            Failure::usage("there is no value").because(&error).help(
                "pipe it in, or name where it comes from with --command; never write it on the \
                 command line",
            )
        })?;
        Zeroizing::new(secret.expose().to_vec())
    };
    if bytes.is_empty() {
        return Err(Failure::usage("the value is empty"));
    }
    Secret::new(bytes.to_vec()).map_err(|error| Failure::usage(format!("the value {error}")))
}

impl SetArgs {
    fn run(&self, context: &Context) -> Result<(), Failure> {
        let (_, service) = self.whose.parts()?;
        let mut parameters = BTreeMap::new();
        for text in &self.with {
            let (key, value) = text.split_once('=').ok_or_else(|| {
                Failure::usage(format!("--with {text:?} is not of the form KEY=VALUE"))
            })?;
            parameters.insert(key.to_owned(), value.to_owned());
        }
        let set = source(service, self.source.command.as_ref(), self.env.as_ref())?;
        self.whose.set(&SetSecret { parameters, ..set }, self.json, context)
    }
}

impl SetCustomArgs {
    fn run(&self, context: &Context) -> Result<(), Failure> {
        let (_, service) = self.whose.parts()?;
        let custom = CustomService {
            hosts: self.host.clone(),
            env: self.env.clone(),
            slots: self.slots(),
            prefix: self.placeholder.clone(),
            characters: self.characters.into(),
            length: self.length,
        };
        let set = source(service, self.source.command.as_ref(), self.from_env.as_ref())?;
        self.whose.set(&SetSecret { custom: Some(custom), ..set }, self.json, context)
    }

    fn slots(&self) -> Vec<SecretSlot> {
        let mut slots = Vec::new();
        for text in &self.header {
            let (name, scheme) = match text.split_once(':') {
                Some((name, scheme)) => (name, Some(scheme.trim().to_owned())),
                None => (text.as_str(), None),
            };
            slots.push(SecretSlot::Header { name: name.trim().to_ascii_lowercase(), scheme });
        }
        for user in &self.basic {
            let username = Some(user.clone()).filter(|user| user != "*");
            slots.push(SecretSlot::Basic { username });
        }
        for key in &self.query {
            slots.push(SecretSlot::Query { key: key.clone(), header: None });
        }
        if slots.is_empty() {
            let (name, scheme) = ("authorization".to_owned(), Some("Bearer".to_owned()));
            slots.push(SecretSlot::Header { name, scheme });
        }
        slots
    }
}

impl ListArgs {
    fn run(&self, context: &Context) -> Result<(), Failure> {
        let query = SecretQuery { workspace: self.workspace.clone() };
        let list = connection::ask(async |client| Ok(client.list_secrets(&query).await?))?;
        if self.json {
            return super::print_json(&list);
        }
        super::print(&rows(&list))?;
        if let Some(store) = &list.store {
            Line::new(context.verbosity).notice(&format!("secrets are {}", filter::plain(store)));
        }
        Ok(())
    }
}

fn rows(list: &SecretList) -> String {
    let mut rows = vec![["SCOPE", "SERVICE", "SECRET", "FROM", "AGE"].map(str::to_owned)];
    for secret in &list.secrets {
        rows.push([
            filter::plain(secret.sandbox.as_deref().unwrap_or("(global)")),
            filter::plain(&secret.service),
            filter::plain(&secret.masked),
            from(secret).to_owned(),
            super::list::age(Timestamp::now().since(secret.changed_at)),
        ]);
    }
    super::list::table(&rows)
}

fn from(secret: &StoredSecret) -> &'static str {
    match secret.source {
        SecretSource::Value => "a value",
        SecretSource::Command => "a command",
        SecretSource::Env => "a variable",
    }
}

/// What became of a candidate, or would.
#[derive(Serialize)]
struct Imported {
    service: String,
    variables: Vec<String>,
    masked: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<String>,
}

impl ImportArgs {
    fn run(&self, context: &Context) -> Result<(), Failure> {
        let catalogue = crate::secrets::catalogue()?;
        let candidates = secrets::plan(&catalogue, &self.variables()?);
        let done: Vec<Imported> = candidates.iter().map(imported).collect();
        if !self.dry_run {
            self.keep(candidates)?;
        }
        if self.json {
            return super::print_json(&done);
        }
        let (verb, would) =
            if self.dry_run { ("would keep", "would skip") } else { ("kept", "skipped") };
        let mut text = String::new();
        for one in &done {
            let variables = filter::plain(&one.variables.join(", "));
            text += &match &one.skipped {
                None => format!("{verb} {} {} of {variables}\n", one.service, one.masked),
                Some(reason) => {
                    format!("{would} {} of {variables}: {}\n", one.service, filter::plain(reason))
                }
            };
        }
        super::print(&text)?;
        if done.is_empty() {
            Line::new(context.verbosity).notice("no service knows any of the variables");
        }
        Ok(())
    }

    fn keep(&self, candidates: Vec<Candidate>) -> Result<(), Failure> {
        let wanted: Vec<(String, Secret)> = candidates
            .into_iter()
            .filter_map(|one| match one.fate {
                Fate::Import(secret) => Some((one.service, secret)),
                Fate::Skip(_) => None,
            })
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        connection::ask(async |client| {
            for (service, value) in &wanted {
                let set = SetSecret { value: Some(value.clone()), ..SetSecret::default() };
                match &self.sandbox {
                    Some(sandbox) => client.set_sandbox_secret(sandbox, service, &set).await?,
                    None => client.set_secret(service, &set).await?,
                };
            }
            Ok(())
        })
    }

    fn variables(&self) -> Result<Vec<Variable>, Failure> {
        let Some(path) = &self.file else {
            let environment = std::env::vars_os().filter_map(|(name, value)| {
                let value = Secret::new(value.into_encoded_bytes()).ok()?;
                Some(Variable { name: name.into_string().ok()?, value })
            });
            return Ok(environment.collect());
        };
        let failed = |error: std::io::Error| {
            Failure::failed(format!("cannot read {path:?}")).because(&error)
        };
        let mut text = Zeroizing::new(String::with_capacity(64 << 10));
        let read = match path.as_os_str() == "-" {
            true => stdin().take(MAX_FILE + 1).read_to_string(&mut text),
            false => std::fs::File::open(path)
                .and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text)),
        };
        read.map_err(failed)?;
        secrets::variables(&text).map_err(|error| Failure::usage(format!("{path:?}: {error}")))
    }
}

fn imported(candidate: &Candidate) -> Imported {
    Imported {
        service: candidate.service.clone(),
        variables: candidate.variables.clone(),
        masked: candidate.masked.clone(),
        skipped: match &candidate.fate {
            Fate::Import(_) => None,
            Fate::Skip(reason) => Some(reason.clone()),
        },
    }
}

fn reset(yes: bool, context: &Context) -> Result<(), Failure> {
    if !yes {
        if !stdin().is_terminal() {
            return Err(Failure::usage("this gives up all secrets of all workspaces")
                .help("say that you mean it with --yes"));
        }
        super::print("This gives up all secrets of all workspaces. Type `yes` to go on: ")?;
        let mut answer = String::new();
        stdin()
            .read_line(&mut answer)
            .map_err(|error| Failure::failed("cannot read stdin").because(&error))?;
        if answer.trim() != "yes" {
            return Err(Failure::failed("nothing was given up"));
        }
    }
    connection::ask(async |client| Ok(client.reset_secrets().await?))?;
    Line::new(context.verbosity).notice("all secrets were given up");
    Ok(())
}
