//! The images in layers of a store: brought in, opened, counted, checked, removed.
//!
//! `oci/` is an OCI image layout: what was pulled lies in its `blobs`, and its `index.json` is the
//! table of names. `layers/` has each layer as a file system, once for all images that have it.
//! A layer that is open has a shared lock on its file, which every process inherits with the
//! descriptor: what a machine runs from is not removed under it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::document::{self, Config, Descriptor, Index, Kind, Manifest, Platform};
use super::layer::{self, Expected, Foreign};
use super::layout::{INDEX, Layout, WORKING};
use super::place::{self, Context};
use super::{OciError, archive, choose, parents};
use crate::cache::{CacheError, Lock};
use crate::erofs::Superblock;
use crate::layers::{ImageConfig, Layer, RootImage, Verity};
use crate::progress::{Progress, Stage};
use crate::reference::Reference;
use crate::source::Archive;
use crate::store::{self, ImageError, ImageInfo, Removed, RootFs, Store, StoreError};
use crate::verity;

/// Changes when the same layer would give another file system.
const LAYER_VERSION: u32 = 1;
const FILE_SYSTEM: &str = "layer.erofs";
const DESCRIPTION: &str = "layer.json";
/// The keys of layers that one image alone needs.
const OWN: &str = "own.json";
/// Beside the standard's own annotation, in our table of names.
const PULLED: &str = "dev.sandforge.pulled";
const ARCHIVE: &str = "dev.sandforge.archive";
/// On what a step of a build has made, which is no image of the user's.
const STEP: &str = "dev.sandforge.step";
/// On what came from a registry.
const REGISTRY: &str = "dev.sandforge.registry";
/// The lock that is held while blobs arrive.
pub(crate) const BLOBS: &str = "blobs";

/// How an image is brought in.
#[derive(Debug, Clone, Copy, Default)]
pub struct Import<'a> {
    /// What it is called from then on; by default like its file or directory. Where there are
    /// several images, it also says which.
    pub name: Option<&'a str>,
    /// Keeps the compressed layers beside the file systems made of them. An export needs them, and
    /// so does the repair of a damaged layer without another import.
    pub keep_blobs: bool,
}

/// While it lives, nothing is removed from the blobs of the store.
#[derive(Debug)]
pub struct BlobHold {
    _lock: Lock,
}

/// An image, looked at closely.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// Its canonical reference, or the name that it was given.
    pub name: String,
    /// `sha256:…` of its manifest.
    pub digest: String,
    /// What it runs on.
    pub platform: Platform,
    /// When it was brought in, in seconds since 1970.
    pub pulled: u64,
    /// About what runs in it.
    pub config: ImageConfig,
    /// The bottom first.
    pub layers: Vec<LayerInfo>,
    /// Bytes on this disk, layers and blobs.
    pub disk_bytes: u64,
    /// Those of them that other images have too.
    pub shared_bytes: u64,
}

/// A layer of an image.
#[derive(Debug, Clone, Serialize)]
pub struct LayerInfo {
    /// `sha256:…` without compression.
    pub diff_id: String,
    /// `sha256:…` as it is transported.
    pub digest: String,
    /// How it is transported.
    pub media_type: String,
    /// Its length as it is transported.
    pub transported_bytes: u64,
    /// Whether it is kept so.
    pub is_kept: bool,
    /// Length of its file system, with the hash tree; none when it is not there.
    pub bytes: Option<u64>,
    /// Bytes of that on this disk.
    pub disk_bytes: u64,
    /// The hash tree over it.
    pub verity: Option<Verity>,
    /// Devices that were left out.
    pub devices_skipped: u64,
}

/// What was removed because nothing needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Pruned {
    /// Layers.
    pub layers: usize,
    /// Blobs.
    pub blobs: usize,
    /// Bytes of this disk.
    pub bytes: u64,
    /// Layers that no image needs, but a sandbox that runs.
    pub in_use: usize,
    /// Whether blobs were left alone since some are just arriving.
    pub blobs_are_held: bool,
}

/// What is noted about a layer beside its file system.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    diff_id: String,
    bytes: u64,
    verity: Verity,
    inodes: u64,
    devices_skipped: u64,
    hides_all: bool,
    /// Paths, each byte a character of that number.
    implied: Vec<String>,
    /// Hard links that are not in it, since what they name is in another layer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    foreign: Vec<Foreign>,
}

/// A line of the table of names.
#[derive(Debug, Clone)]
pub(super) struct Tag {
    pub(super) name: String,
    pub(super) manifest: Descriptor,
    pub(super) pulled: u64,
    /// SHA-256 of the archive it came in.
    pub(super) archive: Option<String>,
    /// Whether a step of a build made it, to find it again.
    pub(super) is_step: bool,
    /// Whether it came from the registry that its name says.
    pub(super) is_pulled: bool,
}

/// The documents of one image.
pub(super) struct Documents {
    pub(super) manifest: Manifest,
    pub(super) config: Config,
}

