//! The two tasks that move bytes between the carrier and the connection, and the state that
//! they share with the calls.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use wire::connection::{Connection, Event, Side, TYPICAL_READ, cancelled};
use wire::envelope::{SALT, Sealer, SigningKey, TaskDigest, VerifyingKey};
use wire::frame::{MAX_DATA, StreamId};
use wire::handshake::{Hello, Scanner};
use wire::op::{AgentOpen, ErrorCode, OpError, Operation};
use zeroize::Zeroizing;

use crate::{GuestStreams, LinkError, random};

/// How often the host knocks while no agent answers. Nothing is lost while a guest boots, its
/// port takes nothing before it is open; but an agent that still reads what an earlier host
/// left may take a knock for the end of it.
const KNOCK: Duration = Duration::from_secs(1);

/// Bytes handed to the carrier at once.
const TRANSMIT: usize = 256 << 10;

pub(crate) struct Shared {
    state: Mutex<State>,
    /// Who takes the streams of tasks, if they may have any.
    takes: Option<Arc<dyn GuestStreams>>,
    transmit: Arc<Notify>,
    ended: watch::Sender<Option<LinkError>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

struct State {
    connection: Connection,
    sealer: Sealer,
    streams: HashMap<StreamId, Inbox>,
    /// Standard errors by the stream of their process: opened by the agent and not yet taken,
    /// or taken and not yet opened.
    stderr: HashMap<StreamId, StreamId>,
    stderr_wanted: HashMap<StreamId, Arc<Notify>>,
    pings: HashMap<u64, oneshot::Sender<()>>,
    next_ping: u64,
}

/// What arrived on a stream and was not read yet: a window at most.
#[derive(Default)]
struct Inbox {
    chunks: VecDeque<Vec<u8>>,
    /// Bytes of the first chunk that were read.
    read: usize,
    end: Option<Result<Vec<u8>, OpError>>,
    readable: Arc<Notify>,
    writable: Arc<Notify>,
    /// Of the two halves of a [`GuestStream`].
    wakers: [Option<Waker>; 2],
}

const READER: usize = 0;
const WRITER: usize = 1;

/// Finds the agent and starts the two tasks.
pub(crate) async fn connect<R, W>(
    mut reader: R,
    mut writer: W,
    sealer: impl FnOnce(u64) -> Sealer,
    takes: Option<Arc<dyn GuestStreams>>,
) -> Result<Arc<Shared>, LinkError>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let own = Hello::new(env!("CARGO_PKG_VERSION"), 0);
    let own = serde_json::to_vec(&own).expect("a hello is plain JSON");
    let mut connection = Connection::new(Side::Host, own);
    let rest = knock(&mut reader, &mut writer).await?;
    connection.receive(&rest)?;
    let mut out = Zeroizing::default();
    connection.transmit(&mut out, usize::MAX);
    writer.write_all(&out).await?;
    let hello = loop {
        match connection.poll_event() {
            Some(Event::Hello(hello)) => break hello,
            Some(Event::Knock(_)) => continue,
            Some(_) => return Err(LinkError::Protocol("it spoke before its hello".into())),
            None => {}
        }
        let mut bytes = vec![0; 4096];
        let count = reader.read(&mut bytes).await?;
        if count == 0 {
            return Err(LinkError::Disconnected("it closed during the handshake".into()));
        }
        connection.receive(&bytes[..count])?;
    };
    let hello: Hello = serde_json::from_slice(&hello)
        .map_err(|_| LinkError::Protocol("its hello is not readable".into()))?;
    hello.agree()?;
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            connection,
            sealer: sealer(hello.sequence),
            streams: HashMap::new(),
            stderr: HashMap::new(),
            stderr_wanted: HashMap::new(),
            pings: HashMap::new(),
            next_ping: 0,
        }),
        takes,
        transmit: Arc::default(),
        ended: watch::Sender::new(None),
    });
    let receiver = tokio::spawn(receive(Arc::downgrade(&shared), reader));
    let (weak, wanted) = (Arc::downgrade(&shared), shared.transmit.clone());
    tokio::spawn(transmit(weak, wanted, writer, receiver));
    Ok(shared)
}

