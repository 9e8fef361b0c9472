//! Sandboxes on the host's own kernel: a real agent, real files, a fleet that comes and goes.

mod support;

use std::fs;
use std::time::Duration;

use api::{AuditRange, CreateSandbox, Mount, PathQuery, ReadQuery, State, WriteQuery};
use fleet::{Config, Manager, Mode};
use supervisor::{Launcher, Supervisor};
use support::{Place, argv, by, root};

/// The engine without machines.
const PROCESS: &str = "process";

fn supervisor(place: &Place) -> Supervisor {
    let launcher = Launcher { program: "/proc/self/exe".into(), arguments: Vec::new() };
    let supervisor = Supervisor::new(launcher).expect("an image store");
    supervisor.with_runtime_directory(place.directory.path().join("run"))
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_in_and_out_and_a_sandbox_outlives_the_fleet_that_made_it() {
    let place = Place::new();
    let engines = supervisor(&place);
    if let Err(reason) = engines.engine(PROCESS).expect("it is built in").available().await {
        eprintln!("not run: {reason}");
        return;
    }
    let project = place.directory.path().join("project");
    fs::create_dir_all(project.join("src")).unwrap();
    fs::write(project.join("src/main"), "fn main").unwrap();
    fs::write(project.join(".env"), "SECRET=1").unwrap();
    fs::write(place.directory.path().join("note"), "a note").unwrap();
    let mount = |host: &str, guest: &str, read_only| {
        let host = place.directory.path().join(host);
        Mount::new(host.to_str().unwrap(), guest, api::MountMode::Copy, read_only)
    };
    let create = CreateSandbox {
        name: Some("box".into()),
        engine: Some(PROCESS.into()),
        memory_mb: Some(512),
        mounts: vec![mount("project", "/data", false), mount("note", "/notes/one", true)],
        ..CreateSandbox::default()
    };
    let manager = Manager::open(place.config(), engines).await.unwrap();

    let made = manager.create(&root(), create, &by()).await.unwrap();
    assert_eq!(made.isolation, Some(api::Isolation::Process));
    let sh = async |manager: &Manager, line: &str| {
        let task = manager.exec(&root(), "box", argv(&["sh", "-c", line]), &by()).await.unwrap();
        task.collect(1 << 16).await.unwrap()
    };
    // What policy hides is not there, and what is to be read only cannot be written.
    let seen = sh(&manager, "ls -A /data; cat /data/src/main /notes/one").await;
    assert_eq!(seen.stdout, "src\nfn maina note", "{seen:?}");
    let written = sh(&manager, "echo x >> /notes/one").await;
    assert_ne!(written.end.exit_code, Some(0));

    let path = || "/workspace/file".to_owned();
    let query = WriteQuery { path: path(), parents: true, ..WriteQuery::default() };
    let mut upload = manager.write_file(&root(), "box", query, &by()).await.unwrap();
    upload.write(b"content").await.unwrap();
    assert_eq!(upload.finish().await.unwrap().bytes, 7);
    manager.shutdown(Duration::from_secs(5)).await;
    drop(manager);

    // Another process has the state now.
    let config = Config::new(Mode::Embedded, place.directory.path().join("data"));
    let manager = Manager::open(config, supervisor(&place)).await.unwrap();
    let query = ReadQuery { path: path(), ..ReadQuery::default() };
    let mut file = manager.read_file(&root(), "box", query, Some((3, None)), &by()).await.unwrap();
    assert_eq!(file.read().await.unwrap().unwrap(), b"tent");
    let stats = manager.stats(&root(), "box").await.unwrap();
    assert!(stats.usage.memory_peak_bytes > 0, "{stats:?}");
    let query = PathQuery { path: path(), ..PathQuery::default() };
    manager.remove_file(&root(), "box", query, false, &by()).await.unwrap();
    let gone = manager.delete(&root(), "box", true, &by()).await.unwrap();
    assert_eq!(gone.state, State::Destroyed);
    assert!(gone.usage.is_some_and(|usage| usage.memory_peak_bytes > 0));
    assert_eq!(place.machines(), 0);
    let report = manager.verify_audit(&root(), AuditRange::default(), &by()).await.unwrap();
    assert!(report.ok, "{report:?}");
}
