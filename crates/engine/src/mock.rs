//! An engine without a machine, for tests of programs that use Sandforge.
//!
//! It speaks the real wire with real signatures, and answers each command as it was told to.
//! Everything is deterministic: no clock, no process, no file.
//!
//! ```
//! use engine::mock::{Mock, Reply};
//! let mock = Mock::default().on(["make", "test"], Reply::exit(0).stdout("ok\n"));
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use wire::connection::{Connection, Event, Side, WINDOW};
use wire::envelope::Opener;
use wire::frame::StreamId;
use wire::handshake::{Hello, Scanner, knock};
use wire::op::{
    AgentOpen, Command, Done, ErrorCode, Exec, ExecReply, OpError, Operation, Outcome, Processes,
};
use zeroize::Zeroizing;

use crate::{
    BootSpec, Capabilities, Carrier, EngineError, Isolation, Machine, Preflight, SandboxBackend,
    Stats, Unavailable,
};

/// What a command of the mock does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    outcome: Outcome,
}

impl Reply {
    /// Exits with this code.
    pub fn exit(code: u8) -> Self {
        Self::outcome(Outcome::Exited { code })
    }

    /// Ends like this.
    pub fn outcome(outcome: Outcome) -> Self {
        Self { stdout: Vec::new(), stderr: Vec::new(), outcome }
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
}

/// An engine whose guests follow a script. A command that the script does not know is "not
/// found", and every command that was asked for is recorded.
#[derive(Debug, Clone, Default)]
pub struct Mock {
    script: BTreeMap<Vec<Vec<u8>>, Reply>,
    unavailable: Option<Unavailable>,
    commands: Arc<Mutex<Vec<Vec<String>>>>,
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

    /// The commands that were asked for, in order.
    pub fn commands(&self) -> Vec<Vec<String>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
        Capabilities { max_cpus: 1, ..Capabilities::default() }
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
        let key = spec
            .agent_arguments
            .iter()
            .find_map(|argument| argument.strip_prefix("sandforge.key="))
            .and_then(wire::envelope::key_from_hex)
            .ok_or_else(|| EngineError::Boot {
                step: "read the agent's arguments",
                reason: "there is no sandforge.key".into(),
            })?;
        let (host, guest) = tokio::io::duplex(WINDOW);
        let agent = Agent { mock: self.clone(), opener: Opener::new(key, spec.sandbox) };
        let task = tokio::spawn(agent.serve(guest));
        Ok(Box::new(MockMachine { carrier: Some(host), task }))
    }
}

#[derive(Debug)]
struct MockMachine {
    carrier: Option<DuplexStream>,
    task: tokio::task::JoinHandle<()>,
}

#[async_trait]
impl Machine for MockMachine {
    fn carrier(&mut self) -> Result<Box<dyn Carrier>, EngineError> {
        match self.carrier.take() {
            Some(carrier) => Ok(Box::new(carrier)),
            None => Err(EngineError::Ended("its carrier was taken already".into())),
        }
    }

    fn monitor_pid(&self) -> Option<u32> {
        None
    }

    fn stats(&self) -> Result<Stats, EngineError> {
        Ok(Stats::default())
    }

    async fn ended(&mut self) -> String {
        let _ = (&mut self.task).await;
        "the mock was told to stop".into()
    }

    async fn kill(&mut self) -> Result<(), EngineError> {
        self.task.abort();
        Ok(())
    }
}

impl Drop for MockMachine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Agent {
    mock: Mock,
    opener: Opener,
}

impl Agent {
    async fn serve(mut self, mut carrier: DuplexStream) {
        let mut scanner = Scanner::any();
        let mut bytes = vec![0; 64 << 10];
        let (nonce, rest) = loop {
            let Ok(count @ 1..) = carrier.read(&mut bytes).await else { return };
            if let Some((nonce, used)) = scanner.scan(&bytes[..count]) {
                break (nonce, bytes[used..count].to_vec());
            }
        };
        let hello = serde_json::to_vec(&Hello::new("mock", 0)).expect("plain JSON");
        let mut connection = Connection::new(Side::Agent, hello);
        if carrier.write_all(&knock(&nonce)).await.is_err() || connection.receive(&rest).is_err() {
            return;
        }
        loop {
            while let Some(event) = connection.poll_event() {
                self.handle(&mut connection, event);
            }
            let mut out = Zeroizing::default();
            connection.transmit(&mut out, usize::MAX);
            if carrier.write_all(&out).await.is_err() {
                return;
            }
            let Ok(count @ 1..) = carrier.read(&mut bytes).await else { return };
            if connection.receive(&bytes[..count]).is_err() {
                return;
            }
        }
    }

    fn handle(&mut self, connection: &mut Connection, event: Event) {
        match event {
            Event::Opened(id, envelope) => {
                if let Err(error) = self.answer(connection, id, &envelope) {
                    connection.reset(id, &error);
                }
            }
            Event::Data(id, bytes) => connection.consumed(id, bytes.len()),
            Event::Hello(_)
            | Event::Closed(..)
            | Event::Reset(..)
            | Event::Writable(_)
            | Event::Pong(_)
            | Event::Knock(_) => {}
        }
    }

    fn answer(
        &mut self,
        connection: &mut Connection,
        id: StreamId,
        envelope: &[u8],
    ) -> Result<(), OpError> {
        let opened = self.opener.open(envelope, 0)?;
        let done = || serde_json::to_vec(&Done {}).expect("plain JSON");
        match opened.op {
            Exec::NAME => {
                let exec: Exec = serde_json::from_slice(opened.payload)
                    .map_err(|error| OpError::new(ErrorCode::Invalid, error.to_string()))?;
                let reply = self.run(exec.command);
                if exec.tty.is_none() && !exec.detach {
                    let stderr = AgentOpen::Stderr { of: id };
                    let stderr = serde_json::to_vec(&stderr).expect("plain JSON");
                    let stderr = connection
                        .open(Zeroizing::new(stderr))
                        .map_err(|error| OpError::new(ErrorCode::TooMany, error.to_string()))?;
                    connection.send(stderr, reply.stderr);
                    connection.close(stderr, Vec::new());
                }
                connection.send(id, reply.stdout);
                let reply = ExecReply {
                    outcome: reply.outcome,
                    cpu_usec: 0,
                    memory_peak_bytes: 0,
                    dropped: (0, 0),
                };
                connection.close(id, serde_json::to_vec(&reply).expect("plain JSON"));
            }
            Processes::NAME => connection.close(id, br#"{"processes":[]}"#.to_vec()),
            "clock" | "reseed" | "signal" | "resize" | "stdin" | "shutdown" => {
                connection.close(id, done());
            }
            other => {
                let message = format!("the mock engine has no {other}");
                return Err(OpError::new(ErrorCode::Unsupported, message));
            }
        }
        Ok(())
    }

    fn run(&self, command: Command) -> Reply {
        let argv: Vec<Vec<u8>> = match command {
            Command::Argv(argv) => argv.into_iter().map(wire::text::Text::into_bytes).collect(),
            Command::Shell(line) => vec![b"sh".to_vec(), b"-c".to_vec(), line.into_bytes()],
        };
        let printed: Vec<String> =
            argv.iter().map(|argument| String::from_utf8_lossy(argument).into_owned()).collect();
        let name = printed.first().cloned().unwrap_or_default();
        self.mock.commands.lock().unwrap_or_else(PoisonError::into_inner).push(printed);
        self.mock
            .script
            .get(&argv)
            .cloned()
            .unwrap_or_else(|| Reply::outcome(Outcome::NotFound { command: name }))
    }
}
