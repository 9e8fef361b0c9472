//! Subscriptions to events.

use api::{Code, CreateWebhook, DeliveryQuery, PageQuery, Problem};
use http::StatusCode;

use crate::ask::{Answer, Ask, done, json, ok};

pub(super) async fn create(ask: Ask) -> Answer {
    let request: CreateWebhook = ask.json()?;
    if let Err(failure) = ask.app.courier.check(&request.url) {
        let problem = Problem::new(Code::PolicyDenied, failure.to_string()).with_field("url");
        return Err(problem);
    }
    let made = ask.app.manager.create_webhook(&ask.caller, request, &ask.provenance).await;
    json(StatusCode::CREATED, &made.map_err(|error| error.problem())?)
}

pub(super) async fn list(ask: Ask) -> Answer {
    let query: PageQuery = ask.query()?;
    let page = ask.app.manager.webhooks(&ask.caller, &query).await;
    ok(&page.map_err(|error| error.problem())?)
}

pub(super) async fn get(ask: Ask) -> Answer {
    let found = ask.app.manager.webhook(&ask.caller, ask.parameter("id")?).await;
    ok(&found.map_err(|error| error.problem())?)
}

pub(super) async fn delete(ask: Ask) -> Answer {
    let (manager, id) = (&ask.app.manager, ask.parameter("id")?);
    let deleted = manager.delete_webhook(&ask.caller, id, &ask.provenance).await;
    deleted.map_err(|error| error.problem())?;
    done()
}

pub(super) async fn deliveries(ask: Ask) -> Answer {
    let query: DeliveryQuery = ask.query()?;
    let page = ask.app.manager.deliveries(&ask.caller, ask.parameter("id")?, &query).await;
    ok(&page.map_err(|error| error.problem())?)
}

pub(super) async fn redeliver(ask: Ask) -> Answer {
    let (id, delivery) = (ask.parameter("id")?, ask.parameter("delivery")?);
    let put = ask.app.manager.redeliver(&ask.caller, id, delivery, &ask.provenance).await;
    ask.app.outbox.notify_one();
    json(StatusCode::ACCEPTED, &put.map_err(|error| error.problem())?)
}
