//! One connection as a pure state machine: bytes in, events out; calls in, bytes out.
//!
//! Every stream has, in each direction, a window of [`WINDOW`] bytes. A sender stops when the
//! window is used up, and the receiver reopens it as its own reader consumes. So a slow reader
//! holds up its own stream alone, and what a hostile peer can make this side hold is bounded
//! by [`MAX_STREAMS`] windows. Streams with something to send take turns, one frame each.

use std::collections::{BTreeMap, VecDeque};

use zeroize::Zeroizing;

use crate::frame::{
    self, Decoder, Frame, FrameError, MAX_CLOSE, MAX_DATA, MAX_RESET, StreamId, encode_data,
};
use crate::op::{ErrorCode, OpError};

/// Bytes that may be under way on a stream in one direction. At 0.1 ms a round trip this
/// allows 2.5 GB/s; the largest window that is held for nothing is what a stream may cost.
pub const WINDOW: usize = 256 << 10;
/// Streams that either side may have open at once. 64 MiB of windows at most.
pub const MAX_STREAMS: usize = 256;
/// Control frames that may wait to be sent, and turns to send on streams of which some are over.
/// Only a peer that asks and never reads gets there.
const MAX_PENDING_CONTROL: usize = 4 * MAX_STREAMS;

/// Which end this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Opens odd streams.
    Host,
    /// Opens even streams.
    Agent,
}

/// What the peer did.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer's hello.
    Hello(Vec<u8>),
    /// The peer opened a stream and says what for.
    Opened(StreamId, Zeroizing<Vec<u8>>),
    /// Bytes of a stream. Once they are used, [`Connection::consumed`] makes room for more.
    Data(StreamId, Vec<u8>),
    /// The peer sends no more on this stream; its last word.
    Closed(StreamId, Vec<u8>),
    /// The peer ended the stream in both directions.
    Reset(StreamId, OpError),
    /// A stream that had no room left has some again.
    Writable(StreamId),
    /// The answer to a ping.
    Pong(u64),
    /// The peer knocks, again or anew: its nonce tells which.
    Knock([u8; frame::NONCE]),
}

impl Event {
    /// The stream that goes on or ends with it; none where one begins, or it is of no stream.
    pub fn stream(&self) -> Option<StreamId> {
        match self {
            Self::Data(id, _) | Self::Closed(id, _) | Self::Reset(id, _) | Self::Writable(id) => {
                Some(*id)
            }
            Self::Hello(_) | Self::Opened(..) | Self::Pong(_) | Self::Knock(_) => None,
        }
    }
}

/// The peer broke the protocol; the connection is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Bytes that are no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A stream number that the peer may not open, or not again.
    #[error("the peer opened stream {0}, which is not its next")]
    StreamNumber(StreamId),
    /// More than [`MAX_STREAMS`].
    #[error("the peer has more than {MAX_STREAMS} streams open")]
    TooManyStreams,
    /// A frame for a stream that was never opened.
    #[error("the peer spoke of stream {0}, which was never opened")]
    UnknownStream(StreamId),
    /// Bytes beyond the window, or after the end.
    #[error("the peer sent more on stream {0} than it may")]
    Overrun(StreamId),
    /// Credit beyond what was used.
    #[error("the peer granted more on stream {0} than was sent")]
    Overgrant(StreamId),
    /// The peer asks faster than it reads answers.
    #[error("the peer does not read the answers to its requests")]
    Unread,
    /// A reset without a readable reason.
    #[error("the peer reset stream {0} without a readable reason")]
    Reason(StreamId),
    /// A second hello.
    #[error("the peer said hello twice")]
    SecondHello,
}

/// A stream cannot be opened now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// [`MAX_STREAMS`] of this side are open.
    #[error("{MAX_STREAMS} operations are under way, which is the limit of one connection")]
    TooMany,
    /// Two thousand million streams were opened on this connection.
    #[error("the connection has used up its stream numbers; connect anew")]
    Exhausted,
}

