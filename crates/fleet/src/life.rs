//! What happens to one sandbox: its row says what is wanted, and its task makes it so.
//!
//! A row moves to `requested`, `stopping` or `destroying` when that is asked for, in the
//! transaction that records who asked. The task that each sandbox has sees it and acts, and so
//! does whoever takes the sandbox up after this process was killed: there is nothing to remember
//! but the row.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use api::{
    EventKind, LogSource, Operation, Sandbox, State, Timestamp, Usage, WhenIdle, WhenTimedOut,
};
use audit::Entry;
use serde_json::json;
use supervisor::{ImageRef, Isolation, Observer, Restore, SandboxSpec, Step};

use crate::error::chain;
use crate::manager::Manager;
use crate::metrics::count;
use crate::mount::Mounted;
use crate::record::{self, Tell as _};
use crate::seat::{Running, Seat, lock};
use crate::snapshot::Source;
use crate::{Error, Mode};

/// Between two tries to take away what does not go.
const RETRY: Duration = Duration::from_secs(1);
/// How long a machine that is gone may take to say why.
const OBITUARY: Duration = Duration::from_secs(2);
/// How long the tasks of a machine that is gone may take to be written down.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How often a boot that nobody wants any more is looked at.
const CANCEL: Duration = Duration::from_millis(20);

/// The reason of a row that stops in order to start again.
const RESTARTS: &str = "it is restarted: ";

/// Tells a sandbox's log of notices.
struct Notices<'a>(&'a Seat);

impl Observer for Notices<'_> {
    fn step(&mut self, _: Step) {}

    fn notice(&mut self, line: &str) {
        self.0.log(LogSource::Lifecycle, None, line);
    }
}

pub(crate) fn isolation(tier: api::Isolation) -> Isolation {
    match tier {
        api::Isolation::Process => Isolation::Process,
        api::Isolation::Emulated => Isolation::Emulated,
        api::Isolation::Vm => Isolation::Vm,
    }
}

pub(crate) fn tier(isolation: Isolation) -> api::Isolation {
    match isolation {
        Isolation::Process => api::Isolation::Process,
        Isolation::Emulated => api::Isolation::Emulated,
        Isolation::Vm => api::Isolation::Vm,
    }
}

impl Manager {
    /// Gives a sandbox its task.
    pub(crate) fn spawn_life(&self, seat: &Arc<Seat>) {
        if seat.set_live() {
            return;
        }
        let (manager, seat) = (self.arc(), seat.clone());
        self.tasks.spawn(async move {
            let alive = async {
                while !seat.state().is_final() {
                    manager.live(&seat).await;
                }
                manager.stand_up(seat.id());
            };
            tokio::select! {
                () = alive => {}
                () = manager.closed() => {}
            }
        });
    }

    async fn live(&self, seat: &Arc<Seat>) {
        let state = seat.state();
        match state {
            State::Requested | State::Provisioning => self.bring_up(seat).await,
            State::Ready | State::Executing | State::Paused => self.watch_over(seat).await,
            State::Stopping => self.take_down(seat, State::Stopped).await,
            State::Destroying => self.take_down(seat, State::Destroyed).await,
            State::Hibernating => self.bring_to_disk(seat).await,
            State::Hibernated => {
                let version = seat.row().version;
                let expires = seat.row().expires_at.filter(|_| self.keeps_time());
                tokio::select! {
                    _ = seat.until(|row| row.version != version) => {}
                    () = until(expires) => self.is_late(seat).await,
                }
            }
            State::Stopped | State::Failed => {
                seat.until(|row| row.state != state).await;
            }
            State::Destroyed => {}
        }
    }

    /// The entry of something that nobody asked for.
    pub(crate) fn own_entry(&self, operation: Operation, row: &Sandbox, outcome: &str) -> Entry {
        record::own(operation.as_str()).about(row).with_outcome(outcome)
    }

