//! Many sandboxes: queue, lifecycle, limits of time, recovery.
//!
//! [`Manager`] is the only way to them, for the server and for a command that has none. Each of
//! its methods goes the same way: may the caller ([`access`]), does policy allow it ([`policy`]),
//! write down that it was accepted, do it, write down what came of it. What is written down is
//! all that there is to recover from: a sandbox's task does what its row
//! says, and so does the task that the next process gives it.
#![forbid(unsafe_code)]

mod attach;
mod changes;
mod config;
mod credentials;
mod error;
mod exec;
mod files;
pub mod hook;
pub mod host_path;
mod idempotency;
mod ledger;
mod life;
mod manager;
mod may;
pub mod metrics;
mod mount;
mod network;
mod observe;
mod outlook;
pub mod paths;
mod queue;
mod record;
mod recover;
mod rules;
mod run;
mod sandboxes;
mod seat;
mod secret;
mod snapshot;
mod task;
mod upkeep;
mod volume;

use std::path::PathBuf;

pub use changes::Reviewed;
pub use config::{Config, Mode, Provenance, VerifiedSignature};
pub use error::Error;
pub use exec::Feed;
pub use files::{Download, Upload, Watch};
pub use idempotency::{Guard, Idempotent, Stored};
pub use manager::Manager;
pub use network::{Denied, decision, explain, profile_names, upstream};
pub use outlook::Expected;
pub use run::{Run, RunMount, RunRequest};
pub use task::{Output, Stdin, Stream, Task};

/// Why a fleet cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The state cannot be used.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// A policy's file cannot be read.
    #[error("cannot read the policy {}: {source}", .path.display())]
    ReadPolicy {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A policy is not one.
    #[error(transparent)]
    Policy(#[from] policy::Error),
    /// The file about the way out is none.
    #[error("{}: {problem}", .path.display())]
    Upstream {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The identity provider cannot be used.
    #[error(transparent)]
    Provider(#[from] access::jwt::ConfigError),
    /// The machines of this host cannot be looked at.
    #[error(transparent)]
    Supervisor(#[from] supervisor::Error),
    /// What was there cannot be taken up.
    #[error(transparent)]
    Recover(#[from] Error),
}
