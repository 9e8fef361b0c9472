//! One request, whichever way it came in: framing, who it is for, what it asks, whether that is
//! allowed, which credential goes in, where it is sent, what is taken out of the answer. Each step
//! can only refuse, and what was judged is what is sent.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use canonical::{Authority, Leniency, Path, Query};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use redact::Redactor;
use rules::{BodyRule, Refusal, Rules, Verdict};
use zeroize::Zeroizing;

use crate::aws::{self, Came, Signed};
use crate::body::{Decoder, Reply, Sent, Served, may_trail};
use crate::credential::{Credentials, Misuse};
use crate::event::{Decision, Event, Journal};
use crate::gate::Answer;
use crate::gateway::Inner;
use crate::pool::{Route, Unanswered};
use crate::upstream::DialError;
use crate::websocket;

/// Fields that concern one connection (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// Fields that make some servers see another request than the one that was judged, or tell them
/// where it came from.
const MISLEADING: [&str; 18] = [
    "expect",
    "forwarded",
    "proxy-authorization",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-forwarded-server",
    "x-host",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-url",
    "x-real-ip",
    "x-rewrite-url",
    "alt-used",
];

/// Fields that nobody may name in `Connection`, to have them taken away after they were judged.
const NOT_NOMINATED: [&str; 8] = [
    "authorization",
    "host",
    "cookie",
    "content-length",
    "content-type",
    "content-encoding",
    "x-api-key",
    "accept-encoding",
];

/// How a connection came in.
#[derive(Debug, Clone)]
pub(crate) enum Entry {
    /// To an address that stands for this host and port, behind our TLS or in the clear.
    Direct { authority: Authority, is_secure: bool },
    /// To the proxy's port.
    Proxy,
    /// To the gateway's port, for clients that are given a base URL.
    BaseUrl { port: u16 },
}

/// What is common to the requests of one connection.
pub(crate) struct Pipeline {
    pub(crate) gateway: Arc<Inner>,
    pub(crate) entry: Entry,
    /// The connection is refused; it was taken only to say why.
    pub(crate) refusal: Option<Refusal>,
    pub(crate) answer: Option<Answer>,
    /// What the rules said of the connection's endpoint the last time.
    known: Mutex<Option<Known>>,
}

/// What the rules of a generation say of an endpoint.
#[derive(Debug, Clone, Copy)]
struct Known {
    generation: u64,
    leniency: Leniency,
    /// A rule names its private address.
    allow_private: bool,
}

impl Known {
    /// The strictest where the rules do not name it.
    fn of((rules, generation): &(Rules, u64), authority: &Authority) -> Self {
        let (leniency, allow_private) = rules
            .endpoint(&authority.host, authority.port)
            .map(|endpoint| (endpoint.leniency, endpoint.allow_private))
            .unwrap_or_default();
        Self { generation: *generation, leniency, allow_private }
    }
}

/// Why a request is not sent on.
#[derive(Debug)]
pub(crate) struct Refused {
    status: StatusCode,
    error: &'static str,
    refusal: Refusal,
}

impl Refused {
    fn new(status: StatusCode, error: &'static str, reason: impl Into<String>) -> Self {
        Self { status, error, refusal: refusal(&reason.into()) }
    }

    fn malformed(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed_request", reason)
    }

    pub(crate) fn bad_gateway(reason: &str) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "upstream_failed", reason)
    }

    fn denied(refusal: Refusal) -> Self {
        Self { status: StatusCode::FORBIDDEN, error: "egress_denied", refusal }
    }
}

/// What a request asks for, in one spelling.
struct Asked {
    authority: Authority,
    is_secure: bool,
    /// A rule names its private address.
    allow_private: bool,
    path: Path,
    query: Query,
    /// What the guest put before the path, and expects before it in what it is answered.
    prefix: Option<String>,
}

impl Asked {
    /// Brings the target to one spelling: that of what the rules allow paths of the host, where they
    /// name it, and the strictest where they do not.
    fn new(
        known: Known,
        authority: Authority,
        is_secure: bool,
        path: &str,
        query: Option<&str>,
    ) -> Result<Self, Refused> {
        let Known { leniency, allow_private, .. } = known;
        let path =
            Path::parse(path, leniency).map_err(|error| Refused::malformed(error.to_string()))?;
        let query = match query {
            None => Query::default(),
            Some(query) => {
                Query::parse(query).map_err(|error| Refused::malformed(error.to_string()))?
            }
        };
        Ok(Self { authority, is_secure, allow_private, path, query, prefix: None })
    }
}

