//! A guest's changes come back to the directory that was sent, and nothing else changes.

mod pair;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use pair::{Pair, read, write};
use workspace::{
    Change, OutsideLinks, PackOptions, SyncOptions, Synced, UnpackError, Why, sync_back,
};

impl Pair {
    fn sync(&self) -> Result<Synced, UnpackError> {
        self.sync_with(&SyncOptions::default())
    }

    fn sync_with(&self, options: &SyncOptions) -> Result<Synced, UnpackError> {
        let tar = self.sent();
        let synced = sync_back(&mut &tar[..], &self.host(""), &self.manifest, options, &mut |_| {});
        let beside = fs::read_dir(self.place.path()).unwrap().count();
        assert_eq!(beside, 2, "no staging stays");
        synced
    }
}

fn counts(synced: &Synced) -> (u64, u64, u64) {
    (synced.created, synced.updated, synced.deleted)
}

fn held(synced: &Synced) -> Vec<(String, Change, Why)> {
    synced.held_back.iter().map(|held| (held.name.to_string(), held.change, held.why)).collect()
}

#[test]
fn what_was_created_changed_and_deleted_arrives_and_the_rest_is_not_touched() {
    let pair = Pair::new(|host| {
        for name in ["same", "changed", "gone", "dir/gone", "dir/same", "olddir/a/b"] {
            write(host.join(name), name);
        }
        fs::write(host.join("script"), "#!").unwrap();
    });
    let same = fs::metadata(pair.host("same")).unwrap();
    write(pair.guest("changed"), "new content");
    write(pair.guest("newdir/x/y"), "deep");
    write(pair.guest("dir/new"), "new");
    fs::remove_file(pair.guest("gone")).unwrap();
    fs::remove_file(pair.guest("dir/gone")).unwrap();
    fs::remove_dir_all(pair.guest("olddir")).unwrap();
    fs::set_permissions(pair.guest("script"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(pair.guest("newdir/x"), fs::Permissions::from_mode(0o555)).unwrap();
    symlink("dir", pair.guest("link")).unwrap();

    let synced = pair.sync().unwrap();

    assert_eq!(counts(&synced), (5, 2, 3));
    assert_eq!(held(&synced), []);
    assert_eq!(read(pair.host("changed")), "new content");
    assert_eq!(read(pair.host("newdir/x/y")), "deep");
    assert_eq!(read(pair.host("dir/new")), "new");
    assert_eq!(fs::read_link(pair.host("link")).unwrap(), Path::new("dir"));
    assert_eq!(fs::metadata(pair.host("script")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(pair.host("newdir/x")).unwrap().mode() & 0o7777, 0o555);
    for locked in [pair.host("newdir/x"), pair.guest("newdir/x")] {
        fs::set_permissions(locked, fs::Permissions::from_mode(0o755)).unwrap();
    }
    for gone in ["gone", "dir/gone", "olddir"] {
        assert!(!pair.host(gone).exists(), "{gone}");
    }
    let after = fs::metadata(pair.host("same")).unwrap();
    assert_eq!((after.ino(), after.ctime_nsec()), (same.ino(), same.ctime_nsec()));
}

#[test]
fn a_guest_that_did_nothing_changes_nothing() {
    let pair = Pair::new(|host| {
        write(host.join(".git/config"), "[core]");
        write(host.join(".git/hooks/pre-commit"), "#!/bin/sh");
        write(host.join("a"), "a");
        fs::hard_link(host.join("a"), host.join("b")).unwrap();
        symlink("/usr/bin/python3", host.join("python")).unwrap();
    });
    let synced = pair.sync().unwrap();
    assert_eq!(synced, Synced { bytes: synced.bytes, ..Synced::default() });
}

#[test]
fn kinds_can_change_in_every_direction() {
    let pair = Pair::new(|host| {
        write(host.join("file-to-dir"), "x");
        write(host.join("dir-to-file/deep/x"), "x");
        write(host.join("file-to-link"), "x");
        write(host.join("dir-to-link/x"), "x");
        symlink("file-to-dir", host.join("link-to-dir")).unwrap();
        symlink("file-to-dir", host.join("link-to-file")).unwrap();
    });
    for name in ["file-to-dir", "file-to-link", "link-to-dir", "link-to-file"] {
        fs::remove_file(pair.guest(name)).unwrap();
    }
    for name in ["dir-to-file", "dir-to-link"] {
        fs::remove_dir_all(pair.guest(name)).unwrap();
    }
    write(pair.guest("file-to-dir/in"), "1");
    write(pair.guest("link-to-dir/in"), "2");
    write(pair.guest("dir-to-file"), "3");
    write(pair.guest("link-to-file"), "4");
    symlink("dir-to-file", pair.guest("file-to-link")).unwrap();
    symlink("file-to-dir", pair.guest("dir-to-link")).unwrap();

    let synced = pair.sync().unwrap();

    assert_eq!(held(&synced), []);
    assert_eq!(read(pair.host("file-to-dir/in")), "1");
    assert_eq!(read(pair.host("link-to-dir/in")), "2");
    assert_eq!(read(pair.host("dir-to-file")), "3");
    assert!(pair.host("link-to-file").symlink_metadata().unwrap().is_file());
    assert_eq!(fs::read_link(pair.host("file-to-link")).unwrap(), Path::new("dir-to-file"));
    assert_eq!(read(pair.host("dir-to-link/in")), "1");
}

#[test]
fn nothing_is_written_through_a_link_on_the_host() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("f"), "safe").unwrap();
    let pair = Pair::new(|host| {
        symlink(outside.path(), host.join("data")).unwrap();
        symlink(outside.path().join("f"), host.join("f")).unwrap();
    });
    for name in ["data", "f"] {
        fs::remove_file(pair.guest(name)).unwrap();
    }
    write(pair.guest("data/f"), "evil");
    write(pair.guest("f"), "evil");
    pair.sync().unwrap();
    assert_eq!(read(outside.path().join("f")), "safe");
    assert!(pair.host("data").symlink_metadata().unwrap().is_dir());
    assert!(pair.host("f").symlink_metadata().unwrap().is_file());
}

#[test]
fn a_link_that_replaced_a_directory_on_the_host_meanwhile_is_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    let pair = Pair::new(|host| write(host.join("d/f"), "old"));
    write(pair.guest("d/f"), "evil");
    write(pair.guest("d/new"), "evil");
    fs::remove_dir_all(pair.host("d")).unwrap();
    symlink(outside.path(), pair.host("d")).unwrap();
    let synced = pair.sync().unwrap();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    assert_eq!(held(&synced).len(), 2);
}

