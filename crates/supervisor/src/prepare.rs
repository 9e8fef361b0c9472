//! What a sandbox runs, found or made before it is started.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use engine::{DiskError, Disks, Guest, Isolation, SandboxBackend, Saved, System};
use image::boot::{BootAssets, Kernel};
use image::{ImageConfig, ImageError, ImageRef, RootImage, Store};
use wire::op::{Defaults, MountVolume};
use wire::text::Text;

use crate::snapshot::Origin;
use crate::template::Found;
use crate::{Error, Observer, Phase, SandboxSpec, Step, Supervisor, volume};

/// Where the root of a sandbox without an image comes from.
const HOST: &str = "host";

/// What to start.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) system: System,
    /// The name of its root.
    pub(crate) image: String,
    pub(crate) cpus: u32,
    /// What its image says about tasks, where that is anything.
    pub(crate) defaults: Option<Defaults>,
    /// How its volumes are mounted.
    pub(crate) volumes: Vec<MountVolume>,
    /// What it is booted from.
    pub(crate) origin: Origin,
    /// Its disk for what it changes.
    pub(crate) scratch: Option<File>,
    /// What it could go on from, where that is there or can be made.
    pub(crate) template: Option<Found>,
}

/// Prepares a sandbox of this engine.
pub(crate) async fn prepare(
    supervisor: &Supervisor,
    engine: &dyn SandboxBackend,
    spec: &SandboxSpec,
    observer: &mut dyn Observer,
) -> Result<Prepared, Error> {
    match engine.isolation() {
        Isolation::Process => process(spec),
        Isolation::Emulated | Isolation::Vm => guest(supervisor, engine, spec, observer).await,
    }
}

/// On the host's kernel, with its processors and its programs: there is nothing to choose.
fn process(spec: &SandboxSpec) -> Result<Prepared, Error> {
    let given = [
        ("--image", spec.image.is_some(), "its programs are the host's"),
        ("--kernel", spec.kernel.is_some(), "its kernel is the host's"),
        ("--cpu", spec.cpus.is_some(), "its processors are the host's"),
        ("--disk", spec.disk_gb.is_some(), "its disk is the host's"),
        ("--volume", !spec.volumes.is_empty(), "it has no disks, and a volume is one"),
    ];
    if let Some((option, _, why)) = given.iter().find(|(_, is_given, _)| *is_given) {
        return Err(Error::Request(format!(
            "{option} says nothing for a sandbox of the tier process: {why}"
        )));
    }
    let agent = image::boot::agent();
    let agent = agent.map_err(|error| Error::Internal(format!("carry the agent: {error}")))?;
    let system = System::Process { agent };
    let (image, cpus) = (HOST.into(), processors());
    let (origin, volumes) = (Origin::of_host(), Vec::new());
    let (defaults, scratch, template) = (None, None, None);
    Ok(Prepared { system, image, cpus, defaults, volumes, origin, scratch, template })
}

fn processors() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1))
}

/// Of a machine: enough to build with, and some left for the host.
fn default_cpus() -> u32 {
    processors().min(2)
}

