//! The fleet itself: what is shared by all that it does.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};
use std::time::Duration;

use access::Caller;
use api::{AuditDecision, CallerKind, EventKind, Operation, Sandbox, State, Timestamp};
use audit::Entry;
use policy::Live;
use supervisor::Supervisor;
use tokio::sync::{broadcast, watch};
use tokio_util::task::TaskTracker;

use crate::config::{Config, Mode, Provenance};
use crate::ledger::{Batch, Ledger, RequestKey};
use crate::metrics::{Counters, Metrics, count};
use crate::network::Network;
use crate::queue::Queue;
use crate::record::{self, Tell as _};
use crate::seat::Seat;
use crate::snapshot::wakes;
use crate::{Error, OpenError, hook};

/// Changes that a watcher may be late by.
const CHANGES: usize = 1024;

/// Many sandboxes. Every method asks, in this order, whether the caller may ([`access`]), whether
/// policy allows it, writes down that it was accepted, does it, and writes down what came of it.
/// The work is done by tasks of its own: a caller that goes away changes nothing.
pub struct Manager {
    /// For its tasks.
    me: Weak<Self>,
    pub(crate) config: Config,
    pub(crate) supervisor: Supervisor,
    pub(crate) ledger: Ledger,
    pub(crate) policy: Live,
    pub(crate) policy_loaded: Mutex<Timestamp>,
    /// Tokens of an identity provider.
    pub(crate) provider: Option<access::jwt::Verifier>,
    /// Requests with a key that are being done.
    pub(crate) under_way: Mutex<HashSet<RequestKey>>,
    pub(crate) network: Network,
    pub(crate) queue: Queue,
    pub(crate) counters: Counters,
    pub(crate) seats: RwLock<HashMap<String, Arc<Seat>>>,
    pub(crate) tasks: TaskTracker,
    /// Held while a machine is attached again.
    pub(crate) attaching: tokio::sync::Mutex<()>,
    /// Held from the count of sandboxes to the one that is added.
    pub(crate) deciding: tokio::sync::Mutex<()>,
    /// Held while a snapshot is made and named.
    pub(crate) saving: tokio::sync::Mutex<()>,
    /// Every row as it is committed.
    pub(crate) changes: broadcast::Sender<Arc<Sandbox>>,
    closing: watch::Sender<bool>,
    is_ready: AtomicBool,
    pub(crate) hook: Arc<dyn hook::Hook>,
    pub(crate) secrets: Arc<secrets::Store>,
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Manager {
    /// Opens the state and takes up what is there: machines are attached again, what was
    /// accepted is carried out, what nobody owns is ended. To be called where tokio runs.
    ///
    /// # Errors
    /// `OpenError` where the state, the policy or the runtime directory cannot be used.
    pub async fn open(config: Config, supervisor: Supervisor) -> Result<Arc<Self>, OpenError> {
        Self::open_with(config, supervisor, Arc::new(())).await
    }

    /// The same, with somebody who is told of each step: for tests that stop it there.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_with(
        config: Config,
        supervisor: Supervisor,
        hook: Arc<dyn hook::Hook>,
    ) -> Result<Arc<Self>, OpenError> {
        let ledger = Ledger::open(&config).await?;
        let policy = crate::rules::load(&config, ledger.generation())?;
        let provider = config.identity_provider.clone().map(access::jwt::Verifier::new);
        let provider = provider.transpose()?;
        let manager = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            queue: Queue::new(config.max_booting, config.max_queued),
            supervisor,
            ledger,
            policy,
            policy_loaded: Mutex::new(Timestamp::now()),
            provider,
            network: Network::default(),
            under_way: Mutex::default(),
            counters: Counters::default(),
            seats: RwLock::default(),
            tasks: TaskTracker::new(),
            attaching: tokio::sync::Mutex::default(),
            deciding: tokio::sync::Mutex::default(),
            saving: tokio::sync::Mutex::default(),
            changes: broadcast::channel(CHANGES).0,
            closing: watch::Sender::new(false),
            is_ready: AtomicBool::new(false),
            hook,
            secrets: Arc::new(secrets::Store::open(
                &config.data.join("secrets"),
                config.secrets.clone(),
            )),
            config,
        });
        manager.spawn_network();
        manager.recover().await?;
        if manager.config.mode == Mode::Daemon {
            manager.spawn_upkeep();
        }
        manager.is_ready.store(true, Ordering::Release);
        Ok(manager)
    }

    /// Takes no more work, waits up to `deadline` for what is under way, and lets go of the
    /// machines, which go on until somebody opens the state again.
    pub async fn shutdown(&self, deadline: Duration) {
        self.is_ready.store(false, Ordering::Release);
        self.closing.send_replace(true);
        self.tasks.close();
        let _ = tokio::time::timeout(deadline, self.tasks.wait()).await;
        self.ledger.close().await;
    }

    /// Whether it takes work: it does not while it starts or stops, nor with a full disk.
    pub fn ready(&self) -> bool {
        self.is_ready.load(Ordering::Acquire) && !self.is_closing() && self.store().room().is_ok()
    }

    pub(crate) fn is_closing(&self) -> bool {
        *self.closing.borrow()
    }

    /// Waits until it is to take no more work.
    pub(crate) async fn closed(&self) {
        let mut closing = self.closing.subscribe();
        let _ = closing.wait_for(|closing| *closing).await;
    }

    /// What it has counted.
    pub fn metrics(&self) -> Metrics {
        let mut states: BTreeMap<State, u64> = BTreeMap::new();
        for seat in self.all() {
            *states.entry(seat.state()).or_default() += 1;
        }
        self.counters.snapshot(states, self.queue.length())
    }

    /// What is on record.
    pub fn store(&self) -> &store::Store {
        self.ledger.store()
    }

    /// The engines and the images.
    pub fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    /// What it was told.
    pub fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn arc(&self) -> Arc<Self> {
        self.me.upgrade().expect("it is in an Arc, as long as somebody calls it")
    }

    pub(crate) fn all(&self) -> Vec<Arc<Seat>> {
        self.seats.read().expect("nothing panics with it").values().cloned().collect()
    }

    pub(crate) fn seat(&self, id: &str) -> Option<Arc<Seat>> {
        self.seats.read().expect("nothing panics with it").get(id).cloned()
    }

    pub(crate) fn sit(&self, seat: &Arc<Seat>) {
        let mut seats = self.seats.write().expect("nothing panics with it");
        seats.insert(seat.id().to_owned(), seat.clone());
    }

    pub(crate) fn stand_up(&self, id: &str) {
        self.seats.write().expect("nothing panics with it").remove(id);
    }

    pub(crate) fn entry(&self, caller: &Caller, operation: Operation, by: &Provenance) -> Entry {
        record::entry(caller, operation, by)
    }

    /// Whether the caller may do this to a thing of this workspace; that it may not is recorded.
    pub(crate) async fn authorise(
        &self,
        caller: &Caller,
        operation: Operation,
        workspace: Option<&str>,
        by: &Provenance,
    ) -> Result<(), Error> {
        let Err(refusal) = access::authorise(caller, operation, workspace) else { return Ok(()) };
        self.refuse(caller, operation, &refusal, by).await?;
        Err(refusal.into())
    }

    /// Records that a caller had no right to something.
    pub(crate) async fn refuse(
        &self,
        caller: &Caller,
        operation: Operation,
        refusal: &access::Refusal,
        by: &Provenance,
    ) -> Result<(), Error> {
        count(&self.counters.access_denials);
        let outcome = api::Problem::from(refusal.clone()).code.as_str();
        let mut entry = self.entry(caller, operation, by).with_outcome(outcome);
        entry.decision = AuditDecision::Denied;
        self.ledger.commit(Batch::entry(entry)).await?;
        Ok(())
    }

    /// The sandbox that the caller means by this id or name, if it may do this to it, with its
    /// machine.
    pub(crate) async fn find(
        &self,
        caller: &Caller,
        operation: Operation,
        name: &str,
        by: &Provenance,
    ) -> Result<Arc<Seat>, Error> {
        let seat = self.find_seat(caller, operation, name, by).await?;
        if seat.state() == State::Hibernated && wakes(operation) {
            self.wake(caller, &seat, by).await?;
        }
        self.with_machine(&seat).await?;
        Ok(seat)
    }

    async fn find_seat(
        &self,
        caller: &Caller,
        operation: Operation,
        name: &str,
        by: &Provenance,
    ) -> Result<Arc<Seat>, Error> {
        let missing = || Error::not_found("sandbox", name);
        let Some((id, workspace)) = self.look_up(caller, name).await? else {
            // A caller that may do this to none is told that first.
            self.authorise(caller, operation, caller.workspace.as_deref(), by).await?;
            return Err(missing());
        };
        match self.authorise(caller, operation, Some(&workspace), by).await {
            Err(Error::Access(access::Refusal::NotFound)) => return Err(missing()),
            other => other?,
        }
        self.seat_of(&id).await?.ok_or_else(missing)
    }

    /// The same, for what needs no machine.
    pub(crate) async fn find_to_read(
        &self,
        caller: &Caller,
        operation: Operation,
        name: &str,
        by: &Provenance,
    ) -> Result<Arc<Seat>, Error> {
        self.find_seat(caller, operation, name, by).await
    }

    /// The id and the workspace of what the caller calls so.
    async fn look_up(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<Option<(String, String)>, Error> {
        if let Some(seat) = self.seat(name) {
            return Ok(Some((name.to_owned(), seat.row().workspace.clone())));
        }
        let is_id = api::bound::SandboxId::is(name);
        if !is_id {
            return Ok(None);
        }
        if let Some(row) = self.ledger.sandbox(name).await? {
            return Ok(Some((row.id, row.workspace)));
        }
        // A name is one of the caller's own workspace.
        let own = caller.workspace.as_deref();
        let workspace = own.unwrap_or(&self.config.default_workspace);
        let found = match self.ledger.named(Some(workspace), name).await? {
            None if own.is_none() => self.ledger.named(None, name).await?,
            found => found,
        };
        Ok(found.map(|row| (row.id, row.workspace)))
    }

    /// The seat of a sandbox, taken over where its owner is dead.
    async fn seat_of(&self, id: &str) -> Result<Option<Arc<Seat>>, Error> {
        if let Some(seat) = self.seat(id) {
            return Ok(Some(seat));
        }
        let Some(row) = self.ledger.sandbox(id).await? else { return Ok(None) };
        if row.state.is_final() {
            return Ok(Some(Arc::new(Seat::new(row))));
        }
        self.take_over(row).await.map(Some)
    }

    /// Whether new work is taken.
    pub(crate) fn open_for_work(&self) -> Result<(), Error> {
        if self.is_closing() {
            return Err(Error::ShuttingDown);
        }
        Ok(self.store().room()?)
    }

    pub(crate) fn signed(&self, caller: &Caller, by: &Provenance) -> Result<(), Error> {
        // The program that embeds this has no wire between itself and its user.
        let exempt = self.config.mode == Mode::Embedded && caller.kind == CallerKind::Local;
        match self.config.require_signatures && by.signature.is_none() && !exempt {
            true => Err(Error::Unsigned),
            false => Ok(()),
        }
    }

    /// Moves a sandbox to the row that `change` makes of the present one, with its records. Where
    /// `change` makes none, nothing happens and the present row is returned as an error.
    pub(crate) async fn change(
        &self,
        seat: &Seat,
        change: impl FnOnce(&Sandbox, &mut Batch) -> Option<Sandbox>,
    ) -> Result<Result<Arc<Sandbox>, Arc<Sandbox>>, Error> {
        let _changing = seat.changing.lock().await;
        let present = seat.row();
        let mut batch = Batch::default();
        let Some(mut next) = change(&present, &mut batch) else { return Ok(Err(present)) };
        debug_assert!(
            next.state == present.state || present.state.may_become(next.state),
            "{} -> {}",
            present.state,
            next.state
        );
        next.version = present.version + 1;
        batch.update(present.state, next.clone());
        // What is on record counts.
        let next = self.ledger.commit(batch).await?.unwrap_or(next);
        if next.state != present.state {
            self.hook.reached(&next.id, next.state);
        }
        if next.state.is_final() {
            self.forget_secrets(&next);
        }
        let row = seat.publish(next);
        // Nobody may be watching.
        let _ = self.changes.send(row.clone());
        Ok(Ok(row))
    }

    /// Records that policy refused, as an audit record and as an event.
    pub(crate) async fn deny(
        &self,
        entry: Entry,
        workspace: &str,
        sandbox: Option<&str>,
        decision: &policy::Decision,
    ) -> Result<Error, Error> {
        count(&self.counters.policy_denials);
        let reference = crate::rules::reference(decision);
        let code = api::Code::PolicyDenied.as_str();
        let mut batch = Batch::entry(entry.in_workspace(workspace).decided(
            &reference,
            AuditDecision::Denied,
            code,
        ));
        let data = serde_json::json!({
            "rule": reference.rule,
            "generation": reference.generation,
            "reason": decision.reason,
        });
        batch.event(EventKind::PolicyDenied, sandbox, Some(workspace), data);
        self.ledger.commit(batch).await?;
        Ok(Error::Refused(crate::rules::problem(decision)))
    }
}
