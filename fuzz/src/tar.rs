//! Archives out of a fuzzer's bytes. A header is 512 bytes with a checksum, which blind changes
//! never get past; so most inputs only say what the headers are to be.

use crate::choices::Choices;

const BLOCK: usize = 512;

/// What names and targets are made of: what means something to an extractor, and to git.
const COMPONENTS: &[&[u8]] = &[
    b"a",
    b"b",
    b"d",
    b"e",
    b"in",
    b"out",
    b".",
    b"..",
    b"",
    b".git",
    b"hooks",
    b"config",
    b"modules",
    b"HEAD",
    b".GIT",
    b"\xff\x1b",
    b"kept",
    b"..a",
    b"beside",
    b"c",
];

/// The archive that an input stands for. Its first byte tells how to read it.
pub fn archive(choices: &mut Choices<'_>) -> Vec<u8> {
    match choices.of(8) {
        0 => choices.rest().to_vec(),
        1 | 2 => repaired(choices.rest()),
        _ => composed(choices),
    }
}

/// The archive that these bytes are but for the checksums of its headers.
fn repaired(bytes: &[u8]) -> Vec<u8> {
    let mut archive = bytes.to_vec();
    let mut at = 0;
    while let Some(header) = archive.get_mut(at..at + BLOCK) {
        if header.iter().all(|&byte| byte == 0) {
            break;
        }
        sum(header);
        at += BLOCK;
        let size =
            archive[at - BLOCK + 124..at - BLOCK + 136].iter().try_fold(
                0,
                |size, digit| match digit {
                    b'0'..=b'7' => Ok(size * 8 + usize::from(digit - b'0')),
                    _ => Err(size),
                },
            );
        let (Ok(size) | Err(size)) = size;
        at = at.saturating_add(size.next_multiple_of(BLOCK));
    }
    archive
}

fn composed(choices: &mut Choices<'_>) -> Vec<u8> {
    let mut archive = Vec::new();
    while !choices.is_empty() && archive.len() < 256 << 10 {
        member(choices, &mut archive);
    }
    archive.resize(archive.len() + 2 * BLOCK, 0);
    archive
}

fn member(choices: &mut Choices<'_>, archive: &mut Vec<u8>) {
    match choices.byte() {
        // Honest members are frequent: without directories nothing can be in them.
        0..80 => {
            let name = path(choices);
            let content = content(choices);
            let mode = mode(choices);
            header(archive, b'0', &name, b"", content.len() as u64, mode);
            body(archive, &content);
        }
        80..130 => {
            let name = path(choices);
            let mode = mode(choices);
            header(archive, b'5', &name, b"", 0, mode);
        }
        130..180 => {
            let (name, target) = (path(choices), path(choices));
            header(archive, b'2', &name, &target, 0, 0o777);
        }
        180..205 => {
            let (name, target) = (path(choices), path(choices));
            header(archive, b'1', &name, &target, 0, 0o644);
        }
        205..220 => {
            let kind = *choices.pick(b"LK");
            let mut name = path(choices);
            for _ in 0..choices.of(32) {
                name.extend_from_slice(&b"/"[..usize::from(name.last() != Some(&b'/'))]);
                name.extend(b"long".repeat(1 + choices.of(80)));
            }
            extension(archive, kind, &name);
        }
        220..240 => {
            let kind = *choices.pick(b"xxxg");
            let records = records(choices);
            extension(archive, kind, &records);
        }
        // Anything: also a size without the content.
        _ => {
            let (kind, size) = (choices.byte(), choices.length() as u64);
            let (name, target) = (path(choices), path(choices));
            let at = archive.len();
            header(archive, kind, &name, &target, size, 0o644);
            for _ in 0..choices.of(4) {
                let field = choices.word() % BLOCK;
                let bytes = choices.take(12);
                let end = (field + bytes.len()).min(BLOCK);
                archive[at + field..at + end].copy_from_slice(&bytes[..end - field]);
            }
            sum(&mut archive[at..]);
        }
    }
}

/// A path of some components, mostly hostile where it is long.
pub fn path(choices: &mut Choices<'_>) -> Vec<u8> {
    let shape = choices.byte();
    if shape == 0xff {
        let length = choices.of(64);
        return choices.take(length).to_vec();
    }
    let mut path = Vec::new();
    if shape & 0x70 == 0x70 {
        path.push(b'/');
    }
    for at in 0..=shape & 7 {
        if at > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(choices.pick::<&[u8]>(COMPONENTS));
    }
    path
}

fn content(choices: &mut Choices<'_>) -> Vec<u8> {
    match choices.byte() {
        short @ ..0x40 => choices.take(short.into()).to_vec(),
        long @ ..0x80 => vec![0; usize::from(long) * 256],
        long => vec![b'x'; usize::from(long) * 64],
    }
}

fn mode(choices: &mut Choices<'_>) -> u32 {
    *choices.pick(&[0o644, 0o755, 0o600, 0o7777, 0, 0o4755, 0o555, 0o1777])
}

/// PAX records, some of them with a wrong length.
fn records(choices: &mut Choices<'_>) -> Vec<u8> {
    const KEYS: &[&str] = &[
        "path",
        "linkpath",
        "size",
        "mtime",
        "uid",
        "gid",
        "GNU.sparse.major",
        "GNU.sparse.minor",
        "GNU.sparse.name",
        "GNU.sparse.realsize",
        "GNU.sparse.map",
        "SCHILY.xattr.user.a",
        "SCHILY.xattr.security.capability",
        "SCHILY.xattr.trusted.overlay.opaque",
        "comment",
    ];
    let mut records = Vec::new();
    for _ in 0..=choices.of(6) {
        let key = *choices.pick(KEYS);
        let value = match choices.of(4) {
            0 => path(choices),
            1 => choices.byte().to_string().into_bytes(),
            2 => {
                let length = choices.of(40);
                choices.take(length).to_vec()
            }
            _ => choices
                .pick(&["1", "0", "-1.5", "9223372036854775807", "-9223372036854775808.1"])
                .as_bytes()
                .to_vec(),
        };
        let least = key.len() + value.len() + 3;
        let digits = (least + least.to_string().len()).to_string().len();
        let wrong = match choices.byte() {
            wrong @ ..8 => usize::from(wrong),
            _ => 0,
        };
        records.extend(format!("{} {key}=", least + digits + wrong).into_bytes());
        records.extend_from_slice(&value);
        records.push(b'\n');
    }
    records
}

/// Appends an extended header and its content.
fn extension(archive: &mut Vec<u8>, kind: u8, content: &[u8]) {
    header(archive, kind, b"extension", b"", content.len() as u64, 0o644);
    body(archive, content);
}

/// Appends a header; names that are too long for it are cut.
fn header(archive: &mut Vec<u8>, kind: u8, name: &[u8], target: &[u8], size: u64, mode: u32) {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, most: usize, bytes: &[u8]| {
        let bytes = &bytes[..bytes.len().min(most)];
        header[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(0, 100, name);
    put(100, 7, format!("{mode:07o}").as_bytes());
    put(108, 7, b"0000000");
    put(116, 7, b"0000000");
    put(124, 11, format!("{size:011o}").as_bytes());
    put(136, 11, b"00000001750");
    put(156, 1, &[kind]);
    put(157, 100, target);
    put(257, 8, b"ustar\x0000");
    sum(&mut header);
    archive.extend_from_slice(&header);
}

/// Appends content up to a whole block.
fn body(archive: &mut Vec<u8>, content: &[u8]) {
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
}

fn sum(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}
