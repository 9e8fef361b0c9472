//! The way to registries: which host stands for one, with TLS or named as without, and who vouches.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client};

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
        let tls = |error: reqwest::Error| UpstreamError::Tls(reason(&error));
        Ok(Self {
            client: builder().https_only(true).tls_certs_merge(authorities).build().map_err(tls)?,
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

    pub(crate) fn client(&self, is_plain: bool) -> &Client {
        if is_plain { &self.plain_client } else { &self.client }
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
