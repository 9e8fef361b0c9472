//! The payload: enters the jail as the monitor does, and then does as it is told.

use std::convert::Infallible;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use jail::filter::Refusal;
use jail::{Jail, MonitorSize, Report, Then};
use launch::Owner;
use rustix::fs::{Gid, Uid};

use crate::attempts::{self, Means};
use crate::target::HANDED;
use crate::{Failed, Mission, Way};

/// Becomes nobody and starts again, with the arguments behind it.
pub(crate) const AS_NOBODY: &str = "__as-nobody";
pub(crate) const PAYLOAD: &str = "__payload";

/// Of whom there is nothing on any system.
const NOBODY: u32 = 65534;

/// What a monitor of a small machine would be.
pub(crate) const SIZE: MonitorSize =
    MonitorSize { guest_memory: 64 << 20, largest_file: 1 << 20, threads: 4 };

pub(crate) fn become_nobody(arguments: &[&str]) -> ExitCode {
    let Err(error) = exec_as_nobody(arguments);
    eprintln!("cannot become nobody: {error}");
    ExitCode::FAILURE
}

fn exec_as_nobody(arguments: &[&str]) -> Result<Infallible, Failed> {
    rustix::thread::set_thread_groups(&[])?;
    let gid = Gid::from_raw(NOBODY);
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    let uid = Uid::from_raw(NOBODY);
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Err(Command::new("/proc/self/exe").args(arguments).exec().into())
}

pub(crate) fn run() -> ExitCode {
    match play() {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("the payload failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn play() -> Result<u8, Failed> {
    let mut owner = Owner::take()?;
    let orders = owner.orders::<Mission>()?;
    let mission = orders.body;
    let mut descriptors = orders.descriptors;
    let door = mission.grouped.then(|| descriptors.pop()).flatten();
    let means = Means::prepare(&mission.target)?;

    let mut keep: Vec<BorrowedFd<'_>> = owner.descriptors().into();
    keep.extend(descriptors.iter().map(|descriptor| descriptor.as_fd()));
    assert_eq!(descriptors.len(), HANDED);
    let mut jail = Jail::monitor(SIZE, keep, orders.owner);
    jail.group = door;
    if let Then::Stay { policy, .. } = &mut jail.then {
        match mission.way {
            Way::Free | Way::Jailed => {}
            Way::Unfiltered => *policy = None,
            Way::Answering(errno) => {
                *policy = policy.take().map(|policy| policy.refusing_by(Refusal::Fail(errno)));
            }
        }
    }
    let report = match mission.way {
        Way::Free => Report::default(),
        _ => jail::enter(jail)?,
    };
    owner.report(&without_the_filter(report))?;

    attempts::act(&mission.attempt, &mission.target, &means, &descriptors, &mut owner)
}

/// That the filter is missing where it was left out is no news.
fn without_the_filter(mut report: Report) -> Report {
    report.missing.retain(|missing| !missing.starts_with("seccomp"));
    report
}
