//! What rules mean: one fact each.

use canonical::{Authority, Leniency, Path, Query};
use rules::{Kind, Layer, Mode, Refusal, Request, Rules, Verdict};

const NONE: &[&str] = &[];
const NO_SERVICES: &[services::Service] = &[];

fn layer(allow: &[&str], deny: &[&str]) -> Layer {
    Layer::from_lines("--allow", allow, deny).unwrap()
}

fn rules(allow: &[&str], deny: &[&str]) -> Rules {
    Rules::new(Mode::Allow, vec![layer(allow, deny)], vec![]).unwrap()
}

/// What is asked, and how.
#[derive(Clone, Copy)]
struct Ask<'a> {
    method: &'a str,
    url: &'a str,
    websocket: bool,
    grpc: bool,
    content_type: Option<&'a str>,
    body: Option<&'a [u8]>,
}

impl<'a> Ask<'a> {
    fn new(method: &'a str, url: &'a str) -> Self {
        Self { method, url, websocket: false, grpc: false, content_type: None, body: None }
    }

    fn json(url: &'a str, body: &'a str) -> Self {
        Self {
            content_type: Some("application/json"),
            body: Some(body.as_bytes()),
            ..Self::new("POST", url)
        }
    }

    /// The verdict; with the rule that allowed it, the services that it serves.
    fn of(self, rules: &Rules) -> Result<(String, Vec<&'static str>), Refusal> {
        let slash = self.url.find('/').unwrap();
        let (authority, target) = self.url.split_at(slash);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let authority = Authority::parse(authority, 443).unwrap();
        let leniency = Leniency { encoded_separators: true, ..Leniency::default() };
        let path = Path::parse(path, leniency).unwrap();
        let query = Query::parse(query).unwrap();
        let request = Request {
            host: &authority.host,
            port: authority.port,
            method: self.method,
            path: &path,
            query: &query,
            websocket: self.websocket,
            grpc: self.grpc,
            content_type: self.content_type,
        };
        let verdict = match rules.request(&request) {
            Verdict::Body(rule) => {
                let body = self.body.expect("it depends on the body");
                rule.judge(body, true).expect("that is all of it")
            }
            verdict => verdict,
        };
        match verdict {
            Verdict::Allow(allowed) => {
                let served = ["github", "npm"].into_iter().filter(|name| allowed.serves(name));
                Ok((allowed.rule.text.to_string(), served.collect()))
            }
            Verdict::Deny(refusal) => Err(refusal),
            Verdict::Body(_) => panic!("a body is judged once"),
        }
    }

    fn is_allowed(self, rules: &Rules) -> bool {
        self.of(rules).is_ok()
    }
}

fn allows(rules: &Rules, method: &str, url: &str) -> bool {
    Ask::new(method, url).is_allowed(rules)
}

fn endpoint(rules: &Rules, authority: &str) -> Option<Kind> {
    let authority = Authority::parse(authority, 443).unwrap();
    rules.endpoint(&authority.host, authority.port).ok().map(|endpoint| endpoint.kind)
}

fn resolves(rules: &Rules, name: &str) -> bool {
    let host = Authority::parse(name, 443).unwrap().host;
    rules.resolves(host.name().unwrap()).is_ok()
}

#[test]
fn what_no_rule_names_is_denied() {
    let rules = rules(&["READ a.com/docs/**"], &[]);
    assert!(allows(&rules, "GET", "a.com/docs/x"));
    for (method, url) in [
        ("GET", "a.com/x"),
        ("POST", "a.com/docs/x"),
        ("GET", "b.com/docs/x"),
        ("GET", "a.com:8443/docs/x"),
        ("GET", "x.a.com/docs/x"),
        ("GET", "a.com.evil.org/docs/x"),
    ] {
        assert!(!allows(&rules, method, url), "{method} {url}");
    }
}

#[test]
fn an_empty_list_allows_nothing() {
    let rules = rules(&[], &[]);
    assert!(!allows(&rules, "GET", "a.com/"));
    assert!(!resolves(&rules, "a.com"));
    assert_eq!(endpoint(&rules, "a.com"), None);
}

