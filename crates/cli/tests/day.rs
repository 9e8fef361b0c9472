//! A day of a server, in a minute: many clients that give up, machines that are killed, and a server
//! that is killed itself. In the end nothing is lost, nothing is left, and the audit log is whole.
//!
//! `SANDFORGE_DAY=10` makes the days ten times as long.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use client::api::{
    self, CreateSandbox, Exec, Isolation, ListSandboxes, Outcome, ReadQuery, Sandbox, State,
    WriteQuery,
};
use client::{Client, Error};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Longer than any one thing takes here.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server in directories of its own, which may be killed and started again.
struct Server {
    directory: TempDir,
    process: Mutex<Option<Child>>,
}

impl Server {
    fn start() -> Arc<Self> {
        let directory = tempfile::tempdir().unwrap();
        let server = Self { directory, process: Mutex::default() };
        server.again();
        Arc::new(server)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.at("run").join("api.sock")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sandforge"));
        command
            .args(arguments)
            .env("SANDFORGE_DATA_DIR", self.at("data"))
            .env("SANDFORGE_CONFIG_DIR", self.at("config"))
            .env("SANDFORGE_RUNTIME_DIR", self.at("run"))
            .env_remove("SANDFORGE_URL")
            .stdin(Stdio::null());
        command
    }

