//! Whether somebody whose key is known has signed an image, as `cosign sign --key` does.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;

use crate::digest::Digest;
use crate::manifest::Blob;

/// More signatures of one image than anybody makes.
pub(crate) const MOST: usize = 32;
/// The longest payload that is read, in bytes.
pub(crate) const LONGEST_PAYLOAD: u64 = 64 << 10;
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
const TYPE: &str = "cosign container image signature";

/// The text is no key that signatures can be checked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not PEM of a public key.
    #[error(
        "it has no `-----BEGIN PUBLIC KEY-----` in it; `cosign public-key` prints one that has"
    )]
    Pem,
    /// A key of another kind.
    #[error("it is not an ECDSA key over P-256, which `cosign generate-key-pair` makes")]
    Kind,
}

/// A public key.
#[derive(Clone)]
pub struct PublicKey(ParsedPublicKey);

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PublicKey")
    }
}

impl PublicKey {
    /// Reads PEM.
    ///
    /// # Errors
    /// `KeyError`.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| KeyError::Pem)?;
        let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, der.as_ref());
        key.map(Self).map_err(|_| KeyError::Kind)
    }

    fn has_signed(&self, payload: &[u8], signature: &[u8]) -> bool {
        self.0.verify_sig(payload, signature).is_ok()
    }
}

/// Why no signature counts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// There is none.
    #[error("a signature is asked for, and its registry has none (looked for under the tag {0})")]
    None(String),
    /// What stands there is not a list of signatures.
    #[error("what stands where its signatures should is something else: {0}")]
    Form(String),
    /// There are some, of which none is by this key over this image.
    #[error("of its {0} signatures none is by the key that is asked for, over this image")]
    Unsigned(usize),
}

/// The tag that the signatures of this image have.
pub(crate) fn tag(digest: &Digest) -> String {
    format!("sha256-{}.sig", digest.hex())
}

/// The blobs that may be payloads, each with its signature.
pub(crate) fn candidates(layers: &[Blob]) -> Vec<(&Blob, Vec<u8>)> {
    let signed = layers.iter().filter(|layer| layer.media_type == PAYLOAD);
    let small = signed.filter(|layer| layer.size <= LONGEST_PAYLOAD);
    let with = small.filter_map(|layer| {
        let signature = BASE64.decode(layer.annotations.get(ANNOTATION)?).ok()?;
        Some((layer, signature))
    });
    with.take(MOST).collect()
}

/// Whether `key` has signed `payload`, and that says that it is about `image`.
pub(crate) fn verifies(key: &PublicKey, payload: &[u8], signature: &[u8], image: &Digest) -> bool {
    // The signature first: nobody else's words are read.
    key.has_signed(payload, signature) && is_about(payload, image)
}

fn is_about(payload: &[u8], image: &Digest) -> bool {
    #[derive(Deserialize)]
    struct Payload {
        critical: Critical,
    }
    #[derive(Deserialize)]
    struct Critical {
        image: Image,
        #[serde(rename = "type")]
        kind: String,
    }
    #[derive(Deserialize)]
    struct Image {
        #[serde(rename = "docker-manifest-digest")]
        digest: String,
    }
    let Ok(payload) = serde_json::from_slice::<Payload>(payload) else { return false };
    let critical = payload.critical;
    critical.kind == TYPE && critical.image.digest.parse() == Ok(*image)
}

#[cfg(test)]
mod tests {
    use rcgen::{
        KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SigningKey,
    };

    use super::*;

    fn payload(digest: &str, kind: &str) -> Vec<u8> {
        format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"r/a"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"{kind}"}},"optional":null}}"#
        )
        .into_bytes()
    }

    #[test]
    fn a_signature_counts_for_its_key_its_image_and_its_purpose() {
        let [mine, other] = [0, 1].map(|_| KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap());
        let key = PublicKey::from_pem(mine.public_key_pem().as_bytes()).unwrap();
        let image = Digest::of(b"image");
        let good = payload(&image.to_string(), TYPE);
        let signature = mine.sign(&good).unwrap();
        assert!(verifies(&key, &good, &signature, &image));
        assert!(!verifies(&key, &good, &signature, &Digest::of(b"another")));
        assert!(!verifies(&key, &good, &other.sign(&good).unwrap(), &image));
        let mut changed = good.clone();
        *changed.last_mut().unwrap() = b' ';
        assert!(!verifies(&key, &changed, &signature, &image));
        for wrong in [payload(&image.to_string(), "something else"), b"{}".to_vec(), Vec::new()] {
            assert!(!verifies(&key, &wrong, &mine.sign(&wrong).unwrap(), &image));
        }
        assert!(!verifies(&key, &good, b"", &image));
    }

    #[test]
    fn a_key_of_another_kind_is_refused() {
        for kind in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let pem = KeyPair::generate_for(kind).unwrap().public_key_pem();
            assert_eq!(PublicKey::from_pem(pem.as_bytes()).unwrap_err(), KeyError::Kind);
        }
        assert_eq!(PublicKey::from_pem(b"ssh-ed25519 AAAA").unwrap_err(), KeyError::Pem);
        let private = KeyPair::generate().unwrap().serialize_pem();
        assert_eq!(PublicKey::from_pem(private.as_bytes()).unwrap_err(), KeyError::Pem);
    }
}
