//! Files with holes: copied, and told apart by what is in them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What is read, digested and copied at once; of this size are the holes that count.
const BLOCK: u64 = 64 << 10;

/// What is in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sum {
    /// Its length.
    pub bytes: u64,
    /// SHA-256 over each block of 64 KiB that is not all zeroes, behind its number: two files of
    /// one content have one sum, however many holes are in them.
    pub sha256: String,
}

/// Makes a file that only its owner can read, and nobody had before.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// The parts of a file that are no holes, in whole blocks.
fn each_block(file: &File, mut take: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<u64> {
    let bytes = file.metadata()?.len();
    let mut buffer = vec![0; usize::try_from(BLOCK).expect("a block is small")];
    let mut at = 0;
    while at < bytes {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Holes up to the end.
            Err(Errno::NXIO) => break,
            // A file system that knows none.
            Err(Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        let hole = match seek(file, SeekFrom::Hole(data)) {
            Ok(hole) => hole,
            Err(Errno::INVAL | Errno::NXIO) => bytes,
            Err(error) => return Err(error.into()),
        };
        at = data / BLOCK * BLOCK;
        let end = hole.max(data + 1).next_multiple_of(BLOCK).min(bytes);
        while at < end {
            let length = usize::try_from((bytes - at).min(BLOCK)).expect("a block is small");
            let block = &mut buffer[..length];
            file.read_exact_at(block, at)?;
            if block.iter().any(|byte| *byte != 0) {
                take(at, block)?;
            }
            at += length as u64;
        }
    }
    Ok(bytes)
}

impl Sum {
    /// That of a file.
    ///
    /// # Errors
    /// That it cannot be read.
    pub fn of(file: &File) -> io::Result<Self> {
        let mut hash = Sha256::new();
        let bytes = each_block(file, |at, block| {
            hash.update((at / BLOCK).to_be_bytes());
            hash.update(block);
            Ok(())
        })?;
        let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { bytes, sha256 })
    }
}

/// Copies what is in a file to an empty one: by reference where the file system can, and else what is
/// no hole.
pub(crate) fn copy(from: &File, to: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let bytes = each_block(from, |at, block| to.write_all_at(block, at))?;
    to.set_len(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(parts: &[(u64, &[u8])], bytes: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        for (at, part) in parts {
            file.write_all_at(part, *at).unwrap();
        }
        file
    }

    #[test]
    fn a_copy_has_the_content_and_the_sum() {
        let parts: &[(u64, &[u8])] =
            &[(0, b"first"), (700_001, b"middle"), (2_999_990, b"the end")];
        let file = with(parts, 3_000_000);
        let copied = tempfile::tempfile().unwrap();
        copy(&file, &copied).unwrap();
        assert_eq!(Sum::of(&file).unwrap(), Sum::of(&copied).unwrap());
        for (at, part) in parts {
            let mut read = vec![0; part.len()];
            copied.read_exact_at(&mut read, *at).unwrap();
            assert_eq!(&read, part);
        }
    }

    #[test]
    fn zeroes_that_are_written_count_as_holes() {
        let sparse = with(&[(200_000, b"x")], 1 << 20);
        let full = with(&[(0, &[0; 1 << 20]), (200_000, b"x")], 1 << 20);
        assert_eq!(Sum::of(&sparse).unwrap(), Sum::of(&full).unwrap());
    }

    #[test]
    fn content_place_and_length_are_in_the_sum() {
        let sum = |parts: &[(u64, &[u8])], bytes| Sum::of(&with(parts, bytes)).unwrap();
        let one = sum(&[(5, b"x")], 1 << 20);
        assert_ne!(one, sum(&[(5, b"y")], 1 << 20));
        assert_ne!(one, sum(&[(6, b"x")], 1 << 20));
        assert_ne!(one, sum(&[(5 + BLOCK, b"x")], 1 << 20));
        assert_ne!(one, sum(&[(5, b"x")], 2 << 20));
        assert_ne!(sum(&[], 0), one);
    }
}
