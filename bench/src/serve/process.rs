//! The server and the floor, each in a process of its own, and what is seen of them from outside.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use fleet::{Manager, Mode};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use supervisor::Supervisor;
use supervisor::mock::{Mock, Reply};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, rustls};

use super::load::{CREATE, Client, Stream, Wire};
use crate::Outcome;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What this program is started as.
const SERVER: &str = "__serve";
const FLOOR: &str = "__floor";

/// Rules as an administrator writes them, so that policy has to look through some.
const POLICY: &str = r#"
[resources]
cpu_max = 4
memory_mb_max = 4096
timeout_sec_max = 3600
sandboxes_max = 10000

[isolation]
minimum = "process"

[commands]
deny = ["git push *", ["rm", "-rf", "/"], "curl *", "sudo *"]

[env]
deny = ["AWS_*", "*_SECRET"]
"#;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Server,
    Floor,
}

/// A server in a process of its own.
pub(super) struct Served {
    child: Child,
    directory: tempfile::TempDir,
    port: u16,
    tls: TlsConnector,
}

/// What a process takes, in KiB.
pub(super) struct Memory {
    pub(super) rss: u64,
    pub(super) pss: u64,
    pub(super) anonymous: u64,
    pub(super) disk: u64,
    pub(super) files: usize,
}

impl Served {
    pub(super) fn start(kind: Kind) -> Result<Self> {
        // Below the working directory: a file system in memory would have no fsync.
        let directory = tempfile::Builder::new().prefix("bench-serve").tempdir_in(".")?;
        let mut child = Command::new("/proc/self/exe")
            .arg(if kind == Kind::Server { SERVER } else { FLOOR })
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().ok_or("no stdout")?;
        BufReader::new(output).read_line(&mut line)?;
        let port = line.trim().parse().map_err(|_| "the server did not come up; see above")?;
        let tls = connector(&directory.path().join("ca.pem"))?;
        Ok(Self { child, directory, port, tls })
    }

    pub(super) async fn end(mut self) -> Outcome {
        drop(self.child.stdin.take());
        let status = tokio::task::spawn_blocking(move || self.child.wait()).await??;
        if status.success() {
            Ok(())
        } else {
            Err(format!("the server ended with {status}").into())
        }
    }

    async fn connect(&self, wire: Wire) -> Result<Box<dyn Stream>> {
        Ok(match wire {
            Wire::Unix => {
                Box::new(UnixStream::connect(self.directory.path().join("run/api.sock")).await?)
            }
            Wire::Tls => {
                let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
                stream.set_nodelay(true)?;
                Box::new(self.tls.connect(ServerName::try_from("localhost")?, stream).await?)
            }
        })
    }

    /// A connection for each token.
    pub(super) async fn clients(&self, wire: Wire, tokens: &[String]) -> Result<Vec<Client>> {
        let mut clients = Vec::new();
        for token in tokens {
            clients.push(Client::new(self.connect(wire).await?, token));
        }
        Ok(clients)
    }

    /// Tokens of members, each of its own workspace.
    pub(super) async fn tokens(&self, many: usize) -> Result<Vec<String>> {
        let administrator = std::fs::read_to_string(self.directory.path().join("token"))?;
        let mut client = Client::new(self.connect(Wire::Unix).await?, &administrator);
        let mut tokens = Vec::new();
        for number in 0..many {
            let body =
                format!(r#"{{"name":"client-{number}","role":"member","workspace":"w{number}"}}"#);
            let made = client.ask("POST", "/v1/tokens", &body).await.map_err(|e| e.to_string())?;
            let made: serde_json::Value = serde_json::from_slice(made)?;
            tokens.push(made["secret"].as_str().ok_or("no secret")?.to_owned());
        }
        Ok(tokens)
    }

    /// A sandbox of each token's workspace.
    pub(super) async fn sandboxes(&self, tokens: &[String]) -> Result<Vec<String>> {
        let mut made = Vec::new();
        for mut client in self.clients(Wire::Unix, tokens).await? {
            let answer = client.ask("POST", "/v1/sandboxes", CREATE).await;
            let answer: serde_json::Value =
                serde_json::from_slice(answer.map_err(|error| error.to_string())?)?;
            made.push(answer["id"].as_str().ok_or("no id")?.to_owned());
        }
        Ok(made)
    }

    /// CPU time so far, of user and kernel.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields = text.rsplit_once(')').ok_or("stat")?.1.split_whitespace();
        // utime and stime, the 14th and 15th of all.
        let ticks: u64 =
            fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Ok(Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second())?)
    }

    pub(super) fn memory(&self) -> Result<Memory> {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let text = std::fs::read_to_string(process.join("smaps_rollup"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        Ok(Memory {
            rss: field("Rss:"),
            pss: field("Pss:"),
            anonymous: field("Anonymous:"),
            disk: super::disk(&self.directory.path().join("data"))?,
            files: std::fs::read_dir(process.join("fd"))?.count(),
        })
    }
}

fn connector(authority: &Path) -> Result<TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority)?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

