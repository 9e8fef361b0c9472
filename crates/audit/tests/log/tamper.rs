use api::FaultKind::{BadCheckpoint, Changed, Removed, Reordered, Truncated};
use audit::{AuditError, Entry, Head};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rusqlite::types::Value;

use crate::{Log, entry, found};

#[test]
fn a_whole_chain_verifies() {
    let report = Log::new(50, 10).verify();
    assert!(report.ok, "{report:?}");
    assert_eq!((report.from, report.to, report.records), (Some(1), Some(50), 50));
    // The last head is in the database and in its file.
    assert_eq!(report.checkpoints, 6);
}

#[test]
fn an_empty_chain_verifies() {
    let report = Log::new(0, 10).verify();
    assert!(report.ok, "{report:?}");
    assert_eq!((report.from, report.to, report.records), (None, None, 0));
}

#[test]
fn a_range_is_verified_alone() {
    let log = Log::new(50, 10);
    let report = log.verify_range(Some(11), Some(20));
    assert!(report.ok, "{report:?}");
    assert_eq!((report.from, report.to, report.records), (Some(11), Some(20), 10));
    log.tamper("UPDATE audit SET outcome = 'denied' WHERE seq = 30");
    assert!(log.verify_range(Some(11), Some(20)).ok);
    assert_eq!(found(&log.verify_range(Some(25), None)), [(30, Changed)]);
}

#[test]
fn a_changed_record_is_named() {
    for column in ["actor", "operation", "workspace", "sandbox", "outcome", "rule_text"] {
        let log = Log::new(20, 10);
        log.tamper(&format!("UPDATE audit SET {column} = 'other' WHERE seq = 8"));
        assert_eq!(found(&log.verify()), [(8, Changed)], "{column}");
    }
}

#[test]
fn an_absent_field_is_not_an_empty_one() {
    let log = Log::new(20, 10);
    log.tamper("UPDATE audit SET workspace = '' WHERE seq = 7");
    assert_eq!(found(&log.verify()), [(7, Changed)]);
}

#[test]
fn text_that_moves_between_fields_is_named() {
    let log = Log::new(20, 10);
    log.tamper("UPDATE audit SET actor = actor || 'e', operation = 'xec' WHERE seq = 7");
    assert_eq!(found(&log.verify()), [(7, Changed)]);
}

#[test]
fn a_record_that_is_no_record_any_more_is_named() {
    let log = Log::new(20, 10);
    log.tamper(
        "UPDATE audit SET decision = 'perhaps' WHERE seq = 3;
         UPDATE audit SET hash = x'00' WHERE seq = 9;
         UPDATE audit SET details = '{' WHERE seq = 14;
         UPDATE audit SET rule_line = NULL WHERE seq = 16;",
    );
    assert_eq!(found(&log.verify()), [(3, Changed), (9, Changed), (14, Changed), (16, Changed)]);
}

#[test]
fn a_forged_record_with_a_hash_of_its_own_is_named() {
    let log = Log::new(30, 10);
    log.forge(7);
    assert_eq!(found(&log.verify()), [(7, Changed)]);
}

#[test]
fn a_forged_record_under_a_signed_head_is_named() {
    let log = Log::new(30, 10);
    log.forge(10);
    assert_eq!(found(&log.verify()), [(10, Changed)]);
}

#[test]
fn two_forged_neighbours_are_found() {
    let log = Log::new(30, 10);
    log.forge(7);
    log.forge(8);
    // The second follows the first, so it is the first that the chain does not want.
    let report = log.verify();
    assert_eq!(found(&report), [(8, Changed)], "{report:?}");
}

#[test]
fn a_chain_that_was_made_anew_is_found_by_its_signed_head() {
    let log = Log::new(30, 10);
    for seq in 24..=30 {
        log.forge(seq);
    }
    let report = log.verify();
    assert_eq!(found(&report), [(21, Changed)], "{report:?}");
    assert!(report.faults[0].detail.contains("21 to 30"), "{report:?}");
}

