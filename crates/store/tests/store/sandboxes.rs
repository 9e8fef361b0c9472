use api::{ListSandboxes, State};
use serde_json::json;
use store::StoreError;

use crate::{Place, ready, sandbox};

#[tokio::test]
async fn a_sandbox_is_found_as_it_was_put_on_record() {
    let place = Place::new();
    let mut record = sandbox("sb-1");
    record.sandbox.labels.insert("team".into(), "one".into());
    record.host = json!({"socket": "/run/x"});
    let put = record.clone();
    let sandbox = place.store.write(move |change| change.insert_sandbox(&put)).await.unwrap();
    assert_eq!(sandbox.version, 1);
    record.sandbox.version = 1;
    let found = place.store.read(|view| view.sandbox("sb-1")).await.unwrap();
    assert_eq!(found, record);
    let named = place.store.read(|view| view.sandbox_named(Some("default"), "name-sb-1")).await;
    assert_eq!(named.unwrap(), record);
    let other = place.store.read(|view| view.sandbox_named(Some("other"), "name-sb-1")).await;
    assert!(matches!(other, Err(StoreError::NotFound { .. })));
}

#[tokio::test]
async fn every_legal_move_is_made_and_every_other_is_refused() {
    let place = Place::new();
    let mut number = 0;
    for from in State::ALL {
        for to in State::ALL {
            number += 1;
            let id = format!("sb-{number}");
            let mut record = sandbox(&id);
            record.sandbox.state = from;
            let key = id.clone();
            place.store.write(move |change| change.insert_sandbox(&record)).await.unwrap();
            let moved =
                place.store.write(move |change| change.move_sandbox(&key, from, to, |_| ())).await;
            let now = place.store.read(move |view| view.sandbox(&id)).await.unwrap().sandbox;
            if from.may_become(to) {
                assert_eq!(moved.unwrap().sandbox, now);
                assert_eq!((now.state, now.version), (to, 2));
            } else {
                assert!(matches!(moved, Err(StoreError::IllegalMove { .. })), "{from} {to}");
                assert_eq!((now.state, now.version), (from, 1));
            }
        }
    }
}

#[tokio::test]
async fn a_move_from_where_the_sandbox_is_not_writes_nothing() {
    let place = Place::new();
    ready(&place.store, "sb-1").await;
    let before = place.store.read(|view| view.sandbox("sb-1")).await.unwrap();
    let error = place
        .store
        .write(|change| {
            change.move_sandbox("sb-1", State::Executing, State::Ready, |record| {
                record.sandbox.reason = Some("never seen".into());
            })
        })
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::WrongState { state: State::Ready, expected: State::Executing, .. }
        ),
        "{error}"
    );
    assert_eq!(place.store.read(|view| view.sandbox("sb-1")).await.unwrap(), before);
}

#[tokio::test]
async fn a_change_needs_the_version_that_was_seen() {
    let place = Place::new();
    ready(&place.store, "sb-1").await;
    let label = |value: &'static str, version| {
        place.store.write(move |change| {
            change.update_sandbox("sb-1", version, |record| {
                record.sandbox.labels.insert("team".into(), value.into());
            })
        })
    };
    assert_eq!(label("one", Some(3)).await.unwrap().sandbox.version, 4);
    let error = label("two", Some(3)).await.unwrap_err();
    assert!(matches!(error, StoreError::VersionMismatch { version: 4, .. }), "{error}");
    assert_eq!(label("three", None).await.unwrap().sandbox.version, 5);
}

