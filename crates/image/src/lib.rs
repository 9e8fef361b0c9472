//! Root images and boot assets: build, convert to EROFS, verify, cache.
//!
//! [`Store::resolve`] gives a sandbox its root, whatever the user named: an image that Sandforge
//! builds itself ([`recipe`]), one that it has, or a file made elsewhere.
//!
//! What leaves this crate is an open, read-only file, never a path: between checking an image and
//! attaching it nobody can put another one in its place.
#![forbid(unsafe_code)]

mod apt;
pub mod boot;
pub mod build;
mod cache;
mod compression;
mod cpio;
mod digest;
pub mod erofs;
mod layers;
mod mmdebstrap;
pub mod oci;
mod progress;
pub mod recipe;
mod reference;
mod source;
mod store;
pub mod tar;
mod verity;

pub use cache::CacheError;
pub use compression::Compression;
pub use layers::{ImageConfig, Layer, RootImage, Verity};
pub use mmdebstrap::{BootstrapError, Package, preflight};
pub use progress::{Progress, Stage, Step};
pub use recipe::{Recipe, RecipeError};
pub use reference::{Reference, ReferenceError};
pub use source::{ImageRef, SourceError};
pub use store::{ImageError, ImageInfo, Manifest, Removed, RootFs, Store, StoreError};
