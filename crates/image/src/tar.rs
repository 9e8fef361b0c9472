//! A strict, streaming reader of tar archives that nobody vouches for.
//!
//! Every length is bounded before it is allocated, and whatever two readers could understand
//! differently (a directory with data, a second meaning of `size`, bytes after the end) is an
//! error, not a guess. Reads ustar, GNU (long names, sparse) and PAX archives.

use std::collections::BTreeMap;
use std::io::{self, Read};

const BLOCK: usize = 512;
/// A PAX record set carries at most a path, a link target and the extended attributes of one file.
const MAX_PAX: u64 = 1 << 20;
/// `PATH_MAX` of Linux, the terminating NUL included.
pub const MAX_PATH: usize = 4096;
/// `NAME_MAX` of Linux.
pub const MAX_NAME: usize = 255;
/// Extents of one sparse file: its map is held in memory, 16 bytes each.
const MAX_EXTENTS: usize = 1 << 16;
/// Records of tar on tapes have a few KiB; a compressed file can have terabytes of zeros.
const MAX_TRAILING_ZEROS: u64 = 16 << 20;
/// `XATTR_SIZE_MAX` of Linux is 64 KiB; EROFS stores the length in 16 bits.
pub const MAX_XATTR_VALUE: usize = u16::MAX as usize;

/// Why an archive was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// The source of the archive failed.
    #[error("cannot read the archive at byte {offset}: {source}")]
    Read {
        /// Bytes read so far.
        offset: u64,
        /// What the source said.
        source: io::Error,
    },
    /// The archive stops before its end marker.
    #[error("the archive is cut short at byte {offset}; was its producer interrupted?")]
    Truncated {
        /// Where it stops.
        offset: u64,
    },
    /// A header block is not one.
    #[error("no tar header at byte {offset}: {why}")]
    Header {
        /// Where the header starts.
        offset: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An entry that this reader does not know.
    #[error("entry {path:?} has the unknown type {kind:?}")]
    Kind {
        /// The entry.
        path: String,
        /// Its type flag.
        kind: char,
    },
    /// A PAX record, long name or sparse map is malformed or too large.
    #[error("extended header at byte {offset}: {why}")]
    Extension {
        /// Where the extended data starts.
        offset: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A path that cannot exist below a root directory.
    #[error("entry {path:?}: {why}")]
    Path {
        /// The path as the archive has it, cut to a readable length.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// There is something after the end marker.
    #[error(
        "the archive goes on after its end marker at byte {offset}; concatenated archives are not supported"
    )]
    Trailing {
        /// Where the marker is.
        offset: u64,
    },
}

/// Seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0..1_000_000_000.
    pub nanos: u32,
}

/// One member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path, as components below the root; empty for the root itself.
    pub path: TarPath,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky (`0o7777`).
    pub mode: u16,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Time of the last change.
    pub mtime: Time,
    /// Extended attributes by full name (`user.x`).
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Entry {
    /// An entry owned by root, with no extended attributes and the time 0.
    pub fn new(path: &str, kind: Kind, mode: u16) -> Result<Self, TarError> {
        Ok(Self {
            path: TarPath::parse(path.as_bytes())?,
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            xattrs: BTreeMap::new(),
        })
    }

    /// The same entry with another owner and group.
    #[must_use]
    pub fn owned_by(mut self, uid: u32, gid: u32) -> Self {
        self.uid = uid;
        self.gid = gid;
        self
    }
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A file of that many bytes, which follow.
    File {
        /// Length of the contents.
        size: u64,
    },
    /// A directory.
    Dir,
    /// A symbolic link with its target, any bytes but NUL.
    Symlink(Vec<u8>),
    /// Another name of an earlier entry.
    HardLink(TarPath),
    /// A named pipe.
    Fifo,
    /// A character or block device.
    Device,
}

/// A path below the root: no `..`, no `.`, no empty component, bounded in length.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct TarPath(Vec<u8>);

impl TarPath {
    /// Leading and doubled slashes and `.` are taken out; `..`, NUL and over-long names refused.
    pub fn parse(raw: &[u8]) -> Result<Self, TarError> {
        let refuse = |why| TarError::Path { path: readable(raw), why };
        let mut path = Vec::with_capacity(raw.len().min(MAX_PATH));
        for name in raw.split(|&b| b == b'/') {
            match name {
                b"" | b"." => continue,
                b".." => return Err(refuse("'..' could leave the root")),
                _ if name.contains(&0) => return Err(refuse("a NUL byte in a name")),
                _ if name.len() > MAX_NAME => return Err(refuse("a name over 255 bytes")),
                _ => {}
            }
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            if path.len() >= MAX_PATH {
                return Err(refuse("a path over 4095 bytes"));
            }
        }
        Ok(Self(path))
    }

