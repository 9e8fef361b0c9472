//! A signature that came in: read, held against the placeholder, and taken off.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::chunked::{Chunked, ChunkedError};
use crate::credentials::{self, Credentials};
use crate::key::SigningKey;
use crate::request::{FormError, Request};
use crate::scope::Scope;
use crate::{
    ALGORITHM, STREAMING, STREAMING_TRAILER, STREAMING_UNSIGNED_TRAILER, UNSIGNED,
    X_AMZ_CONTENT_SHA256, X_AMZ_DATE, X_AMZ_SECURITY_TOKEN, clock, hex, percent,
};

/// Longest `authorization`, in bytes, and most headers that it may sign.
const MAX_AUTHORIZATION: usize = 8 << 10;
const MAX_SIGNED: usize = 128;
/// Longest that a request in an address may be good for, in seconds.
const MAX_EXPIRES: u32 = 7 * 24 * 60 * 60;
/// How much of what came is in a message, in characters.
const SHOWN: usize = 64;

/// The keys of a query that are a signature.
const ALGORITHM_KEY: &str = "X-Amz-Algorithm";
const CREDENTIAL_KEY: &str = "X-Amz-Credential";
const DATE_KEY: &str = "X-Amz-Date";
const EXPIRES_KEY: &str = "X-Amz-Expires";
const SIGNED_HEADERS_KEY: &str = "X-Amz-SignedHeaders";
const SIGNATURE_KEY: &str = "X-Amz-Signature";
const TOKEN_KEY: &str = "X-Amz-Security-Token";
const CONTENT_KEY: &str = "X-Amz-Content-Sha256";
const KEYS: [&str; 8] = [
    ALGORITHM_KEY,
    CREDENTIAL_KEY,
    DATE_KEY,
    EXPIRES_KEY,
    SIGNED_HEADERS_KEY,
    SIGNATURE_KEY,
    TOKEN_KEY,
    CONTENT_KEY,
];

/// Why a signed request is refused. No message has any part of a key, a token or a signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A way of signing that is not supported.
    #[error(
        "the request is signed with {0:?}; only AWS4-HMAC-SHA256 is supported: choose a region, not a multi-region access point, and a current SDK"
    )]
    Algorithm(String),
    /// A way of signing a body that is not supported.
    #[error(
        "the body is signed as {0:?}, which is not supported; for Bedrock, AWS_BEARER_TOKEN_BEDROCK needs no signature"
    )]
    Payload(String),
    /// Something of a signature is there twice, or in both places.
    #[error("{0} is there more than once")]
    Twice(&'static str),
    /// Something of a signature is not there.
    #[error("the request is signed, but has no {0}")]
    Missing(&'static str),
    /// Something of a signature is not of its form.
    #[error("{0} is not of the form that AWS documents")]
    Malformed(&'static str),
    /// The day in the scope is another one than that of the time.
    #[error("the signature's scope is of another day than its time")]
    Day,
    /// A header that AWS obeys is not signed.
    #[error("the header {0} is not signed")]
    NotSigned(HeaderName),
    /// The key is not the placeholder.
    #[error(
        "the request is signed with another key than the placeholder: use the credentials that the sandbox was given"
    )]
    Foreign,
    /// The signature is of another request, or under another key.
    #[error(
        "the signature is not of this request under the placeholder key: it was changed after it was signed"
    )]
    Signature,
    /// The body has to be hashed first.
    #[error("the signature can be verified with the body's hash only")]
    BodyNeeded,
    /// The body has another hash.
    #[error("the body is not the one that was signed")]
    Body,
    /// The address was good for a time that is over.
    #[error("the signed address has expired")]
    Expired,
    /// What stands in the query of a signed address for a header cannot be one.
    #[error("the signed address has the key {0:?}, which cannot be sent as a header")]
    Hoisted(String),
    /// The request has no canonical form.
    #[error(transparent)]
    Form(#[from] FormError),
    /// What announces the body's chunks.
    #[error(transparent)]
    Chunked(#[from] ChunkedError),
}

/// What was proven of a body.
#[derive(Debug)]
pub enum Body {
    /// It has this hash, or will be refused by AWS when the same hash is signed again.
    Hash([u8; 32]),
    /// Nothing: the client signed `UNSIGNED-PAYLOAD`.
    Unsigned,
    /// It comes in chunks, which this decodes and verifies.
    Chunked(Box<Chunked>),
}

/// What the client says of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Declared {
    Hash([u8; 32]),
    Unsigned,
    Chunked { is_signed: bool, has_trailer: bool },
}