#[test]
fn a_removed_record_is_named() {
    let log = Log::new(20, 10);
    log.tamper("DELETE FROM audit WHERE seq IN (4, 5, 12)");
    let report = log.verify();
    assert_eq!(found(&report), [(4, Removed), (12, Removed)]);
    assert!(report.faults[0].detail.contains("4 to 5"), "{report:?}");
}

#[test]
fn removed_first_records_are_named() {
    let log = Log::new(20, 10);
    log.tamper("DELETE FROM audit WHERE seq <= 3");
    assert_eq!(found(&log.verify()), [(1, Removed)]);
}

#[test]
fn a_removed_record_whose_place_was_filled_is_named() {
    let log = Log::new(20, 50);
    log.tamper(
        "DELETE FROM audit WHERE seq = 6;
         UPDATE audit SET seq = -seq WHERE seq > 6;
         UPDATE audit SET seq = -seq - 1 WHERE seq < 0;",
    );
    let faults = found(&log.verify());
    assert!(faults.contains(&(6, Removed)), "{faults:?}");
    for seq in 6..=19 {
        assert!(faults.contains(&(seq, Reordered)), "{seq} {faults:?}");
    }
}

#[test]
fn records_that_changed_places_are_named() {
    for (one, other) in [(8, 9), (3, 17), (1, 20)] {
        let log = Log::new(20, 10);
        log.tamper(&format!(
            "UPDATE audit SET seq = -1 WHERE seq = {one};
             UPDATE audit SET seq = {one} WHERE seq = {other};
             UPDATE audit SET seq = {other} WHERE seq = -1;"
        ));
        let report = log.verify();
        assert_eq!(found(&report), [(one, Reordered), (other, Reordered)]);
        assert!(report.faults[0].detail.ends_with(&format!("record {other}")), "{report:?}");
    }
}

#[test]
fn a_record_that_was_moved_far_away_is_named() {
    let log = Log::new(20, 10);
    log.tamper("UPDATE audit SET seq = 4000000000 WHERE seq = 5");
    let report = log.verify();
    let faults = found(&report);
    assert!(faults.contains(&(5, Removed)), "{report:?}");
    assert!(faults.contains(&(4_000_000_000, Reordered)), "{report:?}");
}

#[test]
fn an_end_that_was_cut_off_is_named() {
    let log = Log::new(30, 10);
    log.tamper("DELETE FROM audit WHERE seq > 24");
    let report = log.verify();
    assert_eq!(found(&report), [(25, Truncated)]);
    assert!(report.faults[0].detail.contains("25 to 30"), "{report:?}");
}

#[test]
fn an_end_that_was_cut_off_with_its_signed_heads_is_found_by_the_file() {
    let log = Log::new(30, 10);
    log.tamper("DELETE FROM audit WHERE seq > 20; DELETE FROM audit_checkpoint WHERE seq > 20;");
    let report = log.verify();
    assert_eq!(found(&report), [(21, Truncated)]);
    assert!(report.faults[0].detail.contains("file"), "{report:?}");
}

#[test]
fn a_database_that_was_emptied_is_found_by_the_file() {
    let log = Log::new(30, 10);
    log.tamper("DELETE FROM audit; DELETE FROM audit_checkpoint;");
    assert_eq!(found(&log.verify()), [(1, Truncated)]);
    let error = audit::check_head(&log.connection, &log.head_file()).unwrap_err();
    assert!(matches!(error, AuditError::Cut { ends: 0, signed: 30, .. }), "{error}");
}

#[test]
fn a_head_file_that_is_gone_is_found() {
    let log = Log::new(30, 10);
    std::fs::remove_file(log.head_file()).unwrap();
    assert_eq!(found(&log.verify()), [(30, BadCheckpoint)]);
}

