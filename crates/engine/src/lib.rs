//! What runs guests: the [`SandboxBackend`] trait, isolation tiers, and the mock engine.
//!
//! An engine is handed descriptors and numbers, never a policy or a secret: what a guest may
//! do was decided before, and what it is given to do comes later, over the carrier.
#![forbid(unsafe_code)]

pub mod attach;
pub mod disk;
pub mod mock;

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

pub use disk::{Disk, DiskError, Disks, Layer};

/// What stands between a task and the host, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// The host's own kernel, with namespaces and filters. Only ever by name.
    Process,
    /// A machine of its own in software. QEMU does not call its emulator a security boundary;
    /// Sandforge confines the emulator for that reason.
    Emulated,
    /// A machine of its own behind the processor's virtualization.
    Vm,
}

impl Isolation {
    /// The name in flags, files and replies.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Emulated => "emulated",
            Self::Vm => "vm",
        }
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Isolation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Vm, Self::Emulated, Self::Process]
            .into_iter()
            .find(|tier| tier.as_str() == text)
            .ok_or_else(|| format!("`{text}` is not one of vm, emulated, process"))
    }
}

/// What an engine can do beyond booting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Capabilities {
    /// [`Machine::pause`] and [`Machine::resume`].
    pub pause: bool,
    /// [`Machine::save`], and [`System::Saved`].
    pub snapshot: bool,
    /// Machines from one that runs, without its being saved first.
    pub fork: bool,
    /// Most virtual CPUs.
    pub max_cpus: u32,
}

/// A failure of an engine, in words for the person who asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// This machine cannot run the engine.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The request is beyond what the engine can do.
    #[error("{0}")]
    Unsupported(String),
    /// A step of the boot failed.
    #[error("{step}: {reason}")]
    Boot {
        /// What was being done.
        step: &'static str,
        /// What the system or the monitor said.
        reason: String,
    },
    /// The machine ended before or while it was asked.
    #[error("the machine has ended: {0}")]
    Ended(String),
    /// A machine that goes on cannot be saved.
    #[error("cannot save the machine: {0}")]
    Save(String),
}

/// Why an engine cannot run here, and what would change that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{reason}; {remedy}")]
pub struct Unavailable {
    /// The cause.
    pub reason: String,
    /// What to do.
    pub remedy: String,
}

/// A passed preflight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Preflight {
    /// What will run the guest, with its version.
    pub monitor: String,
    /// What confines the monitor on this host, in words.
    pub confinement: Vec<String>,
    /// What is weaker than it could be, in words.
    pub notes: Vec<String>,
}

/// What runs in a sandbox.
#[derive(Debug)]
pub enum System {
    /// A machine's, for the tiers that have one.
    Guest(Guest),
    /// A machine that goes on from where another stood still, for engines with
    /// [`Capabilities::snapshot`].
    Saved(Saved),
    /// The agent alone, a static program, on the host's kernel: for [`Isolation::Process`].
    Process {
        /// Opened for reading.
        agent: File,
    },
}

/// What a machine boots.
#[derive(Debug)]
pub struct Guest {
    /// An ELF kernel with a PVH entry, or a bzImage.
    pub kernel: File,
    /// A cpio whose `/init` is the agent.
    pub initramfs: File,
    /// The guest's root, and what else it has.
    pub disks: Disks,
}

/// What a machine goes on from. Its memory and its virtual CPUs are as many as the other's, and
/// its agent knows what the other's knew.
#[derive(Debug)]
pub struct Saved {
    /// Where the other stood still.
    pub snapshot: Snapshot,
    /// Disks like the other's, in the same order, with what was on them then.
    pub disks: Disks,
}

/// Where a machine stood still, as two files of the engine that wrote them.
#[derive(Debug)]
pub struct Snapshot {
    /// What was in its memory. Any number of machines go on from it at once; none writes to it.
    pub memory: File,
    /// All else.
    pub state: File,
}

impl Snapshot {
    /// Other handles of the same files.
    ///
    /// # Errors
    /// Where there are no descriptors to be had.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self { memory: self.memory.try_clone()?, state: self.state.try_clone()? })
    }
}

impl System {
    /// What to boot, for an engine that makes machines.
    ///
    /// # Errors
    /// `Unsupported` where it is none.
    pub fn guest(self) -> Result<Guest, EngineError> {
        match self {
            Self::Guest(guest) => Ok(guest),
            Self::Process { .. } => {
                Err(EngineError::Unsupported("this engine runs nothing without a kernel".into()))
            }
            Self::Saved(_) => Err(unsupported("go on from a snapshot of")),
        }
    }

    /// The agent, for an engine that makes none.
    ///
    /// # Errors
    /// `Unsupported` where there is a machine to boot.
    pub fn process(self) -> Result<File, EngineError> {
        match self {
            Self::Process { agent } => Ok(agent),
            Self::Guest(_) | Self::Saved(_) => {
                Err(EngineError::Unsupported("this engine boots no kernel and no image".into()))
            }
        }
    }
}

