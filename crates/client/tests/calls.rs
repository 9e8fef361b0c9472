//! What the client sends, and what it makes of the answers.

mod support;

use std::collections::BTreeSet;

use api::{
    ApplyChanges, AttachQuery, AuditQuery, AuditRange, ChangesQuery, Command, CreateKey,
    CreateSandbox, CreateSnapshot, CreateToken, CreateVolume, CreateWebhook, DeliveryQuery,
    DiffQuery, DiscardChanges, EventQuery, Exec, ForkSandbox, ListFilesQuery, ListSandboxes,
    LogQuery, MakeDirectory, Mount, MountMode, MountQuery, MoveFile, NetworkMode, PageQuery,
    PathQuery, PolicyCheck, PolicyRequest, PtyQuery, ROUTES, ReadQuery, RestoreSnapshot, Role,
    Route, SecretQuery, SetSecret, SnapshotQuery, StatQuery, TarInQuery, TokenQuery, UpdateSandbox,
    VolumeQuery, WatchQuery, WindowSize, WriteQuery,
};
use client::{Client, Error, Output, Retries};
use http::Request;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::json;
use support::{Seen, answer, in_process, json, seen};

fn problem(status: u16, code: &str) -> serde_json::Value {
    json!({
        "type": format!("urn:sandforge:problem:{code}"), "title": "t", "status": status,
        "detail": "d", "code": code,
    })
}

fn create_token() -> CreateToken {
    CreateToken {
        name: "ci".into(),
        role: Role::Viewer,
        workspace: None,
        operations: None,
        expires_in_sec: None,
    }
}

fn line(text: &str) -> Exec {
    Exec::new(Command::Shell(text.into()))
}

fn path(path: &str) -> String {
    path.to_owned()
}

/// The route that a request is for.
fn routed(method: &str, path: &str) -> Option<&'static Route> {
    let fits = |route: &&Route| {
        let (mut template, mut segments) = (route.path.split('/'), path.split('/'));
        let same = template.by_ref().zip(segments.by_ref()).all(|(template, segment)| {
            template == segment || (template.starts_with('{') && !segment.is_empty())
        });
        route.method.as_str() == method
            && same
            && route.path.split('/').count() == path.split('/').count()
    };
    // A literal segment wins over a parameter.
    ROUTES.iter().filter(fits).min_by_key(|route| route.parameters().count())
}

