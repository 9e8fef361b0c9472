//! One attempt.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use address::Reach;
use reqwest::header::{CONTENT_TYPE, USER_AGENT};
use reqwest::{Certificate, Client, Url};
use wire::text::Secret;

use crate::signature;

/// What a courier may do.
#[derive(Debug, Clone)]
pub struct Limits {
    /// For the whole attempt, from the look-up of the name to the status.
    pub patience: Duration,
    /// Receivers in networks of one's own, and on this host, over http too. Metadata services never.
    pub private: bool,
    /// Authorities besides the host's own, as PEM.
    pub authorities: Vec<Vec<u8>>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { patience: Duration::from_secs(10), private: false, authorities: Vec::new() }
    }
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The receiver's address is not one that notices may go to.
    #[error("{0}")]
    Forbidden(String),
    /// The name is not to be found.
    #[error("cannot find {host}: {reason}")]
    Unresolved {
        /// Which.
        host: String,
        /// What the resolver said.
        reason: String,
    },
    /// It answered, but did not take it.
    #[error("the receiver answered {0}")]
    Refused(u16),
    /// It did not answer.
    #[error("no answer: {0}")]
    Unanswered(String),
}

impl Failure {
    /// The status, where there was one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused(status) => Some(*status),
            _ => None,
        }
    }
}

/// Carries notices.
#[derive(Debug, Clone)]
pub struct Courier {
    limits: Limits,
}

/// A URL as it may be shown: what stands in its query or before an `@` may be a password.
struct Shown<'a>(&'a Url);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.0.scheme(), self.0.host_str().unwrap_or_default())?;
        f.write_str(self.0.path())
    }
}

impl Courier {
    /// One with these limits.
    pub fn new(limits: Limits) -> Self {
        Self { limits }
    }

    /// Whether notices may go to this URL, as far as can be told without a look-up.
    ///
    /// # Errors
    /// `Forbidden`, with the reason for the person who asked.
    pub fn check(&self, url: &str) -> Result<Url, Failure> {
        let forbidden = |reason: String| Err(Failure::Forbidden(reason));
        let Ok(url) = Url::parse(url) else {
            return forbidden("it is not a URL: https://host/path is one".into());
        };
        match url.scheme() {
            "https" => {}
            "http" if self.limits.private => {}
            other => {
                return forbidden(format!(
                    "notices go by https, and this is {other}: a signature \
                                          does not hide what it signs"
                ));
            }
        }
        if !url.username().is_empty() || url.password().is_some() {
            return forbidden("a name and password in the URL are not sent: leave them out".into());
        }
        // The parser has brought every way of writing an IPv4 address to one.
        let literal = match url.host() {
            None => return forbidden("the URL names no host".into()),
            Some(url::Host::Domain(_)) => None,
            Some(url::Host::Ipv4(v4)) => Some(IpAddr::V4(v4)),
            Some(url::Host::Ipv6(v6)) => Some(IpAddr::V6(v6)),
        };
        match literal {
            Some(literal) => self.vet(literal).map(|()| url),
            None => Ok(url),
        }
    }

    fn vet(&self, address: IpAddr) -> Result<(), Failure> {
        let reach = address::reach(address);
        let own = matches!(reach, Reach::Private | Reach::Loopback);
        if reach == Reach::Public || (own && self.limits.private) {
            return Ok(());
        }
        Err(Failure::Forbidden(format!(
            "{address} is {reach}, and notices go to the internet only{}",
            if own { " unless private receivers are allowed" } else { "" }
        )))
    }

    /// Sends `body`, JSON, and waits for a status of 2xx.
    ///
    /// # Errors
    /// `Failure`.
    pub async fn deliver(
        &self,
        url: &str,
        secret: &Secret,
        delivery: &str,
        body: Vec<u8>,
    ) -> Result<u16, Failure> {
        let url = self.check(url)?;
        match tokio::time::timeout(self.limits.patience, self.send(url, secret, delivery, body))
            .await
        {
            Ok(result) => result,
            Err(_) => Err(Failure::Unanswered(format!("not within {:?}", self.limits.patience))),
        }
    }

    async fn send(
        &self,
        url: Url,
        secret: &Secret,
        delivery: &str,
        body: Vec<u8>,
    ) -> Result<u16, Failure> {
        let addresses = self.resolve(&url).await?;
        let client = self.client(&url, &addresses)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let response = client
            .post(url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("sandforge/", env!("CARGO_PKG_VERSION")))
            .header("Sandforge-Delivery", delivery)
            .header(signature::HEADER, signature::sign(secret, now, &body))
            .body(body)
            .send()
            .await
            .map_err(|error| unanswered(&url, &error))?;
        let status = response.status();
        match status.is_success() {
            true => Ok(status.as_u16()),
            false => Err(Failure::Refused(status.as_u16())),
        }
    }

    /// The addresses of the URL's host, every one of them vetted.
    async fn resolve(&self, url: &Url) -> Result<Vec<SocketAddr>, Failure> {
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or(443);
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let unresolved = |reason: String| Failure::Unresolved { host: host.into(), reason };
        let addresses: Vec<_> = tokio::net::lookup_host((bare, port))
            .await
            .map_err(|error| unresolved(error.to_string()))?
            .collect();
        if addresses.is_empty() {
            return Err(unresolved("it has no address".into()));
        }
        // One bad address among good ones is how a name is made to point inwards.
        addresses.iter().try_for_each(|address| self.vet(address.ip()))?;
        Ok(addresses)
    }

    /// A client that knows these addresses and no other, nor any proxy.
    fn client(&self, url: &Url, addresses: &[SocketAddr]) -> Result<Client, Failure> {
        let mut authorities = Vec::new();
        for pem in &self.limits.authorities {
            let bundle = Certificate::from_pem_bundle(pem)
                .map_err(|error| Failure::Unanswered(error.to_string()))?;
            authorities.extend(bundle);
        }
        Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .resolve_to_addrs(url.host_str().unwrap_or_default(), addresses)
            .tls_certs_merge(authorities)
            .build()
            .map_err(|error| unanswered(url, &error))
    }
}

/// The chain of causes, without the URL, which may hold what is not to be shown.
fn unanswered(url: &Url, error: &reqwest::Error) -> Failure {
    let mut words = Shown(url).to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        words.push_str(": ");
        words.push_str(&error.to_string());
        cause = error.source();
    }
    Failure::Unanswered(words)
}
