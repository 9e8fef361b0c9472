//! A guest whose kernel is somebody's own: it writes what no kernel would.

mod guest;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;

use guest::{Guest, O_RDWR, O_TRUNC, O_WRONLY, ROOT, body, errno::*, message, op};
use proptest::prelude::*;
use share::{Options, Rules, Share};

/// What tests hide and protect.
#[derive(Debug)]
struct Listed;

impl Rules for Listed {
    fn hides(&self, path: &Path) -> bool {
        let is_key = |part: &Path| {
            part.as_os_str() == ".env" || part.extension().is_some_and(|end| end == "pem")
        };
        path.iter().any(|part| is_key(Path::new(part))) || path.starts_with("secrets/deep")
    }

    fn protects(&self, path: &Path, _: bool) -> bool {
        path.components().zip(path.components().skip(1)).any(|(one, other)| {
            one.as_os_str() == ".git"
                && (other.as_os_str() == "hooks" || other.as_os_str() == "config")
        })
    }
}

fn ruled() -> Options {
    Options { rules: Arc::new(Listed), ..Options::default() }
}

/// A directory that is shared, in one that is not.
fn place() -> (tempfile::TempDir, std::path::PathBuf) {
    let outer = tempfile::tempdir().unwrap();
    fs::write(outer.path().join("canary"), "outside").unwrap();
    let shared = outer.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "inside").unwrap();
    (outer, shared)
}

fn shared(options: Options) -> (tempfile::TempDir, std::path::PathBuf, Guest) {
    let (outer, shared) = place();
    let guest = Guest::new(&shared, options);
    (outer, shared, guest)
}

#[test]
fn a_guest_reads_and_writes_what_is_shared() {
    let (_outer, shared, guest) = shared(Options::default());
    assert_eq!(guest.contents("file").unwrap(), b"inside");
    let directory = guest.mkdir(ROOT, "made").unwrap();
    let (node, handle) = guest.create(directory, "new").unwrap();
    assert_eq!(guest.write(node, handle, 0, b"hello").unwrap(), 5);
    guest.release(node, handle);
    assert_eq!(fs::read(shared.join("made/new")).unwrap(), b"hello");
    assert_eq!(fs::metadata(shared.join("made/new")).unwrap().mode() & 0o7777, 0o644);
    guest.rename(directory, "new", ROOT, "moved", 0).unwrap();
    assert_eq!(fs::read(shared.join("moved")).unwrap(), b"hello");
    let names = guest.names(ROOT).unwrap();
    for name in [".", "..", "file", "made", "moved"] {
        assert!(names.iter().any(|found| found == name), "{name} in {names:?}");
    }
    guest.unlink(ROOT, "moved").unwrap();
    assert!(!shared.join("moved").exists());
}

#[test]
fn no_name_is_more_than_one_component() {
    let (_outer, _shared, guest) = shared(Options::default());
    for name in ["..", ".", "", "a/b", "../canary", "/etc/passwd"] {
        assert_eq!(guest.look(ROOT, name), Err(EINVAL), "{name:?}");
        assert_eq!(guest.mkdir(ROOT, name), Err(EINVAL), "{name:?}");
        assert_eq!(guest.rename(ROOT, "file", ROOT, name, 0), Err(EINVAL), "{name:?}");
    }
    assert_eq!(guest.look(ROOT, &"n".repeat(256)), Err(36));
    // A name that never ends.
    assert_eq!(guest.ask(op::LOOKUP, ROOT, body().raw(b"file")), Err(EINVAL));
}

