//! What is written down: changes of rows, their audit records and their events, in one
//! transaction.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use api::{Code, EventKind, ListSandboxes, Page, PageQuery, Problem, Process, Sandbox, State};
use audit::{Digest, Entry};
use serde_json::{Map, Value};
use store::{Begun, Instance, SandboxRecord, Store, StoreError, TakenOver};

use crate::Config;
use crate::seat::lock;

/// The setting that names this data directory to machines.
const ID: &str = "fleet_id";
/// The counter of policy's generations.
const GENERATION: &str = "policy_generation";

/// Who asked, and the Idempotency-Key.
pub(crate) type RequestKey = (String, String);

/// One change of a row.
#[derive(Debug)]
enum Change {
    Insert(Box<Sandbox>, Option<RequestKey>),
    Update(State, Box<Sandbox>),
    Begin(Box<Process>, Option<RequestKey>),
    Started(Box<Process>),
    End(Box<Process>),
}

/// What is committed together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    changes: Vec<Change>,
    pub(crate) entries: Vec<Entry>,
    events: Vec<Happening>,
}

/// An event to be.
#[derive(Debug)]
struct Happening {
    kind: EventKind,
    sandbox: Option<String>,
    workspace: Option<String>,
    data: Map<String, Value>,
}

impl Batch {
    pub(crate) fn entry(entry: Entry) -> Self {
        Self { entries: vec![entry], ..Self::default() }
    }

    pub(crate) fn insert(&mut self, row: Sandbox, key: Option<RequestKey>) {
        self.changes.push(Change::Insert(Box::new(row), key));
    }

    /// The row becomes this one, unless its state is no longer `from`. Where a process begins or
    /// ends in the same batch, that says what the row becomes.
    pub(crate) fn update(&mut self, from: State, row: Sandbox) {
        let is_counted = |change: &Change| matches!(change, Change::Begin(..) | Change::End(_));
        if !self.changes.iter().any(is_counted) {
            self.changes.push(Change::Update(from, Box::new(row)));
        }
    }

    pub(crate) fn begin_process(&mut self, process: Process, key: Option<RequestKey>) {
        self.changes.push(Change::Begin(Box::new(process), key));
    }

    pub(crate) fn started_process(&mut self, process: &Process) {
        self.changes.push(Change::Started(Box::new(process.clone())));
    }

    pub(crate) fn end_process(&mut self, process: Process) {
        self.changes.push(Change::End(Box::new(process)));
    }

    pub(crate) fn event(
        &mut self,
        kind: EventKind,
        sandbox: Option<&str>,
        workspace: Option<&str>,
        data: Value,
    ) {
        let data = match data {
            Value::Object(data) => data,
            _ => Map::new(),
        };
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let (sandbox, workspace) = (owned(sandbox), owned(workspace));
        self.events.push(Happening { kind, sandbox, workspace, data });
    }

    pub(crate) fn about(&mut self, kind: EventKind, row: &Sandbox, data: Value) {
        self.event(kind, Some(&row.id), Some(&row.workspace), data);
    }

    fn apply(
        self,
        change: &mut store::Change<'_>,
        instance: &str,
    ) -> Result<Option<Sandbox>, StoreError> {
        let mut row = None;
        for one in self.changes {
            match one {
                Change::Insert(sandbox, key) => {
                    let id = sandbox.id.clone();
                    let record = SandboxRecord {
                        sandbox: *sandbox,
                        instance: Some(instance.to_owned()),
                        host: Value::Null,
                    };
                    row = Some(change.insert_sandbox(&record)?);
                    bind(change, key, &id)?;
                }
                Change::Update(from, next) => {
                    let id = next.id.clone();
                    let to = next.state;
                    let touch = |record: &mut SandboxRecord| {
                        record.sandbox = Sandbox { state: from, ..*next };
                    };
                    let record = match from == to {
                        true => change.update_sandbox(&id, None, touch)?,
                        false => change.move_sandbox(&id, from, to, touch)?,
                    };
                    row = Some(record.sandbox);
                }
                Change::Begin(process, key) => {
                    row = Some(change.begin_execution(&process)?.sandbox);
                    bind(change, key, &format!("{}/{}", process.sandbox, process.process))?;
                }
                Change::Started(process) => {
                    let Process { sandbox, process, task_digest, .. } = *process;
                    let touch = |known: &mut Process| known.task_digest = task_digest;
                    change.end_execution(&sandbox, &process, touch)?;
                }
                Change::End(process) => {
                    let (sandbox, name) = (process.sandbox.clone(), process.process.clone());
                    change.end_execution(&sandbox, &name, |known| *known = *process)?;
                    row = Some(change.sandbox(&sandbox)?.sandbox);
                }
            }
        }
        change.audit_all(&self.entries)?;
        for Happening { kind, sandbox, workspace, data } in self.events {
            change.event(kind, sandbox.as_deref(), workspace.as_deref(), data)?;
        }
        Ok(row)
    }
}

