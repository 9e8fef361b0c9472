//! The hash tree of dm-verity: format 1, SHA-256, data and hash blocks of 4096 bytes, no superblock
//! and no salt, so that equal data has equal trees. The kernel's description is in
//! `Documentation/admin-guide/device-mapper/verity.rst`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use crate::layers::Verity;

const BLOCK: usize = 4096;
const HASH: usize = 32;
static ZEROS: [u8; BLOCK] = [0; BLOCK];
const PER_BLOCK: u64 = (BLOCK / HASH) as u64;

/// Where each level of the tree is, that over the data first. On disk the topmost comes first.
fn levels(data_blocks: u64) -> Vec<(u64, u64)> {
    let mut counts = Vec::new();
    let mut count = data_blocks;
    while count > 1 {
        count = count.div_ceil(PER_BLOCK);
        counts.push(count);
    }
    let mut at = data_blocks;
    let mut levels: Vec<(u64, u64)> = counts
        .into_iter()
        .rev()
        .map(|count| {
            let first = at;
            at += count;
            (first, count)
        })
        .collect();
    levels.reverse();
    levels
}

/// Puts a tree behind the first `bytes` of a file, which are a multiple of 4096. Returns what it
/// is, and how long the file is with it. Each level needs one block of memory.
pub(crate) fn append(
    file: &mut File,
    bytes: u64,
    mut read: impl FnMut(u64),
) -> io::Result<(Verity, u64)> {
    let data_blocks = bytes / BLOCK as u64;
    let levels = levels(data_blocks);
    let end = levels.first().map_or(bytes, |(first, count)| (first + count) * BLOCK as u64);
    let tree = file.try_clone()?;
    let root = hash(file, data_blocks, &levels, &mut read, |block, contents| {
        tree.write_all_at(contents, block * BLOCK as u64)
    })?;
    Ok((Verity { tree: bytes, root, salt: Vec::new(), data_blocks }, end))
}

/// Whether data and tree are what they were. Reads all of both.
pub(crate) fn holds(file: &mut File, verity: &Verity, read: impl FnMut(u64)) -> io::Result<bool> {
    let levels = levels(verity.data_blocks);
    let tree = file.try_clone()?;
    let mut same = verity.salt.is_empty() && verity.tree == verity.data_blocks * BLOCK as u64;
    let root = hash(file, verity.data_blocks, &levels, read, |block, contents| {
        let mut found = [0; BLOCK];
        tree.read_exact_at(&mut found, block * BLOCK as u64)?;
        same &= found == *contents;
        Ok(())
    })?;
    Ok(same && root == verity.root)
}

/// Whether the topmost block of the tree is what the root says: one block instead of all.
pub(crate) fn top_holds(file: &File, verity: &Verity) -> io::Result<bool> {
    // The topmost level comes first; over a single block there is none, and the block is the data.
    let at = if verity.data_blocks > 1 { verity.tree } else { 0 };
    let mut block = [0; BLOCK];
    file.read_exact_at(&mut block, at)?;
    Ok(Sha256::digest(block)[..] == verity.root)
}

/// Hashes the data, and the hashes, up to the root; every block of the tree is given to `block`.
fn hash(
    file: &mut File,
    data_blocks: u64,
    levels: &[(u64, u64)],
    mut read: impl FnMut(u64),
    mut block: impl FnMut(u64, &[u8; BLOCK]) -> io::Result<()>,
) -> io::Result<[u8; HASH]> {
    struct Level {
        contents: [u8; BLOCK],
        filled: usize,
        next: u64,
    }
    let mut open: Vec<Level> = levels
        .iter()
        .map(|&(first, _)| Level { contents: [0; BLOCK], filled: 0, next: first })
        .collect();
    let zeros: [u8; HASH] = Sha256::digest([0; BLOCK]).into();
    let mut root = zeros;
    let mut put = |hash: [u8; HASH], is_last: bool| -> io::Result<()> {
        let mut hash = hash;
        let mut flush = is_last;
        for level in &mut open {
            level.contents[level.filled..level.filled + HASH].copy_from_slice(&hash);
            level.filled += HASH;
            if level.filled < BLOCK && !flush {
                return Ok(());
            }
            block(level.next, &level.contents)?;
            hash = Sha256::digest(level.contents).into();
            (level.contents, level.filled) = ([0; BLOCK], 0);
            level.next += 1;
            flush = is_last;
        }
        root = hash;
        Ok(())
    };
    file.seek(SeekFrom::Start(0))?;
    let mut buf = vec![0; 64 * BLOCK];
    let mut done = 0;
    while done < data_blocks {
        let step = usize::try_from(data_blocks - done).unwrap_or(64).min(64);
        file.read_exact(&mut buf[..step * BLOCK])?;
        for data in buf[..step * BLOCK].chunks_exact(BLOCK) {
            done += 1;
            let hash = if data == ZEROS { zeros } else { Sha256::digest(data).into() };
            put(hash, done == data_blocks)?;
        }
        read(done * BLOCK as u64);
    }
    file.flush()?;
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(blocks: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(blocks * BLOCK as u64).unwrap();
        for at in (0..blocks).step_by(3) {
            file.write_all_at(&at.to_le_bytes(), at * BLOCK as u64 + 9).unwrap();
        }
        file
    }

    #[test]
    fn one_block_is_its_own_tree() {
        let mut file = file(1);
        let (verity, end) = append(&mut file, 4096, |_| {}).unwrap();
        let mut data = [0; BLOCK];
        file.read_exact_at(&mut data, 0).unwrap();
        assert_eq!((end, &verity.root[..]), (4096, &Sha256::digest(data)[..]));
    }

    #[test]
    fn the_levels_lie_behind_the_data_with_the_topmost_first() {
        assert_eq!(levels(1), []);
        assert_eq!(levels(128), [(128, 1)]);
        assert_eq!(levels(129), [(130, 2), (129, 1)]);
        assert_eq!(levels(128 * 128 + 1), [(16388, 129), (16386, 2), (16385, 1)]);
    }

    #[test]
    fn any_changed_byte_shows() {
        for blocks in [1, 2, 128, 129, 300] {
            let mut file = file(blocks);
            let (verity, end) = append(&mut file, blocks * BLOCK as u64, |_| {}).unwrap();
            assert_eq!(file.metadata().unwrap().len(), end);
            assert!(holds(&mut file, &verity, |_| {}).unwrap());
            for at in [0, blocks * BLOCK as u64 - 1, end - 1] {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 1], at).unwrap();
                assert!(!holds(&mut file, &verity, |_| {}).unwrap(), "{blocks} blocks, byte {at}");
                file.write_all_at(&byte, at).unwrap();
            }
        }
    }
}