#[test]
fn a_deny_wins_wherever_it_stands() {
    let allow = ["ANY a.com/**", "GET a.com/x/secret"];
    let deny = ["ANY a.com/x/**"];
    for rules in [
        rules(&allow, &deny),
        Rules::new(Mode::Allow, vec![layer(&[], &deny), layer(&allow, &[])], vec![]).unwrap(),
        Rules::new(
            Mode::Allow,
            vec![layer(&allow, &[])],
            vec![Layer::from_lines("p", NONE, &deny).unwrap()],
        )
        .unwrap(),
        Rules::new(Mode::Open, vec![layer(&[], &deny)], vec![]).unwrap(),
    ] {
        assert!(!allows(&rules, "GET", "a.com/x/secret"));
        assert!(!allows(&rules, "GET", "a.com/x"));
    }
    assert!(allows(&rules(&allow, &deny), "GET", "a.com/y"));
}

#[test]
fn a_deny_takes_in_more_than_it_says() {
    let rules =
        rules(&["ANY a.com/**", "ws a.com/**"], &["GET a.com/keys/*", "DELETE a.com/x?all=yes"]);
    for url in ["a.com/keys/1", "a.com/KEYS/1", "a.com/keys/1/", "a.com/keys/"] {
        assert!(!allows(&rules, "GET", url), "{url}");
    }
    assert!(!Ask { websocket: true, ..Ask::new("GET", "a.com/keys/1") }.is_allowed(&rules));
    assert!(!allows(&rules, "DELETE", "a.com/x?all=no&ALL=Yes"));
    assert!(allows(&rules, "DELETE", "a.com/x?all=no"));
    assert!(allows(&rules, "GET", "a.com/keys/1/2"));
}

#[test]
fn a_star_is_one_segment_or_label_and_two_are_any_number() {
    let rules =
        rules(&["GET a.com/r/*/i", "GET b.com/r/**", "*.c.com", "**.d.com", "api-*.e.com"], &[]);
    for (url, is_allowed) in [
        ("a.com/r/x/i", true),
        ("a.com/r/i", false),
        ("a.com/r//i", false),
        ("a.com/r/x/y/i", false),
        ("b.com/r", true),
        ("b.com/r/", true),
        ("b.com/r/x/y", true),
        ("b.com/rx", false),
        ("x.c.com/", true),
        ("c.com/", false),
        ("x.y.c.com/", false),
        ("evilc.com/", false),
        ("d.com/", true),
        ("x.y.d.com/", true),
        ("evild.com/", false),
        ("api-1.e.com/", true),
        ("www.e.com/", false),
    ] {
        if url.contains("//") {
            continue;
        }
        assert_eq!(allows(&rules, "GET", url), is_allowed, "{url}");
    }
}

#[test]
fn paths_are_compared_by_decoded_segments() {
    let rules = rules(&["GET a.com/a%20b/*", "GET a.com/%40scope%2Fname", "GET a.com/x/*"], &[]);
    assert!(allows(&rules, "GET", "a.com/%61%20b/c"));
    assert!(
        allows(&rules, "GET", "a.com/@scope%2fname")
            || allows(&rules, "GET", "a.com/%40scope%2fname")
    );
    // An encoded slash is no slash.
    assert!(allows(&rules, "GET", "a.com/x/y%2Fz"));
    assert!(!allows(&rules, "GET", "a.com/x%2Fy"));
}

#[test]
fn read_is_get_and_head_and_not_options() {
    let rules = rules(&["READ a.com/**"], &[]);
    assert!(allows(&rules, "GET", "a.com/") && allows(&rules, "HEAD", "a.com/"));
    for method in ["OPTIONS", "POST", "get", "FOO", "TRACE", "CONNECT"] {
        assert!(!allows(&rules, method, "a.com/"), "{method}");
    }
}

#[test]
fn a_method_that_is_not_known_is_never_allowed() {
    for rules in [rules(&["a.com"], &[]), Rules::new(Mode::Open, vec![], vec![]).unwrap()] {
        assert!(!allows(&rules, "FOO", "a.com/") && !allows(&rules, "TRACE", "a.com/"));
        assert!(allows(&rules, "PROPFIND", "a.com/"));
    }
}

#[test]
fn a_websocket_needs_a_rule_of_its_own() {
    let ask = Ask { websocket: true, ..Ask::new("GET", "a.com/socket") };
    assert!(!ask.is_allowed(&rules(&["ANY a.com/**"], &[])));
    assert!(!ask.is_allowed(&rules(&["GET a.com/socket"], &[])));
    assert!(ask.is_allowed(&rules(&["ws a.com/socket"], &[])));
    assert!(Ask { method: "CONNECT", ..ask }.is_allowed(&rules(&["ws a.com/socket"], &[])));
    assert!(!ask.is_allowed(&rules(&["ws a.com/other"], &[])));
    assert!(!allows(&rules(&["ws a.com/socket"], &[]), "GET", "a.com/socket"));
    // A host alone is all that the host has.
    assert!(ask.is_allowed(&rules(&["a.com"], &[])));
}

