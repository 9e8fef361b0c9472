//! `sandforge image` with an image in layers, as its users call it.

mod support;

use std::fs;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use support::{Call, Output};

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, contents) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, *contents).unwrap();
    }
    tar.into_inner().unwrap()
}

/// What `docker save` writes of an image of one layer.
fn saved() -> Vec<u8> {
    let layer = archive(&[("etc/motd", b"hello\n")]);
    let diff_id: String = Sha256::digest(&layer).iter().map(|byte| format!("{byte:02x}")).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = format!(
        r#"{{"os":"linux","architecture":"{architecture}","config":{{"Cmd":["sh"]}},
        "rootfs":{{"type":"layers","diff_ids":["sha256:{diff_id}"]}}}}"#
    );
    let manifest = br#"[{"Config":"c.json","RepoTags":["tool:1"],"Layers":["l.tar"]}]"#;
    archive(&[("manifest.json", manifest), ("c.json", config.as_bytes()), ("l.tar", &layer)])
}

fn ask(cache: &Path, arguments: &[&str]) -> Output {
    Call::new(["image"]).arguments(arguments).env("XDG_CACHE_HOME", cache).output()
}

#[track_caller]
fn shows(output: &Output, text: &str) {
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains(text), "{stdout:?} does not have {text:?}");
}

#[test]
fn an_image_in_layers_is_brought_in_looked_at_and_taken_out_again() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, path) = (directory.path(), directory.path().join("saved.tar"));
    fs::write(&path, saved()).unwrap();
    let (path, out) = (path.to_str().unwrap(), directory.path().join("out.tar"));
    let out = out.to_str().unwrap();
    shows(&ask(cache, &["import", path, "tool:1"]).exits(0), "tool:1 ");
    shows(&ask(cache, &["ls"]).exits(0), "tool:1");
    let inspected = ask(cache, &["inspect", "tool:1"]).exits(0);
    shows(&inspected, "\"cmd\":[\"sh\"]");
    shows(&inspected, "\"verity\":{");
    ask(cache, &["verify", "tool:1"]).exits(0).prints("tool:1: ok\n");
    ask(cache, &["export", "tool:1", out]).exits(0);
    shows(&ask(cache, &["import", out, "again", "--json"]).exits(0), "library/again:latest");
    ask(cache, &["rm", "tool:1", "again"]).exits(0);
    ask(cache, &["ls", "--json"]).exits(0).prints("[]\n");
    shows(&ask(cache, &["prune", "--json"]).exits(0), "\"layers\":0");
    ask(cache, &["inspect", "tool:1"]).exits(3);
    ask(cache, &["export", "tool:1", out]).exits(3);
    ask(cache, &["import", "/dev/null"]).exits(1);
}