#[derive(Debug)]
struct Stream {
    /// What may still be sent.
    credit: usize,
    /// What the peer may still send.
    window: usize,
    /// What was consumed and not granted yet.
    consumed: usize,
    pending: VecDeque<Vec<u8>>,
    pending_bytes: usize,
    /// Wants to be told of new room.
    blocked: bool,
    scheduled: bool,
    local: Half,
    remote_closed: bool,
    /// Nobody reads what still comes: once all was sent, the stream ends both ways.
    unread: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Half {
    Open,
    /// The close goes out behind the pending bytes.
    Closing(Vec<u8>),
    Closed,
}

impl Stream {
    fn new() -> Self {
        Self {
            credit: WINDOW,
            window: WINDOW,
            consumed: 0,
            pending: VecDeque::new(),
            pending_bytes: 0,
            blocked: false,
            scheduled: false,
            local: Half::Open,
            remote_closed: false,
            unread: false,
        }
    }

    fn room(&self) -> usize {
        match self.local {
            Half::Open => self.credit.saturating_sub(self.pending_bytes),
            Half::Closing(_) | Half::Closed => 0,
        }
    }

    fn has_work(&self) -> bool {
        (!self.pending.is_empty() && self.credit > 0)
            || (self.pending.is_empty() && matches!(self.local, Half::Closing(_)))
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct Connection {
    side: Side,
    decoder: Decoder,
    streams: BTreeMap<StreamId, Stream>,
    last_local: StreamId,
    last_remote: StreamId,
    /// Streams with something to send, in turn.
    turns: VecDeque<StreamId>,
    control: VecDeque<Zeroizing<Vec<u8>>>,
    events: VecDeque<Event>,
    greeted: bool,
}

impl Connection {
    /// A fresh connection of this side; `hello` is sent first.
    ///
    /// # Panics
    /// Where `hello` is longer than [`frame::MAX_HELLO`].
    pub fn new(side: Side, hello: Vec<u8>) -> Self {
        let mut connection = Self {
            side,
            decoder: Decoder::default(),
            streams: BTreeMap::new(),
            last_local: 0,
            last_remote: 0,
            turns: VecDeque::new(),
            control: VecDeque::new(),
            events: VecDeque::new(),
            greeted: false,
        };
        connection.control(&Frame::Hello(hello));
        connection
    }

    fn first(side: Side) -> StreamId {
        match side {
            Side::Host => 1,
            Side::Agent => 2,
        }
    }

    fn control(&mut self, frame: &Frame) {
        self.control.push_back(frame.encode());
    }

    /// Takes bytes from the carrier.
    ///
    /// # Errors
    /// `ProtocolError` after which the connection must be dropped.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), ProtocolError> {
        let mut decoder = std::mem::take(&mut self.decoder);
        decoder.feed(bytes, |frame| self.accept(frame))?;
        self.decoder = decoder;
        Ok(())
    }

    /// The next thing that the peer did.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn accept(&mut self, frame: Frame) -> Result<(), ProtocolError> {
        // These are answered: with a pong, a grant, a refusal, or a turn to send.
        let asks = matches!(frame, Frame::Open(..) | Frame::Data(..) | Frame::Ping(_));
        if asks && self.control.len().max(self.turns.len()) >= MAX_PENDING_CONTROL {
            return Err(ProtocolError::Unread);
        }
        match frame {
            Frame::Hello(_) if self.greeted => return Err(ProtocolError::SecondHello),
            Frame::Hello(body) => {
                self.greeted = true;
                self.events.push_back(Event::Hello(body));
            }
            Frame::Open(id, payload) => {
                let peer = match self.side {
                    Side::Host => Side::Agent,
                    Side::Agent => Side::Host,
                };
                if id % 2 != Self::first(peer) % 2 || id <= self.last_remote {
                    return Err(ProtocolError::StreamNumber(id));
                }
                if self.count(peer) >= MAX_STREAMS {
                    return Err(ProtocolError::TooManyStreams);
                }
                self.last_remote = id;
                self.streams.insert(id, Stream::new());
                self.events.push_back(Event::Opened(id, payload));
            }
            Frame::Data(id, bytes) => {
                let Some(stream) = self.known(id)? else { return Ok(()) };
                if stream.remote_closed || bytes.len() > stream.window {
                    return Err(ProtocolError::Overrun(id));
                }
                stream.window -= bytes.len();
                self.events.push_back(Event::Data(id, bytes));
            }
            Frame::Credit(id, amount) => {
                let Some(stream) = self.known(id)? else { return Ok(()) };
                let credit = stream.credit.saturating_add(amount as usize);
                if credit > WINDOW {
                    return Err(ProtocolError::Overgrant(id));
                }
                stream.credit = credit;
                let room = stream.room() > 0;
                if room && std::mem::take(&mut stream.blocked) {
                    self.events.push_back(Event::Writable(id));
                }
                self.schedule(id);
            }
            Frame::Close(id, payload) => {
                let Some(stream) = self.known(id)? else { return Ok(()) };
                if std::mem::replace(&mut stream.remote_closed, true) {
                    return Err(ProtocolError::Overrun(id));
                }
                self.events.push_back(Event::Closed(id, payload));
                self.forget_if_over(id);
            }
            Frame::Reset(id, reason) => {
                let Some(_) = self.known(id)? else { return Ok(()) };
                let error =
                    serde_json::from_slice(&reason).map_err(|_| ProtocolError::Reason(id))?;
                self.streams.remove(&id);
                self.events.push_back(Event::Reset(id, error));
            }
            Frame::Ping(token) => self.control(&Frame::Pong(token)),
            Frame::Pong(token) => self.events.push_back(Event::Pong(token)),
            Frame::Knock(nonce) => self.events.push_back(Event::Knock(nonce)),
        }
        Ok(())
    }

