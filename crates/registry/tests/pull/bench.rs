//! What the tests have in common: an image, a place for it, and a pull.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use registry::manifest::Blob;
use registry::{
    Allow, Contact, Credentials, Digest, Limits, Platform, Progress, Pull, PullError, Pulled,
    Purpose, Settings, Source, Upstream, Version,
};
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

use crate::server::Server;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Bytes that are everywhere different.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// An image whose layers are any bytes.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) config: Vec<u8>,
    pub(crate) layers: Vec<Vec<u8>>,
    pub(crate) manifest: Vec<u8>,
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len()})
}

impl Image {
    pub(crate) fn new(platform: &str, layers: Vec<Vec<u8>>) -> Self {
        let platform: Platform = platform.parse().unwrap();
        let ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        let config = json!({
            "os": platform.os, "architecture": platform.architecture, "config": {},
            "rootfs": {"type": "layers", "diff_ids": ids},
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, &config),
            "layers": layers.iter().map(|layer| descriptor(LAYER, layer)).collect::<Vec<_>>(),
        });
        Self { config, layers, manifest: manifest.to_string().into_bytes() }
    }

    /// For this host, of layers of these lengths.
    pub(crate) fn of(lengths: &[usize]) -> Self {
        let layers = (1..).zip(lengths).map(|(seed, &length)| noise(seed, length)).collect();
        Self::new(&Platform::host().to_string(), layers)
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// Puts it into a registry as `a/b:TAG` and by digest.
    pub(crate) fn push(&self, server: &Server, tag: &str) {
        for name in [tag.to_owned(), self.digest().to_string()] {
            server.put(&format!("/v2/a/b/manifests/{name}"), MANIFEST, self.manifest.clone());
        }
        for blob in self.layers.iter().chain([&self.config]) {
            let path = format!("/v2/a/b/blobs/{}", Digest::of(blob));
            server.put(&path, "application/octet-stream", blob.clone());
        }
    }
}

/// Who is allowed all but some, and remembers who was asked for.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) denied: Vec<String>,
    pub(crate) contacts: Mutex<Vec<(String, Purpose)>>,
}

impl Allow for Recorder {
    fn allow(&self, contact: &Contact<'_>) -> Result<(), String> {
        self.contacts.lock().unwrap().push((contact.host.into(), contact.purpose));
        match self.denied.iter().any(|denied| denied == contact.host) {
            true => Err("the rule of the test".into()),
            false => Ok(()),
        }
    }
}

/// Remembers what it was told.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) blobs: Mutex<Vec<(Digest, u64, u64)>>,
    pub(crate) notices: Mutex<Vec<String>>,
}

impl Progress for Told {
    fn blob(&self, digest: &Digest, done: u64, total: u64) {
        self.blobs.lock().unwrap().push((*digest, done, total));
    }

    fn notice(&self, text: &str) {
        self.notices.lock().unwrap().push(text.into());
    }
}

/// A place to pull to, and how.
pub(crate) struct Bench {
    pub(crate) directory: TempDir,
    /// A layout that is not in it.
    pub(crate) elsewhere: Option<PathBuf>,
    pub(crate) settings: Settings,
    pub(crate) policy: Recorder,
    pub(crate) credentials: Credentials,
    pub(crate) key: Option<registry::PublicKey>,
    pub(crate) limits: Limits,
    pub(crate) platform: Option<Platform>,
    pub(crate) told: Arc<Told>,
}

impl Bench {
    /// That pulls from these without TLS.
    pub(crate) fn new(plain: &[&Server]) -> Self {
        let plain_http = plain.iter().map(|server| server.host.clone()).collect();
        Self {
            directory: tempfile::tempdir().unwrap(),
            elsewhere: None,
            settings: Settings { plain_http, ..Settings::default() },
            policy: Recorder::default(),
            credentials: Credentials::none(),
            key: None,
            limits: Limits::default(),
            platform: None,
            told: Arc::default(),
        }
    }

    pub(crate) fn layout(&self) -> PathBuf {
        self.elsewhere.clone().unwrap_or_else(|| self.directory.path().join("oci"))
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.layout().join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn partial(&self, digest: &Digest) -> PathBuf {
        self.blob(digest).with_extension("partial")
    }

    /// The names of all that stands among the blobs.
    pub(crate) fn left(&self) -> Vec<String> {
        let blobs = fs::read_dir(self.layout().join("blobs/sha256")).unwrap();
        let mut names: Vec<String> =
            blobs.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub(crate) async fn pull(
        &self,
        host: &str,
        repository: &str,
        version: &str,
    ) -> Result<Pulled, PullError> {
        let source = Source::new(host, repository)?;
        let version = Version::parse(version)?;
        let upstream = Upstream::new(&self.settings).unwrap();
        registry::pull(Pull {
            source: &source,
            version: &version,
            platform: self.platform.as_ref(),
            layout: &self.layout(),
            names: true,
            credentials: &self.credentials,
            policy: &self.policy,
            signature: self.key.as_ref(),
            upstream: &upstream,
            limits: self.limits,
            progress: &*self.told,
        })
        .await
    }

    /// Pulls `a/b:1`.
    pub(crate) async fn one(&self, server: &Server) -> Result<Pulled, PullError> {
        self.pull(&server.host, "a/b", "1").await
    }

    /// That all of the image is here, byte by byte.
    pub(crate) fn assert_has(&self, image: &Image) {
        for bytes in image.layers.iter().chain([&image.config, &image.manifest]) {
            assert!(fs::read(self.blob(&Digest::of(bytes))).unwrap() == *bytes);
        }
        assert!(self.left().iter().all(|name| !name.ends_with(".partial")), "{:?}", self.left());
    }
}

pub(crate) fn digests(layers: &[Blob]) -> Vec<Digest> {
    layers.iter().map(|layer| layer.digest).collect()
}

/// Makes certificates for `localhost`.
pub(crate) struct Authority {
    pub(crate) pem: String,
    params: CertificateParams,
    key: KeyPair,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "authority of a test");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, params, key }
    }

    /// A certificate for `localhost` and its key.
    pub(crate) fn issue(&self) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".into()]).unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        (params.signed_by(&key, &issuer).unwrap(), key)
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let (certificate, key) = self.issue();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}
