//! Tokens of an identity provider: signed JWTs, with keys from a JWKS file or URL.
//!
//! The library verifies the signature with the one algorithm that both the header and the
//! configuration name; every claim is looked at here, so that each refusal is a line of this
//! file. Only public keys are ever taken from a key set.

mod claims;
mod keys;

use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use api::{CallerKind, Code, Problem, Timestamp};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;

use crate::Caller;
use claims::Claims;
use keys::{KeySet, Source};

pub use keys::KeysError;

/// Longest token that is looked at, in bytes.
pub const MAX_LENGTH: usize = 8192;
/// After how long keys are got again, though all that were asked for were there.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// For how long keys are used that could not be got again.
const MAX_STALE: Duration = Duration::from_secs(24 * 3600);

/// Where tokens come from and what they must say.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The `iss` of every token, to the letter.
    pub issuer: String,
    /// What `aud` must be, or have among others.
    pub audience: String,
    /// A file with the provider's keys. This, or `jwks_url`.
    #[serde(default)]
    pub jwks_file: Option<PathBuf>,
    /// The https URL of the provider's keys.
    #[serde(default)]
    pub jwks_url: Option<String>,
    /// The claim with the workspace's name.
    #[serde(default = "workspace_claim")]
    pub workspace_claim: String,
    /// The claim with the role's name.
    #[serde(default = "role_claim")]
    pub role_claim: String,
    /// The algorithms that are taken; with keys in pairs only.
    #[serde(default = "algorithms")]
    pub algorithms: Vec<String>,
    /// How far the provider's clock may be off, in seconds; 300 at most.
    #[serde(default = "leeway_sec")]
    pub leeway_sec: u64,
    /// Keys are not got again sooner than this after the last time, in seconds, whatever keys
    /// tokens name.
    #[serde(default = "min_refresh_sec")]
    pub min_refresh_sec: u64,
    /// `jwks_url` may be http, to this same machine. Not for files: for tests.
    #[serde(skip)]
    pub allow_loopback_http: bool,
}

fn workspace_claim() -> String {
    "workspace".into()
}

fn role_claim() -> String {
    "role".into()
}

fn algorithms() -> Vec<String> {
    ["ES256", "RS256", "EdDSA"].map(Into::into).into()
}

fn leeway_sec() -> u64 {
    30
}

fn min_refresh_sec() -> u64 {
    30
}

