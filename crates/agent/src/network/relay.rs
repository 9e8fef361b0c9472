//! One TCP connection of a task, whose other end is a stream to the host.
//!
//! What either side is slow to take, the other is slow to be asked for: bytes are read from the
//! socket as far as the stream has room, and the stream's window opens again as the socket takes
//! what came on it. So a relay holds a window in each direction at most.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown, recv, shutdown, sockopt};
use wire::connection::{Connection, cancelled};
use wire::frame::{MAX_DATA, StreamId};

/// Bytes that are moved one way before others get their turn.
const TURN: usize = 4 * MAX_DATA;

/// A connection under way.
#[derive(Debug)]
pub(super) struct Relay {
    socket: OwnedFd,
    stream: StreamId,
    /// From the host, not taken by the socket yet.
    queue: VecDeque<Vec<u8>>,
    /// How much of the first is.
    offset: usize,
    from_task: Half,
    from_host: Half,
    /// The stream has no room for more from the task.
    is_blocked: bool,
    /// What is watched for now; see [`Self::wanted`].
    pub(super) watched: Option<EventFlags>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    Open,
    /// No more will come.
    Ended,
    /// And all of it was passed on.
    Done,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Lives,
    Over,
}

impl AsFd for Relay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Relay {
    pub(super) fn new(socket: OwnedFd, stream: StreamId) -> Self {
        Self {
            socket,
            stream,
            queue: VecDeque::new(),
            offset: 0,
            from_task: Half::Open,
            from_host: Half::Open,
            is_blocked: false,
            watched: None,
        }
    }

    pub(super) fn stream(&self) -> StreamId {
        self.stream
    }

    /// What the socket is to be watched for. Nothing at all where it could only tell again and
    /// again of an end that is known.
    pub(super) fn wanted(&self) -> Option<EventFlags> {
        let mut flags = EventFlags::empty();
        if self.from_task == Half::Open && !self.is_blocked {
            flags |= EventFlags::IN;
        }
        if !self.queue.is_empty() {
            flags |= EventFlags::OUT;
        }
        (!flags.is_empty() || self.from_host != Half::Done).then_some(flags)
    }

    /// The socket has something to tell.
    pub(super) fn woken(&mut self, flags: EventFlags, connection: &mut Connection) -> Fate {
        if flags.intersects(EventFlags::ERR | EventFlags::HUP)
            && !matches!(sockopt::socket_error(&self.socket), Ok(Ok(())))
        {
            return self.abort(connection);
        }
        if flags.contains(EventFlags::OUT) && self.push(connection) == Fate::Over {
            return Fate::Over;
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP) {
            return self.pull(connection);
        }
        Fate::Lives
    }

    /// The stream has room again.
    pub(super) fn writable(&mut self, connection: &mut Connection) -> Fate {
        self.is_blocked = false;
        self.pull(connection)
    }

