//! Commands in sandboxes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use access::Caller;
use api::{
    AttachQuery, AuditDecision, EventKind, Exec, ExecEnd, LogSource, Operation, Outcome, Page,
    PageQuery, Process, Sandbox, State, Timestamp, Truncated, Validate as _, WindowSize,
};
use serde_json::json;
use supervisor::wire::op::{self, Attach, ExecReply, Resize, Signal, Stdin as StdinOperation};
use supervisor::wire::text::Text;
use supervisor::{Guest, LinkError, Output as GuestOutput};
use tokio::sync::{mpsc, oneshot};

use crate::config::Provenance;
use crate::ledger::Batch;
use crate::manager::Manager;
use crate::record::{Tell as _, hex};
use crate::seat::{LOG_LINE, Seat, lock};
use crate::task::{Output, Stdin, Stream, Task};
use crate::{Error, rules};

/// Chunks of output between a task and its caller.
const CHUNKS: usize = 16;
/// A task that runs this long is recorded as started, with its digest, before it ends.
const TOLD_AFTER: Duration = Duration::from_secs(1);
/// How much longer than the guest's own KILL it may take to say that a command ended.
const OVERDUE: Duration = Duration::from_secs(10);
/// How long a guest may take to start a detached command.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// KILL.
const KILL: i32 = 9;

/// Why an attached command has no end of its own.
#[derive(Debug)]
enum Broken {
    /// Its caller went away.
    Abandoned,
    /// The guest did not say that its time was up.
    Overdue,
    Link(LinkError),
}

impl From<LinkError> for Broken {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

impl Manager {
    /// Runs a command. It is written down before the guest hears of it, and its end is written
    /// down whatever becomes of the caller.
    ///
    /// # Errors
    /// `NotFound`, `State`, `Refused`, `Unsigned`, `NameTaken`, `Busy`, `Guest`.
    pub async fn exec(
        &self,
        caller: &Caller,
        sandbox: &str,
        exec: Exec,
        by: &Provenance,
    ) -> Result<Task, Error> {
        let (manager, caller, by) = (self.arc(), caller.clone(), by.clone());
        let sandbox = sandbox.to_owned();
        let started =
            self.tasks.spawn(async move { manager.begin(&caller, &sandbox, exec, &by).await });
        started.await.map_err(|_| Error::ShuttingDown)?
    }

    async fn begin(
        &self,
        caller: &Caller,
        sandbox: &str,
        exec: Exec,
        by: &Provenance,
    ) -> Result<Task, Error> {
        self.open_for_work()?;
        let seat = self.find(caller, Operation::Exec, sandbox, by).await?;
        self.signed(caller, by)?;
        exec.validate()?;
        let row = seat.row();
        let entry = self.entry(caller, Operation::Exec, by).about(&row);
        let decision = self.policy.load().decide(&rules::exec(caller, &row, &exec));
        if !decision.allowed {
            return Err(self.deny(entry, &row.workspace, Some(&row.id), &decision).await?);
        }
        // The same request, come again after this process was killed: it is not done twice.
        if let Some(key) = &by.idempotency_key
            && let Some(process) = self.ledger.process_of(&caller.actor(), key).await?
        {
            return self.again(&seat, process).await;
        }
        let name = match &exec.name {
            Some(name) => name.clone(),
            None => format!("p-{}", &supervisor::generate_id()?["sb-".len()..]),
        };
        let policy = rules::reference(&decision);
        let process = new_process(&name, &row, &exec, caller);
        let entry = entry
            .decided(&policy, AuditDecision::Allowed, "accepted")
            .with_detail("process", name.clone());
        let accepted = entry.clone();
        let key = by.idempotency_key.clone().map(|key| (caller.actor(), key));
        let inserted = process.clone();
        let most = self.config.max_tasks;
        let moved = self
            .change(&seat, |row, batch| {
                if !row.state.takes_tasks() || row.running >= most {
                    return None;
                }
                batch.entries.push(accepted);
                let data = json!({"process": inserted.process, "command": inserted.command,
                    "created_by": inserted.created_by, "detached": inserted.detached});
                batch.about(EventKind::TaskStarted, row, data);
                batch.begin_process(inserted, key);
                self.count_task();
                Some(Self::with_running(row, 1))
            })
            .await?;
        match moved {
            Ok(_) => {}
            Err(row) if row.state.takes_tasks() => {
                return Err(Error::Busy {
                    reason: "the sandbox runs as many tasks as it may",
                    retry_after: self.config.retry_after,
                });
            }
            Err(row) => return Err(not_running(row.state)),
        }
        self.hook.accepted(&row.id, &name);
        match self.act(&seat, exec, process.clone(), entry.clone()).await {
            Ok(task) => Ok(task),
            Err(error) => {
                let reason = error.to_string();
                let code = error.problem().code.as_str();
                let end = Ended { outcome: Outcome::Lost { reason }, reply: None, code };
                // What the store said to that was told.
                let _ = self.finish(&seat, process, entry, end).await;
                Err(error)
            }
        }
    }

