//! A device's registers: virtio over MMIO, version 2 (specification 1.2, section 4.2.2).

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as register;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT as _};

use super::device::{ConfigSpace, Device, DeviceError, Identity, Interrupt, Kicks};
use super::state::{DeviceState, DeviceStateError, Registers, Rings, ServiceState};
use super::worker::{Orders, Worker};
use crate::GuestMemory;
use crate::event::Event;

/// Size of a device's window of registers.
pub(crate) const WINDOW: u64 = 0x1000;

/// "virt" in little endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "SFRG": a driver may show it, none cares.
const VENDOR: u32 = 0x4752_4653;

/// The registers of one device.
#[derive(Debug)]
pub struct Transport {
    identity: Identity,
    config: Arc<dyn ConfigSpace>,
    interrupt: Interrupt,
    kicks: Kicks,
    worker: Orders,
    memory: GuestMemory,
    queues: Vec<Queue>,
    queue_select: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
}

impl Transport {
    /// Puts `device` on a thread of its own, named `name`, and makes its registers. `irq` is what
    /// KVM injects its interrupt for.
    ///
    /// # Errors
    /// Where there are no descriptors or threads to be had.
    pub fn new(
        name: &str,
        device: Box<dyn Device>,
        memory: GuestMemory,
        irq: Event,
        enter: impl FnOnce() + Send + 'static,
    ) -> io::Result<(Self, Worker)> {
        let identity = device.identity();
        let config = device.config();
        let interrupt = Interrupt::new(irq);
        let kicks: Kicks = identity
            .queue_sizes
            .iter()
            .map(|_| Event::new())
            .collect::<io::Result<Vec<_>>>()?
            .into();
        let worker =
            Worker::spawn(name, device, memory.clone(), interrupt.clone(), kicks.clone(), enter)?;
        let transport = Self {
            identity,
            config,
            interrupt,
            kicks,
            worker: worker.orders(),
            memory,
            queues: fresh_queues(identity),
            queue_select: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
        };
        Ok((transport, worker))
    }

    /// What the device is at this moment. It is paused.
    pub fn save(&self) -> DeviceState {
        let registers = Registers {
            queues: self.queues.iter().map(Rings::from).collect(),
            queue_select: self.queue_select,
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            driver_features: self.driver_features,
            status: self.status(),
            reasons: self.interrupt.reasons(),
            generation: self.interrupt.generation(),
        };
        DeviceState { kind: self.identity.id, registers, service: self.worker.save() }
    }

