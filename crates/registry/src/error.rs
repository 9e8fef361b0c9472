//! Why a pull failed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::challenge::ChallengeError;
use crate::credentials::CredentialsError;
use crate::digest::Digest;
use crate::manifest::ManifestError;
use crate::name::NameError;
use crate::platform::Platform;
use crate::signature::SignatureError;

/// Why an image could not be pulled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// The name is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The policy does not allow it. Nothing was sent there.
    #[error("{host} may not be asked: {reason}")]
    Denied {
        /// Who was to be contacted.
        host: String,
        /// Why not.
        reason: String,
    },
    /// The registry sends for a token to somebody who is not known to belong to it.
    #[error(
        "{registry} asks for a token from {realm}, which is another host: if that is right, name it in \
         image-registries.toml: [realms] \"{registry}\" = [\"{realm}\"]"
    )]
    Realm {
        /// Who sends.
        registry: String,
        /// To whom.
        realm: String,
    },
    /// It sends to a host without TLS.
    #[error("{from} sends to {to} without TLS, where anybody on the way could answer")]
    Plain {
        /// Who sends.
        from: String,
        /// To whom.
        to: String,
    },
    /// It sends on and on, or nowhere.
    #[error("{host} redirects {why}")]
    Redirect {
        /// Who.
        host: String,
        /// What is wrong with it.
        why: String,
    },
    /// The challenge of the registry cannot be met.
    #[error("{registry} wants to know who asks, but {source}")]
    Challenge {
        /// Which registry.
        registry: String,
        /// What is wrong with what it asks.
        source: ChallengeError,
    },
    /// What would prove who we are cannot be had.
    #[error("no credential for {registry}: {source}")]
    Credentials {
        /// Which registry.
        registry: String,
        /// Why not.
        source: CredentialsError,
    },
    /// The registry does not let us.
    #[error("{registry} does not let {who} read {repository}{said}: {help}")]
    Unauthorized {
        /// Which registry.
        registry: String,
        /// As whom it was asked.
        who: String,
        /// For what.
        repository: String,
        /// What it said.
        said: String,
        /// What to do.
        help: &'static str,
    },
    /// There is no such thing.
    #[error("{registry} has no {what}{said}")]
    NotFound {
        /// Which registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// What it said.
        said: String,
    },
    /// It answered with something else than what was asked for.
    #[error("{host} answered {status}{said}")]
    Status {
        /// Who.
        host: String,
        /// With what.
        status: u16,
        /// What it said.
        said: String,
    },
    /// It cannot be reached.
    #[error("cannot reach {host}: {reason}")]
    Unreachable {
        /// Who.
        host: String,
        /// Why not.
        reason: String,
    },
    /// The connection broke more often than was tried.
    #[error(
        "{host} was tried {attempts} times: {last}; what has come is kept, and the next pull goes on there"
    )]
    GaveUp {
        /// Who.
        host: String,
        /// How often without getting further.
        attempts: u32,
        /// How the last time ended.
        last: Box<PullError>,
    },
    /// The connection broke.
    #[error("the connection to {host} broke: {reason}")]
    Broken {
        /// Who.
        host: String,
        /// How.
        reason: String,
    },
    /// The registry asks to wait longer than is waited.
    #[error("{host} is too busy: it asks to be left alone for {}", seconds(.wait))]
    Busy {
        /// Who.
        host: String,
        /// For how long.
        wait: Duration,
    },
    /// A manifest is wrong.
    #[error("the manifest {what} of {registry} cannot be used: {source}")]
    Manifest {
        /// Which registry.
        registry: String,
        /// Which manifest.
        what: String,
        /// Why not.
        source: ManifestError,
    },
    /// There is no image for this platform.
    #[error("there is no image for {wanted}: there is {there}")]
    Platform {
        /// What was wanted.
        wanted: Platform,
        /// What there is.
        there: String,
    },
    /// What came is not what was named.
    #[error(
        "{what} of {registry} is not what it should be: its digest is {got}. Nothing of it was kept"
    )]
    Digest {
        /// Which registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// What came.
        got: Digest,
    },
    /// It is longer or shorter than was said.
    #[error(
        "{what} of {registry} is {got}, and was to be {wanted} bytes long. Nothing of it was kept"
    )]
    Length {
        /// Which registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// How long it was to be.
        wanted: u64,
        /// How long it is.
        got: String,
    },
    /// More than is taken.
    #[error("the image takes {bytes} bytes, and {most} are allowed")]
    Large {
        /// What it takes.
        bytes: u64,
        /// What it may.
        most: u64,
    },
    /// There is no good signature where one is asked for.
    #[error("{image} is not taken: {source}")]
    Signature {
        /// Which image.
        image: String,
        /// Why not.
        source: SignatureError,
    },
    /// The disk is full. What was half there was removed.
    #[error("the disk that holds {} is full; free some space and pull again", .path.display())]
    Full {
        /// What was being written.
        path: PathBuf,
    },
    /// A call on the file system failed.
    #[error("cannot {action} {}: {source}", .path.display())]
    Disk {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A task of our own ended early.
    #[error("the pull was interrupted")]
    Interrupted,
}

impl PullError {
    /// Names what failed; a full disk gets its own words.
    pub(crate) fn disk(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { path: path.to_path_buf() }
            }
            _ => Self::Disk { action, path: path.to_path_buf(), source },
        }
    }
}

fn seconds(wait: &Duration) -> String {
    format!("{} s", wait.as_secs())
}
