//! What sandboxes changed in directories that are reviewed.

use api::{ApplyChanges, ChangesQuery, DiffQuery, DiscardChanges};

use crate::ask::{Answer, Ask, done, ok};

pub(super) async fn list(ask: Ask) -> Answer {
    let list = ask.app.manager.list_changes(&ask.caller, &ask.provenance).await;
    ok(&list.map_err(|error| error.problem())?)
}

pub(super) async fn of_sandbox(ask: Ask) -> Answer {
    let query: ChangesQuery = ask.query()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    let changes = manager.changes(&ask.caller, name, &query, by).await;
    ok(&changes.map_err(|error| error.problem())?)
}

pub(super) async fn diff(ask: Ask) -> Answer {
    let query: DiffQuery = ask.query()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    let diff = manager.diff_changes(&ask.caller, name, query, by).await;
    ok(&diff.map_err(|error| error.problem())?)
}

pub(super) async fn apply(ask: Ask) -> Answer {
    let request: ApplyChanges = ask.optional_json()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    let applied = manager.apply_changes(&ask.caller, name, request, by).await;
    ok(&applied.map_err(|error| error.problem())?)
}

pub(super) async fn discard(ask: Ask) -> Answer {
    let request: DiscardChanges = ask.optional_json()?;
    let (manager, name, by) = (&ask.app.manager, ask.sandbox()?, &ask.provenance);
    let discarded = manager.discard_changes(&ask.caller, name, request, by).await;
    discarded.map_err(|error| error.problem())?;
    done()
}
