//! The documents of an image: index, manifest and configuration, as somebody else wrote them.
//!
//! A document is what its descriptor says it is. One that could be read as two kinds is refused,
//! since what was checked as one could be used as the other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::compression::Compression;
use crate::layers::ImageConfig;
use crate::reference::is_digest;

/// Registries refuse larger documents.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;
/// Overlayfs stacks up to 500; builders stop at 127.
const MAX_LAYERS: usize = 256;
const MAX_MANIFESTS: usize = 4096;

/// Why a document was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// Over 4 MiB.
    #[error("it has over 4 MiB")]
    Long,
    /// No JSON, or other JSON than its kind has.
    #[error("it is not what it should be: {0}")]
    Json(String),
    /// Its own media type is not the one that leads to it.
    #[error("it says that it is {own}, and what leads to it that it is {given}")]
    Confused {
        /// What it says.
        own: String,
        /// What was said about it.
        given: String,
    },
    /// It has the fields of another kind too.
    #[error("it could be read as an index and as a manifest")]
    Ambiguous,
    /// A media type that is not an image's.
    #[error("{0} is not supported")]
    Media(String),
    /// A digest that is not SHA-256.
    #[error("{0:?} is no digest; only sha256 is supported")]
    Digest(String),
    /// More than is taken.
    #[error("it has over {0} parts")]
    Many(usize),
    /// Layers and their digests do not go together.
    #[error("it has {layers} layers, and its configuration has {diff_ids}")]
    Count {
        /// Of the manifest.
        layers: usize,
        /// Of the configuration.
        diff_ids: usize,
    },
    /// There is nothing for this machine's processor.
    #[error("it has nothing for {wanted}; it has: {known}")]
    Platform {
        /// What is needed.
        wanted: String,
        /// What there is.
        known: String,
    },
    /// More than one fits.
    #[error("it has several images, of which one has to be named: {0}")]
    Several(String),
    /// A value that cannot be used.
    #[error("{0}")]
    Value(&'static str),
}

/// What a document or blob is, where it is, and how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// `sha256:…`
    pub digest: String,
    /// In bytes.
    pub size: u64,
    /// What it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// What was noted about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// An operating system on a processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v8`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// What guests run on here.
    pub fn of_guests() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    fn runs(&self, image: &Self) -> bool {
        self.os == image.os && self.architecture == image.architecture
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// The kinds of documents that lead to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Index,
    Manifest,
}

pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

impl Kind {
    pub(crate) fn of(media_type: &str) -> Result<Self, DocumentError> {
        match media_type {
            INDEX | DOCKER_INDEX => Ok(Self::Index),
            MANIFEST | DOCKER_MANIFEST => Ok(Self::Manifest),
            other => Err(DocumentError::Media(readable(other))),
        }
    }
}

/// How a layer is compressed, by its media type.
/// The specification's own name for the media type of a layer.
pub(crate) fn oci_layer(media_type: &str) -> Result<&'static str, DocumentError> {
    Ok(match compression(media_type)? {
        Compression::None => LAYER,
        Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
    })
}

pub(crate) fn compression(media_type: &str) -> Result<Compression, DocumentError> {
    let kinds = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    match kinds.iter().find_map(|kind| media_type.strip_prefix(kind)) {
        Some("") => Ok(Compression::None),
        Some("+gzip" | ".gzip") => Ok(Compression::Gzip),
        Some("+zstd" | ".zstd") => Ok(Compression::Zstd),
        _ => Err(DocumentError::Media(readable(media_type))),
    }
}

/// Texts of a document as they may stand in a message.
fn readable(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The fields that tell the kinds apart, whatever the media type says.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    fs_layers: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, DocumentError> {
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(DocumentError::Long);
    }
    serde_json::from_slice(bytes).map_err(|error| DocumentError::Json(readable(&error.to_string())))
}

/// That a document is of the kind that its descriptor says.
fn expect(bytes: &[u8], given: Option<&str>, kind: Kind) -> Result<(), DocumentError> {
    let shape: Shape = parse(bytes)?;
    if let (Some(own), Some(given)) = (&shape.media_type, given)
        && own != given
    {
        let (own, given) = (readable(own), readable(given));
        return Err(DocumentError::Confused { own, given });
    }
    if let Some(own) = &shape.media_type
        && Kind::of(own)? != kind
    {
        return Err(DocumentError::Ambiguous);
    }
    let of_manifest = shape.layers.is_some() || shape.config.is_some() || shape.fs_layers.is_some();
    match kind {
        Kind::Index if of_manifest => Err(DocumentError::Ambiguous),
        Kind::Manifest if shape.manifests.is_some() => Err(DocumentError::Ambiguous),
        _ => Ok(()),
    }
}

