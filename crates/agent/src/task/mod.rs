//! The task sandbox: every command and every file tool runs in namespaces, a cgroup, Landlock rules
//! and seccomp filters of its own, as a user without privileges.
//!
//! Three processes take part. The agent forks a task's **init** ([`init`]), which makes the
//! namespaces and forks the **worker** ([`worker`]), which confines itself and waits. That pair is
//! a *spare*: it is made ahead, when the agent has nothing else to do, so that starting a command
//! is one message ([`message`]) and one exec.
//!
//! | what | where | owner |
//! |---|---|---|
//! | pid, mount, ipc, uts, cgroup namespaces | one each a task | the initial user namespace |
//! | user namespace | one a task, holds the worker alone | |
//! | network namespace | the agent's ([`network`]) | the initial user namespace |
//!
//! The boundary of a sandbox is its machine. This layer keeps tasks from each other, from the
//! agent and from the carrier that leads to the host.

mod bounds;
mod capabilities;
mod cgroup;
mod command;
mod error;
mod init;
mod landlock;
mod message;
mod mounts;
mod network;
mod process;
mod seccomp;
mod user;
mod worker;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, epoll, poll};
use rustix::io::ioctl_fionbio;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    DumpableBehavior, Signal, WaitId, WaitIdOptions, pidfd_send_signal, set_dumpable_behavior,
    waitid,
};
use rustix::termios::{Winsize, tcgetpgrp, tcsetwinsize};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde_json::Value;
use wire::op::{Command, ErrorCode, Limits, OpError, Outcome, WindowSize};
use wire::text::{Secret, Text};

use crate::Kernel;

use self::bounds::{Bound, Bounds, Used};
pub(crate) use self::command::is_variable;
use self::error::During;
pub(crate) use self::error::SetupError;
use self::init::{Farewell, Inheritance, Status};
use self::landlock::Rules;
use self::message::{Orders, Report, Told};
use self::mounts::Template;
#[cfg(test)]
pub(crate) use self::network::prepare as prepare_network;
pub(crate) use self::process::Attendant;
use self::process::{Fork, fork, signal_group};
use self::seccomp::Filters;
pub(crate) use self::user::User;

/// A spare is made this long after the last one was taken: not while a short command runs.
const REFILL_AFTER_START: Duration = Duration::from_millis(250);
/// ... or this long after a task ended: not before its reply is on the way.
const REFILL_AFTER_END: Duration = Duration::from_millis(1);
/// How long the spare of a machine that is to be a template may take.
const WARM_UP: Duration = Duration::from_secs(30);
/// The kernel's default is 64 KiB; with more a busy writer is woken less often.
const PIPE_BYTES: usize = 256 << 10;
/// With less the kernel would kill a task before it comes to its command.
const MEMORY_MIN: u64 = 4 << 20;
/// machine-id(5).
const MACHINE_ID: &str = "/etc/machine-id";
/// The key of the refill timer among those of dying tasks.
const TIMER: u64 = 0;

/// A file operation, as the host asked for it.
#[derive(Debug)]
pub(crate) struct ToolRequest {
    /// The operation's name.
    pub(crate) op: String,
    /// Its payload: JSON.
    pub(crate) payload: Vec<u8>,
}

/// Runs a tool in a worker: as the user, inside of the sandbox. Takes its input and its output,
/// and ends with the operation's reply.
pub(crate) type ToolFn = fn(&ToolRequest, File, File) -> Result<Value, OpError>;

/// What a task runs.
#[derive(Debug)]
pub(crate) enum Entry {
    /// A program of the image.
    Command(Command),
    /// The agent's own code.
    Tool(ToolRequest),
}

/// What to start and how.
#[derive(Debug)]
pub(crate) struct Spec {
    /// What runs.
    pub(crate) entry: Entry,
    /// `name`, `uid`, or either with `:group`; uid 1000 when absent.
    pub(crate) user: Option<Text>,
    /// Absolute; when absent `/workspace`, the user's home or `/`, whichever is there first.
    pub(crate) cwd: Option<Text>,
    /// Over the defaults.
    pub(crate) env: BTreeMap<Text, Secret>,
    /// A terminal of this size in place of the three pipes.
    pub(crate) tty: Option<WindowSize>,
    /// Whether input will come; `/dev/null` otherwise.
    pub(crate) stdin: bool,
    /// Bounds.
    pub(crate) limits: Limits,
}

