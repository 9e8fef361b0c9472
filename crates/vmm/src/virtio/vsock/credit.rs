//! Flow control of one connection (section 5.10.6.3).

use super::packet::Header;

/// Bytes that the device holds of a connection for a host that does not take them yet, and so
/// what it lets the guest send ahead. As Linux has it for its own sockets; half of it is worth
/// several of the largest packets.
pub(super) const BUFFER: u32 = 256 << 10;

/// The guest sent more than there was room for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overrun;

/// What each side has sent, and how much of it the other has passed on. Counts run freely and
/// wrap, as those of the headers do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Credit {
    /// From the guest.
    received: u32,
    /// Of these, to the host: our `fwd_cnt`.
    forwarded: u32,
    /// Our `fwd_cnt` as the guest last heard it.
    told: u32,
    /// To the guest.
    sent: u32,
    /// The guest's `buf_alloc`.
    guest_buffer: u32,
    /// The guest's `fwd_cnt`.
    guest_forwarded: u32,
}

impl Credit {
    /// That of a connection on which nothing was sent.
    pub(super) fn new() -> Self {
        Self::starting_at(0)
    }

    /// As if so many bytes had gone each way before.
    pub(super) fn starting_at(count: u32) -> Self {
        Self {
            received: count,
            forwarded: count,
            told: count,
            sent: count,
            guest_buffer: 0,
            guest_forwarded: count,
        }
    }

    /// Takes in what the guest says of its side in every packet.
    pub(super) fn hear(&mut self, header: &Header) {
        self.guest_buffer = header.buf_alloc;
        self.guest_forwarded = header.fwd_cnt;
    }

    /// Bytes that the guest has room for. None where its counts make no sense.
    pub(super) fn room(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_buffer.saturating_sub(under_way)
    }

    /// Whether the guest has room for half of what it ever has room for.
    pub(super) fn is_ample(&self) -> bool {
        self.room() > self.guest_buffer / 2
    }

    /// Data goes to the guest, no more than it has room for.
    pub(super) fn send(&mut self, count: u32) {
        debug_assert!(count <= self.room());
        self.sent = self.sent.wrapping_add(count);
    }

    /// Data came from the guest.
    pub(super) fn receive(&mut self, count: u32) -> Result<(), Overrun> {
        let held = self.received.wrapping_sub(self.forwarded);
        if count > BUFFER - held {
            return Err(Overrun);
        }
        self.received = self.received.wrapping_add(count);
        Ok(())
    }

    /// Data from the guest went on to the host, or was given up.
    pub(super) fn forward(&mut self, count: u32) {
        debug_assert!(count <= self.received.wrapping_sub(self.forwarded));
        self.forwarded = self.forwarded.wrapping_add(count);
    }

    /// Whether the guest should hear that there is room: it knows of less than half, and there
    /// is more. Earlier would be a packet and an interrupt for little.
    pub(super) fn is_news(&self) -> bool {
        let known = BUFFER.saturating_sub(self.received.wrapping_sub(self.told));
        known < BUFFER / 2 && self.told != self.forwarded
    }

