//! What a guest sends back, into the user's directories: nothing beside them changes, a failure
//! changes nothing at all, and what git would run stays as it was.
#![no_main]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use archive::Name;
use fuzz::choices::Choices;
use fuzz::place::{Picture, Place, Seen, check_with_the_kernel};
use libfuzzer_sys::fuzz_target;
use workspace::{
    Limits, MAX_BYTES, MAX_DEPTH, MAX_ENTRIES, Manifest, OutsideLinks, PackOptions, SyncOptions,
    UnpackOptions, pack, sync_back, unpack,
};

/// Met by small archives, too.
const LIMITS: Limits = Limits { entries: 60, bytes: 64 << 10, names: 2 << 10, depth: 8 };

/// Nearly what is the default. A name that is longer has no absolute path, by which this target
/// looks at it.
const GENEROUS: Limits =
    Limits { entries: MAX_ENTRIES, bytes: MAX_BYTES, names: 3500, depth: MAX_DEPTH };

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices::new(data);
    let outside_links = *choices.pick(&[OutsideLinks::Refuse, OutsideLinks::LeaveOut]);
    let limits = *choices.pick(&[LIMITS, GENEROUS]);
    match choices.of(5) {
        0 => fresh(&mut choices, &UnpackOptions { limits, outside_links, merge: false }, false),
        1 => fresh(&mut choices, &UnpackOptions { limits, outside_links, merge: false }, true),
        2 => merge(&mut choices, &UnpackOptions { limits, outside_links, merge: true }),
        _ => sync(&mut choices, &SyncOptions { limits, outside_links }),
    }
});

/// Into a directory that is new or empty.
fn fresh(choices: &mut Choices<'_>, options: &UnpackOptions, exists: bool) {
    let place = Place::new();
    if exists {
        fs::create_dir(place.destination()).expect("the destination");
    }
    let before = place.picture();
    let archive = fuzz::tar::archive(choices);
    let unpacked = unpack(&mut &archive[..], &place.destination(), options, &mut |_| {});
    let after = place.picture();
    match unpacked {
        Err(_) => assert_same(&after, &before),
        Ok(unpacked) => {
            assert_same(&after.beside(), &before.beside());
            let tree = Picture::of(&place.destination());
            assert_eq!(tree.entries().count() as u64, unpacked.entries);
            let leaving = tree.leaving();
            assert!(leaving.is_empty(), "{leaving:?} lead out");
            check_with_the_kernel(&place.destination(), &tree, &leaving);
        }
    }
}

/// Into a directory with the user's files.
fn merge(choices: &mut Choices<'_>, options: &UnpackOptions) {
    let place = Place::new();
    furnish(&place.destination());
    let before = place.picture();
    let archive = fuzz::tar::archive(choices);
    let unpacked = unpack(&mut &archive[..], &place.destination(), options, &mut |_| {});
    judge(&place, &before, unpacked.is_ok(), true);
}

/// Back to where it came from.
fn sync(choices: &mut Choices<'_>, options: &SyncOptions) {
    let place = Place::new();
    furnish(&place.destination());
    let mut sent = Vec::new();
    let packing =
        PackOptions { gitignore: choices.of(2) == 1, manifest: true, name: None, hidden: None };
    let packed = pack(&place.destination(), &packing, &mut sent, &mut |_| {});
    let manifest = packed.expect("it was just made").manifest;
    let changes = choices.byte();
    change_on_the_host(changes, &place.destination());
    let before = place.picture();
    let archive = match choices.of(2) {
        0 => fuzz::tar::archive(choices),
        // What was sent, less some of it, and more behind it.
        _ => {
            let keep = choices.take(4);
            let mut archive = some_of(&sent, keep);
            archive.extend(fuzz::tar::archive(choices));
            archive
        }
    };
    let synced =
        sync_back(&mut &archive[..], &place.destination(), &manifest, options, &mut |_| {});
    // Links are resolved among what the guest has. Where a part of that was held back because the
    // user changed it too, one may lead elsewhere than it was meant to.
    let is_theirs_alone = changes & CHANGES == 0;
    judge(&place, &before, synced.is_ok(), is_theirs_alone);
    if synced.is_ok() {
        check_that_what_was_not_sent_stays(&manifest, &before, &place.picture());
    }
}

