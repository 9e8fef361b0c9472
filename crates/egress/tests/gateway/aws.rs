//! Requests that are signed: the guest signs with its placeholder, and the server verifies the real key.

use std::sync::Arc;
use std::time::SystemTime;

use canonical::Authority;
use egress::Credential;
use http::HeaderMap;
use rules::{Access, Layer, Mode, Rules};
use services::{Charset, Kind, Service, Shape, Slot};
use sha2::{Digest as _, Sha256};
use sigv4::{Body, Credentials, Inbound, Request};
use wire::text::Secret;

use crate::sdk;
use crate::support::{AWS, World, ok, service};

const REAL: &str =
    "AKIAREALREALREAL2345:real/real+real/real+real/real+real/0123:session+token/0123456789";
const BEDROCK: &str = AWS[0];
const BUCKET: &str = AWS[1];
const S3: &str = AWS[2];
const EXPRESS: &str = AWS[3];

fn signing() -> Service {
    Service {
        env: Vec::new(),
        placeholder: Shape { prefix: "AKIA".into(), charset: Charset::Hex, length: None },
        inject_hosts: AWS.iter().map(|host| Authority::parse(host, 443).unwrap()).collect(),
        slots: vec![Slot::Header {
            name: "authorization".into(),
            scheme: Some("AWS4-HMAC-SHA256".into()),
        }],
        kind: Kind::Aws { services: Vec::new(), regions: vec!["eu-central-1".into()] },
        leniency: canonical::Leniency {
            encoded_separators: true,
            parameters: true,
            empty_segments: true,
        },
        full: vec!["ANY /**".into()],
        deny: vec!["ANY /private/**".into()],
        ..service("aws", "aws.example")
    }
}

async fn world() -> World {
    let world = World::answering(|_, _| ok("done")).await;
    let service = signing();
    let layer = Layer::service(&service, &Access::Full).unwrap();
    world.gateway.set_rules(Rules::new(Mode::Allow, vec![layer], Vec::new()).unwrap());
    let placeholder = format!("{}:{}", sdk::ID, sdk::SECRET);
    let secret = Secret::new(REAL.into()).unwrap();
    world
        .gateway
        .set_credential(Credential { service: Arc::new(service), secret, placeholder })
        .unwrap();
    world
}

/// What a client sends.
struct Ask<'a> {
    method: &'a str,
    host: &'a str,
    path: &'a str,
    query: &'a str,
    service: &'a str,
    region: &'a str,
    fields: &'a [(&'a str, &'a str)],
    body: &'a [u8],
    payload: Option<&'a str>,
}

impl<'a> Ask<'a> {
    fn new(method: &'a str, host: &'a str, path: &'a str) -> Self {
        let service = if host == BEDROCK { "bedrock" } else { "s3" };
        let (region, fields, body) = ("eu-central-1", &[][..], &b""[..]);
        Self { method, host, path, query: "", service, region, fields, body, payload: None }
    }

    fn scope(&self) -> String {
        format!("{}/{}/{}", &sdk::STAMP[..8], self.region, self.service)
    }

    /// The head, signed with the placeholder; the signature; what follows is the body.
    fn head(&self, length: usize) -> (String, String) {
        let hash = sdk::hex(&Sha256::digest(self.body));
        let payload = self.payload.unwrap_or(&hash);
        let mut headers = sdk::headers(self.fields);
        headers.insert("x-amz-date", sdk::STAMP.parse().unwrap());
        headers.insert("x-amz-content-sha256", payload.parse().unwrap());
        // The canonical form of a key without a value has an `=`.
        let query = match self.query {
            "" => String::new(),
            query if query.contains('=') => query.to_owned(),
            query => format!("{query}="),
        };
        // All services but S3 sign the path encoded once more.
        let path =
            if self.service == "s3" { self.path.to_owned() } else { self.path.replace('%', "%25") };
        let request = Request {
            method: self.method,
            host: self.host,
            path: &path,
            query: &query,
            headers: &headers,
        };
        let (authorization, signature) = sdk::authorization(&self.scope(), &request, payload);
        let target = match self.query {
            "" => self.path.to_owned(),
            query => format!("{}?{query}", self.path),
        };
        let mut head = format!(
            "{} {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n",
            self.method, self.host
        );
        for (name, value) in &headers {
            head += &format!("{name}: {}\r\n", value.to_str().unwrap());
        }
        head += &format!("Authorization: {authorization}\r\nContent-Length: {length}\r\n\r\n");
        (head, signature)
    }

