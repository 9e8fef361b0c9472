//! A sandbox for one command, in the process that asked for it: `sandforge run`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use access::Caller;
use api::{
    AppliedChanges, AuditDecision, CreateSandbox, EventKind, Exec, Operation, Process, Sandbox,
    State, Timestamp, Usage,
};
use serde_json::json;
use supervisor::wire::op;
use supervisor::{Hidden, ImageRef, Observer, SandboxSpec};

use crate::config::Provenance;
use crate::exec::{Ended, new_process};
use crate::host_path::HostPath;
use crate::ledger::Batch;
use crate::life::tier;
use crate::manager::Manager;
use crate::metrics::count;
use crate::mount::{Mounted, copy_file, share_live};
use crate::network::{Denied, WayOut};
use crate::outlook::Expected;
use crate::record::{self, Tell as _, hex};
use crate::seat::Seat;
use crate::{Error, Reviewed, changes, rules};

/// What is to be run, and where.
#[derive(Debug, Clone)]
pub struct RunRequest {
    /// The sandbox. Its mounts are what policy is asked about; the caller copies them.
    pub sandbox: CreateSandbox,
    /// What was made of the sandbox's image, and is started in its place.
    pub root: Option<ImageRef>,
    /// The command. Names of its environment go to policy, values go nowhere.
    pub exec: Exec,
    /// A kernel of the caller's own.
    pub kernel: Option<PathBuf>,
    /// The kernel's messages on stderr.
    pub console: bool,
    /// The machine outlives this process, if [`Run::leave`] is called.
    pub keep: bool,
}

/// A mount of the request, as policy decided about it.
#[derive(Debug)]
pub struct RunMount {
    host: HostPath,
    masks: Option<policy::Masks>,
}

impl RunMount {
    fn new(mount: Mounted) -> Self {
        let Mounted { host, masks, .. } = mount;
        Self { host, masks }
    }

    /// Where it is.
    pub fn host(&self) -> &HostPath {
        &self.host
    }

    /// What of it must not go in.
    pub fn hidden(&self) -> Option<Hidden> {
        self.masks.clone().map(crate::mount::hidden)
    }
}

/// A sandbox that is its caller's. Dropping it takes the machine away, and the next process that
/// opens the state writes that down.
#[derive(Debug)]
pub struct Run {
    manager: std::sync::Arc<Manager>,
    seat: std::sync::Arc<Seat>,
    sandbox: supervisor::Sandbox,
    mounts: Vec<RunMount>,
    process: Process,
    entry: audit::Entry,
    begun: Instant,
    expected: Vec<Expected>,
}