impl Documents {
    pub(super) fn read(layout: &Layout, descriptor: &Descriptor) -> Result<Self, OciError> {
        let refuse = |what: &str| {
            let what = what.to_owned();
            move |source| OciError::Document { what, source }
        };
        let manifest = layout.document(descriptor)?;
        let manifest = Manifest::parse(&manifest, Some(&descriptor.media_type))
            .map_err(refuse(&descriptor.digest))?;
        let config = layout.document(&manifest.config)?;
        let config = Config::parse(&config, manifest.layers.len(), &Platform::of_guests())
            .map_err(refuse(&manifest.config.digest))?;
        Ok(Self { manifest, config })
    }

    fn layers(&self) -> impl DoubleEndedIterator<Item = (&Descriptor, &str)> {
        self.manifest.layers.iter().zip(self.config.diff_ids.iter().map(String::as_str))
    }
}

fn key(diff_id: &str) -> String {
    format!("{}.{LAYER_VERSION}", diff_id.trim_start_matches("sha256:"))
}

impl Store {
    /// The directory that is an OCI image layout, into which a registry's client puts blobs.
    pub fn layout(&self) -> PathBuf {
        self.blobs.dir().to_owned()
    }

    /// Keeps [`prune`](Self::prune) of any process from the blobs, for as long as some arrive that
    /// no image refers to yet.
    pub fn hold_blobs(&self) -> Result<BlobHold, StoreError> {
        Ok(BlobHold { _lock: self.oci.lock_shared(BLOBS)? })
    }

    /// Removes what killed processes left of blobs, unless some arrive just now. Those of other
    /// programs are left alone: they go on with them.
    pub(crate) fn sweep_blobs(&self) -> Result<(), CacheError> {
        let left: Vec<String> =
            self.blob_names()?.into_iter().filter(|name| name.starts_with(WORKING)).collect();
        if left.is_empty() {
            return Ok(());
        }
        let Some(_alone) = self.oci.try_lock(BLOBS)? else { return Ok(()) };
        for name in left {
            let _ = fs::remove_file(self.blobs.blobs().join(name));
        }
        Ok(())
    }

    /// Makes an image of blobs that are in [`layout`](Self::layout), and names it. Layers that are
    /// there already are not made again. Everything is verified on the way.
    pub fn import(
        &self,
        reference: &Reference,
        manifest_digest: &str,
        progress: &mut dyn Progress,
    ) -> Result<RootImage, ImageError> {
        let name = reference.to_string();
        let _hold = self.hold_blobs()?;
        let made = (|| {
            let manifest = describe(&self.blobs, manifest_digest)?;
            let image = self.assemble(&self.blobs, &manifest, &name, progress)?;
            Ok((image, manifest))
        })();
        let (image, manifest) = made.map_err(named(&name))?;
        self.set_tag(Tag {
            name,
            manifest,
            pulled: store::now(),
            archive: None,
            is_step: false,
            is_pulled: true,
        })?;
        Ok(image)
    }

    /// Brings in an OCI image layout, or an archive of one, or one of `docker save`.
    pub fn import_from(
        &self,
        path: &Path,
        import: Import<'_>,
        progress: &mut dyn Progress,
    ) -> Result<RootImage, ImageError> {
        if path.is_dir() {
            return self.import_directory(path, import, progress);
        }
        match crate::source::Source::open(path)? {
            crate::source::Source::Archive(archive) => {
                self.import_archive(&archive, import, progress)
            }
            crate::source::Source::Image { .. } => {
                let name = path.display().to_string();
                Err(named(&name)(OciError::NoImage { path: path.to_owned() }))
            }
        }
    }

    pub(crate) fn import_directory(
        &self,
        path: &Path,
        import: Import<'_>,
        progress: &mut dyn Progress,
    ) -> Result<RootImage, ImageError> {
        let name = named_like(path, import.name);
        let _hold = self.hold_blobs()?;
        let made = (|| {
            let from = Layout::at(path);
            let index = from.file(INDEX)?.filter(|_| Layout::is_at(path));
            let index = index.ok_or_else(|| OciError::NoImage { path: path.to_owned() })?;
            let (manifest, _) = choose(&from, &index, None, import.name)?;
            self.take(&from, manifest, &name, import.keep_blobs, progress)
        })();
        let (image, manifest) = made.map_err(named(&name))?;
        self.set_tag(Tag {
            name,
            manifest,
            pulled: store::now(),
            archive: None,
            is_step: false,
            is_pulled: false,
        })?;
        Ok(image)
    }

    pub(crate) fn import_archive(
        &self,
        archive: &Archive,
        import: Import<'_>,
        progress: &mut dyn Progress,
    ) -> Result<RootImage, ImageError> {
        let name = named_like(archive.path(), import.name);
        let digest = archive.digest(progress)?;
        let found = self.tags()?.into_iter().find(|tag| {
            tag.name == name && tag.archive.as_ref() == Some(&digest) && !import.keep_blobs
        });
        if let Some(tag) = found
            && let Ok(image) = self.open_tag(&tag, progress)
        {
            return Ok(image);
        }
        let _hold = self.hold_blobs()?;
        let lock = self.oci.lock(&digest, progress)?;
        let made = self.oci.with_scratch(&lock, |dir| {
            let from = Layout::make(dir)?;
            let limit = layer::Limits::default().unpacked_bytes;
            let contents =
                archive::unpack(archive.file(), archive.compression(), limit, &from, progress)?;
            let (manifest, _) = contents.image(&from, archive.path(), import.name)?;
            self.take(&from, manifest, &name, import.keep_blobs, progress)
        });
        let (image, manifest) = made.map_err(named(&name))?;
        let archive = Some(digest);
        self.set_tag(Tag {
            name,
            manifest,
            pulled: store::now(),
            archive,
            is_step: false,
            is_pulled: false,
        })?;
        Ok(image)
    }

