//! `sandforge run`: a machine for one command.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use access::Caller;
use clap::Args;
use client::api::CreateSandbox;
use fleet::{Expected, Manager, Provenance, Run, RunMount, RunRequest};
use supervisor::{CopyIn, CopyOut, CopySummary, ImageRef, Isolation, SandboxSpec};
use wire::envelope::TaskDigest;
use wire::op::ExecReply;
use wire::text::Secret;

use super::{Context, changes};
use crate::coding_agent::{self, Asked};
use crate::embedded;
use crate::exit;
use crate::failure::{Failure, Kind};
use crate::filter;
use crate::mount::{LiveArgs, Mode, Mount, WORKSPACE};
use crate::network::NetworkArgs;
use crate::progress::{Line, Verbosity};
use crate::report::{Exit, Report, Timings, milliseconds};
use crate::session::{self, Sinks};
use crate::signals::Signals;
use crate::task::{Task, TaskArgs, Words};
use crate::units;
use crate::volume::VolumeArgs;

/// Memory when nothing is said.
const MEMORY_MB: u32 = 1024;
/// More would hide the command's own output.
const MAX_HELD_BACK: usize = 10;

/// Run a command in a machine of its own
///
/// The machine has its own kernel and a root file system from an image, no network unless you say
/// so, and is gone when the command ends. The command's output and exit status are passed through.
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge run \"uname -a && ls\"               a line for /bin/sh
  sandforge run -- python3 -c 'print(1)'       a program; nothing behind -- is interpreted
  sandforge run -e GITHUB_TOKEN -w . -- make   your token, and a copy of this directory
  sandforge run -w . ./fix.sh                  then: sandforge diff, apply, discard
  sandforge run -w . --sync-back ./fix.sh      take its changes over into this directory
  sandforge run -w . --out results -- make     or leave them in another
  cat big.log | sandforge run \"grep -c ERROR\"  stdin is passed on
  sandforge run -t bash                        a terminal
  sandforge run -v data:/data \"ls /data\"       a disk that stays; sandforge volume create data
  sandforge run --cache pip:fill --network fetch \"pip download six\"   for later runs with --cache pip
  sandforge run --network fetch \"pip install six\"   registries and git, to read
  sandforge run --allow \"READ example.com/docs/**\" \"curl https://example.com/docs/\"
  sandforge run --credential github \"gh pr list -R acme/web\"  a token that never goes in

Exit status: the command's own, or
  124  timed out (--timeout)       127  no such command in the sandbox
  125  Sandforge itself failed     128+n  killed by signal n (137: also out of memory)
  126  denied by a policy, or the file cannot be run

Ctrl-C is passed to the command; the second takes the machine away.")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    machine: MachineArgs,

    #[command(flatten)]
    files: FileArgs,

    #[command(flatten)]
    volumes: VolumeArgs,

    #[command(flatten)]
    network: NetworkArgs,

    #[command(flatten)]
    pub(crate) task: TaskArgs,
}

#[derive(Args)]
#[command(next_help_heading = "Machine")]
struct MachineArgs {
    /// Virtual CPUs [default: 2, or 1 where there is one]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    cpu: Option<u32>,

    /// Memory: 512 (MiB), 512m, 2g
    /// [default: 1024, or 3072 for an agent]
    #[arg(short, long, value_name = "SIZE", value_parser = units::memory_mb)]
    memory: Option<u32>,

    /// Keep what the command changes on a disk of this size, in GiB [default: in memory]
    ///
    /// The disk takes up what is written to it, and is gone with the machine.
    #[arg(long, value_name = "GIB", value_parser = clap::value_parser!(u32).range(1..=16384))]
    disk: Option<u32>,

    /// Root file system: the name of an image, or the path of an EROFS, ext4 or tar file
    /// [default: base]
    #[arg(long, value_name = "NAME|PATH", env = "SANDFORGE_IMAGE")]
    image: Option<OsString>,

