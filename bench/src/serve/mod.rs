//! The REST API under load: a server over the mock engine in a process of its own, and beside it
//! the floor, an axum server that says one thing to everybody.
//!
//! Client and server share the computer, so that a rate is of both; CPU time of the server for each
//! request is the sturdy figure.

mod load;
mod process;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use self::load::{Client, Latencies, Wire};
use self::process::{Kind, Served};
use crate::Outcome;

/// Connections, each with a token of its own.
pub(crate) const CONNECTIONS: usize = 64;
/// Runs of each line, in turn with the others.
const RUNS: usize = 5;
/// How long a run is measured.
const RUN: Duration = Duration::from_secs(3);
/// Requests a second that a host of two processors is to bear.
const GOAL_RATE: f64 = 5_000.0;
/// Requests after which the server's memory is looked at.
const LOOKS: [u64; 5] = [1_000, 10_000, 50_000, 100_000, 200_000];

/// The server's process, or the floor's, where that is what this program was started as.
pub(crate) fn child(arguments: &[String]) -> Option<ExitCode> {
    process::child(arguments)
}

/// What is asked, over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Floor,
    Get,
    /// The same at the rate of the goal, whatever could be had.
    PacedGet,
    Cycle,
}

/// One line of the table: what is asked, over what.
struct Line {
    work: Work,
    wire: Wire,
    runs: Vec<Run>,
}

struct Run {
    rate: f64,
    /// CPU time of the server for each request, in microseconds.
    cpu: f64,
    latencies: Latencies,
}

/// Rates, latencies and memory. With `churn`, sandboxes are made and destroyed for so long.
pub(crate) fn run(churn: Option<Duration>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        rates().await?;
        memory(churn).await
    })
}

async fn rates() -> Outcome {
    let floor = Served::start(Kind::Floor)?;
    let server = Served::start(Kind::Server)?;
    let tokens = server.tokens(CONNECTIONS).await?;
    let sandboxes = server.sandboxes(&tokens).await?;
    let works = [Work::Floor, Work::Get, Work::PacedGet, Work::Cycle];
    let mut lines: Vec<Line> = works
        .into_iter()
        .flat_map(|work| [Wire::Unix, Wire::Tls].map(|wire| Line { work, wire, runs: Vec::new() }))
        .collect();
    for _ in 0..RUNS {
        for line in &mut lines {
            let served = if line.work == Work::Floor { &floor } else { &server };
            let clients = served.clients(line.wire, &tokens).await?;
            let before = served.cpu()?;
            let begun = Instant::now();
            let latencies = ask(clients, line.work, &sandboxes, begun + RUN).await?;
            let took = begun.elapsed().as_secs_f64();
            let cpu = served.cpu()?.saturating_sub(before).as_secs_f64();
            let count = latencies.requests() as f64;
            line.runs.push(Run { rate: count / took, cpu: cpu * 1e6 / count, latencies });
        }
    }
    println!("### The server under load\n");
    println!("| what | wire | req/s | p50 ms | p99 ms | server's CPU, us/request | runs |");
    println!("|---|---|---|---|---|---|---|");
    for line in &lines {
        line.print();
    }
    println!();
    server.end().await?;
    floor.end().await
}