/// Knocks until it is echoed; the bytes behind the echo.
async fn knock<R, W>(reader: &mut R, writer: &mut W) -> Result<Vec<u8>, LinkError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut nonce = [0; 16];
    random(&mut nonce)?;
    let mut scanner = Scanner::echo_of(nonce);
    let mut bytes = vec![0; TYPICAL_READ];
    loop {
        writer.write_all(&wire::handshake::knock(&nonce)).await?;
        writer.flush().await?;
        let again = tokio::time::sleep(KNOCK);
        tokio::pin!(again);
        loop {
            let count = tokio::select! {
                count = reader.read(&mut bytes) => count?,
                () = &mut again => break,
            };
            if count == 0 {
                return Err(LinkError::Disconnected("it closed before it answered".into()));
            }
            if let Some((_, used)) = scanner.scan(&bytes[..count]) {
                return Ok(bytes[used..count].to_vec());
            }
        }
    }
}

async fn receive<R: AsyncRead + Unpin>(shared: Weak<Shared>, mut reader: R) {
    let mut bytes = vec![0; TYPICAL_READ];
    loop {
        let count = reader.read(&mut bytes).await;
        let Some(shared) = shared.upgrade() else { return };
        let verdict = match count {
            Ok(0) => Err(LinkError::Disconnected("the guest closed it".into())),
            Ok(count) => shared.accept(&bytes[..count]),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = verdict {
            return shared.end(error);
        }
    }
}

/// Ends, and `receiver` with it, when the last handle is dropped or the carrier breaks.
async fn transmit<W: AsyncWrite + Unpin>(
    shared: Weak<Shared>,
    wanted: Arc<Notify>,
    mut writer: W,
    receiver: JoinHandle<()>,
) {
    let mut out: Zeroizing<Vec<u8>> = Zeroizing::new(Vec::with_capacity(TRANSMIT + 2 * MAX_DATA));
    while let Some(strong) = shared.upgrade() {
        strong.lock().connection.transmit(&mut out, TRANSMIT);
        drop(strong);
        if out.is_empty() {
            wanted.notified().await;
        } else if let Err(error) = writer.write_all(&out).await {
            if let Some(strong) = shared.upgrade() {
                strong.end(error.into());
            }
            break;
        }
        // Arguments and variables went through here; the next frames may be a while.
        wire::text::wipe(&mut out);
        out.clear();
    }
    receiver.abort();
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.transmit.notify_one();
        // They see that there is no connection any more.
        self.lock().streams.values_mut().for_each(Inbox::wake);
    }
}

