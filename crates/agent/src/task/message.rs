//! What the agent and a task's two processes tell each other, over one SEQPACKET socket a task:
//!
//! ```text
//! init   -> agent    READY, with the worker's pidfd and the terminal's master
//! agent  -> worker   the length of the orders, with the ends of the pipes; then the orders
//! worker -> agent    a report, unless it became the command: then the socket just closes
//! ```
//!
//! The orders hold secrets, so they are written into a buffer of the right size at once (one that
//! grew would leave copies behind) and wiped by either side.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use wire::op::{Command, OpError};
use wire::text::{Secret, Text};
use zeroize::Zeroizing;

use super::bounds::ProcessLimits;
use super::{Entry, ToolRequest};

/// The most descriptors that one message carries.
const FDS_MAX: usize = 3;
/// A packet of the orders: below the default send buffer, in which a packet has to fit whole.
const PACKET: usize = 64 << 10;
/// The longest report: a tool's reply is a few fields.
const REPORT_MAX: usize = 64 << 10;

/// The payload of init's one message.
pub(super) const READY: &[u8] = b"ready";

/// What the worker has to tell.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Report {
    /// It did not come to the exec, or to the tool.
    Failed(OpError),
    /// There is no such command.
    NotFound(String),
    /// It is there but cannot be run.
    NotExecutable(String),
    /// A tool ended well.
    Reply(serde_json::Value),
    /// A tool failed.
    Refused(OpError),
}

/// What a worker has to do: a [`super::Spec`] without what the agent sees to itself.
#[derive(Debug)]
pub(super) struct Orders {
    pub(super) entry: Entry,
    pub(super) user: Option<Text>,
    pub(super) cwd: Option<Text>,
    pub(super) env: BTreeMap<Text, Secret>,
    pub(super) terminal: bool,
    /// Where no cgroup bounds the task.
    pub(super) limits: Option<ProcessLimits>,
}

impl Orders {
    /// The bytes to send.
    pub(super) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut length = Counter(0);
        self.write(&mut length);
        let mut bytes = Zeroizing::new(Vec::with_capacity(length.0));
        self.write(&mut *bytes);
        bytes
    }

    fn write(&self, out: &mut impl Sink) {
        match &self.entry {
            Entry::Command(Command::Argv(arguments)) => {
                out.number(0);
                out.number(arguments.len());
                arguments.iter().for_each(|argument| out.bytes(argument.as_bytes()));
            }
            Entry::Command(Command::Shell(line)) => {
                out.number(1);
                out.bytes(line.as_bytes());
            }
            Entry::Tool(request) => {
                out.number(2);
                out.bytes(request.op.as_bytes());
                out.bytes(&request.payload);
            }
        }
        for text in [&self.user, &self.cwd] {
            out.number(usize::from(text.is_some()));
            if let Some(text) = text {
                out.bytes(text.as_bytes());
            }
        }
        out.number(self.env.len());
        for (name, value) in &self.env {
            out.bytes(name.as_bytes());
            out.bytes(value.expose());
        }
        out.number(usize::from(self.terminal));
        out.number(usize::from(self.limits.is_some()));
        if let Some(ProcessLimits { memory_bytes, pids }) = self.limits {
            out.put(&memory_bytes.to_le_bytes());
            out.put(&pids.to_le_bytes());
        }
    }

    /// The orders in these bytes; none where they are not such.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut bytes = Source(bytes);
        let entry = match bytes.number()? {
            0 => {
                let count = bytes.number()?;
                let arguments = (0..count).map(|_| bytes.text()).collect::<Option<_>>()?;
                Entry::Command(Command::Argv(arguments))
            }
            1 => Entry::Command(Command::Shell(bytes.text()?)),
            2 => Entry::Tool(ToolRequest {
                op: String::from_utf8(bytes.bytes()?.to_vec()).ok()?,
                payload: bytes.bytes()?.to_vec(),
            }),
            _ => return None,
        };
        let user = bytes.optional_text()?;
        let cwd = bytes.optional_text()?;
        let mut env = BTreeMap::new();
        for _ in 0..bytes.number()? {
            env.insert(bytes.text()?, Secret::new(bytes.bytes()?.to_vec()).ok()?);
        }
        let terminal = bytes.number()? != 0;
        let limits = match bytes.number()? {
            0 => None,
            _ => Some(ProcessLimits { memory_bytes: bytes.word()?, pids: bytes.word()? }),
        };
        bytes.0.is_empty().then_some(Self { entry, user, cwd, env, terminal, limits })
    }
}

