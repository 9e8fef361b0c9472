//! Snapshots of sandboxes, and sandboxes that go on from others.
//!
//! What goes on is a new sandbox: rights, policy and record come before it as before any other, and
//! policy is asked about all that the other one had.

pub(crate) mod files;
mod hibernate;

use std::path::PathBuf;
use std::sync::Arc;

use access::Caller;
use api::{
    AuditDecision, CreateSandbox, CreateSnapshot, EventKind, ForkSandbox, ForkedSandboxes,
    LogSource, Operation, Process, RestoreSnapshot, Sandbox, Snapshot, SnapshotList, SnapshotQuery,
    State, Timestamp, Validate as _,
};
use serde_json::json;
use supervisor::wire::op::{Outcome, Processes};
use supervisor::{Afterwards, Check};

pub(crate) use self::hibernate::wakes;

use self::files::{About, Files, Found, Passing, told};
use crate::config::Provenance;
use crate::ledger::Batch;
use crate::manager::Manager;
use crate::metrics::count;
use crate::mount::Mounted;
use crate::record::Tell as _;
use crate::seat::{Running, Seat, lock};
use crate::{Error, rules};

/// What a sandbox goes on from when it comes up.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A snapshot that somebody keeps.
    Kept(PathBuf),
    /// One that is there for its forks alone.
    Fork(Arc<Passing>),
}

impl Source {
    pub(crate) fn directory(&self) -> PathBuf {
        match self {
            Self::Kept(directory) => directory.clone(),
            Self::Fork(passing) => passing.directory().to_owned(),
        }
    }

    /// What is checked of it.
    pub(crate) fn check(&self) -> Check {
        match self {
            Self::Kept(_) => Check::Whole,
            Self::Fork(_) => Check::Dependencies,
        }
    }
}

/// One that is to go on from another.
struct Offspring<'a> {
    /// The record of the other.
    row: &'a Sandbox,
    /// The id of what it goes on from.
    origin: &'a str,
    name: Option<String>,
    env_names: Vec<String>,
}

/// An id for a snapshot.
fn generate_id() -> Result<String, Error> {
    Ok(format!("sn-{}", &supervisor::generate_id()?["sb-".len()..]))
}

impl Manager {
    pub(crate) fn snapshot_files(&self) -> Files {
        Files::new(&self.config.data)
    }

    /// Makes a snapshot of a sandbox that runs. Where the caller goes away meanwhile, it is made all
    /// the same.
    ///
    /// # Errors
    /// `NotFound`, `State`, `NameTaken`, and `Supervisor` where it cannot be saved, with the reason.
    pub async fn create_snapshot(
        &self,
        caller: &Caller,
        sandbox: &str,
        request: CreateSnapshot,
        by: &Provenance,
    ) -> Result<Snapshot, Error> {
        let (manager, caller, by) = (self.arc(), caller.clone(), by.clone());
        let sandbox = sandbox.to_owned();
        let made = async move { manager.snapshot_now(&caller, &sandbox, request, &by).await };
        self.tasks.spawn(made).await.map_err(|_| Error::ShuttingDown)?
    }

    async fn snapshot_now(
        &self,
        caller: &Caller,
        sandbox: &str,
        request: CreateSnapshot,
        by: &Provenance,
    ) -> Result<Snapshot, Error> {
        self.open_for_work()?;
        let operation = Operation::SandboxSnapshot;
        let seat = self.find(caller, operation, sandbox, by).await?;
        self.signed(caller, by)?;
        request.validate()?;
        // One at a time, so that two do not get one name.
        let _naming = self.saving.lock().await;
        let running = seat.running()?;
        let row = seat.row();
        let files = self.snapshot_files();
        let id = generate_id()?;
        let name = request.name.unwrap_or_else(|| id.clone());
        if files.find(&row.workspace, &name).is_ok() {
            return Err(Error::NameTaken { what: "snapshot", name });
        }
        let about = About {
            id: id.clone(),
            name,
            workspace: row.workspace.clone(),
            created_by: caller.subject.clone(),
            created_at: Timestamp::now(),
            sandbox: Sandbox::clone(&row),
        };
        let entry = self.entry(caller, operation, by).about(&row);
        let entry = entry.with_detail("snapshot", id.as_str());
        self.ledger.commit(Batch::entry(entry.clone().with_outcome("accepted"))).await?;
        let directory = files.snapshot(&row.workspace, &id);
        let value = serde_json::to_value(&about).map_err(|error| internal(&error))?;
        let saved = self.save(&running, &directory, value, Afterwards::Resumes).await;
        let manifest = match saved {
            Ok(manifest) => manifest,
            Err(error) => {
                let outcome = error.problem().code.as_str();
                self.ledger.commit(Batch::entry(entry.with_outcome(outcome))).await?;
                return Err(error);
            }
        };
        let mut batch = Batch::entry(entry.with_outcome("saved"));
        let data = json!({"snapshot": id, "name": about.name, "created_by": about.created_by});
        batch.about(EventKind::SnapshotCreated, &row, data);
        self.ledger.commit(batch).await?;
        seat.log(LogSource::Lifecycle, None, &format!("it was saved as {}", about.name));
        Ok(told(&about, &manifest, supervisor::snapshot_size(&directory)))
    }