impl Shared {
    /// A poisoned lock means that a thread died while it held the state: nothing in here
    /// leaves it half-changed, so going on is sound.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, bytes: &[u8]) -> Result<(), LinkError> {
        let mut opened = Vec::new();
        {
            let mut state = self.lock();
            let state = &mut *state;
            state.connection.receive(bytes)?;
            while let Some(event) = state.connection.poll_event() {
                state.dispatch(event, self.takes.is_some(), &mut opened)?;
            }
            if state.connection.wants_transmit() {
                self.transmit.notify_one();
            }
        }
        // Whoever takes them may use them at once, for which the lock has to be free.
        if let Some(takes) = &self.takes {
            for (id, kind) in opened {
                let stream = GuestStream { id, shared: Arc::downgrade(self), is_over: false };
                match kind {
                    AgentOpen::Connect { address, port } => takes.connect(address, port, stream),
                    AgentOpen::Dns {} => takes.dns(stream),
                    AgentOpen::Stderr { .. } => {}
                }
            }
        }
        Ok(())
    }

    fn end(&self, error: LinkError) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(error);
            }
            first
        });
        let mut state = self.lock();
        state.streams.values_mut().for_each(Inbox::wake);
        for wanted in state.stderr_wanted.values() {
            wanted.notify_one();
        }
        state.pings.clear();
    }

    fn failure(&self) -> Option<LinkError> {
        self.ended.borrow().clone()
    }

    fn check(&self) -> Result<(), LinkError> {
        self.failure().map_or(Ok(()), Err)
    }

    pub(crate) async fn closed(&self) -> LinkError {
        let mut ended = self.ended.subscribe();
        let ended = ended.wait_for(Option::is_some).await;
        match ended {
            Ok(error) => error.clone().expect("waited for it"),
            Err(_) => LinkError::Disconnected("the connection was dropped".into()),
        }
    }

    /// Operations are signed for another sandbox with another key from now on.
    pub(crate) fn sign_for(&self, sandbox: &str, key: SigningKey) {
        self.lock().sealer.sign_for(sandbox, key);
    }

    /// The sandbox and the key that operations are signed for and with.
    pub(crate) fn signs_for(&self) -> (String, VerifyingKey) {
        let state = self.lock();
        (state.sealer.sandbox().to_owned(), state.sealer.verifying_key())
    }

    pub(crate) fn open<O: Operation>(
        self: &Arc<Self>,
        operation: &O,
        expires_ms: u64,
        salt: &[u8; SALT],
    ) -> Result<(Stream, TaskDigest), LinkError> {
        self.check()?;
        let mut state = self.lock();
        let (envelope, digest) = state.sealer.seal(operation, expires_ms, salt)?;
        let id = state
            .connection
            .open(envelope)
            .map_err(|error| LinkError::Request(error.to_string()))?;
        let stream = self.handle(&mut state, id);
        self.transmit.notify_one();
        Ok((stream, digest))
    }

    fn handle(self: &Arc<Self>, state: &mut State, id: StreamId) -> Stream {
        let inbox = state.streams.entry(id).or_default();
        Stream {
            id,
            readable: inbox.readable.clone(),
            writable: inbox.writable.clone(),
            shared: self.clone(),
        }
    }

    pub(crate) async fn ping(&self) -> Result<Duration, LinkError> {
        self.check()?;
        let begun = Instant::now();
        let answered = {
            let mut state = self.lock();
            let (sender, answered) = oneshot::channel();
            let token = state.next_ping;
            state.next_ping += 1;
            state.pings.insert(token, sender);
            state.connection.ping(token);
            self.transmit.notify_one();
            answered
        };
        match answered.await {
            Ok(()) => Ok(begun.elapsed()),
            Err(_) => Err(self.closed().await),
        }
    }
}