fn check(descriptor: &Descriptor) -> Result<(), DocumentError> {
    if is_digest(&descriptor.digest) {
        Ok(())
    } else {
        Err(DocumentError::Digest(readable(&descriptor.digest)))
    }
}

/// A list of images, for different processors or by different names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// In the order of the document.
    pub manifests: Vec<Descriptor>,
}

impl Index {
    /// Reads one; `media_type` is what its descriptor said.
    pub fn parse(bytes: &[u8], media_type: Option<&str>) -> Result<Self, DocumentError> {
        #[derive(Deserialize)]
        struct Document {
            manifests: Vec<Descriptor>,
        }
        expect(bytes, media_type, Kind::Index)?;
        let Document { manifests } = parse(bytes)?;
        if manifests.len() > MAX_MANIFESTS {
            return Err(DocumentError::Many(MAX_MANIFESTS));
        }
        manifests.iter().try_for_each(check)?;
        Ok(Self { manifests })
    }

    /// The image for this platform. `name` decides between several, where they have names.
    pub fn choose(
        &self,
        platform: &Platform,
        name: Option<&str>,
    ) -> Result<&Descriptor, DocumentError> {
        // A descriptor without a platform may lead to anything; its configuration will tell.
        let runs = |d: &&Descriptor| d.platform.as_ref().is_none_or(|p| platform.runs(p));
        let is_image = |d: &&Descriptor| Kind::of(&d.media_type).is_ok();
        let mut fit: Vec<&Descriptor> =
            self.manifests.iter().filter(is_image).filter(runs).collect();
        if let Some(name) = name
            && fit.len() > 1
        {
            fit.retain(|d| d.annotations.get(REF_NAME).is_some_and(|known| known == name));
        }
        let first = fit.first().copied().ok_or_else(|| {
            let known: Vec<String> = self
                .manifests
                .iter()
                .filter_map(|d| Some(d.platform.as_ref()?.to_string()))
                .collect();
            DocumentError::Platform {
                wanted: platform.to_string(),
                known: readable(&if known.is_empty() {
                    "nothing".into()
                } else {
                    known.join(", ")
                }),
            }
        })?;
        // Of several for one platform in a list by platform, clients take the first.
        let by_platform = fit.iter().all(|d| d.platform.is_some());
        if by_platform && fit.iter().all(|d| !d.annotations.contains_key(REF_NAME))
            || fit.iter().all(|d| d.digest == first.digest)
        {
            return Ok(first);
        }
        let name_of = |d: &&Descriptor| d.annotations.get(REF_NAME).unwrap_or(&d.digest).clone();
        let names: Vec<String> = fit.iter().map(name_of).collect();
        Err(DocumentError::Several(readable(&names.join(", "))))
    }
}

/// The name of an image in a layout.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// One image: its configuration and its layers, the bottom first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Of the configuration.
    pub config: Descriptor,
    /// Of the layers, as they are transported.
    pub layers: Vec<Descriptor>,
}

impl Manifest {
    /// Reads one; `media_type` is what its descriptor said.
    pub fn parse(bytes: &[u8], media_type: Option<&str>) -> Result<Self, DocumentError> {
        #[derive(Deserialize)]
        struct Document {
            config: Descriptor,
            layers: Vec<Descriptor>,
        }
        expect(bytes, media_type, Kind::Manifest)?;
        let Document { config, layers } = parse(bytes)?;
        if layers.is_empty() {
            return Err(DocumentError::Value("it has no layers"));
        }
        if layers.len() > MAX_LAYERS {
            return Err(DocumentError::Many(MAX_LAYERS));
        }
        if !matches!(&*config.media_type, CONFIG | DOCKER_CONFIG) {
            return Err(DocumentError::Media(readable(&config.media_type)));
        }
        for layer in &layers {
            check(layer)?;
            compression(&layer.media_type)?;
        }
        check(&config)?;
        Ok(Self { config, layers })
    }
}

