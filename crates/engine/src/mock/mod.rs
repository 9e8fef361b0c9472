//! An engine without a machine, for tests of programs that use Sandforge.
//!
//! It speaks the real wire with real signatures, and answers each command as it was told to. Its
//! guests live in the calling process; with [`Mock::hosted_by`], those that are to outlive it
//! live in a process of their own.
//!
//! ```
//! use engine::mock::{Mock, Reply};
//! let mock = Mock::default().on(["make", "test"], Reply::exit(0).stdout("ok\n"));
//! ```

mod agent;
mod machine;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener as StdListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::UnixListener;
use wire::connection::WINDOW;
use wire::envelope::Opener;
use wire::op::{Command, Outcome};

use agent::Agent;
use machine::{HostedMachine, LocalMachine};

use crate::attach::Attached;
use crate::{
    Attachment, BootSpec, Capabilities, EngineError, Isolation, Machine, Preflight, SandboxBackend,
    System, Unavailable,
};

/// What a command of the mock does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    outcome: Outcome,
    until: Until,
}

/// When a command ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    Started,
    Passed(Duration),
    InputEnds,
    Signalled,
}

impl Reply {
    /// Exits with this code.
    pub fn exit(code: u8) -> Self {
        Self::outcome(Outcome::Exited { code })
    }

    /// Ends like this.
    pub fn outcome(outcome: Outcome) -> Self {
        Self { stdout: Vec::new(), stderr: Vec::new(), outcome, until: Until::Started }
    }

    /// Writes its input to stdout, and exits with 0 when that ends.
    pub fn echo() -> Self {
        Self { until: Until::InputEnds, ..Self::exit(0) }
    }

    /// Writes this to stdout first; 256 KiB at most.
    #[must_use]
    pub fn stdout(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdout = bytes.into();
        assert!(self.stdout.len() <= WINDOW, "the mock writes one window at most");
        self
    }

    /// Writes this to stderr first; 256 KiB at most.
    #[must_use]
    pub fn stderr(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stderr = bytes.into();
        assert!(self.stderr.len() <= WINDOW, "the mock writes one window at most");
        self
    }

    /// Ends after this time.
    #[must_use]
    pub fn after(mut self, time: Duration) -> Self {
        self.until = Until::Passed(time);
        self
    }

    /// Goes on until a signal or its timeout ends it.
    #[must_use]
    pub fn until_signalled(mut self) -> Self {
        self.until = Until::Signalled;
        self
    }
}

/// Commands that are remembered.
const MOST_COMMANDS: usize = 10_000;

/// An engine whose guests follow a script. A command that the script does not know is "not
/// found", and every command that was asked for is recorded.
#[derive(Debug, Clone, Default)]
pub struct Mock {
    script: BTreeMap<Vec<Vec<u8>>, Reply>,
    unavailable: Option<Unavailable>,
    boot_takes: Duration,
    no_snapshots: bool,
    host: Option<Host>,
    commands: Arc<Mutex<VecDeque<Vec<String>>>>,
}

/// The program whose processes are guests.
#[derive(Debug, Clone)]
struct Host {
    program: PathBuf,
    arguments: Vec<String>,
}

impl Mock {
    /// Answers these arguments so; a shell line counts as `sh -c LINE`.
    #[must_use]
    pub fn on<const N: usize>(mut self, argv: [&str; N], reply: Reply) -> Self {
        self.script
            .insert(argv.iter().map(|argument| argument.as_bytes().to_vec()).collect(), reply);
        self
    }

    /// Fails its preflight and every boot for this reason.
    #[must_use]
    pub fn unavailable(mut self, reason: Unavailable) -> Self {
        self.unavailable = Some(reason);
        self
    }

    /// Every boot takes this long.
    #[must_use]
    pub fn boot_takes(mut self, time: Duration) -> Self {
        self.boot_takes = time;
        self
    }

    /// Its machines cannot be saved.
    #[must_use]
    pub fn without_snapshots(mut self) -> Self {
        self.no_snapshots = true;
        self
    }

    /// Guests that are to outlive this process are processes of this program, which must call
    /// [`Mock::host`] with the two arguments that come after these.
    #[must_use]
    pub fn hosted_by(mut self, program: impl Into<PathBuf>, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        self.host = Some(Host { program: program.into(), arguments });
        self
    }

    /// Is a guest until it is told to stop or killed; stdin is the socket that it listens on.
    ///
    /// # Errors
    /// Where the arguments or stdin are not what [`Mock::hosted_by`] starts a process with.
    pub async fn host(self, sandbox: &str, key: &str) -> io::Result<()> {
        let key = wire::envelope::key_from_hex(key)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it is not a key"))?;
        let listener = StdListener::from(io::stdin().as_fd().try_clone_to_owned()?);
        listener.set_nonblocking(true)?;
        let mut agent = Agent::new(self, Opener::new(key, sandbox));
        agent.listen(&UnixListener::from_std(listener)?).await;
        Ok(())
    }

