//! Service files: what they may say, and how mistakes are told.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use proptest::prelude::*;
use services::{Catalogue, Charset, Fault, Service, Shape, Slot, Unusable};

const GOOD: &str = r#"
name = "shop"
env = ["SHOP_KEY"]
placeholder = { prefix = "shop_", charset = "hex", length = 40 }
inject_hosts = ["api.shop.example"]
slots = [{ header = "x-shop-key" }]
"#;

static BUILT_IN: LazyLock<Catalogue> = LazyLock::new(Catalogue::built_in);

fn load(text: &str) -> Result<Catalogue, String> {
    BUILT_IN.clone().with_file("shop.toml", text).map_err(|error| error.to_string())
}

/// `GOOD` with a line in place of the one that begins alike.
fn with(line: &str) -> Result<Catalogue, String> {
    let key = line.split(' ').next().unwrap();
    let mut lines: Vec<&str> = GOOD.lines().filter(|one| !one.starts_with(key)).collect();
    lines.push(line);
    load(&lines.join("\n"))
}

fn mistake(line: &str) -> String {
    with(line).unwrap_err()
}

#[test]
fn a_service_of_ones_own_stands_beside_the_built_in_ones() {
    let catalogue = load(GOOD).unwrap();
    let shop = catalogue.get("shop").unwrap();
    assert_eq!(shop.inject_hosts[0].to_string(), "api.shop.example:443");
    assert_eq!(shop.slots, [Slot::Header { name: "x-shop-key".into(), scheme: None }]);
    assert_eq!(catalogue.by_env("SHOP_KEY"), Some("shop"));
    assert_eq!(catalogue.source("shop"), Ok("shop.toml"));
    assert!(!shop.foreign_credentials);
    assert!(catalogue.get("github").is_ok());
}

#[test]
fn a_file_of_the_same_name_replaces_the_built_in_service() {
    let catalogue = load(&GOOD.replace("\"shop\"", "\"openai\"")).unwrap();
    assert_eq!(catalogue.get("openai").unwrap().env, ["SHOP_KEY"]);
    assert_eq!(catalogue.by_env("OPENAI_API_KEY"), None);
}

#[test]
fn a_mistake_is_told_with_its_place_and_what_to_write() {
    assert_eq!(
        mistake("inject_host = [\"a.example\"]"),
        "shop.toml:6:1: there is no key \"inject_host\" here; did you mean \"inject_hosts\"?"
    );
    assert_eq!(
        mistake("env = \"SHOP_KEY\""),
        "shop.toml:6:7: env is a string; write a list, in brackets"
    );
    assert_eq!(
        mistake("slots = [{ header = \"a\" }, { heade = \"b\" }]"),
        "shop.toml:6:30: there is no key \"heade\" here; did you mean \"header\"?"
    );
    assert_eq!(
        mistake("placeholder = { charset = \"base64\" }"),
        "shop.toml:6:27: charset: \"base64\" is none of \"alphanumeric\", \"base32\", \"base64url\" and \"hex\""
    );
    assert!(load("name = \"shop\n").unwrap_err().starts_with("shop.toml:1:"));
    assert!(load("name = \"shop\"").unwrap_err().contains("slots is missing; write where"));
}

#[test]
fn a_host_is_one_host_over_tls_in_its_plain_form() {
    for (host, part) in [
        ("*.openai.azure.com", "has a wildcard"),
        ("API.shop.example", "write \"api.shop.example\" for"),
        ("api.shop.example:443", "write \"api.shop.example\" for"),
        ("api.shop.example.", "write \"api.shop.example\" for"),
        ("api.shop.example:80", "never goes over cleartext"),
        ("https://api.shop.example", "is not a number"),
        ("127.1", "ends in a number"),
        ("{tenant}.shop.example", "add [parameters.tenant]"),
    ] {
        let error = mistake(&format!("inject_hosts = [{host:?}]"));
        assert!(error.contains(part), "{error}");
        assert!(error.starts_with("shop.toml:6:17: inject_hosts: "), "{error}");
    }
}

#[test]
fn a_credential_needs_a_place() {
    assert!(mistake("slots = []").contains("would be put nowhere"));
    assert!(mistake("slots = [{}]").contains("has one of: header, basic"));
    assert!(mistake("slots = [{ header = \"Authorization\" }]").contains("in lower case"));
    assert!(mistake("slots = [{ header = \"host\" }]").contains("can hold a credential"));
    assert!(
        mistake("slots = [{ header = \"authorization\", scheme = \"Basic\" }]")
            .contains("{ basic = ")
    );
    assert!(
        mistake("slots = [{ header = \"a\" }, { header = \"a\", scheme = \"B\" }]")
            .contains("twice")
    );
    assert!(mistake("slots = [{ basic = \"a:b\" }]").contains("not one user's name"));
}

