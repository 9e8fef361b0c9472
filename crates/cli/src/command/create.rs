//! `sandforge create`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use client::api::{CreateSandbox, Isolation, Sandbox, WhenIdle, WhenTimedOut};

use super::Context;
use crate::connection;
use crate::env::EnvArgs;
use crate::failure::Failure;
use crate::mount::{LiveArgs, Mount};
use crate::network::NetworkArgs;
use crate::volume::VolumeArgs;
use crate::{filter, units};

/// Make a sandbox that stays until it is removed
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge create --name box                         then: sandforge exec box \"uname -a\"
  sandforge create --name ci -m 2g --mount ./src:/src --label team=red
  sandforge create --ttl 2h --on-timeout stop         stopped after two hours, its record stays
  sandforge create -v data:/data                     with a volume: sandforge volume create data
  sandforge create --idle 10m --on-idle delete        gone when nothing ran in it for ten minutes
  sandforge create --idle 10m --on-idle hibernate     on disk then, and back with the next command

Its name is printed; with --json, all of it.")]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    pub(crate) spec: SpecArgs,

    /// Do not wait until it is ready
    #[arg(long)]
    no_wait: bool,

    /// Print the sandbox as a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a sandbox is asked to be.
#[derive(Args)]
pub(crate) struct SpecArgs {
    /// Call it so, once in a workspace [default: its id]
    #[arg(long)]
    name: Option<String>,

    /// Virtual CPUs [default: 2, or 1 where there is one]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    cpu: Option<u32>,

    /// Memory: 512 (MiB), 512m, 2g [default: 1g]
    #[arg(short, long, value_name = "SIZE", value_parser = units::memory_mb)]
    memory: Option<u32>,

    /// Scratch disk in GiB [default: in memory]
    #[arg(long, value_name = "GIB", value_parser = clap::value_parser!(u32).range(1..=16384))]
    disk: Option<u32>,

    /// Root file system: the name of an image of the server [default: base]
    #[arg(long, value_name = "NAME", env = "SANDFORGE_IMAGE")]
    image: Option<String>,

    /// What runs it, by name; `sandforge doctor` lists them [default: the strongest]
    #[arg(long, value_name = "NAME", env = "SANDFORGE_ENGINE")]
    engine: Option<String>,

    /// The weakest isolation that will do: vm, emulated or process [default: emulated]
    #[arg(long, value_name = "TIER", env = "SANDFORGE_MIN_ISOLATION")]
    min_isolation: Option<Isolation>,

    /// Copy a file or directory of the server's host to an absolute path in the sandbox
    #[arg(long, value_name = "HOST:GUEST[:review][:ro]")]
    mount: Vec<OsString>,

    #[command(flatten)]
    live: LiveArgs,

    /// Its time to live: 30 (seconds), 90s, 5m, 2h [default: none]
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    ttl: Option<Duration>,

    /// What follows when its time is up
    #[arg(long, value_name = "WHAT", value_enum, default_value = "delete", requires = "ttl")]
    on_timeout: End,

    /// How long it may be without a task [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    idle: Option<Duration>,

    /// What follows when it was idle for so long
    #[arg(long, value_name = "WHAT", value_enum, default_value = "stop", requires = "idle")]
    on_idle: Idle,

    /// To find it by
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,

    /// Whose it is; only who sees all workspaces may choose
    #[arg(long, value_name = "NAME")]
    workspace: Option<String>,

    #[command(flatten)]
    volumes: VolumeArgs,

    #[command(flatten)]
    network: NetworkArgs,

    #[command(flatten)]
    env: EnvArgs,
}

/// What becomes of a sandbox that nobody wants any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum End {
    /// Its machine goes, its record stays
    Stop,
    /// It gets a new machine
    Restart,
    /// All of it goes
    Delete,
}

/// What becomes of a sandbox in which nothing runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Idle {
    /// Its machine goes, its record stays
    Stop,
    /// It gets a new machine
    Restart,
    /// Its machine goes to disk, and goes on from there with the next request
    Hibernate,
    /// All of it goes
    Delete,
}

