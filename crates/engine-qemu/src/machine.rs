//! A running QEMU.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use engine::attach::Attached;
use engine::{BootSpec, Carrier, EngineError, Saved, Snapshot, Stats, System};
use launch::machine::ProcessMachine;
use launch::{LaunchError, Launcher, Ownership, Process, Start};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe::{Receiver, Sender};
use wire::disk::SECTOR;

use crate::monitor::{LaunchReport, Order, Task};
use crate::qmp::{Command, Qmp, QmpError, Ticket};
use crate::{arguments, memory};

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

/// What a state may have in bytes: that of a machine is some 60 KB.
const STATE_MOST: u64 = 16 << 20;
/// How long one may take.
const SAVE_PATIENCE: Duration = Duration::from_secs(60);
/// What the emulator knows the state's pipe by.
const STATE: &str = "state";
const STATE_URI: &str = "fd:state";

/// Starts a machine.
pub(crate) async fn boot(
    launcher: &Launcher,
    program: &Path,
    spec: BootSpec,
    frequency: impl FnOnce() -> Option<u64>,
) -> Result<QemuMachine, EngineError> {
    let Attached { monitor_end, host_end } =
        Attached::new(&spec.attachment).map_err(failed("make the carrier"))?;
    let memory = memory::create(u64::from(spec.memory_mb) << 20);
    let memory = memory.map_err(failed("make the guest's memory"))?;
    let (mut qmp, control) = Qmp::pair().map_err(failed("make the control socket"))?;
    let handle = memory.try_clone().map_err(failed("make the guest's memory"))?;
    let mut descriptors = vec![OwnedFd::from(handle), control, monitor_end];
    let (disks, snapshot) = match spec.system {
        System::Saved(Saved { snapshot, disks }) => (disks, Some(snapshot)),
        system => {
            let guest = system.guest()?;
            descriptors.extend([guest.kernel.into(), guest.initramfs.into()]);
            (guest.disks, None)
        }
    };
    let (disks, mut words) = disks.take();
    words.extend(spec.agent_arguments);
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
        // A kernel that goes on knows it already.
        tsc_khz: if snapshot.is_some() { None } else { frequency() },
        console: spec.console,
        listens: host_end.listens(),
        goes_on: snapshot.is_some(),
    };
    let order = Order { program: program.to_owned(), task: Task::Machine(machine) };
    let launching = launch(launcher, &order, descriptors);
    let process = match snapshot {
        None => {
            // Its answer is there when the first is wanted.
            let _ = qmp.say(Command::Begin {}, None).await.map_err(|e| uncontrolled(&e))?;
            launching.await?.0
        }
        Some(snapshot) => {
            // It is told all of it while it starts, and its memory is filled meanwhile.
            let ((mut process, _), told) =
                tokio::try_join!(launching, go_on(&mut qmp, snapshot, &memory))?;
            if let Err(error) = qmp.go_on(told).await {
                // It ends by itself where the state is not one that it can read.
                return Err(match error {
                    QmpError::Closed | QmpError::Socket(_) => {
                        refused(process.ended("it gave the state up").await)
                    }
                    error => uncontrolled(&error),
                });
            }
            process
        }
    };
    let stopped = "the guest stopped or its kernel gave up";
    let machine = ProcessMachine::take_up(process, host_end, None, stopped).await?;
    Ok(QemuMachine { machine, qmp, memory })
}

fn uncontrolled(error: &QmpError) -> EngineError {
    EngineError::Boot { step: "control the emulator", reason: error.to_string() }
}

/// Tells an emulator that is starting to go on from a snapshot, once the memory is that of the
/// snapshot. The answer is to come when it has begun to read the state.
async fn go_on(qmp: &mut Qmp, snapshot: Snapshot, memory: &File) -> Result<Ticket, EngineError> {
    let unread = failed("read the snapshot");
    let Snapshot { memory: kept, state } = snapshot;
    let memory = memory.try_clone().map_err(&unread)?;
    let loaded = tokio::task::spawn_blocking(move || -> io::Result<Vec<u8>> {
        memory::load(&kept, &memory)?;
        let length = state.metadata()?.len();
        if length > STATE_MOST {
            return Err(io::Error::other(format!("a state of {length} bytes is none")));
        }
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        state.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    });
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| unread(e.into()))?;
    for (command, descriptor) in [
        (Command::Begin {}, None),
        (Command::WITHOUT_MEMORY, None),
        (Command::Getfd { fdname: STATE }, Some(reader.as_fd())),
    ] {
        let _ = qmp.say(command, descriptor).await.map_err(|error| uncontrolled(&error))?;
    }
    drop(reader);
    let state = loaded.await.map_err(|error| unread(io::Error::other(error)))?.map_err(&unread)?;
    let ticket = qmp.say(Command::MigrateIncoming { uri: STATE_URI }, None).await;
    let ticket = ticket.map_err(|error| uncontrolled(&error))?;
    let mut writer = Sender::from_owned_fd(writer).map_err(&unread)?;
    tokio::spawn(async move {
        // One that ends before it has read all of it says why by itself.
        let _ = writer.write_all(&state).await;
    });
    Ok(ticket)
}