#[test]
fn a_rule_without_a_path_is_every_path() {
    let rules = rules(&["GET a.com"], &[]);
    assert!(allows(&rules, "GET", "a.com/") && allows(&rules, "GET", "a.com/x/y?z=1"));
}

#[test]
fn a_port_other_than_443_has_to_be_named() {
    let rules = rules(&["a.com", "b.com:80", "GET c.com:8080/x"], &[]);
    assert!(allows(&rules, "GET", "a.com/") && !allows(&rules, "GET", "a.com:80/"));
    assert!(allows(&rules, "GET", "b.com:80/") && !allows(&rules, "GET", "b.com/"));
    assert!(allows(&rules, "GET", "c.com:8080/x"));
}

#[test]
fn a_deny_without_a_port_is_every_port() {
    let rules = rules(&["a.com", "a.com:80", "b.com", "b.com:80"], &["a.com", "b.com:80"]);
    assert_eq!(endpoint(&rules, "a.com:80"), None);
    assert!(!resolves(&rules, "a.com") && resolves(&rules, "b.com"));
    assert_eq!(endpoint(&rules, "b.com:80"), None);
    assert_eq!(endpoint(&rules, "b.com"), Some(Kind::Tunnel));
}

#[test]
fn all_values_of_a_guarded_key_must_match() {
    let rules = rules(&["GET a.com/x?kind=public&q=a*"], &[]);
    assert!(allows(&rules, "GET", "a.com/x?kind=public&q=abc&more=1"));
    for query in
        ["", "kind=public", "kind=public&kind=secret&q=a", "KIND=public&q=a", "kind=publicx&q=a"]
    {
        assert!(!allows(&rules, "GET", &format!("a.com/x?{query}")), "{query}");
    }
}

#[test]
fn the_kind_of_a_connection_follows_from_who_looks_inside() {
    let rules = rules(
        &[
            "a.com",
            "GET b.com/x",
            "tcp c.com:22",
            "tunnel d.com",
            "e.com",
            "10.0.0.0/8:5432",
            "tcp 192.168.1.7:22",
        ],
        &["POST e.com/x", "tcp f.com:22"],
    );
    for (authority, kind) in [
        ("a.com", Some(Kind::Tunnel)),
        ("b.com", Some(Kind::Http)),
        ("c.com:22", Some(Kind::Tcp)),
        ("c.com", None),
        ("d.com", Some(Kind::Tunnel)),
        ("e.com", Some(Kind::Http)),
        ("10.1.2.3:5432", Some(Kind::Tunnel)),
        ("10.1.2.3", None),
        ("11.1.2.3:5432", None),
        ("192.168.1.7:22", Some(Kind::Tcp)),
        ("[::ffff:192.168.1.7]:22", Some(Kind::Tcp)),
    ] {
        assert_eq!(endpoint(&rules, authority), kind, "{authority}");
    }
}

#[test]
fn a_private_network_is_reached_by_a_rule_that_names_it() {
    let private = |rule: &str, authority: &str| {
        let authority = Authority::parse(authority, 443).unwrap();
        let rules = rules(&[rule], &[]);
        rules.endpoint(&authority.host, authority.port).map(|endpoint| endpoint.allow_private).ok()
    };
    assert_eq!(private("tcp 10.0.0.0/8:22", "10.1.1.1:22"), Some(true));
    assert_eq!(private("tcp 10.1.1.1:22", "10.1.1.1:22"), Some(true));
    assert_eq!(private("tcp 0.0.0.0/0:22", "10.1.1.1:22"), Some(false));
    assert_eq!(private("tcp 0.0.0.0/0:22", "1.1.1.1:22"), Some(false));
    assert_eq!(private("tcp [fd00::/8]:22", "[fd00::1]:22"), Some(true));
    assert_eq!(private("tcp *.a.com:22", "x.a.com:22"), Some(false));
}

#[test]
fn a_denied_network_is_denied_however_the_address_is_written() {
    let rules = rules(&["[::/0]:443", "0.0.0.0/0:443"], &["203.0.112.0/24"]);
    for address in
        ["203.0.112.9", "[::ffff:203.0.112.9]", "[64:ff9b::203.0.112.9]", "[2002:cb00:7009::1]"]
    {
        assert_eq!(endpoint(&rules, address), None, "{address}");
    }
    assert!(endpoint(&rules, "[2606:4700::1111]").is_some());
}

