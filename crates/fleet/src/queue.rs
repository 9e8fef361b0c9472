//! Places for machines that come up, and a queue in front of them that has an end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bounds how many machines come up at once, and how many wait for that.
#[derive(Debug)]
pub(crate) struct Queue {
    places: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    longest: usize,
}

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// A place in the queue, given back on drop.
#[derive(Debug)]
pub(crate) struct Ticket {
    places: Arc<Semaphore>,
    waiting: Waiting,
}

#[derive(Debug)]
struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A machine may come up as long as this is held.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Queue {
    pub(crate) fn new(places: usize, longest: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(places.max(1))),
            waiting: Arc::default(),
            longest: longest.max(1),
        }
    }

    /// Stands in line, if there is room.
    pub(crate) fn enter(&self) -> Result<Ticket, Full> {
        let entered = self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, |waiting| {
            // Who finds a place at once does not wait.
            let longest = self.longest + self.places.available_permits();
            (waiting < longest).then_some(waiting + 1)
        });
        match entered {
            Ok(_) => Ok(self.ticket()),
            Err(_) => Err(Full),
        }
    }

    /// Stands in line whatever its length: for what was accepted before.
    pub(crate) fn enter_again(&self) -> Ticket {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.ticket()
    }

    fn ticket(&self) -> Ticket {
        Ticket { places: self.places.clone(), waiting: Waiting(self.waiting.clone()) }
    }

    /// Those that stand in line.
    pub(crate) fn length(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }
}

impl Ticket {
    /// Waits for its turn.
    pub(crate) async fn wait(self) -> Place {
        let place = self.places.acquire_owned().await;
        drop(self.waiting);
        Place { _permit: place.expect("nobody closes it") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn beyond_the_queue_s_end_nobody_is_let_in() {
        let queue = Queue::new(1, 2);
        let place = queue.enter().unwrap().wait().await;
        let (second, third) = (queue.enter().unwrap(), queue.enter().unwrap());
        assert_eq!(queue.enter().unwrap_err(), Full);
        assert_eq!(queue.length(), 2);

        drop(place);
        let place = second.wait().await;
        assert_eq!(queue.length(), 1);
        drop((place, third));
        assert_eq!(queue.length(), 0);
    }

    #[tokio::test]
    async fn who_gives_up_makes_room() {
        let queue = Queue::new(1, 1);
        let _place = queue.enter().unwrap().wait().await;
        let ticket = queue.enter().unwrap();
        assert_eq!(queue.enter().unwrap_err(), Full);
        drop(ticket);
        assert!(queue.enter().is_ok());
    }

    #[tokio::test]
    async fn what_was_accepted_before_is_not_refused() {
        let queue = Queue::new(1, 1);
        let _place = queue.enter().unwrap().wait().await;
        let _accepted: Vec<Ticket> = (0..5).map(|_| queue.enter_again()).collect();
        assert_eq!(queue.length(), 5);
        assert_eq!(queue.enter().unwrap_err(), Full);
    }
}
