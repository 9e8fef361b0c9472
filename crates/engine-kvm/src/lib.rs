//! Guests on the host's hardware virtualization.
//!
//! Each machine is a process of its own: the monitor, a small static program that is carried in
//! this one, started from memory, and confined before it touches anything of a guest's. It gets
//! descriptors, never paths.
#![forbid(unsafe_code)]

mod cause;
mod machine;
mod verdict;

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use async_trait::async_trait;
use engine::{
    BootSpec, Capabilities, EngineError, Isolation, Machine, Preflight, SandboxBackend, Unavailable,
};
use launch::Launcher;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vmm::probe::Outcome;

use crate::cause::Facts;
use crate::verdict::{Cache, Verdict};

static MONITOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/monitor"));
const DEVICE: &str = "/dev/kvm";

/// The engine.
#[derive(Debug)]
pub struct Kvm {
    cache: Cache,
    monitor: OnceLock<File>,
}

impl Kvm {
    /// An engine that remembers in `directory` whether KVM runs guests here.
    pub fn new(directory: &Path) -> Self {
        Self { cache: Cache::new(directory), monitor: OnceLock::new() }
    }

    /// How to start a monitor: from memory, so that no file can be put in its place.
    fn launcher(&self) -> io::Result<Launcher> {
        let file = match self.monitor.get() {
            Some(file) => file,
            None => {
                let file = monitor()?;
                self.monitor.get_or_init(|| file)
            }
        };
        // The name is looked up by the child, before its exec closes the descriptor.
        let program = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        Ok(Launcher { program, arguments: Vec::new() })
    }

    /// Tries a guest in a confined monitor.
    async fn probe(&self, kvm: OwnedFd) -> Result<Verdict, Unavailable> {
        let failed = |error: EngineError| Unavailable {
            reason: format!("a guest cannot be tried: {error}"),
            remedy: "see `sandforge doctor`, or use --engine qemu".into(),
        };
        let launcher = self.launcher().map_err(machine::failed("carry the monitor"));
        machine::probe(&launcher.map_err(failed)?, kvm).await.map_err(failed)
    }
}

fn monitor() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("sandforge-monitor", flags)?);
    file.write_all(MONITOR)?;
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    Ok(file)
}

fn open() -> Result<OwnedFd, Unavailable> {
    let device = OpenOptions::new().read(true).write(true).open(DEVICE);
    device.map(OwnedFd::from).map_err(|error| Facts::gather().explain_device(&error))
}

fn explain(outcome: &Outcome) -> Result<(), Unavailable> {
    match Facts::gather().explain_outcome(outcome) {
        Some(unavailable) => Err(unavailable),
        None => Ok(()),
    }
}

#[async_trait]
impl SandboxBackend for Kvm {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn isolation(&self) -> Isolation {
        Isolation::Vm
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            pause: true,
            snapshot: true,
            max_cpus: vmm::MAX_CPUS.into(),
            ..Capabilities::default()
        }
    }

    /// Tries a guest in a confined monitor, whatever was found before.
    async fn preflight(&self) -> Result<Preflight, Unavailable> {
        let verdict = self.probe(open()?).await?;
        self.cache.store(&verdict);
        let Verdict { outcome, mut jail } = verdict;
        explain(&outcome)?;
        match jail::cgroup::Parent::find() {
            Ok(_) => jail.layers.push("a control group: memory, processor time, tasks".into()),
            Err(missing) => jail.missing.push(missing.to_string()),
        }
        Ok(Preflight {
            monitor: concat!("sandforge monitor ", env!("CARGO_PKG_VERSION")).into(),
            confinement: jail.layers,
            notes: jail.missing,
        })
    }

    async fn available(&self) -> Result<(), Unavailable> {
        let kvm = open()?;
        if let Some(known) = self.cache.load() {
            return explain(&known.outcome);
        }
        let verdict = self.probe(kvm).await?;
        self.cache.store(&verdict);
        explain(&verdict.outcome)
    }

    async fn boot(&self, spec: BootSpec) -> Result<Box<dyn Machine>, EngineError> {
        let cpus = u8::try_from(spec.cpus).ok().filter(|cpus| (1..=vmm::MAX_CPUS).contains(cpus));
        let Some(cpus) = cpus else {
            return Err(EngineError::Unsupported(format!(
                "{} CPUs: this engine's machines have 1 to {}",
                spec.cpus,
                vmm::MAX_CPUS
            )));
        };
        let kvm = open()?;
        let launcher = self.launcher().map_err(machine::failed("carry the monitor"))?;
        Ok(Box::new(machine::boot(&launcher, kvm, cpus, spec).await?))
    }
}