#[test]
fn each_bound_with_a_list_must_allow_too() {
    let own = || layer(&["ANY a.com/**", "b.com", "tcp c.com:22"], &[]);
    let bounds = vec![
        layer(&["READ a.com/**", "b.com", "c.com:22"], &[]),
        Layer::from_lines("p", NONE, &["GET a.com/secret"])
            .map(|_| layer(&["a.com", "GET b.com/x"], &[]))
            .unwrap(),
    ];
    let rules = Rules::new(Mode::Allow, vec![own()], bounds).unwrap();
    assert!(allows(&rules, "GET", "a.com/x"));
    assert!(!allows(&rules, "POST", "a.com/x"));
    assert_eq!(endpoint(&rules, "a.com"), Some(Kind::Http));
    assert_eq!(endpoint(&rules, "b.com"), Some(Kind::Http));
    assert!(allows(&rules, "GET", "b.com/x") && !allows(&rules, "GET", "b.com/y"));
    assert_eq!(endpoint(&rules, "c.com:22"), None);
}

#[test]
fn a_bound_without_a_list_only_denies() {
    let bound = Layer::from_toml("p.toml", "deny = [\"GET a.com/secret\"]", NO_SERVICES).unwrap();
    let rules = Rules::new(Mode::Allow, vec![layer(&["ANY a.com/**"], &[])], vec![bound]).unwrap();
    assert!(allows(&rules, "GET", "a.com/x") && !allows(&rules, "GET", "a.com/secret"));
    let bound = Layer::from_toml("p.toml", "allow = []", NO_SERVICES).unwrap();
    let rules = Rules::new(Mode::Open, vec![], vec![bound]).unwrap();
    assert!(!allows(&rules, "GET", "a.com/x"));
}

#[test]
fn offline_is_nothing_and_open_is_all_that_is_not_taken_away() {
    let offline = Rules::new(Mode::Offline, vec![layer(&["a.com"], &[])], vec![]).unwrap();
    assert!(!allows(&offline, "GET", "a.com/") && !resolves(&offline, "a.com"));
    assert_eq!(endpoint(&offline, "a.com"), None);
    let open = Rules::new(Mode::Open, vec![layer(&[], &["b.com", "POST c.com"])], vec![]).unwrap();
    assert!(allows(&open, "GET", "a.com/") && resolves(&open, "a.com"));
    assert_eq!(endpoint(&open, "a.com:8443"), Some(Kind::Tunnel));
    assert_eq!(endpoint(&open, "b.com"), None);
    assert_eq!(endpoint(&open, "c.com"), Some(Kind::Http));
    assert!(!allows(&open, "POST", "c.com/"));
}

#[test]
fn a_refusal_says_which_rule_or_what_would_allow_it() {
    let rules = rules(&["READ a.com/**"], &["a.com:80", "GET a.com/secret/*"]);
    let refusal = Ask::new("POST", "a.com/x*y").of(&rules).unwrap_err();
    assert_eq!((refusal.rule, refusal.hint.as_str()), (None, "POST a.com/x%2Ay"));
    let refusal = Ask::new("GET", "a.com/secret/x").of(&rules).unwrap_err();
    assert_eq!(refusal.rule.unwrap().to_string(), "--allow: \"GET a.com/secret/*\"");
    assert_eq!(refusal.hint, "");
}

#[test]
fn of_rules_that_match_the_most_specific_is_shown() {
    for allow in [["ANY a.com/**", "GET a.com/x/*"], ["GET a.com/x/*", "ANY a.com/**"]] {
        let (rule, _) = Ask::new("GET", "a.com/x/y").of(&rules(&allow, &[])).unwrap();
        assert_eq!(rule, "GET a.com/x/*");
    }
}

#[test]
fn an_allowed_line_that_is_denied_wholly_is_a_warning() {
    let rules = rules(
        &["GET a.com/x/y", "GET a.com/z", "b.com", "git push c.com/o/r refs/heads/x"],
        &["ANY a.com/x/**", "b.com", "git push c.com/o/*"],
    );
    let warned: Vec<&str> = rules.warnings().iter().map(|warning| &*warning.rule.text).collect();
    assert_eq!(warned, ["GET a.com/x/y", "b.com", "git push c.com/o/r refs/heads/x"]);
}

