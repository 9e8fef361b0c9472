//! What every request passes, in this order: names and origins, what may not be there twice, who
//! calls, how often, what it carries, and by whom that was signed. Then it is answered, and
//! whatever went wrong becomes a problem.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use access::Caller;
use access::signature::{BodyDigest, Parts as Covered, Presented, Verified};
use api::{Access, Body as Takes, CallerKind, Code, Problem, Route};
use axum::RequestExt as _;
use axum::body::Body;
use axum::extract::{RawPathParams, Request};
use axum::response::Response;
use bytes::Bytes;
use fleet::Provenance;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, CACHE_CONTROL,
    CONTENT_LENGTH, CONTENT_TYPE, IF_MATCH, IF_NONE_MATCH, RANGE, TRANSFER_ENCODING, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body::Body as _;
use sha2::{Digest as _, Sha256};
use tracing::Instrument as _;

use crate::app::App;
use crate::ask::{self, Answer, Ask, IDEMPOTENCY_KEY, LAST_EVENT_ID, Signed, Upload};
use crate::connection::Peer;
use crate::host::single;
use crate::{problem, telemetry};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
const SIGNATURE: HeaderName = HeaderName::from_static("signature");
const SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");

/// What answers a route.
pub(crate) type Handler = fn(Ask) -> BoxFuture<'static, Answer>;

/// What is asked for, as far as the path and the method say.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// A route.
    Route {
        /// Which.
        route: &'static Route,
        /// What answers it.
        handler: Handler,
        /// Whether it has parameters in its query. To ask the route each time would cost more
        /// than many an answer.
        has_query: bool,
    },
    /// No path of the API.
    Nowhere,
    /// A path, but not by this method.
    Otherwise,
}

impl Target {
    fn label(&self) -> &'static str {
        match self {
            Self::Route { route, .. } => route.id,
            Self::Nowhere | Self::Otherwise => "none",
        }
    }
}

/// Answers a request, whatever becomes of it.
pub(crate) async fn answer(app: Arc<App>, target: Target, request: Request) -> Response {
    let (id, began) = (app.next_request(), Instant::now());
    // Whoever is not known to be near is far.
    let peer = request.extensions().get::<Peer>().copied().unwrap_or(Peer::UNKNOWN);
    let span = telemetry::span(request.headers(), request.method(), target.label(), &id);
    let _busy = app.metrics.begin();
    let mut origin = None;
    let answered = AssertUnwindSafe(admit(&app, target, peer, &mut origin, request))
        .catch_unwind()
        .instrument(span.clone())
        .await;
    let mut response = match answered {
        Ok(Ok(response)) => problem::adopt(response, &id),
        Ok(Err(problem)) => {
            if problem.status() >= 500 {
                tracing::warn!(parent: &span, request = id, %problem, "a request failed");
            }
            problem::answer(problem, &id)
        }
        Err(_) => {
            tracing::error!(parent: &span, request = id, "a request met a defect");
            problem::answer(Problem::new(Code::Internal, "the server has a defect"), &id)
        }
    };
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(origin) = origin {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(
            ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("etag, retry-after, x-request-id, content-range"),
        );
        headers.append(VARY, HeaderValue::from_static("origin"));
    }
    telemetry::answered(&span, response.status());
    app.metrics.answered(target.label(), response.status(), began.elapsed());
    response
}

async fn admit(
    app: &Arc<App>,
    target: Target,
    peer: Peer,
    origin: &mut Option<HeaderValue>,
    mut request: Request,
) -> Answer {
    if app.lifetime.stopping.is_cancelled() {
        return Err(Problem::new(Code::ShuttingDown, "the server is stopping"));
    }
    *origin = app.allowed.check(request.uri(), request.headers())?;
    if origin.is_some() && is_preflight(&request) {
        return Ok(preflight());
    }
    check_head(app, request.headers(), request.uri())?;
    let (route, handler, has_query) = match target {
        Target::Route { route, handler, has_query } => (route, handler, has_query),
        nowhere => {
            // Whoever is not known does not learn which paths there are.
            let caller = authenticate(app, peer, request.headers()).await?;
            count(app, &caller)?;
            return Err(match nowhere {
                Target::Otherwise => {
                    let text = format!("the path does not take {}", request.method());
                    Problem::new(Code::MethodNotAllowed, text)
                }
                _ => Problem::new(Code::NotFound, "there is no such path"),
            });
        }
    };
    let caller = match route.access {
        Access::Public => None,
        Access::Needs(_) => {
            let caller = authenticate(app, peer, request.headers()).await?;
            count(app, &caller)?;
            Some(caller)
        }
    };
    let path = path_of(&mut request).await?;
    let (parts, body) = request.into_parts();
    check_answer(route, &parts.headers)?;
    if !has_query && parts.uri.query().is_some_and(|query| !query.is_empty()) {
        return Err(Problem::invalid("query", "this path takes no parameters"));
    }
    let ask = receive(app, route, caller, peer, parts, path, body).await?;
    handler(ask).await
}

