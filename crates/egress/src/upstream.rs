//! The way from the host to a server: look the name up, refuse what no guest may reach, dial what
//! was looked up and nothing else, and check who answers. Shared by all sandboxes; holds nothing of
//! any of them.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use address::Reach;
use canonical::{Host, Name};
use hickory_resolver::TokioResolver;
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::ServiceExt as _;

use crate::Error;

/// How long an address may take to answer.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(15);
/// Most addresses of a name that are tried.
const MOST_ADDRESSES: usize = 4;

/// How servers are found and trusted.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Certificates in PEM that are trusted beside the host's own.
    pub extra_roots: Vec<u8>,
    /// Trust `extra_roots` only.
    pub only_extra_roots: bool,
    /// Names that are at these addresses, whatever DNS says, and also where the addresses are
    /// private: who configures the host has named them.
    pub pins: HashMap<Name, SocketAddr>,
    /// A proxy that everything goes through: `http://host:port` (CONNECT) or
    /// `socks5h://host:port`. It looks names up itself, and what it reaches is its own matter.
    pub proxy: Option<String>,
}

/// Why a server could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address.
    #[error("{0} cannot be looked up: {1}")]
    Lookup(String, String),
    /// What it is at is out of reach for guests.
    #[error(
        "{host} is at {address}, which is {reach}: guests do not reach that unless a rule names the address"
    )]
    Floor {
        /// The name, or the address itself.
        host: String,
        /// The address.
        address: IpAddr,
        /// What it reaches.
        reach: Reach,
    },
    /// Nobody answers there.
    #[error("{0} does not answer: {1}")]
    Connect(String, String),
    /// Who answers is not who was meant.
    #[error("{0} does not prove who it is: {1}")]
    Tls(String, String),
}

/// Finds, dials and checks servers.
pub struct Upstream {
    resolver: TokioResolver,
    pins: HashMap<Name, SocketAddr>,
    proxy: Option<Proxy>,
    h1: TlsConnector,
    any: TlsConnector,
}

#[derive(Clone)]
enum Proxy {
    Tunnel(Tunnel<HttpConnector>),
    Socks(SocksV5<HttpConnector>),
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("pins", &self.pins).finish_non_exhaustive()
    }
}

impl Upstream {
    /// By the host's own configuration of DNS and its own roots.
    ///
    /// # Errors
    /// `Roots` where nothing is trusted, `Resolver`, `Proxy`.
    pub fn new(options: Options) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        if !options.only_extra_roots {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        for certificate in CertificateDer::pem_slice_iter(&options.extra_roots) {
            let certificate = certificate.map_err(|error| Error::Roots(error.to_string()))?;
            roots.add(certificate).map_err(|error| Error::Roots(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(Error::Roots("this host trusts nobody (Debian: ca-certificates)".into()));
        }
        let config = ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
        let speaking = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            TlsConnector::from(Arc::new(config))
        };
        let resolver = TokioResolver::builder_tokio()
            .and_then(|builder| builder.build())
            .map_err(|error| Error::Resolver(error.to_string()))?;
        Ok(Self {
            resolver,
            pins: options.pins,
            proxy: options.proxy.as_deref().map(proxy).transpose()?,
            h1: speaking(&[b"http/1.1"]),
            any: speaking(&[b"h2", b"http/1.1"]),
        })
    }

    /// A connection to `host`. With `allow_private` its addresses may be of private networks too;
    /// what is this host's own, the link's or a cloud's metadata service is never dialled.
    pub(crate) async fn dial(
        &self,
        host: &Host,
        port: u16,
        allow_private: bool,
    ) -> Result<TcpStream, DialError> {
        let pin = host.name().and_then(|name| self.pins.get(name));
        if let Some(&address) = pin {
            return connect(host, &[address]).await;
        }
        if let Host::Address(address) = host {
            floor(host, *address, allow_private)?;
        }
        if let Some(proxy) = &self.proxy {
            return through(proxy.clone(), host, port).await;
        }
        let addresses = match host {
            Host::Address(address) => vec![SocketAddr::new(*address, port)],
            Host::Name(name) => self.vetted(host, name, port, allow_private).await?,
        };
        connect(host, &addresses).await
    }

    /// The addresses of `name` that may be dialled.
    async fn vetted(
        &self,
        host: &Host,
        name: &Name,
        port: u16,
        allow_private: bool,
    ) -> Result<Vec<SocketAddr>, DialError> {
        // With its dot no search list is tried.
        let found = self
            .resolver
            .lookup_ip(format!("{name}."))
            .await
            .map_err(|error| DialError::Lookup(name.to_string(), error.to_string()))?;
        let mut refused = None;
        let mut vetted = Vec::new();
        for address in found.iter() {
            match floor(host, address, allow_private) {
                Ok(()) => vetted.push(SocketAddr::new(address, port)),
                Err(error) => refused = Some(error),
            }
        }
        vetted.sort_by_key(SocketAddr::is_ipv6);
        vetted.truncate(MOST_ADDRESSES);
        match (vetted.is_empty(), refused) {
            (false, _) => Ok(vetted),
            (true, Some(error)) => Err(error),
            (true, None) => Err(DialError::Lookup(name.to_string(), "it has no address".into())),
        }
    }

    /// TLS with who must be `host`, over HTTP/1.1 alone or what the server likes best.
    pub(crate) async fn secure(
        &self,
        stream: TcpStream,
        host: &Host,
        only_h1: bool,
    ) -> Result<TlsStream<TcpStream>, DialError> {
        let tls = |why: String| DialError::Tls(host.to_string(), why);
        let name = match host {
            Host::Name(name) => ServerName::try_from(name.as_str().to_owned()),
            Host::Address(address) => Ok(ServerName::from(*address)),
        };
        let name = name.map_err(|error| tls(error.to_string()))?;
        let connector = if only_h1 { &self.h1 } else { &self.any };
        match tokio::time::timeout(HANDSHAKE, connector.connect(name, stream)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(tls(error.to_string())),
            Err(_) => Err(tls(format!("no handshake within {HANDSHAKE:?}"))),
        }
    }
}

/// Refuses what is below every rule.
fn floor(host: &Host, address: IpAddr, allow_private: bool) -> Result<(), DialError> {
    let reach = match address::reach(address) {
        _ if is_own(address) => Reach::Loopback,
        Reach::Public => return Ok(()),
        Reach::Private if allow_private => return Ok(()),
        reach => reach,
    };
    Err(DialError::Floor { host: host.to_string(), address, reach })
}

/// Whether this host has the address itself: then its own routing says that it would speak to
/// itself. Nothing is sent.
fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let asked = std::net::UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    asked.is_ok_and(|local| local.ip() == address)
}

