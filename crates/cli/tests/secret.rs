//! `sandforge secret`, in this process and by a server.

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};
use support::{Call, Output};
use tempfile::TempDir;

const CANARY: &str = "ghp_canary0123456789canary0123456789abcd";

/// Directories of one user.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn call(&self, arguments: &[&str]) -> Call {
        Call::new(["secret"])
            .arguments(arguments)
            .private_in(self.0.path())
            // Not into the keychain of whoever runs the tests.
            .env("SANDFORGE_SECRETS_STORE", "key-file")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.call(arguments).output()
    }

    fn set(&self, arguments: &[&str], value: &str) -> Output {
        self.call(arguments).stdin(value).output()
    }

    fn list(&self) -> Vec<Value> {
        let list = self.run(&["ls", "--json"]).exits(0).json();
        list["secrets"].as_array().unwrap().clone()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether a file below this directory has these bytes.
fn is_on_disk(directory: &Path, needle: &str) -> bool {
    fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        match (path.is_dir(), path.is_file()) {
            (true, _) => is_on_disk(&path, needle),
            (_, true) => {
                let bytes = fs::read(&path).unwrap();
                bytes.windows(needle.len()).any(|window| window == needle.as_bytes())
            }
            _ => false,
        }
    })
}

#[test]
fn a_secret_of_stdin_is_kept_and_shown_without_its_value() {
    let home = Home::new();
    let set = home.set(&["set", "-g", "github"], &format!("{CANARY}\n")).exits(0);
    assert!(set.stderr.contains("github is kept for every sandbox"), "{}", set.stderr);
    assert!(set.stderr.contains("its key is in"), "{}", set.stderr);
    let shown = home.run(&["ls"]).exits(0);
    let table = text(&shown.stdout);
    assert!(table.contains("(global)") && table.contains("****abcd"), "{table}");
    let list = home.list();
    assert_eq!((&list[0]["service"], &list[0]["source"]), (&json!("github"), &json!("value")));
    assert!(!is_on_disk(home.0.path(), "canary0123456789"), "the value is on the disk");
    home.run(&["rm", "-g", "github"]).exits(0);
    assert_eq!(home.list(), Vec::<Value>::new());
    home.run(&["rm", "-g", "github"]).exits(3);
}

#[test]
fn a_secret_is_for_all_or_for_one_and_says_so() {
    let home = Home::new();
    let output = home.set(&["set", "github"], CANARY).exits(2);
    assert!(output.stderr.contains("for whom is it?"), "{}", output.stderr);
    let output = home.set(&["set", "-g", "box", "github"], CANARY).exits(2);
    assert!(output.stderr.contains("none is named"), "{}", output.stderr);
    let output = home.set(&["set", "box", "github"], CANARY).exits(3);
    assert!(!output.stderr.contains(CANARY));
}

#[test]
fn what_no_service_could_use_is_refused_in_words() {
    let home = Home::new();
    let output = home.set(&["set", "-g", "gitub"], CANARY).exits(2);
    assert!(output.stderr.contains("did you mean \"github\"?"), "{}", output.stderr);
    let output = home.set(&["set", "-g", "azure-openai"], CANARY).exits(2);
    assert!(output.stderr.contains("needs resource"), "{}", output.stderr);
    home.set(&["set", "-g", "azure-openai", "--with", "resource=acme"], CANARY).exits(0);
    assert_eq!(home.list()[0]["parameters"], json!({"resource": "acme"}));
    home.set(&["set", "-g", "github"], "").exits(2);
    let output = home.run(&["set", "-g", "github"]).exits(2);
    assert!(output.stderr.contains("--command"), "{}", output.stderr);
}

#[test]
fn a_command_and_a_variable_are_named_and_not_asked() {
    let home = Home::new();
    home.run(&["set", "-g", "github", "--command", "pass show github"]).exits(0);
    home.run(&["set", "-g", "openai", "--env", "MY_KEY"]).exits(0);
    let shown: Vec<Value> = home.list().iter().map(|one| one["masked"].clone()).collect();
    assert_eq!(shown, [json!("pass …"), json!("$MY_KEY")]);
}

#[test]
fn a_service_of_ones_own_has_hosts_and_a_place() {
    let home = Home::new();
    let arguments = [
        "set-custom",
        "-g",
        "shop",
        "--host",
        "api.shop.example",
        "--header",
        "X-Shop-Key",
        "--env",
        "SHOP_KEY",
        "--placeholder",
        "shop_",
    ];
    home.set(&arguments, CANARY).exits(0);
    let custom = home.list()[0]["custom"].clone();
    assert_eq!(custom["hosts"], json!(["api.shop.example"]));
    assert_eq!(custom["slots"], json!([{"header": {"name": "x-shop-key"}}]));
    let output = home.set(&["set-custom", "-g", "wild", "--host", "*.example"], CANARY).exits(2);
    assert!(output.stderr.contains("has a wildcard"), "{}", output.stderr);
}