/// What the sandbox of this boot is made from.
#[derive(Debug)]
pub(crate) struct Settings<'a> {
    /// Where the guest's root is mounted. What is mounted below it later is not seen by tasks.
    pub(crate) root: &'a Path,
    /// Whose kernel this is.
    pub(crate) kernel: Kernel,
    /// Memory of the sandbox.
    pub(crate) memory_bytes: u64,
    /// Of it, what no task gets: the agent's and the kernel's.
    pub(crate) reserve_bytes: u64,
    /// Runs tools.
    pub(crate) tool: ToolFn,
}

/// Starts tasks and buries them. One per agent.
///
/// Its descriptor becomes readable when [`Sandbox::tidy`] has something to do.
#[derive(Debug)]
pub(crate) struct Sandbox {
    template: Template,
    rules: Rules,
    filters: Filters,
    kernel: Kernel,
    bounds: Bounds,
    tool: ToolFn,
    /// The agent's own, to return to after a visit.
    uts: OwnedFd,
    /// To set the network up with, until that is settled. The agent of a host has it from before its
    /// filter, which knows no such socket.
    netfilter: Option<io::Result<OwnedFd>>,
    spare: Option<Spare>,
    dying: BTreeMap<u64, Remains>,
    next_key: u64,
    watch: OwnedFd,
    timer: OwnedFd,
}

/// A task that waits for its orders.
#[derive(Debug)]
struct Spare {
    remains: Remains,
    socket: OwnedFd,
    status: OwnedFd,
    hostname: Vec<u8>,
}

/// What there is to bury of a task.
#[derive(Debug)]
struct Remains {
    init: OwnedFd,
    bound: Bound,
    /// Input that broke off. It stays open for as long as anything lives that could take its end
    /// for a sign that all has come.
    broken_input: Option<OwnedFd>,
}

impl Remains {
    /// Kills every process of the task, also one that forks meanwhile.
    fn kill(&self) {
        // Init's end is the end of its PID namespace.
        let _ = match &self.bound {
            Bound::Group(cgroup) => cgroup.kill(),
            Bound::Limits(_) => {
                pidfd_send_signal(&self.init, Signal::KILL).map_err(io::Error::from)
            }
        };
    }
}

impl AsFd for Sandbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

