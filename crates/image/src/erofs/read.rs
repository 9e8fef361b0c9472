//! Reading back what [`Writer`](super::Writer) wrote. An image that was changed since gives an error
//! or other contents, never a panic.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use super::format::{BLOCK, INODE, SLOT, XATTR_HEADER};
use super::lookup::{self, Inode, Owner};

/// An image of our own.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    file: &'a File,
    meta: u64,
}

/// What is at one place of an image.
pub(crate) struct Item {
    /// Tells two names of one file.
    pub(crate) nid: u64,
    pub(crate) what: What,
    pub(crate) owner: Owner,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    inode: Inode,
}

/// What it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Dir,
    File { size: u64 },
    Symlink,
    Fifo,
    Whiteout,
}

impl<'a> Image<'a> {
    pub(crate) fn open(file: &'a File) -> io::Result<Self> {
        Ok(Self { file, meta: lookup::metadata(file)? })
    }

    pub(crate) fn root(&self) -> io::Result<Item> {
        self.item(0)
    }

    fn item(&self, nid: u64) -> io::Result<Item> {
        let at = self.meta.saturating_add(nid.saturating_mul(SLOT as u64));
        let inode = lookup::inode(self.file, at)?;
        let what = match inode.mode & 0o170_000 {
            0o040_000 => What::Dir,
            0o100_000 => What::File { size: inode.size },
            0o120_000 => What::Symlink,
            0o010_000 => What::Fifo,
            0o020_000 => What::Whiteout,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        let mut area = vec![0; inode.xattrs];
        self.file.read_exact_at(&mut area, inode.at + INODE as u64)?;
        Ok(Item { nid, what, owner: inode.owner, xattrs: xattrs(&area), inode })
    }

    /// What is in a directory, by name.
    pub(crate) fn list(&self, directory: &Item) -> io::Result<Vec<(Vec<u8>, Item)>> {
        let entries = lookup::entries(self.file, &directory.inode)?.into_iter();
        entries.map(|(name, nid)| Ok((name, self.item(nid)?))).collect()
    }

    /// What has that name in a directory.
    pub(crate) fn find(&self, directory: &Item, name: &[u8]) -> io::Result<Option<Item>> {
        let nid = lookup::entry(self.file, &directory.inode, name)?;
        nid.map(|nid| self.item(nid)).transpose()
    }

    /// Where a symbolic link leads.
    pub(crate) fn target(&self, link: &Item) -> io::Result<Vec<u8>> {
        let mut target = Vec::new();
        self.contents(link).take(BLOCK as u64).read_to_end(&mut target)?;
        Ok(target)
    }

    /// The contents of a file.
    pub(crate) fn contents<'b>(&'b self, file: &'b Item) -> Contents<'b> {
        Contents { file: self.file, inode: &file.inode, at: 0 }
    }
}

/// A file's contents, from its start on.
pub(crate) struct Contents<'a> {
    file: &'a File,
    inode: &'a Inode,
    at: u64,
}

impl Read for Contents<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let (number, offset) = (self.at / BLOCK as u64, self.at % BLOCK as u64);
        if self.at >= self.inode.size {
            return Ok(0);
        }
        let (at, len) = lookup::block_of(self.inode, number);
        // Whole blocks follow each other.
        let left = match len {
            BLOCK => (self.inode.size / BLOCK as u64 - number) * BLOCK as u64,
            tail => tail as u64,
        };
        let left = usize::try_from(left - offset).unwrap_or(usize::MAX);
        let most = left.min(buf.len());
        let got = self.file.read_at(&mut buf[..most], at + offset)?;
        if got == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += got as u64;
        Ok(got)
    }
}

/// Attributes as they stand behind an inode, without those of the overlay.
fn xattrs(area: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut rest = area.get(XATTR_HEADER..).unwrap_or_default();
    while let Some((&[name_len, index, low, high], after)) = rest.split_first_chunk::<4>() {
        let (name_len, value_len) =
            (usize::from(name_len), usize::from(u16::from_le_bytes([low, high])));
        let whole = name_len + value_len;
        let (Some(name), Some(value)) = (after.get(..name_len), after.get(name_len..whole)) else {
            break;
        };
        let prefix: Option<&[u8]> = match index {
            1 => Some(b"user."),
            2 => Some(b"system.posix_acl_access"),
            3 => Some(b"system.posix_acl_default"),
            4 => Some(b"trusted."),
            6 => Some(b"security."),
            _ => None,
        };
        if let Some(prefix) = prefix
            && !name.starts_with(b"overlay.")
        {
            found.insert([prefix, name].concat(), value.to_vec());
        }
        rest = after.get((4 + whole).next_multiple_of(4) - 4..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erofs::{Limits, Writer};
    use crate::tar::{Entry, Kind};

    fn pattern(size: u64) -> Vec<u8> {
        (0..size).zip((0..=250).cycle()).map(|(_, byte)| byte).collect()
    }

    #[test]
    fn what_was_written_is_read_back() {
        let mut writer = Writer::new(tempfile::tempfile().unwrap(), Limits::default()).unwrap();
        let sizes = [0, 1, 100, 4000, 4095, 4096, 4097, 70_000];
        for size in sizes {
            let contents = pattern(size);
            let kind = Kind::File { size: contents.len() as u64 };
            let mut entry = Entry::new(&format!("d/{size}"), kind, 0o4755).unwrap();
            entry.xattrs.insert(b"user.x".to_vec(), b"value".to_vec());
            entry.xattrs.insert(b"security.capability".to_vec(), vec![1, 0, 2]);
            writer.add(entry, &mut &contents[..]).unwrap();
        }
        let link = Entry::new("l", Kind::Symlink(b"d/100".to_vec()), 0o777).unwrap();
        writer.add(link, &mut io::empty()).unwrap();
        let (file, _) = writer.finish().unwrap();
        let image = Image::open(&file).unwrap();
        let root = image.root().unwrap();
        let link = image.find(&root, b"l").unwrap().unwrap();
        assert_eq!(image.target(&link).unwrap(), b"d/100");
        let directory = image.find(&root, b"d").unwrap().unwrap();
        assert_eq!(image.list(&directory).unwrap().len(), sizes.len());
        for size in sizes {
            let name = size.to_string();
            let item = image.find(&directory, name.as_bytes()).unwrap().unwrap();
            assert_eq!(item.what, What::File { size });
            assert_eq!(item.owner.mode, 0o4755);
            assert_eq!(item.xattrs.len(), 2);
            assert_eq!(item.xattrs[&b"security.capability"[..]], [1, 0, 2]);
            let mut contents = Vec::new();
            image.contents(&item).read_to_end(&mut contents).unwrap();
            let expected = pattern(size);
            assert_eq!(contents, expected, "{size}");
        }
    }
}
