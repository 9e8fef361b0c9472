//! What is decided, and with what words.

use policy::{
    Command, Create, Decision, Exec, Host, Isolation, Kind, Layer, Live, Mount, MountRequest,
    Network, NetworkRequest, Policy, Request, Resource, Role, Subject, VolumeRequest,
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

#[test]
fn a_project_can_lower_a_maximum_and_not_raise_it() {
    let layers = || vec![administrator("[resources]\ncpu_max = 4\n")];
    let with = |cpu_max: u32| {
        let mut layers = layers();
        layers.push(project(&format!("[policy.resources]\ncpu_max = {cpu_max}\n")));
        policy(layers)
    };
    let ask = |policy: &Policy, cpu| policy.decide(&Request::Create(Create { cpu, ..create() }));
    assert!(ask(&with(64), 4).allowed);
    assert_eq!(ask(&with(64), 5).rule.file, "policy.toml");
    let decision = ask(&with(2), 3);
    assert_eq!(decision.rule.to_string(), "sandforge.toml:2: [resources] cpu_max = 2");
    let remedy = decision.remedy.unwrap();
    assert_eq!(remedy.to_string(), "at sandforge.toml:2, write:\ncpu_max = 3");
}

#[test]
fn a_grant_gives_some_more_and_nobody_less() {
    let text = "[resources]\ncpu_max = 4\n[[grant]]\nworkspaces = [\"ac*\"]\nroles = [\"member\"]\n\
                cpu_max = 8\n[[grant]]\nsubjects = [\"ci\"]\ncpu_max = 1\n";
    let policy = policy(vec![administrator(text)]);
    let ask = |who: Subject, cpu| {
        policy.decide(&Request::Create(Create { who, cpu, ..create() })).allowed
    };
    assert!(ask(member(), 8));
    assert!(!ask(member(), 9));
    assert!(ask(Subject { workspace: Some("other".into()), ..member() }, 4));
    assert!(!ask(Subject { workspace: Some("other".into()), ..member() }, 5));
    assert!(!ask(Subject { role: Role::Owner, ..member() }, 5));
    assert!(!ask(Subject { workspace: None, ..member() }, 5));
}

#[test]
fn no_end_is_more_than_any_time_to_live() {
    let policy = policy(vec![administrator("[resources]\ntimeout_sec_max = 60\n")]);
    let ask =
        |timeout_sec| policy.decide(&Request::Create(Create { timeout_sec, ..create() })).allowed;
    assert!(ask(Some(60)));
    assert!(!ask(Some(61)));
    assert!(!ask(None));
}

#[test]
fn sandboxes_are_counted_with_the_one_that_is_asked_for() {
    let policy = policy(vec![administrator("[resources]\nsandboxes_max = 2\n")]);
    let ask = |sandboxes| policy.decide(&Request::Create(Create { sandboxes, ..create() })).allowed;
    assert!(ask(1));
    assert!(!ask(2));
    assert!(!ask(u64::MAX));
}

#[test]
fn a_denied_image_stays_denied_whatever_is_granted() {
    let text = "[images]\nallow = [\"debian:*\"]\ndeny = [\"debian:9\"]\n\
                [[grant]]\nroles = [\"member\"]\nimages = [\"**\"]\n";
    let policy = policy(vec![administrator(text)]);
    let ask =
        |image: &str| policy.decide(&Request::Create(Create { image: image.into(), ..create() }));
    assert!(ask("debian:12").allowed);
    assert!(ask("ghcr.io/a/b").allowed);
    let decision = ask("debian:9");
    assert!(!decision.allowed);
    assert_eq!(decision.rule.text, "[images] deny: debian:9");
}

#[test]
fn the_most_specific_rule_is_shown() {
    let text = "[images]\ndeny = [\"*\", \"base*\", \"base\", \"b*\"]\n";
    let decision = policy(vec![administrator(text)]).decide(&Request::Create(create()));
    assert_eq!(decision.rule.text, "[images] deny: base");
    let text = "[images]\nallow = [\"*\", \"base\", \"b*\"]\n";
    let decision = policy(vec![administrator(text)]).decide(&Request::Create(create()));
    assert!(decision.allowed);
    assert_eq!(decision.rule.to_string(), "policy.toml:2: [images] allow: base");
}

#[test]
fn an_image_that_is_a_file_is_for_administrators() {
    let ask = |who| {
        let image = "/srv/root.tar".into();
        policy(Vec::new()).decide(&Request::Create(Create { who, image, ..create() })).allowed
    };
    assert!(!ask(member()));
    assert!(ask(root()));
}

#[test]
fn a_weaker_isolation_is_for_who_was_granted_it() {
    let ask = |who, layers, isolation| {
        let create = Create { who, isolation: Some(isolation), ..create() };
        policy(layers).decide(&Request::Create(create))
    };
    assert!(ask(member(), Vec::new(), Isolation::Emulated).allowed);
    assert!(!ask(member(), Vec::new(), Isolation::Process).allowed);
    assert!(ask(root(), Vec::new(), Isolation::Process).allowed);
    let strong = || vec![administrator("[isolation]\nminimum = \"vm\"\n")];
    assert!(!ask(root(), strong(), Isolation::Emulated).allowed);
    let granted = "[isolation]\nminimum = \"vm\"\n\
                   [[grant]]\nworkspaces = [\"acme\"]\nisolation = \"emulated\"\n";
    assert!(ask(member(), vec![administrator(granted)], Isolation::Emulated).allowed);
    let narrowed = vec![administrator(granted), project("[isolation]\nminimum = \"vm\"\n")];
    assert!(!ask(member(), narrowed, Isolation::Emulated).allowed);
}

#[test]
fn an_engine_is_chosen_among_what_the_policy_and_the_caller_want() {
    let weakest = |who, min_isolation, isolation, text: &str| {
        let create = Create { who, min_isolation, isolation, ..create() };
        policy(vec![administrator(text)]).decide(&Request::Create(create)).min_isolation.unwrap()
    };
    let strong = "[isolation]\nminimum = \"vm\"\n";
    assert_eq!(weakest(member(), None, None, strong), Isolation::Vm);
    assert_eq!(weakest(member(), Some(Isolation::Vm), None, ""), Isolation::Vm);
    // The host's own kernel only where it is named.
    assert_eq!(weakest(root(), None, None, ""), Isolation::Emulated);
    assert_eq!(weakest(root(), None, Some(Isolation::Process), ""), Isolation::Process);
}

#[test]
fn network_modes_are_those_of_every_layer() {
    let ask = |layers, mode| {
        policy(layers).decide(&Request::Network(NetworkRequest { who: member(), mode })).allowed
    };
    let modes = || administrator("[network]\nmodes = [\"offline\", \"fetch\"]\n");
    let fewer = project("[network]\nmodes = [\"offline\", \"open\"]\n");
    assert!(ask(Vec::new(), Network::Offline));
    assert!(!ask(Vec::new(), Network::Fetch));
    assert!(ask(vec![modes()], Network::Fetch));
    assert!(!ask(vec![modes(), fewer.clone()], Network::Fetch));
    assert!(!ask(vec![modes(), fewer], Network::Open));
}

#[test]
fn variables_are_judged_by_name() {
    let text = "[env]\nallow = [\"CI_*\", \"LANG\"]\ndeny = [\"*_TOKEN\"]\n";
    let ask = |names: &[&str]| {
        let env_names = names.iter().map(|name| (*name).to_owned()).collect();
        policy(vec![administrator(text)]).decide(&Request::Create(Create { env_names, ..create() }))
    };
    assert!(ask(&["CI_X", "CI_Y", "LANG"]).allowed);
    assert_eq!(ask(&["CI_TOKEN"]).rule.text, "[env] deny: *_TOKEN");
    let decision = ask(&["PATH", "CI_X", "HOME"]);
    let about: Vec<_> = decision.verdicts.iter().map(|verdict| verdict.reason.as_str()).collect();
    assert_eq!(
        about,
        [
            "variable \"HOME\" is not among what is allowed",
            "variable \"PATH\" is not among what is allowed",
        ]
    );
}

#[test]
fn a_command_is_denied_by_any_name_and_in_any_carrier() {
    let deny =
        || vec![administrator("[commands]\ndeny = [\"git push **\", [\"rm\", \"-rf\", \"/\"]]\n")];
    for command in [
        argv(&["git", "push"]),
        argv(&["/usr/bin/git", "push", "origin"]),
        argv(&["env", "-i", "A=1", "git", "push"]),
        argv(&["bash", "-c", "true; git push"]),
        argv(&["rm", "-rf", "/"]),
        shell("git push"),
        shell("cd x && 'git' \"push\" origin"),
        shell("echo $(git push)"),
        shell("nohup sh -c 'git push' &"),
    ] {
        assert!(!run(deny(), command.clone()).allowed, "{command:?}");
    }
    for command in [
        argv(&["git", "pull"]),
        argv(&["echo", "git push"]),
        argv(&["rm", "-rf", "/tmp"]),
        shell("git status; echo push"),
        shell("echo 'git push'"),
    ] {
        assert!(run(deny(), command.clone()).allowed, "{command:?}");
    }
}

#[test]
fn a_list_of_commands_does_not_allow_a_shell_that_it_does_not_name() {
    let allow =
        |patterns: &str| vec![administrator(&format!("[commands]\nallow = [{patterns}]\n"))];
    assert!(run(allow("'git **'"), argv(&["git", "status"])).allowed);
    assert!(!run(allow("'git **'"), argv(&["/tmp/git", "status"])).allowed);
    assert!(!run(allow("'git **'"), shell("git status")).allowed);
    assert!(!run(allow("'git **', '* **'"), shell("git status")).allowed);
    let decision = run(allow("'git **'"), shell("git status"));
    assert!(decision.remedy.unwrap().toml.unwrap().ends_with("commands = [\"sh -c *\"]"));
    assert!(run(allow("'sh -c *'"), shell("git status")).allowed);
    assert!(run(allow("'**'"), shell("git status")).allowed);
}

#[test]
fn a_line_of_too_many_commands_is_denied_where_anything_is() {
    let line = "true;".repeat(5000);
    assert!(run(Vec::new(), shell(&line)).allowed);
    let decision = run(vec![administrator("[commands]\ndeny = [\"x\"]\n")], shell(&line));
    assert!(!decision.allowed);
    assert!(decision.reason.contains("more commands than are looked at"), "{decision}");
}

#[test]
fn arguments_are_not_shown() {
    let layers = || vec![administrator("[commands]\nallow = [\"ls\"]\ndeny = [\"curl **\"]\n")];
    for command in [
        argv(&["curl", "-H", "canary"]),
        argv(&["wget", "canary"]),
        shell("curl canary"),
        shell("canary"),
    ] {
        let decision = run(layers(), command);
        assert!(!decision.allowed);
        let shown = format!("{decision}{decision:?}{}", serde_json::to_string(&decision).unwrap());
        assert!(!shown.contains("canary"), "{shown}");
    }
}

#[test]
fn a_user_of_the_guest_can_be_denied() {
    let ask = |user: &str| {
        let command = argv(&["id"]);
        let exec = Exec { who: member(), command, user: Some(user.into()), env_names: Vec::new() };
        let text = "[commands]\nusers = [\"1000*\"]\n";
        policy(vec![administrator(text)]).decide(&Request::Exec(exec)).allowed
    };
    assert!(ask("1000:1000"));
    assert!(!ask("root"));
}

#[test]
fn mounts_are_for_administrators_until_roots_are_named() {
    assert!(mount(root(), Vec::new(), "/home/ann/src").allowed);
    assert!(!mount(member(), Vec::new(), "/home/ann/src").allowed);
    let roots = || vec![administrator("[mounts]\nroots = [\"~/src\", \"/data/*/in\"]\n")];
    assert!(mount(member(), roots(), "/home/ann/src").allowed);
    assert!(mount(member(), roots(), "/home/ann/src/a/b").allowed);
    assert!(mount(member(), roots(), "/data/x/in").allowed);
    assert!(!mount(member(), roots(), "/data/x").allowed);
    assert!(!mount(member(), roots(), "/home/ann/srcx").allowed);
    assert!(!mount(root(), roots(), "/opt/x").allowed);
}

#[test]
fn credentials_sockets_and_the_whole_host_are_never_mounted() {
    for path in [
        "/",
        "/home",
        "/home/ann",
        "/home/bob",
        "/root",
        "/home/ann/.ssh",
        "/home/ann/.ssh/id_ed25519",
        "/home/ann/.Ssh",
        "/home/ann/src/.env",
        "/home/ann/.docker/config.json",
        "/home/ann/key.pem",
        "/run/docker.sock",
        "/opt/docker.sock",
        "/proc/1/root",
        "/var",
        "/var/lib",
        "/etc",
        "/srv",
        "/srv/sandforge/keys",
        "/home/ann/.config/sandforge",
    ] {
        let decision = mount(root(), Vec::new(), path);
        assert!(!decision.allowed, "{path}");
        assert_eq!(decision.rule.file, "built-in", "{path}");
        assert!(decision.masks.is_empty(), "{path}");
    }
}

#[test]
fn a_denied_name_on_the_way_denies_too() {
    assert!(!mount_as(root(), Vec::new(), "/data/keys", "/home/ann/.ssh").allowed);
    assert!(!mount_as(root(), Vec::new(), "/data/keys", ".ssh/../x").allowed);
    assert!(!mount_as(root(), Vec::new(), "/data/run", "/run/x").allowed);
    assert!(mount_as(root(), Vec::new(), "/data/keys", "keys").allowed);
}

#[test]
fn a_path_that_is_not_resolved_is_denied() {
    for path in ["src", "../src", "/home/ann/../bob/src", ""] {
        assert!(!mount(root(), Vec::new(), path).allowed, "{path}");
    }
}

#[test]
fn what_is_denied_below_a_mount_is_to_be_hidden() {
    let layers = vec![administrator("[mounts]\ndeny = [\"/home/ann/src/secret\", \"/other\"]\n")];
    let decision = mount(root(), layers, "/home/ann/src");
    assert!(decision.allowed, "{decision}");
    let [masks] = &decision.masks[..] else { panic!("{decision}") };
    for hidden in ["secret", "secret/x", "a/.env", ".ssh/config", "a/b/KEY.pem", "docker.sock"] {
        assert!(masks.hides(hidden.as_ref()), "{hidden}");
    }
    for seen in ["a/secret", "env", "src/main.rs", "secrets", ".env.example"] {
        assert!(!masks.hides(seen.as_ref()), "{seen}");
    }
    assert!(!masks.patterns.contains(&"/other".to_owned()));
}

#[test]
fn an_administrator_takes_back_a_built_in_denial_by_its_name() {
    let layers = || vec![administrator("[mounts]\nexcept = [\".env\"]\n")];
    assert!(!mount(root(), Vec::new(), "/home/ann/src/.env").allowed);
    let decision = mount(root(), layers(), "/home/ann/src/.env");
    assert!(decision.allowed, "{decision}");
    let decision = mount(root(), layers(), "/home/ann/src");
    assert!(!decision.masks[0].hides(".env".as_ref()));
    assert!(decision.masks[0].hides(".env.local".as_ref()));
    let remedy = mount(root(), layers(), "/home/ann/.kube").remedy.unwrap();
    assert_eq!(remedy.to_string(), "in the list of policy.toml:2, add:\n\".kube\"");
    let remedy = mount(root(), Vec::new(), "/home/ann/.kube").remedy.unwrap();
    assert_eq!(remedy.to_string(), "add to policy.toml, under [mounts]:\nexcept = [\".kube\"]");
}

#[test]
fn any_layer_makes_mounts_read_only() {
    for layer in [
        administrator("[mounts]\nread_only = true\n"),
        project("[policy.mounts]\nread_only = true\n"),
    ] {
        let decision = mount(root(), vec![layer], "/home/ann/src");
        assert!(!decision.allowed);
        assert_eq!(decision.rule.text, "[mounts] read_only = true");
    }
    assert!(mount(root(), vec![project("[mounts]\nread_only = false\n")], "/home/ann/src").allowed);
}

/// Doing what each remedy says makes the denial go.
#[test]
fn remedies_allow_what_they_say() {
    let text = "[resources]\ncpu_max = 1\nmemory_mb_max = 1\ndisk_gb_max = 1\ntimeout_sec_max = 1\n\
                sandboxes_max = 1\n[images]\nallow = []\n[mounts]\nroots = []\n[network]\nmodes = []\n\
                [env]\nallow = []\n[isolation]\nminimum = \"vm\"\n[commands]\nallow = []\nusers = []\n";
    let mount = Mount {
        host_path: "/home/ann/my \"src\"".into(),
        requested: "src".into(),
        guest_path: "/workspace".into(),
        read_only: true,
    };
    let create = Create {
        cpu: 2,
        disk_gb: Some(2),
        timeout_sec: Some(2),
        mounts: vec![mount],
        env_names: vec!["A".into(), "B".into()],
        isolation: Some(Isolation::Emulated),
        sandboxes: 1,
        ..create()
    };
    let exec = |command| {
        let user = Some("root".into());
        Request::Exec(Exec { who: member(), command, user, env_names: vec!["A".into()] })
    };
    let requests =
        [Request::Create(create), exec(argv(&["/bin/ls", "-l"])), exec(shell("ls | wc"))];
    for (request, denials) in requests.iter().zip([11, 3, 3]) {
        let decision = policy(vec![administrator(text)]).decide(request);
        assert_eq!(decision.verdicts.len(), denials, "{decision}");
        let mut repaired = text.to_owned();
        for verdict in &decision.verdicts {
            let remedy = verdict.remedy.as_ref().unwrap();
            assert_eq!(remedy.text, "add to policy.toml:");
            repaired += remedy.toml.as_deref().unwrap();
            repaired.push('\n');
        }
        let decision = policy(vec![administrator(&repaired)]).decide(request);
        assert!(decision.allowed, "{decision}\n{repaired}");
        assert_eq!(decision.rule.file, "policy.toml");
    }
}

#[test]
fn a_volume_has_the_bound_of_a_disk() {
    let decide = |text: &str, size_gb| {
        let volume = VolumeRequest { who: member(), size_gb };
        policy(vec![administrator(text)]).decide(&Request::Volume(volume))
    };
    let bound = "[resources]\ndisk_gb_max = 10\n";
    assert!(decide(bound, 10).allowed);
    let denied = decide(bound, 11);
    assert!(!denied.allowed);
    assert_eq!((denied.rule.file.as_str(), denied.rule.line), ("policy.toml", 2));
    // What is built in.
    assert!(decide("", 256).allowed);
    assert!(!decide("", 257).allowed);
}

#[test]
fn a_project_is_added_for_its_own_requests_only() {
    let general = policy(Vec::new());
    let narrow = general.narrowed(vec![project("[images]\nallow = []\n")]).unwrap();
    assert!(!narrow.decide(&Request::Create(create())).allowed);
    assert!(general.decide(&Request::Create(create())).allowed);
    let error = general.narrowed(vec![administrator("")]).unwrap_err();
    assert!(error.to_string().contains("reload"), "{error}");
}

#[test]
fn what_holds_for_a_subject_can_be_shown() {
    let layers = vec![
        administrator("[resources]\ncpu_max = 4\n[[grant]]\nroles = [\"member\"]\ncpu_max = 8\n"),
        project("[policy.resources]\ntimeout_sec_max = 60\n"),
    ];
    let effective = policy(layers).effective(&member());
    assert_eq!(effective.most(Resource::Cpu), Some(8));
    assert_eq!(effective.most(Resource::TimeoutSec), Some(60));
    assert_eq!(effective.isolation.as_ref().unwrap().isolation, Isolation::Emulated);
    let shown = effective.to_string();
    assert!(shown.contains("cpu: at most 8\n  policy.toml:5: [grant] cpu_max = 8\n"), "{shown}");
    assert!(shown.contains("[mounts] deny: .ssh"), "{shown}");
    assert!(serde_json::to_string(&effective).unwrap().contains("\"timeout_sec\""));
}

#[test]
fn a_reload_is_another_generation_and_a_failed_one_none() {
    let homeless = Host { home: None, own: Vec::new() };
    let live = Live::new(homeless, Vec::new(), policy::Generation(7)).unwrap();
    let before = live.load();
    assert_eq!(live.replace(vec![administrator("[images]\nallow = []\n")]).unwrap().0, 8);
    let error = live.replace(vec![administrator("[mounts]\n\nroots = [\"~/src\"]\n")]).unwrap_err();
    assert_eq!((error.line, error.file.as_str()), (3, "policy.toml"));
    let decision = live.load().decide(&Request::Create(create()));
    assert_eq!((decision.allowed, decision.generation.0), (false, 8));
    // Who began with the one before ends with it.
    let decision = before.decide(&Request::Create(create()));
    assert_eq!((decision.allowed, decision.generation.0), (true, 7));
}

#[test]
fn several_administrators_files_must_all_agree() {
    let one = || {
        Layer::parse(
            "a.toml",
            "[resources]\ncpu_max = 8\n[images]\nallow = [\"b*\"]\n",
            Kind::Administrator,
        )
        .unwrap()
    };
    let other = || {
        Layer::parse(
            "b.toml",
            "[resources]\ncpu_max = 4\n[images]\nallow = [\"*e\"]\n",
            Kind::Administrator,
        )
        .unwrap()
    };
    for layers in [vec![one(), other()], vec![other(), one()]] {
        let ask = |cpu, image: &str| {
            let create = Create { cpu, image: image.into(), ..create() };
            policy(layers.clone()).decide(&Request::Create(create)).allowed
        };
        assert!(ask(4, "base"));
        assert!(!ask(5, "base"));
        assert!(!ask(4, "build"));
        assert!(!ask(4, "alpine"));
    }
}

#[test]
fn lines_about_the_network_are_bounds_with_their_places() {
    let layer = |text: &str, kind| policy::Layer::parse("p.toml", text, kind).unwrap();
    let layers = vec![
        layer("[network]\nallow = [\"READ **\"]", Kind::Administrator),
        layer("[policy.network]\ndeny = [\"a.com\"]", Kind::Project),
    ];
    let host = Host { home: Some("/home/ann".into()), own: Vec::new() };
    let policy = Policy::new(host, layers).unwrap();
    let rules = rules::Rules::new(rules::Mode::Open, vec![], policy.endpoints()).unwrap();
    let reaches = |name: &str| {
        let host = canonical::Host::parse(name).unwrap();
        rules.endpoint(&host, 443).map(|endpoint| endpoint.kind)
    };
    assert_eq!(reaches("b.com"), Ok(rules::Kind::Http));
    let refusal = reaches("a.com").unwrap_err();
    assert_eq!(refusal.rule.unwrap().to_string(), "p.toml:2: \"a.com\"");
}
