//! Bodies on their way: what the guest sends, with what was read of it to judge it; and what it
//! gets, with credentials taken out.

use std::collections::VecDeque;
use std::fmt;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use flate2::write::{GzDecoder, ZlibDecoder};
use http::HeaderMap;
use http::header::HeaderName;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use crate::aws;
use crate::pipeline::Finish;
use crate::pool::Lease;

/// Why a body broke off.
#[derive(Debug)]
pub(crate) struct BodyError(pub(crate) String);

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BodyError {}

/// Bytes that are decoded at once: they can become a thousand times as many.
const STEP: usize = 1 << 10;

/// What a guest sends. Its trailers are dropped: what they may say was not judged.
pub(crate) struct Sent {
    first: VecDeque<Bytes>,
    rest: Option<Incoming>,
    count: Arc<AtomicU64>,
    /// Takes the chunks of a signed body off.
    decoder: Option<aws::Decoder>,
}

impl Sent {
    pub(crate) fn new(
        first: VecDeque<Bytes>,
        rest: Option<Incoming>,
        count: Arc<AtomicU64>,
        decoder: Option<aws::Decoder>,
    ) -> Self {
        Self { first, rest, count, decoder }
    }

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        if let Some(data) = self.first.pop_front() {
            return Poll::Ready(Some(Ok(data)));
        }
        loop {
            let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
            match ready!(Pin::new(rest).poll_frame(context)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(BodyError(error.to_string())))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
            }
        }
    }
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            let data = match ready!(self.poll_data(context)) {
                Some(Ok(data)) => {
                    self.count.fetch_add(data.len() as u64, Ordering::Relaxed);
                    match &mut self.decoder {
                        None => data,
                        Some(decoder) => decoder.push(&data)?,
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => match self.decoder.as_mut().map(aws::Decoder::finish).transpose()? {
                    Some(Some(data)) => data,
                    _ => return Poll::Ready(None),
                },
            };
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty()
            && self.rest.as_ref().is_none_or(http_body::Body::is_end_stream)
            && self.decoder.as_ref().is_none_or(aws::Decoder::is_over)
    }

    fn size_hint(&self) -> SizeHint {
        let first: u64 = self.first.iter().map(|data| data.len() as u64).sum();
        match &self.rest {
            // The header says it, where it is known.
            _ if self.decoder.is_some() => SizeHint::default(),
            None => SizeHint::with_exact(first),
            Some(rest) => {
                let rest = rest.size_hint();
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower() + first);
                if let Some(upper) = rest.upper() {
                    hint.set_upper(upper + first);
                }
                hint
            }
        }
    }
}

/// What a guest gets.
pub(crate) enum Reply {
    /// Of our own.
    Own(Option<Bytes>),
    /// A server's.
    Served(Box<Served>),
}

pub(crate) struct Served {
    pub(crate) incoming: Incoming,
    pub(crate) decoder: Option<Decoder>,
    /// What the decoder did not have yet.
    pub(crate) encoded: Bytes,
    pub(crate) redaction: Option<redact::Stream>,
    /// After the last of the data.
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) is_over: bool,
    /// The connection, for the next request. Dropped when the body is not read to its end.
    pub(crate) lease: Option<Lease>,
    pub(crate) finish: Finish,
}

/// Takes off what the server put on although it was asked not to.
pub(crate) enum Decoder {
    Gzip(GzDecoder<Vec<u8>>),
    Deflate(ZlibDecoder<Vec<u8>>),
}

impl Decoder {
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "gzip" | "x-gzip" => Some(Self::Gzip(GzDecoder::new(Vec::new()))),
            "deflate" => Some(Self::Deflate(ZlibDecoder::new(Vec::new()))),
            _ => None,
        }
    }

    fn push(&mut self, data: &[u8]) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Gzip(decoder) => {
                decoder.write_all(data).map(|()| std::mem::take(decoder.get_mut()))
            }
            Self::Deflate(decoder) => {
                decoder.write_all(data).map(|()| std::mem::take(decoder.get_mut()))
            }
        }
    }

    fn end(&mut self) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Gzip(decoder) => decoder.try_finish().map(|()| std::mem::take(decoder.get_mut())),
            Self::Deflate(decoder) => {
                decoder.try_finish().map(|()| std::mem::take(decoder.get_mut()))
            }
        }
    }
}

