//! The services that come with the program, and the page that lists them.
//!
//! `SANDFORGE_WRITE_DOCS=1 cargo test -p services --test catalogue` writes `docs/services.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use canonical::{Authority, Host};
use services::{Catalogue, Kind, Service, Slot};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/services.md");

fn built_in() -> Vec<(Catalogue, String)> {
    let catalogue = Catalogue::built_in();
    let names: Vec<String> = catalogue.names().map(str::to_owned).collect();
    names.into_iter().map(|name| (catalogue.clone(), name)).collect()
}

#[test]
fn every_file_is_built_in_under_its_name() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("catalogue");
    let mut files: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let mut names: Vec<String> =
        Catalogue::built_in().names().map(|name| format!("{name}.toml")).collect();
    names.sort();
    assert_eq!(files, names);
}

#[test]
fn the_services_that_people_know_are_there() {
    let catalogue = Catalogue::built_in();
    for (variable, service, host) in [
        ("ANTHROPIC_API_KEY", "anthropic", "api.anthropic.com"),
        ("AWS_SECRET_ACCESS_KEY", "aws", "bedrock-runtime.eu-central-1.amazonaws.com"),
        ("GITHUB_TOKEN", "github", "github.com"),
        ("GEMINI_API_KEY", "google", "generativelanguage.googleapis.com"),
        ("GROQ_API_KEY", "groq", "api.groq.com"),
        ("MISTRAL_API_KEY", "mistral", "api.mistral.ai"),
        ("NEBIUS_API_KEY", "nebius", "api.studio.nebius.ai"),
        ("OPENAI_API_KEY", "openai", "api.openai.com"),
        ("XAI_API_KEY", "xai", "api.x.ai"),
        ("HF_TOKEN", "huggingface", "api-inference.huggingface.co"),
    ] {
        assert_eq!(catalogue.by_env(variable), Some(service));
        let host = Host::parse(host).unwrap();
        let at: Vec<&str> = catalogue.at(&host).map(|service| service.name.as_str()).collect();
        assert!(at.contains(&service), "{service} at {host}: {at:?}");
    }
}

#[test]
fn every_placeholder_is_whole_and_of_its_shape() {
    for (catalogue, name) in built_in() {
        let service = catalogue.sample(&name).unwrap();
        let placeholder = service.placeholder(Some(64), &[9; 32]);
        assert!(placeholder.starts_with(&service.placeholder.prefix), "{name}");
        let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let mut parts = placeholder.split(':');
        assert!(parts.all(|part| part.bytes().all(is_unreserved)), "{name}: {placeholder}");
        if service.kind == Kind::Static {
            let expected = service.placeholder.length.unwrap_or(64);
            assert_eq!(placeholder.len(), expected, "{name}");
        }
    }
}

#[test]
fn no_service_can_be_had_at_a_host_that_anybody_can_have() {
    // What tenants name themselves is never in a file; the user names it.
    let suffixes = ["openai.azure.com", "amazonaws.com", "vercel.app", "github.io", "workers.dev"];
    for (catalogue, name) in built_in() {
        let Ok(service) = catalogue.get(&name) else { continue };
        for host in &service.inject_hosts {
            let host = host.host.to_string();
            let is_bedrock = host.starts_with("bedrock.") || host.starts_with("bedrock-runtime.");
            assert!(is_bedrock || !suffixes.iter().any(|suffix| host.ends_with(suffix)), "{host}");
        }
    }
}

#[test]
fn keys_of_aws_are_a_pair_and_the_token_of_the_session_stays_out() {
    let aws = Catalogue::built_in().get("aws").unwrap();
    let placeholder = aws.placeholder(None, &[1; 32]);
    let of: BTreeMap<_, _> = aws.environment(&placeholder, None).into_iter().collect();
    let (id, secret) = placeholder.split_once(':').unwrap();
    assert_eq!((of["AWS_ACCESS_KEY_ID"].as_str(), id.len()), (id, 20));
    assert_eq!((of["AWS_SECRET_ACCESS_KEY"].as_str(), secret.len()), (secret, 40));
    assert!(!of.contains_key("AWS_SESSION_TOKEN") && !of.contains_key("AWS_REGION"));
    assert_eq!(of["AWS_EC2_METADATA_DISABLED"], "true");
}

