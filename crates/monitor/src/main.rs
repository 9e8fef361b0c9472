//! One machine's process: takes its orders, confines itself, runs the machine until its owner or
//! its guest ends it.
//!
//! It is started with its owner's control socket and nothing else: no arguments, no environment,
//! no path. What it works with are the descriptors that come with the orders.
#![forbid(unsafe_code)]

mod confinement;
mod machine;

use std::process::ExitCode;

use launch::{Orders, Owner, OwnerError, Request};
use monitor_protocol::{Answer, Report, Request as Wish, Task};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vmm::state::StateError;
use vmm::{VmError, probe};

use crate::machine::{From, Running};

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
enum MonitorError {
    #[error(transparent)]
    Owner(#[from] OwnerError),
    #[error(transparent)]
    Jail(#[from] jail::JailError),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error("{0} descriptors came with the orders")]
    Descriptors(usize),
    #[error("the machine that was saved had {} CPUs and {} bytes of memory; {} and {} are wanted", saved.0, saved.1, wanted.0, wanted.1)]
    OtherSize { saved: (usize, u64), wanted: (usize, u64) },
    #[error("cannot read the state: {0}")]
    ReadState(#[source] std::io::Error),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("cannot write what is saved: {0}")]
    Save(#[source] std::io::Error),
    #[error("cannot set up the {what}: {reason}")]
    Device { what: &'static str, reason: String },
}

fn main() -> ExitCode {
    let mut owner = match Owner::take() {
        Ok(owner) => owner,
        Err(error) => {
            eprintln!("sandforge's monitor is started by sandforge, not by hand: {error}");
            return ExitCode::from(125);
        }
    };
    match run(&mut owner) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The owner may be what is missing; then nobody is there to be told.
            let _ = owner.report(&Report::Failed { reason: error.to_string() });
            ExitCode::from(125)
        }
    }
}

fn run(owner: &mut Owner) -> Result<(), MonitorError> {
    let mut orders = owner.orders()?;
    let jail = confinement::enter(owner, &mut orders)?;
    let Orders { body, descriptors, owner: owner_pid } = orders;
    match body {
        Task::Probe => {
            let [kvm] = <[_; 1]>::try_from(descriptors)
                .map_err(|descriptors| MonitorError::Descriptors(descriptors.len()))?;
            let outcome = probe::run(&kvm)?;
            owner.report(&Report::Probed { jail, outcome })?;
        }
        Task::Machine(machine) => {
            let running = machine::create(From::Kernel, machine, descriptors)?;
            run_machine(owner, &running, jail, owner_pid.is_some())?;
        }
        Task::Saved(machine) => {
            let running = machine::create(From::Saved, machine, descriptors)?;
            run_machine(owner, &running, jail, owner_pid.is_some())?;
        }
    }
    Ok(())
}

fn run_machine(
    owner: &mut Owner,
    running: &Running,
    jail: jail::Report,
    is_owned: bool,
) -> Result<(), MonitorError> {
    owner.report(&Report::Running { jail })?;
    running.vm.resume();
    serve(owner, running, is_owned)
}

/// Serves the owner until the machine ends, or nobody owns it any more.
fn serve(owner: &mut Owner, running: &Running, is_owned: bool) -> Result<(), MonitorError> {
    let mut listens = true;
    loop {
        let mut polled = vec![PollFd::new(running.vm.ended(), PollFlags::IN)];
        if listens {
            polled.push(PollFd::new(owner, PollFlags::IN));
        }
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("cannot poll two descriptors: {error}"),
        }
        let asked = polled.get(1).is_some_and(|socket| !socket.revents().is_empty());
        if let Some(end) = running.vm.end() {
            return Ok(owner.report(&Report::Ended { end })?);
        }
        if asked {
            match owner.request()? {
                Some(request) => answer(owner, running, request)?,
                None if is_owned => return Ok(()),
                // A machine that belongs to nobody goes on without anybody to ask.
                None => listens = false,
            }
        }
    }
}

fn answer(owner: &Owner, running: &Running, request: Request<Wish>) -> Result<(), MonitorError> {
    let answer = match request.body {
        Wish::Pause => {
            running.vm.pause();
            Answer::Done
        }
        Wish::Resume => {
            running.vm.resume();
            Answer::Done
        }
        Wish::Save => match machine::save(&running.vm, request.descriptors) {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Failed { reason: error.to_string() },
        },
        Wish::Metrics => Answer::Metrics(Box::new(running.metrics())),
        Wish::Balloon { mib } => {
            running.balloon.set_mib(mib);
            Answer::Done
        }
    };
    Ok(request.ticket.answer(owner, &answer)?)
}
