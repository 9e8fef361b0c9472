//! The user's terminal: its size, raw mode, and the way out of a guest that does not answer.

use std::io;
use std::panic;
use std::sync::{Mutex, Once, PoisonError};

use rustix::fd::BorrowedFd;
use rustix::stdio;
use rustix::termios::{self, OptionalActions, Termios};
use wire::op::WindowSize;

/// What a terminal looked like before it was raw. Global because a panic hook must find it: the
/// release build aborts without running destructors.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Keys go to the guest unread until this is dropped.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Makes the terminal on stdin raw; nothing where stdin is none.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        static HOOK: Once = Once::new();
        let stdin = stdio::stdin();
        if !termios::isatty(stdin) {
            return Ok(None);
        }
        let before = termios::tcgetattr(stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        HOOK.call_once(|| {
            let next = panic::take_hook();
            panic::set_hook(Box::new(move |panic| {
                restore();
                next(panic);
            }));
        });
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let mode = Self(());
        termios::tcsetattr(stdin, OptionalActions::Drain, &raw)?;
        Ok(Some(mode))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // `Now`, not `Drain`: the terminal may be gone or stopped, and the way out must not wait.
        // Nothing can be done about a terminal that refuses.
        let _ = termios::tcsetattr(stdio::stdin(), OptionalActions::Now, &before);
    }
}

/// The size of the first of our standard streams that is a terminal.
pub(crate) fn size() -> Option<WindowSize> {
    let streams: [BorrowedFd<'static>; 3] = [stdio::stdin(), stdio::stdout(), stdio::stderr()];
    let size = streams.into_iter().find_map(|fd| termios::tcgetwinsize(fd).ok())?;
    // A serial line does not know its size.
    (size.ws_row > 0 && size.ws_col > 0)
        .then_some(WindowSize { rows: size.ws_row, cols: size.ws_col })
}

/// `TERM` for a command on a terminal: the user's, where the base image knows it.
pub(crate) fn kind(user: &str) -> &str {
    const KNOWN: [&str; 7] = ["xterm", "screen", "tmux", "linux", "vt", "rxvt", "dumb"];
    // Newer terminals call themselves so and come with a description that the guest lacks.
    let lacks = ["xterm-kitty", "xterm-ghostty"].contains(&user);
    if !lacks && KNOWN.iter().any(|known| user.starts_with(known)) {
        user
    } else {
        "xterm-256color"
    }
}

/// Finds `~.` at the beginning of a line, as ssh has it, in what the user types: a guest that
/// hangs gets every key, so Ctrl-C cannot end it.
#[derive(Debug)]
pub(crate) struct Escape(Position);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    LineStart,
    Within,
    Tilde,
}

impl Escape {
    pub(crate) fn new() -> Self {
        Self(Position::LineStart)
    }

    /// What of `typed` is for the guest, or nothing where the user wants out.
    pub(crate) fn pass(&mut self, typed: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(typed.len() + 1);
        for &byte in typed {
            self.0 = match (self.0, byte) {
                (Position::Tilde, b'.') => return None,
                (Position::LineStart, b'~') => {
                    self.0 = Position::Tilde;
                    continue;
                }
                (Position::Tilde, b'~') => {
                    out.push(b'~');
                    Position::Within
                }
                (before, _) => {
                    if before == Position::Tilde {
                        out.push(b'~');
                    }
                    out.push(byte);
                    // Enter, and Ctrl-C, after which a shell shows a new prompt.
                    if matches!(byte, b'\r' | b'\n' | 3) {
                        Position::LineStart
                    } else {
                        Position::Within
                    }
                }
            };
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(pieces: &[&str]) -> Option<String> {
        let mut escape = Escape::new();
        let mut all = Vec::new();
        for piece in pieces {
            all.extend(escape.pass(piece.as_bytes())?);
        }
        Some(String::from_utf8(all).unwrap())
    }

    #[test]
    fn tilde_dot_at_the_beginning_of_a_line_is_the_way_out() {
        assert_eq!(passed(&["~."]), None);
        assert_eq!(passed(&["ls\r", "~", "."]), None);
        assert_eq!(passed(&["\u{3}~."]), None);
    }

    #[test]
    fn elsewhere_it_is_for_the_guest() {
        assert_eq!(passed(&["ls ~.\r"]).as_deref(), Some("ls ~.\r"));
        assert_eq!(passed(&["~/x\r"]).as_deref(), Some("~/x\r"));
        assert_eq!(passed(&["~", "\r"]).as_deref(), Some("~\r"));
    }

    #[test]
    fn two_tildes_are_one() {
        assert_eq!(passed(&["~~."]).as_deref(), Some("~."));
    }

    #[test]
    fn a_terminal_that_the_guest_does_not_know_is_called_by_a_name_that_it_does() {
        assert_eq!(kind("tmux-256color"), "tmux-256color");
        assert_eq!(kind("xterm-kitty"), "xterm-256color");
        assert_eq!(kind("alacritty"), "xterm-256color");
        assert_eq!(kind(""), "xterm-256color");
    }
}
