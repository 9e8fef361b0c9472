//! Where snapshots are: below the directory of all data, private to its owner.
//!
//! `snapshots/WORKSPACE/ID` are those that were asked for, `hibernated/ID` those of sandboxes that are
//! on disk, and `forks/ID` those that are there for as long as it takes to fork from them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use api::{Sandbox, Snapshot, Timestamp};
use serde::{Deserialize, Serialize};
use supervisor::Manifest;

use crate::Error;
use crate::error::chain;

/// How old what is half made has to be until it is nobody's any more.
const ABANDONED: Duration = Duration::from_secs(3600);

/// What is remembered of a snapshot beside what its machine depends on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct About {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) workspace: String,
    pub(crate) created_by: String,
    pub(crate) created_at: Timestamp,
    /// The sandbox's record then.
    pub(crate) sandbox: Sandbox,
}

/// One that is there.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) about: About,
    pub(crate) directory: PathBuf,
    manifest: Manifest,
}

/// A snapshot that goes with this.
#[derive(Debug)]
pub(crate) struct Passing {
    directory: PathBuf,
}

impl Drop for Passing {
    fn drop(&mut self) {
        if let Err(error) = supervisor::remove_snapshot(&self.directory) {
            let error = chain(&error);
            tracing::warn!(error, "what was saved to fork from does not go");
        }
    }
}

impl Passing {
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// All of a data directory.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    data: PathBuf,
}

impl Files {
    pub(crate) fn new(data: &Path) -> Self {
        Self { data: data.to_owned() }
    }

    /// Where a snapshot of a workspace is, or is to be.
    pub(crate) fn snapshot(&self, workspace: &str, id: &str) -> PathBuf {
        self.data.join("snapshots").join(workspace).join(id)
    }

    /// Where a sandbox is that is on disk.
    pub(crate) fn hibernated(&self, sandbox: &str) -> PathBuf {
        self.data.join("hibernated").join(sandbox)
    }

    /// Whether a sandbox is on disk as a whole.
    pub(crate) fn is_hibernated(&self, sandbox: &str) -> bool {
        Manifest::read(&self.hibernated(sandbox)).is_ok()
    }

    /// Where one is that goes soon.
    pub(crate) fn passing(&self, id: &str) -> Passing {
        Passing { directory: self.data.join("forks").join(id) }
    }

    /// The snapshots of a workspace, the newest first. What cannot be read is none.
    pub(crate) fn list(&self, workspace: &str) -> Result<Vec<Found>, Error> {
        let directory = self.data.join("snapshots").join(workspace);
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| {
                Error::Internal(format!("list {}: {error}", directory.display()))
            })?,
        };
        let mut found: Vec<Found> =
            entries.flatten().filter_map(|entry| read(entry.path(), workspace)).collect();
        found.sort_by_key(|one| std::cmp::Reverse(one.about.created_at));
        Ok(found)
    }

    /// The snapshot of this id or name.
    pub(crate) fn find(&self, workspace: &str, name: &str) -> Result<Found, Error> {
        let found = self.list(workspace)?;
        let called = |one: &&Found| one.about.id == name || one.about.name == name;
        found.iter().find(called).cloned().ok_or_else(|| Error::not_found("snapshot", name))
    }

    /// Removes what dead processes left half made.
    pub(crate) fn sweep(&self) {
        let is_old = |entry: &fs::DirEntry| {
            let made = entry.metadata().and_then(|found| found.modified());
            let age = made.ok().and_then(|made| SystemTime::now().duration_since(made).ok());
            age.is_some_and(|age| age > ABANDONED)
        };
        let is_draft =
            |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes().starts_with(b".");
        let entries = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten();
        let workspaces = entries(self.data.join("snapshots")).map(|entry| entry.path());
        let drafts = workspaces.chain([self.data.join("hibernated")]).flat_map(entries);
        let forks = entries(self.data.join("forks"));
        for entry in drafts.filter(is_draft).chain(forks).filter(is_old) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn read(directory: PathBuf, workspace: &str) -> Option<Found> {
    let id = directory.file_name()?.to_str()?.to_owned();
    let manifest = Manifest::read(&directory).ok()?;
    let about: About = serde_json::from_value(manifest.about.clone()).ok()?;
    let is_its_own = about.id == id && about.workspace == workspace;
    is_its_own.then_some(Found { about, directory, manifest })
}

impl Found {
    /// What a caller is told of it.
    pub(crate) fn told(&self) -> Snapshot {
        let Self { about, directory, manifest } = self;
        told(about, manifest, supervisor::snapshot_size(directory))
    }
}

/// What a caller is told of a snapshot.
pub(crate) fn told(about: &About, manifest: &Manifest, disk_bytes: u64) -> Snapshot {
    Snapshot {
        id: about.id.clone(),
        name: about.name.clone(),
        workspace: about.workspace.clone(),
        created_by: about.created_by.clone(),
        created_at: about.created_at,
        sandbox: about.sandbox.id.clone(),
        sandbox_name: about.sandbox.name.clone(),
        engine: manifest.engine.clone(),
        isolation: crate::life::tier(manifest.isolation),
        image: manifest.image.clone(),
        cpu: manifest.cpus,
        memory_mb: manifest.memory_mb,
        disk_gb: manifest.disk_gb,
        network: about.sandbox.network,
        env_names: about.sandbox.env_names.clone(),
        disk_bytes,
    }
}
