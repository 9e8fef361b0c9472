//! The store as the supervisor uses it: real files, several users at once, and bad days.

use image::{CacheError, StoreError};
use image::{ImageError, ImageRef, Progress, RootFs, RootImage, SourceError, Stage, Step, Store};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Bench {
    dir: tempfile::TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("cache")).unwrap();
        Self { dir, store }
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        fs::write(self.path(name), contents).unwrap();
        self.path(name)
    }
    fn resolve(&self, path: &Path) -> Result<RootImage, ImageError> {
        self.store.resolve(&ImageRef::Path(path.to_owned()), &mut ())
    }
    /// Everything in the cache but lock files.
    fn left(&self) -> Vec<PathBuf> {
        let images = self.path("cache/images");
        fs::read_dir(images).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
    fn stored_image(&self) -> PathBuf {
        self.left()[0].join("root.erofs")
    }
}

fn root_tar() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let contents = vec![b'x'; 100_000];
    for (path, data) in [("bin/sh", &contents[..]), ("etc/hostname", b"box\n")] {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o755);
        tar.append_data(&mut header, path, data).unwrap();
    }
    tar.into_inner().unwrap()
}

fn run(program: &str, args: &[&str], path: &Path) {
    let done = Command::new(program)
        .args(args)
        .arg(path)
        .output()
        .unwrap_or_else(|e| panic!("this test needs {program}: {e}"));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[track_caller]
fn refused(result: Result<RootImage, ImageError>, words: &str) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains(words), "{error:?} does not say {words:?}");
}

#[test]
fn an_archive_is_converted_once_and_then_found() {
    let bench = Bench::new();
    let tar = bench.file("root.tar", &root_tar());
    let mut conversions = 0;
    for _ in 0..2 {
        let mut last = None;
        let mut count = |step: Step| {
            conversions += usize::from(step.stage == Stage::Convert && last != Some(step.stage));
            last = Some(step.stage);
        };
        let image = bench.store.resolve(&ImageRef::Path(tar.clone()), &mut count).unwrap();
        assert_eq!((image.layers[0].fs, image.name.as_str()), (RootFs::Erofs, "root.tar"));
    }
    assert_eq!(conversions, 1);
}

#[test]
fn a_converted_archive_has_a_name_and_a_digest_to_call_it_by() {
    let bench = Bench::new();
    let digest = bench.resolve(&bench.file("root.tar", &root_tar())).unwrap().digest.unwrap();
    for name in ["root.tar", &digest, &digest[..12], &format!("sha256:{digest}")] {
        let image = bench.store.resolve(&ImageRef::Name(name.to_owned()), &mut ()).unwrap();
        assert_eq!(image.digest.as_deref(), Some(&*digest));
    }
}

#[test]
fn compressed_archives_give_the_same_image() {
    let bench = Bench::new();
    let tar = root_tar();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    let frame = |part| ruzstd::encoding::compress_to_vec(part, level);
    let (first, second) = tar.split_at(tar.len() / 2);
    let digests = [
        bench.file("a.tar", &tar),
        bench.file("a.tar.gz", &gzip.finish().unwrap()),
        bench.file("a.tar.zst", &[frame(first), frame(second)].concat()),
    ]
    .map(|path| bench.resolve(&path).unwrap().digest);
    assert_eq!(digests[0], digests[1]);
    assert_eq!(digests[0], digests[2]);
}

#[test]
fn ext4_is_attached_as_it_is() {
    let bench = Bench::new();
    let path = bench.file("disk", b"");
    File::create(&path).unwrap().set_len(8 << 20).unwrap();
    run("mkfs.ext4", &["-q"], &path);
    let image = bench.resolve(&path).unwrap();
    assert_eq!((image.layers[0].fs, image.digest, image.size), (RootFs::Ext4, None, 8 << 20));
    File::options().write(true).open(&path).unwrap().set_len(4 << 20).unwrap();
    refused(bench.resolve(&path), "cut short");
}

