//! The images of this user: made once, found by name or digest, removed on demand.

use crate::cache::{self, Area, CacheError, Lock};
use crate::digest;
use crate::erofs::{Limits, SUPERBLOCK_END, Summary, Superblock, SuperblockError, WriteError};
use crate::layers::RootImage;
use crate::mmdebstrap::{self, BootstrapError, Package};
use crate::oci::{BLOBS, Import, Layout, OciError};
use crate::progress::{Progress, Stage};
use crate::recipe::{self, Recipe, RecipeError};
use crate::reference::Reference;
use crate::source::{self, ImageRef, Source, SourceError};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const IMAGE: &str = "root.erofs";
const MANIFEST: &str = "manifest.json";
/// Shorter ones would soon name two images.
pub(crate) const MIN_DIGEST_PREFIX: usize = 6;

/// Why an image could not be found, opened or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The cache directory made trouble.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// There is no such image.
    #[error(
        "there is no image {name:?}; there are: {known}. `sandforge image build NAME` builds {}; \
         `--image ./FILE` takes a file", recipe::names().collect::<Vec<_>>().join(" or ")
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is, for the message.
        known: String,
    },
    /// An image without the layers that were asked for.
    #[error(
        "the image {name} is one file system that was built here, without layers that others could \
         read; only images that were pulled, imported or built by a recipe of yours have them"
    )]
    Flat {
        /// Its name.
        name: String,
    },
    /// More than one image matches.
    #[error("{name:?} could be any of these images: {digests}; say one of the digests")]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// The digests that match.
        digests: String,
    },
    /// An image of the store is not what was put there.
    #[error(
        "the image {name} is corrupt ({why}); remove it with `sandforge image rm {name}`, it is made again on its next use"
    )]
    Corrupt {
        /// Its name, or its directory when the name is lost.
        name: String,
        /// How that shows.
        why: String,
    },
    /// The names of images in layers cannot be read.
    #[error(
        "the table of images {} is damaged ({why}); remove it, then pull or import what you need \
         again", .path.display()
    )]
    Table {
        /// The file.
        path: PathBuf,
        /// How that shows.
        why: String,
    },
}

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// It could not be found or opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// It is one in layers, and cannot be used.
    #[error("cannot use the image {name}: {source}")]
    Oci {
        /// Which.
        name: String,
        /// Why.
        source: OciError,
    },
    /// No copy of it is here.
    #[error(
        "there is no copy of the image {0} here; a file is written with a dot in front, as in \
         ./root.tar"
    )]
    Absent(Reference),
    /// It could not be built.
    #[error("cannot build the image {name}: {source}")]
    Build {
        /// Which.
        name: String,
        /// Why.
        source: BootstrapError,
    },
    /// The file given for it cannot be used.
    #[error(transparent)]
    Source(#[from] SourceError),
}

impl From<CacheError> for ImageError {
    fn from(error: CacheError) -> Self {
        Self::Store(error.into())
    }
}

/// The file system in an image, as the guest must mount it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootFs {
    /// Read-only by nature.
    Erofs,
    /// ext4, or an older ext that its driver mounts; attached read-only all the same.
    Ext4,
}

impl RootFs {
    /// The name that `mount -t` takes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Ext4 => "ext4",
        }
    }
}

/// What is known about an image of the store, beside it in `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The recipe's name, or the file name of the archive it was converted from.
    pub name: String,
    /// SHA-256 of the image.
    pub digest: String,
    /// Length of the image in bytes.
    pub size: u64,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// Digest of the recipe; none for a converted archive.
    pub recipe: Option<String>,
    /// The suite of Debian, or the path of the archive.
    pub source: String,
    /// SHA-256 of the archive it was converted from.
    pub source_digest: Option<String>,
    /// What dpkg has installed in it.
    pub packages: Vec<Package>,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageInfo {
    /// What the image says about itself.
    #[serde(flatten)]
    pub manifest: Manifest,
    /// Bytes on this disk, which holes make fewer than the image's length.
    pub disk_bytes: u64,
    /// Those of them that other images have too: they are counted with each.
    pub shared_bytes: u64,
    /// How many different layers it has.
    pub layers: usize,
    /// Built from a recipe that has changed since; the next use builds a new one.
    pub stale: bool,
}

