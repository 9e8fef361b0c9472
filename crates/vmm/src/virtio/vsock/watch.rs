//! What the device waits for: sockets, a slow clock, and itself.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// Events that are taken at a time.
const BATCH: usize = 128;

/// Names what is watched; none is used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Token(pub(super) u64);

/// What has happened to a socket since it was last told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Readiness {
    /// There is something to read, perhaps an end or an error.
    pub(super) readable: bool,
    /// There is room to write, or an error.
    pub(super) writable: bool,
    /// The other end is closed.
    pub(super) hung_up: bool,
}

/// An epoll(7) set.
///
/// Edge-triggered: each event is told once and remembered by whoever it is for. So what cannot
/// be used at the moment, for want of buffers or of credit, wakes nobody up.
#[derive(Debug)]
pub(super) struct Watch(OwnedFd);

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// Watches for what can be read, and for the end.
    pub(super) fn add(&self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, EventData::new_u64(token.0), interest(false))?)
    }

    /// Watches for room to write too, or no more.
    pub(super) fn set_writing(
        &self,
        fd: BorrowedFd<'_>,
        token: Token,
        writing: bool,
    ) -> io::Result<()> {
        Ok(epoll::modify(&self.0, fd, EventData::new_u64(token.0), interest(writing))?)
    }

    /// Watches it no more. Closing a descriptor is not enough where somebody has a copy.
    pub(super) fn remove(&self, fd: BorrowedFd<'_>) {
        // Fails only for what is not watched.
        let _ = epoll::delete(&self.0, fd);
    }

    /// Some of what has happened.
    pub(super) fn take(&self) -> Vec<(Token, Readiness)> {
        let mut space = [const { MaybeUninit::uninit() }; BATCH];
        let now = Timespec::default();
        match epoll::wait(&self.0, &mut space, Some(&now)) {
            Ok((events, _)) => events
                .iter()
                .map(|event| (Token(event.data.u64()), readiness(event.flags)))
                .collect(),
            // An interrupted wait took nothing, and the events are still there.
            Err(_) => Vec::new(),
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn interest(writing: bool) -> EventFlags {
    let reading = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
    if writing { reading | EventFlags::OUT } else { reading }
}

fn readiness(flags: EventFlags) -> Readiness {
    let over = EventFlags::HUP | EventFlags::ERR;
    Readiness {
        readable: flags.intersects(EventFlags::IN | EventFlags::RDHUP | over),
        writable: flags.intersects(EventFlags::OUT | over),
        hung_up: flags.contains(EventFlags::HUP),
    }
}

/// A clock that ticks ten times a second, and only when somebody waits for it.
#[derive(Debug)]
pub(super) struct Clock {
    timer: OwnedFd,
    runs: bool,
}

impl Clock {
    const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

    /// One that stands.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { timer, runs: false })
    }

    /// Lets it run or stand.
    pub(super) fn set(&mut self, runs: bool) {
        if runs != self.runs {
            let tick = if runs { Self::TICK } else { Timespec::default() };
            let times = Itimerspec { it_interval: tick, it_value: tick };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &times)
                .expect("the times are valid and the timer is ours");
            self.runs = runs;
        }
    }

    /// How often it has ticked since the last time.
    pub(super) fn ticks(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.timer, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }
}

impl AsFd for Clock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}