impl State {
    /// Streams that tasks opened are added to `opened`, or refused where nobody `takes` them.
    fn dispatch(
        &mut self,
        event: Event,
        takes: bool,
        opened: &mut Vec<(StreamId, AgentOpen)>,
    ) -> Result<(), LinkError> {
        match event {
            // An echo of a second knock.
            Event::Hello(_) | Event::Knock(_) => {}
            Event::Opened(id, payload) => match serde_json::from_slice(&payload) {
                Ok(AgentOpen::Stderr { of }) if self.streams.contains_key(&of) => {
                    self.streams.entry(id).or_default();
                    if self.stderr.insert(of, id).is_some() {
                        return Err(LinkError::Protocol("a process has two stderrs".into()));
                    }
                    if let Some(wanted) = self.stderr_wanted.get(&of) {
                        wanted.notify_one();
                    }
                }
                // Its process was given up meanwhile.
                Ok(AgentOpen::Stderr { .. }) => self.connection.reset(id, &cancelled()),
                Ok(kind) if takes => {
                    self.streams.entry(id).or_default();
                    opened.push((id, kind));
                }
                Ok(_) => {
                    let message = "this sandbox has no network";
                    let refusal = OpError::new(ErrorCode::PermissionDenied, message);
                    self.connection.reset(id, &refusal);
                }
                Err(_) => {
                    let refusal = OpError::new(ErrorCode::Unsupported, "no such stream kind");
                    self.connection.reset(id, &refusal);
                }
            },
            Event::Data(id, bytes) => match self.streams.get_mut(&id) {
                Some(inbox) => inbox.push(bytes),
                None => self.connection.consumed(id, bytes.len()),
            },
            Event::Closed(id, payload) => self.finish(id, Ok(payload)),
            Event::Reset(id, error) => self.finish(id, Err(error)),
            Event::Writable(id) => {
                if let Some(inbox) = self.streams.get_mut(&id) {
                    inbox.wake_writer();
                }
            }
            Event::Pong(token) => {
                if let Some(sender) = self.pings.remove(&token) {
                    let _ = sender.send(());
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self, id: StreamId, end: Result<Vec<u8>, OpError>) {
        if let Some(wanted) = self.stderr_wanted.get(&id) {
            wanted.notify_one();
        }
        if let Some(inbox) = self.streams.get_mut(&id) {
            inbox.end = Some(end);
            inbox.wake();
        }
    }
}

impl Inbox {
    /// Small chunks are joined, so that a peer that sends bytes one by one costs bytes.
    fn push(&mut self, bytes: Vec<u8>) {
        match self.chunks.back_mut() {
            Some(last) if last.len() + bytes.len() <= MAX_DATA => last.extend_from_slice(&bytes),
            _ => self.chunks.push_back(bytes),
        }
        self.wake_reader();
    }

    fn wake_reader(&mut self) {
        self.readable.notify_one();
        if let Some(waker) = self.wakers[READER].take() {
            waker.wake();
        }
    }

    fn wake_writer(&mut self) {
        self.writable.notify_one();
        if let Some(waker) = self.wakers[WRITER].take() {
            waker.wake();
        }
    }

    fn wake(&mut self) {
        // Several may read the same end.
        self.readable.notify_waiters();
        self.wake_reader();
        self.wake_writer();
    }

    /// Copies what is there; how many bytes.
    fn read_into(&mut self, buffer: &mut ReadBuf<'_>) -> usize {
        let before = buffer.remaining();
        while buffer.remaining() > 0
            && let Some(chunk) = self.chunks.front()
        {
            let rest = &chunk[self.read..];
            let count = rest.len().min(buffer.remaining());
            buffer.put_slice(&rest[..count]);
            self.read += count;
            if self.read == chunk.len() {
                self.chunks.pop_front();
                self.read = 0;
            }
        }
        before - buffer.remaining()
    }
}

/// One stream of the connection; dropping it resets the stream if it is not over.
pub(crate) struct Stream {
    id: StreamId,
    readable: Arc<Notify>,
    writable: Arc<Notify>,
    shared: Arc<Shared>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({})", self.id)
    }
}

impl Stream {
    /// The next bytes, or the end.
    pub(crate) async fn read(&self) -> Result<Option<Vec<u8>>, LinkError> {
        loop {
            {
                let mut state = self.shared.lock();
                let state = &mut *state;
                let Some(inbox) = state.streams.get_mut(&self.id) else { return Ok(None) };
                if let Some(chunk) = inbox.chunks.pop_front() {
                    state.connection.consumed(self.id, chunk.len());
                    if state.connection.wants_transmit() {
                        self.shared.transmit.notify_one();
                    }
                    return Ok(Some(chunk));
                }
                match &inbox.end {
                    Some(Ok(_)) => return Ok(None),
                    Some(Err(error)) => return Err(error.clone().into()),
                    None => self.shared.check()?,
                }
            }
            self.readable.notified().await;
        }
    }

    /// The peer's last word; output that was not read is dropped.
    pub(crate) async fn end(&self) -> Result<Vec<u8>, LinkError> {
        while self.read().await?.is_some() {}
        let state = self.shared.lock();
        match state.streams.get(&self.id).and_then(|inbox| inbox.end.clone()) {
            Some(end) => Ok(end?),
            None => Err(LinkError::Protocol("a stream ended without an end".into())),
        }
    }

    /// Sends all of `bytes`, as fast as the peer takes them. Where the operation has ended,
    /// what is left is dropped: its reply tells why.
    pub(crate) async fn write(&self, mut bytes: &[u8]) -> Result<(), LinkError> {
        while !bytes.is_empty() {
            {
                let mut state = self.shared.lock();
                self.shared.check()?;
                let over = state.streams.get(&self.id).is_none_or(|inbox| inbox.end.is_some());
                if over || !state.connection.is_writable(self.id) {
                    return Ok(());
                }
                let room = state.connection.room(self.id).min(bytes.len()).min(MAX_DATA);
                if room > 0 {
                    state.connection.send(self.id, bytes[..room].to_vec());
                    bytes = &bytes[room..];
                    self.shared.transmit.notify_one();
                    continue;
                }
            }
            self.writable.notified().await;
        }
        Ok(())
    }

    /// Ends this side's half.
    pub(crate) fn finish(&self) {
        self.shared.lock().connection.close(self.id, Vec::new());
        self.shared.transmit.notify_one();
    }

    /// The standard error that the agent opens for this stream's process, or nothing where
    /// the operation ended without one.
    pub(crate) async fn stderr(&self) -> Result<Option<Self>, LinkError> {
        loop {
            let wanted = {
                let mut state = self.shared.lock();
                if let Some(id) = state.stderr.remove(&self.id) {
                    state.stderr_wanted.remove(&self.id);
                    return Ok(Some(self.shared.handle(&mut state, id)));
                }
                let over = state.streams.get(&self.id).is_none_or(|inbox| inbox.end.is_some());
                if over {
                    state.stderr_wanted.remove(&self.id);
                    return Ok(None);
                }
                self.shared.check()?;
                state.stderr_wanted.entry(self.id).or_default().clone()
            };
            wanted.notified().await;
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let state = &mut *state;
        let ids = [Some(self.id), state.stderr.remove(&self.id)];
        state.stderr_wanted.remove(&self.id);
        for id in ids.into_iter().flatten() {
            state.streams.remove(&id);
            state.connection.reset(id, &cancelled());
        }
        self.shared.transmit.notify_one();
    }
}

/// A stream that a task of the guest opened: one TCP connection, or its questions for names.
///
/// Reading ends where the task ends its half; `shutdown` ends the host's, behind what was written.
/// Dropped after that, it ends behind its last bytes. Dropped before, it is a reset, and so is
/// the task's connection. It keeps no connection to a guest alive.
pub struct GuestStream {
    id: StreamId,
    shared: Weak<Shared>,
    is_over: bool,
}

impl fmt::Debug for GuestStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestStream({})", self.id)
    }
}

impl GuestStream {
    /// Ends it both ways, at once: the task sees its connection reset. The error is for the
    /// record; no task is told.
    pub fn refuse(mut self, error: &OpError) {
        self.is_over = true;
        let Some(shared) = self.shared.upgrade() else { return };
        let mut state = shared.lock();
        state.streams.remove(&self.id);
        state.connection.reset(self.id, error);
        shared.transmit.notify_one();
    }