#[test]
fn a_link_is_read_and_never_followed() {
    let (outer, shared, guest) = shared(Options::default());
    symlink(outer.path().join("canary"), shared.join("absolute")).unwrap();
    symlink("..", shared.join("up")).unwrap();
    symlink("/proc/self/root", shared.join("magic")).unwrap();
    for name in ["absolute", "up", "magic"] {
        let node = guest.look(ROOT, name).unwrap();
        assert_eq!(guest.open(node, 0), Err(ELOOP), "{name}");
        assert_eq!(guest.look(node, "canary"), Err(20), "{name}");
        assert_eq!(guest.ask(op::OPENDIR, node, body().u32(0).u32(0)), Err(20), "{name}");
        assert!(guest.set(node, 8, 0, 0, 0).is_err(), "{name}");
        assert!(guest.set(node, 1, 0, 0, 0o700).is_err(), "{name}");
    }
    let node = guest.look(ROOT, "up").unwrap();
    assert_eq!(guest.ask(op::READLINK, node, body()).unwrap(), b"..");
    assert_eq!(fs::read(outer.path().join("canary")).unwrap(), b"outside");
}

#[test]
fn numbers_that_were_never_given_lead_nowhere() {
    let (_outer, _shared, guest) = shared(Options::default());
    let node = guest.look(ROOT, "file").unwrap();
    let handle = guest.open(node, 0).unwrap();
    for forged in [0, node + 1, u64::MAX, 1 << 63] {
        assert_eq!(guest.stat(forged), Err(ESTALE));
        assert_eq!(guest.look(forged, "file"), Err(ESTALE));
        assert_eq!(guest.open(forged, 0), Err(ESTALE));
        assert_eq!(guest.read(node, handle ^ forged.max(1)), Err(EBADF));
        assert_eq!(guest.link(forged, ROOT, "x"), Err(ESTALE));
    }
    // A handle is its own node's.
    assert_eq!(guest.read(ROOT, handle), Err(EBADF));
    let (other, other_handle) = guest.create(ROOT, "other").unwrap();
    assert_eq!(guest.write(node, other_handle, 0, b"x"), Err(EBADF));
    assert_eq!(guest.read(other, handle), Err(EBADF));
}

#[test]
fn what_is_forgotten_too_often_is_gone_and_the_root_never_is() {
    let (_outer, _shared, guest) = shared(Options::default());
    let node = guest.look(ROOT, "file").unwrap();
    guest.forget(node, u64::MAX);
    assert_eq!(guest.stat(node), Err(ESTALE));
    guest.forget(ROOT, u64::MAX);
    assert!(guest.stat(ROOT).is_ok());
    let again = guest.look(ROOT, "file").unwrap();
    assert_ne!(node, again, "no number comes twice");
    for _ in 0..10_000 {
        guest.forget(again, 0);
        guest.forget(7_000_000, 3);
    }
    assert!(guest.stat(again).is_ok());
    assert_eq!(guest.share.nodes(), 2);
}

#[test]
fn a_batch_that_names_more_than_it_holds_is_ignored() {
    let (_outer, _shared, guest) = shared(Options::default());
    let node = guest.look(ROOT, "file").unwrap();
    for count in [2, 1000, u32::MAX] {
        let batch = body().u32(count).u32(0).u64(node).u64(1);
        assert_eq!(guest.raw(&message(op::BATCH_FORGET, 0, 0, &batch.0)), None);
        assert!(guest.stat(node).is_ok());
    }
    let batch = body().u32(1).u32(0).u64(node).u64(1);
    assert_eq!(guest.raw(&message(op::BATCH_FORGET, 0, 0, &batch.0)), None);
    assert_eq!(guest.stat(node), Err(ESTALE));
}

#[test]
fn an_interrupt_and_an_unknown_request_change_nothing() {
    let (_outer, _shared, guest) = shared(Options::default());
    assert_eq!(guest.raw(&message(op::INTERRUPT, 9, 0, &body().u64(7).0)), None);
    for opcode in [0, 7, 33, op::SETXATTR, 39, op::TMPFILE, 52, 1 << 20, u32::MAX] {
        assert_eq!(guest.ask(opcode, ROOT, body().raw(&[0; 64])), Err(ENOSYS), "{opcode}");
    }
}

