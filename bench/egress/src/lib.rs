//! The gateway's figures: what a request through it costs, beside what it costs without, and through
//! the proxies of others, in one run on one computer.
//!
//! The proxy has the first processor, in a process of its own; client and server share the others. CPU
//! time of the proxy's process for each request is the sturdy figure: rates and latencies are of the
//! whole computer. Runs are in turn, and what is printed is their median.
#![forbid(unsafe_code)]

mod contender;
mod gateway;
mod hudsucker;
mod load;
mod origin;
mod report;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use contender::{Contender, Kind};
use load::{Client, Load, Until};
use origin::Origin;
use report::{Report, Run};
use rustls::crypto::CryptoProvider;

/// What benchmarks come to.
type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const USAGE: &str = "\
usage: egress [OPTIONS]
  --runs N         of each line (5)
  --seconds N      of each run (2)
  --requests N     after which memory is looked at last (100000)
  --megabytes N    of a long body (1024)
  --without NAME   connect, unaudited, hudsucker, mitmproxy, srt, direct; more than once
  --json           as JSON
  --gate RATIO     CPU time of a kept connection's request beside hudsucker's only, which has to be at
                   most RATIO times that";

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    H1,
    H2,
}

impl Protocol {
    fn alpn(self) -> &'static [u8] {
        match self {
            Self::H1 => b"http/1.1",
            Self::H2 => b"h2",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::H1 => "HTTP/1.1",
            Self::H2 => "HTTP/2",
        }
    }
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

struct Options {
    runs: usize,
    time: Duration,
    requests: u64,
    length: usize,
    without: Vec<String>,
    json: bool,
    gate: Option<f64>,
}

impl Options {
    fn parse(arguments: &[String]) -> Outcome<Self> {
        let mut options = Self {
            runs: 5,
            time: Duration::from_secs(2),
            requests: 100_000,
            length: 1 << 30,
            without: Vec::new(),
            json: false,
            gate: None,
        };
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value\n{USAGE}"));
            match word.as_str() {
                "--runs" => options.runs = value()?.parse::<usize>()?.max(1),
                "--seconds" => options.time = Duration::try_from_secs_f64(value()?.parse()?)?,
                "--requests" => options.requests = value()?.parse()?,
                "--megabytes" => options.length = value()?.parse::<usize>()? << 20,
                "--without" => options.without.push(value()?.clone()),
                "--json" => options.json = true,
                "--gate" => options.gate = Some(value()?.parse()?),
                _ => return Err(USAGE.into()),
            }
        }
        Ok(options)
    }
}

/// A gateway's or a proxy's process, where this program was started as one.
pub fn child(arguments: &[String]) -> Option<ExitCode> {
    contender::child(arguments)
}

/// Measures and prints.
///
/// # Errors
/// Where something does not come up or does not answer; and where the gate's ratio is exceeded.
pub fn run(arguments: &[String]) -> Outcome {
    let options = Options::parse(arguments)?;
    contender::divide()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match options.gate {
            Some(most) => gate(&options, most).await,
            None => all(&options).await,
        }
    })
}

/// One line's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Work {
    protocol: Protocol,
    connections: usize,
    /// A connection for each request.
    fresh: bool,
}

impl Work {
    const ALL: [Self; 7] = [
        Self { protocol: Protocol::H1, connections: 1, fresh: false },
        Self { protocol: Protocol::H1, connections: 64, fresh: false },
        Self { protocol: Protocol::H2, connections: 1, fresh: false },
        Self { protocol: Protocol::H2, connections: 64, fresh: false },
        Self { protocol: Protocol::H1, connections: 1, fresh: true },
        Self { protocol: Protocol::H1, connections: 64, fresh: true },
        Self { protocol: Protocol::H2, connections: 1, fresh: true },
    ];

    fn name(self) -> String {
        let (protocol, connections) = (self.protocol.name(), self.connections);
        match (self.fresh, connections) {
            (false, 1) => format!("{protocol}, 1 connection, kept"),
            (false, _) => format!("{protocol}, {connections} connections, kept"),
            (true, 1) => format!("{protocol}, a new connection for each request"),
            (true, _) => format!("{protocol}, a new connection for each, {connections} at a time"),
        }
    }

    /// One run; none where it does not speak the protocol.
    async fn run(self, contender: &Contender, until: Until) -> Outcome<Option<Run>> {
        let Some(target) = contender.target(self.protocol) else { return Ok(None) };
        let before;
        let load: Load;
        if self.fresh {
            target.client().await?.ask().await?;
            before = contender.cpu()?;
            load = load::fresh(target, self.connections, until).await?;
        } else {
            let mut clients: Vec<Client> = Vec::new();
            for _ in 0..self.connections {
                let mut client = target.client().await?;
                client.ask().await?;
                clients.push(client);
            }
            load::kept(&mut clients, Until::Requests(16)).await?;
            before = contender.cpu()?;
            load = load::kept(&mut clients, until).await?;
        }
        let cpu = contender.cpu()?.saturating_sub(before);
        Ok(Some(Run::new(load, cpu)))
    }
}

