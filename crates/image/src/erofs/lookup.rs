//! Looking up a path in an image that [`Writer`](super::Writer) wrote: what is there, and whose it
//! is. An image that was changed since gives an error or nothing, never a panic.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::format::{BLOCK, DIRENT, INODE, SLOT};
use crate::tar::Time;

const META_AT: u64 = 1024 + 40;
/// Larger directories are searched block by block all the same.
const MAX_BLOCKS: u64 = 1 << 20;

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    Dir(Owner),
    /// A name of the layers below is gone.
    Whiteout,
    /// A file, a link, a pipe.
    Other,
}

/// Whose a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// The layers below do not show through.
    pub(crate) is_opaque: bool,
}

pub(super) struct Inode {
    pub(super) at: u64,
    format: u16,
    pub(super) xattrs: usize,
    pub(super) mode: u16,
    pub(super) size: u64,
    first_block: u32,
    pub(super) owner: Owner,
}

/// What each name of a path leads to, until one is no directory. The root's comes first.
pub(crate) fn walk(file: &File, path: &[u8]) -> io::Result<Vec<Found>> {
    let meta = metadata(file)?;
    let mut inode = inode(file, meta)?;
    let mut found = vec![Found::Dir(inode.owner)];
    for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
        let Some(nid) = entry(file, &inode, name)? else {
            found.push(Found::Nothing);
            break;
        };
        inode = self::inode(file, meta.saturating_add(nid.saturating_mul(SLOT as u64)))?;
        match inode.mode & 0o170_000 {
            0o040_000 => found.push(Found::Dir(inode.owner)),
            0o020_000 => {
                found.push(Found::Whiteout);
                break;
            }
            _ => {
                found.push(Found::Other);
                break;
            }
        }
    }
    Ok(found)
}

/// Where inode number 0, the root's, is.
pub(super) fn metadata(file: &File) -> io::Result<u64> {
    let mut meta = [0; 4];
    file.read_exact_at(&mut meta, META_AT)?;
    Ok(u64::from(u32::from_le_bytes(meta)) * BLOCK as u64)
}

pub(super) fn inode(file: &File, at: u64) -> io::Result<Inode> {
    let mut raw = [0; INODE];
    file.read_exact_at(&mut raw, at)?;
    let half = |at: usize| u16::from_le_bytes([raw[at], raw[at + 1]]);
    let word = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    let count = usize::from(half(2));
    let xattrs = if count == 0 { 0 } else { 12 + (count - 1) * 4 };
    let mut area = vec![0; xattrs];
    file.read_exact_at(&mut area, at + INODE as u64)?;
    let mark = b"overlay.opaque";
    let owner = Owner {
        mode: half(4) & 0o7777,
        uid: word(24),
        gid: word(28),
        mtime: Time { seconds: long(32).cast_signed(), nanos: word(40) },
        is_opaque: area.windows(mark.len()).any(|window| window == mark),
    };
    let (size, first_block) = (long(8), word(16));
    Ok(Inode { at, format: half(0), xattrs, mode: half(4), size, first_block, owner })
}

/// Where the block with this number of an inode's contents is, and how much of it counts.
pub(super) fn block_of(inode: &Inode, number: u64) -> (u64, usize) {
    let flat_inline = inode.format >> 1 & 7 == 2;
    let whole = inode.size / BLOCK as u64;
    let len = inode.size.saturating_sub(number * BLOCK as u64).min(BLOCK as u64);
    let at = if flat_inline && number == whole {
        inode.at + (INODE + inode.xattrs) as u64
    } else {
        (u64::from(inode.first_block) + number) * BLOCK as u64
    };
    (at, usize::try_from(len).unwrap_or(BLOCK))
}

/// The number of what has that name in a directory.
pub(super) fn entry(file: &File, dir: &Inode, name: &[u8]) -> io::Result<Option<u64>> {
    for number in 0..dir.size.div_ceil(BLOCK as u64).min(MAX_BLOCKS) {
        let (at, len) = block_of(dir, number);
        let mut block = vec![0; len];
        file.read_exact_at(&mut block, at)?;
        if let Some(nid) = in_block(&block, name) {
            return Ok(Some(nid));
        }
    }
    Ok(None)
}