    /// The names from the root down.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|name| !name.is_empty())
    }

    /// The bytes of the path, without a leading slash.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Display for TarPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("/")?;
        f.write_str(&readable(&self.0))
    }
}

/// Bytes of an archive as they may stand in a message: cut, and without control characters.
fn readable(raw: &[u8]) -> String {
    let cut = &raw[..raw.len().min(200)];
    let mut text: String = String::from_utf8_lossy(cut)
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if cut.len() < raw.len() {
        text.push('…');
    }
    text
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    offset: u64,
    len: u64,
}

/// What PAX and GNU extension headers say about the next entry.
#[derive(Debug, Default, Clone)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<Time>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    sparse_major: Option<u64>,
    sparse_minor: Option<u64>,
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
}

/// The contents of the entry at hand.
#[derive(Debug, Default)]
struct Contents {
    /// Bytes of the archive that still belong to the entry, padding not counted.
    stored: u64,
    /// Zeros between `stored` and the next block boundary.
    padding: usize,
    /// Position in, and length of, the file as its reader sees it.
    at: u64,
    size: u64,
    /// Where the stored bytes go, in order; what lies between them is zeros.
    extents: std::collections::VecDeque<Extent>,
}

/// Reads entry after entry, never backwards.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    offset: u64,
    global: Extensions,
    contents: Contents,
    ended: bool,
    needs_marker: bool,
}

impl<R: Read> Reader<R> {
    /// Nothing is read yet.
    pub fn new(input: R) -> Self {
        Self {
            input,
            offset: 0,
            global: Extensions::default(),
            contents: Contents::default(),
            ended: false,
            needs_marker: true,
        }
    }

    /// Takes the end of the input between two entries for that of the archive, as other tools do and
    /// as umoci writes layers. For archives whose digest tells a whole one from one that was cut.
    pub fn without_marker(self) -> Self {
        Self { needs_marker: false, ..self }
    }

