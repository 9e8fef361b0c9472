//! How long a decision takes with 200 rules: `cargo run --release -p rules --example decision`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use canonical::{Host, Leniency, Path, Query};
use rules::{Layer, Mode, Request, Rules, Verdict};

/// Decisions of one measurement.
const ROUNDS: u32 = 200_000;
/// Measurements. The fastest is the one that was disturbed least.
const TRIES: usize = 9;

fn main() {
    let mut allow: Vec<String> = Vec::new();
    for index in 0..90 {
        allow.push(format!("READ host-{index}.example.com/api/**"));
        allow.push(format!("POST api.example.com/repos/acme-{index}/*/issues"));
    }
    allow.push("READ *.example.org/**".to_owned());
    allow.push("git fetch github.com/acme/*".to_owned());
    let deny: Vec<String> =
        (0..18).map(|index| format!("ANY api.example.com/repos/*/secrets-{index}/**")).collect();
    let layer = Layer::from_lines("--allow", &allow, &deny).expect("the rules are well-formed");
    let bound = Layer::from_lines("policy.toml", &["**"], &[] as &[&str]).expect("so is the bound");
    let rules = Rules::new(Mode::Allow, vec![layer], vec![bound]).expect("they fit together");

    println!(
        "{} rules, the fastest of {TRIES} times {ROUNDS} decisions",
        allow.len() + deny.len() + 1
    );
    for (what, method, host, path) in [
        ("host by its name, allowed", "GET", "host-44.example.com", "/api/v1/users/7"),
        ("one of many rules of a host", "POST", "api.example.com", "/repos/acme-89/web/issues"),
        ("host by a pattern, allowed", "GET", "cdn.example.org", "/a/b/c/d/e/f.js"),
        ("denied by a deny", "POST", "api.example.com", "/repos/acme-1/secrets-7/issues"),
        ("denied, no rule", "GET", "www.example.net", "/"),
    ] {
        let host = Host::parse(host).expect("a host");
        let path = Path::parse(path, Leniency::default()).expect("a path");
        let query = Query::default();
        let request = Request {
            host: &host,
            port: 443,
            method,
            path: &path,
            query: &query,
            websocket: false,
            grpc: false,
            content_type: None,
        };
        let best = (0..TRIES).map(|_| measure(&rules, &request)).min().unwrap_or_default();
        println!("{:>8.0} ns  {what}", best.as_secs_f64() * 1e9 / f64::from(ROUNDS));
    }
}

fn measure(rules: &Rules, request: &Request<'_>) -> Duration {
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        let verdict = rules.request(black_box(request));
        assert!(!matches!(black_box(verdict), Verdict::Body(_)));
    }
    begun.elapsed()
}
