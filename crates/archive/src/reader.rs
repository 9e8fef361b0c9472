//! Members of a tar stream that a stranger may have written.

use std::io::{self, BufReader, Read};

use tar::{EntryType, Header};

use crate::name::MAX_NAME;
use crate::{Name, NameError, Printable};

/// An extended header: two names at most, plus what other archivers like to add.
pub const MAX_EXTENSION: u64 = 64 << 10;

/// Extended headers before one member. A PAX header, or one each for a long name and a long
/// target, are all that any archiver writes.
const MAX_EXTENSIONS: u32 = 4;

const BLOCK: usize = 512;

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Where it goes, below whatever directory.
    pub name: Name,
    /// What it is.
    pub kind: Kind,
    /// Permission bits as told, at most 0o7777: whoever uses them decides about setuid.
    pub mode: u32,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file whose content follows.
    File {
        /// In bytes.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it points: any bytes but NUL.
        target: Vec<u8>,
    },
    /// One more name for another entry.
    HardLink {
        /// Which.
        target: Name,
    },
}

/// Why a stream is not an archive that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The stream failed.
    #[error("cannot read the archive: {0}")]
    Stream(#[source] io::Error),
    /// It ends before its end marker.
    #[error("the archive ends too early: what sent it stopped half-way")]
    Truncated,
    /// A header does not parse.
    #[error("the archive is damaged: {0}")]
    Damaged(&'static str),
    /// An entry's name leaves the directory or cannot be used.
    #[error("the archive names an entry '{shown}', which is refused: {source}")]
    Name {
        /// For a person.
        shown: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// A hard link's target leaves the directory or cannot be used.
    #[error("the hard link '{name}' to '{shown}' is refused: {source}")]
    HardLink {
        /// The link.
        name: Name,
        /// Its target, for a person.
        shown: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// An entry is of a kind that is not taken out of archives.
    #[error("the entry '{name}' is {what}, which is refused")]
    Kind {
        /// Which.
        name: Name,
        /// For a person.
        what: &'static str,
    },
}

/// Reads an archive member by member. Nothing that the stream says is used as a size to allocate.
#[derive(Debug)]
pub struct Reader<R> {
    input: BufReader<R>,
    /// Content of the current member that was not read.
    left: u64,
    /// Zeros after it.
    padding: u64,
    ended: bool,
    is_question: bool,
}

#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    mtime: Option<i64>,
    size: Option<u64>,
    is_question: bool,
}

impl<R: Read> Reader<R> {
    /// Starts on a stream.
    pub fn new(input: R) -> Self {
        let input = BufReader::with_capacity(crate::writer::CHUNK, input);
        Self { input, left: 0, padding: 0, ended: false, is_question: false }
    }

    /// The next member; what is left of the current one's content is skipped. `None` at the
    /// archive's end marker, which may be followed by anything.
    ///
    /// # Errors
    /// What is wrong with the archive or with this member. There is no next one then.
    pub fn next_member(&mut self) -> Result<Option<Member>, ReadError> {
        if self.ended {
            return Ok(None);
        }
        self.skip_content()?;
        self.is_question = false;
        let mut extensions = Extensions::default();
        for _ in 0..=MAX_EXTENSIONS {
            let Some(header) = self.header()? else {
                self.ended = true;
                return Ok(None);
            };
            let size = header.entry_size().map_err(|_| ReadError::Damaged("an entry's size"))?;
            match header.entry_type() {
                EntryType::XHeader => {
                    let records = self.extension(size)?;
                    extensions.read(&records)?;
                }
                // Archive-wide comments; names and sizes in there would be nonsense.
                EntryType::XGlobalHeader => {
                    self.extension(size)?;
                }
                EntryType::GNULongName => extensions.path = Some(c_string(self.extension(size)?)),
                EntryType::GNULongLink => {
                    extensions.target = Some(c_string(self.extension(size)?));
                }
                _ => return self.member(&header, size, extensions).map(Some),
            }
        }
        Err(ReadError::Damaged("too many extended headers"))
    }

    /// Content of the current member, up to its size.
    pub fn content(&mut self) -> Content<'_, R> {
        Content { reader: self }
    }

    /// Whether the sender waits to be told if what belongs to the current member is to follow: a
    /// directory's entries, a file's content. See [`crate::Packing::asks`].
    pub fn is_question(&self) -> bool {
        self.is_question
    }

    /// The sender was told that what belongs to the current member is not to follow: so a file's
    /// content does not. The stream is where the next member begins, or what the two have agreed
    /// on to come before that.
    pub fn forgo(&mut self) -> &mut impl Read {
        self.expect(0);
        &mut self.input
    }

    /// The stream, positioned somewhere after the last member.
    pub fn into_inner(self) -> BufReader<R> {
        self.input
    }

    fn member(
        &mut self,
        header: &Header,
        size: u64,
        extensions: Extensions,
    ) -> Result<Member, ReadError> {
        self.is_question = extensions.is_question;
        let path = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let name =
            Name::parse(&path).map_err(|source| ReadError::Name { shown: shown(&path), source })?;
        let refused = |what| Err(ReadError::Kind { name: name.clone(), what });
        let target = extensions.target.or_else(|| header.link_name_bytes().map(Into::into));
        let kind = match header.entry_type() {
            // Before POSIX a directory was a file with a final slash.
            EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File { size },
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => match target {
                Some(target) if target.len() > MAX_NAME => {
                    return refused("a symbolic link with a target that is too long");
                }
                Some(target) if !target.is_empty() && !target.contains(&0) => {
                    Kind::Symlink { target }
                }
                _ => return refused("a symbolic link without a usable target"),
            },
            EntryType::Link => {
                let bytes = target.unwrap_or_default();
                let target = Name::parse(&bytes).map_err(|source| ReadError::HardLink {
                    name: name.clone(),
                    shown: shown(&bytes),
                    source,
                })?;
                Kind::HardLink { target }
            }
            EntryType::Char => return refused("a character device"),
            EntryType::Block => return refused("a block device"),
            EntryType::Fifo => return refused("a FIFO"),
            EntryType::GNUSparse => return refused("a sparse file in the GNU format"),
            _ => return refused("of an unknown kind"),
        };
        match kind {
            Kind::Directory => {}
            _ if name.is_root() => return refused("not a directory but named '.'"),
            _ => {}
        }
        if !matches!(kind, Kind::File { .. }) && size != 0 {
            return Err(ReadError::Damaged("content after an entry that has none"));
        }
        if i64::try_from(size).is_err() || extensions.size.is_some_and(|told| told != size) {
            return Err(ReadError::Damaged("an entry's size"));
        }
        self.expect(size);
        let mode = header.mode().map_err(|_| ReadError::Damaged("an entry's mode"))? & 0o7777;
        let mtime = match extensions.mtime {
            Some(mtime) => mtime,
            // GNU writes times before 1970 as a negative number in binary.
            None => header
                .mtime()
                .map_err(|_| ReadError::Damaged("an entry's modification time"))?
                .cast_signed(),
        };
        Ok(Member { name, kind, mode, mtime })
    }

    /// A header with the right checksum; `None` for the two blocks of zeros at the end.
    fn header(&mut self) -> Result<Option<Header>, ReadError> {
        let block = self.block()?;
        if block == [0; BLOCK] {
            if self.block()? == [0; BLOCK] {
                return Ok(None);
            }
            return Err(ReadError::Damaged("half an end marker"));
        }
        let header = Header::from_byte_slice(&block);
        let told = header.cksum().map_err(|_| ReadError::Damaged("a header's checksum"))?;
        let field = 148..156;
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(at, &byte)| u32::from(if field.contains(&at) { b' ' } else { byte }))
            .sum();
        if told == sum {
            Ok(Some(header.clone()))
        } else {
            Err(ReadError::Damaged("a header's checksum"))
        }
    }

    fn block(&mut self) -> Result<[u8; BLOCK], ReadError> {
        let mut block = [0; BLOCK];
        self.input.read_exact(&mut block).map_err(ended_early)?;
        Ok(block)
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ReadError> {
        if size > MAX_EXTENSION {
            return Err(ReadError::Damaged("an extended header that is too long"));
        }
        self.expect(size);
        let mut bytes = Vec::new();
        self.content().read_to_end(&mut bytes).map_err(ended_early)?;
        self.skip_content()?;
        Ok(bytes)
    }

    fn expect(&mut self, size: u64) {
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    fn skip_content(&mut self) -> Result<(), ReadError> {
        let rest = self.left + self.padding;
        let skipped = io::copy(&mut (&mut self.input).take(rest), &mut io::sink());
        if skipped.map_err(ReadError::Stream)? < rest {
            return Err(ReadError::Truncated);
        }
        self.expect(0);
        Ok(())
    }
}

impl Extensions {
    fn read(&mut self, records: &[u8]) -> Result<(), ReadError> {
        let damaged = || ReadError::Damaged("an extended header");
        let mut rest = records;
        while !rest.is_empty() {
            // "LENGTH KEY=VALUE\n"; the length counts itself, so that a value may hold newlines.
            let space = rest.iter().position(|&byte| byte == b' ').ok_or_else(damaged)?;
            let length: usize = std::str::from_utf8(&rest[..space])
                .ok()
                .and_then(|digits| digits.parse().ok())
                .ok_or_else(damaged)?;
            if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
                return Err(damaged());
            }
            let record = &rest[space + 1..length - 1];
            let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(damaged)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let text = || std::str::from_utf8(value).map_err(|_| damaged());
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.target = Some(value.to_vec()),
                b"size" => self.size = Some(text()?.parse().map_err(|_| damaged())?),
                b"mtime" => self.mtime = Some(seconds(text()?).ok_or_else(damaged)?),
                crate::writer::QUESTION => self.is_question = true,
                _ if key.starts_with(b"GNU.sparse.") => {
                    return Err(ReadError::Damaged("a sparse file, which is not supported"));
                }
                _ => {}
            }
            rest = &rest[length..];
        }
        Ok(())
    }
}