impl Sandbox {
    /// Prepares everything that tasks share. `/proc` must be mounted, and the agent must have one
    /// thread, as it forks without an exec.
    ///
    /// # Errors
    /// Where any part of the confinement is not to be had: there is no weaker sandbox.
    pub(crate) fn new(settings: &Settings<'_>) -> Result<Self, SetupError> {
        // Inherited by each fork, so that no task reads the agent's memory through its own init.
        set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .during("make the agent not dumpable")?;
        network::prepare()?;
        let netfilter = crate::network::netfilter();
        match settings.kernel {
            Kernel::Own => std::fs::write("/proc/self/oom_score_adj", "-1000")
                .during("exempt the agent from the out-of-memory killer")?,
            Kernel::Shared => Filters::enforce_on_agent()?,
        }
        let bounds = Bounds::prepare(settings)?;
        let filters = Filters::compile()?;
        let (template, rules) = Template::make(settings)?;
        let uts = File::open("/proc/self/ns/uts").during("open /proc/self/ns/uts")?.into();
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, flags).during("make the refill timer")?;
        let watch =
            epoll::create(epoll::CreateFlags::CLOEXEC).during("make the watch for tasks")?;
        epoll::add(&watch, &timer, epoll::EventData::new_u64(TIMER), epoll::EventFlags::IN)
            .during("watch the refill timer")?;
        let sandbox = Self {
            template,
            rules,
            filters,
            kernel: settings.kernel,
            bounds,
            tool: settings.tool,
            uts,
            netfilter: Some(netfilter),
            spare: None,
            dying: BTreeMap::new(),
            next_key: TIMER + 1,
            watch,
            timer,
        };
        // The first spare is made while the host turns the agent's first message around.
        sandbox.refill_in(REFILL_AFTER_END);
        Ok(sandbox)
    }

    /// Whose kernel this is.
    pub(crate) fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Runs `change` with the root of tasks as `/`: every later task finds what it changed.
    ///
    /// # Errors
    /// What `change` returned.
    pub(crate) fn change_root<T>(
        &mut self,
        change: impl FnOnce() -> Result<T, OpError>,
    ) -> Result<T, OpError> {
        let changed = self.template.visit(change);
        // Its copy of the root is from before.
        if let Some(spare) = self.spare.take() {
            spare.remains.kill();
            self.bury(spare.remains);
        }
        self.refill_in(REFILL_AFTER_END);
        changed
    }

    /// Makes the first spare now, and waits until it is ready.
    ///
    /// # Errors
    /// What kept it from being so.
    pub(crate) fn warm_up(&mut self) -> Result<(), SetupError> {
        let spare = self.make_spare()?;
        let mut ready = [PollFd::new(&spare.socket, PollFlags::IN)];
        let patience = Timespec { tv_sec: WARM_UP.as_secs().cast_signed(), tv_nsec: 0 };
        poll(&mut ready, Some(&patience)).during("wait for the first task")?;
        self.spare = Some(spare);
        Ok(())
    }

    /// Gives tasks, those that are ready too, a boot id that is not the kernel's: the kernel's is that
    /// of every machine of the template.
    ///
    /// # Errors
    /// Where it cannot be drawn or written.
    pub(crate) fn take_boot_id(&self) -> Result<(), OpError> {
        self.template.set_boot_id().map_err(|error| failed("give the machine a boot id", &error))
    }

    /// Gives the root a machine id, where its image has a place for one.
    ///
    /// # Errors
    /// Where it cannot be drawn or written.
    pub(crate) fn take_machine_id(&self) -> Result<(), OpError> {
        match self.kernel {
            // The root is the host's.
            Kernel::Shared => Ok(()),
            Kernel::Own => self.template.visit(|| {
                set_machine_id().map_err(|error| failed("give the sandbox a machine id", &error))
            }),
        }
    }

    /// What sets the network up: a socket to the kernel's nf_tables.
    ///
    /// # Errors
    /// Where the kernel has none, or it was taken before.
    pub(crate) fn netfilter(&mut self) -> io::Result<OwnedFd> {
        self.netfilter.take().unwrap_or_else(|| Err(io::ErrorKind::NotConnected.into()))
    }

    /// Gives up the right to configure the network. It is the way to much of the kernel's network
    /// code, and in a sandbox on the host's kernel there is no use for it any more once the first
    /// task may come. In a guest the kernel is the sandbox's own.
    ///
    /// # Errors
    /// Where the kernel refuses, no task may come.
    pub(crate) fn settle_network(&mut self) -> Result<(), OpError> {
        self.netfilter = None;
        match self.kernel {
            Kernel::Own => Ok(()),
            Kernel::Shared => capabilities::drop_network()
                .during("give up the network's configuration")
                .map_err(|error| error.to_op_error()),
        }
    }

    /// Makes one task as far as it goes without orders.
    ///
    /// # Errors
    /// What kept it from being ready.
    pub(crate) fn try_one(&mut self) -> Result<(), OpError> {
        let spare = self.make_spare().map_err(|error| error.to_op_error())?;
        receive_worker(&spare.socket).map(drop)
    }

    /// The Landlock ABI that tasks run under.
    pub(crate) fn landlock_abi(&self) -> u32 {
        landlock::ABI_NUMBER
    }

    /// Starts a task. Waits only where no spare is ready.
    ///
    /// # Errors
    /// What is known before the task looks at its orders. What it finds then (no such user, no
    /// such directory) is in [`End::Failed`].
    pub(crate) fn spawn(&mut self, spec: Spec) -> Result<Task, OpError> {
        check(&spec)?;
        let spare = match self.living_spare() {
            Some(spare) => spare,
            None => self.make_spare().map_err(|error| error.to_op_error())?,
        };
        self.refill_in(REFILL_AFTER_START);
        let hostname = spare.hostname.clone();
        let Spare { remains, socket, status, .. } = spare;
        match self.start(&remains, &socket, &hostname, spec) {
            Ok(started) => match Task::new(started, remains, socket, status) {
                Ok(task) => Ok(task),
                Err((remains, error)) => {
                    remains.kill();
                    self.bury(remains);
                    Err(error)
                }
            },
            Err(error) => {
                remains.kill();
                self.bury(remains);
                Err(error)
            }
        }
    }

    /// Starts work of the agent's own as a task, with the agent's rights and view: its output is the
    /// task's.
    ///
    /// # Errors
    /// Where the system has no process to give.
    pub(crate) fn spawn_own(
        &mut self,
        work: impl FnOnce(File) -> Result<Value, OpError>,
    ) -> Result<Task, OpError> {
        let mut made = || -> Result<_, SetupError> {
            let kind = SocketType::SEQPACKET;
            let (socket, theirs) =
                socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
                    .during("make the task's socket")?;
            let (status, told) = pipe_with(PipeFlags::CLOEXEC).during("make the task's pipe")?;
            let mut outputs = Vec::with_capacity(1);
            let streams =
                Streams::pipes(false, false, &mut outputs).during("make the task's output")?;
            Ok((socket, theirs, status, told, streams, outputs, self.bounds.create()?))
        };
        let (socket, theirs, status, told, streams, mut outputs, bound) =
            made().map_err(|error| error.to_op_error())?;
        match fork(0, bound.group()) {
            Ok(Fork::Child) => {
                let Some(output) = outputs.pop() else { process::exit(1) };
                let mut keep = [&theirs, &told, &output].map(AsRawFd::as_raw_fd);
                process::close_all_but(&mut keep);
                let _ = rustix::thread::set_name(c"sandforge-layer");
                let result = work(File::from(output));
                let report = result.map_or_else(Report::Refused, Report::Reply);
                message::send_report(theirs.as_fd(), &report);
                let farewell = Farewell { status: Status::Exited(0), used: Used::default() };
                // Where the agent is gone there is nobody to tell.
                let _ = rustix::io::write(&told, &farewell.to_bytes());
                process::exit(0)
            }
            Ok(Fork::Parent(_, init)) => {
                let failed = |error| failed("watch the task", &error);
                let worker = init.try_clone().map_err(failed)?;
                let remains = Remains { init, bound, broken_input: None };
                let started = Started { worker, streams, tool: true, memory_limit: None };
                Task::new(started, remains, socket, status).map_err(|(remains, error)| {
                    remains.kill();
                    self.bury(remains);
                    error
                })
            }
            Err(error) => {
                self.bounds.remove(&bound);
                Err(failed("fork", &error))
            }
        }
    }

    /// The spare, if there is one and it still lives: a machine that runs out of memory may have
    /// taken it for a victim.
    fn living_spare(&mut self) -> Option<Spare> {
        let spare = self.spare.take()?;
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut init = [PollFd::new(&spare.remains.init, PollFlags::IN)];
        if poll(&mut init, Some(&now)) == Ok(0) {
            return Some(spare);
        }
        spare.remains.kill();
        self.bury(spare.remains);
        None
    }

    /// Ends a task at any time: kills what is left of it and tells what became of it. Meant for
    /// when [`Task::advance`] said `Ended` and the output is drained.
    pub(crate) fn finish(&mut self, task: Task) -> Ended {
        let (ended, remains) = task.end();
        self.bury(remains);
        if self.spare.is_none() {
            self.refill_in(REFILL_AFTER_END);
        }
        ended
    }

    /// Ends a task whose input broke off: [`Sandbox::finish`], but the task is dead before the
    /// input ends.
    pub(crate) fn abandon(&mut self, mut task: Task, input: Option<OwnedFd>) {
        task.remains.broken_input = input;
        self.finish(task);
    }

    /// Reaps tasks that have ended and makes the next spare. Never waits. A failure to make one
    /// shows where it is needed: in the next spawn.
    pub(crate) fn tidy(&mut self) {
        let mut events = Vec::with_capacity(16);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if epoll::wait(&self.watch, rustix::buffer::spare_capacity(&mut events), Some(&now))
            .is_err()
        {
            return;
        }
        for event in events {
            let key = event.data.u64();
            if key == TIMER {
                let mut expirations = [0; 8];
                if rustix::io::read(&self.timer, &mut expirations).is_ok() && self.spare.is_none() {
                    self.spare = self.make_spare().ok();
                }
            } else if let Some(remains) = self.dying.remove(&key) {
                self.reap(&remains);
            }
        }
    }

    /// Kills every task, for the end of the machine.
    pub(crate) fn kill_all(&self) {
        self.bounds.kill_all();
    }

    fn make_spare(&mut self) -> Result<Spare, SetupError> {
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .during("make the task's socket")?;
        let (status, status_writer) =
            pipe_with(PipeFlags::CLOEXEC).during("make the task's pipe")?;
        let hostname = hostname();
        let bound = self.bounds.create()?;
        let namespaces = libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        match fork(namespaces, bound.group()) {
            Ok(Fork::Child) => init::run(Inheritance {
                template: &self.template,
                rules: &self.rules,
                filters: &self.filters,
                kernel: self.kernel,
                tool: self.tool,
                socket: theirs,
                status: status_writer,
            }),
            Ok(Fork::Parent(_, init)) => Ok(Spare {
                remains: Remains { init, bound, broken_input: None },
                socket,
                status,
                hostname,
            }),
            Err(error) => {
                self.bounds.remove(&bound);
                Err(error).during("fork the task's init")
            }
        }
    }

    fn start(
        &self,
        remains: &Remains,
        socket: &OwnedFd,
        spare_hostname: &[u8],
        spec: Spec,
    ) -> Result<Started, OpError> {
        let [worker, terminal] = receive_worker(socket)?;
        self.rename(remains, spare_hostname)
            .map_err(|error| failed("give the task the machine's name", &error))?;
        let process_limits = remains.bound.limit(&spec.limits)?;

        let Spec { entry, user, cwd, env, tty, stdin, limits } = spec;
        let tool = matches!(entry, Entry::Tool(_));
        let mut theirs = Vec::with_capacity(3);
        let streams = match tty {
            Some(size) => Streams::terminal(terminal, size),
            None => Streams::pipes(stdin, !tool, &mut theirs),
        }
        .map_err(|error| failed("connect the task", &error))?;
        let terminal = tty.is_some();
        let orders = Orders { entry, user, cwd, env, terminal, limits: process_limits };
        let fds: Vec<BorrowedFd<'_>> = theirs.iter().map(AsFd::as_fd).collect();
        message::send_orders(socket.as_fd(), &orders.encode(), &fds)
            .map_err(|error| failed("give the task its orders", &error))?;
        Ok(Started { worker, streams, tool, memory_limit: limits.memory_bytes })
    }

    /// A machine that was forked from a template gets its name after the spare was made.
    fn rename(&self, remains: &Remains, spare_hostname: &[u8]) -> io::Result<()> {
        let hostname = hostname();
        if hostname == spare_hostname {
            return Ok(());
        }
        move_into_thread_name_spaces(
            remains.init.as_fd(),
            ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
        )?;
        let renamed = rustix::system::sethostname(&hostname);
        let uts = Some(LinkNameSpaceType::HostNameAndNISDomainName);
        move_into_link_name_space(self.uts.as_fd(), uts)?;
        Ok(renamed?)
    }

    fn bury(&mut self, remains: Remains) {
        let key = self.next_key;
        self.next_key += 1;
        let data = epoll::EventData::new_u64(key);
        if epoll::add(&self.watch, &remains.init, data, epoll::EventFlags::IN).is_ok() {
            self.dying.insert(key, remains);
        }
    }

    fn reap(&self, remains: &Remains) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let _ = waitid(WaitId::PidFd(remains.init.as_fd()), options);
        let _ = epoll::delete(&self.watch, &remains.init);
        self.bounds.remove(&remains.bound);
    }

    fn refill_in(&self, delay: Duration) {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = Timespec { tv_sec: 0, tv_nsec: delay.subsec_nanos().into() };
        let once = Itimerspec { it_interval: zero, it_value };
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
    }
}

