//! What is allowed goes through, whole, unchanged and at once.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use egress::{Decision, GATEWAY_PORT, Kind, OWN_ADDRESS, PROXY_PORT};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::channel::Channel;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rules::{Layer, Mode, Rules};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::{Origin, PLACEHOLDER, Roots, SECRET, World, answer, ok};

pub(crate) type Sender<B> = hyper::client::conn::http2::SendRequest<B>;

fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: api.example\r\n{fields}\r\n")
}

fn bearer() -> String {
    format!("Authorization: Bearer {PLACEHOLDER}\r\n")
}

/// A world whose `api.example` is hyper's own server of HTTP/2, or of both.
pub(crate) async fn h2_world(protocols: &[&str]) -> World {
    let roots = Roots::new();
    let names = ["api.example", "other.example", "plain.example"];
    let tls = roots.config(&names, protocols);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = Origin::listening(listener.local_addr().unwrap());
    let seen = api.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, seen) = (tls.clone(), seen.clone());
            tokio::spawn(async move {
                let Ok(stream) = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await else {
                    return;
                };
                seen.opened();
                let service =
                    hyper::service::service_fn(move |request| served(request, seen.clone()));
                let mut builder =
                    hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                builder.http2().enable_connect_protocol();
                let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
            });
        }
    });
    let tls = roots.config(&names, &["http/1.1"]);
    let answer: crate::support::Answer = Arc::new(|_, _| ok("hello"));
    let other = Origin::start(Some(tls.clone()), answer.clone()).await;
    let plain = Origin::start(Some(tls), answer.clone()).await;
    let clear = Origin::start(None, answer).await;
    World::at(&roots, Vec::new(), &[], api, other, plain, &clear)
}

type Answered = Response<http_body_util::combinators::BoxBody<Bytes, Infallible>>;

/// Echoes the body, with the version, the credential and trailers.
async fn served(request: Request<Incoming>, origin: Origin) -> Result<Answered, Infallible> {
    let (parts, body) = request.into_parts();
    origin.heard(&format!(
        "{:?} {} {} {:?}\n",
        parts.version, parts.method, parts.uri, parts.headers
    ));
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let (mut sender, channel) = Channel::<Bytes, Infallible>::new(4);
    tokio::spawn(async move {
        let _ = sender.send_data(body).await;
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        trailers.insert("x-echo", SECRET.parse().unwrap());
        let _ = sender.send_trailers(trailers).await;
    });
    let mut response = Response::new(channel.map_err(|error| match error {}).boxed());
    response.headers_mut().insert("x-version", format!("{:?}", parts.version).parse().unwrap());
    Ok(response)
}

