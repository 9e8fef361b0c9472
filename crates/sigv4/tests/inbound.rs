//! Signatures that come in: which are read, which are refused, and what is taken off.

#[expect(dead_code, reason = "the chunks are another test's")]
mod sdk;

use canonical::Host;
use http::HeaderMap;
use sdk::{headers, keys, now, placeholder};
use sigv4::{Body, EMPTY, Error, Inbound, Request, ScopeError, strip};

const SCOPE: &str = "20261121/eu-central-1/bedrock";
const HOST: &str = "bedrock-runtime.eu-central-1.amazonaws.com";

fn request(headers: &HeaderMap) -> Request<'_> {
    Request { method: "POST", host: HOST, path: "/model", query: "", headers }
}

/// A request with these headers, signed by the client.
fn signed(list: &[(&str, &str)]) -> HeaderMap {
    let mut headers = headers(list);
    headers.insert("x-amz-date", sdk::STAMP.parse().unwrap());
    let payload = sdk::hex(&EMPTY);
    let (value, _) = sdk::authorization(SCOPE, &request(&headers), &payload);
    headers.insert("authorization", value.parse().unwrap());
    headers
}

fn verify(headers: &HeaderMap) -> Result<(), Error> {
    let inbound = Inbound::parse(request(headers))?.expect("it is signed");
    inbound.verify(&placeholder(), Some(&EMPTY), now()).map(drop)
}

/// What is said of this `authorization`.
fn of_authorization(value: &str) -> Result<bool, Error> {
    let headers = headers(&[("authorization", value), ("x-amz-date", sdk::STAMP)]);
    Inbound::parse(request(&headers)).map(|inbound| inbound.is_some())
}

fn good() -> String {
    format!(
        "AWS4-HMAC-SHA256 Credential=AKID/{SCOPE}/aws4_request, SignedHeaders=host;x-amz-date, Signature={}",
        "0".repeat(64)
    )
}

#[test]
fn a_request_of_the_client_verifies_with_its_keys_alone() {
    let headers = signed(&[("content-type", "application/json"), ("x-amz-meta", " a   b ")]);
    let headers_of_client = signed(&[("content-type", "application/json")]);
    assert_eq!(verify(&headers_of_client), Ok(()));
    // The client of this test does not fold spaces.
    assert_eq!(verify(&headers), Err(Error::Signature));

    let inbound = Inbound::parse(request(&headers_of_client)).unwrap().unwrap();
    assert_eq!(inbound.id(), sdk::ID);
    assert_eq!((inbound.scope().region(), inbound.scope().service()), ("eu-central-1", "bedrock"));
    let other_secret = keys(&format!("{}:other", sdk::ID));
    let verify = |keys| inbound.verify(&keys, Some(&EMPTY), now()).unwrap_err();
    assert_eq!(verify(other_secret), Error::Signature);
    let other_id = keys(&format!("AKIAOTHER:{}", sdk::SECRET));
    assert_eq!(verify(other_id), Error::Foreign);
    let with_token = keys(&format!("{}:{}:token", sdk::ID, sdk::SECRET));
    assert_eq!(verify(with_token), Error::Foreign);
}

#[test]
fn another_token_is_another_credential() {
    let headers = signed(&[("x-amz-security-token", "somebody else's")]);
    assert_eq!(verify(&headers), Err(Error::Foreign));
}

#[test]
fn nothing_of_a_request_can_be_changed() {
    let headers = signed(&[("x-amz-target", "one"), ("content-type", "application/json")]);
    assert_eq!(verify(&headers), Ok(()));
    for (name, value) in [("x-amz-target", "two"), ("content-type", "text/plain")] {
        let mut changed = headers.clone();
        changed.insert(name, value.parse().unwrap());
        assert_eq!(verify(&changed), Err(Error::Signature), "{name}");
    }
    let mut more = headers.clone();
    more.append("x-amz-target", "two".parse().unwrap());
    assert_eq!(verify(&more), Err(Error::Signature));
    let mut less = headers.clone();
    less.remove("content-type");
    assert!(matches!(verify(&less), Err(Error::Form(_))));
    for changed in [
        Request { method: "PUT", ..request(&headers) },
        Request { host: "bedrock-runtime.us-east-1.amazonaws.com", ..request(&headers) },
        Request { path: "/models", ..request(&headers) },
        Request { query: "a", ..request(&headers) },
    ] {
        let inbound = Inbound::parse(changed).unwrap().unwrap();
        let error = inbound.verify(&placeholder(), Some(&EMPTY), now()).unwrap_err();
        assert_eq!(error, Error::Signature, "{changed:?}");
    }
}

