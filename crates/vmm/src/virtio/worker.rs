//! The thread that a device lives on.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use virtio_queue::Queue;

use super::device::{Active, Device, DeviceError, Interrupt, Kicks};
use super::state::{DeviceStateError, Own, Rings, ServiceState};
use crate::GuestMemory;
use crate::event::Event;

/// What every worker's thread asks of the kernel once it serves, whatever its device.
pub const SYSTEM_CALLS: &[libc::c_long] = &[
    // Waiting for notifications, commands and the device's source; raising interrupts.
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_restart_syscall,
    // Channels and locks.
    libc::SYS_futex,
    libc::SYS_sched_yield,
    // Time, where the kernel offers no page to read it from.
    libc::SYS_clock_gettime,
    // The allocator.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Signals that were handled, and the end of the thread, which drops its device and its stacks.
    libc::SYS_rt_sigreturn,
    libc::SYS_close,
    // The standard library looks whether what it closes is open.
    #[cfg(debug_assertions)]
    libc::SYS_fcntl,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_madvise,
    libc::SYS_exit,
    // The end of the process, where one of its threads called what it may not.
    libc::SYS_exit_group,
];

/// What a worker is told. Each is acknowledged when it is done.
enum Command {
    Activate { queues: Vec<Queue>, features: u64 },
    Reset,
    Pause,
    Resume,
    Save(SyncSender<ServiceState>),
    Restore { queues: Vec<Queue>, features: u64, own: Own, done: SyncSender<Restored> },
    RestoreBroken,
    Stop,
}

type Restored = Result<(), DeviceStateError>;

/// Talks to the thread of a device; stops and joins it on drop.
#[derive(Debug)]
pub struct Worker {
    orders: Orders,
    thread: Option<JoinHandle<()>>,
}

/// A sender of commands to a worker. Clones talk to the same one.
#[derive(Debug, Clone)]
pub(super) struct Orders {
    sender: Sender<(Command, SyncSender<()>)>,
    wake: Arc<Event>,
}

impl Worker {
    /// Starts the thread of `device`, named `name`. `enter` runs on it first: it confines the
    /// thread.
    ///
    /// # Errors
    /// Where there are no descriptors or threads to be had.
    pub(super) fn spawn(
        name: &str,
        device: Box<dyn Device>,
        memory: GuestMemory,
        interrupt: Interrupt,
        kicks: Kicks,
        enter: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let wake = Arc::new(Event::new()?);
        let (sender, receiver) = channel();
        let service = Service {
            device,
            memory,
            interrupt,
            kicks,
            phase: Phase::Inactive,
            paused: false,
            commands: receiver,
            wake: wake.clone(),
        };
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            enter();
            service.run();
        })?;
        Ok(Self { orders: Orders { sender, wake }, thread: Some(thread) })
    }

    pub(super) fn orders(&self) -> Orders {
        self.orders.clone()
    }

    /// Returns when the device does nothing any more, until [`Worker::resume`].
    pub fn pause(&self) {
        self.orders.give(Command::Pause);
    }

    /// Lets the device go on.
    pub fn resume(&self) {
        self.orders.give(Command::Resume);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.orders.give(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic was reported where it happened.
            let _ = thread.join();
        }
    }
}

impl Orders {
    pub(super) fn activate(&self, queues: Vec<Queue>, features: u64) {
        self.give(Command::Activate { queues, features });
    }

    pub(super) fn reset(&self) {
        self.give(Command::Reset);
    }

    /// What the device is at this moment; it is paused.
    pub(super) fn save(&self) -> ServiceState {
        let (sender, receiver) = sync_channel(1);
        self.give(Command::Save(sender));
        receiver.recv().unwrap_or(ServiceState::Broken)
    }

    /// Has a fresh device go on for a driver that had set up another.
    pub(super) fn restore(&self, queues: Vec<Queue>, features: u64, own: Own) -> Restored {
        let (done, receiver) = sync_channel(1);
        self.give(Command::Restore { queues, features, own, done });
        let gone = || Err(DeviceStateError::Device("its thread has ended".into()));
        receiver.recv().unwrap_or_else(|_| gone())
    }

    /// Has a fresh device wait for a reset.
    pub(super) fn restore_broken(&self) {
        self.give(Command::RestoreBroken);
    }

    /// Waits until it is done. A worker that is gone has nothing left to do.
    fn give(&self, command: Command) {
        let (done, wait) = sync_channel(1);
        if self.sender.send((command, done)).is_ok() {
            self.wake.raise();
            let _ = wait.recv();
        }
    }
}

/// Where a device is in its life.
#[derive(Debug)]
enum Phase {
    /// Its driver has not set it up, or has reset it.
    Inactive,
    /// It serves its driver.
    Active(Active),
    /// Its driver broke the protocol and has to reset it.
    Broken,
}

struct Service {
    device: Box<dyn Device>,
    memory: GuestMemory,
    interrupt: Interrupt,
    kicks: Kicks,
    phase: Phase,
    paused: bool,
    commands: Receiver<(Command, SyncSender<()>)>,
    wake: Arc<Event>,
}

