//! EROFS images: written from a stream of entries, and recognised.
//!
//! The format is the kernel's (`fs/erofs/erofs_fs.h`, `Documentation/filesystems/erofs.rst`). Of
//! it we write the oldest and simplest part, which every kernel since 5.4 reads without extra
//! options: extended inodes, plain data in 4 KiB blocks, and tails, short files and small
//! directories inline behind their inode. Nothing is compressed: a guest under software emulation
//! pays for decompression tenfold, and the image lies in a cache, not on a wire.

mod format;
mod lookup;
mod read;
mod tree;
mod writer;

pub use format::{SUPERBLOCK_END, Superblock, SuperblockError};
pub(crate) use lookup::{Found, Owner, walk};
pub(crate) use read::{Image, Item, What};
pub use writer::{Summary, WriteError, Writer};

use crate::tar;
use std::io::{Read, Seek, Write};

/// What one image may cost. A hostile archive of a few bytes can ask for any amount of either.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Size of the image, holes of sparse files included: they are zeros in the image.
    pub image_bytes: u64,
    /// Files, directories and links. Each costs a few hundred bytes of memory while writing.
    pub entries: u32,
    /// Names, link targets and extended attributes, all in memory while writing.
    pub metadata_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { image_bytes: 32 << 30, entries: 4_000_000, metadata_bytes: 1 << 30 }
    }
}

/// Turns a whole archive into an image, in one pass over `archive`.
pub fn from_tar<W: Read + Write + Seek>(
    archive: impl Read,
    image: W,
    limits: Limits,
) -> Result<Summary, WriteError> {
    let mut writer = Writer::new(image, limits)?;
    writer.add_archive(&mut tar::Reader::new(archive), |_| true)?;
    writer.finish().map(|(_, summary)| summary)
}
