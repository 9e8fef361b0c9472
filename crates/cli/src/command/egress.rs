//! `sandforge egress`.

use std::time::Duration;

use clap::{Args, Subcommand};
use client::Client;
use client::api::{AuditDecision, AuditQuery, AuditRecord, Code};
use serde_json::Value;

use crate::connection;
use crate::failure::Failure;
use crate::{filter, units};

/// Records of one page.
const PAGE: u32 = 1000;
/// Between looking for new records.
const PAUSE: Duration = Duration::from_millis(500);

/// See what sandboxes did on the network
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge egress log                     the last requests of all sandboxes
  sandforge egress log box --denied        what was denied to one, and what would allow it
  sandforge egress log box --follow        as it happens")]
pub(crate) struct EgressArgs {
    #[command(subcommand)]
    command: EgressCommand,
}

#[derive(Subcommand)]
enum EgressCommand {
    /// Print lookups that were denied, connections that were not looked into, and requests
    ///
    /// They are records of the audit log, so those of sandboxes that are gone are there too.
    Log(LogArgs),
}

#[derive(Args)]
struct LogArgs {
    /// Only of this sandbox: a name, or an id, also of one that is gone
    sandbox: Option<String>,

    /// Go on with what happens, until Ctrl-C
    #[arg(short, long)]
    follow: bool,

    /// Only what was denied
    #[arg(long)]
    denied: bool,

    /// So many of the last ones
    #[arg(short = 'n', long, value_name = "N", default_value = "100")]
    lines: u32,

    /// In this workspace; only who sees all workspaces may choose
    #[arg(long, value_name = "NAME")]
    workspace: Option<String>,

    /// Print a JSON object a line: the audit log's records
    #[arg(long)]
    json: bool,
}

impl EgressArgs {
    pub(crate) fn json(&self) -> bool {
        let EgressCommand::Log(args) = &self.command;
        args.json
    }

    pub(crate) fn run(&self) -> Result<u8, Failure> {
        let EgressCommand::Log(args) = &self.command;
        args.run()
    }
}

impl LogArgs {
    fn run(&self) -> Result<u8, Failure> {
        connection::ask(async |client| {
            let mut query = AuditQuery {
                // Who does something on the network is the sandbox itself.
                actor: match &self.sandbox {
                    Some(name) => Some(id_of(client, name).await?),
                    None => None,
                },
                workspace: self.workspace.clone(),
                decision: self.denied.then_some(AuditDecision::Denied),
                limit: Some(PAGE),
                ..AuditQuery::default()
            };
            let (records, next) = last(client, &query, self.lines as usize).await?;
            for record in &records {
                if !self.print(record)? {
                    return Ok(0);
                }
            }
            query.from = Some(next);
            if !self.follow {
                return Ok(0);
            }
            loop {
                let page = client.list_audit(&query).await?;
                for record in page.items.iter().filter(|record| is_network(record)) {
                    if !self.print(record)? {
                        return Ok(0);
                    }
                }
                match page.items.last() {
                    Some(last) => query.from = Some(last.seq + 1),
                    None => tokio::time::sleep(PAUSE).await,
                }
            }
        })
    }

    fn print(&self, record: &AuditRecord) -> Result<bool, Failure> {
        match self.json {
            true => super::print_json_more(record),
            false => super::print_more(&line(record)),
        }
    }
}

/// A sandbox that is gone has no name any more, and its id is enough.
async fn id_of(client: &Client, name: &str) -> Result<String, Failure> {
    match client.get_sandbox(name).await {
        Ok(sandbox) => Ok(sandbox.id),
        Err(client::Error::Problem(problem))
            if problem.code == Code::NotFound && name.starts_with("sb-") =>
        {
            Ok(name.to_owned())
        }
        Err(error) => Err(error.into()),
    }
}

fn is_network(record: &AuditRecord) -> bool {
    record.operation.starts_with("egress_")
}

