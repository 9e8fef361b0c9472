//! Questions for names: datagrams of tasks on one side, one stream to the host on the other.
//!
//! Nothing of a message is read but its id, the first 16 bits. On the stream that is one of the
//! agent's, so that two tasks may ask under the same.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recvfrom, sendto};
use wire::connection::Connection;
use wire::frame::StreamId;

/// Questions that may wait for their answers; the oldest makes room.
const PENDING: usize = 1024;
/// The longest question: a message of DNS is rarely beyond 1232 bytes, and asks before it sends more.
const QUESTION: usize = 4096;
/// Datagrams that are taken before others get their turn.
const TURN: usize = 64;
/// A header of DNS. What is shorter is no message.
const HEADER: usize = 12;

/// The sockets that tasks' questions come to, and who asked what.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) sockets: Vec<OwnedFd>,
    /// While there is one.
    pub(super) stream: Option<StreamId>,
    pending: Pending,
    /// Of the stream, the part of a message that is there.
    partial: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asker {
    socket: usize,
    address: SocketAddr,
    id: [u8; 2],
}

/// Who waits for an answer, by the id on the stream. Ids are given out in turn.
#[derive(Debug, Default)]
struct Pending {
    askers: VecDeque<(u16, Asker)>,
    last: u16,
}

impl Pending {
    fn add(&mut self, asker: Asker) -> [u8; 2] {
        if self.askers.len() == PENDING {
            self.askers.pop_front();
        }
        // There are far more ids than can be pending, so the next one in turn is free unless its
        // question is the oldest of all by sixty thousand.
        loop {
            self.last = self.last.wrapping_add(1);
            let last = self.last;
            if !self.askers.iter().any(|(id, _)| *id == last) {
                break;
            }
        }
        self.askers.push_back((self.last, asker));
        self.last.to_be_bytes()
    }

    fn take(&mut self, id: [u8; 2]) -> Option<Asker> {
        let id = u16::from_be_bytes(id);
        let at = self.askers.iter().position(|(other, _)| *other == id)?;
        self.askers.remove(at).map(|(_, asker)| asker)
    }
}

impl Names {
    pub(super) fn new(sockets: Vec<OwnedFd>) -> Self {
        Self { sockets, stream: None, pending: Pending::default(), partial: Vec::new() }
    }

    /// Passes on what tasks ask at one of the sockets. What there is no room for is lost, as
    /// datagrams are, and asked again.
    pub(super) fn ask(&mut self, socket: usize, connection: &mut Connection) {
        let Some(stream) = self.stream else { return };
        let mut buffer = [0; QUESTION];
        for _ in 0..TURN {
            let received = recvfrom(&self.sockets[socket], &mut buffer, RecvFlags::TRUNC);
            let (length, from) = match received {
                Ok((_, length, Some(from))) => (length, from),
                Err(Errno::INTR) => continue,
                _ => return,
            };
            let Ok(address) = SocketAddr::try_from(from) else { continue };
            let Some(question) = buffer.get(..length).filter(|bytes| bytes.len() >= HEADER) else {
                continue;
            };
            if connection.room(stream) < 2 + question.len() {
                continue;
            }
            let asker = Asker { socket, address, id: [question[0], question[1]] };
            let length = u16::try_from(question.len()).expect("at most QUESTION");
            let mut bytes = length.to_be_bytes().to_vec();
            bytes.extend(self.pending.add(asker));
            bytes.extend_from_slice(&question[2..]);
            connection.send(stream, bytes);
        }
    }

    /// Takes what there is at the sockets and drops it: there is nobody to ask.
    pub(super) fn ignore(&self, socket: usize) {
        let mut byte = [0];
        for _ in 0..TURN {
            if recvfrom(&self.sockets[socket], &mut byte, RecvFlags::empty()).is_err() {
                return;
            }
        }
    }

