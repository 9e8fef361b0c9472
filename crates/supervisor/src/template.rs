//! Templates: machines that stand still where their agent is ready, from which others go on in a
//! tenth of the time that a kernel takes.
//!
//! A template has no identity, no network and nothing of a user's: it was booted for this, and saved
//! before anything was asked of its agent. Who goes on from it becomes a sandbox first
//! ([`Guest::take_identity`]). It is keyed by all that it was made of, and anything that is not as it
//! should be is no reason to fail: the sandbox boots, and the template is made again.
//!
//! Nobody waits for one to be made. Whoever booted because there was none starts a process that
//! makes it, once the sandbox is gone: [`Supervisor::make_template`].

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use engine::{Attachment, BootSpec, Disks, Guest as BootGuest, SandboxBackend, Snapshot, System};
use image::RootImage;
use image::boot::Kernel;
use launch::Launcher;
use link::Guest;
use rustix::fs::{FlockOperation, SeekFrom, flock, seek};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{BOOT_PATIENCE, Error, SandboxSpec, Supervisor, prepare};

/// What the files of a template mean; another number is another template.
const FORMAT: u32 = 1;
/// Templates that are kept, the last used first.
const MOST: usize = 4;
/// How long making one may take, on a computer that is busy with other things.
const MAKING: Duration = Duration::from_secs(300);
/// What a manifest or a state may have in bytes.
const SMALL: u64 = 16 << 20;
const MANIFEST: &str = "manifest.json";
const MEMORY: &str = "memory";
const STATE: &str = "state";
/// Begins the names of directories that are being filled.
const UNFINISHED: &str = ".new-";

/// Where templates are, and who makes them.
#[derive(Debug, Clone)]
pub(crate) struct Templates {
    directory: PathBuf,
    maker: Launcher,
    /// What was asked for already.
    wanted: Arc<Mutex<BTreeSet<String>>>,
}

/// What [`Supervisor::make_template`] is to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateOrder {
    /// The image store's directory, which templates are below.
    pub cache: PathBuf,
    /// The engine.
    pub engine: String,
    /// The image, as a user writes it.
    pub image: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory in MiB.
    pub memory_mb: u32,
}

/// A template that is wanted and not there.
#[derive(Debug)]
pub(crate) struct Wanted {
    templates: Templates,
    key: String,
    order: TemplateOrder,
}

/// A template that is there.
#[derive(Debug)]
pub(crate) struct Template {
    directory: PathBuf,
    snapshot: Snapshot,
    manifest: Manifest,
}

/// What a template's sandbox finds.
#[derive(Debug)]
pub(crate) enum Found {
    /// To go on from.
    There(Template),
    /// To be made later.
    Missing(Wanted),
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    key: String,
    memory: Sum,
    state: Sum,
}

/// What tells a file that was damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sum {
    bytes: u64,
    /// CRC-32 over each piece that is not all zeros, preceded by its offset.
    crc32: u32,
}

/// All that a template depends on.
#[derive(Debug, Serialize)]
struct Basis<'a> {
    format: u32,
    engine: &'a str,
    /// The monitor's program.
    monitor: String,
    /// The host's, as guests see it.
    processor: String,
    kernel: &'a str,
    agent: String,
    layers: Vec<(&'a str, u64, Option<String>)>,
    cpus: u32,
    memory_mb: u32,
}

impl Templates {
    pub(crate) fn below(cache: &Path, maker: Launcher) -> Self {
        Self { directory: cache.join("templates"), maker, wanted: Arc::default() }
    }

    /// The template for a sandbox, where one like it can have one.
    pub(crate) fn find(
        &self,
        engine: &dyn SandboxBackend,
        root: &RootImage,
        cpus: u32,
        spec: &SandboxSpec,
    ) -> Option<Found> {
        let is_plain = spec.kernel.is_none()
            && spec.disk_gb.is_none()
            && spec.volumes.is_empty()
            && !spec.console;
        if !is_plain {
            return None;
        }
        let key = key(engine, root, cpus, spec.memory_mb)?;
        let directory = self.directory.join(&key);
        match open(&directory, &key) {
            Ok(template) => return Some(Found::There(template)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => discard(&directory),
        }
        let order = TemplateOrder {
            cache: self.directory.parent()?.to_owned(),
            engine: engine.name().into(),
            image: spec.image.clone().unwrap_or_default().to_string(),
            cpus,
            memory_mb: spec.memory_mb,
        };
        Some(Found::Missing(Wanted { templates: self.clone(), key, order }))
    }
}

impl Wanted {
    /// Starts a process that makes it, unless this one did before. Whether that succeeds is
    /// nobody's concern but the next one's who looks for the template.
    pub(crate) fn make(self) {
        let Self { templates, key, order } = self;
        let mut wanted = templates.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if !wanted.insert(key) {
            return;
        }
        let Ok(order) = serde_json::to_string(&order) else { return };
        // None of the user's variables: what is in it must not come into a template.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let maker = tokio::process::Command::new(&templates.maker.program)
            .args(&templates.maker.arguments)
            .arg(order)
            .env_clear()
            .env("PATH", path)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        drop(maker);
    }
}

impl Template {
    /// Its snapshot.
    ///
    /// # Errors
    /// Where there are no descriptors to be had.
    pub(crate) fn snapshot(&self) -> io::Result<Snapshot> {
        self.snapshot.try_clone()
    }