#[test]
fn a_signature_of_another_key_is_found() {
    let log = Log::new(30, 10);
    let other = Log::new(30, 10);
    std::fs::copy(other.head_file(), log.head_file()).unwrap();
    assert_eq!(found(&log.verify()), [(30, BadCheckpoint)]);
}

#[test]
fn a_changed_checkpoint_is_found() {
    let log = Log::new(30, 10);
    log.tamper("UPDATE audit_checkpoint SET at = at + 1 WHERE seq = 20");
    assert_eq!(found(&log.verify()), [(20, BadCheckpoint)]);
    let log = Log::new(30, 10);
    log.tamper("UPDATE audit_checkpoint SET signature = x'00' WHERE seq = 10");
    assert_eq!(found(&log.verify()), [(10, BadCheckpoint)]);
}

#[test]
fn the_database_refuses_what_is_not_an_addition_at_the_end() {
    let log = Log::new(5, 2);
    for sql in [
        "UPDATE audit SET outcome = 'x' WHERE seq = 3",
        "DELETE FROM audit WHERE seq = 3",
        "DELETE FROM audit",
        "INSERT OR REPLACE INTO audit SELECT * FROM audit WHERE seq = 3",
        "UPDATE audit_checkpoint SET at = 0",
        "DELETE FROM audit_checkpoint",
    ] {
        let error = log.connection.execute(sql, []).unwrap_err();
        assert!(error.to_string().contains("audit") || error.to_string().contains("checkpoint"));
    }
    assert!(log.verify().ok);
}

#[test]
fn records_that_are_added_at_once_are_the_chain_that_they_are_one_by_one() {
    let one_by_one = Log::new(60, 1000);
    let mut log = Log::new(3, 1000);
    let transaction = log.connection.transaction().unwrap();
    let mut head = Head::read(&transaction).unwrap();
    let entries: Vec<Entry> = (4..=60).map(entry).collect();
    audit::append_all(&transaction, &mut head, &entries).unwrap();
    transaction.commit().unwrap();
    assert_eq!(head, Head::read(&one_by_one.connection).unwrap());
    assert!(log.verify().ok);

    let transaction = log.connection.transaction().unwrap();
    let mut late = Head { seq: 70, ..head };
    let error = audit::append_all(&transaction, &mut late, &entries).unwrap_err();
    assert!(error.to_string().contains("audit"), "{error}");
    assert_eq!(late.seq, 70);
}

#[test]
fn a_record_outside_of_a_transaction_is_refused() {
    let log = Log::new(1, 10);
    let mut head = Head::read(&log.connection).unwrap();
    let error = audit::append(&log.connection, &mut head, &entry(2)).unwrap_err();
    assert!(matches!(error, AuditError::NoTransaction), "{error}");
    assert_eq!(head.seq, 1);
}

#[test]
fn only_the_first_hundred_faults_are_told() {
    let log = Log::new(500, 1000);
    log.tamper("UPDATE audit SET outcome = 'x'");
    let report = log.verify();
    assert!(!report.ok);
    assert_eq!(report.faults.len(), 100);
    assert_eq!(report.records, 500);
}

#[test]
fn a_hundred_thousand_records_verify() {
    let begin = std::time::Instant::now();
    let log = Log::new(100_000, 1024);
    let written = begin.elapsed();
    let begin = std::time::Instant::now();
    let report = log.verify();
    let verified = begin.elapsed();
    assert!(report.ok, "{:?}", report.faults);
    assert_eq!(report.records, 100_000);
    println!("100000 records: written in {written:?}, verified in {verified:?}");
}

const RECORDS: i64 = 12;
const COLUMNS: [&str; 16] = [
    "at",
    "actor",
    "operation",
    "workspace",
    "sandbox",
    "request_digest",
    "task_digest",
    "decision",
    "rule_file",
    "rule_line",
    "rule_text",
    "generation",
    "outcome",
    "details",
    "prev_hash",
    "hash",
];