/// A browser asks first whether a page may ask.
fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight() -> Response {
    let mut response = problem::empty(StatusCode::NO_CONTENT);
    let headers = response.headers_mut();
    headers.insert(
        ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE"),
    );
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static(
            "authorization, content-type, content-digest, idempotency-key, if-match, \
             if-none-match, last-event-id, range, signature, signature-input",
        ),
    );
    response
}

/// What may be there once only, and what two programs could read differently.
fn check_head(app: &App, headers: &HeaderMap, uri: &http::Uri) -> Result<(), Problem> {
    let length = uri.path_and_query().map_or(0, |path| path.as_str().len());
    if length > app.limits.uri_bytes {
        let text = format!("path and query have more than {} bytes", app.limits.uri_bytes);
        return Err(Problem::new(Code::UriTooLong, text));
    }
    for name in [
        &AUTHORIZATION,
        &CONTENT_LENGTH,
        &CONTENT_TYPE,
        &TRANSFER_ENCODING,
        &IDEMPOTENCY_KEY,
        &IF_MATCH,
        &IF_NONE_MATCH,
        &RANGE,
        &LAST_EVENT_ID,
        &CONTENT_DIGEST,
        &SIGNATURE,
        &SIGNATURE_INPUT,
    ] {
        single(headers, name)?;
    }
    if headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH) {
        return Err(Problem::invalid("Transfer-Encoding", "must not be there with Content-Length"));
    }
    Ok(())
}

/// Who calls. A token counts before the connection: so a local program can be less than its user.
async fn authenticate(app: &App, peer: Peer, headers: &HeaderMap) -> Result<Caller, Problem> {
    let Some(header) = single(headers, &AUTHORIZATION)? else {
        return match peer {
            Peer::Local { uid } => Ok(Caller::local(uid)),
            Peer::Embedded => Ok(Caller::local(rustix::process::getuid().as_raw())),
            Peer::Remote(_) => Err(refuse(
                app,
                peer,
                Problem::new(Code::Unauthenticated, "there is no Authorization header"),
            )),
        };
    };
    match app.manager.authenticate(header.as_bytes()).await {
        Ok(caller) => Ok(caller),
        Err(error) => Err(refuse(app, peer, error.problem())),
    }
}

/// Counts a failed authentication. Whoever fails too often is told that instead.
fn refuse(app: &App, peer: Peer, problem: Problem) -> Problem {
    if problem.status() != 401 {
        return problem;
    }
    app.metrics.refused();
    match peer {
        Peer::Remote(address) => match app.rates.failure(address.ip()) {
            Ok(()) => problem,
            Err(limited) => limited,
        },
        Peer::Local { .. } | Peer::Embedded => problem,
    }
}

/// Counts a request of a caller. This user's own programs have the whole host already.
fn count(app: &App, caller: &Caller) -> Result<(), Problem> {
    match caller.kind {
        CallerKind::Local => Ok(()),
        _ => app.rates.request(&caller.actor()).inspect_err(|_| app.metrics.limited()),
    }
}