#[test]
fn what_aws_obeys_has_to_be_signed() {
    let mut headers = signed(&[]);
    headers.insert("x-amz-acl", "public-read".parse().unwrap());
    assert_eq!(verify(&headers), Err(Error::NotSigned("x-amz-acl".parse().unwrap())));
    assert_eq!(
        of_authorization(&good().replace("host;", "")),
        Err(Error::NotSigned("host".parse().unwrap()))
    );
}

#[test]
fn the_host_is_one() {
    let mut headers = signed(&[]);
    headers.insert("host", "other.amazonaws.com".parse().unwrap());
    assert_eq!(verify(&headers), Err(Error::Form(sigv4::FormError::Host)));
    headers.insert("host", HOST.parse().unwrap());
    assert_eq!(verify(&headers), Ok(()));
    headers.append("host", HOST.parse().unwrap());
    assert_eq!(verify(&headers), Err(Error::Form(sigv4::FormError::Host)));
}

#[test]
fn requests_that_have_no_signature_are_none() {
    for value in ["Bearer abc", "Basic YTpi", "", "token x"] {
        assert_eq!(of_authorization(value), Ok(false), "{value}");
    }
    assert!(Inbound::parse(request(&HeaderMap::new())).unwrap().is_none());
}

#[test]
fn other_ways_of_signing_are_named() {
    for (value, algorithm) in [
        ("AWS4-ECDSA-P256-SHA256 Credential=AKID/x", "AWS4-ECDSA-P256-SHA256"),
        ("AWS AKID:c2ln", "AWS"),
        ("AWS3-HTTPS AWSAccessKeyId=AKID", "AWS3-HTTPS"),
        ("aws4-hmac-sha256 Credential=x", "aws4-hmac-sha256"),
        ("AWS4-HMAC-SHA256\tCredential=x", "AWS4-HMAC-SHA256\tCredential=x"),
    ] {
        assert_eq!(of_authorization(value), Err(Error::Algorithm(algorithm.into())), "{value}");
    }
    for query in ["AWSAccessKeyId=AKID&Signature=x&Expires=1", "AWSAccess%4BeyId=AKID"] {
        let headers = HeaderMap::new();
        let error = Inbound::parse(Request { query, ..request(&headers) }).unwrap_err();
        assert_eq!(error, Error::Algorithm("AWSAccessKeyId".into()), "{query}");
    }
    let headers = HeaderMap::new();
    let query = "X-Amz-Algorithm=AWS4-ECDSA-P256-SHA256&X-Amz-Region-Set=%2A";
    let error = Inbound::parse(Request { query, ..request(&headers) }).unwrap_err();
    assert_eq!(error, Error::Algorithm("AWS4-ECDSA-P256-SHA256".into()));
}

#[test]
fn other_ways_of_signing_a_body_are_named() {
    for value in [
        "STREAMING-AWS4-HMAC-SHA256-EVENTS",
        "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD",
        "unsigned-payload",
        "",
        &"E3".repeat(32),
    ] {
        let headers = signed(&[("x-amz-content-sha256", value)]);
        let error = Inbound::parse(request(&headers)).unwrap_err();
        assert_eq!(error, Error::Payload(value.into()), "{value}");
    }
}

