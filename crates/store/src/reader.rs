//! Connections that only read, each used by one closure at a time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use std::sync::Arc;

use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::writer::panic_words;
use crate::{StoreError, View};

#[derive(Debug)]
pub(crate) struct Readers {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    idle: Mutex<Vec<Connection>>,
    turns: Arc<Semaphore>,
}

impl Readers {
    pub(crate) fn new(connections: Vec<Connection>) -> Self {
        let turns = Arc::new(Semaphore::new(connections.len()));
        Self { shared: Arc::new(Shared { idle: Mutex::new(connections), turns }) }
    }

    /// No closure runs after this; those that run end.
    pub(crate) fn close(&self) {
        self.shared.turns.close();
    }

    pub(crate) async fn read<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&View<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let turn = self.turn().await?;
        let shared = Arc::clone(&self.shared);
        let task = tokio::task::spawn_blocking(move || shared.run(turn, work));
        task.await.unwrap_or_else(|_| Err(StoreError::Closed.into()))
    }

    /// The same on the caller's thread.
    pub(crate) async fn look_up<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&View<'_>) -> Result<T, E>,
        E: From<StoreError>,
    {
        let turn = self.turn().await?;
        self.shared.run(turn, work)
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        let turn = Arc::clone(&self.shared.turns).acquire_owned().await;
        turn.map_err(|_| StoreError::Closed)
    }
}

impl Shared {
    fn run<T, E: From<StoreError>>(
        &self,
        turn: OwnedSemaphorePermit,
        work: impl FnOnce(&View<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = idle().pop().ok_or(StoreError::Closed)?;
        let done = catch_unwind(AssertUnwindSafe(|| in_one_state(&connection, work)));
        idle().push(connection);
        drop(turn);
        done.unwrap_or_else(|panic| Err(StoreError::Panicked(panic_words(&*panic)).into()))
    }
}

fn in_one_state<T, E: From<StoreError>>(
    connection: &Connection,
    work: impl FnOnce(&View<'_>) -> Result<T, E>,
) -> Result<T, E> {
    // Rolled back when it is dropped, also by a panic.
    let state = connection.unchecked_transaction().map_err(StoreError::from)?;
    work(&View { connection: &state })
}
