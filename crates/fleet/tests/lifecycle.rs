//! One sandbox's life, on the mock engine.

mod support;

use std::time::Duration;

use api::{
    AuditQuery, Change, Code, EventKind, EventQuery, ListSandboxes, LogQuery, Operation, Outcome,
    Role, State, UpdateSandbox, WhenIdle, WhenTimedOut,
};
use fleet::Error;
use support::{Place, argv, by, create, member, mock, request, root, soon};

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_is_made_used_and_destroyed_and_all_of_it_is_on_record() {
    let place = Place::new();
    let manager = place.open(mock()).await;

    let sandbox = create(&manager).await;
    assert_eq!(sandbox.state, State::Ready);
    assert_eq!(sandbox.engine.as_deref(), Some("mock"));
    let task = manager.exec(&root(), &sandbox.id, argv(&["greet"]), &by()).await.unwrap();
    let result = task.collect(1 << 20).await.unwrap();
    assert_eq!((result.stdout.as_str(), result.stderr.as_str()), ("hello\n", "well\n"));
    assert_eq!(result.end.exit_code, Some(0));
    assert_eq!(result.end.task_digest.len(), 64);
    let gone = manager.delete(&root(), &sandbox.id, true, &by()).await.unwrap();
    assert_eq!(gone.state, State::Destroyed);
    assert_eq!(place.machines(), 0);

    let events = manager.events(&root(), &EventQuery::default()).await.unwrap();
    let kinds: Vec<EventKind> = events.items.iter().map(|event| event.kind).collect();
    assert_eq!(
        kinds,
        [
            EventKind::SandboxCreated,
            EventKind::SandboxStarted,
            EventKind::TaskStarted,
            EventKind::TaskEnded,
            EventKind::SandboxDestroyed,
        ]
    );
    let query = AuditQuery { sandbox: Some(sandbox.id.clone()), ..AuditQuery::default() };
    let audit = manager.audit(&root(), &query, &by()).await.unwrap();
    let told: Vec<(&str, &str)> = audit
        .items
        .iter()
        .map(|record| (record.operation.as_str(), record.outcome.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("sandbox_create", "accepted"),
            ("sandbox_start", "ready"),
            ("exec", "accepted"),
            ("exec", "ended"),
            ("sandbox_delete", "accepted"),
            ("sandbox_delete", "destroyed"),
        ]
    );
    let digest = audit.items[3].task_digest.as_deref();
    assert_eq!(digest, Some(result.end.task_digest.as_str()));
    assert!(audit.items[0].rule.is_some() && audit.items[0].generation.is_some());
    manager.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_ends_in_destroyed_from_every_state() {
    let place = Place::new();
    let mut config = place.config();
    config.max_booting = 1;
    let manager = place.open_with(config, mock().boot_takes(Duration::from_millis(150))).await;
    let unwaited = || api::CreateSandbox { wait: false, ..request() };

    // Provisioning, and behind it requested.
    let first = manager.create(&root(), unwaited(), &by()).await.unwrap().id;
    let second = manager.create(&root(), unwaited(), &by()).await.unwrap().id;
    soon(async || manager.get(&root(), &first).await.unwrap().state == State::Provisioning).await;
    assert_eq!(manager.get(&root(), &second).await.unwrap().state, State::Requested);
    for id in [&first, &second] {
        let gone = manager.delete(&root(), id, true, &by()).await.unwrap();
        assert_eq!(gone.state, State::Destroyed);
    }

    // Ready, executing, paused, stopped, failed, destroyed.
    let ready = create(&manager).await.id;
    let executing = create(&manager).await.id;
    let task = manager.exec(&root(), &executing, argv(&["serve"]), &by()).await.unwrap();
    assert_eq!(manager.get(&root(), &executing).await.unwrap().state, State::Executing);
    let paused = create(&manager).await.id;
    let state = manager.pause(&root(), &paused, &by()).await.unwrap().state;
    assert_eq!(state, State::Paused);
    let stopped = create(&manager).await.id;
    let state = manager.stop(&root(), &stopped, true, &by()).await.unwrap().state;
    assert_eq!(state, State::Stopped);
    let unmakeable = api::CreateSandbox { cpu: Some(2), wait: false, ..request() };
    let failed = manager.create(&root(), unmakeable, &by()).await.unwrap().id;
    soon(async || manager.get(&root(), &failed).await.unwrap().state == State::Failed).await;
    for id in [&ready, &executing, &paused, &stopped, &failed, &ready] {
        let gone = manager.delete(&root(), id, true, &by()).await.unwrap();
        assert_eq!(gone.state, State::Destroyed, "{id}");
    }
    let end = task.end().await;
    assert!(end.is_err(), "its sandbox went: {end:?}");
    assert_eq!(place.machines(), 0);
    assert_eq!(manager.metrics().tasks, 0);
    soon(async || manager.metrics().sandboxes.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_sandbox_starts_anew_under_its_name() {
    let place = Place::new();
    let manager = place.open(mock()).await;
    let named = api::CreateSandbox { name: Some("box".into()), ..request() };
    let made = manager.create(&root(), named.clone(), &by()).await.unwrap();

    let again = manager.create(&root(), named, &by()).await.unwrap_err();
    assert_eq!(again.problem().code, Code::NameTaken);
    manager.stop(&root(), "box", true, &by()).await.unwrap();
    assert_eq!(place.machines(), 0);
    let refused = manager.exec(&root(), "box", argv(&["true"]), &by()).await.unwrap_err();
    assert_eq!(refused.problem().code, Code::WrongState);
    let started = manager.start(&root(), "box", true, &by()).await.unwrap();
    assert_eq!((started.state, started.id), (State::Ready, made.id));
    let task = manager.exec(&root(), "box", argv(&["true"]), &by()).await.unwrap();
    assert_eq!(task.end().await.unwrap().exit_code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_whose_time_is_up_goes_as_it_was_asked_to() {
    let place = Place::new();
    let manager = place.open(mock()).await;
    let timed = |on_timeout| api::CreateSandbox { timeout_sec: Some(1), on_timeout, ..request() };
    let deleted = manager.create(&root(), timed(WhenTimedOut::Delete), &by()).await.unwrap();
    let stopped = manager.create(&root(), timed(WhenTimedOut::Stop), &by()).await.unwrap();
    let restarted = manager.create(&root(), timed(WhenTimedOut::Restart), &by()).await.unwrap();
    let idle =
        api::CreateSandbox { idle_timeout_sec: Some(1), on_idle: WhenIdle::Stop, ..request() };
    let idle = manager.create(&root(), idle, &by()).await.unwrap();
    let longer = manager.create(&root(), timed(WhenTimedOut::Delete), &by()).await.unwrap();
    let more = UpdateSandbox { timeout_sec: Change::Clear, ..UpdateSandbox::default() };
    let patched =
        manager.patch(&root(), &longer.id, more, Some(longer.version), &by()).await.unwrap();
    assert_eq!(patched.expires_at, None);

    let state = async |id: &str| manager.get(&root(), id).await.unwrap().state;
    soon(async || state(&deleted.id).await == State::Destroyed).await;
    soon(async || state(&stopped.id).await == State::Stopped).await;
    soon(async || state(&idle.id).await == State::Stopped).await;
    soon(async || {
        let now = manager.get(&root(), &restarted.id).await.unwrap();
        now.state == State::Ready && now.started_at > restarted.started_at
    })
    .await;
    assert_eq!(state(&longer.id).await, State::Ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_another_version_is_refused() {
    let place = Place::new();
    let manager = place.open(mock()).await;
    let sandbox = create(&manager).await;
    let labels = UpdateSandbox {
        labels: Some([("team".to_owned(), "red".to_owned())].into()),
        ..UpdateSandbox::default()
    };

    let stale = sandbox.version + 7;
    let error = manager.patch(&root(), &sandbox.id, labels.clone(), Some(stale), &by()).await;
    assert_eq!(error.unwrap_err().problem().code, Code::PreconditionFailed);
    let patched = manager.patch(&root(), &sandbox.id, labels, Some(sandbox.version), &by()).await;
    assert_eq!(patched.unwrap().labels["team"], "red");
    let query = ListSandboxes { label: vec!["team=red".into()], ..ListSandboxes::default() };
    assert_eq!(manager.list(&root(), &query).await.unwrap().items.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_queue_requests_are_told_when_to_come_again() {
    let place = Place::new();
    let mut config = place.config();
    (config.max_booting, config.max_queued) = (1, 1);
    let slow = mock().boot_takes(Duration::from_secs(30));
    let manager = place.open_with(config, slow).await;
    let unwaited = || api::CreateSandbox { wait: false, ..request() };

    let first = manager.create(&root(), unwaited(), &by()).await.unwrap().id;
    soon(async || manager.get(&root(), &first).await.unwrap().state == State::Provisioning).await;
    manager.create(&root(), unwaited(), &by()).await.unwrap();
    let error = manager.create(&root(), unwaited(), &by()).await.unwrap_err();
    assert_eq!(error.problem().code, Code::Busy);
    assert!(error.problem().retry_after_sec().is_some());
    assert_eq!(manager.metrics().queued, 1);
    assert_eq!(manager.metrics().refused_busy, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_workspace_s_sandbox_is_not_there() {
    let place = Place::new();
    let manager = place.open(mock()).await;
    let named =
        api::CreateSandbox { name: Some("box".into()), workspace: Some("red".into()), ..request() };
    let made = manager.create(&root(), named, &by()).await.unwrap();

    let red = member("red", Role::Member);
    assert_eq!(manager.get(&red, "box").await.unwrap().id, made.id);
    let blue = member("blue", Role::Owner);
    for name in [made.id.as_str(), "box"] {
        let error = manager.get(&blue, name).await.unwrap_err();
        assert_eq!(error.problem().code, Code::NotFound, "{name}");
        let error = manager.delete(&blue, name, true, &by()).await.unwrap_err();
        assert_eq!(error.problem().code, Code::NotFound, "{name}");
    }
    let viewer = member("red", Role::Viewer);
    let error = manager.exec(&viewer, "box", argv(&["true"]), &by()).await.unwrap_err();
    assert!(matches!(error, Error::Access(_)), "{error}");
    let denied = AuditQuery {
        decision: Some(api::AuditDecision::Denied),
        operation: Some(Operation::Exec),
        ..AuditQuery::default()
    };
    assert_eq!(manager.audit(&root(), &denied, &by()).await.unwrap().items.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_policy_refuses_is_not_made_and_is_told() {
    let place = Place::new();
    let manager = place.open(mock()).await;
    // The host's own kernel is for administrators.
    let member = member("red", Role::Member);
    let error = manager.create(&member, request(), &by()).await.unwrap_err();
    assert_eq!(error.problem().code, Code::PolicyDenied);
    assert!(error.problem().rule().is_some());

    assert_eq!(place.machines(), 0);
    assert!(manager.list(&root(), &ListSandboxes::default()).await.unwrap().items.is_empty());
    let events = manager.events(&root(), &EventQuery::default()).await.unwrap();
    assert_eq!(events.items[0].kind, EventKind::PolicyDenied);
    assert_eq!(manager.metrics().policy_denials, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_that_policy_hides_is_not_mounted_by_its_own_name_either() {
    let place = Place::new();
    let manager = place.open(mock()).await;
    let secret = place.directory.path().join(".env");
    std::fs::write(&secret, "TOKEN=1").unwrap();
    // Also by a name that leads to it, as what it is and as it is called.
    let link = place.directory.path().join("plain");
    std::os::unix::fs::symlink(&secret, &link).unwrap();
    let plain = place.directory.path().join("note");
    std::fs::write(&plain, "a note").unwrap();
    let named = place.directory.path().join("id_rsa");
    std::os::unix::fs::symlink(&plain, &named).unwrap();
    for path in [&secret, &link, &named] {
        let path = path.to_str().unwrap();
        let mount = api::Mount::new(path, "/data/note", api::MountMode::Copy, true);
        let create = api::CreateSandbox { mounts: vec![mount], ..request() };
        let error = manager.create(&root(), create, &by()).await.unwrap_err();
        assert_eq!(error.problem().code, Code::PolicyDenied, "{path:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_sandbox_says_so_instead_of_not_answering() {
    let place = Place::new();
    let manager = place.open(mock()).await;
    let id = create(&manager).await.id;
    let serve = api::Exec { detach: true, name: Some("d".into()), ..argv(&["serve"]) };
    manager.exec(&root(), &id, serve, &by()).await.unwrap();
    manager.pause(&root(), &id, &by()).await.unwrap();
    let size = api::WindowSize { rows: 24, cols: 80 };
    let query = api::AttachQuery::default();
    let soon = Duration::from_secs(5);
    let errors = tokio::time::timeout(soon, async {
        [
            manager.resize(&root(), &id, "d", size, &by()).await.unwrap_err(),
            manager.signal(&root(), &id, "d", 15, &by()).await.unwrap_err(),
            manager.stdin(&root(), &id, "d", &by()).await.unwrap_err(),
            manager.attach(&root(), &id, "d", query, &by()).await.unwrap_err(),
            manager.exec(&root(), &id, argv(&["true"]), &by()).await.unwrap_err(),
        ]
    });
    for error in errors.await.expect("each answers at once") {
        assert!(matches!(error, Error::State { state: State::Paused, .. }), "{error}");
    }
    manager.resume(&root(), &id, &by()).await.unwrap();
    manager.signal(&root(), &id, "d", 15, &by()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_another_process_are_told_without_one_s_own() {
    use futures_util::StreamExt as _;
    let place = Place::new();
    let (one, other) = (place.open(mock()).await, place.open(mock()).await);
    let followed = one.follow_events(&root(), EventQuery::default()).await.unwrap();
    let mut followed = std::pin::pin!(followed);
    let id = create(&other).await.id;
    let heard = tokio::time::timeout(Duration::from_secs(20), followed.next()).await;
    let event = heard.expect("it is told").unwrap().unwrap();
    assert_eq!((event.kind, event.sandbox), (EventKind::SandboxCreated, Some(id)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_ends_its_command_and_it_is_written_down() {
    let place = Place::new();
    let manager = place.open(mock()).await;
    let id = create(&manager).await.id;

    let task = manager.exec(&root(), &id, argv(&["serve"]), &by()).await.unwrap();
    let process = task.process().to_owned();
    drop(task);
    soon(async || !manager.process(&root(), &id, &process).await.unwrap().outcome.is_running())
        .await;
    let ended = manager.process(&root(), &id, &process).await.unwrap();
    assert!(matches!(ended.outcome, Outcome::Lost { .. }), "{:?}", ended.outcome);
    // The record is there a moment before those who watch are told.
    soon(async || manager.get(&root(), &id).await.unwrap().state == State::Ready).await;

    // One that goes away while its sandbox is made has made it all the same.
    let (root, by) = (root(), by());
    let creating = manager.create(&root, request(), &by);
    let _ = tokio::time::timeout(Duration::from_millis(1), creating).await;
    let all = ListSandboxes::default();
    soon(async || {
        let page = manager.list(&root, &all).await.unwrap();
        page.items.iter().all(|row| row.state == State::Ready)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_command_is_fed_followed_and_signalled() {
    let place = Place::new();
    let manager = place.open(mock()).await;
    let id = create(&manager).await.id;
    let detached = |words: &[&str], name: &str| api::Exec {
        detach: true,
        stdin: true,
        name: Some(name.into()),
        ..argv(words)
    };

    let task = manager.exec(&root(), &id, detached(&["cat"], "c"), &by()).await.unwrap();
    assert!(task.end().await.unwrap().outcome.is_running());
    let feed = manager.stdin(&root(), &id, "c", &by()).await.unwrap();
    feed.write(b"one\ntwo\n").await.unwrap();
    feed.finish().await.unwrap();
    let query = api::AttachQuery { stdout_offset: 4, follow: true, ..Default::default() };
    let attached = manager.attach(&root(), &id, "c", query, &by()).await.unwrap();
    let result = attached.collect(1 << 20).await.unwrap();
    assert_eq!((result.stdout.as_str(), result.end.exit_code), ("two\n", Some(0)));

    manager.exec(&root(), &id, detached(&["serve"], "s"), &by()).await.unwrap();
    let again = manager.exec(&root(), &id, detached(&["serve"], "s"), &by()).await.unwrap_err();
    assert_eq!(again.problem().code, Code::NameTaken);
    manager.signal(&root(), &id, "s", 15, &by()).await.unwrap();
    soon(async || {
        let known = manager.process(&root(), &id, "s").await.unwrap();
        known.outcome == Outcome::Signaled { signal: 15 }
    })
    .await;
    let lines = manager.logs(&root(), &id, &LogQuery::default()).await.unwrap();
    assert!(lines.items.iter().any(|line| line.text == "up"), "{lines:?}");
    let unknown = manager.signal(&root(), &id, "none", 15, &by()).await.unwrap_err();
    assert_eq!(unknown.problem().code, Code::ProcessNotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_signed_requests_are_taken_where_that_is_asked_for() {
    let place = Place::new();
    let mut config = place.config();
    config.require_signatures = true;
    let manager = place.open_with(config, mock()).await;

    let error = manager.create(&root(), request(), &by()).await.unwrap_err();
    assert_eq!(error.problem().code, Code::SignatureRequired);
    let digest = "ab".repeat(32);
    let signed = fleet::Provenance {
        request_digest: Some("cd".repeat(32)),
        signature: Some(fleet::VerifiedSignature { key_id: "key-1".into(), digest }),
        ..by()
    };
    let made = manager.create(&root(), request(), &signed).await.unwrap();
    let query = AuditQuery { sandbox: Some(made.id), ..AuditQuery::default() };
    let audit = manager.audit(&root(), &query, &by()).await.unwrap();
    assert_eq!(audit.items[0].request_digest, Some("cd".repeat(32)));
}