/// The worker and the terminal's master, once the task is ready.
fn receive_worker(socket: &OwnedFd) -> Result<[OwnedFd; 2], OpError> {
    let (bytes, fds) = message::receive_ready(socket.as_fd())
        .map_err(|error| failed("hear from the task's init", &error))?;
    <[OwnedFd; 2]>::try_from(fds).map_err(|_| match message::parse_report(&bytes) {
        Some(Report::Failed(error)) if !bytes.is_empty() => error,
        _ => OpError::new(ErrorCode::Failed, "the task's init ended before it was ready"),
    })
}

fn check(spec: &Spec) -> Result<(), OpError> {
    let invalid = |message: String| Err(OpError::new(ErrorCode::Invalid, message));
    if let Entry::Command(Command::Argv(arguments)) = &spec.entry
        && arguments.is_empty()
    {
        return invalid("the command is empty".into());
    }
    if let Some(bytes) = spec.limits.memory_bytes.filter(|bytes| *bytes < MEMORY_MIN) {
        return invalid(format!(
            "a memory limit of {bytes} bytes is below the least, {MEMORY_MIN}"
        ));
    }
    if let Some(name) = spec.env.keys().find(|name| !command::is_variable(name)) {
        return invalid(format!("{name:?} cannot be the name of a variable"));
    }
    match &spec.cwd {
        Some(cwd) if !cwd.as_bytes().starts_with(b"/") => {
            invalid(format!("working directory {cwd:?}: is not absolute"))
        }
        _ => Ok(()),
    }
}

