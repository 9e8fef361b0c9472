//! The command with a server behind it: what its users see of sandboxes that stay, and of what
//! is refused.
//!
//! Sandboxes are those of the engine `process`, which needs no image. Where that does not run,
//! nothing here does, and says so.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{Call, Output};
use tempfile::{TempDir, tempdir};

const POLICY: &str = "\
[commands]
deny = [\"git push **\"]

[isolation]
minimum = \"process\"
";

/// A server of its own, with directories of its own, that ends with the test.
struct Server {
    directory: TempDir,
    child: Child,
}

/// A call whose directories are below this one.
fn call_in(directory: &Path, arguments: &[&str]) -> Call {
    Call::new(arguments)
        .private_in(directory)
        .env("SANDFORGE_ENGINE", "process")
        .env("SANDFORGE_MIN_ISOLATION", "process")
}

/// Whether sandboxes without a machine can be made here.
fn possible() -> bool {
    works("process")
}

/// Whether this engine works here; says so where not.
fn works(engine: &str) -> bool {
    let report = Call::new(["doctor", "--json"]).private().output().json();
    let engines = report["engines"].as_array().expect("a list");
    let found = engines.iter().any(|it| it["name"] == engine && it["verdict"] == "usable");
    if !found {
        eprintln!("not run on engine {engine}: it does not work here");
    }
    found
}

impl Server {
    fn start(flags: &[&str]) -> Self {
        Self::start_with(flags, |call| call)
    }

    fn start_with(flags: &[&str], more: impl FnOnce(Call) -> Call) -> Self {
        let directory = tempdir().unwrap();
        let config = directory.path().join("config/sandforge");
        fs::create_dir_all(&config).unwrap();
        fs::write(config.join("policy.toml"), POLICY).unwrap();
        let child = start(directory.path(), flags, more);
        Self { directory, child }
    }

    fn call(&self, arguments: &[&str]) -> Call {
        call_in(self.directory.path(), arguments)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.call(arguments).output()
    }

    fn create(&self, name: &str) {
        self.run(&["-q", "create", "--name", name]).exits(0).prints(format!("{name}\n"));
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("run/sandforge/api.sock")
    }
}

/// Starts a server and waits until it serves.
fn start(directory: &Path, flags: &[&str], more: impl FnOnce(Call) -> Call) -> Child {
    let mut child = more(call_in(directory, &["serve"]).arguments(flags)).spawn();
    let mut lines = BufReader::new(child.stderr.take().expect("it is a pipe"));
    let mut said = String::new();
    while !said.contains("serving on /") {
        let before = said.len();
        lines.read_line(&mut said).unwrap();
        assert_ne!(said.len(), before, "it ended: {said}");
    }
    // A pipe that nobody reads would stop it one day.
    thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    child
}

impl Drop for Server {
    fn drop(&mut self) {
        // What a test left would outlive the server, as it should.
        let removed = self.run(&["rm", "--all"]);
        assert!(removed.status == Some(0) || thread::panicking(), "{removed}");
        let pid = Pid::from_child(&self.child);
        let _ = kill_process(pid, Signal::TERM);
        let _ = self.child.wait();
    }
}

#[test]
fn a_sandbox_is_made_used_and_removed() {
    if !possible() {
        return;
    }
    let server = Server::start(&["--listen", "none"]);
    server.create("box");
    server.run(&["-q", "exec", "box", "echo hello > note; exit 3"]).exits(3);
    server.run(&["-q", "exec", "box", "cat", "note"]).exits(0).prints("hello\n");
    let list = server.run(&["ls", "--json"]).exits(0).json();
    assert_eq!(list[0]["name"], json!("box"));
    assert_eq!(list[0]["state"], json!("ready"));
    let table = String::from_utf8(server.run(&["ls"]).exits(0).stdout).unwrap();
    assert!(table.starts_with("NAME ") && table.contains("\nbox "), "{table}");
    let text = String::from_utf8(server.run(&["inspect", "box"]).exits(0).stdout).unwrap();
    assert!(text.contains("name         box\n") && text.contains("allowed by"), "{text}");
    server.run(&["rm", "box"]).exits(0);
    server.run(&["ls", "--json"]).exits(0).prints("[]\n");
    server.run(&["inspect", "box"]).exits(3).says("there is no sandbox \"box\"");
}

#[test]
fn a_pipe_reaches_the_command_and_its_output_comes_back_whole() {
    if !possible() {
        return;
    }
    let server = Server::start(&["--listen", "none"]);
    server.create("box");
    let lines = "line\n".repeat(100_000);
    let call = server.call(&["-q", "exec", "box", "cat; echo err >&2"]).stdin(lines.clone());
    let output = call.output().exits(0).prints(lines);
    assert_eq!(output.stderr, "err\n");
    let report = server.run(&["exec", "--json", "box", "printf '\\377'; exit 4"]).exits(4).json();
    assert_eq!(report["exit"], json!({"code": 4, "result": "exited", "signal": null}));
    assert_eq!(report["stdout"], json!({"base64": "/w=="}));
    assert_eq!(report["name"], json!("box"));
}

#[test]
fn the_ends_of_a_command_have_their_statuses() {
    if !possible() {
        return;
    }
    let server = Server::start(&["--listen", "none"]);
    server.create("box");
    server.run(&["-q", "exec", "box", "--", "nosuch"]).exits(127).says("no such command");
    server.run(&["-q", "exec", "box", "kill -TERM $$"]).exits(143);
    server.run(&["-q", "exec", "--timeout", "1", "box", "sleep 100"]).exits(124).says("timed out");
    server.run(&["exec", "nope", "true"]).exits(125).says("there is no sandbox \"nope\"");
}

#[test]
fn a_process_that_was_left_running_is_joined_again() {
    if !possible() {
        return;
    }
    let server = Server::start(&["--listen", "none"]);
    server.create("box");
    let line = "echo first; until test -e go; do sleep 0.05; done; echo last; exit 5";
    let arguments = ["-q", "exec", "--detach", "--process", "job", "box", line];
    server.run(&arguments).exits(0).prints("job\n");
    let joined = server.call(&["-q", "attach", "box", "job"]).spawn();
    server.run(&["-q", "exec", "box", "touch go"]).exits(0);
    let output = joined.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert_eq!(output.stdout, b"first\nlast\n");
    let processes = server.run(&["inspect", "box", "--processes", "--json"]).exits(0).json();
    let job = processes.as_array().unwrap().iter().find(|one| one["process"] == "job").unwrap();
    assert_eq!(job["exit_code"], json!(5));
}

#[test]
fn files_and_directories_are_copied_both_ways() {
    if !possible() {
        return;
    }
    let server = Server::start(&["--listen", "none"]);
    server.create("box");
    let here = tempdir().unwrap();
    let path = |name: &str| here.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir_all(here.path().join("tree/sub")).unwrap();
    fs::write(here.path().join("tree/sub/a"), "a\n").unwrap();
    fs::write(here.path().join("tree/b"), vec![7; 300_000]).unwrap();

    server.run(&["cp", &path("tree"), "box:/workspace/copy"]).exits(0);
    server
        .run(&["-q", "exec", "box", "cat copy/sub/a; wc -c < copy/b"])
        .exits(0)
        .prints("a\n300000\n");
    server.run(&["cp", &path("tree/b"), "box:/workspace/"]).exits(0);
    server.run(&["-q", "exec", "box", "wc -c < b"]).exits(0).prints("300000\n");

    server.run(&["cp", "box:/workspace/copy", &path("back")]).exits(0);
    assert_eq!(fs::read(here.path().join("back/sub/a")).unwrap(), b"a\n");
    server.run(&["cp", "box:/workspace/copy/sub/a", &path("back")]).exits(0);
    assert_eq!(fs::read(here.path().join("back/a")).unwrap(), b"a\n");

    server.call(&["cp", "-", "box:/workspace/in"]).stdin("from a pipe").output().exits(0);
    server.run(&["cp", "box:/workspace/in", "-"]).exits(0).prints("from a pipe");
    server.run(&["cp", "box:/nope", &path("x")]).exits(3);
    fs::create_dir(here.path().join("some")).unwrap();
    server
        .run(&[
            "-q",
            "exec",
            "box",
            "mkdir -p d/1 d/2; echo x | tee d/1/a.log d/2/b.log d/2/.c.log d/2/d",
        ])
        .exits(0);
    server.run(&["cp", "box:/workspace/d/*/*.log", "box:/workspace/in", &path("some")]).exits(0);
    let mut names: Vec<_> = fs::read_dir(here.path().join("some"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["a.log", "b.log", "in"]);
    server.run(&["cp", &path("some/a.log"), &path("some/in"), "box:/workspace/d/"]).exits(0);
    server.run(&["-q", "exec", "box", "cat d/a.log d/in"]).exits(0).prints("x\nfrom a pipe");
    server.run(&["cp", "box:/workspace/*.nope", &path("some")]).exits(3).says("nothing in");
    server
        .run(&["cp", "box:/workspace/d/*", &path("missing")])
        .exits(2)
        .says("a directory that is there");
    server.run(&["-q", "exec", "box", "echo y > 'a[1]'"]).exits(0);
    server.run(&["cp", "box:/workspace/a[1]", "-"]).exits(0).prints("y\n");
    server.run(&["cp", &path("tree"), &path("x")]).exits(2).says("must be in a sandbox");
}

#[test]
fn what_a_sandbox_uses_and_what_happened_is_told() {
    if !possible() {
        return;
    }
    let server = Server::start(&["--listen", "none"]);
    server.create("box");
    server.run(&["-q", "exec", "box", "true"]).exits(0);
    let stats = server.run(&["stats", "--json"]).exits(0).json();
    assert_eq!(stats[0]["name"], json!("box"));
    assert!(stats[0]["uptime_ms"].as_u64().is_some(), "{stats}");
    let events = server.run(&["events", "--since", "0", "--json"]).exits(0);
    let kinds: Vec<Value> = String::from_utf8(events.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["kind"].clone())
        .collect();
    for kind in ["sandbox.created", "sandbox.started", "task.started", "task.ended"] {
        assert!(kinds.contains(&json!(kind)), "{kind} is not in {kinds:?}");
    }
}

#[test]
fn a_token_does_what_its_role_may() {
    if !possible() {
        return;
    }
    let listen = free_address();
    let administrator = "sf_live_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let server = Server::start_with(&["--listen", &listen], |call| {
        call.env("SANDFORGE_TOKEN", administrator)
    });
    let local = |arguments: &[&str]| server.run(arguments);
    let token = |role: &str, workspace: &str| {
        let arguments = ["-q", "token", "create", role, "--role", role, "--workspace", workspace];
        let output = local(&arguments).exits(0);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let with = |token: &str, arguments: &[&str]| {
        server
            .call(arguments)
            .env("SANDFORGE_URL", format!("https://{listen}"))
            .env("SANDFORGE_TOKEN", token)
            .output()
    };
    let (viewer, member, other) =
        (token("viewer", "team-a"), token("member", "team-a"), token("member", "team-b"));
    with(&member, &["-q", "create", "--name", "box"]).exits(0);
    with(&member, &["-q", "exec", "box", "echo hi"]).exits(0).prints("hi\n");
    assert_eq!(with(&viewer, &["ls", "--json"]).exits(0).json()[0]["name"], json!("box"));
    with(&viewer, &["exec", "box", "true"]).exits(126).says("exec");
    with(&other, &["ls", "--json"]).exits(0).prints("[]\n");
    with(&other, &["inspect", "box"]).exits(3);
    with("sf_live_wrong", &["ls"]).exits(1);
    with(administrator, &["token", "ls"]).exits(0);
    let tokens = local(&["token", "ls", "--json"]).exits(0).json();
    let id = tokens.as_array().unwrap().iter().find(|one| one["name"] == "viewer").unwrap();
    local(&["token", "revoke", id["id"].as_str().unwrap()]).exits(0);
    with(&viewer, &["ls"]).exits(1);
}

/// An address of this computer that nobody listens on at this moment.
fn free_address() -> String {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn a_denial_names_its_rule_and_what_would_allow_it() {
    if !possible() {
        return;
    }
    let server = Server::start(&["--listen", "none"]);
    server.create("box");
    let output = server.run(&["exec", "box", "git", "push", "origin"]).exits(126);
    output.says("cause: rule ").says("policy.toml:2").says("  help: ");
    let output = server.run(&["policy", "check", "exec", "--", "git", "push"]).exits(1);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("denied: ") && text.contains("policy.toml:2"), "{text}");
    server.run(&["policy", "check", "exec", "--", "git", "pull"]).exits(0);
    let tail = server.run(&["audit", "tail", "--denied", "--json"]).exits(0);
    assert!(String::from_utf8(tail.stdout).unwrap().contains("policy.toml"));
}

#[test]
fn a_policy_is_loaded_again_and_a_wrong_one_is_not() {
    if !possible() {
        return;
    }
    let server = Server::start(&["--listen", "none"]);
    let file = server.directory.path().join("config/sandforge/policy.toml");
    fs::write(&file, "[commands]\ndeny = [\"git pull **\"]\n").unwrap();
    server.run(&["policy", "reload"]).exits(0);
    server.run(&["policy", "check", "exec", "--", "git", "pull"]).exits(1);
    fs::write(&file, "[commands]\ndney = []\n").unwrap();
    let refused = server.run(&["policy", "reload"]);
    assert_ne!(refused.status, Some(0), "{refused}");
    server.run(&["policy", "check", "exec", "--", "git", "pull"]).exits(1);
}

#[test]
fn the_audit_log_verifies_and_is_exported_as_lines() {
    if !possible() {
        return;
    }
    let server = Server::start(&["--listen", "none"]);
    server.create("box");
    server.run(&["-q", "exec", "box", "-e", "TOKEN=canary", "true"]).exits(0);
    let verified = server.run(&["audit", "verify"]).exits(0);
    assert!(String::from_utf8(verified.stdout).unwrap().ends_with("intact\n"));
    let file = server.directory.path().join("audit.jsonl");
    server.run(&["audit", "export", "--output", file.to_str().unwrap()]).exits(0);
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.lines().count() >= 2, "{text}");
    assert!(!text.contains("canary"), "{text}");
    server.run(&["audit", "export", "--output", file.to_str().unwrap()]).exits(1);
}

