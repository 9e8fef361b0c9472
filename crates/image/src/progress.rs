//! What a long step says while it works. The library prints nothing.

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Another process makes the same thing; its result is waited for.
    Wait,
    /// The lists of packages are fetched.
    Index,
    /// Packages are fetched.
    Download,
    /// Packages are unpacked.
    Unpack,
    /// Packages are configured.
    Install,
    /// An image comes from its registry.
    Pull,
    /// A root file system is written as an image.
    Convert,
    /// A digest is computed.
    Digest,
    /// The guest kernel is decompressed.
    Kernel,
}

impl Stage {
    /// A few words for a progress line.
    pub fn label(self) -> &'static str {
        match self {
            Self::Wait => "waiting for another process that builds the same",
            Self::Index => "fetching package lists",
            Self::Download => "downloading packages",
            Self::Unpack => "unpacking packages",
            Self::Install => "installing packages",
            Self::Pull => "pulling the image",
            Self::Convert => "writing the image",
            Self::Digest => "computing the digest",
            Self::Kernel => "unpacking the guest kernel",
        }
    }
}

/// How far a stage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What is being done.
    pub stage: Stage,
    /// Bytes done; 0 where bytes say nothing.
    pub done: u64,
    /// Bytes in all, where that is known.
    pub total: Option<u64>,
}

impl Stage {
    pub(crate) fn begins(self) -> Step {
        Step { stage: self, done: 0, total: None }
    }

    pub(crate) fn at(self, done: u64, total: Option<u64>) -> Step {
        Step { stage: self, done, total }
    }
}

/// Told about every step, on the thread that made the call. Any `FnMut(Step)` will do, and `()`
/// for nobody.
pub trait Progress {
    /// Should return at once.
    fn step(&mut self, step: Step);
}

impl Progress for () {
    fn step(&mut self, _: Step) {}
}

impl<F: FnMut(Step)> Progress for F {
    fn step(&mut self, step: Step) {
        self(step);
    }
}
