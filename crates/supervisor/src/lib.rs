//! Lifecycle of sandboxes: create, run, copy, destroy; the only crate that knows all below.
//!
//! [`Supervisor::create`] goes from a request to a machine whose agent takes tasks: checks,
//! image, engine, boot, handshake, fresh clock and entropy. The [`Sandbox`] that it returns
//! owns the machine; dropping it takes the machine away, unless it was asked to be kept.
#![forbid(unsafe_code)]

mod copy;
mod doctor;
mod error;
mod kept;
mod observe;
mod sandbox;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use engine::{Attachment, BootSpec, Machine, RootDisk, SandboxBackend};
use engine_qemu::Qemu;
use image::RootImage;
use image::boot::{BootAssets, Kernel};

pub use copy::{CopyIn, CopyOut, CopySummary};
pub use doctor::{Doctor, EngineReport, Finding, Verdict};
pub use engine::{Capabilities, Isolation, Preflight, Unavailable};
pub use engine_qemu::{Launcher, launch};
pub use error::{Error, ErrorKind};
pub use image::{ImageInfo, ImageRef};
pub use kept::KeptInfo;
pub use link::{Guest, Input, LinkError, Output, Process};
pub use observe::{Observer, Phase, Step};
pub use sandbox::{Sandbox, Teardown, Timings};
pub use {image, wire};

/// How long a guest may take until its agent answers: an emulated one on a machine where
/// twenty others want the same processor.
const BOOT_PATIENCE: Duration = Duration::from_secs(120);

/// Least guest memory in MiB: kernel, agent and one small process.
pub const LEAST_MEMORY_MB: u32 = 128;
/// Longest name of a sandbox.
const MAX_NAME: usize = 40;

/// A sandbox as it is asked for.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    /// What the user calls it; its id when absent.
    pub name: Option<String>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory in MiB.
    pub memory_mb: u32,
    /// Its root.
    pub image: ImageRef,
    /// A kernel of the user's own.
    pub kernel: Option<PathBuf>,
    /// An engine by name; the strongest when absent.
    pub engine: Option<String>,
    /// The weakest isolation that will do.
    pub min_isolation: Isolation,
    /// The machine outlives the caller.
    pub keep: bool,
    /// The kernel's messages on stderr.
    pub console: bool,
}

impl Default for SandboxSpec {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get().min(2));
        Self {
            name: None,
            cpus: u32::try_from(cores).unwrap_or(1),
            memory_mb: 1024,
            image: ImageRef::Name("base".into()),
            kernel: None,
            engine: None,
            min_isolation: Isolation::Emulated,
            keep: false,
            console: false,
        }
    }
}

/// The engines and the images of this host.
#[derive(Debug)]
pub struct Supervisor {
    store: image::Store,
    engines: Vec<Box<dyn SandboxBackend>>,
}

impl Supervisor {
    /// Opens the image store. `launcher` starts this same program again as a monitor's
    /// launcher; see [`launch::main`].
    ///
    /// # Errors
    /// `Store` where the cache directory cannot be used.
    pub fn new(launcher: Launcher) -> Result<Self, Error> {
        Ok(Self::with_engines(image::Store::open_default()?, vec![Box::new(Qemu::new(launcher))]))
    }

    /// One with these engines, strongest first: for tests with [`engine::mock::Mock`].
    pub fn with_engines(store: image::Store, engines: Vec<Box<dyn SandboxBackend>>) -> Self {
        Self { store, engines }
    }

    /// The images.
    pub fn images(&self) -> &image::Store {
        &self.store
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
        let begun = Instant::now();
        check(&spec)?;
        let engine = self.choose(&spec, observer)?;
        let (root, assets) = self.prepare(&spec, observer).await?;
        let prepared = begun.elapsed();

        observer.step(Step { phase: Phase::Boot, done: 0, total: None });
        let id = generate_id()?;
        let name = spec.name.clone().unwrap_or_else(|| id.clone());
        let key = link::generate_key().map_err(Error::Guest)?;
        let record = match spec.keep {
            true => Some(kept::Record::reserve(&name)?),
            false => None,
        };
        let attachment = match &record {
            Some(record) => Attachment::Detached(record.socket()),
            None => Attachment::Owned,
        };
        let image = root.name.clone();
        let boot = BootSpec {
            sandbox: id.clone(),
            cpus: spec.cpus,
            memory_mb: spec.memory_mb,
            kernel: assets.kernel,
            initramfs: assets.initramfs,
            root: RootDisk { file: root.file, file_system: root.fs.as_str() },
            agent_arguments: vec![
                format!("sandforge.id={id}"),
                format!("sandforge.key={}", wire::envelope::key_to_hex(&key.verifying_key())),
            ],
            attachment,
            console: spec.console,
        };
        let mut machine = engine.boot(boot).await.map_err(Error::Engine)?;
        let launched = begun.elapsed();
        let info = KeptInfo {
            name,
            id,
            engine: engine.name().into(),
            isolation: engine.isolation(),
            image,
            cpus: spec.cpus,
            memory_mb: spec.memory_mb,
            pid: machine.monitor_pid().unwrap_or(0),
            created_ms: kept::now_ms(),
        };
        match take_up(machine.as_mut(), &info, key, record).await {
            Ok((guest, answered)) => {
                let timings = Timings {
                    prepare_ms: milliseconds(prepared),
                    process_ms: milliseconds(launched - prepared),
                    kernel_ms: milliseconds((answered - begun).saturating_sub(launched)),
                    agent_ms: milliseconds(answered.elapsed()),
                };
                Ok(Sandbox::new(info, Some(machine), guest, timings, spec.keep))
            }
            Err(error) => {
                let _ = machine.kill().await;
                if spec.keep {
                    let _ = kept::remove(&info.name).await;
                }
                Err(error)
            }
        }
    }