/// Calls every method; the server's answer is of no use to most.
async fn call_everything(client: &Client) {
    let page = PageQuery::default();
    let exec = line("true");
    let _ = client.health().await;
    let _ = client.ready().await;
    let _ = client.openapi().await;
    let _ = client.version().await;
    let _ = client.metrics().await;
    let _ = client.whoami().await;
    let _ = client.doctor().await;
    let _ = client.create_sandbox(&CreateSandbox::default()).await;
    let _ = client.list_sandboxes(&ListSandboxes::default()).await;
    let _ = client.watch_sandboxes(&ListSandboxes::default()).await;
    let _ = client.get_sandbox("s").await;
    let _ = client.update_sandbox("s", &UpdateSandbox::default(), Some(3)).await;
    let _ = client.delete_sandbox("s", true).await;
    let _ = client.start_sandbox("s").await;
    let _ = client.stop_sandbox("s").await;
    let _ = client.pause_sandbox("s").await;
    let _ = client.resume_sandbox("s").await;
    let _ = client.sandbox_stats("s").await;
    let _ = client.watch_stats("s").await;
    let _ = client.sandbox_logs("s", &LogQuery::default()).await;
    let _ = client.follow_logs("s", &LogQuery::default()).await;
    let _ = client.exec("s", &exec).await;
    let _ = client.exec_detached("s", &exec).await;
    let _ = client.exec_stream("s", &exec).await;
    let _ = client.exec_session("s", &exec).await;
    let _ = client.pty_session("s", &PtyQuery::default(), &exec).await;
    let _ = client.list_processes("s", &page).await;
    let _ = client.get_process("s", "p").await;
    let _ = client.process_output("s", "p", &AttachQuery::default()).await;
    let _ = client.follow_process("s", "p", &AttachQuery::default()).await;
    let _ = client.attach_session("s", "p", &AttachQuery::default()).await;
    let _ = client.process_stdin("s", "p", "x", true).await;
    let _ = client.signal_process("s", "p", 15).await;
    let _ = client.resize_process("s", "p", WindowSize { rows: 1, cols: 1 }).await;
    let _ = client.read_file("s", &ReadQuery { path: path("/a"), ..ReadQuery::default() }).await;
    let _ = client
        .write_file("s", &WriteQuery { path: path("/a"), ..WriteQuery::default() }, "x")
        .await;
    let mount = Mount::new("/srv/data", "/data", MountMode::Live, true);
    let _ = client.create_snapshot("s", &CreateSnapshot::default()).await;
    let _ = client.fork_sandbox("s", &ForkSandbox::default()).await;
    let _ = client.hibernate_sandbox("s").await;
    let of_own = SnapshotQuery::default();
    let _ = client.list_snapshots(&of_own).await;
    let _ = client.get_snapshot("sn", &of_own).await;
    let _ = client.restore_snapshot("sn", &of_own, &RestoreSnapshot::default()).await;
    let _ = client.remove_snapshot("sn", &of_own).await;
    let _ = client.attach_mount("s", &mount).await;
    let _ = client.detach_mount("s", &MountQuery { guest_path: "/data".into() }).await;
    let _ = client.remove_file("s", &PathQuery { path: path("/a"), ..PathQuery::default() }).await;
    let _ = client.stat_file("s", &StatQuery { path: path("/a"), ..StatQuery::default() }).await;
    let query = ListFilesQuery { path: path("/a"), ..ListFilesQuery::default() };
    let _ = client.list_files("s", &query).await;
    let _ =
        client.watch_files("s", &WatchQuery { path: path("/a"), ..WatchQuery::default() }).await;
    let directory = MakeDirectory { path: "/a".into(), parents: false, mode: None, user: None };
    let _ = client.make_directory("s", &directory).await;
    let _ = client.list_changes().await;
    let _ = client.sandbox_changes("s", &ChangesQuery::default()).await;
    let _ = client.diff_changes("s", &DiffQuery::default()).await;
    let _ = client.apply_changes("s", &ApplyChanges::default()).await;
    let _ = client.discard_changes("s", &DiscardChanges::default()).await;
    let moved = MoveFile { from: "/a".into(), to: "/b".into(), replace: false, user: None };
    let _ = client.move_file("s", &moved).await;
    let _ = client.pack_files("s", &PathQuery { path: path("/a"), ..PathQuery::default() }).await;
    let query = TarInQuery { path: path("/a"), ..TarInQuery::default() };
    let _ = client.unpack_files("s", &query, "x").await;
    let _ = client.list_events(&EventQuery::default()).await;
    let _ = client.follow_events(&EventQuery::default()).await;
    let _ = client.list_images(&page).await;
    let _ = client.create_token(&create_token()).await;
    let _ = client.list_tokens(&TokenQuery::default()).await;
    let _ = client.revoke_token("t").await;
    let name = "data".to_owned();
    let volume = CreateVolume { name, size_bytes: None, workspace: None };
    let _ = client.create_volume(&volume).await;
    let _ = client.list_volumes(&VolumeQuery::default()).await;
    let _ = client.get_volume("data", &VolumeQuery::default()).await;
    let _ = client.remove_volume("data", &VolumeQuery::default()).await;
    let secret = SetSecret { env: Some("TOKEN".into()), ..SetSecret::default() };
    let _ = client.list_secrets(&SecretQuery::default()).await;
    let _ = client.set_secret("github", &secret).await;
    let _ = client.set_sandbox_secret("s", "github", &secret).await;
    let _ = client.remove_secret("github", &SecretQuery::default()).await;
    let _ = client.remove_sandbox_secret("s", "github").await;
    let _ = client.reset_secrets().await;
    let key = CreateKey {
        name: "k".into(),
        public_key: "00".repeat(32),
        subject: None,
        workspace: None,
        expires_in_sec: None,
    };
    let _ = client.create_key(&key).await;
    let _ = client.list_keys(&TokenQuery::default()).await;
    let _ = client.revoke_key("k").await;
    let _ = client.show_policy().await;
    let check = PolicyCheck { request: PolicyRequest::Network(NetworkMode::Open), subject: None };
    let _ = client.check_policy(&check).await;
    let _ = client.reload_policy().await;
    let _ = client.list_audit(&AuditQuery::default()).await;
    let _ = client.export_audit(&AuditRange::default()).await;
    let _ = client.verify_audit(&AuditRange::default()).await;
    let _ = client.checkpoint_audit().await;
    let webhook = CreateWebhook {
        url: "https://example.org".into(),
        kinds: Vec::new(),
        name: None,
        workspace: None,
    };
    let _ = client.create_webhook(&webhook).await;
    let _ = client.list_webhooks(&page).await;
    let _ = client.get_webhook("w").await;
    let _ = client.delete_webhook("w").await;
    let _ = client.list_deliveries("w", &DeliveryQuery::default()).await;
    let _ = client.redeliver("w", "d").await;
}

