//! What holds of every policy and every request.

use std::collections::BTreeMap;

use policy::{
    Command, Create, Exec, Host, Isolation, Kind, Layer, Mount, MountRequest, Network,
    NetworkRequest, Policy, Request, Role, Subject,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

const IMAGES: &[&str] = &["base", "b*", "build", "*", "ghcr.io/a/*", "ghcr.io/**", "/srv/**"];
const PATHS: &[&str] = &["/srv/a", "/srv/*", "~", "~/src", "/srv/**/x", "/", "~/src/b/.env"];
const NAMES: &[&str] = &["a", "x", ".env", "*.pem", "a/b", "SRC", "b"];
const COMMANDS: &[&str] =
    &["git **", "git push *", "git push", "**", "sh -c *", "/usr/bin/git **", "* x", "rm -rf /"];
const VARIABLES: &[&str] = &["*", "A*", "AB", "*_TOKEN"];
const MODES: &[&str] = &["offline", "fetch", "allow", "open"];
const TIERS: &[&str] = &["process", "emulated", "vm"];
const EXCEPT: &[&str] = &[".env", "*.pem", ".ssh"];

fn list(from: &'static [&'static str]) -> impl Strategy<Value = String> {
    subsequence(from, 0..=from.len()).prop_map(|items| format!("{items:?}"))
}

/// Few of them, for denials: with many, nothing would be allowed.
fn few(from: &'static [&'static str]) -> impl Strategy<Value = String> {
    subsequence(from, 0..=1).prop_map(|items| format!("{items:?}"))
}

fn line(key: &'static str, value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    option::weighted(0.25, value)
        .prop_map(move |value| value.map_or(String::new(), |value| format!("{key} = {value}\n")))
}

fn number() -> impl Strategy<Value = String> {
    (3..9_u64).prop_map(|number| number.to_string())
}

fn tier() -> impl Strategy<Value = String> {
    select(TIERS).prop_map(|tier| format!("{tier:?}"))
}

fn maxima() -> impl Strategy<Value = String> {
    let keys = ["cpu_max", "memory_mb_max", "disk_gb_max", "timeout_sec_max", "sandboxes_max"];
    keys.map(|key| line(key, number()).boxed())
        .into_iter()
        .collect::<Vec<_>>()
        .prop_map(|lines| lines.concat())
}

/// What any layer may say.
fn sections() -> impl Strategy<Value = String> {
    (
        maxima(),
        (line("allow", list(IMAGES)), line("deny", few(IMAGES))),
        (
            line("roots", list(PATHS)),
            denied_paths(),
            line("read_only", any::<bool>().prop_map(|b| b.to_string())),
        ),
        (
            line("allow", list(COMMANDS)),
            line("deny", few(COMMANDS)),
            line("users", list(VARIABLES)),
        ),
        (line("allow", list(VARIABLES)), line("deny", few(VARIABLES))),
        line("modes", list(MODES)),
        line("minimum", tier()),
    )
        .prop_map(|(maxima, images, mounts, commands, env, modes, minimum)| {
            format!(
                "[resources]\n{maxima}[images]\n{}{}[commands]\n{}{}{}[env]\n{}{}\
                 [network]\n{modes}[isolation]\n{minimum}[mounts]\n{}{}{}",
                images.0,
                images.1,
                commands.0,
                commands.1,
                commands.2,
                env.0,
                env.1,
                mounts.0,
                mounts.1,
                mounts.2
            )
        })
}

fn denied_paths() -> impl Strategy<Value = String> {
    let all: Vec<_> = PATHS.iter().chain(NAMES).copied().collect();
    line("deny", subsequence(all, 0..=2).prop_map(|items| format!("{items:?}")))
}

fn grant() -> impl Strategy<Value = String> {
    let who = select(
        &[
            "roles = [\"member\"]",
            "workspaces = [\"w*\"]",
            "subjects = [\"b\"]",
            "roles = [\"administrator\"]",
        ][..],
    );
    (
        (who, maxima()),
        line("images", list(IMAGES)),
        line("mount_roots", list(PATHS)),
        line("commands", list(COMMANDS)),
        line("env", list(VARIABLES)),
        line("network", list(MODES)),
        line("isolation", tier()),
    )
        .prop_map(|((who, maxima), images, roots, commands, env, network, isolation)| {
            format!("[[grant]]\n{who}\n{maxima}{images}{roots}{commands}{env}{network}{isolation}")
        })
}

