//! Rules of services: whose credential a request may carry, and what the catalogue denies.

use canonical::{Authority, Leniency, Path, Query};
use rules::{Access, Kind, Layer, Mode, Request, Rules, Verdict};
use services::{Catalogue, Service};

const NONE: &[&str] = &[];

fn service(name: &str) -> Service {
    Catalogue::built_in().sample(name).unwrap().clone()
}

fn lines(allow: &[&str]) -> Access {
    let owned = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
    Access::Lines { allow: owned(allow), deny: Vec::new() }
}

fn of_service(name: &str, access: &Access) -> Rules {
    Rules::new(Mode::Allow, vec![Layer::service(&service(name), access).unwrap()], vec![]).unwrap()
}

/// Whether a request is allowed, and whether it may carry the credential of a service.
fn asks(rules: &Rules, service: &str, method: &str, url: &str, body: &str) -> Option<bool> {
    let (authority, target) = url.split_at(url.find('/').unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let authority = Authority::parse(authority, 443).unwrap();
    let path = Path::parse(path, Leniency::default()).unwrap();
    let query = Query::parse(query).unwrap();
    let request = Request {
        host: &authority.host,
        port: authority.port,
        method,
        path: &path,
        query: &query,
        websocket: false,
        grpc: false,
        content_type: Some("application/json"),
    };
    let verdict = match rules.request(&request) {
        Verdict::Body(rule) => rule.judge(body.as_bytes(), true).unwrap(),
        verdict => verdict,
    };
    match verdict {
        Verdict::Allow(allowed) => Some(allowed.serves(service)),
        _ => None,
    }
}

fn github(rules: &Rules, method: &str, url: &str) -> Option<bool> {
    asks(rules, "github", method, url, "")
}

#[test]
fn every_line_of_the_catalogue_is_a_rule() {
    let catalogue = Catalogue::built_in();
    for name in catalogue.names() {
        let service = catalogue.sample(name).unwrap();
        for access in [Access::Full, Access::ReadOnly] {
            let layer = Layer::service(service, &access).unwrap_or_else(|error| panic!("{error}"));
            Rules::new(Mode::Allow, vec![layer], vec![]).unwrap();
        }
    }
}

#[test]
fn read_only_reads_and_full_writes_and_both_carry_the_credential() {
    let read = of_service("github", &Access::ReadOnly);
    assert_eq!(github(&read, "GET", "api.github.com/repos/a/b"), Some(true));
    assert_eq!(github(&read, "POST", "api.github.com/repos/a/b/issues"), None);
    let full = of_service("github", &Access::Full);
    assert_eq!(github(&full, "POST", "api.github.com/repos/a/b/issues"), Some(true));
    assert_eq!(
        github(&full, "GET", "github.com/a/b/info/refs?service=git-receive-pack"),
        Some(true)
    );
}

#[test]
fn hosts_that_never_get_the_credential_are_asked_without_it() {
    let read = of_service("github", &Access::ReadOnly);
    assert_eq!(github(&read, "GET", "codeload.github.com/a/b"), Some(false));
    assert_eq!(github(&read, "POST", "codeload.github.com/a/b"), None);
    let some = of_service("github", &lines(&["READ /repos/a/**"]));
    assert_eq!(github(&some, "GET", "codeload.github.com/a/b"), None);
    let named = of_service("github", &lines(&["READ codeload.github.com/a/**"]));
    assert_eq!(github(&named, "GET", "codeload.github.com/a/b"), Some(false));
}

#[test]
fn a_rule_that_names_the_host_allows_and_does_not_serve() {
    let of_host = Layer::from_lines("--allow", &["READ api.github.com/**"], NONE).unwrap();
    let of_service = Layer::service(&service("github"), &lines(&["READ /repos/a/**"])).unwrap();
    let rules = Rules::new(Mode::Allow, vec![of_host, of_service], vec![]).unwrap();
    assert_eq!(github(&rules, "GET", "api.github.com/repos/a/b"), Some(true));
    assert_eq!(github(&rules, "GET", "api.github.com/user"), Some(false));
    assert_eq!(github(&rules, "POST", "api.github.com/repos/a/b"), None);
}

#[test]
fn a_batch_carries_the_credential_only_if_all_of_it_may() {
    let of_host = Layer::from_lines("--allow", &["graphql api.github.com"], NONE).unwrap();
    let of_service = Layer::service(&service("github"), &lines(&["graphql query viewer"])).unwrap();
    let rules = Rules::new(Mode::Allow, vec![of_host, of_service], vec![]).unwrap();
    let of = |document: &str| {
        let body = format!("{{\"query\":{document:?}}}");
        asks(&rules, "github", "POST", "api.github.com/graphql", &body)
    };
    assert_eq!(of("{ viewer { login } }"), Some(true));
    assert_eq!(of("{ viewer { login } repository { id } }"), Some(false));
}

#[test]
fn what_the_catalogue_denies_takes_a_line_that_names_it() {
    let denied = |access: &Access, method: &str, url: &str| {
        github(&of_service("github", access), method, url).is_none()
    };
    let url = "api.github.com/repos/a/b/hooks/1";
    assert!(denied(&Access::Full, "POST", url));
    for line in ["ANY /**", "POST /repos/**", "ANY /repos/a/b/hooks/**", "POST /repos/a/**"] {
        assert!(denied(&lines(&[line]), "POST", url), "{line}");
    }
    for line in ["POST /repos/a/b/hooks/**", "POST,PUT /repos/*/*/hooks/*"] {
        assert!(!denied(&lines(&[line]), "POST", url), "{line}");
    }
    // What is named, and nothing beside it.
    let access = lines(&["POST /repos/a/b/hooks/**", "ANY /repos/**"]);
    assert!(denied(&access, "DELETE", url));
    assert!(denied(&access, "POST", "api.github.com/repos/a/c/hooks/1"));
}

#[test]
fn a_field_that_the_catalogue_denies_takes_a_line_that_names_it() {
    let of = |access: &Access, field: &str| {
        let body = format!("{{\"query\":\"mutation {{ {field} {{ x }} }}\"}}");
        asks(&of_service("github", access), "github", "POST", "api.github.com/graphql", &body)
    };
    assert_eq!(of(&Access::Full, "createIssue"), Some(true));
    assert_eq!(of(&Access::Full, "createRepository"), None);
    assert_eq!(of(&lines(&["graphql mutation"]), "createRepository"), None);
    let named = lines(&["graphql mutation createRepository"]);
    assert_eq!(of(&named, "createRepository"), Some(true));
    assert_eq!(of(&named, "cloneTemplateRepository"), None);
}

#[test]
fn a_host_of_a_service_is_never_a_tunnel() {
    let github = || Layer::service(&service("github"), &Access::ReadOnly).unwrap();
    let host = Layer::from_lines("--allow", &["api.github.com"], NONE).unwrap();
    let rules = Rules::new(Mode::Allow, vec![github(), host], vec![]).unwrap();
    let api = Authority::parse("api.github.com", 443).unwrap();
    assert_eq!(rules.endpoint(&api.host, 443).unwrap().kind, Kind::Http);
    let open = Rules::new(Mode::Open, vec![github()], vec![]).unwrap();
    assert_eq!(open.endpoint(&api.host, 443).unwrap().kind, Kind::Http);
    for line in ["tunnel api.github.com", "tunnel *.github.com"] {
        let tunnel = Layer::from_lines("--allow", &[line], NONE).unwrap();
        let error = Rules::new(Mode::Allow, vec![github(), tunnel], vec![]).unwrap_err();
        assert!(error.to_string().contains("cannot carry the credential of github"), "{error}");
    }
}

#[test]
fn a_section_of_a_bound_is_about_its_service_alone() {
    let own = || {
        let of_host = Layer::from_lines("--allow", &["READ example.com"], NONE).unwrap();
        vec![of_host, Layer::service(&service("github"), &Access::Full).unwrap()]
    };
    let bound = |text: &str| Layer::from_toml("policy.toml", text, &[service("github")]).unwrap();
    let rules = |text: &str| Rules::new(Mode::Allow, own(), vec![bound(text)]).unwrap();
    let narrowed = rules("[services.github]\naccess = \"read-only\"");
    assert_eq!(github(&narrowed, "GET", "api.github.com/repos/a/b"), Some(true));
    assert_eq!(github(&narrowed, "POST", "api.github.com/repos/a/b/issues"), None);
    assert_eq!(github(&narrowed, "GET", "example.com/"), Some(false));
    let listed = rules("allow = []\n[services.github]\naccess = \"full\"");
    assert_eq!(github(&listed, "POST", "api.github.com/repos/a/b/issues"), Some(true));
    assert_eq!(github(&listed, "GET", "example.com/"), None);
    let nothing = rules("[services.github]");
    assert_eq!(github(&nothing, "GET", "api.github.com/repos/a/b"), None);
}

#[test]
fn a_denial_in_a_section_takes_away_what_access_gives() {
    let text = "[services.github]\naccess = \"full\"\ndeny = [\"ANY /repos/acme/private/**\"]";
    let layer = Layer::from_toml("own.toml", text, &[service("github")]).unwrap();
    assert_eq!(layer.services().collect::<Vec<_>>(), ["github"]);
    let rules = Rules::new(Mode::Allow, vec![layer], vec![]).unwrap();
    assert_eq!(github(&rules, "GET", "api.github.com/repos/acme/web"), Some(true));
    assert_eq!(github(&rules, "GET", "api.github.com/repos/acme/private"), None);
}

#[test]
fn a_credential_is_for_exact_hosts() {
    let text = "name = \"mine\"\nenv = [\"MINE\"]\ninject_hosts = [\"*.openai.azure.com\"]\nslots = [{ header = \"api-key\" }]\n";
    assert!(Catalogue::default().with_file("mine.toml", text).is_err());
    assert_eq!(rules::shared_suffix("*.openai.azure.com"), Some("openai.azure.com"));
}

#[test]
fn a_line_for_several_hosts_is_warned_of_when_all_of_it_is_denied() {
    let warned = |deny: &[&str]| {
        let own = Layer::service(&service("github"), &lines(&["READ /repos/a"])).unwrap();
        let deny = Layer::from_lines("--deny", NONE, deny).unwrap();
        Rules::new(Mode::Allow, vec![own, deny], vec![]).unwrap().warnings().len()
    };
    assert_eq!(warned(&["api.github.com"]), 0);
    assert_eq!(warned(&["*.github.com", "github.com"]), 1);
}