#[test]
fn the_service_that_is_written_is_one_to_systemd() {
    let directory = tempdir().unwrap();
    let arguments = ["serve", "--install-service", "user", "--listen", "none"];
    let installed = call_in(directory.path(), &arguments).output();
    let unit = directory.path().join("config/systemd/user/sandforge.service");
    let text = fs::read_to_string(&unit).unwrap_or_else(|error| panic!("{error}: {installed}"));
    assert!(text.contains("\"serve\" \"--listen\" \"none\"\n"), "{text}");
    // No session of systemd has this directory, so that nothing was started.
    assert_ne!(installed.status, Some(0), "{installed}");
    assert!(installed.stderr.contains("systemctl"), "{installed}");
    eprintln!("not run: the service itself, for want of a systemd that is ours to start it under");
    // It makes a directory there.
    let runtime = tempdir().unwrap();
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--user"]).arg(&unit).env("XDG_RUNTIME_DIR", runtime.path());
    match verify.output() {
        Ok(verified) => {
            let said = String::from_utf8_lossy(&verified.stderr);
            assert!(verified.status.success() && !said.contains("sandforge"), "{said}");
        }
        Err(error) => eprintln!("not run: systemd-analyze verify: {error}"),
    }
    call_in(directory.path(), &["serve", "--uninstall-service", "user"]).output().exits(0);
    assert!(!unit.exists());
}