pub(crate) async fn h2_guest<B>(world: &World) -> Sender<B>
where
    B: http_body::Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = world.tls("api.example", "api.example", &["h2", "http/1.1"]).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_takes_the_place_of_its_placeholder_and_is_taken_out_of_the_answer() {
    let world = World::answering(|head, _| {
        let token = head
            .split("bearer ")
            .nth(1)
            .unwrap_or_default()
            .split("\r\n")
            .next()
            .unwrap_or_default();
        ok(&format!("you sent {token}"))
    })
    .await;
    let answer = world.raw("api.example", get("/v1/models?limit=2", &bearer())).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.ends_with(&format!("you sent {PLACEHOLDER}")), "{answer}");
    let seen = world.api.seen();
    assert!(seen.contains(&format!("authorization: Bearer {SECRET}")), "{seen}");
    assert!(seen.starts_with("GET /v1/models?limit=2 HTTP/1.1\r\n"), "{seen}");
    assert!(!seen.contains(PLACEHOLDER), "{seen}");
    let event = world.event(|event| event.kind == Kind::Request).await;
    assert_eq!(event.decision, Decision::Allowed);
    assert_eq!(event.credential.as_deref(), Some("api"));
    assert_eq!(event.path.as_deref(), Some("/v1/models"));
    assert_eq!(event.redacted, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_slot_of_a_service_takes_the_credential() {
    let b64 =
        |text: String| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
    for (path, fields, sent) in [
        ("/v1", format!("X-Api-Key: {PLACEHOLDER}\r\n"), format!("x-api-key: {SECRET}\r\n")),
        (
            "/v1",
            format!("authorization: bearer {PLACEHOLDER}\r\n"),
            format!("authorization: bearer {SECRET}\r\n"),
        ),
        (
            "/v1",
            format!("Authorization: Basic {}\r\n", b64(format!("x-access-token:{PLACEHOLDER}"))),
            format!("authorization: Basic {}\r\n", b64(format!("x-access-token:{SECRET}"))),
        ),
        (
            &*format!("/v1?a=1&key={PLACEHOLDER}&b=2"),
            String::new(),
            format!("x-api-key: {SECRET}\r\n"),
        ),
    ] {
        let world = World::new().await;
        let answer = world.raw("api.example", get(path, &fields)).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let seen = world.api.seen();
        assert!(seen.contains(&sent), "{seen}");
        assert!(!seen.contains("key=") && !seen.contains(PLACEHOLDER), "{seen}");
        assert!(!path.contains('?') || seen.starts_with("GET /v1?a=1&b=2 "), "{seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_used_again() {
    let world = World::new().await;
    for _ in 0..3 {
        let requests = [get("/v1/a", &bearer()), get("/v1/b", &bearer())].concat();
        let answer = world.raw("api.example", requests).await;
        assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    }
    assert_eq!(world.api.connections(), 1, "{}", world.api.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_closed_meanwhile_is_dialled_again() {
    let world = World::answering(|_, _| {
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi".to_vec()
    })
    .await;
    for _ in 0..3 {
        assert!(world.raw("api.example", get("/v1", &bearer())).await.ends_with("hi"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_any_size_pass_both_ways() {
    let world = World::answering(|_, body| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    })
    .await;
    let body: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).take(10_000_000).collect();
    let mut stream = world.tls("api.example", "api.example", &["http/1.1"]).await.unwrap();
    let head = format!(
        "POST /v1 HTTP/1.1\r\nHost: api.example\r\n{}Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        bearer(),
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut go = [0; 25];
    stream.read_exact(&mut go).await.unwrap();
    assert_eq!(&go, b"HTTP/1.1 100 Continue\r\n\r\n");
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sent = body.clone();
    tokio::spawn(async move {
        writer.write_all(&sent).await.unwrap();
        writer.flush().await.unwrap();
    });
    let mut got = Vec::new();
    while got.len() < body.len() {
        let mut piece = [0; 65536];
        let count = reader.read(&mut piece).await.unwrap();
        assert!(count > 0);
        got.extend_from_slice(&piece[..count]);
        if got.starts_with(b"HTTP/1.1 200")
            && let Some(at) = got.windows(4).position(|part| part == b"\r\n\r\n")
        {
            got.drain(..at + 4);
        }
    }
    assert!(got == body);
    let event = world.event(|event| event.kind == Kind::Request).await;
    assert_eq!((event.sent, event.received), (10_000_000, 10_000_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_server_are_passed_at_once() {
    let roots = Roots::new();
    let tls = roots.config(&["api.example"], &["http/1.1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = Origin::listening(listener.local_addr().unwrap());
    let (next, mut nexts) = tokio::sync::mpsc::channel::<()>(1);
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await.unwrap();
        let mut piece = [0; 4096];
        let _ = stream.read(&mut piece).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
        while nexts.recv().await.is_some() {
            stream.write_all(b"d\r\ndata: one\n\n  \r\n").await.unwrap();
        }
    });
    let clear = Origin::start(None, Arc::new(|_, _| ok("x"))).await;
    let world = World::at(&roots, Vec::new(), &[], api, clear.clone(), clear.clone(), &clear);
    let mut stream = world.tls("api.example", "api.example", &["http/1.1"]).await.unwrap();
    stream.write_all(get("/v1", &bearer()).as_bytes()).await.unwrap();
    let mut piece = [0; 4096];
    let count = stream.read(&mut piece).await.unwrap();
    assert!(String::from_utf8_lossy(&piece[..count]).contains("text/event-stream"));
    let begun = Instant::now();
    for _ in 0..10 {
        next.send(()).await.unwrap();
        let mut event = Vec::new();
        while !event.ends_with(b"data: one\n\n  \r\n") {
            event.push(stream.read_u8().await.unwrap());
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_stays_http_2_with_its_trailers() {
    let world = h2_world(&["h2"]).await;
    let mut sender = h2_guest(&world).await;
    let request = Request::post("https://api.example/pkg.Service/Method")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {PLACEHOLDER}"))
        .body(Full::new(Bytes::from_static(b"\0\0\0\0\x05hello")))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["x-version"], "HTTP/2.0");
    let body = response.into_body().collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    assert_eq!(trailers["x-echo"], &PLACEHOLDER.as_bytes()[..PLACEHOLDER.len().min(SECRET.len())]);
    assert_eq!(body.to_bytes(), Bytes::from_static(b"\0\0\0\0\x05hello"));
    assert!(
        world.api.seen().contains("HTTP/2.0 POST https://api.example/pkg.Service/Method"),
        "{}",
        world.api.seen()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_of_a_guest_becomes_http_1_where_the_server_has_no_other() {
    let world = h2_world(&["http/1.1"]).await;
    let mut sender = h2_guest(&world).await;
    let request = || {
        Request::get("https://api.example/v1")
            .header("x-api-key", PLACEHOLDER)
            .body(Empty::<Bytes>::new())
            .unwrap()
    };
    let response = sender.send_request(request()).await.unwrap();
    assert_eq!(response.headers()["x-version"], "HTTP/1.1");
    // From then on guests are not offered what the server has not.
    let stream = world.tls("api.example", "api.example", &["h2", "http/1.1"]).await.unwrap();
    drop(stream);
    let address = world.lookup("api.example").await.unwrap();
    let stream = world
        .secure(world.open(address.into(), 443), "api.example", &["h2", "http/1.1"])
        .await
        .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_of_http_2_share_a_connection() {
    let world = h2_world(&["h2"]).await;
    let sender = h2_guest(&world).await;
    let mut all = tokio::task::JoinSet::new();
    for number in 0..100 {
        let mut sender = sender.clone();
        all.spawn(async move {
            let request = Request::get(format!("https://api.example/v1/{number}"))
                .header("x-api-key", PLACEHOLDER)
                .body(Empty::<Bytes>::new())
                .unwrap();
            sender.ready().await.unwrap();
            sender.send_request(request).await.unwrap().status()
        });
    }
    while let Some(status) = all.join_next().await {
        assert_eq!(status.unwrap(), StatusCode::OK);
    }
    assert!(world.api.connections() <= 8, "{}", world.api.connections());
}

#[tokio::test(flavor = "multi_thread")]
async fn in_http_2_too_every_part_names_the_host() {
    let world = h2_world(&["h2"]).await;
    for (uri, host) in [
        ("https://other.example/v1", None),
        ("http://api.example/v1", None),
        ("https://api.example/v1", Some("other.example")),
        ("https://api.example:8443/v1", None),
        ("https://user@api.example/v1", None),
        ("https://api.example//evil/x", None),
    ] {
        let mut sender = h2_guest(&world).await;
        let mut request = Request::get(uri).header("x-api-key", PLACEHOLDER);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let status = sender.send_request(request).await.map(|response| response.status().as_u16());
        assert!(!matches!(status, Ok(200)), "{uri}: {status:?}");
    }
    assert_eq!(world.api.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_grpc_is_one_of_grpc() {
    let world = h2_world(&["h2"]).await;
    world.gateway.set_rules(
        Rules::new(
            Mode::Allow,
            vec![Layer::from_lines("test", &["READ api.example/**"], &[] as &[&str]).unwrap()],
            Vec::new(),
        )
        .unwrap(),
    );
    let mut sender = h2_guest(&world).await;
    let request = Request::post("https://api.example/pkg.Service/Method")
        .header("content-type", "application/grpc")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(
        (response.status(), &response.headers()["grpc-status"]),
        (StatusCode::OK, &"7".parse().unwrap())
    );
    assert_eq!(world.api.connections(), 0);
}

const ASK: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate\r\n";

fn switching(more: &[u8]) -> Vec<u8> {
    let head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    [&head[..], more].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_passes_and_its_frames_are_without_the_credential() {
    let world = World::answering(|head, _| {
        assert!(!head.contains("extensions"), "{head}");
        let mut frame = vec![0x81, u8::try_from(SECRET.len() + 2).unwrap()];
        frame.extend_from_slice(format!("<{SECRET}>").as_bytes());
        switching(&frame)
    })
    .await;
    let mut stream = world.tls("api.example", "api.example", &["http/1.1"]).await.unwrap();
    stream.write_all(get("/v1/realtime", &format!("{}{ASK}", bearer())).as_bytes()).await.unwrap();
    let text = answer(&mut stream).await;
    assert!(
        text.starts_with("HTTP/1.1 101") && text.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        "{text}"
    );
    assert!(!text.contains(SECRET) && text.contains(&PLACEHOLDER[..20]), "{text}");
    stream.write_all(&[0x82, 0x81, 1, 2, 3, 4, 5]).await.unwrap();
    drop(stream);
    let event = world.event(|event| event.path.as_deref() == Some("/v1/realtime")).await;
    assert_eq!((event.status, event.sent, event.redacted), (Some(101), 7, 1), "{event:?}");
    assert!(world.api.seen().contains(SECRET));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_over_http_2_is_one_of_http_1_behind_us() {
    let world = World::answering(|_, _| switching(&[0x81, 2, b'h', b'i'])).await;
    let mut sender = h2_guest(&world).await;
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri("https://api.example/v1/realtime")
        .version(Version::HTTP_2)
        .extension(hyper::ext::Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .header("authorization", format!("Bearer {PLACEHOLDER}"))
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let mut frame = [0; 4];
    stream.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame, [0x81, 2, b'h', b'i']);
    assert!(
        world.api.seen().to_lowercase().contains("upgrade: websocket\r\n"),
        "{}",
        world.api.seen()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_as_a_websocket_and_answered_otherwise_stays_http() {
    let world = World::new().await;
    let second = get("/v1/second", &bearer());
    let answer = world
        .raw(
            "api.example",
            format!("{}{second}", get("/v1/realtime", &format!("{}{ASK}", bearer()))),
        )
        .await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    // A rule for reading is none for a WebSocket.
    let layer = Layer::from_lines("test", &["READ plain.example/**"], &[] as &[&str]).unwrap();
    world.gateway.set_rules(Rules::new(Mode::Allow, vec![layer], Vec::new()).unwrap());
    let request = format!("GET / HTTP/1.1\r\nHost: plain.example\r\n{ASK}\r\n");
    assert!(world.raw("plain.example", request).await.starts_with("HTTP/1.1 403"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_has_to_look_into_is_passed_untouched() {
    let world = World::new().await;
    let address = world.lookup("tunnel.example").await.unwrap();
    // The certificate is the server's own, which the sandbox's authority did not sign.
    let error =
        world.secure(world.open(address.into(), 443), "tunnel.example", &[]).await.err().unwrap();
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    let event = world.event(|event| event.host == "tunnel.example").await;
    assert_eq!((event.kind, event.decision), (Kind::Connection, Decision::Allowed), "{event:?}");
    assert_eq!(world.plain.connections(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_rules_ends_what_it_refuses() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = Origin::listening(listener.local_addr().unwrap());
    let world = World::at(
        &Roots::new(),
        vec!["tcp clear.example:5432"],
        &[],
        origin.clone(),
        origin.clone(),
        origin.clone(),
        &origin,
    );
    let address = world.lookup("clear.example").await.unwrap();
    let mut guest = world.open(address.into(), 5432);
    let (mut server, _) = listener.accept().await.unwrap();
    server.write_all(b"ready").await.unwrap();
    let mut text = [0; 5];
    guest.read_exact(&mut text).await.unwrap();
    let keeping =
        Layer::from_lines("test", &["tcp clear.example:5432", "plain.example"], &[] as &[&str])
            .unwrap();
    world.gateway.set_rules(Rules::new(Mode::Allow, vec![keeping], Vec::new()).unwrap());
    guest.write_all(b"still").await.unwrap();
    server.read_exact(&mut text).await.unwrap();
    world.gateway.set_rules(Rules::offline());
    assert_eq!(answer(&mut guest).await, "");
    let event = world.event(|event| event.port == 5432).await;
    assert_eq!(event.decision, Decision::Denied);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_s_own_address_serves_base_urls_and_is_a_proxy() {
    let world = World::answering(|head, _| {
        let location = if head.starts_with("get /v1/moved") {
            "Location: https://api.example/v2?x\r\n"
        } else {
            ""
        };
        format!("HTTP/1.1 200 OK\r\n{location}Content-Length: 2\r\n\r\nhi").into_bytes()
    })
    .await;
    let mut own = world.open(IpAddr::V4(OWN_ADDRESS), GATEWAY_PORT);
    own.write_all(
        format!(
            "GET /proxy/api/v1/moved HTTP/1.1\r\nHost: 169.254.169.254:{GATEWAY_PORT}\r\n{}\r\n",
            bearer()
        )
        .as_bytes(),
    )
    .await
    .unwrap();
    let text = answer(&mut own).await;
    assert!(text.contains("location: /proxy/api/v2?x\r\n"), "{text}");
    assert!(
        world.api.seen().starts_with("GET /v1/moved HTTP/1.1\r\n")
            && world.api.seen().contains(SECRET)
    );

    let mut proxy = world.open(IpAddr::V4(OWN_ADDRESS), PROXY_PORT);
    proxy
        .write_all(b"CONNECT api.example:443 HTTP/1.1\r\nHost: api.example:443\r\n\r\n")
        .await
        .unwrap();
    assert!(answer(&mut proxy).await.starts_with("HTTP/1.1 200"));
    let mut stream = world.secure(proxy, "api.example", &["http/1.1"]).await.unwrap();
    stream.write_all(get("/v1/tunnelled", &bearer()).as_bytes()).await.unwrap();
    assert!(answer(&mut stream).await.starts_with("HTTP/1.1 200"));

    let mut proxy = world.open(IpAddr::V4(OWN_ADDRESS), PROXY_PORT);
    proxy
        .write_all(b"GET http://clear.example/x HTTP/1.1\r\nHost: clear.example\r\n\r\n")
        .await
        .unwrap();
    assert!(answer(&mut proxy).await.starts_with("HTTP/1.1 200"));
}
