//! Sandboxes and commands, from request to answer.

use serde_json::{Value, json};

use crate::server::{Reply, Server};

#[tokio::test]
async fn a_sandbox_is_made_used_and_destroyed() {
    let server = Server::start().await;
    let body = json!({"engine": "mock", "name": "build-1", "labels": {"team": "red"}});
    let made = server.post("/v1/sandboxes").unix().json(&body).send().await;
    assert_eq!(made.status, 201, "{made:?}");
    let sandbox = made.json();
    assert_eq!(sandbox["state"], "ready");
    let path = format!("/v1/sandboxes/{}", sandbox["id"].as_str().unwrap());

    let exec = server.post(&format!("{path}/exec")).admin().json(&json!({"command": ["hello"]}));
    let result = exec.send().await;
    assert_eq!(result.status, 200, "{result:?}");
    let result = result.json();
    assert_eq!((&result["stdout"], &result["stderr"]), (&json!("hello\n"), &json!("oops\n")));
    assert_eq!(result["exit_code"], 0);
    assert_eq!(result["task_digest"].as_str().unwrap().len(), 64);

    assert_eq!(
        server.get("/v1/sandboxes/build-1").admin().send().await.json()["id"],
        sandbox["id"]
    );
    let gone = server.delete(&path).admin().send().await;
    assert_eq!((gone.status, &gone.json()["state"]), (200, &json!("destroyed")));
    // Once more changes nothing.
    assert_eq!(server.delete(&path).admin().send().await.status, 200);
}

#[tokio::test]
async fn output_that_is_not_text_comes_as_base64() {
    let server = Server::start().await;
    let id = server.sandbox("default").await;
    let exec = server.post(&format!("/v1/sandboxes/{id}/exec")).admin();
    let result = exec.json(&json!({"command": ["bytes"]})).send().await.json();
    assert_eq!(result["stdout_base64"], "//4=");
}

#[tokio::test]
async fn output_beyond_its_limit_is_counted() {
    let server = Server::start().await;
    let id = server.sandbox("default").await;
    let exec = server.post(&format!("/v1/sandboxes/{id}/exec")).admin();
    let body = json!({"command": ["hello"], "max_output_bytes": 2});
    let result = exec.json(&body).send().await.json();
    assert_eq!((&result["stdout"], &result["truncated"]["stdout"]), (&json!("he"), &json!(4)));
}

#[tokio::test]
async fn a_request_with_a_key_is_done_once() {
    let server = Server::start().await;
    let create = |body| {
        server.post("/v1/sandboxes").admin().header("idempotency-key", "k-1").json(body).send()
    };
    let body = json!({"engine": "mock", "labels": {"a": "b"}});
    let (first, second) = (create(&body).await, create(&body).await);
    assert_eq!((first.status, second.status), (201, 201), "{second:?}");
    assert_eq!(first.json()["id"], second.json()["id"]);
    let list = server.get("/v1/sandboxes").admin().send().await.json();
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    create(&json!({})).await.assert_problem(422, "idempotency_mismatch");
    // A key is its caller's own.
    let other = server.token("other", "owner", None, None).await;
    let call = server.post("/v1/sandboxes").token(&other).header("idempotency-key", "k-1");
    assert_ne!(call.json(&body).send().await.json()["id"], first.json()["id"]);
}

#[tokio::test]
async fn a_change_needs_the_present_version() {
    let server = Server::start().await;
    let id = server.sandbox("default").await;
    let path = format!("/v1/sandboxes/{id}");
    let found = server.get(&path).admin().send().await;
    let etag = found.header("etag").to_owned();
    assert!(etag.starts_with('"'), "{found:?}");
    let again = server.get(&path).admin().header("if-none-match", &etag).send().await;
    assert_eq!((again.status, again.body.len()), (304, 0));
    let labels = json!({"labels": {"team": "blue"}});
    let patch = server.patch(&path).admin().header("if-match", &etag).json(&labels).send().await;
    assert_eq!(patch.status, 200, "{patch:?}");
    assert_ne!(patch.header("etag"), etag);
    let late = server.patch(&path).admin().header("if-match", &etag).json(&labels).send().await;
    late.assert_problem(412, "precondition_failed");
}

#[tokio::test]
async fn a_listing_comes_in_pages() {
    let server = Server::start().await;
    for _ in 0..3 {
        server.sandbox("default").await;
    }
    let first = server.get("/v1/sandboxes?limit=2").admin().send().await.json();
    assert_eq!(first["items"].as_array().unwrap().len(), 2);
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = server.get(&format!("/v1/sandboxes?limit=2&cursor={cursor}")).admin().send().await;
    let second = second.json();
    assert_eq!(second["items"].as_array().unwrap().len(), 1);
    assert!(second.get("next_cursor").is_none());
    server.get("/v1/sandboxes?limit=0").admin().send().await.assert_problem(400, "invalid_request");
    server.get("/v1/sandboxes?nope=1").admin().send().await.assert_problem(400, "invalid_request");
}

