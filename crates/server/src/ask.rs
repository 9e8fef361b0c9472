//! A request, as its handler has it: who asks for what, with everything looked at that can be
//! looked at before the handler.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use access::Caller;
use access::signature::{BodyDigest, Verified};
use api::{Code, Problem, Validate};
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use bytes::{Bytes, BytesMut};
use fleet::{Idempotent, Provenance, Stored};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, ETAG};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body_util::BodyExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use crate::app::App;
use crate::host::single;

pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
pub(crate) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// What a handler gives.
pub(crate) type Answer = Result<Response, Problem>;

/// A request that was let in.
pub(crate) struct Ask {
    pub(crate) app: Arc<App>,
    pub(crate) caller: Caller,
    pub(crate) provenance: Provenance,
    pub(crate) parts: Parts,
    /// The parameters of the path, decoded.
    pub(crate) path: Vec<(String, String)>,
    /// What came with it; empty where the route takes a stream.
    pub(crate) body: Bytes,
    /// What comes with it, where the route takes a stream.
    pub(crate) upload: Mutex<Option<Upload>>,
    /// Its signature, where that covers what has not come yet.
    pub(crate) signed: Option<Verified>,
}

impl Ask {
    /// The query as this type.
    pub(crate) fn query<T: DeserializeOwned + Validate>(&self) -> Result<T, Problem> {
        api::parse_query(self.parts.uri.query().unwrap_or_default())
    }

    /// The body as this type.
    pub(crate) fn json<T: DeserializeOwned + Validate>(&self) -> Result<T, Problem> {
        api::parse_json(&self.body)
    }

    /// The body as this type, or its default where there is none.
    pub(crate) fn optional_json<T>(&self) -> Result<T, Problem>
    where
        T: DeserializeOwned + Validate + Default,
    {
        if self.body.is_empty() { Ok(T::default()) } else { self.json() }
    }

    /// A parameter of the path. What cannot be the name of anything is not found.
    pub(crate) fn parameter(&self, name: &str) -> Result<&str, Problem> {
        let found = self.path.iter().find(|(key, _)| key == name);
        let is = match name {
            "sandbox" => api::bound::SandboxId::is,
            "process" => api::bound::ProcessId::is,
            "volume" => api::bound::VolumeName::is,
            "snapshot" => api::bound::SnapshotId::is,
            "service" => api::bound::ServiceName::is,
            _ => api::bound::Id::is,
        };
        match found {
            Some((_, value)) if is(value) => Ok(value),
            _ => Err(Problem::new(Code::NotFound, format!("there is no such {name}"))),
        }
    }

    /// The id or name of the sandbox in the path.
    pub(crate) fn sandbox(&self) -> Result<&str, Problem> {
        self.parameter("sandbox")
    }

    /// The version in If-Match or If-None-Match.
    pub(crate) fn entity_tag(&self, name: &HeaderName) -> Result<Option<&str>, Problem> {
        let tag = self.header(name)?;
        api::bound::EntityTag::check_some(name.as_str(), tag)?;
        Ok(tag)
    }

    pub(crate) fn header(&self, name: &HeaderName) -> Result<Option<&str>, Problem> {
        single(&self.parts.headers, name)?
            .map(|value| value.to_str())
            .transpose()
            .map_err(|_| Problem::invalid(name.as_str(), "must be ASCII"))
    }

    /// The id of the event that a client which comes back saw last.
    pub(crate) fn last_event_id(&self) -> Result<Option<u64>, Problem> {
        let Some(text) = self.header(&LAST_EVENT_ID)? else { return Ok(None) };
        let id = text.parse().map_err(|_| Problem::invalid("Last-Event-ID", "must be a number"))?;
        api::bound::Position::check("Last-Event-ID", id)?;
        Ok(Some(id))
    }

