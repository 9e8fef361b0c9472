//! Makes a guest's output harmless to the terminal that shows it.
//!
//! A terminal obeys what it is sent: it sets titles, fills the clipboard, moves over what was
//! printed before, and answers queries as if the user had typed. Output that goes to a terminal
//! without `-t` keeps colours, tabs and line ends; every other control becomes visible text, as
//! `cat -v` would show it. Text, in whatever script, passes.

use std::mem;

/// An SGR sequence that sets every attribute there is has fewer bytes.
const MAX_SEQUENCE: usize = 64;

const RESET: &[u8] = b"\x1b[0m";

/// What may pass besides text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Allow {
    /// Colours, and erasing to the end of the line, which colouring programs send with them.
    Colours,
    /// Line ends and tabs only.
    Layout,
}

/// The state between two pieces of output.
#[derive(Debug)]
pub(crate) struct Filter {
    allow: Allow,
    /// The beginning of an escape sequence or of a UTF-8 character.
    held: Vec<u8>,
    /// An attribute was set that the user's next prompt should not have.
    coloured: bool,
}

impl Filter {
    /// For a command's output on a terminal.
    pub(crate) fn for_output() -> Self {
        Self { allow: Allow::Colours, held: Vec::new(), coloured: false }
    }

    /// Appends what may be shown of `input` to `out`.
    pub(crate) fn push(&mut self, input: &[u8], out: &mut Vec<u8>) {
        for &byte in input {
            if !self.held.is_empty() && self.hold(byte, out) {
                continue;
            }
            self.begin(byte, out);
        }
    }

    /// Appends what was held back, and ends the colours.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        self.release(out);
        if mem::take(&mut self.coloured) {
            out.extend_from_slice(RESET);
        }
    }

    /// A byte that nothing is held before.
    fn begin(&mut self, byte: u8, out: &mut Vec<u8>) {
        match byte {
            b'\t' | b'\n' | b'\r' | 0x20..=0x7e => out.push(byte),
            0x1b if self.allow == Allow::Colours => self.held.push(byte),
            // The leading bytes that UTF-8 has.
            0xc2..=0xf4 => self.held.push(byte),
            _ => show(byte, out),
        }
    }

    /// A byte behind what is held; whether it was used.
    fn hold(&mut self, byte: u8, out: &mut Vec<u8>) -> bool {
        if self.held[0] == 0x1b { self.sequence(byte, out) } else { self.character(byte, out) }
    }

    fn sequence(&mut self, byte: u8, out: &mut Vec<u8>) -> bool {
        match (self.held.len(), byte) {
            (1, b'[') => self.held.push(byte),
            (2..MAX_SEQUENCE, b'0'..=b'9' | b';' | b':') => self.held.push(byte),
            (2..=MAX_SEQUENCE, b'm') => {
                self.coloured = !matches!(self.held[2..], [] | [b'0']);
                self.held.push(byte);
                out.append(&mut self.held);
            }
            (2..=MAX_SEQUENCE, b'K') => {
                self.held.push(byte);
                out.append(&mut self.held);
            }
            _ => {
                self.release(out);
                return false;
            }
        }
        true
    }

    fn character(&mut self, byte: u8, out: &mut Vec<u8>) -> bool {
        self.held.push(byte);
        match str::from_utf8(&self.held) {
            Ok(text) => {
                // U+0080 to U+009F are control sequences in one character.
                if text.chars().any(char::is_control) {
                    self.release(out);
                } else {
                    out.append(&mut self.held);
                }
                true
            }
            // Incomplete so far.
            Err(error) if error.error_len().is_none() => true,
            Err(_) => {
                self.held.pop();
                self.release(out);
                false
            }
        }
    }

    /// Shows what was held instead of obeying it.
    fn release(&mut self, out: &mut Vec<u8>) {
        for byte in mem::take(&mut self.held) {
            match byte {
                0x20..=0x7e => out.push(byte),
                _ => show(byte, out),
            }
        }
    }
}

/// `^[` for escape, `^?` for delete, `\x9b` for bytes beyond ASCII.
fn show(byte: u8, out: &mut Vec<u8>) {
    if byte.is_ascii() {
        out.extend_from_slice(&[b'^', byte ^ 0x40]);
    } else {
        out.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
    }
}

