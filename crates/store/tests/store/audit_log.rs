use std::io::Cursor;
use std::time::Duration;

use api::{AuditQuery, AuditRange, EventKind, FaultKind};
use audit::Entry;
use rusqlite::Connection;
use store::{Options, Store, StoreError};

use crate::{Place, options};

async fn record(store: &Store, count: u64) {
    store
        .write(move |change| {
            for number in 0..count {
                change.audit(&Entry::allowed("alice", "exec").with_detail("number", number))?;
            }
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn the_head_is_signed_after_so_many_records() {
    let place = Place::with(Options { checkpoint_records: 10, ..options() });
    let mut events = place.store.events();
    record(&place.store, 9).await;
    record(&place.store, 5).await;
    let event = events.recv().await.unwrap();
    assert_eq!(event.kind, EventKind::AuditCheckpoint);
    assert_eq!(event.data["seq"], 14);
    let report = place.store.verify_audit(AuditRange::default()).await.unwrap();
    assert!(report.ok, "{report:?}");
    assert_eq!(event.data["head_hash"].as_str(), report.head_hash.as_deref());
}

#[tokio::test]
async fn the_head_is_signed_after_some_time() {
    let interval = Duration::from_millis(20);
    let place = Place::with(Options { checkpoint_interval: interval, ..options() });
    let mut events = place.store.events();
    record(&place.store, 1).await;
    assert_eq!(events.recv().await.unwrap().kind, EventKind::AuditCheckpoint);
}

/// A head that another process has signed is nobody's to sign again, and nobody waits for it.
#[tokio::test]
async fn a_head_that_another_process_signed_is_signed() {
    let place = Place::new();
    record(&place.store, 3).await;
    let interval = Duration::from_millis(1);
    let other =
        Store::open(&place.data(), Options { checkpoint_interval: interval, ..options() }).unwrap();
    let mut events = other.events();
    assert_eq!(events.recv().await.unwrap().data["seq"], 3);
    // Records of one, signed by the other, and then new ones.
    record(&other, 1).await;
    assert_eq!(events.recv().await.unwrap().data["seq"], 4);
    record(&place.store, 1).await;
    let signed = place.store.write(|change| change.sign_audit_head()).await.unwrap().unwrap();
    assert_eq!(signed.seq, 5);
    record(&other, 1).await;
    assert_eq!(events.recv().await.unwrap().data["seq"], 6);
    let report = other.verify_audit(AuditRange::default()).await.unwrap();
    assert!(report.ok, "{report:?}");
}

#[tokio::test]
async fn the_head_is_signed_when_the_store_is_closed() {
    let place = Place::new();
    record(&place.store, 3).await;
    let place = place.reopen(options()).await;
    let report = place.store.verify_audit(AuditRange::default()).await.unwrap();
    assert!(report.ok, "{report:?}");
    // In the database and in its file.
    assert_eq!(report.checkpoints, 2);
}

#[tokio::test]
async fn the_head_is_signed_on_demand_once() {
    let place = Place::new();
    let sign = || place.store.write(|change| change.sign_audit_head());
    assert_eq!(sign().await.unwrap(), None);
    record(&place.store, 3).await;
    let signed = sign().await.unwrap().unwrap();
    assert_eq!(signed.seq, 3);
    assert_eq!(sign().await.unwrap(), Some(signed));
}

#[tokio::test]
async fn a_database_that_was_cut_is_not_opened() {
    let place = Place::new();
    record(&place.store, 10).await;
    let data = place.data();
    place.store.close().await;
    let raw = Connection::open(data.join("state.db")).unwrap();
    raw.execute_batch(
        "DROP TRIGGER audit_goes_by_rotation; DROP TRIGGER audit_checkpoint_goes_by_rotation;
         DELETE FROM audit WHERE seq > 6; DELETE FROM audit_checkpoint;",
    )
    .unwrap();
    let error = Store::open(&data, options()).unwrap_err();
    assert!(error.to_string().contains("ends with record 6"), "{error}");
    // It says what to do.
    std::fs::remove_file(data.join("audit/head.json")).unwrap();
    Store::open(&data, options()).unwrap();
}

#[tokio::test]
async fn a_lost_key_is_not_replaced_unseen() {
    let place = Place::new();
    record(&place.store, 10).await;
    let data = place.data();
    place.store.close().await;
    std::fs::remove_file(data.join("audit/key")).unwrap();
    let error = Store::open(&data, options()).unwrap_err();
    assert!(matches!(error, StoreError::Audit(_)), "{error}");
}

#[tokio::test]
async fn tampering_is_found_and_named() {
    let place = Place::new();
    record(&place.store, 10).await;
    let raw = Connection::open(place.data().join("state.db")).unwrap();
    raw.execute_batch(
        "DROP TRIGGER audit_never_changes; UPDATE audit SET actor = 'eve' WHERE seq = 4",
    )
    .unwrap();
    let report = place.store.verify_audit(AuditRange::default()).await.unwrap();
    let found: Vec<_> = report.faults.iter().map(|fault| (fault.seq, fault.kind)).collect();
    assert_eq!(found, [(4, FaultKind::Changed)]);
    let error = place.store.rotate_audit(2).await.unwrap_err();
    assert!(error.to_string().contains("record 4"), "{error}");
}

#[tokio::test]
async fn rotation_keeps_the_newest_and_the_chain() {
    let place = Place::new();
    record(&place.store, 100).await;
    let moved = place.store.rotate_audit(30).await.unwrap();
    assert_eq!(moved.iter().map(|s| (s.first, s.last)).collect::<Vec<_>>(), [(1, 70)]);
    assert!(moved[0].path(&place.data().join("audit")).exists());
    assert_eq!(place.store.rotate_audit(100).await.unwrap(), []);
    record(&place.store, 10).await;
    let place = place.reopen(options()).await;
    let report = place.store.verify_audit(AuditRange::default()).await.unwrap();
    assert!(report.ok, "{report:?}");
    // The rotation is on record too.
    assert_eq!(report.records, 111);
    let last = place.store.rotate_audit(0).await.unwrap();
    assert_eq!(last.iter().map(|s| (s.first, s.last)).collect::<Vec<_>>(), [(71, 111)]);
    assert!(place.store.verify_audit(AuditRange::default()).await.unwrap().ok);
}

#[tokio::test]
async fn an_export_verifies_without_the_store() {
    let place = Place::new();
    record(&place.store, 2000).await;
    place.store.rotate_audit(500).await.unwrap();
    let mut export = place.store.export_audit(AuditRange::default()).await.unwrap();
    let mut text = Vec::new();
    while let Some(chunk) = export.next_chunk().await.unwrap() {
        text.extend(chunk);
    }
    let key = place.store.audit_public_key();
    let report = audit::verify_lines(Cursor::new(text), Some(&key)).unwrap();
    assert!(report.ok, "{report:?}");
    assert_eq!(report.records, 2001);
}

#[tokio::test]
async fn records_are_listed_in_pages() {
    let place = Place::new();
    record(&place.store, 5).await;
    let page = |from: Option<u64>| {
        let query = AuditQuery { from, limit: Some(2), ..AuditQuery::default() };
        place.store.read(move |view| view.audit_records(&query))
    };
    let first = page(None).await.unwrap();
    assert_eq!(first.items.iter().map(|record| record.seq).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(first.next_cursor.as_deref(), Some("3"));
    let last = page(Some(5)).await.unwrap();
    assert_eq!(last.items.len(), 1);
    assert_eq!(last.next_cursor, None);
}
