//! What is there when the state is opened: rows of processes that are dead, and their machines.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::{LogSource, Process, Sandbox, State};
use serde_json::json;

use crate::error::chain;
use crate::exec::Ended;
use crate::ledger::Batch;
use crate::manager::Manager;
use crate::record::{self, Tell as _};
use crate::seat::{Seat, lock};
use crate::{Error, Mode, OpenError};

/// The audit's name of what is done here.
const RECOVER: &str = "recover";
/// Why a sandbox fails that was paused.
const PAUSED: &str = "it was paused when its supervisor was killed, and only that could have \
                      resumed it; start it again";

impl Manager {
    /// Takes over what dead processes have left, and ends machines that are nobody's.
    pub(crate) async fn recover(&self) -> Result<(), OpenError> {
        for taken in self.ledger.take_over().await? {
            for record in taken.sandboxes {
                self.adopt(record.sandbox).await?;
            }
            for unfinished in taken.unfinished {
                // Nothing was accepted for it, so that it may come again as a new one.
                if unfinished.sandbox.is_none() {
                    self.forget_request(&unfinished.subject, &unfinished.key).await?;
                }
            }
        }
        self.reap().await?;
        let files = self.snapshot_files();
        let _ = tokio::task::spawn_blocking(move || files.sweep()).await;
        Ok(())
    }

    /// Takes up one sandbox of a dead process. A daemon attaches to its machine at once, a
    /// command when it needs it.
    async fn adopt(&self, row: Sandbox) -> Result<Arc<Seat>, Error> {
        let seat = Arc::new(Seat::new(row));
        let row = seat.row();
        let entry = record::own(RECOVER).about(&row).with_outcome(row.state.as_str());
        self.ledger.commit(Batch::entry(entry)).await?;
        self.sit(&seat);
        match row.state {
            // Nobody is left who could let it go on, and it answers nobody meanwhile.
            State::Paused => self.lose(&seat, PAUSED).await?,
            State::Ready | State::Executing => {
                let kept = self.supervisor.kept()?;
                let is_there = kept.iter().any(|machine| machine.id == row.id);
                if self.config.mode == Mode::Daemon || self.is_overdue(&row) || !is_there {
                    self.attach_again(&seat).await?;
                }
                // A daemon sees that by itself.
                if self.config.mode == Mode::Embedded && self.is_overdue(&row) {
                    self.is_late(&seat).await;
                }
            }
            State::Hibernating if self.snapshot_files().is_hibernated(seat.id()) => {}
            State::Hibernating => {
                let lost = "its supervisor was killed while it was brought to disk";
                self.lose(&seat, lost).await?;
            }
            State::Provisioning if self.snapshot_files().is_hibernated(seat.id()) => {
                let killed = Error::Internal("its supervisor was killed meanwhile".into());
                self.sleeps_on(&seat, killed).await?;
            }
            State::Requested | State::Provisioning
                if row.origin.is_some() && row.started_at.is_none() =>
            {
                let lost = "its supervisor was killed before it went on from there; make it again";
                self.lose(&seat, lost).await?;
            }
            State::Requested | State::Provisioning => {
                // Its first process may have started a machine. What was in memory only is gone
                // with it, so that there is no going on with it.
                self.end_machine(&seat).await;
                if !row.env_names.is_empty() {
                    let lost = "its environment was in the memory of a process that was killed";
                    self.fail(&seat, lost).await?;
                } else {
                    match self.mounts_again(&row).await {
                        Ok(mounts) => self.allow_again(&seat, mounts).await?,
                        Err(error) => self.fail(&seat, &error.to_string()).await?,
                    }
                }
            }
            State::Stopping | State::Destroying => {
                self.give_up_tasks(&seat, "its sandbox was taken away").await?;
            }
            State::Hibernated | State::Stopped | State::Failed | State::Destroyed => {}
        }
        if seat.machine().is_some() || !needs_machine(seat.state()) {
            self.spawn_life(&seat);
        }
        Ok(seat)
    }

    fn is_overdue(&self, row: &Sandbox) -> bool {
        let now = api::Timestamp::now();
        row.expires_at.is_some_and(|at| at <= now)
    }

    /// Attaches to the machine of a row that should have one, and to the tasks in it.
    async fn attach_again(&self, seat: &Arc<Seat>) -> Result<(), Error> {
        let attached = match self.give_way_out(seat, &seat.row()).await {
            Ok(network) => self.supervisor.attach_with(seat.id(), network).await,
            Err(error) => {
                let words = chain(&error);
                return self.lose(seat, &format!("its network cannot be had again: {words}")).await;
            }
        };
        match attached {
            Ok(sandbox) => {
                let running = seat.set_machine(sandbox);
                self.take_up_tasks(seat, &running.guest).await
            }
            Err(error) => {
                let words = chain(&error);
                seat.log(LogSource::Lifecycle, None, &format!("not found again: {words}"));
                self.lose(seat, &format!("its machine is gone: {words}")).await
            }
        }
    }

    /// Takes away what there is of a machine, and says why.
    async fn lose(&self, seat: &Arc<Seat>, why: &str) -> Result<(), Error> {
        self.end_machine(seat).await;
        self.give_up_tasks(seat, "its machine is gone").await?;
        self.fail(seat, why).await
    }