/// A running QEMU that can be told things.
#[derive(Debug)]
pub(crate) struct QemuMachine {
    machine: ProcessMachine,
    qmp: Qmp,
    memory: File,
}

fn unsaved(reason: impl std::fmt::Display) -> EngineError {
    EngineError::Save(reason.to_string())
}

impl QemuMachine {
    async fn tell(&mut self, command: Command) -> Result<(), EngineError> {
        self.qmp.tell(command, None).await.map_err(|error| match error {
            QmpError::Refused { .. } => EngineError::Unsupported(error.to_string()),
            error => EngineError::Ended(error.to_string()),
        })
    }

    /// All but the memory.
    async fn state(&mut self) -> Result<Vec<u8>, EngineError> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(unsaved)?;
        let commands = [
            (Command::WITHOUT_MEMORY, None),
            (Command::MigrateSetParameters { max_bandwidth: 1 << 40 }, None),
            (Command::Getfd { fdname: STATE }, Some(writer.as_fd())),
            (Command::Migrate { uri: STATE_URI }, None),
        ];
        for (command, descriptor) in commands {
            self.qmp.tell(command, descriptor).await.map_err(unsaved)?;
        }
        drop(writer);
        let reader = Receiver::from_owned_fd(reader).map_err(unsaved)?;
        let mut state = Vec::new();
        let mut bounded = reader.take(STATE_MOST + 1);
        let reading = tokio::time::timeout(SAVE_PATIENCE, bounded.read_to_end(&mut state));
        match reading.await {
            Ok(read) => read.map_err(unsaved)?,
            Err(_) => return Err(unsaved(format!("it takes more than {SAVE_PATIENCE:?}"))),
        };
        if state.len() as u64 > STATE_MOST {
            return Err(unsaved("its state is larger than any that is known"));
        }
        let deadline = tokio::time::Instant::now() + SAVE_PATIENCE;
        loop {
            let migration = self.qmp.migration().await.map_err(unsaved)?;
            match migration.status.as_str() {
                "completed" => return Ok(state),
                "failed" | "cancelled" => {
                    let reason = migration.reason.unwrap_or_else(|| "it does not say why".into());
                    return Err(unsaved(reason));
                }
                _ if tokio::time::Instant::now() > deadline => {
                    return Err(unsaved(format!("it takes more than {SAVE_PATIENCE:?}")));
                }
                _ => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }
}

#[async_trait]
impl engine::Machine for QemuMachine {
    fn carrier(&mut self) -> Result<Box<dyn Carrier>, EngineError> {
        self.machine.carrier()
    }

    fn monitor_pid(&self) -> Option<u32> {
        self.machine.monitor_pid()
    }

    fn stats(&self) -> Result<Stats, EngineError> {
        self.machine.stats()
    }

    async fn pause(&mut self) -> Result<(), EngineError> {
        self.tell(Command::Stop {}).await
    }

    async fn resume(&mut self) -> Result<(), EngineError> {
        self.tell(Command::Cont {}).await
    }

    async fn save(&mut self, into: &Snapshot) -> Result<(), EngineError> {
        let state = self.state().await?;
        let memory = self.memory.try_clone().map_err(unsaved)?;
        let Snapshot { memory: kept, state: file } = into.try_clone().map_err(unsaved)?;
        let saved = tokio::task::spawn_blocking(move || {
            memory::save(&memory, &kept)?;
            file.set_len(0)?;
            file.write_all_at(&state, 0)
        });
        saved.await.map_err(unsaved)?.map_err(unsaved)
    }

    async fn ended(&mut self) -> String {
        self.machine.ended().await
    }

    async fn kill(&mut self) -> Result<(), EngineError> {
        self.machine.kill().await
    }
}
