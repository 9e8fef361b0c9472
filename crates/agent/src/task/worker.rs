//! The second process of a task: confines itself, waits for orders, and becomes the command.
//!
//! All that does not depend on the orders is done ahead of them. A tool, which is the agent's own
//! code for a file operation, runs here without an exec: under the same confinement as a command.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, open};
use rustix::io::Errno;
use rustix::process::{chdir, ioctl_tiocsctty, setsid, umask};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use wire::op::{ErrorCode, OpError};

use super::command::{Environment, exec};
use super::error::{During, SetupError};
use super::init::Inheritance;
use super::message::{Orders, Report, receive_orders, send_report};
use super::process::{close_all_on_exec, exit, ignore_sigpipe, reset_signals};
use super::user::User;
use super::{Entry, capabilities};

/// Where work is, in images that have it.
const WORKSPACE: &str = "/workspace";
const TTY_GROUP: u32 = 5;

/// Does all of it; the return of a fork's child.
pub(super) fn run(inheritance: &Inheritance<'_>, terminal: &OwnedFd) -> ! {
    let socket = inheritance.socket.as_fd();
    let report = match confine(inheritance) {
        Err(error) => Report::Failed(error.to_op_error()),
        Ok(()) => match receive_orders(socket) {
            Ok(Some((orders, fds))) => {
                obey(inheritance, terminal, orders, fds).unwrap_or_else(Report::Failed)
            }
            // The agent has no use for this spare.
            Ok(None) => exit(0),
            Err(error) => Report::Failed(failed("receive the task's orders", error)),
        },
    };
    send_report(socket, &report);
    exit(1)
}

/// In this order: each step may need a right that the next one takes.
fn confine(inheritance: &Inheritance<'_>) -> Result<(), SetupError> {
    reset_signals();
    setsid().during("start the task's session")?;
    capabilities::keep_for_root().during("drop capabilities")?;
    set_no_new_privs(true).during("set no_new_privs")?;
    inheritance.rules.enforce()?;
    inheritance.filters.enforce()
}

/// Returns only what did not become a command.
fn obey(
    inheritance: &Inheritance<'_>,
    terminal: &OwnedFd,
    orders: Orders,
    fds: Vec<OwnedFd>,
) -> Result<Report, OpError> {
    let Orders { entry, user, cwd, env, terminal: wants_terminal, limits } = orders;
    if let Some(limits) = limits {
        limits.apply().map_err(|error| failed("set the task's limits", error))?;
    }
    let user = User::find(user.as_ref().map(wire::text::Text::as_bytes))?;
    let mut fds = fds.into_iter();
    let command = match entry {
        Entry::Tool(request) => {
            let stdout = fds.next().ok_or(Errno::BADF);
            let stdout = stdout.map_err(|error| failed("take the tool's output", error))?;
            let stdin = fds.next().map_or_else(null, Ok);
            let stdin = stdin.map_err(|error| failed("open /dev/null", error))?;
            ignore_sigpipe();
            become_user(&user).map_err(|error| error.to_op_error())?;
            if let Some(cwd) = &cwd {
                enter(cwd.as_bytes())?;
            }
            let result = (inheritance.tool)(&request, File::from(stdin), File::from(stdout));
            return Ok(result.map_or_else(Report::Refused, Report::Reply));
        }
        Entry::Command(command) => command,
    };

    if wants_terminal {
        attach(terminal, &user).map_err(|error| error.to_op_error())?;
    } else {
        let [stdout, stderr, stdin] = [fds.next(), fds.next(), fds.next()];
        redirect(stdout, stderr, stdin).map_err(|error| failed("set up the pipes", error))?;
    }
    become_user(&user).map_err(|error| error.to_op_error())?;
    let home = home(&user);
    match &cwd {
        Some(cwd) => enter(cwd.as_bytes())?,
        None => {
            let places = [WORKSPACE.as_bytes(), &home, b"/"];
            let _ = places.into_iter().find(|place| chdir(*place).is_ok());
        }
    }
    let environment = Environment::new(&user, &home, wants_terminal, env);
    close_all_on_exec();
    Ok(exec(&command, &environment))
}

fn become_user(user: &User) -> Result<(), SetupError> {
    umask(Mode::from_raw_mode(0o022));
    let groups: Vec<Gid> = user.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_groups(&groups).during("set the task's groups")?;
    set_thread_res_gid(gid, gid, gid).during("set the task's group")?;
    if uid.is_root() {
        return Ok(());
    }
    capabilities::empty_bounding_set().during("empty the bounding set")?;
    set_thread_res_uid(uid, uid, uid).during("set the task's user")?;
    capabilities::drop_all().during("drop all capabilities")
}

/// Makes the terminal the session's and its slave stdin, stdout and stderr.
fn attach(master: &OwnedFd, user: &User) -> Result<(), SetupError> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(master, flags).during("open the terminal's other end")?;
    fchown(&slave, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(TTY_GROUP)))
        .during("give the terminal to the user")?;
    ioctl_tiocsctty(&slave).during("make the terminal the controlling one")?;
    dup2_stdin(&slave)
        .and_then(|()| dup2_stdout(&slave))
        .and_then(|()| dup2_stderr(&slave))
        .during("connect the terminal")
}

fn redirect(
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
) -> rustix::io::Result<()> {
    dup2_stdin(stdin.map_or_else(null, Ok)?)?;
    dup2_stdout(stdout.ok_or(Errno::BADF)?)?;
    dup2_stderr(stderr.ok_or(Errno::BADF)?)
}

fn null() -> rustix::io::Result<OwnedFd> {
    open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

/// Without an entry for the user, the place where work is, or at least one that can be written.
fn home(user: &User) -> Vec<u8> {
    user.home.clone().unwrap_or_else(|| {
        let place = if Path::new(WORKSPACE).is_dir() { WORKSPACE } else { "/tmp" };
        place.as_bytes().to_vec()
    })
}

fn enter(directory: &[u8]) -> Result<(), OpError> {
    chdir(directory).map_err(|error| {
        let directory = String::from_utf8_lossy(directory);
        let code = match error {
            Errno::NOENT => ErrorCode::NotFound,
            Errno::ACCESS => ErrorCode::PermissionDenied,
            _ => ErrorCode::Invalid,
        };
        let error = std::io::Error::from(error);
        OpError::new(code, format!("working directory {directory}: {error}"))
    })
}

fn failed(action: &str, error: impl Into<std::io::Error>) -> OpError {
    OpError::new(ErrorCode::Failed, format!("could not {action}: {}", error.into()))
}
