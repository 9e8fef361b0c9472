//! `sandforge volume`, `-v` and `--cache`, as their users call them.

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use support::{Call, Output, engines};
use tempfile::TempDir;

/// For what a loaded computer does late.
const PATIENCE: Duration = Duration::from_secs(60);

/// Records and volumes of a test's own, with the images of all.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn call(&self, arguments: &[&str]) -> Call {
        let run = self.0.path().join("run");
        std::fs::create_dir_all(&run).unwrap();
        Call::new(arguments)
            .env("XDG_RUNTIME_DIR", run)
            .env("XDG_DATA_HOME", self.0.path().join("data"))
            .env("XDG_CONFIG_HOME", self.0.path().join("config"))
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        self.call(arguments).output()
    }

    fn file(&self, name: &str) -> PathBuf {
        let volumes = self.0.path().join("data/sandforge/volumes/default");
        volumes.join(format!("{name}.ext4"))
    }

    fn volume(&self, name: &str) -> serde_json::Value {
        self.ask(&["volume", "inspect", "--json", name]).exits(0).json()
    }
}

fn machines() -> Vec<&'static str> {
    engines().into_iter().filter(|engine| *engine != "process").collect()
}

/// Until the first line of its output is this.
fn begun(child: &mut Child, line: &str) {
    let mut first = vec![0; line.len()];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(String::from_utf8_lossy(&first), line);
}

