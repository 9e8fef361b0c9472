//! Server-sent events.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::pin::Pin;
use std::time::Duration;

use api::{Code, Problem};
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use serde::Serialize;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::app::App;

/// Without an event for so long, a comment is sent: a client knows that the server is there, and
/// the server that the client is.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    name: &'static str,
    id: Option<u64>,
    data: String,
}

impl Event {
    /// The data in JSON, which has no line's end in it.
    pub(crate) fn new(name: &'static str, data: &impl Serialize) -> Self {
        match serde_json::to_string(data) {
            Ok(data) => Self { name, id: None, data },
            Err(error) => Self::failure(&Problem::new(Code::Internal, error.to_string())),
        }
    }

    /// With an id, which a client that comes back names in Last-Event-ID.
    pub(crate) fn with_id(mut self, id: u64) -> Self {
        self.id = Some(id);
        self
    }

    /// `error`, the last one.
    pub(crate) fn failure(problem: &Problem) -> Self {
        let data = serde_json::to_string(problem).unwrap_or_default();
        Self { name: "error", id: None, data }
    }

    fn text(&self) -> Bytes {
        let mut text = String::with_capacity(self.data.len() + 64);
        if let Some(id) = self.id {
            // Writing to a String does not fail.
            let _ = writeln!(text, "id: {id}");
        }
        let _ = write!(text, "event: {}\ndata: {}\n\n", self.name, self.data);
        text.into()
    }
}

struct Sending<S> {
    events: Pin<Box<S>>,
    heartbeat: Interval,
    /// For what has no end of its own.
    stopping: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

/// Events until there are no more, as those of a command.
pub(crate) fn until_end(events: impl Stream<Item = Event> + Send + 'static) -> Response {
    response(events, None)
}

/// Events until the client or the server ends.
pub(crate) fn endless(app: &App, events: impl Stream<Item = Event> + Send + 'static) -> Response {
    response(events, Some(Box::pin(app.lifetime.stopping.clone().cancelled_owned())))
}

fn response<S: Stream<Item = Event> + Send + 'static>(
    events: S,
    stopping: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
) -> Response {
    let mut heartbeat =
        tokio::time::interval_at(tokio::time::Instant::now() + HEARTBEAT, HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let sending = Sending { events: Box::pin(events), heartbeat, stopping };
    let bytes = futures_util::stream::unfold(sending, |mut sending| async {
        let stopped = async {
            match &mut sending.stopping {
                Some(stopping) => stopping.await,
                None => std::future::pending().await,
            }
        };
        let bytes = tokio::select! {
            biased;
            event = sending.events.next() => event?.text(),
            () = stopped => return None,
            _ = sending.heartbeat.tick() => Bytes::from_static(b":\n\n"),
        };
        Some((Ok::<_, Infallible>(bytes), sending))
    });
    let mut response = Response::new(Body::from_stream(bytes));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_lines_and_an_empty_one() {
        let event = Event::new("stdout", &serde_json::json!({"a": "x\ny"})).with_id(7);
        assert_eq!(event.text(), "id: 7\nevent: stdout\ndata: {\"a\":\"x\\ny\"}\n\n");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_filled_with_comments() {
        let response = until_end(futures_util::stream::pending());
        let mut body = response.into_body().into_data_stream();
        assert_eq!(body.next().await.unwrap().unwrap(), ":\n\n");
    }

    #[tokio::test]
    async fn the_stream_ends_with_its_last_event() {
        let events = futures_util::stream::iter([Event::new("exit", &1)]);
        let body = axum::body::to_bytes(until_end(events).into_body(), 1024).await.unwrap();
        assert_eq!(body, "event: exit\ndata: 1\n\n");
    }
}
