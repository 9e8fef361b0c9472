//! Running commands, and the processes that come of it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::{AnyOfBuilder, OneOfBuilder, Schema};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{IntoParams, PartialSchema, ToSchema};
use wire::op::{self, Command};
use wire::text::Secret;

use crate::bound::{
    self, AnyCommand, Cells, Env, GraceMs, GuestPath, GuestUser, OutputBytes, Position, ProcessId,
    Seconds, SignalNumber, TaskCpu, TaskLog, TaskMemory, TaskPids, only,
};
use crate::object::objects;
use crate::{Problem, Timestamp, Validate};

/// What a WebSocket of `exec` or `pty` says.
pub mod channel {
    /// The sub-protocol that both sides name.
    pub const PROTOCOL: &str = "sandforge.exec.v1";
    /// First byte of a binary message from the client: more of stdin.
    pub const STDIN: u8 = 0;
    /// First byte of a binary message from the client: stdin has ended. Nothing follows it.
    pub const STDIN_END: u8 = 1;
    /// First byte of a binary message from the server: more of stdout, or of a terminal.
    pub const STDOUT: u8 = 1;
    /// First byte of a binary message from the server: more of stderr.
    pub const STDERR: u8 = 2;
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Exec {
    /// What to run.
    #[schema(value_type = bound::AnyCommand)]
    pub command: Command,
    /// Absolute working directory; `/workspace` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::GuestPath>)]
    pub cwd: Option<String>,
    /// Over the sandbox's environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = bound::Env)]
    pub env: BTreeMap<String, Secret>,
    /// `name`, `uid`, or either with `:group`; the image's uid 1000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::GuestUser>)]
    pub user: Option<String>,
    /// Input will come, over WebSocket or to the detached process.
    #[serde(default)]
    pub stdin: bool,
    /// A pseudo-terminal of this size instead of pipes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<WindowSize>,
    /// Wall time in seconds, after which TERM is sent; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Seconds>)]
    pub timeout_sec: Option<u64>,
    /// From TERM to KILL, in milliseconds; 5000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::GraceMs>)]
    pub kill_grace_ms: Option<u64>,
    /// What it may use; the sandbox's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Answer as soon as it has started (202); its output is kept.
    #[serde(default)]
    pub detach: bool,
    /// What it is called in its sandbox; the server chooses when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::ProcessId>)]
    pub name: Option<String>,
    /// Output that a buffered answer gives back, for each stream; 1 MiB when absent. What goes
    /// beyond is counted and dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::OutputBytes>)]
    pub max_output_bytes: Option<u64>,
}

impl Exec {
    /// [`Exec::max_output_bytes`] when absent.
    pub const MAX_OUTPUT_BYTES: u64 = 1 << 20;
    /// [`Exec::kill_grace_ms`] when absent.
    pub const KILL_GRACE_MS: u64 = 5_000;

    /// This command with every default.
    pub fn new(command: Command) -> Self {
        Self {
            command,
            cwd: None,
            env: BTreeMap::new(),
            user: None,
            stdin: false,
            tty: None,
            timeout_sec: None,
            kill_grace_ms: None,
            limits: None,
            detach: false,
            name: None,
            max_output_bytes: None,
        }
    }
}

impl Validate for Exec {
    fn validate(&self) -> Result<(), Problem> {
        AnyCommand::check("command", &self.command)?;
        GuestPath::check_some("cwd", self.cwd.as_deref())?;
        Env::check("env", &self.env)?;
        GuestUser::check_some("user", self.user.as_deref())?;
        if let Some(size) = &self.tty {
            size.validate().map_err(|problem| problem.within("tty"))?;
        }
        Seconds::check_some("timeout_sec", self.timeout_sec)?;
        GraceMs::check_some("kill_grace_ms", self.kill_grace_ms)?;
        if let Some(limits) = &self.limits {
            limits.validate().map_err(|problem| problem.within("limits"))?;
        }
        ProcessId::check_some("name", self.name.as_deref())?;
        OutputBytes::check_some("max_output_bytes", self.max_output_bytes)
    }
}

/// Character cells of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct WindowSize {
    /// Lines.
    #[schema(value_type = bound::Cells)]
    pub rows: u16,
    /// Columns.
    #[schema(value_type = bound::Cells)]
    pub cols: u16,
}

impl Validate for WindowSize {
    fn validate(&self) -> Result<(), Problem> {
        Cells::check("rows", self.rows)?;
        Cells::check("cols", self.cols)
    }
}

