//! A server in one line, and requests to it in another.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fleet::{Manager, Mode};
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use server::{Config, Running};
use supervisor::mock::{Mock, Reply as Script};
use supervisor::{Launcher, Supervisor};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// Longer than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(30);

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

pub(crate) struct Server {
    directory: TempDir,
    pub(crate) manager: Arc<Manager>,
    running: Option<Running>,
    address: SocketAddr,
    tls: TlsConnector,
    /// Of the unix socket's user, who may do everything, as a token.
    pub(crate) administrator: String,
}

/// Commands that the guests know.
fn mock() -> Mock {
    Mock::default()
        .on(["true"], Script::exit(0))
        .on(["false"], Script::exit(1))
        .on(["hello"], Script::exit(0).stdout("hello\n").stderr("oops\n"))
        .on(["bytes"], Script::exit(0).stdout([0xff, 0xfe]))
        .on(["cat"], Script::echo())
        .on(["sh", "-c", "cat"], Script::echo())
        .on(["sleep"], Script::exit(0).until_signalled())
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// With a configuration of its own.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::of(change, |_| {}).await
    }

    pub(crate) async fn of(
        change: impl FnOnce(&mut Config),
        change_fleet: impl FnOnce(&mut fleet::Config),
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let images = image_store(&directory.path().join("images"));
        let supervisor = Supervisor::with_engines(images, vec![Box::new(mock())]);
        Self::over(directory, supervisor, change, change_fleet).await
    }

    /// Over sandboxes on this host's kernel, with real files; none where they do not work.
    pub(crate) async fn on_this_host() -> Option<Self> {
        let launcher = Launcher { program: "/proc/self/exe".into(), arguments: Vec::new() };
        let supervisor = Supervisor::new(launcher).unwrap();
        if let Err(reason) = supervisor.engine("process").unwrap().available().await {
            eprintln!("not run on engine process: {reason}");
            return None;
        }
        Some(Self::over(tempfile::tempdir().unwrap(), supervisor, |_| {}, |_| {}).await)
    }

    async fn over(
        directory: TempDir,
        supervisor: Supervisor,
        change: impl FnOnce(&mut Config),
        change_fleet: impl FnOnce(&mut fleet::Config),
    ) -> Self {
        let supervisor = supervisor.with_runtime_directory(directory.path().join("kept"));
        let mut fleet = fleet::Config::new(Mode::Daemon, directory.path().join("data"));
        // Not into the keychain of whoever runs the tests.
        fleet.secrets.place = Some(secrets::Place::KeyFile);
        change_fleet(&mut fleet);
        let manager = Manager::open(fleet, supervisor).await.unwrap();
        let mut config = Config::new(directory.path().join("data"));
        config.listen = vec!["127.0.0.1:0".parse().unwrap()];
        config.unix_socket = Some(directory.path().join("run/api.sock"));
        change(&mut config);
        let running = server::serve(Arc::clone(&manager), config).await.unwrap();
        let address = running.addresses()[0];
        let tls = connector(&running.authority().unwrap());
        let administrator = String::new();
        let mut server =
            Self { directory, manager, running: Some(running), address, tls, administrator };
        server.administrator = server.token("admin", "owner", None, None).await;
        server
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("run/api.sock")
    }

    /// A token of this role, in this workspace.
    pub(crate) async fn token(
        &self,
        name: &str,
        role: &str,
        workspace: Option<&str>,
        operations: Option<&[&str]>,
    ) -> String {
        let mut body = json!({"name": name, "role": role});
        if let Some(workspace) = workspace {
            body["workspace"] = workspace.into();
        }
        if let Some(operations) = operations {
            body["operations"] = operations.into();
        }
        let reply = self.post("/v1/tokens").unix().json(&body).send().await;
        assert_eq!(reply.status, 201, "{reply:?}");
        reply.json()["secret"].as_str().unwrap().to_owned()
    }

    /// A sandbox of this workspace that is ready.
    pub(crate) async fn sandbox(&self, workspace: &str) -> String {
        self.sandbox_on("mock", workspace).await
    }

    pub(crate) async fn sandbox_on(&self, engine: &str, workspace: &str) -> String {
        let body = json!({"engine": engine, "memory_mb": 128, "workspace": workspace});
        let reply = self.post("/v1/sandboxes").unix().json(&body).send().await;
        assert_eq!(reply.status, 201, "{reply:?}");
        reply.json()["id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn call(&self, method: Method, target: &str) -> Call<'_> {
        let headers = vec![("host".into(), format!("localhost:{}", self.address.port()))];
        Call {
            server: self,
            method,
            target: target.into(),
            headers,
            body: Bytes::new(),
            unix: false,
        }
    }

    pub(crate) fn get(&self, target: &str) -> Call<'_> {
        self.call(Method::GET, target)
    }

    pub(crate) fn post(&self, target: &str) -> Call<'_> {
        self.call(Method::POST, target)
    }

    pub(crate) fn put(&self, target: &str) -> Call<'_> {
        self.call(Method::PUT, target)
    }

    pub(crate) fn patch(&self, target: &str) -> Call<'_> {
        self.call(Method::PATCH, target)
    }

    pub(crate) fn delete(&self, target: &str) -> Call<'_> {
        self.call(Method::DELETE, target)
    }

    pub(crate) async fn connect(&self) -> Box<dyn Stream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        Box::new(self.tls.connect(name, stream).await.unwrap())
    }

    pub(crate) async fn connect_unix(&self) -> Box<dyn Stream> {
        Box::new(UnixStream::connect(self.socket()).await.unwrap())
    }

    /// Sends these bytes as they are and gives what comes back until the server closes.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        // A server that has heard enough need not hear the rest.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(LONG, stream.read_to_end(&mut answer)).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) async fn shutdown(mut self, grace: Duration) {
        self.running.take().unwrap().shutdown(grace).await;
        self.manager.shutdown(LONG).await;
    }
}

