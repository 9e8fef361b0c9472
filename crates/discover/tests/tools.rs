//! What is found in the files of each tool.

use std::path::Path;

use discover::{BuiltIn, Discovery, Surroundings, discover};
use rules::RegistryKind::{self, Apt, Cargo, Git, Go, Npm, Pip};

/// What Cargo keeps of an index.
const INDEX: &str =
    "{\"dl\": \"https://files.example:443/crates\", \"api\": \"https://x.example\"}";

/// A computer with these files and this environment. Files that begin with `~/` are the user's.
fn found_in(files: &[(&str, &str)], environment: &[(&str, &str)]) -> Discovery {
    let root = tempfile::tempdir().unwrap();
    let home = root.path().join("home/ann");
    let index = ("~/.cargo/registry/index/index.example-1949cf8c6b5b557f/config.json", INDEX);
    for (path, text) in [&[index][..], files].concat() {
        let path = match path.strip_prefix("~/") {
            Some(below) => home.join(below),
            None => root.path().join(path.trim_start_matches('/')),
        };
        std::fs::create_dir_all(path.parent().unwrap_or_else(|| Path::new("/"))).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let built_in = BuiltIn {
        npm: || vec!["https://npm.example/".into()],
        pip: || vec!["https://pip.example/simple".into(), "https://files.example/".into()],
        go: || {
            let (proxy, sums) = ("https://go.example,direct", "sum.example");
            vec![("GOPROXY", proxy.into()), ("GOSUMDB", sums.into())]
        },
    };
    discover(&Surroundings {
        built_in,
        root: root.path().to_path_buf(),
        home: Some(home),
        environment: environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
    })
}

/// The addresses of one kind, and where each is from.
fn of(discovery: &Discovery, kind: RegistryKind) -> Vec<(String, String)> {
    let of_kind = discovery.found.iter().filter(|found| found.registry.kind == kind);
    of_kind.map(|found| (found.registry.url.clone(), found.from.clone())).collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(url, from)| ((*url).to_owned(), (*from).to_owned())).collect()
}

#[test]
fn without_configuration_there_is_what_the_tools_have_built_in() {
    let discovery = found_in(&[], &[]);
    assert_eq!(of(&discovery, Npm), pairs(&[("https://npm.example/", "npm's default")]));
    assert_eq!(
        of(&discovery, Pip),
        pairs(&[
            ("https://pip.example/simple", "pip's default"),
            ("https://files.example/", "pip's default"),
        ])
    );
    assert_eq!(
        of(&discovery, Cargo),
        pairs(&[
            ("https://index.example/", "cargo's default"),
            ("https://files.example/", "cargo's default"),
        ])
    );
    assert_eq!(
        of(&discovery, Go),
        pairs(&[("https://go.example", "go's default"), ("https://sum.example", "go's default")])
    );
    assert_eq!(of(&discovery, Apt), []);
    assert_eq!(of(&discovery, Git), []);
    assert_eq!(discovery.notes, []);
}

#[test]
fn a_tool_that_does_not_tell_is_named() {
    let discovery = discover(&Surroundings::default());
    assert_eq!(discovery.found, []);
    let of: Vec<&str> = discovery.notes.iter().map(|note| note.from.as_str()).collect();
    assert_eq!(of, ["npm", "pip", "cargo", "go"]);
}

#[test]
fn npm_has_a_registry_and_some_for_scopes() {
    let files = [
        (
            "~/.npmrc",
            "; mine\nregistry = https://npm.example.com/all/\n@acme:registry=\"https://${HOST}/acme/\"\n//npm.example.com/:_authToken=secret\nproxy=http://proxy.example.com:3128\n",
        ),
        ("/etc/npmrc", "registry=https://npm.example.com/all/\n"),
    ];
    let discovery = found_in(&files, &[("HOST", "packages.example.com")]);
    assert_eq!(
        of(&discovery, Npm),
        pairs(&[
            ("https://npm.example.com/all/", "~/.npmrc:2"),
            ("https://packages.example.com/acme/", "~/.npmrc:3"),
        ])
    );
}

#[test]
fn npm_is_configured_by_its_variable_and_by_yarn_and_bun_too() {
    let files = [
        (
            "~/.yarnrc.yml",
            "npmRegistryServer: \"https://yarn.example.com\"\nhttpProxy: \"http://proxy\"\n",
        ),
        (
            "~/.bunfig.toml",
            "[install]\nregistry = { url = \"https://bun.example.com\", token = \"secret\" }\n[install.scopes]\nacme = \"https://scope.example.com\"\n",
        ),
    ];
    let discovery = found_in(&files, &[("npm_config_registry", "https://npm.example.com")]);
    let urls: Vec<String> = of(&discovery, Npm).into_iter().map(|(url, _)| url).collect();
    assert_eq!(
        urls,
        [
            "https://npm.example.com",
            "https://yarn.example.com",
            "https://bun.example.com",
            "https://scope.example.com"
        ]
    );
}

