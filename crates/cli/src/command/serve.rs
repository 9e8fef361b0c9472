//! `sandforge serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use fleet::{Manager, Mode, paths};
use sd_notify::NotifyState;
use server::{Certificate, Config, Telemetry};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use wire::text::Secret;

use super::Context;
use crate::failure::{Failure, Kind};
use crate::progress::Line;
use crate::service::{self, Scope};
use crate::signals::Signals;
use crate::{connection, embedded};

/// What is being answered when the server stops has so long.
const GRACE: Duration = Duration::from_secs(10);
/// And what is under way in sandboxes.
const DEADLINE: Duration = Duration::from_secs(30);

/// Serve the API to many clients, for weeks
#[derive(Args)]
#[command(after_help = "\
Examples:
  sandforge serve                                     this user's own, on the socket and on
                                                      https://localhost:8585
  sandforge serve --listen none                       on the socket alone
  sandforge serve --listen 0.0.0.0:8585 --host box.example.org
  sandforge serve --print-ca > ca.pem                 what other computers have to trust
  sandforge serve --install-service                   from now on, at each login

Who calls on the socket is known by user id; everybody else has a token. SANDFORGE_TOKEN, if it is
set when the server starts, is the administrator's; `sandforge token create` makes others.
TERM and INT end it in order: what is being answered is, and the sandboxes go on.")]
pub(crate) struct ServeArgs {
    /// Speak TLS on this address; may be given several times; none for nowhere
    /// [default: 127.0.0.1:8585 and `[::1]:8585`]
    #[arg(long, value_name = "ADDRESS:PORT|none")]
    listen: Vec<Listen>,

    /// Make the unix socket here [default: api.sock in the runtime directory]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// A certificate of your own, in PEM, the server's first [default: one is made]
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// Its private key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// Another name of this server, for its certificate and the Host header; may be given several
    /// times
    #[arg(long, value_name = "NAME")]
    host: Vec<String>,

    /// Let web pages of this origin call, such as `https://example.org`; may be given several times
    #[arg(long, value_name = "ORIGIN")]
    origin: Vec<String>,

    /// Print the certificate that clients have to trust, and serve nothing
    #[arg(long)]
    print_ca: bool,

    /// The workspace of callers that see all workspaces and name none
    #[arg(long, value_name = "NAME", default_value = "default")]
    workspace: String,

    /// The administrator's policy [default: policy.toml in the configuration directory]
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,

    /// A project's policy, which may only narrow
    #[arg(long, value_name = "FILE")]
    project_policy: Option<PathBuf>,

    /// Take commands and new sandboxes only with a signature; see `sandforge key`
    #[arg(long)]
    require_signatures: bool,

    /// Most sandboxes that have a machine at once [default: 1000]
    #[arg(long, value_name = "N")]
    max_sandboxes: Option<usize>,

    /// Most machines that come up at once [default: twice the CPUs, four at least]
    #[arg(long, value_name = "N")]
    max_booting: Option<usize>,

    /// Let systemd start it, with the other flags of this line, now and at each login or boot
    #[arg(long, value_name = "SCOPE", num_args = 0..=1, default_missing_value = "user", value_enum)]
    install_service: Option<Install>,

    /// Take it out of systemd again
    #[arg(
        long,
        value_name = "SCOPE",
        num_args = 0..=1,
        default_missing_value = "user",
        value_enum,
        conflicts_with = "install_service"
    )]
    uninstall_service: Option<Install>,
}

/// Whose service it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Install {
    /// This user's, from login on
    User,
    /// The computer's, from boot on; for root
    System,
}

impl From<Install> for Scope {
    fn from(install: Install) -> Self {
        match install {
            Install::User => Self::User,
            Install::System => Self::System,
        }
    }
}

/// One `--listen`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listen {
    At(SocketAddr),
    Nowhere,
}

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::Nowhere);
        }
        text.parse().map(Self::At).map_err(|_| {
            format!("{text:?} is not an address with a port, such as 127.0.0.1:8585 or [::1]:8585")
        })
    }
}

