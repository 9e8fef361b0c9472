use std::time::Duration;

use api::Timestamp;
use rusqlite::params;

use crate::{Change, StoreError};

/// How long what is over is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Answers to requests with a key.
    pub idempotency: Duration,
    /// Destroyed sandboxes, with their processes.
    pub destroyed: Duration,
    /// Deliveries that were made, and dead letters.
    pub deliveries: Duration,
    /// Tokens and keys that have expired or were revoked.
    pub credentials: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        let days = |days: u64| Duration::from_secs(days * 24 * 60 * 60);
        Self {
            idempotency: days(1),
            destroyed: days(7),
            deliveries: days(7),
            credentials: days(90),
        }
    }
}

/// How much went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Rows in all.
    pub rows: usize,
    /// There is more: prune again.
    pub more: bool,
}

impl Change<'_> {
    /// Removes what is over and was kept for long enough, up to `most` rows of each kind.
    ///
    /// # Errors
    /// `Database`.
    pub fn prune(
        &mut self,
        now: Timestamp,
        retention: &Retention,
        most: u32,
    ) -> Result<Pruned, StoreError> {
        let before = |age: Duration| {
            now.unix_ms().saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
        };
        // A request that has no answer is somebody's to finish, however old.
        let steps = [
            (
                "DELETE FROM nonces WHERE (key, nonce) IN \
              (SELECT key, nonce FROM nonces WHERE expires_at < ? LIMIT ?)",
                now.unix_ms(),
            ),
            (
                "DELETE FROM idempotency WHERE (subject, key) IN (SELECT subject, key \
              FROM idempotency WHERE begun_at < ? AND answer IS NOT NULL LIMIT ?)",
                before(retention.idempotency),
            ),
            (
                "DELETE FROM sandboxes WHERE number IN (SELECT number FROM sandboxes \
              WHERE state = 'destroyed' AND ended_at < ? LIMIT ?)",
                before(retention.destroyed),
            ),
            (
                "DELETE FROM deliveries WHERE number IN (SELECT number FROM deliveries \
              WHERE state <> 'pending' AND body ->> '$.created_at' < \
              strftime('%Y-%m-%dT%H:%M:%fZ', ? / 1000.0, 'unixepoch') LIMIT ?)",
                before(retention.deliveries),
            ),
            (
                "DELETE FROM tokens WHERE number IN (SELECT number FROM tokens \
              WHERE MIN(COALESCE(revoked_at, expires_at), COALESCE(expires_at, revoked_at)) < ? \
              LIMIT ?)",
                before(retention.credentials),
            ),
            (
                "DELETE FROM keys WHERE number IN (SELECT number FROM keys \
              WHERE MIN(COALESCE(revoked_at, expires_at), COALESCE(expires_at, revoked_at)) < ? \
              LIMIT ?)",
                before(retention.credentials),
            ),
        ];
        let mut pruned = Pruned::default();
        for (sql, limit) in steps {
            let rows = self.connection.prepare_cached(sql)?.execute(params![limit, most])?;
            pruned.rows += rows;
            pruned.more |= u32::try_from(rows).unwrap_or(u32::MAX) >= most;
        }
        Ok(pruned)
    }
}