#[test]
fn a_placeholder_cannot_be_guessed_and_needs_no_quoting() {
    let error = mistake("placeholder = { prefix = \"shop_\", charset = \"hex\", length = 28 }");
    assert!(error.contains("has to be 29 at least"), "{error}");
    assert!(with("placeholder = { prefix = \"shop_\", charset = \"hex\", length = 29 }").is_ok());
    for prefix in ["a b", "a%", "{x}", "a:b", "a/b"] {
        assert!(mistake(&format!("placeholder = {{ prefix = {prefix:?} }}")).contains("prefix"));
    }
}

#[test]
fn two_services_at_one_host_are_told_apart_by_place_or_by_beginning() {
    let github = "inject_hosts = [\"api.github.com\"]";
    assert!(with(github).is_ok());
    let same = GOOD.replace("api.shop.example", "api.github.com").replace(
        "{ header = \"x-shop-key\" }",
        "{ header = \"authorization\", scheme = \"bearer\" }",
    );
    assert!(load(&same).is_ok());
    let error = load(&same.replace("\"shop_\"", "\"gh\"")).unwrap_err();
    assert!(error.contains("api.github.com:443 has two services with one place"), "{error}");
    assert!(error.starts_with("shop.toml:6:9: "), "{error}");
}

#[test]
fn a_variable_belongs_to_one_service() {
    let error = mistake("env = [\"SHOP_KEY\", \"GH_TOKEN\"]");
    assert!(error.contains("GH_TOKEN belongs to github already"), "{error}");
}

#[test]
fn what_differs_from_user_to_user_is_asked_for() {
    let text = format!(
        "{}\n[parameters.tenant]\nabout = \"your shop's name\"\nkind = \"label\"\n",
        GOOD.replace("api.shop", "{tenant}.shop")
    );
    let catalogue = load(&text).unwrap();
    let given = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    assert_eq!(
        catalogue.get("shop").unwrap_err().to_string(),
        "shop needs tenant: your shop's name; give it as tenant=VALUE"
    );
    let service = catalogue.get_with("shop", &given("tenant", "acme")).unwrap();
    assert_eq!(service.inject_hosts[0].to_string(), "acme.shop.example:443");
    for value in ["a.b", "*", "", "Acme", "evil.example/", "x\n"] {
        let error = catalogue.get_with("shop", &given("tenant", value)).unwrap_err();
        assert!(error.to_string().contains("not one part of a host's name"), "{error}");
    }
    let error = catalogue.get_with("shop", &given("tenent", "x")).unwrap_err();
    assert!(error.to_string().ends_with("did you mean \"tenant\"?"), "{error}");
    assert!(catalogue.by_env("SHOP_KEY").is_some());
}

#[test]
fn an_unknown_name_comes_with_the_nearest() {
    let error = Catalogue::built_in().get("gitub").unwrap_err();
    assert!(matches!(error, Unusable::Unknown { .. }));
    assert!(error.to_string().contains("did you mean \"github\"?"), "{error}");
}

#[test]
fn a_custom_service_is_held_to_the_same() {
    let custom = |host: &str, slots| {
        let shape = Shape { prefix: String::new(), charset: Charset::Alphanumeric, length: None };
        Service::custom("mine", &[host.to_owned()], &["MINE".to_owned()], slots, shape)
    };
    let slot = Slot::Header { name: "x-key".into(), scheme: None };
    let service = custom("mine.example:8443", vec![slot.clone()]).unwrap();
    assert_eq!(service.inject_hosts[0].port, 8443);
    assert!(matches!(custom("*.example", vec![slot]), Err(Fault::Value { .. })));
    assert!(matches!(custom("mine.example", vec![]), Err(Fault::Value { .. })));
}

proptest! {
    #[test]
    fn no_text_breaks_the_parser(text in "\\PC{0,200}", line in "[a-z_]{1,12} = [\\[{\"]{0,2}[a-z.*{}\"=, ]{0,40}") {
        let _ = load(&text);
        let _ = load(&format!("{GOOD}\n{line}"));
    }

    #[test]
    fn a_mistake_in_any_line_has_that_line(line in 0_usize..5, junk in "[#-&(-~]{1,5}") {
        let mut lines: Vec<String> = GOOD.trim().lines().map(str::to_owned).collect();
        lines[line].push_str(&junk);
        if let Err(error) = load(&lines.join("\n")) {
            let place = format!("shop.toml:{}:", line + 1);
            // What is cut off is a comment or a list of its own, which goes on below.
            prop_assert!(error.starts_with(&place) || error.contains("TOML") || error.contains("missing"), "{}", error);
        }
    }
}
