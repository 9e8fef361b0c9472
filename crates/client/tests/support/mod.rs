//! A server that answers as a test says.
#![allow(dead_code, reason = "every test file is a program of its own and uses its part of this")]

use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use client::{Builder, Client};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The whole of an answer.
pub(crate) fn answer(status: u16, media_type: &str, body: impl Into<Bytes>) -> Response<Body> {
    Response::builder()
        .status(status)
        .header("content-type", media_type)
        .body(Full::new(body.into()).boxed_unsync())
        .unwrap()
}

pub(crate) fn json(status: u16, body: &serde_json::Value) -> Response<Body> {
    answer(status, "application/json", body.to_string())
}

/// Serves one connection with `handle`.
pub(crate) async fn serve<S, H, F>(stream: S, handle: H)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>>,
{
    let service = service_fn(|request| {
        let answer = handle(request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    // A client that goes away is none of this side's concern.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
}

/// A builder whose server is `handle`, in this process.
pub(crate) fn in_process<H, F>(handle: H) -> Builder
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    Client::builder().streams(move || {
        let (ours, theirs) = tokio::io::duplex(16 << 10);
        tokio::spawn(serve(theirs, handle.clone()));
        async { Ok(ours) }
    })
}

/// What a server saw.
pub(crate) type Seen<T> = Arc<Mutex<Vec<T>>>;

pub(crate) fn seen<T: Clone>(seen: &Seen<T>) -> Vec<T> {
    seen.lock().unwrap().clone()
}