/// All that an engine needs to start a machine.
#[derive(Debug)]
pub struct BootSpec {
    /// The sandbox's id: at most 64 of `[A-Za-z0-9_.-]`.
    pub sandbox: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory in MiB.
    pub memory_mb: u32,
    /// What runs in it.
    pub system: System,
    /// What the agent needs to know, as words like kernel parameters.
    pub agent_arguments: Vec<String>,
    /// Where the carrier is offered.
    pub attachment: Attachment,
    /// Show the guest's console on stderr, for finding out why a kernel does not come up.
    pub console: bool,
}

/// Whom a machine belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attachment {
    /// The calling process: the machine ends with it, however it ends.
    Owned,
    /// Nobody: the machine goes on, and its carrier is a unix socket at this path that takes
    /// one peer after another. [`Machine::carrier`] is the first.
    Detached(PathBuf),
}

/// The byte stream between host and agent.
pub trait Carrier: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Carrier for T {}

/// What a machine has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Stats {
    /// CPU time of the monitor and the guest together.
    pub cpu: Duration,
    /// Highest resident memory of the monitor process, guest memory included, in bytes.
    pub memory_peak_bytes: u64,
}

/// An engine.
#[async_trait]
pub trait SandboxBackend: fmt::Debug + Send + Sync {
    /// Its name in flags, files and replies.
    fn name(&self) -> &'static str;

    /// The tier that its machines have.
    fn isolation(&self) -> Isolation;

    /// What it can do beyond booting.
    fn capabilities(&self) -> Capabilities;

    /// What snapshots of its machines depend on beside the machines: the monitor that reads them
    /// again, told so that another one is noticed. `None` where snapshots are of no use later.
    fn snapshot_basis(&self) -> Option<String> {
        None
    }

    /// What its sandboxes do not protect from on this host, to be said each time that one is
    /// started. `None` for engines whose machines are a boundary.
    fn caveat(&self) -> Option<String> {
        None
    }

    /// Finds out whether it can run a guest here, by trying what a guest needs rather than by
    /// looking for files.
    ///
    /// # Errors
    /// `Unavailable` with the cause and a remedy.
    async fn preflight(&self) -> Result<Preflight, Unavailable>;

    /// Whether a boot is worth trying here: what [`SandboxBackend::preflight`] would say, as far as
    /// that can be known in a millisecond. Asked before each boot where no engine was named.
    ///
    /// # Errors
    /// `Unavailable` with the cause and a remedy.
    async fn available(&self) -> Result<(), Unavailable> {
        self.preflight().await.map(drop)
    }

    /// Starts a machine and returns as soon as its monitor runs; the guest is up when its
    /// agent answers on the carrier.
    ///
    /// # Errors
    /// `EngineError`; nothing is left behind then.
    async fn boot(&self, spec: BootSpec) -> Result<Box<dyn Machine>, EngineError>;
}

/// A running machine. Dropping an owned one kills it.
#[async_trait]
pub trait Machine: fmt::Debug + Send + Sync {
    /// The byte stream to the agent. The first call gets it.
    ///
    /// # Errors
    /// `Ended` where it was taken already or the machine is gone.
    fn carrier(&mut self) -> Result<Box<dyn Carrier>, EngineError>;

    /// The process that runs the guest, where there is one.
    fn monitor_pid(&self) -> Option<u32>;

    /// What it has used so far.
    ///
    /// # Errors
    /// `Ended` where nothing can be told any more.
    fn stats(&self) -> Result<Stats, EngineError>;

    /// Stops the virtual CPUs; memory stays.
    ///
    /// # Errors
    /// `Unsupported` without [`Capabilities::pause`].
    async fn pause(&mut self) -> Result<(), EngineError> {
        Err(unsupported("pause"))
    }

    /// Lets the virtual CPUs go on.
    ///
    /// # Errors
    /// `Unsupported` without [`Capabilities::pause`].
    async fn resume(&mut self) -> Result<(), EngineError> {
        Err(unsupported("resume"))
    }

    /// Writes what others need to go on from here; the files' content becomes that. The machine is
    /// paused.
    ///
    /// # Errors
    /// `Unsupported` without [`Capabilities::snapshot`]; `Save`, and `Ended`.
    async fn save(&mut self, _into: &Snapshot) -> Result<(), EngineError> {
        Err(unsupported("save"))
    }

    /// Waits for the machine's end and says how it came, in words.
    async fn ended(&mut self) -> String;

    /// Ends the machine at once and waits until nothing of it is left.
    ///
    /// # Errors
    /// `Ended` where the monitor cannot be reached any more.
    async fn kill(&mut self) -> Result<(), EngineError>;
}

fn unsupported(operation: &str) -> EngineError {
    EngineError::Unsupported(format!("this engine cannot {operation} a machine"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_are_ordered_by_what_they_protect_from() {
        assert!(Isolation::Process < Isolation::Emulated && Isolation::Emulated < Isolation::Vm);
    }

    #[test]
    fn a_tier_parses_from_its_name_and_from_nothing_else() {
        for tier in [Isolation::Process, Isolation::Emulated, Isolation::Vm] {
            assert_eq!(tier.as_str().parse(), Ok(tier));
        }
        assert!("VM".parse::<Isolation>().is_err());
    }
}
