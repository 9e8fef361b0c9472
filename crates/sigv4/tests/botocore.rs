//! The same as botocore, AWS's own signer, where it is installed. To have it for this test alone, and to
//! hold all its endpoints against ours too:
//!
//! ```sh
//! python3 -m venv /tmp/botocore && /tmp/botocore/bin/pip install botocore
//! SANDFORGE_TEST_PYTHON=/tmp/botocore/bin/python cargo test -p sigv4 --test botocore
//! ```

#[expect(dead_code, reason = "here another client signs")]
mod sdk;

use std::process::Command;

use canonical::Host;
use http::{HeaderMap, HeaderName, HeaderValue};
use sdk::{keys, now};
use sha2::{Digest as _, Sha256};
use sigv4::{Body, Credentials, Inbound, Payload, Request, Scope, Signer, strip};

/// What botocore says, or nothing where it is not installed.
fn botocore(python: &str, arguments: &[&str]) -> Option<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sign_as_botocore.py");
    let output = match Command::new(python).arg(script).args(arguments).output() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("not run: the comparison with botocore, because {python}: {error}");
            return None;
        }
    };
    let error = String::from_utf8_lossy(&output.stderr);
    if let Some(at) = error.find("botocore is not installed") {
        eprintln!("not run: the comparison with botocore: {}", error[at..].trim_end());
        return None;
    }
    assert!(output.status.success(), "{error}");
    Some(String::from_utf8(output.stdout).unwrap())
}

struct Signed {
    kind: String,
    service: String,
    region: String,
    method: String,
    host: String,
    path: String,
    query: String,
    body: Vec<u8>,
    headers: HeaderMap,
}

impl Signed {
    fn read(fields: &[&str]) -> Self {
        let [kind, service, region, method, host, path, query, body, headers @ ..] = fields else {
            panic!("{fields:?}")
        };
        let pair = |pair: &[&str]| {
            (pair[0].parse::<HeaderName>().unwrap(), HeaderValue::from_str(pair[1]).unwrap())
        };
        let byte = |at| u8::from_str_radix(&body[at..at + 2], 16).unwrap();
        Self {
            kind: (*kind).into(),
            service: (*service).into(),
            region: (*region).into(),
            method: (*method).into(),
            host: (*host).into(),
            path: (*path).into(),
            query: (*query).into(),
            body: (0..body.len()).step_by(2).map(byte).collect(),
            headers: headers.chunks(2).map(pair).collect(),
        }
    }

    fn request(&self) -> Request<'_> {
        Request {
            method: &self.method,
            host: &self.host,
            path: &self.path,
            query: &self.query,
            headers: &self.headers,
        }
    }

    fn keys(&self) -> Credentials {
        let is_session = self.headers.contains_key("x-amz-security-token")
            || self.query.contains("X-Amz-Security-Token");
        let token = if is_session { ":session/token+==" } else { "" };
        keys(&format!("{}:{}{token}", sdk::ID, sdk::SECRET))
    }

    fn verify(&self) -> Body {
        let hash = Sha256::digest(&self.body).into();
        let inbound = Inbound::parse(self.request()).unwrap().expect("it is signed");
        assert_eq!(inbound.scope().service(), self.service);
        inbound
            .scope()
            .check(&Host::parse(&self.host).unwrap(), &[], &[])
            .unwrap_or_else(|error| panic!("{error}"));
        inbound
            .verify(&self.keys(), Some(&hash), now())
            .unwrap_or_else(|error| panic!("{} {}{}: {error}", self.kind, self.host, self.path))
    }

    /// Signs it again, which has to give the same.
    fn sign_again(&self, body: &Body) {
        let mut headers = self.headers.clone();
        let query = strip(&mut headers, &self.query).unwrap();
        let payload = match body {
            Body::Hash(hash) => Payload::Hash(*hash),
            Body::Unsigned => Payload::Unsigned,
            Body::Chunked(_) => panic!("botocore's signer makes no chunks"),
        };
        let keys = self.keys();
        let signer = Signer { credentials: &keys, region: &self.region, service: &self.service };
        let request = Request { query: &query, headers: &headers, ..self.request() };
        for (name, value) in signer.sign(&request, payload, now()).unwrap() {
            assert_eq!(self.headers.get(&name), Some(&value), "{}{}", self.host, self.path);
        }
    }
}

#[test]
fn botocore_signs_as_we_verify_and_sign() {
    let python = std::env::var("SANDFORGE_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let Some(text) = botocore(&python, &[]) else { return };
    let (mut verified, mut signed, mut uploaded) = (0, 0, 0);
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        if let ["version", version] = fields[..] {
            eprintln!("botocore {version}");
            continue;
        }
        let request = Signed::read(&fields);
        let body = request.verify();
        verified += 1;
        if let Body::Chunked(mut chunked) = body {
            let mut out = Vec::new();
            chunked.push(&request.body, &mut out).unwrap();
            let trailers = chunked.finish(&mut out).unwrap();
            assert_eq!((out.len(), trailers.len()), (100_000, 1));
            uploaded += 1;
            continue;
        }
        // Ours always has the hash; botocore's other than for S3 has it where it was put in.
        if request.kind == "header" && request.headers.contains_key("x-amz-content-sha256") {
            request.sign_again(&body);
            signed += 1;
        }
    }
    eprintln!("{verified} requests verified, {signed} signed alike");
    assert_eq!((verified, signed, uploaded), (74, 34, 2));
}

/// Takes half a minute, and is for whoever changes the table of names.
#[test]
fn botocores_endpoints_are_known() {
    let Ok(python) = std::env::var("SANDFORGE_TEST_PYTHON") else { return };
    let Some(text) = botocore(&python, &["endpoints"]) else { return };
    let (mut known, mut refused) = (0, Vec::new());
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let ["host", host, service, region] = fields[..] else { continue };
        let scope = Scope::new("20261121", region, service).unwrap();
        match scope.check(&Host::parse(host).unwrap(), &[], &[]) {
            Ok(()) => known += 1,
            Err(error) => refused.push(error.to_string()),
        }
    }
    eprintln!("{known} endpoints known; refused: {refused:#?}");
    // Those are signed for another region than they name, or are outside of AWS's domains.
    assert!(known > 7000 && refused.len() < 30);
}