    /// Put the image's entrypoint before the command, as docker does
    ///
    /// Without this a command is run as it is given. With no command at all, the image's entrypoint and
    /// its own command run.
    #[arg(long, requires = "image")]
    entrypoint: bool,

    /// A kernel of your own: an ELF with a PVH entry, or a bzImage
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,

    /// What runs the machine, by name; `sandforge doctor` lists them [default: the strongest]
    ///
    /// `process` runs the command on this computer's own kernel and says what that does not protect
    /// from.
    #[arg(long, value_name = "NAME", env = "SANDFORGE_ENGINE")]
    engine: Option<String>,

    /// The weakest isolation that will do: vm, emulated or process [default: emulated, or that of
    /// --engine]
    #[arg(long, value_name = "TIER", env = "SANDFORGE_MIN_ISOLATION")]
    min_isolation: Option<Isolation>,

    /// Call the machine so [default: its id]
    #[arg(long)]
    name: Option<String>,

    /// Leave the machine running for `sandforge exec`, until `sandforge rm`
    #[arg(long)]
    keep: bool,

    /// Show the kernel's messages on stderr, for finding out why a machine does not come up
    #[arg(long)]
    console: bool,
}

#[derive(Args)]
#[command(next_help_heading = "Files")]
struct FileArgs {
    /// Copy this directory to /workspace, where the command starts, and collect what is changed
    ///
    /// Further ones go to /workspaces/NAME. With :live behind it the directory itself is shared, not a
    /// copy; with :clone the command works on a git clone, whose commits come back below
    /// refs/sandforge/; with :ro it can only be read.
    #[arg(short, long, value_name = "DIR[:MODE][:ro]")]
    workspace: Vec<OsString>,

    /// Copy a file or directory to an absolute path in the sandbox
    #[arg(long, value_name = "HOST:GUEST[:MODE][:ro]")]
    mount: Vec<OsString>,

    #[command(flatten)]
    live: LiveArgs,

    /// Leave out what .gitignore files name when copying in
    #[arg(long)]
    gitignore: bool,

    /// Copy /workspace to this directory, new or empty, when the command has ended
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Take the changes over into the directory of -w when the command has ended
    ///
    /// Without this they wait for `sandforge diff`, `apply` and `discard`. What you changed
    /// meanwhile, and what other programs would run (git's hooks, editors' tasks), stays as it is,
    /// is told, and waits.
    #[arg(long, requires = "workspace", conflicts_with = "out")]
    sync_back: bool,

    /// Count what git would ignore among the changes, too
    #[arg(long, requires = "workspace")]
    ignored: bool,

    /// Leave out symbolic links that lead out of the directory, such as those of a Python venv
    ///
    /// Without this, results with such a link are refused as a whole.
    #[arg(long)]
    leave_out_links: bool,
}

/// The files to copy, known to be there.
#[derive(Debug)]
struct Files {
    /// Those of `-w` first.
    mounts: Vec<Mount>,
    gitignore: bool,
    out: Option<PathBuf>,
    sync_back: bool,
    leave_out_links: bool,
    ignored: bool,
}

impl Files {
    /// Whether what is changed in a mount is collected. Results that go elsewhere are not.
    fn is_reviewed(&self, mount: &Mount) -> bool {
        mount.is_reviewed() && !(self.out.is_some() && mount.guest == WORKSPACE)
    }

    /// What of the host goes in, as policy is asked about it, in the order in which it is copied.
    fn mounts(&self) -> Result<Vec<client::api::Mount>, Failure> {
        self.mounts.iter().map(Mount::request_of_run).collect()
    }
}

