//! A machine: made in one go, run, paused, taken away.
//!
//! # Order
//! All memory slots are registered before the interrupt controller, the virtual CPUs and the
//! eventfds, and none changes later. A slot that is set after a device of KVM's own has been
//! registered waits for that registration's grace period: 8 ms instead of 0.6 on Linux 6.18.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};

use crate::GuestMemory;
use crate::boot::{self, Boot, BootError};
use crate::bus::{Bus, VIRTIO, VIRTIO_IRQ};
use crate::cpu;
use crate::event::Event;
use crate::legacy::{self, Console, ConsoleState};
use crate::memory::{self, Backing, MemoryError};
use crate::state::cpu::Cpu;
use crate::state::machine::Machine;
use crate::state::{self, State};
use crate::vcpu::{End, Shared, Vcpu};
use crate::virtio::{Device, DeviceStateError, Transport, WINDOW, Worker};

/// Most virtual CPUs: what the guest's kernel is built for.
pub const MAX_CPUS: u8 = 32;
/// Most devices: lines of the interrupt controller that are free for them.
pub const MAX_DEVICES: usize = 11;
/// The version of KVM's interface that has been the only one since 2007.
const API_VERSION: i32 = 12;
/// Where KVM may put its own pages on processors that need some: below the local APIC's, in the
/// hole.
const TSS: usize = 0xfffb_d000;

/// A machine as it is asked for.
pub struct Config {
    /// `/dev/kvm`, opened.
    pub kvm: OwnedFd,
    /// Virtual CPUs, 1 to [`MAX_CPUS`].
    pub cpus: u8,
    /// Memory in bytes, whole MiB.
    pub memory_bytes: u64,
    /// What is behind that memory.
    pub backing: Backing,
    /// What it runs. The devices are added to its command line.
    pub boot: Boot,
    /// Its devices, with a name for each one's thread; [`MAX_DEVICES`] at most.
    pub devices: Vec<(&'static str, Box<dyn Device>)>,
    /// Where the serial port's bytes go. There is none where this is absent.
    pub console: Option<OwnedFd>,
    /// Confines a thread that is about to serve the guest; runs on it.
    pub confine: Arc<dyn Fn(Role) + Send + Sync>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("cpus", &self.cpus)
            .field("memory_bytes", &self.memory_bytes)
            .field("boot", &self.boot)
            .field("devices", &self.devices)
            .finish_non_exhaustive()
    }
}

/// A machine that goes on from where another stood still.
pub struct Restore<'s> {
    /// `/dev/kvm`, opened.
    pub kvm: OwnedFd,
    /// What the other was.
    pub state: &'s State,
    /// What was in its memory. What the guest writes stays out of it; nobody else writes to it either.
    pub memory: File,
    /// Devices like the other's, fresh, in the same order.
    pub devices: Vec<(&'static str, Box<dyn Device>)>,
    /// Where the serial port's bytes go, if it had one.
    pub console: Option<OwnedFd>,
    /// Confines a thread that is about to serve the guest; runs on it.
    pub confine: Arc<dyn Fn(Role) + Send + Sync>,
}

impl fmt::Debug for Restore<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Restore")
            .field("memory", &self.memory)
            .field("devices", &self.devices)
            .finish_non_exhaustive()
    }
}

/// What a thread of a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs a virtual CPU.
    Vcpu,
    /// Serves the device of this name, for which it makes these system calls.
    Device(&'static str, &'static [libc::c_long]),
}