impl SpecArgs {
    /// The request. Paths of the host are made absolute: the server has a directory of its own.
    pub(crate) fn request(self, wait: bool) -> Result<CreateSandbox, Failure> {
        let mounts = self.mount.iter().map(|text| Mount::parse(text));
        let mut mounts = mounts.collect::<Result<Vec<_>, _>>()?;
        self.live.apply(&mut mounts)?;
        let mounts = mounts.iter().map(Mount::request).collect::<Result<_, _>>()?;
        let labels = self.label.iter().map(|label| {
            let (key, value) = label
                .split_once('=')
                .ok_or_else(|| Failure::usage(format!("--label {label:?} is not KEY=VALUE")))?;
            Ok((key.to_owned(), value.to_owned()))
        });
        let labels = labels.collect::<Result<BTreeMap<_, _>, Failure>>()?;
        let env = self.env.collect(|name| std::env::var_os(name))?;
        let env = env.into_iter().map(|(name, value)| {
            let name = String::from_utf8(name.into_bytes());
            let name = name.map_err(|_| Failure::usage("-e: the name is not UTF-8"))?;
            Ok((name, value))
        });
        let env = env.collect::<Result<BTreeMap<_, _>, Failure>>()?;
        let request = CreateSandbox {
            name: self.name,
            image: self.image,
            cpu: self.cpu,
            memory_mb: self.memory,
            disk_gb: self.disk,
            timeout_sec: self.ttl.map(|ttl| units::whole_seconds("--ttl", ttl)).transpose()?,
            on_timeout: match self.on_timeout {
                End::Stop => WhenTimedOut::Stop,
                End::Restart => WhenTimedOut::Restart,
                End::Delete => WhenTimedOut::Delete,
            },
            idle_timeout_sec: self
                .idle
                .map(|idle| units::whole_seconds("--idle", idle))
                .transpose()?,
            on_idle: match self.on_idle {
                Idle::Stop => WhenIdle::Stop,
                Idle::Restart => WhenIdle::Restart,
                Idle::Hibernate => WhenIdle::Hibernate,
                Idle::Delete => WhenIdle::Delete,
            },
            env,
            mounts,
            min_isolation: self.min_isolation,
            engine: self.engine,
            labels,
            workspace: self.workspace,
            wait,
            ..CreateSandbox::default()
        };
        Ok(self.network.fill(self.volumes.fill(request)))
    }
}

pub(crate) fn absolute(path: &Path) -> Result<String, Failure> {
    let failed = |why: &str| Failure::usage(format!("{path:?} {why}"));
    let path = std::path::absolute(path).map_err(|error| failed("is no path").because(&error))?;
    PathBuf::into_os_string(path).into_string().map_err(|_| failed("is not UTF-8"))
}

impl CreateArgs {
    pub(crate) fn run(self, context: &Context) -> Result<u8, Failure> {
        let request = self.spec.request(!self.no_wait)?;
        let mut line = crate::progress::Line::new(context.verbosity);
        let sandbox = connection::ask(async |client| Ok(client.create_sandbox(&request).await?))?;
        print(&sandbox, self.json)?;
        if !self.json {
            tell_isolation(&sandbox, &mut line);
        }
        Ok(0)
    }
}

/// A sandbox that something was done to: its name, or all of it.
pub(crate) fn print(sandbox: &Sandbox, json: bool) -> Result<(), Failure> {
    match json {
        true => super::print_json(sandbox),
        false => super::print(&format!("{}\n", filter::plain(&sandbox.name))),
    }
}

/// Weaker isolation than the strongest is said, never silent.
fn tell_isolation(sandbox: &Sandbox, line: &mut crate::progress::Line) {
    if let Some(isolation @ (Isolation::Emulated | Isolation::Process)) = sandbox.isolation {
        line.notice(&format!("isolation: {isolation}; `sandforge doctor` says why"));
    }
}
