//! Bodies of pushes, of LFS, GraphQL and MCP: whatever they are, there is a verdict; with more rules
//! there is not less allowed, with more denials not more; and what is said of the beginning of a body
//! is said of all of it.
#![no_main]

use canonical::{Authority, Leniency, Path, Query};
use libfuzzer_sys::fuzz_target;
use rules::{Layer, Mode, Request, Rules, Verdict};

const NONE: &[&str] = &[];

/// Where a body goes, as what, and rules from those that allow the least.
const CASES: [(&str, &str, [&str; 3]); 5] = [
    (
        "github.com/acme/web/git-receive-pack",
        "application/x-git-receive-pack-request",
        [
            "git push github.com/acme/web refs/heads/agent/*",
            "git push github.com/acme/web refs/heads/**",
            "git push github.com/acme/web refs/**",
        ],
    ),
    (
        "api.github.com/graphql",
        "application/json",
        [
            "graphql api.github.com query a",
            "graphql api.github.com query",
            "graphql api.github.com",
        ],
    ),
    (
        "api.github.com/graphql",
        "application/graphql",
        [
            "graphql api.github.com mutation create*",
            "graphql api.github.com mutation",
            "graphql api.github.com",
        ],
    ),
    (
        "a.com/mcp",
        "application/json; charset=utf-8",
        ["mcp a.com/mcp get_x", "mcp a.com/mcp get_*", "mcp a.com/mcp"],
    ),
    (
        "github.com/acme/web/info/lfs/objects/batch",
        "application/vnd.git-lfs+json",
        [
            "git fetch github.com/acme/web",
            "git push github.com/acme/web",
            "git push github.com/acme/*",
        ],
    ),
];

fuzz_target!(|data: &[u8]| {
    let [case, cut, body @ ..] = data else { return };
    let (url, content_type, lines) = CASES[usize::from(*case) % CASES.len()];
    let cut = body.len() * usize::from(*cut) / 256;
    let mut before = false;
    for line in lines {
        let allow = Layer::from_lines("a", &[line], NONE).expect("it is a rule");
        let rules = Rules::new(Mode::Allow, vec![allow], vec![]).expect("they fit");
        let is_allowed = ask(&rules, url, content_type, body, cut);
        assert!(is_allowed || !before, "{line} allows less");
        before = is_allowed;
    }
    let mut before = true;
    // Who denies a fetch denies downloads, who denies a push uploads: the first denies something else.
    for line in &lines[1..] {
        let deny = Layer::from_lines("d", NONE, &[line]).expect("it is a rule");
        let rules = Rules::new(Mode::Open, vec![deny], vec![]).expect("they fit");
        let is_allowed = ask(&rules, url, content_type, body, cut);
        assert!(before || !is_allowed, "{line} denies less");
        before = is_allowed;
    }
});

fn ask(rules: &Rules, url: &str, content_type: &str, body: &[u8], cut: usize) -> bool {
    let (authority, path) = url.split_at(url.find('/').expect("there is a path"));
    let authority = Authority::parse(authority, 443).expect("it is one");
    let path = Path::parse(path, Leniency::default()).expect("it is one");
    let request = Request {
        host: &authority.host,
        port: authority.port,
        method: "POST",
        path: &path,
        query: &Query::default(),
        websocket: false,
        grpc: false,
        content_type: Some(content_type),
    };
    let is_allowed = |verdict: &Verdict<'_>| match verdict {
        Verdict::Allow(_) => true,
        Verdict::Deny(refusal) => {
            assert!(!refusal.reason.contains(char::is_control), "{:?}", refusal.reason);
            false
        }
        Verdict::Body(_) => panic!("a body is judged once"),
    };
    match rules.request(&request) {
        Verdict::Body(rule) => {
            let whole = rule.judge(body, true).expect("that is all of it");
            if let Some(part) = rule.judge(&body[..cut], false) {
                assert_eq!(
                    is_allowed(&part),
                    is_allowed(&whole),
                    "the beginning is judged otherwise"
                );
            }
            is_allowed(&whole)
        }
        verdict => is_allowed(&verdict),
    }
}
