//! One connection between a socket of the host and one of the guest, as the protocol sees it:
//! which packets may come, and which are to go. It does no I/O.

use super::credit::{Credit, Overrun};
use super::packet::{Header, Op, Ports};

/// What a side will do no more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Shut {
    pub(super) receiving: bool,
    pub(super) sending: bool,
}

impl Shut {
    const BOTH: Self = Self { receiving: true, sending: true };

    fn from_flags(flags: u32) -> Self {
        Self { receiving: flags & 1 != 0, sending: flags & 2 != 0 }
    }

    fn flags(self) -> u32 {
        u32::from(self.receiving) | u32::from(self.sending) << 1
    }

    fn and(self, other: Self) -> Self {
        Self {
            receiving: self.receiving || other.receiving,
            sending: self.sending || other.sending,
        }
    }
}

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The guest is asked whether it takes it.
    Requested,
    /// Data may flow.
    Open,
    /// No data can flow any more; the guest is to confirm that by a reset.
    Closing,
}

/// What a packet from the guest means for whoever owns the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// At most that there are packets to go.
    Nothing,
    /// The guest takes the connection.
    Accepted,
    /// It does not.
    Refused,
    /// The packet's data is for the host, and has to be [`forwarded`](Connection::forwarded).
    Data,
    /// The guest has shut a direction.
    Shut,
    /// The guest has let go of the connection.
    Ended,
    /// The guest has shut both directions and waits for a reset.
    Finished,
    /// The packet breaks the protocol; a reset is due.
    Broken,
}

/// A packet for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outgoing {
    op: Op,
    flags: u32,
    /// How much data it has.
    length: u32,
}

impl Outgoing {
    fn of(op: Op) -> Self {
        Self { op, flags: 0, length: 0 }
    }
}

/// The host's end of a connection.
#[derive(Debug)]
pub(super) struct Connection {
    phase: Phase,
    credit: Credit,
    guest: Shut,
    host: Shut,
    /// The packet that opens the connection, as long as it has to go.
    opening: Option<Op>,
    /// The guest has not heard yet what the host has shut. It does when the connection is open.
    owes_shutdown: bool,
    /// The guest is to hear of our credit, because it asked or because there is much of it.
    owes_credit: bool,
    question: Question,
}

/// Asking the guest for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    /// There was ample room.
    Needless,
    /// The guest is to be asked.
    Owed,
    /// It was. Asked again each time that it has a little room, it would be sent many small
    /// packets: it says by itself when it has more, as Linux does.
    Asked,
}

impl Connection {
    /// One that the host wants.
    pub(super) fn requested() -> Self {
        Self::new(Phase::Requested, Op::Request)
    }

    /// One that the guest wants by this packet, and that the host takes.
    pub(super) fn accepted(request: &Header) -> Self {
        let mut connection = Self::new(Phase::Open, Op::Response);
        connection.credit.hear(request);
        connection
    }

    fn new(phase: Phase, opening: Op) -> Self {
        Self {
            phase,
            credit: Credit::new(),
            guest: Shut::default(),
            host: Shut::default(),
            opening: Some(opening),
            owes_shutdown: false,
            owes_credit: false,
            question: Question::Needless,
        }
    }

    // --- from the guest ---------------------------------------------------

    /// A packet came. Its data is not looked at.
    pub(super) fn hear(&mut self, header: &Header) -> Heard {
        let Some(op) = header.op() else { return Heard::Broken };
        self.credit.hear(header);
        if self.credit.is_ample() {
            self.question = Question::Needless;
        }
        match (self.phase, op) {
            (Phase::Requested, Op::Reset) => Heard::Refused,
            (_, Op::Reset) => Heard::Ended,
            (Phase::Requested, Op::Response) if self.opening.is_none() => {
                self.phase = Phase::Open;
                self.conclude();
                Heard::Accepted
            }
            (Phase::Requested, _) | (_, Op::Request | Op::Response) => Heard::Broken,
            (_, Op::CreditUpdate) => Heard::Nothing,
            (_, Op::CreditRequest) => {
                self.owes_credit = true;
                Heard::Nothing
            }
            (_, Op::Data) => self.hear_data(header.len),
            (_, Op::Shutdown) => self.hear_shutdown(Shut::from_flags(header.flags)),
        }
    }

    fn hear_data(&mut self, count: u32) -> Heard {
        if self.guest.sending {
            return Heard::Broken;
        }
        match self.credit.receive(count) {
            Err(Overrun) => Heard::Broken,
            Ok(()) if count == 0 => Heard::Nothing,
            // The guest sent it before it heard that the host takes no more.
            Ok(()) if self.host.receiving => {
                self.forwarded(count);
                Heard::Nothing
            }
            Ok(()) => Heard::Data,
        }
    }