#[tokio::test]
async fn every_route_has_a_method_that_calls_it_as_it_wants_to_be() {
    let record: Seen<(String, String, bool)> = Seen::default();
    let into = record.clone();
    let client = in_process(move |request: Request<Incoming>| {
        let keyed = request.headers().contains_key("idempotency-key");
        let called = (request.method().to_string(), request.uri().path().to_owned(), keyed);
        into.lock().unwrap().push(called);
        async { json(200, &json!({})) }
    })
    .retries(Retries::NONE)
    .build()
    .unwrap();
    call_everything(&client).await;
    let mut called = BTreeSet::new();
    for (method, path, keyed) in seen(&record) {
        let route = routed(&method, &path).unwrap_or_else(|| panic!("{method} {path} is no route"));
        assert_eq!(keyed, route.idempotent, "{route:?}");
        called.insert(route.id);
    }
    let all: BTreeSet<_> = ROUTES.iter().map(|route| route.id).collect();
    assert_eq!(called, all);
}

/// Answers the first requests with `status` and `code`, the others with an empty page.
fn refusing(
    times: usize,
    status: u16,
    code: &'static str,
    record: &Seen<Option<String>>,
) -> client::Builder {
    let record = record.clone();
    in_process(move |request: Request<Incoming>| {
        let key = request.headers().get("idempotency-key");
        let key = key.map(|key| key.to_str().unwrap().to_owned());
        record.lock().unwrap().push(key);
        let refuse = record.lock().unwrap().len() <= times;
        async move {
            if refuse {
                let mut answer = json(status, &problem(status, code));
                answer.headers_mut().insert("retry-after", 0.into());
                return answer;
            }
            json(200, &json!({"items": []}))
        }
    })
}

#[tokio::test]
async fn a_busy_server_is_asked_again() {
    let record = Seen::default();
    let client = refusing(2, 503, "busy", &record).build().unwrap();
    client.list_sandboxes(&ListSandboxes::default()).await.unwrap();
    assert_eq!(seen(&record).len(), 3);
}

#[tokio::test]
async fn a_repeated_post_has_the_same_key_and_the_next_one_another() {
    let record = Seen::default();
    let client = refusing(2, 503, "busy", &record).build().unwrap();
    for _ in 0..2 {
        // The answer is no sandbox, which is not what this is about.
        client.create_sandbox(&CreateSandbox::default()).await.unwrap_err();
    }
    let keys = seen(&record);
    assert_eq!(keys.len(), 4);
    assert!(keys[0].as_ref().is_some_and(|key| key.len() >= 16), "{keys:?}");
    assert_eq!((&keys[1], &keys[2]), (&keys[0], &keys[0]));
    assert_ne!(keys[2], keys[3]);
}

