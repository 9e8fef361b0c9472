//! Host directories in and out of a guest as tar streams; what comes out is hostile.
//!
//! - [`pack`] sends a directory, or one file, and remembers in a [`Manifest`] what it sent.
//! - [`unpack`] puts what a guest sends into a directory that is new or empty.
//! - [`collect`] keeps what a guest changed as a [`ChangeSet`], which can be looked at, applied
//!   to the directory that was sent, in parts too, or discarded; [`sync_back`] is both at once.
//!
//! What a guest sends is first received as a whole into a staging directory on the same file
//! system, mode 0700, named `.sandforge-…`, and checked there. Only then is anything moved, and
//! every move is undone if a later one fails. So an archive that is refused, a full disk or a
//! guest that dies half-way leave the host's files as they were.
#![forbid(unsafe_code)]

mod changes;
mod links;
mod manifest;
mod moves;
mod pack;
mod protected;
mod receive;
mod repository;
mod staging;
mod sync;
mod unpack;

pub use archive::{Answer, Name, Passed};
pub use changes::{
    About, Agreed, ApplyOptions, Body, ChangeSet, ChangesError, CollectOptions, Collected,
    Difference, Ignored, Listed, PatternError, Selection, collect, collect_asked,
};
pub use links::{Below, MAX_STEPS, Resolution, Steps, resolve};
pub use manifest::{Manifest, Node};
pub use pack::{
    Estimate, Hidden, NAMED_LEFT_OUT, PackError, PackOptions, Packed, Progress, estimate, pack,
};
pub use protected::is_protected;
pub use receive::{
    Limits, MAX_BYTES, MAX_DEPTH, MAX_ENTRIES, MAX_NAMES, OutsideLinks, UnpackError,
};
pub use repository::{Bundle, Fetched, Repository, RepositoryError};
pub use sync::{Change, HeldBack, SyncOptions, Synced, Why, sync_back};
pub use unpack::{UnpackOptions, Unpacked, unpack};
