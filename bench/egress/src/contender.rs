//! Who stands between client and server, each in a process of its own, and what is seen of it from
//! outside.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::io::AsyncReadExt as _;

use crate::load::Target;
use crate::origin::{Origin, PLACEHOLDER, SECRET};
use crate::{Outcome, Protocol, gateway, hudsucker};

/// What this program is started as.
const GATEWAY: &str = "__egress-gateway";
const HUDSUCKER: &str = "__egress-hudsucker";
/// Of what is not in the workspace.
const MITMPROXY: &str = "11.0.2";
const SRT: &str = "0.0.83";

/// Who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Direct,
    Gateway,
    /// Asked as a proxy, as the others are.
    GatewayByConnect,
    /// Nothing is written down.
    Unaudited,
    Hudsucker,
    Mitmproxy,
    Srt,
}

impl Kind {
    pub(crate) const ALL: [Self; 7] = [
        Self::Direct,
        Self::Gateway,
        Self::GatewayByConnect,
        Self::Unaudited,
        Self::Hudsucker,
        Self::Mitmproxy,
        Self::Srt,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Gateway => "gateway",
            Self::GatewayByConnect => "gateway, by CONNECT",
            Self::Unaudited => "gateway, records dropped",
            Self::Hudsucker => "hudsucker",
            Self::Mitmproxy => "mitmproxy",
            Self::Srt => "srt",
        }
    }

    /// What it is named by on the command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::GatewayByConnect => "connect",
            Self::Unaudited => "unaudited",
            other => other.name(),
        }
    }

    /// The credential that the server is to get from it.
    fn credential(self) -> &'static str {
        match self {
            Self::Direct | Self::Hudsucker => "placeholder",
            _ => "real",
        }
    }

    /// The server's echo of the credential does not reach the client.
    fn redacts(self) -> bool {
        !matches!(self, Self::Direct | Self::Hudsucker | Self::Srt)
    }
}

/// One that runs.
pub(crate) struct Contender {
    pub(crate) kind: Kind,
    child: Option<Child>,
    targets: [Option<Target>; 2],
}

/// What a process takes, in MB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) resident: f64,
    /// Of it what no file is behind.
    pub(crate) anonymous: f64,
}

impl Contender {
    /// Starts it. An error is a reason for which it cannot be had.
    pub(crate) fn start(kind: Kind, origin: &Origin, directory: &Path) -> Outcome<Self> {
        let directory = directory.join(kind.word());
        std::fs::create_dir(&directory)?;
        std::fs::copy(&origin.roots, directory.join("origin.pem"))?;
        let [h1, h2] = [origin.port(Protocol::H1), origin.port(Protocol::H2)];
        let localhost = |protocol| format!("localhost:{}", origin.port(protocol));
        let own = |word: &str, arguments: &[String]| {
            let mut command = Command::new("/proc/self/exe");
            command.arg(word).arg(&directory).args(arguments);
            command
        };
        let command = match kind {
            Kind::Direct => None,
            Kind::Gateway | Kind::GatewayByConnect | Kind::Unaudited => {
                let audited = kind != Kind::Unaudited;
                Some(own(GATEWAY, &[h1.to_string(), h2.to_string(), audited.to_string()]))
            }
            Kind::Hudsucker => Some(own(HUDSUCKER, &[])),
            Kind::Mitmproxy => Some(mitmproxy(&directory)?),
            Kind::Srt => Some(srt(&directory)?),
        };
        let (child, ports) = match command {
            None => (None, Vec::new()),
            Some(command) => {
                let (child, ports) = spawn(command)?;
                (Some(child), ports)
            }
        };
        let port = |at: usize| ports.get(at).copied().ok_or("it did not say its ports");
        let target = |port, authority: String, is_proxy, pem: &str, protocol| {
            let roots = std::fs::read(directory.join(pem))?;
            Target::new(port, authority, is_proxy, &roots, protocol).map(Some)
        };
        let [one, two] = ["one.example", "two.example"].map(str::to_owned);
        use Protocol::{H1, H2};
        let targets = match kind {
            Kind::Direct => [
                target(h1, localhost(H1), false, "origin.pem", H1)?,
                target(h2, localhost(H2), false, "origin.pem", H2)?,
            ],
            Kind::Gateway | Kind::Unaudited => [
                target(port(0)?, one, false, "gateway.pem", H1)?,
                target(port(1)?, two, false, "gateway.pem", H2)?,
            ],
            Kind::GatewayByConnect => [
                target(port(2)?, one, true, "gateway.pem", H1)?,
                target(port(2)?, two, true, "gateway.pem", H2)?,
            ],
            Kind::Hudsucker => [
                target(port(0)?, localhost(H1), true, "hudsucker.pem", H1)?,
                target(port(0)?, localhost(H2), true, "hudsucker.pem", H2)?,
            ],
            Kind::Mitmproxy => [
                target(port(0)?, localhost(H1), true, "mitmproxy-ca-cert.pem", H1)?,
                target(port(0)?, localhost(H2), true, "mitmproxy-ca-cert.pem", H2)?,
            ],
            // It speaks HTTP/1.1 only.
            Kind::Srt => [target(port(0)?, localhost(H1), true, "srt.pem", H1)?, None],
        };
        Ok(Self { kind, child, targets })
    }