#[tokio::test]
async fn a_change_does_not_touch_what_never_changes() {
    let place = Place::new();
    ready(&place.store, "sb-1").await;
    type Touch = fn(&mut store::SandboxRecord);
    let cases: [(&str, Touch); 4] = [
        ("state", |record| record.sandbox.state = State::Stopped),
        ("workspace", |record| record.sandbox.workspace = "other".into()),
        ("name", |record| record.sandbox.name = "other".into()),
        ("id", |record| record.sandbox.id = "sb-2".into()),
    ];
    for (expected, touch) in cases {
        let error = place
            .store
            .write(move |change| change.update_sandbox("sb-1", None, touch))
            .await
            .unwrap_err();
        assert!(
            matches!(error, StoreError::Untouchable { field, .. } if field == expected),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_name_is_free_again_when_its_sandbox_is_destroyed() {
    let place = Place::new();
    ready(&place.store, "sb-1").await;
    let twin = || {
        let mut twin = sandbox("sb-2");
        twin.sandbox.name = "name-sb-1".into();
        twin
    };
    let error = place.store.write(move |c| c.insert_sandbox(&twin())).await.unwrap_err();
    assert!(matches!(error, StoreError::NameTaken { .. }), "{error}");
    let gone = place
        .store
        .write(|change| {
            change.move_sandbox("sb-1", State::Ready, State::Destroying, |_| ())?;
            change.move_sandbox("sb-1", State::Destroying, State::Destroyed, |_| ())
        })
        .await
        .unwrap();
    assert_eq!(gone.instance, None);
    place.store.write(move |c| c.insert_sandbox(&twin())).await.unwrap();
    let named = place.store.read(|v| v.sandbox_named(None, "name-sb-1")).await.unwrap();
    assert_eq!(named.sandbox.id, "sb-2");
    // An id is never used again.
    let error = place.store.write(|c| c.insert_sandbox(&sandbox("sb-1"))).await.unwrap_err();
    assert!(matches!(error, StoreError::Exists { .. }), "{error}");
}

#[tokio::test]
async fn listings_come_newest_first_in_pages() {
    let place = Place::new();
    for number in 0..7 {
        ready(&place.store, &format!("sb-{number}")).await;
    }
    let mut query = ListSandboxes { limit: Some(3), ..ListSandboxes::default() };
    let mut seen = Vec::new();
    loop {
        let asked = query.clone();
        let page = place.store.read(move |view| view.sandboxes(&asked)).await.unwrap();
        assert!(page.items.len() <= 3);
        seen.extend(page.items.into_iter().map(|record| record.sandbox.id));
        query.cursor = page.next_cursor;
        if query.cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["sb-6", "sb-5", "sb-4", "sb-3", "sb-2", "sb-1", "sb-0"]);
    query.cursor = Some("x".into());
    let error = place.store.read(move |view| view.sandboxes(&query)).await.unwrap_err();
    assert!(matches!(error, StoreError::Cursor), "{error}");
}

#[tokio::test]
async fn filters_must_all_fit() {
    let place = Place::new();
    place
        .store
        .write(|change| {
            for (id, workspace, team) in
                [("sb-1", "one", "red"), ("sb-2", "one", "blue"), ("sb-3", "two", "red")]
            {
                let mut record = sandbox(id);
                record.sandbox.workspace = workspace.into();
                record.sandbox.labels.insert("team".into(), team.into());
                change.insert_sandbox(&record)?;
            }
            change.move_sandbox("sb-2", State::Requested, State::Failed, |_| ())?;
            change.update_sandbox("sb-3", None, |record| {
                record.sandbox.labels = [("other".to_owned(), "x".to_owned())].into();
            })
        })
        .await
        .unwrap();
    let cases: [(ListSandboxes, &[&str]); 5] = [
        (ListSandboxes { workspace: Some("one".into()), ..Default::default() }, &["sb-2", "sb-1"]),
        (ListSandboxes { label: vec!["team=red".into()], ..Default::default() }, &["sb-1"]),
        (ListSandboxes { label: vec!["other".into()], ..Default::default() }, &["sb-3"]),
        (ListSandboxes { state: vec![State::Failed], ..Default::default() }, &["sb-2"]),
        (
            ListSandboxes {
                label: vec!["team".into(), "team=blue".into()],
                name: Some("name-sb-1".into()),
                ..Default::default()
            },
            &[],
        ),
    ];
    for (query, expected) in cases {
        let words = format!("{query:?}");
        let page = place.store.read(move |view| view.sandboxes(&query)).await.unwrap();
        let ids: Vec<_> = page.items.iter().map(|record| record.sandbox.id.as_str()).collect();
        assert_eq!(ids, expected, "{words}");
    }
    let counts = place.store.read(|view| view.sandbox_counts(Some("one"))).await.unwrap();
    assert_eq!(counts, [(State::Requested, 1), (State::Failed, 1)].into());
}