/// Every name in a directory but `.` and `..`, and its inode's number.
pub(super) fn entries(file: &File, dir: &Inode) -> io::Result<Vec<(Vec<u8>, u64)>> {
    let mut found = Vec::new();
    for number in 0..dir.size.div_ceil(BLOCK as u64).min(MAX_BLOCKS) {
        let (at, len) = block_of(dir, number);
        let mut block = vec![0; len];
        file.read_exact_at(&mut block, at)?;
        each_in_block(&block, |name, nid| {
            if name != b"." && name != b".." {
                found.push((name.to_vec(), nid));
            }
            None::<()>
        });
    }
    Ok(found)
}

fn in_block(block: &[u8], name: &[u8]) -> Option<u64> {
    each_in_block(block, |found, nid| (found == name).then_some(nid))
}

/// Stops with the first that `take` wants, or where the block makes no sense.
fn each_in_block<T>(block: &[u8], mut take: impl FnMut(&[u8], u64) -> Option<T>) -> Option<T> {
    let name_at = |number: usize| {
        let at = number * DIRENT + 8;
        Some(usize::from(u16::from_le_bytes([*block.get(at)?, *block.get(at + 1)?])))
    };
    let count = name_at(0)? / DIRENT;
    for number in 0..count {
        let end = if number + 1 < count { name_at(number + 1)? } else { block.len() };
        let found = block.get(name_at(number)?..end)?;
        let found = found.split(|&b| b == 0).next()?;
        let nid = block.get(number * DIRENT..number * DIRENT + 8)?;
        if let Some(taken) = take(found, nid.try_into().map(u64::from_le_bytes).ok()?) {
            return Some(taken);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erofs::{Limits, Writer};
    use crate::tar::{Entry, Kind, TarPath};

    fn image() -> File {
        let mut writer = Writer::new(tempfile::tempfile().unwrap(), Limits::default()).unwrap();
        let mut add = |path: &str, kind: Kind, mode: u16| {
            let entry = Entry::new(path, kind, mode).unwrap().owned_by(7, 8);
            writer.add(entry, &mut std::io::empty()).unwrap();
        };
        add("a", Kind::Dir, 0o1770);
        add("a/b", Kind::Dir, 0o700);
        add("a/l", Kind::Symlink(b"/x".to_vec()), 0o777);
        for number in 0..2000 {
            add(&format!("many/{number}-with-a-name"), Kind::Dir, 0o711);
        }
        writer.whiteout(TarPath::parse(b"a/gone").unwrap()).unwrap();
        writer.hide_below(TarPath::parse(b"a/b").unwrap()).unwrap();
        writer.finish().unwrap().0
    }

    #[test]
    fn every_name_of_a_path_is_told() {
        let image = image();
        let last = |path: &[u8]| walk(&image, path).unwrap().pop().unwrap();
        let Found::Dir(owner) = last(b"a") else { panic!("no directory") };
        assert_eq!((owner.mode, owner.uid, owner.gid), (0o1770, 7, 8));
        assert!(!owner.is_opaque);
        assert!(matches!(last(b"a/b"), Found::Dir(Owner { is_opaque: true, .. })));
        assert_eq!((last(b"a/l"), last(b"a/l/x")), (Found::Other, Found::Other));
        assert_eq!((last(b"a/gone"), last(b"a/never")), (Found::Whiteout, Found::Nothing));
        for number in 0..2000 {
            let path = format!("many/{number}-with-a-name");
            assert!(
                matches!(last(path.as_bytes()), Found::Dir(Owner { mode: 0o711, .. })),
                "{path}"
            );
        }
        assert_eq!(walk(&image, b"").unwrap().len(), 1);
    }

    #[test]
    fn a_changed_image_is_an_error_or_another_answer() {
        let image = image();
        let length = image.metadata().unwrap().len();
        for at in (0..length).step_by(101) {
            let mut byte = [0];
            image.read_exact_at(&mut byte, at).unwrap();
            image.write_all_at(&[!byte[0]], at).unwrap();
            let _ = walk(&image, b"many/1999-with-a-name");
            image.write_all_at(&byte, at).unwrap();
        }
        assert!(walk(&image, b"a/b").unwrap().len() == 3);
    }
}
