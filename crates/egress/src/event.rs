//! What is written down of what a guest does: built from what was judged, before any credential was
//! put in.

use std::time::{Duration, SystemTime};

use rules::Origin;
use serde::Serialize;

/// One lookup, connection or request. As JSON it is what goes beside its kind, decision, rule and
/// generation, which a record has places of its own for.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// When it began.
    #[serde(skip)]
    pub at: SystemTime,
    /// What it was.
    #[serde(skip)]
    pub kind: Kind,
    /// The name or the address that was asked for, in its one spelling.
    pub host: String,
    /// The port; 0 for a lookup.
    pub port: u16,
    /// The method of a request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The path of a request in its one spelling, without its query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What was decided.
    #[serde(skip)]
    pub decision: Decision,
    /// The rule that decided, with its place.
    #[serde(skip)]
    pub rule: Option<Origin>,
    /// Why it was denied or failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What would allow it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Counts the sets of rules: which one it was judged by.
    #[serde(skip)]
    pub generation: u64,
    /// The name of the credential that was put in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// The status that was answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Bytes that the guest sent: a request's body, or all of a connection.
    pub sent: u64,
    /// Bytes that it got.
    pub received: u64,
    /// How often a real credential was found in what came back, and replaced.
    pub redacted: u64,
    /// From the first byte to the last.
    #[serde(rename = "duration_ms", serialize_with = "milliseconds")]
    pub duration: Duration,
}

impl Event {
    /// A request that begins now and is allowed, by this set of rules.
    pub(crate) fn new(generation: u64) -> Self {
        Self {
            at: SystemTime::now(),
            kind: Kind::Request,
            host: String::new(),
            port: 0,
            method: None,
            path: None,
            decision: Decision::Allowed,
            rule: None,
            reason: None,
            hint: None,
            generation,
            credential: None,
            status: None,
            sent: 0,
            received: 0,
            redacted: 0,
            duration: Duration::ZERO,
        }
    }
}

fn milliseconds<S: serde::Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64((duration.as_secs_f64() * 1e6).round() / 1e3)
}

/// What a guest did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It asked for a name that no rule lets it reach.
    Lookup,
    /// It opened a connection that is not looked into, or that was refused as such.
    Connection,
    /// It sent an HTTP request.
    Request,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It was let through.
    Allowed,
    /// It was not.
    Denied,
    /// It was let through, and the other side could not be reached or broke off.
    Failed,
}

/// Where events go. Called from the path of requests: it must not wait.
pub trait Journal: Send + Sync + 'static {
    /// Takes an event.
    fn record(&self, event: Event);

    /// Whether there is room for more. Where there is none, nothing new is let through: what cannot
    /// be written down does not happen.
    fn is_ready(&self) -> bool {
        true
    }
}
