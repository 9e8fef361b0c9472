use std::sync::LazyLock;

use api::{AuditQuery, AuditRecord};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, ToSql, params_from_iter};

use crate::row::{COLUMNS, Content, Row, place};
use crate::{AuditError, Digest, Entry};

/// The tables of the log. Records are added at the end and nowhere else; only what is in
/// `audit_rotation`, for the length of one transaction, may go.
pub const SCHEMA: &str = "
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    actor TEXT NOT NULL,
    operation TEXT NOT NULL,
    workspace TEXT,
    sandbox TEXT,
    request_digest BLOB,
    task_digest BLOB,
    decision TEXT NOT NULL,
    rule_file TEXT,
    rule_line INTEGER,
    rule_text TEXT,
    generation INTEGER,
    outcome TEXT NOT NULL,
    details TEXT NOT NULL,
    prev_hash BLOB NOT NULL,
    hash BLOB NOT NULL
) STRICT;
CREATE INDEX audit_by_sandbox ON audit (sandbox, seq) WHERE sandbox IS NOT NULL;
CREATE INDEX audit_by_workspace ON audit (workspace, seq) WHERE workspace IS NOT NULL;

-- Signed heads.
CREATE TABLE audit_checkpoint (
    seq INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    head_hash BLOB NOT NULL,
    signature BLOB NOT NULL,
    public_key BLOB NOT NULL
) STRICT;

-- Records that moved to files; the last one is what the chain is anchored to.
CREATE TABLE audit_segment (
    first INTEGER PRIMARY KEY,
    last INTEGER NOT NULL UNIQUE,
    last_hash BLOB NOT NULL,
    content_digest BLOB NOT NULL,
    at INTEGER NOT NULL
) STRICT;

-- Up to where the rotation that is under way may remove.
CREATE TABLE audit_rotation (through INTEGER PRIMARY KEY) STRICT;

CREATE TRIGGER audit_appends_only BEFORE INSERT ON audit
WHEN NEW.seq IS NOT 1 + COALESCE(
    (SELECT MAX(seq) FROM audit), (SELECT MAX(last) FROM audit_segment), 0)
BEGIN SELECT RAISE(ABORT, 'audit records are added at the end'); END;
CREATE TRIGGER audit_never_changes BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'audit records never change'); END;
CREATE TRIGGER audit_goes_by_rotation BEFORE DELETE ON audit
WHEN NOT EXISTS (SELECT 1 FROM audit_rotation WHERE through >= OLD.seq)
BEGIN SELECT RAISE(ABORT, 'audit records go by rotation only'); END;
CREATE TRIGGER audit_checkpoint_never_changes BEFORE UPDATE ON audit_checkpoint
BEGIN SELECT RAISE(ABORT, 'checkpoints never change'); END;
CREATE TRIGGER audit_checkpoint_goes_by_rotation BEFORE DELETE ON audit_checkpoint
WHEN NOT EXISTS (SELECT 1 FROM audit_rotation WHERE through >= OLD.seq)
BEGIN SELECT RAISE(ABORT, 'checkpoints go by rotation only'); END;
CREATE TRIGGER audit_segment_never_changes BEFORE UPDATE ON audit_segment
BEGIN SELECT RAISE(ABORT, 'anchors never change'); END;
CREATE TRIGGER audit_segment_stays BEFORE DELETE ON audit_segment
BEGIN SELECT RAISE(ABORT, 'anchors stay'); END;
";

/// The end of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The last record; 0 where there is none yet.
    pub seq: u64,
    /// Its hash; zeros where there is none yet.
    pub hash: Digest,
}

impl Head {
    /// Of an empty chain.
    pub const START: Self = Self { seq: 0, hash: Digest::ZERO };

    /// Of the chain in this database.
    ///
    /// # Errors
    /// `Unreadable` where its last record has no hash, and `Database`.
    pub fn read(connection: &Connection) -> Result<Self, AuditError> {
        const LAST: &str = "SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1";
        const ANCHOR: &str = "SELECT last, last_hash FROM audit_segment ORDER BY last DESC LIMIT 1";
        for query in [LAST, ANCHOR] {
            let found = connection
                .prepare_cached(query)?
                .query_row([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?)))
                .optional()?;
            if let Some((seq, hash)) = found {
                let seq = u64::try_from(seq).unwrap_or(0);
                let hash = Digest::try_from(hash.as_slice())
                    .map_err(|error| AuditError::Unreadable { seq, reason: error.to_string() })?;
                return Ok(Self { seq, hash });
            }
        }
        Ok(Self::START)
    }
}

/// Rows of one statement, where there are so many: each statement has a price of its own.
const TOGETHER: usize = 16;

/// Adds a record to the chain whose head is `head`, which moves on to it. A transaction for
/// writing must be open, and `head` must have been read in it. Where the transaction or the
/// savepoint is rolled back, `head` is the caller's to put back.
///
/// # Errors
/// `NoTransaction`, `TooLong` and `Database`; then `head` is as it was.
pub fn append(connection: &Connection, head: &mut Head, entry: &Entry) -> Result<u64, AuditError> {
    append_all(connection, head, std::slice::from_ref(entry))?;
    Ok(head.seq)
}

/// Adds records, in this order.
///
/// # Errors
/// As of [`append`]; some of them may have been added then.
pub fn append_all(
    connection: &Connection,
    head: &mut Head,
    entries: &[Entry],
) -> Result<(), AuditError> {
    if connection.is_autocommit() {
        return Err(AuditError::NoTransaction);
    }
    entries.iter().try_for_each(Entry::check)?;
    let mut next = *head;
    let (many, few) = entries.as_chunks::<TOGETHER>();
    for entries in many {
        next = insert(connection, next, entries)?;
    }
    for entry in few {
        next = insert(connection, next, std::slice::from_ref(entry))?;
    }
    *head = next;
    Ok(())
}

