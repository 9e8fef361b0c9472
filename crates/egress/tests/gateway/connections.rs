//! Connections that are meant to smuggle something past the gateway, to wear it down, or to get on
//! while it cannot write down what happens.

use std::io::{self, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use egress::{Credential, Decision, Error};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf,
};
use wire::text::Secret;

use crate::support::{PLACEHOLDER, SECRET, World, answer, ok, service};

fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: api.example\r\n{fields}\r\n")
}

fn bearer() -> String {
    format!("Authorization: Bearer {PLACEHOLDER}\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_keeps_its_length_whatever_the_method() {
    // F06: what the server takes for the body is what was judged as one.
    for (what, method, fields, body, sent) in [
        ("none", "GET", "", "", "|"),
        ("none that is said", "GET", "Content-Length: 0\r\n", "", "content-length: 0|"),
        ("a GET's", "GET", "Content-Length: 5\r\n", "hello", "content-length: 5|hello"),
        ("a HEAD's", "HEAD", "Content-Length: 5\r\n", "hello", "content-length: 5|hello"),
        ("an OPTIONS's", "OPTIONS", "Content-Length: 5\r\n", "hello", "content-length: 5|hello"),
        ("a DELETE's", "DELETE", "Content-Length: 5\r\n", "hello", "content-length: 5|hello"),
        ("a POST's", "POST", "Content-Length: 5\r\n", "hello", "content-length: 5|hello"),
        ("a POST without", "POST", "", "", "|"),
        (
            "a POST's in chunks",
            "POST",
            "Transfer-Encoding: chunked\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "transfer-encoding: chunked|5\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "a GET's in chunks",
            "GET",
            "Transfer-Encoding: chunked\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "transfer-encoding: chunked|5\r\nhello\r\n0\r\n\r\n",
        ),
    ] {
        let world = World::answering(|head, _| match head.starts_with("head") {
            true => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n".to_vec(),
            false => ok("hi"),
        })
        .await;
        let second = get("/second", "Connection: close\r\n");
        let first = format!("{method} /first HTTP/1.1\r\nHost: api.example\r\n{fields}\r\n{body}");
        let answer = world.raw("api.example", format!("{first}{second}")).await;
        assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{what}: {answer}");
        let seen = world.api.seen();
        let (first, second) = seen.split_once("GET /second HTTP/1.1\r\n").expect(what);
        assert!(first.starts_with(&format!("{method} /first HTTP/1.1\r\n")), "{what}: {first}");
        let (field, wanted) = sent.split_once('|').unwrap();
        let (head, body) = first.split_once("\r\n\r\n").unwrap();
        let framed: Vec<&str> = head
            .split("\r\n")
            .filter(|line| line.contains("-length") || line.contains("transfer-"))
            .collect();
        assert_eq!((framed.join(","), body), (field.to_owned(), wanted), "{what}");
        assert!(!second.contains("hello"), "{what}: {second}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_follows_a_switch_of_protocols_before_it_is_agreed_to() {
    // F10: the server takes its time, and has only the head meanwhile.
    let (agree, agreed) = std::sync::mpsc::channel::<()>();
    let agreed = Mutex::new(agreed);
    let world = World::answering(move |_, body| {
        assert!(body.is_empty());
        let agreed = || agreed.lock().unwrap().recv_timeout(Duration::from_secs(20));
        tokio::task::block_in_place(agreed).unwrap();
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            .to_vec()
    })
    .await;
    let mut stream = world.tls("plain.example", "plain.example", &["http/1.1"]).await.unwrap();
    let ask = "GET /ws HTTP/1.1\r\nHost: plain.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
               Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    world.allow_only(&["ws plain.example/ws"]);
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: plain.example\r\n\r\n";
    stream.write_all(format!("{ask}{smuggled}").as_bytes()).await.unwrap();
    while world.plain.connections() == 0 || !world.plain.seen().ends_with("\r\n\r\n") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!world.plain.seen().contains("smuggled"), "{}", world.plain.seen());
    agree.send(()).unwrap();
    let text = answer(&mut stream).await;
    assert!(text.starts_with("HTTP/1.1 101"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_switched_to_is_a_websocket_or_nothing() {
    // F11: where the server agrees to what was not asked for, the guest gets nothing of it.
    let world = World::answering(|_, _| {
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nsecond"
            .to_vec()
    })
    .await;
    for fields in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "",
    ] {
        let answer = world.raw("api.example", get("/v1", fields)).await;
        assert!(
            answer.starts_with("HTTP/1.1 502") && !answer.contains("second"),
            "{fields}: {answer}"
        );
    }
    assert!(!world.api.seen().contains("h2c"), "{}", world.api.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_of_a_request_are_not_sent() {
    // F18, S01: nobody judged them.
    let world = World::new().await;
    let body = format!(
        "5\r\nhello\r\n0\r\nAuthorization: Bearer {PLACEHOLDER}\r\nHost: evil.example\r\nContent-Length: 9\r\nX-Any: 1\r\n\r\n"
    );
    let request = format!(
        "POST /v1 HTTP/1.1\r\nHost: api.example\r\nTrailer: Authorization\r\nTransfer-Encoding: chunked\r\n\r\n{body}"
    );
    let answer = world.raw("api.example", request).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let seen = world.api.seen().to_lowercase();
    assert!(seen.ends_with("5\r\nhello\r\n0\r\n\r\n"), "{seen}");
    assert!(
        !seen.contains("bearer") && !seen.contains("trailer") && !seen.contains("evil"),
        "{seen}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_would_end_its_header_is_no_secret() {
    // F17: found when it is set, and what was set before stays.
    let world = World::new().await;
    for text in
        ["a-secret\r\nX-Evil: 1", "a-secret\n", "a secret", "a-secret\0", "ein-schlüssel", ""]
    {
        let Ok(secret) = Secret::new(text.into()) else { continue };
        let service = Arc::new(service("api", "api.example"));
        let refused = world.gateway.set_credential(Credential {
            service,
            secret,
            placeholder: PLACEHOLDER.into(),
        });
        assert!(matches!(refused, Err(Error::Secret(_))), "{text:?}");
        assert!(!format!("{refused:?}").contains("a-secret"), "{refused:?}");
    }
    let answer = world.raw("api.example", get("/v1", &bearer())).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(world.api.seen().contains(&format!("authorization: Bearer {SECRET}\r\n")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_has_bounds() {
    // F20
    let world = World::new().await;
    let fields =
        |count: usize| (0..count).fold(String::new(), |all, at| all + &format!("X-{at}: 1\r\n"));
    let answer = world.raw("api.example", get("/v1", &fields(100))).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let seen = world.api.seen();
    for (what, request) in [
        ("too many fields", get("/v1", &fields(200))),
        ("a long field", get("/v1", &format!("X: {}\r\n", "y".repeat(70 << 10)))),
        ("a long target", get(&format!("/{}", "y".repeat(70 << 10)), "")),
        ("a long name", get("/v1", &format!("{}: 1\r\n", "y".repeat(70 << 10)))),
        (
            "no end of it",
            format!("GET /v1 HTTP/1.1\r\nHost: api.example\r\nX: {}", "y".repeat(1 << 20)),
        ),
        ("no end of empty lines", "\r\n".repeat(200_000)),
    ] {
        let answer = world.raw("api.example", request).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{what}: {answer}");
    }
    assert_eq!(world.api.seen(), seen);
}

/// Writes so many bytes at once, and lets others go first.
struct Pieces {
    stream: DuplexStream,
    size: usize,
    has_waited: bool,
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, out)
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.has_waited = !self.has_waited;
        if self.has_waited {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let piece = &bytes[..bytes.len().min(self.size)];
        Pin::new(&mut self.stream).poll_write(context, piece)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

// One thread: who waits lets the gateway read what there is.
#[tokio::test]
async fn a_handshake_and_a_request_may_come_byte_by_byte() {
    // F20: what was cut is put together, wherever it was cut.
    let world = World::new().await;
    let address = world.lookup("api.example").await.unwrap();
    for size in [1, 7] {
        let stream = world.open(address.into(), 443);
        let pieces = Pieces { stream, size, has_waited: false };
        let mut stream = world.secure(pieces, "api.example", &["http/1.1"]).await.unwrap();
        stream.write_all(get("/v1", &bearer()).as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        assert!(answer(&mut stream).await.starts_with("HTTP/1.1 200"), "{size}");
    }
    let clear = world.lookup("clear.example").await.unwrap();
    let stream = world.open(clear.into(), 80);
    let mut pieces = Pieces { stream, size: 1, has_waited: false };
    let request = "POST / HTTP/1.1\r\nHost: clear.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    pieces.write_all(format!("{request}{request}").as_bytes()).await.unwrap();
    let answer = answer(&mut pieces).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_or_says_it_slowly_is_cut_off() {
    // F20: time passes as soon as everybody waits.
    let world = World::new().await;
    let address = world.lookup("plain.example").await.unwrap();
    for (what, bytes, most) in [
        ("nothing", &b""[..], 11),
        ("the start of a ClientHello", &[0x16, 3, 1, 2, 0, 1][..], 31),
        ("the start of a request", b"GET / HTTP/1.1\r\nHost: plain.example\r\nX: y", 121),
    ] {
        let port = if bytes.starts_with(b"GET") { 80 } else { 443 };
        let address = match port {
            80 => world.lookup("clear.example").await.unwrap(),
            _ => address,
        };
        let mut stream = world.open(address.into(), port);
        stream.write_all(bytes).await.unwrap();
        let begun = tokio::time::Instant::now();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.ok();
        let took = begun.elapsed();
        assert!(took <= Duration::from_secs(most), "{what}: {took:?}");
    }
    let mut stream = world.tls("plain.example", "plain.example", &["http/1.1"]).await.unwrap();
    let begun = tokio::time::Instant::now();
    tokio::spawn(async move {
        for _ in 0..10_000 {
            if stream.write_all(b"G").await.and(stream.flush().await).is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        panic!("a head that drips in is read for ever");
    })
    .await
    .unwrap();
    assert!(begun.elapsed() <= Duration::from_secs(200), "{:?}", begun.elapsed());
    world.nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_opens_all_it_may_is_in_nobody_else_s_way() {
    // F20: the place of a connection is free again when it ends.
    let (greedy, other) = (World::new().await, World::new().await);
    let address = greedy.lookup("plain.example").await.unwrap();
    let mut open: Vec<_> = (0..1024).map(|_| greedy.open(address.into(), 443)).collect();
    let refused = loop {
        let mut one = greedy.open(address.into(), 443);
        let read = tokio::time::timeout(Duration::from_millis(100), one.read(&mut [0])).await;
        match read {
            Ok(read) => break read,
            Err(_) => open.push(one),
        }
        assert!(open.len() < 1100);
    };
    assert_eq!(refused.unwrap(), 0);
    let answer = other.raw("api.example", get("/v1", &bearer())).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(open);
    let mut answer = String::new();
    for _ in 0..100 {
        if let Ok(mut stream) = greedy.tls("api.example", "api.example", &["http/1.1"]).await {
            stream.write_all(get("/v1", &bearer()).as_bytes()).await.unwrap();
            answer = crate::support::answer(&mut stream).await;
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_written_down_in_a_moment_waits_for_it() {
    let world = World::new().await;
    let mut open = world.tls("api.example", "api.example", &["http/1.1"]).await.unwrap();
    world.events.fill();
    open.write_all(get("/v1", &bearer()).as_bytes()).await.unwrap();
    let asked = answer(&mut open);
    let emptied = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.nothing_left();
        world.events.empty();
    };
    let (answer, ()) = tokio::join!(asked, emptied);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_down_does_not_happen() {
    // S22
    let world = World::new().await;
    let mut open = world.tls("api.example", "api.example", &["http/1.1"]).await.unwrap();
    let tunnel = world.lookup("tunnel.example").await.unwrap();
    world.events.fill();
    open.write_all(get("/v1", &bearer()).as_bytes()).await.unwrap();
    let answer = answer(&mut open).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(world.tls("plain.example", "plain.example", &[]).await.is_err());
    assert!(world.secure(world.open(tunnel.into(), 443), "tunnel.example", &[]).await.is_err());
    world.nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_name_nothing_allow_nothing() {
    // S21: an empty list is no list of everything, and what is open is judged by it too.
    let world = World::new().await;
    let mut open = world.tls("api.example", "api.example", &["http/1.1"]).await.unwrap();
    world.allow_only(&[]);
    open.write_all(get("/v1", &bearer()).as_bytes()).await.unwrap();
    assert!(answer(&mut open).await.starts_with("HTTP/1.1 403"));
    let answer = world.raw("plain.example", "GET / HTTP/1.1\r\nHost: plain.example\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    world.nothing_left();
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// All of it on one thread, whose log is looked at.
#[tokio::test]
async fn no_log_has_a_secret_at_any_level() {
    // S13
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let world = World::answering(|head, _| match head.contains("/broken") {
        true => b"HTTP/1.1 what\r\n\r\n".to_vec(),
        false => ok(head),
    })
    .await;
    for path in ["/v1", "/broken"] {
        world.raw("api.example", get(path, &bearer())).await;
    }
    let key = format!("X-Api-Key: {PLACEHOLDER}x\r\n");
    world.raw("api.example", get("/v1", &key)).await;
    let query = get(&format!("/v1?key={PLACEHOLDER}"), "");
    world.raw("api.example", query).await;
    let events = world.events.all();
    assert!(events.iter().any(|event| event.decision == Decision::Allowed));
    assert!(world.api.seen().contains(SECRET));
    let text = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(!text.is_empty() && !text.contains(SECRET), "{text}");
    let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, SECRET);
    assert!(!text.contains(&base64[..base64.len() - 3]), "{text}");
}
