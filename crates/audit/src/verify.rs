use std::io::BufRead;
use std::path::Path;

use api::{AuditRange, AuditReport, Checkpoint, FaultKind};
use ed25519_dalek::VerifyingKey;
use rusqlite::{Connection, OptionalExtension};

use crate::row::{COLUMNS, Row, place};
use crate::scan::Scanner;
use crate::segment::{Segment, Walk, next_line};
use crate::{AuditError, Digest, Head, checkpoint, latest_checkpoint, read_head_file};

/// Verifies the chain of a database, with the files of `directory` that its old records moved
/// to: each record's hash, its place, every signed head, and that nothing is missing at the end.
/// A file that holds a part of the range is verified whole. `connection` should have a
/// transaction open, so that all of it is of one moment; `head` must have been read before that
/// (see [`read_head_file`]).
///
/// # Errors
/// `Database` where it cannot be read. What is wrong with the log is in the report.
pub fn verify(
    connection: &Connection,
    directory: &Path,
    head: Option<&Checkpoint>,
    range: AuditRange,
    key: &VerifyingKey,
) -> Result<AuditReport, AuditError> {
    let from = range.from.unwrap_or(1).max(1);
    let to = range.to.unwrap_or(u64::MAX);
    let segments = Segment::all(connection)?;
    let kept = segments.iter().filter(|s| s.last >= from && s.first <= to);
    let kept: Vec<&Segment> = kept.collect();

    let begin = kept.first().map_or(from, |segment| segment.first.min(from));
    let prev = hash_before(connection, &segments, begin)?;
    let mut scanner = Scanner::new(Some(begin), prev, Some(*key));
    let mut signed = Signed::read(connection, head, begin)?;

    for segment in kept {
        let next = scanner.next().unwrap_or(segment.first);
        if next < segment.first {
            scanner.removed(next, segment.first - 1);
            scanner.skip_to(segment.first - 1, None);
        }
        segment_of(&mut scanner, segment, directory, &mut signed, key)?;
    }

    let begin = scanner.next().unwrap_or(from);
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM audit WHERE seq BETWEEN ? AND ? ORDER BY seq"
    ))?;
    let limit = |seq: u64| i64::try_from(seq).unwrap_or(i64::MAX);
    let mut rows = statement.query([limit(begin), limit(to)])?;
    while let Some(row) = rows.next()? {
        let seq = place(row).ok();
        match Row::read(row) {
            Ok(row) => scanner.record(row),
            Err(why) => scanner.unreadable(seq, &why),
        }
        signed.up_to(seq.unwrap_or(0), &mut scanner);
    }
    if range.to.is_none() {
        signed.beyond(&mut scanner);
        if let (None, Some(last)) = (head, latest_checkpoint(connection)?) {
            scanner.fault(last.seq, FaultKind::BadCheckpoint, "there is no head file beside it");
        }
    } else if let Some(next) = scanner.next().filter(|next| *next <= to) {
        // The range ends beyond the chain: either it was cut, or it never was so long.
        let end = Head::read(connection).map_or(0, |head| head.seq);
        if next > end {
            signed.beyond(&mut scanner);
        } else {
            scanner.removed(next, to.min(end));
        }
    }
    Ok(scanner.finish())
}

/// The hash before a place, where it is known.
fn hash_before(
    connection: &Connection,
    segments: &[Segment],
    begin: u64,
) -> Result<Option<Digest>, AuditError> {
    if begin <= 1 {
        return Ok(Some(Digest::ZERO));
    }
    if let Some(segment) = segments.iter().find(|segment| segment.last + 1 == begin) {
        return Ok(Some(segment.last_hash));
    }
    let hash: Option<Vec<u8>> = connection
        .prepare_cached("SELECT hash FROM audit WHERE seq = ?")?
        .query_row([i64::try_from(begin - 1).unwrap_or(i64::MAX)], |row| row.get(0))
        .optional()?;
    Ok(hash.and_then(|hash| Digest::try_from(hash.as_slice()).ok()))
}

