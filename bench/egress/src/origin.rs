//! The server behind all of them. It costs little, so that what is measured is what stands before it.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::{Outcome, Protocol, provider};

/// What the server is to get, and nobody before the proxy has.
pub(crate) const SECRET: &str = "sk-real-5f1d3c7b9a2e4680abcdef0123456789";
/// What a client has in its place.
pub(crate) const PLACEHOLDER: &str = "sk-fake-00112233445566778899aabbccddeeff";
/// Bytes of an answer's body.
const ANSWER: usize = 1024;
/// Bytes that a long body is sent by.
const PIECE: usize = 64 << 10;

/// What is asked for.
pub(crate) const SMALL: &str = "/v1/messages?limit=20";
/// Says what credential came.
pub(crate) const ECHO: &str = "/v1/echo";
/// A long body of bytes without order; its length is appended.
pub(crate) const BINARY: &str = "/v1/files/binary/";
/// A long body of text; its length is appended.
pub(crate) const TEXT: &str = "/v1/files/text/";
/// Events, as many as is appended.
pub(crate) const EVENTS: &str = "/v1/events/";
/// From one event to the next.
const EVERY: Duration = Duration::from_millis(5);

/// The same server at two ports: HTTP/1.1 only, and HTTP/2 too.
pub(crate) struct Origin {
    h1: u16,
    h2: u16,
    /// Of its authority, in PEM.
    pub(crate) roots: PathBuf,
}

impl Origin {
    pub(crate) async fn start(directory: &Path) -> Outcome<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "bench");
        let key = KeyPair::generate()?;
        let authority = params.self_signed(&key)?;
        let issuer = Issuer::new(params, key);
        let roots = directory.join("origin.pem");
        std::fs::write(&roots, authority.pem())?;

        let names = ["localhost", "one.example", "two.example"].map(str::to_owned);
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )?;
        let mut ports = [0; 2];
        for (protocols, port) in
            [&[&b"http/1.1"[..]][..], &[b"h2", b"http/1.1"]].iter().zip(&mut ports)
        {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            *port = listener.local_addr()?.port();
            tokio::spawn(accept(listener, TlsAcceptor::from(Arc::new(config))));
        }
        let [h1, h2] = ports;
        Ok(Self { h1, h2, roots })
    }

    pub(crate) fn port(&self, protocol: Protocol) -> u16 {
        match protocol {
            Protocol::H1 => self.h1,
            Protocol::H2 => self.h2,
        }
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor) {
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            stream.set_nodelay(true).ok();
            let Ok(stream) = acceptor.accept(stream).await else { return };
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                let service = hyper::service::service_fn(answer);
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            } else {
                let _ = serve(stream).await;
            }
        });
    }
}

fn body() -> &'static Bytes {
    static BODY: OnceLock<Bytes> = OnceLock::new();
    BODY.get_or_init(|| Bytes::from(text(ANSWER)))
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let authorization = request.headers().get("authorization");
    let seen = authorization.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let body = match request.uri().path() {
        ECHO => Bytes::from(seen.to_owned()),
        _ => body().clone(),
    };
    let mut response = Response::new(Full::new(body));
    for (name, value) in FIELDS {
        response.headers_mut().insert(name, http::HeaderValue::from_static(value));
    }
    response.headers_mut().insert("x-credential", http::HeaderValue::from_static(credential(seen)));
    Ok(response)
}

/// As much beside the body as a server of an API says.
const FIELDS: [(&str, &str); 5] = [
    ("content-type", "application/json"),
    ("cache-control", "no-store"),
    ("request-id", "req_011CSHoEeqs5C35K2UUqR7Fy"),
    ("strict-transport-security", "max-age=31536000; includeSubDomains"),
    ("vary", "accept-encoding"),
];

/// What the server had from the client.
fn credential(text: &str) -> &'static str {
    match text {
        text if text.contains(SECRET) => "real",
        text if text.contains(PLACEHOLDER) => "placeholder",
        _ => "none",
    }
}

fn head(length: usize, credential: &str) -> String {
    let mut head =
        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nx-credential: {credential}\r\n");
    for (name, value) in FIELDS {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head + "\r\n"
}

async fn serve(mut stream: TlsStream<TcpStream>) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(8 << 10);
    let mut out = Vec::with_capacity(8 << 10);
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let asked = String::from_utf8_lossy(&buffer[..end]).into_owned();
        buffer.drain(..end);
        let path = asked.split(' ').nth(1).unwrap_or_default();
        let number = || path.rsplit('/').next().and_then(|text| text.parse().ok()).unwrap_or(0);
        if path.starts_with(BINARY) {
            long(&mut stream, &binary(), number()).await?;
        } else if path.starts_with(TEXT) {
            long(&mut stream, &text(PIECE), number()).await?;
        } else if path.starts_with(EVENTS) {
            events(&mut stream, number()).await?;
        } else {
            let echo = asked
                .lines()
                .find_map(|line| {
                    line.split_once(": ")
                        .filter(|(name, _)| name.eq_ignore_ascii_case("authorization"))
                })
                .map(|(_, value)| value.as_bytes());
            let body = if path == ECHO { echo.unwrap_or_default() } else { body() };
            out.clear();
            out.extend_from_slice(head(body.len(), credential(&asked)).as_bytes());
            out.extend_from_slice(body);
            stream.write_all(&out).await?;
        }
        stream.flush().await?;
    }
}

async fn long(stream: &mut TlsStream<TcpStream>, piece: &[u8], length: usize) -> io::Result<()> {
    stream.write_all(head(length, "").as_bytes()).await?;
    let mut left = length;
    while left > 0 {
        let count = left.min(piece.len());
        stream.write_all(&piece[..count]).await?;
        left -= count;
    }
    Ok(())
}

/// Each says when it was sent.
async fn events(stream: &mut TlsStream<TcpStream>, count: usize) -> io::Result<()> {
    stream
        .write_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
        )
        .await?;
    for _ in 0..count {
        tokio::time::sleep(EVERY).await;
        let event = format!("data: {}\n\n", now());
        stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await?;
        stream.flush().await?;
    }
    stream.write_all(b"0\r\n\r\n").await
}

/// Nanoseconds on this process's own clock.
pub(crate) fn now() -> u64 {
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    u64::try_from(BEGUN.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// JSON as models answer.
fn text(length: usize) -> Vec<u8> {
    let line = br#"{"id":"msg_01XFDUDYJgAACzvnptvVoYEL","role":"assistant","content":[{"type":"text","text":"The quick brown fox jumps over the lazy dog, 4213 times; then it rests."}]},"#;
    line.iter().copied().cycle().take(length).collect()
}

/// As what is compressed: without order.
fn binary() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(PIECE).collect()
}
