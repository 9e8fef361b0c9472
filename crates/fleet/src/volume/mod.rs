//! Volumes: disks of a workspace that outlive its sandboxes.

mod files;

use std::sync::Arc;

use access::Caller;
use api::{
    AuditDecision, Cache, Code, CreateVolume, Operation, Problem, Sandbox, Timestamp,
    Validate as _, Volume, VolumeList, VolumeMount, VolumeQuery,
};
use supervisor::{SandboxSpec, VolumeAccess};

use self::files::{Files, Found, Share, VolumeError, wants_recovery};
use crate::config::Provenance;
use crate::error::chain;
use crate::ledger::Batch;
use crate::manager::Manager;
use crate::record::Tell as _;
use crate::{Error, rules};

/// What a volume holds when nothing is said.
const DEFAULT_BYTES: u64 = 10 << 30;
/// Memory of a machine that has nothing to do but to mount a volume.
const MENDER_MB: u32 = 256;

impl Manager {
    /// Makes an empty volume.
    ///
    /// # Errors
    /// `Access`, `Refused`: by policy, or since there is one.
    pub async fn create_volume(
        &self,
        caller: &Caller,
        request: CreateVolume,
        by: &Provenance,
    ) -> Result<Volume, Error> {
        let operation = Operation::VolumeCreate;
        let workspace = self.workspace_of(caller, request.workspace.as_deref())?;
        self.authorise(caller, operation, Some(&workspace), by).await?;
        request.validate()?;
        self.open_for_work()?;
        let bytes = request.size_bytes.unwrap_or(DEFAULT_BYTES);
        let who = rules::subject(caller, &workspace);
        let question = policy::VolumeRequest { who, size_gb: bytes.div_ceil(1 << 30) };
        let decision = self.policy.load().decide(&policy::Request::Volume(question));
        let entry = self.entry(caller, operation, by);
        let entry = entry.in_workspace(workspace.clone()).with_detail("volume", &*request.name);
        if !decision.allowed {
            return Err(self.deny(entry, &workspace, None, &decision).await?);
        }
        let policy = rules::reference(&decision);
        let entry = entry.decided(&policy, AuditDecision::Allowed, "accepted");
        self.ledger.commit(Batch::entry(entry.clone())).await?;
        let name = request.name;
        match self.of_files(&workspace, move |files| files.create(&name, bytes)).await {
            Ok(found) => Ok(told(found, &workspace)),
            Err(error) => self.not_done(entry, error).await,
        }
    }

    /// The volumes of a workspace, by name.
    ///
    /// # Errors
    /// `Access`, `Refused`.
    pub async fn volumes(&self, caller: &Caller, query: &VolumeQuery) -> Result<VolumeList, Error> {
        let workspace = self.look_at(caller, Operation::VolumeList, query).await?;
        let found = self.of_files(&workspace, Files::list).await?;
        Ok(VolumeList { volumes: found.into_iter().map(|one| told(one, &workspace)).collect() })
    }

    /// One volume.
    ///
    /// # Errors
    /// `Access`, `Refused`, `NotFound`.
    pub async fn volume(
        &self,
        caller: &Caller,
        name: &str,
        query: &VolumeQuery,
    ) -> Result<Volume, Error> {
        let workspace = self.look_at(caller, Operation::VolumeGet, query).await?;
        let name = name.to_owned();
        let found = self.of_files(&workspace, move |files| files.look(&name)).await?;
        Ok(told(found, &workspace))
    }

    /// Removes a volume that no sandbox has.
    ///
    /// # Errors
    /// `Access`, `Refused`: also while it is in use; `NotFound`.
    pub async fn remove_volume(
        &self,
        caller: &Caller,
        name: &str,
        query: &VolumeQuery,
        by: &Provenance,
    ) -> Result<(), Error> {
        let operation = Operation::VolumeRemove;
        query.validate()?;
        let workspace = self.workspace_of(caller, query.workspace.as_deref())?;
        self.authorise(caller, operation, Some(&workspace), by).await?;
        let looked_for = name.to_owned();
        self.of_files(&workspace, move |files| files.look(&looked_for)).await?;
        let entry = self.entry(caller, operation, by).in_workspace(workspace.clone());
        let entry = entry.with_detail("volume", name).with_outcome("accepted");
        self.ledger.commit(Batch::entry(entry.clone())).await?;
        let name = name.to_owned();
        match self.of_files(&workspace, move |files| files.remove(&name)).await {
            Ok(()) => Ok(()),
            Err(error) => self.not_done(entry, error).await,
        }
    }

    async fn look_at(
        &self,
        caller: &Caller,
        operation: Operation,
        query: &VolumeQuery,
    ) -> Result<String, Error> {
        query.validate()?;
        let workspace = self.workspace_of(caller, query.workspace.as_deref())?;
        self.authorise(caller, operation, Some(&workspace), &Provenance::default()).await?;
        Ok(workspace)
    }

    fn workspace_of(&self, caller: &Caller, asked: Option<&str>) -> Result<String, Error> {
        Ok(caller.home(asked, &self.config.default_workspace)?.to_owned())
    }

