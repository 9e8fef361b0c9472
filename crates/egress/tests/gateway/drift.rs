//! What was judged is what servers see: random requests, and the parsers of hyper, of Node and of
//! Python behind the gateway. `SANDFORGE_DRIFT=N` sends N of them, from another beginning each time.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use egress::{Decision, Kind};
use http_body_util::{BodyExt as _, Full};
use tokio::io::AsyncWriteExt as _;

use crate::support::{Origin, Roots, World, answer, ok};

const USUAL: usize = 200;

/// A server of another program, which ends with the test.
struct Server {
    name: &'static str,
    address: SocketAddr,
    child: Option<Child>,
    /// Requests of hyper's, which is in this process.
    requests: Arc<AtomicU64>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

impl Server {
    fn of(name: &'static str, command: &mut Command) -> Option<Self> {
        let mut child = command.stdout(Stdio::piped()).spawn().ok()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take()?).read_line(&mut line).ok()?;
        let mut server = Self {
            name,
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
            child: Some(child),
            requests: Arc::default(),
        };
        server.address.set_port(line.trim().parse().ok()?);
        Some(server)
    }

    async fn hyper() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicU64::new(0));
        let count = requests.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let count = count.clone();
                let service = hyper::service::service_fn(
                    move |request: hyper::Request<hyper::body::Incoming>| {
                        let count = count.clone();
                        async move {
                            let (parts, body) = request.into_parts();
                            let body = body.collect().await?.to_bytes();
                            // One that breaks off is none.
                            count.fetch_add(1, Ordering::Relaxed);
                            let body =
                                body.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
                            let seen = serde_json::json!([
                                parts.method.as_str(),
                                parts.uri.to_string(),
                                body
                            ]);
                            let response =
                                hyper::Response::builder().header("x-seen", seen.to_string());
                            Ok::<_, hyper::Error>(
                                response.body(Full::<&[u8]>::from(&b"ok"[..])).unwrap(),
                            )
                        }
                    },
                );
                let stream = hyper_util::rt::TokioIo::new(stream);
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(stream, service),
                );
            }
        });
        Self { name: "hyper", address, child: None, requests }
    }

    /// How many requests it saw, and how much that was none.
    fn counts(&self) -> (u64, u64) {
        if self.child.is_none() {
            return (self.requests.load(Ordering::Relaxed), 0);
        }
        let mut stream = std::net::TcpStream::connect(self.address).unwrap();
        stream
            .write_all(b"GET /counts HTTP/1.1\r\nHost: counts\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let json: serde_json::Value =
            serde_json::from_str(&text[text.rfind('{').unwrap()..text.rfind('}').unwrap() + 1])
                .unwrap();
        (json["requests"].as_u64().unwrap(), json["errors"].as_u64().unwrap())
    }
}

/// xorshift: the same requests every time.
struct Random(u64);