#[test]
fn lengths_that_do_not_agree_are_refused() {
    let (_outer, _shared, guest) = shared(Options::default());
    let (node, handle) = guest.create(ROOT, "new").unwrap();
    let write = |size: u32, data: &[u8]| {
        let write = body().u64(handle).u64(0).u32(size).u32(0).u64(0).u32(0).u32(0).raw(data);
        guest.ask(op::WRITE, node, write)
    };
    assert_eq!(write(100, b"short"), Err(EINVAL));
    assert_eq!(write(u32::MAX, b"short"), Err(EINVAL));
    assert_eq!(write(2, b"long"), Err(EINVAL));
    assert_eq!(guest.stat(node).unwrap().0, 0);
    let read = body().u64(handle).u64(0).u32(u32::MAX).u32(0).u64(0).u64(0);
    assert_eq!(guest.ask(op::READ, node, read), Err(EINVAL));
    // Another length than it says: nobody can be told.
    let mut lying = message(op::GETATTR, 1, ROOT, &[0; 16]);
    lying[0] += 1;
    assert_eq!(guest.raw(&lying), None);
    assert_eq!(guest.raw(&lying[..20]), None);
    assert_eq!(guest.raw(&[]), None);
}

#[test]
fn nothing_is_served_before_the_conversation_begins() {
    let (_outer, shared) = place();
    let share = Share::new(&guest::open(&shared), Options::default()).unwrap();
    let mut answer = Vec::new();
    share.serve(&message(op::LOOKUP, 3, ROOT, b"file\0"), |bytes| answer = bytes);
    assert_eq!(i32::from_ne_bytes(answer[4..8].try_into().unwrap()), -5);
}

#[test]
fn fifos_sockets_and_devices_are_seen_and_not_opened() {
    let (_outer, shared, guest) = shared(Options::default());
    rustix::fs::mknodat(
        rustix::fs::CWD,
        shared.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o666),
        0,
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(shared.join("socket")).unwrap();
    for name in ["fifo", "socket"] {
        let node = guest.look(ROOT, name).unwrap();
        // Would wait for ever if it were opened.
        for flags in [0, O_WRONLY, O_RDWR, O_RDWR | O_TRUNC] {
            assert_eq!(guest.open(node, flags), Err(EACCES), "{name}");
        }
        assert!(guest.set(node, 8, 0, 0, 0).is_err());
        assert_eq!(guest.link(node, ROOT, "second"), Err(EPERM));
        let create = body().u32(O_RDWR).u32(0o100_644).u32(0).u32(0).name(name);
        assert_eq!(guest.ask(op::CREATE, ROOT, create), Err(EACCES), "{name}");
    }
    for kind in [0o020_000, 0o060_000, 0o010_000, 0o140_000] {
        let make = body().u32(kind | 0o666).u32(0x0103).u32(0).u32(0).name("device");
        assert_eq!(guest.ask(op::MKNOD, ROOT, make), Err(EPERM));
    }
    assert!(!shared.join("device").exists());
}