impl FileArgs {
    /// Looks at every path before anything is started for it.
    fn check(self) -> Result<Files, Failure> {
        let mut mounts = Mount::workspaces(&self.workspace)?;
        for text in &self.mount {
            let mount = Mount::parse(text)?;
            fs::symlink_metadata(&mount.host).map_err(|error| {
                let host = &mount.host;
                Failure::usage(format!("cannot read {host:?}, which --mount names")).because(&error)
            })?;
            mounts.push(mount);
        }
        self.live.apply(&mut mounts)?;
        if let Some(out) = &self.out {
            check_out(out)?;
        }
        let Self { gitignore, out, sync_back, leave_out_links, ignored, .. } = self;
        Ok(Files { mounts, gitignore, out, sync_back, leave_out_links, ignored })
    }
}

fn check_out(out: &Path) -> Result<(), Failure> {
    match fs::read_dir(out) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(Failure::usage(format!("the directory {out:?} is not empty"))
                .help("--out takes a new or an empty one; --sync-back writes over the workspace")),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => {
            Err(Failure::usage(format!("cannot bring results out to {out:?}")).because(&error))
        }
    }
}

impl RunArgs {
    pub(crate) fn json(&self) -> bool {
        self.task.json()
    }

    pub(crate) fn run(mut self, context: &Context) -> Result<u8, Failure> {
        let agent = Asked::by(&self.task.words);
        let brought = match &agent {
            Some(asked) => self.prepare_for(asked, context)?,
            None => false,
        };
        let agent = agent.filter(|_| brought);
        let image = self.machine.image.take().map(image).transpose()?;
        if self.machine.entrypoint || self.task.words.command.is_empty() {
            self.task.words = as_image_says(image.as_deref(), self.task.words, context)?;
        }
        let memory_mb = self.machine.memory.unwrap_or(match agent {
            Some(_) => coding_agent::MEMORY_MB,
            None => MEMORY_MB,
        });
        let spec =
            SandboxSpec { name: self.machine.name.clone(), memory_mb, ..SandboxSpec::default() };
        spec.check().map_err(|error| super::supervisor_failure(&error))?;
        let files = self.files.check()?;
        let task = self.task.prepare("p1".into())?;
        let request = RunRequest {
            sandbox: self.network.fill(self.volumes.fill(CreateSandbox {
                name: self.machine.name,
                image,
                cpu: self.machine.cpu,
                memory_mb: Some(memory_mb),
                disk_gb: self.machine.disk,
                engine: self.machine.engine,
                min_isolation: self.machine.min_isolation.map(tier),
                mounts: files.mounts()?,
                ..CreateSandbox::default()
            })),
            root: None,
            exec: asked(&task.exec),
            kernel: self.machine.kernel,
            console: self.machine.console,
            keep: self.machine.keep,
        };
        super::block_on(run(request, files, task, agent, context))
    }

    /// What an agent needs beside what was said. Whether it is brought along.
    fn prepare_for(&mut self, asked: &Asked, context: &Context) -> Result<bool, Failure> {
        let is_brought = asked.is_brought(self.machine.image.is_some())?;
        let mut line = Line::new(context.verbosity);
        self.network.add_profile(asked.agent.profile);
        if self.files.workspace.is_empty() {
            self.files.workspace = vec![".".into()];
            let after = match &self.files.out {
                None if self.files.sync_back => {
                    "what it changes is taken over when it ends".to_owned()
                }
                None => "what it changes waits for you to look at it".to_owned(),
                Some(out) => format!("what comes of it goes to {out:?}"),
            };
            line.notice(&format!(
                "{} works on a copy of this directory; {after}",
                asked.agent.name
            ));
        }
        self.task.use_terminal();
        self.task.words = Words { command: asked.command(is_brought), separated: true };
        Ok(is_brought)
    }
}

