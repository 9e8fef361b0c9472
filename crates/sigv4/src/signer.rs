//! The signature that goes out.

use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::credentials::Credentials;
use crate::key::SigningKey;
use crate::request::{self, FormError, Request};
use crate::scope::Scope;
use crate::{
    ALGORITHM, STREAMING_UNSIGNED_TRAILER, UNSIGNED, X_AMZ_CONTENT_SHA256, X_AMZ_DATE,
    X_AMZ_SECURITY_TOKEN, clock, hex,
};

/// Why a request is not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// What is left of another signature would be sent, or signed.
    #[error("the header {0} of another signature is still there")]
    NotStripped(HeaderName),
    /// Names that are part of no scope.
    #[error("{region:?} and {service:?} are not a region and a service")]
    Scope {
        /// The region.
        region: String,
        /// The service.
        service: String,
    },
    /// A clock before 1970, or after 9999.
    #[error("the clock of this computer is wrong")]
    Clock,
    /// The request has no canonical form.
    #[error(transparent)]
    Form(#[from] FormError),
}

/// What is signed of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// Its SHA-256.
    Hash([u8; 32]),
    /// Nothing: S3 takes that over TLS.
    Unsigned,
    /// Nothing, and it is sent in chunks with a trailer, as [`Framer`](crate::Framer) makes them.
    StreamingUnsignedTrailer,
}

/// Signs with real keys.
#[derive(Debug, Clone, Copy)]
pub struct Signer<'a> {
    /// The keys.
    pub credentials: &'a Credentials,
    /// The region: that of the [`Scope`] that was checked.
    pub region: &'a str,
    /// The service: that of the [`Scope`] that was checked.
    pub service: &'a str,
}

impl Signer<'_> {
    /// The headers that make a request signed, to be set as they are. The request is the one that is
    /// sent, without an earlier signature (see [`strip`](crate::strip)). Signed are the host, the type
    /// and digest of the body, and all headers that are AWS's own.
    ///
    /// # Errors
    /// `SignError`.
    pub fn sign(
        &self,
        request: &Request<'_>,
        payload: Payload,
        now: SystemTime,
    ) -> Result<Vec<(HeaderName, HeaderValue)>, SignError> {
        let old = [header::AUTHORIZATION, X_AMZ_DATE, X_AMZ_SECURITY_TOKEN, X_AMZ_CONTENT_SHA256];
        if let Some(name) = old.into_iter().find(|name| request.headers.contains_key(name)) {
            return Err(SignError::NotStripped(name));
        }
        let stamp = clock::stamp(now).ok_or(SignError::Clock)?;
        let scope =
            Scope::new(&stamp[..clock::DAY], self.region, self.service).ok_or_else(|| {
                SignError::Scope { region: self.region.into(), service: self.service.into() }
            })?;
        let payload = match payload {
            Payload::Hash(hash) => hex::text(&hash),
            Payload::Unsigned => UNSIGNED.into(),
            Payload::StreamingUnsignedTrailer => STREAMING_UNSIGNED_TRAILER.into(),
        };
        let mut set = vec![(X_AMZ_CONTENT_SHA256, text(&payload)), (X_AMZ_DATE, text(&stamp))];
        if let Some(token) = self.credentials.token() {
            let mut token =
                HeaderValue::from_bytes(token).expect("it was checked when it was read");
            token.set_sensitive(true);
            set.push((X_AMZ_SECURITY_TOKEN, token));
        }

        let mut headers = HeaderMap::with_capacity(request.headers.len() + set.len());
        for (name, value) in request.headers {
            if is_signed(name) {
                headers.append(name, value.clone());
            }
        }
        headers.extend(set.iter().cloned());
        let mut signed: Vec<HeaderName> = headers.keys().cloned().collect();
        if !headers.contains_key(header::HOST) {
            signed.push(header::HOST);
        }
        signed.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
        let request = Request { headers: &headers, ..*request };
        let hash = request.hash(&scope, &signed, payload.as_bytes())?;

        let mut names = Vec::new();
        request::write_names(&signed, &mut |bytes| names.extend_from_slice(bytes));
        let names = String::from_utf8_lossy(&names);
        let scope_text = scope.to_string();
        let key = SigningKey::new(self.credentials, &scope);
        let signature =
            key.sign(&[ALGORITHM, "\n", &stamp, "\n", &scope_text, "\n", &hex::text(&hash)]);
        let signature: String = signature.map(char::from).iter().collect();
        let mut authorization = text(&format!(
            "{ALGORITHM} Credential={}/{scope_text}, SignedHeaders={names}, Signature={signature}",
            self.credentials.id(),
        ));
        authorization.set_sensitive(true);
        set.push((header::AUTHORIZATION, authorization));
        Ok(set)
    }
}

fn is_signed(name: &HeaderName) -> bool {
    [header::HOST, header::CONTENT_TYPE].contains(name)
        || name == "content-md5"
        || name.as_str().starts_with("x-amz-")
}

fn text(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("visible ASCII of our own")
}
