//! Decisions: pure, explained, never widened.
//!
//! The caller reads files and resolves paths; this crate reads TOML ([`Layer::parse`]), puts layers
//! together ([`Policy::new`]) and decides ([`Policy::decide`]). Every entry point asks the same
//! question before anything is allocated. What the keys mean is in `docs/policy.md`.
#![forbid(unsafe_code)]

mod decide;
mod decision;
mod effective;
mod error;
mod layer;
mod live;
mod parse;
mod pattern;
mod request;
mod shell;

pub use decide::{Host, Policy};
pub use decision::{Decision, Generation, Masks, Remedy, Rule, Verdict};
pub use effective::{Bound, Effective, Listed, Weakest};
pub use error::{Error, Fault};
pub use layer::{Kind, Layer, Resource};
pub use live::Live;
pub use request::{
    Command, Create, Exec, Isolation, Mount, MountRequest, Network, NetworkRequest, Request, Role,
    Subject, VolumeRequest,
};