    async fn bring_up(&self, seat: &Arc<Seat>) {
        let wanted = |row: &Sandbox| matches!(row.state, State::Requested | State::Provisioning);
        let ticket = lock(&seat.ticket).take().unwrap_or_else(|| self.queue.enter_again());
        let queued = Instant::now();
        let place = tokio::select! {
            place = ticket.wait() => place,
            _ = seat.until(|row| !wanted(row)) => return,
        };
        let queue_ms = milliseconds(queued.elapsed());
        let begun = Instant::now();
        if seat.state() == State::Requested {
            let moved = self
                .change(seat, |row, _| {
                    (row.state == State::Requested)
                        .then(|| Sandbox { state: State::Provisioning, ..row.clone() })
                })
                .await;
            match moved {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return,
                Err(error) => return self.stuck(seat, &error).await,
            }
        }
        match self.boot(seat).await {
            // Somebody wants it gone; what there is of a machine goes with it.
            Ok(None) => {}
            Ok(Some(running)) => {
                drop(place);
                self.counters.boot.record(begun.elapsed());
                self.arrived(seat, &running, queue_ms).await;
            }
            Err(error) if self.snapshot_files().is_hibernated(seat.id()) => {
                drop(place);
                if let Err(error) = self.sleeps_on(seat, error).await {
                    self.stuck(seat, &error).await;
                }
            }
            Err(error) => self.failed(seat, error).await,
        }
    }

    /// From a row to a machine with its files in it, or nothing where that is not wanted any more.
    async fn boot(&self, seat: &Arc<Seat>) -> Result<Option<Arc<Running>>, Error> {
        let row = seat.row();
        let leaves = || seat.until(|row| row.state != State::Provisioning);
        if let Some(source) = self.source_of(seat) {
            let restore = Restore {
                directory: source.directory(),
                check: source.check(),
                id: Some(row.id.clone()),
                owner: Some(self.ledger.id().to_owned()),
                name: None,
                min_isolation: crate::rules::least(&row),
                keep: true,
                network: self.give_way_out(seat, &row).await?,
            };
            let mut notices = Notices(seat);
            let restoring = self.supervisor.restore(restore, &mut notices);
            let Some(sandbox) = self.started(seat, restoring).await? else { return Ok(None) };
            let running = seat.set_machine(sandbox);
            self.take_up_tasks(seat, &running.guest).await?;
            return Ok(Some(running));
        }
        let spec = SandboxSpec {
            id: Some(row.id.clone()),
            owner: Some(self.ledger.id().to_owned()),
            // On the host's kernel there is no number to ask for again.
            cpus: row.cpu.filter(|_| row.isolation != Some(api::Isolation::Process)),
            memory_mb: row.memory_mb,
            disk_gb: row.disk_gb,
            starts_where_image_says: crate::run::starts_where_image_says(&row.mounts),
            image: image(&row),
            engine: row.engine.clone(),
            min_isolation: crate::rules::least(&row),
            keep: true,
            volumes: self.take_volumes(&row).await?,
            variables: crate::volume::variables(&row),
            network: self.give_way_out(seat, &row).await?,
            ..SandboxSpec::default()
        };
        let mut notices = Notices(seat);
        let plan = tokio::select! {
            plan = self.supervisor.prepare(spec, &mut notices) => plan?,
            _ = leaves() => return Ok(None),
        };
        let mut notices = Notices(seat);
        let starting = plan.start(&mut notices);
        let Some(sandbox) = self.started(seat, starting).await? else { return Ok(None) };
        let running = seat.set_machine(sandbox);
        let mounts = lock(&seat.mounts).take().unwrap_or_default();
        let copied = tokio::select! {
            copied = copy(&running, mounts) => copied,
            _ = leaves() => return Ok(None),
        };
        if let Err(error) = copied {
            self.end_machine(seat).await;
            return Err(error);
        }
        Ok(Some(running))
    }

    /// What a sandbox goes on from, where it is not a new one.
    fn source_of(&self, seat: &Seat) -> Option<Source> {
        let files = self.snapshot_files();
        match files.is_hibernated(seat.id()) {
            true => Some(Source::Kept(files.hibernated(seat.id()))),
            false => lock(&seat.source).clone(),
        }
    }

    /// The sandbox that is started, or nothing where it is not wanted any more.
    async fn started(
        &self,
        seat: &Seat,
        starting: impl Future<Output = Result<supervisor::Sandbox, supervisor::Error>>,
    ) -> Result<Option<supervisor::Sandbox>, Error> {
        let mut starting = std::pin::pin!(starting);
        let mut unwanted = std::pin::pin!(seat.until(|row| row.state != State::Provisioning));
        let mut is_unwanted = false;
        let sandbox = loop {
            tokio::select! {
                sandbox = &mut starting => break sandbox,
                _ = &mut unwanted, if !is_unwanted => is_unwanted = true,
                // A start is not left half-done: its machine is ended, and it sees that.
                () = tokio::time::sleep(CANCEL), if is_unwanted => {
                    let kept = self.supervisor.kept().unwrap_or_default();
                    if kept.iter().any(|machine| machine.id == seat.id()) {
                        let _ = self.supervisor.remove(seat.id()).await;
                    }
                }
            }
        };
        match sandbox {
            Err(_) if is_unwanted => Ok(None),
            sandbox => Ok(Some(sandbox?)),
        }
    }

