//! Real clients in a sandbox, as their users have them from PyPI, npm and Debian, against servers of our
//! own that take the real credentials only. One sandbox for many clients, on the host's kernel: what
//! a machine adds is the way there, which one of them tries in one.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use support::origin::{Server, certify, registries, upstream};
use support::{Call, Output, engines};
use tempfile::{TempDir, tempdir};

/// What the sandbox must never see, by the variable that its server has it in, and ours.
const REAL: [(&str, &str, &str); 4] = [
    ("REAL_OPENAI", "OPENAI_API_KEY", "sk-real-0123456789abcdefghijklmnopqrstuvwxyz"),
    ("REAL_ANTHROPIC", "ANTHROPIC_API_KEY", "sk-ant-real-0123456789abcdefghijklmnopqrst"),
    ("REAL_GITHUB", "GITHUB_TOKEN", "ghp_real0123456789abcdefghijklmnopqrstuv"),
    ("REAL_XAI", "XAI_API_KEY", "xai-real0123456789abcdefghijklmnopqrstuv"),
];
const AWS: [&str; 2] = ["AKIAREAL0123456789AB", "real/secret0123456789abcdefghijklmnopqrs"];

const HOSTS: [&str; 8] = [
    "api.openai.com",
    "api.anthropic.com",
    "api.x.ai",
    "bedrock-runtime.us-east-1.amazonaws.com",
    "github.com",
    "docs.example",
    "api.github.com",
    "store.example",
];

/// The clients of Python, at versions that are kept in the cache.
const PYTHON: [&str; 6] = [
    "requests==2.34.2",
    "openai==3.54.0",
    "anthropic==2.12.0",
    "boto3==1.44.5",
    "grpcio==1.85.1",
    "websockets==17.4",
];
/// Those of Node.js.
const NODE: [&str; 4] = [
    "openai@6.49.0",
    "@anthropic-ai/sdk@1.12.0",
    "@opentelemetry/api@1.10.0
..
.",
    "ws@8.23.0",
];

fn not_run(what: &str) {
    eprintln!("not run: {what}");
}

/// Programs as the sandbox of the process engine has them.
fn plain(program: &str) -> Command {
    let mut command = Command::new("/usr/bin/env");
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin").arg(program);
    command
}

/// A directory of the cache that holds what `fill` put there, for as long as `wanted` is the same.
fn cached(name: &str, wanted: &str, fill: impl FnOnce(&Path) -> bool) -> Option<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let place = cache.join("sandforge/test-clients").join(name);
    let mark = place.join("wanted");
    if fs::read_to_string(&mark).is_ok_and(|text| text == wanted) {
        return Some(place);
    }
    let _ = fs::remove_dir_all(&place);
    fs::create_dir_all(&place).unwrap();
    if !fill(&place) {
        return None;
    }
    fs::write(mark, wanted).unwrap();
    Some(place)
}

/// Packages as they are, of which nothing is run on the way.
fn python() -> Option<PathBuf> {
    let version = plain("python3").arg("--version").output().ok()?.stdout;
    let wanted = format!("{}{}", String::from_utf8_lossy(&version), PYTHON.join(" "));
    cached("python", &wanted, |place| {
        let mut pip = plain("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
        pip.args(["--only-binary", ":all:", "--target"]).arg(place).args(PYTHON);
        pip.env("PIP_ROOT_USER_ACTION", "ignore");
        pip.status().is_ok_and(|status| status.success())
    })
}

fn node() -> Option<PathBuf> {
    let place = cached("node", &NODE.join(" "), |place| {
        let mut npm = plain("npm");
        npm.args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]);
        npm.args(NODE).arg("--prefix").arg(place);
        npm.status().is_ok_and(|status| status.success())
    })?;
    Some(place.join("node_modules"))
}

/// The servers, a directory to work in, and what has been asked with real credentials.
struct Place {
    directory: TempDir,
    _origin: Server,
}

