//! What goes in comes out the same.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use workspace::{PackOptions, UnpackOptions, pack, unpack};

#[derive(Debug, Clone)]
enum Entry {
    Directory(u32),
    File(u32, Vec<u8>),
    /// To an entry of the same directory, or to nothing.
    Link(Vec<u8>),
    /// Another name of the first file there is.
    Again,
}

fn component() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[a-d]{1,2}".prop_map(String::into_bytes),
        1 => "[a-z]{90,250}".prop_map(String::into_bytes),
        2 => proptest::collection::vec(
            any::<u8>().prop_filter("not in names", |byte| !matches!(byte, 0 | b'/')), 1..12),
    ]
    .prop_filter("not a name", |name| !matches!(name.as_slice(), b"." | b".."))
}

fn entry() -> impl Strategy<Value = Entry> {
    let mode = 0o000..=0o777_u32;
    prop_oneof![
        3 => (0o700..=0o777_u32).prop_map(Entry::Directory),
        4 => (mode, proptest::collection::vec(any::<u8>(), 0..1200))
            .prop_map(|(mode, content)| Entry::File(mode | 0o400, content)),
        1 => component().prop_map(Entry::Link),
        1 => Just(Entry::Again),
    ]
}

fn build(root: &Path, entries: &[(prop::sample::Index, Vec<u8>, Entry)]) {
    let mut directories = vec![root.to_owned()];
    let mut first_file = None;
    for (place, name, entry) in entries {
        let path = place.get(&directories).join(OsStr::from_bytes(name));
        if path.symlink_metadata().is_ok() {
            continue;
        }
        match entry {
            Entry::Directory(_) => {
                fs::create_dir(&path).unwrap();
                directories.push(path);
            }
            Entry::File(mode, content) => {
                fs::write(&path, content).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
                first_file.get_or_insert(path);
            }
            Entry::Link(target) => symlink(OsStr::from_bytes(target), &path).unwrap(),
            Entry::Again => {
                if let Some(file) = &first_file {
                    fs::hard_link(file, &path).unwrap();
                }
            }
        }
    }
    let modes = entries.iter().filter_map(|(_, _, entry)| match entry {
        Entry::Directory(mode) => Some(*mode),
        _ => None,
    });
    for (directory, mode) in directories[1..].iter().zip(modes) {
        fs::set_permissions(directory, fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// Everything about a tree that a copy must keep: kind, mode, time, names, content.
fn picture(root: &Path) -> BTreeMap<PathBuf, (u32, i64, u64, Vec<u8>)> {
    let mut picture = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let content = if metadata.is_symlink() {
                fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
            } else if metadata.is_file() {
                fs::read(&path).unwrap()
            } else {
                directories.push(path.clone());
                Vec::new()
            };
            let links = if metadata.is_dir() { 0 } else { metadata.nlink() };
            let name = path.strip_prefix(root).unwrap().to_owned();
            picture.insert(name, (metadata.mode(), metadata.mtime(), links, content));
        }
    }
    picture
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_tree_comes_out_as_it_went_in(
        entries in proptest::collection::vec((any::<prop::sample::Index>(), component(), entry()), 0..24),
    ) {
        let place = tempfile::tempdir().unwrap();
        let from = place.path().join("from");
        fs::create_dir(&from).unwrap();
        build(&from, &entries);
        let mut tar = Vec::new();
        let packed = pack(&from, &PackOptions::default(), &mut tar, &mut |_| {}).unwrap();
        let to = place.path().join("to");
        let unpacked =
            unpack(&mut &tar[..], &to, &UnpackOptions::default(), &mut |_| {}).unwrap();
        prop_assert_eq!(picture(&from), picture(&to));
        prop_assert_eq!((unpacked.entries, unpacked.bytes), (packed.entries, packed.bytes));
        prop_assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2, "no staging stays");
    }
}

#[test]
fn what_other_archivers_read_is_what_was_packed() {
    let place = tempfile::tempdir().unwrap();
    let from = place.path().join("from");
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    fs::create_dir_all(from.join(&long).parent().unwrap()).unwrap();
    fs::write(from.join(&long), "long").unwrap();
    fs::write(from.join(OsStr::from_bytes(b"odd\xff\n")), "odd").unwrap();
    symlink("x".repeat(300), from.join("link")).unwrap();
    let mut tar = Vec::new();
    pack(&from, &PackOptions::default(), &mut tar, &mut |_| {}).unwrap();
    let file = place.path().join("tar");
    fs::write(&file, tar).unwrap();
    let to = place.path().join("to");
    fs::create_dir(&to).unwrap();
    let status = std::process::Command::new("tar")
        .arg("-xf")
        .arg(&file)
        .arg("-C")
        .arg(&to)
        .args(["--warning=no-unknown-keyword", "--no-same-owner"])
        .status();
    match status {
        Ok(status) => assert!(status.success()),
        Err(error) => {
            eprintln!("NOT RUN: there is no tar command ({error})");
            return;
        }
    }
    assert_eq!(picture(&from), picture(&to));
}
