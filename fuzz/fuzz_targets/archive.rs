//! Archives into a directory: nothing appears outside, what is said of links is what the kernel
//! does with them, and what was taken can be sent again.
#![no_main]

use std::fs;
use std::io::Read as _;

use archive::{Existing, Extract, Kind, MAX_COMPONENT, MAX_NAME, Name, Reader, Root, Writer};
use fuzz::choices::Choices;
use fuzz::place::{Picture, Place, Seen, check_with_the_kernel};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    check_name(data);
    let mut choices = Choices::new(data);
    let existing = *choices.pick(&[Existing::Replace, Existing::Refuse]);
    let bytes = fuzz::tar::archive(&mut choices);
    let longest = read(&bytes);
    // A longer one has no absolute path, by which this target looks at it.
    if (1..=3500).contains(&longest) {
        extract(&bytes, existing);
    }
});

fn check_name(bytes: &[u8]) {
    let Ok(name) = Name::parse(bytes) else { return };
    assert!(name.as_bytes().len() <= MAX_NAME);
    assert!(name.as_path().is_relative());
    for component in name.components() {
        assert!(!matches!(component, b"" | b"." | b".."));
        assert!(component.len() <= MAX_COMPONENT && !component.contains(&0));
    }
    assert!(!name.to_string().contains(char::is_control));
    if name.is_root() {
        assert!(name.split().is_none());
        return;
    }
    assert_eq!(Name::parse(name.as_bytes()).as_ref(), Ok(&name));
    let (parent, component) = name.split().expect("it is not the root");
    assert!(name.starts_with(&parent));
    let component = std::os::unix::ffi::OsStrExt::as_bytes(component);
    assert_eq!(parent.join(component).as_ref(), Ok(&name));
}

/// Reads to the end or the first error; how long the longest name is.
fn read(bytes: &[u8]) -> usize {
    let mut reader = Reader::new(bytes);
    let mut content = Vec::new();
    let mut longest = 0;
    loop {
        let member = match reader.next_member() {
            Ok(Some(member)) => member,
            Ok(None) => return longest,
            Err(error) => {
                assert!(!error.to_string().contains(['\n', '\x1b']), "{error}");
                return longest;
            }
        };
        longest = longest.max(member.name.as_bytes().len());
        check_name(member.name.as_bytes());
        assert!(member.mode <= 0o7777);
        if let Kind::File { size } = member.kind {
            content.clear();
            match reader.content().read_to_end(&mut content) {
                Ok(got) => assert_eq!(got as u64, size),
                Err(_) => assert!((content.len() as u64) < size),
            }
        }
    }
}

fn extract(bytes: &[u8], existing: Existing) {
    let place = Place::new();
    let beside = place.picture();
    fs::create_dir(place.destination()).expect("the destination");
    let root = Root::open(&place.destination()).expect("the destination");
    let mut extract = Extract::new(&root, existing);
    let mut reader = Reader::new(bytes);
    let mut whole = true;
    while let Ok(Some(member)) = reader.next_member() {
        if extract.add(&member, &mut reader.content()).is_err() {
            whole = false;
            break;
        }
    }
    whole &= extract.finish().is_ok();
    assert_eq!(place.picture().beside(), beside, "something outside changed");

    let picture = Picture::of(&place.destination());
    for (_, seen) in picture.entries() {
        match seen {
            Seen::File(mode, _) | Seen::Directory(mode) => assert!(mode & 0o7000 == 0),
            Seen::Symlink(_) => {}
            Seen::Special => panic!("a special file was made"),
        }
    }
    check_with_the_kernel(&place.destination(), &picture, &picture.leaving());
    if whole && picture.is_readable() {
        check_that_it_travels(&root, &picture);
    }
}

/// What is there now arrives elsewhere as it is.
fn check_that_it_travels(root: &Root, picture: &Picture) {
    let mut sent = Vec::new();
    let mut writer = Writer::new(&mut sent);
    archive::pack(root, &mut writer, &mut ()).expect("what was extracted can be packed");
    writer.finish().expect("memory takes everything");
    let other = Place::new();
    fs::create_dir(other.destination()).expect("the destination");
    let root = Root::open(&other.destination()).expect("the destination");
    let mut extract = Extract::new(&root, Existing::Refuse);
    let mut reader = Reader::new(&sent[..]);
    while let Some(member) = reader.next_member().expect("what we write we read") {
        extract.add(&member, &mut reader.content()).expect("it was possible once");
    }
    extract.finish().expect("it was possible once");
    assert_eq!(Picture::of(&other.destination()), *picture);
}
