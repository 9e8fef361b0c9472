//! `sandforge logs`.

use clap::Args;
use client::api::{LogQuery, LogRecord, LogSource};

use crate::connection;
use crate::failure::Failure;
use crate::filter;

/// Print what happened to a sandbox and what its detached processes wrote
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge logs box
  sandforge logs box --tail 20 --follow
  sandforge logs box --process server --json")]
pub(crate) struct LogsArgs {
    /// Its name or id; `sandforge ls` lists them
    name: String,

    /// Go on while it lives
    #[arg(short, long)]
    follow: bool,

    /// Only the last lines, so many
    #[arg(short = 'n', long, value_name = "N")]
    tail: Option<u32>,

    /// Only lines of this process
    #[arg(long, value_name = "PROCESS")]
    process: Option<String>,

    /// Print a JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

impl LogsArgs {
    pub(crate) fn run(&self) -> Result<u8, Failure> {
        connection::ask(async |client| {
            let mut query = LogQuery {
                since: None,
                process: self.process.clone(),
                tail: self.tail,
                limit: Some(1000),
            };
            // What there is comes in pages; following begins behind the last.
            loop {
                let page = client.sandbox_logs(&self.name, &query).await?;
                let Some(last) = page.items.last() else { break };
                query.since = Some(last.seq);
                query.tail = None;
                for record in &page.items {
                    if !self.print(record)? {
                        return Ok(0);
                    }
                }
                if page.next_cursor.is_none() {
                    break;
                }
            }
            if self.follow {
                query.limit = None;
                query.tail = None;
                query.since = query.since.or(Some(0));
                let mut records = client.follow_logs(&self.name, &query).await?;
                while let Some(record) = records.next().await? {
                    if !self.print(&record)? {
                        break;
                    }
                }
            }
            Ok(0)
        })
    }

    fn print(&self, record: &LogRecord) -> Result<bool, Failure> {
        if self.json {
            return super::print_json_more(record);
        }
        let source = match (record.source, &record.process) {
            (LogSource::Lifecycle, _) => "sandbox".to_owned(),
            (_, Some(process)) => process.clone(),
            (_, None) => "process".to_owned(),
        };
        let line = format!("{} {source}: {}", record.at, record.text);
        super::print_more(&format!("{}\n", filter::plain(&line).replace('\n', " ")))
    }
}
