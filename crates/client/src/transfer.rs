//! Bytes that are too many to be kept in memory: files and tars, up and down.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use access::signature::BodyDigest;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use http::{HeaderMap, HeaderName};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncSeekExt as _, AsyncWriteExt as _};
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
    /// All that the reader gives. It is read as fast as the server takes it, and such an upload
    /// is never repeated. Where requests are signed, it goes to a file without a name first, in
    /// the directory for temporary files: its digest is in the signature.
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
    let (body, digest): (Body, _) = match request.is_signed() {
        false => (StreamBody::new(frames).boxed_unsync(), None),
        true => {
            let spooled = spool(frames).await;
            if let Some(error) = fault.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return Err(Error::Body(error));
            }
            let (file, digest) = spooled.map_err(Error::Body)?;
            let pieces = ReaderStream::with_capacity(file, PIECE);
            (StreamBody::new(pieces.map_ok(Frame::data)).boxed_unsync(), Some(digest))
        }
    };
    let answer = request.stream(media_type, body, digest).value().await;
    match fault.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) => Err(Error::Body(error)),
        None => answer,
    }
}

/// All of the stream in a file that has no name, and its digest.
async fn spool(
    frames: impl Stream<Item = io::Result<Frame<Bytes>>>,
) -> io::Result<(File, BodyDigest)> {
    let mut frames = std::pin::pin!(frames);
    let mut file = File::from_std(tokio::task::spawn_blocking(tempfile::tempfile).await??);
    let mut hash = Sha256::new();
    while let Some(frame) = frames.next().await {
        if let Ok(bytes) = frame?.into_data() {
            hash.update(&bytes);
            file.write_all(&bytes).await?;
        }
    }
    file.flush().await?;
    file.rewind().await?;
    Ok((file, BodyDigest::from_bytes(hash.finalize().into())))
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