/// What there is to do.
#[derive(Debug, Default)]
struct Work {
    commands: bool,
    kicked: Vec<usize>,
    source: bool,
}

impl Service {
    fn run(mut self) {
        loop {
            let work = self.wait();
            if work.commands && self.obey().is_none() {
                return;
            }
            // A command may have changed what the rest was about.
            if !self.paused && !work.commands {
                self.serve(&work);
            }
        }
    }

    fn wait(&self) -> Work {
        let mut polled = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        let works = matches!(self.phase, Phase::Active(_)) && !self.paused;
        if works {
            polled.extend(self.kicks.iter().map(|kick| PollFd::new(kick, PollFlags::IN)));
            polled
                .extend(self.device.source().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        }
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            // No descriptor of ours is invalid, and the list is short.
            Err(error) => panic!("cannot poll the descriptors of a device: {error}"),
        }
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        let kicks = self.kicks.len();
        Work {
            commands: ready[0],
            kicked: (0..kicks).filter(|queue| works && ready[1 + queue]).collect(),
            source: ready.get(1 + kicks).is_some_and(|ready| works && *ready),
        }
    }

    /// Does what it was told; nothing where it was told to stop.
    fn obey(&mut self) -> Option<()> {
        self.wake.lower();
        while let Ok((command, done)) = self.commands.try_recv() {
            match command {
                Command::Activate { queues, features } => self.activate(queues, features),
                Command::Reset => {
                    self.phase = Phase::Inactive;
                    self.device.reset();
                }
                Command::Pause => self.paused = true,
                Command::Resume => self.paused = false,
                // Whoever waits for it may have been stopped meanwhile.
                Command::Save(to) => drop(to.send(self.save())),
                Command::Restore { queues, features, own, done } => {
                    let _ = done.send(self.restore(queues, features, &own));
                }
                Command::RestoreBroken => self.phase = Phase::Broken,
                Command::Stop => return None,
            }
            // Whoever waits for it may have been stopped meanwhile.
            let _ = done.send(());
        }
        Some(())
    }

    fn active(&self, queues: Vec<Queue>, features: u64) -> Active {
        Active {
            memory: self.memory.clone(),
            queues,
            features,
            interrupt: self.interrupt.clone(),
            kicks: self.kicks.clone(),
        }
    }

    fn save(&self) -> ServiceState {
        match &self.phase {
            Phase::Inactive => ServiceState::Inactive,
            Phase::Broken => ServiceState::Broken,
            Phase::Active(active) => ServiceState::Active {
                queues: active.queues.iter().map(Rings::from).collect(),
                features: active.features,
                own: self.device.save(),
            },
        }
    }

    fn restore(&mut self, queues: Vec<Queue>, features: u64, own: &Own) -> Restored {
        let mut active = self.active(queues, features);
        self.device.restored(&mut active, own)?;
        // What the driver notified of may not have been looked at.
        active.kicks.iter().for_each(Event::raise);
        self.phase = Phase::Active(active);
        Ok(())
    }

    fn activate(&mut self, queues: Vec<Queue>, features: u64) {
        let mut active = self.active(queues, features);
        let done = self.device.activated(&mut active);
        self.phase = Phase::Active(active);
        self.settle(&done);
    }

    fn serve(&mut self, work: &Work) {
        for &queue in &work.kicked {
            self.kicks[queue].lower();
            if let Phase::Active(active) = &mut self.phase {
                let done = self.device.serve(active, queue);
                self.settle(&done);
            }
        }
        if let (Phase::Active(active), true) = (&mut self.phase, work.source) {
            let done = self.device.source_ready(active);
            self.settle(&done);
        }
    }