/// Notes what a request with a key made, if it was begun as one.
fn bind(
    change: &mut store::Change<'_>,
    key: Option<RequestKey>,
    made: &str,
) -> Result<(), StoreError> {
    let Some((subject, key)) = key else { return Ok(()) };
    match change.bind_idempotent(&subject, &key, made) {
        // Whoever calls without the server does not keep answers.
        Err(StoreError::NotFound { .. }) => Ok(()),
        bound => bound,
    }
}

/// What a problem of the store is to a caller.
pub(crate) fn problem(error: &StoreError) -> Problem {
    let code = match error {
        StoreError::Full => Code::StorageFull,
        StoreError::NotFound { .. } => Code::NotFound,
        StoreError::NameTaken { .. } | StoreError::Exists { kind: "process" | "token", .. } => {
            Code::NameTaken
        }
        StoreError::Exists { .. } => Code::AlreadyExists,
        StoreError::IllegalMove { .. } | StoreError::WrongState { .. } => Code::WrongState,
        StoreError::VersionMismatch { .. } => Code::PreconditionFailed,
        StoreError::Replayed => Code::BadSignature,
        StoreError::Cursor => Code::InvalidRequest,
        StoreError::Busy | StoreError::TakenBack => Code::Busy,
        StoreError::Closed => Code::ShuttingDown,
        _ => Code::Internal,
    };
    let problem = Problem::new(code, error.to_string());
    match code {
        Code::Busy => problem.with_retry_after_sec(1),
        Code::InvalidRequest => problem.with_field("cursor"),
        _ => problem,
    }
}

/// The store, as the fleet uses it.
#[derive(Debug)]
pub(crate) struct Ledger {
    store: Store,
    id: String,
    instance: Mutex<Option<Instance>>,
    instance_id: String,
    generation: u64,
    /// Requests of dead processes that were accepted and never answered, with what they made.
    unanswered: Mutex<HashMap<RequestKey, Option<String>>>,
}

