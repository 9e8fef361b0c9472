//! Connections to servers, kept for the next request of the same sandbox to the same server: never
//! for another sandbox.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use canonical::Authority;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::body::Sent;
use crate::upstream::{DialError, Upstream};

/// How long a connection without a request is kept.
const IDLE: Duration = Duration::from_secs(60);
/// Most idle connections to one server.
const MOST_IDLE: usize = 32;

/// Where a request goes and how.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Route {
    pub(crate) authority: Authority,
    pub(crate) is_secure: bool,
}

/// What a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    H1,
    H2,
}

#[derive(Default)]
pub(crate) struct Pool {
    idle: Arc<Mutex<Idle>>,
    /// Held while a connection is made that others may share.
    dialling: Mutex<HashMap<Route, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Default)]
struct Idle {
    h1: HashMap<Route, Vec<(http1::SendRequest<Sent>, Instant)>>,
    h2: HashMap<Route, http2::SendRequest<Sent>>,
    /// What was agreed on last: what guests are offered next.
    protocols: HashMap<Authority, Protocol>,
}

/// A connection that a request may use.
pub(crate) enum Connection {
    H1(Lease),
    H2(http2::SendRequest<Sent>),
}

/// An HTTP/1.1 connection that is in use.
pub(crate) struct Lease {
    route: Route,
    sender: http1::SendRequest<Sent>,
    pool: Weak<Mutex<Idle>>,
    /// It has served a request before, so the server may have closed it meanwhile.
    pub(crate) is_used: bool,
}

impl Lease {
    /// The response was read to its end.
    pub(crate) fn give_back(self) {
        let Some(pool) = self.pool.upgrade() else { return };
        if self.sender.is_closed() {
            return;
        }
        let mut idle = pool.lock().unwrap_or_else(PoisonError::into_inner);
        let list = idle.h1.entry(self.route).or_default();
        list.retain(|(sender, since)| since.elapsed() < IDLE && !sender.is_closed());
        if list.len() < MOST_IDLE {
            list.push((self.sender, Instant::now()));
        }
    }

    pub(crate) fn sender(&mut self) -> &mut http1::SendRequest<Sent> {
        &mut self.sender
    }
}

impl Pool {
    /// What the server at `authority` spoke last.
    pub(crate) fn protocol(&self, authority: &Authority) -> Option<Protocol> {
        self.lock().protocols.get(authority).copied()
    }

    /// A connection that is open already.
    async fn reuse(&self, route: &Route, only_h1: bool) -> Option<Connection> {
        if !only_h1 {
            let sender = self.lock().h2.get(route).filter(|sender| !sender.is_closed()).cloned();
            if let Some(mut sender) = sender
                && sender.ready().await.is_ok()
            {
                return Some(Connection::H2(sender));
            }
        }
        loop {
            let (mut sender, since) = self.lock().h1.get_mut(route)?.pop()?;
            if since.elapsed() < IDLE && !sender.is_closed() && sender.ready().await.is_ok() {
                return Some(Connection::H1(self.lease(route, sender, true)));
            }
        }
    }

    /// A connection that is open already, or a new one. Requests that could share one wait for it.
    pub(crate) async fn open(
        &self,
        upstream: &Upstream,
        route: &Route,
        allow_private: bool,
        only_h1: bool,
    ) -> Result<Connection, DialError> {
        if let Some(connection) = self.reuse(route, only_h1).await {
            return Ok(connection);
        }
        if only_h1 || !route.is_secure || self.protocol(&route.authority) == Some(Protocol::H1) {
            return self.dial(upstream, route, allow_private, only_h1).await;
        }
        let turn = {
            let mut dialling = self.dialling.lock().unwrap_or_else(PoisonError::into_inner);
            dialling.retain(|_, turn| Arc::strong_count(turn) > 1);
            dialling.entry(route.clone()).or_default().clone()
        };
        let _turn = turn.lock().await;
        match self.reuse(route, only_h1).await {
            Some(connection) => Ok(connection),
            None => self.dial(upstream, route, allow_private, only_h1).await,
        }
    }

    /// A new connection.
    pub(crate) async fn dial(
        &self,
        upstream: &Upstream,
        route: &Route,
        allow_private: bool,
        only_h1: bool,
    ) -> Result<Connection, DialError> {
        let Authority { host, port } = &route.authority;
        let stream = upstream.dial(host, *port, allow_private).await?;
        let broken = |error: hyper::Error| DialError::Connect(host.to_string(), error.to_string());
        if !route.is_secure {
            let sender = h1(stream).await.map_err(broken)?;
            return Ok(Connection::H1(self.lease(route, sender, false)));
        }
        let stream = upstream.secure(stream, host, only_h1).await?;
        let session = stream.get_ref().1;
        let speaks_h2 = session.alpn_protocol() == Some(b"h2");
        if !only_h1 {
            let protocol = if speaks_h2 { Protocol::H2 } else { Protocol::H1 };
            self.lock().protocols.insert(route.authority.clone(), protocol);
        }
        if !speaks_h2 {
            let sender = h1(stream).await.map_err(broken)?;
            return Ok(Connection::H1(self.lease(route, sender, false)));
        }
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .adaptive_window(true)
            .max_header_list_size(64 << 10)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a server ended");
            }
        });
        self.lock().h2.insert(route.clone(), sender.clone());
        Ok(Connection::H2(sender))
    }

    fn lease(&self, route: &Route, sender: http1::SendRequest<Sent>, is_used: bool) -> Lease {
        Lease { route: route.clone(), sender, pool: Arc::downgrade(&self.idle), is_used }
    }

    /// Closes all connections that no request uses.
    pub(crate) fn clear(&self) {
        let mut idle = self.lock();
        idle.h1.clear();
        idle.h2.clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn h1<S>(stream: S) -> hyper::Result<http1::SendRequest<Sent>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_headers(crate::gate::MAX_FIELDS)
        .handshake(TokioIo::new(stream))
        .await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to a server ended");
        }
    });
    Ok(sender)
}

/// Why a request got no response.
pub(crate) struct Unanswered {
    pub(crate) error: hyper::Error,
    /// The request, where nothing of it was sent.
    pub(crate) request: Option<Request<Sent>>,
}

impl Connection {
    /// Whether the server may have closed it since it was used last.
    pub(crate) fn is_used(&self) -> bool {
        match self {
            Self::H1(lease) => lease.is_used,
            Self::H2(_) => true,
        }
    }

    /// Sends a request. The lease comes back with the response, to be kept until its body ends.
    pub(crate) async fn send(
        self,
        request: Request<Sent>,
    ) -> Result<(Response<Incoming>, Option<Lease>), Unanswered> {
        let sent = match self {
            Self::H1(mut lease) => lease
                .sender()
                .try_send_request(request)
                .await
                .map(|response| (response, Some(lease))),
            Self::H2(mut sender) => {
                sender.try_send_request(request).await.map(|response| (response, None))
            }
        };
        sent.map_err(|mut error| Unanswered {
            request: error.take_message(),
            error: error.into_error(),
        })
    }
}
