//! Kernels that are nothing but code.

use std::fs::File;
use std::io::{self, Write as _};

/// Where the code is in memory.
const CODE: u64 = 0x10_0000;

/// A kernel of one segment, entered at its first byte.
pub(crate) fn elf(code: &[u8]) -> io::Result<File> {
    const HEADERS: u64 = 64 + 56;
    let length = code.len() as u64;
    // ELF-64 Object File Format, figures 3 and 6: an executable for x86-64, one segment to load.
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    let half = |value: u16| value.to_le_bytes().to_vec();
    let word = |value: u32| value.to_le_bytes().to_vec();
    let long = |value: u64| value.to_le_bytes().to_vec();
    let header = [half(2), half(62), word(1), long(CODE), long(64), long(0), word(0)];
    let sizes = [half(64), half(56), half(1), half(64), half(0), half(0)];
    let segment = [word(1), word(7), long(HEADERS), long(CODE), long(CODE), long(length)];
    let rest = [long(length), long(0x1000)];
    for part in header.iter().chain(&sizes).chain(&segment).chain(&rest) {
        bytes.extend(part);
    }
    bytes.extend(code);
    let file = rustix::fs::memfd_create("payload", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(file);
    file.write_all(&bytes)?;
    Ok(file)
}
