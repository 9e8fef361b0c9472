//! Which processes have the store open, and what the dead ones leave.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use api::Timestamp;
use rusqlite::params;
use rustix::fs::{FlockOperation, OFlags, flock};

use crate::{Change, SandboxRecord, Store, StoreError, Unfinished, directory};

/// This process, on record in the store for as long as the value lives. The lock on its file
/// goes with the process, however it ends.
#[derive(Debug)]
pub struct Instance {
    id: String,
    _lock: File,
}

impl Instance {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// An instance whose process is gone. Nobody else can take it over while this value lives.
#[derive(Debug)]
pub struct DeadInstance {
    id: String,
    path: PathBuf,
    _lock: File,
}

impl DeadInstance {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// What a dead instance left to the one that took over.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TakenOver {
    /// Sandboxes that are not destroyed, in the state in which they were last known.
    pub sandboxes: Vec<SandboxRecord>,
    /// Requests that were begun and not answered.
    pub unfinished: Vec<Unfinished>,
}

fn lock_path(directory: &Path, id: &str) -> PathBuf {
    directory::instances(directory).join(format!("{id}.lock"))
}

/// The file of an instance, locked; `None` where another process has the lock.
fn lock(path: &Path) -> Result<Option<File>, StoreError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
        .map_err(StoreError::file("open", path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(StoreError::file("lock", path)(error.into())),
    }
}

impl Store {
    /// Registers this process as one that looks after sandboxes.
    ///
    /// # Errors
    /// `File`, `Random`, and those of a write.
    pub async fn register(&self) -> Result<Instance, StoreError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| StoreError::Random(error.to_string()))?;
        let id = format!("in-{:016x}", u64::from_be_bytes(random));
        let path = lock_path(self.directory(), &id);
        // Locked before it is on record: nobody ever finds it there without its lock.
        let lock =
            lock(&path)?.ok_or_else(|| StoreError::Exists { kind: "instance", id: id.clone() })?;
        let instance = Instance { id, _lock: lock };
        let (id, pid) = (instance.id.clone(), std::process::id());
        let written = self
            .write(move |change| {
                change
                    .connection
                    .prepare_cached("INSERT INTO instances (id, pid, started_at) VALUES (?, ?, ?)")?
                    .execute(params![id, pid, Timestamp::now().unix_ms()])?;
                Ok::<_, StoreError>(())
            })
            .await;
        if written.is_err() {
            // What is told is why it is not on record.
            let _ = std::fs::remove_file(&path);
        }
        written.map(|()| instance)
    }

    /// The instances on record whose processes are gone. Each is the caller's to take over.
    ///
    /// # Errors
    /// `File` and `Database`.
    pub async fn dead_instances(&self) -> Result<Vec<DeadInstance>, StoreError> {
        let directory = self.directory().to_owned();
        self.read(move |view| {
            let mut statement = view.connection.prepare_cached("SELECT id FROM instances")?;
            let ids = statement.query_map([], |row| row.get::<_, String>(0))?;
            let mut dead = Vec::new();
            for id in ids {
                let id = id?;
                let path = lock_path(&directory, &id);
                if let Some(lock) = lock(&path)? {
                    dead.push(DeadInstance { id, path, _lock: lock });
                }
            }
            Ok(dead)
        })
        .await
    }

    /// Gives all that a dead instance looked after to `instance`. Where another process took it
    /// over first, there is nothing left.
    ///
    /// # Errors
    /// Those of a write.
    pub async fn take_over(
        &self,
        dead: DeadInstance,
        instance: &Instance,
    ) -> Result<TakenOver, StoreError> {
        let (from, to) = (dead.id.clone(), instance.id.clone());
        let taken = self.write(move |change| change.hand_over(&from, &to)).await?;
        // A file that is left behind is of no instance, and harms nobody.
        let _ = std::fs::remove_file(&dead.path);
        Ok(taken)
    }

    /// Takes this process off the record. What it still looks after is given to nobody: hand it
    /// over or end it first.
    ///
    /// # Errors
    /// Those of a write.
    pub async fn retire(&self, instance: Instance) -> Result<(), StoreError> {
        let id = instance.id.clone();
        self.write(move |change| {
            // With sandboxes it stays, and the next one to look takes it over.
            change
                .connection
                .prepare_cached(
                    "DELETE FROM instances WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM sandboxes \
                     WHERE instance = ?1 AND state <> 'destroyed') AND NOT EXISTS \
                     (SELECT 1 FROM idempotency WHERE instance = ?1 AND answer IS NULL)",
                )?
                .execute([&id])?;
            Ok::<_, StoreError>(())
        })
        .await?;
        let path = lock_path(self.directory(), &instance.id);
        let _ = std::fs::remove_file(path);
        Ok(())
    }
}

impl Change<'_> {
    fn hand_over(&mut self, from: &str, to: &str) -> Result<TakenOver, StoreError> {
        let removed = self
            .connection
            .prepare_cached("DELETE FROM instances WHERE id = ?")?
            .execute([from])?;
        if removed == 0 {
            return Ok(TakenOver::default());
        }
        let mut taken =
            TakenOver { sandboxes: self.sandboxes_of(from)?, unfinished: self.unfinished(from)? };
        for record in &mut taken.sandboxes {
            record.instance = Some(to.to_owned());
        }
        self.connection
            .prepare_cached(
                "UPDATE sandboxes SET instance = ?2 WHERE instance = ?1 AND state <> 'destroyed'",
            )?
            .execute([from, to])?;
        self.connection
            .prepare_cached(
                "UPDATE idempotency SET instance = ?2 WHERE instance = ?1 AND answer IS NULL",
            )?
            .execute([from, to])?;
        Ok(taken)
    }
}
