//! What a hostile guest sends is refused by name, and nothing is half-written.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use tar::{EntryType, Header};
use workspace::{Limits, OutsideLinks, UnpackError, UnpackOptions, Why, unpack};

/// A header as a hostile guest writes it: no check, any bytes.
fn header(kind: EntryType, name: &[u8], target: &[u8], size: u64, mode: u32) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(1);
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn file(name: &str, content: &str) -> Vec<u8> {
    let mut member = header(EntryType::Regular, name.as_bytes(), b"", content.len() as u64, 0o644);
    member.extend_from_slice(content.as_bytes());
    member.resize(member.len().next_multiple_of(512), 0);
    member
}

fn directory(name: &str) -> Vec<u8> {
    header(EntryType::Directory, name.as_bytes(), b"", 0, 0o755)
}

fn link(name: &str, target: &str) -> Vec<u8> {
    header(EntryType::Symlink, name.as_bytes(), target.as_bytes(), 0, 0o777)
}

fn hard_link(name: &str, target: &str) -> Vec<u8> {
    header(EntryType::Link, name.as_bytes(), target.as_bytes(), 0, 0o644)
}

fn special(kind: EntryType, name: &str) -> Vec<u8> {
    header(kind, name.as_bytes(), b"", 0, 0o644)
}

fn long_name(name: &[u8]) -> Vec<u8> {
    let mut member = header(EntryType::GNULongName, b"././@LongLink", b"", name.len() as u64, 0);
    member.extend_from_slice(name);
    member.resize(member.len().next_multiple_of(512), 0);
    member.extend(file("short", "x"));
    member
}

fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    [members.concat(), vec![0; 1024]].concat()
}

/// A place with a destination and something beside it that must not change.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("victim"), "safe").unwrap();
        Self { directory }
    }

    fn unpack(
        &self,
        tar: &[u8],
        options: UnpackOptions,
    ) -> Result<workspace::Unpacked, UnpackError> {
        unpack(&mut &tar[..], &self.directory.path().join("out"), &options, &mut |_| {})
    }

    fn listing(&self) -> Vec<OsString> {
        listing(self.directory.path())
    }

    /// Nothing was made, nothing was changed.
    fn assert_untouched(&self) {
        assert_eq!(self.listing(), ["victim"]);
        assert_eq!(fs::read(self.directory.path().join("victim")).unwrap(), b"safe");
    }
}

fn listing(directory: &Path) -> Vec<OsString> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

#[test]
fn hostile_archives_are_refused_and_leave_nothing() {
    let too_long = [b"a/".repeat(2100), b"x".to_vec()].concat();
    let table: &[(&[Vec<u8>], &str)] = &[
        (&[file("/etc/passwd", "x")], "'/etc/passwd', which is refused: the name is absolute"),
        (&[file("../victim", "x")], "'../victim', which is refused: the name has a '..'"),
        (&[directory("d"), file("d/../../victim", "x")], "'d/../../victim'"),
        (&[file("d/..", "x")], "'..' component"),
        (&[link("l", "/etc")], "the symbolic link 'l' to '/etc' leads out"),
        (&[link("l", "../victim")], "'l' to '../victim' leads out"),
        (&[directory("d"), link("d/l", "../../x")], "'d/l' to '../../x' leads out"),
        // Each alone stays inside; one through the other does not.
        (
            &[directory("d"), directory("d/e"), link("d/e/up", "../.."), link("l", "d/e/up/../x")],
            "'l' to 'd/e/up/../x' leads out",
        ),
        // Told before what it goes through.
        (&[link("a", "b/../x"), directory("d"), link("b", "d/../.")], "'a' to 'b/../x' leads out"),
        (&[link("l", "."), file("l/x", "x")], "'l/x' in place: what it is in is not a directory"),
        (&[link("l", ".."), file("l/victim", "x")], "cannot put 'l/victim' in place"),
        (&[link("l", "victim"), file("l", "x")], "a symbolic link is already there"),
        (&[file("f", "1"), file("f", "2")], "'f' in place: a file is already there"),
        (&[directory("d"), directory("d")], "'d' in place: a directory is already there"),
        (&[directory("d"), link("d", "..")], "'d' in place: a directory is already there"),
        (&[file("d", "1"), directory("d")], "'d' in place: a file is already there"),
        (&[hard_link("h", "../victim")], "the hard link 'h' to '../victim' is refused"),
        (&[hard_link("h", "/etc/shadow")], "the hard link 'h' to '/etc/shadow' is refused"),
        (&[hard_link("h", "later"), file("later", "x")], "'later' is not a file of this tree"),
        (&[link("l", "."), hard_link("h", "l/x")], "'l/x' is not a file of this tree"),
        (&[link("l", "x"), hard_link("h", "l")], "'l' is not a file of this tree"),
        (&[directory("d"), hard_link("h", "d")], "'d' is not a file of this tree"),
        (&[special(EntryType::Char, "null")], "'null' is a character device"),
        (&[special(EntryType::Block, "sda")], "'sda' is a block device"),
        (&[special(EntryType::Fifo, "pipe")], "'pipe' is a FIFO"),
        (&[special(EntryType::GNUSparse, "s")], "'s' is a sparse file"),
        (&[file("orphan/x", "x")], "cannot put 'orphan/x' in place"),
        (&[long_name(&too_long)], "longer than 4095 bytes"),
        (&[long_name(&[b'x'; 256])], "longer than 255 bytes"),
        (&[file("\u{1b}]0;x\u{7}/../y", "x")], "'\\u{1b}]0;x\\u{7}/../y'"),
    ];
    for (members, expected) in table {
        for honest in [Vec::new(), file("honest", "content")] {
            let place = Place::new();
            let tar = archive(&[&[honest][..], members].concat());
            let error = place.unpack(&tar, UnpackOptions::default()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!error.chars().any(char::is_control), "{error:?}");
            place.assert_untouched();
        }
    }
}

