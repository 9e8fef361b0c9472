//! Images in layers: what they are made of, and how they become file systems.

mod archive;
mod build;
mod document;
mod images;
mod layer;
mod layout;
mod parents;
mod place;
mod view;

pub(crate) use archive::begins_like_one;
pub use build::{Built, NewLayer, StepLock};
pub use document::{Config, Descriptor, DocumentError, Index, Manifest, Platform};
pub(crate) use images::BLOBS;
pub use images::{BlobHold, Import, Inspection, LayerInfo, Pruned};
pub use layer::{Converted, Expected, Foreign, LayerError, Limits, convert};
pub(crate) use layout::Layout;

use std::io;
use std::path::PathBuf;

use crate::cache::CacheError;
use crate::tar::TarError;
use document::Kind;

/// Why an image in layers cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OciError {
    /// One of its documents was refused.
    #[error("{what}: {source}")]
    Document {
        /// Which.
        what: String,
        /// Why.
        source: DocumentError,
    },
    /// A part of it is not there.
    #[error("{digest}, which is a part of it, is not there")]
    Missing {
        /// Its digest, or its name in an archive.
        digest: String,
    },
    /// A part of it is not what it was.
    #[error("a part of it has the SHA-256 {found}, not {expected}; it was damaged or replaced")]
    Digest {
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A part of it has another length than announced.
    #[error("{digest} has {found} bytes, not {expected}")]
    Size {
        /// Which.
        digest: String,
        /// Its length.
        found: u64,
        /// What it should be.
        expected: u64,
    },
    /// One of its layers was refused.
    #[error("its layer {diff_id}: {source}")]
    Layer {
        /// Which.
        diff_id: String,
        /// Why.
        source: LayerError,
    },
    /// The archive that it comes in was refused.
    #[error(transparent)]
    Archive(TarError),
    /// The archive has more files than any image, or its layers more directories without an entry.
    #[error("it has over {limit} parts that have to be looked at")]
    Many {
        /// How many are taken.
        limit: usize,
    },
    /// There is no image in it.
    #[error(
        "{} holds no image: neither an OCI layout nor what `docker save` writes", .path.display()
    )]
    NoImage {
        /// The directory or archive.
        path: PathBuf,
    },
    /// A layer puts files below what is no directory in the image, and leads to none.
    #[error(
        "its layer {diff_id} has files below /{path}, which is no directory in the layers below it"
    )]
    Through {
        /// The layer.
        diff_id: String,
        /// The path.
        path: String,
    },
    /// One of its layers is not what was made here.
    #[error("its layer {diff_id} is damaged")]
    Damaged {
        /// Which.
        diff_id: String,
    },
    /// It was kept without what is asked for.
    #[error(
        "its layers are here as file systems only; `sandforge image import` without --no-blobs \
         keeps what an export needs"
    )]
    NoBlobs,
    /// A file of a build directory cannot go into an image.
    #[error("{path}: {why}")]
    File {
        /// Its path there.
        path: String,
        /// Why not.
        why: String,
    },
    /// An image that cannot be built upon.
    #[error("it is a file system of its own, not an image in layers: import one, or a tar archive")]
    NotLayered,
    /// A file could not be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The cache made trouble.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// The image that an index leads to on this machine, and what it is called there.
pub(crate) fn choose(
    layout: &Layout,
    index: &[u8],
    media_type: Option<&str>,
    name: Option<&str>,
) -> Result<(Descriptor, Option<String>), OciError> {
    let platform = Platform::of_guests();
    let mut document = index.to_vec();
    let mut media_type = media_type.map(str::to_owned);
    let mut called = None;
    let mut what = "index.json".to_owned();
    // An index in a layout may lead to one by platform. Nobody nests them deeper.
    for _ in 0..3 {
        let refuse = |source| OciError::Document { what: what.clone(), source };
        let index = Index::parse(&document, media_type.as_deref()).map_err(refuse)?;
        let chosen = index.choose(&platform, name).map_err(refuse)?.clone();
        called = called.or_else(|| chosen.annotations.get(document::REF_NAME).cloned());
        if Kind::of(&chosen.media_type).map_err(refuse)? == Kind::Manifest {
            return Ok((chosen, called));
        }
        document = layout.document(&chosen)?;
        media_type = Some(chosen.media_type);
        what = chosen.digest;
    }
    let source = DocumentError::Value("it leads from index to index");
    Err(OciError::Document { what, source })
}

/// Whether one of these tags is the name, however both are written.
fn has_tag(tags: &[String], name: &str) -> bool {
    let canonical = |text: &str| text.parse::<crate::Reference>().ok();
    tags.iter()
        .any(|tag| tag == name || canonical(tag).is_some_and(|tag| Some(tag) == canonical(name)))
}