/// The command that an image says: its entrypoint, and behind that what was given, or else its own
/// command. It is asked about like any other, so the image has to be here first.
fn as_image_says(image: Option<&str>, given: Words, context: &Context) -> Result<Words, Failure> {
    let none = || Failure::usage("there is no command to run");
    let image = image.ok_or_else(|| none().help("sandforge run COMMAND; see --help"))?;
    let reference: ImageRef = match image.parse() {
        Ok(reference) => reference,
        Err(never) => match never {},
    };
    let supervisor = super::supervisor()?;
    let mut line = Line::new(context.verbosity);
    let config = super::block_on(async {
        let config = supervisor.image_config(&reference, &mut line).await;
        config.map_err(|error| super::supervisor_failure(&error))
    })?;
    line.clear();
    let mut command: Vec<OsString> = config.entrypoint.into_iter().map(OsString::from).collect();
    match given.command {
        given if !given.is_empty() => command.extend(given),
        _ => command.extend(config.cmd.into_iter().map(OsString::from)),
    }
    if command.is_empty() {
        let help =
            format!("the image {} says none either: sandforge run COMMAND", filter::plain(image));
        return Err(none().help(help));
    }
    Ok(Words { command, separated: true })
}

/// The name of an image as it is; a path absolute, as policy has to see it.
pub(super) fn image(image: OsString) -> Result<String, Failure> {
    let path = match image.to_str().map(str::parse) {
        Some(Ok(ImageRef::Path(path))) => path,
        Some(_) => return Ok(image.to_string_lossy().into_owned()),
        None => PathBuf::from(image),
    };
    fs::metadata(&path).map_err(|error| {
        Failure::usage(format!("cannot open the image {}: {error}", path.display()))
    })?;
    super::create::absolute(&path)
}

fn tier(isolation: Isolation) -> client::api::Isolation {
    match isolation {
        Isolation::Process => client::api::Isolation::Process,
        Isolation::Emulated => client::api::Isolation::Emulated,
        Isolation::Vm => client::api::Isolation::Vm,
    }
}

/// The command as policy and the audit log see it: names and times as near as they can tell them.
/// What runs is the command itself.
pub(crate) fn asked(exec: &wire::op::Exec) -> client::api::Exec {
    client::api::Exec {
        cwd: exec.cwd.as_ref().map(|cwd| cwd.to_string_lossy()),
        env: exec.env.keys().map(|name| (name.to_string_lossy(), Secret::default())).collect(),
        user: exec.user.as_ref().map(|user| user.to_string_lossy()),
        stdin: exec.stdin,
        tty: exec.tty.map(Into::into),
        timeout_sec: exec.timeout_ms.map(|ms| ms.div_ceil(1000)),
        ..client::api::Exec::new(exec.command.clone())
    }
}

async fn run(
    mut request: RunRequest,
    mut files: Files,
    task: Task,
    agent: Option<Asked>,
    context: &Context,
) -> Result<u8, Failure> {
    let mut signals = Signals::catch()?;
    let mut line = Line::new(context.verbosity);
    let manager = signals.unless_asked(embedded::manager()).await??;
    if let Some(asked) = agent {
        let installing =
            coding_agent::install(&asked, &request.sandbox, &manager, &mut line, &mut signals);
        match installing.await {
            Ok(host) => {
                let mode = Mode::Api(client::api::MountMode::Copy);
                let (guest, live) = (asked.place(), LiveArgs::default());
                files.mounts.push(Mount { host, guest, mode, read_only: true, live });
                request.sandbox.mounts = files.mounts()?;
            }
            Err(failure) => {
                line.clear();
                manager.shutdown(embedded::DEADLINE).await;
                return Err(failure);
            }
        }
    }
    let done = with_manager(&manager, request, files, task, context, &mut line, &mut signals).await;
    line.clear();
    manager.shutdown(embedded::DEADLINE).await;
    done
}

