//! What the host can ask of the agent: one type per operation, the replies, and the errors.
//!
//! An operation opens a stream. The bytes that the host sends on it are the operation's input
//! (stdin, file content, a tar), the bytes that come back are its output, and the JSON in the
//! agent's closing frame is its reply. A failed operation is a reset that carries [`OpError`].
//! Every payload refuses unknown fields: what was signed is what is understood.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::text::{Secret, Text};

/// An operation: its name on the wire and the reply that it ends with.
pub trait Operation: Serialize + DeserializeOwned {
    /// The `op` field of the envelope.
    const NAME: &'static str;
    /// The JSON in the agent's closing frame.
    type Reply: Serialize + DeserializeOwned;
}

macro_rules! operations {
    ($($type:ident = $name:literal -> $reply:ty;)*) => {$(
        impl Operation for $type {
            const NAME: &'static str = $name;
            type Reply = $reply;
        }
    )*};
}

operations! {
    Exec = "exec" -> ExecReply;
    Stdin = "stdin" -> Done;
    Signal = "signal" -> Done;
    Resize = "resize" -> Done;
    Attach = "attach" -> ExecReply;
    Processes = "processes" -> ProcessList;
    Read = "read" -> Transferred;
    Write = "write" -> Transferred;
    Stat = "stat" -> FileInfo;
    List = "list" -> Transferred;
    Mkdir = "mkdir" -> Done;
    Rename = "rename" -> Done;
    Remove = "remove" -> Done;
    Watch = "watch" -> Done;
    TarIn = "tar-in" -> Transferred;
    TarOut = "tar-out" -> Transferred;
    LayerOut = "layer-out" -> Transferred;
    MountWorkspace = "mount-workspace" -> Done;
    MountVolume = "mount-volume" -> Done;
    FreezeVolumes = "freeze-volumes" -> Done;
    Clock = "clock" -> Done;
    Reseed = "reseed" -> Done;
    Become = "become" -> Done;
    Network = "network" -> NetworkReply;
    Defaults = "defaults" -> Done;
    Info = "info" -> GuestInfo;
    Shutdown = "shutdown" -> Done;
}

/// The reply of an operation that has nothing to tell but that it succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}

/// The host's name for a process: unique in the sandbox, at most 64 of `[A-Za-z0-9_.-]`.
pub type ProcessName = String;

/// Runs a command in a task sandbox of its own. Input is stdin, output is stdout; stderr comes
/// on a stream that the agent opens ([`AgentOpen::Stderr`]), except with a terminal, where there
/// is one output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// How later operations (`signal`, `resize`, `attach`) name this process.
    pub process: ProcessName,
    /// What to run.
    pub command: Command,
    /// Absolute working directory; `/workspace` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<Text>,
    /// Added to the agent's small default environment (PATH, HOME, USER, LANG, TERM).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<Text, Secret>,
    /// `name`, `uid`, or either with `:group`; the image's uid 1000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
    /// A pseudo-terminal of this size instead of pipes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<WindowSize>,
    /// Whether input will come; `/dev/null` otherwise.
    #[serde(default)]
    pub stdin: bool,
    /// Wall time after which the process group gets TERM, and KILL after `kill_grace_ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Between TERM and KILL.
    #[serde(default = "default_kill_grace_ms")]
    pub kill_grace_ms: u64,
    /// What the task may use.
    #[serde(default)]
    pub limits: Limits,
    /// Reply as soon as the process has started; its output is kept for `attach`.
    #[serde(default)]
    pub detach: bool,
}

impl Exec {
    /// A command with nothing special about it.
    pub fn new(process: impl Into<ProcessName>, command: Command) -> Self {
        Self {
            process: process.into(),
            command,
            cwd: None,
            env: BTreeMap::new(),
            user: None,
            tty: None,
            stdin: false,
            timeout_ms: None,
            kill_grace_ms: default_kill_grace_ms(),
            limits: Limits::default(),
            detach: false,
        }
    }
}

