//! Files and lines of endpoint rules: each mistake has a place and is told in one line, a line that
//! was shown is the same line, and neither a denial nor a bound lets more through.
#![no_main]

use canonical::{Authority, Leniency, Path, Query};
use libfuzzer_sys::fuzz_target;
use rules::{Kind, Layer, Line, Mode, Request, Rules, Verdict};
use services::{Catalogue, Service};

/// Between one layer and the next.
const BETWEEN: &str = "%%\n";

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for line in text.lines().take(20) {
        if let Ok(line) = Line::parse(line.trim_matches(['"', ',', ' '])) {
            let shown = line.to_string();
            assert_eq!(Line::parse(&shown), Ok(line), "{shown}");
        }
    }
    let (one, other) = text.split_once(BETWEEN).unwrap_or((text, ""));
    let catalogue = Catalogue::built_in();
    let services = [catalogue.sample("github").expect("it is built in").clone()];
    let (Some(one), Some(other)) = (parse(one, &services), parse(other, &services)) else { return };
    for mode in [Mode::Allow, Mode::Open] {
        let Ok(before) = Rules::new(mode, vec![one.clone()], vec![]) else { return };
        let Ok(bound) = Rules::new(mode, vec![one.clone()], vec![other.clone()]) else { return };
        for (method, url, websocket) in [
            ("GET", "api.github.com/repos/acme/web", false),
            ("POST", "api.github.com/graphql", false),
            ("POST", "github.com/acme/web.git/git-receive-pack", false),
            ("GET", "github.com/acme/web/info/refs?service=git-upload-pack", false),
            ("GET", "mcp.example.com/mcp", true),
            ("DELETE", "10.1.2.3:8080/x?force=yes", false),
        ] {
            let (before, after) =
                (ask(&before, method, url, websocket), ask(&bound, method, url, websocket));
            assert!(before.0 >= after.0 && before.1 >= after.1, "{url}: a bound let more through");
        }
    }
});

fn parse(text: &str, services: &[Service]) -> Option<Layer> {
    match Layer::from_toml("n.toml", text, services) {
        Ok(layer) => Some(layer),
        Err(error) => {
            let message = error.to_string();
            assert!(!message.contains(char::is_control), "{message:?}");
            if error.line > 0 {
                let line =
                    text.split('\n').nth(error.line as usize - 1).expect("there is that line");
                assert!(error.column as usize <= line.chars().count() + 1, "{message}");
            }
            None
        }
    }
}

/// How much of a request is allowed, and how much of its connection.
fn ask(rules: &Rules, method: &str, url: &str, websocket: bool) -> (u8, u8) {
    let (authority, target) = url.split_at(url.find('/').expect("there is a path"));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let authority = Authority::parse(authority, 443).expect("it is one");
    let path = Path::parse(path, Leniency::default()).expect("it is one");
    let query = Query::parse(query).expect("it is one");
    let request = Request {
        host: &authority.host,
        port: authority.port,
        method,
        path: &path,
        query: &query,
        websocket,
        grpc: false,
        content_type: None,
    };
    let allowed = match rules.request(&request) {
        Verdict::Allow(_) => 2,
        Verdict::Body(_) => 1,
        Verdict::Deny(refusal) => {
            assert!(!refusal.reason.contains(char::is_control));
            assert!(
                refusal.hint.is_empty() || Line::parse(&refusal.hint).is_ok(),
                "{}",
                refusal.hint
            );
            0
        }
    };
    let kind = match rules.endpoint(&authority.host, authority.port).map(|endpoint| endpoint.kind) {
        Ok(Kind::Tcp) => 3,
        Ok(Kind::Tunnel) => 2,
        Ok(Kind::Http) => 1,
        Err(_) => 0,
    };
    // Bytes of any kind are no request.
    (if kind == 3 { 2 } else { allowed }, kind)
}