impl Pipeline {
    pub(crate) fn new(
        gateway: Arc<Inner>,
        entry: Entry,
        refusal: Option<Refusal>,
        answer: Option<Answer>,
    ) -> Self {
        Self { gateway, entry, refusal, answer, known: Mutex::default() }
    }

    /// What the rules say of the endpoint of a connection that has one.
    fn known(&self, judged: &(Rules, u64), authority: &Authority) -> Known {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match *known {
            Some(known) if known.generation == judged.1 => known,
            _ => *known.insert(Known::of(judged, authority)),
        }
    }

    /// Answers a request. Never fails: what goes wrong is an answer too.
    pub(crate) async fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Reply>, Infallible> {
        let switches =
            request.headers().contains_key(header::UPGRADE) || request.method() == Method::CONNECT;
        let response = self.respond(request).await;
        if let Some(answer) = self.answer.as_ref().filter(|_| switches) {
            let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS
                || (matches!(self.entry, Entry::Proxy)
                    && response.extensions().get::<Tunnelled>().is_some());
            if switched { answer.switched() } else { answer.stayed() }
        }
        Ok(response)
    }

    async fn respond(self: &Arc<Self>, mut request: Request<Incoming>) -> Response<Reply> {
        let begun = Instant::now();
        let is_grpc = is_grpc(request.headers());
        let mut finish =
            Finish::new(self.gateway.journal.clone(), begun, self.gateway.generation());
        finish.event.method = Some(bounded(request.method().as_str()));
        let outcome = match &self.entry {
            Entry::Proxy if request.method() == Method::CONNECT => {
                self.connect(&mut request, &mut finish)
            }
            _ => self.forward(request, &mut finish, is_grpc).await,
        };
        match outcome {
            Ok(response) => response,
            Err(refused) => {
                finish.refused(&refused);
                refused.into_response(is_grpc)
            }
        }
    }

    /// Opens a tunnel of the proxy, which is then looked into like any other connection.
    fn connect(
        self: &Arc<Self>,
        request: &mut Request<Incoming>,
        finish: &mut Finish,
    ) -> Result<Response<Reply>, Refused> {
        let target =
            request.uri().authority().map(|authority| authority.as_str()).unwrap_or_default();
        let bad = |error: canonical::HostError| Refused::malformed(format!("CONNECT: {error}"));
        let authority = Authority::parse(target, 0).map_err(bad)?;
        if authority.port == 0 {
            return Err(Refused::malformed("CONNECT has no port"));
        }
        let host = request
            .headers()
            .get(header::HOST)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        if Authority::parse(host, authority.port).map_err(bad)? != authority {
            return Err(Refused::new(
                StatusCode::MISDIRECTED_REQUEST,
                "authority_mismatch",
                "CONNECT and Host do not agree",
            ));
        }
        finish.forget();
        let gateway = self.gateway.clone();
        let upgrade = hyper::upgrade::on(request);
        tokio::spawn(async move {
            if let Ok(upgraded) = upgrade.await {
                gateway.tunnelled(authority, upgraded).await;
            }
        });
        let mut response = Response::new(Reply::Own(None));
        response.extensions_mut().insert(Tunnelled);
        Ok(response)
    }

