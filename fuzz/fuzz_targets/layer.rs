//! Layers of images to EROFS: whatever a layer asks for, what is written stays within the limits, it
//! is an image with no more than its directories implied, and the same twice.
#![no_main]

use std::io::Cursor;

use fuzz::choices::Choices;
use image::Compression;
use image::erofs::{self, SUPERBLOCK_END, Superblock};
use image::oci::{Expected, LayerError, Limits, convert};
use libfuzzer_sys::fuzz_target;

const IMAGE: erofs::Limits =
    erofs::Limits { image_bytes: 1 << 20, entries: 500, metadata_bytes: 64 << 10 };
const LIMITS: Limits = Limits { image: IMAGE, unpacked_bytes: 4 << 20, ratio: 1100 };
const NONE: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

fuzz_target!(|data: &[u8]| {
    // As it came, compressed or not, or composed.
    let archive = match data.split_first() {
        Some((255, raw)) => raw.to_vec(),
        _ => fuzz::tar::archive(&mut Choices::new(data)),
    };
    let digest = |bytes: &[u8]| {
        let refused = convert(
            bytes,
            Expected {
                digest: NONE,
                size: bytes.len() as u64,
                diff_id: NONE,
                compression: Compression::of(bytes),
            },
            Cursor::new(Vec::new()),
            LIMITS,
        );
        match refused {
            Err(LayerError::Digest { found, .. }) => found,
            other => panic!("nothing has the digest of zeros: {other:?}"),
        }
    };
    let digest = digest(&archive);
    let layer = |diff_id: &str| {
        let expected = Expected {
            digest: &digest,
            size: archive.len() as u64,
            diff_id,
            compression: Compression::of(&archive),
        };
        convert(&archive[..], expected, Cursor::new(Vec::new()), LIMITS)
    };
    let diff_id = match layer(NONE) {
        Err(LayerError::DiffId { found, .. }) => found,
        Err(error) => return assert!(!error.to_string().contains(['\n', '\x1b']), "{error}"),
        Ok(_) => panic!("nothing has the digest of zeros"),
    };
    let (image, converted) = layer(&diff_id).expect("what it is, it is");
    let image = image.into_inner();
    assert!(image.len() as u64 <= IMAGE.image_bytes, "{} bytes were written", image.len());
    assert_eq!(image.len() as u64, converted.summary.bytes);
    assert!(converted.implied.len() as u64 <= converted.summary.inodes);
    let superblock = Superblock::parse(&image[..SUPERBLOCK_END]).expect("a superblock");
    assert_eq!(superblock.bytes, converted.summary.bytes);
    let (again, same) = layer(&diff_id).expect("what worked once works twice");
    assert!(again.into_inner() == image && same == converted, "one layer, two images");
});
