//! Credentials of workspaces and sandboxes.

use api::{SecretQuery, SetSecret};

use crate::ask::{Answer, Ask, done, ok};

pub(super) async fn list(ask: Ask) -> Answer {
    let query: SecretQuery = ask.query()?;
    let list = ask.app.manager.list_secrets(&ask.caller, &query).await;
    ok(&list.map_err(|error| error.problem())?)
}

pub(super) async fn set(ask: Ask) -> Answer {
    let request: SetSecret = ask.json()?;
    let (manager, service) = (&ask.app.manager, ask.parameter("service")?);
    let set = manager.set_secret(&ask.caller, service, request, &ask.provenance).await;
    ok(&set.map_err(|error| error.problem())?)
}

pub(super) async fn set_own(ask: Ask) -> Answer {
    let request: SetSecret = ask.json()?;
    let (sandbox, service) = (ask.sandbox()?, ask.parameter("service")?);
    let manager = &ask.app.manager;
    let set =
        manager.set_sandbox_secret(&ask.caller, sandbox, service, request, &ask.provenance).await;
    ok(&set.map_err(|error| error.problem())?)
}

pub(super) async fn remove(ask: Ask) -> Answer {
    let query: SecretQuery = ask.query()?;
    let (manager, service) = (&ask.app.manager, ask.parameter("service")?);
    let removed = manager.remove_secret(&ask.caller, service, &query, &ask.provenance).await;
    removed.map_err(|error| error.problem())?;
    done()
}

pub(super) async fn remove_own(ask: Ask) -> Answer {
    let (sandbox, service) = (ask.sandbox()?, ask.parameter("service")?);
    let manager = &ask.app.manager;
    let removed =
        manager.remove_sandbox_secret(&ask.caller, sandbox, service, &ask.provenance).await;
    removed.map_err(|error| error.problem())?;
    done()
}

pub(super) async fn reset(ask: Ask) -> Answer {
    let reset = ask.app.manager.reset_secrets(&ask.caller, &ask.provenance).await;
    reset.map_err(|error| error.problem())?;
    done()
}
