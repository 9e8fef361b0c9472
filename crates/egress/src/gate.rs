//! A gate before the HTTP/1.1 parser. hyper mends what it can read in one way: two lengths that
//! agree, a length beside chunks, bare line feeds. An origin behind us might read such a message in
//! another way, so here it is refused, before anything of it is forwarded.
//!
//! The gate changes no byte. What it refuses it replaces by a NUL, which hyper answers with 400
//! before it closes the connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Longest head, in bytes.
pub(crate) const MAX_HEAD: usize = 64 << 10;
/// Most header fields.
pub(crate) const MAX_FIELDS: usize = 128;
/// Longest line of a chunk's size, and of all trailers.
const MAX_CHUNK_LINE: usize = 18;
const MAX_TRAILERS: usize = 8 << 10;

/// What the gate does not let pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// Where in the bytes of a connection the gate is.
#[derive(Debug, Default)]
pub(crate) struct Framing {
    state: State,
    line: usize,
    /// Bytes of the head or the trailers so far: the last ones decide where it ends.
    seen: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Head,
    Body(u64),
    ChunkSize(u64),
    ChunkSizeEnd(u64),
    Chunk(u64),
    ChunkEnd,
    ChunkEndLf,
    Trailers,
    /// After a request to switch protocols: nothing passes before the answer.
    Asked,
    /// Other protocols.
    Opaque,
}

impl Framing {
    /// Reads on, and tells how many of `bytes` may pass now, if there are any that do: less than all
    /// when an upgrade has to be answered first, when a head is not complete, and when something is
    /// malformed, which it is for good. What came before that passes, wherever it was cut.
    fn take(&mut self, bytes: &[u8]) -> (Option<usize>, Result<(), Malformed>) {
        let (mut at, mut passed) = (0, None);
        while at < bytes.len() {
            match self.step(&bytes[at..]) {
                Ok(0) => break,
                Ok(count) => at += count,
                Err(problem) => return (passed, Err(problem)),
            }
            if !self.is_within_head() {
                passed = Some(at);
            }
        }
        (passed, Ok(()))
    }

    /// Reads one thing: how many bytes.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let byte = bytes[0];
        match self.state {
            State::Opaque => return Ok(bytes.len()),
            State::Asked => return Ok(0),
            State::Body(left) | State::Chunk(left) => {
                let step = left.min(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                self.state = match (self.state, left - step) {
                    (State::Body(_), 0) => State::Head,
                    (State::Body(_), left) => State::Body(left),
                    (_, 0) => State::ChunkEnd,
                    (_, left) => State::Chunk(left),
                };
                return Ok(usize::try_from(step).unwrap_or(usize::MAX));
            }
            State::Head => return self.head(bytes),
            State::ChunkSize(size) => self.chunk_size(size, byte)?,
            State::ChunkSizeEnd(size) => {
                expect(byte, b'\n', "a chunk's size does not end with CR LF")?;
                self.line = 0;
                self.state = if size == 0 { State::Trailers } else { State::Chunk(size) };
            }
            State::ChunkEnd => {
                expect(byte, b'\r', "a chunk does not end with CR LF")?;
                self.state = State::ChunkEndLf;
            }
            State::ChunkEndLf => {
                expect(byte, b'\n', "a chunk does not end with CR LF")?;
                self.state = State::ChunkSize(0);
            }
            State::Trailers => self.trailer(byte)?,
        }
        Ok(1)
    }

    /// Whether a head has begun that is not complete.
    fn is_within_head(&self) -> bool {
        self.state == State::Head && !self.seen.is_empty()
    }

    /// Takes a line, or what is there of one: how many bytes.
    fn head(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let count = end.map_or(bytes.len(), |at| at + 1);
        if self.seen.len() + count > MAX_HEAD {
            return Err(Malformed("the head is too long"));
        }
        self.seen.extend_from_slice(&bytes[..count]);
        if self.seen.ends_with(b"\r\n\r\n") {
            self.state = request(&self.seen)?;
            self.seen.clear();
        } else if self.seen == b"\r\n" {
            // Clients may send an empty line before a request (RFC 9112, section 2.2).
            self.seen.clear();
        }
        Ok(count)
    }

