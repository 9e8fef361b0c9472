//! A fleet that is killed at each point, and the next one that opens its state.
//!
//! This program is the test, the fleet that is killed, and the machine that outlives it.

mod support;

use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use api::{AuditQuery, CreateSandbox, EventQuery, ListSandboxes, Outcome, State};
use fleet::hook::Hook;
use fleet::{Config, Manager, Mode, Provenance};
use libtest_mimic::{Arguments, Failed, Trial};
use supervisor::mock::Mock;
use supervisor::{Supervisor, image};
use support::{Place, argv, by, mock, request, root, soon};

/// Tells this program that it is a machine.
const MACHINE: &str = "__machine";
/// Tells this program that it is the fleet that is killed.
const VICTIM: &str = "__victim";
/// What the victim's requests are known by.
const KEY: &str = "key-1";

fn main() {
    let words: Vec<String> = std::env::args().collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, MACHINE, id, key] => {
            block_on(async { mock().host(id, key).await.unwrap() });
        }
        [_, VICTIM, directory, point] => victim(Path::new(directory), point),
        _ => {
            let arguments = Arguments::from_args();
            libtest_mimic::run(&arguments, trials()).exit();
        }
    }
}

fn trials() -> Vec<Trial> {
    let trial = |name: &str, test: fn()| {
        let test = move || -> Result<(), Failed> {
            test();
            Ok(())
        };
        Trial::test(name, test)
    };
    vec![
        trial("a_request_that_was_accepted_is_carried_out_once", || {
            for point in ["requested", "provisioning"] {
                accepted(point);
            }
        }),
        trial("a_ready_sandbox_is_found_again", ready),
        trial("a_paused_sandbox_of_a_killed_fleet_is_ended_and_says_why", paused),
        trial("a_sandbox_on_disk_goes_on_after_a_kill", hibernated),
        trial("detached_tasks_go_on_and_attached_ones_are_interrupted", executing),
        trial("a_command_that_was_accepted_is_not_run_twice", accepted_command),
        trial("what_was_to_stop_is_stopped", || ending("stopping", State::Stopped)),
        trial("what_was_to_go_is_gone", || ending("destroying", State::Destroyed)),
        trial("a_machine_without_a_row_is_ended", orphan),
        trial("secrets_are_in_no_file", secrets),
    ]
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::from_secs(5));
    done
}

fn hosted() -> Mock {
    mock().hosted_by(std::env::current_exe().unwrap(), &[MACHINE])
}

fn images(directory: &Path) -> image::Store {
    image::Store::open(&directory.join("cache")).unwrap()
}

fn supervisor(directory: &Path) -> Supervisor {
    Supervisor::with_engines(images(directory), vec![Box::new(hosted())])
        .with_runtime_directory(directory.join("run"))
}

async fn open(place: &Place) -> Arc<Manager> {
    let supervisor = supervisor(place.directory.path());
    Manager::open(place.config(), supervisor).await.unwrap()
}

/// Dies, as if by SIGKILL from outside, where it was told to.
struct Death(String);

impl Hook for Death {
    fn reached(&self, _: &str, state: State) {
        if state.as_str() == self.0 {
            die();
        }
    }

    fn accepted(&self, _: &str, _: &str) {
        if self.0 == "accepted" {
            die();
        }
    }
}

fn die() {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::thread::sleep(Duration::from_secs(60));
}

fn keyed() -> Provenance {
    Provenance { idempotency_key: Some(KEY.into()), ..by() }
}

