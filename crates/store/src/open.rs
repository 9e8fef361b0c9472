use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::Timestamp;
use audit::Head;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::broadcast;

use crate::reader::Readers;
use crate::writer::{BUSY, Thread, Writer, has_room};
use crate::{Inner, Store, StoreError, directory, schema};

/// How a store is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Connections for reading.
    pub readers: usize,
    /// Events that are kept at least, the oldest going first.
    pub events_kept: u64,
    /// The audit log's head is signed after so many records,
    pub checkpoint_records: u64,
    /// and after so long where there are new ones.
    pub checkpoint_interval: Duration,
    /// Room on the disk, in bytes, that is left for the ends of what was begun: with less,
    /// [`Store::room`] is an error.
    pub reserve_bytes: u64,
    /// Pages of 4 KiB that the database may have; for tests of a full disk. `None` for no bound.
    pub max_pages: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            readers: 4,
            events_kept: 100_000,
            checkpoint_records: 1024,
            checkpoint_interval: Duration::from_secs(10),
            reserve_bytes: 64 << 20,
            max_pages: None,
        }
    }
}

impl Store {
    /// Opens the store of `directory`, or makes it. What is there is checked, and brought to the
    /// present version. This blocks: call it before there are clients, or on a thread for that.
    ///
    /// # Errors
    /// `Directory` where others can get at it, `Foreign`, `Newer`, `Corrupt`, `Audit` where the
    /// signing key is missing, `File` and `Database`.
    pub fn open(directory: &Path, options: Options) -> Result<Self, StoreError> {
        let directory = directory::prepare(directory)?;
        let path = directory::database(&directory);
        let mut connection = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
        if let Some(pages) = options.max_pages {
            connection.pragma_update(None, "max_page_count", pages)?;
        }
        schema::migrate(&mut connection, &path)?;
        check(&connection)?;

        let last = audit::latest_checkpoint(&connection)?;
        let key_path = directory::audit_key(&directory);
        let key = match last {
            // A new key would make every signature before it worthless, unseen.
            Some(_) => audit::Key::load(&key_path)?,
            None => audit::Key::create(&key_path)?,
        };
        let head_path = directory::audit_head(&directory);
        audit::check_head(&connection, &head_path)?;
        // A crash may have come between a commit and the file. There always is one, so that its
        // absence means something.
        let present = audit::read_head_file(&head_path)?;
        let newest = last.clone().or_else(|| {
            present.is_none().then(|| audit::sign(Head::START, &key, Timestamp::now()))
        });
        if let Some(Err(error)) = newest.map(|head| audit::write_head_file(&head_path, &head)) {
            // On a full disk, what was begun can still be ended.
            tracing::warn!(%error, "the head of the audit log is not in its file");
        }
        let signed = last.map_or(0, |checkpoint| checkpoint.seq);
        let head = Head::read(&connection)?;
        let readers = (0..options.readers.max(1))
            .map(|_| connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY))
            .collect::<Result<_, _>>()?;
        let (events, _) = broadcast::channel(4096);
        let key = Arc::new(key);
        let writer = Writer::start(Thread {
            connection,
            directory: directory.clone(),
            options: options.clone(),
            key: Arc::clone(&key),
            events: events.clone(),
            signed,
            unsigned_since: (head.seq > signed).then(Instant::now),
        })?;
        Ok(Self {
            inner: Arc::new(Inner {
                directory,
                options,
                writer,
                readers: Readers::new(readers),
                events,
                key,
                rotation: tokio::sync::Mutex::default(),
            }),
        })
    }

    /// Takes no more work, does what it has, signs the audit log's head and closes the database.
    pub async fn close(self) {
        self.inner.readers.close();
        if let Some(thread) = self.inner.writer.close() {
            // It only ends; a panic of it was told to its callers.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }

    /// Whether there is room on the disk for new work. The ends of what was begun are written
    /// as long as there is any.
    ///
    /// # Errors
    /// `Full`.
    pub fn room(&self) -> Result<(), StoreError> {
        let room = has_room(&self.inner.directory, self.inner.options.reserve_bytes);
        if room { Ok(()) } else { Err(StoreError::Full) }
    }

    /// The public half of the key that signs the audit log.
    pub fn audit_public_key(&self) -> audit::VerifyingKey {
        self.inner.key.public()
    }
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection, StoreError> {
    // One thread has each connection at a time: SQLite's own locks are not needed.
    let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    // Pages that a statement or a part of a transaction may have to put back: SQLite would write them
    // to a file for each statement.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.set_prepared_statement_cache_capacity(128);
    Ok(connection)
}

fn check(connection: &Connection) -> Result<(), StoreError> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found == "ok" { Ok(()) } else { Err(StoreError::Corrupt(found)) }
}