/// Where encoded bytes go: first into a count, then into a buffer of that size.
trait Sink {
    fn put(&mut self, bytes: &[u8]);

    fn number(&mut self, number: usize) {
        self.put(&u64::try_from(number).unwrap_or(u64::MAX).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len());
        self.put(bytes);
    }
}

struct Counter(usize);

impl Sink for Counter {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    fn word(&mut self) -> Option<u64> {
        let (word, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*word))
    }

    fn number(&mut self) -> Option<usize> {
        usize::try_from(self.word()?).ok()
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<Text> {
        Text::new(self.bytes()?).ok()
    }

    fn optional_text(&mut self) -> Option<Option<Text>> {
        if self.number()? == 0 { Some(None) } else { self.text().map(Some) }
    }
}

/// Sends orders and the ends of pipes that go with them. Waits while the worker reads.
pub(super) fn send_orders(
    socket: BorrowedFd<'_>,
    orders: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    send(socket, &(orders.len() as u64).to_le_bytes(), fds)?;
    orders.chunks(PACKET).try_for_each(|packet| send(socket, packet, &[]))
}

/// Waits for orders; none where the agent let go of this worker.
pub(super) fn receive_orders(socket: BorrowedFd<'_>) -> io::Result<Option<(Orders, Vec<OwnedFd>)>> {
    let mut length = [0; 8];
    let (received, fds) = receive(socket, &mut length, RecvFlags::empty())?;
    if received == 0 {
        return Ok(None);
    }
    let length = usize::try_from(u64::from_le_bytes(length)).map_err(io::Error::other)?;
    let mut bytes = Zeroizing::new(vec![0; length]);
    for packet in bytes.chunks_mut(PACKET) {
        if receive(socket, packet, RecvFlags::empty())?.0 != packet.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let orders = Orders::decode(&bytes).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Some((orders, fds)))
}

/// Sends a report. Where even that fails the agent sees the socket close without one.
pub(super) fn send_report(socket: BorrowedFd<'_>, report: &Report) {
    let too_long = || {
        let error = OpError::new(wire::op::ErrorCode::Failed, "the reply is too long");
        serde_json::to_vec(&Report::Refused(error)).unwrap_or_default()
    };
    let bytes = serde_json::to_vec(report)
        .ok()
        .filter(|bytes| bytes.len() <= REPORT_MAX)
        .unwrap_or_else(too_long);
    drop(send(socket, &bytes, &[]));
}

/// What a worker told.
#[derive(Debug)]
pub(super) enum Told {
    /// A report.
    Report(Report),
    /// The socket is closed: the worker became the command, or ended.
    Closed,
    /// Nothing yet.
    Nothing,
}

/// Looks for a report, without waiting.
pub(super) fn receive_report(socket: BorrowedFd<'_>) -> Told {
    let mut bytes = vec![0; REPORT_MAX];
    match receive(socket, &mut bytes, RecvFlags::DONTWAIT) {
        Ok((0, _)) => Told::Closed,
        Ok((length, _)) => parse_report(&bytes[..length]).map_or(Told::Nothing, Told::Report),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Told::Nothing,
        Err(_) => Told::Closed,
    }
}

/// The report in a message; none in [`READY`].
pub(super) fn parse_report(bytes: &[u8]) -> Option<Report> {
    if bytes == READY {
        return None;
    }
    Some(serde_json::from_slice(bytes).unwrap_or_else(|error| {
        let message = format!("a task's report cannot be read: {error}");
        Report::Failed(OpError::new(wire::op::ErrorCode::Failed, message))
    }))
}