    /// Makes an image of another layout's blobs, and keeps of them what is to be kept.
    fn take(
        &self,
        from: &Layout,
        manifest: Descriptor,
        name: &str,
        keep_blobs: bool,
        progress: &mut dyn Progress,
    ) -> Result<(RootImage, Descriptor), OciError> {
        let image = self.assemble(from, &manifest, name, progress)?;
        let documents = Documents::read(from, &manifest)?;
        if keep_blobs {
            for layer in &documents.manifest.layers {
                self.blobs.adopt(from, layer)?;
            }
        }
        self.blobs.adopt(from, &documents.manifest.config)?;
        self.blobs.adopt(from, &manifest)?;
        Ok((image, Descriptor { annotations: BTreeMap::new(), platform: None, ..manifest }))
    }

    /// Opens every layer of an image; those that are not there are made of the blobs in `from`.
    pub(super) fn assemble(
        &self,
        from: &Layout,
        manifest: &Descriptor,
        name: &str,
        progress: &mut dyn Progress,
    ) -> Result<RootImage, OciError> {
        let documents = Documents::read(from, manifest)?;
        let mut layers: Vec<(Layer, Description)> = Vec::new();
        let (mut keys, mut own) = (Vec::new(), Vec::new());
        for (descriptor, diff_id) in documents.layers() {
            let part = Part { from, descriptor, diff_id };
            let mut key = key(diff_id);
            let mut layer = self.layer(part, &key, None, progress)?;
            let implied = layer.1.implied.iter().map(|path| bytes_of(path)).collect();
            if !layers.is_empty() || !layer.1.foreign.is_empty() {
                let view = place::view(layers.iter().map(|(layer, _)| &layer.file))?;
                let foreign = &layer.1.foreign;
                let context = Context::of(&view, layers.len(), diff_id, &implied, foreign)?;
                if let Some(context) = context {
                    key = format!("{}.{LAYER_VERSION}", context.key(diff_id, &keys));
                    layer = self.layer(part, &key, Some(&context), progress)?;
                    own.push(key.clone());
                }
            }
            keys.push(key);
            layers.push(layer);
        }
        self.note_own(manifest, &own, progress)?;
        layers.extend(self.parents(manifest, &layers, progress)?);
        let layers = stack(layers);
        let size = layers.iter().map(|layer| layer.size).sum();
        let digest = manifest.digest.trim_start_matches("sha256:").to_owned();
        let config = documents.config.image;
        Ok(RootImage { layers, config, digest: Some(digest), name: name.to_owned(), size })
    }

    fn layer(
        &self,
        part: Part<'_>,
        key: &str,
        context: Option<&Context<'_>>,
        progress: &mut dyn Progress,
    ) -> Result<(Layer, Description), OciError> {
        let Part { from, descriptor, diff_id } = part;
        let failed = |source| OciError::Layer { diff_id: diff_id.to_owned(), source };
        if let Ok(Some(found)) = self.open_layer(key) {
            return Ok(found);
        }
        let lock = self.layers.lock(key, progress)?;
        // A damaged one is made again, if there is anything to make it of.
        if let Ok(Some(found)) = self.open_layer(key) {
            return Ok(found);
        }
        let blob = from.open(descriptor)?;
        let compression = document::compression(&descriptor.media_type)
            .map_err(|source| OciError::Document { what: descriptor.digest.clone(), source })?;
        let expected =
            Expected { digest: &descriptor.digest, size: descriptor.size, diff_id, compression };
        self.layers.publish(&lock, |dir| -> Result<(), OciError> {
            let path = dir.join(FILE_SYSTEM);
            let file = store::create(&path)?;
            let mut done = 0;
            let total = Some(descriptor.size);
            let counted = crate::source::Counting {
                input: blob,
                read: |n| {
                    done += n;
                    progress.step(Stage::Convert.at(done, total));
                },
            };
            let limits = layer::Limits::default();
            let converted = layer::convert_in(counted, expected, file, limits, context);
            let (mut file, converted) =
                converted.map_err(|error| match store::full_disk(&path, &error) {
                    Some(full) => full.into(),
                    None => failed(error),
                })?;
            let (verity, bytes) = seal(&mut file, &path, converted.summary.bytes, progress)?;
            let description = Description {
                diff_id: diff_id.to_owned(),
                bytes,
                verity,
                inodes: converted.summary.inodes,
                devices_skipped: converted.summary.devices_skipped,
                hides_all: converted.hides_all,
                implied: converted.implied.iter().map(|path| text_of(path)).collect(),
                foreign: converted.foreign,
            };
            Ok(store::write_json(&dir.join(DESCRIPTION), &description)?)
        })?;
        self.open_layer(key)?.ok_or_else(|| OciError::Missing { digest: diff_id.to_owned() })
    }

