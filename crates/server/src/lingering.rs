//! Bodies that nobody reads to their end.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};

/// Most bytes that are thrown away.
const MOST: u64 = 64 << 10;
/// How long they may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// The body of a request. What is not read of it is taken and thrown away, if it is little and comes
/// soon: a client that is still sending when its connection is closed would not see its answer.
#[derive(Debug)]
pub(crate) struct Lingering {
    body: Option<Incoming>,
    /// The client sends it only when it is asked to.
    is_expected: bool,
}

impl Lingering {
    pub(crate) fn new(body: Incoming, headers: &HeaderMap) -> Self {
        Self { body: Some(body), is_expected: headers.contains_key(header::EXPECT) }
    }
}

impl Body for Lingering {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let is_rest = |body: &Incoming| !body.is_end_stream() && body.size_hint().lower() <= MOST;
        let body = self.body.take().filter(|body| !self.is_expected && is_rest(body));
        if let (Some(body), Ok(runtime)) = (body, tokio::runtime::Handle::try_current()) {
            let mut body = Limited::new(body, usize::try_from(MOST).unwrap_or(usize::MAX));
            runtime.spawn(tokio::time::timeout(PATIENCE, async move {
                while let Some(Ok(_)) = body.frame().await {}
            }));
        }
    }
}
