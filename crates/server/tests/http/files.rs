//! Files of sandboxes on this host's kernel, in and out over HTTP.

use std::io::Read as _;

use access::signature::{BodyDigest, Parts, SigningKey, sign};
use api::Timestamp;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::server::{LONG, Server};

const OCTETS: &str = "application/octet-stream";
const TAR: &str = "application/x-tar";

/// A server, and the path of a sandbox of its; none where that does not work here.
async fn start() -> Option<(Server, String)> {
    let server = Server::on_this_host().await?;
    let id = server.sandbox_on("process", "default").await;
    Some((server, format!("/v1/sandboxes/{id}")))
}

/// Ends the sandbox: it would outlive its server.
async fn end(server: Server, path: &str) {
    let gone = server.delete(path).admin().send().await;
    assert_eq!(gone.status, 200, "{gone:?}");
    server.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_file_is_read_by_its_range() {
    let Some((server, path)) = start().await else { return };
    let file = format!("{path}/files?path=/workspace/digits");
    let digits = "0123456789".repeat(30_000);
    let written = server.put(&file).admin().bytes(OCTETS, digits.clone()).send().await;
    assert_eq!((written.status, written.json()["bytes"].as_u64()), (200, Some(300_000)));
    let whole = server.get(&file).admin().send().await;
    assert_eq!((whole.status, whole.header("accept-ranges")), (200, "bytes"));
    assert!(whole.body == digits, "{} bytes came", whole.body.len());
    for (range, part, content_range) in [
        ("bytes=10-14", "01234", "bytes 10-14/300000"),
        ("bytes=299998-", "89", "bytes 299998-299999/300000"),
        ("bytes=-3", "789", "bytes 299997-299999/300000"),
        ("bytes=299999-400000", "9", "bytes 299999-299999/300000"),
    ] {
        let read = server.get(&file).admin().header("range", range).send().await;
        assert_eq!(read.status, 206, "{range}: {read:?}");
        assert_eq!(
            (&read.body[..], read.header("content-range")),
            (part.as_bytes(), content_range)
        );
    }
    let beyond = server.get(&file).admin().header("range", "bytes=300000-").send().await;
    beyond.assert_problem(416, "range_not_satisfiable");
    let missing = server.get(&format!("{path}/files?path=/workspace/none")).admin();
    missing.header("range", "bytes=0-1").send().await.assert_problem(404, "file_not_found");
    end(server, &path).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_goes_in_and_comes_out_as_a_tar() {
    let Some((server, path)) = start().await else { return };
    let mut tar = tar::Builder::new(Vec::new());
    // More than any buffer on the way.
    let large: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).collect();
    for (name, content) in [("src/main", &b"fn main"[..]), ("large", &large)] {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content).unwrap();
    }
    let tar = tar.into_inner().unwrap();
    let target = format!("{path}/files/tar?path=/workspace/tree");
    let unpacked = server.put(&target).admin().bytes(TAR, tar).send().await;
    assert_eq!(unpacked.status, 200, "{unpacked:?}");
    assert!(unpacked.json()["entries"].as_u64() >= Some(2), "{unpacked:?}");

    let packed = server.get(&target).admin().send().await;
    assert_eq!((packed.status, packed.header("content-type")), (200, TAR));
    let mut found = std::collections::BTreeMap::new();
    for entry in tar::Archive::new(&packed.body[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let name = entry.path().unwrap().to_string_lossy().trim_matches(['.', '/']).to_owned();
        found.insert(name, content);
    }
    assert_eq!(found.get("src/main").map(Vec::as_slice), Some(&b"fn main"[..]));
    assert!(found.get("large") == Some(&large), "{:?}", found.keys());

    let broken = server.put(&target).admin().bytes(TAR, "no tar".repeat(200)).send().await;
    assert!((400..500).contains(&broken.status), "{broken:?}");
    end(server, &path).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_files_is_told_as_it_happens() {
    let Some((server, path)) = start().await else { return };
    let watch = format!("{path}/files/watch?path=/workspace&recursive=true");
    let response = server.get(&watch).admin().header("accept", "text/event-stream").begin().await;
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    let mut seen = String::new();
    let mut wait_for = async |what: &str| {
        let next = async {
            while !seen.contains(what) {
                let frame = body.frame().await.expect("it does not end").unwrap();
                seen.push_str(&String::from_utf8_lossy(&frame.into_data().unwrap_or_default()));
            }
        };
        let waited = tokio::time::timeout(LONG, next).await;
        assert!(waited.is_ok(), "no {what} in {seen}");
    };
    wait_for("ready").await;
    let file = format!("{path}/files?path=/workspace/made");
    let written = server.put(&file).admin().bytes(OCTETS, "x").send().await;
    assert_eq!(written.status, 200, "{written:?}");
    wait_for("\"created\"").await;
    wait_for("made").await;
    assert_eq!(server.delete(&file).admin().send().await.status, 204);
    wait_for("\"removed\"").await;
    drop(body);
    end(server, &path).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_was_changed_on_the_way_is_refused_and_on_record() {
    let Some((server, path)) = start().await else { return };
    let signer = SigningKey::from_bytes(&[7; 32]);
    let hex: String =
        signer.verifying_key().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let body = json!({"name": "laptop", "public_key": hex});
    let key = server.post("/v1/keys").admin().json(&body).send().await.json();
    let key = key["id"].as_str().unwrap();
    let route = format!("{path}/files");
    let query = "path=/workspace/signed";
    let send = async |signed: &str, sent: &str| {
        let parts =
            Parts { method: "PUT", path: &route, query: Some(query), idempotency_key: None };
        let digest = BodyDigest::of(signed.as_bytes());
        let headers = sign(&parts, digest, &signer, key, Timestamp::now(), 60).unwrap();
        let call = server.put(&format!("{route}?{query}")).admin();
        call.bytes(OCTETS, Bytes::copy_from_slice(sent.as_bytes()))
            .header("content-digest", &headers.content_digest)
            .header("signature-input", &headers.signature_input)
            .header("signature", &headers.signature)
            .send()
            .await
    };
    assert_eq!(send("content", "content").await.status, 200);
    send("content", "c0ntent").await.assert_problem(401, "bad_signature");
    // What was there is still there.
    let there = server.get(&format!("{route}?{query}")).admin().send().await;
    assert_eq!(there.body, "content");
    let audit = server.get("/v1/audit").admin().send().await.json();
    let denied: Vec<&Value> = { audit["items"].as_array().unwrap().iter() }
        .filter(|record| record["operation"] == "signature")
        .collect();
    assert_eq!(denied.len(), 1, "{audit}");
    assert_eq!(denied[0]["decision"], "denied");
    assert_eq!(denied[0]["details"]["target"], format!("PUT {route}"));
    end(server, &path).await;
}
