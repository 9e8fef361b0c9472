//! What a guest changed, as a set: kept, shown, applied in parts, discarded; and what a hostile
//! guest makes of each.

mod pair;

use std::fs;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use pair::{Pair, read, write};
use tar::{EntryType, Header};
use workspace::{
    About, Answer, ApplyOptions, Body, Change, ChangeSet, ChangesError, CollectOptions, Collected,
    Difference, Hidden, Limits, Name, PackOptions, Selection, Synced, UnpackError, Why, collect,
    collect_asked, pack,
};

impl Pair {
    fn set(&self) -> PathBuf {
        self.place.path().join("changes/sb-1/0")
    }

    fn about(&self) -> About {
        About {
            sandbox: "sb-1".into(),
            name: "box".into(),
            host: self.host(""),
            guest: "/workspace".into(),
            collected_at_ms: 7,
        }
    }

    fn collect_from(&self, tar: &[u8], options: &CollectOptions) -> Result<Collected, UnpackError> {
        collect(&mut &tar[..], &self.manifest, self.about(), &self.set(), options, &mut |_| {})
    }

    fn collect(&self) -> ChangeSet {
        let tar = self.sent();
        self.collect_from(&tar, &CollectOptions::default()).unwrap().set.expect("changes")
    }

    fn apply(&self, options: &ApplyOptions) -> Result<Synced, UnpackError> {
        ChangeSet::open(&self.set()).unwrap().apply(&self.host(""), options)
    }

    fn is_waiting(&self) -> bool {
        self.set().exists()
    }
}

fn chosen(paths: &[&str]) -> ApplyOptions {
    ApplyOptions { paths: Selection::of(paths).unwrap(), ..ApplyOptions::default() }
}

fn allowing(paths: &[&str]) -> ApplyOptions {
    ApplyOptions { allow_protected: Selection::of(paths).unwrap(), ..ApplyOptions::default() }
}

fn names(set: &ChangeSet) -> Vec<(String, Change)> {
    set.list().map(|listed| (listed.name.to_string(), listed.change)).collect()
}

fn held(synced: &Synced) -> Vec<(String, Why)> {
    synced.held_back.iter().map(|held| (held.name.to_string(), held.why)).collect()
}

fn differences(set: &ChangeSet, host: &Path) -> Vec<Difference> {
    let mut all = Vec::new();
    set.diff(host, &Selection::all(), |difference| {
        all.push(difference);
        ControlFlow::Continue(())
    })
    .unwrap();
    all
}

/// A header as a hostile guest writes it.
fn header(kind: EntryType, name: &str, target: &str, size: usize) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_mtime(1);
    header.set_size(size as u64);
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn file(name: &str, content: &str) -> Vec<u8> {
    let mut member = header(EntryType::Regular, name, "", content.len());
    member.extend_from_slice(content.as_bytes());
    member.resize(member.len().next_multiple_of(512), 0);
    member
}

fn directory(name: &str) -> Vec<u8> {
    header(EntryType::Directory, name, "", 0)
}

fn link(name: &str, target: &str) -> Vec<u8> {
    header(EntryType::Symlink, name, target, 0)
}

fn hard_link(name: &str, target: &str) -> Vec<u8> {
    header(EntryType::Link, name, target, 0)
}

fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    [members.concat(), vec![0; 1024]].concat()
}

#[test]
fn a_set_is_private_names_nothing_by_the_guest_s_words_and_is_there_when_it_is_opened_again() {
    let pair = Pair::new(|host| write(host.join("a"), "old\n"));
    write(pair.guest("a"), "new\n");
    write(pair.guest("\u{1b}[2J/b"), "b");
    drop(pair.collect());

    assert_eq!(fs::metadata(pair.set()).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(pair.place.path().join("changes")).unwrap().mode() & 0o400, 0o400);
    for entry in fs::read_dir(pair.set().join("content")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
    }
    let set = ChangeSet::open(&pair.set()).unwrap();
    let expected = [
        ("\\u{1b}[2J", Change::Created),
        ("\\u{1b}[2J/b", Change::Created),
        ("a", Change::Updated),
    ];
    assert_eq!(names(&set), expected.map(|(name, change)| (name.to_owned(), change)));
    assert_eq!((set.about().name.as_str(), set.len()), ("box", 3));
    assert_eq!(read(pair.host("a")), "old\n", "nothing of the host's was touched");
    let busy = ChangeSet::open(&pair.set());
    assert!(matches!(busy, Err(ChangesError::Busy { .. })), "{busy:?}");
}

