//! Tokens, and keys for signed requests.

use api::{CreateKey, CreateToken, TokenQuery};
use http::StatusCode;

use crate::ask::{Answer, Ask, done, json, ok};

pub(super) async fn create(ask: Ask) -> Answer {
    let request: CreateToken = ask.json()?;
    let made = ask.app.manager.create_token(&ask.caller, request, &ask.provenance).await;
    json(StatusCode::CREATED, &made.map_err(|error| error.problem())?)
}

pub(super) async fn list(ask: Ask) -> Answer {
    let query: TokenQuery = ask.query()?;
    let page = ask.app.manager.tokens(&ask.caller, &query).await;
    ok(&page.map_err(|error| error.problem())?)
}

pub(super) async fn revoke(ask: Ask) -> Answer {
    let (manager, id) = (&ask.app.manager, ask.parameter("id")?);
    let revoked = manager.revoke_token(&ask.caller, id, &ask.provenance).await;
    revoked.map_err(|error| error.problem())?;
    done()
}

pub(super) async fn create_key(ask: Ask) -> Answer {
    let request: CreateKey = ask.json()?;
    let made = ask.app.manager.create_key(&ask.caller, request, &ask.provenance).await;
    json(StatusCode::CREATED, &made.map_err(|error| error.problem())?)
}

pub(super) async fn list_keys(ask: Ask) -> Answer {
    let query: TokenQuery = ask.query()?;
    let page = ask.app.manager.keys(&ask.caller, &query).await;
    ok(&page.map_err(|error| error.problem())?)
}

pub(super) async fn revoke_key(ask: Ask) -> Answer {
    let (manager, id) = (&ask.app.manager, ask.parameter("id")?);
    let revoked = manager.revoke_key(&ask.caller, id, &ask.provenance).await;
    revoked.map_err(|error| error.problem())?;
    done()
}