#[test]
fn what_the_host_changed_too_is_held_back() {
    let pair = Pair::new(|host| {
        for name in ["both", "host-only", "deleted-here", "deleted-there", "same-change"] {
            write(host.join(name), name);
        }
        write(host.join("dir/a"), "a");
    });
    for name in ["both", "deleted-here", "both-new"] {
        write(pair.guest(name), "guest");
    }
    write(pair.guest("same-change"), "agreed");
    fs::remove_file(pair.guest("deleted-there")).unwrap();
    fs::remove_dir_all(pair.guest("dir")).unwrap();
    for name in ["both", "host-only", "deleted-there", "both-new", "dir/mine"] {
        write(pair.host(name), "host's own");
    }
    write(pair.host("same-change"), "agreed");
    fs::remove_file(pair.host("deleted-here")).unwrap();

    let synced = pair.sync().unwrap();

    assert_eq!(
        held(&synced),
        [
            ("both".into(), Change::Updated, Why::ChangedOnHost),
            ("both-new".into(), Change::Created, Why::ChangedOnHost),
            ("deleted-here".into(), Change::Updated, Why::ChangedOnHost),
            ("deleted-there".into(), Change::Deleted, Why::ChangedOnHost),
        ]
    );
    for name in ["both", "host-only", "deleted-there", "both-new", "dir/mine"] {
        assert_eq!(read(pair.host(name)), "host's own");
    }
    assert!(!pair.host("dir/a").exists());
    assert!(!pair.host("deleted-here").exists());
}

#[test]
fn what_was_never_sent_is_never_deleted() {
    let options = PackOptions { manifest: true, gitignore: true, ..PackOptions::default() };
    let pair = Pair::with(&options, |host| {
        write(host.join(".gitignore"), "target\n");
        write(host.join("crate/target/big"), "build");
        write(host.join("crate/src"), "code");
    });
    assert!(!pair.guest("crate/target").exists());
    fs::remove_dir_all(pair.guest("crate")).unwrap();
    let synced = pair.sync().unwrap();
    assert_eq!(counts(&synced), (0, 0, 1));
    assert_eq!(read(pair.host("crate/target/big")), "build");
    assert!(!pair.host("crate/src").exists());
}

