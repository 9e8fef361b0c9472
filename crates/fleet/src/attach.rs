//! Directories that come to a sandbox, and go, while it runs.

use std::sync::Arc;

use access::Caller;
use api::{Code, EventKind, Mount, MountMode, Operation, Problem, Sandbox, Validate as _};
use serde_json::json;

use crate::config::Provenance;
use crate::exec::not_running;
use crate::ledger::Batch;
use crate::manager::Manager;
use crate::record::Tell as _;
use crate::seat::Seat;
use crate::{Error, rules, sandboxes};

/// Mounts that one sandbox may have: as many as it can be made with.
const MOST: usize = api::bound::MAX_MOUNTS;

impl Manager {
    /// Shares a directory of the host live with a sandbox that runs.
    ///
    /// # Errors
    /// `NotFound`, `Refused`, `State`, and what kept it from being mounted.
    pub async fn attach_mount(
        self: &Arc<Self>,
        caller: &Caller,
        sandbox: &str,
        asked: Mount,
        by: &Provenance,
    ) -> Result<Sandbox, Error> {
        let operation = Operation::MountAttach;
        let seat = self.find(caller, operation, sandbox, by).await?;
        asked.validate()?;
        if asked.mode != MountMode::Live {
            let words = "only a directory that is shared live can be given to a sandbox that runs";
            return Err(Problem::invalid("mode", words).into());
        }
        let row = seat.row();
        let entry = self.entry(caller, operation, by).about(&row);
        let mounts = sandboxes::resolve(vec![asked.clone()]).await?;
        if mounts.iter().any(|mount| !mount.host.is_directory()) {
            let words = format!("{} is not a directory", asked.host_path);
            return Err(Problem::invalid("host_path", words).into());
        }
        let question = self.question_of_start(caller, &row, &mounts);
        let decision = self.policy.load().decide(&question);
        if !decision.allowed {
            return Err(self.deny(entry, &row.workspace, Some(&row.id), &decision).await?);
        }
        let mounts = rules::with_masks(mounts, &decision);
        // Both of the record and of the machine, one mount after another.
        let _mounting = seat.mounting.lock().await;
        if let Some(problem) = clash(&seat.row(), &asked) {
            return Err(problem.into());
        }
        let reference = rules::reference(&decision);
        let entry = entry.decided(&reference, api::AuditDecision::Allowed, "accepted");
        self.record(&seat, &asked, true, |batch| batch.entries.push(entry)).await?;
        let mut done = Ok(());
        for mount in mounts {
            done = self.share(&seat, mount).await;
        }
        if let Err(error) = done {
            // It is not there, whatever was written down before.
            let _ = self.record(&seat, &asked, false, |_| {}).await;
            return Err(error);
        }
        Ok(Sandbox::clone(&seat.row()))
    }

    async fn share(&self, seat: &Seat, mount: crate::mount::Mounted) -> Result<(), Error> {
        let running = seat.machine().ok_or_else(|| not_running(seat.state()))?;
        let machine = running.sandbox.lock().await;
        let machine = machine.as_ref().ok_or_else(|| not_running(seat.state()))?;
        mount.copy(machine).await
    }

    /// Takes a directory that is shared live away from a sandbox that runs.
    ///
    /// # Errors
    /// `NotFound`, `Refused`, `State`.
    pub async fn detach_mount(
        &self,
        caller: &Caller,
        sandbox: &str,
        guest_path: &str,
        by: &Provenance,
    ) -> Result<Sandbox, Error> {
        let operation = Operation::MountDetach;
        let seat = self.find(caller, operation, sandbox, by).await?;
        let _mounting = seat.mounting.lock().await;
        let row = seat.row();
        let entry = self.entry(caller, operation, by).about(&row).with_outcome("accepted");
        let live = |mount: &&Mount| mount.mode == MountMode::Live;
        let at = |mount: &Mount| plain(&mount.guest_path) == plain(guest_path);
        let Some(mount) = row.mounts.iter().filter(live).find(|mount| at(mount)).cloned() else {
            let words = format!("no directory is shared live at {guest_path} of {}", row.name);
            return Err(Problem::new(Code::FileNotFound, words).with_field("guest_path").into());
        };
        // What was changed in a reviewed directory is known by the number of its mount.
        let behind = row.mounts.iter().skip_while(|other| **other != mount);
        if behind.into_iter().any(|other| other.mode == MountMode::Review) {
            let words = format!(
                "{guest_path} was given before a directory that is reviewed, and stays as long as that; \
                 name it behind that when the sandbox is made"
            );
            return Err(Problem::new(Code::WrongState, words).with_field("guest_path").into());
        }
        self.record(&seat, &mount, false, |batch| batch.entries.push(entry)).await?;
        let running = seat.machine().ok_or_else(|| not_running(seat.state()))?;
        let machine = running.sandbox.lock().await;
        if let Some(machine) = machine.as_ref() {
            match machine.unshare(&mount.guest_path).await {
                // It ended with the process that served it.
                Ok(()) | Err(supervisor::Error::Request(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Sandbox::clone(&seat.row()))
    }

    /// Writes down that a mount came or went.
    async fn record(
        &self,
        seat: &Seat,
        mount: &Mount,
        comes: bool,
        also: impl FnOnce(&mut Batch),
    ) -> Result<(), Error> {
        let moved = self
            .change(seat, |row, batch| {
                if !row.state.takes_tasks() {
                    return None;
                }
                let mut next = row.clone();
                match comes {
                    true => next.mounts.push(mount.clone()),
                    false => next.mounts.retain(|other| other != mount),
                }
                also(batch);
                let data = json!({"mount": {"guest_path": mount.guest_path,
                    "read_only": mount.read_only, "attached": comes}});
                batch.about(EventKind::SandboxUpdated, &next, data);
                Some(next)
            })
            .await?;
        moved.map(drop).map_err(|row| not_running(row.state))
    }
}

/// Why a mount cannot come to those that are there.
fn clash(row: &Sandbox, asked: &Mount) -> Option<Problem> {
    if row.mounts.len() >= MOST {
        let words = format!("{} has {MOST} mounts, which is the most", row.name);
        return Some(Problem::new(Code::AlreadyExists, words).with_field("guest_path"));
    }
    let new = plain(&asked.guest_path);
    let taken = row.mounts.iter().find(|mount| {
        let there = plain(&mount.guest_path);
        format!("{new}/").starts_with(&format!("{there}/"))
            || format!("{there}/").starts_with(&format!("{new}/"))
    })?;
    let words = format!("{} has {} there already", row.name, taken.guest_path);
    Some(Problem::new(Code::AlreadyExists, words).with_field("guest_path"))
}

/// A path of the guest without what says nothing.
fn plain(path: &str) -> String {
    let parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
    parts.flat_map(|part| ["/", part]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_spelling() {
        assert_eq!(plain("/a//b/./c/"), "/a/b/c");
        assert_eq!(plain("/a/..b"), "/a/..b");
    }
}