    /// Says in a header what there is to say of our side.
    pub(super) fn tell(&mut self, header: &mut Header) {
        header.buf_alloc = BUFFER;
        header.fwd_cnt = self.forwarded;
        self.told = self.forwarded;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the two sides may do.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        /// The guest sends so much of what it believes that there is room for, in 256 parts.
        GuestSends(u8),
        /// The host takes so much of what is held for it.
        HostTakes(u8),
        /// The host has so much for the guest, in 256 parts of the room.
        HostSends(u8),
        /// The guest's reader takes so much.
        GuestTakes(u8),
        /// The guest says how things are with it.
        GuestSpeaks,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            any::<u8>().prop_map(Step::GuestSends),
            any::<u8>().prop_map(Step::HostTakes),
            any::<u8>().prop_map(Step::HostSends),
            any::<u8>().prop_map(Step::GuestTakes),
            Just(Step::GuestSpeaks),
        ]
    }

    fn part(whole: u64, parts: u8) -> u32 {
        u32::try_from((whole * u64::from(parts)).div_ceil(255)).unwrap()
    }

    /// An honest guest, whose counts do not wrap, and the device's credit for it.
    struct Pair {
        credit: Credit,
        start: u32,
        guest_buffer: u32,
        guest_sent: u64,
        /// What the guest has heard that the host forwarded.
        guest_heard: u64,
        host_taken: u64,
        host_sent: u64,
        guest_taken: u64,
    }

    impl Pair {
        fn new(start: u32, guest_buffer: u32) -> Self {
            let credit = Credit::starting_at(start);
            let [guest_sent, guest_heard, host_taken, host_sent, guest_taken] = [0; 5];
            let mut pair = Self {
                credit,
                start,
                guest_buffer,
                guest_sent,
                guest_heard,
                host_taken,
                host_sent,
                guest_taken,
            };
            pair.take(Step::GuestSpeaks);
            pair
        }

        fn wrapped(&self, count: u64) -> u32 {
            let low = u32::try_from(count % (1 << 32)).unwrap();
            self.start.wrapping_add(low)
        }

        fn guest_room(&self) -> u64 {
            u64::from(BUFFER) - (self.guest_sent - self.guest_heard)
        }

        fn take(&mut self, step: Step) {
            match step {
                Step::GuestSends(parts) => {
                    let count = part(self.guest_room(), parts);
                    assert_eq!(self.credit.receive(count), Ok(()), "an honest guest is blamed");
                    self.guest_sent += u64::from(count);
                }
                Step::HostTakes(parts) => {
                    let count = part(self.guest_sent - self.host_taken, parts);
                    self.credit.forward(count);
                    self.host_taken += u64::from(count);
                }
                Step::HostSends(parts) => {
                    let count = part(self.credit.room().into(), parts);
                    self.credit.send(count);
                    self.host_sent += u64::from(count);
                }
                Step::GuestTakes(parts) => {
                    let count = part(self.host_sent - self.guest_taken, parts);
                    self.guest_taken += u64::from(count);
                }
                Step::GuestSpeaks => {
                    let fwd_cnt = self.wrapped(self.guest_taken);
                    let buf_alloc = self.guest_buffer;
                    self.credit.hear(&Header { buf_alloc, fwd_cnt, ..Header::default() });
                }
            }
            if self.credit.is_news() {
                let mut header = Header::default();
                self.credit.tell(&mut header);
                self.guest_heard = self.host_taken;
                assert_eq!(header.fwd_cnt, self.wrapped(self.host_taken));
                assert_eq!(header.buf_alloc, BUFFER);
            }
        }

        fn check(&self) {
            assert!(self.guest_sent - self.host_taken <= u64::from(BUFFER), "too much is held");
            let with_guest = self.host_sent - self.guest_taken;
            assert!(with_guest <= u64::from(self.guest_buffer), "the guest got too much");
        }
    }

    proptest! {
        #[test]
        fn no_side_ever_gets_more_than_it_has_room_for(
            start in prop_oneof![any::<u32>(), u32::MAX - 2 * BUFFER..=u32::MAX],
            guest_buffer in 1..=2 * BUFFER,
            steps in prop::collection::vec(step(), 0..200),
        ) {
            let mut pair = Pair::new(start, guest_buffer);
            for step in steps {
                pair.take(step);
                pair.check();
            }
        }

        #[test]
        fn two_willing_sides_never_stall(
            start in prop_oneof![any::<u32>(), u32::MAX - 2 * BUFFER..=u32::MAX],
            guest_buffer in 1..=2 * BUFFER,
            steps in prop::collection::vec(step(), 0..200),
        ) {
            let mut pair = Pair::new(start, guest_buffer);
            steps.into_iter().for_each(|step| pair.take(step));
            pair.take(Step::HostTakes(255));
            pair.take(Step::GuestTakes(255));
            pair.take(Step::GuestSpeaks);
            prop_assert!(pair.guest_room() >= u64::from(BUFFER / 2));
            prop_assert_eq!(pair.credit.room(), guest_buffer);
        }

        #[test]
        fn a_guest_that_sends_too_much_is_caught(
            start in any::<u32>(),
            steps in prop::collection::vec(step(), 0..50),
            excess in 1..=BUFFER,
        ) {
            let mut pair = Pair::new(start, BUFFER);
            steps.into_iter().for_each(|step| pair.take(step));
            let held = u32::try_from(pair.guest_sent - pair.host_taken).unwrap();
            prop_assert_eq!(pair.credit.receive(BUFFER - held + excess), Err(Overrun));
        }

        #[test]
        fn whatever_the_guest_says_it_never_has_more_room_than_its_buffer(
            says in prop::collection::vec(any::<(u32, u32)>(), 1..20),
        ) {
            let mut credit = Credit::new();
            for (buf_alloc, fwd_cnt) in says {
                credit.hear(&Header { buf_alloc, fwd_cnt, ..Header::default() });
                let room = credit.room();
                prop_assert!(room <= buf_alloc);
                credit.send(room);
                prop_assert_eq!(credit.room(), 0);
            }
        }
    }
}