/// Waits for init's message, or for the report of one that failed.
pub(super) fn receive_ready(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; REPORT_MAX];
    let (length, fds) = receive(socket, &mut bytes, RecvFlags::empty())?;
    bytes.truncate(length);
    Ok((bytes, fds))
}

/// Sends one packet with descriptors.
pub(super) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let packet = [IoSlice::new(bytes)];
    rustix::io::retry_on_intr(|| sendmsg(socket, &packet, &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    flags: RecvFlags,
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::io::retry_on_intr(|| {
        let mut packet = [IoSliceMut::new(bytes)];
        recvmsg(socket, &mut packet, &mut control, flags | RecvFlags::CMSG_CLOEXEC)
    })?;
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok((message.bytes, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn orders(entry: Entry) -> Orders {
        Orders {
            entry,
            user: Some("dev:staff".into()),
            cwd: None,
            env: [("KEY".into(), Secret::new(b"v\xffl".to_vec()).unwrap())].into(),
            terminal: true,
            limits: Some(ProcessLimits { memory_bytes: 1 << 40, pids: 7 }),
        }
    }

    fn entries() -> [Entry; 3] {
        [
            Entry::Command(Command::Argv(vec!["echo".into(), "".into(), "a b".into()])),
            Entry::Command(Command::Shell("true && false".into())),
            Entry::Tool(ToolRequest { op: "stat".into(), payload: b"{}".to_vec() }),
        ]
    }

    fn pair() -> (OwnedFd, OwnedFd) {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn orders_are_decoded_as_they_were_encoded() {
        for entry in entries() {
            let sent = orders(entry);
            let bytes = sent.encode();
            assert_eq!(bytes.len(), bytes.capacity());
            assert_eq!(format!("{:?}", Orders::decode(&bytes).unwrap()), format!("{sent:?}"));
        }
    }

    #[test]
    fn orders_cut_short_or_too_long_are_none() {
        for entry in entries() {
            let bytes = orders(entry).encode();
            for length in 0..bytes.len() {
                assert!(Orders::decode(&bytes[..length]).is_none());
            }
            assert!(Orders::decode(&[&bytes[..], &[0]].concat()).is_none());
        }
    }

    #[test]
    fn long_orders_arrive_whole_with_their_pipes() {
        let (agent, worker) = pair();
        let line = "x".repeat(1 << 20);
        let entry = Entry::Command(Command::Shell(line.as_str().into()));
        let bytes = orders(entry).encode();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let sender = std::thread::spawn(move || {
            send_orders(agent.as_fd(), &bytes, &[read.as_fd(), write.as_fd()])
        });
        let (orders, fds) = receive_orders(worker.as_fd()).unwrap().unwrap();
        sender.join().unwrap().unwrap();
        assert_eq!(fds.len(), 2);
        assert!(
            matches!(orders.entry, Entry::Command(Command::Shell(got)) if got == line.as_str().into())
        );
    }

    #[test]
    fn a_worker_that_is_let_go_gets_no_orders() {
        let (agent, worker) = pair();
        drop(agent);
        assert!(receive_orders(worker.as_fd()).unwrap().is_none());
    }

    #[test]
    fn reports_are_told_apart_from_silence_and_the_end() {
        let (agent, worker) = pair();
        assert!(matches!(receive_report(agent.as_fd()), Told::Nothing));
        let report = Report::NotFound("nope".into());
        send_report(worker.as_fd(), &report);
        assert!(matches!(receive_report(agent.as_fd()), Told::Report(got) if got == report));
        drop(worker);
        assert!(matches!(receive_report(agent.as_fd()), Told::Closed));
    }

    #[test]
    fn a_reply_that_is_too_long_becomes_an_error() {
        let (agent, worker) = pair();
        let reply = serde_json::Value::String("x".repeat(REPORT_MAX));
        send_report(worker.as_fd(), &Report::Reply(reply));
        assert!(matches!(receive_report(agent.as_fd()), Told::Report(Report::Refused(_))));
    }
}
