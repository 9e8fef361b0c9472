//! The commands that need no machine.

mod support;

use std::process::{Command, Stdio};

use serde_json::json;
use support::{Call, sandforge};

#[test]
fn the_version_is_for_people_and_for_programs() {
    let version = env!("CARGO_PKG_VERSION");
    sandforge(["version"]).exits(0).prints(format!("sandforge {version}\n"));
    sandforge(["--version"]).exits(0).prints(format!("sandforge {version}\n"));
    assert_eq!(sandforge(["version", "--json"]).exits(0).json()["version"], json!(version));
}

#[test]
fn help_goes_to_stdout() {
    for command in [&["--help"][..], &["run", "--help"], &["image", "--help"]] {
        let output = sandforge(command).exits(0);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("Examples:"), "{text}");
        assert_eq!(output.stderr, "");
    }
}

#[test]
fn every_shell_gets_a_script_that_names_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = sandforge(["completions", shell]).exits(0);
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(script.contains("doctor"), "{shell}");
    }
}

#[test]
fn the_script_for_bash_is_one_that_bash_reads() {
    let script = sandforge(["completions", "bash"]).exits(0).stdout;
    let script = String::from_utf8(script).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), script).unwrap();
    let checked = Command::new("bash").arg("-n").arg(file.path()).status().unwrap();
    assert!(checked.success());
}

#[test]
fn no_machines_are_an_empty_list() {
    Call::new(["ls", "--json"]).private().output().exits(0).prints("[]\n");
}

#[test]
fn no_images_are_an_empty_list_for_programs_and_the_recipes_for_people() {
    Call::new(["image", "ls", "--json"]).private().output().exits(0).prints("[]\n");
    let output = Call::new(["image", "ls"]).private().output().exits(0);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("base") && text.contains("not built yet"), "{text}");
}

#[test]
fn doctor_says_in_json_what_it_says_in_words() {
    let report = Call::new(["doctor", "--json"]).private().output().json();
    assert!(report["engines"].as_array().is_some_and(|engines| !engines.is_empty()), "{report}");
    assert!(report["kernel"]["ok"].is_boolean(), "{report}");
}

#[test]
fn a_policy_is_asked_without_a_server() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("policy.toml");
    std::fs::write(&file, "[commands]\ndeny = [\"git push **\"]\n").unwrap();
    let ask = |command: &[&str]| {
        let file = file.to_str().unwrap();
        sandforge([&["policy", "check", "--json", "--file", file], command].concat())
    };
    let denied = ask(&["exec", "--", "git", "push", "origin"]).exits(1).json();
    assert_eq!(denied["allowed"], json!(false));
    assert_eq!(denied["rule"]["line"], json!(2));
    assert!(denied["remedy"].is_string(), "{denied}");
    assert_eq!(ask(&["exec", "--", "git", "pull"]).exits(0).json()["allowed"], json!(true));
    assert_eq!(ask(&["create", "--memory", "1g"]).exits(0).json()["allowed"], json!(true));
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sandforge"))
        .args(["completions", "zsh"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stderr, b"");
}

#[test]
fn a_request_is_asked_about_with_method_and_path() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("policy.toml");
    std::fs::write(&file, "[network]\ndeny = [\"ANY api.github.com/repos/acme/secrets/**\"]\n")
        .unwrap();
    let file = file.to_str().unwrap();
    let check = |arguments: &[&str]| {
        let command = ["policy", "check", "--json", "--file", file, "network"];
        sandforge([&command, arguments].concat())
    };
    let allow = ["--allow", "READ api.github.com/repos/**"];
    let get = |path| [&["GET", path], &allow[..]].concat();

    let output = check(&get("https://api.github.com/repos/acme/web")).exits(0).json();
    assert_eq!(output["rule"]["text"], json!("READ api.github.com/repos/**"));
    let output = check(&get("https://api.github.com/repos/acme/secrets/x")).exits(1).json();
    assert_eq!((&output["rule"]["file"], &output["rule"]["line"]), (&json!(file), &json!(2)));
    let output = check(&[&["POST", "api.github.com/repos/acme/web/issues"], &allow[..]].concat())
        .exits(1)
        .json();
    assert_eq!(output["remedy"], json!("--allow \"POST api.github.com/repos/acme/web/issues\""));

    // Without rules of a sandbox it is what policy leaves.
    check(&["DELETE", "https://example.com/x"]).exits(0);
    let output = check(&["POST", "https://api.github.com/user/repos", "--credential", "github"])
        .exits(1)
        .json();
    assert_eq!(output["rule"]["text"], json!("POST /user/repos"));
    let output = check(&["GET", "https://api.github.com/user", "--credential", "github=read-only"])
        .exits(0)
        .json();
    assert!(output["reason"].as_str().unwrap().ends_with("with the credential of github"));
    check(&["GET", "https://api.github.com/a/../b", "--allow", "READ **"]).exits(2);
    // A service may have paths with an encoded slash.
    let project = "https://gitlab.com/api/v4/projects/acme%2Fweb";
    check(&["GET", project, "--credential", "gitlab"]).exits(0);
    check(&["GET", project, "--allow", "READ gitlab.com"]).exits(2);
}

#[test]
fn registries_are_written_down_once() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("home");
    std::fs::create_dir(&home).unwrap();
    std::fs::write(home.join(".npmrc"), "registry=https://ann:sesame@npm.example.com/\n").unwrap();
    let init = |flags: &[&str]| {
        Call::new([&["policy", "init"], flags].concat())
            .env("HOME", &home)
            .env("SANDFORGE_CONFIG_DIR", directory.path().join("config"))
            .output()
    };
    let output = init(&["--json"]).exits(0).json();
    assert_eq!(output["registries"][0]["url"], json!("https://npm.example.com/"));
    assert_eq!(output["notes"][0]["from"], json!("~/.npmrc:1"));
    let written = std::fs::read_to_string(directory.path().join("config/registries.toml")).unwrap();
    assert!(written.contains("npm.example.com") && !written.contains("sesame"), "{written}");
    init(&[]).exits(1).says("--force");
    init(&["--force"]).exits(0);
}
