//! What somebody would try who should not get in, or who got in and wants more.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::server::{LONG, Server};

#[tokio::test]
async fn without_a_token_nothing_is_told() {
    let server = Server::start().await;
    for target in ["/v1/sandboxes", "/v1/nowhere", "/", "/v1/sandboxes/x/y/z", "/metrics"] {
        let reply = server.get(target).send().await;
        reply.assert_problem(401, "unauthenticated");
        assert!(reply.header("www-authenticate").starts_with("Bearer"));
    }
    // Not even that a path takes another method.
    server.patch("/v1/tokens").send().await.assert_problem(401, "unauthenticated");
}

#[tokio::test]
async fn a_wrong_token_is_refused() {
    let server = Server::start().await;
    let good = server.administrator.clone();
    let mut other = good.clone();
    other.pop();
    let end = if good.ends_with('A') { 'B' } else { 'A' };
    other.push(end);
    for token in [
        other.as_str(),
        "sf_live_",
        "sf_live_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "x",
        "",
        &"a".repeat(20_000),
    ] {
        let reply = server.get("/v1/sandboxes").token(token).send().await;
        reply.assert_problem(401, "unauthenticated");
        let said = String::from_utf8_lossy(&reply.body).into_owned();
        assert!(token.len() < 8 || !said.contains(token), "the token is in the answer");
    }
    for header in [format!("Basic {good}"), good.clone(), format!("Bearer {good} x")] {
        let reply = server.get("/v1/sandboxes").header("authorization", &header).send().await;
        reply.assert_problem(401, "unauthenticated");
    }
}

#[tokio::test]
async fn a_revoked_token_is_refused_at_once() {
    let server = Server::start().await;
    let made = server
        .post("/v1/tokens")
        .admin()
        .json(&json!({"name": "t", "role": "viewer", "workspace": "w"}));
    let made = made.send().await.json();
    let (id, secret) = (made["id"].as_str().unwrap(), made["secret"].as_str().unwrap());
    assert_eq!(server.get("/v1/whoami").token(secret).send().await.status, 200);
    assert_eq!(server.delete(&format!("/v1/tokens/{id}")).admin().send().await.status, 204);
    server.get("/v1/whoami").token(secret).send().await.assert_problem(401, "unauthenticated");
}

#[tokio::test]
async fn tokens_of_other_makers_are_refused() {
    let server = Server::start().await;
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({"sub": "root", "role": "owner", "exp": 4_000_000_000_u64});
    let expired = json!({"sub": "root", "role": "owner", "exp": 1});
    for (header, claims) in [
        (json!({"alg": "none", "typ": "JWT"}), &claims),
        (json!({"alg": "HS256", "typ": "JWT"}), &claims),
        (json!({"alg": "RS256", "kid": "x"}), &claims),
        (json!({"alg": "EdDSA", "kid": "x"}), &expired),
    ] {
        for signature in ["", "AAAA"] {
            let token = format!("{}.{}.{signature}", part(header.clone()), part(claims.clone()));
            let reply = server.get("/v1/sandboxes").token(&token).send().await;
            reply.assert_problem(401, "unauthenticated");
        }
    }
}

#[tokio::test]
async fn another_workspaces_sandbox_is_not_there() {
    let server = Server::start().await;
    let theirs = server.sandbox("theirs").await;
    let mine = server.token("mine", "owner", Some("mine"), None).await;
    for target in ["", "/stats", "/logs", "/processes", "/files?path=/etc/passwd"] {
        let target = format!("/v1/sandboxes/{theirs}{target}");
        server.get(&target).token(&mine).send().await.assert_problem(404, "not_found");
    }
    let target = format!("/v1/sandboxes/{theirs}");
    server.delete(&target).token(&mine).send().await.assert_problem(404, "not_found");
    let exec =
        server.post(&format!("{target}/exec")).token(&mine).json(&json!({"command": ["true"]}));
    exec.send().await.assert_problem(404, "not_found");
    let list = server.get("/v1/sandboxes").token(&mine).send().await.json();
    assert_eq!(list["items"], json!([]));
    // What is not there and what is another's look the same.
    let missing = server.get("/v1/sandboxes/sb-aaaaaaaaaaaaaaaa").token(&mine).send().await;
    missing.assert_problem(404, "not_found");
    let create = server.post("/v1/sandboxes").token(&mine).json(&json!({"workspace": "theirs"}));
    assert!([403, 404].contains(&create.send().await.status));
    assert_eq!(server.get(&target).admin().send().await.status, 200);
}

