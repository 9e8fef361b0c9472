//! What can go wrong between a request and its sandbox, sorted by what the caller can do.

use std::path::PathBuf;

use engine::{EngineError, Isolation};
use link::LinkError;
use registry::PullError;

/// Why a request failed. The sources say more; print the chain once, at the top.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request asks for something that cannot be.
    #[error("{0}")]
    Request(String),
    /// No machine of that name is kept.
    #[error("there is no sandbox {0:?}; `sandforge ls` lists those that were kept")]
    NoSuchSandbox(String),
    /// A machine of that name is kept.
    #[error(
        "there is a sandbox {0:?} already; remove it with `sandforge rm {0}` or take another name"
    )]
    NameTaken(String),
    /// No engine here is as strong as asked for.
    #[error(
        "no engine on this machine isolates as strongly as {wanted}; the strongest is \
         {strongest}: {why}"
    )]
    Isolation {
        /// What was asked for.
        wanted: Isolation,
        /// What could be had.
        strongest: Isolation,
        /// Why there is no stronger one.
        why: String,
    },
    /// There is no engine of that name.
    #[error("there is no engine {0:?}; `sandforge doctor` lists them")]
    NoSuchEngine(String),
    /// The image is not there or not usable.
    #[error(transparent)]
    Image(#[from] image::ImageError),
    /// It cannot be had from its registry.
    #[error("cannot pull {image}")]
    Pull {
        /// Which.
        image: image::Reference,
        /// Why not.
        source: Box<registry::PullError>,
    },
    /// What is configured about registries cannot be used.
    #[error("cannot ask registries: {0}")]
    Registries(String),
    /// The image store is not usable.
    #[error(transparent)]
    Store(#[from] image::StoreError),
    /// The kernel or the initramfs is not usable.
    #[error(transparent)]
    Boot(#[from] image::boot::BootError),
    /// There is no room for what the sandbox changes.
    #[error("cannot make the sandbox's disk in {}: {source}", .directory.display())]
    Scratch {
        /// Where.
        directory: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The engine failed.
    #[error("cannot start the machine")]
    Engine(#[source] EngineError),
    /// The machine ended while it was needed.
    #[error("the machine ended: {0}")]
    MachineEnded(String),
    /// The guest did not come up, or went away.
    #[error("cannot talk to the guest")]
    Guest(#[source] LinkError),
    /// A machine that runs does not answer.
    #[error("the sandbox {0:?} does not answer; another command may be using it")]
    Busy(String),
    /// A git repository cannot be cloned, or what was committed to the clone not taken.
    #[error("cannot clone the repository: {0}")]
    Clone(String),
    /// The directory cannot be packed.
    #[error("cannot copy {} into the sandbox", .path.display())]
    CopyIn {
        /// The host's path.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What the guest sent was not taken.
    #[error("cannot bring {guest} out to {}", .path.display())]
    CopyOut {
        /// The guest's path.
        guest: String,
        /// The host's path.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The directory cannot be shared live.
    #[error(transparent)]
    Share(share::ShareError),
    /// The record of a kept machine cannot be used.
    #[error("cannot {action} {}", .path.display())]
    Record {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A saved machine cannot go on here.
    #[error(
        "the snapshot cannot be restored here: its {field} is {there:?}, and here it is {here:?}"
    )]
    Mismatch {
        /// What differs.
        field: String,
        /// What it was.
        there: String,
        /// What it is.
        here: String,
    },
    /// A snapshot is not what was saved.
    #[error("the snapshot is damaged: {file}: {why}; remove it with `sandforge snapshot rm`")]
    Damaged {
        /// Which of its files.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file of a snapshot cannot be used.
    #[error("cannot {action} {}: {source}", .path.display())]
    SnapshotFile {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something of this process failed.
    #[error("{0}")]
    Internal(String),
}

/// What a caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Ask differently.
    Usage,
    /// Name something that is there.
    NotFound,
    /// Install or enable something.
    Unavailable,
    /// Ask for less isolation, or use a machine that has more.
    Policy,
    /// Look at what the message says.
    Failed,
}

impl Error {
    /// What kind it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Request(_) | Self::NameTaken(_) => ErrorKind::Usage,
            Self::NoSuchSandbox(_) | Self::NoSuchEngine(_) => ErrorKind::NotFound,
            Self::Image(image::ImageError::Store(image::StoreError::Unknown { .. })) => {
                ErrorKind::NotFound
            }
            Self::Isolation { .. } => ErrorKind::Policy,
            Self::Pull { source, .. } => match **source {
                PullError::Denied { .. }
                | PullError::Realm { .. }
                | PullError::Plain { .. }
                | PullError::Signature { .. } => ErrorKind::Policy,
                PullError::NotFound { .. } | PullError::Platform { .. } => ErrorKind::NotFound,
                PullError::Name(_) => ErrorKind::Usage,
                _ => ErrorKind::Failed,
            },
            Self::Registries(_) => ErrorKind::Usage,
            Self::Engine(EngineError::Unavailable(_)) => ErrorKind::Unavailable,
            Self::Image(_)
            | Self::Store(_)
            | Self::Boot(_)
            | Self::Scratch { .. }
            | Self::Engine(_)
            | Self::MachineEnded(_)
            | Self::Guest(_)
            | Self::Busy(_)
            | Self::Clone(_)
            | Self::CopyIn { .. }
            | Self::Share(_)
            | Self::CopyOut { .. }
            | Self::Record { .. }
            | Self::Mismatch { .. }
            | Self::Damaged { .. }
            | Self::SnapshotFile { .. }
            | Self::Internal(_) => ErrorKind::Failed,
        }
    }
}
