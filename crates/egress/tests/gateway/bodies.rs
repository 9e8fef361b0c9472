//! Requests that are meant to be read in one way by the rules and in another by the server: queries,
//! GraphQL, JSON, gRPC, git, buckets and tools. None of what is refused reaches the server.

use std::io::Write as _;

use rules::{Layer, Mode, Rules};

use crate::support::World;

/// A request, and whether it goes through.
type Case = (&'static str, String, bool);

/// Sends each of these to `plain.example` under these rules alone.
async fn judged(allow: &[&str], deny: &[&str], cases: &[Case]) {
    let world = World::new().await;
    let layer = Layer::from_lines("test", allow, deny).unwrap();
    world.gateway.set_rules(Rules::new(Mode::Allow, vec![layer], Vec::new()).unwrap());
    for (what, request, passes) in cases {
        let before = world.plain.seen();
        let answer = world.raw("plain.example", request).await;
        let seen = world.plain.seen();
        match passes {
            true => assert!(answer.starts_with("HTTP/1.1 200"), "{what}: {answer}"),
            false => {
                let is_refused = ["HTTP/1.1 400", "HTTP/1.1 403", "HTTP/1.1 405"]
                    .iter()
                    .any(|status| answer.starts_with(status))
                    || answer.contains("grpc-status: 7");
                assert!(is_refused, "{what}: {answer}");
                assert_eq!(seen, before, "{what}");
            }
        }
    }
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: plain.example\r\nConnection: close\r\n\r\n")
}

fn sent(method: &str, target: &str, fields: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {target} HTTP/1.1\r\nHost: plain.example\r\nConnection: close\r\n{fields}Content-Length: {length}\r\n\r\n{body}"
    )
}

