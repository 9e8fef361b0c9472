//! A guest in one line.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use crate::internet::Internet;
use supervisor::wire::op::{Command, Exec, ExecReply, OpError, Operation, Outcome, Transferred};
use supervisor::wire::text::{Secret, Text};
use supervisor::{EngineReport, Isolation, Launcher, LinkError, Sandbox, SandboxSpec, Supervisor};

/// Runs `test` with a fresh guest of each engine of this machine.
pub(crate) fn with_guest(test: impl AsyncFnMut(&Sandbox)) {
    with_spec(&SandboxSpec { cpus: Some(1), memory_mb: 512, ..SandboxSpec::default() }, test);
}

/// Runs `test` with a fresh sandbox of every tier: a guest of each engine, and one without a kernel
/// of its own. For what holds in all of them.
pub(crate) fn with_sandbox(mut test: impl AsyncFnMut(&Sandbox)) {
    with_guest(&mut test);
    with_process(test);
}

/// Small sandboxes of every tier that runs here.
pub(crate) fn engines_with_process() -> impl Iterator<Item = SandboxSpec> {
    let process = has_process().then(|| SandboxSpec { cpus: None, ..spec_of(PROCESS) });
    engines().iter().map(|engine| spec_of(engine)).chain(process)
}

/// Runs `test` with a fresh sandbox of every tier that has a network.
pub(crate) fn with_network(mut test: impl AsyncFnMut(&Sandbox, &Internet)) {
    for spec in engines_with_process() {
        eprintln!("on engine {:?}", spec.engine);
        block_on(async {
            let internet = Internet::new();
            let spec = SandboxSpec { network: Some(internet.network()), ..spec };
            let sandbox = supervisor().create(spec, &mut ()).await.expect("a sandbox");
            test(&sandbox, &internet).await;
            sandbox.destroy().await.expect("its end");
        });
    }
}

/// Runs `test` with a fresh sandbox on the host's kernel.
pub(crate) fn with_process(test: impl AsyncFnOnce(&Sandbox)) {
    if !has_process() {
        return;
    }
    eprintln!("on engine {PROCESS}");
    block_on(async {
        let engine = Some(PROCESS.into());
        let spec = SandboxSpec { engine, memory_mb: 512, ..SandboxSpec::default() };
        let sandbox = supervisor().create(spec, &mut ()).await.expect("a sandbox");
        test(&sandbox).await;
        sandbox.destroy().await.expect("its end");
    });
}

/// The engine without machines.
pub(crate) const PROCESS: &str = "process";

/// Whether it runs here.
pub(crate) fn has_process() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let found = block_on(supervisor().engine(PROCESS).expect("it is built in").available());
        if let Err(reason) = &found {
            eprintln!("not run on engine {PROCESS}: {reason}");
        }
        found.is_ok()
    })
}

pub(crate) fn with_spec(spec: &SandboxSpec, mut test: impl AsyncFnMut(&Sandbox)) {
    for engine in engines() {
        eprintln!("on engine {engine}");
        block_on(async {
            let spec = SandboxSpec { engine: Some(engine.clone()), ..spec.clone() };
            let sandbox = supervisor().create(spec, &mut ()).await.expect("a guest");
            test(&sandbox).await;
            sandbox.destroy().await.expect("its end");
        });
    }
}

/// A small guest of this engine.
pub(crate) fn spec_of(engine: &str) -> SandboxSpec {
    SandboxSpec {
        cpus: Some(1),
        memory_mb: 512,
        engine: Some(engine.into()),
        ..SandboxSpec::default()
    }
}

/// The engines whose guests have a kernel of their own, of those that run here.
pub(crate) fn engines() -> &'static [String] {
    static ENGINES: OnceLock<Vec<String>> = OnceLock::new();
    ENGINES.get_or_init(|| {
        let doctor = block_on(supervisor().doctor());
        let machines = |engine: &&EngineReport| engine.isolation >= Isolation::Emulated;
        let (usable, unusable): (Vec<_>, Vec<_>) =
            doctor.engines.iter().filter(machines).partition(|engine| engine.is_usable());
        for engine in unusable {
            eprintln!("not run on engine {}: {:?}", engine.name, engine.verdict);
        }
        assert!(!usable.is_empty(), "no engine runs here: {:?}", doctor.advice);
        usable.into_iter().map(|engine| engine.name.to_owned()).collect()
    })
}

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work)
}

