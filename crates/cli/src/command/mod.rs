//! One module for each command.

pub(crate) mod attach;
pub(crate) mod audit;
pub(crate) mod build;
pub(crate) mod changes;
pub(crate) mod completions;
pub(crate) mod copy;
pub(crate) mod create;
pub(crate) mod doctor;
pub(crate) mod egress;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod image;
pub(crate) mod inspect;
pub(crate) mod key;
pub(crate) mod lifecycle;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod mount;
pub(crate) mod policy;
pub(crate) mod pull;
pub(crate) mod remove;
pub(crate) mod run;
pub(crate) mod secret;
pub(crate) mod serve;
pub(crate) mod snapshot;
pub(crate) mod stats;
pub(crate) mod template;
pub(crate) mod token;
pub(crate) mod version;
pub(crate) mod volume;
pub(crate) mod webhook;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Instant;

use lifecycle::Step;
use serde::Serialize;
use supervisor::{Launcher, Supervisor};

use crate::arguments::{Arguments, Command};
use crate::exit;
use crate::failure::{Failure, Kind};
use crate::hygiene;
use crate::output;

/// What every command is given.
#[derive(Debug)]
pub(crate) struct Context {
    /// When this process began.
    pub(crate) begun: Instant,
    pub(crate) verbosity: crate::progress::Verbosity,
}

/// Does what was asked, and prints the failure where there is one.
pub(crate) fn run(arguments: Arguments, begun: Instant) -> ExitCode {
    let context = Context { begun, verbosity: arguments.verbosity() };
    let (family, json) = (arguments.command.family(), arguments.command.json());
    if matches!(arguments.command, Command::Run(_) | Command::Serve(_)) {
        hygiene::lock_memory();
    }
    let done = match arguments.command {
        Command::Run(args) => args.run(&context),
        Command::Create(args) => args.run(&context),
        Command::Exec(args) => args.run(&context),
        Command::Attach(args) => args.run(),
        Command::Ls(args) => args.run(),
        Command::Inspect(args) => args.run(),
        Command::Logs(args) => args.run(),
        Command::Cp(args) => args.run(&context),
        Command::Diff(args) => args.run(&context),
        Command::Apply(args) => args.run(&context),
        Command::Discard(args) => args.run(),
        Command::Mount(args) => args.run(),
        Command::Umount(args) => args.run(),
        Command::Stop(args) => args.run(Step::Stop),
        Command::Start(args) => args.run(Step::Start),
        Command::Pause(args) => args.run(Step::Pause),
        Command::Resume(args) => args.run(Step::Resume),
        Command::Hibernate(args) => args.run(Step::Hibernate),
        Command::Snapshot(args) => args.run(),
        Command::Restore(args) => args.run(),
        Command::Fork(args) => args.run(),
        Command::Rm(args) => args.run(),
        Command::Stats(args) => args.run(),
        Command::Events(args) => args.run(),
        Command::Serve(args) => args.run(&context),
        Command::Token(args) => args.run(&context),
        Command::Key(args) => args.run(&context),
        Command::Secret(args) => args.run(&context),
        Command::Policy(args) => args.run(),
        Command::Egress(args) => args.run(),
        Command::Audit(args) => args.run(),
        Command::Webhook(args) => args.run(&context),
        Command::Image(args) => args.run(&context),
        Command::Volume(args) => args.run(),
        Command::Doctor(args) => args.run(&context),
        Command::Version(args) => args.run(),
        Command::Completions(args) => args.run(),
    };
    let status = done.unwrap_or_else(|failure| {
        if json {
            print_json_error(&failure);
        } else {
            let _ = writeln!(io::stderr(), "{failure}");
        }
        failure.status.unwrap_or_else(|| exit::of_failure(failure.kind, family))
    });
    ExitCode::from(status)
}

/// The one object that `--json` promises, for a failure.
pub(crate) fn print_json_error(failure: &Failure) {
    #[derive(Serialize)]
    struct Wrapped<'a> {
        error: &'a Failure,
    }
    // Where stdout is closed, the exit status has to do.
    let _ = print_json(&Wrapped { error: failure });
}

/// A value as one line.
fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).expect("our own types are plain JSON");
    print(&format!("{text}\n"))
}

/// To stdout; that nobody reads it any more is not a failure of ours.
fn print(text: &str) -> Result<(), Failure> {
    print_more(text).map(drop)
}

/// A piece of something endless to stdout: whether anybody still reads it.
fn print_more(text: &str) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if output::is_closed(&error) => Ok(false),
        Err(error) => Err(Failure::failed("cannot write to stdout").because(&error)),
    }
}

/// A value as one of many lines: whether anybody still reads them.
fn print_json_more(value: &impl Serialize) -> Result<bool, Failure> {
    let text = serde_json::to_string(value).expect("our own types are plain JSON");
    print_more(&format!("{text}\n"))
}

/// Set to `on`, machines go on from templates.
const TEMPLATES: &str = "SANDFORGE_TEMPLATES";

pub(crate) fn supervisor() -> Result<Supervisor, Failure> {
    // The link in /proc is the program that runs, whatever lies at its path meanwhile.
    let launcher =
        Launcher { program: "/proc/self/exe".into(), arguments: vec![crate::LAUNCH.into()] };
    let supervisor = Supervisor::new(launcher).map_err(|error| supervisor_failure(&error))?;
    let supervisor = match std::env::var_os(TEMPLATES).is_some_and(|value| value == "on") {
        false => supervisor,
        true => supervisor.with_templates(Launcher {
            program: "/proc/self/exe".into(),
            arguments: vec![crate::TEMPLATE.into()],
        }),
    };
    // Without a directory for it there is nothing that was configured.
    let Ok(directory) = fleet::paths::config() else { return Ok(supervisor) };
    let settings = supervisor::registry::Settings::load(&directory)
        .map_err(|error| Failure::usage(error.to_string()))?;
    Ok(supervisor.with_registries(settings))
}

pub(crate) fn supervisor_failure(error: &supervisor::Error) -> Failure {
    use supervisor::ErrorKind;
    let kind = match error.kind() {
        ErrorKind::Usage => Kind::Usage,
        ErrorKind::NotFound => Kind::NotFound,
        ErrorKind::Unavailable => Kind::Unavailable,
        ErrorKind::Policy => Kind::Denied,
        ErrorKind::Failed => Kind::Failed,
    };
    Failure::from_error(kind, error)
}

/// Drives one piece of work on this thread. Work on other threads is not waited for when it is
/// done: it ends with the process.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed("cannot start").because(&error))?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done
}