#[test]
fn requests_are_traced_to_a_collector() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, spans) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (target, body) = received(stream.unwrap());
            if sender.send((target, body)).is_err() {
                return;
            }
        }
    });
    let server = Server::start_with(&["--listen", "none"], |call| {
        call.env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint).env("OTEL_BSP_SCHEDULE_DELAY", "50")
    });
    server.run(&["ls"]).exits(0);
    let mut names = Vec::new();
    while !names.iter().any(|name| name == "list_sandboxes") {
        let next = spans.recv_timeout(Duration::from_secs(30));
        let (target, body) = next.unwrap_or_else(|error| panic!("{error}: only {names:?}"));
        assert_eq!(target, "/v1/traces");
        // ExportTraceServiceRequest: resource_spans 1, of it resource 1 and scope_spans 2.
        for resource_spans in fields(&body, 1) {
            let resource = fields(resource_spans, 1)[0];
            let service = { fields(resource, 1).into_iter() }
                .find(|attribute| fields(attribute, 1) == [b"service.name"])
                .expect("it says whose they are");
            assert_eq!(fields(fields(service, 2)[0], 1), [b"sandforge"]);
            // Of scope_spans spans 2, of each its name 5.
            let scopes = fields(resource_spans, 2).into_iter();
            let spans = scopes.flat_map(|scope| fields(scope, 2));
            let name = |span| String::from_utf8(fields(span, 5)[0].to_vec()).unwrap();
            names.extend(spans.map(name));
        }
    }
}

