//! What is allowed goes through, whole and unchanged.

use egress::{Decision, Kind};

use crate::support::{PLACEHOLDER, SECRET, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_takes_the_place_of_its_placeholder_and_is_taken_out_of_the_answer() {
    let world = World::answering(|head, _| {
        let token = head
            .split("bearer ")
            .nth(1)
            .unwrap_or_default()
            .split("\r\n")
            .next()
            .unwrap_or_default();
        crate::support::ok(&format!("you sent {token}"))
    })
    .await;
    let answer = world
        .raw("api.example", format!("GET /v1/models?limit=2 HTTP/1.1\r\nHost: api.example\r\nAuthorization: Bearer {PLACEHOLDER}\r\n\r\n"))
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.ends_with(&format!("you sent {PLACEHOLDER}")), "{answer}");
    let seen = world.api.seen();
    assert!(seen.contains(&format!("authorization: Bearer {SECRET}")), "{seen}");
    assert!(seen.starts_with("GET /v1/models?limit=2 HTTP/1.1\r\n"), "{seen}");
    assert!(!seen.contains(PLACEHOLDER), "{seen}");
    let event = world.event(|event| event.kind == Kind::Request).await;
    assert_eq!(event.decision, Decision::Allowed);
    assert_eq!(event.credential.as_deref(), Some("api"));
    assert_eq!(event.path.as_deref(), Some("/v1/models"));
    assert_eq!(event.redacted, 1);
}