fn default_kill_grace_ms() -> u64 {
    5_000
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Command {
    /// A program found by PATH and its arguments; never empty.
    Argv(Vec<Text>),
    /// A line for `/bin/sh -c`.
    Shell(Text),
}

/// Character cells of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// Bounds of one task's cgroup and of the log that is kept for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// `memory.max` in bytes; the guest's memory less the agent's reserve when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// `pids.max`.
    pub pids: u32,
    /// `cpu.max` in thousandths of a CPU; all the guest's CPUs when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    /// Kept output per stream of a detached process; the oldest goes first.
    pub log_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_bytes: None, pids: 4096, cpu_millis: None, log_bytes: 16 << 20 }
    }
}

/// How an `exec` or `attach` ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecReply {
    /// What became of the process.
    pub outcome: Outcome,
    /// CPU time of the whole task (cgroup `usage_usec`), in microseconds.
    #[serde(default)]
    pub cpu_usec: u64,
    /// Highest memory of the task (cgroup `memory.peak`), in bytes.
    #[serde(default)]
    pub memory_peak_bytes: u64,
    /// Kept output that was dropped because the log was full: stdout, stderr, in bytes.
    #[serde(default)]
    pub dropped: (u64, u64),
}

/// What became of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Outcome {
    /// It has not ended (a detached start, or an `attach` that does not follow).
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
    /// The kernel killed it because the task reached `memory.max`.
    OutOfMemory {
        /// The bound in bytes, where the task had one of its own.
        limit_bytes: Option<u64>,
    },
    /// There is no such command (the shell's 127).
    NotFound {
        /// What was looked for, for a person.
        command: String,
    },
    /// The file is there but cannot be run (the shell's 126).
    NotExecutable {
        /// The system's reason.
        reason: String,
    },
}

/// More input for a detached process; the stream's end closes its stdin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stdin {
    /// Which.
    pub process: ProcessName,
}

/// A signal to the whole process group, or KILL to the whole task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signal {
    /// Which.
    pub process: ProcessName,
    /// The Linux signal number, 1 to 64.
    pub signal: i32,
}

/// A new size for a process's terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// Which.
    pub process: ProcessName,
    /// The new size.
    pub size: WindowSize,
}

/// Output of a detached process, from an offset on; ends with the process when following.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// Which.
    pub process: ProcessName,
    /// Bytes of stdout that the caller already has.
    #[serde(default)]
    pub stdout_offset: u64,
    /// Bytes of stderr that the caller already has.
    #[serde(default)]
    pub stderr_offset: u64,
    /// Go on until the process ends.
    #[serde(default)]
    pub follow: bool,
}

/// Asks for the processes of the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Processes {}

/// Reply of [`Processes`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessList {
    /// Running ones, and detached ones that have ended, oldest first.
    pub processes: Vec<ProcessInfo>,
}

/// One process of the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// The host's name for it.
    pub process: ProcessName,
    /// Whether it was started detached.
    pub detached: bool,
    /// Milliseconds since it started.
    pub age_ms: u64,
    /// What has become of it.
    pub outcome: Outcome,
}

/// File content, or a range of it, as output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Read {
    /// Absolute path.
    pub path: Text,
    /// First byte.
    #[serde(default)]
    pub offset: u64,
    /// How many bytes; to the end when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// As whom; see [`Exec::user`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
}

/// File content as input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Write {
    /// Absolute path.
    pub path: Text,
    /// Where the input goes.
    #[serde(default)]
    pub at: WriteAt,
    /// Permission bits of a new file.
    #[serde(default = "default_file_mode")]
    pub mode: u32,
    /// Make missing parent directories.
    #[serde(default)]
    pub parents: bool,
    /// As whom; see [`Exec::user`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
}

fn default_file_mode() -> u32 {
    0o644
}

/// Where written bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteAt {
    /// The file is replaced as a whole, by rename, when all input has arrived.
    #[default]
    Replace,
    /// After the last byte.
    Append,
    /// From this byte on, leaving the rest.
    Offset(u64),
}

/// How much went through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transferred {
    /// Bytes of content.
    pub bytes: u64,
    /// Files, directories and links, where the operation has several.
    #[serde(default)]
    pub entries: u64,
}

/// Asks for a file's metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stat {
    /// Absolute path.
    pub path: Text,
    /// Follow a final symbolic link.
    #[serde(default)]
    pub follow: bool,
    /// As whom; see [`Exec::user`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
}

