//! Frames of HTTP/2 that no library would send: requests that mean another in HTTP/1.1, and floods.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::{Origin, PLACEHOLDER, Roots, Stream, World, answer, ok};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn settings() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// A text of HPACK that is not compressed (RFC 7541, section 5).
fn text(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if bytes.len() < 127 {
        out.push(u8::try_from(bytes.len()).unwrap());
    } else {
        out.push(127);
        let mut rest = bytes.len() - 127;
        while rest >= 128 {
            out.push(u8::try_from(rest % 128).unwrap() | 128);
            rest /= 128;
        }
        out.push(u8::try_from(rest).unwrap());
    }
    out.extend_from_slice(bytes);
    out
}

/// Fields by their letters, in no table.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        out.extend(text(name.as_bytes()));
        out.extend(text(value.as_bytes()));
    }
    out
}

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "https"), (":authority", "api.example"), (":path", "/v1")];

fn with(more: &[(&'static str, &'static str)]) -> Vec<u8> {
    block(&[&GET[..], more].concat())
}

/// With another value of one of them, or none.
fn but(name: &str, value: Option<&str>) -> Vec<u8> {
    let fields = GET.iter().filter_map(|&(own, usual)| match own == name {
        true => value.map(|value| (own, value)),
        false => Some((own, usual)),
    });
    block(&fields.collect::<Vec<_>>())
}

async fn connection(world: &World) -> impl Stream + use<> {
    world.tls("api.example", "api.example", &["h2"]).await.unwrap()
}

