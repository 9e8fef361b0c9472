//! What happened.

use api::EventQuery;
use futures_util::StreamExt as _;

use crate::ask::{Answer, Ask, ok};
use crate::sse::{self, Event};

pub(super) async fn list(ask: Ask) -> Answer {
    let mut query: EventQuery = ask.query()?;
    let manager = &ask.app.manager;
    if !ask.wants_events() {
        let page = manager.events(&ask.caller, &query).await;
        return ok(&page.map_err(|error| error.problem())?);
    }
    query.since = ask.last_event_id()?.or(query.since);
    let events = manager.follow_events(&ask.caller, query).await;
    let events = events.map_err(|error| error.problem())?;
    let events = events.map(|event| match event {
        Ok(event) => Event::new(event.kind.as_str(), &event).with_id(event.id),
        Err(error) => Event::failure(&error.problem()),
    });
    Ok(sse::endless(&ask.app, events))
}
