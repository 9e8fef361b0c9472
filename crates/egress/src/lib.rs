//! The only way out of a sandbox.
//!
//! A guest has no network. It opens streams to a [`Gateway`]: connections to addresses, each of which
//! stands for a name, and DNS queries, which the gateway answers itself. Names decide: the gateway
//! judges, looks the name up, dials only what it looked up, and sees that every part of a connection
//! names the same host. Where a rule or a credential is about requests it ends the TLS connection with
//! a certificate of the sandbox's own authority, judges each request, puts credentials in and takes
//! them out of what comes back. Everything is written to a [`Journal`].
#![forbid(unsafe_code)]

mod authority;
mod aws;
mod basic;
mod body;
mod credential;
mod dns;
mod event;
mod gate;
mod gateway;
mod names;
mod pipeline;
mod pool;
mod stream;
mod upstream;
mod websocket;

pub use credential::Credential;
pub use event::{Decision, Event, Journal, Kind};
pub use gateway::{Config, GATEWAY_PORT, Gateway, OWN_ADDRESS, PROXY_PORT};
pub use stream::GuestStream;
pub use upstream::{DialError, Options, Upstream};

/// Why there is no gateway, or no such credential of one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificate authority could not be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(String),
    /// TLS does not take what was made for it.
    #[error("cannot set up TLS: {0}")]
    Tls(rustls::Error),
    /// The system has no randomness to give.
    #[error("cannot get random bytes from the system")]
    Random,
    /// Nobody would be trusted, or a certificate is not readable.
    #[error("no certificates to trust servers by: {0}")]
    Roots(String),
    /// The host's configuration of DNS is not usable.
    #[error("cannot look names up: {0}")]
    Resolver(String),
    /// The proxy on the way out is not usable.
    #[error("the proxy on the way out: {0}")]
    Proxy(String),
    /// A credential has characters that would end the header that it stands in.
    #[error(
        "the secret for {0} is empty, or has spaces or characters that no header can have; set it again"
    )]
    Secret(String),
    /// A placeholder is too short to be told from other text, or has characters of meaning.
    #[error("the placeholder for {0} cannot be used")]
    Placeholder(String),
    /// A credential cannot be taken out of what comes back.
    #[error("cannot look for the secret in what comes back: {0}")]
    Redact(#[from] redact::RedactError),
}

impl Error {
    fn certificate(error: impl std::fmt::Display) -> Self {
        Self::Certificate(error.to_string())
    }
}