    fn hear_shutdown(&mut self, shut: Shut) -> Heard {
        self.guest = self.guest.and(shut);
        if self.guest == Shut::BOTH {
            return Heard::Finished;
        }
        self.conclude();
        Heard::Shut
    }

    /// What the guest will do no more.
    pub(super) fn guest(&self) -> Shut {
        self.guest
    }

    // --- from the host ----------------------------------------------------

    /// So much of the guest's data went to the host, or was given up.
    pub(super) fn forwarded(&mut self, count: u32) {
        self.credit.forward(count);
        let may_send = self.phase == Phase::Open && !self.guest.sending;
        self.owes_credit |= may_send && self.credit.is_news();
    }

    /// The host has shut a direction, or both.
    pub(super) fn shut(&mut self, shut: Shut) {
        let host = self.host.and(shut);
        self.owes_shutdown |= host != self.host;
        self.host = host;
        self.conclude();
    }

    /// Where nothing can flow in either direction the guest is told so, and takes leave.
    fn conclude(&mut self) {
        let from_guest = !self.guest.sending && !self.host.receiving;
        let from_host = !self.host.sending && !self.guest.receiving;
        if self.phase == Phase::Open && !from_guest && !from_host {
            self.phase = Phase::Closing;
            self.host = Shut::BOTH;
            self.owes_shutdown = true;
        }
    }

    /// Whether it only waits for the guest's confirmation.
    pub(super) fn is_closing(&self) -> bool {
        self.phase == Phase::Closing
    }

    /// Whether it waits for the guest's answer.
    pub(super) fn is_requested(&self) -> bool {
        self.phase == Phase::Requested
    }

    // --- to the guest -----------------------------------------------------

    fn sends_data(&self) -> bool {
        self.phase == Phase::Open && !self.host.sending && !self.guest.receiving
    }

    fn says_shutdown(&self) -> bool {
        self.owes_shutdown && self.phase != Phase::Requested
    }

    /// How much of the host's data the guest takes now.
    pub(super) fn room(&self) -> u32 {
        if self.sends_data() { self.credit.room() } else { 0 }
    }

    /// Whether there is a packet to go, if the host has data or has not.
    pub(super) fn has_packet(&self, host_has_data: bool) -> bool {
        let asks = self.sends_data() && self.question == Question::Needless;
        self.opening.is_some()
            || self.says_shutdown()
            || self.owes_credit
            || self.question == Question::Owed
            || host_has_data && (self.room() > 0 || asks)
    }

    /// The host has data and there is no room for it.
    pub(super) fn starve(&mut self) {
        if self.sends_data() && self.question == Question::Needless {
            self.question = Question::Owed;
        }
    }

    /// The next packet without data that has to go.
    pub(super) fn next_packet(&mut self) -> Option<Outgoing> {
        if let Some(op) = self.opening.take() {
            return Some(Outgoing::of(op));
        }
        if self.says_shutdown() {
            self.owes_shutdown = false;
            return Some(Outgoing { flags: self.host.flags(), ..Outgoing::of(Op::Shutdown) });
        }
        if std::mem::take(&mut self.owes_credit) {
            return Some(Outgoing::of(Op::CreditUpdate));
        }
        if self.question == Question::Owed {
            self.question = Question::Asked;
            return Some(Outgoing::of(Op::CreditRequest));
        }
        None
    }

    /// So much of the host's data has to go: no more than there was [`room`](Self::room) for.
    pub(super) fn send(&mut self, length: u32) -> Outgoing {
        self.credit.send(length);
        Outgoing { length, ..Outgoing::of(Op::Data) }
    }

