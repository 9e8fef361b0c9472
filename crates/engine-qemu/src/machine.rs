//! A running QEMU.

use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::Path;

use engine::attach::Attached;
use engine::{BootSpec, EngineError};
use launch::machine::ProcessMachine;
use launch::{LaunchError, Launcher, Ownership, Process, Start};
use wire::disk::SECTOR;

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
) -> Result<ProcessMachine, EngineError> {
    let Attached { monitor_end, host_end } =
        Attached::new(&spec.attachment).map_err(failed("make the carrier"))?;
    let guest = spec.system.guest()?;
    let (disks, mut words) = guest.disks.take();
    words.extend(spec.agent_arguments);
    let mut descriptors = vec![OwnedFd::from(guest.kernel), guest.initramfs.into(), monitor_end];
    let mut shapes = Vec::with_capacity(disks.len());
    for engine::Disk { name, files, writable } in disks {
        let sizes = files.iter().map(|mut file| file.seek(SeekFrom::End(0)));
        let sizes: io::Result<Vec<u64>> = sizes.collect();
        let sizes = sizes.map_err(failed("measure a disk"))?;
        let sectors = sizes.into_iter().map(|bytes| bytes / SECTOR).collect();
        shapes.push(arguments::Disk { name, sectors, writable });
        descriptors.extend(files.into_iter().map(OwnedFd::from));
    }
    let machine = arguments::Machine {
        cpus: spec.cpus,
        memory_mb: spec.memory_mb,
        disks: shapes,
        words,
        tsc_khz,
        console: spec.console,
        listens: host_end.listens(),
    };
    let order = Order { program: program.to_owned(), task: Task::Machine(machine) };
    let (process, _) = launch(launcher, &order, descriptors).await?;
    ProcessMachine::take_up(process, host_end, None, "the guest stopped or its kernel gave up")
        .await
}
