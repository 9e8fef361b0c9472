//! Coding agents by name: real ones, from the npm registry, with a model of our own and a key that no
//! sandbox has.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::origin::{Server, certify, registry, upstream};
use support::{Call, engines};
use tempfile::{TempDir, tempdir};

const KEY: &str = "sk-real-0123456789abcdefghijklmnopqrstuvwxyz";

/// Has no key and no secret of the user's.
fn call(directory: &Path, arguments: &[&str]) -> Call {
    let below = |name: &str| directory.join(name);
    fs::create_dir_all(below("run")).unwrap();
    fs::create_dir_all(below("config")).unwrap();
    fs::create_dir_all(below("work")).unwrap();
    Call::new(arguments)
        .env("SANDFORGE_CONFIG_DIR", below("config"))
        .env("SANDFORGE_DATA_DIR", below("data"))
        .env("SANDFORGE_RUNTIME_DIR", below("run"))
        .env("SANDFORGE_SECRETS_STORE", "key-file")
        .env("ANTHROPIC_API_KEY", "")
        .env("ANTHROPIC_AUTH_TOKEN", "")
        .env("OPENAI_API_KEY", "")
        .directory(&directory.join("work"))
}

/// An agent, and what it needs beside its name to do a task that somebody gives it.
struct Case {
    agent: &'static str,
    package: &'static str,
    host: &'static str,
    variable: &'static str,
    arguments: &'static [&'static str],
}

const CLAUDE: Case = Case {
    agent: "claude",
    package: "@anthropic-ai/claude-code",
    host: "api.anthropic.com",
    variable: "ANTHROPIC_API_KEY",
    arguments: &["--", "-p", "do the task", "--dangerously-skip-permissions"],
};

const CODEX: Case = Case {
    agent: "codex",
    package: "@openai/codex",
    host: "api.openai.com",
    variable: "OPENAI_API_KEY",
    arguments: &[
        "exec",
        // One that is given plain tools.
        "--model=gpt-5",
        "--skip-git-repo-check",
        // It is in a sandbox.
        "--dangerously-bypass-approvals-and-sandbox",
        "do the task",
    ],
};

/// A model, and all that a call needs to have its agent.
struct Place {
    directory: TempDir,
    log: PathBuf,
    _model: Server,
}

impl Place {
    /// None, and a line that says why, where the agent is not to be had.
    fn new(case: &Case) -> Option<Self> {
        let missing = |what: &str| eprintln!("not run: {} is not to be had: {what}", case.agent);
        let Some(npm) = registry(Command::new("npm").args(["config", "get", "registry"])) else {
            missing("there is no npm, or no registry");
            return None;
        };
        let view = ["view", case.package, "version", "--fetch-retries=0"];
        let view = Command::new("npm").args(view).stdout(Stdio::null()).status();
        if !view.is_ok_and(|status| status.success()) {
            missing("npm does not find it");
            return None;
        }
        let directory = tempdir().unwrap();
        let path = directory.path();
        certify(path, &[case.host]);
        let log = path.join("log");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/agents/model.py");
        let mut model = Command::new("python3");
        model.arg(script).args([path.join("server.pem"), path.join("server.key")]);
        let model = Server::start(model.arg(KEY).arg(&log));
        let addresses = [npm, (case.host.to_owned(), model.address)];
        fs::create_dir(path.join("config")).unwrap();
        fs::write(path.join("config/upstream.toml"), upstream(path, &addresses)).unwrap();
        Some(Self { directory, log, _model: model })
    }
}

fn does_its_task(case: &Case, engine: &str) {
    let Some(place) = Place::new(case) else { return };
    let path = place.directory.path();
    let arguments = [&["run", "--engine", engine, case.agent], case.arguments].concat();
    let output = call(path, &arguments).env(case.variable, KEY).output().exits(0);
    let output = output
        .says("works on a copy of this directory")
        .says(&format!("from ${}: the sandbox has a placeholder", case.variable));
    assert!(String::from_utf8_lossy(&output.stdout).contains("The task is done."), "{output}");

    // Looked at before it is taken over.
    assert!(!path.join("work/task.txt").exists());
    call(path, &["apply"]).output().exits(0);
    let work = |name: &str| fs::read_to_string(path.join("work").join(name)).unwrap();
    assert_eq!(work("task.txt"), "written by an agent\n");
    let seen = work("seen.txt");
    assert!(seen.contains(&format!("\n{}=sk-", case.variable)), "{seen}");
    assert!(!seen.contains(KEY), "{seen}");
    let log = fs::read_to_string(&place.log).unwrap();
    let asked: Vec<&str> = log.lines().collect();
    assert!(asked.len() >= 2 && asked.iter().all(|line| line.ends_with(" real")), "{log}");
}

/// On the host's kernel, and in a machine of its own.
#[test]
fn an_agent_does_its_task_with_a_key_that_it_never_has() {
    let engines = engines();
    let machine = engines.iter().skip(1).find(|engine| **engine != "process");
    for engine in engines.first().into_iter().chain(machine) {
        does_its_task(&CLAUDE, engine);
    }
}

#[test]
fn another_agent_does_it_over_another_api() {
    if let Some(engine) = engines().first() {
        does_its_task(&CODEX, engine);
    }
}

#[test]
fn an_agent_that_cannot_start_says_what_to_do() {
    let directory = tempdir().unwrap();
    let ask = |arguments: &[&str]| call(directory.path(), arguments).output().exits(125);
    ask(&["run", "pi"]).says("needs Node.js").says("--image NAME|PATH");
    ask(&["run", "--image", "base", "claude@1.2.3"]).says("leave --image out, or the version");
    let missing = ask(&["run", "--image", "base", "claude", "--version"]);
    missing.says("no credential for `anthropic`").says("sandforge secret set -g anthropic");
    let offline = ask(&["run", "--network", "offline", "--image", "base", "claude"]);
    offline.says("offline");
}

#[test]
fn what_is_set_and_of_no_use_is_told() {
    let Some(engine) = engines().first().copied() else { return };
    let directory = tempdir().unwrap();
    let ask = |flags: &[&str]| {
        let arguments = [&["run", "--engine", engine], flags, &["--", "true"]].concat();
        call(directory.path(), &arguments).env("OPENAI_API_KEY", KEY).output().exits(0)
    };
    let other = ask(&["--allow", "READ docs.example"]);
    other.says("openai (from $OPENAI_API_KEY); to use one: --credential NAME");
    let shut = ask(&["--credential", "openai", "--deny", "api.openai.com"]);
    shut.says("credential openai, from $OPENAI_API_KEY, is of no use: no rule lets api.openai.com");
    let used = ask(&["--credential", "openai"]);
    assert!(!used.stderr.contains("no rule"), "{used}");
    assert!(!ask(&[]).stderr.contains("credential"));
}
