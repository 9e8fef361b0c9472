//! What a person wants to see while a sandbox comes up.

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The image or the boot assets are being made; the words say how far.
    Prepare(image::Stage),
    /// The machine starts.
    Boot,
    /// Files go in.
    CopyIn,
    /// Files come out.
    CopyOut,
}

/// How far a phase is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What is being done.
    pub phase: Phase,
    /// Bytes done; 0 where bytes say nothing.
    pub done: u64,
    /// Bytes in all, where that is known.
    pub total: Option<u64>,
}

/// Told about every step, and about what a person must know.
pub trait Observer: Send {
    /// Progress; should return at once.
    fn step(&mut self, step: Step);

    /// A line for the person, such as why isolation is weaker than it could be.
    fn notice(&mut self, line: &str);

    /// So many bytes of one part of an image that is pulled are here. They are in [`Self::step`] too.
    fn part(&mut self, _digest: &str, _done: u64, _total: u64) {}
}

/// For nobody.
impl Observer for () {
    fn step(&mut self, _: Step) {}
    fn notice(&mut self, _: &str) {}
}
