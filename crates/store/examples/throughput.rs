//! How many changes a second the store commits for 64 writers at once: each change is a
//! sandbox's row, an event and an audit record, and is answered when it is on disk.
//!
//! `cargo run --release -p store --example throughput [-- WRITERS SECONDS]`

use std::error::Error;
use std::time::{Duration, Instant};

use audit::Entry;
use serde_json::{Map, Value, json};
use store::{Options, SandboxRecord, Store, StoreError};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let writers: usize = arguments.next().map_or(Ok(64), |text| text.parse())?;
    let seconds: u64 = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(writers, Duration::from_secs(seconds)))
}

async fn run(writers: usize, duration: Duration) -> Result<(), Box<dyn Error>> {
    // Below the working directory: a file system in memory would have no fsync to share.
    let place = tempfile::tempdir_in(".")?;
    let store = Store::open(&place.path().join("data"), Options::default())?;
    let end = Instant::now() + duration;
    let tasks: Vec<_> =
        (0..writers).map(|writer| tokio::spawn(write(store.clone(), writer, end))).collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    latencies.sort_unstable();
    let at = |share: usize| {
        let index = (latencies.len() * share / 1000).min(latencies.len().saturating_sub(1));
        latencies.get(index).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
    };
    let rate = latencies.len() as f64 / duration.as_secs_f64();
    println!(
        "{writers} writers: {rate:.0} changes/s, p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms",
        at(500),
        at(990),
        at(999)
    );
    let begin = Instant::now();
    let report = store.verify_audit(api::AuditRange::default()).await?;
    let rate = report.records as f64 / begin.elapsed().as_secs_f64();
    println!("audit: {} records verified, {rate:.0} records/s, ok: {}", report.records, report.ok);

    let reads = reads(&store, writers, duration).await?;
    println!("{writers} readers: {reads:.0} lookups/s");
    store.close().await;
    Ok(())
}

async fn write(store: Store, writer: usize, end: Instant) -> Result<Vec<Duration>, StoreError> {
    let mut latencies = Vec::new();
    while Instant::now() < end {
        let record = sandbox(&format!("sb-{writer}-{}", latencies.len()));
        let begin = Instant::now();
        store
            .write(move |change| {
                let id = record.sandbox.id.clone();
                change.insert_sandbox(&record)?;
                let (sandbox, workspace) = (Some(id.as_str()), Some("default"));
                change.event(api::EventKind::SandboxCreated, sandbox, workspace, Map::new())?;
                change.audit(
                    &Entry::allowed("alice", "sandbox_create")
                        .in_workspace("default")
                        .on_sandbox(&id)
                        .with_detail("image", "base"),
                )?;
                Ok::<_, StoreError>(())
            })
            .await?;
        latencies.push(begin.elapsed());
    }
    Ok(latencies)
}

async fn reads(store: &Store, readers: usize, duration: Duration) -> Result<f64, Box<dyn Error>> {
    let end = Instant::now() + duration;
    let tasks: Vec<_> = (0..readers)
        .map(|reader| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut count = 0_u64;
                while Instant::now() < end {
                    let id = format!("sb-{reader}-0");
                    store.read(move |view| view.sandbox(&id)).await?;
                    count += 1;
                }
                Ok::<_, StoreError>(count)
            })
        })
        .collect();
    let mut count = 0;
    for task in tasks {
        count += task.await??;
    }
    Ok(count as f64 / duration.as_secs_f64())
}

fn sandbox(id: &str) -> SandboxRecord {
    let body = json!({
        "id": id, "name": id, "workspace": "default", "state": "requested", "image": "base",
        "memory_mb": 1024, "on_timeout": "delete", "on_idle": "stop", "network": "offline",
        "labels": {"team": "one"}, "created_by": "alice",
        "created_at": "2026-01-31T12:00:00.000Z", "running": 0, "version": 0,
        "policy": {"generation": 1, "rule": {"file": "built-in", "line": 0, "text": "all"}},
    });
    SandboxRecord {
        sandbox: serde_json::from_value(body).expect("this is a sandbox"),
        instance: Some("in-1".to_owned()),
        host: Value::Null,
    }
}
