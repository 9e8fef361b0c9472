//! What the host changes, told to the guest.
//!
//! Directories that the guest has looked into are watched by inotify. An event whose effect the guest
//! knows already, because it came of its own request, is dropped: what is compared is the state, not
//! the time, so that a change of the host's in between is not lost.

use std::collections::{BTreeSet, HashMap};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use crate::Share;
use crate::node::{Key, Node, lock};
use crate::place::Place;
use crate::reply::Notice;
use crate::request::Component;

/// Directories that are watched for one share.
const MOST: usize = 65_536;
/// Changes of the guest's own that are remembered.
const MOST_OWN: usize = 65_536;
/// Paths of one batch of events whose watchers are told.
const MOST_TOUCHED: usize = 64;
/// Bytes of events that are read at once.
const EVENTS: usize = 64 << 10;

/// How long events are left to gather.
const TOGETHER: Duration = Duration::from_millis(10);

/// A directory that cannot be watched.
const NOT: i32 = -1;

/// Ends a [`Share::watch`].
#[derive(Debug, Clone)]
pub struct Stop(Arc<OwnedFd>);

impl Stop {
    /// A new one.
    ///
    /// # Errors
    /// Where the system has no descriptor to give.
    pub fn new() -> Result<Self, Errno> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(|fd| Self(Arc::new(fd)))
    }

    /// Ends it.
    pub fn stop(&self) {
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}

/// What a name in a directory, by its node, stands for.
type Own = HashMap<(u64, Box<[u8]>), Option<Key>>;

/// What inotify tells.
#[derive(Debug)]
struct Change {
    watch: i32,
    events: ReadFlags,
    name: Option<Box<[u8]>>,
}

#[derive(Debug)]
pub(crate) struct Watch {
    /// Not where the system gives none.
    inotify: Option<OwnedFd>,
    directories: Mutex<HashMap<i32, u64>>,
    /// What the guest itself made of a name in a directory.
    own: Mutex<Own>,
}

impl Watch {
    pub(crate) fn new() -> Self {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok();
        Self { inotify, directories: Mutex::default(), own: Mutex::default() }
    }

    /// Watches a directory, where that can be done and was not yet.
    pub(crate) fn add(&self, directory: &Node) {
        let (Some(inotify), Ok((descriptor, _)), 0) =
            (&self.inotify, directory.real(), directory.watch.load(Ordering::Relaxed))
        else {
            return;
        };
        let mut directories = lock(&self.directories);
        if directory.watch.load(Ordering::Relaxed) != 0 {
            return;
        }
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR
            | WatchFlags::EXCL_UNLINK;
        let watch = match directories.len() < MOST {
            true => inotify::add_watch(inotify, Place::path_to(descriptor), flags).unwrap_or(NOT),
            false => NOT,
        };
        if watch > 0 {
            directories.insert(watch, directory.id);
        }
        directory.watch.store(watch, Ordering::Relaxed);
    }

    /// The guest has forgotten a directory.
    pub(crate) fn remove(&self, directory: &Node) {
        let watch = directory.watch.swap(0, Ordering::Relaxed);
        let mut directories = lock(&self.directories);
        // It may have been told to the guest anew, with the same watch.
        if watch > 0 && directories.get(&watch) == Some(&directory.id) {
            directories.remove(&watch);
            if let Some(inotify) = &self.inotify {
                let _ = inotify::remove_watch(inotify, watch);
            }
        }
    }

    pub(crate) fn forget_all(&self) {
        let mut directories = lock(&self.directories);
        for (watch, _) in directories.drain() {
            if let Some(inotify) = &self.inotify {
                let _ = inotify::remove_watch(inotify, watch);
            }
        }
        lock(&self.own).clear();
    }

    /// The guest itself made a name stand for this, or for nothing.
    pub(crate) fn made(&self, directory: &Node, name: Component<'_>, key: Option<&Key>) {
        if directory.watch.load(Ordering::Relaxed) <= 0 {
            return;
        }
        let mut own = lock(&self.own);
        if own.len() >= MOST_OWN {
            // What is told twice costs time alone.
            own.clear();
        }
        own.insert((directory.id, name.as_bytes().into()), key.cloned());
    }

    fn knows(&self, directory: u64, name: &[u8], key: Option<&Key>) -> bool {
        lock(&self.own)
            .get(&(directory, Box::from(name)))
            .is_some_and(|known| known.as_ref() == key)
    }
}

