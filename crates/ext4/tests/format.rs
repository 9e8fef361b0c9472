//! What others say of what we write: e2fsck, and the kernel.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use ext4::{FormatError, MAX_BYTES, MIN_BYTES, Options, format};
use proptest::prelude::*;
use tempfile::NamedTempFile;

fn options(bytes: u64, journal: bool) -> Options {
    Options { bytes, journal, owner: (1000, 1000), uuid: *b"0123456789abcdef", time: 1_700_000_000 }
}

fn made(options: &Options) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    format(file.as_file(), options).unwrap();
    file
}

/// What e2fsck finds wrong.
fn complaints(disk: &Path) -> Option<String> {
    let checked = match Command::new("e2fsck").arg("-fn").arg(disk).output() {
        Ok(checked) => checked,
        Err(error) => {
            eprintln!("not run: e2fsck: {error}");
            return None;
        }
    };
    let words = String::from_utf8_lossy(&checked.stdout).into_owned()
        + &String::from_utf8_lossy(&checked.stderr);
    (!checked.status.success()).then_some(words)
}

#[test]
fn e2fsck_has_nothing_to_say_of_any_size() {
    const GROUP: u64 = 128 << 20;
    let odd = [1, 4096, 8192, 300 << 12, 600 << 12, 700 << 12];
    let sizes = odd.into_iter().map(|more| GROUP + more);
    let large = [MIN_BYTES, GROUP, 10 << 30, 28 * GROUP, 1 << 40, (1 << 40) + 4095];
    for bytes in sizes.chain(large) {
        for journal in [false, true] {
            let disk = made(&options(bytes, journal));
            assert_eq!(complaints(disk.path()), None, "{bytes} bytes, journal: {journal}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn nor_of_one_that_nobody_thought_of(bytes in MIN_BYTES..64 << 30, journal: bool) {
        prop_assert_eq!(complaints(made(&options(bytes, journal)).path()), None);
    }
}

#[test]
fn the_file_stays_sparse() {
    let disk = made(&options(10 << 30, true));
    let metadata = disk.as_file().metadata().unwrap();
    assert_eq!(metadata.len(), 10 << 30);
    assert!(metadata.blocks() * 512 < 256 << 10, "{} bytes", metadata.blocks() * 512);
}

#[test]
fn what_is_too_small_or_too_large_is_refused() {
    let file = tempfile::tempfile().unwrap();
    for bytes in [0, MIN_BYTES - 1, MAX_BYTES + 1] {
        let made = format(&file, &options(bytes, false));
        assert!(matches!(made, Err(FormatError::Size(of)) if of == bytes));
    }
}

/// A mounted disk.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(disk: &Path) -> Result<Self, String> {
        let place = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "ext4", "-o", "loop"])
            .args([disk, place.path()])
            .output()
            .map_err(|error| error.to_string())?;
        match mounted.status.success() {
            true => Ok(Self(place)),
            false => Err(String::from_utf8_lossy(&mounted.stderr).into_owned()),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn the_kernel_fills_it_and_e2fsck_has_nothing_to_say_afterwards() {
    for journal in [false, true] {
        let disk = made(&options(400 << 20, journal));
        {
            let mounted = match Mounted::new(disk.path()) {
                Ok(mounted) => mounted,
                Err(why) => return eprintln!("not run: it cannot be mounted here: {why}"),
            };
            let root = mounted.0.path();
            let metadata = root.metadata().unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (1000, 1000));
            for directory in 0..20 {
                let directory = root.join(directory.to_string());
                std::fs::create_dir(&directory).unwrap();
                for file in 0..200 {
                    std::fs::write(directory.join(format!("file-{file}")), [7; 5000]).unwrap();
                }
            }
            // Through every group, to the last block.
            let mut big = File::create(root.join("big")).unwrap();
            let filled = std::io::copy(&mut std::io::repeat(1), &mut big).unwrap_err();
            assert_eq!(filled.kind(), std::io::ErrorKind::StorageFull);
            std::fs::remove_dir_all(root.join("3")).unwrap();
        }
        assert_eq!(complaints(disk.path()), None, "journal: {journal}");
    }
}
