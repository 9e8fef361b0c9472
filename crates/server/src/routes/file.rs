//! Files of a guest.

use api::{
    Code, ListFilesQuery, MakeDirectory, MoveFile, PathQuery, Problem, ReadQuery, StatQuery,
    TarInQuery, WatchQuery, WriteQuery,
};
use axum::body::Body;
use axum::response::Response;
use futures_util::StreamExt as _;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{HeaderValue, StatusCode};

use crate::ask::{Answer, Ask, done, ok};
use crate::range::Range;
use crate::sse::{self, Event};

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");
const TAR: HeaderValue = HeaderValue::from_static("application/x-tar");

pub(super) async fn read(ask: Ask) -> Answer {
    let query: ReadQuery = ask.query()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    let file = manager.open_file(&ask.caller, name, &query, by).await;
    let file = file.map_err(|error| error.problem())?;
    let size = file.size();
    let mut response = Response::new(Body::empty());
    let (from, length) = match Range::of(ask.header(&RANGE)?, size) {
        Range::Whole => (0, size),
        Range::Part(first, last) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let range = format!("bytes {first}-{last}/{size}");
            insert(&mut response, CONTENT_RANGE, &range);
            (first, last - first + 1)
        }
        Range::Nothing => {
            let text = format!("the file has {size} bytes");
            return Err(Problem::new(Code::RangeNotSatisfiable, text).with_field("Range"));
        }
    };
    *response.body_mut() = Body::from_stream(file.stream(from, length));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, OCTETS);
    headers.insert(CONTENT_LENGTH, length.into());
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    Ok(response)
}

fn insert(response: &mut Response, name: http::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

pub(super) async fn write(ask: Ask) -> Answer {
    let query: WriteQuery = ask.query()?;
    let upload = ask.take_upload()?.into_stream();
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    let written = manager.write_file(&ask.caller, name, &query, upload, by).await;
    ok(&written.map_err(|error| error.problem())?)
}

pub(super) async fn remove(ask: Ask) -> Answer {
    let query: PathQuery = ask.query()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    manager.remove(&ask.caller, name, &query, by).await.map_err(|error| error.problem())?;
    done()
}

pub(super) async fn stat(ask: Ask) -> Answer {
    let query: StatQuery = ask.query()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    let found = manager.stat(&ask.caller, name, &query, by).await;
    ok(&found.map_err(|error| error.problem())?)
}

pub(super) async fn list(ask: Ask) -> Answer {
    let query: ListFilesQuery = ask.query()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    let found = manager.list_files(&ask.caller, name, &query, by).await;
    ok(&found.map_err(|error| error.problem())?)
}

pub(super) async fn watch(ask: Ask) -> Answer {
    let query: WatchQuery = ask.query()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    let changes = manager.watch_files(&ask.caller, name, &query, by).await;
    let changes = changes.map_err(|error| error.problem())?;
    let events = changes.map(|change| match change {
        Ok(change) => Event::new("change", &change),
        Err(error) => Event::failure(&error.problem()),
    });
    Ok(sse::endless(&ask.app, events))
}

pub(super) async fn mkdir(ask: Ask) -> Answer {
    let request: MakeDirectory = ask.json()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    manager.mkdir(&ask.caller, name, &request, by).await.map_err(|error| error.problem())?;
    done()
}

pub(super) async fn rename(ask: Ask) -> Answer {
    let request: MoveFile = ask.json()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    manager.rename(&ask.caller, name, &request, by).await.map_err(|error| error.problem())?;
    done()
}

pub(super) async fn pack(ask: Ask) -> Answer {
    let query: PathQuery = ask.query()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    let tar = manager.tar_out(&ask.caller, name, &query, by).await;
    let mut response = Response::new(Body::from_stream(tar.map_err(|error| error.problem())?));
    response.headers_mut().insert(CONTENT_TYPE, TAR);
    Ok(response)
}

pub(super) async fn unpack(ask: Ask) -> Answer {
    let query: TarInQuery = ask.query()?;
    let upload = ask.take_upload()?.into_stream();
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    let written = manager.tar_in(&ask.caller, name, &query, upload, by).await;
    ok(&written.map_err(|error| error.problem())?)
}