impl Place {
    fn new(python: &Path) -> Self {
        let directory = tempdir().unwrap();
        let path = directory.path();
        certify(path, &HOSTS);
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
        let repositories = path.join("repositories");
        let git = |arguments: &[&str]| {
            let git = Command::new("git").args(arguments).stdout(Stdio::null()).status();
            assert!(git.unwrap().success(), "{arguments:?}");
        };
        let seed = path.join("seed");
        let at = seed.to_str().unwrap();
        git(&["init", "--quiet", "--initial-branch=main", at]);
        let author = ["-c", "user.name=a", "-c", "user.email=a@example.com"];
        let commit = ["commit", "--quiet", "--allow-empty", "--message=one"];
        git(&[&["-C", at], &author[..], &commit].concat());
        for name in ["acme/web", "acme/big"] {
            let bare = repositories.join(name);
            let to = bare.to_str().unwrap();
            git(&["clone", "--quiet", "--bare", at, to]);
            git(&["-C", to, "config", "http.receivepack", "true"]);
        }

        let mut origin = plain("python3");
        origin.env("PYTHONPATH", python).env("REAL_AWS", AWS.join(":"));
        origin.envs(REAL.map(|(variable, _, value)| (variable, value)));
        origin.arg(sources.join("origin.py"));
        origin.args([path.join("server.pem"), path.join("server.key"), path.join("grpc")]);
        let origin = Server::start(origin.arg(&repositories).arg(path.join("log")));
        let grpc = fs::read_to_string(path.join("grpc")).unwrap().parse().unwrap();
        let mut addresses = HOSTS.map(|host| (host.to_owned(), origin.address)).to_vec();
        for (host, address) in &mut addresses {
            if host == "api.x.ai" {
                address.set_port(grpc);
            }
        }
        fs::create_dir(path.join("config")).unwrap();
        fs::write(path.join("config/upstream.toml"), upstream(path, &addresses)).unwrap();
        fs::create_dir(path.join("work")).unwrap();
        for name in ["clients.py", "clients.mjs"] {
            fs::copy(sources.join(name), path.join("work").join(name)).unwrap();
        }
        Self { directory, _origin: origin }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let below = |name: &str| self.directory.path().join(name);
        fs::create_dir_all(below("run")).unwrap();
        let call = Call::new(["run", "-w", "."])
            .arguments(arguments)
            .directory(&below("work"))
            .env("SANDFORGE_CONFIG_DIR", below("config"))
            .env("SANDFORGE_DATA_DIR", below("data"))
            .env("SANDFORGE_RUNTIME_DIR", below("run"))
            .env("GH_TOKEN", "")
            .env("AWS_SESSION_TOKEN", "")
            .env("AWS_ACCESS_KEY_ID", AWS[0])
            .env("AWS_SECRET_ACCESS_KEY", AWS[1]);
        REAL.iter().fold(call, |call, (_, variable, value)| call.env(variable, value)).output()
    }