    /// What there is of a command that was accepted before.
    async fn again(&self, seat: &Arc<Seat>, process: Process) -> Result<Task, Error> {
        if process.outcome.is_running() && process.detached {
            return Ok(done(&process));
        }
        if process.outcome.is_running() && seat.machine().is_some() {
            let problem = api::Problem::new(
                api::Code::IdempotencyInProgress,
                "the command of this key runs, and another caller has its output",
            );
            return Err(problem.into());
        }
        let had_output = !process.detached && !matches!(process.outcome, Outcome::Lost { .. });
        match process.exit_code {
            // Its answer was never sent, and what it wrote is nowhere else.
            Some(code) if had_output => {
                let reason = format!(
                    "interrupted: it ended with status {code}, and its output went with the \
                     supervisor that was killed"
                );
                let outcome = Outcome::Lost { reason };
                Ok(done(&Process { exit_code: outcome.exit_code(), outcome, ..process }))
            }
            _ => Ok(done(&process)),
        }
    }

    /// Sends an accepted command to its guest.
    async fn act(
        &self,
        seat: &Arc<Seat>,
        exec: Exec,
        mut process: Process,
        entry: audit::Entry,
    ) -> Result<Task, Error> {
        let running = seat.running()?;
        let guest = running.guest.clone();
        let (detach, stdin, timeout) = (exec.detach, exec.stdin, exec.timeout_sec);
        let grace = Duration::from_millis(exec.kill_grace_ms.unwrap_or(Exec::KILL_GRACE_MS));
        let operation = operation(seat, exec, &process.process)?;
        let begun = Instant::now();
        let under_way = guest.exec(&operation).map_err(Error::Guest)?;
        drop(operation);
        process.task_digest = hex(&under_way.digest().0);
        let mut batch = Batch::default();
        batch.started_process(&process);
        let started = entry.clone().with_task(under_way.digest().0).with_outcome("started");
        if detach {
            let reply = tokio::time::timeout(START_PATIENCE, under_way.wait()).await;
            let reply = reply.map_err(|_| Error::Overdue)?.map_err(Error::Guest)?;
            if reply.outcome != op::Outcome::Running {
                // It ended at its very beginning: there was no such command.
                let end =
                    Ended { outcome: reply.outcome.clone().into(), reply: Some(reply), code: "ok" };
                let ended = self.finish(seat, process.clone(), started, end).await;
                return Ok(over(&process, ended));
            }
            batch.entries.push(started.clone());
            self.ledger.commit(batch).await?;
            self.spawn_follower(seat, guest, process.clone(), started);
            return Ok(done(&process));
        }
        batch.entries.push(started.clone());
        let (output, receiver) = mpsc::channel(CHUNKS);
        let (end, ended) = oneshot::channel();
        let task = Task {
            process: process.process.clone(),
            task_digest: process.task_digest.clone(),
            stdin: stdin.then(|| Stdin(under_way.stdin())),
            output: receiver,
            end: ended,
        };
        if !stdin {
            under_way.stdin().finish();
        }
        let (manager, seat) = (self.arc(), seat.clone());
        let overdue = timeout.map(|sec| Duration::from_secs(sec) + grace + OVERDUE);
        self.tasks.spawn(async move {
            let name = process.process.clone();
            let pumped = async {
                let stdout = pump(Some(under_way.stdout()), Stream::Stdout, &output, 0);
                let stderr = async {
                    let stderr = under_way.stderr().await?;
                    pump(stderr, Stream::Stderr, &output, 0).await
                };
                tokio::try_join!(stdout, stderr)?;
                Ok::<_, Broken>(())
            };
            let overdue = async {
                match overdue {
                    Some(patience) => tokio::time::sleep(patience).await,
                    None => std::future::pending().await,
                }
            };
            // What is over at once is told once.
            let told = async {
                tokio::time::sleep(TOLD_AFTER).await;
                if let Err(error) = manager.ledger.commit(batch).await {
                    tracing::error!(%error, "cannot record that a task started");
                }
                std::future::pending::<()>().await;
            };
            let pumped = tokio::select! {
                pumped = pumped => pumped,
                () = output.closed() => Err(Broken::Abandoned),
                () = overdue => Err(Broken::Overdue),
                () = told => Ok(()),
            };
            drop(output);
            let reply = match pumped {
                Ok(()) => under_way.wait().await.map_err(Broken::Link),
                Err(broken) => {
                    // Its stdin may be held by somebody still, so that it must be told.
                    let kill = Signal { process: name, signal: KILL };
                    if let Ok(call) = guest.call(&kill) {
                        let _ = tokio::time::timeout(OVERDUE, call.reply()).await;
                    }
                    drop(under_way);
                    Err(broken)
                }
            };
            manager.counters.exec.record(begun.elapsed());
            let (ending, verdict) = judge(reply);
            let ended = manager.finish(&seat, process, started, ending).await;
            // Nobody may be there to hear it.
            let _ = end.send(verdict.and(ended));
        });
        Ok(task)
    }