/// A file's metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// As asked for; relative to the listed directory in a listing.
    pub path: Text,
    /// What it is.
    pub kind: FileKind,
    /// In bytes.
    pub size: u64,
    /// Permission bits, `0o7777` at most.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, milliseconds since 1970 (negative before).
    pub mtime_ms: i64,
    /// Where a symbolic link points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Text>,
}

/// What a directory entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A FIFO, a socket or a device.
    Other,
}

/// A directory's entries as output, one [`FileInfo`] a line, so that no listing is too long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// Absolute path.
    pub path: Text,
    /// Levels below; 1 lists the directory alone.
    #[serde(default = "default_depth")]
    pub depth: u32,
    /// As whom; see [`Exec::user`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
}

fn default_depth() -> u32 {
    1
}

/// Makes a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mkdir {
    /// Absolute path.
    pub path: Text,
    /// Make missing parents, and accept one that is there.
    #[serde(default)]
    pub parents: bool,
    /// Permission bits.
    #[serde(default = "default_directory_mode")]
    pub mode: u32,
    /// Whose it is to be, by user and group number, where root makes it for another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<u32>,
    /// Its group, where that has another number than its owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
    /// As whom; see [`Exec::user`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
}

/// The sandbox's own user, and the group of the same number. As the owner that a directory is to have
/// it stands for the image's user, where [`Defaults`] names one.
pub const USER: u32 = 1000;

impl Mkdir {
    /// A directory that the host is about to fill, with those above it: root makes it, for the
    /// sandbox's user where that is to write there.
    pub fn to_fill(path: Text, is_writable: bool) -> Self {
        Self {
            path,
            parents: true,
            mode: default_directory_mode(),
            owner: is_writable.then_some(USER),
            group: None,
            user: Some(Text::from("root")),
        }
    }
}

fn default_directory_mode() -> u32 {
    0o755
}

/// Renames within one file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// Absolute path.
    pub from: Text,
    /// Absolute path.
    pub to: Text,
    /// Replace what is there.
    #[serde(default)]
    pub replace: bool,
    /// As whom; see [`Exec::user`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
}

/// Removes a file, or a directory with all that is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remove {
    /// Absolute path.
    pub path: Text,
    /// Needed for a directory that is not empty.
    #[serde(default)]
    pub recursive: bool,
    /// As whom; see [`Exec::user`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
}

/// Changes below a path as output, one [`WatchEvent`] a line, until the host ends the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Absolute path of a file or directory.
    pub path: Text,
    /// Directories below too, also ones made later.
    #[serde(default)]
    pub recursive: bool,
    /// As whom; see [`Exec::user`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum WatchEvent {
    /// The watches are in place: what happens from now on is told.
    Ready,
    /// Something came to be, or was moved in.
    Created {
        /// Relative to the watched path.
        path: Text,
    },
    /// Content or metadata changed.
    Modified {
        /// Relative to the watched path.
        path: Text,
    },
    /// Something went, or was moved out.
    Removed {
        /// Relative to the watched path.
        path: Text,
    },
    /// The kernel's queue overflowed: look again at everything.
    Overflow,
}

/// Unpacks a tar (the input) below a directory that is made if missing.
///
/// Where it is to be remembered, the output tells what stands there then, for [`TarOut::changed`].
/// What it says is the agent's own business: whoever asks gives it back as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TarIn {
    /// Absolute path.
    pub path: Text,
    /// Drop every permission to write. With root as the user, the sandbox's tasks can then
    /// read what was unpacked and no more.
    #[serde(default)]
    pub read_only: bool,
    /// As whom; see [`Exec::user`]. Everything unpacked belongs to that user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
    /// Tell what stands there then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub remember: bool,
}

/// Packs a directory, or one file, as a tar (the output). Names are relative to `path`; nothing
/// is followed; sockets and devices are left out.
///
/// With `changed`, the input is what [`TarIn::remember`] told. Files and links that are as they
/// were then are not in the archive; behind its end come their names, each with a NUL.
///
/// With `asks`, the end of what was told is a NUL, and the input goes on. The agent asks about each
/// directory that nothing of what was told is in, and about each large file that was not told: its
/// member says so (a record `SANDFORGE.question` of its extended header), and one byte of
/// input is awaited: 0 where it is not to follow, 1 where it is, 2 where it is and nothing is to be asked
/// any more. In the place of a directory's entries that are not to follow come
/// their number and the bytes of their content, 8 bytes of each, the lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TarOut {
    /// Absolute path.
    pub path: Text,
    /// As whom; see [`Exec::user`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
    /// Only what is not as it was.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub changed: bool,
    /// Ask before much is sent that may be of no use.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub asks: bool,
}

