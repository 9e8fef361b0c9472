//! What callers do with sandboxes as a whole.

use std::sync::Arc;
use std::time::Duration;

use access::Caller;
use api::{
    AuditDecision, CreateSandbox, EventKind, ListSandboxes, LogQuery, LogRecord, LogSource,
    Operation, Page, Problem, Sandbox, State, Stats, Timestamp, UpdateSandbox, Usage,
    Validate as _,
};
use futures_util::Stream;
use serde_json::json;

use crate::config::Provenance;
use crate::ledger::Batch;
use crate::manager::Manager;
use crate::metrics::count;
use crate::mount::Mounted;
use crate::record::Tell as _;
use crate::seat::{Seat, lock};
use crate::{Error, rules};

/// How long a caller that waits for the end of a sandbox is kept.
const END_PATIENCE: Duration = Duration::from_secs(60);

/// A move that somebody asks for.
struct Wish<'a> {
    wanted: State,
    from: &'a [State],
    /// What to do where it is in none of them.
    remedy: &'static str,
}

impl Manager {
    /// Makes a sandbox; with `wait`, returns when it takes tasks. Where the caller goes away
    /// meanwhile, it is made all the same.
    ///
    /// # Errors
    /// `Access`, `Refused`, `Busy`, `NameTaken`, and what kept it from coming up.
    pub async fn create(
        &self,
        caller: &Caller,
        request: CreateSandbox,
        by: &Provenance,
    ) -> Result<Sandbox, Error> {
        let wait = request.wait;
        let (manager, caller, by) = (self.arc(), caller.clone(), by.clone());
        // From here on, a caller that goes away changes nothing.
        let accepted = self.tasks.spawn(async move { manager.accept(&caller, request, &by).await });
        let seat = accepted.await.map_err(|_| Error::ShuttingDown)??;
        if !wait {
            return Ok(Sandbox::clone(&seat.row()));
        }
        self.arrival(&seat).await
    }

    /// Waits until a sandbox takes tasks.
    pub(crate) async fn arrival(&self, seat: &Seat) -> Result<Sandbox, Error> {
        let settled = |row: &Sandbox| !matches!(row.state, State::Requested | State::Provisioning);
        let row = tokio::select! {
            row = seat.until(settled) => row,
            () = self.closed() => return Err(Error::ShuttingDown),
        };
        match row.state {
            State::Failed => {
                let failure = lock(&seat.failure).clone();
                let reason = || row.reason.clone().unwrap_or_default();
                Err(failure.unwrap_or_else(|| Problem::new(api::Code::BootFailed, reason()).into()))
            }
            State::Stopping | State::Stopped | State::Destroying | State::Destroyed => {
                Err(Error::State { state: row.state, remedy: "it was taken away meanwhile" })
            }
            _ => Ok(Sandbox::clone(&row)),
        }
    }

    async fn accept(
        &self,
        caller: &Caller,
        request: CreateSandbox,
        by: &Provenance,
    ) -> Result<Arc<Seat>, Error> {
        self.open_for_work()?;
        let asked = request.workspace.as_deref();
        let workspace = caller.home(asked, &self.config.default_workspace)?.to_owned();
        self.authorise(caller, Operation::SandboxCreate, Some(&workspace), by).await?;
        self.signed(caller, by)?;
        request.validate()?;
        // The same request, come again after this process was killed.
        if let Some(key) = &by.idempotency_key
            && let Some(row) = self.ledger.sandbox_of(&caller.actor(), key).await?
        {
            return match self.seat(&row.id) {
                Some(seat) => Ok(seat),
                None => Ok(Arc::new(Seat::new(row))),
            };
        }
        let full = |reason| {
            count(&self.counters.refused_busy);
            Error::Busy { reason, retry_after: self.config.retry_after }
        };
        let who = rules::subject(caller, &workspace);
        let mounts = resolve(request.mounts.clone()).await;
        let id = supervisor::generate_id()?;
        let credentials = self.settle(caller, &workspace, &request, &mounts).await?;
        // One at a time, so that two do not share the last place.
        let deciding = self.deciding.lock().await;
        let taken = self.all();
        let has_machine = |seat: &&Arc<Seat>| {
            let state = seat.state();
            state.has_machine() || state == State::Requested
        };
        if taken.iter().filter(has_machine).count() >= self.config.max_sandboxes {
            return Err(full("there are as many sandboxes as this host may have"));
        }
        let sandboxes = self.count_of(&workspace);
        let question = self.question(who, &request, &mounts, sandboxes)?;
        let entry = self.entry(caller, Operation::SandboxCreate, by);
        let decision = self.policy.load().decide(&policy::Request::Create(question.clone()));
        if !decision.allowed {
            return Err(self.deny(entry, &workspace, None, &decision).await?);
        }
        let ticket = self.queue.enter().map_err(|_| full("the queue of sandboxes is full"))?;
        let policy = rules::reference(&decision);
        let mut row = rules::row(&id, caller, &request, &question, &decision);
        row.credentials = credentials;
        let mut batch =
            Batch::entry(entry.about(&row).decided(&policy, AuditDecision::Allowed, "accepted"));
        batch.about(
            EventKind::SandboxCreated,
            &row,
            json!({"name": row.name, "created_by": row.created_by, "labels": row.labels}),
        );
        let key = by.idempotency_key.as_deref();
        batch.insert(row.clone(), key.map(|key| (caller.actor(), key.to_owned())));
        let seat = Arc::new(Seat::new(row));
        *lock(&seat.env) = request.env;
        *lock(&seat.mounts) = Some(rules::with_masks(mounts?, &decision));
        *lock(&seat.ticket) = Some(ticket);
        // It counts from here on, so that the next can be decided while this one is written down.
        self.sit(&seat);
        drop(deciding);
        if let Err(error) = self.ledger.commit(batch).await {
            self.stand_up(&id);
            return Err(error.into());
        }
        seat.log(LogSource::Lifecycle, None, "it was accepted");
        self.hook.reached(&id, State::Requested);
        self.spawn_life(&seat);
        Ok(seat)
    }