    /// Does it, or gives the answer of the same request before this one, by its Idempotency-Key.
    /// Only what succeeded is given again: what failed may be tried again. With a key, a client
    /// that goes away changes nothing: it will come back for the answer.
    pub(crate) async fn once<T, F, W>(self, act: F) -> Answer
    where
        T: Serialize + Send,
        F: FnOnce(Arc<Self>) -> W + Send + 'static,
        W: Future<Output = Result<(StatusCode, Option<String>, T), fleet::Error>> + Send,
    {
        let ask = Arc::new(self);
        let Some(key) = ask.provenance.idempotency_key.clone() else {
            let (status, etag, value) = act(ask).await.map_err(|error| error.problem())?;
            return recorded(status, etag.as_deref(), encode(&value)?);
        };
        let digest = ask.provenance.request_digest.clone().unwrap_or_default();
        let fresh = ask.app.manager.idempotent(&ask.caller, &key, &digest).await;
        let guard = match fresh.map_err(|error| error.problem())? {
            Idempotent::Fresh(guard) => guard,
            Idempotent::Replay(stored) => {
                let status = StatusCode::from_u16(stored.status).unwrap_or(StatusCode::OK);
                let mut response = recorded(status, stored.etag.as_deref(), stored.body)?;
                response
                    .headers_mut()
                    .insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
                return Ok(response);
            }
        };
        let tasks = ask.app.lifetime.tasks.clone();
        let doing = tasks.spawn(async move {
            let (status, etag, value) = act(ask).await.map_err(|error| error.problem())?;
            let body = encode(&value)?;
            let stored = Stored { status: status.as_u16(), etag: etag.clone(), body: body.clone() };
            guard.done(stored).await.map_err(|error| error.problem())?;
            recorded(status, etag.as_deref(), body)
        });
        let ended = doing.await;
        ended.map_err(|_| Problem::new(Code::Internal, "the server has a defect"))?
    }

    /// Whether the client wants events where it could have JSON.
    pub(crate) fn wants_events(&self) -> bool {
        let mut accepted = media_types(&self.parts.headers).peekable();
        accepted.any(|(media_type, quality)| media_type == "text/event-stream" && quality > 0.0)
    }

    /// What the client sends, where the route takes a stream.
    pub(crate) fn take_upload(&self) -> Result<Upload, Problem> {
        let upload = self.upload.lock().unwrap_or_else(PoisonError::into_inner).take();
        upload.ok_or_else(|| Problem::new(Code::Internal, "the body was read already"))
    }
}

/// What Accept lists, with how much each is wanted.
fn media_types(headers: &HeaderMap) -> impl Iterator<Item = (&str, f32)> {
    let lines = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(|item| {
        let mut parts = item.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default();
        let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok());
        (media_type, quality.unwrap_or(1.0))
    })
}

/// Whether the client takes an answer of this type.
pub(crate) fn accepts(headers: &HeaderMap, answer: &str) -> bool {
    if !headers.contains_key(ACCEPT) {
        return true;
    }
    let family = answer.split_once('/').map_or("", |(family, _)| family);
    // The most exact entry decides, as `text/html;q=0, */*`.
    let exactness = |entry: &str| match entry {
        "*/*" => Some(0),
        entry if entry.eq_ignore_ascii_case(answer) => Some(2),
        entry => (entry.strip_suffix("/*")?.eq_ignore_ascii_case(family)).then_some(1),
    };
    media_types(headers)
        .filter_map(|(entry, quality)| Some((exactness(entry)?, quality)))
        .max_by_key(|(exactness, _)| *exactness)
        .is_some_and(|(_, quality)| quality > 0.0)
}

/// Looks at Content-Type. `expected` is without parameters.
pub(crate) fn check_type(headers: &HeaderMap, expected: &str) -> Result<(), Problem> {
    let given = single(headers, &CONTENT_TYPE)?.map(|value| value.to_str().unwrap_or_default());
    let given = given.map(|value| value.split(';').next().unwrap_or_default().trim());
    match given {
        Some(given) if given.eq_ignore_ascii_case(expected) => Ok(()),
        _ => Err(Problem::new(
            Code::UnsupportedMediaType,
            format!("the body must be of the type {expected}"),
        )
        .with_field("Content-Type")),
    }
}

fn too_large(limit: u64) -> Problem {
    Problem::new(Code::TooLarge, format!("the body has more than {limit} bytes"))
}

/// The length that the client announced.
fn announced(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let length = single(headers, &CONTENT_LENGTH)?;
    Ok(length.and_then(|length| length.to_str().ok()?.parse().ok()))
}

/// A body that is given on as it comes.
pub(crate) struct Upload {
    body: Body,
    left: u64,
    limit: u64,
    stall: Duration,
    /// By whom it was signed, and its SHA-256 so far.
    signed: Option<(Signed, Sha256)>,
}

/// A body that was signed, to be compared when all of it has come.
pub(crate) struct Signed {
    pub(crate) app: Arc<App>,
    pub(crate) caller: Caller,
    pub(crate) verified: Verified,
    /// Method and path, for the record of one that is not what was signed.
    pub(crate) target: String,
}

impl Signed {
    /// Whether this is what was signed; that it is not is on record.
    pub(crate) async fn check(&self, arrived: &BodyDigest) -> Result<(), Problem> {
        let Self { app, caller, verified, target } = self;
        let same = app.manager.verify_body(caller, verified, arrived, target).await;
        same.map_err(|error| error.problem())
    }
}

