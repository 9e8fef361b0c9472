//! Images by somebody who means harm. Each is refused, or does only what its layers could do by
//! themselves inside of the root.

use std::fs;
use std::io::{Cursor, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use image::Compression;
use image::oci::{DocumentError, Expected, LayerError, Limits, OciError, convert};
use image::{ImageError, RootImage, erofs};
use serde_json::{Value, json};

use crate::judge::{check_layers, stacked, walk};
use crate::make::{self, Blob, Tar, bytes, descriptor, sha256};
use crate::store::Bench;

fn resolved(layers: &[Blob]) -> Result<RootImage, ImageError> {
    let bench = Bench::new();
    let found = bench.resolve(&bench.layout("image", layers));
    let left: Vec<String> =
        bench.names("layers").into_iter().filter(|name| name.starts_with('.')).collect();
    assert!(left.is_empty(), "{left:?}");
    if found.is_err() {
        assert!(bench.store.list().unwrap().is_empty(), "a refused image has no name");
    }
    found
}

fn below() -> Blob {
    Blob::plain(
        &Tar::default()
            .dir("etc", 0o755)
            .file("etc/passwd", b"root")
            .dir("opt", 0o755)
            .file("opt/a", b"a")
            .dir("dev", 0o755)
            .file("dev/null", b"a file")
            .symlink("lib", "usr/lib")
            .symlink("up", "../../../../etc")
            .symlink("away", "/not/there")
            .symlink("loop", "loop")
            .symlink("to-file", "etc/passwd")
            .dir("usr", 0o755)
            .dir("usr/lib", 0o755)
            .end(),
    )
}

#[track_caller]
fn refused(tar: Tar, words: &str) {
    let error = resolved(&[below(), Blob::gzip(&tar.end())]).unwrap_err().to_string();
    assert!(error.contains(words), "{error:?} does not say {words:?}");
    assert!(!error.contains(['\n', '\x1b']), "{error:?}");
}

/// What is to be seen of a layer on top of [`below`].
#[track_caller]
fn seen(tar: Tar, look: impl FnOnce(&Path)) {
    let image = resolved(&[below(), Blob::gzip(&tar.end())]).unwrap();
    check_layers(&image);
    stacked(&image, look);
}

#[test]
fn a_symbolic_link_leads_wherever_it_says_and_nothing_is_written_through_it() {
    let links = || Tar::default().symlink("out", "/etc").symlink("up", "../../../../etc");
    seen(links().symlink("self", "self"), |root| {
        assert_eq!(fs::read_link(root.join("out")).unwrap(), Path::new("/etc"));
        assert_eq!(fs::read_link(root.join("up")).unwrap(), Path::new("../../../../etc"));
    });
    refused(links().file("out/passwd", b"harm"), "not a directory");
    refused(links().dir("up/cron.d", 0o755), "not a directory");
    refused(links().hard_link("out/x", "out"), "not a directory");
    refused(links().file("out/.wh.passwd", b""), "not a directory");
}

#[test]
fn a_hard_link_reaches_nothing_but_the_image() {
    refused(Tar::default().hard_link("x", "../../etc/shadow"), "could leave the root");
    refused(Tar::default().hard_link("x", "/etc/shadow"), "not in the archive before it");
    refused(Tar::default().hard_link("x", "etc"), "not in the archive before it");
    refused(Tar::default().hard_link("x", "etc/passwd/y"), "not in the archive before it");
    refused(Tar::default().hard_link("x", "loop/y"), "not in the archive before it");
    refused(Tar::default().dir("d", 0o755).hard_link("x", "d"), "cannot be a hard link");
    refused(
        Tar::default().file("etc/.wh.a", b"").hard_link("x", "etc/.wh.a"),
        "not in the archive",
    );
    // To a symbolic link: to the link itself, never to what it leads to.
    seen(Tar::default().symlink("l", "/etc/shadow").hard_link("x", "l"), |root| {
        assert_eq!(fs::read_link(root.join("x")).unwrap(), Path::new("/etc/shadow"));
    });
}

#[test]
fn no_name_leaves_the_root() {
    for name in ["../x", "a/../../x", "..", "a/.."] {
        refused(Tar::default().file(name, b""), "could leave the root");
        refused(Tar::default().dir(name, 0o755), "could leave the root");
    }
    seen(Tar::default().file("/etc/absolute", b"x").file("./etc//./dotted", b"x"), |root| {
        assert!(root.join("etc/absolute").is_file() && root.join("etc/dotted").is_file());
    });
    refused(Tar::default().file("", b"x"), "nor the root anything but a directory");
}

#[test]
fn whiteouts_of_odd_names_hide_that_name_or_are_refused() {
    for name in ["etc/.wh.", ".wh.", "etc/.wh..", "etc/.wh...", ".wh...", ".wh.."] {
        refused(Tar::default().file(name, b""), "whiteout of no name");
    }
    refused(Tar::default().file(".wh.a/b", b""), "not a directory");
    refused(Tar::default().file("f", b"").file("f/.wh.x", b""), "not a directory");
    let layer = Tar::default()
        .file("etc/.wh.passwd", b"with contents")
        .file("etc/.wh.never-was", b"")
        .file("nowhere/deep/.wh.x", b"")
        .hard_link("opt/.wh.a", "etc/.wh.passwd")
        // What another builder noted for itself.
        .dir(".wh..wh.plnk", 0o700)
        .file(".wh..wh.plnk/1.2", b"")
        .file(".wh..wh.aufs", b"")
        .file("etc/.wh.whale", b"")
        .file("etc/wh.name", b"kept");
    seen(layer, |root| {
        let found = walk(root);
        assert!(!found.contains_key(Path::new("etc/passwd")));
        assert!(!found.contains_key(Path::new("opt/a")));
        assert!(found.contains_key(Path::new("etc/wh.name")));
        let is_left = |path: &&std::path::PathBuf| path.to_string_lossy().contains(".wh.");
        assert_eq!(found.keys().find(is_left), None);
    });
}

#[test]
fn an_opaque_directory_is_one_however_often_and_wherever_it_is_said() {
    let twice = Tar::default()
        .file("opt/new", b"new")
        .file("opt/.wh..wh..opq", b"")
        .file("opt/.wh..wh..opq", b"")
        .dir("opt", 0o700)
        .file("opt/.wh.new", b"");
    seen(twice, |root| {
        let found = walk(&root.join("opt"));
        assert_eq!(found.keys().collect::<Vec<_>>(), [Path::new("new")]);
        assert_eq!(root.join("opt").metadata().unwrap().mode() & 0o7777, 0o700);
    });
    // A directory in the place of one that the same layer takes away.
    seen(Tar::default().dir("etc", 0o755).file("etc/mine", b"").file(".wh.etc", b""), |root| {
        let found = walk(&root.join("etc"));
        assert_eq!(found.keys().collect::<Vec<_>>(), [Path::new("mine")]);
    });
}

#[test]
fn the_marks_of_the_overlay_itself_cannot_be_brought_along() {
    let layer = Tar::default()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.kept", b"1"),
        ])
        .dir("opt", 0o755);
    seen(layer, |root| {
        assert!(root.join("opt/a").is_file(), "hidden by an attribute");
        let mut value = [0; 16];
        assert_eq!(rustix::fs::getxattr(root.join("opt"), "user.kept", &mut value), Ok(1));
    });
}

