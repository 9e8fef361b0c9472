//! What the log promises, on real databases and files: each kind of tampering is done with plain
//! SQL, and must be found where it was done.

mod export;
mod file;
mod rotation;
mod tamper;

use std::path::PathBuf;
use std::rc::Rc;

use api::{AuditRange, AuditReport, FaultKind, RuleRef, Timestamp};
use audit::{Digest, Entry, Head, Key, Segment};
use rusqlite::Connection;
use rusqlite::backup::Backup;
use tempfile::TempDir;

/// A log in a directory of its own.
struct Log {
    connection: Connection,
    key: Rc<Key>,
    place: Rc<TempDir>,
}

impl Log {
    /// With so many records, the head signed after each `signed` of them.
    fn new(records: u64, signed: u64) -> Self {
        let place = tempfile::tempdir().unwrap();
        let connection = Connection::open(place.path().join("log.db")).unwrap();
        connection.pragma_update(None, "synchronous", "OFF").unwrap();
        connection.execute_batch(audit::SCHEMA).unwrap();
        let key = Key::create(&place.path().join("key")).unwrap();
        let mut log = Self { connection, key: Rc::new(key), place: Rc::new(place) };
        log.grow(records, signed);
        log
    }

    /// The same log in a database of its own, to be tampered with.
    fn copy(&self) -> Self {
        let mut connection = Connection::open_in_memory().unwrap();
        Backup::new(&self.connection, &mut connection).unwrap().step(-1).unwrap();
        Self { connection, key: Rc::clone(&self.key), place: Rc::clone(&self.place) }
    }

    /// Adds so many records.
    fn grow(&mut self, records: u64, signed: u64) {
        let transaction = self.connection.transaction().unwrap();
        let mut head = Head::read(&transaction).unwrap();
        let mut last = None;
        for _ in 0..records {
            let next = entry(head.seq + 1);
            audit::append(&transaction, &mut head, &next).unwrap();
            if head.seq.is_multiple_of(signed) {
                let at = Timestamp::from_unix_ms(1_800_000_000_000);
                last = audit::checkpoint(&transaction, head, &self.key, at).unwrap().or(last);
            }
        }
        transaction.commit().unwrap();
        if let Some(checkpoint) = last {
            audit::write_head_file(&self.head_file(), &checkpoint).unwrap();
        }
    }

    fn head_file(&self) -> PathBuf {
        self.place.path().join("head.json")
    }

    /// Runs SQL as somebody who wants to hide something.
    fn tamper(&self, sql: &str) {
        let triggers: Vec<String> = self
            .connection
            .prepare("SELECT name FROM sqlite_schema WHERE type = 'trigger'")
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        for trigger in triggers {
            self.connection.execute_batch(&format!("DROP TRIGGER {trigger}")).unwrap();
        }
        self.connection.execute_batch(sql).unwrap();
    }

    fn verify(&self) -> AuditReport {
        self.verify_range(None, None)
    }

    fn verify_range(&self, from: Option<u64>, to: Option<u64>) -> AuditReport {
        let head = audit::read_head_file(&self.head_file()).unwrap();
        audit::verify(
            &self.connection,
            self.place.path(),
            head.as_ref(),
            AuditRange { from, to },
            &self.key.public(),
        )
        .unwrap()
    }

    fn rotate(&mut self, through: u64) -> Segment {
        let now = Timestamp::from_unix_ms(1_800_000_000_000);
        let place = self.place.path();
        let segment =
            audit::write_segment(&self.connection, place, &self.key, through, now).unwrap();
        let transaction = self.connection.transaction().unwrap();
        assert!(audit::drop_segment(&transaction, &segment, now).unwrap());
        transaction.commit().unwrap();
        segment
    }

    /// Writes record `seq` anew with another actor, and its hash with it, as its neighbour
    /// before demands. What follows is not touched.
    fn forge(&self, seq: u64) {
        let mut other = Connection::open_in_memory().unwrap();
        other.execute_batch(audit::SCHEMA).unwrap();
        let hash: Vec<u8> = self
            .connection
            .query_row("SELECT hash FROM audit WHERE seq = ?", [(seq - 1).cast_signed()], |row| {
                row.get(0)
            })
            .unwrap();
        let before = Digest::try_from(&hash[..]).unwrap();
        let mut head = Head { seq: seq - 1, hash: before };
        let forged = Entry { actor: "nobody".to_owned(), ..entry(seq) };
        let transaction = other.transaction().unwrap();
        transaction.execute_batch("DROP TRIGGER audit_appends_only").unwrap();
        audit::append(&transaction, &mut head, &forged).unwrap();
        let hash = head.hash.to_string();
        self.tamper(&format!(
            "UPDATE audit SET actor = 'nobody', prev_hash = x'{before}', hash = x'{hash}' \
             WHERE seq = {seq}"
        ));
    }
}

/// Every record of a test is another one, and has every field now and then.
fn entry(seq: u64) -> Entry {
    let mut entry = Entry::allowed(format!("actor-{}", seq % 7), "exec")
        .with_detail("number", seq)
        .with_detail("text", "a\u{e9} \"quoted\"\n");
    entry.at = Timestamp::from_unix_ms(1_700_000_000_000 + seq.cast_signed());
    if seq.is_multiple_of(2) {
        entry = entry.in_workspace("default").on_sandbox(format!("sb-{seq}"));
        entry.request_digest = Some(Digest::of(&seq.to_be_bytes()));
        entry.rule = Some(RuleRef { file: "policy.toml".into(), line: 3, text: "x".into() });
        entry.generation = Some(seq);
    }
    if seq.is_multiple_of(3) {
        entry.task_digest = Some(Digest::of(b"task"));
    }
    entry
}

/// What was found, and where.
fn found(report: &AuditReport) -> Vec<(u64, FaultKind)> {
    report.faults.iter().map(|fault| (fault.seq, fault.kind)).collect()
}
