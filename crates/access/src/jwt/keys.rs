//! Key sets of identity providers.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use serde::Deserialize;
use serde_json::Value;
use url::Url;

/// Largest key set, in bytes.
const MAX_BYTES: usize = 256 << 10;
/// Most keys of a set.
const MAX_KEYS: usize = 100;
/// For how long a provider is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file cannot be read.
    #[error("cannot read the key set {}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The provider did not give them.
    #[error("cannot get the key set")]
    Get(#[source] reqwest::Error),
    /// The provider answered with something else.
    #[error("cannot get the key set: the answer has the status {0}")]
    Status(u16),
    /// It is too large.
    #[error("the key set has more than {MAX_BYTES} bytes or {MAX_KEYS} keys")]
    TooLarge,
    /// It is not one.
    #[error("the key set is not JSON with a list of `keys`: {0}")]
    Json(serde_json::Error),
    /// None of its keys can verify a signature.
    #[error("the key set has no key that verifies signatures; keys need a `kid`")]
    NoKey,
}

/// Public keys by their id.
#[derive(Default)]
pub(super) struct KeySet(Vec<Key>);

struct Key {
    kid: String,
    /// The only one that the key is for, where it says so.
    algorithm: Option<Algorithm>,
    family: AlgorithmFamily,
    key: DecodingKey,
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| &key.kid)).finish()
    }
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

impl KeySet {
    /// Reads a set. Keys that are not understood, or not for signatures, or secret, are left
    /// out: others may use the same set for more.
    pub(super) fn parse(json: &[u8]) -> Result<Self, KeysError> {
        if json.len() > MAX_BYTES {
            return Err(KeysError::TooLarge);
        }
        let document: Document = serde_json::from_slice(json).map_err(KeysError::Json)?;
        if document.keys.len() > MAX_KEYS {
            return Err(KeysError::TooLarge);
        }
        let keys: Vec<Key> = document.keys.into_iter().filter_map(Key::read).collect();
        match keys.is_empty() {
            true => Err(KeysError::NoKey),
            false => Ok(Self(keys)),
        }
    }

    pub(super) fn find(&self, kid: &str, algorithm: Algorithm) -> Option<&DecodingKey> {
        let key = self.0.iter().find(|key| {
            key.kid == kid
                && key.family == algorithm.family()
                && key.algorithm.is_none_or(|only| only == algorithm)
        })?;
        Some(&key.key)
    }
}

impl Key {
    fn read(json: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(json).ok()?;
        let common = &jwk.common;
        let for_signatures = matches!(common.public_key_use, None | Some(PublicKeyUse::Signature));
        let for_verifying = common
            .key_operations
            .as_ref()
            .is_none_or(|operations| operations.contains(&KeyOperations::Verify));
        let family = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => AlgorithmFamily::Rsa,
            AlgorithmParameters::EllipticCurve(_) => AlgorithmFamily::Ec,
            AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
                AlgorithmFamily::Ed
            }
            // A shared key, or nothing that is known.
            _ => return None,
        };
        let algorithm = match &common.key_algorithm {
            None => None,
            Some(name) => Some(super::asymmetric(&name.to_string())?),
        };
        Some(Self {
            kid: common.key_id.clone().filter(|_| for_signatures && for_verifying)?,
            algorithm,
            family,
            key: DecodingKey::from_jwk(&jwk).ok()?,
        })
    }
}

/// Where a set comes from.
#[derive(Debug)]
pub(super) enum Source {
    File(PathBuf),
    Url(Url, reqwest::Client),
}

impl Source {
    pub(super) async fn get(&self) -> Result<KeySet, KeysError> {
        match self {
            Self::File(path) => read(path),
            Self::Url(url, client) => fetch(client, url).await,
        }
    }
}

/// Reads a set's file: small, and on this machine.
pub(super) fn read(path: &Path) -> Result<KeySet, KeysError> {
    let failed = |source| KeysError::File { path: path.to_owned(), source };
    let mut json = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    // One byte more, so that too large is not taken for cut off.
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut json).map_err(failed)?;
    KeySet::parse(&json)
}

/// A client that goes to one address and follows nothing.
pub(super) fn client(url: &Url) -> Result<reqwest::Client, reqwest::Error> {
    // The first to install a provider wins, and all of this program install the same.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder()
        .https_only(url.scheme() == "https")
        .redirect(reqwest::redirect::Policy::none())
        .timeout(PATIENCE)
        .build()
}

async fn fetch(client: &reqwest::Client, url: &Url) -> Result<KeySet, KeysError> {
    let mut response = client.get(url.clone()).send().await.map_err(KeysError::Get)?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(KeysError::Status(response.status().as_u16()));
    }
    let mut json = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(KeysError::Get)? {
        if json.len() + chunk.len() > MAX_BYTES {
            return Err(KeysError::TooLarge);
        }
        json.extend_from_slice(&chunk);
    }
    KeySet::parse(&json)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ED: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

    fn set(keys: &Value) -> Result<KeySet, KeysError> {
        KeySet::parse(json!({ "keys": keys }).to_string().as_bytes())
    }

    #[test]
    fn a_key_is_found_by_its_id_for_its_algorithm() {
        let keys = set(&json!([
            {"kty": "OKP", "crv": "Ed25519", "x": ED, "kid": "a", "use": "sig", "more": 1},
            {"kty": "OKP", "crv": "Ed25519", "x": ED, "kid": "b", "alg": "EdDSA"},
        ]))
        .unwrap();
        assert!(keys.find("a", Algorithm::EdDSA).is_some());
        assert!(keys.find("b", Algorithm::EdDSA).is_some());
        assert!(keys.find("c", Algorithm::EdDSA).is_none());
        assert!(keys.find("a", Algorithm::ES256).is_none());
    }

    #[test]
    fn keys_for_something_else_are_left_out() {
        for key in [
            json!({"kty": "OKP", "crv": "Ed25519", "x": ED}),
            json!({"kty": "OKP", "crv": "Ed25519", "x": ED, "kid": "a", "use": "enc"}),
            json!({"kty": "OKP", "crv": "Ed25519", "x": ED, "kid": "a", "key_ops": ["sign"]}),
            json!({"kty": "OKP", "crv": "X25519", "x": ED, "kid": "a"}),
            json!({"kty": "OKP", "crv": "Ed25519", "x": ED, "kid": "a", "alg": "HS256"}),
            json!({"kty": "oct", "k": ED, "kid": "a", "alg": "HS256"}),
            json!({"kty": "oct", "k": ED, "kid": "a"}),
            json!({"kty": "new", "kid": "a"}),
            json!(7),
        ] {
            let result = set(&json!([key]));
            assert!(matches!(result, Err(KeysError::NoKey)), "{key}: {result:?}");
        }
    }

    #[test]
    fn a_set_is_bounded() {
        let key = json!({"kty": "OKP", "crv": "Ed25519", "x": ED, "kid": "a"});
        assert!(matches!(set(&json!(vec![key; MAX_KEYS + 1])), Err(KeysError::TooLarge)));
        assert!(matches!(KeySet::parse(&vec![b' '; MAX_BYTES + 1]), Err(KeysError::TooLarge)));
    }

    #[test]
    fn what_is_no_set_is_refused() {
        for json in ["", "{}", "[]", "{\"keys\":{}}", "<html>"] {
            assert!(matches!(KeySet::parse(json.as_bytes()), Err(KeysError::Json(_))), "{json}");
        }
    }
}
