//! A virtual CPU: a thread that runs guest code until the guest asks for something.

use std::io;
use std::os::unix::thread::JoinHandleExt as _;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_ioctls::{VcpuExit, VcpuFd};
use serde::{Deserialize, Serialize};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::bus::Bus;
use crate::event::Event;
use crate::legacy;
use crate::metrics::Counter;

/// What a virtual CPU's thread asks of the kernel, besides KVM_RUN, and KVM_GET_REGS when the guest
/// cannot go on: it raises flags of devices, waits to be resumed, and is interrupted.
pub const SYSTEM_CALLS: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_futex,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_sched_yield,
    // Commands to devices, which are messages on a channel.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // The signal that interrupts the guest, and the end of the thread, which drops its virtual CPU.
    libc::SYS_close,
    #[cfg(debug_assertions)]
    libc::SYS_fcntl,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_madvise,
    libc::SYS_exit,
    // The end of the process, where one of its threads called what it may not.
    libc::SYS_exit_group,
];

/// How often a virtual CPU is told again to leave the guest. The signal may come just before
/// KVM_RUN, which then does not see it.
const AGAIN: Duration = Duration::from_millis(1);
/// KVM starts a thread of its own at the first run, which a machine under pressure may refuse
/// for a moment.
const PATIENCE: u32 = 50;

/// How a machine came to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum End {
    /// The guest reset the machine, by the keyboard controller or by a triple fault.
    Reset,
    /// A virtual CPU cannot go on.
    Failed {
        /// What was run, at which address, and what KVM said.
        reason: String,
    },
}

/// What the virtual CPUs of a machine left the guest for.
#[derive(Debug, Default)]
pub(crate) struct Exits {
    pub(crate) port: Counter,
    pub(crate) memory: Counter,
    pub(crate) interrupted: Counter,
}

/// What all virtual CPUs of a machine share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) bus: Bus,
    pub(crate) exits: Exits,
    end: Mutex<Option<End>>,
    ended: Event,
}

impl Shared {
    pub(crate) fn new(bus: Bus) -> io::Result<Self> {
        let (exits, end) = (Exits::default(), Mutex::default());
        Ok(Self { bus, exits, end, ended: Event::new()? })
    }

    /// Raised when the machine has ended.
    pub(crate) fn ended(&self) -> &Event {
        &self.ended
    }

    pub(crate) fn end(&self) -> Option<End> {
        lock(&self.end).clone()
    }

    /// The first to say so is right: the others fall over what it left behind.
    fn finish(&self, end: End) {
        lock(&self.end).get_or_insert(end);
        self.ended.raise();
    }
}

/// What a virtual CPU is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Wanted {
    Run,
    Park,
    Stop,
}

/// The lever of a virtual CPU.
#[derive(Debug)]
struct Lever {
    wanted: AtomicU8,
    /// Whether it is out of the guest and waits.
    parked: Mutex<bool>,
    changed: Condvar,
}

impl Lever {
    fn is(&self, wanted: Wanted) -> bool {
        self.wanted.load(Ordering::Acquire) == wanted as u8
    }

    /// Waits as long as it is to be parked; whether it is to run then.
    fn may_run(&self) -> bool {
        let mut parked = lock(&self.parked);
        while self.is(Wanted::Park) {
            *parked = true;
            self.changed.notify_all();
            parked = self.changed.wait(parked).unwrap_or_else(PoisonError::into_inner);
        }
        *parked = false;
        self.is(Wanted::Run)
    }

    fn pull(&self, wanted: Wanted) {
        let _parked = lock(&self.parked);
        self.wanted.store(wanted as u8, Ordering::Release);
        self.changed.notify_all();
    }
}

/// A virtual CPU. Parked when it is made; stopped and joined on drop.
#[derive(Debug)]
pub(crate) struct Vcpu {
    lever: Arc<Lever>,
    /// Its thread holds it while it is not parked.
    fd: Arc<Mutex<VcpuFd>>,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    /// Puts `fd` on a thread of its own; `enter` runs on it first.
    pub(crate) fn spawn(
        id: u8,
        fd: VcpuFd,
        shared: Arc<Shared>,
        enter: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        have_signal();
        let lever = Arc::new(Lever {
            wanted: AtomicU8::new(Wanted::Park as u8),
            parked: Mutex::new(false),
            changed: Condvar::new(),
        });
        let fd = Arc::new(Mutex::new(fd));
        let core = Core { id, shared, lever: lever.clone(), patience: PATIENCE };
        let held = fd.clone();
        let thread = std::thread::Builder::new().name(format!("vcpu {id}")).spawn(move || {
            enter();
            core.run(&held);
        })?;
        Ok(Self { lever, fd, thread: Some(thread) })
    }

