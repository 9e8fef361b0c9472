//! Sandboxes as they were, and those that go on from there.

use api::{CreateSnapshot, ForkSandbox, RestoreSnapshot, SnapshotQuery};
use http::StatusCode;

use crate::ask::{Answer, Ask, done, ok};

pub(super) async fn create(ask: Ask) -> Answer {
    let request: CreateSnapshot = ask.optional_json()?;
    let name = ask.sandbox()?.to_owned();
    ask.once(move |ask| async move {
        let (caller, by) = (&ask.caller, &ask.provenance);
        let made = ask.app.manager.create_snapshot(caller, &name, request, by).await?;
        Ok((StatusCode::CREATED, None, made))
    })
    .await
}

pub(super) async fn fork(ask: Ask) -> Answer {
    let request: ForkSandbox = ask.optional_json()?;
    let name = ask.sandbox()?.to_owned();
    ask.once(move |ask| async move {
        let (caller, by) = (&ask.caller, &ask.provenance);
        let made = ask.app.manager.fork(caller, &name, request, by).await?;
        Ok((StatusCode::CREATED, None, made))
    })
    .await
}

pub(super) async fn restore(ask: Ask) -> Answer {
    let query: SnapshotQuery = ask.query()?;
    let request: RestoreSnapshot = ask.optional_json()?;
    let name = ask.parameter("snapshot")?.to_owned();
    ask.once(move |ask| async move {
        let (caller, by) = (&ask.caller, &ask.provenance);
        let made = ask.app.manager.restore_snapshot(caller, &name, &query, request, by).await?;
        Ok((StatusCode::CREATED, Some(made.etag()), made))
    })
    .await
}

pub(super) async fn list(ask: Ask) -> Answer {
    let query: SnapshotQuery = ask.query()?;
    let list = ask.app.manager.snapshots(&ask.caller, &query).await;
    ok(&list.map_err(|error| error.problem())?)
}

pub(super) async fn get(ask: Ask) -> Answer {
    let query: SnapshotQuery = ask.query()?;
    let found = ask.app.manager.snapshot(&ask.caller, ask.parameter("snapshot")?, &query).await;
    ok(&found.map_err(|error| error.problem())?)
}

pub(super) async fn remove(ask: Ask) -> Answer {
    let query: SnapshotQuery = ask.query()?;
    let (manager, name) = (&ask.app.manager, ask.parameter("snapshot")?);
    let removed = manager.remove_snapshot(&ask.caller, name, &query, &ask.provenance).await;
    removed.map_err(|error| error.problem())?;
    done()
}
