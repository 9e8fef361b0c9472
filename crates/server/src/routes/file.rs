//! Files of a guest.

use api::{
    Code, FileKind, ListFilesQuery, MakeDirectory, MoveFile, Operation, PathQuery, Problem,
    ReadQuery, StatQuery, TarInQuery, Transferred, WatchQuery, WriteQuery,
};
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use fleet::{Download, Upload};
use futures_util::StreamExt as _;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{HeaderValue, StatusCode};
use wire::op;

use crate::ask::{self, Answer, Ask, done, ok};
use crate::range::Range;
use crate::sse::{self, Event};

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");
const TAR: HeaderValue = HeaderValue::from_static("application/x-tar");

pub(super) async fn read(ask: Ask) -> Answer {
    let query: ReadQuery = ask.query()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    let header = ask.header(&RANGE)?;
    let mut response = Response::new(Body::empty());
    let mut part = None;
    if header.is_some() {
        let size = size(&ask, &query).await?;
        match Range::of(header, size) {
            Range::Whole => {}
            Range::Part(first, last) => {
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                let headers = response.headers_mut();
                if let Ok(range) = HeaderValue::from_str(&format!("bytes {first}-{last}/{size}")) {
                    headers.insert(CONTENT_RANGE, range);
                }
                headers.insert(CONTENT_LENGTH, (last - first + 1).into());
                part = Some((first, Some(last - first + 1)));
            }
            Range::Nothing => {
                let text = format!("the file has {size} bytes");
                return Err(Problem::new(Code::RangeNotSatisfiable, text).with_field("Range"));
            }
        }
    }
    let file = manager.read_file(&ask.caller, name, query, part, by).await;
    *response.body_mut() = body(file.map_err(|error| error.problem())?).await?;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, OCTETS);
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    Ok(response)
}

/// How long the file is. Whoever may read it may know that.
async fn size(ask: &Ask, query: &ReadQuery) -> Result<u64, Problem> {
    let mut caller = ask.caller.clone();
    if let Some(operations) = &mut caller.operations
        && operations.contains(&Operation::FileRead)
    {
        operations.insert(Operation::FileStat);
    }
    let stat = StatQuery { path: query.path.clone(), user: query.user.clone(), follow: true };
    let found = ask.app.manager.stat_file(&caller, ask.sandbox()?, stat, &ask.provenance).await;
    let found = found.map_err(|error| error.problem())?;
    Ok(if found.kind == FileKind::File { found.size } else { 0 })
}

/// What comes out of a sandbox, as the body of an answer. That it cannot be had is told before
/// anything of it is sent; that it ends early, by ending the connection early.
async fn body<O>(mut download: Download<O>) -> Result<Body, Problem>
where
    O: op::Operation<Reply = op::Transferred> + Send + 'static,
{
    let first = download.read().await.map_err(|error| error.problem())?;
    let Some(first) = first else {
        download.finish().await.map_err(|error| error.problem())?;
        return Ok(Body::empty());
    };
    let rest = futures_util::stream::unfold(Some(download), |download| async {
        let mut download = download?;
        match download.read().await {
            Ok(Some(bytes)) => Some((Ok(Bytes::from(bytes)), Some(download))),
            Ok(None) => match download.finish().await {
                Ok(_) => None,
                Err(error) => Some((Err(error), None)),
            },
            Err(error) => Some((Err(error), None)),
        }
    });
    let first = futures_util::stream::iter([Ok(Bytes::from(first))]);
    Ok(Body::from_stream(first.chain(rest)))
}

/// Passes on what the client sends. Where that breaks off, the guest is told so.
async fn pass<O>(mut from: ask::Upload, mut to: Upload<O>) -> Result<Transferred, Problem>
where
    O: op::Operation<Reply = op::Transferred>,
{
    while let Some(bytes) = from.next().await? {
        to.write(&bytes).await.map_err(|error| error.problem())?;
    }
    to.finish().await.map_err(|error| error.problem())
}

pub(super) async fn write(ask: Ask) -> Answer {
    let query: WriteQuery = ask.query()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    let file = manager.write_file(&ask.caller, name, query, by).await;
    let file = file.map_err(|error| error.problem())?;
    ok(&pass(ask.take_upload()?, file).await?)
}

pub(super) async fn remove(ask: Ask) -> Answer {
    let query: PathQuery = ask.query()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    let removed = manager.remove_file(&ask.caller, name, query, true, by).await;
    removed.map_err(|error| error.problem())?;
    done()
}

pub(super) async fn stat(ask: Ask) -> Answer {
    let query: StatQuery = ask.query()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    let found = manager.stat_file(&ask.caller, name, query, by).await;
    ok(&found.map_err(|error| error.problem())?)
}

pub(super) async fn list(ask: Ask) -> Answer {
    let query: ListFilesQuery = ask.query()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    let found = manager.list_files(&ask.caller, name, query, by).await;
    ok(&found.map_err(|error| error.problem())?)
}

pub(super) async fn watch(ask: Ask) -> Answer {
    let query: WatchQuery = ask.query()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    let watch = manager.watch_files(&ask.caller, name, query, by).await;
    let mut watch = watch.map_err(|error| error.problem())?;
    // That nothing can be watched is told by status.
    let first = watch.next().await.map_err(|error| error.problem())?;
    let first = first.map(|change| Event::new("change", &change));
    let rest = futures_util::stream::unfold(Some(watch), |watch| async {
        let mut watch = watch?;
        match watch.next().await {
            Ok(Some(change)) => Some((Event::new("change", &change), Some(watch))),
            Ok(None) => None,
            Err(error) => Some((Event::failure(&error.problem()), None)),
        }
    });
    Ok(sse::endless(&ask.app, futures_util::stream::iter(first).chain(rest)))
}

pub(super) async fn mkdir(ask: Ask) -> Answer {
    let request: MakeDirectory = ask.json()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    let made = manager.make_directory(&ask.caller, name, request, by).await;
    made.map_err(|error| error.problem())?;
    done()
}

pub(super) async fn rename(ask: Ask) -> Answer {
    let request: MoveFile = ask.json()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    let moved = manager.move_file(&ask.caller, name, request, by).await;
    moved.map_err(|error| error.problem())?;
    done()
}

pub(super) async fn pack(ask: Ask) -> Answer {
    let query: PathQuery = ask.query()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    let tar = manager.tar_out(&ask.caller, name, query, by).await;
    let mut response = Response::new(body(tar.map_err(|error| error.problem())?).await?);
    response.headers_mut().insert(CONTENT_TYPE, TAR);
    Ok(response)
}

pub(super) async fn unpack(ask: Ask) -> Answer {
    let query: TarInQuery = ask.query()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    let tar = manager.tar_in(&ask.caller, name, query, by).await;
    let tar = tar.map_err(|error| error.problem())?;
    ok(&pass(ask.take_upload()?, tar).await?)
}