    /// Notes which layers were made for this image, so that they are known to be needed.
    fn note_own(
        &self,
        manifest: &Descriptor,
        own: &[String],
        progress: &mut dyn Progress,
    ) -> Result<(), OciError> {
        if own.is_empty() || self.own_keys(manifest) == own {
            return Ok(());
        }
        let lock = self.layers.lock(&own_key(manifest), progress)?;
        self.layers.publish(&lock, |dir| Ok(store::write_json(&dir.join(OWN), &own)?))
    }

    fn own_keys(&self, manifest: &Descriptor) -> Vec<String> {
        let path = self.layers.path(&own_key(manifest)).join(OWN);
        let json = fs::read(path).unwrap_or_default();
        serde_json::from_slice(&json).unwrap_or_default()
    }

    /// The layer for directories that layers use and do not describe, where there are any.
    fn parents(
        &self,
        manifest: &Descriptor,
        layers: &[(Layer, Description)],
        progress: &mut dyn Progress,
    ) -> Result<Option<(Layer, Description)>, OciError> {
        let key = parents_key(manifest);
        if let Ok(Some(found)) = self.open_layer(&key) {
            return Ok(Some(found));
        }
        let implied: Vec<BTreeSet<Vec<u8>>> = layers
            .iter()
            .map(|(_, it)| it.implied.iter().map(|path| bytes_of(path)).collect())
            .collect();
        let seen: Vec<parents::Seen<'_>> = layers
            .iter()
            .zip(&implied)
            .map(|((layer, it), implied)| parents::Seen {
                diff_id: &it.diff_id,
                file: &layer.file,
                implied,
            })
            .collect();
        let lost = parents::lost(&seen)?;
        if lost.is_empty() {
            return Ok(None);
        }
        let lock = self.layers.lock(&key, progress)?;
        self.layers.publish(&lock, |dir| -> Result<(), OciError> {
            let path = dir.join(FILE_SYSTEM);
            let diff_id = format!("sha256:{}", crate::digest::of(format!("{lost:?}").as_bytes()));
            let (mut file, data) = parents::write(&lost, store::create(&path)?).map_err(
                |error| match store::full_disk(&path, &error) {
                    Some(full) => full.into(),
                    None => OciError::Layer { diff_id: diff_id.clone(), source: error.into() },
                },
            )?;
            let (verity, bytes) = seal(&mut file, &path, data, progress)?;
            let inodes = 1 + lost.len() as u64;
            let implied = Vec::new();
            let description = Description {
                diff_id,
                bytes,
                verity,
                inodes,
                devices_skipped: 0,
                hides_all: false,
                implied,
                foreign: Vec::new(),
            };
            Ok(store::write_json(&dir.join(DESCRIPTION), &description)?)
        })?;
        self.open_layer(&key)
    }

