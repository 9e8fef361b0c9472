//! Sandboxes that are on disk: there by request or since they were idle, and back with the next
//! request that needs them.

use std::sync::Arc;

use access::Caller;
use api::{EventKind, LogSource, MountMode, Operation, Problem, Sandbox, State, Timestamp};
use serde_json::json;
use supervisor::Afterwards;

use crate::Error;
use crate::config::Provenance;
use crate::error::chain;
use crate::manager::Manager;
use crate::metrics::count;
use crate::mount::Mounted;
use crate::record::Tell as _;
use crate::seat::{Seat, lock};

/// Whether it cannot be done to a sandbox that is on disk.
pub(crate) fn wakes(operation: Operation) -> bool {
    matches!(
        operation,
        Operation::Exec
            | Operation::SandboxResume
            | Operation::SandboxSnapshot
            | Operation::SandboxFork
            | Operation::ProcessOutput
            | Operation::ProcessInput
            | Operation::ProcessSignal
            | Operation::ProcessResize
            | Operation::FileRead
            | Operation::FileWrite
            | Operation::FileStat
            | Operation::FileList
            | Operation::FileWatch
            | Operation::FileMkdir
            | Operation::FileMove
            | Operation::FileRemove
    )
}

/// What of a sandbox would not be there any more when it is back.
fn check(row: &Sandbox) -> Result<(), Error> {
    let mode = |mode| row.mounts.iter().find(move |mount| mount.mode == mode);
    let refused = |text: String| Err(Problem::new(api::Code::Unsupported, text).into());
    if let Some(mount) = mode(MountMode::Live) {
        let path = &mount.guest_path;
        return refused(format!(
            "a directory is shared live at {path}, which ends with its machine"
        ));
    }
    if let Some(mount) = mode(MountMode::Review) {
        let path = &mount.guest_path;
        return refused(format!("changes at {path} could not be told any more when it is back"));
    }
    if !row.volumes.is_empty() || !row.caches.is_empty() {
        return refused("it has volumes, which would be held for as long as it is on disk".into());
    }
    Ok(())
}

impl Manager {
    /// Brings a sandbox's machine to disk, and returns when its memory is free.
    ///
    /// # Errors
    /// `NotFound`, `State`, `Refused` with what keeps it from being done, and what failed.
    pub async fn hibernate(
        &self,
        caller: &Caller,
        sandbox: &str,
        by: &Provenance,
    ) -> Result<Sandbox, Error> {
        self.open_for_work()?;
        let operation = Operation::SandboxHibernate;
        let seat = self.find(caller, operation, sandbox, by).await?;
        let row = seat.row();
        let entry = self.entry(caller, operation, by);
        let from = [State::Ready, State::Executing, State::Paused];
        if from.contains(&row.state) {
            check(&row)?;
        }
        *lock(&seat.failure) = None;
        let moved = self
            .change(&seat, |row, batch| {
                if !from.contains(&row.state) {
                    return None;
                }
                batch.entries.push(entry.about(row).with_outcome("accepted"));
                Some(Sandbox { state: State::Hibernating, reason: None, ..row.clone() })
            })
            .await?;
        match moved {
            Ok(_) => {}
            Err(row) if matches!(row.state, State::Hibernating | State::Hibernated) => {}
            Err(row) => {
                let remedy = "only one that runs or is paused can be hibernated";
                return Err(Error::State { state: row.state, remedy });
            }
        }
        let row = tokio::select! {
            row = seat.until(|row| row.state != State::Hibernating) => row,
            () = self.closed() => return Err(Error::ShuttingDown),
        };
        match (row.state, lock(&seat.failure).clone()) {
            (State::Hibernated, _) => Ok(Sandbox::clone(&row)),
            (_, Some(error)) => Err(error),
            (state, None) => Err(Error::State { state, remedy: "it was changed meanwhile" }),
        }
    }

    /// Whether its idle time may bring this sandbox to disk.
    pub(crate) fn may_hibernate(&self, row: &Sandbox) -> bool {
        check(row).is_ok()
    }

    /// What the task of a sandbox does that is to go to disk.
    pub(crate) async fn bring_to_disk(&self, seat: &Arc<Seat>) {
        match self.to_disk(seat).await {
            Ok(()) => self.is_on_disk(seat).await,
            Err(error) => self.stays(seat, error).await,
        }
    }

    async fn to_disk(&self, seat: &Arc<Seat>) -> Result<(), Error> {
        let files = self.snapshot_files();
        let directory = files.hibernated(seat.id());
        let Some(running) = seat.machine() else {
            // A process that was killed after it had saved it all.
            return match files.is_hibernated(seat.id()) {
                true => Ok(()),
                false => Err(Error::Internal("its machine is gone".into())),
            };
        };
        let old = directory.clone();
        let removed = tokio::task::spawn_blocking(move || supervisor::remove_snapshot(&old)).await;
        removed.map_err(|error| Error::Internal(error.to_string()))??;
        self.save(&running, &directory, serde_json::Value::Null, Afterwards::Stays).await?;
        Ok(())
    }

