//! The conversation with one host at a time.

use wire::connection::{Connection, Event, Side, TYPICAL_READ};
use wire::handshake::{Hello, NONCE, Scanner, knock};
use zeroize::Zeroizing;

use crate::carrier::{Carrier, Received};

/// Bytes read before other events get their turn.
const READ_TURN: usize = 4 * TYPICAL_READ;
/// Bytes encoded ahead of the carrier.
const WRITE_AHEAD: usize = 256 << 10;

/// The carrier and what is spoken on it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) carrier: Carrier,
    state: State,
    out: Zeroizing<Vec<u8>>,
    /// How much of `out` the carrier has taken.
    taken: usize,
    buffer: Box<[u8]>,
    /// The carrier is watched by edges, so this side remembers what it left undone.
    readable: bool,
    writable: bool,
}

#[derive(Debug)]
enum State {
    /// No host yet.
    Waiting(Scanner),
    Open {
        connection: Box<Connection>,
        nonce: [u8; NONCE],
    },
}

/// What reading led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Events may be waiting.
    Same,
    /// The host that was there is gone; all that was done for it alone ends.
    Lost,
}

impl Session {
    pub(crate) fn new(carrier: Carrier) -> Self {
        Self {
            carrier,
            state: State::Waiting(Scanner::any()),
            out: Zeroizing::default(),
            taken: 0,
            buffer: vec![0; TYPICAL_READ].into_boxed_slice(),
            readable: true,
            writable: true,
        }
    }

    /// The carrier said that something changed.
    pub(crate) fn woken(&mut self) {
        self.readable = true;
        self.writable = true;
    }

    /// Whether there is more to do without waiting.
    pub(crate) fn is_busy(&self) -> bool {
        self.readable
    }

    pub(crate) fn connection(&mut self) -> Option<&mut Connection> {
        match &mut self.state {
            State::Open { connection, .. } => Some(connection),
            State::Waiting(_) => None,
        }
    }

    pub(crate) fn next_event(&mut self) -> Option<Event> {
        self.connection()?.poll_event()
    }

    /// Takes the other host that waits at the listener.
    pub(crate) fn accept(&mut self) -> Turn {
        if self.carrier.accept().unwrap_or(false) {
            self.woken();
            return self.lose();
        }
        Turn::Same
    }

    /// Reads one chunk. `sequence` is what a new host has to go on from.
    pub(crate) fn receive(&mut self, sequence: u64) -> Turn {
        let mut total = 0;
        while self.readable && total < READ_TURN {
            let mut buffer = std::mem::take(&mut self.buffer);
            let received = self.carrier.read(&mut buffer);
            let turn = match received {
                Received::Bytes(count) => {
                    total += count;
                    self.take(&buffer[..count], sequence)
                }
                Received::Nothing => {
                    self.readable = false;
                    Turn::Same
                }
                Received::Gone => {
                    self.readable = false;
                    self.carrier.hang_up();
                    self.lose()
                }
            };
            // Arguments with secrets passed through here.
            if let Received::Bytes(count) = received {
                wire::text::wipe(&mut buffer[..count]);
            }
            self.buffer = buffer;
            if turn == Turn::Lost {
                return turn;
            }
        }
        Turn::Same
    }

    fn take(&mut self, bytes: &[u8], sequence: u64) -> Turn {
        if let State::Open { connection, .. } = &mut self.state {
            if connection.receive(bytes).is_ok() {
                return Turn::Same;
            }
            // Not the frames of the host that was here: perhaps another's knock.
            self.lose();
            self.scan(bytes, sequence);
            return Turn::Lost;
        }
        self.scan(bytes, sequence);
        Turn::Same
    }

    fn scan(&mut self, bytes: &[u8], sequence: u64) {
        let State::Waiting(scanner) = &mut self.state else { return };
        let Some((nonce, used)) = scanner.scan(bytes) else { return };
        self.greet(nonce, sequence);
        if let State::Open { connection, .. } = &mut self.state
            && connection.receive(&bytes[used..]).is_err()
        {
            self.lose();
        }
    }

    fn greet(&mut self, nonce: [u8; NONCE], sequence: u64) {
        let hello = Hello::new(env!("CARGO_PKG_VERSION"), sequence);
        let hello = serde_json::to_vec(&hello).expect("a hello is plain JSON");
        let connection = Box::new(Connection::new(Side::Agent, hello));
        self.state = State::Open { connection, nonce };
        self.out = Zeroizing::new(knock(&nonce));
        self.taken = 0;
    }

    /// A knock among the frames: of the host that is here, or of one that took over.
    pub(crate) fn knocked(&mut self, with: [u8; NONCE], sequence: u64) -> Turn {
        match &self.state {
            State::Open { nonce, .. } if *nonce == with => Turn::Same,
            _ => {
                self.lose();
                self.greet(with, sequence);
                Turn::Lost
            }
        }
    }

    fn lose(&mut self) -> Turn {
        self.out = Zeroizing::default();
        self.taken = 0;
        match std::mem::replace(&mut self.state, State::Waiting(Scanner::any())) {
            State::Open { .. } => Turn::Lost,
            State::Waiting(_) => Turn::Same,
        }
    }

    /// Hands the carrier what it takes.
    pub(crate) fn flush(&mut self) {
        while self.writable {
            if self.taken == self.out.len() {
                self.out.clear();
                self.taken = 0;
                let State::Open { connection, .. } = &mut self.state else { return };
                connection.transmit(&mut self.out, WRITE_AHEAD);
                if self.out.is_empty() {
                    return;
                }
            }
            let count = self.carrier.write(&self.out[self.taken..]);
            self.taken += count;
            self.writable = self.taken == self.out.len();
        }
    }

    /// Whether all that was said has left.
    pub(crate) fn is_flushed(&mut self) -> bool {
        self.taken == self.out.len()
            && self.connection().is_none_or(|connection| !connection.wants_transmit())
    }
}