    async fn arrived(&self, seat: &Arc<Seat>, running: &Running, queue_ms: f64) {
        let (engine, tier, cpus, image, timings) = {
            let sandbox = running.sandbox.lock().await;
            let Some(sandbox) = sandbox.as_ref() else { return };
            let up = *sandbox.timings();
            let timings = api::Timings {
                queue_ms,
                prepare_ms: up.prepare_ms,
                process_ms: up.process_ms,
                kernel_ms: up.kernel_ms,
                agent_ms: up.agent_ms,
            };
            let engine = sandbox.engine().to_owned();
            (engine, tier(sandbox.isolation()), sandbox.cpus(), sandbox.image().to_owned(), timings)
        };
        let was_on_disk = self.snapshot_files().is_hibernated(seat.id());
        let moved = self
            .change(seat, |row, batch| {
                if row.state != State::Provisioning {
                    return None;
                }
                let now = Timestamp::now();
                let next = Sandbox {
                    state: if row.running == 0 { State::Ready } else { State::Executing },
                    reason: None,
                    engine: Some(engine),
                    isolation: Some(tier),
                    cpu: Some(cpus),
                    image,
                    started_at: Some(now),
                    ended_at: None,
                    expires_at: match was_on_disk {
                        // Its time went on.
                        true => row.expires_at,
                        false => row.timeout_sec.map(|sec| now.after(Duration::from_secs(sec))),
                    },
                    idle_at: (row.running == 0).then_some(now),
                    timings: Some(timings),
                    usage: None,
                    ..row.clone()
                };
                batch.entries.push(self.own_entry(Operation::SandboxStart, &next, "ready"));
                let data = json!({"engine": next.engine, "isolation": next.isolation});
                batch.about(EventKind::SandboxStarted, &next, data);
                Some(next)
            })
            .await;
        match moved {
            Ok(Ok(_)) => {
                count(&self.counters.created);
                seat.log(LogSource::Lifecycle, None, "it takes tasks");
                let goes_on = lock(&seat.source).take().is_some();
                if was_on_disk {
                    self.forget_hibernated(seat.id()).await;
                } else if goes_on {
                    self.adopt_tasks(seat, running).await;
                }
            }
            // It is to go; its task sees that next.
            Ok(Err(_)) => {}
            Err(error) => self.stuck(seat, &error).await,
        }
    }

    async fn failed(&self, seat: &Arc<Seat>, error: Error) {
        let problem = error.problem();
        let words = problem.detail.clone();
        *lock(&seat.failure) = Some(error);
        drop(lock(&seat.source).take());
        let moved = self
            .change(seat, |row, batch| {
                if !row.state.may_become(State::Failed) {
                    return None;
                }
                let next = Sandbox {
                    state: State::Failed,
                    reason: Some(words.clone()),
                    ended_at: Some(Timestamp::now()),
                    running: 0,
                    ..row.clone()
                };
                let outcome = problem.code.as_str();
                batch.entries.push(self.own_entry(Operation::SandboxStart, &next, outcome));
                batch.about(EventKind::SandboxFailed, &next, json!({"reason": words}));
                Some(next)
            })
            .await;
        match moved {
            Ok(Ok(_)) => {
                count(&self.counters.failed);
                seat.log(LogSource::Lifecycle, None, &format!("it failed: {words}"));
            }
            Ok(Err(_)) => {}
            Err(error) => self.stuck(seat, &error).await,
        }
    }

    /// Records cannot be written: nothing is done until they can.
    async fn stuck(&self, seat: &Seat, error: &Error) {
        tracing::error!(sandbox = seat.id(), error = %chain(error), "cannot write records");
        tokio::time::sleep(RETRY).await;
    }

