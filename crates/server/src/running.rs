//! A server from its first connection to its last.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::io::DuplexStream;
use tokio_rustls::TlsAcceptor;

use crate::app::Lifetime;
use crate::certificate::{CertificateError, Current};
use crate::connection::{Connections, Http, Peer};
use crate::listen::{self, ListenError, Socket};
use crate::{Certificate, Config};

/// What a client of this process and its server may have on the way between them.
const PIPE: usize = 256 << 10;

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// It cannot speak TLS.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// A server that listens. Dropping it does not end it: [`Running::shutdown`] does.
#[derive(Debug)]
#[must_use]
pub struct Running {
    addresses: Vec<SocketAddr>,
    certificate: Certificate,
    lifetime: Lifetime,
}

impl Running {
    /// Listens everywhere before the first request is answered.
    pub(crate) fn start(
        router: Router,
        config: &Config,
        lifetime: Lifetime,
    ) -> Result<Self, ServeError> {
        let connections = Connections::new(router, config.limits, lifetime.clone());
        let socket = config.unix_socket.as_deref().map(Socket::bind).transpose()?;
        let listeners =
            config.listen.iter().map(|&at| listen::bind(at)).collect::<Result<Vec<_>, _>>()?;
        let mut addresses = Vec::new();
        if !listeners.is_empty() {
            let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
            let names = [&names[..], &config.hosts[..]].concat();
            let current = Arc::new(Current::open(config.certificate.clone(), names)?);
            let tls = TlsAcceptor::from(Arc::new(current.tls()?));
            for (listener, &asked) in listeners.into_iter().zip(&config.listen) {
                addresses.push(listener.local_addr().unwrap_or(asked));
                let accepting = listen::accept_tls(listener, tls.clone(), connections.clone());
                connections.spawn(accepting);
            }
            connections.spawn(listen::refresh(current, connections.clone()));
        }
        if let Some(socket) = socket {
            connections.spawn(socket.accept(connections.clone()));
        }
        Ok(Self { addresses, certificate: config.certificate.clone(), lifetime })
    }

    /// Where TLS is spoken, with the ports that the system chose.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The certificate that clients have to trust, in PEM.
    ///
    /// # Errors
    /// That it cannot be read.
    pub fn authority(&self) -> Result<String, CertificateError> {
        crate::authority(&self.certificate)
    }

    /// Takes nothing more, waits for what is being answered, at most for `grace`, and cuts off
    /// the rest. Endless streams of events end at once.
    pub async fn shutdown(self, grace: Duration) {
        self.lifetime.end(grace).await;
    }
}

/// The server within this process: each call is a connection, whose caller is this user.
#[derive(Debug, Clone)]
pub struct Embedded {
    connections: Connections,
    lifetime: Lifetime,
}

impl Embedded {
    pub(crate) fn new(router: Router, config: &Config, lifetime: Lifetime) -> Self {
        Self { connections: Connections::new(router, config.limits, lifetime.clone()), lifetime }
    }

    /// The client's end of a new connection, over which it speaks HTTP/1.1.
    pub fn connect(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(PIPE);
        let connections = self.connections.clone();
        self.connections
            .spawn(async move { connections.serve(far, Peer::Embedded, Http::One).await });
        near
    }

    /// Waits for what is being answered, at most for `grace`, and cuts off the rest.
    pub async fn shutdown(&self, grace: Duration) {
        self.lifetime.end(grace).await;
    }
}