/// What the victim does, until it dies at `point`.
fn victim(directory: &Path, point: &str) {
    block_on(async {
        let config = Config::new(Mode::Daemon, directory.join("data"));
        let death = Arc::new(Death(point.to_owned()));
        // Only a machine of this very process can be paused.
        let supervisor = match point {
            "paused" | "asleep" | "hibernating" => {
                Supervisor::with_engines(images(directory), vec![Box::new(mock())])
                    .with_runtime_directory(directory.join("run"))
            }
            _ => supervisor(directory),
        };
        let manager = Manager::open_with(config, supervisor, death).await.unwrap();
        let digest = "00".repeat(32);
        let fleet::Idempotent::Fresh(guard) =
            manager.idempotent(&root(), KEY, &digest).await.unwrap()
        else {
            panic!("it is the first");
        };
        let secret = |text: &str| api::Secret::new(text.as_bytes().to_vec()).unwrap();
        let env = match point {
            "secret" => [("TOKEN".to_owned(), secret("canary-of-create"))].into(),
            _ => Default::default(),
        };
        let create = CreateSandbox { name: Some("box".into()), env, ..request() };
        let provenance = match point {
            "accepted" => by(),
            _ => keyed(),
        };
        manager.create(&root(), create, &provenance).await.unwrap();
        match point {
            "ready-idle" => die(),
            "paused" => drop(manager.pause(&root(), "box", &by()).await),
            "asleep" | "hibernating" => {
                let detached =
                    api::Exec { detach: true, name: Some("d".into()), ..argv(&["serve"]) };
                manager.exec(&root(), "box", detached, &by()).await.unwrap();
                manager.hibernate(&root(), "box", &by()).await.unwrap();
                die();
            }
            "working" | "secret" => {
                let detached =
                    api::Exec { detach: true, name: Some("d".into()), ..argv(&["serve"]) };
                manager.exec(&root(), "box", detached, &by()).await.unwrap();
                let env = [("TOKEN".to_owned(), secret("canary-of-exec"))].into();
                let attached = api::Exec { name: Some("a".into()), env, ..argv(&["serve"]) };
                let mut task = manager.exec(&root(), "box", attached, &by()).await.unwrap();
                task.output().await.unwrap();
                die();
            }
            "accepted" => {
                let detached =
                    api::Exec { detach: true, name: Some("d".into()), ..argv(&["serve"]) };
                manager.exec(&root(), "box", detached, &keyed()).await.unwrap();
            }
            "stopping" => drop(manager.stop(&root(), "box", true, &by()).await),
            "destroying" => drop(manager.delete(&root(), "box", true, &by()).await),
            _ => {}
        }
        drop(guard);
    });
}

/// A fleet that was killed there.
fn killed(place: &Place, point: &str) {
    let status: ExitStatus = Command::new(std::env::current_exe().unwrap())
        .args([VICTIM, place.directory.path().to_str().unwrap(), point])
        .status()
        .unwrap();
    use std::os::unix::process::ExitStatusExt as _;
    assert_eq!(status.signal(), Some(9), "it came to its end instead: {status}");
}

/// Ends all of it, and looks that nothing is left.
async fn clear(place: &Place, manager: &Manager) {
    for row in manager.list(&root(), &ListSandboxes::default()).await.unwrap().items {
        manager.delete(&root(), &row.id, true, &by()).await.unwrap();
    }
    manager.shutdown(Duration::from_secs(5)).await;
    assert_eq!(place.machines(), 0);
}

fn accepted(point: &str) {
    let place = Place::new();
    killed(&place, point);
    block_on(async {
        let manager = open(&place).await;
        let all = ListSandboxes::default();
        soon(async || {
            let rows = manager.list(&root(), &all).await.unwrap().items;
            rows.len() == 1 && rows[0].state == State::Ready
        })
        .await;
        // The same request comes again, and is the same sandbox.
        let digest = "00".repeat(32);
        let again = manager.idempotent(&root(), KEY, &digest).await.unwrap();
        let fleet::Idempotent::Fresh(guard) = again else { panic!("it was not answered") };
        let create = CreateSandbox { name: Some("box".into()), ..request() };
        let made = manager.create(&root(), create, &keyed()).await.unwrap();
        let rows = manager.list(&root(), &all).await.unwrap().items;
        assert_eq!(rows.iter().map(|row| &row.id).collect::<Vec<_>>(), [&made.id], "{point}");
        drop(guard);
        clear(&place, &manager).await;
    });
}

fn ready() {
    let place = Place::new();
    killed(&place, "ready-idle");
    block_on(async {
        assert_eq!(place.machines(), 1);
        let manager = open(&place).await;
        assert_eq!(manager.get(&root(), "box").await.unwrap().state, State::Ready);
        let task = manager.exec(&root(), "box", argv(&["greet"]), &by()).await.unwrap();
        assert_eq!(task.collect(100).await.unwrap().stdout, "hello\n");
        clear(&place, &manager).await;
    });
}

fn paused() {
    let place = Place::new();
    killed(&place, "paused");
    block_on(async {
        let manager = open(&place).await;
        let row = manager.get(&root(), "box").await.unwrap();
        let reason = row.reason.unwrap_or_default();
        assert_eq!(row.state, State::Failed);
        assert!(reason.contains("paused") && reason.contains("start it again"), "{reason}");
        assert_eq!(place.machines(), 0);
        let again = manager.start(&root(), "box", true, &by()).await.unwrap();
        assert_eq!(again.state, State::Ready);
        clear(&place, &manager).await;
    });
}

