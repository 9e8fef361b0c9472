//! What is asked, and what is answered.

use std::fmt;

use canonical::{Host, Leniency, Path, Query};

use crate::body::BodyRule;
use crate::origin::Origin;

/// What a sandbox may reach at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// Nothing.
    Offline,
    /// What its layers allow, those of [`crate::Layer::fetch`] among them.
    Fetch,
    /// What its layers allow.
    Allow,
    /// Everything that no layer takes away.
    Open,
}

/// What a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Any bytes.
    Tcp,
    /// TLS is passed through: no rule looks inside, and no service owns the host. Requests in
    /// cleartext are judged all the same.
    Tunnel,
    /// TLS is intercepted, and each request is judged.
    Http,
}

/// A connection that may be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint<'r> {
    /// What may go over it.
    pub kind: Kind,
    /// The rule that allows it, the most specific one.
    pub rule: &'r Origin,
    /// The rule names a private network, and the address is in it. Only for addresses.
    pub allow_private: bool,
    /// What paths of requests may have here.
    pub leniency: Leniency,
}

/// A request as it will be sent.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Whom it is for.
    pub host: &'a Host,
    /// The port.
    pub port: u16,
    /// As it is written; methods have a case.
    pub method: &'a str,
    /// Its path.
    pub path: &'a Path,
    /// Its query; empty when there is none.
    pub query: &'a Query,
    /// It asks to become a WebSocket: by GET, or over HTTP/2 by CONNECT.
    pub websocket: bool,
    /// It is gRPC, by its content type.
    pub grpc: bool,
    /// The one value of `content-type`, as it is written. A body is read as this says or not at all.
    pub content_type: Option<&'a str>,
}

/// What becomes of a request.
#[derive(Debug, Clone)]
pub enum Verdict<'r> {
    /// It may be sent.
    Allow(Allowed<'r>),
    /// It may not.
    Deny(Refusal),
    /// It depends on the body.
    Body(BodyRule<'r>),
}

/// Why a request may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed<'r> {
    /// The rule that allows it, the most specific one.
    pub rule: &'r Origin,
    pub(crate) names: &'r [Box<str>],
    /// Indices of `names`, as bits.
    pub(crate) services: u128,
}

impl Allowed<'_> {
    /// Whether a rule of this service allows it too: only then may its credential be used.
    pub fn serves(&self, service: &str) -> bool {
        let index = self.names.iter().position(|name| **name == *service);
        index.is_some_and(|index| self.services & (1 << index) != 0)
    }

    /// All services of which a rule allows it.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        let bits = self.services;
        let named = self.names.iter().enumerate();
        named.filter(move |(index, _)| bits & (1 << index) != 0).map(|(_, name)| &**name)
    }
}

/// Why something is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The deny that took it away, if it was one.
    pub rule: Option<Origin>,
    /// Why, in one sentence.
    pub reason: String,
    /// The line that would allow it, as for `--allow`. Empty where no line would.
    pub hint: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}
