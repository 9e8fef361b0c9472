//! What `run` and `exec` have in common: the command, its surroundings, and what becomes of its
//! output.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal as _, stdin, stdout};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use wire::op::{Command, Exec, ExecReply, Limits, Outcome, WindowSize};
use wire::text::{NulError, Text};

use crate::env::EnvArgs;
use crate::failure::Failure;
use crate::output::{Capture, Sink, Stream};
use crate::progress::Line;
use crate::report::{Captured, Report};
use crate::session::Sinks;
use crate::{filter, input, terminal, units};

/// Between TERM and KILL when the time is up.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// Neither a terminal of ours nor a `stty` says otherwise.
const DEFAULT_SIZE: WindowSize = WindowSize { rows: 24, cols: 80 };

/// The flags.
#[derive(Args)]
#[command(next_help_heading = "Command")]
pub(crate) struct TaskArgs {
    #[command(flatten)]
    env: EnvArgs,

    /// Working directory in the sandbox, absolute [default: /workspace]
    #[arg(long, value_name = "DIR")]
    cwd: Option<OsString>,

    /// User in the sandbox: NAME or UID, either with :GROUP [default: uid 1000, not root]
    #[arg(short, long)]
    user: Option<OsString>,

    /// Give the command a terminal, and your keys with it
    ///
    /// Type ~. at the beginning of a line to end it where the command no longer listens. The
    /// terminal obeys whatever the command prints, as it would without Sandforge.
    #[arg(short, long)]
    tty: bool,

    /// Pass stdin to the command, even from a terminal
    ///
    /// A pipe, a socket or a file is passed on without this. In a shell loop that reads its lines
    /// from stdin, give the command another: </dev/null.
    #[arg(short, long)]
    interactive: bool,

    /// End the command after this time: 30 (seconds), 90s, 5m, 1h
    ///
    /// It gets TERM, and KILL five seconds later; the exit status is 124. The time does not
    /// include the machine's start. There is no limit without this flag.
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    timeout: Option<Duration>,

    /// Print one JSON object at the end instead of the output, which is in it
    ///
    /// Fields: exit{code,result,signal}, stdout, stderr (text, or {"base64":...} where it is not
    /// UTF-8), stdout_bytes, stderr_bytes, truncated, sandbox, name, engine, isolation, digest,
    /// timings, cpu_usec, memory_peak_bytes, kept. When Sandforge itself fails it is
    /// {"error":{"kind","message","hint"}}.
    #[arg(long, conflicts_with = "tty", help_heading = "Output")]
    json: bool,

    /// Write the JSON object to a file, without the output, which goes where it always does
    #[arg(long, value_name = "FILE", conflicts_with = "json", help_heading = "Output")]
    json_file: Option<PathBuf>,

    /// How much of stdout, and of stderr, --json keeps
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = units::bytes,
        default_value = "16m",
        help_heading = "Output"
    )]
    json_limit: u64,

    #[command(flatten)]
    pub(crate) words: Words,
}

/// The command as it was written.
#[derive(Args)]
pub(crate) struct Words {
    /// One argument is a line for /bin/sh; several, or any behind --, are a program and its
    /// arguments
    #[arg(trailing_var_arg = true)]
    pub(crate) command: Vec<OsString>,

    /// Whether it stood behind `--`.
    #[arg(skip)]
    pub(crate) separated: bool,
}

impl Words {
    /// The command for the guest.
    pub(crate) fn command(&self) -> Result<Command, Failure> {
        let text = |word: &OsString| text("the command", word.clone());
        match self.command.as_slice() {
            [] => Err(Failure::usage("there is no command to run")),
            [line] if !self.separated => Ok(Command::Shell(text(line)?)),
            words => Ok(Command::Argv(words.iter().map(text).collect::<Result<_, _>>()?)),
        }
    }
}

fn text(what: &str, word: OsString) -> Result<Text, Failure> {
    Text::new(word.into_vec()).map_err(|error: NulError| Failure::usage(format!("{what} {error}")))
}

/// Where the report goes.
#[derive(Debug)]
pub(crate) enum Reporting {
    /// Nowhere.
    None,
    /// To stdout, with the output, of which so many bytes are kept.
    Stdout(usize),
    /// To this file, opened before anything started.
    File(PathBuf, File),
}

/// A command line made ready: nothing of it can fail any more for what the user wrote.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) exec: Exec,
    pub(crate) reporting: Reporting,
}

impl TaskArgs {
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// Gives the command a terminal where the user is at one.
    pub(crate) fn use_terminal(&mut self) {
        self.tty |= !self.json && stdin().is_terminal() && stdout().is_terminal();
    }

