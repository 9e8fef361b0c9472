//! An empty ext4 file system, written without root and without mkfs.
//!
//! The format is the kernel's (`Documentation/filesystems/ext4`). Of it we write what a sparse file
//! of zeroes needs to become a file system at once: block groups that keep their own tables, of
//! which all but the first and the last are marked as never used, so that nothing of them is
//! written. What is written for 10 GiB are some 100 KiB, whatever its journal's size.
#![forbid(unsafe_code)]

mod layout;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use layout::{Group, Layout};

/// Smallest size in bytes: there is room for the journal, and for files.
pub const MIN_BYTES: u64 = 64 << 20;
/// Largest size in bytes: blocks have numbers of 32 bits.
pub const MAX_BYTES: u64 = 16 << 40;

const BLOCK: u64 = 4096;
const INODE: u64 = 256;

/// Inodes that have a meaning.
const ROOT: u64 = 2;
const JOURNAL: u64 = 8;
const LOST_AND_FOUND: u64 = 11;

/// What the file system is to be.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Its size, rounded down to 4 KiB.
    pub bytes: u64,
    /// Whether it survives the end of its machine at any moment. What is thrown away with the
    /// machine does without.
    pub journal: bool,
    /// User and group of its root directory.
    pub owner: (u32, u32),
    /// Random.
    pub uuid: [u8; 16],
    /// Seconds since 1970.
    pub time: u32,
}

/// Why there is no file system now.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Too small or too large.
    #[error("a disk has {MIN_BYTES} to {MAX_BYTES} bytes, not {0}")]
    Size(u64),
    /// The file cannot be written.
    #[error("cannot write the disk's file: {0}")]
    Io(#[from] io::Error),
}

/// Makes an empty file a disk with an empty file system. The file stays sparse.
///
/// # Errors
/// `FormatError`.
pub fn format(file: &File, options: &Options) -> Result<(), FormatError> {
    if !(MIN_BYTES..=MAX_BYTES).contains(&options.bytes) {
        return Err(FormatError::Size(options.bytes));
    }
    let layout = Layout::new(options);
    file.set_len(layout.blocks() * BLOCK)?;
    let at = |block: u64, bytes: &[u8]| file.write_all_at(bytes, block * BLOCK);
    let descriptors = layout.descriptors();
    for group in layout.groups().filter(Group::has_backup) {
        let first = group.first_block();
        // The first 1024 bytes of the disk are not the file system's.
        let before = if first == 0 { 1024 } else { 0 };
        file.write_all_at(&layout.superblock(group.index()), first * BLOCK + before)?;
        at(first + 1, &descriptors)?;
    }
    for group in layout.groups().filter(Group::is_initialised) {
        at(group.block_bitmap(), &group.used_blocks())?;
        if group.index() == 0 {
            at(group.inode_bitmap(), &group.used_inodes())?;
        }
    }
    let table = layout.first().inode_table() * BLOCK;
    let inode = |number: u64, bytes: &[u8]| file.write_all_at(bytes, table + (number - 1) * INODE);
    inode(ROOT, &layout.root_inode())?;
    at(layout.root_directory(), &layout::root_directory())?;
    inode(LOST_AND_FOUND, &layout.lost_and_found_inode())?;
    for (index, block) in (0..).zip(layout.lost_and_found()) {
        at(block, &layout::lost_and_found(index == 0))?;
    }
    if let Some(journal) = layout.journal() {
        inode(JOURNAL, &layout.journal_inode())?;
        at(journal.start, &layout.journal_superblock())?;
    }
    Ok(())
}
