//! A command in a sandbox of a server, joined to our own streams, signals and terminal.

use client::api::{self, ExecEnd, Outcome};
use client::{Output, Session, SessionInput, SessionOutput};
use wire::op::{self, ExecReply, WindowSize};

use crate::failure::Failure;
use crate::session::{self, Broken, Control, Ending, Joint, Sinks};
use crate::signals::Signals;

impl Control for SessionInput {
    async fn signal(&self, number: i32) {
        // The command may have ended meanwhile.
        let _ = SessionInput::signal(self, number).await;
    }

    async fn resize(&self, size: WindowSize) {
        let _ = SessionInput::resize(self, size.into()).await;
    }

    async fn write(&self, bytes: &[u8]) -> bool {
        SessionInput::write(self, bytes).await.is_ok()
    }

    async fn end_input(&self) {
        let _ = self.end().await;
    }
}

/// Runs the session to its end; nothing where nobody reads our output any more.
pub(crate) async fn run(
    session: Session,
    joint: Joint,
    sinks: &mut Sinks,
    signals: &mut Signals,
) -> Result<Option<ExecEnd>, Failure> {
    let Session { output, input } = session;
    match session::join(drain(output, sinks), &input, joint, signals).await? {
        Ending::Replied(end) => Ok(Some(end)),
        Ending::OutputClosed => Ok(None),
        Ending::Interrupted(signal) => Err(Failure::interrupted(signal)),
        Ending::Overdue => Err(session::overdue()),
        Ending::Lost(error) => Err(error.into()),
    }
}

/// All output to where it goes, then the end.
async fn drain(
    mut output: SessionOutput,
    sinks: &mut Sinks,
) -> Result<ExecEnd, Broken<client::Error>> {
    loop {
        let said = output.next().await.map_err(Broken::Source)?;
        let sink = match &said {
            Some(Output::Stdout(_)) => &mut sinks.stdout,
            Some(Output::Stderr(_)) => &mut sinks.stderr,
            _ => &mut sinks.stderr,
        };
        match said {
            Some(Output::Stdout(bytes) | Output::Stderr(bytes)) => {
                sink.write(bytes.into()).await.map_err(Broken::Output)?;
            }
            Some(Output::Started(_)) => {}
            Some(Output::Exit(end)) => {
                sinks.stdout.finish().await.map_err(Broken::Output)?;
                sinks.stderr.finish().await.map_err(Broken::Output)?;
                return Ok(end);
            }
            None => {
                let error = client::Error::Malformed("the command has no end".into());
                return Err(Broken::Source(error));
            }
        }
    }
}

/// The end as a guest of our own would have told it.
pub(crate) fn reply(end: &ExecEnd) -> Result<ExecReply, Failure> {
    let outcome = match end.outcome.clone() {
        Outcome::Running => op::Outcome::Running,
        Outcome::Exited { code } => op::Outcome::Exited { code },
        Outcome::Signaled { signal } => op::Outcome::Signaled { signal },
        Outcome::TimedOut { signal } => op::Outcome::TimedOut { signal },
        Outcome::OutOfMemory { limit_bytes } => op::Outcome::OutOfMemory { limit_bytes },
        Outcome::NotFound { command } => op::Outcome::NotFound { command },
        Outcome::NotExecutable { reason } => op::Outcome::NotExecutable { reason },
        Outcome::Lost { reason } => {
            let text = format!("the sandbox ended before the command did: {reason}");
            return Err(Failure::failed(text));
        }
    };
    Ok(ExecReply {
        outcome,
        cpu_usec: end.cpu_ms.saturating_mul(1000),
        memory_peak_bytes: end.memory_peak_bytes,
        dropped: (end.truncated.stdout, end.truncated.stderr),
    })
}

/// The command as the API has it.
pub(crate) fn exec(exec: op::Exec) -> Result<api::Exec, Failure> {
    let utf8 = |what: &str, bytes: Vec<u8>| {
        String::from_utf8(bytes).map_err(|_| Failure::usage(format!("{what} is not UTF-8")))
    };
    let mut env = std::collections::BTreeMap::new();
    for (name, value) in exec.env {
        env.insert(utf8("-e: the name", name.into_bytes())?, value);
    }
    let seconds = exec
        .timeout_ms
        .map(|ms| crate::units::whole_seconds("--timeout", std::time::Duration::from_millis(ms)));
    Ok(api::Exec {
        cwd: exec.cwd.map(|cwd| utf8("--cwd", cwd.into_bytes())).transpose()?,
        env,
        user: exec.user.map(|user| utf8("--user", user.into_bytes())).transpose()?,
        stdin: exec.stdin,
        tty: exec.tty.map(Into::into),
        timeout_sec: seconds.transpose()?,
        kill_grace_ms: Some(exec.kill_grace_ms),
        detach: exec.detach,
        ..api::Exec::new(exec.command)
    })
}