fn absent<T>(found: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Ledger {
    pub(crate) async fn open(config: &Config) -> Result<Self, StoreError> {
        let (data, options) = (config.data.clone(), config.store.clone());
        let opening = tokio::task::spawn_blocking(move || Store::open(&data, options));
        let store = opening.await.map_err(|_| StoreError::Closed)??;
        let fresh = supervisor::generate_id();
        let fresh = fresh.map_err(|error| StoreError::Random(error.to_string()))?;
        let (id, generation) = store
            .write(move |change| {
                let id = match change.setting(ID)? {
                    Some(id) => id,
                    None => {
                        change.set_setting(ID, &fresh)?;
                        fresh
                    }
                };
                Ok::<_, StoreError>((id, change.next_number(GENERATION)?))
            })
            .await?;
        let instance = store.register().await?;
        Ok(Self {
            store,
            id,
            instance_id: instance.id().to_owned(),
            instance: Mutex::new(Some(instance)),
            generation,
            unanswered: Mutex::default(),
        })
    }

    pub(crate) async fn close(&self) {
        let instance = lock(&self.instance).take();
        if let Some(instance) = instance
            && let Err(error) = self.store.retire(instance).await
        {
            tracing::warn!(%error, "cannot take this process off the record");
        }
        self.store.clone().close().await;
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// What machines of this data directory are known by.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The generation that the policy is loaded as.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) async fn next_generation(&self) -> Result<u64, StoreError> {
        self.store.write(|change| change.next_number(GENERATION)).await
    }

    /// Writes all of it, or nothing. Returns the row that it changed, as it is on record.
    pub(crate) async fn commit(&self, batch: Batch) -> Result<Option<Sandbox>, StoreError> {
        let instance = self.instance_id.clone();
        self.store.write(move |change| batch.apply(change, &instance)).await
    }

    /// Takes over what dead processes have left.
    pub(crate) async fn take_over(&self) -> Result<Vec<TakenOver>, StoreError> {
        let mut all = Vec::new();
        for dead in self.store.dead_instances().await? {
            let instance = lock(&self.instance).take();
            let Some(instance) = instance else { return Ok(all) };
            let taken = self.store.take_over(dead, &instance).await;
            *lock(&self.instance) = Some(instance);
            all.push(taken?);
        }
        let mut unanswered = lock(&self.unanswered);
        for unfinished in all.iter().flat_map(|taken| &taken.unfinished) {
            let key = (unfinished.subject.clone(), unfinished.key.clone());
            unanswered.insert(key, unfinished.sandbox.clone());
        }
        drop(unanswered);
        Ok(all)
    }

    /// What an earlier process made for a request that it did not answer.
    fn made_for(&self, subject: &str, key: &str) -> Option<String> {
        let unanswered = lock(&self.unanswered);
        unanswered.get(&(subject.to_owned(), key.to_owned())).cloned().flatten()
    }

    pub(crate) fn is_unanswered(&self, subject: &str, key: &str) -> bool {
        lock(&self.unanswered).contains_key(&(subject.to_owned(), key.to_owned()))
    }

    pub(crate) fn answered(&self, subject: &str, key: &str) {
        lock(&self.unanswered).remove(&(subject.to_owned(), key.to_owned()));
    }

    pub(crate) async fn begin_request(
        &self,
        subject: &str,
        key: &str,
        digest: Digest,
    ) -> Result<Begun, StoreError> {
        let (subject, key) = (subject.to_owned(), key.to_owned());
        let instance = self.instance_id.clone();
        self.store
            .write(move |change| {
                let now = api::Timestamp::now();
                change.begin_idempotent(&subject, &key, &digest, &instance, now)
            })
            .await
    }

    pub(crate) async fn sandbox_of(
        &self,
        subject: &str,
        key: &str,
    ) -> Result<Option<Sandbox>, StoreError> {
        match self.made_for(subject, key) {
            Some(id) => self.sandbox(&id).await,
            None => Ok(None),
        }
    }

    pub(crate) async fn process_of(
        &self,
        subject: &str,
        key: &str,
    ) -> Result<Option<Process>, StoreError> {
        let made = self.made_for(subject, key);
        match made.as_deref().and_then(|made| made.split_once('/')) {
            Some((sandbox, process)) => self.process(sandbox, process).await,
            None => Ok(None),
        }
    }

    pub(crate) async fn record(&self, id: &str) -> Result<Option<SandboxRecord>, StoreError> {
        self.store.look_up(|view| absent(view.sandbox(id))).await
    }

    pub(crate) async fn sandbox(&self, id: &str) -> Result<Option<Sandbox>, StoreError> {
        Ok(self.record(id).await?.map(|record| record.sandbox))
    }

    /// The sandbox of this name; with no workspace, the newest of any.
    pub(crate) async fn named(
        &self,
        workspace: Option<&str>,
        name: &str,
    ) -> Result<Option<Sandbox>, StoreError> {
        let named = |view: &store::View<'_>| absent(view.sandbox_named(workspace, name));
        Ok(self.store.look_up(named).await?.map(|record| record.sandbox))
    }

    pub(crate) async fn list(
        &self,
        workspace: Option<&str>,
        query: &ListSandboxes,
    ) -> Result<Page<Sandbox>, StoreError> {
        let query = ListSandboxes { workspace: workspace.map(str::to_owned), ..query.clone() };
        let page = self.store.read(move |view| view.sandboxes(&query)).await?;
        Ok(page.map(|record| record.sandbox))
    }

    pub(crate) async fn process(
        &self,
        sandbox: &str,
        name: &str,
    ) -> Result<Option<Process>, StoreError> {
        self.store.look_up(|view| absent(view.execution(sandbox, name))).await
    }

    pub(crate) async fn processes(
        &self,
        sandbox: &str,
        query: &PageQuery,
    ) -> Result<Page<Process>, StoreError> {
        let (sandbox, query) = (sandbox.to_owned(), query.clone());
        self.store.read(move |view| view.executions(&sandbox, &query)).await
    }

    pub(crate) async fn running(&self, sandbox: &str) -> Result<Vec<Process>, StoreError> {
        let sandbox = sandbox.to_owned();
        self.store.read(move |view| view.running_executions(&sandbox)).await
    }

    pub(crate) fn events(&self) -> tokio::sync::broadcast::Receiver<Arc<api::Event>> {
        self.store.events()
    }
}