    /// The header of a packet that goes now.
    pub(super) fn header(&mut self, guest_cid: u64, ports: Ports, packet: Outgoing) -> Header {
        let Outgoing { op, flags, length } = packet;
        let header = Header::to_guest(guest_cid, ports, op);
        let mut header = Header { flags, len: length, ..header };
        self.credit.tell(&mut header);
        // Whatever goes says what there is to say.
        self.owes_credit = false;
        header
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PORTS: Ports = Ports { host: 1, guest: 2 };
    const ROOM: u32 = 1000;

    fn packet(op: Op) -> Header {
        Header { op: op.number(), buf_alloc: ROOM, ..Header::default() }
    }

    fn open() -> Connection {
        let mut connection = Connection::accepted(&packet(Op::Request));
        assert_eq!(connection.next_packet(), Some(Outgoing::of(Op::Response)));
        connection
    }

    #[test]
    fn a_request_goes_first_and_nothing_before_its_answer() {
        let mut connection = Connection::requested();
        connection.shut(Shut { receiving: true, sending: false });
        assert_eq!(connection.next_packet(), Some(Outgoing::of(Op::Request)));
        assert!(!connection.has_packet(true));
        assert_eq!(connection.next_packet(), None);
        assert_eq!(connection.hear(&packet(Op::Response)), Heard::Accepted);
        let shutdown = connection.next_packet().unwrap();
        assert_eq!((shutdown.op, shutdown.flags), (Op::Shutdown, 1));
    }

    #[test]
    fn an_end_that_is_told_twice_goes_once() {
        let mut connection = open();
        for _ in 0..2 {
            connection.shut(Shut { receiving: false, sending: true });
        }
        assert!(connection.next_packet().is_some());
        assert_eq!(connection.next_packet(), None);
    }

    #[test]
    fn an_unknown_operation_breaks_it() {
        let header = Header { op: 9, ..Header::default() };
        assert_eq!(open().hear(&header), Heard::Broken);
    }

    #[test]
    fn every_packet_says_how_much_room_there_is() {
        let mut connection = open();
        let data = Header { len: 7, ..packet(Op::Data) };
        assert_eq!(connection.hear(&data), Heard::Data);
        connection.forwarded(7);
        let packet = connection.send(10);
        let header = connection.header(3, PORTS, packet);
        assert_eq!((header.op(), header.len, header.fwd_cnt), (Some(Op::Data), 10, 7));
    }

    /// What may happen to a connection that is open.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        GuestSends,
        GuestShuts(Shut),
        HostShuts(Shut),
        HostHasData,
        PacketsGo,
    }

    fn shut() -> impl Strategy<Value = Shut> {
        any::<(bool, bool)>().prop_map(|(receiving, sending)| Shut { receiving, sending })
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::GuestSends),
            shut().prop_map(Step::GuestShuts),
            shut().prop_map(Step::HostShuts),
            Just(Step::HostHasData),
            Just(Step::PacketsGo),
        ]
    }

    /// A connection beside what is known of the two sides.
    struct Model {
        connection: Connection,
        guest: Shut,
        host: Shut,
        /// What the guest was told of the host.
        told: Shut,
    }

    impl Model {
        fn flows(&self) -> (bool, bool) {
            (
                !self.guest.sending && !self.host.receiving,
                !self.host.sending && !self.guest.receiving,
            )
        }

        /// Whether the connection goes on after the step.
        fn take(&mut self, step: Step) -> bool {
            let (from_guest, from_host) = self.flows();
            match step {
                Step::GuestSends => {
                    let heard = self.connection.hear(&Header { len: 1, ..packet(Op::Data) });
                    let expected = match (from_guest, self.guest.sending) {
                        (true, _) => Heard::Data,
                        (false, true) => Heard::Broken,
                        (false, false) => Heard::Nothing,
                    };
                    assert_eq!(heard, expected);
                    if heard == Heard::Data {
                        self.connection.forwarded(1);
                    }
                    return heard != Heard::Broken;
                }
                Step::GuestShuts(shut) => {
                    self.guest = self.guest.and(shut);
                    let flags = shut.flags();
                    let header = Header { flags, ..packet(Op::Shutdown) };
                    let finished = self.guest == Shut::BOTH;
                    let expected = if finished { Heard::Finished } else { Heard::Shut };
                    assert_eq!(self.connection.hear(&header), expected);
                    return !finished;
                }
                Step::HostShuts(shut) => {
                    self.host = self.host.and(shut);
                    self.connection.shut(shut);
                }
                Step::HostHasData => {
                    assert_eq!(self.connection.room() > 0, from_host);
                    if from_host {
                        let _ = self.connection.send(1);
                        assert!(!self.told.sending, "data behind the end");
                        // The guest takes it at once.
                        self.connection.credit = Credit::new();
                        self.connection.credit.hear(&packet(Op::Data));
                    }
                }
                Step::PacketsGo => self.packets_go(),
            }
            true
        }

        fn packets_go(&mut self) {
            while let Some(packet) = self.connection.next_packet() {
                assert_eq!(packet.op, Op::Shutdown);
                let says = Shut::from_flags(packet.flags);
                assert_eq!(says.and(self.told), says, "nothing is taken back");
                assert_ne!(says, self.told, "nothing is said twice");
                self.told = says;
            }
            assert!(!self.connection.has_packet(false));
            // Once nothing flows the guest hears that the host is through with it.
            let closing = self.flows() == (false, false);
            assert_eq!(self.connection.is_closing(), closing);
            assert_eq!(self.told, if closing { Shut::BOTH } else { self.host });
        }
    }

    proptest! {
        #[test]
        fn each_direction_ends_by_itself(steps in prop::collection::vec(step(), 0..30)) {
            let [guest, host, told] = [Shut::default(); 3];
            let mut model = Model { connection: open(), guest, host, told };
            for step in steps {
                if !model.take(step) {
                    return Ok(());
                }
            }
            model.packets_go();
        }
    }
}