    pub(crate) fn target(&self, protocol: Protocol) -> Option<&Target> {
        match protocol {
            Protocol::H1 => self.targets[0].as_ref(),
            Protocol::H2 => self.targets[1].as_ref(),
        }
    }

    /// That it does what is said of it.
    pub(crate) async fn check(&self) -> Outcome {
        for target in self.targets.iter().flatten() {
            let mut client = target.client().await?;
            let answer = client.answer(crate::origin::ECHO).await?;
            let wanted = self.kind.credential();
            if answer.credential != wanted {
                let name = self.kind.name();
                return Err(format!(
                    "{name}: the server got `{}`, not `{wanted}`",
                    answer.credential
                )
                .into());
            }
            let shows = String::from_utf8_lossy(&answer.body).contains(SECRET);
            if shows && self.kind.redacts() {
                return Err(format!("{}: the secret came back", self.kind.name()).into());
            }
        }
        Ok(())
    }

    /// CPU time so far, of user and kernel.
    pub(crate) fn cpu(&self) -> Outcome<Duration> {
        let Some(child) = &self.child else { return Ok(Duration::ZERO) };
        let text = std::fs::read_to_string(format!("/proc/{}/stat", child.id()))?;
        let fields = text.rsplit_once(')').ok_or("stat")?.1.split_whitespace();
        // utime and stime, the 14th and 15th of all.
        let ticks: u64 =
            fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Ok(Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second())?)
    }

    pub(crate) fn memory(&self) -> Outcome<Option<Memory>> {
        let Some(child) = &self.child else { return Ok(None) };
        let text = std::fs::read_to_string(format!("/proc/{}/status", child.id()))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib: Option<f64> =
                line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            kib.unwrap_or(f64::NAN) * 1024.0 / 1e6
        };
        Ok(Some(Memory { resident: field("VmRSS:"), anonymous: field("RssAnon:") }))
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The first processor is the proxies'; client and server have the others. With one only, it is
/// shared.
pub(crate) fn divide() -> Outcome {
    place(false)
}

fn place(is_proxy: bool) -> Outcome {
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online")?;
    let last: usize = online.trim().rsplit([',', '-']).next().unwrap_or("0").parse()?;
    if last == 0 {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for cpu in (0..=last).filter(|cpu| (*cpu == 0) == is_proxy) {
        set.set(cpu);
    }
    sched_setaffinity(None, &set)?;
    Ok(())
}

/// Starts a process that says its ports, or one, in its first line.
fn spawn(mut command: Command) -> Outcome<(Child, Vec<u16>)> {
    let former = sched_getaffinity(None)?;
    place(true)?;
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    sched_setaffinity(None, &former)?;
    let mut child = spawned.map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    let mut output = BufReader::new(child.stdout.take().ok_or("no stdout")?);
    let mut ports = Vec::new();
    let mut line = String::new();
    // Some say other things first.
    for _ in 0..20 {
        line.clear();
        if output.read_line(&mut line)? == 0 {
            break;
        }
        let said = line.trim().trim_end_matches('.');
        let said = said.rsplit_once("listening at 127.0.0.1:").map_or(said, |(_, port)| port);
        ports = said.split(' ').map(str::parse).collect::<Result<_, _>>().unwrap_or_default();
        if !ports.is_empty() {
            break;
        }
    }
    if ports.is_empty() {
        let _ = child.kill();
        child.wait()?;
        return Err(format!("it did not come up: {line}").into());
    }
    // What it says later is nobody's concern, and must not stop it.
    std::thread::spawn(move || {
        let mut rest = Vec::new();
        let _ = output.read_to_end(&mut rest);
    });
    Ok((child, ports))
}

// --- those of others ------------------------------------------------------

fn cache() -> Outcome<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let directory =
        cache.or_else(home).ok_or("neither XDG_CACHE_HOME nor HOME is set")?.join("sandforge");
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}