/// The image and the boot assets, made on a thread of their own so that the caller can be
/// interrupted.
async fn guest(
    supervisor: &Supervisor,
    engine: &dyn SandboxBackend,
    spec: &SandboxSpec,
    observer: &mut dyn Observer,
) -> Result<Prepared, Error> {
    let image = spec.image.clone().unwrap_or_else(|| ImageRef::Name("base".into()));
    let kernel = spec.kernel.clone().map_or(Kernel::Ours, Kernel::File);
    let disk_gb = spec.disk_gb;
    let store = &supervisor.store;
    let root = root(supervisor, image, observer).await?;
    let cpus = spec.cpus.unwrap_or_else(default_cpus);
    let template = supervisor.templates.as_ref();
    let template = template.and_then(|templates| templates.find(engine, &root, cpus, spec));
    let scratch = match disk_gb {
        Some(disk_gb) => {
            let made =
                on_thread(store, observer, move |store, _| scratch(store.directory(), disk_gb));
            Some(made.await?)
        }
        None => None,
    };
    let of_ours = spec.kernel.is_none().then(image::boot::kernel_sha256);
    let origin = Origin::of_machine(of_ours, &root);
    let same = scratch.as_ref().map(File::try_clone).transpose();
    let same = same.map_err(|error| Error::Internal(format!("open a disk: {error}")))?;
    let disks = root_disks(root.layers).map_err(|error| Error::Internal(error.to_string()))?;
    let mut disks = match scratch {
        Some(scratch) => disks.with_scratch(scratch),
        None => disks,
    };
    let volumes = volume::attach(&spec.volumes, &mut disks)?;
    let defaults = defaults(&root.config, spec)?;
    if root.config.user.as_deref().is_some_and(is_root) {
        observer
            .notice("the image says root; its tasks run as uid 1000 unless --user says otherwise");
    }
    let system = match &template {
        Some(Found::There(template)) => {
            let snapshot = template.snapshot();
            let snapshot = snapshot.map_err(|error| Error::Internal(error.to_string()))?;
            System::Saved(Saved { snapshot, disks })
        }
        _ => boots(store, kernel, disks, observer).await?,
    };
    let image = root.name;
    Ok(Prepared { system, image, cpus, defaults, volumes, origin, scratch: same, template })
}

/// These disks with a kernel.
pub(crate) async fn boots(
    store: &Store,
    kernel: Kernel,
    disks: Disks,
    observer: &mut dyn Observer,
) -> Result<System, Error> {
    let assets = on_thread(store, observer, move |store, progress| {
        Ok(image::boot::assets(store, &kernel, progress)?)
    });
    let BootAssets { kernel, initramfs, .. } = assets.await?;
    Ok(System::Guest(Guest { kernel, initramfs, disks }))
}

/// The image, from its registry where it is not here.
pub(crate) async fn root(
    supervisor: &Supervisor,
    image: ImageRef,
    observer: &mut dyn Observer,
) -> Result<RootImage, Error> {
    let store = &supervisor.store;
    let here =
        on_thread(store, observer, move |store, progress| Ok(store.resolve(&image, progress)?));
    match here.await {
        Err(Error::Image(ImageError::Absent(reference))) => {
            Ok(supervisor.registries.pull(store, &reference, None, observer).await?.0)
        }
        here => here,
    }
}

/// Work on the store, told to the observer, on a thread of its own.
async fn on_thread<T: Send + 'static>(
    store: &Store,
    observer: &mut dyn Observer,
    work: impl FnOnce(&Store, &mut dyn image::Progress) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let store = store.clone();
    let (sender, mut steps) = tokio::sync::mpsc::unbounded_channel();
    let work = tokio::task::spawn_blocking(move || {
        work(&store, &mut |step: image::Step| {
            // Nobody listens any more where the caller gave up.
            let _ = sender.send(step);
        })
    });
    while let Some(step) = steps.recv().await {
        let phase = Phase::Prepare(step.stage);
        observer.step(Step { phase, done: step.done, total: step.total });
    }
    work.await.map_err(|error| Error::Internal(error.to_string()))?
}

/// What an image says about the tasks in it. Root is for who asks for it by name: an image that says
/// so is treated like the many that say nothing and mean it.
fn defaults(config: &ImageConfig, spec: &SandboxSpec) -> Result<Option<Defaults>, Error> {
    let text = |value: &str| {
        Text::new(value)
            .map_err(|error| Error::Request(format!("the image says {value:?}: {error}")))
    };
    let ours = spec.variables.iter().map(|(name, value)| (name, value));
    let env = config.env.iter().map(|(name, value)| (name, value)).chain(ours);
    let env = env.map(|(name, value)| Ok((text(name)?, text(value)?)));
    let env = env.collect::<Result<BTreeMap<_, _>, Error>>()?;
    let with_directory = spec.starts_where_image_says;
    let directory = config.working_dir.as_deref().filter(|path| with_directory && *path != "/");
    let cwd = directory.map(text).transpose()?;
    let user = config.user.as_deref().filter(|user| !is_root(user)).map(text).transpose()?;
    let says_nothing = env.is_empty() && cwd.is_none() && user.is_none();
    Ok((!says_nothing).then_some(Defaults { env, cwd, user }))
}

