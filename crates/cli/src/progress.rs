//! The line on stderr that says what the user waits for.

use std::io::{IsTerminal as _, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
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

impl Drop for Line {
    fn drop(&mut self) {
        self.clear();
    }
}