#[test]
fn nothing_is_kept_where_nothing_changed_and_what_was_kept_before_goes() {
    let mut pair = Pair::new(|host| write(host.join("a"), "old"));
    write(pair.guest("a"), "new");
    drop(pair.collect());
    assert!(pair.is_waiting());
    write(pair.host("a"), "new");
    let mut tar = Vec::new();
    pack(&pair.guest(""), &PackOptions::default(), &mut tar, &mut |_| {}).unwrap();
    let collected = pair.collect_from(&tar, &CollectOptions::default()).unwrap();
    assert!(collected.set.is_none(), "both sides have it");
    assert!(!pair.is_waiting());
    assert_eq!(fs::read_dir(pair.place.path().join("changes/sb-1")).unwrap().count(), 0);
    // What both have is what the next change is told against.
    pair.manifest.agree(collected.agreed);
    write(pair.guest("a"), "newer\n");
    let set = pair.collect();
    assert!(!differences(&set, &pair.host(""))[0].changed_here);
}

#[test]
fn parts_are_applied_with_the_directories_that_they_are_in_and_the_rest_waits() {
    let pair = Pair::new(|host| {
        write(host.join("src/a.rs"), "a");
        write(host.join("gone/x"), "x");
    });
    write(pair.guest("src/a.rs"), "A");
    write(pair.guest("new/deep/b.rs"), "b");
    write(pair.guest("new/other"), "o");
    fs::remove_dir_all(pair.guest("gone")).unwrap();
    drop(pair.collect());

    let synced = pair.apply(&chosen(&["new/**/*.rs"])).unwrap();
    assert_eq!((synced.created, synced.updated, synced.deleted), (3, 0, 0));
    assert_eq!(read(pair.host("new/deep/b.rs")), "b");
    assert!(!pair.host("new/other").exists());
    assert_eq!(read(pair.host("src/a.rs")), "a");

    let synced = pair.apply(&chosen(&["new", "gone"])).unwrap();
    assert_eq!((synced.created, synced.deleted), (1, 1));
    assert!(!pair.host("gone").exists());
    assert_eq!(names(&ChangeSet::open(&pair.set()).unwrap()).len(), 1);
    pair.apply(&ApplyOptions::default()).unwrap();
    assert_eq!(read(pair.host("src/a.rs")), "A");
    assert!(!pair.is_waiting(), "a set of which all was applied goes");
}

#[test]
fn applying_again_what_is_there_changes_nothing() {
    let pair = Pair::new(|host| {
        write(host.join("a"), "old");
        write(host.join("gone"), "x");
    });
    write(pair.guest("a"), "new");
    write(pair.guest("d/e"), "e");
    fs::remove_file(pair.guest("gone")).unwrap();
    drop(pair.collect());
    let copy = pair.place.path().join("copy");
    let copied = std::process::Command::new("cp").arg("-r").arg(pair.set()).arg(&copy).status();
    assert!(copied.unwrap().success());
    pair.apply(&ApplyOptions::default()).unwrap();
    let before = fs::metadata(pair.host("a")).unwrap();

    let again = ChangeSet::open(&copy).unwrap();
    let synced = again.apply(&pair.host(""), &ApplyOptions::default()).unwrap();
    assert_eq!(synced, Synced::default());
    assert_eq!(fs::metadata(pair.host("a")).unwrap().ino(), before.ino());
}

