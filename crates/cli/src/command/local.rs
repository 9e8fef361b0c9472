//! `ls`, `exec` and `rm` of machines that `run --keep` left, where no server runs.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::Context;
use super::list::{age, table};
use crate::exit;
use crate::failure::Failure;
use crate::filter;
use crate::progress::Line;
use crate::report::{Exit, Report, Timings, milliseconds};
use crate::session;
use crate::signals::Signals;
use crate::task::Task;

pub(super) fn list(json: bool) -> Result<u8, Failure> {
    let kept = super::supervisor()?.kept().map_err(|error| super::supervisor_failure(&error))?;
    if json {
        super::print_json(&kept)?;
        return Ok(0);
    }
    let mut rows = vec![["NAME", "AGE", "CPUS", "MEMORY", "IMAGE", "ENGINE"].map(str::to_owned)];
    for machine in &kept {
        let since = SystemTime::UNIX_EPOCH + Duration::from_millis(machine.created_ms);
        rows.push([
            filter::plain(&machine.name),
            age(since.elapsed().unwrap_or_default()),
            machine.cpus.to_string(),
            format!("{} MiB", machine.memory_mb),
            filter::plain(&machine.image),
            format!("{} ({})", machine.engine, machine.isolation),
        ]);
    }
    super::print(&table(&rows))?;
    Ok(0)
}

/// Unlike any other that the machine has seen.
pub(super) fn process_name() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("p{:x}-{}", now.as_nanos(), std::process::id())
}

pub(super) async fn exec(name: &str, task: Task, context: &Context) -> Result<u8, Failure> {
    let mut signals = Signals::catch()?;
    let mut line = Line::new(context.verbosity);
    let supervisor = super::supervisor()?;
    let mut sandbox = signals
        .unless_asked(supervisor.attach(name))
        .await?
        .map_err(|error| super::supervisor_failure(&error))?;
    let begun = Instant::now();
    let mut sinks = task.sinks()?;
    let (reply, digest) = session::run(&mut sandbox, &task.exec, &mut sinks, &mut signals).await?;
    let exec_ms = milliseconds(begun.elapsed());
    let Some(reply) = reply else {
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

pub(super) async fn remove(names: &[String]) -> Result<u8, Failure> {
    let supervisor = super::supervisor()?;
    for name in names {
        supervisor.remove(name).await.map_err(|error| super::supervisor_failure(&error))?;
    }
    Ok(0)
}