#[test]
fn an_archive_that_stops_half_way_leaves_nothing() {
    let tar = archive(&[directory("d"), file("d/f", &"x".repeat(2000)), link("l", "d")]);
    for length in (0..tar.len()).step_by(100).chain([tar.len() - 512, tar.len() - 1]) {
        let place = Place::new();
        let error = place.unpack(&tar[..length], UnpackOptions::default()).unwrap_err();
        assert!(error.to_string().contains("ends too early"), "{length}: {error}");
        place.assert_untouched();
    }
}

#[test]
fn a_stream_that_fails_leaves_nothing() {
    struct Failing(bool);
    impl Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if std::mem::replace(&mut self.0, true) {
                return Err(io::Error::other("the machine is gone"));
            }
            let tar = file("f", &"x".repeat(900));
            buffer[..1000].copy_from_slice(&tar[..1000]);
            Ok(1000)
        }
    }
    let place = Place::new();
    let out = place.directory.path().join("out");
    let error = unpack(&mut Failing(false), &out, &UnpackOptions::default(), &mut |_| {});
    assert!(error.unwrap_err().to_string().contains("the machine is gone"));
    place.assert_untouched();
}

#[test]
fn every_limit_is_kept_and_named() {
    let tar = archive(&[directory("d"), file("d/a", "12345"), file("d/b", "12345")]);
    for (limits, expected) in [
        (Limits { entries: 2, ..Limits::default() }, "more than 2 entries"),
        (Limits { bytes: 9, ..Limits::default() }, "more than 9 bytes"),
        (Limits { names: 6, ..Limits::default() }, "more than 6 bytes"),
        (Limits { depth: 1, ..Limits::default() }, "'d/a' is more than 1 directories deep"),
    ] {
        let place = Place::new();
        let options = UnpackOptions { limits, ..UnpackOptions::default() };
        let error = place.unpack(&tar, options).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        place.assert_untouched();
    }
    // A size that lies is met before anything is written.
    let huge = header(EntryType::Regular, b"huge", b"", 1 << 50, 0o644);
    let error = Place::new().unpack(&huge, UnpackOptions::default()).unwrap_err();
    assert!(matches!(error, UnpackError::TooManyBytes { .. }), "{error}");
}

#[test]
fn links_that_leave_can_be_left_out_instead() {
    let place = Place::new();
    let tar = archive(&[file("f", "x"), link("in", "f"), link("out", "/usr/bin/python3")]);
    let options =
        UnpackOptions { outside_links: OutsideLinks::LeaveOut, ..UnpackOptions::default() };
    let unpacked = place.unpack(&tar, options).unwrap();
    assert_eq!(listing(&place.directory.path().join("out")), ["f", "in"]);
    assert_eq!(place.listing(), ["out", "victim"]);
    assert_eq!(unpacked.held_back[0].name.to_string(), "out");
    assert_eq!(unpacked.held_back[0].why, Why::LeavesTree);
}

#[test]
fn harmless_oddities_are_taken() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let place = Place::new();
    let setuid = header(EntryType::Regular, b"setuid", b"", 0, 0o6755);
    let tar = archive(&[
        directory("."),
        setuid,
        file("tab\tand\nnewline", "x"),
        link("circle", "circle"),
        link("dangling", "nothing/there"),
        header(EntryType::Directory, b"locked", b"", 0, 0o555),
        file("locked/f", "x"),
    ]);
    place.unpack(&tar, UnpackOptions::default()).unwrap();
    let out = place.directory.path().join("out");
    assert_eq!(fs::metadata(out.join("setuid")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(out.join("locked")).unwrap().mode() & 0o7777, 0o555);
    fs::set_permissions(out.join("locked"), fs::Permissions::from_mode(0o755)).unwrap();
    let names = ["circle", "dangling", "locked", "setuid", "tab\tand\nnewline"];
    assert_eq!(listing(&out), names);
}