/// With the sandbox's root as `/`.
fn set_machine_id() -> io::Result<()> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let opened = File::options().write(true).custom_flags(flags).open(MACHINE_ID);
    let mut file = match opened {
        Ok(file) if file.metadata()?.is_file() => file,
        Ok(_) => return Ok(()),
        // Who needs one makes one, and draws it from the generator.
        Err(error) if is_no_file(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    let id = crate::freshen::machine_id()?;
    file.set_len(0)?;
    file.write_all(format!("{id}\n").as_bytes())
}

/// That there is nothing of this name, or something that is no file.
fn is_no_file(error: &io::Error) -> bool {
    let codes = [libc::ENOENT, libc::ENOTDIR, libc::ELOOP, libc::ENXIO, libc::EISDIR];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

fn hostname() -> Vec<u8> {
    rustix::system::uname().nodename().to_bytes().to_vec()
}

fn failed(action: &str, error: &io::Error) -> OpError {
    OpError::new(ErrorCode::Failed, format!("could not {action}: {error}"))
}

struct Started {
    worker: OwnedFd,
    streams: Streams,
    tool: bool,
    memory_limit: Option<u64>,
}

/// The agent's ends.
#[derive(Debug, Default)]
struct Streams {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

impl Streams {
    fn terminal(master: OwnedFd, size: WindowSize) -> io::Result<Self> {
        tcsetwinsize(&master, winsize(size))?;
        Ok(Self {
            stdin: Some(master.try_clone()?),
            stdout: Some(master.try_clone()?),
            stderr: None,
            terminal: Some(master),
        })
    }

    /// In the order that the worker takes them: stdout, stderr, stdin.
    fn pipes(stdin: bool, stderr: bool, theirs: &mut Vec<OwnedFd>) -> io::Result<Self> {
        let mut output = || -> io::Result<OwnedFd> {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
            ioctl_fionbio(&reader, true)?;
            // Without it the pipe is just smaller.
            let _ = rustix::pipe::fcntl_setpipe_size(&reader, PIPE_BYTES);
            theirs.push(writer);
            Ok(reader)
        };
        let stdout = Some(output()?);
        let stderr = stderr.then(&mut output).transpose()?;
        let stdin = if stdin {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
            ioctl_fionbio(&writer, true)?;
            theirs.push(reader);
            Some(writer)
        } else {
            None
        };
        Ok(Self { stdin, stdout, stderr, terminal: None })
    }
}

fn winsize(size: WindowSize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 }
}

/// How far a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It prepares.
    Pending,
    /// The command runs, or nearly: the exec succeeded.
    Started,
    /// The command, or the tool, has ended. What it left behind is being killed, so its output
    /// ends soon.
    Ended,
}

/// A task that was started.
///
/// Its descriptor becomes readable when [`Task::advance`] has something to find out.
#[derive(Debug)]
#[must_use = "give it to Sandbox::finish, or it is never buried"]
pub(crate) struct Task {
    /// Takes input, where some was announced; the terminal's master with one.
    pub(crate) stdin: Option<OwnedFd>,
    /// Output; the terminal's master with one, where EIO is the end.
    pub(crate) stdout: Option<OwnedFd>,
    /// Error output; none with a terminal, and none of a tool.
    pub(crate) stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    watch: OwnedFd,
    /// Until the worker closed its end, which an exec does.
    socket: Option<OwnedFd>,
    status: OwnedFd,
    worker: OwnedFd,
    remains: Remains,
    tool: bool,
    memory_limit: Option<u64>,
    report: Option<Report>,
    ended: Option<Ending>,
}

/// What init told at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Told(Farewell),
    /// It was killed together with the task.
    Silent,
}

