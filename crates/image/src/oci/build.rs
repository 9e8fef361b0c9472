//! Images made of other images, one layer at a time.
//!
//! Each step of a build is an image of its own in the table of names, under a name made of all that
//! decided about it, so that the next build finds it. Its layer comes from a sandbox, or from the
//! user's directory, as a tar; what becomes of that is what becomes of a pulled layer.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::path::Path;

use archive::{Attributes, InodeKind, LayerWriter, Name, Root};
use rustix::fs::Dir;
use serde_json::{Value, json};

use super::document::{self, Descriptor, Platform};
use super::images::{BlobHold, Documents, Tag, named, named_like};
use super::view::{View, Way};
use super::{OciError, layer};
use crate::build::Files;
use crate::cache::{CacheError, Lock};
use crate::digest;
use crate::erofs::{Image, Item, What};
use crate::layers::{ImageConfig, RootImage};
use crate::progress::{Progress, Stage};
use crate::source::ImageRef;
use crate::store::{self, ImageError, RootFs, Store};

/// Files and directories that one recipe may bring along.
const MAX_FILES: usize = 200_000;
/// Bytes of them.
const MAX_FILE_BYTES: u64 = 16 << 30;
/// Levels of directories.
const MAX_DEPTH: usize = 256;

/// What a build has come to so far.
#[derive(Debug, Clone)]
pub struct Built {
    name: String,
    manifest: Descriptor,
    config: ImageConfig,
}

impl Built {
    /// The image, for a sandbox to start from.
    pub fn image(&self) -> ImageRef {
        ImageRef::Name(self.name.clone())
    }

    /// `sha256:…` of its manifest.
    pub fn digest(&self) -> &str {
        &self.manifest.digest
    }

    /// What it says about what runs in it.
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }
}

/// A layer that has come, and is still to be judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLayer {
    digest: String,
    size: u64,
}