/// A machine cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The request is beyond what a machine can have.
    #[error("a machine has 1 to {MAX_CPUS} CPUs and up to {MAX_DEVICES} devices: {0}")]
    Config(String),
    /// KVM is too old, or is none.
    #[error("KVM's interface is version {0}, not {API_VERSION}: is this /dev/kvm?")]
    Version(i32),
    /// KVM lacks something.
    #[error("KVM has no {0:?}; a newer kernel on the host has it")]
    Capability(Cap),
    /// A call of KVM failed.
    #[error("{call} failed: {source}{hint}")]
    Ioctl {
        /// Which.
        call: &'static str,
        /// Why.
        source: io::Error,
        /// What to try, where that is known.
        hint: &'static str,
    },
    /// KVM does not take a value of a register.
    #[error("KVM refuses the value {value:#x} of the register (MSR) {index:#x}")]
    Msr {
        /// The register.
        index: u32,
        /// The value.
        value: u64,
    },
    /// A table cannot be written.
    #[error("cannot write the boot CPU's tables: {0}")]
    Memory(String),
    /// The state that it is to go on from is another host's.
    #[error("the {field} of the machine that was saved is {saved}, and here it is {here}")]
    Differs {
        /// What.
        field: &'static str,
        /// As it was.
        saved: String,
        /// As it is.
        here: String,
    },
    /// The state that it is to go on from makes no sense.
    #[error("the state of the machine that was saved has {0}")]
    State(&'static str),
    /// A device cannot go on from what was saved.
    #[error("the {name} cannot go on: {source}")]
    Device {
        /// Which.
        name: &'static str,
        /// Why.
        source: DeviceStateError,
    },
    /// There is no memory for it.
    #[error(transparent)]
    GuestMemory(#[from] MemoryError),
    /// The kernel cannot be put into memory.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// There are no descriptors or threads to be had.
    #[error("cannot make a {what}: {source}; a limit of the process is too low")]
    Resource {
        /// For what.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl VmError {
    pub(crate) fn ioctl(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| {
            let hint = match error.errno() {
                libc::ENOMEM => "; the host has no memory for it",
                libc::EBUSY => "; another hypervisor may hold the processor's virtualization",
                libc::EMFILE | libc::ENFILE => "; the limit of open files is too low",
                _ => "",
            };
            Self::Ioctl { call, source: io::Error::from_raw_os_error(error.errno()), hint }
        }
    }
}

/// Counts of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Metrics {
    /// Port accesses that left the guest.
    pub port_exits: u64,
    /// Accesses to device registers that left the guest.
    pub memory_exits: u64,
    /// Times that a virtual CPU was interrupted from outside.
    pub interrupted: u64,
    /// Accesses to ports and addresses that no device has.
    pub unclaimed: u64,
    /// Why devices gave up on their drivers, last failure of each.
    pub failures: Vec<String>,
}

/// A machine. Its virtual CPUs are parked when it is made. Dropping it ends it, which may take
/// tens of milliseconds on some hosts; see [`Vm::retire`].
#[derive(Debug)]
pub struct Vm {
    // Dropped in this order: nobody runs, then nobody serves, then memory and KVM's objects.
    vcpus: Vec<Vcpu>,
    workers: Vec<Worker>,
    shared: Arc<Shared>,
    memory: GuestMemory,
    fd: VmFd,
    kvm: Kvm,
}

impl Vm {
    /// Makes a machine up to its first instruction.
    ///
    /// # Errors
    /// `VmError`; nothing is left behind then.
    pub fn new(config: Config) -> Result<Self, VmError> {
        check_counts(config.cpus, config.devices.len())?;
        let Config { kvm, cpus, memory_bytes, backing, mut boot, devices, console, confine } =
            config;
        let kvm = take_kvm(kvm)?;
        let memory = memory::create(memory_bytes, backing)?;
        name_devices(&mut boot.command_line, devices.len());

        // The kernel is put into memory while KVM makes its objects: neither waits for the other,
        // and each takes about half of the time.
        let (loaded, made) = std::thread::scope(|scope| {
            let load = || boot::load(&memory, &mut boot, cpus);
            let loader =
                std::thread::Builder::new().name("loader".into()).spawn_scoped(scope, load);
            let made = create_objects(&kvm, cpus, devices, &memory, &confine);
            (loader.map(|loader| loader.join().expect("loading does not panic")), made)
        });
        let entry = loaded.map_err(resource("thread"))??;
        let objects = made?;
        for (id, vcpu) in (0..).zip(&objects.vcpus) {
            cpu::set_up_registers(vcpu, id, entry, &memory)?;
        }
        let console = console.map(|to| create_console(&objects.fd, to, None)).transpose()?;
        Self::assemble(kvm, memory, objects, console, &confine)
    }

    /// Makes a machine that goes on from where another stood still. Connections through its vsock
    /// device are gone, and its agent is told so; its clock does not count the time between.
    ///
    /// # Errors
    /// `VmError`; nothing is left behind then. [`VmError::Differs`] where the other ran on another
    /// kind of host.
    pub fn restore(restore: Restore<'_>) -> Result<Self, VmError> {
        let Restore { kvm, state, memory, devices, console, confine } = restore;
        let cpus = u8::try_from(state.cpus.len()).unwrap_or(u8::MAX);
        check_counts(cpus, devices.len())?;
        if devices.len() != state.devices.len() {
            return Err(VmError::State("another number of devices"));
        }
        let kvm = take_kvm(kvm)?;
        let memory = memory::of_template(memory, state.memory_bytes)?;
        let names: Vec<_> = devices.iter().map(|(name, _)| *name).collect();
        let mut objects = create_objects(&kvm, cpus, devices, &memory, &confine)?;
        for (id, saved) in (0..cpus).zip(&state.cpus) {
            saved.check(&cpuid(&kvm, id, cpus)?)?;
        }
        state.machine.restore(&objects.fd)?;
        for (vcpu, saved) in objects.vcpus.iter().zip(&state.cpus) {
            saved.restore(vcpu)?;
        }
        for worker in &objects.workers {
            worker.pause();
        }
        let transports = objects.transports.iter_mut().zip(&state.devices).zip(names);
        for ((transport, saved), name) in transports {
            transport.restore(saved).map_err(|source| VmError::Device { name, source })?;
        }
        let console = match (console, &state.console) {
            (Some(to), Some(state)) => Some(create_console(&objects.fd, to, Some(state))?),
            (None, None) => None,
            _ => return Err(VmError::State("a serial port, or none, where it is the other way")),
        };
        Self::assemble(kvm, memory, objects, console, &confine)
    }

    /// Puts the virtual CPUs on their threads, where they wait to be resumed.
    fn assemble(
        kvm: Kvm,
        memory: GuestMemory,
        objects: Objects,
        console: Option<Console>,
        confine: &Arc<dyn Fn(Role) + Send + Sync>,
    ) -> Result<Self, VmError> {
        let Objects { fd, vcpus: vcpu_fds, transports, workers } = objects;
        let shared = Shared::new(Bus::new(transports, console)).map_err(resource("event"))?;
        let shared = Arc::new(shared);
        let mut vcpus = Vec::with_capacity(vcpu_fds.len());
        for (id, vcpu) in (0..).zip(vcpu_fds) {
            let confine = confine.clone();
            let enter = move || confine(Role::Vcpu);
            let vcpu = Vcpu::spawn(id, vcpu, shared.clone(), enter).map_err(resource("thread"))?;
            vcpus.push(vcpu);
        }
        Ok(Self { vcpus, workers, shared, memory, fd, kvm })
    }

    /// What another machine needs to go on from here, but the [memory](Vm::memory). The machine
    /// stands still: it was never resumed, or is [paused](Vm::pause).
    ///
    /// # Errors
    /// Where KVM does not tell, and where the machine has ended.
    pub fn save(&self) -> Result<State, VmError> {
        if self.end().is_some() {
            return Err(VmError::State("come to its end"));
        }
        let names = state::cpu::msr_names(&self.kvm)?;
        let count = u8::try_from(self.vcpus.len()).expect("it was made with as many");
        let save =
            |(id, vcpu): (u8, &Vcpu)| Cpu::save(&vcpu.fd(), &cpuid(&self.kvm, id, count)?, &names);
        let cpus = (0..count).zip(&self.vcpus).map(save).collect::<Result<_, _>>()?;
        Ok(State {
            memory_bytes: self.memory.iter().map(|region| region.len()).sum(),
            cpus,
            machine: Machine::save(&self.fd)?,
            devices: self.shared.bus.virtio().map(|transport| transport.save()).collect(),
            console: self.shared.bus.console(),
        })
    }

    /// Lets devices and virtual CPUs go, at first or after [`Vm::pause`].
    pub fn resume(&self) {
        for worker in &self.workers {
            worker.resume();
        }
        for vcpu in &self.vcpus {
            vcpu.resume();
        }
    }

    /// Returns when no virtual CPU runs guest code and no device touches guest memory any more.
    pub fn pause(&self) {
        for vcpu in &self.vcpus {
            vcpu.begin_pause();
        }
        for vcpu in &self.vcpus {
            vcpu.finish_pause();
        }
        for worker in &self.workers {
            worker.pause();
        }
    }

    /// Raised when the machine has ended by itself.
    pub fn ended(&self) -> &Event {
        self.shared.ended()
    }

    /// How it has ended, if it has.
    pub fn end(&self) -> Option<End> {
        self.shared.end()
    }

    /// What it has done so far.
    pub fn metrics(&self) -> Metrics {
        let Shared { bus, exits, .. } = &*self.shared;
        Metrics {
            port_exits: exits.port.get(),
            memory_exits: exits.memory.get(),
            interrupted: exits.interrupted.get(),
            unclaimed: bus.unclaimed.get(),
            failures: bus.virtio().filter_map(|transport| transport.failure()).collect(),
        }
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Ends the machine, and frees what is slow to free on another thread: KVM waits for grace
    /// periods of the host's kernel when its objects go. The thread may be joined, or left alone.
    pub fn retire(mut self) -> Option<JoinHandle<()>> {
        self.vcpus.clear();
        self.workers.clear();
        // Where no thread is to be had it is freed here, when the closure is dropped.
        std::thread::Builder::new().name("reaper".into()).spawn(move || drop(self)).ok()
    }
}

fn check_counts(cpus: u8, devices: usize) -> Result<(), VmError> {
    if cpus == 0 || cpus > MAX_CPUS {
        return Err(VmError::Config(format!("{cpus} CPUs were asked for")));
    }
    if devices > MAX_DEVICES {
        return Err(VmError::Config(format!("{devices} devices were asked for")));
    }
    Ok(())
}

fn take_kvm(kvm: OwnedFd) -> Result<Kvm, VmError> {
    // SAFETY: the descriptor is open and given up here, so that the object owns it alone.
    let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
    check_kvm(&kvm)?;
    Ok(kvm)
}

fn check_kvm(kvm: &Kvm) -> Result<(), VmError> {
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(VmError::Version(version));
    }
    let needed = [Cap::Irqchip, Cap::UserMemory, Cap::Irqfd, Cap::Ioeventfd, Cap::ImmediateExit];
    match needed.into_iter().find(|cap| !kvm.check_extension(*cap)) {
        None => Ok(()),
        Some(missing) => Err(VmError::Capability(missing)),
    }
}

/// Documentation/admin-guide/kernel-parameters.txt, `virtio_mmio.device`.
fn name_devices(command_line: &mut String, count: usize) {
    for (address, irq) in places().take(count) {
        let kib = WINDOW >> 10;
        command_line.push_str(&format!(" virtio_mmio.device={kib}K@{address:#x}:{irq}"));
    }
}

/// Address and interrupt of each device.
fn places() -> impl Iterator<Item = (u64, u32)> {
    (0..).map(|index: u32| (VIRTIO + u64::from(index) * WINDOW, VIRTIO_IRQ + index))
}

fn register_memory(fd: &VmFd, memory: &GuestMemory) -> Result<(), VmError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr().addr() as u64,
        };
        // SAFETY: the region is a mapping that lives as long as the machine, whose guest may do
        // to it what it likes.
        unsafe { fd.set_user_memory_region(region) }
            .map_err(VmError::ioctl("KVM_SET_USER_MEMORY_REGION"))?;
    }
    fd.set_tss_address(TSS).map_err(VmError::ioctl("KVM_SET_TSS_ADDR"))
}