#[test]
fn a_region_of_aws_is_said_by_the_user_and_so_is_a_bucket() {
    let given = |pairs: &[(&str, &str)]| {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Catalogue::built_in().get_with("aws", &pairs.iter().map(own).collect())
    };
    let bucket = "data.s3.eu-west-1.amazonaws.com";
    let aws = given(&[("region", "eu-west-1"), ("host", bucket)]).unwrap();
    let hosts: Vec<String> = aws.inject_hosts.iter().map(|host| host.host.to_string()).collect();
    assert_eq!(
        hosts,
        ["bedrock-runtime.eu-west-1.amazonaws.com", "bedrock.eu-west-1.amazonaws.com", bucket]
    );
    assert!(matches!(&aws.kind, Kind::Aws { regions, .. } if *regions == ["eu-west-1"]));
    assert!(aws.extra_env.contains(&("AWS_REGION".into(), "eu-west-1".into())));
    for host in ["evil.example", "amazonaws.com", "xamazonaws.com", "*.s3.amazonaws.com"] {
        assert!(given(&[("host", host)]).is_err(), "{host}");
    }
    for host in ["sts.amazonaws.com", "sts.eu-west-1.amazonaws.com:8443", "iam.amazonaws.com"] {
        let error = given(&[("host", host)]).unwrap_err().to_string();
        assert!(error.contains("never goes to"), "{error}");
    }
}

#[test]
fn azure_is_of_no_use_without_a_resource() {
    let catalogue = Catalogue::built_in();
    let error = catalogue.get("azure-openai").unwrap_err().to_string();
    assert!(error.starts_with("azure-openai needs resource: "), "{error}");
    let given = BTreeMap::from([("resource".to_owned(), "acme".to_owned())]);
    let azure = catalogue.get_with("azure-openai", &given).unwrap();
    assert!(azure.inject_hosts.contains(&Authority::parse("acme.openai.azure.com", 443).unwrap()));
    let of: BTreeMap<_, _> = azure.environment("x", None).into_iter().collect();
    assert_eq!(of["AZURE_OPENAI_ENDPOINT"], "https://acme.openai.azure.com");
    let of: BTreeMap<_, _> = azure.environment("x", Some("http://gateway")).into_iter().collect();
    assert_eq!(of["AZURE_OPENAI_ENDPOINT"], "http://gateway");
}

#[test]
fn docker_clients_get_one_list_of_all_registries() {
    let catalogue = Catalogue::built_in();
    let given = BTreeMap::from([("username".to_owned(), "me".to_owned())]);
    let docker = catalogue.get_with("docker", &given).unwrap();
    let ghcr = catalogue.get_with("ghcr", &given).unwrap();
    let both = [(&docker, "dckr_pat_x"), (&ghcr, "ghp_x")].map(|(service, placeholder)| {
        services::Given { service: service.as_ref(), placeholder, gateway: None }
    });
    let of: BTreeMap<_, _> = services::environment(&both).into_iter().collect();
    // me:dckr_pat_x and me:ghp_x
    assert_eq!(
        of["DOCKER_AUTH_CONFIG"],
        r#"{"auths":{"https://index.docker.io/v1/":{"auth":"bWU6ZGNrcl9wYXRfeA=="},"ghcr.io":{"auth":"bWU6Z2hwX3g="}}}"#
    );
}

#[test]
fn ones_own_gitlab_takes_the_place_of_the_public_one() {
    let given = BTreeMap::from([("host".to_owned(), "git.acme.example:8443".to_owned())]);
    let gitlab = Catalogue::built_in().get_with("gitlab", &given).unwrap();
    let of: BTreeMap<_, _> = gitlab.environment("glpat-x", None).into_iter().collect();
    assert_eq!(of["GITLAB_HOST"], "git.acme.example:8443");
    assert_eq!(of["GIT_CONFIG_KEY_0"], "http.https://git.acme.example:8443/.extraHeader");
}

fn slot(slot: &Slot) -> String {
    match slot {
        Slot::Header { name, scheme: None } => format!("`{name}`"),
        Slot::Header { name, scheme: Some(scheme) } => format!("`{name}: {scheme}`"),
        Slot::Basic { username: None } => "the password of anybody".into(),
        Slot::Basic { username: Some(user) } => format!("the password of `{user}`"),
        Slot::BasicUser => "the user of a password".into(),
        Slot::Query { key, .. } => format!("`?{key}=`"),
        Slot::WebSocketProtocol { prefix } => format!("the WebSocket protocol `{prefix}…`"),
    }
}

