//! What a hostile guest sends, and what comes of it: an answer that refuses, no connection to any
//! origin, no secret to be seen. The names are those of the classes: host, address, framing, path,
//! secret.

use std::net::{IpAddr, Ipv4Addr};

use egress::{Decision, GATEWAY_PORT, Kind, OWN_ADDRESS, PROXY_PORT};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tokio::io::AsyncWriteExt as _;

use crate::support::{OTHER_PLACEHOLDER, OTHER_SECRET, PLACEHOLDER, SECRET, World, answer, ok};

/// Sends each of these to `api.example` on a connection of its own. None gets through.
async fn refused(requests: &[(&str, String)], statuses: &[&str]) {
    let world = World::new().await;
    for (what, request) in requests {
        let answer = world.raw("api.example", request).await;
        let is_refused = answer.is_empty()
            || statuses.iter().any(|status| answer.starts_with(&format!("HTTP/1.1 {status}")));
        assert!(is_refused, "{what}: {answer}");
        assert!(!answer.contains(SECRET) && !answer.contains(OTHER_SECRET), "{what}: {answer}");
        assert_eq!(world.api.connections(), 0, "{what}: {}", world.api.seen());
    }
    world.nothing_left();
}

fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: api.example\r\n{fields}\r\n")
}

fn post(fields: &str, body: &str) -> String {
    format!("POST /v1/x HTTP/1.1\r\nHost: api.example\r\n{fields}\r\n{body}")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_part_of_a_request_names_the_host_of_its_connection() {
    let with_host = |host: &str| {
        format!("GET /v1 HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {PLACEHOLDER}\r\n\r\n")
    };
    refused(
        &[
            ("H01 another host with a credential", with_host("other.example")),
            ("H02 the attacker's", with_host("evil.example")),
            (
                "H04 absolute form",
                "GET https://other.example/ HTTP/1.1\r\nHost: api.example\r\n\r\n".into(),
            ),
            (
                "H04 absolute form, both",
                "GET https://api.example/ HTTP/1.1\r\nHost: api.example\r\n\r\n".into(),
            ),
            (
                "H05 two hosts",
                "GET / HTTP/1.1\r\nHost: api.example\r\nHost: api.example\r\n\r\n".into(),
            ),
            ("H05 a list", with_host("api.example, other.example")),
            ("H05 empty", with_host("")),
            ("H05 none", "GET / HTTP/1.1\r\nAccept: */*\r\n\r\n".into()),
            ("H05 a user", with_host("user@api.example")),
            ("H05 a path", with_host("api.example/x")),
            ("H05 a space", with_host("api.example x")),
            ("H05 a tab", with_host("api.example\tx")),
            ("H08 two dots", with_host("api.example..")),
            ("H09 brackets", with_host("[api.example]")),
            ("H10 percent", with_host("api%2eexample")),
            ("H11 other letters", with_host("àpi.example")),
            ("H12 a suffix", with_host("api.example.evil.example")),
            ("H13 a port with a zero", with_host("api.example:0443")),
            ("H13 two ports", with_host("api.example:443:80")),
            ("H13 no port", with_host("api.example:")),
            ("H13 a port too large", with_host("api.example:65979")),
            ("H13 another port", with_host("api.example:8443")),
            (
                "H16 CONNECT within",
                "CONNECT other.example:443 HTTP/1.1\r\nHost: other.example:443\r\n\r\n".into(),
            ),
        ],
        &["400", "405", "421"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_the_same_in_capitals_and_with_its_dot() {
    let world = World::new().await;
    for host in ["API.Example", "api.example.", "api.example:443"] {
        let request = format!(
            "GET /v1 HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {PLACEHOLDER}\r\n\r\n"
        );
        let answer = world.raw("api.example", request).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
    }
    assert!(world.api.seen().to_lowercase().matches("host: api.example\r\n").count() == 3);
    assert_eq!(world.lookup("API.EXAMPLE.").await, world.lookup("api.example").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_handshake_names_the_host_of_the_connection() {
    let world = World::new().await;
    for sni in ["other.example", "evil.example"] {
        let error = world.tls("api.example", sni, &["http/1.1"]).await.err().expect(sni);
        assert!(
            error.to_string().contains("UnrecognisedName")
                || error.to_string().contains("UnrecognizedName"),
            "{error}"
        );
    }
    let event = world.event(|event| event.decision == Decision::Denied).await;
    assert_eq!((event.kind, event.host.as_str()), (Kind::Connection, "api.example"));
    world.nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_of_a_connection_is_judged() {
    let world = World::new().await;
    let first = format!(
        "GET /v1 HTTP/1.1\r\nHost: api.example\r\nAuthorization: Bearer {PLACEHOLDER}\r\n\r\n"
    );
    let second = format!(
        "GET /v2 HTTP/1.1\r\nHost: other.example\r\nAuthorization: Bearer {OTHER_PLACEHOLDER}\r\n\r\n"
    );
    let answer = world.raw("api.example", format!("{first}{second}")).await;
    assert!(answer.contains("200 OK") && answer.contains("421"), "{answer}");
    assert!(!world.api.seen().contains("/v2") && world.other.connections() == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_need_a_rule_of_their_own() {
    let world = World::new().await;
    for address in [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.253",
        "8.8.8.8",
        "::1",
        "::ffff:127.0.0.1",
        "fd00:ec2::254",
        "64:ff9b::a9fe:a9fe",
    ] {
        let mut stream = world.open(address.parse::<IpAddr>().unwrap(), 80);
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.ok();
        assert_eq!(answer(&mut stream).await, "", "{address}");
    }
    let mut unknown = world.open(Ipv4Addr::new(198, 19, 0, 1).into(), 443);
    assert_eq!(answer(&mut unknown).await, "");
    assert!(world.events.all().iter().all(|event| event.decision == Decision::Denied));
    assert_eq!(world.events.all().len(), 9);
    world.nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_for_a_private_network_gives_neither_this_host_nor_the_link() {
    let world = World::with(crate::support::Setup {
        allow: vec!["tcp 10.0.0.0/8:9", "tcp 127.0.0.0/8:9", "tcp 169.254.0.0/16:9"],
        ..Default::default()
    })
    .await;
    for address in ["127.0.0.1", "169.254.1.1"] {
        let mut stream = world.open(address.parse::<IpAddr>().unwrap(), 9);
        assert_eq!(answer(&mut stream).await, "", "{address}");
        let event = world.event(|event| event.host == address).await;
        assert_eq!(event.decision, Decision::Denied, "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_no_names() {
    let world = World::new().await;
    for name in [
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "localhost",
        "metadata.google.internal",
        "host.local",
        "1.0.0.127.in-addr.arpa",
    ] {
        let answer = world.query(name, RecordType::A).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{name}");
    }
    for (kind, code) in [
        (RecordType::AAAA, ResponseCode::NoError),
        (RecordType::HTTPS, ResponseCode::NoError),
        (RecordType::TXT, ResponseCode::Refused),
        (RecordType::ANY, ResponseCode::Refused),
        (RecordType::NULL, ResponseCode::Refused),
        (RecordType::MX, ResponseCode::Refused),
    ] {
        let answer = world.query("api.example", kind).await;
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (code, 0), "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_rule_names_is_told_so() {
    let world = World::new().await;
    let answer = world.raw("evil.example", "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.1 403")
            && answer.contains("egress_denied")
            && answer.contains("evil.example"),
        "{answer}"
    );
    let address = world.lookup("evil.example").await.unwrap();
    let mut stream = world.open(address.into(), 80);
    stream.write_all(b"GET /x HTTP/1.1\r\nHost: evil.example\r\n\r\n").await.unwrap();
    let answer = crate::support::answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let event = world.event(|event| event.kind == Kind::Lookup).await;
    assert_eq!((event.host.as_str(), event.decision), ("evil.example", Decision::Denied));
    assert!(event.hint.is_some(), "{event:?}");
    world.nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_has_one_length() {
    refused(
        &[
            ("F01 length and chunks", post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
            ("F02 the length twice", post("Content-Length: 1\r\nContent-Length: 1\r\n", "x")),
            ("F03 two lengths", post("Content-Length: 1\r\nContent-Length: 2\r\n", "xx")),
            ("F03 a list", post("Content-Length: 1, 1\r\n", "x")),
            ("F03 plus", post("Content-Length: +1\r\n", "x")),
            ("F03 hexadecimal", post("Content-Length: 0x1\r\n", "x")),
            ("F03 negative", post("Content-Length: -1\r\n", "x")),
            ("F03 huge", post("Content-Length: 99999999999999999999\r\n", "x")),
            ("F03 empty", post("Content-Length: \r\n", "x")),
            ("F04 xchunked", post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n")),
            ("F04 a list", post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n")),
            ("F04 gzip", post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n")),
            ("F04 twice", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
            ("F04 a parameter", post("Transfer-Encoding: chunked;x\r\n", "0\r\n\r\n")),
            ("F04 a tab", post("Transfer-Encoding:\x0bchunked\r\n", "0\r\n\r\n")),
            ("F04 capitals", post("Transfer-Encoding: CHUNKED\r\n", "0\r\n\r\n")),
            ("F05 HTTP/1.0", "POST / HTTP/1.0\r\nHost: api.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into()),
            ("F08 bare line feeds", "GET / HTTP/1.1\nHost: api.example\n\n".into()),
            ("F08 one bare line feed", "GET / HTTP/1.1\r\nHost: api.example\nX: y\r\n\r\n".into()),
            ("F08 a bare CR", "GET / HTTP/1.1\r\nHost: api.example\r\nX: a\rb\r\n\r\n".into()),
            ("F08 a folded line", get("/", "X: a\r\n b\r\n")),
            ("F08 a space before", get("/", " X: a\r\n")),
            ("F08 a space before the colon", get("/", "X : a\r\n")),
            ("F08 a NUL", get("/", "X: a\0b\r\n")),
            ("F08 a name of other letters", get("/", "X\u{e4}: a\r\n")),
            ("F08 two spaces", "GET  / HTTP/1.1\r\nHost: api.example\r\n\r\n".into()),
            ("F08 a tab in the line", "GET\t/ HTTP/1.1\r\nHost: api.example\r\n\r\n".into()),
            ("P07 a fragment", get("/v1#x", "")),
            ("F15 a credential nominated", get("/", "Connection: authorization\r\n")),
            ("F15 a length nominated", get("/", "Connection: content-length\r\n")),
            ("F07 another expectation", post("Expect: 200-ok\r\nContent-Length: 1\r\n", "x")),
        ],
        &["400", "417"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_chunks_end_the_connection() {
    let world = World::answering(|_, _| ok("fine")).await;
    for (what, body) in [
        ("F09 an extension", "1;x=y\r\na\r\n0\r\n\r\n"),
        ("F09 a bare line feed", "1\na\r\n0\r\n\r\n"),
        ("F09 0x", "0x1\r\na\r\n0\r\n\r\n"),
        ("F09 too large", "fffffffffffffffff\r\na\r\n0\r\n\r\n"),
        ("F09 no size", "\r\na\r\n0\r\n\r\n"),
        ("F09 more data than said", "1\r\nab\r\n0\r\n\r\n"),
    ] {
        let answer = world.raw("plain.example", format!("POST /x HTTP/1.1\r\nHost: plain.example\r\nTransfer-Encoding: chunked\r\n\r\n{body}")).await;
        assert!(!answer.starts_with("HTTP/1.1 200"), "{what}: {answer}");
    }
    assert!(!world.plain.seen().contains("0\r\n\r\n"), "{}", world.plain.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_misleads_servers_is_not_sent() {
    let world = World::new().await;
    let fields = format!(
        "Authorization: Bearer {PLACEHOLDER}\r\nConnection: keep-alive, X-Trick\r\nX-Trick: 1\r\nX-Forwarded-Host: evil\r\n\
         X-Original-URL: /admin\r\nX-HTTP-Method-Override: DELETE\r\nX_Api_Key: x\r\nForwarded: for=1\r\nTE: gzip\r\n\
         HTTP2-Settings: AAMAAABkAAQAAP__\r\nUpgrade: h2c\r\nProxy-Authorization: Basic eDp5\r\nX-Kept: yes\r\n"
    );
    let answer = world.raw("api.example", get("/v1", &fields)).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let seen = world.api.seen().to_lowercase();
    for field in [
        "x-trick",
        "x-forwarded",
        "x-original",
        "override",
        "x_api_key",
        "forwarded:",
        "te:",
        "http2-settings",
        "upgrade",
        "proxy-",
    ] {
        assert!(!seen.contains(field), "{field}: {seen}");
    }
    assert!(seen.contains("x-kept: yes\r\n"), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_has_one_meaning() {
    let paths = [
        "/v1/../v1",
        "/%2e%2e/v1",
        "/.%2e/v1",
        "/v1/.",
        "/..;/v1",
        "//v1",
        "/v1//x",
        "/v1/%2f",
        "/v1/%5c",
        "/v1/\\x",
        "/%252e%252e/v1",
        "/%25%32%65",
        "/%c0%ae",
        "/%u002e",
        "/%zz",
        "/v1%00",
        "/v1%0d%0a",
        "/v1;x=y",
        "*",
        "v1",
    ];
    let requests: Vec<(&str, String)> = paths.iter().map(|path| (*path, get(path, ""))).collect();
    refused(&requests, &["400"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_are_those_that_mean_the_same_everywhere() {
    let requests: Vec<(&str, String)> =
        ["TRACE", "TRACK", "get", "FOO", "PRI", "CONNECT", "PROPFIND"]
            .iter()
            .map(|method| (*method, format!("{method} /v1 HTTP/1.1\r\nHost: api.example\r\n\r\n")))
            .collect();
    refused(&requests, &["400", "403", "405"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_placeholder_anywhere_else_goes_nowhere() {
    let b64 = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
    let bearer = format!("Authorization: Bearer {PLACEHOLDER}\r\n");
    refused(
        &[
            ("S01 another field", get("/v1", &format!("X-Data: {PLACEHOLDER}\r\n"))),
            ("S01 another field too", get("/v1", &format!("{bearer}X-Data: {PLACEHOLDER}\r\n"))),
            ("S01 a cookie", get("/v1", &format!("Cookie: a={PLACEHOLDER}\r\n"))),
            ("S01 the agent", get("/v1", &format!("User-Agent: {PLACEHOLDER}\r\n"))),
            ("S01 the referrer", get("/v1", &format!("Referer: https://x/{PLACEHOLDER}\r\n"))),
            ("S01 a name", get("/v1", &format!("{PLACEHOLDER}: 1\r\n"))),
            ("S01 the path", get(&format!("/v1/{PLACEHOLDER}"), &bearer)),
            ("S01 the query", get(&format!("/v1?q={PLACEHOLDER}"), &bearer)),
            ("S02 twice", get("/v1", &format!("Authorization: Bearer {PLACEHOLDER}, Bearer {PLACEHOLDER}\r\n"))),
            ("S02 with more", get("/v1", &format!("Authorization: Bearer {PLACEHOLDER}x\r\n"))),
            ("S02 two spaces", get("/v1", &format!("Authorization: Bearer  {PLACEHOLDER}\r\n"))),
            ("S02 another scheme", get("/v1", &format!("Authorization: Token {PLACEHOLDER}\r\n"))),
            ("S02 nested", get("/v1", &format!("Authorization: Basic {}\r\n", b64(&b64(PLACEHOLDER))))),
            ("S03 another user", get("/v1", &format!("Authorization: Basic {}\r\n", b64(&format!("me:{PLACEHOLDER}"))))),
            ("F16 two of them", get("/v1", &format!("{bearer}{bearer}"))),
            ("F16 key twice", get("/v1", &format!("X-Api-Key: {PLACEHOLDER}\r\nX-Api-Key: {PLACEHOLDER}\r\n"))),
            ("S20 another one's", get("/v1", &format!("Authorization: Bearer {OTHER_PLACEHOLDER}\r\n"))),
            ("S10 what makes keys", format!("POST /v1/keys HTTP/1.1\r\nHost: api.example\r\n{bearer}Content-Length: 0\r\n\r\n")),
        ],
        &["400", "403"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_placeholder_in_a_body_stays_one() {
    // S01, S03: whole, encoded, and in frames.
    let world = World::answering(|head, _| match head.contains("upgrade: websocket") {
        true => {
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
                .to_vec()
        }
        false => ok("hello"),
    })
    .await;
    let body = format!("{{\"key\":\"{PLACEHOLDER}\",\"\\u0073{}\":1}}", &PLACEHOLDER[1..]);
    let request = format!(
        "POST /v1 HTTP/1.1\r\nHost: api.example\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = world.raw("api.example", request).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let ask = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let mut stream = world.tls("api.example", "api.example", &["http/1.1"]).await.unwrap();
    stream.write_all(get("/v1/ws", ask).as_bytes()).await.unwrap();
    assert!(crate::support::answer(&mut stream).await.starts_with("HTTP/1.1 101"));
    let length = u8::try_from(PLACEHOLDER.len()).unwrap() | 0x80;
    let frame = [&[0x81, length, 0, 0, 0, 0], PLACEHOLDER.as_bytes()].concat();
    stream.write_all(&frame).await.unwrap();
    while !world.api.seen().ends_with(PLACEHOLDER) {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let seen = world.api.seen();
    assert!(seen.contains(&body) && !seen.contains(SECRET), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_is_not_ours_goes_nowhere() {
    let b64 = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
    refused(
        &[
            ("S11 bearer", get("/v1", "Authorization: Bearer sk-of-the-attacker\r\n")),
            ("S11 key", get("/v1", "X-Api-Key: sk-of-the-attacker\r\n")),
            (
                "S11 basic",
                get(
                    "/v1",
                    &format!("Authorization: Basic {}\r\n", b64("x-access-token:ghp_attacker")),
                ),
            ),
            ("S11 another scheme", get("/v1", "Authorization: Digest username=\"x\"\r\n")),
            ("S11 query", get("/v1?key=sk-of-the-attacker", "")),
            ("S11 presigned", get("/v1?X-Amz-Signature=abc&X-Amz-Credential=AKIA", "")),
            (
                "S11 of two slots one",
                get(
                    "/v1",
                    &format!(
                        "Authorization: Bearer {PLACEHOLDER}\r\nX-Api-Key: sk-of-the-attacker\r\n"
                    ),
                ),
            ),
        ],
        &["403"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_is_not_sent_in_the_clear() {
    let world = World::with(crate::support::Setup {
        allow: vec!["ANY api.example:80/**"],
        ..Default::default()
    })
    .await;
    let address = world.lookup("api.example").await.unwrap();
    let mut stream = world.open(address.into(), 80);
    stream.write_all(format!("GET /v1 HTTP/1.1\r\nHost: api.example\r\nAuthorization: Bearer {PLACEHOLDER}\r\n\r\n").as_bytes()).await.unwrap();
    let answer = crate::support::answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    world.nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_placeholder_goes_to_no_other_host() {
    let world = World::new().await;
    for field in [format!("Authorization: Bearer {PLACEHOLDER}"), format!("X-Any: a{PLACEHOLDER}b")]
    {
        let request = format!("GET / HTTP/1.1\r\nHost: plain.example\r\n{field}\r\n\r\n");
        let answer = world.raw("plain.example", request).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    }
    world.nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_is_taken_out_of_whatever_comes_back() {
    let b64 = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        format!("x-access-token:{SECRET}"),
    );
    let hex: String = SECRET.bytes().map(|byte| format!("{byte:02x}")).collect();
    let forms = [SECRET.to_owned(), b64, hex];
    for form in forms {
        let (first, last) = form.split_at(form.len() / 2);
        let (first, last) = (first.to_owned(), last.to_owned());
        let secret = form.clone();
        let world = World::answering(move |_, _| {
            let head = format!(
                "HTTP/1.1 200 OK\r\nLocation: /x?{secret}\r\nSet-Cookie: a={secret}\r\nWWW-Authenticate: Bearer {secret}\r\n\
                 Alt-Svc: h3=\":443\"\r\nTrailer: X-T\r\nTransfer-Encoding: chunked\r\n\r\n"
            );
            let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
            format!("{head}{}{}0\r\nX-T: {secret}\r\n\r\n", chunk(&format!("<{first}")), chunk(&format!("{last}>"))).into_bytes()
        })
        .await;
        let answer = world
            .raw("api.example", get("/v1", &format!("Authorization: Bearer {PLACEHOLDER}\r\n")))
            .await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let plain: String = answer
            .split("\r\n")
            .filter(|line| !line.chars().all(|c| c.is_ascii_hexdigit()))
            .collect();
        assert!(!plain.contains(&form), "{answer}");
        assert!(!plain.contains(SECRET), "{answer}");
        assert!(!answer.to_lowercase().contains("alt-svc"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_compressed_unasked_is_read_or_refused() {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(format!("a {SECRET} b").as_bytes()).unwrap();
    let body = encoder.finish().unwrap();
    for (encoding, wanted) in [("gzip", "HTTP/1.1 200"), ("br", "HTTP/1.1 502")] {
        let body = body.clone();
        let world = World::answering(move |head, _| {
            assert!(head.contains("accept-encoding: identity\r\n"), "{head}");
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            [head.as_bytes(), &body].concat()
        })
        .await;
        let request = get(
            "/v1",
            &format!("Accept-Encoding: br, gzip\r\nAuthorization: Bearer {PLACEHOLDER}\r\n"),
        );
        let answer = world.raw("api.example", request).await;
        assert!(answer.starts_with(wanted), "{answer}");
        assert!(!answer.contains(SECRET), "{answer}");
        assert_eq!(
            answer.contains(&format!("a {PLACEHOLDER} b").as_str()[..20]),
            encoding == "gzip",
            "{answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_of_an_answer_cannot_be_asked_for() {
    let world = World::answering(|head, _| {
        assert!(!head.contains("range"), "{head}");
        ok("whole")
    })
    .await;
    let request = get(
        "/v1",
        &format!("Range: bytes=0-3\r\nIf-Range: x\r\nAuthorization: Bearer {PLACEHOLDER}\r\n"),
    );
    assert!(world.raw("api.example", request).await.ends_with("whole"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_away_is_refused() {
    let world = World::new().await;
    let request = get("/v1", &format!("Authorization: Bearer {PLACEHOLDER}\r\n"));
    assert!(world.raw("api.example", &request).await.starts_with("HTTP/1.1 200"));
    world.gateway.revoke("api");
    let answer = world.raw("api.example", &request).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert_eq!(world.api.seen().matches("GET").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_s_own_ports_give_nothing_away() {
    let world = World::new().await;
    let own = |port| world.open(IpAddr::V4(OWN_ADDRESS), port);
    for (port, request, wanted) in [
        (80, "GET /latest/meta-data/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n", "HTTP/1.1 404"),
        (
            80,
            "PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 404",
        ),
        (GATEWAY_PORT, "GET / HTTP/1.1\r\nHost: 169.254.169.254:8787\r\n\r\n", "HTTP/1.1 404"),
        (
            GATEWAY_PORT,
            "GET /proxy/nothing/x HTTP/1.1\r\nHost: 169.254.169.254:8787\r\n\r\n",
            "HTTP/1.1 404",
        ),
        (GATEWAY_PORT, "GET /proxy/api/v1 HTTP/1.1\r\nHost: evil.example\r\n\r\n", "HTTP/1.1 421"),
        (
            GATEWAY_PORT,
            "GET /proxy/api/v1 HTTP/1.1\r\nHost: 169.254.169.254:8787\r\nOrigin: https://x\r\n\r\n",
            "HTTP/1.1 403",
        ),
        (
            GATEWAY_PORT,
            "GET /proxy/api/../v1 HTTP/1.1\r\nHost: 169.254.169.254:8787\r\n\r\n",
            "HTTP/1.1 400",
        ),
        (
            GATEWAY_PORT,
            "GET http://api.example/v1 HTTP/1.1\r\nHost: api.example\r\n\r\n",
            "HTTP/1.1 421",
        ),
        (PROXY_PORT, "GET / HTTP/1.1\r\nHost: api.example\r\n\r\n", "HTTP/1.1 400"),
        (
            PROXY_PORT,
            "GET http://api.example/ HTTP/1.1\r\nHost: other.example\r\n\r\n",
            "HTTP/1.1 421",
        ),
        (
            PROXY_PORT,
            "GET https://api.example/ HTTP/1.1\r\nHost: api.example\r\n\r\n",
            "HTTP/1.1 400",
        ),
        (
            PROXY_PORT,
            "CONNECT api.example:443 HTTP/1.1\r\nHost: other.example:443\r\n\r\n",
            "HTTP/1.1 421",
        ),
        (PROXY_PORT, "CONNECT api.example HTTP/1.1\r\nHost: api.example\r\n\r\n", "HTTP/1.1 400"),
        (
            PROXY_PORT,
            "CONNECT 2130706433:443 HTTP/1.1\r\nHost: 2130706433:443\r\n\r\n",
            "HTTP/1.1 400",
        ),
    ] {
        let mut stream = own(port);
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = crate::support::answer(&mut stream).await;
        assert!(answer.starts_with(wanted), "{request}: {answer}");
    }
    let mut other = own(8585);
    assert_eq!(answer(&mut other).await, "");
    world.nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_of_the_proxy_is_looked_into_like_any_connection() {
    let world = World::new().await;
    for target in ["169.254.169.254:8787", "198.18.1.0:443", "127.0.0.1:443", "10.0.0.1:80"] {
        let mut stream = world.open(IpAddr::V4(OWN_ADDRESS), PROXY_PORT);
        stream
            .write_all(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let first = answer(&mut stream).await;
        stream
            .write_all(b"GET /proxy/api/v1 HTTP/1.1\r\nHost: 169.254.169.254:8787\r\n\r\n")
            .await
            .ok();
        let second = answer(&mut stream).await;
        assert!(!first.contains("hello") && second.is_empty(), "{target}: {first}{second}");
    }
    // H03: another name in the handshake than in CONNECT.
    let mut stream = world.open(IpAddr::V4(OWN_ADDRESS), PROXY_PORT);
    stream
        .write_all(b"CONNECT api.example:443 HTTP/1.1\r\nHost: api.example:443\r\n\r\n")
        .await
        .unwrap();
    assert!(answer(&mut stream).await.starts_with("HTTP/1.1 200"));
    assert!(world.secure(stream, "other.example", &["http/1.1"]).await.is_err());
    world.nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_written_down_has_a_secret() {
    let world = World::answering(|head, _| ok(head)).await;
    for field in ["Authorization: Bearer ", "X-Api-Key: ", "X-Data: "] {
        world.raw("api.example", get("/v1", &format!("{field}{PLACEHOLDER}\r\n"))).await;
    }
    world.raw("api.example", get(&format!("/v1?key={PLACEHOLDER}"), "")).await;
    let text = format!(
        "{:?} {:?} {:?}",
        world.events.all(),
        world.gateway,
        serde_json::to_string(&world.events.all()).unwrap()
    );
    assert!(!text.contains(SECRET), "{text}");
    assert!(text.contains("/v1"));
}
