//! What it costs to start a process and jail it as a KVM monitor is: the time until its report
//! is there, and the time of each step, as p50 and p90 of many starts.
//!
//! `cargo run --release -p jail --example cost [starts]`

use std::process::ExitCode;
use std::time::Instant;

use jail::{Jail, MonitorSize, Report};
use launch::{Launcher, Owner, Ownership, Start};

type Failed = Box<dyn std::error::Error>;

const STARTED: &str = "__started";

fn main() -> ExitCode {
    let argument = std::env::args().nth(1);
    let done = match argument.as_deref() {
        Some(STARTED) => started(),
        other => other.map_or(Ok(200), str::parse).map_err(Failed::from).and_then(measure),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn started() -> Result<(), Failed> {
    let owner = Owner::take()?;
    let orders = owner.orders::<bool>()?;
    if !orders.body {
        owner.report(&Report::default())?;
        return Ok(());
    }
    let size = MonitorSize { guest_memory: 512 << 20, largest_file: 0, threads: 8 };
    let jail = Jail::monitor(size, owner.descriptors().into(), orders.owner);
    owner.report(&jail::enter(jail)?)?;
    Ok(())
}

fn measure(starts: usize) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut free = Vec::new();
        let mut jailed = Vec::new();
        let mut reports = Vec::new();
        for _ in 0..starts {
            free.push(start(false).await?.0);
            let (took, report) = start(true).await?;
            jailed.push(took);
            reports.push(report);
        }
        println!("{:<28} {:>9} {:>9}  us, of {starts} starts", "", "p50", "p90");
        line("start, no jail", &mut free);
        line("start, jailed", &mut jailed);
        let steps = reports.first().map_or(&[][..], |report| &report.steps);
        for (index, step) in steps.iter().enumerate() {
            let mut times: Vec<f64> =
                reports.iter().map(|report| report.steps[index].microseconds).collect();
            line(&format!("  {}", step.name), &mut times);
        }
        for missing in reports.first().map_or(&[][..], |report| &report.missing) {
            println!("missing: {missing}");
        }
        Ok(())
    })
}

async fn start(jailed: bool) -> Result<(f64, Report), Failed> {
    let launcher = Launcher { program: "/proc/self/exe".into(), arguments: vec![STARTED.into()] };
    let start = Start {
        orders: &jailed,
        descriptors: Vec::new(),
        ownership: Ownership::Owned,
        shown: false,
    };
    let begun = Instant::now();
    let mut process = launcher.start(start)?;
    let report = process.report::<Report>().await?;
    let took = begun.elapsed().as_secs_f64() * 1e6;
    let end = process.wait().await?;
    Ok((took, report.ok_or_else(|| format!("it did not report: {end}"))?))
}

fn line(name: &str, times: &mut [f64]) {
    times.sort_by(f64::total_cmp);
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or(0.0);
    println!("{name:<28} {:>9.1} {:>9.1}", at(50), at(90));
}