#[test]
fn a_device_becomes_nothing_and_hides_what_is_below() {
    let layer = Tar::default()
        .device("dev/null")
        .raw(b'4', b"sda", b"", 0o666, 0, b"")
        .device("etc/passwd")
        .file("x", b"replaced")
        .device("x")
        .device("y")
        .file("y", b"later");
    let image = resolved(&[below(), Blob::plain(&layer.end())]).unwrap();
    check_layers(&image);
    stacked(&image, |root| {
        let found = walk(root);
        for gone in ["dev/null", "sda", "etc/passwd", "x"] {
            assert!(!found.contains_key(Path::new(gone)), "{gone}");
        }
        assert!(found.values().all(|what| !what.ends_with("device")));
        assert_eq!(fs::read(root.join("y")).unwrap(), b"later");
    });
}

#[test]
fn files_behind_a_link_of_a_lower_layer_go_where_it_leads_and_never_out() {
    let text = |root: &Path, path: &str| fs::read_to_string(root.join(path)).unwrap();
    seen(Tar::default().file("lib/x", b"x").file("up/y", b"y").file("lib/d/z", b"z"), |root| {
        assert_eq!(fs::read_link(root.join("lib")).unwrap(), Path::new("usr/lib"));
        assert_eq!(text(root, "usr/lib/x"), "x");
        assert_eq!(text(root, "usr/lib/d/z"), "z");
        // Out of the root is the root again.
        assert_eq!(text(root, "etc/y"), "y");
        assert_eq!(text(root, "etc/passwd"), "root");
        let etc = fs::symlink_metadata(root.join("etc")).unwrap();
        assert_eq!(etc.mode() & 0o7777, 0o755);
    });
    seen(Tar::default().file("up/.wh.passwd", b"").file("away/new", b"n"), |root| {
        assert!(!root.join("etc/passwd").exists());
        assert_eq!(text(root, "not/there/new"), "n");
    });
    // With an entry, the layer says that it means a directory, and what was behind the link is not in it.
    seen(Tar::default().dir("lib", 0o755).file("lib/x", b"x").file("lib/e/y", b"y"), |root| {
        assert!(root.join("lib").symlink_metadata().unwrap().is_dir());
        assert!(root.join("lib/e/y").exists() && !root.join("usr/lib/e").exists());
    });
    refused(Tar::default().file("loop/x", b"x"), "/loop, which is no directory");
    refused(Tar::default().file("etc/passwd/x", b"x"), "/etc/passwd, which is no directory");
    refused(Tar::default().file("to-file/x", b"x"), "/to-file, which is no directory");
}