/// What a removal freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removed {
    /// How many images.
    pub images: usize,
    /// How many bytes of disk, once no running sandbox holds them any more.
    pub bytes: u64,
}

/// The images, and beside them the boot assets, of one cache directory. Any number of processes
/// can use it at once.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
    images: Area,
    pub(crate) boot: Area,
    pub(crate) layers: Area,
    pub(crate) oci: Area,
    pub(crate) blobs: Layout,
}

impl Store {
    /// The store in `$XDG_CACHE_HOME/sandforge`, by default `~/.cache/sandforge`.
    pub fn open_default() -> Result<Self, StoreError> {
        Self::open(&cache::default_root()?)
    }

    /// The store below `root`, which is made if need be. What a killed process left half-made is
    /// removed.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let area = |name| Area::open(root, name);
        let oci = area("oci")?;
        let blobs = {
            // Nobody sweeps up meanwhile what is just being made.
            let _hold = oci.lock_shared(BLOBS)?;
            Layout::make(&root.join("oci"))?
        };
        let store = Self {
            directory: root.to_owned(),
            images: area("images")?,
            boot: area("boot")?,
            layers: area("layers")?,
            oci,
            blobs,
        };
        store.sweep_blobs()?;
        Ok(store)
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Opens an image. One of ours that is missing or out of date is built, an archive is
    /// converted; two processes that want the same wait for one.
    pub fn resolve(
        &self,
        image: &ImageRef,
        progress: &mut dyn Progress,
    ) -> Result<RootImage, ImageError> {
        match image {
            ImageRef::Path(path) if Layout::is_at(path) => {
                self.import_directory(path, Import::default(), progress)
            }
            ImageRef::Path(path) => match Source::open(path)? {
                Source::Image { file, fs, size } => {
                    let name = path.display().to_string();
                    Ok(RootImage::of_one(file, fs, None, name, size))
                }
                Source::Archive(archive) if archive.holds_layers()? => {
                    self.import_archive(&archive, Import::default(), progress)
                }
                Source::Archive(archive) => self.convert(&archive, progress),
            },
            ImageRef::Name(name) if recipe::names().any(|known| known == name) => {
                let recipe = Recipe::named(name)?;
                if let Some(image) = self.opened(&recipe.digest)? {
                    return Ok(image);
                }
                let lock = self.images.lock(&recipe.digest, progress)?;
                match self.opened(&recipe.digest)? {
                    Some(image) => Ok(image),
                    None => self.bootstrap(&recipe, &lock, progress),
                }
            }
            ImageRef::Name(name) => {
                if self.matching(name)?.is_empty()
                    && let Some(image) = self.open_named(name, progress)?
                {
                    return Ok(image);
                }
                let (key, _) = self.one(name)?;
                Ok(self.opened(&key)?.ok_or_else(|| self.unknown(name))?)
            }
            ImageRef::Oci(reference) => match self.open_named(&reference.to_string(), progress) {
                Ok(Some(image)) => Ok(image),
                Ok(None) => Err(ImageError::Absent(reference.clone())),
                // A part of what came from there is gone, and is there still.
                Err(ImageError::Oci { source: OciError::Missing { .. }, .. })
                    if self.is_of_registry(&reference.to_string()) =>
                {
                    Err(ImageError::Absent(reference.clone()))
                }
                Err(error) => Err(error),
            },
        }
    }

    /// Builds one of our images anew, with the packages of today, in place of the one there is.
    pub fn build(&self, name: &str, progress: &mut dyn Progress) -> Result<RootImage, ImageError> {
        let recipe = Recipe::named(name)?;
        let lock = self.images.lock(&recipe.digest, progress)?;
        self.bootstrap(&recipe, &lock, progress)
    }

