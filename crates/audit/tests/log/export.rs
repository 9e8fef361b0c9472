use std::io::Cursor;
use std::sync::Arc;

use api::{AuditQuery, AuditRange, AuditRecord};
use audit::{Export, Key};

use crate::{Log, found};

pub(crate) fn export(log: &Log, from: Option<u64>, to: Option<u64>) -> String {
    let key = Arc::new(Key::load(&log.place.path().join("key")).unwrap());
    let range = AuditRange { from, to };
    let place = log.place.path().to_owned();
    let mut export = Export::begin(&log.connection, place, key, range).unwrap();
    let mut bytes = Vec::new();
    while let Some(chunk) = export.next_chunk(&log.connection).unwrap() {
        bytes.extend(chunk);
    }
    String::from_utf8(bytes).unwrap()
}

#[test]
fn an_export_is_a_record_a_line_and_a_signed_end() {
    let log = Log::new(30, 10);
    let text = export(&log, None, None);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 31);
    let records = audit::list(&log.connection, &AuditQuery::default(), 1000).unwrap();
    for (line, record) in lines.iter().zip(&records) {
        assert_eq!(&serde_json::from_str::<AuditRecord>(line).unwrap(), record);
        assert_eq!(*line, serde_json::to_string(record).unwrap());
    }
    assert!(lines[30].starts_with("{\"footer\":"));
}

#[test]
fn an_export_verifies_wherever_its_records_are() {
    let mut log = Log::new(3000, 100);
    let before = export(&log, Some(5), Some(2900));
    log.rotate(1000);
    log.rotate(1700);
    let after = export(&log, Some(5), Some(2900));
    let records = |text: &str| text.lines().take(2896).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(records(&before), records(&after));
    let report = audit::verify_lines(Cursor::new(after), Some(&log.key.public())).unwrap();
    assert!(report.ok, "{report:?}");
    assert_eq!((report.from, report.to, report.records), (Some(5), Some(2900), 2896));
}

#[test]
fn an_export_of_nothing_is_signed_too() {
    let log = Log::new(3, 10);
    let text = export(&log, Some(4), None);
    assert_eq!(text.lines().count(), 1);
    let report = audit::verify_lines(Cursor::new(text), Some(&log.key.public())).unwrap();
    assert!(report.ok, "{report:?}");
    assert_eq!(report.records, 0);
}

#[test]
fn an_export_stops_at_a_record_that_was_tampered_with() {
    let log = Log::new(30, 10);
    log.tamper("UPDATE audit SET decision = 'x' WHERE seq = 4; DELETE FROM audit WHERE seq = 9");
    let key = Arc::new(Key::load(&log.place.path().join("key")).unwrap());
    let place = log.place.path().to_owned();
    for (from, to, named) in [(1, 5, "record 4"), (6, 20, "record 9")] {
        let range = AuditRange { from: Some(from), to: Some(to) };
        let mut export =
            Export::begin(&log.connection, place.clone(), Arc::clone(&key), range).unwrap();
        let error = export.next_chunk(&log.connection).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn the_tail_is_in_the_order_of_the_chain() {
    let log = Log::new(30, 10);
    let tail = audit::tail(&log.connection, 3).unwrap();
    assert_eq!(tail.iter().map(|record| record.seq).collect::<Vec<_>>(), [28, 29, 30]);
}

#[test]
fn filters_must_all_fit() {
    let log = Log::new(60, 10);
    let query = AuditQuery {
        from: Some(2),
        to: Some(50),
        actor: Some("actor-1".into()),
        workspace: Some("default".into()),
        tail: Some(2),
        ..AuditQuery::default()
    };
    let records = audit::list(&log.connection, &query, 100).unwrap();
    assert_eq!(records.iter().map(|record| record.seq).collect::<Vec<_>>(), [36, 50]);
    assert_eq!(found(&log.verify()), []);
}
