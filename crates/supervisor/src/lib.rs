//! Lifecycle of sandboxes: create, run, copy, destroy; the only crate that knows all below.
//!
//! [`Supervisor::create`] goes from a request to a machine whose agent takes tasks: checks,
//! image, engine, boot, handshake, fresh clock and entropy. The [`Sandbox`] that it returns
//! owns the machine; dropping it takes the machine away, unless it was asked to be kept.
#![forbid(unsafe_code)]

mod choice;
mod clone;
mod copy;
mod doctor;
mod error;
mod kept;
mod live;
mod observe;
mod prepare;
mod registries;
mod sandbox;
mod snapshot;
mod template;
mod volume;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Attachment, BootSpec, Machine, System};
use engine_kvm::Kvm;
use engine_process::Process as ProcessEngine;
use engine_qemu::Qemu;

use kept::Shelf;
use prepare::Prepared;
use registries::Registries;
use template::{Found, Template, Templates};

pub use copy::{CopyIn, CopyOut, CopySummary};
pub use doctor::{Doctor, EngineReport, Finding, Verdict};
pub use engine::{Capabilities, Isolation, Preflight, Unavailable};
pub use engine::{EngineError, SandboxBackend, Stats, mock};
pub use engine_qemu::monitor as qemu_monitor;
pub use error::{Error, ErrorKind};
pub use image::{ImageInfo, ImageRef};
pub use kept::KeptInfo;
pub use launch::Launcher;
pub use link::{Call, Guest, GuestStream, GuestStreams, Input, LinkError, Output, Process};
pub use live::{Live, is_protected_path};
pub use observe::{Observer, Phase, Step};
pub use prepare::root_disks;
pub use sandbox::{Sandbox, Teardown, Timings};
pub use snapshot::{
    Afterwards, Check, Cpu, Layer, Manifest, Origin, Restore, Sum, remove_snapshot, snapshot_size,
};
pub use template::{TemplateOrder, remove_templates};
pub use volume::{MAX_VOLUMES, Volume, VolumeAccess};
pub use workspace::{self, Hidden};
pub use {image, registry, share, wire};

/// How long a guest may take until its agent answers: an emulated one on a machine where
/// twenty others want the same processor.
const BOOT_PATIENCE: Duration = Duration::from_secs(120);

/// How long one may take that goes on from a template; after that, a kernel boots.
const TEMPLATE_PATIENCE: Duration = Duration::from_secs(20);

/// Least guest memory in MiB: kernel, agent and one small process.
pub const LEAST_MEMORY_MB: u32 = 128;
/// Longest name of a sandbox.
const MAX_NAME: usize = 40;

/// A sandbox as it is asked for.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    /// Its id, from [`generate_id`]; a new one when absent. With it, a caller can write down what
    /// it is about to make.
    pub id: Option<String>,
    /// Whose records a kept machine is in; see [`Supervisor::owned_by`].
    pub owner: Option<String>,
    /// What the user calls it; its id when absent.
    pub name: Option<String>,
    /// Virtual CPUs; two, or one where there is one, when absent.
    pub cpus: Option<u32>,
    /// Guest memory in MiB.
    pub memory_mb: u32,
    /// Its root; `base` when absent.
    pub image: Option<ImageRef>,
    /// A kernel of the user's own.
    pub kernel: Option<PathBuf>,
    /// An engine by name; the strongest when absent.
    pub engine: Option<String>,
    /// The weakest isolation that will do; that of the named engine, or else
    /// [`Isolation::Emulated`], when absent.
    pub min_isolation: Option<Isolation>,
    /// The machine outlives the caller.
    pub keep: bool,
    /// The kernel's messages on stderr.
    pub console: bool,
    /// The way out; none when absent.
    pub network: Option<Network>,
    /// What its tasks change goes to a disk of so many GiB, which is gone with it; to its memory
    /// when absent.
    pub disk_gb: Option<u32>,
    /// Its tasks start where the image says, where it says so, and not in the workspace.
    pub starts_where_image_says: bool,
    /// Disks that outlive it.
    pub volumes: Vec<Volume>,
    /// Variables of its tasks, over those of its image and below all others.
    pub variables: Vec<(String, String)>,
}