    /// The last 10,000 commands that were asked for in this process, in order.
    pub fn commands(&self) -> Vec<Vec<String>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn reply(&self, command: Command) -> Reply {
        let argv: Vec<Vec<u8>> = match command {
            Command::Argv(argv) => argv.into_iter().map(wire::text::Text::into_bytes).collect(),
            Command::Shell(line) => vec![b"sh".to_vec(), b"-c".to_vec(), line.into_bytes()],
        };
        let printed: Vec<String> =
            argv.iter().map(|argument| String::from_utf8_lossy(argument).into_owned()).collect();
        let name = printed.first().cloned().unwrap_or_default();
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        if commands.len() >= MOST_COMMANDS {
            commands.pop_front();
        }
        commands.push_back(printed);
        drop(commands);
        self.script
            .get(&argv)
            .cloned()
            .unwrap_or_else(|| Reply::outcome(Outcome::NotFound { command: name }))
    }
}

#[async_trait]
impl SandboxBackend for Mock {
    fn name(&self) -> &'static str {
        "mock"
    }

    fn isolation(&self) -> Isolation {
        Isolation::Process
    }

    fn capabilities(&self) -> Capabilities {
        let pause = self.host.is_none();
        Capabilities { pause, snapshot: pause && !self.no_snapshots, fork: false, max_cpus: 1 }
    }

    async fn preflight(&self) -> Result<Preflight, Unavailable> {
        match &self.unavailable {
            Some(reason) => Err(reason.clone()),
            None => Ok(Preflight {
                monitor: "mock".into(),
                confinement: Vec::new(),
                notes: vec!["nothing runs: every answer comes from the test's script".into()],
            }),
        }
    }

    async fn boot(&self, spec: BootSpec) -> Result<Box<dyn Machine>, EngineError> {
        self.preflight().await?;
        tokio::time::sleep(self.boot_takes).await;
        let failed =
            |step| move |error: io::Error| EngineError::Boot { step, reason: error.to_string() };
        if let System::Saved(saved) = &spec.system {
            let memory = whole(&saved.snapshot.memory).map_err(failed("read what was saved"))?;
            let state = whole(&saved.snapshot.state).map_err(failed("read what was saved"))?;
            let agent =
                (state == machine::STATE).then(|| Agent::from_memory(self.clone(), &memory));
            let agent = agent.flatten().ok_or_else(|| EngineError::Boot {
                step: "read what was saved",
                reason: "it is no snapshot of the mock's".into(),
            })?;
            return self.start(agent, &spec.attachment).await;
        }
        let hex = spec
            .agent_arguments
            .iter()
            .find_map(|argument| argument.strip_prefix("sandforge.key="))
            .unwrap_or_default();
        let is_template = spec.agent_arguments.iter().any(|word| word == "sandforge.template");
        let opener = match wire::envelope::key_from_hex(hex) {
            Some(key) => Opener::new(key, &spec.sandbox),
            None if is_template => Opener::of_template(),
            None => {
                return Err(EngineError::Boot {
                    step: "read the agent's arguments",
                    reason: "there is no sandforge.key".into(),
                });
            }
        };
        match &self.host {
            Some(host) if spec.attachment != Attachment::Owned => {
                let attached =
                    Attached::new(&spec.attachment).map_err(failed("make the carrier"))?;
                let machine = HostedMachine::start(host, &spec.sandbox, hex, attached).await;
                Ok(Box::new(machine.map_err(failed("start the guest"))?))
            }
            _ => {
                let agent = Agent::new(self.clone(), opener);
                self.start(agent, &spec.attachment).await
            }
        }
    }
}

impl Mock {
    /// A machine in this process.
    async fn start(
        &self,
        agent: Agent,
        attachment: &Attachment,
    ) -> Result<Box<dyn Machine>, EngineError> {
        let failed =
            |step| move |error: io::Error| EngineError::Boot { step, reason: error.to_string() };
        if *attachment == Attachment::Owned {
            return Ok(Box::new(LocalMachine::owned(agent)));
        }
        let attached = Attached::new(attachment).map_err(failed("make the carrier"))?;
        let machine = LocalMachine::listening(agent, attached).await;
        Ok(Box::new(machine.map_err(failed("reach the carrier"))?))
    }
}

/// Most bytes of a mock's memory.
const MOST_MEMORY: u64 = 64 << 20;

fn whole(mut file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(MOST_MEMORY).read_to_end(&mut bytes)?;
    Ok(bytes)
}
