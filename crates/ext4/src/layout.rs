//! Where everything is, and the bytes of it.

use std::ops::Range;

use crate::{BLOCK, INODE, JOURNAL, LOST_AND_FOUND, Options, ROOT};

const BLOCKS_PER_GROUP: u64 = 8 * BLOCK;
/// One for 16 KiB, as mke2fs has it.
const INODES_PER_GROUP: u64 = 8192;
const TABLE_BLOCKS: u64 = INODES_PER_GROUP * INODE / BLOCK;
const DESCRIPTOR: u64 = 32;
/// A last group that would have fewer blocks for files than this is left out.
const LEAST_GROUP: u64 = 64;
/// 32 MiB.
const JOURNAL_BLOCKS: u64 = 8192;
const LOST_AND_FOUND_BLOCKS: u64 = 4;
/// Inodes up to here are taken.
const USED_INODES: u64 = LOST_AND_FOUND;

// Features, of fs/ext4/ext4.h.
const HAS_JOURNAL: u32 = 0x4;
const EXT_ATTR: u32 = 0x8;
const DIR_INDEX: u32 = 0x20;
const FILE_TYPE: u32 = 0x2;
const EXTENTS: u32 = 0x40;
const SPARSE_SUPER: u32 = 0x1;
const LARGE_FILE: u32 = 0x2;
const HUGE_FILE: u32 = 0x8;
const GROUP_CHECKSUM: u32 = 0x10;
const DIR_NLINK: u32 = 0x20;
const EXTRA_INODE_SIZE: u32 = 0x40;

// Of a group.
const INODES_UNINITIALISED: u16 = 1;
const BLOCKS_UNINITIALISED: u16 = 2;
/// The table reads as zeroes, as a hole does.
const INODES_ZEROED: u16 = 4;

const INODE_EXTENTS: u32 = 0x80000;
const DIRECTORY: u8 = 2;

/// The places of a file system.
#[derive(Debug)]
pub(crate) struct Layout<'a> {
    options: &'a Options,
    blocks: u64,
    groups: u64,
    descriptor_blocks: u64,
}

/// A block group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group<'a> {
    layout: &'a Layout<'a>,
    index: u64,
}

/// Little-endian fields at offsets.
struct Fields(Vec<u8>);

impl Fields {
    fn new(bytes: u64) -> Self {
        Self(vec![0; usize::try_from(bytes).expect("a block")])
    }