/// The way out of a sandbox: who takes what its tasks open, and what they are told of it.
#[derive(Debug, Clone)]
pub struct Network {
    /// Takes every connection and every question for a name, and decides.
    pub streams: Arc<dyn GuestStreams>,
    /// What the sandbox is told before its first task.
    pub operation: wire::op::Network,
}

impl Default for SandboxSpec {
    fn default() -> Self {
        Self {
            id: None,
            owner: None,
            name: None,
            cpus: None,
            memory_mb: 1024,
            image: None,
            kernel: None,
            engine: None,
            min_isolation: None,
            keep: false,
            console: false,
            network: None,
            disk_gb: None,
            starts_where_image_says: true,
            volumes: Vec::new(),
            variables: Vec::new(),
        }
    }
}

/// The engines and the images of this host.
#[derive(Debug)]
pub struct Supervisor {
    store: image::Store,
    engines: Vec<Box<dyn SandboxBackend>>,
    kept: Shelf,
    registries: Registries,
    /// Where sandboxes go on from, if they may.
    templates: Option<Templates>,
}

/// A sandbox whose engine is chosen and whose files are there.
#[derive(Debug)]
pub struct Plan<'a> {
    spec: SandboxSpec,
    engine: &'a dyn SandboxBackend,
    prepared: Prepared,
    kept: &'a Shelf,
    store: &'a image::Store,
    took: Duration,
}

impl Supervisor {
    /// Opens the image store. `launcher` starts this same program again to become a
    /// monitor; see [`qemu_monitor::main`].
    ///
    /// # Errors
    /// `Store` where the cache directory cannot be used.
    pub fn new(launcher: Launcher) -> Result<Self, Error> {
        Ok(Self::with_store(launcher, image::Store::open_default()?))
    }

    /// The same with another image store than the user's.
    pub fn with_store(launcher: Launcher, store: image::Store) -> Self {
        let kvm = Kvm::new(store.directory());
        let process = ProcessEngine::new(image::boot::agent);
        Self::with_engines(
            store,
            vec![Box::new(kvm), Box::new(Qemu::new(launcher)), Box::new(process)],
        )
    }

    /// One with these engines, strongest first: for tests with [`engine::mock::Mock`].
    pub fn with_engines(store: image::Store, engines: Vec<Box<dyn SandboxBackend>>) -> Self {
        let (kept, registries) = (Shelf::of_user(), Registries::default());
        Self { store, engines, kept, registries, templates: None }
    }

    /// Sandboxes that can go on from templates; where there is none, they boot, and `maker` is
    /// started when they have gone. Its program has to call [`Self::make_template`], with its last
    /// argument as the order, at a low priority.
    #[must_use]
    pub fn with_templates(mut self, maker: Launcher) -> Self {
        self.templates = Some(Templates::below(self.store.directory(), maker));
        self
    }