#[test]
fn pip_and_uv_have_an_index_and_more_of_them() {
    let files = [
        (
            "~/.config/pip/pip.conf",
            "[global]\nindex-url = https://pip.example.com/simple\nextra_index_url =\n    https://one.example.com/simple\n    https://two.example.com/simple\nproxy = http://proxy.example.com\nfind-links = /srv/wheels\n",
        ),
        (
            "~/.config/uv/uv.toml",
            "[[index]]\nname = \"torch\"\nurl = \"https://uv.example.com/torch\"\n",
        ),
    ];
    let discovery = found_in(&files, &[("UV_INDEX", "mine=https://named.example.com/simple")]);
    assert_eq!(
        of(&discovery, Pip),
        pairs(&[
            ("https://pip.example.com/simple", "~/.config/pip/pip.conf:2"),
            ("https://one.example.com/simple", "~/.config/pip/pip.conf:3"),
            ("https://two.example.com/simple", "~/.config/pip/pip.conf:3"),
            ("https://named.example.com/simple", "UV_INDEX"),
            ("https://uv.example.com/torch", "~/.config/uv/uv.toml"),
        ])
    );
    assert_eq!(discovery.notes, []);
}

#[test]
fn pip_reads_no_file_where_it_is_told_so() {
    let files = [("/etc/pip.conf", "[global]\nindex-url = https://pip.example.com/simple\n")];
    let discovery = found_in(&files, &[("PIP_CONFIG_FILE", "/dev/null")]);
    assert_eq!(of(&discovery, Pip).len(), 2);
    assert!(of(&discovery, Pip).iter().all(|(_, from)| from == "pip's default"));
}

#[test]
fn cargo_has_sources_in_the_place_of_others_and_registries_besides() {
    let files = [(
        "~/.cargo/config.toml",
        "[source.crates-io]\nreplace-with = \"near\"\n[source.near]\nreplace-with = \"mirror\"\n[source.mirror]\nregistry = \"sparse+https://cargo.example.com/index/\"\n[registries.acme]\nindex = \"https://git.example.com/acme/index.git\"\n[http]\nproxy = \"proxy.example.com\"\n",
    )];
    let discovery =
        found_in(&files, &[("CARGO_REGISTRIES_OTHER_INDEX", "sparse+https://other.example.com/")]);
    assert_eq!(
        of(&discovery, Cargo),
        pairs(&[
            ("https://cargo.example.com/index/", "~/.cargo/config.toml"),
            ("https://other.example.com/", "CARGO_REGISTRIES_OTHER_INDEX"),
        ])
    );
    assert_eq!(
        of(&discovery, Git),
        pairs(&[("https://git.example.com/acme/index.git", "~/.cargo/config.toml")])
    );
}

#[test]
fn a_vendored_source_of_cargo_is_no_registry() {
    let files = [(
        "~/.cargo/config.toml",
        "[source.crates-io]\nreplace-with = \"vendored\"\n[source.vendored]\ndirectory = \"vendor\"\n",
    )];
    assert_eq!(of(&found_in(&files, &[]), Cargo), []);
}

#[test]
fn go_has_proxies_and_a_database_of_checksums() {
    let files = [("~/.config/go/env", "GOPROXY=https://file.example.com\nGOSUMDB=off\n")];
    let discovery = found_in(&files, &[]);
    assert_eq!(of(&discovery, Go), pairs(&[("https://file.example.com", "~/.config/go/env:1")]));
    let environment = [
        ("GOPROXY", "https://one.example.com,https://two.example.com|direct"),
        ("GOSUMDB", "sums.example.com+1+key"),
    ];
    let discovery = found_in(&files, &environment);
    assert_eq!(
        of(&discovery, Go),
        pairs(&[
            ("https://one.example.com", "GOPROXY"),
            ("https://two.example.com", "GOPROXY"),
            ("https://sums.example.com", "GOSUMDB"),
        ])
    );
    let discovery = found_in(&[], &[("GOPROXY", "off"), ("GOSUMDB", "off")]);
    assert_eq!(of(&discovery, Go), []);
}

#[test]
fn apt_has_lines_and_stanzas() {
    let files = [
        (
            "/etc/apt/sources.list",
            "# deb http://no.example.com x main\ndeb [arch=amd64 signed-by=/k] https://apt.example.com/debian bookworm main # x\ndeb cdrom:[disc] bookworm main\ndeb-src mirror+https://mirror.example.com/list stable main\n",
        ),
        (
            "/etc/apt/sources.list.d/more.sources",
            "Types: deb\nURIs: http://one.example.com/debian\n  http://two.example.com/debian\n# URIs: http://no.example.com\nSuites: stable\n\nEnabled: no\nURIs: http://off.example.com\n\nURIs: file:/srv/debian\n",
        ),
        ("/etc/apt/sources.list.d/old.list.save", "deb http://no.example.com x main\n"),
        ("/etc/apt/apt.conf.d/proxy", "Acquire::http::Proxy \"http://proxy.example.com\";\n"),
    ];
    assert_eq!(
        of(&found_in(&files, &[]), Apt),
        pairs(&[
            ("https://apt.example.com/debian", "/etc/apt/sources.list:2"),
            ("https://mirror.example.com/list", "/etc/apt/sources.list:4"),
            ("http://one.example.com/debian", "/etc/apt/sources.list.d/more.sources:2"),
            ("http://two.example.com/debian", "/etc/apt/sources.list.d/more.sources:3"),
        ])
    );
}

