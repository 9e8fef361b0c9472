//! Records in files: a line each, and a signed line at the end.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use api::{FaultKind, Timestamp};
use ed25519_dalek::{Signature, VerifyingKey};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::digest::{from_hex, to_hex};
use crate::key::{no_follow, sync_directory_of};
use crate::row::{COLUMNS, Row};
use crate::scan::Scanner;
use crate::{AuditError, Digest, Key};

const DOMAIN: &[u8] = b"sandforge audit segment v1\0";
/// Most bytes of a line: a record whose every text is as long as can be, and escaped.
const MAX_LINE: u64 = 1 << 20;

/// What the last line of a file vouches for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Footer {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) records: u64,
    pub(crate) first_prev_hash: Digest,
    pub(crate) last_hash: Digest,
    /// Of all lines before, with their ends.
    pub(crate) content_sha256: Digest,
    pub(crate) at: Timestamp,
    pub(crate) signature: String,
    pub(crate) public_key: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FooterLine {
    footer: Footer,
}

impl Footer {
    fn message(&self) -> Vec<u8> {
        let mut message = DOMAIN.to_vec();
        for number in [self.first, self.last, self.records] {
            message.extend(number.to_be_bytes());
        }
        for digest in [&self.first_prev_hash, &self.last_hash, &self.content_sha256] {
            message.extend(digest.as_bytes());
        }
        message.extend(self.at.unix_ms().to_be_bytes());
        message
    }

    fn verify(&self, trusted: Option<&VerifyingKey>) -> Result<(), &'static str> {
        let public: [u8; 32] = from_hex(&self.public_key).ok_or("its public key is none")?;
        let key = VerifyingKey::from_bytes(&public).map_err(|_| "its public key is none")?;
        if trusted.is_some_and(|trusted| trusted != &key) {
            return Err("it is signed with another key");
        }
        let signature: [u8; 64] = from_hex(&self.signature).ok_or("its signature is none")?;
        key.verify_strict(&self.message(), &Signature::from_bytes(&signature))
            .map_err(|_| "its signature does not verify")
    }
}

/// Lines as they are written, and what their footer says.
pub(crate) struct Lines {
    content: Sha256,
    records: u64,
    first: Option<(u64, Digest)>,
    last: Option<(u64, Digest)>,
}

impl Lines {
    pub(crate) fn new() -> Self {
        Self { content: Sha256::new(), records: 0, first: None, last: None }
    }

    pub(crate) fn last(&self) -> Option<(u64, Digest)> {
        self.last
    }

    /// Adds the line of a record to `out`.
    pub(crate) fn record(&mut self, row: &Row, out: &mut Vec<u8>) -> Result<(), AuditError> {
        let begin = out.len();
        serde_json::to_writer(&mut *out, row).map_err(|error| AuditError::Export(error.into()))?;
        out.push(b'\n');
        self.content.update(&out[begin..]);
        self.records += 1;
        self.first.get_or_insert((row.seq, row.prev_hash));
        self.last = Some((row.seq, row.hash));
        Ok(())
    }

    /// Adds the footer to `out`.
    pub(crate) fn finish(
        self,
        key: &Key,
        at: Timestamp,
        out: &mut Vec<u8>,
    ) -> Result<Footer, AuditError> {
        let (first, first_prev_hash) = self.first.unwrap_or((0, Digest::ZERO));
        let (last, last_hash) = self.last.unwrap_or((0, Digest::ZERO));
        let mut footer = Footer {
            first,
            last,
            records: self.records,
            first_prev_hash,
            last_hash,
            content_sha256: <[u8; 32]>::from(self.content.finalize()).into(),
            at,
            signature: String::new(),
            public_key: to_hex(key.public().as_bytes()),
        };
        footer.signature = to_hex(&key.sign(&footer.message()).to_bytes());
        serde_json::to_writer(&mut *out, &FooterLine { footer: footer.clone() })
            .map_err(|error| AuditError::Export(error.into()))?;
        out.push(b'\n');
        Ok(footer)
    }
}

/// A line of a file.
pub(crate) enum Line {
    Record(Box<Row>),
    Footer(Box<Footer>),
    /// Neither, and why.
    Unreadable(String),
}

impl Line {
    pub(crate) fn parse(line: &[u8]) -> Self {
        let Some(line) = line.strip_suffix(b"\n") else {
            return Self::Unreadable("the line has no end".to_owned());
        };
        if line.starts_with(b"{\"footer\":") {
            return match serde_json::from_slice::<FooterLine>(line) {
                // Its signature is of what it says: a time, for one, can be spelled in other ways.
                Ok(found) if serde_json::to_vec(&found).ok().as_deref() != Some(line) => {
                    Self::Unreadable("the end is not as it was written".to_owned())
                }
                Ok(found) => Self::Footer(Box::new(found.footer)),
                Err(error) => Self::Unreadable(error.to_string()),
            };
        }
        match serde_json::from_slice(line) {
            Ok(row) => Self::Record(Box::new(row)),
            Err(error) => Self::Unreadable(error.to_string()),
        }
    }
}