    pub(crate) async fn save(
        &self,
        running: &Running,
        directory: &std::path::Path,
        about: serde_json::Value,
        afterwards: Afterwards,
    ) -> Result<supervisor::Manifest, Error> {
        let mut machine = running.sandbox.lock().await;
        let Some(machine) = machine.as_mut() else {
            let remedy = "it was taken away meanwhile";
            return Err(Error::State { state: State::Stopping, remedy });
        };
        Ok(self.supervisor.snapshot(machine, directory, about, afterwards).await?)
    }

    /// The snapshots of a workspace, the newest first.
    ///
    /// # Errors
    /// `Access`, `Refused`.
    pub async fn snapshots(
        &self,
        caller: &Caller,
        query: &SnapshotQuery,
    ) -> Result<SnapshotList, Error> {
        let by = Provenance::default();
        let workspace = self.snapshots_of(caller, Operation::SnapshotList, query, &by).await?;
        let list = self.of_snapshots(move |files| files.list(&workspace)).await?;
        Ok(SnapshotList { snapshots: list.iter().map(Found::told).collect() })
    }

    /// One snapshot.
    ///
    /// # Errors
    /// `Access`, `Refused`, `NotFound`.
    pub async fn snapshot(
        &self,
        caller: &Caller,
        name: &str,
        query: &SnapshotQuery,
    ) -> Result<Snapshot, Error> {
        let by = Provenance::default();
        let workspace = self.snapshots_of(caller, Operation::SnapshotGet, query, &by).await?;
        let name = name.to_owned();
        Ok(self.of_snapshots(move |files| files.find(&workspace, &name)).await?.told())
    }

    /// Removes a snapshot. Sandboxes that went on from it stay.
    ///
    /// # Errors
    /// `Access`, `Refused`, `NotFound`.
    pub async fn remove_snapshot(
        &self,
        caller: &Caller,
        name: &str,
        query: &SnapshotQuery,
        by: &Provenance,
    ) -> Result<(), Error> {
        let operation = Operation::SnapshotRemove;
        let workspace = self.snapshots_of(caller, operation, query, by).await?;
        let (of, wanted) = (workspace.clone(), name.to_owned());
        let found = self.of_snapshots(move |files| files.find(&of, &wanted)).await?;
        let entry = self.entry(caller, operation, by).in_workspace(workspace.clone());
        let id = found.about.id;
        let entry = entry.with_detail("snapshot", id.as_str()).with_outcome("accepted");
        let mut batch = Batch::entry(entry);
        let data = json!({"snapshot": id, "name": found.about.name});
        batch.event(EventKind::SnapshotRemoved, None, Some(&workspace), data);
        self.ledger.commit(batch).await?;
        let directory = found.directory;
        self.of_snapshots(move |_| Ok(supervisor::remove_snapshot(&directory)?)).await
    }

    async fn snapshots_of(
        &self,
        caller: &Caller,
        operation: Operation,
        query: &SnapshotQuery,
        by: &Provenance,
    ) -> Result<String, Error> {
        query.validate()?;
        let asked = query.workspace.as_deref();
        let workspace = caller.home(asked, &self.config.default_workspace)?.to_owned();
        self.authorise(caller, operation, Some(&workspace), by).await?;
        Ok(workspace)
    }

