//! What an image consists of, as its registry says: hostile until its digest was compared, and bounded
//! then too.

use std::collections::BTreeMap;

use oci_client::manifest::{
    IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_LAYER_GZIP_MEDIA_TYPE,
    IMAGE_DOCKER_LAYER_TAR_MEDIA_TYPE, IMAGE_LAYER_GZIP_MEDIA_TYPE, IMAGE_LAYER_MEDIA_TYPE,
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageIndex, OciImageManifest,
};
use serde::Deserialize;

use crate::digest::Digest;
use crate::platform::Platform;
use crate::shown::shown;

/// The longest manifest, list or configuration that is read, in bytes: what registries take.
pub const LONGEST: usize = 4 << 20;
/// As many layers as Docker takes.
pub const MOST_LAYERS: usize = 127;
/// More platforms than anybody builds for.
const MOST_PLATFORMS: usize = 1000;
const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// What is asked for, best first.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Why a document is no manifest that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of the form that it says to have.
    #[error("it is not a manifest: {0}")]
    Json(String),
    /// Of a form that is not known.
    #[error("it is a {0}, which is not known here: OCI and Docker's version 2 are")]
    Kind(String),
    /// It is a manifest to one reader and a list to another.
    #[error("it can be read as two things: {0}")]
    Ambiguous(&'static str),
    /// What it names is not an image.
    #[error("it is not an image of a machine: {0}")]
    Artifact(String),
    /// A digest or size that nothing can have.
    #[error("it names a blob wrongly: {0}")]
    Descriptor(String),
    /// More than is taken.
    #[error("it has {0}")]
    Many(String),
    /// The configuration does not belong to the manifest.
    #[error("its configuration {0}")]
    Config(String),
}

/// A blob, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// What it is.
    pub media_type: String,
    /// What is said about it besides.
    pub annotations: BTreeMap<String, String>,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// How it is run.
    pub config: Blob,
    /// Its layers, the lowest first.
    pub layers: Vec<Blob>,
}

/// One image of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its manifest.
    pub blob: Blob,
    /// What it runs on.
    pub platform: Option<Platform>,
}

/// What stands under a tag or digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image, or an artifact of the same form.
    Image(Image),
    /// A list of images, one for each platform.
    Index(Vec<Entry>),
}

/// What tells the forms apart, seen before either is read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads a manifest or list. `media_type` is what whoever sent it called it, without parameters.
    ///
    /// # Errors
    /// `ManifestError`.
    pub fn parse(bytes: &[u8], media_type: Option<&str>) -> Result<Self, ManifestError> {
        if bytes.len() > LONGEST {
            return Err(ManifestError::Many(format!("more than {LONGEST} bytes")));
        }
        let shape: Shape = read(bytes)?;
        if shape.fs_layers.is_some() || shape.schema_version == Some(1) {
            return Err(ManifestError::Kind("manifest of Docker's version 1".into()));
        }
        if shape.schema_version != Some(2) {
            return Err(ManifestError::Kind("manifest without schemaVersion 2".into()));
        }
        // CVE-2021-41190: who reads one and who reads the other would get different images of the
        // same digest.
        let is_index = match (shape.manifests.is_some(), shape.layers.is_some()) {
            (true, false) if shape.config.is_none() => true,
            (false, true) => false,
            (false, false) => {
                return Err(ManifestError::Json("there are neither layers nor manifests".into()));
            }
            _ => return Err(ManifestError::Ambiguous("it has both manifests and layers")),
        };
        for said in [shape.media_type.as_deref(), media_type].into_iter().flatten() {
            let says_index = match said {
                OCI_IMAGE_INDEX_MEDIA_TYPE | IMAGE_MANIFEST_LIST_MEDIA_TYPE => true,
                OCI_IMAGE_MEDIA_TYPE | IMAGE_MANIFEST_MEDIA_TYPE => false,
                // What some servers send for every file says nothing.
                "application/json" | "application/octet-stream" | "text/plain" => continue,
                other => return Err(ManifestError::Kind(shown(other))),
            };
            if says_index != is_index {
                return Err(ManifestError::Ambiguous("its type is not that of its content"));
            }
        }
        match is_index {
            true => index(&read(bytes)?),
            false => image(read(bytes)?),
        }
    }
}

