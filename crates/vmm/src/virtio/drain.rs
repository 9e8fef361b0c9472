//! Taking what a driver made available in a queue.

use virtio_queue::{DescriptorChain, Error, QueueOwnedT as _, QueueT as _};

use super::device::{Active, DeviceError};
use crate::GuestMemory;

/// The buffers of one available entry.
pub type Chain<'m> = DescriptorChain<&'m GuestMemory>;

/// What becomes of an available entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It was served. So many bytes of its writable buffers were written, from the first on.
    Used(u32),
    /// The device keeps it, and gives it back later by [`Active::give_back`].
    Kept,
    /// It cannot be served now. It stays the next one, and the device sees to coming back.
    Later,
}

impl Active {
    /// Lets `answer` serve the entries of `queue`, and interrupts the guest once.
    ///
    /// Returns after a queue's worth of entries, however fast the driver makes more available: a
    /// worker has commands to listen to. It is called again for the rest.
    ///
    /// # Errors
    /// Where the queue itself is broken.
    pub fn drain(
        &mut self,
        queue: usize,
        answer: impl for<'m> FnMut(&'m GuestMemory, Chain<'m>) -> Answer,
    ) -> Result<(), DeviceError> {
        // A driver may notify of a queue that it has not set up.
        if !self.queues[queue].ready() {
            return Ok(());
        }
        let used = self.take(queue, answer);
        if used.map_err(|source| DeviceError::Queue { queue, source })? {
            self.notify(queue)?;
        }
        Ok(())
    }

    /// Whether entries were used.
    fn take(
        &mut self,
        queue: usize,
        mut answer: impl for<'m> FnMut(&'m GuestMemory, Chain<'m>) -> Answer,
    ) -> Result<bool, Error> {
        let (memory, kick) = (&self.memory, &self.kicks[queue]);
        let queue = &mut self.queues[queue];
        let mut left = queue.size();
        let mut used = false;
        loop {
            queue.disable_notification(memory)?;
            while let Some(chain) = queue.iter(memory)?.next() {
                let entry = chain.head_index();
                match answer(memory, chain) {
                    Answer::Used(written) => {
                        queue.add_used(memory, entry, written)?;
                        used = true;
                    }
                    Answer::Kept => {}
                    Answer::Later => {
                        queue.go_to_previous_position();
                        return Ok(used);
                    }
                }
                left -= 1;
                if left == 0 {
                    kick.raise();
                    return Ok(used);
                }
            }
            if !queue.enable_notification(memory)? {
                return Ok(used);
            }
        }
    }

    /// Gives back the entry of `queue` that was [kept](Answer::Kept), and interrupts the guest.
    ///
    /// # Errors
    /// Where the queue itself is broken.
    pub fn give_back(&mut self, queue: usize, entry: u16) -> Result<(), DeviceError> {
        let used = self.queues[queue].add_used(&self.memory, entry, 0);
        used.map_err(|source| DeviceError::Queue { queue, source })?;
        self.notify(queue)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

    use super::*;
    use crate::virtio::driver::{DATA, Driver, memory, writable};
    use crate::virtio::recorder::{MAX_QUEUE_SIZE, Recorder};

    const EVENTS: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
    const USED: Answer = Answer::Used(7);

    fn driver(features: u64) -> Driver {
        Driver::with(&Recorder::new().0, memory(), features)
    }

    fn offer(driver: &mut Driver, many: u16) {
        for _ in 0..many {
            driver.offer(0, &[writable(DATA, 16)]);
        }
    }

    #[test]
    fn all_that_is_available_is_served_in_order() {
        let mut driver = driver(0);
        offer(&mut driver, 3);
        driver.active.drain(0, |_, _| USED).unwrap();
        assert_eq!(driver.used(0), [(0, 7), (1, 7), (2, 7)]);
    }

    #[test]
    fn a_batch_is_one_interrupt() {
        let mut driver = driver(EVENTS);
        driver.interrupt_after(0, 1);
        offer(&mut driver, 3);
        driver.active.drain(0, |_, _| USED).unwrap();
        assert_eq!(driver.interrupts(), 1);
    }

    #[test]
    fn a_driver_that_waits_for_more_is_not_interrupted() {
        let mut driver = driver(EVENTS);
        driver.interrupt_after(0, 4);
        offer(&mut driver, 3);
        driver.active.drain(0, |_, _| USED).unwrap();
        assert_eq!(driver.interrupts(), 0);
    }

    #[test]
    fn nothing_used_is_no_interrupt() {
        let mut driver = driver(0);
        driver.active.drain(0, |_, _| USED).unwrap();
        assert_eq!(driver.interrupts(), 0);
    }

    #[test]
    fn what_is_for_later_stays_first() {
        let mut driver = driver(0);
        offer(&mut driver, 2);
        driver.active.drain(0, |_, _| Answer::Later).unwrap();
        assert_eq!(driver.used(0), []);
        driver.active.drain(0, |_, _| USED).unwrap();
        assert_eq!(driver.used(0), [(0, 7), (1, 7)]);
    }

    #[test]
    fn what_is_kept_is_given_back_once_it_is_asked_for() {
        let mut driver = driver(0);
        offer(&mut driver, 1);
        driver.active.drain(0, |_, _| Answer::Kept).unwrap();
        assert_eq!(driver.used(0), []);
        driver.active.give_back(0, 0).unwrap();
        assert_eq!(driver.used(0), [(0, 0)]);
        assert_eq!(driver.interrupts(), 1);
    }

    #[test]
    fn a_driver_that_never_stops_does_not_keep_the_worker() {
        let mut driver = driver(0);
        offer(&mut driver, 1);
        let mut served = 0;
        let mut other = driver_of_the_same_queue(&driver);
        let more = |_: &GuestMemory, _: Chain<'_>| {
            served += 1;
            offer(&mut other, 1);
            USED
        };
        driver.active.drain(0, more).unwrap();
        assert_eq!(served, MAX_QUEUE_SIZE);
        assert!(driver.active.kicks[0].lower());
    }