    fn count(&self, opened_by: Side) -> usize {
        self.streams.keys().filter(|id| *id % 2 == Self::first(opened_by) % 2).count()
    }

    /// The stream, or nothing where it is over and the peer could not know yet.
    fn known(&mut self, id: StreamId) -> Result<Option<&mut Stream>, ProtocolError> {
        let ours = id % 2 == Self::first(self.side) % 2;
        let last = if ours { self.last_local } else { self.last_remote };
        if id > last {
            return Err(ProtocolError::UnknownStream(id));
        }
        Ok(self.streams.get_mut(&id))
    }

    fn schedule(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.scheduled
            && stream.has_work()
        {
            stream.scheduled = true;
            self.turns.push_back(id);
        }
    }

    fn forget_if_over(&mut self, id: StreamId) {
        if self.streams.get(&id).is_some_and(|s| s.remote_closed && s.local == Half::Closed) {
            self.streams.remove(&id);
        }
    }

    /// Opens a stream; `payload` says what for.
    ///
    /// # Errors
    /// `OpenError` where no more can be open.
    ///
    /// # Panics
    /// Where `payload` is longer than [`frame::MAX_OPEN`].
    pub fn open(&mut self, payload: Zeroizing<Vec<u8>>) -> Result<StreamId, OpenError> {
        if self.count(self.side) >= MAX_STREAMS {
            return Err(OpenError::TooMany);
        }
        let id = match self.last_local {
            0 => Self::first(self.side),
            last => last.checked_add(2).ok_or(OpenError::Exhausted)?,
        };
        self.last_local = id;
        self.streams.insert(id, Stream::new());
        self.control(&Frame::Open(id, payload));
        Ok(id)
    }

    /// How many bytes [`Self::send`] would take now. Where it is 0, an [`Event::Writable`]
    /// will follow if the stream lives.
    pub fn room(&mut self, id: StreamId) -> usize {
        let Some(stream) = self.streams.get_mut(&id) else { return 0 };
        let room = stream.room();
        stream.blocked = room == 0;
        room
    }

    /// Whether the stream is there and this side may still send on it.
    pub fn is_writable(&self, id: StreamId) -> bool {
        self.streams.get(&id).is_some_and(|stream| stream.local == Half::Open)
    }

    /// Queues bytes on a stream; they are dropped where the stream is over.
    ///
    /// # Panics
    /// Where there are more of them than [`Self::room`] said.
    pub fn send(&mut self, id: StreamId, bytes: Vec<u8>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if bytes.is_empty() {
            return;
        }
        assert!(bytes.len() <= stream.room(), "sent beyond the room of stream {id}");
        stream.pending_bytes += bytes.len();
        // Small ones are joined, so that bytes sent one by one cost bytes.
        match stream.pending.back_mut() {
            Some(last) if last.len() + bytes.len() <= MAX_DATA => last.extend_from_slice(&bytes),
            _ => stream.pending.push_back(bytes),
        }
        self.schedule(id);
    }

