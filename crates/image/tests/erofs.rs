//! Images against two judges that are not ours: `fsck.erofs` of erofs-utils, and the kernel.

use image::erofs::{self, Limits, Superblock, WriteError};
use image::tar::TarError;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a judge finds at one path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    File { contents: Contents, mode: u32, links: u64 },
    Dir { mode: u32 },
    Symlink(PathBuf),
    Other,
}

/// Bytes that a failed assertion does not print by the thousand.
#[derive(Clone, PartialEq, Eq)]
struct Contents(Vec<u8>);

impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes {:?}…", self.0.len(), &self.0[..self.0.len().min(8)])
    }
}

fn convert(tar: &[u8]) -> Result<Vec<u8>, WriteError> {
    let mut image = Cursor::new(Vec::new());
    erofs::from_tar(tar, &mut image, Limits::default())?;
    Ok(image.into_inner())
}

fn walk(root: &Path) -> BTreeMap<PathBuf, Found> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            // Not setuid and its kin: fsck.erofs loses them as it changes the owner last.
            let mode = meta.permissions().mode() & 0o777;
            let what = if meta.is_dir() {
                dirs.push(path.clone());
                Found::Dir { mode }
            } else if meta.is_symlink() {
                Found::Symlink(fs::read_link(&path).unwrap())
            } else if meta.is_file() {
                Found::File {
                    contents: Contents(fs::read(&path).unwrap()),
                    mode,
                    links: meta.nlink(),
                }
            } else {
                Found::Other
            };
            found.insert(path.strip_prefix(root).unwrap().to_path_buf(), what);
        }
    }
    found
}

/// A message past the test harness, which keeps what passing tests print.
fn say(message: &str) {
    std::io::stderr().write_all(format!("\n*** {message}\n").as_bytes()).unwrap();
}

/// What `fsck.erofs --extract` makes of the image. Fails when it is not installed: a test that
/// passes without its judge has shown nothing.
fn fsck(image: &[u8]) -> Option<BTreeMap<PathBuf, Found>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    fs::write(&path, image).unwrap();
    let out = dir.path().join("out");
    let mut command = Command::new("fsck.erofs");
    match command.arg(format!("--extract={}", out.display())).arg(&path).output() {
        Ok(done) => {
            let log = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(done.status.success(), "fsck.erofs refuses the image: {log}");
            Some(walk(&out))
        }
        Err(_) if std::env::var_os("SANDFORGE_TEST_WITHOUT_FSCK").is_some() => {
            say(
                "fsck.erofs is missing: the image was NOT checked, as SANDFORGE_TEST_WITHOUT_FSCK asks",
            );
            None
        }
        Err(e) => panic!(
            "fsck.erofs: {e}; apt-get install erofs-utils, or set SANDFORGE_TEST_WITHOUT_FSCK=1 to go without"
        ),
    }
}

/// Runs `look` on the image mounted by this machine's kernel, where we may do that.
fn mounted(image: &[u8], look: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    fs::write(&path, image).unwrap();
    let at = dir.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let mount = Command::new("mount")
        .args(["-t", "erofs", "-o", "loop,ro,nosuid,nodev"])
        .args([&path, &at])
        .output()
        .unwrap();
    let kernel_has_it =
        fs::read_to_string("/proc/filesystems").unwrap_or_default().contains("\terofs\n");
    if !rustix::process::geteuid().is_root() || !kernel_has_it {
        say("no root, or no erofs in this kernel: the image was NOT mounted");
        return;
    }
    assert!(mount.status.success(), "{}", String::from_utf8_lossy(&mount.stderr));
    let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(&at)));
    assert!(Command::new("umount").arg(&at).status().unwrap().success());
    seen.unwrap();
}

