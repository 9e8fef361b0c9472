//! The one thread that writes. Whoever waits when it begins a transaction is in that one.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use api::Checkpoint;
use audit::Head;
use rusqlite::Connection;
use tokio::sync::{Semaphore, broadcast, oneshot};

use crate::{Change, Options, StoreError, directory};

/// Most writers in one commit: the first of them waits for the work of all.
const MOST_IN_A_COMMIT: usize = 512;
/// Most writers that wait; others wait to be let in.
const MOST_WAITING: usize = 4096;

#[derive(Debug)]
pub(crate) struct Writer {
    sender: Mutex<Option<mpsc::Sender<Box<dyn Job>>>>,
    turns: Arc<Semaphore>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// One caller's work.
trait Job: Send {
    /// Whether what it did is to be kept.
    fn run(&mut self, change: &mut Change<'_>) -> bool;
    /// Tells the caller; `commit` is the error that took it all back.
    fn answer(self: Box<Self>, commit: Result<(), StoreError>);
}

struct Work<T, E, F> {
    work: Option<F>,
    result: Option<Result<T, E>>,
    caller: oneshot::Sender<Result<T, E>>,
    /// The place in the queue, given back with the answer.
    _turn: tokio::sync::OwnedSemaphorePermit,
}

impl<T, E, F> Job for Work<T, E, F>
where
    F: FnOnce(&mut Change<'_>) -> Result<T, E> + Send,
    T: Send,
    E: From<StoreError> + Send,
{
    fn run(&mut self, change: &mut Change<'_>) -> bool {
        let Some(work) = self.work.take() else { return false };
        let result = catch_unwind(AssertUnwindSafe(|| work(change)))
            .unwrap_or_else(|panic| Err(StoreError::Panicked(panic_words(&*panic)).into()));
        let keep = result.is_ok();
        self.result = Some(result);
        keep
    }

    fn answer(self: Box<Self>, commit: Result<(), StoreError>) {
        let result = match (self.result, commit) {
            (Some(Ok(_)) | None, Err(error)) => Err(error.into()),
            (Some(result), _) => result,
            (None, Ok(())) => Err(StoreError::Closed.into()),
        };
        // A caller that is gone has nobody to be told.
        let _ = self.caller.send(result);
    }
}

pub(crate) fn panic_words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

impl Writer {
    pub(crate) fn start(mut thread: Thread) -> Result<Self, StoreError> {
        let (sender, jobs) = mpsc::channel();
        let path = thread.directory.clone();
        let handle = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || thread.run(&jobs))
            .map_err(StoreError::file("start the writer of", path))?;
        Ok(Self {
            sender: Mutex::new(Some(sender)),
            turns: Arc::new(Semaphore::new(MOST_WAITING)),
            thread: Mutex::new(Some(handle)),
        })
    }

    pub(crate) async fn write<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&mut Change<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let turn = turn.map_err(|_| StoreError::Closed)?;
        let (caller, answer) = oneshot::channel();
        let job = Work { work: Some(work), result: None, caller, _turn: turn };
        let sent = {
            let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
            sender.as_ref().is_some_and(|sender| sender.send(Box::new(job)).is_ok())
        };
        if !sent {
            return Err(StoreError::Closed.into());
        }
        answer.await.unwrap_or_else(|_| Err(StoreError::Closed.into()))
    }

