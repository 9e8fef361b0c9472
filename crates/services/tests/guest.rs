//! What a guest gets of a service: placeholders and variables.

use std::collections::BTreeMap;

use proptest::prelude::*;
use services::{Catalogue, Charset, Given, Shape, environment};

fn variables(list: Vec<(String, String)>) -> BTreeMap<String, String> {
    let count = list.len();
    let map: BTreeMap<_, _> = list.into_iter().collect();
    assert_eq!(map.len(), count, "no variable is there twice");
    map
}

#[test]
fn a_service_gives_its_variables_the_placeholder() {
    let catalogue = Catalogue::built_in();
    let anthropic = catalogue.get("anthropic").unwrap();
    let of = variables(anthropic.environment("sk-ant-api03-xyz", None));
    assert_eq!(of["ANTHROPIC_API_KEY"], "sk-ant-api03-xyz");
    assert!(!of.contains_key("ANTHROPIC_BASE_URL"));
}

#[test]
fn clients_are_sent_to_the_gateway_only_when_there_is_one() {
    let openai = Catalogue::built_in().get("openai").unwrap();
    let of =
        variables(openai.environment("sk-x", Some("http://169.254.169.254:8586/proxy/openai")));
    assert_eq!(of["OPENAI_BASE_URL"], "http://169.254.169.254:8586/proxy/openai/v1");
}

#[test]
fn git_logs_in_from_the_beginning_and_at_its_hosts_only() {
    let github = Catalogue::built_in().get("github").unwrap();
    let of = variables(github.environment("ghp_abc", None));
    assert_eq!((of["GH_TOKEN"].as_str(), of["GITHUB_TOKEN"].as_str()), ("ghp_abc", "ghp_abc"));
    assert_eq!(of["GIT_CONFIG_COUNT"], "3");
    assert_eq!(of["GIT_CONFIG_KEY_0"], "http.https://github.com/.extraHeader");
    // x-access-token:ghp_abc
    assert_eq!(of["GIT_CONFIG_VALUE_0"], "Authorization: Basic eC1hY2Nlc3MtdG9rZW46Z2hwX2FiYw==");
    assert_eq!(of["GIT_CONFIG_KEY_1"], "url.https://github.com/.insteadOf");
    assert_eq!(of["GIT_CONFIG_VALUE_1"], "git@github.com:");
    assert_eq!(of["GIT_CONFIG_VALUE_2"], "ssh://git@github.com/");
}

#[test]
fn a_placeholder_has_the_shape_that_the_service_says() {
    let catalogue = Catalogue::built_in();
    let placeholder = catalogue.get("github").unwrap().placeholder(Some(93), &[7; 32]);
    assert!(placeholder.starts_with("ghp_"));
    assert_eq!(placeholder.len(), 40);
}

#[test]
fn settings_of_git_are_numbered_through_all_services() {
    let catalogue = Catalogue::built_in();
    let github = catalogue.get("github").unwrap();
    let openai = catalogue.get("openai").unwrap();
    let given = [
        Given { service: &openai, placeholder: "sk-x", gateway: None },
        Given { service: &github, placeholder: "ghp_x", gateway: None },
        Given { service: &github, placeholder: "ghp_y", gateway: None },
    ];
    let of = variables(environment(&given));
    assert_eq!(of["GIT_CONFIG_COUNT"], "6");
    assert!(of.contains_key("GIT_CONFIG_KEY_5") && of.contains_key("OPENAI_API_KEY"));
    assert_eq!(of["GH_TOKEN"], "ghp_x", "the first wins");
}

proptest! {
    #[test]
    fn a_placeholder_is_as_long_as_the_secret_and_of_its_characters(
        prefix in "[a-z]{0,8}[_-]?",
        charset in prop::sample::select(vec![
            Charset::Hex, Charset::Alphanumeric, Charset::Base64Url, Charset::Base32,
        ]),
        length in 0_usize..200,
        random in any::<[u8; 32]>(),
        other in any::<[u8; 32]>(),
    ) {
        let shape = Shape { prefix: prefix.clone(), charset, length: None };
        let placeholder = shape.placeholder(Some(length), &random);
        let rest = placeholder.strip_prefix(&prefix).unwrap();
        prop_assert!(rest.bytes().all(|byte| charset.characters().contains(&byte)));
        let bits = f64::from(u32::try_from(charset.characters().len()).unwrap()).log2();
        prop_assert!(f64::from(u32::try_from(rest.len()).unwrap()) * bits >= 96.0);
        // The shortest that cannot be guessed is longer than a short secret.
        prop_assert!(placeholder.len() == length || (placeholder.len() > length && rest.len() <= 24));
        prop_assert_eq!(&shape.placeholder(Some(length), &random), &placeholder);
        prop_assert!(random == other || shape.placeholder(Some(length), &other) != placeholder);
    }

    #[test]
    fn every_character_of_a_placeholder_comes_up(random in any::<[u8; 32]>()) {
        let shape = Shape { prefix: String::new(), charset: Charset::Base64Url, length: Some(4096) };
        let placeholder = shape.placeholder(None, &random);
        for character in Charset::Base64Url.characters() {
            // 64 are expected; 20 or fewer is likelier to be a mistake than an accident.
            prop_assert!(placeholder.bytes().filter(|byte| byte == character).count() > 20);
        }
    }
}