impl From<WindowSize> for op::WindowSize {
    fn from(WindowSize { rows, cols }: WindowSize) -> Self {
        Self { rows, cols }
    }
}

impl From<op::WindowSize> for WindowSize {
    fn from(op::WindowSize { rows, cols }: op::WindowSize) -> Self {
        Self { rows, cols }
    }
}

/// Bounds of one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Limits {
    /// Memory in bytes; the guest's less the agent's reserve when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::TaskMemory>)]
    pub memory_bytes: Option<u64>,
    /// Processes; 4096 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::TaskPids>)]
    pub pids: Option<u32>,
    /// Thousandths of a CPU; all of the guest's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::TaskCpu>)]
    pub cpu_millis: Option<u32>,
    /// Kept output of a detached task for each stream, in bytes, the oldest going first; 16 MiB
    /// when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::TaskLog>)]
    pub log_bytes: Option<u64>,
}

impl Validate for Limits {
    fn validate(&self) -> Result<(), Problem> {
        TaskMemory::check_some("memory_bytes", self.memory_bytes)?;
        TaskPids::check_some("pids", self.pids)?;
        TaskCpu::check_some("cpu_millis", self.cpu_millis)?;
        TaskLog::check_some("log_bytes", self.log_bytes)
    }
}

impl From<Limits> for op::Limits {
    fn from(limits: Limits) -> Self {
        let default = Self::default();
        Self {
            memory_bytes: limits.memory_bytes,
            pids: limits.pids.unwrap_or(default.pids),
            cpu_millis: limits.cpu_millis,
            log_bytes: limits.log_bytes.unwrap_or(default.log_bytes),
        }
    }
}

/// What became of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Outcome {
    /// It has not ended.
    Running,
    /// It exited by itself.
    Exited {
        /// 0 to 255.
        code: u8,
    },
    /// A signal ended it.
    Signaled {
        /// The Linux signal number.
        signal: i32,
    },
    /// Its time was up; the signal that it took is told.
    TimedOut {
        /// 15 or 9.
        signal: i32,
    },
    /// The kernel killed it because the task reached its memory's bound.
    OutOfMemory {
        /// The bound in bytes, where the task had one of its own.
        limit_bytes: Option<u64>,
    },
    /// There is no such command.
    NotFound {
        /// What was looked for, for a person.
        command: String,
    },
    /// The file is there but cannot be run.
    NotExecutable {
        /// The system's reason.
        reason: String,
    },
    /// The sandbox went before it ended, or before it was known how.
    Lost {
        /// Why, in words.
        reason: String,
    },
}

impl Outcome {
    /// Whether the process may still run.
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Running)
    }

    /// The exit status that `sandforge exec` has for it; none while it runs.
    pub fn exit_code(&self) -> Option<u8> {
        let signal = |signal: &i32| 128 | (u8::try_from(*signal).unwrap_or(0) & 0x7f);
        Some(match self {
            Self::Running => return None,
            Self::Exited { code } => *code,
            Self::Signaled { signal: number } => signal(number),
            Self::TimedOut { .. } => 124,
            Self::OutOfMemory { .. } => signal(&9),
            Self::NotFound { .. } => 127,
            Self::NotExecutable { .. } => 126,
            Self::Lost { .. } => 125,
        })
    }
}

impl From<op::Outcome> for Outcome {
    fn from(outcome: op::Outcome) -> Self {
        match outcome {
            op::Outcome::Running => Self::Running,
            op::Outcome::Exited { code } => Self::Exited { code },
            op::Outcome::Signaled { signal } => Self::Signaled { signal },
            op::Outcome::TimedOut { signal } => Self::TimedOut { signal },
            op::Outcome::OutOfMemory { limit_bytes } => Self::OutOfMemory { limit_bytes },
            op::Outcome::NotFound { command } => Self::NotFound { command },
            op::Outcome::NotExecutable { reason } => Self::NotExecutable { reason },
        }
    }
}

/// Bytes of each stream that are not in the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Truncated {
    /// Of stdout.
    pub stdout: u64,
    /// Of stderr.
    pub stderr: u64,
}

/// How a command ended, with its output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecResult {
    /// How it ended.
    #[serde(flatten)]
    pub end: ExecEnd,
    /// What it wrote to stdout; invalid UTF-8 is replaced, and then `stdout_base64` is there.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
    /// The bytes of stdout, where they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout_base64: Option<String>,
    /// The bytes of stderr, where they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_base64: Option<String>,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecEnd {
    /// Its name in the sandbox.
    pub process: String,
    /// What became of it.
    pub outcome: Outcome,
    /// The exit status that `sandforge exec` has for it; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// Bytes that were dropped.
    #[serde(default)]
    pub truncated: Truncated,
    /// Wall time in milliseconds.
    pub duration_ms: u64,
    /// CPU time in milliseconds.
    pub cpu_ms: u64,
    /// Highest memory in bytes.
    pub memory_peak_bytes: u64,
    /// SHA-256 of the signed operation that the guest carried out, in hexadecimal.
    pub task_digest: String,
}

