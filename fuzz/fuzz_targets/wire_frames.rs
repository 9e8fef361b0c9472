//! The connection, twice: one end against a peer that keeps no rule, which must neither panic nor
//! be made to hold more than it says; and two ends with each other, between which everything must
//! arrive, whole and in order, however the bytes are cut.
#![no_main]

use std::collections::BTreeMap;

use fuzz::choices::Choices;
use libfuzzer_sys::fuzz_target;
use wire::connection::{Connection, Event, MAX_STREAMS, ProtocolError, Side, WINDOW, cancelled};
use wire::frame::{Decoder, Frame, FrameError, MAX_DATA, StreamId};
use wire::op::{ErrorCode, OpError};
use zeroize::Zeroizing;

/// Bytes that one input may move, so that none takes long.
const BUDGET: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices::new(data);
    match choices.of(2) {
        0 => Alone::new(*choices.pick(&[Side::Host, Side::Agent])).play(&mut choices),
        _ => Pair::new().play(&mut choices),
    }
});

fn refusal() -> OpError {
    OpError::new(ErrorCode::Invalid, "refused")
}

// --- one end --------------------------------------------------------------

struct Alone {
    connection: Connection,
    side: Side,
    /// What arrived on a stream and was not consumed.
    unread: BTreeMap<StreamId, usize>,
    /// Control frames that this end made without being asked by the peer, since the last transmit.
    own: usize,
    budget: usize,
}

/// `MAX_PENDING_CONTROL`, one more that is made before it is counted, and what came with it.
const ANSWERS: usize = 4 * MAX_STREAMS + 1;

impl Alone {
    fn new(side: Side) -> Self {
        let connection = Connection::new(side, b"{}".to_vec());
        Self { connection, side, unread: BTreeMap::new(), own: 1, budget: BUDGET }
    }

    fn play(mut self, choices: &mut Choices<'_>) {
        let refuses = choices.of(2) == 0;
        while !choices.is_empty() && self.budget > 0 {
            let bytes = match choices.byte() {
                0..64 => {
                    let length = choices.of(96);
                    choices.take(length).to_vec()
                }
                64..192 => self.frames(choices),
                _ => {
                    self.call(choices);
                    continue;
                }
            };
            let cut = choices.length() + 1;
            for part in bytes.chunks(cut) {
                if self.connection.receive(part).is_err() {
                    return;
                }
                self.hear(refuses);
            }
            self.budget = self.budget.saturating_sub(bytes.len() + 1);
        }
        self.transmit(usize::MAX);
    }

    /// A frame as the protocol has them, some times over.
    fn frames(&self, choices: &mut Choices<'_>) -> Vec<u8> {
        let kind = choices.of(8);
        let id = u32::from(choices.byte());
        let times = match choices.byte() {
            few @ ..0xe0 => usize::from(few & 7) + 1,
            _ => choices.word() % 2048 + 1,
        };
        let length = (choices.length() % MAX_DATA) + 1;
        let length = length.min(self.budget / times + 1);
        let body = || vec![b'x'; length];
        let mut bytes = Vec::new();
        for time in 0..times {
            let next = id + 2 * u32::try_from(time).expect("few");
            let frame = match kind {
                0 => Frame::Open(next, Zeroizing::new(b"{}".to_vec())),
                1 => Frame::Data(id, body()),
                2 => Frame::Credit(id, u32::try_from(length).expect("small")),
                3 => Frame::Close(id, b"{}".to_vec()),
                4 => Frame::Reset(next, serde_json::to_vec(&refusal()).expect("plain")),
                5 => Frame::Ping(time as u64),
                6 => Frame::Knock([id.to_le_bytes()[0]; 16]),
                _ => Frame::Hello(b"{}".to_vec()),
            };
            // Zero is no stream: such a frame must be refused, too.
            bytes.extend_from_slice(&frame.encode());
        }
        bytes
    }

    fn call(&mut self, choices: &mut Choices<'_>) {
        let id = u32::from(choices.byte());
        match choices.of(8) {
            0 => {
                if let Ok(id) = self.connection.open(Zeroizing::new(b"{}".to_vec())) {
                    self.unread.insert(id, 0);
                    self.own += 1;
                }
            }
            1 => {
                let length = choices.length().min(self.connection.room(id));
                self.connection.send(id, vec![b'y'; length]);
            }
            2 => self.connection.close(id, b"{}".to_vec()),
            3 => {
                self.connection.reset(id, &refusal());
                self.unread.remove(&id);
                self.own += 1;
            }
            4 => {
                self.connection.ping(7);
                self.own += 1;
            }
            5 => {
                let length = choices.length();
                // A stream that is not there has nothing unread, and is not to be made up here.
                let some = self.unread.get_mut(&id).map_or(0, |unread| {
                    let some = length.min(*unread);
                    *unread -= some;
                    some
                });
                self.connection.consumed(id, some);
            }
            6 => {
                self.connection.abandon(id);
                self.unread.remove(&id);
                self.own += 1;
            }
            _ => {
                let enough = choices.length();
                self.transmit(if enough == 0 { usize::MAX } else { enough });
            }
        }
    }

