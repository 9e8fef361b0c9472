//! The registry that Debian has, with images that skopeo pushes, and skopeo as the reader of what came.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD};
use registry::{Credentials, Digest, Login, Platform, PullError};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::bench::{Authority, Bench, CONFIG, MANIFEST, descriptor, noise};
use crate::server::{Reply, Server};

const PASSWORD: &str = "correct horse";
/// bcrypt of it.
const HTPASSWD: &str = "me:$2b$05$sandforgesandforgesanO1RSHuPG.TPPk6A39HeTMDjGg0EUkQTG\n";

/// One that runs, ended with the test.
struct Registry {
    host: String,
    child: Child,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A place with an image in it that was pushed, and how to serve it.
struct Place {
    directory: TempDir,
    authority: Authority,
}

fn is_missing() -> bool {
    for program in ["docker-registry", "skopeo"] {
        let found = Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if found.is_err() {
            println!(
                "not run: {program} is not installed (apt-get install docker-registry skopeo)"
            );
            return true;
        }
    }
    false
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Place {
    fn new() -> Self {
        let place = Self { directory: tempfile::tempdir().unwrap(), authority: Authority::new() };
        let (certificate, key) = place.authority.issue();
        fs::write(place.path("cert.pem"), certificate.pem()).unwrap();
        fs::write(place.path("key.pem"), key.serialize_pem()).unwrap();
        fs::write(place.path("ca.pem"), &place.authority.pem).unwrap();
        fs::write(place.path("htpasswd"), HTPASSWD).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A registry over the one storage, with this `auth` section; with TLS unless it is for pushing.
    fn serve(&self, auth: Option<&str>) -> Registry {
        // A port that is free now; who else takes it meanwhile is found out below.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = self.path(&format!("config-{port}.yml"));
        let mut text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http:\n  addr: 127.0.0.1:{port}\n",
            self.path("storage").display()
        );
        if let Some(auth) = auth {
            let path = |name| self.path(name).display().to_string();
            text += &format!(
                "  tls: {{certificate: {}, key: {}}}\n{auth}",
                path("cert.pem"),
                path("key.pem")
            );
        }
        fs::write(&config, text).unwrap();
        let log = File::create(self.path("log")).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let name = if auth.is_some() { "localhost" } else { "127.0.0.1" };
        let mut registry = Registry { host: format!("{name}:{port}"), child };
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = registry.child.try_wait().unwrap();
            let log = || fs::read_to_string(self.path("log")).unwrap();
            assert!(ended.is_none(), "it ended: {}", log());
            assert!(begun.elapsed() < Duration::from_secs(30), "it does not listen: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    /// Writes an image layout of two layers, gzip both, and pushes it to `a/b:1`.
    fn push(&self) -> Vec<Digest> {
        let oci = self.path("made");
        let blobs = oci.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let put = |bytes: &[u8]| {
            fs::write(blobs.join(Digest::of(bytes).hex()), bytes).unwrap();
        };
        let (mut layers, mut ids) = (Vec::new(), Vec::new());
        for (name, seed, length) in [("etc/one", 1, 700_000), ("etc/two", 2, 30_001)] {
            let mut tar = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(length as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, &noise(seed, length)[..]).unwrap();
            let tar = tar.into_inner().unwrap();
            ids.push(Digest::of(&tar).to_string());
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&tar).unwrap();
            layers.push(gzip.finish().unwrap());
        }
        let host = Platform::host();
        let config = json!({
            "os": host.os, "architecture": host.architecture, "config": {"Env": ["A=B"]},
            "rootfs": {"type": "layers", "diff_ids": ids},
        });
        let config = config.to_string().into_bytes();
        let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
        let described: Vec<Value> = layers.iter().map(|layer| descriptor(kind, layer)).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, &config),
            "layers": described,
        });
        let manifest = manifest.to_string().into_bytes();
        layers.iter().chain([&config, &manifest]).for_each(|bytes| put(bytes));
        let index = json!({"schemaVersion": 2, "manifests": [descriptor(MANIFEST, &manifest)]});
        fs::write(oci.join("index.json"), index.to_string()).unwrap();
        fs::write(oci.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let registry = self.serve(None);
        self.copy(&format!("oci:{}", oci.display()), &registry.host, &[]);
        layers.iter().map(|layer| Digest::of(layer)).collect()
    }

    fn copy(&self, from: &str, host: &str, arguments: &[&str]) {
        run(Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--dest-tls-verify=false"])
            .args(arguments)
            .arg(from)
            .arg(format!("docker://{host}/a/b:1")));
    }

    fn bench(&self) -> Bench {
        let mut bench = Bench::new(&[]);
        bench.settings.ca = Some(self.path("ca.pem"));
        bench
    }
}

fn login() -> Credentials {
    let password = wire::text::Secret::new(PASSWORD.into()).unwrap();
    Credentials::of(Login::Password { user: "me".into(), password })
}

/// What skopeo says of an image in a layout.
fn inspect(layout: &Path, name: &str) -> Value {
    let image = format!("oci:{}:{name}", layout.display());
    let output = Command::new("skopeo").args(["inspect", &image]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn htpasswd(place: &Place) -> String {
    format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", place.path("htpasswd").display())
}

#[tokio::test]
async fn a_private_image_comes_over_tls_with_a_password_and_others_can_read_it() {
    if is_missing() {
        return;
    }
    let place = Place::new();
    let layers = place.push();
    let registry = place.serve(Some(&htpasswd(&place)));
    let mut bench = place.bench();
    let error = bench.pull(&registry.host, "a/b", "1").await.unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }), "{error}");
    bench.credentials = login();
    let pulled = bench.pull(&registry.host, "a/b", "1").await.unwrap();
    assert_eq!(crate::bench::digests(&pulled.layers), layers);
    let seen = inspect(&bench.layout(), &format!("{}/a/b:1", registry.host));
    assert_eq!(seen["Digest"], pulled.manifest_digest.to_string());
    assert_eq!(seen["Layers"], json!(layers.iter().map(Digest::to_string).collect::<Vec<_>>()));
    let error = bench.pull(&registry.host, "a/b", "absent").await.unwrap_err();
    assert!(matches!(error, PullError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn what_broke_off_is_gone_on_with_there() {
    if is_missing() {
        return;
    }
    let place = Place::new();
    let layers = place.push();
    let registry = place.serve(Some(&htpasswd(&place)));
    let mut bench = place.bench();
    bench.credentials = login();
    let whole = fs::read(place.path("made/blobs/sha256").join(layers[0].hex())).unwrap();
    fs::create_dir_all(bench.layout().join("blobs/sha256")).unwrap();
    fs::write(bench.partial(&layers[0]), &whole[..500_000]).unwrap();
    bench.pull(&registry.host, "a/b", "1").await.unwrap();
    assert!(fs::read(bench.blob(&layers[0])).unwrap() == whole);
    let told = bench.told.blobs.lock().unwrap();
    let of_it = told.iter().filter(|(digest, ..)| *digest == layers[0]);
    assert!(of_it.clone().count() > 0 && of_it.clone().all(|(_, done, _)| *done > 500_000));
}

#[tokio::test]
async fn an_image_in_docker_s_own_form_comes_too() {
    if is_missing() {
        return;
    }
    let place = Place::new();
    place.push();
    let pushing = place.serve(None);
    place.copy(
        &format!("oci:{}", place.path("made").display()),
        &pushing.host,
        &["--format", "v2s2"],
    );
    let mut bench = place.bench();
    bench.settings.plain_http.push(pushing.host.clone());
    let pulled = bench.pull(&pushing.host, "a/b", "1").await.unwrap();
    let manifest = fs::read_to_string(bench.blob(&pulled.manifest_digest)).unwrap();
    assert!(manifest.contains("application/vnd.docker.distribution.manifest.v2+json"));
    assert_eq!(pulled.layers.len(), 2);
}

#[tokio::test]
async fn a_token_is_had_from_a_realm_that_is_named() {
    if is_missing() {
        return;
    }
    let place = Place::new();
    place.push();
    let realm = Server::tls(&place.authority).await;
    let (certificate, key) = place.authority.issue();
    let auth = format!(
        "auth: {{token: {{realm: 'https://{}/token', service: test, issuer: tester, \
         rootcertbundle: {}}}}}\n",
        realm.host,
        place.path("ca.pem").display()
    );
    let registry = place.serve(Some(&auth));
    let signer = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key.serialize_der());
    let signer = signer.unwrap();
    realm.answer(move |asked, _| {
        let is_known = asked.authorization.as_deref()
            == Some(&format!("Basic {}", BASE64.encode(format!("me:{PASSWORD}"))));
        if !is_known {
            return Some(Reply::new(401));
        }
        assert_eq!(asked.query, "scope=repository%3Aa%2Fb%3Apull&service=test");
        let header =
            json!({"typ": "JWT", "alg": "ES256", "x5c": [BASE64.encode(certificate.der())]});
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let claims = json!({
            "iss": "tester", "sub": "me", "aud": "test", "jti": "1", "iat": now, "nbf": now - 10,
            "exp": now + 300,
            "access": [{"type": "repository", "name": "a/b", "actions": ["pull"]}],
        });
        let [header, claims] =
            [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
        let signed = format!("{header}.{claims}");
        let signature = signer.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
        Some(Reply::of(json!({ "token": token }).to_string()))
    });
    let mut bench = place.bench();
    bench.credentials = login();
    let error = bench.pull(&registry.host, "a/b", "1").await.unwrap_err();
    assert!(matches!(error, PullError::Realm { .. }), "{error}");
    assert!(realm.asked().is_empty(), "it was not contacted");
    bench.settings.realms.insert(registry.host.clone(), vec![realm.host.clone()]);
    let pulled = bench.pull(&registry.host, "a/b", "1").await.unwrap();
    assert_eq!(pulled.layers.len(), 2);
    bench.credentials = Credentials::none();
    let other = place.bench();
    let mut settings = bench.settings.clone();
    settings.plain_http.clear();
    let stranger = Bench { settings, ..other };
    let error = stranger.pull(&registry.host, "a/b", "1").await.unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }), "{error}");
}