/// Whole seconds of a decimal number that may have a fraction.
fn seconds(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: i64 = whole.parse().ok()?;
    // -0.5 is half a second before 1970, in its last second.
    let before = text.starts_with('-') && fraction.bytes().any(|digit| digit != b'0');
    whole.checked_sub(i64::from(before))
}

fn c_string(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

/// A hostile name for an error message: the start of it is enough.
fn shown(bytes: &[u8]) -> String {
    const ENOUGH: usize = 200;
    match bytes.get(..ENOUGH) {
        Some(start) => format!("{}…", Printable(start)),
        None => Printable(bytes).to_string(),
    }
}

fn ended_early(error: io::Error) -> ReadError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        ReadError::Truncated
    } else {
        ReadError::Stream(error)
    }
}

/// Content of a member. A stream that ends before it is an `UnexpectedEof`.
#[derive(Debug)]
pub struct Content<'a, R> {
    reader: &'a mut Reader<R>,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.reader.left).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        if most == 0 {
            return Ok(0);
        }
        match self.reader.input.read(&mut buffer[..most])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            got => {
                self.reader.left -= got as u64;
                Ok(got)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Writer;

    fn name(bytes: &[u8]) -> Name {
        Name::parse(bytes).unwrap()
    }

    /// All that a fuzzer needs: reads to the end or the first error, with bounded memory.
    fn read_all(bytes: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, ReadError> {
        let mut reader = Reader::new(bytes);
        let mut members = Vec::new();
        while let Some(member) = reader.next_member()? {
            let mut content = Vec::new();
            reader.content().read_to_end(&mut content).map_err(ended_early)?;
            members.push((member, content));
        }
        Ok(members)
    }

    fn header(kind: EntryType, path: &[u8], target: &[u8], size: u64) -> Vec<u8> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.as_old_mut().name[..path.len()].copy_from_slice(path);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
        header.set_mode(0o644);
        header.set_mtime(1);
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    fn ended(mut archive: Vec<u8>) -> Vec<u8> {
        archive.extend_from_slice(&[0; 1024]);
        archive
    }

    #[test]
    fn hostile_entries_are_refused_by_name() {
        let table: &[(EntryType, &[u8], &[u8], &str)] = &[
            (EntryType::Regular, b"/etc/passwd", b"", "'/etc/passwd', which is refused"),
            (EntryType::Regular, b"a/../../b", b"", "'..' component"),
            (EntryType::Directory, b"..", b"", "'..' component"),
            (EntryType::Regular, b"", b"", "empty"),
            (EntryType::Regular, b".", b"", "named '.'"),
            (EntryType::Link, b"a", b"/etc/shadow", "hard link 'a' to '/etc/shadow'"),
            (EntryType::Link, b"a", b"../b", "hard link 'a' to '../b'"),
            (EntryType::Link, b"a", b"", "hard link 'a' to ''"),
            (EntryType::Symlink, b"a", b"", "without a usable target"),
            (EntryType::Char, b"dev/null", b"", "'dev/null' is a character device"),
            (EntryType::Block, b"sda", b"", "a block device"),
            (EntryType::Fifo, b"pipe", b"", "a FIFO"),
            (EntryType::GNUSparse, b"hole", b"", "a sparse file"),
            (EntryType::new(b'V'), b"label", b"", "of an unknown kind"),
            (EntryType::Regular, b"\x1b[2J/../x", b"", "'\\u{1b}[2J/../x'"),
        ];
        for (kind, path, target, expected) in table {
            let error = read_all(&ended(header(*kind, path, target, 0))).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn an_archive_without_its_end_marker_is_truncated() {
        let whole = ended([header(EntryType::Regular, b"a", b"", 5), vec![b'x'; 512]].concat());
        assert_eq!(read_all(&whole).unwrap().len(), 1);
        for length in 0..whole.len() {
            let error = read_all(&whole[..length]).unwrap_err();
            assert!(matches!(error, ReadError::Truncated), "{length}: {error}");
        }
    }

    #[test]
    fn a_changed_header_is_damaged() {
        let mut archive = ended(header(EntryType::Regular, b"a", b"", 0));
        archive[0] = b'b';
        assert!(matches!(read_all(&archive), Err(ReadError::Damaged(_))));
    }

    #[test]
    fn lengths_that_a_stranger_chose_allocate_nothing() {
        for kind in [EntryType::XHeader, EntryType::GNULongName, EntryType::GNULongLink] {
            let archive = header(kind, b"x", b"", 1 << 40);
            assert!(matches!(read_all(&archive), Err(ReadError::Damaged(_))), "{kind:?}");
        }
        let archive = header(EntryType::Regular, b"x", b"", u64::MAX);
        assert!(matches!(read_all(&archive), Err(ReadError::Damaged(_))));
        let endless = header(EntryType::XGlobalHeader, b"x", b"", 0).repeat(1000);
        assert!(matches!(read_all(&endless), Err(ReadError::Damaged(_))));
    }

    #[test]
    fn an_extended_header_cannot_move_where_the_next_header_is() {
        let records = b"12 size=512\n";
        let mut archive = header(EntryType::XHeader, b"x", b"", records.len() as u64);
        archive.extend_from_slice(records);
        archive.resize(1024, 0);
        archive.extend(header(EntryType::Regular, b"a", b"", 0));
        assert!(matches!(read_all(&ended(archive)), Err(ReadError::Damaged(_))));
    }

    #[test]
    fn times_before_1970_and_fractions_are_understood() {
        for (text, expected) in [
            ("12", Some(12)),
            ("12.9", Some(12)),
            ("-3", Some(-3)),
            ("-3.5", Some(-4)),
            ("-0.5", Some(-1)),
            ("-0.0", Some(0)),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }

    fn any_name() -> impl Strategy<Value = Name> {
        proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..120), 1..4)
            .prop_filter_map("not a name", |components| {
                let name = Name::parse(&components.join(&b'/')).ok()?;
                (!name.is_root()).then_some(name)
            })
    }

    fn any_member() -> impl Strategy<Value = (Member, Vec<u8>)> {
        let content = proptest::collection::vec(any::<u8>(), 0..1500);
        let target = proptest::collection::vec(1u8.., 1..200);
        let kind = prop_oneof![
            content.prop_map(|content| (Kind::File { size: content.len() as u64 }, content)),
            Just((Kind::Directory, Vec::new())),
            target.prop_map(|target| (Kind::Symlink { target }, Vec::new())),
            any_name().prop_map(|target| (Kind::HardLink { target }, Vec::new())),
        ];
        (any_name(), kind, 0..=0o777u32, -(1i64 << 40)..1 << 40).prop_map(
            |(name, (kind, content), mode, mtime)| {
                let mode = if matches!(kind, Kind::Symlink { .. }) { 0o777 } else { mode };
                (Member { name, kind, mode, mtime }, content)
            },
        )
    }

    fn write_all(members: &[(Member, Vec<u8>)]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for (Member { name, kind, mode, mtime }, content) in members {
            match kind {
                Kind::File { size } => {
                    writer.file(name, *mode, *mtime, *size).unwrap();
                    writer
                        .content(*size, &mut &content[..], |_| {})
                        .map_err(|_| io::ErrorKind::Other.into())
                }
                Kind::Directory => writer.directory(name, *mode, *mtime),
                Kind::Symlink { target } => writer.symlink(name, target, *mtime),
                Kind::HardLink { target } => writer.hard_link(name, target, *mode, *mtime),
            }
            .unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn a_file_that_shrinks_or_grows_keeps_the_archive_whole() {
        let mut writer = Writer::new(Vec::new());
        let mut heard = Vec::new();
        for (file, size) in [(b"shrunk", 700), (b"grown!", 3)] {
            writer.file(&name(file), 0o644, 0, size).unwrap();
            writer.content(size, &mut &b"12345"[..], |part| heard.extend_from_slice(part)).unwrap();
        }
        let members = read_all(&writer.finish().unwrap()).unwrap();
        let shrunk = [&b"12345"[..], &[0; 695][..]].concat();
        assert_eq!(members[0].1, shrunk);
        assert_eq!(members[1].1, b"123");
        assert_eq!(heard, [&shrunk[..], b"123"].concat());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(members in proptest::collection::vec(any_member(), 0..6)) {
            prop_assert_eq!(read_all(&write_all(&members)).unwrap(), members);
        }

        #[test]
        fn noise_and_damage_never_panic(
            members in proptest::collection::vec(any_member(), 0..4),
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            noise in proptest::collection::vec(any::<u8>(), 0..2000),
        ) {
            let mut archive = write_all(&members);
            for (at, byte) in damage {
                let at = at.index(archive.len());
                archive[at] = byte;
            }
            let _ = read_all(&archive);
            let _ = read_all(&noise);
        }
    }
}