#[test]
fn authorization_has_one_form() {
    assert_eq!(of_authorization(&good()), Ok(true));
    assert_eq!(of_authorization(&good().replace(", ", ",")), Ok(true));
    let part = "a part of authorization";
    for (from, to, error) in [
        ("SignedHeaders=host;x-amz-date, ", "", Error::Missing("SignedHeaders in authorization")),
        ("Signature=", "Signature=0, Signature=", Error::Twice(part)),
        ("Credential=", "Credential=x, Credential=", Error::Twice(part)),
        ("Signature=", "signature=", Error::Malformed("authorization")),
        ("SHA256 C", "SHA256 X=1, C", Error::Malformed("authorization")),
        ("SHA256 C", "SHA256 ,C", Error::Malformed("authorization")),
        ("Signature=", "Signature=a", Error::Malformed("the signature itself")),
        ("Signature=0", "Signature=A", Error::Malformed("the signature itself")),
        ("AKID/", "AK-ID/", Error::Malformed("the signature's credential")),
        ("AKID/", "/", Error::Malformed("the signature's credential")),
        ("aws4_request", "aws4_request/x", Error::Malformed("the signature's credential")),
        ("aws4_request", "aws5_request", Error::Malformed("the signature's credential")),
        ("eu-central-1", "eu central 1", Error::Malformed("the signature's credential")),
        ("/bedrock", "/", Error::Malformed("the signature's credential")),
        ("20261121", "20261131", Error::Malformed("the signature's credential")),
        ("20261121", "20261122", Error::Day),
        ("host;", "host;host;", Error::Malformed("the list of signed headers")),
        ("host;", "z;host;", Error::Malformed("the list of signed headers")),
        ("host;", "Host;", Error::Malformed("the list of signed headers")),
        ("host;", ";host;", Error::Malformed("the list of signed headers")),
    ] {
        assert!(good().contains(from));
        assert_eq!(of_authorization(&good().replacen(from, to, 1)), Err(error), "{from} -> {to}");
    }
}

#[test]
fn what_is_there_twice_is_refused() {
    for name in ["authorization", "x-amz-date", "x-amz-security-token", "x-amz-content-sha256"] {
        let mut headers = headers(&[("authorization", &good()), ("x-amz-date", sdk::STAMP)]);
        for _ in 0..2 {
            headers.append(name, "x".parse().unwrap());
        }
        let error = Inbound::parse(request(&headers)).unwrap_err();
        assert_eq!(error, Error::Twice(name));
    }
    let headers = headers(&[("authorization", &good())]);
    for query in ["X-Amz-Signature=x", "a=b&X-Amz-Security-Token=x", "X-Amz-Dat%65=1"] {
        let error = Inbound::parse(Request { query, ..request(&headers) }).unwrap_err();
        assert_eq!(error, Error::Twice("a signature"), "{query}");
    }
    assert_eq!(Inbound::parse(request(&headers)).unwrap_err(), Error::Missing("x-amz-date"));
}

/// An address as a client signs it.
fn presigned(more: &str, names: &str) -> String {
    format!(
        "{more}X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={}%2F20261121%2Feu-central-1%2Fs3%2Faws4_request&X-Amz-Date={}&X-Amz-Expires=900&X-Amz-SignedHeaders={names}",
        sdk::ID,
        sdk::STAMP
    )
}

const BUCKET: &str = "bucket.s3.eu-central-1.amazonaws.com";

fn in_bucket<'a>(query: &'a str, headers: &'a HeaderMap) -> Request<'a> {
    Request { method: "GET", host: BUCKET, path: "/key", query, headers }
}

#[test]
fn a_signed_address_is_read_strictly() {
    let headers = HeaderMap::new();
    let parse = |query: &str| Inbound::parse(in_bucket(query, &headers)).map(|_| ());
    let good = format!("{}&X-Amz-Signature={}", presigned("", "host"), "0".repeat(64));
    assert_eq!(parse(&good), Ok(()));
    for (from, to, error) in [
        ("X-Amz-Date", "x-amz-date", Error::Malformed("X-Amz-Date")),
        ("&X-Amz-Expires=900", "", Error::Missing("X-Amz-Expires")),
        ("=900", "=0", Error::Malformed("X-Amz-Expires")),
        ("=900", "=604801", Error::Malformed("X-Amz-Expires")),
        ("=900", "=%2B900", Error::Malformed("X-Amz-Expires")),
        ("=900", "=900&X-Amz-Expires=901", Error::Twice("X-Amz-Expires")),
        ("=900", "=900&X-Amz-%45xpires=901", Error::Twice("X-Amz-Expires")),
        ("=host", "=", Error::Malformed("the list of signed headers")),
        ("=900", "=900&a=%", Error::Form(sigv4::FormError::Escape)),
    ] {
        assert_eq!(parse(&good.replacen(from, to, 1)), Err(error), "{from} -> {to}");
    }
}