fn administrator() -> impl Strategy<Value = Layer> {
    (sections(), line("except", list(EXCEPT)), vec(grant(), 0..3)).prop_map(
        |(sections, except, grants)| {
            let text = format!("{sections}{except}{}", grants.concat());
            Layer::parse("policy.toml", &text, Kind::Administrator).expect(&text)
        },
    )
}

fn project() -> impl Strategy<Value = Layer> {
    sections().prop_map(|text| Layer::parse("sandforge.toml", &text, Kind::Project).expect(&text))
}

fn layers() -> impl Strategy<Value = Vec<Layer>> {
    (vec(administrator(), 0..3), vec(project(), 0..3))
        .prop_map(|(administrators, projects)| [administrators, projects].concat())
}

fn who() -> impl Strategy<Value = Subject> {
    (select(&["a", "b"][..]), select(Role::ALL), option::of(select(&["w1", "v"][..]))).prop_map(
        |(name, role, workspace)| Subject {
            name: name.into(),
            role,
            workspace: workspace.map(str::to_owned),
        },
    )
}

fn path() -> impl Strategy<Value = String> {
    let name =
        select(&["srv", "a", "b", "x", "home", "ann", "src", ".env", "k.pem", ".ssh", "run"][..]);
    let below = select(&["", "/srv", "/home/ann", "/home/ann/src"][..]);
    (below, vec(name, 0..4)).prop_map(|(below, names)| match names.is_empty() {
        true if below.is_empty() => "/".to_owned(),
        true => below.to_owned(),
        false => format!("{below}/{}", names.join("/")),
    })
}

fn mount() -> impl Strategy<Value = Mount> {
    (path(), path(), any::<bool>()).prop_map(|(path, requested, read_only)| Mount {
        host_path: path.into(),
        requested: requested.into(),
        guest_path: "/workspace".into(),
        read_only,
    })
}

fn env_names() -> impl Strategy<Value = Vec<String>> {
    vec(select(&["A", "AB", "B", "GH_TOKEN"][..]).prop_map(str::to_owned), 0..3)
}

fn create() -> impl Strategy<Value = Create> {
    let image = select(&["base", "base", "build", "ghcr.io/a/b", "ghcr.io/a/b/c", "/srv/a"][..]);
    (
        (
            who(),
            0..6_u32,
            0..6_u32,
            option::of(0..6_u32),
            option::weighted(0.8, 0..6_u64),
            0..6_u64,
        ),
        (
            image,
            vec(mount(), 0..=1),
            prop_oneof![3 => Just(Network::Offline), 1 => select(Network::ALL)],
            env_names(),
        ),
        (option::of(select(Isolation::ALL)), option::weighted(0.3, select(Isolation::ALL))),
    )
        .prop_map(|(numbers, what, tiers)| Create {
            who: numbers.0,
            cpu: numbers.1,
            memory_mb: numbers.2,
            disk_gb: numbers.3,
            timeout_sec: numbers.4,
            image: what.0.into(),
            mounts: what.1,
            network: what.2,
            env_names: what.3,
            min_isolation: tiers.0,
            isolation: tiers.1,
            sandboxes: numbers.5,
        })
}

