use std::ops::Deref;
use std::sync::Arc;

use audit::{Entry, Head};
use rusqlite::Connection;

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
}

impl<'c> Change<'c> {
    /// `connection` must have a transaction for writing open.
    pub(crate) fn begin(connection: &'c Connection, events_kept: u64) -> Result<Self, StoreError> {
        // Another process may have written since the last time: the head is read each time.
        let head = Head::read(connection)?;
        Ok(Self { view: View { connection }, head, events: Vec::new(), events_kept })
    }

    /// Records what was decided or done, in the transaction of what it tells of. Gives its place
    /// in the chain.
    ///
    /// # Errors
    /// `Audit` and `Database`; then the change must fail too.
    pub fn audit(&mut self, entry: &Entry) -> Result<u64, StoreError> {
        Ok(audit::append(self.view.connection, &mut self.head, entry)?)
    }
}

impl<'c> Deref for Change<'c> {
    type Target = View<'c>;

    fn deref(&self) -> &View<'c> {
        &self.view
    }
}