#[test]
fn a_hard_link_to_a_file_of_a_lower_layer_is_that_file_once_more() {
    seen(
        Tar::default()
            .hard_link("opt/b", "opt/a")
            .hard_link("opt/c", "opt/b")
            .hard_link("opt/l", "lib")
            .hard_link("p", "up/passwd"),
        |root| {
            for name in ["opt/a", "opt/b", "opt/c"] {
                assert_eq!(fs::read_to_string(root.join(name)).unwrap(), "a", "{name}");
            }
            assert_eq!(fs::read_link(root.join("opt/l")).unwrap(), Path::new("usr/lib"));
            assert_eq!(fs::read_to_string(root.join("p")).unwrap(), "root");
        },
    );
}

#[test]
fn what_only_one_image_needs_goes_with_it() {
    let bench = Bench::new();
    let layers = [below(), Blob::gzip(&Tar::default().file("lib/x", b"x").end())];
    let path = bench.layout("image", &layers);
    let image = bench.resolve(&path).unwrap();
    check_layers(&image);
    bench.store.verify("image", &mut ()).unwrap();
    let made = bench.names("layers");
    assert!(made.iter().any(|name| name.starts_with("own-")), "{made:?}");
    bench.resolve(&path).unwrap();
    assert_eq!(bench.names("layers"), made);
    bench.store.prune(false).unwrap();
    assert_eq!(bench.names("layers").len(), made.len());
    drop(image);
    bench.store.remove("image").unwrap();
    bench.store.prune(false).unwrap();
    assert_eq!(bench.names("layers"), [""; 0]);
}

#[test]
fn setuid_is_kept_as_the_bits_of_a_mode() {
    let layer = Tar::default().mode("su", 0o6755, b"x").dir("t", 0o3777);
    seen(layer, |root| {
        assert_eq!(root.join("su").metadata().unwrap().mode() & 0o7777, 0o6755);
        assert_eq!(root.join("t").metadata().unwrap().mode() & 0o7777, 0o3777);
    });
}

#[test]
fn of_names_that_come_twice_the_later_holds() {
    let layer = Tar::default()
        .file("etc/passwd", b"first")
        .symlink("etc/passwd", "/x")
        .file("etc/passwd", b"last")
        .dir("a", 0o755)
        .file("a/b", b"")
        .symlink("a", "/etc")
        .dir("a", 0o711);
    seen(layer, |root| {
        assert_eq!(fs::read(root.join("etc/passwd")).unwrap(), b"last");
        assert_eq!(walk(&root.join("a")).len(), 0);
    });
    // Read as a file by one, as a directory by another.
    refused(Tar::default().raw(b'5', b"d", b"", 0o755, 3, b"abc"), "only files have contents");
}

