//! How much memory a large workspace takes on its way: one process, so that its peak is this test's.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use workspace::{
    About, CollectOptions, Manifest, PackOptions, UnpackOptions, collect, pack, unpack,
};

/// Of a sparse file: as large as a disk that nobody has.
const SPARSE: u64 = 10 << 30;
/// Of an archive that a guest sends.
const ENTRIES: u64 = 1_000_000;
/// What a file of any size may take: buffers, and the pages of the test itself.
const FLAT: u64 = 32 << 20;
/// What an entry may take that has to be remembered: its name and what it is.
const EACH: u64 = 640;

fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn about(host: &Path) -> About {
    About {
        sandbox: "sb-1".into(),
        name: "box".into(),
        host: host.to_owned(),
        guest: "/workspace".into(),
        collected_at_ms: 0,
    }
}

/// A tar of directories in one that is ignored, made as it is read.
struct Million {
    next: u64,
    block: io::Cursor<Vec<u8>>,
}

impl Read for Million {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            let got = self.block.read(bytes)?;
            if got > 0 || bytes.is_empty() || self.next > ENTRIES {
                return Ok(got);
            }
            let mut header = tar::Header::new_ustar();
            let name = match self.next {
                0 => "node_modules/".to_owned(),
                number => format!("node_modules/a-package-of-some-name-{number:07}/"),
            };
            header.set_path(name)?;
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            header.set_mtime(0);
            header.set_cksum();
            self.next += 1;
            let mut block = header.as_bytes().to_vec();
            if self.next > ENTRIES {
                block.extend([0; 1024]);
            }
            self.block = io::Cursor::new(block);
        }
    }
}

#[test]
fn memory_stays_flat_whatever_passes() {
    let place = tempfile::tempdir().unwrap();
    let host = place.path().join("host");
    fs::create_dir(&host).unwrap();
    let before = peak();

    // A file that a disk could not hold goes in and out, and is a hole again.
    let tree = place.path().join("tree");
    fs::create_dir(&tree).unwrap();
    File::create(tree.join("sparse")).unwrap().set_len(SPARSE).unwrap();
    let (mut reader, mut writer) = io::pipe().unwrap();
    let packing = std::thread::spawn(move || {
        pack(&tree, &PackOptions::default(), &mut writer, &mut |_| {}).unwrap().bytes
    });
    let out = place.path().join("out");
    let unpacked = unpack(&mut reader, &out, &UnpackOptions::default(), &mut |_| {}).unwrap();
    assert_eq!((packing.join().unwrap(), unpacked.bytes), (SPARSE, SPARSE));
    let file = fs::metadata(out.join("sparse")).unwrap();
    let blocks = std::os::unix::fs::MetadataExt::blocks(&file);
    assert!(file.len() == SPARSE && blocks < 2048, "{blocks} blocks");
    let flat = peak() - before;
    assert!(flat < FLAT, "a sparse file took {flat} bytes");

    // Of many entries only what they are is remembered, and for as long as it takes.
    fs::write(host.join(".gitignore"), "node_modules/\n").unwrap();
    let packed = pack(
        &host,
        &PackOptions { manifest: true, ..PackOptions::default() },
        &mut io::sink(),
        &mut |_| {},
    )
    .unwrap();
    let manifest: Manifest = packed.manifest;
    let mut million = Million { next: 0, block: io::Cursor::default() };
    let options = CollectOptions::default();
    let to = place.path().join("changes/sb-1/0");
    let collected =
        collect(&mut million, &manifest, about(&host), &to, &options, &mut |_| {}).unwrap();
    // The directory, and all that is in it. That what was sent is gone is a change.
    assert_eq!(collected.ignored.entries, ENTRIES + 1);
    let each = (peak() - before) / ENTRIES;
    assert!(each < EACH, "an entry took {each} bytes");
    eprintln!("a sparse file took {flat} bytes, an entry {each}");
}
