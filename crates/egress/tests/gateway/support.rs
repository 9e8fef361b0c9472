//! A sandbox's gateway, a guest that speaks to it, and origins that record what reaches them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use canonical::{Authority, Host};
use egress::{Config, Credential, Event, Gateway, Journal, Options, Upstream};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rules::{Layer, Mode, Rules};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use services::{Charset, Kind, Service, Shape, Slot};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpListener;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use wire::text::Secret;

pub(crate) const SECRET: &str = "sk-real-5f1d3c7b9a2e4680abcdef";
pub(crate) const PLACEHOLDER: &str = "sk-fake-0011223344556677889900";
pub(crate) const OTHER_SECRET: &str = "gh-real-99887766554433221100aa";
pub(crate) const OTHER_PLACEHOLDER: &str = "gh-fake-aabbccddeeff0123456789";

/// Hosts that are `api.example` too.
pub(crate) const AWS: [&str; 4] = [
    "bedrock-runtime.eu-central-1.amazonaws.com",
    "bucket.s3.eu-central-1.amazonaws.com",
    "s3.eu-central-1.amazonaws.com",
    "bucket--euc1-az1--x-s3.s3express-euc1-az1.eu-central-1.amazonaws.com",
];

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

#[derive(Default)]
pub(crate) struct Events(Mutex<Vec<Event>>, AtomicBool);

impl Journal for Events {
    fn record(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }

    fn is_ready(&self) -> bool {
        !self.1.load(Ordering::Relaxed)
    }
}

impl Events {
    /// There is no room for more, from now on.
    pub(crate) fn fill(&self) {
        self.1.store(true, Ordering::Relaxed);
    }

    /// There is room again.
    pub(crate) fn empty(&self) {
        self.1.store(false, Ordering::Relaxed);
    }

    pub(crate) fn all(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }
}

/// A certificate authority that origins are certified by.
pub(crate) struct Roots {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Roots {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn config(&self, names: &[&str], protocols: &[&str]) -> Arc<ServerConfig> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        self.certified(&CertificateParams::new(names).unwrap(), protocols, false)
    }

