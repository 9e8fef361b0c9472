//! What holds of all rules.

use canonical::{Authority, Leniency, Path, Query};
use proptest::prelude::*;

use rules::{Layer, Line, Mode, Request, Rules, Verdict};

/// `PROPTEST_CASES` is for all tests alike; these are slow ones.
const CASES: u32 = 250;

/// Words of rules that often say something about the requests below.
const LINE: &str = "((GET|READ|WRITE|ANY|POST,PUT) )?(a\\.com|\\*\\.a\\.com|\\*\\*\\.a\\.com|b-\\*\\.a\\.com|\\*\\*|10\\.0\\.0\\.0/8|10\\.1\\.1\\.1)(:80|:443)?(/x|/x/\\*|/\\*\\*|/x/\\*\\*/z|/%2A|/X/y)?(\\?k=v\\*)?\
|(ws|tcp|tunnel) (a\\.com|\\*\\.a\\.com|10\\.0\\.0\\.0/8)(:80)?(/x)?\
|grpc a\\.com (p\\.S|\\*)/(M|\\*)\
|git (fetch|push) (a\\.com|github\\.com)(/x|/x/y|/\\*|/x/\\*\\*)?( refs/heads/(a|\\*|\\*\\*))?\
|graphql a\\.com(/x)?( (query|mutation)( (a|b|a\\*))?)?\
|mcp a\\.com/x( (a|b\\*)){0,2}";

#[derive(Debug, Clone)]
struct Ask {
    method: &'static str,
    authority: &'static str,
    path: String,
    query: &'static str,
    websocket: bool,
    grpc: bool,
    content_type: Option<&'static str>,
    body: String,
}

