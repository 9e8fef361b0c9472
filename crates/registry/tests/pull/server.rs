//! A registry in this process, which answers as a test says.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as BodyExtensions, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::bench::Authority;

/// What was asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) authorization: Option<String>,
    /// The first byte that was asked for.
    pub(crate) from: Option<usize>,
    pub(crate) body: String,
}

/// What is answered.
#[derive(Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
    /// After so many bytes of the body the connection breaks.
    pub(crate) cut: Option<usize>,
    /// The body has no length and goes on with this after its end, for ever.
    pub(crate) endless: bool,
    /// The body has no length.
    pub(crate) chunked: bool,
}

impl Reply {
    pub(crate) fn new(status: u16) -> Self {
        let (headers, body) = (Vec::new(), Bytes::new());
        Self { status, headers, body, cut: None, endless: false, chunked: false }
    }

    pub(crate) fn of(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::new(200) }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

type Answer = dyn Fn(&Asked, Option<Reply>) -> Option<Reply> + Send + Sync;

/// A server that runs for as long as it is there.
pub(crate) struct Server {
    pub(crate) host: String,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct State {
    content: Mutex<HashMap<String, (String, Bytes)>>,
    asked: Mutex<Vec<Asked>>,
    answer: Mutex<Option<Arc<Answer>>>,
}

impl Server {
    /// Without TLS.
    pub(crate) async fn plain() -> Self {
        Self::start(None).await
    }

    /// With a certificate of this authority for `localhost`.
    pub(crate) async fn tls(authority: &Authority) -> Self {
        Self::start(Some(authority.acceptor())).await
    }

    async fn start(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let name = if tls.is_some() { "localhost" } else { "127.0.0.1" };
        let host = format!("{name}:{}", listener.local_addr().unwrap().port());
        let state = Arc::new(State::default());
        let served = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, tls) = (served.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(state, stream).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(state, stream).await;
                            }
                        }
                    }
                });
            }
        });
        Self { host, state, task }
    }

    /// Has this at this path.
    pub(crate) fn put(&self, path: &str, media_type: &str, body: impl Into<Bytes>) {
        let mut content = self.state.content.lock().unwrap();
        content.insert(path.into(), (media_type.into(), body.into()));
    }

    /// Decides from now on: it is told what the answer would be, and gives another, or none to let it
    /// be.
    pub(crate) fn answer(
        &self,
        answer: impl Fn(&Asked, Option<Reply>) -> Option<Reply> + Send + Sync + 'static,
    ) {
        *self.state.answer.lock().unwrap() = Some(Arc::new(answer));
    }

    /// All that was asked.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }

    /// How often a path was asked for that has this in it.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.asked().iter().filter(|asked| asked.path.contains(part)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(state: Arc<State>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let service = service_fn(move |request| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(state.reply(request).await) }
    });
    // A connection that breaks is what many of the tests are about.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

impl State {
    async fn reply(&self, request: Request<Incoming>) -> Response<BoxBody<Bytes, std::io::Error>> {
        let (head, body) = request.into_parts();
        let header =
            |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        let range = header("range");
        let from = range.map(|range| {
            range.strip_prefix("bytes=").unwrap().trim_end_matches('-').parse().unwrap()
        });
        let asked = Asked {
            method: head.method.to_string(),
            path: head.uri.path().into(),
            query: head.uri.query().unwrap_or_default().into(),
            authorization: header("authorization"),
            from,
            body: String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap(),
        };
        self.asked.lock().unwrap().push(asked.clone());
        let usual = self.usual(&asked);
        let answer = self.answer.lock().unwrap().clone();
        let other = answer.and_then(|answer| answer(&asked, usual.clone()));
        send(other.or(usual).unwrap_or_else(|| Reply::new(404)))
    }

    fn usual(&self, asked: &Asked) -> Option<Reply> {
        let content = self.content.lock().unwrap();
        let (media_type, body) = content.get(&asked.path)?;
        let reply = match asked.from {
            None => Reply::of(body.clone()),
            Some(from) if from >= body.len() => Reply::new(416),
            Some(from) => {
                let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
                let reply = Reply { status: 206, ..Reply::of(body.slice(from..)) };
                reply.with("content-range", range)
            }
        };
        Some(reply.with("content-type", media_type))
    }
}

fn send(reply: Reply) -> Response<BoxBody<Bytes, std::io::Error>> {
    let mut response = Response::builder().status(reply.status);
    for (name, value) in &reply.headers {
        response = response.header(*name, value);
    }
    let length = reply.body.len();
    let cut = reply.cut.unwrap_or(length).min(length);
    let pieces: Vec<Bytes> =
        reply.body.slice(..cut).chunks(16 << 10).map(Bytes::copy_from_slice).collect();
    let is_cut = reply.cut.is_some();
    let has_length = reply.headers.iter().any(|(name, _)| *name == "content-length");
    let body = if reply.endless {
        let more = futures_util::stream::repeat_with(|| Bytes::from_static(&[b' '; 16 << 10]));
        let first = futures_util::stream::iter(pieces);
        let frames = first.chain(more).map(|piece| Ok(Frame::data(piece)));
        BodyExtensions::boxed(StreamBody::new(frames))
    } else if reply.chunked || is_cut || has_length {
        if !reply.chunked && !has_length {
            response = response.header("content-length", length);
        }
        let frames = futures_util::stream::iter(pieces).map(|piece| Ok(Frame::data(piece)));
        // The server sends what it has when it has to wait for more.
        let broken = futures_util::stream::once(async {
            tokio::task::yield_now().await;
            Err(std::io::Error::other("cut"))
        });
        match is_cut {
            true => BodyExtensions::boxed(StreamBody::new(frames.chain(broken))),
            false => BodyExtensions::boxed(StreamBody::new(frames)),
        }
    } else {
        BodyExtensions::boxed(Full::new(reply.body).map_err(|never| match never {}))
    };
    response.body(body).unwrap()
}