    /// Reads all of it, to see whether it is as it was written.
    pub(crate) fn check(&self) -> io::Result<impl FnOnce() -> io::Result<()> + Send + 'static> {
        let Snapshot { memory, state } = self.snapshot()?;
        let (of_memory, of_state) = (self.manifest.memory, self.manifest.state);
        Ok(move || match Sum::of(&state)? == of_state && Sum::of(&memory)? == of_memory {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, "the template is damaged")),
        })
    }

    /// Nobody is to go on from it any more.
    pub(crate) fn discard(&self) {
        discard(&self.directory);
    }
}

/// What is being removed has another name first, so that nobody finds half of it.
fn discard(directory: &Path) {
    let Some(above) = directory.parent() else { return };
    let Ok(grave) = tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(above) else { return };
    let _ = fs::rename(directory, grave.path().join("gone"));
}

fn open(directory: &Path, key: &str) -> io::Result<Template> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let metadata = fs::symlink_metadata(directory)?;
    let ours = rustix::process::getuid().as_raw();
    if !metadata.is_dir() || metadata.uid() != ours || metadata.mode() & 0o077 != 0 {
        return Err(invalid("it is not a directory that is ours alone"));
    }
    let file = |name: &str| {
        let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        File::options().read(true).custom_flags(flags).open(directory.join(name))
    };
    let manifest = file(MANIFEST)?;
    let mut text = Vec::new();
    manifest.try_clone()?.take(SMALL).read_to_end(&mut text)?;
    let read: Manifest = serde_json::from_slice(&text)?;
    let (memory, state) = (file(MEMORY)?, file(STATE)?);
    let is_whole = read.format == FORMAT
        && read.key == key
        && memory.metadata()?.len() == read.memory.bytes
        && state.metadata()?.len() == read.state.bytes
        && read.state.bytes <= SMALL;
    if !is_whole {
        return Err(invalid("its files are not those of its manifest"));
    }
    // Which was used last is told by this.
    let _ = manifest.set_modified(SystemTime::now());
    let snapshot = Snapshot { memory, state };
    Ok(Template { directory: directory.to_owned(), snapshot, manifest: read })
}

/// What a template is found by; `None` where there can be none.
fn key(engine: &dyn SandboxBackend, root: &RootImage, cpus: u32, memory_mb: u32) -> Option<String> {
    if !engine.capabilities().snapshot {
        return None;
    }
    let layers = root.layers.iter().map(|layer| {
        let verity = layer.verity.as_ref().map(|verity| hex(&verity.root));
        // A file of the user's may be another one tomorrow.
        Some((layer.digest.as_deref()?, layer.size, verity))
    });
    let basis = Basis {
        format: FORMAT,
        engine: engine.name(),
        monitor: engine.snapshot_basis()?,
        processor: processor(&fs::read_to_string("/proc/cpuinfo").ok()?),
        kernel: image::boot::kernel_sha256(),
        agent: image::boot::agent_sha256(),
        layers: layers.collect::<Option<_>>()?,
        cpus,
        memory_mb,
    };
    let basis = serde_json::to_vec(&basis).ok()?;
    Some(hex(&Sha256::digest(&basis)))
}

