//! Asking a person for what must not be seen.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};

use rustix::termios::{self, OptionalActions, Termios};
use wire::text::Secret;
use zeroize::Zeroizing;

/// Longest answer, in bytes.
const MAX_ANSWER: usize = 64 << 10;

/// The terminal that this process belongs to, whatever its streams are, with keys unseen until this
/// is dropped. Ctrl-C is a key too, so that the terminal is never left so.
struct Unseen {
    terminal: File,
    before: Termios,
}

impl Unseen {
    fn enter() -> io::Result<Self> {
        let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
        let before = termios::tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&terminal, OptionalActions::Flush, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that refuses, or is gone.
        let _ = termios::tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
        let _ = self.terminal.write_all(b"\n");
    }
}

/// Asks on the terminal for one line, of which nothing is shown.
///
/// # Errors
/// There is no terminal, or the user does not want to answer (`Interrupted`).
pub(crate) fn secret(question: &str) -> io::Result<Secret> {
    let mut unseen = Unseen::enter()?;
    write!(unseen.terminal, "{question}: ")?;
    let mut line = Line::default();
    let mut key = [0];
    loop {
        if unseen.terminal.read(&mut key)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.press(key[0]) {
            Pressed::More => {}
            Pressed::Done => break,
            Pressed::GivenUp => return Err(io::ErrorKind::Interrupted.into()),
        }
    }
    Secret::new(std::mem::take(&mut *line.0)).map_err(io::Error::other)
}

/// What was typed so far.
struct Line(Zeroizing<Vec<u8>>);

impl Default for Line {
    fn default() -> Self {
        // Of the whole length at once: a vector that grows leaves copies behind.
        Self(Zeroizing::new(Vec::with_capacity(MAX_ANSWER)))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Pressed {
    More,
    Done,
    GivenUp,
}

impl Line {
    fn press(&mut self, key: u8) -> Pressed {
        const INTERRUPT: u8 = 3;
        const END: u8 = 4;
        const KILL: u8 = 21;
        match key {
            b'\r' | b'\n' => return Pressed::Done,
            END if self.0.is_empty() => return Pressed::GivenUp,
            END => return Pressed::Done,
            INTERRUPT => return Pressed::GivenUp,
            KILL => self.0.clear(),
            // Backspace takes away a whole character.
            8 | 127 => while self.0.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
            key if self.0.len() < MAX_ANSWER => self.0.push(key),
            _ => {}
        }
        Pressed::More
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[u8]) -> (Vec<u8>, Pressed) {
        let mut line = Line::default();
        let last = keys.iter().map(|&key| line.press(key)).last().unwrap();
        (line.0.to_vec(), last)
    }

    #[test]
    fn a_line_is_what_was_typed_without_what_was_taken_back() {
        assert_eq!(typed(b"abc\r"), (b"abc".to_vec(), Pressed::Done));
        assert_eq!(typed("aä\x7fb\r".as_bytes()), (b"ab".to_vec(), Pressed::Done));
        assert_eq!(typed(b"abc\x15d\n"), (b"d".to_vec(), Pressed::Done));
        assert_eq!(typed(b"\x7f\x7fx"), (b"x".to_vec(), Pressed::More));
    }

    #[test]
    fn ctrl_c_gives_up_and_so_does_an_end_without_a_beginning() {
        assert_eq!(typed(b"abc\x03").1, Pressed::GivenUp);
        assert_eq!(typed(b"\x04").1, Pressed::GivenUp);
        assert_eq!(typed(b"a\x04").1, Pressed::Done);
    }
}