    /// Its registers are to be had while it is parked; until then this waits.
    pub(crate) fn fd(&self) -> MutexGuard<'_, VcpuFd> {
        lock(&self.fd)
    }

    pub(crate) fn resume(&self) {
        self.lever.pull(Wanted::Run);
    }

    /// Asks it to leave the guest, without waiting until it has.
    pub(crate) fn begin_pause(&self) {
        self.lever.pull(Wanted::Park);
        self.kick();
    }

    /// Waits until it is out of the guest. One whose thread has ended is.
    pub(crate) fn finish_pause(&self) {
        let mut parked = lock(&self.lever.parked);
        while !*parked && !self.is_finished() {
            let waited = self.lever.changed.wait_timeout(parked, AGAIN);
            parked = waited.unwrap_or_else(PoisonError::into_inner).0;
            if !*parked {
                self.kick();
            }
        }
    }

    fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn kick(&self) {
        let Some(thread) = &self.thread else { return };
        // SAFETY: the thread has not been joined, so its handle is valid, and SIGRTMIN has a
        // handler since before it was started.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) };
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.lever.pull(Wanted::Stop);
        while !self.is_finished() {
            self.kick();
            std::thread::sleep(Duration::from_micros(50));
        }
        if let Some(thread) = self.thread.take() {
            // A panic was reported where it happened.
            let _ = thread.join();
        }
    }
}

/// A handler that does nothing: the signal is there to interrupt KVM_RUN.
fn have_signal() {
    extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        register_signal_handler(SIGRTMIN(), ignore).expect("SIGRTMIN is a signal for programs");
    });
}

/// The thread's side.
struct Core {
    id: u8,
    shared: Arc<Shared>,
    lever: Arc<Lever>,
    patience: u32,
}

impl Core {
    fn run(mut self, fd: &Mutex<VcpuFd>) {
        while self.lever.may_run() {
            if let Some(end) = self.run_until_asked(&mut lock(fd)) {
                self.shared.finish(end);
                // The others are stopped by whoever waits for the end.
                return;
            }
        }
    }

    fn run_until_asked(&mut self, fd: &mut VcpuFd) -> Option<End> {
        while self.lever.is(Wanted::Run) {
            if let Some(end) = self.run_once(fd) {
                return Some(end);
            }
        }
        complete(fd);
        None
    }

    fn run_once(&mut self, fd: &mut VcpuFd) -> Option<End> {
        let Shared { bus, exits, .. } = &*self.shared;
        let what = match fd.run() {
            Ok(VcpuExit::IoOut(port, bytes)) => {
                exits.port.add(1);
                bus.output(port, bytes);
                return legacy::is_reset(port, bytes).then_some(End::Reset);
            }
            Ok(VcpuExit::IoIn(port, bytes)) => {
                exits.port.add(1);
                bus.input(port, bytes);
                return None;
            }
            Ok(VcpuExit::MmioRead(address, bytes)) => {
                exits.memory.add(1);
                bus.read(address, bytes);
                return None;
            }
            Ok(VcpuExit::MmioWrite(address, bytes)) => {
                exits.memory.add(1);
                bus.write(address, bytes);
                return None;
            }
            Ok(VcpuExit::Shutdown) => return Some(End::Reset),
            Ok(VcpuExit::Intr) => {
                exits.interrupted.add(1);
                return None;
            }
            Ok(VcpuExit::InternalError) => "an internal error of KVM".into(),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                format!("the processor refused to enter the guest ({reason:#x} on {cpu})")
            }
            Ok(other) => format!("an exit that this machine has no use for: {other:?}"),
            Err(error) => self.interrupted(error.errno())?,
        };
        Some(self.failed(fd, &what))
    }

    /// What went wrong, where it is not an interruption.
    fn interrupted(&mut self, errno: i32) -> Option<String> {
        match errno {
            libc::EINTR | libc::EAGAIN => self.shared.exits.interrupted.add(1),
            libc::ENOMEM if self.patience > 0 => {
                self.patience -= 1;
                std::thread::sleep(AGAIN);
            }
            _ => return Some(format!("KVM_RUN: {}", io::Error::from_raw_os_error(errno))),
        }
        None
    }

    fn failed(&self, fd: &mut VcpuFd, what: &str) -> End {
        let id = self.id;
        let address = match fd.get_regs() {
            Ok(registers) => format!("{:#x}", registers.rip),
            Err(_) => "an unknown address".into(),
        };
        let details = internal_error(fd).unwrap_or_default();
        End::Failed { reason: format!("CPU {id} stopped at {address}: {what}{details}") }
    }
}

/// What the guest asked for last is only done when it is entered again
/// (Documentation/virt/kvm/api.rst, KVM_RUN): enters and leaves at once.
fn complete(fd: &mut VcpuFd) {
    fd.set_kvm_immediate_exit(1);
    let _ = fd.run();
    fd.set_kvm_immediate_exit(0);
}

/// What KVM tells of an internal error: which kind, and the instruction.
fn internal_error(fd: &mut VcpuFd) -> Option<String> {
    let run = fd.get_kvm_run();
    if run.exit_reason != kvm_bindings::KVM_EXIT_INTERNAL_ERROR {
        return None;
    }
    // SAFETY: for this exit reason KVM has filled in this member of the union, which is plain
    // numbers in any case.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let count = usize::try_from(internal.ndata).unwrap_or(0).min(internal.data.len());
    let words = internal.data[..count].iter().map(|word| format!(" {word:#x}"));
    let kind = match internal.suberror {
        kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => {
            "it cannot emulate an instruction; is hardware virtualization on?"
        }
        _ => "see KVM_EXIT_INTERNAL_ERROR",
    };
    Some(format!(" ({}: {kind};{})", internal.suberror, words.collect::<String>()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