impl NewLayer {
    /// `sha256:…` of it.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// While it lives, no other build makes the same step.
#[derive(Debug)]
pub struct StepLock {
    _lock: Lock,
    _hold: BlobHold,
}

impl Store {
    /// What a build starts from. An image of Sandforge's own recipes, and a tar archive of a root,
    /// becomes one layer.
    ///
    /// # Errors
    /// As [`Store::resolve`]; `Oci` for what cannot be built upon.
    pub fn build_base(
        &self,
        base: &ImageRef,
        progress: &mut dyn Progress,
    ) -> Result<Built, ImageError> {
        let name = match base {
            ImageRef::Name(name) => name.clone(),
            ImageRef::Oci(reference) => reference.to_string(),
            ImageRef::Path(path) => {
                // An export of what comes of it needs the layers as they came.
                let import = super::Import { name: None, keep_blobs: true };
                match self.import_from(path, import, progress) {
                    Ok(image) => image.name,
                    Err(ImageError::Oci { source: OciError::NoImage { .. }, .. }) => {
                        return self.flat_base(base, progress);
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        match self.tag(&name)? {
            Some(tag) => {
                self.open_tag(&tag, progress)?;
                self.built(tag.name, tag.manifest)
            }
            None => match base {
                ImageRef::Oci(reference) => Err(ImageError::Absent(reference.clone())),
                _ => self.flat_base(base, progress),
            },
        }
    }

    /// An image that is one file system, as one of one layer.
    fn flat_base(&self, base: &ImageRef, progress: &mut dyn Progress) -> Result<Built, ImageError> {
        let root = self.resolve(base, progress)?;
        let (name, ours) = (root.name.clone(), root.digest.clone());
        let failed = named(&name);
        let (Some(ours), [layer]) = (ours, &root.layers[..]) else {
            return Err(failed(OciError::NotLayered));
        };
        if layer.fs != RootFs::Erofs {
            return Err(failed(OciError::NotLayered));
        }
        let key = digest::of(format!("flat 1 {ours}").as_bytes());
        let _lock = self.lock_step(&key, progress)?;
        if let Some(built) = self.build_step(&key, progress)? {
            return Ok(built);
        }
        let packed = self.spooled(|to| pack_image(&layer.file, to, progress, layer.size));
        let new = packed.map_err(&failed_with(&name))?;
        let Platform { os, architecture, .. } = Platform::of_guests();
        let config = json!({
            "os": os, "architecture": architecture, "config": {},
            "rootfs": {"type": "layers", "diff_ids": []},
        });
        let note = format!("sandforge image {name}");
        self.publish_step(&key, config, Vec::new(), Some((&new, &note)), progress)
    }

    fn built(&self, name: String, manifest: Descriptor) -> Result<Built, ImageError> {
        let documents = Documents::read(&self.blobs, &manifest).map_err(named(&name))?;
        Ok(Built { name, manifest, config: documents.config.image })
    }

    /// What a step with this key has made, where that is here and whole.
    ///
    /// # Errors
    /// `Store`.
    pub fn build_step(
        &self,
        key: &str,
        progress: &mut dyn Progress,
    ) -> Result<Option<Built>, ImageError> {
        let name = step_name(key);
        let Some(tag) = self.tag(&name)? else { return Ok(None) };
        // What was damaged or removed is made again.
        if self.open_tag(&tag, progress).is_err() {
            return Ok(None);
        }
        self.built(name, tag.manifest).map(Some)
    }

    /// Waits until no other process makes the step with this key.
    ///
    /// # Errors
    /// `Store`.
    pub fn lock_step(
        &self,
        key: &str,
        progress: &mut dyn Progress,
    ) -> Result<StepLock, ImageError> {
        let lock = self.oci.lock(&step_name(key), progress)?;
        Ok(StepLock { _lock: lock, _hold: self.hold_blobs()? })
    }

    /// Takes a layer, as hostile as whoever sends it.
    ///
    /// # Errors
    /// What the source said, and `Full`.
    pub fn put_layer(&self, layer: impl Read) -> Result<NewLayer, ImageError> {
        let limit = layer::Limits::default().unpacked_bytes;
        let put = self.blobs.put(layer.take(limit));
        let (digest, size) =
            put.map_err(|error| named("the layer")(self.blobs.put_error(error)))?;
        Ok(NewLayer { digest, size })
    }

    /// Packs files of the build directory into a layer for `on`. No link out of the directory is taken,
    /// and none of the image's leads out of the image.
    ///
    /// # Errors
    /// `Oci` with the file that cannot be taken.
    pub fn pack_files(
        &self,
        on: &Built,
        directory: &Path,
        files: &[Files],
        progress: &mut dyn Progress,
    ) -> Result<NewLayer, ImageError> {
        let failed = failed_with(&on.name);
        let tag = self.tag(&on.name)?.ok_or_else(|| self.unknown(&on.name))?;
        let image = self.open_tag(&tag, progress)?;
        let view = View::of(image.layers.iter().map(|layer| &layer.file));
        let view = view.map_err(|error| failed(read_error(Path::new("a layer"), error)))?;
        self.spooled(|to| {
            let mut packing = Packing::new(directory, &view, to)?;
            files.iter().try_for_each(|one| packing.add(one))?;
            packing.finish()
        })
        .map_err(&failed)
    }

    /// Has a layer written into a file without a name, and keeps it as a blob.
    fn spooled(
        &self,
        write: impl FnOnce(&mut File) -> Result<(), OciError>,
    ) -> Result<NewLayer, OciError> {
        let directory = self.blobs.blobs();
        let spool = || -> io::Result<File> {
            let flags = rustix::fs::OFlags::TMPFILE
                | rustix::fs::OFlags::RDWR
                | rustix::fs::OFlags::CLOEXEC;
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            Ok(File::from(rustix::fs::open(&directory, flags, mode)?))
        };
        let mut file = spool().map_err(CacheError::of("write", &directory))?;
        write(&mut file)?;
        file.rewind().map_err(CacheError::of("read", &directory))?;
        let (digest, size) = self.blobs.put(file).map_err(|error| self.blobs.put_error(error))?;
        Ok(NewLayer { digest, size })
    }

    /// Puts a layer upon what there is, which is then known by `key`. Whoever calls holds its
    /// [`StepLock`].
    ///
    /// # Errors
    /// `Oci` where the layer is refused.
    pub fn add_layer(
        &self,
        on: &Built,
        key: &str,
        layer: &NewLayer,
        note: &str,
        progress: &mut dyn Progress,
    ) -> Result<Built, ImageError> {
        let (config, layers) = self.parts(on).map_err(named(&on.name))?;
        self.publish_step(key, config, layers, Some((layer, note)), progress)
    }

    /// The same image with another configuration, known by `key`.
    ///
    /// # Errors
    /// `Oci`, `Store`.
    pub fn configure(
        &self,
        from: &Built,
        key: &str,
        image: &ImageConfig,
        progress: &mut dyn Progress,
    ) -> Result<Built, ImageError> {
        let (mut config, layers) = self.parts(from).map_err(named(&from.name))?;
        set_config(&mut config, image);
        self.publish_step(key, config, layers, None, progress)
    }

    /// Gives what was built a name.
    ///
    /// # Errors
    /// `Store`.
    pub fn name_build(
        &self,
        built: &Built,
        name: &str,
        progress: &mut dyn Progress,
    ) -> Result<RootImage, ImageError> {
        let _hold = self.hold_blobs()?;
        let name = named_like(Path::new(name), Some(name));
        let manifest = built.manifest.clone();
        let tag = Tag {
            name,
            manifest,
            pulled: store::now(),
            archive: None,
            is_step: false,
            is_pulled: false,
        };
        let image = self.open_tag(&tag, progress)?;
        self.set_tag(tag)?;
        Ok(image)
    }

    /// The configuration as it stands, with all that we do not know, and the layers.
    fn parts(&self, of: &Built) -> Result<(Value, Vec<Descriptor>), OciError> {
        let documents = Documents::read(&self.blobs, &of.manifest)?;
        let config = self.blobs.document(&documents.manifest.config)?;
        let config = serde_json::from_slice(&config).map_err(|error| OciError::Document {
            what: documents.manifest.config.digest.clone(),
            source: document::DocumentError::Json(error.to_string()),
        })?;
        Ok((config, documents.manifest.layers))
    }

    fn publish_step(
        &self,
        key: &str,
        mut config: Value,
        mut layers: Vec<Descriptor>,
        new: Option<(&NewLayer, &str)>,
        progress: &mut dyn Progress,
    ) -> Result<Built, ImageError> {
        let name = step_name(key);
        let manifest = (|| {
            if let Some((layer, note)) = new {
                push_layer(&mut config, layers.len(), &layer.digest, note);
                layers.push(descriptor(document::LAYER, &layer.digest, layer.size));
            }
            let config = self.put_document(document::CONFIG, &config)?;
            for layer in &mut layers {
                layer.media_type = document::oci_layer(&layer.media_type)
                    .map_err(|source| OciError::Document { what: layer.digest.clone(), source })?
                    .to_owned();
            }
            let manifest = json!({
                "schemaVersion": 2, "mediaType": document::MANIFEST,
                "config": config, "layers": layers,
            });
            let manifest = self.put_document(document::MANIFEST, &manifest)?;
            self.assemble(&self.blobs, &manifest, &name, progress)?;
            Ok(manifest)
        })();
        let manifest = manifest.map_err(named(&name))?;
        let tag = Tag {
            name: name.clone(),
            manifest: manifest.clone(),
            pulled: store::now(),
            archive: None,
            is_step: true,
            is_pulled: false,
        };
        self.set_tag(tag)?;
        self.built(name, manifest)
    }

    fn put_document(&self, media_type: &str, document: &Value) -> Result<Descriptor, OciError> {
        let bytes = document.to_string().into_bytes();
        let put = self.blobs.put(&bytes[..]).map_err(|error| self.blobs.put_error(error))?;
        Ok(descriptor(media_type, &put.0, put.1))
    }
}

fn step_name(key: &str) -> String {
    format!("step-{key}")
}

fn failed_with(name: &str) -> impl Fn(OciError) -> ImageError + use<> {
    let name = name.to_owned();
    move |error| named(&name)(error)
}

fn descriptor(media_type: &str, digest: &str, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: digest.to_owned(),
        size,
        platform: None,
        annotations: BTreeMap::new(),
    }
}

/// One more layer in a configuration. Its history stays only where it tells of each layer.
fn push_layer(config: &mut Value, layers: usize, diff_id: &str, note: &str) {
    let mut note: String = note.chars().filter(|c| !c.is_control()).take(4096).collect();
    if note.is_empty() {
        "sandforge image build".clone_into(&mut note);
    }
    if let Some(Value::Array(diff_ids)) = config.pointer_mut("/rootfs/diff_ids") {
        diff_ids.push(diff_id.into());
    }
    let is_layer = |entry: &&Value| entry.get("empty_layer") != Some(&Value::Bool(true));
    let told = config.get("history").and_then(Value::as_array);
    let mut history = match told {
        Some(told) if told.iter().filter(is_layer).count() == layers => told.clone(),
        None if layers == 0 => Vec::new(),
        _ => {
            if let Some(config) = config.as_object_mut() {
                config.remove("history");
            }
            return;
        }
    };
    history.push(json!({"created_by": note}));
    config["history"] = history.into();
}

fn set_config(config: &mut Value, image: &ImageConfig) {
    if !config.get("config").is_some_and(Value::is_object) {
        config["config"] = json!({});
    }
    let env: Vec<String> =
        image.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let settings = &mut config["config"];
    let mut set = |name: &str, is_set: bool, value: Value| {
        let Some(settings) = settings.as_object_mut() else { return };
        match is_set {
            true => drop(settings.insert(name.to_owned(), value)),
            false => drop(settings.remove(name)),
        }
    };
    set("Env", !env.is_empty(), json!(env));
    set("User", image.user.is_some(), json!(image.user));
    set("WorkingDir", image.working_dir.is_some(), json!(image.working_dir));
    set("Entrypoint", !image.entrypoint.is_empty(), json!(image.entrypoint));
    set("Cmd", !image.cmd.is_empty(), json!(image.cmd));
    set("Labels", !image.labels.is_empty(), json!(image.labels));
}

fn read_error(path: &Path, source: io::Error) -> OciError {
    OciError::Read { path: path.to_owned(), source }
}

/// Writes a file system of ours as a layer.
fn pack_image(
    file: &File,
    to: &mut File,
    progress: &mut dyn Progress,
    total: u64,
) -> Result<(), OciError> {
    let failed = |error| read_error(Path::new("the image"), error);
    let image = Image::open(file).map_err(failed)?;
    let mut layer = LayerWriter::new(to);
    let mut links: HashMap<u64, Name> = HashMap::new();
    let mut done = 0;
    let mut open = vec![(Name::ROOT, image.root().map_err(failed)?)];
    while let Some((directory, item)) = open.pop() {
        layer.directory(&directory, &attributes(&item)).map_err(failed)?;
        let mut below = Vec::new();
        for (last, item) in image.list(&item).map_err(failed)? {
            let name = directory.join(&last).map_err(|error| failed(io::Error::other(error)))?;
            let of = attributes(&item);
            if item.what == What::Dir {
                below.push((name, item));
                continue;
            }
            if let Some(first) = links.get(&item.nid) {
                layer.hard_link(&name, first, &of).map_err(failed)?;
                continue;
            }
            match item.what {
                What::File { size } => {
                    layer.file(&name, size, &mut image.contents(&item), &of).map_err(failed)?;
                    done += size;
                    progress.step(Stage::Convert.at(done, Some(total)));
                }
                What::Symlink => {
                    let target = image.target(&item).map_err(failed)?;
                    layer.symlink(&name, &target, &of).map_err(failed)?;
                }
                What::Fifo => layer.fifo(&name, &of).map_err(failed)?,
                // There is nothing below that it could hide.
                What::Whiteout | What::Dir => continue,
            }
            links.insert(item.nid, name);
        }
        open.extend(below.into_iter().rev());
    }
    layer.finish().map(drop).map_err(failed)
}

fn attributes(item: &Item) -> Attributes {
    Attributes {
        mode: item.owner.mode.into(),
        uid: item.owner.uid,
        gid: item.owner.gid,
        mtime: (item.owner.mtime.seconds, item.owner.mtime.nanos),
        xattrs: item.xattrs.clone(),
    }
}

/// Files of the user's on their way into a layer.
struct Packing<'a> {
    directory: Root,
    view: &'a View<'a>,
    layer: LayerWriter<&'a mut File>,
    /// Directories that the layer has.
    made: std::collections::BTreeSet<Name>,
    files: usize,
    bytes: u64,
}

impl<'a> Packing<'a> {
    fn new(directory: &Path, view: &'a View<'a>, to: &'a mut File) -> Result<Self, OciError> {
        let root = Root::open(directory).map_err(|error| read_error(directory, error))?;
        let layer = LayerWriter::new(to);
        Ok(Self { directory: root, view, layer, made: Default::default(), files: 0, bytes: 0 })
    }

    fn finish(self) -> Result<(), OciError> {
        self.layer.finish().map(drop).map_err(written)
    }

    fn add(&mut self, files: &Files) -> Result<(), OciError> {
        let refuse = |why: String| OciError::File { path: files.from.clone(), why };
        let from = Name::parse(files.from.as_bytes()).map_err(|error| refuse(error.to_string()))?;
        let found = self.directory.inode(&from).map_err(|error| refuse(error.to_string()))?;
        let found = found.ok_or_else(|| {
            refuse("there is no such file in the build directory (links are not followed)".into())
        })?;
        let mut to = files.to.clone();
        if found.kind != InodeKind::Directory
            && to.ends_with('/')
            && let Some((_, last)) = from.split()
        {
            to.push_str(&last.to_string_lossy());
        }
        // A file replaces a link of its name; the way to it, and a directory, goes where links lead.
        let (way, last) = match found.kind {
            InodeKind::Directory => (to.as_str(), None),
            _ => match to.trim_end_matches('/').rsplit_once('/') {
                Some((parent, last)) if !last.is_empty() => (parent, Some(last)),
                _ => return Err(refuse("it cannot take the place of the image's root".into())),
            },
        };
        let resolved = self.view.resolve(way.as_bytes());
        let resolved = resolved.map_err(|error| read_error(Path::new("a layer"), error))?;
        let Way::To(parents) = resolved else {
            return Err(refuse(format!("{way} is no directory in the image")));
        };
        let owner = files.owner().map_err(&refuse)?;
        let mut at = Name::ROOT;
        for name in &parents {
            at = at.join(name).map_err(|error| refuse(error.to_string()))?;
            self.directory_of_image(&at, owner)?;
        }
        match last {
            Some(last) => {
                let at = at.join(last.as_bytes()).map_err(|error| refuse(error.to_string()))?;
                self.one(&from, &at, files, owner, &found)
            }
            None => self.tree(&from, &at, files, owner),
        }
    }

    /// As the image has it, or new.
    fn directory_of_image(&mut self, name: &Name, owner: (u32, u32)) -> Result<(), OciError> {
        if !self.made.insert(name.clone()) {
            return Ok(());
        }
        let names: Vec<Vec<u8>> = name.components().map(<[u8]>::to_vec).collect();
        let there = self.view.directory(&names);
        let of = match there.map_err(|error| read_error(Path::new("a layer"), error))? {
            Some(there) => Attributes {
                mode: there.mode.into(),
                uid: there.uid,
                gid: there.gid,
                mtime: (there.mtime.seconds, there.mtime.nanos),
                xattrs: BTreeMap::new(),
            },
            None => of_user(0o755, owner),
        };
        self.layer.directory(name, &of).map_err(written)
    }

    fn tree(
        &mut self,
        from: &Name,
        to: &Name,
        files: &Files,
        owner: (u32, u32),
    ) -> Result<(), OciError> {
        let mut open = vec![(from.clone(), to.clone(), 0)];
        while let Some((from, to, depth)) = open.pop() {
            let refuse = |why: String| OciError::File { path: shown(&from), why };
            if depth > MAX_DEPTH {
                return Err(refuse(format!("it is over {MAX_DEPTH} directories deep")));
            }
            let failed = |error: io::Error| refuse(error.to_string());
            let listing = self.directory.listing(&from).map_err(failed)?;
            let mut names = Vec::new();
            for entry in Dir::read_from(&listing).map_err(|error| failed(error.into()))? {
                let entry = entry.map_err(|error| failed(error.into()))?;
                let name = entry.file_name().to_bytes();
                if name != b"." && name != b".." {
                    names.push(name.to_vec());
                }
                if names.len() > MAX_FILES {
                    return Err(refuse(format!("over {MAX_FILES} files are not taken")));
                }
            }
            names.sort_unstable();
            let mut below = Vec::new();
            for name in names {
                let join = |name: &Name, last: &[u8]| {
                    name.join(last).map_err(|error| refuse(error.to_string()))
                };
                let (from, to) = (join(&from, &name)?, join(&to, &name)?);
                let found = self.directory.inode(&from).map_err(failed)?;
                let Some(found) = found else { continue };
                if found.kind == InodeKind::Directory {
                    self.count(&from, 0)?;
                    self.directory_of_image(&to, owner)?;
                    below.push((from, to, depth + 1));
                } else {
                    self.one(&from, &to, files, owner, &found)?;
                }
            }
            open.extend(below.into_iter().rev());
        }
        Ok(())
    }

    fn one(
        &mut self,
        from: &Name,
        to: &Name,
        files: &Files,
        owner: (u32, u32),
        found: &archive::Inode,
    ) -> Result<(), OciError> {
        let refuse = |why: &str| OciError::File { path: shown(from), why: why.to_owned() };
        match found.kind {
            InodeKind::File => {
                let failed = |error: io::Error| refuse(&error.to_string());
                let (mut file, inode) = self.directory.file(from).map_err(failed)?;
                self.count(from, inode.size)?;
                let by_default = if inode.mode & 0o111 == 0 { 0o644 } else { 0o755 };
                let of = of_user(files.mode.map_or(by_default, u32::from), owner);
                self.layer.file(to, inode.size, &mut file, &of).map_err(|error| {
                    match error.kind() {
                        io::ErrorKind::UnexpectedEof => refuse("it was changed while it was read"),
                        _ => written(error),
                    }
                })
            }
            InodeKind::Symlink => {
                self.count(from, 0)?;
                let target = self.directory.link_target(from);
                let target = target.map_err(|error| refuse(&error.to_string()))?;
                if !stays(from, &files.from, &target) {
                    return Err(refuse(
                        "it is a symbolic link out of what is copied; copy what it leads to",
                    ));
                }
                self.layer.symlink(to, &target, &of_user(0o777, owner)).map_err(written)
            }
            kind => Err(refuse(&format!("it is {}", kind.as_str()))),
        }
    }

    fn count(&mut self, from: &Name, bytes: u64) -> Result<(), OciError> {
        self.files += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.files > MAX_FILES || self.bytes > MAX_FILE_BYTES {
            let why = format!("over {MAX_FILES} files or {MAX_FILE_BYTES} bytes are not taken");
            return Err(OciError::File { path: shown(from), why });
        }
        Ok(())
    }
}

/// Whether a link of the user's leads to something that is copied with it.
fn stays(link: &Name, copied: &str, target: &[u8]) -> bool {
    if target.starts_with(b"/") {
        return false;
    }
    let copied = Name::parse(copied.as_bytes()).unwrap_or(Name::ROOT).components().count();
    let Some(mut depth) = link.components().count().checked_sub(copied + 1) else { return false };
    for name in target.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return false,
            },
            _ => depth += 1,
        }
    }
    true
}

