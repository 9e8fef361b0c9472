//! Machines that are saved, and sandboxes that go on from there.
//!
//! A snapshot is a directory of its own: the machine's memory and state, its scratch disk, the key
//! that its agent knows, and a [`Manifest`] of what it depends on. It holds what the sandbox held,
//! so that nobody but its owner can read any of it. It has its name when it is whole, and not
//! before.
//!
//! What goes on from it is another sandbox, with an id, a key, a clock, entropy and names of its
//! own before anything else is done in it. Where its agent does not say so, it is ended.

mod file;
mod host;
mod manifest;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use engine::{
    Attachment, BootSpec, Disks, EngineError, Isolation, SandboxBackend, Snapshot, System,
};
use image::ImageRef;
use link::SigningKey;
use rustix::fs::OFlags;
use zeroize::Zeroizing;

pub use file::Sum;
pub use host::Cpu;
pub use manifest::{Layer, Manifest, Origin};

use crate::kept::{self, KeptInfo};
use crate::sandbox::{Parts, Sandbox, Timings};
use crate::{
    Error, Network, Observer, Phase, Step, Supervisor, generate_id, milliseconds, prepare,
};

const MEMORY: &str = "memory";
const STATE: &str = "state";
const DISK: &str = "disk";
const KEY: &str = "key";

/// What becomes of a machine that was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    /// It goes on.
    Resumes,
    /// It stands still, to be taken away.
    Stays,
}

/// What is checked of a snapshot before a machine goes on from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Everything, each byte of it included.
    Whole,
    /// What it depends on. For one that this process wrote a moment ago.
    Dependencies,
}

/// A sandbox as it goes on from a snapshot.
#[derive(Debug)]
pub struct Restore {
    /// Where the snapshot is.
    pub directory: PathBuf,
    /// What is checked of it.
    pub check: Check,
    /// Its id, from [`generate_id`]; a new one when absent.
    pub id: Option<String>,
    /// As [`crate::SandboxSpec::owner`].
    pub owner: Option<String>,
    /// What the user calls it; its id when absent.
    pub name: Option<String>,
    /// The weakest isolation that will do.
    pub min_isolation: Option<Isolation>,
    /// The machine outlives the caller.
    pub keep: bool,
    /// The way out; one that had one has to get one, and one that had none gets none.
    pub network: Option<Network>,
}

pub(crate) fn failed<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::SnapshotFile { action, path: path.to_owned(), source }
}

/// A file of a snapshot, and no link.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no file")),
    }
}

/// A name that a manifest may give to a file.
fn checked_name(name: &str) -> Result<&str, Error> {
    match [MEMORY, STATE, DISK, KEY].contains(&name) {
        true => Ok(name),
        false => Err(Error::Damaged {
            file: manifest::MANIFEST.into(),
            why: format!("it names a file {:?}", name.chars().take(40).collect::<String>()),
        }),
    }
}

/// A directory that becomes a snapshot; gone where it does not.
struct Draft {
    directory: Option<PathBuf>,
}

impl Draft {
    fn new(beside: &Path) -> Result<Self, Error> {
        let name = beside.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let directory = beside.with_file_name(format!(".{name}.{}", &generate_id()?[3..]));
        let parent = beside.parent().unwrap_or_else(|| Path::new("/"));
        let mut builder = DirBuilder::new();
        builder.mode(0o700).recursive(true);
        builder.create(parent).map_err(failed("make", parent))?;
        let made = DirBuilder::new().mode(0o700).create(&directory);
        made.map_err(failed("make", &directory))?;
        Ok(Self { directory: Some(directory) })
    }

    fn path(&self) -> &Path {
        self.directory.as_deref().expect("until it has its name")
    }

    fn file(&self, name: &str) -> Result<File, Error> {
        let path = self.path().join(name);
        file::create(&path).map_err(failed("make", &path))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<File, Error> {
        let mut file = self.file(name)?;
        let path = self.path().join(name);
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed("write", &path))?;
        Ok(file)
    }