/// A command has started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecStarted {
    /// Its name in the sandbox.
    pub process: String,
    /// SHA-256 of the signed operation that the guest carries out, in hexadecimal.
    pub task_digest: String,
}

/// Output, as it comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Chunk {
    /// Bytes of the stream before this.
    pub offset: u64,
    /// The bytes.
    pub data_base64: String,
}

/// An event of a streaming exec or attach: its name and its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum ExecEvent {
    /// `started`, the first of an exec.
    Started(ExecStarted),
    /// `stdout`.
    Stdout(Chunk),
    /// `stderr`.
    Stderr(Chunk),
    /// `exit`, the last one.
    Exit(ExecEnd),
    /// `error`, the last one.
    Error(Problem),
}

impl PartialSchema for ExecEvent {
    fn schema() -> RefOr<Schema> {
        AnyOfBuilder::new()
            .item(Ref::from_schema_name(ExecStarted::name()))
            .item(Ref::from_schema_name(Chunk::name()))
            .item(Ref::from_schema_name(ExecEnd::name()))
            .item(Ref::from_schema_name(Problem::name()))
            .description(Some(
                "The data of the events `started`; `stdout` and `stderr`; `exit`; `error`.",
            ))
            .into()
    }
}

impl ToSchema for ExecEvent {
    fn name() -> Cow<'static, str> {
        "ExecEvent".into()
    }

    fn schemas(schemas: &mut bound::Schemas) {
        schemas.push((ExecStarted::name().into_owned(), ExecStarted::schema()));
        schemas.push((Chunk::name().into_owned(), Chunk::schema()));
        schemas.push((ExecEnd::name().into_owned(), ExecEnd::schema()));
        ExecEnd::schemas(schemas);
    }
}

/// An event is none that this version knows, or its data are not what its name says.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the event `{name}`: {reason}")]
pub struct UnknownEvent {
    name: String,
    reason: String,
}

impl ExecEvent {
    /// The event's name; its data is the JSON of this value.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Started(_) => "started",
            Self::Stdout(_) => "stdout",
            Self::Stderr(_) => "stderr",
            Self::Exit(_) => "exit",
            Self::Error(_) => "error",
        }
    }

    /// The event of this name and data.
    ///
    /// # Errors
    /// `UnknownEvent`.
    pub fn parse(name: &str, data: &str) -> Result<Self, UnknownEvent> {
        let read = match name {
            "started" => serde_json::from_str(data).map(Self::Started),
            "stdout" => serde_json::from_str(data).map(Self::Stdout),
            "stderr" => serde_json::from_str(data).map(Self::Stderr),
            "exit" => serde_json::from_str(data).map(Self::Exit),
            "error" => serde_json::from_str(data).map(Self::Error),
            _ => Err(serde::de::Error::custom("there is no such event")),
        };
        read.map_err(|error| UnknownEvent { name: name.to_owned(), reason: error.to_string() })
    }
}

/// A text message of the client over WebSocket, after the first, which is an [`Exec`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ExecControl {
    /// A new size of the terminal.
    Resize(WindowSize),
    /// A signal to the process group.
    Signal(i32),
}

impl PartialSchema for ExecControl {
    fn schema() -> RefOr<Schema> {
        OneOfBuilder::new()
            .item(only("resize", WindowSize::name()))
            .item(only("signal", SignalNumber::name()))
            .description(Some("A text message of the client over WebSocket, after the first."))
            .into()
    }
}

impl ToSchema for ExecControl {
    fn name() -> Cow<'static, str> {
        "ExecControl".into()
    }

    fn schemas(schemas: &mut bound::Schemas) {
        schemas.push((WindowSize::name().into_owned(), WindowSize::schema()));
    }
}

impl Validate for ExecControl {
    fn validate(&self) -> Result<(), Problem> {
        match self {
            Self::Resize(size) => size.validate().map_err(|problem| problem.within("resize")),
            Self::Signal(signal) => SignalNumber::check("signal", *signal),
        }
    }
}

