//! What is decided, and with what words.

use policy::{
    Command, Create, Decision, Exec, Host, Isolation, Kind, Layer, Live, Mount, MountRequest,
    Network, NetworkRequest, Policy, Request, Resource, Role, Subject,
};

fn host() -> Host {
    Host { home: Some("/home/ann".into()), own: vec!["/srv/sandforge".into()] }
}

fn administrator(text: &str) -> Layer {
    Layer::parse("policy.toml", text, Kind::Administrator).unwrap()
}

fn project(text: &str) -> Layer {
    Layer::parse("sandforge.toml", text, Kind::Project).unwrap()
}

fn policy(layers: Vec<Layer>) -> Policy {
    Policy::new(host(), layers).unwrap()
}

fn member() -> Subject {
    Subject { name: "ci".into(), role: Role::Member, workspace: Some("acme".into()) }
}

fn root() -> Subject {
    Subject { name: "local:0".into(), role: Role::Administrator, workspace: None }
}

fn create() -> Create {
    Create {
        who: member(),
        cpu: 2,
        memory_mb: 1024,
        disk_gb: None,
        timeout_sec: None,
        image: "base".into(),
        mounts: Vec::new(),
        network: Network::Offline,
        env_names: Vec::new(),
        min_isolation: None,
        isolation: None,
        sandboxes: 0,
    }
}

fn run(layers: Vec<Layer>, command: Command) -> Decision {
    let exec = Exec { who: member(), command, user: None, env_names: Vec::new() };
    policy(layers).decide(&Request::Exec(exec))
}

fn argv(words: &[&str]) -> Command {
    Command::Argv(words.iter().map(|word| (*word).to_owned()).collect())
}

fn shell(line: &str) -> Command {
    Command::Shell(line.to_owned())
}

fn mount(who: Subject, layers: Vec<Layer>, path: &str) -> Decision {
    mount_as(who, layers, path, path)
}

fn mount_as(who: Subject, layers: Vec<Layer>, path: &str, requested: &str) -> Decision {
    let mount = Mount {
        host_path: path.into(),
        requested: requested.into(),
        guest_path: "/workspace".into(),
        read_only: false,
    };
    policy(layers).decide(&Request::Mount(MountRequest { who, mount }))
}

#[test]
fn a_small_sandbox_is_allowed_by_default_and_the_rule_is_named() {
    let decision = policy(Vec::new()).decide(&Request::Create(create()));
    assert!(decision.allowed, "{decision}");
    assert_eq!(decision.rule.file, "built-in");
    assert_eq!(decision.min_isolation, Some(Isolation::Emulated));
}

#[test]
fn a_maximum_denies_with_its_line_and_what_would_allow_it() {
    let policy = policy(vec![administrator("\n[resources]\ncpu_max = 2\n")]);
    let decision = policy.decide(&Request::Create(Create { cpu: 8, ..create() }));
    assert!(!decision.allowed);
    assert_eq!(decision.rule.to_string(), "policy.toml:3: [resources] cpu_max = 2");
    assert_eq!(decision.reason, "cpu: 8 is more than 2");
    let remedy = decision.remedy.unwrap();
    assert_eq!(remedy.text, "add to policy.toml:");
    assert_eq!(remedy.toml.unwrap(), "[[grant]]\nworkspaces = [\"acme\"]\ncpu_max = 8");
}

#[test]
fn a_decision_is_told_in_lines() {
    let layers = vec![administrator("[resources]\ncpu_max = 2\n[images]\ndeny = [\"b*\"]\n")];
    let decision = policy(layers).decide(&Request::Create(Create { cpu: 8, ..create() }));
    assert_eq!(
        decision.to_string(),
        "denied: image \"base\" is denied by \"b*\"\n  \
           rule: policy.toml:4: [images] deny: b*\n  \
           to allow it: take it out of policy.toml:4\n  \
           also: cpu: 8 is more than 2\n    \
             rule: policy.toml:2: [resources] cpu_max = 2\n    \
             to allow it: add to policy.toml:\n      \
               [[grant]]\n      \
               workspaces = [\"acme\"]\n      \
               cpu_max = 8\n  \
           generation: 0"
    );
}