    /// Has the device, which is fresh and paused, go on from `state`.
    ///
    /// # Errors
    /// Where that is the state of another kind of device, or of none.
    pub fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let DeviceState { kind, registers, service } = state;
        if *kind != self.identity.id {
            return Err(DeviceStateError::Kind(*kind, self.identity.id));
        }
        let unknown = registers.driver_features & !self.offered();
        if unknown != 0 && registers.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            return Err(DeviceStateError::Features(unknown));
        }
        self.queues = self.restore_queues(&registers.queues)?;
        self.queue_select = registers.queue_select;
        self.device_features_select = registers.device_features_select;
        self.driver_features_select = registers.driver_features_select;
        self.driver_features = registers.driver_features;
        let Registers { reasons, status, generation, .. } = *registers;
        // Before the device, which may have news for its driver and the reason for an interrupt.
        self.interrupt.restore(reasons, status, generation);
        match service {
            ServiceState::Inactive => {}
            ServiceState::Broken => self.worker.restore_broken(),
            ServiceState::Active { queues, features, own } => {
                let queues = self.restore_queues(queues)?;
                let invalid = |queue: &Queue| queue.ready() && !queue.is_valid(&self.memory);
                if queues.iter().any(invalid) || features & !self.offered() != 0 {
                    return Err(DeviceStateError::Queues);
                }
                self.worker.restore(queues, *features, own.clone())?;
            }
        }
        Ok(())
    }

    fn restore_queues(&self, rings: &[Rings]) -> Result<Vec<Queue>, DeviceStateError> {
        let sizes = self.identity.queue_sizes;
        if rings.len() != sizes.len() {
            return Err(DeviceStateError::Queues);
        }
        let queues = rings.iter().zip(sizes).map(|(rings, size)| rings.restore(*size));
        queues.collect::<Option<_>>().ok_or(DeviceStateError::Queues)
    }

    /// What the driver's notification of each queue arrives on.
    pub fn kicks(&self) -> &[Event] {
        &self.kicks
    }

    /// What KVM has to inject this device's interrupt for.
    pub fn irq(&self) -> &Event {
        self.interrupt.irq()
    }

    /// Why the device last gave up on its driver, if it ever did.
    pub fn failure(&self) -> Option<String> {
        self.interrupt.failure()
    }

    /// The driver reads `bytes.len()` bytes at `offset` of the window.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(u64::from(register::VIRTIO_MMIO_CONFIG)) {
            return self.config.read(offset, bytes);
        }
        // Section 4.2.2.2: all registers but the configuration are 32 bits wide.
        match (<&mut [u8; 4]>::try_from(&mut *bytes), u32::try_from(offset)) {
            (Ok(word), Ok(offset)) => *word = self.read_register(offset).to_le_bytes(),
            _ => bytes.fill(0),
        }
    }

    /// The driver writes `bytes` at `offset` of the window.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        if let Some(offset) = offset.checked_sub(u64::from(register::VIRTIO_MMIO_CONFIG)) {
            return self.config.write(offset, bytes);
        }
        if let (Ok(word), Ok(offset)) = (<[u8; 4]>::try_from(bytes), u32::try_from(offset)) {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            register::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            register::VIRTIO_MMIO_VERSION => VERSION,
            register::VIRTIO_MMIO_DEVICE_ID => self.identity.id,
            register::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            register::VIRTIO_MMIO_DEVICE_FEATURES => {
                half(self.offered(), self.device_features_select)
            }
            register::VIRTIO_MMIO_QUEUE_NUM_MAX => {
                self.queue().map_or(0, |queue| u32::from(queue.max_size()))
            }
            register::VIRTIO_MMIO_QUEUE_READY => {
                self.queue().map_or(0, |queue| u32::from(queue.ready()))
            }
            register::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.reasons(),
            register::VIRTIO_MMIO_STATUS => self.status(),
            register::VIRTIO_MMIO_CONFIG_GENERATION => self.interrupt.generation(),
            // There is no shared memory: a length of all ones says so (section 4.2.2).
            register::VIRTIO_MMIO_SHM_LEN_LOW | register::VIRTIO_MMIO_SHM_LEN_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            register::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES => self.accept_features(value),
            register::VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            register::VIRTIO_MMIO_QUEUE_NOTIFY => self.kick(value),
            register::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            register::VIRTIO_MMIO_STATUS => self.set_status(value),
            _ => self.set_up_queue(offset, value),
        }
    }

    fn set_up_queue(&mut self, offset: u32, value: u32) {
        // The worker has its own copy of the queues once the driver is ready.
        if self.status() & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            return;
        }
        let Some(queue) = self.queue_mut() else { return };
        let (low, high) = (Some(value), None);
        match offset {
            register::VIRTIO_MMIO_QUEUE_NUM => {
                queue.set_size(u16::try_from(value).unwrap_or_default());
            }
            register::VIRTIO_MMIO_QUEUE_READY => queue.set_ready(value == 1),
            register::VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(low, high),
            register::VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(high, low),
            register::VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(low, high),
            register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(high, low),
            register::VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(low, high),
            register::VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(high, low),
            _ => {}
        }
    }

    fn queue(&self) -> Option<&Queue> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    fn queue_mut(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(usize::try_from(self.queue_select).ok()?)
    }

    /// Reached where KVM has no ioeventfd for it.
    fn kick(&self, queue: u32) {
        if let Some(kick) = usize::try_from(queue).ok().and_then(|queue| self.kicks.get(queue)) {
            kick.raise();
        }
    }

    fn offered(&self) -> u64 {
        self.identity.features
            | 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn accept_features(&mut self, value: u32) {
        if self.status() & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            return;
        }
        let (mask, value) = (u64::from(u32::MAX), u64::from(value));
        self.driver_features = match self.driver_features_select {
            0 => self.driver_features & !mask | value,
            1 => self.driver_features & mask | value << 32,
            _ => self.driver_features,
        };
    }

    fn status(&self) -> u32 {
        self.interrupt.device_status().load(Ordering::Acquire)
    }

    /// Section 2.1.1: the driver sets bits in order and clears none, but all of them at once,
    /// which is a reset.
    fn set_status(&mut self, value: u32) {
        let old = self.status();
        if value == 0 {
            return self.reset();
        }
        let mut value = value & 0xff & !VIRTIO_CONFIG_S_NEEDS_RESET;
        let added = value & !old;
        if added & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !self.can_agree() {
            value &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        let agreed = (old | value) & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        let failed = (old | value) & VIRTIO_CONFIG_S_FAILED != 0;
        if !agreed || failed {
            value &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        self.interrupt.device_status().fetch_or(value, Ordering::AcqRel);
        if value & !old & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.activate();
        }
    }

    fn can_agree(&self) -> bool {
        let needed = 1 << VIRTIO_F_VERSION_1;
        self.driver_features & !self.offered() == 0 && self.driver_features & needed != 0
    }

    fn activate(&mut self) {
        let events = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        for queue in &mut self.queues {
            queue.set_event_idx(events);
        }
        let invalid = |queue: &Queue| queue.ready() && !queue.is_valid(&self.memory);
        if let Some(queue) = self.queues.iter().position(invalid) {
            return self.interrupt.needs_reset(&DeviceError::Layout { queue });
        }
        // The registers go on saying what the driver wrote.
        let copy = |queue: &Queue| Queue::try_from(queue.state()).expect("it is a queue's");
        self.worker.activate(self.queues.iter().map(copy).collect(), self.driver_features);
    }

    /// Returns when the device has let go of everything that its driver gave it.
    fn reset(&mut self) {
        self.worker.reset();
        self.queues = fresh_queues(self.identity);
        self.queue_select = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.interrupt.acknowledge(u32::MAX);
        self.interrupt.device_status().store(0, Ordering::Release);
    }
}

