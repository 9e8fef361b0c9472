//! A running QEMU.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use async_trait::async_trait;
use engine::{Attachment, BootSpec, Carrier, EngineError, Machine, Stats};
use launch::{LaunchError, Launcher, Ownership, Process, Start};
use tokio::net::UnixStream;

use crate::arguments;
use crate::monitor::{LaunchReport, Order, Task};

fn failed(step: &'static str) -> impl Fn(std::io::Error) -> EngineError {
    move |error| EngineError::Boot { step, reason: error.to_string() }
}

fn unlaunched(error: &LaunchError) -> EngineError {
    refused(error.to_string())
}

fn refused(reason: String) -> EngineError {
    EngineError::Boot { step: "launch the monitor", reason }
}

/// Starts a process and waits until it has become QEMU.
pub(crate) async fn launch(
    launcher: &Launcher,
    order: &Order,
    descriptors: Vec<OwnedFd>,
) -> Result<(Process, jail::Report), EngineError> {
    let (detached, shown) = match &order.task {
        Task::Machine(machine) => (machine.listens, machine.console),
        Task::Version => (false, false),
    };
    let ownership = if detached { Ownership::Detached } else { Ownership::Owned };
    let start = Start { orders: order, descriptors, ownership, shown };
    let mut process = launcher.start(start).map_err(|error| unlaunched(&error))?;
    let mut last = None;
    // A second report means that the exec failed after all.
    while let Some(report) =
        process.report::<LaunchReport>().await.map_err(|error| unlaunched(&error))?
    {
        last = Some(report);
    }
    match last {
        Some(LaunchReport { error: None, jail }) => {
            if let Some(inner) = jail.inner {
                process.follow(inner).map_err(|error| unlaunched(&error))?;
            }
            Ok((process, jail))
        }
        Some(LaunchReport { error: Some(reason), .. }) => Err(refused(reason)),
        None => {
            let end = process.wait().await.map_err(failed("wait for the launcher"))?;
            Err(refused(format!("the launcher ended without a word ({end})")))
        }
    }
}

/// Starts a machine.
pub(crate) async fn boot(
    launcher: &Launcher,
    program: &Path,
    spec: BootSpec,
    tsc_khz: Option<u64>,
) -> Result<QemuMachine, EngineError> {
    let (monitor_end, carrier) = match &spec.attachment {
        Attachment::Owned => {
            let (ours, theirs) =
                std::os::unix::net::UnixStream::pair().map_err(failed("make the carrier"))?;
            ours.set_nonblocking(true).map_err(failed("make the carrier"))?;
            let ours = UnixStream::from_std(ours).map_err(failed("make the carrier"))?;
            (OwnedFd::from(theirs), Some(ours))
        }
        Attachment::Detached(path) => {
            let listener = std::os::unix::net::UnixListener::bind(path)
                .map_err(failed("listen for the carrier"))?;
            let private = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(path, private).map_err(failed("listen for the carrier"))?;
            (OwnedFd::from(listener), None)
        }
    };
    let detached = match &spec.attachment {
        Attachment::Owned => None,
        Attachment::Detached(path) => Some(path.clone()),
    };
    let guest = spec.system.guest()?;
    let machine = arguments::Machine {
        cpus: spec.cpus,
        memory_mb: spec.memory_mb,
        root_file_system: guest.root.file_system.to_owned(),
        agent_arguments: spec.agent_arguments,
        tsc_khz,
        console: spec.console,
        listens: detached.is_some(),
    };
    let descriptors = vec![
        OwnedFd::from(guest.kernel),
        OwnedFd::from(guest.initramfs),
        OwnedFd::from(guest.root.file),
        monitor_end,
    ];
    let order = Order { program: program.to_owned(), task: Task::Machine(machine) };
    let (process, _) = launch(launcher, &order, descriptors).await?;
    let carrier = match (&detached, carrier) {
        (Some(path), _) => UnixStream::connect(path).await.map_err(failed("reach the carrier"))?,
        (None, carrier) => carrier.expect("an owned machine has a pair"),
    };
    Ok(QemuMachine { process, carrier: Some(carrier) })
}

#[derive(Debug)]
pub(crate) struct QemuMachine {
    process: Process,
    carrier: Option<UnixStream>,
}

#[async_trait]
impl Machine for QemuMachine {
    fn carrier(&mut self) -> Result<Box<dyn Carrier>, EngineError> {
        match self.carrier.take() {
            Some(carrier) => Ok(Box::new(carrier)),
            None => Err(EngineError::Ended("its carrier was taken already".into())),
        }
    }

    fn monitor_pid(&self) -> Option<u32> {
        self.process.pid()
    }

    fn stats(&self) -> Result<Stats, EngineError> {
        let used = self.process.usage();
        let used = used.map_err(|_| EngineError::Ended("its monitor is gone".into()))?;
        Ok(Stats { cpu: used.cpu, memory_peak_bytes: used.memory_peak_bytes })
    }

    async fn ended(&mut self) -> String {
        self.process.ended("the guest stopped or its kernel gave up").await
    }

    async fn kill(&mut self) -> Result<(), EngineError> {
        self.process.kill().await.map_err(|error| EngineError::Ended(error.to_string()))
    }
}