#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn raw(mut self, kind: u8, path: &[u8], link: &[u8], mode: u32, data: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path);
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        header.set_entry_type(tar::EntryType::new(kind));
        if matches!(kind, b'3' | b'4') {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }
    fn file(self, path: &str, mode: u32, data: &[u8]) -> Self {
        self.raw(b'0', path.as_bytes(), b"", mode, data)
    }
    fn dir(self, path: &str, mode: u32) -> Self {
        self.raw(b'5', path.as_bytes(), b"", mode, b"")
    }
    fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(b'2', path.as_bytes(), target.as_bytes(), 0o777, b"")
    }
    fn hard_link(self, path: &str, target: &str) -> Self {
        self.raw(b'1', path.as_bytes(), target.as_bytes(), 0o644, b"")
    }
    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let bare = key.len() + value.len() + 3;
            let mut len = bare + bare.to_string().len();
            len = bare + len.to_string().len();
            data.extend_from_slice(format!("{len} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(b'x', b"pax", b"", 0o644, &data)
    }
    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn file(contents: &[u8], mode: u32) -> Found {
    Found::File { contents: Contents(contents.to_vec()), mode: mode & 0o777, links: 1 }
}

#[test]
fn fsck_extracts_what_the_archive_holds() {
    let big = vec![7_u8; 3 * 4096 + 5];
    let image = convert(
        &Archive::default()
            .dir("./", 0o755)
            .dir("./etc/", 0o750)
            .file("./etc/hosts", 0o644, b"localhost\n")
            .file("./bin/su", 0o4755, &big)
            .file("./empty", 0o600, b"")
            .file("./block", 0o600, &[1; 4096])
            .symlink("./sh", "/bin/su")
            .end(),
    )
    .unwrap();
    let Some(found) = fsck(&image) else { return };
    assert_eq!(found[Path::new("etc")], Found::Dir { mode: 0o750 });
    assert_eq!(found[Path::new("etc/hosts")], file(b"localhost\n", 0o644));
    assert_eq!(found[Path::new("bin")], Found::Dir { mode: 0o755 }, "a missing parent");
    assert_eq!(found[Path::new("bin/su")], file(&big, 0o4755));
    assert_eq!(found[Path::new("empty")], file(b"", 0o600));
    assert_eq!(found[Path::new("block")], file(&[1; 4096], 0o600));
    assert_eq!(found[Path::new("sh")], Found::Symlink("/bin/su".into()));
    assert_eq!(found.len(), 7);
}

#[test]
fn the_kernel_sees_links_owners_times_and_attributes() {
    let image = convert(
        &Archive::default()
            .pax(&[
                ("uid", b"100000"),
                ("gid", b"70000"),
                ("mtime", b"1600000000.5"),
                ("SCHILY.xattr.user.note", b"a\0b\nc"),
                (
                    "SCHILY.xattr.security.capability",
                    &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                ),
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ])
            .file("one", 0o755, &[9; 5000])
            .file("su", 0o6755, b"")
            .dir("tmp", 0o1777)
            .hard_link("two", "./one")
            .hard_link("sub/three", "/two")
            .dir("sub/deeper", 0o700)
            .raw(b'6', b"pipe", b"", 0o600, b"")
            .end(),
    )
    .unwrap();
    mounted(&image, |root| {
        let meta = root.join("sub/three").metadata().unwrap();
        assert_eq!((meta.nlink(), meta.ino()), (3, root.join("one").metadata().unwrap().ino()));
        assert_eq!((meta.uid(), meta.gid()), (100_000, 70_000));
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_600_000_000, 500_000_000));
        assert_eq!(fs::read(root.join("two")).unwrap(), vec![9; 5000]);
        assert_eq!(root.join("sub").metadata().unwrap().nlink(), 3);
        assert_eq!(root.metadata().unwrap().nlink(), 4);
        assert_eq!(root.join("su").metadata().unwrap().mode(), 0o106_755);
        assert_eq!(root.join("tmp").metadata().unwrap().mode(), 0o041_777);
        let get = |name: &str| {
            let mut value = [0; 64];
            rustix::fs::getxattr(root.join("one"), name, &mut value).map(|n| value[..n].to_vec())
        };
        assert_eq!(get("user.note").unwrap(), b"a\0b\nc");
        assert_eq!(get("security.capability").unwrap().len(), 20);
        assert_eq!(get("trusted.overlay.opaque"), Err(rustix::io::Errno::NODATA));
    });
}

#[test]
fn the_kernel_finds_every_name_of_a_large_directory() {
    let names: Vec<String> =
        (0..3000).map(|i| format!("{}{i}", ["!", "-", ".", "..", "a", "é"][i % 6])).collect();
    let archive =
        names.iter().fold(Archive::default(), |a, name| a.file(&format!("d/{name}"), 0o644, b"x"));
    let image = convert(&archive.end()).unwrap();
    mounted(&image, |root| {
        for name in &names {
            assert!(root.join("d").join(name).is_file(), "{name}");
        }
        assert_eq!(fs::read_dir(root.join("d")).unwrap().count(), names.len());
    });
    let Some(found) = fsck(&image) else { return };
    assert_eq!(found.len(), names.len() + 1);
}