/// A signature that came with a request.
pub struct Inbound<'a> {
    request: Request<'a>,
    id: String,
    scope: Scope,
    stamp: String,
    signed: Vec<HeaderName>,
    signature: [u8; 64],
    token: Option<Zeroizing<Vec<u8>>>,
    declared: Option<Declared>,
    /// In seconds, of a signature in the query.
    expires: Option<u32>,
}

impl fmt::Debug for Inbound<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbound")
            .field("request", &self.request)
            .field("id", &self.id)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

impl<'a> Inbound<'a> {
    /// Reads the signature of a request as it came, in `authorization` or in the query. `None` is a
    /// request without one.
    ///
    /// # Errors
    /// `Error`, for one that is incomplete, ambiguous or of another kind.
    pub fn parse(request: Request<'a>) -> Result<Option<Self>, Error> {
        let in_header = authorization(request.headers)?;
        let in_query = Presigned::parse(request.query)?;
        match (in_header, in_query) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(Error::Twice("a signature")),
            (Some(text), None) => Self::of_header(request, text).map(Some),
            (None, Some(query)) => Self::of_query(request, query).map(Some),
        }
    }

    fn of_header(request: Request<'a>, parameters: &str) -> Result<Self, Error> {
        let [mut credential, mut signed, mut signature] = [None; 3];
        for parameter in parameters.split(',') {
            let (slot, value) = match parameter.trim_matches(' ').split_once('=') {
                Some(("Credential", value)) => (&mut credential, value),
                Some(("SignedHeaders", value)) => (&mut signed, value),
                Some(("Signature", value)) => (&mut signature, value),
                _ => return Err(Error::Malformed("authorization")),
            };
            if slot.replace(value).is_some() {
                return Err(Error::Twice("a part of authorization"));
            }
        }
        let parts = Parts {
            credential: credential.ok_or(Error::Missing("Credential in authorization"))?,
            signed: signed.ok_or(Error::Missing("SignedHeaders in authorization"))?,
            signature: signature.ok_or(Error::Missing("Signature in authorization"))?,
            stamp: one_text(request.headers, &X_AMZ_DATE, "x-amz-date")?
                .ok_or(Error::Missing("x-amz-date"))?,
        };
        let token = one(request.headers, &X_AMZ_SECURITY_TOKEN, "x-amz-security-token")?
            .map(|token| Zeroizing::new(token.as_bytes().to_vec()));
        let declared = declared_by_header(request.headers)?;
        Self::new(request, &parts, token, declared, None)
    }

    fn of_query(request: Request<'a>, query: Presigned) -> Result<Self, Error> {
        let [algorithm, credential, stamp, expires, signed, signature, token, content] =
            query.values;
        let text = |value: Option<Zeroizing<Vec<u8>>>, key: &'static str| {
            let value = value.ok_or(Error::Missing(key))?;
            str::from_utf8(&value).map(String::from).map_err(|_| Error::Malformed(key))
        };
        let algorithm = text(algorithm, ALGORITHM_KEY)?;
        if algorithm != ALGORITHM {
            return Err(Error::Algorithm(shown(&algorithm)));
        }
        let expires = text(expires, EXPIRES_KEY)?;
        let expires = number(&expires)
            .filter(|seconds| (1..=MAX_EXPIRES).contains(seconds))
            .ok_or(Error::Malformed(EXPIRES_KEY))?;
        if request.headers.contains_key(X_AMZ_DATE) {
            return Err(Error::Twice("x-amz-date"));
        }
        if request.headers.contains_key(X_AMZ_SECURITY_TOKEN) {
            return Err(Error::Twice("x-amz-security-token"));
        }
        let declared = match (declared_by_header(request.headers)?, content) {
            (Some(_), Some(_)) => return Err(Error::Twice("x-amz-content-sha256")),
            (declared, None) => declared,
            (None, content) => Some(Declared::parse(&text(content, CONTENT_KEY)?)?),
        };
        let parts = Parts {
            credential: &text(credential, CREDENTIAL_KEY)?,
            signed: &text(signed, SIGNED_HEADERS_KEY)?,
            signature: &text(signature, SIGNATURE_KEY)?,
            stamp: &text(stamp, DATE_KEY)?,
        };
        Self::new(request, &parts, token, declared, Some(expires))
    }

    fn new(
        request: Request<'a>,
        parts: &Parts<'_>,
        token: Option<Zeroizing<Vec<u8>>>,
        declared: Option<Declared>,
        expires: Option<u32>,
    ) -> Result<Self, Error> {
        const CREDENTIAL: Error = Error::Malformed("the signature's credential");
        let (id, scope) = parts.credential.split_once('/').ok_or(CREDENTIAL)?;
        if !credentials::is_id(id.as_bytes()) {
            return Err(CREDENTIAL);
        }
        let scope = Scope::parse(scope).ok_or(CREDENTIAL)?;
        clock::seconds(parts.stamp).ok_or(Error::Malformed("the signature's time"))?;
        if parts.stamp[..clock::DAY] != *scope.date() {
            return Err(Error::Day);
        }
        let signed = signed_headers(parts.signed)?;
        must_be_signed(&signed, request.headers)?;
        let signature = hex::checked(parts.signature.as_bytes())
            .ok_or(Error::Malformed("the signature itself"))?;
        let (id, stamp) = (id.into(), parts.stamp.into());
        Ok(Self { request, id, scope, stamp, signed, signature, token, declared, expires })
    }

    /// The access key ID that it names: whose credential it is.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// For what it was signed.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Whether the signature is in the query: [`strip`] then changes the query.
    pub fn is_presigned(&self) -> bool {
        self.expires.is_some()
    }

    /// Whether [`verify`](Self::verify) has to have the body's hash: the client did not say it.
    pub fn needs_body(&self) -> bool {
        self.declared.is_none() && !self.is_unsigned_by_nature()
    }

    /// Proves that the holder of the placeholder signed exactly this request, and tells what that says
    /// of the body. `body` is the hash of the body where it is known. A signature in a header is good
    /// whatever its age: the clock of a guest may be wrong, and the real one is made with the host's.
    ///
    /// # Errors
    /// `Error`.
    pub fn verify(
        &self,
        placeholder: &Credentials,
        body: Option<&[u8; 32]>,
        now: SystemTime,
    ) -> Result<Body, Error> {
        if !placeholder.are_named_by(&self.id, self.token.as_ref().map(|token| token.as_slice())) {
            return Err(Error::Foreign);
        }
        let declared = match (self.declared, body) {
            (Some(Declared::Hash(said)), Some(is)) if said != *is => return Err(Error::Body),
            (Some(declared), _) => declared,
            (None, _) if self.is_unsigned_by_nature() => Declared::Unsigned,
            (None, Some(hash)) => Declared::Hash(*hash),
            (None, None) => return Err(Error::BodyNeeded),
        };
        let payload = declared.text();
        let hash = self.request.hash(&self.scope, &self.signed, payload.as_bytes())?;
        let scope = self.scope.to_string();
        let key = SigningKey::new(placeholder, &self.scope);
        let signature =
            key.sign(&[ALGORITHM, "\n", &self.stamp, "\n", &scope, "\n", &hex::text(&hash)]);
        if !bool::from(signature.ct_eq(&self.signature)) {
            return Err(Error::Signature);
        }
        self.must_be_in_time(now)?;
        Ok(match declared {
            Declared::Hash(hash) => Body::Hash(hash),
            Declared::Unsigned => Body::Unsigned,
            Declared::Chunked { is_signed, has_trailer } => {
                let chain = is_signed
                    .then(|| crate::chunked::Chain::new(key, &self.stamp, scope, self.signature));
                Body::Chunked(Box::new(Chunked::new(chain, has_trailer, self.request.headers)?))
            }
        })
    }

    /// S3 does not want to know the body of what is in an address.
    fn is_unsigned_by_nature(&self) -> bool {
        self.is_presigned() && self.scope.is_s3()
    }

    fn must_be_in_time(&self, now: SystemTime) -> Result<(), Error> {
        let Some(expires) = self.expires else { return Ok(()) };
        let begun = clock::seconds(&self.stamp).ok_or(Error::Expired)?;
        let now = now.duration_since(UNIX_EPOCH).map_err(|_| Error::Expired)?.as_secs();
        let now = i64::try_from(now).map_err(|_| Error::Expired)?;
        if now <= begun + i64::from(expires) { Ok(()) } else { Err(Error::Expired) }
    }
}

