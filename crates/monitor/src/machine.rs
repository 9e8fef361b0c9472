//! The machine that was ordered, out of the descriptors that came with the order.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use monitor_protocol::{Carrier, Disk, Machine, Metrics};
use vmm::boot::Boot;
use vmm::virtio::Device;
use vmm::virtio::balloon::{self, Balloon};
use vmm::virtio::block::{self, Block};
use vmm::virtio::rng::{self, Rng};
use vmm::virtio::vsock::{self, Vsock};
use vmm::{Config, Vm};

use crate::{MonitorError, confinement};

/// The guest's address. No guest reaches another, so all have the same.
const GUEST_CID: u32 = 3;
/// Where the agent listens.
const AGENT_PORT: u32 = 2222;

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

pub(crate) fn create(machine: Machine, descriptors: Vec<OwnedFd>) -> Result<Running, MonitorError> {
    let count = descriptors.len();
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or(MonitorError::Descriptors(count));
    let (kvm, kernel, initramfs) = (next()?, next()?, next()?);
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
    let vm = Vm::new(Config {
        kvm,
        cpus: machine.cpus,
        memory_bytes: u64::from(machine.memory_mb) << 20,
        backing: machine.backing,
        boot: Boot {
            kernel: File::from(kernel),
            initramfs: Some(File::from(initramfs)),
            command_line: machine.command_line,
        },
        devices,
        console,
        confine: Arc::new(confinement::narrow),
    })?;
    Ok(Running { vm, balloon: target, counts })
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