#[test]
fn attributes_may_fill_more_than_a_block() {
    let value = vec![b'v'; 9000];
    let image = convert(
        &Archive::default()
            .pax(&[("SCHILY.xattr.user.big", &value), ("SCHILY.xattr.user.more", &value)])
            .file("f", 0o644, b"contents")
            .file("g", 0o644, b"next")
            .end(),
    )
    .unwrap();
    mounted(&image, |root| {
        let mut got = vec![0; 20_000];
        let n = rustix::fs::getxattr(root.join("f"), "user.more", &mut got[..]).unwrap();
        assert_eq!(&got[..n], value);
        assert_eq!(fs::read(root.join("f")).unwrap(), b"contents");
        assert_eq!(fs::read(root.join("g")).unwrap(), b"next");
    });
}

#[test]
fn the_later_of_two_entries_wins() {
    let image = convert(
        &Archive::default()
            .file("a", 0o644, b"old")
            .file("d/below", 0o644, b"gone")
            .file("kept/x", 0o644, b"x")
            .file("a", 0o600, b"new")
            .file("d", 0o644, b"file now")
            .dir("kept", 0o711)
            .end(),
    )
    .unwrap();
    let Some(found) = fsck(&image) else { return };
    assert_eq!(found[Path::new("a")], file(b"new", 0o600));
    assert_eq!(found[Path::new("d")], file(b"file now", 0o644));
    assert_eq!(found[Path::new("kept")], Found::Dir { mode: 0o711 });
    assert_eq!(found[Path::new("kept/x")], file(b"x", 0o644));
}

#[test]
fn devices_are_left_out_and_counted() {
    let tar = Archive::default()
        .raw(b'3', b"dev/null", b"", 0o666, b"")
        .raw(b'4', b"dev/sda", b"", 0o666, b"")
        .end();
    let summary = erofs::from_tar(&tar[..], Cursor::new(Vec::new()), Limits::default()).unwrap();
    assert_eq!((summary.devices_skipped, summary.inodes), (2, 1));
}

#[test]
fn equal_archives_make_equal_images() {
    let one = Archive::default().file("a", 0o644, b"1").file("b", 0o644, b"2").end();
    let other = Archive::default().file("b", 0o644, b"2").file("a", 0o644, b"1").end();
    // Inline contents: the order of arrival leaves no trace.
    assert_eq!(convert(&one).unwrap(), convert(&other).unwrap());
}

#[test]
fn names_and_sparse_files_of_gnu_tar_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    fs::create_dir(dir.path().join("d".repeat(120))).unwrap();
    fs::write(dir.path().join(&long), "long").unwrap();
    std::os::unix::fs::symlink("t".repeat(300), dir.path().join("link")).unwrap();
    let mut sparse = File::create(dir.path().join("sparse")).unwrap();
    for i in 0..40_u64 {
        std::io::Seek::seek(&mut sparse, std::io::SeekFrom::Start(i * 100_000)).unwrap();
        sparse.write_all(b"data").unwrap();
    }
    sparse.set_len(5_000_000).unwrap();
    let expected = walk(dir.path());
    for format in ["gnu", "pax"] {
        let tar = Command::new("tar")
            .args(["--sparse", "-c", "--format", format, "-C"])
            .args([dir.path(), Path::new(".")])
            .output()
            .unwrap();
        assert!(tar.stdout.len() < 1_000_000, "tar did not store the file sparsely");
        let image = convert(&tar.stdout).unwrap();
        let Some(found) = fsck(&image) else { return };
        assert_eq!(found, expected, "{format}");
    }
}

#[test]
fn a_tree_made_by_the_kernel_comes_back_in_every_tar_format() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    fs::write(dir.path().join("a/b/c"), vec![3; 10_000]).unwrap();
    fs::hard_link(dir.path().join("a/b/c"), dir.path().join("c2")).unwrap();
    let expected = walk(dir.path());
    for format in ["v7", "ustar", "gnu", "pax"] {
        let tar = Command::new("tar")
            .args(["-c", "--format", format, "-C"])
            .args([dir.path(), Path::new(".")])
            .output()
            .unwrap();
        let image = convert(&tar.stdout).unwrap();
        let Some(found) = fsck(&image) else { return };
        let bare = |tree: &BTreeMap<PathBuf, Found>| {
            tree.iter()
                .map(|(path, found)| match found {
                    // fsck.erofs extracts hard links as files of their own.
                    Found::File { contents, mode, .. } => (path.clone(), file(&contents.0, *mode)),
                    other => (path.clone(), other.clone()),
                })
                .collect::<BTreeMap<_, _>>()
        };
        assert_eq!(bare(&found), bare(&expected), "{format}");
    }
}

