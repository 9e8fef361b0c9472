//! A decision about a request that needs no body is made without memory of its own.

use canonical::{Host, Leniency, Path, Query};
use rules::{Layer, Mode, Request, Rules, Verdict};

#[test]
fn a_request_is_allowed_without_an_allocation() {
    let allow = [
        "READ *.example.com/a/*/c?k=v*",
        "git fetch github.com/acme/*",
        "ANY **/x/**/z",
        "10.0.0.0/8",
    ];
    let deny =
        ["ANY *.example.com/secret/**", "git push github.com", "graphql example.com mutation x"];
    let layer = Layer::from_lines("--allow", &allow, &deny).unwrap();
    let bound = Layer::from_lines("policy.toml", &["**", "10.0.0.0/8"], &[] as &[&str]).unwrap();
    let rules = Rules::new(Mode::Allow, vec![layer], vec![bound]).unwrap();
    for (host, path, query) in [
        ("www.example.com", "/a/b/c", "k=v1&x=y"),
        ("github.com", "/acme/web.git/info/refs", "service=git-upload-pack"),
        ("a.b.c.d.e.f.g.h.i", "/x/y/y/z/", ""),
        ("10.1.2.3", "/", ""),
    ] {
        let (host, path) =
            (Host::parse(host).unwrap(), Path::parse(path, Leniency::default()).unwrap());
        let query = Query::parse(query).unwrap();
        let request = Request {
            host: &host,
            port: 443,
            method: "GET",
            path: &path,
            query: &query,
            websocket: false,
            grpc: false,
            content_type: None,
        };
        let expected = !path.as_str().ends_with('/') || host.name().is_none();
        let mut is_allowed = false;
        let counted = allocation_counter::measure(|| {
            is_allowed = matches!(rules.request(&request), Verdict::Allow(_));
        });
        assert_eq!(is_allowed, expected, "{host}{path}");
        assert!(counted.count_total == 0 || !is_allowed, "{host}{path}: {counted:?}");
    }
}
