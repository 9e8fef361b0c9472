//! Requests that are signed, and what becomes of those that were changed on the way.

use access::signature::{BodyDigest, Parts, SignedHeaders, SigningKey, sign};
use api::Timestamp;
use serde_json::json;

use crate::server::{Call, Server};

const KEY: [u8; 32] = [7; 32];

/// Registers the key for the administrator and gives its id.
async fn key_id(server: &Server) -> String {
    let public = SigningKey::from_bytes(&KEY).verifying_key();
    let hex: String = public.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let body = json!({"name": "laptop", "public_key": hex});
    let made = server.post("/v1/keys").admin().json(&body).send().await;
    assert_eq!(made.status, 201, "{made:?}");
    made.json()["id"].as_str().unwrap().to_owned()
}

fn signed(method: &str, target: &str, body: &str, key_id: &str) -> SignedHeaders {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let parts = Parts { method, path, query, idempotency_key: None };
    let digest = BodyDigest::of(body.as_bytes());
    let key = SigningKey::from_bytes(&KEY);
    sign(&parts, digest, &key, key_id, Timestamp::now(), 60).unwrap()
}

fn with<'a>(call: Call<'a>, headers: &SignedHeaders) -> Call<'a> {
    call.header("content-digest", &headers.content_digest)
        .header("signature-input", &headers.signature_input)
        .header("signature", &headers.signature)
}

#[tokio::test]
async fn a_signed_command_is_run_once_and_its_key_is_on_record() {
    let server = Server::of(|_| {}, |fleet| fleet.require_signatures = false).await;
    let (id, key) = (server.sandbox("default").await, key_id(&server).await);
    let target = format!("/v1/sandboxes/{id}/exec");
    let body = json!({"command": ["hello"]}).to_string();
    let headers = signed("POST", &target, &body, &key);
    let call = || server.post(&target).admin().bytes("application/json", body.clone());
    let reply = with(call(), &headers).send().await;
    assert_eq!(reply.status, 200, "{reply:?}");
    // The same bytes again are a replay.
    with(call(), &headers).send().await.assert_problem(401, "bad_signature");
    let audit = server.get("/v1/audit?operation=exec").admin().send().await;
    assert!(String::from_utf8_lossy(&audit.body).contains(&key), "{audit:?}");
}

#[tokio::test]
async fn a_byte_that_was_changed_on_the_way_is_noticed() {
    let server = Server::start().await;
    let (id, key) = (server.sandbox("default").await, key_id(&server).await);
    let target = format!("/v1/sandboxes/{id}/exec");
    let body = json!({"command": ["hello"]}).to_string();
    for at in 0..body.len() {
        let headers = signed("POST", &target, &body, &key);
        let mut changed = body.clone().into_bytes();
        changed[at] ^= 1;
        let call = server.post(&target).admin().bytes("application/json", changed);
        with(call, &headers).send().await.assert_problem(401, "bad_signature");
    }
    let headers = signed("POST", "/v1/sandboxes/other/exec", &body, &key);
    let call = server.post(&target).admin().bytes("application/json", body.clone());
    with(call, &headers).send().await.assert_problem(401, "bad_signature");
    let mut headers = signed("POST", &target, &body, &key);
    headers.content_digest = BodyDigest::of(b"other").to_header();
    let call = server.post(&target).admin().bytes("application/json", body.clone());
    with(call, &headers).send().await.assert_problem(401, "bad_signature");
    let call = server.post(&target).admin().bytes("application/json", body);
    let half = call.header("signature", &headers.signature).send().await;
    half.assert_problem(401, "bad_signature");
}

#[tokio::test]
async fn anothers_key_signs_nothing_for_this_caller() {
    let server = Server::start().await;
    let key = key_id(&server).await;
    let other = server.token("other", "owner", None, None).await;
    let headers = signed("GET", "/v1/sandboxes", "", &key);
    with(server.get("/v1/sandboxes").admin(), &headers).send().await;
    let headers = signed("GET", "/v1/sandboxes", "", &key);
    let reply = with(server.get("/v1/sandboxes").token(&other), &headers).send().await;
    reply.assert_problem(401, "bad_signature");
}

#[tokio::test]
async fn where_signatures_are_required_nothing_runs_without() {
    let server = Server::of(|_| {}, |fleet| fleet.require_signatures = true).await;
    let body = json!({"engine": "mock"}).to_string();
    let create = server.post("/v1/sandboxes").admin().bytes("application/json", body.clone());
    create.send().await.assert_problem(401, "signature_required");
    let key = key_id(&server).await;
    let headers = signed("POST", "/v1/sandboxes", &body, &key);
    let create = server.post("/v1/sandboxes").admin().bytes("application/json", body);
    assert_eq!(with(create, &headers).send().await.status, 201);
}