    fn asked(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

/// Looks at what each client said of itself.
#[track_caller]
fn expect(output: &Output, lines: &[(&str, &str)]) {
    let said = String::from_utf8_lossy(&output.stdout);
    for (client, what) in lines {
        let line = said.lines().find_map(|line| line.strip_prefix(&format!("{client} ")));
        assert_eq!(line, Some(*what), "{client}: {output}");
    }
    for (_, _, value) in REAL.iter().chain([&("", "", AWS[1])]) {
        assert!(!said.contains(value), "{output}");
    }
}

const CREDENTIALS: [&str; 4] = ["openai", "anthropic", "xai", "aws"];

#[test]
fn clients_of_python_and_git_use_credentials_that_they_never_have() {
    let Some(engine) = engines().first().copied() else { return };
    let Some(python) = python() else {
        return not_run("clients of Python: pip cannot install them");
    };
    let place = Place::new(&python);
    let mount = format!("{}:/clients/python:ro", python.display());
    let mut arguments = vec!["--engine", engine, "--memory=2g", "--mount", &mount];
    for name in CREDENTIALS {
        arguments.extend(["--credential", name]);
    }
    arguments.extend(["--credential", "github", "--allow", "@github git fetch acme/web"]);
    arguments.extend(["--allow", "@github git push acme/web refs/heads/agent/**"]);
    arguments.extend(["--allow", "READ docs.example/guide", "-e", "PYTHONPATH=/clients/python"]);
    arguments.extend(["--", "python3", "clients.py", "requests", "openai", "anthropic"]);
    arguments.extend(["boto3", "websocket", "grpcio", "git"]);
    let output = place.run(&arguments).exits(0);
    expect(
        &output,
        &[
            ("requests", "403"),
            ("openai", "('heard', 'heard')"),
            ("anthropic", "('heard', 'heard')"),
            ("boto3", "heard"),
            ("websocket", "over a socket"),
            ("grpcio", "(b'heard it', 'all', 'PERMISSION_DENIED')"),
            ("git", "cloned, pushed, refused"),
        ],
    );
    let asked = place.asked();
    for host in &HOSTS[..5] {
        assert!(asked.contains(host), "{host}: {asked}");
    }
    assert_eq!(asked.matches("/xai_api.").count(), 1, "{asked}");
    assert_eq!(asked.matches("POST /acme/web/git-receive-pack").count(), 1, "{asked}");
    let web = place.directory.path().join("repositories/acme/web");
    let refs = Command::new("git").arg("-C").arg(web).arg("for-each-ref").output().unwrap();
    let refs = String::from_utf8(refs.stdout).unwrap();
    assert!(refs.contains("refs/heads/agent/one"), "{refs}");
}

#[test]
fn clients_of_node_use_credentials_that_they_never_have() {
    // The image has none.
    if !engines().contains(&"process") {
        return;
    }
    let (Some(python), Some(node)) = (python(), node()) else {
        return not_run("clients of Node.js: npm cannot install them");
    };
    let place = Place::new(&python);
    let mount = format!("{}:/clients/node_modules:ro", node.display());
    let output = place.run(&[
        "--engine=process",
        "--memory=2g",
        "--mount",
        &mount,
        "--credential=openai",
        "--credential=anthropic",
        "--allow=READ docs.example/guide",
        "--",
        "node",
        "clients.mjs",
        "/clients/node_modules",
    ]);
    expect(
        &output.exits(0),
        &[
            ("node-fetch", "{\"path\":\"/guide?a=1\",\"method\":\"GET\"}"),
            ("node-openai", "heard heard"),
            ("node-anthropic", "heard heard"),
            ("node-websocket", "over a socket"),
        ],
    );
}

#[test]
fn git_goes_the_same_way_out_of_a_machine() {
    let machine = engines().into_iter().find(|engine| *engine != "process");
    let Some(engine) = machine else { return };
    let Some(python) = python() else {
        return not_run("git in a machine: pip cannot install what its server is made of");
    };
    let place = Place::new(&python);
    let output = place.run(&[
        "--engine",
        engine,
        "--credential=github",
        "--allow=@github git fetch acme/web",
        "--allow=@github git push acme/web refs/heads/agent/**",
        "--",
        "python3",
        "clients.py",
        "git",
    ]);
    expect(&output.exits(0), &[("git", "cloned, pushed, refused")]);
    let asked = place.asked();
    assert_eq!(asked.matches("POST /acme/web/git-receive-pack").count(), 1, "{asked}");
}

/// Whether this host has a program, and with it the sandboxes of the process engine. No image has it.
fn has(program: &str) -> bool {
    if !engines().contains(&"process") {
        return false;
    }
    let found = plain(program).arg("--version").output().is_ok_and(|said| said.status.success());
    if !found {
        not_run(&format!("{program}: it is not installed (apt-get install {program})"));
    }
    found
}

#[test]
fn gh_uses_a_token_that_it_never_has_for_what_the_service_lets_it() {
    if !has("gh") {
        return;
    }
    let Some(python) = python() else {
        return not_run("gh: pip cannot install what its server is made of");
    };
    let place = Place::new(&python);
    let output = place.run(&[
        "--engine=process",
        "--memory=2g",
        "--credential=github",
        "--",
        "python3",
        "clients.py",
        "gh",
    ]);
    expect(&output.exits(0), &[("gh", "robot, a fault, 2, refused, refused")]);
    let asked = place.asked();
    assert!(asked.matches("api.github.com POST /graphql").count() >= 2, "{asked}");
    assert!(!asked.contains("DELETE"), "{asked}");
}

/// The server says where each object is: at its own host, which the credential is for, or at another,
/// which does not get it.
#[test]
fn git_lfs_moves_objects_and_the_token_goes_to_no_other_host() {
    if !has("git-lfs") {
        return;
    }
    let Some(python) = python() else {
        return not_run("git-lfs: pip cannot install what its server is made of");
    };
    let place = Place::new(&python);
    let output = place.run(&[
        "--engine=process",
        "--memory=2g",
        "--credential=github",
        "--allow=@github git fetch acme/big",
        "--allow=@github git push acme/big refs/heads/agent/**",
        "--allow=READ store.example/lfs/*",
        "--allow=PUT store.example/lfs/*",
        "--",
        "python3",
        "clients.py",
        "lfs",
    ]);
    let asked = place.asked();
    expect(&output.exits(0), &[("lfs", "refused, uploaded, downloaded")]);
    for (line, times) in [
        ("github.com PUT /acme/big.git/info/lfs/objects/", 2),
        ("github.com GET /acme/big.git/info/lfs/objects/", 2),
        ("store.example PUT /lfs/", 2),
        ("store.example GET /lfs/", 2),
        ("got a credential", 0),
    ] {
        assert_eq!(asked.matches(line).count(), times, "{line}: {asked}");
    }
}

/// A wheel of pip, which can be run as it is: of what is installed policy hides the certificates.
fn pip() -> Option<PathBuf> {
    let wanted = "pip==26.3";
    let place = cached("pip", wanted, |place| {
        let mut pip = plain("python3");
        pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "-d"]);
        pip.arg(place).arg(wanted).env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
        let is_there = pip.status().is_ok_and(|status| status.success());
        let wheel = fs::read_dir(place).unwrap().next();
        is_there
            && wheel.is_some_and(|wheel| {
                fs::rename(wheel.unwrap().path(), place.join("pip.whl")).is_ok()
            })
    })?;
    Some(place.join("pip.whl"))
}

