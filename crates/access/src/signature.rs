//! Signed requests: RFC 9421 with Ed25519, in one form only.
//!
//! What is covered is always `"@method" "@path" "@query" "content-digest"`, and
//! `"idempotency-key"` where there is one; the parameters are always `created`, `expires`,
//! `nonce`, `keyid`, in this order. A signature of any other form is refused, however valid: two
//! texts can then never mean the same request, and one never two.
//!
//! ```text
//! Content-Digest: sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:
//! Signature-Input: sig=("@method" "@path" "@query" "content-digest");created=1700000000;\
//!     expires=1700000060;nonce="gkW3bQ…";keyid="key-abc"
//! Signature: sig=:…:
//! ```
//!
//! The server takes three steps: [`Presented::parse`], which tells whose key is needed;
//! [`Presented::verify`]; and, when the body has arrived, [`Verified::check_body`]. The nonce
//! must then be remembered until [`Verified::expires`], and a second request with it refused.

use std::fmt::Write as _;

use api::bound::Id;
use api::{Code, Problem, Timestamp};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ed25519_dalek::{Signature, Signer as _};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

pub use ed25519_dalek::{SigningKey, VerifyingKey};

/// Longest Signature-Input that is looked at, in bytes.
const MAX_INPUT: usize = 512;
/// Longest time between `created` and `expires`, in seconds.
pub const MAX_LIFETIME_SEC: u64 = 300;
/// How far a signer's clock may be ahead, in seconds.
pub const SKEW_SEC: u64 = 30;

/// Why a signature is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Content-Digest, Signature-Input or Signature is missing.
    #[error("a signed request has the headers Content-Digest, Signature-Input and Signature")]
    Incomplete,
    /// Content-Digest is not of the one form.
    #[error("Content-Digest is not `sha-256=:…:`")]
    Digest,
    /// Signature-Input is not of the one form.
    #[error("Signature-Input is not of the form that is taken here")]
    Input,
    /// Signature is not of the one form.
    #[error("Signature is not `sig=:…:` of 64 bytes")]
    Form,
    /// A part of the request cannot be covered.
    #[error("the request's {0} has characters that cannot be signed")]
    Part(&'static str),
    /// No key of this id is registered, or it was revoked or has expired.
    #[error("the key is not registered")]
    UnknownKey,
    /// It does not verify.
    #[error("the signature does not fit the request")]
    Invalid,
    /// It was made for later.
    #[error("the signature is of the future; look at the clock")]
    NotYetValid,
    /// Its time is over.
    #[error("the signature has expired; sign again")]
    Expired,
    /// It is meant to be valid for too long.
    #[error("a signature is valid for {MAX_LIFETIME_SEC} seconds at most")]
    Lifetime,
    /// The body is another one.
    #[error("the body does not have the digest that was signed")]
    Body,
}

impl From<SignatureError> for Problem {
    fn from(error: SignatureError) -> Self {
        Self::new(Code::BadSignature, error.to_string())
    }
}

/// A key's text is not that of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an Ed25519 public key in 64 hexadecimal digits")]
pub struct NotAKey;

/// Reads a public key as it is registered. Keys under which several texts have one signature
/// are refused.
///
/// # Errors
/// `NotAKey`.
pub fn public_key(hex: &str) -> Result<VerifyingKey, NotAKey> {
    wire::envelope::key_from_hex(hex).filter(|key| !key.is_weak()).ok_or(NotAKey)
}

/// SHA-256 of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyDigest([u8; 32]);

impl BodyDigest {
    /// Of a body that is there.
    pub fn of(body: &[u8]) -> Self {
        Self(Sha256::digest(body).into())
    }

    /// Of one that was digested as it came.
    pub fn from_bytes(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The digest itself.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads a Content-Digest header.
    ///
    /// # Errors
    /// `Digest` for any other form.
    pub fn from_header(header: &str) -> Result<Self, SignatureError> {
        let bytes = between_colons(header, "sha-256=").ok_or(SignatureError::Digest)?;
        bytes.try_into().map(Self).map_err(|_| SignatureError::Digest)
    }

    /// The Content-Digest header.
    pub fn to_header(self) -> String {
        format!("sha-256=:{}:", STANDARD.encode(self.0))
    }
}

/// What of a request is covered.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// In capitals.
    pub method: &'a str,
    /// As it stands in the request line, without the query.
    pub path: &'a str,
    /// As it stands in the request line, without the question mark; none where there is none.
    pub query: Option<&'a str>,
    /// Idempotency-Key.
    pub idempotency_key: Option<&'a str>,
}