    async fn of_snapshots<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Files) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let files = self.snapshot_files();
        tokio::task::spawn_blocking(move || work(&files)).await.map_err(|error| internal(&error))?
    }

    /// Makes a sandbox that goes on from a snapshot, and returns when it takes tasks.
    ///
    /// # Errors
    /// As [`Self::create`]; and `Supervisor` where it cannot go on here, with what differs.
    pub async fn restore_snapshot(
        &self,
        caller: &Caller,
        name: &str,
        query: &SnapshotQuery,
        request: RestoreSnapshot,
        by: &Provenance,
    ) -> Result<Sandbox, Error> {
        let (manager, caller, by) = (self.arc(), caller.clone(), by.clone());
        let (name, query) = (name.to_owned(), query.clone());
        let made = async move { manager.restore_now(&caller, &name, &query, request, &by).await };
        let seat = self.tasks.spawn(made).await.map_err(|_| Error::ShuttingDown)??;
        self.arrival(&seat).await
    }

    async fn restore_now(
        &self,
        caller: &Caller,
        name: &str,
        query: &SnapshotQuery,
        request: RestoreSnapshot,
        by: &Provenance,
    ) -> Result<Arc<Seat>, Error> {
        self.open_for_work()?;
        let operation = Operation::SnapshotRestore;
        let workspace = self.snapshots_of(caller, operation, query, by).await?;
        self.signed(caller, by)?;
        request.validate()?;
        // The same request, come again after this process was killed.
        if let Some(key) = &by.idempotency_key
            && let Some(row) = self.ledger.sandbox_of(&caller.actor(), key).await?
        {
            return Ok(self.seat(&row.id).unwrap_or_else(|| Arc::new(Seat::new(row))));
        }
        let name = name.to_owned();
        let found = self.of_snapshots(move |files| files.find(&workspace, &name)).await?;
        let mut row = found.about.sandbox.clone();
        if let Some(labels) = request.labels {
            row.labels = labels;
        }
        let offspring = Offspring {
            row: &row,
            origin: &found.about.id,
            name: request.name,
            env_names: request.env.keys().cloned().collect(),
        };
        let source = Source::Kept(found.directory);
        let made = self.make(caller, operation, vec![offspring], source, by).await?;
        let seat = made.into_iter().next().ok_or_else(|| Error::Internal("no sandbox".into()))?;
        *lock(&seat.env) = request.env;
        self.spawn_life(&seat);
        Ok(seat)
    }

    /// Makes sandboxes that go on from one that runs, and returns when they take tasks. Where some
    /// of them fail, their records say why.
    ///
    /// # Errors
    /// As [`Self::create_snapshot`] and [`Self::create`].
    pub async fn fork(
        &self,
        caller: &Caller,
        sandbox: &str,
        request: ForkSandbox,
        by: &Provenance,
    ) -> Result<ForkedSandboxes, Error> {
        let (manager, caller, by) = (self.arc(), caller.clone(), by.clone());
        let sandbox = sandbox.to_owned();
        let made = async move { manager.fork_now(&caller, &sandbox, request, &by).await };
        let seats = self.tasks.spawn(made).await.map_err(|_| Error::ShuttingDown)??;
        let mut sandboxes = Vec::with_capacity(seats.len());
        let mut failure = None;
        for seat in &seats {
            if let Err(error) = self.arrival(seat).await {
                failure.get_or_insert(error);
            }
            sandboxes.push(Sandbox::clone(&seat.row()));
        }
        match failure {
            Some(error) if sandboxes.iter().all(|row| row.state == State::Failed) => Err(error),
            _ => Ok(ForkedSandboxes { sandboxes }),
        }
    }

    async fn fork_now(
        &self,
        caller: &Caller,
        sandbox: &str,
        request: ForkSandbox,
        by: &Provenance,
    ) -> Result<Vec<Arc<Seat>>, Error> {
        self.open_for_work()?;
        let operation = Operation::SandboxFork;
        let seat = self.find(caller, operation, sandbox, by).await?;
        self.signed(caller, by)?;
        request.validate()?;
        let names = request.names();
        let row = seat.row();
        let running = seat.running()?;
        // Nothing is saved for what would be refused.
        let _allowed = self.allow_offspring(caller, operation, &row, names.len(), by).await?;
        let entry = self.entry(caller, operation, by).about(&row);
        let entry = entry.with_detail("count", names.len());
        self.ledger.commit(Batch::entry(entry.clone().with_outcome("accepted"))).await?;
        let passing = Arc::new(self.snapshot_files().passing(&generate_id()?));
        let saved =
            self.save(&running, passing.directory(), serde_json::Value::Null, Afterwards::Resumes);
        if let Err(error) = saved.await {
            let outcome = error.problem().code.as_str();
            self.ledger.commit(Batch::entry(entry.with_outcome(outcome))).await?;
            return Err(error);
        }
        let env_names = row.env_names.clone();
        let offspring = names.into_iter().map(|name| Offspring {
            row: &row,
            origin: &row.id,
            name,
            env_names: env_names.clone(),
        });
        let source = Source::Fork(passing);
        let seats = self.make(caller, operation, offspring.collect(), source, by).await?;
        let env = lock(&seat.env).clone();
        for made in &seats {
            lock(&made.env).clone_from(&env);
            self.spawn_life(made);
        }
        Ok(seats)
    }

    /// What policy says to sandboxes that go on from this one; and whether there is room.
    async fn allow_offspring(
        &self,
        caller: &Caller,
        operation: Operation,
        row: &Sandbox,
        number: usize,
        by: &Provenance,
    ) -> Result<policy::Decision, Error> {
        let create = Operation::SandboxCreate;
        self.authorise(caller, create, Some(&row.workspace), by).await?;
        let more = u64::try_from(number.saturating_sub(1)).unwrap_or(u64::MAX);
        let sandboxes = self.count_of(&row.workspace).saturating_add(more);
        let mounts = row.mounts.iter().map(Mounted::unseen).collect();
        let question = self.question_of_offspring(caller, row, mounts, sandboxes);
        let decision = self.policy.load().decide(&question);
        if !decision.allowed {
            let entry = self.entry(caller, operation, by).about(row);
            return Err(self.deny(entry, &row.workspace, Some(&row.id), &decision).await?);
        }
        self.room_for(number)?;
        Ok(decision)
    }

    /// Whether this host may have so many machines more.
    pub(crate) fn room_for(&self, number: usize) -> Result<(), Error> {
        let has_machine = |seat: &&Arc<Seat>| {
            let state = seat.state();
            state.has_machine() || state == State::Requested
        };
        let there = self.all().iter().filter(has_machine).count();
        if there + number > self.config.max_sandboxes {
            count(&self.counters.refused_busy);
            return Err(Error::Busy {
                reason: "there are as many sandboxes as this host may have",
                retry_after: self.config.retry_after,
            });
        }
        Ok(())
    }

    /// Writes down sandboxes that go on from others. They have no lives yet.
    async fn make(
        &self,
        caller: &Caller,
        operation: Operation,
        offspring: Vec<Offspring<'_>>,
        source: Source,
        by: &Provenance,
    ) -> Result<Vec<Arc<Seat>>, Error> {
        let Some(first) = offspring.first() else { return Ok(Vec::new()) };
        let (like, number) = (first.row, offspring.len());
        let mut credentials = Vec::with_capacity(number);
        for _ in 0..number {
            let wanted = as_asked_for(like);
            credentials.push(self.settle(caller, &like.workspace, &wanted, &Ok(Vec::new())).await?);
        }
        let deciding = self.deciding.lock().await;
        let decision = self.allow_offspring(caller, operation, like, number, by).await?;
        let policy = rules::reference(&decision);
        let mut batch = Batch::default();
        let mut seats = Vec::with_capacity(number);
        let key = by.idempotency_key.as_deref().filter(|_| number == 1);
        for (offspring, credentials) in offspring.into_iter().zip(credentials) {
            let ticket = self.queue.enter().map_err(|_| {
                count(&self.counters.refused_busy);
                let retry_after = self.config.retry_after;
                Error::Busy { reason: "the queue of sandboxes is full", retry_after }
            })?;
            let Offspring { row, origin, name, env_names } = offspring;
            let id = supervisor::generate_id()?;
            let row = Sandbox {
                name: name.unwrap_or_else(|| id.clone()),
                id,
                state: State::Requested,
                reason: None,
                credentials,
                // What was copied is there already, and what was shared live was the other's.
                mounts: Vec::new(),
                env_names,
                created_by: caller.subject.clone(),
                created_at: Timestamp::now(),
                started_at: None,
                ended_at: None,
                expires_at: None,
                idle_at: None,
                running: 0,
                version: 1,
                origin: Some(origin.to_owned()),
                policy: policy.clone(),
                timings: None,
                usage: None,
                ..row.clone()
            };
            let entry = self.entry(caller, Operation::SandboxCreate, by).about(&row);
            let entry = entry.with_detail("origin", origin);
            batch.entries.push(entry.decided(&policy, AuditDecision::Allowed, "accepted"));
            let data = json!({"name": row.name, "created_by": row.created_by,
                "labels": row.labels, "origin": origin});
            batch.about(EventKind::SandboxCreated, &row, data);
            batch.insert(row.clone(), key.map(|key| (caller.actor(), key.to_owned())));
            let seat = Arc::new(Seat::new(row));
            *lock(&seat.ticket) = Some(ticket);
            *lock(&seat.source) = Some(source.clone());
            *lock(&seat.mounts) = Some(Vec::new());
            seats.push(seat);
        }
        for seat in &seats {
            self.sit(seat);
        }
        drop(deciding);
        if let Err(error) = self.ledger.commit(batch).await {
            for seat in &seats {
                self.stand_up(seat.id());
            }
            return Err(error.into());
        }
        for seat in &seats {
            seat.log(LogSource::Lifecycle, None, "it was accepted");
            self.hook.reached(seat.id(), State::Requested);
        }
        Ok(seats)
    }

    /// Puts tasks on record that went on from another sandbox.
    pub(crate) async fn adopt_tasks(&self, seat: &Arc<Seat>, running: &Running) {
        let Some(origin) = seat.row().origin.clone() else { return };
        let Ok(list) = running.guest.ask(&Processes {}).await else { return };
        let goes_on = list
            .processes
            .into_iter()
            .filter(|one| one.detached && matches!(one.outcome, Outcome::Running));
        for task in goes_on {
            // Of a snapshot's sandbox, which may be gone, the command is not known any more.
            let known = self.ledger.process(&origin, &task.process).await.ok().flatten();
            let age = i64::try_from(task.age_ms).unwrap_or(i64::MAX);
            let started = Timestamp::now().unix_ms().saturating_sub(age);
            let process = Process {
                process: task.process,
                sandbox: seat.id().to_owned(),
                command: known.as_ref().and_then(|known| known.command.clone()),
                created_by: Some(seat.row().created_by.clone()),
                detached: true,
                tty: known.as_ref().is_some_and(|known| known.tty),
                started_at: Timestamp::from_unix_ms(started),
                ended_at: None,
                outcome: api::Outcome::Running,
                exit_code: None,
                cpu_ms: None,
                memory_peak_bytes: None,
                task_digest: known.map_or_else(String::new, |known| known.task_digest),
            };
            let entry = self.own_entry(Operation::Exec, &seat.row(), "adopted");
            let entry = entry.with_detail("process", process.process.as_str());
            let (adopted, recorded) = (process.clone(), entry.clone());
            let moved = self.change(seat, |row, batch| {
                if !row.state.takes_tasks() {
                    return None;
                }
                batch.entries.push(recorded);
                batch.begin_process(adopted, None);
                self.count_task();
                Some(Self::with_running(row, 1))
            });
            match moved.await {
                Ok(Ok(_)) => self.spawn_follower(seat, running.guest.clone(), process, entry),
                Ok(Err(_)) => return,
                Err(error) => tracing::error!(%error, "cannot record a task that goes on"),
            }
        }
    }
}

fn internal(error: &dyn std::error::Error) -> Error {
    Error::Internal(error.to_string())
}

/// What would be asked for to get a network like this sandbox's.
fn as_asked_for(row: &Sandbox) -> CreateSandbox {
    let of = |(name, credential): (&String, &api::SandboxCredential)| match credential.read_only {
        true => format!("{name}=read-only"),
        false => name.clone(),
    };
    let gateways = row.credentials.iter().filter(|(_, credential)| credential.gateway);
    CreateSandbox {
        cpu: row.cpu,
        memory_mb: Some(row.memory_mb),
        disk_gb: row.disk_gb,
        timeout_sec: row.timeout_sec,
        image: Some(row.image.clone()),
        network: Some(row.network),
        allow: row.allow.clone(),
        deny: row.deny.clone(),
        profiles: row.profiles.clone(),
        credentials: row.credentials.iter().map(of).collect(),
        gateways: gateways.map(|(name, _)| name.clone()).collect(),
        engine: row.engine.clone(),
        min_isolation: row.min_isolation,
        ..CreateSandbox::default()
    }
}