/// Packs what was changed in the root since the machine was started, as a layer of an image (the
/// output): a tar with owners, attributes, and whiteouts for what is gone. What belongs to the sandbox
/// and not to its root is not in it: the nameserver, the certificate of the host's authority, `/dev`,
/// `/proc`, `/sys`, `/tmp`. Refused while a task runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerOut {}

/// Mounts a directory of the host, which the host serves itself, for every later task. The output is
/// what the guest's kernel asks, the input what the host answers: messages of FUSE
/// (`include/uapi/linux/fuse.h`), each with its length in its first four bytes, and nothing between
/// them. The operation goes on until the host ends its input: the directory is unmounted then, and what
/// was under way with it fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountWorkspace {
    /// Absolute path in the guest, made if missing.
    pub path: Text,
    /// The guest's kernel refuses changes by itself. The host's refusal does not depend on it.
    #[serde(default)]
    pub read_only: bool,
}

/// Mounts a disk of the machine that holds an ext4, for every later task: what is on it outlives the
/// sandbox. No device and no program with another user's rights counts on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountVolume {
    /// The disk's serial number.
    pub disk: String,
    /// Absolute path in the guest, made if missing. Nothing on the way to it may be a link.
    pub path: Text,
    /// What a task may do with it.
    pub access: VolumeAccess,
}

/// What tasks may do with a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeAccess {
    /// All, and it stays.
    Write,
    /// Read, and no more.
    Read,
    /// All, but what they change is the sandbox's own and is gone with it.
    Overlay,
}

/// Brings what was written to volumes to their disks, so that nothing has to be done again before they
/// are read, and lets nothing more be written. The machine's end is to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreezeVolumes {}

/// A message to the guest that is not for its kernel: the agent is to set the permissions of what has
/// this path below the mount to what they are, so that whoever watches it hears of it. It stands where
/// a notice has its code.
pub const TOUCH: i32 = 0x5346;

/// Longest message of FUSE: what one write holds, and its headers.
pub const MAX_FUSE: usize = (1 << 20) + 4096;

/// Sets the guest's wall clock. Its own time takes the place of the guest's when its expiry is
/// checked, since a guest that just woke does not know the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clock {
    /// Nanoseconds since 1970.
    pub unix_ns: u64,
}

/// Feeds the guest's random number generator from the host's. No task starts before the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reseed {
    /// 64 bytes, in hexadecimal.
    pub entropy: Secret,
}

/// Makes a sandbox of a machine that went on from a template. Such a machine is nobody's: its agent
/// takes this operation, once, and before it no other.
///
/// It also makes another sandbox of a machine that went on from where a sandbox stood. Then it is
/// signed for that one and with its key, which proves that it comes from its owner; its network, if
/// it has one, is to be given anew before anything is run.
///
/// It is signed with the key that it brings, which proves that whoever sent it has that key, and is
/// for the sandbox that it names. In one step the clock is set, the random number generator is fed,
/// and the machine gets ids of its own; only then is the identity taken, and only then is it
/// acknowledged. Where any of that fails nothing is taken any more, and the machine is to be ended.
///
/// As with [`Clock`], its own time takes the place of the guest's when its expiry is checked: a
/// guest that stood still does not know the time, and has nobody else to ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Become {
    /// The id of the sandbox.
    pub sandbox: String,
    /// The public key of its operations, as [`key_to_hex`](crate::envelope::key_to_hex) writes it.
    pub key: String,
    /// Nanoseconds since 1970.
    pub unix_ns: u64,
    /// As in [`Reseed`].
    pub entropy: Secret,
    /// What the machine is called from now on; what it was, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Text>,
}