/// Takes a signature off: from the headers all that is part of one, and from the query too. What an
/// address has in place of headers becomes headers again, as it is obeyed in signed addresses only.
/// Gives the query that is left.
///
/// # Errors
/// `Error`, where what stands for a header cannot be one, or is there already.
pub fn strip(headers: &mut HeaderMap, query: &str) -> Result<String, Error> {
    for name in [header::AUTHORIZATION, X_AMZ_DATE, X_AMZ_SECURITY_TOKEN, X_AMZ_CONTENT_SHA256] {
        headers.remove(name);
    }
    if Presigned::parse(query)?.is_none() {
        return Ok(query.into());
    }
    let mut rest = Vec::new();
    for part in query.split('&') {
        let (key, value) = words(part)?;
        if KEYS.iter().any(|name| name.as_bytes() == &key[..]) {
            continue;
        }
        if !is_amz(&key) {
            rest.push(part);
            continue;
        }
        let hoisted = || Error::Hoisted(shown(&String::from_utf8_lossy(&key)));
        let name = HeaderName::from_bytes(&key).map_err(|_| hoisted())?;
        let value = HeaderValue::from_bytes(&value).map_err(|_| hoisted())?;
        if headers.insert(name, value).is_some() {
            return Err(hoisted());
        }
    }
    Ok(rest.join("&"))
}

