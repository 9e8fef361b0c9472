//! What a daemon does now and then: what is over is forgotten, old audit records move to files.

use std::time::Duration;

use api::Timestamp;
use store::{Retention, StoreError};

use crate::manager::Manager;

/// Between two rounds.
const INTERVAL: Duration = Duration::from_secs(300);
/// Audit records that stay where they are searched; older ones move to files.
const AUDIT_KEPT: u64 = 1_000_000;
/// Rows of each kind that one transaction forgets.
const AT_ONCE: u32 = 500;

impl Manager {
    pub(crate) fn spawn_upkeep(&self) {
        let manager = self.arc();
        self.tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(INTERVAL) => {}
                    () = manager.closed() => return,
                }
                if let Err(error) = manager.forget_old().await {
                    tracing::warn!(%error, "cannot forget what is over");
                }
            }
        });
    }

    async fn forget_old(&self) -> Result<(), StoreError> {
        let retention = Retention::default();
        loop {
            let pruned = self
                .store()
                .write(move |change| change.prune(Timestamp::now(), &retention, AT_ONCE))
                .await?;
            if !pruned.more {
                break;
            }
        }
        let shelf = self.shelf();
        let _ = tokio::task::spawn_blocking(move || shelf.prune()).await;
        self.store().rotate_audit(AUDIT_KEPT).await.map(drop)
    }
}