#[test]
fn a_file_of_variables_is_imported_after_it_was_looked_at() {
    let home = Home::new();
    let file = home.0.path().join("env");
    let lines = format!("GITHUB_TOKEN='{CANARY}'\nHOME=/root\nGROQ_API_KEY=short\n");
    fs::write(&file, lines).unwrap();
    let file = file.to_str().unwrap();
    let dry = home.run(&["import", file, "--dry-run"]).exits(0);
    let said = text(&dry.stdout);
    assert!(said.contains("would keep github ****abcd of GITHUB_TOKEN"), "{said}");
    assert!(said.contains("would skip groq of GROQ_API_KEY: the secret is shorter"), "{said}");
    assert_eq!(home.list(), Vec::<Value>::new());
    home.run(&["import", file]).exits(0);
    assert_eq!(home.list().len(), 1);
    let call = home.call(&["import", "--json"]).env("OPENAI_API_KEY", CANARY);
    let done = call.output().exits(0).json();
    assert!(done.as_array().unwrap().iter().any(|one| one["service"] == "openai"), "{done}");
    assert_eq!(home.list().len(), 2);
}

#[test]
fn a_reset_gives_up_everything_when_it_is_meant() {
    let home = Home::new();
    home.set(&["set", "-g", "github"], CANARY).exits(0);
    home.run(&["reset"]).exits(2);
    assert_eq!(home.list().len(), 1);
    home.run(&["reset", "--yes"]).exits(0);
    assert_eq!(home.list(), Vec::<Value>::new());
}

#[test]
fn a_file_of_a_service_is_read_and_a_mistake_in_it_has_its_line() {
    let home = Home::new();
    let directory = home.0.path().join("config/sandforge/services");
    fs::create_dir_all(&directory).unwrap();
    let good = "name = \"shop\"\nenv = [\"SHOP_KEY\"]\nplaceholder = {}\n\
                inject_hosts = [\"api.shop.example\"]\nslots = [{ header = \"x-shop-key\" }]\n";
    fs::write(directory.join("shop.toml"), good).unwrap();
    home.set(&["set", "-g", "shop"], CANARY).exits(0);
    fs::write(directory.join("shop.toml"), good.replace("slots", "slot")).unwrap();
    let output = home.run(&["ls"]).exits(2);
    assert!(output.stderr.contains("shop.toml:5:1: there is no key"), "{}", output.stderr);
}

#[test]
fn a_passphrase_in_a_file_opens_the_store_and_another_does_not() {
    let home = Home::new();
    let file = home.0.path().join("passphrase");
    let call = |arguments: &[&str]| {
        home.call(arguments)
            .env("SANDFORGE_SECRETS_STORE", "passphrase")
            .env("SANDFORGE_SECRETS_PASSPHRASE_FILE", &file)
    };
    fs::write(&file, "correct horse battery\n").unwrap();
    call(&["set", "-g", "github"]).stdin(CANARY).output().exits(0);
    call(&["ls"]).output().exits(0);
    fs::write(&file, "something else\n").unwrap();
    let output = call(&["ls"]).output();
    assert_ne!(output.status, Some(0));
    assert!(output.stderr.contains("the passphrase is not the one"), "{}", output.stderr);
}

#[test]
fn at_a_terminal_the_value_is_asked_for_and_not_shown() {
    let home = Home::new();
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let open =
        || fs::OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let user = open();
    let mut command = Command::new("setsid");
    command
        .args([
            "--ctty",
            "--wait",
            env!("CARGO_BIN_EXE_sandforge"),
            "secret",
            "set",
            "-g",
            "github",
        ])
        .env("XDG_DATA_HOME", home.0.path().join("data"))
        .env("XDG_CONFIG_HOME", home.0.path().join("config"))
        .env("XDG_CACHE_HOME", home.0.path().join("cache"))
        .env("XDG_RUNTIME_DIR", home.0.path().join("run"))
        .env("SANDFORGE_SECRETS_STORE", "key-file")
        .process_group(0)
        .stdin(Stdio::from(OwnedFd::from(user.try_clone().unwrap())))
        .stdout(Stdio::from(OwnedFd::from(user.try_clone().unwrap())))
        .stderr(Stdio::from(OwnedFd::from(user)));
    fs::create_dir_all(home.0.path().join("run")).unwrap();
    let mut child = command.spawn().unwrap();
    // Ours would keep the terminal open.
    drop(command);
    let mut terminal = fs::File::from(terminal);
    let mut seen = Vec::new();
    let mut typed = false;
    let mut piece = [0; 1024];
    // The end of a terminal is an error.
    while let Ok(count @ 1..) = terminal.read(&mut piece) {
        seen.extend_from_slice(&piece[..count]);
        if !typed && text(&seen).contains("The secret of github: ") {
            typed = true;
            terminal.write_all(format!("{CANARY}\r").as_bytes()).unwrap();
        }
    }
    let seen = text(&seen);
    assert!(child.wait().unwrap().success(), "{seen}");
    assert!(typed && !seen.contains("canary"), "{seen}");
    assert_eq!(home.list()[0]["masked"], "****abcd");
}