impl Share {
    /// Hands `send` a notice for each change of the host's that the guest does not know of, until it is
    /// stopped. A notice is no answer: it says so by its number, which is 0.
    ///
    /// # Errors
    /// Where the system does not tell of changes; the guest then sees them a second later.
    pub fn watch(&self, stop: &Stop, mut send: impl FnMut(Vec<u8>)) -> Result<(), Errno> {
        let inotify = self.watch.inotify.as_ref().ok_or(Errno::NOSYS)?;
        let mut buffer = vec![MaybeUninit::uninit(); EVENTS];
        loop {
            let mut waits =
                [PollFd::new(inotify, PollFlags::IN), PollFd::new(&*stop.0, PollFlags::IN)];
            match poll(&mut waits, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error),
            }
            if !waits[1].revents().is_empty() {
                return Ok(());
            }
            // Most are echoes of the guest's own requests, which are to be over when they are looked at,
            // and are looked at together.
            std::thread::sleep(TOGETHER);
            let found = changes(inotify, &mut buffer)?;
            let mut pending = found.iter().filter(|change| self.is_news(change)).peekable();
            if pending.peek().is_none() {
                continue;
            }
            // Answers that are under way are older than what is told now.
            let _alone = self.order.write().unwrap_or_else(PoisonError::into_inner);
            let mut touched = BTreeSet::new();
            for change in pending {
                self.tell_of(change, &mut touched, &mut send);
            }
            for path in touched {
                send(Notice::Touch(&path).message());
            }
        }
    }

    /// Whether there is anything to tell, as far as can be seen while requests are served.
    fn is_news(&self, change: &Change) -> bool {
        let mut is_news = false;
        self.tell_of(change, &mut BTreeSet::new(), &mut |_| is_news = true);
        is_news
    }

    fn tell_of(
        &self,
        change: &Change,
        touched: &mut BTreeSet<Vec<u8>>,
        send: &mut impl FnMut(Vec<u8>),
    ) {
        let Change { watch, events, ref name } = *change;
        if events.contains(ReadFlags::IGNORED) {
            lock(&self.watch.directories).remove(&watch);
            return;
        }
        let Some(&directory) = lock(&self.watch.directories).get(&watch) else { return };
        let (Some(name), Ok(node)) =
            (name.as_deref().and_then(Component::new), self.nodes.get(directory))
        else {
            return;
        };
        let Ok((descriptor, _)) = node.real() else { return };
        let Ok(path) = self.place.path(descriptor) else { return };
        let mut touch = |path: &std::path::Path| {
            if touched.len() < MOST_TOUCHED {
                touched.insert(path.as_os_str().as_bytes().to_vec());
            }
        };
        let below = path.join(name.as_os_str());
        let found = self.place.find(descriptor, name).ok();
        let key = found.as_ref().map(|(_, stat)| Key::of(stat));
        let names =
            ReadFlags::CREATE | ReadFlags::DELETE | ReadFlags::MOVED_FROM | ReadFlags::MOVED_TO;
        if events.intersects(names) {
            if self.watch.knows(directory, name.as_bytes(), key.as_ref()) {
                return;
            }
            send(Notice::Entry(directory, name.as_bytes()).message());
            touch(if found.is_some() { &below } else { &path });
            return;
        }
        let (Some((_, stat)), Some(key)) = (found, key) else { return };
        // What the guest does not know of, it will ask for.
        let Some(node) = self.nodes.by_key(&key).filter(|node| !node.is_known(&stat)) else {
            return;
        };
        send(Notice::Node(node.id).message());
        touch(&below);
    }
}

/// What is to be read at once.
fn changes(inotify: &OwnedFd, buffer: &mut [MaybeUninit<u8>]) -> Result<Vec<Change>, Errno> {
    let mut events = Reader::new(inotify, buffer);
    let mut changes = Vec::new();
    loop {
        match events.next() {
            Ok(event) => changes.push(Change {
                watch: event.wd(),
                events: event.events(),
                name: event.file_name().map(|name| name.to_bytes().into()),
            }),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => return Ok(changes),
            Err(error) => return Err(error),
        }
        if events.is_buffer_empty() {
            return Ok(changes);
        }
    }
}