pub(crate) fn supervisor() -> Supervisor {
    Supervisor::new(launcher()).expect("an image store")
}

pub(crate) fn launcher() -> Launcher {
    Launcher { program: env!("CARGO_BIN_EXE_sandforge").into(), arguments: vec!["__launch".into()] }
}

/// What a command came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) outcome: Outcome,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Its output, where it succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.outcome, Outcome::Exited { code: 0 }, "{self:?}");
        self.stdout
    }

    pub(crate) fn code(&self) -> Option<u8> {
        match self.outcome {
            Outcome::Exited { code } => Some(code),
            _ => None,
        }
    }
}

/// An exec with nothing special about it; tests change what they are about.
pub(crate) fn exec(command: Command) -> Exec {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let process = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
    Exec { kill_grace_ms: 2_000, ..Exec::new(process, command) }
}

pub(crate) fn shell(line: &str) -> Exec {
    exec(Command::Shell(Text::from(line)))
}

pub(crate) fn argv(arguments: &[&str]) -> Exec {
    exec(Command::Argv(arguments.iter().map(|argument| Text::from(*argument)).collect()))
}

pub(crate) fn env(pairs: &[(&str, &str)]) -> BTreeMap<Text, Secret> {
    pairs
        .iter()
        .map(|(key, value)| (Text::from(*key), Secret::new(value.as_bytes().to_vec()).unwrap()))
        .collect()
}

/// Runs to the end with all output.
pub(crate) async fn run(sandbox: &Sandbox, exec: Exec) -> Ran {
    try_run(sandbox, exec).await.expect("an end")
}

pub(crate) async fn try_run(sandbox: &Sandbox, exec: Exec) -> Result<Ran, LinkError> {
    run_in(sandbox.guest(), exec).await
}

/// The same in a guest that no supervisor knows.
pub(crate) async fn run_in(guest: &supervisor::Guest, exec: Exec) -> Result<Ran, LinkError> {
    let process = guest.exec(&exec)?;
    let (stdout, stderr) = (process.stdout(), process.stderr().await?);
    let stderr = async {
        match &stderr {
            Some(stderr) => stderr.read_to_end().await,
            None => Ok(Vec::new()),
        }
    };
    let (stdout, stderr) = tokio::join!(stdout.read_to_end(), stderr);
    let (stdout, stderr) = (stdout?, stderr?);
    let ExecReply { outcome, .. } = process.wait().await?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Ran { outcome, stdout: text(stdout), stderr: text(stderr) })
}

pub(crate) async fn sh(sandbox: &Sandbox, line: &str) -> Ran {
    run(sandbox, shell(line)).await
}

/// Feeds an operation and waits for its reply.
pub(crate) async fn put<O>(
    sandbox: &Sandbox,
    operation: &O,
    bytes: &[u8],
) -> Result<O::Reply, LinkError>
where
    O: Operation,
{
    let call = sandbox.guest().call(operation)?;
    let input = call.input();
    input.write(bytes).await?;
    input.finish();
    call.reply().await
}

/// An operation's whole output.
pub(crate) async fn get<O>(sandbox: &Sandbox, operation: &O) -> Result<Vec<u8>, LinkError>
where
    O: Operation<Reply = Transferred>,
{
    let call = sandbox.guest().call(operation)?;
    let input = call.input();
    input.finish();
    let bytes = call.output().read_to_end().await?;
    call.reply().await?;
    Ok(bytes)
}

/// The agent's refusal.
#[track_caller]
pub(crate) fn refusal<T: std::fmt::Debug>(result: Result<T, LinkError>) -> OpError {
    match result {
        Err(LinkError::Operation(error)) => error,
        other => panic!("expected a refusal, not {other:?}"),
    }
}
