//! The command line.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::command;
use crate::exit::{self, Family};
use crate::failure::{Failure, Kind};
use crate::filter;
use crate::progress::Verbosity;

/// Run commands in microVMs that are gone when the command ends
#[derive(Parser)]
#[command(
    name = "sandforge",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  sandforge run \"uname -a && ls\"            a shell line
  sandforge run -- python3 -c 'print(1)'    a program and its arguments
  sandforge run -w . -- make                on a copy of this directory; then diff, apply, discard
  sandforge run -t bash                     a terminal in a machine
  sandforge create --name box               a machine that stays: exec, cp, logs, stop, rm
  sandforge doctor                          what this computer can run, and what is missing

`sandforge COMMAND --help` says more."
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    verbosity: VerbosityArgs,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(clap::Args)]
struct VerbosityArgs {
    /// Errors only: no progress, no notices
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,

    /// Say where the time went
    #[arg(long, global = true)]
    verbose: bool,

    /// The same, before the command: behind `run` and `create`, -v is a volume
    #[arg(short = 'v', conflicts_with = "quiet")]
    verbosely: bool,
}

/// What to do.
#[derive(Subcommand)]
pub(crate) enum Command {
    Run(command::run::RunArgs),
    Create(command::create::CreateArgs),
    Exec(command::exec::ExecArgs),
    Attach(command::attach::AttachArgs),
    Ls(command::list::ListArgs),
    Inspect(command::inspect::InspectArgs),
    Logs(command::logs::LogsArgs),
    Cp(command::copy::CopyArgs),
    Diff(command::changes::DiffArgs),
    Apply(command::changes::ApplyArgs),
    Discard(command::changes::DiscardArgs),
    Mount(command::mount::MountArgs),
    Umount(command::mount::UmountArgs),
    /// Take the machines of sandboxes away; their records stay, for `sandforge start`
    Stop(command::lifecycle::LifecycleArgs),
    /// Give stopped or failed sandboxes new machines
    Start(command::lifecycle::LifecycleArgs),
    /// Let the machines of sandboxes stand still
    Pause(command::lifecycle::LifecycleArgs),
    /// Let sandboxes go on that are paused or hibernated
    Resume(command::lifecycle::LifecycleArgs),
    /// Bring the machines of sandboxes to disk, until the next request that needs them
    Hibernate(command::lifecycle::LifecycleArgs),
    Snapshot(command::snapshot::SnapshotArgs),
    Restore(command::snapshot::RestoreArgs),
    Fork(command::snapshot::ForkArgs),
    Rm(command::remove::RemoveArgs),
    Stats(command::stats::StatsArgs),
    Events(command::events::EventsArgs),
    Serve(Box<command::serve::ServeArgs>),
    Token(command::token::TokenArgs),
    Key(command::key::KeyArgs),
    Secret(command::secret::SecretArgs),
    Policy(command::policy::PolicyArgs),
    Egress(command::egress::EgressArgs),
    Audit(command::audit::AuditArgs),
    Webhook(command::webhook::WebhookArgs),
    Image(command::image::ImageArgs),
    Volume(command::volume::VolumeArgs),
    Doctor(command::doctor::DoctorArgs),
    Version(command::version::VersionArgs),
    Completions(command::completions::CompletionsArgs),
}

impl Arguments {
    pub(crate) fn verbosity(&self) -> Verbosity {
        match self.verbosity {
            VerbosityArgs { quiet: true, .. } => Verbosity::Quiet,
            VerbosityArgs { verbose: true, .. } | VerbosityArgs { verbosely: true, .. } => {
                Verbosity::Verbose
            }
            VerbosityArgs { .. } => Verbosity::Normal,
        }
    }
}

impl Command {
    /// Whose exit status ours is.
    pub(crate) fn family(&self) -> Family {
        match self {
            Self::Run(_) | Self::Exec(_) | Self::Attach(_) => Family::Runs,
            _ => Family::Manages,
        }
    }

