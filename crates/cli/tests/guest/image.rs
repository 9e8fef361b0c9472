//! Images in layers, booted.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use supervisor::image::{ImageRef, Store};
use supervisor::{Error, SandboxSpec, Supervisor};

use crate::support::{block_on, engines, launcher, sh, shell, try_run, with_spec};

/// What all of the image's programs are.
const BUSYBOX: &str = "/bin/busybox";

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
fn layout() -> Option<tempfile::TempDir> {
    let busybox = match fs::read(BUSYBOX).or_else(|_| fs::read("/usr/bin/busybox")) {
        Ok(busybox) => busybox,
        Err(error) => {
            eprintln!("not run: {BUSYBOX}: {error}; install busybox-static");
            return None;
        }
    };
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
    let manifest = put("manifest.v1+json", manifest.to_string().as_bytes());
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(directory.path().join("index.json"), index.to_string()).unwrap();
    let version = json!({"imageLayoutVersion": "1.0.0"});
    fs::write(directory.path().join("oci-layout"), version.to_string()).unwrap();
    Some(directory)
}

fn spec(layout: &Path) -> SandboxSpec {
    SandboxSpec {
        image: Some(ImageRef::Path(layout.to_owned())),
        cpus: Some(1),
        memory_mb: 256,
        ..SandboxSpec::default()
    }
}

#[test]
fn an_image_in_layers_runs_as_it_says() {
    let Some(layout) = layout() else { return };
    with_spec(&spec(layout.path()), async |guest| {
        assert_eq!(sh(guest, "cat /opt/*; ls /opt").await.ok(), "upper\nlower\ncomes\nstays\n");
        assert_eq!(sh(guest, "echo $GREETING; pwd").await.ok(), "hello\n/srv/app\n");
        assert_eq!(sh(guest, "echo x > here && id -u").await.ok(), "1000\n");
        let mut own = shell("echo $GREETING; pwd");
        own.env = crate::support::env(&[("GREETING", "own")]);
        own.cwd = Some(supervisor::wire::text::Text::from("/opt"));
        assert_eq!(try_run(guest, own).await.unwrap().ok(), "own\n/opt\n");
    });
}

/// Where the content of `part` begins in a file of the store.
fn find(store: &Path, part: &[u8]) -> (std::path::PathBuf, u64) {
    let mut directories = vec![store.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "erofs") {
                let content = fs::read(&path).unwrap();
                let mut blocks = content.chunks(4096);
                if let Some(block) = blocks.position(|block| block == &part[..4096]) {
                    return (path, 4096 * block as u64);
                }
            }
        }
    }
    panic!("no file of the store has it")
}

#[test]
fn a_changed_byte_of_a_layer_ends_the_machine_that_reads_it() {
    let Some(layout) = layout() else { return };
    let busybox = fs::read(BUSYBOX).or_else(|_| fs::read("/usr/bin/busybox")).unwrap();
    for engine in engines() {
        let cache = tempfile::tempdir().unwrap();
        let supervisor = || Supervisor::with_store(launcher(), Store::open(cache.path()).unwrap());
        let spec = || SandboxSpec { engine: Some(engine.clone()), ..spec(layout.path()) };
        block_on(async {
            let sandbox = supervisor().create(spec(), &mut ()).await.unwrap();
            assert_eq!(sh(&sandbox, "echo fine").await.ok(), "fine\n");
            sandbox.destroy().await.unwrap();
            let (path, at) = find(cache.path(), &busybox);
            let mut permissions = fs::metadata(&path).unwrap().permissions();
            std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
            fs::set_permissions(&path, permissions).unwrap();
            let layer = File::options().write(true).open(&path).unwrap();
            layer.write_all_at(b"?", at + 100).unwrap();
            let ended = match supervisor().create(spec(), &mut ()).await {
                Err(error) => error,
                Ok(sandbox) => match try_run(&sandbox, shell("echo fine")).await {
                    Ok(ran) => panic!("it ran: {ran:?}"),
                    Err(error) => Error::Guest(error),
                },
            };
            eprintln!("{ended}");
        });
    }
}
