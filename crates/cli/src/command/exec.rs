//! `sandforge exec`: another command in a sandbox.

use std::time::Instant;

use clap::Args;
use client::Client;
use client::api::Process;

use super::Context;
use crate::connection;
use crate::exit;
use crate::failure::Failure;
use crate::filter;
use crate::progress::Line;
use crate::remote;
use crate::report::{Exit, Report, Timings, milliseconds};
use crate::session::Joint;
use crate::signals::Signals;
use crate::task::{Task, TaskArgs};

/// Run a command in a sandbox
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge create --name box
  sandforge exec box \"echo hello > note\"
  sandforge exec box cat note
  sandforge exec box -t bash
  sandforge exec box --detach --process server \"python3 -m http.server\"
  sandforge attach box server
  sandforge rm box

Exit status: as of `sandforge run`. The second Ctrl-C ends the command; the sandbox stays.")]
pub(crate) struct ExecArgs {
    /// The sandbox's name or id; `sandforge ls` lists them
    name: String,

    /// Leave it running and print the name of its process, for `sandforge attach` and `logs`
    #[arg(short, long, conflicts_with_all = ["tty", "json_file"])]
    detach: bool,

    /// Call its process so [default: a name of the server's choice]
    #[arg(long, value_name = "NAME")]
    process: Option<String>,

    #[command(flatten)]
    pub(crate) task: TaskArgs,
}

impl ExecArgs {
    pub(crate) fn json(&self) -> bool {
        self.task.json()
    }

    pub(crate) fn run(self, context: &Context) -> Result<u8, Failure> {
        let json = self.task.json();
        // The server names the process; this name goes nowhere.
        let task = self.task.prepare("p1".into())?;
        let exec = client::api::Exec { name: self.process, ..remote::exec(task.exec.clone())? };
        if self.detach {
            let process: Process = connection::ask(async |client| {
                Ok(client.exec_detached(&self.name, &exec).await?)
            })?;
            match json {
                true => super::print_json(&process)?,
                false => super::print(&format!("{}\n", filter::plain(&process.process)))?,
            }
            return Ok(0);
        }
        connection::with_server(async |client, signals| {
            attached(client, signals, &self.name, &exec, task, context).await
        })
    }
}

async fn attached(
    client: &Client,
    signals: &mut Signals,
    name: &str,
    exec: &client::api::Exec,
    task: Task,
    context: &Context,
) -> Result<u8, Failure> {
    let mut line = Line::new(context.verbosity);
    // Which one it was is for the report alone.
    let sandbox = match task.reporting.is_none() {
        true => None,
        false => Some(signals.unless_asked(client.get_sandbox(name)).await??),
    };
    let begun = Instant::now();
    let session = signals.unless_asked(client.exec_session(name, exec)).await??;
    let mut sinks = task.sinks()?;
    let joint = Joint::of(&task.exec);
    let Some(end) = remote::run(session, joint, &mut sinks, signals).await? else {
        return Ok(exit::of_signal(exit::PIPE));
    };
    let reply = remote::reply(&end)?;
    task.tell(&mut line, &reply);
    let exit = Exit::of_outcome(&reply.outcome);
    let code = exit.code;
    if let Some(sandbox) = sandbox {
        let report = Report {
            exit,
            sandbox: sandbox.id,
            name: sandbox.name,
            engine: sandbox.engine.unwrap_or_default(),
            isolation: sandbox.isolation.map(|tier| tier.to_string()).unwrap_or_default(),
            digest: Some(format!("sha256:{}", end.task_digest.trim_start_matches("sha256:"))),
            timings: Timings {
                exec_ms: milliseconds(begun.elapsed()),
                total_ms: milliseconds(context.begun.elapsed()),
                ..Timings::default()
            },
            cpu_usec: reply.cpu_usec,
            memory_peak_bytes: reply.memory_peak_bytes,
            kept: true,
            output: None,
        };
        task.reporting.write(report, sinks)?;
    }
    Ok(code)
}