/// Reads the next line with its end into `line`; whether there was one. Of one that is too long
/// its begin is given, which is no record.
pub(crate) fn next_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<bool> {
    line.clear();
    input.by_ref().take(MAX_LINE).read_until(b'\n', line)?;
    if line.len() as u64 == MAX_LINE && line.last() != Some(&b'\n') {
        loop {
            let rest = input.fill_buf()?;
            let end = rest.iter().position(|&byte| byte == b'\n');
            let length = rest.len();
            input.consume(end.map_or(length, |end| end + 1));
            if end.is_some() || length == 0 {
                break;
            }
        }
    }
    Ok(!line.is_empty())
}

/// Reads lines into a scanner, section after section, each with its footer.
pub(crate) struct Walk<'s> {
    pub(crate) scanner: &'s mut Scanner,
    trusted: Option<VerifyingKey>,
    section: Lines,
    faults_before: bool,
    /// The last footer, where nothing follows it.
    pub(crate) footer: Option<Footer>,
}

impl<'s> Walk<'s> {
    pub(crate) fn new(scanner: &'s mut Scanner, trusted: Option<VerifyingKey>) -> Self {
        let faults_before = scanner.has_faults();
        Self { scanner, trusted, section: Lines::new(), faults_before, footer: None }
    }

    /// Takes a line with its end. Gives the place of the record that it holds.
    pub(crate) fn line(&mut self, line: &[u8]) -> Option<u64> {
        match Line::parse(line) {
            Line::Footer(footer) => {
                self.end_section(*footer);
                None
            }
            Line::Record(row) => {
                self.footer = None;
                self.section.content.update(line);
                self.section.records += 1;
                self.section.first.get_or_insert((row.seq, row.prev_hash));
                self.section.last = Some((row.seq, row.hash));
                let seq = row.seq;
                self.scanner.record(*row);
                Some(seq)
            }
            Line::Unreadable(why) => {
                self.footer = None;
                self.section.content.update(line);
                self.section.records += 1;
                self.scanner.unreadable(None, &why);
                None
            }
        }
    }

    fn end_section(&mut self, footer: Footer) {
        let section = std::mem::replace(&mut self.section, Lines::new());
        let bad = |scanner: &mut Scanner, why: &str| {
            let detail =
                format!("the signed end of records {} to {}: {why}", footer.first, footer.last);
            scanner.fault(footer.last, FaultKind::BadCheckpoint, detail);
        };
        if let Err(why) = footer.verify(self.trusted.as_ref()) {
            bad(self.scanner, why);
        } else {
            let first = section.first.map_or(0, |(seq, _)| seq);
            let last = section.last.map_or(0, |(seq, _)| seq);
            if footer.first < first {
                self.scanner.removed(footer.first, first - 1);
            }
            if last < footer.last {
                self.scanner.truncated(footer.last, "the signed end");
            }
            let content: [u8; 32] = section.content.finalize().into();
            let same = footer.content_sha256 == Digest::from(content)
                && footer.records == section.records
                && section.first.is_none_or(|(_, prev)| prev == footer.first_prev_hash)
                && section.last.is_none_or(|(_, hash)| hash == footer.last_hash);
            // Where a record is to blame, it was named.
            if !same && (self.faults_before || !self.scanner.has_faults()) {
                let detail = format!(
                    "records {} to {} are not those that were signed",
                    footer.first, footer.last
                );
                self.scanner.fault(footer.first, FaultKind::Changed, detail);
            }
        }
        self.faults_before = self.scanner.has_faults();
        self.footer = Some(footer);
    }
}

/// Records that were moved to a file: what the chain in the database is anchored to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The first record in it.
    pub first: u64,
    /// The last record in it.
    pub last: u64,
    pub(crate) last_hash: Digest,
    pub(crate) content: Digest,
}

impl Segment {
    /// The file's place in the audit directory. Names sort as their records do.
    pub fn path(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{:012}-{:012}.jsonl", self.first, self.last))
    }

    /// All of them, in the order of the chain.
    ///
    /// # Errors
    /// `Unreadable` and `Database`.
    pub fn all(connection: &Connection) -> Result<Vec<Self>, AuditError> {
        let mut statement = connection.prepare_cached(
            "SELECT first, last, last_hash, content_digest FROM audit_segment ORDER BY first",
        )?;
        let mut rows = statement.query([])?;
        let mut segments = Vec::new();
        while let Some(row) = rows.next()? {
            let number = |index| Ok::<_, AuditError>(row.get::<_, i64>(index)?.cast_unsigned());
            let digest = |index, seq| {
                Digest::try_from(row.get::<_, Vec<u8>>(index)?.as_slice())
                    .map_err(|error| AuditError::Unreadable { seq, reason: error.to_string() })
            };
            let (first, last) = (number(0)?, number(1)?);
            let (last_hash, content) = (digest(2, last)?, digest(3, last)?);
            segments.push(Self { first, last, last_hash, content });
        }
        Ok(segments)
    }

