//! What the supervisor remembers, in SQLite.
//!
//! [`Store::write`] runs a closure over a [`Change`], and answers when what it did is on disk.
//! Writers that come at the same time share one commit; one that fails takes back its own part
//! and no other's. The audit records and the events of a change are written by the same
//! `Change`, so that neither is ever there without the other. [`Store::read`] runs a closure
//! over a [`View`], beside writers and other readers.
//!
//! Several processes may have one store open. Each registers as an [`Instance`]; what it owned
//! can be taken over when it is gone.
#![forbid(unsafe_code)]

mod audit_log;
mod change;
mod cursor;
mod directory;
mod error;
mod event;
mod execution;
mod idempotency;
mod instance;
mod key;
mod open;
mod prune;
mod reader;
mod sandbox;
mod schema;
mod setting;
mod token;
mod view;
mod webhook;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use audit_log::AuditExport;
pub use change::Change;
pub use error::StoreError;
pub use idempotency::{Answer, Begun, Unfinished};
pub use instance::{DeadInstance, Instance, TakenOver};
pub use open::Options;
pub use prune::{Pruned, Retention};
pub use sandbox::SandboxRecord;
pub use view::View;
pub use webhook::{Attempt, DueDelivery};

use tokio::sync::broadcast;

/// The store of one data directory. Clones are the same store; [`Store::close`] ends it.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    options: Options,
    writer: writer::Writer,
    readers: reader::Readers,
    events: broadcast::Sender<Arc<api::Event>>,
    key: Arc<audit::Key>,
    rotation: tokio::sync::Mutex<()>,
}

impl Store {
    /// The directory that all of it is in.
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// Runs `work` in a transaction and answers when it is committed, with an fsync. Where
    /// `work` fails, all that it did is taken back; where it succeeds but the commit does not,
    /// nothing of it was done, and the commit's error is the answer.
    ///
    /// Once this was polled, `work` is done to its end even if the future is dropped.
    ///
    /// `work` runs on the one thread that writes: it must not block.
    ///
    /// # Errors
    /// What `work` says; else `Full`, `Busy`, `Closed`, `Panicked` or `Database`.
    pub async fn write<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&mut Change<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        self.inner.writer.write(work).await
    }

    /// Runs `work` over one consistent state of the store, beside everything else.
    ///
    /// # Errors
    /// What `work` says; else `Closed`, `Panicked` or `Database`.
    pub async fn read<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&View<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        self.inner.readers.read(work).await
    }

    /// The same on the caller's own thread, for rows that are found by a key: handing it to another
    /// thread takes longer than that.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn look_up<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&View<'_>) -> Result<T, E>,
        E: From<StoreError>,
    {
        self.inner.readers.look_up(work).await
    }

    /// Events of this process from now on, each after its commit, in their order. A receiver
    /// that falls behind is told so, and reads the rest with [`View::events`].
    pub fn events(&self) -> broadcast::Receiver<Arc<api::Event>> {
        self.inner.events.subscribe()
    }
}