impl Manager {
    /// Makes a sandbox for one command, and gives it to the caller. Everything is asked and
    /// written down as for any other.
    ///
    /// # Errors
    /// As [`Self::create`] and [`Self::exec`].
    pub async fn run(
        &self,
        caller: &Caller,
        request: RunRequest,
        by: &Provenance,
        observer: &mut dyn Observer,
    ) -> Result<Run, Error> {
        use api::Validate as _;
        self.open_for_work()?;
        let RunRequest { sandbox: create, root, exec, kernel, console, keep } = request;
        create.validate()?;
        exec.validate()?;
        let asked = create.workspace.as_deref();
        let workspace = caller.home(asked, &self.config.default_workspace)?.to_owned();
        for operation in [Operation::SandboxCreate, Operation::Exec] {
            self.authorise(caller, operation, Some(&workspace), by).await?;
        }
        let mounts = crate::sandboxes::resolve(create.mounts.clone()).await;
        let who = rules::subject(caller, &workspace);
        let sandboxes = self.count_of(&workspace);
        let question = self.question(who.clone(), &create, &mounts, sandboxes)?;
        let policy = self.policy.load();
        let decision = policy.decide(&policy::Request::Create(question.clone()));
        let entry = self.entry(caller, Operation::SandboxCreate, by);
        if !decision.allowed {
            return Err(self.deny(entry, &workspace, None, &decision).await?);
        }
        let inherited = question.env_names.clone();
        let of_exec = policy.decide(&rules::exec_in(who, &inherited, &exec));
        if !of_exec.allowed {
            let entry = self.entry(caller, Operation::Exec, by);
            return Err(self.deny(entry, &workspace, None, &of_exec).await?);
        }
        let id = supervisor::generate_id()?;
        let credentials = self.settle(caller, &workspace, &create, &mounts).await?;
        let mut row = rules::row(&id, caller, &create, &question, &decision);
        row.credentials = credentials;
        let reference = rules::reference(&decision);
        let entry = entry.about(&row).decided(&reference, AuditDecision::Allowed, "accepted");
        let mut batch = Batch::entry(entry);
        let created = json!({"name": row.name, "created_by": row.created_by, "run": true});
        batch.about(EventKind::SandboxCreated, &row, created);
        batch.insert(row.clone(), None);
        self.ledger.commit(batch).await?;
        let seat = std::sync::Arc::new(Seat::new(row.clone()));
        self.move_on(&seat, State::Provisioning).await?;
        let volumes = self.take_volumes(&row).await;
        let given = match volumes {
            Ok(volumes) => {
                let way_out = self.give_way_out(&seat, &seat.row()).await;
                way_out.map(|network| (volumes, network))
            }
            Err(error) => Err(error),
        };
        let (volumes, network) = match given {
            Ok(given) => given,
            Err(error) => {
                self.run_failed(&seat, &error).await?;
                return Err(error);
            }
        };
        let is_made = root.is_some();
        let spec = SandboxSpec {
            id: Some(id),
            owner: Some(self.ledger.id().to_owned()),
            name: None,
            cpus: create.cpu,
            memory_mb: row.memory_mb,
            disk_gb: row.disk_gb,
            starts_where_image_says: starts_where_image_says(&create.mounts),
            image: root.or_else(|| create.image.as_ref().map(|_| image(&row.image))),
            kernel,
            engine: create.engine.clone(),
            min_isolation: rules::least(&row),
            keep,
            console,
            volumes,
            variables: crate::volume::variables(&row),
            network,
        };
        let expected = self.outlook(&seat).await?;
        let begun = Instant::now();
        let sandbox = match self.supervisor.create(spec, observer).await {
            Ok(sandbox) => sandbox,
            Err(error) => {
                let error = Error::from(error);
                self.run_failed(&seat, &error).await?;
                return Err(error);
            }
        };
        self.counters.boot.record(begun.elapsed());
        let process = new_process("p1", &row, &exec, caller);
        let reference = rules::reference(&of_exec);
        let entry = self
            .entry(caller, Operation::Exec, by)
            .about(&row)
            .decided(&reference, AuditDecision::Allowed, "accepted")
            .with_detail("process", process.process.clone());
        let image = if is_made { row.image } else { sandbox.image().to_owned() };
        self.run_arrived(&seat, &sandbox, image, process.clone(), entry.clone()).await?;
        let mounts = rules::with_masks(mounts?, &decision).into_iter().map(RunMount::new).collect();
        Ok(Run { manager: self.arc(), seat, sandbox, mounts, process, entry, begun, expected })
    }

    async fn move_on(&self, seat: &Seat, state: State) -> Result<(), Error> {
        let moved = self.change(seat, |row, _| Some(Sandbox { state, ..row.clone() })).await?;
        moved.map(drop).map_err(|row| Error::State { state: row.state, remedy: "it has changed" })
    }

    async fn run_failed(&self, seat: &Seat, error: &Error) -> Result<(), Error> {
        count(&self.counters.failed);
        let problem = error.problem();
        self.change(seat, |row, batch| {
            let next = Sandbox {
                state: State::Failed,
                reason: Some(problem.detail.clone()),
                ended_at: Some(Timestamp::now()),
                ..row.clone()
            };
            let outcome = problem.code.as_str();
            batch.entries.push(self.own_entry(Operation::SandboxStart, &next, outcome));
            let data = json!({"reason": problem.detail});
            batch.about(EventKind::SandboxFailed, &next, data);
            Some(next)
        })
        .await?
        .ok();
        self.run_over(seat, None).await
    }