/// Model and features of the first processor.
fn processor(cpuinfo: &str) -> String {
    let says = |line: &&str| line.starts_with("model name") || line.starts_with("flags");
    let first = cpuinfo.split("\n\n").next().unwrap_or_default();
    first.lines().filter(says).collect::<Vec<_>>().join("\n")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Sum {
    fn of(file: &File) -> io::Result<Self> {
        const PIECE: usize = 64 << 10;
        static ZEROS: [u8; PIECE] = [0; PIECE];
        let bytes = file.metadata()?.len();
        let mut crc = crc32fast::Hasher::new();
        let mut piece = vec![0; PIECE];
        let mut at = 0;
        while let Some(next) = next_data(file, at)?.filter(|next| *next < bytes) {
            at = next - next % PIECE as u64;
            let length = PIECE.min(usize::try_from(bytes - at).unwrap_or(PIECE));
            let piece = &mut piece[..length];
            file.read_exact_at(piece, at)?;
            if *piece != ZEROS[..length] {
                crc.update(&at.to_le_bytes());
                crc.update(piece);
            }
            at += length as u64;
        }
        Ok(Self { bytes, crc32: crc.finalize() })
    }
}

/// Where the next bytes are that are no hole.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(next) => Ok(Some(next)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Supervisor {
    /// Makes a template, unless there is one or another process is at it. For a process of its own,
    /// which this takes a few seconds of.
    ///
    /// # Errors
    /// `Error`; nothing is left behind then.
    pub async fn make_template(&self, order: &TemplateOrder) -> Result<(), Error> {
        match tokio::time::timeout(MAKING, self.make(order)).await {
            Ok(made) => made,
            Err(_) => Err(Error::Internal(format!("it took more than {MAKING:?}"))),
        }
    }

    async fn make(&self, order: &TemplateOrder) -> Result<(), Error> {
        let failed = |error: io::Error| Error::Internal(format!("make a template: {error}"));
        let engine =
            self.engine(&order.engine).ok_or_else(|| Error::NoSuchEngine(order.engine.clone()))?;
        let Ok(image) = order.image.parse::<image::ImageRef>();
        let root = prepare::root(self, image, &mut ()).await?;
        let none = || Error::Request("a sandbox like this can have no template".into());
        let key = key(engine, &root, order.cpus, order.memory_mb).ok_or_else(none)?;
        let directory = self.store.directory().join("templates");
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&directory).map_err(failed)?;
        let Some(_lock) = lock(&directory).map_err(failed)? else { return Ok(()) };
        let place = directory.join(&key);
        if open(&place, &key).is_ok() {
            return Ok(());
        }
        tidy(&directory).map_err(failed)?;
        let private = fs::Permissions::from_mode(0o700);
        let mut new = tempfile::Builder::new();
        let new = new.prefix(UNFINISHED).permissions(private).tempdir_in(&directory);
        let new = new.map_err(failed)?;
        let made = |name: &str| {
            let mut options = File::options();
            options.read(true).write(true).create_new(true).mode(0o600).open(new.path().join(name))
        };
        let snapshot =
            Snapshot { memory: made(MEMORY).map_err(failed)?, state: made(STATE).map_err(failed)? };
        let disks =
            prepare::root_disks(root.layers).map_err(|error| Error::Internal(error.to_string()))?;
        self.save_fresh(engine, order, disks, &snapshot).await?;
        let manifest = Manifest {
            format: FORMAT,
            key,
            memory: Sum::of(&snapshot.memory).map_err(failed)?,
            state: Sum::of(&snapshot.state).map_err(failed)?,
        };
        let text = serde_json::to_vec(&manifest).expect("a manifest is plain JSON");
        made(MANIFEST).and_then(|mut file| file.write_all(&text)).map_err(failed)?;
        if place.exists() {
            discard(&place);
        }
        fs::rename(new.keep(), &place).map_err(failed)?;
        prune(&directory).map_err(failed)
    }

    /// Boots a machine that is nobody's, and saves it before anything is asked of its agent.
    async fn save_fresh(
        &self,
        engine: &dyn SandboxBackend,
        order: &TemplateOrder,
        disks: Disks,
        into: &Snapshot,
    ) -> Result<(), Error> {
        let assets = image::boot::assets(&self.store, &Kernel::Ours, &mut ())?;
        let system =
            System::Guest(BootGuest { kernel: assets.kernel, initramfs: assets.initramfs, disks });
        let boot = BootSpec {
            sandbox: "template".into(),
            cpus: order.cpus,
            memory_mb: order.memory_mb,
            system,
            agent_arguments: vec!["sandforge.template".into()],
            attachment: Attachment::Owned,
            console: false,
        };
        let mut machine = engine.boot(boot).await.map_err(Error::Engine)?;
        let carrier = machine.carrier().map_err(Error::Engine)?;
        // It is greeted, so that it is known to be ready; the key is nobody's, too.
        let key = link::generate_key().map_err(Error::Guest)?;
        let greeting = Guest::connect(carrier, "template", key, BOOT_PATIENCE, None);
        let guest = greeting.await.map_err(Error::Guest)?;
        guest.ping().await.map_err(Error::Guest)?;
        machine.pause().await.map_err(Error::Engine)?;
        machine.save(into).await.map_err(Error::Engine)?;
        machine.kill().await.map_err(Error::Engine)
    }
}