fn is_root(user: &str) -> bool {
    let name = user.split(':').next().unwrap_or_default();
    name == "root" || !name.is_empty() && name.bytes().all(|digit| digit == b'0')
}

/// A disk for what a sandbox changes. It has no name: its room is the host's again with the last
/// process that has it open, however that ends.
fn scratch(directory: &Path, disk_gb: u32) -> Result<File, Error> {
    let failed = |source: io::Error| Error::Scratch { directory: directory.to_owned(), source };
    let file = tempfile::tempfile_in(directory).map_err(failed)?;
    let mut uuid = [0; 16];
    getrandom::fill(&mut uuid).map_err(|error| failed(io::Error::other(error)))?;
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let options = ext4::Options {
        bytes: u64::from(disk_gb) << 30,
        journal: false,
        owner: (0, 0),
        uuid,
        time: u32::try_from(time.as_secs()).unwrap_or(u32::MAX),
    };
    ext4::format(&file, &options).map_err(|error| failed(io::Error::other(error)))?;
    Ok(file)
}

/// An image as the disks of a machine.
///
/// # Errors
/// `DiskError` where it has too many layers.
pub fn root_disks(layers: Vec<image::Layer>) -> Result<Disks, DiskError> {
    let attached = |layer: image::Layer| engine::Layer {
        file_system: layer.fs.as_str(),
        verity: layer.verity.as_ref().map(checked),
        file: layer.file,
    };
    Disks::new(layers.into_iter().map(attached).collect())
}

fn checked(verity: &image::Verity) -> wire::disk::Verity {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    wire::disk::Verity {
        data_blocks: verity.data_blocks,
        tree: verity.tree / wire::disk::VERITY_BLOCK,
        root: hex(&verity.root),
        salt: hex(&verity.salt),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(spec: &SandboxSpec) -> String {
        process(spec).err().map_or_else(String::new, |error| error.to_string())
    }

    #[test]
    fn what_a_sandbox_on_the_host_s_kernel_does_not_have_is_refused_by_name() {
        let image = Some(ImageRef::Name("base".into()));
        assert!(refused(&SandboxSpec { image, ..SandboxSpec::default() }).starts_with("--image "));
        let kernel = Some("/boot/vmlinuz".into());
        assert!(
            refused(&SandboxSpec { kernel, ..SandboxSpec::default() }).starts_with("--kernel ")
        );
        let cpus = Some(2);
        assert!(refused(&SandboxSpec { cpus, ..SandboxSpec::default() }).starts_with("--cpu "));
    }

    #[test]
    fn an_image_s_user_counts_unless_it_is_root() {
        let user = |user: &str| {
            let config = ImageConfig { user: Some(user.into()), ..ImageConfig::default() };
            let spec = SandboxSpec::default();
            defaults(&config, &spec).unwrap().and_then(|defaults| defaults.user)
        };
        for root in ["root", "0", "00", "root:wheel", "0:5"] {
            assert_eq!(user(root), None, "{root}");
        }
        for other in ["node", "1001:50", "rooty", ":5"] {
            assert_eq!(user(other), Some(other.into()));
        }
    }

    #[test]
    fn without_them_it_is_the_agent_alone() {
        let prepared = process(&SandboxSpec::default()).unwrap();
        assert_eq!(prepared.image, "host");
        assert!(prepared.system.process().is_ok());
    }
}
