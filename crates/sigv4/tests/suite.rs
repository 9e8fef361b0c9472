//! AWS's own vectors, read and verified as a proxy does.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest as _, Sha256};
use sigv4::{Credentials, Inbound, Request};
use wire::text::Secret;

const KEY: &str = "AKIDEXAMPLE:wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

struct Vector<'a> {
    name: &'a str,
    method: &'a str,
    target: &'a str,
    headers: HeaderMap,
    body: &'a str,
}

fn vectors() -> Vec<Vector<'static>> {
    let text = include_str!("suite.txt");
    text.split("\n=== ").skip(1).map(vector).collect()
}

fn vector(text: &str) -> Vector<'_> {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut lines = head.lines();
    let name = lines.next().unwrap();
    let (method, rest) = lines.next().unwrap().split_once(' ').unwrap();
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').unwrap();
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        );
    }
    let target = rest.strip_suffix(" HTTP/1.1").unwrap();
    Vector { name, method, target, headers, body: body.trim_end_matches('\n') }
}

fn at_the_time() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_440_938_160)
}

/// The keys that a vector is signed with: some have a token.
fn keys(vector: &Vector<'_>) -> Credentials {
    let in_query = vector.target.split(['?', '&']).find_map(|part| {
        Some(
            part.strip_prefix("X-Amz-Security-Token=")?
                .replace("%2F", "/")
                .replace("%2B", "+")
                .replace("%3D", "="),
        )
    });
    let token = vector.headers.get("x-amz-security-token").map(|token| token.to_str().unwrap());
    let token = token.map(String::from).or(in_query);
    let text = token.map_or_else(|| KEY.into(), |token| format!("{KEY}:{token}"));
    Credentials::parse(&Secret::new(text.into_bytes()).unwrap()).unwrap()
}

fn verify(vector: &Vector<'_>, body: &str) -> Result<(), sigv4::Error> {
    let (path, query) = vector.target.split_once('?').unwrap_or((vector.target, ""));
    let host = vector.headers["host"].to_str().unwrap();
    let request = Request { method: vector.method, host, path, query, headers: &vector.headers };
    let inbound = Inbound::parse(request)?.expect("it is signed");
    let hash = Sha256::digest(body.as_bytes()).into();
    inbound.verify(&keys(vector), Some(&hash), at_the_time()).map(drop)
}

#[test]
fn every_vector_verifies() {
    let vectors = vectors();
    assert_eq!(vectors.len(), 58);
    for vector in &vectors {
        assert_eq!(verify(vector, vector.body), Ok(()), "{}", vector.name);
    }
}

#[test]
fn none_verifies_with_another_body_method_or_path() {
    for mut vector in vectors() {
        assert!(verify(&vector, "another body").is_err(), "{}", vector.name);
        let target = format!("/other{}", vector.target);
        let method = std::mem::replace(&mut vector.method, "PATCH");
        assert_eq!(verify(&vector, vector.body), Err(sigv4::Error::Signature), "{}", vector.name);
        let vector = Vector { method, target: &target, ..vector };
        assert_eq!(verify(&vector, vector.body), Err(sigv4::Error::Signature), "{}", vector.name);
    }
}