#[test]
fn what_git_would_run_is_held_back_and_work_in_git_arrives() {
    let pair = Pair::new(|host| {
        write(host.join(".git/config"), "[core]");
        write(host.join(".git/HEAD"), "main");
        write(host.join(".git/hooks/pre-commit"), "mine");
        write(host.join("lib/.git"), "gitdir: ../.git/modules/lib");
    });
    write(pair.guest(".git/config"), "[core]\nfsmonitor = evil");
    write(pair.guest(".git/hooks/post-checkout"), "evil");
    fs::remove_file(pair.guest(".git/hooks/pre-commit")).unwrap();
    write(pair.guest(".git/HEAD"), "feature");
    write(pair.guest(".git/objects/ab/cd"), "object");
    write(pair.guest("lib/.git"), "gitdir: ../evil");
    write(pair.guest("new/.git/config"), "evil");
    write(pair.guest("new/.git/config.d/x"), "fine");
    write(pair.guest("new/.git/HEAD"), "main");

    let synced = pair.sync().unwrap();

    assert_eq!(
        held(&synced),
        [
            (".git/config".into(), Change::Updated, Why::Protected),
            (".git/hooks/post-checkout".into(), Change::Created, Why::Protected),
            (".git/hooks/pre-commit".into(), Change::Deleted, Why::Protected),
            ("lib/.git".into(), Change::Updated, Why::Protected),
            ("new/.git/config".into(), Change::Created, Why::Protected),
        ]
    );
    assert_eq!(read(pair.host(".git/config")), "[core]");
    assert_eq!(read(pair.host(".git/hooks/pre-commit")), "mine");
    assert!(!pair.host(".git/hooks/post-checkout").exists());
    assert_eq!(read(pair.host(".git/HEAD")), "feature");
    assert_eq!(read(pair.host(".git/objects/ab/cd")), "object");
    assert_eq!(read(pair.host("lib/.git")), "gitdir: ../.git/modules/lib");
    assert_eq!(read(pair.host("new/.git/HEAD")), "main");
    assert!(!pair.host("new/.git/config").exists());
}

#[test]
fn no_way_around_brings_a_hook_in() {
    type Trick = fn(&Pair);
    let tricks: [Trick; 5] = [
        // The repository goes, a link to one with hooks comes.
        |pair| {
            fs::rename(pair.guest(".git"), pair.guest("moved")).unwrap();
            symlink("moved", pair.guest(".git")).unwrap();
            write(pair.guest("moved/hooks/evil"), "evil");
        },
        |pair| {
            fs::remove_dir_all(pair.guest(".git")).unwrap();
            write(pair.guest(".git"), "gitdir: evil");
        },
        |pair| fs::remove_dir_all(pair.guest(".git")).unwrap(),
        |pair| {
            fs::remove_dir_all(pair.guest(".git/hooks")).unwrap();
            symlink("../evil", pair.guest(".git/hooks")).unwrap();
        },
        |pair| write(pair.guest(".GIT/hooks/evil"), "evil"),
    ];
    for trick in tricks {
        let pair = Pair::new(|host| {
            write(host.join(".git/HEAD"), "main");
            write(host.join(".git/hooks/mine"), "mine");
        });
        trick(&pair);
        let synced = pair.sync().unwrap();
        assert!(held(&synced).iter().any(|(_, _, why)| *why == Why::Protected));
        assert!(pair.host(".git").symlink_metadata().unwrap().is_dir());
        let hooks = pair.host(".git/hooks");
        assert!(hooks.symlink_metadata().unwrap().is_dir());
        let names: Vec<_> = fs::read_dir(hooks).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["mine"]);
        assert_eq!(read(pair.host(".git/HEAD")), "main");
        assert!(!pair.host(".GIT/hooks").exists());
    }
}

#[test]
fn a_new_link_that_leaves_refuses_all_or_is_left_out() {
    let pair = Pair::new(|host| {
        write(host.join("a"), "old");
        symlink("/usr/bin/python3", host.join("python")).unwrap();
    });
    write(pair.guest("a"), "new");
    symlink("/etc/passwd", pair.guest("evil")).unwrap();
    let error = pair.sync().unwrap_err();
    assert!(error.to_string().contains("'evil' to '/etc/passwd' leads out"), "{error}");
    assert_eq!(read(pair.host("a")), "old");
    let options = SyncOptions { outside_links: OutsideLinks::LeaveOut, ..SyncOptions::default() };
    let synced = pair.sync_with(&options).unwrap();
    assert_eq!(held(&synced), [("evil".into(), Change::Created, Why::LeavesTree)]);
    assert_eq!(read(pair.host("a")), "new");
    assert!(!pair.host("evil").is_symlink());
    assert!(pair.host("python").is_symlink());
}