/// Gives the sandbox a way out. Without it there is no interface but loopback.
///
/// Every TCP connection that a task makes becomes a stream of its own ([`AgentOpen::Connect`]),
/// and all questions for names go over one ([`AgentOpen::Dns`]): what becomes of either is the
/// host's decision. Only before the first task, or again by a host that took the sandbox up, whose
/// certificate and variables then take the place of those before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// The certificate, in PEM, of the authority that the host signs with: tasks are to trust it
    /// beside those that the image trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<String>,
    /// Defaults of every task's environment, over the agent's own and below what its [`Exec`]
    /// names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(Text, Text)>,
}

/// Reply of [`Network`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkReply {
    /// The variables that tell programs of the certificate, which every task has now.
    pub env: Vec<(Text, Text)>,
}

/// What the image says about the tasks that run in it, below what an [`Exec`] says. It counts for
/// the tasks that follow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// Variables, over the agent's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<Text, Text>,
    /// Absolute working directory, which is made where it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<Text>,
    /// Who runs tasks and gets files where an operation names nobody; see [`Exec::user`]. Uid 1000 when
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
}

/// Asks what the guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Info {}

/// What the guest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestInfo {
    /// Version of the agent.
    pub agent: String,
    /// `uname -r`.
    pub kernel: String,
    /// CPUs that are online.
    pub cpus: u32,
    /// `MemTotal` in bytes.
    pub memory_bytes: u64,
    /// Landlock ABI that tasks run under.
    pub landlock_abi: u32,
    /// Milliseconds from the kernel's start until the agent served its carrier.
    pub ready_ms: u64,
}

/// Ends every task, syncs, and stops the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shutdown {}

/// A stream that the agent opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum AgentOpen {
    /// The standard error of an `exec` or `attach`, whose stream is named.
    Stderr {
        /// The stream that the host opened.
        of: u32,
    },
    /// One TCP connection of a task. Its bytes each way, and an end of either way by itself. A
    /// reset of the stream is one of the connection.
    Connect {
        /// Where the task meant to go.
        address: IpAddr,
        /// The port there.
        port: u16,
    },
    /// DNS messages each way, each behind its length as a big-endian u16 (RFC 1035, 4.2.2). Answers
    /// come in any order; the message's id tells whose.
    Dns {},
}

/// Why an operation failed: the JSON of a reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct OpError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what failed, on what, and why.
    pub message: String,
}

impl OpError {
    /// An error of this code that says this.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// What kind of failure it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request makes no sense.
    Invalid,
    /// The operation is not one that this agent knows.
    Unsupported,
    /// The signature does not verify.
    BadSignature,
    /// The envelope names another sandbox.
    WrongSandbox,
    /// The sequence number was used, or a later one was.
    Replayed,
    /// The time to run it has passed.
    Expired,
    /// Refused until the guest's entropy and clock are fresh, and it is somebody's.
    NotReady,
    /// No such file, process or user.
    NotFound,
    /// It is there already.
    Exists,
    /// The user may not.
    PermissionDenied,
    /// No space, memory or process slot is left.
    Exhausted,
    /// Too many streams or processes.
    TooMany,
    /// The other side gave up.
    Cancelled,
    /// The system refused for another reason, which the message tells.
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_agent_opens_names_an_address_and_a_port() {
        let open = AgentOpen::Connect { address: "2001:db8::1".parse().unwrap(), port: 443 };
        let json = r#"{"kind":"connect","address":"2001:db8::1","port":443}"#;
        assert_eq!(serde_json::to_string(&open).unwrap(), json);
        assert_eq!(serde_json::from_str::<AgentOpen>(json).unwrap(), open);
        let dns = serde_json::from_str::<AgentOpen>(r#"{"kind":"dns"}"#).unwrap();
        assert_eq!(dns, AgentOpen::Dns {});
    }

    #[test]
    fn what_is_no_address_or_more_than_is_known_is_refused() {
        for json in [
            r#"{"kind":"connect","address":"example.com","port":443}"#,
            r#"{"kind":"connect","address":"127.1","port":443}"#,
            r#"{"kind":"connect","address":"192.0.2.1","port":65536}"#,
            r#"{"kind":"connect","address":"192.0.2.1","port":80,"name":"x"}"#,
            r#"{"kind":"dns","of":1}"#,
        ] {
            assert!(serde_json::from_str::<AgentOpen>(json).is_err(), "{json}");
        }
    }
}
