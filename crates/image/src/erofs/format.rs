//! The structures on disk, as bytes.

use crate::tar::{Entry, Time};

pub(super) const BLOCK: usize = 4096;
pub(super) const INODE: usize = 64;
/// Inode numbers count slots of this size from the start of the metadata.
pub(super) const SLOT: usize = 32;
pub(super) const DIRENT: usize = 12;
pub(super) const XATTR_HEADER: usize = 12;
const SUPERBLOCK_AT: usize = 1024;
const SUPERBLOCK: usize = 128;
const MAGIC: u32 = 0xe0f5_e1e2;
const COMPAT_CHECKSUM: u32 = 1;
/// Chunked files: uncompressed, read by every kernel with EROFS since 5.15.
const INCOMPAT_CHUNKED: u32 = 4;

/// Bytes at the start of an image that [`Superblock::parse`] needs.
pub const SUPERBLOCK_END: usize = BLOCK;

/// What the first block says about an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Size of the whole image in bytes.
    pub bytes: u64,
}

/// Why a first block was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SuperblockError {
    /// The magic number is another.
    #[error("it does not start like an EROFS image")]
    Magic,
    /// The checksum does not match the block.
    #[error("its first block is damaged")]
    Checksum,
    /// The image needs something that the guest kernel is built without.
    #[error(
        "it uses compression or another feature (0x{0:x}) that the guest kernel is built without; \
         make it with a plain `mkfs.erofs IMAGE DIR`"
    )]
    Feature(u32),
    /// Another block size than the guest's page size.
    #[error("its blocks are not 4 KiB")]
    BlockSize,
}

impl Superblock {
    /// Checks what can be checked without reading more than the first block.
    pub fn parse(first: &[u8]) -> Result<Self, SuperblockError> {
        let Some(block) = first.first_chunk::<BLOCK>() else { return Err(SuperblockError::Magic) };
        let sb = &block[SUPERBLOCK_AT..];
        let word = |at: usize| u32::from_le_bytes([sb[at], sb[at + 1], sb[at + 2], sb[at + 3]]);
        if word(0) != MAGIC {
            return Err(SuperblockError::Magic);
        }
        if sb[12] != 12 {
            return Err(SuperblockError::BlockSize);
        }
        if word(8) & COMPAT_CHECKSUM != 0 {
            let mut plain = sb.to_vec();
            plain[4..8].fill(0);
            if crc32c(&plain) != word(4) {
                return Err(SuperblockError::Checksum);
            }
        }
        match word(80) & !INCOMPAT_CHUNKED {
            0 => Ok(Self { bytes: u64::from(word(36)) * BLOCK as u64 }),
            unknown => Err(SuperblockError::Feature(unknown)),
        }
    }

    /// The first block of an image with `blocks` blocks, `inodes` inodes and its metadata, root
    /// inode first, from block `meta` on. No time and no UUID: equal trees give equal images.
    pub(super) fn write(blocks: u32, inodes: u64, meta: u32) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let sb = &mut block[SUPERBLOCK_AT..];
        sb[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        sb[8..12].copy_from_slice(&COMPAT_CHECKSUM.to_le_bytes());
        sb[12] = 12;
        sb[16..24].copy_from_slice(&inodes.to_le_bytes());
        sb[36..40].copy_from_slice(&blocks.to_le_bytes());
        sb[40..44].copy_from_slice(&meta.to_le_bytes());
        debug_assert!(sb[SUPERBLOCK..].iter().all(|&b| b == 0));
        let checksum = crc32c(sb);
        sb[4..8].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// CRC-32C as the kernel's `crc32c(~0, …)` returns it: not inverted at the end.
fn crc32c(data: &[u8]) -> u32 {
    data.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

/// Owner, mode and time of an inode, and its extended attributes as they stand on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) xattrs: Box<[u8]>,
}

impl Meta {
    /// A directory that no entry describes.
    pub(super) fn implied_dir() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, mtime: Time::default(), xattrs: Box::default() }
    }