/// The target and the body of one request, which is answered with success.
fn received(stream: TcpStream) -> (String, Vec<u8>) {
    let mut reader = BufReader::new(stream);
    let (mut target, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some((_, rest)) = line.split_once("POST ") {
            target = rest.split(' ').next().unwrap_or_default().to_owned();
        } else if let Some(number) = line.to_lowercase().strip_prefix("content-length:") {
            length = number.trim().parse().unwrap();
        } else if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    reader.get_mut().write_all(answer).unwrap();
    (target, body)
}

/// The values of a length-delimited field of a protobuf message.
fn fields(mut message: &[u8], wanted: u64) -> Vec<&[u8]> {
    fn number(message: &mut &[u8]) -> u64 {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = message.split_first().expect("a number ends");
            *message = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        number
    }
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = number(&mut message);
        let length = match key & 7 {
            0 => {
                number(&mut message);
                continue;
            }
            1 => 8,
            2 => usize::try_from(number(&mut message)).unwrap(),
            5 => 4,
            other => panic!("no protobuf has the wire type {other}"),
        };
        let (value, rest) = message.split_at(length);
        message = rest;
        if key == wanted << 3 | 2 {
            found.push(value);
        }
    }
    found
}

#[test]
fn sandboxes_outlive_their_server() {
    if !possible() {
        return;
    }
    let mut server = Server::start(&["--listen", "none"]);
    server.create("box");
    server.run(&["-q", "exec", "box", "echo still > note"]).exits(0);
    kill_process(Pid::from_child(&server.child), Signal::KILL).unwrap();
    server.child.wait().unwrap();
    server.child = start(server.directory.path(), &["--listen", "none"], |call| call);
    server.run(&["-q", "exec", "box", "cat note"]).exits(0).prints("still\n");
}