    /// Ends this side's half, behind what was queued.
    ///
    /// # Panics
    /// Where `payload` is longer than [`MAX_CLOSE`].
    pub fn close(&mut self, id: StreamId, payload: Vec<u8>) {
        assert!(payload.len() <= MAX_CLOSE, "closing payload of {} bytes", payload.len());
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.local == Half::Open
        {
            stream.local = Half::Closing(payload);
            self.schedule(id);
        }
    }

    /// Nobody will read what the peer still sends. Where this side's half was closed, what was
    /// queued still goes out, and then the stream ends both ways, as a socket does that is closed
    /// behind its last bytes; where it was not, it is a reset.
    pub fn abandon(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        match stream.local {
            Half::Closing(_) => stream.unread = true,
            Half::Open | Half::Closed => self.reset(id, &cancelled()),
        }
    }

    /// Ends the stream in both directions and drops what was queued.
    pub fn reset(&mut self, id: StreamId, error: &OpError) {
        if self.streams.remove(&id).is_some() {
            self.control(&Frame::Reset(id, encode_error(error)));
        }
    }

    /// The reader has used this many bytes of the stream.
    pub fn consumed(&mut self, id: StreamId, bytes: usize) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.remote_closed {
            return;
        }
        stream.consumed += bytes;
        debug_assert!(stream.window + stream.consumed <= WINDOW, "consumed more than was sent");
        // Half a window a grant: few frames, and the sender never runs dry meanwhile.
        if stream.consumed >= WINDOW / 2 {
            let grant = std::mem::take(&mut stream.consumed);
            stream.window += grant;
            let amount = u32::try_from(grant).expect("a window fits");
            self.control(&Frame::Credit(id, amount));
        }
    }

    /// Asks the peer for a sign of life.
    pub fn ping(&mut self, token: u64) {
        self.control(&Frame::Ping(token));
    }

    /// Whether [`Self::transmit`] has anything to give.
    pub fn wants_transmit(&self) -> bool {
        !self.control.is_empty() || !self.turns.is_empty()
    }

    /// Appends frames to `out` until it holds about `enough` bytes: control frames first, then
    /// one data frame of each waiting stream in turn.
    pub fn transmit(&mut self, out: &mut Zeroizing<Vec<u8>>, enough: usize) {
        while out.len() < enough {
            if let Some(frame) = self.control.pop_front() {
                append(out, &frame);
            } else if let Some(id) = self.turns.pop_front() {
                self.take_turn(id, out);
            } else {
                return;
            }
        }
    }

    fn take_turn(&mut self, id: StreamId, out: &mut Vec<u8>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.scheduled = false;
        if let Some(chunk) = stream.pending.front_mut() {
            let length = chunk.len().min(stream.credit).min(MAX_DATA);
            if length > 0 {
                encode_data(out, id, &chunk[..length]);
                stream.credit -= length;
                stream.pending_bytes -= length;
                if length == chunk.len() {
                    stream.pending.pop_front();
                } else {
                    chunk.drain(..length);
                }
            }
        } else if let Half::Closing(payload) = &mut stream.local {
            let payload = std::mem::take(payload);
            stream.local = Half::Closed;
            let unread = stream.unread;
            out.extend_from_slice(&Frame::Close(id, payload).encode());
            self.forget_if_over(id);
            if unread {
                self.reset(id, &cancelled());
            }
            return;
        }
        self.schedule(id);
    }
}

/// Grows by a fresh allocation, so that the outgrown one is wiped.
fn append(out: &mut Zeroizing<Vec<u8>>, bytes: &[u8]) {
    let needed = out.len() + bytes.len();
    if needed > out.capacity() {
        let mut grown = Zeroizing::new(Vec::with_capacity(needed.next_power_of_two()));
        grown.extend_from_slice(out);
        *out = grown;
    }
    out.extend_from_slice(bytes);
}