/// A text message of the server over WebSocket: one when the command has started, and one at
/// the end, after which the server closes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExecFinal {
    /// It has started.
    Started(ExecStarted),
    /// It has ended.
    Exit(ExecEnd),
    /// It could not be run, or not to its end.
    Error(Problem),
}

/// A terminal in one line: without `cmd`, the first message is an [`Exec`] with a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PtyQuery {
    /// Columns; 80 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::Cells>, nullable = false)]
    pub cols: Option<u16>,
    /// Lines; 24 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::Cells>, nullable = false)]
    pub rows: Option<u16>,
    /// A line for `/bin/sh -c`; then no `Exec` is awaited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(min_length = 1, max_length = 4096, pattern = "^[^\\x00]*$", nullable = false)]
    pub cmd: Option<String>,
}

impl Validate for PtyQuery {
    fn validate(&self) -> Result<(), Problem> {
        Cells::check_some("cols", self.cols)?;
        Cells::check_some("rows", self.rows)?;
        match &self.cmd {
            Some(cmd) if cmd.contains('\0') || !(1..=4096).contains(&cmd.chars().count()) => {
                Err(Problem::invalid("cmd", "must be 1 to 4096 characters without NUL"))
            }
            _ => Ok(()),
        }
    }
}

/// A process of a sandbox: each command that was run, until it is forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Process {
    /// Its name in the sandbox.
    pub process: String,
    /// Its sandbox.
    pub sandbox: String,
    /// What runs, for a person: words that a shell would read as these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Who ran it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Whether it was started detached.
    pub detached: bool,
    /// Whether it has a terminal.
    pub tty: bool,
    /// When it started.
    pub started_at: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// What has become of it.
    pub outcome: Outcome,
    /// The exit status that `sandforge exec` has for it; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// CPU time in milliseconds, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
    /// Highest memory in bytes, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,
    /// SHA-256 of the signed operation, in hexadecimal.
    pub task_digest: String,
}

/// From where the output of a detached process is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AttachQuery {
    /// Bytes of stdout that the caller already has.
    #[serde(default)]
    #[param(value_type = bound::Position)]
    pub stdout_offset: u64,
    /// Bytes of stderr that the caller already has.
    #[serde(default)]
    #[param(value_type = bound::Position)]
    pub stderr_offset: u64,
    /// Go on until the process ends.
    #[serde(default)]
    pub follow: bool,
    /// Output that a buffered answer gives back, for each stream; 1 MiB when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::OutputBytes>, nullable = false)]
    pub max_output_bytes: Option<u64>,
}

impl Validate for AttachQuery {
    fn validate(&self) -> Result<(), Problem> {
        Position::check("stdout_offset", self.stdout_offset)?;
        Position::check("stderr_offset", self.stderr_offset)?;
        OutputBytes::check_some("max_output_bytes", self.max_output_bytes)
    }
}

/// Output of a detached process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AttachResult {
    /// How it ended, or that it runs, with its output from the offsets on.
    #[serde(flatten)]
    pub result: ExecResult,
    /// `stdout_offset` for what comes next.
    pub next_stdout_offset: u64,
    /// `stderr_offset` for what comes next.
    pub next_stderr_offset: u64,
}

/// A signal to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Signal {
    /// The Linux signal number. KILL goes to the whole task, others to its process group.
    #[schema(value_type = bound::SignalNumber)]
    pub signal: i32,
}

impl Validate for Signal {
    fn validate(&self) -> Result<(), Problem> {
        SignalNumber::check("signal", self.signal)
    }
}

/// Input for a detached process; the body is the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StdinQuery {
    /// Its stdin ends after these bytes.
    #[serde(default)]
    pub end: bool,
}

impl Validate for StdinQuery {
    fn validate(&self) -> Result<(), Problem> {
        Ok(())
    }
}