    async fn forward(
        self: &Arc<Self>,
        mut request: Request<Incoming>,
        finish: &mut Finish,
        is_grpc: bool,
    ) -> Result<Response<Reply>, Refused> {
        let gateway = self.gateway.clone();
        if !gateway.is_recording().await {
            return Err(Refused::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "egress_unavailable",
                "what happens cannot be written down, so nothing does",
            ));
        }
        let credentials = gateway.credentials();
        let websocket = websocket::asked(&request);
        let judged = gateway.judged();
        let (rules, generation) = &judged;
        finish.event.generation = *generation;
        let mut asked = self.asked(&request, &judged, &credentials)?;
        finish.event.host = spelled_host(&asked.authority).into_owned();
        finish.event.port = asked.authority.port;
        finish.event.path = Some(asked.path.as_str().to_owned());
        if let Some(refusal) = &self.refusal {
            return Err(Refused::denied(refusal.clone()));
        }
        let method = method(request.method(), websocket.is_some())?;
        let guest_upgrade = websocket.is_some().then(|| hyper::upgrade::on(&mut request));
        let guest_is_h2 = request.version() == Version::HTTP_2;
        let (parts, mut incoming) = request.into_parts();
        let mut headers = parts.headers;
        let managed = credentials.at(&asked.authority);
        let mut first = VecDeque::new();
        let mut signed = None;
        if let Some(managed) = managed {
            let said = parts.uri.authority().map(|authority| authority.as_str().to_owned());
            let said = said.or_else(|| host_header(&headers).ok().flatten().map(str::to_owned));
            let came = Came {
                host: &asked.authority.host,
                spelled: &said.unwrap_or_default(),
                method: parts.method.as_str(),
                path: parts.uri.path(),
                query: parts.uri.query().unwrap_or_default(),
            };
            signed = managed.verify(came, &mut headers, &mut incoming, &mut first).await?;
        }
        if let Some(signed) = &signed {
            asked.query = Query::parse(&signed.query)
                .map_err(|error| Refused::malformed(error.to_string()))?;
        }
        screen(&mut headers, websocket.is_some(), is_grpc)?;

        let content_type = match headers.get(header::CONTENT_TYPE) {
            None => None,
            Some(value) => {
                let text = value
                    .to_str()
                    .map_err(|_| Refused::malformed("the content type is no text"))?;
                Some(text.to_owned())
            }
        };
        let question = rules::Request {
            host: &asked.authority.host,
            port: asked.authority.port,
            method: method.as_str(),
            path: &asked.path,
            query: &asked.query,
            websocket: websocket.is_some(),
            grpc: is_grpc,
            content_type: content_type.as_deref(),
        };
        let mut verdict = rules.request(&question);
        if let Verdict::Body(rule) = verdict {
            if headers.contains_key(header::CONTENT_ENCODING) {
                return Err(Refused::denied(refusal(
                    "the body is encoded, so that no rule can look into it",
                )));
            }
            verdict = judge_body(&rule, &mut incoming, &mut first).await?;
        }
        let allowed = match verdict {
            Verdict::Allow(allowed) => allowed,
            Verdict::Deny(refusal) => return Err(Refused::denied(refusal)),
            Verdict::Body(_) => {
                return Err(Refused::denied(refusal("the body needs more than one judgement")));
            }
        };
        finish.event.rule = Some(allowed.rule.clone());
        if let Some(signed) = &signed
            && let Some(source) = aws::copied(&asked.authority.host, &headers)?
        {
            let known = Known::of(&judged, &asked.authority);
            let read = Asked::new(known, asked.authority.clone(), true, &source, None)?;
            let (path, query) = (&read.path, &read.query);
            let question =
                rules::Request { method: "GET", path, query, content_type: None, ..question };
            match rules.request(&question) {
                Verdict::Allow(allowed) if allowed.serves(signed.service()) => {}
                Verdict::Deny(refusal) => return Err(Refused::denied(refusal)),
                _ => return Err(Refused::denied(refusal("no rule lets what is copied be read"))),
            }
        }

        let mut query = Zeroizing::new(asked.query.as_str().to_owned());
        if let Some(managed) = managed {
            finish.event.credential = managed
                .inject(
                    &mut headers,
                    &mut query,
                    &asked.query,
                    |service| allowed.serves(service),
                    asked.is_secure,
                )
                .map_err(Refused::from)?;
        }
        credentials.forbid(&headers, &asked.path, &query).map_err(Refused::from)?;
        if let Some(signed) = &signed {
            let spelled = spelled(&asked.authority, asked.is_secure);
            let path = asked.path.as_str();
            let serves = |service: &str| allowed.serves(service);
            let used =
                signed.sign(&spelled, method.as_str(), path, &query, &mut headers, serves)?;
            finish.event.credential = Some(used);
        }
        let redactor = managed.and_then(|managed| managed.redactor.clone());
        if redactor.is_some() {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            headers.remove(header::SEC_WEBSOCKET_EXTENSIONS);
            // Pieces that are shorter than a credential could be asked for one by one.
            headers.remove(header::RANGE);
            headers.remove(header::IF_RANGE);
        }
        finish.redactor = redactor;