struct Parts<'a> {
    credential: &'a str,
    signed: &'a str,
    signature: &'a str,
    stamp: &'a str,
}

impl Declared {
    fn parse(text: &str) -> Result<Self, Error> {
        Ok(match text {
            UNSIGNED => Self::Unsigned,
            STREAMING => Self::Chunked { is_signed: true, has_trailer: false },
            STREAMING_TRAILER => Self::Chunked { is_signed: true, has_trailer: true },
            STREAMING_UNSIGNED_TRAILER => Self::Chunked { is_signed: false, has_trailer: true },
            _ => {
                Self::Hash(hex::decode(text.as_bytes()).ok_or_else(|| Error::Payload(shown(text)))?)
            }
        })
    }

    fn text(self) -> String {
        match self {
            Self::Hash(hash) => hex::text(&hash),
            Self::Unsigned => UNSIGNED.into(),
            Self::Chunked { is_signed: true, has_trailer: false } => STREAMING.into(),
            Self::Chunked { is_signed: true, has_trailer: true } => STREAMING_TRAILER.into(),
            Self::Chunked { is_signed: false, .. } => STREAMING_UNSIGNED_TRAILER.into(),
        }
    }
}

/// The keys of a query that are a signature, in the order of [`KEYS`].
struct Presigned {
    values: [Option<Zeroizing<Vec<u8>>>; 8],
}

