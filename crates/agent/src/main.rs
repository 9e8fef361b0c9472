//! PID 1 of a sandbox: serves the wire and runs each task in a sandbox of its own.
//!
//! It comes to that in two ways: as the first process of a guest's kernel ([`boot`] mounts the
//! root), or started on the host's kernel, where it first confines itself ([`hosted`]). From there
//! on all is one: [`session`] talks to one host over the [`carrier`], [`mod@serve`] is the loop,
//! [`task`] confines whatever runs, and [`tool`] holds the file operations, which run confined
//! like any task.

mod boot;
mod carrier;
mod device_mapper;
mod freshen;
mod hosted;
mod layer;
mod log;
mod network;
mod process;
mod serve;
mod session;
mod share;
mod task;
mod tool;
mod trust;
mod volume;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use wire::envelope::Opener;
use wire::op::GuestInfo;

use crate::boot::Identity;
use crate::carrier::Carrier;
use crate::serve::Server;
use crate::session::Session;
use crate::task::{Sandbox, Settings};

/// Whose kernel the agent runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    /// A guest's, which is there for the sandbox alone.
    Own,
    /// The host's. What is the kernel's, such as its clock, is not the sandbox's to change.
    Shared,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let is_hosted = arguments.next().is_some_and(|first| first == hosted::ARGUMENT);
    match (is_hosted, std::process::id()) {
        (false, 1) => guest(),
        (true, 1) => served(hosted::run(&arguments.collect::<Vec<_>>().join(" "))),
        (true, _) => hosted::enter(),
        (false, _) => {
            eprintln!(
                "sandforge's agent is the first process of a sandbox; it does not run by hand"
            );
            ExitCode::FAILURE
        }
    }
}

/// The first process of a guest, which ends with it.
fn guest() -> ExitCode {
    let status = served(run());
    rustix::fs::sync();
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    status
}

/// There is only the console, or whoever hears a hosted agent's words, to tell.
fn served(result: Result<(), Box<dyn std::error::Error>>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let mut words = format!("sandforge agent: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        words += &format!(": {error}");
        cause = error.source();
    }
    let _ = writeln!(std::io::stderr(), "{words}");
    ExitCode::FAILURE
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = boot::begin()?;
    let memory_bytes = memory_bytes()?;
    let reserve_bytes = reserve(memory_bytes);
    // Files are charged to the task that writes them. A full disk should be met before a full
    // memory: the one is an error to the writer, the other its end.
    let changes_bytes = memory_bytes.saturating_sub(reserve_bytes) / 4 * 3;
    boot::mount_root(&arguments, changes_bytes)?;
    let mut sandbox = Sandbox::new(&settings(Kernel::Own, memory_bytes))?;
    if arguments.identity.is_none() {
        sandbox.warm_up()?;
    }
    serve(arguments.identity, Carrier::find()?, sandbox, memory_bytes)
}

fn settings(kernel: Kernel, memory_bytes: u64) -> Settings<'static> {
    Settings {
        root: Path::new(boot::ROOT),
        kernel,
        memory_bytes,
        reserve_bytes: reserve(memory_bytes),
        tool: |request, input, output| tool::run(&request.op, &request.payload, input, output),
    }
}

/// Serves one host after another until one asks for the end.
fn serve(
    identity: Option<Identity>,
    carrier: Carrier,
    sandbox: Sandbox,
    memory_bytes: u64,
) -> Result<(), Box<dyn std::error::Error>> {
    let opener = match identity {
        Some(Identity { key, sandbox }) => Opener::new(key, sandbox),
        None => Opener::of_template(),
    };
    let info = GuestInfo {
        agent: env!("CARGO_PKG_VERSION").into(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        cpus: std::thread::available_parallelism()
            .map_or(1, |n| u32::try_from(n.get()).unwrap_or(1)),
        memory_bytes,
        landlock_abi: sandbox.landlock_abi(),
        ready_ms: uptime_ms(),
    };
    Server::new(Session::new(carrier), opener, sandbox, info)?.run()?;
    Ok(())
}

/// What tasks cannot have: the agent's own memory, its logs, and the kernel's room to work.
fn reserve(memory_bytes: u64) -> u64 {
    (24 << 20) + memory_bytes / 8
}

fn memory_bytes() -> Result<u64, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let kib: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"))
        .ok_or("/proc/meminfo has no MemTotal")?
        .parse()?;
    Ok(kib * 1024)
}

fn uptime_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let milliseconds = now.tv_sec * 1000 + now.tv_nsec / 1_000_000;
    u64::try_from(milliseconds).unwrap_or(0)
}
