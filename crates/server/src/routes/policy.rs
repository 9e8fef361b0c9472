//! Policy: what is in force, and what it would decide.

use api::PolicyCheck;

use crate::ask::{Answer, Ask, ok};

pub(super) async fn show(ask: Ask) -> Answer {
    let shown = ask.app.manager.policy(&ask.caller).await;
    ok(&shown.map_err(|error| error.problem())?)
}

pub(super) async fn check(ask: Ask) -> Answer {
    let question: PolicyCheck = ask.json()?;
    let decided = ask.app.manager.check_policy(&ask.caller, question, &ask.provenance).await;
    ok(&decided.map_err(|error| error.problem())?)
}

pub(super) async fn reload(ask: Ask) -> Answer {
    let loaded = ask.app.manager.reload_policy(&ask.caller, &ask.provenance).await;
    ok(&loaded.map_err(|error| error.problem())?)
}
