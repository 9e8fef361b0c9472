//! A typed client of the REST API.
//!
//! [`Client`] has a method for each route, named as the route is in `api::ROUTES`. It speaks to
//! a unix socket, to an https URL whose certificate is known beforehand, or to a server in the
//! same process. What is long comes as a stream: [`Events`], [`Session`], [`Download`].
//!
//! ```no_run
//! # async fn example() -> Result<(), client::Error> {
//! use client::Client;
//! use client::api::{Command, CreateSandbox, Exec};
//!
//! let client = Client::builder().unix_socket("/run/user/1000/sandforge/api.sock").build()?;
//! let sandbox = client.create_sandbox(&CreateSandbox::default()).await?;
//! let result = client.exec(&sandbox.id, &Exec::new(Command::Shell("uname -a".into()))).await?;
//! print!("{}", result.stdout);
//! client.delete_sandbox(&sandbox.id, true).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Repetition
//! A request that reads, and one that carries an `Idempotency-Key` (which this client makes for
//! every route that takes one), is repeated where the connection broke or the server asked for
//! patience, as [`Retries`] say. Everything else is sent once.
#![forbid(unsafe_code)]

pub use api;

mod builder;
mod calls;
mod connect;
mod error;
mod events;
mod exec;
mod request;
mod route;
mod sign;
mod sse;
mod transfer;

use std::fmt;
use std::sync::Arc;

use http::HeaderValue;
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use zeroize::Zeroizing;

pub use builder::{Builder, Retries};
pub use connect::Stream;
pub use error::Error;
pub use events::{Events, Item};

pub use exec::{Output, Session, SessionInput, SessionOutput};
pub use sign::RequestKey;
pub use transfer::{Download, Upload};

use connect::{Connector, Route};
use request::Body;

/// A caller of one server. Clones share its connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    http: legacy::Client<Connector, Body>,
    /// Scheme and authority, before every path.
    base: String,
    host: HeaderValue,
    agent: HeaderValue,
    token: Option<Zeroizing<String>>,
    key: Option<RequestKey>,
    retries: Retries,
    /// For messages.
    target: String,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("target", &self.inner.target).finish_non_exhaustive()
    }
}

impl Client {
    /// A client that is to be put together.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Where the server is: the socket's path, or the URL.
    pub fn target(&self) -> &str {
        &self.inner.target
    }

    pub(crate) fn assemble(
        connector: Connector,
        authority: &str,
        token: Option<Zeroizing<String>>,
        key: Option<RequestKey>,
        retries: Retries,
    ) -> Result<Self, Error> {
        let target = connector.route.to_string();
        let base = match connector.route {
            // TLS is the connector's own concern, but the scheme is part of what is signed.
            Route::Tls { .. } => format!("https://{authority}"),
            Route::Unix(_) | Route::Factory(_) => format!("http://{authority}"),
        };
        let host = HeaderValue::from_str(authority)
            .map_err(|error| Error::Configuration(error.to_string()))?;
        let agent = HeaderValue::from_static(concat!("sandforge/", env!("CARGO_PKG_VERSION")));
        let http = legacy::Client::builder(TokioExecutor::new())
            // A connection that a restarted server has forgotten is found out by hyper.
            .pool_max_idle_per_host(8)
            .build(connector);
        Ok(Self { inner: Arc::new(Inner { http, base, host, agent, token, key, retries, target }) })
    }
}