    /// Bytes of answers.
    pub(super) fn data(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
        let mut rest = &self.partial[..];
        while let Some((length, tail)) = rest.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            let Some((answer, tail)) = tail.split_at_checked(length) else { break };
            rest = tail;
            if answer.len() < HEADER {
                continue;
            }
            if let Some(asker) = self.pending.take([answer[0], answer[1]]) {
                let answer = [&asker.id[..], &answer[2..]].concat();
                let socket = self.sockets[asker.socket].as_fd();
                // A task that is gone, or whose buffer is full, asks again or does not.
                let _ = sendto(socket, &answer, SendFlags::empty(), &asker.address);
            }
        }
        let used = self.partial.len() - rest.len();
        self.partial.drain(..used);
    }

    /// The stream is over; what was asked on it is not answered any more.
    pub(super) fn forget(&mut self) {
        self.stream = None;
        self.pending = Pending::default();
        self.partial = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use wire::connection::{Event, Side};
    use zeroize::Zeroizing;

    use super::*;

    struct Bench {
        names: Names,
        at: SocketAddr,
        agent: Connection,
        host: Connection,
    }

    fn bench() -> Bench {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let at = socket.local_addr().unwrap();
        let mut names = Names::new(vec![socket.into()]);
        let mut agent = Connection::new(Side::Agent, b"{}".to_vec());
        names.stream = Some(agent.open(Zeroizing::default()).unwrap());
        Bench { names, at, agent, host: Connection::new(Side::Host, b"{}".to_vec()) }
    }

    /// The messages on the stream so far.
    fn asked(bench: &mut Bench) -> Vec<Vec<u8>> {
        let mut out = Zeroizing::default();
        bench.agent.transmit(&mut out, usize::MAX);
        bench.host.receive(&out).unwrap();
        let mut bytes = Vec::new();
        while let Some(event) = bench.host.poll_event() {
            if let Event::Data(_, data) = event {
                bytes.extend(data);
            }
        }
        let mut messages = Vec::new();
        while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
            let (message, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)));
            messages.push(message.to_vec());
            bytes = rest.to_vec();
        }
        messages
    }

    fn answer(message: &[u8]) -> Vec<u8> {
        let length = u16::try_from(message.len()).unwrap();
        [&length.to_be_bytes()[..], message].concat()
    }

    fn asker(at: SocketAddr) -> UdpSocket {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        socket.connect(at).unwrap();
        socket
    }

    #[test]
    fn two_who_ask_under_the_same_id_each_get_their_own_answer() {
        let mut bench = bench();
        let (one, two) = (asker(bench.at), asker(bench.at));
        one.send(b"idquestion-one").unwrap();
        two.send(b"idquestion-two").unwrap();
        bench.names.ask(0, &mut bench.agent);
        let asked = asked(&mut bench);
        assert_eq!(asked.len(), 2);
        assert_ne!(asked[0][..2], asked[1][..2]);
        let answers: Vec<u8> = asked.iter().rev().flat_map(|message| answer(message)).collect();
        // However it is cut.
        for byte in answers {
            bench.names.data(&[byte]);
        }
        for (socket, expected) in [(one, b"idquestion-one"), (two, b"idquestion-two")] {
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], expected);
        }
    }

    #[test]
    fn an_answer_that_nobody_waits_for_goes_nowhere() {
        let mut bench = bench();
        let one = asker(bench.at);
        one.send(b"id-a-question").unwrap();
        bench.names.ask(0, &mut bench.agent);
        let message = asked(&mut bench).remove(0);
        let [high, low] =
            u16::from_be_bytes([message[0], message[1]]).wrapping_add(1).to_be_bytes();
        bench.names.data(&answer(&[&[high, low][..], b"0123456789"].concat()));
        bench.names.data(&answer(&message));
        bench.names.data(&answer(&message));
        let mut buffer = [0; 64];
        assert_eq!(one.recv(&mut buffer).unwrap(), 13);
        one.set_nonblocking(true).unwrap();
        assert!(one.recv(&mut buffer).is_err());
    }

    #[test]
    fn what_is_no_message_is_not_passed_on() {
        let mut bench = bench();
        let one = asker(bench.at);
        one.send(b"short").unwrap();
        one.send(&[0; QUESTION + 1]).unwrap();
        bench.names.ask(0, &mut bench.agent);
        assert!(asked(&mut bench).is_empty());
        bench.names.data(&answer(b"x"));
        assert!(bench.names.partial.is_empty());
    }

    #[test]
    fn the_oldest_question_makes_room() {
        let mut pending = Pending::default();
        let asker = Asker { socket: 0, address: ([127, 0, 0, 1], 1).into(), id: *b"id" };
        let first = pending.add(asker);
        for _ in 0..PENDING {
            pending.add(asker);
        }
        assert_eq!(pending.askers.len(), PENDING);
        assert_eq!(pending.take(first), None);
    }
}