    fn chunk_size(&mut self, size: u64, byte: u8) -> Result<(), Malformed> {
        self.line += 1;
        if self.line > MAX_CHUNK_LINE {
            return Err(Malformed("a chunk's size is too long"));
        }
        self.state = match (char::from(byte).to_digit(16), byte) {
            (Some(digit), _) => {
                let size = size.checked_mul(16).and_then(|size| size.checked_add(digit.into()));
                State::ChunkSize(size.ok_or(Malformed("a chunk's size is too large"))?)
            }
            (None, b'\r') if self.line > 1 => State::ChunkSizeEnd(size),
            _ => return Err(Malformed("a chunk's size is no hexadecimal number")),
        };
        Ok(())
    }

    /// A trailer passes as it comes, so that it is judged byte by byte.
    fn trailer(&mut self, byte: u8) -> Result<(), Malformed> {
        if self.seen.len() >= MAX_TRAILERS {
            return Err(Malformed("the trailers are too long"));
        }
        let after_cr = self.seen.last() == Some(&b'\r');
        if after_cr != (byte == b'\n') || byte == 0 {
            return Err(Malformed("a trailer that does not end with CR LF, or has a NUL"));
        }
        self.seen.push(byte);
        if self.seen == b"\r\n" || self.seen.ends_with(b"\r\n\r\n") {
            self.seen.clear();
            self.state = State::Head;
        }
        Ok(())
    }
}

fn expect(byte: u8, wanted: u8, problem: &'static str) -> Result<(), Malformed> {
    if byte == wanted { Ok(()) } else { Err(Malformed(problem)) }
}

/// Every line ends with CR LF, and neither stands elsewhere.
fn lines(bytes: &[u8]) -> Result<(), Malformed> {
    let mut before = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        let next = bytes.get(at + 1).copied();
        match byte {
            b'\n' if before != b'\r' => return Err(Malformed("a line ends with a bare LF")),
            b'\r' if next != Some(b'\n') => return Err(Malformed("a CR without an LF")),
            0 => return Err(Malformed("a NUL")),
            _ => {}
        }
        before = byte;
    }
    Ok(())
}

/// Judges a complete head, and tells what follows it.
fn request(head: &[u8]) -> Result<State, Malformed> {
    lines(head)?;
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(Malformed("the head is not complete")),
        Err(_) => return Err(Malformed("the head is no HTTP")),
    }
    let target = request.path.unwrap_or_default();
    if target.contains('#') {
        return Err(Malformed("the target has a fragment"));
    }
    // httparse takes tabs here, hyper makes one space of several.
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    if line.iter().filter(|byte| **byte == b' ').count() != 2 || line.contains(&b'\t') {
        return Err(Malformed("the request line is not METHOD SP TARGET SP VERSION"));
    }
    let is_old = request.version == Some(0);
    let (mut hosts, mut lengths, mut codings) = (0, 0, 0);
    let (mut length, mut upgrades) = (0, false);
    for field in request.headers.iter() {
        let name = field.name;
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
        if is("host") {
            hosts += 1;
        } else if is("content-length") {
            lengths += 1;
            length = decimal(field.value)?;
        } else if is("transfer-encoding") {
            codings += 1;
            if field.value != b"chunked" {
                return Err(Malformed("a transfer coding that is not `chunked`"));
            }
        } else if is("upgrade") {
            upgrades = true;
        }
    }
    match (hosts, lengths, codings) {
        (0, _, _) => Err(Malformed("no Host")),
        (2.., _, _) => Err(Malformed("more than one Host")),
        (_, 2.., _) => Err(Malformed("more than one Content-Length")),
        (_, _, 2..) => Err(Malformed("more than one Transfer-Encoding")),
        (_, 1, 1) => Err(Malformed("both Content-Length and Transfer-Encoding")),
        (_, _, 1) if is_old => Err(Malformed("Transfer-Encoding in HTTP/1.0")),
        (_, _, 1) if upgrades => Err(Malformed("an upgrade with a body")),
        (_, _, 1) => Ok(State::ChunkSize(0)),
        _ if length > 0 && upgrades => Err(Malformed("an upgrade with a body")),
        _ if length > 0 => Ok(State::Body(length)),
        _ if upgrades || request.method == Some("CONNECT") => Ok(State::Asked),
        _ => Ok(State::Head),
    }
}