#[tokio::test]
async fn what_could_be_done_twice_is_sent_once() {
    let record = Seen::default();
    let client = refusing(1, 503, "busy", &record).build().unwrap();
    let error = client.create_token(&create_token()).await.unwrap_err();
    assert_eq!(error.code(), Some(api::Code::Busy));
    assert_eq!(seen(&record), [None]);
}

#[tokio::test]
async fn a_refusal_that_will_not_pass_is_told_at_once() {
    let record = Seen::default();
    let client = refusing(9, 404, "not_found", &record).build().unwrap();
    let error = client.get_sandbox("x").await.unwrap_err();
    assert_eq!(error.code(), Some(api::Code::NotFound));
    assert_eq!(error.to_string(), "d");
    assert_eq!(seen(&record).len(), 1);
}

#[tokio::test]
async fn a_server_that_wants_more_patience_than_we_have_is_left() {
    let record: Seen<()> = Seen::default();
    let into = record.clone();
    let client = in_process(move |_| {
        into.lock().unwrap().push(());
        async {
            let mut answer = json(429, &problem(429, "rate_limited"));
            answer.headers_mut().insert("retry-after", 3600.into());
            answer
        }
    });
    let error = client.build().unwrap().whoami().await.unwrap_err();
    assert_eq!(error.problem().and_then(api::Problem::retry_after_sec), Some(3600));
    assert_eq!(seen(&record).len(), 1);
}