/// One hostile archive, and the words its refusal must contain.
#[track_caller]
fn refused(archive: &[u8], words: &str) {
    let error = convert(archive).unwrap_err().to_string();
    assert!(error.contains(words), "{error:?} does not say {words:?}");
}

#[test]
fn paths_that_could_leave_the_root_are_refused() {
    refused(&Archive::default().file("../x", 0o644, b"").end(), "leave the root");
    refused(&Archive::default().file("a/../../x", 0o644, b"").end(), "leave the root");
    refused(&Archive::default().hard_link("x", "../../etc/passwd").end(), "leave the root");
}

#[test]
fn nothing_is_written_through_a_symbolic_link() {
    let archive = Archive::default().symlink("etc", "/etc").file("etc/passwd", 0o644, b"x").end();
    refused(&archive, "not a directory");
}

#[test]
fn a_hard_link_to_nothing_is_refused() {
    refused(&Archive::default().hard_link("x", "/etc/passwd").end(), "not in the archive");
}

#[test]
fn a_hard_link_to_a_directory_is_refused() {
    refused(&Archive::default().dir("d", 0o755).hard_link("x", "d").end(), "directory");
}

#[test]
fn paths_over_path_max_are_refused() {
    let long = "d/".repeat(2100);
    let archive = Archive::default().pax(&[("path", long.as_bytes())]).file("x", 0o644, b"").end();
    refused(&archive, "4095");
    let name = "n".repeat(256);
    let archive = Archive::default().pax(&[("path", name.as_bytes())]).file("x", 0o644, b"").end();
    refused(&archive, "255");
}

#[test]
fn an_archive_cut_short_is_refused() {
    let whole = Archive::default().file("a", 0o644, &[1; 2000]).end();
    for cut in [0, 100, 512, 1000, 2600, whole.len() - 1024] {
        refused(&whole[..cut], "cut short");
    }
}

#[test]
fn a_second_archive_behind_the_first_is_refused() {
    let mut two = Archive::default().file("a", 0o644, b"").end();
    two.extend(Archive::default().file("b", 0o644, b"").end());
    refused(&two, "after its end marker");
}

#[test]
fn contents_of_anything_but_a_file_are_refused() {
    let archive = Archive::default().raw(b'2', b"l", b"t", 0o777, b"smuggled").end();
    refused(&archive, "only files have contents");
}

#[test]
fn sizes_beyond_the_limit_are_refused_before_they_are_written() {
    let archive = Archive::default()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"huge"),
            ("GNU.sparse.realsize", b"1125899906842624"),
        ])
        .raw(b'0', b"x", b"", 0o644, &{
            let mut map = b"1\n0\n0\n".to_vec();
            map.resize(512, 0);
            map
        })
        .end();
    refused(&archive, "limit");
}

#[test]
fn more_entries_than_the_limit_are_refused() {
    let archive = (0..50).fold(Archive::default(), |a, i| a.dir(&format!("d{i}"), 0o755)).end();
    let limits = Limits { entries: 20, ..Limits::default() };
    let error = erofs::from_tar(&archive[..], Cursor::new(Vec::new()), limits).unwrap_err();
    assert!(matches!(error, WriteError::Limit { what: "entries", .. }), "{error}");
}

#[test]
fn extended_headers_do_not_pile_up() {
    let archive = Archive::default()
        .pax(&[("SCHILY.xattr.user.a", b"1")])
        .pax(&[("SCHILY.xattr.user.b", b"2")])
        .file("x", 0o644, b"");
    refused(&archive.end(), "a second one");
}

#[test]
fn zeros_without_end_are_not_read_to_the_end() {
    let archive = Archive::default().file("x", 0o644, b"").end();
    let endless = std::io::Read::chain(&archive[..], std::io::repeat(0));
    let image = Cursor::new(Vec::new());
    let error = erofs::from_tar(endless, image, Limits::default()).unwrap_err();
    assert!(matches!(error, WriteError::Archive(TarError::Trailing { .. })), "{error}");
}