/// All that comes within a while.
async fn send(world: &World, bytes: &[u8]) -> String {
    let mut stream = connection(world).await;
    stream.write_all(&[&settings(), bytes].concat()).await.ok();
    stream.flush().await.ok();
    answer(&mut stream).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_http_2_is_one_request_of_http_1() {
    let world = World::new().await;
    let whole = |block: &[u8]| frame(HEADERS, END_STREAM | END_HEADERS, 1, block);
    let with_body = |fields: &[u8], body: &[u8]| {
        [frame(HEADERS, END_HEADERS, 1, fields), frame(DATA, END_STREAM, 1, body)].concat()
    };
    for (what, bytes) in [
        ("F13 a line in a value", whole(&with(&[("x", "a\r\nEvil: 1")]))),
        ("F13 a line feed in a value", whole(&with(&[("x", "a\nEvil: 1")]))),
        ("F13 a NUL in a value", whole(&with(&[("x", "a\0b")]))),
        ("F13 capitals in a name", whole(&with(&[("X-Evil", "1")]))),
        ("F13 a colon in a name", whole(&with(&[("x:evil", "1")]))),
        ("F13 a space in a name", whole(&with(&[("x evil", "1")]))),
        ("F13 a line in a name", whole(&with(&[("x\r\nevil", "1")]))),
        ("F13 an empty name", whole(&with(&[("", "1")]))),
        ("F13 chunks", whole(&with(&[("transfer-encoding", "chunked")]))),
        ("F13 a connection's field", whole(&with(&[("connection", "authorization")]))),
        ("F13 another one's", whole(&with(&[("keep-alive", "1")]))),
        ("F13 a proxy's", whole(&with(&[("proxy-connection", "close")]))),
        ("F13 an upgrade", whole(&with(&[("upgrade", "h2c")]))),
        ("F13 a coding of trailers", whole(&with(&[("te", "gzip")]))),
        ("F13 a length and no body", whole(&with(&[("content-length", "5")]))),
        ("F13 a length that is none", with_body(&with(&[("content-length", "+5")]), b"hello")),
        (
            "F13 two lengths",
            with_body(&with(&[("content-length", "5"), ("content-length", "6")]), b"hello"),
        ),
        (
            "F13 a pseudo field after others",
            whole(&block(&[&GET[..3], &[("x", "1")], &GET[3..]].concat())),
        ),
        ("F13 an unknown pseudo field", whole(&with(&[(":evil", "1")]))),
        ("F13 a status", whole(&with(&[(":status", "200")]))),
        ("F13 a protocol without CONNECT", whole(&with(&[(":protocol", "websocket")]))),
        ("H06 another authority", whole(&but(":authority", Some("other.example")))),
        ("H06 an authority with a user", whole(&but(":authority", Some("u@api.example")))),
        ("H06 an empty authority", whole(&but(":authority", Some("")))),
        ("H06 no authority", whole(&but(":authority", None))),
        ("H06 two authorities", whole(&with(&[(":authority", "api.example")]))),
        ("H06 a host that differs", whole(&with(&[("host", "other.example")]))),
        ("H06 two hosts", whole(&with(&[("host", "api.example"), ("host", "api.example")]))),
        ("H06 the one in place of the other", {
            let fields = [("host", "other.example"), GET[0], GET[1], GET[3]];
            whole(&block(&[fields[1], fields[2], fields[3], fields[0]]))
        }),
        ("H07 two slashes", whole(&but(":path", Some("//evil.example/x")))),
        ("H07 an address", whole(&but(":path", Some("https://evil.example/x")))),
        ("H07 nothing", whole(&but(":path", Some("")))),
        ("H07 a star", whole(&but(":path", Some("*")))),
        ("H07 none", whole(&but(":path", None))),
        ("H07 two of them", whole(&with(&[(":path", "/v2")]))),
        ("H07 no slash", whole(&but(":path", Some("v1")))),
        (
            "H07 a line in it",
            whole(&but(":path", Some("/v1 HTTP/1.1\r\nHost: evil.example\r\n\r\nGET /"))),
        ),
        ("H07 a space in it", whole(&but(":path", Some("/v1 HTTP/1.1")))),
        ("H07 in the clear", whole(&but(":scheme", Some("http")))),
        ("H07 a scheme with more", whole(&but(":scheme", Some("https://evil.example/")))),
        ("H07 no scheme", whole(&but(":scheme", None))),
        (
            "F13 a method with a line",
            whole(&but(":method", Some("GET / HTTP/1.1\r\nX: y\r\n\r\nGET"))),
        ),
        ("F13 a method of small letters", whole(&but(":method", Some("get")))),
        ("F13 no method", whole(&but(":method", None))),
        ("P11 a method nobody knows", whole(&but(":method", Some("PRI")))),
        ("P11 TRACE", whole(&but(":method", Some("TRACE")))),
        (
            "H16 CONNECT",
            whole(&block(&[(":method", "CONNECT"), (":authority", "other.example:443")])),
        ),
    ] {
        send(&world, &bytes).await;
        assert_eq!(world.api.connections(), 0, "{what}: {}", world.api.seen());
    }
    world.nothing_left();
    // So that it is seen that the frames are right otherwise.
    send(&world, &whole(&with(&[("x-any", "1")]))).await;
    let seen = world.api.seen();
    assert!(seen.starts_with("GET /v1 HTTP/1.1\r\n") && seen.contains("x-any: 1\r\n"), "{seen}");
    // P07: a fragment is of nobody's business but the client's; it is neither judged nor sent.
    let world = World::new().await;
    send(&world, &whole(&but(":path", Some("/v2#x")))).await;
    assert!(world.api.seen().contains("GET /v2 HTTP/1.1\r\n"), "{}", world.api.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_another_length_than_was_said_is_no_whole_request() {
    // F13: what is left of the length is not the next request.
    for body in [&b"hel"[..], b"hello and GET /smuggled HTTP/1.1\r\n\r\n"] {
        // Of its own: one that was told what the server speaks offers no HTTP/2 any more.
        let world = World::new().await;
        let fields = with(&[("content-length", "5")]);
        let bytes =
            [frame(HEADERS, END_HEADERS, 1, &fields), frame(DATA, END_STREAM, 1, body)].concat();
        send(&world, &bytes).await;
        let next =
            world.raw("api.example", "GET /next HTTP/1.1\r\nHost: api.example\r\n\r\n").await;
        assert!(next.starts_with("HTTP/1.1 200"), "{next}");
        for connection in world.api.each() {
            assert!(!connection.contains("smuggled"), "{connection}");
            assert!(
                connection.starts_with("GET /next") || !connection.contains("/next"),
                "{connection}"
            );
        }
    }
}

/// How a flood ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Closed,
    /// The gateway reads no more.
    Stalled,
    /// It took all of it.
    Taken,
}

/// Sends pieces, and reads what comes back or does not. Each flood has a gateway of its own, which
/// does not know yet what the server speaks, serves others after it, and dialled little.
async fn flood(first: &[u8], reads: bool, pieces: impl Iterator<Item = Vec<u8>>) -> End {
    let world = World::new().await;
    let (mut reader, mut writer) = tokio::io::split(connection(&world).await);
    writer.write_all(first).await.unwrap();
    let reading = tokio::spawn(async move {
        let mut piece = [0; 4096];
        if reads {
            while let Ok(1..) = reader.read(&mut piece).await {}
        } else {
            std::future::pending::<()>().await;
        }
    });
    let mut end = End::Taken;
    for piece in pieces {
        let sent = async { writer.write_all(&piece).await.and(writer.flush().await) };
        match tokio::time::timeout(Duration::from_secs(2), sent).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => {
                end = End::Closed;
                break;
            }
            Err(_) => {
                end = End::Stalled;
                break;
            }
        }
    }
    reading.abort();
    let dialled = world.api.connections();
    assert!(dialled < 1000, "{dialled}");
    still_serves(&world).await;
    end
}

async fn still_serves(world: &World) {
    let answer = world.raw("api.example", "GET /after HTTP/1.1\r\nHost: api.example\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_frames_end() {
    // F14
    let first = settings();
    let begun = [&first[..], &frame(HEADERS, 0, 1, &with(&[]))].concat();
    let more = || (0..4000).map(|_| frame(CONTINUATION, 0, 1, &block(&[("x", &"y".repeat(8000))])));
    assert_eq!(flood(&begun, true, more()).await, End::Closed, "fields without end");
    let empty = || (0..30_000).map(|_| frame(CONTINUATION, 0, 1, &[]));
    assert_ne!(flood(&begun, true, empty()).await, End::Taken, "empty fields without end");
    let resets = (0..5_000_u32).map(|at| {
        let stream = 2 * at + 1;
        let request = frame(HEADERS, END_STREAM | END_HEADERS, stream, &with(&[]));
        [request, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    });
    assert_eq!(flood(&first, true, resets).await, End::Closed, "requests that are taken back");
    for reads in [true, false] {
        let pings = (0..30_000).map(|_| frame(PING, 0, 0, &[7; 8]));
        let end = flood(&first, reads, pings).await;
        assert!(reads || end != End::Taken, "pings whose answers nobody reads");
        let all = (0..30_000).map(|_| frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]));
        let end = flood(&first, reads, all).await;
        assert!(reads || end != End::Taken, "settings whose answers nobody reads");
    }
    let open = [
        &first[..],
        &frame(HEADERS, END_HEADERS, 1, &block(&[(":method", "POST"), GET[1], GET[2], GET[3]])),
    ]
    .concat();
    let nothing = (0..30_000).map(|_| frame(DATA, 0, 1, &[]));
    assert_eq!(flood(&open, true, nothing).await, End::Closed, "data without data");
    let windows = (0..10).map(|_| frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()));
    let after = (0..30_000).map(|_| frame(PING, 0, 0, &[7; 8]));
    assert_eq!(
        flood(&first, true, windows.chain(after)).await,
        End::Closed,
        "windows that overflow"
    );
    let large = std::iter::repeat_with(|| frame(DATA, 0, 1, &[0; 20_000])).take(1000);
    assert_eq!(flood(&open, true, large).await, End::Closed, "frames that are too large");
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_unfold_are_refused() {
    // F14: one long field in the table, named thousands of times by one byte.
    let world = World::new().await;
    let mut fields = with(&[]);
    fields.push(0x40);
    fields.extend(text(b"x"));
    fields.extend(text("y".repeat(4000).as_bytes()));
    fields.extend(std::iter::repeat_n(0xbe, 12_000));
    send(&world, &frame(HEADERS, END_STREAM | END_HEADERS, 1, &fields)).await;
    assert_eq!(world.api.connections(), 0, "{}", world.api.seen().len());
    still_serves(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_no_answers_is_in_nobody_s_way() {
    // F14: a window of nothing.
    let world = World::answering(|_, _| ok(&"x".repeat(100_000))).await;
    let mut stream = connection(&world).await;
    let mut bytes = [PREFACE, &frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])].concat();
    for at in 0..100_u32 {
        bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, 2 * at + 1, &with(&[])));
    }
    stream.write_all(&bytes).await.unwrap();
    stream.flush().await.unwrap();
    while !world.api.seen().contains("GET") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    still_serves(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_is_in_no_table_of_http_2() {
    // S16: never indexed (RFC 7541, section 6.2.3), so that no guess of a guest's makes its own
    // requests shorter.
    let roots = Roots::new();
    let tls = roots.config(&["api.example"], &["h2"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = Origin::listening(listener.local_addr().unwrap());
    let (bytes, mut arrived) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream =
                tokio_rustls::TlsAcceptor::from(tls.clone()).accept(stream).await.unwrap();
            stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut piece).await {
                bytes.send(piece[..count].to_vec()).unwrap();
            }
        }
    });
    let clear = Origin::start(None, Arc::new(|_, _| ok("x"))).await;
    let world = World::at(&roots, Vec::new(), &[], api, clear.clone(), clear.clone(), &clear);
    // The name of the one is in the static table, of the other not.
    let target = format!("/v1?key={PLACEHOLDER}");
    let bearer = format!("Bearer {PLACEHOLDER}");
    let fields = block(&[GET[0], GET[1], GET[2], (":path", &target), ("authorization", &bearer)]);
    let request = frame(HEADERS, END_STREAM | END_HEADERS, 1, &fields);
    let mut stream = connection(&world).await;
    stream.write_all(&[settings(), request].concat()).await.unwrap();
    stream.flush().await.unwrap();
    let (authorization, literal) = ([0x1f, 0x08], [0x10, 0x80 | 7]);
    let mut all = Vec::new();
    let has = |all: &[u8], part: &[u8]| all.windows(part.len()).any(|window| window == part);
    let both = async {
        while !(has(&all, &authorization) && has(&all, &literal)) {
            all.extend(arrived.recv().await.unwrap());
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(5), both).await;
    assert!(waited.is_ok(), "{all:02x?}");
}
