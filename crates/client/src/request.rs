//! One request: put together, signed, sent, sent again where that is safe, and its answer read.

use std::time::Duration;

use access::signature::BodyDigest;
use api::{Code, Problem, Route};
use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, IF_MATCH, RANGE, RETRY_AFTER, USER_AGENT,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::events::Events;
use crate::route;
use crate::sign;
use crate::{Client, Error};

/// Bytes of a body, as hyper takes them.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// The longest answer that is kept in memory: twice the most that a buffered exec gives back,
/// in base64.
const MAX_ANSWER: usize = 96 << 20;
/// The longest problem.
const MAX_PROBLEM: usize = 256 << 10;
/// Before the second attempt; doubled before each further one.
const BACKOFF: Duration = Duration::from_millis(100);

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What a request carries.
enum Payload {
    Nothing,
    /// Can be sent again.
    Bytes(Bytes),
    /// Is gone once it is sent. Its digest is known where it has to be.
    Stream(Body, Option<BodyDigest>),
    /// Nothing in the request; this is what is sent once it is a WebSocket.
    Follows(Bytes),
}

/// A request that is being put together.
pub(crate) struct Request<'a> {
    client: &'a Client,
    method: Method,
    path: String,
    query: String,
    headers: HeaderMap,
    payload: Payload,
}