        let rest = (!http_body::Body::is_end_stream(&incoming)).then_some(incoming);
        let decoder = signed.as_mut().and_then(Signed::decoder);
        let body = Sent::new(first, rest, finish.sent.clone(), decoder);
        let only_h1 = websocket.is_some() || !guest_is_h2;
        let mut outgoing = Request::new(body);
        *outgoing.method_mut() = method;
        *outgoing.uri_mut() = target(&asked.path, &query)?;
        if let Some(websocket) = &websocket {
            websocket.ask(&mut headers);
        }
        *outgoing.headers_mut() = headers;
        let route = Route { authority: asked.authority.clone(), is_secure: asked.is_secure };
        let (mut response, lease) =
            self.send(outgoing, &route, asked.allow_private, only_h1).await?;

        finish.event.status = Some(response.status().as_u16());
        if let (Some(websocket), Some(guest)) = (&websocket, guest_upgrade) {
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                let server = hyper::upgrade::on(&mut response);
                let reply = websocket.accept(&response, finish.redactor.as_deref())?;
                let finish = finish.take();
                tokio::spawn(websocket::relay(gateway, asked.authority, guest, server, finish));
                return Ok(reply);
            }
        } else if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Refused::bad_gateway("the server switches protocols unasked"));
        }
        self.deliver(response, lease, &asked, finish)
    }

    /// Sends the request over a connection that is open, or over a new one.
    async fn send(
        &self,
        mut request: Request<Sent>,
        route: &Route,
        allow_private: bool,
        only_h1: bool,
    ) -> Result<(Response<Incoming>, Option<crate::pool::Lease>), Refused> {
        let Inner { pool, upstream, .. } = &*self.gateway;
        let unreachable = |error| unreachable(&error);
        let connection =
            pool.open(upstream, route, allow_private, only_h1).await.map_err(unreachable)?;
        let is_used = connection.is_used();
        let adapted = adapt(request, route, &connection)?;
        request = match connection.send(adapted).await {
            Ok(answer) => return Ok(answer),
            // It was closed while it was idle, and nothing was sent.
            Err(Unanswered { request: Some(unsent), .. }) if is_used => unsent,
            Err(Unanswered { error, .. }) => return Err(unanswered(&error)),
        };
        let connection =
            pool.dial(upstream, route, allow_private, only_h1).await.map_err(unreachable)?;
        let adapted = adapt(request, route, &connection)?;
        connection.send(adapted).await.map_err(|failed| unanswered(&failed.error))
    }

    /// The server's answer as the guest gets it.
    fn deliver(
        &self,
        response: Response<Incoming>,
        lease: Option<crate::pool::Lease>,
        asked: &Asked,
        finish: &mut Finish,
    ) -> Result<Response<Reply>, Refused> {
        let (mut parts, incoming) = response.into_parts();
        let nominated = nominated(&parts.headers);
        // What has no body has no length of one.
        if matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        // The guest has no other way to the server.
        strip(&mut parts.headers, &nominated, |name| name == header::ALT_SVC.as_str());
        let mut decoder = None;
        if let Some(redactor) = finish.redactor.clone() {
            let encoding = parts
                .headers
                .get(header::CONTENT_ENCODING)
                .map(|value| value.as_bytes().to_ascii_lowercase());
            match encoding.as_deref() {
                None | Some(b"identity" | b"") => {}
                Some(name) => {
                    decoder = std::str::from_utf8(name).ok().and_then(Decoder::named);
                    if decoder.is_none() {
                        return Err(Refused::bad_gateway(
                            "the server's answer is encoded, although it was asked not to",
                        ));
                    }
                    parts.headers.remove(header::CONTENT_ENCODING);
                    parts.headers.remove(header::CONTENT_LENGTH);
                }
            }
            finish.event.redacted += redact_headers(&mut parts.headers, &redactor);
        }
        if let Some(prefix) = &asked.prefix {
            relocate(&mut parts.headers, asked, prefix);
        }
        parts.version = Version::HTTP_11;
        parts.extensions = http::Extensions::new();
        let redaction = finish.redactor.clone().map(|redactor| redactor.stream());
        let served = Served {
            incoming,
            decoder,
            encoded: Bytes::new(),
            redaction,
            trailers: None,
            is_over: false,
            lease,
            finish: finish.take(),
        };
        Ok(Response::from_parts(parts, Reply::Served(Box::new(served))))
    }

    /// What the request asks for. All that names a host must name the same one.
    fn asked(
        &self,
        request: &Request<Incoming>,
        judged: &(Rules, u64),
        credentials: &Credentials,
    ) -> Result<Asked, Refused> {
        let uri = request.uri();
        let default_port = |is_secure| if is_secure { 443 } else { 80 };
        let bad_host =
            |error: canonical::HostError| Refused::malformed(format!("the host: {error}"));
        let said = host_header(request.headers())?;
        match &self.entry {
            Entry::Direct { authority, is_secure } => {
                let named = if request.version() == Version::HTTP_2 {
                    let wanted = if *is_secure { "https" } else { "http" };
                    if uri.scheme_str() != Some(wanted) {
                        return Err(Refused::malformed(format!("`:scheme` is not `{wanted}`")));
                    }
                    uri.authority().map(|authority| authority.as_str())
                } else if uri.scheme().is_some() || uri.authority().is_some() {
                    return Err(Refused::malformed(
                        "the target names a host, as it does for proxies only",
                    ));
                } else {
                    None
                };
                let port = default_port(*is_secure);
                for text in [named, said].into_iter().flatten() {
                    if !authority.is_spelled(text, port)
                        && Authority::parse(text, port).map_err(bad_host)? != *authority
                    {
                        return Err(misdirected());
                    }
                }
                if named.or(said).is_none() {
                    return Err(Refused::malformed("no host is named"));
                }
                let known = self.known(judged, authority);
                Asked::new(known, authority.clone(), *is_secure, uri.path(), uri.query())
            }
            Entry::Proxy => {
                let Some(named) = uri.authority().filter(|_| uri.scheme_str() == Some("http"))
                else {
                    return Err(Refused::malformed(
                        "this is a proxy: CONNECT host:port, or http://host/path",
                    ));
                };
                let authority = Authority::parse(named.as_str(), 80).map_err(bad_host)?;
                if Authority::parse(said.unwrap_or_default(), 80).map_err(bad_host)? != authority {
                    return Err(misdirected());
                }
                let known = Known::of(judged, &authority);
                Asked::new(known, authority, false, uri.path(), uri.query())
            }
            Entry::BaseUrl { port } => base_url(request, *port, said, judged, credentials),
        }
    }
}