/// Inserts all by one statement, and gives the head that they make.
fn insert(connection: &Connection, mut head: Head, entries: &[Entry]) -> Result<Head, AuditError> {
    static MANY: LazyLock<String> = LazyLock::new(|| insertion(TOGETHER));
    static ONE: LazyLock<String> = LazyLock::new(|| insertion(1));
    let text = if entries.len() == TOGETHER { &MANY } else { &ONE };
    let mut statement = connection.prepare_cached(text)?;
    let mut at = 0;
    for entry in entries {
        let details = entry.details_text();
        let content = Content::of(entry, &details);
        let seq = head.seq + 1;
        let hash = content.hash_at(seq, head.hash);
        let mut bind = |value: &dyn ToSql| {
            at += 1;
            statement.raw_bind_parameter(at, value)
        };
        bind(&seq.cast_signed())?;
        bind(&content.at.unix_ms())?;
        bind(&content.actor)?;
        bind(&content.operation)?;
        bind(&content.workspace)?;
        bind(&content.sandbox)?;
        bind(&content.request_digest.map(Digest::as_bytes))?;
        bind(&content.task_digest.map(Digest::as_bytes))?;
        bind(&content.decision.as_str())?;
        bind(&content.rule.map(|(file, ..)| file))?;
        bind(&content.rule.map(|(_, line, _)| line))?;
        bind(&content.rule.map(|(.., text)| text))?;
        bind(&content.generation.map(u64::cast_signed))?;
        bind(&content.outcome)?;
        bind(&content.details)?;
        bind(head.hash.as_bytes())?;
        bind(hash.as_bytes())?;
        head = Head { seq, hash };
    }
    statement.raw_execute()?;
    Ok(head)
}

/// The statement that inserts so many rows.
fn insertion(rows: usize) -> String {
    let marks = vec!["?"; COLUMNS.split(',').count()].join(", ");
    let rows = vec![format!("({marks})"); rows].join(", ");
    format!("INSERT INTO audit ({COLUMNS}) VALUES {rows}")
}

/// How many records are in the database; those that were rotated away are not.
///
/// # Errors
/// `Database`.
pub fn count(connection: &Connection) -> Result<u64, AuditError> {
    // Places have no gaps, and counting rows would read them all.
    let records: i64 = connection
        .prepare_cached(
            "SELECT COALESCE(
                 (SELECT MAX(seq) FROM audit) - (SELECT MIN(seq) FROM audit) + 1, 0)",
        )?
        .query_row([], |row| row.get(0))?;
    Ok(u64::try_from(records).unwrap_or(0))
}

/// The record at a place; none where there is none in the database.
///
/// # Errors
/// `Unreadable` and `Database`.
pub fn get(connection: &Connection, seq: u64) -> Result<Option<AuditRecord>, AuditError> {
    let query = AuditQuery { from: Some(seq), to: Some(seq), ..AuditQuery::default() };
    Ok(list(connection, &query, 1)?.pop())
}

/// The last `most` records, in the order of the chain.
///
/// # Errors
/// `Unreadable` and `Database`.
pub fn tail(connection: &Connection, most: u32) -> Result<Vec<AuditRecord>, AuditError> {
    list(connection, &AuditQuery { tail: Some(most), ..AuditQuery::default() }, most)
}

/// The records in the database that fit `query`, in the order of the chain, at most `most`;
/// `query.limit` is the caller's to make `most` of.
///
/// # Errors
/// `Unreadable` where a record was tampered with so that it cannot be shown, and `Database`.
pub fn list(
    connection: &Connection,
    query: &AuditQuery,
    most: u32,
) -> Result<Vec<AuditRecord>, AuditError> {
    let place_of = |seq: u64| Value::Integer(i64::try_from(seq).unwrap_or(i64::MAX));
    let mut conditions = Vec::new();
    let mut values = Vec::new();
    let mut with = |condition: &'static str, value: Option<Value>| {
        if let Some(value) = value {
            conditions.push(condition);
            values.push(value);
        }
    };
    let text = |text: &Option<String>| text.clone().map(Value::Text);
    with("seq >= ?", query.from.map(place_of));
    with("seq <= ?", query.to.map(place_of));
    with("actor = ?", text(&query.actor));
    with("operation = ?", query.operation.map(|name| Value::Text(name.as_str().to_owned())));
    with("sandbox = ?", text(&query.sandbox));
    with("workspace = ?", text(&query.workspace));
    with("decision = ?", query.decision.map(|name| Value::Text(name.as_str().to_owned())));
    let filter = match conditions.is_empty() {
        true => String::new(),
        false => format!("WHERE {}", conditions.join(" AND ")),
    };
    let sql = match query.tail {
        None => format!("SELECT {COLUMNS} FROM audit {filter} ORDER BY seq LIMIT ?"),
        Some(_) => format!(
            "SELECT * FROM (SELECT {COLUMNS} FROM audit {filter} ORDER BY seq DESC LIMIT ?) \
             ORDER BY seq LIMIT ?"
        ),
    };
    values.extend(query.tail.map(|tail| Value::Integer(tail.into())));
    values.push(Value::Integer(most.into()));
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        let record = Row::read(row).and_then(Row::into_record);
        records.push(
            record.map_err(|reason| AuditError::Unreadable {
                seq: place(row).unwrap_or(0),
                reason,
            })?,
        );
    }
    Ok(records)
}
