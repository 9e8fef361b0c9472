//! A flag between threads, and between KVM and threads, that can be waited for.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

/// An eventfd(2) that never blocks.
#[derive(Debug)]
pub struct Event(EventFd);

impl Event {
    /// A lowered one.
    ///
    /// # Errors
    /// Where there are no descriptors to be had.
    pub fn new() -> io::Result<Self> {
        EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map(Self)
    }

    /// Another handle of the same flag.
    ///
    /// # Errors
    /// Where there are no descriptors to be had.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Raises it.
    pub fn raise(&self) {
        // The count of an eventfd saturates: what cannot be added is raised already.
        let _ = self.0.write(1);
    }

    /// Lowers it; whether it was raised.
    pub fn lower(&self) -> bool {
        self.0.read().is_ok()
    }

    /// For KVM's calls.
    pub(crate) fn as_eventfd(&self) -> &EventFd {
        &self.0
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as `self` lives, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}