/// What is wrong with a [`Config`].
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Something is empty.
    #[error("{0} must not be empty")]
    Empty(&'static str),
    /// There are no keys, or two sources of them.
    #[error("set one of jwks_file and jwks_url")]
    Source,
    /// The URL is not one that keys are got from.
    #[error("jwks_url must be an https URL without a user or a password")]
    Url,
    /// There is no such algorithm, or its key is not in two parts.
    #[error(
        "`{0}` is not taken; the algorithms are RS256, RS384, RS512, PS256, PS384, PS512, ES256, \
         ES384 and EdDSA"
    )]
    Algorithm(String),
    /// The leeway is too long.
    #[error("leeway_sec is 300 at most")]
    Leeway,
    /// There is no client.
    #[error("cannot make an HTTPS client")]
    Client(#[source] reqwest::Error),
    /// The keys' file cannot be used.
    #[error(transparent)]
    Keys(#[from] KeysError),
}

/// Why a token is not taken.
#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    /// It is longer than any token.
    #[error("the token is longer than {MAX_LENGTH} bytes")]
    TooLong,
    /// It is not a JWT, or its header has something that is not understood.
    #[error("the token is not a JWT that is understood here")]
    Malformed,
    /// Its algorithm is not one that is taken: `none` and those with a shared key never are.
    #[error("the token's algorithm is not taken")]
    Algorithm,
    /// It does not say which key signed it.
    #[error("the token does not name its key")]
    NoKey,
    /// The provider has no such key.
    #[error("the token's key is not one of the provider's")]
    UnknownKey,
    /// It does not verify.
    #[error("the token's signature does not verify")]
    Signature,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// Another has issued it.
    #[error("the token is of another issuer")]
    Issuer,
    /// It is for another.
    #[error("the token is for another audience")]
    Audience,
    /// A claim is missing or has no meaning here.
    #[error("the token's claim `{0}` is missing or not understood")]
    Claim(String),
    /// The keys cannot be had.
    #[error("the identity provider's keys cannot be had")]
    Keys(#[source] KeysError),
}

impl From<JwtError> for Problem {
    /// Who holds a token that verifies may know what is wrong with it; others may not.
    fn from(error: JwtError) -> Self {
        let detail = match &error {
            JwtError::Expired
            | JwtError::NotYetValid
            | JwtError::Issuer
            | JwtError::Audience
            | JwtError::Claim(_) => error.to_string(),
            _ => "the token is not valid".to_owned(),
        };
        Self::new(Code::Unauthenticated, detail)
    }
}

/// Verifies tokens of one provider.
#[derive(Debug)]
pub struct Verifier {
    config: Config,
    algorithms: Vec<Algorithm>,
    source: Source,
    loaded: RwLock<Loaded>,
    /// When keys were last asked for. Held while they are: one asks, others wait.
    asked: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Loaded {
    keys: KeySet,
    at: Option<Instant>,
}

impl Loaded {
    fn age(&self) -> Duration {
        self.at.map_or(Duration::MAX, |at| at.elapsed())
    }
}

impl Verifier {
    /// Checks the configuration and reads the keys' file. Keys of a URL are got when the first
    /// token comes, so that a provider that is down does not keep the server down.
    ///
    /// # Errors
    /// `ConfigError`.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        for (name, value) in [
            ("issuer", &config.issuer),
            ("audience", &config.audience),
            ("workspace_claim", &config.workspace_claim),
            ("role_claim", &config.role_claim),
        ] {
            if value.is_empty() {
                return Err(ConfigError::Empty(name));
            }
        }
        if config.leeway_sec > 300 {
            return Err(ConfigError::Leeway);
        }
        let algorithms = config
            .algorithms
            .iter()
            .map(|name| asymmetric(name).ok_or_else(|| ConfigError::Algorithm(name.clone())))
            .collect::<Result<Vec<_>, _>>()?;
        if algorithms.is_empty() {
            return Err(ConfigError::Empty("algorithms"));
        }
        let (source, loaded) = match (&config.jwks_file, &config.jwks_url) {
            (Some(file), None) => {
                let keys = keys::read(file)?;
                (Source::File(file.clone()), Loaded { keys, at: Some(Instant::now()) })
            }
            (None, Some(url)) => {
                let url = source_url(url, config.allow_loopback_http).ok_or(ConfigError::Url)?;
                let client = keys::client(&url).map_err(ConfigError::Client)?;
                (Source::Url(url, client), Loaded::default())
            }
            _ => return Err(ConfigError::Source),
        };
        let loaded = RwLock::new(loaded);
        Ok(Self { config, algorithms, source, loaded, asked: Mutex::new(None) })
    }

    /// Who presents this token.
    ///
    /// # Errors
    /// `JwtError`.
    pub async fn admit(&self, token: &str, now: Timestamp) -> Result<Caller, JwtError> {
        if token.len() > MAX_LENGTH {
            return Err(JwtError::TooLong);
        }
        let header = claims::header(token)?;
        let algorithm = asymmetric(&header.alg)
            .filter(|algorithm| self.algorithms.contains(algorithm))
            .ok_or(JwtError::Algorithm)?;
        let kid = header.kid.ok_or(JwtError::NoKey)?;
        let key = self.key(&kid, algorithm).await?;
        let mut validation = Validation::new(algorithm);
        // Claims are looked at below, at the time that is given.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        let claims: Claims = jsonwebtoken::decode(token, &key, &validation)
            .map_err(|error| match error.kind() {
                jsonwebtoken::errors::ErrorKind::Json(_) => JwtError::Malformed,
                _ => JwtError::Signature,
            })?
            .claims;
        self.caller(&claims, now)
    }

    fn caller(&self, claims: &Claims, now: Timestamp) -> Result<Caller, JwtError> {
        let Config { issuer, audience, workspace_claim, role_claim, leeway_sec, .. } = &self.config;
        if claims.text("iss")? != issuer {
            return Err(JwtError::Issuer);
        }
        if !claims.is_for(audience)? {
            return Err(JwtError::Audience);
        }
        let leeway = Duration::from_secs(*leeway_sec);
        if claims.time("exp")?.ok_or_else(|| JwtError::Claim("exp".into()))?.after(leeway) <= now {
            return Err(JwtError::Expired);
        }
        if claims.time("nbf")?.is_some_and(|start| start > now.after(leeway)) {
            return Err(JwtError::NotYetValid);
        }
        let subject = claims.text("sub")?;
        let workspace = claims.text(workspace_claim)?;
        let refused = |claim: &str| JwtError::Claim(claim.to_owned());
        if !api::bound::Subject::is(subject) {
            return Err(refused("sub"));
        }
        if !api::bound::Workspace::is(workspace) {
            return Err(refused(workspace_claim));
        }
        Ok(Caller {
            subject: subject.to_owned(),
            kind: CallerKind::Jwt,
            role: claims.text(role_claim)?.parse().map_err(|_| refused(role_claim))?,
            workspace: Some(workspace.to_owned()),
            operations: None,
            token_id: None,
            key_id: None,
        })
    }

    /// The provider's key of this id, got anew where it is not known or all are old.
    async fn key(&self, kid: &str, algorithm: Algorithm) -> Result<DecodingKey, JwtError> {
        let (found, age) = self.look_up(kid, algorithm);
        let outcome = match &found {
            Some(_) if age < MAX_AGE => Ok(()),
            _ => self.refresh().await,
        };
        let (found, age) = match outcome {
            Ok(()) => self.look_up(kid, algorithm),
            // Keys that were good an hour ago are better than none, for a while.
            Err(_) if found.is_some() && age < MAX_STALE => (found, age),
            Err(error) => return Err(JwtError::Keys(error)),
        };
        found.filter(|_| age < MAX_STALE).ok_or(JwtError::UnknownKey)
    }

    fn look_up(&self, kid: &str, algorithm: Algorithm) -> (Option<DecodingKey>, Duration) {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        (loaded.keys.find(kid, algorithm).cloned(), loaded.age())
    }

    /// Gets the keys, unless that was done a moment ago.
    async fn refresh(&self) -> Result<(), KeysError> {
        let mut asked = self.asked.lock().await;
        let pause = Duration::from_secs(self.config.min_refresh_sec);
        if asked.is_some_and(|asked| asked.elapsed() < pause) {
            return Ok(());
        }
        *asked = Some(Instant::now());
        let keys = self.source.get().await?;
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        *loaded = Loaded { keys, at: Some(Instant::now()) };
        Ok(())
    }
}

