//! Processes that write are killed at any moment: what they were told is done is there, and the
//! rest is there wholly or not at all.

use std::collections::BTreeSet;
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use api::{AuditRange, State};
use audit::Entry;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Map, Value, json};
use store::{Options, SandboxRecord, Store, StoreError};

/// Makes this program the one that writes to the store of that directory.
const WRITER: &str = "SANDFORGE_TEST_STORE_WRITER";
const ROUNDS: u32 = 30;
const WRITERS: u32 = 8;

fn main() -> ExitCode {
    if let Some(directory) = std::env::var_os(WRITER) {
        return match runtime().and_then(|runtime| runtime.block_on(write(Path::new(&directory)))) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("the writer failed: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let name = "what_was_answered_survives_a_kill_at_any_moment";
    let test = Trial::test(name, || kill_rounds().map_err(|error| Failed::from(error.to_string())));
    libtest_mimic::run(&Arguments::from_args(), vec![test]).exit_code()
}

fn runtime() -> Result<tokio::runtime::Runtime, Box<dyn Error>> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// Heads are signed and written to their file all the time, so that kills hit that too.
fn options() -> Options {
    Options {
        checkpoint_records: 20,
        checkpoint_interval: Duration::from_millis(5),
        ..Options::default()
    }
}

/// Writes without end, and says the id of each sandbox once it is committed.
async fn write(directory: &Path) -> Result<(), Box<dyn Error>> {
    let store = Store::open(directory, options())?;
    let instance = store.register().await?;
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (store, owner) = (store.clone(), instance.id().to_owned());
        tasks.spawn(async move {
            for number in 0_u64.. {
                let id = format!("{owner}-{writer}-{number}");
                make(&store, &id, &owner).await?;
                let mut out = std::io::stdout().lock();
                if writeln!(out, "{id}").and_then(|()| out.flush()).is_err() {
                    break;
                }
            }
            Ok::<_, StoreError>(())
        });
    }
    let rotation = store.clone();
    tasks.spawn(async move {
        loop {
            rotation.rotate_audit(100).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    Ok(())
}

/// A sandbox, its event, its record, and a move: all of it, or nothing.
async fn make(store: &Store, id: &str, owner: &str) -> Result<(), StoreError> {
    let record = sandbox(id, owner);
    store
        .write(move |change| {
            let id = record.sandbox.id.clone();
            change.insert_sandbox(&record)?;
            change.event(api::EventKind::SandboxCreated, Some(&id), Some("default"), Map::new())?;
            change.audit(&Entry::allowed("alice", "sandbox_create").on_sandbox(&id))?;
            change.move_sandbox(&id, State::Requested, State::Provisioning, |_| ())?;
            Ok(())
        })
        .await
}

fn sandbox(id: &str, owner: &str) -> SandboxRecord {
    let body = json!({
        "id": id, "name": id, "workspace": "default", "state": "requested", "image": "base",
        "memory_mb": 1024, "on_timeout": "delete", "on_idle": "stop", "network": "offline",
        "labels": {"a": "b"}, "created_by": "alice", "created_at": "2026-01-31T12:00:00.000Z",
        "running": 0, "version": 0,
        "policy": {"generation": 1, "rule": {"file": "built-in", "line": 0, "text": "all"}},
    });
    SandboxRecord {
        sandbox: serde_json::from_value(body).expect("this is a sandbox"),
        instance: Some(owner.to_owned()),
        host: Value::Null,
    }
}

fn kill_rounds() -> Result<(), Box<dyn Error>> {
    let place = tempfile::tempdir()?;
    let directory = place.path().join("data");
    let runtime = runtime()?;
    let mut answered = BTreeSet::new();
    for round in 0..ROUNDS {
        let before = answered.len();
        answered.extend(run_and_kill(&directory)?);
        if answered.len() == before {
            return Err(
                format!("round {round}: the writer was killed before it did anything").into()
            );
        }
        runtime
            .block_on(look(&directory, &answered))
            .map_err(|error| format!("round {round}: {error}"))?;
    }
    println!("{ROUNDS} kills, {} sandboxes answered, all there", answered.len());
    Ok(())
}

/// Runs a writer, kills it some time after its first answer, and gives all that it answered.
fn run_and_kill(directory: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let mut writer = Command::new(std::env::current_exe()?)
        .env(WRITER, directory)
        .stdout(Stdio::piped())
        .spawn()?;
    let out = writer.stdout.take().ok_or("the writer has no output")?;
    let (first, answered) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut ids = Vec::new();
        let mut lines = BufReader::new(out);
        let mut line = String::new();
        // A last line without its end was not said.
        while lines.read_line(&mut line).is_ok_and(|length| length > 0) && line.ends_with('\n') {
            ids.push(line.trim_end().to_owned());
            line.clear();
            // The other side waits for the first only.
            let _ = first.send(());
        }
        ids
    });
    let begun = answered.recv_timeout(Duration::from_secs(60));
    let mut random = [0; 2];
    getrandom::fill(&mut random)?;
    // The moment is what is random here: up to an eighth of a second.
    std::thread::sleep(Duration::from_micros(u64::from(u16::from_ne_bytes(random)) * 2));
    writer.kill()?;
    writer.wait()?;
    begun.map_err(|_| "the writer answered nothing")?;
    reader.join().map_err(|_| "the reader panicked".into())
}

async fn look(directory: &Path, answered: &BTreeSet<String>) -> Result<(), Box<dyn Error>> {
    let raw = rusqlite::Connection::open(directory.join("state.db"))?;
    let found: String = raw.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    if found != "ok" {
        return Err(format!("integrity_check: {found}").into());
    }
    let store = Store::open(directory, Options::default())?;
    let report = store.verify_audit(AuditRange::default()).await?;
    if !report.ok {
        return Err(format!("the audit log does not verify: {:?}", report.faults).into());
    }
    for id in answered {
        let id = id.clone();
        let record = store.read(move |view| view.sandbox(&id)).await?;
        if record.sandbox.state != State::Provisioning {
            return Err(format!("{} is {}", record.sandbox.id, record.sandbox.state).into());
        }
    }
    // Each sandbox came with one event, or did not come.
    let count = |table: &str| {
        raw.query_row(&format!("SELECT COUNT(*) FROM {table}"), [], |row| row.get::<_, i64>(0))
    };
    let sandboxes = count("sandboxes")?;
    let events = count("events WHERE kind = 'sandbox.created'")?;
    if sandboxes != events {
        return Err(format!("{sandboxes} sandboxes, but {events} events of them").into());
    }
    // The dead are known as such, and leave all that they had.
    let mine = store.register().await?;
    for dead in store.dead_instances().await? {
        store.take_over(dead, &mine).await?;
    }
    let me = mine.id().to_owned();
    let owned = store.read(move |view| view.sandboxes_of(&me)).await?.len();
    if i64::try_from(owned)? != sandboxes {
        return Err(format!("{owned} of {sandboxes} sandboxes were taken over").into());
    }
    store.retire(mine).await?;
    store.close().await;
    Ok(())
}