#[test]
fn names_and_paths_that_no_system_has_are_refused() {
    let long = vec![b'n'; 256];
    refused(Tar::default().pax(&[("path", &long)]).file("x", b""), "over 255 bytes");
    let deep = b"d/".repeat(2100);
    refused(Tar::default().pax(&[("path", &deep)]).file("x", b""), "over 4095 bytes");
    let whiteout = [b".wh.", &[b'n'; 252][..]].concat();
    refused(Tar::default().pax(&[("path", &whiteout)]).file("x", b""), "over 255 bytes");
    refused(Tar::default().pax(&[("path", b"a\0b")]).file("x", b""), "NUL");
    let control = Tar::default().file("a\x1b[31m\n", b"x").file("a\x1b[31m\n/b", b"");
    refused(control, "not a directory");
    seen(Tar::default().pax(&[("path", &b"d/".repeat(300))]).dir("x", 0o700), |root| {
        assert!(root.join("d/d/d/d").is_dir());
    });
}

#[test]
fn a_huge_sparse_file_takes_no_disk_and_one_beyond_the_limit_is_refused() {
    let image = resolved(&[Blob::gzip(&Tar::default().sparse("huge", 1 << 30).end())]).unwrap();
    let meta = image.layers[0].file.metadata().unwrap();
    // The hash tree over it is what is stored.
    assert!(meta.len() > 1 << 30 && meta.blocks() * 512 < 32 << 20, "{} blocks", meta.blocks());
    refused(Tar::default().sparse("huge", 1 << 45), "exceed the limit");
    refused(Tar::default().sparse("huge", u64::MAX), "");
}

/// A layer by itself, with small limits.
fn converted(blob: &[u8], compression: Compression, limits: Limits) -> Result<(), LayerError> {
    let (digest, diff_id) = (sha256(blob), format!("sha256:{}", "0".repeat(64)));
    let expected =
        Expected { digest: &digest, size: blob.len() as u64, diff_id: &diff_id, compression };
    convert(blob, expected, Cursor::new(Vec::new()), limits).map(|_| ())
}

#[test]
fn a_bomb_is_stopped_long_before_it_has_gone_off() {
    let zeros =
        Tar::default().raw(b'0', b"zeros", b"", 0o644, 256 << 20, &vec![0; 256 << 20]).end();
    let limits = Limits { unpacked_bytes: 100 << 20, ..Limits::default() };
    let error = converted(&make::gzip(&zeros), Compression::Gzip, limits).unwrap_err();
    assert!(matches!(error, LayerError::Bomb { limit } if limit == 100 << 20), "{error}");
    // Of zstd a few bytes are enough: the ratio stops it without any other limit.
    let bomb = zstd_of_zeros(4 << 30);
    assert!(bomb.len() < 200_000);
    let error = converted(&bomb, Compression::Zstd, Limits::default()).unwrap_err();
    assert!(matches!(error, LayerError::Bomb { .. } | LayerError::Write(_)), "{error}");
    // Behind the end of the archive, where no entry counts them.
    let tail = [make::gzip(&Tar::default().end()), make::gzip(&vec![0; 64 << 20])].concat();
    let error = converted(&tail, Compression::Gzip, Limits::default()).unwrap_err();
    assert!(matches!(error, LayerError::Write(_)), "{error}");
}

/// A frame of blocks that each repeat one byte 128 KiB times, behind the header of a file that large.
fn zstd_of_zeros(size: u64) -> Vec<u8> {
    let header = Tar::default().raw(b'0', b"zeros", b"", 0o644, 7 << 30, b"").end()[..512].to_vec();
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58];
    let block = |kind: u32, size: u32| (size << 3 | kind << 1).to_le_bytes()[..3].to_vec();
    frame.extend(block(0, 512));
    frame.extend(header);
    for _ in 0..size / (128 << 10) {
        frame.extend(block(1, 128 << 10));
        frame.push(0);
    }
    frame.extend((1_u32).to_le_bytes()[..3].to_vec());
    frame
}