#[test]
fn read_only_is_the_host_s_word() {
    let (_outer, shared) = place();
    fs::create_dir(shared.join("directory")).unwrap();
    let guest = Guest::new(&shared, Options { read_only: true, ..Options::default() });
    let node = guest.look(ROOT, "file").unwrap();
    let handle = guest.open(node, 0).unwrap();
    for flags in [O_WRONLY, O_RDWR, O_TRUNC, O_RDWR | O_TRUNC] {
        assert_eq!(guest.open(node, flags), Err(EROFS));
    }
    assert_eq!(guest.write(node, handle, 0, b"forged"), Err(EBADF));
    for valid in [1, 8, 8 | 64, 16 | 128, 32] {
        assert_eq!(guest.set(node, valid, handle, 0, 0o777), Err(EROFS), "setattr {valid}");
    }
    assert_eq!(guest.create(ROOT, "new"), Err(EROFS));
    assert_eq!(guest.mkdir(ROOT, "new"), Err(EROFS));
    assert_eq!(guest.symlink(ROOT, "new", "file"), Err(EROFS));
    assert_eq!(guest.link(node, ROOT, "new"), Err(EROFS));
    assert_eq!(guest.unlink(ROOT, "file"), Err(EROFS));
    assert_eq!(guest.ask(op::RMDIR, ROOT, body().name("directory")), Err(EROFS));
    for flags in [0, 1, 2] {
        assert_eq!(guest.rename(ROOT, "file", ROOT, "directory", flags), Err(EROFS));
    }
    let mknod = body().u32(0o100_644).u32(0).u32(0).u32(0).name("new");
    assert_eq!(guest.ask(op::MKNOD, ROOT, mknod), Err(EROFS));
    let allocate = body().u64(handle).u64(0).u64(4096).u32(0).u32(0);
    assert_eq!(guest.ask(op::FALLOCATE, node, allocate), Err(EBADF));
    let copy = body().u64(handle).u64(0).u64(node).u64(handle).u64(100).u64(6).u64(0);
    assert_eq!(guest.ask(op::COPY_FILE_RANGE, node, copy), Err(EBADF));
    assert_eq!(guest.ask(op::SETXATTR, node, body().raw(&[0; 40])), Err(ENOSYS));
    assert_eq!(guest.ask(op::TMPFILE, ROOT, body().raw(&[0; 40])), Err(ENOSYS));
    assert_eq!(fs::read(shared.join("file")).unwrap(), b"inside");
    assert_eq!(fs::read_dir(&shared).unwrap().count(), 2);
}

#[test]
fn a_handle_that_was_opened_to_read_does_not_write() {
    let (_outer, shared, guest) = shared(Options::default());
    let node = guest.look(ROOT, "file").unwrap();
    let handle = guest.open(node, 0).unwrap();
    assert_eq!(guest.write(node, handle, 0, b"forged"), Err(EBADF));
    assert_eq!(guest.set(node, 8 | 64, handle, 0, 0), Err(EBADF));
    let writer = guest.open(node, O_WRONLY).unwrap();
    assert_eq!(guest.read(node, writer), Err(EBADF));
    assert_eq!(fs::read(shared.join("file")).unwrap(), b"inside");
}

#[test]
fn what_is_masked_looks_empty_and_cannot_be_made() {
    let (_outer, shared, guest) = shared(ruled());
    fs::write(shared.join(".env"), "TOKEN=1").unwrap();
    fs::create_dir_all(shared.join("secrets/deep")).unwrap();
    fs::write(shared.join("secrets/deep/key"), "k").unwrap();
    let node = guest.look(ROOT, ".env").unwrap();
    assert_eq!(guest.stat(node).unwrap(), (0, 0o100_444));
    assert_eq!(guest.contents(".env").unwrap(), b"");
    for flags in [O_WRONLY, O_RDWR, O_TRUNC] {
        assert_eq!(guest.open(node, flags), Err(EACCES));
    }
    assert_eq!(guest.set(node, 8, 0, 0, 0), Err(EACCES));
    assert_eq!(guest.unlink(ROOT, ".env"), Err(EACCES));
    assert_eq!(guest.create(ROOT, "new.pem"), Err(EACCES));
    assert_eq!(guest.link(node, ROOT, "plain"), Err(EACCES));
    let deep = guest.walk("secrets/deep").unwrap();
    assert_eq!(guest.look(deep, "key"), Err(ENOENT));
    assert_eq!(guest.names(deep).unwrap(), Vec::<String>::new());
    assert_eq!(guest.create(deep, "key"), Err(EACCES));
    assert_eq!(fs::read(shared.join(".env")).unwrap(), b"TOKEN=1");
}