    /// The machines that `keep` left running, by name.
    ///
    /// # Errors
    /// `Record` where the runtime directory cannot be read.
    pub fn kept(&self) -> Result<Vec<KeptInfo>, Error> {
        kept::list()
    }

    /// Takes up a kept machine again.
    ///
    /// # Errors
    /// `NoSuchSandbox`; `Busy` where it does not answer.
    pub async fn attach(&self, name: &str) -> Result<Sandbox, Error> {
        let begun = Instant::now();
        let (info, key, socket) = kept::find(name)?;
        let busy = || Error::Busy(name.to_owned());
        let carrier = tokio::net::UnixStream::connect(&socket).await.map_err(|_| busy())?;
        let guest = Guest::connect(carrier, &info.id, key, Duration::from_secs(20)).await.map_err(
            |error| match error {
                LinkError::Unanswered(_) => busy(),
                error => Error::Guest(error),
            },
        )?;
        // Time has passed, and a host that slept took the guest's clock along.
        guest.freshen().await.map_err(Error::Guest)?;
        let timings = Timings { agent_ms: milliseconds(begun.elapsed()), ..Timings::default() };
        Ok(Sandbox::new(info, None, guest, timings, true))
    }

    /// Ends a kept machine and forgets it.
    ///
    /// # Errors
    /// `NoSuchSandbox`, or `Record` where something of it cannot be removed.
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        kept::remove(name).await
    }

    /// Looks at everything that a sandbox needs.
    pub async fn doctor(&self) -> Doctor {
        doctor::examine(&self.store, &self.engines).await
    }

    fn choose(
        &self,
        spec: &SandboxSpec,
        observer: &mut dyn Observer,
    ) -> Result<&dyn SandboxBackend, Error> {
        let engine = match &spec.engine {
            Some(name) => self.engines.iter().find(|engine| engine.name() == name),
            None => self.engines.first(),
        };
        let Some(engine) = engine else {
            return Err(Error::NoSuchEngine(spec.engine.clone().unwrap_or_default()));
        };
        if engine.isolation() < spec.min_isolation {
            return Err(Error::Isolation {
                wanted: spec.min_isolation,
                strongest: engine.isolation(),
                why: NO_VIRTUALIZATION.into(),
            });
        }
        if engine.isolation() == Isolation::Emulated && spec.engine.is_none() {
            observer.notice(&format!("isolation: emulated, because {NO_VIRTUALIZATION}"));
        }
        Ok(engine.as_ref())
    }

    /// The image and the boot assets, made on a thread of their own so that the caller can be
    /// interrupted.
    async fn prepare(
        &self,
        spec: &SandboxSpec,
        observer: &mut dyn Observer,
    ) -> Result<(RootImage, BootAssets), Error> {
        let (store, image) = (self.store.clone(), spec.image.clone());
        let kernel = spec.kernel.clone().map_or(Kernel::Ours, Kernel::File);
        let (sender, mut steps) = tokio::sync::mpsc::unbounded_channel();
        let work = tokio::task::spawn_blocking(move || {
            let mut progress = |step: image::Step| {
                // Nobody listens any more where the caller gave up.
                let _ = sender.send(step);
            };
            let root = store.resolve(&image, &mut progress)?;
            let assets = image::boot::assets(&store, &kernel, &mut progress)?;
            Ok::<_, Error>((root, assets))
        });
        while let Some(step) = steps.recv().await {
            let phase = Phase::Prepare(step.stage);
            observer.step(Step { phase, done: step.done, total: step.total });
        }
        work.await.map_err(|error| Error::Internal(error.to_string()))?
    }
}

const NO_VIRTUALIZATION: &str = "this version has no engine for hardware virtualization";

/// From a machine that was just started to an agent that takes tasks, and when it greeted.
/// A kept machine is on record first: whatever becomes of this process, it can be found.
async fn take_up(
    machine: &mut dyn Machine,
    info: &KeptInfo,
    key: link::SigningKey,
    record: Option<kept::Record>,
) -> Result<(Guest, Instant), Error> {
    if let Some(record) = record {
        record.complete(info, &key)?;
    }
    let carrier = machine.carrier().map_err(Error::Engine)?;
    let connecting = Guest::connect(carrier, &info.id, key, BOOT_PATIENCE);
    let guest = alive(machine, connecting).await?;
    let answered = Instant::now();
    alive(machine, guest.freshen()).await?;
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

fn check(spec: &SandboxSpec) -> Result<(), Error> {
    if let Some(name) = &spec.name {
        check_name(name)?;
    }
    if spec.memory_mb < LEAST_MEMORY_MB {
        return Err(Error::Request(format!(
            "{} MB of memory are too few: a guest needs {LEAST_MEMORY_MB} MB at least",
            spec.memory_mb
        )));
    }
    let info = rustix::system::sysinfo();
    let host_mb = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit)) >> 20;
    if u64::from(spec.memory_mb) > host_mb {
        return Err(Error::Request(format!(
            "{} MB of memory were asked for, and this machine has {host_mb} MB: lower --memory",
            spec.memory_mb
        )));
    }
    Ok(())
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

fn generate_id() -> Result<String, Error> {
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
        let error = check(&spec).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("--memory"), "{error}");
    }
}