/// The headers of a signed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedHeaders {
    /// Content-Digest.
    pub content_digest: String,
    /// Signature-Input.
    pub signature_input: String,
    /// Signature.
    pub signature: String,
}

/// Signs a request, to be sent within `lifetime_sec` (at most [`MAX_LIFETIME_SEC`]).
///
/// # Errors
/// `Part` where the request cannot be covered, `Input` where the key's id is none.
pub fn sign(
    parts: &Parts<'_>,
    digest: BodyDigest,
    key: &SigningKey,
    key_id: &str,
    now: Timestamp,
    lifetime_sec: u64,
) -> Result<SignedHeaders, SignatureError> {
    let mut nonce = [0_u8; 16];
    // A nonce is no secret, but one that comes twice is refused: better no signature than that.
    getrandom::fill(&mut nonce).map_err(|_| SignatureError::Input)?;
    let created = seconds(now);
    let input = Input {
        created,
        expires: created.saturating_add(lifetime_sec.min(MAX_LIFETIME_SEC)),
        nonce: URL_SAFE_NO_PAD.encode(nonce),
        key_id: key_id.to_owned(),
        with_idempotency_key: parts.idempotency_key.is_some(),
    };
    if !Id::is(key_id) {
        return Err(SignatureError::Input);
    }
    let content_digest = digest.to_header();
    let base = base(parts, &content_digest, &input)?;
    let signature = key.sign(base.as_bytes());
    Ok(SignedHeaders {
        content_digest,
        signature_input: format!("sig={}", input.to_text()),
        signature: format!("sig=:{}:", STANDARD.encode(signature.to_bytes())),
    })
}

/// A signature that was presented and is of the right form.
#[derive(Debug, Clone)]
pub struct Presented {
    input: Input,
    digest: BodyDigest,
    signature: Signature,
}

/// A signature that verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Which key.
    pub key_id: String,
    /// What must not come twice from this key.
    pub nonce: String,
    /// Until when the nonce is remembered.
    pub expires: Timestamp,
    /// SHA-256 of what was signed: the request's digest in audit records.
    pub request_digest: [u8; 32],
    digest: BodyDigest,
}

impl Presented {
    /// Reads the three headers; `None` where the request has none of them and is not signed.
    ///
    /// # Errors
    /// `Incomplete` where one is missing, or the one that is not of the one form.
    pub fn parse(
        content_digest: Option<&str>,
        signature_input: Option<&str>,
        signature: Option<&str>,
    ) -> Result<Option<Self>, SignatureError> {
        let (digest, input, signature) = match (content_digest, signature_input, signature) {
            // A digest without a signature promises nothing.
            (_, None, None) => return Ok(None),
            (Some(digest), Some(input), Some(signature)) => (digest, input, signature),
            _ => return Err(SignatureError::Incomplete),
        };
        let signature = between_colons(signature, "sig=").ok_or(SignatureError::Form)?;
        Ok(Some(Self {
            input: Input::parse(input)?,
            digest: BodyDigest::from_header(digest)?,
            signature: Signature::from_slice(&signature).map_err(|_| SignatureError::Form)?,
        }))
    }

    /// Which key is needed.
    pub fn key_id(&self) -> &str {
        &self.input.key_id
    }

