use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::sync::Arc;

use api::{AuditRange, Timestamp};
use rusqlite::Connection;

use crate::row::{COLUMNS, Row, place};
use crate::segment::{Line, Lines, Segment, next_line};
use crate::{AuditError, Head, Key};

/// Records of one chunk, at most.
const CHUNK_RECORDS: u32 = 512;
/// Bytes of a chunk, about.
const CHUNK_BYTES: usize = 256 << 10;

/// Writes a part of the log as JSON lines, chunk by chunk, with a signed line at the end.
/// Between chunks it holds nothing of the database.
pub struct Export {
    directory: PathBuf,
    key: Arc<Key>,
    next: u64,
    to: u64,
    /// The file that is being read, and the last record in it.
    file: Option<(BufReader<File>, u64)>,
    lines: Option<Lines>,
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export").field("next", &self.next).field("to", &self.to).finish()
    }
}

impl Export {
    /// Begins the export of a range, which ends where the chain ends now.
    ///
    /// # Errors
    /// `Unreadable` and `Database`.
    pub fn begin(
        connection: &Connection,
        directory: PathBuf,
        key: Arc<Key>,
        range: AuditRange,
    ) -> Result<Self, AuditError> {
        let end = Head::read(connection)?.seq;
        Ok(Self {
            directory,
            key,
            next: range.from.unwrap_or(1).max(1),
            to: range.to.unwrap_or(u64::MAX).min(end),
            file: None,
            lines: Some(Lines::new()),
        })
    }

    /// The next lines; `None` after the last.
    ///
    /// # Errors
    /// `Unreadable` where a record was tampered with, `File` and `Database`.
    pub fn next_chunk(&mut self, connection: &Connection) -> Result<Option<Vec<u8>>, AuditError> {
        let Some(mut lines) = self.lines.take() else { return Ok(None) };
        let mut out = Vec::new();
        while self.next <= self.to && out.len() < CHUNK_BYTES {
            let before = self.next;
            if self.file.is_some() || self.open_file(connection)? {
                self.take_from_file(&mut lines, &mut out)?;
            } else {
                self.take_from_database(connection, &mut lines, &mut out)?;
            }
            if self.next == before && self.file.is_none() {
                let reason = "it is missing".to_owned();
                return Err(AuditError::Unreadable { seq: self.next, reason });
            }
        }
        if self.next > self.to {
            lines.finish(&self.key, Timestamp::now(), &mut out)?;
        } else {
            self.lines = Some(lines);
        }
        Ok(Some(out))
    }

    /// Opens the file that holds the next record; whether there is one.
    fn open_file(&mut self, connection: &Connection) -> Result<bool, AuditError> {
        let segments = Segment::all(connection)?;
        let Some(segment) = segments.iter().find(|s| (s.first..=s.last).contains(&self.next))
        else {
            return Ok(false);
        };
        self.file = Some((segment.open(&self.directory)?, segment.last));
        Ok(true)
    }

    fn take_from_file(&mut self, lines: &mut Lines, out: &mut Vec<u8>) -> Result<(), AuditError> {
        let Some((mut input, last)) = self.file.take() else { return Ok(()) };
        let mut line = Vec::new();
        while self.next <= self.to.min(last) {
            if out.len() >= CHUNK_BYTES {
                self.file = Some((input, last));
                return Ok(());
            }
            let unreadable = |reason| AuditError::Unreadable { seq: self.next, reason };
            if !next_line(&mut input, &mut line).map_err(AuditError::Import)? {
                return Err(unreadable("its file ends before it".to_owned()));
            }
            match Line::parse(&line) {
                Line::Record(row) if row.seq == self.next => {
                    lines.record(&row, out)?;
                    self.next += 1;
                }
                Line::Record(row) if row.seq < self.next => {}
                Line::Record(_) | Line::Footer(_) => {
                    return Err(unreadable("it is missing in its file".to_owned()));
                }
                Line::Unreadable(reason) => return Err(unreadable(reason)),
            }
        }
        Ok(())
    }

    fn take_from_database(
        &mut self,
        connection: &Connection,
        lines: &mut Lines,
        out: &mut Vec<u8>,
    ) -> Result<(), AuditError> {
        let mut statement = connection.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM audit WHERE seq BETWEEN ? AND ? ORDER BY seq LIMIT ?"
        ))?;
        let range = (self.next.cast_signed(), self.to.cast_signed(), CHUNK_RECORDS);
        let mut rows = statement.query(range)?;
        while out.len() < CHUNK_BYTES
            && let Some(row) = rows.next()?
        {
            let seq = place(row).unwrap_or(0);
            if seq != self.next {
                break;
            }
            let row = Row::read(row).map_err(|reason| AuditError::Unreadable { seq, reason })?;
            lines.record(&row, out)?;
            self.next += 1;
        }
        Ok(())
    }
}