fn command() -> impl Strategy<Value = Command> {
    let words =
        ["git", "/usr/bin/git", "push", "x", "-rf", "/", "sh", "-c", "env", "rm", "git push x"];
    let tokens = [
        "git", " push", " x", ";", "$(", ")", "'", "\"", "`", "rm -rf /", "\n", "<<E\n", "E",
        "|sh", "\\",
    ];
    prop_oneof![
        vec(select(words.to_vec()), 0..5)
            .prop_map(|words| Command::Argv(words.iter().map(|word| (*word).to_owned()).collect())),
        vec(select(tokens.to_vec()), 0..10).prop_map(|tokens| Command::Shell(tokens.concat())),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let user = option::of(select(&["A", "root"][..]).prop_map(str::to_owned));
    prop_oneof![
        3 => create().prop_map(Request::Create),
        3 => (who(), command(), user, env_names()).prop_map(|(who, command, user, env_names)| {
            Request::Exec(Exec { who, command, user, env_names })
        }),
        2 => (who(), mount()).prop_map(|(who, mount)| Request::Mount(MountRequest { who, mount })),
        1 => (who(), select(Network::ALL))
            .prop_map(|(who, mode)| Request::Network(NetworkRequest { who, mode })),
    ]
}

fn policy(layers: &[Layer]) -> Policy {
    let host = Host { home: Some("/home/ann".into()), own: vec!["/srv/b".into()] };
    Policy::new(host, layers.to_vec()).unwrap()
}

/// A layer that denies and says nothing else.
fn denial() -> impl Strategy<Value = Layer> {
    let text = prop_oneof![
        list(IMAGES).prop_map(|list| format!("[images]\ndeny = {list}\n")),
        denied_paths().prop_map(|line| format!("[mounts]\n{line}")),
        list(COMMANDS).prop_map(|list| format!("[commands]\ndeny = {list}\n")),
        list(VARIABLES).prop_map(|list| format!("[env]\ndeny = {list}\n")),
    ];
    (text, select(&[Kind::Administrator, Kind::Project][..]))
        .prop_map(|(text, kind)| Layer::parse("more.toml", &text, kind).expect(&text))
}

/// Nothing more is allowed, and nothing less is hidden.
fn narrows(before: &Policy, after: &Policy, request: &Request) -> Result<(), TestCaseError> {
    let (before, after) = (before.decide(request), after.decide(request));
    prop_assert!(before.allowed || !after.allowed, "{before}\n{after}");
    if after.allowed {
        for (before, after) in before.masks.iter().zip(&after.masks) {
            let kept = before.patterns.iter().all(|pattern| after.patterns.contains(pattern));
            prop_assert!(kept, "{before:?}\n{after:?}");
        }
        prop_assert!(after.min_isolation >= before.min_isolation);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn a_denial_never_allows_more(layers in layers(), denial in denial(), request in request()) {
        let more = [layers.clone(), vec![denial]].concat();
        narrows(&policy(&layers), &policy(&more), &request)?;
    }

    #[test]
    fn a_project_never_allows_more(layers in layers(), project in project(), request in request()) {
        let general = policy(&layers);
        let more = [layers, vec![project.clone()]].concat();
        narrows(&general, &policy(&more), &request)?;
        let narrowed = general.narrowed(vec![project]).unwrap();
        prop_assert_eq!(narrowed.decide(&request), policy(&more).decide(&request));
    }

    #[test]
    fn a_grant_never_allows_less(layers in layers(), grant in grant(), request in request()) {
        let grant = Layer::parse("more.toml", &grant, Kind::Administrator).unwrap();
        let more = [layers.clone(), vec![grant]].concat();
        let (before, after) = (policy(&layers).decide(&request), policy(&more).decide(&request));
        prop_assert!(after.allowed || !before.allowed, "{before}\n{after}");
    }

    #[test]
    fn the_order_of_layers_does_not_matter(
        (layers, shuffled) in layers().prop_flat_map(|layers| {
            let shuffled = Just(layers.clone()).prop_shuffle();
            (Just(layers), shuffled)
        }),
        request in request(),
    ) {
        let (one, other) = (policy(&layers), policy(&shuffled));
        prop_assert_eq!(one.decide(&request), other.decide(&request));
        prop_assert_eq!(one.effective(request.who()), other.effective(request.who()));
    }

    #[test]
    fn the_order_of_rules_does_not_matter(
        (one, other) in subsequence(COMMANDS, 0..5).prop_flat_map(|rules| {
            let shuffled = Just(rules.clone()).prop_shuffle();
            (Just(rules), shuffled)
        }),
        key in select(&["allow", "deny"][..]),
        who in who(),
        command in command(),
    ) {
        let request = Request::Exec(Exec { who, command, user: None, env_names: Vec::new() });
        let decide = |rules: &[&str]| {
            let text = format!("[commands]\n{key} = {rules:?}\n");
            let layer = Layer::parse("policy.toml", &text, Kind::Administrator).unwrap();
            policy(&[layer]).decide(&request)
        };
        prop_assert_eq!(decide(&one), decide(&other));
    }

    #[test]
    fn a_decision_is_the_same_twice(layers in layers(), request in request()) {
        prop_assert_eq!(policy(&layers).decide(&request), policy(&layers).decide(&request));
    }

    #[test]
    fn a_decision_names_a_rule_and_says_why(layers in layers(), request in request()) {
        let decision = policy(&layers).decide(&request);
        prop_assert!(!decision.rule.file.is_empty() && !decision.rule.text.is_empty());
        prop_assert!(!decision.reason.is_empty());
        prop_assert_eq!(&decision.rule, &decision.verdicts[0].rule);
        prop_assert!(decision.verdicts.iter().all(|verdict| verdict.allowed == decision.allowed));
        prop_assert!(!decision.to_string().contains('\t'));
    }

    #[test]
    fn what_is_hidden_below_a_mount_could_not_be_mounted(
        layers in layers(),
        who in who(),
        mount in mount(),
        below in path(),
    ) {
        let policy = policy(&layers);
        let decide = |mount: Mount| {
            policy.decide(&Request::Mount(MountRequest { who: who.clone(), mount }))
        };
        let decision = decide(mount.clone());
        let below = below.trim_start_matches('/');
        if decision.masks.first().is_some_and(|masks| masks.hides(below.as_ref())) {
            let host_path = mount.host_path.join(below);
            let inner = decide(Mount { host_path: host_path.clone(), requested: host_path, ..mount });
            prop_assert!(!inner.allowed, "{}\n{}", decision, inner);
        }
    }

    #[test]
    fn no_text_makes_parsing_panic(text in any::<String>()) {
        for kind in [Kind::Administrator, Kind::Project] {
            if let Err(error) = Layer::parse("p.toml", &text, kind) {
                prop_assert!(error.line >= 1 && error.column >= 1);
            }
        }
    }

    #[test]
    fn no_almost_policy_makes_parsing_panic(
        text in sections(),
        at in any::<prop::sample::Index>(),
        insert in "[\\[\\]{}\"'=.,*~a\n\u{0}-\u{1f}]{0,3}",
    ) {
        let mut chars: Vec<char> = text.chars().collect();
        let at = at.index(chars.len() + 1);
        chars.splice(at..at, insert.chars());
        let text: String = chars.into_iter().collect();
        if let Err(error) = Layer::parse("p.toml", &text, Kind::Administrator) {
            let lines = u32::try_from(text.matches('\n').count()).unwrap() + 1;
            prop_assert!(error.line <= lines, "{error}");
        }
    }

    #[test]
    fn no_pattern_makes_parsing_panic(pattern in any::<String>()) {
        let quoted = serde_json::to_string(&pattern).unwrap();
        for key in ["[commands]\ndeny", "[mounts]\ndeny", "[mounts]\nroots", "[images]\nallow", "[env]\nallow"] {
            if let Ok(layer) = Layer::parse("p.toml", &format!("{key} = [{quoted}]\n"), Kind::Administrator) {
                let command = Command::Shell(pattern.clone());
                let who = Subject { name: "a".into(), role: Role::Member, workspace: None };
                let exec = Exec { who, command, user: None, env_names: vec![pattern.clone()] };
                let _ = policy(&[layer]).decide(&Request::Exec(exec));
            }
        }
    }
}
/// Else the properties would say nothing.
#[test]
fn generated_policies_allow_some_and_deny_some() {
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeMap::new();
    for _ in 0..1000 {
        let (layers, request) = (layers(), request()).new_tree(&mut runner).unwrap().current();
        let kind = match &request {
            Request::Create(_) => "create",
            Request::Exec(_) => "exec",
            _ => "other",
        };
        *seen.entry((kind, policy(&layers).decide(&request).allowed)).or_insert(0) += 1;
    }
    assert!(seen.len() == 6 && seen.values().all(|many| *many >= 20), "{seen:?}");
}
