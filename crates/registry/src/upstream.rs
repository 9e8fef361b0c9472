//! The way to registries: which host stands for one, with TLS or named as without, and who vouches.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use address::Reach;
use reqwest::dns::{Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Url};

use crate::settings::{Settings, SettingsError, read};

const CONNECT: Duration = Duration::from_secs(15);
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(60);

/// Why there is no way to registries.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// What is configured cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The authorities are none.
    #[error("{path} has no certificates of authorities: {reason}")]
    Authorities {
        /// Which file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

/// Clients for registries, shared by all pulls.
#[derive(Debug, Clone)]
pub struct Upstream {
    client: Client,
    /// Goes to public addresses only.
    public_client: Client,
    plain_client: Client,
    plain: BTreeSet<String>,
    realms: BTreeMap<String, Vec<String>>,
    endpoints: BTreeMap<String, String>,
    logins: BTreeMap<String, String>,
}

impl Upstream {
    /// As configured. The host's own authorities are trusted, and a proxy of the environment is used,
    /// but not for hosts without TLS.
    ///
    /// # Errors
    /// `UpstreamError`.
    pub fn new(settings: &Settings) -> Result<Self, UpstreamError> {
        let settings = settings.over_known()?;
        let mut authorities = Vec::new();
        if let Some(path) = &settings.ca {
            let failed = |reason: String| UpstreamError::Authorities {
                path: path.display().to_string(),
                reason,
            };
            authorities = Certificate::from_pem_bundle(&read(path)?)
                .map_err(|error| failed(error.to_string()))?;
            if authorities.is_empty() {
                return Err(failed("it is PEM without any".into()));
            }
        }
        let builder = || {
            Client::builder()
                .redirect(Policy::none())
                .connect_timeout(CONNECT)
                .read_timeout(SILENCE)
                .user_agent(concat!("sandforge/", env!("CARGO_PKG_VERSION")))
                // Layers come over connections of their own, and do not wait for each other's windows.
                .http1_only()
        };
        let with_tls = |builder: reqwest::ClientBuilder| {
            builder.https_only(true).tls_certs_merge(authorities.clone())
        };
        let tls = |error: reqwest::Error| UpstreamError::Tls(reason(&error));
        Ok(Self {
            client: with_tls(builder()).build().map_err(tls)?,
            public_client: with_tls(builder())
                .dns_resolver(Arc::new(PublicOnly))
                .build()
                .map_err(tls)?,
            plain_client: builder().no_proxy().build().map_err(tls)?,
            plain: settings.plain_http.into_iter().collect(),
            realms: settings.realms,
            endpoints: settings.endpoints,
            logins: settings.logins,
        })
    }

    /// The host that stands for this registry.
    pub(crate) fn endpoint<'a>(&'a self, registry: &'a str) -> &'a str {
        self.endpoints.get(registry).map_or(registry, String::as_str)
    }

    pub(crate) fn is_plain(&self, host: &str) -> bool {
        self.plain.contains(host)
    }

    /// Whether `host` gives tokens for `endpoint`.
    pub(crate) fn is_realm(&self, endpoint: &str, host: &str) -> bool {
        endpoint == host
            || self.realms.get(endpoint).is_some_and(|realms| realms.iter().any(|one| one == host))
    }

    /// What logins for this endpoint are kept under.
    pub(crate) fn login<'a>(&'a self, endpoint: &'a str) -> &'a str {
        self.logins.get(endpoint).map_or(endpoint, String::as_str)
    }

    /// What asks this host. Who is asked without TLS was named, wherever that is.
    pub(crate) fn client(&self, is_plain: bool, only_public: bool) -> &Client {
        match (is_plain, only_public) {
            (true, _) => &self.plain_client,
            (false, true) => &self.public_client,
            (false, false) => &self.client,
        }
    }
}

/// Where a name leads, if that is on the internet: what is looked up is what is dialled.
#[derive(Debug)]
struct PublicOnly;

/// An address that is not on the internet.
#[derive(Debug, thiserror::Error)]
#[error("{host} is at an address that is {reach}, where no registry of the internet sends anybody")]
pub(crate) struct NotPublic {
    host: String,
    reach: Reach,
}

impl NotPublic {
    /// Whether that is why a request failed.
    pub(crate) fn of(error: &reqwest::Error) -> Option<&Self> {
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found);
            }
            cause = error.source();
        }
        None
    }

    /// Of a URL that has an address and no name, which nobody looks up.
    pub(crate) fn of_url(url: &Url) -> Option<Self> {
        let host = url.host_str()?;
        let address = host.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
        let reach = address::reach(address);
        (reach != Reach::Public).then(|| Self { host: host.to_owned(), reach })
    }
}

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let mut elsewhere = None;
            let mut public: Vec<SocketAddr> = Vec::new();
            for address in found {
                match address::reach(address.ip()) {
                    Reach::Public => public.push(address),
                    reach => elsewhere = Some(reach),
                }
            }
            match elsewhere {
                Some(reach) if public.is_empty() => {
                    Err(NotPublic { host: crate::shown::shown(name.as_str()), reach }.into())
                }
                _ => Ok(Box::new(public.into_iter()) as reqwest::dns::Addrs),
            }
        })
    }
}

/// The chain of causes without the URL, whose query may be a credential.
pub(crate) fn reason(error: &reqwest::Error) -> String {
    let mut causes = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        causes.push(error.to_string());
        cause = error.source();
    }
    if error.is_timeout() && causes.is_empty() {
        causes.push("no answer in time".into());
    }
    // Each layer of the client repeats what the one below said.
    let mut last = causes.pop().unwrap_or_else(|| "the request failed".into());
    if last.contains("InvalidContentType") {
        // TLS was answered with something else.
        last = "it does not speak TLS; where that is right, name it under plain_http in \
                image-registries.toml"
            .into();
    }
    crate::shown::shown(&last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_to_an_address_of_one_s_own_is_seen_in_every_spelling() {
        let refused = |url: &str| NotPublic::of_url(&url.parse().unwrap()).is_some();
        for url in [
            "https://127.0.0.1/x",
            "https://10.1.2.3:444/",
            "https://0x7f.1/",
            "https://169.254.169.254/latest",
            "https://[::1]/",
            "https://[::ffff:10.0.0.1]/",
        ] {
            assert!(refused(url), "{url}");
        }
        assert!(!refused("https://1.1.1.1/") && !refused("https://example.com/"));
    }

    #[tokio::test]
    async fn a_name_that_leads_to_this_host_is_not_dialled_for_a_redirect() {
        let settings = Settings::default();
        let upstream = Upstream::new(&settings).unwrap();
        let error = upstream.client(false, true).get("https://localhost:9/").send().await;
        let error = error.unwrap_err();
        assert!(NotPublic::of(&error).unwrap().to_string().contains("loopback"));
    }
}
