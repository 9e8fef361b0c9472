//! The machine that was ordered, out of the descriptors that came with the order.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use monitor_protocol::{Carrier, Disk, Machine, Metrics};
use vmm::boot::Boot;
use vmm::virtio::Device;
use vmm::virtio::balloon::{self, Balloon};
use vmm::virtio::block::{self, Block};
use vmm::virtio::rng::{self, Rng};
use vmm::virtio::vsock::{self, Vsock};
use vmm::{Config, Restore, State, Vm};

use crate::{MonitorError, confinement};

/// The guest's address. No guest reaches another, so all have the same.
const GUEST_CID: u32 = 3;
/// Where the agent listens.
const AGENT_PORT: u32 = 2222;
/// Bytes of a state that are read.
const MOST_STATE: u64 = 16 << 20;

/// A machine, and what its owner may turn and read while it runs.
pub(crate) struct Running {
    pub(crate) vm: Vm,
    pub(crate) balloon: balloon::Target,
    counts: Counts,
}

/// What the devices count.
struct Counts {
    disks: Vec<Arc<block::Metrics>>,
    vsock: Arc<vsock::Metrics>,
    rng: Arc<rng::Metrics>,
    balloon: Arc<balloon::Metrics>,
}

impl Running {
    pub(crate) fn metrics(&self) -> Metrics {
        let Counts { disks, vsock, rng, balloon } = &self.counts;
        Metrics {
            machine: self.vm.metrics(),
            disks: disks.iter().map(|disk| disk.snapshot()).collect(),
            vsock: vsock.snapshot(),
            rng: rng.snapshot(),
            balloon: balloon.snapshot(),
        }
    }
}

/// Whether a machine begins or goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    Kernel,
    Saved,
}

pub(crate) fn create(
    from: From,
    machine: Machine,
    descriptors: Vec<OwnedFd>,
) -> Result<Running, MonitorError> {
    let count = descriptors.len();
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or(MonitorError::Descriptors(count));
    let (kvm, [first, second]) = (next()?, [next()?, next()?].map(File::from));
    let vsock = vsock(machine.carrier, next()?)?;
    let mut disks = Vec::with_capacity(machine.disks.len());
    for Disk { name, files, writable } in machine.disks {
        let files: Result<_, _> = (0..files).map(|_| next().map(File::from)).collect();
        let config = block::Config { files: files?, read_only: !writable, id: name, rate: None };
        disks.push(Block::new(config).map_err(device("disk"))?);
    }
    let rng = Rng::new(rng::DEFAULT_RATE).map_err(device("source of randomness"))?;
    let balloon = Balloon::new().map_err(device("balloon"))?;
    let counts = Counts {
        disks: disks.iter().map(Block::metrics).collect(),
        vsock: vsock.metrics(),
        rng: rng.metrics(),
        balloon: balloon.metrics(),
    };
    let target = balloon.target();
    let mut devices: Vec<(&'static str, Box<dyn Device>)> = Vec::new();
    for disk in disks {
        devices.push(("disk", Box::new(disk)));
    }
    devices.push(("vsock", Box::new(vsock)));
    devices.push(("rng", Box::new(rng)));
    devices.push(("balloon", Box::new(balloon)));
    let console = match machine.console {
        true => Some(std::io::stderr().as_fd().try_clone_to_owned().map_err(device("console"))?),
        false => None,
    };
    let confine = Arc::new(confinement::narrow);
    let memory_bytes = u64::from(machine.memory_mb) << 20;
    let vm = match from {
        From::Kernel => Vm::new(Config {
            kvm,
            cpus: machine.cpus,
            memory_bytes,
            backing: machine.backing,
            boot: Boot {
                kernel: first,
                initramfs: Some(second),
                command_line: machine.command_line,
            },
            devices,
            console,
            confine,
        })?,
        From::Saved => {
            let state = read_state(&second)?;
            let (saved, wanted) =
                ((state.cpus(), state.memory_bytes()), (usize::from(machine.cpus), memory_bytes));
            if saved != wanted {
                return Err(MonitorError::OtherSize { saved, wanted });
            }
            Vm::restore(Restore { kvm, state: &state, memory: first, devices, console, confine })?
        }
    };
    Ok(Running { vm, balloon: target, counts })
}

fn read_state(mut file: &File) -> Result<State, MonitorError> {
    let mut bytes = Vec::new();
    // What is longer is no state, and is found out to be none.
    file.rewind()
        .and_then(|()| file.take(MOST_STATE).read_to_end(&mut bytes))
        .map_err(MonitorError::ReadState)?;
    Ok(State::decode(&bytes)?)
}

/// Writes what others need to go on from here.
pub(crate) fn save(vm: &Vm, descriptors: Vec<OwnedFd>) -> Result<(), MonitorError> {
    let [memory, state] = <[_; 2]>::try_from(descriptors)
        .map_err(|descriptors| MonitorError::Descriptors(descriptors.len()))?
        .map(File::from);
    let saved = vm.save()?.encode();
    vmm::memory::save(vm.memory(), &memory)
        .and_then(|_| state.set_len(0))
        .and_then(|()| state.write_all_at(&saved, 0))
        .map_err(MonitorError::Save)
}

fn vsock(kind: Carrier, carrier: OwnedFd) -> Result<Vsock, MonitorError> {
    let mut config = vsock::Config::new(GUEST_CID);
    // One for the host that talks to the agent, and some for those that come after it.
    config.max_connections = 16;
    let end = vec![(AGENT_PORT, carrier)];
    match kind {
        Carrier::Connected => config.connect = end,
        Carrier::Listening => config.listen = end,
    }
    Vsock::new(config).map_err(device("vsock"))
}

fn device<E: ToString>(what: &'static str) -> impl Fn(E) -> MonitorError {
    move |reason| MonitorError::Device { what, reason: reason.to_string() }
}