#[test]
fn an_allowed_line_for_hosts_that_anybody_can_have_is_a_warning() {
    let rules = rules(&["READ *.vercel.app", "READ mine.vercel.app", "READ *.example.com"], &[]);
    let warned: Vec<String> = rules.warnings().iter().map(ToString::to_string).collect();
    assert_eq!(
        warned,
        [
            "--allow: \"READ *.vercel.app\": anybody can have a host below vercel.app; name the exact host"
        ]
    );
}

mod git {
    use super::*;

    fn get(repository: &str, service: &str) -> String {
        format!("{repository}/info/refs?service=git-{service}-pack")
    }

    #[test]
    fn a_fetch_is_two_requests_and_no_others() {
        let rules = rules(&["git fetch github.com/acme/*"], &[]);
        for repository in ["github.com/acme/web", "github.com/acme/web.git", "github.com/Acme/WEB"]
        {
            assert!(allows(&rules, "GET", &get(repository, "upload")), "{repository}");
            assert!(allows(&rules, "POST", &format!("{repository}/git-upload-pack")));
            assert!(!allows(&rules, "GET", &get(repository, "receive")));
            assert!(!allows(&rules, "POST", &format!("{repository}/git-receive-pack")));
        }
        for url in [
            "github.com/acme/web/info/refs",
            "github.com/acme/web/info/refs?service=",
            "github.com/acme/web/info/refs?service=git-upload-pack&service=git-receive-pack",
            "github.com/acme/web/info/refs?service=git-upload-pack&x=1",
            "github.com/acme/web/info/refs?Service=git-upload-pack",
            "github.com/acme/web/INFO/REFS?service=git-upload-pack",
            "github.com/acme/web/HEAD",
            "github.com/acme/web/objects/info/packs",
            "github.com/acme/web",
            "github.com/other/web/info/refs?service=git-upload-pack",
            "github.com/acme/x/y/info/refs?service=git-upload-pack",
        ] {
            assert!(!allows(&rules, "GET", url), "{url}");
        }
    }

    #[test]
    fn case_matters_where_a_server_is_not_known_to_ignore_it() {
        let rules = rules(&["git fetch git.example.com/acme/web"], &[]);
        assert!(allows(&rules, "GET", &get("git.example.com/acme/web.git", "upload")));
        assert!(!allows(&rules, "GET", &get("git.example.com/Acme/web", "upload")));
    }

    fn push<'a>(url: &'a str, body: &'a str) -> Ask<'a> {
        Ask {
            content_type: Some("application/x-git-receive-pack-request"),
            body: Some(body.as_bytes()),
            ..Ask::new("POST", url)
        }
    }

    fn commands(refs: &[&str]) -> String {
        let line = |name: &&str| {
            let text = format!("{} {} {name}\n", "0".repeat(40), "1".repeat(40));
            format!("{:04x}{text}", text.len() + 4)
        };
        refs.iter().map(line).collect::<String>() + "0000PACK"
    }

    #[test]
    fn every_ref_of_a_push_must_be_allowed() {
        let rules = rules(&["git push github.com/acme/web refs/heads/agent/** refs/tags/v*"], &[]);
        let url = "github.com/acme/web.git/git-receive-pack";
        assert!(allows(&rules, "GET", &get("github.com/acme/web", "receive")));
        for (refs, is_allowed) in [
            (&["refs/heads/agent/x"][..], true),
            (&["refs/heads/agent/x", "refs/tags/v1"], true),
            (&[], true),
            (&["refs/heads/main"], false),
            (&["refs/heads/agent/x", "refs/heads/main"], false),
            (&["refs/heads/Agent/x"], false),
        ] {
            assert_eq!(push(url, &commands(refs)).is_allowed(&rules), is_allowed, "{refs:?}");
        }
        let refusal = push(url, &commands(&["refs/heads/main"])).of(&rules).unwrap_err();
        assert_eq!(refusal.hint, "git push github.com/acme/web refs/heads/main");
        assert!(!push("github.com/acme/other/git-receive-pack", "0000").is_allowed(&rules));
    }

    #[test]
    fn a_body_of_another_type_is_no_push() {
        let rules = rules(&["git push github.com/acme/web refs/heads/agent/**"], &[]);
        let body = commands(&["refs/heads/agent/x"]);
        let ask = push("github.com/acme/web/git-receive-pack", &body);
        for content_type in [None, Some("text/plain"), Some("application/json")] {
            assert!(!Ask { content_type, ..ask }.is_allowed(&rules), "{content_type:?}");
        }
    }