    async fn is_on_disk(&self, seat: &Arc<Seat>) {
        let used = self.end_machine(seat).await;
        let moved = self
            .change(seat, |row, batch| {
                if row.state != State::Hibernating {
                    return None;
                }
                let next = Sandbox {
                    state: State::Hibernated,
                    idle_at: None,
                    usage: used.or(row.usage),
                    ..row.clone()
                };
                let operation = Operation::SandboxHibernate;
                batch.entries.push(self.own_entry(operation, &next, "hibernated"));
                batch.about(EventKind::SandboxHibernated, &next, json!({"reason": next.reason}));
                Some(next)
            })
            .await;
        match moved {
            Ok(Ok(_)) => seat.log(LogSource::Lifecycle, None, "it is on disk"),
            // It is to go; its task sees that next.
            Ok(Err(_)) => {}
            Err(error) => tracing::error!(sandbox = seat.id(), %error, "cannot write records"),
        }
    }

    /// It could not be brought to disk, and goes on.
    async fn stays(&self, seat: &Arc<Seat>, error: Error) {
        let words = error.to_string();
        let outcome = error.problem().code.as_str();
        *lock(&seat.failure) = Some(error);
        let is_there = seat.machine().is_some();
        let moved = self
            .change(seat, |row, batch| {
                if row.state != State::Hibernating {
                    return None;
                }
                let state = match (is_there, row.running) {
                    (false, _) => State::Failed,
                    (true, 0) => State::Ready,
                    (true, _) => State::Executing,
                };
                let reason = Some(format!("it could not be brought to disk: {words}"));
                let idle_at = row.idle_at.map(|_| Timestamp::now());
                let next = Sandbox { state, reason, idle_at, ..row.clone() };
                batch.entries.push(self.own_entry(Operation::SandboxHibernate, &next, outcome));
                Some(next)
            })
            .await;
        match moved {
            Ok(_) => seat.log(LogSource::Lifecycle, None, &format!("it stays in memory: {words}")),
            Err(error) => tracing::error!(sandbox = seat.id(), %error, "cannot write records"),
        }
    }

    /// Lets a sandbox go on from disk, as policy allows it now; returns when it takes tasks.
    ///
    /// # Errors
    /// `Access`, `Refused`, `Busy`, and what kept it from going on; it is on disk then as before.
    pub(crate) async fn wake(
        &self,
        caller: &Caller,
        seat: &Arc<Seat>,
        by: &Provenance,
    ) -> Result<(), Error> {
        self.open_for_work()?;
        let operation = Operation::SandboxResume;
        let row = seat.row();
        self.authorise(caller, operation, Some(&row.workspace), by).await?;
        let entry = self.entry(caller, operation, by).about(&row);
        let mounts = row.mounts.iter().map(Mounted::unseen).collect();
        let question = self.question_of_offspring(caller, &row, mounts, 0);
        let decision = self.policy.load().decide(&question);
        if !decision.allowed {
            return Err(self.deny(entry, &row.workspace, Some(&row.id), &decision).await?);
        }
        {
            // One at a time, so that two do not share the last place.
            let _deciding = self.deciding.lock().await;
            if seat.state() == State::Hibernated {
                self.room_for(1)?;
                let ticket = self.queue.enter().map_err(|_| {
                    count(&self.counters.refused_busy);
                    let retry_after = self.config.retry_after;
                    Error::Busy { reason: "the queue of sandboxes is full", retry_after }
                })?;
                *lock(&seat.ticket) = Some(ticket);
                *lock(&seat.failure) = None;
                let moved = self.change(seat, |row, batch| {
                    if row.state != State::Hibernated {
                        return None;
                    }
                    batch.entries.push(entry.with_outcome("accepted"));
                    Some(Sandbox { state: State::Provisioning, reason: None, ..row.clone() })
                });
                moved.await?.ok();
            }
        }
        let row = tokio::select! {
            row = seat.until(|row| row.state != State::Provisioning) => row,
            () = self.closed() => return Err(Error::ShuttingDown),
        };
        match (row.state.takes_tasks(), lock(&seat.failure).clone()) {
            (false, Some(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// It did not go on from disk, and is there as before.
    pub(crate) async fn sleeps_on(&self, seat: &Arc<Seat>, error: Error) -> Result<(), Error> {
        let words = error.to_string();
        let outcome = error.problem().code.as_str();
        *lock(&seat.failure) = Some(error);
        self.end_machine(seat).await;
        let moved = self.change(seat, |row, batch| {
            if row.state != State::Provisioning {
                return None;
            }
            let reason = Some(format!("it did not go on from disk: {words}"));
            let next = Sandbox { state: State::Hibernated, reason, ..row.clone() };
            batch.entries.push(self.own_entry(Operation::SandboxResume, &next, outcome));
            Some(next)
        });
        moved.await?.ok();
        seat.log(LogSource::Lifecycle, None, &format!("it did not go on from disk: {words}"));
        Ok(())
    }

    /// Removes what is on disk of a sandbox; whether there was anything.
    pub(crate) async fn forget_hibernated(&self, sandbox: &str) -> bool {
        let directory = self.snapshot_files().hibernated(sandbox);
        if !directory.exists() {
            return false;
        }
        let removed = tokio::task::spawn_blocking(move || supervisor::remove_snapshot(&directory));
        if let Ok(Err(error)) = removed.await {
            tracing::error!(sandbox, error = chain(&error), "what is on disk of it does not go");
        }
        true
    }
}
