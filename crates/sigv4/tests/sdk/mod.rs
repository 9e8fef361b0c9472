//! A client that signs, written from AWS's documentation and apart from what is tested.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest as _, Sha256};
use sigv4::{Credentials, Request};
use wire::text::Secret;

pub(crate) const ID: &str = "AKIAPLACEHOLDER23456";
pub(crate) const SECRET: &str = "placeholder/placeholder+placeholder/0123";
pub(crate) const STAMP: &str = "20261121T120000Z";

/// The keys that the client has.
pub(crate) fn placeholder() -> Credentials {
    keys(&format!("{ID}:{SECRET}"))
}

pub(crate) fn keys(text: &str) -> Credentials {
    Credentials::parse(&Secret::new(text.as_bytes().to_vec()).unwrap()).unwrap()
}

/// The time that [`STAMP`] is.
pub(crate) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_795_262_400)
}

pub(crate) fn headers(list: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
    };
    list.iter().map(pair).collect()
}

/// What the client puts into `authorization`, over all headers that are there and the host.
pub(crate) fn authorization(scope: &str, request: &Request<'_>, payload: &str) -> (String, String) {
    let mut lines: Vec<(String, String)> = vec![("host".into(), request.host.into())];
    for name in request.headers.keys() {
        let values: Vec<&str> =
            request.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
        lines.push((name.to_string(), values.join(",")));
    }
    lines.sort();
    let names: Vec<&str> = lines.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(";");
    let block: String =
        lines.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let canonical = format!(
        "{}\n{}\n{}\n{block}\n{names}\n{payload}",
        request.method, request.path, request.query
    );
    let text = format!(
        "AWS4-HMAC-SHA256\n{STAMP}\n{scope}/aws4_request\n{}",
        hex(&Sha256::digest(canonical.as_bytes()))
    );
    let signature = hex(&mac(&key(scope), text.as_bytes()));
    let header = format!(
        "AWS4-HMAC-SHA256 Credential={ID}/{scope}/aws4_request, SignedHeaders={names}, Signature={signature}"
    );
    (header, signature)
}

/// A body in signed chunks. `trailer` is what follows the last.
pub(crate) fn signed_chunks(
    scope: &str,
    seed: &str,
    chunks: &[&[u8]],
    trailer: Option<(&str, &str)>,
) -> Vec<u8> {
    let key = key(scope);
    let mut last = seed.to_owned();
    let mut body = Vec::new();
    for chunk in chunks.iter().copied().chain([&b""[..]]) {
        let text = format!(
            "AWS4-HMAC-SHA256-PAYLOAD\n{STAMP}\n{scope}/aws4_request\n{last}\n{}\n{}",
            hex(&Sha256::digest(b"")),
            hex(&Sha256::digest(chunk))
        );
        last = hex(&mac(&key, text.as_bytes()));
        body.extend_from_slice(format!("{:x};chunk-signature={last}\r\n", chunk.len()).as_bytes());
        body.extend_from_slice(chunk);
        if !chunk.is_empty() {
            body.extend_from_slice(b"\r\n");
        }
    }
    if let Some((name, value)) = trailer {
        let text = format!(
            "AWS4-HMAC-SHA256-TRAILER\n{STAMP}\n{scope}/aws4_request\n{last}\n{}",
            hex(&Sha256::digest(format!("{name}:{value}\n")))
        );
        let signature = hex(&mac(&key, text.as_bytes()));
        body.extend_from_slice(
            format!("{name}:{value}\r\nx-amz-trailer-signature:{signature}\r\n").as_bytes(),
        );
    }
    body.extend_from_slice(b"\r\n");
    body
}

fn key(scope: &str) -> Vec<u8> {
    let first = format!("AWS4{SECRET}").into_bytes();
    scope.split('/').chain(["aws4_request"]).fold(first, |key, part| mac(&key, part.as_bytes()))
}

fn mac(key: &[u8], data: &[u8]) -> Vec<u8> {
    Hmac::<Sha256>::new_from_slice(key).unwrap().chain_update(data).finalize().into_bytes().to_vec()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}