    /// Keeps machines in this directory, and not in the user's runtime directory. Its path must
    /// leave room for the socket's within the 107 bytes that a socket's may have.
    #[must_use]
    pub fn with_runtime_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.kept = Shelf::at(directory.into());
        self
    }

    /// Asks registries as configured.
    #[must_use]
    pub fn with_registries(mut self, settings: registry::Settings) -> Self {
        self.registries = Registries { settings };
        self
    }

    /// Pulls an image, which has its name here from then on, in place of what had it.
    ///
    /// # Errors
    /// `Pull`, `Registries`, `Image`, `Store`.
    pub async fn pull(
        &self,
        reference: &image::Reference,
        platform: Option<&registry::Platform>,
        observer: &mut dyn Observer,
    ) -> Result<registry::Pulled, Error> {
        let pulled = self.registries.pull(&self.store, reference, platform, observer).await?;
        Ok(pulled.1)
    }

    /// What an image says about what runs in it. One that is not here is pulled.
    ///
    /// # Errors
    /// `Pull`, `Registries`, `Image`, `Store`.
    pub async fn image_config(
        &self,
        image: &ImageRef,
        observer: &mut dyn Observer,
    ) -> Result<image::ImageConfig, Error> {
        Ok(prepare::root(self, image.clone(), observer).await?.config)
    }

    /// The engine of this name.
    pub fn engine(&self, name: &str) -> Option<&dyn SandboxBackend> {
        self.engines.iter().find(|engine| engine.name() == name).map(AsRef::as_ref)
    }

    /// The images.
    pub fn images(&self) -> &image::Store {
        &self.store
    }

    /// The engine that a sandbox would get, and nothing is made.
    ///
    /// # Errors
    /// `NoSuchEngine`, `Isolation`, `Engine`.
    pub async fn choose(
        &self,
        engine: Option<&str>,
        min_isolation: Option<Isolation>,
    ) -> Result<&dyn SandboxBackend, Error> {
        choice::choose(&self.engines, engine, min_isolation, &mut ()).await
    }

    /// Makes a sandbox whose agent takes tasks.
    ///
    /// # Errors
    /// `Error`; no machine, file or socket is left behind then.
    pub async fn create(
        &self,
        spec: SandboxSpec,
        observer: &mut dyn Observer,
    ) -> Result<Sandbox, Error> {
        self.prepare(spec, observer).await?.start(observer).await
    }

    /// Chooses the engine, and finds or makes what the sandbox runs. Nothing of the sandbox is
    /// there yet: dropping this at any point leaves nothing.
    ///
    /// # Errors
    /// `Request`, `NoSuchEngine`, `Isolation`, `Image`, `Store`, `Boot`.
    pub async fn prepare(
        &self,
        spec: SandboxSpec,
        observer: &mut dyn Observer,
    ) -> Result<Plan<'_>, Error> {
        let begun = Instant::now();
        spec.check()?;
        let engine =
            choice::choose(&self.engines, spec.engine.as_deref(), spec.min_isolation, observer)
                .await?;
        let prepared = prepare::prepare(self, engine, &spec, observer).await?;
        if let Some(caveat) = engine.caveat() {
            observer.notice(&format!("isolation: {}: {caveat}", engine.isolation()));
        }
        let (kept, store) = (&self.kept, &self.store);
        Ok(Plan { spec, engine, prepared, kept, store, took: begun.elapsed() })
    }

    /// The machines that `keep` left running, by name.
    ///
    /// # Errors
    /// `Record` where the runtime directory cannot be read.
    pub fn kept(&self) -> Result<Vec<KeptInfo>, Error> {
        self.kept.list()
    }

    /// The kept machines with this [`SandboxSpec::owner`], also those whose maker was killed
    /// before it could say whether they run.
    ///
    /// # Errors
    /// `Record` where the runtime directory cannot be read.
    pub fn owned_by(&self, owner: &str) -> Result<Vec<KeptInfo>, Error> {
        self.kept.owned_by(owner)
    }

    /// Takes up a kept machine again.
    ///
    /// # Errors
    /// `NoSuchSandbox`; `Busy` where it does not answer.
    pub async fn attach(&self, name: &str) -> Result<Sandbox, Error> {
        self.attach_with(name, None).await
    }

    /// The same, with a way out in the place of the one that it had. One that had none gets none:
    /// that is decided before its first task.
    ///
    /// # Errors
    /// As [`Self::attach`], and `Guest` where the sandbox has no network.
    pub async fn attach_with(
        &self,
        name: &str,
        network: Option<Network>,
    ) -> Result<Sandbox, Error> {
        let begun = Instant::now();
        let (info, key, socket) = self.kept.find(name)?;
        let busy = || Error::Busy(name.to_owned());
        let carrier = tokio::net::UnixStream::connect(&socket).await.map_err(|_| busy())?;
        let (streams, operation) = Network::split(network);
        let patience = Duration::from_secs(20);
        let kept_key = key.clone();
        let guest = Guest::connect(carrier, &info.id, key, patience, streams).await;
        let guest = guest.map_err(|error| match error {
            LinkError::Unanswered(_) => busy(),
            error => Error::Guest(error),
        })?;
        // Time has passed, and a host that slept took the guest's clock along.
        guest.freshen().await.map_err(Error::Guest)?;
        if let Some(operation) = operation {
            guest.ask(&operation).await.map_err(Error::Guest)?;
        }
        let timings = Timings { agent_ms: milliseconds(begun.elapsed()), ..Timings::default() };
        Ok(Sandbox::new(info, None, guest, timings, Some(self.kept.clone()), kept_key))
    }

    /// Ends a kept machine and forgets it.
    ///
    /// # Errors
    /// `NoSuchSandbox`, `Record` where something of it cannot be removed, or `Busy` where it has
    /// to be asked and does not answer.
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        self.kept.remove(name).await
    }

    /// Looks at everything that a sandbox needs.
    pub async fn doctor(&self) -> Doctor {
        doctor::examine(&self.store, &self.engines).await
    }
}

