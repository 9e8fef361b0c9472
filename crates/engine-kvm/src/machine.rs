//! A running monitor.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use async_trait::async_trait;
use engine::attach::Attached;
use engine::{BootSpec, Carrier, EngineError, Machine, Saved, Snapshot, Stats, System};
use jail::cgroup::{Bounds, Group, Parent};
use launch::machine::ProcessMachine;
use launch::{LaunchError, Launcher, Ownership, Process, Start};
use monitor_protocol::{self as protocol, Answer, Report, Request, Task};
use vmm::End;
use vmm::memory::Backing;

use crate::verdict::Verdict;

pub(crate) fn failed(step: &'static str) -> impl Fn(io::Error) -> EngineError {
    move |error| EngineError::Boot { step, reason: error.to_string() }
}

fn unlaunched(error: &LaunchError) -> EngineError {
    refused(error.to_string())
}

fn refused(reason: String) -> EngineError {
    EngineError::Boot { step: "launch the monitor", reason }
}

/// Starts a monitor and waits for its first report.
async fn launch(
    launcher: &Launcher,
    task: &Task,
    descriptors: Vec<OwnedFd>,
    ownership: Ownership,
) -> Result<(Process, Report), EngineError> {
    let shown = task.machine().is_some_and(|machine| machine.console);
    let start = Start { orders: task, descriptors, ownership, shown };
    let mut process = launcher.start(start).map_err(|error| unlaunched(&error))?;
    match process.report().await.map_err(|error| unlaunched(&error))? {
        Some(Report::Failed { reason }) => Err(refused(reason)),
        Some(report) => Ok((process, report)),
        None => {
            let end = process.wait().await.map_err(failed("wait for the monitor"))?;
            Err(refused(format!("it ended without a word ({end})")))
        }
    }
}

/// Has a monitor try a guest.
pub(crate) async fn probe(launcher: &Launcher, kvm: OwnedFd) -> Result<Verdict, EngineError> {
    let (mut process, report) = launch(launcher, &Task::Probe, vec![kvm], Ownership::Owned).await?;
    let verdict = match report {
        Report::Probed { jail, outcome } => Verdict { outcome, jail },
        other => return Err(refused(format!("it said {other:?} instead of a probe's result"))),
    };
    process.wait().await.map_err(failed("wait for the monitor"))?;
    Ok(verdict)
}

/// Starts a machine.
pub(crate) async fn boot(
    launcher: &Launcher,
    kvm: OwnedFd,
    cpus: u8,
    spec: BootSpec,
) -> Result<KvmMachine, EngineError> {
    let group = group(&spec, cpus)?;
    let (start, disks, is_saved) = match spec.system {
        System::Saved(Saved { snapshot, disks }) => {
            ([snapshot.memory, snapshot.state], disks, true)
        }
        system => {
            let guest = system.guest()?;
            ([guest.kernel, guest.initramfs], guest.disks, false)
        }
    };
    let Attached { monitor_end, host_end } =
        Attached::new(&spec.attachment).map_err(failed("make the carrier"))?;
    let (carrier, ownership) = match host_end.listens() {
        true => (protocol::Carrier::Listening, Ownership::Detached),
        false => (protocol::Carrier::Connected, Ownership::Owned),
    };
    let (disks, mut words) = disks.take();
    words.extend(spec.agent_arguments.iter().cloned());
    let machine = protocol::Machine {
        cpus,
        memory_mb: spec.memory_mb,
        backing: Backing::of_host(),
        command_line: command_line(spec.console, &words),
        carrier,
        console: spec.console,
        disks: disks.iter().map(shape).collect(),
        grouped: group.is_some(),
    };
    let mut descriptors = vec![kvm];
    descriptors.extend(start.map(OwnedFd::from));
    descriptors.push(monitor_end);
    descriptors.extend(disks.into_iter().flat_map(|disk| disk.files).map(OwnedFd::from));
    if let Some(group) = &group {
        descriptors.push(group.door().map_err(|error| refused(error.to_string()))?);
    }
    let task = if is_saved { Task::Saved(machine) } else { Task::Machine(machine) };
    let (mut process, report) = launch(launcher, &task, descriptors, ownership).await?;
    match report {
        Report::Running { jail } => {
            if let Some(pid) = jail.inner {
                process.follow(pid).map_err(|error| unlaunched(&error))?;
            }
        }
        other => return Err(refused(format!("it said {other:?} instead of running"))),
    }
    let stopped = "its monitor was told to stop";
    Ok(KvmMachine(ProcessMachine::take_up(process, host_end, group, stopped).await?))
}