    /// Records that what was accepted was not done.
    async fn not_done<T>(&self, entry: audit::Entry, error: Error) -> Result<T, Error> {
        let outcome = error.problem().code.as_str();
        self.ledger.commit(Batch::entry(entry.with_outcome(outcome))).await?;
        Err(error)
    }

    async fn of_files<T: Send + 'static>(
        &self,
        workspace: &str,
        work: impl FnOnce(&Files) -> Result<T, VolumeError> + Send + 'static,
    ) -> Result<T, Error> {
        let files = Files::new(&self.config.data, workspace);
        let done = tokio::task::spawn_blocking(move || work(&files)).await;
        Ok(done.map_err(|error| Error::Internal(error.to_string()))??)
    }

    /// Has the volumes and caches of a sandbox in hand, to be given to its machine.
    pub(crate) async fn take_volumes(
        &self,
        row: &Sandbox,
    ) -> Result<Vec<supervisor::Volume>, Error> {
        let mut volumes = Vec::with_capacity(row.volumes.len() + row.caches.len());
        for VolumeMount { name, guest_path, read_only } in &row.volumes {
            let access = if *read_only { VolumeAccess::Read } else { VolumeAccess::Write };
            volumes.push(self.take(row, name, guest_path.clone(), access).await?);
        }
        for Cache { tool, fill } in &row.caches {
            let name = tool.volume();
            if *fill {
                let name = name.clone();
                let made = move |files: &Files| match files.create(&name, DEFAULT_BYTES) {
                    Ok(_) | Err(VolumeError::Taken(_)) => Ok(()),
                    Err(error) => Err(error),
                };
                self.of_files(&row.workspace, made).await?;
            }
            let access = if *fill { VolumeAccess::Write } else { VolumeAccess::Overlay };
            let taken = self.take(row, &name, tool.guest_path(), access).await;
            volumes.push(taken.map_err(|error| match error {
                Error::Refused(problem) if problem.code == Code::NotFound => {
                    let text = format!("the cache of {tool} is empty: fill it, with {tool}:fill");
                    Problem::new(Code::NotFound, text).into()
                }
                error => error,
            })?);
        }
        Ok(volumes)
    }

    async fn take(
        &self,
        row: &Sandbox,
        name: &str,
        guest_path: String,
        access: VolumeAccess,
    ) -> Result<supervisor::Volume, Error> {
        let share = match access {
            VolumeAccess::Write => Share::Alone,
            VolumeAccess::Read | VolumeAccess::Overlay => Share::Readers,
        };
        let lock = async |share| {
            let name = name.to_owned();
            self.of_files(&row.workspace, move |files| files.lock(&name, share)).await
        };
        let mut file = lock(share).await?;
        if share == Share::Readers && wants_recovery(&file) {
            drop(file);
            self.mend(row, name, lock(Share::Alone).await?).await?;
            file = lock(share).await?;
        }
        Ok(supervisor::Volume { file: Arc::new(file), guest_path, access })
    }

    /// Has the journal of a volume gone through, by the kernel of a machine that is there for that
    /// alone: who only reads cannot do that, and this host does not look at what guests wrote.
    async fn mend(&self, row: &Sandbox, name: &str, file: std::fs::File) -> Result<(), Error> {
        if !wants_recovery(&file) {
            return Ok(());
        }
        let (file, guest_path) = (Arc::new(file), "/volume".to_owned());
        let volume = supervisor::Volume { file, guest_path, access: VolumeAccess::Write };
        let spec = SandboxSpec {
            memory_mb: MENDER_MB,
            cpus: Some(1),
            engine: row.engine.clone(),
            min_isolation: rules::least(row),
            volumes: vec![volume],
            ..SandboxSpec::default()
        };
        let mended = async { self.supervisor.create(spec, &mut ()).await?.destroy().await };
        mended.await.map(drop).map_err(|error| {
            let why = chain(&error);
            Error::Internal(format!(
                "the volume {name:?} was written to by a machine that ended \
                                     early, and cannot be put in order: {why}"
            ))
        })
    }
}

/// The variables that lead tools to their caches.
pub(crate) fn variables(row: &Sandbox) -> Vec<(String, String)> {
    row.caches.iter().flat_map(|cache| cache.tool.variables()).collect()
}

impl From<VolumeError> for Error {
    fn from(error: VolumeError) -> Self {
        let text = chain(&error);
        match error {
            VolumeError::Missing(_) => Problem::new(Code::NotFound, text).into(),
            VolumeError::Taken(_) => Problem::new(Code::AlreadyExists, text).into(),
            VolumeError::InUse(_) => Problem::new(Code::WrongState, text).into(),
            VolumeError::Format(_) | VolumeError::Io { .. } => Self::Internal(text),
        }
    }
}

/// What a caller is told of a volume.
fn told(found: Found, workspace: &str) -> Volume {
    let Found { name, size_bytes, used_bytes, in_use, created } = found;
    let since = created.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    let ms = since.and_then(|since| i64::try_from(since.as_millis()).ok());
    let created_at = ms.map(Timestamp::from_unix_ms);
    Volume { name, workspace: workspace.to_owned(), size_bytes, used_bytes, in_use, created_at }
}