// --- inside of it ---------------------------------------------------------

pub(super) fn child(arguments: &[String]) -> Option<ExitCode> {
    let (kind, directory) = match arguments {
        [kind, directory] if kind == SERVER => (Kind::Server, directory),
        [kind, directory] if kind == FLOOR => (Kind::Floor, directory),
        _ => return None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let served = runtime.map_err(Into::into).and_then(|runtime| {
        runtime.block_on(async {
            match kind {
                Kind::Server => serve(Path::new(directory)).await,
                Kind::Floor => floor(Path::new(directory)).await,
            }
        })
    });
    Some(match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    })
}

/// Says where it is, and stays until the parent closes its end.
async fn stay(port: u16) -> Outcome {
    println!("{port}");
    std::io::stdout().flush()?;
    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    Ok(())
}

async fn serve(directory: &Path) -> Outcome {
    let mock = Mock::default().on(["true"], Reply::exit(0));
    let images = image::Store::open(&directory.join("images"))?;
    let supervisor = Supervisor::with_engines(images, vec![Box::new(mock)])
        .with_runtime_directory(directory.join("kept"));
    let mut fleet = fleet::Config::new(Mode::Daemon, directory.join("data"));
    let policy = directory.join("policy.toml");
    std::fs::write(&policy, POLICY)?;
    fleet.policy = Some(policy);
    let (secret, _) = access::token::generate()?;
    std::fs::write(directory.join("token"), secret.expose())?;
    fleet.administrator_token = Some(secret);
    let manager = Manager::open(fleet, supervisor).await?;
    let mut config = server::Config::new(directory.join("data"));
    config.listen = vec![([127, 0, 0, 1], 0).into()];
    config.unix_socket = Some(directory.join("run/api.sock"));
    // Counted, and never too many.
    config.limits.requests_per_second = u32::MAX;
    config.limits.burst = u32::MAX;
    let running = server::serve(Arc::clone(&manager), config).await?;
    std::fs::write(directory.join("ca.pem"), running.authority()?)?;
    stay(running.addresses()[0].port()).await?;
    running.shutdown(Duration::from_secs(10)).await;
    manager.shutdown(Duration::from_secs(10)).await;
    Ok(())
}

/// What a server costs that looks at nothing and remembers nothing.
async fn floor(directory: &Path) -> Outcome {
    const ANSWER: &str = r#"{"id":"sb-0000000000000000","state":"ready"}"#;
    let routes: Router = Router::new()
        .route("/", get(|| async { ([("content-type", "application/json")], ANSWER) }));
    std::fs::create_dir(directory.join("run"))?;
    let unix = UnixListener::bind(directory.join("run/api.sock"))?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    std::fs::write(directory.join("ca.pem"), certified.cert.pem())?;
    let key = PrivateKeyDer::from_pem_slice(certified.signing_key.serialize_pem().as_bytes())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)?;
    let tls = TlsListener { listener, acceptor: TlsAcceptor::from(Arc::new(config)) };
    tokio::spawn(axum::serve(unix, routes.clone()).into_future());
    tokio::spawn(axum::serve(tls, routes).into_future());
    stay(port).await
}

/// TLS for axum's own server.
struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = tokio_rustls::server::TlsStream<TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((stream, address)) = self.listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