/// The tools have nothing but their own configuration, which in a sandbox is none, and the registries are
/// those that this user's tools are configured for.
#[test]
fn tools_fetch_packages_and_nothing_is_sent() {
    // The image has none of them.
    if !engines().contains(&"process") {
        return;
    }
    let directory = tempdir().unwrap();
    let below = |name: &str| directory.path().join(name);
    for name in ["config", "run", "work"] {
        fs::create_dir(below(name)).unwrap();
    }
    certify(directory.path(), &[]);
    let call = |arguments: &[&str]| {
        Call::new(arguments)
            .directory(&below("work"))
            .env("SANDFORGE_CONFIG_DIR", below("config"))
            .env("SANDFORGE_DATA_DIR", below("data"))
            .env("SANDFORGE_RUNTIME_DIR", below("run"))
            .output()
    };
    call(&["policy", "init"]).exits(0);
    let known = registries(&fs::read_to_string(below("config/registries.toml")).unwrap());
    let addresses: Vec<_> = known.iter().map(|(_, host, at)| (host.clone(), *at)).collect();
    fs::write(below("config/upstream.toml"), upstream(directory.path(), &addresses)).unwrap();
    let reaches = |kind: &str| known.iter().any(|(of, _, _)| of == kind);
    let host = |kind: &str| {
        let found = known.iter().find(|(of, _, _)| of == kind);
        found.map(|(_, host, _)| host.clone()).unwrap_or_default()
    };

    let mut mounts = Vec::new();
    let mut script = String::new();
    let mut expected = Vec::new();
    match pip().filter(|_| reaches("pip")) {
        None => not_run("pip: it is not there, or its registry is not"),
        Some(wheel) => {
            mounts.push(format!("{}:/clients/pip.whl:ro", wheel.display()));
            script.push_str("python3 /clients/pip.whl/pip install -q --no-deps -t /tmp/p six; ls /tmp/p/six.py\n");
            expected.push("/tmp/p/six.py");
        }
    }
    let has_npm = plain("npm").arg("--version").output().is_ok_and(|npm| npm.status.success());
    if reaches("npm") && has_npm {
        script.push_str(
            "npm install --silent --prefix /tmp/n is-number; ls -d /tmp/n/node_modules/is-number\n",
        );
        expected.push("/tmp/n/node_modules/is-number");
    } else {
        not_run("npm: it is not there, or its registry is not");
    }
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output();
    let sysroot = sysroot.map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned());
    let cargo = sysroot.map(|root| Path::new(&root).join("bin/cargo")).unwrap_or_default();
    if reaches("cargo") && cargo.is_file() {
        mounts.push(format!("{}:/clients/cargo:ro", cargo.display()));
        // It asks the compiler for its version, and for nothing else here.
        let version = Command::new("rustc").arg("-vV").output().unwrap().stdout;
        fs::write(below("work/version"), version).unwrap();
        script.push_str(
            "printf '#!/bin/sh\\ncat /workspace/version\\n' > /tmp/rustc; chmod +x /tmp/rustc\n\
             cd /tmp; CARGO_HOME=/tmp/c RUSTC=/tmp/rustc /clients/cargo info -q itoa | head -1\n",
        );
        expected.push("itoa #integer");
    } else {
        not_run("cargo: it is not there, or it has fetched from no registry");
    }
    if expected.is_empty() {
        return;
    }
    let sent = ["npm", "pip", "cargo"].map(host).into_iter().find(|host| !host.is_empty()).unwrap();
    script
        .push_str(&format!("curl -s -d x -o /dev/null -w '%{{http_code}}\\n' https://{sent}/x\n"));
    expected.push("403");
    let mut arguments =
        vec!["run", "--engine=process", "--memory=2g", "-w", ".", "--network=fetch"];
    for mount in &mounts {
        arguments.extend(["--mount", mount]);
    }
    arguments.extend(["--", "sh", "-c", &script]);
    let output = call(&arguments);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in expected {
        assert!(said.lines().any(|one| one == line), "{line}: {output}");
    }
}