impl Upload {
    pub(crate) fn new(
        body: Body,
        headers: &HeaderMap,
        limit: u64,
        stall: Duration,
        signed: Option<Signed>,
    ) -> Result<Self, Problem> {
        if announced(headers)?.is_some_and(|length| length > limit) {
            return Err(too_large(limit));
        }
        let signed = signed.map(|signed| (signed, Sha256::new()));
        Ok(Self { body, left: limit, limit, stall, signed })
    }

    /// The next bytes, or nothing at its end. What was signed is compared there.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            let Some(data) = frame(&mut self.body, self.stall).await? else {
                if let Some((signed, found)) = self.signed.take() {
                    signed.check(&BodyDigest::from_bytes(found.finalize().into())).await?;
                }
                return Ok(None);
            };
            if data.is_empty() {
                continue;
            }
            self.left =
                self.left.checked_sub(data.len() as u64).ok_or_else(|| too_large(self.limit))?;
            if let Some((_, found)) = &mut self.signed {
                found.update(&data);
            }
            return Ok(Some(data));
        }
    }
}

/// The next data of a body, which may not stall.
async fn frame(body: &mut Body, stall: Duration) -> Result<Option<Bytes>, Problem> {
    let Ok(frame) = tokio::time::timeout(stall, body.frame()).await else {
        return Err(Problem::new(Code::RequestTimeout, "the body does not arrive"));
    };
    match frame {
        None => Ok(None),
        // Trailers are of no use here.
        Some(Ok(frame)) => Ok(Some(frame.into_data().unwrap_or_default())),
        Some(Err(error)) => Err(Problem::invalid("body", format!("the body ended early: {error}"))),
    }
}

/// A body as a whole.
pub(crate) async fn read(
    mut body: Body,
    headers: &HeaderMap,
    limit: usize,
    stall: Duration,
) -> Result<Bytes, Problem> {
    if announced(headers)?.is_some_and(|length| length > limit as u64) {
        return Err(too_large(limit as u64));
    }
    let Some(first) = frame(&mut body, stall).await? else { return Ok(Bytes::new()) };
    let mut all = BytesMut::from(first);
    while let Some(data) = frame(&mut body, stall).await? {
        if all.len() + data.len() > limit {
            return Err(too_large(limit as u64));
        }
        all.extend_from_slice(&data);
    }
    match all.len() <= limit {
        true => Ok(all.freeze()),
        false => Err(too_large(limit as u64)),
    }
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>, Problem> {
    serde_json::to_vec(value)
        .map_err(|error| Problem::new(Code::Internal, format!("cannot write it: {error}")))
}

fn recorded(status: StatusCode, etag: Option<&str>, body: Vec<u8>) -> Answer {
    let response = (status, [(CONTENT_TYPE, JSON)], body).into_response();
    Ok(match etag {
        Some(etag) => tagged(response, etag),
        None => response,
    })
}

/// An answer in JSON.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    recorded(status, None, encode(value)?)
}

/// 200, in JSON.
pub(crate) fn ok(value: &impl Serialize) -> Answer {
    json(StatusCode::OK, value)
}

/// 204.
pub(crate) fn done() -> Answer {
    Ok(crate::problem::empty(StatusCode::NO_CONTENT))
}

/// Adds the version.
pub(crate) fn tagged(mut response: Response, etag: &str) -> Response {
    if let Ok(etag) = HeaderValue::from_str(etag) {
        response.headers_mut().insert(ETAG, etag);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(line: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, line.parse().unwrap());
        headers
    }

    #[test]
    fn what_accept_lists_is_given() {
        let json = |line| accepts(&accept(line), "application/json");
        assert!(accepts(&HeaderMap::new(), "application/json"));
        for line in
            ["*/*", "application/*", "application/json", "text/html, application/json;q=0.1"]
        {
            assert!(json(line), "{line}");
        }
        for line in ["text/html", "application/json;q=0", "*/*, application/json;q=0", ""] {
            assert!(!json(line), "{line}");
        }
    }

    #[test]
    fn a_content_type_may_have_parameters() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("Application/JSON; charset=utf-8"));
        assert!(check_type(&headers, "application/json").is_ok());
        assert!(check_type(&headers, "application/x-tar").is_err());
        assert!(check_type(&HeaderMap::new(), "application/json").is_err());
    }

    #[tokio::test]
    async fn a_body_longer_than_its_limit_is_not_kept() {
        let stall = Duration::from_secs(1);
        let none = HeaderMap::new();
        let read = |limit: usize| read(Body::from("12345"), &none, limit, stall);
        assert_eq!(read(5).await.unwrap(), "12345");
        assert_eq!(read(4).await.unwrap_err().code, Code::TooLarge);
    }
}
