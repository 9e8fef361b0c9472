//! A sandbox's log: what happened to it and what its detached processes wrote.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::bound::{self, PageLimit, Position, ProcessId};
use crate::{Problem, Timestamp, Validate};

/// Where a line of the log comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogSource {
    /// The server, about the sandbox.
    Lifecycle,
    /// A process.
    Stdout,
    /// A process.
    Stderr,
}

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogRecord {
    /// Rises by line; gaps are lines that were dropped.
    pub seq: u64,
    /// When it came.
    pub at: Timestamp,
    /// Where it comes from.
    pub source: LogSource,
    /// The process, where it comes from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// The line, without its end; invalid UTF-8 is replaced.
    pub text: String,
}

/// Which lines. As server-sent events (`log`), it goes on while the sandbox lives.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// Lines after this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::Position>, nullable = false)]
    pub since: Option<u64>,
    /// Of this process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::ProcessId>, nullable = false)]
    pub process: Option<String>,
    /// Only the last so many, before `limit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::PageLimit>, nullable = false)]
    pub tail: Option<u32>,
    /// Most lines; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<bound::PageLimit>, nullable = false)]
    pub limit: Option<u32>,
}

impl Validate for LogQuery {
    fn validate(&self) -> Result<(), Problem> {
        Position::check_some("since", self.since)?;
        ProcessId::check_some("process", self.process.as_deref())?;
        PageLimit::check_some("tail", self.tail)?;
        PageLimit::check_some("limit", self.limit)
    }
}