#[test]
fn git_has_hosts_that_the_user_signs_in_at() {
    let files = [(
        "~/.gitconfig",
        "[user]\n\tname = Ann\n[credential \"https://git.example.com\"]\n\thelper = store\n[url \"https://forge.example.com/\"]\n\tinsteadOf = git@forge.example.com:\n[url \"git@no.example.com:\"]\n\tpushInsteadOf = https://no.example.com/\n[http]\n\tproxy = http://proxy.example.com\n",
    )];
    assert_eq!(
        of(&found_in(&files, &[]), Git),
        pairs(&[
            ("https://git.example.com", "~/.gitconfig"),
            ("https://forge.example.com/", "~/.gitconfig"),
        ])
    );
}

#[test]
fn what_is_secret_in_an_address_is_dropped_and_reported() {
    let files = [
        ("~/.npmrc", "registry=https://ann:sesame@npm.example.com/all?token=sesame#sesame\n"),
        (
            "~/.config/pip/pip.conf",
            "[global]\nindex-url = https://sesame@pip.example.com/simple\nextra-index-url = ftp://ann:sesame@x.example.com/\n",
        ),
    ];
    let discovery =
        found_in(&files, &[("SESAME", "sesame"), ("GOPROXY", "https://ann:sesame@go.example.com")]);
    let all = format!("{discovery:?}{}", discovery.to_toml());
    assert!(!all.contains("sesame"), "{all}");
    assert_eq!(of(&discovery, Npm), pairs(&[("https://npm.example.com/all", "~/.npmrc:1")]));
    let noted: Vec<&str> = discovery.notes.iter().map(|note| note.from.as_str()).collect();
    assert_eq!(
        noted,
        [
            "~/.npmrc:1",
            "~/.config/pip/pip.conf:2",
            "~/.config/pip/pip.conf:3",
            "~/.config/pip/pip.conf:3",
            "GOPROXY"
        ]
    );
}

#[test]
fn what_cannot_be_read_is_reported_and_no_more() {
    let files = [("~/.cargo/config.toml", "not = [toml"), ("~/.npmrc", "registry=nowhere\n")];
    let discovery = found_in(&files, &[]);
    let noted: Vec<(&str, &str)> =
        discovery.notes.iter().map(|note| (note.from.as_str(), note.text.as_str())).collect();
    assert_eq!(
        noted,
        [
            ("~/.npmrc:1", "npm: the address does not begin with https:// or http://"),
            ("~/.cargo/config.toml", "it is not TOML"),
        ]
    );
}

#[test]
fn what_was_found_is_written_and_read_again() {
    let files = [(
        "~/.npmrc",
        "registry=https://npm.example.com/\"a\\b\n@a:registry=https://npm.example.com/a\n",
    )];
    let discovery = found_in(&files, &[]);
    let read = Discovery::parse("registries.toml", &discovery.to_toml()).unwrap();
    assert_eq!(read.found, discovery.found);
    assert_eq!(read.registries().len(), discovery.found.len());
}

#[test]
fn a_mistake_in_the_file_has_a_place() {
    for (text, said) in [
        (
            "[[registry]]\nkind = \"nmp\"\nurl = \"https://a.com\"",
            "registries.toml:2:8: there is no kind of registry \"nmp\"; did you mean \"npm\"?",
        ),
        (
            "[[registry]]\nkind = \"npm\"\nurl = \"https://u:p@a.com\"",
            "registries.toml:3:7: the address has a user or a password",
        ),
        (
            "[[registry]]\nkind = \"npm\"\nurl = \"https://a.com/?x\"",
            "registries.toml:3:7: the address has a query",
        ),
        (
            "[[registry]]\nkind = \"npm\"\nuri = \"https://a.com\"",
            "registries.toml:3:1: unknown field `uri`",
        ),
        ("[[registry]]\nkind = \"npm\"", "missing field `url`"),
        ("registry = 1", "registries.toml:1:12:"),
        ("[[registry", "registries.toml:1:"),
    ] {
        let message = Discovery::parse("registries.toml", text).unwrap_err().to_string();
        assert!(message.starts_with(said) || message.contains(said), "{text:?}: {message}");
        assert!(!message.contains("u:p"), "{message}");
    }
    assert_eq!(Discovery::parse("registries.toml", "").unwrap(), Discovery::default());
}