impl Plan<'_> {
    /// The engine that was chosen.
    pub fn engine(&self) -> &dyn SandboxBackend {
        self.engine
    }

    /// Makes the sandbox. Not to be dropped before it is done where the machine is to be kept;
    /// [`Supervisor::remove`] makes it end soon.
    ///
    /// # Errors
    /// `Error`; no machine, file or socket is left behind then.
    pub async fn start(self, observer: &mut dyn Observer) -> Result<Sandbox, Error> {
        let Self { spec, engine, prepared, kept, store, took: prepared_in } = self;
        let begun = Instant::now();
        let Prepared { system, image, cpus, defaults, volumes, origin, scratch, template } =
            prepared;
        observer.step(Step { phase: Phase::Boot, done: 0, total: None });
        let id = match spec.id {
            Some(id) => id,
            None => generate_id()?,
        };
        let key = link::generate_key().map_err(Error::Guest)?;
        let info = KeptInfo {
            name: spec.name.unwrap_or_else(|| id.clone()),
            id,
            owner: spec.owner,
            engine: engine.name().into(),
            isolation: engine.isolation(),
            image,
            cpus,
            memory_mb: spec.memory_mb,
            writes_volumes: volumes.iter().any(|volume| volume.access == VolumeAccess::Write),
            has_volumes: !volumes.is_empty(),
            disk_gb: spec.disk_gb,
            origin: Some(origin),
            has_network: spec.network.is_some(),
            pid: 0,
            created_ms: kept::now_ms(),
        };
        let (streams, operation) = Network::split(spec.network);
        let mut rise = Rise {
            engine,
            kept: spec.keep.then_some(kept),
            info,
            key,
            console: spec.console,
            streams,
        };
        let (template, wanted) = match template {
            Some(Found::There(template)) => (Some(template), None),
            Some(Found::Missing(wanted)) => (None, Some(wanted)),
            None => (None, None),
        };
        let mut up = None;
        let mut cold = Some(system);
        if let (Some(template), Some(System::Saved(saved))) = (&template, &cold) {
            let disks = saved.disks.try_clone();
            let disks = disks.map_err(|error| Error::Internal(error.to_string()))?;
            let system = cold.take().expect("it is there");
            match rise.up(system, Some(template)).await {
                Ok(risen) => up = Some(risen),
                // Whatever is wrong with it, a kernel boots.
                Err(_) => {
                    template.discard();
                    let kernel = image::boot::Kernel::Ours;
                    cold = Some(prepare::boots(store, kernel, disks, observer).await?);
                }
            }
        }
        let Risen { mut machine, guest, launched, answered } = match (up, cold) {
            (Some(up), _) => up,
            (None, Some(system)) => rise.up(system, None).await?,
            (None, None) => return Err(Error::Internal("there is nothing to boot".into())),
        };
        // Those who read what it wrote need not wait until this is dropped.
        drop(spec.volumes);
        let first = First { volumes, network: operation, defaults };
        if let Err(error) = first.tell(machine.as_mut(), &guest).await {
            let _ = machine.kill().await;
            if spec.keep {
                let _ = kept.forget(&rise.info.name);
            }
            return Err(error);
        }
        let timings = Timings {
            prepare_ms: milliseconds(prepared_in),
            process_ms: milliseconds(launched.duration_since(begun)),
            kernel_ms: milliseconds(answered.duration_since(launched)),
            agent_ms: milliseconds(answered.elapsed()),
        };
        let kept = spec.keep.then(|| kept.clone());
        let sandbox = Sandbox::new(rise.info, Some(machine), guest, timings, kept, rise.key);
        let mut sandbox = sandbox.with_scratch(scratch);
        if let Some(wanted) = wanted {
            sandbox.want(wanted);
        }
        Ok(sandbox)
    }
}