fn hibernated() {
    let place = Place::new();
    killed(&place, "asleep");
    block_on(async {
        // A machine of a process that is killed is gone; this one is on disk.
        let supervisor =
            Supervisor::with_engines(images(place.directory.path()), vec![Box::new(mock())])
                .with_runtime_directory(place.directory.path().join("run"));
        let manager = Manager::open(place.config(), supervisor).await.unwrap();
        let row = manager.get(&root(), "box").await.unwrap();
        assert_eq!((row.state, row.running), (State::Hibernated, 1));
        let task = manager.exec(&root(), "box", argv(&["greet"]), &by()).await.unwrap();
        assert_eq!(task.collect(100).await.unwrap().stdout, "hello\n");
        let query = api::AttachQuery { stdout_offset: 1, ..Default::default() };
        let output = manager.attach(&root(), "box", "d", query, &by()).await.unwrap();
        manager.signal(&root(), "box", "d", 15, &by()).await.unwrap();
        assert_eq!(output.collect(100).await.unwrap().stdout, "p\n");
        clear(&place, &manager).await;
    });
    let place = Place::new();
    killed(&place, "hibernating");
    block_on(async {
        let manager = open(&place).await;
        let row = manager.get(&root(), "box").await.unwrap();
        let reason = row.reason.unwrap_or_default();
        assert_eq!(row.state, State::Failed);
        assert!(reason.contains("brought to disk"), "{reason}");
        clear(&place, &manager).await;
    });
}

fn executing() {
    let place = Place::new();
    killed(&place, "working");
    block_on(async {
        let manager = open(&place).await;
        let row = manager.get(&root(), "box").await.unwrap();
        assert_eq!((row.state, row.running), (State::Executing, 1));
        let attached = manager.process(&root(), "box", "a").await.unwrap();
        let Outcome::Lost { reason } = attached.outcome else { panic!("{attached:?}") };
        assert!(reason.starts_with("interrupted"), "{reason}");
        let query = api::AttachQuery { stdout_offset: 1, ..Default::default() };
        let output = manager.attach(&root(), "box", "d", query, &by()).await.unwrap();
        assert_eq!(output.collect(100).await.unwrap().stdout, "p\n");
        manager.signal(&root(), "box", "d", 15, &by()).await.unwrap();
        soon(async || manager.get(&root(), "box").await.unwrap().state == State::Ready).await;
        clear(&place, &manager).await;
    });
}

fn accepted_command() {
    let place = Place::new();
    killed(&place, "accepted");
    block_on(async {
        let manager = open(&place).await;
        let known = manager.process(&root(), "box", "d").await.unwrap();
        assert!(matches!(known.outcome, Outcome::Lost { .. }), "{known:?}");
        let digest = "00".repeat(32);
        let again = manager.idempotent(&root(), KEY, &digest).await.unwrap();
        let fleet::Idempotent::Fresh(_guard) = again else { panic!("it was not answered") };
        let detached = api::Exec { detach: true, name: Some("d".into()), ..argv(&["serve"]) };
        let task = manager.exec(&root(), "box", detached, &keyed()).await.unwrap();
        assert!(matches!(task.end().await.unwrap().outcome, Outcome::Lost { .. }));
        let all = api::PageQuery::default();
        assert_eq!(manager.processes(&root(), "box", &all).await.unwrap().items.len(), 1);
        clear(&place, &manager).await;
    });
}

fn ending(point: &str, end: State) {
    let place = Place::new();
    killed(&place, point);
    block_on(async {
        let manager = open(&place).await;
        let events = manager.events(&root(), &EventQuery::default()).await.unwrap();
        let id = events.items[0].sandbox.clone().unwrap();
        soon(async || manager.get(&root(), &id).await.unwrap().state == end).await;
        assert_eq!(place.machines(), 0);
        clear(&place, &manager).await;
    });
}

fn orphan() {
    let place = Place::new();
    killed(&place, "ready-idle");
    block_on(async {
        // On record it is gone, and its machine runs.
        let data = place.directory.path().join("data");
        let store = store::Store::open(&data, store::Options::default()).unwrap();
        let gone = store.write(|change| {
            let id = change.sandbox_named(None, "box")?.sandbox.id;
            change.move_sandbox(&id, State::Ready, State::Destroying, |_| {})?;
            change.move_sandbox(&id, State::Destroying, State::Destroyed, |_| {})
        });
        let gone: Result<_, store::StoreError> = gone.await;
        gone.unwrap();
        store.close().await;
        assert_eq!(place.machines(), 1);

        let manager = open(&place).await;

        assert_eq!(place.machines(), 0);
        clear(&place, &manager).await;
    });
}

fn secrets() {
    let place = Place::new();
    killed(&place, "secret");
    block_on(async {
        let manager = open(&place).await;
        let audit = manager.audit(&root(), &AuditQuery::default(), &by()).await.unwrap();
        assert!(!format!("{audit:?}").contains("canary"));
        let found = Command::new("grep")
            .args(["-r", "-a", "-l", "canary-of-"])
            .arg(place.directory.path())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "");
        clear(&place, &manager).await;
    });
}
