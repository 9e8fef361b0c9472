//! What was measured, as tables or as JSON.

use std::time::Duration;

use serde_json::{Value, json};

use crate::contender::{Kind, Memory};
use crate::load::Load;
use crate::{Outcome, Work};

/// One run of one line.
pub(crate) struct Run {
    /// Requests a second.
    rate: f64,
    /// CPU time of the proxy's process for each, in microseconds.
    pub(crate) cpu: f64,
    /// In milliseconds.
    p50: f64,
    p99: f64,
}

impl Run {
    pub(crate) fn new(mut load: Load, cpu: Duration) -> Self {
        load.latencies.sort_unstable();
        let count = load.latencies.len() as f64;
        Self {
            rate: count / load.took.as_secs_f64(),
            cpu: cpu.as_secs_f64() * 1e6 / count,
            p50: at(&load.latencies, 0.5),
            p99: at(&load.latencies, 0.99),
        }
    }
}

/// The value at this share of sorted nanoseconds, in milliseconds.
fn at(sorted: &[u64], share: f64) -> f64 {
    // A share of a count.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let index = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
    sorted.get(index).map_or(f64::NAN, |nanoseconds| *nanoseconds as f64 / 1e6)
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Everything of one call.
pub(crate) struct Report {
    machine: String,
    decision: f64,
    runs: Vec<(Work, Kind, Run)>,
    long: Vec<(&'static str, Kind, f64, f64)>,
    late: Vec<(Kind, f64, f64)>,
    memory: Vec<(Kind, u64, Memory)>,
    not_run: Vec<(Kind, String)>,
}

impl Report {
    pub(crate) fn new() -> Outcome<Self> {
        let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
        let model =
            cpus.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("?");
        let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
        Ok(Self {
            machine: format!("{count} CPUs, {model}, load {}", load()?),
            decision: f64::NAN,
            runs: Vec::new(),
            long: Vec::new(),
            late: Vec::new(),
            memory: Vec::new(),
            not_run: Vec::new(),
        })
    }

    pub(crate) fn decision(&mut self, nanoseconds: f64) {
        self.decision = nanoseconds;
    }

    pub(crate) fn add(&mut self, work: Work, kind: Kind, run: Run) {
        eprintln!("{:60} {:24} {:7.0}/s {:8.1} us", work.name(), kind.name(), run.rate, run.cpu);
        self.runs.push((work, kind, run));
    }

    pub(crate) fn long(
        &mut self,
        what: &'static str,
        kind: Kind,
        length: usize,
        took: Duration,
        cpu: Duration,
    ) {
        let megabytes = length as f64 / 1e6;
        self.long.push((
            what,
            kind,
            megabytes / took.as_secs_f64(),
            cpu.as_secs_f64() * 1e3 / megabytes,
        ));
    }

    pub(crate) fn late(&mut self, kind: Kind, mut late: Vec<u64>) {
        late.sort_unstable();
        self.late.push((kind, at(&late, 0.5), at(&late, 0.99)));
    }

    pub(crate) fn memory(&mut self, kind: Kind, requests: u64, memory: Option<Memory>) {
        if let Some(memory) = memory {
            self.memory.push((kind, requests, memory));
        }
    }

    pub(crate) fn not_run(&mut self, kind: Kind, why: &str) {
        eprintln!("not run: {}: {why}", kind.name());
        self.not_run.push((kind, why.to_owned()));
    }

    /// A line that came to nothing is told once.
    pub(crate) fn failed(&mut self, kind: Kind, why: &str) {
        if !self.not_run.iter().any(|(known, text)| (*known, text.as_str()) == (kind, why)) {
            self.not_run(kind, why);
        }
    }

    fn of(&self, work: Work, kind: Kind, value: impl Fn(&Run) -> f64) -> Option<f64> {
        let fits = self.runs.iter().filter(|(of, by, _)| (*of, *by) == (work, kind));
        let values: Vec<f64> = fits.map(|(_, _, run)| value(run)).collect();
        (!values.is_empty()).then(|| median(values))
    }

    fn long_of(&self, wanted: &str, kind: Kind, value: impl Fn(f64, f64) -> f64) -> Option<f64> {
        let fits = self.long.iter().filter(|(what, by, ..)| (*what, *by) == (wanted, kind));
        let values: Vec<f64> = fits.map(|(_, _, rate, cpu)| value(*rate, *cpu)).collect();
        (!values.is_empty()).then(|| median(values))
    }

    pub(crate) fn print(&self, as_json: bool) {
        match as_json {
            true => println!("{:#}", self.json()),
            false => self.tables(),
        }
    }

    fn tables(&self) {
        let machine = &self.machine;
        println!("{machine}, {} when it was over\n", load().unwrap_or_default());
        for (kind, why) in &self.not_run {
            println!("not run: {}: {why}\n", kind.name());
        }
        println!("A decision of the rules: {:.0} ns\n", self.decision);
        println!("### Requests\n");
        println!(
            "| what | through | CPU us | gateway's / its CPU | req/s | p50 ms | added | p99 ms | added |"
        );
        println!("|---|---|---|---|---|---|---|---|---|");
        for work in Work::ALL {
            for kind in Kind::ALL {
                let Some(rate) = self.of(work, kind, |run| run.rate) else { continue };
                let of =
                    |kind, value: fn(&Run) -> f64| self.of(work, kind, value).unwrap_or(f64::NAN);
                let cpu = of(kind, |run| run.cpu);
                let (p50, p99) = (of(kind, |run| run.p50), of(kind, |run| run.p99));
                let is_direct = kind == Kind::Direct;
                let unless_direct = |text: String| if is_direct { String::new() } else { text };
                println!(
                    "| {} | {} | {} | {} | {rate:.0} | {p50:.3} | {} | {p99:.3} | {} |",
                    work.name(),
                    kind.name(),
                    unless_direct(format!("{cpu:.1}")),
                    unless_direct(format!("{:.3}", of(Kind::Gateway, |run| run.cpu) / cpu)),
                    unless_direct(format!("{:.3}", p50 - of(Kind::Direct, |run| run.p50))),
                    unless_direct(format!("{:.3}", p99 - of(Kind::Direct, |run| run.p99))),
                );
            }
        }
        println!("\n### Long bodies over HTTP/1.1\n");
        println!("| what | through | MB/s | CPU ms/MB |\n|---|---|---|---|");
        for what in ["binary", "text"] {
            for kind in Kind::ALL {
                let Some(rate) = self.long_of(what, kind, |rate, _| rate) else { continue };
                let cpu = self.long_of(what, kind, |_, cpu| cpu).unwrap_or(f64::NAN);
                println!("| {what} | {} | {rate:.0} | {cpu:.2} |", kind.name());
            }
        }
        println!("\n### How late events are\n");
        println!("| through | p50 ms | added | p99 ms |\n|---|---|---|---|");
        let direct = self.late.iter().find(|(kind, ..)| *kind == Kind::Direct);
        let direct = direct.map_or(f64::NAN, |(_, p50, _)| *p50);
        for (kind, p50, p99) in &self.late {
            println!("| {} | {p50:.3} | {:.3} | {p99:.3} |", kind.name(), p50 - direct);
        }
        println!("\n### Memory\n");
        println!(
            "| process | after requests | resident MB | of it not of files |\n|---|---|---|---|"
        );
        for (kind, requests, memory) in &self.memory {
            let Memory { resident, anonymous } = memory;
            println!("| {} | {requests} | {resident:.1} | {anonymous:.1} |", kind.name());
        }
    }

    fn json(&self) -> Value {
        let mut requests = Vec::new();
        for work in Work::ALL {
            for kind in Kind::ALL {
                let of = |value: fn(&Run) -> f64| self.of(work, kind, value);
                let Some(rate) = of(|run| run.rate) else { continue };
                requests.push(json!({
                    "what": work.name(), "through": kind.name(), "rate": rate,
                    "cpu_us": of(|run| run.cpu), "p50_ms": of(|run| run.p50), "p99_ms": of(|run| run.p99),
                }));
            }
        }
        let long: Vec<Value> = (self.long.iter())
            .map(|(what, kind, rate, cpu)| {
                json!({"what": what, "through": kind.name(), "mb_per_s": rate, "cpu_ms_per_mb": cpu})
            })
            .collect();
        let late: Vec<Value> = (self.late.iter())
            .map(|(kind, p50, p99)| json!({"through": kind.name(), "p50_ms": p50, "p99_ms": p99}))
            .collect();
        let memory: Vec<Value> = (self.memory.iter())
            .map(|(kind, requests, memory)| {
                json!({
                    "process": kind.name(), "requests": requests,
                    "resident_mb": memory.resident, "anonymous_mb": memory.anonymous,
                })
            })
            .collect();
        let not_run: Vec<Value> = (self.not_run.iter())
            .map(|(kind, why)| json!({"through": kind.name(), "why": why}))
            .collect();
        json!({
            "machine": self.machine, "decision_ns": self.decision, "requests": requests,
            "long_bodies": long, "events": late, "memory": memory, "not_run": not_run,
        })
    }
}

fn load() -> Outcome<String> {
    let load = std::fs::read_to_string("/proc/loadavg")?;
    Ok(load.split(' ').next().unwrap_or("?").to_owned())
}