    /// Starts it and waits until it answers.
    fn again(&self) {
        let log = std::fs::File::options().create(true).append(true).open(self.at("log")).unwrap();
        let child = self
            .command(&["serve", "--listen", "none"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        *self.process.lock().unwrap() = Some(child);
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            assert!(begun.elapsed() < PATIENCE, "the server does not start:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill(&self) {
        let mut child = self.process.lock().unwrap().take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.at("log")).unwrap_or_default()
    }

    fn client(&self) -> Client {
        Client::builder().unix_socket(self.socket()).build().unwrap()
    }

    /// The machines that there are, by the record that each has.
    fn monitors(&self) -> BTreeMap<PathBuf, u32> {
        let records = std::fs::read_dir(self.at("run")).unwrap().filter_map(Result::ok);
        let pid = |path: &Path| {
            let record = std::fs::read(path.join("record.json")).ok()?;
            let record: serde_json::Value = serde_json::from_slice(&record).ok()?;
            u32::try_from(record["info"]["pid"].as_u64()?).ok().filter(|pid| *pid > 1)
        };
        records.filter_map(|entry| Some((entry.path(), pid(&entry.path())?))).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.process.lock().unwrap().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn pid(number: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(number).ok()?)
}

/// Numbers that differ from day to day no more than they must: a day that failed can be had again.
struct Chance(u64);

impl Chance {
    fn one_in(&mut self, n: u64) -> bool {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33).is_multiple_of(n)
    }
}

struct Day {
    engine: &'static str,
    clients: u64,
    each: u64,
    memory_mb: u32,
    /// How often the server is killed.
    kills: u32,
}

/// What clients saw.
#[derive(Debug, Default)]
struct Seen {
    accepted: BTreeSet<String>,
    commands: u64,
    disturbed: u64,
    errors: BTreeMap<String, u64>,
}

impl Day {
    fn spec(&self, name: &str) -> CreateSandbox {
        CreateSandbox {
            name: Some(name.into()),
            engine: Some(self.engine.into()),
            min_isolation: Some(Isolation::Process),
            memory_mb: Some(self.memory_mb),
            ..CreateSandbox::default()
        }
    }

    fn run(&self) {
        let length: u64 = std::env::var("SANDFORGE_DAY").map_or(1, |text| text.parse().unwrap());
        let server = Server::start();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let day = async {
            let clients: Vec<_> = (0..self.clients)
                .map(|client| {
                    let (server, seen) = (server.clone(), seen.clone());
                    let names = (0..self.each * length).map(move |at| format!("c{client}-{at}"));
                    let specs: Vec<_> = names.map(|name| self.spec(&name)).collect();
                    tokio::spawn(live(server, seen, specs, Chance(client + 1)))
                })
                .collect();
            let mut chance = Chance(0);
            let mut kills = self.kills * u32::try_from(length).unwrap();
            while !clients.iter().all(tokio::task::JoinHandle::is_finished) {
                tokio::time::sleep(Duration::from_millis(200)).await;
                let monitors = server.monitors();
                if let Some(monitor) = monitors.values().find(|_| chance.one_in(4)) {
                    let _ = kill_process(pid(*monitor).unwrap(), Signal::KILL);
                }
                if kills > 0 && chance.one_in(3) {
                    kills -= 1;
                    server.kill();
                    server.again();
                }
            }
            for client in clients {
                client.await.unwrap();
            }
            let seen = std::mem::take(&mut *seen.lock().unwrap());
            self.settle(&server, &seen).await;
        };
        runtime.block_on(day);
    }

    /// What there must be, and what there must not.
    async fn settle(&self, server: &Server, seen: &Seen) {
        println!(
            "{}: {} accepted, {} commands, {} disturbed",
            self.engine,
            seen.accepted.len(),
            seen.commands,
            seen.disturbed
        );
        for (error, count) in &seen.errors {
            println!("  {count} times: {error}");
        }
        let client = server.client();
        for sandbox in present(&client).await {
            client.delete_sandbox(&sandbox.id, true).await.unwrap();
        }
        let left = present(&client).await;
        assert!(left.is_empty(), "{left:?}");

        // Nothing that was accepted is forgotten, and nothing was made twice.
        for id in &seen.accepted {
            let sandbox = client.get_sandbox(id).await.unwrap();
            assert_eq!(sandbox.state, State::Destroyed, "{sandbox:?}");
        }

        // No machine, no socket, no directory.
        let begun = Instant::now();
        while !server.monitors().is_empty() {
            assert!(begun.elapsed() < PATIENCE, "left: {:?}\n{}", server.monitors(), server.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let report = server.command(&["audit", "verify", "--json"]).output().unwrap();
        assert!(
            report.status.success(),
            "{}\n{}",
            String::from_utf8_lossy(&report.stdout),
            String::from_utf8_lossy(&report.stderr)
        );
        let ready = client.ready().await.unwrap();
        assert!(ready.ready, "{ready:?}");
    }
}

/// The sandboxes that are not gone.
async fn present(client: &Client) -> Vec<Sandbox> {
    let mut all = Vec::new();
    let mut query = ListSandboxes::default();
    loop {
        let page = client.list_sandboxes(&query).await.unwrap();
        all.extend(page.items.into_iter().filter(|sandbox| sandbox.state != State::Destroyed));
        match page.next_cursor {
            Some(cursor) => query.cursor = Some(cursor),
            None => return all,
        }
    }
}

/// One client: makes, uses and destroys sandboxes, one after the other, whatever happens to them.
async fn live(
    server: Arc<Server>,
    seen: Arc<Mutex<Seen>>,
    specs: Vec<CreateSandbox>,
    mut chance: Chance,
) {
    let client = server.client();
    for spec in specs {
        let sandbox = create(&client, &spec).await;
        seen.lock().unwrap().accepted.insert(sandbox.id.clone());
        let id = sandbox.id.clone();
        if chance.one_in(10) {
            // A client that goes away in the middle of a command.
            let exec = Exec::new(wire::op::Command::Shell("sleep 30".into()));
            let _ = tokio::time::timeout(Duration::from_millis(50), client.exec(&id, &exec)).await;
        }
        let used = use_it(&client, &id, spec.name.as_deref().unwrap()).await;
        {
            let mut seen = seen.lock().unwrap();
            match used {
                Ok(()) => seen.commands += 1,
                Err(error) => {
                    seen.disturbed += 1;
                    *seen.errors.entry(error.0).or_default() += 1;
                }
            }
        }
        delete(&client, &id).await;
    }
}

/// Asks until it has an answer. The name is what makes asking again harmless: one sandbox of a
/// workspace has it.
async fn create(client: &Client, spec: &CreateSandbox) -> Sandbox {
    let begun = Instant::now();
    loop {
        let error = match client.create_sandbox(spec).await {
            Ok(sandbox) => return sandbox,
            Err(error) => error,
        };
        if error.code() == Some(api::Code::NameTaken) {
            // Our own request, whose answer was lost.
            if let Ok(sandbox) = client.get_sandbox(spec.name.as_deref().unwrap()).await {
                return sandbox;
            }
        }
        assert!(begun.elapsed() < PATIENCE, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Why a sandbox could not be used: it, or the server, was killed meanwhile.
#[derive(Debug)]
struct Disturbed(String);

impl From<Error> for Disturbed {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

async fn use_it(client: &Client, id: &str, word: &str) -> Result<(), Disturbed> {
    let exec = Exec::new(wire::op::Command::Shell(format!("echo {word}; cat").as_str().into()));
    let result = client.exec(id, &exec).await?;
    if let Outcome::Lost { reason } = result.end.outcome {
        return Err(Disturbed(reason));
    }
    assert_eq!(result.stdout, format!("{word}\n"), "{result:?}");
    let path = "/workspace/word";
    let to = WriteQuery { path: path.into(), ..WriteQuery::default() };
    client.write_file(id, &to, word.to_owned()).await?;
    let from = ReadQuery { path: path.into(), ..ReadQuery::default() };
    let read = client.read_file(id, &from).await?;
    assert_eq!(read.bytes(1 << 20).await?, word.as_bytes());
    Ok(())
}

async fn delete(client: &Client, id: &str) {
    let begun = Instant::now();
    loop {
        match client.delete_sandbox(id, true).await {
            Ok(sandbox) if sandbox.state == State::Destroyed => return,
            Ok(_) => {}
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn two_hundred_sandboxes_of_twenty_clients() {
    Day { engine: "process", clients: 20, each: 10, memory_mb: 128, kills: 3 }.run();
}

#[test]
fn eight_machines_at_once() {
    Day { engine: "qemu", clients: 8, each: 2, memory_mb: 256, kills: 1 }.run();
}
