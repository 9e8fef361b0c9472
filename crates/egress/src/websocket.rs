//! WebSockets: asked for in HTTP/1.1 or HTTP/2, judged like a request, then passed on. Where the host
//! has a credential, what it sends is read frame by frame, so that the credential is taken out of
//! it also where frames cut it.

use std::collections::VecDeque;
use std::sync::Arc;

use base64::Engine as _;
use canonical::Authority;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use redact::Redactor;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::body::Reply;
use crate::gateway::Inner;
use crate::pipeline::{Finish, Refused};

/// Bytes read at once.
const PIECE: usize = 32 << 10;

/// A request for a WebSocket.
pub(crate) struct Asked {
    key: HeaderValue,
    over_h2: bool,
}

/// The WebSocket that a request asks for, if it does.
pub(crate) fn asked<B>(request: &Request<B>) -> Option<Asked> {
    let headers = request.headers();
    if request.version() == Version::HTTP_2 {
        let protocol = request.extensions().get::<Protocol>()?;
        if *request.method() != Method::CONNECT || protocol.as_str() != "websocket" {
            return None;
        }
        let mut key = [0; 16];
        rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(&mut key).ok()?;
        let key = base64::engine::general_purpose::STANDARD.encode(key);
        return Some(Asked { key: HeaderValue::from_str(&key).ok()?, over_h2: true });
    }
    let only = |name| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())
    };
    let upgrade = only(header::UPGRADE)?;
    let is_named = headers.get_all(header::CONNECTION).iter().any(|value| {
        value.to_str().is_ok_and(|text| {
            text.split(',').any(|word| word.trim().eq_ignore_ascii_case("upgrade"))
        })
    });
    let is_asked = *request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && upgrade.as_bytes().eq_ignore_ascii_case(b"websocket")
        && is_named
        && only(header::SEC_WEBSOCKET_VERSION)?.as_bytes() == b"13";
    let key = only(header::SEC_WEBSOCKET_KEY)?;
    is_asked.then(|| Asked { key: key.clone(), over_h2: false })
}

impl Asked {
    /// The fields of the request to the server, which is in HTTP/1.1.
    pub(crate) fn ask(&self, headers: &mut HeaderMap) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.insert(header::SEC_WEBSOCKET_KEY, self.key.clone());
    }

    /// What the guest gets for a server's agreement.
    pub(crate) fn accept<B>(
        &self,
        response: &Response<B>,
        redactor: Option<&Redactor>,
    ) -> Result<Response<Reply>, Refused> {
        let headers = response.headers();
        let agrees = headers
            .get(header::UPGRADE)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
        if !agrees || headers.contains_key(header::SEC_WEBSOCKET_EXTENSIONS) && redactor.is_some() {
            return Err(Refused::bad_gateway("the server agrees to what was not asked for"));
        }
        let mut reply = Response::new(Reply::Own(None));
        let kept = reply.headers_mut();
        for (name, value) in headers {
            let concerns = matches!(
                name.as_str(),
                "connection" | "upgrade" | "sec-websocket-accept" | "alt-svc"
            );
            if !concerns || !self.over_h2 && name != header::ALT_SVC {
                kept.append(name.clone(), value.clone());
            }
        }
        if let Some(redactor) = redactor {
            crate::pipeline::redact_headers(kept, redactor);
        }
        *reply.status_mut() =
            if self.over_h2 { StatusCode::OK } else { StatusCode::SWITCHING_PROTOCOLS };
        Ok(reply)
    }
}

/// Passes frames on until one side ends, or a change of rules ends both.
pub(crate) async fn relay(
    gateway: Arc<Inner>,
    authority: Authority,
    guest: OnUpgrade,
    server: OnUpgrade,
    mut finish: Finish,
) {
    let (guest, server) = match tokio::try_join!(guest, server) {
        Ok(both) => both,
        Err(error) => return finish.broke(&error.to_string()),
    };
    let (mut from_guest, mut to_guest) = tokio::io::split(TokioIo::new(guest));
    let (mut from_server, mut to_server) = tokio::io::split(TokioIo::new(server));
    let sent = finish.sent.clone();
    let out = async {
        let mut piece = vec![0; PIECE];
        loop {
            let count = from_guest.read(&mut piece).await?;
            if count == 0 {
                return to_server.shutdown().await;
            }
            sent.fetch_add(count as u64, std::sync::atomic::Ordering::Relaxed);
            to_server.write_all(&piece[..count]).await?;
        }
    };
    let redactor = finish.redactor();
    let back = deliver(&mut from_server, &mut to_guest, redactor, &mut finish);
    let ended = tokio::select! {
        both = async { tokio::try_join!(out, back) } => both.err().map(|error| error.to_string()),
        () = gateway.until_refused(&authority) => Some("a change of the rules ended it".to_owned()),
    };
    if let Some(why) = ended {
        finish.broke(&why);
    }
}

