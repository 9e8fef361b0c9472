//! Deliveries to webhooks: taken from the store when they are due, and what became of them put
//! back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use access::Caller;
use api::{EventQuery, Timestamp};
use async_trait::async_trait;
use fleet::Manager;
use futures_util::StreamExt as _;
use store::{Attempt, DueDelivery, StoreError};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use webhook::{Due, Outcome};

use crate::app::App;

/// For how long a delivery is nobody else's. Longer than an attempt takes.
const LEASE: Duration = Duration::from_secs(120);
/// Another process may put deliveries into the store too, and rings no bell here.
const LOOK: Duration = Duration::from_secs(5);
/// After the store could not be read.
const PAUSE: Duration = Duration::from_secs(5);

/// The store as `webhook` sees it.
#[derive(Debug)]
pub(crate) struct Outbox {
    manager: Arc<Manager>,
    /// Rung when there may be something.
    bell: Arc<Notify>,
    stopping: CancellationToken,
    /// Of what is under way, which subscription it belongs to.
    under_way: Mutex<HashMap<String, String>>,
}

impl Outbox {
    pub(crate) fn new(app: &Arc<App>) -> Self {
        let (manager, bell) = (Arc::clone(&app.manager), Arc::clone(&app.outbox));
        app.lifetime.spawn(ring(
            Arc::clone(&manager),
            Arc::clone(&bell),
            app.lifetime.stopping.clone(),
        ));
        Self { manager, bell, stopping: app.lifetime.stopping.clone(), under_way: Mutex::default() }
    }

    async fn take(&self, most: usize) -> Result<Vec<DueDelivery>, StoreError> {
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        let now = Timestamp::now();
        let store = self.manager.store();
        // Reads are cheap and many; a write is a commit.
        match store.read(|view| view.next_delivery_at()).await? {
            Some(next) if next <= now => {
                store.write(move |change| change.take_deliveries(now, now.after(LEASE), most)).await
            }
            _ => Ok(Vec::new()),
        }
    }

    async fn until_next(&self) -> Duration {
        let next = self.manager.store().read(|view| view.next_delivery_at()).await;
        let wait = match next {
            Ok(Some(next)) => next.since(Timestamp::now()),
            Ok(None) | Err(_) => LOOK,
        };
        wait.clamp(Duration::from_millis(10), LOOK)
    }

    fn due(&self, due: DueDelivery) -> Option<Due> {
        let body = serde_json::to_vec(&due.event).ok()?;
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.insert(due.delivery.id.clone(), due.delivery.webhook);
        Some(Due {
            delivery: due.delivery.id,
            url: due.url,
            secret: due.secret,
            body,
            attempts: due.delivery.attempts,
        })
    }
}

#[async_trait]
impl webhook::Outbox for Outbox {
    async fn due(&self, most: usize) -> Option<Vec<Due>> {
        loop {
            if self.stopping.is_cancelled() {
                return None;
            }
            let wait = match self.take(most).await {
                Ok(taken) if !taken.is_empty() => {
                    return Some(taken.into_iter().filter_map(|due| self.due(due)).collect());
                }
                Ok(_) => self.until_next().await,
                Err(error) => {
                    tracing::warn!(%error, "cannot look for deliveries of webhooks");
                    PAUSE
                }
            };
            tokio::select! {
                () = self.bell.notified() => {}
                () = tokio::time::sleep(wait) => {}
                () = self.stopping.cancelled() => return None,
            }
        }
    }

    async fn settle(&self, delivery: &str, outcome: Outcome) {
        let webhook =
            self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(delivery);
        let Some(webhook) = webhook else { return };
        let (id, now) = (delivery.to_owned(), Timestamp::now());
        let attempt = match outcome {
            Outcome::Delivered { status } => Attempt::Delivered { status },
            Outcome::Later { after, status, reason } => {
                Attempt::Retry { status, error: reason, next_at: now.after(after) }
            }
            Outcome::Dead { status, reason } => Attempt::Dead { status, error: reason },
        };
        let noted = self.manager.store();
        let noted = noted.write(move |change| change.attempted(&webhook, &id, now, attempt)).await;
        match noted {
            // The subscription was removed meanwhile.
            Ok(_) | Err(StoreError::NotFound { .. }) => {}
            Err(error) => tracing::warn!(%error, delivery, "an attempt is not on record"),
        }
    }
}

/// Rings at each event: there may be a subscription to it.
async fn ring(manager: Arc<Manager>, bell: Arc<Notify>, stopping: CancellationToken) {
    let own = Caller::local(rustix::process::getuid().as_raw());
    let ringing = async {
        loop {
            if let Ok(events) = manager.follow_events(&own, EventQuery::default()).await {
                let mut events = std::pin::pin!(events);
                while let Some(Ok(_)) = events.next().await {
                    bell.notify_one();
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::select! {
        () = ringing => {}
        () = stopping.cancelled() => {}
    }
}
