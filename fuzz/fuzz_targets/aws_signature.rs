//! Signatures that come in: nobody can make one without the key, and what was taken off and signed again
//! verifies. A line of the method, path and query, then lines of headers.
#![no_main]

use std::time::UNIX_EPOCH;

use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use sigv4::{Credentials, EMPTY, Inbound, Payload, Request, Signer, strip};
use wire::text::Secret;

/// More than this are too many to be signed.
const HEADERS: usize = 64;

fn keys(text: &str) -> Credentials {
    let secret = Secret::new(text.as_bytes().to_vec()).expect("no NUL");
    Credentials::parse(&secret).expect("they are keys")
}

fuzz_target!(|input: &str| {
    let mut lines = input.split('\n');
    let mut words = lines.next().unwrap_or_default().split(' ');
    let mut word = || words.next().unwrap_or_default();
    let (method, path, query) = (word(), word(), word());
    let mut headers = HeaderMap::new();
    for line in lines.take(HEADERS) {
        let Some((name, value)) = line.split_once(':') else { continue };
        let name = HeaderName::from_bytes(name.as_bytes());
        let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) else { continue };
        headers.append(name, value);
    }
    let host = "bucket.s3.eu-central-1.amazonaws.com";
    let request = Request { method, host, path, query, headers: &headers };
    let parsed = Inbound::parse(request);
    let service = match &parsed {
        Ok(Some(inbound)) => {
            // The key that seeds name, with a secret that nobody knows.
            let guessed = keys("AKIDEXAMPLE:not-the-secret");
            assert!(inbound.verify(&guessed, Some(&EMPTY), UNIX_EPOCH).is_err());
            inbound.scope().service().to_owned()
        }
        Ok(None) => "s3".into(),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let mut stripped = headers.clone();
    let Ok(query) = strip(&mut stripped, query) else { return };
    let request = Request { method, host, path, query: &query, headers: &stripped };
    assert!(Inbound::parse(request).expect("nothing is left").is_none());

    let real = keys("AKIDREAL:secret:token");
    let signer = Signer { credentials: &real, region: "eu-central-1", service: &service };
    let Ok(set) = signer.sign(&request, Payload::Hash(EMPTY), UNIX_EPOCH) else { return };
    let mut sent = stripped.clone();
    for (name, value) in set {
        sent.insert(name, value);
    }
    let request = Request { headers: &sent, ..request };
    let inbound = Inbound::parse(request).expect("it is well formed").expect("it is signed");
    inbound.verify(&real, Some(&EMPTY), UNIX_EPOCH).expect("it was signed with this key");
});