async fn deliver<R, W>(
    from: &mut R,
    to: &mut W,
    redactor: Option<Arc<Redactor>>,
    finish: &mut Finish,
) -> std::io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut frames = redactor.map(Frames::new);
    let mut piece = vec![0; PIECE];
    loop {
        let count = from.read(&mut piece).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        finish.received(count);
        match &mut frames {
            None => to.write_all(&piece[..count]).await?,
            Some(frames) => {
                let mut out = Vec::with_capacity(count);
                frames.push(&piece[..count], &mut out).map_err(std::io::Error::other)?;
                finish.redacted(std::mem::take(&mut frames.count));
                to.write_all(&out).await?;
            }
        }
    }
}

/// Frames of a server (RFC 6455, section 5.2), with credentials taken out of their payloads.
pub(crate) struct Frames {
    redactor: Arc<Redactor>,
    /// Of the message that is under way.
    message: Option<redact::Stream>,
    head: Vec<u8>,
    state: State,
    /// What waits for bytes that are held back.
    queue: VecDeque<Part>,
    pub(crate) count: usize,
}

enum State {
    Head,
    Data { left: u64, is_last: bool },
    Control { left: u64, payload: Vec<u8> },
}

enum Part {
    /// Goes out as it is.
    Plain(Vec<u8>),
    /// So many bytes of payload.
    Payload(u64),
}

impl Frames {
    pub(crate) fn new(redactor: Arc<Redactor>) -> Self {
        Self {
            redactor,
            message: None,
            head: Vec::new(),
            state: State::Head,
            queue: VecDeque::new(),
            count: 0,
        }
    }

    /// Takes what came and adds what may go on.
    ///
    /// # Errors
    /// What is wrong with the frames.
    pub(crate) fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Head => {
                    let (&byte, rest) = bytes.split_first().expect("not empty");
                    self.head.push(byte);
                    bytes = rest;
                    if let Some((opcode, length)) = head(&self.head)? {
                        self.begin(opcode, length, out);
                    }
                }
                State::Control { left, payload } => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    payload.extend_from_slice(&bytes[..count]);
                    *left -= count as u64;
                    bytes = &bytes[count..];
                    if *left == 0 {
                        self.end_control(out);
                    }
                }
                State::Data { left, is_last } => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    let (now, rest) = bytes.split_at(count);
                    *left -= count as u64;
                    bytes = rest;
                    let (is_over, is_last) = (*left == 0, *is_last);
                    let stream = self.message.as_mut().expect("a message is under way");
                    let mut certain = Vec::with_capacity(count);
                    stream.push(now, &mut certain);
                    if is_over && is_last {
                        let stream = self.message.take().expect("a message is under way");
                        self.count += stream.finish(&mut certain);
                    }
                    if is_over {
                        self.state = State::Head;
                    }
                    self.emit(&certain, out);
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, opcode: u8, length: u64, out: &mut Vec<u8>) {
        let first = std::mem::take(&mut self.head);
        let is_last = first[0] & 0x80 != 0;
        if opcode >= 8 {
            self.state = State::Control { left: length, payload: Vec::new() };
            self.queue.push_back(Part::Plain(first));
            if length == 0 {
                self.end_control(out);
            }
            return;
        }
        self.queue.push_back(Part::Plain(first));
        self.queue.push_back(Part::Payload(length));
        let redactor = &self.redactor;
        self.message.get_or_insert_with(|| redactor.clone().stream());
        self.state = State::Data { left: length, is_last };
        let mut certain = Vec::new();
        if length == 0 {
            self.state = State::Head;
            if is_last && let Some(stream) = self.message.take() {
                self.count += stream.finish(&mut certain);
            }
        }
        self.emit(&certain, out);
    }

    fn end_control(&mut self, out: &mut Vec<u8>) {
        if let State::Control { mut payload, .. } = std::mem::replace(&mut self.state, State::Head)
        {
            self.count += self.redactor.replace(&mut payload);
            self.queue.push_back(Part::Plain(payload));
        }
        self.emit(&[], out);
    }

    /// Puts payload into its frames, and lets out what waits for nothing.
    fn emit(&mut self, mut payload: &[u8], out: &mut Vec<u8>) {
        while let Some(part) = self.queue.front_mut() {
            match part {
                Part::Plain(bytes) => out.append(bytes),
                Part::Payload(left) => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(payload.len());
                    out.extend_from_slice(&payload[..count]);
                    payload = &payload[count..];
                    *left -= count as u64;
                    if *left > 0 {
                        return;
                    }
                }
            }
            self.queue.pop_front();
        }
    }
}