fn encode_error(error: &OpError) -> Vec<u8> {
    let encoded = serde_json::to_vec(error).expect("an error is plain JSON");
    if encoded.len() <= MAX_RESET {
        return encoded;
    }
    let mut short = String::from("the message of this error was too long to send: ");
    short.extend(error.message.chars().take(512));
    serde_json::to_vec(&OpError::new(error.code, short)).expect("an error is plain JSON")
}

/// The reason that a side gives when it ends a stream that it has no more use for.
pub fn cancelled() -> OpError {
    OpError::new(ErrorCode::Cancelled, "cancelled")
}

/// What a reader's buffer should hold for speed: four of the longest data frames.
pub const TYPICAL_READ: usize = 4 * (MAX_DATA + 16);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair() -> (Connection, Connection) {
        (Connection::new(Side::Host, b"{}".to_vec()), Connection::new(Side::Agent, b"{}".to_vec()))
    }

    fn carry(from: &mut Connection, to: &mut Connection) -> usize {
        let mut out = Zeroizing::default();
        from.transmit(&mut out, usize::MAX);
        to.receive(&out).unwrap();
        out.len()
    }

    fn events(connection: &mut Connection) -> Vec<Event> {
        std::iter::from_fn(|| connection.poll_event()).collect()
    }

    fn open(host: &mut Connection, agent: &mut Connection) -> StreamId {
        let id = host.open(Zeroizing::new(b"op".to_vec())).unwrap();
        carry(host, agent);
        events(agent);
        id
    }

    #[test]
    fn a_stream_carries_both_ways_and_ends_with_a_reply() {
        let (mut host, mut agent) = pair();
        let id = open(&mut host, &mut agent);
        host.send(id, b"input".to_vec());
        host.close(id, Vec::new());
        carry(&mut host, &mut agent);
        assert_eq!(
            events(&mut agent),
            [Event::Data(id, b"input".to_vec()), Event::Closed(id, Vec::new())]
        );
        agent.send(id, b"output".to_vec());
        agent.close(id, b"reply".to_vec());
        carry(&mut agent, &mut host);
        assert_eq!(
            events(&mut host)[1..],
            [Event::Data(id, b"output".to_vec()), Event::Closed(id, b"reply".to_vec())]
        );
        assert!(host.streams.is_empty() && agent.streams.is_empty());
    }

    #[test]
    fn a_sender_stops_at_the_window_and_goes_on_when_it_is_consumed() {
        let (mut host, mut agent) = pair();
        let id = open(&mut host, &mut agent);
        agent.send(id, vec![1; WINDOW]);
        carry(&mut agent, &mut host);
        assert_eq!(agent.room(id), 0);
        host.consumed(id, WINDOW);
        carry(&mut host, &mut agent);
        assert_eq!(events(&mut agent), [Event::Writable(id)]);
        assert_eq!(agent.room(id), WINDOW);
    }

    #[test]
    fn a_slow_reader_holds_up_its_own_stream_alone() {
        let (mut host, mut agent) = pair();
        let slow = open(&mut host, &mut agent);
        let other = open(&mut host, &mut agent);
        agent.send(slow, vec![1; WINDOW]);
        carry(&mut agent, &mut host);
        events(&mut host);
        agent.send(other, b"through".to_vec());
        carry(&mut agent, &mut host);
        assert_eq!(events(&mut host), [Event::Data(other, b"through".to_vec())]);
    }

    #[test]
    fn waiting_streams_take_turns() {
        let (mut host, mut agent) = pair();
        let (one, two) = (open(&mut host, &mut agent), open(&mut host, &mut agent));
        agent.send(one, vec![1; 2 * MAX_DATA]);
        agent.send(two, vec![2; 2 * MAX_DATA]);
        carry(&mut agent, &mut host);
        let order: Vec<_> = events(&mut host)
            .into_iter()
            .filter_map(|event| if let Event::Data(id, _) = event { Some(id) } else { None })
            .collect();
        assert_eq!(order, [one, two, one, two]);
    }

    #[test]
    fn bytes_beyond_the_window_end_the_connection() {
        let (mut host, mut agent) = pair();
        let id = open(&mut host, &mut agent);
        agent.send(id, vec![1; WINDOW]);
        carry(&mut agent, &mut host);
        let mut extra = Vec::new();
        encode_data(&mut extra, id, b"x");
        assert_eq!(host.receive(&extra), Err(ProtocolError::Overrun(id)));
    }

    #[test]
    fn credit_beyond_what_was_sent_ends_the_connection() {
        let (mut host, mut agent) = pair();
        let id = open(&mut host, &mut agent);
        let grant = Frame::Credit(id, 1).encode();
        assert_eq!(host.receive(&grant), Err(ProtocolError::Overgrant(id)));
    }

    #[test]
    fn frames_for_a_stream_that_was_just_reset_are_dropped() {
        let (mut host, mut agent) = pair();
        let id = open(&mut host, &mut agent);
        agent.send(id, b"late".to_vec());
        host.reset(id, &cancelled());
        carry(&mut agent, &mut host);
        assert!(!events(&mut host).iter().any(|event| matches!(event, Event::Data(..))));
        carry(&mut host, &mut agent);
        assert_eq!(events(&mut agent), [Event::Reset(id, cancelled())]);
    }

    #[test]
    fn an_abandoned_stream_ends_behind_its_last_bytes() {
        let (mut host, mut agent) = pair();
        carry(&mut agent, &mut host);
        events(&mut host);
        let id = open(&mut host, &mut agent);
        agent.send(id, b"last".to_vec());
        agent.close(id, Vec::new());
        agent.abandon(id);
        carry(&mut agent, &mut host);
        let last = Event::Data(id, b"last".to_vec());
        let ends = [last, Event::Closed(id, Vec::new()), Event::Reset(id, cancelled())];
        assert_eq!(events(&mut host), ends);
        assert!(!host.is_writable(id));
    }

    #[test]
    fn a_stream_abandoned_before_its_end_is_reset() {
        let (mut host, mut agent) = pair();
        carry(&mut agent, &mut host);
        events(&mut host);
        let id = open(&mut host, &mut agent);
        agent.send(id, b"lost".to_vec());
        agent.abandon(id);
        carry(&mut agent, &mut host);
        assert_eq!(events(&mut host), [Event::Reset(id, cancelled())]);
    }

    #[test]
    fn nothing_follows_a_stream_that_both_sides_closed() {
        let (mut host, mut agent) = pair();
        carry(&mut agent, &mut host);
        events(&mut host);
        let id = open(&mut host, &mut agent);
        host.close(id, Vec::new());
        carry(&mut host, &mut agent);
        agent.close(id, Vec::new());
        agent.abandon(id);
        carry(&mut agent, &mut host);
        assert_eq!(events(&mut host), [Event::Closed(id, Vec::new())]);
    }

    #[test]
    fn a_stream_that_was_never_opened_ends_the_connection() {
        let (mut host, _) = pair();
        let frame = Frame::Close(2, Vec::new()).encode();
        assert_eq!(host.receive(&frame), Err(ProtocolError::UnknownStream(2)));
    }

    #[test]
    fn a_peer_opens_only_its_own_numbers_and_each_once() {
        for id in [2, 4] {
            let (_, mut agent) = pair();
            let frame = Frame::Open(id, Zeroizing::default()).encode();
            assert_eq!(agent.receive(&frame), Err(ProtocolError::StreamNumber(id)));
        }
        let (_, mut agent) = pair();
        agent.receive(&Frame::Open(3, Zeroizing::default()).encode()).unwrap();
        let again = Frame::Open(1, Zeroizing::default()).encode();
        assert_eq!(agent.receive(&again), Err(ProtocolError::StreamNumber(1)));
    }

    #[test]
    fn streams_are_bounded_on_both_sides() {
        let (mut host, mut agent) = pair();
        for _ in 0..MAX_STREAMS {
            host.open(Zeroizing::default()).unwrap();
        }
        assert_eq!(host.open(Zeroizing::default()), Err(OpenError::TooMany));
        carry(&mut host, &mut agent);
        let id = 2 * u32::try_from(MAX_STREAMS).unwrap() + 1;
        let extra = Frame::Open(id, Zeroizing::default()).encode();
        assert_eq!(agent.receive(&extra), Err(ProtocolError::TooManyStreams));
    }

    #[test]
    fn a_peer_that_pings_without_reading_is_cut_off() {
        let (mut host, _) = pair();
        let ping = Frame::Ping(1).encode();
        let end = (0..2 * MAX_PENDING_CONTROL).find_map(|_| host.receive(&ping).err());
        assert_eq!(end, Some(ProtocolError::Unread));
    }

    #[test]
    fn a_peer_that_opens_streams_without_reading_that_they_are_refused_is_cut_off() {
        let (mut host, _) = pair();
        let end = (1..=2 * MAX_PENDING_CONTROL).find_map(|number| {
            let id = 2 * u32::try_from(number).unwrap();
            let refused = host.receive(&Frame::Open(id, Zeroizing::default()).encode()).err();
            host.reset(id, &cancelled());
            refused
        });
        assert_eq!(end, Some(ProtocolError::Unread));
    }

    #[test]
    fn a_peer_that_ends_streams_before_their_turn_is_cut_off() {
        let (mut host, _) = pair();
        let reason = serde_json::to_vec(&cancelled()).unwrap();
        let end = (1..=2 * MAX_PENDING_CONTROL).find_map(|number| {
            let id = 2 * u32::try_from(number).unwrap();
            let refused = host.receive(&Frame::Open(id, Zeroizing::default()).encode()).err();
            host.close(id, Vec::new());
            let reset = Frame::Reset(id, reason.clone()).encode();
            refused.or_else(|| host.receive(&reset).err())
        });
        assert_eq!(end, Some(ProtocolError::Unread));
    }

    #[test]
    fn an_error_too_long_for_a_frame_is_shortened() {
        let error = OpError::new(ErrorCode::Failed, "x".repeat(2 * MAX_RESET));
        assert!(encode_error(&error).len() <= MAX_RESET);
    }

    proptest! {
        /// Whatever the two sides write, in whatever portions it travels and is consumed,
        /// arrives whole and in order on every stream.
        #[test]
        fn streams_are_faithful(
            writes in prop::collection::vec((0usize..3, 1usize..100_000), 1..40),
            portion in 1usize..200_000,
        ) {
            let (mut host, mut agent) = pair();
            let ids: Vec<_> = (0..3).map(|_| open(&mut host, &mut agent)).collect();
            let mut sent = vec![Vec::new(); 3];
            let mut got = vec![Vec::new(); 3];
            let mut pending: VecDeque<(usize, Vec<u8>)> = writes
                .into_iter()
                .enumerate()
                .map(|(n, (stream, length))| (stream, vec![u8::try_from(n).unwrap(); length]))
                .collect();
            for _ in 0..10_000 {
                if let Some((stream, mut bytes)) = pending.pop_front() {
                    let room = agent.room(ids[stream]);
                    let rest = bytes.split_off(room.min(bytes.len()));
                    sent[stream].extend_from_slice(&bytes);
                    agent.send(ids[stream], bytes);
                    if !rest.is_empty() {
                        pending.push_front((stream, rest));
                    }
                }
                let mut out = Zeroizing::default();
                agent.transmit(&mut out, portion);
                for piece in out.chunks(portion) {
                    host.receive(piece).unwrap();
                }
                while let Some(event) = host.poll_event() {
                    if let Event::Data(id, bytes) = event {
                        let stream = ids.iter().position(|i| *i == id).unwrap();
                        host.consumed(id, bytes.len());
                        got[stream].extend(bytes);
                    }
                }
                carry(&mut host, &mut agent);
                if pending.is_empty() && !agent.wants_transmit() {
                    break;
                }
            }
            prop_assert!(pending.is_empty());
            prop_assert!(sent == got);
        }

        /// No bytes from a peer panic this side or make it hold more than its bounds.
        #[test]
        fn garbage_is_an_error_or_an_event(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..20),
        ) {
            for side in [Side::Host, Side::Agent] {
                let mut connection = Connection::new(side, Vec::new());
                for piece in &pieces {
                    if connection.receive(piece).is_err() {
                        break;
                    }
                }
            }
        }
    }
}
