//! `sandforge exec`: another command in a machine that `run --keep` left.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use clap::Args;

use super::Context;
use crate::exit;
use crate::failure::Failure;
use crate::progress::Line;
use crate::report::{Exit, Report, Timings, milliseconds};
use crate::session;
use crate::signals::Signals;
use crate::task::{Task, TaskArgs};

/// Run a command in a machine that was kept
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge run --keep --name box \"echo hello > note\"
  sandforge exec box cat note
  sandforge exec box -t bash
  sandforge rm box

Exit status: as of `sandforge run`. The second Ctrl-C ends the command; the machine stays.")]
pub(crate) struct ExecArgs {
    /// The machine's name; `sandforge ls` lists them
    name: String,

    #[command(flatten)]
    pub(crate) task: TaskArgs,
}

impl ExecArgs {
    pub(crate) fn json(&self) -> bool {
        self.task.json()
    }

    pub(crate) fn run(self, context: &Context) -> Result<u8, Failure> {
        let task = self.task.prepare(process_name())?;
        super::block_on(run(&self.name, task, context))
    }
}

/// Unlike any other that the machine has seen.
fn process_name() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("p{:x}-{}", now.as_nanos(), std::process::id())
}

async fn run(name: &str, task: Task, context: &Context) -> Result<u8, Failure> {
    let mut signals = Signals::catch()?;
    let mut line = Line::new(context.verbosity);
    let supervisor = super::supervisor()?;
    let mut sandbox = signals
        .unless_asked(supervisor.attach(name))
        .await?
        .map_err(|error| super::supervisor_failure(&error))?;
    let begun = Instant::now();
    let mut sinks = task.sinks()?;
    let (ending, digest) =
        session::run(sandbox.guest(), &task.exec, &mut sinks, &mut signals).await?;
    let exec_ms = milliseconds(begun.elapsed());
    let Some(reply) = ending.reply(&mut sandbox).await? else {
        return Ok(exit::of_signal(exit::PIPE));
    };
    task.tell(&mut line, &reply);
    let exit = Exit::of_outcome(&reply.outcome);
    let code = exit.code;
    let report = Report {
        exit,
        sandbox: sandbox.id().to_owned(),
        name: sandbox.name().to_owned(),
        engine: sandbox.engine().to_owned(),
        isolation: sandbox.isolation().to_string(),
        digest: Some(digest),
        timings: Timings {
            agent_ms: sandbox.timings().agent_ms,
            exec_ms,
            total_ms: milliseconds(context.begun.elapsed()),
            ..Timings::default()
        },
        cpu_usec: reply.cpu_usec,
        memory_peak_bytes: reply.memory_peak_bytes,
        kept: true,
        output: None,
    };
    sandbox.leave();
    task.reporting.write(report, sinks)?;
    Ok(code)
}
