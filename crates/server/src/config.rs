//! What an operator can set.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// How a server listens and what it bears.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where TLS is spoken; nowhere when empty.
    pub listen: Vec<SocketAddr>,
    /// Where the unix socket is made; its directory is made with it.
    pub unix_socket: Option<PathBuf>,
    /// Where the certificate comes from.
    pub certificate: Certificate,
    /// Names of this server besides `localhost`, `127.0.0.1` and `[::1]`, for the Host header and
    /// its own certificate.
    pub hosts: Vec<String>,
    /// Web origins that may call, as `https://example.org`; none when empty.
    pub origins: Vec<String>,
    /// Where webhooks may go, and for how long one is tried.
    pub webhooks: webhook::Limits,
    /// What one client may take of the server.
    pub limits: Limits,
}

impl Config {
    /// The port that clients try when none is named.
    pub const PORT: u16 = 8585;

    /// TLS on both loopback addresses, with a certificate of its own below `data`.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        Self {
            listen: loopback.map(|address| SocketAddr::new(address, Self::PORT)).into(),
            unix_socket: None,
            certificate: Certificate::Own { directory: data.into().join("tls") },
            hosts: Vec::new(),
            origins: Vec::new(),
            webhooks: webhook::Limits::default(),
            limits: Limits::default(),
        }
    }
}

/// Where the certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Certificate {
    /// Self-signed, made at first start and renewed with the same key before it expires.
    Own {
        /// Where it is kept, with its key.
        directory: PathBuf,
    },
    /// The operator's, in PEM. They are read again when they change.
    Files {
        /// The chain, the server's first.
        chain: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
}

/// What one client may take of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once, over all listeners; more wait to be accepted.
    pub connections: usize,
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For the head of a request, and between two requests of a connection.
    pub head: Duration,
    /// Without a byte of an expected body, or without one taken of an answer.
    pub stall: Duration,
    /// Bytes of a request's line and headers together.
    pub head_bytes: usize,
    /// Header lines of a request.
    pub headers: usize,
    /// Bytes of path and query.
    pub uri_bytes: usize,
    /// Bytes of a JSON body, or of input for a process.
    pub body_bytes: usize,
    /// Bytes of an uploaded file or tar.
    pub upload_bytes: u64,
    /// Bytes of a WebSocket message.
    pub message_bytes: usize,
    /// Requests of one caller in a second, in the long run. Callers of the unix socket have none.
    pub requests_per_second: u32,
    /// Requests of one caller at once, beyond that.
    pub burst: u32,
    /// Failed authentications from one address in a second, and at once.
    pub failures_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(30),
            stall: Duration::from_secs(60),
            head_bytes: 64 << 10,
            headers: 100,
            uri_bytes: 16 << 10,
            body_bytes: 4 << 20,
            upload_bytes: 64 << 30,
            message_bytes: 1 << 20,
            requests_per_second: 2_000,
            burst: 4_000,
            failures_per_second: 10,
        }
    }
}
