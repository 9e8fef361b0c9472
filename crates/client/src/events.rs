//! Events of the server, one after the other.

use std::marker::PhantomData;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use api::{ExecEvent, Problem};

use crate::sse::{self, Parser};
use crate::{Error, Output};

/// Something that the server sends as server-sent events.
pub trait Item: Sized + sealed::Sealed {
    /// The item of this event; none where the event is not one.
    #[doc(hidden)]
    fn read(name: &str, data: &str) -> Result<Option<Self>, Error>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for crate::Output {}
    impl Sealed for api::Stats {}
    impl Sealed for api::Event {}
    impl Sealed for api::WatchEvent {}
    impl Sealed for api::LogRecord {}
    impl Sealed for api::Sandbox {}
}

impl Item for Output {
    fn read(name: &str, data: &str) -> Result<Option<Self>, Error> {
        let event = ExecEvent::parse(name, data).map_err(Error::malformed)?;
        Self::of_event(event).map(Some)
    }
}

macro_rules! items {
    ($($item:ty),*) => {$(
        impl Item for $item {
            fn read(name: &str, data: &str) -> Result<Option<Self>, Error> {
                plain(name, data)
            }
        }
    )*};
}

items! { api::Event, api::WatchEvent, api::LogRecord, api::Sandbox, api::Stats }

fn plain<T: DeserializeOwned>(name: &str, data: &str) -> Result<Option<T>, Error> {
    if name == "error" {
        let problem: Problem = serde_json::from_str(data).map_err(Error::malformed)?;
        return Err(problem.into());
    }
    serde_json::from_str(data).map(Some).map_err(Error::malformed)
}

/// A stream of events. Dropping it ends it. A slow reader slows the server down; nothing is
/// kept but what one network buffer holds.
#[derive(Debug)]
pub struct Events<T> {
    body: Option<Incoming>,
    parser: Parser,
    of: PhantomData<fn() -> T>,
}

impl<T> Events<T> {
    pub(crate) fn new(body: Incoming) -> Self {
        Self { body: Some(body), parser: Parser::default(), of: PhantomData }
    }

    async fn event(&mut self) -> Result<Option<sse::Event>, Error> {
        loop {
            if let Some(event) = self.parser.next() {
                return Ok(Some(event));
            }
            let Some(body) = &mut self.body else { return Ok(None) };
            match body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame.map_err(Error::broken)?.into_data() {
                        self.parser.push(&data).map_err(Error::malformed)?;
                    }
                }
                None => self.body = None,
            }
        }
    }
}

impl<T: Item> Events<T> {
    /// The next one; none when the server has ended the stream.
    ///
    /// # Errors
    /// The connection broke, or the server sent a problem or something else.
    pub async fn next(&mut self) -> Result<Option<T>, Error> {
        while let Some(event) = self.event().await? {
            if let Some(item) = T::read(&event.name, &event.data)? {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }
}