impl Random {
    fn below(&mut self, many: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % many
    }

    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }

    /// One of the odd ones every now and then.
    fn mostly<'a>(&mut self, usual: &[&'a str], odd: &[&'a str]) -> &'a str {
        let list = if self.one_in(12) { odd } else { usual };
        self.pick(list)
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    fn request(&mut self) -> Vec<u8> {
        let method = self.mostly(
            &["GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH"],
            &["get", "TRACE", "GE T", "CONNECT"],
        );
        let mut target = String::new();
        for _ in 0..1 + self.below(4) {
            target += "/";
            target += self.mostly(
                &[
                    "a", "repos", "x.y", "%41", "%7e", "~u", "a%20b", "%C3%BC", "a:b@c", "*",
                    "!$&'()",
                ],
                &["", ".", "..", "%2e%2E", "%2f", "a;b", "\\", "%", "%zz", "%00", "%252e"],
            );
        }
        if self.one_in(2) {
            target += "?";
            target += self.mostly(
                &["a=1", "a=1&a=2", "x=%20+%2B", "q=a/b?c", "&&", "[]=1", "{}", "a=%c3%bc", ""],
                &["a=%0d%0a", "a b", "#", "%"],
            );
        }
        let version = self.mostly(&["HTTP/1.1"], &["HTTP/1.0", "HTTP/2.0", "http/1.1"]);
        let mut lines =
            vec![format!("{method} {target} {version}"), "Host: clear.example".to_owned()];
        for _ in 0..self.below(4) {
            let line = self.mostly(
                &[
                    "X-A: b",
                    "X-A:b",
                    "X-B:\tc ",
                    "X-C: \u{fc}",
                    "X_D: e",
                    "Connection: keep-alive",
                    "Connection: keep-alive, X-A",
                    "TE: trailers",
                    "X-Forwarded-Host: evil",
                    "Trailer: X",
                    "Content-Encoding: gzip",
                    "Keep-Alive: 5",
                    "Via: 1.0 x",
                    "Content-Type: text/plain",
                ],
                &[
                    "Expect: 100-continue",
                    "X : y",
                    " X: folded",
                    "X-L: a\nb",
                    "X-R: a\rb",
                    "Upgrade: h2c",
                    "Proxy-Connection: close",
                    "Host: evil",
                ],
            );
            lines.push(line.to_owned());
        }
        let data = self.pick(&[
            "",
            "hello",
            "GET /smuggled HTTP/1.1\r\nHost: clear.example\r\n\r\n",
            "0\r\n\r\n",
            "a\r\nb",
            "\0\u{7f}",
        ]);
        let mut body = data.as_bytes().to_vec();
        match self.below(16) {
            0..5 => body.clear(),
            5..10 => lines.push(format!("Content-Length: {}", body.len())),
            10..14 => {
                lines.push("Transfer-Encoding: chunked".to_owned());
                let size = format!("{:x}\r\n", body.len()).into_bytes();
                let end = self.mostly(
                    &["0\r\n\r\n", "0\r\nX: y\r\n\r\n", "00\r\n\r\n"],
                    &["0;x\r\n\r\n", "0\n\n"],
                );
                body = match body.is_empty() {
                    true => end.as_bytes().to_vec(),
                    false => [&size[..], &body, b"\r\n", end.as_bytes()].concat(),
                };
            }
            14 => {
                let line = self.pick(&[
                    "Content-Length: 3",
                    "Content-Length: 0",
                    "Content-Length: +5",
                    "Content-Length: 5, 5",
                    "Transfer-Encoding: gzip, chunked",
                    "Transfer-Encoding: Chunked",
                ]);
                lines.push(line.to_owned());
            }
            _ => {
                lines.push(format!("Content-Length: {}", body.len()));
                let line = self.pick(&[
                    "Transfer-Encoding: chunked",
                    "Content-Length: 0",
                    "Transfer-Encoding : chunked",
                ]);
                lines.push(line.to_owned());
            }
        }
        let mut bytes = lines.join("\r\n").into_bytes();
        bytes.extend_from_slice(b"\r\n\r\n");
        if self.one_in(5) {
            let at = self.below(bytes.len());
            match self.below(3) {
                0 => bytes[at] = u8::try_from(self.below(256)).unwrap(),
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, b"\r\n\t \0:/%\x0b\xff"[self.below(10)]),
            }
        }
        bytes.extend(body);
        bytes
    }
}