objects!(Exec, WindowSize, Limits, Signal);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn end() -> ExecEnd {
        ExecEnd {
            process: "p-1".into(),
            outcome: Outcome::Exited { code: 3 },
            exit_code: Some(3),
            truncated: Truncated::default(),
            duration_ms: 12,
            cpu_ms: 4,
            memory_peak_bytes: 4096,
            task_digest: "ab".repeat(32),
        }
    }

    #[test]
    fn a_command_is_words_or_a_line() {
        let words: Exec = serde_json::from_value(json!({"command": ["echo", "a b"]})).unwrap();
        assert_eq!(words.command, Command::Argv(vec!["echo".into(), "a b".into()]));
        let line: Exec = serde_json::from_value(json!({"command": "echo a b"})).unwrap();
        assert_eq!(line.command, Command::Shell("echo a b".into()));
        assert_eq!(line, Exec::new(Command::Shell("echo a b".into())));
    }

    #[test]
    fn unknown_fields_are_refused() {
        for json in [
            json!({"command": "x", "timeout_ms": 1}),
            json!({"command": "x", "tty": {"rows": 1, "cols": 1, "x": 1}}),
            json!({"command": "x", "limits": {"cpu": 1}}),
            json!({}),
        ] {
            assert!(serde_json::from_value::<Exec>(json.clone()).is_err(), "{json}");
        }
        assert!(serde_json::from_str::<ExecControl>(r#"{"kill":9}"#).is_err());
        assert!(serde_json::from_str::<ExecControl>(r#"{"signal":9,"resize":null}"#).is_err());
    }

    #[test]
    fn each_bound_names_its_field() {
        for (json, field) in [
            (json!({"command": []}), "command"),
            (json!({"command": ""}), "command"),
            (json!({"command": ["a", "x".repeat(131_072)]}), "command[1]"),
            (json!({"command": "x", "cwd": "a"}), "cwd"),
            (json!({"command": "x", "env": {"1A": "x"}}), "env"),
            (json!({"command": "x", "user": "a b"}), "user"),
            (json!({"command": "x", "tty": {"rows": 0, "cols": 80}}), "tty.rows"),
            (json!({"command": "x", "timeout_sec": 0}), "timeout_sec"),
            (json!({"command": "x", "kill_grace_ms": 600_001}), "kill_grace_ms"),
            (json!({"command": "x", "limits": {"pids": 0}}), "limits.pids"),
            (json!({"command": "x", "name": ""}), "name"),
            (json!({"command": "x", "max_output_bytes": 16_777_217}), "max_output_bytes"),
        ] {
            let exec: Exec = serde_json::from_value(json).unwrap();
            assert_eq!(exec.validate().unwrap_err().field(), Some(field));
        }
    }

    #[test]
    fn a_control_message_is_one_of_two() {
        assert_eq!(
            serde_json::from_str::<ExecControl>(r#"{"resize":{"rows":24,"cols":80}}"#).unwrap(),
            ExecControl::Resize(WindowSize { rows: 24, cols: 80 })
        );
        let signal: ExecControl = serde_json::from_str(r#"{"signal":65}"#).unwrap();
        assert!(signal.validate().is_err());
    }

    #[test]
    fn events_survive_the_round_trip() {
        let chunk = Chunk { offset: 4, data_base64: "aGk=".into() };
        for event in [
            ExecEvent::Started(ExecStarted { process: "p".into(), task_digest: "00".into() }),
            ExecEvent::Stdout(chunk.clone()),
            ExecEvent::Stderr(chunk),
            ExecEvent::Exit(end()),
            ExecEvent::Error(Problem::new(crate::Code::GuestFailed, "gone")),
        ] {
            let data = serde_json::to_string(&event).unwrap();
            assert_eq!(ExecEvent::parse(event.name(), &data).unwrap(), event);
        }
        assert!(ExecEvent::parse("stdin", "{}").is_err());
    }

    #[test]
    fn a_result_is_flat() {
        let result = ExecResult {
            end: end(),
            stdout: "hi\n".into(),
            stderr: String::new(),
            stdout_base64: None,
            stderr_base64: None,
        };
        let json = serde_json::to_value(&result).unwrap();
        assert_eq!(json["outcome"], json!({"result": "exited", "code": 3}));
        assert_eq!(json["stdout"], "hi\n");
        assert_eq!(serde_json::from_value::<ExecResult>(json).unwrap(), result);
    }

    #[test]
    fn exit_codes_are_those_of_the_command_line() {
        let code = |outcome: Outcome| outcome.exit_code();
        assert_eq!(code(Outcome::Running), None);
        assert_eq!(code(Outcome::Exited { code: 7 }), Some(7));
        assert_eq!(code(Outcome::Signaled { signal: 15 }), Some(143));
        assert_eq!(code(Outcome::TimedOut { signal: 9 }), Some(124));
        assert_eq!(code(Outcome::OutOfMemory { limit_bytes: None }), Some(137));
        assert_eq!(code(Outcome::NotFound { command: "x".into() }), Some(127));
        assert_eq!(code(Outcome::NotExecutable { reason: "x".into() }), Some(126));
        assert_eq!(code(Outcome::Lost { reason: "x".into() }), Some(125));
    }

    #[test]
    fn limits_that_are_absent_are_the_agents_own() {
        assert_eq!(op::Limits::from(Limits::default()), op::Limits::default());
    }
}