    #[test]
    fn a_denied_ref_is_denied_under_any_other_rule() {
        for allow in ["ANY github.com/**", "github.com", "git push github.com/acme/*"] {
            let rules = rules(&[allow], &["git push github.com/acme/web refs/heads/main"]);
            let url = "github.com/ACME/web/git-receive-pack";
            assert!(push(url, &commands(&["refs/heads/x"])).is_allowed(&rules), "{allow}");
            assert!(!push(url, &commands(&["refs/heads/x", "refs/heads/main"])).is_allowed(&rules));
            assert!(!push(url, "garbage").is_allowed(&rules));
        }
    }

    #[test]
    fn a_denied_push_leaves_the_fetch() {
        let rules = rules(&["github.com"], &["git push github.com/acme/*"]);
        assert!(allows(&rules, "GET", &get("github.com/acme/web", "upload")));
        assert!(!allows(&rules, "GET", &get("github.com/acme/web", "receive")));
        assert!(!allows(
            &rules,
            "GET",
            "github.com/acme/web/info/refs?service=git-upload-pack&service=git-receive-pack"
        ));
        assert!(!allows(&rules, "POST", "github.com/acme/web.git/git-receive-pack"));
        assert_eq!(endpoint(&rules, "github.com"), Some(Kind::Http));
    }

    #[test]
    fn objects_of_lfs_go_the_way_that_the_rule_says() {
        let batch = |operation: &str| format!("{{\"operation\":\"{operation}\",\"objects\":[]}}");
        let ask = |rules: &Rules, operation: &str| {
            let body = batch(operation);
            let ask = Ask::json("github.com/acme/web.git/info/lfs/objects/batch", &body);
            Ask { content_type: Some("application/vnd.git-lfs+json"), ..ask }.is_allowed(rules)
        };
        let fetch = rules(&["git fetch github.com/acme/web"], &[]);
        assert!(ask(&fetch, "download") && !ask(&fetch, "upload") && !ask(&fetch, "verify"));
        let push = rules(&["git push github.com/acme/web"], &[]);
        assert!(ask(&push, "download") && ask(&push, "upload"));
        let denied = rules(&["github.com"], &["git push github.com/acme/web"]);
        assert!(ask(&denied, "download") && !ask(&denied, "upload"));

        let object = format!("github.com/acme/web.git/info/lfs/objects/{}", "0a".repeat(32));
        assert!(allows(&fetch, "GET", &object) && !allows(&fetch, "PUT", &object));
        assert!(allows(&push, "PUT", &object) && !allows(&push, "DELETE", &object));
        assert!(!allows(&fetch, "GET", &format!("{object}/verify")));
    }
}

mod graphql {
    use super::*;

    const URL: &str = "api.github.com/graphql";

    fn asks(rules: &Rules, document: &str) -> bool {
        Ask::json(URL, &format!("{{\"query\":{document:?}}}")).is_allowed(rules)
    }

    #[test]
    fn every_field_of_every_operation_must_be_allowed() {
        let rules = rules(
            &["graphql api.github.com query", "graphql api.github.com mutation createIssue add*"],
            &[],
        );
        assert!(asks(&rules, "{ viewer { login } }"));
        assert!(asks(
            &rules,
            "mutation { createIssue(input: {}) { x } addComment { x } __typename }"
        ));
        assert!(!asks(&rules, "mutation { createIssue { x } deleteRef { x } }"));
        assert!(!asks(&rules, "mutation { createIssue: deleteRef { x } }"));
        assert!(!asks(&rules, "query { a } mutation { deleteRef { x } }"));
        assert!(!asks(&rules, "mutation { ...F } fragment F on Mutation { deleteRef { x } }"));
        assert!(!asks(&rules, "subscription { a }"));
        let batch = r#"[{"query":"{ a }"},{"query":"mutation { deleteRef { x } }"}]"#;
        let refusal = Ask::json(URL, batch).of(&rules).unwrap_err();
        assert_eq!(refusal.hint, "graphql api.github.com mutation deleteRef");
        assert!(!allows(&rules, "GET", "api.github.com/graphql"));
        assert!(!Ask::json("api.github.com/repos", "{\"query\":\"{ a }\"}").is_allowed(&rules));
    }