    /// Opens a layer and checks what is cheap to check: its length, its first block, and the top
    /// of its hash tree. From then on it is in use.
    fn open_layer(&self, key: &str) -> Result<Option<(Layer, Description)>, OciError> {
        let dir = self.layers.path(key);
        let (path, about) = (dir.join(FILE_SYSTEM), dir.join(DESCRIPTION));
        let read = |path: &Path| {
            let path = path.to_owned();
            move |source| OciError::Read { path, source }
        };
        let json = match fs::read(&about) {
            Ok(json) => json,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(read(&about)(e)),
        };
        let description: Description =
            serde_json::from_slice(&json).map_err(|e| read(&about)(e.into()))?;
        let mut file = match store::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(read(&path)(e)),
        };
        // It fails only while somebody removes it, and then it is open all the same.
        let _ = flock(&file, FlockOperation::NonBlockingLockShared);
        let bytes = file.metadata().map_err(read(&path))?.len();
        let superblock = store::superblock(&mut file).map_err(read(&path))?;
        let is_whole = bytes == description.bytes
            && superblock == Ok(Superblock { bytes: description.verity.tree })
            && verity::top_holds(&file, &description.verity).map_err(read(&path))?;
        if !is_whole {
            return Err(OciError::Damaged { diff_id: description.diff_id });
        }
        let layer = Layer {
            file,
            fs: RootFs::Erofs,
            digest: Some(description.diff_id.trim_start_matches("sha256:").to_owned()),
            size: bytes,
            verity: Some(description.verity.clone()),
        };
        Ok(Some((layer, description)))
    }

    // --- names ------------------------------------------------------------

    fn tags(&self) -> Result<Vec<Tag>, StoreError> {
        let path = self.blobs.dir().join(INDEX);
        let damaged = |why: String| StoreError::Table { path: path.clone(), why };
        let table = self.blobs.file(INDEX).map_err(|error| damaged(error.to_string()))?;
        let Some(table) = table else { return Ok(Vec::new()) };
        let index = Index::parse(&table, None).map_err(|error| damaged(error.to_string()))?;
        let tag = |manifest: Descriptor| {
            let note = |key: &str| manifest.annotations.get(key).cloned();
            let name = note(document::REF_NAME)?;
            // Without it, it is the note of somebody who only fetched it.
            let pulled = note(PULLED)?.parse().unwrap_or(0);
            let (is_step, is_pulled) = (note(STEP).is_some(), note(REGISTRY).is_some());
            Some(Tag { name, pulled, archive: note(ARCHIVE), is_step, is_pulled, manifest })
        };
        Ok(index.manifests.into_iter().filter_map(tag).collect())
    }

    pub(super) fn set_tag(&self, tag: Tag) -> Result<(), StoreError> {
        let is_same = |known: &Tag| {
            known.name == tag.name
                && known.manifest.digest == tag.manifest.digest
                && known.archive == tag.archive
                && known.is_pulled == tag.is_pulled
        };
        // What is used again and again is not written each time.
        if self.tags()?.iter().any(is_same) {
            return Ok(());
        }
        self.change_tags(|tags| {
            tags.retain(|known| known.name != tag.name);
            tags.push(tag);
        })
    }

    fn change_tags(&self, change: impl FnOnce(&mut Vec<Tag>)) -> Result<(), StoreError> {
        let _hold = self.hold_blobs()?;
        self.change_tags_alone(change)
    }

    /// For who holds the blobs, or keeps all others from them.
    fn change_tags_alone(&self, change: impl FnOnce(&mut Vec<Tag>)) -> Result<(), StoreError> {
        let _lock = self.blobs.lock_index()?;
        let mut tags = self.tags()?;
        change(&mut tags);
        let manifests: Vec<Descriptor> = tags
            .into_iter()
            .map(|tag| {
                let mut manifest = tag.manifest;
                manifest.annotations = BTreeMap::from([
                    (document::REF_NAME.to_owned(), tag.name),
                    (PULLED.to_owned(), tag.pulled.to_string()),
                ]);
                manifest.annotations.extend(tag.archive.map(|it| (ARCHIVE.to_owned(), it)));
                for (is_so, note) in [(tag.is_step, STEP), (tag.is_pulled, REGISTRY)] {
                    if is_so {
                        manifest.annotations.insert(note.to_owned(), "1".to_owned());
                    }
                }
                manifest
            })
            .collect();
        Ok(self.blobs.replace(INDEX, index_of(&manifests).as_bytes())?)
    }

    /// By name, by reference, or by the beginning of its digest.
    pub(super) fn tag(&self, name: &str) -> Result<Option<Tag>, StoreError> {
        let tags = self.tags()?;
        if let Some(tag) = tags.iter().find(|tag| tag.name == name) {
            return Ok(Some(tag.clone()));
        }
        if let Ok(reference) = name.parse::<Reference>() {
            let canonical = reference.to_string();
            if let Some(tag) = tags.iter().find(|tag| tag.name == canonical) {
                return Ok(Some(tag.clone()));
            }
            if let Some(digest) = reference.digest() {
                // The digest says it all; by which name it came does not matter.
                return Ok(tags.into_iter().find(|tag| tag.manifest.digest == digest));
            }
        }
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        if hex.len() < store::MIN_DIGEST_PREFIX {
            return Ok(None);
        }
        let starts = |tag: &Tag| tag.manifest.digest["sha256:".len()..].starts_with(hex);
        let found: Vec<Tag> = tags.into_iter().filter(starts).collect();
        let digests: BTreeSet<String> =
            found.iter().map(|tag| tag.manifest.digest.clone()).collect();
        if digests.len() > 1 {
            let digests = Vec::from_iter(digests).join(", ");
            return Err(StoreError::Ambiguous { name: name.to_owned(), digests });
        }
        Ok(found.into_iter().next())
    }

    /// Opens an image that has a name here.
    pub(crate) fn open_named(
        &self,
        name: &str,
        progress: &mut dyn Progress,
    ) -> Result<Option<RootImage>, ImageError> {
        let Some(tag) = self.tag(name)? else { return Ok(None) };
        self.open_tag(&tag, progress).map(Some)
    }

    pub(super) fn open_tag(
        &self,
        tag: &Tag,
        progress: &mut dyn Progress,
    ) -> Result<RootImage, ImageError> {
        let _hold = self.hold_blobs()?;
        self.assemble(&self.blobs, &tag.manifest, &tag.name, progress).map_err(named(&tag.name))
    }

    /// Whether the image of this name came from a registry.
    pub(crate) fn is_of_registry(&self, name: &str) -> bool {
        self.tag(name).ok().flatten().is_some_and(|tag| tag.is_pulled)
    }

    pub(crate) fn tag_names(&self) -> Vec<String> {
        let tags = self.tags().unwrap_or_default();
        tags.into_iter().filter(|tag| !tag.is_step).map(|tag| tag.name).collect()
    }

    // --- what there is ----------------------------------------------------

    fn documents(&self, tag: &Tag) -> Result<Documents, StoreError> {
        Documents::read(&self.blobs, &tag.manifest)
            .map_err(|error| StoreError::Corrupt { name: tag.name.clone(), why: error.to_string() })
    }

    /// What an image needs: the keys of its layers, and its blobs.
    fn needs(&self, tag: &Tag) -> Result<(BTreeSet<String>, BTreeSet<String>), StoreError> {
        let documents = self.documents(tag)?;
        let keys = documents.config.diff_ids.iter().map(|diff_id| key(diff_id));
        let keys = keys.chain(self.own_keys(&tag.manifest));
        let keys = keys.chain([parents_key(&tag.manifest), own_key(&tag.manifest)]).collect();
        let layers = documents.manifest.layers.iter().map(|layer| layer.digest.clone());
        let config = documents.manifest.config.digest.clone();
        Ok((keys, layers.chain([config, tag.manifest.digest.clone()]).collect()))
    }

    pub(crate) fn list_layered(&self) -> Result<Vec<ImageInfo>, StoreError> {
        let tags = self.tags()?;
        let needs: Vec<_> = tags.iter().map(|tag| self.needs(tag).unwrap_or_default()).collect();
        let mut list = Vec::new();
        for (at, tag) in tags.iter().enumerate().filter(|(_, tag)| !tag.is_step) {
            let (keys, blobs) = &needs[at];
            let is_other = |&other: &usize| other != at && !tags[other].is_step;
            let others: Vec<_> = (0..tags.len()).filter(is_other).collect();
            let (mut disk_bytes, mut shared_bytes, mut size) = (0, 0, 0);
            for key in keys {
                let bytes = self.layer_disk_bytes(key);
                disk_bytes += bytes;
                shared_bytes +=
                    if others.iter().any(|&o| needs[o].0.contains(key)) { bytes } else { 0 };
                size += fs::metadata(self.layers.path(key).join(FILE_SYSTEM))
                    .map_or(0, |meta| meta.len());
            }
            for blob in blobs {
                let bytes = self.blob_disk_bytes(blob);
                disk_bytes += bytes;
                shared_bytes +=
                    if others.iter().any(|&o| needs[o].1.contains(blob)) { bytes } else { 0 };
            }
            let manifest = store::Manifest {
                name: tag.name.clone(),
                digest: tag.manifest.digest.trim_start_matches("sha256:").to_owned(),
                size,
                created: tag.pulled,
                recipe: None,
                source: if tag.archive.is_some() { "archive" } else { "image in layers" }
                    .to_owned(),
                source_digest: tag.archive.clone(),
                packages: Vec::new(),
            };
            // Without those for the parents and of the layers of its own, which few need.
            let layers = keys.len().saturating_sub(2);
            list.push(ImageInfo { manifest, disk_bytes, shared_bytes, layers, stale: false });
        }
        Ok(list)
    }

    /// What is known about an image in layers; `None` where the name is another kind's or nobody's.
    pub fn inspect(&self, name: &str) -> Result<Option<Inspection>, StoreError> {
        let Some(tag) = self.tag(name)? else { return Ok(None) };
        let documents = self.documents(&tag)?;
        let info = self.list_layered()?.into_iter().find(|info| info.manifest.name == tag.name);
        let layers = documents.layers().map(|(descriptor, diff_id)| {
            let description =
                self.open_layer(&key(diff_id)).ok().flatten().map(|(_, description)| description);
            LayerInfo {
                diff_id: diff_id.to_owned(),
                digest: descriptor.digest.clone(),
                media_type: descriptor.media_type.clone(),
                transported_bytes: descriptor.size,
                is_kept: self.blobs.has(&descriptor.digest),
                bytes: description.as_ref().map(|it| it.bytes),
                disk_bytes: self.layer_disk_bytes(&key(diff_id)),
                devices_skipped: description.as_ref().map_or(0, |it| it.devices_skipped),
                verity: description.map(|it| it.verity),
            }
        });
        let layers = layers.collect();
        Ok(Some(Inspection {
            name: tag.name,
            digest: tag.manifest.digest,
            platform: documents.config.platform,
            pulled: tag.pulled,
            config: documents.config.image,
            layers,
            disk_bytes: info.as_ref().map_or(0, |info| info.disk_bytes),
            shared_bytes: info.map_or(0, |info| info.shared_bytes),
        }))
    }

    /// Bytes on this disk of all images of both kinds, each counted once however many use it.
    pub fn disk_bytes_of_all(&self) -> Result<u64, StoreError> {
        let layers: u64 = self.layers.keys()?.iter().map(|key| self.layer_disk_bytes(key)).sum();
        let mut blobs = 0;
        for name in self.blob_names()? {
            blobs += disk_bytes(&self.blobs.blobs().join(name));
        }
        Ok(self.flat_disk_bytes()? + layers + blobs)
    }

    fn layer_disk_bytes(&self, key: &str) -> u64 {
        disk_bytes(&self.layers.path(key).join(FILE_SYSTEM))
    }

    fn blob_disk_bytes(&self, digest: &str) -> u64 {
        self.blobs.path(digest).map_or(0, |path| disk_bytes(&path))
    }

    fn blob_names(&self) -> Result<Vec<String>, CacheError> {
        let dir = self.blobs.blobs();
        let failed = || CacheError::of("list", &dir);
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed())? {
            names.extend(entry.map_err(failed())?.file_name().into_string().ok());
        }
        Ok(names)
    }

    /// Reads every byte of an image in layers. `false` where the name is another kind's or
    /// nobody's.
    pub(crate) fn verify_layered(
        &self,
        name: &str,
        progress: &mut dyn Progress,
    ) -> Result<bool, StoreError> {
        let Some(tag) = self.tag(name)? else { return Ok(false) };
        let corrupt = |why: String| StoreError::Corrupt { name: tag.name.clone(), why };
        let documents = self.documents(&tag)?;
        for (descriptor, diff_id) in documents.layers() {
            let opened = self.open_layer(&key(diff_id)).map_err(|e| corrupt(e.to_string()))?;
            let Some((mut layer, description)) = opened else {
                return Err(corrupt(format!("its layer {diff_id} is not there")));
            };
            let total = Some(description.verity.tree);
            let read = |done| progress.step(Stage::Digest.at(done, total));
            let path = self.layers.path(&key(diff_id));
            if !verity::holds(&mut layer.file, &description.verity, read)
                .map_err(CacheError::of("read", &path))?
            {
                return Err(corrupt(format!("its layer {diff_id} has changed")));
            }
            if self.blobs.has(&descriptor.digest) {
                let total = Some(descriptor.size);
                let read = |done| progress.step(Stage::Digest.at(done, total));
                let file = self.blobs.open(descriptor).map_err(|e| corrupt(e.to_string()))?;
                let (found, _) = crate::digest::of_reader(file, read)
                    .map_err(CacheError::of("read", &self.blobs.blobs()))?;
                if format!("sha256:{found}") != descriptor.digest {
                    return Err(corrupt(format!("its blob {} has changed", descriptor.digest)));
                }
            }
        }
        for key in self.own_keys(&tag.manifest) {
            let opened = self.open_layer(&key).map_err(|e| corrupt(e.to_string()))?;
            let Some((mut layer, description)) = opened else { continue };
            let total = Some(description.verity.tree);
            let read = |done| progress.step(Stage::Digest.at(done, total));
            if !verity::holds(&mut layer.file, &description.verity, read)
                .map_err(CacheError::of("read", &self.layers.path(&key)))?
            {
                return Err(corrupt(format!("its layer {} has changed", description.diff_id)));
            }
        }
        Ok(true)
    }

    /// Writes an image as an archive that is an OCI image layout, which other tools read too.
    pub fn export(&self, name: &str, to: &mut impl Write) -> Result<(), ImageError> {
        let Some(tag) = self.tag(name)? else {
            return Err(match self.one(name) {
                Ok((_, flat)) => StoreError::Flat { name: flat.name },
                Err(error) => error,
            }
            .into());
        };
        let _hold = self.hold_blobs()?;
        let documents = self.documents(&tag)?;
        let mut blobs = vec![&tag.manifest, &documents.manifest.config];
        for layer in &documents.manifest.layers {
            if !self.blobs.has(&layer.digest) {
                return Err(named(&tag.name)(OciError::NoBlobs));
            }
            if !blobs.iter().any(|known| known.digest == layer.digest) {
                blobs.push(layer);
            }
        }
        let mut manifest = tag.manifest.clone();
        // What skopeo and podman take for the tag.
        let called = tag.name.parse::<Reference>().ok();
        let called = called.as_ref().and_then(Reference::tag).unwrap_or(&tag.name).to_owned();
        manifest.annotations = BTreeMap::from([(document::REF_NAME.to_owned(), called)]);
        let index = index_of(std::slice::from_ref(&manifest));
        super::layout::write_archive(&self.blobs, index.as_bytes(), &blobs, to)
            .map_err(named(&tag.name))
    }

    // --- removal ----------------------------------------------------------

    /// Forgets a name, and removes what no other image needs. `None` where the name is another
    /// kind's or nobody's.
    pub(crate) fn remove_layered(&self, name: &str) -> Result<Option<Removed>, StoreError> {
        let Some(tag) = self.tag(name)? else { return Ok(None) };
        // What a damaged one needs is not known; it goes with the next `prune`.
        let (keys, blobs) = self.needs(&tag).unwrap_or_default();
        self.change_tags(|tags| tags.retain(|known| known.name != tag.name))?;
        let mut pruned = Pruned::default();
        // Where another image is damaged, what it needs is not known either.
        if let Ok((needed_keys, needed_blobs)) = self.needed() {
            self.discard_layers(keys.difference(&needed_keys), &mut pruned)?;
            let names = blobs.difference(&needed_blobs).map(|it| it["sha256:".len()..].to_owned());
            self.discard_blobs(names, &mut pruned)?;
        }
        Ok(Some(Removed { images: 1, bytes: pruned.bytes }))
    }

    /// Removes the layers and blobs that no image needs; with `compressed`, those blobs too that
    /// were already made into file systems. What a sandbox that runs was started from stays, and so
    /// do blobs while others arrive.
    pub fn prune(&self, compressed: bool) -> Result<Pruned, StoreError> {
        let mut pruned = Pruned::default();
        // A build that goes on needs what its steps made; it holds the blobs.
        if let Some(_alone) = self.oci.try_lock(BLOBS)?
            && self.tags()?.iter().any(|tag| tag.is_step)
        {
            self.change_tags_alone(|tags| tags.retain(|tag| !tag.is_step))?;
        }
        let (keys, mut blobs) = self.needed()?;
        if compressed {
            for tag in self.tags()? {
                for layer in &self.documents(&tag)?.manifest.layers {
                    blobs.remove(&layer.digest);
                }
            }
        }
        let known = self.layers.keys()?;
        self.discard_layers(known.iter().filter(|key| !keys.contains(*key)), &mut pruned)?;
        let mut names = self.blob_names()?;
        names.retain(|name| !blobs.contains(&format!("sha256:{name}")));
        self.discard_blobs(names.into_iter(), &mut pruned)?;
        Ok(pruned)
    }

    fn needed(&self) -> Result<(BTreeSet<String>, BTreeSet<String>), StoreError> {
        let mut all = (BTreeSet::new(), BTreeSet::new());
        for tag in self.tags()? {
            let (keys, blobs) = self.needs(&tag)?;
            all.0.extend(keys);
            all.1.extend(blobs);
        }
        Ok(all)
    }

    fn discard_layers<'a>(
        &self,
        keys: impl Iterator<Item = &'a String>,
        pruned: &mut Pruned,
    ) -> Result<(), StoreError> {
        for key in keys {
            // Somebody who makes it has it locked, and opens it before letting go.
            let Some(lock) = self.layers.try_lock(key)? else {
                pruned.in_use += 1;
                continue;
            };
            if let Ok(file) = store::open(&self.layers.path(key).join(FILE_SYSTEM))
                && flock(&file, FlockOperation::NonBlockingLockExclusive).is_err()
            {
                pruned.in_use += 1;
                continue;
            }
            let bytes = self.layer_disk_bytes(key);
            self.layers.discard(&lock)?;
            pruned.layers += 1;
            pruned.bytes += bytes;
        }
        Ok(())
    }

    fn discard_blobs(
        &self,
        names: impl Iterator<Item = String>,
        pruned: &mut Pruned,
    ) -> Result<(), StoreError> {
        let Some(_alone) = self.oci.try_lock(BLOBS)? else {
            pruned.blobs_are_held = true;
            return Ok(());
        };
        for name in names {
            let path = self.blobs.blobs().join(name);
            let bytes = disk_bytes(&path);
            match fs::remove_file(&path) {
                Ok(()) => {
                    pruned.blobs += 1;
                    pruned.bytes += bytes;
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(CacheError::of("remove", &path)(e).into()),
            }
        }
        Ok(())
    }
}