fn fresh_queues(identity: Identity) -> Vec<Queue> {
    let sizes = identity.queue_sizes.iter();
    sizes.map(|size| Queue::new(*size).expect("queue sizes are powers of two")).collect()
}

fn half(value: u64, select: u32) -> u32 {
    let [low, high] = [value & u64::from(u32::MAX), value >> 32];
    let half = match select {
        0 => low,
        1 => high,
        _ => 0,
    };
    u32::try_from(half).expect("half of 64 bits")
}

#[cfg(test)]
mod tests {
    use super::register::*;
    use super::*;
    use crate::virtio::driver::memory;
    use crate::virtio::recorder::{Call, FEATURE, ID, MAX_QUEUE_SIZE, QUEUES, Record, Recorder};

    const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
    const ACKNOWLEDGED: u32 = 3;
    const AGREED: u32 = ACKNOWLEDGED | VIRTIO_CONFIG_S_FEATURES_OK;
    const READY: u32 = AGREED | VIRTIO_CONFIG_S_DRIVER_OK;
    /// Where the tests put a queue's rings.
    const RINGS: u32 = 0x1000;

    /// A driver that knows registers.
    struct Machine {
        transport: Transport,
        record: Record,
        // Dropped last: it waits for the worker.
        worker: Worker,
    }

    impl Machine {
        fn new() -> Self {
            let (device, record) = Recorder::new();
            let irq = Event::new().unwrap();
            let (transport, worker) =
                Transport::new("recorder", Box::new(device), memory(), irq, || {}).unwrap();
            Self { transport, record, worker }
        }

        fn read(&self, offset: u32) -> u32 {
            let mut word = [0; 4];
            self.transport.read(u64::from(offset), &mut word);
            u32::from_le_bytes(word)
        }

        fn write(&mut self, offset: u32, value: u32) {
            self.transport.write(u64::from(offset), &value.to_le_bytes());
        }

        fn status(&mut self, status: u32) -> u32 {
            self.write(VIRTIO_MMIO_STATUS, status);
            self.read(VIRTIO_MMIO_STATUS)
        }

        fn accept(&mut self, features: u64) {
            for select in [0, 1] {
                self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
                self.write(VIRTIO_MMIO_DRIVER_FEATURES, half(features, select));
            }
        }

        fn set_up(&mut self, queue: u32, size: u32, rings: u32) {
            self.write(VIRTIO_MMIO_QUEUE_SEL, queue);
            self.write(VIRTIO_MMIO_QUEUE_NUM, size);
            self.write(VIRTIO_MMIO_QUEUE_DESC_LOW, rings);
            self.write(VIRTIO_MMIO_QUEUE_AVAIL_LOW, rings + 0x1000);
            self.write(VIRTIO_MMIO_QUEUE_USED_LOW, rings + 0x2000);
            self.write(VIRTIO_MMIO_QUEUE_READY, 1);
        }

        /// Through all the steps to a device that works.
        fn start(&mut self) {
            self.accept(VERSION_1);
            assert_eq!(self.status(AGREED), AGREED);
            self.set_up(0, 8, RINGS);
            assert_eq!(self.status(READY), READY);
            assert!(matches!(self.record.next(), Call::Activated { .. }));
        }
    }

