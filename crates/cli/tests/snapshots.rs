//! Snapshots, forks and hibernation as users meet them, with real machines: saved, restored, forked,
//! and back after the server was killed.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Call, Output};
use tempfile::{TempDir, tempdir};

/// A loaded computer emulates slowly.
const PATIENCE: Duration = Duration::from_secs(120);
/// Counts as long as it runs.
const COUNT: &str = "i=0; while sleep 0.2; do i=$((i+1)); echo $i > /workspace/count; done";

/// A server that can be killed and started again.
struct Server {
    directory: TempDir,
    child: Child,
}

/// With records and machines of its own, and the images of all.
fn call_in(directory: &Path, arguments: &[&str]) -> Call {
    let run = directory.join("run");
    fs::create_dir_all(&run).unwrap();
    Call::new(arguments)
        .env("XDG_RUNTIME_DIR", run)
        .env("XDG_DATA_HOME", directory.join("data"))
        .env("XDG_CONFIG_HOME", directory.join("config"))
        .env("SANDFORGE_ENGINE", "qemu")
}

fn start(directory: &Path) -> Child {
    let mut child = call_in(directory, &["serve", "--listen", "none"]).spawn();
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

impl Server {
    /// One whose sandboxes are emulated, where those can be saved here.
    fn new() -> Option<Self> {
        if !support::engines().contains(&"qemu") {
            eprintln!("not run: the engine qemu does not work here");
            return None;
        }
        let directory = tempdir().unwrap();
        let child = start(directory.path());
        Some(Self { directory, child })
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let call = call_in(self.directory.path(), &["-q"]).arguments(arguments);
        call.output()
    }

    fn kill_and_start_again(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = start(self.directory.path());
    }

    /// What a command in a sandbox prints.
    fn says(&self, sandbox: &str, command: &str) -> String {
        String::from_utf8(self.run(&["exec", sandbox, command]).exits(0).stdout).unwrap()
    }

    fn count(&self, sandbox: &str) -> u64 {
        self.says(sandbox, "cat /workspace/count 2>/dev/null || echo 0").trim().parse().unwrap_or(0)
    }

    /// Waits until what counts in a sandbox has come beyond this.
    fn counts_beyond(&self, sandbox: &str, number: u64) -> u64 {
        let begun = Instant::now();
        loop {
            let count = self.count(sandbox);
            if count > number {
                return count;
            }
            assert!(begun.elapsed() < PATIENCE, "{sandbox} counts no further than {count}");
        }
    }

    fn inspect(&self, sandbox: &str) -> Value {
        self.run(&["inspect", sandbox, "--json"]).exits(0).json()
    }

    fn manifest(&self) -> PathBuf {
        let snapshots = self.directory.path().join("data/sandforge/snapshots/default");
        let [directory] = &fs::read_dir(&snapshots).unwrap().flatten().collect::<Vec<_>>()[..]
        else {
            panic!("one snapshot");
        };
        directory.path().join("manifest.json")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let removed = self.run(&["rm", "--all"]);
        assert!(removed.status == Some(0) || thread::panicking(), "{removed}");
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_machine_goes_on_from_a_snapshot_in_forks_and_after_its_server_was_killed() {
    let Some(mut server) = Server::new() else { return };
    server.run(&["create", "--name", "box", "-m", "256", "-c", "1", "--disk", "1"]).exits(0);
    server.run(&["exec", "--detach", "--process", "count", "box", COUNT]).exits(0);
    server.says("box", "echo kept > /workspace/note; sync");
    let saved = server.counts_beyond("box", 2);

    // Restored, it is another sandbox, in which the counter goes on; so does the first.
    server.run(&["snapshot", "box", "--as", "built"]).exits(0).prints("built\n");
    let list = server.run(&["snapshot", "ls", "--json"]).exits(0).json();
    assert_eq!((&list[0]["name"], &list[0]["engine"]), (&json!("built"), &json!("qemu")));
    server.counts_beyond("box", saved + 2);
    server.run(&["restore", "built", "--name", "again"]).exits(0).prints("again\n");
    assert!(server.count("again") >= saved, "it starts where it was saved");
    server.counts_beyond("again", saved + 2);
    assert_eq!(server.says("again", "cat /workspace/note"), "kept\n");
    assert_ne!(server.inspect("again")["id"], server.inspect("box")["id"]);
    // Its disk is its own.
    server.says("again", "echo changed > /workspace/note; sync");
    assert_eq!(server.says("box", "cat /workspace/note"), "kept\n");
    server.run(&["rm", "again"]).exits(0);

    // What was saved on another processor is refused by the field's name.
    let path = server.manifest();
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    manifest["cpu"]["model"] = "Another One 9000".into();
    fs::write(&path, manifest.to_string()).unwrap();
    server.run(&["restore", "built"]).exits(2).says("its cpu.model is");
    server.run(&["snapshot", "rm", "built"]).exits(0);
    server.run(&["snapshot", "inspect", "built"]).exits(3).says("there is no snapshot");

    // Forks draw different numbers and have names of their own.
    server.run(&["fork", "box", "--count", "2", "--name", "f"]).exits(0).prints("f-1\nf-2\n");
    let drawn = |what: &str| ["box", "f-1", "f-2"].map(|name| server.says(name, what));
    for what in [
        "head -c 16 /dev/urandom | od -An -tx1",
        "cat /proc/sys/kernel/random/uuid",
        "cat /proc/sys/kernel/random/boot_id",
        "cat /etc/machine-id",
    ] {
        let [one, two, three] = drawn(what);
        assert!(one != two && two != three && one != three, "{what}: {one} {two} {three}");
    }
    server.run(&["rm", "f-1", "f-2"]).exits(0);

    // On disk it outlives its server, and the next command brings it back.
    let before = server.count("box");
    server.run(&["hibernate", "box"]).exits(0);
    assert_eq!(server.inspect("box")["state"], json!("hibernated"));
    server.kill_and_start_again();
    assert_eq!(server.inspect("box")["state"], json!("hibernated"));
    assert!(server.count("box") >= before);
    server.counts_beyond("box", before + 2);
    assert_eq!(server.says("box", "cat /workspace/note"), "kept\n");
    // Its clock is the host's.
    let host = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let first = host().as_secs();
    let guest: u64 = server.says("box", "date +%s").trim().parse().unwrap();
    assert!((first..=host().as_secs()).contains(&guest), "{first} {guest}");
}