#[test]
fn a_pax_header_of_gigabytes_is_not_allocated() {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::XHeader);
    header.set_size(4 << 30);
    header.set_cksum();
    let error = convert(header.as_bytes()).unwrap_err();
    assert!(matches!(error, WriteError::Archive(TarError::Extension { .. })), "{error}");
}

#[test]
fn an_inode_that_ends_with_its_block_is_not_the_image_s_end() {
    // Of so many files some end with a block: what a file has, and a name more, takes 80 bytes.
    for count in 1..=128 {
        let archive = (0..count)
            .fold(Archive::default(), |archive, n| archive.file(&format!("{n:03}"), 0o644, b""));
        fsck(&convert(&archive.end()).unwrap());
    }
}

/// A tree as a proptest makes it: paths of few names, so that they collide.
#[derive(Debug, Clone)]
enum Planned {
    File(Vec<u8>, u32),
    Dir(u32),
    Symlink(String),
}

fn planned() -> impl Strategy<Value = Planned> {
    let size = prop_oneof![0..200_usize, 3900..4200_usize, 8000..20_000_usize];
    prop_oneof![
        (size, any::<u8>(), 0..0o7777_u32)
            .prop_map(|(n, byte, mode)| Planned::File(vec![byte; n], mode | 0o600)),
        (0..=0o777_u32).prop_map(|mode| Planned::Dir(mode | 0o700)),
        "[a-z/.]{1,80}".prop_map(Planned::Symlink),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_comes_back(
        tree in prop::collection::btree_map("[a-c!]{1,2}(/[a-c-]{1,2}){0,3}", planned(), 0..60)
    ) {
        // A file or link hides what the map has below it.
        let hidden = |path: &str| path.match_indices('/').any(|(at, _)| {
            tree.get(&path[..at]).is_some_and(|p| !matches!(p, Planned::Dir(_)))
        });
        let mut archive = Archive::default();
        let mut expected = BTreeMap::new();
        for (path, what) in tree.iter().filter(|(path, _)| !hidden(path)) {
            for (at, _) in path.match_indices('/') {
                expected.entry(path[..at].into()).or_insert(Found::Dir { mode: 0o755 });
            }
            archive = match what {
                Planned::File(data, mode) => archive.file(path, *mode, data),
                Planned::Dir(mode) => archive.dir(path, *mode),
                Planned::Symlink(target) => archive.symlink(path, target),
            };
            expected.insert(path.into(), match what {
                Planned::File(data, mode) => file(data, *mode),
                Planned::Dir(mode) => Found::Dir { mode: *mode },
                Planned::Symlink(target) => Found::Symlink(target.into()),
            });
        }
        let image = convert(&archive.end()).unwrap();
        prop_assert_eq!(Superblock::parse(&image).unwrap().bytes, image.len() as u64);
        if let Some(found) = fsck(&image) {
            prop_assert_eq!(found, expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_archive_makes_the_writer_panic(
        flips in prop::collection::vec((0..20_000_usize, any::<u8>()), 1..6),
        fix_checksums in any::<bool>(),
    ) {
        let mut tar = Archive::default()
            .pax(&[("mtime", b"-1.5"), ("SCHILY.xattr.user.a", b"b"), ("size", b"3000")])
            .file("a/b", 0o644, &[5; 3000])
            .raw(b'L', b"long", b"", 0, "n/".repeat(100).as_bytes())
            .file("short", 0o644, b"x")
            .raw(b'S', b"sparse", b"", 0o644, &[1; 600])
            .hard_link("c", "a/b")
            .symlink("d", "c")
            .end();
        for (at, byte) in flips {
            let len = tar.len();
            tar[at % len] = byte;
        }
        if fix_checksums {
            for block in tar.chunks_exact_mut(512) {
                let sum: u32 = (0..512).map(|i| if (148..156).contains(&i) { 32 } else { u32::from(block[i]) }).sum();
                if block[148..156].iter().any(|&b| b != 0) {
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
        }
        let limits = Limits { image_bytes: 1 << 24, entries: 1000, metadata_bytes: 1 << 20 };
        let _ = erofs::from_tar(&tar[..], Cursor::new(Vec::new()), limits);
    }
}