/// What it takes to bring a machine up, for as often as it is tried.
struct Rise<'a> {
    engine: &'a dyn SandboxBackend,
    /// Where it goes on record.
    kept: Option<&'a Shelf>,
    info: KeptInfo,
    key: link::SigningKey,
    console: bool,
    streams: Option<Arc<dyn GuestStreams>>,
}

/// A machine whose agent takes tasks.
struct Risen {
    machine: Box<dyn Machine>,
    guest: Guest,
    /// When its monitor ran.
    launched: Instant,
    /// When the agent greeted; with the monitor, where no kernel booted.
    answered: Instant,
}

impl Rise<'_> {
    /// Brings it up, or leaves nothing of it.
    async fn up(&mut self, system: System, from: Option<&Template>) -> Result<Risen, Error> {
        // It is on record first: whatever becomes of this process, the machine can be found.
        let record = match self.kept {
            Some(kept) => Some(kept.reserve(&self.info, &self.key)?),
            None => None,
        };
        let attachment = match &record {
            Some(record) => Attachment::Detached(record.socket()),
            None => Attachment::Owned,
        };
        let agent_arguments = match from {
            // It is told when it goes on.
            Some(_) => Vec::new(),
            None => vec![
                format!("sandforge.id={}", self.info.id),
                format!("sandforge.key={}", wire::envelope::key_to_hex(&self.key.verifying_key())),
            ],
        };
        let boot = BootSpec {
            sandbox: self.info.id.clone(),
            cpus: self.info.cpus,
            memory_mb: self.info.memory_mb,
            system,
            agent_arguments,
            attachment,
            console: self.console,
        };
        let internal = |error: std::io::Error| Error::Internal(error.to_string());
        // While the machine starts.
        let check = match from {
            Some(template) => {
                Some(tokio::task::spawn_blocking(template.check().map_err(internal)?))
            }
            None => None,
        };
        let mut machine = self.engine.boot(boot).await.map_err(Error::Engine)?;
        let launched = Instant::now();
        self.info.pid = machine.monitor_pid().unwrap_or(0);
        match self.greet(machine.as_mut(), record, check).await {
            Ok((guest, answered)) => {
                let answered = if from.is_some() { launched } else { answered };
                Ok(Risen { machine, guest, launched, answered })
            }
            Err(error) => {
                let _ = machine.kill().await;
                if let Some(kept) = self.kept {
                    let _ = kept.forget(&self.info.name);
                }
                self.info.pid = 0;
                Err(error)
            }
        }
    }

    /// From a machine that was just started to an agent that takes tasks, and when it greeted.
    async fn greet(
        &self,
        machine: &mut dyn Machine,
        record: Option<kept::Record>,
        check: Option<tokio::task::JoinHandle<std::io::Result<()>>>,
    ) -> Result<(Guest, Instant), Error> {
        if let Some(record) = record {
            record.complete(&self.info)?;
        }
        let carrier = machine.carrier().map_err(Error::Engine)?;
        let patience = if check.is_some() { TEMPLATE_PATIENCE } else { BOOT_PATIENCE };
        let (id, key) = (&self.info.id, self.key.clone());
        let connecting = Guest::connect(carrier, id, key, patience, self.streams.clone());
        let guest = alive(machine, connecting).await?;
        let answered = Instant::now();
        let Some(check) = check else {
            alive(machine, guest.freshen()).await?;
            return Ok((guest, answered));
        };
        // It is told nothing while its memory may be somebody else's or damaged.
        let checked = check.await.map_err(|error| Error::Internal(error.to_string()))?;
        checked.map_err(|error| Error::Internal(error.to_string()))?;
        let identity = guest.take_identity(None);
        let taken = tokio::time::timeout(TEMPLATE_PATIENCE, alive(machine, identity)).await;
        taken.map_err(|_| Error::Guest(LinkError::Unanswered(TEMPLATE_PATIENCE)))??;
        Ok((guest, answered))
    }
}

/// What a sandbox is told before its first task.
struct First {
    volumes: Vec<wire::op::MountVolume>,
    network: Option<wire::op::Network>,
    defaults: Option<wire::op::Defaults>,
}

