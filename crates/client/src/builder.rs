//! Putting a client together.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use crate::connect::{Connector, Route, Stream};
use crate::{Client, Error, RequestKey};

/// Until a connection is made.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often, and for how long, a request that may be repeated is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retries {
    /// Attempts in all; 1 repeats nothing.
    pub attempts: u32,
    /// A server that asks for more patience than this is not asked again.
    pub longest_wait: Duration,
}

impl Retries {
    /// Every request is sent once.
    pub const NONE: Self = Self { attempts: 1, longest_wait: Duration::ZERO };
}

impl Default for Retries {
    fn default() -> Self {
        Self { attempts: 4, longest_wait: Duration::from_secs(30) }
    }
}

/// Where the server is, as it was asked for.
enum Target {
    Unix(PathBuf),
    Url(String),
    Route(Route),
}

/// A client that is being put together. Begin with [`Client::builder`].
#[derive(Default)]
pub struct Builder {
    target: Option<Target>,
    token: Option<Zeroizing<String>>,
    authorities: Vec<u8>,
    key: Option<RequestKey>,
    retries: Retries,
    patience: Option<Duration>,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("retries", &self.retries).finish_non_exhaustive()
    }
}

impl Builder {
    /// Connects to the unix socket at this path. Its server knows the caller by user id.
    #[must_use]
    pub fn unix_socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.target = Some(Target::Unix(path.into()));
        self
    }

    /// Connects to this URL: `https://HOST[:PORT]`, port 8585 where none is given.
    #[must_use]
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.target = Some(Target::Url(url.into()));
        self
    }

    /// Asks `factory` for each connection: for a server in this process.
    #[must_use]
    pub fn streams<F, W, S>(mut self, factory: F) -> Self
    where
        F: Fn() -> W + Send + Sync + 'static,
        W: Future<Output = io::Result<S>> + Send + 'static,
        S: Stream,
    {
        let factory = Arc::new(move || {
            let made = factory();
            Box::pin(async { Ok(Box::new(made.await?) as Box<dyn Stream>) }) as _
        });
        self.target = Some(Target::Route(Route::Factory(factory)));
        self
    }

    /// Sends this token with each request. It is wiped when the client is dropped.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(Zeroizing::new(token.into()));
        self
    }

    /// Trusts these certificates, in PEM, and no others: those of the server itself or of who
    /// signed them. `sandforge serve --print-ca` prints the server's.
    #[must_use]
    pub fn authorities(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.authorities = pem.into();
        self
    }

    /// Signs each request with this key.
    #[must_use]
    pub fn sign_with(mut self, key: RequestKey) -> Self {
        self.key = Some(key);
        self
    }

    /// Repeats requests so, where that is safe: those that read, and those with an
    /// `Idempotency-Key`, which every POST of this client has.
    #[must_use]
    pub fn retries(mut self, retries: Retries) -> Self {
        self.retries = retries;
        self
    }

    /// Gives up a connection that is not made in this time; ten seconds when not set. Requests
    /// themselves have no limit of time: drop the future to give one up.
    #[must_use]
    pub fn connect_timeout(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// The client. Nothing is connected yet.
    ///
    /// # Errors
    /// [`Error::Configuration`], where the URL, the token or the certificates are unusable.
    pub fn build(self) -> Result<Client, Error> {
        let missing = || Error::Configuration("a client needs a socket, a URL or streams".into());
        let (route, authority) = match self.target.ok_or_else(missing)? {
            Target::Unix(path) => (Route::Unix(path), "localhost".to_owned()),
            Target::Route(route) => (route, "localhost".to_owned()),
            Target::Url(url) => tls(&url, &self.authorities)?,
        };
        if let Some(token) = &self.token {
            let plain = token.bytes().all(|byte| matches!(byte, 0x21..=0x7e));
            if token.is_empty() || !plain {
                let text = "the token is empty, or has spaces or control characters in it";
                return Err(Error::Configuration(text.into()));
            }
        }
        let connector = Connector { route, patience: self.patience.unwrap_or(PATIENCE) };
        Client::assemble(connector, &authority, self.token, self.key, self.retries)
    }
}

/// Where the URL leads, and what the Host header says.
fn tls(url: &str, authorities: &[u8]) -> Result<(Route, String), Error> {
    const PORT: u16 = 8585;
    let bad = |why: &str| Error::Configuration(format!("{url:?} is no URL of a server: {why}"));
    let parsed = url::Url::parse(url).map_err(|error| bad(&error.to_string()))?;
    if parsed.scheme() != "https" {
        return Err(bad("only https:// is spoken over a network"));
    }
    if !matches!(parsed.path(), "" | "/") || parsed.query().is_some() {
        return Err(bad("nothing follows the port"));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(bad("a token goes into SANDFORGE_TOKEN, not into a URL"));
    }
    let host = parsed.host_str().ok_or_else(|| bad("it has no host"))?;
    // `Url` leaves out 443, which is what https means without a port elsewhere.
    let port = match parsed.port() {
        Some(port) => port,
        None if url.trim_end_matches('/').ends_with(":443") => 443,
        None => PORT,
    };
    let plain = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(plain.to_owned()).map_err(|error| bad(&error.to_string()))?;
    let connector = TlsConnector::from(Arc::new(trust(authorities)?));
    let authority = format!("{host}:{port}");
    Ok((Route::Tls { host: plain.to_owned(), port, name, connector }, authority))
}

fn trust(pem: &[u8]) -> Result<ClientConfig, Error> {
    let unusable = |why: String| Error::Configuration(format!("the CA certificates: {why}"));
    let mut roots = RootCertStore::empty();
    let certificates: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(error.to_string()))?;
    for certificate in certificates {
        roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
    }
    if roots.is_empty() {
        let why = "there are none; `sandforge serve --print-ca` prints the server's";
        return Err(unusable(why.into()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> String {
        let Err(error) = tls(url, &[]) else { panic!("{url} is taken") };
        error.to_string()
    }

    #[test]
    fn a_url_is_https_and_a_host() {
        assert!(refused("http://localhost:8585").contains("only https"));
        assert!(refused("https://localhost/v1").contains("nothing follows"));
        assert!(refused("https://token@localhost").contains("SANDFORGE_TOKEN"));
        assert!(refused("localhost:8585").contains("only https"));
    }

    #[test]
    fn a_server_without_known_certificates_is_not_trusted() {
        assert!(refused("https://localhost").contains("--print-ca"));
    }

    #[test]
    fn a_token_is_checked_and_never_shown() {
        let builder = Client::builder().unix_socket("/x").token("sf_live_canary\r\nX: y");
        assert!(!format!("{builder:?}").contains("canary"));
        let error = builder.build().unwrap_err().to_string();
        assert!(error.contains("control characters") && !error.contains("canary"), "{error}");
    }
}
