//! Clients that cost little themselves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::origin::{self, EVENTS, PLACEHOLDER, SMALL};
use crate::{Outcome, Protocol, provider};

/// Where a client connects to, and who it wants to speak to.
#[derive(Clone)]
pub(crate) struct Target {
    port: u16,
    host: String,
    authority: String,
    /// A proxy, which is asked with CONNECT first.
    is_proxy: bool,
    tls: TlsConnector,
    protocol: Protocol,
}

impl Target {
    pub(crate) fn new(
        port: u16,
        authority: String,
        is_proxy: bool,
        roots: &[u8],
        protocol: Protocol,
    ) -> Outcome<Self> {
        let mut store = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(roots) {
            store.add(certificate?)?;
        }
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(store)
            .with_no_client_auth();
        // A new connection is a whole handshake.
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![protocol.alpn().to_vec()];
        let host = authority.rsplit_once(':').map_or(&*authority, |(host, _)| host).to_owned();
        let tls = TlsConnector::from(Arc::new(config));
        Ok(Self { port, host, authority, is_proxy, tls, protocol })
    }

    async fn open(&self) -> Outcome<TlsStream<TcpStream>> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        if self.is_proxy {
            let authority = match self.authority.contains(':') {
                true => self.authority.clone(),
                false => format!("{}:443", self.authority),
            };
            let asked = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
            stream.write_all(asked.as_bytes()).await?;
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                if stream.read_buf(&mut answer).await? == 0 {
                    return Err("the proxy closed the connection".into());
                }
            }
            if answer.get(9..12) != Some(b"200") {
                return Err(format!("the proxy: {}", String::from_utf8_lossy(&answer)).into());
            }
        }
        let name = ServerName::try_from(self.host.clone())?;
        Ok(self.tls.connect(name, stream).await?)
    }

    pub(crate) async fn client(&self) -> Outcome<Client> {
        let stream = self.open().await?;
        if stream.get_ref().1.alpn_protocol().unwrap_or(b"http/1.1") != self.protocol.alpn() {
            return Err("another protocol was agreed on".into());
        }
        Ok(match self.protocol {
            Protocol::H1 => Client::H1(Box::new(H1 {
                stream,
                authority: self.authority.clone(),
                answer: Vec::with_capacity(8 << 10),
            })),
            Protocol::H2 => {
                let (sender, connection) =
                    http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                Client::H2 { sender, authority: self.authority.clone() }
            }
        })
    }
}

/// One connection.
pub(crate) enum Client {
    H1(Box<H1>),
    H2 { sender: http2::SendRequest<Empty<Bytes>>, authority: String },
}

pub(crate) struct H1 {
    stream: TlsStream<TcpStream>,
    authority: String,
    answer: Vec<u8>,
}

/// Which credential the server had, and the body.
pub(crate) struct Answer {
    pub(crate) credential: String,
    pub(crate) body: Vec<u8>,
}

impl Client {
    /// The usual request, whose answer has to be a success.
    pub(crate) async fn ask(&mut self) -> Outcome {
        match self {
            Self::H1(h1) => h1.ask(SMALL).await.map(|_| ()),
            Self::H2 { sender, authority } => {
                let response = sender.send_request(request(authority, SMALL)?).await?;
                let status = response.status();
                let body = response.into_body().collect().await?.to_bytes();
                match status {
                    StatusCode::OK => Ok(()),
                    status => Err(format!("{status}: {}", String::from_utf8_lossy(&body)).into()),
                }
            }
        }
    }

    pub(crate) async fn answer(&mut self, path: &str) -> Outcome<Answer> {
        match self {
            Self::H1(h1) => {
                let start = h1.ask(path).await?;
                let head = std::str::from_utf8(&h1.answer[..start])?;
                let credential = field(head, "x-credential").unwrap_or_default().to_owned();
                Ok(Answer { credential, body: h1.answer[start..].to_vec() })
            }
            Self::H2 { sender, authority } => {
                let response = sender.send_request(request(authority, path)?).await?;
                let credential = response.headers().get("x-credential");
                let credential = credential.and_then(|value| value.to_str().ok());
                let credential = credential.unwrap_or_default().to_owned();
                let body = response.into_body().collect().await?.to_bytes().to_vec();
                Ok(Answer { credential, body })
            }
        }
    }
}

fn request(authority: &str, path: &str) -> Outcome<Request<Empty<Bytes>>> {
    Ok(Request::get(format!("https://{authority}{path}"))
        .header("user-agent", "bench/1.0")
        .header("accept", "application/json")
        .header("x-client-version", "2023-06-01")
        .header("authorization", format!("Bearer {PLACEHOLDER}"))
        .body(Empty::new())?)
}

fn field<'a>(head: &'a str, wanted: &str) -> Option<&'a str> {
    head.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case(wanted).then(|| value.trim())
    })
}