    async fn send(&self, world: &World) -> String {
        let (head, _) = self.head(self.body.len());
        world.raw(self.host, [head.as_bytes(), self.body].concat()).await
    }
}

/// The body within the chunks of HTTP.
fn without_chunks(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|pair| pair == b"\r\n").unwrap();
        let size = std::str::from_utf8(&bytes[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&bytes[end + 2..][..size]);
        bytes = &bytes[end + 2 + size + 2..];
    }
}

/// What the server got, if it verifies under the real key: its target and its body.
fn verified(world: &World) -> (String, Vec<u8>) {
    let seen = world.api.seen();
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(end) = request.parse(seen.as_bytes()).unwrap() else {
        panic!("{seen}")
    };
    let mut headers = HeaderMap::new();
    for field in request.headers.iter() {
        let name: http::HeaderName = field.name.parse().unwrap();
        headers.append(name, http::HeaderValue::from_bytes(field.value).unwrap());
    }
    let target = request.path.unwrap();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut body = seen.as_bytes()[end..].to_vec();
    match headers.get("content-length") {
        Some(said) => assert_eq!(said.to_str().unwrap(), body.len().to_string(), "{seen}"),
        None => body = without_chunks(&body),
    }
    let host = headers["host"].to_str().unwrap().to_owned();
    let real = Credentials::parse(&Secret::new(REAL.into()).unwrap()).unwrap();
    assert!(
        !seen.contains(sdk::ID) && headers["x-amz-security-token"] == "session+token/0123456789"
    );
    let outgoing =
        Request { method: request.method.unwrap(), host: &host, path, query, headers: &headers };
    let inbound = Inbound::parse(outgoing).unwrap().expect("it is signed");
    let hash: [u8; 32] = Sha256::digest(&body).into();
    let is = inbound.needs_body().then_some(&hash);
    match inbound
        .verify(&real, is, SystemTime::now())
        .unwrap_or_else(|error| panic!("{error}: {seen}"))
    {
        Body::Hash(signed) => assert_eq!(signed, hash, "{seen}"),
        Body::Unsigned => {}
        Body::Chunked(mut chunked) => {
            let mut plain = Vec::new();
            chunked.push(&body, &mut plain).unwrap();
            chunked.finish(&mut plain).unwrap();
            body = plain;
        }
    }
    (target.to_owned(), body)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_placeholder_signed_is_signed_with_the_real_key() {
    let fields = [("content-type", "application/json"), ("x-amz-meta-note", "two words")];
    let model = "/model/arn%3Aaws%3Abedrock%3Aeu-central-1%3A1%3Ainference-profile%2Feu.x/invoke";
    for ask in [
        Ask {
            fields: &fields,
            body: b"{\"prompt\":1}",
            ..Ask::new("POST", BEDROCK, "/model/x/invoke")
        },
        Ask { body: b"{}", ..Ask::new("POST", BEDROCK, model) },
        Ask::new("GET", BUCKET, "/agent/a%20b//c"),
        Ask { query: "list-type=2&prefix=a%2Fb", ..Ask::new("GET", S3, "/bucket") },
        Ask {
            body: b"text",
            payload: Some("UNSIGNED-PAYLOAD"),
            ..Ask::new("PUT", BUCKET, "/agent/x~1")
        },
    ] {
        let world = world().await;
        let answer = ask.send(&world).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{}: {answer}", ask.path);
        let (target, body) = verified(&world);
        assert!(target.starts_with(ask.path), "{target}");
        assert_eq!(body, ask.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_in_signed_chunks_is_verified_and_signed_again() {
    let chunks: [&[u8]; 3] = [&[b'a'; 9000], b"bcd", &[b'e'; 70_000]];
    let whole = chunks.concat();
    let length = whole.len().to_string();
    let plain = [("x-amz-decoded-content-length", &*length), ("content-encoding", "aws-chunked")];
    let trailing = [plain[0], plain[1], ("x-amz-trailer", "x-amz-checksum-crc32c")];
    let checksum = ("x-amz-checksum-crc32c", "sOO8/Q==");
    for (fields, payload, trailer) in [
        (&plain[..], "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", None),
        (&trailing[..], "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", Some(checksum)),
    ] {
        for damage in [None, Some(300), Some(70_000)] {
            let world = world().await;
            let ask =
                Ask { fields, payload: Some(payload), ..Ask::new("PUT", BUCKET, "/agent/large") };
            let length = sdk::signed_chunks(&ask.scope(), &"0".repeat(64), &chunks, trailer).len();
            let (head, seed) = ask.head(length);
            let mut body = sdk::signed_chunks(&ask.scope(), &seed, &chunks, trailer);
            assert_eq!(body.len(), length);
            if let Some(at) = damage {
                body[at] ^= 1;
            }
            let answer = world.raw(BUCKET, [head.as_bytes(), &body].concat()).await;
            match damage {
                None => {
                    assert!(answer.starts_with("HTTP/1.1 200"), "{payload}: {answer}");
                    let (_, sent) = verified(&world);
                    assert!(sent == whole, "{payload}: {}", sent.len());
                    assert_eq!(trailer.is_some(), world.api.seen().contains(checksum.1));
                }
                // The server never has all of what it was promised.
                Some(at) => {
                    assert!(!answer.starts_with("HTTP/1.1 200"), "{at}: {answer}");
                    let seen = world.api.seen();
                    let body = seen.split_once("\r\n\r\n").map_or(0, |(_, body)| body.len());
                    assert!(body < whole.len(), "{at}: {body}");
                }
            }
        }
    }
}

/// An address that the placeholder signed at this time, or another key.
fn presigned(path: &str, key: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let at = time::OffsetDateTime::from_unix_timestamp(i64::try_from(now).unwrap()).unwrap();
    let day = format!("{:04}{:02}{:02}", at.year(), u8::from(at.month()), at.day());
    let stamp = format!("{day}T{:02}{:02}{:02}Z", at.hour(), at.minute(), at.second());
    let scope = format!("{day}/eu-central-1/s3/aws4_request");
    let query = format!(
        "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={}%2F{}&X-Amz-Date={stamp}&X-Amz-Expires=600&X-Amz-SignedHeaders=host",
        sdk::ID,
        scope.replace('/', "%2F")
    );
    let canonical = format!("GET\n{path}\n{query}\nhost:{BUCKET}\n\nhost\nUNSIGNED-PAYLOAD");
    let text =
        format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}", sdk::hex(&Sha256::digest(canonical)));
    let mac = |key: &[u8], data: &str| {
        use hmac::{KeyInit as _, Mac as _};
        let mac = hmac::Hmac::<Sha256>::new_from_slice(key).unwrap();
        mac.chain_update(data).finalize().into_bytes().to_vec()
    };
    let first = format!("AWS4{key}").into_bytes();
    let key = scope.split('/').fold(first, |key, part| mac(&key, part));
    format!("{path}?{query}&X-Amz-Signature={}", sdk::hex(&mac(&key, &text)))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_was_signed_is_a_signed_request() {
    let get = |target: String| {
        format!("GET {target} HTTP/1.1\r\nHost: {BUCKET}\r\nConnection: close\r\n\r\n")
    };
    let world = world().await;
    let answer = world
        .raw(BUCKET, get(presigned("/agent/x", "another/key+another/key+another/key/0123")))
        .await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let foreign = presigned("/agent/x", sdk::SECRET).replace(sdk::ID, "AKIAOFTHEATTACKER234");
    let answer = world.raw(BUCKET, get(foreign)).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert_eq!(world.api.connections(), 0);
    let answer = world.raw(BUCKET, get(presigned("/agent/x", sdk::SECRET))).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let seen = world.api.seen();
    assert!(seen.starts_with("GET /agent/x HTTP/1.1\r\n"), "{seen}");
    assert!(seen.contains("Credential=AKIAREALREALREAL2345/"), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_signed_goes_nowhere() {
    let copy = |source| [("x-amz-copy-source", source)];
    let chunked = [("x-amz-decoded-content-length", "1")];
    for (what, ask) in [
        ("another service", Ask { service: "s3", ..Ask::new("POST", BEDROCK, "/") }),
        (
            "the service that gives credentials",
            Ask { service: "sts", ..Ask::new("POST", BUCKET, "/") },
        ),
        (
            "another region than the host's",
            Ask { region: "us-east-1", ..Ask::new("GET", BUCKET, "/x") },
        ),
        (
            "a session of S3 Express",
            Ask { service: "s3express", query: "session", ..Ask::new("GET", EXPRESS, "/") },
        ),
        ("S3 Express otherwise", Ask { service: "s3express", ..Ask::new("GET", EXPRESS, "/x") }),
        ("a session elsewhere", Ask { query: "session", ..Ask::new("GET", BUCKET, "/") }),
        ("what is denied", Ask::new("GET", BUCKET, "/private/x")),
        ("the same, its slash encoded", Ask::new("GET", BUCKET, "/private%2Fx")),
        ("the same, by a path with empty parts", Ask::new("GET", BUCKET, "/agent/../private/x")),
        (
            "a copy of what is denied",
            Ask { fields: &copy("/bucket/private/x"), ..Ask::new("PUT", BUCKET, "/agent/x") },
        ),
        (
            "a copy of it, encoded",
            Ask { fields: &copy("bucket/private%2Fx"), ..Ask::new("PUT", BUCKET, "/agent/x") },
        ),
        (
            "a copy of another bucket",
            Ask { fields: &copy("other/x"), ..Ask::new("PUT", BUCKET, "/agent/x") },
        ),
        (
            "a copy by its ARN",
            Ask {
                fields: &copy("arn:aws:s3:eu-central-1:1:accesspoint/a/object/x"),
                ..Ask::new("PUT", BUCKET, "/agent/x")
            },
        ),
        (
            "several regions",
            Ask {
                payload: Some("STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"),
                fields: &chunked,
                ..Ask::new("PUT", BUCKET, "/x")
            },
        ),
        (
            "a stream of events",
            Ask {
                payload: Some("STREAMING-AWS4-HMAC-SHA256-EVENTS"),
                ..Ask::new("POST", BEDROCK, "/model/x")
            },
        ),
        (
            "chunks without their length",
            Ask {
                payload: Some("STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
                ..Ask::new("PUT", BUCKET, "/x")
            },
        ),
    ] {
        let world = world().await;
        let answer = ask.send(&world).await;
        let is_refused =
            ["HTTP/1.1 400", "HTTP/1.1 403"].iter().any(|status| answer.starts_with(status));
        assert!(is_refused, "{what}: {answer}");
        assert_eq!(world.api.connections(), 0, "{what}: {}", world.api.seen());
    }
    // What is allowed to be read may be copied.
    let world = world().await;
    let ask = Ask { fields: &copy("bucket/agent/y"), ..Ask::new("PUT", BUCKET, "/agent/x") };
    let answer = ask.send(&world).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    verified(&world);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_changed_or_not_signed_is_not_signed_for_it() {
    let world = world().await;
    let ask = Ask { body: b"{\"a\":1}", ..Ask::new("POST", BEDROCK, "/model/x/invoke") };
    let (head, _) = ask.head(ask.body.len());
    for (what, head) in [
        ("another path", head.replace("/model/x/invoke", "/model/y/invoke")),
        ("another method", head.replacen("POST", "PUT", 1)),
        ("another query", head.replacen("/invoke", "/invoke?x=1", 1)),
        (
            "a header of AWS's more",
            head.replacen("Content-Length", "x-amz-acl: public-read\r\nContent-Length", 1),
        ),
        ("another time", head.replacen("x-amz-date: 2026", "x-amz-date: 2025", 1)),
        ("another key", head.replace(sdk::ID, "AKIAOFTHEATTACKER234")),
        (
            "two signatures",
            head.replacen("Authorization: ", "Authorization: x\r\nAuthorization: ", 1),
        ),
        ("no signature", head.replacen("Authorization: ", "X-Nothing: ", 1)),
        (
            "a token",
            head.replacen("Authorization: ", "X-Amz-Security-Token: x\r\nAuthorization: ", 1),
        ),
        ("a bearer", head.replacen("AWS4-HMAC-SHA256 Credential", "Bearer Credential", 1)),
    ] {
        let answer = world.raw(BEDROCK, [head.as_bytes(), ask.body].concat()).await;
        let is_refused =
            ["HTTP/1.1 400", "HTTP/1.1 403"].iter().any(|status| answer.starts_with(status));
        assert!(is_refused, "{what}: {answer}");
    }
    assert_eq!(world.api.connections(), 0, "{}", world.api.seen());
}