    /// Writes down how a command ended.
    pub(crate) async fn finish(
        &self,
        seat: &Seat,
        process: Process,
        entry: audit::Entry,
        end: Ended,
    ) -> Result<ExecEnd, Error> {
        self.counters.tasks.fetch_sub(1, Ordering::Relaxed);
        let now = Timestamp::now();
        let cpu_usec = end.reply.as_ref().map(|reply| reply.cpu_usec);
        let dropped = end.reply.as_ref().map_or((0, 0), |reply| reply.dropped);
        let process = Process {
            ended_at: Some(now),
            exit_code: end.outcome.exit_code(),
            cpu_ms: cpu_usec.map(|us| us / 1000),
            memory_peak_bytes: end.reply.as_ref().map(|reply| reply.memory_peak_bytes),
            outcome: end.outcome,
            ..process
        };
        let timed_out = matches!(process.outcome, Outcome::TimedOut { .. });
        let data = json!({"process": process.process, "outcome": process.outcome,
            "exit_code": process.exit_code, "task_digest": process.task_digest});
        let recorded = process.clone();
        let entry =
            entry.with_outcome(end.code).with_detail("exit_code", json!(process.exit_code)).now();
        let moved = self
            .change(seat, |row, batch| {
                batch.entries.push(entry);
                batch.end_process(recorded);
                batch.about(EventKind::TaskEnded, row, data.clone());
                if timed_out {
                    batch.about(EventKind::TaskTimeout, row, data);
                }
                Some(Self::with_running(row, -1))
            })
            .await;
        if let Err(error) = moved {
            tracing::error!(sandbox = seat.id(), %error, "cannot record the end of a task");
            return Err(error);
        }
        Ok(ExecEnd {
            process: process.process,
            outcome: process.outcome,
            exit_code: process.exit_code,
            truncated: Truncated { stdout: dropped.0, stderr: dropped.1 },
            duration_ms: u64::try_from(now.since(process.started_at).as_millis())
                .unwrap_or(u64::MAX),
            cpu_ms: process.cpu_ms.unwrap_or(0),
            memory_peak_bytes: process.memory_peak_bytes.unwrap_or(0),
            task_digest: process.task_digest,
        })
    }

    /// Waits for the end of a detached command, and keeps lines of what it writes.
    pub(crate) fn spawn_follower(
        &self,
        seat: &Arc<Seat>,
        guest: Guest,
        process: Process,
        entry: audit::Entry,
    ) {
        let (manager, seat) = (self.arc(), seat.clone());
        let closing = self.arc();
        let name = process.process.clone();
        let follow = async move {
            let attach = Attach {
                process: process.process.clone(),
                stdout_offset: 0,
                stderr_offset: 0,
                follow: true,
            };
            let followed = async {
                let under_way = guest.attach(&attach)?;
                let stdout = lines(&seat, Some(under_way.stdout()), LogSource::Stdout, &name);
                let stderr = async {
                    let stderr = under_way.stderr().await?;
                    lines(&seat, stderr, LogSource::Stderr, &name).await
                };
                tokio::try_join!(stdout, stderr)?;
                under_way.wait().await
            };
            let followed = followed.await;
            if followed.is_err() && goes_on(&seat).await {
                manager.counters.tasks.fetch_sub(1, Ordering::Relaxed);
                return;
            }
            let (ending, _) = judge(followed.map_err(Broken::Link));
            // An error of the store was told.
            let _ = manager.finish(&seat, process, entry, ending).await;
        };
        // What runs on when this process ends is followed again by the next.
        self.tasks.spawn(async move {
            tokio::select! {
                () = follow => {}
                () = closing.closed() => {}
            }
        });
    }