async fn with_manager(
    manager: &Manager,
    request: RunRequest,
    files: Files,
    task: Task,
    context: &Context,
    line: &mut Line,
    signals: &mut Signals,
) -> Result<u8, Failure> {
    let keep = request.keep;
    let name = request.sandbox.name.clone();
    let caller = Caller::local(rustix::process::getuid().as_raw());
    let by = Provenance { remote: "run".into(), ..Provenance::default() };
    let making = manager.run(&caller, request, &by, line);
    let mut run = signals.unless_asked(making).await?.map_err(|error| fleet_failure(&error))?;

    tell_credentials(line, run.expected());

    let mut timings = Timings::default();
    let done = in_sandbox(&mut run, &files, &task, line, signals, &mut timings).await;
    line.clear();
    let id = run.id().to_owned();
    let name = name.unwrap_or_else(|| id.clone());
    let sandbox = run.sandbox();
    let (engine, isolation) = (sandbox.engine().to_owned(), sandbox.isolation().to_string());
    let up = *sandbox.timings();
    let denied = run.denied();
    // Even if its results could not be taken: they are still in there.
    let kept = keep && done.is_ok();
    let (reply, digest) = match &done {
        Ok(done) => (done.reply.clone(), Some(done.digest.0)),
        Err(_) => (None, None),
    };
    if kept {
        run.leave(reply, digest).await.map_err(|error| fleet_failure(&error))?;
    } else {
        // Whatever else went wrong is more interesting than how the machine was taken away.
        let teardown = signals.unless_asked(run.finish(reply, digest)).await;
        if let Ok(Ok(teardown)) = &teardown {
            timings.teardown_ms = teardown.teardown_ms;
        }
        if done.is_ok() {
            teardown?.map_err(|error| fleet_failure(&error))?;
        }
    }
    let Done { reply, digest, sinks, collected } = done?;
    let digest = digest.to_string();
    let Some(reply) = reply else {
        return Ok(exit::of_signal(exit::PIPE));
    };
    let exit = Exit::of_outcome(&reply.outcome);
    timings = Timings {
        prepare_ms: up.prepare_ms,
        process_ms: up.process_ms,
        kernel_ms: up.kernel_ms,
        agent_ms: up.agent_ms,
        total_ms: milliseconds(context.begun.elapsed()),
        ..timings
    };
    task.tell(line, &reply);
    for one in &denied {
        let times = if one.times == 1 { String::new() } else { format!(" ({} times)", one.times) };
        line.notice(&format!("it was denied {}{times}: {}", one.host, one.reason));
        if let Some(hint) = &one.hint {
            line.notice(&format!("  to allow it: --allow '{hint}'"));
        }
    }
    if kept {
        line.notice(&format!("{name} is kept: sandforge exec {name} COMMAND, sandforge rm {name}"));
    }
    if let Err(mut failure) = collected {
        failure.causes.push(format!("the command's own exit status was {}", exit.code));
        return Err(failure.help(match kept {
            true => format!("the files are still in the machine: sandforge exec {name}"),
            false => "with --keep the machine stays, and what is in it".into(),
        }));
    }
    if context.verbosity == Verbosity::Verbose {
        line.notice(&digest);
        for (phase, ms) in timings.phases() {
            line.notice(&format!("{phase:>9} {ms:8.1} ms"));
        }
    }
    let code = exit.code;
    let report = Report {
        exit,
        sandbox: id,
        name,
        engine,
        isolation,
        digest: Some(digest),
        timings,
        cpu_usec: reply.cpu_usec,
        memory_peak_bytes: reply.memory_peak_bytes,
        kept,
        output: None,
    };
    task.reporting.write(report, sinks)?;
    Ok(code)
}

/// Which credentials it has, and which it does not though they are set.
fn tell_credentials(line: &mut Line, expected: &[Expected]) {
    for one in expected.iter().filter(|one| one.is_given) {
        let Expected { service, origin, shut, .. } = one;
        if one.is_open || shut.is_empty() {
            line.notice(&format!("credential {service}, {origin}: the sandbox has a placeholder"));
        } else {
            let hosts = shut.join(", ");
            line.notice(&format!(
                "credential {service}, {origin}, is of no use: no rule lets {hosts} through"
            ));
        }
    }
    let unused = expected.iter().filter(|one| !one.is_given && !one.is_open);
    let unused: Vec<String> =
        unused.map(|one| format!("{} ({})", one.service, one.origin)).collect();
    if !unused.is_empty() {
        line.notice(&format!(
            "credentials that are set and whose hosts no rule lets through: {}; to use one: \
             --credential NAME",
            unused.join(", ")
        ));
    }
}

