//! `sandforge audit`.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use client::api::{AuditDecision, AuditQuery, AuditRange, AuditRecord, AuditReport, Operation};

use crate::connection;
use crate::failure::Failure;
use crate::{filter, output};

/// Read, export and verify the audit log
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge audit tail
  sandforge audit tail -n 50 --denied
  sandforge audit verify
  sandforge audit verify --from 1000 --to 2000
  sandforge audit export --output audit.jsonl")]
pub(crate) struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Subcommand)]
enum AuditCommand {
    /// Verify the chain: exit status 1 and the records at fault where something was changed,
    /// removed, reordered or cut off
    Verify {
        #[command(flatten)]
        range: RangeArgs,

        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print the last records
    Tail(TailArgs),
    /// Write records as JSON, one a line, with their hashes
    Export {
        #[command(flatten)]
        range: RangeArgs,

        /// Into this new file [default: stdout]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

#[derive(Args)]
struct RangeArgs {
    /// From this record on
    #[arg(long, value_name = "SEQ")]
    from: Option<u64>,

    /// Up to this record, included
    #[arg(long, value_name = "SEQ")]
    to: Option<u64>,
}

impl RangeArgs {
    fn range(&self) -> AuditRange {
        AuditRange { from: self.from, to: self.to }
    }
}

#[derive(Args)]
struct TailArgs {
    /// So many
    #[arg(short = 'n', long, value_name = "N", default_value = "20")]
    lines: u32,

    /// Only what was denied
    #[arg(long)]
    denied: bool,

    /// Only by this actor
    #[arg(long, value_name = "NAME")]
    actor: Option<String>,

    /// Only of this operation, such as sandbox_create
    #[arg(long, value_name = "NAME")]
    operation: Option<Operation>,

    /// Only on this sandbox
    #[arg(long, value_name = "NAME")]
    sandbox: Option<String>,

    /// In this workspace; only who sees all workspaces may choose
    #[arg(long, value_name = "NAME")]
    workspace: Option<String>,

    /// Print a JSON object a line
    #[arg(long)]
    json: bool,
}

impl AuditArgs {
    pub(crate) fn json(&self) -> bool {
        match &self.command {
            AuditCommand::Verify { json, .. } => *json,
            AuditCommand::Tail(args) => args.json,
            AuditCommand::Export { .. } => false,
        }
    }

    pub(crate) fn run(&self) -> Result<u8, Failure> {
        match &self.command {
            AuditCommand::Verify { range, json } => verify(&range.range(), *json),
            AuditCommand::Tail(args) => args.run(),
            AuditCommand::Export { range, output } => export(&range.range(), output.as_ref()),
        }
    }
}

fn verify(range: &AuditRange, json: bool) -> Result<u8, Failure> {
    let report = connection::ask(async |client| Ok(client.verify_audit(range).await?))?;
    match json {
        true => super::print_json(&report)?,
        false => super::print(&describe(&report))?,
    }
    Ok(if report.ok { 0 } else { 1 })
}

fn describe(report: &AuditReport) -> String {
    let mut text = match (report.from, report.to) {
        (Some(from), Some(to)) => format!(
            "{} records, {from} to {to}, and {} checkpoints\n",
            report.records, report.checkpoints
        ),
        _ => "no records\n".into(),
    };
    if let Some(head) = &report.head_hash {
        text.push_str(&format!("head {}\n", filter::plain(head)));
    }
    for fault in &report.faults {
        let kind = format!("{:?}", fault.kind).to_lowercase();
        text.push_str(&format!("record {}: {kind}: {}\n", fault.seq, filter::plain(&fault.detail)));
    }
    text.push_str(if report.ok { "intact\n" } else { "NOT INTACT\n" });
    text
}

impl TailArgs {
    fn run(&self) -> Result<u8, Failure> {
        connection::ask(async |client| {
            let sandbox = match &self.sandbox {
                Some(name) => Some(client.get_sandbox(name).await?.id),
                None => None,
            };
            let query = AuditQuery {
                tail: Some(self.lines),
                actor: self.actor.clone(),
                operation: self.operation,
                sandbox,
                workspace: self.workspace.clone(),
                decision: self.denied.then_some(AuditDecision::Denied),
                limit: Some(self.lines),
                ..AuditQuery::default()
            };
            for record in client.list_audit(&query).await?.items {
                let read = match self.json {
                    true => super::print_json_more(&record)?,
                    false => super::print_more(&line(&record))?,
                };
                if !read {
                    break;
                }
            }
            Ok(0)
        })
    }
}

fn line(record: &AuditRecord) -> String {
    let mut line = format!(
        "{} {} {} {} {} {}",
        record.seq,
        record.at,
        record.actor,
        record.operation,
        record.decision.as_str(),
        record.outcome
    );
    for more in [record.workspace.as_deref(), record.sandbox.as_deref()].into_iter().flatten() {
        line.push(' ');
        line.push_str(more);
    }
    if let Some(rule) = &record.rule {
        line.push_str(&format!(" ({rule})"));
    }
    format!("{}\n", filter::plain(&line))
}

fn export(range: &AuditRange, output: Option<&PathBuf>) -> Result<u8, Failure> {
    // A file that is there may be an earlier export, which is evidence.
    let mut file = match output {
        Some(path) => Some((
            path,
            File::create_new(path).map_err(|error| {
                Failure::failed(format!("cannot make {path:?}")).because(&error)
            })?,
        )),
        None => None,
    };
    connection::ask(async |client| {
        let mut records = client.export_audit(range).await?;
        while let Some(piece) = records.next().await? {
            match &mut file {
                Some((path, file)) => file.write_all(&piece).map_err(|error| {
                    Failure::failed(format!("cannot write {path:?}")).because(&error)
                })?,
                None => match std::io::stdout().write_all(&piece) {
                    Err(error) if output::is_closed(&error) => return Ok(0),
                    written => written.map_err(|error| {
                        Failure::failed("cannot write to stdout").because(&error)
                    })?,
                },
            }
        }
        Ok(0)
    })
}
