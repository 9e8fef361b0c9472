use std::path::Path;
use std::process::Command;

use api::{AuditRange, State};
use audit::Entry;
use store::{Options, Retention, Store, StoreError};

use crate::{Place, at, options, sandbox};

/// Adds sandboxes, each with a record, until one does not go in. Gives how many did.
async fn fill(store: &Store, from: u64) -> (u64, StoreError) {
    for number in from.. {
        let written = store
            .write(move |change| {
                let mut record = sandbox(&format!("sb-{number}"));
                record.host = serde_json::Value::from("x".repeat(2000));
                change.insert_sandbox(&record)?;
                change.audit(&Entry::allowed("alice", "sandbox_create"))
            })
            .await;
        if let Err(error) = written {
            return (number, error);
        }
    }
    unreachable!("no disk is that large")
}

async fn all_are_there(store: &Store, count: u64) {
    for number in 0..count {
        store.read(move |view| view.sandbox(&format!("sb-{number}"))).await.unwrap();
    }
    let missing = store.read(move |view| view.sandbox(&format!("sb-{count}"))).await;
    assert!(matches!(missing, Err(StoreError::NotFound { .. })));
    let report = store.verify_audit(AuditRange::default()).await.unwrap();
    assert!(report.ok, "{report:?}");
    assert_eq!(report.records, count);
}

#[tokio::test]
async fn a_full_database_refuses_and_loses_nothing() {
    let place = Place::with(Options { max_pages: Some(120), ..options() });
    let (count, error) = fill(&place.store, 0).await;
    assert!(matches!(error, StoreError::Full), "{error:?}");
    assert!(count > 10, "{count}");
    all_are_there(&place.store, count).await;

    // What is over makes room.
    place
        .store
        .write(move |change| {
            for number in 0..10 {
                let id = format!("sb-{number}");
                let destroying = State::Destroying;
                change.move_sandbox(&id, State::Requested, destroying, |_| ())?;
                change.move_sandbox(&id, destroying, State::Destroyed, |record| {
                    record.sandbox.ended_at = Some(at(1));
                    record.host = serde_json::Value::Null;
                })?;
            }
            let later = at(365 * 24 * 60 * 60 * 1000);
            assert_eq!(change.prune(later, &Retention::default(), 100)?.rows, 10);
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
    let (again, error) = fill(&place.store, count).await;
    assert!(matches!(error, StoreError::Full), "{error:?}");
    assert!(again > count);

    // And so does a larger disk.
    let place = place.reopen(Options { max_pages: None, ..options() }).await;
    let write = place.store.write(move |c| c.insert_sandbox(&sandbox(&format!("sb-{again}"))));
    write.await.unwrap();
    let report = place.store.verify_audit(AuditRange::default()).await.unwrap();
    assert!(report.ok, "{report:?}");
    assert_eq!(report.records, again);
}

#[tokio::test]
async fn one_that_fills_the_disk_is_told_so_and_small_ones_go_on() {
    let place = Place::with(Options { max_pages: Some(200), ..options() });
    let big = place
        .store
        .write(|change| {
            let mut record = sandbox("sb-big");
            record.host = serde_json::Value::from("x".repeat(2 << 20));
            change.insert_sandbox(&record)
        })
        .await;
    assert!(matches!(big, Err(StoreError::Full)), "{big:?}");
    place.store.write(|change| change.insert_sandbox(&sandbox("sb-1"))).await.unwrap();
}

/// A file system of its own, in memory, that can be filled.
struct Disk<'p>(&'p Path);

impl<'p> Disk<'p> {
    fn mount(path: &'p Path) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs"])
            .arg(path)
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(path))
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        // Lazily: the store's files are closed by a thread that may still end.
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[tokio::test]
async fn a_full_file_system_refuses_and_loses_nothing() {
    let place = tempfile::tempdir().unwrap();
    let Some(_disk) = Disk::mount(place.path()) else {
        eprintln!("NOT RUN: only root can mount a disk to fill; the bound of pages was tried");
        return;
    };
    let data = place.path().join("data");
    let ballast = place.path().join("ballast");
    std::fs::write(&ballast, vec![0; 1 << 20]).unwrap();
    let options = Options { reserve_bytes: 256 << 10, ..options() };
    let store = Store::open(&data, options.clone()).unwrap();
    store.room().unwrap();
    let (count, error) = fill(&store, 0).await;
    assert!(matches!(error, StoreError::Full), "{error:?}");
    assert!(matches!(store.room(), Err(StoreError::Full)));
    all_are_there(&store, count).await;

    std::fs::remove_file(&ballast).unwrap();
    store.room().unwrap();
    let (again, error) = fill(&store, count).await;
    assert!(again > count);
    assert!(matches!(error, StoreError::Full), "{error:?}");
    all_are_there(&store, again).await;
    store.close().await;

    let store = Store::open(&data, options).unwrap_or_else(|error| panic!("{error:?}"));
    all_are_there(&store, again).await;
    store.close().await;
}
