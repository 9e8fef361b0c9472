//! The launcher: a process that takes its orders and descriptors over a socket, enters the
//! jail, and becomes QEMU.
//!
//! Its stdin is the socket, its stdout takes the [`LaunchReport`] and is closed by the exec,
//! its stderr is QEMU's. It holds no path of the user's, and what it inherits is closed on exec.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use jail::Jail;
use rustix::fs::{Mode, OFlags};
use rustix::io::FdFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::{Deserialize, Serialize};

use crate::arguments::{Descriptors, Machine};

/// What to become.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Task {
    /// A machine. With it come the kernel, the initramfs, the root and the carrier.
    Machine(Machine),
    /// A QEMU that tells its version on stderr and ends.
    Version,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) program: PathBuf,
    pub(crate) task: Task,
    /// The process to die with.
    pub(crate) owner: Option<u32>,
}

/// What the launcher says before it becomes QEMU.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct LaunchReport {
    pub(crate) jail: jail::Report,
    pub(crate) error: Option<String>,
}

/// Longest order; kernel arguments and a path fit many times.
pub(crate) const MAX_ORDER: usize = 16 << 10;
/// Descriptors that an order may bring.
pub(crate) const MAX_DESCRIPTORS: usize = 4;

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
    // Everything that this process inherited by accident ends with the exec.
    let report = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3);
    let Err(error) = run(report.as_ref().ok());
    if let Ok(report) = report {
        let said = LaunchReport { error: Some(error), ..LaunchReport::default() };
        let _ = say(&report, &said);
    }
    ExitCode::from(125)
}

fn say(to: &OwnedFd, report: &LaunchReport) -> Result<(), String> {
    let mut text = serde_json::to_vec(report).map_err(|error| error.to_string())?;
    text.push(b'\n');
    rustix::io::write(to, &text).map(drop).map_err(|error| format!("report: {error}"))
}

fn run(report: Option<&OwnedFd>) -> Result<Infallible, String> {
    let report = report.ok_or("there is no stdout to report on")?;
    let (order, mut descriptors) = receive()?;
    // QEMU opens the kernel again, by then as somebody to whom only public files are open.
    if let Some(kernel) = descriptors.first_mut() {
        publish(kernel).map_err(|error| format!("copy the kernel: {error}"))?;
    }
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| format!("open /dev/null: {error}"))?;
    if order.owner.is_none() {
        rustix::process::setsid().map_err(|error| format!("start a session: {error}"))?;
    }
    let mut command = Command::new(&order.program);
    command.env_clear();
    let (address_space, reopenable) = match &order.task {
        Task::Version => {
            command.arg("--version");
            (4 << 30, Vec::new())
        }
        Task::Machine(machine) => {
            let [kernel, initramfs, root, carrier] = descriptors.as_slice() else {
                return Err(format!("{} descriptors came with the order", descriptors.len()));
            };
            let at = Descriptors {
                kernel: kernel.as_raw_fd(),
                initramfs: initramfs.as_raw_fd(),
                root: root.as_raw_fd(),
                carrier: carrier.as_raw_fd(),
            };
            command.args(machine.arguments(at));
            (machine.address_space(), vec![kernel.as_fd(), initramfs.as_fd()])
        }
    };
    let jail = Jail {
        address_space,
        descriptors: 256,
        readable: readable(&order.program),
        reopenable,
        dies_with: order.owner,
    };
    let jail = jail::enter(&jail).map_err(|error| error.to_string())?;
    for descriptor in &descriptors {
        rustix::io::fcntl_setfd(descriptor, FdFlags::empty())
            .map_err(|error| format!("hand over a descriptor: {error}"))?;
    }
    // QEMU's own words go to stderr, in either case.
    let redirect = |error: rustix::io::Errno| format!("redirect a stream: {error}");
    rustix::stdio::dup2_stdin(&null).map_err(redirect)?;
    rustix::stdio::dup2_stdout(rustix::stdio::stderr()).map_err(redirect)?;
    say(report, &LaunchReport { jail, error: None })?;
    let error = command.exec();
    let mut message = format!("start {}: {error}", order.program.display());
    if error.kind() == std::io::ErrorKind::PermissionDenied {
        let _ = write!(message, " (only system directories are readable in its jail)");
    }
    Err(message)
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

fn receive() -> Result<(Order, Vec<OwnedFd>), String> {
    let mut bytes = vec![0; MAX_ORDER];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        rustix::stdio::stdin(),
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .map_err(|error| format!("receive orders: {error}"))?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let order = serde_json::from_slice(&bytes[..received.bytes])
        .map_err(|error| format!("read orders: {error}"))?;
    Ok((order, descriptors))
}