impl Presigned {
    fn parse(query: &str) -> Result<Option<Self>, Error> {
        let mut presigned = Self { values: Default::default() };
        let mut is_there = false;
        for part in query.split('&') {
            let (key, value) = words(part)?;
            if key == b"AWSAccessKeyId" {
                return Err(Error::Algorithm("AWSAccessKeyId".into()));
            }
            let found = KEYS.iter().position(|name| key.eq_ignore_ascii_case(name.as_bytes()));
            let Some(at) = found else { continue };
            if key != KEYS[at].as_bytes() {
                return Err(Error::Malformed(KEYS[at]));
            }
            if presigned.values[at].replace(Zeroizing::new(value)).is_some() {
                return Err(Error::Twice(KEYS[at]));
            }
            is_there = true;
        }
        Ok(is_there.then_some(presigned))
    }
}

/// A key and its value, decoded.
fn words(part: &str) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let (key, value) = part.split_once('=').unwrap_or((part, ""));
    let word = |text| percent::query_word(text).ok_or(Error::Form(FormError::Escape));
    Ok((word(key)?, word(value)?))
}

fn is_amz(name: &[u8]) -> bool {
    const PREFIX: &[u8] = b"x-amz-";
    name.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

/// What follows the algorithm in `authorization`; `None` where it is not about AWS.
fn authorization(headers: &HeaderMap) -> Result<Option<&str>, Error> {
    const NAME: &str = "authorization";
    let Some(value) = one(headers, &header::AUTHORIZATION, NAME)? else { return Ok(None) };
    let bytes = value.as_bytes();
    let scheme = bytes.split(|&byte| byte == b' ').next().unwrap_or_default();
    if !scheme.get(..3).is_some_and(|start| start.eq_ignore_ascii_case(b"AWS")) {
        return Ok(None);
    }
    if scheme != ALGORITHM.as_bytes() {
        return Err(Error::Algorithm(shown(&String::from_utf8_lossy(scheme))));
    }
    if bytes.len() > MAX_AUTHORIZATION {
        return Err(Error::Malformed(NAME));
    }
    let text = value.to_str().map_err(|_| Error::Malformed(NAME))?;
    text[ALGORITHM.len()..].strip_prefix(' ').map(Some).ok_or(Error::Malformed(NAME))
}

fn declared_by_header(headers: &HeaderMap) -> Result<Option<Declared>, Error> {
    one_text(headers, &X_AMZ_CONTENT_SHA256, "x-amz-content-sha256")?
        .map(Declared::parse)
        .transpose()
}

/// The value of a header that may be there once.
fn one<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    shown: &'static str,
) -> Result<Option<&'a HeaderValue>, Error> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() { Err(Error::Twice(shown)) } else { Ok(first) }
}

fn one_text<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    shown: &'static str,
) -> Result<Option<&'a str>, Error> {
    let value = one(headers, name, shown)?;
    value.map(|value| value.to_str().map_err(|_| Error::Malformed(shown))).transpose()
}

/// `a;b;c`: lower case, sorted, each once.
fn signed_headers(text: &str) -> Result<Vec<HeaderName>, Error> {
    const SIGNED: Error = Error::Malformed("the list of signed headers");
    let mut names: Vec<HeaderName> = Vec::new();
    for name in text.split(';') {
        let name = HeaderName::from_lowercase(name.as_bytes()).map_err(|_| SIGNED)?;
        let is_after = names.last().is_none_or(|last| last.as_str() < name.as_str());
        if !is_after || names.len() >= MAX_SIGNED {
            return Err(SIGNED);
        }
        names.push(name);
    }
    Ok(names)
}

/// What AWS obeys has to be what the client meant: its own headers, and the host.
fn must_be_signed(signed: &[HeaderName], headers: &HeaderMap) -> Result<(), Error> {
    let is_signed = |name: &HeaderName| signed.contains(name);
    let mut names = headers.keys().filter(|name| is_amz(name.as_str().as_bytes()));
    if let Some(name) = names.find(|name| !is_signed(name)) {
        return Err(Error::NotSigned(name.clone()));
    }
    if is_signed(&header::HOST) { Ok(()) } else { Err(Error::NotSigned(header::HOST)) }
}

fn number(text: &str) -> Option<u32> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    is_plain.then(|| text.parse().ok())?
}

/// The beginning of what somebody else wrote.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}