    /// Output of a detached command from offsets on, and its end where that is followed.
    ///
    /// # Errors
    /// `NotFound`, `State`, `Guest`.
    pub async fn attach(
        &self,
        caller: &Caller,
        sandbox: &str,
        process: &str,
        query: AttachQuery,
        by: &Provenance,
    ) -> Result<Task, Error> {
        let seat = self.find(caller, Operation::ProcessOutput, sandbox, by).await?;
        query.validate()?;
        let known = self.known(&seat, process).await?;
        let running = seat.running()?;
        let attach = Attach {
            process: process.to_owned(),
            stdout_offset: query.stdout_offset,
            stderr_offset: query.stderr_offset,
            follow: query.follow,
        };
        let under_way =
            running.guest.attach(&attach).map_err(|error| of_process(process, error))?;
        let (output, receiver) = mpsc::channel(CHUNKS);
        let (end, ended) = oneshot::channel();
        let task = Task {
            process: process.to_owned(),
            task_digest: known.task_digest.clone(),
            stdin: None,
            output: receiver,
            end: ended,
        };
        self.tasks.spawn(async move {
            let pumped = async {
                let (first, second) = (query.stdout_offset, query.stderr_offset);
                let stdout = pump(Some(under_way.stdout()), Stream::Stdout, &output, first);
                let stderr = async {
                    let stderr = under_way.stderr().await?;
                    pump(stderr, Stream::Stderr, &output, second).await
                };
                tokio::try_join!(stdout, stderr)?;
                Ok::<_, Broken>(())
            };
            let pumped = tokio::select! {
                pumped = pumped => pumped,
                () = output.closed() => Err(Broken::Abandoned),
            };
            drop(output);
            let reply = match pumped {
                Ok(()) => under_way.wait().await.map_err(Broken::Link),
                Err(broken) => Err(broken),
            };
            let told = match reply {
                Ok(reply) => {
                    let until = known.ended_at.unwrap_or_else(Timestamp::now);
                    let lasted = until.since(known.started_at);
                    let outcome = Outcome::from(reply.outcome);
                    Ok(ExecEnd {
                        process: known.process,
                        exit_code: outcome.exit_code(),
                        outcome,
                        truncated: Truncated { stdout: reply.dropped.0, stderr: reply.dropped.1 },
                        duration_ms: u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX),
                        cpu_ms: reply.cpu_usec / 1000,
                        memory_peak_bytes: reply.memory_peak_bytes,
                        task_digest: known.task_digest,
                    })
                }
                Err(Broken::Link(error)) => Err(of_process(&known.process, error)),
                Err(_) => Err(Error::ShuttingDown),
            };
            let _ = end.send(told);
        });
        Ok(task)
    }

    async fn known(&self, seat: &Seat, process: &str) -> Result<Process, Error> {
        let known = self.ledger.process(seat.id(), process).await?;
        known.ok_or_else(|| Error::not_found("process", process))
    }