/// The last `count` records about the network, oldest first, and where what follows begins. Pages are
/// read backwards, since most records may be about other things.
async fn last(
    client: &Client,
    query: &AuditQuery,
    count: usize,
) -> Result<(Vec<AuditRecord>, u64), Failure> {
    let mut found = Vec::new();
    let mut next = None;
    let mut to = None;
    loop {
        let page = client.list_audit(&AuditQuery { tail: Some(PAGE), to, ..query.clone() }).await?;
        let first = page.items.first().map_or(1, |record| record.seq);
        next = next.or_else(|| page.items.last().map(|record| record.seq + 1));
        let mut older: Vec<AuditRecord> = page.items.into_iter().filter(is_network).collect();
        older.append(&mut found);
        found = older;
        if found.len() >= count || first <= 1 {
            break;
        }
        to = Some(first - 1);
    }
    found.drain(..found.len().saturating_sub(count));
    Ok((found, next.unwrap_or(1)))
}

/// What happened, in a line.
fn line(record: &AuditRecord) -> String {
    let text = |name: &str| record.details.get(name).and_then(Value::as_str);
    let number = |name: &str| record.details.get(name).and_then(Value::as_u64);
    let host = text("host").unwrap_or_default();
    let port = match number("port") {
        Some(0 | 443) | None => String::new(),
        Some(port) => format!(":{port}"),
    };
    let what = match record.operation.as_str() {
        "egress_lookup" => format!("lookup {host}"),
        "egress_connection" => format!("connection {host}{port}"),
        _ => {
            let (method, path) = (text("method").unwrap_or("?"), text("path").unwrap_or_default());
            format!("{method} {host}{port}{path}")
        }
    };
    let mut line = format!("{} {} {} {what}", record.at, record.actor, record.outcome);
    if let Some(status) = number("status") {
        line.push_str(&format!(" {status}"));
    }
    if let Some(reason) = text("reason") {
        line.push_str(&format!(": {reason}"));
    }
    if record.decision == AuditDecision::Denied {
        if let Some(hint) = text("hint") {
            line.push_str(&format!("; to allow it: --allow '{hint}'"));
        }
    } else if record.operation != "egress_lookup" {
        let bytes = |name: &str| units::readable(number(name).unwrap_or(0));
        line.push_str(&format!(", {} sent, {} received", bytes("sent"), bytes("received")));
        let duration = record.details.get("duration_ms").and_then(Value::as_f64);
        line.push_str(&format!(", {:.1} ms", duration.unwrap_or(0.0)));
        if let Some(credential) = text("credential") {
            line.push_str(&format!(", credential {credential}"));
        }
        if let Some(rule) = &record.rule {
            line.push_str(&format!(" ({rule})"));
        }
    }
    format!("{}\n", filter::plain(&line).replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(operation: &str, decision: &str, outcome: &str, details: &Value) -> AuditRecord {
        serde_json::from_value(json!({
            "seq": 7, "at": "2026-01-01T00:00:00.000Z", "actor": "sb-abc", "operation": operation,
            "decision": decision, "outcome": outcome, "details": details, "prev_hash": "", "hash": "",
        }))
        .unwrap()
    }

    #[test]
    fn a_request_is_a_line_with_what_became_of_it() {
        let details = json!({
            "host": "api.example.com", "port": 443, "method": "POST", "path": "/v1/x", "status": 200,
            "sent": 12, "received": 2048, "duration_ms": 3.25, "credential": "shop",
        });
        let text = line(&record("egress_request", "allowed", "allowed", &details));
        assert!(text.contains("sb-abc allowed POST api.example.com/v1/x 200, 12 B sent"), "{text}");
        assert!(text.contains("credential shop"), "{text}");
    }

    #[test]
    fn a_denial_says_why_and_what_would_allow_it() {
        let details = json!({
            "host": "a.example", "port": 8443, "method": "GET", "path": "/x\n", "hint": "GET a.example/x",
            "reason": "no rule allows it", "sent": 0, "received": 0,
        });
        let text = line(&record("egress_request", "denied", "denied", &details));
        assert!(text.contains("denied GET a.example:8443/x"), "{text}");
        assert!(
            text.ends_with(": no rule allows it; to allow it: --allow 'GET a.example/x'\n"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1);
        let lookup = json!({"host": "b.example", "port": 0, "reason": "no"});
        let text = line(&record("egress_lookup", "denied", "denied", &lookup));
        assert!(text.ends_with("denied lookup b.example: no\n"), "{text}");
    }
}
