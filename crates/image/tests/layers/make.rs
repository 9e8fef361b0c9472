//! Layers and images as builders write them, and as attackers do.

use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

pub(crate) fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

pub(crate) fn arch() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// A tar archive, header by header.
#[derive(Default, Clone)]
pub(crate) struct Tar(Vec<u8>);

impl Tar {
    pub(crate) fn raw(
        mut self,
        kind: u8,
        path: &[u8],
        link: &[u8],
        mode: u32,
        size: u64,
        data: &[u8],
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path);
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(size);
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, path: &str, data: &[u8]) -> Self {
        self.mode(path, 0o644, data)
    }

    pub(crate) fn mode(self, path: &str, mode: u32, data: &[u8]) -> Self {
        self.raw(b'0', path.as_bytes(), b"", mode, data.len() as u64, data)
    }

    pub(crate) fn dir(self, path: &str, mode: u32) -> Self {
        self.raw(b'5', path.as_bytes(), b"", mode, 0, b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(b'2', path.as_bytes(), target.as_bytes(), 0o777, 0, b"")
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.raw(b'1', path.as_bytes(), target.as_bytes(), 0o644, 0, b"")
    }

    pub(crate) fn device(self, path: &str) -> Self {
        self.raw(b'3', path.as_bytes(), b"", 0o666, 0, b"")
    }

    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let bare = key.len() + value.len() + 3;
            let len = bare + (bare + bare.to_string().len()).to_string().len();
            data.extend_from_slice(format!("{len} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(b'x', b"pax", b"", 0o644, data.len() as u64, &data)
    }

    /// A file of that many zeros, of which none is in the archive.
    pub(crate) fn sparse(self, path: &str, size: u64) -> Self {
        let size = size.to_string();
        let map = [&b"0\n"[..], &[0; 510]].concat();
        self.pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", path.as_bytes()),
            ("GNU.sparse.realsize", size.as_bytes()),
        ])
        .raw(b'0', b"sparse", b"", 0o644, 512, &map)
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(data).unwrap();
    gzip.finish().unwrap()
}

pub(crate) fn zstd(data: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
}

/// A layer as it is transported.
#[derive(Clone)]
pub(crate) struct Blob {
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) diff_id: String,
}

impl Blob {
    pub(crate) fn plain(tar: &[u8]) -> Self {
        Self { media_type: LAYER.into(), bytes: tar.to_vec(), diff_id: sha256(tar) }
    }

    pub(crate) fn gzip(tar: &[u8]) -> Self {
        Self { media_type: format!("{LAYER}+gzip"), bytes: gzip(tar), diff_id: sha256(tar) }
    }

    pub(crate) fn zstd(tar: &[u8]) -> Self {
        Self { media_type: format!("{LAYER}+zstd"), bytes: zstd(tar), diff_id: sha256(tar) }
    }
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": sha256(bytes), "size": bytes.len()})
}

pub(crate) fn config(layers: &[Blob]) -> Value {
    let diff_ids: Vec<&String> = layers.iter().map(|layer| &layer.diff_id).collect();
    json!({
        "os": "linux", "architecture": arch(),
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"], "WorkingDir": "/srv", "User": "1000"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
}

pub(crate) fn manifest(config: &[u8], layers: &[Blob]) -> Value {
    let layers: Vec<Value> =
        layers.iter().map(|layer| descriptor(&layer.media_type, &layer.bytes)).collect();
    json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, config),
        "layers": layers})
}

pub(crate) fn put(dir: &Path, bytes: &[u8]) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(&sha256(bytes)["sha256:".len()..]), bytes).unwrap();
}

pub(crate) fn bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

/// Adds the blobs of an image to a layout; returns the descriptor of its manifest.
pub(crate) fn add(dir: &Path, layers: &[Blob]) -> Value {
    let config = bytes(&config(layers));
    let manifest = bytes(&manifest(&config, layers));
    put(dir, &config);
    put(dir, &manifest);
    layers.iter().for_each(|layer| put(dir, &layer.bytes));
    descriptor(MANIFEST, &manifest)
}

/// A layout with one image in it; returns the digest of its manifest.
pub(crate) fn layout(dir: &Path, layers: &[Blob]) -> String {
    let mut entry = add(dir, layers);
    let digest = entry["digest"].as_str().unwrap().to_owned();
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    index(dir, &[entry]);
    digest
}

pub(crate) fn index(dir: &Path, manifests: &[Value]) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    fs::write(dir.join("index.json"), bytes(&index)).unwrap();
}

/// What `docker save` wrote for twenty years.
pub(crate) fn saved(layers: &[Blob], tags: &[&str]) -> Vec<u8> {
    let config = bytes(&config(layers));
    let config_name = format!("{}.json", &sha256(&config)["sha256:".len()..]);
    let mut tar = Tar::default();
    let mut names = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        let dir = format!("{at:064x}");
        names.push(format!("{dir}/layer.tar"));
        tar = tar.dir(&format!("{dir}/"), 0o755).file(&format!("{dir}/VERSION"), b"1.0");
        tar =
            tar.raw(b'0', names[at].as_bytes(), b"", 0o644, layer.bytes.len() as u64, &layer.bytes);
    }
    let manifest = json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]);
    tar.file(&config_name, &config).file("manifest.json", &bytes(&manifest)).end()
}

/// All files of a directory as an archive.
pub(crate) fn archive(dir: &Path) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all(".", dir).unwrap();
    tar.into_inner().unwrap()
}