    async fn watch_over(&self, seat: &Arc<Seat>) {
        let row = seat.row();
        let Some(running) = seat.machine() else {
            // A row of an earlier process whose machine was not found again.
            let lost = "its machine is gone";
            return self.failed(seat, Error::Internal(lost.into())).await;
        };
        let expires = row.expires_at.filter(|_| self.keeps_time());
        let idle = row
            .idle_timeout_sec
            .filter(|_| row.state == State::Ready && row.running == 0 && self.keeps_time())
            .zip(row.idle_at)
            .map(|(sec, since)| since.after(Duration::from_secs(sec)));
        tokio::select! {
            _ = seat.until(|new| new.version != row.version) => {}
            _ = running.guest.closed() => {
                let why = self.obituary(&running).await;
                if seat.row().version == row.version {
                    self.end_machine(seat).await;
                    self.failed(seat, Error::Internal(format!("its machine ended: {why}"))).await;
                }
            }
            () = until(expires) => {
                self.is_late(seat).await;
            }
            () = until(idle) => {
                let next = match row.on_idle {
                    WhenIdle::Hibernate if self.may_hibernate(&row) => (State::Hibernating, None),
                    WhenIdle::Stop | WhenIdle::Hibernate => (State::Stopping, None),
                    WhenIdle::Restart => (State::Stopping, Some(RESTARTS)),
                    WhenIdle::Delete => (State::Destroying, None),
                };
                self.time_is_up(seat, row.version, next, "it was idle for its idle time").await;
            }
        }
    }

    /// One command is not there to keep time; it looks when it opens the state.
    fn keeps_time(&self) -> bool {
        self.config.mode == Mode::Daemon
    }

    async fn obituary(&self, running: &Running) -> String {
        let mut sandbox = running.sandbox.lock().await;
        match sandbox.as_mut() {
            Some(sandbox) => tokio::time::timeout(OBITUARY, sandbox.ended())
                .await
                .unwrap_or_else(|_| "its agent went away".into()),
            None => "it was taken away".into(),
        }
    }

    /// The time of this sandbox is up.
    pub(crate) async fn is_late(&self, seat: &Arc<Seat>) {
        let row = seat.row();
        let next = match row.on_timeout {
            WhenTimedOut::Stop => (State::Stopping, None),
            WhenTimedOut::Restart => (State::Stopping, Some(RESTARTS)),
            WhenTimedOut::Delete => (State::Destroying, None),
        };
        if row.expires_at.is_some_and(|at| at <= Timestamp::now()) {
            self.time_is_up(seat, row.version, next, "its time is up").await;
        }
    }

    async fn time_is_up(
        &self,
        seat: &Arc<Seat>,
        version: u64,
        (state, prefix): (State, Option<&str>),
        why: &str,
    ) {
        let reason = format!("{}{why}", prefix.unwrap_or_default());
        let moved = self
            .change(seat, |row, batch| {
                // Whatever changed it may have given it more time.
                if row.version != version || !row.state.may_become(state) {
                    return None;
                }
                let next = Sandbox { state, reason: Some(reason.clone()), ..row.clone() };
                let operation = match state {
                    State::Destroying => Operation::SandboxDelete,
                    State::Hibernating => Operation::SandboxHibernate,
                    _ => Operation::SandboxStop,
                };
                batch.entries.push(self.own_entry(operation, &next, "accepted"));
                Some(next)
            })
            .await;
        match moved {
            Ok(Ok(_)) => seat.log(LogSource::Lifecycle, None, &reason),
            Ok(Err(_)) => {}
            Err(error) => self.stuck(seat, &error).await,
        }
    }