    /// Bytes of the archive read so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next entry; what was not read of the last one is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        if self.ended {
            return Ok(None);
        }
        self.skip_contents()?;
        let mut ext = self.global.clone();
        let mut extended = false;
        loop {
            let start = self.offset;
            let Some(block) = self.header_block()? else {
                // An extended header is of an entry.
                if self.needs_marker || extended {
                    return Err(TarError::Truncated { offset: self.offset });
                }
                self.ended = true;
                return Ok(None);
            };
            if block.iter().all(|&b| b == 0) {
                self.end(start)?;
                return Ok(None);
            }
            let header = Header { block: &block, offset: start };
            header.verify_checksum()?;
            let size = header.number(124, 12)?;
            match block[156] {
                b'x' => {
                    // Nobody writes two, and any number of them would fill the memory.
                    if std::mem::replace(&mut extended, true) {
                        let why = "a second one for the same entry";
                        return Err(TarError::Extension { offset: start, why });
                    }
                    let data = self.extension(size, MAX_PAX)?;
                    parse_pax(&data, start, &mut ext)?;
                }
                b'g' => {
                    let data = self.extension(size, MAX_PAX)?;
                    let mut global = Extensions::default();
                    parse_pax(&data, start, &mut global)?;
                    if global.names_one_entry() {
                        return Err(TarError::Extension {
                            offset: start,
                            why: "a global header that names one entry",
                        });
                    }
                    self.global.uid = global.uid.or(self.global.uid);
                    self.global.gid = global.gid.or(self.global.gid);
                    self.global.mtime = global.mtime.or(self.global.mtime);
                    ext.uid = ext.uid.or(global.uid);
                    ext.gid = ext.gid.or(global.gid);
                    ext.mtime = ext.mtime.or(global.mtime);
                }
                b'L' | b'K' => {
                    let mut name = self.extension(size, MAX_PAX)?;
                    while name.last() == Some(&0) {
                        name.pop();
                    }
                    let slot = if block[156] == b'L' { &mut ext.path } else { &mut ext.link };
                    // A PAX record, when both are there, is the newer and more exact statement.
                    slot.get_or_insert(name);
                }
                // The name of the volume, by GNU tar --label; it is no file.
                b'V' => {}
                _ => return self.entry(&header, size, ext).map(Some),
            }
        }
    }

    /// The contents of the entry that `next_entry` returned last; empty for all but files.
    pub fn contents(&mut self) -> impl Read + '_ {
        ContentsReader { tar: self }
    }

    fn entry(
        &mut self,
        header: &Header<'_>,
        header_size: u64,
        ext: Extensions,
    ) -> Result<Entry, TarError> {
        let name = match (ext.sparse_name, ext.path) {
            (Some(name), _) | (None, Some(name)) => name,
            (None, None) => header.name(),
        };
        let path = TarPath::parse(&name)?;
        let flag = header.block[156];
        let size = ext.size.unwrap_or(header_size);
        // Archives older than POSIX mark a directory by the slash at its end.
        let is_dir = flag == b'5' || (matches!(flag, 0 | b'0') && name.ends_with(b"/"));
        let link = || ext.link.clone().unwrap_or_else(|| header.text(157, 100).to_vec());
        let kind = match flag {
            _ if is_dir => Kind::Dir,
            0 | b'0' | b'7' | b'S' => Kind::File { size },
            b'1' => Kind::HardLink(TarPath::parse(&link())?),
            b'2' => {
                let target = link();
                let refuse = |why| TarError::Path { path: readable(&name), why };
                if target.is_empty() || target.contains(&0) {
                    return Err(refuse("a symbolic link to nothing, or with NUL in it"));
                }
                if target.len() >= MAX_PATH {
                    return Err(refuse("a symbolic link over 4095 bytes"));
                }
                Kind::Symlink(target)
            }
            b'3' | b'4' => Kind::Device,
            b'6' => Kind::Fifo,
            other => {
                return Err(TarError::Kind { path: readable(&name), kind: char::from(other) });
            }
        };
        if size != 0 && !matches!(kind, Kind::File { .. }) {
            // Whether data follows is understood differently by different readers.
            return Err(TarError::Path { path: readable(&name), why: "only files have contents" });
        }
        let kind = match kind {
            Kind::File { .. } => {
                self.contents = Contents { stored: size, ..Contents::default() };
                self.contents.padding = padding(size);
                let (extents, real) = match (flag, ext.sparse_major, ext.sparse_minor) {
                    (b'S', _, _) => self.gnu_sparse(header)?,
                    (_, Some(1), Some(0)) => {
                        let real = ext.sparse_size.ok_or(TarError::Extension {
                            offset: header.offset,
                            why: "a sparse file without its real size",
                        })?;
                        (self.pax_sparse()?, real)
                    }
                    (_, Some(_), _) | (_, _, Some(_)) => {
                        return Err(TarError::Extension {
                            offset: header.offset,
                            why: "an old sparse format; write it with GNU tar --sparse-version=1.0",
                        });
                    }
                    _ => (vec![Extent { offset: 0, len: size }], size),
                };
                check_extents(&extents, real, self.contents.stored)
                    .map_err(|why| TarError::Extension { offset: header.offset, why })?;
                self.contents.size = real;
                self.contents.extents = extents.into();
                Kind::File { size: real }
            }
            other => other,
        };
        let id = |offset| -> Result<u32, TarError> {
            u32::try_from(header.number(offset, 8)?).map_err(|_| TarError::Header {
                offset: header.offset,
                why: "an owner over 32 bits",
            })
        };
        Ok(Entry {
            path,
            kind,
            mode: u16::try_from(header.number(100, 8)? & 0o7777).unwrap_or(0),
            uid: ext.uid.map_or_else(|| id(108), Ok)?,
            gid: ext.gid.map_or_else(|| id(116), Ok)?,
            mtime: ext.mtime.map_or_else(|| header.time(136), Ok)?,
            xattrs: ext.xattrs,
        })
    }

    /// The map of a GNU sparse file: four extents in the header, 21 in each block that follows.
    fn gnu_sparse(&mut self, header: &Header<'_>) -> Result<(Vec<Extent>, u64), TarError> {
        let mut extents = Vec::new();
        let real = header.number(483, 12)?;
        header.extents(386, 4, &mut extents)?;
        let mut more = header.block[482] != 0;
        while more {
            let offset = self.offset;
            let block = self.block()?;
            let extension = Header { block: &block, offset };
            extension.extents(0, 21, &mut extents)?;
            more = block[504] != 0;
            if extents.len() > MAX_EXTENTS {
                return Err(TarError::Extension { offset, why: "too many extents" });
            }
        }
        Ok((extents, real))
    }

    /// The map of a PAX 1.0 sparse file: decimal lines in front of the contents.
    fn pax_sparse(&mut self) -> Result<Vec<Extent>, TarError> {
        let offset = self.offset;
        let refuse = |why| TarError::Extension { offset, why };
        let mut lines = Vec::new();
        let mut extents = Vec::new();
        let mut numbers: Vec<u64> = Vec::new();
        let mut expected = None;
        while expected.is_none_or(|n| numbers.len() < n) {
            if self.contents.stored < BLOCK as u64 {
                return Err(refuse("a sparse map longer than its file"));
            }
            self.contents.stored -= BLOCK as u64;
            lines.extend_from_slice(&self.block()?);
            while let Some(end) = lines.iter().position(|&b| b == b'\n') {
                if expected.is_some_and(|n| numbers.len() >= n) {
                    break;
                }
                let number =
                    decimal(&lines[..end]).ok_or_else(|| refuse("a sparse map without numbers"))?;
                lines.drain(..=end);
                match expected {
                    None => {
                        let count = usize::try_from(number).unwrap_or(usize::MAX);
                        if count > MAX_EXTENTS {
                            return Err(refuse("too many extents"));
                        }
                        expected = Some(2 * count);
                    }
                    Some(_) => numbers.push(number),
                }
            }
            if lines.len() > 2 * BLOCK {
                return Err(refuse("a sparse map without line ends"));
            }
        }
        extents.extend(numbers.chunks_exact(2).map(|n| Extent { offset: n[0], len: n[1] }));
        Ok(extents)
    }

    fn extension(&mut self, size: u64, max: u64) -> Result<Vec<u8>, TarError> {
        let offset = self.offset;
        if size > max {
            return Err(TarError::Extension { offset, why: "too large" });
        }
        let len = usize::try_from(size).unwrap_or(0);
        let mut data = vec![0; len + padding(size)];
        self.fill(&mut data)?;
        data.truncate(len);
        Ok(data)
    }

    fn skip_contents(&mut self) -> Result<(), TarError> {
        let mut scratch = [0; 16 * BLOCK];
        let Contents { stored: mut left, padding, .. } = std::mem::take(&mut self.contents);
        while left > 0 {
            let step = usize::try_from(left).unwrap_or(usize::MAX).min(scratch.len());
            self.fill(&mut scratch[..step])?;
            left -= step as u64;
        }
        match self.fill(&mut scratch[..padding]) {
            // Who writes no marker does not fill the last block either.
            Err(TarError::Truncated { .. }) if !self.needs_marker => Ok(()),
            filled => filled,
        }
    }

    /// After the first zero block: only zeros may follow, so that nothing is dropped in silence
    /// and a producer at the other end of a pipe can write its last record.
    fn end(&mut self, marker: u64) -> Result<(), TarError> {
        self.ended = true;
        let mut scratch = [0; 16 * BLOCK];
        loop {
            match self.input.read(&mut scratch) {
                Ok(0) => return Ok(()),
                Ok(_) if self.offset - marker > MAX_TRAILING_ZEROS => {
                    return Err(TarError::Trailing { offset: marker });
                }
                Ok(n) if scratch[..n].iter().all(|&b| b == 0) => self.offset += n as u64,
                Ok(_) => return Err(TarError::Trailing { offset: marker }),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TarError::Read { offset: self.offset, source }),
            }
        }
    }

    fn block(&mut self) -> Result<[u8; BLOCK], TarError> {
        let mut block = [0; BLOCK];
        self.fill(&mut block)?;
        Ok(block)
    }

    /// None where the input has ended before it.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let begun = loop {
            match self.input.read(&mut block) {
                Ok(0) => return Ok(None),
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TarError::Read { offset: self.offset, source }),
            }
        };
        self.offset += begun as u64;
        self.fill(&mut block[begun..])?;
        Ok(Some(block))
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<(), TarError> {
        match self.input.read_exact(buf) {
            Ok(()) => {
                self.offset += buf.len() as u64;
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                Err(TarError::Truncated { offset: self.offset })
            }
            Err(source) => Err(TarError::Read { offset: self.offset, source }),
        }
    }
}