    #[test]
    fn it_says_what_it_is() {
        let machine = Machine::new();
        assert_eq!(machine.read(VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
        assert_eq!(machine.read(VIRTIO_MMIO_VERSION), 2);
        assert_eq!(machine.read(VIRTIO_MMIO_DEVICE_ID), ID);
        assert_eq!(machine.read(VIRTIO_MMIO_VENDOR_ID).to_le_bytes(), *b"SFRG");
    }

    #[test]
    fn a_restored_device_s_news_interrupts_its_driver() {
        let mut saved = Machine::new();
        saved.start();
        saved.worker.pause();
        let state = saved.transport.save();
        assert_eq!(saved.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        let mut machine = Machine::new();
        machine.worker.pause();
        machine.transport.restore(&state).unwrap();
        assert_eq!(machine.read(VIRTIO_MMIO_STATUS), READY);
        assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    }

    #[test]
    fn features_are_offered_in_halves() {
        let mut machine = Machine::new();
        let mut offered = |select| {
            machine.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            u64::from(machine.read(VIRTIO_MMIO_DEVICE_FEATURES))
        };
        let rings = 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
        assert_eq!(offered(0), FEATURE | rings);
        assert_eq!(offered(1), VERSION_1 >> 32);
        assert_eq!(offered(2), 0);
    }

    #[test]
    fn what_was_offered_can_be_agreed_on() {
        let mut machine = Machine::new();
        machine.accept(VERSION_1 | FEATURE);
        assert_eq!(machine.status(AGREED), AGREED);
    }

    #[test]
    fn a_feature_that_was_not_offered_is_not_agreed_on() {
        let mut machine = Machine::new();
        machine.accept(VERSION_1 | FEATURE << 1);
        assert_eq!(machine.status(AGREED), ACKNOWLEDGED);
    }

    #[test]
    fn a_driver_of_before_version_1_is_not_agreed_with() {
        let mut machine = Machine::new();
        machine.accept(FEATURE);
        assert_eq!(machine.status(AGREED), ACKNOWLEDGED);
    }

    #[test]
    fn what_was_agreed_on_does_not_change() {
        let mut machine = Machine::new();
        machine.accept(VERSION_1);
        machine.status(AGREED);
        machine.accept(VERSION_1 | FEATURE);
        machine.status(READY);
        let Call::Activated { features, .. } = machine.record.next() else { panic!() };
        assert_eq!(features, VERSION_1);
    }

    #[test]
    fn a_driver_that_agreed_on_nothing_is_not_ready() {
        let mut machine = Machine::new();
        machine.accept(VERSION_1);
        let ready = ACKNOWLEDGED | VIRTIO_CONFIG_S_DRIVER_OK;
        assert_eq!(machine.status(ready), ACKNOWLEDGED);
        assert_eq!(machine.record.last(), None);
    }

    #[test]
    fn a_driver_that_failed_is_not_ready() {
        let mut machine = Machine::new();
        machine.accept(VERSION_1);
        let failed = READY | VIRTIO_CONFIG_S_FAILED;
        assert_eq!(machine.status(failed), AGREED | VIRTIO_CONFIG_S_FAILED);
        assert_eq!(machine.record.last(), None);
    }

    #[test]
    fn no_bit_of_the_status_is_cleared_alone() {
        let mut machine = Machine::new();
        machine.status(ACKNOWLEDGED);
        assert_eq!(machine.status(1), ACKNOWLEDGED);
    }

    #[test]
    fn a_driver_cannot_say_that_the_device_needs_a_reset() {
        let mut machine = Machine::new();
        assert_eq!(machine.status(ACKNOWLEDGED | VIRTIO_CONFIG_S_NEEDS_RESET), ACKNOWLEDGED);
    }

    #[test]
    fn there_are_as_many_queues_as_the_device_has() {
        let mut machine = Machine::new();
        let queues = u32::try_from(QUEUES).unwrap();
        machine.write(VIRTIO_MMIO_QUEUE_SEL, queues - 1);
        assert_eq!(machine.read(VIRTIO_MMIO_QUEUE_NUM_MAX), u32::from(MAX_QUEUE_SIZE));
        for beyond in [queues, u32::MAX] {
            machine.write(VIRTIO_MMIO_QUEUE_SEL, beyond);
            machine.write(VIRTIO_MMIO_QUEUE_READY, 1);
            assert_eq!(machine.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
            assert_eq!(machine.read(VIRTIO_MMIO_QUEUE_READY), 0);
        }
    }

    #[test]
    fn the_device_gets_the_queues_that_were_set_up() {
        let mut machine = Machine::new();
        machine.accept(VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX);
        machine.status(AGREED);
        machine.set_up(1, 8, RINGS);
        machine.status(READY);
        let Call::Activated { queues, .. } = machine.record.next() else { panic!() };
        assert!(!queues[0].ready);
        let set_up = virtio_queue::QueueState {
            max_size: MAX_QUEUE_SIZE,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: true,
            size: 8,
            ready: true,
            desc_table: RINGS.into(),
            avail_ring: (RINGS + 0x1000).into(),
            used_ring: (RINGS + 0x2000).into(),
        };
        assert_eq!(queues[1], set_up);
    }

    #[test]
    fn a_size_that_no_queue_can_have_is_not_taken() {
        for size in [0, 3, 32, 0x1_0008] {
            let mut machine = Machine::new();
            machine.accept(VERSION_1);
            machine.status(AGREED);
            machine.set_up(0, size, RINGS);
            machine.status(READY);
            let Call::Activated { queues, .. } = machine.record.next() else { panic!() };
            assert_eq!(queues[0].size, MAX_QUEUE_SIZE, "{size}");
        }
    }

    #[test]
    fn a_ring_outside_of_memory_needs_a_reset() {
        let mut machine = Machine::new();
        machine.accept(VERSION_1);
        machine.status(AGREED);
        machine.set_up(0, 8, RINGS);
        machine.write(VIRTIO_MMIO_QUEUE_USED_HIGH, 1);
        assert_eq!(machine.status(READY), READY | VIRTIO_CONFIG_S_NEEDS_RESET);
        assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
        assert_eq!(machine.transport.failure().unwrap(), "queue 0 is not where a queue can be");
        assert_eq!(machine.record.last(), None);
    }

    #[test]
    fn a_queue_of_a_ready_driver_stays_as_it_is() {
        let mut machine = Machine::new();
        machine.start();
        machine.write(VIRTIO_MMIO_QUEUE_READY, 0);
        assert_eq!(machine.read(VIRTIO_MMIO_QUEUE_READY), 1);
    }

    #[test]
    fn a_reset_returns_when_the_device_has_forgotten_its_driver() {
        let mut machine = Machine::new();
        machine.start();
        assert_eq!(machine.status(0), 0);
        assert_eq!(machine.record.last(), Some(Call::Reset));
        assert_eq!(machine.read(VIRTIO_MMIO_QUEUE_READY), 0);
    }

    #[test]
    fn a_device_that_was_reset_starts_again() {
        let mut machine = Machine::new();
        machine.start();
        machine.status(0);
        assert_eq!(machine.record.last(), Some(Call::Reset));
        machine.start();
    }

    #[test]
    fn a_notification_reaches_the_device() {
        let mut machine = Machine::new();
        machine.start();
        machine.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        assert_eq!(machine.record.next(), Call::Served(0));
    }

    #[test]
    fn a_notification_of_no_queue_reaches_nobody() {
        let mut machine = Machine::new();
        machine.start();
        for beyond in [2, u32::MAX] {
            machine.write(VIRTIO_MMIO_QUEUE_NOTIFY, beyond);
        }
        machine.record.assert_no_more();
    }

    #[test]
    fn reasons_of_an_interrupt_stay_until_they_are_acknowledged() {
        let mut machine = Machine::new();
        machine.transport.interrupt.queue_used();
        machine.transport.interrupt.config_changed();
        assert!(machine.transport.irq().lower());
        let both = VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG;
        assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), both);
        machine.write(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
        assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    }

    #[test]
    fn a_change_of_configuration_has_a_number() {
        let machine = Machine::new();
        let before = machine.read(VIRTIO_MMIO_CONFIG_GENERATION);
        machine.transport.interrupt.config_changed();
        assert_ne!(machine.read(VIRTIO_MMIO_CONFIG_GENERATION), before);
    }

    #[test]
    fn configuration_registers_are_the_devices() {
        let mut machine = Machine::new();
        machine.transport.write(0x104, &[1, 2]);
        assert_eq!(*machine.record.registers.0.lock().unwrap(), [(4, vec![1, 2])]);
        let mut bytes = [0; 8];
        machine.transport.read(0x107, &mut bytes);
        assert_eq!(bytes, [7; 8]);
    }

    #[test]
    fn registers_are_words() {
        let mut machine = Machine::new();
        let mut bytes = [0xff; 2];
        machine.transport.read(u64::from(VIRTIO_MMIO_MAGIC_VALUE), &mut bytes);
        assert_eq!(bytes, [0; 2]);
        machine.transport.write(u64::from(VIRTIO_MMIO_STATUS), &[1]);
        assert_eq!(machine.read(VIRTIO_MMIO_STATUS), 0);
    }

    #[test]
    fn there_is_no_shared_memory() {
        let machine = Machine::new();
        assert_eq!(machine.read(VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
        assert_eq!(machine.read(VIRTIO_MMIO_SHM_LEN_HIGH), u32::MAX);
    }
}