async fn connect(host: &Host, addresses: &[SocketAddr]) -> Result<TcpStream, DialError> {
    let mut last = DialError::Connect(host.to_string(), "it has no address".into());
    for address in addresses {
        let error = match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true).ok();
                return Ok(stream);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("nothing within {CONNECT:?}"),
        };
        last = DialError::Connect(host.to_string(), format!("{address}: {error}"));
    }
    Err(last)
}

async fn through(proxy: Proxy, host: &Host, port: u16) -> Result<TcpStream, DialError> {
    let refused =
        |error: String| DialError::Connect(host.to_string(), format!("the proxy: {error}"));
    let target: Uri =
        format!("https://{host}:{port}").parse().map_err(|_| refused("no such target".into()))?;
    let dialling = async {
        match proxy {
            Proxy::Tunnel(tunnel) => {
                tunnel.oneshot(target).await.map_err(|error| error.to_string())
            }
            Proxy::Socks(socks) => socks.oneshot(target).await.map_err(|error| error.to_string()),
        }
    };
    match tokio::time::timeout(CONNECT, dialling).await {
        Ok(Ok(stream)) => Ok(stream.into_inner()),
        Ok(Err(error)) => Err(refused(error)),
        Err(_) => Err(refused(format!("nothing within {CONNECT:?}"))),
    }
}

