//! What sandboxes changed in directories that are reviewed: kept below the data, by sandbox and
//! mount, until it is applied, discarded or old.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use access::Caller;
use api::{
    AppliedChanges, ApplyChanges, AuditDecision, ChangeKind, ChangeSets, ChangesQuery, Code, Diff,
    DiffQuery, DiscardChanges, FileChange, FileKind, FileMode, HeldBackChange, HeldBackWhy,
    Operation, Problem, Sandbox, Text, Timestamp, Validate as _,
};
use serde_json::json;
use supervisor::workspace::{
    About, ApplyOptions, Body, Change, ChangeSet, ChangesError, Difference, Hidden, Name, Node,
    OutsideLinks, Selection, UnpackError, Why,
};
use supervisor::{Observer, Sandbox as Machine};

use crate::config::Provenance;
use crate::error::chain;
use crate::ledger::Batch;
use crate::manager::Manager;
use crate::mount::Mounted;
use crate::record::Tell as _;
use crate::seat::Seat;
use crate::{Error, rules};

/// How long changes wait. Their sandbox's record goes after as long.
const KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Where changes are.
#[derive(Debug, Clone)]
pub(crate) struct Shelf(PathBuf);

impl Shelf {
    pub(crate) fn new(data: &Path) -> Self {
        Self(data.join("changes"))
    }

    fn of(&self, sandbox: &str, mount: usize) -> PathBuf {
        self.0.join(sandbox).join(mount.to_string())
    }

    /// The sandboxes and mounts that have some, with their directories.
    fn all(&self) -> Vec<(String, usize, PathBuf)> {
        let mut found = Vec::new();
        for sandbox in entries(&self.0) {
            for mount in entries(&sandbox) {
                let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
                if let (Some(id), Some(mount_name)) = (name(&sandbox), name(&mount))
                    && let Ok(number) = mount_name.parse()
                {
                    found.push((id, number, mount));
                }
            }
        }
        found
    }

    fn of_sandbox(&self, sandbox: &str) -> Vec<(usize, PathBuf)> {
        let mut all: Vec<_> = entries(&self.0.join(sandbox))
            .into_iter()
            .filter_map(|path| Some((path.file_name()?.to_str()?.parse().ok()?, path)))
            .collect();
        all.sort();
        all
    }

