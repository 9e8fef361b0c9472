//! The launched process: takes its orders and descriptors, enters the jail, and becomes QEMU.
//!
//! It sends one [`LaunchReport`]; the stream for more is closed by the exec. Its stderr is
//! QEMU's. It holds no path of the user's, and what it inherits is closed by the exec.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use jail::{Bounds, Jail, Then};
use launch::Owner;
use rustix::io::FdFlags;
use serde::{Deserialize, Serialize};

use crate::arguments::{Content, Descriptors, Disk, Machine};

/// Where the kernel is among the descriptors.
const KERNEL: usize = 3;

/// What to become.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Task {
    /// A machine. With it come its memory, its control socket and its carrier, kernel and initramfs
    /// where it boots, and the files of each disk.
    Machine(Machine),
    /// A QEMU that tells its version on stderr and ends.
    Version,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) program: PathBuf,
    pub(crate) task: Task,
}

/// What the launcher says before it becomes QEMU.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct LaunchReport {
    pub(crate) jail: jail::Report,
    pub(crate) error: Option<String>,
}

/// Where distributions keep programs, libraries and firmware.
const SYSTEM: [&str; 8] = [
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/etc/ld.so.cache",
    "/nix/store",
    "/gnu/store",
    "/sys/devices/system/cpu",
];

/// Looks for a program as a shell does.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|candidate| {
        candidate.is_absolute()
            && rustix::fs::access(candidate, rustix::fs::Access::EXEC_OK).is_ok()
            && candidate.is_file()
    })
}

/// Runs as the launcher; returns only where it failed.
pub fn main() -> ExitCode {
    let Ok(owner) = Owner::take() else { return ExitCode::from(125) };
    let Err(error) = run(&owner);
    let _ = owner.report(&LaunchReport { error: Some(error), ..LaunchReport::default() });
    ExitCode::from(125)
}

fn run(owner: &Owner) -> Result<Infallible, String> {
    let orders = owner.orders::<Order>().map_err(|error| error.to_string())?;
    let (order, mut descriptors) = (orders.body, orders.descriptors);
    // QEMU opens the kernel again, by then as somebody to whom only public files are open.
    if let (Task::Machine(Machine { goes_on: false, .. }), Some(kernel)) =
        (&order.task, descriptors.get_mut(KERNEL))
    {
        publish(kernel).map_err(|error| format!("copy the kernel: {error}"))?;
    }
    let mut command = Command::new(&order.program);
    command.env_clear();
    // Otherwise each of its threads reserves 64 MiB of its bounded address space.
    command.env("MALLOC_ARENA_MAX", "1");
    // Alive until QEMU has its own.
    let mut descriptions = Vec::new();
    let (address_space, file_size, reopenable) = match &order.task {
        Task::Version => {
            command.arg("--version");
            (4 << 30, 0, Vec::new())
        }
        Task::Machine(machine) => {
            let too_few = || format!("{} descriptors came with the order", descriptors.len());
            let [memory, control, carrier, rest @ ..] = descriptors.as_slice() else {
                return Err(too_few());
            };
            let (boot, files) = match (machine.goes_on, rest) {
                (true, files) => (None, files),
                (false, [kernel, initramfs, files @ ..]) => (Some([kernel, initramfs]), files),
                (false, _) => return Err(too_few()),
            };
            let disks = contents(&machine.disks, files, &mut descriptions)?;
            let at = Descriptors {
                memory: memory.as_raw_fd(),
                control: control.as_raw_fd(),
                carrier: carrier.as_raw_fd(),
                boot: boot.map(|files| files.map(AsRawFd::as_raw_fd)),
                disks,
            };
            command.args(machine.arguments(&at));
            let reopenable = boot.into_iter().flatten().map(AsFd::as_fd).collect();
            (machine.address_space(), machine.largest_written(), reopenable)
        }
    };
    let jail = Jail {
        bounds: Bounds { address_space, descriptors: 1024, file_size, threads: None },
        group: None,
        dies_with: orders.owner,
        then: Then::Exec { readable: readable(&order.program), reopenable },
    };
    let jail = jail::enter(jail).map_err(|error| error.to_string())?;
    for descriptor in descriptors.iter().chain(&descriptions) {
        rustix::io::fcntl_setfd(descriptor, FdFlags::empty())
            .map_err(|error| format!("hand over a descriptor: {error}"))?;
    }
    // QEMU's own words go to stderr, in either case.
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())
        .map_err(|error| format!("redirect a stream: {error}"))?;
    owner.report(&LaunchReport { jail, error: None }).map_err(|error| error.to_string())?;
    let error = command.exec();
    let mut message = format!("start {}: {error}", order.program.display());
    if error.kind() == std::io::ErrorKind::PermissionDenied {
        let _ = write!(message, " (only system directories are readable in its jail)");
    }
    Err(message)
}

/// What QEMU is to open for each disk. The descriptions that it needs are added to `made`.
fn contents(
    disks: &[Disk],
    mut files: &[OwnedFd],
    made: &mut Vec<OwnedFd>,
) -> Result<Vec<Content>, String> {
    let mut set = 1;
    let mut contents = Vec::with_capacity(disks.len());
    for disk in disks {
        let (own, rest) = files
            .split_at_checked(disk.sectors.len())
            .ok_or_else(|| format!("the files of the disk {} did not come", disk.name))?;
        files = rest;
        contents.push(match own {
            [file] => Content::File(file.as_raw_fd()),
            several => {
                let description = disk.description(set + 1);
                let description = engine::disk::in_memory("disk", description.as_bytes())
                    .map_err(|error| format!("describe the disk {}: {error}", disk.name))?;
                let number = description.as_raw_fd();
                made.push(description.into());
                Content::Described(number, several.iter().map(AsRawFd::as_raw_fd).collect())
            }
        });
        set += disk.sets();
    }
    if files.is_empty() { Ok(contents) } else { Err("more files came than disks".into()) }
}

/// Puts a copy in memory in the place of a file that not everybody may read.
fn publish(file: &mut OwnedFd) -> std::io::Result<()> {
    let mode = rustix::fs::fstat(&*file)?.st_mode;
    if !rustix::process::geteuid().is_root() || mode & 0o004 != 0 {
        return Ok(());
    }
    let copy = rustix::fs::memfd_create("kernel", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut copy = std::fs::File::from(copy);
    std::io::copy(&mut std::fs::File::from(file.try_clone()?), &mut copy)?;
    *file = copy.into();
    Ok(())
}

fn readable(program: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = SYSTEM.iter().map(PathBuf::from).collect();
    // A QEMU of the user's own lies in PREFIX/bin, its firmware in PREFIX/share.
    let real = program.canonicalize();
    if let Ok(real) = real
        && let Some(prefix) = real.parent().and_then(Path::parent)
        && prefix.parent().is_some()
    {
        paths.push(prefix.to_owned());
    }
    paths
}