impl First {
    async fn tell(self, machine: &mut dyn Machine, guest: &Guest) -> Result<(), Error> {
        for volume in &self.volumes {
            alive(machine, guest.ask(volume)).await?;
        }
        if let Some(network) = self.network {
            alive(machine, guest.ask(&network)).await?;
        }
        if let Some(defaults) = self.defaults {
            alive(machine, guest.ask(&defaults)).await?;
        }
        Ok(())
    }
}

/// Whom a saved machine's agent takes operations from.
pub(crate) struct Former {
    sandbox: String,
    key: link::SigningKey,
}

/// From a machine that goes on to a sandbox of its own, and when its agent answered. Before the agent
/// has said that it is another one, nothing else is asked of it.
pub(crate) async fn become_another(
    machine: &mut dyn Machine,
    info: &KeptInfo,
    former: Former,
    key: link::SigningKey,
    record: Option<kept::Record>,
    network: Option<Network>,
) -> Result<(Guest, Instant), Error> {
    if let Some(record) = record {
        record.complete(info)?;
    }
    let carrier = machine.carrier().map_err(Error::Engine)?;
    let (streams, operation) = Network::split(network);
    let Former { sandbox, key: former_key } = former;
    let connecting = Guest::connect(carrier, &sandbox, former_key, BOOT_PATIENCE, streams);
    let guest = alive(machine, connecting).await?;
    let answered = Instant::now();
    alive(machine, guest.become_another(&info.id, key)).await?;
    if let Some(operation) = operation {
        alive(machine, guest.ask(&operation)).await?;
    }
    Ok((guest, answered))
}

/// The result of `work`. A carrier that ends is a machine that has ended, which knows better why.
async fn alive<T>(
    machine: &mut dyn Machine,
    work: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, Error> {
    match work.await {
        Ok(value) => Ok(value),
        Err(LinkError::Disconnected(_)) => Err(Error::MachineEnded(machine.ended().await)),
        Err(error) => Err(Error::Guest(error)),
    }
}

impl Network {
    fn split(this: Option<Self>) -> (Option<Arc<dyn GuestStreams>>, Option<wire::op::Network>) {
        this.map(|network| (network.streams, network.operation)).unzip()
    }
}

impl SandboxSpec {
    /// Looks at what can be told without an engine: the name, and the memory of this host.
    ///
    /// # Errors
    /// `Request`.
    pub fn check(&self) -> Result<(), Error> {
        if let Some(name) = &self.name {
            check_name(name)?;
        }
        if self.memory_mb < LEAST_MEMORY_MB {
            return Err(Error::Request(format!(
                "{} MB of memory are too few: a guest needs {LEAST_MEMORY_MB} MB at least",
                self.memory_mb
            )));
        }
        let info = rustix::system::sysinfo();
        let host_mb = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit)) >> 20;
        if u64::from(self.memory_mb) > host_mb {
            return Err(Error::Request(format!(
                "{} MB of memory were asked for, and this machine has {host_mb} MB: lower --memory",
                self.memory_mb
            )));
        }
        Ok(())
    }
}

/// Names are file names and kernel parameters, so they are plain.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let fits = (1..=MAX_NAME).contains(&name.len());
    if fits && name.bytes().all(plain) && !name.starts_with(['.', '-']) {
        return Ok(());
    }
    Err(Error::Request(format!(
        "{name:?} is not a name: 1 to {MAX_NAME} of letters, digits, `_`, `.` and `-`, beginning \
         with a letter, a digit or `_`"
    )))
}

/// An id for a sandbox: `sb-` and sixteen of `[a-z2-7]`, never the same twice.
///
/// # Errors
/// `Internal` where the system has no randomness.
pub fn generate_id() -> Result<String, Error> {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| Error::Internal(error.to_string()))?;
    let text: String =
        bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect();
    Ok(format!("sb-{text}"))
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    // Microseconds are as fine as these figures are good for.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for name in ["a", "my-box_1.2", "_x"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "-x", "a/b", "a b", "é", &"x".repeat(41)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_guest_larger_than_the_host_is_refused() {
        let spec = SandboxSpec { memory_mb: u32::MAX, ..SandboxSpec::default() };
        let error = spec.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("--memory"), "{error}");
    }
}
