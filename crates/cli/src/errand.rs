//! Something that this program has done in a sandbox for itself: a command whose output is kept.

use access::Caller;
use client::api::CreateSandbox;
use fleet::{Manager, Provenance, Run, RunRequest};
use supervisor::ImageRef;
use wire::op::{Command, Exec, ExecReply};
use wire::text::Text;

use crate::command::run::{asked, fleet_failure};
use crate::failure::Failure;
use crate::output::{Capture, Sink};
use crate::progress::Line;
use crate::session::{self, Sinks};
use crate::signals::Signals;

/// Bytes that are kept of each output.
const MOST_SAID: usize = 256 << 10;

/// What came of it.
pub(crate) struct Said {
    pub(crate) reply: ExecReply,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// A program and its arguments.
pub(crate) fn exec(words: impl IntoIterator<Item = String>) -> Result<Exec, Failure> {
    let words = words.into_iter().map(Text::new).collect::<Result<_, _>>();
    let words = words.map_err(|error| Failure::usage(format!("an argument {error}")))?;
    Ok(Exec { kill_grace_ms: 0, ..Exec::new("p1", Command::Argv(words)) })
}

/// Makes the sandbox, as for any other command. Whoever called takes it away.
pub(crate) async fn begin(
    manager: &Manager,
    sandbox: CreateSandbox,
    exec: &Exec,
    line: &mut Line,
    signals: &mut Signals,
) -> Result<Run, Failure> {
    begin_from(manager, sandbox, None, exec, line, signals).await
}

/// The same, started from what was made of the sandbox's image.
pub(crate) async fn begin_from(
    manager: &Manager,
    sandbox: CreateSandbox,
    root: Option<ImageRef>,
    exec: &Exec,
    line: &mut Line,
    signals: &mut Signals,
) -> Result<Run, Failure> {
    let exec = asked(exec);
    let request = RunRequest { sandbox, root, exec, kernel: None, console: false, keep: false };
    let caller = Caller::local(rustix::process::getuid().as_raw());
    let by = Provenance { remote: "run".into(), ..Provenance::default() };
    let making = manager.run(&caller, request, &by, line);
    signals.unless_asked(making).await?.map_err(|error| fleet_failure(&error))
}

/// Runs the command and keeps what it says.
pub(crate) async fn run(
    run: &mut Run,
    exec: &Exec,
    signals: &mut Signals,
) -> Result<Said, Failure> {
    let capture = || Sink::Capture(Capture::new(MOST_SAID));
    let mut sinks = Sinks { stdout: capture(), stderr: capture() };
    let (reply, _) = session::run(run.sandbox_mut(), exec, &mut sinks, signals).await?;
    match (reply, sinks) {
        (Some(reply), Sinks { stdout: Sink::Capture(stdout), stderr: Sink::Capture(stderr) }) => {
            Ok(Said { reply, stdout: stdout.into_parts().0, stderr: stderr.into_parts().0 })
        }
        _ => Err(Failure::failed("its output is lost")),
    }
}