async fn all(options: &Options) -> Outcome {
    let directory = scratch()?;
    let origin = Origin::start(directory.path()).await?;
    let mut report = Report::new()?;
    report.decision(gateway::decision()?);
    let mut contenders = Vec::new();
    for kind in Kind::ALL {
        if options.without.iter().any(|word| word == kind.word()) {
            continue;
        }
        let started = match Contender::start(kind, &origin, directory.path()) {
            Ok(started) => started.check().await.map(|()| started),
            Err(error) => Err(error),
        };
        match started {
            Ok(contender) => contenders.push(contender),
            // Without ours there is nothing to say.
            Err(error) if !matches!(kind, Kind::Mitmproxy | Kind::Srt) => return Err(error),
            Err(error) => report.not_run(kind, &error.to_string()),
        }
    }
    for contender in &contenders {
        report.memory(contender.kind, 0, contender.memory()?);
    }
    for work in Work::ALL {
        for _ in 0..options.runs {
            for contender in &contenders {
                match work.run(contender, Until::Time(options.time)).await {
                    Ok(Some(run)) => report.add(work, contender.kind, run),
                    Ok(None) => {}
                    Err(error) => {
                        report.failed(contender.kind, &format!("{}: {error}", work.name()));
                    }
                }
            }
        }
    }
    for contender in &contenders {
        for (what, path) in [("binary", origin::BINARY), ("text", origin::TEXT)] {
            for _ in 0..options.runs.min(3) {
                let (took, cpu) = long(contender, path, options.length).await?;
                report.long(what, contender.kind, options.length, took, cpu);
            }
        }
        report.late(contender.kind, late(contender).await?);
    }
    for contender in &contenders {
        if contender.kind == Kind::Gateway || contender.kind == Kind::Hudsucker {
            memory(contender, options.requests, &mut report).await?;
        }
    }
    report.print(options.json);
    Ok(())
}

/// Below the working directory: the gateway's database would be in memory otherwise.
fn scratch() -> Outcome<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("bench-egress").tempdir_in(".")?)
}

async fn long(contender: &Contender, path: &str, length: usize) -> Outcome<(Duration, Duration)> {
    let target = contender.target(Protocol::H1).ok_or("no HTTP/1.1")?;
    let Client::H1(mut client) = target.client().await? else { return Err("no HTTP/1.1".into()) };
    let before = contender.cpu()?;
    let begun = Instant::now();
    client.long(path, length).await?;
    Ok((begun.elapsed(), contender.cpu()?.saturating_sub(before)))
}

async fn late(contender: &Contender) -> Outcome<Vec<u64>> {
    const EVENTS: usize = 600;
    let target = contender.target(Protocol::H1).ok_or("no HTTP/1.1")?;
    let Client::H1(mut client) = target.client().await? else { return Err("no HTTP/1.1".into()) };
    client.events(EVENTS).await
}

/// What it takes while requests go through it.
async fn memory(contender: &Contender, requests: u64, report: &mut Report) -> Outcome {
    const CONNECTIONS: u64 = 64;
    let target = contender.target(Protocol::H1).ok_or("no HTTP/1.1")?;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(target.client().await?);
    }
    let mut asked = 0;
    for part in [100, 10, 4, 2, 1] {
        let goal = requests / part;
        let each = goal.saturating_sub(asked) / CONNECTIONS;
        load::kept(&mut clients, Until::Requests(each)).await?;
        asked += each * CONNECTIONS;
        report.memory(contender.kind, asked, contender.memory()?);
    }
    Ok(())
}

/// The gateway beside hudsucker, of which each computer has its own speed. Runs are in turn, and of
/// each the quickest counts: what else the computer does only adds to a run.
async fn gate(options: &Options, most: f64) -> Outcome {
    let directory = scratch()?;
    let origin = Origin::start(directory.path()).await?;
    let mut contenders = Vec::new();
    for kind in [Kind::Gateway, Kind::Unaudited, Kind::Hudsucker] {
        let contender = Contender::start(kind, &origin, directory.path())?;
        contender.check().await?;
        contenders.push(contender);
    }
    let mut best = [f64::INFINITY; 3];
    for _ in 0..options.runs {
        for (contender, best) in contenders.iter().zip(&mut best) {
            match Work::ALL[1].run(contender, Until::Time(options.time)).await {
                Ok(run) => *best = run.ok_or("no run")?.cpu.min(*best),
                // Where the disk is too slow for the records, the gateway lets nothing through.
                Err(error) => println!("a run of {} broke off: {error}", contender.kind.name()),
            }
        }
    }
    let [ours, unaudited, other] = best;
    if !(ours + other).is_finite() {
        println!("not run: the gateway's CPU time: no run of {} came to its end", options.runs);
        return Ok(());
    }
    println!(
        "us CPU for each request: gateway {ours:.1}, with its records dropped {unaudited:.1}, \
         hudsucker {other:.1}"
    );
    let ratio = ours / other;
    println!("{ratio:.2} times hudsucker's; at most {most:.2}");
    match ratio <= most {
        true => Ok(()),
        false => Err("the gateway has become slower; profile it before the bound is raised".into()),
    }
}