impl AsFd for Task {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

impl Task {
    fn new(
        started: Started,
        remains: Remains,
        socket: OwnedFd,
        status: OwnedFd,
    ) -> Result<Self, (Remains, OpError)> {
        let watch = || -> io::Result<OwnedFd> {
            let watch = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            for fd in [&socket, &status] {
                epoll::add(&watch, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
            }
            ioctl_fionbio(&status, true)?;
            Ok(watch)
        };
        let watch = match watch() {
            Ok(watch) => watch,
            Err(error) => return Err((remains, failed("watch the task", &error))),
        };
        let Started { worker, streams, tool, memory_limit } = started;
        let Streams { stdin, stdout, stderr, terminal } = streams;
        let (report, ended, socket) = (None, None, Some(socket));
        Ok(Self {
            stdin,
            stdout,
            stderr,
            terminal,
            watch,
            socket,
            status,
            worker,
            remains,
            tool,
            memory_limit,
            report,
            ended,
        })
    }

    /// Finds out how far the task is. Never waits.
    pub(crate) fn advance(&mut self) -> Progress {
        while let Some(socket) = &self.socket {
            match message::receive_report(socket.as_fd()) {
                Told::Report(report) => self.report = Some(report),
                Told::Nothing => break,
                Told::Closed => {
                    let _ = epoll::delete(&self.watch, socket);
                    self.socket = None;
                }
            }
        }
        if self.ended.is_none() {
            let mut bytes = [0; Farewell::LENGTH];
            match rustix::io::read(&self.status, &mut bytes) {
                Ok(Farewell::LENGTH) => {
                    self.ended = Some(Ending::Told(Farewell::from_bytes(bytes)));
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Ok(_) | Err(_) => self.ended = Some(Ending::Silent),
            }
            if self.ended.is_some() {
                let _ = epoll::delete(&self.watch, &self.status);
            }
        }
        match (&self.ended, &self.socket) {
            (Some(_), _) => Progress::Ended,
            (None, None) if self.report.is_none() => Progress::Started,
            (None, _) => Progress::Pending,
        }
    }

    /// Sends a signal to the command's process group; with a terminal, to its foreground group
    /// too, or alone where it is one that a keyboard sends. KILL goes to the whole task.
    ///
    /// # Errors
    /// Where there is no such signal, or nobody left to take it.
    pub(crate) fn signal(&self, signal: i32) -> Result<(), OpError> {
        if !(1..=64).contains(&signal) {
            return Err(OpError::new(ErrorCode::Invalid, format!("there is no signal {signal}")));
        }
        if signal == libc::SIGKILL {
            self.kill();
            return Ok(());
        }
        if let Some(group) = self.foreground_group() {
            let sent = signal_group(group.as_fd(), signal);
            if KEYBOARD.contains(&signal) && sent.is_ok() {
                return Ok(());
            }
        }
        signal_group(self.worker.as_fd(), signal).map_err(|error| {
            if error.raw_os_error() == Some(libc::ESRCH) {
                OpError::new(ErrorCode::NotFound, "the process has ended")
            } else {
                failed("send the signal", &error)
            }
        })
    }

    /// Kills the whole task.
    pub(crate) fn kill(&self) {
        self.remains.kill();
    }

    /// Gives the terminal a new size; the foreground group gets WINCH.
    ///
    /// # Errors
    /// Where the task has no terminal.
    pub(crate) fn resize(&self, size: WindowSize) -> Result<(), OpError> {
        let terminal = self.terminal.as_ref().ok_or_else(|| {
            OpError::new(ErrorCode::Invalid, "the process was started without a terminal")
        })?;
        tcsetwinsize(terminal, winsize(size)).map_err(|error| failed("resize", &error.into()))
    }

    /// Held by a pidfd, then asked for again: so the number cannot have come to mean another.
    fn foreground_group(&self) -> Option<OwnedFd> {
        let terminal = self.terminal.as_ref()?;
        let group = tcgetpgrp(terminal).ok()?;
        let pidfd =
            rustix::process::pidfd_open(group, rustix::process::PidfdFlags::empty()).ok()?;
        (tcgetpgrp(terminal).ok()? == group).then_some(pidfd)
    }

    fn end(mut self) -> (Ended, Remains) {
        if self.advance() != Progress::Ended {
            self.kill();
        }
        let bound = &self.remains.bound;
        let ending = self.ended.unwrap_or(Ending::Silent);
        let used = bound.used(match ending {
            Ending::Told(Farewell { used, .. }) => used,
            Ending::Silent => Used::default(),
        });
        let status = match ending {
            Ending::Told(Farewell { status, .. }) => Some(status),
            Ending::Silent => None,
        };
        let ended = Ended {
            cpu_usec: used.cpu_usec,
            memory_peak_bytes: used.memory_peak_bytes,
            end: end(self.report, status, self.tool, || bound.out_of_memory(), self.memory_limit),
        };
        (ended, self.remains)
    }
}

/// Signals that a terminal sends for a key or a change of its window.
const KEYBOARD: [libc::c_int; 4] = [libc::SIGINT, libc::SIGQUIT, libc::SIGTSTP, libc::SIGWINCH];

/// A task's end and its figures.
#[derive(Debug)]
pub(crate) struct Ended {
    /// What became of it.
    pub(crate) end: End,
    /// CPU time of all its processes, in microseconds.
    pub(crate) cpu_usec: u64,
    /// Highest memory of all its processes, in bytes.
    pub(crate) memory_peak_bytes: u64,
}

/// What became of a task.
#[derive(Debug, PartialEq)]
pub(crate) enum End {
    /// The command's end. Never `TimedOut`: who sent the signal knows.
    Command(Outcome),
    /// The tool's reply or error.
    Tool(Result<Value, OpError>),
    /// It did not come to the exec.
    Failed(OpError),
}

fn end(
    report: Option<Report>,
    status: Option<Status>,
    tool: bool,
    out_of_memory: impl FnOnce() -> bool,
    limit_bytes: Option<u64>,
) -> End {
    match report {
        Some(Report::Failed(error)) => return End::Failed(error),
        Some(Report::NotFound(command)) => return End::Command(Outcome::NotFound { command }),
        Some(Report::NotExecutable(reason)) => {
            return End::Command(Outcome::NotExecutable { reason });
        }
        Some(Report::Reply(reply)) => return End::Tool(Ok(reply)),
        Some(Report::Refused(error)) => return End::Tool(Err(error)),
        None => {}
    }
    let signal = match status {
        Some(Status::Exited(code)) if !tool => {
            return End::Command(Outcome::Exited { code });
        }
        Some(Status::Exited(_)) => 0,
        Some(Status::Signaled(signal)) => i32::from(signal),
        // Init was killed together with the task.
        None => libc::SIGKILL,
    };
    let out_of_memory = signal == libc::SIGKILL && out_of_memory();
    match (tool, out_of_memory) {
        (false, true) => End::Command(Outcome::OutOfMemory { limit_bytes }),
        (false, false) => End::Command(Outcome::Signaled { signal }),
        (true, true) => End::Tool(Err(OpError::new(ErrorCode::Exhausted, "out of memory"))),
        (true, false) if signal == libc::SIGKILL => {
            End::Tool(Err(OpError::new(ErrorCode::Cancelled, "the operation was killed")))
        }
        (true, false) => {
            let message = format!("the operation broke off (signal {signal})");
            End::Tool(Err(OpError::new(ErrorCode::Failed, message)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(status: Option<Status>, out_of_memory: bool) -> End {
        end(None, status, false, || out_of_memory, Some(1 << 20))
    }

    #[test]
    fn an_exit_is_an_exit() {
        let exited = Some(Status::Exited(3));
        assert_eq!(command(exited, false), End::Command(Outcome::Exited { code: 3 }));
        // Something of the task was killed before, and the command made do.
        assert_eq!(command(exited, true), End::Command(Outcome::Exited { code: 3 }));
    }

    #[test]
    fn a_task_killed_for_memory_is_told_apart_from_a_kill() {
        let killed = End::Command(Outcome::Signaled { signal: 9 });
        let memory = End::Command(Outcome::OutOfMemory { limit_bytes: Some(1 << 20) });
        for status in [None, Some(Status::Signaled(9))] {
            assert_eq!(command(status, false), killed);
            assert_eq!(command(status, true), memory);
        }
        let segfault = command(Some(Status::Signaled(11)), true);
        assert_eq!(segfault, End::Command(Outcome::Signaled { signal: 11 }));
    }

    #[test]
    fn a_report_says_more_than_the_status() {
        let report = Report::NotFound("nope".into());
        let exited = Some(Status::Exited(1));
        let outcome = Outcome::NotFound { command: "nope".into() };
        assert_eq!(end(Some(report), exited, false, || false, None), End::Command(outcome));
    }

    #[test]
    fn a_tool_that_breaks_off_is_an_error() {
        let code =
            |status, out_of_memory: bool| match end(None, status, true, || out_of_memory, None) {
                End::Tool(Err(error)) => error.code,
                other => panic!("{other:?}"),
            };
        assert_eq!(code(None, true), ErrorCode::Exhausted);
        assert_eq!(code(None, false), ErrorCode::Cancelled);
        assert_eq!(code(Some(Status::Signaled(6)), false), ErrorCode::Failed);
    }
}