    #[test]
    fn a_body_is_what_its_type_says_and_the_query_says_nothing() {
        let rules = rules(&["graphql api.github.com query"], &[]);
        let ask = Ask::json(URL, "{\"query\":\"{ a }\"}");
        assert!(
            Ask { content_type: Some("Application/JSON; charset=UTF-8"), ..ask }.is_allowed(&rules)
        );
        for content_type in [
            None,
            Some("application/x-www-form-urlencoded"),
            Some("multipart/form-data; boundary=x"),
            Some("application/json; charset=utf-16"),
            Some("application/json, text/plain"),
            Some("text/plain"),
            Some("application/graphql"),
        ] {
            assert!(!Ask { content_type, ..ask }.is_allowed(&rules), "{content_type:?}");
        }
        let raw = Ask { content_type: Some("application/graphql"), body: Some(b"{ a }"), ..ask };
        assert!(raw.is_allowed(&rules));
        assert!(!Ask { body: Some(b"mutation { a }"), ..raw }.is_allowed(&rules));
        let url = "api.github.com/graphql?query=mutation%7Ba%7D";
        assert!(!Ask { url, ..ask }.is_allowed(&rules));
    }

    #[test]
    fn a_query_of_the_address_is_judged() {
        let rules = rules(&["graphql api.github.com query a"], &[]);
        assert!(allows(&rules, "GET", "api.github.com/graphql?query=%7Ba%7D"));
        assert!(!allows(&rules, "GET", "api.github.com/graphql?query=%7Bb%7D"));
        assert!(!allows(&rules, "GET", "api.github.com/graphql?query=%7Ba%7D&query=%7Bb%7D"));
        assert!(!allows(
            &rules,
            "GET",
            "api.github.com/graphql?extensions=%7B%22persistedQuery%22%3A%7B%7D%7D"
        ));
    }

    #[test]
    fn a_denied_field_is_denied_under_any_other_rule() {
        for allow in ["api.github.com", "ANY api.github.com/**", "graphql api.github.com mutation"]
        {
            let rules = rules(&[allow], &["graphql api.github.com mutation delete*"]);
            assert!(asks(&rules, "mutation { createIssue { x } }"), "{allow}");
            assert!(!asks(&rules, "mutation { a: DeleteRef { x } }"));
            assert!(!asks(&rules, "mutation { createIssue { x } deleteRef { x } }"));
            let form = Ask::json(URL, "query=mutation{deleteRef{x}}");
            assert!(
                !Ask { content_type: Some("application/x-www-form-urlencoded"), ..form }
                    .is_allowed(&rules)
            );
            assert!(!allows(&rules, "GET", "api.github.com/graphql?query=mutation%7BdeleteRef%7D"));
        }
    }

    #[test]
    fn a_body_that_is_too_long_is_refused_and_not_cut() {
        let rules = rules(&["graphql api.github.com query"], &[]);
        let host = Authority::parse("api.github.com", 443).unwrap().host;
        let (path, query) =
            (Path::parse("/graphql", Leniency::default()).unwrap(), Query::default());
        let request = Request {
            host: &host,
            port: 443,
            method: "POST",
            path: &path,
            query: &query,
            websocket: false,
            grpc: false,
            content_type: Some("application/json"),
        };
        let Verdict::Body(rule) = rules.request(&request) else { panic!("it depends on the body") };
        let mut body = b"{\"query\":\"{ a }\",\"variables\":{\"x\":\"".to_vec();
        assert!(rule.judge(&body, false).is_none());
        body.resize(rule.most(), b'x');
        assert!(matches!(rule.judge(&body, false), Some(Verdict::Deny(_))));
        body.extend(b"\"}}");
        assert!(matches!(rule.judge(&body, true), Some(Verdict::Deny(_))));
    }
}

mod mcp {
    use super::*;

    fn call(tool: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{tool}"}}}}"#)
    }