impl Served {
    /// The next piece for the decoder, of what it did not have yet.
    fn step(&mut self) -> Option<Bytes> {
        let length = self.encoded.len().min(STEP);
        (length > 0).then(|| self.encoded.split_to(length))
    }

    fn is_more_than_a_step(&self, data: &Bytes) -> bool {
        self.decoder.is_some() && data.len() > STEP
    }

    /// Some of the body, ready for the guest.
    fn pass(&mut self, data: Bytes) -> Result<Bytes, BodyError> {
        let data = match &mut self.decoder {
            None => data,
            Some(decoder) => decoder.push(&data).map_err(|error| encoded(&error))?.into(),
        };
        Ok(match &mut self.redaction {
            None => data,
            Some(stream) => match stream.untouched(&data) {
                Some(count) => data.slice(..count),
                None => {
                    let mut out = Vec::with_capacity(data.len() + stream.held());
                    stream.push(&data, &mut out);
                    out.into()
                }
            },
        })
    }

    /// What was held back. The connection is free for the next request.
    fn end(&mut self) -> Result<Bytes, BodyError> {
        self.is_over = true;
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
        let last = match self.decoder.take() {
            None => Vec::new(),
            Some(mut decoder) => decoder.end().map_err(|error| encoded(&error))?,
        };
        let Some(mut stream) = self.redaction.take() else { return Ok(last.into()) };
        let mut out = Vec::new();
        stream.push(&last, &mut out);
        self.finish.redacted(stream.finish(&mut out));
        Ok(out.into())
    }
}

fn joined((first, last): (Bytes, Bytes)) -> Bytes {
    match last.is_empty() {
        true => first,
        false => [first, last].concat().into(),
    }
}

fn encoded(error: &std::io::Error) -> BodyError {
    BodyError(format!("the body's encoding: {error}"))
}

impl http_body::Body for Reply {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let served = match &mut *self {
            Self::Own(data) => return Poll::Ready(data.take().map(|data| Ok(Frame::data(data)))),
            Self::Served(served) => served,
        };
        loop {
            if served.is_over {
                return Poll::Ready(
                    served.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))),
                );
            }
            let frame = match served.step() {
                Some(data) => Some(Ok(Ok(data))),
                None => ready!(Pin::new(&mut served.incoming).poll_frame(context))
                    .map(|frame| frame.map(Frame::into_data)),
            };
            let data = match frame {
                Some(Ok(Ok(data))) if served.is_more_than_a_step(&data) => {
                    served.encoded = data;
                    continue;
                }
                // A body of a known length is not asked for its end.
                Some(Ok(Ok(data)))
                    if served.encoded.is_empty()
                        && http_body::Body::is_end_stream(&served.incoming) =>
                {
                    served.pass(data).and_then(|data| Ok((data, served.end()?))).map(joined)
                }
                Some(Ok(Ok(data))) => served.pass(data),
                Some(Ok(Err(frame))) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        served.trailers = Some(served.finish.trailers(&trailers));
                    }
                    continue;
                }
                Some(Err(error)) => {
                    served.finish.broke(&error.to_string());
                    return Poll::Ready(Some(Err(BodyError(error.to_string()))));
                }
                None => served.end(),
            };
            match data {
                Ok(data) if data.is_empty() => {}
                Ok(data) => {
                    served.finish.received(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Err(error) => {
                    served.finish.broke(&error.0);
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(data) => data.is_none(),
            Self::Served(served) => served.is_over && served.trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(data) => {
                SizeHint::with_exact(data.as_ref().map_or(0, |data| data.len() as u64))
            }
            // Redaction changes no length.
            Self::Served(served) if served.decoder.is_none() => {
                let held = served.redaction.as_ref().map_or(0, redact::Stream::held) as u64;
                let rest = served.incoming.size_hint();
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower() + held);
                if let Some(upper) = rest.upper() {
                    hint.set_upper(upper + held);
                }
                hint
            }
            Self::Served(_) => SizeHint::default(),
        }
    }
}

/// Fields that a trailer must not have (RFC 9110, section 6.5.1), ours of credentials among them.
pub(crate) fn may_trail(name: &HeaderName) -> bool {
    !matches!(
        name.as_str(),
        "transfer-encoding"
            | "content-length"
            | "host"
            | "trailer"
            | "content-encoding"
            | "content-type"
            | "content-range"
            | "authorization"
            | "set-cookie"
            | "te"
            | "connection"
            | "upgrade"
            | "alt-svc"
    )
}
