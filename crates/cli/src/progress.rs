//! The line on stderr that says what the user waits for.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, stderr};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use supervisor::image::Stage;
use supervisor::{Observer, Phase, Step};

use crate::filter;
use crate::units::readable;

/// A boot that takes no longer shows nothing.
const SHY: Duration = Duration::from_millis(400);

/// What to show besides the command's own output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verbosity {
    /// Errors only.
    Quiet,
    /// Progress on a terminal, and what the user should know.
    Normal,
    /// And where the time went.
    Verbose,
}

/// One line that changes, on a terminal; a line for each long step elsewhere.
#[derive(Debug)]
pub(crate) struct Line {
    verbosity: Verbosity,
    bar: Option<ProgressBar>,
    begun: Instant,
    label: String,
}

impl Line {
    pub(crate) fn new(verbosity: Verbosity) -> Self {
        Self { verbosity, bar: None, begun: Instant::now(), label: String::new() }
    }

    /// Something short is done: shown only where it takes longer than one notices.
    pub(crate) fn brief(&mut self, label: &str) {
        if self.bar.is_some() || self.begun.elapsed() > SHY {
            self.show(label, 0, None);
        }
    }

    /// Bytes are copied.
    pub(crate) fn bytes(&mut self, label: &str, done: u64, total: Option<u64>) {
        if self.bar.is_some() || self.begun.elapsed() > SHY {
            self.show(label, done, total);
        }
    }

    /// Something that takes seconds is at this point, in bytes.
    pub(crate) fn long(&mut self, label: &str, done: u64, total: Option<u64>) {
        if self.verbosity != Verbosity::Quiet && !stderr().is_terminal() {
            if self.label != label {
                eprintln!("sandforge: {}", filter::plain(label));
                label.clone_into(&mut self.label);
            }
            return;
        }
        self.show(label, done, total);
    }

    /// Something that the user should know, in a line that stays.
    pub(crate) fn notice(&mut self, text: &str) {
        if self.verbosity != Verbosity::Quiet {
            let text = format!("sandforge: {}", filter::plain(text));
            match &self.bar {
                Some(bar) => bar.suspend(|| eprintln!("{text}")),
                None => eprintln!("{text}"),
            }
        }
    }

    /// Leaves the terminal as it was.
    pub(crate) fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn show(&mut self, label: &str, done: u64, total: Option<u64>) {
        if self.verbosity == Verbosity::Quiet || !stderr().is_terminal() {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}")
                .expect("a template that does not change");
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(style);
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let label = filter::plain(label);
        bar.set_message(match (done, total) {
            (0, None) => label,
            (done, None) => format!("{label}: {}", readable(done)),
            (done, Some(total)) => format!("{label}: {} of {}", readable(done), readable(total)),
        });
    }
}

impl Observer for Line {
    fn step(&mut self, step: Step) {
        match step.phase {
            Phase::Prepare(stage) => self.long(stage.label(), step.done, step.total),
            Phase::Boot => self.brief("starting the machine"),
            Phase::CopyIn => self.bytes("copying in", step.done, step.total),
            Phase::CopyOut => self.bytes("copying out", step.done, step.total),
        }
    }

    fn notice(&mut self, line: &str) {
        Self::notice(self, line);
    }
}

/// The layers of a pull, each for itself: bars on a terminal, elsewhere a line for each that is here.
/// With JSON, objects on stderr, when a layer begins and when it is here.
#[derive(Debug)]
pub(crate) struct Layers {
    line: Line,
    json: bool,
    bars: MultiProgress,
    parts: BTreeMap<String, Option<ProgressBar>>,
}

impl Layers {
    pub(crate) fn new(verbosity: Verbosity, json: bool) -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        Self { line: Line::new(verbosity), json, bars, parts: BTreeMap::new() }
    }

    /// Leaves the terminal as it was; what is left is for notices.
    pub(crate) fn into_line(mut self) -> Line {
        self.line.clear();
        let _ = self.bars.clear();
        self.line
    }

    fn bar(&self, name: &str, total: u64) -> ProgressBar {
        let style = ProgressStyle::with_template(
            "{prefix} [{bar:24}] {binary_bytes:>10} of {binary_total_bytes}",
        )
        .expect("a template that does not change");
        let bar = ProgressBar::new(total).with_style(style).with_prefix(name.to_owned());
        self.bars.add(bar)
    }
}

/// As much of a digest as people read.
fn short(digest: &str) -> &str {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}

impl Observer for Layers {
    fn step(&mut self, step: Step) {
        // What is pulled is told by its parts.
        if step.phase != Phase::Prepare(Stage::Pull) {
            self.line.step(step);
        }
    }

    fn notice(&mut self, line: &str) {
        self.bars.suspend(|| self.line.notice(line));
    }

    fn part(&mut self, digest: &str, done: u64, total: u64) {
        let is_terminal = stderr().is_terminal() && !self.json;
        if self.line.verbosity == Verbosity::Quiet {
            return;
        }
        let begins = !self.parts.contains_key(digest);
        if begins {
            let bar = is_terminal.then(|| self.bar(short(digest), total));
            self.parts.insert(digest.to_owned(), bar);
        }
        match self.parts.get(digest) {
            Some(Some(bar)) => bar.set_position(done),
            _ if self.json && (begins || done == total) => {
                eprintln!("{}", serde_json::json!({"layer": digest, "done": done, "total": total}));
            }
            _ if !self.json && !is_terminal && done == total => {
                self.line.notice(&format!("{}: {}", short(digest), readable(total)));
            }
            _ => {}
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.clear();
    }
}