/// With `{parameter}` where the sample has a sample, and one host in place of many regions.
fn hosts(catalogue: &Catalogue, service: &Service) -> String {
    let mut hosts: Vec<String> = Vec::new();
    for host in &service.inject_hosts {
        let mut name = host.host.to_string();
        for parameter in catalogue.parameters(&service.name).unwrap() {
            match &parameter.default {
                None => name = name.replace("sample", &format!("{{{}}}", parameter.name)),
                Some(values) if parameter.many => {
                    for value in values {
                        name = name
                            .replace(&format!(".{value}."), &format!(".{{{}}}.", parameter.name));
                    }
                }
                Some(_) => {}
            }
        }
        if !hosts.contains(&name) {
            hosts.push(name);
        }
    }
    hosts.iter().map(|host| format!("`{host}`")).collect::<Vec<_>>().join(", ")
}

fn services_table() -> String {
    let mut table = String::from(
        "| service | variables | hosts | where it stands | to be said |\n|---|---|---|---|---|\n",
    );
    for (catalogue, name) in built_in() {
        let service = catalogue.sample(&name).unwrap();
        let env: Vec<String> = service.env.iter().map(|name| format!("`{name}`")).collect();
        let mut slots: Vec<String> = service.slots.iter().map(slot).collect();
        for parameter in catalogue.parameters(&name).unwrap() {
            let own = format!("{{{}}}", parameter.name);
            slots.iter_mut().for_each(|slot| *slot = slot.replace("sample", &own));
        }
        let parameters: Vec<String> = catalogue
            .parameters(&name)
            .unwrap()
            .iter()
            .map(|parameter| match parameter.default.is_some() {
                true => format!("`{}`, if you like: {}", parameter.name, parameter.about),
                false => format!("`{}`: {}", parameter.name, parameter.about),
            })
            .collect();
        let _ = writeln!(
            table,
            "| `{name}` | {} | {} | {} | {} |",
            env.join(", "),
            hosts(&catalogue, service),
            slots.join(", "),
            parameters.join("; ")
        );
    }
    table
}

fn operations_table() -> String {
    let mut table =
        String::from("| service | read-only | full | refused in both |\n|---|---|---|---|\n");
    for (catalogue, name) in built_in() {
        let service = catalogue.sample(&name).unwrap();
        let lines = |lines: &[String]| {
            lines.iter().map(|line| format!("`{line}`")).collect::<Vec<_>>().join("<br>")
        };
        let _ = writeln!(
            table,
            "| `{name}` | {} | {} | {} |",
            lines(&service.read_only),
            lines(&service.full),
            lines(&service.deny)
        );
    }
    table
}

/// The page with this table behind its mark.
fn with(page: &str, name: &str, table: &str) -> String {
    let mark = format!("<!-- {name} -->\n");
    let (before, after) = page.split_once(&mark).expect("the mark is there");
    let rest = after.trim_start_matches('\n');
    let rest = match rest.starts_with('|') {
        true => rest.split_once("\n\n").map_or("", |(_, rest)| rest),
        false => rest,
    };
    let end = if rest.is_empty() { String::new() } else { format!("\n{rest}") };
    format!("{before}{mark}\n{table}{end}")
}

#[test]
fn the_page_of_services_is_what_the_catalogue_says() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let mut expected = with(&page, "services", &services_table());
    expected = with(&expected, "operations", &operations_table());
    if std::env::var_os("SANDFORGE_WRITE_DOCS").is_some() {
        std::fs::write(PAGE, &expected).unwrap();
        return;
    }
    assert!(
        page == expected,
        "docs/services.md is out of date: SANDFORGE_WRITE_DOCS=1 cargo test -p services --test catalogue"
    );
}

#[test]
fn a_registry_is_the_one_that_the_user_names() {
    let host = [("host".to_owned(), "npm.example.com".to_owned())].into();
    let service = Catalogue::built_in().get_with("npm", &host).unwrap();
    let variables = service.environment("npm_placeholder", None);
    let token =
        ("npm_config_//npm.example.com/:_authToken".to_owned(), "npm_placeholder".to_owned());
    assert!(variables.contains(&token), "{variables:?}");
    assert_eq!(service.inject_hosts[0].to_string(), "npm.example.com:443");
}
