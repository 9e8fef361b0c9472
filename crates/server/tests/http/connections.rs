//! Connections: who may have one, how long, and how they end.

use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::server::{LONG, Server};

#[tokio::test]
async fn the_unix_socket_needs_no_token_and_is_this_users_only() {
    let server = Server::start().await;
    let mode = std::fs::metadata(server.socket()).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
    let caller = server.get("/v1/whoami").unix().send().await.json();
    assert_eq!((&caller["kind"], &caller["role"]), (&json!("local"), &json!("owner")));
    // With a token, it is the token's.
    let viewer = server.token("viewer", "viewer", Some("w"), None).await;
    let caller = server.get("/v1/whoami").unix().token(&viewer).send().await.json();
    assert_eq!((&caller["kind"], &caller["workspace"]), (&json!("token"), &json!("w")));
    let wrong = server.get("/v1/whoami").unix().token("sf_live_wrong").send().await;
    wrong.assert_problem(401, "unauthenticated");
}

#[tokio::test]
async fn a_connection_carries_many_requests() {
    let server = Server::start().await;
    let mut stream = server.connect().await;
    for _ in 0..3 {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut answer = vec![0; 12];
        tokio::time::timeout(LONG, stream.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer, b"HTTP/1.1 200");
        let mut rest = Vec::new();
        while !rest.ends_with(b"}") {
            rest.push(stream.read_u8().await.unwrap());
        }
    }
}

#[tokio::test]
async fn an_answer_before_the_body_has_come_ends_no_connection() {
    let server = Server::start().await;
    let mut stream = server.connect().await;
    let target = "/v1/sandboxes/none/files?path=/x";
    let head = format!("PUT {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n");
    for _ in 0..3 {
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; 12];
        tokio::time::timeout(LONG, stream.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer, b"HTTP/1.1 401");
        while stream.read_u8().await.unwrap() != b'}' {}
        stream.write_all(b"hello").await.unwrap();
    }
}

#[tokio::test]
async fn a_full_server_takes_the_next_when_one_goes() {
    let server = Server::with(|config| config.limits.connections = 2).await;
    let first = server.connect().await;
    let _second = server.connect().await;
    let waiting = server.get("/healthz").send();
    tokio::pin!(waiting);
    let early = tokio::time::timeout(Duration::from_millis(200), &mut waiting).await;
    assert!(early.is_err(), "there was a third place");
    drop(first);
    assert_eq!(tokio::time::timeout(LONG, waiting).await.unwrap().status, 200);
}

#[tokio::test]
async fn what_is_being_answered_is_answered_before_the_end() {
    let server = Server::start().await;
    let id = server.sandbox("default").await;
    let exec = server.post(&format!("/v1/sandboxes/{id}/exec")).admin();
    let exec = exec.json(&json!({"command": ["sleep"], "name": "sleeper"})).send();
    let events = server.get("/v1/events").admin().header("accept", "text/event-stream");
    let events = events.begin().await;
    let signal = format!("/v1/sandboxes/{id}/processes/sleeper");
    let signaled = async {
        while server.get(&signal).admin().send().await.status != 200 {}
        let signal = server.post(&format!("{signal}/signal")).admin();
        assert_eq!(signal.json(&json!({"signal": 15})).send().await.status, 204);
    };
    let (result, ()) = tokio::join!(exec, signaled);
    assert_eq!(result.status, 200, "{result:?}");
    // An endless stream does not hold the end up.
    let began = std::time::Instant::now();
    server.shutdown(LONG).await;
    assert!(began.elapsed() < LONG);
    let end = http_body_util::BodyExt::collect(events.into_body());
    assert!(tokio::time::timeout(LONG, end).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_server_in_this_process_is_this_users() {
    let server = Server::start().await;
    let embedded = server::embed(server.manager.clone(), &server::Config::new("/nowhere"));
    let mut stream = embedded.connect();
    let request = b"GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(LONG, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"local\""), "{answer}");
}