struct ContentsReader<'a, R> {
    tar: &'a mut Reader<R>,
}

impl<R: Read> Read for ContentsReader<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let contents = &mut self.tar.contents;
        while contents.extents.front().is_some_and(|e| e.len == 0) {
            contents.extents.pop_front();
        }
        let left = contents.size - contents.at;
        let (until, stored) = match contents.extents.front() {
            Some(extent) if extent.offset <= contents.at => (extent.len, true),
            Some(extent) => (extent.offset - contents.at, false),
            None => (left, false),
        };
        let step = usize::try_from(until).unwrap_or(usize::MAX).min(buf.len());
        if step == 0 {
            return Ok(0);
        }
        let n = if stored {
            let n = self.tar.input.read(&mut buf[..step])?;
            if n == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    TarError::Truncated { offset: self.tar.offset },
                ));
            }
            self.tar.offset += n as u64;
            contents.stored -= n as u64;
            if let Some(extent) = contents.extents.front_mut() {
                extent.offset += n as u64;
                extent.len -= n as u64;
            }
            n
        } else {
            buf[..step].fill(0);
            step
        };
        contents.at += n as u64;
        Ok(n)
    }
}

struct Header<'a> {
    block: &'a [u8; BLOCK],
    offset: u64,
}

impl Header<'_> {
    /// POSIX sums the bytes as unsigned; some old archives summed them as signed.
    fn verify_checksum(&self) -> Result<(), TarError> {
        let field = |i: usize| (148..156).contains(&i);
        let bytes =
            || self.block.iter().enumerate().map(move |(i, &b)| if field(i) { b' ' } else { b });
        let unsigned: u64 = bytes().map(u64::from).sum();
        let signed: i64 = bytes().map(|b| i64::from(b.cast_signed())).sum();
        let stored = self.number(148, 8)?;
        if stored == unsigned || i64::try_from(stored) == Ok(signed) {
            Ok(())
        } else {
            Err(TarError::Header { offset: self.offset, why: "its checksum does not match" })
        }
    }

    fn name(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        // Only POSIX archives keep a prefix there; GNU ones keep times.
        if &self.block[257..263] == b"ustar\0" && self.block[345] != 0 {
            [self.text(345, 155), b"/", name].concat()
        } else {
            name.to_vec()
        }
    }

    fn text(&self, at: usize, len: usize) -> &[u8] {
        let field = &self.block[at..at + len];
        &field[..field.iter().position(|&b| b == 0).unwrap_or(len)]
    }

    /// An octal field, or one in base 256 when its first bit is set.
    fn number(&self, at: usize, len: usize) -> Result<u64, TarError> {
        u64::try_from(self.signed(at, len)?)
            .map_err(|_| TarError::Header { offset: self.offset, why: "a negative number" })
    }

    fn time(&self, at: usize) -> Result<Time, TarError> {
        Ok(Time { seconds: self.signed(at, 12)?, nanos: 0 })
    }

    fn signed(&self, at: usize, len: usize) -> Result<i64, TarError> {
        let refuse = |why| TarError::Header { offset: self.offset, why };
        let field = &self.block[at..at + len];
        if field[0] & 0x80 != 0 {
            let negative = field[0] & 0x40 != 0;
            let first =
                if negative { i64::from(field[0]) - 256 } else { i64::from(field[0] & 0x7f) };
            return field[1..].iter().try_fold(first, |value, &byte| {
                value
                    .checked_mul(256)
                    .and_then(|v| v.checked_add(i64::from(byte)))
                    .ok_or_else(|| refuse("a number over 63 bits"))
            });
        }
        let mut digits = field.iter().copied().skip_while(|&b| b == b' ').peekable();
        let mut value = 0_i64;
        while let Some(digit @ b'0'..=b'7') = digits.peek().copied() {
            digits.next();
            value = value
                .checked_mul(8)
                .and_then(|v| v.checked_add(i64::from(digit - b'0')))
                .ok_or_else(|| refuse("a number over 63 bits"))?;
        }
        match digits.next() {
            None | Some(0 | b' ') => Ok(value),
            Some(_) => Err(refuse("a number that is not octal")),
        }
    }

    fn extents(&self, at: usize, count: usize, into: &mut Vec<Extent>) -> Result<(), TarError> {
        for slot in (at..).step_by(24).take(count) {
            if self.block[slot] == 0 || self.block[slot + 12] == 0 {
                break;
            }
            into.push(Extent { offset: self.number(slot, 12)?, len: self.number(slot + 12, 12)? });
        }
        Ok(())
    }
}