/// The command ran.
struct Done {
    /// Nothing where nobody reads our output any more.
    reply: Option<ExecReply>,
    digest: TaskDigest,
    sinks: Sinks,
    /// Whether what it left was brought out.
    collected: Result<(), Failure>,
}

pub(crate) fn fleet_failure(error: &fleet::Error) -> Failure {
    match error {
        fleet::Error::Supervisor(error) => super::supervisor_failure(error),
        other => Failure::from_problem(&other.problem()),
    }
}

async fn in_sandbox(
    run: &mut Run,
    files: &Files,
    task: &Task,
    line: &mut Line,
    signals: &mut Signals,
    timings: &mut Timings,
) -> Result<Done, Failure> {
    let begun = Instant::now();
    signals.unless_asked(copy_in(run, files, line)).await??;
    timings.workspace_ms = milliseconds(begun.elapsed());
    line.clear();

    let begun = Instant::now();
    let mut sinks = task.sinks()?;
    let (reply, digest) = session::run(run.sandbox_mut(), &task.exec, &mut sinks, signals).await?;
    timings.exec_ms = milliseconds(begun.elapsed());
    let Some(reply) = reply else {
        return Ok(Done { reply: None, digest, sinks, collected: Ok(()) });
    };

    let begun = Instant::now();
    let collected =
        signals.unless_asked(copy_out(run, files, line)).await.and_then(std::convert::identity);
    timings.collect_ms = milliseconds(begun.elapsed());
    line.clear();
    Ok(Done { reply: Some(reply), digest, sinks, collected })
}

/// Copies what policy has decided about, by the very descriptors that it decided about.
async fn copy_in(run: &Run, files: &Files, line: &mut Line) -> Result<(), Failure> {
    let mut sources = run.mounts().iter();
    for mount in &files.mounts {
        let Mount { host, guest, read_only, .. } = mount;
        let source = sources
            .next()
            .ok_or_else(|| Failure::failed(format!("{host:?} was not decided about")))?;
        if mount.mode == Mode::Api(client::api::MountMode::Live) {
            share(run, mount, source, line).await?;
            continue;
        }
        if mount.mode == Mode::Clone {
            clone(run, host, source, guest, line).await?;
            continue;
        }
        let options = CopyIn {
            gitignore: files.gitignore,
            read_only: *read_only,
            reviewed: files.is_reviewed(mount),
        };
        copy_one(run, host, source, guest, options, line).await?;
    }
    Ok(())
}

/// Clones a repository, unless its files would show what policy hides.
async fn clone(
    run: &Run,
    host: &Path,
    source: &RunMount,
    guest: &str,
    line: &mut Line,
) -> Result<(), Failure> {
    recheck(host, source)?;
    if let Some(hidden) = source.hidden() {
        let tracked = workspace::Repository::open(host).and_then(|repository| repository.tracked());
        let tracked = tracked
            .map_err(|error| Failure::usage(format!("cannot clone {host:?}")).because(&error))?;
        if let Some(path) = tracked.iter().find(|path| hidden.covers(path)) {
            return Err(Failure::new(
                Kind::Denied,
                format!("policy hides {path:?}, which the repository {host:?} has committed"),
            )
            .help("without :clone the directory is copied without it"));
        }
    }
    let cloned = run.sandbox().clone_in(host, guest, line).await;
    cloned.map_err(|error| super::supervisor_failure(&error))
}

/// Brings what was committed to a clone to its repository, and tells of it.
async fn fetch(run: &Run, mount: &Mount, line: &mut Line) -> Result<(), Failure> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let name = run.name();
    let name = if name.bytes().all(fits) { &name } else { run.id() };
    let fetched = run.sandbox().fetch_back(&mount.guest, &mount.host, name, line).await;
    let fetched = fetched.map_err(|error| super::supervisor_failure(&error))?;
    line.clear();
    for workspace::Fetched { reference, commits } in &fetched {
        let reference = filter::plain(reference);
        line.notice(&format!("{reference}: {commits} commits; git merge {reference} takes them"));
    }
    Ok(())
}

