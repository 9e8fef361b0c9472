//! Signatures that go out: read and verified again as AWS would.

#[expect(dead_code, reason = "the chunks are another test's")]
mod sdk;

use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;
use sdk::{keys, now};
use sigv4::{Body, Credentials, EMPTY, Error, Inbound, Payload, Request, SignError, Signer};

const TOKEN: &str = "IQoJb3JpZ2luX2VjEXAMPLE//";

fn real() -> Credentials {
    keys(&format!("ASIAREAL:real+secret/access=key:{TOKEN}"))
}

/// Signs, and gives the headers as they are sent.
fn sign(request: &Request<'_>, service: &str, payload: Payload) -> HeaderMap {
    let credentials = real();
    let signer = Signer { credentials: &credentials, region: "eu-central-1", service };
    let mut headers = request.headers.clone();
    for (name, value) in signer.sign(request, payload, now()).unwrap() {
        headers.insert(name, value);
    }
    headers
}

fn verify(request: Request<'_>) -> Result<Body, Error> {
    let inbound = Inbound::parse(request)?.expect("it is signed");
    inbound.verify(&real(), Some(&EMPTY), now())
}

#[test]
fn what_was_signed_verifies() {
    let headers = sdk::headers(&[
        ("accept", "*/*"),
        ("content-type", "application/json"),
        ("x-amz-meta-a", "  two   words "),
        ("x-amz-meta-b", "1"),
        ("x-amz-meta-b", "2"),
        ("x-amz-decoded-content-length", "0"),
    ]);
    for service in ["bedrock", "s3"] {
        for (payload, text) in [
            (Payload::Hash(EMPTY), &*sdk::hex(&EMPTY)),
            (Payload::Unsigned, "UNSIGNED-PAYLOAD"),
            (Payload::StreamingUnsignedTrailer, "STREAMING-UNSIGNED-PAYLOAD-TRAILER"),
        ] {
            let request = Request {
                method: "POST",
                host: "example.amazonaws.com",
                path: "/a%20b/%C3%BC:x//y",
                query: "b=2&a=%2B&b=1&flag",
                headers: &headers,
            };
            let signed = sign(&request, service, payload);
            assert_eq!(signed["x-amz-content-sha256"], text);
            let request = Request { headers: &signed, ..request };
            match (payload, verify(request).unwrap()) {
                (Payload::Hash(hash), Body::Hash(is)) => assert_eq!(hash, is),
                (Payload::Unsigned, Body::Unsigned) => {}
                (Payload::StreamingUnsignedTrailer, Body::Chunked(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn the_real_keys_take_the_place_of_all_others() {
    let headers = sdk::headers(&[]);
    let request = Request {
        method: "GET",
        host: "example.amazonaws.com",
        path: "/",
        query: "",
        headers: &headers,
    };
    let signed = sign(&request, "bedrock", Payload::Hash(EMPTY));
    assert_eq!(signed["x-amz-date"], sdk::STAMP);
    assert_eq!(signed["x-amz-security-token"], TOKEN);
    let authorization = signed["authorization"].to_str().unwrap();
    let start = "AWS4-HMAC-SHA256 Credential=ASIAREAL/20261121/eu-central-1/bedrock/aws4_request, SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token, Signature=";
    assert!(authorization.starts_with(start), "{authorization}");
    assert!(
        signed["authorization"].is_sensitive() && signed["x-amz-security-token"].is_sensitive()
    );
    assert!(!format!("{signed:?}").contains(TOKEN));
}

#[test]
fn an_old_signature_is_not_sent_on() {
    let credentials = real();
    let signer = Signer { credentials: &credentials, region: "eu-central-1", service: "s3" };
    for name in ["authorization", "x-amz-date", "x-amz-security-token", "x-amz-content-sha256"] {
        let headers = sdk::headers(&[(name, "old")]);
        let request = Request { method: "GET", host: "h", path: "/", query: "", headers: &headers };
        let error = signer.sign(&request, Payload::Unsigned, now()).unwrap_err();
        assert_eq!(error, SignError::NotStripped(name.parse().unwrap()));
    }
}

#[test]
fn what_is_no_scope_or_no_request_is_not_signed() {
    let credentials = real();
    let headers = sdk::headers(&[]);
    let request = Request { method: "GET", host: "h", path: "/", query: "", headers: &headers };
    let signer = Signer { credentials: &credentials, region: "eu/central", service: "s3" };
    let error = signer.sign(&request, Payload::Unsigned, now()).unwrap_err();
    assert!(matches!(error, SignError::Scope { .. }));
    let signer = Signer { region: "eu-central-1", ..signer };
    for (path, query) in [("x", ""), ("/%", ""), ("/", "a=%g0")] {
        let request = Request { path, query, ..request };
        let error = signer.sign(&request, Payload::Unsigned, now()).unwrap_err();
        assert!(matches!(error, SignError::Form(_)), "{path} {query}");
    }
    let before = std::time::UNIX_EPOCH - std::time::Duration::from_secs(1);
    assert_eq!(signer.sign(&request, Payload::Unsigned, before).unwrap_err(), SignError::Clock);
}

proptest! {
    #[test]
    fn any_request_verifies_and_no_other_does(
        path in "/([a-zA-Z0-9._~!$&'()*+,;=:@/-]|%[0-9A-F]{2}){0,40}",
        query in "([a-z]{1,3}=([a-z+]|%[0-9a-fA-F]{2}){0,5}&?){0,4}",
        value in "[ -~]{1,20}",
        is_s3: bool,
        at in any::<prop::sample::Index>(),
    ) {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-meta-x", HeaderValue::from_str(&value).unwrap());
        let request = Request {
            method: "PUT",
            host: "example.amazonaws.com",
            path: &path,
            query: &query,
            headers: &headers,
        };
        let signed = sign(&request, if is_s3 { "s3" } else { "dynamodb" }, Payload::Unsigned);
        let request = Request { headers: &signed, ..request };
        prop_assert!(verify(request).is_ok());

        let longer = format!("{path}x");
        let changes = [
            Request { path: &longer, ..request },
            Request { query: &format!("{query}&zzzz"), ..request },
            Request { method: "POST", ..request },
            Request { host: "example.amazonaws.co", ..request },
        ];
        let changed = changes[at.index(changes.len())];
        prop_assert_eq!(verify(changed).unwrap_err(), Error::Signature);
    }
}