impl Client {
    pub(crate) fn request(&self, route: &'static Route, parameters: &[&str]) -> Request<'_> {
        let mut headers = HeaderMap::new();
        if route.idempotent {
            headers.insert(IDEMPOTENCY_KEY, fresh_key());
        }
        let method = match route.method {
            api::Method::Get => Method::GET,
            api::Method::Post => Method::POST,
            api::Method::Put => Method::PUT,
            api::Method::Patch => Method::PATCH,
            api::Method::Delete => Method::DELETE,
        };
        let (path, query) = (route::path(route, parameters), String::new());
        Request { client: self, method, path, query, headers, payload: Payload::Nothing }
    }
}

/// 128 random bits. Where the system gives none, there is no key, and so no second attempt.
fn fresh_key() -> HeaderValue {
    let text = sign::random_text();
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

impl Request<'_> {
    pub(crate) fn query(mut self, query: &impl Serialize) -> Self {
        self.query = api::render_query(query);
        self
    }

    pub(crate) fn json(mut self, body: &impl Serialize) -> Result<Self, Error> {
        let text = serde_json::to_vec(body).map_err(Error::malformed)?;
        self.headers.insert(CONTENT_TYPE, JSON);
        self.payload = Payload::Bytes(text.into());
        Ok(self)
    }

    pub(crate) fn bytes(mut self, media_type: &'static str, body: Bytes) -> Self {
        self.headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        self.payload = Payload::Bytes(body);
        self
    }

    pub(crate) fn stream(
        mut self,
        media_type: &'static str,
        body: Body,
        digest: Option<BodyDigest>,
    ) -> Self {
        self.headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        self.payload = Payload::Stream(body, digest);
        self
    }

    /// Signs, with the request, the message that its WebSocket begins with.
    pub(crate) fn followed_by(mut self, message: Bytes) -> Self {
        self.payload = Payload::Follows(message);
        self
    }

    /// Whether it will be signed, so that the digest of what it carries must be known before.
    pub(crate) fn is_signed(&self) -> bool {
        self.client.inner.key.is_some()
    }

    pub(crate) fn if_match(mut self, version: Option<u64>) -> Self {
        if let Some(version) = version {
            self.headers.insert(IF_MATCH, number(&format!("\"{version}\"")));
        }
        self
    }

    pub(crate) fn range(mut self, from: u64, to: Option<u64>) -> Self {
        let to = to.map_or_else(String::new, |to| to.to_string());
        self.headers.insert(RANGE, number(&format!("bytes={from}-{to}")));
        self
    }

    /// Asks for events instead of one answer.
    pub(crate) async fn events<T>(self) -> Result<Events<T>, Error> {
        let response = self.accept("text/event-stream").send().await?;
        let kind = response.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        if !kind.starts_with(b"text/event-stream") {
            return Err(Error::malformed("it is no stream of events"));
        }
        Ok(Events::new(response.into_body()))
    }

    /// The answer as a value.
    pub(crate) async fn value<T: DeserializeOwned>(self) -> Result<T, Error> {
        let response = self.accept("application/json").send().await?;
        let bytes = collect(response.into_body(), MAX_ANSWER).await?;
        serde_json::from_slice(&bytes).map_err(Error::malformed)
    }

    /// The answer as text.
    pub(crate) async fn text(self, media_type: &'static str) -> Result<String, Error> {
        let response = self.accept(media_type).send().await?;
        let bytes = collect(response.into_body(), MAX_ANSWER).await?;
        String::from_utf8(bytes.into()).map_err(Error::malformed)
    }

    /// That it went well is the answer.
    pub(crate) async fn done(self) -> Result<(), Error> {
        let response = self.accept("application/json").send().await?;
        collect(response.into_body(), MAX_ANSWER).await.map(drop)
    }

    /// The answer's status, headers and its bytes as they come.
    pub(crate) async fn raw(
        self,
        media_type: &'static str,
    ) -> Result<http::Response<Incoming>, Error> {
        self.accept(media_type).send().await
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    fn accept(self, media_type: &'static str) -> Self {
        self.header(ACCEPT, HeaderValue::from_static(media_type))
    }

    /// Whether it may be sent again: doing it twice is as good as once, and it is still there.
    fn repeatable(&self) -> bool {
        let safe = matches!(self.method, Method::GET | Method::HEAD | Method::DELETE | Method::PUT);
        let keyed = self.headers.get(IDEMPOTENCY_KEY).is_some_and(|key| !key.is_empty());
        (safe || keyed) && !matches!(self.payload, Payload::Stream(..))
    }

    /// The answer, where one of these statuses is an answer too and no refusal. Sent once.
    pub(crate) async fn answer(
        mut self,
        also: &[StatusCode],
    ) -> Result<http::Response<Incoming>, Error> {
        self = self.accept("application/json");
        let response = self.exchange().await?;
        let status = response.status();
        if status.is_success() || also.contains(&status) {
            return Ok(response);
        }
        Err(refusal(response).await)
    }

    /// Sends it one time, as what opens a WebSocket has to be.
    pub(crate) async fn once(mut self) -> Result<http::Response<Incoming>, Error> {
        self.attempt().await
    }

    async fn send(mut self) -> Result<http::Response<Incoming>, Error> {
        let retries = self.client.inner.retries;
        let attempts = if self.repeatable() { retries.attempts.max(1) } else { 1 };
        let mut backoff = BACKOFF;
        for attempt in 1.. {
            let error = match self.attempt().await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let wait = match patience(&error, backoff) {
                Some(wait) if attempt < attempts && wait <= retries.longest_wait => wait,
                _ => return Err(error),
            };
            tokio::time::sleep(wait + jitter(wait)).await;
            backoff = backoff.saturating_mul(2);
        }
        unreachable!("the last attempt returns")
    }

    async fn attempt(&mut self) -> Result<http::Response<Incoming>, Error> {
        let response = self.exchange().await?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        Err(refusal(response).await)
    }

    /// Sends it and takes the head of whatever comes back.
    async fn exchange(&mut self) -> Result<http::Response<Incoming>, Error> {
        let inner = &self.client.inner;
        let mut target = self.path.clone();
        if !self.query.is_empty() {
            target.push('?');
            target.push_str(&self.query);
        }
        let uri = format!("{}{target}", inner.base);
        let mut headers = self.headers.clone();
        headers.insert(HOST, inner.host.clone());
        headers.insert(USER_AGENT, inner.agent.clone());
        if let Some(token) = &inner.token {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.as_str()))
                .map_err(|error| Error::Configuration(error.to_string()))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        if let Some(key) = &inner.key {
            let digest = match &self.payload {
                Payload::Nothing => BodyDigest::of(b""),
                Payload::Bytes(bytes) | Payload::Follows(bytes) => BodyDigest::of(bytes),
                Payload::Stream(_, digest) => digest
                    .ok_or_else(|| Error::Sign("the digest of a stream is not known".into()))?,
            };
            key.sign(&self.method, &self.path, &self.query, digest, &mut headers)?;
        }
        let body = match &mut self.payload {
            Payload::Nothing | Payload::Follows(_) => {
                Empty::new().map_err(|never| match never {}).boxed_unsync()
            }
            Payload::Bytes(bytes) => {
                Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync()
            }
            payload @ Payload::Stream(..) => match std::mem::replace(payload, Payload::Nothing) {
                Payload::Stream(body, _) => body,
                _ => unreachable!("it was a stream a moment ago"),
            },
        };
        let mut request = http::Request::builder()
            .method(self.method.clone())
            .uri(uri)
            .body(body)
            .map_err(|error| Error::Configuration(error.to_string()))?;
        *request.headers_mut() = headers;
        inner.http.request(request).await.map_err(|error| {
            if error.is_connect() {
                Error::Connect { target: inner.target.clone(), source: root(error) }
            } else {
                Error::broken(error)
            }
        })
    }
}

/// hyper's own words about a failed connection say nothing that its cause does not.
fn root(error: hyper_util::client::legacy::Error) -> Box<dyn std::error::Error + Send + Sync> {
    use std::error::Error as _;
    let cause = error.source().map(ToString::to_string);
    match cause {
        Some(cause) => cause.into(),
        None => error.into(),
    }
}

fn number(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// How long to wait before the next attempt, where another would be of use.
fn patience(error: &Error, backoff: Duration) -> Option<Duration> {
    match error {
        Error::Broken(_) | Error::Connect { .. } => Some(backoff),
        Error::Problem(problem) => match problem.code {
            Code::RateLimited | Code::Busy | Code::ShuttingDown | Code::IdempotencyInProgress => {
                Some(problem.retry_after_sec().map_or(backoff, Duration::from_secs))
            }
            _ => None,
        },
        _ => None,
    }
}

/// Up to a quarter more, so that callers who were refused together do not come back together.
fn jitter(wait: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness they do.
    let _ = getrandom::fill(&mut byte);
    wait.mul_f64(f64::from(byte[0]) / 1024.0)
}

/// What the server said instead of what was asked for.
async fn refusal(response: http::Response<Incoming>) -> Error {
    let (head, body) = response.into_parts();
    let retry_after =
        head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let bytes = match collect(body, MAX_PROBLEM).await {
        Ok(bytes) => bytes,
        Err(error) => return error,
    };
    match serde_json::from_slice::<Problem>(&bytes) {
        Ok(problem) => Error::Problem(match (problem.retry_after_sec(), retry_after) {
            (None, Some(seconds)) => problem.with_retry_after_sec(seconds),
            _ => problem,
        }),
        Err(_) => Error::malformed(format!("status {} without a problem", head.status.as_u16())),
    }
}

/// A body as a whole, up to a limit.
pub(crate) async fn collect(mut body: Incoming, limit: usize) -> Result<Bytes, Error> {
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(Error::broken)?.into_data() {
            if all.len() + data.len() > limit {
                return Err(Error::malformed(format!("it is longer than {limit} bytes")));
            }
            all.extend_from_slice(&data);
        }
    }
    Ok(all.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_pass_is_tried_again() {
        let busy = Problem::new(Code::Busy, "full").with_retry_after_sec(3);
        let wait = |error| patience(&error, BACKOFF);
        assert_eq!(wait(Error::Problem(busy)), Some(Duration::from_secs(3)));
        assert_eq!(wait(Error::broken("reset")), Some(BACKOFF));
        assert_eq!(wait(Problem::new(Code::NotFound, "x").into()), None);
        assert_eq!(wait(Problem::new(Code::StorageFull, "x").into()), None);
    }
}