/// Shares a directory by the descriptor that policy has decided about.
async fn share(
    run: &Run,
    mount: &Mount,
    source: &RunMount,
    line: &mut Line,
) -> Result<(), Failure> {
    recheck(&mount.host, source)?;
    let shared = run.share(source, &mount.request()?).await;
    if let Some(lacks) = shared.map_err(|error| fleet_failure(&error))? {
        line.notice(&lacks);
    }
    Ok(())
}

fn recheck(host: &Path, source: &RunMount) -> Result<(), Failure> {
    source.host().recheck().map_err(|error| {
        Failure::new(Kind::Denied, format!("{host:?} is not what policy allowed")).because(&error)
    })
}

async fn copy_one(
    run: &Run,
    host: &Path,
    source: &RunMount,
    guest: &str,
    options: CopyIn,
    line: &mut Line,
) -> Result<(), Failure> {
    recheck(host, source)?;
    if !source.host().is_directory() {
        let copied = run.copy_file(source, guest, options.read_only).await;
        return copied.map_err(|error| fleet_failure(&error));
    }
    let handle = source.host().handle();
    let copied =
        run.sandbox().copy_in_without(&handle, guest, options, source.hidden(), line).await;
    // The handle's name means nothing to anybody else.
    let named = |text: &str| text.replace(&*handle.to_string_lossy(), &host.to_string_lossy());
    let copied = copied.map_err(|error| {
        let failure = super::supervisor_failure(&error);
        let causes = failure.causes.iter().map(|cause| named(cause)).collect();
        Failure { message: named(&failure.message), causes, ..failure }
    })?;
    tell_held_back(line, &copied);
    Ok(())
}

async fn copy_out(run: &Run, files: &Files, line: &mut Line) -> Result<(), Failure> {
    let leave_out_links = files.leave_out_links;
    if let Some(directory) = &files.out {
        let options = CopyOut { leave_out_links };
        let copied = run.sandbox().copy_out(WORKSPACE, directory, options, line).await;
        tell_held_back(line, &copied.map_err(|error| super::supervisor_failure(&error))?);
    }
    for mount in files.mounts.iter().filter(|mount| mount.mode == Mode::Clone) {
        fetch(run, mount, line).await?;
    }
    for (index, _) in files.mounts.iter().enumerate().filter(|(_, one)| files.is_reviewed(one)) {
        let reviewed = run.collect(index, files.ignored, line).await;
        let reviewed = reviewed.map_err(|error| fleet_failure(&error))?;
        line.clear();
        let (entries, bytes) = reviewed.ignored;
        if let Some(text) = changes::ignored(entries, bytes) {
            line.notice(&text);
        }
        let Some(set) = reviewed.set else { continue };
        if files.sync_back {
            let applied = run.apply(index, leave_out_links).await;
            let applied = applied.map_err(|error| fleet_failure(&error))?;
            let lines = changes::tell_applied(&applied);
            // All is as it was asked for: only what is not is told.
            lines.iter().skip(1).for_each(|text| line.notice(text));
            if !applied.held_back.is_empty() {
                let id = &set.sandbox;
                line.notice(&format!("  sandforge diff {id}, apply {id}, discard {id}"));
            }
        } else {
            changes::after_run(&set, &mut |text| line.notice(text));
        }
    }
    Ok(())
}

fn tell_held_back(line: &mut Line, summary: &CopySummary) {
    for what in summary.held_back.iter().take(MAX_HELD_BACK) {
        line.notice(&format!("not copied: {what}"));
    }
    let more = summary.held_back.len().saturating_sub(MAX_HELD_BACK);
    if more > 0 {
        line.notice(&format!("not copied: {more} more"));
    }
}
