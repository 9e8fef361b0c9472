//! What can fail while a sandbox is prepared.

use std::io;

use wire::op::{ErrorCode, OpError};

/// A step of preparing the sandbox failed.
#[derive(Debug, thiserror::Error)]
#[error("could not {action}")]
pub(crate) struct SetupError {
    /// Completes "could not …".
    action: &'static str,
    /// What the system said.
    #[source]
    source: io::Error,
}

impl SetupError {
    /// The error on the wire, where there is no chain to print.
    pub(super) fn to_op_error(&self) -> OpError {
        let code = match self.source.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOMEM | libc::ENOSPC | libc::EMFILE | libc::ENFILE) => {
                ErrorCode::Exhausted
            }
            _ => ErrorCode::Failed,
        };
        OpError::new(code, format!("could not {}: {}", self.action, self.source))
    }
}

/// Names the step that a system call belongs to.
pub(super) trait During<T> {
    /// `action` completes "could not …".
    fn during(self, action: &'static str) -> Result<T, SetupError>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, action: &'static str) -> Result<T, SetupError> {
        self.map_err(|error| SetupError { action, source: error.into() })
    }
}