fn let_go(mut child: Child) {
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Waits for what should come soon.
fn soon(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "it did not come: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What e2fsck finds wrong, where there is one. It looks at the disk as it is, without its journal.
fn check(disk: &Path) {
    match Command::new("e2fsck").arg("-fn").arg(disk).output() {
        Ok(checked) => {
            assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
        }
        Err(error) => eprintln!("not run: e2fsck: {error}"),
    }
}

#[test]
fn what_is_written_to_a_volume_outlives_its_sandboxes() {
    for engine in machines() {
        let place = Place::new();
        place.ask(&["volume", "create", "data", "--size", "1GiB"]).exits(0).prints("data\n");
        let run = |volume: &str, line: &str| {
            place.ask(&["-q", "run", "--engine", engine, "-v", volume, line])
        };
        // It belongs to the user of tasks, and neither devices nor others' rights count on it.
        let line = "stat -c '%u %g %a' /data; grep ' /data ' /proc/self/mountinfo | cut -d' ' -f6; \
                    head -c 100000000 /dev/urandom > /data/big; cp /bin/true /data/file";
        run("data:/data", line).exits(0).prints("1000 1000 755\nrw,nosuid,nodev,noatime\n");
        let used = |place: &Place| place.volume("data")["used_bytes"].as_u64().unwrap();
        assert!((100_000_000..120_000_000).contains(&used(&place)), "{}", used(&place));
        assert_eq!(place.volume("data")["size_bytes"], 1 << 30);
        check(&place.file("data"));

        run("data:/a/b:ro", "cmp /bin/true /a/b/file && ! touch /a/b/x").exits(0);
        // At once several read.
        let mut reader = place
            .call(&["-q", "run", "--engine", engine, "-i", "-v", "data:/x:ro"])
            .arguments(["echo begun; read go"])
            .open_stdin()
            .spawn();
        begun(&mut reader, "begun\n");
        run("data:/data:ro", "test -e /data/big").exits(0);
        assert_eq!(place.volume("data")["in_use"], true);
        run("data:/data", "true").exits(125).says("the volume \"data\" is in use");
        place.ask(&["volume", "rm", "data"]).exits(1).says("the volume \"data\" is in use");
        let_go(reader);

        // What is removed is the host's again.
        let mut remover = place
            .call(&["-q", "run", "--engine", engine, "-i", "-v", "data:/data"])
            .arguments(["rm /data/big; sync; echo begun; read go"])
            .open_stdin()
            .spawn();
        begun(&mut remover, "begun\n");
        soon("its room is the host's again", || used(&place) < 20_000_000);
        let_go(remover);
        check(&place.file("data"));
        place.ask(&["volume", "rm", "data"]).exits(0);
        assert!(!place.file("data").exists());
        place.ask(&["volume", "inspect", "data"]).exits(3);
    }
}

/// A database that is written to as fast as it goes, each row committed before its number is said. With
/// less than `extra`, SQLite itself may take the last commit back after a loss of power.
const WRITER: &str = "
import sqlite3
db = sqlite3.connect('/data/db')
db.execute('pragma synchronous = extra')
db.execute('create table rows (n integer primary key, bytes blob)')
n = 0
while True:
    n += 1
    db.execute('insert into rows values (?, ?)', (n, b'x' * 20000))
    db.commit()
    print(n, flush=True)
";

const READER: &str = "
import sqlite3
db = sqlite3.connect('/data/db')
print(*db.execute('pragma integrity_check').fetchone(), *db.execute('select max(n) from rows').fetchone())
";

#[test]
fn a_real_database_file_survives_kill_9() {
    for engine in machines() {
        let place = Place::new();
        place.ask(&["volume", "create", "data", "--size", "1GiB"]).exits(0);
        let volume = ["-q", "run", "--engine", engine, "-v", "data:/data"];
        let mut writer = place.call(&volume).arguments(["--", "python3", "-c", WRITER]).spawn();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        // In the middle of it, whenever that is: somewhere behind the fiftieth row.
        let said = lines.by_ref().map_while(Result::ok).take(50).last();
        assert_eq!(said.as_deref(), Some("50"));
        writer.kill().unwrap();
        writer.wait().unwrap();
        let committed: u64 =
            lines.map_while(Result::ok).last().map_or(50, |line| line.parse().unwrap_or(50));
        soon("its machine is gone", || place.volume("data")["in_use"] == false);

        // Who only reads gets it in order, too, though it could not put it in order.
        let line = "test -s /data/db && ! touch /data/x";
        place.ask(&["-q", "run", "--engine", engine, "-v", "data:/data:ro", line]).exits(0);
        check(&place.file("data"));
        let read = place.call(&volume).arguments(["--", "python3", "-c", READER]).output().exits(0);
        let said = String::from_utf8(read.stdout).unwrap();
        let (verdict, rows) = said.trim().split_once(' ').unwrap();
        assert_eq!(verdict, "ok");
        let rows: u64 = rows.parse().unwrap();
        assert!(rows >= committed, "{rows} rows of {committed} that were committed");
    }
}

#[test]
fn a_cache_is_changed_by_nobody_but_who_fills_it() {
    for engine in machines() {
        let place = Place::new();
        let run = |cache: &str, line: &str| {
            place.ask(&["-q", "run", "--engine", engine, "--cache", cache, line])
        };
        run("npm", "true").exits(125).says("fill it, with npm:fill");
        let line =
            "echo good > $npm_config_cache/a && mkdir $GOMODCACHE && echo $CARGO_HOME $GOCACHE";
        run("npm:fill,cargo:fill,go:fill", line).exits(0).prints("/cache/cargo /cache/go/build\n");
        // Its own, for as long as it lives.
        let line = "cd $npm_config_cache && cat a && echo bad > a && echo bad > b && cat a b && \
                    rm a && test ! -e a && test -d /cache/go/mod";
        run("npm,go", line).exits(0).prints("good\nbad\nbad\n");
        run("npm", "cat /cache/npm/a; ls /cache/npm").exits(0).prints("good\na\nlost+found\n");
        check(&place.file("cache-npm"));
    }
}

#[test]
fn a_sandbox_that_stays_has_its_volume_again() {
    for engine in machines() {
        let place = Place::new();
        place.ask(&["volume", "create", "data", "--size", "100m"]).exits(0);
        let create = ["create", "--engine", engine, "--name", "box", "-v", "data:/data"];
        place.ask(&create).exits(0);
        place.ask(&["exec", "box", "echo kept > /data/x; echo lost > /workspace/x"]).exits(0);
        assert_eq!(place.volume("data")["in_use"], true);
        place.ask(&["stop", "box"]).exits(0);
        soon("its machine is gone", || place.volume("data")["in_use"] == false);
        check(&place.file("data"));
        place.ask(&["start", "box"]).exits(0);
        let found = place.ask(&["exec", "box", "cat /data/x; ls /workspace"]);
        found.exits(0).prints("kept\n");
        place.ask(&["rm", "box"]).exits(0);
        place.ask(&["volume", "rm", "data"]).exits(0);
    }
}

#[test]
fn a_sandbox_without_a_machine_has_no_volumes() {
    if !engines().contains(&"process") {
        return;
    }
    let place = Place::new();
    place.ask(&["volume", "create", "data"]).exits(0);
    let run = place.ask(&["run", "--engine", "process", "-v", "data:/data", "true"]);
    run.exits(125).says("--volume says nothing for a sandbox of the tier process");
    assert_eq!(place.volume("data")["in_use"], false);
}