fn segment_of(
    scanner: &mut Scanner,
    segment: &Segment,
    directory: &Path,
    signed: &mut Signed,
    key: &VerifyingKey,
) -> Result<(), AuditError> {
    let mut input = match segment.open(directory) {
        Ok(input) => input,
        Err(error) => {
            let detail = format!("records {} to {}: {error}", segment.first, segment.last);
            scanner.fault(segment.first, FaultKind::Removed, detail);
            scanner.skip_to(segment.last, Some(segment.last_hash));
            return Ok(());
        }
    };
    let mut walk = Walk::new(scanner, Some(*key));
    let mut line = Vec::new();
    while next_line(&mut input, &mut line).map_err(AuditError::Import)? {
        if let Some(seq) = walk.line(&line) {
            signed.up_to(seq, walk.scanner);
        }
    }
    let footer = walk.footer.take();
    match &footer {
        None => {
            let whose = "the anchor in the database";
            scanner.truncated(segment.last, &format!("the file has no signed end; {whose}"));
        }
        Some(footer) => {
            let anchored = footer.last == segment.last
                && footer.first == segment.first
                && footer.last_hash == segment.last_hash
                && footer.content_sha256 == segment.content;
            if !anchored {
                let detail = format!(
                    "the anchor of records {} to {} is not of their file",
                    segment.first, segment.last
                );
                scanner.fault(segment.last, FaultKind::BadCheckpoint, detail);
            }
        }
    }
    // The database goes on from what was signed.
    let hash = match (scanner.sound_head(), footer) {
        (Some((seq, hash)), _) if seq == segment.last => hash,
        (_, Some(footer)) => footer.last_hash,
        (_, None) => segment.last_hash,
    };
    scanner.skip_to(segment.last, Some(hash));
    Ok(())
}

/// Every signed head from a place on, in order, with that of the head file among them. There are
/// few: one for many records.
struct Signed {
    checkpoints: std::vec::IntoIter<(Checkpoint, &'static str)>,
}

impl Signed {
    fn read(
        connection: &Connection,
        head: Option<&Checkpoint>,
        begin: u64,
    ) -> Result<Self, AuditError> {
        let sql = format!(
            "SELECT {} FROM audit_checkpoint WHERE seq >= ? ORDER BY seq",
            checkpoint::COLUMNS
        );
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows = statement.query([i64::try_from(begin).unwrap_or(i64::MAX)])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            match checkpoint::read(row) {
                Ok(checkpoint) => found.push((checkpoint, "the signed head")),
                Err(reason) => {
                    let seq = row.get::<_, i64>(0).unwrap_or(0).cast_unsigned();
                    return Err(AuditError::Unreadable { seq, reason });
                }
            }
        }
        if let Some(head) = head.filter(|head| head.seq >= begin) {
            found.push((head.clone(), "the head in its file"));
            found.sort_by_key(|(checkpoint, _)| checkpoint.seq);
        }
        Ok(Self { checkpoints: found.into_iter() })
    }

    fn up_to(&mut self, seq: u64, scanner: &mut Scanner) {
        while self.checkpoints.as_slice().first().is_some_and(|(c, _)| c.seq <= seq) {
            if let Some((checkpoint, _)) = self.checkpoints.next() {
                scanner.checkpoint(&checkpoint);
            }
        }
    }

    fn beyond(&mut self, scanner: &mut Scanner) {
        // The furthest one says how much is missing; the others would say less.
        let mut rest: Vec<_> = self.checkpoints.by_ref().collect();
        rest.reverse();
        for (checkpoint, whose) in rest {
            scanner.beyond(&checkpoint, whose);
        }
    }
}

/// Refuses a chain that is behind its head file: it was cut, or is an older copy. Whoever goes
/// on writing to it would hide that.
///
/// # Errors
/// `Cut`, `File` and `Database`.
pub fn check_head(connection: &Connection, head_file: &Path) -> Result<(), AuditError> {
    let Some(signed) = read_head_file(head_file)? else { return Ok(()) };
    let head = Head::read(connection)?;
    let known: Option<Vec<u8>> = connection
        .query_row(
            "SELECT hash FROM audit WHERE seq = ?",
            [i64::try_from(signed.seq).unwrap_or(i64::MAX)],
            |row| row.get(0),
        )
        .optional()?;
    let other = known.is_some_and(|hash| crate::digest::to_hex(&hash) != signed.head_hash);
    if head.seq < signed.seq || other {
        return Err(AuditError::Cut {
            ends: head.seq,
            signed: signed.seq,
            path: head_file.to_owned(),
        });
    }
    Ok(())
}

/// Verifies exported lines: those of one export, of one file of old records, or of several that
/// follow each other. Without `trusted`, each signature is verified with the key beside it,
/// which shows no more than that nothing was damaged by chance.
///
/// # Errors
/// `Import` where `input` cannot be read. What is wrong with the log is in the report.
pub fn verify_lines(
    mut input: impl BufRead,
    trusted: Option<&VerifyingKey>,
) -> Result<AuditReport, AuditError> {
    let mut scanner = Scanner::new(None, None, trusted.copied());
    let mut walk = Walk::new(&mut scanner, trusted.copied());
    let mut line = Vec::new();
    while next_line(&mut input, &mut line).map_err(AuditError::Import)? {
        walk.line(&line);
    }
    let ended = walk.footer.is_some();
    if !ended {
        let next = scanner.next().unwrap_or(1);
        scanner.fault(next, FaultKind::Truncated, "the file has no signed end");
    }
    Ok(scanner.finish())
}