    async fn run_arrived(
        &self,
        seat: &Seat,
        sandbox: &supervisor::Sandbox,
        image: String,
        process: Process,
        entry: audit::Entry,
    ) -> Result<(), Error> {
        let arrived = self.change(seat, |row, batch| {
            let next = Sandbox {
                state: State::Ready,
                engine: Some(sandbox.engine().to_owned()),
                isolation: Some(tier(sandbox.isolation())),
                cpu: Some(sandbox.cpus()),
                image,
                started_at: Some(Timestamp::now()),
                ..row.clone()
            };
            batch.entries.push(self.own_entry(Operation::SandboxStart, &next, "ready"));
            let data = json!({"engine": next.engine, "isolation": next.isolation});
            batch.about(EventKind::SandboxStarted, &next, data);
            Some(next)
        });
        arrived.await?.ok();
        count(&self.counters.created);
        let begun = self.change(seat, |row, batch| {
            batch.entries.push(entry);
            let data = json!({"process": process.process, "command": process.command});
            batch.about(EventKind::TaskStarted, row, data);
            batch.begin_process(process, None);
            self.count_task();
            Some(Self::with_running(row, 1))
        });
        begun.await?.ok();
        Ok(())
    }

    async fn run_over(&self, seat: &Seat, usage: Option<Usage>) -> Result<(), Error> {
        self.move_on(seat, State::Destroying).await?;
        let over = self.change(seat, |row, batch| {
            let next = Sandbox {
                state: State::Destroyed,
                ended_at: row.ended_at.or_else(|| Some(Timestamp::now())),
                idle_at: None,
                usage: usage.or(row.usage),
                ..row.clone()
            };
            batch.entries.push(self.own_entry(Operation::SandboxDelete, &next, "destroyed"));
            batch.about(EventKind::SandboxDestroyed, &next, json!({"usage": next.usage}));
            Some(next)
        });
        over.await?.ok();
        count(&self.counters.destroyed);
        Ok(())
    }
}

/// Whether its tasks start where the image says: who brings a workspace starts in that.
pub(crate) fn starts_where_image_says(mounts: &[api::Mount]) -> bool {
    !mounts.iter().any(|mount| mount.guest_path.trim_end_matches('/') == "/workspace")
}

/// What a row's image is called.
pub(crate) fn image(name: &str) -> ImageRef {
    match name.parse() {
        Ok(image) => image,
        Err(never) => match never {},
    }
}

impl Run {
    /// Shares a mount's directory with every later task. What is lacking of a second lock, for a person.
    ///
    /// # Errors
    /// Where it is no directory, or the guest does not take it.
    pub async fn share(
        &self,
        mount: &RunMount,
        asked: &api::Mount,
    ) -> Result<Option<String>, Error> {
        share_live(&mount.host, mount.masks.clone(), asked, &self.sandbox).await
    }

    /// Copies one file of a mount, from the descriptor that was decided about.
    ///
    /// # Errors
    /// That it cannot be read, or that the guest does not take it.
    pub async fn copy_file(
        &self,
        mount: &RunMount,
        guest_path: &str,
        read_only: bool,
    ) -> Result<(), Error> {
        let guest_path = guest_path.trim_end_matches('/');
        let asked = api::Mount::new(mount.host.real(), guest_path, api::MountMode::Copy, read_only);
        copy_file(&mount.host, &asked, self.sandbox.guest()).await
    }

    /// The sandbox.
    pub fn sandbox(&self) -> &supervisor::Sandbox {
        &self.sandbox
    }

    /// The same, to wait for its end.
    pub fn sandbox_mut(&mut self) -> &mut supervisor::Sandbox {
        &mut self.sandbox
    }

    /// Its id.
    pub fn id(&self) -> &str {
        self.seat.id()
    }

    /// What the user calls it.
    pub fn name(&self) -> String {
        self.seat.row().name.clone()
    }

    /// What of the network it was denied so far, by host.
    pub fn denied(&self) -> Vec<Denied> {
        crate::seat::lock(&self.seat.way_out).as_ref().map(WayOut::denied).unwrap_or_default()
    }

    /// The credentials that it has, and those that are set beside them.
    pub fn expected(&self) -> &[Expected] {
        &self.expected
    }

    /// The name that the guest is to know the command by.
    pub fn process(&self) -> &str {
        &self.process.process
    }

    /// What policy decided about, in the order of the request's mounts: copy from
    /// [`HostPath::handle`], after [`HostPath::recheck`], without what is [`RunMount::hidden`].
    pub fn mounts(&self) -> &[RunMount] {
        &self.mounts
    }

