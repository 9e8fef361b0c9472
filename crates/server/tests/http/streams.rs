//! Commands and events as streams, through the typed client where it speaks them.

use api::{Command, Exec, ExecEnd, Outcome};
use bytes::Bytes;
use client::{Client, Output, Session};
use http_body_util::BodyExt as _;
use serde_json::json;

use crate::server::{LONG, Server};

fn client(server: &Server) -> Client {
    Client::builder().unix_socket(server.socket()).build().unwrap()
}

fn exec(argv: &[&str]) -> Exec {
    Exec::new(Command::Argv(argv.iter().map(|&word| word.into()).collect()))
}

async fn to_end(session: &mut Session) -> (Vec<u8>, Vec<u8>, ExecEnd) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        let next = tokio::time::timeout(LONG, session.output.next()).await.unwrap().unwrap();
        match next.expect("it has an end") {
            Output::Started(_) => {}
            Output::Stdout(bytes) => stdout.extend_from_slice(&bytes),
            Output::Stderr(bytes) => stderr.extend_from_slice(&bytes),
            Output::Exit(end) => return (stdout, stderr, end),
        }
    }
}

#[tokio::test]
async fn input_and_output_go_over_a_websocket() {
    let server = Server::start().await;
    let id = server.sandbox("default").await;
    let command = Exec { stdin: true, ..exec(&["cat"]) };
    let session = client(&server).exec_session(&id, &command).await.unwrap();
    let sent: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let writing = async {
        session.input.write(&sent).await.unwrap();
        session.input.end().await.unwrap();
    };
    let mut output = session.output;
    let reading = async {
        let mut got = Vec::new();
        loop {
            match output.next().await.unwrap().unwrap() {
                Output::Stdout(bytes) => got.extend_from_slice(&bytes),
                Output::Exit(end) => return (got, end),
                _ => {}
            }
        }
    };
    let ((), (got, end)) =
        tokio::time::timeout(LONG, async { tokio::join!(writing, reading) }).await.unwrap();
    assert_eq!(end.outcome, Outcome::Exited { code: 0 });
    assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
}

#[tokio::test]
async fn a_signal_reaches_a_command_over_a_websocket() {
    let server = Server::start().await;
    let id = server.sandbox("default").await;
    let mut session = client(&server).exec_session(&id, &exec(&["sleep"])).await.unwrap();
    session.input.signal(15).await.unwrap();
    let (_, _, end) = to_end(&mut session).await;
    assert_eq!(end.outcome, Outcome::Signaled { signal: 15 });
}

#[tokio::test]
async fn a_command_ends_with_the_client_that_wanted_it() {
    let server = Server::start().await;
    let id = server.sandbox("default").await;
    let command = Exec { name: Some("gone".into()), ..exec(&["sleep"]) };
    let mut session = client(&server).exec_session(&id, &command).await.unwrap();
    assert!(matches!(session.output.next().await.unwrap(), Some(Output::Started(_))));
    drop(session);
    let path = format!("/v1/sandboxes/{id}/processes/gone");
    let ended = async {
        loop {
            let process = server.get(&path).admin().send().await.json();
            if process["outcome"]["result"] != "running" {
                return;
            }
        }
    };
    tokio::time::timeout(LONG, ended).await.unwrap();
}

#[tokio::test]
async fn a_websocket_says_why_a_command_cannot_be_run() {
    let server = Server::start().await;
    let id = server.sandbox("default").await;
    assert_eq!(server.delete(&format!("/v1/sandboxes/{id}")).admin().send().await.status, 200);
    let session = client(&server).exec_session(&id, &exec(&["true"])).await;
    let error = match session {
        Err(error) => error.to_string(),
        Ok(mut session) => session.output.next().await.unwrap_err().to_string(),
    };
    assert!(error.contains("destroyed"), "{error}");
}

#[tokio::test]
async fn output_comes_as_events() {
    let server = Server::start().await;
    let id = server.sandbox("default").await;
    let exec = server.post(&format!("/v1/sandboxes/{id}/exec")).admin();
    let exec = exec.header("accept", "text/event-stream").json(&json!({"command": ["hello"]}));
    let reply = exec.send().await;
    assert_eq!((reply.status, reply.header("content-type")), (200, "text/event-stream"));
    let text = String::from_utf8(reply.body.to_vec()).unwrap();
    let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!((names[0], names[names.len() - 1]), ("started", "exit"), "{text}");
    assert!(names.contains(&"stdout") && names.contains(&"stderr"), "{text}");
    assert!(text.contains("\"data_base64\":\"aGVsbG8K\""), "{text}");
}

/// The events of a stream until one has this in it.
async fn until(body: &mut hyper::body::Incoming, text: &str) -> String {
    let mut all = String::new();
    while !all.contains(text) {
        let frame = tokio::time::timeout(LONG, body.frame()).await.expect(text);
        let bytes: Bytes = frame.expect("the stream goes on").unwrap().into_data().unwrap();
        all.push_str(std::str::from_utf8(&bytes).unwrap());
    }
    all
}

#[tokio::test]
async fn events_go_on_from_the_last_that_was_seen() {
    let server = Server::start().await;
    let watch = server.get("/v1/events").admin().header("accept", "text/event-stream");
    let mut events = watch.begin().await.into_body();
    let id = server.sandbox("default").await;
    let seen = until(&mut events, "event: sandbox.started").await;
    assert!(seen.contains(&id), "{seen}");
    let last = seen.lines().filter_map(|line| line.strip_prefix("id: ")).next_back().unwrap();
    drop(events);
    assert_eq!(server.delete(&format!("/v1/sandboxes/{id}")).admin().send().await.status, 200);
    let watch = server.get("/v1/events").admin().header("accept", "text/event-stream");
    let mut events = watch.header("last-event-id", last).begin().await.into_body();
    let seen = until(&mut events, "event: sandbox.destroyed").await;
    assert!(!seen.contains("event: sandbox.created"), "{seen}");
}

#[tokio::test]
async fn a_watch_tells_what_there_is_and_what_changes() {
    let server = Server::start().await;
    let first = server.sandbox("default").await;
    let watch = server.get("/v1/sandboxes").admin().header("accept", "text/event-stream");
    let mut changes = watch.begin().await.into_body();
    until(&mut changes, &first).await;
    let second = server.sandbox("default").await;
    until(&mut changes, &second).await;
}

#[tokio::test]
async fn a_workspace_hears_nothing_of_another() {
    let server = Server::start().await;
    let mine = server.token("mine", "viewer", Some("mine"), None).await;
    let watch = server.get("/v1/events").token(&mine).header("accept", "text/event-stream");
    let mut events = watch.begin().await.into_body();
    let theirs = server.sandbox("theirs").await;
    let own = server.sandbox("mine").await;
    let seen = until(&mut events, &own).await;
    assert!(!seen.contains(&theirs), "{seen}");
}

#[tokio::test]
async fn a_browser_can_open_a_terminal_by_its_query() {
    let server = Server::start().await;
    let id = server.sandbox("default").await;
    let upgrade = server
        .get(&format!("/v1/sandboxes/{id}/pty?cols=80&rows=24&cmd=cat"))
        .admin()
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    let plain = upgrade.send().await;
    plain.assert_problem(400, "invalid_request");
    let upgrade = server
        .get(&format!("/v1/sandboxes/{id}/pty?cols=80&rows=24&cmd=cat"))
        .admin()
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-protocol", "other, sandforge.exec.v1");
    let response = upgrade.begin().await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["sec-websocket-protocol"], "sandforge.exec.v1");
}
