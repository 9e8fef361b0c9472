//! Webhooks, from the event to the receiver.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::server::{LONG, Server};

/// A receiver that takes what comes, or not.
#[derive(Default)]
struct Receiver {
    got: Mutex<VecDeque<(http::HeaderMap, Vec<u8>)>>,
    statuses: Mutex<VecDeque<u16>>,
    more: Notify,
}

impl Receiver {
    async fn listen(statuses: &[u16]) -> (Arc<Self>, String) {
        let receiver = Arc::new(Self::default());
        receiver.statuses.lock().unwrap().extend(statuses);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let listening = Arc::clone(&receiver);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let receiver = Arc::clone(&listening);
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let receiver = Arc::clone(&receiver);
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await?.to_bytes().to_vec();
                        receiver.got.lock().unwrap().push_back((head.headers, body));
                        receiver.more.notify_one();
                        let status = receiver.statuses.lock().unwrap().pop_front().unwrap_or(204);
                        let response = http::Response::builder().status(status);
                        Ok::<_, hyper::Error>(
                            response.body(Full::<bytes::Bytes>::default()).unwrap(),
                        )
                    }
                });
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(serving);
            }
        });
        (receiver, url)
    }

    async fn next(&self) -> (http::HeaderMap, Vec<u8>) {
        loop {
            if let Some(got) = self.got.lock().unwrap().pop_front() {
                return got;
            }
            tokio::time::timeout(LONG, self.more.notified()).await.expect("a delivery");
        }
    }
}

async fn subscribe(server: &Server, url: &str, kinds: &[&str]) -> Value {
    let body = json!({"url": url, "kinds": kinds});
    let made = server.post("/v1/webhooks").admin().json(&body).send().await;
    assert_eq!(made.status, 201, "{made:?}");
    made.json()
}

async fn private() -> Server {
    Server::with(|config| config.webhooks.private = true).await
}

#[tokio::test]
async fn a_receiver_gets_signed_events() {
    let server = private().await;
    let (receiver, url) = Receiver::listen(&[]).await;
    let webhook = subscribe(&server, &url, &["sandbox.created"]).await;
    let id = server.sandbox("default").await;
    let (headers, body) = receiver.next().await;
    let event: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&event["kind"], &event["sandbox"]), (&json!("sandbox.created"), &json!(id)));
    let secret = webhook["secret"].as_str().unwrap();
    let secret = api::Secret::new(secret.as_bytes().to_vec()).unwrap();
    let signature = headers[webhook::signature::HEADER].to_str().unwrap();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert_eq!(webhook::signature::verify(&secret, signature, &body, now), Ok(()));
    // The secret is not shown again.
    let shown = server.get("/v1/webhooks").admin().send().await;
    assert!(!String::from_utf8_lossy(&shown.body).contains(webhook["secret"].as_str().unwrap()));
}

#[tokio::test]
async fn a_delivery_that_failed_is_listed_and_can_be_redelivered() {
    let server = private().await;
    let (receiver, url) = Receiver::listen(&[500]).await;
    let webhook = subscribe(&server, &url, &["sandbox.created"]).await;
    server.sandbox("default").await;
    let (first, _) = receiver.next().await;
    let path = format!("/v1/webhooks/{}/deliveries", webhook["id"].as_str().unwrap());
    let delivery = loop {
        let listed = server.get(&path).admin().send().await.json();
        let delivery = listed["items"][0].clone();
        if delivery["attempts"] == 1 {
            break delivery;
        }
    };
    assert_eq!((&delivery["state"], &delivery["last_status"]), (&json!("pending"), &json!(500)));
    let id = delivery["id"].as_str().unwrap();
    let again = server.post(&format!("{path}/{id}/redeliver")).admin().send().await;
    assert_eq!(again.status, 202, "{again:?}");
    let (second, _) = receiver.next().await;
    assert_eq!(first["sandforge-delivery"], second["sandforge-delivery"]);
    let delivered = async {
        while server.get(&format!("{path}?state=delivered")).admin().send().await.json()["items"]
            == json!([])
        {}
    };
    tokio::time::timeout(LONG, delivered).await.unwrap();
}

#[tokio::test]
async fn a_private_receiver_is_refused_when_it_is_subscribed() {
    let server = Server::start().await;
    let subscribe = async |url: &str| {
        server.post("/v1/webhooks").admin().json(&json!({"url": url})).send().await
    };
    for url in ["https://127.0.0.1/", "https://10.0.0.1/x", "http://example.org/"] {
        subscribe(url).await.assert_problem(403, "policy_denied");
    }
    // Some are not even taken for a URL.
    for url in [
        "https://[::1]/",
        "https://0x7f.1/",
        "https://[::ffff:169.254.169.254]/",
        "https://user:pass@example.org/",
    ] {
        let (status, _) = subscribe(url).await.problem();
        assert!(matches!(status, 400 | 403), "{url}: {status}");
    }
}

#[tokio::test]
async fn a_name_that_leads_inside_is_not_delivered_to() {
    let server = Server::start().await;
    let webhook = subscribe(&server, "https://localhost:1/", &["sandbox.created"]).await;
    server.sandbox("default").await;
    let path = format!("/v1/webhooks/{}/deliveries", webhook["id"].as_str().unwrap());
    let reason = async {
        loop {
            let listed = server.get(&path).admin().send().await.json();
            if let Some(reason) = listed["items"][0]["last_error"].as_str() {
                return reason.to_owned();
            }
        }
    };
    let reason = tokio::time::timeout(LONG, reason).await.unwrap();
    assert!(reason.contains("internet only"), "{reason}");
}
