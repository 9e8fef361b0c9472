use std::ops::Deref;
use std::sync::Arc;

use api::{Checkpoint, EventKind, Timestamp};
use audit::{Entry, Head, Key};
use rusqlite::Connection;
use serde_json::{Map, Value};

use crate::{StoreError, View};

/// A transaction under way. Its methods are in the modules of what they change; what a [`View`]
/// sees is seen here too, with the changes so far.
#[derive(Debug)]
pub struct Change<'c> {
    view: View<'c>,
    pub(crate) head: Head,
    /// Told to listeners after the commit.
    pub(crate) events: Vec<Arc<api::Event>>,
    pub(crate) events_kept: u64,
    /// Goes to the head file after the commit.
    pub(crate) checkpoint: Option<Checkpoint>,
    key: &'c Key,
}

impl<'c> Change<'c> {
    /// `connection` must have a transaction for writing open.
    pub(crate) fn begin(
        connection: &'c Connection,
        key: &'c Key,
        events_kept: u64,
    ) -> Result<Self, StoreError> {
        // Another process may have written since the last time: the head is read each time.
        let head = Head::read(connection)?;
        let view = View { connection };
        Ok(Self { view, head, events: Vec::new(), events_kept, checkpoint: None, key })
    }

    /// Records what was decided or done, in the transaction of what it tells of. Gives its place
    /// in the chain.
    ///
    /// # Errors
    /// `Audit` and `Database`; then the change must fail too.
    pub fn audit(&mut self, entry: &Entry) -> Result<u64, StoreError> {
        Ok(audit::append(self.view.connection, &mut self.head, entry)?)
    }

    /// Records these, in this order: cheaper than one by one.
    ///
    /// # Errors
    /// `Audit` and `Database`; then the change must fail too.
    pub fn audit_all(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        Ok(audit::append_all(self.view.connection, &mut self.head, entries)?)
    }

    /// Signs the audit log's head, with the records of this change. Gives the last signed head,
    /// which is an older one where nothing was recorded since; none where nothing ever was.
    ///
    /// # Errors
    /// `Audit` and `Database`.
    pub fn sign_audit_head(&mut self) -> Result<Option<Checkpoint>, StoreError> {
        let connection = self.view.connection;
        let signed = audit::checkpoint(connection, self.head, self.key, Timestamp::now())?;
        let Some(checkpoint) = signed else {
            return Ok(audit::latest_checkpoint(connection)?);
        };
        self.event(EventKind::AuditCheckpoint, None, None, fields(&checkpoint))?;
        self.checkpoint = Some(checkpoint.clone());
        Ok(Some(checkpoint))
    }
}

impl<'c> Deref for Change<'c> {
    type Target = View<'c>;

    fn deref(&self) -> &View<'c> {
        &self.view
    }
}

/// What an event says of a checkpoint: all of it, so that whoever gets the event has a head of
/// the chain that nobody here can take back.
fn fields(checkpoint: &Checkpoint) -> Map<String, Value> {
    [
        ("seq", Value::from(checkpoint.seq)),
        ("at", checkpoint.at.to_string().into()),
        ("head_hash", checkpoint.head_hash.clone().into()),
        ("signature", checkpoint.signature.clone().into()),
        ("public_key", checkpoint.public_key.clone().into()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}
