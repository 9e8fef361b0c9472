//! The way in on the host's kernel.
//!
//! The program is started twice. The first time it is an ordinary process of the host: it takes its
//! orders from whoever started it, enters its cell ([`jail::cell`]), and becomes the same program
//! again. The second time it is PID 1, with a fresh memory that belongs to the cell, and knows its
//! orders by its arguments.

use std::convert::Infallible;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use jail::cell::{Cell, Cover};
use launch::Owner;
use rustix::io::FdFlags;

use crate::boot::{self, Identity, Words};
use crate::carrier::Carrier;
use crate::task::Sandbox;
use crate::{Kernel, serve, settings};

/// Tells the program that it is started on the host.
pub(crate) const ARGUMENT: &str = "hosted";

const MEMORY: &str = "sandforge.memory";
const CARRIER: &str = "sandforge.carrier";
/// Asks for no more than to find out whether tasks could run.
const PROBE: &str = "sandforge.probe";

/// Nothing here tells who uses the host. The default user is the one of the base image.
const COVERS: [Cover; 5] = [
    Cover {
        path: "etc/passwd",
        contents: "root:x:0:0:root:/root:/bin/sh\n\
                   agent:x:1000:1000::/home/agent:/bin/sh\n\
                   nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    },
    Cover { path: "etc/group", contents: "root:x:0:\ntty:x:5:\nagent:x:1000:\nnogroup:x:65534:\n" },
    Cover { path: "etc/passwd-", contents: "" },
    Cover { path: "etc/group-", contents: "" },
    // Others derive keys from it (machine-id(5)).
    Cover { path: "etc/machine-id", contents: "" },
];
const HOME: &str = "home/agent";
const NAME: &str = "sandbox";

/// The first time; returns only where it failed.
pub(crate) fn enter() -> ExitCode {
    let Ok(owner) = Owner::take() else { return ExitCode::FAILURE };
    let Err(reason) = become_first(&owner);
    let _ = owner.report(&Err::<jail::Report, _>(reason));
    ExitCode::FAILURE
}

fn become_first(owner: &Owner) -> Result<Infallible, String> {
    let orders = owner.orders::<Vec<String>>().map_err(|error| error.to_string())?;
    let (words, mut descriptors) = (orders.body, orders.descriptors.into_iter());
    let carrier = descriptors.next().ok_or("no carrier came with the orders")?;
    let group = descriptors.next();
    let line = words.join(" ");
    let memory: u64 = Words(&line).number(MEMORY).map_err(|error| error.to_string())?;
    let cell = Cell {
        keep: owner.descriptors().into_iter().chain([carrier.as_fd()]).collect(),
        group,
        dies_with: orders.owner,
        root: Path::new(boot::ROOT),
        files: memory / 4 * 3,
        covers: &COVERS,
        name: NAME,
    };
    let report = jail::cell::enter(cell).map_err(|error| error.to_string())?;
    rustix::io::fcntl_setfd(&carrier, FdFlags::empty())
        .map_err(|error| format!("hand the carrier on: {error}"))?;
    owner.report(&Ok::<_, String>(report)).map_err(|error| error.to_string())?;
    let error = Command::new("/proc/self/exe")
        .arg0("sandforge-agent")
        .arg(ARGUMENT)
        .args(words)
        .arg(format!("{CARRIER}={}", carrier.as_raw_fd()))
        .env_clear()
        .exec();
    Err(format!("start the agent in its cell: {error}"))
}

/// The second time.
pub(crate) fn run(words: &str) -> Result<(), Box<dyn std::error::Error>> {
    let words = Words(words);
    let identity = Identity::parse(words)?;
    // SAFETY: the number is the one that this program gave itself for a descriptor that it left
    // open, and nothing has been opened since that could have it.
    let carrier = unsafe { OwnedFd::from_raw_fd(words.number(CARRIER)?) };
    rustix::io::fcntl_setfd(&carrier, FdFlags::CLOEXEC)?;
    boot::workspace()?;
    boot::directory_of_user(HOME)?;
    let memory_bytes = words.number(MEMORY)?;
    let mut sandbox = Sandbox::new(&settings(Kernel::Shared, memory_bytes))?;
    if words.has(PROBE) {
        return Ok(sandbox.try_one()?);
    }
    serve(Some(identity), Carrier::handed_over(carrier)?, sandbox, memory_bytes)
}
