//! What one sandbox has of the network.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use canonical::{Authority, Host, Name};
use hyper::server::conn::{http1, http2};
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rules::{Refusal, Rules};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::LazyConfigAcceptor;

use crate::authority::Authority as Certificates;
use crate::credential::{Bound, Credential, Credentials};
use crate::event::{Decision, Journal, Kind};
use crate::gate::Gated;
use crate::names::{Names, is_synthetic};
use crate::pipeline::{Entry, Finish, Pipeline, refusal};
use crate::pool::{Pool, Protocol};
use crate::stream::{GuestStream, Replay};
use crate::upstream::Upstream;
use crate::{Error, dns, gate};

/// The gateway's own address in every sandbox: a link-local one, where clouds have their metadata
/// services, so that programs that look for those find somebody who says no.
pub const OWN_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Where it is a proxy: CONNECT, and `http://` targets.
pub const PROXY_PORT: u16 = 3128;
/// Where it serves `/proxy/<service>/…`.
pub const GATEWAY_PORT: u16 = 8787;

/// Most connections of a sandbox at a time.
const MOST_CONNECTIONS: usize = 1024;
/// How long a guest may take to say what it speaks. In protocols in which the server speaks first it
/// never does.
const PEEK: Duration = Duration::from_secs(10);
/// How long a guest may take for a TLS handshake, and for the head of a request.
const HANDSHAKE: Duration = Duration::from_secs(30);
const HEAD: Duration = Duration::from_secs(120);
/// How long a request waits where more has happened than was written down.
const BACKLOG: Duration = Duration::from_secs(1);
/// Bytes that a tunnel reads at once.
const PIECE: usize = 64 << 10;
/// Most names whose refusal is remembered, so that it is written down once.
const MOST_REFUSED: usize = 4096;

/// What a gateway is made of.
pub struct Config {
    /// The sandbox's id.
    pub sandbox: String,
    /// What it may reach.
    pub rules: Rules,
    /// What it uses and never sees.
    pub credentials: Vec<Credential>,
    /// Where everything is written down.
    pub journal: Arc<dyn Journal>,
    /// The way out.
    pub upstream: Arc<Upstream>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("sandbox", &self.sandbox).finish_non_exhaustive()
    }
}

/// How a connection may go on.
struct Way {
    kind: rules::Kind,
    allow_private: bool,
    rule: rules::Origin,
}

/// The network of one sandbox. Clones are the same one.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").finish_non_exhaustive()
    }
}

pub(crate) struct Inner {
    rules: watch::Sender<(Rules, u64)>,
    credentials: RwLock<Arc<Credentials>>,
    names: Names,
    certificates: Certificates,
    pub(crate) pool: Pool,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) journal: Arc<dyn Journal>,
    connections: Semaphore,
    refused: Mutex<HashSet<Name>>,
}

impl Gateway {
    /// One with a certificate authority of its own.
    ///
    /// # Errors
    /// `Certificate`, `Random`; and `Secret`, `Placeholder` and `Redact` for credentials that cannot
    /// be used.
    pub fn new(config: Config) -> Result<Self, Error> {
        let bound = config
            .credentials
            .into_iter()
            .map(|one| Bound::new(one).map(Arc::new))
            .collect::<Result<_, _>>()?;
        Ok(Self(Arc::new(Inner {
            rules: watch::Sender::new((config.rules, 1)),
            credentials: RwLock::new(Arc::new(Credentials::new(bound)?)),
            names: Names::default(),
            certificates: Certificates::new(&config.sandbox)?,
            pool: Pool::default(),
            upstream: config.upstream,
            journal: config.journal,
            connections: Semaphore::new(MOST_CONNECTIONS),
            refused: Mutex::default(),
        })))
    }

    /// The certificate that the sandbox is to trust, in PEM.
    pub fn authority_pem(&self) -> &str {
        self.0.certificates.pem()
    }