/// `/proxy/<service>/<path>`.
fn base_url(
    request: &Request<Incoming>,
    port: u16,
    said: Option<&str>,
    judged: &(Rules, u64),
    credentials: &Credentials,
) -> Result<Asked, Refused> {
    let own =
        Authority { host: canonical::Host::Address(crate::gateway::OWN_ADDRESS.into()), port };
    let uri = request.uri();
    let named = uri.authority().map(|authority| authority.as_str());
    for text in [named, said].into_iter().flatten() {
        if Authority::parse(text, 80).ok().as_ref() != Some(&own) {
            return Err(misdirected());
        }
    }
    // A page in a browser of the guest is not the agent.
    let cross = request
        .headers()
        .get("sec-fetch-site")
        .is_some_and(|site| site != "none" && site != "same-origin");
    if request.headers().contains_key(header::ORIGIN) || cross {
        return Err(Refused::new(
            StatusCode::FORBIDDEN,
            "egress_denied",
            "pages of browsers do not get in here",
        ));
    }
    let missing = || {
        Refused::new(
            StatusCode::NOT_FOUND,
            "not_found",
            "there is /proxy/<service>/… here, of services that this sandbox has a credential for",
        )
    };
    let rest = uri.path().strip_prefix("/proxy/").ok_or_else(missing)?;
    let (service, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let bound =
        credentials.bound.iter().find(|one| one.service.name == service).ok_or_else(missing)?;
    let authority = bound.service.inject_hosts.first().ok_or_else(missing)?.clone();
    let path = if path.is_empty() { "/" } else { path };
    let known = Known::of(judged, &authority);
    let asked = Asked::new(known, authority, true, path, uri.query())?;
    Ok(Asked { prefix: Some(format!("/proxy/{service}")), ..asked })
}

/// A response that begins a tunnel of the proxy.
#[derive(Debug, Clone, Copy)]
struct Tunnelled;

impl From<Misuse> for Refused {
    fn from(misuse: Misuse) -> Self {
        let status = match misuse {
            Misuse::Duplicate(_) => StatusCode::BAD_REQUEST,
            _ => StatusCode::FORBIDDEN,
        };
        Self::new(status, "credential_denied", misuse.to_string())
    }
}

impl Refused {
    /// What a guest can read: the reason, the rule, and what would allow it.
    fn into_response(self, is_grpc: bool) -> Response<Reply> {
        let mut response = Response::new(Reply::Own(None));
        let headers = response.headers_mut();
        if is_grpc && self.status == StatusCode::FORBIDDEN {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from_static("7"));
            let message: String = self
                .refusal
                .reason
                .chars()
                .filter(|c| c.is_ascii() && !c.is_control() && *c != '%')
                .collect();
            if let Ok(message) = HeaderValue::from_str(&message) {
                headers.insert("grpc-message", message);
            }
            return response;
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("x-sandforge-error", HeaderValue::from_static(self.error));
        let text = serde_json::json!({
            "error": self.error,
            "reason": self.refusal.reason,
            "rule": self.refusal.rule.map(|rule| rule.to_string()),
            "hint": Some(self.refusal.hint).filter(|hint| !hint.is_empty()),
        });
        *response.status_mut() = self.status;
        *response.body_mut() = Reply::Own(Some(Bytes::from(format!("{text}\n"))));
        response
    }
}

/// One that no rule decided.
pub(crate) fn refusal(reason: &str) -> Refusal {
    Refusal { rule: None, reason: reason.to_owned(), hint: String::new() }
}

fn misdirected() -> Refused {
    Refused::new(
        StatusCode::MISDIRECTED_REQUEST,
        "authority_mismatch",
        "the request names another host than its connection",
    )
}

fn unanswered(error: &hyper::Error) -> Refused {
    tracing::debug!(%error, "a server did not answer");
    Refused::bad_gateway("the server broke off before it answered")
}

/// Addresses of private networks are not the guest's to know.
fn unreachable(error: &DialError) -> Refused {
    match error {
        DialError::Floor { host, reach, .. } => Refused::new(
            StatusCode::FORBIDDEN,
            "egress_denied",
            format!(
                "{host} is at an address that is {reach}, which no guest reaches unless a rule names it"
            ),
        ),
        DialError::Connect(host, _) => Refused::bad_gateway(&format!("{host} does not answer")),
        error => Refused::bad_gateway(&error.to_string()),
    }
}

/// Reads as much of the body as the rule needs.
async fn judge_body<'r>(
    rule: &BodyRule<'r>,
    incoming: &mut Incoming,
    first: &mut VecDeque<Bytes>,
) -> Result<Verdict<'r>, Refused> {
    let mut text: Vec<u8> = first.iter().flatten().copied().collect();
    loop {
        let frame = incoming
            .frame()
            .await
            .transpose()
            .map_err(|error| Refused::malformed(format!("the body: {error}")))?;
        let is_whole = frame.is_none();
        if let Some(data) = frame.and_then(|frame| frame.into_data().ok()) {
            text.extend_from_slice(&data);
            first.push_back(data);
        }
        if let Some(verdict) = rule.judge(&text, is_whole) {
            return Ok(verdict);
        }
        if is_whole || text.len() > rule.most() {
            return Err(Refused::denied(refusal(
                "the body is longer than what a rule can look into",
            )));
        }
    }
}

