//! Volumes over HTTP: of a workspace, and of nobody else.

use serde_json::{Value, json};

use crate::server::{Reply, Server};

async fn make(server: &Server, token: &str, body: &Value) -> Reply {
    server.post("/v1/volumes").token(token).json(body).send().await
}

async fn names(server: &Server, token: &str) -> Vec<String> {
    let list = server.get("/v1/volumes").token(token).send().await;
    assert_eq!(list.status, 200, "{list:?}");
    let list = list.json();
    let volumes = list["volumes"].as_array().unwrap().iter();
    volumes.map(|volume| volume["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_volume_is_made_seen_and_removed() {
    let server = Server::start().await;
    let member = server.token("member", "member", Some("own"), None).await;
    let body = json!({"name": "data", "size_bytes": 1 << 30});
    let made = make(&server, &member, &body).await;
    assert_eq!(made.status, 201, "{made:?}");
    let volume = made.json();
    assert_eq!(volume["size_bytes"], 1 << 30);
    assert_eq!((&volume["workspace"], &volume["in_use"]), (&json!("own"), &json!(false)));
    assert!(volume["used_bytes"].as_u64().unwrap() < 1 << 20, "{volume}");
    make(&server, &member, &body).await.assert_problem(409, "already_exists");
    assert_eq!(server.get("/v1/volumes/data").token(&member).send().await.json(), volume);
    assert_eq!(names(&server, &member).await, ["data"]);
    let removed = server.delete("/v1/volumes/data").token(&member).send().await;
    assert_eq!(removed.status, 204, "{removed:?}");
    assert_eq!(names(&server, &member).await, Vec::<String>::new());
    let audit = server.get("/v1/audit").unix().send().await.json().to_string();
    assert!(audit.contains("volume_create") && audit.contains("volume_remove"), "{audit}");
}

#[tokio::test]
async fn workspaces_do_not_see_each_others_volumes() {
    let server = Server::start().await;
    let own = server.token("own", "member", Some("own"), None).await;
    let other = server.token("other", "member", Some("other"), None).await;
    let viewer = server.token("viewer", "viewer", Some("own"), None).await;
    assert_eq!(make(&server, &own, &json!({"name": "data"})).await.status, 201);
    assert_eq!(names(&server, &other).await, Vec::<String>::new());
    assert_eq!(names(&server, &viewer).await, ["data"]);
    for target in ["/v1/volumes/data", "/v1/volumes/data?workspace=own"] {
        let theirs = server.get(target).token(&other).send().await;
        theirs.assert_problem(404, "not_found");
        let removed = server.delete(target).token(&other).send().await;
        removed.assert_problem(404, "not_found");
    }
    let removed = server.delete("/v1/volumes/data").token(&viewer).send().await;
    removed.assert_problem(403, "forbidden");
    assert_eq!(names(&server, &own).await, ["data"]);
}

#[tokio::test]
async fn a_name_that_could_be_a_path_is_no_volume_s() {
    let server = Server::start().await;
    let member = server.token("member", "member", Some("own"), None).await;
    for name in ["..", "a/b", "", "A", "../../state"] {
        let refused = make(&server, &member, &json!({"name": name})).await;
        refused.assert_problem(400, "invalid_request");
    }
    let target = "/v1/volumes/..%2Fother%2Fdata";
    let found = server.delete(target).token(&member).send().await;
    assert!(matches!(found.status, 400 | 404), "{found:?}");
}