    fn bytes(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn u8(&mut self, at: usize, value: u8) -> &mut Self {
        self.bytes(at, &[value])
    }

    fn u16(&mut self, at: usize, value: u16) -> &mut Self {
        self.bytes(at, &value.to_le_bytes())
    }

    fn u32(&mut self, at: usize, value: u32) -> &mut Self {
        self.bytes(at, &value.to_le_bytes())
    }
}

fn narrow32(value: u64) -> u32 {
    u32::try_from(value).expect("it is less than the blocks, whose numbers have 32 bits")
}

fn narrow16(value: u64) -> u16 {
    u16::try_from(value).expect("it is less than the blocks of a group")
}

impl<'a> Layout<'a> {
    pub(crate) fn new(options: &'a Options) -> Self {
        let mut blocks = (options.bytes / BLOCK).min(u32::MAX.into());
        loop {
            let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
            let descriptor_blocks = (groups * DESCRIPTOR).div_ceil(BLOCK);
            let layout = Self { options, blocks, groups, descriptor_blocks };
            let last = Group { layout: &layout, index: groups - 1 };
            if groups == 1 || last.blocks() >= last.overhead() + LEAST_GROUP {
                return layout;
            }
            blocks = (groups - 1) * BLOCKS_PER_GROUP;
        }
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    pub(crate) fn groups(&'a self) -> impl Iterator<Item = Group<'a>> {
        (0..self.groups).map(|index| Group { layout: self, index })
    }

    pub(crate) fn first(&'a self) -> Group<'a> {
        Group { layout: self, index: 0 }
    }

    /// The block of the root directory: the first that is nobody's.
    pub(crate) fn root_directory(&'a self) -> u64 {
        self.first().overhead()
    }

    pub(crate) fn lost_and_found(&'a self) -> Range<u64> {
        let start = self.root_directory() + 1;
        start..start + LOST_AND_FOUND_BLOCKS
    }

    pub(crate) fn journal(&'a self) -> Option<Range<u64>> {
        let start = self.lost_and_found().end;
        self.options.journal.then_some(start..start + JOURNAL_BLOCKS)
    }

    /// What of the first group is taken.
    fn used_of_first(&'a self) -> u64 {
        self.journal().unwrap_or_else(|| self.lost_and_found()).end
    }

    /// As it is in this group; only the first is used as long as nothing is broken.
    pub(crate) fn superblock(&'a self, group: u64) -> Vec<u8> {
        let Options { uuid, time, journal, .. } = self.options;
        let free_blocks = self.groups().map(|group| group.free_blocks()).sum();
        let inodes = self.groups * INODES_PER_GROUP;
        let compatible = EXT_ATTR | DIR_INDEX | if *journal { HAS_JOURNAL } else { 0 };
        let read_only =
            SPARSE_SUPER | LARGE_FILE | HUGE_FILE | GROUP_CHECKSUM | DIR_NLINK | EXTRA_INODE_SIZE;
        let mut block = Fields::new(1024);
        block.u32(0x00, narrow32(inodes)).u32(0x04, narrow32(self.blocks));
        block.u32(0x0c, narrow32(free_blocks)).u32(0x10, narrow32(inodes - USED_INODES));
        // The size of a block and of a cluster, as a power of two above 1 KiB.
        block.u32(0x18, 2).u32(0x1c, 2);
        block.u32(0x20, narrow32(BLOCKS_PER_GROUP)).u32(0x24, narrow32(BLOCKS_PER_GROUP));
        block.u32(0x28, narrow32(INODES_PER_GROUP)).u32(0x30, *time);
        // Never checked because of how often it was mounted; clean; read-only after an error.
        block.u16(0x36, u16::MAX).u16(0x38, 0xef53).u16(0x3a, 1).u16(0x3c, 2);
        block.u32(0x40, *time).u32(0x4c, 1).u32(0x54, narrow32(LOST_AND_FOUND));
        block.u16(0x58, narrow16(INODE)).u16(0x5a, u16::try_from(group).unwrap_or(u16::MAX));
        block.u32(0x5c, compatible).u32(0x60, FILE_TYPE | EXTENTS).u32(0x64, read_only);
        block.bytes(0x68, uuid).bytes(0xec, uuid);
        // Names are hashed by half of MD4, of signed characters.
        block.u8(0xfc, 1).u32(0x160, 1).u32(0x108, *time);
        block.u16(0x15c, 32).u16(0x15e, 32);
        if let Some(place) = self.journal() {
            block.u32(0xe0, narrow32(JOURNAL)).u8(0xfd, 1);
            block.bytes(0x10c, &extents(&place));
            block.u32(0x10c + 64, narrow32(JOURNAL_BLOCKS * BLOCK));
        }
        block.0
    }

    /// The descriptors of all groups, in whole blocks.
    pub(crate) fn descriptors(&'a self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.groups().flat_map(|group| group.descriptor()).collect();
        bytes.resize(usize::try_from(self.descriptor_blocks * BLOCK).expect("a few MiB"), 0);
        bytes
    }

    fn inode(&self, mode: u16, owner: (u32, u32), links: u16, blocks: &Range<u64>) -> Vec<u8> {
        let time = self.options.time;
        let count = blocks.end - blocks.start;
        let (uid, gid) = owner;
        let [uid_low, uid_high] = halves(uid);
        let [gid_low, gid_high] = halves(gid);
        let mut inode = Fields::new(INODE);
        inode.u16(0x00, mode).u16(0x02, uid_low).u32(0x04, narrow32(count * BLOCK));
        inode.u32(0x08, time).u32(0x0c, time).u32(0x10, time);
        inode.u16(0x18, gid_low).u16(0x1a, links).u32(0x1c, narrow32(count * BLOCK / 512));
        inode.u32(0x20, INODE_EXTENTS).bytes(0x28, &extents(blocks));
        inode.u16(0x78, uid_high).u16(0x7a, gid_high).u16(0x80, 32).u32(0x90, time);
        inode.0
    }

    pub(crate) fn root_inode(&'a self) -> Vec<u8> {
        let block = self.root_directory();
        self.inode(0o040_755, self.options.owner, 3, &(block..block + 1))
    }

    pub(crate) fn lost_and_found_inode(&'a self) -> Vec<u8> {
        self.inode(0o040_700, (0, 0), 2, &self.lost_and_found())
    }

    pub(crate) fn journal_inode(&'a self) -> Vec<u8> {
        let place = self.journal().unwrap_or_default();
        self.inode(0o100_600, (0, 0), 1, &place)
    }

    /// An empty journal (`fs/jbd2`, `linux/jbd2.h`), which is big-endian.
    pub(crate) fn journal_superblock(&self) -> Vec<u8> {
        let mut block = Fields::new(BLOCK);
        // Magic number and kind; size and number of blocks; the first of the log, and what it
        // begins with.
        let words = [0xc03b_3998, 4, 0, narrow32(BLOCK), narrow32(JOURNAL_BLOCKS), 1, 1, 0];
        for (at, word) in (0..).step_by(4).zip(words) {
            block.bytes(at, &u32::to_be_bytes(word));
        }
        block.bytes(0x30, &self.options.uuid).bytes(0x40, &1_u32.to_be_bytes());
        block.0
    }
}

fn halves(value: u32) -> [u16; 2] {
    let [a, b, c, d] = value.to_le_bytes();
    [u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])]
}

/// A tree of one extent that has no more than 32768 blocks: the 60 bytes of an inode.
fn extents(blocks: &Range<u64>) -> Vec<u8> {
    let mut tree = Fields::new(60);
    tree.u16(0, 0xf30a).u16(2, 1).u16(4, 4);
    tree.u16(16, narrow16(blocks.end - blocks.start)).u32(20, narrow32(blocks.start));
    tree.0
}

/// An entry of a directory that takes up `length` bytes.
fn entry(inode: u64, name: &[u8], length: usize) -> Vec<u8> {
    let mut entry = Fields::new(length as u64);
    entry.u32(0, narrow32(inode)).u16(4, u16::try_from(length).expect("a block"));
    let kind = if inode == 0 { 0 } else { DIRECTORY };
    entry.u8(6, u8::try_from(name.len()).expect("a short name")).u8(7, kind).bytes(8, name);
    entry.0
}

pub(crate) fn root_directory() -> Vec<u8> {
    let rest = 4096 - 24;
    let last = entry(LOST_AND_FOUND, b"lost+found", rest);
    [entry(ROOT, b".", 12), entry(ROOT, b"..", 12), last].concat()
}

pub(crate) fn lost_and_found(is_first: bool) -> Vec<u8> {
    match is_first {
        true => [entry(LOST_AND_FOUND, b".", 12), entry(ROOT, b"..", 4096 - 12)].concat(),
        false => entry(0, b"", 4096),
    }
}

impl Group<'_> {
    pub(crate) fn index(&self) -> u64 {
        self.index
    }

