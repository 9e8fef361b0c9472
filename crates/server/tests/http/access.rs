//! The authorisation matrix, over HTTP: each route, as each role, in its own workspace and in
//! another's.

use access::matrix::{Cell, Whose, cell};
use access::signature::SigningKey;
use api::{Access, Body, Method, ROUTES, Reach, Role, Route};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::server::{Call, Server};

const SNAPSHOT: &str = "/v1/snapshots/{snapshot}";

/// The least that a route takes.
fn query(route: &Route) -> &'static str {
    match route.id {
        "read_file" | "write_file" | "remove_file" | "stat_file" | "list_files" | "watch_files"
        | "pack_files" | "unpack_files" => "?path=/tmp/x",
        "detach_mount" => "?guest_path=/data",
        _ if route.path.starts_with(SNAPSHOT) => "?workspace=own",
        _ => "",
    }
}

fn body(route: &Route, number: u8) -> Value {
    match route.id {
        "exec" => json!({"command": ["true"]}),
        "attach_mount" => {
            json!({"host_path": "/nowhere", "guest_path": "/data", "mode": "live"})
        }
        "signal_process" => json!({"signal": 15}),
        "resize_process" => json!({"rows": 1, "cols": 1}),
        "make_directory" => json!({"path": "/tmp/x"}),
        "move_file" => json!({"from": "/tmp/x", "to": "/tmp/y"}),
        "create_token" => {
            json!({"name": format!("x{number}"), "role": "viewer", "workspace": "own"})
        }
        "create_key" => json!({
            "name": "x",
            "public_key": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        }),
        "create_volume" => json!({"name": format!("v{number}"), "workspace": "own"}),
        "set_secret" => json!({"value": "a-value-of-a-test", "workspace": "own"}),
        "set_sandbox_secret" => json!({"value": "a-value-of-a-test"}),
        "check_policy" => json!({"request": {"exec": {"command": ["true"]}}}),
        "create_webhook" => json!({"url": "https://example.org/", "workspace": "own"}),
        "create_sandbox" => json!({"engine": "mock", "workspace": "own"}),
        _ => json!({}),
    }
}

/// The id of something of `own` that the route is about.
async fn thing(server: &Server, route: &Route, number: u8) -> String {
    let (path, body) = match route.id {
        "revoke_token" => {
            let name = format!("y{number}");
            ("/v1/tokens", json!({"name": name, "role": "viewer", "workspace": "own"}))
        }
        "revoke_key" => {
            let key = SigningKey::from_bytes(&[number; 32]).verifying_key();
            let hex: String = key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            ("/v1/keys", json!({"name": "x", "workspace": "own", "public_key": hex}))
        }
        _ if route.path.starts_with(SNAPSHOT) => {
            let sandbox = server.sandbox("own").await;
            let path = format!("/v1/sandboxes/{sandbox}/snapshot");
            let made = server.post(&path).unix().json(&json!({})).send().await;
            assert_eq!(made.status, 201, "{made:?}");
            return made.json()["id"].as_str().unwrap().to_owned();
        }
        _ if route.path.starts_with("/v1/webhooks/{id}") => {
            ("/v1/webhooks", json!({"url": "https://example.org/", "workspace": "own"}))
        }
        _ => return "nothing".into(),
    };
    let made = server.post(path).unix().json(&body).send().await;
    assert_eq!(made.status, 201, "{made:?}");
    made.json()["id"].as_str().unwrap().to_owned()
}

