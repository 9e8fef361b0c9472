use api::State;
use audit::Digest;
use store::{Begun, Store, StoreError};

use crate::{Place, at, options, sandbox};

#[tokio::test]
async fn a_living_instance_is_not_taken_over() {
    let place = Place::new();
    let alive = place.store.register().await.unwrap();
    let other = Store::open(&place.data(), options()).unwrap();
    assert_eq!(other.dead_instances().await.unwrap().len(), 0);
    drop(alive);
    assert_eq!(other.dead_instances().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_dead_instance_leaves_its_sandboxes_and_requests_to_one_other() {
    let place = Place::new();
    let dead = place.store.register().await.unwrap();
    let id = dead.id().to_owned();
    place
        .store
        .write(move |change| {
            for name in ["sb-1", "sb-2"] {
                let mut record = sandbox(name);
                record.instance = Some(id.clone());
                change.insert_sandbox(&record)?;
            }
            change.move_sandbox("sb-2", State::Requested, State::Destroying, |_| ())?;
            change.move_sandbox("sb-2", State::Destroying, State::Destroyed, |_| ())?;
            change.begin_idempotent("alice", "key", &Digest::of(b"x"), &id, at(1))?;
            change.bind_idempotent("alice", "key", "sb-1")
        })
        .await
        .unwrap();
    drop(dead);

    let mine = place.store.register().await.unwrap();
    let mut found = place.store.dead_instances().await.unwrap();
    assert_eq!(found.len(), 1);
    // While one has it, no other gets it.
    let other = Store::open(&place.data(), options()).unwrap();
    assert_eq!(other.dead_instances().await.unwrap().len(), 0);

    let taken = place.store.take_over(found.remove(0), &mine).await.unwrap();
    let ids: Vec<_> = taken.sandboxes.iter().map(|record| record.sandbox.id.as_str()).collect();
    assert_eq!(ids, ["sb-1"]);
    assert_eq!(taken.unfinished[0].sandbox.as_deref(), Some("sb-1"));
    let me = mine.id().to_owned();
    let owned = place.store.read(move |view| view.sandboxes_of(&me)).await.unwrap();
    assert_eq!(owned, taken.sandboxes);
    assert_eq!(place.store.dead_instances().await.unwrap().len(), 0);
    let begun = place
        .store
        .write(|change| change.begin_idempotent("alice", "key", &Digest::of(b"x"), "y", at(2)))
        .await
        .unwrap();
    assert_eq!(begun, Begun::InProgress(Some("sb-1".into())));
}

#[tokio::test]
async fn an_instance_that_retires_leaves_nothing() {
    let place = Place::new();
    let instance = place.store.register().await.unwrap();
    place.store.retire(instance).await.unwrap();
    assert_eq!(place.store.dead_instances().await.unwrap().len(), 0);
    let files = std::fs::read_dir(place.data().join("instances")).unwrap().count();
    assert_eq!(files, 0);
}

#[tokio::test]
async fn an_instance_that_retires_with_sandboxes_can_be_taken_over() {
    let place = Place::new();
    let instance = place.store.register().await.unwrap();
    let mut record = sandbox("sb-1");
    record.instance = Some(instance.id().to_owned());
    place.store.write(move |change| change.insert_sandbox(&record)).await.unwrap();
    place.store.retire(instance).await.unwrap();
    let mine = place.store.register().await.unwrap();
    let mut dead = place.store.dead_instances().await.unwrap();
    let taken = place.store.take_over(dead.remove(0), &mine).await.unwrap();
    assert_eq!(taken.sandboxes.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_write_one_chain() {
    let place = Place::new();
    let other = Store::open(&place.data(), options()).unwrap();
    let write = |store: Store| async move {
        for _ in 0..50 {
            store.write(|change| change.audit(&audit::Entry::allowed("alice", "exec"))).await?;
        }
        Ok::<_, StoreError>(())
    };
    let (one, two) =
        tokio::join!(tokio::spawn(write(place.store.clone())), tokio::spawn(write(other.clone())));
    one.unwrap().unwrap();
    two.unwrap().unwrap();
    let report = other.verify_audit(api::AuditRange::default()).await.unwrap();
    assert!(report.ok, "{report:?}");
    assert_eq!(report.records, 100);
}
