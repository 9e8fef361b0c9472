//! A directory of the host as a file system for a guest, by FUSE messages.
//!
//! The guest's kernel asks, its agent passes the messages on as they are, and [`Share::serve`] judges
//! and answers each. There is no I/O but that on the shared directory: how messages come and go is
//! the caller's matter, and so are the threads, of which any number may serve at once.
//!
//! What comes from the guest is hostile, its kernel's words included:
//!
//! - The directory is opened once. Every name is one component, looked up in the descriptor of its
//!   directory by openat2(2), which follows nothing, leaves nothing and crosses no mount. Symbolic
//!   links are read, never followed.
//! - Before a descriptor is used it is asked where it lies now: what somebody of the host has moved
//!   out of the directory is out of reach.
//! - Only regular files and directories are opened, after it is known that they are that.
//! - What is hidden ([`Rules::hides`]) looks empty, and what is protected ([`Rules::protects`]) is not
//!   changed. Neither can be renamed around: no name moves into or out of either, alone or with a
//!   directory above it.
//! - What may be held for a guest is bounded, and so is what it may add ([`Options`]).
//!
//! The guest keeps what it was told for a while. [`Share::watch`] tells it of the host's changes.
#![forbid(unsafe_code)]

mod confine;
mod handle;
mod node;
mod owner;
mod place;
mod quota;
mod reply;
pub mod request;
mod serve;
mod watch;

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, RwLock};

use rustix::io::Errno;

pub use confine::{Confined, confine};
pub use reply::TOUCH;
pub use request::MAX_REQUEST;
pub use watch::Stop;

use handle::Handles;
use node::Nodes;
use owner::Owner;
use place::Place;
use quota::Quota;
use watch::Watch;

/// What of a directory a guest may see and change. Paths are relative to it.
pub trait Rules: fmt::Debug + Send + Sync {
    /// Whether this must not be seen, and all that is below it.
    fn hides(&self, path: &Path) -> bool;

    /// Whether this is not the guest's to change.
    fn protects(&self, path: &Path, is_directory: bool) -> bool;
}

/// Everything may be seen and changed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Anything;

impl Rules for Anything {
    fn hides(&self, _: &Path) -> bool {
        false
    }

    fn protects(&self, _: &Path, _: bool) -> bool {
        false
    }
}

/// How a directory is shared.
#[derive(Debug, Clone)]
pub struct Options {
    /// Nothing of it changes, whatever the guest sends.
    pub read_only: bool,
    /// What may be seen and changed.
    pub rules: Arc<dyn Rules>,
    /// Bytes that the guest may add to it, by the sizes of files. As many as there is room for when
    /// absent.
    pub quota: Option<u64>,
    /// Go into other file systems that are mounted below it.
    pub cross_mounts: bool,
    /// Let the guest change files that have further names, which it did not make itself: these may
    /// lie outside of the directory.
    pub foreign_links: bool,
    /// Let the guest make symbolic links that lead out of the directory, where the host's programs
    /// would follow them.
    pub outside_links: bool,
    /// Files and directories that the guest may know at once. Each takes a descriptor.
    pub nodes: usize,
    /// Files and directories that it may have open at once.
    pub handles: usize,
    /// Bytes of names that are held for directories which it lists.
    pub listings: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            read_only: false,
            rules: Arc::new(Anything),
            quota: None,
            cross_mounts: false,
            foreign_links: false,
            outside_links: false,
            nodes: 200_000,
            handles: 8192,
            listings: 64 << 20,
        }
    }
}

/// A directory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// It cannot be opened.
    #[error("cannot open the directory to share: {0}")]
    Open(Errno),
    /// Only directories are shared.
    #[error("what is to be shared live has to be a directory; copy a single file instead")]
    NotADirectory,
    /// Descriptors are found again by /proc.
    #[error("cannot use /proc/self/fd, which live sharing needs: {0}")]
    Proc(Errno),
}

/// A directory that is shared.
#[derive(Debug)]
pub struct Share {
    place: Place,
    options: Options,
    owner: Owner,
    nodes: Nodes,
    handles: Handles,
    quota: Quota,
    watch: Watch,
    /// Bytes of names that are held.
    listed: AtomicUsize,
    /// Names of the guest's own making for files that have several.
    links: std::sync::Mutex<std::collections::HashMap<node::Key, u32>>,
    /// Held by every request until its answer is sent. A rename has it alone, so that what was looked
    /// at below a directory is what moves with it; and so have notices, so that none comes before an
    /// answer that is older.
    order: RwLock<()>,
    is_begun: AtomicBool,
}

impl Share {
    /// Shares an open directory.
    ///
    /// # Errors
    /// `ShareError` as it says.
    pub fn new(directory: &OwnedFd, mut options: Options) -> Result<Self, ShareError> {
        let (place, root, stat) = Place::open(directory, options.cross_mounts)?;
        options.nodes = options.nodes.min(confine::descriptors().saturating_mul(3) / 4).max(64);
        options.handles = options.handles.min(options.nodes / 3).max(16);
        Ok(Self {
            place,
            owner: Owner::current(),
            nodes: Nodes::new(root, &stat, options.nodes),
            handles: Handles::new(options.handles),
            quota: Quota::new(options.quota),
            watch: Watch::new(),
            listed: AtomicUsize::new(0),
            links: std::sync::Mutex::default(),
            order: RwLock::new(()),
            is_begun: AtomicBool::new(false),
            options,
        })
    }

    /// Nodes that the guest knows, the directory itself among them.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Files and directories that the guest has open.
    pub fn handles(&self) -> usize {
        self.handles.len()
    }
}
