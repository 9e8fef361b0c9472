//! The loop that empties the outbox.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use wire::text::Secret;

use crate::{Courier, schedule};

/// Attempts under way at once: one slow receiver does not hold the others up.
const AT_ONCE: usize = 16;

/// A notice whose time has come.
#[derive(Debug)]
pub struct Due {
    /// Its id, the same for every attempt: a receiver knows by it what it has seen.
    pub delivery: String,
    /// Where it goes.
    pub url: String,
    /// What it is signed with.
    pub secret: Secret,
    /// JSON.
    pub body: Vec<u8>,
    /// How often it was tried before.
    pub attempts: u32,
}

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was taken.
    Delivered {
        /// With this status.
        status: u16,
    },
    /// It was not, and will be tried again.
    Later {
        /// When.
        after: Duration,
        /// The receiver's status, where it gave one.
        status: Option<u16>,
        /// In words.
        reason: String,
    },
    /// It was not, and was tried as often as it ever is.
    Dead {
        /// The receiver's status, where it gave one.
        status: Option<u16>,
        /// In words.
        reason: String,
    },
}

/// Where notices wait.
#[async_trait]
pub trait Outbox: Send + Sync + 'static {
    /// Waits until notices are due and takes up to `most` of them. Each is given out again only
    /// after [`Outbox::settle`], or after a restart. None means that there will be no more.
    async fn due(&self, most: usize) -> Option<Vec<Due>>;

    /// Takes note of what became of an attempt.
    async fn settle(&self, delivery: &str, outcome: Outcome);
}

/// Carries what is due until the outbox ends, and then finishes what is under way.
pub async fn run(outbox: Arc<dyn Outbox>, courier: Courier) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut attempts = JoinSet::new();
    loop {
        while attempts.try_join_next().is_some() {}
        let Ok(place) = places.clone().acquire_owned().await else { break };
        let Some(due) = outbox.due(places.available_permits() + 1).await else { break };
        drop(place);
        for due in due {
            let Ok(place) = places.clone().acquire_owned().await else { break };
            let (outbox, courier) = (outbox.clone(), courier.clone());
            attempts.spawn(async move {
                let delivery = due.delivery.clone();
                let outcome = attempt(&courier, due).await;
                tracing::debug!(%delivery, ?outcome, "notice");
                outbox.settle(&delivery, outcome).await;
                drop(place);
            });
        }
    }
    while attempts.join_next().await.is_some() {}
}

async fn attempt(courier: &Courier, due: Due) -> Outcome {
    let Due { delivery, url, secret, body, attempts } = due;
    let failure = match courier.deliver(&url, &secret, &delivery, body).await {
        Ok(status) => return Outcome::Delivered { status },
        Err(failure) => failure,
    };
    let (status, reason) = (failure.status(), failure.to_string());
    let mut chance = [0; 4];
    // Without randomness all wait equally long, which is no reason to lose a notice.
    let _ = getrandom::fill(&mut chance);
    match schedule::after(attempts + 1, u32::from_ne_bytes(chance)) {
        Some(after) => Outcome::Later { after, status, reason },
        None => Outcome::Dead { status, reason },
    }
}