fn shown(name: &Name) -> String {
    name.to_string()
}

/// With no time, so that equal files give equal layers.
fn of_user(mode: u32, (uid, gid): (u32, u32)) -> Attributes {
    Attributes { mode, uid, gid, mtime: (0, 0), xattrs: BTreeMap::new() }
}

fn written(error: io::Error) -> OciError {
    CacheError::of("write", Path::new("the layer"))(error).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_in_what_is_copied_or_are_refused() {
        let stays = |link: &str, copied: &str, target: &str| {
            stays(&Name::parse(link.as_bytes()).unwrap(), copied, target.as_bytes())
        };
        assert!(stays("src/a/l", "src", "../b"));
        assert!(stays("src/l", "src", "./x/../y"));
        assert!(!stays("src/a/l", "src", "../../b"));
        assert!(!stays("src/l", "src", "/etc/passwd"));
        assert!(!stays("l", "l", "x"));
        assert!(stays("l", ".", "x"));
    }

    #[test]
    fn a_history_that_does_not_tell_of_each_layer_goes() {
        let mut config = json!({"rootfs": {"diff_ids": ["a"]}, "history": [
            {"created_by": "x"}, {"created_by": "y", "empty_layer": true}]});
        push_layer(&mut config, 1, "b", "a note\n");
        assert_eq!(config["rootfs"]["diff_ids"], json!(["a", "b"]));
        assert_eq!(config["history"][2], json!({"created_by": "a note"}));
        push_layer(&mut config, 5, "c", "");
        assert!(config.get("history").is_none());
    }

    #[test]
    fn what_is_not_known_of_a_configuration_stays() {
        let mut config = json!({"config": {"ExposedPorts": {"80/tcp": {}}, "Cmd": ["x"]}});
        let image = ImageConfig { user: Some("me".into()), ..ImageConfig::default() };
        set_config(&mut config, &image);
        assert_eq!(config, json!({"config": {"ExposedPorts": {"80/tcp": {}}, "User": "me"}}));
    }
}