#[test]
fn an_ext4_that_was_not_unmounted_is_refused_with_the_remedy() {
    let bench = Bench::new();
    let path = bench.file("disk", b"");
    File::create(&path).unwrap().set_len(8 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-O", "^metadata_csum"], &path);
    run("debugfs", &["-w", "-R", "feature needs_recovery"], &path);
    refused(bench.resolve(&path), "e2fsck -f");
}

#[test]
fn an_image_of_mkfs_erofs_is_attached_as_it_is() {
    let bench = Bench::new();
    fs::create_dir(bench.path("root")).unwrap();
    fs::write(bench.path("root/file"), vec![b'x'; 100_000]).unwrap();
    let dir = bench.path("root").display().to_string();
    let make = |options: &[&str]| {
        let image = bench.path("image");
        let done = Command::new("mkfs.erofs").args(options).arg(&image).arg(&dir).output();
        let done = done.expect("mkfs.erofs judges this; apt-get install erofs-utils");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        image
    };
    assert_eq!(bench.resolve(&make(&[])).unwrap().layers[0].fs, RootFs::Erofs);
    refused(bench.resolve(&make(&["-zlz4"])), "compression");
}

#[test]
fn anything_else_is_refused_by_what_it_is() {
    let bench = Bench::new();
    refused(bench.resolve(&bench.path("nothing")), "cannot open the image");
    refused(bench.resolve(&bench.path("cache")), "pack a directory");
    refused(bench.resolve(&bench.file("empty", b"")), "empty");
    refused(bench.resolve(&bench.file("xz", b"\xfd7zXZ\0....")), "xz");
    refused(bench.resolve(&bench.file("qcow", b"QFI\xfb....")), "QCOW2");
    refused(bench.resolve(&bench.file("text", &[b'a'; 5000])), "unknown format");
}

#[test]
fn a_named_pipe_is_not_waited_for() {
    let bench = Bench::new();
    run("mkfifo", &[], &bench.path("pipe"));
    refused(bench.resolve(&bench.path("pipe")), "not a file");
}

#[test]
fn layers_are_told_from_a_root() {
    let bench = Bench::new();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(2);
    tar.append_data(&mut header, "manifest.json", &b"[]"[..]).unwrap();
    let path = bench.file("saved.tar", &tar.into_inner().unwrap());
    refused(bench.resolve(&path), "holds no image");
    assert!(bench.left().is_empty());
}

#[test]
fn an_archive_cut_short_leaves_nothing() {
    let bench = Bench::new();
    let tar = root_tar();
    refused(bench.resolve(&bench.file("cut.tar", &tar[..60_000])), "cut short");
    assert!(bench.left().is_empty());
}

#[test]
fn an_unknown_name_is_answered_with_the_known_ones() {
    let bench = Bench::new();
    bench.resolve(&bench.file("root.tar", &root_tar())).unwrap();
    let unknown = bench.store.resolve(&ImageRef::Name("debain".to_owned()), &mut ());
    let error = unknown.unwrap_err().to_string();
    for words in ["debain", "root.tar", "sandforge image build"] {
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_shortened_image_is_refused_until_it_is_removed() {
    let bench = Bench::new();
    let tar = bench.file("root.tar", &root_tar());
    bench.resolve(&tar).unwrap();
    File::options().write(true).open(bench.stored_image()).unwrap().set_len(4096).unwrap();
    refused(bench.resolve(&tar), "sandforge image rm root.tar");
    bench.store.remove("root.tar").unwrap();
    bench.resolve(&tar).unwrap();
}

#[test]
fn a_lost_manifest_or_a_damaged_one_can_be_got_rid_of() {
    let bench = Bench::new();
    let tar = bench.file("root.tar", &root_tar());
    bench.resolve(&tar).unwrap();
    fs::write(bench.left()[0].join("manifest.json"), "{").unwrap();
    let error = bench.resolve(&tar).unwrap_err().to_string();
    let name = error.split("sandforge image rm ").nth(1).unwrap().split('`').next().unwrap();
    bench.store.remove(name).unwrap();
    bench.resolve(&tar).unwrap();
    fs::remove_file(bench.left()[0].join("manifest.json")).unwrap();
    bench.resolve(&tar).unwrap();
}

#[test]
fn verify_reads_every_byte() {
    let bench = Bench::new();
    bench.resolve(&bench.file("root.tar", &root_tar())).unwrap();
    bench.store.verify("root.tar", &mut ()).unwrap();
    let image = File::options().write(true).open(bench.stored_image()).unwrap();
    image.write_all_at(b"X", 50_000).unwrap();
    let error = bench.store.verify("root.tar", &mut ()).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
}

#[test]
fn a_listing_accounts_for_what_a_removal_frees() {
    let bench = Bench::new();
    bench.resolve(&bench.file("root.tar", &root_tar())).unwrap();
    let list = bench.store.list().unwrap();
    assert_eq!(list.len(), 1);
    assert!(!list[0].stale && list[0].disk_bytes > 0);
    let removed = bench.store.remove("root.tar").unwrap();
    assert_eq!((removed.images, removed.bytes), (1, list[0].disk_bytes));
    assert!(bench.left().is_empty());
}

#[test]
fn an_open_image_outlives_its_removal() {
    let bench = Bench::new();
    let mut image = bench.resolve(&bench.file("root.tar", &root_tar())).unwrap();
    bench.store.remove("root.tar").unwrap();
    let mut bytes = Vec::new();
    image.layers[0].file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, image.size);
}

#[test]
fn many_at_once_convert_once() {
    let bench = Bench::new();
    let tar = bench.file("root.tar", &root_tar());
    let converted = std::sync::Mutex::new(std::collections::BTreeSet::new());
    std::thread::scope(|scope| {
        for taker in 0..8 {
            let (bench, tar, converted) = (&bench, &tar, &converted);
            scope.spawn(move || {
                let store = Store::open(&bench.path("cache")).unwrap();
                let mut note = |step: Step| {
                    if step.stage == Stage::Convert {
                        converted.lock().unwrap().insert(taker);
                    }
                };
                store.resolve(&ImageRef::Path(tar.clone()), &mut note).unwrap();
            });
        }
    });
    assert_eq!(converted.into_inner().unwrap().len(), 1);
    assert_eq!(bench.left().len(), 1);
}

/// Set in the process that is to be killed.
const VICTIM: &str = "SANDFORGE_TEST_VICTIM";

#[test]
fn what_a_killed_process_left_is_swept_on_the_next_use() {
    if let Some(dir) = std::env::var_os(VICTIM) {
        return be_killed(Path::new(&dir));
    }
    let bench = Bench::new();
    bench.file("root.tar", &root_tar());
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_a_killed_process_left_is_swept_on_the_next_use"])
        .env(VICTIM, bench.dir.path())
        .output()
        .unwrap()
        .status;
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    assert_eq!(bench.left().len(), 1, "half-made, under its working name");
    Store::open(&bench.path("cache")).unwrap();
    assert!(bench.left().is_empty());
}

fn be_killed(dir: &Path) {
    struct Kill;
    impl Progress for Kill {
        fn step(&mut self, step: Step) {
            if step.stage == Stage::Convert {
                let me = rustix::process::getpid();
                rustix::process::kill_process(me, rustix::process::Signal::KILL).unwrap();
            }
        }
    }
    let store = Store::open(&dir.join("cache")).unwrap();
    store.resolve(&ImageRef::Path(dir.join("root.tar")), &mut Kill).unwrap();
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let bench = Bench::new();
    let small = bench.path("small");
    fs::create_dir(&small).unwrap();
    if !rustix::process::geteuid().is_root() {
        std::io::stderr().write_all(b"\n*** not root: a full disk was NOT tried\n").unwrap();
        return;
    }
    run("mount", &["-t", "tmpfs", "-o", "size=64k", "none"], &small);
    let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let store = Store::open(&small.join("cache")).unwrap();
        let tar = bench.file("root.tar", &root_tar());
        let error = store.resolve(&ImageRef::Path(tar), &mut ()).unwrap_err();
        let full = matches!(error, ImageError::Store(StoreError::Cache(CacheError::Full { .. })));
        assert!(full, "{error}");
        assert_eq!(fs::read_dir(small.join("cache/images")).unwrap().count(), 0);
    }));
    run("umount", &[], &small);
    seen.unwrap();
}

#[test]
fn an_archive_that_lies_about_its_format_is_an_error_of_its_own() {
    let bench = Bench::new();
    let path = bench.file("x.tar.gz", b"\x1f\x8b\x08 not really");
    let error = bench.resolve(&path).unwrap_err();
    assert!(matches!(error, ImageError::Source(SourceError::Convert { .. })), "{error}");
}

#[test]
fn an_image_without_layers_is_not_exported_and_the_error_says_so() {
    let bench = Bench::new();
    let path = bench.file("root.tar", &root_tar());
    bench.resolve(&path).unwrap();
    let name = bench.store.list().unwrap()[0].manifest.name.clone();
    let error = bench.store.export(&name, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, ImageError::Store(StoreError::Flat { .. })), "{error}");
    assert!(error.to_string().contains("without layers"), "{error}");
    let error = bench.store.export("nobody", &mut Vec::new()).unwrap_err();
    assert!(matches!(error, ImageError::Store(StoreError::Unknown { .. })), "{error}");
}