    /// Whether errors go to stdout as JSON.
    pub(crate) fn json(&self) -> bool {
        match self {
            Self::Run(args) => args.json(),
            Self::Create(args) => args.json,
            Self::Exec(args) => args.json(),
            Self::Attach(_) | Self::Cp(_) | Self::Discard(_) | Self::Rm(_) => false,
            Self::Diff(args) => args.json,
            Self::Apply(args) => args.json,
            Self::Serve(_) | Self::Completions(_) => false,
            Self::Ls(args) => args.json,
            Self::Inspect(args) => args.json,
            Self::Logs(args) => args.json,
            Self::Mount(args) => args.json,
            Self::Umount(args) => args.json,
            Self::Stop(args)
            | Self::Start(args)
            | Self::Pause(args)
            | Self::Resume(args)
            | Self::Hibernate(args) => args.json,
            Self::Snapshot(args) => args.json(),
            Self::Restore(args) => args.json,
            Self::Fork(args) => args.json,
            Self::Stats(args) => args.json,
            Self::Events(args) => args.json,
            Self::Token(args) => args.json(),
            Self::Key(args) => args.json(),
            Self::Secret(args) => args.json(),
            Self::Policy(args) => args.json(),
            Self::Egress(args) => args.json(),
            Self::Audit(args) => args.json(),
            Self::Webhook(args) => args.json(),
            Self::Image(args) => args.json(),
            Self::Volume(args) => args.json(),
            Self::Doctor(args) => args.json,
            Self::Version(args) => args.json,
        }
    }
}

/// Reads the command line, or answers it: with help, or with what is wrong with it. The error is
/// the exit status.
pub(crate) fn parse(arguments: &[OsString]) -> Result<Arguments, u8> {
    let parsed = Arguments::command()
        .try_get_matches_from(arguments)
        .and_then(|matches| Arguments::from_arg_matches(&matches));
    let error = match parsed {
        Ok(mut parsed) => {
            parsed.command.note_separator(arguments);
            return Ok(parsed);
        }
        Err(error) => error,
    };
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Nothing is left to tell where stdout is closed.
        let _ = error.print();
        return Err(0);
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
    } else if wants_json(arguments) {
        command::print_json_error(&Failure::new(Kind::Usage, text));
    } else {
        let _ = writeln!(std::io::stderr(), "sandforge: {}", filter::plain(text));
    }
    Err(exit::of_failure(Kind::Usage, family(arguments)))
}

impl Command {
    fn note_separator(&mut self, arguments: &[OsString]) {
        let words = match self {
            Self::Run(args) => &mut args.task.words,
            Self::Exec(args) => &mut args.task.words,
            Self::Policy(args) => match args.words() {
                Some(words) => words,
                None => return,
            },
            _ => return,
        };
        words.separated = is_separated(arguments, words.command.len());
    }
}

/// Whether the command, which always is the rest of the line, stands behind a `--`: clap does
/// not tell.
fn is_separated(arguments: &[OsString], command: usize) -> bool {
    let before = arguments.len().checked_sub(command + 1);
    before.is_some_and(|at| arguments[at] == "--")
}

/// The family of a command line that cannot be read.
fn family(arguments: &[OsString]) -> Family {
    let command = arguments.iter().skip(1).find(|word| !word.as_encoded_bytes().starts_with(b"-"));
    match command.and_then(|word| word.to_str()) {
        Some("run" | "exec" | "attach") => Family::Runs,
        _ => Family::Manages,
    }
}

