//! Files of policy: each mistake has a place and is told in one line; what a project says takes away
//! and never gives.
#![no_main]

use libfuzzer_sys::fuzz_target;
use policy::{
    Command, Create, Exec, Host, Isolation, Kind, Layer, Mount, MountRequest, Network,
    NetworkRequest, Policy, Request, Role, Subject,
};

/// Between an administrator's file and a project's.
const BETWEEN: &str = "%%\n";

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (general, narrower) = text.split_once(BETWEEN).unwrap_or((text, ""));
    let general = parse(general, Kind::Administrator);
    let narrower = parse(narrower, Kind::Project);
    let layers = general.into_iter().collect::<Vec<_>>();
    let policy = Policy::new(host(), layers).expect("there is a home directory");
    let Some(narrower) = narrower else { return };
    let narrowed = policy.narrowed(vec![narrower]).expect("it is a project's");
    let requests = requests();
    assert!(!narrowed.effective(requests[0].who()).to_string().contains(is_hostile));
    for request in requests {
        let (before, after) = (policy.decide(&request), narrowed.decide(&request));
        assert!(before.allowed || !after.allowed, "a project allowed more:\n{before}\n{after}");
        assert!(!after.to_string().contains(is_hostile), "{after:?}");
        if after.allowed {
            assert!(after.min_isolation >= before.min_isolation);
            for (before, after) in before.masks.iter().zip(&after.masks) {
                let kept = before.patterns.iter().all(|one| after.patterns.contains(one));
                assert!(kept, "a project showed more");
            }
        }
    }
});

fn is_hostile(char: char) -> bool {
    char.is_control() && char != '\n'
}

fn parse(text: &str, kind: Kind) -> Option<Layer> {
    match Layer::parse("p.toml", text, kind) {
        Ok(layer) => Some(layer),
        Err(error) => {
            let message = error.to_string();
            assert!(!message.contains(char::is_control), "{message:?}");
            let line = text.split('\n').nth(error.line as usize - 1).expect("there is that line");
            assert!(error.column as usize <= line.chars().count() + 1, "{message}");
            None
        }
    }
}

fn host() -> Host {
    Host { home: Some("/home/ann".into()), own: vec!["/home/ann/state".into()] }
}

fn requests() -> Vec<Request> {
    let subject = |name: &str, role, workspace: Option<&str>| Subject {
        name: name.to_owned(),
        role,
        workspace: workspace.map(str::to_owned),
    };
    let mount = |path: &str, read_only| Mount {
        host_path: path.into(),
        requested: path.into(),
        guest_path: "/workspace".to_owned(),
        read_only,
    };
    let mut requests = Vec::new();
    for who in
        [subject("ci", Role::Member, Some("acme")), subject("local:0", Role::Administrator, None)]
    {
        requests.push(Request::Create(Create {
            who: who.clone(),
            cpu: 2,
            memory_mb: 1024,
            disk_gb: Some(1),
            timeout_sec: Some(60),
            image: "base".to_owned(),
            mounts: vec![mount("/home/ann/src", true)],
            network: Network::Offline,
            env_names: vec!["CI_A".to_owned(), "AWS_KEY".to_owned()],
            min_isolation: None,
            isolation: Some(Isolation::Emulated),
            sandboxes: 0,
        }));
        for path in ["/home/ann/src", "/home/ann/src/.env", "/data/x/in"] {
            let mount = mount(path, false);
            requests.push(Request::Mount(MountRequest { who: who.clone(), mount }));
        }
        let argv = ["git", "push", "origin"].map(str::to_owned).to_vec();
        for command in [Command::Argv(argv), Command::Shell("cd x && git push".to_owned())] {
            let user = Some("root".to_owned());
            let env_names = vec!["LANG".to_owned()];
            requests.push(Request::Exec(Exec { who: who.clone(), command, user, env_names }));
        }
        requests.push(Request::Network(NetworkRequest { who, mode: Network::Fetch }));
    }
    requests
}