    /// The commands of a sandbox, newest first.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn processes(
        &self,
        caller: &Caller,
        sandbox: &str,
        query: &PageQuery,
    ) -> Result<Page<Process>, Error> {
        let by = Provenance::default();
        let seat = self.find_to_read(caller, Operation::ProcessList, sandbox, &by).await?;
        query.validate()?;
        Ok(self.ledger.processes(seat.id(), query).await?)
    }

    /// One command of a sandbox.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn process(
        &self,
        caller: &Caller,
        sandbox: &str,
        process: &str,
    ) -> Result<Process, Error> {
        let by = Provenance::default();
        let seat = self.find_to_read(caller, Operation::ProcessGet, sandbox, &by).await?;
        self.known(&seat, process).await
    }

    /// Sends a signal to a command.
    ///
    /// # Errors
    /// `NotFound`, `State`, `Guest`.
    pub async fn signal(
        &self,
        caller: &Caller,
        sandbox: &str,
        process: &str,
        signal: i32,
        by: &Provenance,
    ) -> Result<(), Error> {
        api::Signal { signal }.validate()?;
        let operation = Signal { process: process.to_owned(), signal };
        let detail = json!({"process": process, "signal": signal});
        self.tell(caller, Operation::ProcessSignal, sandbox, &operation, detail, by)
            .await
            .map_err(|error| about_process(process, error))
            .map(drop)
    }

    /// Gives a command's terminal another size.
    ///
    /// # Errors
    /// `NotFound`, `State`, `Guest`.
    pub async fn resize(
        &self,
        caller: &Caller,
        sandbox: &str,
        process: &str,
        size: WindowSize,
        by: &Provenance,
    ) -> Result<(), Error> {
        size.validate()?;
        let seat = self.find(caller, Operation::ProcessResize, sandbox, by).await?;
        let running = seat.running()?;
        let operation = Resize { process: process.to_owned(), size: size.into() };
        // No record: it changes nothing but what is drawn.
        running.guest.ask(&operation).await.map_err(|error| of_process(process, error))?;
        Ok(())
    }

    /// A way to feed a detached command. Without [`Stdin::finish`], its stdin stays open.
    ///
    /// # Errors
    /// `NotFound`, `State`, `Guest`.
    pub async fn stdin(
        &self,
        caller: &Caller,
        sandbox: &str,
        process: &str,
        by: &Provenance,
    ) -> Result<Feed, Error> {
        let seat = self.find(caller, Operation::ProcessInput, sandbox, by).await?;
        self.known(&seat, process).await?;
        let running = seat.running()?;
        let entry = self.entry(caller, Operation::ProcessInput, by).about(&seat.row());
        let entry = entry.with_detail("process", process).with_outcome("accepted");
        self.ledger.commit(Batch::entry(entry)).await?;
        let operation = StdinOperation { process: process.to_owned() };
        let call = running.guest.call(&operation).map_err(|error| of_process(process, error))?;
        Ok(Feed { call, process: process.to_owned() })
    }
}

/// Input for a detached command.
#[derive(Debug)]
pub struct Feed {
    call: supervisor::Call<StdinOperation>,
    process: String,
}

impl Feed {
    /// Sends all of the bytes, as fast as the command takes them.
    ///
    /// # Errors
    /// `Guest` where the sandbox is gone.
    pub async fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        self.call.input().write(bytes).await.map_err(Error::Guest)
    }

    /// Ends the command's stdin, and waits until it has taken all.
    ///
    /// # Errors
    /// `NotFound`, `Guest`.
    pub async fn finish(self) -> Result<(), Error> {
        self.call.input().finish();
        self.call.reply().await.map_err(|error| of_process(&self.process, error))?;
        Ok(())
    }
}

/// Whether a sandbox is not gone that does not answer: on disk, its commands are followed again when
/// it is back.
async fn goes_on(seat: &Seat) -> bool {
    let row = seat.until(|row| row.state != State::Hibernating).await;
    row.state == State::Hibernated
}

/// What is known of a command that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    pub(crate) reply: Option<ExecReply>,
    /// The audit's outcome.
    pub(crate) code: &'static str,
}

impl Ended {
    pub(crate) fn lost(reason: impl Into<String>, code: &'static str) -> Self {
        Self { outcome: Outcome::Lost { reason: reason.into() }, reply: None, code }
    }
}

fn judge(reply: Result<ExecReply, Broken>) -> (Ended, Result<(), Error>) {
    match reply {
        Ok(reply) => {
            let outcome = reply.outcome.clone().into();
            let code = match outcome {
                Outcome::TimedOut { .. } => "timed_out",
                _ => "ended",
            };
            (Ended { outcome, reply: Some(reply), code }, Ok(()))
        }
        Err(Broken::Abandoned) => {
            (Ended::lost("its caller went away", "abandoned"), Err(Error::ShuttingDown))
        }
        Err(Broken::Overdue) => (
            Ended::lost("the guest did not say that its time was up", "guest_timeout"),
            Err(Error::Overdue),
        ),
        Err(Broken::Link(error)) => {
            let problem = Error::Guest(error.clone()).problem();
            (Ended::lost(error.to_string(), problem.code.as_str()), Err(Error::Guest(error)))
        }
    }
}

/// A command of which nothing is known yet but that it was accepted.
pub(crate) fn new_process(name: &str, row: &Sandbox, exec: &Exec, caller: &Caller) -> Process {
    Process {
        process: name.to_owned(),
        sandbox: row.id.clone(),
        command: Some(rules::command_text(&exec.command)),
        created_by: Some(caller.subject.clone()),
        detached: exec.detach,
        tty: exec.tty.is_some(),
        started_at: Timestamp::now(),
        ended_at: None,
        outcome: Outcome::Running,
        exit_code: None,
        cpu_ms: None,
        memory_peak_bytes: None,
        task_digest: String::new(),
    }
}