    fn hear(&mut self, refuses: bool) {
        while let Some(event) = self.connection.poll_event() {
            match event {
                Event::Opened(id, _) if refuses => self.connection.reset(id, &refusal()),
                Event::Opened(id, _) => {
                    let fresh = self.unread.insert(id, 0);
                    assert!(fresh.is_none(), "stream {id} was opened twice");
                }
                Event::Data(id, bytes) => {
                    let unread = self.unread.entry(id).or_default();
                    *unread += bytes.len();
                    assert!(*unread <= WINDOW, "{unread} bytes of stream {id} are held");
                }
                Event::Reset(id, _) => {
                    self.unread.remove(&id);
                }
                Event::Hello(_)
                | Event::Closed(..)
                | Event::Writable(_)
                | Event::Pong(_)
                | Event::Knock(_) => {}
            }
        }
    }

    /// What waits is bounded, whatever the peer did; and it is frames.
    fn transmit(&mut self, enough: usize) {
        let mut out = Zeroizing::default();
        self.connection.transmit(&mut out, enough);
        let mut answers = 0;
        Decoder::default()
            .feed::<FrameError>(&out, |frame| {
                answers += usize::from(!matches!(frame, Frame::Data(..) | Frame::Close(..)));
                Ok(())
            })
            .expect("what is sent can be received");
        assert!(
            answers <= ANSWERS + self.own,
            "{answers} control frames waited for a peer that does not read, {} of them asked for \
             by {:?} itself",
            self.own,
            self.side
        );
        if enough == usize::MAX {
            assert!(!self.connection.wants_transmit());
            self.own = 0;
        }
    }
}

// --- two ends -------------------------------------------------------------

/// One direction of one stream.
#[derive(Default)]
struct Flow {
    sent: usize,
    received: usize,
    unread: usize,
    closed: Option<Vec<u8>>,
    end: Option<Vec<u8>>,
}

impl Flow {
    /// The byte at an offset: neither lost, doubled nor swapped ones go unseen.
    fn byte(id: StreamId, from: usize, offset: usize) -> u8 {
        let mixed = (offset as u64 + u64::from(id) * 7919 + from as u64 * 104_729)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed.to_le_bytes()[7]
    }
}

struct End {
    connection: Connection,
    /// Bytes from this end that the other did not get yet.
    wire: Vec<u8>,
}

struct Pair {
    ends: [End; 2],
    /// By stream and sender.
    flows: BTreeMap<(StreamId, usize), Flow>,
    /// Streams that one end has reset: what is under way on them is lost, rightly.
    reset: BTreeMap<StreamId, ()>,
    budget: usize,
}

impl Pair {
    fn new() -> Self {
        let end =
            |side| End { connection: Connection::new(side, b"{}".to_vec()), wire: Vec::new() };
        Self {
            ends: [end(Side::Host), end(Side::Agent)],
            flows: BTreeMap::new(),
            reset: BTreeMap::new(),
            budget: BUDGET,
        }
    }

    fn play(mut self, choices: &mut Choices<'_>) {
        for _ in 0..2_000 {
            if choices.is_empty() || self.budget == 0 {
                break;
            }
            let from = choices.of(2);
            let id = u32::from(choices.byte() & 7);
            let done = match choices.of(8) {
                0 => {
                    self.open(from);
                    Ok(())
                }
                1 => {
                    self.send(from, id, choices.length());
                    Ok(())
                }
                2 => {
                    self.close(from, id, choices.length());
                    Ok(())
                }
                3 => {
                    self.ends[from].connection.reset(id, &refusal());
                    self.reset.insert(id, ());
                    Ok(())
                }
                4 => {
                    self.consume(from, id, choices.length());
                    Ok(())
                }
                5 => {
                    self.transmit(from, choices.length());
                    Ok(())
                }
                6 => {
                    self.ends[from].connection.abandon(id);
                    self.reset.insert(id, ());
                    Ok(())
                }
                _ => {
                    let (most, cut) = (choices.length(), choices.length() + 1);
                    self.deliver(from, most, cut)
                }
            };
            match done {
                Ok(()) => {}
                // Two thousand calls without reading can come to that.
                Err(ProtocolError::Unread) => return,
                Err(error) => panic!("an honest peer is blamed: {error}"),
            }
        }
        self.finish();
    }