#[test]
fn entries_names_and_bytes_are_bounded() {
    let small = erofs::Limits { image_bytes: 1 << 20, entries: 100, metadata_bytes: 4096 };
    let limits = Limits { image: small, ..Limits::default() };
    let over = |tar: Tar| {
        let error = converted(&tar.end(), Compression::None, limits).unwrap_err();
        assert!(matches!(&error, LayerError::Write(erofs::WriteError::Limit { .. })), "{error}");
    };
    over((0..200).fold(Tar::default(), |tar, n| tar.file(&format!("{n}"), b"")));
    over((0..200).fold(Tar::default(), |tar, n| tar.file(&format!(".wh.{n}"), b"")));
    over((0..70).fold(Tar::default(), |tar, n| tar.file(&format!("{n:090}"), b"")));
    over((0..70).fold(Tar::default(), |tar, n| tar.file(&format!("{n:080}/.wh..wh..opq"), b"")));
    over(Tar::default().sparse("x", 2 << 20));
}

fn error_of(layers: &[Blob]) -> LayerError {
    match resolved(layers).unwrap_err() {
        ImageError::Oci { source: OciError::Layer { source, .. }, .. } => source,
        other => panic!("{other}"),
    }
}

#[test]
fn a_blob_that_is_not_what_its_digest_says_is_refused() {
    let bench = Bench::new();
    let layer = below();
    let layout = bench.layout("image", std::slice::from_ref(&layer));
    let blob = layout.join("blobs/sha256").join(&sha256(&layer.bytes)[7..]);
    let mut damaged = layer.bytes.clone();
    damaged[700] ^= 1;
    for (contents, words) in [
        (damaged, "its SHA-256 is"),
        (layer.bytes[..1024].to_vec(), "1024 bytes"),
        ([&layer.bytes[..], b"more"].concat(), "bytes, not"),
    ] {
        fs::write(&blob, contents).unwrap();
        let error = bench.resolve(&layout).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert!(bench.names("layers").is_empty());
    }
}

#[test]
fn a_layer_that_is_not_what_the_configuration_says_is_refused() {
    let mut other = Blob::gzip(&Tar::default().file("a", b"1").end());
    other.diff_id = sha256(b"another");
    assert!(matches!(error_of(&[other]), LayerError::DiffId { .. }));
}

#[test]
fn a_layer_is_compressed_as_its_media_type_says() {
    let tar = Tar::default().file("a", b"1").end();
    let mut wrong = Blob::gzip(&tar);
    wrong.media_type = make::LAYER.into();
    assert!(matches!(error_of(&[wrong]), LayerError::Compression(Compression::Gzip)));
    let mut wrong = Blob::plain(&tar);
    wrong.media_type = format!("{}+zstd", make::LAYER);
    assert!(matches!(error_of(&[wrong]), LayerError::Compression(Compression::None)));
}

#[test]
fn what_stands_behind_a_compressed_layer_is_not_passed_over() {
    let tar = Tar::default().file("a", b"1").end();
    let mut layer = Blob::gzip(&tar);
    layer.bytes.extend_from_slice(b"trailing bytes that are no member");
    resolved(&[layer]).unwrap_err();
    let mut layer = Blob::plain(&[&tar[..], &Tar::default().file("b", b"2").end()].concat());
    layer.diff_id = sha256(&layer.bytes);
    assert!(matches!(error_of(&[layer]), LayerError::Write(_)));
}