/// What an image's configuration says: what its layers are, and about what runs in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What it runs on.
    pub platform: Platform,
    /// Digests of the layers without compression, the bottom first.
    pub diff_ids: Vec<String>,
    /// About what runs in it.
    pub image: ImageConfig,
}

impl Config {
    /// Reads one, for an image of that many layers that has to run on `platform`.
    pub fn parse(bytes: &[u8], layers: usize, platform: &Platform) -> Result<Self, DocumentError> {
        #[derive(Deserialize)]
        struct Document {
            os: String,
            architecture: String,
            variant: Option<String>,
            #[serde(default)]
            config: Option<Settings>,
            rootfs: RootFs,
        }
        #[derive(Deserialize, Default)]
        #[serde(default, rename_all = "PascalCase")]
        struct Settings {
            env: Option<Vec<String>>,
            user: Option<String>,
            working_dir: Option<String>,
            entrypoint: Option<Vec<String>>,
            cmd: Option<Vec<String>>,
            labels: Option<BTreeMap<String, String>>,
        }
        #[derive(Deserialize)]
        struct RootFs {
            r#type: String,
            diff_ids: Vec<String>,
        }
        let document: Document = parse(bytes)?;
        let RootFs { r#type, diff_ids } = document.rootfs;
        if r#type != "layers" {
            return Err(DocumentError::Value("its root is not made of layers"));
        }
        if diff_ids.len() != layers {
            return Err(DocumentError::Count { layers, diff_ids: diff_ids.len() });
        }
        if let Some(wrong) = diff_ids.iter().find(|id| !is_digest(id)) {
            return Err(DocumentError::Digest(readable(wrong)));
        }
        let own = Platform {
            os: document.os,
            architecture: document.architecture,
            variant: document.variant.filter(|variant| !variant.is_empty()),
        };
        if !platform.runs(&own) {
            let known = readable(&own.to_string());
            return Err(DocumentError::Platform { wanted: platform.to_string(), known });
        }
        let settings = document.config.unwrap_or_default();
        let image = ImageConfig {
            env: variables(settings.env.unwrap_or_default()),
            user: settings.user.filter(|user| !user.is_empty()),
            working_dir: settings.working_dir.filter(|dir| !dir.is_empty()).map(absolute),
            entrypoint: settings.entrypoint.unwrap_or_default(),
            cmd: settings.cmd.unwrap_or_default(),
            labels: settings.labels.unwrap_or_default(),
        };
        let texts = image.env.iter().flat_map(|(name, value)| [name, value]);
        let texts = texts.chain(&image.user).chain(&image.working_dir);
        if texts.chain(&image.entrypoint).chain(&image.cmd).any(|text| text.contains('\0')) {
            return Err(DocumentError::Value("it has a NUL character in a text"));
        }
        Ok(Self { platform: own, diff_ids, image })
    }
}

/// Of two with one name the later holds, in the place of the first. What has no name or no value
/// sets nothing.
fn variables(given: Vec<String>) -> Vec<(String, String)> {
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let mut variables: Vec<(String, String)> = Vec::new();
    for text in given {
        let Some((name, value)) = text.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            continue;
        };
        match places.get(name) {
            Some(&at) => variables[at].1 = value.to_owned(),
            None => {
                places.insert(name.to_owned(), variables.len());
                variables.push((name.to_owned(), value.to_owned()));
            }
        }
    }
    variables
}

