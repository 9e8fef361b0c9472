//! What is asked for, and who asks.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Serialize;

/// Makes an enum whose values have names in files, flags and replies.
macro_rules! named {
    (
        $(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name in files and replies.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|one| one.as_str() == text).ok_or_else(|| {
                    let known: Vec<_> = Self::ALL.iter().map(|one| one.as_str()).collect();
                    format!("{text:?} is not one of {}", known.join(", "))
                })
            }
        }
    };
}

named! {
    /// What a caller may do in general, least first.
    Role {
        /// Reads.
        Viewer = "viewer",
        /// Runs.
        Member = "member",
        /// Configures its workspace.
        Owner = "owner",
        /// Configures the host: who runs the daemon, by its socket or the first token.
        Administrator = "administrator",
    }
}

named! {
    /// What stands between a task and the host, weakest first.
    Isolation {
        /// The host's own kernel.
        Process = "process",
        /// A machine in software.
        Emulated = "emulated",
        /// A machine behind the processor's virtualization.
        Vm = "vm",
    }
}

named! {
    /// What of the network a sandbox can reach, least first.
    Network {
        /// Nothing.
        Offline = "offline",
        /// Package registries and git, reading only.
        Fetch = "fetch",
        /// What a list of rules allows.
        Allow = "allow",
        /// Everything but private addresses.
        Open = "open",
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Subject {
    /// Its name, as it is in the audit log.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// The workspace of the thing that is asked about. Grants for workspaces do not apply where
    /// there is none.
    pub workspace: Option<String>,
}

/// A question to the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// To make a sandbox.
    Create(Create),
    /// To run a command.
    Exec(Exec),
    /// To copy something of the host into a sandbox that there is.
    Mount(MountRequest),
    /// To give a sandbox that there is another network mode.
    Network(NetworkRequest),
    /// To make a disk that outlives sandboxes.
    Volume(VolumeRequest),
}

impl Request {
    /// Who asks.
    pub fn who(&self) -> &Subject {
        match self {
            Self::Create(create) => &create.who,
            Self::Exec(exec) => &exec.who,
            Self::Mount(mount) => &mount.who,
            Self::Network(network) => &network.who,
            Self::Volume(volume) => &volume.who,
        }
    }
}

/// A sandbox that is asked for, defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create {
    /// Who asks.
    pub who: Subject,
    /// Virtual CPUs.
    pub cpu: u32,
    /// Guest memory in MiB.
    pub memory_mb: u32,
    /// Scratch disk in GiB, where there is to be one.
    pub disk_gb: Option<u32>,
    /// Time to live in seconds. `None` is for ever, which is more than any maximum.
    pub timeout_sec: Option<u64>,
    /// A name of the image store, or the canonical path of a file: one that begins with `/` is a
    /// path to the rules.
    pub image: String,
    /// What of the host goes in.
    pub mounts: Vec<Mount>,
    /// What it can reach.
    pub network: Network,
    /// Names of the variables that tasks get. Values are never shown to the policy.
    pub env_names: Vec<String>,
    /// The weakest isolation that will do for the caller.
    pub min_isolation: Option<Isolation>,
    /// What it will get, where that is known: an engine that was named, or that was chosen.
    pub isolation: Option<Isolation>,
    /// Sandboxes that the workspace has already, this one not counted.
    pub sandboxes: u64,
}

/// A command that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// Who asks.
    pub who: Subject,
    /// What is to run.
    pub command: Command,
    /// The guest's user, where one is named.
    pub user: Option<String>,
    /// Names of the variables that it gets.
    pub env_names: Vec<String>,
}

/// What is to run. What is not UTF-8 comes with replacement characters: these are equal to no
/// character of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A program and its arguments.
    Argv(Vec<String>),
    /// A line for `/bin/sh -c`.
    Shell(String),
}

/// Something of the host that goes into a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it really is: absolute, and no component a link. What is opened afterwards must be
    /// this.
    pub host_path: PathBuf,
    /// What the caller wrote.
    pub requested: PathBuf,
    /// Where the guest sees it.
    pub guest_path: String,
    /// Tasks can read it and no more.
    pub read_only: bool,
}

/// A mount into a sandbox that there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRequest {
    /// Who asks.
    pub who: Subject,
    /// What goes in.
    pub mount: Mount,
}

/// A disk that outlives sandboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRequest {
    /// Who asks.
    pub who: Subject,
    /// Its size in GiB, rounded up.
    pub size_gb: u64,
}

/// A network mode for a sandbox that there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkRequest {
    /// Who asks.
    pub who: Subject,
    /// What it is to reach.
    pub mode: Network,
}
