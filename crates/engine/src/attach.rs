//! The two ends of a carrier, made before the machine.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream as StdStream};
use std::path::PathBuf;

use tokio::net::UnixStream;

use crate::Attachment;

/// A carrier whose machine is still to come.
#[derive(Debug)]
pub struct Attached {
    /// For the monitor: a connected stream, or a socket that listens.
    pub monitor_end: OwnedFd,
    /// For the host.
    pub host_end: HostEnd,
}

/// The host's end.
#[derive(Debug)]
pub enum HostEnd {
    /// Connected already.
    Stream(UnixStream),
    /// To be connected to when the monitor listens.
    Path(PathBuf),
}

impl Attached {
    /// Makes a carrier of this kind.
    ///
    /// # Errors
    /// Where a socket cannot be made at its path, or there are no descriptors to be had.
    pub fn new(attachment: &Attachment) -> io::Result<Self> {
        match attachment {
            Attachment::Owned => {
                let (ours, theirs) = StdStream::pair()?;
                ours.set_nonblocking(true)?;
                let host_end = HostEnd::Stream(UnixStream::from_std(ours)?);
                Ok(Self { monitor_end: theirs.into(), host_end })
            }
            Attachment::Detached(path) => {
                let listener = UnixListener::bind(path)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
                Ok(Self { monitor_end: listener.into(), host_end: HostEnd::Path(path.clone()) })
            }
        }
    }
}

impl HostEnd {
    /// Whether the monitor's end listens.
    pub fn listens(&self) -> bool {
        matches!(self, Self::Path(_))
    }

    /// The stream. To be called when the monitor has its end.
    ///
    /// # Errors
    /// Where the socket cannot be connected to.
    pub async fn connect(self) -> io::Result<UnixStream> {
        match self {
            Self::Stream(stream) => Ok(stream),
            Self::Path(path) => UnixStream::connect(path).await,
        }
    }
}
