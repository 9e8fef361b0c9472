use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use api::State;
use audit::AuditError;
use rusqlite::ErrorCode;

/// Why something cannot be remembered or looked up. Writers that shared a commit share its
/// error, so it can be cloned.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The disk is full. Nothing was written, and nothing that was written before is lost.
    #[error("the disk of the data directory is full; make room on it, then try again")]
    Full,
    /// Another change of the same commit failed so that the database took back all of them.
    #[error("the database took this back together with another change that failed; try again")]
    TakenBack,
    /// There is no such thing.
    #[error("there is no {kind} `{id}`")]
    NotFound {
        /// What kind of thing.
        kind: &'static str,
        /// Which.
        id: String,
    },
    /// There is one already.
    #[error("there is a {kind} `{id}` already")]
    Exists {
        /// What kind of thing.
        kind: &'static str,
        /// Which.
        id: String,
    },
    /// Another sandbox of the workspace has the name.
    #[error("the name `{name}` is in use in workspace `{workspace}`")]
    NameTaken {
        /// Where.
        workspace: String,
        /// Which.
        name: String,
    },
    /// No sandbox may make this move.
    #[error("a sandbox that is {from} cannot become {to}")]
    IllegalMove {
        /// From where.
        from: State,
        /// To where.
        to: State,
    },
    /// The sandbox is not where the move begins.
    #[error("sandbox `{id}` is {state}, not {expected}")]
    WrongState {
        /// Which.
        id: String,
        /// Where it is.
        state: State,
        /// Where it was thought to be.
        expected: State,
    },
    /// The sandbox was changed since the caller looked.
    #[error("sandbox `{id}` has version {version} by now")]
    VersionMismatch {
        /// Which.
        id: String,
        /// What it has.
        version: u64,
    },
    /// A change touched what has a method of its own or never changes.
    #[error("a change of sandbox `{id}` may not touch its {field}")]
    Untouchable {
        /// Which.
        id: String,
        /// The field.
        field: &'static str,
    },
    /// The signature's nonce was used before.
    #[error("this nonce was used before")]
    Replayed,
    /// The cursor is not one of this listing.
    #[error("the cursor is not one that this listing gave")]
    Cursor,
    /// Another process held the database for too long.
    #[error("another process has been writing to the store for too long; try again")]
    Busy,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// The closure panicked; what it did was taken back.
    #[error("a change of the store panicked: {0}")]
    Panicked(String),
    /// The database is of a later version.
    #[error("{path} was written by a later version (schema {found}, known up to {known})")]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The last one that is known here.
        known: u32,
    },
    /// The file is a database of something else.
    #[error("{path} is not a store of sandforge")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The database is damaged.
    #[error("the store is damaged ({0}); restore it from a backup")]
    Corrupt(String),
    /// The data directory cannot be used.
    #[error("cannot use the data directory {path}: {reason}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What to do about it.
        reason: String,
    },
    /// A stored value cannot be read back.
    #[error("cannot read a stored {kind}: {reason}")]
    Unreadable {
        /// What kind of thing.
        kind: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        source: Arc<io::Error>,
    },
    /// The system has no randomness to give.
    #[error("cannot get random bytes from the system: {0}")]
    Random(String),
    /// The audit log failed; what was to be recorded was not done either.
    #[error(transparent)]
    Audit(Arc<AuditError>),
    /// The database failed.
    #[error("the store's database failed: {0}")]
    Database(Arc<rusqlite::Error>),
}

impl StoreError {
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source: Arc::new(source) }
    }

    pub(crate) fn not_found(kind: &'static str, id: &str) -> Self {
        Self::NotFound { kind, id: id.to_owned() }
    }

    /// Whether a disk without room would explain it.
    pub(crate) fn may_be_full(&self) -> bool {
        match self {
            Self::Full | Self::TakenBack => true,
            Self::Database(error) => error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure),
            _ => false,
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        // An index of the journal that cannot grow is an I/O error to SQLite.
        const SHARED_MEMORY_SIZE: i32 = rusqlite::ffi::SQLITE_IOERR_SHMSIZE;
        if error.sqlite_error().is_some_and(|e| e.extended_code == SHARED_MEMORY_SIZE) {
            return Self::Full;
        }
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Corrupt(error.to_string())
            }
            _ => Self::Database(Arc::new(error)),
        }
    }
}

impl From<AuditError> for StoreError {
    fn from(error: AuditError) -> Self {
        match error {
            AuditError::Database(error) => error.into(),
            other => Self::Audit(Arc::new(other)),
        }
    }
}
