//! The tables, and how an older database becomes a newer one.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use crate::StoreError;

/// `sfst` in the header of the file: what kind of database it is.
const APPLICATION: i32 = 0x7366_7374;

/// What makes each version of the one before. They are never changed, only added to.
///
/// A thing's `body` is its type of the API as JSON. The columns beside it are what is looked
/// for, and are written with it.
const MIGRATIONS: &[&[&str]] = &[&[audit::SCHEMA, FIRST]];

const FIRST: &str = "
CREATE TABLE settings (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE instances (
    id TEXT PRIMARY KEY,
    pid INTEGER NOT NULL,
    started_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE sandboxes (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    workspace TEXT NOT NULL,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    version INTEGER NOT NULL,
    instance TEXT,
    created_at INTEGER NOT NULL,
    ended_at INTEGER,
    host TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX sandboxes_by_name ON sandboxes (workspace, name) WHERE state <> 'destroyed';
CREATE INDEX sandboxes_by_workspace ON sandboxes (workspace, number);
CREATE INDEX sandboxes_alive ON sandboxes (instance, state) WHERE state <> 'destroyed';
CREATE INDEX sandboxes_ended ON sandboxes (ended_at) WHERE state = 'destroyed';

CREATE TABLE sandbox_labels (
    sandbox INTEGER NOT NULL REFERENCES sandboxes (number) ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (sandbox, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE executions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    sandbox TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    process TEXT NOT NULL,
    running INTEGER NOT NULL,
    body TEXT NOT NULL,
    UNIQUE (sandbox, process)
) STRICT;
CREATE INDEX executions_running ON executions (sandbox) WHERE running = 1;

CREATE TABLE tokens (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    hash BLOB NOT NULL UNIQUE,
    workspace TEXT,
    expires_at INTEGER,
    revoked_at INTEGER,
    body TEXT NOT NULL
) STRICT;

CREATE TABLE keys (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    workspace TEXT,
    expires_at INTEGER,
    revoked_at INTEGER,
    body TEXT NOT NULL
) STRICT;

CREATE TABLE nonces (
    key TEXT NOT NULL,
    nonce TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (key, nonce)
) STRICT, WITHOUT ROWID;
CREATE INDEX nonces_by_expiry ON nonces (expires_at);

CREATE TABLE idempotency (
    subject TEXT NOT NULL,
    key TEXT NOT NULL,
    request BLOB NOT NULL,
    instance TEXT NOT NULL,
    sandbox TEXT,
    begun_at INTEGER NOT NULL,
    answer TEXT,
    PRIMARY KEY (subject, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_by_age ON idempotency (begun_at);
CREATE INDEX idempotency_unfinished ON idempotency (instance) WHERE answer IS NULL;

CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    kind TEXT NOT NULL,
    sandbox TEXT,
    workspace TEXT,
    data TEXT NOT NULL
) STRICT;

CREATE TABLE webhooks (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    workspace TEXT,
    secret BLOB NOT NULL,
    body TEXT NOT NULL
) STRICT;

CREATE TABLE deliveries (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    webhook TEXT NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    state TEXT NOT NULL,
    next_at INTEGER,
    event TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX deliveries_by_webhook ON deliveries (webhook, number);
CREATE INDEX deliveries_due ON deliveries (next_at) WHERE state = 'pending';
";

/// The version that this program writes.
pub(crate) fn version() -> u32 {
    u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX)
}

/// Brings the database to the present version, in one transaction.
pub(crate) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    // Immediate: of two processes that open a new store, one makes it and the other finds it.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let number =
        |name: &str| transaction.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let application = number("application_id")?;
    let found = u32::try_from(number("user_version")?).unwrap_or(u32::MAX);
    let tables: i64 =
        transaction.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != APPLICATION && (tables > 0 || found > 0) {
        return Err(StoreError::Foreign { path: path.to_owned() });
    }
    let known = version();
    if found > known {
        return Err(StoreError::Newer { path: path.to_owned(), found, known });
    }
    let done = usize::try_from(found).unwrap_or(usize::MAX);
    for step in MIGRATIONS.get(done..).unwrap_or_default().iter().copied().flatten() {
        transaction.execute_batch(step)?;
    }
    if found < known {
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", known)?;
    }
    transaction.commit()?;
    Ok(())
}