/// A repository with links of the user's own, one of which leads out and one of which is ignored.
fn furnish(tree: &Path) {
    for directory in [".git/hooks", ".git/modules/a", "d/e", "in"] {
        fs::create_dir_all(tree.join(directory)).expect("a directory");
    }
    for file in [".git/HEAD", ".git/config", ".git/hooks/a", ".git/modules/a/config", "a", "d/e/a"]
    {
        fs::write(tree.join(file), file).expect("a file");
    }
    fs::write(tree.join(".gitignore"), "/b\n/c\n").expect("a file");
    fs::write(tree.join("c"), "ignored").expect("a file");
    symlink("../beside", tree.join("out")).expect("a link");
    symlink("../beside/d", tree.join("b")).expect("a link");
    symlink("../d/e", tree.join("in/d")).expect("a link");
}

/// The bits of the next function's first argument that mean something.
const CHANGES: u8 = 15;

fn change_on_the_host(which: u8, tree: &Path) {
    if which & 1 == 1 {
        fs::write(tree.join("a"), "changed").expect("a file");
    }
    if which & 2 == 2 {
        fs::remove_dir_all(tree.join("d/e")).expect("a directory");
        symlink("../in", tree.join("d/e")).expect("a link");
    }
    if which & 4 == 4 {
        fs::write(tree.join("in/a"), "new").expect("a file");
    }
    if which & 8 == 8 {
        fs::remove_file(tree.join("out")).expect("a link");
        fs::write(tree.join("out"), "a file now").expect("a file");
    }
}

/// The members of an archive of ours that the bits choose; without its end.
fn some_of(sent: &[u8], keep: &[u8]) -> Vec<u8> {
    let mut some = Vec::new();
    let mut at = 0;
    for number in 0.. {
        let Some(header) = sent.get(at..at + 512) else { break };
        if header.iter().all(|&byte| byte == 0) {
            break;
        }
        let size = header[124..135].iter().fold(0, |size, digit| size * 8 + usize::from(digit & 7));
        let end = at + 512 + size.next_multiple_of(512);
        if keep.get(number / 8).is_none_or(|bits| bits >> (number % 8) & 1 == 0) {
            some.extend_from_slice(&sent[at..end]);
        }
        at = end;
    }
    some
}

fn judge(place: &Place, before: &Picture, succeeded: bool, judge_links: bool) {
    let after = place.picture();
    if !succeeded {
        assert_same(&after, before);
        return;
    }
    assert_same(&after.beside(), &before.beside());
    for (name, seen) in before.entries() {
        let is_protected = [
            &b"dest/.git/config"[..],
            b"dest/.git/hooks",
            b"dest/.git/hooks/a",
            b"dest/.git/modules/a/config",
        ]
        .contains(&name);
        if is_protected {
            assert_eq!(after.at(name), Some(seen), "{} changed", name.escape_ascii());
        }
    }
    let tree = Picture::of(&place.destination());
    let leaving = tree.leaving();
    check_with_the_kernel(&place.destination(), &tree, &leaving);
    if !judge_links {
        return;
    }
    // What leads out leads out by the user's own links only.
    let own = |name: &Name| {
        let full = [b"dest/", name.as_bytes()].concat();
        matches!(before.at(&full), Some(Seen::Symlink(_))) && before.at(&full) == after.at(&full)
    };
    for (name, through) in leaving {
        assert!(
            own(&name) && through.iter().all(own),
            "{name} leads out through {through:?}\nbefore: {before:?}\nafter: {after:?}"
        );
    }
}

/// Ignored files, and what the user made meanwhile.
fn check_that_what_was_not_sent_stays(manifest: &Manifest, before: &Picture, after: &Picture) {
    for (name, seen) in before.entries() {
        let Some(below) = name.strip_prefix(b"dest/") else { continue };
        let name_below = Name::parse(below).expect("an entry has a usable name");
        if manifest.node(&name_below).is_none() && !matches!(seen, Seen::Directory(_)) {
            assert_eq!(after.at(name), Some(seen), "{} changed", name.escape_ascii());
        }
    }
}

fn assert_same(after: &Picture, before: &Picture) {
    assert!(after == before, "before: {before:?}\nafter: {after:?}");
}
