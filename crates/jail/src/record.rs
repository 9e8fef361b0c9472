//! What a host gave a process for its confinement, and what each step took.

use std::time::Instant;

use serde::{Deserialize, Serialize};

/// What holds a process, in words.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Report {
    /// What is in force.
    pub layers: Vec<String>,
    /// What this host does not offer.
    pub missing: Vec<String>,
    /// The id of the process that does the work, as its owner sees it, where that is a child of
    /// the one that was started.
    pub inner: Option<u32>,
    /// The steps, in their order.
    pub steps: Vec<Step>,
}

/// What a step took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Which.
    pub name: String,
    /// How long.
    pub microseconds: f64,
}

/// A report that is being written.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) report: Report,
    since: Instant,
}

impl Record {
    pub(crate) fn start() -> Self {
        Self { report: Report::default(), since: Instant::now() }
    }

    pub(crate) fn holds(&mut self, layer: impl Into<String>) {
        self.report.layers.push(layer.into());
    }

    pub(crate) fn lacks(&mut self, layer: &str, reason: impl std::fmt::Display) {
        self.report.missing.push(format!("{layer}: {reason}"));
    }

    /// What was done since the last call was this.
    pub(crate) fn done(&mut self, name: &str) {
        let now = Instant::now();
        let microseconds = now.duration_since(self.since).as_secs_f64() * 1e6;
        self.report.steps.push(Step { name: name.into(), microseconds });
        self.since = now;
    }
}