fn create_interrupt_controller(fd: &VmFd) -> Result<(), VmError> {
    fd.create_irq_chip().map_err(VmError::ioctl("KVM_CREATE_IRQCHIP"))?;
    // Kernels that know KVM's clock do not need the timer, but look for it.
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    fd.create_pit2(pit).map_err(VmError::ioctl("KVM_CREATE_PIT2"))
}

/// What KVM makes of a machine, and who serves its devices.
struct Objects {
    vcpus: Vec<VcpuFd>,
    fd: VmFd,
    transports: Vec<Transport>,
    workers: Vec<Worker>,
}

fn create_objects(
    kvm: &Kvm,
    cpus: u8,
    devices: Vec<(&'static str, Box<dyn Device>)>,
    memory: &GuestMemory,
    confine: &Arc<dyn Fn(Role) + Send + Sync>,
) -> Result<Objects, VmError> {
    let fd = kvm.create_vm().map_err(VmError::ioctl("KVM_CREATE_VM"))?;
    register_memory(&fd, memory)?;
    create_interrupt_controller(&fd)?;
    let vcpus = create_vcpus(kvm, &fd, cpus)?;
    let (transports, workers) = create_devices(&fd, devices, memory, confine)?;
    Ok(Objects { vcpus, fd, transports, workers })
}

fn create_vcpus(kvm: &Kvm, fd: &VmFd, cpus: u8) -> Result<Vec<VcpuFd>, VmError> {
    let mut vcpus = Vec::with_capacity(usize::from(cpus));
    for id in 0..cpus {
        let vcpu = fd.create_vcpu(u64::from(id)).map_err(VmError::ioctl("KVM_CREATE_VCPU"))?;
        vcpu.set_cpuid2(&cpuid(kvm, id, cpus)?).map_err(VmError::ioctl("KVM_SET_CPUID2"))?;
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

/// What virtual CPU `id` of so many tells its guest of itself.
fn cpuid(kvm: &Kvm, id: u8, cpus: u8) -> Result<CpuId, VmError> {
    let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    Ok(cpu::cpuid(supported_cpuid(kvm)?, id, cpus, tsc_deadline))
}

/// What KVM can give is the same for all machines of a host, and asking takes a fifth of what making
/// one does.
fn supported_cpuid(kvm: &Kvm) -> Result<&'static CpuId, VmError> {
    static SUPPORTED: OnceLock<CpuId> = OnceLock::new();
    if let Some(supported) = SUPPORTED.get() {
        return Ok(supported);
    }
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(VmError::ioctl("KVM_GET_SUPPORTED_CPUID"))?;
    Ok(SUPPORTED.get_or_init(|| supported))
}

type Devices = (Vec<Transport>, Vec<Worker>);

fn create_devices(
    fd: &VmFd,
    devices: Vec<(&'static str, Box<dyn Device>)>,
    memory: &GuestMemory,
    confine: &Arc<dyn Fn(Role) + Send + Sync>,
) -> Result<Devices, VmError> {
    let (mut transports, mut workers) = (Vec::new(), Vec::new());
    for ((name, device), (address, irq)) in devices.into_iter().zip(places()) {
        let event = interrupt(fd, irq)?;
        let confine = confine.clone();
        let calls = device.system_calls();
        let enter = move || confine(Role::Device(name, calls));
        let (transport, worker) = Transport::new(name, device, memory.clone(), event, enter)
            .map_err(resource("device"))?;
        notify_by_event(fd, &transport, address)?;
        transports.push(transport);
        workers.push(worker);
    }
    Ok((transports, workers))
}

/// A notification of the driver goes to its worker without a virtual CPU leaving KVM.
fn notify_by_event(fd: &VmFd, transport: &Transport, address: u64) -> Result<(), VmError> {
    let notify = IoEventAddress::Mmio(address + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY));
    for (queue, kick) in (0_u32..).zip(transport.kicks()) {
        fd.register_ioevent(kick.as_eventfd(), &notify, queue)
            .map_err(VmError::ioctl("KVM_IOEVENTFD"))?;
    }
    Ok(())
}

fn create_console(
    fd: &VmFd,
    to: OwnedFd,
    state: Option<&ConsoleState>,
) -> Result<Console, VmError> {
    let event = interrupt(fd, legacy::SERIAL_IRQ)?;
    legacy::console(to, event, state).map_err(resource("console"))
}

/// A flag that KVM injects an edge of line `irq` for when it is raised.
fn interrupt(fd: &VmFd, irq: u32) -> Result<Event, VmError> {
    let event = Event::new().map_err(resource("event"))?;
    fd.register_irqfd(event.as_eventfd(), irq).map_err(VmError::ioctl("KVM_IRQFD"))?;
    Ok(event)
}

fn resource(what: &'static str) -> impl Fn(io::Error) -> VmError {
    move |source| VmError::Resource { what, source }
}