#[tokio::test]
async fn an_id_is_never_a_path() {
    let server = Server::start().await;
    for id in [
        "..",
        ".",
        "%2e%2e",
        "..%2f..%2fetc%2fpasswd",
        "%2fetc%2fpasswd",
        "a%00b",
        "%ff%fe",
        "..%5c..",
        "sb-%0d%0aX:1",
        "%252e%252e",
    ] {
        for target in [format!("/v1/sandboxes/{id}"), format!("/v1/sandboxes/{id}/stats")] {
            let reply = server.get(&target).admin().send().await;
            assert!(matches!(reply.problem().0, 400 | 404), "{target}: {reply:?}");
        }
    }
    let reply = server.get("/v1/../v1/sandboxes").admin().send().await;
    reply.assert_problem(404, "not_found");
    server.get("//v1/sandboxes").admin().send().await.assert_problem(404, "not_found");
}

#[tokio::test]
async fn a_file_path_is_absolute_and_without_nul() {
    let server = Server::start().await;
    let id = server.sandbox("default").await;
    for path in ["../etc/passwd", "etc/passwd", "", "/a%00b"] {
        let target = format!("/v1/sandboxes/{id}/files?path={path}");
        server.get(&target).admin().send().await.assert_problem(400, "invalid_request");
    }
    let target = format!("/v1/sandboxes/{id}/files?path=/a&path=/b");
    server.get(&target).admin().send().await.assert_problem(400, "invalid_request");
}

