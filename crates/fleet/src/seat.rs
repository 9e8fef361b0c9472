//! One sandbox, as this process knows it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use api::{LogRecord, LogSource, Sandbox, Secret, State, Timestamp};
use supervisor::Guest;
use tokio::sync::watch;

use crate::Error;
use crate::exec::not_running;
use crate::mount::Mounted;
use crate::network::WayOut;
use crate::queue::Ticket;
use crate::snapshot::Source;

/// Lines of a sandbox's log that are kept.
const LOG_LINES: usize = 2000;
/// Longest line of a log; what is longer is cut.
pub(crate) const LOG_LINE: usize = 4096;

/// A lock that is good whatever happened to who held it: nothing leaves these values half-made.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A sandbox's record as it was last committed, its machine while it has one, and what is in
/// memory only.
#[derive(Debug)]
pub(crate) struct Seat {
    id: String,
    row: watch::Sender<Arc<Sandbox>>,
    /// Held from the look at the row to the commit of the next.
    pub(crate) changing: tokio::sync::Mutex<()>,
    machine: Mutex<Option<Arc<Running>>>,
    /// The environment of its tasks. Never written anywhere.
    pub(crate) env: Mutex<BTreeMap<String, Secret>>,
    /// Held while a directory comes or goes.
    pub(crate) mounting: tokio::sync::Mutex<()>,
    /// What is copied in when it comes up, as policy decided about it.
    pub(crate) mounts: Mutex<Option<Vec<Mounted>>>,
    /// Its gateway, while it has a machine and a network.
    pub(crate) way_out: Mutex<Option<WayOut>>,
    /// What it goes on from when it comes up, where that is another sandbox.
    pub(crate) source: Mutex<Option<Source>>,
    /// Its place in the queue.
    pub(crate) ticket: Mutex<Option<Ticket>>,
    /// Why it did not come up, for who waits for that.
    pub(crate) failure: Mutex<Option<Error>>,
    /// Whether it has a task that looks after it.
    is_live: AtomicBool,
    log: Mutex<VecDeque<LogRecord>>,
    next_line: AtomicU64,
    logged: watch::Sender<u64>,
}

/// A sandbox's machine.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) guest: Guest,
    pub(crate) sandbox: tokio::sync::Mutex<Option<supervisor::Sandbox>>,
    pub(crate) begun: Instant,
}

impl Seat {
    pub(crate) fn new(row: Sandbox) -> Self {
        Self {
            id: row.id.clone(),
            row: watch::Sender::new(Arc::new(row)),
            changing: tokio::sync::Mutex::default(),
            machine: Mutex::default(),
            env: Mutex::default(),
            mounting: tokio::sync::Mutex::default(),
            mounts: Mutex::default(),
            way_out: Mutex::default(),
            source: Mutex::default(),
            ticket: Mutex::default(),
            failure: Mutex::default(),
            is_live: AtomicBool::new(false),
            log: Mutex::default(),
            next_line: AtomicU64::new(1),
            logged: watch::Sender::new(0),
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn is_live(&self) -> bool {
        self.is_live.load(Ordering::Acquire)
    }

    /// Says that it has a task; whether it had one already.
    pub(crate) fn set_live(&self) -> bool {
        self.is_live.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn row(&self) -> Arc<Sandbox> {
        self.row.borrow().clone()
    }

    pub(crate) fn state(&self) -> State {
        self.row.borrow().state
    }

    /// To be called with what was committed, and `changing` held.
    pub(crate) fn publish(&self, row: Sandbox) -> Arc<Sandbox> {
        let row = Arc::new(row);
        self.row.send_replace(row.clone());
        row
    }

    pub(crate) fn rows(&self) -> watch::Receiver<Arc<Sandbox>> {
        self.row.subscribe()
    }

    /// Waits until its row is one of these.
    pub(crate) async fn until(&self, wanted: impl Fn(&Sandbox) -> bool) -> Arc<Sandbox> {
        let mut rows = self.rows();
        let row = rows.wait_for(|row| wanted(row)).await.map(|row| row.clone());
        // Its sender is in here.
        row.unwrap_or_else(|_| self.row())
    }

    /// The machine, where it answers: one that is paused does not.
    pub(crate) fn running(&self) -> Result<Arc<Running>, Error> {
        let state = self.state();
        self.machine().filter(|_| state.takes_tasks()).ok_or_else(|| not_running(state))
    }

    pub(crate) fn machine(&self) -> Option<Arc<Running>> {
        lock(&self.machine).clone()
    }

    pub(crate) fn set_machine(&self, sandbox: supervisor::Sandbox) -> Arc<Running> {
        let running = Arc::new(Running {
            guest: sandbox.guest().clone(),
            sandbox: tokio::sync::Mutex::new(Some(sandbox)),
            begun: Instant::now(),
        });
        *lock(&self.machine) = Some(running.clone());
        running
    }

    pub(crate) fn take_machine(&self) -> Option<Arc<Running>> {
        lock(&self.machine).take()
    }

    /// Adds a line to its log.
    pub(crate) fn log(&self, source: LogSource, process: Option<&str>, text: &str) {
        let mut end = text.len().min(LOG_LINE);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let seq = self.next_line.fetch_add(1, Ordering::Relaxed);
        let line = LogRecord {
            seq,
            at: Timestamp::now(),
            source,
            process: process.map(str::to_owned),
            text: text[..end].to_owned(),
        };
        let mut log = lock(&self.log);
        if log.len() >= LOG_LINES {
            log.pop_front();
        }
        log.push_back(line);
        drop(log);
        self.logged.send_replace(seq);
    }

    /// The lines after `since`.
    pub(crate) fn lines(&self, since: u64, process: Option<&str>) -> Vec<LogRecord> {
        let log = lock(&self.log);
        log.iter()
            .filter(|line| line.seq > since)
            .filter(|line| process.is_none() || line.process.as_deref() == process)
            .cloned()
            .collect()
    }

    /// Told of every new line.
    pub(crate) fn logged(&self) -> watch::Receiver<u64> {
        self.logged.subscribe()
    }
}