fn ask() -> impl Strategy<Value = Ask> {
    let push = |name: &str| {
        let text = format!("{} {} refs/heads/{name}", "0".repeat(40), "1".repeat(40));
        format!("{:04x}{text}0000", text.len() + 4)
    };
    let body = prop::sample::select(vec![
        String::new(),
        push("a"),
        push("b"),
        "{\"query\":\"{ a }\"}".to_owned(),
        "{\"query\":\"mutation { a b }\"}".to_owned(),
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"b1\"}}"
            .to_owned(),
        "{\"operation\":\"upload\"}".to_owned(),
    ]);
    (
        prop::sample::select(vec!["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "FOO"]),
        prop::sample::select(vec![
            "a.com", "x.a.com", "b-1.a.com", "x.y.a.com", "github.com", "a.com:80", "10.1.1.1", "[::ffff:10.1.1.1]",
        ]),
        "/(x|X|z|y|%2A|p\\.S|graphql)(/(x|y|z|M|info/refs|git-receive-pack|git-upload-pack|info/lfs/objects/batch)){0,3}/?",
        prop::sample::select(vec![
            "", "k=v1", "k=w", "k=v&k=w", "service=git-upload-pack", "service=git-receive-pack", "query=%7Ba%7D",
        ]),
        any::<bool>(),
        any::<bool>(),
        prop::sample::select(vec![
            None,
            Some("application/json"),
            Some("application/x-git-receive-pack-request"),
            Some("application/vnd.git-lfs+json"),
        ]),
        body,
    )
        .prop_map(|(method, authority, path, query, websocket, grpc, content_type, body)| Ask {
            method,
            authority,
            path,
            query,
            websocket,
            grpc,
            content_type,
            body,
        })
}

fn layer(allow: &[String], deny: &[String]) -> Option<Layer> {
    Layer::from_lines("--allow", allow, deny).ok()
}

fn rules(mode: Mode, own: Vec<Layer>, bounds: Vec<Layer>) -> Rules {
    Rules::new(mode, own, bounds).unwrap()
}

/// Whether a request is allowed, and what of it a connection would be.
fn decide(rules: &Rules, ask: &Ask) -> (bool, Option<rules::Kind>, bool) {
    let authority = Authority::parse(ask.authority, 443).unwrap();
    let path = Path::parse(&ask.path, Leniency::default()).unwrap();
    let query = Query::parse(ask.query).unwrap();
    let request = Request {
        host: &authority.host,
        port: authority.port,
        method: ask.method,
        path: &path,
        query: &query,
        websocket: ask.websocket,
        grpc: ask.grpc,
        content_type: ask.content_type,
    };
    let is_allowed = match rules.request(&request) {
        Verdict::Allow(_) => true,
        Verdict::Deny(_) => false,
        Verdict::Body(rule) => {
            matches!(rule.judge(ask.body.as_bytes(), true), Some(Verdict::Allow(_)))
        }
    };
    let kind = rules.endpoint(&authority.host, authority.port).ok().map(|endpoint| endpoint.kind);
    let resolves = authority.host.name().is_some_and(|name| rules.resolves(name).is_ok());
    (is_allowed, kind, resolves)
}

/// Whether `after` lets through what `before` does, or less.
fn is_narrower(
    before: (bool, Option<rules::Kind>, bool),
    after: (bool, Option<rules::Kind>, bool),
) -> bool {
    use rules::Kind::{Http, Tcp, Tunnel};
    let kinds = match (before.1, after.1) {
        (_, None) | (Some(Tcp), _) => true,
        (Some(Tunnel), Some(kind)) => kind != Tcp,
        (Some(Http), Some(kind)) => kind == Http,
        (None, Some(_)) => false,
    };
    (before.0 || !after.0) && kinds && (before.2 || !after.2)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(CASES) })]

    #[test]
    fn a_line_is_the_same_after_it_was_shown(text in LINE) {
        if let Ok(line) = Line::parse(&text) {
            let shown = line.to_string();
            prop_assert_eq!(Line::parse(&shown), Ok(line), "{} -> {}", text, shown);
        }
    }

    #[test]
    fn no_text_is_too_much(text in "\\PC{0,60}", words in "[a-zA-Z0-9.:/*?=,\\[\\]% -]{0,60}") {
        for text in [&text, &words] {
            if let Ok(line) = Line::parse(text) {
                let shown = line.to_string();
                prop_assert_eq!(Line::parse(&shown), Ok(line), "{} -> {}", text, shown);
            }
            let _ = Layer::from_toml("a.toml", text, &[] as &[services::Service]);
        }
    }

    #[test]
    fn a_deny_never_allows_more(
        allow in prop::collection::vec(LINE, 0..6),
        deny in prop::collection::vec(LINE, 0..4),
        added in LINE,
        open: bool,
        ask in ask(),
    ) {
        let mode = if open { Mode::Open } else { Mode::Allow };
        let (Some(one), Some(added)) = (layer(&allow, &deny), layer(&[], &[added])) else { return Ok(()) };
        let before = decide(&rules(mode, vec![one.clone()], vec![]), &ask);
        for rules in [
            rules(mode, vec![one.clone(), added.clone()], vec![]),
            rules(mode, vec![added, one], vec![]),
        ] {
            prop_assert!(is_narrower(before, decide(&rules, &ask)));
        }
    }

    #[test]
    fn a_bound_never_allows_more(
        allow in prop::collection::vec(LINE, 0..6),
        deny in prop::collection::vec(LINE, 0..3),
        bound in prop::collection::vec(LINE, 0..4),
        open: bool,
        ask in ask(),
    ) {
        let mode = if open { Mode::Open } else { Mode::Allow };
        let (Some(one), Some(bound)) = (layer(&allow, &deny), layer(&bound, &[])) else { return Ok(()) };
        let before = decide(&rules(mode, vec![one.clone()], vec![]), &ask);
        let after = decide(&rules(mode, vec![one], vec![bound.clone()]), &ask);
        prop_assert!(is_narrower(before, after));
        // Nor does it allow more than it does by itself.
        let alone = decide(&rules(Mode::Allow, vec![bound], vec![]), &ask);
        prop_assert!(alone.0 || !after.0);
    }

    #[test]
    fn order_never_matters(
        mut allow in prop::collection::vec(LINE, 0..6),
        mut deny in prop::collection::vec(LINE, 0..4),
        ask in ask(),
    ) {
        let Some(one) = layer(&allow, &deny) else { return Ok(()) };
        allow.reverse();
        deny.reverse();
        let other = layer(&allow, &deny).unwrap();
        let (one, other) = (rules(Mode::Allow, vec![one], vec![]), rules(Mode::Allow, vec![other], vec![]));
        prop_assert_eq!(decide(&one, &ask), decide(&other, &ask));
    }

    #[test]
    fn what_a_hint_says_allows_it(allow in prop::collection::vec(LINE, 0..3), ask in ask()) {
        let Some(one) = layer(&allow, &[]) else { return Ok(()) };
        let authority = Authority::parse(ask.authority, 443).unwrap();
        let path = Path::parse(&ask.path, Leniency::default()).unwrap();
        let query = Query::parse(ask.query).unwrap();
        let request = Request {
            host: &authority.host,
            port: authority.port,
            method: ask.method,
            path: &path,
            query: &query,
            websocket: ask.websocket,
            grpc: ask.grpc,
            content_type: ask.content_type,
        };
        let before = rules(Mode::Allow, vec![one.clone()], vec![]);
        let Verdict::Deny(refusal) = before.request(&request) else { return Ok(()) };
        if refusal.hint.is_empty() {
            return Ok(());
        }
        let hint = layer(std::slice::from_ref(&refusal.hint), &[]);
        prop_assert!(hint.is_some(), "{}", refusal.hint);
        let after = rules(Mode::Allow, vec![one, hint.unwrap()], vec![]);
        let verdict = after.request(&request);
        prop_assert!(!matches!(verdict, Verdict::Deny(_)), "{}", refusal.hint);
    }

    #[test]
    fn a_warning_is_right(
        allow in prop::collection::vec(LINE, 1..2),
        deny in prop::collection::vec(LINE, 1..3),
        ask in ask(),
    ) {
        let Some(one) = layer(&allow, &deny) else { return Ok(()) };
        let rules = rules(Mode::Allow, vec![one], vec![]);
        if !rules.warnings().is_empty() {
            let decided = decide(&rules, &ask);
            prop_assert!(!decided.0, "{:?} {:?}", allow, deny);
        }
    }
}
