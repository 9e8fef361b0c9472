//! Requests that are signed (AWS Signature Version 4): what the guest signed with its placeholder is
//! verified, taken off, and signed again with the real key. What the placeholder did not sign is not
//! signed at all.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use canonical::{Host, Query};
use http::header::HeaderMap;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use services::Kind;
use sha2::{Digest as _, Sha256};
use sigv4::{Body, Chunked, Credentials, Framer, Inbound, Payload, Request, Scope, Signer};
use wire::text::Secret;

use crate::body::BodyError;
use crate::credential::{Bound, Managed, Misuse};

/// Longest body that is read as a whole, where its client did not say its hash.
const MOST_HASHED: usize = 1 << 20;

/// A request whose signature was verified and taken off.
pub(crate) struct Signed {
    bound: Arc<Bound>,
    scope: Scope,
    payload: Payload,
    /// Takes the chunks off the body.
    chunked: Option<Box<Chunked>>,
    /// The query without what was of the signature.
    pub(crate) query: String,
}

/// A request as it came.
pub(crate) struct Came<'a> {
    pub(crate) host: &'a Host,
    /// To the letter.
    pub(crate) spelled: &'a str,
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) query: &'a str,
}

impl Managed {
    /// The credential of this host that signs.
    fn signing(&self) -> Option<&Arc<Bound>> {
        self.bound.iter().find(|one| matches!(one.service.kind, Kind::Aws { .. }))
    }

    /// Verifies the signature of a request and takes it off, where the host's credential is one that
    /// signs. Reads the body into `first` where its hash is needed.
    pub(crate) async fn verify(
        &self,
        came: Came<'_>,
        headers: &mut HeaderMap,
        incoming: &mut Incoming,
        first: &mut VecDeque<Bytes>,
    ) -> Result<Option<Signed>, Misuse> {
        let Some(bound) = self.signing() else { return Ok(None) };
        let Kind::Aws { services, regions } = &bound.service.kind else { return Ok(None) };
        let wrong = |error: &dyn std::fmt::Display| Misuse::Signature(error.to_string());
        let request = Request {
            method: came.method,
            host: came.spelled,
            path: came.path,
            query: came.query,
            headers,
        };
        let (scope, body) = {
            let inbound = Inbound::parse(request).map_err(|error| wrong(&error))?;
            let inbound = inbound.ok_or(Misuse::Unsigned)?;
            inbound.scope().check(came.host, services, regions).map_err(|error| wrong(&error))?;
            screen(inbound.scope().service(), came.path, came.query)?;
            let hash = match inbound.needs_body() {
                true => Some(Sha256::digest(whole(incoming, first).await?).into()),
                false => None,
            };
            let placeholder = keys(bound.placeholder.as_bytes())?;
            let body = inbound.verify(&placeholder, hash.as_ref(), SystemTime::now());
            (inbound.scope().clone(), body.map_err(|error| wrong(&error))?)
        };
        let query = sigv4::strip(headers, came.query).map_err(|error| wrong(&error))?;
        let (payload, chunked) = match body {
            Body::Hash(hash) => (Payload::Hash(hash), None),
            Body::Unsigned => (Payload::Unsigned, None),
            Body::Chunked(chunked) => (chunked.forward(headers), Some(chunked)),
        };
        Ok(Some(Signed { bound: bound.clone(), scope, payload, chunked, query }))
    }
}

/// What is not signed although it is well formed, and allowed by a rule.
fn screen(service: &str, path: &str, query: &str) -> Result<(), Misuse> {
    let refused = |why: &str| Err(Misuse::Signature(why.to_owned()));
    if !service.starts_with("s3") {
        return Ok(());
    }
    // To S3 that is a `/` like any other, and to rules it is none.
    if path.to_ascii_lowercase().contains("%2f") {
        return refused("keys of S3 have their slashes as they are, not encoded");
    }
    // It answers with credentials, which nobody would know to take out.
    let asks = |key: &str| {
        let parsed = Query::parse(query).unwrap_or_default();
        parsed.pairs().any(|(name, _)| name.eq_ignore_ascii_case(key))
    };
    if service == "s3express" || asks("session") {
        return refused("sessions of S3 Express are credentials of their own, which no guest gets");
    }
    Ok(())
}

