//! What a conversion takes of memory, in a process of its own that does nothing else.

use std::fs;
use std::io::{self, Read};
use std::process::Command;

use image::oci::{Expected, LayerError, Limits, convert};
use image::{Compression, ImageRef, Store};

use crate::make::{Blob, Tar, layout};

/// Set in the process that is measured: what it does.
const MEASURED: &str = "SANDFORGE_TEST_MEASURED";
const ENTRIES: u32 = 1_000_000;

/// The most that this process has had in memory, in KiB.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The peak of a process that runs the same test for `what`, less that of one that does nothing.
fn measured(test: &str, what: &str) -> u64 {
    let run = |what: &str| -> u64 {
        let done = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(MEASURED, what)
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(done.status.success(), "{out}{}", String::from_utf8_lossy(&done.stderr));
        let peak = out.split("peak ").nth(1).and_then(|rest| rest.split(' ').next());
        peak.unwrap_or_else(|| panic!("{out}")).parse().unwrap()
    };
    let peak = run(what) - run("nothing");
    // Where the output is shown, this is the figure to write down.
    println!("{what}: {peak} KiB");
    peak
}

/// An archive of empty files that is never in memory.
struct Entries {
    next: u32,
    header: [u8; 512],
    at: usize,
}

impl Entries {
    fn new() -> Self {
        let mut header = Tar::default().file("", b"").end();
        header.truncate(512);
        let mut entries = Self { next: 0, header: header.try_into().unwrap(), at: 512 };
        entries.advance();
        entries
    }

    fn advance(&mut self) {
        if self.next >= ENTRIES {
            self.header = [0; 512];
        } else {
            let path =
                format!("usr/share/{:04}/a-file-with-a-name-{:07}", self.next / 999, self.next);
            self.header[..path.len()].copy_from_slice(path.as_bytes());
            self.header[148..156].fill(b' ');
            let sum: u32 = self.header.iter().map(|&byte| u32::from(byte)).sum();
            self.header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
        self.next += 1;
        self.at = 0;
    }
}

impl Read for Entries {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == 512 {
            // Two blocks of zeros are the end.
            if self.next == ENTRIES + 2 {
                return Ok(0);
            }
            self.advance();
        }
        let n = buf.len().min(512 - self.at);
        buf[..n].copy_from_slice(&self.header[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

#[test]
fn ten_gibibytes_of_a_sparse_file_pass_through_a_few_mebibytes() {
    const NAME: &str = "memory::ten_gibibytes_of_a_sparse_file_pass_through_a_few_mebibytes";
    let Some(what) = std::env::var_os(MEASURED) else {
        let peak = measured(NAME, "ten gibibytes");
        assert!(peak < 16 << 10, "{peak} KiB");
        return;
    };
    if what != "nothing" {
        let dir = tempfile::tempdir().unwrap();
        let tar = Tar::default().sparse("huge", 10 << 30).end();
        layout(&dir.path().join("image"), &[Blob::gzip(&tar)]);
        let store = Store::open(&dir.path().join("cache")).unwrap();
        let image = ImageRef::Path(dir.path().join("image"));
        let image = store.resolve(&image, &mut ()).unwrap();
        assert!(image.layers[0].size > 10 << 30);
    }
    println!("peak {} KiB", peak_kib());
}

#[test]
fn a_million_entries_take_less_than_half_a_kibibyte_each() {
    const NAME: &str = "memory::a_million_entries_take_less_than_half_a_kibibyte_each";
    let Some(what) = std::env::var_os(MEASURED) else {
        let peak = measured(NAME, "a million entries");
        assert!(peak < u64::from(ENTRIES) / 2, "{peak} KiB");
        return;
    };
    if what != "nothing" {
        let zeros = format!("sha256:{}", "0".repeat(64));
        let size = u64::from(ENTRIES) * 512 + 1024;
        let expected =
            Expected { digest: &zeros, size, diff_id: &zeros, compression: Compression::None };
        let entries = Entries::new();
        let image = tempfile::tempfile().unwrap();
        // Known only when it is too late, and the image is made by then.
        let error =
            convert(entries, expected, image.try_clone().unwrap(), Limits::default()).unwrap_err();
        assert!(matches!(error, LayerError::Digest { .. }), "{error}");
        assert!(image.metadata().unwrap().len() > u64::from(ENTRIES) * 64);
    }
    println!("peak {} KiB", peak_kib());
}