    /// Verifies it for this request, with the key that is registered under the id.
    ///
    /// # Errors
    /// `SignatureError`.
    pub fn verify(
        self,
        parts: &Parts<'_>,
        key: Option<&VerifyingKey>,
        now: Timestamp,
    ) -> Result<Verified, SignatureError> {
        let Self { input, digest, signature } = self;
        let key = key.ok_or(SignatureError::UnknownKey)?;
        if input.with_idempotency_key != parts.idempotency_key.is_some() {
            return Err(SignatureError::Invalid);
        }
        let base = base(parts, &digest.to_header(), &input)?;
        key.verify_strict(base.as_bytes(), &signature).map_err(|_| SignatureError::Invalid)?;
        let now = seconds(now);
        match input.expires.checked_sub(input.created) {
            Some(lifetime) if (1..=MAX_LIFETIME_SEC).contains(&lifetime) => {}
            _ => return Err(SignatureError::Lifetime),
        }
        if input.created > now.saturating_add(SKEW_SEC) {
            return Err(SignatureError::NotYetValid);
        }
        if input.expires <= now {
            return Err(SignatureError::Expired);
        }
        let expires = i64::try_from(input.expires.saturating_mul(1000)).unwrap_or(i64::MAX);
        Ok(Verified {
            key_id: input.key_id,
            nonce: input.nonce,
            expires: Timestamp::from_unix_ms(expires),
            request_digest: Sha256::digest(base).into(),
            digest,
        })
    }
}

impl Verified {
    /// Whether the body that arrived is the one that was signed.
    ///
    /// # Errors
    /// `Body`: nothing may be done with it then.
    pub fn check_body(&self, arrived: &BodyDigest) -> Result<(), SignatureError> {
        match bool::from(self.digest.0.ct_eq(&arrived.0)) {
            true => Ok(()),
            false => Err(SignatureError::Body),
        }
    }
}

/// What Signature-Input says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Input {
    created: u64,
    expires: u64,
    nonce: String,
    key_id: String,
    with_idempotency_key: bool,
}

const COVERED: &str = "(\"@method\" \"@path\" \"@query\" \"content-digest\"";

impl Input {
    fn to_text(&self) -> String {
        let Self { created, expires, nonce, key_id, with_idempotency_key } = self;
        let also = if *with_idempotency_key { " \"idempotency-key\"" } else { "" };
        format!(
            "{COVERED}{also});created={created};expires={expires};nonce=\"{nonce}\";keyid=\"{key_id}\""
        )
    }

    /// Whatever is read must be what [`Self::to_text`] would write: there is one form.
    fn parse(header: &str) -> Result<Self, SignatureError> {
        if header.len() > MAX_INPUT {
            return Err(SignatureError::Input);
        }
        let text = header.strip_prefix("sig=").ok_or(SignatureError::Input)?;
        let input = Self::read(text).ok_or(SignatureError::Input)?;
        match input.to_text() == text {
            true => Ok(input),
            false => Err(SignatureError::Input),
        }
    }

    fn read(text: &str) -> Option<Self> {
        let (covered, parameters) = text.split_once(");created=")?;
        let (created, parameters) = parameters.split_once(";expires=")?;
        let (expires, parameters) = parameters.split_once(";nonce=\"")?;
        let (nonce, parameters) = parameters.split_once("\";keyid=\"")?;
        let key_id = parameters.strip_suffix('"')?;
        // A structured header's integers have at most fifteen digits.
        let number = |text: &str| text.parse().ok().filter(|&n: &u64| n < 1_000_000_000_000_000);
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
        let is_nonce = (16..=64).contains(&nonce.len()) && nonce.bytes().all(plain);
        if !is_nonce || !Id::is(key_id) {
            return None;
        }
        Some(Self {
            created: number(created)?,
            expires: number(expires)?,
            nonce: nonce.to_owned(),
            key_id: key_id.to_owned(),
            with_idempotency_key: covered.ends_with(" \"idempotency-key\""),
        })
    }
}

/// The text that is signed (RFC 9421, section 2.5).
fn base(parts: &Parts<'_>, digest: &str, input: &Input) -> Result<String, SignatureError> {
    let Parts { method, path, query, idempotency_key } = *parts;
    // A line's end in a part would let one request's text be another's.
    let visible = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
    if method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase()) {
        return Err(SignatureError::Part("method"));
    }
    if !path.starts_with('/') || !visible(path) || path.contains('?') {
        return Err(SignatureError::Part("path"));
    }
    if !query.is_none_or(visible) {
        return Err(SignatureError::Part("query"));
    }
    if !idempotency_key.is_none_or(|key| !key.is_empty() && visible(key)) {
        return Err(SignatureError::Part("Idempotency-Key"));
    }
    let query = query.unwrap_or_default();
    let mut base = format!(
        "\"@method\": {method}\n\"@path\": {path}\n\"@query\": ?{query}\n\"content-digest\": {digest}\n"
    );
    if let Some(key) = idempotency_key {
        let _ = writeln!(base, "\"idempotency-key\": {key}");
    }
    let _ = write!(base, "\"@signature-params\": {}", input.to_text());
    Ok(base)
}