    fn upgrade(&self) -> io::Result<Arc<Shared>> {
        self.shared.upgrade().ok_or_else(|| disconnected("the connection was dropped"))
    }
}

fn disconnected(reason: impl fmt::Display) -> io::Error {
    let message = format!("the connection to the guest ended: {reason}");
    io::Error::new(io::ErrorKind::BrokenPipe, message)
}

fn reset(error: &OpError) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error.clone())
}

impl AsyncRead for GuestStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let shared = self.upgrade()?;
        let mut state = shared.lock();
        let State { streams, connection, .. } = &mut *state;
        let Some(inbox) = streams.get_mut(&self.id) else { return Poll::Ready(Ok(())) };
        let count = inbox.read_into(buffer);
        if count > 0 {
            connection.consumed(self.id, count);
            if connection.wants_transmit() {
                shared.transmit.notify_one();
            }
            return Poll::Ready(Ok(()));
        }
        match &inbox.end {
            Some(Ok(_)) => return Poll::Ready(Ok(())),
            Some(Err(error)) => return Poll::Ready(Err(reset(error))),
            None => shared.check().map_err(disconnected)?,
        }
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        inbox.wakers[READER] = Some(context.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let shared = self.upgrade()?;
        shared.check().map_err(disconnected)?;
        let mut state = shared.lock();
        let State { streams, connection, .. } = &mut *state;
        let Some(inbox) = streams.get_mut(&self.id) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        if let Some(Err(error)) = &inbox.end {
            return Poll::Ready(Err(reset(error)));
        }
        if !connection.is_writable(self.id) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let count = connection.room(self.id).min(bytes.len()).min(MAX_DATA);
        if count == 0 {
            inbox.wakers[WRITER] = Some(context.waker().clone());
            return Poll::Pending;
        }
        connection.send(self.id, bytes[..count].to_vec());
        shared.transmit.notify_one();
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shared = self.upgrade()?;
        shared.lock().connection.close(self.id, Vec::new());
        shared.transmit.notify_one();
        Poll::Ready(Ok(()))
    }
}

impl Drop for GuestStream {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        if self.is_over {
            return;
        }
        let mut state = shared.lock();
        state.streams.remove(&self.id);
        state.connection.abandon(self.id);
        shared.transmit.notify_one();
    }
}