    /// Takes no more work. The thread, to be waited for, does what it has, signs the head and
    /// ends.
    pub(crate) fn close(&self) -> Option<JoinHandle<()>> {
        self.turns.close();
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What the thread has to itself.
#[derive(Debug)]
pub(crate) struct Thread {
    pub(crate) connection: Connection,
    pub(crate) directory: PathBuf,
    pub(crate) options: Options,
    pub(crate) key: Arc<audit::Key>,
    pub(crate) events: broadcast::Sender<Arc<api::Event>>,
    /// The last record that is covered by a signature.
    pub(crate) signed: u64,
    /// Since when there is one that is not.
    pub(crate) unsigned_since: Option<Instant>,
}

impl Thread {
    fn run(&mut self, jobs: &mpsc::Receiver<Box<dyn Job>>) {
        loop {
            let first = match self.unsigned_since {
                None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(since) => {
                    let left = self.options.checkpoint_interval.saturating_sub(since.elapsed());
                    jobs.recv_timeout(left)
                }
            };
            match first {
                Ok(first) => {
                    let mut group = vec![first];
                    while group.len() < MOST_IN_A_COMMIT
                        && let Ok(job) = jobs.try_recv()
                    {
                        group.push(job);
                    }
                    self.commit(group, false);
                }
                Err(RecvTimeoutError::Timeout) => self.commit(Vec::new(), true),
                Err(RecvTimeoutError::Disconnected) => {
                    self.commit(Vec::new(), true);
                    return;
                }
            }
        }
    }

    /// One transaction for all of `group`, and their answers.
    fn commit(&mut self, mut group: Vec<Box<dyn Job>>, sign: bool) {
        let done = self.transact(&mut group, sign).map_err(|error| self.explain(error));
        match done {
            Ok(after) => {
                for job in group {
                    job.answer(Ok(()));
                }
                for event in &after.events {
                    // No listener is no error.
                    let _ = self.events.send(Arc::clone(event));
                }
                self.keep_head(&after);
            }
            Err(error) => {
                for job in group {
                    job.answer(Err(error.clone()));
                }
                if sign {
                    tracing::warn!(%error, "the audit log's head could not be signed");
                    // Not at once again: what failed needs time.
                    self.unsigned_since = self.unsigned_since.map(|_| Instant::now());
                }
            }
        }
    }

    fn transact(&mut self, group: &mut [Box<dyn Job>], sign: bool) -> Result<After, StoreError> {
        let due = sign
            || self.unsigned_since.is_some_and(|t| t.elapsed() >= self.options.checkpoint_interval);
        let connection = &self.connection;
        connection.execute_batch("BEGIN IMMEDIATE")?;
        let open = Open { connection };
        let mut change = Change::begin(connection, &self.key, self.options.events_kept)?;
        for job in group {
            part(&mut change, |change| if job.run(change) { Ok(()) } else { Err(None) })?;
        }
        let unsigned = change.head.seq.saturating_sub(self.signed);
        let signed = change.checkpoint.is_some();
        let (mut tried, mut signed_to) = (false, None);
        if unsigned > 0 && !signed && (due || unsigned >= self.options.checkpoint_records) {
            tried = true;
            part(&mut change, |change| {
                // Another process may have signed this very head.
                let last = change.sign_audit_head().map_err(Some)?;
                signed_to = last.map(|checkpoint| checkpoint.seq);
                Ok(())
            })?;
        }
        connection.execute_batch("COMMIT")?;
        std::mem::forget(open);
        let Change { head, events, checkpoint, .. } = change;
        signed_to = checkpoint.as_ref().map(|checkpoint| checkpoint.seq).or(signed_to);
        Ok(After { head, events, checkpoint, tried, signed_to })
    }

    /// What else it is called, where there is no room it is a full disk.
    fn explain(&self, error: StoreError) -> StoreError {
        let full = error.may_be_full() && !has_room(&self.directory, 64 << 10);
        if full { StoreError::Full } else { error }
    }

    fn keep_head(&mut self, after: &After) {
        if let Some(checkpoint) = &after.checkpoint {
            let path = directory::audit_head(&self.directory);
            if let Err(error) = audit::write_head_file(&path, checkpoint) {
                // The signature is in the database; the next checkpoint tries the file again.
                tracing::warn!(%error, "the head of the audit log is not in its file");
            }
        }
        self.signed = self.signed.max(after.signed_to.unwrap_or(0));
        let unsigned = after.head.seq > self.signed;
        self.unsigned_since = match self.unsigned_since {
            _ if !unsigned => None,
            // What failed is tried again, but not at once.
            Some(since) if !after.tried && after.signed_to.is_none() => Some(since),
            _ => Some(Instant::now()),
        };
    }
}

/// What is to be done once the transaction is on disk.
struct After {
    head: Head,
    events: Vec<Arc<api::Event>>,
    checkpoint: Option<Checkpoint>,
    /// Whether the head was to be signed without being asked.
    tried: bool,
    /// The record up to which all is signed, where that is known now.
    signed_to: Option<u64>,
}

/// An open transaction, taken back when it is dropped.
struct Open<'c> {
    connection: &'c Connection,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if !self.connection.is_autocommit() {
            // Where this fails too, the next BEGIN tells.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
    }
}

/// Runs one part of the transaction; where it fails, only that part is taken back.
///
/// # Errors
/// Where the whole transaction is lost.
fn part(
    change: &mut Change<'_>,
    work: impl FnOnce(&mut Change<'_>) -> Result<(), Option<StoreError>>,
) -> Result<(), StoreError> {
    let (head, events) = (change.head, change.events.len());
    let checkpoint = change.checkpoint.clone();
    let run = |change: &Change<'_>, sql| change.connection.prepare_cached(sql)?.execute([]);
    run(change, "SAVEPOINT part")?;
    let Err(error) = work(change) else {
        if change.connection.is_autocommit() {
            return Err(StoreError::Corrupt("a change ended the transaction".to_owned()));
        }
        run(change, "RELEASE part")?;
        return Ok(());
    };
    // A full disk takes back the whole transaction, and with it what others did.
    if change.connection.is_autocommit() {
        return Err(error.unwrap_or(StoreError::TakenBack));
    }
    run(change, "ROLLBACK TO part")?;
    run(change, "RELEASE part")?;
    change.head = head;
    change.events.truncate(events);
    change.checkpoint = checkpoint;
    if let Some(error) = error {
        tracing::warn!(%error, "a part of a transaction was taken back");
    }
    Ok(())
}

/// Whether the file system has `bytes` left for this user. Where it does not say, it has.
pub(crate) fn has_room(directory: &Path, bytes: u64) -> bool {
    rustix::fs::statvfs(directory)
        .map_or(true, |info| info.f_bavail.saturating_mul(info.f_frsize) >= bytes)
}

/// How long a writer waits for another process.
pub(crate) const BUSY: Duration = Duration::from_secs(10);