    /// Goes on where `driver` is with its first request.
    fn driver_of_the_same_queue(driver: &Driver) -> Driver {
        let memory = driver.active.memory.clone();
        let mut other = Driver::with(&Recorder::new().0, memory, 0);
        offer(&mut other, 1);
        other
    }

    #[test]
    fn a_queue_that_was_not_set_up_is_left_alone() {
        let mut driver = driver(0);
        driver.active.queues[0].set_ready(false);
        offer(&mut driver, 1);
        driver.active.drain(0, |_, _| USED).unwrap();
        assert_eq!(driver.used(0), []);
    }

    #[test]
    fn more_entries_than_the_queue_has_are_an_error() {
        let mut driver = driver(0);
        driver.overstate(0, MAX_QUEUE_SIZE + 1);
        let error = driver.active.drain(0, |_, _| USED).unwrap_err();
        assert!(matches!(error, DeviceError::Queue { queue: 0, .. }), "{error}");
    }

    #[test]
    fn an_entry_beyond_the_queue_is_an_error() {
        let mut driver = driver(0);
        driver.offer_entry(0, MAX_QUEUE_SIZE);
        let error = driver.active.drain(0, |_, _| USED).unwrap_err();
        assert!(matches!(error, DeviceError::Queue { queue: 0, .. }), "{error}");
    }

    proptest! {
        /// Whatever comes in between, wherever the indices wrap.
        #[test]
        fn each_entry_is_answered_once_and_in_order(
            begin in any::<u16>(),
            events in any::<bool>(),
            rounds in prop::collection::vec((0..=MAX_QUEUE_SIZE, 0..=MAX_QUEUE_SIZE), 1..40),
        ) {
            let mut driver = driver(if events { EVENTS } else { 0 });
            driver.go_on_at(0, begin);
            let (mut offered, mut answered) = (Vec::new(), Vec::new());
            for (more, patience) in rounds {
                let free = usize::from(MAX_QUEUE_SIZE) - (offered.len() - answered.len());
                for _ in 0..free.min(more.into()) {
                    offered.push(u32::from(driver.offer(0, &[writable(DATA, 16)])));
                }
                let mut left = patience;
                let answer = |_: &GuestMemory, _: Chain<'_>| match left.checked_sub(1) {
                    Some(less) => {
                        left = less;
                        USED
                    }
                    None => Answer::Later,
                };
                driver.active.drain(0, answer).unwrap();
                answered.extend(driver.used(0).into_iter().map(|(entry, _)| entry));
                let expected = offered.len().min(answered.len());
                prop_assert_eq!(&answered[..], &offered[..expected]);
                prop_assert!(left == 0 || answered.len() == offered.len());
            }
        }

        /// A driver is interrupted if the entry that it waits for was used, and else not.
        #[test]
        fn an_interrupt_comes_with_the_entry_that_is_waited_for(
            begin in any::<u16>(),
            before in 0..MAX_QUEUE_SIZE,
            many in 1..=MAX_QUEUE_SIZE,
        ) {
            let mut driver = driver(EVENTS);
            driver.go_on_at(0, begin);
            driver.interrupt_after(0, begin.wrapping_add(before).wrapping_add(1));
            offer(&mut driver, many);
            driver.active.drain(0, |_, _| USED).unwrap();
            prop_assert_eq!(driver.interrupts(), u64::from(before < many));
        }
    }
}
