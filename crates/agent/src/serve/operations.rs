//! What the host asks for: checked, refused, or begun.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;

use rustix::event::epoll::{self, EventData, EventFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::envelope::key_from_hex;
use wire::frame::StreamId;
use wire::op::{
    self, AgentOpen, Attach, Become, Clock, Command, Defaults, Done, ErrorCode, Exec,
    FreezeVolumes, Info, LayerOut, Mkdir, MountVolume, MountWorkspace, Network, NetworkReply,
    OpError, Operation, ProcessList, Processes, Reseed, Resize, Shutdown, Signal, Stdin,
};
use wire::text::{Secret, Text};
use zeroize::Zeroizing;

use super::{Answer, Channel, Follower, NETWORK, ProcessId, Role, Server, set_watch, token};
use crate::log::Log;
use crate::process::{Deadline, Feed, Kind, Named, Process, Sink, Source, check_name};
use crate::task::{self, Entry, Spec, Task, ToolRequest, User};
use crate::{Kernel, boot, freshen, layer, network, tool, trust};

/// Detached processes that are remembered; the oldest that has ended makes room.
const MAX_DETACHED: usize = 64;

impl Server {
    pub(super) fn open(&mut self, id: StreamId, envelope: &[u8]) -> Result<Answer, OpError> {
        let opened = self.opener.open(envelope, freshen::now_ms())?;
        let (op, payload) = (opened.op, opened.payload);
        match op {
            Clock::NAME => {
                freshen::set_clock(&parse(payload)?, self.sandbox.kernel())?;
                self.has_clock = true;
                done()
            }
            Reseed::NAME => {
                let Reseed { entropy } = parse(payload)?;
                freshen::reseed(&entropy, self.sandbox.kernel())?;
                if !self.has_entropy {
                    self.sandbox.take_machine_id()?;
                }
                self.has_entropy = true;
                done()
            }
            Become::NAME => self.take_identity(parse(payload)?),
            Info::NAME => {
                parse::<Info>(payload)?;
                Ok(Answer::Reply(value(&self.info)))
            }
            Shutdown::NAME => {
                parse::<Shutdown>(payload)?;
                self.stopping = true;
                done()
            }
            _ if !(self.has_clock && self.has_entropy) => Err(OpError::new(
                ErrorCode::NotReady,
                "the guest has no fresh time and randomness yet: send clock and reseed first",
            )),
            Network::NAME => self.network(&parse(payload)?),
            _ if self.lacks_network => Err(OpError::new(
                ErrorCode::NotReady,
                "the network is that of the sandbox that this one was: send network first",
            )),
            Defaults::NAME => self.take_defaults(parse(payload)?),
            MountVolume::NAME => {
                self.volumes.mount(&parse(payload)?, &mut self.sandbox)?;
                done()
            }
            FreezeVolumes::NAME => {
                parse::<FreezeVolumes>(payload)?;
                self.volumes.freeze()?;
                done()
            }
            MountWorkspace::NAME => {
                self.shares.mount(id, &parse(payload)?, &mut self.sandbox)?;
                Ok(Answer::Mounted)
            }
            _ if !self.is_settled => {
                self.sandbox.settle_network()?;
                self.is_settled = true;
                self.begin(id, op, payload)
            }
            _ => self.begin(id, op, payload),
        }
    }

    /// All of it, or the opener lets nothing through any more. What is drawn from the generator
    /// comes after it was fed.
    ///
    /// Nothing here outlives this from before: the spare task is a copy of the agent, which holds no
    /// random bytes and no secret, has run nothing of a sandbox's, and takes the machine's name
    /// and its boot id by reference; the hash tables of tools are seeded where a tool runs.
    fn take_identity(&mut self, request: Become) -> Result<Answer, OpError> {
        let kernel = self.sandbox.kernel();
        freshen::set_clock(&Clock { unix_ns: request.unix_ns }, kernel)?;
        freshen::reseed(&request.entropy, kernel)?;
        if let Some(hostname) = &request.hostname {
            freshen::set_hostname(hostname)?;
        }
        self.sandbox.take_boot_id()?;
        self.sandbox.take_machine_id()?;
        let key = key_from_hex(&request.key)
            .ok_or_else(|| OpError::new(ErrorCode::Invalid, "the key that it brings is none"))?;
        // What it has of a sandbox that it was: streams and directories of that one's host, and the
        // placeholders of its credentials.
        self.shares.end_all(&mut self.sandbox);
        if let Some(network) = &mut self.network {
            network.lose_host();
            self.lacks_network = true;
        }
        self.variables.clear();
        self.opener.take_identity(key, request.sandbox);
        (self.has_clock, self.has_entropy) = (true, true);
        done()
    }

    /// What takes tasks, or is about them.
    fn begin(&mut self, id: StreamId, op: &str, payload: &[u8]) -> Result<Answer, OpError> {
        match op {
            Exec::NAME => self.exec(id, parse(payload)?),
            Stdin::NAME => {
                let process = self.by_name(&parse::<Stdin>(payload)?.process)?;
                Ok(Answer::Role(Role::Feeder(process)))
            }
            Signal::NAME => self.signal(&parse(payload)?),
            Resize::NAME => {
                let resize: Resize = parse(payload)?;
                self.running(&resize.process)?.resize(resize.size)?;
                done()
            }
            Attach::NAME => self.attach(id, &parse(payload)?),
            Processes::NAME => {
                parse::<Processes>(payload)?;
                let processes = self.processes.values().filter_map(Process::info).collect();
                Ok(Answer::Reply(value(&ProcessList { processes })))
            }
            LayerOut::NAME => {
                parse::<LayerOut>(payload)?;
                self.layer_out(id)
            }
            op if tool::is_tool(op) => self.start_tool(id, op, payload),
            other => {
                let name: String = other.chars().take(32).collect();
                let message = format!("this agent knows no operation {name:?}");
                Err(OpError::new(ErrorCode::Unsupported, message))
            }
        }
    }

    fn network(&mut self, request: &Network) -> Result<Answer, OpError> {
        if self.is_settled && self.network.is_none() {
            let message = "a sandbox gets its network before its first task, and this one has none";
            return Err(OpError::new(ErrorCode::Invalid, message));
        }
        check_names(request.env.iter().map(|(name, _)| name))?;
        let kernel = self.sandbox.kernel();
        let trust = request.trust.as_deref();
        let (env, traces) = self.sandbox.change_root(|| trust::install(trust, kernel))?;
        self.traces = traces;
        if self.network.is_none() {
            let network = network::Network::bring_up(self.sandbox.netfilter(), self.windows)?;
            epoll::add(&self.epoll, network.as_fd(), EventData::new_u64(NETWORK), EventFlags::IN)
                .map_err(|error| {
                OpError::new(ErrorCode::Exhausted, format!("watch the network: {error}"))
            })?;
            self.network = Some(network);
        }
        self.sandbox.settle_network()?;
        self.is_settled = true;
        self.lacks_network = false;
        let variables = env.iter().chain(&request.env);
        self.variables = variables.map(|(name, value)| (name.clone(), secret(value))).collect();
        Ok(Answer::Reply(value(&NetworkReply { env })))
    }

    fn take_defaults(&mut self, defaults: Defaults) -> Result<Answer, OpError> {
        check_names(defaults.env.keys())?;
        let mut owner = None;
        if let Some(user) = defaults.user.clone() {
            owner = self.sandbox.change_root(|| {
                // Who cannot be found is told to the task that would have been his.
                let Ok(user) = User::find(Some(user.as_bytes())) else { return Ok(None) };
                boot::give_workspace((user.uid, user.gid))?;
                Ok(Some((user.uid, user.gid)))
            })?;
        }
        if let Some(cwd) = &defaults.cwd {
            let owner = owner.unwrap_or((op::USER, op::USER));
            self.sandbox.change_root(|| boot::directory_of_image(cwd.as_bytes(), owner))?;
        }
        self.defaults = defaults;
        self.owner = owner;
        done()
    }

    fn exec(&mut self, id: StreamId, exec: Exec) -> Result<Answer, OpError> {
        check_name(&exec.process)?;
        if matches!(&exec.command, Command::Argv(argv) if argv.is_empty()) {
            return Err(OpError::new(ErrorCode::Invalid, "there is no command"));
        }
        if self.by_name(&exec.process).is_ok() {
            let message = format!("there is a process {} already", exec.process);
            return Err(OpError::new(ErrorCode::Exists, message));
        }
        let log = if exec.detach { Some(self.make_room_for_log(&exec)?) } else { None };
        let named = Named::new(&exec);
        let deadline = Deadline::new(&exec);
        let (detach, terminal) = (exec.detach, exec.tty.is_some());
        let of_image = self.defaults.env.iter().map(|(name, value)| (name.clone(), secret(value)));
        let mut env: BTreeMap<_, _> = of_image.collect();
        env.extend(self.variables.clone());
        env.extend(exec.env);
        let spec = Spec {
            entry: Entry::Command(exec.command),
            user: exec.user.or_else(|| self.defaults.user.clone()),
            cwd: exec.cwd.or_else(|| self.defaults.cwd.clone()),
            env,
            tty: exec.tty,
            stdin: exec.stdin,
            limits: exec.limits,
        };
        let kind = if detach { Kind::Detached(named) } else { Kind::Attached(named) };
        let process = self.spawn(id, spec, kind, deadline, log, terminal)?;
        if !detach && !terminal {
            self.open_stderr(id, process)?;
        }
        Ok(Answer::Role(Role::Owner(process)))
    }

    fn open_stderr(&mut self, of: StreamId, process: ProcessId) -> Result<(), OpError> {
        match self.open_stream(&AgentOpen::Stderr { of }) {
            Ok(stderr) => {
                self.streams.insert(stderr, Role::Stderr(process));
                if let Some(found) = self.processes.get_mut(&process) {
                    found.stderr.sink = Sink::Stream(stderr);
                }
                Ok(())
            }
            Err(error) => {
                self.abandon(process);
                Err(error)
            }
        }
    }

    fn open_stream(&mut self, open: &AgentOpen) -> Result<StreamId, OpError> {
        let payload = serde_json::to_vec(open).expect("plain JSON");
        let Some(connection) = self.session.connection() else {
            return Err(wire::connection::cancelled());
        };
        connection
            .open(Zeroizing::new(payload))
            .map_err(|error| OpError::new(ErrorCode::TooMany, error.to_string()))
    }

    /// Kept output is the agent's memory, of which an eighth of the guest's is for logs.
    fn make_room_for_log(&mut self, exec: &Exec) -> Result<usize, OpError> {
        let detached = |process: &&Process| process.is_detached();
        if self.processes.values().filter(detached).count() >= MAX_DETACHED {
            let ended = self
                .processes
                .iter()
                .find(|(_, process)| process.is_detached() && process.reply.is_some())
                .map(|(id, _)| *id);
            match ended {
                Some(id) => self.forget(id),
                None => {
                    let message = format!("{MAX_DETACHED} detached processes run already");
                    return Err(OpError::new(ErrorCode::TooMany, message));
                }
            }
        }
        let budget = self.info.memory_bytes / 8 / 2 / MAX_DETACHED as u64;
        if exec.limits.log_bytes == 0 {
            return Err(OpError::new(ErrorCode::Invalid, "log_bytes is 0"));
        }
        let capacity = exec.limits.log_bytes.min(budget.max(64 << 10));
        Ok(usize::try_from(capacity).unwrap_or(usize::MAX))
    }

    fn start_tool(&mut self, id: StreamId, op: &str, payload: &[u8]) -> Result<Answer, OpError> {
        #[derive(serde::Deserialize)]
        struct User {
            user: Option<wire::text::Text>,
        }
        let User { user } = parse(payload)?;
        let payload = match (op, self.owner) {
            (Mkdir::NAME, Some(owner)) => of_image_user(parse(payload)?, owner),
            _ => payload.to_vec(),
        };
        let request = ToolRequest { op: op.to_owned(), payload };
        let spec = Spec {
            entry: Entry::Tool(request),
            user: user.or_else(|| self.defaults.user.clone()),
            cwd: Some("/".into()),
            env: BTreeMap::new(),
            tty: None,
            stdin: true,
            limits: wire::op::Limits::default(),
        };
        let process = self.spawn(id, spec, Kind::Tool, Deadline::None, None, false)?;
        Ok(Answer::Role(Role::Owner(process)))
    }

    fn layer_out(&mut self, id: StreamId) -> Result<Answer, OpError> {
        if self.sandbox.kernel() == Kernel::Shared {
            let message = "a sandbox on the host's kernel has no root of its own to pack";
            return Err(OpError::new(ErrorCode::Unsupported, message));
        }
        if self.processes.values().any(|process| process.task.is_some()) {
            let message = "tasks run, and what they change cannot be packed meanwhile";
            return Err(OpError::new(ErrorCode::TooMany, message));
        }
        let traces = std::mem::take(&mut self.traces);
        let unchanged = self.sandbox.change_root(|| trust::remove(&traces))?;
        let task = self.sandbox.spawn_own(|output| layer::pack(&unchanged, output))?;
        let process = self.keep(id, task, Kind::Tool, Deadline::None, None, false)?;
        Ok(Answer::Role(Role::Owner(process)))
    }

    fn spawn(
        &mut self,
        stream: StreamId,
        spec: Spec,
        kind: Kind,
        deadline: Deadline,
        log: Option<usize>,
        terminal: bool,
    ) -> Result<ProcessId, OpError> {
        let task = self.sandbox.spawn(spec)?;
        self.keep(stream, task, kind, deadline, log, terminal)
    }

    fn keep(
        &mut self,
        stream: StreamId,
        mut task: Task,
        kind: Kind,
        deadline: Deadline,
        log: Option<usize>,
        terminal: bool,
    ) -> Result<ProcessId, OpError> {
        self.last_process += 1;
        let id = self.last_process;
        let (stdout_sink, stderr_sink) = match log {
            Some(capacity) => (Sink::Log(Log::new(capacity)), Sink::Log(Log::new(capacity))),
            None => (Sink::Stream(stream), Sink::None),
        };
        let source = |fd, sink| Source { fd, watched: false, sink };
        let stdout = source(task.stdout.take(), stdout_sink);
        let stderr = source(task.stderr.take(), stderr_sink);
        let stdin = Feed::new(task.stdin.take(), terminal);
        let watch = epoll::add(&self.epoll, task.as_fd(), token(id, Channel::Task), EventFlags::IN);
        let mut process = Process {
            kind,
            stream: Some(stream),
            task: Some(task),
            has_started: false,
            has_ended: false,
            stdout,
            stderr,
            stdin,
            deadline,
            timed_out: None,
            reply: None,
        };
        for (source, channel) in
            [(&mut process.stdout, Channel::Stdout), (&mut process.stderr, Channel::Stderr)]
        {
            set_watch(&self.epoll, source, token(id, channel), true);
        }
        self.processes.insert(id, process);
        if let Err(error) = watch {
            self.abandon(id);
            return Err(OpError::new(ErrorCode::Exhausted, format!("watch a task: {error}")));
        }
        Ok(id)
    }

    fn by_name(&self, name: &str) -> Result<ProcessId, OpError> {
        self.processes
            .iter()
            .find(|(_, process)| process.named().is_some_and(|named| named.name == name))
            .map(|(id, _)| *id)
            .ok_or_else(|| {
                let name: String = name.chars().take(64).collect();
                OpError::new(ErrorCode::NotFound, format!("there is no process {name:?}"))
            })
    }

    fn running(&self, name: &str) -> Result<&Task, OpError> {
        let id = self.by_name(name)?;
        self.processes[&id]
            .task
            .as_ref()
            .ok_or_else(|| OpError::new(ErrorCode::NotFound, format!("process {name} has ended")))
    }

    fn signal(&self, signal: &Signal) -> Result<Answer, OpError> {
        if !(1..=64).contains(&signal.signal) {
            return Err(OpError::new(ErrorCode::Invalid, "a signal is a number from 1 to 64"));
        }
        self.running(&signal.process)?.signal(signal.signal)?;
        done()
    }

    fn attach(&mut self, id: StreamId, attach: &Attach) -> Result<Answer, OpError> {
        let process = self.by_name(&attach.process)?;
        let found = &self.processes[&process];
        if !found.is_detached() {
            let message = format!("process {} is not detached", attach.process);
            return Err(OpError::new(ErrorCode::Invalid, message));
        }
        let has_stderr = matches!(&found.stderr.sink, Sink::Log(log) if log.end() > 0)
            || found.stderr.fd.is_some();
        let stderr = if has_stderr {
            let stderr = self.open_stream(&AgentOpen::Stderr { of: id })?;
            self.streams.insert(stderr, Role::FollowerStderr(id));
            Some((stderr, attach.stderr_offset))
        } else {
            None
        };
        Ok(Answer::Role(Role::Follower(Follower {
            process,
            stdout_offset: attach.stdout_offset,
            stderr,
            follow: attach.follow,
            dropped: (0, 0),
        })))
    }
}

/// A directory for the sandbox's own user is one for the image's.
fn of_image_user(mkdir: Mkdir, (user, group): (u32, u32)) -> Vec<u8> {
    let mkdir = match mkdir.owner {
        Some(op::USER) => Mkdir { owner: Some(user), group: Some(group), ..mkdir },
        _ => mkdir,
    };
    serde_json::to_vec(&mkdir).expect("a request is plain JSON")
}

fn check_names<'a>(names: impl IntoIterator<Item = &'a Text>) -> Result<(), OpError> {
    match names.into_iter().find(|name| !task::is_variable(name)) {
        None => Ok(()),
        Some(name) => {
            let message = format!("{name:?} cannot be the name of a variable");
            Err(OpError::new(ErrorCode::Invalid, message))
        }
    }
}

fn secret(value: &Text) -> Secret {
    Secret::new(value.as_bytes().to_vec()).expect("a text has no NUL")
}

fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T, OpError> {
    serde_json::from_slice(payload)
        .map_err(|error| OpError::new(ErrorCode::Invalid, format!("malformed payload: {error}")))
}

fn value(reply: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(reply).expect("a reply is plain JSON")
}

fn done() -> Result<Answer, OpError> {
    Ok(Answer::Reply(value(&Done {})))
}