#[test]
fn a_mask_cannot_be_renamed_around() {
    let (_outer, shared, guest) = shared(ruled());
    fs::create_dir_all(shared.join("app")).unwrap();
    fs::write(shared.join("app/.env"), "TOKEN=1").unwrap();
    fs::create_dir_all(shared.join("secrets/deep")).unwrap();
    fs::write(shared.join("secrets/deep/key"), "k").unwrap();
    let app = guest.look(ROOT, "app").unwrap();
    assert_eq!(guest.rename(app, ".env", ROOT, "plain", 0), Err(EACCES));
    assert_eq!(guest.rename(ROOT, "file", app, ".env", 0), Err(EACCES));
    assert_eq!(guest.rename(ROOT, "file", app, ".env", 2), Err(EACCES));
    assert_eq!(guest.rename(app, ".env", ROOT, "file", 2), Err(EACCES));
    // The directory above, whose new name would take the mask off.
    assert_eq!(guest.rename(ROOT, "secrets", ROOT, "public", 0), Err(EACCES));
    assert_eq!(guest.rename(ROOT, "app", ROOT, "other", 0), Err(EACCES));
    assert_eq!(guest.rename(ROOT, "app", ROOT, "secrets", 2), Err(EACCES));
    assert_eq!(fs::read(shared.join("secrets/deep/key")).unwrap(), b"k");
}

#[test]
fn what_becomes_masked_is_not_read_by_an_old_handle() {
    let (_outer, shared, guest) = shared(ruled());
    fs::write(shared.join("draft"), "before").unwrap();
    let node = guest.look(ROOT, "draft").unwrap();
    let handle = guest.open(node, O_RDWR).unwrap();
    assert_eq!(guest.read(node, handle).unwrap(), b"before");
    fs::write(shared.join("draft"), "TOKEN=2").unwrap();
    fs::rename(shared.join("draft"), shared.join(".env")).unwrap();
    assert_eq!(guest.read(node, handle).unwrap(), b"");
    assert_eq!(guest.write(node, handle, 0, b"x"), Err(EACCES));
    assert_eq!(guest.open(node, 0), Err(EACCES));
    assert_eq!(guest.stat(node).unwrap().0, 0);
    assert_eq!(guest.link(node, ROOT, "plain"), Err(EACCES));
}

#[test]
fn protected_paths_are_not_changed_in_any_way() {
    let (_outer, shared, guest) = shared(ruled());
    fs::create_dir_all(shared.join(".git/hooks")).unwrap();
    fs::write(shared.join(".git/config"), "[core]").unwrap();
    fs::write(shared.join(".git/HEAD"), "ref").unwrap();
    let git = guest.look(ROOT, ".git").unwrap();
    let hooks = guest.look(git, "hooks").unwrap();
    let config = guest.look(git, "config").unwrap();
    assert_eq!(guest.contents(".git/config").unwrap(), b"[core]");
    assert_eq!(guest.open(config, O_RDWR), Err(EPERM));
    assert_eq!(guest.set(config, 8, 0, 0, 0), Err(EPERM));
    assert_eq!(guest.create(hooks, "pre-commit"), Err(EPERM));
    assert_eq!(guest.mkdir(hooks, "d"), Err(EPERM));
    assert_eq!(guest.symlink(hooks, "pre-commit", "../HEAD"), Err(EPERM));
    assert_eq!(guest.unlink(git, "config"), Err(EPERM));
    assert_eq!(guest.link(config, ROOT, "config"), Err(EPERM));
    let file = guest.look(ROOT, "file").unwrap();
    assert_eq!(guest.link(file, hooks, "pre-commit"), Err(EPERM));
    assert_eq!(guest.rename(ROOT, "file", git, "config", 0), Err(EPERM));
    assert_eq!(guest.rename(git, "config", ROOT, "mine", 0), Err(EPERM));
    let head = guest.look(git, "HEAD").unwrap();
    assert!(guest.open(head, O_RDWR).is_ok());
}