/// The opcode and the length of a complete head.
fn head(bytes: &[u8]) -> Result<Option<(u8, u64)>, &'static str> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err("the server compresses, although it was not asked to");
    }
    if second & 0x80 != 0 {
        return Err("the server masks its frames");
    }
    let opcode = first & 0x0f;
    let length = match (second & 0x7f, rest) {
        (126, [a, b]) => u64::from(u16::from_be_bytes([*a, *b])),
        (127, [a, b, c, d, e, f, g, h]) => u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]),
        (126 | 127, _) => return Ok(None),
        (length, _) => u64::from(length),
    };
    if opcode >= 8 && length > 125 {
        return Err("a control frame is too long");
    }
    Ok(Some((opcode, length)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use redact::Covered;
    use wire::text::Secret;

    use super::*;

    const SECRET: &str = "sk-very-secret-0123456789";
    const PLACEHOLDER: &str = "sk-placeholder-9876543210";

    fn frames() -> Frames {
        let secret = Secret::new(SECRET.into()).unwrap();
        let covered = Covered { secret: &secret, placeholder: PLACEHOLDER.as_bytes() };
        Frames::new(Arc::new(Redactor::new([covered]).unwrap()))
    }

    fn frame(opcode: u8, is_last: bool, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![opcode | if is_last { 0x80 } else { 0 }];
        match payload.len() {
            length @ 0..126 => bytes.push(u8::try_from(length).unwrap()),
            length => {
                bytes.push(126);
                bytes.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
            }
        }
        bytes.extend_from_slice(payload);
        bytes
    }

    fn pass(bytes: &[u8], step: usize) -> (Vec<u8>, usize) {
        let (mut frames, mut out) = (frames(), Vec::new());
        for piece in bytes.chunks(step) {
            frames.push(piece, &mut out).unwrap();
        }
        (out, frames.count)
    }

    #[test]
    fn a_credential_is_taken_out_also_where_frames_and_reads_cut_it() {
        let (before, after) = SECRET.split_at(9);
        let cut = [
            frame(1, false, before.as_bytes()),
            frame(9, true, b"ping"),
            frame(0, true, after.as_bytes()),
        ]
        .concat();
        let whole = frame(
            2,
            true,
            format!("{{\"key\":\"{SECRET}\"}} and more{}", "x".repeat(300)).as_bytes(),
        );
        for step in 1..40 {
            let (out, count) = pass(&cut, step);
            let (before, after) = PLACEHOLDER.split_at(9);
            let wanted = [
                frame(1, false, before.as_bytes()),
                frame(9, true, b"ping"),
                frame(0, true, after.as_bytes()),
            ]
            .concat();
            assert_eq!((out, count), (wanted, 1), "{step}");
            let (out, count) = pass(&whole, step);
            assert_eq!(count, 1);
            let at =
                out.windows(PLACEHOLDER.len()).position(|window| window == PLACEHOLDER.as_bytes());
            let mut wanted = whole.clone();
            wanted[at.unwrap()..][..PLACEHOLDER.len()].copy_from_slice(PLACEHOLDER.as_bytes());
            assert_eq!(out, wanted, "{step}");
        }
    }

    #[test]
    fn frames_that_a_server_must_not_send_end_the_connection() {
        for bytes in [&[0xc1, 0][..], &[0x81, 0x80], &[0x89, 126, 0, 200]] {
            assert!(frames().push(bytes, &mut Vec::new()).is_err());
        }
    }

    proptest! {
        #[test]
        fn other_frames_are_unchanged(
            payloads in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..300)), 0..8),
            step in 1_usize..100,
        ) {
            let mut bytes = Vec::new();
            for (is_control, payload) in &payloads {
                let payload = if *is_control { &payload[..payload.len().min(125)] } else { payload };
                bytes.extend(frame(if *is_control { 10 } else { 2 }, true, payload));
            }
            let (out, count) = pass(&bytes, step);
            prop_assert_eq!(count, 0);
            prop_assert_eq!(out, bytes);
        }
    }
}
