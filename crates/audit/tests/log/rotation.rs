use api::FaultKind::{BadCheckpoint, Changed, Removed, Reordered, Truncated};
use api::Timestamp;
use audit::AuditError;

use crate::{Log, found};

#[test]
fn rotation_keeps_the_chain() {
    let mut log = Log::new(50, 10);
    let before = log.verify().head_hash;
    log.rotate(20);
    let second = log.rotate(35);
    assert_eq!((second.first, second.last), (21, 35));
    assert_eq!(audit::count(&log.connection).unwrap(), 15);
    let report = log.verify();
    assert!(report.ok, "{report:?}");
    assert_eq!((report.from, report.to, report.records), (Some(1), Some(50), 50));
    assert_eq!(report.head_hash, before);
    log.grow(10, 10);
    assert_eq!(log.verify().records, 60);
}

#[test]
fn a_chain_goes_on_after_all_of_it_was_rotated() {
    let mut log = Log::new(50, 10);
    log.rotate(50);
    assert_eq!(audit::count(&log.connection).unwrap(), 0);
    assert!(log.verify().ok);
    log.grow(5, 10);
    let report = log.verify();
    assert!(report.ok, "{report:?}");
    assert_eq!(report.to, Some(55));
}

#[test]
fn a_range_reads_only_the_files_that_hold_it() {
    let mut log = Log::new(50, 10);
    let first = log.rotate(20);
    log.rotate(35);
    std::fs::remove_file(first.path(log.place.path())).unwrap();
    assert!(log.verify_range(Some(21), None).ok);
    let report = log.verify_range(Some(36), Some(40));
    assert!(report.ok);
    assert_eq!((report.from, report.to), (Some(36), Some(40)));
}

#[test]
fn a_file_that_is_gone_is_named_by_its_records() {
    let mut log = Log::new(50, 10);
    let first = log.rotate(20);
    std::fs::remove_file(first.path(log.place.path())).unwrap();
    let report = log.verify();
    assert_eq!(found(&report), [(1, Removed)]);
    assert!(report.faults[0].detail.contains("1 to 20"), "{report:?}");
}

#[test]
fn what_is_done_to_a_file_is_named() {
    type Tamper = fn(&mut Vec<String>);
    let cases: [(Tamper, &[(u64, api::FaultKind)]); 8] = [
        (|lines| lines[7] = lines[7].replace("actor-1", "actor-2"), &[(8, Changed)]),
        (|lines| lines[7] = "{}".to_owned(), &[(8, Changed)]),
        (|lines| drop(lines.remove(7)), &[(8, Removed)]),
        (|lines| drop(lines.remove(0)), &[(1, Removed)]),
        (|lines| lines.swap(7, 8), &[(8, Removed), (8, Reordered)]),
        (|lines| drop(lines.remove(19)), &[(20, Truncated)]),
        (|lines| drop(lines.pop()), &[(21, Truncated)]),
        (
            |lines| lines[20] = lines[20].replace("\"records\":20", "\"records\":21"),
            &[(20, BadCheckpoint)],
        ),
    ];
    for (index, (tamper, expected)) in cases.into_iter().enumerate() {
        let mut log = Log::new(50, 10);
        let path = log.rotate(20).path(log.place.path());
        let text = std::fs::read_to_string(&path).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        tamper(&mut lines);
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        let report = log.verify();
        assert_eq!(found(&report), expected, "case {index}: {report:?}");
    }
}

#[test]
fn a_space_in_a_file_is_found_by_its_signature() {
    let mut log = Log::new(50, 10);
    let path = log.rotate(20).path(log.place.path());
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("{\"seq\":3,", "{\"seq\": 3,", 1)).unwrap();
    assert_eq!(found(&log.verify()), [(1, Changed)]);
}

#[test]
fn an_anchor_that_was_changed_is_found() {
    let mut log = Log::new(50, 10);
    log.rotate(20);
    log.tamper("UPDATE audit_segment SET last_hash = zeroblob(32)");
    assert_eq!(found(&log.verify()), [(20, BadCheckpoint)]);
}

#[test]
fn an_anchor_that_is_gone_is_named_by_its_records() {
    let mut log = Log::new(50, 10);
    log.rotate(20);
    log.rotate(30);
    log.tamper("DELETE FROM audit_segment WHERE first = 1");
    assert_eq!(found(&log.verify()), [(1, Removed)]);
    log.tamper("DELETE FROM audit_segment");
    assert_eq!(found(&log.verify()), [(1, Removed)]);
}

#[test]
fn a_chain_that_does_not_hold_is_not_signed_anew() {
    let log = Log::new(50, 10);
    log.tamper("UPDATE audit SET outcome = 'x' WHERE seq = 9");
    let now = Timestamp::now();
    let place = log.place.path();
    let error = audit::write_segment(&log.connection, place, &log.key, 20, now).unwrap_err();
    assert!(matches!(error, AuditError::Broken { .. }), "{error}");
    assert!(error.to_string().contains("record 9"), "{error}");
    assert!(
        std::fs::read_dir(place)
            .unwrap()
            .all(|entry| { !entry.unwrap().file_name().to_string_lossy().contains(".new") })
    );
}

#[test]
fn a_rotation_that_came_second_does_nothing() {
    let mut log = Log::new(50, 10);
    let now = Timestamp::now();
    let place = log.place.path().to_owned();
    let late = audit::write_segment(&log.connection, &place, &log.key, 20, now).unwrap();
    log.rotate(30);
    let transaction = log.connection.transaction().unwrap();
    assert!(!audit::drop_segment(&transaction, &late, now).unwrap());
    transaction.commit().unwrap();
    assert!(log.verify().ok);
}

#[test]
fn there_is_nothing_to_rotate_in_an_empty_log() {
    let log = Log::new(0, 10);
    let place = log.place.path();
    let error =
        audit::write_segment(&log.connection, place, &log.key, 20, Timestamp::now()).unwrap_err();
    assert!(matches!(error, AuditError::NothingToRotate), "{error}");
}