fn shape(disk: &engine::Disk) -> protocol::Disk {
    let engine::Disk { name, files, writable } = disk;
    protocol::Disk { name: name.clone(), files: files.len(), writable: *writable }
}

/// What a monitor uses beside its guest's memory, with room for what its kernel objects take.
const OVERHEAD: u64 = 64 << 20;
/// Its threads besides the virtual CPUs', and its keeper.
const OTHER_TASKS: u64 = 16;

/// The control group of a machine, where this host has any; see
/// [`Kvm::preflight`](crate::Kvm), which tells where not.
fn group(spec: &BootSpec, cpus: u8) -> Result<Option<Group>, EngineError> {
    let Ok(parent) = Parent::find() else { return Ok(None) };
    let bounds = Bounds {
        memory: (u64::from(spec.memory_mb) << 20) + OVERHEAD,
        tasks: u64::from(cpus) + OTHER_TASKS,
        processor_thousandths: u64::from(cpus) * 1000,
    };
    let group = parent.group(&spec.sandbox, &bounds);
    group.map(Some).map_err(|error| refused(error.to_string()))
}

/// The guest kernel's parameters but those that name devices.
fn command_line(console: bool, agent_words: &[String]) -> String {
    let mut words: Vec<&str> = match console {
        true => vec!["console=ttyS0"],
        false => vec!["quiet", "8250.nr_uarts=0"],
    };
    words.extend([
        // By the keyboard controller, which is the machine's end; a panic resets at once.
        "reboot=k",
        "panic=-1",
        // The processor's generator seeds the kernel's before the agent asks.
        "random.trust_cpu=on",
        // The driver would come with a device; loopback is all there is.
        "dummy.numdummies=0",
    ]);
    words.extend(agent_words.iter().map(String::as_str));
    words.join(" ")
}

/// A machine that can be asked things.
#[derive(Debug)]
pub(crate) struct KvmMachine(ProcessMachine);

impl KvmMachine {
    async fn ask(
        &mut self,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Answer, EngineError> {
        let answer = self.0.process().control().ask(&request, descriptors).await;
        answer.map_err(|error| EngineError::Ended(format!("its monitor does not answer: {error}")))
    }

    async fn tell(
        &mut self,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), EngineError> {
        match self.ask(request, descriptors).await? {
            Answer::Done => Ok(()),
            Answer::Failed { reason } => Err(EngineError::Save(reason)),
            other => Err(EngineError::Ended(format!("its monitor answered {other:?}"))),
        }
    }
}

#[async_trait]
impl Machine for KvmMachine {
    fn carrier(&mut self) -> Result<Box<dyn Carrier>, EngineError> {
        self.0.carrier()
    }

    fn monitor_pid(&self) -> Option<u32> {
        self.0.monitor_pid()
    }

    fn stats(&self) -> Result<Stats, EngineError> {
        self.0.stats()
    }

    async fn pause(&mut self) -> Result<(), EngineError> {
        self.tell(Request::Pause, &[]).await
    }

    async fn resume(&mut self) -> Result<(), EngineError> {
        self.tell(Request::Resume, &[]).await
    }

    async fn save(&mut self, into: &Snapshot) -> Result<(), EngineError> {
        self.tell(Request::Save, &[into.memory.as_fd(), into.state.as_fd()]).await
    }

    async fn ended(&mut self) -> String {
        match self.0.process().report().await {
            Ok(Some(Report::Ended { end: End::Reset })) => {
                self.0.process().ended("the guest stopped or its kernel gave up").await
            }
            Ok(Some(Report::Ended { end: End::Failed { reason } })) => {
                let _ = self.0.process().wait().await;
                reason
            }
            _ => self.0.ended().await,
        }
    }

    async fn kill(&mut self) -> Result<(), EngineError> {
        self.0.kill().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_s_words_are_among_the_kernel_s() {
        let line = command_line(false, &["sandforge.id=sb".into()]);
        assert!(line.starts_with("quiet ") && line.ends_with(" sandforge.id=sb"));
    }
}