/// The algorithm of this name, if its key is in two parts. `none` is the name of no algorithm.
fn asymmetric(name: &str) -> Option<Algorithm> {
    Some(match name {
        "RS256" => Algorithm::RS256,
        "RS384" => Algorithm::RS384,
        "RS512" => Algorithm::RS512,
        "PS256" => Algorithm::PS256,
        "PS384" => Algorithm::PS384,
        "PS512" => Algorithm::PS512,
        "ES256" => Algorithm::ES256,
        "ES384" => Algorithm::ES384,
        "EdDSA" => Algorithm::EdDSA,
        _ => return None,
    })
}

fn source_url(text: &str, allow_loopback_http: bool) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let loopback = match url.host()? {
        url::Host::Ipv4(address) => address.is_loopback(),
        url::Host::Ipv6(address) => address.is_loopback(),
        url::Host::Domain(_) => false,
    };
    let scheme = match url.scheme() {
        "https" => true,
        "http" => allow_loopback_http && loopback,
        _ => false,
    };
    let plain = url.username().is_empty() && url.password().is_none();
    (scheme && plain).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            issuer: "https://id.example".into(),
            audience: "sandforge".into(),
            jwks_file: None,
            jwks_url: Some("https://id.example/keys".into()),
            workspace_claim: workspace_claim(),
            role_claim: role_claim(),
            algorithms: algorithms(),
            leeway_sec: 30,
            min_refresh_sec: 30,
            allow_loopback_http: false,
        }
    }

    #[test]
    fn a_configuration_names_one_source_of_keys() {
        assert!(Verifier::new(config()).is_ok());
        let none = Config { jwks_url: None, ..config() };
        assert!(matches!(Verifier::new(none), Err(ConfigError::Source)));
        let two = Config { jwks_file: Some("/keys".into()), ..config() };
        assert!(matches!(Verifier::new(two), Err(ConfigError::Source)));
    }

    #[test]
    fn algorithms_with_a_shared_key_cannot_be_configured() {
        for name in ["none", "HS256", "HS384", "HS512", "es256", ""] {
            let config = Config { algorithms: vec![name.into()], ..config() };
            assert!(matches!(Verifier::new(config), Err(ConfigError::Algorithm(_))), "{name}");
        }
        let config = Config { algorithms: vec![], ..config() };
        assert!(matches!(Verifier::new(config), Err(ConfigError::Empty("algorithms"))));
    }

    #[test]
    fn keys_are_got_over_https_only() {
        for url in [
            "http://id.example/keys",
            "http://127.0.0.1/keys",
            "file:///keys",
            "ftp://id.example/keys",
            "https://user:password@id.example/keys",
            "keys",
            "",
        ] {
            let config = Config { jwks_url: Some(url.into()), ..config() };
            assert!(matches!(Verifier::new(config), Err(ConfigError::Url)), "{url}");
        }
        assert!(source_url("http://127.0.0.1:1/keys", true).is_some());
        assert!(source_url("http://[::1]:1/keys", true).is_some());
        assert!(source_url("http://localhost/keys", true).is_none());
        assert!(source_url("http://id.example/keys", true).is_none());
    }

    #[test]
    fn a_long_leeway_is_no_check() {
        let config = Config { leeway_sec: 301, ..config() };
        assert!(matches!(Verifier::new(config), Err(ConfigError::Leeway)));
    }

    #[test]
    fn an_unknown_option_is_refused() {
        let json =
            r#"{"issuer":"i","audience":"a","jwks_url":"https://x","allow_loopback_http":true}"#;
        assert!(serde_json::from_str::<Config>(json).is_err());
    }

    #[test]
    fn whose_token_does_not_verify_is_not_told_why() {
        let hidden = [JwtError::UnknownKey, JwtError::Signature, JwtError::Algorithm];
        for error in hidden {
            assert_eq!(Problem::from(error).detail, "the token is not valid");
        }
        assert_eq!(Problem::from(JwtError::Expired).detail, "the token has expired");
    }
}
