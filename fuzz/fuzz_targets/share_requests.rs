//! What a guest asks of a directory that is shared live: whatever it sends, nothing beside the directory
//! is read or changed, what is hidden stays unread, and what is protected stays as it is.
#![no_main]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use fuzz::choices::Choices;
use fuzz::place::Place;
use libfuzzer_sys::fuzz_target;
use share::{Options, Rules, Share};

/// Requests of one input.
const MOST: usize = 64;
/// What no answer may hold.
const SECRET: &[u8] = b"hidden-from-guests";

#[derive(Debug)]
struct Ruled;

impl Rules for Ruled {
    fn hides(&self, path: &Path) -> bool {
        path.iter().any(|part| part == ".env")
    }

    fn protects(&self, path: &Path, _: bool) -> bool {
        path.iter().zip(path.iter().skip(1)).any(|(one, other)| one == ".git" && other == "config")
    }
}

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices::new(data);
    let place = Place::new();
    let root = place.destination();
    furnish(&root);
    let before = place.picture();
    let read_only = choices.of(4) == 0;
    let options = Options {
        read_only,
        rules: Arc::new(Ruled),
        quota: Some(64 << 10),
        nodes: 64,
        handles: 16,
        ..Options::default()
    };
    let directory = fs::File::open(&root).expect("the destination").into();
    let share = Share::new(&directory, options).expect("a share");
    let mut init = Vec::new();
    for word in [7_u32, 41, 1 << 20, u32::MAX, 0] {
        init.extend(word.to_ne_bytes());
    }
    share.serve(&message(26, 0, &init), |_| ());
    for _ in 0..MOST {
        if choices.is_empty() {
            break;
        }
        let request = request(&mut choices);
        share.serve(&request, |answer| {
            assert!(!answer.windows(SECRET.len()).any(|bytes| bytes == SECRET), "it was read");
        });
    }
    drop(share);
    let after = place.picture();
    assert!(after.beside() == before.beside(), "before: {before:?}\nafter: {after:?}");
    let config = fs::read(root.join(".git/config")).expect("what is protected");
    assert_eq!(config, b"[core]");
    assert_eq!(fs::read(root.join(".env")).expect("what is hidden"), SECRET);
    if read_only {
        assert!(after == before, "before: {before:?}\nafter: {after:?}");
    }
});

fn furnish(root: &Path) {
    for directory in [".git", "d/e"] {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    fs::write(root.join(".git/config"), "[core]").expect("a file");
    fs::write(root.join(".env"), SECRET).expect("a file");
    fs::write(root.join("a"), "a").expect("a file");
    symlink("../beside", root.join("out")).expect("a link");
}

fn message(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(40 + body.len()).expect("a short message");
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(opcode.to_ne_bytes());
    message.extend(5_u64.to_ne_bytes());
    message.extend(node.to_ne_bytes());
    message.extend([0; 16]);
    message.extend(body);
    message
}

/// Nearly right more often than not: numbers that may be in use, and names that are there.
fn request(choices: &mut Choices<'_>) -> Vec<u8> {
    const NAMES: [&[u8]; 10] =
        [b"a", b"b", b"d", b"e", b"out", b".git", b"config", b".env", b"..", b"../beside"];
    if choices.of(16) == 0 {
        return choices.take(200).to_vec();
    }
    let opcode = u32::try_from(choices.of(54)).expect("a small number");
    let node = choices.of(10) as u64;
    let mut body = Vec::new();
    for _ in 0..choices.of(12) {
        match choices.of(4) {
            0 => body.extend(u32::try_from(choices.of(70_000)).unwrap_or(0).to_ne_bytes()),
            1 => body.extend((choices.of(12) as u64).to_ne_bytes()),
            2 => body.extend(choices.take(24)),
            _ => body.extend([0; 16]),
        }
    }
    for _ in 0..choices.of(3) {
        body.extend(*choices.pick(&NAMES));
        body.push(0);
    }
    message(opcode, node, &body)
}