impl H1 {
    async fn send(&mut self, path: &str) -> Outcome {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: bench/1.0\r\nAccept: application/json\r\n\
             X-Client-Version: 2023-06-01\r\nAuthorization: Bearer {PLACEHOLDER}\r\n\r\n",
            self.authority
        );
        self.stream.write_all(request.as_bytes()).await?;
        self.stream.flush().await?;
        self.answer.clear();
        Ok(())
    }

    /// The head, whose end is given.
    async fn head(&mut self) -> Outcome<usize> {
        let mut from = 0;
        loop {
            if let Some(at) = self.answer[from..].windows(4).position(|four| four == b"\r\n\r\n") {
                let end = from + at + 4;
                if self.answer.get(9..12) != Some(b"200") {
                    return Err(String::from_utf8_lossy(&self.answer).into_owned().into());
                }
                return Ok(end);
            }
            from = self.answer.len().saturating_sub(3);
            if self.stream.read_buf(&mut self.answer).await? == 0 {
                return Err("the connection was closed".into());
            }
        }
    }

    /// A request whose answer has a length; where its body begins.
    async fn ask(&mut self, path: &str) -> Outcome<usize> {
        self.send(path).await?;
        let start = self.head().await?;
        let head = std::str::from_utf8(&self.answer[..start])?;
        let length: usize = field(head, "content-length").ok_or("no content-length")?.parse()?;
        while self.answer.len() < start + length {
            if self.stream.read_buf(&mut self.answer).await? == 0 {
                return Err("the answer ended early".into());
            }
        }
        Ok(start)
    }

    /// Reads a body of this length and forgets it.
    pub(crate) async fn long(&mut self, path: &str, length: usize) -> Outcome {
        self.send(&format!("{path}{length}")).await?;
        let start = self.head().await?;
        let mut left = length - (self.answer.len() - start);
        let mut piece = vec![0; 256 << 10];
        while left > 0 {
            match self.stream.read(&mut piece).await? {
                0 => return Err("the body ended early".into()),
                count => left = left.saturating_sub(count),
            }
        }
        Ok(())
    }

    /// How late each of `count` events is, in nanoseconds.
    pub(crate) async fn events(&mut self, count: usize) -> Outcome<Vec<u64>> {
        self.send(&format!("{EVENTS}{count}")).await?;
        let start = self.head().await?;
        self.answer.drain(..start);
        let mut late = Vec::with_capacity(count);
        while late.len() < count {
            while let Some(end) = self.answer.windows(2).position(|two| two == b"\n\n") {
                let text = String::from_utf8_lossy(&self.answer[..end]).into_owned();
                let sent = text.rsplit("data: ").next().and_then(|text| text.parse::<u64>().ok());
                late.push(origin::now().saturating_sub(sent.ok_or("an event without its time")?));
                self.answer.drain(..end + 2);
            }
            if late.len() < count && self.stream.read_buf(&mut self.answer).await? == 0 {
                return Err("the events ended early".into());
            }
        }
        // The last chunk.
        while !self.answer.ends_with(b"0\r\n\r\n") {
            if self.stream.read_buf(&mut self.answer).await? == 0 {
                return Err("the events did not end".into());
            }
        }
        Ok(late)
    }
}

/// How long a request took, each, in nanoseconds; and all of them.
#[derive(Default)]
pub(crate) struct Load {
    pub(crate) latencies: Vec<u64>,
    pub(crate) took: Duration,
}

/// When there is enough.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    Time(Duration),
    /// Of each connection.
    Requests(u64),
}

/// Connections, each of which asks again when it was answered.
pub(crate) async fn kept(clients: &mut Vec<Client>, until: Until) -> Outcome<Load> {
    let begun = Instant::now();
    let tasks: Vec<_> = clients
        .drain(..)
        .map(|mut client| {
            tokio::spawn(async move {
                let mut latencies = Vec::with_capacity(1 << 14);
                let mut asked = 0;
                while until.is_not_over(begun, asked) {
                    let sent = Instant::now();
                    client.ask().await?;
                    // A million of them would be most of what this process has to do.
                    if latencies.len() < 1 << 20 {
                        latencies.push(nanoseconds(sent));
                    }
                    asked += 1;
                }
                Outcome::Ok((client, latencies))
            })
        })
        .collect();
    let mut load = Load::default();
    for task in tasks {
        let (client, latencies) = task.await??;
        clients.push(client);
        load.latencies.extend(latencies);
    }
    load.took = begun.elapsed();
    Ok(load)
}

/// So many at a time who connect, ask once, and connect again.
pub(crate) async fn fresh(target: &Target, many: usize, until: Until) -> Outcome<Load> {
    let begun = Instant::now();
    let tasks: Vec<_> = (0..many)
        .map(|_| {
            let target = target.clone();
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while until.is_not_over(begun, latencies.len() as u64) {
                    let opened = Instant::now();
                    target.client().await?.ask().await?;
                    latencies.push(nanoseconds(opened));
                }
                Outcome::Ok(latencies)
            })
        })
        .collect();
    let mut load = Load::default();
    for task in tasks {
        load.latencies.extend(task.await??);
    }
    load.took = begun.elapsed();
    Ok(load)
}

impl Until {
    fn is_not_over(self, begun: Instant, asked: u64) -> bool {
        match self {
            Self::Time(time) => begun.elapsed() < time,
            Self::Requests(count) => asked < count,
        }
    }
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
