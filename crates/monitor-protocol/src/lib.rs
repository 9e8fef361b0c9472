//! What the KVM engine and its monitor say to each other.
//!
//! [`Task`] is the order that a monitor is started with; its descriptors come with it, in the
//! order that [`Machine`] tells. It answers with a [`Report`] when it is confined and its machine
//! exists, or why not, and with another when the machine has ended by itself. In between the
//! engine may send a [`Request`] and gets an [`Answer`].
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use vmm::End;
use vmm::memory::Backing;
use vmm::probe::Outcome;
use vmm::virtio::{balloon, block, rng, vsock};

/// What a monitor is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Tells whether KVM runs guests here. The descriptor is `/dev/kvm`.
    Probe,
    /// Runs a machine.
    Machine(Machine),
    /// Runs a machine that goes on from where another stood still. In the place of the kernel and
    /// the initramfs come what was in its memory, and its state. How much memory, how many virtual
    /// CPUs and which kernel is all there.
    Saved(Machine),
}

impl Task {
    /// The machine, where there is to be one.
    pub fn machine(&self) -> Option<&Machine> {
        match self {
            Self::Probe => None,
            Self::Machine(machine) | Self::Saved(machine) => Some(machine),
        }
    }
}

/// A machine. Its descriptors, in this order: `/dev/kvm`, the kernel, the initramfs, the carrier,
/// the files of each disk, and the door of its control group where it has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Virtual CPUs.
    pub cpus: u8,
    /// Guest memory in MiB.
    pub memory_mb: u32,
    /// What is behind that memory.
    pub backing: Backing,
    /// Kernel parameters but those that name devices.
    pub command_line: String,
    /// What the carrier's descriptor is.
    pub carrier: Carrier,
    /// The serial port's bytes go to stderr.
    pub console: bool,
    /// Its disks, the root's first.
    pub disks: Vec<Disk>,
    /// It has a control group to go into.
    pub grouped: bool,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// What the guest knows it by: its serial number, at most 20 bytes.
    pub name: String,
    /// How many files it is made of, one after another.
    pub files: usize,
    /// Whether the guest may write to it.
    pub writable: bool,
}

/// How the host's end of the carrier is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Carrier {
    /// A connected stream.
    Connected,
    /// A listening socket: each connection is one to the agent.
    Listening,
}

/// What a monitor says by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// It is confined, and the machine runs.
    Running {
        /// What confines it.
        jail: jail::Report,
    },
    /// It is confined, and has run the probe.
    Probed {
        /// What confines it.
        jail: jail::Report,
        /// What became of the guest.
        outcome: Outcome,
    },
    /// It cannot do what it was started for.
    Failed {
        /// What failed, why, and what to try.
        reason: String,
    },
    /// The machine has ended by itself.
    Ended {
        /// How.
        end: End,
    },
}

/// What the engine asks of a running monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Stop virtual CPUs and devices; answered when nothing touches guest memory any more.
    Pause,
    /// Let them go on.
    Resume,
    /// Write what others need to go on from here. Two descriptors come with it, of empty files: for
    /// the memory, and for the state. The machine is paused.
    Save,
    /// Tell what was counted.
    Metrics,
    /// Have the guest give memory back to the host until it has this many MiB less than it was
    /// made with.
    Balloon {
        /// How many.
        mib: u32,
    },
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// It cannot be done.
    Failed {
        /// Why.
        reason: String,
    },
    /// What was counted.
    Metrics(Box<Metrics>),
}

/// What a machine and its devices have counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// The virtual CPUs.
    pub machine: vmm::Metrics,
    /// The disks, in their order.
    pub disks: Vec<block::Snapshot>,
    /// The carrier.
    pub vsock: vsock::Snapshot,
    /// The source of randomness.
    pub rng: rng::Snapshot,
    /// The balloon.
    pub balloon: balloon::Snapshot,
}
