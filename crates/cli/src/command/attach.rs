//! `sandforge attach`.

use clap::Args;
use client::Client;
use client::api::{AttachQuery, PageQuery, Process};

use crate::connection::{self, all};
use crate::failure::{Failure, Kind};
use crate::output::Stream;
use crate::report::Exit;
use crate::session::{Joint, Sinks};
use crate::signals::Signals;
use crate::{exit, filter, input, output, remote};

/// Join a process that was left running
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge exec box --detach --process server \"python3 -m http.server\"
  sandforge attach box server

Its output so far comes first, as far as it was kept. Ctrl-C is passed to it; the second leaves it
running. Exit status: the command's own, as of `sandforge run`.")]
pub(crate) struct AttachArgs {
    /// The sandbox's name or id; `sandforge ls` lists them
    name: String,

    /// The process; `sandforge inspect NAME --processes` lists them [default: the only one that
    /// was left running]
    process: Option<String>,

    /// Pass stdin to it, even from a terminal
    #[arg(short, long)]
    interactive: bool,
}

impl AttachArgs {
    pub(crate) fn run(&self) -> Result<u8, Failure> {
        connection::with_server(async |client, signals| self.join(client, signals).await)
    }

    async fn join(&self, client: &Client, signals: &mut Signals) -> Result<u8, Failure> {
        let process = signals.unless_asked(self.find(client)).await??;
        let query = AttachQuery { follow: true, ..AttachQuery::default() };
        let joining = client.attach_session(&self.name, &process.process, &query);
        let session = signals.unless_asked(joining).await??;
        let failed =
            |error: std::io::Error| Failure::failed("cannot start a thread").because(&error);
        let mut sinks = Sinks {
            stdout: output::Sink::Stream(Stream::stdout(process.tty).map_err(failed)?),
            stderr: output::Sink::Stream(Stream::stderr(process.tty).map_err(failed)?),
        };
        let joint = Joint {
            // A size that no terminal has: ours is told in any case.
            tty: process.tty.then_some(wire::op::WindowSize { rows: 0, cols: 0 }),
            stdin: process.tty || self.interactive || input::is_fed(),
            patience: None,
        };
        match remote::run(session, joint, &mut sinks, signals).await? {
            Some(end) => Ok(Exit::of_outcome(&remote::reply(&end)?.outcome).code),
            None => Ok(exit::of_signal(exit::PIPE)),
        }
    }

    async fn find(&self, client: &Client) -> Result<Process, Failure> {
        if let Some(process) = &self.process {
            return Ok(client.get_process(&self.name, process).await?);
        }
        let processes = all(async |cursor| {
            client.list_processes(&self.name, &PageQuery { cursor, limit: None }).await
        });
        let mut left: Vec<Process> = processes
            .await?
            .into_iter()
            .filter(|process| process.detached && process.outcome.is_running())
            .collect();
        match (left.pop(), left.as_slice()) {
            (Some(only), []) => Ok(only),
            (None, _) => Err(Failure::new(
                Kind::NotFound,
                format!("nothing was left running in {:?}", self.name),
            )),
            (Some(last), others) => {
                let names: Vec<_> =
                    others.iter().chain([&last]).map(|one| one.process.as_str()).collect();
                Err(Failure::usage("several processes were left running: name one")
                    .help(filter::plain(&names.join(", "))))
            }
        }
    }
}
