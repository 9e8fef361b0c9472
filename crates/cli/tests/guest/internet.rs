//! A small internet, in the place of the host's gateway: what answers depends on the port alone, and
//! every name has an address.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use supervisor::wire::op::{ErrorCode, Network as Operation, OpError};
use supervisor::{GuestStream, GuestStreams, Network};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

/// Sends back all that it gets, and ends when that does.
pub(crate) const ECHO: u16 = 7;
/// Counts what it gets, and tells at its end.
pub(crate) const SINK: u16 = 9;
/// Sends [`SOURCE_BYTES`] and reads nothing.
pub(crate) const SOURCE: u16 = 19;
/// Tells where it was asked for.
pub(crate) const WHERE: u16 = 80;
/// TLS with a certificate of the authority's for `secure.test`.
pub(crate) const SECURE: u16 = 443;
/// Refused.
pub(crate) const REFUSED: u16 = 666;
/// Sends a little and is gone without an end.
pub(crate) const BROKEN: u16 = 667;
/// Is let through and never read.
pub(crate) const DEAF: u16 = 668;
/// Answers without reading what it was asked.
pub(crate) const HASTY: u16 = 669;

pub(crate) const SOURCE_BYTES: usize = 32 << 20;

/// A name that has no address.
pub(crate) const UNKNOWN: &str = "unknown.test";

/// What the host of a sandbox with a network has.
#[derive(Debug, Clone)]
pub(crate) struct Internet(Arc<Inner>);

struct Inner {
    /// Streams that nobody reads, kept so that they are not reset.
    kept: Mutex<Vec<GuestStream>>,
    authority: String,
    secure: Arc<ServerConfig>,
    runtime: tokio::runtime::Handle,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").finish_non_exhaustive()
    }
}

impl Internet {
    /// A new one, with an authority of its own, on the caller's runtime.
    pub(crate) fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "Sandforge  test AUTHORITY");
        let authority =
            CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["secure.test".into()]).unwrap();
        let leaf = leaf.signed_by(&key, &authority).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let secure = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .unwrap();
        Self(Arc::new(Inner {
            kept: Mutex::default(),
            authority: authority.pem(),
            secure: Arc::new(secure),
            runtime: tokio::runtime::Handle::current(),
        }))
    }

    /// What a sandbox is given to reach it.
    pub(crate) fn network(&self) -> Network {
        Network {
            streams: Arc::new(self.clone()),
            operation: Operation {
                trust: Some(self.0.authority.clone()),
                env: vec![("EXAMPLE_API_KEY".into(), "placeholder".into())],
            },
        }
    }
}

impl GuestStreams for Internet {
    fn connect(&self, address: IpAddr, port: u16, stream: GuestStream) {
        let inner = self.0.clone();
        match port {
            REFUSED => {
                stream.refuse(&OpError::new(ErrorCode::PermissionDenied, "no rule allows it"));
            }
            DEAF => inner.kept.lock().unwrap().push(stream),
            _ => {
                self.0.runtime.spawn(async move {
                    // Where the guest is gone there is nobody to tell.
                    let _ = answer(&inner, address, port, stream).await;
                });
            }
        }
    }

    fn dns(&self, stream: GuestStream) {
        self.0.runtime.spawn(async move {
            let _ = answer_questions(stream).await;
        });
    }
}

async fn answer(
    inner: &Inner,
    address: IpAddr,
    port: u16,
    mut stream: GuestStream,
) -> std::io::Result<()> {
    match port {
        SINK => {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await?;
            let sum: u64 = all.iter().map(|byte| u64::from(*byte)).sum();
            stream.write_all(format!("{} {sum}", all.len()).as_bytes()).await?;
        }
        SOURCE => {
            let chunk: Vec<u8> = (0..=255).cycle().take(64 << 10).collect();
            for _ in 0..SOURCE_BYTES / chunk.len() {
                stream.write_all(&chunk).await?;
            }
        }
        WHERE => {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await?;
            let body = format!("{address} {port}\n");
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(body.as_bytes()).await?;
        }
        SECURE => {
            let mut stream = TlsAcceptor::from(inner.secure.clone()).accept(stream).await?;
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await?;
            let response = b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\nsecure\n";
            stream.write_all(response).await?;
            stream.shutdown().await?;
            return Ok(());
        }
        BROKEN => {
            stream.write_all(b"a little").await?;
            // It is gone before its end otherwise.
            let _ = stream.read(&mut [0; 1]).await?;
            return Ok(());
        }
        HASTY => stream.write_all(&[b'x'; 100_000]).await?,
        _ => {
            let mut buffer = vec![0; 64 << 10];
            loop {
                match stream.read(&mut buffer).await? {
                    0 => break,
                    count => stream.write_all(&buffer[..count]).await?,
                }
            }
        }
    }
    stream.shutdown().await
}

async fn answer_questions(mut stream: GuestStream) -> std::io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut question = vec![0; length.into()];
        stream.read_exact(&mut question).await?;
        let answer = answer_to(&question);
        stream.write_u16(u16::try_from(answer.len()).unwrap()).await?;
        stream.write_all(&answer).await?;
    }
}

/// The address of a name, made from it.
pub(crate) fn address_of(name: &str) -> Ipv4Addr {
    let sum = name.bytes().fold(7_u16, |sum, byte| sum.wrapping_mul(31) ^ u16::from(byte));
    let [high, low] = sum.to_be_bytes();
    Ipv4Addr::new(198, 19, high, low)
}

/// RFC 1035, for one question without compression: an address for a question of type A, none for
/// others, and no such name for [`UNKNOWN`].
fn answer_to(question: &[u8]) -> Vec<u8> {
    let mut labels = Vec::new();
    let mut at = 12;
    while question[at] != 0 {
        let length = usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..=at + length]).into_owned());
        at += 1 + length;
    }
    let name = labels.join(".");
    let is_address = question[at + 1..at + 3] == [0, 1] && name != UNKNOWN;
    let code = if name == UNKNOWN { 3 } else { 0 };
    let mut answer = question[..2].to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, u8::from(is_address), 0, 0, 0, 0]);
    answer.extend(&question[12..at + 5]);
    if is_address {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
        answer.extend(address_of(&name).octets());
    }
    answer
}