/// The right to make templates here, where nobody else is at it.
fn lock(directory: &Path) -> io::Result<Option<File>> {
    let mut options = File::options();
    let file = options.create(true).truncate(false).write(true).mode(0o600);
    let file = file.open(directory.join("lock"))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Removes what others, who are gone, did not finish.
fn tidy(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Removes the templates below an image store's directory; what goes on from one goes on. Returns
/// how many bytes of the disk they took.
///
/// # Errors
/// Where they cannot be listed.
pub fn remove_templates(cache: &Path) -> io::Result<u64> {
    let entries = match fs::read_dir(cache.join("templates")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut bytes = 0;
    for place in entries.flatten().map(|entry| entry.path()) {
        if place.join(MANIFEST).exists() {
            let files = [MEMORY, STATE, MANIFEST].map(|name| fs::metadata(place.join(name)));
            bytes += files.into_iter().flatten().map(|file| file.blocks() * 512).sum::<u64>();
            discard(&place);
        }
    }
    Ok(bytes)
}

/// Leaves those that were used last.
fn prune(directory: &Path) -> io::Result<()> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)?.flatten() {
        let manifest = fs::metadata(entry.path().join(MANIFEST));
        if let Ok(used) = manifest.and_then(|manifest| manifest.modified()) {
            found.push((used, entry.path()));
        }
    }
    found.sort_unstable_by(|one, other| other.cmp(one));
    for (_, old) in found.into_iter().skip(MOST) {
        discard(&old);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0f";

    fn template(directory: &Path) -> PathBuf {
        let place = directory.join(KEY);
        fs::DirBuilder::new().mode(0o700).create(&place).unwrap();
        let file = |name: &str, content: &[u8]| {
            fs::write(place.join(name), content).unwrap();
            Sum::of(&File::open(place.join(name)).unwrap()).unwrap()
        };
        let manifest = Manifest {
            format: FORMAT,
            key: KEY.into(),
            memory: file(MEMORY, b"what was in memory"),
            state: file(STATE, b"and all else"),
        };
        fs::write(place.join(MANIFEST), serde_json::to_vec(&manifest).unwrap()).unwrap();
        place
    }

    fn check(template: &Template) -> io::Result<()> {
        template.check().unwrap()()
    }

    #[test]
    fn a_template_that_is_whole_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let place = template(directory.path());
        let found = open(&place, KEY).unwrap();
        check(&found).unwrap();
        found.discard();
        assert_eq!(open(&place, KEY).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_byte_is_found_by_its_sum() {
        let directory = tempfile::tempdir().unwrap();
        let place = template(directory.path());
        fs::write(place.join(MEMORY), b"what was in memorY").unwrap();
        let found = open(&place, KEY).unwrap();
        assert_eq!(check(&found).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn what_is_foreign_old_or_cut_short_is_not_opened() {
        let directory = tempfile::tempdir().unwrap();
        let place = template(directory.path());
        let refused = |key: &str| open(&place, key).unwrap_err().kind();
        assert_eq!(refused("another key"), io::ErrorKind::InvalidData);
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(refused(KEY), io::ErrorKind::InvalidData);
        fs::set_permissions(&place, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(place.join(STATE), b"and").unwrap();
        assert_eq!(refused(KEY), io::ErrorKind::InvalidData);
        fs::write(place.join(MANIFEST), b"{}").unwrap();
        assert_eq!(refused(KEY), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_sum_does_not_depend_on_where_holes_are() {
        let sparse = tempfile::tempfile().unwrap();
        sparse.set_len(1 << 20).unwrap();
        sparse.write_all_at(b"data", 600_000).unwrap();
        let full = tempfile::tempfile().unwrap();
        full.write_all_at(&vec![0; 1 << 20], 0).unwrap();
        full.write_all_at(b"data", 600_000).unwrap();
        assert_eq!(Sum::of(&sparse).unwrap(), Sum::of(&full).unwrap());
        full.write_all_at(b"data", 0).unwrap();
        assert_ne!(Sum::of(&sparse).unwrap(), Sum::of(&full).unwrap());
    }

    #[test]
    fn the_last_used_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        for number in 0..6 {
            let place = directory.path().join(number.to_string());
            fs::create_dir(&place).unwrap();
            let manifest = File::create(place.join(MANIFEST)).unwrap();
            manifest.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(number)).unwrap();
        }
        prune(directory.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["2", "3", "4", "5"]);
    }

    #[test]
    fn all_are_removed_at_once() {
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(remove_templates(cache.path()).unwrap(), 0);
        let directory = cache.path().join("templates");
        fs::create_dir(&directory).unwrap();
        let place = template(&directory);
        assert!(remove_templates(cache.path()).unwrap() > 0);
        assert_eq!(open(&place, KEY).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn one_makes_templates_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let held = lock(directory.path()).unwrap();
        assert!(held.is_some() && lock(directory.path()).unwrap().is_none());
        drop(held);
        assert!(lock(directory.path()).unwrap().is_some());
    }

    #[test]
    fn a_processor_is_known_by_its_model_and_features() {
        let cpuinfo =
            "processor : 0\nmodel name : X\nbogomips : 5\nflags : a b\n\nmodel name : Y\n";
        assert_eq!(processor(cpuinfo), "model name : X\nflags : a b");
    }
}
