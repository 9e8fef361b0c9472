//! Lines and files that are wrong: what is said about them, and where.

use rules::{Layer, Line};
use services::Service;

fn wrong(text: &str) -> String {
    Line::parse(text).expect_err(text)
}

#[test]
fn a_mistake_is_told_with_what_to_write() {
    for (text, said) in [
        ("", "the rule is empty"),
        ("reed api.github.com", "did you mean \"READ\"?"),
        ("get api.github.com", "did you mean \"GET\"?"),
        ("GET|POST api.github.com", "write `,` between verbs"),
        ("READ", "READ example.com/path/**"),
        ("gti fetch github.com/a/b", "did you mean \"git\"?"),
        ("git clone github.com/a/b", "git clone is: git fetch"),
        ("git pish github.com/a/b", "did you mean \"push\"?"),
        ("git fetch", "a repository is missing"),
        ("git fetch github.com/a/b refs/heads/x", "refs are for git push"),
        ("git push github.com/a/b main", "refs/heads/main"),
        ("git push github.com/a/b refs/heads/a..b", "is not the name of a ref"),
        ("graphql a.com mutate x", "did you mean \"mutation\"?"),
        ("graphql a.com query mutation", "one rule for each kind"),
        ("mcp a.com tool", "the path of the MCP server is missing"),
        ("tcp a.com", "a port is missing"),
        ("tcp a.com:22/x", "looks at no path"),
        ("grpc a.com /pkg.Svc/Method", "a method is its service and its name"),
        ("https://a.com/x", "leave out https://"),
        ("READ https://a.com/x", "leave out https://"),
        ("READ /x", "a host is missing"),
        ("READ A.com", "write the host as a.com"),
        ("READ a.com.", "write the host as a.com"),
        ("READ *.A.com", "write the host as *.a.com"),
        ("READ bücher.example", "xn--"),
        ("READ a**.com", "**.example.com"),
        ("READ 10.0.0.*", "10.0.0.0/8"),
        ("READ 10.0.0.1/8", "write the network as 10.0.0.0/8"),
        ("[fd00::]/8:22", "write the network as [fd00::/8]"),
        ("tcp [::ffff:10.1.1.1]:22", "write the address as 10.1.1.1"),
        ("tcp [::ffff:10.0.0.0/104]:22", "write the network as 10.0.0.0/8"),
        ("READ 10.0.0.0/33", "0 to 32"),
        ("READ 2130706433", "ends in a number"),
        ("READ a.com:0443", "the port is not a number"),
        ("READ a.com:*", "the port is not a number"),
        ("READ a.com/x/../y", "`.` or `..`"),
        ("READ a.com/{owner}/x", "not braces"),
        ("READ a.com/%7euser", "write the path as /~user"),
        ("READ a.com//x", "empty segment"),
        ("READ a.com/a**", "/a/**"),
        ("READ a.com/x?y", "key=value"),
        ("READ a.com/x?k*=y", "a key has no `*`"),
        ("READ a.com/x?k=1&k=2", "there twice"),
        ("READ a.com/x y", "is left over"),
        ("READ a.com\u{7}", "control character"),
        ("READ user@a.com", "a character that is not"),
    ] {
        let message = wrong(text);
        assert!(message.contains(said), "{text:?}: {message}");
    }
}

#[test]
fn a_line_has_one_form() {
    for (text, shown) in [
        ("GET,HEAD a.com/x", "READ a.com/x"),
        ("HEAD,GET,POST a.com", "GET,HEAD,POST a.com"),
        ("a.com/x", "ANY a.com/x"),
        ("  a.com:80 ", "a.com:80"),
        ("git fetch github.com/acme/web.git", "git fetch github.com/acme/web"),
        ("graphql a.com/graphql query", "graphql a.com query"),
        ("grpc a.com", "grpc a.com */*"),
        ("10.1.1.1/32:22", "10.1.1.1:22"),
        ("[fd00::/8]:22", "[fd00::/8]:22"),
    ] {
        assert_eq!(Line::parse(text).unwrap().to_string(), shown, "{text}");
    }
    assert_eq!(Line::parse("tcp [fd00::/8]:22").unwrap().to_string(), "tcp [fd00::/8]:22");
}

fn file(text: &str) -> String {
    Layer::from_toml("rules.toml", text, &[service()]).expect_err(text).to_string()
}

fn service() -> Service {
    services::Catalogue::built_in().sample("github").unwrap().clone()
}

#[test]
fn a_mistake_in_a_file_has_a_place() {
    for (text, said) in [
        (
            "allow = [\n  \"READ a.com\",\n  \"reed a.com\",\n]",
            "rules.toml:3:4: there is no verb \"reed\"; did you mean \"READ\"?",
        ),
        ("allow = [\"READ a.com/x/../y\"]", "rules.toml:1:21: the path has a segment"),
        ("alow = []", "rules.toml:1:1: there is no key \"alow\"; did you mean \"allow\"?"),
        ("allow = \"a.com\"", "rules.toml:1:9: allow is a string; write a list of rules"),
        ("deny = [1]", "rules.toml:1:9: deny is a number; write a rule"),
        ("deny = [\"tunnel a.com\"]", "rules.toml:1:10: to deny a host, write it alone"),
        (
            "[services.gihtub]\naccess = \"full\"",
            "rules.toml:1:11: there is no service \"gihtub\"; did you mean \"github\"?",
        ),
        (
            "[services.github]\naccess = \"ful\"",
            "rules.toml:2:10: there is no access \"ful\"; did you mean \"full\"?",
        ),
        (
            "[services.github]\nalow = []",
            "rules.toml:2:1: there is no key \"alow\"; did you mean \"allow\"?",
        ),
        (
            "[services.github]\nallow = [\"READ example.com/x\"]",
            "rules.toml:2:16: example.com is not a host of the service github",
        ),
        ("[services.github]\nallow = [\"tcp github.com:22\"]", "among the rules that name hosts"),
        ("allow = [", "rules.toml:1:10: this is not TOML"),
    ] {
        let message = file(text);
        assert!(message.contains(said), "{text:?}: {message}");
    }
    let long = format!("# {}\n", "x".repeat(Layer::MAX_TEXT));
    assert!(file(&long).contains("longer than"));
    let many = format!("allow = [{}]", "\"a.com\",".repeat(Layer::MAX_RULES + 1));
    assert!(file(&many).contains("more than 2000 rules"));
}

#[test]
fn a_mistake_on_the_command_line_shows_the_line() {
    let error =
        Layer::from_lines("--allow", &["READ a.com", "reed a.com"], &[] as &[&str]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "--allow \"reed a.com\": there is no verb \"reed\"; did you mean \"READ\"?"
    );
}