#[test]
fn a_new_link_through_an_old_one_that_leaves_is_refused() {
    let pair = Pair::new(|host| symlink("/etc", host.join("etc")).unwrap());
    symlink("etc/passwd", pair.guest("evil")).unwrap();
    let error = pair.sync().unwrap_err();
    assert!(matches!(error, UnpackError::LinkLeaves { .. }), "{error}");
}

#[test]
fn a_new_link_through_one_of_the_host_that_was_never_sent_is_refused() {
    let options = PackOptions { manifest: true, gitignore: true, ..PackOptions::default() };
    let pair = Pair::with(&options, |host| {
        fs::create_dir(host.join(".git")).unwrap();
        write(host.join(".gitignore"), "cache\n");
        symlink("/var/cache/tool", host.join("cache")).unwrap();
    });
    assert!(!pair.guest("cache").is_symlink());
    symlink("cache/../x", pair.guest("evil")).unwrap();
    let error = pair.sync().unwrap_err();
    assert!(matches!(error, UnpackError::LinkLeaves { .. }), "{error}");
}

#[test]
fn a_new_link_through_a_protected_one_of_the_host_is_refused() {
    let pair = Pair::new(|host| {
        fs::create_dir(host.join(".git")).unwrap();
        symlink("/home/me/hooks", host.join(".git/hooks")).unwrap();
    });
    fs::remove_file(pair.guest(".git/hooks")).unwrap();
    symlink("../d", pair.guest(".git/hooks")).unwrap();
    symlink(".git/hooks/pre-commit", pair.guest("evil")).unwrap();
    let error = pair.sync().unwrap_err();
    assert!(matches!(error, UnpackError::LinkLeaves { .. }), "{error}");
}

#[test]
fn a_new_link_through_what_the_host_changed_meanwhile_is_refused() {
    // Inside by the guest's `d/e`, outside by the host's.
    let changed_by_guest = || {
        let pair = Pair::new(|host| {
            fs::create_dir_all(host.join("d/far/down")).unwrap();
            write(host.join("d/e"), "1");
        });
        fs::remove_file(pair.guest("d/e")).unwrap();
        symlink("far/down", pair.guest("d/e")).unwrap();
        symlink("d/e/../../../y", pair.guest("x")).unwrap();
        pair
    };
    assert_eq!(changed_by_guest().sync().unwrap().created, 1);

    let pair = changed_by_guest();
    write(pair.host("d/e"), "2");
    let error = pair.sync().unwrap_err();
    assert!(matches!(error, UnpackError::LinkLeaves { .. }), "{error}");
    let options = SyncOptions { outside_links: OutsideLinks::LeaveOut, ..SyncOptions::default() };
    let synced = pair.sync_with(&options).unwrap();
    assert_eq!(synced.held_back.len(), 2, "{synced:?}");
    assert!(pair.host("x").symlink_metadata().is_err());
}

#[test]
fn an_old_link_that_a_new_one_turns_outwards_is_refused() {
    let pair = Pair::new(|host| {
        fs::create_dir_all(host.join("d/e")).unwrap();
        symlink("d/e/../..", host.join("link")).unwrap();
    });
    fs::remove_dir(pair.guest("d/e")).unwrap();
    symlink("../d", pair.guest("d/e")).unwrap();
    let error = pair.sync().unwrap_err();
    assert!(error.to_string().contains("'link'"), "{error}");
}

#[test]
fn a_failure_half_way_puts_everything_back() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT RUN: needs the right to mount over a file");
        return;
    }
    let pair = Pair::new(|host| {
        for name in ["a", "dir/b", "gone", "z"] {
            write(host.join(name), name);
        }
    });
    for name in ["a", "dir/b", "z", "new/x"] {
        write(pair.guest(name), "guest");
    }
    fs::remove_file(pair.guest("gone")).unwrap();
    // A mount point cannot be renamed: the last of the replacements fails.
    let z = pair.host("z");
    if rustix::mount::mount_bind(&z, &z).is_err() {
        eprintln!("NOT RUN: needs the right to mount over a file");
        return;
    }
    let synced = pair.sync();
    rustix::mount::unmount(&z, rustix::mount::UnmountFlags::DETACH).unwrap();
    let error = synced.unwrap_err();
    assert!(error.to_string().contains("cannot put 'z' in place"), "{error}");
    assert!(error.to_string().contains("nothing was changed"), "{error}");
    for name in ["a", "dir/b", "gone", "z"] {
        assert_eq!(read(pair.host(name)), name);
    }
    assert!(!pair.host("new").exists());
    assert_eq!(counts(&pair.sync().unwrap()), (2, 3, 1));
}