    /// One sandbox, by id or name.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get(&self, caller: &Caller, sandbox: &str) -> Result<Sandbox, Error> {
        let by = Provenance::default();
        let seat = self.find_to_read(caller, Operation::SandboxGet, sandbox, &by).await?;
        Ok(Sandbox::clone(&seat.row()))
    }

    /// The sandboxes that the caller may see, oldest first.
    ///
    /// # Errors
    /// `Access`, `Refused`.
    pub async fn list(
        &self,
        caller: &Caller,
        query: &ListSandboxes,
    ) -> Result<Page<Sandbox>, Error> {
        query.validate()?;
        let workspace = caller.scope(query.workspace.as_deref())?;
        let by = Provenance::default();
        self.authorise(caller, Operation::SandboxList, workspace, &by).await?;
        self.ledger.list(workspace, query).await.map_err(Error::from)
    }

    /// Each change of the sandboxes that fit the query, from now on.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn watch(
        &self,
        caller: &Caller,
        query: ListSandboxes,
    ) -> Result<impl Stream<Item = Sandbox> + Send + use<>, Error> {
        query.validate()?;
        let workspace = caller.scope(query.workspace.as_deref())?.map(str::to_owned);
        let by = Provenance::default();
        self.authorise(caller, Operation::SandboxList, workspace.as_deref(), &by).await?;
        let changes = tokio_stream::wrappers::BroadcastStream::new(self.changes.subscribe());
        Ok(futures_util::StreamExt::filter_map(changes, move |row| {
            // Who is too slow misses some, and sees the next.
            let row: Option<Arc<Sandbox>> = row.ok();
            let row = row.filter(|row| rules::fits(row, workspace.as_deref(), &query));
            std::future::ready(row.map(|row| Sandbox::clone(&row)))
        }))
    }

    /// Changes labels and times. With `if_match`, only that version.
    ///
    /// # Errors
    /// `NotFound`, `Changed`, `Refused`.
    pub async fn patch(
        &self,
        caller: &Caller,
        sandbox: &str,
        change: UpdateSandbox,
        if_match: Option<u64>,
        by: &Provenance,
    ) -> Result<Sandbox, Error> {
        let seat = self.find(caller, Operation::SandboxUpdate, sandbox, by).await?;
        change.validate()?;
        let present = seat.row();
        let entry = self.entry(caller, Operation::SandboxUpdate, by).about(&present);
        if let Some(question) = self.question_of_change(caller, &present, &change) {
            let decision = self.policy.load().decide(&question);
            if !decision.allowed {
                let workspace = present.workspace.clone();
                return Err(self.deny(entry, &workspace, Some(&present.id), &decision).await?);
            }
        }
        let is_about_network =
            change.network.is_some() || change.allow.is_some() || change.deny.is_some();
        if is_about_network {
            self.check_change(&seat, &present, &change).await?;
        }
        let moved = self
            .change(&seat, |row, batch| {
                let fits = if_match.is_none_or(|version| version == row.version);
                if !fits || row.state.is_final() || row.state == State::Destroying {
                    return None;
                }
                let next = rules::changed(row, change);
                batch.entries.push(entry.with_outcome("changed"));
                let data = json!({"labels": next.labels, "timeout_sec": next.timeout_sec,
                    "idle_timeout_sec": next.idle_timeout_sec});
                batch.about(EventKind::SandboxUpdated, &next, data);
                Some(next)
            })
            .await?;
        match moved {
            Ok(row) => {
                if is_about_network {
                    self.change_rules(&seat, &row).await?;
                }
                Ok(Sandbox::clone(&row))
            }
            Err(row) if if_match.is_some_and(|version| version != row.version) => {
                Err(Error::Changed(row.version))
            }
            Err(row) => Err(Error::State { state: row.state, remedy: "it is past changing" }),
        }
    }

    /// Asks for a move, records who did, and returns the seat.
    async fn ask(
        &self,
        caller: &Caller,
        operation: Operation,
        sandbox: &str,
        by: &Provenance,
        Wish { wanted, from, remedy }: Wish<'_>,
    ) -> Result<Arc<Seat>, Error> {
        let seat = self.find(caller, operation, sandbox, by).await?;
        let entry = self.entry(caller, operation, by);
        let moved = self
            .change(&seat, |row, batch| {
                if !from.contains(&row.state) {
                    return None;
                }
                batch.entries.push(entry.about(row).with_outcome("accepted"));
                Some(Sandbox { state: wanted, reason: None, ..row.clone() })
            })
            .await?;
        match moved {
            Ok(_) => Ok(seat),
            // It is done, or on its way, already.
            Err(row) if leads_to(row.state, wanted) => Ok(seat),
            Err(row) => Err(Error::State { state: row.state, remedy }),
        }
    }

    /// Destroys a sandbox, whatever it is doing; with `wait`, returns when nothing is left of it.
    /// Once is enough: where it is gone already, that is what this says.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete(
        &self,
        caller: &Caller,
        sandbox: &str,
        wait: bool,
        by: &Provenance,
    ) -> Result<Sandbox, Error> {
        const ANY: [State; 10] = [
            State::Requested,
            State::Provisioning,
            State::Ready,
            State::Executing,
            State::Paused,
            State::Hibernating,
            State::Hibernated,
            State::Stopping,
            State::Stopped,
            State::Failed,
        ];
        let wish = Wish { wanted: State::Destroying, from: &ANY, remedy: "it is gone" };
        let seat = self.ask(caller, Operation::SandboxDelete, sandbox, by, wish).await?;
        self.settled(&seat, wait, |row| row.state == State::Destroyed).await
    }

    /// Takes a sandbox's machine away, with all that is in it, and keeps its record; with `wait`,
    /// returns when the machine is gone.
    ///
    /// # Errors
    /// `NotFound`, `State`.
    pub async fn stop(
        &self,
        caller: &Caller,
        sandbox: &str,
        wait: bool,
        by: &Provenance,
    ) -> Result<Sandbox, Error> {
        const FROM: [State; 7] = [
            State::Requested,
            State::Provisioning,
            State::Ready,
            State::Executing,
            State::Paused,
            State::Hibernating,
            State::Hibernated,
        ];
        let remedy = "only one that runs can be stopped";
        let wish = Wish { wanted: State::Stopping, from: &FROM, remedy };
        let seat = self.ask(caller, Operation::SandboxStop, sandbox, by, wish).await?;
        self.settled(&seat, wait, |row| row.state != State::Stopping).await
    }

    /// Gives a stopped sandbox a new machine; with `wait`, returns when it takes tasks.
    ///
    /// # Errors
    /// `NotFound`, `State`, `Busy`, `Refused`, and what kept it from coming up.
    pub async fn start(
        &self,
        caller: &Caller,
        sandbox: &str,
        wait: bool,
        by: &Provenance,
    ) -> Result<Sandbox, Error> {
        self.open_for_work()?;
        let operation = Operation::SandboxStart;
        let seat = self.find(caller, operation, sandbox, by).await?;
        let row = seat.row();
        if matches!(row.state, State::Stopped | State::Failed) {
            let entry = self.entry(caller, operation, by).about(&row);
            let mounts = self.mounts_again(&row).await?;
            let question = self.question_of_start(caller, &row, &mounts);
            let decision = self.policy.load().decide(&question);
            if !decision.allowed {
                return Err(self.deny(entry, &row.workspace, Some(&row.id), &decision).await?);
            }
            let ticket = self.queue.enter().map_err(|_| {
                count(&self.counters.refused_busy);
                Error::Busy {
                    reason: "the queue of sandboxes is full",
                    retry_after: self.config.retry_after,
                }
            })?;
            *lock(&seat.ticket) = Some(ticket);
            *lock(&seat.mounts) = Some(rules::with_masks(mounts, &decision));
            *lock(&seat.failure) = None;
        }
        let from = [State::Stopped, State::Failed];
        let remedy = "only one that is stopped or failed can be started";
        let wish = Wish { wanted: State::Provisioning, from: &from, remedy };
        let seat = self.ask(caller, operation, sandbox, by, wish).await?;
        let row = self.settled(&seat, wait, |row| row.state != State::Provisioning).await?;
        match (row.state, lock(&seat.failure).clone()) {
            (State::Failed, Some(error)) => Err(error),
            _ => Ok(row),
        }
    }

    async fn settled(
        &self,
        seat: &Seat,
        wait: bool,
        settled: impl Fn(&Sandbox) -> bool,
    ) -> Result<Sandbox, Error> {
        if wait {
            tokio::select! {
                _ = seat.until(settled) => {}
                () = tokio::time::sleep(END_PATIENCE) => {}
                () = self.closed() => return Err(Error::ShuttingDown),
            }
        }
        Ok(Sandbox::clone(&seat.row()))
    }

    /// Stops a sandbox's processors; what is in it stays.
    ///
    /// # Errors
    /// `NotFound`, `State`, and `Supervisor` where its engine cannot do that.
    pub async fn pause(
        &self,
        caller: &Caller,
        sandbox: &str,
        by: &Provenance,
    ) -> Result<Sandbox, Error> {
        self.set_paused(caller, sandbox, by, true).await
    }

    /// Lets a sandbox go on that is paused or hibernated.
    ///
    /// # Errors
    /// As [`Self::pause`].
    pub async fn resume(
        &self,
        caller: &Caller,
        sandbox: &str,
        by: &Provenance,
    ) -> Result<Sandbox, Error> {
        let operation = Operation::SandboxResume;
        let seat = self.find_to_read(caller, operation, sandbox, by).await?;
        if seat.state() == State::Hibernated {
            self.wake(caller, &seat, by).await?;
            return Ok(Sandbox::clone(&seat.row()));
        }
        self.set_paused(caller, sandbox, by, false).await
    }

    async fn set_paused(
        &self,
        caller: &Caller,
        sandbox: &str,
        by: &Provenance,
        pause: bool,
    ) -> Result<Sandbox, Error> {
        let (operation, kind, remedy) = match pause {
            true => {
                let remedy = "only one that runs can be paused";
                (Operation::SandboxPause, EventKind::SandboxPaused, remedy)
            }
            false => {
                let remedy = "only one that is paused can be resumed";
                (Operation::SandboxResume, EventKind::SandboxResumed, remedy)
            }
        };
        let seat = self.find(caller, operation, sandbox, by).await?;
        let fits = |state: State| match pause {
            true => state.takes_tasks(),
            false => state == State::Paused,
        };
        let row = seat.row();
        let refused = |state| Error::State { state, remedy };
        if !fits(row.state) {
            return Err(refused(row.state));
        }
        let entry = self.entry(caller, operation, by).about(&row);
        self.ledger.commit(Batch::entry(entry.clone().with_outcome("accepted"))).await?;
        let running = seat.machine().ok_or_else(|| refused(row.state))?;
        let mut machine = running.sandbox.lock().await;
        let done = match machine.as_mut() {
            None => return Err(refused(seat.state())),
            Some(machine) if pause => machine.pause().await,
            Some(machine) => machine.resume().await,
        };
        if let Err(error) = done {
            let error = Error::from(error);
            let outcome = error.problem().code.as_str();
            self.ledger.commit(Batch::entry(entry.with_outcome(outcome))).await?;
            return Err(error);
        }
        let moved = self
            .change(&seat, |row, batch| {
                if !fits(row.state) {
                    return None;
                }
                let state = match (pause, row.running) {
                    (true, _) => State::Paused,
                    (false, 0) => State::Ready,
                    (false, _) => State::Executing,
                };
                let next = Sandbox { state, ..row.clone() };
                batch.entries.push(entry.with_outcome(state.as_str()));
                batch.about(kind, &next, json!({}));
                Some(next)
            })
            .await?;
        drop(machine);
        moved.map(|row| Sandbox::clone(&row)).map_err(|row| refused(row.state))
    }

    /// What a sandbox uses now, or used in all where its machine is gone.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn stats(&self, caller: &Caller, sandbox: &str) -> Result<Stats, Error> {
        let by = Provenance::default();
        let seat = self.find_to_read(caller, Operation::SandboxStats, sandbox, &by).await?;
        let row = seat.row();
        let at = Timestamp::now();
        let mut usage = row.usage.unwrap_or_default();
        if let Some(running) = seat.machine() {
            let machine = running.sandbox.lock().await;
            let used = machine.as_ref().and_then(|machine| machine.stats().ok());
            let used = used.unwrap_or_default();
            let since = row.started_at.map_or(Duration::ZERO, |started| at.since(started));
            usage = Usage {
                cpu_ms: u64::try_from(used.cpu.as_millis()).unwrap_or(u64::MAX),
                memory_peak_bytes: used.memory_peak_bytes,
                uptime_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            };
        }
        Ok(Stats { at, state: row.state, running: row.running, usage })
    }

    /// Lines of a sandbox's log, oldest first.
    ///
    /// # Errors
    /// `NotFound`, `Refused`.
    pub async fn logs(
        &self,
        caller: &Caller,
        sandbox: &str,
        query: &LogQuery,
    ) -> Result<Page<LogRecord>, Error> {
        query.validate()?;
        let by = Provenance::default();
        let seat = self.find_to_read(caller, Operation::SandboxLogs, sandbox, &by).await?;
        let mut lines = seat.lines(query.since.unwrap_or(0), query.process.as_deref());
        if let Some(tail) = query.tail {
            lines.drain(..lines.len().saturating_sub(tail as usize));
        }
        lines.truncate(query.limit.unwrap_or(api::PageQuery::LIMIT) as usize);
        Ok(Page::whole(lines))
    }

    /// The same, and each new line as it comes, until the sandbox is gone.
    ///
    /// # Errors
    /// As [`Self::logs`].
    pub async fn follow_logs(
        &self,
        caller: &Caller,
        sandbox: &str,
        query: LogQuery,
    ) -> Result<impl Stream<Item = LogRecord> + Send + use<>, Error> {
        query.validate()?;
        let by = Provenance::default();
        let seat = self.find_to_read(caller, Operation::SandboxLogs, sandbox, &by).await?;
        let mut lines = seat.lines(query.since.unwrap_or(0), query.process.as_deref());
        if let Some(tail) = query.tail {
            lines.drain(..lines.len().saturating_sub(tail as usize));
        }
        let (sender, receiver) = tokio::sync::mpsc::channel(64);
        let (manager, mut last) = (self.arc(), query.since.unwrap_or(0));
        tokio::spawn(async move {
            let mut logged = seat.logged();
            loop {
                for line in std::mem::take(&mut lines) {
                    last = line.seq;
                    if sender.send(line).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    changed = logged.changed() => if changed.is_err() { return },
                    _ = seat.until(|row| row.state.is_final()) => return,
                    () = sender.closed() => return,
                    () = manager.closed() => return,
                }
                lines = seat.lines(last, query.process.as_deref());
            }
        });
        Ok(tokio_stream::wrappers::ReceiverStream::new(receiver))
    }

    /// The mounts of a row, resolved anew.
    pub(crate) async fn mounts_again(&self, row: &Sandbox) -> Result<Vec<Mounted>, Error> {
        resolve(row.mounts.clone()).await
    }
}

/// Whether what is in the one state gets to the other, or was there, by itself.
fn leads_to(state: State, wanted: State) -> bool {
    match wanted {
        State::Destroying => matches!(state, State::Destroying | State::Destroyed),
        State::Stopping => matches!(state, State::Stopping | State::Stopped),
        State::Provisioning => {
            matches!(state, State::Provisioning | State::Ready | State::Executing)
        }
        _ => false,
    }
}

pub(crate) async fn resolve(mounts: Vec<api::Mount>) -> Result<Vec<Mounted>, Error> {
    if mounts.is_empty() {
        return Ok(Vec::new());
    }
    let resolving = tokio::task::spawn_blocking(move || {
        let one = |(index, mount): (usize, &api::Mount)| {
            Mounted::resolve(mount, &format!("mounts[{index}].host_path"))
        };
        mounts.iter().enumerate().map(one).collect()
    });
    resolving.await.map_err(|error| Error::Internal(error.to_string()))?
}
