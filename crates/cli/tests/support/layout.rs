//! An image in layers that is small and runs.

use std::fs;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// What all of the image's programs are, where the host has it.
pub(crate) fn busybox() -> Option<Vec<u8>> {
    match fs::read("/bin/busybox").or_else(|_| fs::read("/usr/bin/busybox")) {
        Ok(busybox) => Some(busybox),
        Err(error) => {
            eprintln!("not run: /bin/busybox: {error}; install busybox-static");
            None
        }
    }
}

fn layer(add: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    add(&mut layer);
    layer.into_inner().unwrap()
}

fn file(layer: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, content: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    layer.append_data(&mut header, path, content).unwrap();
}

/// An OCI layout of busybox, with a second layer that takes something away; none where the host
/// has no busybox.
pub(crate) fn layout() -> Option<tempfile::TempDir> {
    let busybox = busybox()?;
    let lower = layer(|layer| {
        file(layer, "bin/busybox", 0o755, &busybox);
        for name in ["sh", "cat", "ls", "pwd", "id"] {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            header.set_mode(0o777);
            layer.append_link(&mut header, format!("bin/{name}"), "busybox").unwrap();
        }
        file(layer, "opt/stays", 0o644, b"lower\n");
        file(layer, "opt/goes", 0o644, b"lower\n");
    });
    let upper = layer(|layer| {
        file(layer, "opt/.wh.goes", 0o644, b"");
        file(layer, "opt/comes", 0o644, b"upper\n");
    });
    let directory = tempfile::tempdir().unwrap();
    let blobs = directory.path().join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |kind: &str, bytes: &[u8]| -> Value {
        let digest: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        fs::write(blobs.join(&digest), bytes).unwrap();
        let media_type = format!("application/vnd.oci.image.{kind}");
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()})
    };
    let layers = [&lower, &upper].map(|layer| put("layer.v1.tar", layer));
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer["digest"].clone()).collect();
    let config = json!({
        "os": "linux",
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "config": {"Env": ["PATH=/bin", "GREETING=hello"], "WorkingDir": "/srv/app"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = put("config.v1+json", config.to_string().as_bytes());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
    let mut manifest = put("manifest.v1+json", manifest.to_string().as_bytes());
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(directory.path().join("index.json"), index.to_string()).unwrap();
    let version = json!({"imageLayoutVersion": "1.0.0"});
    fs::write(directory.path().join("oci-layout"), version.to_string()).unwrap();
    Some(directory)
}
