//! What a task has when it has taken over the agent of a sandbox on the host's kernel.
//!
//! A payload runs in the agent's stead, in the [cell](jail::cell) that it would be in, with more
//! rights than the agent keeps: capabilities go by the exec, which it does without, and it has no
//! filter of system calls. Each attempt to get out is a test of its own; so is, without a cell, that
//! the test would notice.

mod attempts;

use std::path::Path;
use std::process::ExitCode;

use jail::Report;
use jail::cell::{Cell, Cover};
use launch::{Launcher, Owner, Ownership, Process, Start};
use libtest_mimic::{Arguments, Trial};
use serde::{Deserialize, Serialize};

use attempts::{ATTEMPTS, Prey, Target};

type Failed = Box<dyn std::error::Error>;

const PAYLOAD: &str = "__payload";
/// Where the system is, for the payload.
const SYSTEM: &str = "/system";
const COVER: Cover = Cover { path: "etc/passwd", contents: "covered" };

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|first| first == PAYLOAD) {
        return payload().map_or_else(
            |error| {
                eprintln!("the payload failed: {error}");
                ExitCode::FAILURE
            },
            |()| ExitCode::SUCCESS,
        );
    }
    let arguments = Arguments::from_args();
    if let Err(missing) = jail::cell::check_ids() {
        eprintln!("not run: cells, because {missing}; {}", missing.remedy());
        return libtest_mimic::run(&arguments, Vec::new()).exit_code();
    }
    libtest_mimic::run(&arguments, trials()).exit_code()
}

#[derive(Debug, Serialize, Deserialize)]
struct Mission {
    attempt: String,
    /// Whether there is a cell.
    confined: bool,
    target: Target,
}

fn payload() -> Result<(), Failed> {
    let owner = Owner::take()?;
    let orders = owner.orders::<Mission>()?;
    let Mission { attempt, confined, target } = orders.body;
    let mut report = Report::default();
    if confined {
        report = jail::cell::enter(Cell {
            keep: owner.descriptors().into(),
            group: None,
            dies_with: orders.owner,
            root: Path::new(SYSTEM),
            files: 1 << 20,
            covers: &[COVER],
            name: "cell",
        })?;
    }
    owner.report(&report)?;
    let found = ATTEMPTS.iter().find(|(name, ..)| *name == attempt);
    let system = if confined { SYSTEM } else { "" };
    let found = found.map(|(_, _, run)| run(&target, system));
    owner.report(&found.ok_or("no such attempt")?.map_err(|error| error.to_string()))?;
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1000));
    }
}

/// A payload, and what its attempt came to.
async fn send(attempt: &str, confined: bool) -> Result<(Process, Report, Found), Failed> {
    let prey = Prey::plant()?;
    let mission = Mission { attempt: attempt.into(), confined, target: prey.target.clone() };
    let launcher =
        Launcher { program: "/proc/self/exe".into(), arguments: vec![PAYLOAD.to_owned()] };
    let start = Start {
        orders: &mission,
        descriptors: Vec::new(),
        ownership: Ownership::Owned,
        shown: true,
    };
    let mut process = launcher.start(start)?;
    let report: Report = process.report().await?.ok_or("it ended before it was confined")?;
    if let Some(inner) = report.inner {
        process.follow(inner)?;
    }
    let found = process.report().await?.ok_or("it ended before it had tried")?;
    Ok((process, report, found))
}

/// What was found, or why nothing was.
type Found = Result<String, String>;

/// Whether a cell withstands it whoever starts it. What it sees of the host is locked by root only.
fn holds_here(name: &str) -> bool {
    let takes_root = ["writes_system_directories", "has_set_user_id_programs"].contains(&name);
    let holds = !takes_root || rustix::process::geteuid().is_root();
    if !holds {
        eprintln!("not run: {name}, which only a cell of root's withstands by its mounts");
    }
    holds
}

fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (name, can_be_done_free, _) in ATTEMPTS.iter().filter(|(name, ..)| holds_here(name)) {
        trials.push(Trial::test(format!("{name}::confined"), || {
            on_tokio(async || match send(name, true).await?.2 {
                Ok(found) => Err(format!("it got {found:?}").into()),
                Err(_) => Ok(()),
            })
        }));
        if *can_be_done_free && rustix::process::geteuid().is_root() {
            trials.push(Trial::test(format!("{name}::free"), || {
                on_tokio(async || send(name, false).await?.2.map(drop).map_err(Failed::from))
            }));
        }
    }
    trials.extend([
        Trial::test("its_keeper_can_do_nothing", || on_tokio(its_keeper_can_do_nothing)),
        Trial::test("it_does_not_outlive_its_keeper", || on_tokio(it_does_not_outlive_its_keeper)),
        Trial::test("killing_it_leaves_nothing", || on_tokio(killing_it_leaves_nothing)),
        Trial::test("it_is_nobody_to_the_host", || on_tokio(it_is_nobody_to_the_host)),
    ]);
    trials
}

fn on_tokio(test: impl AsyncFnOnce() -> Result<(), Failed>) -> Result<(), libtest_mimic::Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(test()).map_err(|error| error.to_string().into())
}

fn status(pid: u32) -> Result<String, Failed> {
    Ok(std::fs::read_to_string(format!("/proc/{pid}/status"))?)
}

fn keeper_of(inner: u32) -> Result<u32, Failed> {
    let status = status(inner)?;
    let keeper = status.lines().find_map(|line| line.strip_prefix("PPid:")).ok_or("no parent")?;
    Ok(keeper.trim().parse()?)
}

async fn until(mut holds: impl FnMut() -> bool) -> Result<(), Failed> {
    for _ in 0..2000 {
        if holds() {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    Err("after ten seconds it still does not hold".into())
}

async fn its_keeper_can_do_nothing() -> Result<(), Failed> {
    let (_process, report, _) = send("reads_the_home", true).await?;
    let keeper = keeper_of(report.inner.ok_or("no inner process")?)?;
    until(|| status(keeper).is_ok_and(|status| status.contains("Seccomp:\t2"))).await?;
    let status = status(keeper)?;
    assert!(status.contains("CapPrm:\t0000000000000000"), "{status}");
    assert!(status.contains("NoNewPrivs:\t1") && !status.contains("Uid:\t0"), "{status}");
    Ok(())
}

async fn it_does_not_outlive_its_keeper() -> Result<(), Failed> {
    let (_process, report, _) = send("reads_the_home", true).await?;
    let inner = report.inner.ok_or("no inner process")?;
    let keeper = rustix::process::Pid::from_raw(keeper_of(inner)?.cast_signed()).ok_or("no pid")?;
    rustix::process::kill_process(keeper, rustix::process::Signal::KILL)?;
    until(|| {
        status(inner).is_ok_and(|status| status.contains("State:\tZ")) || status(inner).is_err()
    })
    .await
}

async fn killing_it_leaves_nothing() -> Result<(), Failed> {
    let (mut process, report, _) = send("reads_the_home", true).await?;
    let inner = report.inner.ok_or("no inner process")?;
    let keeper = keeper_of(inner)?;
    process.kill().await?;
    assert!(status(inner).is_err() && status(keeper).is_err());
    Ok(())
}

async fn it_is_nobody_to_the_host() -> Result<(), Failed> {
    let (_process, report, _) = send("reads_the_home", true).await?;
    let status = status(report.inner.ok_or("no inner process")?)?;
    let of = |name: &str| -> Option<u32> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    assert!(of("Uid:") > Some(65_535) && of("Gid:") > Some(65_535), "{status}");
    assert!(status.contains("Groups:\t \n"), "{status}");
    Ok(())
}