/// Puts the hash tree behind a file system, and makes both outlive a power cut.
fn seal(
    file: &mut File,
    path: &Path,
    data: u64,
    progress: &mut dyn Progress,
) -> Result<(Verity, u64), CacheError> {
    let read = |done| progress.step(Stage::Digest.at(done, Some(data)));
    verity::append(file, data, read)
        .and_then(|tree| file.sync_all().map(|()| tree))
        .map_err(CacheError::of("write", path))
}

/// A layer, and where it comes from.
#[derive(Clone, Copy)]
struct Part<'a> {
    from: &'a Layout,
    descriptor: &'a Descriptor,
    diff_id: &'a str,
}

fn own_key(manifest: &Descriptor) -> String {
    format!("own-{}", key(&manifest.digest))
}

fn parents_key(manifest: &Descriptor) -> String {
    format!("parents-{}", key(&manifest.digest))
}

/// What the root is made of: of layers that are there twice the upper, none that are hidden or
/// empty, but always one.
fn stack(layers: Vec<(Layer, Description)>) -> Vec<Layer> {
    let mut seen = BTreeSet::new();
    let mut stack = Vec::new();
    for (layer, description) in layers.into_iter().rev() {
        let hides_all = description.hides_all;
        if seen.insert(description.diff_id) {
            stack.push((layer, description.inodes > 1 || hides_all));
        }
        if hides_all {
            break;
        }
    }
    if stack.iter().any(|(_, has_something)| *has_something) {
        stack.retain(|(_, has_something)| *has_something);
    } else {
        stack.truncate(1);
    }
    stack.into_iter().rev().map(|(layer, _)| layer).collect()
}

