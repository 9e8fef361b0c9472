//! The audit log as its readers get it.

use std::io::Cursor;

use serde_json::Value;

use crate::server::Server;

#[tokio::test]
async fn an_export_has_what_moved_to_files_and_verifies() {
    let server = Server::start().await;
    server.sandbox("default").await;
    let moved = server.manager.store().rotate_audit(2).await.unwrap();
    assert_eq!(moved.first().map(|segment| segment.first), Some(1), "{moved:?}");
    let export = server.get("/v1/audit/export").admin().send().await;
    assert_eq!((export.status, export.header("content-type")), (200, "application/jsonl"));
    let key = server.manager.store().audit_public_key();
    let report = audit::verify_lines(Cursor::new(&export.body), Some(&key)).unwrap();
    assert!(report.ok, "{report:?}");
    assert_eq!(report.from, Some(1), "{report:?}");
    let lines: Vec<api::AuditLine> = { export.body.split(|byte| *byte == b'\n') }
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let Some(api::AuditLine::End { footer }) = lines.last() else { panic!("no end: {lines:?}") };
    assert_eq!(footer.records, lines.len() as u64 - 1);

    let part = server.get("/v1/audit/export?from=2&to=3").admin().send().await;
    let first: Value =
        serde_json::from_slice(part.body.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    assert_eq!(first["seq"], 2);
}

#[tokio::test]
async fn a_name_is_one_living_token_s_in_its_workspace() {
    let server = Server::start().await;
    server.token("ci", "member", Some("red"), None).await;
    // Elsewhere it is another's.
    server.token("ci", "member", Some("blue"), None).await;
    let body = serde_json::json!({"name": "ci", "role": "viewer", "workspace": "red"});
    let second = || server.post("/v1/tokens").unix().json(&body).send();
    second().await.assert_problem(409, "name_taken");
    let listed = server.get("/v1/tokens?workspace=red").unix().send().await.json();
    let id = listed["items"][0]["id"].as_str().unwrap();
    assert_eq!(server.delete(&format!("/v1/tokens/{id}")).unix().send().await.status, 204);
    assert_eq!(second().await.status, 201);
}