/// Text from a guest or a file name, for one of our own messages: lines and tabs stay.
pub(crate) fn plain(text: &str) -> String {
    let mut filter = Filter { allow: Allow::Layout, held: Vec::new(), coloured: false };
    let mut out = Vec::with_capacity(text.len());
    filter.push(text.as_bytes(), &mut out);
    filter.finish(&mut out);
    String::from_utf8_lossy(&out).replace('\r', "^M")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filtered(input: &[u8]) -> Vec<u8> {
        let mut filter = Filter::for_output();
        let mut out = Vec::new();
        filter.push(input, &mut out);
        filter.finish(&mut out);
        out
    }

    fn shown(input: &[u8]) -> String {
        String::from_utf8(filtered(input)).unwrap()
    }

    #[test]
    fn text_of_any_script_passes() {
        let text = "plain\tText\r\nнаивный 日本語 🦀 e\u{301}\n";
        assert_eq!(shown(text.as_bytes()), text);
    }

    #[test]
    fn colours_pass() {
        let text = "\x1b[1;38;5;208mwarm\x1b[0m \x1b[38:2::1:2:3mx\x1b[m\x1b[K";
        assert_eq!(shown(text.as_bytes()), text);
    }

    #[test]
    fn colours_end_with_the_output() {
        assert_eq!(shown(b"\x1b[8mhidden"), "\x1b[8mhidden\x1b[0m");
    }

    #[test]
    fn a_title_is_shown_and_not_set() {
        assert_eq!(shown(b"\x1b]0;title\x07"), "^[]0;title^G");
    }

    #[test]
    fn the_clipboard_is_not_written() {
        assert_eq!(shown(b"\x1b]52;c;cm0=\x1b\\"), "^[]52;c;cm0=^[\\");
    }

    #[test]
    fn queries_that_the_terminal_answers_are_shown() {
        assert_eq!(shown(b"\x1b[6n\x1b[c\x1bP$q\"p\x1b\\\x05"), "^[[6n^[[c^[P$q\"p^[\\^E");
    }

    #[test]
    fn the_screen_is_neither_cleared_nor_moved_over() {
        assert_eq!(shown(b"\x1b[2J\x1b[1A\x1bc\x08\x7f"), "^[[2J^[[1A^[c^H^?");
    }

    #[test]
    fn controls_beyond_ascii_are_shown() {
        assert_eq!(shown("a\u{9b}31mb".as_bytes()), "a\\xc2\\x9b31mb");
        assert_eq!(shown(b"a\x9b31mb"), "a\\x9b31mb");
    }

    #[test]
    fn what_is_not_utf8_is_shown() {
        assert_eq!(shown(b"\xff\xc3(\xf0\x9f\xa6"), "\\xff\\xc3(\\xf0\\x9f\\xa6");
        assert_eq!(shown(b"\xe2\x1b[31mx"), "\\xe2\x1b[31mx\x1b[0m");
    }

    #[test]
    fn a_private_parameter_is_no_colour() {
        assert_eq!(shown(b"\x1b[?25l\x1b[>4;2m"), "^[[?25l^[[>4;2m");
    }

    #[test]
    fn an_endless_sequence_is_not_held() {
        let mut long = b"\x1b[".to_vec();
        long.extend([b'1'; 1000]);
        let mut filter = Filter::for_output();
        let mut out = Vec::new();
        filter.push(&long, &mut out);
        assert!(out.len() >= 1000);
    }

    #[test]
    fn a_message_of_ours_keeps_no_colour() {
        assert_eq!(plain("a\x1b[31mb\r\nc"), "a^[[31mb^M\nc");
    }

    /// The bytes that decide, more often than chance would have them.
    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![
            any::<u8>(),
            prop::sample::select(b"\x1b\x1b[[]]mmK;:?0189\x07\xc2\x9b\xe2\x80".to_vec()),
        ];
        prop::collection::vec(byte, 0..200)
    }

    /// Whether a terminal would do nothing with it but show text and colours.
    fn harmless(output: &str) -> bool {
        let mut rest = output;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            match c {
                '\t' | '\n' | '\r' => {}
                '\x1b' => {
                    let Some(sequence) = rest.strip_prefix('[') else { return false };
                    let end = sequence
                        .trim_start_matches(|c: char| c.is_ascii_digit() || ";:".contains(c));
                    let Some(after) = end.strip_prefix(['m', 'K']) else { return false };
                    rest = after;
                }
                c if c.is_control() => return false,
                _ => {}
            }
        }
        true
    }

    proptest! {
        #[test]
        fn nothing_harmful_comes_out(input in hostile()) {
            let out = String::from_utf8(filtered(&input)).expect("UTF-8 only");
            prop_assert!(harmless(&out), "{:?}", out);
        }

        #[test]
        fn pieces_make_no_difference(input in hostile(), at in any::<prop::sample::Index>()) {
            let at = at.index(input.len() + 1);
            let mut filter = Filter::for_output();
            let mut out = Vec::new();
            filter.push(&input[..at], &mut out);
            filter.push(&input[at..], &mut out);
            filter.finish(&mut out);
            prop_assert_eq!(out, filtered(&input));
        }

        #[test]
        fn what_came_out_passes_again(input in hostile()) {
            let once = filtered(&input);
            prop_assert_eq!(filtered(&once), once);
        }

        #[test]
        fn text_without_controls_is_unchanged(text in "\\PC*") {
            prop_assert_eq!(shown(text.as_bytes()), text);
        }
    }
}
