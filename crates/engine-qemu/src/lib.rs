//! Guests under QEMU's software emulation, for machines without usable virtualization.
//!
//! The machine is `microvm`: no PCI, no ACPI, no firmware beyond a loader, and of devices a
//! root disk and one virtio-serial port, the carrier. QEMU never sees a path of the user's, a
//! network or a display. What is started becomes QEMU after it has jailed itself: [`monitor`].
#![forbid(unsafe_code)]

mod arguments;
mod clock;
mod machine;
mod memory;
pub mod monitor;
mod qmp;

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use engine::{
    BootSpec, Capabilities, EngineError, Isolation, Machine, Preflight, SandboxBackend, Unavailable,
};
use launch::Launcher;

use crate::clock::Calibration;
use crate::monitor::{Order, Task};

/// The emulator's name on PATH.
const PROGRAM: &str = "qemu-system-x86_64";

/// The engine.
#[derive(Debug)]
pub struct Qemu {
    launcher: Launcher,
    calibration: Calibration,
}

impl Qemu {
    /// An engine whose monitors are started by `launcher`, whose program has to call
    /// [`monitor::main`] then, before it starts a thread. Making it early makes the first
    /// boot quicker: from here on it learns the speed of the time stamp counter.
    pub fn new(launcher: Launcher) -> Self {
        Self { launcher, calibration: Calibration::begin() }
    }
}

#[async_trait]
impl SandboxBackend for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn isolation(&self) -> Isolation {
        Isolation::Emulated
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { pause: true, snapshot: true, fork: false, max_cpus: 32 }
    }

    /// The program, without asking it: another one has another time, size or inode.
    fn snapshot_basis(&self) -> Option<String> {
        let program = program().ok()?.canonicalize().ok()?;
        let metadata = program.metadata().ok()?;
        Some(format!(
            "{} {} {} {} {}.{}",
            program.display(),
            metadata.dev(),
            metadata.ino(),
            metadata.size(),
            metadata.mtime(),
            metadata.mtime_nsec()
        ))
    }

    /// Runs the emulator in its jail for its version, which proves that both are there and
    /// get along.
    async fn preflight(&self) -> Result<Preflight, Unavailable> {
        let program = program()?;
        let order = Order { program: program.clone(), task: Task::Version };
        let (mut process, jail) = machine::launch(&self.launcher, &order, Vec::new())
            .await
            .map_err(|error| missing(error.to_string()))?;
        let end = tokio::time::timeout(Duration::from_secs(20), process.wait())
            .await
            .map_err(|_| missing(format!("{} did not tell its version", program.display())))?
            .map_err(|error| missing(error.to_string()))?;
        let text = &end.words;
        let monitor = text.lines().next().unwrap_or_default().trim().to_owned();
        if !end.status.success() || monitor.is_empty() {
            let last = text.lines().last().unwrap_or("it said nothing");
            return Err(missing(format!(
                "{} does not start in its jail: {last}",
                program.display()
            )));
        }
        Ok(Preflight { monitor, confinement: jail.layers, notes: jail.missing })
    }

    async fn available(&self) -> Result<(), Unavailable> {
        program().map(drop)
    }

    async fn boot(&self, spec: BootSpec) -> Result<Box<dyn Machine>, EngineError> {
        if spec.cpus == 0 || spec.cpus > self.capabilities().max_cpus {
            return Err(EngineError::Unsupported(format!(
                "{} CPUs: this engine's machines have 1 to {}",
                spec.cpus,
                self.capabilities().max_cpus
            )));
        }
        let program = program()?;
        let machine =
            machine::boot(&self.launcher, &program, spec, || self.calibration.frequency_khz())
                .await?;
        Ok(Box::new(machine))
    }
}

fn program() -> Result<PathBuf, Unavailable> {
    monitor::find_program(PROGRAM).ok_or_else(|| missing(format!("{PROGRAM} is not on PATH")))
}

fn missing(reason: String) -> Unavailable {
    let remedy = format!("install {PROGRAM} (Debian: apt install qemu-system-x86)");
    Unavailable { reason, remedy }
}