    pub(crate) fn open(&self, directory: &Path) -> Result<BufReader<File>, AuditError> {
        let path = self.path(directory);
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(no_follow())
            .open(&path)
            .map_err(AuditError::file("open", path))?;
        Ok(BufReader::with_capacity(1 << 16, file))
    }
}

/// Writes the oldest records, up to `through`, to a file of `directory`, signed and on disk.
/// They stay in the database until [`drop_segment`].
///
/// # Errors
/// `NothingToRotate`, `Broken` where the chain does not hold, so that nothing false gets a
/// signature, `File` and `Database`.
pub fn write_segment(
    connection: &Connection,
    directory: &Path,
    key: &Key,
    through: u64,
    at: Timestamp,
) -> Result<Segment, AuditError> {
    let anchor = Segment::all(connection)?.pop();
    let first = anchor.as_ref().map_or(1, |segment| segment.last + 1);
    let prev = anchor.map_or(Digest::ZERO, |segment| segment.last_hash);
    let unfinished = directory.join(format!("{first:012}.{}.new", std::process::id()));
    let written = (|| {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(no_follow())
            .open(&unfinished)
            .map_err(AuditError::file("create", &unfinished))?;
        let mut out = BufWriter::with_capacity(1 << 16, file);
        let mut scanner = Scanner::new(Some(first), Some(prev), Some(key.public()));
        let mut lines = Lines::new();
        let mut buffer = Vec::new();
        let write = |out: &mut BufWriter<File>, buffer: &mut Vec<u8>| {
            out.write_all(buffer).map_err(AuditError::file("write", &unfinished))?;
            buffer.clear();
            Ok::<_, AuditError>(())
        };
        let mut statement = connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM audit WHERE seq <= ? ORDER BY seq"))?;
        let mut rows = statement.query([through.cast_signed()])?;
        while let Some(row) = rows.next()? {
            let row = Row::read(row).map_err(|reason| AuditError::Broken { reason })?;
            lines.record(&row, &mut buffer)?;
            scanner.record(row);
            write(&mut out, &mut buffer)?;
        }
        if lines.last().is_none() {
            return Err(AuditError::NothingToRotate);
        }
        if scanner.has_faults() {
            let fault = scanner.finish().faults.into_iter().next();
            let words = |fault: api::Fault| format!("record {}: {}", fault.seq, fault.detail);
            return Err(AuditError::Broken { reason: fault.map(words).unwrap_or_default() });
        }
        let footer = lines.finish(key, at, &mut buffer)?;
        write(&mut out, &mut buffer)?;
        let segment = Segment {
            first: footer.first,
            last: footer.last,
            last_hash: footer.last_hash,
            content: footer.content_sha256,
        };
        let path = segment.path(directory);
        let finish = || {
            out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
            std::fs::rename(&unfinished, &path)?;
            sync_directory_of(&path)
        };
        finish().map_err(AuditError::file("write", &path))?;
        Ok(segment)
    })();
    if written.is_err() {
        // The failure that is told is the first one.
        let _ = std::fs::remove_file(&unfinished);
    }
    written
}

/// Takes the records of a segment out of the database, and anchors the chain to it. A
/// transaction for writing must be open. Whether that was done: where another process rotated
/// meanwhile, nothing is.
///
/// # Errors
/// `NoTransaction` and `Database`.
pub fn drop_segment(
    connection: &Connection,
    segment: &Segment,
    at: Timestamp,
) -> Result<bool, AuditError> {
    if connection.is_autocommit() {
        return Err(AuditError::NoTransaction);
    }
    let oldest: Option<i64> =
        connection.query_row("SELECT MIN(seq) FROM audit", [], |row| row.get(0))?;
    let hash: Option<Vec<u8>> = connection
        .query_row("SELECT hash FROM audit WHERE seq = ?", [segment.last.cast_signed()], |row| {
            row.get(0)
        })
        .optional()?;
    let same = oldest == Some(segment.first.cast_signed())
        && hash.as_deref() == Some(segment.last_hash.as_bytes());
    if !same {
        return Ok(false);
    }
    let last = segment.last.cast_signed();
    connection.execute(
        "INSERT INTO audit_segment (first, last, last_hash, content_digest, at) \
         VALUES (?, ?, ?, ?, ?)",
        params![
            segment.first.cast_signed(),
            last,
            segment.last_hash.as_bytes(),
            segment.content.as_bytes(),
            at.unix_ms(),
        ],
    )?;
    connection.execute("INSERT INTO audit_rotation (through) VALUES (?)", [last])?;
    connection.execute("DELETE FROM audit WHERE seq <= ?", [last])?;
    connection.execute("DELETE FROM audit_checkpoint WHERE seq <= ?", [last])?;
    connection.execute("DELETE FROM audit_rotation", [])?;
    Ok(true)
}