/// A task of which there is nothing more to hear now: what is known of it is its end.
fn done(process: &Process) -> Task {
    let end = ExecEnd {
        process: process.process.clone(),
        outcome: process.outcome.clone(),
        exit_code: process.exit_code,
        truncated: Truncated::default(),
        duration_ms: process.ended_at.map_or(0, |ended| {
            u64::try_from(ended.since(process.started_at).as_millis()).unwrap_or(u64::MAX)
        }),
        cpu_ms: process.cpu_ms.unwrap_or(0),
        memory_peak_bytes: process.memory_peak_bytes.unwrap_or(0),
        task_digest: process.task_digest.clone(),
    };
    over(process, Ok(end))
}

fn over(process: &Process, ended: Result<ExecEnd, Error>) -> Task {
    let (sender, end) = oneshot::channel();
    let _ = sender.send(ended);
    Task {
        process: process.process.clone(),
        task_digest: process.task_digest.clone(),
        output: mpsc::channel(1).1,
        stdin: None,
        end,
    }
}

pub(crate) fn not_running(state: State) -> Error {
    let remedy = match state {
        State::Paused => "resume it first",
        State::Requested | State::Provisioning => "wait until it is ready",
        State::Hibernating => "it is brought to disk: ask again",
        State::Hibernated => "resume it first",
        State::Stopped | State::Failed => "start it first",
        _ => "it is going away",
    };
    Error::State { state, remedy }
}

fn of_process(name: &str, error: LinkError) -> Error {
    match error {
        LinkError::Operation(error) if error.code == op::ErrorCode::NotFound => {
            Error::not_found("process", name)
        }
        error => Error::Guest(error),
    }
}

fn about_process(name: &str, error: Error) -> Error {
    match error {
        Error::Guest(error) => of_process(name, error),
        error => error,
    }
}

/// The operation that the guest is sent. It holds the secrets, and is not kept.
fn operation(seat: &Seat, exec: Exec, name: &str) -> Result<op::Exec, Error> {
    let text = |field: &str, value: String| {
        Text::new(value)
            .map_err(|error| Error::from(api::Problem::invalid(field, error.to_string())))
    };
    let mut env = lock(&seat.env).clone();
    env.extend(exec.env);
    let env = env
        .into_iter()
        .map(|(name, value)| Ok((text("env", name)?, value)))
        .collect::<Result<_, Error>>()?;
    Ok(op::Exec {
        process: name.to_owned(),
        command: exec.command,
        cwd: exec.cwd.map(|cwd| text("cwd", cwd)).transpose()?,
        env,
        user: exec.user.map(|user| text("user", user)).transpose()?,
        tty: exec.tty.map(Into::into),
        stdin: exec.stdin,
        timeout_ms: exec.timeout_sec.map(|sec| sec.saturating_mul(1000)),
        kill_grace_ms: exec.kill_grace_ms.unwrap_or(Exec::KILL_GRACE_MS),
        limits: exec.limits.map(Into::into).unwrap_or_default(),
        detach: exec.detach,
    })
}

async fn pump(
    from: Option<GuestOutput>,
    stream: Stream,
    to: &mpsc::Sender<Output>,
    mut offset: u64,
) -> Result<(), Broken> {
    let Some(from) = from else { return Ok(()) };
    while let Some(bytes) = from.read().await? {
        let next = offset + bytes.len() as u64;
        let output = Output { stream, offset, bytes };
        to.send(output).await.map_err(|_| Broken::Abandoned)?;
        offset = next;
    }
    Ok(())
}

/// Puts lines of an output into the sandbox's log.
async fn lines(
    seat: &Seat,
    from: Option<GuestOutput>,
    source: LogSource,
    process: &str,
) -> Result<(), LinkError> {
    let Some(from) = from else { return Ok(()) };
    let mut rest: Vec<u8> = Vec::new();
    while let Some(bytes) = from.read().await? {
        rest.extend_from_slice(&bytes);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            seat.log(source, Some(process), &String::from_utf8_lossy(&line[..end]));
        }
        if rest.len() >= LOG_LINE {
            seat.log(source, Some(process), &String::from_utf8_lossy(&rest));
            rest.clear();
        }
    }
    if !rest.is_empty() {
        seat.log(source, Some(process), &String::from_utf8_lossy(&rest));
    }
    Ok(())
}
