//! Bytes that are too many to be kept in memory: files and tars, up and down.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use http::{HeaderMap, HeaderName};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::io::AsyncRead;
use tokio_util::io::{ReaderStream, StreamReader};

use crate::Error;
use crate::request::{Body, Request};

/// Read at once from a caller's reader.
const PIECE: usize = 64 << 10;

/// What is to be sent.
pub struct Upload(Kind);

enum Kind {
    Bytes(Bytes),
    Stream(Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>),
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Kind::Bytes(_) => "Upload(bytes)",
            Kind::Stream(_) => "Upload(stream)",
        })
    }
}

impl<T: Into<Bytes>> From<T> for Upload {
    fn from(bytes: T) -> Self {
        Self(Kind::Bytes(bytes.into()))
    }
}

impl Upload {
    /// All that the reader gives. It is read as fast as the server takes it. Such an upload is
    /// never repeated, and not signed beyond its headers' digest of nothing.
    pub fn reader(reader: impl AsyncRead + Send + 'static) -> Self {
        Self::stream(ReaderStream::with_capacity(reader, PIECE))
    }

    /// All that the stream gives; see [`Upload::reader`].
    pub fn stream(stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        Self(Kind::Stream(Box::pin(stream)))
    }
}

/// Where the caller's own error is kept: hyper would only say that the body failed.
type Fault = Arc<Mutex<Option<io::Error>>>;

/// Sends the upload with the request and gives its answer.
pub(crate) async fn send<T: serde::de::DeserializeOwned>(
    request: Request<'_>,
    media_type: &'static str,
    upload: Upload,
) -> Result<T, Error> {
    let stream = match upload.0 {
        Kind::Bytes(bytes) => return request.bytes(media_type, bytes).value().await,
        Kind::Stream(stream) => stream,
    };
    let fault = Fault::default();
    let noted = Arc::clone(&fault);
    let frames = stream.map(move |piece| {
        piece.map(Frame::data).map_err(|error| {
            let told = io::Error::new(error.kind(), error.to_string());
            *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            told
        })
    });
    let body: Body = StreamBody::new(frames).boxed_unsync();
    let answer = request.stream(media_type, body).value().await;
    match fault.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) => Err(Error::Body(error)),
        None => answer,
    }
}

/// What the server sends, as it comes. A slow reader slows the server down.
#[derive(Debug)]
pub struct Download {
    headers: HeaderMap,
    body: Incoming,
}

impl Download {
    pub(crate) fn new(response: http::Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        Self { headers: head.headers, body }
    }

    /// How many bytes will come, where the server knows.
    pub fn length(&self) -> Option<u64> {
        self.header(CONTENT_LENGTH)?.parse().ok()
    }

    /// How long the whole file is, where a part of it was asked for.
    pub fn whole_length(&self) -> Option<u64> {
        self.header(CONTENT_RANGE)?.rsplit_once('/')?.1.parse().ok()
    }

    fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The next bytes; none at the end.
    ///
    /// # Errors
    /// The connection broke: what came before is not all.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(data) = frame.map_err(Error::broken)?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// All of it, where it is not longer than `limit` bytes.
    ///
    /// # Errors
    /// It is longer, or the connection broke.
    pub async fn bytes(self, limit: usize) -> Result<Bytes, Error> {
        crate::request::collect(self.body, limit).await
    }

    /// The bytes as a reader.
    pub fn into_reader(self) -> impl AsyncRead + Send + Unpin {
        StreamReader::new(self)
    }
}

impl Stream for Download {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut data = http_body_util::BodyDataStream::new(&mut self.body);
        data.try_poll_next_unpin(context).map_err(io::Error::other)
    }
}