fn between_colons(header: &str, name: &str) -> Option<Vec<u8>> {
    let encoded = header.strip_prefix(name)?.strip_prefix(':')?.strip_suffix(':')?;
    // A digest or a signature, and no more is decoded than that.
    (encoded.len() <= 88).then(|| STANDARD.decode(encoded).ok()).flatten()
}

fn seconds(time: Timestamp) -> u64 {
    u64::try_from(time.unix_ms().div_euclid(1000)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW_SEC: u64 = 1_700_000_000;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix_ms(i64::try_from(seconds).unwrap() * 1000)
    }

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    const PARTS: Parts<'_> = Parts {
        method: "POST",
        path: "/v1/sandboxes/box/exec",
        query: Some("a=b"),
        idempotency_key: Some("k-1"),
    };
    const BODY: &[u8] = b"{\"command\":\"true\"}";

    fn signed(parts: &Parts<'_>) -> SignedHeaders {
        sign(parts, BodyDigest::of(BODY), &key(), "key-1", at(NOW_SEC), 60).unwrap()
    }

    fn verify_at(
        parts: &Parts<'_>,
        headers: &SignedHeaders,
        now: u64,
    ) -> Result<Verified, SignatureError> {
        let presented = Presented::parse(
            Some(&headers.content_digest),
            Some(&headers.signature_input),
            Some(&headers.signature),
        )?
        .expect("all headers are there");
        let key = (presented.key_id() == "key-1").then(|| key().verifying_key());
        presented.verify(parts, key.as_ref(), at(now))
    }

    fn verify(parts: &Parts<'_>, headers: &SignedHeaders) -> Result<Verified, SignatureError> {
        verify_at(parts, headers, NOW_SEC)
    }

    #[test]
    fn what_was_signed_verifies() {
        for query in [None, Some(""), Some("a=b")] {
            for idempotency_key in [None, Some("k-1")] {
                let parts = Parts { query, idempotency_key, ..PARTS };
                let verified = verify(&parts, &signed(&parts)).unwrap();
                assert_eq!(verified.key_id, "key-1");
                assert_eq!(verified.expires, at(NOW_SEC + 60));
                assert_eq!(verified.check_body(&BodyDigest::of(BODY)), Ok(()));
            }
        }
    }

    #[test]
    fn the_text_that_is_signed_is_that_of_the_rfc() {
        let input = Input {
            created: 1,
            expires: 2,
            nonce: "n".repeat(16),
            key_id: "key-1".into(),
            with_idempotency_key: true,
        };
        let digest = BodyDigest::of(b"").to_header();
        assert_eq!(
            base(&PARTS, &digest, &input).unwrap(),
            "\"@method\": POST\n\
             \"@path\": /v1/sandboxes/box/exec\n\
             \"@query\": ?a=b\n\
             \"content-digest\": sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:\n\
             \"idempotency-key\": k-1\n\
             \"@signature-params\": (\"@method\" \"@path\" \"@query\" \"content-digest\" \
             \"idempotency-key\");created=1;expires=2;nonce=\"nnnnnnnnnnnnnnnn\";keyid=\"key-1\""
        );
    }

    #[test]
    fn a_request_without_a_signature_is_not_signed() {
        let digest = BodyDigest::of(BODY).to_header();
        assert!(Presented::parse(None, None, None).unwrap().is_none());
        assert!(Presented::parse(Some(&digest), None, None).unwrap().is_none());
    }

    #[test]
    fn half_a_signature_is_refused() {
        let headers = signed(&PARTS);
        let (digest, input, signature) =
            (&*headers.content_digest, &*headers.signature_input, &*headers.signature);
        for (digest, input, signature) in [
            (None, Some(input), Some(signature)),
            (Some(digest), None, Some(signature)),
            (Some(digest), Some(input), None),
        ] {
            let error = Presented::parse(digest, input, signature).unwrap_err();
            assert_eq!(error, SignatureError::Incomplete);
        }
    }

    #[test]
    fn each_other_request_is_refused() {
        let headers = signed(&PARTS);
        for parts in [
            Parts { method: "PUT", ..PARTS },
            Parts { path: "/v1/sandboxes/other/exec", ..PARTS },
            Parts { query: Some("a=c"), ..PARTS },
            Parts { query: None, ..PARTS },
            Parts { idempotency_key: Some("k-2"), ..PARTS },
            Parts { idempotency_key: None, ..PARTS },
        ] {
            assert_eq!(verify(&parts, &headers), Err(SignatureError::Invalid), "{parts:?}");
        }
    }

    #[test]
    fn another_body_is_refused() {
        let verified = verify(&PARTS, &signed(&PARTS)).unwrap();
        assert_eq!(verified.check_body(&BodyDigest::of(b"{}")), Err(SignatureError::Body));
    }

    #[test]
    fn another_digest_is_refused() {
        let mut headers = signed(&PARTS);
        headers.content_digest = BodyDigest::of(b"{}").to_header();
        assert_eq!(verify(&PARTS, &headers), Err(SignatureError::Invalid));
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let digest = BodyDigest::of(BODY);
        let headers = sign(&PARTS, digest, &key(), "key-2", at(NOW_SEC), 60).unwrap();
        assert_eq!(verify(&PARTS, &headers), Err(SignatureError::UnknownKey));
    }

    #[test]
    fn another_keys_signature_is_refused() {
        let other = SigningKey::from_bytes(&[8; 32]);
        let digest = BodyDigest::of(BODY);
        let headers = sign(&PARTS, digest, &other, "key-1", at(NOW_SEC), 60).unwrap();
        assert_eq!(verify(&PARTS, &headers), Err(SignatureError::Invalid));
    }

    #[test]
    fn a_signature_has_its_time() {
        let headers = signed(&PARTS);
        assert_eq!(verify_at(&PARTS, &headers, NOW_SEC - 31), Err(SignatureError::NotYetValid));
        assert!(verify_at(&PARTS, &headers, NOW_SEC - 30).is_ok());
        assert!(verify_at(&PARTS, &headers, NOW_SEC + 59).is_ok());
        assert_eq!(verify_at(&PARTS, &headers, NOW_SEC + 60), Err(SignatureError::Expired));
    }

    /// What an honest signer would not make.
    fn sign_input(input: &Input) -> SignedHeaders {
        let content_digest = BodyDigest::of(BODY).to_header();
        let signature = key().sign(base(&PARTS, &content_digest, input).unwrap().as_bytes());
        SignedHeaders {
            content_digest,
            signature_input: format!("sig={}", input.to_text()),
            signature: format!("sig=:{}:", STANDARD.encode(signature.to_bytes())),
        }
    }

    #[test]
    fn a_signature_is_not_for_long() {
        for (created, expires) in [
            (NOW_SEC, NOW_SEC + 301),
            (NOW_SEC, NOW_SEC),
            (NOW_SEC, NOW_SEC - 1),
            (0, 999_999_999_999_999),
        ] {
            let input = Input {
                created,
                expires,
                nonce: "n".repeat(16),
                key_id: "key-1".into(),
                with_idempotency_key: true,
            };
            assert_eq!(verify(&PARTS, &sign_input(&input)), Err(SignatureError::Lifetime));
        }
    }

    #[test]
    fn there_is_one_form_of_the_input() {
        let headers = signed(&PARTS);
        let good = &headers.signature_input;
        for bad in [
            good.replace("sig=", "sig1="),
            good.replace("\"@query\" ", ""),
            good.replace(";expires", "; expires"),
            good.replace("created=", "created=0"),
            good.replace("created=", "created=+"),
            good.replace(" \"idempotency-key\"", "  \"idempotency-key\""),
            good.replace("\"idempotency-key\"", "\"idempotency-key\" \"idempotency-key\""),
            format!("{good};alg=\"ed25519\""),
            format!("{good}, sig2={}", &good[4..]),
            format!(" {good}"),
            good.replace("keyid=\"key-1\"", "keyid=\"\""),
            good.replace("keyid=\"key-1\"", &format!("keyid=\"{}\"", "k".repeat(600))),
        ] {
            let error = Input::parse(&bad).unwrap_err();
            assert_eq!(error, SignatureError::Input, "{bad}");
        }
    }

    #[test]
    fn a_line_can_not_be_smuggled_into_the_text() {
        for parts in [
            Parts { method: "GET\n", ..PARTS },
            Parts { method: "", ..PARTS },
            Parts { path: "/a\n\"@query\": ?", ..PARTS },
            Parts { path: "/a?b", ..PARTS },
            Parts { query: Some("a b"), ..PARTS },
            Parts { idempotency_key: Some("a\nb"), ..PARTS },
            Parts { idempotency_key: Some(""), ..PARTS },
        ] {
            let signed = sign(&parts, BodyDigest::of(BODY), &key(), "key-1", at(NOW_SEC), 60);
            assert!(matches!(signed, Err(SignatureError::Part(_))), "{parts:?}");
        }
    }

    #[test]
    fn a_nonce_is_new_each_time() {
        let nonce = |headers: &SignedHeaders| verify(&PARTS, headers).unwrap().nonce;
        assert_ne!(nonce(&signed(&PARTS)), nonce(&signed(&PARTS)));
    }

    #[test]
    fn a_weak_key_is_not_taken() {
        let good = wire::envelope::key_to_hex(&key().verifying_key());
        assert!(public_key(&good).is_ok());
        // The neutral element: every text has a signature under it.
        let weak = format!("01{}", "00".repeat(31));
        assert_eq!(public_key(&weak), Err(NotAKey));
        let off_the_curve = format!("02{}", "00".repeat(31));
        assert_eq!(public_key(&off_the_curve), Err(NotAKey));
        assert_eq!(public_key(&good[1..]), Err(NotAKey));
    }

    fn flip(text: &str, at: usize, bit: u8) -> Option<String> {
        let mut bytes = text.as_bytes().to_vec();
        let at = at % bytes.len();
        bytes[at] ^= 1 << (bit % 7);
        String::from_utf8(bytes).ok()
    }

    proptest! {
        #[test]
        fn a_flipped_bit_anywhere_is_refused(which in 0..8_usize, at: usize, bit: u8) {
            let mut headers = signed(&PARTS);
            let mut parts = [PARTS.method, PARTS.path, "a=b", "k-1"].map(ToOwned::to_owned);
            let mut body = BODY.to_vec();
            match which {
                0..4 => match flip(&parts[which], at, bit) {
                    Some(flipped) => parts[which] = flipped,
                    None => return Ok(()),
                },
                4..7 => {
                    let header = match which {
                        4 => &mut headers.content_digest,
                        5 => &mut headers.signature_input,
                        _ => &mut headers.signature,
                    };
                    match flip(header, at, bit) {
                        Some(flipped) => *header = flipped,
                        None => return Ok(()),
                    }
                }
                _ => {
                    let at = at % body.len();
                    body[at] ^= 1 << (bit % 8);
                }
            }
            let [method, path, query, idempotency_key] = &parts;
            let parts = Parts {
                method,
                path,
                query: Some(query),
                idempotency_key: Some(idempotency_key),
            };
            let result = verify(&parts, &headers)
                .and_then(|verified| verified.check_body(&BodyDigest::of(&body)));
            prop_assert!(result.is_err());
        }

        #[test]
        fn no_headers_make_it_fail_otherwise(
            digest in ".{0,90}", input in "(sig=)?.{0,90}", signature in "(sig=:)?.{0,90}:?",
        ) {
            let _ = Presented::parse(Some(&digest), Some(&input), Some(&signature));
        }

        #[test]
        fn every_request_that_can_be_signed_verifies(
            method in "[A-Z]{1,8}",
            path in "/[!->@-~]{0,40}",
            query in prop::option::of("[!-~]{0,40}"),
            idempotency_key in prop::option::of("[!-~]{1,40}"),
            body: Vec<u8>,
        ) {
            let parts = Parts {
                method: &method,
                path: &path,
                query: query.as_deref(),
                idempotency_key: idempotency_key.as_deref(),
            };
            let digest = BodyDigest::of(&body);
            let headers = sign(&parts, digest, &key(), "key-1", at(NOW_SEC), 60).unwrap();
            let verified = verify(&parts, &headers).unwrap();
            prop_assert_eq!(verified.check_body(&digest), Ok(()));
        }
    }
}