impl Image {
    /// That this is the image of a machine, with layers that can be read.
    ///
    /// # Errors
    /// `ManifestError::Artifact`.
    pub fn check(&self) -> Result<(), ManifestError> {
        let config = self.config.media_type.as_str();
        if ![IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_CONFIG_MEDIA_TYPE].contains(&config) {
            return Err(ManifestError::Artifact(format!("its configuration is {}", shown(config))));
        }
        for layer in &self.layers {
            match layer.media_type.as_str() {
                IMAGE_LAYER_MEDIA_TYPE
                | IMAGE_LAYER_GZIP_MEDIA_TYPE
                | LAYER_ZSTD
                | IMAGE_DOCKER_LAYER_TAR_MEDIA_TYPE
                | IMAGE_DOCKER_LAYER_GZIP_MEDIA_TYPE => {}
                other => {
                    return Err(ManifestError::Artifact(format!("a layer is {}", shown(other))));
                }
            }
        }
        Ok(())
    }

    /// The bytes of all blobs, each counted once.
    ///
    /// # Errors
    /// `ManifestError` where a digest is there with two sizes, or the sum is beyond counting.
    pub fn total(&self) -> Result<u64, ManifestError> {
        let mut sizes: BTreeMap<Digest, u64> = BTreeMap::new();
        for blob in self.layers.iter().chain([&self.config]) {
            let size = *sizes.entry(blob.digest).or_insert(blob.size);
            if size != blob.size {
                let why = format!("{} has two sizes", blob.digest);
                return Err(ManifestError::Descriptor(why));
            }
        }
        let sum = sizes.values().try_fold(0_u64, |sum, size| sum.checked_add(*size));
        sum.ok_or_else(|| ManifestError::Many("more bytes than can be counted".into()))
    }
}

/// What of an image's configuration says whether it can be run here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What it runs on, where it says so.
    pub platform: Option<Platform>,
}

impl Config {
    /// Reads a configuration that belongs to `image`.
    ///
    /// # Errors
    /// `ManifestError`.
    pub fn parse(bytes: &[u8], image: &Image) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Fields {
            architecture: Option<String>,
            os: Option<String>,
            variant: Option<String>,
            rootfs: Option<RootFs>,
        }
        #[derive(Deserialize)]
        struct RootFs {
            #[serde(default)]
            diff_ids: Vec<String>,
        }
        let fields: Fields = read(bytes)?;
        let layers = fields.rootfs.map_or(0, |root| root.diff_ids.len());
        if layers != image.layers.len() {
            return Err(ManifestError::Config(format!(
                "has {layers} layers where its manifest has {}",
                image.layers.len()
            )));
        }
        let platform = platform(fields.os, fields.architecture, fields.variant);
        Ok(Self { platform: platform.map_err(ManifestError::Config)? })
    }
}

fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ManifestError> {
    serde_json::from_slice(bytes).map_err(|error| ManifestError::Json(shown(&error.to_string())))
}

fn platform(
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
) -> Result<Option<Platform>, String> {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (Some(os), Some(architecture)) = (given(os), given(architecture)) else {
        return Ok(None);
    };
    let text = match given(variant) {
        Some(variant) => format!("{os}/{architecture}/{variant}"),
        None => format!("{os}/{architecture}"),
    };
    text.parse().map(Some).map_err(|_| format!("names the platform {}", shown(&text)))
}

fn index(index: &OciImageIndex) -> Result<Document, ManifestError> {
    if index.manifests.len() > MOST_PLATFORMS {
        return Err(ManifestError::Many(format!("more than {MOST_PLATFORMS} images")));
    }
    let mut entries = Vec::with_capacity(index.manifests.len());
    for entry in &index.manifests {
        let found = entry.platform.as_ref().map(|found| {
            let (os, architecture) = (found.os.to_string(), found.architecture.to_string());
            platform(Some(os), Some(architecture), found.variant.clone())
        });
        // A platform that cannot be written is one that nobody asks for.
        let platform = found.and_then(Result::ok).flatten();
        entries.push(Entry {
            blob: blob(&entry.digest, entry.size, &entry.media_type, entry.annotations.clone())?,
            platform,
        });
    }
    Ok(Document::Index(entries))
}

