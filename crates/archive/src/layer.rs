//! A layer of an image: what changed, with owners and attributes, and what is gone.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Read, Write};

use tar::{EntryType, Header};

use crate::Name;
use crate::writer::{BLOCK, CHUNK, fill, fits, record};

/// Whose something is, and what else is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attributes {
    /// Permission bits with setuid, setgid and sticky (`0o7777`).
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Time of the last change: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes by full name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Writes a layer as the image specification has it: a POSIX tar with owners, extended attributes,
/// and whiteouts in the place of what is gone. The same calls give the same bytes.
#[derive(Debug)]
pub struct LayerWriter<W: Write> {
    output: BufWriter<W>,
    chunk: Vec<u8>,
}

/// The largest value that the octal field of an owner has room for.
const MAX_FIELD_ID: u32 = 0o7_777_777;
/// The same for a length.
const MAX_FIELD_SIZE: u64 = 0o77_777_777_777;

impl<W: Write> LayerWriter<W> {
    /// Starts a layer.
    pub fn new(output: W) -> Self {
        Self { output: BufWriter::with_capacity(CHUNK, output), chunk: vec![0; CHUNK] }
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// The output's.
    pub fn directory(&mut self, name: &Name, of: &Attributes) -> io::Result<()> {
        let path = match name.is_root() {
            true => b"./".to_vec(),
            false => [name.as_bytes(), b"/"].concat(),
        };
        self.header(EntryType::Directory, &path, None, of, 0)
    }

    /// Adds a symbolic link with this target, whatever it is.
    ///
    /// # Errors
    /// The output's.
    pub fn symlink(&mut self, name: &Name, target: &[u8], of: &Attributes) -> io::Result<()> {
        self.header(EntryType::Symlink, name.as_bytes(), Some(target), of, 0)
    }

    /// Adds one more name for a file that was added before.
    ///
    /// # Errors
    /// The output's.
    pub fn hard_link(&mut self, name: &Name, target: &Name, of: &Attributes) -> io::Result<()> {
        // What it is like is told by the first name.
        let of = Attributes { xattrs: BTreeMap::new(), ..of.clone() };
        self.header(EntryType::Link, name.as_bytes(), Some(target.as_bytes()), &of, 0)
    }

    /// Adds a named pipe.
    ///
    /// # Errors
    /// The output's.
    pub fn fifo(&mut self, name: &Name, of: &Attributes) -> io::Result<()> {
        self.header(EntryType::Fifo, name.as_bytes(), None, of, 0)
    }

    /// Adds a file of `size` bytes. Content beyond is left out.
    ///
    /// # Errors
    /// The output's, the content's, and `UnexpectedEof` where there is less of it.
    pub fn file(
        &mut self,
        name: &Name,
        size: u64,
        content: &mut impl Read,
        of: &Attributes,
    ) -> io::Result<()> {
        self.header(EntryType::Regular, name.as_bytes(), None, of, size)?;
        let mut left = size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            match content.read(&mut self.chunk[..most]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => {
                    self.output.write_all(&self.chunk[..got])?;
                    left -= got as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.pad(size)
    }

    /// Says that what the layers below have at this name is gone.
    ///
    /// # Errors
    /// The output's; `InvalidInput` for the root, and for a name that leaves no room for the mark.
    pub fn whiteout(&mut self, name: &Name) -> io::Result<()> {
        let (parent, last) = name.split().ok_or(io::ErrorKind::InvalidInput)?;
        let last = std::os::unix::ffi::OsStrExt::as_bytes(last);
        let marked = parent.join(&[b".wh.", last].concat());
        let marked = marked.map_err(|_| io::ErrorKind::InvalidInput)?;
        self.header(EntryType::Regular, marked.as_bytes(), None, &Attributes::default(), 0)
    }

    /// Says that what the layers below have in this directory is gone.
    ///
    /// # Errors
    /// As [`Self::whiteout`].
    pub fn opaque(&mut self, directory: &Name) -> io::Result<()> {
        let marked = directory.join(b".wh..wh..opq").map_err(|_| io::ErrorKind::InvalidInput)?;
        self.header(EntryType::Regular, marked.as_bytes(), None, &Attributes::default(), 0)
    }

    /// Ends the layer and gives the output back.
    ///
    /// # Errors
    /// The output's.
    pub fn finish(mut self) -> io::Result<W> {
        self.output.write_all(&[0; 2 * BLOCK])?;
        self.output.into_inner().map_err(io::IntoInnerError::into_error)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = usize::try_from(size % BLOCK as u64).unwrap_or_default();
        if rest == 0 { Ok(()) } else { self.output.write_all(&[0; BLOCK][rest..]) }
    }

    fn header(
        &mut self,
        kind: EntryType,
        path: &[u8],
        target: Option<&[u8]>,
        of: &Attributes,
        size: u64,
    ) -> io::Result<()> {
        let mut extended = Vec::new();
        if !fits(path) {
            record(&mut extended, b"path", path);
        }
        if let Some(target) = target.filter(|target| !fits(target)) {
            record(&mut extended, b"linkpath", target);
        }
        let (seconds, nanos) = of.mtime;
        if seconds < 0 || nanos != 0 {
            record(&mut extended, b"mtime", decimal(seconds, nanos).as_bytes());
        }
        for (key, id) in [(&b"uid"[..], of.uid), (b"gid", of.gid)] {
            if id > MAX_FIELD_ID {
                record(&mut extended, key, id.to_string().as_bytes());
            }
        }
        if size > MAX_FIELD_SIZE {
            record(&mut extended, b"size", size.to_string().as_bytes());
        }
        for (key, value) in &of.xattrs {
            record(&mut extended, &[b"SCHILY.xattr.", &key[..]].concat(), value);
        }
        if !extended.is_empty() {
            let length = extended.len() as u64;
            let plain = Attributes { mode: 0o644, ..Attributes::default() };
            self.block(EntryType::XHeader, b"extended", None, &plain, length)?;
            self.output.write_all(&extended)?;
            self.pad(length)?;
        }
        self.block(kind, path, target, of, size)
    }

    fn block(
        &mut self,
        kind: EntryType,
        path: &[u8],
        target: Option<&[u8]>,
        of: &Attributes,
        size: u64,
    ) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        let old = header.as_old_mut();
        fill(&mut old.name, path);
        if let Some(target) = target {
            fill(&mut old.linkname, target);
        }
        header.set_mode(of.mode & 0o7777);
        header.set_uid(of.uid.min(MAX_FIELD_ID).into());
        header.set_gid(of.gid.min(MAX_FIELD_ID).into());
        header.set_mtime(u64::try_from(of.mtime.0).unwrap_or(0).min(MAX_FIELD_SIZE));
        header.set_size(size.min(MAX_FIELD_SIZE));
        header.set_cksum();
        self.output.write_all(header.as_bytes())
    }
}

/// Seconds with a fraction; before 1970 the fraction counts backwards.
fn decimal(seconds: i64, nanos: u32) -> String {
    match (seconds, nanos) {
        (seconds, 0) => seconds.to_string(),
        (0.., nanos) => format!("{seconds}.{nanos:09}"),
        (seconds, nanos) => {
            format!("-{}.{:09}", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanos)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_have_their_fraction_backwards() {
        assert_eq!(decimal(5, 7), "5.000000007");
        assert_eq!(decimal(-2, 500_000_000), "-1.500000000");
        assert_eq!(decimal(-2, 0), "-2");
    }

    #[test]
    fn a_whiteout_stands_beside_what_it_hides() {
        let mut layer = LayerWriter::new(Vec::new());
        layer.whiteout(&Name::parse(b"etc/gone").unwrap()).unwrap();
        layer.opaque(&Name::parse(b"srv").unwrap()).unwrap();
        assert!(layer.whiteout(&Name::ROOT).is_err());
        assert!(layer.whiteout(&Name::parse(&[b'x'; 255]).unwrap()).is_err());
        let bytes = layer.finish().unwrap();
        assert!(bytes.starts_with(b"etc/.wh.gone\0"));
        assert!(bytes[512..].starts_with(b"srv/.wh..wh..opq\0"));
    }
}
