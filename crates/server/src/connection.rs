//! One connection: HTTP spoken within bounds of time and size until the client or the server ends it.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use crate::Limits;
use crate::app::Lifetime;
use crate::lingering::Lingering;
use crate::patience::Patient;

/// Streams of one HTTP/2 connection at once.
const STREAMS: u32 = 128;
/// What an HTTP/2 stream may send before it is read.
const WINDOW: u32 = 1 << 20;

/// Who is at the other end, as far as the connection says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// A process of this host and of this user or root, over the unix socket.
    Local {
        /// The user id that the kernel vouches for.
        uid: u32,
    },
    /// This process itself.
    Embedded,
    /// Whoever holds a token, over TLS.
    Remote(SocketAddr),
}

impl Peer {
    /// Somebody, somewhere.
    pub(crate) const UNKNOWN: Self =
        Self::Remote(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0));
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local { uid } => write!(f, "unix:{uid}"),
            Self::Embedded => f.write_str("embedded"),
            Self::Remote(address) => write!(f, "{address}"),
        }
    }
}

/// What all connections of a server share.
#[derive(Debug, Clone)]
pub(crate) struct Connections {
    router: Router,
    limits: Limits,
    places: Arc<Semaphore>,
    lifetime: Lifetime,
}

/// How the client chose to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Http {
    One,
    Two,
}

impl Connections {
    pub(crate) fn new(router: Router, limits: Limits, lifetime: Lifetime) -> Self {
        let places = Arc::new(Semaphore::new(limits.connections));
        Self { router, limits, places, lifetime }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn stopping(&self) -> &CancellationToken {
        &self.lifetime.stopping
    }

    /// A place for one more connection, as soon as there is one; none once the server stops.
    pub(crate) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        tokio::select! {
            place = Arc::clone(&self.places).acquire_owned() => place.ok(),
            () = self.lifetime.stopping.cancelled() => None,
        }
    }

    /// Runs what belongs to a connection; the server's end waits for it, within bounds.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.lifetime.spawn(work);
    }

    /// Answers requests until the client goes, or the server stops and what was asked is answered.
    pub(crate) async fn serve<S>(&self, stream: S, peer: Peer, http: Http)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let router = self.router.clone();
        let service = service_fn(move |mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(peer);
            let mut router = router.clone();
            let (head, body) = request.into_parts();
            let body = Body::new(Lingering::new(body, &head.headers));
            let request = http::Request::from_parts(head, body);
            async move { router.call(request).await as Result<_, Infallible> }
        });
        let stream = TokioIo::new(Patient::new(stream, self.limits.stall));
        let ended = match http {
            Http::One => {
                let mut builder = hyper::server::conn::http1::Builder::new();
                builder
                    .timer(TokioTimer::new())
                    .header_read_timeout(self.limits.head)
                    .max_headers(self.limits.headers)
                    .max_buf_size(self.limits.head_bytes.max(8192));
                let mut connection =
                    pin!(builder.serve_connection(stream, service).with_upgrades());
                tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = self.lifetime.stopping.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                }
            }
            Http::Two => {
                let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                builder
                    .timer(TokioTimer::new())
                    .max_concurrent_streams(STREAMS)
                    .max_header_list_size(u32::try_from(self.limits.head_bytes).unwrap_or(u32::MAX))
                    .initial_stream_window_size(WINDOW)
                    .initial_connection_window_size(4 * WINDOW)
                    .keep_alive_interval(self.limits.head)
                    .keep_alive_timeout(self.limits.head);
                let mut connection = pin!(builder.serve_connection(stream, service));
                tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = self.lifetime.stopping.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "a connection ended early");
        }
    }
}