    /// One with this certificate, which asks for one of its clients too if `wants_client`.
    pub(crate) fn certified(
        &self,
        params: &CertificateParams,
        protocols: &[&str],
        wants_client: bool,
    ) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match wants_client {
            false => builder.with_no_client_auth(),
            true => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(roots.into(), provider());
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let mut config = builder
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// What an origin does with a request: gets its head and body, gives all of the answer.
pub(crate) type Answer = Arc<dyn Fn(&str, &[u8]) -> Vec<u8> + Send + Sync>;

/// A server that records the bytes of every connection, without the TLS.
#[derive(Clone)]
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    connections: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Origin {
    /// One that speaks HTTP/1.1 over TLS, or in the clear without a configuration.
    pub(crate) async fn start(tls: Option<Arc<ServerConfig>>, answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let all = connections.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let place = {
                    let mut all = all.lock().unwrap();
                    all.push(Vec::new());
                    all.len() - 1
                };
                let (all, answer, tls) = (all.clone(), answer.clone(), tls.clone());
                tokio::spawn(async move {
                    let record =
                        move |bytes: &[u8]| all.lock().unwrap()[place].extend_from_slice(bytes);
                    match tls {
                        None => serve(stream, record, answer).await,
                        Some(config) => {
                            if let Ok(stream) = TlsAcceptor::from(config).accept(stream).await {
                                serve(stream, record, answer).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, connections }
    }

    /// One that a test serves itself.
    pub(crate) fn listening(address: SocketAddr) -> Self {
        Self { address, connections: Arc::default() }
    }

    pub(crate) fn opened(&self) -> usize {
        let mut all = self.connections.lock().unwrap();
        all.push(Vec::new());
        all.len() - 1
    }

    pub(crate) fn heard_at(&self, place: usize, text: &str) {
        self.connections.lock().unwrap()[place].extend_from_slice(text.as_bytes());
    }

    /// What each connection saw.
    pub(crate) fn each(&self) -> Vec<String> {
        let all = self.connections.lock().unwrap();
        all.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }

    pub(crate) fn heard(&self, text: &str) {
        if let Some(last) = self.connections.lock().unwrap().last_mut() {
            last.extend_from_slice(text.as_bytes());
        }
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.lock().unwrap().len()
    }

    /// All bytes of all connections.
    pub(crate) fn seen(&self) -> String {
        let all = self.connections.lock().unwrap();
        String::from_utf8_lossy(&all.concat()).into_owned()
    }
}

/// Requests one after the other, with bodies by length or by chunks.
async fn serve(mut stream: impl Stream, record: impl Fn(&[u8]), answer: Answer) {
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = find(&buffer, b"\r\n\r\n") {
                break at + 4;
            }
            let mut piece = [0; 4096];
            match stream.read(&mut piece).await {
                Ok(count) if count > 0 => {
                    record(&piece[..count]);
                    buffer.extend_from_slice(&piece[..count]);
                }
                _ => return,
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).to_lowercase();
        buffer.drain(..end);
        let length: Option<usize> = head
            .split("\r\n")
            .find_map(|line| line.strip_prefix("content-length: "))
            .map(|length| length.parse().unwrap());
        let is_chunked = head.contains("transfer-encoding: chunked");
        let body = loop {
            let complete = match (length, is_chunked) {
                (Some(length), _) => (buffer.len() >= length).then_some(length),
                (None, true) => find(&buffer, b"0\r\n\r\n").map(|at| at + 5),
                (None, false) => Some(0),
            };
            if let Some(length) = complete {
                break buffer.drain(..length).collect::<Vec<u8>>();
            }
            let mut piece = [0; 4096];
            match stream.read(&mut piece).await {
                Ok(count) if count > 0 => {
                    record(&piece[..count]);
                    buffer.extend_from_slice(&piece[..count]);
                }
                _ => return,
            }
        };
        let answer = answer(&head, &body);
        if stream.write_all(&answer).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        if find(&answer, b"\r\nConnection: close\r\n").is_some() {
            stream.shutdown().await.ok();
            return;
        }
        if answer.starts_with(b"HTTP/1.1 101") {
            stream.write_all(&std::mem::take(&mut buffer)).await.ok();
            let mut piece = [0; 4096];
            while let Ok(count) = stream.read(&mut piece).await {
                if count == 0 {
                    return;
                }
                record(&piece[..count]);
            }
        }
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

pub(crate) fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// A service of the tests: a bearer token, a header and Basic.
pub(crate) fn service(name: &str, host: &str) -> Service {
    Service {
        name: name.into(),
        env: vec![format!("{}_API_KEY", name.to_uppercase())],
        extra_env: Vec::new(),
        base_url_env: Vec::new(),
        placeholder: Shape { prefix: "sk-".into(), charset: Charset::Hex, length: None },
        inject_hosts: vec![Authority::parse(host, 443).unwrap()],
        plain_hosts: Vec::new(),
        slots: vec![
            Slot::Header { name: "authorization".into(), scheme: Some("Bearer".into()) },
            Slot::Header { name: "x-api-key".into(), scheme: None },
            Slot::Basic { username: Some("x-access-token".into()) },
            Slot::Query { key: "key".into(), header: Some("x-api-key".into()) },
            Slot::WebSocketProtocol { prefix: "insecure-api-key.".into() },
        ],
        kind: Kind::Static,
        leniency: canonical::Leniency::default(),
        git: None,
        docker: Vec::new(),
        foreign_credentials: false,
        read_only: vec!["READ /**".into()],
        full: vec!["ANY /**".into(), "ws /**".into(), "grpc **/*".into()],
        deny: vec!["POST /v1/keys".into()],
    }
}

/// A sandbox with `api.example` (a credential), `other.example` (another one's) and `plain.example`.
pub(crate) struct World {
    pub(crate) gateway: Gateway,
    pub(crate) events: Arc<Events>,
    pub(crate) api: Origin,
    pub(crate) other: Origin,
    pub(crate) plain: Origin,
}

pub(crate) struct Setup {
    pub(crate) answer: Answer,
    /// Lines beside those of the services.
    pub(crate) allow: Vec<&'static str>,
    pub(crate) deny: Vec<&'static str>,
    pub(crate) protocols: Vec<&'static str>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            answer: Arc::new(|_, _| ok("hello")),
            allow: Vec::new(),
            deny: Vec::new(),
            protocols: vec!["http/1.1"],
        }
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Setup::default()).await
    }

    pub(crate) async fn answering(
        answer: impl Fn(&str, &[u8]) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        Self::with(Setup { answer: Arc::new(answer), ..Setup::default() }).await
    }

    pub(crate) async fn with(setup: Setup) -> Self {
        let roots = Roots::new();
        let names = ["api.example", "other.example", "plain.example", "tunnel.example"];
        let tls = roots.config(&[&names[..], &AWS].concat(), &setup.protocols);
        let api = Origin::start(Some(tls.clone()), setup.answer.clone()).await;
        let other = Origin::start(Some(tls.clone()), setup.answer.clone()).await;
        let plain = Origin::start(Some(tls), setup.answer.clone()).await;
        let clear = Origin::start(None, setup.answer).await;
        Self::at(&roots, setup.allow, &setup.deny, api, other, plain, &clear)
    }

    pub(crate) fn at(
        roots: &Roots,
        allow: Vec<&'static str>,
        deny: &[&'static str],
        api: Origin,
        other: Origin,
        plain: Origin,
        clear: &Origin,
    ) -> Self {
        let at = |name: &str, origin: &Origin| {
            (Host::parse(name).unwrap().name().unwrap().clone(), origin.address)
        };
        let mut pins = HashMap::from([
            at("api.example", &api),
            at("other.example", &other),
            at("plain.example", &plain),
            at("tunnel.example", &plain),
            at("clear.example", clear),
        ]);
        pins.extend(AWS.map(|name| at(name, &api)));
        let upstream = Upstream::new(Options {
            extra_roots: roots.pem.clone().into_bytes(),
            only_extra_roots: true,
            pins,
            proxy: None,
        })
        .unwrap();
        let services = [service("api", "api.example"), service("other", "other.example")];
        let mut lines = vec!["ANY plain.example/**", "clear.example:80/**", "tunnel.example"];
        lines.extend(allow);
        let mut own = vec![Layer::from_lines("test", &lines, deny).unwrap()];
        for service in &services {
            own.push(Layer::service(service, &rules::Access::Full).unwrap());
        }
        let secrets = [(SECRET, PLACEHOLDER), (OTHER_SECRET, OTHER_PLACEHOLDER)];
        let credentials = services
            .into_iter()
            .zip(secrets)
            .map(|(service, (secret, placeholder))| Credential {
                service: Arc::new(service),
                secret: Secret::new(secret.into()).unwrap(),
                placeholder: placeholder.into(),
            })
            .collect();
        let events = Arc::new(Events::default());
        let gateway = Gateway::new(Config {
            sandbox: "sb-test".into(),
            rules: Rules::new(Mode::Allow, own, Vec::new()).unwrap(),
            credentials,
            journal: events.clone(),
            upstream: Arc::new(upstream),
        })
        .unwrap();
        Self { gateway, events, api, other, plain }
    }

    /// These rules in the place of all others.
    pub(crate) fn allow_only(&self, lines: &[&str]) {
        let layer = Layer::from_lines("test", lines, &[] as &[&str]).unwrap();
        self.gateway.set_rules(Rules::new(Mode::Allow, vec![layer], Vec::new()).unwrap());
    }

    /// Asks for an address as a guest does.
    pub(crate) async fn lookup(&self, name: &str) -> Option<Ipv4Addr> {
        let answer = self.query(name, RecordType::A).await;
        answer.answers.iter().find_map(|record| match &record.data {
            RData::A(address) => Some(address.0),
            _ => None,
        })
    }

    pub(crate) async fn query(&self, name: &str, kind: RecordType) -> Message {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let bytes = query.to_vec().unwrap();
        let (mut guest, host) = tokio::io::duplex(4096);
        let gateway = self.gateway.clone();
        tokio::spawn(async move { gateway.dns(host).await });
        guest.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
        guest.write_all(&bytes).await.unwrap();
        let length = guest.read_u16().await.unwrap();
        let mut answer = vec![0; usize::from(length)];
        guest.read_exact(&mut answer).await.unwrap();
        Message::from_vec(&answer).unwrap()
    }

    /// A connection to an address, without TLS.
    pub(crate) fn open(&self, address: IpAddr, port: u16) -> DuplexStream {
        let (guest, host) = tokio::io::duplex(64 << 10);
        let gateway = self.gateway.clone();
        tokio::spawn(async move { gateway.connect(address, port, Box::new(host)).await });
        guest
    }

    /// A TLS connection to the name's address, with a name in its handshake.
    pub(crate) async fn tls(
        &self,
        name: &str,
        sni: &str,
        protocols: &[&str],
    ) -> std::io::Result<impl Stream + use<>> {
        let address = self.lookup(name).await.unwrap();
        let stream = self.open(address.into(), 443);
        self.secure(stream, sni, protocols).await
    }

    pub(crate) async fn secure<S: Stream>(
        &self,
        stream: S,
        sni: &str,
        protocols: &[&str],
    ) -> std::io::Result<tokio_rustls::client::TlsStream<S>> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.gateway.authority_pem().as_bytes()).unwrap())
            .unwrap();
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from(sni.to_owned()).unwrap(), stream)
            .await
    }

    /// Sends bytes over TLS to the name and gives all that comes back until it closes, or has been
    /// silent for a while.
    pub(crate) async fn raw(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.tls(name, name, &["http/1.1"]).await.unwrap();
        // Who refuses need not read it all.
        stream.write_all(bytes.as_ref()).await.ok();
        stream.flush().await.ok();
        answer(&mut stream).await
    }

    /// The event that something led to. It is written when everything is over.
    pub(crate) async fn event(&self, fits: impl Fn(&Event) -> bool) -> Event {
        for _ in 0..200 {
            if let Some(event) = self.events.all().into_iter().find(&fits) {
                return event;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no such event: {:#?}", self.events.all());
    }

    /// No origin saw a connection, and nobody the secrets.
    pub(crate) fn nothing_left(&self) {
        for origin in [&self.api, &self.other, &self.plain] {
            assert_eq!(origin.connections(), 0, "{}", origin.seen());
        }
    }
}

/// All that comes within a while after the last byte; the first may take longer.
pub(crate) async fn answer(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    let mut patience = Duration::from_secs(5);
    while let Ok(Ok(count)) = tokio::time::timeout(patience, stream.read(&mut piece)).await {
        patience = Duration::from_millis(400);
        if count == 0 {
            break;
        }
        all.extend_from_slice(&piece[..count]);
    }
    String::from_utf8_lossy(&all).into_owned()
}