#[test]
fn texts_that_both_sides_changed_merge_even_after_the_host_lost_what_was_sent() {
    let lines = |first: &str, last: &str| format!("{first}\n2\n3\n4\n5\n{last}\n");
    let pair = Pair::new(|host| {
        for file in ["merges", "fights"] {
            write(host.join(file), lines("1", "6"));
        }
        fs::set_permissions(host.join("merges"), fs::Permissions::from_mode(0o640)).unwrap();
    });
    for file in ["merges", "fights"] {
        write(pair.guest(file), lines("1", "guest"));
    }
    drop(pair.collect());
    write(pair.host("merges"), lines("host", "6"));
    write(pair.host("fights"), lines("1", "host"));

    let set = ChangeSet::open(&pair.set()).unwrap();
    for difference in differences(&set, &pair.host("")) {
        assert!(difference.changed_here);
        assert!(matches!(difference.body, Body::Text { added: 1, removed: 1, .. }));
    }
    drop(set);
    let synced = pair.apply(&ApplyOptions::default()).unwrap();
    assert_eq!((synced.updated, synced.merged), (1, 1));
    assert_eq!(held(&synced), [("fights".to_owned(), Why::ChangedOnHost)]);
    assert_eq!(read(pair.host("merges")), lines("host", "guest"));
    assert_eq!(fs::metadata(pair.host("merges")).unwrap().mode() & 0o777, 0o640);
    assert_eq!(read(pair.host("fights")), lines("1", "host"));

    let theirs = ApplyOptions { theirs: true, ..ApplyOptions::default() };
    assert_eq!(pair.apply(&theirs).unwrap().updated, 1);
    assert_eq!(read(pair.host("fights")), lines("1", "guest"));
}

#[test]
fn the_guest_s_version_is_taken_where_that_is_asked_for_and_never_over_a_directory() {
    let pair = Pair::new(|host| {
        for file in ["gone-there", "gone-here", "becomes-a-directory"] {
            write(host.join(file), "old\n");
        }
    });
    fs::remove_file(pair.guest("gone-there")).unwrap();
    write(pair.guest("gone-here"), "guest\n");
    write(pair.guest("becomes-a-directory"), "guest\n");
    write(pair.guest("new-in-both"), "guest\n");
    drop(pair.collect());
    write(pair.host("gone-there"), "changed\n");
    fs::remove_file(pair.host("gone-here")).unwrap();
    fs::remove_file(pair.host("becomes-a-directory")).unwrap();
    write(pair.host("becomes-a-directory/mine"), "mine");
    write(pair.host("new-in-both"), "host\n");

    assert_eq!(pair.apply(&ApplyOptions::default()).unwrap().held_back.len(), 4);
    let theirs = ApplyOptions { theirs: true, ..ApplyOptions::default() };
    let synced = pair.apply(&theirs).unwrap();
    assert_eq!(held(&synced), [("becomes-a-directory".to_owned(), Why::ChangedOnHost)]);
    assert!(!pair.host("gone-there").exists());
    assert_eq!(read(pair.host("gone-here")), "guest\n");
    assert_eq!(read(pair.host("new-in-both")), "guest\n");
    assert_eq!(read(pair.host("becomes-a-directory/mine")), "mine");
}