#[tokio::test]
async fn headers_that_may_be_there_once_are_not_there_twice() {
    let server = Server::start().await;
    let good = format!("Bearer {}", server.administrator);
    let twice = server.get("/v1/sandboxes").header("authorization", &good);
    let twice = twice.header("authorization", "Bearer sf_live_x").send().await;
    twice.assert_problem(400, "invalid_request");
    for name in ["content-type", "idempotency-key"] {
        let call = server.post("/v1/sandboxes").admin().header(name, "a").header(name, "b");
        call.send().await.assert_problem(400, "invalid_request");
    }
    let host = format!("localhost:{}", server.address().port());
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\nHost: evil.example\r\n\r\n");
    let answer = server.raw(&[request.as_bytes(), b"BYE\r\n\r\n"].concat()).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn oversized_headers_are_refused() {
    let server = Server::start().await;
    let line = format!("X-Long: {}\r\n", "a".repeat(200_000));
    let request = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{line}\r\n");
    let answer = server.raw(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431"));
    let many: String = (0..1000).map(|number| format!("X-{number}: 1\r\n")).collect();
    let request = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{many}\r\n");
    let answer = server.raw(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431"));
    let long = format!("/v1/sandboxes?name={}", "a".repeat(20_000));
    server.get(&long).admin().send().await.assert_problem(414, "uri_too_long");
}

#[tokio::test]
async fn two_lengths_of_one_body_are_refused() {
    let server = Server::start().await;
    let token = server.administrator.clone();
    let begin = format!(
        "POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    );
    let smuggled = format!(
        "GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    for headers in [
        "Content-Length: 2\r\nContent-Length: 3\r\n",
        "Content-Length: 2, 3\r\n",
        "Content-Length: +2\r\n",
        "Content-Length: 0x2\r\n",
        "Content-Length : 2\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
    ] {
        let answer = server.raw(format!("{begin}{headers}\r\n{{}}{smuggled}").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{headers:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{headers:?}: {answer}");
    }
}

#[tokio::test]
async fn what_follows_a_body_of_two_lengths_is_never_a_request() {
    let server = Server::start().await;
    let token = server.administrator.clone();
    let begin = format!(
        "POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    );
    let smuggled = format!(
        "GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    for headers in [
        format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", 5 + smuggled.len()),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {}\r\n", 5 + smuggled.len()),
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n".to_owned(),
    ] {
        let answer =
            server.raw(format!("{begin}{headers}\r\n0\r\n\r\n{smuggled}").as_bytes()).await;
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{headers:?}: {answer}");
        assert!(!answer.contains("whoami") && !answer.contains("\"role\""), "{answer}");
    }
}

#[tokio::test]
async fn a_head_that_drips_in_is_cut_off() {
    let server = Server::with(|config| config.limits.head = Duration::from_millis(300)).await;
    let mut stream = server.connect().await;
    let dripping = async {
        for byte in b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ".iter().cycle() {
            if stream.write_all(&[*byte]).await.is_err() || stream.flush().await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, dripping).await.expect("the server cuts it off");
    // Others are answered meanwhile and afterwards.
    assert_eq!(server.get("/healthz").send().await.status, 200);
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_given_up() {
    let server = Server::with(|config| config.limits.stall = Duration::from_millis(300)).await;
    let token = server.administrator.clone();
    let request = format!(
        "POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{{"
    );
    let answer = server.raw(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("request_timeout"), "{answer}");
}

#[tokio::test]
async fn whoever_does_not_speak_tls_is_cut_off() {
    let server = Server::with(|config| config.limits.handshake = Duration::from_millis(300)).await;
    for said in [b"".as_slice(), b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
        let mut stream = tokio::net::TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(said).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(LONG, stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "the server cuts it off");
        assert!(!answer.starts_with(b"HTTP/"));
    }
}

#[tokio::test]
async fn a_websocket_needs_a_token_too() {
    let server = Server::start().await;
    let id = server.sandbox("default").await;
    for path in ["exec", "pty", "processes/p/attach"] {
        let upgrade = server
            .get(&format!("/v1/sandboxes/{id}/{path}"))
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-protocol", "sandforge.exec.v1");
        upgrade.send().await.assert_problem(401, "unauthenticated");
    }
}

#[tokio::test]
async fn a_websocket_of_another_origin_is_refused() {
    let server = Server::start().await;
    let id = server.sandbox("default").await;
    let upgrade = server
        .get(&format!("/v1/sandboxes/{id}/exec"))
        .admin()
        .header("origin", "https://evil.example")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-protocol", "sandforge.exec.v1");
    upgrade.send().await.assert_problem(403, "origin_refused");
}

#[tokio::test]
async fn a_page_of_another_site_gets_nothing() {
    let server = Server::start().await;
    for origin in ["https://evil.example", "null", "http://localhost", "https://localhost"] {
        let reply = server.get("/v1/sandboxes").admin().header("origin", origin).send().await;
        reply.assert_problem(403, "origin_refused");
        assert_eq!(reply.header("access-control-allow-origin"), "");
        let preflight = server
            .call(http::Method::OPTIONS, "/v1/sandboxes")
            .header("origin", origin)
            .header("access-control-request-method", "POST");
        preflight.send().await.assert_problem(403, "origin_refused");
    }
    let rebound = server.get("/healthz").header("host", "evil.example:8585").send().await;
    rebound.assert_problem(421, "host_refused");
    let unix = server.get("/v1/sandboxes").unix().header("host", "evil.example").send().await;
    unix.assert_problem(421, "host_refused");
}

#[tokio::test]
async fn a_page_that_is_configured_may_read_the_answer() {
    let server = Server::with(|config| config.origins = vec!["https://app.example".into()]).await;
    let origin = "https://app.example";
    let reply = server.get("/v1/sandboxes").admin().header("origin", origin).send().await;
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, origin));
    let preflight = server
        .call(http::Method::OPTIONS, "/v1/sandboxes")
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .send()
        .await;
    assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (204, origin));
    // It is let in to knock, not to pass.
    let reply = server.get("/v1/sandboxes").header("origin", origin).send().await;
    reply.assert_problem(401, "unauthenticated");
}

#[tokio::test]
async fn huge_json_is_not_read() {
    let server = Server::start().await;
    let huge = format!("{{\"name\": \"{}\"}}", "a".repeat(5 << 20));
    let reply = server.post("/v1/sandboxes").unix().bytes("application/json", huge).send().await;
    reply.assert_problem(413, "too_large");
}

#[tokio::test]
async fn deeply_nested_json_is_refused() {
    let server = Server::start().await;
    for (open, close) in [("[", "]"), ("{\"labels\":", "}")] {
        let nested = format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
        let call = server.post("/v1/sandboxes").admin().bytes("application/json", nested);
        call.send().await.assert_problem(400, "invalid_request");
    }
}

#[tokio::test]
async fn what_is_no_json_is_refused() {
    let server = Server::start().await;
    for body in [
        "{",
        "nul",
        "{\"cpu\": 1}x",
        "{\"cpu\": 1e400}",
        "\"\\ud800\"",
        "{\"cpu\":1,\"cpu\":2}",
        "{\"unknown\":1}",
        "\u{feff}{}",
    ] {
        let call = server.post("/v1/sandboxes").admin().bytes("application/json", body.to_owned());
        call.send().await.assert_problem(400, "invalid_request");
    }
    let xml = server.post("/v1/sandboxes").admin().bytes("text/xml", "<a/>");
    xml.send().await.assert_problem(415, "unsupported_media_type");
}

#[tokio::test]
async fn whoever_asks_too_often_is_told_when_to_come_back() {
    let server = Server::with(|config| {
        config.limits.requests_per_second = 1;
        config.limits.burst = 3;
    })
    .await;
    let token = server.token("busy", "viewer", Some("w"), None).await;
    let mut last = server.get("/v1/whoami").token(&token).send().await;
    for _ in 0..4 {
        last = server.get("/v1/whoami").token(&token).send().await;
    }
    last.assert_problem(429, "rate_limited");
    assert!(last.header("retry-after").parse::<u64>().unwrap() >= 1);
    // Others are not meant, nor is the user of this host.
    assert_eq!(server.get("/v1/whoami").admin().send().await.status, 200);
    assert_eq!(server.get("/v1/whoami").unix().send().await.status, 200);
}

#[tokio::test]
async fn whoever_guesses_tokens_is_slowed_down_and_harms_nobody_else() {
    let server = Server::with(|config| config.limits.failures_per_second = 2).await;
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(server.get("/v1/whoami").token("sf_live_guess").send().await.status);
    }
    assert!(statuses.contains(&401) && statuses.contains(&429), "{statuses:?}");
    assert_eq!(server.get("/v1/whoami").admin().send().await.status, 200);
}