    #[test]
    fn tools_are_allowed_by_name_and_the_rest_of_the_protocol_with_them() {
        let rules = rules(&["mcp a.com/mcp search get_*"], &[]);
        let asks = |body: &str| Ask::json("a.com/mcp", body).is_allowed(&rules);
        assert!(asks(&call("search")) && asks(&call("get_x")));
        assert!(!asks(&call("delete")) && !asks(&call("Search")));
        assert!(!asks(&format!("[{},{}]", call("search"), call("delete"))));
        assert!(asks(r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#));
        assert!(!asks(r#"{"jsonrpc":"2.0","id":1,"method":"admin/reset"}"#));
        assert!(allows(&rules, "GET", "a.com/mcp") && allows(&rules, "DELETE", "a.com/mcp"));
        assert!(!Ask::json("a.com/other", &call("search")).is_allowed(&rules));
        let refusal = Ask::json("a.com/mcp", &call("delete")).of(&rules).unwrap_err();
        assert_eq!(refusal.hint, "mcp a.com/mcp delete");
    }

    #[test]
    fn a_denied_tool_is_denied_under_any_other_rule() {
        for allow in ["a.com", "ANY a.com/**", "mcp a.com/mcp"] {
            let rules = rules(&[allow], &["mcp a.com/mcp delete_*"]);
            let asks = |body: &str| Ask::json("a.com/mcp", body).is_allowed(&rules);
            assert!(asks(&call("search")), "{allow}");
            assert!(!asks(&call("delete_all")) && !asks(&call("DELETE_ALL")));
            assert!(!asks("{}") && !asks("garbage"));
        }
    }
}

#[test]
fn grpc_is_a_post_to_a_service_and_a_method() {
    let rules = rules(&["grpc a.com pkg.Svc/Get*", "grpc b.com"], &[]);
    let asks = |url| Ask { grpc: true, ..Ask::new("POST", url) }.is_allowed(&rules);
    assert!(asks("a.com/pkg.Svc/GetX") && asks("b.com/any.Svc/Any"));
    assert!(!asks("a.com/pkg.Svc/Set") && !asks("a.com/pkg.Other/GetX") && !asks("b.com/x"));
    assert!(!allows(&rules, "POST", "a.com/pkg.Svc/GetX"));
}

mod fetch {
    use rules::{Registry, RegistryKind};

    use super::*;

    fn fetch(registries: &[(RegistryKind, &str)]) -> Rules {
        let registries: Vec<Registry> =
            registries.iter().map(|(kind, url)| Registry::parse(*kind, url).unwrap()).collect();
        Rules::new(Mode::Fetch, vec![Layer::fetch(&registries)], vec![]).unwrap()
    }

    #[test]
    fn registries_are_read_and_not_written() {
        let rules = fetch(&[
            (RegistryKind::Npm, "https://npm.example.com/mirror/"),
            (RegistryKind::Apt, "http://deb.example.com/debian"),
        ]);
        assert!(
            allows(&rules, "GET", "npm.example.com/@scope%2Fname")
                && allows(&rules, "HEAD", "npm.example.com/x/-/x.tgz")
        );
        assert!(
            !allows(&rules, "PUT", "npm.example.com/x")
                && !allows(&rules, "POST", "npm.example.com/-/npm/v1/security/advisories")
        );
        assert!(
            allows(&rules, "GET", "deb.example.com:80/debian/dists")
                && !allows(&rules, "GET", "deb.example.com/debian")
        );
        let npm = Authority::parse("npm.example.com", 443).unwrap();
        let endpoint = rules.endpoint(&npm.host, 443).unwrap();
        assert!(endpoint.leniency.encoded_separators && endpoint.kind == Kind::Http);
    }

    #[test]
    fn public_forges_and_those_of_the_user_are_fetched_from_and_no_more() {
        let rules = fetch(&[
            (RegistryKind::Git, "https://git.example.com"),
            (RegistryKind::Cargo, "https://github.com/acme/index"),
        ]);
        for host in ["github.com", "gitlab.com", "bitbucket.org", "codeberg.org", "git.example.com"]
        {
            assert!(allows(
                &rules,
                "GET",
                &format!("{host}/a/b.git/info/refs?service=git-upload-pack")
            ));
            assert!(allows(&rules, "POST", &format!("{host}/a/b/c/git-upload-pack")));
            assert!(!allows(&rules, "POST", &format!("{host}/a/b/git-receive-pack")));
            assert!(!allows(
                &rules,
                "GET",
                &format!("{host}/a/b/info/refs?service=git-receive-pack")
            ));
            assert!(!allows(&rules, "GET", &format!("{host}/a/b")));
        }
        assert!(allows(&rules, "GET", "github.com/acme/index/config.json"));
    }

    #[test]
    fn an_address_with_a_user_is_no_registry() {
        for url in [
            "https://user:word@npm.example.com/",
            "ftp://a.com",
            "https://",
            "https://a.com/../x",
            "a.com",
        ] {
            assert!(Registry::parse(RegistryKind::Npm, url).is_err(), "{url}");
        }
        let registry = Registry::parse(RegistryKind::Pip, "https://a.com:8443/simple/").unwrap();
        assert_eq!((registry.port, registry.path.as_str()), (8443, "/simple"));
    }
}
