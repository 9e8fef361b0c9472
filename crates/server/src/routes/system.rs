//! The server and its host.

use std::fmt::Display;

use api::{Code, Health, Operation, PageQuery, Problem, Ready, ReadyCheck, Version};
use axum::response::IntoResponse as _;
use http::StatusCode;
use http::header::CONTENT_TYPE;

use crate::ask::{Answer, Ask, JSON, json, ok};
use crate::metrics;

pub(super) async fn health(_: Ask) -> Answer {
    ok(&Health { status: "ok".into() })
}

pub(super) async fn ready(ask: Ask) -> Answer {
    let app = &ask.app;
    let open = !app.lifetime.stopping.is_cancelled();
    let fleet = app.manager.ready();
    let check = |name: &str, ok: bool, detail: &str| ReadyCheck {
        name: name.into(),
        ok,
        detail: (!ok).then(|| detail.into()),
    };
    let checks = vec![
        check("server", open, "it is stopping"),
        check(
            "fleet",
            fleet,
            "it does not take work: it is starting, stopping, or its disk is full",
        ),
    ];
    let ready = Ready { ready: checks.iter().all(|check| check.ok), checks };
    json(if ready.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &ready)
}

pub(super) async fn openapi(ask: Ask) -> Answer {
    Ok(([(CONTENT_TYPE, JSON)], ask.app.document.clone()).into_response())
}

pub(super) async fn version(_: Ask) -> Answer {
    ok(&Version { version: env!("CARGO_PKG_VERSION").into(), api: "v1".into() })
}

pub(super) async fn metrics(ask: Ask) -> Answer {
    may(&ask, Operation::Metrics)?;
    let text = ask.app.metrics.text().map_err(failed)?;
    Ok(([(CONTENT_TYPE, metrics::MEDIA_TYPE)], text).into_response())
}

pub(super) async fn whoami(ask: Ask) -> Answer {
    may(&ask, Operation::Whoami)?;
    ok(&ask.caller.info())
}

pub(super) async fn doctor(ask: Ask) -> Answer {
    let doctor = ask.app.manager.doctor(&ask.caller, &ask.provenance).await;
    ok(&doctor.map_err(|error| error.problem())?)
}

pub(super) async fn images(ask: Ask) -> Answer {
    let query: PageQuery = ask.query()?;
    let images = ask.app.manager.images(&ask.caller, &query).await;
    ok(&images.map_err(|error| error.problem())?)
}

/// For what the fleet knows nothing of.
fn may(ask: &Ask, operation: Operation) -> Result<(), Problem> {
    access::authorise(&ask.caller, operation, None).map_err(Problem::from)
}

fn failed(error: impl Display) -> Problem {
    Problem::new(Code::Internal, error.to_string())
}