impl Extensions {
    fn names_one_entry(&self) -> bool {
        self.path.is_some()
            || self.link.is_some()
            || self.size.is_some()
            || !self.xattrs.is_empty()
            || self.sparse_major.is_some()
            || self.sparse_name.is_some()
    }
}

fn parse_pax(mut data: &[u8], offset: u64, ext: &mut Extensions) -> Result<(), TarError> {
    let refuse = |why| TarError::Extension { offset, why };
    while !data.is_empty() {
        let space = data
            .iter()
            .take(20)
            .position(|&b| b == b' ')
            .ok_or_else(|| refuse("a record without a length"))?;
        let len = decimal(&data[..space])
            .and_then(|n| usize::try_from(n).ok())
            .filter(|&n| n > space + 1 && n <= data.len())
            .ok_or_else(|| refuse("a record with a wrong length"))?;
        let (record, rest) = data.split_at(len);
        data = rest;
        let record = record[space + 1..]
            .strip_suffix(b"\n")
            .ok_or_else(|| refuse("a record without a line end"))?;
        let equals = record
            .iter()
            .position(|&b| b == b'=')
            .ok_or_else(|| refuse("a record without a value"))?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        let number = || decimal(value).ok_or_else(|| refuse("a value that is not a number"));
        let id =
            || number().and_then(|n| u32::try_from(n).map_err(|_| refuse("an owner over 32 bits")));
        match key {
            b"path" => ext.path = Some(value.to_vec()),
            b"linkpath" => ext.link = Some(value.to_vec()),
            b"size" => ext.size = Some(number()?),
            b"uid" => ext.uid = Some(id()?),
            b"gid" => ext.gid = Some(id()?),
            b"mtime" => ext.mtime = Some(pax_time(value).ok_or_else(|| refuse("a wrong time"))?),
            b"GNU.sparse.major" => ext.sparse_major = Some(number()?),
            b"GNU.sparse.minor" => ext.sparse_minor = Some(number()?),
            b"GNU.sparse.name" => ext.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.realsize" => ext.sparse_size = Some(number()?),
            b"GNU.sparse.map" | b"GNU.sparse.numblocks" => {
                return Err(refuse(
                    "an old sparse format; write it with GNU tar --sparse-version=1.0",
                ));
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if name.is_empty() || name.len() > MAX_NAME || name.contains(&0) {
                        return Err(refuse("an extended attribute with a wrong name"));
                    }
                    if value.len() > MAX_XATTR_VALUE {
                        return Err(refuse("an extended attribute over 64 KiB"));
                    }
                    ext.xattrs.insert(name.to_vec(), value.to_vec());
                }
            }
        }
    }
    Ok(())
}

