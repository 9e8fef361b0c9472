//! `sandforge policy`.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use client::api::{
    self, CreateSandbox, NetworkMode, PolicyCheck, PolicyDecision, PolicyInfo, PolicyRequest,
    PolicySubject, ReachRequest, RuleRef,
};
use policy::{Host, Kind, Layer, Policy, Request};

mod network;
mod registries;

use network::AboutNetwork;

use super::create::SpecArgs;
use crate::connection;
use crate::failure::Failure;
use crate::mount::Mount;
use crate::task::TaskArgs;
use crate::{filter, remote};

/// A policy file longer than this is none.
const MAX_FILE: u64 = 1 << 20;

/// Ask the policy, show it, and load it again
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge policy check create --memory 64g
  sandforge policy check exec -- git push
  sandforge policy check --file policy.toml exec -- git push     without a server
  sandforge policy check --as-role viewer mount ~/.ssh:/keys
  sandforge policy check network POST https://api.github.com/user/keys --credential github
  sandforge policy check network GET https://example.com/ --sandbox work
  sandforge policy init
  sandforge policy show
  sandforge policy reload")]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Subcommand)]
enum PolicyCommand {
    /// Say what policy would decide, by which rule, and what would allow it; nothing is done.
    /// Exit status 0 where it is allowed, 1 where it is not
    Check(Box<CheckArgs>),
    /// Write down the package registries that your own tools use, for network mode fetch
    Init {
        /// Write over what is there
        #[arg(long)]
        force: bool,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print the policy in force
    Show {
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Let the server read its files again; where they are wrong, what is in force stays
    Reload {
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
struct CheckArgs {
    /// Ask this administrator's policy, and no server; may be given several times
    #[arg(long, value_name = "FILE")]
    file: Vec<PathBuf>,

    /// Ask this project's policy too, which may only narrow
    #[arg(long, value_name = "FILE")]
    project: Vec<PathBuf>,

    /// As if somebody of this role asked: viewer, member, owner; with files also administrator
    #[arg(long, value_name = "ROLE")]
    as_role: Option<policy::Role>,

    /// As if somebody of this name asked
    #[arg(long, value_name = "NAME")]
    as_name: Option<String>,

    /// As if it were asked in this workspace
    #[arg(long, value_name = "NAME")]
    as_workspace: Option<String>,

    /// Print a JSON object
    #[arg(long)]
    json: bool,

    #[command(subcommand)]
    about: About,
}

#[derive(Subcommand)]
enum About {
    /// To make a sandbox, with the flags of `sandforge create`
    Create(Box<SpecArgs>),
    /// To run a command, with the flags of `sandforge exec`
    Exec(TaskArgs),
    /// To copy something of the host in
    Mount {
        /// What, and where to
        #[arg(value_name = "HOST:GUEST[:ro]")]
        mount: OsString,
    },
    /// To have a network (offline, fetch, allow or open), or to send a request
    Network(AboutNetwork),
}

impl PolicyArgs {
    pub(crate) fn json(&self) -> bool {
        match &self.command {
            PolicyCommand::Check(args) => args.json,
            PolicyCommand::Init { json, .. }
            | PolicyCommand::Show { json }
            | PolicyCommand::Reload { json } => *json,
        }
    }

    /// The words of a command that is asked about.
    pub(crate) fn words(&mut self) -> Option<&mut crate::task::Words> {
        match &mut self.command {
            PolicyCommand::Check(args) => match &mut args.about {
                About::Exec(task) => Some(&mut task.words),
                _ => None,
            },
            _ => None,
        }
    }

    pub(crate) fn run(self) -> Result<u8, Failure> {
        match self.command {
            PolicyCommand::Check(args) => args.run(),
            PolicyCommand::Init { force, json } => registries::init(force, json),
            PolicyCommand::Show { json } => {
                let info = connection::ask(async |client| Ok(client.show_policy().await?))?;
                match json {
                    true => super::print_json(&info)?,
                    false => super::print(&layers(&info))?,
                }
                Ok(0)
            }
            PolicyCommand::Reload { json } => {
                let info = connection::ask(async |client| Ok(client.reload_policy().await?))?;
                match json {
                    true => super::print_json(&info)?,
                    false => super::print(&format!("generation {}\n", info.generation))?,
                }
                Ok(0)
            }
        }
    }
}

fn layers(info: &PolicyInfo) -> String {
    let mut text = format!("# generation {}, loaded {}\n", info.generation, info.loaded_at);
    for layer in &info.layers {
        let kind = match layer.kind {
            api::LayerKind::BuiltIn => "built in",
            api::LayerKind::Administrator => "the administrator's",
            api::LayerKind::Project => "a project's",
        };
        let end = if layer.text.ends_with('\n') { "" } else { "\n" };
        let _ = write!(text, "\n# {} ({kind})\n{}{end}", layer.file, layer.text);
    }
    filter::plain(&text)
}

impl CheckArgs {
    fn run(mut self) -> Result<u8, Failure> {
        let json = self.json;
        let has_files = !self.file.is_empty() || !self.project.is_empty();
        let url = match &mut self.about {
            About::Network(about) if about.sandbox.is_none() => about.url.take(),
            _ => None,
        };
        let decision = match url {
            Some(url) => self.of_request(&url, has_files)?,
            None if has_files => self.decide()?,
            None => self.ask()?,
        };
        match json {
            true => super::print_json(&decision)?,
            false => super::print(&describe(&decision))?,
        }
        Ok(if decision.allowed { 0 } else { 1 })
    }

    /// Asks the server's policy.
    fn ask(self) -> Result<PolicyDecision, Failure> {
        let role = match self.as_role {
            None => None,
            Some(policy::Role::Viewer) => Some(api::Role::Viewer),
            Some(policy::Role::Member) => Some(api::Role::Member),
            Some(policy::Role::Owner) => Some(api::Role::Owner),
            Some(policy::Role::Administrator) => {
                return Err(Failure::usage("a server cannot be asked as an administrator")
                    .help("leave out --as-role: on its own socket you are one"));
            }
        };
        let subject = PolicySubject { name: self.as_name, role, workspace: self.as_workspace };
        let check = PolicyCheck {
            request: request(self.about)?,
            subject: (subject != PolicySubject::default()).then_some(subject),
        };
        connection::ask(async |client| Ok(client.check_policy(&check).await?))
    }

    /// Layers of the files.
    fn layers(&self) -> Result<Vec<Layer>, Failure> {
        let layer = |path: &PathBuf, kind| {
            let text = read(path)?;
            Layer::parse(&path.display().to_string(), &text, kind)
                .map_err(|error| Failure::usage(error.to_string()))
        };
        let mut all = Vec::new();
        for path in &self.file {
            all.push(layer(path, Kind::Administrator)?);
        }
        for path in &self.project {
            all.push(layer(path, Kind::Project)?);
        }
        Ok(all)
    }

    /// Decides about a request, within what files or the server's policy leave.
    fn of_request(self, url: &str, has_files: bool) -> Result<PolicyDecision, Failure> {
        let layers = if has_files { Some(self.layers()?) } else { None };
        let About::Network(network) = self.about else {
            return Err(Failure::usage("this is no request"));
        };
        let (layers, generation) = match layers {
            Some(layers) => (layers, 0),
            None => {
                let info = connection::ask(async |client| Ok(client.show_policy().await?))?;
                (of_server(&info)?, info.generation)
            }
        };
        let bounds = layers.iter().map(|layer| layer.endpoints().clone()).collect();
        network.decide(url, bounds, generation)
    }

    /// Asks the files.
    fn decide(self) -> Result<PolicyDecision, Failure> {
        let all = self.layers()?;
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let home = home.and_then(|home| fs::canonicalize(home).ok());
        let host = Host { home, own: Vec::new() };
        let policy = Policy::new(host, all).map_err(|error| Failure::usage(error.to_string()))?;
        let who = policy::Subject {
            name: self.as_name.unwrap_or_else(|| "local".into()),
            role: self.as_role.unwrap_or(policy::Role::Administrator),
            workspace: self.as_workspace,
        };
        let decision = policy.decide(&question(request(self.about)?, who)?);
        Ok(PolicyDecision {
            allowed: decision.allowed,
            rule: RuleRef {
                file: decision.rule.file,
                line: decision.rule.line,
                text: decision.rule.text,
            },
            reason: decision.reason,
            remedy: decision.remedy.map(|remedy| remedy.to_string()),
            generation: decision.generation.0,
        })
    }
}

/// The layers of a server, but for those that are built in.
fn of_server(info: &PolicyInfo) -> Result<Vec<Layer>, Failure> {
    let mut all = Vec::new();
    for layer in &info.layers {
        let kind = match layer.kind {
            api::LayerKind::BuiltIn => continue,
            api::LayerKind::Administrator => Kind::Administrator,
            api::LayerKind::Project => Kind::Project,
        };
        let parsed = Layer::parse(&layer.file, &layer.text, kind);
        all.push(parsed.map_err(|error| Failure::failed(error.to_string()))?);
    }
    Ok(all)
}

fn read(path: &Path) -> Result<String, Failure> {
    let fail = |error: &std::io::Error| {
        Failure::usage(format!("cannot read the policy {path:?}")).because(error)
    };
    let length = fs::metadata(path).map_err(|error| fail(&error))?.len();
    if length > MAX_FILE {
        return Err(Failure::usage(format!("the policy {path:?} is longer than 1 MiB")));
    }
    fs::read_to_string(path).map_err(|error| fail(&error))
}

fn request(about: About) -> Result<PolicyRequest, Failure> {
    Ok(match about {
        About::Create(spec) => PolicyRequest::Create(Box::new(spec.request(true)?)),
        About::Exec(task) => {
            let task = task.prepare("p1".into())?;
            PolicyRequest::Exec(Box::new(remote::exec(task.exec)?))
        }
        About::Mount { mount } => PolicyRequest::Mount(Mount::parse(&mount)?.request()?),
        About::Network(AboutNetwork { asked, sandbox, url: Some(url), .. }) => {
            PolicyRequest::Reach(Box::new(ReachRequest {
                method: asked,
                url,
                sandbox,
                create: CreateSandbox::default(),
            }))
        }
        About::Network(network) => {
            let mode = network.asked.parse().map_err(|problem: String| {
                Failure::usage(problem).help("to ask about a request, name its method and its URL")
            })?;
            PolicyRequest::Network(match mode {
                policy::Network::Offline => NetworkMode::Offline,
                policy::Network::Fetch => NetworkMode::Fetch,
                policy::Network::Allow => NetworkMode::Allow,
                policy::Network::Open => NetworkMode::Open,
            })
        }
    })
}

/// The request as the policy has it, with the defaults of a server.
fn question(request: PolicyRequest, who: policy::Subject) -> Result<Request, Failure> {
    let network = |mode: NetworkMode| match mode {
        NetworkMode::Offline => policy::Network::Offline,
        NetworkMode::Fetch => policy::Network::Fetch,
        NetworkMode::Allow => policy::Network::Allow,
        NetworkMode::Open => policy::Network::Open,
    };
    let isolation = |tier: api::Isolation| match tier {
        api::Isolation::Process => policy::Isolation::Process,
        api::Isolation::Emulated => policy::Isolation::Emulated,
        api::Isolation::Vm => policy::Isolation::Vm,
    };
    Ok(match request {
        PolicyRequest::Create(create) => Request::Create(policy::Create {
            who,
            network: network(create.network_mode()),
            cpu: create.cpu.unwrap_or(2),
            memory_mb: create.memory_mb.unwrap_or(1024),
            disk_gb: create.disk_gb,
            timeout_sec: create.timeout_sec,
            image: create.image.unwrap_or_else(|| "base".into()),
            mounts: create.mounts.into_iter().map(mount).collect::<Result<_, _>>()?,
            env_names: create.env.into_keys().collect(),
            min_isolation: create.min_isolation.map(isolation),
            isolation: create.engine.as_deref().and_then(tier_of),
            sandboxes: 0,
        }),
        PolicyRequest::Exec(exec) => Request::Exec(policy::Exec {
            who,
            command: match exec.command {
                api::Command::Shell(line) => policy::Command::Shell(line.to_string_lossy()),
                api::Command::Argv(words) => {
                    policy::Command::Argv(words.iter().map(|word| word.to_string_lossy()).collect())
                }
            },
            user: exec.user,
            env_names: exec.env.into_keys().collect(),
        }),
        PolicyRequest::Mount(asked) => {
            Request::Mount(policy::MountRequest { who, mount: mount(asked)? })
        }
        PolicyRequest::Reach(_) => {
            return Err(Failure::usage("a sandbox is asked about at its server")
                .help("leave out --file and --project, or --sandbox"));
        }
        PolicyRequest::Network(mode) => {
            Request::Network(policy::NetworkRequest { who, mode: network(mode) })
        }
    })
}

/// The isolation of the engines that have a name.
fn tier_of(engine: &str) -> Option<policy::Isolation> {
    match engine {
        "kvm" => Some(policy::Isolation::Vm),
        "qemu" | "emulated" => Some(policy::Isolation::Emulated),
        "process" => Some(policy::Isolation::Process),
        _ => None,
    }
}

/// Where a mount really is; what is not there is asked about as it is written.
fn mount(asked: api::Mount) -> Result<policy::Mount, Failure> {
    let requested = PathBuf::from(&asked.host_path);
    let host_path = match fs::canonicalize(&requested) {
        Ok(path) => path,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => requested.clone(),
        Err(error) => {
            return Err(Failure::usage(format!("cannot look at {requested:?}")).because(&error));
        }
    };
    Ok(policy::Mount {
        host_path,
        requested,
        guest_path: asked.guest_path,
        read_only: asked.read_only,
    })
}

/// A decision for a person.
fn describe(decision: &PolicyDecision) -> String {
    let word = if decision.allowed { "allowed" } else { "denied" };
    let mut text = format!("{word}: {}\n  rule: {}\n", decision.reason, decision.rule);
    let mut remedy = decision.remedy.iter().flat_map(|remedy| remedy.lines());
    if let Some(first) = remedy.next() {
        let _ = writeln!(text, "  to allow it: {first}");
    }
    for line in remedy {
        let _ = writeln!(text, "    {line}");
    }
    let _ = writeln!(text, "  generation: {}", decision.generation);
    filter::plain(&text)
}