    /// What hides a name of the layers below.
    pub(super) fn whiteout() -> Self {
        Self { mode: 0, ..Self::implied_dir() }
    }

    /// Marks a directory as one that hides what the layers below have in its place. `None` when
    /// there is no room for the mark.
    pub(super) fn hide_below(&mut self) -> Option<()> {
        self.mark(b"overlay.opaque", b"y")
    }

    /// Marks a directory as one that may have whiteouts, which the overlay else lists by their names
    /// where no other layer has the directory too (`ovl_get_inode` in `fs/overlayfs/inode.c` looks
    /// for this attribute, whatever its value).
    pub(super) fn has_whiteouts(&mut self) -> Option<()> {
        self.mark(b"overlay.origin", b"")
    }

    fn mark(&mut self, suffix: &[u8], value: &[u8]) -> Option<()> {
        let mut area = self.xattrs.to_vec();
        if area.is_empty() {
            area.resize(XATTR_HEADER, 0);
        }
        push_xattr(&mut area, 4, suffix, value)?;
        xattr_count(area.len())?;
        self.xattrs = area.into();
        Some(())
    }

    /// `None` when the extended attributes are more than an inode can hold.
    pub(super) fn of(entry: &Entry) -> Option<Self> {
        Some(Self {
            mode: entry.mode & 0o7777,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: encode_xattrs(entry)?,
        })
    }
}

/// The inline area: a header of 12 bytes, then entries padded to 4 bytes.
///
/// Attributes that no Linux file system would keep are left out. So are the overlay's own
/// (`trusted.overlay.*`, `user.overlay.*`): the image becomes the lower layer of an overlay, and
/// an archive must not hide or redirect what the guest sees there.
fn encode_xattrs(entry: &Entry) -> Option<Box<[u8]>> {
    let mut area = vec![0; XATTR_HEADER];
    for (name, value) in &entry.xattrs {
        if let Some((index, suffix)) = xattr_prefix(name) {
            push_xattr(&mut area, index, suffix, value)?;
        }
    }
    if area.len() == XATTR_HEADER {
        return Some(Box::default());
    }
    xattr_count(area.len())?;
    Some(area.into())
}

fn push_xattr(area: &mut Vec<u8>, index: u8, suffix: &[u8], value: &[u8]) -> Option<()> {
    let (name_len, value_len) =
        (u8::try_from(suffix.len()).ok()?, u16::try_from(value.len()).ok()?);
    area.extend_from_slice(&[name_len, index]);
    area.extend_from_slice(&value_len.to_le_bytes());
    area.extend_from_slice(suffix);
    area.extend_from_slice(value);
    area.resize(area.len().next_multiple_of(4), 0);
    Some(())
}

fn xattr_prefix(name: &[u8]) -> Option<(u8, &[u8])> {
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
        return None;
    }
    match name {
        b"system.posix_acl_access" => return Some((2, b"")),
        b"system.posix_acl_default" => return Some((3, b"")),
        _ => {}
    }
    [(1, &b"user."[..]), (4, b"trusted."), (6, b"security.")]
        .into_iter()
        .find_map(|(index, prefix)| Some((index, name.strip_prefix(prefix)?)))
        .filter(|(_, suffix)| !suffix.is_empty())
}

/// The length of the inline area as the inode states it.
fn xattr_count(len: usize) -> Option<u16> {
    if len == 0 { Some(0) } else { u16::try_from((len - XATTR_HEADER) / 4 + 1).ok() }
}

/// `stat` bits and directory entry types of what an image can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    File,
    Dir,
    Fifo,
    Symlink,
    /// With the number 0/0, which is the overlay's sign that a name is gone.
    Char,
}

impl Type {
    fn mode(self) -> u16 {
        match self {
            Self::File => 0o100_000,
            Self::Dir => 0o040_000,
            Self::Fifo => 0o010_000,
            Self::Symlink => 0o120_000,
            Self::Char => 0o020_000,
        }
    }