/// The path, at the same host, of what a request has S3 copy: to be judged as if it was read.
pub(crate) fn copied(host: &Host, headers: &HeaderMap) -> Result<Option<String>, Misuse> {
    let refused = |why: &str| Err(Misuse::Signature(why.to_owned()));
    if headers.contains_key("x-amz-rename-source") {
        return refused("renaming is not judged by rules: put the object and delete the other");
    }
    let mut sources = headers.get_all("x-amz-copy-source").iter();
    let Some(source) = sources.next() else { return Ok(None) };
    let source = source.to_str().ok().filter(|_| sources.next().is_none());
    let source = source.map(|text| text.split('?').next().unwrap_or_default());
    let source = source.map(|text| text.strip_prefix('/').unwrap_or(text));
    let Some((bucket, key)) = source.and_then(|text| text.split_once('/')) else {
        return refused("`x-amz-copy-source` is not BUCKET/KEY");
    };
    if key.to_ascii_lowercase().contains("%2f") {
        return refused("keys of S3 have their slashes as they are, not encoded");
    }
    let host = host.to_string();
    let after = host.strip_prefix(bucket).and_then(|rest| rest.strip_prefix('.'));
    let is_s3 = |host: &str| host.starts_with("s3.") || host.starts_with("s3-");
    match after {
        Some(rest) if is_s3(rest) => Ok(Some(format!("/{key}"))),
        _ if is_s3(&host) => Ok(Some(format!("/{bucket}/{key}"))),
        _ => refused("what is copied is of another host, whose rules do not decide here"),
    }
}

impl Signed {
    /// The name of the service whose credential signs.
    pub(crate) fn service(&self) -> &str {
        &self.bound.service.name
    }

    /// Signs the request that is sent, and gives the service's name.
    pub(crate) fn sign(
        &self,
        spelled: &str,
        method: &str,
        path: &str,
        query: &str,
        headers: &mut HeaderMap,
        serves: impl Fn(&str) -> bool,
    ) -> Result<String, Misuse> {
        let name = &self.bound.service.name;
        if !serves(name) {
            return Err(Misuse::Unserved(name.clone()));
        }
        let secret = self.bound.secret.as_ref().ok_or_else(|| Misuse::Revoked(name.clone()))?;
        let credentials = keys(secret.expose())?;
        let (region, service) = (self.scope.region(), self.scope.service());
        let signer = Signer { credentials: &credentials, region, service };
        let request = Request { method, host: spelled, path, query, headers };
        let set = signer
            .sign(&request, self.payload, SystemTime::now())
            .map_err(|error| Misuse::Signature(error.to_string()))?;
        for (name, mut value) in set {
            // So that it is not looked through for placeholders, and in no table of HTTP/2.
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Ok(name.clone())
    }

    /// What the body goes through.
    pub(crate) fn decoder(&mut self) -> Option<Decoder> {
        let chunked = self.chunked.take()?;
        let framer = match self.payload {
            Payload::StreamingUnsignedTrailer => Some(Framer::new()),
            _ => None,
        };
        Some(Decoder { chunked: Some(chunked), framer })
    }
}

/// The chunks of a body taken off, and put on again where something follows them.
pub(crate) struct Decoder {
    chunked: Option<Box<Chunked>>,
    framer: Option<Framer>,
}

impl Decoder {
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<Bytes, BodyError> {
        let mut plain = Vec::with_capacity(piece.len());
        if let Some(chunked) = &mut self.chunked {
            chunked.push(piece, &mut plain).map_err(|error| BodyError(error.to_string()))?;
        }
        let Some(framer) = &mut self.framer else { return Ok(plain.into()) };
        let mut framed = Vec::with_capacity(plain.len());
        framer.push(&plain, &mut framed);
        Ok(framed.into())
    }

    /// The end of the body; nothing the second time.
    pub(crate) fn finish(&mut self) -> Result<Option<Bytes>, BodyError> {
        let Some(chunked) = self.chunked.take() else { return Ok(None) };
        let mut plain = Vec::new();
        let trailers = chunked.finish(&mut plain).map_err(|error| BodyError(error.to_string()))?;
        let Some(mut framer) = self.framer.take() else { return Ok(Some(plain.into())) };
        let mut framed = Vec::new();
        framer.push(&plain, &mut framed);
        framer.finish(&trailers, &mut framed);
        Ok(Some(framed.into()))
    }

    pub(crate) fn is_over(&self) -> bool {
        self.chunked.is_none()
    }
}

fn keys(text: &[u8]) -> Result<Credentials, Misuse> {
    let secret =
        Secret::new(text.to_vec()).map_err(|error| Misuse::Signature(error.to_string()))?;
    Credentials::parse(&secret).map_err(|error| Misuse::Signature(error.to_string()))
}

async fn whole(incoming: &mut Incoming, first: &mut VecDeque<Bytes>) -> Result<Vec<u8>, Misuse> {
    let mut body = Vec::new();
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| Misuse::Signature(format!("the body: {error}")))?;
        if let Ok(data) = frame.into_data() {
            if body.len() + data.len() > MOST_HASHED {
                let problem = "the body is too long to be signed as a whole; sign it in chunks, or say its hash";
                return Err(Misuse::Signature(problem.into()));
            }
            body.extend_from_slice(&data);
            first.push_back(data);
        }
    }
    Ok(body)
}