    /// From the socket to the stream.
    fn pull(&mut self, connection: &mut Connection) -> Fate {
        let mut buffer = [MaybeUninit::uninit(); MAX_DATA];
        let mut moved = 0;
        while self.from_task == Half::Open && moved < TURN {
            let room = connection.room(self.stream).min(MAX_DATA);
            if room == 0 {
                self.is_blocked = true;
                break;
            }
            match recv(&self.socket, &mut buffer[..room], RecvFlags::empty()) {
                Ok((_, 0)) => {
                    connection.close(self.stream, Vec::new());
                    self.from_task = Half::Done;
                }
                Ok(((bytes, _), count)) => {
                    moved += count;
                    connection.send(self.stream, bytes.to_vec());
                    // A short read has emptied the socket: to be told so would be one call more.
                    if count < room {
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return self.abort(connection),
            }
        }
        self.fate()
    }

    /// Bytes from the host.
    pub(super) fn data(&mut self, bytes: Vec<u8>, connection: &mut Connection) -> Fate {
        self.queue.push_back(bytes);
        if self.queue.len() == 1 { self.push(connection) } else { Fate::Lives }
    }

    /// The host sends no more.
    pub(super) fn closed(&mut self, connection: &mut Connection) -> Fate {
        self.from_host = Half::Ended;
        self.push(connection)
    }

    /// From the stream to the socket.
    fn push(&mut self, connection: &mut Connection) -> Fate {
        while let Some(bytes) = self.queue.front() {
            match rustix::io::write(&self.socket, &bytes[self.offset..]) {
                Ok(count) => {
                    connection.consumed(self.stream, count);
                    self.offset += count;
                    if self.offset == bytes.len() {
                        self.queue.pop_front();
                        self.offset = 0;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Fate::Lives,
                Err(_) => return self.abort(connection),
            }
        }
        if self.from_host == Half::Ended {
            let _ = shutdown(&self.socket, Shutdown::Write);
            self.from_host = Half::Done;
        }
        self.fate()
    }

    fn fate(&self) -> Fate {
        match (self.from_task, self.from_host) {
            (Half::Done, Half::Done) => Fate::Over,
            _ => Fate::Lives,
        }
    }

    /// The host ended the stream both ways. Behind its last bytes that is how a server closes: what
    /// it sent still goes out, and the kernel answers what the task may yet send.
    pub(super) fn reset(&mut self, connection: &mut Connection) -> Fate {
        if self.from_host == Half::Open {
            return self.abort(connection);
        }
        // What was sent before, and unread, would turn the end into a reset.
        let mut buffer = [MaybeUninit::uninit(); MAX_DATA];
        for _ in 0..TURN / MAX_DATA {
            if !matches!(recv(&self.socket, &mut buffer, RecvFlags::empty()), Ok((_, 1..))) {
                break;
            }
        }
        self.from_task = Half::Done;
        self.push(connection)
    }

    /// Ends both: the stream, and the connection by a reset.
    pub(super) fn abort(&mut self, connection: &mut Connection) -> Fate {
        connection.reset(self.stream, &cancelled());
        self.cut();
        Fate::Over
    }

    /// Makes the close of the socket a reset.
    pub(super) fn cut(&mut self) {
        cut(&self.socket);
    }
}

/// Makes the close of a socket a reset.
pub(super) fn cut(socket: &OwnedFd) {
    // Where that fails the end is a plain one.
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

/// Where the task meant to go. A connection to the relay itself was refused by the rules; were it
/// not, it would be by this.
pub(super) fn destination(socket: &OwnedFd, is_v6: bool) -> io::Result<SocketAddr> {
    let address = match is_v6 {
        false => SocketAddr::V4(sockopt::ip_original_dst(socket)?),
        true => SocketAddr::V6(sockopt::ipv6_original_dst(socket)?),
    };
    match address.ip().is_loopback() {
        false => Ok(address),
        true => Err(io::ErrorKind::ConnectionRefused.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use wire::connection::{Event, Side, WINDOW};
    use zeroize::Zeroizing;

    use super::*;

    struct Bench {
        relay: Relay,
        task: TcpStream,
        agent: Connection,
        host: Connection,
    }

    fn bench() -> Bench {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let task = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut agent = Connection::new(Side::Agent, b"{}".to_vec());
        let mut host = Connection::new(Side::Host, b"{}".to_vec());
        let stream = agent.open(Zeroizing::default()).unwrap();
        carry(&mut agent, &mut host);
        carry(&mut host, &mut agent);
        while host.poll_event().is_some() {}
        while agent.poll_event().is_some() {}
        Bench { relay: Relay::new(socket.into(), stream), task, agent, host }
    }

    fn carry(from: &mut Connection, to: &mut Connection) {
        let mut out = Zeroizing::default();
        from.transmit(&mut out, usize::MAX);
        to.receive(&out).unwrap();
    }

    /// Has the host send, and the relay take it.
    fn answer(bench: &mut Bench, bytes: &[u8]) {
        let stream = bench.relay.stream();
        bench.host.send(stream, bytes.to_vec());
        carry(&mut bench.host, &mut bench.agent);
        assert_eq!(bench.agent.poll_event(), Some(Event::Data(stream, bytes.to_vec())));
        assert_eq!(bench.relay.data(bytes.to_vec(), &mut bench.agent), Fate::Lives);
    }

    /// Waits for what the relay waits for, and lets it act.
    fn turn(bench: &mut Bench) -> Fate {
        use rustix::event::{PollFd, PollFlags, poll};
        let wanted = bench.relay.wanted().expect("it waits for something");
        let flags = PollFlags::from_bits_truncate(u16::try_from(wanted.bits()).unwrap());
        let mut watched = [PollFd::new(&bench.relay.socket, flags)];
        poll(&mut watched, None).unwrap();
        let found = EventFlags::from_bits_truncate(watched[0].revents().bits().into());
        bench.relay.woken(found, &mut bench.agent)
    }

    #[test]
    fn a_task_that_sends_without_end_is_read_for_one_window() {
        let mut bench = bench();
        bench.task.set_nonblocking(true).unwrap();
        while bench.relay.wanted().is_some_and(|flags| flags.contains(EventFlags::IN)) {
            let _ = bench.task.write(&[7; 64 << 10]);
            assert_eq!(turn(&mut bench), Fate::Lives);
        }
        carry(&mut bench.agent, &mut bench.host);
        let mut received = 0;
        while let Some(Event::Data(_, bytes)) = bench.host.poll_event() {
            received += bytes.len();
        }
        assert_eq!(received, WINDOW);
    }

    #[test]
    fn a_task_s_end_leaves_the_host_s_half_open() {
        let mut bench = bench();
        bench.task.write_all(b"question").unwrap();
        bench.task.shutdown(std::net::Shutdown::Write).unwrap();
        let stream = bench.relay.stream();
        while bench.relay.from_task == Half::Open {
            assert_eq!(turn(&mut bench), Fate::Lives);
        }
        answer(&mut bench, b"answer");
        assert_eq!(bench.relay.closed(&mut bench.agent), Fate::Over);
        drop(bench.relay);
        let mut received = Vec::new();
        bench.task.read_to_end(&mut received).unwrap();
        assert_eq!(received, b"answer");
        carry(&mut bench.agent, &mut bench.host);
        assert_eq!(bench.host.poll_event(), Some(Event::Data(stream, b"question".to_vec())));
        assert_eq!(bench.host.poll_event(), Some(Event::Closed(stream, Vec::new())));
    }

    #[test]
    fn a_reset_by_the_host_is_one_to_the_task() {
        let mut bench = bench();
        assert_eq!(bench.relay.reset(&mut bench.agent), Fate::Over);
        drop(bench.relay);
        let error = bench.task.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_reset_behind_the_host_s_last_bytes_loses_none() {
        let mut bench = bench();
        bench.task.write_all(b"unread").unwrap();
        answer(&mut bench, b"answer");
        bench.relay.closed(&mut bench.agent);
        assert_eq!(bench.relay.reset(&mut bench.agent), Fate::Over);
        drop(bench.relay);
        let mut received = Vec::new();
        bench.task.read_to_end(&mut received).unwrap();
        assert_eq!(received, b"answer");
    }

    #[test]
    fn a_reset_by_the_task_is_one_of_the_stream() {
        let mut bench = bench();
        cut(&OwnedFd::from(bench.task.try_clone().unwrap()));
        drop(std::mem::replace(&mut bench.task, TcpStream::connect(dummy()).unwrap()));
        assert_eq!(turn(&mut bench), Fate::Over);
        carry(&mut bench.agent, &mut bench.host);
        let stream = bench.relay.stream();
        assert_eq!(bench.host.poll_event(), Some(Event::Reset(stream, cancelled())));
    }

    fn dummy() -> SocketAddr {
        static LISTENER: std::sync::OnceLock<TcpListener> = std::sync::OnceLock::new();
        let listener = LISTENER.get_or_init(|| TcpListener::bind(("127.0.0.1", 0)).unwrap());
        listener.local_addr().unwrap()
    }

    #[test]
    fn what_a_task_does_not_read_keeps_the_window_closed() {
        let mut bench = bench();
        let stream = bench.relay.stream();
        let mut sent = 0;
        // As much as the socket's buffers and the window hold, and not a byte of credit more.
        loop {
            let room = bench.host.room(stream).min(MAX_DATA);
            if room == 0 {
                break;
            }
            bench.host.send(stream, vec![1; room]);
            sent += room;
            carry(&mut bench.host, &mut bench.agent);
            while let Some(event) = bench.agent.poll_event() {
                if let Event::Data(_, bytes) = event {
                    assert_eq!(bench.relay.data(bytes, &mut bench.agent), Fate::Lives);
                }
            }
            carry(&mut bench.agent, &mut bench.host);
            while bench.host.poll_event().is_some() {}
        }
        assert!(bench.relay.wanted().is_some_and(|flags| flags.contains(EventFlags::OUT)));
        let reader = std::thread::spawn(move || {
            let mut all = vec![0; sent];
            bench.task.read_exact(&mut all).unwrap();
        });
        let Bench { mut relay, mut agent, .. } =
            Bench { task: TcpStream::connect(dummy()).unwrap(), ..bench };
        while !relay.queue.is_empty() {
            relay.push(&mut agent);
        }
        reader.join().unwrap();
    }
}
