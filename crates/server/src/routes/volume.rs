//! Disks that outlive sandboxes.

use api::{CreateVolume, VolumeQuery};
use http::StatusCode;

use crate::ask::{Answer, Ask, done, json, ok};

pub(super) async fn create(ask: Ask) -> Answer {
    let request: CreateVolume = ask.json()?;
    let made = ask.app.manager.create_volume(&ask.caller, request, &ask.provenance).await;
    json(StatusCode::CREATED, &made.map_err(|error| error.problem())?)
}

pub(super) async fn list(ask: Ask) -> Answer {
    let query: VolumeQuery = ask.query()?;
    let list = ask.app.manager.volumes(&ask.caller, &query).await;
    ok(&list.map_err(|error| error.problem())?)
}

pub(super) async fn get(ask: Ask) -> Answer {
    let query: VolumeQuery = ask.query()?;
    let found = ask.app.manager.volume(&ask.caller, ask.parameter("volume")?, &query).await;
    ok(&found.map_err(|error| error.problem())?)
}

pub(super) async fn remove(ask: Ask) -> Answer {
    let query: VolumeQuery = ask.query()?;
    let (manager, name) = (&ask.app.manager, ask.parameter("volume")?);
    let removed = manager.remove_volume(&ask.caller, name, &query, &ask.provenance).await;
    removed.map_err(|error| error.problem())?;
    done()
}