async fn path_of(request: &mut Request) -> Result<Vec<(String, String)>, Problem> {
    let parameters: RawPathParams = request
        .extract_parts()
        .await
        .map_err(|_| Problem::new(Code::NotFound, "the path is not UTF-8"))?;
    Ok(parameters.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

/// Whether the client takes any of what the route gives.
fn check_answer(route: &Route, headers: &HeaderMap) -> Result<(), Problem> {
    let accepts = |media_type| ask::accepts(headers, media_type);
    let acceptable = route.answers.iter().any(|(_, body)| match body {
        Takes::Empty | Takes::WebSocket => true,
        Takes::Json(_) | Takes::OptionalJson(_) | Takes::Document => accepts("application/json"),
        Takes::JsonOrEvents(..) => accepts("application/json") || accepts("text/event-stream"),
        Takes::Events(_) => accepts("text/event-stream"),
        Takes::Octets => accepts("application/octet-stream"),
        Takes::Tar => accepts("application/x-tar"),
        Takes::JsonLines(_) => accepts("application/jsonl"),
        // Every collector of metrics has its own idea of their media type.
        Takes::Metrics => true,
    });
    match acceptable {
        true => Ok(()),
        false => {
            Err(Problem::new(Code::NotAcceptable, "none of the types in Accept is given here")
                .with_field("Accept"))
        }
    }
}

/// Takes what comes with the request, and verifies by whom it was signed, before anybody reads
/// a byte of it.
async fn receive(
    app: &Arc<App>,
    route: &'static Route,
    caller: Option<Caller>,
    peer: Peer,
    parts: Parts,
    path: Vec<(String, String)>,
    body: Body,
) -> Result<Ask, Problem> {
    let (limits, headers) = (&app.limits, &parts.headers);
    let key = single(headers, &IDEMPOTENCY_KEY)?.map(|key| key.to_str().unwrap_or_default());
    let key = key.map(str::to_owned);
    if let Some(key) = &key {
        api::bound::IdempotencyKey::check("Idempotency-Key", key)?;
    }
    // Only who is known can have signed.
    let signed = match &caller {
        Some(caller) => {
            let verified = verify(app, caller, &parts, key.as_deref()).await?;
            verified.map(|verified| Signed {
                app: Arc::clone(app),
                caller: caller.clone(),
                verified,
                target: format!("{} {}", parts.method, parts.uri.path()),
            })
        }
        None => None,
    };
    let signature = signed.as_ref().map(|signed| fleet::VerifiedSignature {
        key_id: signed.verified.key_id.clone(),
        digest: hex(&signed.verified.request_digest),
    });
    // What a WebSocket carries is covered by its first message, which comes later.
    let websocket = route.answers.iter().any(|(_, body)| matches!(body, Takes::WebSocket));
    let (mut later, mut signed) = (None, signed);
    if websocket {
        later = signed.take().map(|signed| signed.verified);
    }
    let (mut whole, mut upload) = (Bytes::new(), None);
    match route.request {
        Takes::Json(_) | Takes::OptionalJson(_) => {
            whole = ask::read(body, headers, limits.body_bytes, limits.stall).await?;
            let optional = matches!(route.request, Takes::OptionalJson(_));
            if !(optional && whole.is_empty()) {
                ask::check_type(headers, "application/json")?;
            }
        }
        Takes::Octets | Takes::Tar => {
            let tar = matches!(route.request, Takes::Tar);
            let media_type = if tar { "application/x-tar" } else { "application/octet-stream" };
            ask::check_type(headers, media_type)?;
            let limit = limits.upload_bytes;
            upload = Some(Upload::new(body, headers, limit, limits.stall, signed.take())?);
        }
        _ => {
            if !body.is_end_stream() {
                let read = ask::read(body, headers, 0, limits.stall).await;
                read.map_err(|_| Problem::invalid("body", "this path takes no body"))?;
            }
        }
    }
    if let Some(signed) = signed {
        signed.check(&BodyDigest::of(&whole)).await?;
    }
    let provenance = Provenance {
        request_digest: Some(digest(&parts, &whole)),
        signature,
        idempotency_key: key,
        remote: peer.to_string(),
    };
    let caller = caller.unwrap_or_else(nobody);
    let (app, upload) = (Arc::clone(app), Mutex::new(upload));
    Ok(Ask { app, caller, provenance, parts, path, body: whole, upload, signed: later })
}

/// Who calls a public route: nobody in particular, who may do nothing else.
fn nobody() -> Caller {
    Caller {
        subject: "nobody".into(),
        kind: CallerKind::Token,
        role: api::Role::Viewer,
        workspace: Some(String::new()),
        operations: Some(std::collections::BTreeSet::new()),
        token_id: None,
        key_id: None,
    }
}

async fn verify(
    app: &App,
    caller: &Caller,
    parts: &Parts,
    idempotency_key: Option<&str>,
) -> Result<Option<Verified>, Problem> {
    let text = |name: &HeaderName| -> Result<Option<&str>, Problem> {
        let value = single(&parts.headers, name)?;
        value
            .map(|value| value.to_str())
            .transpose()
            .map_err(|_| Problem::new(Code::BadSignature, "a header of the signature is not ASCII"))
    };
    let presented =
        Presented::parse(text(&CONTENT_DIGEST)?, text(&SIGNATURE_INPUT)?, text(&SIGNATURE)?)?;
    let Some(presented) = presented else { return Ok(None) };
    let covered = Covered {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: parts.uri.query(),
        idempotency_key,
    };
    let verified = app.manager.verify(caller, presented, &covered).await;
    verified.map(Some).map_err(|error| error.problem())
}

/// SHA-256 of what tells a request from others: its method, target and body.
fn digest(parts: &Parts, body: &[u8]) -> String {
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let mut digest = Sha256::new();
    for part in [parts.method.as_str().as_bytes(), target.as_bytes(), body] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    hex(&digest.finalize())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
