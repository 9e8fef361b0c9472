use audit::Digest;
use store::{Answer, Begun, Retention, StoreError};

use crate::{Place, at};

fn answer() -> Answer {
    Answer {
        status: 201,
        headers: vec![("etag".into(), "\"1\"".into())],
        body: "{\"id\":\"sb-1\"}".into(),
    }
}

#[tokio::test]
async fn a_request_is_done_once_and_answered_alike() {
    let place = Place::new();
    let begin = |subject: &'static str, request: &'static [u8]| {
        place.store.write(move |change| {
            change.begin_idempotent(subject, "key", &Digest::of(request), "in-1", at(1))
        })
    };
    assert_eq!(begin("alice", b"one").await.unwrap(), Begun::New);
    assert_eq!(begin("alice", b"one").await.unwrap(), Begun::InProgress(None));
    assert_eq!(begin("alice", b"two").await.unwrap(), Begun::Mismatch);
    assert_eq!(begin("bob", b"two").await.unwrap(), Begun::New);
    place.store.write(|c| c.bind_idempotent("alice", "key", "sb-1")).await.unwrap();
    assert_eq!(begin("alice", b"one").await.unwrap(), Begun::InProgress(Some("sb-1".into())));
    place.store.write(|c| c.finish_idempotent("alice", "key", &answer())).await.unwrap();
    assert_eq!(begin("alice", b"one").await.unwrap(), Begun::Done(answer()));
    assert_eq!(begin("alice", b"two").await.unwrap(), Begun::Mismatch);
}

#[tokio::test]
async fn a_request_that_came_to_nothing_can_be_tried_again() {
    let place = Place::new();
    let begun = place
        .store
        .write(|change| {
            let digest = Digest::of(b"one");
            change.begin_idempotent("alice", "key", &digest, "in-1", at(1))?;
            change.abandon_idempotent("alice", "key")?;
            change.begin_idempotent("alice", "key", &digest, "in-1", at(1))
        })
        .await
        .unwrap();
    assert_eq!(begun, Begun::New);
    let error =
        place.store.write(|c| c.finish_idempotent("bob", "key", &answer())).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn answers_are_kept_for_a_day_and_open_requests_until_they_are_closed() {
    let place = Place::new();
    let day = 24 * 60 * 60 * 1000;
    let (early, late, answer) = place
        .store
        .write(move |change| {
            for key in ["done", "open"] {
                change.begin_idempotent("alice", key, &Digest::of(b"x"), "in-1", at(1))?;
            }
            change.finish_idempotent("alice", "done", &answer())?;
            let early = change.prune(at(day), &Retention::default(), 100)?;
            let late = change.prune(at(day + 2), &Retention::default(), 100)?;
            Ok::<_, StoreError>((early.rows, late.rows, change.answer("alice", "done")?))
        })
        .await
        .unwrap();
    assert_eq!((early, late, answer), (0, 1, None));
    let open = place.store.read(|view| view.unfinished("in-1")).await.unwrap();
    assert_eq!(open.len(), 1);
    assert_eq!(open[0].key, "open");
}

#[tokio::test]
async fn a_counter_never_goes_back() {
    let place = Place::new();
    let next = async |place: &Place| {
        place.store.write(|change| change.next_number("policy_generation")).await.unwrap()
    };
    assert_eq!(next(&place).await, 1);
    assert_eq!(next(&place).await, 2);
    let place = place.reopen(crate::options()).await;
    assert_eq!(next(&place).await, 3);
}