#[tokio::test]
async fn a_connection_that_breaks_is_made_again_for_what_reads() {
    let record: Seen<()> = Seen::default();
    let into = record.clone();
    let client = Client::builder()
        .streams(move || {
            let (ours, theirs) = tokio::io::duplex(1 << 10);
            into.lock().unwrap().push(());
            // The first two go before they have answered.
            if into.lock().unwrap().len() > 2 {
                tokio::spawn(support::serve(theirs, |_| async {
                    json(200, &json!({"items": []}))
                }));
            }
            async { Ok(ours) }
        })
        .build()
        .unwrap();
    client.list_sandboxes(&ListSandboxes::default()).await.unwrap();
    assert_eq!(seen(&record).len(), 3);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_with_its_place() {
    let client = Client::builder().unix_socket("/nonexistent/api.sock").retries(Retries::NONE);
    let error = client.build().unwrap().health().await.unwrap_err();
    assert!(error.is_connect());
    assert_eq!(error.to_string(), "cannot reach the server at /nonexistent/api.sock");
}

#[tokio::test]
async fn a_server_that_is_not_ready_says_why() {
    let client = in_process(|_| async {
        let checks = json!([{"name": "store", "ok": false, "detail": "full"}]);
        json(503, &json!({"ready": false, "checks": checks}))
    });
    let ready = client.build().unwrap().ready().await.unwrap();
    assert!(!ready.ready && ready.checks[0].name == "store");
}

#[tokio::test]
async fn the_token_is_sent_and_never_shown() {
    let record: Seen<String> = Seen::default();
    let into = record.clone();
    let client = in_process(move |request: Request<Incoming>| {
        let header = request.headers()["authorization"].to_str().unwrap().to_owned();
        into.lock().unwrap().push(header);
        async { answer(500, "text/plain", "down") }
    })
    .token("sf_live_canary")
    .build()
    .unwrap();
    let error = client.whoami().await.unwrap_err();
    assert_eq!(seen(&record), ["Bearer sf_live_canary"]);
    assert!(!format!("{client:?} {error:?} {error}").contains("canary"));
}

#[tokio::test]
async fn an_answer_that_is_no_answer_is_told() {
    let client = in_process(|_| async { answer(502, "text/html", "<h1>Bad gateway</h1>") });
    let error = client.build().unwrap().whoami().await.unwrap_err();
    assert!(matches!(error, Error::Malformed(_)), "{error:?}");
    assert!(error.to_string().contains("502"), "{error}");
}

#[tokio::test]
async fn events_come_as_they_are_sent() {
    let end = json!({
        "process": "p", "outcome": {"result": "exited", "code": 3}, "exit_code": 3,
        "truncated": {"stdout": 0, "stderr": 0}, "duration_ms": 1, "cpu_ms": 1,
        "memory_peak_bytes": 1, "task_digest": "d",
    });
    let text = format!(
        "event: started\ndata: {}\n\n: alive\n\nevent: stdout\ndata: {}\n\n\
         event: stderr\ndata: {}\n\nevent: exit\ndata: {end}\n\n",
        json!({"process": "p", "task_digest": "d"}),
        json!({"offset": 0, "data_base64": "aGk="}),
        json!({"offset": 0, "data_base64": "/w=="}),
    );
    let client = in_process(move |request: Request<Incoming>| {
        assert_eq!(request.headers()["accept"], "text/event-stream");
        let text = text.clone();
        async { answer(200, "text/event-stream", text) }
    });
    let client = client.build().unwrap();
    let mut events = client.exec_stream("s", &line("x")).await.unwrap();
    let mut all = Vec::new();
    while let Some(event) = events.next().await.unwrap() {
        all.push(event);
    }
    assert!(matches!(&all[0], Output::Started(started) if started.process == "p"));
    assert_eq!(all[1], Output::Stdout("hi".into()));
    assert_eq!(all[2], Output::Stderr(b"\xff"[..].into()));
    assert!(matches!(&all[3], Output::Exit(end) if end.exit_code == Some(3)));
}

#[tokio::test]
async fn a_problem_within_a_stream_is_an_error() {
    let text = format!("event: error\ndata: {}\n\n", problem(502, "guest_failed"));
    let client = in_process(move |_| {
        let text = text.clone();
        async { answer(200, "text/event-stream", text) }
    });
    let client = client.build().unwrap();
    let mut events = client.watch_stats("s").await.unwrap();
    assert_eq!(events.next().await.unwrap_err().code(), Some(api::Code::GuestFailed));
}

#[tokio::test]
async fn a_change_can_be_tied_to_a_version() {
    let record: Seen<String> = Seen::default();
    let into = record.clone();
    let client = in_process(move |request: Request<Incoming>| {
        let header = request.headers()["if-match"].to_str().unwrap().to_owned();
        into.lock().unwrap().push(header);
        async { json(412, &problem(412, "precondition_failed")) }
    });
    let client = client.build().unwrap();
    let error = client.update_sandbox("s", &UpdateSandbox::default(), Some(7)).await.unwrap_err();
    assert_eq!(error.code(), Some(api::Code::PreconditionFailed));
    assert_eq!(seen(&record), ["\"7\""]);
}

#[tokio::test]
async fn a_part_of_a_file_is_asked_for_by_its_bytes() {
    let client = in_process(|request: Request<Incoming>| {
        assert_eq!(request.headers()["range"], "bytes=2-3");
        assert_eq!(request.uri().query(), Some("path=%2Fa+b"));
        async {
            let mut answer = answer(206, "application/octet-stream", "cd");
            answer.headers_mut().insert("content-range", "bytes 2-3/26".parse().unwrap());
            answer
        }
    });
    let client = client.build().unwrap();
    let query = ReadQuery { path: path("/a b"), ..ReadQuery::default() };
    let part = client.read_file_range("s", &query, 2, Some(3)).await.unwrap();
    assert_eq!((part.length(), part.whole_length()), (Some(2), Some(26)));
    assert_eq!(part.bytes(10).await.unwrap(), "cd");
}

#[tokio::test]
async fn what_is_longer_than_its_limit_is_not_kept() {
    let client = in_process(|_| async { answer(200, "application/octet-stream", "abc") });
    let client = client.build().unwrap();
    let query = ReadQuery { path: path("/a"), ..ReadQuery::default() };
    let file = client.read_file("s", &query).await.unwrap();
    assert!(file.bytes(2).await.is_err());
}

#[tokio::test]
async fn an_upload_is_read_as_fast_as_it_is_taken() {
    let (taken, mut wait) = tokio::sync::mpsc::channel::<()>(1);
    let wait_for = std::sync::Arc::new(tokio::sync::Notify::new());
    let go = wait_for.clone();
    let client = in_process(move |request: Request<Incoming>| {
        let (go, taken) = (go.clone(), taken.clone());
        async move {
            let mut body = request.into_body();
            taken.send(()).await.unwrap();
            go.notified().await;
            let mut bytes = 0;
            while let Some(frame) = body.frame().await {
                bytes += frame.unwrap().into_data().unwrap().len();
            }
            json(200, &json!({"bytes": bytes, "entries": 1}))
        }
    });
    let client = client.build().unwrap();
    let given = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = given.clone();
    let pieces = futures_util::stream::iter((0..1000).map(move |_| {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(bytes::Bytes::from_static(&[7; 1024]))
    }));
    let query = TarInQuery { path: path("/a"), ..TarInQuery::default() };
    let sending = tokio::spawn(async move {
        client.unpack_files("s", &query, client::Upload::stream(pieces)).await
    });
    wait.recv().await.unwrap();
    // This runtime has one thread: every task has had its turns.
    for _ in 0..10_000 {
        tokio::task::yield_now().await;
    }
    assert!(given.load(std::sync::atomic::Ordering::Relaxed) < 700);
    wait_for.notify_one();
    assert_eq!(sending.await.unwrap().unwrap().bytes, 1000 * 1024);
}

#[tokio::test]
async fn what_cannot_be_read_is_told_in_its_own_words() {
    let client = in_process(|request: Request<Incoming>| async {
        let _ = request.into_body().collect().await;
        json(200, &json!({"bytes": 0, "entries": 0}))
    });
    let client = client.build().unwrap();
    let broken = futures_util::stream::iter([
        Ok(bytes::Bytes::from_static(b"x")),
        Err(std::io::Error::other("the disk is gone")),
    ]);
    let query = WriteQuery { path: path("/a"), ..WriteQuery::default() };
    let error = client.write_file("s", &query, client::Upload::stream(broken)).await.unwrap_err();
    let Error::Body(cause) = error else { panic!("{error:?}") };
    assert_eq!(cause.to_string(), "the disk is gone");
}

#[tokio::test]
async fn what_is_signed_is_what_arrives_even_where_it_was_a_stream() {
    use access::signature::{BodyDigest, Parts, Presented, public_key};

    let secret = client::RequestKey::generate().unwrap();
    let key = client::RequestKey::new("key-1", &secret);
    let public = public_key(&key.public_hex()).unwrap();
    let client = in_process(move |request: Request<Incoming>| async move {
        let header = |name: &str| {
            request.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        let (digest, input) = (header("content-digest"), header("signature-input"));
        let (signature, idempotency) = (header("signature"), header("idempotency-key"));
        let presented = Presented::parse(digest.as_deref(), input.as_deref(), signature.as_deref());
        let method = request.method().to_string();
        let (path, query) = (request.uri().path().to_owned(), request.uri().query());
        let parts =
            Parts { method: &method, path: &path, query, idempotency_key: idempotency.as_deref() };
        let now = api::Timestamp::now();
        let verified = presented.unwrap().unwrap().verify(&parts, Some(&public), now).unwrap();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        verified.check_body(&BodyDigest::of(&body)).unwrap();
        json(200, &json!({"bytes": body.len(), "entries": 0, "items": []}))
    })
    .sign_with(key)
    .build()
    .unwrap();
    client
        .list_sandboxes(&ListSandboxes { name: Some("a".into()), ..Default::default() })
        .await
        .unwrap();
    let _ = client.create_sandbox(&CreateSandbox::default()).await;
    let query = WriteQuery { path: path("/a"), ..WriteQuery::default() };
    let content = client::Upload::reader(std::io::Cursor::new(vec![7; 300_000]));
    assert_eq!(client.write_file("s", &query, content).await.unwrap().bytes, 300_000);
}