    /// All images, by name.
    pub fn list(&self) -> Result<Vec<ImageInfo>, StoreError> {
        let mut list = Vec::new();
        for (key, manifest) in self.manifests()? {
            let current = Recipe::named(&manifest.name).ok().map(|recipe| recipe.digest);
            let stale = manifest.recipe.is_some() && manifest.recipe != current;
            let disk_bytes = self.disk_bytes(&key);
            list.push(ImageInfo { disk_bytes, shared_bytes: 0, layers: 1, stale, manifest });
        }
        list.extend(self.list_layered()?);
        list.sort_by(|a, b| {
            (&a.manifest.name, a.manifest.created).cmp(&(&b.manifest.name, b.manifest.created))
        });
        Ok(list)
    }

    /// What is known about an image without layers; `None` where there is none of that name or digest.
    pub fn find(&self, name: &str) -> Result<Option<ImageInfo>, StoreError> {
        if self.matching(name)?.is_empty() {
            return Ok(None);
        }
        let (_, manifest) = self.one(name)?;
        Ok(self.list()?.into_iter().find(|info| info.manifest == manifest))
    }

    /// Removes every image of that name, or the one with that digest. Sandboxes that run keep
    /// theirs.
    pub fn remove(&self, name: &str) -> Result<Removed, StoreError> {
        let keys: Vec<String> = if self.images.keys()?.iter().any(|key| key == name) {
            // Said by the error about a damaged manifest, which could not say more.
            vec![name.to_owned()]
        } else {
            let found = self.matching(name)?;
            if found.is_empty()
                && let Some(removed) = self.remove_layered(name)?
            {
                return Ok(removed);
            }
            if found.is_empty() || found.iter().any(|(_, manifest)| manifest.name != name) {
                vec![self.one(name)?.0]
            } else {
                found.into_iter().map(|(key, _)| key).collect()
            }
        };
        let mut removed = Removed::default();
        for key in keys {
            let bytes = self.disk_bytes(&key);
            self.images.discard(&self.images.lock(&key, &mut ())?)?;
            removed.images += 1;
            removed.bytes += bytes;
        }
        Ok(removed)
    }

    /// Reads a whole image and compares it with its digest. Opening one checks only its size and
    /// its first block.
    pub fn verify(&self, name: &str, progress: &mut dyn Progress) -> Result<(), StoreError> {
        if self.matching(name)?.is_empty() && self.verify_layered(name, progress)? {
            return Ok(());
        }
        let (key, manifest) = self.one(name)?;
        let image = self.opened(&key)?.ok_or_else(|| self.unknown(name))?;
        let total = Some(image.size);
        let path = self.images.path(&key).join(IMAGE);
        let read = |done| progress.step(Stage::Digest.at(done, total));
        let (digest, _) = digest::of_reader(&image.layers[0].file, read)
            .map_err(CacheError::of("read", &path))?;
        if digest == manifest.digest {
            return Ok(());
        }
        let why = format!("its SHA-256 is {digest}, not {}", manifest.digest);
        Err(StoreError::Corrupt { name: manifest.name, why })
    }

    /// Opens the image with that key, when there is one, and checks what is cheap to check.
    fn opened(&self, key: &str) -> Result<Option<RootImage>, StoreError> {
        let Some(manifest) = self.manifest(key)? else { return Ok(None) };
        let path = self.images.path(key).join(IMAGE);
        let corrupt = |why: String| StoreError::Corrupt { name: manifest.name.clone(), why };
        let mut file = match open(&path) {
            Ok(file) => file,
            // Removed between the two: as if it had never been.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(CacheError::of("open", &path)(e).into()),
        };
        let size = file.metadata().map_err(CacheError::of("examine", &path))?.len();
        if size != manifest.size {
            return Err(corrupt(format!("it has {size} bytes, not {}", manifest.size)));
        }
        match superblock(&mut file).map_err(CacheError::of("read", &path))? {
            Ok(superblock) if superblock.bytes == size => Ok(Some(RootImage::of_one(
                file,
                RootFs::Erofs,
                Some(manifest.digest),
                manifest.name,
                size,
            ))),
            Ok(_) => Err(corrupt("its first block gives another size".to_owned())),
            Err(e) => Err(corrupt(e.to_string())),
        }
    }

