//! The audit log.

use api::{AuditQuery, AuditRange};
use axum::body::Body;
use axum::response::Response;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};

use crate::ask::{Answer, Ask, json, ok};

pub(super) async fn list(ask: Ask) -> Answer {
    let query: AuditQuery = ask.query()?;
    let page = ask.app.manager.audit(&ask.caller, &query, &ask.provenance).await;
    ok(&page.map_err(|error| error.problem())?)
}

pub(super) async fn export(ask: Ask) -> Answer {
    let range: AuditRange = ask.query()?;
    let lines = ask.app.manager.export_audit(&ask.caller, range, &ask.provenance).await;
    let lines = lines.map_err(|error| error.problem())?;
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/jsonl"));
    Ok(response)
}

pub(super) async fn verify(ask: Ask) -> Answer {
    let range: AuditRange = ask.query()?;
    let report = ask.app.manager.verify_audit(&ask.caller, range, &ask.provenance).await;
    ok(&report.map_err(|error| error.problem())?)
}

pub(super) async fn checkpoint(ask: Ask) -> Answer {
    let signed = ask.app.manager.checkpoint_audit(&ask.caller, &ask.provenance).await;
    json(StatusCode::CREATED, &signed.map_err(|error| error.problem())?)
}