#[test]
fn no_way_around_brings_in_what_other_programs_run() {
    type Trick = fn(&Pair);
    let tricks: [(&str, Trick); 9] = [
        ("plainly", |pair| write(pair.guest("pkg/.vscode/tasks.json"), "evil")),
        ("in other letters", |pair| write(pair.guest("pkg/.VSCode/tasks.json"), "evil")),
        ("by renaming the directory", |pair| {
            write(pair.guest("innocent/tasks.json"), "evil");
            fs::rename(pair.guest("pkg/.vscode"), pair.guest("old")).unwrap();
            fs::rename(pair.guest("innocent"), pair.guest("pkg/.vscode")).unwrap();
        }),
        ("by renaming its parent", |pair| {
            write(pair.guest("other/.vscode/tasks.json"), "evil");
            fs::rename(pair.guest("pkg"), pair.guest("old")).unwrap();
            fs::rename(pair.guest("other"), pair.guest("pkg")).unwrap();
        }),
        ("by a link in its place", |pair| {
            write(pair.guest("innocent/tasks.json"), "evil");
            fs::remove_dir_all(pair.guest("pkg/.vscode")).unwrap();
            symlink("../innocent", pair.guest("pkg/.vscode")).unwrap();
        }),
        ("by a link in its file's place", |pair| {
            write(pair.guest("innocent"), "evil");
            fs::remove_file(pair.guest("pkg/.vscode/tasks.json")).unwrap();
            symlink("../../innocent", pair.guest("pkg/.vscode/tasks.json")).unwrap();
        }),
        ("by a link on the way", |pair| {
            write(pair.guest("innocent/workflows/ci.yml"), "evil");
            symlink("innocent", pair.guest(".github")).unwrap();
        }),
        ("by one more name of it", |pair| {
            fs::hard_link(pair.guest("pkg/.vscode/tasks.json"), pair.guest("notes")).unwrap();
            fs::write(pair.guest("notes"), "evil").unwrap();
        }),
        ("by one more name in its place", |pair| {
            write(pair.guest("notes"), "evil");
            fs::remove_file(pair.guest("pkg/.vscode/tasks.json")).unwrap();
            fs::hard_link(pair.guest("notes"), pair.guest("pkg/.vscode/tasks.json")).unwrap();
        }),
    ];
    for (how, trick) in tricks {
        let pair = Pair::new(|host| {
            write(host.join("pkg/.vscode/tasks.json"), "mine");
            write(host.join("pkg/code"), "code");
        });
        trick(&pair);
        drop(pair.collect());
        for options in
            [ApplyOptions::default(), ApplyOptions { theirs: true, ..ApplyOptions::default() }]
        {
            let synced = pair.apply(&options).unwrap();
            assert!(held(&synced).iter().any(|(_, why)| *why == Why::Protected), "{how}");
        }
        let tasks = pair.host("pkg/.vscode/tasks.json");
        assert!(tasks.symlink_metadata().unwrap().is_file(), "{how}");
        assert!(pair.host("pkg/.vscode").symlink_metadata().unwrap().is_dir(), "{how}");
        assert_eq!(read(tasks), "mine", "{how}");
        assert!(!pair.host(".github").is_symlink(), "{how}");
        assert!(!pair.host("pkg/.VSCode").exists(), "{how}");
        assert!(pair.is_waiting(), "{how}");
    }
}

#[test]
fn one_more_name_on_the_host_of_what_is_protected_is_not_written_through() {
    let pair = Pair::new(|host| {
        write(host.join(".envrc"), "mine");
        fs::hard_link(host.join(".envrc"), host.join("notes")).unwrap();
    });
    fs::remove_file(pair.guest("notes")).unwrap();
    write(pair.guest("notes"), "evil");
    drop(pair.collect());
    pair.apply(&ApplyOptions::default()).unwrap();
    assert_eq!(read(pair.host("notes")), "evil");
    assert_eq!(read(pair.host(".envrc")), "mine");
}

#[test]
fn what_is_protected_is_applied_where_it_is_allowed_by_name() {
    let pair = Pair::new(|host| write(host.join(".git/HEAD"), "main"));
    for file in [".envrc", ".claude/a", ".claude/b", ".git/hooks/pre-commit"] {
        write(pair.guest(file), "x");
    }
    let set = pair.collect();
    assert!(set.list().all(|listed| listed.protected));
    drop(set);
    let synced = pair.apply(&allowing(&[".claude/a"])).unwrap();
    assert_eq!(synced.created, 2);
    assert!(pair.host(".claude/a").exists() && !pair.host(".claude/b").exists());
    let synced = pair.apply(&allowing(&[".envrc", ".claude"])).unwrap();
    assert_eq!(held(&synced), [(".git/hooks".to_owned(), Why::Protected)]);
    pair.apply(&allowing(&["."])).unwrap();
    assert_eq!(read(pair.host(".git/hooks/pre-commit")), "x");
    assert!(!pair.is_waiting());
}

