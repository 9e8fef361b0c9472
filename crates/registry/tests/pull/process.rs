//! Several processes, and ones that end before their time.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use registry::{Credentials, Digest, PullError};

use crate::bench::{Bench, Image};
use crate::server::{Reply, Server};

/// Set in a process that a test starts: what it shall do it with.
const CHILD: &str = "SANDFORGE_TEST_CHILD";

fn again(test: &str, given: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(CHILD, given);
    command
}

#[tokio::test]
async fn a_blob_that_two_pull_at_once_comes_once() {
    let server = Server::plain().await;
    let image = Image::of(&[2_000_000, 10]);
    image.push(&server, "1");
    let bench = Bench::new(&[&server]);
    let (one, other) = tokio::join!(bench.one(&server), bench.one(&server));
    assert_eq!(one.unwrap(), other.unwrap());
    bench.assert_has(&image);
    for layer in &image.layers {
        assert_eq!(server.count(&Digest::of(layer).to_string()), 1);
    }
}

#[test]
fn what_a_killed_process_left_is_gone_on_with() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if let Ok(given) = std::env::var(CHILD) {
        let (host, directory) = given.split_once(' ').unwrap();
        return runtime.block_on(be_killed(host, Path::new(directory)));
    }
    runtime.block_on(async {
        let server = Server::plain().await;
        let image = Image::of(&[3_000_000]);
        image.push(&server, "1");
        // Half of it comes, and then nothing for as long as the process lives.
        server.answer(|asked, usual| {
            let whole = usual.filter(|_| asked.path.contains("blobs") && asked.from.is_none())?;
            let is_layer = whole.body.len() > 1_000_000;
            is_layer.then(|| {
                Reply { endless: false, body: whole.body.slice(..2_000_000), ..whole }
                    .with("content-length", "3000000")
            })
        });
        let bench = Bench::new(&[&server]);
        let given = format!("{} {}", server.host, bench.layout().display());
        let mut child = again("process::what_a_killed_process_left_is_gone_on_with", &given);
        let mut child = child.spawn().unwrap();
        let partial = bench.partial(&Digest::of(&image.layers[0]));
        let begun = Instant::now();
        while fs::metadata(&partial).map_or(0, |found| found.len()) < 1_000_000 {
            assert!(begun.elapsed() < Duration::from_secs(60), "nothing came");
            assert!(child.try_wait().unwrap().is_none(), "it ended");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!bench.blob(&Digest::of(&image.layers[0])).exists());
        server.answer(|_, _| None);
        bench.one(&server).await.unwrap();
        bench.assert_has(&image);
        let asked = server.asked();
        assert!(asked.last().unwrap().from.unwrap_or(0) >= 1_000_000, "{asked:?}");
    });
}

/// Pulls to this layout until it is killed.
async fn be_killed(host: &str, layout: &Path) {
    let mut bench = Bench::new(&[]);
    bench.settings.plain_http.push(host.into());
    bench.elsewhere = Some(layout.into());
    let ended = bench.pull(host, "a/b", "1").await;
    panic!("it was to be killed before: {ended:?}");
}

#[tokio::test]
async fn a_full_disk_is_said_and_leaves_nothing() {
    if !rustix::process::geteuid().is_root() {
        println!("not run: a small disk is mounted by root alone");
        return;
    }
    let server = Server::plain().await;
    let image = Image::of(&[4_000_000]);
    image.push(&server, "1");
    let bench = Bench::new(&[&server]);
    fs::create_dir(bench.layout()).unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "none"])
        .arg(bench.layout())
        .status();
    if !mount.is_ok_and(|status| status.success()) {
        println!("not run: a small disk cannot be mounted here");
        return;
    }
    let seen = bench.one(&server).await.map_err(|error| (bench.left(), error));
    assert!(Command::new("umount").arg(bench.layout()).status().unwrap().success());
    let (left, error) = seen.unwrap_err();
    assert!(matches!(error, PullError::Full { .. }), "{error}");
    assert_eq!(left, [Digest::of(&image.config).hex()], "the space is given back");
}

