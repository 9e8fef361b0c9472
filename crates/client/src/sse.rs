//! Server-sent events: the text of one response, cut into events.

use std::collections::VecDeque;

/// An event longer than this is not one of ours: output comes in pieces of at most 64 KiB.
const MAX_EVENT: usize = 4 << 20;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Event {
    /// Empty where the server gave none.
    pub(crate) name: String,
    pub(crate) data: String,
}

/// The stream is not one of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("an event is longer than 4 MiB")]
    TooLong,
    #[error("an event is not UTF-8")]
    NotText,
}

/// Takes bytes in any pieces and gives events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    /// The line before ended in CR, so that an LF that follows belongs to it.
    after_cr: bool,
    begun: Event,
    /// Whether `begun` has data: an empty line without is no event.
    some: bool,
    ready: VecDeque<Event>,
}

impl Parser {
    /// The next event that is complete.
    pub(crate) fn next(&mut self) -> Option<Event> {
        self.ready.pop_front()
    }

    /// Takes the next bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        for &byte in bytes {
            match byte {
                b'\n' if std::mem::take(&mut self.after_cr) => {}
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    let line = std::mem::take(&mut self.line);
                    self.end_line(&line)?;
                }
                _ => {
                    self.after_cr = false;
                    if self.line.len() + self.begun.data.len() >= MAX_EVENT {
                        return Err(Malformed::TooLong);
                    }
                    self.line.push(byte);
                }
            }
        }
        Ok(())
    }

    fn end_line(&mut self, line: &[u8]) -> Result<(), Malformed> {
        let line = str::from_utf8(line).map_err(|_| Malformed::NotText)?;
        if line.is_empty() {
            let event = std::mem::take(&mut self.begun);
            if std::mem::take(&mut self.some) {
                self.ready.push_back(event);
            }
            return Ok(());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.begun.name),
            "data" => {
                if self.some {
                    self.begun.data.push('\n');
                }
                self.some = true;
                self.begun.data.push_str(value);
            }
            // Comments keep the connection alive; ids are in the data.
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events(text: &[u8], piece: usize) -> Vec<(String, String)> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for piece in text.chunks(piece.max(1)) {
            parser.push(piece).unwrap();
            events.extend(std::iter::from_fn(|| parser.next()).map(|e| (e.name, e.data)));
        }
        events
    }

    fn pair(name: &str, data: &str) -> (String, String) {
        (name.into(), data.into())
    }

    #[test]
    fn an_event_has_a_name_and_data() {
        let text = b"event: exit\ndata: {\"a\":1}\n\n: alive\n\ndata:x\n\n";
        assert_eq!(events(text, 100), [pair("exit", "{\"a\":1}"), pair("", "x")]);
    }

    #[test]
    fn lines_of_data_are_joined() {
        assert_eq!(events(b"data: a\ndata\ndata: b\n\n", 100), [pair("", "a\n\nb")]);
    }

    #[test]
    fn every_line_end_of_the_specification_ends_a_line() {
        for end in ["\n", "\r", "\r\n"] {
            let text = format!("event: e{end}data: a{end}{end}data: b{end}{end}");
            assert_eq!(events(text.as_bytes(), 1), [pair("e", "a"), pair("", "b")], "{end:?}");
        }
    }

    #[test]
    fn an_event_that_was_cut_off_is_none() {
        assert_eq!(events(b"event: e\ndata: a\n", 3), []);
    }

    #[test]
    fn what_has_no_end_is_refused() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; 1 << 20];
        let refused = (0..5).find_map(|_| parser.push(&piece).err());
        assert_eq!(refused, Some(Malformed::TooLong));
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            text in "((event|data|id|x)?:? ?[a-c]{0,3}(\r|\n|\r\n)){0,20}",
            piece in 1_usize..7,
        ) {
            prop_assert_eq!(events(text.as_bytes(), piece), events(text.as_bytes(), 1 << 16));
        }
    }
}
