//! PID 1 of the guest: serves the wire and runs each task in a sandbox of its own.
//!
//! [`boot`] mounts the root, [`session`] talks to one host over the [`carrier`], [`serve`] is
//! the loop, [`task`] confines whatever runs, and [`tool`] holds the file operations, which run
//! confined like any task.

mod boot;
mod carrier;
mod freshen;
mod log;
mod process;
mod serve;
mod session;
mod task;
mod tool;

use std::io::Write as _;
use std::path::Path;

use wire::envelope::Opener;
use wire::op::GuestInfo;

use crate::carrier::Carrier;
use crate::serve::Server;
use crate::session::Session;
use crate::task::{Sandbox, Settings};

fn main() {
    if std::process::id() != 1 {
        eprintln!("sandforge's agent is the first process of a guest; it does not run by hand");
        std::process::abort();
    }
    if let Err(error) = run() {
        // The console is the only place left; the host sees the machine stop.
        let _ = writeln!(std::io::stderr(), "sandforge agent: {error}");
    }
    rustix::fs::sync();
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = boot::begin()?;
    let memory_bytes = memory_bytes()?;
    let reserve_bytes = reserve(memory_bytes);
    // Files are charged to the task that writes them. A full disk should be met before a full
    // memory: the one is an error to the writer, the other its end.
    let changes_bytes = memory_bytes.saturating_sub(reserve_bytes) / 4 * 3;
    boot::mount_root(&arguments, changes_bytes)?;
    let settings = Settings {
        root: Path::new(boot::ROOT),
        reserve_bytes,
        tool: |request, input, output| tool::run(&request.op, &request.payload, input, output),
    };
    let sandbox = Sandbox::new(&settings)?;
    let session = Session::new(Carrier::find()?);
    let opener = Opener::new(arguments.key, arguments.sandbox);
    let info = GuestInfo {
        agent: env!("CARGO_PKG_VERSION").into(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        cpus: std::thread::available_parallelism()
            .map_or(1, |n| u32::try_from(n.get()).unwrap_or(1)),
        memory_bytes,
        landlock_abi: sandbox.landlock_abi(),
        ready_ms: uptime_ms(),
    };
    Server::new(session, opener, sandbox, info)?.run()?;
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