fn wants_json(arguments: &[OsString]) -> bool {
    let ours = arguments.iter().take_while(|word| *word != "--");
    ours.skip(1).any(|word| word == OsStr::new("--json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::op::Command as Guest;

    fn words(line: &[&str]) -> Guest {
        let line: Vec<OsString> =
            ["sandforge"].iter().chain(line).map(|word| OsString::from(*word)).collect();
        let Ok(parsed) = parse(&line) else { panic!("{line:?} is refused") };
        let (Command::Run(command::run::RunArgs { task, .. })
        | Command::Exec(command::exec::ExecArgs { task, .. })) = parsed.command
        else {
            panic!("{line:?} runs nothing")
        };
        task.words.command().unwrap()
    }

    fn argv(words: &[&str]) -> Guest {
        Guest::Argv(words.iter().map(|word| (*word).into()).collect())
    }

    #[test]
    fn the_definition_holds_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn one_argument_is_a_shell_line() {
        assert_eq!(words(&["run", "uname -a && ls"]), Guest::Shell("uname -a && ls".into()));
        assert_eq!(words(&["run", "-m", "512", "true"]), Guest::Shell("true".into()));
        assert_eq!(words(&["exec", "box", "ls | wc"]), Guest::Shell("ls | wc".into()));
    }

    #[test]
    fn several_arguments_are_a_program_and_its_arguments() {
        assert_eq!(words(&["run", "ls", "-la"]), argv(&["ls", "-la"]));
        assert_eq!(words(&["exec", "box", "ls", "-q", "-m"]), argv(&["ls", "-q", "-m"]));
    }

    #[test]
    fn nothing_is_interpreted_behind_two_dashes() {
        assert_eq!(words(&["run", "--", "true"]), argv(&["true"]));
        assert_eq!(words(&["run", "--", "a b"]), argv(&["a b"]));
        assert_eq!(words(&["run", "-q", "--", "-x", "--json"]), argv(&["-x", "--json"]));
        assert_eq!(words(&["run", "--", "--", "x"]), argv(&["--", "x"]));
        assert_eq!(words(&["exec", "box", "--", "true"]), argv(&["true"]));
    }

    #[test]
    fn two_dashes_within_the_command_are_the_commands() {
        let line = ["npm", "test", "--", "-u"];
        assert_eq!(words(&[&["run"], &line[..]].concat()), argv(&line));
        assert_eq!(words(&[&["run", "--"], &line[..]].concat()), argv(&line));
    }

    /// The lines of a command's help that call `sandforge`, as a shell would split them.
    fn examples(command: &clap::Command) -> Vec<Vec<OsString>> {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let lines = help.lines().filter_map(|line| {
            let (_, line) = line.split_once("sandforge ")?;
            let line = line.split("   ").next()?;
            line.trim_end().split_once("  ").map_or(Some(line), |(line, _)| Some(line)).filter(
                |_| {
                    // A sentence that names a command, not a line to type.
                    !help.contains(&format!("`sandforge {line}"))
                },
            )
        });
        lines
            .map(|line| {
                let line = line.split(" > ").next().unwrap_or(line).trim_end();
                let mut words = vec![OsString::from("sandforge")];
                // Every second piece between quotation marks is quoted.
                for (quoted, piece) in
                    [false, true].into_iter().cycle().zip(line.split(['"', '\'']))
                {
                    if quoted {
                        words.push(piece.into());
                    } else {
                        words.extend(piece.split_whitespace().map(OsString::from));
                    }
                }
                words
            })
            .collect()
    }

    #[test]
    fn every_example_in_the_help_can_be_typed() {
        let root = Arguments::command();
        let mut seen = 0;
        for command in [&root].into_iter().chain(root.get_subcommands()) {
            for line in examples(command) {
                assert!(parse(&line).is_ok(), "{line:?}");
                seen += 1;
            }
        }
        assert!(seen > 15, "{seen}");
    }

    #[test]
    fn the_status_of_a_usage_error_is_the_commands_familys() {
        let status = |line: &[&str]| {
            let line: Vec<OsString> = line.iter().map(OsString::from).collect();
            parse(&line).err()
        };
        assert_eq!(status(&["sandforge", "run", "--nope"]), Some(125));
        assert_eq!(status(&["sandforge", "-q", "exec"]), Some(125));
        assert_eq!(status(&["sandforge", "image", "nope"]), Some(2));
        assert_eq!(status(&["sandforge"]), Some(2));
    }
}
