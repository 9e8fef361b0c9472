//! Members to a stream that stays valid whatever the files do meanwhile.

use std::io::{self, BufWriter, Read, Write};

use tar::{EntryType, Header};

use crate::Name;

/// Bytes that go through at a time: few system calls, and little to lose in a small guest.
pub(crate) const CHUNK: usize = 128 << 10;

pub(crate) const BLOCK: usize = 512;

/// The part of a name or target that a header has room for.
pub(crate) const FIELD: usize = 100;

/// Writes a POSIX tar: ustar headers, an extended header only where a name is long or not UTF-8,
/// owner and group 0 without names. The same tree gives the same bytes.
#[derive(Debug)]
pub struct Writer<W: Write> {
    output: BufWriter<W>,
    chunk: Vec<u8>,
    /// Whether the next member is a question.
    asks: bool,
}

/// The record of an extended header that makes its member a question: whoever reads it says whether
/// what belongs to it is to follow.
pub(crate) const QUESTION: &[u8] = b"SANDFORGE.question";

/// Why a file's content did not go through.
#[derive(Debug)]
pub(crate) enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

impl<W: Write> Writer<W> {
    /// Starts an archive.
    pub fn new(output: W) -> Self {
        Self { output: BufWriter::with_capacity(CHUNK, output), chunk: vec![0; CHUNK], asks: false }
    }

    /// Makes the next member a question: see [`crate::Reader::is_question`].
    pub(crate) fn ask(&mut self) {
        self.asks = true;
    }

    /// What the archive is written to, with all that was written so far on its way.
    pub(crate) fn output(&mut self) -> io::Result<&mut W> {
        self.output.flush()?;
        Ok(self.output.get_mut())
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// The output's.
    pub fn directory(&mut self, name: &Name, mode: u32, mtime: i64) -> io::Result<()> {
        let mut path = name.as_bytes().to_vec();
        path.push(b'/');
        self.header(EntryType::Directory, &path, None, mode, mtime, 0)
    }

    /// Adds a symbolic link with this target, whatever it is.
    ///
    /// # Errors
    /// The output's.
    pub fn symlink(&mut self, name: &Name, target: &[u8], mtime: i64) -> io::Result<()> {
        self.header(EntryType::Symlink, name.as_bytes(), Some(target), 0o777, mtime, 0)
    }

    /// Adds one more name for a file that was added before.
    ///
    /// # Errors
    /// The output's.
    pub fn hard_link(
        &mut self,
        name: &Name,
        target: &Name,
        mode: u32,
        mtime: i64,
    ) -> io::Result<()> {
        self.header(EntryType::Link, name.as_bytes(), Some(target.as_bytes()), mode, mtime, 0)
    }

    /// Adds the header of a file of `size` bytes, which [`Writer::content`] has to follow.
    pub(crate) fn file(&mut self, name: &Name, mode: u32, mtime: i64, size: u64) -> io::Result<()> {
        self.header(EntryType::Regular, name.as_bytes(), None, mode, mtime, size)
    }

    /// Adds the `size` bytes of a file: content beyond is left out, and where there is less, zeros
    /// follow, since a file can change while it is read and the header has been sent. `heard`
    /// gets the content as it goes out.
    pub(crate) fn content(
        &mut self,
        size: u64,
        content: &mut impl Read,
        mut heard: impl FnMut(&[u8]),
    ) -> Result<(), CopyError> {
        let mut left = size;
        let mut ended = false;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let got = if ended {
                self.chunk[..most].fill(0);
                most
            } else {
                match content.read(&mut self.chunk[..most]) {
                    Ok(0) => {
                        ended = true;
                        continue;
                    }
                    Ok(got) => got,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(CopyError::Read(error)),
                }
            };
            heard(&self.chunk[..got]);
            self.output.write_all(&self.chunk[..got]).map_err(CopyError::Write)?;
            left -= got as u64;
        }
        self.pad(size).map_err(CopyError::Write)
    }

    /// Ends the archive and gives the output back.
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
        mode: u32,
        mtime: i64,
        size: u64,
    ) -> io::Result<()> {
        let mut extended = Vec::new();
        if !fits(path) {
            record(&mut extended, b"path", path);
        }
        if let Some(target) = target.filter(|target| !fits(target)) {
            record(&mut extended, b"linkpath", target);
        }
        // The field holds no sign.
        if mtime < 0 {
            record(&mut extended, b"mtime", mtime.to_string().as_bytes());
        }
        if std::mem::take(&mut self.asks) {
            record(&mut extended, QUESTION, b"1");
        }
        if !extended.is_empty() {
            if std::str::from_utf8(&extended).is_err() {
                let mut charset = Vec::new();
                record(&mut charset, b"hdrcharset", b"BINARY");
                extended.splice(..0, charset);
            }
            let length = extended.len() as u64;
            self.block(EntryType::XHeader, b"extended", None, 0o644, 0, length)?;
            self.output.write_all(&extended)?;
            self.pad(length)?;
        }
        self.block(kind, path, target, mode, u64::try_from(mtime).unwrap_or(0), size)
    }

    fn block(
        &mut self,
        kind: EntryType,
        path: &[u8],
        target: Option<&[u8]>,
        mode: u32,
        mtime: u64,
        size: u64,
    ) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        let old = header.as_old_mut();
        fill(&mut old.name, path);
        if let Some(target) = target {
            fill(&mut old.linkname, target);
        }
        header.set_mode(mode & 0o7777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(mtime);
        header.set_size(size);
        header.set_cksum();
        self.output.write_all(header.as_bytes())
    }
}

pub(crate) fn fits(field: &[u8]) -> bool {
    field.len() <= FIELD && std::str::from_utf8(field).is_ok()
}

pub(crate) fn fill(field: &mut [u8; FIELD], bytes: &[u8]) {
    let length = bytes.len().min(FIELD);
    field[..length].copy_from_slice(&bytes[..length]);
}

/// A record of an extended header: its own length in decimal, a space, `key=value`, a newline.
pub(crate) fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_records_length_counts_its_own_digits() {
        for length in [1, 85, 86, 87, 88, 89, 90, 91, 92, 983, 984, 985, 986, 987, 4000] {
            let mut records = Vec::new();
            record(&mut records, b"path", &vec![b'x'; length]);
            let told = records.split(|&byte| byte == b' ').next().unwrap();
            let told: usize = std::str::from_utf8(told).unwrap().parse().unwrap();
            assert_eq!(told, records.len());
        }
    }
}
