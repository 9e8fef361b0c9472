//! What a guest has when it has taken over its monitor.
//!
//! A payload runs in the monitor's stead: started as the engine starts it, in the jail that
//! [`Jail::monitor`](jail::Jail::monitor) makes, with descriptors handed over. Each attempt to
//! get out is a test of its own, by user and by what stands in the way:
//!
//! - `free`: nothing. The attempt succeeds, which shows that the test would notice.
//! - `jailed`: all of the jail.
//! - `unfiltered`: all but the filter of system calls, which shows that the layers below it hold
//!   as well. Where only the filter does, there is no such test.
//!
//! This program is also the payload, and the owner of payloads that outlive nobody.

mod attempts;
mod kernel;
mod life;
mod payload;
mod target;

use std::process::ExitCode;

use jail::Report;
use launch::{Launcher, Ownership, Process, Start};
use libtest_mimic::{Arguments, Trial};
use serde::{Deserialize, Serialize};

use attempts::{ATTEMPTS, Attempt, Free, Held};
use target::{Prey, Target};

type Failed = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [payload::AS_NOBODY, rest @ ..] => payload::become_nobody(rest),
        [payload::PAYLOAD] => payload::run(),
        [life::OWNER, user] => life::own(user),
        _ => libtest_mimic::run(&Arguments::from_args(), trials()).exit_code(),
    }
}

/// Who starts the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    Root,
    /// Somebody without any rights.
    Nobody,
    /// Whoever runs the tests, where that is not root.
    Myself,
}

impl User {
    fn name(self) -> &'static str {
        match self {
            Self::Root => "as_root",
            Self::Nobody => "as_nobody",
            Self::Myself => "as_myself",
        }
    }

    fn all() -> &'static [Self] {
        if rustix::process::geteuid().is_root() {
            return &[Self::Root, Self::Nobody];
        }
        eprintln!("not run: the jail of root's monitors, since these tests do not run as root");
        &[Self::Myself]
    }

    fn launcher(self) -> Launcher {
        let words: &[&str] = match self {
            Self::Nobody => &[payload::AS_NOBODY, payload::PAYLOAD],
            Self::Root | Self::Myself => &[payload::PAYLOAD],
        };
        let arguments = words.iter().map(|word| (*word).to_owned()).collect();
        Launcher { program: "/proc/self/exe".into(), arguments }
    }
}

/// What stands in the payload's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Way {
    Free,
    Jailed,
    Unfiltered,
    /// The filter has an answer of its own for what it refuses.
    Answering(u16),
}

/// What the payload is started for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Mission {
    pub(crate) attempt: String,
    pub(crate) way: Way,
    pub(crate) target: Target,
    /// The last descriptor is the door of its group.
    pub(crate) grouped: bool,
}

/// What it found: its prey, or why not.
pub(crate) type Found = Result<String, String>;

fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for user in User::all() {
        for attempt in ATTEMPTS {
            trials.extend(trials_of(attempt, *user));
        }
        trials.extend(life::trials(*user));
    }
    trials
}

fn trials_of(attempt: &'static Attempt, user: User) -> Vec<Trial> {
    let mut ways = vec![("jailed", Way::Jailed)];
    if attempt.free.applies_to(user) {
        ways.push(("free", Way::Free));
    }
    if attempt.below == Held::Too {
        ways.push(("unfiltered", Way::Unfiltered));
    }
    let trial = |(name, way)| {
        let name = format!("{}::{}::{name}", user.name(), attempt.name);
        Trial::test(name, move || on_tokio(async move || try_out(attempt, user, way).await))
    };
    ways.into_iter().map(trial).collect()
}

pub(crate) fn on_tokio(
    test: impl AsyncFnOnce() -> Result<(), Failed>,
) -> Result<(), libtest_mimic::Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(test()).map_err(|error| error.to_string().into())
}

/// A payload that is where it was to be.
pub(crate) struct Captive {
    pub(crate) process: Process,
    pub(crate) jail: Report,
    /// What it was sent for goes with it.
    _prey: Prey,
}

pub(crate) async fn capture(user: User, attempt: &str, way: Way) -> Result<Captive, Failed> {
    capture_in(user, attempt, way, None).await
}

pub(crate) async fn capture_in(
    user: User,
    attempt: &str,
    way: Way,
    group: Option<std::os::fd::OwnedFd>,
) -> Result<Captive, Failed> {
    let prey = Prey::plant()?;
    let mission = Mission {
        attempt: attempt.into(),
        way,
        target: prey.target.clone(),
        grouped: group.is_some(),
    };
    let mut descriptors = prey.descriptors()?;
    descriptors.extend(group);
    let start = Start { orders: &mission, descriptors, ownership: Ownership::Owned, shown: false };
    let mut process = user.launcher().start(start)?;
    let Some(jail) = process.report::<Report>().await? else {
        return Err(format!("the payload was not jailed: {}", process.wait().await?).into());
    };
    if let Some(inner) = jail.inner {
        process.follow(inner)?;
    }
    Ok(Captive { process, jail, _prey: prey })
}

async fn try_out(attempt: &Attempt, user: User, way: Way) -> Result<(), Failed> {
    let mut captive = capture(user, attempt.name, way).await?;
    let found = captive.process.report::<Found>().await?;
    let end = captive.process.wait().await?;
    if way == Way::Unfiltered && !captive.jail.missing.is_empty() {
        let missing = captive.jail.missing.join("; ");
        eprintln!("not run: {} without the filter, for this host lacks {missing}", attempt.name);
        return Ok(());
    }
    match (way, found) {
        (Way::Free, Some(Ok(_))) | (Way::Jailed | Way::Unfiltered, Some(Err(_))) => Ok(()),
        (Way::Jailed, None) => {
            let last = end.last_words().unwrap_or_default();
            let expected = attempt.calls.iter().map(|call| format!("seccomp: system call {call}"));
            let caught = expected.into_iter().any(|words| last == words);
            caught.then_some(()).ok_or_else(|| format!("it ended otherwise: {end}").into())
        }
        (Way::Free, Some(Err(reason))) if attempt.free == Free::Root => {
            // One of a container, for example.
            eprintln!("not run: {} as a root that can: {reason}", attempt.name);
            Ok(())
        }
        (_, None) => Err(format!("it ended: {end}").into()),
        (_, Some(Ok(prey))) => Err(format!("it got {prey}").into()),
        (_, Some(Err(reason))) => Err(format!("it did not even get it outside: {reason}").into()),
    }
}