impl Line {
    fn print(&self) {
        let over = |value: &dyn Fn(&Run) -> f64| median(self.runs.iter().map(value).collect());
        let row = |name: &str, of: &dyn Fn(&Latencies) -> &[u32]| {
            let rate = |run: &Run| {
                run.rate * of(&run.latencies).len() as f64 / run.latencies.requests() as f64
            };
            println!(
                "| {name} | {} | {:.0} | {:.2} | {:.2} | {} | {} |",
                self.wire.name(),
                over(&rate),
                over(&|run: &Run| load::at(of(&run.latencies), 0.5)),
                over(&|run: &Run| load::at(of(&run.latencies), 0.99)),
                match name.starts_with("of it") {
                    true => String::new(),
                    false => format!("{:.0}", over(&|run: &Run| run.cpu)),
                },
                self.runs.len(),
            );
        };
        match self.work {
            Work::Floor => row("floor: axum, one static JSON", &|all| &all.whole),
            Work::Get => row("GET /v1/sandboxes/{id}", &|all| &all.whole),
            Work::PacedGet => row("the same, asked 5000 times a second", &|all| &all.whole),
            Work::Cycle => {
                row("create, exec, delete: each request", &|all| &all.whole);
                row("of it create", &|all| &all.parts[0]);
                row("of it exec of `true`", &|all| &all.parts[1]);
                row("of it delete", &|all| &all.parts[2]);
            }
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// All clients at once, each asking again when it was answered, until `end`.
async fn ask(
    clients: Vec<Client>,
    work: Work,
    sandboxes: &[String],
    end: Instant,
) -> Result<Latencies, Box<dyn std::error::Error>> {
    let mut tasks = Vec::new();
    let many = clients.len();
    for (number, mut client) in clients.into_iter().enumerate() {
        let sandbox = sandboxes[number].clone();
        tasks.push(tokio::spawn(async move {
            let mut latencies = Latencies::default();
            let answered = match work {
                Work::Floor => client.get_until("/", end, &mut latencies).await,
                Work::Get => {
                    client.get_until(&format!("/v1/sandboxes/{sandbox}"), end, &mut latencies).await
                }
                Work::PacedGet => {
                    let target = format!("/v1/sandboxes/{sandbox}");
                    let every = Duration::from_secs_f64(many as f64 / GOAL_RATE);
                    let first = Instant::now() + every.mul_f64(number as f64 / many as f64);
                    client.get_paced(&target, first, every, end, &mut latencies).await
                }
                Work::Cycle => loop {
                    client.cycle(&mut latencies).await.map_err(|error| error.to_string())?;
                    if Instant::now() >= end {
                        break Ok(());
                    }
                },
            };
            answered.map(|()| latencies).map_err(|error| error.to_string())
        }));
    }
    let mut all = Latencies::default();
    for task in tasks {
        all.add(task.await??);
    }
    all.sort();
    Ok(all)
}

/// The server's memory while sandboxes come and go.
async fn memory(churn: Option<Duration>) -> Outcome {
    let server = Served::start(Kind::Server)?;
    let tokens = server.tokens(CONNECTIONS).await?;
    let begun = Instant::now();
    println!("### The server's memory while sandboxes are made, used and destroyed\n");
    println!(
        "| requests | minutes | RSS MiB | PSS MiB | of it heap and stacks | open files | state on disk MiB |"
    );
    println!("|---|---|---|---|---|---|---|");
    let (mut requests, mut looks) = (0_u64, LOOKS.iter().copied());
    let mut next = looks.next();
    let mut report = Duration::from_secs(60);
    let mut clients = server.clients(Wire::Unix, &tokens).await?;
    print_memory(&server, 0, begun)?;
    loop {
        let mut tasks = Vec::new();
        for mut client in clients {
            tasks.push(tokio::spawn(async move {
                let mut latencies = Latencies::default();
                for _ in 0..5 {
                    client.cycle(&mut latencies).await.map_err(|error| error.to_string())?;
                }
                Ok::<_, String>((client, latencies.requests()))
            }));
        }
        clients = Vec::new();
        for task in tasks {
            let (client, count) = task.await??;
            clients.push(client);
            requests += count as u64;
        }
        match (next, churn) {
            (Some(look), _) if requests >= look => {
                print_memory(&server, requests, begun)?;
                next = looks.next();
            }
            (Some(_), None) => {}
            (None, None) => break,
            (_, Some(churn)) if begun.elapsed() >= churn => break,
            (_, Some(_)) if begun.elapsed() >= report => {
                print_memory(&server, requests, begun)?;
                report *= 2;
            }
            _ => {}
        }
    }
    print_memory(&server, requests, begun)?;
    println!();
    server.end().await
}

fn print_memory(server: &Served, requests: u64, begun: Instant) -> Outcome {
    let memory = server.memory()?;
    let mib = |kib: u64| kib as f64 / 1024.0;
    println!(
        "| {requests} | {:.1} | {:.1} | {:.1} | {:.1} | {} | {:.0} |",
        begun.elapsed().as_secs_f64() / 60.0,
        mib(memory.rss),
        mib(memory.pss),
        mib(memory.anonymous),
        memory.files,
        mib(memory.disk),
    );
    Ok(())
}

/// Kilobytes of the files below a directory.
fn disk(directory: &Path) -> std::io::Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        total += match metadata.is_dir() {
            true => disk(&entry.path())?,
            false => metadata.len() / 1024,
        };
    }
    Ok(total)
}