    fn bootstrap(
        &self,
        recipe: &Recipe,
        lock: &Lock,
        progress: &mut dyn Progress,
    ) -> Result<RootImage, ImageError> {
        self.images.publish(lock, |dir| {
            let path = dir.join(IMAGE);
            let mut file = create(&path)?;
            let clone = file.try_clone().map_err(CacheError::of("open", &path))?;
            let (summary, packages) = mmdebstrap::build(recipe, clone, Limits::default(), progress)
                .map_err(|e| match full_disk(&path, &e) {
                    Some(full) => full.into(),
                    None => ImageError::Build { name: recipe.name.clone(), source: e },
                })?;
            seal(dir, &mut file, summary, progress, |digest| Manifest {
                name: recipe.name.clone(),
                digest,
                size: summary.bytes,
                created: now(),
                recipe: Some(recipe.digest.clone()),
                source: format!("Debian {}", recipe.suite),
                source_digest: None,
                packages,
            })
            .map_err(ImageError::from)
        })?;
        self.discard_superseded(recipe)?;
        self.opened(&recipe.digest)?.ok_or_else(|| self.unknown(&recipe.name).into())
    }

    fn convert(
        &self,
        archive: &source::Archive,
        progress: &mut dyn Progress,
    ) -> Result<RootImage, ImageError> {
        let source_digest = archive.digest(progress)?;
        let key = source::key(&source_digest);
        let name = archive.name();
        if let Some(image) = self.opened(&key)? {
            return Ok(image);
        }
        let lock = self.images.lock(&key, progress)?;
        if let Some(image) = self.opened(&key)? {
            return Ok(image);
        }
        let source = archive.path().display().to_string();
        self.images.publish(&lock, |dir| {
            let path = dir.join(IMAGE);
            let mut file = create(&path)?;
            let clone = file.try_clone().map_err(CacheError::of("open", &path))?;
            let (summary, packages) =
                archive.convert(clone, &source_digest, progress).map_err(|e| {
                    match full_disk(&path, &e) {
                        Some(full) => ImageError::from(full),
                        None => e.into(),
                    }
                })?;
            seal(dir, &mut file, summary, progress, |digest| Manifest {
                name: name.clone(),
                digest,
                size: summary.bytes,
                created: now(),
                recipe: None,
                source,
                source_digest: Some(source_digest.clone()),
                packages,
            })
            .map_err(ImageError::from)
        })?;
        self.opened(&key)?.ok_or_else(|| self.unknown(&name).into())
    }

    /// Images of the same name by older recipes: nothing resolves to them any more.
    fn discard_superseded(&self, recipe: &Recipe) -> Result<(), CacheError> {
        for key in self.images.keys()? {
            let Ok(Some(manifest)) = self.manifest(&key) else { continue };
            if manifest.name == recipe.name && manifest.recipe.is_some() && key != recipe.digest {
                self.images.discard(&self.images.lock(&key, &mut ())?)?;
            }
        }
        Ok(())
    }

    fn manifests(&self) -> Result<Vec<(String, Manifest)>, StoreError> {
        let mut manifests = Vec::new();
        for key in self.images.keys()? {
            if let Some(manifest) = self.manifest(&key)? {
                manifests.push((key, manifest));
            }
        }
        Ok(manifests)
    }

    fn manifest(&self, key: &str) -> Result<Option<Manifest>, StoreError> {
        let dir = self.images.path(key);
        let path = dir.join(MANIFEST);
        match fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json).map(Some).map_err(|e| StoreError::Corrupt {
                name: key.to_owned(),
                why: format!("its manifest: {e}"),
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(CacheError::of("read", &path)(e).into()),
        }
    }