    /// Gives it its name, under which there is none.
    fn finish(mut self, directory: &Path) -> Result<(), Error> {
        let synced = File::open(self.path()).and_then(|directory| directory.sync_all());
        synced.map_err(failed("write", self.path()))?;
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        let renamed = rustix::fs::renameat_with(
            rustix::fs::CWD,
            self.path(),
            rustix::fs::CWD,
            directory,
            flags,
        );
        renamed.map_err(|error| failed("name", directory)(error.into()))?;
        self.directory = None;
        let parent = directory.parent().unwrap_or_else(|| Path::new("/"));
        let synced = File::open(parent).and_then(|parent| parent.sync_all());
        synced.map_err(failed("write", parent))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            let _ = fs::remove_dir_all(directory);
        }
    }
}

/// Work on files, on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Internal(error.to_string()))?
}

impl Supervisor {
    /// Saves a sandbox to a directory that is not there yet, with `about` beside it. Its machine
    /// stands still meanwhile. Where this fails, it goes on.
    ///
    /// # Errors
    /// `Request` for a sandbox that cannot be saved, with the reason; `Engine` where its engine
    /// cannot, `SnapshotFile`.
    pub async fn snapshot(
        &self,
        sandbox: &mut Sandbox,
        directory: &Path,
        about: serde_json::Value,
        afterwards: Afterwards,
    ) -> Result<Manifest, Error> {
        let Parts { info, key, scratch } = sandbox.parts();
        let (info, key, network) = (info.clone(), key.clone(), info.has_network);
        let engine = self.saver(&info.engine)?;
        let refused = |why: &str| Err(Error::Request(format!("it cannot be saved: {why}")));
        if info.has_volumes {
            return refused(
                "it has volumes, and what is on them would go on without it; take what you need \
                 from them, and make a sandbox without them",
            );
        }
        let Some(origin) = info.origin.clone() else {
            return refused("it was started by an older version, which did not say from what");
        };
        if origin.kernel.is_none() && info.isolation != Isolation::Process {
            return refused("it runs a kernel of your own, which is not known by its content");
        }
        let scratch = match (info.disk_gb, scratch) {
            (None, _) => None,
            (Some(_), Some(scratch)) => {
                Some(scratch.try_clone().map_err(failed("open", directory))?)
            }
            (Some(_), None) => {
                return refused("its scratch disk is known to the process alone that started it");
            }
        };
        let monitor = engine.preflight().await.map_err(EngineError::from).map_err(Error::Engine)?;
        let draft = Draft::new(directory)?;
        let snapshot = Snapshot { memory: draft.file(MEMORY)?, state: draft.file(STATE)? };
        sandbox.pause().await?;
        let saved = save(sandbox, &snapshot, scratch, &draft).await;
        if saved.is_err() || afterwards == Afterwards::Resumes {
            let resumed = sandbox.resume().await;
            saved?;
            resumed?;
        }
        let target = directory.to_owned();
        let written = blocking(move || {
            let mut files = BTreeMap::new();
            draft.write(KEY, &*Zeroizing::new(key.to_bytes()))?;
            for name in [MEMORY, STATE, DISK, KEY] {
                let path = draft.path().join(name);
                let file = match open(&path) {
                    Err(error) if name == DISK && error.kind() == io::ErrorKind::NotFound => {
                        continue;
                    }
                    file => file.map_err(failed("read", &path))?,
                };
                let sum = file.sync_all().and_then(|()| Sum::of(&file));
                files.insert(name.to_owned(), sum.map_err(failed("read", &path))?);
            }
            let monitor = monitor.monitor;
            let saved = manifest::Saved { info: &info, origin, monitor, network, files, about };
            let manifest = Manifest::new(saved);
            draft.write(manifest::MANIFEST, &manifest.text())?;
            draft.finish(&target)?;
            Ok(manifest)
        });
        let written = written.await;
        if written.is_err() && afterwards == Afterwards::Stays {
            sandbox.resume().await?;
        }
        written
    }

    /// The engine of this name, if it can save machines.
    fn saver(&self, name: &str) -> Result<&dyn SandboxBackend, Error> {
        let engine = self.engine(name).ok_or_else(|| Error::NoSuchEngine(name.to_owned()))?;
        match engine.capabilities().snapshot {
            true => Ok(engine),
            false => Err(Error::Engine(EngineError::Unsupported(format!(
                "the engine {name} cannot save its sandboxes: kvm and qemu can, by --engine"
            )))),
        }
    }

