//! The examples of AWS's documentation, with the signatures printed there.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue};
use sigv4::{Body, Credentials, EMPTY, Error, Inbound, Request};
use wire::text::Secret;

fn keys(text: &str) -> Credentials {
    Credentials::parse(&Secret::new(text.as_bytes().to_vec()).unwrap()).unwrap()
}

/// The keys of the examples about S3.
fn s3() -> Credentials {
    keys("AKIAIOSFODNN7EXAMPLE:wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
}

/// 24 May 2013, midnight.
fn then() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_369_353_600)
}

fn headers(list: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
    };
    list.iter().map(pair).collect()
}

/// A request about S3, signed in its headers.
fn signed(list: &[(&str, &str)], names: &str, signature: &str) -> HeaderMap {
    let mut headers = headers(list);
    let value = format!(
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders={names},Signature={signature}"
    );
    headers.insert("authorization", value.parse().unwrap());
    headers.insert("x-amz-date", HeaderValue::from_static("20130524T000000Z"));
    headers
}

fn verify(request: Request<'_>) -> Result<Body, Error> {
    Inbound::parse(request)?.expect("it is signed").verify(&s3(), None, then())
}

fn is_hash(body: &Body, hash: [u8; 32]) -> bool {
    matches!(body, Body::Hash(is) if *is == hash)
}

const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const HOST: &str = "examplebucket.s3.amazonaws.com";

#[test]
fn iam_list_users() {
    let headers = headers(&[
        ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
        ("x-amz-date", "20150830T123600Z"),
        (
            "authorization",
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, SignedHeaders=content-type;host;x-amz-date, Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
        ),
    ]);
    let request = Request {
        method: "GET",
        host: "iam.amazonaws.com",
        path: "/",
        query: "Action=ListUsers&Version=2010-05-08",
        headers: &headers,
    };
    let inbound = Inbound::parse(request).unwrap().unwrap();
    assert!(inbound.needs_body());
    let keys = keys("AKIDEXAMPLE:wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");
    assert_eq!(inbound.verify(&keys, None, then()).unwrap_err(), Error::BodyNeeded);
    assert!(is_hash(&inbound.verify(&keys, Some(&EMPTY), then()).unwrap(), EMPTY));
}

#[test]
fn s3_get_object() {
    let headers = signed(
        &[("range", "bytes=0-9"), ("x-amz-content-sha256", NOTHING)],
        "host;range;x-amz-content-sha256;x-amz-date",
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    );
    let request =
        Request { method: "GET", host: HOST, path: "/test.txt", query: "", headers: &headers };
    assert!(is_hash(&verify(request).unwrap(), EMPTY));
    let body = [1; 32];
    let inbound = Inbound::parse(request).unwrap().unwrap();
    assert_eq!(inbound.verify(&s3(), Some(&body), then()).unwrap_err(), Error::Body);
}

#[test]
fn s3_put_object() {
    let headers = signed(
        &[
            ("date", "Fri, 24 May 2013 00:00:00 GMT"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            (
                "x-amz-content-sha256",
                "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
            ),
        ],
        "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    );
    for path in ["/test$file.text", "/test%24file.text", "/tes%74%24file.text"] {
        let request = Request { method: "PUT", host: HOST, path, query: "", headers: &headers };
        assert!(verify(request).is_ok(), "{path}");
    }
}

#[test]
fn s3_get_bucket_lifecycle() {
    let headers = signed(
        &[("x-amz-content-sha256", NOTHING)],
        "host;x-amz-content-sha256;x-amz-date",
        "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
    );
    for query in ["lifecycle", "lifecycle="] {
        let request = Request { method: "GET", host: HOST, path: "/", query, headers: &headers };
        assert!(verify(request).is_ok(), "{query}");
    }
}

#[test]
fn s3_list_objects() {
    let headers = signed(
        &[("x-amz-content-sha256", NOTHING)],
        "host;x-amz-content-sha256;x-amz-date",
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
    );
    let query = "max-keys=2&prefix=J";
    let request = Request { method: "GET", host: HOST, path: "/", query, headers: &headers };
    assert!(verify(request).is_ok());
}

#[test]
fn s3_presigned_get() {
    let query = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";
    let headers = HeaderMap::new();
    let request =
        Request { method: "GET", host: HOST, path: "/test.txt", query, headers: &headers };
    let inbound = Inbound::parse(request).unwrap().unwrap();
    assert!(inbound.is_presigned() && !inbound.needs_body());
    assert!(matches!(inbound.verify(&s3(), None, then()), Ok(Body::Unsigned)));
    let last = then() + Duration::from_secs(86400);
    assert!(inbound.verify(&s3(), None, last).is_ok());
    let late = last + Duration::from_secs(1);
    assert_eq!(inbound.verify(&s3(), None, late).unwrap_err(), Error::Expired);
}

/// The chunks of both examples: 64 KiB of `a`, then 1 KiB.
fn chunks(signatures: [&str; 3]) -> Vec<u8> {
    let mut body = Vec::new();
    for (size, signature) in [65536, 1024, 0].into_iter().zip(signatures) {
        body.extend_from_slice(format!("{size:x};chunk-signature={signature}\r\n").as_bytes());
        body.resize(body.len() + size, b'a');
        if size > 0 {
            body.extend_from_slice(b"\r\n");
        }
    }
    body
}

fn chunked(headers: &HeaderMap) -> sigv4::Chunked {
    let request = Request {
        method: "PUT",
        host: "s3.amazonaws.com",
        path: "/examplebucket/chunkObject.txt",
        query: "",
        headers,
    };
    match verify(request).unwrap() {
        Body::Chunked(chunked) => *chunked,
        other => panic!("{other:?}"),
    }
}

#[test]
fn s3_put_object_in_signed_chunks() {
    let headers = signed(
        &[
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
            ("content-encoding", "aws-chunked"),
            ("x-amz-decoded-content-length", "66560"),
            ("content-length", "66824"),
        ],
        "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class",
        "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
    );
    let mut body = chunks([
        "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
        "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
        "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
    ]);
    body.extend_from_slice(b"\r\n");
    assert_eq!(body.len(), 66824);
    let (mut decoder, mut out) = (chunked(&headers), Vec::new());
    decoder.push(&body, &mut out).unwrap();
    assert_eq!(decoder.finish(&mut out), Ok(vec![]));
    assert_eq!(out, vec![b'a'; 66560]);
}

#[test]
fn s3_put_object_in_signed_chunks_with_a_trailer() {
    let headers = signed(
        &[
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"),
            ("content-encoding", "aws-chunked"),
            ("x-amz-decoded-content-length", "66560"),
            ("x-amz-trailer", "x-amz-checksum-crc32c"),
        ],
        "content-encoding;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class;x-amz-trailer",
        "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e",
    );
    let mut body = chunks([
        "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
        "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
        "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
    ]);
    body.extend_from_slice(b"x-amz-checksum-crc32c:sOO8/Q==\r\nx-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n\r\n");
    let (mut decoder, mut out) = (chunked(&headers), Vec::new());
    decoder.push(&body, &mut out).unwrap();
    let trailers = decoder.finish(&mut out).unwrap();
    assert_eq!(trailers.len(), 1);
    assert_eq!(
        (trailers[0].0.as_str(), trailers[0].1.as_bytes()),
        ("x-amz-checksum-crc32c", &b"sOO8/Q=="[..])
    );
    assert_eq!(out.len(), 66560);
}