fn succeeds(command: &mut Command) -> Outcome {
    let output = command.stdin(Stdio::null()).output();
    let program = command.get_program().to_string_lossy().into_owned();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("{program} failed: {}", said.lines().last().unwrap_or_default()).into())
}

/// mitmproxy, which puts the credential in and takes it out of bodies by its own options. It streams
/// what is long, and events.
fn mitmproxy(directory: &Path) -> Outcome<Command> {
    let venv = cache()?.join(format!("venv-mitmproxy-{MITMPROXY}"));
    let program = venv.join("bin/mitmdump");
    if !program.exists() {
        succeeds(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
        let mut install = Command::new(venv.join("bin/pip"));
        install.args(["install", "--quiet", "--disable-pip-version-check", "--retries", "1"]);
        succeeds(install.arg(format!("mitmproxy=={MITMPROXY}")))?;
    }
    let script = directory.join("bench.py");
    std::fs::write(
        &script,
        format!(
            "def request(flow):\n    \
             if flow.request.headers.get('authorization') == 'Bearer {PLACEHOLDER}':\n        \
             flow.request.headers['authorization'] = 'Bearer {SECRET}'\n\n\
             def responseheaders(flow):\n    \
             if 'event-stream' in flow.response.headers.get('content-type', ''):\n        \
             flow.response.stream = lambda data: data.replace(b'{SECRET}', b'{PLACEHOLDER}')\n\n\
             def response(flow):\n    \
             if flow.response.raw_content and b'{SECRET}' in flow.response.raw_content:\n        \
             flow.response.raw_content = flow.response.raw_content.replace(b'{SECRET}', b'{PLACEHOLDER}')\n"
        ),
    )?;
    let mut command = Command::new(program);
    command.args(["--listen-host", "127.0.0.1", "--listen-port", "0"]);
    command.args(["--set", "flow_detail=0", "--set", "stream_large_bodies=1m"]);
    command.arg("--set").arg(format!("confdir={}", directory.display()));
    let roots = directory.join("origin.pem");
    command.arg("--set").arg(format!("ssl_verify_upstream_trusted_ca={}", roots.display()));
    command.arg("--scripts").arg(script).env("PYTHONUNBUFFERED", "1");
    Ok(command)
}

/// The proxy of the srt sandbox, which puts the credential in by its own hook and takes nothing out.
fn srt(directory: &Path) -> Outcome<Command> {
    let prefix = cache()?.join(format!("npm-srt-{SRT}"));
    let package = prefix.join("node_modules/@anthropic-ai/sandbox-runtime");
    if !package.join("package.json").exists() {
        let mut install = Command::new("npm");
        install.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]).arg(&prefix);
        succeeds(install.arg(format!("@anthropic-ai/sandbox-runtime@{SRT}")))?;
    }
    let script = directory.join("srt.mjs");
    std::fs::write(&script, include_str!("srt.mjs"))?;
    let mut command = Command::new("node");
    command.arg(script).arg(package).arg(directory.join("origin.pem"));
    command.arg(directory.join("srt.pem")).args([SECRET, PLACEHOLDER]);
    Ok(command)
}

// --- inside of ours -------------------------------------------------------

pub(crate) fn child(arguments: &[String]) -> Option<ExitCode> {
    let (word, rest) = arguments.split_first()?;
    if word != GATEWAY && word != HUDSUCKER {
        return None;
    }
    let serve = async {
        let directory = Path::new(rest.first().ok_or("no directory")?);
        let ports = match rest {
            [_, h1, h2, audited] => {
                gateway::serve(directory, h1.parse()?, h2.parse()?, audited.parse()?)
                    .await?
                    .to_vec()
            }
            _ => vec![hudsucker::serve(directory).await?],
        };
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        println!("{}", ports.join(" "));
        std::io::stdout().flush()?;
        tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
        Outcome::Ok(())
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let served = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(serve));
    Some(match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    })
}