/// The method that is sent: one of those that mean the same everywhere.
fn method(method: &Method, is_websocket: bool) -> Result<Method, Refused> {
    match *method {
        Method::CONNECT if is_websocket => Ok(Method::GET),
        Method::GET
        | Method::HEAD
        | Method::POST
        | Method::PUT
        | Method::PATCH
        | Method::DELETE
        | Method::OPTIONS => Ok(method.clone()),
        _ => Err(Refused::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "egress_denied",
            "this method is never allowed",
        )),
    }
}

/// The one Host, where there is one.
fn host_header(headers: &HeaderMap) -> Result<Option<&str>, Refused> {
    let mut values = headers.get_all(header::HOST).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Refused::malformed("more than one Host"));
    }
    value.to_str().map(Some).map_err(|_| Refused::malformed("the Host is no text"))
}

/// Fields that `Connection` names.
fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .collect()
}

/// Takes out what is for this connection only, and what could make the request another one.
fn screen(headers: &mut HeaderMap, is_websocket: bool, is_grpc: bool) -> Result<(), Refused> {
    let nominated = nominated(headers);
    if let Some(name) = nominated.iter().find(|name| NOT_NOMINATED.contains(&name.as_str())) {
        return Err(Refused::malformed(format!("`Connection` names `{name}`")));
    }
    match headers.get(header::EXPECT).map(HeaderValue::as_bytes) {
        None => {}
        Some(value) if value.eq_ignore_ascii_case(b"100-continue") => {}
        Some(_) => {
            return Err(Refused::new(
                StatusCode::EXPECTATION_FAILED,
                "malformed_request",
                "no such expectation is met",
            ));
        }
    }
    for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CONTENT_LENGTH] {
        if headers.get_all(&name).iter().count() > 1 {
            return Err(Refused::malformed(format!("more than one `{name}`")));
        }
    }
    strip(headers, &nominated, |name| {
        // Some servers read `_` as `-`.
        MISLEADING.contains(&name) || name.contains('_')
    });
    headers.remove(header::HOST);
    if is_websocket {
        headers.remove(header::CONTENT_LENGTH);
    }
    if is_grpc {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    Ok(())
}