#[test]
fn an_empty_directory_is_filled_and_stays_the_same_directory() {
    use std::os::unix::fs::MetadataExt as _;
    let place = Place::new();
    let out = place.directory.path().join("out");
    fs::create_dir(&out).unwrap();
    let inode = fs::metadata(&out).unwrap().ino();
    place.unpack(&archive(&[directory("d"), file("d/f", "x")]), UnpackOptions::default()).unwrap();
    assert_eq!(fs::metadata(&out).unwrap().ino(), inode);
    assert_eq!(fs::read(out.join("d/f")).unwrap(), b"x");
    assert_eq!(place.listing(), ["out", "victim"]);
}

#[test]
fn a_directory_with_something_in_it_is_refused_unless_merged() {
    let place = Place::new();
    let out = place.directory.path().join("out");
    fs::create_dir_all(out.join("d")).unwrap();
    fs::create_dir_all(out.join("other")).unwrap();
    fs::write(out.join("d/mine"), "kept").unwrap();
    fs::write(out.join("f"), "old").unwrap();
    std::os::unix::fs::symlink("../victim", out.join("l")).unwrap();
    let members = [
        directory("d"),
        file("d/new", "1"),
        file("f", "2"),
        file("l", "3"),
        directory(".git"),
        file(".git/config", "evil"),
        file(".git/HEAD", "ref"),
    ];
    let tar = archive(&members);
    let error = place.unpack(&tar, UnpackOptions::default()).unwrap_err();
    assert!(matches!(error, UnpackError::NotEmpty { .. }), "{error}");
    let merge = UnpackOptions { merge: true, ..UnpackOptions::default() };
    // A refusal in the middle changes nothing.
    let refused = archive(&[&members[..], &[file("other", "x")]].concat());
    let error = place.unpack(&refused, merge).unwrap_err();
    assert!(matches!(error, UnpackError::Occupied { .. }), "{error}");
    assert_eq!(fs::read(out.join("f")).unwrap(), b"old");
    // So does a link that is inside by what came and outside by what is there.
    std::os::unix::fs::symlink("..", out.join("up")).unwrap();
    let error = place.unpack(&archive(&[link("n", "up/victim")]), merge).unwrap_err();
    assert!(matches!(error, UnpackError::LinkLeaves { .. }), "{error}");
    let unpacked = place.unpack(&tar, merge).unwrap();
    assert_eq!(unpacked.held_back[0].name.to_string(), ".git/config");
    assert_eq!(listing(&out), [".git", "d", "f", "l", "other", "up"]);
    assert_eq!(listing(&out.join(".git")), ["HEAD"]);
    assert_eq!(fs::read(out.join("d/mine")).unwrap(), b"kept");
    assert_eq!(fs::read(out.join("f")).unwrap(), b"2");
    assert_eq!(fs::read(out.join("l")).unwrap(), b"3");
    assert_eq!(fs::read(place.directory.path().join("victim")).unwrap(), b"safe");
    assert_eq!(place.listing(), ["out", "victim"]);
}

#[test]
fn a_destination_that_is_no_directory_is_named() {
    let place = Place::new();
    let tar = archive(&[]);
    for out in ["victim", "no/such/out"] {
        let out = place.directory.path().join(out);
        let error = unpack(&mut &tar[..], &out, &UnpackOptions::default(), &mut |_| {});
        let error = error.unwrap_err().to_string();
        assert!(error.contains(out.to_str().unwrap()), "{error}");
    }
    place.assert_untouched();
}

#[test]
fn a_full_disk_leaves_nothing() {
    let disk = tempfile::tempdir().unwrap();
    let flags = rustix::mount::MountFlags::empty();
    if rustix::mount::mount("tmpfs", disk.path(), "tmpfs", flags, Some(c"size=256k")).is_err() {
        eprintln!("NOT RUN: a full disk needs the right to mount a tmpfs");
        return;
    }
    let tar = archive(&[file("small", "x"), directory("d"), file("d/big", &"x".repeat(300 << 10))]);
    let error =
        unpack(&mut &tar[..], &disk.path().join("out"), &UnpackOptions::default(), &mut |_| {});
    let left = listing(disk.path());
    rustix::mount::unmount(disk.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    let error = error.unwrap_err();
    assert!(matches!(error, UnpackError::NoSpace { .. }), "{error}");
    assert!(error.to_string().contains("no space for 'd/big'"), "{error}");
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_mount_point_is_filled_from_within() {
    let place = Place::new();
    let out = place.directory.path().join("out");
    fs::create_dir(&out).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    if rustix::mount::mount("tmpfs", &out, "tmpfs", flags, None).is_err() {
        eprintln!("NOT RUN: needs the right to mount a tmpfs");
        return;
    }
    let unpacked = place.unpack(&archive(&[file("f", "x")]), UnpackOptions::default());
    let left = listing(&out);
    rustix::mount::unmount(&out, rustix::mount::UnmountFlags::DETACH).unwrap();
    unpacked.unwrap();
    assert_eq!(left, ["f"]);
}