fn absolute(path: String) -> String {
    if path.starts_with('/') { path } else { format!("/{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn digest(digit: char) -> String {
        format!("sha256:{}", digit.to_string().repeat(64))
    }

    fn descriptor(media_type: &str, digit: char) -> Value {
        json!({"mediaType": media_type, "digest": digest(digit), "size": 1})
    }

    fn bytes(value: &Value) -> Vec<u8> {
        serde_json::to_vec(value).unwrap()
    }

    fn manifest() -> Value {
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, 'a'),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", 'b')]})
    }

    fn config() -> Value {
        let Platform { os, architecture, .. } = Platform::of_guests();
        json!({"os": os, "architecture": architecture,
            "config": {"Env": ["A=1", "B=x=y", "A=2", "C", "=v"], "User": "app", "WorkingDir": "srv",
                "Entrypoint": ["/e"], "Cmd": null, "Labels": {"k": "v"}},
            "rootfs": {"type": "layers", "diff_ids": [digest('c')]}})
    }

    #[test]
    fn a_manifest_is_what_its_descriptor_says() {
        let read = Manifest::parse(&bytes(&manifest()), Some(MANIFEST)).unwrap();
        assert_eq!(read.layers[0].digest, digest('b'));
        let error = Manifest::parse(&bytes(&manifest()), Some(DOCKER_MANIFEST)).unwrap_err();
        assert!(matches!(error, DocumentError::Confused { .. }));
        let error = Index::parse(&bytes(&manifest()), None).unwrap_err();
        assert_eq!(error, DocumentError::Ambiguous);
    }

    #[test]
    fn what_could_be_read_as_two_kinds_is_read_as_none() {
        for own in [json!(null), json!(MANIFEST), json!(INDEX)] {
            let mut both = manifest();
            both["manifests"] = json!([]);
            both["mediaType"] = own;
            assert!(Manifest::parse(&bytes(&both), None).is_err());
            assert!(Index::parse(&bytes(&both), None).is_err());
        }
    }

    #[test]
    fn other_things_than_images_are_refused() {
        for (at, media) in [
            ("/config/mediaType", "application/vnd.oci.empty.v1+json"),
            ("/layers/0/mediaType", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"),
            ("/layers/0/mediaType", "application/octet-stream"),
        ] {
            let mut document = manifest();
            *document.pointer_mut(at).unwrap() = json!(media);
            let error = Manifest::parse(&bytes(&document), None).unwrap_err();
            assert_eq!(error, DocumentError::Media(media.to_owned()));
        }
        let mut document = manifest();
        document["layers"][0]["digest"] = json!("sha256:../../x");
        let error = Manifest::parse(&bytes(&document), None).unwrap_err();
        assert!(matches!(error, DocumentError::Digest(_)));
    }

    #[test]
    fn the_platform_of_the_guest_is_chosen_and_an_attestation_never() {
        let ours = Platform::of_guests();
        let of = |os: &str, architecture: &str, digit| {
            let mut entry = descriptor(MANIFEST, digit);
            entry["platform"] = json!({"os": os, "architecture": architecture});
            entry
        };
        let list = json!({"manifests": [of("unknown", "unknown", '1'), of("windows", "amd64", '2'),
            of("linux", "riscv64", '3'), of(&ours.os, &ours.architecture, '4')]});
        let index = Index::parse(&bytes(&list), Some(INDEX)).unwrap();
        assert_eq!(index.choose(&ours, None).unwrap().digest, digest('4'));
        let index = Index { manifests: index.manifests[..3].to_vec() };
        let error = index.choose(&ours, None).unwrap_err().to_string();
        assert!(error.contains("linux/riscv64"), "{error}");
    }

    #[test]
    fn of_several_images_one_has_to_be_named() {
        let of = |name: &str, digit| {
            let mut entry = descriptor(MANIFEST, digit);
            entry["annotations"] = json!({REF_NAME: name});
            entry
        };
        let list = json!({"manifests": [of("one", '1'), of("two", '2')]});
        let index = Index::parse(&bytes(&list), None).unwrap();
        let ours = Platform::of_guests();
        assert!(matches!(index.choose(&ours, None), Err(DocumentError::Several(_))));
        assert_eq!(index.choose(&ours, Some("two")).unwrap().digest, digest('2'));
    }

    #[test]
    fn a_configuration_says_what_runs_and_how() {
        let config = Config::parse(&bytes(&config()), 1, &Platform::of_guests()).unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(config.image.env, [pair("A", "2"), pair("B", "x=y")]);
        assert_eq!(config.image.user.as_deref(), Some("app"));
        assert_eq!(config.image.working_dir.as_deref(), Some("/srv"));
        assert_eq!((&*config.image.entrypoint[0], config.image.cmd.len()), ("/e", 0));
    }

    #[test]
    fn a_configuration_that_goes_with_other_layers_or_another_platform_is_refused() {
        let ours = Platform::of_guests();
        let error = Config::parse(&bytes(&config()), 2, &ours).unwrap_err();
        assert_eq!(error, DocumentError::Count { layers: 2, diff_ids: 1 });
        let mut other = config();
        other["architecture"] = json!("s390x");
        let error = Config::parse(&bytes(&other), 1, &ours).unwrap_err();
        assert!(matches!(error, DocumentError::Platform { .. }));
        let mut nul = config();
        nul["config"]["Cmd"] = json!(["a\0b"]);
        assert!(Config::parse(&bytes(&nul), 1, &ours).is_err());
    }
}