#[tokio::test]
async fn a_detached_command_is_found_again() {
    let server = Server::start().await;
    let id = server.sandbox("default").await;
    let path = format!("/v1/sandboxes/{id}");
    let body = json!({"command": ["sleep"], "detach": true, "name": "sleeper"});
    let started = server.post(&format!("{path}/exec")).admin().json(&body).send().await;
    assert_eq!(
        (started.status, &started.json()["process"]),
        (202, &json!("sleeper")),
        "{started:?}"
    );
    let list = server.get(&format!("{path}/processes")).admin().send().await.json();
    assert_eq!(list["items"][0]["process"], "sleeper");
    let signal = server.post(&format!("{path}/processes/sleeper/signal")).admin();
    assert_eq!(signal.json(&json!({"signal": 15})).send().await.status, 204);
    let output = format!("{path}/processes/sleeper/output?follow=true");
    let ended = server.get(&output).admin().send().await;
    assert_eq!(ended.json()["outcome"], json!({"result": "signaled", "signal": 15}), "{ended:?}");
    let missing = server.get(&format!("{path}/processes/nobody")).admin().send().await;
    missing.assert_problem(404, "process_not_found");
}

#[tokio::test]
async fn what_policy_refuses_names_its_rule() {
    let server = Server::start().await;
    let body =
        json!({"mounts": [{"host_path": "/etc/ssl", "guest_path": "/x", "read_only": true}]});
    let reply = server.post("/v1/sandboxes").admin().json(&body).send().await;
    reply.assert_problem(403, "policy_denied");
    assert!(reply.json()["rule"]["text"].is_string(), "{reply:?}");
    let check = json!({"request": {"create": body}});
    let decision = server.post("/v1/policy/check").admin().json(&check).send().await;
    assert_eq!((decision.status, &decision.json()["allowed"]), (200, &json!(false)));
}

#[tokio::test]
async fn who_may_not_have_a_path_is_not_told_whether_it_is_there() {
    let server = Server::start().await;
    let token = server.token("one", "member", Some("default"), None).await;
    let answers = async |path: &str| {
        let mount = json!({"host_path": path, "guest_path": "/x", "read_only": true});
        let (create, image) = (
            json!({"engine": "mock", "mounts": [&mount]}),
            json!({"engine": "mock", "image": path}),
        );
        let mut all = Vec::new();
        for body in [&create, &image] {
            all.push(server.post("/v1/sandboxes").token(&token).json(body).send().await);
        }
        for request in
            [json!({"create": create}), json!({"create": image}), json!({"mount": mount})]
        {
            let check = server.post("/v1/policy/check").token(&token);
            all.push(check.json(&json!({"request": request})).send().await);
        }
        let text = |reply: Reply| {
            let text = String::from_utf8(reply.body.to_vec()).unwrap().replace(path, "PATH");
            let mut value: Value = serde_json::from_str(&text).unwrap();
            value.as_object_mut().unwrap().remove("instance");
            (reply.status, value)
        };
        all.into_iter().map(text).collect::<Vec<_>>()
    };
    let (there, missing) = (answers("/etc/passwd").await, answers("/etc/not-there").await);
    assert_eq!(there, missing);
    assert_eq!(
        there.iter().map(|(status, _)| *status).collect::<Vec<_>>(),
        [403, 403, 200, 200, 200]
    );
}

#[tokio::test]
async fn the_document_and_the_metrics_are_there() {
    let server = Server::start().await;
    let document = server.get("/openapi.json").send().await.json();
    assert_eq!(document["openapi"].as_str().unwrap().split('.').next(), Some("3"));
    assert_eq!(server.get("/readyz").send().await.json()["ready"], true);
    server.sandbox("default").await;
    let metrics = server.get("/metrics").admin().send().await;
    assert!(metrics.header("content-type").starts_with("application/openmetrics-text"));
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    for line in [
        "sandforge_sandboxes{state=\"ready\"} 1",
        "sandforge_created_total 1",
        "sandforge_boot_duration_seconds_count 1",
        "sandforge_requests_total{route=\"create_sandbox\",status=\"201\"} 1",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn every_answer_says_what_is_wrong_in_one_form() {
    let server = Server::start().await;
    server.get("/v1/nowhere").admin().send().await.assert_problem(404, "not_found");
    let reply = server.put("/v1/sandboxes").admin().send().await;
    reply.assert_problem(405, "method_not_allowed");
    let mut allowed: Vec<_> = reply.header("allow").split(',').map(str::trim).collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["GET", "HEAD", "POST"]);
    let html = server.get("/v1/sandboxes").admin().header("accept", "text/html").send().await;
    html.assert_problem(406, "not_acceptable");
    let upgrade = server.get(&format!("/v1/sandboxes/{}/exec", server.sandbox("default").await));
    upgrade.admin().send().await.assert_problem(426, "upgrade_required");
}