/// As umoci writes layers.
#[test]
fn a_layer_may_lack_the_mark_of_its_end_and_nothing_before_that() {
    let whole = Tar::default().file("a", &[b'1'; 600]).file("b", b"2").end();
    let unmarked = &whole[..whole.len() - 1024];
    let image = resolved(&[Blob::gzip(unmarked)]).unwrap();
    check_layers(&image);
    stacked(&image, |root| {
        assert_eq!(std::fs::read(root.join("b")).unwrap(), b"2");
    });
    let with_extension = Tar::default().pax(&[("path", b"c")]).end();
    let extension_alone = &with_extension[..with_extension.len() - 1024];
    // Nor need its last block be full, of which file b has one byte.
    let image = resolved(&[Blob::gzip(&unmarked[..unmarked.len() - 511])]).unwrap();
    stacked(&image, |root| {
        assert_eq!(std::fs::read(root.join("b")).unwrap(), b"2");
    });
    let without_content = &unmarked[..unmarked.len() - 512];
    for cut in [without_content, &unmarked[..1000], &unmarked[..100], extension_alone] {
        let error = error_of(&[Blob::gzip(cut)]);
        assert!(matches!(error, LayerError::Write(_)), "{error}");
        assert!(error.to_string().contains("cut short"), "{error}");
    }
}

/// A layout whose index leads to these documents.
fn index_to(
    bench: &Bench,
    documents: &[&Value],
    entries: &[Value],
) -> Result<RootImage, ImageError> {
    let path = bench.path("image");
    make::add(&path, &[below()]);
    documents.iter().for_each(|document| make::put(&path, &bytes(document)));
    make::index(&path, entries);
    bench.resolve(&path)
}

fn document_error(error: ImageError) -> DocumentError {
    match error {
        ImageError::Oci { source: OciError::Document { source, .. }, .. } => source,
        other => panic!("{other}"),
    }
}

#[test]
fn a_document_is_what_leads_to_it_and_nothing_else_too() {
    let layers = [below()];
    let config = bytes(&make::config(&layers));
    let good = make::manifest(&config, &layers);
    let with = |key: &str, value: Value| {
        let mut changed = good.clone();
        changed[key] = value;
        changed
    };
    let both = with("manifests", json!([descriptor(make::MANIFEST, &bytes(&good))]));
    for (document, media_type) in [
        // The same bytes, a list to one and an image to another.
        (both.clone(), make::MANIFEST),
        (both, make::INDEX),
        (with("mediaType", json!(make::INDEX)), make::MANIFEST),
        (good.clone(), make::INDEX),
        (with("mediaType", json!("text/plain")), make::MANIFEST),
        (with("config", descriptor("application/vnd.oci.empty.v1+json", &config)), make::MANIFEST),
        (with("layers", json!([])), make::MANIFEST),
    ] {
        let entry = descriptor(media_type, &bytes(&document));
        let error = index_to(&Bench::new(), &[&document], &[entry]).unwrap_err();
        let refused = document_error(error);
        assert!(!matches!(refused, DocumentError::Json(_)), "{refused}");
    }
    // Without a media type of its own it is what leads to it.
    let mut silent = good.clone();
    silent.as_object_mut().unwrap().remove("mediaType");
    let entry = descriptor(make::MANIFEST, &bytes(&silent));
    index_to(&Bench::new(), &[&silent], &[entry]).unwrap();
}

#[test]
fn of_a_list_the_platform_of_the_guest_is_taken_and_its_image_has_to_be_of_it() {
    let layers = [below()];
    let entry = |config: &Value, os: &str, architecture: &str| {
        let manifest = make::manifest(&bytes(config), &layers);
        let mut entry = descriptor(make::MANIFEST, &bytes(&manifest));
        entry["platform"] = json!({"os": os, "architecture": architecture});
        (manifest, entry)
    };
    let ours = make::config(&layers);
    let mut other = ours.clone();
    other["architecture"] = json!("riscv64");
    let (other_manifest, other_entry) = entry(&other, "linux", "riscv64");
    let (our_manifest, our_entry) = entry(&ours, "linux", make::arch());
    let image = index_to(
        &Bench::new(),
        &[&other, &other_manifest, &our_manifest],
        &[other_entry.clone(), our_entry.clone()],
    );
    assert_eq!(image.unwrap().digest.unwrap(), our_entry["digest"].as_str().unwrap()[7..]);
    // A list that says it is ours, and an image that says it is another's.
    let (liar, lie) = entry(&other, "linux", make::arch());
    let error = index_to(&Bench::new(), &[&other, &liar], &[lie]).unwrap_err();
    assert!(matches!(document_error(error), DocumentError::Platform { .. }));
    let error = index_to(&Bench::new(), &[&other, &other_manifest], &[other_entry]).unwrap_err();
    assert!(matches!(document_error(error), DocumentError::Platform { .. }));
}

