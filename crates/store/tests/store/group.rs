use api::AuditRange;
use audit::Entry;
use store::StoreError;

use crate::{Place, sandbox};

/// Of sixty-four that write at the same time, each third fails after it has written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_fails_takes_back_its_own_part_and_no_other() {
    let place = Place::new();
    let tasks: Vec<_> = (0..64)
        .map(|number| {
            let store = place.store.clone();
            tokio::spawn(async move {
                let written = store
                    .write(move |change| {
                        change.insert_sandbox(&sandbox(&format!("sb-{number}")))?;
                        change.audit(&Entry::allowed(format!("actor-{number}"), "create"))?;
                        match number % 3 {
                            0 => Err(StoreError::Cursor),
                            _ => Ok(()),
                        }
                    })
                    .await;
                assert_eq!(written.is_err(), number % 3 == 0, "{written:?}");
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let records = place
        .store
        .read(|view| {
            view.audit_records(&api::AuditQuery { limit: Some(100), ..Default::default() })
        })
        .await
        .unwrap();
    let mut actors: Vec<_> = records.items.iter().map(|record| record.actor.clone()).collect();
    actors.sort();
    let mut expected: Vec<_> =
        (0..64).filter(|number| number % 3 != 0).map(|number| format!("actor-{number}")).collect();
    expected.sort();
    assert_eq!(actors, expected);
    for number in 0..64 {
        let found = place.store.read(move |view| view.sandbox(&format!("sb-{number}"))).await;
        assert_eq!(found.is_ok(), number % 3 != 0);
    }
    assert!(place.store.verify_audit(AuditRange::default()).await.unwrap().ok);
}

#[tokio::test]
async fn a_panic_takes_back_its_own_part_and_the_writer_goes_on() {
    let place = Place::new();
    let error = place
        .store
        .write(|change| -> Result<(), StoreError> {
            change.insert_sandbox(&sandbox("sb-1"))?;
            panic!("on purpose");
        })
        .await
        .unwrap_err();
    assert!(matches!(&error, StoreError::Panicked(words) if words == "on purpose"), "{error}");
    let read = place.store.read(|_| -> Result<(), StoreError> { panic!("too") }).await;
    assert!(matches!(read, Err(StoreError::Panicked(_))));
    place.store.write(|change| change.insert_sandbox(&sandbox("sb-1"))).await.unwrap();
}

#[tokio::test]
async fn work_is_done_to_its_end_for_a_caller_that_is_gone() {
    let place = Place::new();
    {
        let write = place.store.write(|change| change.insert_sandbox(&sandbox("sb-1")));
        let mut write = std::pin::pin!(write);
        // Polled once, and dropped.
        tokio::select! {
            biased;
            _ = &mut write => {}
            () = std::future::ready(()) => {}
        }
    }
    // Work is done in its order: when this is, the other was.
    place.store.write(|change| change.insert_sandbox(&sandbox("sb-2"))).await.unwrap();
    place.store.read(|view| view.sandbox("sb-1")).await.unwrap();
}

#[tokio::test]
async fn a_closed_store_takes_no_work() {
    let place = Place::new();
    let other = place.store.clone();
    place.store.close().await;
    let error = other.write(|change| change.insert_sandbox(&sandbox("sb-1"))).await.unwrap_err();
    assert!(matches!(error, StoreError::Closed), "{error}");
    let error = other.read(|view| view.sandbox("sb-1")).await.unwrap_err();
    assert!(matches!(error, StoreError::Closed), "{error}");
}

#[tokio::test]
async fn what_is_seen_in_a_change_is_what_it_did_so_far() {
    let place = Place::new();
    let seen = place
        .store
        .write(|change| {
            change.insert_sandbox(&sandbox("sb-1"))?;
            change.sandbox("sb-1")
        })
        .await
        .unwrap();
    assert_eq!(seen.sandbox.id, "sb-1");
}