    pub(crate) fn first_block(&self) -> u64 {
        self.index * BLOCKS_PER_GROUP
    }

    fn blocks(&self) -> u64 {
        BLOCKS_PER_GROUP.min(self.layout.blocks - self.first_block())
    }

    fn is_last(&self) -> bool {
        self.index + 1 == self.layout.groups
    }

    /// Whether it has a copy of the superblock and of the descriptors.
    pub(crate) fn has_backup(&self) -> bool {
        let is_power = |base: u64| {
            let mut power = base;
            while power < self.index {
                power *= base;
            }
            power == self.index
        };
        self.index <= 1 || [3, 5, 7].into_iter().any(is_power)
    }

    /// Whether its bitmap of blocks is on the disk. Those of the others follow from the format.
    pub(crate) fn is_initialised(&self) -> bool {
        self.index == 0 || self.is_last()
    }

    fn backup_blocks(&self) -> u64 {
        if self.has_backup() { 1 + self.layout.descriptor_blocks } else { 0 }
    }

    pub(crate) fn block_bitmap(&self) -> u64 {
        self.first_block() + self.backup_blocks()
    }

    pub(crate) fn inode_bitmap(&self) -> u64 {
        self.block_bitmap() + 1
    }

    pub(crate) fn inode_table(&self) -> u64 {
        self.inode_bitmap() + 1
    }

    /// Blocks at its beginning that are not for files.
    fn overhead(&self) -> u64 {
        self.backup_blocks() + 2 + TABLE_BLOCKS
    }

    fn used(&self) -> u64 {
        if self.index == 0 { self.layout.used_of_first() } else { self.overhead() }
    }

    fn free_blocks(&self) -> u64 {
        self.blocks() - self.used()
    }

    /// What is beyond its end counts as used.
    pub(crate) fn used_blocks(&self) -> Vec<u8> {
        bitmap(self.used(), self.blocks())
    }

    pub(crate) fn used_inodes(&self) -> Vec<u8> {
        bitmap(USED_INODES, INODES_PER_GROUP)
    }

    fn descriptor(&self) -> Vec<u8> {
        let is_first = self.index == 0;
        let used_inodes = if is_first { USED_INODES } else { 0 };
        let mut flags = INODES_ZEROED;
        if !is_first {
            flags |= INODES_UNINITIALISED;
        }
        if !self.is_initialised() {
            flags |= BLOCKS_UNINITIALISED;
        }
        let free_inodes = narrow16(INODES_PER_GROUP - used_inodes);
        let mut descriptor = Fields::new(DESCRIPTOR);
        descriptor.u32(0, narrow32(self.block_bitmap())).u32(4, narrow32(self.inode_bitmap()));
        descriptor.u32(8, narrow32(self.inode_table())).u16(12, narrow16(self.free_blocks()));
        descriptor.u16(14, free_inodes).u16(16, if is_first { 2 } else { 0 }).u16(18, flags);
        descriptor.u16(28, free_inodes);
        let index = narrow32(self.index).to_le_bytes();
        let covered = [&self.layout.options.uuid[..], &index, &descriptor.0[..30]].concat();
        descriptor.u16(30, crc16(&covered));
        descriptor.0
    }
}

/// A block of bits, of which those below `used` and from `end` on are set.
fn bitmap(used: u64, end: u64) -> Vec<u8> {
    let bit = |at: u64| at < used || at >= end;
    let byte = |at: u64| (0..8).map(|of| u8::from(bit(8 * at + of)) << of).sum();
    (0..BLOCK).map(byte).collect()
}

/// As in the kernel's `lib/crc16.c`.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(u16::MAX, |crc, byte| {
        (0..8).fold(
            crc ^ u16::from(*byte),
            |crc, _| {
                if crc & 1 == 1 { crc >> 1 ^ 0xa001 } else { crc >> 1 }
            },
        )
    })
}
