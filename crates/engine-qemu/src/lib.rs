//! Guests under QEMU's software emulation, for machines without usable virtualization.
//!
//! The machine is `microvm`: no PCI, no ACPI, no firmware beyond a loader, and of devices a
//! root disk and one virtio-serial port, the carrier. QEMU never sees a path of the user's, a
//! network or a display. It is started through the [`launch`]er, which jails itself first.
#![forbid(unsafe_code)]

mod arguments;
mod clock;
pub mod launch;
mod machine;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use engine::{
    BootSpec, Capabilities, EngineError, Isolation, Machine, Preflight, SandboxBackend, Unavailable,
};

use crate::clock::Calibration;
use crate::launch::{LaunchReport, Task};

/// The emulator's name on PATH.
const PROGRAM: &str = "qemu-system-x86_64";

/// How to start this same program as the launcher of a monitor: it has to call
/// [`launch::main`] then, before it starts a thread.
#[derive(Debug, Clone)]
pub struct Launcher {
    /// The program, which should be given so that a replacement on disk does not matter:
    /// `/proc/self/exe`.
    pub program: PathBuf,
    /// What makes it the launcher.
    pub arguments: Vec<String>,
}

/// The engine.
#[derive(Debug)]
pub struct Qemu {
    launcher: Launcher,
    calibration: Calibration,
}

impl Qemu {
    /// An engine whose monitors are started by `launcher`. Making it early makes the first
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
        Capabilities { max_cpus: 32, ..Capabilities::default() }
    }

    /// Runs the emulator in its jail for its version, which proves that both are there and
    /// get along.
    async fn preflight(&self) -> Result<Preflight, Unavailable> {
        let missing = |reason: String| Unavailable {
            reason,
            remedy: format!("install {PROGRAM} (Debian: apt install qemu-system-x86)"),
        };
        let program = launch::find_program(PROGRAM)
            .ok_or_else(|| missing(format!("{PROGRAM} is not on PATH")))?;
        let launched = machine::launch(&self.launcher, &program, Task::Version, Vec::new())
            .await
            .map_err(|error| missing(error.to_string()))?;
        let LaunchReport { jail, .. } = launched.report;
        let output =
            tokio::time::timeout(Duration::from_secs(20), launched.child.wait_with_output())
                .await
                .map_err(|_| missing(format!("{} did not tell its version", program.display())))?
                .map_err(|error| missing(error.to_string()))?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let monitor = text.lines().next().unwrap_or_default().trim().to_owned();
        if !output.status.success() || monitor.is_empty() {
            let last = text.lines().last().unwrap_or("it said nothing");
            return Err(missing(format!(
                "{} does not start in its jail: {last}",
                program.display()
            )));
        }
        Ok(Preflight { monitor, confinement: jail.layers, notes: jail.missing })
    }

    async fn boot(&self, spec: BootSpec) -> Result<Box<dyn Machine>, EngineError> {
        if spec.cpus == 0 || spec.cpus > self.capabilities().max_cpus {
            return Err(EngineError::Unsupported(format!(
                "{} CPUs: this engine's machines have 1 to {}",
                spec.cpus,
                self.capabilities().max_cpus
            )));
        }
        let program = launch::find_program(PROGRAM).ok_or_else(|| {
            EngineError::Unavailable(Unavailable {
                reason: format!("{PROGRAM} is not on PATH"),
                remedy: "install it (Debian: apt install qemu-system-x86)".into(),
            })
        })?;
        let machine =
            machine::boot(&self.launcher, &program, spec, self.calibration.frequency_khz()).await?;
        Ok(Box::new(machine))
    }
}