#[test]
fn what_the_guest_was_not_to_see_it_cannot_change() {
    let pair = Pair::new(|_| {});
    write(pair.guest(".env"), "evil");
    write(pair.guest("d/.env"), "evil");
    drop(pair.collect());
    write(pair.host(".env"), "SECRET");
    let options = ApplyOptions {
        theirs: true,
        hidden: Some(Hidden::new(|path| path.ends_with(".env"))),
        ..ApplyOptions::default()
    };
    let synced = pair.apply(&options).unwrap();
    let expected = [(".env", Why::Hidden), ("d/.env", Why::Hidden)];
    assert_eq!(held(&synced), expected.map(|(name, why)| (name.to_owned(), why)));
    assert_eq!(read(pair.host(".env")), "SECRET");
    assert!(!pair.host("d/.env").exists());
}

#[test]
fn what_git_ignores_is_left_out_by_the_guest_s_own_rules_and_what_was_sent_is_not() {
    let pair = Pair::new(|host| {
        write(host.join(".gitignore"), "target/\n*.o\n");
        write(host.join("tracked.o"), "1");
    });
    write(pair.guest("tracked.o"), "2");
    write(pair.guest("target/debug/big"), "x".repeat(1000));
    write(pair.guest("new/.gitignore"), "out\n");
    write(pair.guest("new/out/y"), "y");
    write(pair.guest("new/z.o"), "z");
    let mut tar = Vec::new();
    pack(&pair.guest(""), &PackOptions::default(), &mut tar, &mut |_| {}).unwrap();
    let collected = pair.collect_from(&tar, &CollectOptions::default()).unwrap();
    let listed: Vec<_> = names(&collected.set.unwrap()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(listed, ["new", "new/.gitignore", "tracked.o"]);
    // `target`, `debug`, `big`, `out`, `y` and `z.o`.
    assert_eq!((collected.ignored.entries, collected.ignored.bytes), (6, 1002));
    let all = CollectOptions { ignored: true, ..CollectOptions::default() };
    let collected = pair.collect_from(&tar, &all).unwrap();
    assert_eq!((collected.set.unwrap().len(), collected.ignored.entries), (9, 0));
}

#[test]
fn a_guest_that_sends_what_changed_and_the_names_of_the_rest_gives_the_same_set() {
    let pair = Pair::new(|host| {
        for file in ["same", "changed", "gone"] {
            write(host.join(file), file);
        }
        write(host.join("d/same"), "x");
        symlink("same", host.join("link")).unwrap();
    });
    let mut tar = archive(&[file("changed", "new"), directory("d")]);
    tar.extend_from_slice(b"same\0d/same\0link\0never-sent\0");
    let options = CollectOptions { partial: true, ..CollectOptions::default() };
    let set = pair.collect_from(&tar, &options).unwrap().set.unwrap();
    let expected = [("changed", Change::Updated), ("gone", Change::Deleted)];
    assert_eq!(names(&set), expected.map(|(name, change)| (name.to_owned(), change)));
    drop(set);
    for hostile in [&b"no end"[..], b"../up\0", b"/etc/passwd\0", b"\0"] {
        let tar = [&tar[..], hostile].concat();
        assert!(pair.collect_from(&tar, &options).is_err(), "{hostile:?}");
    }
    let long = [&tar[..], &b"x/".repeat(3000), &[0]].concat();
    assert!(pair.collect_from(&long, &options).is_err());
}

#[test]
fn what_a_hostile_guest_sends_is_refused_and_nothing_is_kept() {
    let table: [(&[Vec<u8>], &str); 6] = [
        (&[file("d/orphan", "x")], "'d/orphan' in place: what it is in is not a directory"),
        (&[link("l", ".."), file("l/x", "x")], "'l/x' in place: what it is in is not a directory"),
        (&[file("f", "1"), file("f", "2")], "'f' in place: a file is already there"),
        (&[directory("d"), link("d", "/etc")], "'d' in place: a directory is already there"),
        (&[hard_link("h", "etc/shadow")], "'etc/shadow' is not a file of this tree"),
        (&[directory("d"), hard_link("h", "d")], "'d' is not a file of this tree"),
    ];
    for (members, expected) in table {
        let tar = archive(members);
        let pair = Pair::new(|host| write(host.join("a"), "a"));
        let error = pair.collect_from(&tar, &CollectOptions::default()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        for length in (0..tar.len()).step_by(300) {
            assert!(pair.collect_from(&tar[..length], &CollectOptions::default()).is_err());
        }
        assert!(!pair.is_waiting());
        assert_eq!(fs::read_dir(pair.place.path().join("changes/sb-1")).unwrap().count(), 0);
        assert_eq!(read(pair.host("a")), "a");
    }
    let pair = Pair::new(|_| {});
    let tar = archive(&[directory("d"), file("d/a", "x"), file("d/b", "x")]);
    for (limits, expected) in [
        (Limits { entries: 2, ..Limits::default() }, "more than 2 entries"),
        (Limits { bytes: 1, ..Limits::default() }, "more than 1 bytes"),
        (Limits { names: 6, ..Limits::default() }, "more than 6 bytes"),
        (Limits { depth: 1, ..Limits::default() }, "'d/a' is more than 1 directories deep"),
    ] {
        let options = CollectOptions { limits, ..CollectOptions::default() };
        let error = pair.collect_from(&tar, &options).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_full_disk_keeps_and_changes_nothing() {
    let disk = tempfile::tempdir().unwrap();
    let flags = rustix::mount::MountFlags::empty();
    if rustix::mount::mount("tmpfs", disk.path(), "tmpfs", flags, Some(c"size=512k")).is_err() {
        eprintln!("not run: a full disk needs the right to mount a tmpfs");
        return;
    }
    let pair = Pair::new(|host| write(host.join("a"), "old"));
    write(pair.guest("a"), "new");
    write(pair.guest("big"), "x".repeat(300 << 10));
    write(pair.guest("big2"), "y".repeat(300 << 10));
    let mut tar = Vec::new();
    pack(&pair.guest(""), &PackOptions::default(), &mut tar, &mut |_| {}).unwrap();
    // No room for the set.
    let to = disk.path().join("changes/0");
    let options = CollectOptions::default();
    let collected =
        collect(&mut &tar[..], &pair.manifest, pair.about(), &to, &options, &mut |_| {});
    let kept = fs::read_dir(disk.path().join("changes")).unwrap().count();
    // No room for what is applied.
    drop(pair.collect());
    let host = disk.path().join("host");
    fs::create_dir(&host).unwrap();
    write(host.join("a"), "old");
    let applied = ChangeSet::open(&pair.set()).unwrap().apply(&host, &ApplyOptions::default());
    let left: Vec<_> =
        fs::read_dir(disk.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let a = read(host.join("a"));
    rustix::mount::unmount(disk.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(matches!(collected.unwrap_err(), UnpackError::NoSpace { .. }));
    assert_eq!(kept, 0);
    assert!(matches!(applied.unwrap_err(), UnpackError::NoSpace { .. }));
    assert_eq!((a.as_str(), left.len()), ("old", 2), "{left:?}");
    assert!(!ChangeSet::open(&pair.set()).unwrap().is_interrupted());
    assert_eq!(pair.apply(&ApplyOptions::default()).unwrap().created, 2);
}

#[test]
fn a_set_that_is_damaged_is_told_and_applies_nothing() {
    let pair = Pair::new(|host| write(host.join("a"), "old"));
    write(pair.guest("a"), "new");
    drop(pair.collect());
    for entry in fs::read_dir(pair.set().join("content")).unwrap() {
        let path = entry.unwrap().path();
        if fs::read(&path).unwrap() == b"new" {
            fs::write(path, "bad").unwrap();
        }
    }
    let error = pair.apply(&ApplyOptions::default()).unwrap_err().to_string();
    assert!(error.contains("the content of 'a' is not what came"), "{error}");
    assert_eq!(read(pair.host("a")), "old");
    fs::write(pair.set().join("index.json"), "{}").unwrap();
    let opened = ChangeSet::open(&pair.set());
    assert!(matches!(opened, Err(ChangesError::Damaged { .. })), "{opened:?}");
}

#[test]
fn what_a_killed_apply_took_away_comes_back_before_the_next() {
    let pair = Pair::new(|host| {
        write(host.join("gone/x"), "x");
        write(host.join("replaced"), "old");
        write(host.join("a"), "old");
    });
    fs::remove_dir_all(pair.guest("gone")).unwrap();
    write(pair.guest("replaced"), "new");
    write(pair.guest("a"), "new");
    drop(pair.collect());
    // As if it had been killed between taking and bringing.
    let staging = pair.place.path().join(".sandforge-killed");
    fs::create_dir_all(staging.join("new")).unwrap();
    fs::create_dir_all(staging.join("old")).unwrap();
    for name in ["gone", "replaced"] {
        fs::rename(pair.host(name), staging.join("old").join(name)).unwrap();
    }
    let applying = format!(
        "{{\"staging\":{:?},\"destination\":{:?}}}",
        staging.to_str().unwrap(),
        pair.host("").to_str().unwrap()
    );
    fs::write(pair.set().join("applying.json"), applying).unwrap();

    let set = ChangeSet::open(&pair.set()).unwrap();
    assert!(set.is_interrupted());
    assert!(matches!(set.discard(), Err(ChangesError::Interrupted)));
    pair.apply(&chosen(&["a"])).unwrap();
    assert_eq!(read(pair.host("replaced")), "old");
    assert_eq!(read(pair.host("gone/x")), "x");
    assert!(!staging.exists());
    let synced = pair.apply(&ApplyOptions::default()).unwrap();
    assert_eq!((synced.updated, synced.deleted), (1, 1));
    assert_eq!(read(pair.host("replaced")), "new");
}

#[test]
fn a_diff_tells_of_lines_links_modes_and_what_is_no_text() {
    let pair = Pair::new(|host| {
        write(host.join("text"), "1\n2\n3\n");
        write(host.join("gone"), "g\n");
        write(host.join("binary"), b"\0\x01");
        write(host.join("script"), "#!\n");
        symlink("text", host.join("link")).unwrap();
    });
    write(pair.guest("text"), "1\ntwo\n3\n");
    fs::remove_file(pair.guest("gone")).unwrap();
    write(pair.guest("binary"), b"\0\x01\x02");
    fs::set_permissions(pair.guest("script"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(pair.guest("link")).unwrap();
    symlink("script", pair.guest("link")).unwrap();
    fs::create_dir(pair.guest("d")).unwrap();
    write(pair.guest("long"), "x\n".repeat(600_000));

    let set = pair.collect();
    let found = differences(&set, &pair.host(""));
    let of = |name: &str| found.iter().find(|one| one.name.to_string() == name).unwrap();
    let Body::Text { hunks, added: 1, removed: 1 } = &of("text").body else { panic!() };
    assert_eq!(String::from_utf8_lossy(hunks), "@@ -1,3 +1,3 @@\n 1\n-2\n+two\n 3\n");
    let Body::Text { hunks, .. } = &of("gone").body else { panic!() };
    assert_eq!(String::from_utf8_lossy(hunks), "@@ -1 +0,0 @@\n-g\n");
    assert_eq!(of("binary").body, Body::Opaque { before: Some(2), after: Some(3) });
    assert_eq!(of("script").mode, Some((0o644, 0o755)));
    let link = Body::Link { before: Some(b"text".to_vec()), after: Some(b"script".to_vec()) };
    assert_eq!(of("link").body, link);
    assert_eq!(of("d").body, Body::Directory);
    assert_eq!(of("long").body, Body::Opaque { before: None, after: Some(1_200_000) });
}

/// A guest that asks about whatever it has, and does as it is told.
struct Asking<'a> {
    told: &'a [(&'a str, Answer)],
    asked: Vec<String>,
}

impl archive::Packing for Asking<'_> {
    fn asks(&mut self, _: &Name, inode: &archive::Inode) -> bool {
        inode.kind != archive::InodeKind::Symlink
    }

    fn follows(
        &mut self,
        name: &Name,
        inode: &archive::Inode,
        output: &mut dyn Write,
    ) -> io::Result<bool> {
        self.asked.push(name.to_string());
        let (expected, answer) = self.told[self.asked.len() - 1];
        assert_eq!(name.to_string(), expected);
        if answer == Answer::Over && inode.kind == archive::InodeKind::Directory {
            output.write_all(&7_u64.to_le_bytes())?;
            output.write_all(&u64::MAX.to_le_bytes())?;
        }
        Ok(answer != Answer::Over)
    }
}

#[test]
fn what_git_ignores_is_not_sent_by_a_guest_that_asks() {
    let pair = Pair::new(|host| {
        write(host.join(".gitignore"), "target/\n*.big\n");
        write(host.join("src/a"), "1");
    });
    write(pair.guest("a.big"), "left out");
    write(pair.guest("b.big/in"), "left out");
    write(pair.guest("src/b"), "new");
    write(pair.guest("target/debug/x"), "left out");
    let told = [
        (".gitignore", Answer::Into),
        ("a.big", Answer::Over),
        ("b.big", Answer::Over),
        ("src", Answer::Into),
        ("src/a", Answer::Into),
        ("src/b", Answer::Into),
        ("target", Answer::Over),
    ];
    let mut asking = Asking { told: &told, asked: Vec::new() };
    let root = archive::Root::open(&pair.guest("")).unwrap();
    let mut writer = archive::Writer::new(Vec::new());
    archive::pack(&root, &mut writer, &mut asking).unwrap();
    let tar = writer.finish().unwrap();
    assert!(!tar.windows(8).any(|bytes| bytes == b"left out"));

    let mut answers = Vec::new();
    let mut answer = |answer| {
        answers.push(answer);
        Ok(())
    };
    let options = CollectOptions::default();
    let collected = collect_asked(
        &mut &tar[..],
        &mut answer,
        &pair.manifest,
        pair.about(),
        &pair.set(),
        &options,
        &mut |_| {},
    )
    .unwrap();

    assert_eq!(answers, told.map(|(_, answer)| answer));
    assert_eq!(names(&collected.set.unwrap()), [("src/b".to_owned(), Change::Created)]);
    // The file, both directories and what they said to hold; never more bytes than there may be.
    assert_eq!(collected.ignored.entries, 1 + 1 + 7 + 1 + 7);
    assert_eq!(collected.ignored.bytes, Limits::default().bytes);
}

#[test]
fn a_guest_that_asks_for_nothing_is_told_not_to() {
    let pair = Pair::new(|host| write(host.join("a"), "1"));
    for number in 0..1005 {
        write(pair.guest(&format!("n{number:04}")), "new");
    }
    struct All;
    impl archive::Packing for All {
        fn asks(&mut self, _: &Name, _: &archive::Inode) -> bool {
            true
        }
    }
    let root = archive::Root::open(&pair.guest("")).unwrap();
    let mut writer = archive::Writer::new(Vec::new());
    archive::pack(&root, &mut writer, &mut All).unwrap();
    let tar = writer.finish().unwrap();
    let mut answers = Vec::new();
    let mut answer = |answer| {
        answers.push(answer);
        Ok(())
    };
    let options = CollectOptions::default();
    let (about, set) = (pair.about(), pair.set());
    let manifest = &pair.manifest;
    let collected =
        collect_asked(&mut &tar[..], &mut answer, manifest, about, &set, &options, &mut |_| {});

    assert_eq!(collected.unwrap().set.unwrap().list().count(), 1005);
    assert_eq!(answers.len(), 1000);
    assert_eq!(answers.last(), Some(&Answer::All));
}