    /// Detached tasks go on, and are followed again. Attached ones ended with their connection.
    pub(crate) async fn take_up_tasks(
        &self,
        seat: &Arc<Seat>,
        guest: &supervisor::Guest,
    ) -> Result<(), Error> {
        use supervisor::wire::op::Processes;
        let there: BTreeSet<String> = match guest.ask(&Processes {}).await {
            Ok(list) => {
                { list.processes.into_iter().filter(|one| one.detached).map(|one| one.process) }
                    .collect()
            }
            Err(error) => return Err(Error::Guest(error)),
        };
        for process in self.ledger.running(seat.id()).await? {
            self.count_task();
            let entry = task_entry(&seat.row(), &process);
            if process.detached && there.contains(&process.process) {
                self.spawn_follower(seat, guest.clone(), process, entry);
            } else {
                self.interrupt(seat, process, entry).await?;
            }
        }
        Ok(())
    }

    async fn interrupt(
        &self,
        seat: &Seat,
        process: Process,
        entry: audit::Entry,
    ) -> Result<(), Error> {
        let reason = "interrupted: the supervisor was killed while it ran";
        self.finish(seat, process, entry, Ended::lost(reason, "interrupted")).await.map(drop)
    }

    pub(crate) async fn give_up_tasks(&self, seat: &Seat, why: &str) -> Result<(), Error> {
        for process in self.ledger.running(seat.id()).await? {
            self.count_task();
            let entry = task_entry(&seat.row(), &process);
            let ended = Ended::lost(format!("interrupted: {why}"), "interrupted");
            self.finish(seat, process, entry, ended).await?;
        }
        Ok(())
    }

    async fn fail(&self, seat: &Seat, reason: &str) -> Result<(), Error> {
        let failed = self.change(seat, |row, batch| {
            row.state.may_become(State::Failed).then(|| {
                let next = Sandbox {
                    state: State::Failed,
                    reason: Some(reason.to_owned()),
                    ended_at: Some(api::Timestamp::now()),
                    idle_at: None,
                    ..row.clone()
                };
                batch.entries.push(record::own(RECOVER).about(&next).with_outcome("failed"));
                batch.about(api::EventKind::SandboxFailed, &next, json!({"reason": reason}));
                next
            })
        });
        failed.await.map(drop)
    }

    /// Lets a request that came to nothing be done when it comes again.
    async fn forget_request(&self, subject: &str, key: &str) -> Result<(), Error> {
        self.ledger.answered(subject, key);
        let (subject, key) = (subject.to_owned(), key.to_owned());
        let store = self.ledger.store();
        store.write(move |change| change.abandon_idempotent(&subject, &key)).await?;
        Ok(())
    }

    /// The mounts of an accepted request, which the policy of now must allow too.
    async fn allow_again(
        &self,
        seat: &Arc<Seat>,
        mounts: Vec<crate::mount::Mounted>,
    ) -> Result<(), Error> {
        if mounts.is_empty() {
            return Ok(());
        }
        let row = seat.row();
        let decision = self.policy.load().decide(&self.question_again(&row, &mounts));
        if !decision.allowed {
            return self.fail(seat, &decision.reason).await;
        }
        *lock(&seat.mounts) = Some(crate::rules::with_masks(mounts, &decision));
        Ok(())
    }

    /// Ends machines of this data directory that no row knows.
    async fn reap(&self) -> Result<(), OpenError> {
        for machine in self.supervisor.owned_by(self.ledger.id())? {
            let known = self.ledger.record(&machine.id).await?;
            let wanted = known.as_ref().is_some_and(|known| known.sandbox.state.has_machine());
            if wanted {
                continue;
            }
            tracing::warn!(machine = machine.id, "a machine that is in no record is ended");
            match self.supervisor.remove(&machine.name).await {
                Ok(()) | Err(supervisor::Error::NoSuchSandbox(_)) => {
                    let entry = record::own(RECOVER).on_sandbox(machine.id).with_outcome("reaped");
                    self.ledger.commit(Batch::entry(entry)).await?;
                }
                Err(error) => tracing::error!(error = chain(&error), "it does not go"),
            }
        }
        Ok(())
    }

    /// The seat of a row that is not one of this process's: of a dead one it is taken over.
    pub(crate) async fn take_over(&self, row: Sandbox) -> Result<Arc<Seat>, Error> {
        let id = row.id.clone();
        self.recover().await.map_err(|error| Error::Internal(chain(&error)))?;
        match self.seat(&id) {
            Some(seat) => Ok(seat),
            None => Err(Error::Elsewhere(id)),
        }
    }

    /// A seat whose machine is attached, where it has one: a command without a daemon attaches
    /// to what it needs.
    pub(crate) async fn with_machine(&self, seat: &Arc<Seat>) -> Result<(), Error> {
        if seat.machine().is_some() || !needs_machine(seat.state()) {
            return Ok(());
        }
        let _attaching = self.attaching.lock().await;
        if seat.machine().is_none() && needs_machine(seat.state()) && !seat.is_live() {
            self.attach_again(seat).await?;
            self.spawn_life(seat);
        }
        Ok(())
    }
}

fn needs_machine(state: State) -> bool {
    matches!(state, State::Ready | State::Executing | State::Paused)
}

fn task_entry(row: &Sandbox, process: &Process) -> audit::Entry {
    let entry = record::own(RECOVER).about(row).with_detail("process", process.process.clone());
    let digest = process.task_digest.parse().ok();
    audit::Entry { task_digest: digest, ..entry }
}
