//! What signs requests.

use std::fmt;

use access::signature::{self, BodyDigest, Parts, SignedHeaders, SigningKey};
use api::Timestamp;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use zeroize::Zeroizing;

use crate::Error;

/// A signature is for one attempt, whose head is sent at once.
const LIFETIME_SEC: u64 = 60;

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
const SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");
const SIGNATURE: HeaderName = HeaderName::from_static("signature");

/// 128 random bits as text; empty where the system has none to give.
pub(crate) fn random_text() -> String {
    let mut bytes = [0; 16];
    match getrandom::fill(&mut bytes) {
        Ok(()) => URL_SAFE_NO_PAD.encode(bytes),
        Err(_) => String::new(),
    }
}

/// A key that signs requests, and the id under which its public half is registered. It is wiped
/// when it is dropped.
#[derive(Clone)]
pub struct RequestKey {
    id: String,
    key: SigningKey,
}

impl fmt::Debug for RequestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl RequestKey {
    /// The key with this secret, registered under `id`; see [`crate::Client::create_key`].
    pub fn new(id: impl Into<String>, secret: &Zeroizing<[u8; 32]>) -> Self {
        Self { id: id.into(), key: SigningKey::from_bytes(secret) }
    }

    /// A secret for a new key.
    ///
    /// # Errors
    /// [`Error::Sign`] where the system has no randomness to give.
    pub fn generate() -> Result<Zeroizing<[u8; 32]>, Error> {
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(secret.as_mut()).map_err(|error| Error::Sign(error.to_string()))?;
        Ok(secret)
    }

    /// The public half, in hexadecimal, as it is registered.
    pub fn public_hex(&self) -> String {
        self.key.verifying_key().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Adds the headers that sign the request. `digest` is that of what it carries.
    pub(crate) fn sign(
        &self,
        method: &Method,
        path: &str,
        query: &str,
        digest: BodyDigest,
        headers: &mut HeaderMap,
    ) -> Result<(), Error> {
        let key = headers.get("idempotency-key").map(HeaderValue::to_str);
        let key = key.transpose().map_err(|error| Error::Sign(error.to_string()))?;
        let parts = Parts {
            method: method.as_str(),
            path,
            query: (!query.is_empty()).then_some(query),
            idempotency_key: key,
        };
        let signed =
            signature::sign(&parts, digest, &self.key, &self.id, Timestamp::now(), LIFETIME_SEC)
                .map_err(|error| Error::Sign(error.to_string()))?;
        let SignedHeaders { content_digest, signature_input, signature } = signed;
        for (name, value) in [
            (CONTENT_DIGEST, content_digest),
            (SIGNATURE_INPUT, signature_input),
            (SIGNATURE, signature),
        ] {
            let value =
                HeaderValue::from_str(&value).map_err(|error| Error::Sign(error.to_string()))?;
            headers.insert(name, value);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use access::signature::Presented;

    #[test]
    fn what_is_signed_verifies_and_nothing_else_does() {
        let secret = RequestKey::generate().unwrap();
        let key = RequestKey::new("key-1", &secret);
        let mut headers = HeaderMap::new();
        headers.insert("idempotency-key", HeaderValue::from_static("abc"));
        let digest = BodyDigest::of(b"{}");
        key.sign(&Method::POST, "/v1/sandboxes", "", digest, &mut headers).unwrap();
        let header = |name: &HeaderName| headers[name].to_str().ok();
        let presented = || {
            Presented::parse(header(&CONTENT_DIGEST), header(&SIGNATURE_INPUT), header(&SIGNATURE))
                .unwrap()
                .unwrap()
        };
        let parts =
            |path| Parts { method: "POST", path, query: None, idempotency_key: Some("abc") };
        let public = signature::public_key(&key.public_hex()).unwrap();
        let now = Timestamp::now();
        let verified = presented().verify(&parts("/v1/sandboxes"), Some(&public), now).unwrap();
        assert!(verified.check_body(&BodyDigest::of(b"{}")).is_ok());
        assert!(verified.check_body(&BodyDigest::of(b"{ }")).is_err());
        assert!(presented().verify(&parts("/v1/tokens"), Some(&public), now).is_err());
    }

    #[test]
    fn a_key_does_not_show_its_secret() {
        let key = RequestKey::new("key-1", &Zeroizing::new([0xab; 32]));
        let shown = format!("{key:?}");
        assert!(shown.contains("key-1") && !shown.contains("171") && !shown.contains("ab,"));
    }
}