#[test]
fn lists_in_lists_end() {
    let bench = Bench::new();
    let mut entry = make::add(&bench.path("image"), &[below()]);
    let mut lists = Vec::new();
    for _ in 0..6 {
        let list = json!({"schemaVersion": 2, "mediaType": make::INDEX, "manifests": [entry]});
        entry = descriptor(make::INDEX, &bytes(&list));
        lists.push(list);
    }
    let error = index_to(&bench, &lists.iter().collect::<Vec<_>>(), &[entry]).unwrap_err();
    assert!(matches!(document_error(error), DocumentError::Value(_)));
}

#[test]
fn a_digest_is_never_a_path() {
    let layers = [below()];
    let config = bytes(&make::config(&layers));
    for digest in ["sha256:../../../../etc/passwd", "../x", "sha256:", "md5:00", "sha256:ABC"] {
        let mut manifest = make::manifest(&config, &layers);
        manifest["layers"][0]["digest"] = json!(digest);
        let entry = descriptor(make::MANIFEST, &bytes(&manifest));
        let error = index_to(&Bench::new(), &[&manifest], &[entry]).unwrap_err();
        assert!(matches!(document_error(error), DocumentError::Digest(_)), "{digest}");
        let bench = Bench::new();
        let reference = "a".parse().unwrap();
        bench.store.import(&reference, digest, &mut ()).unwrap_err();
    }
}

#[test]
fn documents_over_four_mebibytes_are_not_read() {
    let bench = Bench::new();
    let layers = [below()];
    let mut config = make::config(&layers);
    config["config"]["Labels"] = json!({"long": "x".repeat(5 << 20)});
    let path = bench.path("image");
    let manifest = make::manifest(&bytes(&config), &layers);
    make::put(&path, &layers[0].bytes);
    make::put(&path, &bytes(&config));
    make::put(&path, &bytes(&manifest));
    make::index(&path, &[descriptor(make::MANIFEST, &bytes(&manifest))]);
    bench.resolve(&path).unwrap_err();
}

#[test]
fn an_archive_of_docker_reads_only_what_is_in_it() {
    let bench = Bench::new();
    let layers = [below()];
    let config = bytes(&make::config(&layers));
    let name = format!("{}.json", &sha256(&config)[7..]);
    let saved = |layer: &str| {
        let manifest = json!([{"Config": name, "RepoTags": null, "Layers": [layer]}]);
        Tar::default()
            .file(&name, &config)
            .symlink("link.tar", "../../../../etc/passwd")
            .symlink("absolute.tar", "/etc/passwd")
            .symlink("round.tar", "round.tar")
            .file("manifest.json", &bytes(&manifest))
            .end()
    };
    for layer in ["../../etc/passwd", "/etc/passwd", "link.tar", "absolute.tar", "round.tar"] {
        fs::write(bench.path("saved.tar"), saved(layer)).unwrap();
        let error = bench.resolve(&bench.path("saved.tar")).unwrap_err();
        let missing = matches!(error, ImageError::Oci { source: OciError::Missing { .. }, .. });
        assert!(missing, "{error}");
    }
    let mut many = Tar::default();
    for n in 0..4200 {
        many = many.file(&format!("blobs/{n}"), b"");
    }
    fs::write(bench.path("many.tar"), many.end()).unwrap();
    let error = bench.resolve(&bench.path("many.tar")).unwrap_err();
    assert!(matches!(error, ImageError::Oci { source: OciError::Many { .. }, .. }), "{error}");
    assert!(bench.names("oci/blobs/sha256").is_empty());
}

#[test]
fn what_another_tool_makes_of_a_whole_file_is_read_to_its_end() {
    let image = resolved(&[below()]).unwrap();
    let mut first = Vec::new();
    let mut file = &image.layers[0].file;
    std::io::Seek::rewind(&mut file).unwrap();
    file.take(4096).read_to_end(&mut first).unwrap();
    let verity = image.layers[0].verity.as_ref().unwrap();
    assert_eq!(erofs::Superblock::parse(&first).unwrap().bytes, verity.tree);
}