#[test]
fn a_directory_comes_and_goes_while_a_sandbox_runs() {
    if !works("qemu") {
        return;
    }
    // With the image that is there.
    let home = std::env::var_os("HOME").expect("a home");
    let of_user = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = of_user.unwrap_or_else(|| Path::new(&home).join(".cache"));
    let server =
        Server::start_with(&["--listen", "none"], |call| call.env("XDG_CACHE_HOME", &cache));
    let run = |arguments: &[&str]| server.run(&[&["-q"], arguments].concat());
    run(&["create", "--engine", "qemu", "--name", "box", "-m", "256M"]).exits(0);
    let host = tempdir().unwrap();
    fs::write(host.path().join("file"), "of the host\n").unwrap();
    let directory = host.path().to_str().unwrap();
    let mount = format!("{directory}:/data");
    let waits = "until test -e /data/go; do sleep 0.1; done; cat /data/go";
    run(&["exec", "--detach", "--process", "early", "box", waits]).exits(0);

    run(&["mount", "box", &mount]).exits(0);
    run(&["exec", "box", "cat /data/file; echo of the guest > /data/new"])
        .exits(0)
        .prints("of the host\n");
    assert_eq!(fs::read_to_string(host.path().join("new")).unwrap(), "of the guest\n");
    // A task that was there before sees it too.
    fs::write(host.path().join("go"), "it goes\n").unwrap();
    run(&["attach", "box", "early"]).exits(0).prints("it goes\n");
    let shown = run(&["inspect", "box", "--json"]).exits(0).json();
    assert_eq!(shown["mounts"][0]["guest_path"], json!("/data"), "{shown}");
    run(&["mount", "box", &format!("{directory}:/data/below")])
        .exits(1)
        .says("/data there already");
    run(&["mount", "box", &format!("{directory}/none:/other")]).exits(2).says("none");

    let hook = "mkdir -p /data/.git/hooks && echo x > /data/.git/hooks/pre-commit";
    let output = run(&["exec", "box", hook]);
    assert_ne!(output.status, Some(0), "{output}");

    run(&["umount", "box", "/data"]).exits(0);
    run(&["exec", "box", "ls /data"]).exits(0).prints("");
    let allowed = ["--live-quota", "2m", "--live-allow", ".git"];
    run(&[&["mount", "box", &*mount], &allowed[..]].concat()).exits(0);
    run(&["exec", "box", hook]).exits(0);
    assert_eq!(fs::read_to_string(host.path().join(".git/hooks/pre-commit")).unwrap(), "x\n");
    run(&["exec", "box", "head -c 1m /dev/zero > /data/one"]).exits(0);
    let over = run(&["exec", "box", "head -c 3m /dev/zero > /data/two"]);
    assert_ne!(over.status, Some(0), "{over}");
    let added = fs::metadata(host.path().join("two")).map_or(0, |two| two.len());
    assert!(added < 1 << 20, "{added}");
    run(&["umount", "box", "/data"]).exits(0);
    run(&["umount", "box", "/data"]).exits(3).says("no directory is shared live at /data");
    run(&["mount", "box", &format!("{mount}:ro")]).exits(0);
    run(&["exec", "box", "cat /data/file; echo x > /data/x"]).exits(2).prints("of the host\n");
    let shown = run(&["inspect", "box", "--json"]).exits(0).json();
    assert_eq!(shown["mounts"][0]["read_only"], json!(true), "{shown}");
}

