//! Archives to EROFS images: whatever the archive asks for, what is written stays within the
//! limits, and a finished image is one.
#![no_main]

use std::io::Cursor;

use fuzz::choices::Choices;
use image::erofs::{Limits, SUPERBLOCK_END, Superblock, from_tar};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits { image_bytes: 1 << 20, entries: 500, metadata_bytes: 64 << 10 };

fuzz_target!(|data: &[u8]| {
    let archive = fuzz::tar::archive(&mut Choices::new(data));
    let mut image = Cursor::new(Vec::new());
    let written = from_tar(&archive[..], &mut image, LIMITS);
    let image = image.into_inner();
    assert!(image.len() as u64 <= LIMITS.image_bytes, "{} bytes were written", image.len());
    match written {
        Ok(summary) => {
            assert_eq!(image.len() as u64, summary.bytes);
            assert!(summary.inodes >= 1 && summary.inodes <= u64::from(LIMITS.entries) + 4096);
            let superblock = Superblock::parse(&image[..SUPERBLOCK_END]).expect("a superblock");
            assert_eq!(superblock.bytes, summary.bytes);
            let mut again = Cursor::new(Vec::new());
            from_tar(&archive[..], &mut again, LIMITS).expect("what worked once works twice");
            assert!(again.into_inner() == image, "one archive, two images");
        }
        Err(error) => assert!(!error.to_string().contains(['\n', '\x1b']), "{error}"),
    }
});