/// Takes out what is for one connection only, and what else is said. There is little of it in most
/// heads: they are looked through once.
fn strip(headers: &mut HeaderMap, nominated: &[HeaderName], also: impl Fn(&str) -> bool) {
    let goes = |name: &&HeaderName| {
        HOP_BY_HOP.contains(name) || nominated.contains(name) || also(name.as_str())
    };
    let gone: Vec<HeaderName> = headers.keys().filter(goes).cloned().collect();
    for name in gone {
        headers.remove(name);
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// The target without the host.
fn target(path: &Path, query: &str) -> Result<Uri, Refused> {
    let target = match query {
        "" => path.as_str().to_owned(),
        query => format!("{}?{query}", path.as_str()),
    };
    let target =
        PathAndQuery::try_from(target).map_err(|_| Refused::malformed("the target is too long"))?;
    Ok(Uri::from(target))
}

/// The target in the form that says everything.
fn whole_target(target: &Uri, route: &Route) -> Result<Uri, Refused> {
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = target.path_and_query().cloned();
    let scheme = if route.is_secure { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP };
    parts.scheme = Some(scheme);
    let authority = spelled(&route.authority, route.is_secure);
    parts.authority =
        Some(authority.parse().map_err(|_| Refused::malformed("the host does not fit"))?);
    Uri::from_parts(parts).map_err(|_| Refused::malformed("the target does not fit"))
}

fn spelled_host(authority: &Authority) -> Cow<'_, str> {
    match authority.host.name() {
        Some(name) => name.as_str().into(),
        None => authority.host.to_string().into(),
    }
}

/// A host, with its port where that is not the usual one.
fn spelled(authority: &Authority, is_secure: bool) -> Cow<'_, str> {
    match (authority.port, is_secure) {
        (443, true) | (80, false) => spelled_host(authority),
        (port, _) => format!("{}:{port}", authority.host).into(),
    }
}

/// The request in the form of the connection's protocol.
fn adapt(
    mut request: Request<Sent>,
    route: &Route,
    connection: &crate::pool::Connection,
) -> Result<Request<Sent>, Refused> {
    match connection {
        crate::pool::Connection::H1(_) => {
            if let Ok(host) = HeaderValue::from_str(&spelled(&route.authority, route.is_secure)) {
                request.headers_mut().insert(header::HOST, host);
            }
            // It may have been meant for HTTP/2 before.
            if request.uri().authority().is_some() {
                let path = request.uri().path_and_query().cloned();
                *request.uri_mut() = Uri::from(path.unwrap_or(PathAndQuery::from_static("/")));
            }
            *request.version_mut() = Version::HTTP_11;
            // hyper drops a body of unknown length where the method seldom has one.
            if http_body::Body::size_hint(request.body()).exact().is_none()
                && !request.headers().contains_key(header::CONTENT_LENGTH)
            {
                let chunked = HeaderValue::from_static("chunked");
                request.headers_mut().insert(header::TRANSFER_ENCODING, chunked);
            }
        }
        crate::pool::Connection::H2(_) => {
            *request.uri_mut() = whole_target(request.uri(), route)?;
            *request.version_mut() = Version::HTTP_2;
        }
    }
    Ok(request)
}