/// Passes connections on to a socket, and changes a byte of what goes there: the last one of
/// `what`, where it first comes.
fn flipping(to: PathBuf, at: &Path, what: &'static [u8]) {
    let listener = UnixListener::bind(at).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(mut near), Ok(mut far)) = (stream, UnixStream::connect(&to)) else { return };
            let (mut far_out, mut near_out) = (far.try_clone().unwrap(), near.try_clone().unwrap());
            thread::spawn(move || {
                let _ = std::io::copy(&mut far_out, &mut near_out);
                let _ = near_out.shutdown(Shutdown::Write);
            });
            thread::spawn(move || {
                let mut piece = [0; 64 << 10];
                while let Ok(count @ 1..) = near.read(&mut piece) {
                    let piece = &mut piece[..count];
                    let found = piece.windows(what.len()).position(|window| window == what);
                    if let Some(found) = found {
                        piece[found + what.len() - 1] ^= 1;
                    }
                    if far.write_all(piece).is_err() {
                        return;
                    }
                }
                let _ = far.shutdown(Shutdown::Write);
            });
        }
    });
}

#[test]
fn a_signed_request_that_was_changed_on_its_way_is_refused_and_on_record() {
    if !possible() {
        return;
    }
    let server = Server::start(&["--listen", "none", "--require-signatures"]);
    let key = server.directory.path().join("request.key");
    server.run(&["-q", "key", "create", "mine", "--output", key.to_str().unwrap()]).exits(0);
    server.run(&["create", "--name", "box"]).exits(1).says("signed");
    let signed = |arguments: &[&str]| server.call(arguments).env("SANDFORGE_KEY", &key).output();
    signed(&["-q", "create", "--name", "box"]).exits(0);
    signed(&["-q", "exec", "box", "echo unchanged"]).exits(0).prints("unchanged\n");

    // The commands look for the socket in their own runtime directory.
    let between = server.directory.path().join("between");
    fs::create_dir_all(between.join("sandforge")).unwrap();
    flipping(server.socket(), &between.join("sandforge/api.sock"), b"echo ran");
    let output = server
        .call(&["-q", "exec", "box", "--detach", "echo ran > proof"])
        .env("SANDFORGE_KEY", &key)
        .env("XDG_RUNTIME_DIR", &between)
        .output();
    assert_ne!(output.status, Some(0), "{output}");
    output.says("digest");
    let tail = server.run(&["audit", "tail", "--denied", "--json"]).exits(0);
    let text = String::from_utf8(tail.stdout).unwrap();
    assert!(text.contains("bad_signature"), "{text}");
}

#[test]
fn a_server_ends_in_order_when_it_is_asked_to() {
    let directory = tempdir().unwrap();
    let mut child = start(directory.path(), &["--listen", "none"], |call| call);
    let socket = directory.path().join("run/sandforge/api.sock");
    assert!(UnixStream::connect(&socket).is_ok());
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn a_second_server_of_the_same_user_is_refused() {
    let server = Server::start(&["--listen", "none"]);
    let output = server.run(&["serve", "--listen", "none"]).exits(1);
    output.says("another server has the socket");
}

#[test]
fn a_reader_that_goes_ends_the_events() {
    if !possible() {
        return;
    }
    let server = Server::start(&["--listen", "none"]);
    let mut child = server.call(&["events", "--follow"]).spawn();
    drop(child.stdout.take());
    server.create("box");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
