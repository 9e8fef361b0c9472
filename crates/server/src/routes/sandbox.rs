//! Sandboxes as a whole.

use api::{
    Code, CreateSandbox, DeleteQuery, ListSandboxes, LogQuery, Mount, MountQuery, Page, Problem,
    Sandbox, UpdateSandbox,
};
use futures_util::StreamExt as _;
use http::StatusCode;
use http::header::{IF_MATCH, IF_NONE_MATCH};

use crate::ask::{Answer, Ask, json, ok, tagged};
use crate::problem::empty;
use crate::sse::{self, Event};

/// How often usage is told.
const STATS: std::time::Duration = std::time::Duration::from_secs(1);

fn sandbox(status: StatusCode, sandbox: &Sandbox) -> Answer {
    Ok(tagged(json(status, sandbox)?, &sandbox.etag()))
}

pub(super) async fn create(ask: Ask) -> Answer {
    let request: CreateSandbox = ask.optional_json()?;
    let status = if request.wait { StatusCode::CREATED } else { StatusCode::ACCEPTED };
    ask.once(move |ask| async move {
        let made = ask.app.manager.create(&ask.caller, request, &ask.provenance).await?;
        Ok((status, Some(made.etag()), made))
    })
    .await
}

pub(super) async fn list(ask: Ask) -> Answer {
    let query: ListSandboxes = ask.query()?;
    let manager = &ask.app.manager;
    if !ask.wants_events() {
        let page = manager.list(&ask.caller, &query).await;
        return ok(&page.map_err(|error| error.problem())?);
    }
    // What changes while the first are read is told afterwards, once more.
    let changes = manager.watch(&ask.caller, query.clone()).await;
    let changes = changes.map_err(|error| error.problem())?;
    let mut there = Vec::new();
    let mut next = query;
    loop {
        let page = manager.list(&ask.caller, &next).await.map_err(|error| error.problem())?;
        let Page { items, next_cursor } = page;
        there.extend(items.iter().map(|sandbox| Event::new("sandbox", sandbox)));
        if next_cursor.is_none() {
            break;
        }
        next.cursor = next_cursor;
    }
    let changes = changes.map(|sandbox| Event::new("sandbox", &sandbox));
    Ok(sse::endless(&ask.app, futures_util::stream::iter(there).chain(changes)))
}

pub(super) async fn get(ask: Ask) -> Answer {
    let known = ask.entity_tag(&IF_NONE_MATCH)?;
    let found = ask.app.manager.get(&ask.caller, ask.sandbox()?).await;
    let found = found.map_err(|error| error.problem())?;
    if known.is_some_and(|known| known == "*" || known == found.etag()) {
        return Ok(tagged(empty(StatusCode::NOT_MODIFIED), &found.etag()));
    }
    sandbox(StatusCode::OK, &found)
}

pub(super) async fn update(ask: Ask) -> Answer {
    let change: UpdateSandbox = ask.json()?;
    let version = ask.entity_tag(&IF_MATCH)?.map(version).transpose()?.flatten();
    let changed =
        ask.app.manager.patch(&ask.caller, ask.sandbox()?, change, version, &ask.provenance).await;
    sandbox(StatusCode::OK, &changed.map_err(|error| error.problem())?)
}

pub(super) async fn attach_mount(ask: Ask) -> Answer {
    let mount: Mount = ask.json()?;
    let changed =
        ask.app.manager.attach_mount(&ask.caller, ask.sandbox()?, mount, &ask.provenance).await;
    sandbox(StatusCode::OK, &changed.map_err(|error| error.problem())?)
}

pub(super) async fn detach_mount(ask: Ask) -> Answer {
    let MountQuery { guest_path } = ask.query()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    let changed = manager.detach_mount(&ask.caller, name, &guest_path, by).await;
    sandbox(StatusCode::OK, &changed.map_err(|error| error.problem())?)
}

pub(super) async fn delete(ask: Ask) -> Answer {
    let DeleteQuery { wait } = ask.query()?;
    let gone = ask.app.manager.delete(&ask.caller, ask.sandbox()?, wait, &ask.provenance).await;
    let gone = gone.map_err(|error| error.problem())?;
    let status = if gone.state.is_final() { StatusCode::OK } else { StatusCode::ACCEPTED };
    sandbox(status, &gone)
}