#[test]
fn a_signed_address_becomes_a_request_without_a_signature() {
    let list = presigned("X-Amz-Content-Sha256=UNSIGNED-PAYLOAD&", "host");
    // In the order that they are signed in.
    let query = format!("{list}&x-amz-acl=public-read&x-id=GetObject");
    let headers = HeaderMap::new();
    let mut sorted: Vec<&str> = query.split('&').collect();
    sorted.sort_unstable();
    let canonical = sorted.join("&");
    let (_, signature) = sdk::authorization(
        "20261121/eu-central-1/s3",
        &in_bucket(&canonical, &headers),
        "UNSIGNED-PAYLOAD",
    );
    let query = format!("{query}&X-Amz-Signature={signature}");
    let inbound = Inbound::parse(in_bucket(&query, &headers)).unwrap().unwrap();
    assert!(matches!(inbound.verify(&placeholder(), None, now()), Ok(Body::Unsigned)));

    let mut headers = sdk::headers(&[("accept", "*/*")]);
    assert_eq!(strip(&mut headers, &query), Ok("x-id=GetObject".into()));
    assert_eq!(headers, sdk::headers(&[("accept", "*/*"), ("x-amz-acl", "public-read")]));
    // Another of the same name would be another meaning.
    assert_eq!(strip(&mut headers, &query), Err(Error::Hoisted("x-amz-acl".into())));
}

#[test]
fn a_signature_comes_off_the_headers_and_nothing_else_does() {
    let mut headers = signed(&[
        ("x-amz-target", "one"),
        ("x-amz-security-token", "t"),
        ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
    ]);
    assert_eq!(strip(&mut headers, "x-amz-key=1&b"), Ok("x-amz-key=1&b".into()));
    assert_eq!(headers, sdk::headers(&[("x-amz-target", "one")]));
}

#[test]
fn a_scope_has_to_fit_the_host_and_what_is_allowed() {
    let headers = signed(&[]);
    let inbound = Inbound::parse(request(&headers)).unwrap().unwrap();
    let check = |host: &str, services: &[&str], regions: &[&str]| {
        let list = |list: &[&str]| list.iter().map(|&text| text.into()).collect::<Vec<String>>();
        inbound.scope().check(&Host::parse(host).unwrap(), &list(services), &list(regions))
    };
    assert_eq!(check(HOST, &[], &[]), Ok(()));
    assert_eq!(check(HOST, &["s3", "bedrock"], &["eu-central-1"]), Ok(()));
    assert_eq!(check(HOST, &["s3"], &[]), Err(ScopeError::ServiceNotAllowed("bedrock".into())));
    assert_eq!(
        check(HOST, &[], &["us-east-1"]),
        Err(ScopeError::RegionNotAllowed("eu-central-1".into()))
    );
    for host in [
        "sts.eu-central-1.amazonaws.com",
        "bucket.s3.eu-central-1.amazonaws.com",
        "iam.amazonaws.com",
        "bedrock.s3.amazonaws.com",
    ] {
        assert!(matches!(check(host, &[], &[]), Err(ScopeError::Service { .. })), "{host}");
    }
    let elsewhere = "bedrock-runtime.us-east-1.amazonaws.com";
    assert!(matches!(check(elsewhere, &[], &[]), Err(ScopeError::Region { .. })));

    for host in ["models.example.com", "192.0.2.1"] {
        let unknown = Err(ScopeError::UnknownHost { host: host.into() });
        assert_eq!(check(host, &[], &["eu-central-1"]), unknown);
        assert_eq!(check(host, &["bedrock"], &[]), unknown);
        assert_eq!(check(host, &["bedrock"], &["eu-central-1"]), Ok(()));
    }
}

#[test]
fn no_secret_is_in_a_debug_text_or_a_message() {
    let headers = signed(&[("x-amz-security-token", "hunter2"), ("x-amz-meta", "hunter2")]);
    let query = "token=hunter2";
    let request = Request { query, ..request(&headers) };
    let inbound = Inbound::parse(request).unwrap().unwrap();
    let error = inbound.verify(&keys("AKIAX:hunter2:hunter2"), None, now()).unwrap_err();
    let shown = format!("{request:?} {inbound:?} {error:?} {error}");
    assert!(!shown.contains("hunter2"), "{shown}");
}