    /// Keeps what was changed in one of its mounts, by its place in the request, beside what
    /// policy decided about.
    ///
    /// # Errors
    /// That it was not copied in to be reviewed, or what was wrong with what came.
    pub async fn collect(
        &self,
        mount: usize,
        ignored: bool,
        observer: &mut dyn Observer,
    ) -> Result<Reviewed, Error> {
        let (shelf, row) = (self.manager.shelf(), self.seat.row());
        let found = self.mounts.get(mount);
        let found = found.ok_or_else(|| Error::Internal(format!("there is no mount {mount}")))?;
        let host = Path::new(found.host.real());
        let pruned = shelf.clone();
        let _ = tokio::task::spawn_blocking(move || pruned.prune()).await;
        changes::collect(&shelf, &self.sandbox, &row, mount, host, ignored, observer).await
    }

    /// Brings what was collected of one of its mounts to the host, but for what is held back,
    /// which waits.
    ///
    /// # Errors
    /// Why nothing was changed.
    pub async fn apply(
        &self,
        mount: usize,
        leave_out_links: bool,
    ) -> Result<AppliedChanges, Error> {
        let found = self.mounts.get(mount);
        let found = found.ok_or_else(|| Error::Internal(format!("there is no mount {mount}")))?;
        found.host.recheck().map_err(|error| Error::Internal(error.to_string()))?;
        let entry = record::own(Operation::ChangesApply.as_str()).about(&self.seat.row());
        let entry = entry.with_detail("host_path", found.host.real().to_owned());
        self.manager.ledger.commit(Batch::entry(entry.clone().with_outcome("accepted"))).await?;
        let shelf = self.manager.shelf();
        let (real, hidden) = (PathBuf::from(found.host.real()), found.hidden());
        let id = self.id().to_owned();
        let done = changes::apply_all(shelf, id, mount, real, hidden, leave_out_links).await;
        let outcome = match &done {
            Ok(_) => "ok",
            Err(error) => error.problem().code.as_str(),
        };
        self.manager.ledger.commit(Batch::entry(entry.now().with_outcome(outcome))).await?;
        done
    }

    async fn task_over(
        &mut self,
        reply: Option<op::ExecReply>,
        digest: Option<[u8; 32]>,
    ) -> Result<(), Error> {
        self.process.task_digest = digest.map_or_else(String::new, |digest| hex(&digest));
        let entry = match digest {
            Some(digest) => self.entry.clone().with_task(digest),
            None => self.entry.clone(),
        };
        let ended = match reply {
            Some(reply) => {
                Ended { outcome: reply.outcome.clone().into(), reply: Some(reply), code: "ended" }
            }
            None => Ended::lost("it was interrupted", "abandoned"),
        };
        self.manager.counters.exec.record(self.begun.elapsed());
        self.manager.finish(&self.seat, self.process.clone(), entry, ended).await.map(drop)
    }

    /// Writes down how the command ended, and takes the machine away. `reply` is what the guest
    /// said, `digest` what was signed; without them it was interrupted.
    ///
    /// # Errors
    /// `Store`, `Supervisor`.
    pub async fn finish(
        mut self,
        reply: Option<op::ExecReply>,
        digest: Option<[u8; 32]>,
    ) -> Result<supervisor::Teardown, Error> {
        let told = self.task_over(reply, digest).await;
        let Self { manager, seat, sandbox, begun, .. } = self;
        let torn = sandbox.destroy().await;
        let usage = torn.as_ref().ok().map(|torn| {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let cpu_ms = torn.cpu_ms as u64;
            let uptime_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            Usage { cpu_ms, memory_peak_bytes: torn.memory_peak_bytes, uptime_ms }
        });
        manager.run_over(&seat, usage).await?;
        told?;
        Ok(torn?)
    }

    /// Writes down how the command ended, and leaves the machine running. The next process that
    /// opens the state takes it up.
    ///
    /// # Errors
    /// `Store`.
    pub async fn leave(
        mut self,
        reply: Option<op::ExecReply>,
        digest: Option<[u8; 32]>,
    ) -> Result<(), Error> {
        let told = self.task_over(reply, digest).await;
        let kept = record::own("keep").about(&self.seat.row());
        self.manager.ledger.commit(Batch::entry(kept)).await?;
        self.sandbox.leave();
        told
    }
}