/// `[-]seconds[.fraction]`
fn pax_time(value: &[u8]) -> Option<Time> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |&b| b == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanos = 0;
    if let Some(fraction) = parts.next() {
        let mut scale = 100_000_000;
        for &digit in fraction {
            nanos += u32::from(digit.is_ascii_digit().then(|| digit - b'0')?) * scale;
            scale /= 10;
        }
    }
    Some(match (negative, nanos) {
        (false, nanos) => Time { seconds, nanos },
        (true, 0) => Time { seconds: -seconds, nanos: 0 },
        (true, nanos) => Time { seconds: -seconds - 1, nanos: 1_000_000_000 - nanos },
    })
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, &digit| {
        let digit = digit.is_ascii_digit().then(|| digit - b'0')?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Extents must be in order, apart, inside the file, and account for every stored byte.
fn check_extents(extents: &[Extent], real: u64, stored: u64) -> Result<(), &'static str> {
    let mut at = 0;
    let mut sum = 0_u64;
    for extent in extents {
        let end = extent.offset.checked_add(extent.len).ok_or("an extent over 64 bits")?;
        if extent.offset < at || end > real {
            return Err("extents out of order or beyond the file");
        }
        at = end;
        sum += extent.len;
    }
    if sum == stored { Ok(()) } else { Err("extents that do not add up to the stored size") }
}

fn padding(size: u64) -> usize {
    let used = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    (BLOCK - used) % BLOCK
}