    fn dirent(self) -> u8 {
        match self {
            Self::File => 1,
            Self::Dir => 2,
            Self::Fifo => 5,
            Self::Symlink => 7,
            Self::Char => 3,
        }
    }
}

/// An extended inode. Its inline tail, if any, follows the attributes.
pub(super) struct Inode<'a> {
    pub(super) kind: Type,
    pub(super) meta: &'a Meta,
    pub(super) size: u64,
    pub(super) first_block: u32,
    pub(super) inline: bool,
    pub(super) number: u32,
    pub(super) links: u32,
}

impl Inode<'_> {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let flat_inline = 2;
        let format: u16 = 1 | if self.inline { flat_inline << 1 } else { 0 };
        out.extend_from_slice(&format.to_le_bytes());
        let xattrs = xattr_count(self.meta.xattrs.len()).unwrap_or(0);
        out.extend_from_slice(&xattrs.to_le_bytes());
        out.extend_from_slice(&(self.kind.mode() | self.meta.mode).to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.first_block.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.meta.uid.to_le_bytes());
        out.extend_from_slice(&self.meta.gid.to_le_bytes());
        out.extend_from_slice(&self.meta.mtime.seconds.to_le_bytes());
        out.extend_from_slice(&self.meta.mtime.nanos.to_le_bytes());
        out.extend_from_slice(&self.links.to_le_bytes());
        out.extend_from_slice(&[0; 16]);
        out.extend_from_slice(&self.meta.xattrs);
    }
}

/// How the entries of one directory, `.` and `..` among them, spread over blocks.
#[derive(Debug, Clone)]
pub(super) struct DirLayout {
    /// How many entries each block holds.
    per_block: Vec<usize>,
    /// Bytes used in the last block; the ones before it are full, padded with zeros.
    last: usize,
}

impl DirLayout {
    pub(super) fn plan<'a>(names: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut per_block = vec![0];
        let mut last = 0;
        for name in names {
            let cost = DIRENT + name.len();
            if last + cost > BLOCK {
                per_block.push(0);
                last = 0;
            }
            last += cost;
            if let Some(count) = per_block.last_mut() {
                *count += 1;
            }
        }
        Self { per_block, last }
    }

    pub(super) fn size(&self) -> u64 {
        ((self.per_block.len() - 1) * BLOCK + self.last) as u64
    }

    /// The contents, `size` bytes, from the same names in the same order.
    pub(super) fn write<'a>(
        &self,
        mut entries: impl Iterator<Item = (&'a [u8], u64, Type)>,
    ) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.per_block.len() * BLOCK);
        for &count in &self.per_block {
            out.resize(out.len().next_multiple_of(BLOCK), 0);
            let mut names = Vec::new();
            for (name, nid, kind) in entries.by_ref().take(count) {
                let name_at = u16::try_from(count * DIRENT + names.len()).unwrap_or(u16::MAX);
                out.extend_from_slice(&nid.to_le_bytes());
                out.extend_from_slice(&name_at.to_le_bytes());
                out.extend_from_slice(&[kind.dirent(), 0]);
                names.extend_from_slice(name);
            }
            out.extend_from_slice(&names);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_is_the_kernels() {
        // The check value of CRC-32C, RFC 3720 B.4, before its final inversion.
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_superblock_reads_back() {
        let block = Superblock::write(7, 3, 2);
        assert_eq!(Superblock::parse(&block), Ok(Superblock { bytes: 7 * 4096 }));
    }

    #[test]
    fn a_flipped_bit_in_the_first_block_is_seen() {
        let mut block = Superblock::write(7, 3, 2);
        block[3000] ^= 1;
        assert_eq!(Superblock::parse(&block), Err(SuperblockError::Checksum));
    }

    #[test]
    fn attributes_of_the_overlay_are_left_out() {
        assert_eq!(xattr_prefix(b"trusted.overlay.opaque"), None);
        assert_eq!(xattr_prefix(b"security.capability"), Some((6, &b"capability"[..])));
    }
}