    /// Other rules, from now on, also for what is open: tunnels that they refuse are closed.
    pub fn set_rules(&self, rules: Rules) {
        self.0.rules.send_modify(|(current, generation)| {
            *current = rules;
            *generation += 1;
        });
        self.0.refused.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Adds a credential, or puts it in the place of the service's present one.
    ///
    /// # Errors
    /// `Secret`, `Placeholder` and `Redact`; then nothing has changed.
    pub fn set_credential(&self, credential: Credential) -> Result<(), Error> {
        let new = Arc::new(Bound::new(credential)?);
        self.change(|bound| {
            bound.retain(|one| one.service.name != new.service.name);
            bound.push(new);
        })
    }

    /// Takes the credential of a service away. Its placeholder is remembered, and refused.
    pub fn revoke(&self, service: &str) {
        let revoked = self.change(|bound| {
            for one in bound.iter_mut().filter(|one| one.service.name == service) {
                *one = Arc::new(one.revoked());
            }
        });
        if revoked.is_err() {
            // Cannot be, since there is less to look for than before; without any is safe.
            *self.0.credentials.write().unwrap_or_else(PoisonError::into_inner) = Arc::default();
        }
        self.0.pool.clear();
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Bound>>)) -> Result<(), Error> {
        let mut credentials = self.0.credentials.write().unwrap_or_else(PoisonError::into_inner);
        let mut bound = credentials.bound.clone();
        change(&mut bound);
        *credentials = Arc::new(Credentials::new(bound)?);
        Ok(())
    }

    /// Answers the DNS queries of a stream until it ends.
    pub async fn dns(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        self.0.dns(&mut stream).await;
    }

    /// Serves a connection that a guest opened to this address and port, until it ends.
    pub async fn connect(&self, address: IpAddr, port: u16, stream: Box<dyn GuestStream>) {
        let inner = &self.0;
        let Ok(_place) = inner.connections.try_acquire() else {
            return stream.refuse(format!("a sandbox has at most {MOST_CONNECTIONS} connections"));
        };
        if !inner.is_recording().await {
            return stream.refuse("what happens cannot be written down, so nothing does".into());
        }
        inner.clone().connect(address, port, stream).await;
    }
}

impl Inner {
    /// Whether what happens can be written down, perhaps after a moment.
    pub(crate) async fn is_recording(&self) -> bool {
        let begun = Instant::now();
        while !self.journal.is_ready() {
            if begun.elapsed() >= BACKLOG {
                return false;
            }
            tokio::time::sleep(BACKLOG / 100).await;
        }
        true
    }

    pub(crate) fn rules(&self) -> Rules {
        self.rules.borrow().0.clone()
    }

    /// The rules, and which ones they are.
    pub(crate) fn judged(&self) -> (Rules, u64) {
        self.rules.borrow().clone()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.rules.borrow().1
    }

    pub(crate) fn credentials(&self) -> Arc<Credentials> {
        self.credentials.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns when the rules have come to refuse the endpoint.
    pub(crate) async fn until_refused(&self, authority: &Authority) {
        let mut rules = self.rules.subscribe();
        let refuses =
            |(rules, _): &(Rules, u64)| rules.endpoint(&authority.host, authority.port).is_err();
        // Also where they came to while the connection was made. They last as long as this does.
        let _ = rules.wait_for(refuses).await;
    }

    async fn dns<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut S) {
        let answering = dns::serve(stream, |name| {
            if let Err(refusal) = self.rules().resolves(name) {
                self.lookup_refused(name, &refusal);
            }
            self.names.address(name)
        });
        if let Err(error) = answering.await {
            tracing::debug!(%error, "a guest's stream of queries ended");
        }
    }