pub(super) async fn start(ask: Ask) -> Answer {
    let name = ask.sandbox()?.to_owned();
    ask.once(move |ask| async move {
        moved(ask.app.manager.start(&ask.caller, &name, true, &ask.provenance).await?)
    })
    .await
}

pub(super) async fn stop(ask: Ask) -> Answer {
    let name = ask.sandbox()?.to_owned();
    ask.once(move |ask| async move {
        moved(ask.app.manager.stop(&ask.caller, &name, true, &ask.provenance).await?)
    })
    .await
}

pub(super) async fn pause(ask: Ask) -> Answer {
    let name = ask.sandbox()?.to_owned();
    ask.once(move |ask| async move {
        moved(ask.app.manager.pause(&ask.caller, &name, &ask.provenance).await?)
    })
    .await
}

pub(super) async fn resume(ask: Ask) -> Answer {
    let name = ask.sandbox()?.to_owned();
    ask.once(move |ask| async move {
        moved(ask.app.manager.resume(&ask.caller, &name, &ask.provenance).await?)
    })
    .await
}

pub(super) async fn hibernate(ask: Ask) -> Answer {
    let name = ask.sandbox()?.to_owned();
    ask.once(move |ask| async move {
        moved(ask.app.manager.hibernate(&ask.caller, &name, &ask.provenance).await?)
    })
    .await
}

fn moved(sandbox: Sandbox) -> Result<(StatusCode, Option<String>, Sandbox), fleet::Error> {
    Ok((StatusCode::OK, Some(sandbox.etag()), sandbox))
}

pub(super) async fn stats(ask: Ask) -> Answer {
    let stats = ask.app.manager.stats(&ask.caller, ask.sandbox()?).await;
    let stats = stats.map_err(|error| error.problem())?;
    if !ask.wants_events() {
        return ok(&stats);
    }
    let (app, caller, name) = (ask.app.clone(), ask.caller.clone(), ask.sandbox()?.to_owned());
    let first = Event::new("stats", &stats);
    let begun = (stats.state.is_final(), app, caller, name);
    let further = futures_util::stream::unfold(begun, |(ended, app, caller, name)| async move {
        if ended {
            return None;
        }
        tokio::time::sleep(STATS).await;
        let (event, ended) = match app.manager.stats(&caller, &name).await {
            Ok(stats) => (Event::new("stats", &stats), stats.state.is_final()),
            Err(error) => (Event::failure(&error.problem()), true),
        };
        Some((event, (ended, app, caller, name)))
    });
    let events = futures_util::stream::iter([first]).chain(further);
    Ok(sse::endless(&ask.app, events))
}

pub(super) async fn logs(ask: Ask) -> Answer {
    let mut query: LogQuery = ask.query()?;
    let (manager, name) = (&ask.app.manager, ask.sandbox()?);
    if !ask.wants_events() {
        let page = manager.logs(&ask.caller, name, &query).await;
        return ok(&page.map_err(|error| error.problem())?);
    }
    query.since = ask.last_event_id()?.or(query.since);
    let lines = manager.follow_logs(&ask.caller, name, query).await;
    let lines = lines.map_err(|error| error.problem())?;
    let events = lines.map(|line| Event::new("log", &line).with_id(line.seq));
    Ok(sse::endless(&ask.app, events))
}

/// The version that If-Match names; any where it is `*`.
fn version(tag: &str) -> Result<Option<u64>, Problem> {
    if tag == "*" {
        return Ok(None);
    }
    // A number that no version can be is not the present one.
    tag.trim_matches('"').parse().map(Some).map_err(|_| {
        Problem::new(Code::PreconditionFailed, "If-Match is no ETag of a sandbox")
            .with_field("If-Match")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_a_strong_etag() {
        assert_eq!(version("\"7\"").unwrap(), Some(7));
        assert_eq!(version("*").unwrap(), None);
        let none = version("\"99999999999999999999\"").unwrap_err();
        assert_eq!(none.code, Code::PreconditionFailed);
    }
}