/// What a server said that it saw: method, target, body.
fn seen(answers: &str) -> Vec<(String, String, String)> {
    let lines = answers.split("\r\n").filter_map(|line| line.strip_prefix("x-seen: "));
    lines
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

async fn judge(address: SocketAddr, bytes: &[u8]) -> Vec<(String, String, String)> {
    let nobody = Origin::start(None, Arc::new(|_, _| ok("x"))).await;
    let at = Origin::listening(address);
    let world =
        World::at(&Roots::new(), Vec::new(), &[], nobody.clone(), nobody.clone(), nobody, &at);
    world.allow_only(&["ANY clear.example:80/**"]);
    let clear = world.lookup("clear.example").await.unwrap();
    let mut stream = world.open(clear.into(), 80);
    stream.write_all(bytes).await.ok();
    stream.shutdown().await.ok();
    let answers = answer(&mut stream).await;
    drop(stream);
    let seen = seen(&answers);
    let is_allowed = |event: &&egress::Event| {
        event.kind == Kind::Request
            && event.decision == Decision::Allowed
            && event.status == Some(200)
    };
    // An event is written when everything is over.
    let mut events = world.events.all();
    for _ in 0..200 {
        if events.iter().filter(is_allowed).count() >= seen.len() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        events = world.events.all();
    }
    let allowed: Vec<_> = events.iter().filter(is_allowed).collect();
    let what = || format!("{}\n{answers}\n{events:#?}", String::from_utf8_lossy(bytes));
    assert_eq!(seen.len(), allowed.len(), "{}", what());
    for ((method, target, body), event) in seen.iter().zip(allowed) {
        let (path, query) =
            target.split_once('?').map_or((&**target, None), |(path, query)| (path, Some(query)));
        assert_eq!(
            (Some(method), Some(path)),
            (event.method.as_ref(), event.path.as_deref()),
            "{}",
            what()
        );
        // It is in the one form already.
        let again = canonical::Path::parse(path, canonical::Leniency::default()).unwrap();
        assert_eq!(again.as_str(), path);
        if let Some(query) = query {
            assert_eq!(canonical::Query::parse(query).unwrap().as_str(), query, "{}", what());
        }
        assert_eq!(event.sent, body.len() as u64 / 2, "{}", what());
        assert!(!target.contains("smuggled") || bytes.starts_with(b"GET /smuggled"), "{}", what());
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_see_the_request_that_was_judged() {
    let origins = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gateway/origins");
    let mut servers = vec![Server::hyper().await];
    let python = |kind: &str| {
        let mut command = Command::new("python3");
        command.arg(format!("{origins}/python.py")).arg(kind);
        command
    };
    let has_h11 = Command::new("python3").args(["-c", "import h11"]).stderr(Stdio::null()).status();
    let h11 = has_h11
        .is_ok_and(|status| status.success())
        .then(|| Server::of("h11", &mut python("h11")))
        .flatten();
    for (why, server) in [
        (
            "node is missing",
            Server::of("node", Command::new("node").arg(format!("{origins}/node.js"))),
        ),
        ("python3 is missing", Server::of("http.server", &mut python("http.server"))),
        ("python3 has no h11", h11),
    ] {
        match server {
            Some(server) => servers.push(server),
            None => println!("not run: {why}"),
        }
    }
    let count = std::env::var("SANDFORGE_DRIFT").ok().map(|text| text.parse::<usize>().unwrap());
    let first = match count {
        None => 0x5eed,
        Some(_) => std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() * 0x9e37 + 1,
    };
    println!("from {first:#x}");
    let mut random = Random(first);
    let mut total = vec![0; servers.len()];
    let mut left = count.unwrap_or(USUAL);
    while left > 0 {
        let requests: Vec<Vec<u8>> = (0..left.min(16))
            .map(|_| match random.one_in(3) {
                true => [random.request(), random.request()].concat(),
                false => random.request(),
            })
            .collect();
        left -= requests.len();
        let each = requests.iter().map(|bytes| {
            let at_each = servers.iter().map(move |server| judge(server.address, bytes));
            futures_util::future::join_all(at_each)
        });
        for (bytes, all) in requests.iter().zip(futures_util::future::join_all(each).await) {
            for (at, seen) in all.iter().enumerate() {
                let text = String::from_utf8_lossy(bytes);
                assert_eq!(seen, &all[0], "{} and {}: {text}", servers[0].name, servers[at].name);
                total[at] += seen.len() as u64;
            }
        }
    }
    // They saw no more than that, and nothing that they could not read.
    for (server, total) in servers.iter().zip(total) {
        assert_eq!(server.counts(), (total, 0), "{}", server.name);
        assert!(total > (count.unwrap_or(USUAL) / 6) as u64, "too few are allowed: {total}");
    }
}