fn image(manifest: OciImageManifest) -> Result<Document, ManifestError> {
    if manifest.layers.len() > MOST_LAYERS {
        return Err(ManifestError::Many(format!("more than {MOST_LAYERS} layers")));
    }
    let of = |found: OciDescriptor| {
        blob(&found.digest, found.size, &found.media_type, found.annotations)
    };
    let config = of(manifest.config)?;
    let layers = manifest.layers.into_iter().map(of).collect::<Result<_, _>>()?;
    Ok(Document::Image(Image { config, layers }))
}

fn blob(
    digest: &str,
    size: i64,
    media_type: &str,
    annotations: Option<BTreeMap<String, String>>,
) -> Result<Blob, ManifestError> {
    let digest = digest
        .parse()
        .map_err(|error| ManifestError::Descriptor(format!("{}: {error}", shown(digest))))?;
    let size = u64::try_from(size)
        .map_err(|_| ManifestError::Descriptor(format!("{digest} has the size {size}")))?;
    let annotations = annotations.unwrap_or_default();
    Ok(Blob { digest, size, media_type: media_type.into(), annotations })
}

/// The image of a list for this platform: the one that suits best, the first of those.
pub(crate) fn select<'a>(entries: &'a [Entry], wanted: &Platform) -> Option<&'a Entry> {
    let mut best: Option<(u8, &Entry)> = None;
    for entry in entries {
        let Some(rank) = entry.platform.as_ref().and_then(|offered| wanted.suits(offered)) else {
            continue;
        };
        if best.is_none_or(|(so_far, _)| rank > so_far) {
            best = Some((rank, entry));
        }
    }
    best.map(|(_, entry)| entry)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn descriptor(media_type: &str, size: i64) -> Value {
        let digest = Digest::of(&size.to_le_bytes()).to_string();
        json!({"mediaType": media_type, "digest": digest, "size": size})
    }

    fn manifest() -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": OCI_IMAGE_MEDIA_TYPE,
            "config": descriptor(IMAGE_CONFIG_MEDIA_TYPE, 7),
            "layers": [
                descriptor(IMAGE_LAYER_GZIP_MEDIA_TYPE, 100),
                descriptor(LAYER_ZSTD, 50),
            ],
        })
    }

    fn list(platforms: &[(&str, &str, Option<&str>)]) -> Value {
        let manifests: Vec<Value> = (0_i64..)
            .zip(platforms)
            .map(|(size, (os, architecture, variant))| {
                let mut entry = descriptor(OCI_IMAGE_MEDIA_TYPE, size);
                entry["platform"] = json!({"os": os, "architecture": architecture});
                if let Some(variant) = variant {
                    entry["platform"]["variant"] = json!(variant);
                }
                entry
            })
            .collect();
        json!({"schemaVersion": 2, "manifests": manifests})
    }

    fn parse(value: &Value, media_type: Option<&str>) -> Result<Document, ManifestError> {
        Document::parse(value.to_string().as_bytes(), media_type)
    }

    #[test]
    fn an_image_of_either_kind_is_read() {
        for (manifest_type, config, layer) in [
            (OCI_IMAGE_MEDIA_TYPE, IMAGE_CONFIG_MEDIA_TYPE, IMAGE_LAYER_MEDIA_TYPE),
            (
                IMAGE_MANIFEST_MEDIA_TYPE,
                IMAGE_DOCKER_CONFIG_MEDIA_TYPE,
                IMAGE_DOCKER_LAYER_GZIP_MEDIA_TYPE,
            ),
        ] {
            let mut value = manifest();
            value["mediaType"] = json!(manifest_type);
            value["config"]["mediaType"] = json!(config);
            value["layers"][0]["mediaType"] = json!(layer);
            let Ok(Document::Image(image)) = parse(&value, Some(manifest_type)) else {
                panic!("{value}")
            };
            assert_eq!(image.check(), Ok(()));
            assert_eq!(image.total(), Ok(157));
        }
    }

    #[test]
    fn a_document_that_is_two_things_is_refused() {
        let mut both = manifest();
        both["manifests"] = json!([]);
        assert!(matches!(parse(&both, None), Err(ManifestError::Ambiguous(_))));
        let list_type = Some(OCI_IMAGE_INDEX_MEDIA_TYPE);
        assert!(matches!(parse(&manifest(), list_type), Err(ManifestError::Ambiguous(_))));
        let mut lying = list(&[]);
        lying["mediaType"] = json!(OCI_IMAGE_MEDIA_TYPE);
        assert!(matches!(parse(&lying, None), Err(ManifestError::Ambiguous(_))));
        let twice = r#"{"schemaVersion":2,"layers":[],"layers":[],"config":{}}"#;
        assert!(matches!(Document::parse(twice.as_bytes(), None), Err(ManifestError::Json(_))));
    }

    #[test]
    fn what_is_not_known_is_named() {
        let old = json!({"schemaVersion": 1, "fsLayers": []});
        let error = parse(&old, None).unwrap_err().to_string();
        assert!(error.contains("version 1"), "{error}");
        let mut chart = manifest();
        chart["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
        let Ok(Document::Image(chart)) = parse(&chart, None) else { panic!() };
        assert!(chart.check().unwrap_err().to_string().contains("helm"));
        let mut foreign = manifest();
        foreign["layers"][0]["mediaType"] =
            json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
        let Ok(Document::Image(foreign)) = parse(&foreign, None) else { panic!() };
        assert!(foreign.check().unwrap_err().to_string().contains("foreign"));
    }

    #[test]
    fn a_size_or_digest_that_nothing_has_is_refused() {
        for (field, wrong) in
            [("size", json!(-1)), ("digest", json!("sha256:../x")), ("size", json!(1e30))]
        {
            let mut value = manifest();
            value["layers"][0][field] = wrong;
            assert!(parse(&value, None).is_err(), "{value}");
        }
        let mut twice = manifest();
        twice["layers"][1] = twice["layers"][0].clone();
        twice["layers"][1]["size"] = json!(101);
        let Ok(Document::Image(twice)) = parse(&twice, None) else { panic!() };
        assert!(twice.total().is_err());
    }

    #[test]
    fn more_layers_than_docker_takes_are_refused() {
        let mut value = manifest();
        let layer = descriptor(IMAGE_LAYER_MEDIA_TYPE, 1);
        value["layers"] = Value::Array(vec![layer; MOST_LAYERS + 1]);
        assert!(matches!(parse(&value, None), Err(ManifestError::Many(_))));
        let long = vec![b' '; LONGEST + 1];
        assert!(matches!(Document::parse(&long, None), Err(ManifestError::Many(_))));
    }

    #[test]
    fn a_list_is_selected_from_by_platform() {
        let value = list(&[
            ("unknown", "unknown", None),
            ("linux", "amd64", Some("v3")),
            ("linux", "amd64", None),
            ("linux", "arm64", Some("v8")),
            ("windows", "amd64", None),
        ]);
        let Ok(Document::Index(entries)) = parse(&value, None) else { panic!() };
        let size =
            |text: &str| select(&entries, &text.parse().unwrap()).map(|entry| entry.blob.size);
        assert_eq!(size("linux/amd64"), Some(2));
        assert_eq!(size("linux/amd64/v3"), Some(1));
        assert_eq!(size("linux/arm64"), Some(3));
        assert_eq!(size("linux/riscv64"), None);
    }

    #[test]
    fn a_configuration_has_a_diff_id_for_each_layer() {
        let Ok(Document::Image(image)) = parse(&manifest(), None) else { panic!() };
        let of = |layers: usize| {
            let ids = vec![Digest::of(b"").to_string(); layers];
            let value =
                json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": ids}});
            Config::parse(value.to_string().as_bytes(), &image)
        };
        let platform = "linux/amd64".parse().ok();
        assert_eq!(of(2), Ok(Config { platform }));
        assert!(matches!(of(1), Err(ManifestError::Config(_))));
        assert!(matches!(of(3), Err(ManifestError::Config(_))));
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(text in "\\PC{0,300}") {
            let _ = Document::parse(text.as_bytes(), None);
        }

        #[test]
        fn one_changed_byte_never_makes_it_panic(at in 0_usize..400, byte: u8) {
            let mut bytes = manifest().to_string().into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(Document::Image(image)) = Document::parse(&bytes, None) {
                let _ = (image.check(), image.total());
            }
        }
    }
}