    /// Makes a sandbox that goes on from a snapshot.
    ///
    /// # Errors
    /// `Mismatch` where it cannot go on here, with what differs; `Damaged` where it is not what was
    /// saved; and as [`Supervisor::create`]. No machine, file or socket is left behind then.
    pub async fn restore(
        &self,
        restore: Restore,
        observer: &mut dyn Observer,
    ) -> Result<Sandbox, Error> {
        let begun = Instant::now();
        let Restore { directory, check, id, owner, name, min_isolation, keep, network } = restore;
        if let Some(name) = &name {
            crate::check_name(name)?;
        }
        let manifest = Manifest::read(&directory)?;
        let engine = self.saver(&manifest.engine)?;
        let tier = engine.isolation();
        if tier != manifest.isolation || min_isolation.is_some_and(|least| tier < least) {
            return Err(Error::Isolation {
                wanted: min_isolation.unwrap_or(manifest.isolation),
                strongest: tier,
                why: format!("the snapshot is one of the engine {}", engine.name()),
            });
        }
        match (&network, manifest.network) {
            (None, true) => {
                return Err(Error::Request(
                    "it had a network when it was saved, and has to be given one".into(),
                ));
            }
            (Some(_), false) => {
                return Err(Error::Request(
                    "it had no network when it was saved, and gets none: that is decided before a \
                     sandbox's first task"
                        .into(),
                ));
            }
            _ => {}
        }
        let (here, disks) = self.root_of(&manifest, observer).await?;
        let monitor = engine.preflight().await.map_err(EngineError::from).map_err(Error::Engine)?;
        manifest.compare(&monitor.monitor, &here)?;
        if let Some(caveat) = engine.caveat() {
            observer.notice(&format!("isolation: {tier}: {caveat}"));
        }
        let taken = manifest.clone();
        let opened = blocking(move || Opened::new(&directory, &taken, check)).await?;
        let Opened { snapshot, scratch, key: old_key } = opened;
        let scratch_here = scratch.as_ref().map(File::try_clone).transpose();
        let scratch_here = scratch_here.map_err(|error| Error::Internal(error.to_string()))?;
        let disks = match scratch {
            Some(scratch) => disks.with_scratch(scratch),
            None => disks,
        };
        let prepared = begun.elapsed();
        let begun = Instant::now();
        observer.step(Step { phase: Phase::Boot, done: 0, total: None });
        let id = match id {
            Some(id) => id,
            None => generate_id()?,
        };
        let key = link::generate_key().map_err(Error::Guest)?;
        let mut info = KeptInfo {
            name: name.unwrap_or_else(|| id.clone()),
            id,
            owner,
            engine: manifest.engine.clone(),
            isolation: manifest.isolation,
            image: manifest.image.clone(),
            cpus: manifest.cpus,
            memory_mb: manifest.memory_mb,
            writes_volumes: false,
            has_volumes: false,
            disk_gb: manifest.disk_gb,
            origin: Some(manifest.origin.clone()),
            has_network: manifest.network,
            pid: 0,
            created_ms: kept::now_ms(),
        };
        let record = match keep {
            true => Some(self.kept.reserve(&info, &key)?),
            false => None,
        };
        let boot = BootSpec {
            sandbox: info.id.clone(),
            cpus: manifest.cpus,
            memory_mb: manifest.memory_mb,
            system: System::Saved(engine::Saved { snapshot, disks }),
            agent_arguments: Vec::new(),
            attachment: match &record {
                Some(record) => Attachment::Detached(record.socket()),
                None => Attachment::Owned,
            },
            console: false,
        };
        let mut machine = engine.boot(boot).await.map_err(Error::Engine)?;
        let launched = begun.elapsed();
        info.pid = machine.monitor_pid().unwrap_or(0);
        let former = crate::Former { sandbox: manifest.sandbox, key: old_key };
        let taken =
            crate::become_another(machine.as_mut(), &info, former, key.clone(), record, network);
        match taken.await {
            Ok((guest, answered)) => {
                let timings = Timings {
                    prepare_ms: milliseconds(prepared),
                    process_ms: milliseconds(launched),
                    kernel_ms: milliseconds((answered - begun).saturating_sub(launched)),
                    agent_ms: milliseconds(answered.elapsed()),
                };
                let kept = keep.then(|| self.kept.clone());
                let sandbox = Sandbox::new(info, Some(machine), guest, timings, kept, key);
                Ok(sandbox.with_scratch(scratch_here))
            }
            Err(error) => {
                // Nothing is left that is two sandboxes, or none.
                let _ = machine.kill().await;
                if keep {
                    let _ = self.kept.forget(&info.name);
                }
                Err(error)
            }
        }
    }

