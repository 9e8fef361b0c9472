//! Several processes and one store: nobody's change is lost, and one that is killed leaves a whole file.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use secrets::{Key, New, Options, Place, Scope, Source, Store};
use services::Catalogue;
use wire::text::Secret;

const DIRECTORY: &str = "SANDFORGE_TEST_SECRETS";
const NAME: &str = "SANDFORGE_TEST_NAME";
const COUNT: &str = "SANDFORGE_TEST_COUNT";
const CANARY: &str = "canary-0123456789-canary-0123456789";

fn store(directory: &Path) -> Store {
    Store::open(directory, Options { place: Some(Place::KeyFile), ..Options::default() })
}

fn set(store: &Store, sandbox: &str) {
    let secret = Secret::new(CANARY.into()).unwrap();
    let new = New { source: Source::Value(secret), parameters: BTreeMap::new(), custom: None };
    let scope = Scope::Sandbox(sandbox.to_owned());
    let key = Key { workspace: "default".into(), scope, service: "github".into() };
    store.set(&Catalogue::built_in(), &key, new).unwrap();
}

/// Not a test of its own: what the others start. Says what it has set, each in a line.
#[test]
fn writer() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let name = std::env::var(NAME).unwrap();
    let count: usize = std::env::var(COUNT).unwrap().parse().unwrap();
    let store = store(Path::new(&directory));
    for number in 0..count {
        let sandbox = format!("{name}-{number}");
        set(&store, &sandbox);
        println!("\nset {sandbox}");
    }
}

fn start(directory: &Path, name: &str, count: usize) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(NAME, name)
        .env(COUNT, count.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn sandboxes(directory: &Path) -> Vec<String> {
    let entries = store(directory).list("default").unwrap();
    entries.into_iter().map(|entry| entry.key.scope.to_string()).collect()
}

#[test]
fn two_at_once_lose_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("secrets");
    let children = ["a", "b"].map(|name| start(&directory, name, 10));
    for child in children {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    assert_eq!(sandboxes(&directory).len(), 20);
}

#[test]
fn one_that_is_killed_while_it_sets_loses_nothing_that_it_had_set() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("secrets");
    for round in 0..8 {
        let mut child = start(&directory, &format!("r{round}"), 1000);
        let mut said = Vec::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            if let Some(sandbox) = line.unwrap().strip_prefix("set ") {
                said.push(sandbox.to_owned());
                // In the midst of the next one, wherever that is.
                if said.len() > round {
                    break;
                }
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let kept = sandboxes(&directory);
        for sandbox in said {
            assert!(kept.contains(&sandbox), "{sandbox} of round {round}");
        }
    }
    // The next change clears away what was left unfinished.
    set(&store(&directory), "last");
    let files: Vec<String> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(files.len(), 4, "{files:?}");
    for file in files {
        let bytes = std::fs::read(directory.join(&file)).unwrap();
        let is_there = bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes());
        assert!(!is_there, "{file}");
    }
}
