//! Snapshots, forks and sandboxes that are on disk, on the mock engine.

mod support;

use std::path::{Path, PathBuf};

use api::{
    AttachQuery, Code, CreateSnapshot, ForkSandbox, Outcome, RestoreSnapshot, Role, SnapshotQuery,
    State, WhenIdle,
};
use fleet::Manager;
use support::{Place, argv, by, create, member, mock, request, root, soon};

fn named(name: &str) -> CreateSnapshot {
    CreateSnapshot { name: Some(name.into()) }
}

fn restore(name: &str) -> RestoreSnapshot {
    RestoreSnapshot { name: Some(name.into()), ..RestoreSnapshot::default() }
}

async fn serve(manager: &Manager, sandbox: &str) {
    let serve = api::Exec { detach: true, name: Some("d".into()), ..argv(&["serve"]) };
    manager.exec(&root(), sandbox, serve, &by()).await.unwrap();
}

/// What a detached command has said.
async fn said(manager: &Manager, sandbox: &str) -> String {
    let query = AttachQuery { follow: false, ..AttachQuery::default() };
    let output = manager.attach(&root(), sandbox, "d", query, &by()).await.unwrap();
    output.collect(100).await.unwrap().stdout
}

/// Directories below one of data's, with those of a workspace.
fn directories(place: &Place, below: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(place.directory.path().join("data").join(below));
    entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_restored_as_another_sandbox_whose_commands_go_on() {
    let place = Place::new();
    let manager = place.open(mock()).await;
    let first = create(&manager).await.id;
    serve(&manager, &first).await;
    let query = SnapshotQuery::default();
    let saved = manager.create_snapshot(&root(), &first, named("s"), &by()).await.unwrap();
    assert_eq!((saved.name.as_str(), &saved.sandbox), ("s", &first));
    let again = manager.create_snapshot(&root(), &first, named("s"), &by()).await.unwrap_err();
    assert_eq!(again.problem().code, Code::NameTaken);
    // The one that was saved goes on, and may go.
    assert_eq!(said(&manager, &first).await, "up\n");
    manager.delete(&root(), &first, true, &by()).await.unwrap();

    let second =
        manager.restore_snapshot(&root(), "s", &query, restore("two"), &by()).await.unwrap();
    assert_ne!(second.id, first);
    assert_eq!(second.origin.as_deref(), Some(saved.id.as_str()));
    soon(async || manager.get(&root(), "two").await.unwrap().running == 1).await;
    assert_eq!(said(&manager, "two").await, "up\n");
    manager.signal(&root(), "two", "d", 15, &by()).await.unwrap();
    soon(async || manager.get(&root(), "two").await.unwrap().state == State::Ready).await;
    let task = manager.exec(&root(), "two", argv(&["greet"]), &by()).await.unwrap();
    assert_eq!(task.collect(100).await.unwrap().stdout, "hello\n");

    let listed = manager.snapshots(&root(), &query).await.unwrap().snapshots;
    assert_eq!(listed, [manager.snapshot(&root(), "s", &query).await.unwrap()]);
    manager.remove_snapshot(&root(), &saved.id, &query, &by()).await.unwrap();
    assert_eq!(manager.snapshots(&root(), &query).await.unwrap().snapshots, []);
    assert_eq!(directories(&place, "snapshots/default"), [] as [PathBuf; 0]);
    let gone = manager.restore_snapshot(&root(), "s", &query, restore("x"), &by()).await;
    assert_eq!(gone.unwrap_err().problem().code, Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_snapshot_are_their_owner_s_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::new();
    let manager = place.open(mock()).await;
    let id = create(&manager).await.id;
    manager.create_snapshot(&root(), &id, named("s"), &by()).await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let [directory] = &directories(&place, "snapshots/default")[..] else { panic!("one") };
    assert_eq!(mode(directory), 0o700);
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{path:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forks_are_sandboxes_of_their_own_and_leave_nothing_on_disk() {
    let place = Place::new();
    let manager = place.open(mock()).await;
    let first = create(&manager).await.id;
    serve(&manager, &first).await;
    let fork = ForkSandbox { count: Some(3), name: Some("f".into()) };
    let forks = manager.fork(&root(), &first, fork, &by()).await.unwrap().sandboxes;
    let names: Vec<_> = forks.iter().map(|fork| fork.name.as_str()).collect();
    assert_eq!(names, ["f-1", "f-2", "f-3"]);
    assert!(forks.iter().all(|fork| fork.origin.as_ref() == Some(&first)));
    for fork in &forks {
        soon(async || manager.get(&root(), &fork.id).await.unwrap().running == 1).await;
    }
    // What ends in one goes on in the others.
    manager.signal(&root(), "f-1", "d", 15, &by()).await.unwrap();
    soon(async || manager.get(&root(), "f-1").await.unwrap().state == State::Ready).await;
    for name in [first.as_str(), "f-2", "f-3"] {
        assert_eq!(manager.get(&root(), name).await.unwrap().state, State::Executing);
        let task = manager.exec(&root(), name, argv(&["true"]), &by()).await.unwrap();
        assert_eq!(task.end().await.unwrap().exit_code, Some(0));
    }
    soon(async || directories(&place, "forks").is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_is_on_disk_goes_on_with_the_next_command() {
    let place = Place::new();
    let manager = place.open(mock()).await;
    let id = create(&manager).await.id;
    serve(&manager, &id).await;
    let row = manager.hibernate(&root(), &id, &by()).await.unwrap();
    assert_eq!((row.state, row.running), (State::Hibernated, 1));
    assert_eq!(place.machines(), 0);
    soon(async || manager.metrics().tasks == 0).await;
    // Once is enough.
    let row = manager.hibernate(&root(), &id, &by()).await.unwrap();
    assert_eq!(row.state, State::Hibernated);

    let task = manager.exec(&root(), &id, argv(&["greet"]), &by()).await.unwrap();
    assert_eq!(task.collect(100).await.unwrap().stdout, "hello\n");
    assert_eq!(said(&manager, &id).await, "up\n");
    assert_eq!(directories(&place, "hibernated"), [] as [PathBuf; 0]);
    soon(async || manager.get(&root(), &id).await.unwrap().running == 1).await;

    manager.hibernate(&root(), &id, &by()).await.unwrap();
    let row = manager.resume(&root(), &id, &by()).await.unwrap();
    assert_eq!(row.state, State::Executing);
    manager.hibernate(&root(), &id, &by()).await.unwrap();
    let gone = manager.delete(&root(), &id, true, &by()).await.unwrap();
    assert_eq!(gone.state, State::Destroyed);
    assert_eq!(directories(&place, "hibernated"), [] as [PathBuf; 0]);
    soon(async || manager.metrics().tasks == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_sandbox_has_nothing_on_disk_and_its_commands_are_lost() {
    let place = Place::new();
    let manager = place.open(mock()).await;
    let id = create(&manager).await.id;
    serve(&manager, &id).await;
    manager.hibernate(&root(), &id, &by()).await.unwrap();
    manager.stop(&root(), &id, true, &by()).await.unwrap();
    assert_eq!(directories(&place, "hibernated"), [] as [PathBuf; 0]);
    let task = manager.process(&root(), &id, "d").await.unwrap();
    assert!(matches!(task.outcome, Outcome::Lost { .. }), "{task:?}");
    let started = manager.start(&root(), &id, true, &by()).await.unwrap();
    assert_eq!((started.state, started.running), (State::Ready, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_sandbox_can_go_to_disk_and_an_idle_one_does_by_itself() {
    let place = Place::new();
    let manager = place.open(mock()).await;
    let id = create(&manager).await.id;
    manager.pause(&root(), &id, &by()).await.unwrap();
    let row = manager.hibernate(&root(), &id, &by()).await.unwrap();
    assert_eq!(row.state, State::Hibernated);
    let idle =
        api::CreateSandbox { idle_timeout_sec: Some(1), on_idle: WhenIdle::Hibernate, ..request() };
    let id = manager.create(&root(), idle, &by()).await.unwrap().id;
    soon(async || manager.get(&root(), &id).await.unwrap().state == State::Hibernated).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_only_read_wakes_nothing() {
    let place = Place::new();
    let manager = place.open(mock()).await;
    let id = create(&manager).await.id;
    manager.hibernate(&root(), &id, &by()).await.unwrap();
    let viewer = member("default", Role::Viewer);
    let query = api::ListFilesQuery { path: "/".into(), ..api::ListFilesQuery::default() };
    let refused = manager.list_files(&viewer, &id, query, &by()).await.unwrap_err();
    assert_eq!(refused.problem().code, Code::Forbidden);
    assert_eq!(manager.get(&viewer, &id).await.unwrap().state, State::Hibernated);
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_is_asked_anew_before_anything_goes_on() {
    let place = Place::new();
    let policy = place.directory.path().join("policy.toml");
    std::fs::write(&policy, "").unwrap();
    let config = fleet::Config { policy: Some(policy.clone()), ..place.config() };
    let manager = place.open_with(config, mock()).await;
    let id = create(&manager).await.id;
    let asleep = create(&manager).await.id;
    manager.create_snapshot(&root(), &id, named("s"), &by()).await.unwrap();
    manager.hibernate(&root(), &asleep, &by()).await.unwrap();
    std::fs::write(&policy, "[resources]\nmemory_mb_max = 127\n").unwrap();
    manager.reload_policy(&root(), &by()).await.unwrap();
    let query = SnapshotQuery::default();
    let refused = [
        manager.restore_snapshot(&root(), "s", &query, restore("x"), &by()).await.unwrap_err(),
        manager.fork(&root(), &id, ForkSandbox::default(), &by()).await.unwrap_err(),
        manager.exec(&root(), &asleep, argv(&["true"]), &by()).await.unwrap_err(),
        manager.resume(&root(), &asleep, &by()).await.unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.problem().code, Code::PolicyDenied, "{error}");
    }
    assert_eq!(manager.get(&root(), &asleep).await.unwrap().state, State::Hibernated);
    assert_eq!(directories(&place, "forks"), [] as [PathBuf; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_saved_elsewhere_is_refused_by_the_field_that_differs() {
    let place = Place::new();
    let manager = place.open(mock()).await;
    let id = create(&manager).await.id;
    manager.create_snapshot(&root(), &id, named("s"), &by()).await.unwrap();
    let [directory] = &directories(&place, "snapshots/default")[..] else { panic!("one") };
    let path = directory.join("manifest.json");
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let whole = manifest.clone();
    manifest["cpu"]["model"] = "Another One 9000".into();
    std::fs::write(&path, manifest.to_string()).unwrap();
    let query = SnapshotQuery::default();
    let restored = manager.restore_snapshot(&root(), "s", &query, restore("x"), &by()).await;
    let problem = restored.unwrap_err().problem();
    assert_eq!(problem.code, Code::Unsupported);
    assert!(problem.detail.contains("cpu.model"), "{}", problem.detail);
    assert!(problem.detail.contains("Another One 9000"), "{}", problem.detail);

    std::fs::write(&path, whole.to_string()).unwrap();
    let memory = directory.join("memory");
    let mut bytes = std::fs::read(&memory).unwrap();
    bytes[10] ^= 1;
    std::fs::write(&memory, bytes).unwrap();
    let restored = manager.restore_snapshot(&root(), "s", &query, restore("y"), &by()).await;
    let detail = restored.unwrap_err().problem().detail;
    assert!(detail.contains("damaged") && detail.contains("memory"), "{detail}");
    assert_eq!(place.machines(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_cannot_save_says_which_can() {
    let place = Place::new();
    let manager = place.open(mock().without_snapshots()).await;
    let id = create(&manager).await.id;
    let refused = [
        manager.create_snapshot(&root(), &id, named("s"), &by()).await.unwrap_err(),
        manager.fork(&root(), &id, ForkSandbox::default(), &by()).await.unwrap_err(),
        manager.hibernate(&root(), &id, &by()).await.unwrap_err(),
    ];
    for error in refused {
        let problem = error.problem();
        assert_eq!(problem.code, Code::Unsupported, "{problem}");
        assert!(problem.detail.contains("kvm and qemu"), "{}", problem.detail);
    }
    // It goes on.
    let row = manager.get(&root(), &id).await.unwrap();
    assert_eq!(row.state, State::Ready);
    let task = manager.exec(&root(), &id, argv(&["true"]), &by()).await.unwrap();
    assert_eq!(task.end().await.unwrap().exit_code, Some(0));
}
