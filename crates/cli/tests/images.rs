//! `sandforge image` with an image in layers, as its users call it.

#[path = "support/layout.rs"]
mod layout;
mod support;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use support::{Call, Output, engines};

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

/// Debian's registry, on this host, without TLS. It ends with this.
struct Registry {
    child: Child,
    host: String,
}

impl Registry {
    /// None where there is none to be had.
    fn start(directory: &Path) -> Option<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        drop(listener);
        let data = directory.join("registry");
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {data:?}}}}}\nhttp: {{addr: {host}}}\n"
        );
        fs::write(directory.join("registry.yml"), config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(directory.join("registry.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) => {
                eprintln!("not run: docker-registry: {error}; install docker-registry");
                return None;
            }
        };
        let this = Self { child, host };
        let begun = Instant::now();
        while TcpStream::connect(&this.host).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "the registry does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(this)
    }

    /// Puts the only image of a layout there.
    fn take(&self, layout: &Path, name: &str) {
        let to = format!("docker://{}/{name}", self.host);
        let from = format!("oci:{}:latest", layout.display());
        let copied = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", &from, &to])
            .output();
        let copied = copied.expect("skopeo; apt install skopeo");
        assert!(copied.status.success(), "{copied:?}");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_image_comes_from_a_registry_runs_and_goes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let Some(layout) = layout::layout() else { return };
    let Some(registry) = Registry::start(path) else { return };
    registry.take(layout.path(), "acme/tool:1");
    let image = format!("{}/acme/tool:1", registry.host);
    let ask = |arguments: &[&str]| {
        Call::new(arguments)
            .env("XDG_CACHE_HOME", path)
            .env("SANDFORGE_DATA_DIR", path.join("data"))
            .env("SANDFORGE_CONFIG_DIR", path.join("config"))
            .env("SANDFORGE_RUNTIME_DIR", path.join("run"))
            .output()
    };
    fs::create_dir(path.join("config")).unwrap();
    fs::create_dir(path.join("run")).unwrap();
    let refused = ask(&["image", "pull", &image]).exits(1);
    refused.says("plain_http in image-registries.toml");
    let settings = format!("plain_http = [{:?}]\n", registry.host);
    fs::write(path.join("config/image-registries.toml"), &settings).unwrap();

    for engine in engines().into_iter().filter(|engine| *engine != "process") {
        let line = "cat /opt/*; echo $GREETING; pwd";
        let run = ["-q", "run", "--engine", engine, "--image", &image, "--", "sh", "-c", line];
        ask(&run).exits(0).prints("upper\nlower\nhello\n/srv/app\n");
    }
    let pulled = ask(&["image", "pull", "--json", &image]).exits(0).json();
    assert_eq!(pulled["layers"].as_array().unwrap().len(), 2);
    shows(&ask(&["image", "ls"]).exits(0), "acme/tool:1");
    ask(&["image", "rm", &image]).exits(0);
    ask(&["image", "prune"]).exits(0);
    assert_eq!(fs::read_dir(path.join("sandforge/layers")).unwrap().count(), 0);

    fs::write(path.join("config/image-registries.toml"), settings + "deny = [\"**\"]\n").unwrap();
    ask(&["-q", "run", "--image", &image, "--", "true"])
        .exits(126)
        .says("is denied by the pattern");
}