fn image_store(root: &std::path::Path) -> image::Store {
    image::Store::open(root).unwrap()
}

fn connector(authority: &str) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// A request that is being put together.
pub(crate) struct Call<'a> {
    server: &'a Server,
    method: Method,
    target: String,
    headers: Vec<(String, String)>,
    body: Bytes,
    unix: bool,
}

impl Call<'_> {
    /// Over the unix socket, as this user.
    pub(crate) fn unix(mut self) -> Self {
        self.unix = true;
        self
    }

    pub(crate) fn token(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    /// As the administrator, over TLS.
    pub(crate) fn admin(self) -> Self {
        let token = self.server.administrator.clone();
        self.token(&token)
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        if name == "host" {
            self.headers.retain(|(name, _)| name != "host");
        }
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn json(self, body: &Value) -> Self {
        self.bytes("application/json", body.to_string())
    }

    pub(crate) fn bytes(mut self, media_type: &str, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self.header("content-type", media_type)
    }

    /// Sends it and gives the head of the answer; the rest may never end.
    pub(crate) async fn begin(self) -> http::Response<Incoming> {
        let stream = match self.unix {
            true => self.server.connect_unix().await,
            false => self.server.connect().await,
        };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder().method(self.method).uri(self.target);
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(self.body)).unwrap();
        tokio::time::timeout(LONG, sender.send_request(request)).await.unwrap().unwrap()
    }

    /// Sends it and gives all of the answer.
    pub(crate) async fn send(self) -> Reply {
        let (head, body) = self.begin().await.into_parts();
        let body = tokio::time::timeout(LONG, body.collect()).await.unwrap().unwrap();
        Reply { status: head.status.as_u16(), headers: head.headers, body: body.to_bytes() }
    }
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Status and code of a problem, which has to be one.
    #[track_caller]
    pub(crate) fn problem(&self) -> (u16, String) {
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status, "{self:?}");
        let id = self.header("x-request-id");
        assert_eq!(problem["instance"], format!("urn:sandforge:request:{id}"));
        (self.status, problem["code"].as_str().unwrap().to_owned())
    }

    /// Whether it is a problem of this code.
    #[track_caller]
    pub(crate) fn assert_problem(&self, status: u16, code: &str) {
        assert_eq!(self.problem(), (status, code.to_owned()), "{self:?}");
    }
}