#[test]
fn a_protected_path_does_not_come_about_by_a_rename_above_it() {
    let (_outer, shared, guest) = shared(ruled());
    let made = guest.mkdir(ROOT, "g").unwrap();
    let hooks = guest.mkdir(made, "hooks").unwrap();
    let (node, handle) = guest.create(hooks, "pre-commit").unwrap();
    guest.write(node, handle, 0, b"#!/bin/sh").unwrap();
    assert_eq!(guest.rename(ROOT, "g", ROOT, ".git", 0), Err(EPERM));
    // The other way round: out, changed, and back.
    fs::create_dir_all(shared.join("real/.git/hooks")).unwrap();
    assert_eq!(guest.rename(ROOT, "real", ROOT, "x", 0), Err(EPERM));
    let real = guest.look(ROOT, "real").unwrap();
    assert_eq!(guest.rename(real, ".git", ROOT, "y", 0), Err(EPERM));
    assert_eq!(guest.rename(real, ".git", ROOT, "g", 2), Err(EPERM));
    assert!(!shared.join(".git").exists());
}

#[test]
fn what_the_host_moves_to_a_protected_path_is_not_written_by_an_old_handle() {
    let (_outer, shared, guest) = shared(ruled());
    fs::create_dir(shared.join(".git")).unwrap();
    fs::write(shared.join(".git/config.lock"), "[core]").unwrap();
    let node = guest.walk(".git/config.lock").unwrap();
    let handle = guest.open(node, O_RDWR).unwrap();
    fs::rename(shared.join(".git/config.lock"), shared.join(".git/config")).unwrap();
    assert_eq!(guest.write(node, handle, 0, b"fsmonitor"), Err(EPERM));
    assert_eq!(fs::read(shared.join(".git/config")).unwrap(), b"[core]");
}

#[test]
fn what_the_host_moves_out_is_out_of_reach() {
    let (outer, shared, guest) = shared(Options::default());
    fs::create_dir(shared.join("directory")).unwrap();
    fs::write(shared.join("directory/inner"), "x").unwrap();
    let directory = guest.look(ROOT, "directory").unwrap();
    let inner = guest.look(directory, "inner").unwrap();
    let handle = guest.open(inner, O_RDWR).unwrap();
    fs::rename(shared.join("directory"), outer.path().join("away")).unwrap();
    assert_eq!(guest.look(directory, "inner"), Err(ESTALE));
    assert_eq!(guest.create(directory, "new"), Err(ESTALE));
    assert_eq!(guest.open(inner, 0), Err(ESTALE));
    assert_eq!(guest.read(inner, handle), Err(ESTALE));
    assert_eq!(guest.write(inner, handle, 0, b"y"), Err(ESTALE));
    // The directory itself may move: what is shared is it, and not its path.
    fs::rename(&shared, outer.path().join("renamed")).unwrap();
    assert_eq!(guest.contents("file").unwrap(), b"inside");
}

#[test]
fn a_file_that_has_a_name_elsewhere_is_not_written() {
    let (outer, shared, guest) = shared(Options::default());
    fs::hard_link(outer.path().join("canary"), shared.join("linked")).unwrap();
    let node = guest.look(ROOT, "linked").unwrap();
    assert_eq!(guest.contents("linked").unwrap(), b"outside");
    for flags in [O_WRONLY, O_RDWR, O_RDWR | O_TRUNC] {
        assert_eq!(guest.open(node, flags), Err(EPERM));
    }
    assert_eq!(guest.set(node, 8, 0, 0, 0), Err(EPERM));
    assert_eq!(guest.set(node, 1, 0, 0, 0o777), Err(EPERM));
    assert_eq!(guest.link(node, ROOT, "third"), Err(EPERM));
    assert_eq!(fs::read(outer.path().join("canary")).unwrap(), b"outside");
    // Its own second names are its own.
    let file = guest.look(ROOT, "file").unwrap();
    guest.link(file, ROOT, "second").unwrap();
    assert!(guest.open(file, O_RDWR).is_ok());
}

