//! The store, as the crates above use it.

mod audit_log;
mod credentials;
mod executions;
mod full_disk;
mod group;
mod instances;
mod open;
mod requests;
mod sandboxes;
mod webhooks;

use std::path::PathBuf;
use std::time::Duration;

use api::{State, Timestamp};
use serde_json::{Value, json};
use store::{Options, SandboxRecord, Store, StoreError};
use tempfile::TempDir;

/// A store in a directory of its own.
struct Place {
    store: Store,
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        Self::with(options())
    }

    fn with(options: Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("data"), options).unwrap();
        Self { store, directory }
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Ends the store and opens it again.
    async fn reopen(self, options: Options) -> Self {
        let data = self.data();
        self.store.close().await;
        Self { store: Store::open(&data, options).unwrap(), directory: self.directory }
    }
}

/// Nothing is signed by itself.
fn options() -> Options {
    Options {
        checkpoint_records: u64::MAX,
        checkpoint_interval: Duration::from_secs(3600),
        ..Options::default()
    }
}

fn sandbox(id: &str) -> SandboxRecord {
    let body = json!({
        "id": id, "name": format!("name-{id}"), "workspace": "default", "state": "requested",
        "image": "base", "memory_mb": 1024, "on_timeout": "delete", "on_idle": "stop",
        "network": "offline", "labels": {}, "created_by": "alice",
        "created_at": "2026-01-31T12:00:00.000Z", "running": 0, "version": 0,
        "policy": {"generation": 1, "rule": {"file": "built-in", "line": 0, "text": "all"}},
    });
    SandboxRecord {
        sandbox: serde_json::from_value(body).unwrap(),
        instance: Some("in-1".to_owned()),
        host: Value::Null,
    }
}

/// A sandbox that takes tasks.
async fn ready(store: &Store, id: &str) {
    let id = id.to_owned();
    store
        .write(move |change| {
            change.insert_sandbox(&sandbox(&id))?;
            change.move_sandbox(&id, State::Requested, State::Provisioning, |_| ())?;
            change.move_sandbox(&id, State::Provisioning, State::Ready, |_| ())?;
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_unix_ms(ms)
}
