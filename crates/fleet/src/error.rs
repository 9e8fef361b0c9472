//! Why a fleet does not do what it is asked for.

use std::time::Duration;

use api::{Code, Problem, State};
use supervisor::wire::op::ErrorCode;
use supervisor::{EngineError, LinkError};

use store::StoreError;

/// Why a request failed; [`Error::problem`] is what its caller is told.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller has no right to it, or is not known.
    #[error(transparent)]
    Access(#[from] access::Refusal),
    /// Policy does not allow it, or the request is not one; the problem says all.
    #[error("{0}")]
    Refused(Problem),
    /// There is no such sandbox, process or other thing that this caller may see.
    #[error("there is no {what} {name:?}")]
    NotFound {
        /// What kind of thing.
        what: &'static str,
        /// As it was named.
        name: String,
    },
    /// The sandbox is in a state that does not allow it.
    #[error("the sandbox is {state}: {remedy}")]
    State {
        /// Which.
        state: State,
        /// What to do.
        remedy: &'static str,
    },
    /// Another sandbox or process of the workspace has the name.
    #[error("there is a {what} {name:?} already: remove it, or take another name")]
    NameTaken {
        /// What kind of thing.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// It has changed since the caller looked.
    #[error("the sandbox has version {0} by now: look again and decide anew")]
    Changed(u64),
    /// There is no place.
    #[error("{reason}: try again in {} seconds", .retry_after.as_secs())]
    Busy {
        /// What is full.
        reason: &'static str,
        /// When to try again.
        retry_after: Duration,
    },
    /// This process is stopping.
    #[error("the supervisor is stopping: try again when it is back")]
    ShuttingDown,
    /// Only signed requests are taken.
    #[error("this must be signed: register a key with `sandforge key` and sign the request")]
    Unsigned,
    /// The sandbox belongs to another process that lives.
    #[error("the sandbox {0:?} belongs to another process: wait until that has ended")]
    Elsewhere(String),
    /// Records cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The sandbox did not come up.
    #[error("{}", chain(.0.as_ref()))]
    Supervisor(std::sync::Arc<supervisor::Error>),
    /// The guest did not do its part.
    #[error(transparent)]
    Guest(LinkError),
    /// The guest did not answer in time.
    #[error("the guest did not answer in time: it may be overloaded, or stuck")]
    Overdue,
    /// A defect, or a broken host.
    #[error("{0}")]
    Internal(String),
}

impl From<supervisor::Error> for Error {
    fn from(error: supervisor::Error) -> Self {
        Self::Supervisor(std::sync::Arc::new(error))
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem)
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl Error {
    pub(crate) fn not_found(what: &'static str, name: &str) -> Self {
        Self::NotFound { what, name: name.chars().take(64).collect() }
    }

    /// What the caller is told.
    pub fn problem(&self) -> Problem {
        let detail = self.to_string();
        match self {
            Self::Access(refusal) => refusal.clone().into(),
            Self::Refused(problem) => problem.clone(),
            Self::NotFound { what: "process", .. } => Problem::new(Code::ProcessNotFound, detail),
            Self::NotFound { .. } => Problem::new(Code::NotFound, detail),
            Self::State { .. } => Problem::new(Code::WrongState, detail),
            Self::NameTaken { .. } => Problem::new(Code::NameTaken, detail),
            Self::Changed(_) => Problem::new(Code::PreconditionFailed, detail),
            Self::Busy { retry_after, .. } => {
                Problem::new(Code::Busy, detail).with_retry_after_sec(retry_after.as_secs().max(1))
            }
            Self::ShuttingDown => Problem::new(Code::ShuttingDown, detail),
            Self::Unsigned => Problem::new(Code::SignatureRequired, detail),
            Self::Elsewhere(_) => Problem::new(Code::WrongState, detail),
            Self::Store(error) => crate::ledger::problem(error),
            Self::Supervisor(error) => Problem::new(supervisor_code(error), detail),
            Self::Guest(error) => Problem::new(guest_code(error), detail),
            Self::Overdue => Problem::new(Code::GuestTimeout, detail),
            Self::Internal(_) => Problem::new(Code::Internal, detail),
        }
    }
}

fn supervisor_code(error: &supervisor::Error) -> Code {
    use supervisor::Error as E;
    match error {
        E::Request(_) => Code::InvalidRequest,
        // Nobody named it: none of those that there are can run this.
        E::NoSuchEngine(name) if name == "auto" => Code::EngineUnavailable,
        E::NoSuchEngine(_) => Code::InvalidRequest,
        E::Isolation { .. } => Code::EngineUnavailable,
        E::Engine(EngineError::Unavailable(_)) => Code::EngineUnavailable,
        E::Engine(EngineError::Unsupported(_)) => Code::Unsupported,
        E::NoSuchSandbox(_) => Code::NotFound,
        E::NameTaken(_) => Code::NameTaken,
        E::Mismatch { .. } => Code::Unsupported,
        E::Damaged { .. } => Code::WrongState,
        E::Guest(error) => guest_code(error),
        E::Internal(_) => Code::Internal,
        _ => Code::BootFailed,
    }
}

fn guest_code(error: &LinkError) -> Code {
    let LinkError::Operation(error) = error else {
        return match error {
            LinkError::Unanswered(_) => Code::GuestTimeout,
            LinkError::Request(_) => Code::InvalidRequest,
            _ => Code::GuestFailed,
        };
    };
    match error.code {
        ErrorCode::Invalid => Code::InvalidRequest,
        ErrorCode::Unsupported => Code::Unsupported,
        ErrorCode::NotFound => Code::FileNotFound,
        ErrorCode::Exists => Code::AlreadyExists,
        ErrorCode::PermissionDenied => Code::PermissionDenied,
        ErrorCode::Exhausted | ErrorCode::TooMany => Code::GuestFull,
        ErrorCode::BadSignature
        | ErrorCode::WrongSandbox
        | ErrorCode::Replayed
        | ErrorCode::Expired
        | ErrorCode::NotReady
        | ErrorCode::Cancelled
        | ErrorCode::Failed => Code::GuestFailed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_host_says_when_to_come_again() {
        let error = Error::Busy { reason: "x", retry_after: Duration::from_millis(100) };
        assert_eq!(error.problem().retry_after_sec(), Some(1));
    }

    #[test]
    fn what_the_guest_says_keeps_its_kind() {
        use supervisor::wire::op::OpError;
        let code =
            |code| Error::Guest(LinkError::Operation(OpError::new(code, "x"))).problem().code;
        assert_eq!(code(ErrorCode::NotFound), Code::FileNotFound);
        assert_eq!(code(ErrorCode::BadSignature), Code::GuestFailed);
        assert_eq!(code(ErrorCode::Exhausted), Code::GuestFull);
    }
}
