//! What goes wrong between a caller and the server.

use std::error::Error as StdError;
use std::io;

use api::{Code, Problem};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The builder was given something unusable.
    #[error("{0}")]
    Configuration(String),
    /// There is no server at the address, or none that proves to be the one that was meant.
    #[error("cannot reach the server at {target}")]
    Connect {
        /// The socket's path or the URL.
        target: String,
        /// Why.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The connection broke. What was asked for may have been done.
    #[error("the connection to the server broke")]
    Broken(#[source] Box<dyn StdError + Send + Sync>),
    /// The server refused, or failed.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// The server answered with something that this version does not understand.
    #[error("the server's answer is not understood: {0}")]
    Malformed(String),
    /// What the caller gave as a body could not be read.
    #[error("cannot read what is to be sent")]
    Body(#[source] io::Error),
    /// The request could not be signed.
    #[error("cannot sign the request: {0}")]
    Sign(String),
}

impl Error {
    /// The server's own words, where it answered.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Problem(problem) => Some(problem),
            _ => None,
        }
    }

    /// The code of the server's answer.
    pub fn code(&self) -> Option<Code> {
        self.problem().map(|problem| problem.code)
    }

    /// Whether there is no server, so that nothing was asked of anybody.
    pub fn is_connect(&self) -> bool {
        matches!(self, Self::Connect { .. })
    }

    pub(crate) fn broken(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Broken(error.into())
    }

    pub(crate) fn malformed(what: impl std::fmt::Display) -> Self {
        Self::Malformed(what.to_string())
    }
}
