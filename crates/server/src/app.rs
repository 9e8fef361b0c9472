//! What all requests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fleet::Manager;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use webhook::Courier;

use crate::host::Allowed;
use crate::metrics::Metrics;
use crate::rate::Rates;
use crate::{Config, Limits};

/// How long a server is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lifetime {
    /// No further request is taken, and endless answers end; the others go on.
    pub(crate) stopping: CancellationToken,
    /// What is not answered now never is.
    pub(crate) stopped: CancellationToken,
    /// Connections, and what became of those that are no longer HTTP.
    pub(crate) tasks: TaskTracker,
}

impl Lifetime {
    /// Runs what the server's end waits for, within bounds.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stopped = self.stopped.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = work => {}
                () = stopped.cancelled() => {}
            }
        });
    }

    /// Waits for what is being answered, at most so long; what is left then is cut off.
    pub(crate) async fn end(&self, grace: Duration) {
        self.stopping.cancel();
        self.tasks.close();
        if tokio::time::timeout(grace, self.tasks.wait()).await.is_err() {
            self.stopped.cancel();
            self.tasks.wait().await;
        }
    }
}

/// What all requests share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) manager: Arc<Manager>,
    pub(crate) limits: Limits,
    pub(crate) allowed: Allowed,
    pub(crate) rates: Rates,
    pub(crate) metrics: Metrics,
    pub(crate) lifetime: Lifetime,
    /// Says where webhooks may go.
    pub(crate) courier: Courier,
    /// Rung when a delivery is put on its way by hand.
    pub(crate) outbox: Arc<Notify>,
    /// The OpenAPI document.
    pub(crate) document: Bytes,
    /// Tells the requests of this process from those of others in one log.
    process: u64,
    requests: AtomicU64,
}

impl App {
    pub(crate) fn new(manager: Arc<Manager>, config: &Config) -> Self {
        let document = serde_json::to_vec(&api::openapi()).unwrap_or_default();
        Self {
            limits: config.limits,
            allowed: Allowed::new(&config.hosts, &config.origins),
            rates: Rates::new(&config.limits),
            metrics: Metrics::new(&manager),
            manager,
            lifetime: Lifetime::default(),
            courier: Courier::new(config.webhooks.clone()),
            outbox: Arc::default(),
            document: document.into(),
            process: rand_prefix(),
            requests: AtomicU64::new(0),
        }
    }

    /// The id of the next request.
    pub(crate) fn next_request(&self) -> String {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        format!("{:012x}-{number:x}", self.process & 0xffff_ffff_ffff)
    }
}

/// Not secret: two processes of one log should not begin alike.
fn rand_prefix() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::process::id())
}