fn check<S: Strategy>(
    cases: u32,
    strategy: S,
    test: impl Fn(S::Value) -> Result<(), TestCaseError>,
) {
    let config = ProptestConfig { cases, ..ProptestConfig::default() };
    TestRunner::new(config).run(&strategy, test).unwrap();
}

fn flipped(bytes: &[u8], place: prop::sample::Index, flip: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let place = place.index(bytes.len());
    bytes[place] ^= flip;
    bytes
}

#[test]
fn a_byte_of_a_record_that_changes_is_found() {
    let whole = Log::new(RECORDS.cast_unsigned(), 5);
    let any = any::<prop::sample::Index>();
    check(600, (1..=RECORDS, 0..COLUMNS.len(), any, 1..=255_u8), |(seq, column, place, flip)| {
        let log = whole.copy();
        log.tamper("");
        let column = COLUMNS[column];
        let get = format!("SELECT {column} FROM audit WHERE seq = ?");
        let value: Value = log.connection.query_row(&get, [seq], |row| row.get(0)).unwrap();
        let set = |value: &str| format!("UPDATE audit SET {column} = {value} WHERE seq = ?1");
        match value {
            Value::Null => return Ok(()),
            Value::Integer(number) => {
                let bytes = flipped(&number.to_be_bytes(), place, flip);
                let number = i64::from_be_bytes(bytes.try_into().unwrap());
                log.connection.execute(&set("?2"), (seq, number)).unwrap();
            }
            // Bytes that are no UTF-8 any more are kept as they are.
            Value::Text(text) => {
                let bytes = flipped(text.as_bytes(), place, flip);
                log.connection.execute(&set("CAST(?2 AS TEXT)"), (seq, bytes)).unwrap();
            }
            Value::Blob(bytes) => {
                log.connection.execute(&set("?2"), (seq, flipped(&bytes, place, flip))).unwrap();
            }
            Value::Real(_) => unreachable!("no column is real"),
        }
        let report = log.verify();
        let expected = [(seq.cast_unsigned(), Changed)];
        prop_assert_eq!(found(&report), expected, "{} {:?}", column, report);
        Ok(())
    });
}

#[test]
fn a_byte_of_a_checkpoint_that_changes_is_found() {
    let whole = Log::new(RECORDS.cast_unsigned(), 5);
    check(200, (0..4_usize, any::<prop::sample::Index>(), 1..=255_u8), |(column, place, flip)| {
        let log = whole.copy();
        log.tamper("");
        let column = ["at", "head_hash", "signature", "public_key"][column];
        let get = format!("SELECT {column} FROM audit_checkpoint WHERE seq = 5");
        let value: Value = log.connection.query_row(&get, [], |row| row.get(0)).unwrap();
        let set = format!("UPDATE audit_checkpoint SET {column} = ? WHERE seq = 5");
        match value {
            Value::Integer(number) => {
                log.connection.execute(&set, [number ^ i64::from(flip)]).unwrap();
            }
            Value::Blob(bytes) => {
                log.connection.execute(&set, [flipped(&bytes, place, flip)]).unwrap();
            }
            other => unreachable!("{other:?}"),
        }
        prop_assert_eq!(found(&log.verify()), [(5, BadCheckpoint)]);
        Ok(())
    });
}

#[test]
fn whatever_places_change_is_found() {
    let whole = Log::new(RECORDS.cast_unsigned(), 5);
    check(100, (1..=RECORDS, 1..=RECORDS), |(one, other)| {
        prop_assume!(one != other);
        let log = whole.copy();
        log.tamper(&format!(
            "UPDATE audit SET seq = -1 WHERE seq = {one};
             UPDATE audit SET seq = {one} WHERE seq = {other};
             UPDATE audit SET seq = {other} WHERE seq = -1;"
        ));
        let places = [one.min(other), one.max(other)].map(|seq| (seq.cast_unsigned(), Reordered));
        prop_assert_eq!(found(&log.verify()), places);
        Ok(())
    });
}
