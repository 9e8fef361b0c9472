//! Servers that are not who they should be, and servers that answer to do harm: to the guest's next
//! request, to the gateway's memory, or to a credential.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use egress::{Decision, Kind};
use rcgen::CertificateParams;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::{Origin, PLACEHOLDER, Roots, SECRET, Setup, World, answer, ok};

fn get(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: api.example\r\nAuthorization: Bearer {PLACEHOLDER}\r\n\r\n"
    )
}

/// A world whose `api.example` has this certificate, signed by an authority that is trusted.
async fn certified(
    roots: &Roots,
    signer: &Roots,
    params: &CertificateParams,
    wants_client: bool,
) -> World {
    let tls = signer.certified(params, &["http/1.1"], wants_client);
    let answer: crate::support::Answer = Arc::new(|_, _| ok("hello"));
    let api = Origin::start(Some(tls), answer.clone()).await;
    let clear = Origin::start(None, answer).await;
    World::at(roots, Vec::new(), &[], api, clear.clone(), clear.clone(), &clear)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_prove_to_be_the_server_gets_nothing() {
    // S15
    let (roots, others) = (Roots::new(), Roots::new());
    let named = |name: &str| CertificateParams::new(vec![name.to_owned()]).unwrap();
    let at = |year| rcgen::date_time_ymd(year, 1, 1);
    let mut over = named("api.example");
    (over.not_before, over.not_after) = (at(2020), at(2021));
    let mut early = named("api.example");
    (early.not_before, early.not_after) = (at(2090), at(2091));
    let mut client_only = named("api.example");
    client_only.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    for (what, signer, params) in [
        ("it is over", &roots, over),
        ("it has not begun", &roots, early),
        ("another name", &roots, named("other.example")),
        ("a name below", &roots, named("www.api.example")),
        ("a pattern of names", &roots, named("*.api.example")),
        ("no server's", &roots, client_only),
        ("an authority that nobody trusts", &others, named("api.example")),
    ] {
        let world = certified(&roots, signer, &params, false).await;
        let answer = world.raw("api.example", get("/v1")).await;
        assert!(answer.starts_with("HTTP/1.1 502"), "{what}: {answer}");
        // S12: our own pages have nothing of what was to be sent.
        assert!(!answer.contains(SECRET) && !answer.to_lowercase().contains("server:"), "{answer}");
        assert_eq!(world.api.seen(), "", "{what}");
        let event = world.event(|event| event.kind == Kind::Request).await;
        assert_eq!((event.decision, event.credential), (Decision::Failed, None), "{what}");
    }
    // And where the server wants to know who we are, it learns nothing.
    let world = certified(&roots, &roots, &named("api.example"), true).await;
    let answer = world.raw("api.example", get("/v1")).await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert_eq!(world.api.seen(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_for_one_host_opens_no_other() {
    // S15: the guest keeps one store of tickets for all hosts, under one name.
    use rustls::pki_types::pem::PemObject as _;
    let world = World::new().await;
    let mut roots = rustls::RootCertStore::empty();
    let pem = world.gateway.authority_pem().as_bytes();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(pem).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::store(Arc::new(OneForAll::default()));
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut kinds = Vec::new();
    for name in ["api.example", "api.example", "other.example"] {
        let address = world.lookup(name).await.unwrap();
        let stream = world.open(address.into(), 443);
        let mut stream = connector
            .connect(name.try_into().unwrap(), stream)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let request = format!("GET /of/{name} HTTP/1.1\r\nHost: {name}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        assert!(answer(&mut stream).await.starts_with("HTTP/1.1 200"));
        kinds.push(stream.get_ref().1.handshake_kind().unwrap());
    }
    use rustls::HandshakeKind::{Full, Resumed};
    assert_eq!(kinds, [Full, Resumed, Full]);
    assert!(!world.api.seen().contains("/of/other") && !world.other.seen().contains("/of/api"));
}

/// Gives the last ticket for whatever host.
#[derive(Debug, Default)]
struct OneForAll(std::sync::Mutex<Vec<rustls::client::Tls13ClientSessionValue>>);

impl rustls::client::ClientSessionStore for OneForAll {
    fn set_kx_hint(&self, _: rustls::pki_types::ServerName<'static>, _: rustls::NamedGroup) {}

    fn kx_hint(&self, _: &rustls::pki_types::ServerName<'_>) -> Option<rustls::NamedGroup> {
        None
    }

    fn set_tls12_session(
        &self,
        _: rustls::pki_types::ServerName<'static>,
        _: rustls::client::Tls12ClientSessionValue,
    ) {
    }

    fn tls12_session(
        &self,
        _: &rustls::pki_types::ServerName<'_>,
    ) -> Option<rustls::client::Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &rustls::pki_types::ServerName<'static>) {}

    fn insert_tls13_ticket(
        &self,
        _: rustls::pki_types::ServerName<'static>,
        value: rustls::client::Tls13ClientSessionValue,
    ) {
        self.0.lock().unwrap().push(value);
    }

    fn take_tls13_ticket(
        &self,
        _: &rustls::pki_types::ServerName<'static>,
    ) -> Option<rustls::client::Tls13ClientSessionValue> {
        self.0.lock().unwrap().pop()
    }
}

/// What the guest gets for this answer, and for an honest one to its next request.
async fn answered(bytes: Vec<u8>) -> (String, String) {
    let world = World::answering(move |head, _| match head.starts_with("get /next") {
        true => ok("the next"),
        false => bytes.clone(),
    })
    .await;
    let first = world.raw("api.example", get("/v1")).await;
    let next = world.raw("api.example", get("/next")).await;
    (first, next)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_reaches_the_guest_in_one_reading_or_not_at_all() {
    // F19
    let head = "HTTP/1.1 200 OK\r\n";
    for (what, bytes, wanted) in [
        ("lengths that differ", format!("{head}Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi!"), "502"),
        ("a length that is none", format!("{head}Content-Length: +2\r\n\r\nhi"), "502"),
        ("a field that is none", format!("{head}X Y: z\r\nContent-Length: 2\r\n\r\nhi"), "502"),
        ("a NUL", format!("{head}X: a\0b\r\nContent-Length: 2\r\n\r\nhi"), "502"),
        ("no HTTP", "SSH-2.0-OpenSSH_9.9\r\n\r\n".into(), "502"),
        ("a version that is none", "HTTP/3.7 200 OK\r\nContent-Length: 2\r\n\r\nhi".into(), "502"),
        ("a switch nobody asked for", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi".into(), "502"),
        ("a second answer", format!("{head}Content-Length: 2\r\n\r\nhi{head}Content-Length: 4\r\n\r\nevil"), "200"),
        ("bytes after the end", format!("{head}Content-Length: 2\r\n\r\nhi and more of it"), "200"),
        ("a body where none can be", "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nevil".into(), "204"),
        ("the length of what is not sent", "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n".into(), "304"),
    ] {
        let (first, next) = answered(bytes.into_bytes()).await;
        assert!(first.starts_with(&format!("HTTP/1.1 {wanted}")), "{what}: {first}");
        assert!(!first.contains("evil") && !first.contains("and more"), "{what}: {first}");
        assert!(next.ends_with("the next"), "{what}: {next}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_has_one_length_for_the_guest() {
    // F19
    let chunks = "2\r\nhi\r\n0\r\n\r\n";
    let both = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"
    );
    let (first, _) = answered(both.into_bytes()).await;
    let lower = first.to_lowercase();
    let is_one = match lower.contains("content-length") {
        true => !lower.contains("transfer-encoding") && first.ends_with("\r\n\r\nhi"),
        false => first.ends_with(chunks) || first.starts_with("HTTP/1.1 502"),
    };
    assert!(is_one, "{first}");
    // Less than was said: the guest sees that it is not all.
    let short = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 9\r\n\r\nhi";
    let world = World::answering(move |_, _| short.into()).await;
    let mut stream = world.tls("api.example", "api.example", &["http/1.1"]).await.unwrap();
    stream.write_all(get("/v1").as_bytes()).await.unwrap();
    let mut all = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut all)).await;
    assert!(ended.is_ok(), "the connection goes on as if it were complete");
    let event = world.event(|event| event.kind == Kind::Request).await;
    assert_eq!(event.decision, Decision::Failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_before_an_answer_does_not_reach_the_guest() {
    // F19, S05
    let early = format!("HTTP/1.1 103 Early Hints\r\nLink: <{SECRET}>\r\n\r\n").repeat(100);
    let (first, next) = answered([early.as_bytes(), &ok("hello")].concat()).await;
    assert!(first.starts_with("HTTP/1.1 200") && first.ends_with("hello"), "{first}");
    assert!(!first.contains("103") && !first.contains(SECRET), "{first}");
    assert!(next.ends_with("the next"), "{next}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_before_the_body_s_end_is_passed_on_and_the_rest_goes_nowhere_else() {
    // F19: the server answers when it has the head, and the guest goes on sending.
    let roots = Roots::new();
    let tls = roots.config(&["api.example"], &["http/1.1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = Origin::listening(listener.local_addr().unwrap());
    let seen = api.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, seen) = (tls.clone(), seen.clone());
            tokio::spawn(async move {
                let mut stream = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await.unwrap();
                let place = seen.opened();
                let mut piece = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut piece).await {
                    let text = String::from_utf8_lossy(&piece[..count]).into_owned();
                    seen.heard_at(place, &text);
                    if text.contains(" HTTP/1.1\r\n") {
                        stream.write_all(&ok("early")).await.unwrap();
                    }
                }
            });
        }
    });
    let clear = Origin::start(None, Arc::new(|_, _| ok("x"))).await;
    let world = World::at(&roots, Vec::new(), &[], api, clear.clone(), clear.clone(), &clear);
    let mut stream = world.tls("api.example", "api.example", &["http/1.1"]).await.unwrap();
    let head = "POST /v1 HTTP/1.1\r\nHost: api.example\r\nContent-Length: 60\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let first = answer(&mut stream).await;
    assert!(first.contains("early"), "{first}");
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: api.example\r\nX-Fill: 12345\r\n\r\n";
    assert_eq!(smuggled.len(), 60);
    stream.write_all(smuggled.as_bytes()).await.ok();
    stream.flush().await.ok();
    answer(&mut stream).await;
    let next = world.raw("api.example", get("/next")).await;
    assert!(next.ends_with("early"), "{next}");
    // No connection took it for a request: it is the rest of the body it was, or was not sent.
    for (at, connection) in world.api.each().iter().enumerate() {
        let is_body = connection.starts_with("POST /v1 ") || !connection.contains("smuggled");
        let is_followed = connection.contains("smuggled") && connection.contains("/next");
        assert!(is_body && !is_followed || connection.ends_with("\r\n\r\n"), "{at}: {connection}");
        if let Some((body, _)) = connection.split_once("GET /next") {
            assert!(!body.contains("POST") || body.contains("X-Fill"), "{at}: {connection}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_has_bounds() {
    // S25
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n";
    let many = (0..1000).fold(head.to_owned(), |all, at| all + &format!("X-{at}: 1\r\n"));
    let trailers = (0..10_000)
        .fold(String::new(), |all, at| all + &format!("X-{at}: {}\r\n", "y".repeat(100)));
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (what, bytes) in [
        ("many fields", format!("{many}\r\nhi")),
        ("a long field", format!("{head}X: {}\r\n\r\nhi", "y".repeat(4 << 20))),
        ("a head without end", format!("{head}X: {}", "y".repeat(4 << 20))),
        ("trailers without end", format!("{chunked}0\r\n{trailers}\r\n")),
        (
            "an extension without end",
            format!("{chunked}2;{}\r\nhi\r\n0\r\n\r\n", "y".repeat(4 << 20)),
        ),
        ("a chunk beyond numbers", format!("{chunked}fffffffffffffffff\r\nhi")),
    ] {
        let (first, next) = answered(bytes.into_bytes()).await;
        let is_broken = first.starts_with("HTTP/1.1 502") || !first.ends_with("0\r\n\r\n");
        assert!(is_broken && first.len() < 1 << 20, "{what}: {}", first.len());
        assert!(next.ends_with("the next"), "{what}: {next}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_breaks_http_2_is_no_server() {
    // S25
    for after in [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &[0; 64], &[0xff; 9], b""] {
        let roots = Roots::new();
        let tls = roots.config(&["api.example"], &["h2"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = Origin::listening(listener.local_addr().unwrap());
        let seen = api.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(mut stream) =
                    tokio_rustls::TlsAcceptor::from(tls.clone()).accept(stream).await
                {
                    seen.opened();
                    stream.write_all(after).await.ok();
                    stream.shutdown().await.ok();
                }
            }
        });
        let clear = Origin::start(None, Arc::new(|_, _| ok("x"))).await;
        let world = World::at(&roots, Vec::new(), &[], api, clear.clone(), clear.clone(), &clear);
        let answer = world.raw("api.example", get("/v1")).await;
        assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_grows_when_it_is_decoded_is_passed_piece_by_piece() {
    // S25: a gigabyte of zeros in a megabyte; the guest reads some of it, and goes.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for _ in 0..256 {
        encoder.write_all(&vec![0; 1 << 20]).unwrap();
    }
    let bomb = encoder.finish().unwrap();
    let world = World::answering(move |_, _| {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
            bomb.len()
        );
        [head.as_bytes(), &bomb].concat()
    })
    .await;
    let mut stream = world.tls("api.example", "api.example", &["http/1.1"]).await.unwrap();
    stream.write_all(get("/v1").as_bytes()).await.unwrap();
    let mut piece = vec![0; 64 << 10];
    let mut read = 0;
    while read < 32 << 20 {
        read += stream.read(&mut piece).await.unwrap() as u64;
    }
    // As much as there is room for on the way is decoded, and no more.
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(stream);
    let event = world.event(|event| event.kind == Kind::Request).await;
    assert!(event.received < read + (3 << 20), "{read} were read: {event:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_end_ends_with_the_guest() {
    // S25
    let roots = Roots::new();
    let tls = roots.config(&["api.example"], &["http/1.1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = Origin::listening(listener.local_addr().unwrap());
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = sent.clone();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await.unwrap();
        let mut piece = [0; 4096];
        let _ = stream.read(&mut piece).await.unwrap();
        let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head).await.unwrap();
        let chunk = [&b"4000\r\n"[..], &[b'x'; 0x4000], b"\r\n"].concat();
        while stream.write_all(&chunk).await.is_ok() {
            counter.fetch_add(chunk.len(), Ordering::Relaxed);
        }
    });
    let clear = Origin::start(None, Arc::new(|_, _| ok("x"))).await;
    let world = World::at(&roots, Vec::new(), &[], api, clear.clone(), clear.clone(), &clear);
    let mut stream = world.tls("api.example", "api.example", &["http/1.1"]).await.unwrap();
    stream.write_all(get("/v1").as_bytes()).await.unwrap();
    let mut piece = [0; 4096];
    assert!(stream.read(&mut piece).await.unwrap() > 0);
    // The guest reads no more: the server is not read much further.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let stalled = sent.load(Ordering::Relaxed);
    assert!(stalled < 64 << 20, "{stalled}");
    drop(stream);
    tokio::time::timeout(Duration::from_secs(10), server).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn redirections_are_the_guest_s_to_follow() {
    // A07
    for location in [
        "http://169.254.169.254/latest",
        "https://evil.example/",
        "https://other.example/",
        "//evil.example/",
    ] {
        let world = World::with(Setup {
            answer: Arc::new(move |_, _| {
                format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n").into_bytes()
            }),
            ..Setup::default()
        })
        .await;
        let answer = world.raw("api.example", get("/v1")).await;
        assert!(answer.starts_with("HTTP/1.1 307") && answer.contains(location), "{answer}");
        assert_eq!(
            (world.api.connections(), world.other.connections(), world.plain.connections()),
            (1, 0, 0)
        );
    }
}