    /// Reads what the flags name and puts it together.
    pub(crate) fn prepare(self, process: String) -> Result<Task, Failure> {
        let command = self.words.command()?;
        let mut env = self.env.collect(|name| std::env::var_os(name))?;
        if self.tty && !env.contains_key(&Text::from("TERM")) {
            let user = std::env::var("TERM").unwrap_or_default();
            let kind = terminal::kind(&user).as_bytes().to_vec();
            if let Ok(kind) = wire::text::Secret::new(kind) {
                env.insert(Text::from("TERM"), kind);
            }
        }
        let cwd = self.cwd.map(|cwd| text("--cwd", cwd)).transpose()?;
        if let Some(cwd) = cwd.as_ref().filter(|cwd| !cwd.as_bytes().starts_with(b"/")) {
            return Err(Failure::usage(format!("--cwd {cwd:?} is not absolute"))
                .help("it is a directory in the sandbox, such as /workspace/src"));
        }
        let user = self.user.map(|user| text("--user", user)).transpose()?;
        let timeout_ms =
            self.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        let reporting = match self.json_file {
            _ if self.json => {
                Reporting::Stdout(usize::try_from(self.json_limit).unwrap_or(usize::MAX))
            }
            None => Reporting::None,
            Some(path) => {
                let file = File::create(&path).map_err(|error| {
                    Failure::usage(format!("cannot write the report {path:?}")).because(&error)
                })?;
                Reporting::File(path, file)
            }
        };
        let exec = Exec {
            process,
            command,
            cwd,
            env,
            user,
            tty: self.tty.then(|| terminal::size().unwrap_or(DEFAULT_SIZE)),
            stdin: self.tty || self.interactive || input::is_fed(),
            timeout_ms,
            kill_grace_ms: u64::try_from(KILL_GRACE.as_millis()).unwrap_or(u64::MAX),
            limits: Limits::default(),
            detach: false,
        };
        Ok(Task { exec, reporting })
    }
}

impl Task {
    /// Where the command's output goes.
    pub(crate) fn sinks(&self) -> Result<Sinks, Failure> {
        if let Reporting::Stdout(limit) = self.reporting {
            let capture = || Sink::Capture(Capture::new(limit));
            return Ok(Sinks { stdout: capture(), stderr: capture() });
        }
        let failed = |error: io::Error| Failure::failed("cannot start a thread").because(&error);
        let trusted = self.exec.tty.is_some();
        Ok(Sinks {
            stdout: Sink::Stream(Stream::stdout(trusted).map_err(failed)?),
            stderr: Sink::Stream(Stream::stderr(trusted).map_err(failed)?),
        })
    }

    /// Says what [`remark`] does, unless the report is all that stdout is for.
    pub(crate) fn tell(&self, line: &mut Line, reply: &ExecReply) {
        if matches!(self.reporting, Reporting::Stdout(_)) {
            return;
        }
        if let Some(remark) = remark(&reply.outcome, &self.exec) {
            // Not a notice: it is the reason for the exit status, so -q does not hide it.
            line.clear();
            eprintln!("sandforge: {}", filter::plain(&remark));
        }
    }
}

impl Reporting {
    /// Whether nothing is reported.
    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Writes the report where it was asked for.
    pub(crate) fn write(self, mut report: Report, sinks: Sinks) -> Result<(), Failure> {
        let failed = |to: String, error: io::Error| {
            Failure::failed(format!("cannot write the report to {to}")).because(&error)
        };
        match self {
            Self::None => Ok(()),
            Self::Stdout(_) => {
                if let Sinks { stdout: Sink::Capture(stdout), stderr: Sink::Capture(stderr) } =
                    sinks
                {
                    report.output = Some(Captured::new(stdout.into_parts(), stderr.into_parts()));
                }
                write(io::stdout().lock(), &report).map_err(|e| failed("stdout".into(), e))
            }
            Self::File(path, file) => {
                write(file, &report).map_err(|error| failed(format!("{path:?}"), error))
            }
        }
    }
}

fn write(mut to: impl io::Write, report: &Report) -> io::Result<()> {
    let mut text = serde_json::to_vec(report)?;
    text.push(b'\n');
    to.write_all(&text)?;
    to.flush()
}

/// What the user should be told of an end that the status alone does not explain.
fn remark(outcome: &Outcome, exec: &Exec) -> Option<String> {
    match outcome {
        Outcome::Running | Outcome::Exited { .. } | Outcome::Signaled { .. } => None,
        Outcome::TimedOut { signal } => {
            let after = exec
                .timeout_ms
                .map_or_else(String::new, |ms| format!(" after {:?}", Duration::from_millis(ms)));
            let killed = if *signal == 9 { ", and had to be killed" } else { "" };
            Some(format!("timed out{after}{killed}"))
        }
        Outcome::OutOfMemory { limit_bytes } => {
            let limit = limit_bytes
                .map_or_else(String::new, |bytes| format!(" (limit {})", units::readable(bytes)));
            Some(format!("out of memory{limit}: raise it with --memory"))
        }
        Outcome::NotFound { command } => {
            Some(format!("{command:?}: no such command in the sandbox"))
        }
        Outcome::NotExecutable { reason } => Some(format!("cannot be run: {reason}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_out_of_memory_says_what_to_do() {
        let exec = Exec {
            process: "p1".into(),
            command: Command::Shell("x".into()),
            cwd: None,
            env: Default::default(),
            user: None,
            tty: None,
            stdin: false,
            timeout_ms: Some(1500),
            kill_grace_ms: 0,
            limits: Limits::default(),
            detach: false,
        };
        let out_of_memory = Outcome::OutOfMemory { limit_bytes: Some(512 << 20) };
        assert_eq!(
            remark(&out_of_memory, &exec).unwrap(),
            "out of memory (limit 512 MiB): raise it with --memory"
        );
        let timed_out = Outcome::TimedOut { signal: 9 };
        assert_eq!(
            remark(&timed_out, &exec).unwrap(),
            "timed out after 1.5s, and had to be killed"
        );
        assert_eq!(remark(&Outcome::Exited { code: 1 }, &exec), None);
    }
}