impl ServeArgs {
    pub(crate) fn run(self, context: &Context) -> Result<u8, Failure> {
        let mut line = Line::new(context.verbosity);
        if let Some(scope) = self.uninstall_service {
            return service::uninstall(scope.into(), &mut line);
        }
        let data = paths::data().map_err(|error| Failure::usage(error.to_string()))?;
        let config = self.server(data.clone())?;
        if self.print_ca {
            let pem = server::authority(&config.certificate)
                .map_err(|error| Failure::from_error(Kind::NotFound, &error))?;
            super::print(&pem)?;
            return Ok(0);
        }
        if let Some(scope) = self.install_service {
            return service::install(scope.into(), std::env::args_os().skip(1), &mut line);
        }
        let fleet = self.fleet(data)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::failed("cannot start").because(&error))?;
        let done = runtime.block_on(serve(fleet, config, &mut line));
        // Threads that wait for a guest that hangs are not waited for.
        runtime.shutdown_background();
        done
    }

    fn server(&self, data: PathBuf) -> Result<Config, Failure> {
        let mut config = Config::new(data);
        if !self.listen.is_empty() {
            config.listen = self
                .listen
                .iter()
                .filter_map(|listen| match listen {
                    Listen::At(address) => Some(*address),
                    Listen::Nowhere => None,
                })
                .collect();
            if config.listen.len() < self.listen.len() && !config.listen.is_empty() {
                return Err(Failure::usage("--listen none goes with no other --listen"));
            }
        }
        config.unix_socket = Some(self.socket.clone().unwrap_or_else(paths::socket));
        if let (Some(chain), Some(key)) = (&self.tls_cert, &self.tls_key) {
            config.certificate = Certificate::Files { chain: chain.clone(), key: key.clone() };
        }
        config.hosts.clone_from(&self.host);
        config.origins.clone_from(&self.origin);
        Ok(config)
    }

    fn fleet(&self, data: PathBuf) -> Result<fleet::Config, Failure> {
        let mut config = fleet::Config::new(Mode::Daemon, data);
        let default = || paths::config().ok().map(|directory| directory.join("policy.toml"));
        config.policy = self.policy.clone().or_else(default);
        if let Ok(directory) = paths::config() {
            config.upstream =
                fleet::upstream(&directory).map_err(|error| embedded::open_failure(&error))?;
        }
        config.project_policy.clone_from(&self.project_policy);
        config.require_signatures = self.require_signatures;
        config.secrets = crate::secrets::options(false)?;
        config.catalogue = crate::secrets::catalogue()?;
        config.default_workspace.clone_from(&self.workspace);
        config.max_sandboxes = self.max_sandboxes.unwrap_or(config.max_sandboxes);
        config.max_booting = self.max_booting.unwrap_or(config.max_booting);
        config.administrator_token = connection::variable(connection::TOKEN)?
            .map(|token| Secret::new(token.into_bytes()))
            .transpose()
            .map_err(|error| Failure::usage(format!("SANDFORGE_TOKEN {error}")))?;
        Ok(config)
    }
}

async fn serve(fleet: fleet::Config, config: Config, line: &mut Line) -> Result<u8, Failure> {
    let mut signals = Signals::catch()?;
    let telemetry = Telemetry::start().map_err(|error| Failure::from_error(Kind::Usage, &error))?;
    let filter = EnvFilter::try_from_env("SANDFORGE_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::registry()
        .with(filter)
        .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr))
        .with(telemetry.as_ref().map(Telemetry::layer))
        .init();
    let manager = Manager::open(fleet, super::supervisor()?)
        .await
        .map_err(|error| embedded::open_failure(&error))?;
    let socket = config.unix_socket.clone();
    let running = server::serve(manager.clone(), config)
        .await
        .map_err(|error| Failure::from_error(Kind::Failed, &error))?;
    for address in running.addresses() {
        line.notice(&format!("serving on https://{address}"));
    }
    if let Some(socket) = socket {
        line.notice(&format!("serving on {}", socket.display()));
    }
    notify(&[NotifyState::Ready]);
    let keeping = tokio::spawn(keep_alive(manager.clone()));
    signals.next().await;
    notify(&[NotifyState::Stopping]);
    line.notice("stopping; the sandboxes go on");
    keeping.abort();
    // A second signal does not wait.
    let ending = async {
        running.shutdown(GRACE).await;
        manager.shutdown(DEADLINE).await;
    };
    signals.unless_asked(ending).await?;
    if let Some(telemetry) = telemetry {
        // It blocks, and there is nothing else left to do.
        tokio::task::block_in_place(|| telemetry.shutdown());
    }
    Ok(0)
}

/// Tells the service manager, where there is one. That it does not listen is its own affair.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager is not told");
    }
}

/// Says to the service manager, as often as it wants to hear it, that work is taken.
async fn keep_alive(manager: std::sync::Arc<Manager>) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval(period / 2);
    loop {
        ticks.tick().await;
        if manager.ready() {
            notify(&[NotifyState::Watchdog]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_port_or_is_none() {
        assert_eq!("none".parse(), Ok(Listen::Nowhere));
        assert_eq!("[::1]:1".parse(), Ok(Listen::At(([0, 0, 0, 0, 0, 0, 0, 1], 1).into())));
        for text in ["", "8585", "localhost:8585", "127.0.0.1"] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
    }
}