/// Replaces credentials in the values of a response's fields; how often.
pub(crate) fn redact_headers(headers: &mut HeaderMap, redactor: &Redactor) -> u64 {
    let mut count = 0;
    for value in headers.values_mut().filter(|value| redactor.is_in(value.as_bytes())) {
        let mut bytes = value.as_bytes().to_vec();
        let found = redactor.replace(&mut bytes);
        if found > 0 {
            count += found as u64;
            *value = HeaderValue::from_bytes(&bytes).unwrap_or(HeaderValue::from_static("*"));
        }
    }
    count
}

/// A redirection within the service stays within the gateway.
fn relocate(headers: &mut HeaderMap, asked: &Asked, prefix: &str) {
    let Some(location) = headers.get(header::LOCATION).and_then(|value| value.to_str().ok()) else {
        return;
    };
    let own = format!("https://{}", spelled(&asked.authority, true));
    let moved = match location.strip_prefix(&own) {
        Some(rest) if rest.is_empty() || rest.starts_with(['/', '?']) => format!("{prefix}{rest}"),
        _ if location.starts_with('/') && !location.starts_with("//") => {
            format!("{prefix}{location}")
        }
        _ => return,
    };
    if let Ok(value) = HeaderValue::from_str(&moved) {
        headers.insert(header::LOCATION, value);
    }
}

fn bounded(text: &str) -> String {
    text.chars().take(32).collect()
}

/// Writes the event down when the request is over, however it ends.
pub(crate) struct Finish {
    journal: Arc<dyn Journal>,
    pub(crate) event: Event,
    begun: Instant,
    pub(crate) sent: Arc<AtomicU64>,
    redactor: Option<Arc<Redactor>>,
    is_armed: bool,
}

impl Finish {
    pub(crate) fn new(journal: Arc<dyn Journal>, begun: Instant, generation: u64) -> Self {
        let event = Event::new(generation);
        Self { journal, event, begun, sent: Arc::default(), redactor: None, is_armed: true }
    }

    /// For whoever finishes it; this one writes nothing then.
    fn take(&mut self) -> Self {
        let blank = Self::new(self.journal.clone(), self.begun, self.event.generation);
        let mut taken = std::mem::replace(self, blank);
        taken.is_armed = std::mem::take(&mut self.is_armed);
        taken
    }

    /// Nothing is written down: something else will be.
    pub(crate) fn forget(&mut self) {
        self.is_armed = false;
    }

    pub(crate) fn deny(&mut self, refusal: &Refusal) {
        self.event.decision = Decision::Denied;
        self.event.rule = refusal.rule.clone();
        self.event.reason = Some(refusal.reason.clone());
        self.event.hint = Some(refusal.hint.clone()).filter(|hint| !hint.is_empty());
    }

    pub(crate) fn failed(&mut self, error: &DialError) {
        self.event.decision = match error {
            DialError::Floor { .. } => Decision::Denied,
            _ => Decision::Failed,
        };
        self.event.reason = Some(error.to_string());
    }

    fn refused(&mut self, refused: &Refused) {
        let by_credential = self.event.rule.take();
        self.deny(&refused.refusal);
        if refused.error == "upstream_failed" {
            self.event.decision = Decision::Failed;
        }
        self.event.rule = self.event.rule.take().or(by_credential);
        self.event.status = Some(refused.status.as_u16());
        self.event.credential = None;
    }

    pub(crate) fn redactor(&self) -> Option<Arc<Redactor>> {
        self.redactor.clone()
    }

    pub(crate) fn received(&mut self, bytes: usize) {
        self.event.received += bytes as u64;
    }

    pub(crate) fn redacted(&mut self, count: usize) {
        self.event.redacted += count as u64;
    }

    pub(crate) fn broke(&mut self, why: &str) {
        self.event.decision = Decision::Failed;
        self.event.reason = Some(why.to_owned());
    }

    /// A server's trailers as the guest gets them.
    pub(crate) fn trailers(&mut self, trailers: &HeaderMap) -> HeaderMap {
        let mut kept = HeaderMap::new();
        for (name, value) in trailers {
            if may_trail(name) {
                kept.append(name.clone(), value.clone());
            }
        }
        if let Some(redactor) = &self.redactor {
            self.event.redacted += redact_headers(&mut kept, redactor);
        }
        kept
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        if self.is_armed {
            let blank = Event::new(self.event.generation);
            let mut event = std::mem::replace(&mut self.event, blank);
            event.sent = event.sent.max(self.sent.load(Ordering::Relaxed));
            event.duration = self.begun.elapsed();
            self.journal.record(event);
        }
    }
}