#[test]
fn links_that_lead_out_are_not_made_and_do_not_come_about() {
    let (_outer, _shared, guest) = shared(Options::default());
    let deep = guest.mkdir(ROOT, "deep").unwrap();
    for target in ["/etc/passwd", "..", "../canary", "a/../../canary"] {
        assert_eq!(guest.symlink(ROOT, "link", target), Err(EPERM), "{target}");
    }
    guest.symlink(deep, "up", "../file").unwrap();
    assert_eq!(guest.rename(deep, "up", ROOT, "up", 0), Err(EPERM));
    let inner = guest.mkdir(deep, "inner").unwrap();
    guest.symlink(inner, "up", "../../file").unwrap();
    assert_eq!(guest.rename(deep, "inner", ROOT, "inner", 0), Err(EPERM));
    guest.rename(ROOT, "deep", ROOT, "other", 0).unwrap();
}

#[test]
fn modes_have_permissions_and_nothing_above() {
    let (_outer, shared, guest) = shared(Options::default());
    let make = body().u32(0o106_755).u32(0).u32(0).u32(0).name("suid");
    guest.ask(op::MKNOD, ROOT, make).unwrap();
    let node = guest.look(ROOT, "suid").unwrap();
    guest.set(node, 1, 0, 0, 0o106_711).unwrap();
    assert_eq!(fs::metadata(shared.join("suid")).unwrap().mode() & 0o7777, 0o711);
    // One of the host's is not written into, whoever the host is.
    fs::set_permissions(shared.join("file"), fs::Permissions::from_mode(0o4755)).unwrap();
    let node = guest.look(ROOT, "file").unwrap();
    assert_eq!(guest.stat(node).unwrap().1, 0o100_755);
    assert_eq!(guest.open(node, O_RDWR), Err(EPERM));
}

#[test]
fn no_more_is_added_than_may_be() {
    let options = Options { quota: Some(64 << 10), ..Options::default() };
    let (_outer, shared, guest) = shared(options);
    let (node, handle) = guest.create(ROOT, "big").unwrap();
    assert_eq!(guest.write(node, handle, 0, &[1; 50_000]).unwrap(), 50_000);
    assert_eq!(guest.write(node, handle, 50_000, &[1; 20_000]), Err(EDQUOT));
    assert_eq!(guest.write(node, handle, u64::MAX - 5, &[1; 3]), Err(EDQUOT));
    assert_eq!(guest.set(node, 8, 0, 1 << 40, 0), Err(EDQUOT));
    let allocate = body().u64(handle).u64(0).u64(1 << 40).u32(1).u32(0);
    assert_eq!(guest.ask(op::FALLOCATE, node, allocate), Err(EDQUOT));
    let copy = body().u64(handle).u64(0).u64(node).u64(handle).u64(50_000).u64(50_000).u64(0);
    assert_eq!(guest.ask(op::COPY_FILE_RANGE, node, copy), Err(EDQUOT));
    assert_eq!(fs::metadata(shared.join("big")).unwrap().len(), 50_000);
    // What is over is given back, and what is only without a name is not.
    guest.unlink(ROOT, "big").unwrap();
    assert_eq!(
        guest
            .create(ROOT, "next")
            .and_then(|(node, handle)| { guest.write(node, handle, 0, &[1; 50_000]) }),
        Err(EDQUOT)
    );
    guest.release(node, handle);
    let (node, handle) = guest.create(ROOT, "last").unwrap();
    assert_eq!(guest.write(node, handle, 0, &[1; 40_000]).unwrap(), 40_000);
}

#[test]
fn names_are_not_free_either() {
    let options = Options { quota: Some(64 << 10), ..Options::default() };
    let (_outer, _shared, guest) = shared(options);
    let made = (0..100).take_while(|number| guest.mkdir(ROOT, &format!("d{number}")).is_ok());
    assert_eq!(made.count(), 16);
}