    /// The root that a saved machine has, as it is here.
    async fn root_of(
        &self,
        manifest: &Manifest,
        observer: &mut dyn Observer,
    ) -> Result<(Origin, Disks), Error> {
        if manifest.isolation == Isolation::Process {
            return Ok((Origin::of_host(), Disks::none()));
        }
        // What has the name by now may be another image.
        let by_digest = match &manifest.origin.image {
            Some(digest) => {
                let digest = ImageRef::Name(digest.trim_start_matches("sha256:").to_owned());
                prepare::root(self, digest, observer).await.ok()
            }
            None => None,
        };
        let root = match by_digest {
            Some(root) => root,
            None => {
                let Ok(image) = manifest.image.parse::<ImageRef>();
                prepare::root(self, image, observer).await?
            }
        };
        let here = Origin::of_machine(Some(image::boot::kernel_sha256()), &root);
        let disks = prepare::root_disks(root.layers);
        Ok((here, disks.map_err(|error| Error::Internal(error.to_string()))?))
    }
}

/// Writes the machine, which stands still.
async fn save(
    sandbox: &mut Sandbox,
    snapshot: &Snapshot,
    scratch: Option<File>,
    draft: &Draft,
) -> Result<(), Error> {
    sandbox.save(snapshot).await?;
    let Some(scratch) = scratch else { return Ok(()) };
    let copied = draft.file(DISK)?;
    let path = draft.path().join(DISK);
    blocking(move || file::copy(&scratch, &copied).map_err(failed("write", &path))).await
}

/// The files of a snapshot that a machine is to go on from.
struct Opened {
    snapshot: Snapshot,
    /// A copy of its disk, without a name.
    scratch: Option<File>,
    key: SigningKey,
}

impl Opened {
    fn new(directory: &Path, manifest: &Manifest, check: Check) -> Result<Self, Error> {
        for needed in [MEMORY, STATE, KEY].iter().chain(manifest.disk_gb.map(|_| &DISK)) {
            if !manifest.files.contains_key(*needed) {
                let file = (*needed).to_owned();
                return Err(Error::Damaged { file, why: "the manifest does not have it".into() });
            }
        }
        if check == Check::Whole {
            manifest.check_files(directory)?;
        }
        let file = |name: &str| {
            let path = directory.join(name);
            open(&path).map_err(failed("read", &path))
        };
        let scratch = match manifest.disk_gb {
            None => None,
            Some(_) => {
                let copied =
                    tempfile::tempfile_in(directory).map_err(failed("write", directory))?;
                file::copy(&file(DISK)?, &copied).map_err(failed("write", directory))?;
                Some(copied)
            }
        };
        let key = kept::read_key(directory)?;
        let snapshot = Snapshot { memory: file(MEMORY)?, state: file(STATE)? };
        Ok(Self { snapshot, scratch, key })
    }
}

/// Removes a snapshot. What goes on from it is not touched.
///
/// # Errors
/// `SnapshotFile` where something of it stays.
pub fn remove_snapshot(directory: &Path) -> Result<(), Error> {
    // Without its manifest it is none, whatever becomes of the rest.
    let path = directory.join(manifest::MANIFEST);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &path)(error));
        }
        _ => {}
    }
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", directory)(error))
        }
        _ => Ok(()),
    }
}

/// What a snapshot takes up of the disk, in bytes.
pub fn snapshot_size(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|found| found.blocks() * 512).sum()
}
