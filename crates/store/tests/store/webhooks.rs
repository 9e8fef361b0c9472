use api::{
    DeliveryQuery, DeliveryState, EventKind, EventQuery, PageQuery, Secret, Timestamp, Webhook,
};
use serde_json::Map;
use store::{Attempt, Options, StoreError};

use crate::{Place, at, options};

fn webhook(id: &str, workspace: Option<&str>, kinds: &[EventKind]) -> Webhook {
    Webhook {
        id: id.into(),
        url: "https://example.org/hook".into(),
        kinds: kinds.to_vec(),
        name: None,
        workspace: workspace.map(str::to_owned),
        created_at: at(0),
        created_by: "alice".into(),
    }
}

fn secret() -> Secret {
    Secret::new(b"whsec".to_vec()).unwrap()
}

async fn with_webhooks(place: &Place, webhooks: Vec<Webhook>) {
    let add = move |change: &mut store::Change<'_>| {
        webhooks.iter().try_for_each(|webhook| change.insert_webhook(webhook, &secret()))
    };
    place.store.write(add).await.unwrap();
}

async fn happens(place: &Place, kind: EventKind, workspace: &'static str) {
    place
        .store
        .write(move |change| change.event(kind, Some("sb-1"), Some(workspace), Map::new()))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_event_goes_to_those_that_want_it() {
    let place = Place::new();
    with_webhooks(
        &place,
        vec![
            webhook("wh-all", None, &[]),
            webhook("wh-one", Some("one"), &[]),
            webhook("wh-two", Some("two"), &[]),
            webhook("wh-timeouts", None, &[EventKind::TaskTimeout]),
        ],
    )
    .await;
    happens(&place, EventKind::SandboxCreated, "one").await;
    let later = Timestamp::now().after(std::time::Duration::from_secs(60));
    let due = place.store.write(move |c| c.take_deliveries(later, later, 100)).await.unwrap();
    let mut ids: Vec<_> = due.iter().map(|due| due.delivery.webhook.as_str()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["wh-all", "wh-one"]);
    assert_eq!(due[0].secret, secret());
    assert_eq!(due[0].event.kind, EventKind::SandboxCreated);
}

#[tokio::test]
async fn an_event_that_was_taken_back_goes_nowhere() {
    let place = Place::new();
    with_webhooks(&place, vec![webhook("wh-1", None, &[])]).await;
    let mut listener = place.store.events();
    let failed = place
        .store
        .write(|change| {
            change.event(EventKind::SandboxCreated, None, None, Map::new())?;
            Err::<(), _>(StoreError::Cursor)
        })
        .await;
    assert!(failed.is_err());
    happens(&place, EventKind::SandboxStarted, "one").await;
    assert_eq!(listener.recv().await.unwrap().kind, EventKind::SandboxStarted);
    let query = EventQuery::default();
    let events = place.store.read(move |view| view.events(&query)).await.unwrap();
    assert_eq!(events.len(), 1);
}

#[tokio::test]
async fn a_delivery_is_tried_until_it_is_taken_or_dead() {
    let place = Place::new();
    with_webhooks(&place, vec![webhook("wh-1", None, &[])]).await;
    happens(&place, EventKind::SandboxCreated, "one").await;
    let begin = Timestamp::now().unix_ms();
    let take = |ms: i64| {
        let (now, until) = (at(begin + ms), at(begin + ms + 1000));
        place.store.write(move |change| change.take_deliveries(now, until, 10))
    };
    let taken = take(0).await.unwrap();
    assert_eq!(taken.len(), 1);
    let id = taken[0].delivery.id.clone();
    // Nobody else gets it while the first has it; when that one is silent, it is due again.
    assert_eq!(take(999).await.unwrap(), []);
    assert_eq!(take(1000).await.unwrap().len(), 1);
    let attempted = |ms: i64, attempt: Attempt| {
        let id = id.clone();
        place.store.write(move |change| change.attempted("wh-1", &id, at(begin + ms), attempt))
    };
    let retry =
        Attempt::Retry { status: Some(500), error: "500".into(), next_at: at(begin + 5000) };
    let delivery = attempted(1001, retry).await.unwrap();
    assert_eq!((delivery.state, delivery.attempts), (DeliveryState::Pending, 1));
    assert_eq!(take(4999).await.unwrap(), []);
    let next = place.store.read(|view| view.next_delivery_at()).await.unwrap();
    assert_eq!(next, Some(at(begin + 5000)));
    let dead = Attempt::Dead { status: None, error: "refused".into() };
    attempted(5000, dead).await.unwrap();
    assert_eq!(take(60_000).await.unwrap(), []);
    let query = DeliveryQuery { state: Some(DeliveryState::Dead), ..Default::default() };
    let dead = place.store.read(move |view| view.deliveries("wh-1", &query)).await.unwrap();
    assert_eq!(dead.items.len(), 1);
    assert_eq!(dead.items[0].attempts, 2);
    assert_eq!(dead.items[0].last_error.as_deref(), Some("refused"));
    let again = id.clone();
    place.store.write(move |c| c.redeliver("wh-1", &again, at(begin + 70_000))).await.unwrap();
    assert_eq!(take(70_000).await.unwrap().len(), 1);
    let delivery = attempted(70_001, Attempt::Delivered { status: 204 }).await.unwrap();
    assert_eq!((delivery.state, delivery.last_status), (DeliveryState::Delivered, Some(204)));
}

#[tokio::test]
async fn a_subscription_goes_with_its_deliveries() {
    let place = Place::new();
    with_webhooks(&place, vec![webhook("wh-1", None, &[])]).await;
    happens(&place, EventKind::SandboxCreated, "one").await;
    place.store.write(|change| change.delete_webhook("wh-1")).await.unwrap();
    let next = place.store.read(|view| view.next_delivery_at()).await.unwrap();
    assert_eq!(next, None);
    let left = place.store.read(|view| view.webhooks(None, &PageQuery::default())).await.unwrap();
    assert_eq!(left.items, []);
    let error = place.store.write(|change| change.delete_webhook("wh-1")).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn old_events_make_room_for_new_ones() {
    let place = Place::with(Options { events_kept: 100, ..options() });
    place
        .store
        .write(|change| {
            for _ in 0..600 {
                change.event(EventKind::TaskStarted, None, Some("one"), Map::new())?;
            }
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
    let query = EventQuery { limit: Some(1000), ..EventQuery::default() };
    let events = place.store.read(move |view| view.events(&query)).await.unwrap();
    assert!((100..=100 + 256).contains(&events.len()), "{}", events.len());
    assert_eq!(events.last().unwrap().id, 600);
    let query = EventQuery { since: Some(598), ..EventQuery::default() };
    let since = place.store.read(move |view| view.events(&query)).await.unwrap();
    assert_eq!(since.iter().map(|event| event.id).collect::<Vec<_>>(), [599, 600]);
}

#[tokio::test]
async fn deliveries_that_are_over_are_pruned() {
    let place = Place::new();
    with_webhooks(&place, vec![webhook("wh-1", None, &[])]).await;
    happens(&place, EventKind::SandboxCreated, "one").await;
    happens(&place, EventKind::SandboxStarted, "one").await;
    let rows = place
        .store
        .write(|change| {
            change.attempted("wh-1", "wh-1-1", at(1), Attempt::Delivered { status: 200 })?;
            let week = std::time::Duration::from_secs(8 * 24 * 60 * 60);
            let later = Timestamp::now().after(week);
            Ok::<_, StoreError>(change.prune(later, &store::Retention::default(), 100)?.rows)
        })
        .await
        .unwrap();
    assert_eq!(rows, 1);
    let query = DeliveryQuery::default();
    let left = place.store.read(move |view| view.deliveries("wh-1", &query)).await.unwrap();
    assert_eq!(left.items.len(), 1);
    assert_eq!(left.items[0].state, DeliveryState::Pending);
}
