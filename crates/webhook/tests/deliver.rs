//! Notices on their way to real servers on this host.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use webhook::{Courier, Due, Failure, Limits, Outbox, Outcome, signature};
use wire::text::Secret;

fn secret() -> Secret {
    Secret::new(b"whsec".to_vec()).unwrap()
}

fn private() -> Courier {
    Courier::new(Limits { private: true, patience: Duration::from_secs(5), ..Limits::default() })
}

/// A server that gives each connection the next answer and passes on what it was sent.
async fn server(answers: &[&str]) -> (String, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let (sender, receiver) = mpsc::unbounded_channel();
    let answers: Vec<String> = answers.iter().map(ToString::to_string).collect();
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"}") {
                let mut chunk = [0; 4096];
                let length = stream.read(&mut chunk).await.unwrap();
                assert_ne!(length, 0, "the request ended early");
                request.extend(&chunk[..length]);
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            sender.send(String::from_utf8(request).unwrap()).unwrap();
        }
    });
    (url, receiver)
}

const OK: &str = "HTTP/1.1 204 No Content\r\n\r\n";

#[tokio::test]
async fn a_receiver_can_verify_what_it_gets() {
    let (url, mut requests) = server(&[OK]).await;
    let sent = private().deliver(&url, &secret(), "d-1", b"{\"id\":1}".to_vec()).await;
    assert_eq!(sent.unwrap(), 204);
    let request = requests.recv().await.unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let header = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.clone().find(|(n, _)| n.eq_ignore_ascii_case(name)).unwrap().1.to_owned()
    };
    assert_eq!(header("sandforge-delivery"), "d-1");
    let signed = header(signature::HEADER);
    let time = signed[2..].split(',').next().unwrap().parse().unwrap();
    assert_eq!(signature::verify(&secret(), &signed, body.as_bytes(), time), Ok(()));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (elsewhere, mut requests) = server(&[OK]).await;
    let moved = format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: {elsewhere}\r\n\r\n");
    let (url, _first) = server(&[&moved]).await;
    let error = private().deliver(&url, &secret(), "d", b"{}".to_vec()).await.unwrap_err();
    assert_eq!(error.status(), Some(307));
    assert!(requests.try_recv().is_err());
}

#[tokio::test]
async fn addresses_inside_are_refused_however_they_are_written() {
    let courier = Courier::new(Limits::default());
    for host in [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "017700000001",
        "[::1]",
        "10.0.0.8",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::a9fe:a9fe]",
        "169.254.169.254",
        "[fd00:ec2::254]",
        "0.0.0.0",
    ] {
        let url = format!("https://{host}/");
        let error = courier.deliver(&url, &secret(), "d", b"{}".to_vec()).await.unwrap_err();
        assert!(matches!(error, Failure::Forbidden(_)), "{host}: {error}");
    }
}

#[tokio::test]
async fn a_metadata_service_is_refused_even_where_private_receivers_are_allowed() {
    for host in ["169.254.169.254", "[::ffff:169.254.169.254]", "100.100.100.200"] {
        let error = private().check(&format!("https://{host}/")).unwrap_err();
        assert!(matches!(error, Failure::Forbidden(_)), "{host}: {error}");
    }
}

#[test]
fn a_url_that_cannot_be_kept_to_is_refused_at_once() {
    let courier = Courier::new(Limits::default());
    for url in
        ["http://example.com/", "ftp://example.com/", "https://user:pw@example.com/", "example"]
    {
        assert!(courier.check(url).is_err(), "{url}");
    }
    assert!(courier.check("https://example.com/hook?x=1").is_ok());
}

#[tokio::test]
async fn what_failed_says_why_without_the_query() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook?token=hidden", listener.local_addr().unwrap());
    drop(listener);
    let error = private().deliver(&url, &secret(), "d", b"{}".to_vec()).await.unwrap_err();
    assert!(
        error.to_string().contains("refused") && !error.to_string().contains("hidden"),
        "{error}"
    );
}

#[tokio::test]
async fn a_receiver_that_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let limits =
        Limits { private: true, patience: Duration::from_millis(100), ..Limits::default() };
    let error =
        Courier::new(limits).deliver(&url, &secret(), "d", b"{}".to_vec()).await.unwrap_err();
    assert!(matches!(error, Failure::Unanswered(_)), "{error}");
}

/// Gives out what it was filled with, and keeps what became of it.
struct Filled {
    due: Mutex<VecDeque<Due>>,
    settled: Mutex<Vec<(String, Outcome)>>,
}

#[async_trait]
impl Outbox for Filled {
    async fn due(&self, most: usize) -> Option<Vec<Due>> {
        let mut due = self.due.lock().unwrap();
        let count = most.min(due.len());
        match count {
            0 => None,
            count => Some(due.drain(..count).collect()),
        }
    }

    async fn settle(&self, delivery: &str, outcome: Outcome) {
        self.settled.lock().unwrap().push((delivery.into(), outcome));
    }
}

fn due(delivery: &str, url: &str, attempts: u32) -> Due {
    Due {
        delivery: delivery.into(),
        url: url.into(),
        secret: secret(),
        body: b"{}".to_vec(),
        attempts,
    }
}

#[tokio::test]
async fn every_notice_is_settled_once() {
    let (good, _requests) = server(&[OK; 40]).await;
    let (bad, _refused) =
        server(&["HTTP/1.1 500 No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"; 2]).await;
    let mut notices: VecDeque<_> = (0..40).map(|n| due(&format!("good-{n}"), &good, 0)).collect();
    notices.push_back(due("again", &bad, 0));
    notices.push_back(due("dead", &bad, webhook::schedule::ATTEMPTS - 1));
    let outbox = Arc::new(Filled { due: Mutex::new(notices), settled: Mutex::default() });
    webhook::run(outbox.clone(), private()).await;
    let mut settled = std::mem::take(&mut *outbox.settled.lock().unwrap());
    settled.sort_by(|(a, _), (b, _)| a.cmp(b));
    assert_eq!(settled.len(), 42);
    assert!(
        matches!(&settled[0], (name, Outcome::Later { status: Some(500), .. }) if name == "again")
    );
    assert!(
        matches!(&settled[1], (name, Outcome::Dead { status: Some(500), .. }) if name == "dead")
    );
    assert!(settled[2..].iter().all(|(_, outcome)| *outcome == Outcome::Delivered { status: 204 }));
}
