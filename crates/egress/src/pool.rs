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
/// Most idle connections to one server, and to all servers of a sandbox: under a rule for many hosts
/// a guest could have the host's descriptors kept open otherwise.
const MOST_IDLE: usize = 64;
const MOST_KEPT: usize = 256;
/// Most servers whose protocol is remembered.
const MOST_KNOWN: usize = 4096;

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
    /// How many `h1` has.
    kept: usize,
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
        pool.lock().unwrap_or_else(PoisonError::into_inner).keep(self.route, self.sender);
    }

    pub(crate) fn sender(&mut self) -> &mut http1::SendRequest<Sent> {
        &mut self.sender
    }
}

impl Idle {
    fn keep(&mut self, route: Route, sender: http1::SendRequest<Sent>) {
        if self.kept >= MOST_KEPT {
            self.h1.retain(|_, list| {
                list.retain(is_usable);
                !list.is_empty()
            });
            self.kept = self.h1.values().map(Vec::len).sum();
        }
        let list = self.h1.entry(route).or_default();
        // The first has been there for the longest. One that its server closed meanwhile is found out
        // when it is taken.
        let is_due = list.len() >= MOST_IDLE || list.first().is_some_and(|one| !is_usable(one));
        if is_due {
            let before = list.len();
            list.retain(is_usable);
            self.kept -= before - list.len();
        }
        if list.len() < MOST_IDLE && self.kept < MOST_KEPT {
            list.push((sender, Instant::now()));
            self.kept += 1;
        }
    }

    fn take(&mut self, route: &Route) -> Option<(http1::SendRequest<Sent>, Instant)> {
        let taken = self.h1.get_mut(route)?.pop()?;
        self.kept -= 1;
        Some(taken)
    }

    fn share(&mut self, route: Route, sender: http2::SendRequest<Sent>) {
        if self.h2.len() >= MOST_KEPT {
            self.h2.retain(|_, sender| !sender.is_closed());
        }
        if self.h2.len() >= MOST_KEPT {
            // Requests that are under way hold theirs open.
            self.h2.clear();
        }
        self.h2.insert(route, sender);
    }

    fn learn(&mut self, authority: Authority, protocol: Protocol) {
        if self.protocols.len() >= MOST_KNOWN {
            self.protocols.clear();
        }
        self.protocols.insert(authority, protocol);
    }
}

fn is_usable((sender, since): &(http1::SendRequest<Sent>, Instant)) -> bool {
    since.elapsed() < IDLE && !sender.is_closed()
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
            let (mut sender, since) = self.lock().take(route)?;
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
            self.lock().learn(route.authority.clone(), protocol);
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
        self.lock().share(route.clone(), sender.clone());
        Ok(Connection::H2(sender))
    }

    fn lease(&self, route: &Route, sender: http1::SendRequest<Sent>, is_used: bool) -> Lease {
        Lease { route: route.clone(), sender, pool: Arc::downgrade(&self.idle), is_used }
    }

    /// Closes all connections that no request uses.
    pub(crate) fn clear(&self) {
        let mut idle = self.lock();
        idle.h1.clear();
        idle.kept = 0;
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

#[cfg(test)]
mod tests {
    use canonical::Host;
    use tokio::net::TcpListener;

    use super::*;
    use crate::upstream::Options;

    #[tokio::test]
    async fn a_thousand_servers_keep_no_more_connections_open_than_there_is_room_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let host = |number: usize| Host::parse(&format!("n{number}.example")).unwrap();
        let pins = (0..1000).map(|at| (host(at).name().unwrap().clone(), address)).collect();
        let upstream = Upstream::new(Options { pins, ..Options::default() }).unwrap();
        let pool = Pool::default();
        let mut open = Vec::new();
        for at in 0..1000 {
            let authority = Authority { host: host(at), port: 80 };
            let route = Route { authority, is_secure: false };
            let Ok(Connection::H1(lease)) = pool.dial(&upstream, &route, false, true).await else {
                panic!("no connection");
            };
            open.push(listener.accept().await.unwrap());
            lease.give_back();
        }
        let kept = {
            let idle = pool.lock();
            (idle.kept, idle.h1.values().map(Vec::len).sum())
        };
        assert_eq!(kept, (MOST_KEPT, MOST_KEPT));
        let route = Route { authority: Authority { host: host(0), port: 80 }, is_secure: false };
        assert!(pool.reuse(&route, true).await.is_some_and(|one| one.is_used()));
        assert_eq!(pool.lock().kept, MOST_KEPT - 1);
        for number in 0..=MOST_KNOWN {
            pool.lock().learn(Authority { host: host(number), port: 443 }, Protocol::H2);
        }
        assert!(pool.lock().protocols.len() <= MOST_KNOWN);
    }
}
