use std::io;
use std::path::PathBuf;

/// Why the log cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// A record was to be written outside of a transaction.
    #[error("an audit record belongs in the transaction of the change it tells of")]
    NoTransaction,
    /// A field is longer than a record can hold.
    #[error("the audit record's {field} is {length} bytes long; at most {most} are kept")]
    TooLong {
        /// Which.
        field: &'static str,
        /// Its length in bytes.
        length: usize,
        /// The bound in bytes.
        most: usize,
    },
    /// A stored record is not one that was ever written: it was changed.
    #[error("audit record {seq} cannot be read ({reason}); run `sandforge audit verify`")]
    Unreadable {
        /// Its place.
        seq: u64,
        /// What is wrong.
        reason: String,
    },
    /// The key file is not what it must be.
    #[error("cannot use the audit key {path}: {reason}")]
    Key {
        /// The file.
        path: PathBuf,
        /// What to do about it.
        reason: String,
    },
    /// There are no records to move to a file.
    #[error("there is nothing to rotate")]
    NothingToRotate,
    /// The chain does not hold, so nothing of it is signed anew.
    #[error("the audit log was tampered with ({reason}); run `sandforge audit verify`")]
    Broken {
        /// What is wrong, in words.
        reason: String,
    },
    /// The chain in the database is not the one whose head was signed last.
    #[error(
        "the audit log ends with record {ends}, or is another one: {path} has the signed head of \
         record {signed}. Restore the database; or, to go on without what is missing, move that \
         file away"
    )]
    Cut {
        /// The last record that is there.
        ends: u64,
        /// The last one that was signed.
        signed: u64,
        /// The head file.
        path: PathBuf,
    },
    /// The database failed.
    #[error("the audit log's database failed: {0}")]
    Database(#[from] rusqlite::Error),
    /// A file could not be read or written.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// What is exported could not be handed on.
    #[error("cannot write the export: {0}")]
    Export(io::Error),
    /// What is to be verified could not be read.
    #[error("cannot read the exported log: {0}")]
    Import(io::Error),
    /// The system has no randomness to give.
    #[error("cannot get random bytes from the system: {0}")]
    Random(String),
}

impl AuditError {
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