#[test]
fn nodes_and_handles_are_bounded() {
    let options = Options { nodes: 64, handles: 16, ..Options::default() };
    let (_outer, shared, guest) = shared(options);
    for number in 0..100 {
        fs::write(shared.join(format!("f{number}")), "").unwrap();
    }
    let known = (0..100).take_while(|number| guest.look(ROOT, &format!("f{number}")).is_ok());
    assert_eq!(known.count(), 63);
    assert_eq!(guest.look(ROOT, "f99"), Err(ENFILE));
    let node = guest.look(ROOT, "f0").unwrap();
    let opened = (0..100).take_while(|_| guest.open(node, 0).is_ok()).count();
    assert_eq!(opened, 16);
    assert_eq!(guest.share.handles(), 16);
}

#[test]
fn what_a_guest_has_open_ends_with_its_conversation() {
    let (_outer, _shared, guest) = shared(Options::default());
    let node = guest.look(ROOT, "file").unwrap();
    let handle = guest.open(node, 0).unwrap();
    let init = body().u32(7).u32(41).u32(0).u32(0).u32(0).raw(&[0; 44]);
    guest.ask(op::INIT, 0, init).unwrap();
    assert_eq!((guest.share.nodes(), guest.share.handles()), (1, 0));
    assert_eq!(guest.read(node, handle), Err(EBADF));
}

/// Requests that are nearly right, in any order.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let node = prop_oneof![Just(1_u64), 0..12_u64, any::<u64>()];
    let field = prop_oneof![0..12_u64, any::<u64>()];
    let name = prop_oneof![
        Just("file"),
        Just("a"),
        Just("b"),
        Just(".env"),
        Just(".git"),
        Just("hooks"),
        Just(".."),
        Just("../canary"),
        Just("link"),
    ];
    let tail = prop::collection::vec((field, name), 0..3);
    (0..55_u32, node, prop::collection::vec(any::<u8>(), 0..100), tail, 0..4_usize).prop_map(
        |(opcode, node, noise, tail, numbers)| {
            let mut bytes = body();
            for (number, _) in tail.iter().cycle().take(if tail.is_empty() { 0 } else { numbers }) {
                bytes = bytes.u64(*number);
            }
            for (_, name) in &tail {
                bytes = bytes.name(name);
            }
            if tail.is_empty() {
                bytes = bytes.raw(&noise);
            }
            message(opcode, 77, node, &bytes.0)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn nothing_that_a_guest_writes_reaches_beyond_the_directory(
        requests in prop::collection::vec(request(), 1..60),
    ) {
        let (outer, shared) = place();
        symlink("../canary", shared.join("link")).unwrap();
        fs::write(shared.join(".env"), "TOKEN").unwrap();
        let guest = Guest::new(&shared, ruled());
        for request in &requests {
            let answer = guest.raw(request).unwrap_or_default();
            let has = |word: &[u8]| answer.windows(word.len()).any(|found| found == word);
            prop_assert!(!has(b"outside") && !has(b"TOKEN"));
        }
        prop_assert_eq!(fs::read(outer.path().join("canary")).unwrap(), b"outside");
        prop_assert_eq!(fs::read(shared.join(".env")).unwrap(), b"TOKEN");
        prop_assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 2);
    }

    #[test]
    fn bytes_that_are_no_request_harm_nothing(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let (_outer, shared) = place();
        let guest = Guest::new(&shared, Options::default());
        let _ = guest.raw(&bytes);
        let mut framed = bytes;
        if framed.len() >= 40 {
            let length = u32::try_from(framed.len()).unwrap();
            framed[..4].copy_from_slice(&length.to_ne_bytes());
            let _ = guest.raw(&framed);
        }
        prop_assert!(guest.stat(ROOT).is_ok());
    }
}
