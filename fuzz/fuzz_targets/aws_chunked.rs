//! Bodies in chunks within the body: whatever comes, in whatever pieces, what comes out is the same, is
//! not longer than was said, and is complete only when its end was proven.
#![no_main]

use std::time::UNIX_EPOCH;

use fuzz::choices::Choices;
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use sigv4::{Body, Chunked, ChunkedError, Credentials, Framer, Inbound, Request, Trailers};
use wire::text::Secret;

/// What `x-amz-content-sha256` says, whether a checksum follows, and the signature of that request.
const KINDS: [(&str, bool, &str); 3] = [
    (
        "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        true,
        "f70f7954b0df4a0c44e76b19c73222c930f0737eea27cfe60f95b5c23a1b26e5",
    ),
    (
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        false,
        "802674c9e8a7ac7164fda507d3322329bdec065d16de661b2ec2d4bca0bdb6e7",
    ),
    (
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
        true,
        "620b719cd243062d4026b46680e95f56c3e7dc6f13bd5264c8f38a30e0e8a42e",
    ),
];

/// The only body that was signed in chunks.
const HELLO: &[u8] = b"hello world";

fn decoder(kind: usize) -> Chunked {
    let (payload, has_trailer, signature) = KINDS[kind];
    let mut names = "host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length".to_owned();
    let mut headers = HeaderMap::new();
    let mut set = |name: &'static str, value: &str| {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).expect("ASCII"));
    };
    set("x-amz-content-sha256", payload);
    set("x-amz-date", "20261121T120000Z");
    set("x-amz-decoded-content-length", "11");
    if has_trailer {
        set("x-amz-trailer", "x-amz-checksum-crc32");
        names.push_str(";x-amz-trailer");
    }
    set(
        "authorization",
        &format!(
            "AWS4-HMAC-SHA256 Credential=AKIAPLACEHOLDER23456/20261121/eu-central-1/s3/aws4_request, SignedHeaders={names}, Signature={signature}"
        ),
    );
    let keys = b"AKIAPLACEHOLDER23456:placeholder/placeholder+placeholder/0123".to_vec();
    let keys = Credentials::parse(&Secret::new(keys).expect("no NUL")).expect("keys");
    let host = "bucket.s3.eu-central-1.amazonaws.com";
    let request = Request { method: "PUT", host, path: "/key", query: "", headers: &headers };
    let inbound = Inbound::parse(request).expect("it is well formed").expect("it is signed");
    match inbound.verify(&keys, None, UNIX_EPOCH) {
        Ok(Body::Chunked(chunked)) => *chunked,
        other => panic!("{other:?}"),
    }
}

fn decode<'a>(
    kind: usize,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> (Vec<u8>, Result<Trailers, ChunkedError>) {
    let (mut decoder, mut out) = (decoder(kind), Vec::new());
    for piece in pieces {
        if let Err(error) = decoder.push(piece, &mut out) {
            return (out, Err(error));
        }
    }
    let end = decoder.finish(&mut out);
    (out, end)
}

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices::new(input);
    let kind = choices.of(KINDS.len());
    let mut cuts = Choices::new(choices.take(4));
    let body = choices.rest();

    let at_once = decode(kind, std::iter::once(body));
    let mut rest = body;
    let pieces = std::iter::from_fn(|| {
        let here = usize::from(cuts.byte() % 64).min(rest.len());
        let here = if cuts.is_empty() { rest.len().min(1) } else { here };
        let (piece, after) = rest.split_at(here);
        rest = after;
        (!(piece.is_empty() && rest.is_empty())).then_some(piece)
    });
    assert_eq!(decode(kind, pieces), at_once);

    let (out, end) = at_once;
    let Ok(trailers) = end else {
        assert!(out.len() < HELLO.len(), "a body that is refused is never complete");
        return;
    };
    assert_eq!(out.len(), HELLO.len());
    if kind > 0 {
        assert_eq!(out, HELLO, "nobody signed this");
    }
    if KINDS[kind].1 {
        let (mut framer, mut framed) = (Framer::new(), Vec::new());
        framer.push(&out, &mut framed);
        framer.finish(&trailers, &mut framed);
        assert_eq!(decode(0, std::iter::once(&framed[..])), (out, Ok(trailers)));
    }
});