/// What a test of helpers prints in a process that has these programs in its path.
const LOGIN: &str = "login: ";

/// What `docker-credential-test` that does this makes of the login for `r.example`.
fn asked_of_helper(script: &str, config: &str) -> (String, Duration) {
    let directory = tempfile::tempdir().unwrap();
    let helper = directory.path().join("docker-credential-test");
    fs::write(&helper, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(directory.path().join("config.json"), config).unwrap();
    let path = format!("{}:/usr/bin:/bin", directory.path().display());
    let begun = Instant::now();
    let output = again("process::a_program_that_has_the_login_is_asked", "r.example")
        .env("PATH", path)
        .env("DOCKER_CONFIG", directory.path())
        .env_remove("REGISTRY_AUTH_FILE")
        .output()
        .unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let line = output.lines().find_map(|line| line.split_once(LOGIN));
    (line.unwrap_or_else(|| panic!("{output}")).1.to_owned(), begun.elapsed())
}

const STORE: &str = r#"{"credsStore":"test"}"#;

#[test]
fn a_program_that_has_the_login_is_asked() {
    if let Ok(server) = std::env::var(CHILD) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let found = runtime.block_on(async { Credentials::load()?.find(&server, "a/b").await });
        return match found {
            Ok(found) => println!("{LOGIN}{found:?}"),
            Err(error) => println!("{LOGIN}{error}"),
        };
    }
    let good = r#"test "$1" = get || exit 1
test "$(cat)" = r.example || exit 1
echo '{"ServerURL":"r.example","Username":"me","Secret":"word"}'"#;
    let own = r#"{"credHelpers":{"r.example":"test"},"credsStore":"absent"}"#;
    for config in [STORE, own] {
        let (found, _) = asked_of_helper(good, config);
        assert_eq!(found, "Some(Password { user: \"me\", password: [secret] })");
    }
    let token = r#"echo '{"Username":"<token>","Secret":"t"}'"#;
    assert_eq!(asked_of_helper(token, STORE).0, "Some(Identity([secret]))");
}

#[test]
fn a_program_that_has_no_login_leaves_it_to_the_entries() {
    let nothing = "echo 'credentials not found in native keychain'; exit 1";
    assert_eq!(asked_of_helper(nothing, STORE).0, "None");
    let both = r#"{"credsStore":"test","auths":{"r.example":{"auth":"bWU6dw=="}}}"#;
    assert!(asked_of_helper(nothing, both).0.contains("\"me\""));
}

#[test]
fn a_program_that_fails_is_quoted_without_what_a_terminal_obeys() {
    let (said, _) = asked_of_helper(r"printf 'locked \033]0;x\007 keychain' >&2; exit 2", STORE);
    assert_eq!(said, "docker-credential-test failed: locked ]0;x keychain");
    let (said, _) = asked_of_helper("echo '{\"Secret\": \"hunter2\"'", STORE);
    assert!(said.contains("something else than a login") && !said.contains("hunter2"), "{said}");
    let (said, _) = asked_of_helper("yes hunter2", STORE);
    assert!(!said.contains("hunter2"), "{said}");
    let absent = r#"{"credsStore":"absent"}"#;
    let (said, _) = asked_of_helper("", absent);
    assert!(said.starts_with("cannot start docker-credential-absent"), "{said}");
    let outside = r#"{"credsStore":"../../tmp/x"}"#;
    assert!(asked_of_helper("", outside).0.contains("not the name of a helper"));
}

#[test]
fn a_program_that_does_not_answer_is_not_waited_for() {
    let (said, took) = asked_of_helper("sleep 600 & sleep 600", STORE);
    assert!(said.contains("did not answer within 10s"), "{said}");
    assert!(took < Duration::from_secs(30), "{took:?}");
}
