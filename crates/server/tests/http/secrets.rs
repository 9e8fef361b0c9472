//! Secrets over HTTP: a value goes in and never comes out.

use serde_json::{Value, json};

use crate::server::{Reply, Server};

const CANARY: &str = "ghp_canary0123456789canary0123456789abcd";

async fn set(server: &Server, target: &str, token: &str, body: &Value) -> Reply {
    server.put(target).token(token).json(body).send().await
}

async fn list(server: &Server, token: &str) -> Vec<Value> {
    let list = server.get("/v1/secrets").token(token).send().await;
    assert_eq!(list.status, 200, "{list:?}");
    list.json()["secrets"].as_array().unwrap().clone()
}

fn value() -> Value {
    json!({"value": CANARY})
}

#[tokio::test]
async fn a_value_goes_in_and_comes_out_nowhere() {
    let server = Server::start().await;
    let owner = server.token("owner", "owner", Some("own"), None).await;
    let stored = set(&server, "/v1/secrets/github", &owner, &value()).await;
    assert_eq!(stored.status, 200, "{stored:?}");
    assert_eq!(stored.json()["masked"], "****abcd");
    let listed = list(&server, &owner).await;
    assert_eq!((&listed[0]["service"], &listed[0]["workspace"]), (&json!("github"), &json!("own")));
    let audit = server.get("/v1/audit").unix().send().await;
    let records = audit.json().to_string();
    assert!(records.contains("secret_set") && records.contains("github"), "{records}");
    for text in [stored.json().to_string(), json!(listed).to_string(), records] {
        assert!(!text.contains("canary"), "{text}");
    }
}

#[tokio::test]
async fn a_record_of_a_secret_has_no_digest_to_guess_it_by() {
    let server = Server::start().await;
    let owner = server.token("owner", "owner", Some("own"), None).await;
    set(&server, "/v1/secrets/github", &owner, &value()).await;
    let audit = server.get("/v1/audit?operation=secret_set").unix().send().await.json();
    let record = &audit["items"][0];
    assert_eq!(record["operation"], "secret_set", "{audit}");
    assert!(record["request_digest"].is_null(), "{record}");
}

#[tokio::test]
async fn members_set_them_for_sandboxes_and_owners_for_all() {
    let server = Server::start().await;
    let member = server.token("member", "member", Some("own"), None).await;
    let viewer = server.token("viewer", "viewer", Some("own"), None).await;
    let sandbox = server.sandbox("own").await;
    let own = format!("/v1/sandboxes/{sandbox}/secrets/openai");
    set(&server, "/v1/secrets/github", &member, &value()).await.assert_problem(403, "forbidden");
    set(&server, &own, &viewer, &value()).await.assert_problem(403, "forbidden");
    assert_eq!(set(&server, &own, &member, &value()).await.status, 200);
    let listed = list(&server, &member).await;
    assert_eq!(listed[0]["sandbox"], json!(sandbox));
    assert_eq!(server.delete(&own).token(&member).send().await.status, 204);
    server.delete(&own).token(&member).send().await.assert_problem(404, "not_found");
}

#[tokio::test]
async fn what_is_of_the_host_is_named_by_administrators_only() {
    let server = Server::start().await;
    let owner = server.token("owner", "owner", Some("own"), None).await;
    for body in [json!({"command": "cat /etc/shadow"}), json!({"env": "SANDFORGE_TOKEN"})] {
        let refused = set(&server, "/v1/secrets/github", &owner, &body).await;
        refused.assert_problem(403, "forbidden");
        let stored = server.put("/v1/secrets/github").unix().json(&body).send().await;
        assert_eq!(stored.status, 200, "{stored:?}");
    }
    assert_eq!(list(&server, &owner).await, Vec::<Value>::new());
}

#[tokio::test]
async fn workspaces_do_not_see_each_others() {
    let server = Server::start().await;
    let own = server.token("own", "owner", Some("own"), None).await;
    let other = server.token("other", "owner", Some("other"), None).await;
    set(&server, "/v1/secrets/github", &own, &value()).await;
    assert_eq!(list(&server, &other).await, Vec::<Value>::new());
    let theirs = server.get("/v1/secrets?workspace=own").token(&other).send().await;
    theirs.assert_problem(404, "not_found");
    let removed = server.delete("/v1/secrets/github").token(&other).send().await;
    removed.assert_problem(404, "not_found");
    let reset = server.delete("/v1/secrets").token(&own).send().await;
    reset.assert_problem(403, "forbidden");
    assert_eq!(list(&server, &own).await.len(), 1);
}

#[tokio::test]
async fn the_secrets_of_a_sandbox_are_gone_when_it_is() {
    let server = Server::start().await;
    let owner = server.token("owner", "owner", Some("own"), None).await;
    let sandbox = server.sandbox("own").await;
    let target = format!("/v1/sandboxes/{sandbox}/secrets/github");
    assert_eq!(set(&server, &target, &owner, &value()).await.status, 200);
    let path = format!("/v1/sandboxes/{sandbox}");
    assert!(server.delete(&path).token(&owner).send().await.status < 300);
    // What follows a sandbox's end is done on a thread of its own.
    for _ in 0..1000 {
        if list(&server, &owner).await.is_empty() {
            set(&server, &target, &owner, &value()).await.assert_problem(409, "wrong_state");
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("it is there still");
}

#[tokio::test]
async fn a_secret_that_nothing_could_use_is_refused_with_its_field() {
    let server = Server::start().await;
    let owner = server.token("owner", "owner", Some("own"), None).await;
    for (service, body, field) in [
        ("gitub", value(), "service"),
        ("github", json!({"value": "short"}), "value"),
        ("github", json!({"value": "two\nlines of it"}), "value"),
        ("github", json!({}), "value"),
        (
            "shop",
            json!({
                "value": CANARY,
                "custom": {"hosts": ["*.example"], "slots": [{"header": {"name": "x-key"}}]},
            }),
            "custom",
        ),
    ] {
        let refused = set(&server, &format!("/v1/secrets/{service}"), &owner, &body).await;
        refused.assert_problem(400, "invalid_request");
        assert_eq!(refused.json()["field"], field, "{refused:?}");
        assert!(!refused.json().to_string().contains("canary"), "{refused:?}");
    }
    assert_eq!(list(&server, &owner).await, Vec::<Value>::new());
}