fn json(target: &str, body: &str) -> String {
    sent("POST", target, "Content-Type: application/json\r\n", body)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guarded_key_has_its_value_however_often_and_however_it_is_written() {
    judged(
        &["GET plain.example/search?kind=public"],
        &[],
        &[
            ("P08 as it is", get("/search?kind=public"), true),
            ("P08 with others", get("/search?q=a+b%20c&kind=public"), true),
            ("P08 encoded", get("/search?k%69nd=publ%69c"), true),
            ("P08 without it", get("/search"), false),
            ("P08 the good one first", get("/search?kind=public&kind=secret"), false),
            ("P08 the good one last", get("/search?kind=secret&kind=public"), false),
            ("P08 encoded the second time", get("/search?kind=public&%6bind=secret"), false),
            ("P08 in capitals", get("/search?KIND=public"), false),
            ("P08 a list", get("/search?kind[]=public"), false),
            ("P08 a semicolon", get("/search?kind=public;kind=secret"), false),
            ("P08 a plus", get("/search?kind=public+"), false),
            ("P08 a NUL", get("/search?kind=public%00"), false),
            ("P08 a line", get("/search?kind=public%0d%0ax"), false),
            ("P08 a bad escape", get("/search?kind=public%zz"), false),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_is_denied_is_denied_in_every_case_and_place() {
    judged(
        &["GET plain.example/search"],
        &["GET plain.example/search?kind=secret"],
        &[
            ("P08 another", get("/search?kind=public"), true),
            ("P08 the same", get("/search?kind=secret"), false),
            ("P08 in capitals", get("/search?KIND=SECRET"), false),
            ("P08 the second", get("/search?kind=public&kind=secret"), false),
            ("P08 encoded", get("/search?%6bind=%73ecret"), false),
            ("P09 a method in it changes nothing here", get("/search?_method=DELETE"), true),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_of_graphql_is_judged() {
    let query = |text: &str| json("/graphql", &serde_json::json!({ "query": text }).to_string());
    let batch = serde_json::json!([{ "query": "{ viewer { login } }" }, { "query": "mutation { deleteRepository { id } }" }]);
    let named = serde_json::json!({
        "query": "query A { viewer { login } } mutation B { deleteRepository { id } }", "operationName": "A"
    });
    let stored = serde_json::json!({ "extensions": { "persistedQuery": { "version": 1, "sha256Hash": "ab" } } });
    let both = serde_json::json!({
        "query": "{ viewer { login } }", "extensions": { "persistedQuery": { "version": 1, "sha256Hash": "ab" } }
    });
    let socket = "GET /graphql HTTP/1.1\r\nHost: plain.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let multipart = "--x\r\nContent-Disposition: form-data; name=\"operations\"\r\n\r\n{\"query\":\"{ viewer { login } }\"}\r\n--x--\r\n";
    judged(
        &["graphql plain.example query", "graphql plain.example mutation addComment"],
        &[],
        &[
            ("P12 a query", query("query { viewer { login } }"), true),
            (
                "P12 in the address",
                get("/graphql?query=%7B%20viewer%20%7B%20login%20%7D%20%7D"),
                true,
            ),
            ("P12 a mutation that is allowed", query("mutation { addComment { id } }"), true),
            ("P12 another mutation", query("mutation { deleteRepository { id } }"), false),
            (
                "P12 under another name",
                query("mutation { addComment: deleteRepository { id } }"),
                false,
            ),
            (
                "P12 beside an allowed one",
                query("mutation { addComment { id } deleteRepository { id } }"),
                false,
            ),
            (
                "P12 in a fragment",
                query("mutation { ...F } fragment F on Mutation { deleteRepository { id } }"),
                false,
            ),
            (
                "P12 in an inline fragment",
                query("mutation { ... on Mutation { deleteRepository { id } } }"),
                false,
            ),
            ("P12 behind a comment", query("# query\nmutation { deleteRepository { id } }"), false),
            (
                "P12 behind a byte order mark",
                query("\u{feff}mutation { deleteRepository { id } }"),
                false,
            ),
            ("P12 a subscription", query("subscription { events { id } }"), false),
            ("P12 in a batch", json("/graphql", &batch.to_string()), false),
            ("P12 beside the one that is named", json("/graphql", &named.to_string()), false),
            ("P12 stored at the server", json("/graphql", &stored.to_string()), false),
            ("P12 stored, and written out", json("/graphql", &both.to_string()), false),
            (
                "P12 in the address of a GET",
                get("/graphql?query=mutation%7BdeleteRepository%7Bid%7D%7D"),
                false,
            ),
            (
                "P12 in both",
                json(
                    "/graphql?query=mutation%7BdeleteRepository%7Bid%7D%7D",
                    r#"{"query":"{viewer{login}}"}"#,
                ),
                false,
            ),
            (
                "P12 of the other type",
                sent(
                    "POST",
                    "/graphql",
                    "Content-Type: application/graphql\r\n",
                    "mutation { deleteRepository { id } }",
                ),
                false,
            ),
            (
                "P12 as an upload",
                sent(
                    "POST",
                    "/graphql",
                    "Content-Type: multipart/form-data; boundary=x\r\n",
                    multipart,
                ),
                false,
            ),
            ("P12 over a WebSocket", socket.to_owned(), false),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_could_be_read_in_two_ways_goes_nowhere() {
    let good = r#"{"query":"{ viewer { login } }"}"#;
    let zipped = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(good.as_bytes()).unwrap();
        // As text: it is refused before anybody looks at it.
        String::from_utf8_lossy(&encoder.finish().unwrap()).into_owned()
    };
    let typed = |kind: &str| sent("POST", "/graphql", &format!("Content-Type: {kind}\r\n"), good);
    let coded = |coding: &str| {
        let fields = format!("Content-Type: application/json\r\nContent-Encoding: {coding}\r\n");
        sent("POST", "/graphql", &fields, &zipped)
    };
    let deep =
        format!(r#"{{"query":"{{a}}","variables":{}1{}}}"#, "[".repeat(5000), "]".repeat(5000));
    let long = format!(r#"{{"query":"{{ a }}","variables":{{"x":"{}"}}}}"#, "y".repeat(2 << 20));
    let wide: String = good.chars().flat_map(|letter| ['\0', letter]).collect();
    judged(
        &["graphql plain.example query"],
        &[],
        &[
            ("P13 as it is", json("/graphql", good), true),
            ("P13 with its charset", typed("application/json; charset=utf-8"), true),
            (
                "P13 a key twice",
                json("/graphql", r#"{"query":"{a}","query":"mutation{b}"}"#),
                false,
            ),
            (
                "P13 a key twice, escaped",
                json("/graphql", r#"{"query":"{a}","qu\u0065ry":"mutation{b}"}"#),
                false,
            ),
            (
                "P13 a key in another case",
                json("/graphql", r#"{"query":"{a}","Query":"mutation{b}"}"#),
                false,
            ),
            ("P13 more after it", json("/graphql", &format!("{good}{good}")), false),
            ("P13 a byte order mark", json("/graphql", &format!("\u{feff}{good}")), false),
            ("P13 in UTF-16", json("/graphql", &wide), false),
            ("P13 another charset", typed("application/json; charset=utf-16"), false),
            ("P13 as text", typed("text/plain"), false),
            ("P13 as a form", typed("application/x-www-form-urlencoded"), false),
            ("P13 without a type", sent("POST", "/graphql", "", good), false),
            (
                "P13 two types",
                sent(
                    "POST",
                    "/graphql",
                    "Content-Type: application/json\r\nContent-Type: text/plain\r\n",
                    good,
                ),
                false,
            ),
            ("P13 gzip", coded("gzip"), false),
            ("P13 br", coded("br"), false),
            ("P13 identity, which it is not", coded("identity"), false),
            ("P13 too deep", json("/graphql", &deep), false),
            ("P13 too long", json("/graphql", &long), false),
            ("P13 not all of it", json("/graphql", r#"{"query":"{a}""#), false),
            ("P13 a comment", json("/graphql", "{\"query\":\"{a}\"/*x*/}"), false),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_of_grpc_is_its_path() {
    let call = |target: &str, kind: &str| {
        sent("POST", target, &format!("Content-Type: {kind}\r\nTE: trailers\r\n"), "\0\0\0\0\0")
    };
    judged(
        &["grpc plain.example package.Service/Get*"],
        &[],
        &[
            ("P14 as it is", call("/package.Service/GetThing", "application/grpc"), true),
            (
                "P14 with its format",
                call("/package.Service/GetThing", "application/grpc+proto"),
                true,
            ),
            ("P14 another method", call("/package.Service/DeleteThing", "application/grpc"), false),
            ("P14 another service", call("/other.Service/GetThing", "application/grpc"), false),
            ("P14 in capitals", call("/package.service/GetThing", "application/grpc"), false),
            (
                "P14 one path further",
                call("/package.Service/GetThing/DeleteThing", "application/grpc"),
                false,
            ),
            ("P14 up", call("/package.Service/GetX/../DeleteThing", "application/grpc"), false),
            ("P14 encoded", call("/package.Service%2FGetThing", "application/grpc"), false),
            (
                "P14 of the web, another method",
                call("/package.Service/DeleteThing", "application/grpc-web+proto"),
                false,
            ),
            ("P14 not gRPC", call("/package.Service/GetThing", "application/json"), false),
            (
                "P14 by another method",
                sent("PUT", "/package.Service/GetThing", "Content-Type: application/grpc\r\n", "x"),
                false,
            ),
        ],
    )
    .await;
}

/// Commands of a push, each for one ref, and no pack.
fn push(refs: &[&str]) -> String {
    let (old, new) = ("0".repeat(40), "1".repeat(40));
    let mut text = String::new();
    for (at, name) in refs.iter().enumerate() {
        let more = if at == 0 { "\0 report-status" } else { "" };
        let line = format!("{old} {new} {name}{more}\n");
        text.push_str(&format!("{:04x}{line}", line.len() + 4));
    }
    format!("{text}0000")
}

#[tokio::test(flavor = "multi_thread")]
async fn git_fetches_and_pushes_what_a_rule_names() {
    let receive = |body: &str| {
        sent(
            "POST",
            "/acme/web.git/git-receive-pack",
            "Content-Type: application/x-git-receive-pack-request\r\n",
            body,
        )
    };
    let upload = |target: &str| {
        sent("POST", target, "Content-Type: application/x-git-upload-pack-request\r\n", "0000")
    };
    let lfs = |operation: &str| {
        let body = format!(r#"{{"operation":"{operation}","objects":[]}}"#);
        let fields = "Content-Type: application/vnd.git-lfs+json\r\n";
        sent("POST", "/acme/lib.git/info/lfs/objects/batch", fields, &body)
    };
    judged(
        &["git fetch plain.example/acme/*", "git push plain.example/acme/web refs/heads/agent/**"],
        &[],
        &[
            ("P15 refs to fetch", get("/acme/lib.git/info/refs?service=git-upload-pack"), true),
            ("P15 a fetch", upload("/acme/lib.git/git-upload-pack"), true),
            ("P15 a batch of LFS", lfs("download"), true),
            ("P15 a push", receive(&push(&["refs/heads/agent/x"])), true),
            (
                "P15 refs to push elsewhere",
                get("/acme/lib.git/info/refs?service=git-receive-pack"),
                false,
            ),
            (
                "P15 two services",
                get("/acme/lib.git/info/refs?service=git-upload-pack&service=git-receive-pack"),
                false,
            ),
            (
                "P15 a service and more",
                get("/acme/lib.git/info/refs?service=git-upload-pack&x=1"),
                false,
            ),
            ("P15 no service", get("/acme/lib.git/info/refs"), false),
            ("P15 objects", get("/acme/lib.git/objects/info/packs"), false),
            ("P15 HEAD of the other protocol", get("/acme/lib.git/HEAD"), false),
            (
                "P15 a push elsewhere",
                sent("POST", "/acme/lib.git/git-receive-pack", "", &push(&["refs/heads/agent/x"])),
                false,
            ),
            ("P15 another branch", receive(&push(&["refs/heads/main"])), false),
            (
                "P15 another branch as the second",
                receive(&push(&["refs/heads/agent/x", "refs/heads/main"])),
                false,
            ),
            ("P15 up from the branch", receive(&push(&["refs/heads/agent/../main"])), false),
            ("P15 no commands", receive("PACK"), false),
            ("P15 another repository", upload("/evil/lib.git/git-upload-pack"), false),
            (
                "P15 up from the repository",
                upload("/acme/lib.git/../../evil/lib/git-upload-pack"),
                false,
            ),
            ("P15 encoded", upload("/acme%2flib.git/git-upload-pack"), false),
            ("P15 LFS upwards", lfs("upload"), false),
            (
                "P15 LFS both",
                sent(
                    "POST",
                    "/acme/lib.git/info/lfs/objects/batch",
                    "Content-Type: application/vnd.git-lfs+json\r\n",
                    r#"{"operation":"download","operation":"upload","objects":[]}"#,
                ),
                false,
            ),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_is_written_where_a_rule_says() {
    judged(
        &["READ plain.example/bucket/**", "PUT plain.example/bucket/agent/**"],
        &["ANY plain.example/bucket/private/**"],
        &[
            ("P16 a read", get("/bucket/x/y"), true),
            ("P16 a write", sent("PUT", "/bucket/agent/x", "", "body"), true),
            ("P16 a write elsewhere", sent("PUT", "/bucket/x", "", "body"), false),
            (
                "P16 the form of a browser",
                sent(
                    "POST",
                    "/bucket",
                    "Content-Type: multipart/form-data; boundary=x\r\n",
                    "--x--\r\n",
                ),
                false,
            ),
            (
                "P16 the start of an upload in parts",
                sent("POST", "/bucket/agent/x?uploads", "", ""),
                false,
            ),
            ("P16 many deletions at once", sent("POST", "/bucket?delete", "", "<Delete/>"), false),
            ("P16 who may read", sent("PUT", "/bucket?acl", "", ""), false),
            ("P16 what is denied", get("/bucket/private/x"), false),
            ("P16 what is denied, in capitals", get("/bucket/PRIVATE/x"), false),
            ("P16 what is denied, encoded", get("/bucket/%70rivate/x"), false),
            ("P16 what is denied, with its slash encoded", get("/bucket/private%2fx"), false),
            ("P16 up from what is allowed", sent("PUT", "/bucket/agent/../x", "", "body"), false),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_is_called_by_its_name() {
    let message = |text: &str| json("/mcp", text);
    let call = |name: &str| {
        format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{name}","arguments":{{}}}}}}"#
        )
    };
    let batch = format!("[{},{}]", call("search_code"), call("delete_all"));
    judged(
        &["mcp plain.example/mcp search_code get_*"],
        &["mcp plain.example/mcp get_secret"],
        &[
            ("P17 a tool", message(&call("search_code")), true),
            ("P17 one of a pattern", message(&call("get_file")), true),
            ("P17 the same, escaped", message(&call("search\\u005fcode")), true),
            ("P17 what is no call", message(r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#), true),
            ("P17 a notification", message(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#), true),
            ("P17 the stream of what the server says", get("/mcp"), true),
            ("P17 another tool", message(&call("delete_all")), false),
            ("P17 in a batch", message(&batch), false),
            ("P17 one that is denied", message(&call("get_secret")), false),
            ("P17 one that is denied, in capitals", message(&call("get_SECRET")), false),
            ("P17 one that is denied, escaped", message(&call("get_\\u0073ecret")), false),
            ("P17 with a space", message(&call("search_code ")), false),
            ("P17 with a NUL", message(&call("search_code\\u0000")), false),
            ("P17 a call without an answer", message(r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"delete_all"}}"#), false),
            ("P17 two names", message(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search_code","name":"delete_all"}}"#), false),
            ("P17 two methods", message(r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call","params":{"name":"delete_all"}}"#), false),
            ("P17 a method in another case", message(r#"{"jsonrpc":"2.0","id":1,"method":"Tools/Call","params":{"name":"delete_all"}}"#), false),
            ("P17 an answer and a call", message(r#"{"jsonrpc":"2.0","id":1,"result":{},"method":"tools/call","params":{"name":"delete_all"}}"#), false),
            ("P17 another path", json("/mcp/x", &call("search_code")), false),
        ],
    )
    .await;
}
