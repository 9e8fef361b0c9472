//! The REST API over TLS and a unix socket.
#![forbid(unsafe_code)]

mod certificate;
mod config;
mod connection;
mod host;
mod listen;
mod patience;
mod problem;
mod rate;
mod running;

pub use certificate::{CertificateError, authority};
pub use config::{Certificate, Config, Limits};
pub use listen::ListenError;
pub use running::{Embedded, Running, ServeError};