    /// Removes what is old, and what a killed process left half-made.
    pub(crate) fn prune(&self) {
        for sandbox in entries(&self.0) {
            for set in entries(&sandbox) {
                let age = set.symlink_metadata().and_then(|metadata| metadata.modified());
                let age = age.ok().and_then(|then| SystemTime::now().duration_since(then).ok());
                if age.is_some_and(|age| age > KEPT) {
                    let _ = std::fs::remove_dir_all(&set);
                }
            }
            // Only one that is empty goes.
            let _ = std::fs::remove_dir(&sandbox);
        }
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// What was collected of one directory.
#[derive(Debug, Clone)]
pub struct Reviewed {
    /// The changes; none where nothing was changed.
    pub set: Option<api::ChangeSet>,
    /// Entries that git would ignore, and their bytes.
    pub ignored: (u64, u64),
}

/// Changes of a directory that were opened, and what there is to know of them.
fn summary(set: &ChangeSet, mount: usize) -> api::ChangeSet {
    let about = set.about();
    let mut count = [0, 0, 0];
    let mut protected = 0;
    for one in set.list() {
        count[match one.change {
            Change::Created => 0,
            Change::Updated => 1,
            Change::Deleted => 2,
        }] += 1;
        protected += u64::from(one.protected);
    }
    let [created, updated, deleted] = count;
    let ignored = set.ignored();
    let collected_at = i64::try_from(about.collected_at_ms).unwrap_or(0);
    api::ChangeSet {
        sandbox: about.sandbox.clone(),
        name: about.name.clone(),
        mount: u32::try_from(mount).unwrap_or(u32::MAX),
        host_path: about.host.to_string_lossy().into_owned(),
        guest_path: about.guest.clone(),
        collected_at: Timestamp::from_unix_ms(collected_at),
        created,
        updated,
        deleted,
        protected,
        ignored: ignored.entries,
        ignored_bytes: ignored.bytes,
        interrupted: set.is_interrupted(),
    }
}

/// Collects what a machine changed in one directory.
pub(crate) async fn collect(
    shelf: &Shelf,
    machine: &Machine,
    row: &Sandbox,
    mount: usize,
    host: &Path,
    ignored: bool,
    observer: &mut dyn Observer,
) -> Result<Reviewed, Error> {
    let asked = row.mounts.get(mount);
    let asked = asked.ok_or_else(|| Error::Internal(format!("there is no mount {mount}")))?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let about = About {
        sandbox: row.id.clone(),
        name: row.name.clone(),
        host: host.to_owned(),
        guest: asked.guest_path.clone(),
        collected_at_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
    };
    let collected = machine.collect(about, &shelf.of(&row.id, mount), ignored, observer).await?;
    let set = collected.set.as_ref().map(|set| summary(set, mount));
    Ok(Reviewed { set, ignored: (collected.ignored.entries, collected.ignored.bytes) })
}

/// Applies all of what was collected of one directory.
pub(crate) async fn apply_all(
    shelf: Shelf,
    sandbox: String,
    mount: usize,
    host: PathBuf,
    hidden: Option<Hidden>,
    leave_out_links: bool,
) -> Result<AppliedChanges, Error> {
    let outside_links = match leave_out_links {
        true => OutsideLinks::LeaveOut,
        false => OutsideLinks::Refuse,
    };
    let options = ApplyOptions { hidden, outside_links, ..ApplyOptions::default() };
    blocking(move || {
        let path = shelf.of(&sandbox, mount);
        let set = ChangeSet::open(&path).map_err(|error| problem(&error))?;
        let synced = set.apply(&host, &options).map_err(|error| unpack_problem(&error))?;
        Ok(applied(&synced, &host.to_string_lossy()))
    })
    .await?
}

impl Manager {
    pub(crate) fn shelf(&self) -> Shelf {
        Shelf::new(&self.config.data)
    }

    /// All changes that wait, of the sandboxes that the caller may see.
    ///
    /// # Errors
    /// `Access`.
    pub async fn list_changes(
        &self,
        caller: &Caller,
        by: &Provenance,
    ) -> Result<ChangeSets, Error> {
        let operation = Operation::ChangesRead;
        self.authorise(caller, operation, caller.workspace.as_deref(), by).await?;
        let shelf = self.shelf();
        let mut sets = Vec::new();
        for (id, mount, path) in blocking(move || shelf.all()).await? {
            let Some(row) = self.ledger.sandbox(&id).await? else { continue };
            if access::authorise(caller, operation, Some(&row.workspace)).is_err() {
                continue;
            }
            // One that is damaged, or being applied, is not listed.
            if let Ok(set) = blocking(move || ChangeSet::open(&path)).await? {
                sets.push(summary(&set, mount));
            }
        }
        sets.sort_by_key(|set| std::cmp::Reverse(set.collected_at.unix_ms()));
        Ok(ChangeSets { sets })
    }

    /// What a sandbox changed. Of one that runs, it is looked at anew.
    ///
    /// # Errors
    /// `NotFound`, `Guest`.
    pub async fn changes(
        &self,
        caller: &Caller,
        sandbox: &str,
        query: &ChangesQuery,
        by: &Provenance,
    ) -> Result<ChangeSets, Error> {
        let seat = self.find_to_read(caller, Operation::ChangesRead, sandbox, by).await?;
        let row = seat.row();
        self.look_again(&seat, query.ignored).await?;
        let (shelf, id) = (self.shelf(), row.id.clone());
        let sets = blocking(move || {
            let open = |(mount, path): (usize, PathBuf)| {
                ChangeSet::open(&path).map(|set| summary(&set, mount))
            };
            shelf.of_sandbox(&id).into_iter().map(open).collect::<Result<Vec<_>, _>>()
        });
        Ok(ChangeSets { sets: sets.await?.map_err(|error| problem(&error))? })
    }

    /// Collects what a sandbox changed, if it runs.
    async fn look_again(&self, seat: &Seat, ignored: bool) -> Result<(), Error> {
        let row = seat.row();
        let Some(running) = seat.machine().filter(|_| seat.state().takes_tasks()) else {
            return Ok(());
        };
        let machine = running.sandbox.lock().await;
        let Some(machine) = machine.as_ref() else { return Ok(()) };
        for (index, mount) in row.mounts.iter().enumerate() {
            if !machine.is_reviewed(&mount.guest_path) {
                continue;
            }
            let asked = mount.clone();
            let resolved = blocking(move || Mounted::resolve(&asked, "mounts")).await??;
            let host = PathBuf::from(resolved.host.real());
            collect(&self.shelf(), machine, &row, index, &host, ignored, &mut ()).await?;
        }
        Ok(())
    }

    /// The changes of one directory, as they were collected last.
    ///
    /// # Errors
    /// `NotFound`, `Refused`.
    pub async fn diff_changes(
        &self,
        caller: &Caller,
        sandbox: &str,
        query: DiffQuery,
        by: &Provenance,
    ) -> Result<Diff, Error> {
        query.validate()?;
        let seat = self.find_to_read(caller, Operation::ChangesRead, sandbox, by).await?;
        let paths = match query.path.is_empty() {
            true => Selection::all(),
            false => selection("path", &query.path)?,
        };
        let (mount, path) = self.waiting(&seat, query.mount)?;
        let brief = query.brief;
        blocking(move || {
            let set = ChangeSet::open(&path).map_err(|error| problem(&error))?;
            let mut diff =
                Diff { set: summary(&set, mount), changes: Vec::new(), truncated: false };
            let mut bytes = 0;
            let host = set.about().host.clone();
            set.diff(&host, &paths, |difference| {
                let change = file_change(difference, brief);
                bytes += change.hunks.as_ref().map_or(0, |hunks| hunks.as_bytes().len());
                if diff.changes.len() >= Diff::MAX || bytes > Diff::MAX_BYTES {
                    diff.truncated = true;
                    return ControlFlow::Break(());
                }
                diff.changes.push(change);
                ControlFlow::Continue(())
            })
            .map_err(|error| unpack_problem(&error))?;
            Ok(diff)
        })
        .await?
    }

    /// Brings changes to the host's directory, if policy lets it still be written.
    ///
    /// # Errors
    /// `NotFound`, `Refused`.
    pub async fn apply_changes(
        &self,
        caller: &Caller,
        sandbox: &str,
        request: ApplyChanges,
        by: &Provenance,
    ) -> Result<AppliedChanges, Error> {
        self.open_for_work()?;
        request.validate()?;
        let operation = Operation::ChangesApply;
        let seat = self.find_to_read(caller, operation, sandbox, by).await?;
        self.signed(caller, by)?;
        let row = seat.row();
        let (mount, path) = self.waiting(&seat, request.mount)?;
        let asked = row.mounts.get(mount).cloned();
        let asked = asked.ok_or_else(|| Error::not_found("mount", &mount.to_string()))?;
        let resolved = blocking(move || Mounted::resolve(&asked, "mounts")).await??;
        let entry = self.entry(caller, operation, by).about(&row);
        let question = policy::Request::Mount(policy::MountRequest {
            who: rules::subject(caller, &row.workspace),
            mount: resolved.request(),
        });
        let decision = self.policy.load().decide(&question);
        if !decision.allowed {
            return Err(self.deny(entry, &row.workspace, Some(&row.id), &decision).await?);
        }
        let resolved = rules::with_masks(vec![resolved], &decision).pop();
        let resolved = resolved.ok_or_else(|| Error::Internal("no mount is left".into()))?;
        let paths = match request.paths.is_empty() {
            true => Selection::all(),
            false => selection("paths", &request.paths)?,
        };
        let options = ApplyOptions {
            paths,
            allow_protected: selection("allow_protected", &request.allow_protected)?,
            theirs: request.theirs,
            hidden: resolved.masks.map(crate::mount::hidden),
            ..ApplyOptions::default()
        };
        let entry = entry
            .decided(&rules::reference(&decision), AuditDecision::Allowed, "accepted")
            .with_detail("host_path", resolved.host.real().to_owned())
            .with_detail("paths", json!(request.paths))
            .with_detail("allow_protected", json!(request.allow_protected))
            .with_detail("theirs", request.theirs);
        self.ledger.commit(Batch::entry(entry.clone())).await?;
        // From here on, a caller that goes away changes nothing.
        let (manager, host) = (self.arc(), resolved.host);
        let applying = self.tasks.spawn(async move {
            let done = blocking(move || {
                let set = ChangeSet::open(&path).map_err(|error| problem(&error))?;
                host.recheck().map_err(|error| {
                    Problem::new(Code::PolicyDenied, error.to_string()).with_field("mounts")
                })?;
                if set.about().host != Path::new(host.real()) {
                    let words = "the changes are those of another directory";
                    return Err(Problem::new(Code::WrongState, words).into());
                }
                let synced = set.apply(&host.handle(), &options);
                let synced = synced.map_err(|error| unpack_problem(&error))?;
                Ok(applied(&synced, host.real()))
            })
            .await
            .and_then(|done| done);
            let outcome = match &done {
                Ok(_) => "ok",
                Err(error) => error.problem().code.as_str(),
            };
            manager.ledger.commit(Batch::entry(entry.now().with_outcome(outcome))).await?;
            // What the host has now is what the sandbox's next changes are told against. Where
            // that cannot be had, they are told against what was sent.
            let _ = manager.look_again(&seat, false).await;
            done
        });
        applying.await.map_err(|_| Error::ShuttingDown)?
    }

    /// Forgets changes.
    ///
    /// # Errors
    /// `NotFound`, `Refused`.
    pub async fn discard_changes(
        &self,
        caller: &Caller,
        sandbox: &str,
        request: DiscardChanges,
        by: &Provenance,
    ) -> Result<(), Error> {
        let operation = Operation::ChangesDiscard;
        let seat = self.find_to_read(caller, operation, sandbox, by).await?;
        let row = seat.row();
        let (shelf, id) = (self.shelf(), row.id.clone());
        let mut sets = blocking(move || shelf.of_sandbox(&id)).await?;
        if let Some(mount) = request.mount {
            sets.retain(|(index, _)| u32::try_from(*index) == Ok(mount));
        }
        if sets.is_empty() {
            return Err(nothing(&row));
        }
        let entry = self.entry(caller, operation, by).about(&row).with_outcome("ok");
        self.ledger.commit(Batch::entry(entry)).await?;
        blocking(move || {
            for (_, path) in sets {
                let set = ChangeSet::open(&path).map_err(|error| problem(&error));
                match set {
                    Ok(set) => set.discard().map_err(|error| problem(&error))?,
                    // What cannot be read can still go.
                    Err(damaged) if damaged.code == Code::Internal => {
                        let _ = std::fs::remove_dir_all(&path);
                    }
                    Err(other) => return Err(other.into()),
                }
            }
            Ok(())
        })
        .await?
    }

    /// The set that is meant.
    fn waiting(&self, seat: &Arc<Seat>, mount: Option<u32>) -> Result<(usize, PathBuf), Error> {
        let mut sets = self.shelf().of_sandbox(seat.id()).into_iter();
        let found = match mount {
            None => sets.next(),
            Some(mount) => sets.find(|(index, _)| u32::try_from(*index) == Ok(mount)),
        };
        found.ok_or_else(|| nothing(&seat.row()))
    }
}

fn nothing(row: &Sandbox) -> Error {
    let words = format!("{} has no changes that wait to be applied or discarded", row.name);
    Problem::new(Code::NotFound, words).into()
}

fn selection(field: &str, paths: &[String]) -> Result<Selection, Error> {
    Selection::of(paths).map_err(|error| Problem::invalid(field, error.to_string()).into())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Internal(error.to_string()))
}

fn problem(error: &ChangesError) -> Problem {
    let code = match error {
        ChangesError::Busy { .. } => Code::Busy,
        ChangesError::Interrupted => Code::WrongState,
        ChangesError::Read { .. } | ChangesError::Write { .. } | ChangesError::Damaged { .. } => {
            Code::Internal
        }
    };
    Problem::new(code, error.to_string())
}

fn unpack_problem(error: &UnpackError) -> Problem {
    match error {
        UnpackError::Changes(error) => problem(error),
        UnpackError::NoSpace { .. } => Problem::new(Code::StorageFull, chain(error)),
        UnpackError::Open { .. } => Problem::new(Code::FileNotFound, chain(error)),
        error => Problem::new(Code::Internal, chain(error)),
    }
}

fn text(bytes: &[u8]) -> Option<Text> {
    Text::new(bytes.to_vec()).ok()
}

fn name(name: &Name) -> Text {
    // A name has no NUL, which is all that a text cannot have.
    text(name.as_bytes()).unwrap_or_default()
}

fn kind_of(change: Change) -> ChangeKind {
    match change {
        Change::Created => ChangeKind::Created,
        Change::Updated => ChangeKind::Updated,
        Change::Deleted => ChangeKind::Deleted,
    }
}

fn file_change(difference: Difference, brief: bool) -> FileChange {
    let Difference { name: of, change, node, protected, changed_here, mode, body } = difference;
    let (mode_before, mode_after) =
        mode.map(|(before, after)| (FileMode::new(before), FileMode::new(after))).unzip();
    let mut told = FileChange {
        path: name(&of),
        change: kind_of(change),
        kind: match node {
            Node::Directory { .. } => FileKind::Directory,
            Node::File { .. } => FileKind::File,
            Node::Symlink { .. } => FileKind::Symlink,
        },
        protected,
        changed_here,
        mode_before,
        mode_after,
        added: None,
        removed: None,
        hunks: None,
        size_before: None,
        size_after: None,
        target_before: None,
        target_after: None,
    };
    match body {
        Body::Text { hunks, added, removed } => {
            (told.added, told.removed) = (Some(added), Some(removed));
            told.hunks = if brief { None } else { text(&hunks) };
        }
        Body::Opaque { before, after } => (told.size_before, told.size_after) = (before, after),
        Body::Link { before, after } => {
            told.target_before = before.as_deref().and_then(text);
            told.target_after = after.as_deref().and_then(text);
        }
        Body::Directory => {}
    }
    told
}

fn applied(synced: &supervisor::workspace::Synced, host: &str) -> AppliedChanges {
    let held = |held: &supervisor::workspace::HeldBack| HeldBackChange {
        path: name(&held.name),
        change: kind_of(held.change),
        why: match held.why {
            Why::Protected => HeldBackWhy::Protected,
            Why::ChangedOnHost => HeldBackWhy::ChangedOnHost,
            Why::LeavesTree => HeldBackWhy::LeavesTree,
            Why::Hidden => HeldBackWhy::Hidden,
        },
    };
    AppliedChanges {
        host_path: host.to_owned(),
        created: synced.created,
        updated: synced.updated,
        deleted: synced.deleted,
        merged: synced.merged,
        bytes: synced.bytes,
        held_back: synced.held_back.iter().take(AppliedChanges::MAX).map(held).collect(),
        truncated: synced.held_back.len() > AppliedChanges::MAX,
    }
}
