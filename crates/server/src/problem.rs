//! Problems as answers.

use api::{Code, Problem};
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};

const PROBLEM: HeaderValue = HeaderValue::from_static(Problem::MEDIA_TYPE);
const BEARER: HeaderValue = HeaderValue::from_static("Bearer realm=\"sandforge\"");

/// The problem as an answer that names the request.
pub(crate) fn answer(problem: Problem, request: &str) -> Response {
    let status =
        StatusCode::from_u16(problem.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let (code, wait) = (problem.code, problem.retry_after_sec());
    let problem = problem.with_instance(format!("urn:sandforge:request:{request}"));
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, PROBLEM);
    if let Some(seconds) = wait {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    if code == Code::Unauthenticated {
        headers.insert(WWW_AUTHENTICATE, BEARER);
    }
    response
}

/// What axum says of itself, in the form of everything else.
pub(crate) fn adopt(response: Response, request: &str) -> Response {
    let status = response.status();
    if status.as_u16() < 400 || response.headers().contains_key(CONTENT_TYPE) {
        return response;
    }
    let code = Code::ALL.iter().copied().find(|code| code.status() == status.as_u16());
    let problem = Problem::new(code.unwrap_or(Code::Internal), status.to_string());
    let mut adopted = answer(problem, request);
    if let Some(methods) = response.headers().get(ALLOW) {
        adopted.headers_mut().insert(ALLOW, methods.clone());
    }
    adopted
}

/// Takes the place of a body that must not be there.
pub(crate) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}
