use std::io::Cursor;

use api::FaultKind::{BadCheckpoint, Changed, Removed, Reordered, Truncated};
use api::{AuditReport, FaultKind};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::export::export;
use crate::{Log, found};

fn verify(log: &Log, text: &[u8]) -> AuditReport {
    audit::verify_lines(Cursor::new(text), Some(&log.key.public())).unwrap()
}

#[test]
fn what_is_done_to_a_file_is_named_without_the_database() {
    type Tamper = fn(&mut Vec<String>);
    let cases: [(Tamper, &[(u64, FaultKind)]); 9] = [
        (|_| (), &[]),
        (|lines| lines[7] = lines[7].replace("exec", "stop"), &[(8, Changed)]),
        (|lines| lines[7] = lines[7].replacen('{', "{\"more\":1,", 1), &[(8, Changed)]),
        (|lines| lines[7].clear(), &[(8, Changed)]),
        (|lines| drop(lines.drain(7..9)), &[(8, Removed)]),
        (|lines| drop(lines.remove(0)), &[(1, Removed)]),
        (|lines| lines.swap(7, 8), &[(8, Removed), (8, Reordered)]),
        (|lines| drop(lines.pop()), &[(31, Truncated)]),
        (|lines| drop(lines.drain(25..30)), &[(26, Truncated)]),
    ];
    for (index, (tamper, expected)) in cases.into_iter().enumerate() {
        let log = Log::new(30, 10);
        let mut lines: Vec<_> = export(&log, None, None).lines().map(str::to_owned).collect();
        tamper(&mut lines);
        let report = verify(&log, (lines.join("\n") + "\n").as_bytes());
        assert_eq!(found(&report), expected, "case {index}: {report:?}");
    }
}

#[test]
fn files_that_follow_each_other_are_one_chain() {
    let log = Log::new(30, 10);
    let one = export(&log, None, Some(12));
    let two = export(&log, Some(13), None);
    let report = verify(&log, format!("{one}{two}").as_bytes());
    assert!(report.ok, "{report:?}");
    assert_eq!(report.records, 30);
    let gap = export(&log, Some(15), None);
    assert_eq!(found(&verify(&log, format!("{one}{gap}").as_bytes())), [(13, Removed)]);
}

#[test]
fn a_signature_of_another_key_is_found_only_with_the_right_one() {
    let log = Log::new(30, 10);
    let other = Log::new(30, 10);
    let text = export(&other, None, None);
    assert_eq!(found(&verify(&log, text.as_bytes())), [(30, BadCheckpoint)]);
    assert!(audit::verify_lines(Cursor::new(text), None).unwrap().ok);
}

#[test]
fn a_line_without_end_does_not_fill_the_memory() {
    let log = Log::new(3, 10);
    let mut text = vec![b'x'; 5 << 20];
    text.push(b'\n');
    text.extend(export(&log, None, None).into_bytes());
    let report = verify(&log, &text);
    assert!(!report.ok);
    assert!(report.faults[0].detail.contains("cannot be read"), "{report:?}");
}

#[test]
fn an_empty_file_has_no_signed_end() {
    let log = Log::new(3, 10);
    assert_eq!(found(&verify(&log, b"")), [(1, Truncated)]);
}

#[test]
fn a_byte_of_an_export_that_changes_is_found() {
    let log = Log::new(8, 5);
    let whole = export(&log, None, None).into_bytes();
    let config = ProptestConfig { cases: 500, ..ProptestConfig::default() };
    let change = (0..whole.len(), 1..=255_u8);
    let test = |(place, flip): (usize, u8)| {
        let mut bytes = whole.clone();
        bytes[place] ^= flip;
        let report = verify(&log, &bytes);
        prop_assert!(!report.ok, "{:?}", String::from_utf8_lossy(&bytes));
        Ok(())
    };
    TestRunner::new(config).run(&change, test).unwrap();
}

#[test]
fn a_signed_end_in_another_spelling_is_not_the_one_that_was_written() {
    let log = Log::new(3, 5);
    let whole = export(&log, None, None);
    let at = whole.rfind("\"at\":\"").unwrap() + 16;
    assert_eq!(&whole[at..=at], "T");
    for other in ["t", "U", " "] {
        let changed = format!("{}{other}{}", &whole[..at], &whole[at + 1..]);
        assert!(!verify(&log, changed.as_bytes()).ok, "{other}");
    }
}

#[test]
fn an_export_that_is_cut_anywhere_is_found() {
    let log = Log::new(4, 5);
    let whole = export(&log, None, None).into_bytes();
    for length in 0..whole.len() {
        assert!(!verify(&log, &whole[..length]).ok, "{length}");
    }
}

#[test]
fn whatever_bytes_come_are_read_to_their_end() {
    let log = Log::new(4, 5);
    let whole = export(&log, None, None);
    let test = |(bytes, lines): (Vec<u8>, usize)| {
        let mut input: Vec<u8> = whole.lines().take(lines).collect::<Vec<_>>().join("\n").into();
        input.extend(bytes);
        prop_assert!(!verify(&log, &input).ok);
        Ok(())
    };
    TestRunner::default().run(&(any::<Vec<u8>>(), 0..4_usize), test).unwrap();
}