    fn lookup_refused(&self, name: &Name, refusal: &Refusal) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() >= MOST_REFUSED || !refused.insert(name.clone()) {
            return;
        }
        drop(refused);
        self.begin(Kind::Lookup, name.to_string(), 0).deny(refusal);
    }

    fn begin(&self, kind: Kind, host: String, port: u16) -> Finish {
        let mut finish = Finish::new(self.journal.clone(), Instant::now(), self.generation());
        finish.event.kind = kind;
        finish.event.host = host;
        finish.event.port = port;
        finish
    }

    async fn connect(
        self: Arc<Self>,
        address: IpAddr,
        port: u16,
        mut stream: Box<dyn GuestStream>,
    ) {
        let address = address.to_canonical();
        match address {
            _ if port == 53 => self.dns(&mut stream).await,
            IpAddr::V4(OWN_ADDRESS) => self.own(port, stream).await,
            IpAddr::V4(v4) if is_synthetic(v4) => match self.names.name(v4) {
                Some(name) => self.reach(Authority { host: Host::Name(name), port }, stream).await,
                None => {
                    let to = Authority { host: Host::Address(address), port };
                    let reason = "no name was looked up that this address stands for";
                    self.turn_away(&to, refusal(reason), stream);
                }
            },
            address => self.reach(Authority { host: Host::Address(address), port }, stream).await,
        }
    }

    /// The gateway itself.
    async fn own(self: Arc<Self>, port: u16, stream: Box<dyn GuestStream>) {
        let entry = match port {
            PROXY_PORT => Entry::Proxy,
            // Whoever looks for a metadata service is told at once that there is none.
            GATEWAY_PORT | 80 => Entry::BaseUrl { port },
            _ => {
                let to = Authority { host: Host::Address(OWN_ADDRESS.into()), port };
                let reason =
                    format!("the gateway serves its ports {PROXY_PORT} and {GATEWAY_PORT} only");
                return self.turn_away(&to, refusal(&reason), stream);
            }
        };
        self.http1(stream, entry, None).await;
    }

    /// The target of a tunnel of the proxy.
    pub(crate) async fn tunnelled(self: Arc<Self>, authority: Authority, upgraded: Upgraded) {
        let stream: Box<dyn GuestStream> = Box::new(TokioIo::new(upgraded));
        // Nothing of ours, and nothing that stands for something else.
        let is_own = match &authority.host {
            Host::Address(IpAddr::V4(v4)) => *v4 == OWN_ADDRESS || is_synthetic(*v4),
            _ => false,
        };
        if is_own {
            return stream.refuse("the gateway is not reached through itself".into());
        }
        Box::pin(self.reach(authority, stream)).await;
    }

    async fn reach(self: Arc<Self>, authority: Authority, mut stream: Box<dyn GuestStream>) {
        let way = match self.rules().endpoint(&authority.host, authority.port) {
            Ok(endpoint) => Ok(Way {
                kind: endpoint.kind,
                allow_private: endpoint.allow_private,
                rule: endpoint.rule.clone(),
            }),
            // Who has no name cannot be told in TLS either.
            Err(refusal) if authority.host.name().is_none() => {
                return self.turn_away(&authority, refusal, stream);
            }
            // It is taken only to say why it is refused, where that can be said.
            Err(refusal) => Err(refusal),
        };
        let way = match way {
            Ok(way) if way.kind == rules::Kind::Tcp => {
                return self.tunnel(authority, way, Vec::new(), stream).await;
            }
            way => way,
        };
        let first = first(&mut stream).await;
        match (first, way) {
            (Some(0x16), way) => self.tls(authority, way, replayed(stream, 0x16)).await,
            (Some(byte), way) if byte.is_ascii_uppercase() => {
                let entry = Entry::Direct { authority, is_secure: false };
                self.http1(replayed(stream, byte), entry, way.err()).await;
            }
            (_, Err(refusal)) => self.turn_away(&authority, refusal, stream),
            (first, Ok(_)) => {
                let reason = match first {
                    Some(_) => "what is neither TLS nor HTTP needs a rule of its own",
                    None => {
                        "the guest said nothing; where the server speaks first, a rule has to say so"
                    }
                };
                let hint = format!("tcp {}:{}", authority.host, authority.port);
                self.turn_away(&authority, Refusal { hint, ..refusal(reason) }, stream);
            }
        }
    }

    /// Refuses a connection, and writes that down.
    fn turn_away(&self, to: &Authority, refusal: Refusal, stream: Box<dyn GuestStream>) {
        self.begin(Kind::Connection, to.host.to_string(), to.port).deny(&refusal);
        stream.refuse(refusal.reason);
    }

    async fn tls(
        self: Arc<Self>,
        authority: Authority,
        way: Result<Way, Refusal>,
        stream: Replay<Box<dyn GuestStream>>,
    ) {
        let mut finish = self.begin(Kind::Connection, authority.host.to_string(), authority.port);
        let accepting = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream);
        let hello = match tokio::time::timeout(HANDSHAKE, accepting).await {
            Ok(Ok(hello)) => hello,
            Ok(Err(error)) => return finish.broke(&format!("the guest's ClientHello: {error}")),
            Err(_) => return finish.broke("the guest did not finish its ClientHello"),
        };
        let offered = hello.client_hello();
        let named =
            offered.server_name().map(|name| Host::parse(name) == Ok(authority.host.clone()));
        // An address has no name (RFC 6066, section 3).
        let agrees = named.unwrap_or(true)
            && !(matches!(authority.host, Host::Address(_)) && named.is_some());
        let guest_speaks_h2 =
            offered.alpn().is_some_and(|mut protocols| protocols.any(|name| name == b"h2"));
        if !agrees {
            finish.deny(&refusal("the TLS handshake names another host than the connection"));
            let tokio_rustls::StartHandshake { io: mut stream, .. } = hello;
            stream.write_all(&alert(UNRECOGNIZED_NAME)).await.ok();
            return stream.shutdown().await.unwrap_or_default();
        }
        let refusal = match way {
            Ok(way)
                if way.kind == rules::Kind::Tunnel
                    && self.credentials().at(&authority).is_none() =>
            {
                let tokio_rustls::StartHandshake { io, .. } = hello;
                let (stream, read) = io.into_parts();
                finish.forget();
                return self.tunnel(authority, way, read, stream).await;
            }
            way => way.err(),
        };
        let with_h2 = self.pool.protocol(&authority) != Some(Protocol::H1);
        let config = match self.certificates.config(&authority.host, with_h2) {
            Ok(config) => config,
            Err(error) => return finish.broke(&error.to_string()),
        };
        let tokio_rustls::StartHandshake { accepted, mut io, .. } = hello;
        io.forget();
        let hello = tokio_rustls::StartHandshake::from_parts(accepted, io);
        let handshake = tokio::time::timeout(HANDSHAKE, hello.into_stream(config)).await;
        let stream = match handshake {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                if let Some(refusal) = &refusal {
                    return finish.deny(refusal);
                }
                return finish.broke(&format!(
                    "the guest does not take the sandbox's certificate ({error}); if its program has roots of its own, \
                     give it the service's base URL, or allow `tunnel {}`",
                    authority.host
                ));
            }
            Err(_) => return finish.broke("the guest did not finish its TLS handshake"),
        };
        finish.forget();
        let is_h2 = guest_speaks_h2 && stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let entry = Entry::Direct { authority, is_secure: true };
        if is_h2 {
            self.http2(stream, entry, refusal).await;
        } else {
            self.http1(stream, entry, refusal).await;
        }
    }

    async fn http1<S>(self: Arc<Self>, stream: S, entry: Entry, refusal: Option<Refusal>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (gated, answer) = Gated::new(stream);
        let pipeline = Arc::new(Pipeline::new(self, entry, refusal, Some(answer)));
        let service = hyper::service::service_fn(move |request| pipeline.clone().handle(request));
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_headers(gate::MAX_FIELDS)
            .half_close(true)
            .serve_connection(TokioIo::new(gated), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "a guest's connection ended");
        }
    }

    async fn http2<S>(self: Arc<Self>, stream: S, entry: Entry, refusal: Option<Refusal>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let pipeline = Arc::new(Pipeline::new(self, entry, refusal, None));
        let service = hyper::service::service_fn(move |request| pipeline.clone().handle(request));
        let served = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .adaptive_window(true)
            .max_concurrent_streams(128)
            .max_header_list_size(u32::try_from(gate::MAX_HEAD).unwrap_or(u32::MAX))
            .max_local_error_reset_streams(Some(256))
            .max_pending_accept_reset_streams(32)
            .enable_connect_protocol()
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "a guest's connection ended");
        }
    }

    /// Passes bytes that nobody looks into, until a side ends or a change of rules ends both.
    async fn tunnel(
        self: Arc<Self>,
        authority: Authority,
        way: Way,
        read: Vec<u8>,
        mut stream: Box<dyn GuestStream>,
    ) {
        let mut finish = self.begin(Kind::Connection, authority.host.to_string(), authority.port);
        finish.event.rule = Some(way.rule);
        let mut server =
            match self.upstream.dial(&authority.host, authority.port, way.allow_private).await {
                Ok(server) => server,
                Err(error) => {
                    finish.failed(&error);
                    return stream.refuse(error.to_string());
                }
            };
        if let Err(error) = server.write_all(&read).await {
            return finish.broke(&error.to_string());
        }
        let copying =
            tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut server, PIECE, PIECE);
        let refused = tokio::select! {
            copied = copying => {
                match copied {
                    Ok((sent, received)) => {
                        finish.event.sent = sent + read.len() as u64;
                        finish.event.received = received;
                    }
                    Err(error) => finish.broke(&error.to_string()),
                }
                false
            }
            () = self.until_refused(&authority) => true,
        };
        if refused {
            finish.event.decision = Decision::Denied;
            finish.event.reason = Some("a change of the rules ended it".into());
            stream.refuse("a change of the rules ended it".into());
        }
    }
}

/// The first byte that a guest sends, if it sends any in time.
async fn first(stream: &mut Box<dyn GuestStream>) -> Option<u8> {
    tokio::time::timeout(PEEK, stream.read_u8()).await.ok()?.ok()
}

fn replayed(stream: Box<dyn GuestStream>, first: u8) -> Replay<Box<dyn GuestStream>> {
    Replay::new(stream, vec![first])
}

/// RFC 8446, section 6.2.
const UNRECOGNIZED_NAME: u8 = 112;

/// A fatal alert as a record (RFC 8446, section 5.1).
fn alert(description: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, description]
}