    /// Images with that name, or whose digest starts like that.
    fn matching(&self, name: &str) -> Result<Vec<(String, Manifest)>, StoreError> {
        let digest = name.strip_prefix("sha256:").unwrap_or(name);
        let by_digest = digest.len() >= MIN_DIGEST_PREFIX;
        let mut found = self.manifests()?;
        found.retain(|(_, manifest)| {
            manifest.name == name || by_digest && manifest.digest.starts_with(digest)
        });
        Ok(found)
    }

    pub(crate) fn one(&self, name: &str) -> Result<(String, Manifest), StoreError> {
        let mut found = self.matching(name)?;
        match found.len() {
            0 => Err(self.unknown(name)),
            1 => Ok(found.remove(0)),
            _ => {
                let digests: Vec<String> = found.into_iter().map(|(_, m)| m.digest).collect();
                Err(StoreError::Ambiguous { name: name.to_owned(), digests: digests.join(", ") })
            }
        }
    }

    /// The error that says which images there are.
    pub fn unknown(&self, name: &str) -> StoreError {
        let mut known: Vec<String> =
            self.manifests().unwrap_or_default().into_iter().map(|(_, m)| m.name).collect();
        known.extend(self.tag_names());
        known.sort();
        known.dedup();
        let known = if known.is_empty() { "none yet".to_owned() } else { known.join(", ") };
        StoreError::Unknown { name: name.to_owned(), known }
    }

    pub(crate) fn flat_disk_bytes(&self) -> Result<u64, StoreError> {
        Ok(self.images.keys()?.iter().map(|key| self.disk_bytes(key)).sum())
    }

    fn disk_bytes(&self, key: &str) -> u64 {
        let path = self.images.path(key).join(IMAGE);
        fs::metadata(path).map_or(0, |meta| meta.blocks() * 512)
    }
}

/// Writes the manifest and makes both files outlive a power cut.
fn seal(
    dir: &Path,
    image: &mut File,
    summary: Summary,
    progress: &mut dyn Progress,
    manifest: impl FnOnce(String) -> Manifest,
) -> Result<(), CacheError> {
    let path = dir.join(IMAGE);
    let total = Some(summary.bytes);
    let read = |done| progress.step(Stage::Digest.at(done, total));
    let (digest, _) = image
        .rewind()
        .and_then(|()| digest::of_reader(&*image, read))
        .map_err(CacheError::of("read", &path))?;
    image.sync_all().map_err(CacheError::of("sync", &path))?;

    write_json(&dir.join(MANIFEST), &manifest(digest))
}

/// Writes a new file that outlives a power cut.
pub(crate) fn write_json(path: &Path, contents: &impl Serialize) -> Result<(), CacheError> {
    let json = serde_json::to_vec_pretty(contents)
        .map_err(|e| CacheError::of("describe", path)(e.into()))?;
    create(path)?
        .write_all(&json)
        .and_then(|()| File::open(path)?.sync_all())
        .map_err(CacheError::of("write", path))
}

pub(crate) fn create(path: &Path) -> Result<File, CacheError> {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(CacheError::of("create", path))
}

/// Read-only, and not through a symbolic link.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    File::options().read(true).custom_flags(flags).open(path)
}

pub(crate) fn superblock(file: &mut File) -> io::Result<Result<Superblock, SuperblockError>> {
    let mut first = Vec::with_capacity(SUPERBLOCK_END);
    file.rewind()?;
    file.take(SUPERBLOCK_END as u64).read_to_end(&mut first)?;
    file.rewind()?;
    Ok(Superblock::parse(&first))
}

/// The full disk somewhere behind an error.
pub(crate) fn full_disk(
    path: &Path,
    error: &(dyn std::error::Error + 'static),
) -> Option<CacheError> {
    let mut at = Some(error);
    while let Some(error) = at {
        let io = match error.downcast_ref::<WriteError>() {
            Some(WriteError::Write(io)) => Some(io),
            _ => error.downcast_ref::<io::Error>(),
        };
        if let Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =
            io.map(io::Error::kind)
        {
            return Some(CacheError::Full { path: PathBuf::from(path) });
        }
        at = error.source();
    }
    None
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
