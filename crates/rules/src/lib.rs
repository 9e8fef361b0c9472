//! Endpoint rules: what a sandbox may reach, from lines of text to a verdict.
//!
//! A line ([`Line`]) names hosts and what may be done there: `READ api.github.com/repos/acme/**`,
//! `git push github.com/acme/web refs/heads/agent/**`. Lines make layers ([`Layer`]), layers make
//! [`Rules`], and those decide about names, connections, requests and, where a rule looks so far,
//! bodies. No I/O and no clock. How lines are written is in `docs/network.md`.
#![forbid(unsafe_code)]

mod body;
mod document;
mod entry;
mod error;
mod explain;
mod file;
mod git;
mod glob;
mod graphql;
mod index;
mod json;
mod layer;
mod line;
mod mcp;
mod method;
mod origin;
mod registry;
mod request;
mod rules;
mod tenants;

pub use body::BodyRule;
pub use error::{Error, Fault};
pub use explain::{Explanation, Probe, ProbeError};
pub use layer::{Access, Layer, Placed};
pub use line::Line;
pub use origin::Origin;
pub use registry::{Registry, RegistryKind};
pub use request::{Allowed, Endpoint, Kind, Mode, Refusal, Request, Verdict};
pub use rules::{Rules, Warning};
pub use tenants::shared_suffix;