    fn settle(&mut self, done: &Result<(), DeviceError>) {
        if let Err(error) = done {
            self.phase = Phase::Broken;
            self.interrupt.needs_reset(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
    use virtio_queue::QueueT as _;
    use vm_memory::{Bytes as _, GuestAddress};

    use super::*;
    use crate::virtio::driver::memory;
    use crate::virtio::recorder::{Call, MAX_QUEUE_SIZE, QUEUES, Record, Recorder};

    const AVAILABLE: u32 = 0x1000;

    struct Machine {
        worker: Worker,
        record: Record,
        kicks: Kicks,
        interrupt: Interrupt,
        memory: GuestMemory,
    }

    impl Machine {
        fn new() -> Self {
            Self::entering(|| {})
        }

        fn entering(enter: impl FnOnce() + Send + 'static) -> Self {
            let (device, record) = Recorder::new();
            let memory = memory();
            let interrupt = Interrupt::new(Event::new().unwrap());
            let kicks: Kicks = (0..QUEUES).map(|_| Event::new().unwrap()).collect();
            let device = Box::new(device);
            let (given, line) = (memory.clone(), interrupt.clone());
            let worker =
                Worker::spawn("recorder", device, given, line, kicks.clone(), enter).unwrap();
            Self { worker, record, kicks, interrupt, memory }
        }

        fn activate(&self) {
            let queues = (0..QUEUES).map(|_| {
                let mut queue = Queue::new(MAX_QUEUE_SIZE).unwrap();
                queue.set_avail_ring_address(Some(AVAILABLE), None);
                queue.set_ready(true);
                queue
            });
            self.worker.orders.activate(queues.collect(), 0);
            assert!(matches!(self.record.next(), Call::Activated { .. }));
        }

        fn needs_reset(&self) -> bool {
            let status = self.interrupt.device_status();
            status.load(std::sync::atomic::Ordering::Acquire) & VIRTIO_CONFIG_S_NEEDS_RESET != 0
        }

        /// Claims more entries than a queue can have, and notifies.
        fn break_queue(&self, queue: usize) {
            let index = GuestAddress(u64::from(AVAILABLE) + 2);
            self.memory.write_obj(MAX_QUEUE_SIZE + 1, index).unwrap();
            self.kicks[queue].raise();
            assert_eq!(self.record.next(), Call::Served(queue));
            // It has to be back from there.
            self.worker.resume();
        }
    }

    #[test]
    fn its_thread_is_confined_before_the_device_is_asked() {
        let (sender, receiver) = sync_channel(1);
        let machine = Machine::entering(move || {
            sender.send(std::thread::current().name().map(str::to_owned)).unwrap();
        });
        machine.activate();
        assert_eq!(receiver.try_recv().unwrap().as_deref(), Some("recorder"));
    }

    #[test]
    fn a_device_without_a_driver_serves_nothing() {
        let machine = Machine::new();
        machine.kicks[0].raise();
        machine.record.source.raise();
        machine.record.assert_no_more();
    }

    #[test]
    fn each_queue_has_its_notification() {
        let machine = Machine::new();
        machine.activate();
        machine.kicks[1].raise();
        assert_eq!(machine.record.next(), Call::Served(1));
        machine.record.assert_no_more();
    }

    #[test]
    fn a_device_is_told_of_its_source() {
        let machine = Machine::new();
        machine.activate();
        machine.record.source.raise();
        assert_eq!(machine.record.next(), Call::Source);
        machine.record.assert_no_more();
    }

    #[test]
    fn a_reset_device_serves_nothing() {
        let machine = Machine::new();
        machine.activate();
        machine.worker.orders.reset();
        assert_eq!(machine.record.last(), Some(Call::Reset));
        machine.kicks[0].raise();
        machine.record.assert_no_more();
    }

    #[test]
    fn a_paused_device_serves_nothing() {
        let machine = Machine::new();
        machine.activate();
        machine.worker.pause();
        machine.kicks[0].raise();
        machine.record.source.raise();
        machine.record.assert_no_more();
    }

    #[test]
    fn what_came_in_a_pause_is_served_after_it() {
        let machine = Machine::new();
        machine.activate();
        machine.worker.pause();
        machine.kicks[0].raise();
        machine.worker.resume();
        assert_eq!(machine.record.next(), Call::Served(0));
    }

    #[test]
    fn a_paused_device_can_be_reset() {
        let machine = Machine::new();
        machine.activate();
        machine.worker.pause();
        machine.worker.orders.reset();
        assert_eq!(machine.record.last(), Some(Call::Reset));
    }

    #[test]
    fn a_pause_goes_on_beyond_a_reset() {
        let machine = Machine::new();
        machine.worker.pause();
        machine.worker.orders.reset();
        assert_eq!(machine.record.last(), Some(Call::Reset));
        machine.activate();
        machine.kicks[0].raise();
        machine.record.assert_no_more();
    }

    #[test]
    fn a_broken_ring_needs_a_reset() {
        let machine = Machine::new();
        machine.activate();
        machine.break_queue(0);
        assert!(machine.needs_reset());
        assert!(machine.interrupt.irq().lower());
        assert!(machine.interrupt.failure().unwrap().starts_with("queue 0: "));
    }

    #[test]
    fn a_broken_device_serves_nothing() {
        let machine = Machine::new();
        machine.activate();
        machine.break_queue(0);
        machine.kicks[1].raise();
        machine.record.source.raise();
        machine.record.assert_no_more();
    }

    #[test]
    fn a_broken_device_works_after_a_reset() {
        let machine = Machine::new();
        machine.activate();
        machine.break_queue(0);
        machine.worker.orders.reset();
        assert_eq!(machine.record.last(), Some(Call::Reset));
        machine.memory.write_obj(0_u16, GuestAddress(u64::from(AVAILABLE) + 2)).unwrap();
        machine.activate();
        machine.kicks[1].raise();
        assert_eq!(machine.record.next(), Call::Served(1));
    }

    #[test]
    fn orders_to_a_worker_that_is_gone_return() {
        let machine = Machine::new();
        let orders = machine.worker.orders();
        drop(machine.worker);
        orders.reset();
    }
}