/// Digits and nothing else, of a number that a client may mean.
fn decimal(value: &[u8]) -> Result<u64, Malformed> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    let plain = (1..=18).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(length) if plain => Ok(length),
        _ => Err(Malformed("a Content-Length that is no number")),
    }
}

/// How a request to switch protocols was answered. Shared by the gate and who answers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer(Arc<AtomicU8>);

impl Answer {
    const SWITCHED: u8 = 1;
    const STAYED: u8 = 2;

    /// The connection goes on in another protocol.
    pub(crate) fn switched(&self) {
        self.0.store(Self::SWITCHED, Ordering::Release);
    }

    /// The connection goes on in HTTP.
    pub(crate) fn stayed(&self) {
        self.0.store(Self::STAYED, Ordering::Release);
    }

    fn take(&self) -> u8 {
        self.0.swap(0, Ordering::AcqRel)
    }
}

/// A guest's connection behind the gate.
pub(crate) struct Gated<S> {
    inner: S,
    framing: Framing,
    answer: Answer,
    /// Read, and not passed on before `ready`.
    buffer: Vec<u8>,
    start: usize,
    ready: usize,
    problem: Option<Malformed>,
}

impl<S> Gated<S> {
    pub(crate) fn new(inner: S) -> (Self, Answer) {
        let answer = Answer::default();
        let gated = Self {
            inner,
            framing: Framing::default(),
            answer: answer.clone(),
            buffer: Vec::new(),
            start: 0,
            ready: 0,
            problem: None,
        };
        (gated, answer)
    }

    /// Lets through what may pass of what is in the buffer.
    fn advance(&mut self) {
        if self.framing.state == State::Asked {
            self.framing.state = match self.answer.take() {
                Answer::SWITCHED => State::Opaque,
                Answer::STAYED => State::Head,
                _ => return,
            };
        }
        if self.problem.is_some() {
            return;
        }
        // What belongs to an unfinished head was read already.
        let unread =
            self.ready + if self.framing.is_within_head() { self.framing.seen.len() } else { 0 };
        let (passed, taken) = self.framing.take(&self.buffer[unread.min(self.buffer.len())..]);
        if let Some(count) = passed {
            self.ready = unread + count;
        }
        if let Err(problem) = taken {
            tracing::debug!(problem = problem.0, "a request of a guest is refused");
            self.problem = Some(problem);
            self.buffer.truncate(self.ready);
            self.buffer.extend_from_slice(b"\0\r\n\r\n");
            self.ready = self.buffer.len();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gated<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            this.advance();
            if this.start < this.ready {
                let count = out.remaining().min(this.ready - this.start);
                out.put_slice(&this.buffer[this.start..this.start + count]);
                this.start += count;
                if this.start == this.buffer.len() {
                    this.buffer.clear();
                    (this.start, this.ready) = (0, 0);
                } else if this.start > MAX_HEAD {
                    this.buffer.drain(..this.start);
                    this.ready -= this.start;
                    this.start = 0;
                }
                return Poll::Ready(Ok(()));
            }
            if this.problem.is_some() {
                return Poll::Ready(Ok(()));
            }
            if this.framing.state == State::Opaque {
                return Pin::new(&mut this.inner).poll_read(context, out);
            }
            // Whoever answers polls again: the answer goes out on this same connection.
            if this.framing.state == State::Asked && this.buffer.len() - this.ready >= MAX_HEAD {
                return Poll::Pending;
            }
            let mut space = [std::mem::MaybeUninit::uninit(); 16 << 10];
            let mut read = ReadBuf::uninit(&mut space);
            std::task::ready!(Pin::new(&mut this.inner).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.buffer.extend_from_slice(read.filled());
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gated<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