/// A descriptor for a document of which only the digest is known.
fn describe(layout: &Layout, digest: &str) -> Result<Descriptor, OciError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Document {
        media_type: Option<String>,
    }
    let bytes = layout.document_by_digest(digest)?;
    let refuse = |source| OciError::Document { what: digest.to_owned(), source };
    let own: Document = serde_json::from_slice(&bytes)
        .map_err(|error| refuse(document::DocumentError::Json(error.to_string())))?;
    let media_type = own.media_type.unwrap_or_else(|| document::MANIFEST.to_owned());
    if Kind::of(&media_type).map_err(refuse)? == Kind::Index {
        return choose(layout, &bytes, Some(&media_type), None).map(|(manifest, _)| manifest);
    }
    Ok(Descriptor {
        media_type,
        digest: digest.to_owned(),
        size: bytes.len() as u64,
        platform: None,
        annotations: BTreeMap::new(),
    })
}

fn index_of(manifests: &[Descriptor]) -> String {
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": document::INDEX, "manifests": manifests,
    });
    index.to_string()
}

/// A reference in its canonical spelling, or a name that is none.
pub(super) fn named_like(path: &Path, name: Option<&str>) -> String {
    match name {
        Some(name) => {
            name.parse::<Reference>().map_or_else(|_| name.to_owned(), |name| name.to_string())
        }
        None => {
            let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
            real.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
        }
    }
}

pub(super) fn named(name: &str) -> impl FnOnce(OciError) -> ImageError + use<> {
    let name = name.to_owned();
    |source| match source {
        OciError::Cache(error) => error.into(),
        source => ImageError::Oci { name, source },
    }
}

fn bytes_of(path: &str) -> Vec<u8> {
    path.chars().map(|c| u8::try_from(c).unwrap_or(b'?')).collect()
}

fn text_of(path: &[u8]) -> String {
    path.iter().map(|&b| char::from(b)).collect()
}

fn disk_bytes(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.blocks() * 512)
}