    fn open(&mut self, from: usize) {
        if let Ok(id) = self.ends[from].connection.open(Zeroizing::new(b"{}".to_vec())) {
            self.flows.insert((id, from), Flow::default());
            self.flows.insert((id, 1 - from), Flow::default());
        }
    }

    fn send(&mut self, from: usize, id: StreamId, length: usize) {
        let connection = &mut self.ends[from].connection;
        let length = length.min(connection.room(id)).min(self.budget);
        if !connection.is_writable(id) {
            assert_eq!(length, 0);
            return;
        }
        let flow = self.flows.get_mut(&(id, from)).expect("a writable stream was opened");
        let bytes = (flow.sent..flow.sent + length).map(|at| Flow::byte(id, from, at)).collect();
        connection.send(id, bytes);
        flow.sent += length;
        self.budget -= length;
    }

    fn close(&mut self, from: usize, id: StreamId, length: usize) {
        if self.ends[from].connection.is_writable(id) {
            let payload = vec![b'z'; length];
            let flow = self.flows.get_mut(&(id, from)).expect("a writable stream was opened");
            flow.closed = Some(payload.clone());
            self.ends[from].connection.close(id, payload);
            assert!(!self.ends[from].connection.is_writable(id));
        }
    }

    fn consume(&mut self, at: usize, id: StreamId, most: usize) {
        if let Some(flow) = self.flows.get_mut(&(id, 1 - at)) {
            let some = most.min(flow.unread);
            flow.unread -= some;
            self.ends[at].connection.consumed(id, some);
        }
    }

    fn transmit(&mut self, from: usize, enough: usize) {
        let End { connection, wire } = &mut self.ends[from];
        let mut out = Zeroizing::default();
        connection.transmit(&mut out, enough);
        wire.extend_from_slice(&out);
    }

    /// Hands on what is under way from one end, in pieces.
    fn deliver(&mut self, from: usize, most: usize, cut: usize) -> Result<(), ProtocolError> {
        let wire = &mut self.ends[from].wire;
        let bytes: Vec<u8> = wire.drain(..most.min(wire.len())).collect();
        for part in bytes.chunks(cut) {
            self.ends[1 - from].connection.receive(part)?;
            self.hear(1 - from);
        }
        Ok(())
    }

    fn hear(&mut self, at: usize) {
        let from = 1 - at;
        while let Some(event) = self.ends[at].connection.poll_event() {
            match event {
                Event::Data(id, bytes) => {
                    let flow = self.flows.get_mut(&(id, from)).expect("it was opened");
                    for (offset, byte) in (flow.received..).zip(&bytes) {
                        assert_eq!(*byte, Flow::byte(id, from, offset), "stream {id} at {offset}");
                    }
                    assert!(flow.end.is_none(), "data behind the end of stream {id}");
                    flow.received += bytes.len();
                    flow.unread += bytes.len();
                    assert!(flow.received <= flow.sent && flow.unread <= WINDOW);
                }
                Event::Closed(id, payload) => {
                    let flow = self.flows.get_mut(&(id, from)).expect("it was opened");
                    assert_eq!(flow.received, flow.sent, "stream {id} ended early");
                    assert_eq!(flow.closed.as_ref(), Some(&payload));
                    assert!(flow.end.replace(payload).is_none(), "stream {id} ended twice");
                }
                Event::Opened(id, payload) => {
                    assert!(self.flows.contains_key(&(id, from)) && *payload == b"{}");
                }
                Event::Reset(id, error) => {
                    assert!(self.reset.contains_key(&id));
                    assert!([refusal(), cancelled()].contains(&error));
                }
                Event::Writable(id) => assert!(self.ends[at].connection.room(id) > 0),
                Event::Hello(hello) => assert_eq!(hello, b"{}"),
                Event::Pong(_) | Event::Knock(_) => panic!("nobody did that: {event:?}"),
            }
        }
    }

    /// Once both read all that comes, everything arrives.
    fn finish(mut self) {
        loop {
            let mut quiet = true;
            for from in [0, 1] {
                self.transmit(from, usize::MAX);
                quiet &= self.ends[from].wire.is_empty();
                if let Err(error) = self.deliver(from, usize::MAX, usize::MAX) {
                    assert_eq!(error, ProtocolError::Unread, "an honest peer is blamed");
                    return;
                }
                let ids: Vec<StreamId> = self.flows.keys().map(|(id, _)| *id).collect();
                for id in ids {
                    self.consume(1 - from, id, usize::MAX);
                }
            }
            if quiet {
                break;
            }
        }
        for ((id, _), flow) in &self.flows {
            if !self.reset.contains_key(id) {
                assert_eq!(flow.received, flow.sent, "stream {id} did not arrive as a whole");
                assert_eq!(flow.end, flow.closed, "the end of stream {id} did not arrive");
            }
        }
    }
}