fn proxy(text: &str) -> Result<Proxy, Error> {
    let wrong = |why: &str| Error::Proxy(format!("{why}: http://host:port or socks5h://host:port"));
    let uri: Uri = text.parse().map_err(|_| wrong("not a URL"))?;
    let authority = uri.authority().ok_or_else(|| wrong("there is no host"))?;
    if authority.as_str().contains('@') {
        return Err(wrong("names and passwords of proxies are not taken"));
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    match uri.scheme_str() {
        Some("http") => Ok(Proxy::Tunnel(Tunnel::new(uri, connector))),
        Some("socks5h") => Ok(Proxy::Socks(SocksV5::new(uri, connector))),
        _ => Err(wrong("no such kind of proxy")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Mutex;

    use hickory_proto::op::Message;
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{RData, Record, RecordType};
    use hickory_resolver::config::{
        ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig,
    };
    use hickory_resolver::net::runtime::TokioRuntimeProvider;
    use tokio::net::UdpSocket;

    use super::*;

    /// An upstream whose DNS gives these addresses to one question after the other, to be forgotten
    /// at once; and how many it was asked for.
    async fn answering(answers: Vec<Vec<Ipv4Addr>>) -> (Upstream, Arc<Mutex<usize>>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut connection = ConnectionConfig::udp();
        connection.port = socket.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(0));
        let count = asked.clone();
        tokio::spawn(async move {
            let mut bytes = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut bytes).await {
                let query = Message::from_vec(&bytes[..length]).unwrap();
                let question = query.queries[0].clone();
                let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
                reply.queries.push(question.clone());
                if question.query_type() == RecordType::A {
                    let mut count = count.lock().unwrap();
                    for address in &answers[(*count).min(answers.len() - 1)] {
                        let data = RData::A(A(*address));
                        reply.answers.push(Record::from_rdata(question.name().clone(), 0, data));
                    }
                    *count += 1;
                }
                socket.send_to(&reply.to_vec().unwrap(), from).await.unwrap();
            }
        });
        let mut server = NameServerConfig::udp(Ipv4Addr::LOCALHOST.into());
        server.connections = vec![connection];
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        builder.options_mut().use_hosts_file = ResolveHosts::Never;
        let mut upstream = Upstream::new(Options::default()).unwrap();
        upstream.resolver = builder.build().unwrap();
        (upstream, asked)
    }

    async fn vetted(upstream: &Upstream, allow_private: bool) -> Result<Vec<IpAddr>, DialError> {
        let host = host("rebound.example");
        let name = host.name().unwrap();
        let found = upstream.vetted(&host, name, 443, allow_private).await?;
        Ok(found.iter().map(SocketAddr::ip).collect())
    }

    #[tokio::test]
    async fn of_a_mixed_answer_only_what_may_be_dialled_is() {
        let public = Ipv4Addr::new(93, 184, 216, 34);
        let mixed = [[127, 0, 0, 1], [169, 254, 169, 254], [10, 0, 0, 1], [0, 0, 0, 0]];
        let mut all: Vec<Ipv4Addr> = mixed.into_iter().map(Ipv4Addr::from).collect();
        all.insert(2, public);
        let (upstream, _) = answering(vec![all]).await;
        assert_eq!(vetted(&upstream, false).await.unwrap(), [IpAddr::V4(public)]);
        let private = vetted(&upstream, true).await.unwrap();
        assert_eq!(private.len(), 2, "{private:?}");
    }

    #[tokio::test]
    async fn a_name_that_comes_to_mean_another_address_is_judged_by_that_one() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let public = Ipv4Addr::new(93, 184, 216, 34);
        let (upstream, asked) = answering(vec![vec![public], vec![Ipv4Addr::LOCALHOST]]).await;
        assert_eq!(vetted(&upstream, false).await.unwrap(), [IpAddr::V4(public)]);
        for allow_private in [false, true] {
            let dialled = upstream.dial(&host("rebound.example"), port, allow_private).await;
            assert!(matches!(dialled, Err(DialError::Floor { .. })), "{dialled:?}");
        }
        // One answer is vetted and dialled; there is no second question between the two.
        assert_eq!(*asked.lock().unwrap(), 3);
        let nobody = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(nobody.is_err());
    }

    fn host(text: &str) -> Host {
        Host::parse(text).unwrap()
    }

    #[test]
    fn what_is_below_every_rule_is_refused_in_every_spelling() {
        for text in [
            "127.0.0.1",
            "[::1]",
            "169.254.169.254",
            "[::ffff:169.254.169.254]",
            "0.0.0.0",
            "[fd00:ec2::254]",
            "100.100.100.200",
        ] {
            let Host::Address(address) = host(text) else { panic!("{text}") };
            for allow_private in [false, true] {
                assert!(
                    floor(&host(text), address, allow_private).is_err(),
                    "{text} {allow_private}"
                );
            }
        }
        for text in ["10.0.0.1", "192.168.1.1", "[fd12::1]", "[::ffff:10.0.0.1]"] {
            let Host::Address(address) = host(text) else { panic!("{text}") };
            assert!(floor(&host(text), address, false).is_err(), "{text}");
            assert!(floor(&host(text), address, true).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_proxy_is_of_a_kind_that_is_known() {
        for text in ["http://proxy.example:3128", "socks5h://proxy.example:1080"] {
            assert!(proxy(text).is_ok(), "{text}");
        }
        for text in ["socks5://p:1", "https://p:1", "p:1", "", "http://user:word@p:1"] {
            assert!(proxy(text).is_err(), "{text}");
        }
    }
}