fn request<'a>(
    server: &'a Server,
    route: &Route,
    sandbox: &str,
    (thing, number): (&str, u8),
) -> Call<'a> {
    let path = route
        .path
        .replace("{sandbox}", sandbox)
        .replace("{process}", "nobody")
        .replace("{id}", thing)
        .replace("{snapshot}", thing)
        .replace("{service}", "github")
        .replace("{volume}", "data")
        .replace("{delivery}", "nothing");
    let target = format!("{path}{}", query(route));
    let call = match route.method {
        Method::Get => server.get(&target),
        Method::Post => server.post(&target),
        Method::Put => server.put(&target),
        Method::Patch => server.patch(&target),
        Method::Delete => server.delete(&target),
    };
    match route.request {
        Body::Json(_) | Body::OptionalJson(_) => call.json(&body(route, number)),
        Body::Octets => call.bytes("application/octet-stream", ""),
        Body::Tar => call.bytes("application/x-tar", ""),
        _ => call,
    }
}

/// The code of a problem.
async fn code(response: http::Response<hyper::body::Incoming>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let problem: Value = serde_json::from_slice(&body).unwrap();
    problem["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn each_role_may_what_the_matrix_says() {
    let server = Server::start().await;
    let theirs = server.sandbox("other").await;
    let (mut wrong, mut number) = (Vec::new(), 0_u8);
    for role in Role::ALL {
        let named = |kind: &str| format!("{kind} {role}");
        let bound = server.token(&named("bound"), role.as_str(), Some("own"), None).await;
        let unbound = server.token(&named("unbound"), role.as_str(), None, None).await;
        for route in ROUTES {
            let Access::Needs(operation) = route.access else { continue };
            for whose in Whose::ALL {
                let about_sandbox = route.path.contains("{sandbox}");
                if whose == Whose::Other
                    && !(about_sandbox && operation.reach() == Reach::Workspace)
                {
                    continue;
                }
                let token = if whose == Whose::Any { &unbound } else { &bound };
                // What one route does to a sandbox is not to meet the next one.
                let sandbox = match (about_sandbox, whose) {
                    (false, _) => String::new(),
                    (true, Whose::Other) => theirs.clone(),
                    (true, Whose::Own | Whose::Any) => server.sandbox("own").await,
                };
                number = number.wrapping_add(1);
                let thing = thing(&server, route, number).await;
                let call = request(&server, route, &sandbox, (&thing, number)).token(token);
                let response = call.begin().await;
                let status = response.status().as_u16();
                let fits = match cell(operation, role, whose) {
                    Cell::Forbidden => status == 403,
                    Cell::NotFound => status == 404,
                    // What is named in some does not exist, and that is another 404; and policy
                    // has a word of its own.
                    Cell::Allowed => match status {
                        403 => code(response).await == "policy_denied",
                        status => status != 401,
                    },
                };
                if !fits {
                    wrong.push(format!("{route:?} as {role}, {whose:?}: {status}"));
                }
                if about_sandbox && whose != Whose::Other {
                    server
                        .delete(&format!("/v1/sandboxes/{sandbox}?wait=false"))
                        .unix()
                        .send()
                        .await;
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_token_for_one_operation_does_only_that() {
    let server = Server::start().await;
    let token = server.token("one", "owner", None, Some(&["sandbox_list"])).await;
    assert_eq!(server.get("/v1/sandboxes").token(&token).send().await.status, 200);
    let create = server.post("/v1/sandboxes").token(&token).json(&json!({})).send().await;
    create.assert_problem(403, "forbidden");
    assert!(create.json()["detail"].as_str().unwrap().contains("sandbox_create"), "{create:?}");
}

#[tokio::test]
async fn nobody_makes_a_token_that_could_do_more() {
    let server = Server::start().await;
    let owner = server.token("owner", "owner", Some("own"), None).await;
    for body in [
        json!({"name": "x", "role": "viewer", "workspace": "other"}),
        json!({"name": "x", "role": "owner", "workspace": "other"}),
    ] {
        let call = server.post("/v1/tokens").token(&owner).json(&body);
        let (status, _) = call.send().await.problem();
        assert!(matches!(status, 403 | 404), "{body}: {status}");
    }
    let body = json!({"name": "x", "role": "member", "workspace": "own"});
    assert_eq!(server.post("/v1/tokens").token(&owner).json(&body).send().await.status, 201);
}