    /// Takes the machine away, however often that must be tried, and says what it used.
    pub(crate) async fn end_machine(&self, seat: &Arc<Seat>) -> Option<Usage> {
        let mut usage = None;
        if let Some(running) = seat.take_machine() {
            let uptime_ms = u64::try_from(running.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            if let Some(sandbox) = running.sandbox.lock().await.take() {
                match sandbox.destroy().await {
                    Ok(teardown) => {
                        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                        let cpu_ms = teardown.cpu_ms as u64;
                        let memory_peak_bytes = teardown.memory_peak_bytes;
                        usage = Some(Usage { cpu_ms, memory_peak_bytes, uptime_ms });
                    }
                    Err(error) => {
                        let error = chain(&error);
                        tracing::warn!(sandbox = seat.id(), error, "cannot end the machine");
                    }
                }
            }
        }
        // Also what an earlier process has left, or the line above could not take away.
        loop {
            match self.supervisor.remove(seat.id()).await {
                Ok(()) | Err(supervisor::Error::NoSuchSandbox(_)) => return usage,
                Err(error) => {
                    let error = chain(&error);
                    tracing::error!(sandbox = seat.id(), error, "a machine does not go");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn take_down(&self, seat: &Arc<Seat>, target: State) {
        let used = self.end_machine(seat).await;
        if self.forget_hibernated(seat.id()).await
            && let Err(error) = self.give_up_tasks(seat, "its sandbox was taken away").await
        {
            return self.stuck(seat, &error).await;
        }
        // Its tasks have seen it go.
        let silent = seat.until(|row| row.running == 0);
        let _ = tokio::time::timeout(LAST_WORDS, silent).await;
        let moved = self
            .change(seat, |row, batch| {
                if !row.state.may_become(target) {
                    return None;
                }
                let now = Timestamp::now();
                let mut next = Sandbox {
                    state: target,
                    ended_at: row.ended_at.or(Some(now)),
                    idle_at: None,
                    running: 0,
                    usage: used.or(row.usage),
                    ..row.clone()
                };
                if target == State::Stopped {
                    next.expires_at = None;
                    next.ended_at = Some(now);
                }
                let (operation, kind) = match target {
                    State::Destroyed => (Operation::SandboxDelete, EventKind::SandboxDestroyed),
                    _ => (Operation::SandboxStop, EventKind::SandboxStopped),
                };
                batch.entries.push(self.own_entry(operation, &next, target.as_str()));
                batch.about(kind, &next, json!({"reason": next.reason, "usage": next.usage}));
                Some(next)
            })
            .await;
        match moved {
            Ok(Ok(row)) => {
                if target == State::Destroyed {
                    count(&self.counters.destroyed);
                    lock(&seat.env).clear();
                } else {
                    seat.log(LogSource::Lifecycle, None, "it was stopped");
                    if row.reason.as_ref().is_some_and(|reason| reason.starts_with(RESTARTS)) {
                        self.start_again(seat).await;
                    }
                }
            }
            Ok(Err(_)) => {}
            Err(error) => self.stuck(seat, &error).await,
        }
    }

    async fn start_again(&self, seat: &Arc<Seat>) {
        let mounts = self.mounts_again(&seat.row()).await;
        match mounts {
            Ok(mounts) => *lock(&seat.mounts) = Some(mounts),
            Err(error) => {
                let words = error.to_string();
                return seat.log(LogSource::Lifecycle, None, &format!("not restarted: {words}"));
            }
        }
        let moved = self
            .change(seat, |row, batch| {
                if row.state != State::Stopped {
                    return None;
                }
                let next = Sandbox { state: State::Provisioning, ..row.clone() };
                batch.entries.push(self.own_entry(Operation::SandboxStart, &next, "accepted"));
                Some(next)
            })
            .await;
        if let Err(error) = moved {
            self.stuck(seat, &error).await;
        }
    }

    /// The row with a task more, or less.
    pub(crate) fn with_running(row: &Sandbox, change: i32) -> Sandbox {
        let running = row.running.saturating_add_signed(change);
        let state = match (row.state, running) {
            (State::Ready, 1..) => State::Executing,
            (State::Executing, 0) => State::Ready,
            (state, _) => state,
        };
        let idle_at = if running == 0 { Some(Timestamp::now()) } else { None };
        Sandbox { state, running, idle_at, ..row.clone() }
    }

    pub(crate) fn count_task(&self) {
        self.counters.tasks.fetch_add(1, Ordering::Relaxed);
    }
}

async fn copy(running: &Running, mounts: Vec<Mounted>) -> Result<(), Error> {
    let sandbox = running.sandbox.lock().await;
    let Some(sandbox) = sandbox.as_ref() else {
        return Err(Error::Internal("it was taken away while its files were copied".into()));
    };
    for mount in mounts {
        mount.copy(sandbox).await?;
    }
    Ok(())
}

/// What was asked for. Of a sandbox on the host's kernel there is nothing to ask.
fn image(row: &Sandbox) -> Option<ImageRef> {
    match row.image.as_str() {
        crate::rules::HOST_IMAGE => None,
        name => Some(crate::run::image(name)),
    }
}

/// Waits for a moment, or for ever where there is none.
async fn until(moment: Option<Timestamp>) {
    match moment {
        Some(moment) => {
            // By the wall clock, which may be set meanwhile: looked at again every minute.
            loop {
                let left = moment.since(Timestamp::now());
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(Duration::from_secs(60))).await;
            }
        }
        None => std::future::pending().await,
    }
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
